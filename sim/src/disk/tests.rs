use logdrive_raft::NodeId;
use logdrive_wal::disk::BLOCK_BYTES;

use super::*;
use crate::dice::{Dice, Site};

mod crashes;
mod faults;
mod media;

const SITE: Site = Site::Disk(NodeId(1));
const SLOT: SlotId = SlotId(0);
const OTHER: SlotId = SlotId(1);

/// A disk whose process has the lock.
struct Rig {
    medium: SimStorage,
    disk: SimDisk,
    ops: u64,
}

impl Rig {
    fn open(medium: &SimStorage) -> Self {
        Self::open_with(medium, SimDiskOptions::default())
    }

    fn open_with(medium: &SimStorage, options: SimDiskOptions) -> Self {
        let mut disk = SimDisk::new(medium.clone(), options);
        disk.lock().unwrap();
        Self {
            medium: medium.clone(),
            disk,
            ops: 0,
        }
    }

    /// An empty medium with a slot of eight blocks.
    fn new(seed: u64) -> Self {
        let mut rig = Self::open(&SimStorage::new(Dice::drawn(SITE, seed)));
        rig.disk.create(SLOT, 8).unwrap();
        rig
    }

    fn buffered(seed: u64) -> Self {
        let mut rig = Self::new(seed);
        rig.disk.options_mut().direct = false;
        rig
    }

    fn submit(&mut self, op: Op) {
        self.ops += 1;
        self.disk.submit(OpId(self.ops), op);
    }

    fn begin_write(&mut self, block: u32, bytes: &[u8], dsync: bool) {
        let mut buffer = Buffer::with_blocks(bytes.len());
        for (block, byte) in buffer.blocks_mut().iter_mut().zip(bytes) {
            block.0.fill(*byte);
        }
        self.submit(Op::Write {
            slot: SLOT,
            block,
            buffer,
            dsync,
        });
    }

    /// Waits for everything; the results in the order of the submissions.
    fn finish(&mut self) -> Vec<io::Result<u64>> {
        let mut done = Vec::new();
        while self.disk.in_flight() > 0 {
            self.disk.wait(&mut done);
        }
        done.sort_by_key(|completion| completion.id);
        done.into_iter()
            .map(|completion| completion.result)
            .collect()
    }

    fn write(&mut self, block: u32, bytes: &[u8], dsync: bool) -> io::Result<u64> {
        self.begin_write(block, bytes, dsync);
        self.finish().pop().unwrap()
    }

    fn flush(&mut self) -> io::Result<u64> {
        self.submit(Op::Flush { slot: SLOT });
        self.finish().pop().unwrap()
    }

    fn read(&mut self, blocks: usize) -> (io::Result<u64>, Vec<u8>) {
        self.submit(Op::Read {
            slot: SLOT,
            block: 0,
            buffer: Buffer::with_blocks(blocks),
        });
        let mut done = Vec::new();
        self.disk.wait(&mut done);
        let done = done.pop().unwrap();
        let read = done.buffer.unwrap();
        let bytes = read.blocks().iter().map(|block| block.0[0]);
        (done.result, bytes.collect())
    }

    fn cut_power(&self) {
        self.medium.crash(Crash::Power, Tear::Never);
    }
}

/// The first byte of each block, as readers see it.
fn bytes_of(medium: &SimStorage, slot: SlotId) -> Vec<u8> {
    let bytes = medium.contents(slot);
    bytes.iter().step_by(BLOCK_BYTES).copied().collect()
}

/// What of a block of [`SLOT`] is certain to survive.
fn durable(medium: &SimStorage, block: u32) -> Option<u8> {
    let mut into = Block::ZERO;
    let there = medium.flushed_block(SLOT, block, &mut into);
    let left = bytes_of(&medium.flushed_only(), SLOT);
    let left = left.get(block as usize).copied();
    assert_eq!(
        left,
        there.then_some(into.0[0]),
        "the two ways to ask agree"
    );
    left
}
