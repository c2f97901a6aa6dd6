//! Snapshots and cuts, of three nodes in one thread.

use crate::trio::{GROUP, Trio, often};
use logdrive_raft::io::Role;
use logdrive_raft::{GroupId, Index};
use logdrive_shard::SnapshotSettings;
use logdrive_sim::disk::{Crash, SimDiskOptions};
use logdrive_wal::snapshots::SnapshotStore;

const SLOT_BYTES: u64 = 256 << 10;

fn trio(settings: &SnapshotSettings) -> Trio {
    Trio::with_snapshots([(SLOT_BYTES, 16); 3], SimDiskOptions::default(), settings)
}

fn put_many(trio: &mut Trio, count: usize) {
    for _ in 0..count {
        trio.put(4 << 10).unwrap();
    }
}

fn base(trio: &Trio, place: usize) -> Index {
    trio.nodes[place].core(GROUP).unwrap().base().index
}

#[test]
fn logs_are_cut_behind_snapshots_and_disk_use_stays_bounded() {
    let mut trio = trio(&often());
    let mut segments_max = 0;
    for _ in 0..20 {
        put_many(&mut trio, 50);
        let status = trio.nodes[0].status().unwrap();
        segments_max = segments_max.max(status.wal.segments);
    }
    // 4 MiB of log, of which a quarter at most is kept at a time.
    assert!(segments_max <= 5, "{segments_max}");
    for place in 0..3 {
        let core = trio.nodes[place].core(GROUP).unwrap();
        assert!(core.base().index > Index(900), "{place}: {}", core.base());
        let kept = core.bytes_between(core.base().index, core.last().index);
        assert!((16 << 10..200 << 10).contains(&kept), "{place}: {kept}");
        let taken = trio.said(place, "SnapshotTaken");
        assert!(taken.len() >= 30, "{place}: {}", taken.len());
    }
    trio.assert_running();
}

#[test]
fn a_node_starts_from_its_newest_snapshot_and_the_log_beyond_it() {
    let mut trio = trio(&often());
    put_many(&mut trio, 100);
    let follower = (0..3).find(|place| Some(*place) != trio.leader()).unwrap();
    let before = trio.nodes[follower].applied(GROUP).unwrap();
    for crash in [Crash::Power, Crash::Process] {
        trio.nodes[follower].crash(crash);
        trio.start(follower);
        let applied = trio.nodes[follower].applied(GROUP).unwrap();
        assert!(
            Index(60) < applied.index && applied.index <= before.index,
            "{applied}"
        );
        trio.run_for(300_000);
        put_many(&mut trio, 1);
        let core = trio.nodes[follower].core(GROUP).unwrap();
        let (applied, commit) = (trio.nodes[follower].applied(GROUP).unwrap(), core.commit());
        assert_eq!(applied, commit);
    }
    assert_eq!(trio.said(follower, "SnapshotLacking"), [""; 0]);
}

#[test]
fn a_follower_that_fell_behind_is_brought_up_with_a_snapshot() {
    let mut trio = trio(&often());
    let follower = (0..3).find(|place| Some(*place) != trio.leader()).unwrap();
    trio.cut = Some(follower);
    put_many(&mut trio, 100);
    trio.cut = None;
    trio.reconnect(follower);
    trio.run_for(3_000_000);
    let leader = trio.leader().unwrap();
    assert!(base(&trio, leader) > Index(50));
    let installed = trio.said(follower, "SnapshotInstalled");
    assert_eq!(installed.len(), 1, "{installed:?}");
    put_many(&mut trio, 3);
    // The commit index comes with the next heartbeat.
    trio.run_for(100_000);
    let (ours, theirs) = (
        trio.nodes[follower].applied(GROUP).unwrap(),
        trio.nodes[leader].applied(GROUP).unwrap(),
    );
    assert_eq!(ours, theirs);
    // It is durable: a restart begins there.
    trio.nodes[follower].crash(Crash::Power);
    trio.start(follower);
    assert!(trio.nodes[follower].applied(GROUP).unwrap().index > Index(50));
    trio.assert_running();
}

