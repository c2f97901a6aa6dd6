//! A slot file of a simulated medium: what was written, which readers see, and what was flushed, which
//! survives a power cut.
//!
//! The two images differ in a few blocks only, so one is kept as the difference from the other: a flush costs
//! what it flushes, whatever the size of the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use logdrive_wal::disk::BLOCK_BYTES;

use super::fault::FaultCounts;
use super::storage::Tear;
use crate::dice::{Dice, What};

/// The bytes of a block at rest. Unlike those in memory they need no alignment, which would double what they take.
pub(crate) type Bytes = [u8; BLOCK_BYTES];

/// Shared contents of a block; `None` is a block of zeros.
pub(crate) type Contents = Option<Arc<Bytes>>;

pub(crate) const ZEROS: Bytes = [0; BLOCK_BYTES];

/// Memory of contents that nobody needs any more.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    spare: Vec<Arc<Bytes>>,
}

/// The most blocks that lie about unused: as many as are usually in flight.
const SPARE_MAX: usize = 256;

impl Spare {
    /// Shares a block's contents; zeros take no memory.
    pub(crate) fn share(&mut self, bytes: &Bytes) -> Contents {
        if *bytes == ZEROS {
            return None;
        }
        if let Some(mut shared) = self.spare.pop()
            && let Some(target) = Arc::get_mut(&mut shared)
        {
            *target = *bytes;
            return Some(shared);
        }
        Some(Arc::new(*bytes))
    }

    /// Takes contents that were replaced.
    fn give(&mut self, contents: Contents) {
        if let Some(shared) = contents
            && self.spare.len() < SPARE_MAX
            && Arc::strong_count(&shared) == 1
        {
            self.spare.push(shared);
        }
    }
}

/// What a flush makes durable: what had landed when it was submitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covers {
    landed: u64,
    blocks: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// As far as the file reaches.
    written: Vec<Contents>,
    /// How far it would reach after a power cut.
    flushed_blocks: u32,
    /// The blocks whose flushed contents are others than the written ones.
    unflushed: BTreeMap<u32, Unflushed>,
    /// How long it is going to be: space that is taken already.
    pub(super) reserved_blocks: u32,
    /// Its name is durable in the directory.
    pub(super) is_named: bool,
    /// A flush has failed and nobody was told yet.
    pub(super) owes_error: bool,
}

#[derive(Clone, Debug)]
struct Unflushed {
    flushed: Contents,
    /// Which write the written contents are of.
    landed: u64,
    /// A later flush makes them durable. Otherwise the page cache has forgotten that it has to.
    is_owed: bool,
    /// What was written before them and not flushed either: a disk may have got as far as that.
    older: Vec<(u64, Contents)>,
}

impl Slot {
    /// A file that has just been made.
    pub(super) fn empty(reserved_blocks: u32, is_named: bool) -> Self {
        Self {
            reserved_blocks,
            is_named,
            ..Self::default()
        }
    }

    /// A file that is durable, with these contents.
    pub(crate) fn durable(written: Vec<Contents>) -> Self {
        let blocks = u32::try_from(written.len()).expect("slots are small");
        Self {
            written,
            flushed_blocks: blocks,
            reserved_blocks: blocks,
            is_named: true,
            ..Self::default()
        }
    }

    pub(crate) fn blocks(&self) -> u32 {
        u32::try_from(self.written.len()).expect("slots are small")
    }

    /// What readers see; nothing beyond the end.
    pub(super) fn written(&self, block: u32) -> Option<&Bytes> {
        let contents = self.written.get(block as usize)?;
        Some(contents.as_deref().unwrap_or(&ZEROS))
    }

    /// What would be left of a block if nothing unflushed were; nothing beyond the end.
    pub(super) fn flushed(&self, block: u32) -> Option<&Bytes> {
        if block >= self.flushed_blocks {
            return None;
        }
        Some(self.flushed_contents(block).as_deref().unwrap_or(&ZEROS))
    }

    fn flushed_contents(&self, block: u32) -> &Contents {
        match self.unflushed.get(&block) {
            Some(unflushed) => &unflushed.flushed,
            None => self.written.get(block as usize).unwrap_or(&None),
        }
    }

