//! The portable disk: blocking calls on one thread of its own.
//!
//! Completions come back on a list that holds at most what was submitted, so it cannot fill. Appends, reads
//! and flushes go before zero-filling and the making of files; none of it ever runs on the caller's thread
//! once the log is open.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use zerocopy::IntoBytes;

use super::file::{SlotHandle, list_slots, sync_directory};
use super::lock::DirectoryLock;
use super::probe::{self, Scratch, Sizing};
use super::{
    BLOCK_BYTES, Block, Buffer, BufferPool, Completion, Disk, DiskError, DiskFacts, FlushMode, Op,
    OpId, SlotFile, SlotId, Wake, WakeBy,
};

/// A directory of slot files behind blocking calls.
#[derive(Debug)]
pub struct PwriteDisk {
    directory: PathBuf,
    access: Access,
    /// Reads and writes go past the page cache.
    direct: bool,
    fallbacks: Vec<String>,
    flush_mode: FlushMode,
    /// The flush mode to recommend is measured when the directory is locked.
    probing: bool,
    sizing: Option<Sizing>,
    lock: Option<Arc<DirectoryLock>>,
    slots: BTreeMap<SlotId, Arc<SlotHandle>>,
    pool: BufferPool,
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    started: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

impl PwriteDisk {
    /// A disk over `directory`, which is made if it does not exist. Past the page cache where the file
    /// system allows that.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self::with_access(directory.into(), Access::ReadWrite, true)
    }

    /// The same through the page cache.
    #[must_use]
    pub fn buffered(directory: impl Into<PathBuf>) -> Self {
        Self::with_access(directory.into(), Access::ReadWrite, false)
    }

    /// A disk that is only read: nothing is made, locked files are left alone, every write is refused.
    #[must_use]
    pub fn read_only(directory: impl Into<PathBuf>) -> Self {
        Self::with_access(directory.into(), Access::ReadOnly, true)
    }

    fn with_access(directory: PathBuf, access: Access, direct: bool) -> Self {
        let direct = direct && cfg!(all(target_os = "linux", not(logdrive_portable)));
        Self {
            directory,
            access,
            direct,
            fallbacks: Vec::new(),
            // One thread, one blocking call: a write that is durable when it returns has the lowest latency
            // (research on the medium: 116-129 us against 139-224 us).
            flush_mode: if cfg!(all(target_os = "linux", not(logdrive_portable))) {
                FlushMode::Dsync
            } else {
                FlushMode::DrainedFsync
            },
            probing: false,
            sizing: None,
            lock: None,
            slots: BTreeMap::new(),
            pool: BufferPool::default(),
            shared: Arc::default(),
            worker: None,
            started: Instant::now(),
        }
    }

    /// The same with another flush mode to recommend.
    #[must_use]
    pub fn with_flush_mode(mut self, mode: FlushMode) -> Self {
        self.flush_mode = mode;
        self
    }

    /// The same, measuring which flush mode to recommend when the directory is locked.
    #[must_use]
    pub fn with_probing(mut self) -> Self {
        self.probing = true;
        self
    }

