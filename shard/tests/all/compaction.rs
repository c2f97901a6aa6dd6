//! What crashes, full logs, damage and several groups do to snapshots, and what they do to others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::trio::{GROUP, Trio, often};
use logdrive_raft::{ClusterId, GroupId, Incarnation, Index, LogPosition, NodeId};
use logdrive_shard::{Batch, Durable, Fatal, SnapshotReader, SnapshotSettings, StateMachine};
use logdrive_sim::MachineModel;
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimImage};
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::{FreshIds, Identity, Options, Wal};

const TWO: GroupId = GroupId(2);
const SLOT_BYTES: u64 = 256 << 10;

/// Only when somebody asks, and nothing is kept below.
fn asked() -> SnapshotSettings {
    let mut settings = SnapshotSettings::manual();
    settings.keep_log_bytes = 0;
    settings
}

/// What the defaults are of a log with so many slots.
fn of_pool(slots: u64) -> SnapshotSettings {
    let pool = SLOT_BYTES * slots;
    let mut settings = SnapshotSettings::default();
    settings.log_bytes = pool / 4;
    settings.keep_log_bytes = pool / 4;
    settings.retain_log_bytes = pool / 2;
    settings
}

fn trio(slots: (u64, u64), settings: &SnapshotSettings) -> Trio {
    Trio::with_snapshots([slots; 3], SimDiskOptions::default(), settings)
}

fn put_many(trio: &mut Trio, count: usize, bytes: usize) {
    for _ in 0..count {
        trio.put(bytes).unwrap();
    }
}

fn base(trio: &Trio, place: usize) -> Index {
    trio.nodes[place].core(GROUP).unwrap().base().index
}

/// Snapshots of all nodes but one, one after the other.
fn want_all_but(trio: &mut Trio, place: usize) {
    for other in (0..3).filter(|other| *other != place) {
        trio.nodes[other].want_snapshot(GROUP);
        trio.run_for(500_000);
    }
}

/// Whether a node has a whole snapshot of a group.
fn whole(trio: &Trio, place: usize, group: GroupId) -> Option<String> {
    let names = trio.nodes[place].files().directories();
    let prefix = format!("g{group}-");
    names.into_iter().find(|name| name.starts_with(&prefix))
}

/// Runs until something holds, which it has to within so many steps of so many microseconds.
fn run_until(trio: &mut Trio, steps: u64, us: u64, holds: impl Fn(&mut Trio) -> bool) {
    for _ in 0..steps {
        if holds(trio) {
            return;
        }
        trio.run_for(us);
    }
    panic!("it does not come about");
}

/// A deposed leader installs a snapshot that covers more than it has in common with the others, and the power fails
/// when the anchor is durable and the base is not: it has nothing more that is committed than before.
#[test]
fn an_anchor_whose_base_was_lost_commits_nothing_else() {
    const SLOT: u64 = 128 << 10;
    let mut settings = asked();
    settings.fetch_bytes_per_s = 256 << 10;
    // Where the flush group ends between the two depends on how much waits before them.
    let came_about = [1000, 900, 1100, 800, 1200, 700, 1300]
        .into_iter()
        .any(|more| anchor_without_base(SLOT, &settings, more));
    assert!(came_about);
}

