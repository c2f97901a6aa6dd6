//! Decides what a disk holds: where the log ends, whether anything that was durable is bad, and what every
//! group's log is.
//!
//! ```text
//! W: the highest durable mark that any flush group states
//!
//!                 bad below W             bad above W: not landed   bad above W: anything else
//! verdict         rot                     torn: the log ends here   suspect
//! ```
//!
//! Acknowledgements are given in log order. So if a flush group above the mark has a block that never
//! landed, neither it nor anything after it was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use logdrive_raft::io::HardState;
use logdrive_raft::{Boot, Chain, GroupId, Index, Membership, NodeId, Replica, Term};

use crate::disk::{BLOCK_BYTES, Block, Disk, SlotFile, SlotId};
use crate::error::{ADVICE_HEALED, ADVICE_ROT, ADVICE_SUSPECT, Finding, FindingVerdict, OpenError};
use crate::format::{FooterRow, GroupKind, Place, Record, SLOT_HEADER_BLOCKS, SlotHeader, Stamper};
use crate::options::Identity;
use crate::path::{GroupLog, OffPath, Row};
use crate::scan::{
    Bad, Expected, FromTheFuture, GroupScan, Piece, ScanError, SegmentScan, SlotScan, read_blocks,
    scan_blocks, scan_headers, scan_segment,
};

/// The most findings that are kept; one is reason enough to stop.
const FINDINGS_MAX: usize = 64;

/// What a recovery decided about what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing had to be dropped.
    Clean,
    /// The last writes had not reached the medium; nobody was told of them.
    Torn,
    /// The end cannot be judged.
    Suspect,
    /// Something that was durable is bad.
    Rot,
}

impl Verdict {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Torn => "torn",
            Self::Suspect => "suspect",
            Self::Rot => "rot",
        }
    }
}

/// A segment that belongs to the log.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) slot: SlotId,
    pub(crate) header: SlotHeader,
}

/// A good flush group beyond the mark.
#[derive(Clone, Debug)]
pub(crate) struct Beyond {
    pub(crate) slot: SlotId,
    pub(crate) group: GroupScan,
}

/// What a disk holds.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    pub(crate) findings: Vec<Finding>,
    /// The log's own ids; none: there is no log yet.
    pub(crate) known: Option<SlotHeader>,
    /// Oldest first.
    pub(crate) live: Vec<Live>,
    pub(crate) groups: BTreeMap<GroupId, GroupLog>,
    pub(crate) configurations: BTreeMap<GroupId, Vec<(Index, Membership)>>,
    /// Term and vote as they must be from now on.
    pub(crate) hard_states: BTreeMap<GroupId, HardState>,
    /// Where the log ends.
    pub(crate) end: Place,
    pub(crate) chain: Chain,
    pub(crate) number: u64,
    /// Everything before this place is known to have been flushed.
    pub(crate) mark: Place,
    /// The highest boot seen.
    pub(crate) boot: Boot,
    /// The last flush group says that everything before it is durable, and nothing lies beyond it.
    pub(crate) stopped_cleanly: bool,
    /// Nothing can have been acknowledged in the last segment: it was opened, and that was all.
    pub(crate) last_unused: bool,
    /// The runs of the last segment.
    pub(crate) footer: Vec<FooterRow>,
    /// The table of the last flush group: what the next one has to repeat.
    pub(crate) last_table: Vec<Record>,
    /// The table and number of the last flush group before the last segment.
    pub(crate) before_last: (Vec<Record>, u64),
    /// The groups between the mark and the end, where the caller asked for them; the log then ends at the
    /// mark.
    pub(crate) tail: Vec<Beyond>,
    /// The last flush group is a mark that may be in the page cache only, and nothing else is.
    pub(crate) rewrite_last: bool,
    /// The membership at the base, where an anchor states it.
    pub(crate) anchored: BTreeMap<GroupId, Membership>,
    /// Copies of slot headers that are bad while the other one is good.
    pub(crate) bad_copies: Vec<(SlotId, u32)>,
    pub(crate) entries: u64,
}

