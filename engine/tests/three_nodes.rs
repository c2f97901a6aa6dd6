//! Three nodes in one process, over real QUIC and on real disks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use logdrive::{
    Batch, Durable, Fatal, Index, Mtu, Node, Outcome, SnapshotReader, StateMachine, Tls,
    WalSettings, wait,
};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{Credentials, Role};
use logdrive_raft::NodeId;

/// A hash over everything applied, in order.
#[derive(Clone, Default)]
struct Digest {
    state: std::sync::Arc<std::sync::Mutex<(Index, u64)>>,
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

struct Cluster {
    authority: Authority,
    dir: tempfile::TempDir,
    members: Vec<(u64, String)>,
    groups: u64,
}

impl Cluster {
    /// Three addresses that were free a moment ago.
    fn new(groups: u64) -> Self {
        let sockets: Vec<std::net::UdpSocket> = (0..3)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let address = |socket: &std::net::UdpSocket| socket.local_addr().unwrap().to_string();
        let members = (1..).zip(sockets.iter().map(address)).collect();
        Self {
            authority: Authority::create("test".parse().unwrap()).unwrap(),
            dir: tempfile::tempdir().unwrap(),
            members,
            groups,
        }
    }

    fn start(&self, id: u64) -> Node<Digest> {
        let address: SocketAddr = self
            .members
            .iter()
            .find(|(node, _)| *node == id)
            .unwrap()
            .1
            .parse()
            .unwrap();
        let mut wal = WalSettings::default();
        wal.slot_bytes = 8 << 20;
        wal.bytes_max = 256 << 20;
        Node::builder(self.node_dir(id), |_| Digest::default())
            .id(id)
            .cluster("test")
            .groups(1..=self.groups)
            .members(self.members.clone())
            .listen_peer(address)
            .tls(self.tls(id))
            .mtu(Mtu::Loopback)
            .wal(wal)
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

    fn node_dir(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(format!("node-{id}"))
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

fn leader(nodes: &[Node<Digest>], group: u64) -> Option<&Node<Digest>> {
    nodes.iter().find(|node| {
        node.status()
            .groups
            .iter()
            .any(|line| line.group == group && line.role == "leader")
    })
}

/// Proposes until `count` commands of a group have been applied.
fn propose(nodes: &[Node<Digest>], group: u64, count: usize) -> Index {
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

fn converge(nodes: &[Node<Digest>], group: u64, through: Index) {
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

#[test]
fn three_nodes_agree_and_a_follower_that_was_away_catches_up() {
    let cluster = Cluster::new(1);
    let mut nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    let through = propose(&nodes, 1, 50);
    converge(&nodes, 1, through);

    let away = nodes.iter().position(|node| {
        node.status()
            .groups
            .iter()
            .all(|line| line.role != "leader")
    });
    let id = nodes.remove(away.unwrap()).replica().id.0;
    let through = propose(&nodes, 1, 200);
    nodes.push(cluster.start(id));
    converge(&nodes, 1, through);
}

#[test]
fn when_the_leader_goes_another_takes_over_with_everything_acknowledged() {
    let cluster = Cluster::new(8);
    let mut nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    for group in 1..=8 {
        propose(&nodes, group, 20);
    }
    let leading = nodes.iter().position(|node| {
        node.status()
            .groups
            .iter()
            .any(|line| line.role == "leader" && line.group == 1)
    });
    let id = nodes.remove(leading.unwrap()).replica().id.0;
    let through: Vec<Index> = (1..=8).map(|group| propose(&nodes, group, 20)).collect();
    nodes.push(cluster.start(id));
    for (group, through) in (1..=8).zip(through) {
        converge(&nodes, group, through);
    }
}

#[test]
fn a_wiped_directory_comes_back_as_a_stranger_and_the_others_go_on() {
    let cluster = Cluster::new(1);
    let mut nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    let through = propose(&nodes, 1, 20);
    converge(&nodes, 1, through);
    let away = nodes.iter().position(|node| {
        node.status()
            .groups
            .iter()
            .all(|line| line.role != "leader")
    });
    let id = nodes.remove(away.unwrap()).replica().id.0;
    std::fs::remove_dir_all(wal_dir(&cluster.node_dir(id))).unwrap();

    let wiped = cluster.start(id);
    eventually("being told so", || {
        let status = wiped.status();
        status.groups[0].role == "stranger"
            && status.alarms.iter().any(|alarm| alarm.code == "stranger")
    });
    let status = wiped.status();
    assert_eq!(status.groups[0].last, 0);
    let alarm = status
        .alarms
        .iter()
        .find(|alarm| alarm.code == "stranger")
        .unwrap();
    assert!(alarm.advice.contains("new member"), "{}", alarm.advice);
    propose(&nodes, 1, 20);
}

fn wal_dir(node: &Path) -> std::path::PathBuf {
    node.join("wal-0")
}
