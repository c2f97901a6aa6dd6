//! A log on a simulated disk, and a group to write to.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "test code")]

use logdrive_raft::entry::EntryBuilder;
use logdrive_raft::io::{HardState, Write};
use logdrive_raft::{
    ClusterId, Entry, Genesis, GroupId, Incarnation, Index, LogPosition, Member, Micros, NodeId,
    Replica, Term,
};
use logdrive_sim::dice::{Dice, Site};
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, Block, Disk, SlotId, WatchdogLimits};
use logdrive_wal::format::SlotHeader;
use logdrive_wal::verify::{Report, verify_disk};
use logdrive_wal::{
    FindingVerdict, FreshIds, Identity, OpenError, Options, Position, ReadRequest, Recovery,
    Verdict, Wal,
};

pub mod cut;

pub const GROUP: GroupId = GroupId(1);

/// What a disk decides by.
pub fn dice(seed: u64) -> Dice {
    Dice::drawn(Site::Disk(NodeId(1)), seed)
}

/// An empty directory.
pub fn storage() -> SimStorage {
    SimStorage::new(dice(1))
}

pub fn identity() -> Identity {
    Identity {
        cluster: ClusterId(0xc1),
        node: NodeId(1),
    }
}

pub fn fresh() -> FreshIds {
    FreshIds {
        incarnation: Incarnation(0x1ca),
        log_uuid: 0x10c,
    }
}

/// Slots of 64 KiB, at most this many.
pub fn options(slots: u64) -> Options {
    Options::new(identity(), fresh()).with_slots(64 << 10, slots)
}

pub fn replica(id: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(u128::from(id) << 96),
    }
}

pub fn genesis(group: GroupId) -> Genesis {
    let member = |id| Member {
        replica: replica(id),
        address: format!("10.0.0.{id}:7000"),
    };
    Genesis {
        cluster: identity().cluster,
        group,
        voters: vec![member(1), member(2), member(3)],
    }
}

/// What `verify` says of a log.
pub fn report(medium: &SimStorage) -> Result<Report, OpenError> {
    let mut disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    let slots = disk.slots().unwrap();
    verify_disk(&mut disk, &slots, false)
}

/// A log that opened and lacks entries up to `last`: its group begins with what lies before them, and fears for the rest.
pub fn check_holed(rig: &Rig, last: u64) {
    assert_eq!(rig.recovery.verdict, Verdict::Rot);
    let holed = |finding: &logdrive_wal::Finding| finding.verdict == FindingVerdict::Holed;
    assert!(rig.recovery.findings.iter().any(holed));
    let found = &rig.recovery.groups[&GROUP];
    let first = found.missing[0].first;
    let whole = found.restored.base.index.0 + found.restored.entries.len() as u64;
    assert_eq!(whole + 1, first.0);
    assert!(found.missing.iter().all(|run| run.first <= run.last.index));
    assert!(whole < last, "{found:?}");
    let guard = found.restored.guard.unwrap();
    assert_eq!(guard.index.map(|index| index.0), Some(last));
    assert_eq!((guard.term, rig.tip().index.0), (rig.tip().term, last));
}

/// The process dies.
pub fn die(rig: Rig, medium: &SimStorage) {
    drop(rig);
    medium.crash(Crash::Process, Tear::Never);
}

/// A block of a slot.
pub fn block_of(medium: &SimStorage, slot: SlotId, number: u32) -> Block {
    let bytes = medium.contents(slot);
    Block(
        bytes[number as usize * BLOCK_BYTES..][..BLOCK_BYTES]
            .try_into()
            .unwrap(),
    )
}

/// The header of the segment in a slot, as the first copy says.
pub fn header_of(medium: &SimStorage, slot: SlotId) -> SlotHeader {
    let read = SlotHeader::from_block(&block_of(medium, slot, 0), 0);
    read.unwrap().unwrap()
}

/// A watchdog that gives a flush mode up at once.
pub fn nervous() -> WatchdogLimits {
    WatchdogLimits {
        window: 8,
        bad_windows: 1,
        bad_windows_max: 1,
    }
}

/// An entry after `prev` with one payload.
pub fn entry(group: GroupId, term: u64, prev: &LogPosition, payload: &[u8]) -> Entry {
    let mut builder = EntryBuilder::with_room(1, payload.len());
    builder.push(payload);
    builder
        .finish()
        .seal(group, Term(term), prev.index.next(), prev.chain)
}

