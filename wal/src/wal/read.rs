//! Reading entries back: from the path to blocks, and from blocks, once they are checked, to entries.

use logdrive_raft::GroupId;

use super::Wal;
use crate::build::gather;
use crate::disk::{BLOCK_BYTES, Block, Buffer, Disk, Op, OpId};
use crate::error::{ADVICE_ROT, Finding, FindingVerdict, ReadError, ReadRefused};
use crate::format::BlockState;
use crate::read::{
    Extent, READS_ACTIVE_MAX, READS_MAX, ReadDone, ReadJob, ReadRequest, Wanted, entry_of,
};

impl<D: Disk> Wal<D> {
    /// Starts a read. What is durable of the entries wanted comes back with [`Wal::take_reads`].
    pub fn read(&mut self, request: ReadRequest) -> Result<(), ReadRefused> {
        let ReadRequest {
            id,
            group,
            from,
            through,
            bytes_max,
        } = request;
        if self.reads.jobs.len() >= READS_MAX {
            return Err(ReadRefused::Busy);
        }
        let log = self.groups.get(&group).ok_or(ReadRefused::UnknownGroup)?;
        if from <= log.base().index {
            return Err(ReadRefused::BelowBase);
        }
        let mut wanted = std::collections::VecDeque::new();
        let (mut index, mut bytes) = (from, 0);
        while index <= through {
            let Some(row) = log.row(index).filter(|row| self.is_durable(row)) else {
                break;
            };
            let Some(blocks) = row.blocks() else {
                break;
            };
            bytes += row.bytes as usize;
            if bytes > bytes_max && !wanted.is_empty() {
                break;
            }
            wanted.push_back(Wanted {
                index,
                chain: row.chain,
                segment: row.segment().expect("what is durable has a place"),
                blocks,
                bytes: row.bytes,
            });
            index = index.next();
        }
        if wanted.is_empty() {
            return Err(ReadRefused::NotDurable);
        }
        let entries = Vec::with_capacity(wanted.len());
        self.reads.jobs.push_back(ReadJob {
            id,
            group,
            wanted,
            entries,
            op: None,
        });
        self.start_reads();
        self.disk.kick();
        Ok(())
    }

    /// The reads that have ended.
    pub fn take_reads(&mut self) -> Vec<ReadDone> {
        std::mem::take(&mut self.reads.done)
    }

    pub(super) fn start_reads(&mut self) {
        let mut active = self
            .reads
            .jobs
            .iter()
            .filter(|job| job.op.is_some())
            .count();
        while active < READS_ACTIVE_MAX {
            let op = self.next_op();
            let waiting = self.reads.jobs.iter().position(|job| job.op.is_none());
            let Some(waiting) = waiting else {
                return;
            };
            let job = &mut self.reads.jobs[waiting];
            let (segment, block, blocks, frames) = job
                .next_extent()
                .expect("a job without wanted frames has ended");
            let Some(held) = self.segments.get(&segment).copied() else {
                // It was released, so everything in it was cut away.
                let id = job.id;
                let result = Err(ReadError::OffPath);
                self.reads.jobs.remove(waiting);
                self.reads.done.push(ReadDone { id, result });
                continue;
            };
            active += 1;
            job.op = Some(Extent {
                op,
                slot: held.slot,
                stamper: held.stamper,
                block,
                blocks,
                frames,
            });
            let buffer = self.disk.take_buffer(blocks as usize);
            let slot = held.slot;
            self.disk.submit(
                op,
                Op::Read {
                    slot,
                    block,
                    buffer,
                },
            );
        }
    }

