//! One chain of segments before the court: its segments are read, followed and judged, unless it turns out
//! that a part of it does not count.

use logdrive_raft::{Boot, GroupId, Index, Term};

use crate::disk::{BLOCK_BYTES, Block, Disk, SlotId};
use crate::error::{
    ADVICE_GUARDED, ADVICE_HEALABLE, ADVICE_HOLED, ADVICE_MENDED, ADVICE_ROT, ADVICE_SUSPECT,
    Finding, FindingVerdict, OpenError,
};
use crate::format::{Place, SLOT_HEADER_BLOCKS, SlotHeader, Stamper};
use crate::scan::{Bad, GroupScan, Piece, SegmentScan, SlotScan, scan_segment};

use super::chain::{link, mark_of, unfinished};
use super::suspicion::Suspicion;
use super::{Judgement, Live, Question, open_error};

/// The most findings of each verdict that are kept; one is reason enough to stop.
const FINDINGS_MAX: usize = 64;

/// A judgement of one chain of segments, unless it turns out that a part of it does not count.
pub(super) struct Judged {
    pub(super) judgement: Judgement,
    pub(super) without: Option<Without>,
    pub(super) boot: Boot,
    /// What may have been acknowledged of what does not count.
    pub(super) suspicion: Suspicion,
    /// What an opening that does not count flushed before it read it.
    pub(super) flushed: Flushed,
}

/// Everything before a place was flushed, as far as it was written in this epoch or before: what is bad there was durable,
/// also where nothing that counts says so.
#[derive(Clone, Copy, Default)]
pub(super) struct Flushed {
    place: Place,
    epoch: Boot,
}

impl Flushed {
    /// What the opening of an epoch had flushed.
    fn by(segments: &[SegmentScan], epoch: Boot) -> Self {
        let opening = segments
            .iter()
            .find(|segment| segment.header.epoch == epoch);
        opening.map_or(Self::default(), |opening| Self {
            place: opening.header.predecessor_end,
            epoch: opening.header.predecessor_epoch,
        })
    }

    /// What is known once another opening is left out, an older one. If what was known before is of a segment that goes with
    /// it, only that says more which this one had flushed.
    pub(super) fn before(self, older: Self) -> Self {
        let is_gone = older.place.segment < self.place.segment && older.place != Place::default();
        if is_gone || self.place < older.place {
            older
        } else {
            self
        }
    }

    /// What is known of segments of which these are the last.
    fn within(self, segments: &[SegmentScan]) -> Place {
        match segments.last().map(|last| last.header) {
            Some(last) if last.epoch <= self.epoch && self.place.segment <= last.segment => {
                self.place
            }
            _ => Place::default(),
        }
    }
}

/// What does not count.
pub(super) enum Without {
    /// A recovery opened segments and did not get as far as its verdict.
    Epoch(Boot),
    /// Segments whose predecessor never landed, or whose slot a later opening took.
    Segments(Vec<Live>),
}

/// What came of one chain of segments.
enum Tried {
    Judged(Box<Judged>),
    /// It has to begin with this segment, an older one.
    Older(u64),
}

impl Tried {
    fn without(live: Vec<Live>, segments: &[SegmentScan], suspicion: Suspicion) -> Self {
        Self::Judged(Box::new(Judged {
            judgement: Judgement::empty(),
            without: Some(Without::Segments(live)),
            boot: boot_of(segments),
            suspicion,
            flushed: Flushed::default(),
        }))
    }
}

/// The highest boot that wrote a flush group of these.
fn boot_of(segments: &[SegmentScan]) -> Boot {
    let pieces = segments.iter().flat_map(|segment| &segment.pieces);
    let boots = pieces.filter_map(|piece| match piece {
        Piece::Group(group) => Some(group.header.boot),
        Piece::Bad(_) => None,
    });
    boots.max().unwrap_or_default()
}

/// Reads the segments of one chain and judges them.
pub(super) struct Court<'a, D> {
    pub(super) disk: &'a mut D,
    pub(super) scans: &'a [SlotScan],
    pub(super) question: &'a Question,
    pub(super) judgement: Judgement,
    pub(super) blocks: Vec<Block>,
    /// The highest boot in the stamps of slots that are not in the chain.
    pub(super) orphans_boot: Boot,
    /// What is bad below the mark, and in which segment of the chain it lies: what it comes to is not decided.
    pub(super) rotten: Vec<(usize, Bad)>,
    /// What may have been acknowledged and is lost.
    pub(super) suspicion: Suspicion,
    /// The same of what was found not to count before.
    before: Suspicion,
    flushed: Flushed,
}

impl<'a, D: Disk> Court<'a, D> {
    pub(super) fn new(
        disk: &'a mut D,
        scans: &'a [SlotScan],
        question: &'a Question,
        before: Suspicion,
        flushed: Flushed,
    ) -> Self {
        Self {
            disk,
            scans,
            question,
            judgement: Judgement::empty(),
            blocks: Vec::new(),
            orphans_boot: Boot(0),
            rotten: Vec::new(),
            suspicion: before.clone(),
            before,
            flushed,
        }
    }

