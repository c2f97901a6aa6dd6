//! Bytes from a disk, one structure at a time. Checksums are made to fit first: noise would end there.

use bytes::BytesMut;
use logdrive_raft::io::Guard;
use logdrive_raft::wire::{Decode, Encode, Reader, Writer};
use logdrive_raft::{ClusterId, GroupId, Replica};
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotId};
use logdrive_wal::format::{
    Anchor, AnchorFile, BLOCK_DATA_BYTES, BlockState, EntryRun, FooterRow, GROUP_HEADER_BYTES,
    GroupCheckpoint, GroupHeader, Hole, Place, Record, SlotHeader, Stamper, Verdict,
};
use logdrive_wal::snapshots::{CHUNK_BYTES, Manifest, ManifestFile, check_name};
use xxhash_rust::xxh3::xxh3_128;

use crate::check::{bounded, canonical};

const SLOT_HEADER_BYTES: usize = 152;

/// Bytes that a reader skips: flags beyond the first, and what is zero in this version.
const SLOT_SKIPPED: &[usize] = &[10, 11, 124, 125, 126, 127];

/// The data of a slot's first block, and which copy it is.
pub(crate) fn slot_header(data: &[u8]) {
    let Some((number, data)) = data.split_first() else {
        return;
    };
    let number = u32::from(*number);
    let mut block = Block::ZERO;
    let kept = data.len().min(BLOCK_BYTES);
    block.0[..kept].copy_from_slice(&data[..kept]);
    let _ = bounded(0, || SlotHeader::from_block(&block, number));
    stamp_as_header(&mut block, number);
    let read = bounded(0, || SlotHeader::from_block(&block, number));
    let Ok(Some(header)) = read else {
        return;
    };
    let written = header.to_bytes();
    assert_eq!(written.len(), SLOT_HEADER_BYTES);
    for (at, byte) in written.iter().enumerate() {
        assert!(
            *byte == block.0[at] || SLOT_SKIPPED.contains(&at),
            "byte {at} differs"
        );
    }
    let copies = header.to_blocks();
    for (number, copy) in (0..).zip(&copies) {
        assert_eq!(SlotHeader::from_block(copy, number), Ok(Some(header)));
    }
    let name = SlotId(header.slot).file_name();
    assert_eq!(SlotId::from_file_name(&name), Some(SlotId(header.slot)));
}

/// Stamps a block as the header in it says that it is stamped.
pub(crate) fn stamp_as_header(block: &mut Block, number: u32) {
    let wide = |at: usize| u64::from_le_bytes(block.0[at..at + 8].try_into().expect("8 bytes"));
    let uuid = u128::from_le_bytes(block.0[24..40].try_into().expect("16 bytes"));
    Stamper::new(uuid, wide(88), wide(96)).stamp(block, number, false);
}

pub(crate) fn slot_header_seeds() -> Vec<Vec<u8>> {
    let golden = crate::wire::unhex(include_str!("../../wal/tests/golden/slot-header.hex"));
    (0..2)
        .map(|number| [&[number], &golden[..]].concat())
        .collect()
}

pub(crate) fn group_header(data: &[u8]) {
    let _ = bounded(data.len(), || GroupHeader::parse(data));
    let mut sealed = data.to_vec();
    seal_group(&mut sealed);
    let Ok((header, chain)) = bounded(sealed.len(), || GroupHeader::parse(&sealed)) else {
        return;
    };
    let (mut written, again) = header.seal();
    // A byte that is zero in this version is skipped, and the chain covers it.
    written[7] = sealed[7];
    assert_eq!(
        written[..144],
        sealed[..144],
        "it would be written differently"
    );
    assert!(again == chain || sealed[7] != 0);
    assert!(header.data_bytes() <= header.blocks as usize * BLOCK_DATA_BYTES);
}

/// Makes the chain of the flush group header at the front fit.
pub(crate) fn seal_group(bytes: &mut [u8]) {
    if let Some(header) = bytes.get_mut(..GROUP_HEADER_BYTES) {
        let chain = xxh3_128(&header[..144]);
        header[144..].copy_from_slice(&chain.to_le_bytes());
    }
}

pub(crate) fn group_header_seeds() -> Vec<Vec<u8>> {
    vec![crate::wire::unhex(include_str!(
        "../../wal/tests/golden/group-header.hex"
    ))]
}

pub(crate) fn record(data: &[u8]) {
    canonical::<Record>(data);
    if let Ok(record) = Record::from_bytes(data) {
        // What the next flush group repeats of it is read, too, and repeats itself.
        for first in [false, true] {
            let mut echo = BytesMut::new();
            record.encode_echo(first, &mut Writer::new(&mut echo));
            let echoed = Record::from_bytes(&echo).expect("an echo is a record");
            assert_eq!(
                echoed.group().unwrap_or_default(),
                record.group().unwrap_or_default()
            );
            let mut again = BytesMut::new();
            echoed.encode_echo(first, &mut Writer::new(&mut again));
            assert!(again == echo || matches!(echoed, Record::Mention { .. }));
        }
        if let Record::Entries(run) | Record::Rewrite(run) = record {
            assert!(run.count() > 0);
        }
    }
    // A table: records without gaps.
    let mut table = Reader::new(data);
    let mut written = BytesMut::new();
    while let Ok(record) = Record::decode(&mut table) {
        record.encode(&mut Writer::new(&mut written));
    }
    assert!(
        data.starts_with(&written),
        "they would be written differently"
    );
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    [
        include_str!("../../wal/tests/golden/record-01-genesis.hex"),
        include_str!("../../wal/tests/golden/record-02-entries.hex"),
        include_str!("../../wal/tests/golden/record-03-rewrite.hex"),
        include_str!("../../wal/tests/golden/record-04-truncate.hex"),
        include_str!("../../wal/tests/golden/record-05-base.hex"),
        include_str!("../../wal/tests/golden/record-06-anchor.hex"),
        include_str!("../../wal/tests/golden/record-07-hard-state.hex"),
        include_str!("../../wal/tests/golden/record-08-checkpoint.hex"),
        include_str!("../../wal/tests/golden/record-09-verdict.hex"),
        include_str!("../../wal/tests/golden/record-10-configuration.hex"),
        include_str!("../../wal/tests/golden/record-11-group-removed.hex"),
        include_str!("../../wal/tests/golden/record-12-footer.hex"),
        include_str!("../../wal/tests/golden/record-13-mention.hex"),
    ]
    .map(crate::wire::unhex)
    .to_vec()
}

