//! What the disk can do: writes of whole blocks past the page cache into files that were filled with zeros, and flushes.
//! Nothing is copied, summed or remembered. No log, but what a log is measured by.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use logdrive_wal::disk::open::{Backend, open as open_disk};
use logdrive_wal::disk::{BLOCK_BYTES, Block, Completion, Disk, FlushMode, Op, OpId, SlotId};
use rustix::fs::OFlags;
use rustix::io::{ReadWriteFlags, pwritev2};

use super::{Contender, Failed};
use crate::driven::{self, Driven};
use crate::load::Load;
use crate::measure::{Measured, threads};
use crate::reading::Readable;
use crate::shape::Shape;
use crate::woken::Woken;

const FILES: u32 = 8;
const FILE_BLOCKS: u32 = (64 << 20) / BLOCK_BYTES as u32;

/// Each write durable by itself, through the ring.
pub(super) fn open_dsync(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    Ok(Box::new(Ring::new(directory, FlushMode::Dsync)?))
}

/// Plain writes through the ring, and a flush whenever none is under way any more.
pub(super) fn open_drained(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    Ok(Box::new(Ring::new(directory, FlushMode::DrainedFsync)?))
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
    fn run(&mut self, load: &Load) -> Result<Measured, Failed> {
        let blocks = blocks_of(load.shape);
        self.next.store(0, Ordering::Relaxed);
        let mut callers: Vec<Vec<Block>> = vec![vec![Block::ZERO; blocks as usize]; load.callers];
        threads(&mut callers, load, |buffer: &mut Vec<Block>| {
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
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        Ok(())
    }
}

/// As many as the kernel takes in one call.
const SLICES_MAX: usize = 1024;

/// Files that one thread writes through the ring.
pub struct Ring {
    disk: Box<dyn Disk>,
    mode: FlushMode,
    woken: Woken,
    /// Appends since the first file was begun.
    next: u64,
    writes: usize,
    flushes: usize,
    /// Callers whose blocks were written and not flushed, and those that the flushes under way cover.
    written: Vec<usize>,
    flushing: Vec<usize>,
    /// Files that were written to since they were last flushed.
    dirty: BTreeSet<u32>,
    /// Reads since the first file was begun.
    read: u64,
    /// Reads that nobody has taken note of, and their bytes.
    reads_ended: (usize, u64),
    done: Vec<Completion>,
}

impl Ring {
    /// In an empty directory.
    pub fn new(directory: &Path, mode: FlushMode) -> Result<Self, Failed> {
        let mut disk = open_disk(directory, Backend::IoUring, Some(mode))?;
        let woken = Woken::by(&mut disk);
        disk.lock()?;
        disk.slots()?;
        for slot in 0..FILES {
            disk.create(SlotId(slot), FILE_BLOCKS)?;
        }
        disk.sync_all()?;
        Ok(Self {
            disk,
            mode,
            woken,
            next: 0,
            writes: 0,
            flushes: 0,
            written: Vec::new(),
            flushing: Vec::new(),
            dirty: BTreeSet::new(),
            read: 0,
            reads_ended: (0, 0),
            done: Vec::new(),
        })
    }

    /// Flushes what was written once nothing is under way any more.
    fn flush(&mut self) {
        if self.writes > 0 || self.flushes > 0 || self.written.is_empty() {
            return;
        }
        self.flushing = std::mem::take(&mut self.written);
        for file in std::mem::take(&mut self.dirty) {
            let op = Op::Flush { slot: SlotId(file) };
            self.disk.submit(OpId(FLUSHES + u64::from(file)), op);
            self.flushes += 1;
        }
    }
}

/// Above all callers: flushes of files.
const FLUSHES: u64 = 1 << 32;

/// Above those: reads.
const READS: u64 = 1 << 33;

impl Driven for Ring {
    fn append(&mut self, shape: Shape, caller: usize) -> Result<(), Failed> {
        let blocks = blocks_of(shape);
        let (file, block) = place(self.next, blocks);
        self.next += 1;
        self.dirty.insert(file);
        self.writes += 1;
        let op = Op::Write {
            slot: SlotId(file),
            block,
            buffer: self.disk.take_buffer(blocks as usize),
            dsync: self.mode == FlushMode::Dsync,
        };
        self.disk.submit(OpId(caller as u64), op);
        Ok(())
    }

    fn turn(&mut self, until: Option<Instant>, durable: &mut Vec<usize>) -> Result<(), Failed> {
        let drains = self.mode == FlushMode::DrainedFsync;
        if drains {
            self.flush();
        }
        self.disk.kick();
        self.woken.wait(until);
        self.disk.poll(&mut self.done);
        for completion in self.done.drain(..) {
            let bytes = completion.result?;
            if let Some(buffer) = completion.buffer {
                self.disk.give_buffer(buffer);
            }
            if completion.id.0 >= READS {
                self.reads_ended.0 += 1;
                self.reads_ended.1 += bytes;
            } else if completion.id.0 >= FLUSHES {
                self.flushes -= 1;
            } else {
                self.writes -= 1;
                self.written.push(usize::try_from(completion.id.0)?);
            }
        }
        match drains {
            true if self.flushes == 0 => durable.append(&mut self.flushing),
            true => {}
            false => durable.append(&mut self.written),
        }
        Ok(())
    }
}

impl Readable for Ring {
    fn read(&mut self, bytes: usize) -> Result<(), Failed> {
        let blocks = bytes.div_ceil(BLOCK_BYTES) as u32;
        let (file, block) = place(self.read, blocks);
        let op = Op::Read {
            slot: SlotId(file),
            block,
            buffer: self.disk.take_buffer(blocks as usize),
        };
        self.disk.submit(OpId(READS + self.read), op);
        self.read += 1;
        Ok(())
    }

    fn take_reads(&mut self) -> Result<(usize, u64), Failed> {
        Ok(std::mem::take(&mut self.reads_ended))
    }
}

impl Contender for Ring {
    fn run(&mut self, load: &Load) -> Result<Measured, Failed> {
        self.next = 0;
        driven::run(self, load)
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        Ok(())
    }
}
