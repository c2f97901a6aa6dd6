//! A moment of a trace: what is durable, what may have reached the medium besides, and every image that a
//! power cut may leave.

use std::collections::BTreeMap;

use fastrand::Rng;
use logdrive_wal::disk::SlotId;

use super::trace::Event;
use crate::dice::Dice;
use crate::disk::slot::{Contents, torn};
use crate::disk::{SimImage, SimStorage};

/// How many subsets of the pieces of a moment are tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subsets {
    /// All of them, if there are no more pieces than this.
    pub(super) all_of: usize,
    /// Otherwise so many.
    pub(super) else_many: usize,
}

/// Something that a power cut may leave or not, by itself.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    File {
        slot: SlotId,
    },
    Length {
        slot: SlotId,
        blocks: u32,
    },
    Block {
        slot: SlotId,
        block: u32,
        contents: Contents,
    },
}

/// What a crash has left.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// What is durable.
    pub(super) image: SimImage,
    /// What reads well besides, if only the process died: a power cut may still take it.
    pub(super) unflushed: Vec<(SlotId, u32, Contents)>,
    /// A flush of that has failed, and a page cache has forgotten that it owes it.
    pub(super) is_forgotten: bool,
}

impl From<SimImage> for Left {
    fn from(image: SimImage) -> Self {
        Self {
            image,
            unflushed: Vec::new(),
            is_forgotten: false,
        }
    }
}

impl Left {
    /// A medium that holds it, with nobody using it.
    pub(super) fn onto_medium(&self, dice: Dice) -> SimStorage {
        let medium = self.image.clone().onto_medium(dice);
        medium.leave_unflushed(&self.unflushed, self.is_forgotten);
        medium
    }
}

/// What is where at a moment of a trace.
#[derive(Clone, Debug)]
pub(super) struct Prefix {
    pub(super) durable: SimImage,
    /// In the order in which they were written, each with its operation and whether that is complete.
    pending: Vec<(u64, bool, Piece)>,
    flushes: BTreeMap<u64, Vec<u64>>,
}

impl Prefix {
    pub(super) fn new(durable: SimImage) -> Self {
        Self {
            durable,
            pending: Vec::new(),
            flushes: BTreeMap::new(),
        }
    }

    /// Where a recovery begins.
    pub(super) fn after(left: &Left) -> Self {
        let mut prefix = Self::new(left.image.clone());
        for (slot, block, contents) in &left.unflushed {
            let piece = Piece::Block {
                slot: *slot,
                block: *block,
                contents: contents.clone(),
            };
            // A flush covers it if it is owed. Operations of the recovery are numbered from 1.
            let op = u64::MAX - u64::from(slot.0);
            prefix.pending.push((op, !left.is_forgotten, piece));
        }
        prefix
    }

