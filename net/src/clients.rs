//! The client port of a node: requests of many clients in, answers out.
//!
//! One bidirectional stream a connection carries both. What has been read waits here until it is taken out,
//! bounded in bytes for all connections and in requests for each; beyond that the stream is not read.

mod event;
mod serve;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use logdrive_raft::{ClusterId, NodeId};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use self::serve::Port;
use crate::codec::reading_bytes_max;
use crate::error::{CloseCode, NetError, Refusal};
use crate::identity::ClusterName;
use crate::mailbox::Mailbox;
use crate::memory::{ClientMemory, Tally};
use crate::protocol::REQUEST_FRAME_BYTES_MAX;
use crate::responses::ResponseQueue;
use crate::secret::NetSecret;
use crate::task::Task;
use crate::tls::Credentials;
use crate::transport::{
    Connection, ConnectionConfig, Endpoint, Listen, ServerConfig, SocketBuffers, TransportSettings,
    Windows, accept,
};

pub use self::event::{ClientEvent, ConnectionId};

/// What a node's client port is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientNetConfig {
    /// The node.
    pub node: NodeId,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Where to listen.
    pub listen: Listen,
    /// The node's certificate, which clients verify.
    pub credentials: Credentials,
    /// What lets the node be recognised after a restart.
    pub secret: NetSecret,
    /// Packet size, timeouts, socket buffers.
    pub transport: TransportSettings,
    /// The most connections at once.
    pub connections_max: usize,
    /// The most bytes of requests, of all clients, that wait to be taken out.
    pub inbox_bytes_max: usize,
    /// The most requests of one connection that wait for an answer.
    pub unanswered_max: usize,
    /// While so many bytes of answers wait for one client, no more of its requests are read.
    pub responses_bytes_max: usize,
    /// The most bytes of answers that wait for one client. What would be more is answered
    /// [`Code::ANSWERS_FULL`](crate::Code::ANSWERS_FULL) instead.
    pub answers_bytes_max: usize,
}

impl ClientNetConfig {
    /// A configuration with the usual bounds.
    #[must_use]
    pub fn new(
        node: NodeId,
        cluster: ClusterId,
        listen: SocketAddr,
        credentials: Credentials,
        secret: NetSecret,
    ) -> Self {
        Self {
            node,
            cluster,
            listen: listen.into(),
            credentials,
            secret,
            transport: TransportSettings::default(),
            connections_max: 1024,
            inbox_bytes_max: 8 << 20,
            unanswered_max: 1 << 20,
            responses_bytes_max: 4 << 20,
            answers_bytes_max: 32 << 20,
        }
    }
}

/// The client port of one node.
///
/// Lives on the thread of a tokio `current_thread` runtime, inside a `LocalSet`. Answers may come from any
/// thread, by [`ResponseQueue`].
#[derive(Debug)]
pub struct ClientNet {
    shared: Rc<Shared>,
    accept: Task,
    listener_transport: ConnectionConfig,
    buffers: SocketBuffers,
    /// Resolves once the port is free.
    closed: Option<oneshot::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    node: NodeId,
    cluster: ClusterId,
    cluster_name: ClusterName,
    local_address: SocketAddr,
    mtu: u16,
    inbox_bytes_max: usize,
    unanswered_max: usize,
    responses_bytes_max: usize,
    answers_bytes_max: usize,
    connections_max: usize,
    endpoint: Endpoint,
    mailbox: Mailbox<ClientEvent>,
    /// Bytes of requests that have not been taken out.
    waiting_bytes: Cell<usize>,
    /// Bytes of requests that are being put together or wait for room.
    reading: Tally,
    window_bytes_max: usize,
    room: Notify,
    connections: RefCell<BTreeMap<ConnectionId, (Connection, ResponseQueue)>>,
    /// A connection has ended.
    ended: Notify,
    connections_ever: Cell<u64>,
}

