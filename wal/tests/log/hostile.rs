//! Logs that no logdrive wrote and no crash left: numbers at the ends of their integers, and slot files that
//! something cut short.

use crate::common::*;
use logdrive_raft::Boot;
use logdrive_raft::io::Write;
use logdrive_sim::disk::SimStorage;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, GROUP_HEADER_BYTES, GroupHeader, SLOT_HEADER_BLOCKS, SlotHeader,
};
use logdrive_wal::{OpenError, Verdict};
use xxhash_rust::xxh3::xxh3_128;

/// A log with three entries in one slot, ended in order.
fn one_slot() -> SimStorage {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 3, 100);
    rig.idle();
    die(rig, &medium);
    medium
}

/// What is refused, it is refused with an error; what is not can be opened again.
fn survives(medium: &SimStorage) {
    for _ in 0..3 {
        if let Ok(report) = report(medium) {
            assert!(!report.to_string().is_empty());
        }
        let Ok(mut rig) = Rig::open(&medium.clone(), options(8)) else {
            return;
        };
        rig.idle();
        die(rig, medium);
    }
}

/// Whoever counts on from the last number of its integer has none left.
#[test]
fn a_header_that_says_the_last_number_there_is_does_not_end_the_process() {
    let original = one_slot();
    let slot = SlotId(0);
    let plain = header_of(&original, slot);
    for end in [u64::MAX, u64::MAX - 1, u64::MAX >> 1] {
        let forged = [
            SlotHeader {
                epoch: Boot(end),
                ..plain
            },
            SlotHeader {
                segment: end,
                ..plain
            },
            SlotHeader {
                segment: end,
                epoch: Boot(end),
                ..plain
            },
        ];
        for header in forged {
            let medium = original.copy(dice(1));
            for (number, copy) in (0..).zip(&header.to_blocks()) {
                medium.change(slot, number, |block| *block = copy.0);
            }
            let refused = report(&medium).is_err();
            let beyond = end > u64::MAX >> 1 || header.segment == end;
            assert_eq!(refused, beyond, "{header:?}");
            survives(&medium);
        }
    }
}

/// The fields of the first flush group's header, and of the records after it, every one with the highest value.
#[test]
fn a_flush_group_that_says_the_last_number_there_is_does_not_end_the_process() {
    let original = one_slot();
    let slot = SlotId(0);
    let stamper = header_of(&original, slot).stamper();
    let bytes = original.contents(slot);
    let groups = (SLOT_HEADER_BLOCKS..16).filter_map(|number| {
        let block = &bytes[number as usize * BLOCK_BYTES..];
        let (header, _) = GroupHeader::parse(block).ok()?;
        (header.blocks == 1).then_some((number, header))
    });
    let groups: Vec<(u32, GroupHeader)> = groups.collect();
    assert!(groups.len() > 3);
    for (number, header) in groups {
        let data_bytes = header.data_bytes();
        for at in (48..data_bytes - 4).step_by(4) {
            for width in [4, 8] {
                let medium = original.copy(dice(1));
                medium.change(slot, number, |bytes| {
                    let end = data_bytes.min(at + width);
                    bytes[at..end].fill(0xff);
                    let word = |at: usize| {
                        let word = bytes[at..at + 4].try_into().unwrap();
                        u32::from_le_bytes(word) as usize
                    };
                    let summed = word(92).saturating_add(word(96));
                    if summed <= BLOCK_DATA_BYTES - GROUP_HEADER_BYTES {
                        let digest = xxh3_128(&bytes[GROUP_HEADER_BYTES..][..summed]);
                        bytes[112..128].copy_from_slice(&digest.to_le_bytes());
                    }
                    let chain = xxh3_128(&bytes[..144]);
                    bytes[144..160].copy_from_slice(&chain.to_le_bytes());
                    let mut block = Block(*bytes);
                    stamper.stamp(&mut block, number, true);
                    *bytes = block.0;
                });
                survives(&medium);
            }
        }
    }
}

