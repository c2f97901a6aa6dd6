//! The medium under simulated disks, as its owner sees it: crashes, damage, images, and what an oracle asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotFile, SlotId};

use super::fault::{Fault, FaultCounts};
use super::medium::Medium;
use super::slot::{Contents, Slot, Spare};
use crate::dice::{Choice, Dice, What};

/// How a machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies: what it wrote stays readable and unflushed; what was in flight may land later.
    Process,
    /// The power fails: each unflushed block is kept or lost, and so is each block in flight, the end of a
    /// file that was made longer, and a new file.
    Power,
}

/// What a power cut may do to a single block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tear {
    /// A block is written whole or not at all.
    #[default]
    Never,
    /// A block may be left with some sectors of 512 bytes new and some old.
    Sectors,
    /// The same, and the new ones come first: the disk writes in order.
    InOrder,
}

/// What becomes of a block that rots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// One bit is another.
    Bit,
    /// It reads as zeros.
    Zeros,
    /// It reads as something that nobody wrote.
    Garbage,
}

/// A medium that several processes use, one after the other. Clones are the same medium.
///
/// It decides what happens to it, and to the operations of the disks that use it, by dice of its own.
#[derive(Clone, Debug)]
pub struct SimStorage {
    medium: Arc<Mutex<Medium>>,
}

/// What was on a medium at some time.
#[derive(Clone, Debug)]
pub struct SimImage {
    slots: BTreeMap<SlotId, Slot>,
}

/// For images of which every block is durable.
impl SimImage {
    pub(crate) fn empty() -> Self {
        let slots = BTreeMap::new();
        Self { slots }
    }

    pub(crate) fn create(&mut self, slot: SlotId) {
        let empty = || Slot::durable(Vec::new());
        self.slots.entry(slot).or_insert_with(empty);
    }

    pub(crate) fn extend(&mut self, slot: SlotId, blocks: u32) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.extend(blocks);
        }
    }

    pub(crate) fn put(&mut self, slot: SlotId, block: u32, contents: Contents) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.put(block, contents);
        }
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.slots.keys().copied()
    }

    pub(crate) fn blocks(&self, slot: SlotId) -> u32 {
        self.slots.get(&slot).map_or(0, Slot::blocks)
    }

    pub(crate) fn contents(&self, slot: SlotId, block: u32) -> Contents {
        self.slots.get(&slot)?.contents(block)
    }

    /// A medium that holds it.
    pub(crate) fn onto_medium(self, dice: Dice) -> SimStorage {
        let medium = SimStorage::new(dice);
        medium.lock().slots = self.slots;
        medium
    }
}

impl SimStorage {
    /// A dead process has written these blocks, which are not flushed; with `forgotten` no flush owes them.
    pub(crate) fn leave_unflushed(&self, blocks: &[(SlotId, u32, Contents)], forgotten: bool) {
        let mut medium = self.lock();
        for (slot, block, contents) in blocks {
            medium.leave_unflushed(*slot, *block, contents.clone(), forgotten);
        }
    }
}

impl SimStorage {
    /// An empty directory.
    #[must_use]
    pub fn new(dice: Dice) -> Self {
        Self {
            medium: Arc::new(Mutex::new(Medium::new(dice))),
        }
    }

    /// Other dice decide from now on.
    pub fn set_dice(&self, dice: Dice) {
        self.lock().dice = dice;
    }

    /// Lets the next operation that `fault` speaks of meet it, if need be one of a later process. Several wait
    /// for one each.
    pub fn inject(&self, fault: Fault) {
        self.lock().injected.push(fault);
    }

    /// Nothing waits for its operation any more, and no flush tells of an earlier one.
    pub fn withdraw_faults(&self) {
        let mut medium = self.lock();
        medium.injected.clear();
        for slot in medium.slots.values_mut() {
            slot.owes_error = false;
        }
    }

