//! From the disk back: completions move the durable mark on, or poison the log.

use logdrive_raft::{Micros, mutated};

use super::Wal;
use crate::disk::{BLOCK_BYTES, Completion, Disk, FlushMode, Op, SlotId};
use crate::error::PoisonReason;

impl<D: Disk> Wal<D> {
    /// Takes what the disk has completed, and begins what has waited for that and fills flush groups. Never blocks.
    pub fn poll(&mut self, now: Micros) {
        let mut done = std::mem::take(&mut self.done);
        self.disk.poll(&mut done);
        self.take_completions(&mut done, now);
        self.done = done;
        self.build_full();
    }

    pub(super) fn take_completions(&mut self, done: &mut Vec<Completion>, now: Micros) {
        for completion in done.drain(..) {
            self.on_completion(completion, now);
        }
        if self.poisoned.is_none() {
            self.flush_if_drained();
            self.release_segments();
        }
        self.start_reads();
        self.watch_idleness(now);
        self.disk.kick();
    }

    /// Waits until everything appended is durable. Only at start and shutdown.
    pub(super) fn drain(&mut self, now: Micros) -> Result<(), PoisonReason> {
        loop {
            self.submit(now);
            if let Some(reason) = &self.poisoned {
                return Err(reason.clone());
            }
            let written = self.queue.is_empty() && self.echo_wanted <= self.tail.echoable;
            if written && self.pipeline.is_empty() {
                return Ok(());
            }
            if self.pipeline.is_empty() && !self.pool.is_busy() {
                // Nothing is under way, and so nothing will make room.
                let why = self.pool.why_none();
                self.poison("write", self.active.slot, self.active.next, why);
                continue;
            }
            self.wait_for_disk(now);
        }
    }

    /// Waits until something has completed. Something is under way.
    pub(super) fn wait_for_disk(&mut self, now: Micros) {
        let mut done = std::mem::take(&mut self.done);
        self.disk.wait(&mut done);
        self.take_completions(&mut done, now);
        self.done = done;
    }

    /// States that everything is durable, waits until that is durable too, and ends. Blocks; for an orderly
    /// shutdown.
    pub fn close(mut self) -> Result<(), PoisonReason> {
        let now = Micros::default();
        self.drain(now)?;
        if !self.tail.quiet {
            self.build_mark();
            self.drain(now)?;
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion, now: Micros) {
        let Completion { id, result, buffer } = completion;
        if self.pool.is_step(id) {
            match buffer {
                Some(buffer) => self.pool.on_read(&result, &buffer),
                None => self.pool.on_step(result, now),
            }
            return;
        }
        if self.reads.is_under_way(id) {
            self.on_read(id, result, buffer);
            return;
        }
        if self.scrub.is_under_way(id) {
            return self.on_scrubbed(&result, buffer);
        }
        if let Some(buffer) = buffer {
            self.disk.give_buffer(buffer);
        }
        if let Some(flush) = self.pipeline.flush(id) {
            let (slot, began_ns) = (flush.slot, flush.began_ns);
            match result {
                Ok(_) => {
                    let now_ns = self.disk.now_ns();
                    self.count_flush(FlushMode::DrainedFsync, now_ns.saturating_sub(began_ns));
                    self.pipeline.on_flushed(now_ns);
                }
                Err(_) if mutated!(self.options.mutant, FlushErrorIgnored) => {
                    let now_ns = self.disk.now_ns();
                    self.pipeline.on_flushed(now_ns);
                }
                Err(_) if mutated!(self.options.mutant, FlushRetried) => {
                    self.disk.submit(id, Op::Flush { slot });
                }
                Err(error) => self.poison("flush", slot, 0, error.to_string()),
            }
            return;
        }
        let Some(flight) = self.pipeline.flight(id) else {
            return;
        };
        let (slot, block, bytes) = (flight.slot, flight.block, flight.bytes);
        let (mode, began_ns) = (flight.mode, flight.began_ns);
        match result {
            Ok(written) if written == bytes || mutated!(self.options.mutant, ShortWriteOk) => {
                let now_ns = self.disk.now_ns();
                if mode == FlushMode::Dsync {
                    self.count_flush(mode, now_ns.saturating_sub(began_ns));
                }
                self.pipeline.on_written(id, now_ns);
            }
            // There is no going on from a write that ended early, and no trying again: what the medium
            // holds is for the next opening to judge.
            Ok(written) => {
                let error = format!("{written} of {bytes} bytes were written");
                self.poison("write", slot, block, error);
            }
            Err(error) => self.poison("write", slot, block, error.to_string()),
        }
    }

    fn flush_if_drained(&mut self) {
        if let Some(slot) = self.pipeline.slot_to_flush() {
            let op = self.next_op();
            let now_ns = self.disk.now_ns();
            self.pipeline.begin_flush(op, slot, now_ns);
            self.disk.submit(op, Op::Flush { slot });
        }
    }

    fn count_flush(&mut self, mode: FlushMode, took_ns: u64) {
        self.counters.flushes += 1;
        match mode {
            FlushMode::Dsync => self.counters.flushes_dsync += 1,
            FlushMode::DrainedFsync => self.counters.flushes_drained += 1,
        }
        self.counters.flush_ns_sum += took_ns;
        self.flush_histogram.record(took_ns);
        self.counters.flush_ns_max = self.counters.flush_ns_max.max(took_ns);
    }

    fn poison(&mut self, what: &'static str, slot: SlotId, block: u32, error: String) {
        if self.poisoned.is_none() {
            self.poisoned = Some(PoisonReason {
                what,
                path: self.disk.slot_path(slot),
                offset_bytes: u64::from(block) * BLOCK_BYTES as u64,
                error,
            });
            self.idle_at = None;
        }
    }

    /// Whether everything accepted is durable.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.pipeline.durable == self.accepted
    }
}
