//! The connection that we dial to one peer, for what we have to say to it.
//!
//! Dialled again for ever, with a jittered backoff. It counts as up once the peer has answered our hello
//! with its own: only then is it known that the peer took our certificate, and in which life and boot it is.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use logdrive_raft::message::Message;
use logdrive_raft::wire::Decode;
use logdrive_raft::{Boot, Incarnation, NodeId};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::outbox::Outbox;
use super::{PeerEvent, PeerLinkStatus, SendError, Shared};
use crate::address::as_seen;
use crate::backoff::Backoff;
use crate::codec::{Keep, MessageReader};
use crate::error::{CloseCode, LinkError, Refusal};
use crate::hello::{HELLO_BYTES_MAX, Hello, StreamKind};
use crate::identity::{Identity, Role, peer_name};
use crate::limit::RateLimit;
use crate::tls::identity_of;
use crate::transport::{Connection, WriteError};

/// A peer to dial.
#[derive(Debug)]
pub(super) struct Link {
    peer: NodeId,
    /// Host and port as configured. Resolved anew at each attempt.
    address: String,
    up: RefCell<Option<Up>>,
    /// Something may be worth trying at once: the peer has just dialled us.
    hint: Notify,
    /// Streams are waiting for a writer.
    unopened: Notify,
    last_error: RefCell<Option<LinkError>>,
    log_offline: RateLimit,
    log_connected: RateLimit,
}

/// A connection that is up.
#[derive(Debug)]
struct Up {
    connection: Connection,
    outbox: Outbox,
    incarnation: Incarnation,
    boot: Boot,
    client_address: Option<String>,
}