/// What the caller wants to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    /// Whose log it has to be; none: anybody's.
    pub(crate) identity: Option<Identity>,
    /// Flush groups beyond the mark are to be handed out instead of applied: what was read may be in the
    /// page cache only.
    pub(crate) split_at_mark: bool,
    /// The last segment is being written to and is left alone.
    pub(crate) sealed_only: bool,
}

/// Judges what the disk holds.
pub(crate) fn judge(
    disk: &mut impl Disk,
    slots: &[SlotFile],
    question: &Question,
) -> Result<Judgement, OpenError> {
    let scans = scan_headers(disk, slots).map_err(|error| open_error(disk, error))?;
    for scan in &scans {
        check_identity(disk, scan, question)?;
    }
    let headers = scans.iter().filter_map(|scan| scan.header);
    let Some(known) = headers.max_by_key(|header| (header.epoch, header.segment)) else {
        return judge_empty(disk, &scans);
    };
    for scan in &scans {
        if scan
            .header
            .is_some_and(|header| header.log_uuid != known.log_uuid)
        {
            return Err(OpenError::NotALog {
                path: disk.slot_path(scan.slot),
                why: "the slots belong to different logs".to_owned(),
            });
        }
    }
    let mut candidates: Vec<&SlotScan> =
        scans.iter().filter(|scan| scan.header.is_some()).collect();
    let mut boot = known.epoch;
    loop {
        let mut court = Court::new(disk, &scans, question);
        let Some(newest) = newest_of(&candidates) else {
            // The very first opening did not get as far as its verdict.
            let mut fresh = Judgement::empty();
            fresh.boot = boot;
            fresh.known = Some(known);
            return Ok(fresh);
        };
        let judged = court.try_chain(&candidates, newest)?;
        boot = boot.max(judged.boot);
        match judged.without {
            Some(Without::Epoch(epoch)) => {
                candidates.retain(|scan| scan.header.is_some_and(|header| header.epoch < epoch))
            }
            Some(Without::Unlinked(segments)) => {
                candidates.retain(|scan| segments.iter().all(|segment| segment.slot != scan.slot))
            }
            None => {
                let mut judgement = judged.judgement;
                judgement.boot = boot;
                judgement.known = Some(known);
                return Ok(judgement);
            }
        }
    }
}

fn newest_of(candidates: &[&SlotScan]) -> Option<SlotHeader> {
    let headers = candidates.iter().filter_map(|scan| scan.header);
    headers.max_by_key(|header| (header.epoch, header.segment))
}

fn check_identity(disk: &impl Disk, scan: &SlotScan, question: &Question) -> Result<(), OpenError> {
    let (Some(header), Some(identity)) = (scan.header, question.identity) else {
        return Ok(());
    };
    let path = disk.slot_path(scan.slot);
    if header.cluster != identity.cluster {
        let (found, configured) = (header.cluster, identity.cluster);
        return Err(OpenError::WrongCluster {
            path,
            found,
            configured,
        });
    }
    if header.node != identity.node {
        let (found, configured) = (header.node, identity.node);
        return Err(OpenError::WrongNode {
            path,
            found,
            configured,
        });
    }
    Ok(())
}

/// No slot has a good header: a new directory, unless something was written all the same.
fn judge_empty(disk: &mut impl Disk, scans: &[SlotScan]) -> Result<Judgement, OpenError> {
    for scan in scans {
        // The first copy of the very first header may be torn; the second is written once it is durable.
        let mut written = scan.bad_copies.contains(&1);
        if scan.blocks > SLOT_HEADER_BLOCKS {
            let mut block = [Block::ZERO];
            disk.read(scan.slot, SLOT_HEADER_BLOCKS, &mut block)?;
            written |= block[0].0 != Block::ZERO.0;
        }
        if written {
            return Err(OpenError::NotALog {
                path: disk.slot_path(scan.slot),
                why: "it holds data and no readable header".to_owned(),
            });
        }
    }
    Ok(Judgement::empty())
}

