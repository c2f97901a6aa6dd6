//! Reads of entries: for followers that lag and for the state machine.

use std::collections::VecDeque;

use bytes::Bytes;
use logdrive_raft::{Chain, Entry, GroupId, Index};

use crate::disk::{OpId, SlotId};
use crate::error::ReadError;
use crate::format::Stamper;

/// The most reads under way and waiting together.
pub(crate) const READS_MAX: usize = 32;

/// The most reads with an operation under way.
pub(crate) const READS_ACTIVE_MAX: usize = 4;

/// The most blocks that one operation reads, unless a single frame is larger.
pub(crate) const READ_BLOCKS_MAX: u32 = 256;

/// How many blocks that are not wanted are read rather than skipped.
pub(crate) const READ_GAP_BLOCKS: u32 = 8;

/// Entries wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Comes back with the result.
    pub id: u64,
    /// Of which group.
    pub group: GroupId,
    /// The first entry.
    pub from: Index,
    /// The last entry.
    pub through: Index,
    /// The most bytes of frames; one entry may be larger.
    pub bytes_max: usize,
}

/// How a read ended.
#[derive(Debug)]
pub struct ReadDone {
    /// Which read.
    pub id: u64,
    /// The entries from the first one on, without gaps; as many as were durable and had room.
    pub result: Result<Vec<Entry>, ReadError>,
}

/// A frame to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) index: Index,
    pub(crate) chain: Chain,
    pub(crate) segment: u64,
    /// First block, the byte in its data, last block.
    pub(crate) blocks: (u32, usize, u32),
    pub(crate) bytes: u32,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub(crate) id: u64,
    pub(crate) group: GroupId,
    pub(crate) wanted: VecDeque<Wanted>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) op: Option<Extent>,
}

/// The blocks that an operation reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) op: OpId,
    pub(crate) slot: SlotId,
    pub(crate) stamper: Stamper,
    pub(crate) block: u32,
    pub(crate) blocks: u32,
    /// How many of the wanted frames it brings.
    pub(crate) frames: usize,
}

/// Reads under way, waiting, and ended.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub(crate) jobs: VecDeque<ReadJob>,
    pub(crate) done: Vec<ReadDone>,
}

impl Reads {
    pub(crate) fn is_under_way(&self, op: OpId) -> bool {
        self.jobs
            .iter()
            .any(|job| job.op.is_some_and(|extent| extent.op == op))
    }
}

impl ReadJob {
    /// The blocks of the next operation: neighbouring frames of one segment, read with what lies between.
    pub(crate) fn next_extent(&self) -> Option<(u64, u32, u32, usize)> {
        let first = self.wanted.front()?;
        let (begin, _, mut last) = first.blocks;
        let mut frames = 0;
        for wanted in &self.wanted {
            let (from, _, through) = wanted.blocks;
            let near = wanted.segment == first.segment
                && from >= begin
                && from <= last + READ_GAP_BLOCKS
                && through - begin < READ_BLOCKS_MAX;
            if frames > 0 && !near {
                break;
            }
            last = last.max(through);
            frames += 1;
        }
        Some((first.segment, begin, last + 1 - begin, frames))
    }
}

/// The entry in a frame, if it is the one that was wanted.
pub(crate) fn entry_of(frame: Bytes, chain: Chain) -> Result<Entry, String> {
    let entry = Entry::from_frame(frame).map_err(|error| error.to_string())?;
    if entry.header().chain != chain {
        return Err("another entry lies there".to_owned());
    }
    Ok(entry)
}