/// A log of three slots, the newest of them opened by a roll or by a recovery, whose end has an idle mark or not.
fn several_slots(by_recovery: bool, idle: bool) -> SimStorage {
    let medium = one_slot();
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    while rig.wal.status().segments < 3 - usize::from(by_recovery) {
        rig.append_entries(2, 1, 3000);
        rig.settle();
    }
    if by_recovery {
        // Without an idle mark nobody goes on in the same segment.
        die(rig, &medium);
        rig = Rig::open(&medium, options(8)).unwrap();
    }
    rig.append_entries(2, 1, 100);
    if idle {
        rig.idle();
    } else {
        rig.settle();
    }
    die(rig, &medium);
    medium
}

/// The slots that hold a header, the newest last.
fn headed(medium: &SimStorage) -> Vec<SlotHeader> {
    let files = medium.slot_files();
    let files = files.iter().filter(|file| file.blocks > 0);
    let headers = files.filter_map(|file| {
        SlotHeader::from_block(&block_of(medium, file.slot, 0), 0).unwrap_or(None)
    });
    let mut headers: Vec<SlotHeader> = headers.collect();
    headers.sort_by_key(|header| (header.epoch, header.segment));
    headers
}

fn cut(medium: &SimStorage, slot: SlotId, blocks: u32) {
    let bytes = medium.contents(slot);
    medium.set_contents(slot, &bytes[..blocks as usize * BLOCK_BYTES]);
}

/// Verify and opening refuse it for the same reason, name the file and what became of it, and change nothing.
fn assert_cut(medium: &SimStorage, slot: SlotId, blocks: u32) -> Verdict {
    let before: Vec<_> = medium.slot_files();
    let report = report(medium).unwrap();
    assert!(report.verdict > Verdict::Torn, "{blocks} blocks: {report}");
    let said = format!("the file was cut short: {blocks} of 16 blocks are left");
    let said = report
        .findings
        .iter()
        .find(|finding| finding.meaning == said);
    let said = said.unwrap_or_else(|| panic!("{blocks} blocks: {report}"));
    assert!(said.file.ends_with(slot.file_name()), "{said}");
    assert_eq!(said.offset_bytes, u64::from(blocks) * BLOCK_BYTES as u64);
    assert!(said.advice.contains("replace this replica"), "{said}");
    let refused = Rig::open(medium, options(8)).map(|rig| rig.recovery);
    match (report.verdict, refused.unwrap_err()) {
        (Verdict::Rot, OpenError::Rot { findings })
        | (Verdict::Suspect, OpenError::Suspect { findings }) => {
            assert_eq!(findings, report.findings);
        }
        (_, other) => panic!("{report}, and the opening says {other}"),
    }
    assert_eq!(medium.slot_files(), before);
    report.verdict
}

/// Of the newest slot one block was left, or two and the second copy of the header bad. The opening took the file for
/// one that was being made, used the same segment and epoch again in another slot, and grew the file: then the
/// old header was good again and won, and everything acknowledged since was gone, without a word.
#[test]
fn a_slot_that_was_cut_short_is_missed() {
    for (by_recovery, idle) in [(false, false), (false, true), (true, false), (true, true)] {
        let original = several_slots(by_recovery, idle);
        let newest = *headed(&original).last().unwrap();
        assert_eq!((newest.by_recovery, newest.segment), (by_recovery, 3));
        let slot = SlotId(newest.slot);
        let mut verdicts = Vec::new();
        for blocks in 1..16 {
            let medium = original.copy(dice(1));
            cut(&medium, slot, blocks);
            verdicts.push(assert_cut(&medium, slot, blocks));
            if blocks > 1 {
                for copy in 0..2 {
                    let medium = medium.copy(dice(1));
                    medium.change(slot, copy, |block| block.fill(0));
                    assert_cut(&medium, slot, blocks);
                }
            }
        }
        // No mark is left of it, or not the last one.
        assert_eq!(verdicts[0], Verdict::Suspect);
    }
}

