//! What a later logdrive wrote halts the reader and says what to upgrade. It is not damage: every checksum
//! holds, and advice to replace the replica would throw away a log that a newer build reads.

use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_raft::limits::ENTRY_HEADER_BYTES;
use logdrive_raft::wire::{Decode, Encode, Reader};
use logdrive_raft::{Entry, GroupId, Index, LogPosition};
use logdrive_sim::disk::{SimDisk, SimDiskOptions, SimStorage};
use logdrive_wal::disk::{BLOCK_BYTES, Block, Disk, SlotId};
use logdrive_wal::format::*;
use logdrive_wal::verify::verify_disk;
use logdrive_wal::{AppendError, OpenError};
use xxhash_rust::xxh3::xxh3_128;

/// A log with a vote and two entries, in order to an idle mark.
fn written() -> SimStorage {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 20);
    rig.idle();
    die(rig, &medium);
    medium
}

/// A flush group taken apart.
struct Parts {
    header: GroupHeader,
    table: Vec<Record>,
    table_bytes: Vec<u8>,
    echo: Vec<u8>,
    body: Vec<u8>,
    /// What the header says instead, from these bytes on.
    overrides: Vec<(usize, Vec<u8>)>,
}

impl Parts {
    fn read(slot: &[u8], block: usize) -> Option<Self> {
        let (header, _) = GroupHeader::parse(&slot[block * BLOCK_BYTES..]).ok()?;
        let blocks = slot[block * BLOCK_BYTES..].chunks(BLOCK_BYTES);
        let blocks = blocks.take(header.blocks as usize);
        let data: Vec<u8> = blocks
            .flat_map(|block| &block[..BLOCK_DATA_BYTES])
            .copied()
            .collect();
        let (_, rest) = data[..header.data_bytes()].split_at(GROUP_HEADER_BYTES);
        let (table_bytes, rest) = rest.split_at(header.table_bytes as usize);
        let (echo, body) = rest.split_at(header.echo_bytes as usize);
        let mut input = Reader::new(table_bytes);
        let table = (0..header.records).map(|_| Record::decode(&mut input).unwrap());
        Some(Self {
            header,
            table: table.collect(),
            table_bytes: table_bytes.to_vec(),
            echo: echo.to_vec(),
            body: body.to_vec(),
            overrides: Vec::new(),
        })
    }

    fn set_table(&mut self, records: &[Record]) {
        self.table_bytes = records
            .iter()
            .flat_map(|record| record.to_bytes())
            .collect();
        self.header.records = u32::try_from(records.len()).unwrap();
    }

