use std::collections::BTreeSet;

use super::*;

#[test]
fn a_power_cut_keeps_what_was_flushed_and_may_lose_the_rest_in_any_order() {
    let mut left = BTreeSet::new();
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.write(0, &[1], true).unwrap();
        for block in 1..4 {
            rig.write(block, &[9], false).unwrap();
        }
        rig.cut_power();
        let bytes = bytes_of(&rig.medium, SLOT);
        assert_eq!(bytes[0], 1);
        left.insert(bytes[1..4].to_vec());
        let counts = rig.medium.counts();
        assert_eq!(counts.blocks_lost + counts.blocks_kept, 3);
    }
    assert_eq!(left.len(), 8, "some of the subsets did not come up");
}

#[test]
fn what_is_in_flight_at_a_power_cut_is_kept_or_lost_block_by_block() {
    let mut left = BTreeSet::new();
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.begin_write(0, &[1, 2], true);
        rig.cut_power();
        left.insert(bytes_of(&rig.medium, SLOT)[..2].to_vec());
    }
    assert_eq!(left.len(), 4);
}

#[test]
fn blocks_tear_by_sectors_only_if_they_are_asked_to() {
    for (tear, tears) in [(Tear::Never, false), (Tear::Sectors, true)] {
        let torn = (0..64).filter(|seed| {
            let mut rig = Rig::new(*seed);
            rig.write(0, &[1], true).unwrap();
            rig.write(0, &[2], false).unwrap();
            rig.medium.crash(Crash::Power, tear);
            let bytes = rig.medium.contents(SLOT);
            let sectors: Vec<&[u8]> = bytes[..BLOCK_BYTES].chunks(512).collect();
            assert!(
                sectors
                    .iter()
                    .all(|sector| *sector == [1; 512] || *sector == [2; 512])
            );
            sectors.iter().any(|sector| *sector != sectors[0])
        });
        assert_eq!(torn.count() > 0, tears);
    }
}

#[test]
fn a_block_that_was_written_twice_may_be_left_as_any_of_the_writes() {
    let left: BTreeSet<u8> = (0..64)
        .map(|seed| {
            let mut rig = Rig::new(seed);
            rig.write(0, &[1], true).unwrap();
            rig.write(0, &[2], false).unwrap();
            rig.write(0, &[3], false).unwrap();
            rig.cut_power();
            bytes_of(&rig.medium, SLOT)[0]
        })
        .collect();
    assert_eq!(left, [1, 2, 3].into());
}

#[test]
fn a_flush_covers_only_what_was_complete_when_it_was_submitted() {
    let mut rig = Rig::new(1);
    rig.begin_write(0, &[1], false);
    rig.submit(Op::Flush { slot: SLOT });
    rig.finish();
    assert_eq!(durable(&rig.medium, 0), Some(0));
    rig.flush().unwrap();
    assert_eq!(durable(&rig.medium, 0), Some(1));
    assert_eq!(rig.medium.unflushed_blocks(), []);
}

#[test]
fn a_flush_makes_durable_what_was_there_when_it_began_and_not_what_came_after() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1], false).unwrap();
    // The flush takes longer than the write that comes after it.
    rig.disk.options_mut().flush_us = (1000, 1000);
    rig.submit(Op::Flush { slot: SLOT });
    rig.begin_write(0, &[2], false);
    rig.finish();
    assert_eq!(bytes_of(&rig.medium, SLOT)[0], 2);
    assert_eq!(durable(&rig.medium, 0), Some(1));
}

#[test]
fn a_flush_never_takes_back_what_became_durable_while_it_ran() {
    let mut rig = Rig::new(1);
    rig.disk.options_mut().flush_us = (1, 1);
    rig.write(0, &[1], false).unwrap();
    rig.disk.options_mut().flush_us = (1000, 1000);
    rig.submit(Op::Flush { slot: SLOT });
    rig.disk.options_mut().flush_us = (1, 1);
    rig.begin_write(0, &[2], true);
    rig.finish();
    assert_eq!(durable(&rig.medium, 0), Some(2));
}

