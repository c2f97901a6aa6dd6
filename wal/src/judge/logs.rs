//! The logs of all groups, as flush groups are applied to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use logdrive_raft::io::{Guard, HardState};
use logdrive_raft::limits::ENTRY_HEADER_BYTES;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{
    Base, GroupId, Index, LogPosition, Membership, NodeId, Replica, Term, mutated,
};

use crate::configurations::Configurations;
use crate::format::{EntryRun, GroupCheckpoint, Place, Record, RecordKind};
use crate::path::{GroupLog, Missing, OffPath, Row, Start};
use crate::scan::{FrameScan, GroupScan};

use super::lost::Lost;

// Kinds of records that an echo only mentions.
const GENESIS: u8 = RecordKind::Genesis as u8;
const ANCHOR: u8 = RecordKind::Anchor as u8;
const CHECKPOINT: u8 = RecordKind::Checkpoint as u8;
const CONFIGURATION: u8 = RecordKind::Configuration as u8;
const FOOTER: u8 = RecordKind::Footer as u8;

/// Why a flush group cannot be applied to the logs before it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Misfit {
    #[error("entries of group {0} follow an entry that is not in the log ({1:?})")]
    Entries(GroupId, OffPath),
    #[error("group {0} is cut at an entry that is not in the log ({1:?})")]
    Truncate(GroupId, OffPath),
    #[error("group {0} begins a second time with another genesis")]
    Genesis(GroupId),
    #[error("group {0} begins, or goes on, after it was removed")]
    Removed(GroupId),
    #[error("group {0} is not known")]
    Unknown(GroupId),
    #[error("group {0} cannot begin where a record says ({1:?})")]
    Base(GroupId, OffPath),
    #[error("group {0} begins above its newest anchor")]
    Anchor(GroupId),
    #[error("nothing says who belonged to group {0} where its log begins")]
    Membership(GroupId),
    #[error("the checkpoint says that group {0} ends at {1}, the log ends at {2}")]
    Checkpoint(GroupId, LogPosition, LogPosition),
    #[error("the checkpoint says of group {0} that its log begins, or is anchored, elsewhere")]
    Cut(GroupId),
    #[error("a record stands where it does not belong")]
    Misplaced,
    #[error("more entries of group {0} are told of than have room where they lay")]
    TooMany(GroupId),
    #[error("nothing says how group {0} began")]
    GenesisLost(GroupId),
    #[error("nothing says where the groups stood when the log began")]
    BeginningLost,
}

/// The logs of all groups as flush groups are applied.
#[derive(Clone, Default)]
pub(super) struct Logs {
    pub(super) groups: BTreeMap<GroupId, GroupLog>,
    pub(super) configurations: Configurations,
    /// Groups that are gone. Their ids are not used again.
    pub(super) removed: BTreeSet<GroupId>,
    /// The newest term and vote that anything says, beyond the end and in echoes too.
    stated: BTreeMap<GroupId, HardState>,
    /// The highest term of any entry, dead ones too.
    terms: BTreeMap<GroupId, Term>,
    /// The first flush group has been applied: from now on every group is known.
    begun: bool,
    /// Groups with a newer anchor than the one that is known: it is lost, and a later record will say it again.
    anchor_lost: BTreeSet<GroupId>,
    mutant: Option<Mutant>,
}

impl Logs {
    pub(super) fn new(mutant: Option<Mutant>) -> Self {
        Self {
            mutant,
            ..Self::default()
        }
    }

