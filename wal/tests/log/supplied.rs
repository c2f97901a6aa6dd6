//! Entries that are missing are written once more, from a peer, and found there again.

use crate::common::cut::{self, anchor, cut_later, install};
use crate::common::*;
use crate::holes::{runs, spoil};
use logdrive_raft::io::Write;
use logdrive_raft::wire::{Decode, Encode, Reader};
use logdrive_raft::{Entry, EntryKind, Index, Membership, Term, UnsealedEntry};
use logdrive_sim::disk::{SimDiskOptions, SimStorage};
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::format::{GROUP_HEADER_BYTES, GroupHeader, Record, SLOT_HEADER_BLOCKS};
use logdrive_wal::{SupplyError, Verdict};

const LAST: u64 = 12;

/// A log of entries 1 to 12, three to a flush group and all of them marked; then these, and where each group lies.
fn log() -> (SimStorage, Vec<Entry>, Vec<(SlotId, u32)>) {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(24));
    rig.append(&[Write::HardState(vote(2, 1))]);
    for run in 0..LAST / 3 {
        match run {
            1 => append_configuration(&mut rig),
            _ => drop(rig.append_entries(2, 3, 400)),
        }
        rig.idle();
    }
    let all = rig.read_all();
    die(rig, &medium);
    let runs = runs(&medium);
    assert_eq!(runs.len() as u64, LAST / 3);
    (medium, all, runs)
}

/// Entries 4 to 6, of which 5 changes the membership.
fn append_configuration(rig: &mut Rig) {
    let before = rig.tip();
    let first = entry(GROUP, 2, &before, b"before");
    let changed = UnsealedEntry::bare(EntryKind::Configuration, &membership().to_bytes());
    let at = first.position();
    let changed = changed.seal(GROUP, Term(2), at.index.next(), at.chain);
    let last = entry(GROUP, 2, &changed.position(), b"behind");
    rig.append(&[Write::Entries(vec![first, changed, last])]);
}

fn membership() -> Membership {
    cut::membership(5)
}

fn open(medium: &SimStorage) -> Rig {
    Rig::open(medium, options(24)).unwrap_or_else(|error| panic!("{error}"))
}

/// As after a power cut: what was flushed, read past the page cache or from it.
fn again(medium: &SimStorage, direct: bool) -> Rig {
    let on = SimDiskOptions {
        direct,
        ..SimDiskOptions::default()
    };
    let copy = medium.flushed_only();
    let rig = Rig::open_with(&copy, options(24), on, 1);
    rig.unwrap_or_else(|error| panic!("direct: {direct}: {error}"))
}

fn missing(rig: &Rig) -> Vec<(u64, u64)> {
    let missing = rig.wal.missing(GROUP);
    missing
        .iter()
        .map(|run| (run.first.0, run.last.index.0))
        .collect()
}

fn entries_in(all: &[Entry], first: u64, last: u64) -> &[Entry] {
    &all[first as usize - 1..last as usize]
}

fn supply(rig: &mut Rig, all: &[Entry], first: u64, last: u64) {
    rig.wal
        .supply(GROUP, entries_in(all, first, last))
        .unwrap_or_else(|error| panic!("{error}"));
    rig.settle();
    rig.wal.take_supplied(GROUP);
}

#[test]
fn what_is_supplied_is_read_from_there_and_found_again() {
    let (medium, all, runs) = log();
    spoil(&medium, runs[1]);
    spoil(&medium, runs[3]);
    let mut rig = open(&medium);
    let restored = &rig.recovery.groups[&GROUP].restored;
    assert_eq!(restored.configurations, []);
    assert_eq!(missing(&rig), [(4, 6), (10, 12)]);
    let mut left = vec![(4, 6), (10, 12)];
    while let Some((first, last)) = left.pop() {
        supply(&mut rig, &all, first, last);
        assert_eq!(missing(&rig), left);
        assert_eq!(rig.wal.missing_count(GROUP), 3 * left.len());
        assert_eq!(rig.read_from(first, last), entries_in(&all, first, last));
        for direct in [true, false] {
            let mut again = again(&medium, direct);
            assert_eq!(missing(&again), left, "direct: {direct}");
            let found = &again.recovery.groups[&GROUP];
            let guard = found.restored.guard.map(|guard| guard.index);
            assert_eq!(guard, left.first().map(|_| Some(Index(LAST))));
            if left.is_empty() {
                assert_eq!(again.recovery.verdict, Verdict::Clean);
                let held = &found.restored.configurations;
                assert_eq!(*held, [(Index(5), membership())]);
                assert_eq!(again.read_all(), all);
            } else {
                assert_eq!(found.configurations_behind, []);
                let behind = again.wal.metas_after(GROUP, Index(6));
                assert_eq!(behind.len() as u64, LAST - 6);
            }
        }
    }
}

/// Of a run in which something is missing the configurations behind it are known.
#[test]
fn configurations_behind_what_is_missing_are_told() {
    let (medium, all, runs) = log();
    spoil(&medium, runs[0]);
    let mut rig = open(&medium);
    let found = &rig.recovery.groups[&GROUP];
    assert_eq!(found.restored.configurations, []);
    let held = &found.configurations_behind;
    assert_eq!(*held, [(Index(5), membership())]);
    assert_eq!(rig.wal.metas_after(GROUP, Index(0)), []);
    supply(&mut rig, &all, 1, 3);
    assert_eq!(rig.wal.metas_after(GROUP, Index(0)).len() as u64, LAST);
}

