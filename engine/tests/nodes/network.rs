//! Three nodes in one process, as clients and slow links see them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use logdrive::{
    Batch, Durable, Fatal, Index, Limits, Mtu, Node, SnapshotReader, StateMachine, Tls,
    WalSettings, wait,
};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{Client, ClientOptions, Credentials, Role};
use logdrive_raft::{GroupId, NodeId};

/// Answers each command with its length, and remembers how far it has come.
#[derive(Clone, Default)]
struct Lengths(std::sync::Arc<std::sync::Mutex<Index>>);

impl StateMachine for Lengths {
    type Output = Vec<u8>;
    type Reader = Lengths;
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Vec<u8>>) -> Result<(), Fatal> {
        for (_, payload) in batch.proposals() {
            outputs.push(payload.len().to_string().into_bytes());
        }
        *self.0.lock().unwrap() = batch.index();
        Ok(())
    }

    fn reader(&self) -> Lengths {
        self.clone()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        Ok(self.0.lock().unwrap().0.to_le_bytes().to_vec())
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        let bytes = snapshot.read_all(8)?.try_into();
        let index = u64::from_le_bytes(bytes.map_err(|_| Fatal::new("no index"))?);
        *self.0.lock().unwrap() = Index(index);
        Ok(())
    }
}

struct Cluster {
    authority: Authority,
    dir: tempfile::TempDir,
    nodes: Vec<Node<Lengths>>,
}

impl Cluster {
    fn start(limits: &Limits) -> Self {
        let authority = Authority::create("test".parse().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sockets: Vec<std::net::UdpSocket> = (0..3)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let address = |socket: &std::net::UdpSocket| socket.local_addr().unwrap();
        let peers: Vec<(u64, SocketAddr)> = (1..).zip(sockets.iter().map(address)).collect();
        drop(sockets);
        let start = |(id, address): &(u64, SocketAddr)| {
            let mut wal = WalSettings::default();
            wal.slot_bytes = 8 << 20;
            wal.bytes_max = 256 << 20;
            let tls = dir.path().join(format!("tls-{id}"));
            std::fs::create_dir_all(&tls).unwrap();
            let request = IssueRequest::new(Role::Peer, NodeId(*id), 1);
            authority.issue_into(&tls, &request).unwrap();
            Node::builder(dir.path().join(format!("node-{id}")), |_| {
                Lengths::default()
            })
            .id(*id)
            .cluster("test")
            .members(peers.iter().map(|(id, address)| (*id, address.to_string())))
            .listen_peer(*address)
            .listen_client("127.0.0.1:0".parse().unwrap())
            .tls(Tls::from(
                Credentials::load(&tls, Role::Peer, NodeId(*id)).unwrap(),
            ))
            .mtu(Mtu::Loopback)
            .limits(limits.clone())
            .wal(wal)
            .start()
            .unwrap()
        };
        let nodes = peers.iter().map(start).collect();
        let cluster = Self {
            authority,
            dir,
            nodes,
        };
        eventually("an election", || cluster.leader().is_some());
        cluster
    }

    fn leader(&self) -> Option<&Node<Lengths>> {
        self.nodes
            .iter()
            .find(|node| node.status().groups[0].role == "leader")
    }

    fn credentials(&self) -> Credentials {
        let dir = self.dir.path().join("client");
        std::fs::create_dir_all(&dir).unwrap();
        let request = IssueRequest::new(Role::Client, NodeId(9), 1);
        self.authority.issue_into(&dir, &request).unwrap();
        Credentials::load(&dir, Role::Client, NodeId(9)).unwrap()
    }
}

/// Asks again until `check` holds; a test that never ends says so by its time.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{what} does not happen"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_client_that_knows_one_follower_finds_the_leader() {
    let cluster = Cluster::start(&Limits::default());
    let is_follower = |node: &&Node<Lengths>| {
        let status = node.status();
        status.groups[0].role == "follower" && status.groups[0].leader.is_some()
    };
    eventually("a follower", || {
        cluster.nodes.iter().any(|node| is_follower(&node))
    });
    let follower = cluster.nodes.iter().find(is_follower);
    // Nothing else is known to the client than this address.
    let address = follower.unwrap().client_address().unwrap().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut options = ClientOptions::default();
        options.timeout = Duration::from_secs(20);
        let client = Client::connect(vec![address], &cluster.credentials(), options)
            .await
            .unwrap();
        let applied = client.propose(GroupId(1), &b"hello"[..]).await.unwrap();
        assert_eq!(applied.output, &b"5"[..]);
    });
}

/// A queue to each peer that takes a small part of what its window allows.
#[test]
fn a_full_queue_to_a_peer_costs_nothing_but_time() {
    let mut limits = Limits::default();
    limits.peer_queue_bytes_max = 16 << 10;
    limits.append_bytes_max = 64 << 10;
    limits.uncommitted_entries_max = 256;
    let cluster = Cluster::start(&limits);
    let leader = cluster.leader().unwrap();
    let payload = vec![7; 8 << 10];
    // Thrown in at once and awaited later: many entries are on their way together.
    let mut proposals = Vec::new();
    for _ in 0..2_000 {
        proposals.push(leader.propose(&payload));
    }
    let last = proposals
        .into_iter()
        .map(|proposal| wait(proposal).unwrap().index)
        .max()
        .unwrap();
    eventually("convergence", || {
        cluster
            .nodes
            .iter()
            .all(|node| *node.reader().0.lock().unwrap() >= last)
    });
    let status = leader.status();
    assert_eq!(status.groups[0].role, "leader", "it led throughout");
}
