//! The end of a log that cannot be judged: what may have been acknowledged is guarded, for as long as it is not back.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::*;
use logdrive_raft::io::{Guard, Write};
use logdrive_raft::{GroupId, Index, Micros, Term};
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_sim::mortal::Mortal;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::format::{GroupHeader, GroupKind};
use logdrive_wal::{FindingVerdict, InFlightMax, OpenError, Options, Verdict, Wal};

/// The flush groups in a slot, by their first blocks.
fn groups_in(medium: &SimStorage, slot: SlotId) -> Vec<(u32, GroupHeader)> {
    let log = medium.contents(slot);
    let parsed = (2..log.len() / BLOCK_BYTES).filter_map(|block| {
        let (header, _) = GroupHeader::parse(&log[block * BLOCK_BYTES..]).ok()?;
        Some((u32::try_from(block).unwrap(), header))
    });
    parsed.collect()
}

/// Of the last so many flush groups, where they begin.
fn last_groups(medium: &SimStorage, count: usize) -> Vec<(u32, GroupHeader)> {
    let mut groups = groups_in(medium, SlotId(0));
    groups.split_off(groups.len() - count)
}

fn spoil(medium: &SimStorage, block: u32) {
    medium.change(SlotId(0), block, |bytes| bytes[100] ^= 1);
}

/// A log with two entries, and room for many flush groups at once.
fn begun(medium: &SimStorage) -> Rig {
    let in_flight_max = InFlightMax { partial: 8, all: 8 };
    let options = Options {
        in_flight_max,
        ..options(8)
    };
    let mut rig = Rig::with_group(medium, options);
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 100);
    rig.idle();
    rig
}

/// A log whose last flush groups, so many of one entry each, no mark covers yet; each takes two blocks.
fn unmarked(appends: u64) -> SimStorage {
    let medium = storage();
    let mut rig = begun(&medium);
    for _ in 0..appends {
        rig.append_entries(2, 1, 5000);
        rig.wal.submit(Micros(rig.now));
    }
    die_durable(rig, &medium);
    medium
}

/// What is in flight becomes durable, all at once, so that nothing states it.
fn die_durable(mut rig: Rig, medium: &SimStorage) {
    while !rig.wal.is_drained() {
        let due = rig.wal.disk().next_due().unwrap();
        rig.now = rig.now.max(due);
        rig.wal.disk_mut().advance(rig.now);
        rig.wal.poll(Micros(rig.now));
    }
    drop(rig);
    medium.crash(Crash::Process, Tear::Never);
}

fn guard(term: u64, index: Option<u64>) -> Option<Guard> {
    Some(Guard {
        term: Term(term),
        index: index.map(Index),
    })
}

fn guard_of(rig: &Rig) -> Option<Guard> {
    rig.recovery.groups[&GROUP].restored.guard
}