    fn write(mut self, medium: &SimStorage, slot: &SlotHeader) {
        let header = &mut self.header;
        header.table_bytes = u32::try_from(self.table_bytes.len()).unwrap();
        header.digest = digest_of(&self.table_bytes, &self.echo);
        assert_eq!(
            header.blocks as usize,
            header.data_bytes().div_ceil(BLOCK_DATA_BYTES)
        );
        let (mut sealed, _) = header.seal();
        for (at, bytes) in &self.overrides {
            sealed[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let chain = xxh3_128(&sealed[..GROUP_HEADER_BYTES - 16]);
        sealed[GROUP_HEADER_BYTES - 16..].copy_from_slice(&chain.to_le_bytes());
        let data = [&sealed[..], &self.table_bytes, &self.echo, &self.body].concat();
        for (number, part) in data.chunks(BLOCK_DATA_BYTES).enumerate() {
            let mut block = Block::ZERO;
            block.0[..part.len()].copy_from_slice(part);
            let at = header.place.block + u32::try_from(number).unwrap();
            slot.stamper().stamp(&mut block, at, number == 0);
            medium.change(SlotId(slot.slot), at, |bytes| {
                bytes.copy_from_slice(&block.0)
            });
        }
    }
}

/// Writes the last flush group that `which` speaks of anew, everything that sums it up included.
fn rewrite(medium: &SimStorage, which: impl Fn(&Parts) -> bool, change: impl FnOnce(&mut Parts)) {
    rewrite_in(medium, SlotId(0), which, change);
}

fn rewrite_in(
    medium: &SimStorage,
    slot: SlotId,
    which: impl Fn(&Parts) -> bool,
    change: impl FnOnce(&mut Parts),
) {
    let bytes = medium.contents(slot);
    let block = Block(bytes[..BLOCK_BYTES].try_into().unwrap());
    let header = SlotHeader::from_block(&block, 0).unwrap().unwrap();
    let mut groups = (2..bytes.len() / BLOCK_BYTES).filter_map(|block| Parts::read(&bytes, block));
    let mut parts = groups.rfind(which).unwrap();
    change(&mut parts);
    parts.write(medium, &header);
}

fn holds(kind: RecordKind) -> impl Fn(&Parts) -> bool {
    move |parts| parts.table.iter().any(|record| record.kind() == kind)
}

/// Changes a byte of the header of the first entry in the body, and its checksum.
fn change_entry(parts: &mut Parts, at: usize, value: u8) {
    parts.body[at] = value;
    let header = &mut parts.body[..ENTRY_HEADER_BYTES];
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..60]), &header[64..]);
    header[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// Neither an opening nor a look calls it damage; both name what to upgrade.
fn assert_refused(medium: &SimStorage, says: &str) {
    let opened = Rig::open(&medium.copy(dice(1)), options(8)).map(|rig| rig.recovery);
    let mut disk = SimDisk::new(medium.copy(dice(1)), SimDiskOptions::default());
    let slots = disk.slots().unwrap();
    let verified = verify_disk(&mut disk, &slots, false);
    for refused in [opened.unwrap_err(), verified.unwrap_err()] {
        let OpenError::FromTheFuture { source, .. } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(source.to_string(), says);
    }
}

#[test]
fn a_kind_that_this_build_does_not_know_halts_the_reader() {
    let entries = holds(RecordKind::Entries);
    let medium = written();
    rewrite(&medium, &entries, |parts| change_entry(parts, 6, 4));
    assert_refused(
        &medium,
        "entry kind has format version 4, this build reads up to 3: upgrade logdrive",
    );
    let medium = written();
    rewrite(&medium, &entries, |parts| change_entry(parts, 7, 3));
    assert_refused(
        &medium,
        "table form has format version 3, this build reads up to 2: upgrade logdrive",
    );
    let medium = written();
    rewrite(&medium, &entries, |parts| {
        parts.overrides.push((6, vec![5]))
    });
    assert_refused(
        &medium,
        "kind of a flush group has format version 5, this build reads up to 4: upgrade logdrive",
    );
    let medium = written();
    rewrite(&medium, holds(RecordKind::Verdict), |parts| {
        parts.table_bytes[1] = 3;
    });
    assert_refused(
        &medium,
        "verdict kind has format version 3, this build reads up to 2: upgrade logdrive",
    );
    let medium = written();
    rewrite(&medium, &entries, |parts| parts.table_bytes[0] = 14);
    assert_refused(
        &medium,
        "record kind has format version 14, this build reads up to 13: upgrade logdrive",
    );
}

/// Both copies of the header of the first slot, with other bytes from somewhere on.
fn rewrite_header(medium: &SimStorage, at: usize, bytes: &[u8]) {
    let contents = medium.contents(SlotId(0));
    let block = Block(contents[..BLOCK_BYTES].try_into().unwrap());
    let header = SlotHeader::from_block(&block, 0).unwrap().unwrap();
    for (number, mut copy) in (0..).zip(header.to_blocks()) {
        copy.0[at..at + bytes.len()].copy_from_slice(bytes);
        header.stamper().stamp(&mut copy, number, false);
        medium.change(SlotId(0), number, |block| *block = copy.0);
    }
}

#[test]
fn a_flag_that_this_build_does_not_know_halts_the_reader() {
    for bit in 0..16 {
        let medium = written();
        // An opening made the segment: that flag is known, and set.
        rewrite_header(&medium, 10, &(1_u16 | 1 << bit).to_le_bytes());
        if bit == 0 {
            assert!(Rig::open(&medium, options(8)).is_ok());
            continue;
        }
        let flag = 1_u32 << bit;
        assert_refused(
            &medium,
            &format!(
                "a slot header's flag field uses features {flag:#x} that this build does not know: upgrade logdrive"
            ),
        );
    }
}

#[test]
fn a_field_that_is_zero_today_halts_the_reader_when_it_is_not() {
    for at in 124..128 {
        let medium = written();
        rewrite_header(&medium, at, &[1]);
        assert_refused(
            &medium,
            "a field of a slot header that is zero today cannot be heeded by this build: upgrade logdrive",
        );
    }
    let medium = written();
    rewrite(&medium, holds(RecordKind::Entries), |parts| {
        parts.overrides.push((7, vec![1]));
    });
    assert_refused(
        &medium,
        "a field of a flush group's header that is zero today cannot be heeded by this build: upgrade logdrive",
    );
}

#[test]
fn a_hole_is_not_forgotten() {
    let hole = Hole {
        group: GROUP,
        first: Index(1),
        last: Index(1),
    };
    let in_checkpoint = |change: &dyn Fn(&mut GroupCheckpoint)| {
        let medium = written();
        // The checkpoint of a new log has no groups; that of the next segment has.
        let mut rig = Rig::open(&medium, options(8)).unwrap();
        while rig.wal.status().segments == 1 {
            rig.append_entries(2, 1, 10_000);
            rig.settle();
        }
        rig.idle();
        die(rig, &medium);
        let whole = holds(RecordKind::Checkpoint);
        rewrite_in(&medium, SlotId(1), whole, |parts| {
            let mut table = parts.table.clone();
            for record in &mut table {
                if let Record::Checkpoint(rows) = record {
                    change(&mut rows[0]);
                }
            }
            parts.set_table(&table);
        });
        medium
    };
    let in_verdict = |change: &dyn Fn(&mut Verdict)| {
        let medium = written();
        rewrite(&medium, holds(RecordKind::Verdict), |parts| {
            let mut table = parts.table.clone();
            for record in &mut table {
                if let Record::Verdict(verdict) = record {
                    change(verdict);
                }
            }
            parts.set_table(&table);
        });
        medium
    };
    let holed = "a hole in the log cannot be heeded by this build: upgrade logdrive";
    assert_refused(&in_checkpoint(&|row| row.holes = vec![hole]), holed);
    assert_refused(&in_verdict(&|verdict| verdict.holes = vec![hole]), holed);
}

/// An entry after `prev` that uses a compatible feature.
fn with_compatible_feature(prev: &LogPosition) -> Entry {
    let plain = entry(GROUP, 2, prev, b"more");
    let mut header = *plain.header();
    header.compatible = 0x40;
    let chain = header.chain_after(prev.chain);
    let mut frame = plain.frame().to_vec();
    frame[12..16].copy_from_slice(&header.compatible.to_le_bytes());
    frame[64..80].copy_from_slice(&chain.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..60]), &frame[64..80]);
    frame[60..64].copy_from_slice(&crc.to_le_bytes());
    Entry::from_frame(frame.into()).unwrap()
}

