//! The medium under simulated disks: a written and a flushed image of every slot, and what a crash leaves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotFile, SlotId};

use super::{Contents, unpoisoned};

/// How a machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies: what it wrote stays readable and unflushed; what was in flight may land later.
    Process,
    /// The power fails: each unflushed block is kept or lost, and so is each block in flight.
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
}

/// A medium that several processes use, one after the other. Clones are the same medium.
#[derive(Clone, Debug, Default)]
pub struct SimStorage {
    storage: Arc<Mutex<Storage>>,
}

impl SimStorage {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops whatever process uses the medium. Its disk can do nothing any more.
    pub fn crash(&self, crash: Crash, tear: Tear, rng: &mut Rng) {
        let mut storage = self.lock();
        storage.opening = None;
        if crash == Crash::Power {
            storage.cut_power(tear, rng);
        }
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
        let mut storage = self.lock();
        if let Some(slot) = storage.slots.get_mut(&slot) {
            for image in [&mut slot.written, &mut slot.flushed] {
                if let Some((_, contents)) = image.blocks.get_mut(block as usize) {
                    let mut copy = contents.as_deref().copied().unwrap_or(Block::ZERO);
                    change(&mut copy.0);
                    *contents = share(&copy);
                }
            }
        }
    }

    /// The bytes of a slot as a reader sees them; empty if there is no such slot.
    #[must_use]
    pub fn contents(&self, slot: SlotId) -> Vec<u8> {
        let storage = self.lock();
        let blocks = storage.slots.get(&slot).map(|slot| &slot.written.blocks);
        let zero = Block::ZERO;
        let blocks = blocks.into_iter().flatten();
        blocks
            .flat_map(|(_, contents)| contents.as_deref().unwrap_or(&zero).0)
            .collect()
    }

    /// Replaces the bytes of a slot, in both images; whole blocks. Makes the slot if there is none.
    pub fn set_contents(&self, slot: SlotId, bytes: &[u8]) {
        let chunks = bytes.chunks_exact(BLOCK_BYTES);
        assert!(chunks.remainder().is_empty(), "slots hold whole blocks");
        let blocks = chunks
            .map(|chunk| Block(chunk.try_into().expect("chunks of a block")))
            .map(|block| (0, share(&block)))
            .collect();
        let image = Image { blocks };
        let contents = Slot {
            flushed: image.clone(),
            written: image,
            forgotten: 0,
        };
        self.lock().slots.insert(slot, contents);
    }

    /// The slots there are.
    #[must_use]
    pub fn slot_files(&self) -> Vec<SlotFile> {
        self.lock().slot_files()
    }

    /// A medium of its own with the same contents, nothing in flight and nobody using it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let original = self.lock();
        let storage = Storage {
            slots: original.slots.clone(),
            writes_begun: original.writes_begun,
            ..Storage::default()
        };
        drop(original);
        Self {
            storage: Arc::new(Mutex::new(storage)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Storage> {
        unpoisoned(&self.storage)
    }
}

/// The blocks of a slot, as far as the file reaches, each with the number of the write that left it so.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    blocks: Vec<(u64, Contents)>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    written: Image,
    flushed: Image,
    /// Writes up to this one that are not flushed never will be: a flush of them failed, and the page cache
    /// has forgotten that it still owes them.
    forgotten: u64,
}

/// A write that was submitted and has not ended.
#[derive(Debug)]
pub(super) struct PendingWrite {
    pub(super) slot: SlotId,
    pub(super) block: u32,
    pub(super) data: Vec<Contents>,
}

#[derive(Debug, Default)]
pub(super) struct Storage {
    slots: BTreeMap<SlotId, Slot>,
    /// Writes in flight, those of dead processes included.
    writes: BTreeMap<u64, PendingWrite>,
    writes_begun: u64,
    openings: u64,
    /// Who holds the lock.
    pub(super) opening: Option<u64>,
}

impl Storage {
    /// Takes the lock. Whatever a dead process still had in flight has landed by then, or never will.
    pub(super) fn take_lock(&mut self, rng: &mut Rng) -> Option<u64> {
        if self.opening.is_some() {
            return None;
        }
        self.land_some(rng);
        self.openings += 1;
        self.opening = Some(self.openings);
        self.opening
    }

    pub(super) fn slot_files(&self) -> Vec<SlotFile> {
        self.slots
            .iter()
            .map(|(slot, contents)| SlotFile {
                slot: *slot,
                blocks: u32::try_from(contents.written.blocks.len()).expect("slots are small"),
            })
            .collect()
    }

    pub(super) fn create(&mut self, slot: SlotId) -> bool {
        let vacant = !self.slots.contains_key(&slot);
        self.slots.entry(slot).or_default();
        vacant
    }

    pub(super) fn begin_write(&mut self, write: PendingWrite) -> u64 {
        self.writes_begun += 1;
        self.writes.insert(self.writes_begun, write);
        self.writes_begun
    }