/// What records are made of. The first byte says which.
pub(crate) fn record_parts(data: &[u8]) {
    const ALL: &[fn(&[u8])] = &[
        canonical::<Place>,
        canonical::<EntryRun>,
        canonical::<Guard>,
        canonical::<Hole>,
        canonical::<Anchor>,
        canonical::<AnchorFile>,
        canonical::<GroupCheckpoint>,
        canonical::<Verdict>,
        canonical::<FooterRow>,
    ];
    if let Some((which, data)) = data.split_first() {
        ALL[usize::from(*which) % ALL.len()](data);
    }
}

/// The golden records without their kinds are parts.
pub(crate) fn record_parts_seeds() -> Vec<Vec<u8>> {
    let parts = record_seeds().into_iter().flat_map(|record| {
        let part = |which: u8, skipped: usize| {
            let rest = record.get(skipped..).unwrap_or_default();
            [&[which], rest].concat()
        };
        match record[0] {
            2 | 3 => vec![part(1, 1)],
            6 => vec![part(4, 1)],
            // A list of one.
            8 => vec![part(6, 5)],
            9 => vec![part(7, 1)],
            12 => vec![part(8, 5)],
            _ => vec![part(0, 1), part(2, 1), part(3, 1), part(5, 1)],
        }
    });
    parts.collect()
}

/// A block, and where it is said to lie.
pub(crate) fn stamp(data: &[u8]) {
    let Some((head, data)) = data.split_at_checked(24) else {
        return;
    };
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let (segment, epoch, place) = (number(0), number(8), number(16));
    // The bit above the number says that a flush group begins here.
    let block_number = u32::try_from(place >> 33).expect("31 bits");
    let first = place & 1 == 1;
    let stamper = Stamper::new(u128::from(place), segment, epoch);
    let mut block = Block::ZERO;
    let kept = data.len().min(BLOCK_BYTES);
    block.0[..kept].copy_from_slice(&data[..kept]);
    let found = stamper.check(&block, block_number);
    if block.0 == Block::ZERO.0 {
        assert_eq!(found, BlockState::NotLanded);
    }
    let there_before = block;
    stamper.stamp(&mut block, block_number, first);
    assert_eq!(
        stamper.check(&block, block_number),
        BlockState::Whole { first }
    );
    let stamp = Stamper::whole_stamp(u128::from(place), &block);
    assert_eq!(
        stamp.map(|stamp| (stamp.block, stamp.first)),
        Some((block_number, first))
    );
    // An earlier segment's block here never hides what landed, and a later one's is never taken for old.
    if let Some(later) = segment
        .checked_add(1)
        .filter(|later| *later <= u64::from(u32::MAX))
    {
        let later = Stamper::new(u128::from(place), later, epoch);
        assert_eq!(later.check(&block, block_number), BlockState::NotLanded);
        let mut ahead = there_before;
        later.stamp(&mut ahead, block_number, first);
        assert_eq!(stamper.check(&ahead, block_number), BlockState::Garbage);
    }
}

pub(crate) fn stamp_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0; 24], vec![1; 24 + 40]];
    seeds.push(vec![7; 24 + BLOCK_BYTES]);
    seeds
}

/// The manifest of a snapshot without the checksum at its end.
pub(crate) fn manifest(data: &[u8]) {
    let _ = bounded(data.len(), || Manifest::from_bytes(data));
    canonical::<ManifestFile>(data);
    let mut sealed = data.to_vec();
    sealed.extend(xxh3_128(data).to_le_bytes());
    canonical::<Manifest>(&sealed);
    let Ok(manifest) = Manifest::from_bytes(&sealed) else {
        return;
    };
    let mut bytes = 0;
    for file in &manifest.files {
        assert_eq!(check_name(&file.name), Ok(()));
        let chunks = (0..).map_while(|chunk| file.chunk_bytes(chunk));
        let lengths: Vec<usize> = chunks.collect();
        assert_eq!(lengths.len(), file.chunks.len());
        assert!(
            lengths
                .iter()
                .all(|length| (1..=CHUNK_BYTES).contains(length))
        );
        assert_eq!(lengths.iter().sum::<usize>() as u64, file.bytes);
        bytes += file.bytes;
    }
    assert_eq!(manifest.bytes_total(), bytes);
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let file = |name: &str, bytes: u64| ManifestFile {
        name: name.to_owned(),
        bytes,
        hash: 7,
        chunks: (0..bytes.div_ceil(CHUNK_BYTES as u64)).collect(),
    };
    let manifest = Manifest {
        compatible: 0,
        cluster: ClusterId(1),
        node: Replica::default(),
        group: GroupId(2),
        anchor: Default::default(),
        files: vec![
            file("empty", 0),
            file("state", CHUNK_BYTES as u64 + 1),
            file("more", 3),
        ],
    };
    let sealed = manifest.to_bytes();
    let unsealed = sealed[..sealed.len() - 16].to_vec();
    vec![unsealed, manifest.files[1].to_bytes().into()]
}