#[test]
fn only_what_is_on_the_path_is_taken() {
    let (medium, all, runs) = log();
    spoil(&medium, runs[1]);
    let mut rig = open(&medium);
    let refused = |rig: &mut Rig, entries: &[Entry]| {
        let result = rig.wal.supply(GROUP, entries);
        assert_eq!(result, Err(SupplyError::OffPath), "{entries:?}");
    };
    let before = all[2].position();
    let others = entries(GROUP, 2, &before, 3, 300);
    refused(&mut rig, &others);
    // Whether these are of the path shows with the last of them.
    refused(&mut rig, entries_in(&all, 4, 5));
    refused(&mut rig, entries_in(&all, 5, 6));
    refused(&mut rig, &[]);
    let gap = [all[3].clone(), all[5].clone()];
    refused(&mut rig, &gap);
    assert_eq!(missing(&rig), [(4, 6)]);
    supply(&mut rig, &all, 4, 6);
    assert_eq!(missing(&rig), []);
}

/// What is on its way there is of no use once the path goes elsewhere, and does no harm.
#[test]
fn the_path_may_change_while_it_is_supplied() {
    for change in 0..4 {
        let (medium, all, runs) = log();
        spoil(&medium, runs[1]);
        let mut rig = open(&medium);
        rig.wal.supply(GROUP, entries_in(&all, 4, 6)).unwrap();
        let third = all[2].position();
        match change {
            0 => drop(rig.append(&[Write::Entries(entries(GROUP, 3, &third, 2, 300))])),
            // A leader has the same.
            1 => drop(rig.append(&[Write::Entries(entries_in(&all, 4, 5).to_vec())])),
            2 => drop(rig.append(&[Write::Truncate(all[1].position())])),
            _ => install(&mut rig, all[4].position(), all[4].position()),
        }
        rig.settle();
        rig.wal.take_supplied(GROUP);
        let tip = rig.tip();
        assert_eq!(missing(&rig), []);
        let expected = rig.read_from(rig.wal.base(GROUP).unwrap().index.0 + 1, tip.index.0);
        for direct in [true, false] {
            let mut again = again(&medium, direct);
            assert_eq!((missing(&again), again.tip()), (vec![], tip));
            assert_eq!(again.read_all(), expected, "change {change}");
        }
    }
}

/// A base in the middle of what is supplied leaves the rest of it.
#[test]
fn a_cut_in_the_middle_of_what_is_supplied_leaves_the_rest() {
    let (medium, all, runs) = log();
    spoil(&medium, runs[1]);
    let mut rig = open(&medium);
    supply(&mut rig, &all, 4, 6);
    anchor(&mut rig, 5);
    cut_later(&mut rig, 5);
    rig.settle();
    for direct in [true, false] {
        let mut again = again(&medium, direct);
        assert_eq!(missing(&again), []);
        assert_eq!(again.wal.base(GROUP), Some(all[4].position()));
        assert_eq!(again.read_all(), entries_in(&all, 6, LAST));
    }
}

/// Entries that lie in a later segment than those behind them keep the segment that they were in: a log that began after it
/// would not know of them.
#[test]
fn segments_are_kept_for_what_was_supplied() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(40));
    rig.append(&[Write::HardState(vote(2, 1))]);
    for _ in 0..40 {
        rig.append_entries(2, 2, 3000);
        rig.idle();
    }
    let all = rig.read_all();
    let last = rig.tip().index.0;
    die(rig, &medium);
    let runs = runs(&medium);
    spoil(&medium, runs[3]);
    let open = |medium: &SimStorage| {
        Rig::open(medium, options(40)).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut rig = open(&medium);
    let lost = missing(&rig);
    let [(from, through)] = lost[..] else {
        panic!("{lost:?}");
    };
    supply(&mut rig, &all, from, through);
    let mut all = all;
    for at in [from - 1, through, through + 4, last] {
        anchor(&mut rig, at);
        cut_later(&mut rig, at);
        rig.idle();
        // Enough to roll, and to release what may go.
        for _ in 0..12 {
            rig.append_entries(2, 2, 3000);
            rig.idle();
        }
        let tip = rig.tip().index.0;
        all.extend(rig.read_from(all.len() as u64 + 1, tip));
        let copy = medium.flushed_only();
        let mut again = open(&copy);
        assert_eq!(missing(&again), [], "cut at {at}");
        assert_eq!(again.read_all(), entries_in(&all, at + 1, tip));
    }
    assert!(rig.wal.status().counters.segments_released > 2);
}

/// Those that are supplied may be bad in their turn.
#[test]
fn what_was_supplied_and_is_bad_again_is_missing_again() {
    let (medium, all, first) = log();
    spoil(&medium, first[1]);
    let mut rig = open(&medium);
    supply(&mut rig, &all, 4, 6);
    rig.idle();
    die(rig, &medium);
    let again = all_runs(&medium);
    let rewritten = again.iter().find(|(_, _, rewrite)| *rewrite).unwrap();
    spoil(&medium, (rewritten.0, rewritten.1));
    let mut rig = open(&medium);
    assert_eq!(missing(&rig), [(4, 6)]);
    supply(&mut rig, &all, 4, 6);
    assert_eq!(rig.read_all(), all);
}

/// Where runs lie, and whether these are such.
fn all_runs(medium: &SimStorage) -> Vec<(SlotId, u32, bool)> {
    let mut runs = Vec::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let mut block = SLOT_HEADER_BLOCKS;
        while let Some(data) = bytes.get(block as usize * BLOCK_BYTES..) {
            let Ok((header, _)) = GroupHeader::parse(data) else {
                break;
            };
            let mut input = Reader::new(&data[GROUP_HEADER_BYTES..]);
            for _ in 0..header.records {
                match Record::decode(&mut input).unwrap() {
                    Record::Entries(_) => runs.push((file.slot, block, false)),
                    Record::Rewrite(_) => runs.push((file.slot, block, true)),
                    _ => {}
                }
            }
            block += header.blocks;
        }
    }
    runs
}
