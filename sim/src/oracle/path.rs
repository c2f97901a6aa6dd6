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
    /// These entries, which follow `prev`, lie here too.
    Again {
        group: GroupId,
        prev: LogPosition,
        chains: Box<[Chain]>,
    },
    Cut(GroupId, LogPosition),
    /// The log begins here, and ends there.
    Base {
        group: GroupId,
        base: LogPosition,
        tip: LogPosition,
    },
    /// What the log up to here amounts to is known.
    Anchor(GroupId, LogPosition),
    /// A checkpoint says where the log begins and ends, and what its anchor is.
    Stands {
        group: GroupId,
        base: LogPosition,
        tip: LogPosition,
        anchor: LogPosition,
    },
}

impl Note {
    pub(super) fn of(record: Record) -> Vec<Self> {
        match record {
            Record::Genesis(genesis) => vec![Note::Begin(genesis.group)],
            Record::HardState { group, hard_state } => vec![Note::HardState(group, hard_state)],
            Record::Truncate { group, to } => vec![Note::Cut(group, to)],
            Record::Base {
                group, base, tip, ..
            } => vec![Note::Base { group, base, tip }],
            Record::Anchor(anchor) => vec![Note::Anchor(anchor.group, anchor.at)],
            Record::Checkpoint(rows) => {
                let rows = rows.into_iter().flat_map(|row| {
                    let group = row.genesis.group;
                    [
                        Note::Begin(group),
                        Note::HardState(group, row.hard_state),
                        Note::Stands {
                            group,
                            base: row.base,
                            tip: row.tip,
                            anchor: row.anchor.unwrap_or_default(),
                        },
                    ]
                });
                rows.collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A flush group.
pub(super) struct Group<'a> {
    pub(super) header: &'a GroupHeader,
    pub(super) chain: Chain,
    /// The boot that opened its segment.
    pub(super) epoch: Boot,
    /// Its frames cannot be read any more.
    pub(super) rotten: bool,
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
    /// It begins in the middle of the log's life: the first checkpoint says how everything stood.
    midway: bool,
    /// What came before it is gone.
    released: bool,
    logs: BTreeMap<GroupId, Log>,
    /// How many flush groups state a vote, and the last one that did.
    votes: HashMap<(GroupId, Term, NodeId), (usize, u64), Build>,
}

/// The log of a group: it begins above its base. What lies between that and the first entry that is known here was in
/// segments that are gone, and no recovery finds it.
#[derive(Debug, Default)]
struct Log {
    base: LogPosition,
    /// The entry before the first of `chains`.
    first: LogPosition,
    chains: Vec<Chain>,
    /// The first and the last entry of runs that went bad.
    missing: Vec<(Index, Index)>,
    term: Term,
    anchor: LogPosition,
    /// It was cut beyond its anchor.
    unanchored: bool,
}

impl Log {
    fn end(&self) -> Index {
        Index(self.first.index.0 + self.chains.len() as u64)
    }

    /// Whether it has this entry; what lies below the base counts as if it were there.
    fn has(&self, at: LogPosition) -> bool {
        if at.index <= self.base.index {
            return at.index < self.base.index
                || at.index == Index(0)
                || at.chain == self.base.chain;
        }
        let Some(above) = at.index.0.checked_sub(self.first.index.0) else {
            return false;
        };
        match above.checked_sub(1) {
            None => at.chain == self.first.chain,
            Some(place) => {
                let place = usize::try_from(place).unwrap_or(usize::MAX);
                self.chains.get(place) == Some(&at.chain)
            }
        }
    }

    /// Whether it lies where nothing is known of it.
    fn is_unknown(&self, at: LogPosition) -> bool {
        self.base.index < at.index && at.index < self.first.index
    }

    /// Whether it has this entry and everything before it.
    fn is_whole_through(&self, at: LogPosition) -> bool {
        self.has(at) && self.missing.iter().all(|(first, _)| at.index < *first)
    }

    /// Entries that follow `prev` can be read, wherever they lay before: those of them that it has.
    fn restore(&mut self, prev: LogPosition, chains: &[Chain]) {
        for (index, chain) in (prev.index.0 + 1..).map(Index).zip(chains) {
            let at = LogPosition {
                index,
                chain: *chain,
                ..LogPosition::default()
            };
            if self.base.index < index && self.has(at) {
                self.is_back(index);
            }
        }
    }

    fn is_back(&mut self, index: Index) {
        let hit = |(first, last): &(Index, Index)| *first <= index && index <= *last;
        while let Some(place) = self.missing.iter().position(hit) {
            let (first, last) = self.missing.swap_remove(place);
            let before = index.prev().filter(|before| first <= *before);
            self.missing.extend(before.map(|before| (first, before)));
            if index < last {
                self.missing.push((index.next(), last));
            }
        }
    }

    /// Says whether it may have had the entry that it ends with now.
    fn cut(&mut self, to: LogPosition) -> bool {
        let has = self.has(to) || self.is_unknown(to);
        self.missing.retain(|(first, _)| *first <= to.index);
        match to.index.0.checked_sub(self.first.index.0) {
            Some(above) => self
                .chains
                .truncate(usize::try_from(above).unwrap_or(usize::MAX)),
            None => {
                self.chains.clear();
                self.first = to;
            }
        }
        has
    }

    /// It begins at `base` and ends at `tip` from now on. Says whether that goes with what it was.
    fn begin(&mut self, base: LogPosition, tip: LogPosition) -> bool {
        self.unanchored |= self.anchor.index < base.index;
        if base.index < self.base.index {
            return false;
        }
        let held = self.is_unknown(base) || self.has(base);
        self.missing.retain(|(_, last)| base.index < *last);
        if base.index <= self.end() && held && self.has(tip) {
            self.base = base;
            if let Some(below) = base.index.0.checked_sub(self.first.index.0) {
                let below = usize::try_from(below).unwrap_or(usize::MAX);
                self.chains.drain(..below);
                self.first = base;
            }
            return self.cut(tip);
        }
        self.base = base;
        self.first = base;
        self.chains.clear();
        self.missing.clear();
        tip == base
    }
}

impl Path {
    /// A path that begins with this flush group.
    pub(super) fn at(first: &GroupHeader) -> Self {
        Self {
            chain: first.previous,
            number: first.number - 1,
            midway: first.number > 1,
            released: first.number > 1,
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
        let log = self.logs.get(&group);
        log.is_some_and(|log| log.is_whole_through(at))
    }

    pub(super) fn copies_of_vote(&self, group: GroupId, term: Term, candidate: NodeId) -> usize {
        let copies = self.votes.get(&(group, term, candidate));
        copies.map_or(0, |(copies, _)| *copies)
    }

    pub(super) fn term(&self, group: GroupId) -> Term {
        self.logs.get(&group).map_or(Term(0), |log| log.term)
    }

    /// Whether segments were released that came before it.
    pub(super) fn is_released(&self) -> bool {
        self.released
    }

    /// Where the log of a group begins.
    pub(super) fn base(&self, group: GroupId) -> LogPosition {
        self.logs
            .get(&group)
            .map_or_else(Default::default, |log| log.base)
    }

    /// A group whose log was cut beyond its anchor: where that is, and where it begins.
    pub(super) fn unanchored(&self) -> Option<(GroupId, LogPosition, LogPosition)> {
        let mut logs = self.logs.iter();
        logs.find_map(|(group, log)| log.unanchored.then_some((*group, log.anchor, log.base)))
    }

    pub(super) fn has_begun(&self, group: GroupId) -> bool {
        self.logs.contains_key(&group)
    }

    /// Takes the next flush group. Says whether there may be more.
    pub(super) fn take(&mut self, group: &Group<'_>, notes: &[Note]) -> bool {
        let header = group.header;
        let fits = notes.iter().all(|note| self.apply(group, note));
        self.stuck = self.stuck || !fits;
        if self.stuck {
            return false;
        }
        self.chain = group.chain;
        self.midway = false;
        self.number = header.number;
        self.epoch = self.epoch.max(group.epoch);
        self.mark = self.mark.max(header.mark);
        true
    }

    /// Says whether the log has what the note rests on.
    fn apply(&mut self, of: &Group<'_>, note: &Note) -> bool {
        let number = of.header.number;
        match note {
            Note::Begin(group) => {
                self.logs.entry(*group).or_default();
                true
            }
            Note::HardState(group, stated) => {
                let log = self.logs.entry(*group).or_default();
                log.term = log.term.max(stated.term);
                if let Some(vote) = stated.vote.filter(|_| !of.rotten) {
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
                if of.rotten {
                    let last = Index(prev.index.0 + chains.len() as u64);
                    log.missing.push((prev.index.next(), last));
                }
                log.term = log.term.max(*term);
                fits
            }
            Note::Again {
                group,
                prev,
                chains,
            } => {
                if let Some(log) = self.logs.get_mut(group).filter(|_| !of.rotten) {
                    log.restore(*prev, chains);
                }
                true
            }
            Note::Cut(group, to) => self.logs.get_mut(group).is_some_and(|log| log.cut(*to)),
            Note::Base { group, base, tip } => self
                .logs
                .get_mut(group)
                .is_some_and(|log| log.begin(*base, *tip)),
            Note::Anchor(group, at) => {
                if let Some(log) = self.logs.get_mut(group)
                    && log.anchor.index < at.index
                {
                    log.anchor = *at;
                }
                true
            }
            Note::Stands {
                group,
                base,
                tip,
                anchor,
            } => {
                let Some(log) = self.logs.get_mut(group) else {
                    return false;
                };
                if self.midway {
                    log.base = *base;
                    log.first = *tip;
                    log.anchor = *anchor;
                    log.unanchored = anchor.index < base.index;
                    return true;
                }
                log.base.index == base.index && log.end() == tip.index && log.has(*tip)
            }
        }
    }
}
