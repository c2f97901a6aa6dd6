//! What was durable and is bad, and what nobody misses: such a log opens, and says so until that part of it is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::cut::{self, anchor, anchor_at, base_at, cut, cut_all, cut_later};
use crate::common::*;
use logdrive_raft::Index;
use logdrive_raft::io::Write;
use logdrive_raft::wire::{Decode, Reader};
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_sim::mortal::Mortal;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::format::{
    GROUP_HEADER_BYTES, GroupHeader, Record, SLOT_HEADER_BLOCKS, SlotHeader,
};
use logdrive_wal::{FindingVerdict, OpenError, Verdict, Wal};

/// A flush group: where it lies, and what its table says.
struct Found {
    slot: SlotId,
    header: GroupHeader,
    table: Vec<Record>,
}

/// The flush groups of segments that are needed, in their order. Tables of one block alone.
fn groups(medium: &SimStorage) -> Vec<Found> {
    let mut found = Vec::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let mut block = SLOT_HEADER_BLOCKS as usize;
        while let Some(data) = bytes.get(block * BLOCK_BYTES..) {
            let Ok((header, _)) = GroupHeader::parse(data) else {
                break;
            };
            let mut input = Reader::new(&data[GROUP_HEADER_BYTES..]);
            let table = (0..header.records).map(|_| Record::decode(&mut input).unwrap());
            let table = table.collect();
            block += header.blocks as usize;
            found.push(Found {
                slot: file.slot,
                header,
                table,
            });
        }
    }
    found.sort_by_key(|found| found.header.number);
    found
}

fn spoil(medium: &SimStorage, found: &Found) {
    medium.change(found.slot, found.header.place.block, |bytes| {
        bytes[100] ^= 1
    });
}

fn end(mut rig: Rig, medium: &SimStorage) {
    rig.idle();
    die(rig, medium);
}

fn open(medium: &SimStorage) -> Rig {
    Rig::open(medium, options(8)).unwrap_or_else(|error| panic!("{error}"))
}

/// It opens with what it had, says what is bad, and goes on; and does so again.
fn opens_as(medium: &SimStorage, before: &Rig) {
    for round in 0..2 {
        let found = report(medium).unwrap();
        assert!(found.verdict <= Verdict::Torn, "{found}");
        let mended = |verdict| verdict == FindingVerdict::Mended;
        assert!(
            found.findings.iter().any(|finding| mended(finding.verdict)),
            "{found}"
        );
        let mut rig = open(medium);
        assert_eq!(rig.recovery.verdict, found.verdict);
        let restored = &rig.recovery.groups[&GROUP].restored;
        let was = &before.recovery.groups[&GROUP].restored;
        assert_eq!(restored.hard_state, was.hard_state);
        assert_eq!(restored.guard, None);
        if round == 0 {
            assert_eq!(rig.tip(), before.tip());
            assert_eq!(restored.entries, was.entries);
        }
        let (base, tip) = (rig.wal.base(GROUP).unwrap(), rig.tip());
        assert_eq!(rig.read_all().len() as u64, tip.index.0 - base.index.0);
        rig.append_entries(restored_term(&rig), 1, 100);
        rig.settle();
        die(rig, medium);
    }
}

fn restored_term(rig: &Rig) -> u64 {
    rig.recovery.groups[&GROUP].restored.hard_state.term.0
}

fn refused(medium: &SimStorage) -> String {
    match Rig::open(medium, options(8)) {
        Err(error @ OpenError::Rot { .. }) => error.to_string(),
        other => panic!("{:?}", other.map(|rig| rig.recovery)),
    }
}

/// It is not opened, or opens and fears for what is gone, or something stands in for it.
fn lacks(medium: &SimStorage, last: Index) {
    match Rig::open(medium, options(8)) {
        Err(OpenError::Rot { .. }) => {}
        Err(error) => panic!("{error}"),
        Ok(rig) if rig.recovery.verdict <= Verdict::Torn => {
            assert_eq!(rig.recovery.findings[0].verdict, FindingVerdict::Mended);
            assert_eq!(rig.tip().index, last);
        }
        Ok(rig) => check_holed(&rig, last.0),
    }
}

/// Every flush group of a log, bad: it opens as it was if nothing of it is missed.
fn each(medium: &SimStorage, opens: impl Fn(&Found) -> bool) {
    let whole = medium.copy(dice(1));
    let before = open(&whole);
    let all = groups(medium);
    let last = all.len() - 1;
    for found in &all[..last] {
        let medium = medium.copy(dice(1));
        spoil(&medium, found);
        if opens(found) {
            opens_as(&medium, &before);
        } else {
            lacks(&medium, before.tip().index);
        }
    }
}

fn has_entries(found: &Found) -> bool {
    let entries = |record: &Record| matches!(record, Record::Entries(_));
    found.table.iter().any(entries)
}

