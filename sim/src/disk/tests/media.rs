use super::*;

fn counts_of(medium: &SimStorage, name: &str) -> u64 {
    let named = medium.counts().named();
    named.iter().find(|(known, _)| *known == name).unwrap().1
}

#[test]
fn rot_strikes_what_is_flushed_and_holds_something() {
    for (seed, rot) in (0..).zip([Rot::Bit, Rot::Zeros, Rot::Garbage].repeat(8)) {
        let mut rig = Rig::new(seed);
        assert_eq!(rig.medium.rot(rot, None), None);
        rig.write(3, &[7], true).unwrap();
        rig.write(5, &[7], false).unwrap();
        assert_eq!(rig.medium.rot(rot, None), Some((SLOT, 3)));
        let bytes = &rig.medium.contents(SLOT)[3 * BLOCK_BYTES..4 * BLOCK_BYTES];
        let changed = bytes.iter().filter(|byte| **byte != 7).count();
        match rot {
            Rot::Bit => assert_eq!(changed, 1),
            Rot::Zeros => assert_eq!(bytes, [0; BLOCK_BYTES]),
            Rot::Garbage => assert!(changed > 4000),
        }
        assert_eq!(durable(&rig.medium, 3), Some(bytes[0]));
        assert_eq!(counts_of(&rig.medium, "rotted"), 1);
    }
}

#[test]
fn a_wiped_medium_is_empty_and_can_be_used() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1], true).unwrap();
    rig.begin_write(1, &[1], true);
    rig.medium.wipe();
    assert_eq!(rig.medium.slot_files(), []);
    let mut next = Rig::open(&rig.medium);
    next.disk.create(SLOT, 2).unwrap();
    assert_eq!(bytes_of(&next.medium, SLOT), [0, 0]);
}

#[test]
fn an_image_brings_back_what_was_there_when_it_was_taken() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1], true).unwrap();
    rig.write(1, &[1], false).unwrap();
    let image = rig.medium.image();
    rig.write(0, &[2, 2, 2], true).unwrap();
    rig.disk.create(OTHER, 1).unwrap();
    rig.medium.restore(&image);
    assert_eq!(rig.medium.slot_files().len(), 1);
    assert_eq!(bytes_of(&rig.medium, SLOT), [1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(durable(&rig.medium, 1), Some(0));
}

#[test]
fn an_oracle_learns_of_every_block_whose_flushed_contents_change() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1], true).unwrap();
    let take = |medium: &SimStorage| {
        let mut told = Vec::new();
        medium.take_newly_flushed(&mut told);
        told.sort_unstable();
        told.dedup();
        told.iter().map(|(_, block)| *block).collect::<Vec<_>>()
    };
    assert_eq!(take(&rig.medium), [0]);
    rig.write(1, &[1], true).unwrap();
    rig.write(2, &[1, 1], false).unwrap();
    assert_eq!(take(&rig.medium), [1]);
    rig.flush().unwrap();
    assert_eq!(take(&rig.medium), [2, 3]);
    rig.medium.flip(SLOT, 0, 1);
    assert_eq!(take(&rig.medium), [0]);
    rig.write(4, &[1], false).unwrap();
    rig.cut_power();
    let kept = bytes_of(&rig.medium, SLOT)[4] == 1;
    assert_eq!(take(&rig.medium), if kept { vec![4] } else { vec![] });
    rig.medium.wipe();
    assert_eq!(take(&rig.medium)[..4], [0, 1, 2, 3]);
}

/// Everything that can happen to a disk, drawn, recorded and played.
fn run(medium: &SimStorage) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    let options = SimDiskOptions {
        direct: false,
        starved_percent: 20,
        rates: FaultRates {
            write_error_ppm: 100_000,
            short_write_ppm: 100_000,
            flush_error_ppm: 100_000,
            flush_reverts_ppm: 100_000,
            stall_ppm: 100_000,
            misdirected_write_ppm: 100_000,
            ..FaultRates::default()
        },
        ..SimDiskOptions::default()
    };
    for life in 0..20_u8 {
        let mut rig = Rig::open_with(medium, options.clone());
        if life == 0 {
            rig.disk.create(SLOT, 8).unwrap();
        }
        for op in 0..4 {
            rig.begin_write(op, &[life + 1; 3], op % 2 == 0);
            rig.submit(Op::Flush { slot: SLOT });
            let mut done = Vec::new();
            rig.disk.wait(&mut done);
        }
        rig.submit(Op::Create {
            slot: SlotId(u32::from(life) + 1),
            blocks: 2,
        });
        let crash = [Crash::Process, Crash::Power][usize::from(life) % 2];
        medium.crash(crash, Tear::Sectors);
        medium.rot(Rot::Bit, None);
        seen.push(rig.disk.now_ns().to_le_bytes().to_vec());
        for file in medium.slot_files() {
            seen.push(medium.contents(file.slot));
        }
    }
    seen
}

#[test]
fn what_happened_to_a_disk_plays_again_and_nothing_is_drawn() {
    let recorded = SimStorage::new(Dice::recorded(SITE, 3));
    let seen = run(&recorded);
    assert!(seen == run(&SimStorage::new(Dice::drawn(SITE, 3))));
    let choices = recorded.take_recorded();
    assert!(choices.len() > 100);
    let played = SimStorage::new(Dice::played(SITE, &choices));
    assert!(seen == run(&played));
    assert_eq!(recorded.counts(), played.counts());
    // Left to its usual outcomes a disk is fast and loses what was not flushed.
    let usual = SimStorage::new(Dice::played(SITE, &[]));
    run(&usual);
    let counts = usual.counts();
    assert_eq!(
        (counts.blocks_kept, counts.write_errors, counts.stalls),
        (0, 0, 0)
    );
    assert!(counts.blocks_lost > 0);
}

#[test]
fn a_flush_costs_what_it_flushes_and_not_what_the_file_holds() {
    let mut rig = Rig::open(&SimStorage::new(Dice::drawn(SITE, 1)));
    rig.disk.create(SLOT, 4096).unwrap();
    for block in 0..4096 {
        rig.begin_write(block, &[1], true);
    }
    rig.finish();
    let mut told = Vec::new();
    rig.medium.take_newly_flushed(&mut told);
    rig.write(17, &[2], false).unwrap();
    assert_eq!(rig.medium.unflushed_blocks(), [(SLOT, 17)]);
    told.clear();
    rig.flush().unwrap();
    rig.medium.take_newly_flushed(&mut told);
    assert_eq!(told, [(SLOT, 17)]);
}