impl Link {
    pub(super) fn new(peer: NodeId, address: String) -> Rc<Self> {
        Rc::new(Self {
            peer,
            address,
            up: RefCell::default(),
            hint: Notify::new(),
            unopened: Notify::new(),
            last_error: RefCell::default(),
            log_offline: RateLimit::once_a(LOG_INTERVAL),
            log_connected: RateLimit::once_a(LOG_INTERVAL),
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Queues a message.
    pub(super) fn try_send(&self, message: Message) -> Result<(), SendError> {
        let mut up = self.up.borrow_mut();
        let up = up.as_mut().ok_or(SendError::Offline)?;
        if up.outbox.push(message)? {
            self.unopened.notify_one();
        }
        Ok(())
    }

    /// The peer is known to be alive.
    pub(super) fn peer_is_alive(&self) {
        self.hint.notify_one();
    }

    /// Drops the connection, if there is one, and says why.
    pub(super) fn close(&self, refusal: &Refusal) {
        if let Some(up) = self.up.take() {
            refusal.close(&up.connection);
        }
    }

    /// Bytes of messages that wait to be sent.
    pub(super) fn queued_bytes(&self) -> usize {
        let up = self.up.borrow();
        up.as_ref().map_or(0, |up| up.outbox.queued_bytes())
    }

    pub(super) fn status(&self) -> PeerLinkStatus {
        let last_error = self.last_error.borrow().as_ref().map(ToString::to_string);
        let mut status = PeerLinkStatus {
            peer: self.peer,
            address: self.address.clone(),
            last_error,
            ..PeerLinkStatus::default()
        };
        if let Some(up) = &*self.up.borrow() {
            let path = up.connection.stats();
            status.connected = true;
            status.incarnation = Some(up.incarnation);
            status.boot = Some(up.boot);
            status.rtt_us = u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX);
            status.queued_bytes = up.outbox.queued_bytes();
            status.mtu = path.mtu;
            status.lost_packets = path.lost_packets;
            status.sent_packets = path.sent_packets;
        }
        status
    }

    /// Keeps a connection up for as long as it runs.
    pub(super) async fn run(self: Rc<Self>, shared: Rc<Shared>) {
        let mut backoff = Backoff::up_to(BACKOFF_MAX);
        loop {
            let error = match self.dial(&shared).await {
                Ok(dialled) => {
                    let since = Instant::now();
                    let error = self.serve(&shared, dialled).await;
                    if since.elapsed() > BACKOFF_MAX {
                        backoff = Backoff::up_to(BACKOFF_MAX);
                    }
                    error
                }
                Err(error) => error,
            };
            self.log_offline(&shared, &error);
            *self.last_error.borrow_mut() = Some(error);
            // A peer that dials us answers, too. It may not have been there a moment ago.
            let _ = timeout(backoff.next(), self.hint.notified()).await;
        }
    }

    /// Dials, says hello, and waits for the answer.
    async fn dial(&self, shared: &Rc<Shared>) -> Result<Dialled, LinkError> {
        let address = self.resolve(shared).await?;
        let unreachable = || LinkError::Unreachable {
            address: self.address.clone(),
        };
        let tls = shared.client_tls.borrow().clone();
        let name = peer_name(&shared.cluster_name, self.peer);
        let config = &shared.dialled_transport;
        let connecting = shared.endpoint.connect(&tls, config, address, &name);
        let connection = timeout(HANDSHAKE, connecting)
            .await
            .map_err(|_| unreachable())?
            .map_err(|error| LinkError::from_transport(&error, &self.address, false))?;
        match self.welcome(shared, &connection).await {
            Ok(dialled) => Ok(dialled),
            Err(error) => {
                if let LinkError::Refused(refusal) = &error {
                    refusal.close(&connection);
                } else {
                    connection.close(CloseCode::WrongId, b"");
                }
                Err(error)
            }
        }
    }

    /// Opens control and acks, and reads who answers.
    async fn welcome(
        &self,
        shared: &Rc<Shared>,
        connection: &Connection,
    ) -> Result<Dialled, LinkError> {
        // TLS has checked the name already; this says who else it is, and that it is a peer at all.
        let wrong = |found: String| LinkError::WrongNode {
            address: self.address.clone(),
            found,
            wanted: self.peer,
        };
        let found = identity_of(connection).map_err(|error| wrong(error.to_string()))?;
        let wanted = Identity {
            cluster: shared.cluster_name.clone(),
            role: Role::Peer,
            id: self.peer,
        };
        if found != wanted {
            return Err(wrong(found.to_string()));
        }
        let hello = shared.next_hello();
        let outbox = Outbox::new(hello, shared.queue_bytes_max);
        let mut writers = JoinSet::new();
        for (queue, hello) in [outbox.control(), outbox.acks()] {
            writers.spawn_local(queue.write(connection.clone(), hello));
        }
        let answer = async {
            let stream = connection.accept_uni().await;
            let stream =
                stream.map_err(|error| LinkError::from_transport(&error, &self.address, false))?;
            let mut reader = MessageReader::new(stream, shared.mtu, &shared.reading);
            reader
                .next(HELLO_BYTES_MAX, Keep::Briefly)
                .await
                .map_err(|error| match connection.close_reason() {
                    Some(error) => LinkError::from_transport(&error, &self.address, false),
                    None => Refusal::new(CloseCode::Malformed, error.to_string()).into(),
                })
        };
        let answer = timeout(WELCOME, answer).await.map_err(|_| {
            Refusal::new(
                CloseCode::TooSlow,
                "no welcome within a second of the handshake",
            )
        })??;
        let malformed = |what: String| Refusal::new(CloseCode::Malformed, what);
        let answer = answer.ok_or_else(|| malformed("welcome is missing".to_owned()))?;
        let answer = Hello::from_bytes(&answer).map_err(|error| malformed(error.to_string()))?;
        if answer.stream != StreamKind::Welcome || answer.replica.id != self.peer {
            return Err(malformed("welcome is from somebody else".to_owned()).into());
        }
        if answer.cluster != shared.cluster {
            let what = format!("cluster {} is not {}", answer.cluster, shared.cluster);
            return Err(Refusal::new(CloseCode::WrongCluster, what).into());
        }
        let met = connection.remote_address().ip();
        let client_address = answer.client_address.as_deref();
        let up = Up {
            client_address: client_address.map(|address| as_seen(address, met)),
            connection: connection.clone(),
            outbox,
            incarnation: answer.replica.incarnation,
            boot: answer.boot,
        };
        Ok(Dialled { up, writers })
    }

    /// Carries what there is to say until the connection ends.
    async fn serve(&self, shared: &Rc<Shared>, dialled: Dialled) -> LinkError {
        let Dialled { up, mut writers } = dialled;
        let connection = up.connection.clone();
        let (peer, incarnation, boot) = (self.peer, up.incarnation, up.boot);
        let client_address = up.client_address.clone();
        if self.log_connected.pass() {
            tracing::info!(
                event = "peer_connected",
                node = shared.replica.id.0,
                peer = peer.0,
                code = "connected",
                "connected to peer {peer} at {}",
                self.address
            );
        }
        let room = up.outbox.room();
        *self.up.borrow_mut() = Some(up);
        *self.last_error.borrow_mut() = None;
        let event = PeerEvent::Connected {
            peer,
            incarnation,
            boot,
            client_address,
        };
        shared.inbox.push(event);
        let error = loop {
            tokio::select! {
                error = connection.closed() => break error,
                () = self.unopened.notified() => {
                    if let Some(up) = &mut *self.up.borrow_mut() {
                        up.outbox.open_streams(|queue, hello| {
                            writers.spawn_local(queue.write(connection.clone(), hello))
                        });
                    }
                }
                () = room.notified() => shared.inbox.push(PeerEvent::Room { peer }),
                // A writer ends when its stream was replaced or the connection is gone. The control and ack
                // streams are never replaced: the other side has stopped reading them, against the protocol.
                Some(ended) = writers.join_next() => {
                    if let Ok(Err(WriteError::Stopped(code))) = ended
                        && code != u64::from(super::inbound::STREAM_STALE)
                    {
                        let what = format!("a stream was refused with code {code}");
                        Refusal::new(CloseCode::Malformed, what).close(&connection);
                    }
                }
            }
        };
        *self.up.borrow_mut() = None;
        shared.inbox.push(PeerEvent::Disconnected { peer });
        LinkError::from_transport(&error, &self.address, true)
    }

    async fn resolve(&self, shared: &Rc<Shared>) -> Result<SocketAddr, LinkError> {
        if let Ok(address) = self.address.parse() {
            return Ok(address);
        }
        let failed = |what: String| LinkError::Resolve {
            address: self.address.clone(),
            what,
        };
        let found = timeout(RESOLVE, tokio::net::lookup_host(&self.address))
            .await
            .map_err(|_| failed("no answer within a second".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        let ipv4_only = shared.local_address.is_ipv4();
        let mut usable = found.filter(|address| address.is_ipv4() || !ipv4_only);
        usable
            .next()
            .ok_or_else(|| failed("no address of a kind that this node has".to_owned()))
    }

    fn log_offline(&self, shared: &Rc<Shared>, error: &LinkError) {
        if !self.log_offline.pass() {
            return;
        }
        tracing::warn!(
            event = "peer_offline",
            node = shared.replica.id.0,
            peer = self.peer.0,
            code = error.code(),
            "no connection to peer {} at {}: {error}",
            self.peer,
            self.address
        );
    }
}

/// A connection whose peer has answered.
struct Dialled {
    up: Up,
    writers: JoinSet<Result<(), WriteError>>,
}

const BACKOFF_MAX: Duration = Duration::from_secs(1);
const HANDSHAKE: Duration = Duration::from_secs(1);
const WELCOME: Duration = Duration::from_secs(1);
const RESOLVE: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(60);
