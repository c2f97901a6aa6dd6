//! What a slot that is taken again holds beyond the new segment.

use crate::common::*;
use logdrive_sim::disk::{Crash, Fault, FaultRates, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::{OpenError, Wal};

/// The slot of the log, the free one that the next opening takes, and the one that a roll takes then.
const USED: SlotId = SlotId(0);
const FREE: SlotId = SlotId(1);
const FREE_TOO: SlotId = SlotId(2);

const SLOT_BLOCKS: u32 = 16;

/// A log whose process died, with a free slot that the next opening takes.
fn died() -> SimStorage {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append_entries(1, 3, 100);
    rig.settle();
    while rig.wal.status().slots_free < 2 {
        rig.step();
    }
    drop(rig);
    medium.crash(Crash::Process, Tear::Never);
    medium
}

/// The block after the last one that is written in the slot.
fn end_of(medium: &SimStorage, slot: SlotId) -> u32 {
    let bytes = medium.contents(slot);
    let written = |block: &[u8]| block.iter().any(|byte| *byte != 0);
    let last = bytes.chunks(BLOCK_BYTES).rposition(written).unwrap();
    u32::try_from(last).unwrap() + 1
}

/// The last sector is new, the ones before are the zeros that were there.
fn tear(medium: &SimStorage, slot: SlotId, block: u32) {
    medium.change(slot, block, |block| {
        block[BLOCK_BYTES - 512..].fill(0x5a);
    });
}

fn is_zero(medium: &SimStorage, slot: SlotId, block: u32) -> bool {
    let from = block as usize * BLOCK_BYTES;
    medium.contents(slot)[from..from + BLOCK_BYTES] == [0; BLOCK_BYTES]
}

/// Opens it, as a later opening has to after a power cut, and finds everything.
fn reopen(medium: &SimStorage, entries: u64) -> Rig {
    medium.crash(Crash::Power, Tear::Never);
    match Rig::open(medium, options(8)) {
        Ok(mut rig) => {
            assert_eq!(rig.tip().index.0, entries);
            assert_eq!(rig.read_all().len() as u64, entries);
            rig
        }
        Err(error @ OpenError::Suspect { .. }) => panic!("opened before, and now {error}"),
        Err(error) => panic!("{error}"),
    }
}

/// Appends one entry after the other until the log goes on in this slot, and a few more, the power failing after
/// each of them.
fn roll_into(rig: &mut Rig, medium: &SimStorage, slot: SlotId) {
    let header = |medium: &SimStorage| medium.contents(slot)[..BLOCK_BYTES].to_vec();
    let before = header(medium);
    let mut more = 0;
    while more < 4 {
        rig.append_entries(1, 1, 3000);
        rig.settle();
        more += u32::from(header(medium) != before);
        reopen(&medium.copy(dice(1)), rig.tip().index.0);
    }
}

/// A power cut tore a block of a segment whose header never landed. The segment was dropped, its slot is free,
/// and the next opening takes it. The torn block is nothing of the new segment. But if the new segment ends
/// just before it when the power fails again, the next opening calls it suspect: a second recovery judges
/// otherwise than the first, which had opened the log, and the node does not start any more.
#[test]
fn a_block_that_was_torn_in_a_free_slot_does_not_make_the_next_opening_suspect() {
    let original = died();
    let probe = original.copy(dice(1));
    drop(Rig::open(&probe, options(8)).unwrap());
    assert!(
        probe.contents(FREE)[..BLOCK_BYTES] != [0; BLOCK_BYTES],
        "it was taken"
    );
    let end = end_of(&probe, FREE);

    let medium = original.copy(dice(1));
    tear(&medium, FREE, end);
    let rig = Rig::open(&medium, options(8)).unwrap();
    assert_eq!(rig.tip().index.0, 3);
    drop(rig);
    reopen(&medium, 3);
}

/// The power fails, or the disk does, while an opening clears the slot that it is going to take. Nothing says that
/// the slot is taken before it is clear, and the next opening begins again.
#[test]
fn an_opening_that_ends_while_it_clears_a_slot_is_followed_by_one_that_clears_the_rest() {
    let original = died();
    let (mut cleared_in_part, mut failed) = (0, 0);
    for seed in 0..200 {
        let medium = original.copy(dice(seed));
        let torn = 2..SLOT_BLOCKS;
        for block in torn.clone() {
            tear(&medium, FREE, block);
        }
        let rates = FaultRates {
            flush_error_ppm: 200_000,
            ..FaultRates::default()
        };
        for attempt in 0..4 {
            medium.set_dice(dice(seed * 10 + attempt));
            let rates = if attempt == 0 {
                FaultRates::default()
            } else {
                rates
            };
            let faulty = SimDiskOptions {
                rates,
                ..SimDiskOptions::default()
            };
            let disk = SimDisk::new(medium.clone(), faulty);
            if attempt == 0 {
                // The first write of an opening that has something to clear.
                disk.medium().inject(Fault::WriteError);
            }
            let opened = Wal::open(disk, options(8));
            assert!(opened.is_err() || attempt > 0);
            failed += u32::from(opened.is_err());
            drop(opened);
            medium.crash(Crash::Power, Tear::Sectors);
            let left = torn.clone().filter(|block| !is_zero(&medium, FREE, *block));
            let left = left.count();
            if attempt == 0 {
                assert!(is_zero(&medium, FREE, 0) && is_zero(&medium, FREE, 1));
                cleared_in_part += u32::from(0 < left && left < torn.len());
            }
        }
        let rig = Rig::open(&medium, options(8)).unwrap();
        assert_eq!(rig.tip().index.0, 3, "seed {seed}");
        drop(rig);
        reopen(&medium, 3);
    }
    assert!(
        cleared_in_part > 50 && failed > 250,
        "{cleared_in_part}, {failed}"
    );
}

/// What an opening does not take itself a roll takes later.
#[test]
fn a_slot_that_a_roll_takes_was_cleared_too() {
    let medium = died();
    for block in 2..SLOT_BLOCKS {
        tear(&medium, FREE_TOO, block);
    }
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    roll_into(&mut rig, &medium, FREE_TOO);
}

/// The segment of an opening in which nothing was acknowledged is replaced by that of the next one, and its slot
/// is free only then.
#[test]
fn a_slot_that_is_held_back_during_an_opening_is_cleared_after_it() {
    let medium = died();
    // The first one raises the term, and that may have been acknowledged.
    for _ in 0..2 {
        drop(Rig::open(&medium, options(8)).unwrap());
        medium.crash(Crash::Power, Tear::Never);
    }
    for block in end_of(&medium, FREE_TOO) + 1..SLOT_BLOCKS {
        tear(&medium, FREE_TOO, block);
    }
    let before = medium.contents(FREE_TOO);
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    // It is no longer in use, and was not taken.
    assert!(before[..BLOCK_BYTES] != [0; BLOCK_BYTES]);
    assert!(is_zero(&medium, FREE_TOO, 0) && is_zero(&medium, FREE_TOO, 1));
    assert_eq!(rig.wal.status().segments, 3, "it was replaced");
    roll_into(&mut rig, &medium, FREE_TOO);
}

/// An idle mark was durable, of the next groups a torn block is all that landed, and not the first: the log ends
/// with the mark. What is written there next must not end before that block.
#[test]
fn a_log_does_not_go_on_before_a_block_that_was_torn() {
    for direct in [true, false] {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, options(8));
        rig.append_entries(1, 3, 100);
        rig.idle();
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        for block in end_of(&medium, USED) + 1..SLOT_BLOCKS {
            tear(&medium, USED, block);
        }
        let before = medium.contents(USED);
        let disk = SimDiskOptions {
            direct,
            ..SimDiskOptions::default()
        };
        drop(Rig::open_with(&medium, options(8), disk, 1).unwrap());
        assert!(
            medium.contents(USED) == before,
            "it counts and is left alone"
        );
        reopen(&medium, 3);
    }
}

