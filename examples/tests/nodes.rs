//! Nodes whose machine is a database: what they find when they start again, and what they do about it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::{
    Cluster, converge, eventually, image, leader, often, put, small_log, stop_all, stop_follower,
};
use logdrive::{
    Batch, Durable, Fatal, Index, Node, SnapshotReader, SnapshotSettings, StateMachine, wait,
};
use logdrive_examples::{Command, RedbKv, RedbReader, RedbSnapshot, Reply};

fn three(cluster: &Cluster) -> Vec<Node<RedbKv>> {
    (1..=3).map(|id| cluster.start(id)).collect()
}

/// Where a database says it is. Nobody has it open.
fn opens_at(dir: &std::path::Path) -> Index {
    RedbKv::new(dir).open().unwrap().index
}

#[test]
fn what_a_crash_took_from_the_machine_is_applied_again() {
    let cluster = Cluster::new(SnapshotSettings::manual());
    let mut nodes = three(&cluster);
    let flushed = put(&nodes, 20, 100);
    converge(&nodes, flushed);
    let id = stop_follower(&mut nodes);
    nodes.push(cluster.start(id));
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    // Of these 20 nothing has been made durable.
    let crashed = cluster.machine_dir(id).with_extension("crashed");
    std::fs::create_dir(&crashed).unwrap();
    image(&cluster.database(id), &crashed.join("kv.redb"));
    let at = opens_at(&crashed);
    assert!(flushed <= at && at < through, "{at}");
    drop(nodes.pop());
    image(&crashed.join("kv.redb"), &cluster.database(id));
    nodes.push(cluster.start(id));
    converge(&nodes, through);
    let through = put(&nodes, 5, 100);
    converge(&nodes, through);
    assert_eq!(nodes[2].metrics().snapshots_installed, 0);
}

/// Commit ran ahead of this disk: the machine has applied what the log of its node has lost, or never got.
#[test]
fn a_machine_that_is_ahead_of_its_log_waits_for_the_log() {
    let cluster = Cluster::new(SnapshotSettings::manual());
    let mut nodes = three(&cluster);
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    let id = stop_follower(&mut nodes);
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    // Replicas hold the same, so the database of another is what this one would have come to.
    let other = nodes[0].replica().id.0;
    wait(nodes[0].groups().next().unwrap().snapshot_now()).unwrap();
    image(&cluster.database(other), &cluster.database(id));
    let ahead = opens_at(&cluster.machine_dir(id));
    assert!(through <= ahead);
    nodes.push(cluster.start(id));
    assert_eq!(nodes[2].reader().position().unwrap().index, ahead);
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    let line = &nodes[2].status().groups[0];
    assert_eq!(line.role, "follower", "{:?}", line.why);
}

/// What such a machine holds was committed, but an anchor is for what the log holds as well.
#[test]
fn a_snapshot_of_a_machine_that_is_ahead_of_its_log_waits_for_the_log() {
    let cluster = Cluster::new(SnapshotSettings::manual());
    let mut nodes = three(&cluster);
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    let id = stop_follower(&mut nodes);
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    let other = nodes[0].replica().id.0;
    wait(nodes[0].groups().next().unwrap().snapshot_now()).unwrap();
    image(&cluster.database(other), &cluster.database(id));
    let others = nodes
        .iter()
        .map(|node| node.replica().id.0)
        .collect::<Vec<_>>();
    stop_all(nodes);
    let mut nodes = vec![cluster.start(id)];
    // It is asked for when somebody waits for it.
    let taken = nodes[0].groups().next().unwrap().snapshot_now();
    let taken = std::thread::spawn(move || wait(taken));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert!(!taken.is_finished());
        assert_eq!(nodes[0].metrics().snapshot_handle_us.len(), 0);
        std::thread::yield_now();
    }
    nodes.extend(others.into_iter().map(|id| cluster.start(id)));
    assert!(through <= taken.join().unwrap().unwrap());
    let through = put(&nodes, 5, 100);
    converge(&nodes, through);
}