#[test]
fn a_feature_that_may_not_be_ignored_halts_the_reader() {
    let entries = holds(RecordKind::Entries);
    let medium = written();
    rewrite(&medium, &entries, |parts| change_entry(parts, 8, 0x40));
    assert_refused(
        &medium,
        "entry uses features 0x40 that this build does not know: upgrade logdrive",
    );
    let medium = written();
    rewrite(&medium, &entries, |parts| {
        parts.overrides.push((8, vec![0x40]));
    });
    assert_refused(
        &medium,
        "flush group uses features 0x40 that this build does not know: upgrade logdrive",
    );
}

#[test]
fn a_feature_that_may_be_ignored_is_ignored_and_kept() {
    let medium = written();
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    let more = with_compatible_feature(&rig.tip());
    rig.append(&[Write::Entries(vec![more.clone()])]);
    rig.idle();
    die(rig, &medium);
    // Nothing follows the last one, whose chain changes with it.
    rewrite(
        &medium,
        |_| true,
        |parts| parts.overrides.push((12, vec![0x40])),
    );
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    assert_eq!(rig.recovery.findings, []);
    let read = rig.read_all();
    assert_eq!(read.last(), Some(&more));
    assert_eq!(read[2].header().compatible, 0x40);
    // What follows an entry follows all that it says.
    rig.append_entries(2, 1, 10);
    rig.idle();
    die(rig, &medium);
    assert_eq!(
        Rig::open(&medium, options(8)).unwrap().tip().index,
        Index(4)
    );
}

/// The same log with these records in its last flush group, which nothing follows.
fn ending_with(records: &[Record]) -> SimStorage {
    let medium = written();
    let mut rig = Rig::open(&medium, options(8)).unwrap();
    rig.wal.create_group(&genesis(OTHER)).unwrap();
    rig.idle();
    die(rig, &medium);
    rewrite(&medium, |_| true, |parts| parts.set_table(records));
    medium
}

const OTHER: GroupId = GroupId(2);

#[test]
fn the_id_of_a_group_that_was_removed_is_not_used_again() {
    let medium = ending_with(&[Record::GroupRemoved(OTHER)]);
    for _ in 0..3 {
        let mut rig = Rig::open(&medium, options(8)).unwrap();
        assert_eq!(rig.wal.groups().collect::<Vec<_>>(), [GROUP]);
        let refused = rig.wal.create_group(&genesis(OTHER)).unwrap_err();
        assert_eq!(refused, AppendError::GroupRemoved(OTHER));
        // The record stands further and further back.
        rig.append_entries(2, 3, 10_000);
        rig.idle();
        die(rig, &medium);
    }
    let buffered = SimDiskOptions {
        direct: false,
        ..SimDiskOptions::default()
    };
    let medium = ending_with(&[Record::GroupRemoved(OTHER)]);
    let mut rig = Rig::open_with(&medium, options(8), buffered, 1).unwrap();
    let refused = rig.wal.create_group(&genesis(OTHER)).unwrap_err();
    assert_eq!(refused, AppendError::GroupRemoved(OTHER));
}

#[test]
fn a_log_in_which_a_removed_group_begins_again_is_not_built_upon() {
    let again = Record::Genesis(genesis(OTHER));
    let medium = ending_with(&[Record::GroupRemoved(OTHER), again]);
    let refused = Rig::open(&medium, options(8)).map(|rig| rig.recovery);
    let Err(OpenError::Rot { findings }) = refused else {
        panic!("{refused:?}");
    };
    let expected = "group 2 begins, or goes on, after it was removed";
    assert_eq!(findings[0].meaning, expected);
}
