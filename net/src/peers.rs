//! What replicas say to each other, carried: one value a shard, on the shard's own thread.
//!
//! Each node dials each peer and sends on that connection alone; what the peer has to say comes on the
//! connection that the peer dials. So a connection has one direction, and there is one a peer and direction.
//!
//! ```text
//! try_send -> queue (bytes bounded) -> writer -> QUIC windows -> reader -> inbox (bytes bounded) -> poll_events
//! ```
//!
//! Nothing here waits for anything but the network, and arriving proves nothing.

mod inbound;
mod inbox;
mod link;
mod outbox;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

use logdrive_raft::message::Message;
use logdrive_raft::{
    Boot, ClusterId, GroupId, Incarnation, NodeId, Replica, ReplicationSession, Term,
};
use tokio::sync::oneshot;

use self::inbound::Inbound;
use self::inbox::Inbox;
use self::link::Link;
use crate::codec::{APPEND_MESSAGE_BYTES_MAX, reading_bytes_max};
use crate::error::{CloseCode, NetError, Refusal};
use crate::hello::{Hello, PROTOCOL_MAX, PROTOCOL_MIN, StreamKind};
use crate::identity::ClusterName;
use crate::memory::{PeerMemory, Tally};
use crate::secret::NetSecret;
use crate::task::Task;
use crate::tls::Credentials;
use crate::transport::{
    ClientTls, ConnectionConfig, Endpoint, Listen, ServerConfig, SocketBuffers, TransportSettings,
    Windows, accept,
};

/// What a node's peer network is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerNetConfig {
    /// Who this node is.
    pub replica: Replica,
    /// The boot it runs in.
    pub boot: Boot,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Where to listen.
    pub listen: Listen,
    /// Where clients reach this node, for the peers to tell theirs.
    pub client_address: Option<String>,
    /// Certificate, key, and whom to trust.
    pub credentials: Credentials,
    /// What lets the node be recognised after a restart.
    pub secret: NetSecret,
    /// Packet size, timeouts, socket buffers.
    pub transport: TransportSettings,
    /// How many groups replicate over one connection. Bounds streams and windows.
    pub groups_max: u32,
    /// The most bytes of appends that wait for one peer.
    pub queue_bytes_max: usize,
    /// The most bytes of messages that wait here, from all peers, before appends are no longer read.
    pub inbox_bytes_max: usize,
}

impl PeerNetConfig {
    /// A configuration with the usual bounds.
    #[must_use]
    pub fn new(
        replica: Replica,
        boot: Boot,
        cluster: ClusterId,
        listen: SocketAddr,
        credentials: Credentials,
        secret: NetSecret,
    ) -> Self {
        Self {
            replica,
            boot,
            cluster,
            listen: listen.into(),
            client_address: None,
            credentials,
            secret,
            transport: TransportSettings::default(),
            groups_max: 8,
            queue_bytes_max: 4 << 20,
            inbox_bytes_max: 8 << 20,
        }
    }
}

/// Something from the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// A peer says something. It is from whom it says, and for this node; nothing else is known.
    Message(Message),
    /// Our connection to a peer is up. What an earlier one carried may never arrive.
    Connected {
        /// The peer.
        peer: NodeId,
        /// The life of its directory.
        incarnation: Incarnation,
        /// Its boot.
        boot: Boot,
        /// Where clients reach it, if it has said so.
        client_address: Option<String>,
    },
    /// Our connection to a peer is gone.
    Disconnected {
        /// The peer.
        peer: NodeId,
    },
    /// Half of what may wait for a peer is free again, after an append was not taken.
    Room {
        /// The peer.
        peer: NodeId,
    },
}

/// Why a message was not taken. It is gone; whoever needs it said says it again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// As many bytes as may wait for this peer do wait. Of an append stream nothing that comes after this
    /// is taken, so that there is no gap in it; [`PeerEvent::Room`] says when to go on.
    #[error("the queue to this peer is full")]
    Full,
    /// There is no connection to this peer.
    #[error("no connection to this peer")]
    Offline,
    /// There is no such peer.
    #[error("no such peer")]
    Unknown,
    /// A newer replication session of this group has begun.
    #[error("an append of a replication session that has ended")]
    Stale,
}

/// Our connection to one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerLinkStatus {
    /// The peer.
    pub peer: NodeId,
    /// Its address as configured.
    pub address: String,
    /// Whether it is up.
    pub connected: bool,
    /// The life of the peer's directory.
    pub incarnation: Option<Incarnation>,
    /// The peer's boot.
    pub boot: Option<Boot>,
    /// Round-trip time as QUIC sees it.
    pub rtt_us: u64,
    /// Bytes that wait in our queues.
    pub queued_bytes: usize,
    /// Bytes of a packet.
    pub mtu: u16,
    /// Packets lost since it came up.
    pub lost_packets: u64,
    /// Packets sent since it came up.
    pub sent_packets: u64,
    /// Why it is not up, in words; `None` while it is.
    pub last_error: Option<String>,
}

