//! Snapshots of three real nodes: real files, real QUIC, logs that are cut behind them.

use crate::cluster::{Cluster, Digest, converge, eventually, leader, propose};
use logdrive::{Index, Node, SnapshotSettings, wait};

/// Small segments, and a snapshot every few of them.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.wal.slot_bytes = 256 << 10;
    cluster.wal.bytes_max = 4 << 20;
    cluster.snapshots.log_bytes = 128 << 10;
    cluster.snapshots.keep_log_bytes = 16 << 10;
    cluster
}

/// Proposals of 16 KiB.
fn fill(nodes: &[Node<Digest>], count: usize) -> Index {
    let payload = vec![7; 16 << 10];
    let mut last = Index(0);
    let mut done = 0;
    while done < count {
        let Some(leader) = leader(nodes, 1) else {
            std::thread::yield_now();
            continue;
        };
        if let Ok(applied) = wait(leader.propose(&payload)) {
            last = applied.index;
            done += 1;
        }
    }
    last
}

fn follower(nodes: &[Node<Digest>]) -> usize {
    let follows = |node: &Node<Digest>| node.status().groups[0].role == "follower";
    let mut found = None;
    eventually("a follower", || {
        found = nodes
            .iter()
            .position(follows)
            .filter(|_| leader(nodes, 1).is_some());
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_log_many_times_its_pool_goes_through_and_nothing_is_refused() {
    let cluster = cluster();
    let nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    let through = fill(&nodes, 1000);
    converge(&nodes, 1, through);
    for node in &nodes {
        let status = node.status();
        let group = &status.groups[0];
        assert!(status.alarms.is_empty(), "{:?}", status.alarms);
        assert!(group.first > 500, "{}", group.first);
        assert!(
            group.snapshot.is_some_and(|index| index > 500),
            "{:?}",
            group.snapshot
        );
        assert!(status.wal.slots <= 17, "{}", status.wal.slots);
    }
}

#[test]
fn a_node_that_was_away_for_longer_than_the_log_is_kept_fetches_a_snapshot() {
    let cluster = cluster();
    let mut nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    propose(&nodes, 1, 10);
    let away = follower(&nodes);
    let id = nodes.remove(away).replica().id.0;
    let through = fill(&nodes, 200);
    let node = cluster.start(id);
    nodes.push(node);
    converge(&nodes, 1, through);
    // The machine has it a moment before the node says so.
    eventually("the snapshot", || {
        nodes[2].metrics().snapshots_installed >= 1
    });
    // And it starts from there again.
    let id = nodes.pop().unwrap().replica().id.0;
    nodes.push(cluster.start(id));
    let applied = nodes[2].status().groups[0].applied;
    assert!(applied > 100, "{applied}");
    let through = fill(&nodes, 5);
    converge(&nodes, 1, through);
}

#[test]
fn a_snapshot_can_be_asked_for() {
    let mut cluster = cluster();
    cluster.snapshots = SnapshotSettings::manual();
    let nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    let through = propose(&nodes, 1, 20);
    converge(&nodes, 1, through);
    for node in &nodes {
        let group = node.groups().next().unwrap();
        assert!(wait(group.snapshot_now()).unwrap() >= through);
        // Nothing new: the same one.
        assert!(wait(group.snapshot_now()).unwrap() >= through);
        // The status is a copy that is a moment old.
        eventually("the status", || {
            let line = &node.status().groups[0];
            let details = line.snapshot_details.as_ref();
            line.snapshot >= Some(through.0) && details.is_some_and(|of| of.age_s.is_some())
        });
    }
    assert_eq!(nodes[0].metrics().snapshots, 1);
}

/// The newest snapshot has rotted and the log behind it is cut: the node starts, says so, and gets another one.
#[test]
fn a_node_whose_snapshot_has_rotted_gets_one_from_the_others() {
    let cluster = cluster();
    let mut nodes: Vec<Node<Digest>> = (1..=3).map(|id| cluster.start(id)).collect();
    let through = fill(&nodes, 200);
    converge(&nodes, 1, through);
    let away = follower(&nodes);
    let id = nodes.remove(away).replica().id.0;
    let snapshots = cluster.node_dir(id).join("snapshots");
    for directory in std::fs::read_dir(&snapshots).unwrap() {
        let state = directory.unwrap().path().join("state");
        let mut bytes = std::fs::read(&state).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&state, bytes).unwrap();
    }
    nodes.push(cluster.start(id));
    let through = fill(&nodes, 5);
    converge(&nodes, 1, through);
    eventually("the alarms are over", || {
        nodes[2].status().alarms.is_empty()
    });
    assert!(nodes[2].metrics().snapshots_installed >= 1);
}
