//! What the flush groups that a recovery would take amount to: the log of every group, its votes and its term.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use logdrive_raft::io::HardState;
use logdrive_raft::{Boot, Chain, GroupId, Index, LogPosition, NodeId, Term};
use logdrive_wal::format::{GroupHeader, Place, Record};

use super::flushed::Build;

/// What a record says, as far as it matters here.
#[derive(Debug)]
pub(super) enum Note {
    Begin(GroupId),
    HardState(GroupId, HardState),
    /// These entries follow `prev`, and whatever was beyond is dead.
    Run {
        group: GroupId,
        prev: LogPosition,
        term: Term,
        chains: Box<[Chain]>,
    },
    Cut(GroupId, LogPosition),
    /// The log begins at the first one and ends at the second one.
    Base(GroupId, LogPosition, LogPosition),
    /// A checkpoint says that it does.
    Stands(GroupId, LogPosition, LogPosition),
}

impl Note {
    pub(super) fn of(record: Record) -> Vec<Self> {
        match record {
            Record::Genesis(genesis) => vec![Note::Begin(genesis.group)],
            Record::HardState { group, hard_state } => vec![Note::HardState(group, hard_state)],
            Record::Truncate { group, to } => vec![Note::Cut(group, to)],
            Record::Base {
                group, base, tip, ..
            } => vec![Note::Base(group, base, tip)],
            Record::Checkpoint(rows) => {
                let rows = rows.into_iter().flat_map(|row| {
                    let group = row.genesis.group;
                    [
                        Note::Stands(group, row.base, row.tip),
                        Note::HardState(group, row.hard_state),
                    ]
                });
                rows.collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The flush groups from the first to the last that has all before it.
#[derive(Debug, Default)]
pub(super) struct Path {
    chain: Chain,
    number: u64,
    epoch: Boot,
    /// The highest durable mark that one of them states.
    mark: Place,
    /// A group does not fit the logs before it: a recovery would refuse it.
    stuck: bool,
    /// The first group has been taken. It alone may speak of what nobody has seen begin.
    begun: bool,
    logs: BTreeMap<GroupId, Log>,
    /// How many flush groups state a vote, and the last one that did.
    votes: HashMap<(GroupId, Term, NodeId), (usize, u64), Build>,
}

#[derive(Debug, Default)]
struct Log {
    /// Where it begins; below that there is nothing to be asked for any more.
    base: LogPosition,
    /// The entries up to here lay in segments that were released.
    owed: Option<LogPosition>,
    /// The chains of its entries, from the one after `owed`, or else the base.
    chains: Vec<Chain>,
    term: Term,
}

impl Log {
    /// What comes before the entries whose chains are known.
    fn bottom(&self) -> LogPosition {
        self.owed.unwrap_or(self.base)
    }

    fn end(&self) -> Index {
        Index(self.bottom().index.0 + self.chains.len() as u64)
    }

    fn has(&self, at: LogPosition) -> bool {
        let bottom = self.bottom();
        if at.index == Index(0) || at.index < bottom.index {
            return true;
        }
        let Some(place) = at.index.0.checked_sub(bottom.index.0 + 1) else {
            return at.chain == bottom.chain;
        };
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        self.chains.get(place) == Some(&at.chain)
    }

    /// Says whether it had the entry that it ends with now.
    fn cut(&mut self, to: LogPosition) -> bool {
        let has = self.has(to) && self.base.index <= to.index;
        let bottom = self.bottom().index;
        if to.index < bottom {
            self.owed = Some(to).filter(|to| to.index != self.base.index);
        }
        let left = to.index.0.saturating_sub(bottom.0);
        self.chains
            .truncate(usize::try_from(left).unwrap_or(usize::MAX));
        has
    }

    /// Says whether it ends where the record says.
    fn begin_at(&mut self, base: LogPosition, tip: LogPosition) -> bool {
        if base.index < self.base.index {
            return false;
        }
        let bottom = self.bottom().index;
        let goes_on = self.has(base) && (bottom <= base.index || self.is_tip(tip));
        if !goes_on {
            self.chains.clear();
            self.owed = None;
        } else if bottom <= base.index {
            let covered = usize::try_from(base.index.0 - bottom.0).unwrap_or(usize::MAX);
            self.chains.drain(..covered.min(self.chains.len()));
            self.owed = None;
        }
        self.base = base;
        self.is_tip(tip)
    }

    fn is_tip(&self, tip: LogPosition) -> bool {
        self.end() == tip.index && self.has(tip)
    }
}

impl Path {
    /// From the flush group with this header on: those before it were released.
    pub(super) fn from(first: &GroupHeader) -> Self {
        Self {
            chain: first.previous,
            number: first.number - 1,
            ..Self::default()
        }
    }

    pub(super) fn chain(&self) -> Chain {
        self.chain
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn epoch(&self) -> Boot {
        self.epoch
    }

    pub(super) fn mark(&self) -> Place {
        self.mark
    }

    /// Whether an entry is in the log, and so everything before it.
    pub(super) fn covers(&self, group: GroupId, at: LogPosition) -> bool {
        self.logs.get(&group).is_some_and(|log| log.has(at))
    }

    pub(super) fn copies_of_vote(&self, group: GroupId, term: Term, candidate: NodeId) -> usize {
        let copies = self.votes.get(&(group, term, candidate));
        copies.map_or(0, |(copies, _)| *copies)
    }

    pub(super) fn term(&self, group: GroupId) -> Term {
        self.logs.get(&group).map_or(Term(0), |log| log.term)
    }

    pub(super) fn has_begun(&self, group: GroupId) -> bool {
        self.logs.contains_key(&group)
    }

    /// Takes the next flush group. Says whether there may be more.
    pub(super) fn take(
        &mut self,
        header: &GroupHeader,
        chain: Chain,
        epoch: Boot,
        notes: &[Note],
    ) -> bool {
        self.stuck = self.stuck || !notes.iter().all(|note| self.apply(header.number, note));
        if self.stuck {
            return false;
        }
        self.begun = true;
        self.chain = chain;
        self.number = header.number;
        self.epoch = self.epoch.max(epoch);
        self.mark = self.mark.max(header.mark);
        true
    }

    /// Says whether the log has what the note rests on.
    fn apply(&mut self, number: u64, note: &Note) -> bool {
        match note {
            Note::Begin(group) => {
                self.logs.entry(*group).or_default();
                true
            }
            Note::HardState(group, stated) => {
                let log = self.logs.entry(*group).or_default();
                log.term = log.term.max(stated.term);
                if let Some(vote) = stated.vote {
                    let key = (*group, stated.term, vote.id);
                    let (copies, last) = self.votes.entry(key).or_default();
                    // Twice in one flush group is one copy.
                    if *last != number {
                        *copies += 1;
                        *last = number;
                    }
                }
                true
            }
            Note::Run {
                group,
                prev,
                term,
                chains,
            } => {
                let Some(log) = self.logs.get_mut(group) else {
                    return false;
                };
                let fits = log.cut(*prev);
                log.chains.extend_from_slice(chains);
                log.term = log.term.max(*term);
                fits
            }
            Note::Cut(group, to) => self.logs.get_mut(group).is_some_and(|log| log.cut(*to)),
            Note::Base(group, base, tip) => {
                let log = self.logs.get_mut(group);
                log.is_some_and(|log| log.begin_at(*base, *tip))
            }
            Note::Stands(group, base, tip) => {
                if !self.begun {
                    let log = Log {
                        base: *base,
                        owed: Some(*tip).filter(|tip| tip != base),
                        ..Log::default()
                    };
                    self.logs.insert(*group, log);
                }
                let log = self.logs.get(group);
                log.is_some_and(|log| log.base.index == base.index && log.is_tip(*tip))
            }
        }
    }
}
