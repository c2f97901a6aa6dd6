//! A disk that loses what was not flushed, from a seed.
//!
//! The medium ([`SimStorage`]) outlives the process that uses it ([`SimDisk`]). It keeps two images of every
//! slot: what was written, which readers see, and what was flushed, which survives a power cut. Time is
//! virtual: operations end when the owner lets it get late enough, in an order that latencies drawn from
//! the seed decide.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use logdrive_wal::disk::{
    Block, Buffer, BufferPool, Completion, Disk, DiskError, DiskFacts, FlushMode, Op, OpId,
    SlotFile, SlotId, Wake, WakeBy,
};

pub use fault::{Fault, FaultRates};
pub use storage::{Crash, SimStorage, Tear};

mod fault;
mod storage;

use storage::{Image, PendingWrite, Storage};

/// How a simulated disk behaves.
#[derive(Clone, Debug)]
pub struct SimDiskOptions {
    /// Shortest and longest time of a write, in microseconds.
    pub write_us: (u64, u64),
    /// What a flush takes, alone or as the durable part of a write.
    pub flush_us: (u64, u64),
    /// How many flushes in a hundred take twenty times as long.
    pub starved_percent: u8,
    /// What a read takes.
    pub read_us: (u64, u64),
    /// Whether readers see the medium; otherwise a page cache, as far as the log can tell.
    pub direct: bool,
    /// The flush mode that the disk recommends.
    pub flush_mode: FlushMode,
    /// How often operations fail by themselves.
    pub rates: FaultRates,
}

impl Default for SimDiskOptions {
    fn default() -> Self {
        Self {
            write_us: (20, 80),
            flush_us: (50, 200),
            starved_percent: 0,
            read_us: (20, 80),
            direct: true,
            flush_mode: FlushMode::Dsync,
            rates: FaultRates::default(),
        }
    }
}

/// One process's use of a simulated medium.
#[derive(Debug)]
pub struct SimDisk {
    medium: SimStorage,
    options: SimDiskOptions,
    rng: Rng,
    now_us: u64,
    /// Which opening of the medium this is: operations of an earlier one are not ours.
    opening: Option<u64>,
    pending: BTreeMap<(u64, u64), Pending>,
    submitted: u64,
    faults: Vec<Fault>,
    pool: BufferPool,
    wake: Option<WakeCall>,
}

#[derive(Clone)]
struct WakeCall(Wake);

impl std::fmt::Debug for WakeCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WakeCall")
    }
}

#[derive(Debug)]
struct Pending {
    id: OpId,
    action: Action,
    buffer: Option<Buffer>,
    /// What goes wrong with it.
    fault: Option<Fault>,
}

#[derive(Debug)]
enum Action {
    /// The write lies with the storage, where a crash finds it.
    Write {
        write: u64,
        dsync: bool,
    },
    Read {
        slot: SlotId,
        block: u32,
    },
    /// What the flush covers was decided when it was submitted.
    Flush {
        slot: SlotId,
        covers: Image,
    },
    Create {
        slot: SlotId,
    },
}

impl SimDisk {
    /// A process's view of `medium`. The seed decides latencies and faults.
    #[must_use]
    pub fn new(medium: SimStorage, options: SimDiskOptions, seed: u64) -> Self {
        Self {
            medium,
            options,
            rng: Rng::with_seed(seed),
            now_us: 0,
            opening: None,
            pending: BTreeMap::new(),
            submitted: 0,
            faults: Vec::new(),
            pool: BufferPool::default(),
            wake: None,
        }
    }

    /// The medium, which can be opened again after this process has ended.
    #[must_use]
    pub fn medium(&self) -> &SimStorage {
        &self.medium
    }

    /// Lets the next operation that `fault` speaks of fail. Several wait for one each.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// How it behaves from now on.
    pub fn options_mut(&mut self) -> &mut SimDiskOptions {
        &mut self.options
    }

    /// Lets it be `now_us` on the owner's clock: what is due by then can be taken.
    pub fn advance(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if self.next_due().is_some_and(|due| due <= self.now_us)
            && let Some(WakeCall(wake)) = &self.wake
        {
            wake();
        }
    }

