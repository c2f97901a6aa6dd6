//! Nodes that talk to each other in one thread, and messages for them to say.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test programs"
)]

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{
    Credentials, Listen, MtuProfile, NetSecret, PeerEvent, PeerNet, PeerNetConfig, Role, SendError,
};
use logdrive_raft::message::{
    Ack, Append, Body, CommitPoint, Heartbeat, Message, VoteReply, VoteRequest,
};
use logdrive_raft::{
    Boot, Chain, ClusterId, Entry, EntryBuilder, GroupId, Incarnation, Index, LogPosition, NodeId,
    Replica, ReplicationSession, Round, Term,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::UdpSocket;
use tokio::task::LocalSet;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test as a shard's thread would.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(6 * PATIENCE, test)
            .await
            .expect("the test hangs")
    })
}

pub const CLUSTER: ClusterId = ClusterId(0xc1);

pub fn authority(name: &str) -> Authority {
    Authority::create(name.parse().unwrap()).unwrap()
}

pub fn credentials(authority: &Authority, role: Role, id: u64) -> Credentials {
    let issued = authority
        .issue(&IssueRequest::new(role, NodeId(id), 1))
        .unwrap();
    Credentials::from_pem(
        authority.certificate_pem(),
        &issued.certificate_pem,
        &issued.key_pem,
        std::time::SystemTime::now(),
    )
    .unwrap()
}

pub fn replica(id: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(u128::from(id) << 64),
    }
}

pub fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A port that stays taken while whoever listens on it is restarted: of a free one, others are given it.
pub fn held_port() -> Listen {
    Listen::Socket(Arc::new(std::net::UdpSocket::bind(localhost()).unwrap()))
}

pub fn config(authority: &Authority, id: u64) -> PeerNetConfig {
    let mut config = PeerNetConfig::new(
        replica(id),
        Boot(1),
        CLUSTER,
        localhost(),
        credentials(authority, Role::Peer, id),
        NetSecret::random().unwrap(),
    );
    config.transport.mtu = MtuProfile::Loopback;
    // A busy machine may stop a test for a second, and nobody is lost by that.
    config.transport.idle = PATIENCE;
    config
}

/// A node of a test.
pub struct Node {
    pub net: PeerNet,
    pub replica: Replica,
    pub boot: Boot,
    /// What has come and was not asked for yet.
    pub events: Vec<PeerEvent>,
}

impl Node {
    pub async fn start(config: PeerNetConfig) -> Self {
        let (replica, boot) = (config.replica, config.boot);
        Self {
            net: PeerNet::start(config).await.unwrap(),
            replica,
            boot,
            events: Vec::new(),
        }
    }

    pub fn address(&self) -> String {
        self.net.local_addr().to_string()
    }

    /// The next event, whatever it is. Messages are released at once.
    pub async fn next(&mut self) -> PeerEvent {
        if self.events.is_empty() {
            tokio::time::timeout(PATIENCE, self.net.ready())
                .await
                .expect("nothing comes");
            self.net.poll_events(&mut self.events);
        }
        let event = self.events.remove(0);
        if let PeerEvent::Message(message) = &event {
            self.net.release(message.cost_bytes());
        }
        event
    }

    /// The next message.
    pub async fn message(&mut self) -> Message {
        loop {
            if let PeerEvent::Message(message) = self.next().await {
                return message;
            }
        }
    }

    pub async fn connected(&mut self) -> PeerEvent {
        loop {
            let event = self.next().await;
            if matches!(event, PeerEvent::Connected { .. }) {
                return event;
            }
        }
    }

    pub async fn disconnected(&mut self) -> NodeId {
        loop {
            if let PeerEvent::Disconnected { peer } = self.next().await {
                return peer;
            }
        }
    }