pub(crate) fn open_error(disk: &impl Disk, error: ScanError) -> OpenError {
    match error {
        ScanError::Disk(error) => error.into(),
        ScanError::Future(FromTheFuture { slot, source }) => OpenError::FromTheFuture {
            path: disk.slot_path(slot),
            source,
        },
    }
}

impl Judgement {
    fn empty() -> Self {
        Self {
            verdict: Verdict::Clean,
            findings: Vec::new(),
            known: None,
            live: Vec::new(),
            groups: BTreeMap::new(),
            configurations: BTreeMap::new(),
            hard_states: BTreeMap::new(),
            end: Place::default(),
            chain: Chain::default(),
            number: 0,
            mark: Place::default(),
            boot: Boot(0),
            stopped_cleanly: false,
            last_unused: false,
            footer: Vec::new(),
            last_table: Vec::new(),
            before_last: (Vec::new(), 0),
            tail: Vec::new(),
            rewrite_last: false,
            anchored: BTreeMap::new(),
            bad_copies: Vec::new(),
            entries: 0,
        }
    }

    /// Fails if anything was found that must not be built upon.
    pub(crate) fn into_result(self) -> Result<Self, OpenError> {
        match self.verdict {
            Verdict::Clean | Verdict::Torn => Ok(self),
            Verdict::Rot => Err(OpenError::Rot {
                findings: self.findings,
            }),
            Verdict::Suspect => Err(OpenError::Suspect {
                findings: self.findings,
            }),
        }
    }
}

/// A judgement of one chain of segments, unless it turns out that a part of it does not count.
struct Judged {
    judgement: Judgement,
    without: Option<Without>,
    boot: Boot,
}

/// What does not count.
enum Without {
    /// A recovery opened segments and did not get as far as its verdict.
    Epoch(Boot),
    /// Segments whose predecessor never landed.
    Unlinked(Vec<Live>),
}

impl Judged {
    fn without(part: Without) -> Self {
        Self {
            judgement: Judgement::empty(),
            without: Some(part),
            boot: Boot(0),
        }
    }
}

/// Reads the segments of one chain and judges them.
struct Court<'a, D> {
    disk: &'a mut D,
    scans: &'a [SlotScan],
    question: &'a Question,
    judgement: Judgement,
    blocks: Vec<Block>,
}

impl<'a, D: Disk> Court<'a, D> {
    fn new(disk: &'a mut D, scans: &'a [SlotScan], question: &'a Question) -> Self {
        Self {
            disk,
            scans,
            question,
            judgement: Judgement::empty(),
            blocks: Vec::new(),
        }
    }

    fn try_chain(
        &mut self,
        candidates: &[&SlotScan],
        newest: SlotHeader,
    ) -> Result<Judged, OpenError> {
        let (live, missing) = link(candidates, newest);
        let mut segments = Vec::with_capacity(live.len());
        for (place, segment) in live.iter().enumerate() {
            let successor = live
                .get(place + 1)
                .map(|next| next.header.predecessor_end.block);
            if self.question.sealed_only && successor.is_none() {
                break;
            }
            let end = successor.unwrap_or(u32::MAX);
            let scan = scan_segment(
                self.disk,
                segment.slot,
                &segment.header,
                end,
                &mut self.blocks,
            );
            segments.push(scan.map_err(|error| open_error(self.disk, error))?);
        }
        self.judgement.mark = mark_of(&segments);
        if let Some((missing, epoch)) = missing {
            let first = Place {
                segment: missing,
                block: SLOT_HEADER_BLOCKS,
            };
            let uncounted = self.judgement.mark <= first || self.was_discounted(first, epoch);
            if uncounted && !self.question.sealed_only {
                // Its header never landed, nor was anything after it acknowledged.
                return Ok(Judged::without(Without::Unlinked(live)));
            }
            let meaning = format!("segment {missing} is missing");
            self.find(FindingVerdict::Rot, live[0].slot, 0, None, meaning);
        }
        self.look_for_orphans(&live, newest)?;
        self.judgement.live = live;
        let walk = self.walk(&segments);
        let boot = segments
            .iter()
            .flat_map(|segment| &segment.pieces)
            .filter_map(|piece| match piece {
                Piece::Group(group) => Some(group.header.boot),
                Piece::Bad(_) => None,
            })
            .max()
            .unwrap_or_default();
        let open_end = self.judgement.findings.is_empty() && !self.question.sealed_only;
        let unfinished = if open_end {
            unfinished(&segments, &walk)
        } else {
            None
        };
        if unfinished.is_none() {
            self.decide(segments, walk);
        }
        Ok(Judged {
            judgement: std::mem::replace(&mut self.judgement, Judgement::empty()),
            without: unfinished.map(Without::Epoch),
            boot,
        })
    }

