//! A log that was cut at any byte reopens; a log with any one byte changed is judged as what it is.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use logdrive_raft::Boot;
use logdrive_raft::io::Write;
use logdrive_raft::wire::{Decode, Reader};
use logdrive_sim::disk::SimStorage;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, GROUP_HEADER_BYTES, GroupHeader, Place, Record, SlotHeader,
};
use logdrive_wal::verify::Report;
use logdrive_wal::{FindingVerdict, OpenError, Verdict};

const SLOT_BYTES: usize = 64 << 10;
const SLOTS: usize = 3;

/// A log that fills two slots and half of a third, all of it durable and said to be.
fn three_slots(boots: u64, fill: usize) -> SimStorage {
    let medium = storage();
    for _ in 1..boots {
        // Nothing was acknowledged in these, so each is taken again by the next.
        drop(Rig::open(&medium, options(8)).unwrap());
    }
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    rig.wal.create_group(&genesis(GROUP)).unwrap();
    rig.append(&[Write::HardState(vote(2, 1))]);
    let mut more = 3;
    while more > 0 {
        rig.append_entries(2, 2, fill);
        rig.settle();
        more -= usize::from(rig.wal.status().segments == SLOTS);
    }
    rig.idle();
    drop(rig);
    medium.crash(
        logdrive_sim::disk::Crash::Process,
        logdrive_sim::disk::Tear::Never,
    );
    medium
}

/// The slots of a log in the order of its segments, as bytes.
fn in_log_order(medium: &SimStorage) -> Vec<(SlotId, Vec<u8>)> {
    let mut slots: Vec<(u64, SlotId, Vec<u8>)> = Vec::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let block = |at: usize| Block(bytes[at * BLOCK_BYTES..][..BLOCK_BYTES].try_into().unwrap());
        let header = SlotHeader::from_block(&block(0), 0);
        if let Ok(Some(header)) = header {
            slots.push((header.segment, file.slot, bytes));
        }
    }
    slots.sort();
    assert_eq!(slots.len(), SLOTS, "a log of three slots");
    slots
        .into_iter()
        .map(|(_, slot, bytes)| (slot, bytes))
        .collect()
}

fn last_index(report: &Report) -> u64 {
    report.groups.first().map_or(0, |group| group.last_index.0)
}

/// Where each flush group ends, counted in bytes from the beginning of the log, and the last entry then.
fn group_ends(log: &[(SlotId, Vec<u8>)]) -> Vec<(usize, u64)> {
    let (mut ends, mut last) = (Vec::new(), 0);
    for (number, (_, bytes)) in log.iter().enumerate() {
        let mut block = 2;
        while block * BLOCK_BYTES < bytes.len() {
            let data = &bytes[block * BLOCK_BYTES..];
            let Ok((header, _)) = GroupHeader::parse(data) else {
                break;
            };
            let mut table = Reader::new(&data[GROUP_HEADER_BYTES..]);
            for _ in 0..header.records {
                if let Record::Entries(run) = Record::decode(&mut table).unwrap() {
                    last = run.last.index.0;
                }
            }
            block += header.blocks as usize;
            ends.push((number * SLOT_BYTES + block * BLOCK_BYTES, last));
        }
    }
    ends
}

/// Runs `each` for chunks of `0..total` on every core.
fn in_chunks(total: usize, chunk: usize, each: impl Fn(std::ops::Range<usize>) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let from = next.fetch_add(chunk, Ordering::Relaxed);
                    if from >= total {
                        return;
                    }
                    each(from..total.min(from + chunk));
                }
            });
        }
    });
}