    /// Takes note of what holds wherever it stands: a vote that may have been cast was cast.
    pub(super) fn note(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::HardState { group, hard_state } => {
                    let stated = self.stated.entry(*group).or_default();
                    *stated = crate::path::newest(*stated, *hard_state);
                }
                Record::Entries(run) | Record::Rewrite(run) => {
                    let term = self.terms.entry(run.group).or_default();
                    *term = (*term).max(run.last.term);
                }
                Record::Base { group, base, .. } => {
                    let term = self.terms.entry(*group).or_default();
                    *term = (*term).max(base.term);
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

    fn check_not_removed(&self, group: GroupId) -> Result<(), Misfit> {
        if self.removed.contains(&group) {
            return Err(Misfit::Removed(group));
        }
        Ok(())
    }

    /// Whether the log has an entry of a higher term where the run begins, or took no run before it for that
    /// reason.
    fn outranks(&self, run: &EntryRun, first: Option<&FrameScan>) -> bool {
        let Some(log) = self.groups.get(&run.group) else {
            return false;
        };
        let held = log.row(run.prev.index.next()).map(|row| row.term);
        held > first.map(|frame| frame.position.term) || log.check_on_path(&run.prev).is_err()
    }

    pub(super) fn apply(&mut self, group: &GroupScan) -> Result<(), Misfit> {
        self.apply_table(&group.table, group.place(), Some(&group.frames))
    }

    /// The same of one whose frames cannot be read.
    pub(super) fn apply_lost(&mut self, lost: &Lost<'_>) -> Result<(), Misfit> {
        if !self.begun {
            return Err(Misfit::BeginningLost);
        }
        self.apply_table(lost.records, lost.place, None)
    }

    fn apply_table(
        &mut self,
        table: &[Record],
        at: Place,
        frames: Option<&[FrameScan]>,
    ) -> Result<(), Misfit> {
        let mut frames = frames.map(<[FrameScan]>::iter);
        let states = |record: &Record| match record {
            Record::Checkpoint(_) => true,
            Record::Mention { kind, .. } => *kind == CHECKPOINT,
            _ => false,
        };
        let repeats = table.iter().any(states);
        for (place, record) in table.iter().enumerate() {
            match record {
                Record::Genesis(genesis) => {
                    let id = genesis.group;
                    self.check_not_removed(id)?;
                    let log = self.groups.entry(id);
                    let log = log.or_insert_with(|| GroupLog::new(genesis.clone()));
                    if log.genesis != *genesis {
                        return Err(Misfit::Genesis(id));
                    }
                }
                Record::Entries(run)
                    if mutated!(self.mutant, SupersedeByTerm)
                        && frames.as_ref().is_some_and(|frames| {
                            self.outranks(run, frames.as_slice().first())
                        }) =>
                {
                    let count = usize::try_from(run.count()).expect("frames were counted");
                    frames.iter_mut().flatten().take(count).for_each(drop);
                }
                Record::Rewrite(run) if !mutated!(self.mutant, RewriteAsEntries) => {
                    // Where they cannot be read the entries lie where they were.
                    if let Some(frames) = &mut frames {
                        let count = usize::try_from(run.count()).expect("counted when read");
                        let (these, rest) = frames.as_slice().split_at(count);
                        *frames = rest.iter();
                        self.rewrite(run, these, at)?;
                    }
                }
                Record::Entries(run) | Record::Rewrite(run) => {
                    let cut = self.log(run.group)?.truncate(&run.prev);
                    cut.map_err(|off| Misfit::Entries(run.group, off))?;
                    self.configurations.cut(run.group, run.prev.index);
                    let Some(frames) = &mut frames else {
                        self.push_missing(run, at)?;
                        continue;
                    };
                    for _ in 0..run.count() {
                        let frame = frames.next().expect("counted when they were read");
                        let mut row = Row::new(&frame.position, frame.bytes);
                        row.put(at, frame.offset);
                        self.log(run.group)?.push(row);
                        if let Some(membership) = &frame.membership {
                            let index = frame.position.index;
                            self.configurations
                                .push(run.group, index, membership.clone());
                        }
                    }
                }
                Record::Truncate { group, to } => {
                    let cut = self.log(*group)?.truncate(to);
                    cut.map_err(|off| Misfit::Truncate(*group, off))?;
                    self.configurations.cut(*group, to.index);
                }
                Record::Base { group: id, .. } => {
                    let (start, tip) = match base_of(&table[place..]) {
                        Some(base) => (Start::of(&base), base.tip),
                        None if frames.is_some() => return Err(Misfit::Membership(*id)),
                        None => {
                            let (mut start, tip) = start_of(record).ok_or(Misfit::Misplaced)?;
                            start.membership = self.membership_at(*id, &start.base);
                            (start, tip)
                        }
                    };
                    let anchor_lost = self.anchor_lost.contains(id);
                    let log = self.log(*id)?;
                    let anchored = anchor_lost || is_anchored(log, &start.base);
                    if start.snapshot.is_none() && !anchored {
                        return Err(Misfit::Anchor(*id));
                    }
                    let moved = log.set_start(start, &tip);
                    moved.map_err(|off| Misfit::Base(*id, off))?;
                    self.configurations.cut(*id, tip.index);
                }
                Record::Anchor(anchor) => {
                    self.log(anchor.group)?.anchor = Some(Arc::new(anchor.clone()));
                    self.anchor_lost.remove(&anchor.group);
                }
                Record::Configuration {
                    group,
                    at,
                    membership,
                } => {
                    let log = self.log(*group)?;
                    if log.base() == *at {
                        log.start.membership = Some(Arc::new(membership.clone()));
                    }
                }
                Record::HardState { group, hard_state } => {
                    self.log(*group)?.raise_hard_state(*hard_state);
                }
                Record::Checkpoint(rows) => {
                    for row in rows {
                        let id = row.genesis.group;
                        self.check_not_removed(id)?;
                        if !self.begun {
                            let first = || GroupLog::from_checkpoint(row);
                            self.groups.entry(id).or_insert_with(first);
                        }
                        let log = self.log(id)?;
                        log.raise_hard_state(row.hard_state);
                        log.guard = row.guard;
                        if log.tip() != row.tip {
                            return Err(Misfit::Checkpoint(id, row.tip, log.tip()));
                        }
                    }
                }
                Record::GroupRemoved(group) => {
                    self.groups.remove(group);
                    self.configurations.remove(*group);
                    self.removed.insert(*group);
                }
                Record::Verdict(verdict) => {
                    for (group, guard) in &verdict.guards {
                        self.log(*group)?.guard = Some(*guard);
                    }
                }
                Record::Footer(_) => {}
                Record::Mention { .. } if frames.is_some() => return Err(Misfit::Misplaced),
                // What goes with a checkpoint was in the log before.
                Record::Mention { kind, .. } if repeats && *kind == ANCHOR => {}
                Record::Mention { kind, group } => self.miss(*kind, *group)?,
            }
        }
        self.begun = true;
        for record in table {
            if let Record::Checkpoint(rows) = record {
                rows.iter().try_for_each(|row| self.check_start(row))?;
            }
        }
        Ok(())
    }

    /// Who belonged to a group where its log is cut, if that can be told without the record that says it.
    fn membership_at(&self, group: GroupId, base: &LogPosition) -> Option<Arc<Membership>> {
        let log = self.groups.get(&group)?;
        if let Some(anchor) = log.anchor.as_ref().filter(|anchor| anchor.at == *base) {
            return Some(Arc::new(anchor.membership.clone()));
        }
        // An entry that is missing may have changed it.
        let whole = log.owed().is_none() && base.index <= log.whole().index;
        if !whole || log.check_on_path(base).is_err() {
            return None;
        }
        let later = self.configurations.at(group, base.index).cloned();
        later.or_else(|| log.membership()).map(Arc::new)
    }

    /// Entries of the path lie here too: where they were they may be unreadable.
    fn rewrite(&mut self, run: &EntryRun, frames: &[FrameScan], at: Place) -> Result<(), Misfit> {
        let rows: Vec<Row> = frames
            .iter()
            .map(|frame| {
                let mut row = Row::new(&frame.position, frame.bytes);
                row.put(at, frame.offset);
                row
            })
            .collect();
        let mut replaced = Vec::new();
        let log = self.log(run.group)?;
        log.replace(&run.prev, &rows, |number| replaced.push(number));
        for frame in replaced.into_iter().map(|number| &frames[number]) {
            if let Some(membership) = &frame.membership {
                let index = frame.position.index;
                self.configurations
                    .restore(run.group, index, membership.clone());
            }
        }
        Ok(())
    }

    /// Of a run whose frames cannot be read only the last entry is known, and how many there are.
    fn push_missing(&mut self, run: &EntryRun, at: Place) -> Result<(), Misfit> {
        let count = run.count();
        // Their bytes have room where they lay, and each has a header.
        let frames_max = u64::from(run.bytes) / ENTRY_HEADER_BYTES as u64;
        if count > frames_max {
            return Err(Misfit::TooMany(run.group));
        }
        let log = self.log(run.group)?;
        for _ in 1..count {
            log.push(Row::missing(None, at.segment));
        }
        log.push(Row::missing(Some(&run.last), at.segment));
        Ok(())
    }

    /// A record was lost of which only the kind is known.
    fn miss(&mut self, kind: u8, group: GroupId) -> Result<(), Misfit> {
        match kind {
            GENESIS => return Err(Misfit::GenesisLost(group)),
            ANCHOR => {
                self.anchor_lost.insert(group);
            }
            // All that it says was in the log before.
            CHECKPOINT => {}
            // Of the base before it, which has no membership then until somebody states it again.
            CONFIGURATION | FOOTER => {}
            _ => return Err(Misfit::Misplaced),
        }
        Ok(())
    }

    /// What cannot be done without, and is lost. The entries of groups are another matter.
    pub(super) fn lost_for_good(&self) -> Option<String> {
        // An older anchor will do, unless the log was cut beyond it.
        let is_cut_beyond = |group: &&GroupId| {
            let log = self.groups.get(group);
            log.is_some_and(|log| {
                log.base() != log.genesis.origin() && !is_anchored(log, &log.base())
            })
        };
        if let Some(group) = self.anchor_lost.iter().find(is_cut_beyond) {
            return Some(format!(
                "nothing says what the log of group {group} amounts to where it begins"
            ));
        }
        let unknown = self
            .groups
            .iter()
            .find(|(_, log)| log.membership().is_none());
        unknown.map(|(group, _)| Misfit::Membership(*group).to_string())
    }

    /// Where logs are cut that miss something which an anchor covers: what holds up to there is known without it.
    pub(super) fn cuts(&self) -> Vec<(GroupId, Base)> {
        let cut = |(group, log): (&GroupId, &GroupLog)| {
            let anchor = log.anchor_over_missing()?;
            let base = Base {
                at: anchor.at,
                membership: anchor.membership.clone(),
                snapshot: None,
                tip: log.tip(),
            };
            Some((*group, base))
        };
        self.groups.iter().filter_map(cut).collect()
    }

    /// The runs that are missing and that no anchor covers. What lies behind the first of a group may have been
    /// acknowledged, so it is guarded through its end.
    pub(super) fn guard_missing(&mut self) -> Vec<(GroupId, Missing)> {
        let mut all = Vec::new();
        for (group, log) in &mut self.groups {
            let anchor = log.anchor_over_missing().map(|anchor| anchor.at.index);
            let mut missing = log.missing();
            missing.retain(|run| anchor < Some(run.last.index));
            if !missing.is_empty() && !mutated!(self.mutant, MissingUnguarded) {
                let tip = log.tip();
                log.raise_guard(Guard {
                    term: tip.term,
                    index: Some(tip.index),
                });
            }
            all.extend(missing.into_iter().map(|run| (*group, run)));
        }
        all
    }

    /// Whether a log begins where a checkpoint says, and all is known that has to be there. The records that carry it
    /// forward follow the checkpoint in its flush group.
    fn check_start(&mut self, row: &GroupCheckpoint) -> Result<(), Misfit> {
        let group = row.genesis.group;
        let anchor_lost = self.anchor_lost.contains(&group);
        let log = self.log(group)?;
        let anchor = log.anchor.as_ref().map(|anchor| anchor.at);
        let same = (log.base(), log.start.snapshot) == (row.base, row.snapshot);
        if !same || (anchor != row.anchor && !anchor_lost) {
            return Err(Misfit::Cut(group));
        }
        if log.membership().is_none() {
            return Err(Misfit::Membership(group));
        }
        let cut = row.snapshot.is_none() && row.base != row.genesis.origin();
        if cut && !anchor_lost && !is_anchored(log, &row.base) {
            return Err(Misfit::Anchor(group));
        }
        Ok(())
    }

    /// What groups may have acknowledged and do not hold.
    pub(super) fn guards(&self) -> BTreeMap<GroupId, Guard> {
        let groups = self.groups.iter();
        let guards = groups.filter_map(|(group, log)| Some((*group, log.open_guard()?)));
        guards.collect()
    }

    /// Entries that lay in segments that were released, and that nothing in those that are kept has covered since.
    pub(super) fn missing(&self) -> Vec<(GroupId, Index, LogPosition)> {
        let owed = |(group, log): (&GroupId, &GroupLog)| {
            let (first, last) = log.owed()?;
            Some((*group, first, last))
        };
        self.groups.iter().filter_map(owed).collect()
    }

    /// The current term is at least that of every entry. If no record says so, who got the vote of that
    /// term is not known, and it counts as given: to a replica that cannot be.
    pub(super) fn hard_states(&self) -> BTreeMap<GroupId, HardState> {
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

/// Whether an anchor says what the log amounts to up to here.
fn is_anchored(log: &GroupLog, base: &LogPosition) -> bool {
    let anchor = log.anchor.as_ref();
    anchor.is_some_and(|anchor| base.index <= anchor.at.index)
}

/// What a base says whose configuration is lost.
fn start_of(record: &Record) -> Option<(Start, LogPosition)> {
    let Record::Base {
        base,
        snapshot,
        tip,
        ..
    } = record
    else {
        return None;
    };
    let start = Start {
        base: *base,
        membership: None,
        snapshot: *snapshot,
    };
    Some((start, *tip))
}

/// What a base and the configuration after it say: no crash parts them.
pub(crate) fn base_of(table: &[Record]) -> Option<Base> {
    let [
        Record::Base {
            group,
            base,
            snapshot,
            tip,
        },
        Record::Configuration {
            group: of,
            at,
            membership,
        },
        ..,
    ] = table
    else {
        return None;
    };
    let base = Base {
        at: *base,
        membership: membership.clone(),
        snapshot: *snapshot,
        tip: *tip,
    };
    (of == group && *at == base.at).then_some(base)
}

/// The vote of a term whose vote is not known: given to a replica that cannot be, so that it is not given
/// again.
pub const VOTE_SPENT: Replica = Replica {
    id: NodeId(0),
    incarnation: logdrive_raft::Incarnation(0),
};
