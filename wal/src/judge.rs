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

use logdrive_raft::io::{Guard, HardState};
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{Base, Boot, Chain, GroupId};

use crate::configurations::Configurations;
use crate::debris::Debris;
use crate::disk::{BLOCK_BYTES, Block, Disk, SlotFile, SlotId};
use crate::error::{Finding, FindingVerdict, OpenError};
use crate::format::{FooterRow, Place, Record, SLOT_HEADER_BLOCKS, SlotHeader};
use crate::options::{Identity, SLOT_BYTES_MAX};
use crate::path::GroupLog;
use crate::scan::{FromTheFuture, GroupScan, ScanError, SlotScan, read_blocks, scan_headers};

mod chain;
mod court;
mod decide;
mod logs;
mod lost;
mod orphans;
mod suspicion;
mod walk;

pub use logs::VOTE_SPENT;
pub(crate) use logs::base_of;

use chain::newest_of;
use court::{Court, Flushed, Without};
use suspicion::Suspicion;

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
    /// How long the file is: less than the header says where it was cut short.
    pub(crate) blocks: u32,
    pub(crate) header: SlotHeader,
}

impl Live {
    /// Whether the file is shorter than its header says. A slot takes part only once it was flushed at its full
    /// length, so no crash leaves it like that: something cut it, and what was cut off may have been durable.
    fn is_cut(&self) -> bool {
        self.header.slot_blocks > self.blocks
    }
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
    pub(crate) configurations: Configurations,
    /// Groups that are gone.
    pub(crate) removed: BTreeSet<GroupId>,
    /// Term and vote as they must be from now on.
    pub(crate) hard_states: BTreeMap<GroupId, HardState>,
    /// What groups may have acknowledged and do not hold, those among them that the tail brings.
    pub(crate) guards: BTreeMap<GroupId, Guard>,
    /// This judgement fears that something is lost: until it is durable nothing of what it judged by may go.
    pub(crate) is_guarded: bool,
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
    /// A block that was torn inside lies beyond the end in the last segment.
    pub(crate) garbage_beyond: bool,
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
    /// Slots that may hold what the tail was written again from, for it may be in the page cache only, or what a guard
    /// follows from.
    pub(crate) originals: Vec<SlotId>,
    /// The last flush group is a mark that may be in the page cache only, and nothing else is.
    pub(crate) rewrite_last: bool,
    /// Copies of slot headers that are bad or missing while the other one is good.
    pub(crate) bad_copies: Vec<(SlotId, u32)>,
    /// Slots of segments that count, and in which something that was durable is bad that nobody needs.
    pub(crate) mended: BTreeSet<SlotId>,
    /// Where logs are cut that have lost entries which an anchor covers.
    pub(crate) cuts: Vec<(GroupId, Base)>,
    /// Segments that begin with something bad: a log cannot begin with one of them.
    pub(crate) headless: BTreeSet<u64>,
    /// Slots, in use or not, of whose header the first copy counts and the second is bad, older or missing.
    pub(crate) first_counts: BTreeSet<SlotId>,
    /// Slots whose header can be read, and whose segment that is, or that have none.
    pub(crate) legible: BTreeMap<SlotId, Option<u64>>,
    /// Slots, in use or not, and which copies of a header in them hold something, bad ones first.
    pub(crate) written_copies: BTreeMap<SlotId, Vec<u32>>,
    pub(crate) entries: u64,
    /// What has to be cleared in slots that are not in use before they are taken, as far as they were read whole.
    pub(crate) debris: BTreeMap<SlotId, Debris>,
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
    /// Slots that no segment needs are not read whole unless something in them asks for it.
    pub(crate) glances: bool,
    pub(crate) mutant: Option<Mutant>,
}

impl Question {
    /// All that is there, of whoever's log, for somebody who only looks at it.
    pub(crate) fn of_a_reader(while_running: bool) -> Self {
        Self {
            identity: None,
            split_at_mark: false,
            sealed_only: while_running,
            glances: false,
            mutant: None,
        }
    }
}