/// Nobody proposes anything: the leader's log begins beyond what a newcomer needs, and that is enough.
#[test]
fn an_idle_leader_whose_log_was_cut_brings_a_follower_up() {
    let mut trio = trio(&often());
    put_many(&mut trio, 100);
    let leader = trio.leader().unwrap();
    let follower = (leader + 1) % 3;
    // Another directory under the same incarnation does not exist; what a follower lacks it can lose by its snapshot.
    trio.nodes[follower].crash(Crash::Power);
    for directory in trio.nodes[follower].files().directories() {
        let rotten = trio.nodes[follower]
            .files()
            .flip(&directory, "manifest", 30, 1);
        assert!(rotten, "{directory}");
    }
    trio.start(follower);
    assert_eq!(trio.said(follower, "SnapshotLacking").len(), 1);
    assert_eq!(trio.nodes[follower].applied(GROUP).unwrap().index, Index(0));
    trio.run_for(3_000_000);
    let installed = trio.said(follower, "SnapshotInstalled");
    assert_eq!(installed.len(), 1, "{installed:?}");
    let (ours, theirs) = (
        trio.nodes[follower].applied(GROUP).unwrap(),
        trio.nodes[leader].applied(GROUP).unwrap(),
    );
    assert_eq!(ours, theirs);
}

#[test]
fn without_a_readable_snapshot_a_node_votes_and_does_not_campaign() {
    let mut trio = trio(&often());
    put_many(&mut trio, 100);
    let leader = trio.leader().unwrap();
    let lacking = (leader + 1) % 3;
    trio.nodes[lacking].crash(Crash::Power);
    trio.nodes[leader].crash(Crash::Power);
    for directory in trio.nodes[lacking].files().directories() {
        trio.nodes[lacking]
            .files()
            .flip(&directory, "manifest", 30, 1);
    }
    trio.start(lacking);
    let other = (leader + 2) % 3;
    // Two of three: the one that lacks its snapshot gives the other its vote.
    for _ in 0..50 {
        trio.run_for(20_000);
        let role = trio.nodes[lacking].core(GROUP).unwrap().role();
        assert_eq!(role, Role::Follower);
    }
    assert_eq!(trio.leader(), Some(other));
    trio.run_for(3_000_000);
    assert_eq!(trio.said(lacking, "SnapshotInstalled").len(), 1);
    put_many(&mut trio, 1);
}

#[test]
fn a_full_disk_for_snapshots_is_said_and_harms_nothing_else() {
    let mut trio = trio(&often());
    let leader = trio.leader().unwrap();
    trio.nodes[leader].files().set_capacity(Some(2 << 10));
    put_many(&mut trio, 60);
    let failed = trio.said(leader, "SnapshotFailed");
    assert!(failed[0].contains("no_space: true"), "{failed:?}");
    let first = |text: &&String| text.contains("again: false");
    assert_eq!(failed.iter().filter(first).count(), 1, "{failed:?}");
    assert_eq!(base(&trio, leader), Index(0));
    assert_eq!(trio.nodes[leader].files().directories(), [""; 0]);
    trio.nodes[leader].files().set_capacity(None);
    trio.run_for(70_000_000);
    put_many(&mut trio, 1);
    trio.run_for(2_000_000);
    let taken = trio.said(leader, "SnapshotTaken");
    assert!(
        taken
            .iter()
            .any(|text| text.contains("after_failure: true")),
        "{taken:?}"
    );
    assert!(base(&trio, leader) > Index(0));
    trio.assert_running();
}

#[test]
fn a_snapshot_is_taken_when_somebody_asks() {
    let mut trio = trio(&SnapshotSettings::manual());
    put_many(&mut trio, 10);
    trio.run_for(100_000);
    trio.nodes[0].want_snapshot(GROUP);
    trio.run_for(100_000);
    assert_eq!(trio.said(0, "SnapshotTaken").len(), 1);
    // There is nothing new to take another one of.
    trio.nodes[0].want_snapshot(GROUP);
    trio.run_for(100_000);
    assert_eq!(trio.said(0, "SnapshotTaken").len(), 0);
    assert_eq!(trio.said(1, "SnapshotTaken").len(), 0);
}