    /// The same with a word on what was wanted instead.
    #[must_use]
    pub fn with_fallback(mut self, note: String) -> Self {
        self.fallbacks.push(note);
        self
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn handle(&self, slot: SlotId) -> &Arc<SlotHandle> {
        self.slots
            .get(&slot)
            .expect("the log names only slots that it was told of or has created")
    }

    fn open_slot(&mut self, slot: SlotId) -> Result<u64, DiskError> {
        let path = self.slot_path(slot);
        let write = self.access == Access::ReadWrite;
        let (handle, direct) = SlotHandle::open(&path, write, self.direct)
            .map_err(|e| DiskError::io("open", &path, e))?;
        if self.direct && !direct {
            self.direct = false;
            let note = "O_DIRECT is refused by the file system: reads and writes are buffered";
            self.fallbacks.push(note.to_owned());
        }
        let bytes = handle
            .bytes()
            .map_err(|e| DiskError::io("measure", &path, e))?;
        self.slots.insert(slot, Arc::new(handle));
        Ok(bytes)
    }

    fn start_worker(&mut self) -> Result<(), DiskError> {
        let shared = Arc::clone(&self.shared);
        // The thread holds the lock too: it lives as long as the last operation.
        let lock = self.lock.clone();
        let worker = std::thread::Builder::new()
            .name("wal-pwrite".to_owned())
            .spawn(move || {
                shared.work();
                drop(lock);
            })
            .map_err(|e| DiskError::io("start a thread for", &self.directory, e))?;
        self.worker = Some(worker);
        Ok(())
    }
}

impl Disk for PwriteDisk {
    fn facts(&self) -> DiskFacts {
        DiskFacts {
            backend: "pwrite",
            direct: self.direct,
            flush_mode: Some(self.flush_mode),
            sizing: self.sizing,
            fallbacks: self.fallbacks.clone(),
            buffers_bytes: self.pool.bytes(),
        }
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        self.directory.join(slot.file_name())
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        let lock = DirectoryLock::take(&self.directory, self.access == Access::ReadWrite)?;
        self.lock = Some(Arc::new(lock));
        if self.access == Access::ReadWrite {
            self.start_worker()?;
        }
        if self.probing {
            let directory = self.directory.clone();
            match probe::recommend(self, &directory) {
                Ok((mode, sizing)) => {
                    self.flush_mode = mode;
                    self.sizing = sizing;
                }
                Err(error) => {
                    let note = format!("the flush modes could not be measured: {error}");
                    self.fallbacks.push(note);
                }
            }
        }
        Ok(())
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        let found = list_slots(&self.directory)?;
        let mut slots = Vec::with_capacity(found.len());
        for slot in found {
            let blocks = self.open_slot(slot)? / BLOCK_BYTES as u64;
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            slots.push(SlotFile { slot, blocks });
        }
        Ok(slots)
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        for (slot, handle) in &self.slots {
            handle
                .flush()
                .map_err(|e| DiskError::io("flush", self.slot_path(*slot), e))?;
        }
        sync_directory(&self.directory).map_err(|e| DiskError::io("flush", &self.directory, e))
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        let path = self.slot_path(slot);
        SlotHandle::create_filled(&path, blocks, self.direct)
            .map_err(|e| DiskError::io("create", &path, e))?;
        self.open_slot(slot)?;
        Ok(())
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        self.handle(slot)
            .read_blocks(block, into)
            .map_err(|e| DiskError::io("read", self.slot_path(slot), e))
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        self.handle(slot)
            .write_blocks(block, blocks)
            .map_err(|e| DiskError::io("write", self.slot_path(slot), e))
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        let flushed = self.handle(slot).flush();
        flushed.map_err(|e| DiskError::io("flush", self.slot_path(slot), e))
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.pool.take(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let job = match op {
            Op::Write {
                slot,
                block,
                buffer,
                dsync,
            } => Job::Write(Arc::clone(self.handle(slot)), block, buffer, dsync),
            Op::Read {
                slot,
                block,
                buffer,
            } => Job::Read(Arc::clone(self.handle(slot)), block, buffer),
            Op::Flush { slot } => Job::Flush(Arc::clone(self.handle(slot))),
            Op::Zero {
                slot,
                block,
                blocks,
            } => Job::Zero(Arc::clone(self.handle(slot)), block, blocks),
            Op::Create { slot, blocks } => Job::Create {
                slot,
                path: self.slot_path(slot),
                blocks,
                direct: self.direct,
            },
        };
        let mut queues = self.shared.queues();
        if matches!(job, Job::Zero(..) | Job::Create { .. }) {
            queues.background.push_back((id, job));
        } else {
            queues.urgent.push_back((id, job));
        }
    }

    fn kick(&mut self) {
        self.shared.work_waits.notify_one();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut queues = self.shared.queues();
        done.append(&mut queues.done);
        for (slot, handle) in queues.created.drain(..) {
            self.slots.insert(slot, Arc::new(handle));
        }
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        self.kick();
        {
            let mut queues = self.shared.queues();
            while queues.done.is_empty() && !queues.idle() {
                let waited = self.shared.done_waits.wait(queues);
                queues = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        self.poll(done);
    }

    fn wake_by(&mut self, wake: Wake) -> WakeBy {
        self.shared.queues().wake = Some(WakeCall(wake));
        WakeBy::Callback
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Scratch for PwriteDisk {
    fn lend(&mut self, slot: SlotId, handle: SlotHandle) {
        self.slots.insert(slot, Arc::new(handle));
    }

    fn forget(&mut self, slot: SlotId) {
        self.slots.remove(&slot);
    }
}

impl Drop for PwriteDisk {
    fn drop(&mut self) {
        self.shared.queues().stop = true;
        self.shared.work_waits.notify_one();
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has nothing more to say here.
            let _ = worker.join();
        }
    }
}

/// What the log's thread and the disk's thread share.
#[derive(Debug, Default)]
struct Shared {
    queues: Mutex<Queues>,
    work_waits: Condvar,
    done_waits: Condvar,
}

#[derive(Debug, Default)]
struct Queues {
    urgent: VecDeque<(OpId, Job)>,
    background: VecDeque<(OpId, Job)>,
    /// An operation is being carried out.
    busy: bool,
    done: Vec<Completion>,
    created: Vec<(SlotId, SlotHandle)>,
    wake: Option<WakeCall>,
    stop: bool,
}

impl Queues {
    fn idle(&self) -> bool {
        !self.busy && self.urgent.is_empty() && self.background.is_empty()
    }
}

#[derive(Clone)]
struct WakeCall(Wake);

impl std::fmt::Debug for WakeCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WakeCall")
    }
}

#[derive(Debug)]
enum Job {
    Write(Arc<SlotHandle>, u32, Buffer, bool),
    Read(Arc<SlotHandle>, u32, Buffer),
    Flush(Arc<SlotHandle>),
    Zero(Arc<SlotHandle>, u32, u32),
    Create {
        slot: SlotId,
        path: PathBuf,
        blocks: u32,
        direct: bool,
    },
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        // Nothing panics while it holds the lock; a poisoned one is as good as any.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's loop.
    fn work(&self) {
        let mut queues = self.queues();
        loop {
            if queues.stop {
                return;
            }
            let next = queues.urgent.pop_front();
            let Some((id, job)) = next.or_else(|| queues.background.pop_front()) else {
                let waited = self.work_waits.wait(queues);
                queues = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queues.busy = true;
            drop(queues);
            let (completion, created) = job.run(id);
            queues = self.queues();
            queues.busy = false;
            queues.created.extend(created);
            let first = queues.done.is_empty();
            queues.done.push(completion);
            self.done_waits.notify_one();
            // The owner has been told already if something else waits to be taken.
            if first && let Some(WakeCall(wake)) = queues.wake.clone() {
                drop(queues);
                wake();
                queues = self.queues();
            }
        }
    }
}

impl Job {
    fn run(self, id: OpId) -> (Completion, Option<(SlotId, SlotHandle)>) {
        let mut made = None;
        let (result, buffer) = match self {
            Job::Write(handle, block, buffer, dsync) => {
                let written = handle.write(block, buffer.blocks().as_bytes(), dsync);
                (written, Some(buffer))
            }
            Job::Read(handle, block, mut buffer) => {
                let read = handle.read(block, buffer.blocks_mut().as_mut_bytes());
                (read, Some(buffer))
            }
            Job::Flush(handle) => (handle.flush().map(|()| 0), None),
            Job::Zero(handle, block, blocks) => (handle.zero(block, blocks, false), None),
            Job::Create {
                slot,
                path,
                blocks,
                direct,
            } => {
                let handle = SlotHandle::create(&path, blocks, direct);
                let result = handle.map(|handle| {
                    made = Some((slot, handle));
                    0
                });
                (result, None)
            }
        };
        let completion = Completion { id, result, buffer };
        (completion, made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(disk: &mut PwriteDisk) -> Completion {
        let mut done = Vec::new();
        disk.kick();
        disk.wait(&mut done);
        assert_eq!(done.len(), 1);
        done.remove(0)
    }

    fn opened(directory: &Path, direct: bool) -> PwriteDisk {
        let mut disk = if direct {
            PwriteDisk::new(directory)
        } else {
            PwriteDisk::buffered(directory)
        };
        disk.lock().unwrap();
        disk.slots().unwrap();
        disk
    }

    #[test]
    fn what_was_written_reads_back_after_a_reopening() {
        for direct in [true, false] {
            let directory = tempfile::tempdir_in(".").unwrap();
            let mut disk = opened(directory.path(), direct);
            disk.create(SlotId(0), 16).unwrap();
            let mut buffer = disk.take_buffer(2);
            buffer.blocks_mut().fill(Block([7; BLOCK_BYTES]));
            let (slot, block, dsync) = (SlotId(0), 3, true);
            disk.submit(
                OpId(1),
                Op::Write {
                    slot,
                    block,
                    buffer,
                    dsync,
                },
            );
            assert_eq!(drain(&mut disk).result.unwrap(), 2 * BLOCK_BYTES as u64);
            drop(disk);

            let mut disk = opened(directory.path(), direct);
            let mut blocks = [Block::ZERO; 3];
            disk.read(SlotId(0), 3, &mut blocks).unwrap();
            assert_eq!([blocks[0].0[0], blocks[1].0[9], blocks[2].0[0]], [7, 7, 0]);
        }
    }

    #[test]
    fn a_slot_made_in_the_background_grows_with_its_zeros() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let mut disk = opened(directory.path(), true);
        let slot = SlotId(4);
        disk.submit(OpId(1), Op::Create { slot, blocks: 32 });
        assert!(drain(&mut disk).result.is_ok());
        let (block, blocks) = (0, 8);
        disk.submit(
            OpId(2),
            Op::Zero {
                slot,
                block,
                blocks,
            },
        );
        assert_eq!(drain(&mut disk).result.unwrap(), 8 * BLOCK_BYTES as u64);
        disk.submit(OpId(3), Op::Flush { slot });
        assert!(drain(&mut disk).result.is_ok());
        drop(disk);
        let mut disk = PwriteDisk::new(directory.path());
        disk.lock().unwrap();
        assert_eq!(disk.slots().unwrap(), [SlotFile { slot, blocks: 8 }]);
    }

    #[test]
    fn a_second_opening_is_told_that_the_directory_is_in_use() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let first = opened(directory.path(), true);
        let mut second = PwriteDisk::new(directory.path());
        let error = second.lock().unwrap_err();
        assert!(matches!(error, DiskError::Locked { .. }), "{error}");
        drop(first);
        second.lock().unwrap();
    }
}