    /// When the next operation ends.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.pending.keys().next().map(|(due, _)| *due)
    }

    /// Lets it get late enough for one more operation to end. False if none is under way.
    pub fn step(&mut self) -> bool {
        let next = self.next_due();
        if let Some(due) = next {
            self.advance(due);
        }
        next.is_some()
    }

    /// Operations that have not been taken yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn storage(&self) -> MutexGuard<'_, Storage> {
        self.medium.lock()
    }

    fn is_current(&self) -> bool {
        self.opening.is_some() && self.opening == self.storage().opening
    }

    fn draw(&mut self, (least, most): (u64, u64)) -> u64 {
        self.rng.u64(least..=most)
    }

    fn draw_flush(&mut self, range: (u64, u64)) -> u64 {
        let percent = self.options.starved_percent;
        let starved = percent > 0 && self.rng.u8(0..100) < percent;
        self.draw(range) * if starved { 20 } else { 1 }
    }

    fn fault_for(&mut self, op: &Op) -> Option<Fault> {
        if let Some(place) = self.faults.iter().position(|fault| fault.concerns(op)) {
            return Some(self.faults.remove(place));
        }
        self.options.rates.draw(op, &mut self.rng)
    }

    fn latency_us(&mut self, op: &Op) -> u64 {
        let SimDiskOptions {
            write_us,
            flush_us,
            read_us,
            ..
        } = self.options;
        match op {
            Op::Write { dsync: true, .. } => self.draw(write_us) + self.draw_flush(flush_us),
            Op::Write { .. } | Op::Zero { .. } => self.draw(write_us),
            Op::Read { .. } => self.draw(read_us),
            Op::Flush { .. } => self.draw_flush(flush_us),
            Op::Create { .. } => self.draw(write_us) + self.draw(flush_us),
        }
    }

    fn begin(&mut self, op: Op) -> (Action, Option<Buffer>) {
        let mut storage = self.storage();
        match op {
            Op::Write {
                slot,
                block,
                buffer,
                dsync,
            } => {
                let data = buffer.blocks().iter().map(storage::share).collect();
                let write = storage.begin_write(PendingWrite { slot, block, data });
                (Action::Write { write, dsync }, Some(buffer))
            }
            Op::Zero {
                slot,
                block,
                blocks,
            } => {
                let data = vec![None; blocks as usize];
                let write = storage.begin_write(PendingWrite { slot, block, data });
                (
                    Action::Write {
                        write,
                        dsync: false,
                    },
                    None,
                )
            }
            Op::Read {
                slot,
                block,
                buffer,
            } => (Action::Read { slot, block }, Some(buffer)),
            Op::Flush { slot } => {
                let covers = storage.flushable(slot);
                (Action::Flush { slot, covers }, None)
            }
            Op::Create { slot, .. } => (Action::Create { slot }, None),
        }
    }

    fn end(&mut self, pending: Pending) -> Completion {
        let Pending {
            id,
            action,
            mut buffer,
            fault,
        } = pending;
        let mut storage = self.medium.lock();
        let result = match action {
            Action::Write { write, dsync } => match fault {
                Some(Fault::WriteError) => {
                    // What an erroneous write leaves behind is anybody's guess: here, a part of it.
                    let keep = self.rng.usize(0..=storage.write_blocks(write));
                    storage.end_write(write, keep, false);
                    Err(eio())
                }
                Some(Fault::ShortWrite) => {
                    let blocks = storage.write_blocks(write);
                    let keep = self.rng.usize(0..blocks.max(1));
                    storage.end_write(write, keep, dsync);
                    Ok((keep * size_of::<Block>()) as u64)
                }
                Some(Fault::NoSpace) => {
                    storage.end_write(write, 0, false);
                    Err(io::ErrorKind::StorageFull.into())
                }
                _ => {
                    let blocks = storage.write_blocks(write);
                    storage.end_write(write, blocks, dsync);
                    Ok((blocks * size_of::<Block>()) as u64)
                }
            },
            Action::Read { slot, block } => match (fault, &mut buffer) {
                (None, Some(buffer)) => {
                    let wanted = buffer.blocks_mut();
                    let blocks = storage.read(slot, block, wanted);
                    Ok((blocks * size_of::<Block>()) as u64)
                }
                _ => Err(eio()),
            },
            Action::Flush { slot, covers } => {
                if fault.is_some() {
                    // As kernels do: the pages are marked clean, and a second flush would succeed.
                    if !self.options.direct {
                        storage.forget(slot);
                    }
                    Err(eio())
                } else {
                    storage.flush(slot, covers);
                    Ok(0)
                }
            }
            Action::Create { slot } => match fault {
                Some(_) => Err(io::ErrorKind::StorageFull.into()),
                None if storage.create(slot) => Ok(0),
                None => Err(io::ErrorKind::AlreadyExists.into()),
            },
        };
        drop(storage);
        Completion { id, result, buffer }
    }

    fn blocking(&mut self, what: &'static str, slot: SlotId, op: &Op) -> Result<(), DiskError> {
        match self.fault_for(op) {
            None => Ok(()),
            Some(Fault::NoSpace) => {
                let source = io::ErrorKind::StorageFull.into();
                Err(DiskError::io(what, self.slot_path(slot), source))
            }
            Some(_) => Err(DiskError::io(what, self.slot_path(slot), eio())),
        }
    }
}

