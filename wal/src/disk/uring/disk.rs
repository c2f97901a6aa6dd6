//! The disk over a ring.
//!
//! Appends, reads and flushes go into the ring at the next [`kick`](Disk::kick), all of them with one system
//! call; zeros go in one at a time, behind everything else. Completions, those of the thread that makes
//! files included, make one eventfd readable.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::creator::{Creator, Job};
use super::pool::Pool;
use super::{Landed, Ring, Target, Transfer};
use crate::disk::file::{SlotHandle, list_slots, sync_directory};
use crate::disk::lock::DirectoryLock;
use crate::disk::probe::{self, Scratch, Sizing};
use crate::disk::{
    BLOCK_BYTES, Block, Buffer, Completion, Disk, DiskError, DiskFacts, FlushMode, Op, OpId,
    SlotFile, SlotId, Wake, WakeBy, ZERO_BLOCKS_MAX,
};

/// Zero-fills under way at once: one keeps the medium busy, more would only stand before the appends.
const ZEROS_MAX: usize = 1;

/// A directory of slot files behind a ring.
#[derive(Debug)]
pub struct UringDisk {
    // Dropped first: it waits until the kernel is done with the files and buffers below.
    ring: Ring,
    /// `None` until the directory is locked.
    creator: Option<Creator>,
    slots: BTreeMap<SlotId, Slot>,
    pool: Pool,
    /// Submitted and not started. Their number is bounded by whoever submits.
    urgent: VecDeque<(OpId, Op)>,
    creates: VecDeque<Job>,
    zeros: VecDeque<(OpId, Op)>,
    zeros_under_way: usize,
    /// Ended without the ring.
    ended: Vec<Completion>,
    /// Something was started since the last [`Disk::kick`] could not start everything.
    overdue: bool,
    eventfd: Arc<OwnedFd>,
    /// The owner's copy of it, until it is taken.
    eventfd_lent: Option<OwnedFd>,
    lock: Option<Arc<DirectoryLock>>,
    directory: PathBuf,
    direct: bool,
    flush_mode: Option<FlushMode>,
    /// The flush mode to recommend is measured when the directory is locked.
    probing: bool,
    sizing: Option<Sizing>,
    fallbacks: Vec<String>,
    started: Instant,
}

#[derive(Debug)]
struct Slot {
    handle: SlotHandle,
    target: Target,
}

impl UringDisk {
    /// A disk over `directory`, which is made if it does not exist when it is locked. Fails if the kernel
    /// does not offer a ring: it is too old, or forbids it.
    ///
    /// Any thread may call this. The ring belongs to the thread that locks the directory.
    pub fn new(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let mut fallbacks = Vec::new();
        let mut ring = Ring::new(&mut fallbacks)?;
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.register_eventfd(eventfd.as_fd())?;
        let pool = Pool::new(|buffers| ring.register_buffers(buffers), &mut fallbacks);
        Ok(Self {
            ring,
            creator: None,
            slots: BTreeMap::new(),
            pool,
            urgent: VecDeque::new(),
            creates: VecDeque::new(),
            zeros: VecDeque::new(),
            zeros_under_way: 0,
            ended: Vec::new(),
            overdue: false,
            eventfd_lent: Some(eventfd.try_clone()?),
            eventfd: Arc::new(eventfd),
            lock: None,
            directory: directory.into(),
            direct: true,
            flush_mode: None,
            probing: false,
            sizing: None,
            fallbacks,
            started: Instant::now(),
        })
    }

    /// The same with the flush mode to recommend.
    #[must_use]
    pub fn with_flush_mode(mut self, mode: FlushMode) -> Self {
        self.flush_mode = Some(mode);
        self
    }

