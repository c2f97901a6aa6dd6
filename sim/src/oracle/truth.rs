//! What is true of a group whatever any replica says later: the entries that ever existed and those that are
//! committed.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use logdrive_raft::{Chain, Index, LogPosition, Replica, Term};

use super::flushed::Build;

/// The entries of a group and what became of them.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// Where logs begin.
    roots: HashSet<Chain, Build>,
    entries: HashMap<Chain, Known, Build>,
    by_place: HashMap<(Index, Term), Chain, Build>,
    /// Committed entries, from index 1.
    committed: Vec<LogPosition>,
    /// How far a leader of each term has committed.
    committed_in: BTreeMap<Term, LogPosition>,
    /// Who led each term, and where its log ended when it was last seen to lead.
    pub(super) leaders: BTreeMap<Term, (Replica, LogPosition)>,
}

/// An entry that some replica had in its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) at: LogPosition,
    pub(super) parent: Chain,
}

impl Truth {
    pub(super) fn add_root(&mut self, root: Chain) {
        self.roots.insert(root);
    }

    pub(super) fn is_root(&self, chain: Chain) -> bool {
        self.roots.contains(&chain)
    }

    pub(super) fn entry(&self, chain: Chain) -> Option<&Known> {
        self.entries.get(&chain)
    }

    /// Takes note of an entry. Two entries with one index and term are an error (Raft §5.3): the chain of the
    /// other one.
    pub(super) fn learn(&mut self, at: LogPosition, parent: Chain) -> Result<(), Chain> {
        self.entries.entry(at.chain).or_insert(Known { at, parent });
        let first = self.by_place.entry((at.index, at.term)).or_insert(at.chain);
        if *first == at.chain {
            Ok(())
        } else {
            Err(*first)
        }
    }

    /// The last committed entry.
    pub(super) fn last_committed(&self) -> LogPosition {
        self.committed.last().copied().unwrap_or_default()
    }

    /// How far leaders of terms before this one have committed.
    pub(super) fn last_committed_before(&self, term: Term) -> LogPosition {
        let earlier = self.committed_in.range(..term).next_back();
        earlier.map(|(_, at)| *at).unwrap_or_default()
    }

    pub(super) fn committed_at(&self, index: Index) -> Option<LogPosition> {
        let place = usize::try_from(index.0.checked_sub(1)?).ok()?;
        self.committed.get(place).copied()
    }

    /// Everything up to `at` is committed. Says the committed entry it contradicts, if there is one.
    pub(super) fn commit(&mut self, at: LogPosition) -> Result<(), LogPosition> {
        let mut path = Vec::new();
        let mut next = at;
        while self.last_committed().index < next.index {
            path.push(next);
            let Some(known) = self.entries.get(&next.chain) else {
                break;
            };
            let Some(parent) = self.entries.get(&known.parent) else {
                // Before the first entry.
                next = LogPosition {
                    index: Index(0),
                    ..next
                };
                break;
            };
            next = parent.at;
        }
        if next.index > Index(0) && self.committed_at(next.index) != Some(next) {
            let committed = self.committed_at(next.index);
            return Err(committed.unwrap_or_default());
        }
        self.committed.extend(path.into_iter().rev());
        // By counting only what is of its own term commits (§5.4.2).
        self.committed_in.insert(at.term, at);
        Ok(())
    }

    /// Whether `at` lies on the log that ends at `tip`.
    pub(super) fn is_on_log(&self, at: LogPosition, tip: LogPosition) -> bool {
        let mut next = tip;
        loop {
            if next.index <= at.index {
                return next.chain == at.chain;
            }
            if let Some(committed) = self.committed_at(next.index)
                && committed.chain == next.chain
                && let Some(wanted) = self.committed_at(at.index)
            {
                return wanted.chain == at.chain;
            }
            let parent = self.entries.get(&next.chain).map(|known| known.parent);
            let parent = parent.and_then(|parent| self.entries.get(&parent));
            let Some(known) = parent else {
                return at.index == Index(0);
            };
            next = known.at;
        }
    }
}
