//! Three nodes in one process: agreement, failover, strangers.

use std::path::Path;

use crate::cluster::{Cluster, Digest, converge, eventually, propose};
use logdrive::{Index, Node};

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