fn anchor_without_base(slot_bytes: u64, settings: &SnapshotSettings, more: usize) -> bool {
    let slots = [(slot_bytes, 64); 3];
    let mut trio = Trio::of_groups(2, slots, SimDiskOptions::default(), settings);
    let old = trio.leader().unwrap();
    put_many(&mut trio, 5, 4 << 10);
    trio.run_for(200_000);
    let committed = trio.nodes[old].core(GROUP).unwrap().commit();
    trio.cut = Some(old);
    for _ in 0..60 {
        trio.submit(old, 100).unwrap();
        trio.run_for(500);
    }
    assert_eq!(trio.nodes[old].core(GROUP).unwrap().commit(), committed);
    let last = trio.nodes[old].core(GROUP).unwrap().last().index;
    trio.run_for(1_500_000);
    let new = trio.leader().unwrap();
    put_many(&mut trio, 20, 100);
    trio.run_for(200_000);
    want_all_but(&mut trio, old);
    assert!(committed.index < base(&trio, new) && base(&trio, new) < last);
    let leader_of_two = trio.leader_of(TWO).unwrap();
    assert_ne!(leader_of_two, old);
    trio.cut = None;
    trio.reconnect(old);
    run_until(&mut trio, 20_000, 200, |trio| {
        trio.nodes[old].status().unwrap().groups[0].fetch.is_some()
    });
    // Its disk is busy for a while; another group's entries wait.
    let until = trio.now.after(4_000_000);
    trio.nodes[old].stall(until);
    for bytes in [50, 50, 15_000] {
        trio.submit_to(leader_of_two, TWO, bytes).unwrap();
        trio.run_for(2_000);
    }
    let queued = trio.nodes[old].status().unwrap().wal.queued_bytes;
    let fill = (32 << 10) - queued - 1500 + more;
    trio.submit_to(leader_of_two, TWO, fill).unwrap();
    run_until(&mut trio, 4_000, 1_000, |trio| {
        trio.nodes[old].core(GROUP).unwrap().is_installing()
    });
    while trio.nodes[old].core(GROUP).unwrap().is_installing() {
        if let Some(image) = image_with_anchor_alone(&trio, old, slot_bytes) {
            trio.nodes[old].crash(Crash::Power);
            trio.nodes[old].medium().restore(&image);
            trio.cut = Some(old);
            trio.start(old);
            trio.run_for(300_000);
            let commit = trio.nodes[old].core(GROUP).unwrap().commit();
            assert!(
                commit.index <= committed.index,
                "{commit} was never committed"
            );
            trio.cut = None;
            trio.reconnect(old);
            trio.run_for(2_000_000);
            trio.assert_running();
            return true;
        }
        trio.run_for(100);
    }
    false
}

/// What a power cut would leave now, if that has the anchor of a snapshot that is being installed and not the base.
fn image_with_anchor_alone(trio: &Trio, place: usize, slot_bytes: u64) -> Option<SimImage> {
    let copy = trio.nodes[place].medium().flushed_only();
    let image = copy.image();
    let identity = Identity {
        cluster: ClusterId(7),
        node: trio.nodes[place].id(),
    };
    let fresh = FreshIds {
        incarnation: Incarnation(1),
        log_uuid: 1,
    };
    let options = Options::new(identity, fresh).with_pool(slot_bytes, slot_bytes * 64);
    let disk = SimDisk::new(copy, SimDiskOptions::default());
    let (_, recovery) = Wal::open(disk, options).unwrap();
    let restored = &recovery.groups[&GROUP].restored;
    let above = restored
        .anchor
        .index
        .0
        .checked_sub(restored.base.index.0 + 1)?;
    let held = restored.entries.get(usize::try_from(above).unwrap())?;
    (held.chain != restored.anchor.chain).then_some(image)
}

/// Entries that a machine could not be given are no reason to look again while it takes over a snapshot.
#[test]
fn a_group_whose_machine_takes_over_a_snapshot_rests() {
    let mut trio = trio((64 << 10, 128), &asked());
    let leader = trio.leader().unwrap();
    let behind = (leader + 1) % 3;
    trio.slow = Some(behind);
    put_many(&mut trio, 170, 10_000);
    let medium = trio.nodes[behind].medium().clone();
    let mut slots: Vec<u32> = medium.slot_files().iter().map(|file| file.slot.0).collect();
    slots.sort_unstable();
    let full = |slot: u32| {
        let contents = medium.contents(SlotId(slot));
        let mut blocks = contents.chunks(BLOCK_BYTES);
        blocks.position(|block| block[..1000].iter().all(|byte| *byte == b'v'))
    };
    slots.retain(|slot| full(*slot).is_some());
    for slot in &slots[slots.len() - 8..slots.len() - 4] {
        let offset = (full(*slot).unwrap() * BLOCK_BYTES + 17) as u64;
        medium.flip(SlotId(*slot), offset, 4);
    }
    trio.slow = None;
    trio.run_for(2_000_000);
    assert_eq!(trio.said(behind, "ReadFailed").len(), 1);
    trio.cut = Some(behind);
    put_many(&mut trio, 20, 10_000);
    want_all_but(&mut trio, behind);
    trio.cut = None;
    trio.slow = Some(behind);
    trio.reconnect(behind);
    run_until(&mut trio, 10_000, 1_000, |trio| {
        trio.nodes[behind].is_following()
    });
    // Its machine takes its time.
    trio.run_for(1_500_000);
    let mut due = 0;
    for _ in 0..1_000 {
        trio.run_for(10);
        let soon = trio.now.after(6);
        due += u32::from(trio.nodes[behind].turn_is_due(soon));
    }
    assert!(due < 200, "a turn was due after {due} of 1000");
}