    /// Whether a later opening went on before this place, and so found nothing durable there: what says
    /// otherwise was written by an opening that did not get as far as its verdict.
    fn was_discounted(&self, place: Place, epoch: Boot) -> bool {
        let mut headers = self.scans.iter().filter_map(|scan| scan.header);
        headers.any(|header| {
            header.by_recovery && header.epoch > epoch && header.predecessor_end <= place
        })
    }

    /// A segment whose header is gone shows by its blocks. If something in it was durable, it is missing.
    fn look_for_orphans(&mut self, live: &[Live], newest: SlotHeader) -> Result<(), OpenError> {
        let used: BTreeSet<SlotId> = live.iter().map(|live| live.slot).collect();
        let scans = self.scans;
        for scan in scans.iter().filter(|scan| !used.contains(&scan.slot)) {
            if scan.bad_copies.len() == SLOT_HEADER_BLOCKS as usize {
                let meaning = "both copies of a slot's header are bad".to_owned();
                self.find(FindingVerdict::Suspect, scan.slot, 0, None, meaning);
            }
            if self.question.sealed_only {
                continue;
            }
            let mut blocks = std::mem::take(&mut self.blocks);
            read_blocks(self.disk, scan.slot, scan.blocks, &mut blocks)?;
            let newer = blocks
                .iter()
                .skip(SLOT_HEADER_BLOCKS as usize)
                .filter_map(|block| {
                    let stamp = Stamper::whole_stamp(newest.log_uuid, block)?;
                    let (epoch, segment) = (u64::from(stamp.epoch), u64::from(stamp.segment));
                    ((epoch, segment) > (newest.epoch.0, newest.segment))
                        .then_some((epoch, segment))
                });
            let header = scan.header.map(|header| (header.epoch.0, header.segment));
            if let Some((epoch, segment)) = newer.max().filter(|newer| header < Some(*newer)) {
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
                if stated && !self.was_discounted(first, Boot(epoch)) {
                    let meaning = format!("the header of segment {segment} is gone");
                    self.find(FindingVerdict::Rot, scan.slot, 0, None, meaning);
                }
            }
            self.blocks = blocks;
        }
        Ok(())
    }

    /// Follows the flush groups to the end of the log.
    fn walk(&mut self, segments: &[SegmentScan]) -> Walk {
        let mut walk = Walk::begin(segments);
        for (number, segment) in segments.iter().enumerate() {
            walk.resume |= number == 0;
            for piece in &segment.pieces {
                let bad = match piece {
                    Piece::Group(group) => match walk.take(group, number) {
                        Ok(()) => continue,
                        Err(meaning) => Bad {
                            at: group.place(),
                            block: group.place().block,
                            not_landed: false,
                            meaning: meaning.to_owned(),
                            mark: None,
                            whole_blocks: group.header.blocks,
                        },
                    },
                    Piece::Bad(bad) => bad.clone(),
                };
                if bad.at < self.judgement.mark {
                    self.find_bad(FindingVerdict::Rot, segments, segment, &bad);
                    walk.resume(piece);
                    continue;
                }
                if !bad.not_landed {
                    self.find_bad(FindingVerdict::Suspect, segments, segment, &bad);
                }
                walk.dropped |= bad.whole_blocks > 0 || number + 1 < segments.len();
                walk.dropped |= segment
                    .pieces
                    .iter()
                    .any(|piece| matches!(piece, Piece::Group(group) if group.place() > bad.at));
                return walk;
            }
        }
        walk
    }

