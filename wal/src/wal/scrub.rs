//! Scrub: sealed segments are read again, slowly, so that what goes bad at rest is found before anybody needs it.
//!
//! A part that is not as it was written, or cannot be read, is read once more block by block. What is bad then is
//! reported once, and the entries around it are to be written again, from a peer: of a flush group with one bad block the
//! next opening reads nothing.

use std::collections::BTreeSet;

use logdrive_raft::Micros;

use super::Wal;
use crate::build::blocks_for;
use crate::disk::{BLOCK_BYTES, Buffer, Disk, Op, OpId, SlotId};
use crate::error::{ADVICE_SCRUBBED, Finding, FindingVerdict};
use crate::format::{BlockState, SLOT_HEADER_BLOCKS, Stamper};
use crate::options::ScrubPace;

/// How many blocks are read at once.
const PART_BLOCKS: u32 = 64;

/// The least time from the end of one pass to the beginning of the next one.
const PAUSE_US: u64 = 10_000;

/// The most findings that wait to be taken.
const FINDINGS_MAX: usize = 64;

/// Where it is.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// The segment that is read, or the next one that there is, and the block.
    segment: u64,
    block: u32,
    /// Before this block each one is read by itself.
    careful_until: u32,
    /// Not before then is the next part read.
    due: Option<Micros>,
    /// When the pass began.
    began: Micros,
    under_way: Option<Part>,
    /// Blocks that were found bad, of segments that are kept.
    known: BTreeSet<(u64, u32)>,
    findings: Vec<Finding>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    op: OpId,
    segment: u64,
    slot: SlotId,
    stamper: Stamper,
    block: u32,
    blocks: u32,
}

impl Scrub {
    /// Whether this operation is one of its own.
    pub(super) fn is_under_way(&self, op: OpId) -> bool {
        self.under_way.is_some_and(|part| part.op == op)
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.due.filter(|_| self.under_way.is_none())
    }
}

impl<D: Disk> Wal<D> {
    /// What was found bad at rest since the last call. Entries among it are asked about with [`Wal::wanted`].
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.scrub.findings)
    }

    /// Reads the next part, if it is time.
    pub(super) fn scrub(&mut self, now: Micros) {
        let Some(pace) = self.options.scrub else {
            return;
        };
        let due = *self.scrub.due.get_or_insert(now.after(pace.every_us));
        if now < due || self.scrub.under_way.is_some() || self.poisoned.is_some() {
            return;
        }
        if (self.scrub.segment, self.scrub.block) == (0, 0) {
            self.scrub.began = now;
        }
        // Of a segment that was just sealed the last flush groups may be under way.
        let durable = self.pipeline.durable_place.segment;
        let next = self.segments.range(self.scrub.segment..).next();
        let sealed = next.filter(|(segment, _)| **segment < durable);
        let Some((segment, held)) = sealed.map(|(segment, held)| (*segment, *held)) else {
            return self.end_pass(now, pace);
        };
        if segment != self.scrub.segment || self.scrub.block == 0 {
            self.scrub.segment = segment;
            self.scrub.block = SLOT_HEADER_BLOCKS;
            self.scrub.careful_until = 0;
        }
        let block = self.scrub.block;
        if held.end <= block {
            self.scrub.segment = segment + 1;
            self.scrub.block = 0;
            self.scrub.due = Some(now);
            return;
        }
        let most = if block < self.scrub.careful_until {
            1
        } else {
            PART_BLOCKS
        };
        let blocks = most.min(held.end - block);
        let op = self.next_op();
        let slot = held.slot;
        self.scrub.under_way = Some(Part {
            op,
            segment,
            slot,
            stamper: held.stamper,
            block,
            blocks,
        });
        let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
        self.scrub.due = Some(now.after(bytes * 1_000_000 / pace.bytes_per_s.max(1)));
        let buffer = self.disk.take_buffer(blocks as usize);
        self.disk.submit(
            op,
            Op::Read {
                slot,
                block,
                buffer,
            },
        );
    }

    /// All has been read. A log that is short is not read over and over.
    fn end_pass(&mut self, now: Micros, pace: ScrubPace) {
        let next = self
            .scrub
            .began
            .after(pace.every_us)
            .max(now.after(PAUSE_US));
        let kept = &self.segments;
        self.scrub
            .known
            .retain(|(segment, _)| kept.contains_key(segment));
        self.scrub.segment = 0;
        self.scrub.block = 0;
        self.scrub.due = Some(next);
        self.counters.scrub_passes += 1;
    }

    pub(super) fn on_scrubbed(
        &mut self,
        result: &Result<u64, std::io::Error>,
        buffer: Option<Buffer>,
    ) {
        let part = self.scrub.under_way.take().expect("the caller has looked");
        let buffer = buffer.expect("a read gives its buffer back");
        let bytes = u64::from(part.blocks) * BLOCK_BYTES as u64;
        let is_read = matches!(result, Ok(read) if *read == bytes);
        let is_whole =
            |(number, block)| matches!(part.stamper.check(block, number), BlockState::Whole { .. });
        let is_good = is_read && (part.block..).zip(buffer.blocks()).all(is_whole);
        self.disk.give_buffer(buffer);
        // It may have been released meanwhile.
        let held = self.segments.get(&part.segment);
        if held.is_none_or(|held| held.slot != part.slot) {
            return;
        }
        self.counters.scrubbed_bytes += bytes;
        if !is_good && part.blocks > 1 {
            self.scrub.careful_until = part.block + part.blocks;
            return;
        }
        if !is_good {
            let why = match result {
                Ok(_) => "it is not as it was written".to_owned(),
                Err(error) => error.to_string(),
            };
            self.on_bad_block(part.segment, part.slot, part.block, &why);
        }
        self.scrub.block = part.block + part.blocks;
    }

    /// A block that was durable cannot be read any more. Of its flush group the next opening would read nothing, so what
    /// lies as near as that one may reach is wanted again.
    pub(super) fn on_bad_block(&mut self, segment: u64, slot: SlotId, block: u32, why: &str) {
        if !self.scrub.known.insert((segment, block)) {
            return;
        }
        let reach = blocks_for(2 * self.options.group_bytes_max);
        let near = block.saturating_sub(reach)..=block.saturating_add(reach);
        let mut entries = 0;
        let mut first = None;
        for (group, log) in &mut self.groups {
            let (found, index) = log.want_again(segment, &near);
            entries += found;
            first = first.or(index.map(|index| (*group, index)));
        }
        if self.scrub.findings.len() < FINDINGS_MAX {
            self.scrub.findings.push(Finding {
                verdict: FindingVerdict::Rot,
                file: self.disk.slot_path(slot),
                offset_bytes: u64::from(block) * BLOCK_BYTES as u64,
                group: first.map(|(group, _)| group),
                index: first.map(|(_, index)| index),
                term: None,
                meaning: format!(
                    "a block of segment {segment} went bad at rest ({why}); {entries} entries near it are fetched from peers \
                     and written again"
                ),
                advice: ADVICE_SCRUBBED,
            });
        }
    }
}
