//! What a simulated medium holds, what is on its way there, and how the two meet.

use std::collections::BTreeMap;

use logdrive_wal::disk::{BLOCK_BYTES, Block, Buffer, SlotFile, SlotId};

use super::fault::{Fault, FaultCounts, FaultRates, Kind};
use super::slot::{Bytes, Contents, Covers, Slot, Spare};
use super::storage::Tear;
use crate::dice::{Dice, What};

/// A write that was submitted and has not ended.
#[derive(Debug)]
pub(super) struct Flying {
    pub(super) slot: SlotId,
    pub(super) block: u32,
    pub(super) data: Data,
}

#[derive(Debug)]
pub(super) enum Data {
    Buffer(Buffer),
    Zeros(u32),
}

impl Data {
    pub(super) fn blocks(&self) -> u32 {
        match self {
            Data::Buffer(buffer) => u32::try_from(buffer.blocks().len()).expect("slots are small"),
            Data::Zeros(blocks) => *blocks,
        }
    }

    fn block(&self, place: u32) -> Option<&Bytes> {
        match self {
            Data::Buffer(buffer) => Some(&buffer.blocks().get(place as usize)?.0),
            Data::Zeros(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) slots: BTreeMap<SlotId, Slot>,
    /// Writes in flight, those of dead processes included.
    flying: BTreeMap<u64, Flying>,
    /// Files that are being made, and how long they are going to be.
    creating: BTreeMap<SlotId, u32>,
    begun: u64,
    /// How many writes have landed.
    landed: u64,
    openings: u64,
    /// Who holds the lock.
    pub(super) opening: Option<u64>,
    pub(super) dice: Dice,
    pub(super) capacity_blocks: Option<u64>,
    pub(super) counts: FaultCounts,
    pub(super) completions: u64,
    /// What goes wrong with the next operation that it speaks of, whichever process asks for it.
    pub(super) injected: Vec<Fault>,
    /// Blocks whose flushed contents have changed; nothing is kept for nobody.
    newly_flushed: Option<Vec<(SlotId, u32)>>,
    spare: Spare,
}

impl Medium {
    pub(super) fn new(dice: Dice) -> Self {
        Self {
            slots: BTreeMap::new(),
            flying: BTreeMap::new(),
            creating: BTreeMap::new(),
            begun: 0,
            landed: 0,
            openings: 0,
            opening: None,
            dice,
            capacity_blocks: None,
            counts: FaultCounts::default(),
            completions: 0,
            injected: Vec::new(),
            newly_flushed: None,
            spare: Spare::default(),
        }
    }

    pub(super) fn copy(&self, dice: Dice) -> Self {
        Self {
            slots: self.slots.clone(),
            landed: self.landed,
            capacity_blocks: self.capacity_blocks,
            ..Self::new(dice)
        }
    }

    /// Takes the lock. Whatever a dead process still had in flight has landed by then, or never will.
    pub(super) fn take_lock(&mut self) -> Option<u64> {
        if self.opening.is_some() {
            return None;
        }
        self.create_some();
        for (_, write) in std::mem::take(&mut self.flying) {
            for place in 0..write.data.blocks() {
                if self
                    .dice
                    .decide(What::Land, 0, |random| u64::from(random.bool()))
                    != 0
                {
                    self.counts.blocks_landed_late += 1;
                    self.land_block(&write, place);
                }
            }
        }
        self.openings += 1;
        self.opening = Some(self.openings);
        self.opening
    }

    pub(super) fn slot_files(&self) -> Vec<SlotFile> {
        let files = self.slots.iter().map(|(slot, contents)| SlotFile {
            slot: *slot,
            blocks: contents.blocks(),
        });
        files.collect()
    }

    /// Decides what goes wrong with an operation.
    pub(super) fn draw_fault(&mut self, rates: &FaultRates, kind: Kind) -> Option<Fault> {
        let fault = self.dice.one_of(What::Fault, rates.rates(kind));
        Fault::from_number(fault).filter(|fault| fault.concerns(kind))
    }

    /// What somebody wanted to go wrong with such an operation.
    pub(super) fn take_injected(&mut self, kind: Kind) -> Option<Fault> {
        let place = self.injected.iter().position(|fault| fault.concerns(kind));
        place.map(|place| self.injected.remove(place))
    }

    /// How many of so many blocks are done by an operation that fails or ends early.
    pub(super) fn draw_part(&mut self, most: u32) -> u32 {
        let part = self.dice.between(What::Part, 0..=u64::from(most));
        u32::try_from(part).unwrap_or(most).min(most)
    }

    pub(super) fn begin_create(&mut self, slot: SlotId, blocks: u32) {
        self.creating.insert(slot, blocks);
    }

    /// Ends the making of a file, durable in its directory. Says whether there was none, and space.
    pub(super) fn create(&mut self, slot: SlotId, blocks: u32) -> Created {
        self.creating.remove(&slot);
        if self.slots.contains_key(&slot) {
            return Created::Exists;
        }
        if !self.has_space(u64::from(blocks)) {
            self.counts.no_space += 1;
            return Created::NoSpace;
        }
        self.slots.insert(slot, Slot::empty(blocks, true));
        Created::Made
    }

    pub(super) fn give_up_creating(&mut self, slot: SlotId) {
        self.creating.remove(&slot);
    }

    fn has_space(&self, more_blocks: u64) -> bool {
        let Some(capacity) = self.capacity_blocks else {
            return true;
        };
        let taken = |slot: &Slot| u64::from(slot.blocks().max(slot.reserved_blocks));
        let taken: u64 = self.slots.values().map(taken).sum();
        taken + more_blocks <= capacity
    }

    /// Whether a file may reach this far.
    pub(super) fn may_reach(&self, slot: SlotId, end: u32) -> bool {
        let Some(slot) = self.slots.get(&slot) else {
            return true;
        };
        let taken = slot.blocks().max(slot.reserved_blocks);
        end <= taken || self.has_space(u64::from(end - taken))
    }

    pub(super) fn begin_write(&mut self, write: Flying) -> u64 {
        self.begun += 1;
        self.flying.insert(self.begun, write);
        self.begun
    }

    /// Takes a write that has ended.
    pub(super) fn take_flying(&mut self, write: u64) -> Option<Flying> {
        self.flying.remove(&write)
    }

    /// The first `keep` blocks of a write have reached the disk; with `flushed` for good.
    pub(super) fn land(&mut self, write: &Flying, keep: u32, flushed: bool) {
        self.land_at(
            (write.slot, write.block),
            keep,
            |place| write.data.block(place),
            flushed,
        );
    }

    /// The same for blocks in memory.
    pub(super) fn land_blocks(&mut self, at: (SlotId, u32), blocks: &[Block]) {
        let count = u32::try_from(blocks.len()).expect("slots are small");
        self.land_at(at, count, |place| Some(&blocks[place as usize].0), false);
    }

    /// The same for zeros, for good.
    pub(super) fn land_zeros(&mut self, slot: SlotId, blocks: u32) {
        self.land_at((slot, 0), blocks, |_| None, true);
    }

    fn land_at<'a>(
        &mut self,
        (slot, block): (SlotId, u32),
        count: u32,
        bytes: impl Fn(u32) -> Option<&'a Bytes>,
        flushed: bool,
    ) {
        let Some(contents) = self.slots.get_mut(&slot) else {
            return;
        };
        self.landed += 1;
        for place in 0..count {
            let shared = bytes(place).and_then(|bytes| self.spare.share(bytes));
            let at = block + place;
            if flushed {
                contents.write_flushed(at, shared, &mut self.spare);
                if let Some(told) = self
                    .newly_flushed
                    .as_mut()
                    .filter(|_| bytes(place).is_some())
                {
                    told.push((slot, at));
                }
            } else {
                contents.write(at, shared, self.landed);
            }
        }
    }

    pub(super) fn leave_unflushed(
        &mut self,
        slot: SlotId,
        block: u32,
        contents: Contents,
        forgotten: bool,
    ) {
        self.landed += 1;
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.write(block, contents, self.landed);
            if forgotten {
                slot.forget();
            }
        }
    }