/// Whatever the attempt was made for may be over; that it failed is not.
#[test]
fn an_attempt_that_failed_is_repeated_when_there_is_room() {
    let mut trio = trio(&SnapshotSettings::manual());
    put_many(&mut trio, 10);
    trio.run_for(100_000);
    trio.nodes[0].files().set_capacity(Some(2 << 10));
    trio.nodes[0].want_snapshot(GROUP);
    trio.run_for(100_000);
    assert_eq!(trio.said(0, "SnapshotFailed").len(), 1);
    trio.nodes[0].files().set_capacity(None);
    trio.run_for(2_000_000);
    let taken = trio.said(0, "SnapshotTaken");
    assert_eq!(taken.len(), 1);
    assert!(taken[0].contains("after_failure: true"), "{taken:?}");
}

/// The log is cut right up to the machine, nothing new comes, and what was taken has rotted on both who had it.
#[test]
fn an_idle_group_whose_snapshot_has_rotted_takes_another_one() {
    let mut settings = SnapshotSettings::manual();
    settings.keep_log_bytes = 0;
    let mut trio = trio(&settings);
    put_many(&mut trio, 10);
    trio.run_for(100_000);
    for place in 0..3 {
        trio.nodes[place].want_snapshot(GROUP);
        trio.run_for(300_000);
        let applied = trio.nodes[place].applied(GROUP).unwrap();
        assert_eq!(base(&trio, place), applied.index);
        assert_eq!(trio.said(place, "SnapshotTaken").len(), 1);
    }
    let lacking = (trio.leader().unwrap() + 1) % 3;
    trio.nodes[lacking].crash(Crash::Power);
    for place in 0..3 {
        let files = trio.nodes[place].files();
        for directory in files.directories() {
            // Of the one that lacks it the manifest, which it reads at its start.
            let file = if place == lacking {
                "manifest"
            } else {
                "table"
            };
            assert!(files.flip(&directory, file, 30, 1), "{directory}");
        }
    }
    trio.start(lacking);
    assert_eq!(trio.said(lacking, "SnapshotLacking").len(), 1);
    trio.run_for(10_000_000);
    assert_eq!(trio.said(lacking, "SnapshotInstalled").len(), 1);
    let unreadable: usize = (0..3)
        .map(|place| trio.said(place, "SnapshotUnreadable").len())
        .sum();
    assert!(unreadable > 0);
    put_many(&mut trio, 1);
    trio.assert_running();
}

/// A restart may find less than the anchor says.
#[test]
fn a_log_is_not_cut_beyond_what_a_restart_has_found() {
    let mut settings = SnapshotSettings::manual();
    settings.keep_log_bytes = 64 << 10;
    let mut trio = trio(&settings);
    put_many(&mut trio, 10);
    trio.run_for(100_000);
    let follower = (0..3).find(|place| Some(*place) != trio.leader()).unwrap();
    trio.nodes[follower].want_snapshot(GROUP);
    trio.run_for(200_000);
    assert_eq!(trio.said(follower, "SnapshotTaken").len(), 1);
    let anchor = trio.nodes[follower].core(GROUP).unwrap().anchor();
    assert!(anchor.index > Index(5));
    assert_eq!(base(&trio, follower), Index(0));
    // The only snapshot rots. The log still has everything.
    trio.nodes[follower].crash(Crash::Power);
    for directory in trio.nodes[follower].files().directories() {
        let rotten = trio.nodes[follower]
            .files()
            .flip(&directory, "manifest", 30, 1);
        assert!(rotten, "{directory}");
    }
    trio.start(follower);
    trio.run_for(500_000);
    // All is well: everything was applied from the log.
    let core = trio.nodes[follower].core(GROUP).unwrap();
    assert_eq!(trio.nodes[follower].applied(GROUP).unwrap(), core.commit());
    put_many(&mut trio, 40);
    trio.run_for(500_000);
    let base = base(&trio, follower);
    trio.nodes[follower].crash(Crash::Power);
    trio.start(follower);
    assert_eq!(
        trio.said(follower, "SnapshotLacking"),
        [""; 0],
        "the log was cut up to {base} and no snapshot covers that"
    );
}