    fn find(
        &mut self,
        verdict: FindingVerdict,
        slot: SlotId,
        block: u32,
        hit: Option<(GroupId, Index, Term)>,
        meaning: String,
    ) {
        if self.judgement.findings.len() >= FINDINGS_MAX {
            return;
        }
        self.judgement.findings.push(Finding {
            verdict,
            file: self.disk.slot_path(slot),
            offset_bytes: u64::from(block) * BLOCK_BYTES as u64,
            group: hit.map(|hit| hit.0),
            index: hit.map(|hit| hit.1),
            term: hit.map(|hit| hit.2),
            meaning,
            advice: match verdict {
                FindingVerdict::Rot => ADVICE_ROT,
                FindingVerdict::Suspect => ADVICE_SUSPECT,
                FindingVerdict::Healed => ADVICE_HEALED,
            },
        });
    }

    /// Says what a bad flush group held, as far as the next one repeats it.
    fn find_bad(
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
        let hit = after
            .into_iter()
            .next()
            .and_then(|next| GroupScan::first_entry(&next.echo));
        self.find(verdict, segment.slot, bad.block, hit, bad.meaning.clone());
    }

    /// Applies everything up to the end, and settles terms and votes.
    fn decide(&mut self, segments: Vec<SegmentScan>, mut walk: Walk) {
        let mut logs = Logs::default();
        let mark = self.judgement.mark;
        // A mark that stands alone beyond what it states is written again, and that is all.
        self.judgement.rewrite_last = self.question.split_at_mark && walk.quiet && !walk.dropped;
        let split = self.question.split_at_mark && !self.judgement.rewrite_last;
        let mut applied = Walk::begin(&segments);
        let mut table: &[Record] = &[];
        for (number, segment) in segments.iter().enumerate() {
            for piece in &segment.pieces {
                let Piece::Group(group) = piece else {
                    continue;
                };
                logs.note(group);
                if group.place() >= walk.end {
                    continue;
                }
                if split && group.place() >= mark {
                    self.judgement.tail.push(Beyond {
                        slot: segment.slot,
                        group: GroupScan::clone(group),
                    });
                    continue;
                }
                if let Err(misfit) = logs.apply(group) {
                    let block = group.place().block;
                    let hit = GroupScan::first_entry(&group.table);
                    self.find(
                        FindingVerdict::Rot,
                        segment.slot,
                        block,
                        hit,
                        misfit.to_string(),
                    );
                }
                if number + 1 > applied.segments {
                    self.judgement.footer.clear();
                    self.judgement.before_last = (table.to_vec(), applied.number);
                }
                self.judgement.footer.extend(footer_rows(group));
                table = &group.table;
                applied.resume = true;
                // Told already if it does not fit.
                let _ = applied.take(group, number);
            }
        }
        self.judgement.last_table = table.to_vec();
        if split {
            applied.dropped = walk.dropped;
            applied.quiet = false;
            walk = applied;
        }
        self.judgement.live.truncate(walk.segments);
        self.note_bad_copies();
        let judgement = &mut self.judgement;
        judgement.hard_states = logs.hard_states();
        judgement.entries = logs
            .groups
            .values()
            .map(|log| log.rows().len() as u64)
            .sum();
        judgement.groups = logs.groups;
        judgement.configurations = logs.configurations;
        judgement.anchored = logs.anchored;
        judgement.end = walk.end;
        judgement.chain = walk.chain;
        judgement.number = walk.number;
        judgement.stopped_cleanly = walk.quiet && !walk.dropped;
        judgement.last_unused = walk.unused;
        let worst = judgement.findings.iter().map(|finding| finding.verdict);
        judgement.verdict = match worst
            .filter(|verdict| *verdict != FindingVerdict::Healed)
            .min()
        {
            Some(FindingVerdict::Rot | FindingVerdict::Healed) => Verdict::Rot,
            Some(FindingVerdict::Suspect) => Verdict::Suspect,
            None if walk.dropped => Verdict::Torn,
            None => Verdict::Clean,
        };
    }