    /// All files together take no more than this.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.lock().capacity_blocks = capacity_bytes.map(|bytes| bytes / BLOCK_BYTES as u64);
    }

    /// Stops whatever process uses the medium. Its disk can do nothing any more.
    pub fn crash(&self, crash: Crash, tear: Tear) {
        let mut medium = self.lock();
        medium.opening = None;
        match crash {
            Crash::Process => medium.counts.process_crashes += 1,
            Crash::Power => medium.cut_power(tear),
        }
    }

    /// Damages a block that is flushed and holds something, or one of these; the dice choose it. None if there is none.
    pub fn rot(&self, rot: Rot, among: Option<Vec<(SlotId, u32)>>) -> Option<(SlotId, u32)> {
        let mut medium = self.lock();
        let places = among.unwrap_or_else(|| {
            let slots = medium.slots.iter();
            let flushed = slots
                .flat_map(|(slot, contents)| contents.flushed_places().map(|block| (*slot, block)));
            flushed.collect()
        });
        let last = (places.len() as u64).checked_sub(1)?;
        let place = medium.dice.between(What::Place, 0..=last);
        let (slot, block) = *places.get(usize::try_from(place).ok()?)?;
        let damage = medium.dice.decide(What::Damage, 0, |random| random.u64(..));
        medium.counts.rotted += 1;
        medium.change(slot, block, |bytes| match rot {
            Rot::Bit => {
                let bit = usize::try_from(damage % (8 * BLOCK_BYTES as u64)).unwrap_or(0);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Rot::Zeros => bytes.fill(0),
            Rot::Garbage => Rng::with_seed(damage).fill(bytes),
        });
        Some((slot, block))
    }

    /// Everything is lost, as with the disk replaced by a new one.
    pub fn wipe(&self) {
        let mut medium = self.lock();
        medium.put_back(BTreeMap::new());
        medium.counts.wipes += 1;
    }

    /// What is on the medium now, what is in flight not included.
    #[must_use]
    pub fn image(&self) -> SimImage {
        let slots = self.lock().slots.clone();
        SimImage { slots }
    }

    /// Puts an image back, as from a backup. Whatever was in flight is gone, and so is the process.
    pub fn restore(&self, image: &SimImage) {
        let mut medium = self.lock();
        medium.put_back(image.slots.clone());
        medium.counts.restores += 1;
    }

    /// Changes one byte at rest, in both images.
    pub fn flip(&self, slot: SlotId, offset_bytes: u64, mask: u8) {
        let (block, byte) = (
            offset_bytes / BLOCK_BYTES as u64,
            offset_bytes % BLOCK_BYTES as u64,
        );
        let block = u32::try_from(block).expect("slots are smaller than 16 TiB");
        self.change(slot, block, |bytes| bytes[byte as usize] ^= mask);
    }

    /// Changes a block at rest, in both images.
    pub fn change(&self, slot: SlotId, block: u32, change: impl Fn(&mut [u8; BLOCK_BYTES])) {
        self.lock().change(slot, block, change);
    }

    /// The bytes of a slot as a reader sees them; empty if there is no such slot.
    #[must_use]
    pub fn contents(&self, slot: SlotId) -> Vec<u8> {
        let medium = self.lock();
        let Some(slot) = medium.slots.get(&slot) else {
            return Vec::new();
        };
        let blocks = (0..slot.blocks()).filter_map(|block| slot.written(block));
        blocks.flatten().copied().collect()
    }

    /// Replaces the bytes of a slot, in both images; whole blocks. Makes the slot if there is none.
    pub fn set_contents(&self, slot: SlotId, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        assert!(rest.is_empty(), "slots hold whole blocks");
        let mut spare = Spare::default();
        let contents = blocks.iter().map(|block| spare.share(block)).collect();
        let mut medium = self.lock();
        medium.slots.insert(slot, Slot::durable(contents));
        medium.tell_all();
    }

    /// The slots there are.
    #[must_use]
    pub fn slot_files(&self) -> Vec<SlotFile> {
        self.lock().slot_files()
    }

    /// A medium of its own with the same contents, nothing in flight and nobody using it.
    #[must_use]
    pub fn copy(&self, dice: Dice) -> Self {
        let copy = self.lock().copy(dice);
        Self {
            medium: Arc::new(Mutex::new(copy)),
        }
    }

    /// The same as if the power failed now and nothing were left that is not flushed.
    #[must_use]
    pub fn flushed_only(&self) -> Self {
        let site = self.lock().dice.site();
        let copy = self.copy(Dice::played(site, &[]));
        // Nothing is drawn, so all of it has its usual fate: it is lost.
        copy.lock().cut_power(Tear::Never);
        copy.lock().counts = FaultCounts::default();
        copy
    }

    /// Adds the blocks whose flushed contents have changed since the last call, some of them more than once;
    /// at the first call, all that hold something. Zeros that a new file is filled with are not told of.
    pub fn take_newly_flushed(&self, into: &mut Vec<(SlotId, u32)>) {
        self.lock().take_newly_flushed(into);
    }

    /// Reads a block as it would be after a power cut that leaves nothing unflushed. False: there is none.
    #[must_use]
    pub fn flushed_block(&self, slot: SlotId, block: u32, into: &mut Block) -> bool {
        let medium = self.lock();
        let slot = medium.slots.get(&slot).filter(|slot| slot.is_named);
        let Some(bytes) = slot.and_then(|slot| slot.flushed(block)) else {
            return false;
        };
        into.0 = *bytes;
        true
    }

    /// Blocks whose written contents are not flushed, in flight ones not included.
    #[must_use]
    pub fn unflushed_blocks(&self) -> Vec<(SlotId, u32)> {
        let medium = self.lock();
        let slots = medium.slots.iter();
        slots
            .flat_map(|(slot, contents)| contents.unflushed_places().map(|block| (*slot, block)))
            .collect()
    }

    /// What has gone wrong so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        self.lock().counts
    }

    /// How many operations have been completed.
    #[must_use]
    pub fn completions(&self) -> u64 {
        self.lock().completions
    }

    /// Which of its decisions had another outcome than the usual one, if its dice record that.
    #[must_use]
    pub fn take_recorded(&self) -> Vec<Choice> {
        self.lock().dice.take_recorded()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
