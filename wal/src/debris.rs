//! What lies in a free slot and could be taken for a part of a segment that is opened there later.
//!
//! A power cut may leave a block that was torn inside: new sectors, the last one among them, between old ones.
//! In the segment that it was written for it is garbage above the mark, or lies beyond the end and is dropped
//! with the segment. For a segment that is opened later in the same slot it would be garbage still. Were that
//! segment to end just before it, the next opening could not tell it from a block that was acknowledged and
//! went bad, and would refuse a log that had opened cleanly before. So it goes before the slot is taken.
//!
//! In a segment that counts nothing is cleared. What lies beyond its end is remembered, and goes when the segment has
//! been released.
//!
//! An opening reads and clears no more free slots than will be taken soon. The others wait, with those that are released
//! later, until a free one is wanted: a log of a hundred free slots opens no later than one of three.
//!
//! Only blocks that are not whole are cleared. Whole ones are of an earlier boot or segment than any to come, so
//! that they look as if nothing had landed on them; and until the opening has its verdict they are what the
//! next one judges by, if this one fails. A block that is not whole tells it nothing that zeros do not: it holds
//! nothing that counts, for what counts was read and was whole, and where the log ends some block has not
//! landed, or it would have been refused. Nothing changes either if a cut ends the clearing anywhere: what is
//! left of it is cleared by the next opening.
//!
//! What is judged is what can be read. A page cache may show a block whole that a failed write-back left torn on
//! the medium; such a block stays.

use std::ops::Range;

use logdrive_raft::Boot;

use crate::disk::{Block, Disk, DiskError, SlotFile, SlotId};
use crate::format::{SLOT_HEADER_BLOCKS, Stamper};
use crate::scan::READ_BLOCKS;

/// Which blocks of a slot have to be cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debris {
    /// In their order, with gaps between them.
    runs: Vec<Range<u32>>,
}

impl Debris {
    /// Among all blocks of a slot.
    pub(crate) fn find(log_uuid: u128, blocks: &[Block]) -> Self {
        let mut debris = Self::default();
        debris.add(log_uuid, 0, blocks);
        debris
    }

    /// In a slot that has not been read yet, from this block on.
    pub(crate) fn read(
        disk: &mut impl Disk,
        file: &SlotFile,
        from: u32,
        log_uuid: u128,
    ) -> Result<Self, DiskError> {
        let mut debris = Self::default();
        let mut blocks = vec![Block::ZERO; READ_BLOCKS.min(file.blocks as usize)];
        for part in parts(from.min(file.blocks)..file.blocks) {
            let blocks = &mut blocks[..part.len()];
            disk.read(file.slot, part.start, blocks)?;
            debris.add(log_uuid, part.start, blocks);
        }
        Ok(debris)
    }

    /// What of these blocks has to be cleared. They come in their order.
    fn add(&mut self, log_uuid: u128, first: u32, blocks: &[Block]) {
        for (number, block) in (first..).zip(blocks) {
            if Stamper::is_debris(log_uuid, block, number) {
                self.add_block(number);
            }
        }
    }

    /// The same of a slot of which the opening has not read all: a whole block there may bear the number of this boot,
    /// and would be one of its own.
    pub(crate) fn add_unjudged(
        &mut self,
        log_uuid: u128,
        boot: Boot,
        first: u32,
        blocks: &[Block],
    ) {
        for (number, block) in (first..).zip(blocks) {
            let stamp = Stamper::whole_stamp_at(log_uuid, block, number);
            let own = stamp.is_some_and(|stamp| boot.0 <= u64::from(stamp.epoch));
            if own || Stamper::is_debris(log_uuid, block, number) {
                self.add_block(number);
            }
        }
    }

    /// Blocks that cannot be read.
    pub(crate) fn add_unreadable(&mut self, blocks: Range<u32>) {
        blocks.for_each(|number| self.add_block(number));
    }

    /// Headers are judged by themselves.
    fn add_block(&mut self, number: u32) {
        if number < SLOT_HEADER_BLOCKS {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => self.runs.push(number..number + 1),
        }
    }

    /// Which blocks.
    pub(crate) fn runs(&self) -> &[Range<u32>] {
        &self.runs
    }

    /// Writes zeros there and makes them durable.
    pub(crate) fn clear(&self, disk: &mut impl Disk, slot: SlotId) -> Result<(), DiskError> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let longest = self.runs.iter().map(|run| run.len()).max().unwrap_or(0);
        let zeros = vec![Block::ZERO; longest.min(READ_BLOCKS)];
        for part in self.runs.iter().cloned().flat_map(parts) {
            disk.write(slot, part.start, &zeros[..part.len()])?;
        }
        disk.flush(slot)
    }
}

/// The same blocks in parts that are transferred at once.
fn parts(run: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let end = run.end;
    let part = move |start: u32| start..end.min(start.saturating_add(READ_BLOCKS as u32));
    run.step_by(READ_BLOCKS).map(part)
}