    /// A bad copy of a header is rot only if the header was durable; otherwise its write was torn.
    fn note_bad_copies(&mut self) {
        let live = self.judgement.live.clone();
        for Live { slot, header } in live {
            let scan = self.scans.iter().find(|scan| scan.slot == slot);
            let copies = scan.map_or(Vec::new(), |scan| scan.bad_copies.clone());
            for copy in copies {
                let first = Place {
                    segment: header.segment,
                    block: SLOT_HEADER_BLOCKS,
                };
                if first < self.judgement.mark {
                    let meaning = "one copy of the slot's header is bad".to_owned();
                    self.find(FindingVerdict::Healed, slot, copy, None, meaning);
                }
                self.judgement.bad_copies.push((slot, copy));
            }
        }
    }
}

/// The segments from the oldest to the newest: each header names its predecessor. And the first one that is
/// missing, if one is.
fn link(candidates: &[&SlotScan], newest: SlotHeader) -> (Vec<Live>, Option<(u64, Boot)>) {
    let mut live = Vec::new();
    let mut missing = None;
    let mut next = (newest.segment, newest.epoch);
    loop {
        let is_next = |header: &SlotHeader| (header.segment, header.epoch) == next;
        let found = candidates
            .iter()
            .find(|scan| scan.header.as_ref().is_some_and(is_next));
        let Some((scan, header)) = found.and_then(|scan| Some((scan, scan.header?))) else {
            missing = Some(next);
            break;
        };
        live.push(Live {
            slot: scan.slot,
            header,
        });
        let before = header.predecessor_end.segment;
        if before == 0 || before < newest.oldest {
            break;
        }
        next = (before, header.predecessor_epoch);
    }
    live.reverse();
    (live, missing)
}

fn mark_in(piece: &Piece) -> Option<Place> {
    match piece {
        Piece::Group(group) => Some(group.header.mark),
        Piece::Bad(bad) => bad.mark,
    }
}

/// Everything before this place was durable when somebody said so.
fn mark_of(segments: &[SegmentScan]) -> Place {
    let stated = segments
        .iter()
        .flat_map(|segment| &segment.pieces)
        .filter_map(mark_in);
    // A recovery flushes before it reads, and opens its segment after that.
    let recovered = segments
        .iter()
        .filter(|segment| segment.header.by_recovery)
        .map(|segment| segment.header.predecessor_end);
    stated.chain(recovered).max().unwrap_or_default()
}

/// The epoch whose opening did not get as far as its verdict, if there is one: its segments do not count.
fn unfinished(segments: &[SegmentScan], walk: &Walk) -> Option<Boot> {
    let opening = segments
        .iter()
        .rposition(|segment| segment.header.by_recovery)?;
    let epoch = segments[opening].header.epoch;
    let judged = segments[opening..].iter().flat_map(|segment| &segment.pieces).any(|piece| {
        let Piece::Group(group) = piece else {
            return false;
        };
        let verdict = |record: &Record| {
            matches!(record, Record::Verdict(verdict) if verdict.boot == epoch)
        };
        group.place() < walk.end && group.table.iter().any(verdict)
    });
    (!judged).then_some(epoch)
}

fn footer_rows(group: &GroupScan) -> impl Iterator<Item = FooterRow> + '_ {
    let block = group.place().block;
    group.table.iter().filter_map(move |record| match record {
        Record::Entries(run) | Record::Rewrite(run) => Some(FooterRow {
            block,
            group: run.group,
            rewrite: matches!(record, Record::Rewrite(_)),
            first: run.prev.index.next(),
            last: run.last.index,
            last_term: run.last.term,
        }),
        _ => None,
    })
}

/// How far the flush groups have been followed.
struct Walk {
    end: Place,
    chain: Chain,
    number: u64,
    /// How many segments have a flush group before the end.
    segments: usize,
    /// The last group says that everything before it is durable.
    quiet: bool,
    /// The last segment was opened by a recovery and holds nothing else.
    unused: bool,
    /// Something of this log lies beyond the end.
    dropped: bool,
    /// After rot: the next group's chain is taken as it is.
    resume: bool,
}

