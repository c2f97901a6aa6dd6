//! One shard on a simulated disk, turn by turn: what happens when the log is full, is further behind than
//! its machine, or cannot be read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::vec::Drain;

use logdrive_raft::io::Config;
use logdrive_raft::{
    Anchor, Boot, Chain, ClusterId, GroupId, Incarnation, Index, LogPosition, Message, Micros,
    NodeId, Replica, Term,
};
use logdrive_shard::{
    ApplyBatch, Door, Failure, GroupSetup, GroupState, Inbox, Notice, Opened, Ports, Refused,
    ReplySink, Shard, SnapshotReader, SnapshotSettings, StartError, StoreJob,
};
use logdrive_sim::dice::{Dice, Site};
use logdrive_sim::disk::{Crash, FaultRates, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::{FreshIds, Identity, Options};

fn dice() -> Dice {
    Dice::drawn(Site::Disk(NodeId(1)), 5)
}

fn new_medium() -> SimStorage {
    SimStorage::new(dice())
}

#[derive(Default)]
struct TestPorts {
    applied: Vec<(GroupId, Index)>,
    notices: Vec<Notice>,
}

impl Ports for TestPorts {
    type Output = ();

    fn send(&mut self, _: Message) {}

    fn apply_room_bytes(&self) -> usize {
        1 << 20
    }

    fn apply(&mut self, batch: ApplyBatch<()>) {
        for (entry, runs) in batch.entries {
            self.applied.push((batch.group, entry.index()));
            for run in runs {
                let mut outputs = vec![(); run.count() as usize];
                run.answer(entry.position(), &mut outputs).unwrap();
            }
        }
    }

    fn take_snapshot(&mut self, _: GroupId, anchor: Anchor) {
        panic!("nobody asked for {anchor:?}");
    }

    fn store(&mut self, job: StoreJob) {
        panic!("there are no snapshots: {job:?}");
    }

    fn install(&mut self, _: GroupId, at: LogPosition, _: Box<dyn SnapshotReader + Send>) {
        panic!("there are no snapshots: {at}");
    }

    fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

/// Remembers what was not applied, and why.
#[derive(Default)]
struct Failures(Mutex<Vec<Failure>>);

impl ReplySink<()> for Failures {
    fn applied(&self, _: u64, _: u32, _: LogPosition, _: u32, _: Drain<'_, ()>) {}

    fn failed(&self, _: u64, _: u32, _: u32, failure: Failure) {
        self.0.lock().unwrap().push(failure);
    }
}

fn options(slots: u64) -> Options {
    let identity = Identity {
        cluster: ClusterId(7),
        node: NodeId(1),
    };
    let fresh = FreshIds {
        incarnation: Incarnation(3),
        log_uuid: 4,
    };
    Options::new(identity, fresh).with_slots(64 << 10, slots)
}

/// The only voter of its groups.
struct Rig {
    shard: Shard<SimDisk, TestPorts>,
    doors: BTreeMap<GroupId, Inbox<()>>,
    failures: Arc<Failures>,
    now: Micros,
    turns: u64,
}

impl Rig {
    fn open(medium: &SimStorage, groups: u64, slots: u64, machine: LogPosition) -> Self {
        Self::open_with(medium, groups, slots, machine, FaultRates::default())
    }

    fn open_with(
        medium: &SimStorage,
        groups: u64,
        slots: u64,
        machine: LogPosition,
        rates: FaultRates,
    ) -> Self {
        let options = options(slots);
        let frame_bytes_max = options.frame_bytes_max;
        let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
        let opened = Opened::open(disk, options).unwrap();
        let mut doors = BTreeMap::new();
        let setups = (1..=groups).map(GroupId).map(|group| {
            let inbox = Inbox::new(1 << 20, frame_bytes_max, Waker::noop().clone());
            doors.insert(group, inbox.clone());
            GroupSetup {
                group,
                inbox,
                voters: vec![(NodeId(1), String::new())],
                applied: machine,
                newest: None,
            }
        });
        let setups = setups.collect();
        let core = Config::new(Replica::default(), Boot(0), GroupId(0), 6);
        let core = Config {
            cache_bytes_max: 1,
            ..core
        };
        let mut shard = opened
            .start(
                setups,
                core,
                SnapshotSettings::manual(),
                TestPorts::default(),
                Micros(0),
            )
            .unwrap();
        shard.disk_mut().options_mut().rates = rates;
        let mut rig = Self {
            shard,
            doors,
            failures: Arc::default(),
            now: Micros(0),
            turns: 0,
        };
        rig.run_for(100_000);
        rig
    }

    /// Lets time pass, and everything happen that is due in it.
    fn run_for(&mut self, us: u64) {
        let end = self.now.after(us);
        loop {
            self.turn();
            let due = self.shard.disk_mut().next_due().map(Micros);
            let next = due.into_iter().chain(self.shard.next_deadline()).min();
            match next {
                Some(next) if next <= end => self.now = self.now.max(next).after(1),
                _ => break,
            }
        }
        self.now = end;
    }

    fn turn(&mut self) {
        let now = self.now;
        self.turns += 1;
        self.shard.disk_mut().advance(now.0);
        self.shard.turn(now, &mut Vec::new());
    }

    fn propose(&mut self, group: u64, bytes: usize) -> Result<(), Refused> {
        let sink: Arc<dyn ReplySink<()>> = self.failures.clone();
        self.doors[&GroupId(group)].submit(&[vec![b'x'; bytes]], &sink, 0)
    }

    fn states(&self) -> Vec<GroupState> {
        let groups = self.shard.status().groups;
        groups.into_iter().map(|group| group.state).collect()
    }

    fn notices(&mut self) -> Vec<String> {
        let notices = std::mem::take(&mut self.shard.ports().notices);
        let notices = notices.iter().map(|notice| format!("{notice:?}"));
        notices
            .filter(|text| !text.starts_with("Role") && !text.starts_with("Formed"))
            .collect()
    }

    fn last(&self) -> LogPosition {
        self.shard.status().groups[0].last
    }
}

fn storage_full(refused: &Result<(), Refused>) -> bool {
    matches!(refused, Err(Refused::Closed(Failure::StorageFull)))
}

#[test]
fn a_turn_whose_entries_exceed_the_room_together_shuts_the_door_and_halts_nobody() {
    const GROUPS: u64 = 12;
    let mut rig = Rig::open(&new_medium(), GROUPS, 40, LogPosition::default());
    for _ in 0..100 {
        // All of them in one turn, each a quarter of a slot.
        let refused = (1..=GROUPS).map(|group| rig.propose(group, 15_000));
        if refused.collect::<Vec<_>>().iter().all(storage_full) {
            break;
        }
        rig.run_for(20_000);
    }
    assert!(storage_full(&rig.propose(1, 15_000)));
    let failures = rig.failures.0.lock().unwrap().clone();
    assert!(failures.iter().all(|why| *why == Failure::StorageFull));
    for state in rig.states() {
        assert!(matches!(state, GroupState::Running(_)), "{state:?}");
    }
    assert_eq!(rig.notices(), ["StorageFull { full: true }"]);
}

#[test]
fn what_a_turn_admits_together_has_slots_when_the_file_system_has_no_space() {
    const GROUPS: u64 = 12;
    let mut rig = Rig::open(&new_medium(), GROUPS, 40, LogPosition::default());
    rig.shard.disk_mut().options_mut().rates.no_space_ppm = 1_000_000;
    for _ in 0..20 {
        let refused = (1..=GROUPS).map(|group| rig.propose(group, 15_000));
        if refused.collect::<Vec<_>>().iter().all(storage_full) {
            break;
        }
        rig.run_for(20_000);
        // Not one retry of the pool is waited for.
        assert_eq!(rig.shard.wal().queued_bytes(), 0);
    }
    assert!(storage_full(&rig.propose(1, 15_000)));
    assert!(rig.shard.wal().is_drained());
}

#[test]
fn a_group_whose_first_record_the_log_does_not_take_halts_and_says_so() {
    // A checkpoint of so many groups is larger than a slot.
    let mut rig = Rig::open(&new_medium(), 400, 6, LogPosition::default());
    let halted: Vec<GroupState> = rig
        .states()
        .into_iter()
        .filter(|state| matches!(state, GroupState::Halted(_)))
        .collect();
    assert!(!halted.is_empty());
    let notices = rig.notices();
    let said = notices.iter().filter(|text| text.contains("LogRefused"));
    assert_eq!(said.count(), halted.len(), "{notices:?}");
    // Not for want of room: no room would help.
    for state in halted {
        let GroupState::Halted(why) = state else {
            unreachable!()
        };
        assert!(why.contains("slots of 65536 bytes"), "{why}");
        assert!(why.contains("raise wal.slot_bytes"), "{why}");
        assert!(why.contains("groups"), "{why}");
    }
}

fn grown(entries: usize) -> (SimStorage, LogPosition) {
    let medium = new_medium();
    let mut rig = Rig::open(&medium, 1, 40, LogPosition::default());
    for _ in 0..entries {
        rig.propose(1, 100).unwrap();
        rig.run_for(10_000);
    }
    let last = rig.last();
    assert!(rig.shard.close().is_ok());
    medium.crash(Crash::Process, Tear::Never);
    (medium, last)
}

#[test]
fn a_group_of_the_log_that_is_not_set_up_is_named() {
    let medium = new_medium();
    let rig = Rig::open(&medium, 3, 40, LogPosition::default());
    assert!(rig.shard.close().is_ok());
    let start = |groups: &[u64]| {
        let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
        let opened = Opened::open(disk, options(40)).unwrap();
        assert_eq!(opened.groups().count(), 3);
        let setups = groups.iter().map(|group| GroupSetup {
            group: GroupId(*group),
            inbox: Inbox::new(1 << 20, 1 << 14, Waker::noop().clone()),
            voters: vec![(NodeId(1), String::new())],
            applied: LogPosition::default(),
            newest: None,
        });
        let core = Config::new(Replica::default(), Boot(0), GroupId(0), 6);
        opened.start(
            setups.collect(),
            core,
            SnapshotSettings::manual(),
            TestPorts::default(),
            Micros(0),
        )
    };
    let refused = start(&[1, 3]).map(drop).unwrap_err();
    let expected = "group 2 is in the log and has no machine: configure it";
    assert_eq!(refused.to_string(), expected);
    assert!(matches!(
        refused,
        StartError::NotSetUp { group: GroupId(2) }
    ));
    assert!(start(&[1, 2, 3]).is_ok());
}

#[test]
fn a_machine_ahead_of_its_log_is_compared_before_anything_is_applied() {
    let (medium, last) = grown(3);
    let machine = LogPosition {
        index: Index(last.index.0 + 2),
        term: Term(9),
        chain: Chain(10),
    };
    let mut rig = Rig::open(&medium, 1, 40, machine);
    // The no-op of the new leader is below what the machine has.
    assert_eq!(rig.last().index.0, last.index.0 + 1);
    assert_eq!(rig.notices(), [] as [String; 0]);
    rig.propose(1, 100).unwrap();
    rig.run_for(10_000);
    let states = rig.states();
    let GroupState::Halted(why) = &states[0] else {
        panic!("{states:?}");
    };
    assert!(why.contains("the state machine was opened at"), "{why}");
    let notices = rig.notices();
    assert!(notices[0].starts_with("MachineDiffers"), "{notices:?}");
    assert_eq!(rig.shard.ports().applied, []);
    assert!(matches!(
        rig.propose(1, 1),
        Err(Refused::Closed(Failure::Halted))
    ));
}

#[test]
fn a_machine_that_differs_from_what_is_not_known_to_be_committed_is_compared_when_it_is() {
    let (medium, last) = grown(3);
    // An entry that is in this log, and may have been replaced everywhere else.
    let machine = LogPosition {
        index: last.index,
        term: Term(last.term.0 + 1),
        chain: Chain(10),
    };
    let mut rig = Rig::open(&medium, 1, 40, machine);
    // The no-op of the only voter commits everything before it: the machine is of another history.
    let states = rig.states();
    assert!(matches!(states[0], GroupState::Halted(_)), "{states:?}");
    let notices = rig.notices();
    assert!(notices[0].starts_with("MachineDiffers"), "{notices:?}");
    assert_eq!(rig.shard.ports().applied, []);
}

#[test]
fn a_machine_ahead_of_its_log_goes_on_where_it_was_if_both_are_of_one_history() {
    let (medium, last) = grown(3);
    // The same disk without its end: what the machine saw committed comes again.
    let copy = medium.copy(dice());
    let mut first = Rig::open(&medium, 1, 40, last);
    first.propose(1, 100).unwrap();
    first.run_for(10_000);
    let machine = first.last();
    let mut rig = Rig::open(&copy, 1, 40, machine);
    rig.propose(1, 100).unwrap();
    rig.run_for(10_000);
    assert_eq!(rig.last(), machine);
    rig.propose(1, 100).unwrap();
    rig.run_for(10_000);
    assert_eq!(rig.notices(), [] as [String; 0]);
    let next = (GroupId(1), machine.index.next());
    assert_eq!(rig.shard.ports().applied, [next]);
}

#[test]
fn a_read_that_fails_is_tried_again_with_pauses_and_told_once() {
    let (medium, last) = grown(5);
    let rates = FaultRates {
        read_error_ppm: 1_000_000,
        ..FaultRates::default()
    };
    let mut rig = Rig::open_with(&medium, 1, 40, LogPosition::default(), rates);
    let before = rig.turns;
    rig.run_for(10_000_000);
    // Twenty heartbeats a second and the disk's own pace; without pauses it is ten thousand.
    let turns = rig.turns - before;
    assert!(turns < 2_000, "{turns} turns in ten seconds");
    assert_eq!(rig.last().index.0, last.index.0 + 1);
    let notices = rig.notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].starts_with("ReadFailed"), "{notices:?}");

    rig.shard.disk_mut().options_mut().rates = FaultRates::default();
    rig.run_for(3_000_000);
    assert_eq!(rig.notices(), ["ReadWorks { group: GroupId(1) }"]);
    let applied: Vec<u64> = rig
        .shard
        .ports()
        .applied
        .iter()
        .map(|(_, at)| at.0)
        .collect();
    let through = rig.last().index.0;
    assert_eq!(applied, (1..=through).collect::<Vec<u64>>());
}

#[test]
fn a_door_that_shuts_down_is_not_opened_by_an_election() {
    let mut rig = Rig::open(&new_medium(), 1, 40, LogPosition::default());
    rig.shard.shut_doors();
    rig.run_for(1_000_000);
    rig.doors[&GroupId(1)].set_door(Door::Open);
    assert!(matches!(
        rig.propose(1, 1),
        Err(Refused::Closed(Failure::ShuttingDown))
    ));
}
