//! Entries that were durable and cannot be read: a log opens without them, and everything behind them is feared for until
//! it is back.

use crate::common::cut::{self, anchor, base_at, cut_later, install};
use crate::common::*;
use logdrive_raft::io::{Guard, Write};
use logdrive_raft::wire::{Decode, Reader};
use logdrive_raft::{Index, LogPosition, Term};
use logdrive_sim::disk::{SimDisk, SimDiskOptions, SimStorage};
use logdrive_sim::mortal::Mortal;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::format::{GROUP_HEADER_BYTES, GroupHeader, Record, SLOT_HEADER_BLOCKS};
use logdrive_wal::{FindingVerdict, Verdict, Wal};
use std::panic::{AssertUnwindSafe, catch_unwind};

const LAST: u64 = 12;

/// A log of entries 1 to 12, three to a flush group and all of them marked, and where each group of entries lies.
fn log() -> (SimStorage, Vec<(SlotId, u32)>) {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(12));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.idle();
    for _ in 0..LAST / 3 {
        rig.append_entries(2, 3, 400);
        rig.idle();
    }
    die(rig, &medium);
    let runs = runs(&medium);
    assert_eq!(runs.len() as u64, LAST / 3);
    (medium, runs)
}

/// Where the flush groups with entries begin.
pub(crate) fn runs(medium: &SimStorage) -> Vec<(SlotId, u32)> {
    let mut runs = Vec::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let mut block = SLOT_HEADER_BLOCKS;
        while let Some(data) = bytes.get(block as usize * BLOCK_BYTES..) {
            let Ok((header, _)) = GroupHeader::parse(data) else {
                break;
            };
            let mut input = Reader::new(&data[GROUP_HEADER_BYTES..]);
            let mut table = (0..header.records).map(|_| Record::decode(&mut input).unwrap());
            if table.any(|record| matches!(record, Record::Entries(_))) {
                runs.push((file.slot, block));
            }
            block += header.blocks;
        }
    }
    runs
}

pub(crate) fn spoil(medium: &SimStorage, (slot, block): (SlotId, u32)) {
    medium.change(slot, block, |bytes| bytes[100] ^= 1);
}

fn open(medium: &SimStorage) -> Rig {
    Rig::open(medium, options(12)).unwrap_or_else(|error| panic!("{error}"))
}

fn guard_of(rig: &Rig) -> Option<Guard> {
    rig.recovery.groups[&GROUP].restored.guard
}

/// Where the replica begins.
fn whole(rig: &Rig) -> u64 {
    let restored = &rig.recovery.groups[&GROUP].restored;
    restored.base.index.0 + restored.entries.len() as u64
}

fn missing(rig: &Rig) -> Vec<(u64, u64)> {
    let missing = rig.recovery.groups[&GROUP].missing.iter();
    missing.map(|run| (run.first.0, run.last.index.0)).collect()
}

/// What lies at an index of a log that is whole.
fn position_in(medium: &SimStorage, index: u64) -> LogPosition {
    let mut rig = open(&medium.copy(dice(1)));
    cut::position(&mut rig, index)
}

#[test]
fn a_log_opens_again_and_again_without_what_is_missing() {
    let (medium, runs) = log();
    spoil(&medium, runs[1]);
    spoil(&medium, runs[3]);
    for _ in 0..3 {
        let found = report(&medium).unwrap();
        assert_eq!(found.verdict, Verdict::Rot);
        let text = found.to_string();
        assert!(
            text.contains("entries 4 to 6 of term 2 and chain"),
            "{text}"
        );
        let mut rig = open(&medium);
        check_holed(&rig, LAST);
        assert_eq!(missing(&rig), [(4, 6), (10, 12)]);
        assert_eq!(rig.read_from(1, 3).len(), 3);
        // Behind it all is there that is not bad itself.
        assert_eq!(rig.read_from(7, 9).len(), 3);
        die(rig, &medium);
    }
}

/// A leader sends what it has from the first entry that is missing, the same as before or another one. At every moment
/// of that the process may die: what was feared is feared until as much is there.
#[test]
fn what_a_leader_sends_takes_the_place_of_what_is_missing() {
    for term in [2, 3] {
        let (medium, runs) = log();
        let before = position_in(&medium, 3);
        let sent = entries(GROUP, term, &before, LAST - 3, 400);
        let same = position_in(&medium, LAST) == sent.last().unwrap().position();
        assert_eq!(same, term == 2);
        spoil(&medium, runs[1]);
        let mut rig = open(&medium);
        for (place, entry) in sent.iter().enumerate() {
            rig.append(&[Write::Entries(vec![entry.clone()])]);
            rig.settle();
            let copy = medium.copy(dice(1));
            let again = open(&copy);
            assert_eq!(again.recovery.verdict, Verdict::Clean);
            assert_eq!(missing(&again), []);
            assert_eq!(whole(&again), 4 + place as u64);
            let back = term > 2 || place as u64 + 4 == LAST;
            let feared = Guard {
                term: Term(2),
                index: Some(Index(LAST)),
            };
            assert_eq!(guard_of(&again), (!back).then_some(feared), "{place}");
        }
        rig.wal.guard_over(GROUP);
        rig.idle();
        die(rig, &medium);
        let mut rig = open(&medium);
        assert_eq!(guard_of(&rig), None);
        assert_eq!(rig.read_all(), [rig.read_from(1, 3), sent].concat());
        let mended = |finding: &logdrive_wal::Finding| finding.verdict == FindingVerdict::Mended;
        assert!(rig.recovery.findings.iter().all(mended));
    }
}

