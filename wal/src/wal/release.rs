//! Release: which segments nobody needs any more, who says so, and when their slots may be taken again.
//!
//! A log goes from its oldest end. The header of a new segment states which segment is the oldest that is still
//! needed, and once its first flush group is durable, and so everything before it, those below are released. By then
//! the bases that made them so are durable, and two later segments beside the new one, with their checkpoints, are
//! kept.

use std::collections::{BTreeSet, VecDeque};

use logdrive_raft::{GroupId, mutated};

use super::{Wal, place};
use crate::disk::Disk;
use crate::format::SLOT_HEADER_BLOCKS;
use crate::path::Row;
use crate::pool::FREE_MIN;

/// What is known of segments that may go.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// An opening has got as far as its verdict. Until then the segments that it found are what the next one judges
    /// by, if it fails.
    allowed: bool,
    /// The lowest segment with an entry that is needed, or a number above all of them. None: it may have changed.
    needed: Option<u64>,
    /// Headers that release something and do not count yet.
    stated: VecDeque<Statement>,
    /// Segments whose first flush group is bad. What stood in it is known from those before, so they go with it.
    headless: BTreeSet<u64>,
}

/// The header of a segment says which one is the oldest.
#[derive(Clone, Copy, Debug)]
struct Statement {
    segment: u64,
    oldest: u64,
}

impl Release {
    pub(super) fn new(headless: BTreeSet<u64>) -> Self {
        Self {
            headless,
            ..Self::default()
        }
    }

    pub(super) fn allow(&mut self) {
        self.allowed = true;
        self.needed = None;
    }

    /// Entries that kept a segment may be gone.
    pub(super) fn floors_moved(&mut self) {
        self.needed = None;
    }
}

impl<D: Disk> Wal<D> {
    /// The oldest segment that is needed once the log has rolled: two are kept in any case, so that there are two
    /// checkpoints beside the one to come.
    pub(super) fn oldest_after_roll(&mut self) -> u64 {
        let last = self.active.header;
        if !self.release.allowed {
            return last.oldest;
        }
        let before = self.segments.range(..last.segment).next_back();
        let mut kept = before.map_or(last.segment, |(segment, _)| *segment);
        if mutated!(self.options.mutant, ReleaseTooSoon) {
            kept = last.segment;
        }
        let oldest = self.needed().min(kept).max(last.oldest);
        self.with_a_beginning(oldest)
    }

    /// The segment, or the last one before it that a log can begin with.
    fn with_a_beginning(&self, oldest: u64) -> u64 {
        let headless = &self.release.headless;
        if !headless.contains(&oldest) {
            return oldest;
        }
        let before = self.segments.range(..oldest).rev();
        let mut before = before.map(|(segment, _)| *segment);
        let begins = before.find(|segment| !headless.contains(segment));
        begins.expect("the log was opened, and begins somewhere")
    }

    /// The lowest segment with an entry that is needed. Those that are built later go where the log is written, which
    /// is not asked about before the next roll.
    fn needed(&mut self) -> u64 {
        if let Some(needed) = self.release.needed {
            return needed;
        }
        let floors = self.groups.values().filter_map(|log| log.written.floor);
        let needed = floors.min().unwrap_or(u64::MAX);
        self.release.needed = Some(needed);
        needed
    }

    /// The log has rolled: what its header says will count.
    pub(super) fn state_release(&mut self) {
        self.release.needed = None;
        let header = &self.active.header;
        let statement = Statement {
            segment: header.segment,
            oldest: header.oldest,
        };
        let stated = self.release.stated.back().map_or(0, |last| last.oldest);
        if stated < statement.oldest && self.segments.range(..statement.oldest).next().is_some() {
            self.release.stated.push_back(statement);
        }
        if mutated!(self.options.mutant, ReleaseOutOfOrder) {
            self.release_between();
        }
    }