#[test]
fn a_slot_that_was_cut_short_below_the_mark_is_rot() {
    let original = several_slots(false, true);
    for header in &headed(&original)[..2] {
        let slot = SlotId(header.slot);
        for blocks in 1..16 {
            let medium = original.copy(dice(1));
            cut(&medium, slot, blocks);
            assert_eq!(assert_cut(&medium, slot, blocks), Verdict::Rot);
        }
    }
}

#[test]
fn the_only_slot_cut_short_is_no_new_log() {
    let original = one_slot();
    for blocks in 1..16 {
        let medium = original.copy(dice(1));
        for other in medium.slot_files() {
            if other.slot != SlotId(0) {
                medium.set_contents(other.slot, &[]);
            }
        }
        cut(&medium, SlotId(0), blocks);
        assert_cut(&medium, SlotId(0), blocks);
        // Nor with nothing left to read.
        medium.change(SlotId(0), 0, |block| block[100] ^= 1);
        if blocks <= SLOT_HEADER_BLOCKS {
            medium.change(SlotId(0), blocks - 1, |block| block[100] ^= 1);
        }
        let refused = Rig::open(&medium, options(8)).map(|rig| rig.recovery);
        assert!(refused.is_err() || blocks == 1, "{blocks} blocks");
    }
}

/// The length of a slot that is being made is lost with the power, whatever it is.
#[test]
fn a_slot_that_was_never_in_use_may_have_any_length() {
    let original = several_slots(false, true);
    let used: Vec<u32> = headed(&original).iter().map(|header| header.slot).collect();
    let entries = Rig::open(&original.copy(dice(1)), options(8))
        .unwrap()
        .tip();
    let free = SlotId(used.iter().max().unwrap() + 1);
    for blocks in 0..=16 {
        let medium = original.copy(dice(1));
        medium.set_contents(free, &vec![0; blocks * BLOCK_BYTES]);
        for _ in 0..3 {
            assert_eq!(report(&medium).unwrap().verdict, Verdict::Clean);
            let mut rig = Rig::open(&medium, options(8)).unwrap();
            assert_eq!(rig.tip(), entries);
            rig.idle();
            die(rig, &medium);
        }
    }
}

/// A header that does not count, in a file that was cut short or in another slot than its own, uses up its boot.
#[test]
fn a_boot_that_any_header_bears_is_not_used_again() {
    let original = several_slots(false, true);
    let used = headed(&original);
    let newest = *used.last().unwrap();
    let free = SlotId(used.iter().map(|header| header.slot).max().unwrap() + 1);
    let stale = SlotHeader {
        slot: free.0,
        segment: newest.segment - 1,
        predecessor_end: used[0].predecessor_end,
        ..newest
    };
    let misplaced = SlotHeader {
        slot: free.0 + 1,
        epoch: Boot(newest.epoch.0 + 5),
        ..newest
    };
    for (there, boot) in [(stale, newest.epoch.0 + 1), (misplaced, newest.epoch.0 + 6)] {
        for blocks in [1, 2, 5, 16] {
            let medium = original.copy(dice(1));
            let mut bytes = vec![0; blocks * BLOCK_BYTES];
            bytes[..BLOCK_BYTES].copy_from_slice(&there.to_blocks()[0].0);
            medium.set_contents(free, &bytes);
            let Ok(mut rig) = Rig::open(&medium, options(8)) else {
                assert!(there == misplaced && blocks <= 2);
                continue;
            };
            assert_eq!(rig.recovery.boot, Boot(boot));
            rig.append_entries(2, 1, 100);
            rig.idle();
            let tip = rig.tip();
            die(rig, &medium);
            let rig = Rig::open(&medium, options(8)).unwrap();
            assert_eq!(rig.tip(), tip);
            assert_eq!(rig.recovery.boot, Boot(boot + 1));
        }
    }
}

