//! A slot whose segment was released, on its way to being free: what would be in the way of a later segment is
//! cleared, and then its header.
//!
//! The newest header says that the segment is not needed. So a crash in between does no harm, and the next opening takes
//! the slot as free and clears what is left. What lies in a slot that an opening has left for later is read first.

use std::ops::Range;

use logdrive_raft::Boot;

use crate::debris::Debris;
use crate::disk::{BLOCK_BYTES, Block, SlotFile, SlotId, ZERO_BLOCKS_MAX};
use crate::format::SLOT_HEADER_BLOCKS;

/// One slot on its way.
#[derive(Debug)]
pub(super) struct Recycling {
    pub(super) slot: SlotId,
    /// What has not been looked at yet.
    unread: Option<Unread>,
    /// What is cleared, in this order, each durable before the next: what may be taken for a part of a later segment,
    /// then one copy of the header after the other, so that no cut leaves two bad ones.
    stages: Vec<Vec<Range<u32>>>,
    stage: usize,
    /// The run that is cleared, and how far. Beyond the last one the stage is flushed.
    run: usize,
    from: u32,
}

/// A slot that is being read.
#[derive(Debug)]
struct Unread {
    log_uuid: u128,
    boot: Boot,
    blocks: Range<u32>,
    has_header: bool,
    debris: Debris,
}

/// What is to be done with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Read(Range<u32>),
    Zero(Range<u32>),
    Flush,
}

impl Recycling {
    /// It is known what has to be cleared.
    pub(super) fn new(slot: SlotId, debris: &Debris) -> Self {
        Self {
            slot,
            unread: None,
            stages: stages(debris, true),
            stage: 0,
            run: 0,
            from: 0,
        }
    }

    /// It is not, and none of its blocks has been looked at.
    pub(super) fn unread(file: &SlotFile, log_uuid: u128, boot: Boot, has_header: bool) -> Self {
        Self {
            unread: Some(Unread {
                log_uuid,
                boot,
                blocks: SLOT_HEADER_BLOCKS.min(file.blocks)..file.blocks,
                has_header,
                debris: Debris::default(),
            }),
            ..Self::new(file.slot, &Debris::default())
        }
    }

    /// What is to be done next; none: it is free.
    pub(super) fn next(&self) -> Option<Next> {
        if let Some(Unread { blocks, .. }) = &self.unread {
            let end = blocks.start.saturating_add(ZERO_BLOCKS_MAX);
            return Some(Next::Read(blocks.start..end.min(blocks.end)));
        }
        let runs = self.stages.get(self.stage)?;
        let Some(run) = runs.get(self.run) else {
            return Some(Next::Flush);
        };
        let block = run.start.max(self.from);
        Some(Next::Zero(block..run.end.min(block + ZERO_BLOCKS_MAX)))
    }

    /// These were read; or cannot be, and then they are cleared.
    pub(super) fn on_read(&mut self, blocks: Option<&[Block]>) {
        let Some(Next::Read(part)) = self.next() else {
            return;
        };
        let Some(unread) = &mut self.unread else {
            return;
        };
        match blocks.filter(|blocks| blocks.len() == part.len()) {
            Some(blocks) => {
                let (log_uuid, boot) = (unread.log_uuid, unread.boot);
                unread
                    .debris
                    .add_unjudged(log_uuid, boot, part.start, blocks);
            }
            None => unread.debris.add_unreadable(part.clone()),
        }
        unread.blocks.start = part.end;
        if unread.blocks.is_empty() {
            self.stages = stages(&unread.debris, unread.has_header);
            self.unread = None;
        }
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

fn stages(debris: &Debris, has_header: bool) -> Vec<Vec<Range<u32>>> {
    let copies = if has_header { SLOT_HEADER_BLOCKS } else { 0 };
    let copies = (0..copies).map(|copy| std::iter::once(copy..copy + 1).collect());
    let runs = Some(debris.runs().to_vec()).filter(|runs| !runs.is_empty());
    runs.into_iter().chain(copies).collect()
}
