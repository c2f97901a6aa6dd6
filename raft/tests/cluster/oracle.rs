//! What must hold whatever happens (Raft figure 3), watched from outside.

use std::collections::BTreeMap;

use logdrive_raft::io::{Role, RoleChange};
use logdrive_raft::{Body, Chain, GroupId, Index, Message, Raft, Replica, Term};

use super::disk::Disk;

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    leaders: BTreeMap<(GroupId, Term), Replica>,
    votes: BTreeMap<(GroupId, Term, Replica), u64>,
    /// What is committed, and the term of whoever said so first.
    committed: BTreeMap<GroupId, Vec<(Chain, Term)>>,
    entries: BTreeMap<(GroupId, Index, Term), Chain>,
    pub(crate) elections: u64,
}

impl Oracle {
    pub(crate) fn committed(&self, group: GroupId) -> usize {
        self.committed.get(&group).map_or(0, Vec::len)
    }

    pub(crate) fn on_role(&mut self, group: GroupId, raft: &Raft, me: Replica, change: RoleChange) {
        if change.role != Role::Leader {
            return;
        }
        self.elections += 1;
        let leader = self.leaders.entry((group, change.term)).or_insert(me);
        assert_eq!(
            *leader, me,
            "election safety: two leaders of term {}",
            change.term
        );
        let committed = self.committed.entry(group).or_default();
        for (place, (chain, term)) in committed.iter().enumerate() {
            // A vote may be late, and so elect somebody whose time is over.
            if *term < change.term {
                let index = Index(place as u64 + 1);
                let held = raft.meta(index).map(|meta| meta.chain);
                let term = change.term;
                assert_eq!(
                    held,
                    Some(*chain),
                    "leader completeness: term {term} lacks {index}"
                );
            }
        }
    }

    /// A message leaves a machine.
    pub(crate) fn on_send(&mut self, message: &Message) {
        if let Body::VoteReply(reply) = &message.body
            && reply.granted
            && !reply.pre
        {
            let key = (message.group, message.term, message.from);
            let vote = self.votes.entry(key).or_insert(message.to.0);
            assert_eq!(*vote, message.to.0, "{} votes twice", message.from);
        }
        if let Body::Append(append) = &message.body {
            for entry in &append.entries {
                let key = (message.group, entry.index(), entry.term());
                let chain = self.entries.entry(key).or_insert(entry.header().chain);
                assert_eq!(*chain, entry.header().chain, "log matching at {entry:?}");
            }
        }
    }

    pub(crate) fn on_commit(
        &mut self,
        group: GroupId,
        raft: &Raft,
        disks: &[&Disk],
        voters: usize,
    ) {
        let chains = self.committed.entry(group).or_default();
        let commit = raft.commit();
        for (place, (chain, _)) in chains
            .iter()
            .enumerate()
            .take(usize::try_from(commit.index.0).unwrap())
        {
            let held = raft.meta(Index(place as u64 + 1)).map(|meta| meta.chain);
            assert_eq!(held, Some(*chain), "state machine safety at {}", place + 1);
        }
        for index in chains.len() as u64 + 1..=commit.index.0 {
            let chain = raft.meta(Index(index)).unwrap().chain;
            chains.push((chain, raft.term()));
        }
        // Whoever says 'committed' first, a majority has it on the medium by then.
        let holders = disks.iter().filter(|disk| {
            let durable = disk.groups.get(&group);
            let entry = durable.and_then(|durable| durable.entry(commit.index));
            entry.is_some_and(|entry| entry.header().chain == commit.chain)
        });
        let count = holders.count();
        assert!(
            count * 2 > voters,
            "{commit} committed on {count} of {voters}"
        );
    }
}
