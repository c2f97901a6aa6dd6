//! A simulated disk that writes down what reaches it, and when it is durable.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logdrive_wal::disk::{
    BLOCK_BYTES, Block, Buffer, Completion, Disk, DiskError, DiskFacts, Op, OpId, SlotFile, SlotId,
    Wake, WakeBy,
};

use super::Lie;
use super::book::Acked;
use crate::disk::SimDisk;
use crate::disk::slot::{Contents, Spare};

/// Something that happened to a disk, or to the log that uses it.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A write is on its way: any of its blocks may be on the medium from now on.
    Write {
        op: u64,
        slot: SlotId,
        block: u32,
        contents: Vec<Contents>,
    },
    /// A file becomes so long.
    Extend { op: u64, slot: SlotId, blocks: u32 },
    /// A file is being made.
    Create { op: u64, slot: SlotId },
    /// An operation is complete; what it wrote is not durable by that.
    Landed(u64),
    /// An operation is complete and durable.
    Durable(u64),
    /// A flush begins: it covers what is complete.
    FlushBegins { op: u64, slot: SlotId },
    /// It has ended well.
    FlushEnds(u64),
    /// A flush has failed. No later one of this slot is trusted with what was there.
    FlushFails { op: u64, slot: SlotId },
    /// The log has acknowledged more.
    Acked(Acked),
    /// The log is open.
    Opened,
}

/// What was written down, shared with a disk that may be gone by the time it is read.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    events: Arc<Mutex<Vec<Event>>>,
}

impl Trace {
    pub(super) fn note(&self, event: Event) {
        self.lock().push(event);
    }

    pub(super) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk whose operations are written down.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) disk: SimDisk,
    trace: Trace,
    under_way: Vec<UnderWay>,
    ops: u64,
    /// Some flushes say that all is well and flush nothing; for the enumerator's own test.
    lie: Option<Lie>,
    flushes: u64,
}

/// An operation by the log's number and by ours.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    id: OpId,
    op: u64,
    slot: SlotId,
    ends: Ends,
    /// What it transfers if it does not end early.
    bytes: u64,
}

/// How an operation counts when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Landed,
    Durable,
    Flush,
    Read,
}

impl Recorder {
    pub(super) fn new(disk: SimDisk, trace: Trace, lie: Option<Lie>) -> Self {
        Self {
            disk,
            trace,
            under_way: Vec::new(),
            ops: 0,
            lie,
            flushes: 0,
        }
    }

    fn next_op(&mut self) -> u64 {
        self.ops += 1;
        self.ops
    }

    fn note_write(&mut self, op: u64, slot: SlotId, block: u32, blocks: &[Block]) {
        let mut spare = Spare::default();
        let contents = blocks.iter().map(|block| spare.share(&block.0)).collect();
        self.trace.note(Event::Write {
            op,
            slot,
            block,
            contents,
        });
    }

    fn lies_now(&mut self) -> bool {
        self.flushes += 1;
        match self.lie {
            Some(Lie::Flushes { one_in }) => self.flushes.is_multiple_of(one_in),
            _ => false,
        }
    }

    fn note_end(&mut self, op: u64, ends: Ends) {
        let lie = matches!(ends, Ends::Durable | Ends::Flush) && self.lies_now();
        let event = match ends {
            Ends::Landed => Event::Landed(op),
            Ends::Durable if lie => Event::Landed(op),
            Ends::Durable => Event::Durable(op),
            Ends::Flush if lie => return,
            Ends::Flush => Event::FlushEnds(op),
            Ends::Read => return,
        };
        self.trace.note(event);
    }

    fn note_completions(&mut self, done: &[Completion]) {
        for Completion { id, result, .. } in done {
            let place = self.under_way.iter().position(|under| under.id == *id);
            let Some(place) = place else {
                continue;
            };
            let UnderWay {
                op,
                slot,
                ends,
                bytes,
                ..
            } = self.under_way.swap_remove(place);
            match result {
                Ok(done) if *done == bytes => self.note_end(op, ends),
                Err(_) if ends == Ends::Flush => {
                    self.trace.note(Event::FlushFails { op, slot });
                }
                // It may have reached the medium as before it ended: in any part.
                _ => {}
            }
        }
    }
}

impl Disk for Recorder {
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
        if self.lie == Some(Lie::SyncAll) {
            return Ok(());
        }
        for SlotFile { slot, .. } in self.disk.slots()? {
            self.flush(slot)?;
        }
        self.disk.sync_all()
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        let op = self.next_op();
        self.trace.note(Event::Create { op, slot });
        self.trace.note(Event::Extend { op, slot, blocks });
        self.disk.create(slot, blocks)?;
        self.trace.note(Event::Durable(op));
        Ok(())
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        self.disk.read(slot, block, into)
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        let op = self.next_op();
        self.note_write(op, slot, block, blocks);
        self.disk.write(slot, block, blocks)?;
        self.note_end(op, Ends::Landed);
        Ok(())
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        let op = self.next_op();
        self.trace.note(Event::FlushBegins { op, slot });
        self.disk.flush(slot)?;
        self.note_end(op, Ends::Flush);
        Ok(())
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.disk.take_buffer(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.disk.give_buffer(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let number = self.next_op();
        let (slot, ends, blocks) = match &op {
            Op::Write {
                slot,
                block,
                buffer,
                dsync,
            } => {
                self.note_write(number, *slot, *block, buffer.blocks());
                let ends = if *dsync { Ends::Durable } else { Ends::Landed };
                (*slot, ends, buffer.blocks().len())
            }
            Op::Zero {
                slot,
                block,
                blocks,
            } => {
                self.trace.note(Event::Extend {
                    op: number,
                    slot: *slot,
                    blocks: block + blocks,
                });
                (*slot, Ends::Landed, *blocks as usize)
            }
            Op::Flush { slot } => {
                self.trace.note(Event::FlushBegins {
                    op: number,
                    slot: *slot,
                });
                (*slot, Ends::Flush, 0)
            }
            Op::Create { slot, .. } => {
                self.trace.note(Event::Create {
                    op: number,
                    slot: *slot,
                });
                (*slot, Ends::Durable, 0)
            }
            Op::Read { slot, buffer, .. } => (*slot, Ends::Read, buffer.blocks().len()),
        };
        self.under_way.push(UnderWay {
            id,
            op: number,
            slot,
            ends,
            bytes: (blocks * BLOCK_BYTES) as u64,
        });
        self.disk.submit(id, op);
    }

    fn kick(&mut self) {
        self.disk.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let before = done.len();
        self.disk.poll(done);
        self.note_completions(&done[before..]);
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        let before = done.len();
        self.disk.wait(done);
        self.note_completions(&done[before..]);
    }

    fn wake_by(&mut self, wake: Wake) -> WakeBy {
        self.disk.wake_by(wake)
    }

    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }
}
