//! What goes bad while a log is open is found without being asked for, and written again.

use crate::common::cut::{anchor, cut_later};
use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_raft::{Entry, GroupId, Index};
use logdrive_sim::disk::{Crash, Fault, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::{FindingVerdict, Options, ReadError, ReadRequest, ScrubPace};

const EVERY_US: u64 = 10_000_000;

fn scrubbing() -> Options {
    Options {
        scrub: Some(ScrubPace {
            bytes_per_s: 1 << 20,
            every_us: EVERY_US,
        }),
        ..options(24)
    }
}

/// A log of several segments.
fn log() -> (SimStorage, Rig, Vec<Entry>) {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, scrubbing());
    rig.append(&[Write::HardState(vote(2, 1))]);
    for number in 0..40_u64 {
        let prev = rig.tip();
        let payload = [format!("entry {number:03} ").repeat(200).into_bytes()].concat();
        rig.append(&[Write::Entries(vec![entry(GROUP, 2, &prev, &payload)])]);
        rig.settle();
    }
    let all = rig.read_all();
    (medium, rig, all)
}

/// Turns until so many passes are done.
fn passes(rig: &mut Rig, count: u64) {
    let goal = rig.wal.status().counters.scrub_passes + count;
    while rig.wal.status().counters.scrub_passes < goal {
        rig.step();
    }
}

/// The blocks that hold so much of an entry.
fn blocks_of(medium: &SimStorage, number: u64) -> Vec<(SlotId, u32)> {
    let mark = format!("entry {number:03} entry {number:03}");
    let mut found = Vec::new();
    for file in medium.slot_files() {
        for (block, bytes) in (0..).zip(medium.contents(file.slot).chunks(BLOCK_BYTES)) {
            if bytes
                .windows(mark.len())
                .any(|here| here == mark.as_bytes())
            {
                found.push((file.slot, block));
            }
        }
    }
    found
}

fn spoil(medium: &SimStorage, (slot, block): (SlotId, u32)) {
    medium.change(slot, block, |bytes| bytes[1000] ^= 1);
}

/// Has everything that is wanted written again, as a peer would.
fn supply_all(rig: &mut Rig, all: &[Entry]) -> u64 {
    let mut supplied = 0;
    while let Some((run, before)) = rig.wal.wanted(GROUP) {
        assert_eq!(before.index.next(), run.first);
        let entries = &all[run.first.0 as usize - 1..run.last.index.0 as usize];
        supplied += entries.len() as u64;
        rig.wal.supply(GROUP, entries).unwrap();
        rig.settle();
        rig.wal.take_supplied(GROUP);
    }
    assert_eq!(rig.wal.wanted_count(GROUP), 0);
    supplied
}

#[test]
fn what_is_as_it_was_written_is_read_at_its_pace_and_nothing_is_said() {
    let (_, mut rig, _) = log();
    let began = rig.now;
    passes(&mut rig, 3);
    let counters = rig.wal.status().counters;
    // The first one begins only after a while.
    assert!(began + 2 * EVERY_US <= rig.now, "{} us", rig.now - began);
    let segments = rig.wal.status().segments as u64 - 1;
    assert!(segments > 2);
    let slot = rig.wal.status().slot_bytes;
    assert!(counters.scrubbed_bytes <= 3 * segments * slot);
    assert!(counters.scrubbed_bytes >= 3 * (segments - 1) * slot / 2);
    assert!(rig.wal.take_findings().is_empty());
    assert_eq!(rig.wal.wanted(GROUP), None);
}

#[test]
fn what_goes_bad_at_rest_is_found_and_written_again() {
    let (medium, mut rig, all) = log();
    spoil(&medium, blocks_of(&medium, 3)[0]);
    passes(&mut rig, 2);
    let findings = rig.wal.take_findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].verdict, FindingVerdict::Rot);
    assert!(findings[0].meaning.contains("went bad at rest"));
    let supplied = supply_all(&mut rig, &all);
    assert!((1..20).contains(&supplied), "{supplied}");
    assert_eq!(rig.read_all(), all);
    // It is said once, and not wanted again.
    passes(&mut rig, 2);
    assert!(rig.wal.take_findings().is_empty());
    assert_eq!(rig.wal.wanted(GROUP), None);
    drop(rig);
    medium.crash(Crash::Power, Tear::Never);
    let mut again = Rig::open(&medium, options(24)).unwrap();
    assert_eq!(again.wal.missing_count(GROUP), 0);
    let mended = |finding: &logdrive_wal::Finding| finding.verdict == FindingVerdict::Mended;
    assert!(again.recovery.findings.iter().all(mended));
    assert_eq!(again.read_all(), all);
}

/// Also where it is needed before it is looked for.
#[test]
fn what_cannot_be_read_when_it_is_needed_is_wanted() {
    let (medium, mut rig, all) = log();
    spoil(&medium, blocks_of(&medium, 3)[0]);
    let request = ReadRequest {
        id: 1,
        group: GROUP,
        from: Index(1),
        through: Index(10),
        bytes_max: 100_000,
    };
    rig.wal.read(request).unwrap();
    let done = loop {
        rig.turn();
        if let Some(done) = rig.wal.take_reads().pop() {
            break done;
        }
        rig.step();
    };
    assert!(matches!(done.result, Err(ReadError::Rot(_))), "{done:?}");
    supply_all(&mut rig, &all);
    assert_eq!(rig.read_all(), all);
}

/// A read that fails once says nothing of the medium.
#[test]
fn a_part_that_cannot_be_read_is_read_again_block_by_block() {
    let (medium, mut rig, _) = log();
    passes(&mut rig, 1);
    medium.inject(Fault::ReadError);
    passes(&mut rig, 1);
    assert!(rig.wal.take_findings().is_empty());
}

/// Nobody needs what was cut, and its segments go.
#[test]
fn what_is_cut_or_replaced_is_not_wanted() {
    let (medium, mut rig, _) = log();
    spoil(&medium, blocks_of(&medium, 3)[0]);
    passes(&mut rig, 2);
    assert!(rig.wal.wanted_count(GROUP) > 0);
    anchor(&mut rig, 38);
    cut_later(&mut rig, 38);
    rig.settle();
    assert_eq!(rig.wal.wanted(GROUP), None);
    assert_eq!(rig.wal.wanted(GroupId(2)), None);

    let (medium, mut rig, all) = log();
    spoil(&medium, blocks_of(&medium, 3)[0]);
    passes(&mut rig, 2);
    let left = |rig: &Rig| rig.wal.wanted_count(GROUP);
    rig.append(&[Write::Truncate(all[0].position())]);
    assert!(left(&rig) <= 1, "{}", left(&rig));
    rig.append(&[Write::Truncate(genesis(GROUP).origin())]);
    assert_eq!(rig.wal.wanted(GROUP), None);
}
