//! Three nodes in one process, each with its log and its database in a directory of its own.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part, and a test that cannot go on has failed"
)]

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logdrive::{Index, Mtu, Node, NodeId, SnapshotSettings, Tls, WalSettings, wait};
use logdrive_examples::{Command, RedbKv};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{Credentials, Role};

pub struct Cluster {
    authority: Authority,
    dir: tempfile::TempDir,
    sockets: Vec<UdpSocket>,
    pub snapshots: SnapshotSettings,
}

impl Cluster {
    pub fn new(snapshots: SnapshotSettings) -> Self {
        let sockets = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        Self {
            authority: Authority::create("test".parse().unwrap()).unwrap(),
            dir: tempfile::tempdir().unwrap(),
            sockets: sockets.collect(),
            snapshots,
        }
    }

    pub fn start(&self, id: u64) -> Node<RedbKv> {
        let address = |socket: &UdpSocket| socket.local_addr().unwrap().to_string();
        let members = (1..).zip(self.sockets.iter().map(address));
        let place = usize::try_from(id - 1).unwrap();
        let machine_dir = self.machine_dir(id);
        Node::builder(self.node_dir(id), move |_| RedbKv::new(&machine_dir))
            .id(id)
            .cluster("test")
            .members(members)
            // The clone that stays here keeps the port while the node is down.
            .listen_peer_on(self.sockets[place].try_clone().unwrap())
            .tls(self.tls(id))
            .mtu(Mtu::Loopback)
            .wal(small_log())
            .snapshots(self.snapshots.clone())
            .start()
            .unwrap()
    }

    fn tls(&self, id: u64) -> Tls {
        let request = IssueRequest::new(Role::Peer, NodeId(id), 1);
        let tls = self.dir.path().join(format!("tls-{id}"));
        std::fs::create_dir_all(&tls).unwrap();
        self.authority.issue_into(&tls, &request).unwrap();
        Tls::from(Credentials::load(&tls, Role::Peer, NodeId(id)).unwrap())
    }

    pub fn node_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    pub fn machine_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("machine-{id}"))
    }

    pub fn database(&self, id: u64) -> PathBuf {
        self.machine_dir(id).join("kv.redb")
    }
}

/// Segments of 256 KiB, and 4 MiB of them.
pub fn small_log() -> WalSettings {
    let mut wal = WalSettings::default();
    wal.slot_bytes = 256 << 10;
    wal.bytes_max = 4 << 20;
    wal
}

/// A snapshot every 128 KiB of log, and little log kept.
pub fn often() -> SnapshotSettings {
    let mut snapshots = SnapshotSettings::default();
    snapshots.log_bytes = 128 << 10;
    snapshots.keep_log_bytes = 16 << 10;
    snapshots
}

/// Asks again until `check` holds; a test that never ends says so by its time.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(30), "{what} does not happen");
        std::thread::yield_now();
    }
}

pub fn leader(nodes: &[Node<RedbKv>]) -> Option<&Node<RedbKv>> {
    let leads = |node: &&Node<RedbKv>| node.status().groups[0].role == "leader";
    nodes.iter().find(leads)
}

/// Takes out a node that does not lead.
pub fn stop_follower(nodes: &mut Vec<Node<RedbKv>>) -> u64 {
    let mut place = None;
    eventually("a follower", || {
        let follows = |node: &Node<RedbKv>| node.status().groups[0].role == "follower";
        place = nodes
            .iter()
            .position(follows)
            .filter(|_| leader(nodes).is_some());
        place.is_some()
    });
    nodes.remove(place.unwrap()).replica().id.0
}

/// Puts values of so many bytes, one entry each, under 16 keys. Says where the last one lies.
pub fn put(nodes: &[Node<RedbKv>], count: usize, bytes: usize) -> Index {
    let mut last = Index(0);
    for number in 0..count {
        let mut value = format!("{number} after {last}").into_bytes();
        value.resize(value.len().max(bytes), b'.');
        let command = Command::Put {
            key: &[b'k', u8::try_from(number % 16).unwrap()],
            value: &value,
        };
        let payload = command.to_bytes();
        let before = last;
        eventually("a put", || {
            let Some(leader) = leader(nodes) else {
                return false;
            };
            if let Ok(applied) = wait(leader.propose(&payload)) {
                last = applied.index;
            }
            before < last
        });
    }
    last
}

pub fn pairs(node: &Node<RedbKv>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    let seen = node.reader().for_each(|key, value| {
        pairs.push((key.to_vec(), value.to_vec()));
        Ok(())
    });
    seen.unwrap();
    pairs
}

/// All have applied as much, and hold the same.
pub fn converge(nodes: &[Node<RedbKv>], through: Index) {
    eventually("convergence", || {
        let reached = |node: &Node<RedbKv>| through <= node.reader().position().unwrap().index;
        nodes.iter().all(reached) && nodes.iter().all(|node| pairs(node) == pairs(&nodes[0]))
    });
    assert!(!pairs(&nodes[0]).is_empty());
}

pub fn stop_all(nodes: Vec<Node<RedbKv>>) {
    drop(nodes);
}

/// What a crash of the process would leave of a database that is open.
pub fn image(database: &Path, to: &Path) {
    std::fs::copy(database, to).unwrap();
}