    fn land_block(&mut self, write: &Flying, place: u32) {
        let at = (write.slot, write.block + place);
        self.land_at(at, 1, |_| write.data.block(place), false);
    }

    /// A write lands where the dice say, as far as there is something.
    pub(super) fn misdirect(&mut self, write: &Flying, flushed: bool) {
        let Some((slot, block, room)) = self.draw_place() else {
            return;
        };
        let keep = write.data.blocks().min(room);
        self.land_at(
            (slot, block),
            keep,
            |place| write.data.block(place),
            flushed,
        );
    }

    /// The same for blocks in memory.
    pub(super) fn misdirect_blocks(&mut self, blocks: &[Block]) {
        if let Some((slot, block, room)) = self.draw_place() {
            self.land_blocks((slot, block), &blocks[..blocks.len().min(room as usize)]);
        }
    }

    /// A block of any file, and how many there are from there to the end of the file.
    fn draw_place(&mut self) -> Option<(SlotId, u32, u32)> {
        let blocks = self.slots.values().map(|slot| u64::from(slot.blocks()));
        let last = blocks.sum::<u64>().checked_sub(1)?;
        let mut place = self.dice.between(What::Place, 0..=last);
        for (slot, contents) in &self.slots {
            let blocks = contents.blocks();
            match u32::try_from(place) {
                Ok(block) if block < blocks => return Some((*slot, block, blocks - block)),
                _ => place = place.saturating_sub(u64::from(blocks)),
            }
        }
        None
    }

