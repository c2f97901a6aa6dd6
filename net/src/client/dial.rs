//! Connecting to one address, until it is known who answers there.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use logdrive_raft::wire::{Decode, Reader};
use logdrive_raft::{ClusterId, GroupId, NodeId};
use tokio::time::timeout;

use super::Inner;
use super::session::Established;
use crate::codec::{Keep, MessageReader, framed};
use crate::error::{CloseCode, LinkError, Refusal};
use crate::hello::HELLO_BYTES_MAX;
use crate::identity::{Role, any_peer_name};
use crate::protocol::{
    ClientGreeting, Code, RESPONSE_FRAME_BYTES_MAX, Response, ServerGreeting, next_response,
    put_snapshot_request, put_status_request,
};
use crate::tls::identity_of;
use crate::transport::ConnectionError;

impl Inner {
    /// Connects to an address and exchanges greetings. It must be node `wanted` that answers, if anybody in
    /// particular.
    pub(super) async fn dial(
        &self,
        address: &str,
        wanted: Option<NodeId>,
    ) -> Result<Established, LinkError> {
        let unreachable = || LinkError::Unreachable {
            address: address.to_owned(),
        };
        let remote = self.resolve(address).await?;
        let (tls, name) = (self.tls.load_full(), any_peer_name(&self.cluster_name));
        let connecting = self.endpoint.connect(&tls, &self.transport, remote, &name);
        let quic = |error: ConnectionError| LinkError::from_transport(&error, address, false);
        let connection = timeout(HANDSHAKE, connecting)
            .await
            .map_err(|_| unreachable())?
            .map_err(quic)?;
        // TLS has checked that it is a peer of this cluster; its certificate says which.
        let node = match identity_of(&connection) {
            Ok(found) if found.role == Role::Peer && found.cluster == self.cluster_name => {
                if let Some(wanted) = wanted.filter(|wanted| *wanted != found.id) {
                    connection.close(CloseCode::WrongId, b"another node was wanted");
                    return Err(LinkError::WrongNode {
                        address: address.to_owned(),
                        found: found.to_string(),
                        wanted,
                    });
                }
                found.id
            }
            found => {
                let what = match found {
                    Ok(found) => {
                        format!("at {address} answers {found}, which is no server of ours")
                    }
                    Err(error) => error.to_string(),
                };
                let refusal = Refusal::new(CloseCode::WrongId, what);
                refusal.close(&connection);
                return Err(refusal.into());
            }
        };
        let greeting = ClientGreeting {
            compatible: 0,
            cluster: ClusterId(0),
            client: self.client,
        };
        let exchange = async {
            let lost = |_| match connection.close_reason() {
                Some(error) => LinkError::from_transport(&error, address, false),
                None => LinkError::Lost,
            };
            let (mut send, receive) = connection.open_bi().await.map_err(quic)?;
            send.write_chunk(framed(&greeting))
                .await
                .map_err(|error| lost(error.to_string()))?;
            let mut reader = MessageReader::new(receive, self.mtu, &self.reading);
            let answer = reader.next(HELLO_BYTES_MAX, Keep::Briefly).await;
            let answer = answer.map_err(|error| lost(error.to_string()))?;
            let answer = answer.ok_or_else(|| lost(String::new()))?;
            ServerGreeting::from_bytes(&answer).map_err(|error| {
                let refusal = Refusal::new(CloseCode::Version, error.to_string());
                refusal.close(&connection);
                LinkError::from(refusal)
            })?;
            Ok::<_, LinkError>((send, reader))
        };
        let (send, reader) = timeout(HANDSHAKE, exchange)
            .await
            .map_err(|_| unreachable())??;
        Ok(Established {
            node,
            connection,
            send,
            reader,
        })
    }

    async fn resolve(&self, address: &str) -> Result<SocketAddr, LinkError> {
        if let Ok(address) = address.parse() {
            return Ok(address);
        }
        let failed = |what: String| LinkError::Resolve {
            address: address.to_owned(),
            what,
        };
        let found = timeout(RESOLVE, tokio::net::lookup_host(address))
            .await
            .map_err(|_| failed("no answer within a second".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        let ipv4_only = self
            .endpoint
            .local_addr()
            .is_ok_and(|local| local.is_ipv4());
        let mut usable = found.filter(|address| address.is_ipv4() || !ipv4_only);
        usable
            .next()
            .ok_or_else(|| failed("no address of a kind that this machine has".to_owned()))
    }

    pub(super) async fn status(&self, address: &str) -> Result<Bytes, LinkError> {
        let mut request = BytesMut::new();
        put_status_request(&mut request, 0);
        let refused = |code: Code| match code {
            Code::DEADLINE => LinkError::Unreachable {
                address: address.to_owned(),
            },
            code => {
                let what = format!("asked for a status, got {code}");
                LinkError::Refused(Refusal::new(CloseCode::Malformed, what))
            }
        };
        let asked = self.ask(address, request.freeze(), STATUS).await;
        asked.and_then(|answer| answer.map_err(refused))
    }

    /// Has the node there take a snapshot, and says how that ended.
    pub(super) async fn snapshot(
        &self,
        address: &str,
        group: GroupId,
        limit: Duration,
    ) -> Result<Result<Bytes, Code>, LinkError> {
        let mut request = BytesMut::new();
        put_snapshot_request(&mut request, 0, group);
        self.ask(address, request.freeze(), limit).await
    }

    /// Asks one thing on a connection of its own: the answer, or the code with which it was refused.
    async fn ask(
        &self,
        address: &str,
        request: Bytes,
        limit: Duration,
    ) -> Result<Result<Bytes, Code>, LinkError> {
        let Established {
            connection,
            mut send,
            mut reader,
            ..
        } = self.dial(address, None).await?;
        let lost = || match connection.close_reason() {
            Some(error) => LinkError::from_transport(&error, address, true),
            None => LinkError::Lost,
        };
        let exchange = async {
            send.write_chunk(request).await.map_err(|_| lost())?;
            let frame = reader.next(RESPONSE_FRAME_BYTES_MAX, Keep::Briefly).await;
            let frame = frame.map_err(|_| lost())?.ok_or_else(lost)?;
            match next_response(&mut Reader::new(&frame)) {
                Ok(Response::Json { json, .. }) => Ok(Ok(Bytes::copy_from_slice(json))),
                Ok(Response::NeverAppended { code, .. } | Response::MayYetCommit { code, .. }) => {
                    Ok(Err(code))
                }
                other => {
                    let what = format!("asked one thing, got {other:?}");
                    Err(LinkError::Refused(Refusal::new(CloseCode::Malformed, what)))
                }
            }
        };
        let answer = match timeout(limit, exchange).await {
            Ok(answer) => answer,
            // It was reached, and may still be at it.
            Err(_) => Ok(Err(Code::DEADLINE)),
        };
        connection.close(CloseCode::Shutdown, b"");
        answer
    }
}

const HANDSHAKE: Duration = Duration::from_secs(1);
const RESOLVE: Duration = Duration::from_secs(1);
const STATUS: Duration = Duration::from_secs(5);