/// The crash came between the snapshot and its anchor.
#[test]
fn a_snapshot_whose_anchor_was_lost_gets_one() {
    let mut trio = trio((SLOT_BYTES, 16), &asked());
    put_many(&mut trio, 30, 4 << 10);
    trio.run_for(200_000);
    let follower = (trio.leader().unwrap() + 1) % 3;
    trio.nodes[follower].want_snapshot(GROUP);
    run_until(&mut trio, 1_000_000, 10, |trio| {
        whole(trio, follower, GROUP).is_some()
    });
    let anchor = |trio: &Trio| trio.nodes[follower].core(GROUP).unwrap().anchor().index;
    assert_eq!(anchor(&trio), Index(0));
    trio.nodes[follower].crash(Crash::Power);
    assert!(whole(&trio, follower, GROUP).is_some());
    trio.start(follower);
    trio.run_for(5_000_000);
    assert!(anchor(&trio) > Index(0));
}

/// The same where the group goes idle: it would keep the log of all groups of that node.
#[test]
fn an_idle_group_whose_anchor_was_lost_does_not_keep_the_log_of_all() {
    let slots = [(SLOT_BYTES, 32); 3];
    let mut trio = Trio::of_groups(2, slots, SimDiskOptions::default(), &often());
    let leader = trio.leader_of(TWO).unwrap();
    for _ in 0..10 {
        trio.submit_to(leader, TWO, 500).unwrap();
        trio.run_for(20_000);
    }
    trio.run_for(200_000);
    let leaders = [trio.leader(), trio.leader_of(TWO)];
    let follower = (0..3)
        .find(|place| !leaders.contains(&Some(*place)))
        .unwrap();
    trio.nodes[follower].want_snapshot(TWO);
    run_until(&mut trio, 1_000_000, 10, |trio| {
        whole(trio, follower, TWO).is_some()
    });
    let anchor = |trio: &Trio| trio.nodes[follower].core(TWO).unwrap().anchor().index;
    assert_eq!(anchor(&trio), Index(0));
    let image = trio.nodes[follower].medium().flushed_only().image();
    trio.nodes[follower].crash(Crash::Power);
    trio.nodes[follower].medium().restore(&image);
    trio.start(follower);
    trio.run_for(1_000_000);
    for _ in 0..1_000 {
        drop(trio.put(4 << 10));
    }
    trio.run_for(10_000_000);
    assert_eq!(trio.said(follower, "StorageFull"), [""; 0]);
}

/// While it is short a log has more snapshots taken than are due, and not one with every entry.
#[test]
fn small_logs_have_a_few_snapshots_taken() {
    for slots in [6, 8, 16] {
        let mut trio = trio((SLOT_BYTES, slots), &of_pool(slots));
        let mut refused = 0;
        for _ in 0..700 {
            refused += u32::from(trio.put(4 << 10).is_err());
        }
        assert_eq!(refused, 0, "{slots} slots");
        for place in 0..3 {
            let taken = trio.said(place, "SnapshotTaken").len();
            assert!(taken < 60, "{taken} with {slots} slots");
        }
    }
}

