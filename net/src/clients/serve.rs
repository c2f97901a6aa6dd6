//! Serving one connection of a client: the greeting, then requests in and answers out.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use logdrive_raft::ClusterId;
use logdrive_raft::wire::{Decode, DecodeError};
use tokio::time::timeout;

use super::{ClientEvent, ConnectionId, Shared};
use crate::codec::{Keep, MessageReader, ReadFailure, framed};
use crate::error::{CloseCode, Refusal};
use crate::hello::HELLO_BYTES_MAX;
use crate::identity::{Identity, Role};
use crate::limit::RateLimit;
use crate::protocol::{ClientGreeting, Code, REQUEST_FRAME_BYTES_MAX, Requests, ServerGreeting};
use crate::responses::{NextResponses, ResponseQueue};
use crate::tls::identity_of;
use crate::transport::{Connection, SendStream, Serve};

/// The port that clients dial.
pub(super) struct Port {
    shared: Rc<Shared>,
    log: RateLimit,
}

impl Port {
    pub(super) fn new(shared: &Rc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared: Rc::clone(shared),
            log: RateLimit::once_a(LOG_INTERVAL),
        })
    }
}

impl Serve for Port {
    async fn talk(self: Rc<Self>, connection: Connection) -> Result<(), Refusal> {
        talk(&self.shared, &connection).await
    }

    fn refused(&self, address: SocketAddr, refusal: &Refusal) {
        if refusal.code != CloseCode::Shutdown && self.log.pass() {
            tracing::warn!(
                event = "client_refused",
                node = self.shared.node.0,
                code = refusal.code.name(),
                "refused a client at {address}: {refusal}"
            );
        }
    }
}

async fn talk(shared: &Rc<Shared>, connection: &Connection) -> Result<(), Refusal> {
    let identity = identity_of(connection)
        .map_err(|error| Refusal::new(CloseCode::WrongId, error.to_string()))?;
    check_identity(shared, &identity)?;
    let first = async {
        let (send, receive) = connection.accept_bi().await.map_err(|_| gone())?;
        let mut reader = MessageReader::new(receive, shared.mtu, &shared.reading);
        let greeting = read_greeting(&mut reader).await?;
        Ok((send, reader, greeting))
    };
    let (mut send, reader, greeting) = timeout(HELLO, first).await.map_err(|_| {
        Refusal::new(
            CloseCode::TooSlow,
            "no greeting within a second of the handshake",
        )
    })??;
    check_greeting(shared, &identity, &greeting)?;
    let answer = ServerGreeting {
        compatible: 0,
        cluster: shared.cluster,
        node: shared.node,
    };
    send.write_chunk(framed(&answer))
        .await
        .map_err(|_| gone())?;
    let served = Served::new(shared, connection);
    let role = identity.role;
    let opened = ClientEvent::Opened {
        connection: served.id,
        identity,
    };
    shared.push(opened).await;
    // Both only ever end with the connection, so neither is resumed after it was cancelled.
    tokio::select! {
        ended = read_requests(shared, &served, role, reader) => ended,
        ended = write_responses(&served.responses, send) => ended,
        // A second stream is against the protocol, and its limit says so to the client.
        _ = connection.closed() => Ok(()),
    }
}

/// A connection that is served, for as long as it is.
struct Served {
    shared: Rc<Shared>,
    id: ConnectionId,
    responses: ResponseQueue,
}

