//! Writes that are timed until they are durable, alone and beside other writers.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use zerocopy::IntoBytes;

use crate::disk::file::SlotHandle;
use crate::disk::{BLOCK_BYTES, Block, Disk, FlushMode, Op, OpId, SlotId};

/// The number under which a disk knows the file that is written to. No log has it.
pub(super) const SCRATCH: SlotId = SlotId(u32::MAX);

/// What is written.
const FILLED: Block = Block([0x55; BLOCK_BYTES]);

/// A disk that can be lent a file for a moment.
pub(in crate::disk) trait Scratch: Disk {
    /// Takes a file in as that slot.
    fn lend(&mut self, slot: SlotId, handle: SlotHandle);
    /// Forgets it. No operation on it is under way.
    fn forget(&mut self, slot: SlotId);
}

/// How long writes took to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flushes {
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) count: usize,
}

impl Flushes {
    pub(super) fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let at = |parts: usize| samples.get(samples.len() * parts / 100).copied();
        Self {
            p50_ns: at(50).unwrap_or(0),
            p99_ns: at(99).unwrap_or(0),
            count: samples.len(),
        }
    }

    pub(super) fn to_text(self) -> String {
        format!("{} {} {}", self.p50_ns, self.p99_ns, self.count)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ');
        let flushes = Self {
            p50_ns: numbers.next()?.parse().ok()?,
            p99_ns: numbers.next()?.parse().ok()?,
            count: numbers.next()?.parse().ok()?,
        };
        numbers.next().is_none().then_some(flushes)
    }
}

/// How a file is written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writes {
    pub(super) mode: FlushMode,
    /// Blocks of each.
    pub(super) blocks: u32,
    /// Under way at once.
    pub(super) in_flight: usize,
    /// Blocks of the file, which are gone through again and again.
    pub(super) file_blocks: u32,
}

impl Writes {
    /// Writes until then while a thread for each of the other files does the same, one write at a time. Notes how long
    /// each write took to be durable.
    pub(super) fn beside(
        self,
        others: &[&SlotHandle],
        disk: &mut dyn Scratch,
        until: Instant,
        samples: &mut Vec<u64>,
    ) -> io::Result<()> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Whatever happens: the scope waits for the writers.
            let _stop = StopOnDrop(&stop);
            for other in others {
                let writer = std::thread::Builder::new().name("wal-probe".to_owned());
                writer.spawn_scoped(scope, || self.be_in_the_way(other, &stop))?;
            }
            self.measure(disk, until, samples)
        })
    }

    fn be_in_the_way(self, file: &SlotHandle, stop: &AtomicBool) {
        let dsync = self.mode == FlushMode::Dsync;
        let blocks = vec![FILLED; self.blocks as usize];
        let mut block = 0;
        while !stop.load(Ordering::Relaxed) {
            block = self.after(block);
            let written = file.write(block, blocks.as_bytes(), dsync);
            let flushed = if dsync { Ok(()) } else { file.flush() };
            // It is only there to be in the way.
            if written.is_err() || flushed.is_err() {
                return;
            }
        }
    }

    /// Where the next write goes.
    fn after(self, block: u32) -> u32 {
        let next = block + self.blocks;
        if next + self.blocks > self.file_blocks {
            0
        } else {
            next
        }
    }

    /// Keeps writes under way until then.
    pub(super) fn measure(
        self,
        disk: &mut dyn Scratch,
        until: Instant,
        samples: &mut Vec<u64>,
    ) -> io::Result<()> {
        let slot = SCRATCH;
        let flush_id = OpId(u64::MAX);
        let mut block = 0;
        let mut next = 0;
        let mut spare: Vec<_> = (0..self.in_flight)
            .map(|_| disk.take_buffer(self.blocks as usize))
            .collect();
        // Writes under way, those that wait for a flush, and those that the flush under way covers, each by
        // when it was submitted.
        let mut writing = BTreeMap::new();
        let (mut written, mut flushing) = (Vec::new(), Vec::new());
        let mut done = Vec::new();
        let mut outcome = Ok(());
        loop {
            let go_on = outcome.is_ok() && Instant::now() < until;
            while go_on
                && writing.len() + written.len() + flushing.len() < self.in_flight
                && let Some(mut buffer) = spare.pop()
            {
                buffer.blocks_mut().fill(FILLED);
                let id = OpId(next);
                block = self.after(block);
                let dsync = self.mode == FlushMode::Dsync;
                writing.insert(id, disk.now_ns());
                disk.submit(
                    id,
                    Op::Write {
                        slot,
                        block,
                        buffer,
                        dsync,
                    },
                );
                next += 1;
            }
            if writing.is_empty() && flushing.is_empty() && !written.is_empty() {
                flushing = std::mem::take(&mut written);
                disk.submit(flush_id, Op::Flush { slot });
            }
            if writing.is_empty() && flushing.is_empty() {
                break;
            }
            disk.wait(&mut done);
            let now = disk.now_ns();
            for completion in done.drain(..) {
                spare.extend(completion.buffer);
                if completion.id == flush_id {
                    samples.extend(flushing.drain(..).map(|began| now - began));
                } else if let Some(began) = writing.remove(&completion.id) {
                    match self.mode {
                        FlushMode::Dsync => samples.push(now - began),
                        FlushMode::DrainedFsync => written.push(began),
                    }
                }
                if let Err(error) = completion.result {
                    outcome = Err(error);
                }
            }
        }
        for buffer in spare {
            disk.give_buffer(buffer);
        }
        outcome
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