/// An anchor says what the log up to it amounts to, so that nobody needs what is missing there.
#[test]
fn what_an_anchor_covers_is_cut_away() {
    for (at, left) in [(3, true), (4, false), (5, false), (6, false), (8, false)] {
        let (medium, runs) = log();
        let mut rig = open(&medium);
        anchor(&mut rig, at);
        rig.idle();
        let tip = rig.tip();
        die(rig, &medium);
        spoil(&medium, runs[1]);
        for _ in 0..2 {
            let mut rig = open(&medium);
            let restored = &rig.recovery.groups[&GROUP].restored;
            if left {
                check_holed(&rig, LAST);
                assert_eq!(restored.base.index.0, 0);
            } else if at < 6 {
                // The run is cut in its middle, and the rest of it is missing still.
                check_holed(&rig, LAST);
                assert_eq!(restored.base.index.0, at);
                assert_eq!(missing(&rig), [(at + 1, 6)]);
            } else {
                assert_eq!((restored.base.index.0, restored.guard), (at, None));
                assert_eq!(missing(&rig), []);
                assert_eq!(rig.read_from(at + 1, LAST).len() as u64, LAST - at);
            }
            assert_eq!(rig.tip(), tip);
            die(rig, &medium);
        }
    }
}

/// The replica knows its log as far as it is whole, and may cut it there. What lies behind stays where it is.
#[test]
fn a_cut_below_what_is_missing_leaves_what_lies_behind() {
    let (medium, runs) = log();
    spoil(&medium, runs[2]);
    let mut rig = open(&medium);
    anchor(&mut rig, 5);
    let (at, end) = (position_in_rig(&mut rig, 5), position_in_rig(&mut rig, 6));
    rig.append(&[Write::Base(base_at(at, end))]);
    rig.settle();
    assert_eq!(rig.wal.base(GROUP), Some(at));
    for _ in 0..2 {
        die(rig, &medium);
        rig = open(&medium);
        check_holed(&rig, LAST);
        assert_eq!(rig.recovery.groups[&GROUP].restored.base, at);
        assert_eq!(missing(&rig), [(7, 9)]);
        assert_eq!(rig.read_from(10, LAST).len(), 3);
    }
}

fn position_in_rig(rig: &mut Rig, index: u64) -> LogPosition {
    cut::position(rig, index)
}

/// A snapshot beyond what is missing makes an end of it, and the rest of the log goes as the replica says.
#[test]
fn a_snapshot_that_is_installed_closes_a_hole() {
    let (medium, runs) = log();
    let at = position_in(&medium, 8);
    spoil(&medium, runs[1]);
    let mut rig = open(&medium);
    install(&mut rig, at, at);
    rig.settle();
    die(rig, &medium);
    let rig = open(&medium);
    assert_eq!((missing(&rig), whole(&rig)), (vec![], 8));
    let feared = Guard {
        term: Term(2),
        index: Some(Index(LAST)),
    };
    assert_eq!(guard_of(&rig), Some(feared));
}

/// The opening that finds something missing may die at any moment; the next one comes to the same.
#[test]
fn an_opening_that_dies_leaves_what_is_missing_as_it_was() {
    let (original, runs) = log();
    let mut rig = open(&original);
    anchor(&mut rig, 5);
    rig.idle();
    die(rig, &original);
    spoil(&original, runs[1]);
    spoil(&original, runs[3]);
    for left in 0.. {
        let medium = original.copy(dice(1));
        let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
        let disk = Mortal::new(disk, Some(left));
        let first = catch_unwind(AssertUnwindSafe(|| Wal::open(disk, options(12)).map(drop)));
        medium.crash(
            logdrive_sim::disk::Crash::Power,
            logdrive_sim::disk::Tear::Never,
        );
        let rig = open(&medium);
        check_holed(&rig, LAST);
        assert_eq!(missing(&rig), [(6, 6), (10, 12)], "after {left} changes");
        if first.is_ok() {
            assert!(left > 5, "it took {left} changes");
            break;
        }
    }
}

/// What is missing pins its segment for as long as it is on the path.
#[test]
fn the_log_goes_on_behind_what_is_missing_and_releases_it_once_it_is_cut() {
    let (medium, runs) = log();
    spoil(&medium, runs[1]);
    let mut rig = open(&medium);
    let before = position_in_rig(&mut rig, 3);
    let sent = entries(GROUP, 3, &before, 1, 400);
    rig.append(&[Write::Entries(sent)]);
    rig.settle();
    for _ in 0..30 {
        for _ in 0..8 {
            rig.append_entries(3, 1, 3000);
            rig.settle();
        }
        let tip = rig.tip().index.0;
        anchor(&mut rig, tip);
        cut_later(&mut rig, tip);
        rig.idle();
    }
    assert!(rig.wal.status().counters.segments_released > 8);
    die(rig, &medium);
    assert_eq!(report(&medium).unwrap().findings, []);
}