/// The same while the machine is still fed from the log, which a cut would end for good.
#[test]
fn a_log_is_not_cut_beyond_what_the_machine_was_given() {
    let mut settings = SnapshotSettings::manual();
    settings.keep_log_bytes = 16 << 20;
    let slots = [(SLOT_BYTES, 256); 3];
    let mut trio = Trio::with_snapshots(slots, SimDiskOptions::default(), &settings);
    put_many(&mut trio, 1000);
    trio.run_for(100_000);
    let follower = (0..3).find(|place| Some(*place) != trio.leader()).unwrap();
    trio.nodes[follower].want_snapshot(GROUP);
    let anchored =
        |trio: &Trio| trio.nodes[follower].core(GROUP).unwrap().anchor().index > Index(0);
    while !anchored(&trio) {
        trio.run_for(10);
    }
    assert_eq!(base(&trio, follower), Index(0));
    trio.nodes[follower].crash(Crash::Power);
    for directory in trio.nodes[follower].files().directories() {
        trio.nodes[follower]
            .files()
            .flip(&directory, "manifest", 30, 1);
    }
    // What was kept for a transfer, for one, is not kept any more.
    trio.nodes[follower].snapshot_settings_mut().keep_log_bytes = 0;
    trio.start(follower);
    // All of the log has to be applied again, which takes a while.
    trio.slow = Some(follower);
    trio.run_for(1_000_000);
    trio.slow = None;
    trio.run_for(3_000_000);
    put_many(&mut trio, 3);
    trio.run_for(3_000_000);
    let core = trio.nodes[follower].core(GROUP).unwrap();
    let (base, commit) = (core.base(), core.commit());
    assert!(!core.lacks_snapshot());
    let applied = trio.nodes[follower].applied(GROUP).unwrap();
    assert_eq!(applied, commit, "for ever: the log begins at {base}");
}

/// What was received may never become where the log begins: a crash came before the base record, or the commit index
/// overtook it. Then the log still needs what it was cut for.
#[test]
fn a_received_snapshot_that_was_not_installed_does_not_retire_our_own() {
    let mut settings = SnapshotSettings::manual();
    settings.keep_log_bytes = 16 << 20;
    let slots = [(SLOT_BYTES, 64); 3];
    let mut trio = Trio::with_snapshots(slots, SimDiskOptions::default(), &settings);
    put_many(&mut trio, 1000);
    trio.run_for(100_000);
    let leader = trio.leader().unwrap();
    let follower = (leader + 1) % 3;
    trio.nodes[leader].want_snapshot(GROUP);
    trio.run_for(100_000);
    assert_eq!(trio.said(leader, "SnapshotTaken").len(), 1);
    trio.nodes[follower].crash(Crash::Power);
    // What a fetch leaves that got as far as `Received`, before the base record was durable.
    let unpaced = || Box::new(logdrive_wal::snapshots::unpaced);
    let from = SnapshotStore::open(trio.nodes[leader].files().copy(7).files()).unwrap();
    let into = SnapshotStore::open(trio.nodes[follower].files().files()).unwrap();
    let theirs = from.newest(GROUP).unwrap().unwrap();
    let manifest = from.manifest_bytes(theirs.id).unwrap();
    let mut receiving = into.receive(GROUP, manifest, unpaced()).unwrap();
    for (file, chunk) in receiving.missing().collect::<Vec<_>>() {
        let bytes = from.read_chunk(theirs.id, file, chunk).unwrap();
        receiving.put(file, chunk, &bytes).unwrap();
    }
    receiving.finish().unwrap();
    // It starts from its log, which has everything, and takes a snapshot of its own half way.
    trio.nodes[follower].snapshot_settings_mut().keep_log_bytes = 16 << 10;
    trio.start(follower);
    let mut taken = Vec::new();
    for _ in 0..20_000 {
        let applied = trio.nodes[follower].applied(GROUP).unwrap().index;
        if Index(0) < applied && applied < theirs.at.index {
            trio.nodes[follower].want_snapshot(GROUP);
        }
        trio.run_for(50);
        taken.extend(trio.said(follower, "SnapshotTaken"));
    }
    assert!(!taken.is_empty());
    trio.run_for(500_000);
    let base = base(&trio, follower);
    assert!(Index(0) < base && base < theirs.at.index, "{base}");
    trio.nodes[follower].crash(Crash::Power);
    trio.start(follower);
    assert_eq!(
        trio.said(follower, "SnapshotLacking"),
        [""; 0],
        "the log was cut up to {base} for {taken:?}"
    );
}