fn is_first_of_all(found: &Found) -> bool {
    found.header.number == 1
}

fn has_genesis(found: &Found) -> bool {
    let genesis = |record: &Record| matches!(record, Record::Genesis(_));
    found.table.iter().any(genesis)
}

#[test]
fn a_log_opens_without_its_marks_seals_checkpoints_and_votes() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.settle();
    while rig.wal.status().segments < 3 {
        rig.append_entries(2, 1, 2000);
        rig.idle();
    }
    rig.append(&[Write::HardState(vote(3, 2))]);
    rig.settle();
    rig.append_entries(3, 1, 100);
    end(rig, &medium);
    let kinds =
        |wanted: fn(&Found) -> bool| groups(&medium).iter().filter(|one| wanted(one)).count();
    assert!(kinds(|one| one.table.is_empty()) > 10, "marks");
    each(&medium, |found| {
        !has_entries(found) && !is_first_of_all(found) && !has_genesis(found)
    });
}

#[test]
fn a_log_opens_without_entries_that_were_cut() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 100);
    rig.settle();
    let kept = rig.tip();
    for _ in 0..3 {
        // Several entries, and the middle of them is where the next ones begin.
        rig.append_entries(2, 3, 100);
        rig.settle();
    }
    let other = entries(GROUP, 3, &kept, 2, 300);
    rig.append(&[Write::HardState(vote(3, 2)), Write::Entries(other)]);
    end(rig, &medium);
    each(&medium, |found| {
        let dead = found.table.iter().all(|record| match record {
            Record::Entries(run) => run.prev.index >= kept.index && run.last.term.0 == 2,
            _ => true,
        });
        dead && !is_first_of_all(found) && !has_genesis(found)
    });
}

#[test]
fn a_log_opens_whose_path_goes_on_in_the_middle_of_a_run_that_is_bad() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.settle();
    let run = entries(GROUP, 2, &rig.tip(), 5, 100);
    let middle = run[2].position();
    rig.append(&[Write::Entries(run)]);
    rig.settle();
    rig.append(&[Write::Truncate(middle)]);
    rig.settle();
    rig.append_entries(2, 1, 100);
    rig.settle();
    anchor(&mut rig, 4);
    let base = rig.tip();
    rig.append(&[Write::Base(base_at(base, base))]);
    rig.settle();
    rig.append_entries(2, 1, 100);
    end(rig, &medium);
    each(&medium, |found| {
        let below = found.table.iter().all(|record| match record {
            Record::Entries(run) => {
                run.last.index <= base.index
                    || run.last.index == Index(5) && run.prev.index == Index(0)
            }
            // Nothing says later where the anchor was, nor who was a member at the base.
            Record::Anchor(_) | Record::Base { .. } => false,
            _ => true,
        });
        below && !is_first_of_all(found) && !has_genesis(found)
    });
}

#[test]
fn a_log_opens_without_an_anchor_and_a_base_that_a_checkpoint_repeats() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 4, 100);
    rig.settle();
    cut_all(&mut rig);
    let segments = rig.wal.status().counters.groups;
    assert!(segments > 3);
    while rig.wal.status().segments < 2 {
        rig.append_entries(2, 1, 2000);
        rig.settle();
    }
    rig.append_entries(2, 1, 100);
    end(rig, &medium);
    let base = 4;
    each(&medium, |found| {
        let covered = found.table.iter().all(|record| match record {
            Record::Entries(run) => run.last.index.0 <= base,
            _ => true,
        });
        covered && !is_first_of_all(found) && !has_genesis(found)
    });
}

#[test]
fn an_epoch_whose_verdict_is_bad_is_not_dropped() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 100);
    rig.settle();
    die(rig, &medium);
    // An unclean stop: the next boot opens a segment of its own, and acknowledges something in it.
    let mut rig = open(&medium);
    rig.append_entries(2, 2, 100);
    rig.settle();
    rig.append_entries(2, 1, 100);
    end(rig, &medium);
    let verdicts = groups(&medium);
    let verdicts: Vec<&Found> = verdicts
        .iter()
        .filter(|found| {
            found
                .table
                .iter()
                .any(|record| matches!(record, Record::Verdict(_)))
        })
        .collect();
    assert!(verdicts.len() >= 2);
    let before = open(&medium.copy(dice(1)));
    assert_eq!(before.tip().index, Index(5));
    let last = verdicts[verdicts.len() - 1];
    spoil(&medium, last);
    opens_as(&medium, &before);
}

