//! A disk that loses what was not flushed, and fails as it is told to.
//!
//! The medium ([`SimStorage`]) outlives the process that uses it ([`SimDisk`]). It keeps two images of every
//! slot: what was written, which readers see, and what was flushed, which survives a power cut. Time is
//! virtual: operations end when the owner lets it get late enough, in an order that latencies decide. All
//! that is decided, latencies, faults and what a crash leaves, is decided by the dice of the medium.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use logdrive_wal::disk::{
    BLOCK_BYTES, Block, Buffer, BufferPool, Completion, Disk, DiskError, DiskFacts, FlushMode, Op,
    OpId, SlotFile, SlotId, Wake, WakeBy,
};

pub use fault::{Fault, FaultCounts, FaultRates};
pub use storage::{Crash, Rot, SimImage, SimStorage, Tear};

mod fault;
mod medium;
mod operation;
pub(crate) mod slot;
mod storage;

use fault::Kind;
use medium::{Data, Medium};
use operation::{Action, begin, eio, end_create, end_read, end_write};

use crate::dice::What;

/// How a simulated disk behaves.
#[derive(Clone, Debug)]
pub struct SimDiskOptions {
    /// Shortest and longest time of a write, in microseconds.
    pub write_us: (u64, u64),
    /// What a flush takes, alone or as the durable part of a write.
    pub flush_us: (u64, u64),
    /// How many flushes in a hundred take twenty times as long.
    pub starved_percent: u8,
    /// How many flushes the making of a file takes: space has to be found, and the file and its directory made
    /// durable.
    pub create_flushes: u64,
    /// What a read takes.
    pub read_us: (u64, u64),
    /// What an operation that stalls takes on top of that.
    pub stall_us: (u64, u64),
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
            create_flushes: 1,
            read_us: (20, 80),
            stall_us: (10_000, 2_000_000),
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
    now_us: u64,
    stalled_until_us: u64,
    /// Which opening of the medium this is: operations of an earlier one are not ours.
    opening: Option<u64>,
    pending: BTreeMap<(u64, u64), Pending>,
    submitted: u64,
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
    /// What goes wrong with it.
    fault: Option<Fault>,
}

impl SimDisk {
    /// A process's view of `medium`.
    #[must_use]
    pub fn new(medium: SimStorage, options: SimDiskOptions) -> Self {
        Self {
            medium,
            options,
            now_us: 0,
            stalled_until_us: 0,
            opening: None,
            pending: BTreeMap::new(),
            submitted: 0,
            pool: BufferPool::default(),
            wake: None,
        }
    }

    /// The medium, which can be opened again after this process has ended.
    #[must_use]
    pub fn medium(&self) -> &SimStorage {
        &self.medium
    }