    pub(super) fn on_read(
        &mut self,
        op: OpId,
        result: Result<u64, std::io::Error>,
        buffer: Option<Buffer>,
    ) {
        let is_this = |job: &ReadJob| job.op.is_some_and(|extent| extent.op == op);
        let place = self.reads.jobs.iter().position(is_this);
        let mut job = place
            .and_then(|place| self.reads.jobs.remove(place))
            .expect("the caller has looked");
        let extent = job.op.take().expect("the caller has looked");
        let buffer = buffer.expect("a read gives its buffer back");
        let read = match result {
            Ok(bytes) if bytes == u64::from(extent.blocks) * BLOCK_BYTES as u64 => {
                self.counters.reads += 1;
                self.counters.bytes_read += bytes;
                self.take_frames(&mut job, &extent, buffer.blocks())
            }
            Ok(bytes) => Err(self.read_failed(&extent, format!("only {bytes} bytes were read"))),
            Err(error) => Err(self.read_failed(&extent, error.to_string())),
        };
        self.disk.give_buffer(buffer);
        let id = job.id;
        match read {
            Ok(()) if !job.wanted.is_empty() => self.reads.jobs.push_back(job),
            Ok(()) => {
                let result = Ok(job.entries);
                self.reads.done.push(ReadDone { id, result });
            }
            Err(error) => {
                if let ReadError::Rot(finding) = &error {
                    self.note_rot(extent.slot, finding);
                }
                let result = Err(error);
                self.reads.done.push(ReadDone { id, result });
            }
        }
    }

    /// What was found bad when it was needed is wanted again like what is found by looking for it.
    fn note_rot(&mut self, slot: crate::disk::SlotId, finding: &Finding) {
        let mut segments = self.segments.iter();
        let segment = segments.find(|(_, held)| held.slot == slot);
        let segment = segment.map(|(segment, _)| *segment);
        let block = u32::try_from(finding.offset_bytes / BLOCK_BYTES as u64);
        if let (Some(segment), Ok(block)) = (segment, block) {
            self.on_bad_block(segment, slot, block, &finding.meaning);
        }
    }

    fn take_frames(
        &self,
        job: &mut ReadJob,
        extent: &Extent,
        blocks: &[Block],
    ) -> Result<(), ReadError> {
        let log = self.groups.get(&job.group).ok_or(ReadError::OffPath)?;
        for wanted in job.wanted.drain(..extent.frames) {
            // What was cut meanwhile must not be sent: it would pass for what replaced it.
            let on_path = log
                .row(wanted.index)
                .is_some_and(|row| row.chain == wanted.chain);
            if !on_path {
                return Err(ReadError::OffPath);
            }
            let (first, offset, last) = wanted.blocks;
            let range = (first - extent.block) as usize..=(last - extent.block) as usize;
            let blocks = &blocks[range];
            for (number, block) in (first..).zip(blocks) {
                if !matches!(
                    extent.stamper.check(block, number),
                    BlockState::Whole { .. }
                ) {
                    let meaning = "a block of a durable entry is bad".to_owned();
                    return Err(self.rot(job.group, &wanted, extent, number, meaning));
                }
            }
            let frame = gather(blocks, offset, wanted.bytes as usize).freeze();
            match entry_of(frame, wanted.chain) {
                Ok(entry) => job.entries.push(entry),
                Err(meaning) => return Err(self.rot(job.group, &wanted, extent, first, meaning)),
            }
        }
        Ok(())
    }

    fn rot(
        &self,
        group: GroupId,
        wanted: &Wanted,
        extent: &Extent,
        block: u32,
        meaning: String,
    ) -> ReadError {
        ReadError::Rot(Box::new(Finding {
            verdict: FindingVerdict::Rot,
            file: self.disk.slot_path(extent.slot),
            offset_bytes: u64::from(block) * BLOCK_BYTES as u64,
            group: Some(group),
            index: Some(wanted.index),
            term: self
                .groups
                .get(&group)
                .and_then(|log| log.row(wanted.index))
                .map(|row| row.term),
            meaning,
            advice: ADVICE_ROT,
        }))
    }

    fn read_failed(&self, extent: &Extent, error: String) -> ReadError {
        ReadError::Io {
            path: self.disk.slot_path(extent.slot),
            error,
        }
    }
}
