//! What the disk can do: writes of whole blocks past the page cache into files that were filled with zeros, and flushes.
//! Nothing is copied, summed or remembered. No log, but what a log is measured by.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use logdrive_wal::disk::open::{Backend, open as open_disk};
use logdrive_wal::disk::{BLOCK_BYTES, Block, Disk, FlushMode, Op, OpId, SlotId, WakeBy};
use rustix::fs::OFlags;
use rustix::io::{ReadWriteFlags, pwritev2};

use super::{Contender, Failed};
use crate::measure::{Latencies, Measured, threads, timed};
use crate::shape::Shape;

const FILES: u32 = 8;
const FILE_BLOCKS: u32 = (64 << 20) / BLOCK_BYTES as u32;

/// Each write durable by itself, through the ring.
pub(super) fn open_dsync(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    Ring::open(directory, FlushMode::Dsync)
}

/// Plain writes through the ring, and a flush whenever none is under way any more.
pub(super) fn open_drained(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    Ring::open(directory, FlushMode::DrainedFsync)
}

/// Blocking writes of threads, each durable by itself.
pub(super) fn open_threads(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    let zeros = vec![0; 1 << 20];
    let mut files = Vec::new();
    for number in 0..FILES {
        let path = directory.join(format!("{number}.device"));
        let mut file = File::create(&path)?;
        for _ in 0..FILE_BLOCKS as usize * BLOCK_BYTES / zeros.len() {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        let direct = i32::try_from(OFlags::DIRECT.bits())?;
        let mut options = OpenOptions::new();
        files.push(options.write(true).custom_flags(direct).open(path)?);
    }
    Ok(Box::new(Threads {
        files,
        next: AtomicU64::new(0),
    }))
}

/// The blocks of one append.
fn blocks_of(shape: Shape) -> u32 {
    shape.payload_bytes().div_ceil(BLOCK_BYTES) as u32
}

/// Where the `number`th append of so many blocks goes: files are written one after the other, again and again.
fn place(number: u64, blocks: u32) -> (u32, u32) {
    let a_file = u64::from(FILE_BLOCKS / blocks);
    let file = (number / a_file) % u64::from(FILES);
    (file as u32, (number % a_file) as u32 * blocks)
}

struct Threads {
    files: Vec<File>,
    next: AtomicU64,
}

impl Contender for Threads {
    fn run(&mut self, shape: Shape, callers: usize, time: Duration) -> Result<Measured, Failed> {
        let blocks = blocks_of(shape);
        self.next.store(0, Ordering::Relaxed);
        let mut callers: Vec<Vec<Block>> = vec![vec![Block::ZERO; blocks as usize]; callers];
        timed(|| {
            threads(&mut callers, time, |buffer: &mut Vec<Block>| {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let (file, block) = place(number, blocks);
                // A slice of blocks is aligned as direct I/O wants it.
                let slices: Vec<IoSlice<'_>> =
                    buffer.iter().map(|block| IoSlice::new(&block.0)).collect();
                let mut written = 0;
                while written < slices.len() {
                    let offset = (u64::from(block) + written as u64) * BLOCK_BYTES as u64;
                    let some = &slices[written..slices.len().min(written + SLICES_MAX)];
                    let file = &self.files[file as usize];
                    let bytes = pwritev2(file, some, offset, ReadWriteFlags::DSYNC)?;
                    if bytes == 0 || bytes % BLOCK_BYTES != 0 {
                        return Err(format!("a write ended after {bytes} bytes").into());
                    }
                    written += bytes / BLOCK_BYTES;
                }
                Ok(())
            })
        })
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        Ok(())
    }
}

/// As many as the kernel takes in one call.
const SLICES_MAX: usize = 1024;

struct Ring {
    disk: Box<dyn Disk>,
    mode: FlushMode,
    fd: Option<std::os::fd::OwnedFd>,
    woken: Receiver<()>,
    next: u64,
}

impl Ring {
    fn open(directory: &Path, mode: FlushMode) -> Result<Box<dyn Contender>, Failed> {
        let mut disk = open_disk(directory, Backend::IoUring, Some(mode))?;
        let (wake, woken) = channel();
        let by = disk.wake_by(Arc::new(move || {
            let _ = wake.send(());
        }));
        let fd = match by {
            WakeBy::EventFd(fd) => Some(fd),
            _ => None,
        };
        disk.lock()?;
        disk.slots()?;
        for slot in 0..FILES {
            disk.create(SlotId(slot), FILE_BLOCKS)?;
        }
        disk.sync_all()?;
        Ok(Box::new(Self {
            disk,
            mode,
            fd,
            woken,
            next: 0,
        }))
    }

    fn wait(&self) {
        match &self.fd {
            Some(fd) => {
                use rustix::event::{PollFd, PollFlags, poll};
                poll(&mut [PollFd::new(fd, PollFlags::IN)], None)
                    .expect("an eventfd can be polled");
                rustix::io::read(fd, &mut [0; 8]).expect("it was readable");
            }
            None => self.woken.recv().expect("the disk holds the other end"),
        }
    }

    fn write(&mut self, id: u64, blocks: u32) {
        let (file, block) = place(self.next, blocks);
        self.next += 1;
        let op = Op::Write {
            slot: SlotId(file),
            block,
            buffer: self.disk.take_buffer(blocks as usize),
            dsync: self.mode == FlushMode::Dsync,
        };
        self.disk.submit(OpId(id), op);
    }
}

/// Above all callers: flushes of files.
const FLUSHES: u64 = 1 << 32;

impl Contender for Ring {
    fn run(&mut self, shape: Shape, callers: usize, time: Duration) -> Result<Measured, Failed> {
        let blocks = blocks_of(shape);
        let drains = self.mode == FlushMode::DrainedFsync;
        self.next = 0;
        timed(|| {
            let mut latencies = Latencies::default();
            let until = Instant::now() + time;
            let mut began = vec![Instant::now(); callers];
            // Callers whose next append is due, and those that were written and not flushed.
            let mut ready: Vec<usize> = (0..callers).collect();
            let (mut written, mut flushing) = (Vec::new(), Vec::new());
            let (mut writes, mut flushes) = (0, 0);
            let mut dirty = std::collections::BTreeSet::new();
            let mut done = Vec::new();
            loop {
                for caller in std::mem::take(&mut ready) {
                    let now = Instant::now();
                    if now < until {
                        began[caller] = now;
                        dirty.insert(place(self.next, blocks).0);
                        self.write(caller as u64, blocks);
                        writes += 1;
                    }
                }
                if drains && writes == 0 && flushes == 0 && !written.is_empty() {
                    flushing = std::mem::take(&mut written);
                    for file in std::mem::take(&mut dirty) {
                        let op = Op::Flush { slot: SlotId(file) };
                        self.disk.submit(OpId(FLUSHES + u64::from(file)), op);
                        flushes += 1;
                    }
                }
                if writes == 0 && flushes == 0 {
                    return Ok(latencies);
                }
                self.disk.kick();
                self.wait();
                self.disk.poll(&mut done);
                for completion in done.drain(..) {
                    completion.result?;
                    if let Some(buffer) = completion.buffer {
                        self.disk.give_buffer(buffer);
                    }
                    let id = completion.id.0;
                    if id >= FLUSHES {
                        flushes -= 1;
                    } else {
                        writes -= 1;
                        written.push(id as usize);
                    }
                }
                let durable = match drains {
                    true if flushes == 0 => std::mem::take(&mut flushing),
                    true => Vec::new(),
                    false => std::mem::take(&mut written),
                };
                for caller in durable {
                    latencies.record(began[caller].elapsed());
                    ready.push(caller);
                }
            }
        })
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        Ok(())
    }
}