    pub(super) fn write_blocks(&self, write: u64) -> usize {
        self.writes.get(&write).map_or(0, |write| write.data.len())
    }

    /// The first `keep` blocks of a write have reached the disk; with `flushed` for good.
    pub(super) fn end_write(&mut self, write: u64, keep: usize, flushed: bool) {
        let number = write;
        let Some(write) = self.writes.remove(&number) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(&write.slot) else {
            return;
        };
        for (place, contents) in write.data.into_iter().take(keep).enumerate() {
            let at = write.block as usize + place;
            if flushed {
                slot.flushed.set(at, (number, contents.clone()));
            }
            slot.written.set(at, (number, contents));
        }
    }

    pub(super) fn read(&self, slot: SlotId, block: u32, into: &mut [Block]) -> usize {
        let Some(slot) = self.slots.get(&slot) else {
            return 0;
        };
        let from = slot.written.blocks.iter().skip(block as usize);
        let mut read = 0;
        for (target, (_, contents)) in into.iter_mut().zip(from) {
            *target = contents.as_deref().copied().unwrap_or(Block::ZERO);
            read += 1;
        }
        read
    }

    /// What a flush submitted now covers.
    pub(super) fn flushable(&self, slot: SlotId) -> Image {
        let Some(slot) = self.slots.get(&slot) else {
            return Image::default();
        };
        let mut covers = slot.written.clone();
        for (at, block) in covers.blocks.iter_mut().enumerate() {
            if block.0 <= slot.forgotten {
                *block = slot.flushed.blocks.get(at).cloned().unwrap_or_default();
            }
        }
        covers
    }

    /// A flush has failed, and a later one does not know what this one was to cover.
    pub(super) fn forget(&mut self, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.forgotten = self.writes_begun;
        }
    }

    /// A flush has ended: what it covers is durable. A write that became durable by itself meanwhile stays.
    pub(super) fn flush(&mut self, slot: SlotId, covers: Image) {
        let Some(slot) = self.slots.get_mut(&slot) else {
            return;
        };
        for (at, block) in covers.blocks.into_iter().enumerate() {
            let newer = slot
                .flushed
                .blocks
                .get(at)
                .is_none_or(|flushed| flushed.0 < block.0);
            if newer {
                slot.flushed.set(at, block);
            }
        }
    }

    /// Each block in flight reaches the written image or not.
    fn land_some(&mut self, rng: &mut Rng) {
        for (number, write) in std::mem::take(&mut self.writes) {
            if let Some(slot) = self.slots.get_mut(&write.slot) {
                for (place, contents) in write.data.into_iter().enumerate() {
                    if rng.bool() {
                        let at = write.block as usize + place;
                        slot.written.set(at, (number, contents));
                    }
                }
            }
        }
    }

    fn cut_power(&mut self, tear: Tear, rng: &mut Rng) {
        // In flight: each block may have got as far as the disk's cache, and so as far as the medium.
        self.land_some(rng);
        for slot in self.slots.values_mut() {
            let durable = slot.flushed.blocks.len();
            // The length of a file is written last: what it does not reach is gone.
            let length = rng.usize(durable..=slot.written.blocks.len().max(durable));
            slot.written.blocks.truncate(length);
            for (at, (_, written)) in slot.written.blocks.iter_mut().enumerate() {
                let flushed = slot.flushed.blocks.get(at).cloned();
                let flushed = flushed.and_then(|(_, contents)| contents);
                if same(written, &flushed) {
                    continue;
                }
                match (tear, rng.u8(0..4)) {
                    (_, 0) | (Tear::Never, 2) => *written = flushed,
                    (Tear::Sectors, 2) => *written = torn(written, &flushed, rng),
                    _ => {}
                }
            }
            slot.flushed = slot.written.clone();
        }
    }
}

impl Image {
    fn set(&mut self, at: usize, block: (u64, Contents)) {
        if self.blocks.len() <= at {
            self.blocks.resize(at + 1, (0, None));
        }
        self.blocks[at] = block;
    }
}

/// Shares a block's contents; zeros take no memory.
pub(super) fn share(block: &Block) -> Contents {
    (block.0 != [0; BLOCK_BYTES]).then(|| Arc::new(*block))
}

fn same(one: &Contents, other: &Contents) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.0 == other.0,
        _ => false,
    }
}

fn torn(new: &Contents, old: &Contents, rng: &mut Rng) -> Contents {
    const SECTOR_BYTES: usize = 512;
    let mut block = old.as_deref().copied().unwrap_or(Block::ZERO);
    let new = new.as_deref().unwrap_or(&Block::ZERO).0;
    for sector in (0..BLOCK_BYTES).step_by(SECTOR_BYTES) {
        if rng.bool() {
            block.0[sector..sector + SECTOR_BYTES].copy_from_slice(&new[sector..][..SECTOR_BYTES]);
        }
    }
    share(&block)
}