/// And a follower gets one although the log of those who have it goes on.
#[test]
fn a_follower_of_small_logs_is_brought_up() {
    let mut settings = of_pool(6);
    // Two chunks, four seconds.
    settings.fetch_bytes_per_s = 64 << 10;
    let mut trio = trio((SLOT_BYTES, 6), &settings);
    let follower = (trio.leader().unwrap() + 1) % 3;
    trio.cut = Some(follower);
    for _ in 0..1_000 {
        drop(trio.put(4 << 10));
    }
    trio.cut = None;
    trio.reconnect(follower);
    let installed = (0..120).any(|_| {
        for _ in 0..6 {
            drop(trio.put(4 << 10));
            trio.run_for(140_000);
        }
        !trio.said(follower, "SnapshotInstalled").is_empty()
    });
    assert!(installed);
}

/// What was cut away troubles nobody.
#[test]
fn a_rotten_entry_that_was_cut_away_is_no_trouble() {
    let mut trio = trio((64 << 10, 64), &asked());
    let leader = trio.leader().unwrap();
    let lagging = (leader + 1) % 3;
    trio.nodes[lagging].crash(Crash::Process);
    put_many(&mut trio, 20, 10_000);
    // Nobody else has it either.
    for node in [leader, (leader + 2) % 3] {
        let medium = trio.nodes[node].medium().clone();
        let first = medium.contents(SlotId(0));
        let mut blocks = first.chunks(BLOCK_BYTES);
        let full = blocks.position(|block| block[..1000].iter().all(|byte| *byte == b'v'));
        let offset = (full.unwrap() * BLOCK_BYTES + 17) as u64;
        medium.flip(SlotId(0), offset, 4);
    }
    trio.start(lagging);
    trio.run_for(2_000_000);
    assert_eq!(trio.said(leader, "ReadFailed").len(), 1);
    // The machine has all of it: a snapshot takes the place of what cannot be read.
    trio.nodes[leader].want_snapshot(GROUP);
    trio.run_for(10_000_000);
    assert_eq!(trio.said(lagging, "SnapshotInstalled").len(), 1);
    let mut said = Vec::new();
    for _ in 0..20 {
        trio.put(10_000).unwrap();
        trio.run_for(100_000);
        said.extend(trio.said(leader, "Read"));
    }
    said.dedup();
    assert!(said.len() <= 1, "{said:?}");
    let troubled = trio.nodes[leader].status().unwrap();
    assert!(!format!("{troubled:?}").contains("read_trouble: Some"));
}

/// One whose snapshots take longer than it takes to write what makes the next one due leaves others theirs.
#[test]
fn groups_take_turns() {
    let slots = [(SLOT_BYTES, 64); 3];
    let slow = |_, plan: &mut logdrive_sim::plan::Plan| plan.snapshot.store_us = 500_000;
    let mut trio = Trio::planned(2, slots, SimDiskOptions::default(), &often(), slow);
    let mut full = Vec::new();
    let mut taken_of_two = 0;
    for round in 0..2_000 {
        let leader = trio.leader().unwrap();
        trio.submit(leader, 4 << 10).unwrap();
        if round > 50 && round % 50 == 0 {
            let leader = trio.leader_of(TWO).unwrap();
            trio.submit_to(leader, TWO, 4 << 10).unwrap();
        }
        trio.run_for(20_000);
        for place in 0..3 {
            for notice in trio.nodes[place].take_notices() {
                let text = format!("{notice:?}");
                let taken = text.contains("SnapshotTaken") && text.contains("GroupId(2)");
                taken_of_two += u32::from(taken);
                full.extend(text.contains("StorageFull").then_some(text));
            }
        }
    }
    assert_eq!(full, [""; 0]);
    assert!(taken_of_two > 3, "{taken_of_two}");
}