/// Cuts the log at every byte; what follows is what `before` holds there.
fn cut_everywhere(before: Option<&SimStorage>) {
    // Its epoch is higher than that of whatever was there before.
    let whole = three_slots(3, 1500);
    let mut log = in_log_order(&whole);
    let ends = group_ends(&log);
    let older = before.map(|before| report(before).unwrap());
    let before = before.map(in_log_order);
    // What was never written still holds what was there before.
    for ((_, new), (_, old)) in log.iter_mut().zip(before.iter().flatten()) {
        let blocks = new.chunks_mut(BLOCK_BYTES).zip(old.chunks(BLOCK_BYTES));
        for (new, old) in blocks.filter(|(new, _)| new.iter().all(|byte| *byte == 0)) {
            new.copy_from_slice(old);
        }
    }
    in_chunks(SLOTS * SLOT_BYTES, SLOT_BYTES / 4, |range| {
        let medium = storage();
        for (number, (slot, bytes)) in log.iter().enumerate() {
            let mut contents = match &before {
                Some(before) => before[number].1.clone(),
                None => vec![0; SLOT_BYTES],
            };
            let here = range
                .start
                .saturating_sub(number * SLOT_BYTES)
                .min(SLOT_BYTES);
            contents[..here].copy_from_slice(&bytes[..here]);
            medium.set_contents(*slot, &contents);
        }
        for cut in range {
            check_cut(&medium, cut, &ends, older.as_ref());
            let (slot, bytes) = &log[cut / SLOT_BYTES];
            let at = cut % SLOT_BYTES;
            let block = u32::try_from(at / BLOCK_BYTES).unwrap();
            medium.change(*slot, block, |block| block[at % BLOCK_BYTES] = bytes[at]);
        }
    });
}

fn check_cut(medium: &SimStorage, cut: usize, ends: &[(usize, u64)], older: Option<&Report>) {
    let report = report(medium).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
    // As long as the first header is not whole, the log is the one that was there before, all of it: its other
    // copy is.
    if let Some(older) = older.filter(|_| cut < BLOCK_BYTES) {
        assert_eq!(report.verdict, older.verdict, "cut at {cut}: {report}");
        assert_eq!(report.groups, older.groups, "cut at {cut}: {report}");
        assert_eq!(report.entries, older.entries, "cut at {cut}: {report}");
        let healable =
            |finding: &logdrive_wal::Finding| finding.verdict == FindingVerdict::Healable;
        assert!(
            report.findings.iter().all(healable),
            "cut at {cut}: {report}"
        );
        if cut.is_multiple_of(487) {
            let mut rig = Rig::open(&medium.copy(dice(1)), options(8)).unwrap();
            let last = older.groups[0].last_index.0;
            assert_eq!(rig.read_all().len() as u64, last, "cut at {cut}");
        }
        return;
    }
    let kept = ends.iter().take_while(|(end, _)| *end <= cut).last();
    let kept = kept.map_or(0, |(_, last)| *last);
    assert_eq!(last_index(&report), kept, "cut at {cut}: {report}");
    match report.verdict {
        Verdict::Clean | Verdict::Torn => {}
        // The stamp is there and a part of its checksum is not. No disk writes fewer than 512 bytes.
        Verdict::Suspect => assert!(
            cut % BLOCK_BYTES > BLOCK_BYTES - 8,
            "cut at {cut}: {report}"
        ),
        Verdict::Rot => panic!("cut at {cut}: {report}"),
    }
    if cut.is_multiple_of(487) && report.verdict != Verdict::Suspect {
        let copy = medium.copy(dice(1));
        let mut rig = Rig::open(&copy, options(8)).unwrap();
        if kept > 0 {
            assert_eq!(rig.read_all().len() as u64, kept);
            rig.append_entries(9, 1, 100);
            rig.settle();
        }
        drop(rig);
        assert!(
            Rig::open(&copy, options(8)).is_ok(),
            "cut at {cut}, the second time"
        );
    }
}

#[test]
fn a_log_cut_at_any_byte_reopens_where_zeros_follow() {
    cut_everywhere(None);
}

#[test]
fn a_log_cut_at_any_byte_reopens_where_an_older_log_follows() {
    cut_everywhere(Some(&three_slots(1, 1800)));
}

/// What a changed byte of this block must be called.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// It was durable, and holds entries, or how the log or a group began.
    Rot,
    /// It was durable, and nobody misses it.
    Mended,
    /// It was durable, and there is another copy.
    Healable,
    /// It may have been.
    Suspect,
    /// Nothing was ever there.
    Clean,
}

