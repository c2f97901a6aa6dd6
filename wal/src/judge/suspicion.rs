//! What may have been acknowledged and is lost: of a bad flush group above the mark, and of all that follow it.
//!
//! A flush group is *told* if its table can be read somewhere: in itself, although its frames are bad, or in the echo of
//! the next one. Then it is known which entries it held. Of one that is told nowhere nothing is known but that its
//! entries were of no later term than the log states: a term is not acknowledged in before its echo is durable. Two that
//! follow each other, neither of which has shown itself, may be a vote and its echo.

use std::collections::{BTreeMap, BTreeSet};

use logdrive_raft::io::{Guard, HardState};
use logdrive_raft::{GroupId, Term};

use crate::disk::SlotId;
use crate::error::{ADVICE_SUSPECT, Finding, FindingVerdict};
use crate::format::Record;
use crate::scan::{Bad, Piece, SegmentScan};

use super::Judgement;
use super::logs::Logs;

/// What may have been acknowledged and is lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    /// There is something that cannot be judged.
    pub(super) is_feared: bool,
    /// What was found so in segments that do not count, and the slots that it follows from.
    pub(super) findings: Vec<Finding>,
    pub(super) evidence: BTreeSet<SlotId>,
    /// Of each group as far as it is told.
    guards: BTreeMap<GroupId, Guard>,
    /// And of every group any entry of its term.
    of_all: bool,
    /// Groups that may have acknowledged entries or cast votes, and where: the slot and block of what is bad.
    spoke: BTreeMap<GroupId, (SlotId, u32)>,
    /// Terms and votes of what does not count otherwise.
    stated: Vec<Record>,
}

/// A vote may have been cast whose record and echo are both unreadable.
pub(super) struct VoteHidden;

impl Suspicion {
    /// Adds what lies from the first bad flush group on; `last` is the number of the one before.
    pub(super) fn add(
        &mut self,
        segments: &[SegmentScan],
        bad: &Bad,
        last: u64,
    ) -> Result<(), VoteHidden> {
        self.is_feared = true;
        let mut found = Found::default();
        let pieces = segments.iter().flat_map(|segment| &segment.pieces);
        let from_here = |piece: &&Piece| match piece {
            Piece::Group(group) => bad.at <= group.place(),
            Piece::Bad(later) => bad.at <= later.at,
        };
        for piece in pieces.filter(from_here) {
            match piece {
                Piece::Group(group) => found.tell(group.header.number, &group.table, &group.echo),
                // Nothing from here on was durable.
                Piece::Bad(later) if later.not_landed => break,
                Piece::Bad(later) => {
                    for told in later.told.iter().filter(|told| !told.beyond) {
                        match told.has_landed {
                            true => found.tell(told.number, &told.table, &told.echo),
                            false => found.repeat(told.number, &told.echo),
                        }
                    }
                    let begins = u32::from(!later.tells_of(later.at.block));
                    found.unseen += u64::from(begins + later.starts);
                    if later.ends {
                        break;
                    }
                }
            }
        }
        self.of_all |= found.is_one_untold(last)?;
        for record in found.tables.values().flat_map(|table| *table) {
            if let Record::Entries(_) | Record::HardState { .. } | Record::Base { .. } = record {
                let bad_at = (segments[0].slot, bad.block);
                self.spoke
                    .extend(record.group().map(|group| (group, bad_at)));
            }
            let ends = match record {
                Record::Entries(run) => [Some((run.group, run.last)), None],
                Record::Base {
                    group, base, tip, ..
                } => [Some((*group, *base)), Some((*group, *tip))],
                _ => [None, None],
            };
            for (group, end) in ends.into_iter().flatten() {
                let guard = Guard {
                    term: end.term,
                    index: Some(end.index),
                };
                self.raise(group, guard);
            }
        }
        Ok(())
    }

    fn raise(&mut self, group: GroupId, guard: Guard) {
        let raised = self.guards.entry(group).or_insert(guard);
        *raised = raised.or(guard);
    }

    /// These segments turn out not to count. Guards in them do, and if something may have been acknowledged in them, so do
    /// terms and votes.
    pub(super) fn keep_what_is_stated(&mut self, segments: &[SegmentScan]) {
        for piece in segments.iter().flat_map(|segment| &segment.pieces) {
            for records in piece.records() {
                self.keep_guards(records);
                if self.is_feared {
                    self.stated.extend_from_slice(records);
                }
            }
        }
    }