/// What is fetched stays while its receiver looks at what it has of it, however long.
#[test]
fn a_receiver_that_looks_for_long_at_what_it_has_gets_there() {
    let mut settings = often();
    settings.retain_log_bytes = 32 << 20;
    let slots = [(SLOT_BYTES, 256); 3];
    let disk = SimDiskOptions::default;
    let leader = Trio::with_snapshots(slots, disk(), &settings)
        .leader()
        .unwrap();
    let follower = (leader + 1) % 3;
    let mut trio = Trio::planned(1, slots, disk(), &settings, |id, plan| {
        if id == NodeId(follower as u64 + 1) {
            plan.snapshot.store_us = 30_000_000;
        }
    });
    assert_eq!(trio.leader(), Some(leader));
    trio.cut = Some(follower);
    put_many(&mut trio, 100, 4 << 10);
    trio.cut = None;
    trio.reconnect(follower);
    let installed = (0..1_500).any(|_| {
        trio.put(4 << 10).unwrap();
        trio.run_for(180_000);
        !trio.said(follower, "SnapshotInstalled").is_empty()
    });
    assert!(installed);
}

/// A follower that is far behind and is about to fetch.
fn far_behind() -> (Trio, usize) {
    let mut trio = trio((SLOT_BYTES, 16), &often());
    let follower = (trio.leader().unwrap() + 1) % 3;
    trio.cut = Some(follower);
    put_many(&mut trio, 100, 4 << 10);
    trio.cut = None;
    trio.reconnect(follower);
    (trio, follower)
}

/// It was read back, and is damaged before the machine gets it: the log begins there already, so another is fetched.
#[test]
fn a_received_snapshot_that_rots_before_it_is_installed_is_fetched_again() {
    for file in ["manifest", "table"] {
        fetched_again_if_it_rots(file);
    }
}

fn fetched_again_if_it_rots(file: &str) {
    let (mut trio, follower) = far_behind();
    run_until(&mut trio, 1_000_000, 10, |trio| {
        whole(trio, follower, GROUP).is_some()
    });
    let name = whole(&trio, follower, GROUP).unwrap();
    assert!(trio.nodes[follower].files().flip(&name, file, 30, 1));
    let mut said = Vec::new();
    for _ in 0..100 {
        trio.run_for(100_000);
        said.extend(trio.said(follower, "Snapshot"));
    }
    assert!(
        said.iter().any(|text| text.contains("SnapshotUnreadable")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|text| text.contains("SnapshotInstalled")),
        "{said:?}"
    );
    trio.assert_running();
    put_many(&mut trio, 1, 100);
    trio.run_for(200_000);
    let commit = |place: usize| trio.nodes[place].core(GROUP).unwrap().commit();
    assert_eq!(commit(follower), commit(trio.leader().unwrap()));
}

/// Whoever has no state to serve from does not lead.
#[test]
fn a_node_whose_machine_has_not_followed_does_not_campaign() {
    let (mut trio, follower) = far_behind();
    trio.slow = Some(follower);
    run_until(&mut trio, 1_000_000, 10, |trio| {
        trio.nodes[follower].is_following()
    });
    trio.run_for(500_000);
    let leader = trio.leader().unwrap();
    let other = 3 - leader - follower;
    // The two others change places until it is its turn.
    trio.nodes[leader].crash(Crash::Process);
    for _ in 0..200 {
        trio.run_for(20_000);
        if trio.leader() == Some(other) {
            trio.nodes[other].crash(Crash::Process);
            trio.start(other);
        }
        assert_ne!(trio.leader(), Some(follower));
    }
    // Once it has followed it may.
    trio.slow = None;
    trio.run_for(2_000_000);
    trio.nodes[other].crash(Crash::Process);
    trio.start(leader);
    trio.nodes[other].crash(Crash::Process);
    run_until(&mut trio, 1_000, 20_000, |trio| trio.leader().is_some());
}

/// What a machine with storage of its own has made durable, by node and group.
type Storage = Arc<Mutex<BTreeMap<(NodeId, GroupId), LogPosition>>>;

/// A machine that knows how far it is, and keeps that.
struct Counter {
    storage: Storage,
    of: (NodeId, GroupId),
    at: LogPosition,
}

impl Counter {
    fn keep(&self) {
        self.storage.lock().unwrap().insert(self.of, self.at);
    }
}