#[test]
fn of_two_neighbours_that_are_bad_a_vote_may_be_hidden() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.idle();
    rig.append(&[Write::HardState(vote(3, 1))]);
    rig.idle();
    rig.append_entries(3, 1, 100);
    end(rig, &medium);
    let all = groups(&medium);
    for pair in all[2..all.len() - 1].windows(2) {
        let medium = medium.copy(dice(1));
        pair.iter().for_each(|found| spoil(&medium, found));
        let why = refused(&medium);
        assert!(
            why.contains("nothing tells of flush group") || why.contains("can be read in part"),
            "{why}"
        );
    }
}

#[test]
fn what_is_bad_goes_with_its_segment_and_troubles_nobody_later() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.settle();
    rig.append_entries(2, 1, 100);
    rig.idle();
    rig.append_entries(2, 1, 100);
    end(rig, &medium);
    let all = groups(&medium);
    let mark = all
        .iter()
        .rev()
        .skip(1)
        .find(|found| found.table.is_empty())
        .unwrap();
    spoil(&medium, mark);
    let mut rig = open(&medium);
    assert_eq!(rig.recovery.findings[0].verdict, FindingVerdict::Mended);
    // Twice round all slots.
    for _ in 0..40 {
        for _ in 0..8 {
            rig.append_entries(2, 1, 3000);
            rig.settle();
        }
        cut_all(&mut rig);
        rig.idle();
    }
    assert!(rig.wal.status().counters.segments_released > 16);
    let now = report(&medium).unwrap();
    assert_eq!(now.findings, [], "{now}");
    // At any time of the next segment in that slot.
    let tip = rig.tip();
    die(rig, &medium);
    medium.crash(Crash::Power, Tear::Never);
    let rig = open(&medium);
    assert!(rig.recovery.findings.is_empty());
    assert!(rig.tip().index <= tip.index);
}

#[test]
fn an_anchor_that_is_bad_is_repeated_by_the_next_group() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 100);
    rig.settle();
    let at = rig.tip();
    rig.append(&[Write::Anchor(anchor_at(at))]);
    rig.settle();
    rig.append_entries(2, 1, 100);
    end(rig, &medium);
    let all = groups(&medium);
    let anchored = |found: &&Found| {
        found
            .table
            .iter()
            .any(|one| matches!(one, Record::Anchor(_)))
    };
    spoil(&medium, all.iter().find(anchored).unwrap());
    let mut rig = open(&medium);
    assert_eq!(rig.recovery.verdict, Verdict::Clean);
    assert_eq!(rig.recovery.groups[&GROUP].anchor, Some(anchor_at(at)));
    assert_eq!(rig.tip().index, Index(3));
    // It may be cut there, and what says so may be bad as well.
    cut_later(&mut rig, 2);
    rig.settle();
    end(rig, &medium);
    let all = groups(&medium);
    let based = |found: &&Found| {
        let mut table = found.table.iter();
        table.any(|one| matches!(one, Record::Base { .. }))
    };
    spoil(&medium, all.iter().rfind(based).unwrap());
    let rig = open(&medium);
    assert_eq!(rig.recovery.verdict, Verdict::Clean);
    let found = &rig.recovery.groups[&GROUP];
    assert_eq!(
        (found.restored.base, found.anchor.clone()),
        (at, Some(anchor_at(at)))
    );
    assert_eq!(found.restored.membership, cut::membership(2));
}

/// Any one block of the two newest segments may go bad, whatever it holds: the log opens, and fears for what is gone.
#[test]
fn no_block_of_the_newest_segments_keeps_a_log_from_opening() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(24));
    let mut term = 2;
    for round in 0..60 {
        if round % 7 == 0 {
            term += 1;
            rig.append(&[Write::HardState(vote(term, 1))]);
        }
        rig.append_entries(term, 1 + round % 3, 1500);
        rig.settle();
        if round % 5 == 3 {
            let tip = rig.tip().index.0;
            anchor(&mut rig, tip - 1);
            if round % 10 == 8 {
                cut(&mut rig, tip - 3);
            }
        }
        if round % 4 == 0 {
            rig.idle();
        }
    }
    assert!(rig.wal.status().segments >= 3);
    end(rig, &medium);
    let healthy = open(&medium.copy(dice(1)));
    let was = &healthy.recovery.groups[&GROUP].restored;
    let whole = |base: Index, entries: usize| base.0 + entries as u64;
    let last = whole(was.base.index, was.entries.len());
    let files = medium.slot_files();
    let mut segments: Vec<(u64, SlotId, u32)> = files
        .iter()
        .filter_map(|file| {
            let header = SlotHeader::from_block(&block_of(&medium, file.slot, 0), 0);
            Some((header.ok()??.segment, file.slot, file.blocks))
        })
        .collect();
    segments.sort_unstable();
    let (mut same, mut holed, mut guarded) = (0, 0, 0);
    for (_, slot, blocks) in segments.split_off(segments.len() - 2) {
        for block in 0..blocks {
            for fill in [None, Some(0), Some(0xa5)] {
                let medium = medium.copy(dice(1));
                medium.change(slot, block, |bytes| match fill {
                    None => bytes[1000] ^= 4,
                    Some(fill) => *bytes = [fill; BLOCK_BYTES],
                });
                let rig = Rig::open(&medium, options(24));
                let rig = rig.unwrap_or_else(|error| panic!("block {block} of {slot:?}: {error}"));
                let found = &rig.recovery.groups[&GROUP].restored;
                assert_eq!(
                    found.hard_state, was.hard_state,
                    "block {block} of {slot:?}"
                );
                let end = whole(found.base.index, found.entries.len());
                match rig.recovery.verdict {
                    Verdict::Rot => {
                        holed += 1;
                        check_holed(&rig, last);
                    }
                    Verdict::Suspect => {
                        guarded += 1;
                        assert!(end == last || found.guard.is_some());
                    }
                    // Of the last mark nothing is missed.
                    _ => {
                        same += 1;
                        assert_eq!(end, last, "block {block} of {slot:?}");
                    }
                }
            }
        }
    }
    assert!(
        same > 50 && holed > 5 && guarded > 0,
        "{same} {holed} {guarded}"
    );
}

