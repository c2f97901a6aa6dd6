//! Logs that no logdrive wrote and no crash left: numbers at the ends of their integers, and slot files that
//! something cut short.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::*;
use logdrive_raft::Boot;
use logdrive_raft::io::Write;
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::OpenError;
use logdrive_wal::disk::{BLOCK_BYTES, Block, Disk, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, GROUP_HEADER_BYTES, GroupHeader, SLOT_HEADER_BLOCKS, SlotHeader,
};
use logdrive_wal::verify::{Report, verify_disk};
use xxhash_rust::xxh3::xxh3_128;

fn report(medium: &SimStorage) -> Result<Report, OpenError> {
    let mut disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    let slots = disk.slots().unwrap();
    verify_disk(&mut disk, &slots, false)
}

fn die(rig: Rig, medium: &SimStorage) {
    drop(rig);
    medium.crash(Crash::Process, Tear::Never);
}

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

fn block_of(medium: &SimStorage, slot: SlotId, number: u32) -> Block {
    let bytes = medium.contents(slot);
    Block(
        bytes[number as usize * BLOCK_BYTES..][..BLOCK_BYTES]
            .try_into()
            .unwrap(),
    )
}

fn header_of(medium: &SimStorage, slot: SlotId) -> SlotHeader {
    let read = SlotHeader::from_block(&block_of(medium, slot, 0), 0);
    read.unwrap().unwrap()
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
            assert_eq!(refused, end > u64::MAX >> 1, "{header:?}");
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