    /// A header says from which segment on the log is needed, and is taken at its word once a flush group of its
    /// segment counts. Until then those before are there, and they may hold what the log without it needs.
    pub(super) fn try_chain(
        &mut self,
        candidates: &[&SlotScan],
        newest: SlotHeader,
    ) -> Result<Judged, OpenError> {
        let mut oldest = newest.oldest;
        loop {
            match self.try_from(candidates, newest, oldest)? {
                Tried::Judged(judged) => return Ok(*judged),
                Tried::Older(older) => oldest = older,
            }
            self.judgement = Judgement::empty();
            self.rotten.clear();
            self.suspicion = self.before.clone();
        }
    }

    fn try_from(
        &mut self,
        candidates: &[&SlotScan],
        newest: SlotHeader,
        oldest: u64,
    ) -> Result<Tried, OpenError> {
        let (live, missing) = link(candidates, newest, oldest);
        // Before the others, so that all it says was durable is there by the time that they are read.
        let mut stated = Place::default();
        let mut newest_counts = false;
        if self.question.sealed_only {
            (stated, newest_counts) = self.stated_in(live.last())?;
        }
        let mut segments = Vec::with_capacity(live.len());
        for (place, segment) in live.iter().enumerate() {
            let successor = live
                .get(place + 1)
                .map(|next| next.header.predecessor_end.block);
            if self.question.sealed_only && successor.is_none() {
                break;
            }
            let end = successor.unwrap_or(u32::MAX).min(segment.blocks);
            let scan = scan_segment(
                self.disk,
                segment.slot,
                &segment.header,
                end,
                &mut self.blocks,
                self.question.mutant,
            );
            segments.push(scan.map_err(|error| open_error(self.disk, error))?);
            if self.was_taken(&segment.header) {
                let suspicion = self.suspicion.clone();
                return Ok(Tried::without(vec![segment.clone()], &segments, suspicion));
            }
        }
        let flushed = self.flushed.within(&segments);
        self.judgement.mark = mark_of(&segments).max(stated).max(flushed);
        if let Some((missing, epoch)) = missing {
            let first = Place {
                segment: missing,
                block: SLOT_HEADER_BLOCKS,
            };
            // What was cut off may have said more of it.
            let unmarked = self.judgement.mark <= first && !live.iter().any(Live::is_cut);
            let uncounted = unmarked || self.was_discounted(epoch);
            if uncounted && !self.question.sealed_only {
                // Its header never landed, nor was anything after it acknowledged.
                return Ok(Tried::without(live, &segments, self.suspicion.clone()));
            }
            let meaning = format!("segment {missing} is missing");
            self.find(FindingVerdict::Rot, live[0].slot, 0, None, meaning);
        }
        self.look_for_cuts(&live[..segments.len()]);
        self.look_for_orphans(&live, newest)?;
        self.judgement.live = live;
        let walk = self.walk(&segments);
        let mut boot = boot_of(&segments).max(self.orphans_boot);
        // What cannot be read may be of a boot that went on in the same segment, and that nothing else names.
        boot.0 += u64::from(self.suspicion.is_feared);
        let open_end = !self.judgement.is_refused() && !self.question.sealed_only;
        let mut unfinished = if open_end {
            unfinished(&segments, &walk, self.judgement.mark)
        } else {
            None
        };
        // Its verdict may be what is bad. Then things were acknowledged in its segments.
        let rotten_from = self.rotten.last().map(|(number, _)| *number);
        let is_hit = |number: usize| Some(segments[number].header.epoch) >= unfinished;
        if unfinished.is_some() && rotten_from.is_some_and(is_hit) {
            self.refuse_rotten(&segments);
            unfinished = None;
        }
        let mut flushed = Flushed::default();
        if let Some(epoch) = unfinished {
            flushed = Flushed::by(&segments, epoch);
            self.suspicion.keep_what_is_stated(&segments);
            self.suspicion.keep_findings(&self.judgement);
        } else {
            let whole = newest_counts && walk.end == newest.predecessor_end;
            let last = segments[..walk.segments].last().filter(|_| !whole);
            let older = last.map(|last| last.header.oldest);
            let older = older.filter(|older| *older < oldest);
            if let Some(older) = older.filter(|_| !self.judgement.is_refused()) {
                return Ok(Tried::Older(older));
            }
            self.decide(segments, walk);
        }
        Ok(Tried::Judged(Box::new(Judged {
            judgement: std::mem::replace(&mut self.judgement, Judgement::empty()),
            without: unfinished.map(Without::Epoch),
            boot,
            suspicion: std::mem::take(&mut self.suspicion),
            flushed,
        })))
    }

    /// What a segment that is being written to says was durable, and whether it has a flush group.
    fn stated_in(&mut self, segment: Option<&Live>) -> Result<(Place, bool), OpenError> {
        let Some(Live {
            slot,
            blocks,
            header,
        }) = segment
        else {
            return Ok((Place::default(), false));
        };
        let mutant = self.question.mutant;
        let scan = scan_segment(self.disk, *slot, header, *blocks, &mut self.blocks, mutant);
        let scan = scan.map_err(|error| open_error(self.disk, error))?;
        let is_group = |piece: &Piece| matches!(piece, Piece::Group(_));
        let begun = scan.pieces.iter().any(is_group);
        Ok((mark_of(&[scan]), begun))
    }

