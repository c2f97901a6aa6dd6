//! What a write-ahead log needs of a disk: a directory of slot files, aligned blocks, writes and flushes
//! that complete later.
//!
//! The log is a value and decides nothing about threads. At start it may block: it locks the directory,
//! flushes, reads, opens its first segment. From then on it only submits operations and takes completions.
//! A disk reports what happened, a short write included; it never retries, for after a failed flush a
//! second one may succeed without the data.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::format::BLOCKS_MAX;

use self::probe::Sizing;

pub use lock::LOCK_FILE;
pub use watchdog::{FlushAdvice, FlushWatchdog, WatchdogLimits};

mod file;
pub(crate) mod lock;
pub mod open;
pub mod probe;
pub mod pwrite;
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
pub mod uring;
mod watchdog;

/// Bytes of a block: the unit of every read and write, and its alignment in memory and on disk.
pub const BLOCK_BYTES: usize = 4096;

/// The most blocks one [`Op::Zero`] fills, so that it never stands long before an append.
pub const ZERO_BLOCKS_MAX: u32 = 64;

/// A block in memory, aligned as direct I/O wants it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    /// A block of zeros.
    pub const ZERO: Block = Block([0; BLOCK_BYTES]);
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:02x?}..)", &self.0[..8])
    }
}

/// The number of a slot file in its directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

impl SlotId {
    /// The name of the slot's file. It never changes: what a slot holds stands in its header.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("wal-{:05}.slot", self.0)
    }

    /// The slot whose file has this name.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let number = name.strip_prefix("wal-")?.strip_suffix(".slot")?;
        let slot = Self(number.parse().ok()?);
        // Nobody makes as many, and the one after the last has a number too.
        (slot.0 <= BLOCKS_MAX && slot.file_name() == name).then_some(slot)
    }
}

/// Names an operation among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Memory for a transfer. It comes from the disk's pool, where it may be registered with the kernel, and
/// goes back there.
///
/// The pool is bounded by its user: a log takes one buffer for each flush group in flight and one for each
/// read under way, and bounds both.
#[derive(Debug)]
pub struct Buffer {
    blocks: Box<[Block]>,
    used: usize,
    /// Which buffer of the pool this is; `None` if it was made for one use.
    registered: Option<u16>,
}

impl Buffer {
    /// Memory for so many blocks.
    #[must_use]
    pub fn with_blocks(blocks: usize) -> Self {
        Self {
            blocks: vec![Block::ZERO; blocks].into_boxed_slice(),
            used: blocks,
            registered: None,
        }
    }

    /// The same memory, marked as the pool's buffer of this number.
    #[must_use]
    pub fn registered_as(mut self, number: u16) -> Self {
        self.registered = Some(number);
        self
    }

    /// Which buffer of the pool this is; `None` if it was made for one use.
    #[must_use]
    pub fn registered(&self) -> Option<u16> {
        self.registered
    }

    /// How many blocks it can hold.
    #[must_use]
    pub fn capacity_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Sets how many blocks take part in the transfer.
    ///
    /// # Panics
    ///
    /// If the buffer is smaller.
    pub fn set_used(&mut self, blocks: usize) {
        assert!(blocks <= self.blocks.len());
        self.used = blocks;
    }

    /// The blocks that take part in the transfer. What they hold before they are written is arbitrary.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks[..self.used]
    }

    /// The blocks that take part in the transfer, to be written to.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks[..self.used]
    }
}

/// An operation that completes later.
///
/// Operations are independent: a disk may carry them out and complete them in any order. Whoever needs an
/// order waits for a completion.
#[derive(Debug)]
pub enum Op {
    /// Writes the used blocks of a buffer.
    Write {
        /// To which slot.
        slot: SlotId,
        /// From which block on.
        block: u32,
        /// What.
        buffer: Buffer,
        /// Durable when complete, as with `RWF_DSYNC`.
        dsync: bool,
    },
    /// Reads into the used blocks of a buffer.
    Read {
        /// From which slot.
        slot: SlotId,
        /// From which block on.
        block: u32,
        /// Where to.
        buffer: Buffer,
    },
    /// Makes durable every write to this slot that was complete when the flush was submitted, and the
    /// slot's length. It counts for no other slot.
    Flush {
        /// Which slot.
        slot: SlotId,
    },
    /// Makes a new, empty slot file with its space reserved, durable in its directory. May take long, and
    /// must not hold up anything else.
    Create {
        /// Which slot. It must not exist.
        slot: SlotId,
        /// How long the file is going to be.
        blocks: u32,
    },
    /// Writes zeros, at a lower priority than everything else. Beyond the end of the file it makes the file
    /// longer, so that a file of full length has been written all over.
    Zero {
        /// To which slot.
        slot: SlotId,
        /// From which block on.
        block: u32,
        /// How many, at most [`ZERO_BLOCKS_MAX`].
        blocks: u32,
    },
}

