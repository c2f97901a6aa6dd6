//! Three nodes in one process, over real QUIC and on real disks.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part, and a test that cannot go on has failed"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use logdrive::{
    Batch, Durable, Fatal, Index, Mtu, Node, Outcome, SnapshotReader, SnapshotSettings,
    StateMachine, Tls, WalSettings, wait,
};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{Credentials, Role};
use logdrive_raft::NodeId;

/// A hash over everything applied, in order.
#[derive(Clone, Default)]
pub struct Digest {
    pub state: std::sync::Arc<std::sync::Mutex<(Index, u64)>>,
}

impl StateMachine for Digest {
    type Output = u64;
    type Reader = Digest;
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<u64>) -> Result<(), Fatal> {
        let mut state = self.state.lock().unwrap();
        for (_, payload) in batch.proposals() {
            for byte in payload {
                state.1 = state.1.wrapping_mul(31).wrapping_add(u64::from(*byte));
            }
            outputs.push(state.1);
        }
        state.0 = batch.index();
        Ok(())
    }

    fn reader(&self) -> Digest {
        self.clone()
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        let (index, digest) = *self.state.lock().unwrap();
        Ok([index.0.to_le_bytes(), digest.to_le_bytes()].concat())
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        let bytes = snapshot.read_all(16)?;
        let (index, digest) = bytes.split_first_chunk().ok_or(Fatal::new("no index"))?;
        let digest = digest.try_into().map_err(|_| Fatal::new("no digest"))?;
        let state = (
            Index(u64::from_le_bytes(*index)),
            u64::from_le_bytes(digest),
        );
        *self.state.lock().unwrap() = state;
        Ok(())
    }
}

pub struct Cluster {
    authority: Authority,
    pub dir: tempfile::TempDir,
    pub snapshots: SnapshotSettings,
    pub wal: WalSettings,
    members: Vec<(u64, String)>,
    groups: u64,
}

impl Cluster {
    /// Three addresses that were free a moment ago.
    pub fn new(groups: u64) -> Self {
        let sockets: Vec<std::net::UdpSocket> = (0..3)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let address = |socket: &std::net::UdpSocket| socket.local_addr().unwrap().to_string();
        let members = (1..).zip(sockets.iter().map(address)).collect();
        let mut wal = WalSettings::default();
        wal.slot_bytes = 8 << 20;
        wal.bytes_max = 256 << 20;
        Self {
            authority: Authority::create("test".parse().unwrap()).unwrap(),
            dir: tempfile::tempdir().unwrap(),
            members,
            groups,
            snapshots: SnapshotSettings::default(),
            wal,
        }
    }

    pub fn start(&self, id: u64) -> Node<Digest> {
        let address: SocketAddr = self
            .members
            .iter()
            .find(|(node, _)| *node == id)
            .unwrap()
            .1
            .parse()
            .unwrap();
        Node::builder(self.node_dir(id), |_| Digest::default())
            .id(id)
            .cluster("test")
            .groups(1..=self.groups)
            .members(self.members.clone())
            .listen_peer(address)
            .tls(self.tls(id))
            .mtu(Mtu::Loopback)
            .wal(self.wal.clone())
            .snapshots(self.snapshots.clone())
            .start()
            .unwrap()
    }

    pub fn tls(&self, id: u64) -> Tls {
        let request = IssueRequest::new(Role::Peer, NodeId(id), 1);
        let tls = self.dir.path().join(format!("tls-{id}"));
        std::fs::create_dir_all(&tls).unwrap();
        self.authority.issue_into(&tls, &request).unwrap();
        Tls::from(Credentials::load(&tls, Role::Peer, NodeId(id)).unwrap())
    }

    pub fn node_dir(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }
}

/// Asks again until `check` holds; a test that never ends says so by its time.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{what} does not happen"
        );
        std::thread::yield_now();
    }
}

pub fn leader(nodes: &[Node<Digest>], group: u64) -> Option<&Node<Digest>> {
    nodes.iter().find(|node| {
        node.status()
            .groups
            .iter()
            .any(|line| line.group == group && line.role == "leader")
    })
}

/// Proposes until `count` commands of a group have been applied.
pub fn propose(nodes: &[Node<Digest>], group: u64, count: usize) -> Index {
    let mut last = Index(0);
    let mut done = 0;
    let begun = Instant::now();
    while done < count {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "proposals do not get through"
        );
        let Some(leader) = leader(nodes, group) else {
            std::thread::yield_now();
            continue;
        };
        let id = leader
            .groups()
            .map(logdrive::Group::id)
            .find(|id| id.0 == group)
            .unwrap();
        match wait(leader.group(id).unwrap().propose(format!("command {done}"))) {
            Ok(applied) => {
                last = applied.index;
                done += 1;
            }
            Err(error) => assert!(
                error.outcome() == Outcome::NeverAppended
                    || error.outcome() == Outcome::MayYetCommit
            ),
        }
    }
    last
}

pub fn converge(nodes: &[Node<Digest>], group: u64, through: Index) {
    eventually("convergence", || {
        let states: Vec<(Index, u64)> = nodes
            .iter()
            .map(|node| {
                let id = node
                    .groups()
                    .map(logdrive::Group::id)
                    .find(|id| id.0 == group)
                    .unwrap();
                *node.group(id).unwrap().reader().state.lock().unwrap()
            })
            .collect();
        states
            .iter()
            .all(|state| *state == states[0] && state.0 >= through)
    });
}