/// The log begins there and nothing older is left, so only another one helps.
#[test]
fn an_unreadable_snapshot_that_the_log_begins_at_is_replaced() {
    let mut settings = SnapshotSettings::manual();
    settings.keep_log_bytes = 0;
    let mut trio = trio(&settings);
    put_many(&mut trio, 10);
    trio.run_for(200_000);
    trio.nodes[0].want_snapshot(GROUP);
    trio.run_for(500_000);
    assert_eq!(trio.said(0, "SnapshotTaken").len(), 1);
    assert_eq!(base(&trio, 0), trio.nodes[0].applied(GROUP).unwrap().index);
    let store = SnapshotStore::open(trio.nodes[0].files().copy(7).files()).unwrap();
    let ours = store.newest(GROUP).unwrap().unwrap();
    for directory in trio.nodes[0].files().directories() {
        let reader = store.reader(ours.id).unwrap();
        let name = &reader.files()[0].name;
        assert!(trio.nodes[0].files().flip(&directory, name, 3, 1));
    }
    // A peer asks for it.
    let core = trio.nodes[1].core(GROUP).unwrap();
    let from = core
        .membership()
        .replicas()
        .into_iter()
        .find(|replica| replica.id == trio.nodes[1].id())
        .unwrap();
    let to = trio.nodes[0].id();
    trio.nodes[0].give(logdrive_shard::PeerInput::Message(logdrive_raft::Message {
        from,
        boot: logdrive_raft::Boot(1),
        to,
        group: GROUP,
        term: logdrive_raft::Term(0),
        body: logdrive_raft::Body::Transfer(logdrive_raft::message::Transfer::Fetch {
            snapshot: ours.id,
            part: logdrive_raft::message::Part::Chunk { file: 0, chunk: 0 },
        }),
    }));
    trio.run_for(3_000_000);
    let notices: Vec<String> = trio.nodes[0]
        .take_notices()
        .iter()
        .map(|notice| format!("{notice:?}"))
        .collect();
    let said = |what: &str| notices.iter().any(|text| text.contains(what));
    assert!(said("SnapshotUnreadable"), "{notices:?}");
    assert!(said("SnapshotTaken"), "{notices:?}");
}

/// Segments are released in order, and hold the logs of all groups.
#[test]
fn a_group_that_has_halted_and_keeps_the_log_of_all_is_named() {
    let slots = [(SLOT_BYTES, 16); 3];
    let mut trio = Trio::of_groups(2, slots, SimDiskOptions::default(), &often());
    let place = 1 - trio.leader().unwrap().min(1);
    trio.nodes[place].halt(GroupId(2));
    // Nearly all that it has room for.
    put_many(&mut trio, 900);
    let said = trio.said(place, "LogPinned");
    assert_eq!(said, ["LogPinned { group: GroupId(2), stuck: true }"]);
    // A machine that was mended applies the rest, and is taken a snapshot of.
    trio.nodes[place].crash(Crash::Process);
    trio.start(place);
    put_many(&mut trio, 100);
    let segments = trio.nodes[place].status().unwrap().wal.segments;
    assert!(segments <= 5, "{segments}");
    trio.assert_running();
}