#[test]
fn any_one_changed_byte_is_judged_as_what_it_is() {
    let whole = three_slots(1, 1500);
    let log = in_log_order(&whole);
    let mut mark = Place::default();
    let mut end = 0;
    let mut missed = std::collections::BTreeSet::new();
    for (number, (_, bytes)) in log.iter().enumerate() {
        for block in 2..SLOT_BYTES / BLOCK_BYTES {
            if let Ok((header, _)) = GroupHeader::parse(&bytes[block * BLOCK_BYTES..]) {
                mark = mark.max(header.mark);
                end = number * SLOT_BYTES / BLOCK_BYTES + header.end().block as usize;
                let table = &bytes[block * BLOCK_BYTES + GROUP_HEADER_BYTES..];
                let mut table = Reader::new(table);
                let needed = (0..header.records).any(|_| {
                    let record = Record::decode(&mut table).unwrap();
                    matches!(record, Record::Entries(_) | Record::Genesis(_))
                });
                if needed || header.number == 1 {
                    let blocks = block..block + header.blocks as usize;
                    missed.extend(blocks.map(|block| number * SLOT_BYTES / BLOCK_BYTES + block));
                }
            }
        }
    }
    assert_eq!(mark.segment, SLOTS as u64);
    let expect = |byte: usize| {
        let (number, block) = (byte / SLOT_BYTES, byte % SLOT_BYTES / BLOCK_BYTES);
        let place = Place {
            segment: number as u64 + 1,
            block: u32::try_from(block).unwrap(),
        };
        match byte / BLOCK_BYTES {
            _ if block < 2 => Expect::Healable,
            block if place < mark && missed.contains(&block) => Expect::Rot,
            _ if place < mark => Expect::Mended,
            // The last mark, which no other covers.
            block if block < end => Expect::Suspect,
            // Where the next group would begin, a write that was cut short is no news. Only its end is.
            block if block == end && byte % BLOCK_BYTES >= BLOCK_DATA_BYTES => Expect::Suspect,
            _ => Expect::Clean,
        }
    };
    let whole_index = last_index(&report(&whole).unwrap());
    in_chunks(SLOTS * SLOT_BYTES, SLOT_BYTES / 4, |range| {
        let medium = whole.copy(dice(1));
        for byte in range {
            let slot = log[byte / SLOT_BYTES].0;
            let offset = (byte % SLOT_BYTES) as u64;
            let mask = [0x01, 0x80, 0xff, 0x10][byte % 4];
            medium.flip(slot, offset, mask);
            let report = report(&medium).unwrap_or_else(|error| panic!("byte {byte}: {error}"));
            let expected = expect(byte);
            let verdict = match expected {
                Expect::Rot => Verdict::Rot,
                Expect::Suspect => Verdict::Suspect,
                Expect::Healable | Expect::Mended | Expect::Clean => Verdict::Clean,
            };
            assert_eq!(
                report.verdict, verdict,
                "byte {byte}, {expected:?}: {report}"
            );
            if expected == Expect::Clean {
                assert_eq!(report.findings, [], "byte {byte}");
            } else {
                let place = |finding: &logdrive_wal::Finding| {
                    finding.file.ends_with(slot.file_name())
                        && finding.offset_bytes / BLOCK_BYTES as u64 == offset / BLOCK_BYTES as u64
                };
                assert!(report.findings.iter().any(place), "byte {byte}: {report}");
            }
            if byte % 487 == 0 {
                check_opening(&medium.copy(dice(1)), expected, whole_index);
            }
            medium.flip(slot, offset, mask);
        }
    });
}

fn check_opening(medium: &SimStorage, expected: Expect, whole_index: u64) {
    let opened = Rig::open(medium, options(8));
    match (expected, opened) {
        (Expect::Rot, Err(OpenError::Rot { findings })) => assert!(!findings.is_empty()),
        (Expect::Rot, Ok(rig)) => check_holed(&rig, whole_index),
        (Expect::Mended, Ok(rig)) => {
            assert_eq!(rig.recovery.verdict, Verdict::Clean);
            assert_eq!(rig.recovery.findings[0].verdict, FindingVerdict::Mended);
            assert_eq!(rig.tip().index.0, whole_index);
        }
        (Expect::Suspect, Ok(rig)) => {
            assert_eq!(rig.recovery.verdict, Verdict::Suspect);
            assert_eq!(rig.recovery.findings[0].verdict, FindingVerdict::Guarded);
            // It was the last mark, or nothing: of one flush group that cannot be read all has to be feared.
            assert_eq!(rig.tip().index.0, whole_index);
            let guard = rig.recovery.groups[&GROUP].restored.guard.unwrap();
            assert_eq!((guard.term, guard.index), (rig.tip().term, None));
        }
        (Expect::Healable, Ok(rig)) => {
            assert_eq!(rig.recovery.findings[0].verdict, FindingVerdict::Healable);
            assert_eq!(rig.tip().index.0, whole_index);
            drop(rig);
            assert_eq!(report(medium).unwrap().findings, [], "it was put right");
        }
        (Expect::Clean, Ok(rig)) => assert_eq!(rig.tip().index.0, whole_index),
        (_, other) => panic!("{expected:?}: {:?}", other.map(|rig| rig.recovery)),
    }
}