    /// Blocks whose flushed contents are not zeros.
    pub(super) fn flushed_places(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.flushed_blocks).filter(|block| self.flushed_contents(*block).is_some())
    }

    /// Blocks that are not flushed.
    pub(super) fn unflushed_places(&self) -> impl Iterator<Item = u32> + '_ {
        self.unflushed.keys().copied()
    }

    /// A block was written, and a flush has to follow.
    pub(super) fn write(&mut self, block: u32, contents: Contents, landed: u64) {
        let at = block as usize;
        self.reach(at + 1);
        let old = std::mem::replace(&mut self.written[at], contents);
        if let Some(unflushed) = self.unflushed.get_mut(&block) {
            // What was forgotten is not made durable by a flush that began before it was written again.
            let landed_before = if unflushed.is_owed {
                unflushed.landed
            } else {
                u64::MAX
            };
            unflushed.older.push((landed_before, old));
            unflushed.landed = landed;
            unflushed.is_owed = true;
        } else if old.is_some() || self.written[at].is_some() {
            // Zeros over zeros change nothing, and a new file is filled with them.
            let unflushed = Unflushed {
                flushed: old,
                landed,
                is_owed: true,
                older: Vec::new(),
            };
            self.unflushed.insert(block, unflushed);
        }
    }

    /// A block was written and is durable.
    pub(super) fn write_flushed(&mut self, block: u32, contents: Contents, spare: &mut Spare) {
        let at = block as usize;
        self.reach(at + 1);
        self.flushed_blocks = self.flushed_blocks.max(block + 1);
        let old = std::mem::replace(&mut self.written[at], contents);
        spare.give(old);
        if !self.unflushed.is_empty() {
            self.unflushed.remove(&block);
        }
    }

    /// A block of a durable file is something else; nothing beyond its end.
    pub(crate) fn put(&mut self, block: u32, contents: Contents) {
        if let Some(written) = self.written.get_mut(block as usize) {
            *written = contents;
        }
    }

    /// A durable file is at least so long.
    pub(crate) fn extend(&mut self, blocks: u32) {
        self.reach(blocks as usize);
        self.flushed_blocks = self.flushed_blocks.max(blocks);
    }

    /// What readers see of a block; zeros beyond the end.
    pub(crate) fn contents(&self, block: u32) -> Contents {
        self.written.get(block as usize).cloned().flatten()
    }

    fn reach(&mut self, blocks: usize) {
        if self.written.len() < blocks {
            self.written.resize(blocks, None);
        }
    }

    /// What a flush submitted now covers, `landed` being the last write that has.
    pub(super) fn covers(&self, landed: u64) -> Covers {
        Covers {
            landed,
            blocks: self.blocks(),
        }
    }

    /// Whether there is something that such a flush makes durable.
    pub(super) fn has_unflushed(&self, covers: Covers) -> bool {
        let owed = |unflushed: &Unflushed| unflushed.is_owed && unflushed.landed <= covers.landed;
        covers.blocks > self.flushed_blocks || self.unflushed.values().any(owed)
    }

    /// A flush has ended. Tells which blocks it has changed.
    pub(super) fn flush(
        &mut self,
        covers: Covers,
        spare: &mut Spare,
        mut changed: impl FnMut(u32),
    ) {
        self.flushed_blocks = self.flushed_blocks.max(covers.blocks.min(self.blocks()));
        self.unflushed.retain(|block, unflushed| {
            if !unflushed.is_owed {
                return true;
            }
            if unflushed.landed <= covers.landed {
                changed(*block);
                spare.give(unflushed.flushed.take());
                return false;
            }
            // It was written again since. What was there when the flush began is durable.
            let older = &mut unflushed.older;
            let covered = older
                .iter()
                .rposition(|(landed, _)| *landed <= covers.landed);
            if let Some(last) = covered {
                changed(*block);
                unflushed.flushed = older[last].1.take();
                older.drain(..=last);
            }
            true
        });
    }

    /// A flush has failed, and later ones do not know what it was to make durable.
    pub(super) fn forget(&mut self) {
        for unflushed in self.unflushed.values_mut() {
            unflushed.is_owed = false;
        }
    }

    /// A flush has failed, and what it was to make durable is gone.
    pub(super) fn revert(&mut self, covers: Covers) {
        let written = &mut self.written;
        self.unflushed.retain(|block, unflushed| {
            let reverts = unflushed.landed <= covers.landed;
            if reverts {
                written[*block as usize] = unflushed.flushed.take();
            }
            !reverts
        });
    }

    /// The power fails: each unflushed block is kept, lost or torn.
    pub(super) fn cut_power(
        &mut self,
        tear: Tear,
        dice: &mut Dice,
        counts: &mut FaultCounts,
        mut changed: impl FnMut(u32),
    ) {
        // The length of a file is written last: what it does not reach is gone.
        let more = self.written.len() as u64 - u64::from(self.flushed_blocks);
        if more > 0 {
            let left = dice.between(What::Length, 0..=more);
            counts.files_cut += u64::from(left < more);
            self.flushed_blocks += u32::try_from(left).unwrap_or(0);
            self.written.truncate(self.flushed_blocks as usize);
        }
        self.owes_error = false;
        for (block, unflushed) in std::mem::take(&mut self.unflushed) {
            let Some(written) = self.written.get_mut(block as usize) else {
                counts.blocks_lost += 1;
                continue;
            };
            let Unflushed { flushed, older, .. } = unflushed;
            if older.is_empty() && same(written, &flushed) {
                continue;
            }
            let usual = 0;
            let versions = older.len() as u64;
            let fate = dice.decide(What::Block, usual, |random| {
                if versions > 0 && random.u8(0..4) == 0 {
                    return 3 + random.u64(0..versions);
                }
                match (tear, random.u8(0..4)) {
                    (_, 0) | (Tear::Never, 2) => 0,
                    (Tear::Sectors, 2 | 3) | (Tear::InOrder, 2) => 2,
                    _ => 1,
                }
            });
            match fate {
                0 => {
                    counts.blocks_lost += 1;
                    *written = flushed;
                    continue;
                }
                2 => {
                    counts.blocks_torn += 1;
                    let new = dice.decide(What::Sectors, 0, |random| match tear {
                        Tear::InOrder => (1 << random.u8(1..8)) - 1,
                        _ => u64::from(random.u8(..)),
                    });
                    *written = torn(written, &flushed, new);
                }
                older_from_three if older_from_three >= 3 => {
                    counts.blocks_kept += 1;
                    let place = usize::try_from(older_from_three - 3).unwrap_or(usize::MAX);
                    // A script that was edited may name a write that is not there.
                    *written = older.into_iter().nth(place).map_or(flushed, |(_, old)| old);
                }
                _ => counts.blocks_kept += 1,
            }
            changed(block);
        }
    }

    /// Changes a block at rest, in both images and in all that was written between.
    pub(super) fn change(&mut self, block: u32, change: impl Fn(&mut Bytes)) {
        let changed = |contents: &mut Contents| {
            let mut copy = contents.as_deref().copied().unwrap_or(ZEROS);
            change(&mut copy);
            *contents = Spare::default().share(&copy);
        };
        if let Some(contents) = self.written.get_mut(block as usize) {
            changed(contents);
        }
        if let Some(unflushed) = self.unflushed.get_mut(&block) {
            changed(&mut unflushed.flushed);
        }
    }
}

fn same(one: &Contents, other: &Contents) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        _ => false,
    }
}

/// The sectors of a bit each are new, the others old.
pub(crate) fn torn(new: &Contents, old: &Contents, sectors: u64) -> Contents {
    const SECTOR_BYTES: usize = 512;
    let mut bytes = old.as_deref().copied().unwrap_or(ZEROS);
    let new = new.as_deref().unwrap_or(&ZEROS);
    for (sector, at) in (0..BLOCK_BYTES).step_by(SECTOR_BYTES).enumerate() {
        if sectors >> sector & 1 == 1 {
            bytes[at..at + SECTOR_BYTES].copy_from_slice(&new[at..at + SECTOR_BYTES]);
        }
    }
    Spare::default().share(&bytes)
}