    /// Sends, and waits while the queue is full.
    pub async fn send(&self, message: Message) {
        loop {
            match self.net.try_send(message.clone()) {
                Ok(()) => return,
                Err(SendError::Full) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn say(&self, to: u64, group: u64, body: Body) -> Message {
        Message {
            from: self.replica,
            boot: self.boot,
            to: NodeId(to),
            group: GroupId(group),
            term: Term(1),
            body,
        }
    }

    /// Waits until the status of the connection to the only peer is as wanted.
    pub async fn until_error(&self, code: &str) -> String {
        let wait = async {
            loop {
                let status = self.net.status();
                if let Some(error) = &status[0].last_error
                    && error.contains(code)
                {
                    return error.clone();
                }
                // All that an attempt to connect does is between two turns of this: no state is missed.
                tokio::task::yield_now().await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(error) => error,
            Err(_) => panic!("wanted {code:?}, status is {:?}", self.net.status()),
        }
    }
}

/// Nodes 1 to `count`, each connected to each.
pub async fn cluster(count: u64, mut adjust: impl FnMut(&mut PeerNetConfig)) -> Vec<Node> {
    let authority = authority("blue");
    let mut nodes = Vec::new();
    for id in 1..=count {
        let mut config = config(&authority, id);
        adjust(&mut config);
        nodes.push(Node::start(config).await);
    }
    connect(&mut nodes).await;
    nodes
}

pub async fn connect(nodes: &mut [Node]) {
    let addresses: Vec<(NodeId, String)> = nodes
        .iter()
        .map(|node| (node.replica.id, node.address()))
        .collect();
    for node in nodes.iter_mut() {
        node.net.set_peers(addresses.clone());
    }
    let others = nodes.len() - 1;
    for node in nodes {
        for _ in 0..others {
            node.connected().await;
        }
    }
}

pub fn vote(round: u64) -> Body {
    Body::VoteRequest(VoteRequest {
        pre: true,
        last: LogPosition {
            index: Index(round),
            ..LogPosition::default()
        },
    })
}

pub fn vote_reply() -> Body {
    Body::VoteReply(VoteReply {
        pre: true,
        granted: true,
    })
}

pub fn heartbeat(round: u64) -> Body {
    Body::Heartbeat(Heartbeat {
        commit: CommitPoint::default(),
        last_index: Index(0),
        round: Round(round),
        heard: None,
    })
}

pub fn ack(session: u64, index: u64) -> Body {
    Body::Ack(Ack {
        session: session_of(session),
        index: Index(index),
        chain: Chain(u128::from(index)),
        round: Round(index),
    })
}

pub fn session_of(counter: u64) -> ReplicationSession {
    ReplicationSession {
        boot: Boot(1),
        counter,
    }
}

/// An append of one entry with a payload of so many bytes, whose first eight are its index.
pub fn append(group: u64, session: u64, index: u64, payload_bytes: usize) -> Body {
    let mut payload = vec![0x5a; payload_bytes.max(8)];
    payload[..8].copy_from_slice(&index.to_le_bytes());
    let mut builder = EntryBuilder::with_room(1, payload.len());
    builder.push(&payload);
    let entry = builder
        .finish()
        .seal(GroupId(group), Term(1), Index(index), Chain(7));
    append_of(session, vec![entry])
}

pub fn append_of(session: u64, entries: Vec<Entry>) -> Body {
    Body::Append(Append {
        session: session_of(session),
        prev: LogPosition::default(),
        entries,
        commit: CommitPoint::default(),
        last_index: Index(9),
        round: Round(1),
        heard: None,
    })
}

pub fn index_of(message: &Message) -> u64 {
    match &message.body {
        Body::Append(append) => append.entries[0].index().0,
        Body::Ack(ack) => ack.index.0,
        Body::Heartbeat(heartbeat) => heartbeat.round.0,
        other => panic!("no index in {other:?}"),
    }
}

/// Dials with a certificate of this role and id, speaks `alpn`, and says nothing else.
pub async fn dial(
    authority: &Authority,
    role: Role,
    id: u64,
    alpn: &[u8],
    address: SocketAddr,
    server_name: &str,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let config = quic_client(authority, role, id, alpn);
    let endpoint = quinn::Endpoint::client(localhost()).unwrap();
    endpoint
        .connect_with(config, address, server_name)
        .unwrap()
        .await
}

/// How somebody with a certificate of this role and id dials, who is not of ours.
pub fn quic_client(authority: &Authority, role: Role, id: u64, alpn: &[u8]) -> quinn::ClientConfig {
    let issued = authority
        .issue(&IssueRequest::new(role, NodeId(id), 1))
        .unwrap();
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(authority.certificate_pem())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![certificate(&issued.certificate_pem)],
            PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(Arc::new(tls))
}

/// Dials the peer port of node 1 of cluster blue.
pub async fn dial_peer(
    authority: &Authority,
    role: Role,
    id: u64,
    address: SocketAddr,
) -> quinn::Connection {
    let name = "n1.c-blue.logdrive.internal";
    dial(authority, role, id, b"logdrive-peer", address, name)
        .await
        .unwrap()
}

/// Why the other side closed the connection: code and reason.
pub async fn closed(connection: &quinn::Connection) -> (u64, String) {
    match tokio::time::timeout(PATIENCE, connection.closed())
        .await
        .expect("not closed")
    {
        quinn::ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8(close.reason.to_vec()).unwrap();
            (close.error_code.into_inner(), reason)
        }
        other => panic!("{other}"),
    }
}

/// A wire between whoever sends to it and one address.
pub struct Relay {
    pub address: SocketAddr,
    /// Datagrams above this are lost.
    pub bytes_max: Rc<Cell<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let front = UdpSocket::bind(localhost()).await.unwrap();
        let back = UdpSocket::bind(localhost()).await.unwrap();
        let address = front.local_addr().unwrap();
        let bytes_max = Rc::new(Cell::new(usize::MAX));
        let max = Rc::clone(&bytes_max);
        let task = tokio::task::spawn_local(async move {
            let mut from_front = vec![0; 1 << 16];
            let mut from_back = vec![0; 1 << 16];
            let mut source = None;
            loop {
                tokio::select! {
                    Ok((length, sender)) = front.recv_from(&mut from_front) => {
                        source = Some(sender);
                        if length <= max.get() {
                            let _ = back.send_to(&from_front[..length], target).await;
                        }
                    }
                    Ok((length, _)) = back.recv_from(&mut from_back) => {
                        if let Some(source) = source && length <= max.get() {
                            let _ = front.send_to(&from_back[..length], source).await;
                        }
                    }
                }
            }
        });
        Self {
            address,
            bytes_max,
            task,
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