    /// Nothing fails by itself any more.
    pub fn heal(&mut self) {
        self.options.rates = FaultRates::default();
        self.options.starved_percent = 0;
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

    /// Ends nothing before then, neither what is under way nor what is submitted meanwhile.
    pub fn stall_until(&mut self, until_us: u64) {
        self.stalled_until_us = self.stalled_until_us.max(until_us);
        let under_way = std::mem::take(&mut self.pending);
        let stalled = under_way
            .into_iter()
            .map(|((due, number), pending)| ((due.max(until_us), number), pending));
        self.pending = stalled.collect();
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

    /// What goes wrong with an operation. The dice are asked in any case, so that a fault that is injected
    /// leaves what happens afterwards as it was.
    fn fault_for(&mut self, medium: &mut Medium, kind: Kind) -> Option<Fault> {
        let drawn = medium.draw_fault(&self.options.rates, kind);
        medium.take_injected(kind).or(drawn)
    }

    fn draw_latency_us(&self, medium: &mut Medium, kind: Kind, fault: Option<Fault>) -> u64 {
        let SimDiskOptions {
            write_us,
            flush_us,
            read_us,
            stall_us,
            starved_percent,
            create_flushes,
            ..
        } = self.options;
        let (transfer, flush) = match kind {
            Kind::WriteDsync => (write_us, flush_us),
            Kind::Create => (
                write_us,
                (create_flushes * flush_us.0, create_flushes * flush_us.1),
            ),
            Kind::Write | Kind::Zero => (write_us, (0, 0)),
            Kind::Read => (read_us, (0, 0)),
            Kind::Flush => ((0, 0), flush_us),
        };
        let may_starve = starved_percent > 0 && matches!(kind, Kind::WriteDsync | Kind::Flush);
        let usual = transfer.0 + flush.0;
        let latency = medium.dice.decide(What::Delay, usual, |random| {
            let starved = may_starve && random.u8(0..100) < starved_percent;
            let factor = if starved { 20 } else { 1 };
            random.u64(transfer.0..=transfer.1) + random.u64(flush.0..=flush.1) * factor
        });
        if may_starve && transfer.1 + flush.1 < latency {
            medium.counts.slow_flushes += 1;
        }
        if fault != Some(Fault::Stall) {
            return latency;
        }
        medium.counts.stalls += 1;
        latency + medium.dice.between(What::Delay, stall_us.0..=stall_us.1)
    }

    fn end(&self, medium: &mut Medium, pending: Pending) -> Completion {
        let Pending { id, action, fault } = pending;
        medium.completions += 1;
        let (result, buffer) = match action {
            Action::Write { write, dsync } => match medium.take_flying(write) {
                Some(write) => {
                    let result = end_write(medium, &write, dsync, fault);
                    let buffer = match write.data {
                        Data::Buffer(buffer) => Some(buffer),
                        Data::Zeros(_) => None,
                    };
                    (result, buffer)
                }
                None => (Err(eio()), None),
            },
            Action::Read {
                slot,
                block,
                mut buffer,
            } => (
                end_read(medium, slot, block, buffer.blocks_mut(), fault),
                Some(buffer),
            ),
            Action::Flush { slot, covers } => {
                let flushed = medium.flush(slot, covers, fault, self.options.direct);
                (if flushed { Ok(0) } else { Err(eio()) }, None)
            }
            Action::Create { slot, blocks } => (end_create(medium, slot, blocks, fault), None),
        };
        Completion { id, result, buffer }
    }

    fn io(&self, what: &'static str, slot: SlotId, source: io::Error) -> DiskError {
        DiskError::io(what, self.slot_path(slot), source)
    }
}

impl Disk for SimDisk {
    fn facts(&self) -> DiskFacts {
        DiskFacts {
            backend: "sim",
            direct: self.options.direct,
            flush_mode: Some(self.options.flush_mode),
            sizing: None,
            fallbacks: Vec::new(),
            buffers_bytes: self.pool.bytes(),
        }
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        PathBuf::from("sim").join(slot.file_name())
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        let Some(opening) = self.medium.lock().take_lock() else {
            let path = PathBuf::from("sim").join("LOCK");
            return Err(DiskError::Locked { path });
        };
        self.opening = Some(opening);
        Ok(())
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        Ok(self.medium.slot_files())
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        for SlotFile { slot, .. } in self.slots()? {
            self.flush(slot)?;
        }
        self.medium.lock().flush_directory();
        Ok(())
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        let storage = self.medium.clone();
        let mut medium = storage.lock();
        let fault = self.fault_for(&mut medium, Kind::Create);
        medium.completions += 1;
        end_create(&mut medium, slot, blocks, fault)
            .map_err(|error| self.io("create", slot, error))?;
        medium.land_zeros(slot, blocks);
        Ok(())
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        let storage = self.medium.clone();
        let mut medium = storage.lock();
        let fault = self.fault_for(&mut medium, Kind::Read);
        medium.completions += 1;
        let wanted = into.len() * BLOCK_BYTES;
        match end_read(&mut medium, slot, block, into, fault) {
            Ok(read) if read == wanted as u64 => Ok(()),
            Ok(_) => Err(self.io("read", slot, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.io("read", slot, error)),
        }
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        let storage = self.medium.clone();
        let mut medium = storage.lock();
        let fault = self.fault_for(&mut medium, Kind::Write);
        medium.completions += 1;
        let count = u32::try_from(blocks.len()).expect("slots are small");
        match fault {
            Some(Fault::WriteError | Fault::ShortWrite) => {
                let keep = medium.draw_part(count.saturating_sub(1)) as usize;
                medium.land_blocks((slot, block), &blocks[..keep]);
                let counts = &mut medium.counts;
                if fault == Some(Fault::WriteError) {
                    counts.write_errors += 1;
                } else {
                    counts.short_writes += 1;
                }
                return Err(self.io("write", slot, eio()));
            }
            Some(Fault::LostWrite) => medium.counts.lost_writes += 1,
            Some(Fault::MisdirectedWrite) => {
                medium.misdirect_blocks(blocks);
                medium.counts.misdirected_writes += 1;
            }
            _ => medium.land_blocks((slot, block), blocks),
        }
        Ok(())
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        let storage = self.medium.clone();
        let mut medium = storage.lock();
        let fault = self.fault_for(&mut medium, Kind::Flush);
        medium.completions += 1;
        let covers = medium.covers(slot);
        if medium.flush(slot, covers, fault, self.options.direct) {
            Ok(())
        } else {
            Err(self.io("flush", slot, eio()))
        }
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.pool.take(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let kind = Kind::of(&op);
        let storage = self.medium.clone();
        let mut medium = storage.lock();
        assert!(
            self.opening.is_some() && self.opening == medium.opening,
            "only the process that holds the lock operates on the disk"
        );
        let fault = self.fault_for(&mut medium, kind);
        let due = self.now_us + self.draw_latency_us(&mut medium, kind, fault);
        let due = due.max(self.stalled_until_us);
        let action = begin(&mut medium, op);
        self.submitted += 1;
        let pending = Pending { id, action, fault };
        self.pending.insert((due, self.submitted), pending);
    }

    fn kick(&mut self) {}

    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.next_due().is_none_or(|due| due > self.now_us) {
            return;
        }
        let storage = self.medium.clone();
        let mut medium = storage.lock();
        if self.opening != medium.opening {
            // The process has died. What it had under way is no longer its business.
            self.pending.clear();
            return;
        }
        while let Some(first) = self.pending.first_entry() {
            if first.key().0 > self.now_us {
                break;
            }
            let pending = first.remove();
            done.push(self.end(&mut medium, pending));
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
        let mut medium = self.medium.lock();
        if self.opening.is_some() && medium.opening == self.opening {
            medium.opening = None;
        }
    }
}

#[cfg(test)]
mod tests;
