//! What must hold whatever happens: the log as a witness.
//!
//! It remembers which chain is committed at each index, and which proposals were acknowledged where. Any
//! replica that ever commits another chain at an index has broken state machine safety (Raft §5.4.3).

use std::collections::BTreeMap;

use logdrive_raft::{Chain, GroupId, Index, LogPosition, NodeId, Raft, Term};

/// What is known to be true of every correct run.
#[derive(Debug, Default)]
pub struct Oracle {
    committed: BTreeMap<(GroupId, Index), (Chain, Term)>,
    leaders: BTreeMap<(GroupId, Term), NodeId>,
    acknowledged: BTreeMap<(GroupId, Index), Vec<(u32, u64)>>,
    /// The commit index last seen of each replica, so that each entry is compared once.
    seen: BTreeMap<(GroupId, NodeId), Index>,
    /// Acknowledged proposals in all.
    pub acks: u64,
    /// Terms that had a leader, in all groups.
    pub elections: u64,
}

impl Oracle {
    /// Looks at a replica after a turn.
    ///
    /// # Panics
    ///
    /// If a promise of Raft is broken; the message says which.
    pub fn look(&mut self, node: NodeId, group: GroupId, core: &Raft) {
        if core.role() == logdrive_raft::io::Role::Leader {
            let mut first = false;
            let leader = self.leaders.entry((group, core.term())).or_insert_with(|| {
                first = true;
                node
            });
            assert!(
                *leader == node,
                "two leaders in term {} of group {group}: {leader} and {node}",
                core.term()
            );
            self.elections += u64::from(first);
        }
        let commit = core.commit();
        let seen = self.seen.entry((group, node)).or_default();
        while *seen < commit.index {
            *seen = seen.next();
            let Some(meta) = core.meta(*seen) else {
                continue;
            };
            let held = (meta.chain, meta.term);
            let agreed = self.committed.entry((group, *seen)).or_insert(held);
            assert!(
                *agreed == held,
                "node {node} commits another entry at {} of group {group}: {held:?}, not {agreed:?}",
                *seen
            );
        }
    }

    /// A node has begun again: it learns anew how far the log is committed.
    pub fn forget(&mut self, node: NodeId) {
        self.seen.retain(|(_, of), _| *of != node);
    }

    /// A client was told that its proposal lies here.
    pub fn acknowledge(&mut self, group: GroupId, at: LogPosition, slot: u32, proposal: u64) {
        self.acks += 1;
        self.acknowledged
            .entry((group, at.index))
            .or_default()
            .push((slot, proposal));
        if let Some((chain, _)) = self.committed.get(&(group, at.index)) {
            assert!(
                *chain == at.chain,
                "acknowledged at {at}, where another entry is committed"
            );
        }
    }

    /// How far group is known to be committed anywhere.
    #[must_use]
    pub fn committed(&self, group: GroupId) -> Index {
        let last = self
            .committed
            .range((group, Index(0))..=(group, Index(u64::MAX)))
            .next_back();
        last.map_or(Index(0), |((_, index), _)| *index)
    }

    /// How many proposals of a group were acknowledged.
    #[must_use]
    pub fn acks_of(&self, group: GroupId) -> usize {
        let all = (group, Index(0))..=(group, Index(u64::MAX));
        self.acknowledged
            .range(all)
            .map(|(_, slots)| slots.len())
            .sum()
    }

    /// Everything that was acknowledged, by group and index.
    #[must_use]
    pub fn acknowledged(&self) -> &BTreeMap<(GroupId, Index), Vec<(u32, u64)>> {
        &self.acknowledged
    }
}