/// Judges what the disk holds.
pub(crate) fn judge(
    disk: &mut impl Disk,
    slots: &[SlotFile],
    question: &Question,
) -> Result<Judgement, OpenError> {
    check_lengths(disk, slots)?;
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
    // What stands in a header that does not count may count again one day, so nobody uses its boot either.
    let read = scans.iter().flat_map(|scan| &scan.read);
    let ours = read.filter(|header| header.log_uuid == known.log_uuid);
    let mut boot = ours.map(|header| header.epoch).max().unwrap_or_default();
    // Where neither counts a bad one is written first all the same: a cut that tears it again leaves one bad.
    let first_counts = scans
        .iter()
        .filter(|scan| scan.first_counts || (scan.header.is_none() && scan.bad_copies == [1]));
    let first_counts: BTreeSet<SlotId> = first_counts.map(|scan| scan.slot).collect();
    let written_copies = scans.iter().map(|scan| (scan.slot, scan.written_copies()));
    let written_copies: BTreeMap<SlotId, Vec<u32>> = written_copies.collect();
    let mut suspicion = Suspicion::default();
    let mut flushed = Flushed::default();
    loop {
        let mut court = Court::new(disk, &scans, question, suspicion.clone(), flushed);
        let Some(newest) = newest_of(&candidates) else {
            // The very first opening did not get as far as its verdict. Or perhaps it did, and a group was begun since.
            let mut fresh = Judgement::empty();
            if suspicion.is_feared {
                fresh.verdict = Verdict::Suspect;
                fresh.findings = suspicion.into_refusals();
            }
            fresh.boot = boot;
            fresh.known = Some(known);
            fresh.first_counts = first_counts;
            fresh.written_copies = written_copies;
            return Ok(fresh);
        };
        let judged = court.try_chain(&candidates, newest)?;
        boot = boot.max(judged.boot);
        if judged.without.is_some() {
            suspicion = judged.suspicion;
            flushed = flushed.before(judged.flushed);
        }
        match judged.without {
            Some(Without::Epoch(epoch)) => {
                candidates.retain(|scan| scan.header.is_some_and(|header| header.epoch < epoch))
            }
            Some(Without::Segments(segments)) => {
                candidates.retain(|scan| segments.iter().all(|segment| segment.slot != scan.slot))
            }
            None => {
                let mut judgement = judged.judgement;
                judgement.boot = boot;
                judgement.known = Some(known);
                judgement.first_counts = first_counts;
                judgement.written_copies = written_copies;
                let legible = scans.iter().filter(|scan| scan.bad_copies.is_empty());
                let segment = |scan: &SlotScan| scan.header.map(|header| header.segment);
                judgement.legible = legible.map(|scan| (scan.slot, segment(scan))).collect();
                let needed = |scan: &&SlotScan| {
                    let older = scan
                        .header
                        .is_some_and(|header| header.epoch <= newest.epoch);
                    let judged_by = judgement.is_guarded || !judgement.tail.is_empty();
                    older && judged_by || suspicion.evidence.contains(&scan.slot)
                };
                let originals = scans.iter().filter(needed);
                judgement.originals = originals.map(|scan| scan.slot).collect();
                return Ok(judgement);
            }
        }
    }
}

/// A file may be long and hold nothing, and slots are read whole: no more memory is taken than a slot needs.
pub(crate) fn check_lengths(disk: &impl Disk, slots: &[SlotFile]) -> Result<(), OpenError> {
    let longer = |file: &&SlotFile| u64::from(file.blocks) * BLOCK_BYTES as u64 > SLOT_BYTES_MAX;
    let Some(file) = slots.iter().find(longer) else {
        return Ok(());
    };
    Err(OpenError::NotALog {
        path: disk.slot_path(file.slot),
        why: "it is longer than a slot can be".to_owned(),
    })
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
    let mut blocks = Vec::new();
    let mut judgement = Judgement::empty();
    for scan in scans {
        // One copy of the very first header may be torn: the first, or the second where the first was read from a
        // page cache and never reached the medium.
        let mut written = scan.is_headless();
        // Nothing else is written before both are durable, and no slot was in use before.
        read_blocks(disk, scan.slot, scan.blocks, &mut blocks)?;
        let mut beyond = blocks.iter().skip(SLOT_HEADER_BLOCKS as usize);
        written |= beyond.any(|block| block.0 != Block::ZERO.0);
        if written {
            return Err(OpenError::NotALog {
                path: disk.slot_path(scan.slot),
                why: "it holds data and no readable header".to_owned(),
            });
        }
        if scan.bad_copies == [1] {
            judgement.first_counts.insert(scan.slot);
        }
    }
    Ok(judgement)
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
            configurations: Configurations::default(),
            removed: BTreeSet::new(),
            hard_states: BTreeMap::new(),
            guards: BTreeMap::new(),
            is_guarded: false,
            end: Place::default(),
            chain: Chain::default(),
            number: 0,
            mark: Place::default(),
            boot: Boot(0),
            stopped_cleanly: false,
            garbage_beyond: false,
            last_unused: false,
            footer: Vec::new(),
            last_table: Vec::new(),
            before_last: (Vec::new(), 0),
            tail: Vec::new(),
            originals: Vec::new(),
            rewrite_last: false,
            bad_copies: Vec::new(),
            mended: BTreeSet::new(),
            cuts: Vec::new(),
            headless: BTreeSet::new(),
            first_counts: BTreeSet::new(),
            legible: BTreeMap::new(),
            written_copies: BTreeMap::new(),
            entries: 0,
            debris: BTreeMap::new(),
        }
    }

    /// Whether nothing in a slot counts, nor ever will: its header is of a segment below this one, the oldest that is kept,
    /// or there is none, and nothing in it was remarkable.
    pub(crate) fn is_done_with(&self, slot: SlotId, oldest: u64) -> bool {
        let segment = self.legible.get(&slot);
        let below = segment.is_some_and(|segment| segment.is_none_or(|segment| segment < oldest));
        below && !self.debris.contains_key(&slot)
    }

    /// Whether a copy of a header in a slot holds anything.
    pub(crate) fn has_header(&self, slot: SlotId) -> bool {
        let copies = self.written_copies.get(&slot);
        copies.is_some_and(|copies| !copies.is_empty())
    }

    /// Whether something was found that must not be built upon.
    pub(crate) fn is_refused(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.verdict.refuses())
    }

    /// Fails if anything was found that must not be built upon.
    pub(crate) fn into_result(self) -> Result<Self, OpenError> {
        if !self.is_refused() {
            return Ok(self);
        }
        let is_rot = |finding: &Finding| finding.verdict == FindingVerdict::Rot;
        let findings = self.findings;
        if findings.iter().any(is_rot) {
            Err(OpenError::Rot { findings })
        } else {
            Err(OpenError::Suspect { findings })
        }
    }
}
