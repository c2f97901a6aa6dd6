//! Logs at the ends of what there is room for: numbers, seals, and blocks that hold nothing but zeros.

use crate::common::*;
use bytes::BytesMut;
use logdrive_raft::Boot;
use logdrive_raft::io::Write;
use logdrive_raft::wire::{Encode, Writer};
use logdrive_sim::disk::{Crash, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::OpenError;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, EntryRun, GROUP_HEADER_BYTES, GroupHeader, GroupKind, Record,
    SLOT_HEADER_BLOCKS, digest_of,
};

/// No stamp is zeros, for no segment has the number 0. So what is before it may be.
#[test]
fn entries_of_zeros_of_any_length_come_back() {
    for direct in [true, false] {
        let disk = || SimDiskOptions {
            direct,
            ..SimDiskOptions::default()
        };
        let medium = storage();
        let mut rig = Rig::open_with(&medium, options(200), disk(), 1).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.settle();
        // A group with one entry: header, table, an echo of another run or none, the frame.
        let overhead = GROUP_HEADER_BYTES + 77 + 77 + 80;
        let borders = [1, 2].map(|blocks| blocks * BLOCK_DATA_BYTES);
        let lengths = borders
            .iter()
            .flat_map(|border| border - overhead - 40..border - overhead + 120);
        let mut written: Vec<usize> = Vec::new();
        for (turn, bytes) in (0..).zip(lengths.chain(0..3)) {
            let zeros = entry(GROUP, 2, &rig.tip(), &vec![0; bytes]);
            written.push(bytes);
            rig.append(&[Write::Entries(vec![zeros])]);
            rig.settle();
            if turn % 3 == 0 {
                drop(rig);
                medium.crash(Crash::Power, Tear::Never);
                rig = Rig::open_with(&medium, options(200), disk(), turn).unwrap();
                assert_eq!(rig.tip().index.0, written.len() as u64);
            }
        }
        let read = rig.read_all();
        let lengths: Vec<usize> = read.iter().map(|entry| entry.payload().len()).collect();
        assert_eq!(lengths, written);
        let zeros = |entry: &logdrive_raft::Entry| entry.payload().iter().all(|byte| *byte == 0);
        assert!(read.iter().all(zeros));
    }
}

/// A log that ended in order, with one slot, whose header says this.
fn numbered(segment: u64, epoch: u64) -> SimStorage {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.idle();
    die(rig, &medium);
    let mut header = header_of(&medium, SlotId(0));
    header.by_recovery = false;
    header.segment = segment;
    header.oldest = segment;
    header.predecessor_end.segment = segment - 1;
    header.epoch = Boot(epoch);
    for (number, copy) in (0..).zip(&header.to_blocks()) {
        medium.change(SlotId(0), number, |block| *block = copy.0);
    }
    medium
}

/// The last header that was believed was followed by one that nobody believes, and what was acknowledged in its
/// segment could not be read any more.
#[test]
fn a_log_at_the_end_of_its_numbers_is_not_gone_on_with() {
    let segments = (1_u64 << 31) - 1;
    let boots = (1_u64 << 63) - 1;
    let ends = (0..4).flat_map(|left| [(segments - left, 1), (2, boots - left)]);
    for (segment, epoch) in ends.chain([(2, (1 << 32) - 1)]) {
        let medium = numbered(segment, epoch);
        let mut expected = None;
        for _ in 0..4 {
            let mut rig = match Rig::open(&medium, options(8)) {
                Ok(rig) => rig,
                Err(error) => {
                    assert!(
                        matches!(error, OpenError::NotALog { .. }),
                        "{segment} {epoch}: {error}"
                    );
                    assert!(expected.is_none(), "{segment} {epoch}: it had been opened");
                    break;
                }
            };
            if let Some(tip) = expected {
                assert_eq!(rig.wal.tip(GROUP), tip, "{segment} {epoch}");
            }
            if rig.wal.groups().next().is_none() {
                rig.wal.create_group(&genesis(GROUP)).unwrap();
            }
            for _ in 0..6 {
                rig.append_entries(2, 1, 3000);
                rig.settle();
            }
            expected = Some(rig.wal.tip(GROUP));
            drop(rig);
            medium.crash(Crash::Power, Tear::Never);
        }
    }
}