#[test]
fn a_dead_process_leaves_its_writes_readable_and_unflushed() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1], false).unwrap();
    rig.medium.crash(Crash::Process, Tear::Never);
    assert_eq!(bytes_of(&rig.medium, SLOT)[0], 1);
    assert_eq!(durable(&rig.medium, 0), Some(0));
    // The next process can make it durable.
    Rig::open(&rig.medium).flush().unwrap();
    assert_eq!(durable(&rig.medium, 0), Some(1));
}

#[test]
fn what_a_dead_process_had_in_flight_lands_before_the_lock_is_taken_again_or_never() {
    let mut landed = [0; 2];
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.begin_write(0, &[1], true);
        rig.medium.crash(Crash::Process, Tear::Never);
        // The dead process takes nothing any more.
        rig.finish();
        assert_eq!(bytes_of(&rig.medium, SLOT)[0], 0);
        let next = Rig::open(&rig.medium);
        let byte = bytes_of(&next.medium, SLOT)[0];
        landed[byte as usize] += 1;
        assert_eq!(next.medium.counts().blocks_landed_late, u64::from(byte));
        assert_eq!(durable(&next.medium, 0), Some(0));
    }
    assert!(landed[0] > 0 && landed[1] > 0);
}

#[test]
fn the_end_of_a_file_is_durable_with_a_flush_and_not_before() {
    let lengths: BTreeSet<usize> = (0..64)
        .map(|seed| {
            let mut rig = Rig::open(&SimStorage::new(Dice::drawn(SITE, seed)));
            rig.submit(Op::Create {
                slot: SLOT,
                blocks: 8,
            });
            rig.finish();
            let zero = |block| Op::Zero {
                slot: SLOT,
                block,
                blocks: 2,
            };
            rig.submit(zero(0));
            rig.finish();
            rig.flush().unwrap();
            rig.submit(zero(2));
            rig.finish();
            assert_eq!(bytes_of(&rig.medium, SLOT).len(), 4);
            rig.cut_power();
            let length = bytes_of(&rig.medium, SLOT).len();
            assert_eq!(rig.medium.counts().files_cut, u64::from(length < 4));
            length
        })
        .collect();
    assert_eq!(lengths, [2, 3, 4].into());
}

#[test]
fn a_file_that_was_made_is_there_and_one_that_was_being_made_may_be() {
    let mut made = [0; 2];
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.submit(Op::Create {
            slot: OTHER,
            blocks: 8,
        });
        rig.cut_power();
        let files = rig.medium.slot_files();
        assert_eq!(files[0].slot, SLOT);
        made[files.len() - 1] += 1;
    }
    assert!(made[0] > 0 && made[1] > 0);
}

#[test]
fn a_new_file_stays_once_the_directory_is_flushed() {
    let mut lost = 0;
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.submit(Op::Create {
            slot: OTHER,
            blocks: 8,
        });
        rig.medium.crash(Crash::Process, Tear::Never);
        let mut next = Rig::open(&rig.medium);
        if next.medium.slot_files().len() < 2 {
            continue;
        }
        let unflushed = next.medium.copy(Dice::drawn(SITE, seed));
        unflushed.crash(Crash::Power, Tear::Never);
        lost += unflushed.counts().files_lost;
        next.disk.sync_all().unwrap();
        next.cut_power();
        assert_eq!(next.medium.slot_files().len(), 2);
    }
    assert!(lost > 0);
}

#[test]
fn the_lock_is_held_by_one_process() {
    let first = Rig::new(1);
    let medium = first.medium.clone();
    let mut second = SimDisk::new(medium, SimDiskOptions::default());
    assert!(matches!(second.lock(), Err(DiskError::Locked { .. })));
    drop(first);
    second.lock().unwrap();
}