    /// What was found in them is told of all the same, and what it follows from stays.
    pub(super) fn keep_findings(&mut self, judgement: &Judgement) {
        let findings = judgement.findings.iter();
        let guarded = findings.filter(|finding| finding.verdict == FindingVerdict::Guarded);
        let before = self.findings.len();
        self.findings.extend(guarded.cloned());
        if before < self.findings.len() {
            let slots = judgement.live.iter().map(|live| live.slot);
            self.evidence.extend(slots);
        }
    }

    /// What was found, where there is no log that could be guarded.
    pub(super) fn into_refusals(self) -> Vec<Finding> {
        let refused = |finding| Finding {
            verdict: FindingVerdict::Suspect,
            advice: ADVICE_SUSPECT,
            ..finding
        };
        self.findings.into_iter().map(refused).collect()
    }

    fn keep_guards(&mut self, table: &[Record]) {
        for record in table {
            match record {
                Record::Verdict(verdict) => {
                    for (group, guard) in &verdict.guards {
                        self.raise(*group, *guard);
                    }
                }
                Record::Checkpoint(rows) => {
                    let guards = rows.iter();
                    let guards = guards.filter_map(|row| Some((row.genesis.group, row.guard?)));
                    guards.for_each(|(group, guard)| self.raise(group, guard));
                }
                _ => {}
            }
        }
    }

    /// Terms and votes that have to be heeded.
    pub(super) fn note(&self, logs: &mut Logs) {
        logs.note(&self.stated);
    }

    /// A group that has gone with what is bad, and that may have promised something.
    pub(super) fn lost_group(&self, logs: &Logs) -> Option<(GroupId, (SlotId, u32))> {
        let known =
            |group: &GroupId| logs.groups.contains_key(group) || logs.removed.contains(group);
        let mut spoke = self.spoke.iter().map(|(group, bad_at)| (*group, *bad_at));
        spoke.find(|(group, _)| !known(group))
    }

    /// Guards the logs. Their terms are those of all that was noted.
    pub(super) fn apply(&self, logs: &mut Logs, noted: &BTreeMap<GroupId, HardState>) {
        for (group, log) in &mut logs.groups {
            let term = noted.get(group).map_or(Term(0), |noted| noted.term);
            // Nothing is acknowledged in no term.
            if self.of_all && term > Term(0) {
                log.raise_guard(Guard { term, index: None });
            }
            if let Some(guard) = self.guards.get(group) {
                log.raise_guard(*guard);
            }
        }
    }
}

/// What lies beyond the end of the log.
#[derive(Default)]
struct Found<'a> {
    /// By the numbers of the flush groups.
    tables: BTreeMap<u64, &'a [Record]>,
    /// Those that have shown themselves, and not in an echo only.
    seen: BTreeSet<u64>,
    /// Places where groups may begin that have not.
    unseen: u64,
}

impl<'a> Found<'a> {
    fn tell(&mut self, number: u64, table: &'a [Record], echo: &'a [Record]) {
        self.tables.insert(number, table);
        self.repeat(number, echo);
    }

    /// One whose entries were not durable. It repeats the one before all the same.
    fn repeat(&mut self, number: u64, echo: &'a [Record]) {
        self.seen.insert(number);
        if let Some(before) = number.checked_sub(1) {
            self.tables.entry(before).or_insert(echo);
        }
    }

    /// Whether a flush group after this one is told nowhere. Of two that follow each other and have not shown
    /// themselves the second would have repeated the first.
    fn is_one_untold(&mut self, last: u64) -> Result<bool, VoteHidden> {
        // What repeats the last one that counts says nothing new.
        self.tables = self.tables.split_off(&last.saturating_add(1));
        self.seen = self.seen.split_off(&last.saturating_add(1));
        let (mut before, mut missing) = (last, 0);
        for number in &self.seen {
            let between = number - before - 1;
            if between > 1 {
                return Err(VoteHidden);
            }
            missing += between;
            before = *number;
        }
        match self.unseen.saturating_sub(missing) {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(VoteHidden),
        }
    }
}