/// Only what is committed is applied, so a node knows without a leader how far its log is committed.
#[test]
fn a_node_that_is_alone_takes_a_snapshot_of_what_its_machine_has_applied() {
    let cluster = Cluster::new(SnapshotSettings::manual());
    let nodes = three(&cluster);
    let through = put(&nodes, 20, 100);
    converge(&nodes, through);
    stop_all(nodes);
    let mut nodes = vec![cluster.start(1)];
    let taken = wait(nodes[0].groups().next().unwrap().snapshot_now()).unwrap();
    assert!(through <= taken);
    nodes.extend([cluster.start(2), cluster.start(3)]);
    let through = put(&nodes, 5, 100);
    converge(&nodes, through);
}

#[test]
fn a_machine_that_was_wiped_starts_from_the_snapshot_of_its_node() {
    let cluster = Cluster::new(often());
    let mut nodes = three(&cluster);
    let through = put(&nodes, 100, 16 << 10);
    converge(&nodes, through);
    let id = stop_follower(&mut nodes);
    std::fs::remove_dir_all(cluster.machine_dir(id)).unwrap();
    nodes.push(cluster.start(id));
    let line = &nodes[2].status().groups[0];
    assert!(line.first > 30, "{}", line.first);
    let position = nodes[2].reader().position().unwrap();
    assert!(line.first <= position.index.0 + 1, "{position}");
    let through = put(&nodes, 5, 100);
    converge(&nodes, through);
    assert_eq!(nodes[2].metrics().snapshots_installed, 0);
}

#[test]
fn a_machine_that_was_wiped_with_its_snapshots_gets_one_from_the_others() {
    let cluster = Cluster::new(often());
    let mut nodes = three(&cluster);
    let through = put(&nodes, 100, 16 << 10);
    converge(&nodes, through);
    let id = stop_follower(&mut nodes);
    std::fs::remove_dir_all(cluster.machine_dir(id)).unwrap();
    std::fs::remove_dir_all(cluster.node_dir(id).join("snapshots")).unwrap();
    nodes.push(cluster.start(id));
    let through = put(&nodes, 5, 100);
    converge(&nodes, through);
    eventually("the snapshot", || {
        nodes[2].metrics().snapshots_installed >= 1
    });
    // It is the database now: the next start needs no snapshot.
    drop(nodes.pop());
    let at = opens_at(&cluster.machine_dir(id));
    nodes.push(cluster.start(id));
    assert!(at <= nodes[2].reader().position().unwrap().index);
    let through = put(&nodes, 5, 100);
    converge(&nodes, through);
    assert!(leader(&nodes).is_some());
}

/// Where a crash leaves one, too, whose log begins at a snapshot already that it was about to take over.
#[test]
fn a_machine_from_an_old_backup_that_its_log_goes_beyond_takes_over_a_snapshot() {
    for kept in [true, false] {
        let cluster = Cluster::new(often());
        let mut nodes = three(&cluster);
        let through = put(&nodes, 20, 100);
        converge(&nodes, through);
        let id = stop_follower(&mut nodes);
        let backup = cluster.machine_dir(id).with_extension("backup");
        image(&cluster.database(id), &backup);
        nodes.push(cluster.start(id));
        let through = put(&nodes, 100, 16 << 10);
        converge(&nodes, through);
        drop(nodes.pop());
        image(&backup, &cluster.database(id));
        let at = opens_at(&cluster.machine_dir(id));
        assert!(Index(0) < at && at < Index(30), "{at}");
        if !kept {
            std::fs::remove_dir_all(cluster.node_dir(id).join("snapshots")).unwrap();
        }
        nodes.push(cluster.start(id));
        assert!(nodes[2].status().groups[0].first > 30);
        let after = nodes[2].reader().position().unwrap().index;
        assert!(at < after || !kept, "{after}");
        let through = put(&nodes, 5, 100);
        converge(&nodes, through);
        eventually("the snapshot", || {
            (nodes[2].metrics().snapshots_installed >= 1) != kept
        });
    }
}