    pub(super) fn read(&self, slot: SlotId, block: u32, into: &mut [Block]) -> usize {
        let Some(slot) = self.slots.get(&slot) else {
            return 0;
        };
        let mut read = 0;
        for (target, at) in into.iter_mut().zip(block..) {
            let Some(bytes) = slot.written(at) else {
                break;
            };
            target.0 = *bytes;
            read += 1;
        }
        read
    }

    /// What a flush submitted now covers.
    pub(super) fn covers(&self, slot: SlotId) -> Option<Covers> {
        Some(self.slots.get(&slot)?.covers(self.landed))
    }

    /// A flush ends. False: it says that it failed.
    pub(super) fn flush(
        &mut self,
        slot: SlotId,
        covers: Option<Covers>,
        fault: Option<Fault>,
        direct: bool,
    ) -> bool {
        let (Some(contents), Some(covers)) = (self.slots.get_mut(&slot), covers) else {
            return true;
        };
        // Without a page cache there is nobody to call pages clean that are not.
        let owed = std::mem::take(&mut contents.owes_error);
        match fault {
            Some(Fault::FlushReverts) => {
                self.counts.flush_reverts += 1;
                contents.revert(covers);
                false
            }
            Some(Fault::FlushError) => {
                self.counts.flush_errors += 1;
                if !direct {
                    contents.forget();
                }
                false
            }
            _ if owed => false,
            Some(Fault::FlushErrorLate) => {
                self.counts.flush_errors_late += 1;
                contents.forget();
                contents.owes_error = true;
                true
            }
            Some(Fault::LyingFlush) => {
                if contents.has_unflushed(covers) {
                    self.counts.lying_flushes += 1;
                } else {
                    // It was no lie. The next one is.
                    self.injected.push(Fault::LyingFlush);
                }
                true
            }
            _ => {
                let told = &mut self.newly_flushed;
                contents.flush(covers, &mut self.spare, |block| {
                    if let Some(told) = told {
                        told.push((slot, block));
                    }
                });
                true
            }
        }
    }

    /// The directory is flushed: new files are there to stay.
    pub(super) fn flush_directory(&mut self) {
        for slot in self.slots.values_mut() {
            slot.is_named = true;
        }
    }

    pub(super) fn change(
        &mut self,
        slot: SlotId,
        block: u32,
        change: impl Fn(&mut [u8; BLOCK_BYTES]),
    ) {
        if let Some(contents) = self.slots.get_mut(&slot) {
            contents.change(block, change);
            if let Some(told) = &mut self.newly_flushed {
                told.push((slot, block));
            }
        }
    }

    pub(super) fn put_back(&mut self, slots: BTreeMap<SlotId, Slot>) {
        self.opening = None;
        self.flying.clear();
        self.creating.clear();
        // What is gone has changed too.
        self.tell_all();
        self.slots = slots;
        self.tell_all();
    }

    pub(super) fn take_newly_flushed(&mut self, into: &mut Vec<(SlotId, u32)>) {
        if self.newly_flushed.is_none() {
            self.newly_flushed = Some(Vec::new());
            self.tell_all();
        }
        into.append(self.newly_flushed.get_or_insert_default());
    }

    pub(super) fn tell_all(&mut self) {
        let Some(told) = &mut self.newly_flushed else {
            return;
        };
        for (slot, contents) in &self.slots {
            told.extend(contents.flushed_places().map(|block| (*slot, block)));
        }
    }

    /// Each file that was being made when its process died is there or not, and its name not durable.
    fn create_some(&mut self) {
        for (slot, blocks) in std::mem::take(&mut self.creating) {
            let made = self
                .dice
                .decide(What::Land, 0, |random| u64::from(random.bool()))
                != 0;
            if made && self.has_space(u64::from(blocks)) {
                let empty = || Slot::empty(blocks, false);
                self.slots.entry(slot).or_insert_with(empty);
            }
        }
    }

    pub(super) fn cut_power(&mut self, tear: Tear) {
        self.counts.power_cuts += 1;
        self.create_some();
        // In flight: each block may have got as far as the disk's cache, and so as far as the medium.
        for (_, write) in std::mem::take(&mut self.flying) {
            for place in 0..write.data.blocks() {
                self.land_block(&write, place);
            }
        }
        let (dice, counts) = (&mut self.dice, &mut self.counts);
        self.slots.retain(|_, slot| {
            let kept = |random: &mut fastrand::Rng| u64::from(random.bool());
            let left = slot.is_named || dice.decide(What::Name, 0, kept) != 0;
            counts.files_lost += u64::from(!left);
            slot.is_named = left;
            left
        });
        for (slot, contents) in &mut self.slots {
            let told = &mut self.newly_flushed;
            contents.cut_power(tear, dice, counts, |block| {
                if let Some(told) = told {
                    told.push((*slot, block));
                }
            });
        }
    }
}

/// What became of the making of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    Made,
    Exists,
    NoSpace,
}
