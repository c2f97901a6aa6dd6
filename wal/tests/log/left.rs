//! Free slots that an opening does not look through: they are read and cleared when they are wanted.

use std::collections::BTreeMap;

use crate::common::cut::*;
use crate::common::*;
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, Block, Disk, SlotId};
use logdrive_wal::format::SlotHeader;
use logdrive_wal::verify::verify_disk;
use logdrive_wal::{OpenError, Options, Verdict};

/// Of 64 blocks an opening reads the first 16 of a slot, and 16 and 32.
const SLOT_BYTES: u64 = 256 << 10;

/// Blocks that it does not read.
const HIDDEN: std::ops::Range<u32> = 40..44;

fn slots(count: u64) -> Options {
    options(8).with_slots(SLOT_BYTES, count)
}

fn on(direct: bool) -> SimDiskOptions {
    SimDiskOptions {
        direct,
        ..SimDiskOptions::default()
    }
}

/// The segments whose headers are on the medium.
fn segments(medium: &SimStorage) -> BTreeMap<SlotId, u64> {
    let mut segments = BTreeMap::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let copies = (0..2).zip(bytes.chunks_exact(BLOCK_BYTES));
        let copies = copies.filter_map(|(copy, bytes)| {
            let mut block = Block::ZERO;
            block.0.copy_from_slice(bytes);
            SlotHeader::from_block(&block, copy).ok().flatten()
        });
        let newest = copies.map(|header| header.segment).max();
        segments.extend(newest.map(|segment| (file.slot, segment)));
    }
    segments
}

fn newest(medium: &SimStorage) -> u64 {
    segments(medium).values().copied().max().unwrap_or(0)
}

fn write(rig: &mut Rig) {
    rig.append_entries(1, 2, 9_000);
    rig.settle();
}

/// A log of which the power failed when a dozen slots had just been released.
fn released() -> SimStorage {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, slots(24));
    while newest(&medium) < 14 {
        write(&mut rig);
    }
    cut_all(&mut rig);
    while newest(&medium) < 15 {
        write(&mut rig);
    }
    drop(rig);
    medium.crash(Crash::Power, Tear::Never);
    medium
}

/// The slots in which a segment below the third last lies.
fn old(medium: &SimStorage) -> Vec<SlotId> {
    let newest = newest(medium);
    let old = segments(medium).into_iter();
    let old = old.filter(|(_, segment)| segment + 2 < newest);
    old.map(|(slot, _)| slot).collect()
}

/// The last sector is another one.
fn tear(medium: &SimStorage, slot: SlotId, block: u32) {
    medium.change(slot, block, |block| {
        block[BLOCK_BYTES - 512..].fill(0x5a);
    });
}

/// Whether a block is still as it was torn.
fn is_torn(medium: &SimStorage, slot: SlotId, block: u32) -> bool {
    let end = (block as usize + 1) * BLOCK_BYTES;
    medium.contents(slot)[end - 512..end] == [0x5a; 512]
}

/// A log whose released slots, these, hide blocks that were torn.
fn released_and_torn() -> (SimStorage, Vec<SlotId>) {
    let medium = released();
    let old = old(&medium);
    assert!(old.len() >= 8, "{old:?}");
    for slot in &old {
        HIDDEN.for_each(|block| tear(&medium, *slot, block));
    }
    (medium, old)
}

fn torn(medium: &SimStorage, slots: &[SlotId]) -> usize {
    let any = |slot: &&SlotId| HIDDEN.clone().any(|block| is_torn(medium, **slot, block));
    slots.iter().filter(any).count()
}

/// Opens it as after a power cut, and finds the same.
fn reopen(rig: &Rig, medium: &SimStorage, direct: bool) {
    let copy = medium.flushed_only();
    match Rig::open_with(&copy, slots(24), on(direct), 1) {
        Ok(again) => assert_eq!(stand(&again.wal, GROUP), stand(&rig.wal, GROUP)),
        Err(error) => panic!("opened before, and now {error}"),
    }
}

/// Writes until each of these slots was taken again, the power failing after each step.
fn take_all(rig: &mut Rig, medium: &SimStorage, old: &[SlotId], direct: bool) {
    let before = newest(medium);
    for step in 0.. {
        let now = segments(medium);
        let taken = |slot: &&SlotId| now.get(slot).is_some_and(|segment| *segment > before);
        for slot in old.iter().filter(taken) {
            for block in HIDDEN {
                assert!(!is_torn(medium, *slot, block), "{slot:?} was taken");
            }
        }
        if old.iter().all(|slot| taken(&slot)) {
            return;
        }
        assert!(step < 1000, "of {old:?} not all are taken: {now:?}");
        write(rig);
        if step % 40 == 39 {
            cut_all(rig);
        }
        if step % 4 == 0 {
            reopen(rig, medium, direct);
        }
    }
}