/// The header of the segment in a slot.
fn header_of(medium: &SimStorage, slot: SlotId, copy: u32) -> Option<SlotHeader> {
    let contents = medium.contents(slot);
    let block = contents[copy as usize * BLOCK_BYTES..][..BLOCK_BYTES].try_into();
    SlotHeader::from_block(&Block(block.unwrap()), copy).unwrap()
}

#[test]
fn a_copy_of_a_header_that_never_landed_is_written_by_the_next_opening() {
    let whole = three_slots(2, 1500);
    let log = in_log_order(&whole);
    // The last segment as a power cut during the roll leaves it: a header and the first flush group.
    let rolled = whole.copy(dice(1));
    let (last, bytes) = &log[SLOTS - 1];
    let (first, _) = GroupHeader::parse(&bytes[2 * BLOCK_BYTES..]).unwrap();
    let mut contents = vec![0; SLOT_BYTES];
    let kept = first.end().block as usize * BLOCK_BYTES;
    contents[..kept].copy_from_slice(&bytes[..kept]);
    rolled.set_contents(*last, &contents);
    for (medium, slot, durable) in [(&rolled, *last, false), (&whole, log[1].0, true)] {
        let header = header_of(medium, slot, 0).unwrap();
        let older = SlotHeader {
            segment: header.segment - 1,
            epoch: Boot(header.epoch.0 - 1),
            predecessor_end: Place {
                segment: header.segment - 2,
                ..header.predecessor_end
            },
            ..header
        };
        let absent = [Block::ZERO; 2];
        for (copy, there) in [
            (0, absent),
            (1, absent),
            (0, older.to_blocks()),
            (1, older.to_blocks()),
        ] {
            let medium = medium.copy(dice(1));
            let there = there[copy as usize].0;
            medium.change(slot, copy, |block| *block = there);
            let before = report(&medium).unwrap();
            assert!(before.verdict <= Verdict::Torn, "{before}");
            let said = before
                .to_string()
                .contains("one copy of the slot's header is missing");
            assert_eq!(said, durable, "{before}");
            drop(Rig::open(&medium, options(8)).unwrap());
            for copy in [0, 1] {
                assert_eq!(header_of(&medium, slot, copy), Some(header), "copy {copy}");
            }
            assert_eq!(report(&medium).unwrap().findings, []);
        }
    }
}

#[test]
fn a_changed_byte_of_what_no_mark_covers_yet_is_suspect_and_never_torn() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 3, 3000);
    rig.settle();
    drop(rig);
    let before = report(&medium).unwrap();
    assert_eq!((before.verdict, last_index(&before)), (Verdict::Clean, 3));
    let log = medium.contents(SlotId(0));
    let headers = (2..16).filter_map(|block| {
        let (header, _) = GroupHeader::parse(&log[block * BLOCK_BYTES..]).ok()?;
        Some((block, header))
    });
    let headers: Vec<(usize, GroupHeader)> = headers.collect();
    let mark = headers.iter().map(|(_, header)| header.mark).max().unwrap();
    let (last, header) = headers.last().unwrap();
    assert!(u32::try_from(*last).unwrap() >= mark.block && header.blocks > 1);
    for byte in last * BLOCK_BYTES..(last + header.blocks as usize) * BLOCK_BYTES {
        medium.flip(SlotId(0), byte as u64, 0x20);
        assert_eq!(
            report(&medium).unwrap().verdict,
            Verdict::Suspect,
            "byte {byte}"
        );
        medium.flip(SlotId(0), byte as u64, 0x20);
    }
}

#[test]
fn a_segment_that_is_gone_is_missed() {
    let whole = three_slots(1, 1500);
    for number in 0..SLOTS - 1 {
        let medium = whole.copy(dice(1));
        let slot = in_log_order(&medium)[number].0;
        medium.set_contents(slot, &vec![0; SLOT_BYTES]);
        let report = report(&medium).unwrap();
        assert_eq!(report.verdict, Verdict::Rot, "{report}");
        let missing = format!("segment {} is missing", number + 1);
        assert!(report.to_string().contains(&missing), "{report}");
    }
}