fn open(medium: &SimStorage) -> Rig {
    Rig::open(medium, options(8)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_a_bad_group_held_is_guarded_until_it_is_back() {
    let medium = unmarked(1);
    let (block, header) = last_groups(&medium, 1)[0];
    assert_eq!(header.blocks, 2);
    spoil(&medium, block + 1);

    let rig = open(&medium);
    assert_eq!(rig.recovery.verdict, Verdict::Suspect);
    let finding = &rig.recovery.findings[0];
    assert_eq!(finding.verdict, FindingVerdict::Guarded);
    let hit = (finding.index, finding.term);
    assert_eq!(hit, (Some(Index(3)), Some(Term(2))));
    assert_eq!(rig.tip().index, Index(2));
    assert_eq!(guard_of(&rig), guard(2, Some(3)));
    drop(rig);

    // The verdict says so, and then the checkpoints do, whatever is written meanwhile.
    let mut rig = open(&medium);
    assert_eq!(rig.recovery.verdict, Verdict::Clean);
    assert_eq!(guard_of(&rig), guard(2, Some(3)));
    rig.append(&[Write::HardState(vote(3, 2))]);
    while rig.wal.status().segments < 5 {
        rig.append(&[Write::HardState(vote(3, 2))]);
        rig.settle();
    }
    rig.idle();
    drop(rig);
    assert_eq!(guard_of(&open(&medium)), guard(2, Some(3)));

    let mut rig = open(&medium);
    rig.append_entries(3, 1, 100);
    rig.settle();
    drop(rig);
    assert_eq!(guard_of(&open(&medium)), None);
}

#[test]
fn the_next_group_tells_what_a_bad_one_held() {
    let medium = unmarked(2);
    let (block, header) = last_groups(&medium, 2)[0];
    assert_eq!(header.kind, GroupKind::Data);
    spoil(&medium, block);
    let rig = open(&medium);
    assert_eq!(rig.tip().index, Index(2));
    // The one after it may have been acknowledged too.
    assert_eq!(guard_of(&rig), guard(2, Some(4)));
}

#[test]
fn of_a_group_that_is_told_nowhere_everything_of_the_term_is_feared() {
    let medium = unmarked(1);
    let (block, _) = last_groups(&medium, 1)[0];
    spoil(&medium, block);
    let rig = open(&medium);
    assert_eq!(guard_of(&rig), guard(2, None));
    drop(rig);
    assert_eq!(guard_of(&open(&medium)), guard(2, None));
    // Whatever of that term comes, it may be less.
    let mut rig = open(&medium);
    rig.append_entries(2, 5, 100);
    rig.settle();
    drop(rig);
    let mut rig = open(&medium);
    assert_eq!(guard_of(&rig), guard(2, None));
    rig.append(&[Write::HardState(vote(3, 2))]);
    rig.append_entries(3, 1, 100);
    rig.settle();
    drop(rig);
    assert_eq!(guard_of(&open(&medium)), None);
}

#[test]
fn two_groups_in_a_row_that_have_not_shown_themselves_may_hide_a_vote() {
    let refused = |spoilt: &[usize]| {
        let medium = unmarked(3);
        let groups = last_groups(&medium, 3);
        for number in spoilt {
            spoil(&medium, groups[*number].0);
        }
        match Rig::open(&medium, options(8)) {
            Ok(rig) => Ok(guard_of(&rig)),
            Err(OpenError::Suspect { .. }) => Err(()),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(refused(&[0]), Ok(guard(2, Some(5))));
    // The last one repeats the second, so that one is told. What the second repeated is not.
    assert_eq!(refused(&[0, 1]), Err(()));
    assert_eq!(refused(&[1, 2]), Err(()));
    assert_eq!(refused(&[0, 2]), Ok(guard(2, None)));
}

/// What a guard follows from stays until the guard is durable: an opening that dies before is followed by one that judges
/// the same.
#[test]
fn an_opening_that_dies_leaves_what_its_guard_follows_from() {
    let original = storage();
    let mut rig = begun(&original);
    // All of it in flight at once, beyond the end of the segment.
    while rig.wal.status().segments < 2 {
        rig.append_entries(2, 1, 5000);
        rig.wal.submit(Micros(rig.now));
    }
    rig.append_entries(2, 1, 5000);
    rig.append(&[Write::HardState(vote(7, 3))]);
    rig.wal.submit(Micros(rig.now));
    let last = rig.tip().index;
    die_durable(rig, &original);
    let mark = groups_in(&original, SlotId(0))
        .iter()
        .chain(&groups_in(&original, SlotId(1)))
        .map(|(_, header)| header.mark)
        .max()
        .unwrap();
    let first = groups_in(&original, SlotId(0));
    let (block, _) = *first
        .iter()
        .find(|(_, header)| mark <= header.place && header.blocks == 2)
        .unwrap();
    spoil(&original, block + 1);

    for left in 0.. {
        let medium = original.copy(dice(1));
        let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
        let disk = Mortal::new(disk, Some(left));
        let first = catch_unwind(AssertUnwindSafe(|| Wal::open(disk, options(8)).map(drop)));
        medium.crash(Crash::Power, Tear::Never);
        let rig = open(&medium);
        let restored = &rig.recovery.groups[&GROUP].restored;
        assert_eq!(
            (restored.guard, restored.hard_state),
            (guard(2, Some(last.0)), vote(7, 3)),
            "after {left} changes"
        );
        if first.is_ok() {
            assert!(left > 10, "it took {left} changes");
            break;
        }
    }
}

#[test]
fn openings_that_die_do_not_take_a_slot_each() {
    let medium = unmarked(1);
    let (block, _) = last_groups(&medium, 1)[0];
    spoil(&medium, block);
    for left in 0..60 {
        let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
        let disk = Mortal::new(disk, Some(left % 12));
        let died = catch_unwind(AssertUnwindSafe(|| Wal::open(disk, options(8)).map(drop)));
        assert!(died.is_err(), "it takes more changes than that");
        medium.crash(Crash::Power, Tear::Never);
    }
    let slots = medium.slot_files().len();
    assert!(slots < 8, "{slots} slots after 60 openings");
    assert_eq!(guard_of(&open(&medium)), guard(2, None));
}

#[test]
fn a_guard_that_a_leader_has_ended_is_over_for_later_openings() {
    let medium = unmarked(1);
    let (block, _) = last_groups(&medium, 1)[0];
    spoil(&medium, block);
    let mut rig = open(&medium);
    assert_eq!(guard_of(&rig), guard(2, None));
    rig.append_entries(2, 1, 100);
    rig.settle();
    drop(rig);
    let mut rig = open(&medium);
    assert_eq!(guard_of(&rig), guard(2, None));
    rig.wal.guard_over(GROUP);
    rig.append_entries(2, 1, 100);
    rig.settle();
    drop(rig);
    let rig = open(&medium);
    assert_eq!(guard_of(&rig), None);
    assert_eq!(rig.tip().index, Index(4));
}

#[test]
fn every_group_of_the_log_is_guarded() {
    let other = GroupId(2);
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.wal.create_group(&genesis(other)).unwrap();
    rig.append(&[Write::HardState(vote(4, 1))]);
    rig.idle();
    let prev = rig.wal.tip(other).unwrap();
    let lost = entries(other, 1, &prev, 1, 100);
    rig.wal.append(other, &[Write::Entries(lost)]).unwrap();
    rig.settle();
    drop(rig);
    let (block, _) = last_groups(&medium, 1)[0];
    spoil(&medium, block);
    let rig = open(&medium);
    assert_eq!(guard_of(&rig), guard(4, None));
    // It has no term yet, and so none that it could have acknowledged anything in.
    assert_eq!(rig.recovery.groups[&other].restored.guard, None);
}

#[test]
fn a_vote_beyond_a_bad_group_was_cast() {
    let medium = storage();
    let mut rig = begun(&medium);
    rig.append_entries(2, 1, 5000);
    rig.wal.submit(Micros(rig.now));
    rig.append(&[Write::HardState(vote(7, 3))]);
    rig.wal.submit(Micros(rig.now));
    die_durable(rig, &medium);
    let (block, _) = last_groups(&medium, 2)[0];
    spoil(&medium, block + 1);
    let rig = open(&medium);
    let restored = &rig.recovery.groups[&GROUP].restored;
    assert_eq!(restored.hard_state, vote(7, 3));
    assert_eq!(restored.guard, guard(2, Some(3)));
}

/// A verdict that goes bad before anything follows it: its boot looks as if it had died before, and whatever it may have
/// said is guarded all the same.
#[test]
fn a_boot_whose_verdict_goes_bad_is_guarded() {
    let medium = unmarked(1);
    drop(open(&medium));
    let slot = SlotId(1);
    let groups = groups_in(&medium, slot);
    let kinds: Vec<GroupKind> = groups.iter().map(|(_, header)| header.kind).collect();
    assert_eq!(kinds, [GroupKind::First, GroupKind::Data]);
    medium.change(slot, groups[1].0, |bytes| bytes[100] ^= 1);
    let boot = groups[1].1.boot;
    let before = report(&medium).unwrap();
    assert_eq!(before.verdict, Verdict::Suspect, "{before}");
    let rig = open(&medium);
    assert_eq!(rig.recovery.verdict, Verdict::Suspect);
    assert_eq!(rig.recovery.findings, before.findings);
    assert!(boot < rig.recovery.boot);
    assert_eq!(rig.tip().index, Index(3));
    assert_eq!(guard_of(&rig), guard(2, None));
    drop(rig);
    assert_eq!(guard_of(&open(&medium)), guard(2, None));
}

/// The same of a boot that went on in the segment of the one before, and that nothing else names.
#[test]
fn a_boot_that_only_its_bad_verdict_names_is_not_used_again() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 100);
    rig.idle();
    drop(rig);
    let rig = open(&medium);
    let boot = rig.recovery.boot;
    assert_eq!(rig.wal.status().segments, 1);
    drop(rig);
    spoil(&medium, last_groups(&medium, 1)[0].0);
    let rig = open(&medium);
    assert_eq!(guard_of(&rig), guard(2, None));
    assert!(boot < rig.recovery.boot, "{boot:?}");
}

/// Whatever may have followed the verdict of the very first opening: what looks as if there had been none is not new.
#[test]
fn a_first_opening_that_cannot_be_judged_is_refused() {
    let medium = storage();
    drop(Rig::open(&medium, options(8)).unwrap());
    let groups = groups_in(&medium, SlotId(0));
    assert_eq!(groups[0].1.kind, GroupKind::First);
    spoil(&medium, groups[0].0);
    let refused = Rig::open(&medium, options(8)).err().unwrap();
    assert!(matches!(refused, OpenError::Suspect { .. }), "{refused}");
}

/// A group that was torn off after its first block was not durable: its entries are not feared for, and what it repeats
/// of the bad one before holds.
#[test]
fn what_never_landed_is_not_feared_for() {
    let medium = unmarked(2);
    let groups = last_groups(&medium, 2);
    spoil(&medium, groups[0].0);
    let torn = groups[1].0 + 1;
    medium.change(SlotId(0), torn, |bytes| bytes.fill(0));
    assert_eq!(guard_of(&open(&medium)), guard(2, Some(3)));
}

/// Where reads come from a page cache the record that ends a guard may lie beyond the mark, and is written again.
#[test]
fn a_guard_that_ended_beyond_the_mark_is_over() {
    let cached = SimDiskOptions {
        direct: false,
        ..SimDiskOptions::default()
    };
    let reopen = |medium: &SimStorage| {
        Rig::open_with(medium, options(8), cached.clone(), 1)
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let medium = unmarked(1);
    spoil(&medium, last_groups(&medium, 1)[0].0);
    let mut rig = reopen(&medium);
    assert_eq!(guard_of(&rig), guard(2, None));
    rig.idle();
    rig.wal.guard_over(GROUP);
    let flushes = rig.wal.status().counters.flushes;
    rig.turn();
    while rig.wal.status().counters.flushes == flushes {
        rig.step();
    }
    drop(rig);
    let record = groups_in(&medium, SlotId(1)).pop().unwrap().1;
    assert_eq!((record.kind, record.mark), (GroupKind::Data, record.place));
    assert_eq!(guard_of(&reopen(&medium)), None);
    assert_eq!(guard_of(&reopen(&medium)), None);
}