/// How an operation ended.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub id: OpId,
    /// The bytes transferred, as the kernel says; fewer than asked for is the caller's to judge.
    pub result: Result<u64, io::Error>,
    /// The buffer of a read or write.
    pub buffer: Option<Buffer>,
}

/// A slot file as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFile {
    /// Which.
    pub slot: SlotId,
    /// Whole blocks in the file.
    pub blocks: u32,
}

/// How writes are made durable before they are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlushMode {
    /// Each write is durable when it completes.
    Dsync,
    /// Plain writes, then one flush at a time that covers those which were complete when it was queued.
    DrainedFsync,
}

impl FlushMode {
    /// The name in reports: `dsync` or `drained_fsync`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dsync => "dsync",
            Self::DrainedFsync => "drained_fsync",
        }
    }

    /// The mode that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Dsync => Self::DrainedFsync,
            Self::DrainedFsync => Self::Dsync,
        }
    }
}

/// What a disk knows about itself.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// Which implementation: `io_uring`, `pwrite` or `sim`.
    pub backend: &'static str,
    /// Reads come from the medium and not from a page cache.
    pub direct: bool,
    /// The flush mode to use; `None`: measure both.
    pub flush_mode: Option<FlushMode>,
    /// How large flush groups should be and how many of them in flight, if a survey of the device says so.
    pub sizing: Option<Sizing>,
    /// What was wanted and could not be had, for status lines.
    pub fallbacks: Vec<String>,
    /// Memory of all buffers for transfers, under way or not.
    pub buffers_bytes: usize,
}

/// Why the disk cannot be used, at start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Another process has the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// There is no space left.
    #[error("no space left for {}", path.display())]
    NoSpace {
        /// The file that could not be made or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DiskError {
    /// Wraps what the system said when `what` was tried on `path`.
    #[must_use]
    pub fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path, source }
            }
            _ => Self::Io { what, path, source },
        }
    }
}

/// Called from any thread when completions wait to be taken. Must be cheap and must not block.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// How the owner of a disk learns that completions wait.
#[derive(Debug)]
#[non_exhaustive]
pub enum WakeBy {
    /// The callback is called.
    Callback,
    /// This descriptor becomes readable and the callback is never called. Reading eight bytes from it
    /// rearms it.
    #[cfg(unix)]
    EventFd(std::os::fd::OwnedFd),
    /// Only its owner moves it on: a simulated disk.
    Owner,
}

/// A directory of slot files.
///
/// In the order of a start: [`lock`](Disk::lock), [`slots`](Disk::slots), [`sync_all`](Disk::sync_all), then
/// whatever has to be read and written before the log is open. These block. After that only
/// [`submit`](Disk::submit), [`kick`](Disk::kick) and [`poll`](Disk::poll), which do not. All calls come
/// from one thread, the one that called `lock`.
pub trait Disk: Send {
    /// What the disk knows about itself. Complete once the slots are open.
    fn facts(&self) -> DiskFacts;

    /// Where a slot lies, for messages.
    fn slot_path(&self, slot: SlotId) -> PathBuf;

    /// Takes the directory for this process. Held until the last operation has ended.
    fn lock(&mut self) -> Result<(), DiskError>;

    /// Opens every slot file there is, in the order of their numbers.
    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError>;

    /// Flushes every slot file and the directory: what an earlier process left unflushed must not be
    /// believed before.
    fn sync_all(&mut self) -> Result<(), DiskError>;

    /// Makes a new slot file of full length, zero-filled, durable in its directory.
    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError>;

    /// Reads blocks. Fewer than asked for is an error.
    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError>;

    /// Writes blocks. Not durable until [`flush`](Disk::flush).
    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError>;

    /// Makes what was written to a slot durable.
    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError>;

    /// Memory for so many blocks, all of them in use.
    fn take_buffer(&mut self, blocks: usize) -> Buffer;

    /// Takes memory back.
    fn give_buffer(&mut self, buffer: Buffer);

    /// Queues an operation. It may start now or with the next [`kick`](Disk::kick).
    fn submit(&mut self, id: OpId, op: Op);

    /// Starts everything that was submitted: one system call for all of it, where that is possible.
    fn kick(&mut self);

    /// Takes what has completed.
    fn poll(&mut self, done: &mut Vec<Completion>);