/// The peer network of one shard.
///
/// Lives on the thread of a tokio `current_thread` runtime, inside a `LocalSet`.
#[derive(Debug)]
pub struct PeerNet {
    shared: Rc<Shared>,
    accept: Task,
    links: BTreeMap<NodeId, Task>,
    listener_transport: ConnectionConfig,
    buffers: SocketBuffers,
    /// Resolves once the port is free.
    closed: Option<oneshot::Receiver<()>>,
}

/// What the tasks of a peer network have in common.
struct Shared {
    replica: Replica,
    boot: Boot,
    cluster: ClusterId,
    cluster_name: ClusterName,
    local_address: SocketAddr,
    client_address: Option<String>,
    mtu: u16,
    queue_bytes_max: usize,
    window_bytes_max: usize,
    endpoint: Endpoint,
    client_tls: RefCell<ClientTls>,
    dialled_transport: ConnectionConfig,
    inbox: Inbox,
    /// Bytes of messages that are being put together.
    reading: Tally,
    links: RefCell<BTreeMap<NodeId, Rc<Link>>>,
    inbound: RefCell<BTreeMap<NodeId, Inbound>>,
    connections: Cell<u64>,
}

impl PeerNet {
    /// Binds and begins to accept. Peers are dialled once [`PeerNet::set_peers`] names them.
    pub async fn start(config: PeerNetConfig) -> Result<Self, NetError> {
        config.credentials.check_peer(config.replica.id, None)?;
        let mtu = config.transport.mtu;
        let windows = Windows::with_bulk(mtu, config.groups_max);
        let listener_transport = ConnectionConfig::new(&config.transport, windows);
        // The acceptor says its welcome, and nothing else, on what we dial.
        let windows = Windows {
            streams_uni: 2,
            ..windows
        };
        let dialled_transport = ConnectionConfig::new(&config.transport, windows);
        let server = config.credentials.server_config(PEER_ALPN)?;
        let server = ServerConfig::new(server, &listener_transport);
        let address = config.listen.address();
        let bind = |source| NetError::Bind { address, source };
        let bound = Endpoint::bind(
            config.listen,
            &config.transport,
            &config.secret,
            Some(server),
        );
        let bound = bound.map_err(bind)?;
        let endpoint = bound.endpoint;
        let shared = Rc::new(Shared {
            replica: config.replica,
            boot: config.boot,
            cluster: config.cluster,
            cluster_name: config.credentials.cluster().clone(),
            local_address: endpoint.local_addr().map_err(bind)?,
            client_address: config.client_address,
            mtu: mtu.bytes(),
            queue_bytes_max: config.queue_bytes_max,
            window_bytes_max: windows.bytes_max(),
            endpoint,
            client_tls: RefCell::new(config.credentials.client_config(PEER_ALPN)?),
            dialled_transport,
            inbox: Inbox::new(config.inbox_bytes_max),
            reading: Tally::default(),
            links: RefCell::default(),
            inbound: RefCell::default(),
            connections: Cell::new(0),
        });
        let accept = Task::spawn(accept(
            shared.endpoint.clone(),
            inbound::CONNECTIONS_MAX,
            inbound::Port::new(&shared),
        ));
        Ok(Self {
            shared,
            accept,
            links: BTreeMap::new(),
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

    /// Says who the peers are and where: IP address or host name, and port. This node itself is skipped.
    /// Connections to those who stay, at the same address, stay.
    pub fn set_peers(&mut self, peers: Vec<(NodeId, String)>) {
        let mut links = self.shared.links.borrow_mut();
        let wanted: BTreeMap<NodeId, String> = peers
            .into_iter()
            .filter(|(id, _)| *id != self.shared.replica.id)
            .collect();
        links.retain(|id, link| {
            let stays = wanted
                .get(id)
                .is_some_and(|address| address == link.address());
            if !stays {
                let connected = link.status().connected;
                link.close(&Refusal::new(
                    CloseCode::Shutdown,
                    "no longer a peer at this address",
                ));
                self.links.remove(id);
                if connected {
                    self.shared
                        .inbox
                        .push(PeerEvent::Disconnected { peer: *id });
                }
            }
            stays
        });
        for (id, address) in wanted {
            if links.contains_key(&id) {
                continue;
            }
            let link = Link::new(id, address);
            let task = Task::spawn(Rc::clone(&link).run(Rc::clone(&self.shared)));
            links.insert(id, link);
            self.links.insert(id, task);
        }
    }

    /// Puts a message in the queue of the peer it is for. Never waits.
    ///
    /// # Panics
    ///
    /// If the message does not say that it is from this replica and boot.
    pub fn try_send(&self, message: Message) -> Result<(), SendError> {
        assert!(message.from == self.shared.replica && message.boot == self.shared.boot);
        let links = self.shared.links.borrow();
        let link = links.get(&message.to).ok_or(SendError::Unknown)?;
        link.try_send(message)
    }

    /// Takes out everything that has come.
    pub fn poll_events(&self, out: &mut Vec<PeerEvent>) {
        self.shared.inbox.take(out);
    }

    /// Says that so many bytes ([`Message::cost_bytes`]) of messages taken out are no longer held, so that
    /// as many may be read. Not releasing them is the back-pressure.
    ///
    /// # Panics
    ///
    /// If more is released than has come.
    pub fn release(&self, bytes: usize) {
        self.shared.inbox.release(bytes);
    }

    /// Bytes of messages that have come and have not been released.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shared.inbox.held_bytes()
    }

    /// Waits until [`PeerNet::poll_events`] has something to give.
    pub async fn ready(&self) {
        self.shared.inbox.ready().await;
    }

    /// Whom to wake, besides [`PeerNet::ready`], whenever something comes.
    pub fn set_waker(&self, waker: Waker) {
        self.shared.inbox.set_waker(waker);
    }

    /// Our connections, in the order of the peers' ids.
    #[must_use]
    pub fn status(&self) -> Vec<PeerLinkStatus> {
        self.shared
            .links
            .borrow()
            .values()
            .map(|link| link.status())
            .collect()
    }

    /// What it holds, by owner.
    #[must_use]
    pub fn memory(&self) -> PeerMemory {
        let shared = &self.shared;
        let links = shared.links.borrow();
        PeerMemory {
            send_queues: links
                .iter()
                .map(|(peer, link)| (*peer, link.queued_bytes()))
                .collect(),
            send_queue_bytes_max: shared.queue_bytes_max + outbox::OTHER_QUEUES_BYTES_MAX,
            received_bytes: shared.inbox.held_bytes(),
            received_bytes_max: shared.inbox.bytes_max(),
            reading_bytes: shared.reading.bytes(),
            reading_bytes_max: reading_bytes_max(APPEND_MESSAGE_BYTES_MAX),
            window_bytes_max: shared.window_bytes_max,
        }
    }

    /// Puts other certificates in place of those in use. Connections that are up keep what they began with.
    pub fn set_credentials(&mut self, credentials: &Credentials) -> Result<(), NetError> {
        let (id, cluster) = (self.shared.replica.id, &self.shared.cluster_name);
        credentials.check_peer(id, Some(cluster))?;
        let client = credentials.client_config(PEER_ALPN)?;
        let server = credentials.server_config(PEER_ALPN)?;
        let server = ServerConfig::new(server, &self.listener_transport);
        self.shared.endpoint.set_server_config(Some(server));
        *self.shared.client_tls.borrow_mut() = client;
        Ok(())
    }

    /// Ends everything, telling the peers, and waits until no task is left.
    pub async fn shutdown(mut self) {
        let endpoint = self.shared.endpoint.clone();
        self.shared.close();
        self.accept.end().await;
        for task in self.links.values_mut() {
            task.end().await;
        }
        let closed = self.closed.take();
        drop(self);
        if let Some(closed) = closed {
            endpoint.shut_down(closed).await;
        }
    }
}

impl Drop for PeerNet {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Shared");
        debug
            .field("replica", &self.replica)
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Closes every connection, so that the peers hear why, and accepts no more.
    fn close(&self) {
        let reason = Refusal::new(CloseCode::Shutdown, "the node shuts down");
        for link in self.links.borrow().values() {
            link.close(&reason);
        }
        for inbound in self.inbound.borrow().values() {
            inbound.close(&reason);
        }
        self.endpoint.close(reason.code, reason.what.as_bytes());
    }

    /// The hello of a new connection of ours.
    fn next_hello(&self) -> Hello {
        let connection = self.connections.get() + 1;
        self.connections.set(connection);
        Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            compatible: 0,
            cluster: self.cluster,
            replica: self.replica,
            boot: self.boot,
            connection,
            stream: StreamKind::Control,
            group: GroupId(0),
            term: Term(0),
            session: ReplicationSession::default(),
            client_address: None,
        }
    }
}

/// What peers speak (RFC 7301). The version is in the hello, where both sides can be named.
pub(crate) const PEER_ALPN: &[u8] = b"logdrive-peer";