impl Disk for SimDisk {
    fn facts(&self) -> DiskFacts {
        DiskFacts {
            backend: "sim",
            direct: self.options.direct,
            flush_mode: Some(self.options.flush_mode),
            fallbacks: Vec::new(),
            buffers_bytes: self.pool.bytes(),
        }
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        PathBuf::from("sim").join(slot.file_name())
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        let mut storage = self.medium.lock();
        let Some(opening) = storage.take_lock(&mut self.rng) else {
            let path = PathBuf::from("sim").join("LOCK");
            return Err(DiskError::Locked { path });
        };
        drop(storage);
        self.opening = Some(opening);
        Ok(())
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        Ok(self.storage().slot_files())
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        for SlotFile { slot, .. } in self.slots()? {
            self.flush(slot)?;
        }
        Ok(())
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        self.blocking("create", slot, &Op::Create { slot, blocks })?;
        let mut storage = self.storage();
        assert!(storage.create(slot), "a slot is created once");
        let (block, data) = (0, vec![None; blocks as usize]);
        let write = storage.begin_write(PendingWrite { slot, block, data });
        storage.end_write(write, blocks as usize, true);
        Ok(())
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        let buffer = Buffer::with_blocks(0);
        let op = Op::Read {
            slot,
            block,
            buffer,
        };
        self.blocking("read", slot, &op)?;
        let read = self.storage().read(slot, block, into);
        if read < into.len() {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(DiskError::io("read", self.slot_path(slot), source));
        }
        Ok(())
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        let (buffer, dsync) = (Buffer::with_blocks(0), false);
        let op = Op::Write {
            slot,
            block,
            buffer,
            dsync,
        };
        self.blocking("write", slot, &op)?;
        let mut storage = self.storage();
        let data = blocks.iter().map(storage::share).collect();
        let write = storage.begin_write(PendingWrite { slot, block, data });
        storage.end_write(write, blocks.len(), false);
        Ok(())
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        self.blocking("flush", slot, &Op::Flush { slot })?;
        let mut storage = self.storage();
        let covers = storage.flushable(slot);
        storage.flush(slot, covers);
        Ok(())
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.pool.take(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        assert!(
            self.is_current(),
            "only the process that holds the lock operates on the disk"
        );
        let fault = self.fault_for(&op);
        let due = self.now_us + self.latency_us(&op);
        let (action, buffer) = self.begin(op);
        let pending = Pending {
            id,
            action,
            buffer,
            fault,
        };
        self.submitted += 1;
        self.pending.insert((due, self.submitted), pending);
    }

    fn kick(&mut self) {}

    fn poll(&mut self, done: &mut Vec<Completion>) {
        while let Some(first) = self.pending.first_entry() {
            if first.key().0 > self.now_us {
                break;
            }
            let pending = first.remove();
            let completion = self.end(pending);
            done.push(completion);
        }
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        self.step();
        self.poll(done);
    }

    fn wake_by(&mut self, wake: Wake) -> WakeBy {
        self.wake = Some(WakeCall(wake));
        WakeBy::Owner
    }

    fn now_ns(&self) -> u64 {
        self.now_us * 1000
    }
}

impl Drop for SimDisk {
    /// The process ends. What was in flight may land later, until somebody takes the lock again.
    fn drop(&mut self) {
        let mut storage = self.medium.lock();
        if self.opening.is_some() && storage.opening == self.opening {
            storage.opening = None;
        }
    }
}

fn eio() -> io::Error {
    // What `errno` 5 is called differs between systems; the kind is enough.
    io::Error::other("input/output error")
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared contents of a block; `None` is a block of zeros.
type Contents = Option<Arc<Block>>;

#[cfg(test)]
mod tests;