#[test]
fn what_a_free_slot_hides_is_cleared_before_the_slot_is_taken() {
    for direct in [true, false] {
        let (medium, old) = released_and_torn();
        // Over several boots what nobody wants is left alone.
        for _ in 0..3 {
            drop(Rig::open_with(&medium, slots(24), on(direct), 1).unwrap());
            medium.crash(Crash::Power, Tear::Never);
        }
        let left = torn(&medium, &old);
        assert!(left >= 4, "{left} of {}", old.len());
        let mut rig = Rig::open_with(&medium, slots(24), on(direct), 1).unwrap();
        take_all(&mut rig, &medium, &old, direct);
    }
}

#[test]
fn what_cannot_be_read_of_a_free_slot_is_cleared_as_well() {
    let (medium, old) = released_and_torn();
    let mut rig = Rig::open(&medium, slots(24)).unwrap();
    rig.wal.disk_mut().options_mut().rates.read_error_ppm = 500_000;
    rig.wal.disk_mut().options_mut().rates.short_read_ppm = 300_000;
    take_all(&mut rig, &medium, &old, true);
}

/// Power cuts at any moment of what the pool does, and of the openings after them.
#[test]
fn a_power_cut_while_free_slots_are_cleared_does_no_harm() {
    let (original, _) = released_and_torn();
    for steps in 0..120 {
        let medium = original.copy(dice(steps));
        let mut rig = Rig::open(&medium, slots(24)).unwrap();
        write(&mut rig);
        for _ in 0..steps {
            if rig.wal.disk().next_due().is_some() {
                rig.step();
            }
        }
        let before = stand(&rig.wal, GROUP);
        drop(rig);
        medium.crash(Crash::Power, Tear::Sectors);
        for _ in 0..2 {
            let rig = Rig::open(&medium, slots(24)).unwrap();
            assert_eq!(stand(&rig.wal, GROUP), before, "{steps} steps");
            drop(rig);
            medium.crash(Crash::Power, Tear::Sectors);
        }
    }
}

#[test]
fn slots_may_grow_and_shrink_while_some_are_left() {
    let medium = released();
    for (bytes, count) in [(512 << 10, 24), (64 << 10, 96), (SLOT_BYTES, 24)] {
        let options = options(8).with_slots(bytes, count);
        let mut rig = Rig::open(&medium, options).unwrap();
        for _ in 0..60 {
            write(&mut rig);
        }
        cut_all(&mut rig);
        let before = stand(&rig.wal, GROUP);
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        let rig = Rig::open(&medium, slots(24)).unwrap();
        assert_eq!(stand(&rig.wal, GROUP), before);
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
    }
}

fn fill(medium: &SimStorage, slot: SlotId, blocks: std::ops::Range<u32>, with: u8) {
    for block in blocks {
        medium.change(slot, block, |block| block.fill(with));
    }
}

/// The newest segment has lost its header, and what lies at its front besides: what is left shows that it was there.
#[test]
fn a_segment_without_a_header_is_missed_whatever_is_left_of_its_front() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, slots(24));
    while newest(&medium) < 4 {
        write(&mut rig);
    }
    // As far as the second block that is looked at behind the front, and a mark over it.
    for _ in 0..7 {
        write(&mut rig);
    }
    rig.idle();
    drop(rig);
    medium.crash(Crash::Power, Tear::Never);
    let last = segments(&medium);
    let (slot, _) = last.iter().max_by_key(|(_, segment)| **segment).unwrap();
    for (front, with) in [
        (2..2, 0),
        (2..3, 0x5a),
        (2..16, 0x5a),
        (2..16, 0),
        (2..32, 0),
    ] {
        let copy = medium.copy(dice(1));
        fill(&copy, *slot, 0..2, 0);
        fill(&copy, *slot, front.clone(), with);
        let opened = Rig::open(&copy, slots(24)).err();
        let missed = matches!(
            opened,
            Some(OpenError::Rot { .. } | OpenError::Suspect { .. })
        );
        assert!(missed, "{front:?}: {opened:?}");
        let mut disk = SimDisk::new(copy.clone(), SimDiskOptions::default());
        let files = disk.slots().unwrap();
        let report = verify_disk(&mut disk, &files, false).unwrap();
        assert!(report.verdict > Verdict::Torn, "{front:?}");
    }
}