/// Entries after `prev`, each with a payload of so many bytes.
pub fn entries(
    group: GroupId,
    term: u64,
    prev: &LogPosition,
    count: u64,
    bytes: usize,
) -> Vec<Entry> {
    let mut prev = *prev;
    let mut entries = Vec::new();
    for _ in 0..count {
        let fill = u8::try_from(prev.index.0 % 251).unwrap();
        let entry = entry(group, term, &prev, &vec![fill; bytes]);
        prev = entry.position();
        entries.push(entry);
    }
    entries
}

pub fn vote(term: u64, for_whom: u64) -> HardState {
    HardState {
        term: Term(term),
        vote: Some(replica(for_whom)),
    }
}

/// A log and the clock that it is driven by.
pub struct Rig {
    pub wal: Wal<SimDisk>,
    pub recovery: Recovery,
    pub now: u64,
    steps_in_place: u32,
}

impl Rig {
    pub fn open(medium: &SimStorage, options: Options) -> Result<Self, OpenError> {
        Self::open_with(medium, options, SimDiskOptions::default(), 1)
    }

    pub fn open_with(
        medium: &SimStorage,
        options: Options,
        disk: SimDiskOptions,
        seed: u64,
    ) -> Result<Self, OpenError> {
        medium.set_dice(dice(seed));
        let disk = SimDisk::new(medium.clone(), disk);
        let (wal, recovery) = Wal::open(disk, options)?;
        Ok(Self {
            wal,
            recovery,
            now: 1_000_000,
            steps_in_place: 0,
        })
    }

    /// A new log with one group in it.
    pub fn with_group(medium: &SimStorage, options: Options) -> Self {
        let mut rig = Self::open(medium, options).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.settle();
        rig
    }

    pub fn tip(&self) -> LogPosition {
        self.wal.tip(GROUP).unwrap()
    }

    /// One turn: take what has ended, submit what can be.
    pub fn turn(&mut self) {
        let now = Micros(self.now);
        self.wal.disk_mut().advance(self.now);
        self.wal.poll(now);
        self.wal.submit(now);
    }

    /// Turns until everything appended is durable, idle marks not included.
    pub fn settle(&mut self) {
        self.turn();
        while !self.wal.is_drained() && self.wal.poisoned().is_none() {
            self.step();
        }
    }

    /// Lets it get late enough for the next operation to end.
    pub fn step(&mut self) {
        let due = self.wal.disk().next_due();
        let deadline = self.wal.next_deadline().map(|at| at.0);
        let next = due.into_iter().chain(deadline).min();
        let before = self.now;
        self.now = before.max(next.expect("something is under way"));
        self.steps_in_place = if self.now == before {
            self.steps_in_place + 1
        } else {
            0
        };
        assert!(self.steps_in_place < 1000, "nothing moves: {:?}", self.wal);
        self.turn();
    }

    /// Turns until nothing happens any more.
    pub fn idle(&mut self) {
        self.settle();
        while self.wal.disk().next_due().is_some() || self.wal.next_deadline().is_some() {
            self.step();
        }
    }

    pub fn append(&mut self, writes: &[Write]) -> Position {
        self.wal.append(GROUP, writes).unwrap()
    }

    pub fn append_entries(&mut self, term: u64, count: u64, bytes: usize) -> Position {
        let entries = entries(GROUP, term, &self.tip(), count, bytes);
        self.append(&[Write::Entries(entries)])
    }

    /// Reads all entries of the group back.
    pub fn read_all(&mut self) -> Vec<Entry> {
        let base = self.wal.base(GROUP).unwrap().index.0;
        self.read_from(base + 1, self.tip().index.0)
    }

    /// Reads entries of the group back.
    pub fn read_from(&mut self, first: u64, last: u64) -> Vec<Entry> {
        let mut found: Vec<Entry> = Vec::new();
        while first + (found.len() as u64) <= last {
            let request = ReadRequest {
                id: 1,
                group: GROUP,
                from: Index(first + found.len() as u64),
                through: Index(last),
                bytes_max: 100_000,
            };
            self.wal.read(request).unwrap();
            loop {
                self.turn();
                let done = self.wal.take_reads();
                if let Some(done) = done.into_iter().next() {
                    found.extend(done.result.unwrap());
                    break;
                }
                self.step();
            }
        }
        found
    }
}