    /// Whether an event makes something certain that was not: every image of the moments since the last such
    /// one is an image of the moment before it.
    pub(super) fn is_settled_by(&self, event: &Event) -> bool {
        !self.pending.is_empty() && matches!(event, Event::Durable(_) | Event::FlushEnds(_))
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Write {
                op,
                slot,
                block,
                contents,
            } => {
                for (contents, block) in contents.iter().zip(*block..) {
                    let (slot, contents) = (*slot, contents.clone());
                    let piece = Piece::Block {
                        slot,
                        block,
                        contents,
                    };
                    self.pending.push((*op, false, piece));
                }
            }
            Event::Extend { op, slot, blocks } => {
                let (slot, blocks) = (*slot, *blocks);
                if self.durable.blocks(slot) < blocks {
                    let piece = Piece::Length { slot, blocks };
                    self.pending.push((*op, false, piece));
                }
            }
            Event::Create { op, slot, .. } => {
                self.pending.push((*op, false, Piece::File { slot: *slot }));
            }
            Event::Landed(op) => {
                for (of, landed, _) in &mut self.pending {
                    *landed |= of == op;
                }
            }
            Event::Durable(op) => self.settle(&[*op]),
            Event::FlushBegins { op, slot } => {
                let covered = self
                    .pending
                    .iter()
                    .filter(|(_, landed, piece)| *landed && piece.slot() == *slot);
                let covered = covered.map(|(of, _, _)| *of).collect();
                self.flushes.insert(*op, covered);
            }
            Event::FlushEnds(op) => {
                let covered = self.flushes.remove(op).unwrap_or_default();
                self.settle(&covered);
            }
            Event::FlushFails { op, slot } => {
                for (_, landed, piece) in &mut self.pending {
                    *landed &= piece.slot() != *slot;
                }
                self.flushes.remove(op);
            }
            Event::Acked(_) | Event::Opened => {}
        }
    }

    fn settle(&mut self, ops: &[u64]) {
        let mut settled = Vec::new();
        // The newest first: what was written to the same block before is no longer there.
        for (op, landed, piece) in std::mem::take(&mut self.pending).into_iter().rev() {
            if ops.contains(&op) {
                settled.push(piece);
            } else if !settled.iter().any(|newer| newer.replaces(&piece)) {
                self.pending.push((op, landed, piece));
            }
        }
        self.pending.reverse();
        for piece in settled.iter().rev() {
            put(&mut self.durable, piece);
        }
    }

    pub(super) fn pieces(&self) -> usize {
        self.pending.len()
    }

    /// What is left if exactly these pieces are, a bit each.
    pub(super) fn image(&self, kept: u64) -> SimImage {
        let mut image = self.durable.clone();
        for (number, (_, _, piece)) in self.pending.iter().enumerate() {
            if number < 64 && kept >> number & 1 == 1 {
                put(&mut image, piece);
            }
        }
        image
    }

    /// The same if only the process dies: files are there, blocks read well and are not durable.
    pub(super) fn unflushed(&self, kept: u64, is_forgotten: bool) -> Left {
        let mut left = Left::from(self.durable.clone());
        left.is_forgotten = is_forgotten;
        for (number, (_, _, piece)) in self.pending.iter().enumerate() {
            if number >= 64 || kept >> number & 1 == 0 {
                continue;
            }
            match piece {
                Piece::Block {
                    slot,
                    block,
                    contents,
                } => left.unflushed.push((*slot, *block, contents.clone())),
                other => put(&mut left.image, other),
            }
        }
        left
    }

    /// The same as an image, and of one block only the sectors of a bit each. None if that piece is no block.
    pub(super) fn torn_image(&self, kept: u64, piece: usize, sectors: u64) -> Option<SimImage> {
        let Piece::Block {
            slot,
            block,
            contents,
        } = &self.pending.get(piece)?.2
        else {
            return None;
        };
        let mut image = self.image(kept & !(1 << piece));
        let old = image.contents(*slot, *block);
        image.put(*slot, *block, torn(contents, &old, sectors));
        Some(image)
    }

    /// Which subsets of the pieces to try.
    pub(super) fn subsets(&self, wanted: Subsets, random: &mut Rng) -> Vec<u64> {
        let pieces = self.pieces();
        if pieces <= wanted.all_of {
            return (0..1 << pieces).collect();
        }
        let all = u64::MAX >> 64_usize.saturating_sub(pieces);
        // All up to some place, as most disks would leave, and all but one; and any.
        let mut subsets = vec![0, all];
        for piece in 0..pieces.min(64) {
            subsets.extend([(1 << piece) - 1, all & !(1 << piece)]);
        }
        random.shuffle(&mut subsets);
        subsets.truncate(wanted.else_many / 2);
        while subsets.len() < wanted.else_many {
            subsets.push(random.u64(..) & all);
        }
        subsets
    }
}

impl Piece {
    /// Whether both are of the same block.
    fn replaces(&self, other: &Self) -> bool {
        let place = |piece: &Self| match piece {
            Piece::Block { slot, block, .. } => Some((*slot, *block)),
            _ => None,
        };
        place(self).is_some() && place(self) == place(other)
    }

    fn slot(&self) -> SlotId {
        match self {
            Piece::File { slot } | Piece::Length { slot, .. } | Piece::Block { slot, .. } => *slot,
        }
    }
}

fn put(image: &mut SimImage, piece: &Piece) {
    match piece {
        Piece::File { slot } => image.create(*slot),
        Piece::Length { slot, blocks } => image.extend(*slot, *blocks),
        Piece::Block {
            slot,
            block,
            contents,
        } => image.put(*slot, *block, contents.clone()),
    }
}