/// Both headers were lost and the first flush group with them: it is no new log for that.
#[test]
fn a_block_anywhere_without_any_header_is_not_written_over() {
    let medium = one_slot();
    let blocks = SLOT_HEADER_BLOCKS..16;
    let held = |block: &u32| block_of(&medium, SlotId(0), *block).0 != [0; BLOCK_BYTES];
    let last = blocks.clone().rfind(held).unwrap();
    assert!(last > 3);
    for block in 0..last {
        medium.change(SlotId(0), block, |block| block.fill(0));
    }
    for refused in [
        report(&medium).map(drop),
        Rig::open(&medium, options(8)).map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, OpenError::NotALog { .. }), "{refused}");
        assert!(refused.to_string().contains("wal-00000.slot"), "{refused}");
    }
    // That the last block is lost too leaves nothing to tell.
    medium.change(SlotId(0), last, |block| block.fill(0));
    assert!(Rig::open(&medium, options(8)).is_ok());
}

/// Stamps and the places of entries know the low half of a segment's number. One header was enough: the opening
/// counted on from it, and the first entry that was appended ended the process.
#[test]
fn a_segment_whose_number_does_not_fit_into_a_stamp_does_not_end_the_process() {
    let original = one_slot();
    let slot = SlotId(0);
    let plain = header_of(&original, slot);
    for before in [u64::from(u32::MAX) - 1, u64::from(u32::MAX), (1 << 40) + 5] {
        let medium = original.copy(dice(1));
        let mut header = plain;
        header.by_recovery = false;
        header.segment = before + 1;
        header.oldest = before + 1;
        header.predecessor_end.segment = before;
        for (number, copy) in (0..).zip(&header.to_blocks()) {
            medium.change(slot, number, |block| *block = copy.0);
        }
        if let Ok(mut rig) = Rig::open(&medium, options(8)) {
            if rig.wal.groups().next().is_none() {
                rig.wal.create_group(&genesis(GROUP)).unwrap();
            }
            for _ in 0..20 {
                rig.append_entries(2, 1, 3000);
                rig.settle();
            }
            die(rig, &medium);
        }
        survives(&medium);
    }
}

/// The pool made its files after the highest number that it found. After the last one that there may be it made one
/// that the next opening did not see, and what was acknowledged in it was gone.
#[test]
fn a_file_with_the_last_number_there_is_does_not_hide_the_files_that_are_made_after_it() {
    let medium = one_slot();
    let last = SlotId(u32::MAX >> 1);
    for file in medium.slot_files() {
        if file.slot > SlotId(1) {
            medium.set_contents(file.slot, &[0; 16 * BLOCK_BYTES]);
        }
    }
    medium.set_contents(last, &[]);
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    while rig.wal.status().segments < 6 {
        rig.append_entries(2, 1, 3000);
        rig.settle();
    }
    let tip = rig.tip();
    die(rig, &medium);
    for file in medium.slot_files() {
        assert_eq!(
            SlotId::from_file_name(&file.slot.file_name()),
            Some(file.slot)
        );
    }
    let rig = Rig::open(&medium, options(8)).unwrap();
    assert_eq!(rig.tip(), tip);
}

/// A power cut in the first openings of a directory tore one copy of a header, whichever, and the other never
/// reached the medium: nothing was written yet, and a second cut like it leaves no more.
#[test]
fn one_torn_copy_of_the_first_header_is_no_log() {
    for copy in 0..SLOT_HEADER_BLOCKS {
        let medium = storage();
        let mut contents = vec![0; 64 << 10];
        let torn = copy as usize * BLOCK_BYTES + BLOCK_BYTES / 2;
        contents[torn..][..BLOCK_BYTES / 2].fill(7);
        medium.set_contents(SlotId(0), &contents);
        let rig = Rig::open(&medium, options(8)).unwrap();
        assert_eq!(rig.recovery.boot, Boot(1));
    }
}