impl Walk {
    fn begin(segments: &[SegmentScan]) -> Self {
        let first = segments.first();
        Self {
            end: first.map_or(Place::default(), |segment| segment.header.predecessor_end),
            chain: first.map_or(Chain::default(), |segment| segment.header.predecessor_chain),
            number: 0,
            segments: 0,
            quiet: false,
            unused: false,
            dropped: false,
            resume: false,
        }
    }

    fn take(&mut self, group: &GroupScan, segment: usize) -> Result<(), &'static str> {
        let header = &group.header;
        if !self.resume {
            if header.previous != self.chain {
                return Err("a flush group does not follow the one before");
            }
            if header.number != self.number + 1 {
                return Err("a flush group is missing before this one");
            }
        }
        self.resume = false;
        let opening = matches!(header.kind, GroupKind::First | GroupKind::Mark)
            || group
                .table
                .iter()
                .all(|record| matches!(record, Record::Verdict(_)));
        self.unused = opening && (header.kind == GroupKind::First || self.unused);
        self.chain = group.chain;
        self.number = header.number;
        self.quiet = header.kind == GroupKind::Mark && header.mark == header.place;
        self.end = header.end();
        self.segments = segment + 1;
        Ok(())
    }

    fn resume(&mut self, piece: &Piece) {
        self.resume = true;
        if let Piece::Group(group) = piece {
            self.chain = group.chain;
            self.number = group.header.number;
            self.end = group.header.end();
            self.resume = false;
        }
    }
}

/// Why a flush group cannot be applied to the logs before it.
#[derive(Debug, thiserror::Error)]
enum Misfit {
    #[error("entries of group {0} follow an entry that is not in the log ({1:?})")]
    Entries(GroupId, OffPath),
    #[error("group {0} is cut at an entry that is not in the log ({1:?})")]
    Truncate(GroupId, OffPath),
    #[error("group {0} begins a second time with another genesis")]
    Genesis(GroupId),
    #[error("group {0} is not known")]
    Unknown(GroupId),
    #[error("the checkpoint says that group {0} ends at {1}, the log ends at {2}")]
    Checkpoint(
        GroupId,
        logdrive_raft::LogPosition,
        logdrive_raft::LogPosition,
    ),
    #[error("a record stands where it does not belong")]
    Misplaced,
}

/// The logs of all groups as flush groups are applied.
#[derive(Default)]
struct Logs {
    groups: BTreeMap<GroupId, GroupLog>,
    configurations: BTreeMap<GroupId, Vec<(Index, Membership)>>,
    /// The newest term and vote that anything says, beyond the end and in echoes too.
    stated: BTreeMap<GroupId, HardState>,
    /// The highest term of any entry, dead ones too.
    terms: BTreeMap<GroupId, Term>,
    /// The membership that the newest anchor states.
    anchored: BTreeMap<GroupId, Membership>,
}

impl Logs {
    /// Takes note of what holds wherever it stands: a vote that may have been cast was cast.
    fn note(&mut self, group: &GroupScan) {
        for record in group.table.iter().chain(&group.echo) {
            match record {
                Record::HardState { group, hard_state } => {
                    let stated = self.stated.entry(*group).or_default();
                    *stated = crate::path::newest(*stated, *hard_state);
                }
                Record::Entries(run) | Record::Rewrite(run) => {
                    let term = self.terms.entry(run.group).or_default();
                    *term = (*term).max(run.last.term);
                }
                Record::Checkpoint(rows) => {
                    for row in rows {
                        let stated = self.stated.entry(row.genesis.group).or_default();
                        *stated = crate::path::newest(*stated, row.hard_state);
                    }
                }
                _ => {}
            }
        }
    }

    fn log(&mut self, group: GroupId) -> Result<&mut GroupLog, Misfit> {
        self.groups.get_mut(&group).ok_or(Misfit::Unknown(group))
    }