    /// Gives back the slots of segments that are not needed, as far as a durable header says so.
    pub(super) fn release_segments(&mut self) {
        while let Some(statement) = self.release.stated.front().copied() {
            let first_group = place(statement.segment, SLOT_HEADER_BLOCKS);
            let counts = first_group < self.pipeline.durable_place;
            if !counts && !mutated!(self.options.mutant, ReleaseTooSoon) {
                return;
            }
            self.release.stated.pop_front();
            while let Some(oldest) = self.segments.first_entry()
                && *oldest.key() < statement.oldest
            {
                let held = oldest.remove();
                self.pool.release(held.slot);
                self.counters.segments_released += 1;
            }
        }
    }

    /// Whether slots run out: then it is time to cut what can be cut, rather than keep it for who may come.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let slots_max = usize::try_from(self.options.bytes_max / self.options.slot_bytes);
        let slots_max = slots_max.unwrap_or(usize::MAX);
        let coming = self.pool.growable() + self.pool.recycled() + self.to_be_released();
        self.pool.free_slots() + coming < (slots_max / 4).max(FREE_MIN + 1)
    }

    /// The group whose entries keep the oldest segment, if any do.
    #[must_use]
    pub fn pinned_by(&self) -> Option<GroupId> {
        let floors = self.groups.iter();
        let floors = floors.filter_map(|(group, log)| Some((log.written.floor?, *group)));
        // The segment that is written to and the one before are kept whoever needs them, and what is about to be
        // released has been let go of already.
        let last = self.active.header.segment;
        let before = self.segments.range(..last).next_back();
        let kept = before.map_or(last, |(segment, _)| *segment);
        let oldest = self.segments.keys().next().copied().unwrap_or(last);
        let pins = |(floor, _): &(u64, GroupId)| *floor < kept && *floor <= oldest;
        floors.min().filter(pins).map(|(_, group)| group)
    }

    /// How many segments are released as soon as a header is durable.
    pub(super) fn to_be_released(&self) -> usize {
        let oldest = self.release.stated.back().map_or(0, |last| last.oldest);
        self.segments.range(..oldest).count()
    }

    /// Whether a roll now, before the segment is full, is worth the slot that it takes. In a segment that was just begun
    /// it would be another one for each that it frees, for ever.
    pub(super) fn wants_roll(&mut self) -> bool {
        // Where proposals are refused nothing else may come that fills the segment.
        let refuses = self.pool.is_spent() && !self.has_room(self.options.frame_bytes_max);
        if !(self.pool.is_scarce() || refuses) || self.pool.free_slots() == 0 {
            return false;
        }
        let used = self.active.next - SLOT_HEADER_BLOCKS;
        match self.freed_by_roll() {
            0 => false,
            1 => used > self.usable_blocks() / 2,
            _ => true,
        }
    }

    /// Where all slots are in use, the reserve too, there is none to roll to. Then one more than there may be is made,
    /// as an opening does, rather than keep what nobody needs, or what nobody will once what waits is written.
    pub(super) fn ask_for_one_more(&mut self) {
        if self.pool.is_scarce()
            && self.pool.free_slots() == 0
            && (self.queue.lets_go() || self.freed_by_roll() > 0)
        {
            self.pool.one_more();
        }
    }

    /// How many segments a roll would release, counted up to two.
    fn freed_by_roll(&mut self) -> usize {
        if !self.release.stated.is_empty() {
            return 0;
        }
        let oldest = self.oldest_after_roll();
        self.segments.range(..oldest).take(2).count()
    }

    /// What a mutant does: segments without a single entry on a path, wherever they stand.
    fn release_between(&mut self) {
        let rows = self.groups.values().flat_map(|log| log.rows());
        let needed: BTreeSet<u64> = rows.filter_map(Row::segment).collect();
        let last = self.active.header.segment;
        let dead = self
            .segments
            .keys()
            .copied()
            .filter(|segment| segment + 2 < last && !needed.contains(segment));
        for segment in dead.collect::<Vec<u64>>() {
            if let Some(held) = self.segments.remove(&segment) {
                self.pool.release(held.slot);
            }
        }
    }
}
