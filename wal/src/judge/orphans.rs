//! Segments that show by their blocks alone.

use std::collections::BTreeSet;

use logdrive_raft::Boot;

use crate::debris::Debris;
use crate::disk::{Block, Disk, DiskError, SlotId};
use crate::error::{FindingVerdict, OpenError};
use crate::format::{Place, SLOT_HEADER_BLOCKS, SlotHeader, Stamper};
use crate::scan::{Expected, FromTheFuture, ScanError, SlotScan, read_blocks, scan_blocks};

use super::chain::mark_in;
use super::court::Court;
use super::{Live, open_error};

/// Of a slot that no segment needs such a part is read, at its front; and then a block at each further one, two, four
/// and so on of these.
const FRONT_SHARE: u32 = 64;

/// And no fewer blocks than these.
const FRONT_BLOCKS_MIN: u32 = 16;

impl<D: Disk> Court<'_, D> {
    /// A segment whose header is gone shows by its blocks. If something in it was durable, it is missing.
    pub(super) fn look_for_orphans(
        &mut self,
        live: &[Live],
        newest: SlotHeader,
    ) -> Result<(), OpenError> {
        let used: BTreeSet<SlotId> = live.iter().map(|live| live.slot).collect();
        let scans = self.scans;
        for scan in scans.iter().filter(|scan| !used.contains(&scan.slot)) {
            if scan.is_headless() {
                let copies = match scan.bad_copies.len() {
                    1 => "what is left of a slot's header is",
                    _ => "both copies of a slot's header are",
                };
                let meaning = format!("{copies} bad");
                self.find(FindingVerdict::Suspect, scan.slot, 0, None, meaning);
            }
            if self.question.sealed_only {
                continue;
            }
            let mut blocks = std::mem::take(&mut self.blocks);
            if self.question.glances && !self.is_remarkable(scan, newest, &mut blocks)? {
                self.blocks = blocks;
                continue;
            }
            read_blocks(self.disk, scan.slot, scan.blocks, &mut blocks)?;
            let stamps = (0..)
                .zip(&blocks)
                .skip(SLOT_HEADER_BLOCKS as usize)
                .filter_map(|(number, block)| {
                    let stamp = Stamper::whole_stamp_at(newest.log_uuid, block, number)?;
                    Some((u64::from(stamp.epoch), u64::from(stamp.segment)))
                });
            let highest = stamps.max();
            if let Some((epoch, _)) = highest {
                self.orphans_boot = self.orphans_boot.max(Boot(epoch));
            }
            let debris = Debris::find(newest.log_uuid, &blocks);
            self.judgement.debris.insert(scan.slot, debris);
            let newer = highest.filter(|highest| *highest > (newest.epoch.0, newest.segment));
            let header = scan.header.map(|header| (header.epoch.0, header.segment));
            if let Some((epoch, segment)) = newer.filter(|newer| header < Some(*newer)) {
                let stamper = Stamper::new(newest.log_uuid, segment, epoch);
                let expected = Expected {
                    cluster: newest.cluster,
                    incarnation: newest.incarnation,
                };
                let pieces = scan_blocks(&blocks, segment, &stamper, &expected);
                let pieces = pieces.map_err(|source| {
                    let slot = scan.slot;
                    open_error(self.disk, ScanError::Future(FromTheFuture { slot, source }))
                })?;
                let first = Place {
                    segment,
                    block: SLOT_HEADER_BLOCKS,
                };
                let stated = pieces.iter().filter_map(mark_in).any(|mark| mark > first);
                if stated && !self.was_discounted(Boot(epoch)) {
                    let meaning = format!("the header of segment {segment} is gone");
                    self.find(FindingVerdict::Rot, scan.slot, 0, None, meaning);
                }
            }
            self.blocks = blocks;
        }
        Ok(())
    }

    /// Whether a slot that no segment needs has to be read whole.
    ///
    /// A segment is written from the front of its slot, and is durable in that order. So if something in it is newer than
    /// the log, so is what lies at the front; unless that is bad or gone, which shows in itself, or beside what lies
    /// behind it.
    fn is_remarkable(
        &mut self,
        scan: &SlotScan,
        newest: SlotHeader,
        blocks: &mut Vec<Block>,
    ) -> Result<bool, DiskError> {
        if !scan.bad_copies.is_empty() {
            return Ok(true);
        }
        let front = (scan.blocks / FRONT_SHARE).max(FRONT_BLOCKS_MIN);
        let front = front.min(scan.blocks);
        read_blocks(self.disk, scan.slot, front, blocks)?;
        let mut seen: Vec<(u32, Block)> = (0..).zip(blocks.drain(..)).collect();
        seen.drain(..seen.len().min(SLOT_HEADER_BLOCKS as usize));
        let behind = std::iter::successors(Some(front), |number| number.checked_mul(2));
        for number in behind.take_while(|number| (1..scan.blocks).contains(number)) {
            let mut block = [Block::ZERO];
            self.disk.read(scan.slot, number, &mut block)?;
            seen.extend(block.map(|block| (number, block)));
        }
        let mut begun = false;
        for (number, block) in &seen {
            let stamp = Stamper::whole_stamp_at(newest.log_uuid, block, *number);
            let Some(stamp) = stamp else {
                let is_bad = Stamper::is_debris(newest.log_uuid, block, *number);
                if is_bad && (*number < front || !begun) {
                    return Ok(true);
                }
                continue;
            };
            let (epoch, segment) = (u64::from(stamp.epoch), u64::from(stamp.segment));
            let is_newer = (newest.epoch.0, newest.segment) < (epoch, segment);
            if is_newer || (front <= *number && !begun) {
                return Ok(true);
            }
            begun = true;
            self.orphans_boot = self.orphans_boot.max(Boot(epoch));
        }
        Ok(false)
    }
}