    fn apply(&mut self, group: &GroupScan) -> Result<(), Misfit> {
        let mut frames = group.frames.iter();
        for record in &group.table {
            match record {
                Record::Genesis(genesis) => {
                    let id = genesis.group;
                    let log = self.groups.entry(id);
                    let log = log.or_insert_with(|| GroupLog::new(genesis.clone()));
                    if log.genesis != *genesis {
                        return Err(Misfit::Genesis(id));
                    }
                }
                Record::Entries(run) => {
                    let cut = self.log(run.group)?.truncate(&run.prev);
                    cut.map_err(|off| Misfit::Entries(run.group, off))?;
                    self.forget_configurations(run.group, run.prev.index);
                    for _ in 0..run.count() {
                        let frame = frames.next().expect("counted when they were read");
                        let mut row = Row::new(&frame.position, frame.bytes);
                        row.put(group.place(), frame.offset);
                        self.log(run.group)?.push(row);
                        if let Some(membership) = &frame.membership {
                            let found = (frame.position.index, membership.clone());
                            self.configurations
                                .entry(run.group)
                                .or_default()
                                .push(found);
                        }
                    }
                }
                Record::Rewrite(run) => {
                    for _ in 0..run.count() {
                        let frame = frames.next().expect("counted when they were read");
                        let row = self.log(run.group)?.row_mut(frame.position.index);
                        let row = row.filter(|row| row.chain == frame.position.chain);
                        if let Some(row) = row {
                            row.put(group.place(), frame.offset);
                        }
                    }
                }
                Record::Truncate { group, to } => {
                    let cut = self.log(*group)?.truncate(to);
                    cut.map_err(|off| Misfit::Truncate(*group, off))?;
                    self.forget_configurations(*group, to.index);
                }
                Record::Base { group, base, .. } => {
                    self.log(*group)?.set_base(*base);
                    let tip = self.log(*group)?.tip();
                    self.forget_configurations(*group, tip.index);
                }
                Record::Anchor(anchor) => {
                    self.log(anchor.group)?.anchor = Some(anchor.at);
                    self.anchored
                        .insert(anchor.group, anchor.membership.clone());
                }
                Record::HardState { group, hard_state } => {
                    self.log(*group)?.raise_hard_state(*hard_state);
                }
                Record::Checkpoint(rows) => {
                    for row in rows {
                        let id = row.genesis.group;
                        let log = self.groups.entry(id).or_insert_with(|| {
                            let mut log = GroupLog::new(row.genesis.clone());
                            log.set_base(row.base);
                            log
                        });
                        log.raise_hard_state(row.hard_state);
                        log.anchor = row.anchor.or(log.anchor);
                        if log.tip() != row.tip {
                            return Err(Misfit::Checkpoint(id, row.tip, log.tip()));
                        }
                    }
                }
                Record::GroupRemoved(group) => {
                    self.groups.remove(group);
                    self.configurations.remove(group);
                }
                Record::Verdict(_) | Record::Configuration { .. } | Record::Footer(_) => {}
                Record::Mention { .. } => return Err(Misfit::Misplaced),
            }
        }
        Ok(())
    }

    fn forget_configurations(&mut self, group: GroupId, beyond: Index) {
        if let Some(configurations) = self.configurations.get_mut(&group) {
            configurations.retain(|(index, _)| *index <= beyond);
        }
    }

    /// The current term is at least that of every entry. If no record says so, who got the vote of that
    /// term is not known, and it counts as given: to a replica that cannot be.
    fn hard_states(&self) -> BTreeMap<GroupId, HardState> {
        let state = |group: &GroupId| {
            let stated = self.stated.get(group).copied().unwrap_or_default();
            let term = self.terms.get(group).copied().unwrap_or_default();
            if term > stated.term {
                HardState {
                    term,
                    vote: Some(VOTE_SPENT),
                }
            } else {
                stated
            }
        };
        let unknown = self.stated.keys().chain(self.terms.keys());
        let groups = self.groups.keys().chain(unknown);
        groups.map(|group| (*group, state(group))).collect()
    }
}

/// The vote of a term whose vote is not known: given to a replica that cannot be, so that it is not given
/// again.
pub const VOTE_SPENT: Replica = Replica {
    id: NodeId(0),
    incarnation: logdrive_raft::Incarnation(0),
};
