//! A disk whose process dies at the n-th thing that it asks for.

use std::path::PathBuf;

use logdrive_wal::disk::{
    Block, Buffer, Completion, Disk, DiskError, DiskFacts, Op, OpId, SlotFile, SlotId, Wake, WakeBy,
};

use crate::disk::SimDisk;

/// What a process that is killed unwinds with: no hook is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Killed;

/// A simulated disk, and how many more changes and waits its process lives for.
#[derive(Debug)]
pub struct Mortal {
    /// The disk.
    pub disk: SimDisk,
    /// How many are left; `None`: it lives on.
    pub left: Option<u64>,
}

impl Mortal {
    /// A disk whose process lives for so many changes and waits.
    #[must_use]
    pub fn new(disk: SimDisk, left: Option<u64>) -> Self {
        Self { disk, left }
    }

    fn live(&mut self) {
        if let Some(left) = &mut self.left {
            if *left == 0 {
                std::panic::resume_unwind(Box::new(Killed));
            }
            *left -= 1;
        }
    }
}

impl Disk for Mortal {
    fn facts(&self) -> DiskFacts {
        self.disk.facts()
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        self.disk.slot_path(slot)
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        self.disk.lock()
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        self.disk.slots()
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        self.live();
        self.disk.sync_all()
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        self.live();
        self.disk.create(slot, blocks)
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        self.disk.read(slot, block, into)
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        self.live();
        self.disk.write(slot, block, blocks)
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        self.live();
        self.disk.flush(slot)
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.disk.take_buffer(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.disk.give_buffer(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        self.live();
        self.disk.submit(id, op);
    }

    fn kick(&mut self) {
        self.disk.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.disk.poll(done);
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        self.live();
        self.disk.wait(done);
    }

    fn wake_by(&mut self, wake: Wake) -> WakeBy {
        self.disk.wake_by(wake)
    }

    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }
}