#[test]
fn a_machine_of_another_log_or_of_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let start = |node: &str, machine: &str| {
        let machine = dir.path().join(machine);
        Node::builder(dir.path().join(node), move |_| RedbKv::new(&machine))
            .wal(small_log())
            .start()
    };
    for (name, count) in [("one", 3), ("other", 2)] {
        let node = start(name, &format!("{name}-machine")).unwrap();
        wait(node.leader_known());
        for number in 0..count {
            let (key, value) = (name.as_bytes(), &[number][..]);
            let command = Command::Put { key, value };
            wait(node.propose(command.to_bytes())).unwrap();
        }
    }
    let refused = start("new", "one-machine").unwrap_err().to_string();
    assert!(refused.contains("has never held that group"), "{refused}");
    // What is committed is known once it leads; then it is compared, and before that nothing is applied.
    for (log, machine) in [("one", "other-machine"), ("other", "one-machine")] {
        let before = opens_at(&dir.path().join(machine));
        let node = start(log, machine).unwrap();
        eventually("the group halts", || {
            node.status().groups[0].role == "halted"
        });
        let why = node.status().groups[0].why.clone().unwrap();
        assert!(why.contains("is what is committed there"), "{why}");
        drop(node);
        assert_eq!(opens_at(&dir.path().join(machine)), before);
    }
}

/// A machine that says less than it could, which it may.
struct Lags {
    kv: RedbKv,
    flushed: Durable,
    /// Says nothing but where it began.
    stuck: bool,
    said: Arc<AtomicU64>,
}

impl StateMachine for Lags {
    type Output = Reply;
    type Reader = RedbReader;
    type Snapshot = RedbSnapshot;

    fn open(&mut self) -> Result<Durable, Fatal> {
        self.kv.open()
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Reply>) -> Result<(), Fatal> {
        self.kv.apply(batch, outputs)
    }

    fn reader(&self) -> RedbReader {
        self.kv.reader()
    }

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        let now = self.kv.flush()?.unwrap();
        let said = std::mem::replace(&mut self.flushed, now);
        if self.stuck {
            return Ok(Some(Durable::default()));
        }
        self.said.store(said.index.0, Ordering::SeqCst);
        Ok(Some(said))
    }

    fn snapshot(&mut self) -> Result<RedbSnapshot, Fatal> {
        self.kv.snapshot()
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        self.kv.install(snapshot)
    }
}

#[test]
fn the_log_is_cut_only_below_what_the_machine_said_is_durable() {
    for stuck in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (said, kv) = (Arc::new(AtomicU64::new(0)), dir.path().join("machine"));
        let says = Arc::clone(&said);
        let machine = move |_| Lags {
            kv: RedbKv::new(&kv),
            flushed: Durable::default(),
            stuck,
            said: Arc::clone(&says),
        };
        let node = Node::builder(dir.path().join("node"), machine)
            .wal(small_log())
            .snapshots(often())
            .start()
            .unwrap();
        wait(node.leader_known());
        let value = vec![7; 16 << 10];
        let mut last = Index(0);
        // The pool takes 256 of them.
        for number in 0..if stuck { 100 } else { 400 } {
            let command = Command::Put {
                key: b"key",
                value: &value,
            };
            last = wait(node.propose(command.to_bytes())).unwrap().index;
            if number % 16 == 0 {
                // However slow those are that it takes by itself.
                wait(node.groups().next().unwrap().snapshot_now()).unwrap();
            }
            let first = node.status().groups[0].first;
            let said = said.load(Ordering::SeqCst);
            assert!(first <= said + 1, "{number}: {first} is first, {said} safe");
        }
        assert!(node.metrics().snapshots > 5);
        // Of the newest snapshot the machine says that it is not durable yet.
        let covered = wait(node.groups().next().unwrap().snapshot_now()).unwrap();
        assert_eq!(covered, last);
        assert!(said.load(Ordering::SeqCst) < covered.0);
        eventually("the status", || {
            node.status().groups[0].snapshot == Some(covered.0)
        });
        let line = &node.status().groups[0];
        assert_eq!(line.first > 200, !stuck, "{}", line.first);
        assert!(line.first <= said.load(Ordering::SeqCst) + 1);
        assert!(
            node.status().alarms.is_empty(),
            "{:?}",
            node.status().alarms
        );
    }
}