    /// The same, measuring which flush mode to recommend when the directory is locked.
    #[must_use]
    pub fn with_probing(mut self) -> Self {
        self.probing = true;
        self
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn slot(&self, slot: SlotId) -> &Slot {
        self.slots
            .get(&slot)
            .expect("the log names only slots that it was told of or has created")
    }

    /// Opens a file and makes it known to the ring.
    fn open(&mut self, slot: SlotId, path: &Path) -> Result<&SlotHandle, DiskError> {
        let (handle, direct) =
            SlotHandle::open(path, true, true).map_err(|e| DiskError::io("open", path, e))?;
        if self.direct && !direct {
            self.direct = false;
            let note = "O_DIRECT is refused by the file system: reads and writes are buffered";
            self.fallbacks.push(note.to_owned());
        }
        self.adopt(slot, handle);
        Ok(&self.slot(slot).handle)
    }

    fn adopt(&mut self, slot: SlotId, handle: SlotHandle) {
        let target = self.ring.register_file(handle.file().as_fd());
        let taken = self.slots.insert(slot, Slot { handle, target });
        assert!(taken.is_none());
    }

    /// Starts one operation on the ring, or ends it if there is no ring any more.
    fn start(&mut self, id: OpId, op: Op) {
        let (slot, transfer) = match op {
            Op::Write {
                slot,
                block,
                buffer,
                dsync,
            } => (
                slot,
                Transfer::Write {
                    block,
                    buffer,
                    dsync,
                },
            ),
            Op::Read {
                slot,
                block,
                buffer,
            } => (slot, Transfer::Read { block, buffer }),
            Op::Flush { slot } => (slot, Transfer::Flush),
            Op::Zero {
                slot,
                block,
                blocks,
            } => {
                self.zeros_under_way += 1;
                (slot, Transfer::Zero { block, blocks })
            }
            Op::Create { .. } => unreachable!("files are made on a thread, not on the ring"),
        };
        let target = self.slot(slot).target;
        self.ring.start(id, target, transfer);
    }

    /// The ring is gone: whatever was submitted and not started fails, with the memory it came with.
    fn refuse_queued(&mut self, errno: rustix::io::Errno) {
        let queued = self.urgent.drain(..).chain(self.zeros.drain(..));
        self.ended.extend(queued.map(|(id, op)| Completion {
            id,
            result: Err(errno.into()),
            buffer: match op {
                Op::Write { buffer, .. } | Op::Read { buffer, .. } => Some(buffer),
                Op::Flush { .. } | Op::Create { .. } | Op::Zero { .. } => None,
            },
        }));
    }
}

impl Disk for UringDisk {
    fn facts(&self) -> DiskFacts {
        DiskFacts {
            backend: "io_uring",
            direct: self.direct,
            flush_mode: self.flush_mode,
            sizing: self.sizing,
            fallbacks: self.fallbacks.clone(),
            buffers_bytes: self.pool.bytes(),
        }
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        self.directory.join(slot.file_name())
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        let lock = Arc::new(DirectoryLock::take(&self.directory, true)?);
        self.ring
            .enable()
            .map_err(|e| DiskError::io("use io_uring for", &self.directory, e))?;
        // The ring holds the lock too: it lives as long as the last request.
        self.ring.register_file(lock.file().as_fd());
        let creator = Creator::start(Arc::clone(&lock), Arc::clone(&self.eventfd))
            .map_err(|e| DiskError::io("start a thread for", &self.directory, e))?;
        self.creator = Some(creator);
        self.lock = Some(lock);
        if self.probing {
            let directory = self.directory.clone();
            match probe::recommend(self, &directory) {
                Ok((mode, sizing)) => {
                    self.flush_mode = Some(mode);
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
            let path = self.slot_path(slot);
            let bytes = self.open(slot, &path)?.bytes();
            let bytes = bytes.map_err(|e| DiskError::io("measure", &path, e))?;
            let blocks = u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
            slots.push(SlotFile { slot, blocks });
        }
        Ok(slots)
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        for (slot, Slot { handle, .. }) in &self.slots {
            handle
                .flush()
                .map_err(|e| DiskError::io("flush", self.slot_path(*slot), e))?;
        }
        sync_directory(&self.directory).map_err(|e| DiskError::io("flush", &self.directory, e))
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        let path = self.slot_path(slot);
        SlotHandle::create_filled(&path, blocks, true)
            .map_err(|e| DiskError::io("create", &path, e))?;
        self.open(slot, &path)?;
        Ok(())
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        let read = self.slot(slot).handle.read_blocks(block, into);
        read.map_err(|e| DiskError::io("read", self.slot_path(slot), e))
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        let written = self.slot(slot).handle.write_blocks(block, blocks);
        written.map_err(|e| DiskError::io("write", self.slot_path(slot), e))
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        let flushed = self.slot(slot).handle.flush();
        flushed.map_err(|e| DiskError::io("flush", self.slot_path(slot), e))
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.pool.take(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        match op {
            Op::Write { .. } | Op::Read { .. } | Op::Flush { .. } => {
                self.urgent.push_back((id, op));
            }
            Op::Zero { blocks, .. } => {
                assert!(blocks <= ZERO_BLOCKS_MAX);
                self.zeros.push_back((id, op));
            }
            Op::Create { slot, blocks } => self.creates.push_back(Job {
                id,
                slot,
                path: self.slot_path(slot),
                blocks,
            }),
        }
    }

    fn kick(&mut self) {
        if let Some(creator) = &mut self.creator {
            while creator.has_room()
                && let Some(job) = self.creates.pop_front()
            {
                creator.make(job);
            }
        }
        if let Some(errno) = self.ring.broken() {
            self.refuse_queued(errno);
        }
        let mut started = false;
        while self.ring.has_room()
            && let Some((id, op)) = self.next()
        {
            self.start(id, op);
            started = true;
        }
        if started {
            self.ring.enter();
        }
        self.overdue =
            !(self.urgent.is_empty() && self.zeros.is_empty() && self.creates.is_empty());
        if self.ring.wants_attention() || !self.ended.is_empty() {
            signal(&self.eventfd);
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        let zeros_under_way = &mut self.zeros_under_way;
        self.ring.reap(|landed| {
            let Landed {
                id,
                result,
                buffer,
                zero,
            } = landed;
            *zeros_under_way -= usize::from(zero);
            done.push(Completion { id, result, buffer });
        });
        while let Some(made) = self.creator.as_mut().and_then(Creator::take) {
            done.push(Completion {
                id: made.id,
                result: made.result.map(|handle| {
                    self.adopt(made.slot, handle);
                    0
                }),
                buffer: None,
            });
        }
        if self.overdue {
            self.kick();
        }
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        self.kick();
        let before = done.len();
        loop {
            self.poll(done);
            if before < done.len() || self.is_idle() {
                return;
            }
            let mut readable = [PollFd::new(&*self.eventfd, PollFlags::IN)];
            // Interrupted or not: what counts is what can be taken.
            let _ = poll(&mut readable, None::<&Timespec>);
            let _ = rustix::io::read(&*self.eventfd, &mut [0; 8]);
        }
    }

    /// # Panics
    ///
    /// If it is called twice: the descriptor has been given away.
    fn wake_by(&mut self, _wake: Wake) -> WakeBy {
        let eventfd = self.eventfd_lent.take();
        WakeBy::EventFd(eventfd.expect("a disk has one owner"))
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl UringDisk {
    /// What goes into the ring next: zeros only if nothing else waits.
    fn next(&mut self) -> Option<(OpId, Op)> {
        let next = self.urgent.pop_front();
        if next.is_none() && self.zeros_under_way < ZEROS_MAX {
            return self.zeros.pop_front();
        }
        next
    }

    fn is_idle(&self) -> bool {
        !self.overdue
            && self.ended.is_empty()
            && self.ring.in_flight() == 0
            && self.creator.as_ref().is_none_or(Creator::is_idle)
    }
}

impl Scratch for UringDisk {
    fn lend(&mut self, slot: SlotId, handle: SlotHandle) {
        self.adopt(slot, handle);
    }

    fn forget(&mut self, slot: SlotId) {
        if let Some(slot) = self.slots.remove(&slot) {
            self.ring.forget_file(slot.target);
        }
    }
}

/// Makes the eventfd readable.
pub(super) fn signal(eventfd: &OwnedFd) {
    // It can only fail because the counter is full, and then it is readable.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}
