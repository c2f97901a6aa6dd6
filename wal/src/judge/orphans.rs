//! Segments that show by their blocks alone.

use std::collections::BTreeSet;

use logdrive_raft::Boot;

use crate::debris::Debris;
use crate::disk::{Disk, SlotId};
use crate::error::{FindingVerdict, OpenError};
use crate::format::{Place, SLOT_HEADER_BLOCKS, SlotHeader, Stamper};
use crate::scan::{Expected, FromTheFuture, ScanError, read_blocks, scan_blocks};

use super::chain::mark_in;
use super::court::Court;
use super::{Live, open_error};

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
}
