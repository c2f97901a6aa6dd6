use logdrive_wal::disk::BLOCK_BYTES;

use super::*;

const SLOT: SlotId = SlotId(0);

fn filled(byte: u8) -> Buffer {
    let mut buffer = Buffer::with_blocks(1);
    buffer.blocks_mut()[0].0.fill(byte);
    buffer
}

fn opened(medium: &SimStorage, seed: u64) -> SimDisk {
    let mut disk = SimDisk::new(medium.clone(), SimDiskOptions::default(), seed);
    disk.lock().unwrap();
    disk
}

fn write(disk: &mut SimDisk, id: u64, block: u32, byte: u8, dsync: bool) {
    let buffer = filled(byte);
    let op = Op::Write {
        slot: SLOT,
        block,
        buffer,
        dsync,
    };
    disk.submit(OpId(id), op);
}

fn finish(disk: &mut SimDisk) -> Vec<Completion> {
    let mut done = Vec::new();
    while disk.in_flight() > 0 {
        disk.wait(&mut done);
    }
    done
}

fn byte_of(medium: &SimStorage, block: usize) -> u8 {
    medium.contents(SLOT)[block * BLOCK_BYTES]
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_may_lose_the_rest() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..64 {
        let medium = SimStorage::new();
        let mut disk = opened(&medium, seed);
        disk.create(SLOT, 8).unwrap();
        write(&mut disk, 1, 0, 1, true);
        write(&mut disk, 2, 1, 2, false);
        finish(&mut disk);
        medium.crash(Crash::Power, Tear::Never, &mut Rng::with_seed(seed));
        assert_eq!(byte_of(&medium, 0), 1);
        match byte_of(&medium, 1) {
            2 => kept += 1,
            0 => lost += 1,
            other => panic!("a block of {other} was never written"),
        }
    }
    assert!(kept > 0 && lost > 0);
}

#[test]
fn a_flush_covers_only_what_was_complete_when_it_was_submitted() {
    let lost = (0..64).any(|seed| {
        let medium = SimStorage::new();
        let mut disk = opened(&medium, seed);
        disk.create(SLOT, 8).unwrap();
        write(&mut disk, 1, 0, 1, false);
        disk.submit(OpId(2), Op::Flush { slot: SLOT });
        finish(&mut disk);
        medium.crash(Crash::Power, Tear::Never, &mut Rng::with_seed(seed));
        byte_of(&medium, 0) == 0
    });
    assert!(lost);
}

#[test]
fn a_dead_process_leaves_its_writes_readable_and_unflushed() {
    let medium = SimStorage::new();
    let mut disk = opened(&medium, 1);
    disk.create(SLOT, 8).unwrap();
    write(&mut disk, 1, 0, 1, false);
    finish(&mut disk);
    medium.crash(Crash::Process, Tear::Never, &mut Rng::with_seed(1));
    assert_eq!(byte_of(&medium, 0), 1);
    let lost = (0..64).any(|seed| {
        let medium = medium.copy();
        medium.crash(Crash::Power, Tear::Never, &mut Rng::with_seed(seed));
        byte_of(&medium, 0) == 0
    });
    assert!(lost);
}

#[test]
fn what_a_dead_process_had_in_flight_lands_before_the_lock_is_taken_again_or_never() {
    let mut landed = [0; 2];
    for seed in 0..64 {
        let medium = SimStorage::new();
        let mut disk = opened(&medium, 1);
        disk.create(SLOT, 8).unwrap();
        write(&mut disk, 1, 0, 1, true);
        medium.crash(Crash::Process, Tear::Never, &mut Rng::with_seed(1));
        assert_eq!(byte_of(&medium, 0), 0);
        let _next = opened(&medium, seed);
        landed[byte_of(&medium, 0) as usize] += 1;
    }
    assert!(landed[0] > 0 && landed[1] > 0);
}

#[test]
fn the_lock_is_held_by_one_process() {
    let medium = SimStorage::new();
    let first = opened(&medium, 1);
    let mut second = SimDisk::new(medium.clone(), SimDiskOptions::default(), 2);
    assert!(matches!(second.lock(), Err(DiskError::Locked { .. })));
    drop(first);
    second.lock().unwrap();
}

#[test]
fn injected_faults_happen_once_each() {
    let medium = SimStorage::new();
    let mut disk = opened(&medium, 1);
    disk.create(SLOT, 8).unwrap();
    disk.inject(Fault::ShortWrite);
    disk.inject(Fault::FlushError);
    write(&mut disk, 1, 0, 1, false);
    disk.submit(OpId(2), Op::Flush { slot: SLOT });
    let mut done = finish(&mut disk);
    done.sort_by_key(|completion| completion.id);
    assert_eq!(done[0].result.as_ref().unwrap(), &0);
    assert!(done[1].result.is_err());
    write(&mut disk, 3, 0, 1, false);
    assert_eq!(finish(&mut disk)[0].result.as_ref().unwrap(), &4096);
}

#[test]
fn a_flush_never_takes_back_what_became_durable_while_it_ran() {
    for seed in 0..64 {
        let medium = SimStorage::new();
        let mut disk = opened(&medium, seed);
        disk.create(SLOT, 8).unwrap();
        disk.submit(OpId(1), Op::Flush { slot: SLOT });
        write(&mut disk, 2, 0, 1, true);
        finish(&mut disk);
        medium.crash(Crash::Power, Tear::Never, &mut Rng::with_seed(seed));
        assert_eq!(byte_of(&medium, 0), 1);
    }
}

#[test]
fn a_page_cache_forgets_what_a_failed_flush_owed() {
    let medium = SimStorage::new();
    let mut disk = opened(&medium, 1);
    disk.options_mut().direct = false;
    disk.create(SLOT, 8).unwrap();
    write(&mut disk, 1, 0, 1, false);
    finish(&mut disk);
    disk.inject(Fault::FlushError);
    for id in [2, 3] {
        disk.submit(OpId(id), Op::Flush { slot: SLOT });
        assert_eq!(finish(&mut disk)[0].result.is_err(), id == 2);
    }
    let lost = (0..64).any(|seed| {
        let medium = medium.copy();
        medium.crash(Crash::Power, Tear::Never, &mut Rng::with_seed(seed));
        byte_of(&medium, 0) == 0
    });
    assert!(lost);
}