    /// Takes what has completed and waits until there is something. Only at start and shutdown, with at
    /// least one operation under way.
    fn wait(&mut self, done: &mut Vec<Completion>);

    /// Says how the owner learns of completions; `wake` is kept if it is by callback.
    fn wake_by(&mut self, wake: Wake) -> WakeBy;

    /// A clock for measuring how long operations take. Nothing else depends on it.
    fn now_ns(&self) -> u64;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn facts(&self) -> DiskFacts {
        (**self).facts()
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        (**self).slot_path(slot)
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        (**self).lock()
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        (**self).slots()
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        (**self).sync_all()
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        (**self).create(slot, blocks)
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        (**self).read(slot, block, into)
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        (**self).write(slot, block, blocks)
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        (**self).flush(slot)
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        (**self).take_buffer(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        (**self).give_buffer(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        (**self).submit(id, op);
    }

    fn kick(&mut self) {
        (**self).kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        (**self).poll(done);
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        (**self).wait(done);
    }

    fn wake_by(&mut self, wake: Wake) -> WakeBy {
        (**self).wake_by(wake)
    }

    fn now_ns(&self) -> u64 {
        (**self).now_ns()
    }
}

/// Buffers that come back are used again; beyond a number that lies about they are freed.
#[derive(Debug, Default)]
pub struct BufferPool {
    spare: Vec<Buffer>,
    /// Of the buffers that lie here, and of those that are lent out.
    bytes: usize,
}

/// The most buffers that lie about unused: as many as flush groups and reads can be in flight.
const SPARE_MAX: usize = 16;

impl BufferPool {
    /// A buffer with so many blocks in use.
    pub fn take(&mut self, blocks: usize) -> Buffer {
        let fitting = self
            .spare
            .iter()
            .enumerate()
            .filter(|(_, buffer)| buffer.capacity_blocks() >= blocks)
            .min_by_key(|(_, buffer)| buffer.capacity_blocks())
            .map(|(place, _)| place);
        let mut buffer = match fitting {
            Some(place) => self.spare.swap_remove(place),
            // Rounded up, so that groups of slightly different sizes share buffers.
            None => {
                let buffer = Buffer::with_blocks(blocks.next_power_of_two());
                self.bytes += buffer.capacity_blocks() * BLOCK_BYTES;
                buffer
            }
        };
        buffer.set_used(blocks);
        buffer
    }

    /// Keeps a buffer for later, unless enough are kept.
    pub fn give(&mut self, buffer: Buffer) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(buffer);
        } else {
            let freed = buffer.capacity_blocks() * BLOCK_BYTES;
            self.bytes = self.bytes.saturating_sub(freed);
        }
    }

    /// Memory of the buffers that lie here, and of those that are lent out.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_found_by_the_name_of_its_file_and_by_no_other() {
        assert_eq!(SlotId(7).file_name(), "wal-00007.slot");
        assert_eq!(SlotId::from_file_name("wal-00007.slot"), Some(SlotId(7)));
        assert_eq!(SlotId::from_file_name("wal-7.slot"), None);
        assert_eq!(SlotId::from_file_name("wal-00007.slot.bak"), None);
        assert_eq!(SlotId::from_file_name("LOCK"), None);
        let last = SlotId(BLOCKS_MAX).file_name();
        assert_eq!(SlotId::from_file_name(&last), Some(SlotId(BLOCKS_MAX)));
        for beyond in [BLOCKS_MAX + 1, u32::MAX] {
            let name = SlotId(beyond).file_name();
            assert_eq!(SlotId::from_file_name(&name), None);
        }
    }

    #[test]
    fn a_pool_hands_out_the_smallest_buffer_that_fits() {
        let mut pool = BufferPool::default();
        let (large, small) = (pool.take(64), pool.take(3));
        assert_eq!(small.capacity_blocks(), 4);
        assert_eq!(small.blocks().as_ptr().addr() % BLOCK_BYTES, 0);
        pool.give(large);
        pool.give(small);
        let again = pool.take(2);
        assert_eq!((again.capacity_blocks(), again.blocks().len()), (4, 2));
        assert_eq!(pool.bytes(), (64 + 4) * BLOCK_BYTES);
        let more: Vec<Buffer> = (0..SPARE_MAX).map(|_| pool.take(128)).collect();
        assert_eq!(pool.bytes(), (64 + 4 + SPARE_MAX * 128) * BLOCK_BYTES);
        // One lies there already, so the last one that comes back is freed.
        more.into_iter().for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.bytes(), (64 + 4 + (SPARE_MAX - 1) * 128) * BLOCK_BYTES);
    }
}
