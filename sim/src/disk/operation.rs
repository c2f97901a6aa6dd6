//! An operation of a simulated disk under way, and how it ends, with a fault or without.

use std::io;

use logdrive_wal::disk::{BLOCK_BYTES, Block, Buffer, Op, SlotId};

use super::fault::Fault;
use super::medium::{Created, Data, Flying, Medium};
use super::slot::Covers;

#[derive(Debug)]
pub(super) enum Action {
    /// The write lies with the medium, where a crash finds it.
    Write {
        write: u64,
        dsync: bool,
    },
    Read {
        slot: SlotId,
        block: u32,
        buffer: Buffer,
    },
    /// What the flush covers was decided when it was submitted.
    Flush {
        slot: SlotId,
        covers: Option<Covers>,
    },
    Create {
        slot: SlotId,
        blocks: u32,
    },
}

pub(super) fn begin(medium: &mut Medium, op: Op) -> Action {
    let (slot, block, data, dsync) = match op {
        Op::Write {
            slot,
            block,
            buffer,
            dsync,
        } => (slot, block, Data::Buffer(buffer), dsync),
        Op::Zero {
            slot,
            block,
            blocks,
        } => (slot, block, Data::Zeros(blocks), false),
        Op::Read {
            slot,
            block,
            buffer,
        } => {
            return Action::Read {
                slot,
                block,
                buffer,
            };
        }
        Op::Flush { slot } => {
            let covers = medium.covers(slot);
            return Action::Flush { slot, covers };
        }
        Op::Create { slot, blocks } => {
            medium.begin_create(slot, blocks);
            return Action::Create { slot, blocks };
        }
    };
    let write = medium.begin_write(Flying { slot, block, data });
    Action::Write { write, dsync }
}

pub(super) fn end_write(
    medium: &mut Medium,
    write: &Flying,
    dsync: bool,
    fault: Option<Fault>,
) -> io::Result<u64> {
    let blocks = write.data.blocks();
    if !medium.may_reach(write.slot, write.block + blocks) {
        medium.counts.no_space += 1;
        return Err(io::ErrorKind::StorageFull.into());
    }
    match fault {
        Some(Fault::WriteError) => {
            // What an erroneous write leaves behind is anybody's guess: here, a part of it.
            let keep = medium.draw_part(blocks);
            medium.land(write, keep, false);
            medium.counts.write_errors += 1;
            return Err(eio());
        }
        Some(Fault::ShortWrite) => {
            let keep = medium.draw_part(blocks.saturating_sub(1));
            medium.land(write, keep, dsync);
            medium.counts.short_writes += 1;
            return Ok(bytes(keep));
        }
        Some(Fault::NoSpace) => {
            medium.counts.no_space += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Some(Fault::LostWrite) => medium.counts.lost_writes += 1,
        Some(Fault::MisdirectedWrite) => {
            medium.misdirect(write, dsync);
            medium.counts.misdirected_writes += 1;
        }
        Some(Fault::LyingFlush) => {
            medium.land(write, blocks, false);
            medium.counts.lying_flushes += 1;
        }
        _ => medium.land(write, blocks, dsync),
    }
    Ok(bytes(blocks))
}

pub(super) fn end_read(
    medium: &mut Medium,
    slot: SlotId,
    block: u32,
    into: &mut [Block],
    fault: Option<Fault>,
) -> io::Result<u64> {
    match fault {
        Some(Fault::ReadError) => {
            medium.counts.read_errors += 1;
            return Err(eio());
        }
        Some(Fault::ShortRead) => {
            medium.counts.short_reads += 1;
            let wanted = u32::try_from(into.len()).unwrap_or(u32::MAX);
            let part = medium.draw_part(wanted.saturating_sub(1)) as usize;
            let read = medium.read(slot, block, &mut into[..part]);
            return Ok((read * BLOCK_BYTES) as u64);
        }
        _ => {}
    }
    let read = medium.read(slot, block, into);
    Ok((read * BLOCK_BYTES) as u64)
}

pub(super) fn end_create(
    medium: &mut Medium,
    slot: SlotId,
    blocks: u32,
    fault: Option<Fault>,
) -> io::Result<u64> {
    if fault == Some(Fault::NoSpace) {
        medium.give_up_creating(slot);
        medium.counts.no_space += 1;
        return Err(io::ErrorKind::StorageFull.into());
    }
    match medium.create(slot, blocks) {
        Created::Made => Ok(0),
        Created::Exists => Err(io::ErrorKind::AlreadyExists.into()),
        Created::NoSpace => Err(io::ErrorKind::StorageFull.into()),
    }
}

fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_BYTES as u64
}

pub(super) fn eio() -> io::Error {
    // What `errno` 5 is called differs between systems; the kind is enough.
    io::Error::other("input/output error")
}