impl ClientNet {
    /// Binds and begins to accept.
    pub async fn start(config: ClientNetConfig) -> Result<Self, NetError> {
        config.credentials.check_peer(config.node, None)?;
        let windows = Windows::for_clients(config.transport.mtu);
        let listener_transport = ConnectionConfig::new(&config.transport, windows);
        let server = config.credentials.server_config(CLIENT_ALPN)?;
        let server = ServerConfig::new(server, &listener_transport);
        let address = config.listen.address();
        let bind = |source| NetError::Bind { address, source };
        let (transport, secret) = (&config.transport, &config.secret);
        let bound = Endpoint::bind(config.listen, transport, secret, Some(server)).map_err(bind)?;
        let shared = Rc::new(Shared {
            node: config.node,
            cluster: config.cluster,
            cluster_name: config.credentials.cluster().clone(),
            local_address: bound.endpoint.local_addr().map_err(bind)?,
            mtu: config.transport.mtu.bytes(),
            inbox_bytes_max: config.inbox_bytes_max,
            unanswered_max: config.unanswered_max,
            responses_bytes_max: config.responses_bytes_max,
            answers_bytes_max: config.answers_bytes_max,
            connections_max: config.connections_max,
            endpoint: bound.endpoint,
            mailbox: Mailbox::new(),
            waiting_bytes: Cell::new(0),
            reading: Tally::default(),
            window_bytes_max: windows.bytes_max(),
            room: Notify::new(),
            connections: RefCell::default(),
            ended: Notify::new(),
            connections_ever: Cell::new(0),
        });
        let port = Port::new(&shared);
        let accept = Task::spawn(accept(
            shared.endpoint.clone(),
            shared.connections_max,
            port,
        ));
        Ok(Self {
            shared,
            accept,
            listener_transport,
            buffers: bound.buffers,
            closed: Some(bound.closed),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_address
    }

    /// What the system gave as socket buffers.
    #[must_use]
    pub fn socket_buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// Takes out everything that has come. As much may be read anew.
    pub fn poll_events(&self, out: &mut Vec<ClientEvent>) {
        self.shared.mailbox.take(out);
        if self.shared.waiting_bytes.replace(0) != 0 {
            self.shared.room.notify_waiters();
        }
    }

    /// Waits until [`ClientNet::poll_events`] has something to give.
    pub async fn ready(&self) {
        self.shared.mailbox.ready().await;
    }

    /// Whom to wake, besides [`ClientNet::ready`], whenever something comes.
    pub fn set_waker(&self, waker: Waker) {
        self.shared.mailbox.set_waker(waker);
    }

    /// How many clients are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.borrow().len()
    }

    /// Bytes of requests that wait to be taken out.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.shared.waiting_bytes.get()
    }

    /// What it holds, by owner.
    #[must_use]
    pub fn memory(&self) -> ClientMemory {
        let shared = &self.shared;
        let connections = shared.connections.borrow();
        ClientMemory {
            connections: connections.len(),
            requests_bytes: shared.waiting_bytes.get(),
            requests_bytes_max: shared.inbox_bytes_max,
            responses_bytes: connections
                .values()
                .map(|(_, responses)| responses.waiting_bytes())
                .sum(),
            responses_bytes_max: shared.answers_bytes_max,
            reading_bytes: shared.reading.bytes(),
            reading_bytes_max: reading_bytes_max(REQUEST_FRAME_BYTES_MAX),
            window_bytes_max: shared.window_bytes_max,
        }
    }

    /// Puts another certificate in place of the one in use. Connections that are up keep what they began with.
    pub fn set_credentials(&mut self, credentials: &Credentials) -> Result<(), NetError> {
        let (node, cluster) = (self.shared.node, &self.shared.cluster_name);
        credentials.check_peer(node, Some(cluster))?;
        let server = credentials.server_config(CLIENT_ALPN)?;
        let server = ServerConfig::new(server, &self.listener_transport);
        self.shared.endpoint.set_server_config(Some(server));
        Ok(())
    }

    /// Ends everything, telling the clients, and waits until no task is left and the port is free. Answers
    /// that were put in before are written if their clients read them within a moment.
    pub async fn shutdown(mut self) {
        let endpoint = self.shared.endpoint.clone();
        // Whoever comes now is refused; who is here gets what has been answered.
        endpoint.set_server_config(None);
        for (_, responses) in self.shared.connections.borrow().values() {
            responses.finish();
        }
        let all_ended = async {
            while !self.shared.connections.borrow().is_empty() {
                self.shared.ended.notified().await;
            }
        };
        let _ = timeout(FLUSH, all_ended).await;
        self.shared.close();
        self.accept.end().await;
        let closed = self.closed.take();
        drop(self);
        if let Some(closed) = closed {
            endpoint.shut_down(closed).await;
        }
    }
}

impl Drop for ClientNet {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        let reason = Refusal::new(CloseCode::Shutdown, "the node shuts down");
        for (connection, _) in self.connections.borrow().values() {
            reason.close(connection);
        }
        self.endpoint.close(reason.code, reason.what.as_bytes());
    }

    async fn push(&self, event: ClientEvent) {
        let bytes = event.cost_bytes();
        loop {
            let room = self.room.notified();
            let waiting = self.waiting_bytes.get();
            if waiting == 0 || waiting + bytes <= self.inbox_bytes_max {
                self.waiting_bytes.set(waiting + bytes);
                break;
            }
            room.await;
        }
        self.mailbox.push(event);
    }
}

/// What clients and servers speak (RFC 7301). The version is in the greeting.
pub(crate) const CLIENT_ALPN: &[u8] = b"logdrive-client";

/// How long shutting down waits for clients to take their answers.
const FLUSH: Duration = Duration::from_millis(500);