impl StateMachine for Counter {
    type Output = ();
    type Reader = ();
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        let kept = self.storage.lock().unwrap().get(&self.of).copied();
        self.at = kept.unwrap_or_default();
        Ok(self.at.into())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<()>) -> Result<(), Fatal> {
        outputs.extend(batch.proposals().map(|_| ()));
        self.at = batch.position();
        Ok(())
    }

    fn reader(&self) {}

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        self.keep();
        Ok(Some(self.at.into()))
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        Ok(vec![1])
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        self.at = snapshot.position();
        self.keep();
        Ok(())
    }
}

fn counters() -> MachineModel<Counter> {
    let storage = Storage::default();
    MachineModel::new(
        move |node, group| Counter {
            storage: Arc::clone(&storage),
            of: (node, group),
            at: LogPosition::default(),
        },
        |_, _| Vec::new(),
        |()| 0,
    )
}

/// A machine never hears of what a leader begins its term with, and does not say that it has it: the log of a group
/// that goes idle after an election, or is never used, is cut all the same.
#[test]
fn an_idle_group_of_machines_with_their_own_storage_does_not_keep_the_log_of_all() {
    for used in [0, 20] {
        let slots = [(SLOT_BYTES, 32); 3];
        let disk = SimDiskOptions::default();
        let mut trio = Trio::with_model(counters(), 2, slots, disk, &often(), |_, _| {});
        for _ in 0..used {
            let leader = trio.leader_of(TWO).unwrap();
            trio.submit_to(leader, TWO, 500).unwrap();
            trio.run_for(20_000);
        }
        let leader = trio.leader_of(TWO).unwrap();
        trio.nodes[leader].crash(Crash::Process);
        trio.run_for(1_000_000);
        trio.start(leader);
        trio.run_for(2_000_000);
        for _ in 0..4_000 {
            trio.put(4 << 10).unwrap();
        }
        // And all of it is found again.
        for place in 0..3 {
            trio.nodes[place].crash(Crash::Process);
        }
        for place in 0..3 {
            trio.start(place);
        }
        trio.run_for(2_000_000);
        trio.assert_running();
        trio.put(4 << 10).unwrap();
        let leader = trio.leader_of(TWO).unwrap();
        trio.submit_to(leader, TWO, 500).unwrap();
    }
}

/// What a replica cannot read was cut away everywhere else: a snapshot stands for it.
#[test]
fn what_cannot_be_read_and_was_cut_away_elsewhere_comes_with_a_snapshot() {
    let mut trio = trio((64 << 10, 64), &asked());
    let leader = trio.leader().unwrap();
    let (damaged, other) = ((leader + 1) % 3, (leader + 2) % 3);
    put_many(&mut trio, 20, 10_000);
    trio.run_for(1_000_000);
    trio.nodes[damaged].crash(Crash::Process);
    let medium = trio.nodes[damaged].medium().clone();
    let first = medium.contents(SlotId(0));
    let mut blocks = first.chunks(BLOCK_BYTES);
    let full = blocks.position(|block| block[..1000].iter().all(|byte| *byte == b'v'));
    medium.flip(SlotId(0), (full.unwrap() * BLOCK_BYTES + 17) as u64, 4);
    for node in [leader, other] {
        trio.nodes[node].want_snapshot(GROUP);
    }
    trio.run_for(5_000_000);
    put_many(&mut trio, 20, 10_000);
    trio.run_for(5_000_000);
    let commit = trio.nodes[leader].core(GROUP).unwrap().commit();
    for node in [leader, other] {
        assert!(trio.nodes[node].core(GROUP).unwrap().base().index.0 > 1);
    }
    trio.start(damaged);
    trio.run_for(10_000_000);
    assert_eq!(trio.said(damaged, "SnapshotInstalled").len(), 1);
    let core = trio.nodes[damaged].core(GROUP).unwrap();
    assert_eq!((core.commit(), core.guard()), (commit, None));
    let status = format!("{:?}", trio.nodes[damaged].status().unwrap());
    assert!(status.contains("missing: 0"), "{status}");
    trio.assert_running();
}
