//! A slot whose segment was released, on its way to being free: what would be in the way of a later segment is
//! cleared, and then its header.
//!
//! The newest header says that the segment is not needed. So a crash in between does no harm, and the next opening takes
//! the slot as free and clears what is left.

use std::ops::Range;

use crate::debris::Debris;
use crate::disk::{BLOCK_BYTES, Op, SlotId, ZERO_BLOCKS_MAX};
use crate::format::SLOT_HEADER_BLOCKS;

/// One slot on its way.
#[derive(Debug)]
pub(super) struct Recycling {
    pub(super) slot: SlotId,
    /// What is cleared, in this order, each durable before the next: what may be taken for a part of a later segment,
    /// then one copy of the header after the other, so that no cut leaves two bad ones.
    stages: Vec<Vec<Range<u32>>>,
    stage: usize,
    /// The run that is cleared, and how far. Beyond the last one the stage is flushed.
    run: usize,
    from: u32,
}

impl Recycling {
    pub(super) fn new(slot: SlotId, debris: &Debris) -> Self {
        let copies = (0..SLOT_HEADER_BLOCKS).map(|copy| std::iter::once(copy..copy + 1).collect());
        let runs = Some(debris.runs().to_vec()).filter(|runs| !runs.is_empty());
        Self {
            slot,
            stages: runs.into_iter().chain(copies).collect(),
            stage: 0,
            run: 0,
            from: 0,
        }
    }

    /// What is to be done next; none: it is free.
    pub(super) fn step(&self) -> Option<Op> {
        let slot = self.slot;
        let runs = self.stages.get(self.stage)?;
        let Some(run) = runs.get(self.run) else {
            return Some(Op::Flush { slot });
        };
        let block = run.start.max(self.from);
        let blocks = (run.end - block).min(ZERO_BLOCKS_MAX);
        Some(Op::Zero {
            slot,
            block,
            blocks,
        })
    }

    /// That was done, and wrote so many bytes.
    pub(super) fn on_step(&mut self, bytes: u64) {
        let Some(run) = self
            .stages
            .get(self.stage)
            .and_then(|runs| runs.get(self.run))
        else {
            self.stage += 1;
            self.run = 0;
            self.from = 0;
            return;
        };
        let written = u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
        self.from = run.start.max(self.from).saturating_add(written);
        if self.from >= run.end {
            self.run += 1;
            self.from = 0;
        }
    }

    /// What was not flushed may be lost: the stage is done again from its beginning.
    pub(super) fn again(&mut self) {
        self.run = 0;
        self.from = 0;
    }
}