/// Slots are read and cleared in parts: those that the judgement has read whole, and those that it has not, as
/// after a first opening that did not get as far as its verdict.
#[test]
fn a_slot_of_many_parts_is_cleared_all_over() {
    let large = || options(8).with_slots(4 << 20, 8);
    let many = 1024;
    let torn = |block: &u32| ![511, 700].contains(block);
    for (begun, slot) in [(true, FREE), (false, USED)] {
        let medium = storage();
        let mut rig = Rig::open(&medium, large()).unwrap();
        while rig.wal.status().slots_free < 2 {
            rig.step();
        }
        drop(rig);
        medium.crash(Crash::Process, Tear::Never);
        if !begun {
            for block in 2..end_of(&medium, USED) {
                medium.change(USED, block, |block| block.fill(0));
            }
        }
        for block in (6..many).filter(torn) {
            tear(&medium, slot, block);
        }
        drop(Rig::open(&medium, large()).unwrap());
        let bytes = medium.contents(slot);
        assert_eq!(bytes.len(), many as usize * BLOCK_BYTES);
        assert!(bytes[6 * BLOCK_BYTES..].iter().all(|byte| *byte == 0));
    }
}

/// A roll writes both copies of a header at once. Where a disk writes in order a power cut may tear each of them: the
/// front is new and the stamp the one that was there. Over those of an older header, or over a copy that was torn
/// before, that made two bad copies, which is suspect, and a node on such a disk did not start any more.
#[test]
fn a_roll_that_is_torn_leaves_no_slot_with_two_bad_copies() {
    let stale = |number: u32| {
        let header = logdrive_wal::format::SlotHeader {
            by_recovery: false,
            compatible: 0,
            log_uuid: fresh().log_uuid,
            cluster: identity().cluster,
            node: identity().node,
            incarnation: fresh().incarnation,
            slot: FREE_TOO.0,
            slot_blocks: SLOT_BLOCKS,
            segment: 2,
            epoch: logdrive_raft::Boot(1),
            predecessor_epoch: logdrive_raft::Boot(1),
            predecessor_end: logdrive_wal::format::Place {
                segment: 1,
                block: 15,
            },
            predecessor_chain: logdrive_raft::Chain(9),
            oldest: 1,
        };
        header.to_blocks()[number as usize].0
    };
    for torn in [None, Some(0), Some(1)] {
        let medium = died();
        for number in 0..2 {
            medium.change(FREE_TOO, number, |block| *block = stale(number));
        }
        // The front is new, the stamp is the old one.
        if let Some(torn) = torn {
            medium.change(FREE_TOO, torn, |block| block[60] ^= 1);
        }
        let mut rig = Rig::open(&medium, options(8)).unwrap();
        let before = medium.contents(FREE_TOO)[..2 * BLOCK_BYTES].to_vec();
        let now = |medium: &SimStorage| medium.contents(FREE_TOO)[..2 * BLOCK_BYTES].to_vec();
        while now(&medium) == before {
            rig.append_entries(1, 1, 3000);
            rig.settle();
        }
        // Nothing of the roll is durable but the fronts of both copies.
        for number in 0..2 {
            let copy = &now(&medium)[number as usize * BLOCK_BYTES..][..BLOCK_BYTES].to_vec();
            let old = &before[number as usize * BLOCK_BYTES..][..BLOCK_BYTES];
            medium.change(FREE_TOO, number, |block| {
                block.copy_from_slice(old);
                block[..512].copy_from_slice(&copy[..512]);
            });
        }
        for number in 2..SLOT_BLOCKS {
            medium.change(FREE_TOO, number, |block| block.fill(0));
        }
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        match Rig::open(&medium, options(8)) {
            // What the end of the segment before says was durable is gone, so it is missed: no crash did that.
            Ok(_) | Err(OpenError::Rot { .. }) => {}
            Err(error) => panic!("copy {torn:?}: {error}"),
        }
    }
}
