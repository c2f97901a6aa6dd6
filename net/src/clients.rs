//! The client port of a node: requests of many clients in, answers out.
//!
//! One bidirectional stream a connection carries both. What has been read waits here until it is taken out,
//! bounded in bytes for all connections and in requests for each; beyond that the stream is not read.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use logdrive_raft::wire::{Decode, DecodeError};
use logdrive_raft::{ClusterId, NodeId};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::codec::{Keep, MessageReader, ReadFailure, framed, reading_bytes_max};
use crate::error::{CloseCode, NetError, Refusal};
use crate::hello::HELLO_BYTES_MAX;
use crate::identity::{ClusterName, Identity, Role};
use crate::limit::RateLimit;
use crate::mailbox::Mailbox;
use crate::memory::{ClientMemory, Tally};
use crate::protocol::{
    ClientGreeting, ProposeBatch, REQUEST_FRAME_BYTES_MAX, Requests, ServerGreeting,
};
use crate::responses::{NextResponses, ResponseQueue};
use crate::secret::NetSecret;
use crate::task::Task;
use crate::tls::{Credentials, identity_of};
use crate::transport::{
    Connection, ConnectionConfig, Endpoint, Listen, SendStream, Serve, ServerConfig, SocketBuffers,
    TransportSettings, Windows, accept,
};

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
        }
    }
}

/// A connection of a client, numbered anew in each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Something from a client.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// A client has come.
    Opened {
        /// Its connection.
        connection: ConnectionId,
        /// Who it is.
        identity: Identity,
    },
    /// A client proposes.
    Propose {
        /// Its connection.
        connection: ConnectionId,
        /// The way back. Every id of the batch has to be answered exactly once.
        responses: ResponseQueue,
        /// What it proposes.
        batch: ProposeBatch,
    },
    /// A client asks for the node's status.
    Status {
        /// Its connection.
        connection: ConnectionId,
        /// The way back.
        responses: ResponseQueue,
        /// Under which number.
        id: u64,
    },
    /// A client has gone. Its answers go nowhere.
    Closed {
        /// Its connection.
        connection: ConnectionId,
    },
}

impl ClientEvent {
    /// About how many bytes it takes while it waits.
    fn cost_bytes(&self) -> usize {
        match self {
            Self::Propose { batch, .. } => batch.cost_bytes(),
            Self::Opened { .. } | Self::Status { .. } | Self::Closed { .. } => 0,
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
        let port = Rc::new(Port {
            shared: Rc::clone(&shared),
            log: RateLimit::once_a(LOG_INTERVAL),
        });
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
            responses_bytes_max: shared.responses_bytes_max,
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

/// The port that clients dial.
struct Port {
    shared: Rc<Shared>,
    log: RateLimit,
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
    let opened = ClientEvent::Opened {
        connection: served.id,
        identity,
    };
    shared.push(opened).await;
    // Both only ever end with the connection, so neither is resumed after it was cancelled.
    tokio::select! {
        ended = read_requests(shared, &served, reader) => ended,
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
        let responses = ResponseQueue::new();
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
            Requests::Status { id } => (*id, 1),
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
            NextResponses::Overflown => {
                return Err(Refusal::new(CloseCode::TooSlow, "answers are not read"));
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

/// What clients and servers speak (RFC 7301). The version is in the greeting.
pub(crate) const CLIENT_ALPN: &[u8] = b"logdrive-client";

/// How much is handed to QUIC in one piece.
const WRITE_BYTES_MAX: usize = 128 << 10;

/// How long shutting down waits for clients to take their answers.
const FLUSH: Duration = Duration::from_millis(500);

const HELLO: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(1);