impl Served {
    fn new(shared: &Rc<Shared>, connection: &Connection) -> Self {
        let number = shared.connections_ever.get() + 1;
        shared.connections_ever.set(number);
        let id = ConnectionId(number);
        let responses = ResponseQueue::new(shared.answers_bytes_max);
        let entry = (connection.clone(), responses.clone());
        shared.connections.borrow_mut().insert(id, entry);
        Self {
            shared: Rc::clone(shared),
            id,
            responses,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.responses.close();
        self.shared.connections.borrow_mut().remove(&self.id);
        self.shared.ended.notify_one();
        self.shared.mailbox.push(ClientEvent::Closed {
            connection: self.id,
        });
    }
}

async fn read_requests(
    shared: &Rc<Shared>,
    served: &Served,
    role: Role,
    mut reader: MessageReader,
) -> Result<(), Refusal> {
    let mut next_id = 0;
    loop {
        // The payloads are copied out of the frame by whoever takes it, soon.
        let frame = match reader.next(REQUEST_FRAME_BYTES_MAX, Keep::Briefly).await {
            Ok(Some(frame)) => frame,
            // The client has no more to ask. It may still wait for answers.
            Ok(None) => return std::future::pending().await,
            Err(ReadFailure::Stream(_)) => return Ok(()),
            Err(error) => return Err(Refusal::new(CloseCode::Malformed, error.to_string())),
        };
        let requests = Requests::from_shared(frame)
            .map_err(|error| Refusal::new(CloseCode::Malformed, format!("request: {error}")))?;
        let (first_id, count) = match &requests {
            Requests::Propose(batch) => (batch.first_id(), batch.len()),
            Requests::Status { id } | Requests::Snapshot { id, .. } => (*id, 1),
        };
        if first_id < next_id {
            let what = format!("request {first_id} after request {next_id}: ids must grow");
            return Err(Refusal::new(CloseCode::Malformed, what));
        }
        next_id = first_id.saturating_add(count as u64);
        served
            .responses
            .admit(count, shared.unanswered_max, shared.responses_bytes_max)
            .await;
        let (connection, responses) = (served.id, served.responses.clone());
        let event = match requests {
            Requests::Propose(batch) => ClientEvent::Propose {
                connection,
                responses,
                batch,
            },
            Requests::Status { id } => ClientEvent::Status {
                connection,
                responses,
                id,
            },
            // Who reads and writes does not operate the node.
            Requests::Snapshot { id, .. } if role != Role::Admin => {
                let mut batch = responses.batch();
                batch.never_appended(id, 1, Code::FORBIDDEN, 0, None);
                continue;
            }
            Requests::Snapshot { id, group } => ClientEvent::Snapshot {
                connection,
                responses,
                id,
                group,
            },
        };
        shared.push(event).await;
    }
}

async fn write_responses(responses: &ResponseQueue, mut send: SendStream) -> Result<(), Refusal> {
    loop {
        let mut bytes = match responses.next().await {
            NextResponses::Frames(bytes) => bytes,
            NextResponses::Finished => {
                send.finish();
                send.stopped().await;
                return Err(Refusal::new(CloseCode::Shutdown, "the node shuts down"));
            }
        };
        // QUIC keeps a chunk until all of it is acknowledged, so large ones are cut.
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(WRITE_BYTES_MAX));
            send.write_chunk(chunk).await.map_err(|_| gone())?;
        }
        responses.written();
    }
}

async fn read_greeting(reader: &mut MessageReader) -> Result<ClientGreeting, Refusal> {
    let bytes = match reader.next(HELLO_BYTES_MAX, Keep::Briefly).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            return Err(Refusal::new(
                CloseCode::Malformed,
                "stream without a greeting",
            ));
        }
        Err(ReadFailure::Stream(_)) => return Err(gone()),
        Err(error) => {
            return Err(Refusal::new(
                CloseCode::Malformed,
                format!("greeting: {error}"),
            ));
        }
    };
    ClientGreeting::from_bytes(&bytes).map_err(|error| {
        let code = match &error {
            DecodeError::Version { .. } | DecodeError::Incompatible { .. } => CloseCode::Version,
            _ => CloseCode::Malformed,
        };
        Refusal::new(code, error.to_string())
    })
}

fn check_identity(shared: &Shared, identity: &Identity) -> Result<(), Refusal> {
    if identity.cluster != shared.cluster_name {
        let (theirs, ours) = (&identity.cluster, &shared.cluster_name);
        let what = format!("your certificate is of cluster {theirs}, this is cluster {ours}");
        return Err(Refusal::new(CloseCode::WrongCluster, what));
    }
    match identity.role {
        Role::Client | Role::Admin => Ok(()),
        Role::Peer => {
            let what = "this port is for clients, your certificate is of a peer: dial listen.peer, or \
                        issue one with --role client";
            Err(Refusal::new(CloseCode::WrongRole, what))
        }
    }
}

fn check_greeting(
    shared: &Shared,
    identity: &Identity,
    greeting: &ClientGreeting,
) -> Result<(), Refusal> {
    if greeting.client != identity.id {
        let (said, is) = (greeting.client, identity.id);
        let what = format!("you say that you are client {said}, your certificate is of {is}");
        return Err(Refusal::new(CloseCode::WrongId, what));
    }
    if greeting.cluster != ClusterId(0) && greeting.cluster != shared.cluster {
        let (theirs, ours) = (greeting.cluster, shared.cluster);
        let what = format!("you mean cluster {theirs}, this is cluster {ours}");
        return Err(Refusal::new(CloseCode::WrongCluster, what));
    }
    Ok(())
}

/// The connection has ended: nobody is left to be told.
fn gone() -> Refusal {
    Refusal::new(CloseCode::Shutdown, "")
}

/// How much is handed to QUIC in one piece.
const WRITE_BYTES_MAX: usize = 128 << 10;

const HELLO: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(1);