/// Puts a flush group after the last one of a slot. Gives back the block after it.
fn forge(medium: &SimStorage, slot: SlotId, kind: GroupKind, table: &[Record], body: &[u8]) -> u32 {
    let stamper = header_of(medium, slot).stamper();
    let bytes = medium.contents(slot);
    let mut at = SLOT_HEADER_BLOCKS;
    let mut last = None;
    while let Ok((header, chain)) = GroupHeader::parse(&bytes[at as usize * BLOCK_BYTES..]) {
        at += header.blocks;
        last = Some((header, chain));
    }
    let (last, previous) = last.unwrap();
    let mut encoded = BytesMut::new();
    for record in table {
        record.encode(&mut Writer::new(&mut encoded));
    }
    let mut header = GroupHeader {
        kind,
        place: last.end(),
        mark: last.end(),
        number: last.number + 1,
        previous,
        table_bytes: encoded.len().try_into().unwrap(),
        records: table.len().try_into().unwrap(),
        echo_bytes: 0,
        echo_records: 0,
        body_bytes: body.len().try_into().unwrap(),
        digest: digest_of(&encoded, &[]),
        ..last
    };
    let blocks = header.data_bytes().div_ceil(BLOCK_DATA_BYTES);
    header.blocks = blocks.try_into().unwrap();
    let data = [&header.seal().0[..], &encoded, body].concat();
    for (number, piece) in (at..).zip(data.chunks(BLOCK_DATA_BYTES)) {
        medium.change(slot, number, |bytes| {
            let mut block = Block::ZERO;
            block.0[..piece.len()].copy_from_slice(piece);
            stamper.stamp(&mut block, number, number == at);
            *bytes = block.0;
        });
    }
    header.end().block
}

/// Every group may be legal by itself and the seal of all of them have no room. Whoever went on in such a segment
/// ended the process when it was full.
#[test]
fn a_segment_whose_seal_has_no_room_is_not_gone_on_in() {
    let large = || options(8).with_slots(1 << 20, 8);
    for (runs, votes, room) in [(100, 0, true), (5200, 0, false), (2500, 8000, false)] {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, large());
        let prev = rig.tip();
        let small = entry(GROUP, 2, &prev, &[]);
        rig.append(&[Write::Entries(vec![small.clone()])]);
        rig.idle();
        let mut tip = rig.tip();
        die(rig, &medium);
        let again = Record::Rewrite(EntryRun {
            group: GROUP,
            prev,
            last: tip,
            bytes: small.frame().len().try_into().unwrap(),
        });
        let body = small.frame().repeat(runs);
        let slot = SlotId(0);
        forge(&medium, slot, GroupKind::Data, &vec![again; runs], &body);
        let end = forge(&medium, slot, GroupKind::Mark, &vec![a_vote(); votes], &[]);
        assert!(end <= 220, "{end}");
        for turn in 0..3 {
            let mut rig = Rig::open(&medium, large()).unwrap();
            assert_eq!(rig.tip(), tip);
            if turn == 0 {
                assert_eq!(rig.wal.status().segments == 1, room);
            }
            for _ in 0..100 {
                rig.append_entries(2, 1, 12_000);
                rig.settle();
            }
            rig.idle();
            tip = rig.tip();
            die(rig, &medium);
        }
    }
}

fn a_vote() -> Record {
    Record::HardState {
        group: GROUP,
        hard_state: vote(2, 1),
    }
}

/// The first flush group of a segment repeats the last table, whole. Where the slot has no room for it the sizes do
/// not work, and that is said.
#[test]
fn a_last_table_that_no_new_slot_has_room_for_is_refused() {
    let large = || options(8).with_slots(256 << 10, 8);
    for (votes, room) in [
        (100, true),
        (900, true),
        (1200, true),
        (1300, false),
        (2300, false),
    ] {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, large());
        rig.append_entries(2, 1, 100);
        rig.idle();
        let tip = rig.tip();
        die(rig, &medium);
        let slot = SlotId(0);
        forge(&medium, slot, GroupKind::Data, &vec![a_vote(); votes], &[]);
        for file in medium.slot_files() {
            if file.slot != slot {
                medium.set_contents(file.slot, &[]);
            }
        }
        match Rig::open(&medium.copy(dice(1)), options(8)) {
            Ok(rig) => assert!(room && rig.tip() == tip, "{votes}"),
            Err(error) => {
                assert!(
                    !room && matches!(error, OpenError::Sizes { .. }),
                    "{votes}: {error}"
                );
            }
        }
        let rig = Rig::open(&medium, large()).unwrap();
        assert_eq!(rig.tip(), tip);
    }
}