    /// Whether a later opening found that no segment of this epoch counted: it went on after one of an older epoch.
    /// What says otherwise was written by an opening that did not get as far as its verdict.
    ///
    /// Where it went on within an epoch says nothing of that epoch: with reads from the page cache an opening goes on
    /// at the mark, and if it dies, what it was to write again lies beyond and counts. The next one, which may read
    /// the medium itself, goes on after all of it.
    pub(super) fn was_discounted(&self, epoch: Boot) -> bool {
        let mut headers = self.scans.iter().filter_map(|scan| scan.header);
        headers.any(|header| {
            header.by_recovery && header.epoch > epoch && header.predecessor_epoch < epoch
        })
    }

    /// Whether a later opening found that this segment does not count, took its slot for a segment of its
    /// own, and did not get as far as that one's header: the blocks of both lie here in a mixture that says
    /// nothing of the log. One that counted was not free to be taken before the verdict of that opening was
    /// durable, and then nobody asks for it any more.
    ///
    /// The blocks of the segment are those that were read last.
    fn was_taken(&self, header: &SlotHeader) -> bool {
        let newer = |(number, block): (u32, &Block)| {
            let stamp = Stamper::whole_stamp_at(header.log_uuid, block, number);
            stamp.is_some_and(|stamp| u64::from(stamp.epoch) > header.epoch.0)
        };
        self.was_discounted(header.epoch)
            && (0..)
                .zip(&self.blocks)
                .skip(SLOT_HEADER_BLOCKS as usize)
                .any(newer)
    }

    /// Files that are shorter than their headers say. The length was durable before the header was written, and
    /// so may be whatever stood beyond the end.
    fn look_for_cuts(&mut self, live: &[Live]) {
        for cut in live.iter().filter(|live| live.is_cut()) {
            let end = Place {
                segment: cut.header.segment,
                block: cut.blocks,
            };
            let verdict = if end < self.judgement.mark {
                FindingVerdict::Rot
            } else {
                FindingVerdict::Suspect
            };
            let (left, all) = (cut.blocks, cut.header.slot_blocks);
            let meaning = format!("the file was cut short: {left} of {all} blocks are left");
            self.find(verdict, cut.slot, cut.blocks, None, meaning);
        }
    }

    /// Nothing that is bad below the mark can be done without.
    fn refuse_rotten(&mut self, segments: &[SegmentScan]) {
        for (number, bad) in std::mem::take(&mut self.rotten) {
            self.find_bad(FindingVerdict::Rot, segments, &segments[number], &bad);
        }
    }

    pub(super) fn find(
        &mut self,
        verdict: FindingVerdict,
        slot: SlotId,
        block: u32,
        hit: Option<(GroupId, Index, Term)>,
        meaning: String,
    ) {
        // None is hidden behind those of another verdict, which may not stop the opening.
        let alike = |finding: &&Finding| finding.verdict == verdict;
        if self.judgement.findings.iter().filter(alike).count() >= FINDINGS_MAX {
            return;
        }
        let finding = self.finding(verdict, slot, block, hit, meaning);
        self.judgement.findings.push(finding);
    }

    fn finding(
        &self,
        verdict: FindingVerdict,
        slot: SlotId,
        block: u32,
        hit: Option<(GroupId, Index, Term)>,
        meaning: String,
    ) -> Finding {
        Finding {
            verdict,
            file: self.disk.slot_path(slot),
            offset_bytes: u64::from(block) * BLOCK_BYTES as u64,
            group: hit.map(|hit| hit.0),
            index: hit.map(|hit| hit.1),
            term: hit.map(|hit| hit.2),
            meaning,
            advice: match verdict {
                FindingVerdict::Rot => ADVICE_ROT,
                FindingVerdict::Holed => ADVICE_HOLED,
                FindingVerdict::Suspect => ADVICE_SUSPECT,
                FindingVerdict::Guarded => ADVICE_GUARDED,
                FindingVerdict::Healable => ADVICE_HEALABLE,
                FindingVerdict::Mended => ADVICE_MENDED,
            },
        }
    }

    /// Says what a bad flush group held, as far as it tells that itself or the next one repeats it.
    pub(super) fn find_bad(
        &mut self,
        verdict: FindingVerdict,
        segments: &[SegmentScan],
        segment: &SegmentScan,
        bad: &Bad,
    ) {
        let pieces = segments.iter().flat_map(|segment| &segment.pieces);
        let after = pieces.filter_map(|piece| match piece {
            Piece::Group(group) if group.place() > bad.at => Some(group),
            _ => None,
        });
        let told = bad.told.iter().find(|told| told.block == bad.at.block);
        let hit = match told {
            Some(told) => GroupScan::first_entry(&told.table),
            None => after
                .into_iter()
                .next()
                .and_then(|next| GroupScan::first_entry(&next.echo)),
        };
        self.find(verdict, segment.slot, bad.block, hit, bad.meaning.clone());
    }
}
