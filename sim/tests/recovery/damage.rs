//! Picks bytes to change.

use std::collections::BTreeSet;

use fastrand::Rng;
use logdrive_raft::Boot;
use logdrive_sim::disk::SimStorage;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotId};
use logdrive_wal::format::{BLOCK_DATA_BYTES, GroupHeader, SlotHeader};

/// Any byte of a block that holds something.
pub fn any_byte(medium: &SimStorage, rng: &mut Rng) -> Option<(SlotId, u64)> {
    let slots = medium.slot_files();
    for _ in 0..16 {
        let file = rng.choice(&slots)?;
        if file.blocks == 0 {
            continue;
        }
        let at = rng.usize(0..file.blocks as usize) * BLOCK_BYTES;
        let bytes = medium.contents(file.slot);
        if bytes[at..at + BLOCK_BYTES].iter().any(|byte| *byte != 0) {
            return Some((file.slot, (at + rng.usize(0..BLOCK_BYTES)) as u64));
        }
    }
    None
}

/// A byte of a flush group of this boot, which was opened, that a later one calls durable.
///
/// A flush group whose segment has no header yet is no witness: without it, what it calls durable is suspect
/// when it goes bad, and refused like rot.
pub fn durable_byte(medium: &SimStorage, boot: Boot, rng: &mut Rng) -> Option<(SlotId, u64)> {
    let mut groups = Vec::new();
    let mut segments = BTreeSet::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let mut headers = (0..2).filter_map(|number| {
            let bytes = bytes.chunks_exact(BLOCK_BYTES).nth(number as usize)?;
            let block = Block(bytes.try_into().ok()?);
            SlotHeader::from_block(&block, number).ok()?
        });
        // A later opening that died may have put a segment of the same number there.
        let header = headers.next().filter(|header| header.epoch <= boot);
        let segment = header.map(|header| header.segment);
        let mut block = 2;
        while (block + 1) * BLOCK_BYTES <= bytes.len() {
            let parsed = GroupHeader::parse(&bytes[block * BLOCK_BYTES..][..BLOCK_DATA_BYTES]);
            block += 1;
            if let Ok((header, _)) = parsed
                && header.boot == boot
                && header.place.block as usize == block - 1
            {
                block += header.blocks as usize - 1;
                groups.push((file.slot, header));
                segments.extend(segment.filter(|segment| *segment == header.place.segment));
            }
        }
    }
    let witness = |header: &GroupHeader| {
        (header.mark.segment..=header.place.segment).all(|segment| segments.contains(&segment))
    };
    let witnesses = groups.iter().filter(|(_, header)| witness(header));
    let mark = witnesses.map(|(_, header)| header.mark).max()?;
    groups.retain(|(_, header)| header.place < mark);
    let (slot, header) = rng.choice(&groups)?;
    let blocks = header.blocks as usize * BLOCK_BYTES;
    let byte = header.place.block as usize * BLOCK_BYTES + rng.usize(0..blocks);
    Some((*slot, byte as u64))
}