/// Whether a segment is there that an opening of this boot made.
fn was_begun_by(medium: &SimStorage, boot: u64) -> bool {
    let header = |slot| SlotHeader::from_block(&block_of(medium, slot, 0), 0);
    let by_boot = |header: &SlotHeader| header.by_recovery && header.epoch.0 == boot;
    let files = medium.slot_files();
    let mut headers = files
        .iter()
        .filter_map(|file| header(file.slot).ok().flatten());
    headers.any(|header| by_boot(&header))
}

/// An opening flushes what it finds, and may die before its verdict. What it found was durable all the same, and may have
/// been acknowledged: it does not look torn to the next one.
#[test]
fn what_an_opening_that_died_had_flushed_is_rot_once_it_is_bad() {
    let original = storage();
    let mut rig = Rig::with_group(&original, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 100);
    rig.idle();
    rig.append_entries(2, 1, 100);
    rig.settle();
    die(rig, &original);
    let last = groups(&original).pop().unwrap();
    let (mut unfinished, mut finished) = (0, 0);
    for left in 0.. {
        let medium = original.copy(dice(1));
        let disk = Mortal::new(
            SimDisk::new(medium.clone(), SimDiskOptions::default()),
            Some(left),
        );
        let opened = catch_unwind(AssertUnwindSafe(|| Wal::open(disk, options(8)).map(drop)));
        medium.crash(Crash::Process, Tear::Never);
        if !was_begun_by(&medium, 2) {
            assert!(opened.is_err());
            continue;
        }
        for fill in [0, 0xa5] {
            let medium = medium.copy(dice(1));
            let block = last.header.place.block;
            medium.change(last.slot, block, |bytes| *bytes = [fill; BLOCK_BYTES]);
            lacks(&medium, Index(3));
        }
        if opened.is_ok() {
            finished += 1;
            break;
        }
        unfinished += 1;
    }
    assert!(unfinished > 2 && finished == 1, "{unfinished} {finished}");
}

/// What stood in the first flush group of a segment is known from what lies before, so that goes no sooner than the segment.
#[test]
fn a_log_never_begins_with_a_segment_whose_beginning_is_bad() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(12));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.settle();
    while rig.wal.status().segments < 4 {
        rig.append_entries(2, 1, 2000);
        rig.idle();
    }
    let last = rig.tip().index.0;
    end(rig, &medium);
    let all = groups(&medium);
    let begins = |found: &&Found| {
        let place = found.header.place;
        place.block == SLOT_HEADER_BLOCKS && (place.segment == 2 || place.segment == 3)
    };
    let firsts: Vec<&Found> = all.iter().filter(begins).collect();
    assert_eq!(firsts.len(), 2);
    firsts.iter().for_each(|found| spoil(&medium, found));
    let mut headless_last = 0;
    for index in 1..=last {
        let mut rig = open(&medium);
        assert_eq!(rig.tip().index.0, last);
        anchor(&mut rig, index);
        cut(&mut rig, index);
        rig.idle();
        // What may go goes with the next segments.
        let before = rig.wal.status().counters.groups;
        rig.append(&[Write::HardState(vote(2 + index, 1))]);
        rig.idle();
        assert!(rig.wal.status().counters.groups > before);
        let found = report(&medium).unwrap();
        headless_last += u64::from(!found.findings.is_empty());
        die(rig, &medium);
    }
    assert!(headless_last > 0);
    let mut rig = open(&medium);
    while rig.wal.status().counters.segments_released == 0 {
        rig.append_entries(2 + last, 1, 2000);
        cut_all(&mut rig);
        rig.idle();
    }
    end(rig, &medium);
    assert_eq!(report(&medium).unwrap().findings, []);
}
