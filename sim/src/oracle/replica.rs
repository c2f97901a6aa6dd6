//! What is looked at in one replica of a group: its log, its role, and what it says.

use logdrive_raft::message::{Ack, CommitPoint};
use logdrive_raft::{Chain, GroupId, Index, LogPosition, Message, Micros, NodeId, Raft, Term};

use super::{
    About, GroupTruth, Medium, Outcome, PAUSED_US, Rule, Seen, TRAILING_SLACK_US, Truth, Violation,
    fears, own_replica, place,
};

impl GroupTruth {
    /// The group has lost every directory: what comes is another one.
    pub(super) fn forget(&mut self) {
        *self = Self {
            disk_lag_us_max: self.disk_lag_us_max,
            sticky_us: self.sticky_us,
            nodes: vec![Seen::default(); self.nodes.len()],
            ..Self::default()
        };
    }

    /// Takes note of what is new in a replica's log. Says whether it was cut.
    pub(super) fn learn(
        &mut self,
        about: About,
        core: &Raft,
        before: &Seen,
        now: &mut Seen,
        beyond: bool,
    ) -> Result<bool, Violation> {
        let held = core.position(before.last.index);
        let mut known = before.last.index;
        let cut = before.alive && held != Some(before.last);
        if cut || !before.alive {
            // From the last entry that is known to the truth and still on the path.
            known = core.base().index;
            let mut index = core.last().index;
            while index > core.base().index {
                let at = core.position(index).expect("up to the last");
                if self.truth.entry(at.chain).is_some() {
                    known = index;
                    break;
                }
                index = Index(index.0 - 1);
            }
        }
        for index in (known.0 + 1..=core.last().index.0).map(Index) {
            let at = core.position(index).expect("up to the last");
            let parent = core.position(Index(index.0 - 1));
            let parent = parent.map_or_else(Chain::default, |parent| parent.chain);
            let learnt = self.truth.learn(at, parent);
            if let Err(other) = learnt
                && !beyond
            {
                return Err(Violation::new(
                    Rule::LogMatching,
                    format!(
                        "node {} has {at} of group {}, another replica {other}",
                        about.node, about.id
                    ),
                ));
            }
        }
        if cut && core.position(now.acked.index) != Some(now.acked) {
            let mut index = core.last().index.min(now.acked.index);
            let mut acked = core.position(index).unwrap_or_default();
            while index > core.base().index && !self.truth.is_on_log(acked, now.acked) {
                index = Index(index.0 - 1);
                acked = core.position(index).unwrap_or_default();
            }
            // A log that a snapshot has replaced begins with what it never had.
            let had = acked.index <= now.acked.index && self.truth.is_on_log(acked, now.acked);
            now.acked = if had { acked } else { LogPosition::default() };
        }
        Ok(cut)
    }

    pub(super) fn check_monotone(
        &self,
        about: About,
        core: &Raft,
        before: &Seen,
        now: &Seen,
    ) -> Outcome {
        let About { node, id } = about;
        let wrong = if now.term < before.term {
            Some("its term went back")
        } else if before.alive && now.commit < before.commit {
            Some("its commit index went back")
        } else if core.last().index < now.commit {
            Some("its log ends below its commit index")
        } else if core.last().index < now.durable {
            Some("its log ends below what is durable")
        } else if now.commit < now.base.index {
            Some("its log begins beyond its commit index")
        } else if before.alive && now.base.index < before.base.index {
            Some("the beginning of its log went back")
        } else if before.alive && now.anchor.index < before.anchor.index {
            Some("its anchor went back")
        } else {
            None
        };
        match wrong {
            None => Ok(()),
            Some(what) => Err(Violation::new(
                Rule::Monotone,
                format!("node {node}, group {id}: {what}: {before:?}, now {now:?}"),
            )),
        }
    }

    /// Takes note of who leads. Says whether nobody was seen to lead this term before.
    pub(super) fn note_leader(&mut self, about: About, core: &Raft) -> bool {
        let term = core.term();
        let first = !self.truth.leaders.contains_key(&term);
        let own = own_replica(core, about.node).unwrap_or_default();
        self.truth.leaders.entry(term).or_insert((own, core.last()));
        first
    }

    pub(super) fn check_leader(&mut self, about: About, core: &Raft, before: &Seen) -> Outcome {
        let About { node, id } = about;
        let term = core.term();
        let own = own_replica(core, node).unwrap_or_default();
        let (leader, _) = *self.truth.leaders.entry(term).or_insert((own, core.last()));
        if leader.id != node {
            return Err(Violation::new(
                Rule::ElectionSafety,
                format!(
                    "two leaders in term {term} of group {id}: {} and {node}",
                    leader.id
                ),
            ));
        }
        let led = before.leads && before.term == term;
        let before = led.then_some(before.last);
        let base = core.base().index;
        let held = |index| match index < base {
            true => self.truth.committed_at(index),
            false => core.position(index),
        };
        self.check_log_of_leader(about, term, before, held)?;
        self.truth.leaders.insert(term, (leader, core.last()));
        Ok(())
    }

    /// A leader only appends to its log, and has what was committed in any term before its own (Raft §5.3,
    /// §5.4.3): `before` is where its log ended when it was last seen to lead this term.
    fn check_log_of_leader(
        &self,
        about: About,
        term: Term,
        before: Option<LogPosition>,
        held: impl Fn(Index) -> Option<LogPosition>,
    ) -> Outcome {
        let About { node, id } = about;
        if let Some(last) = before {
            if held(last.index) == Some(last) {
                return Ok(());
            }
            let text = format!(
                "node {node} leads term {term} of group {id} and has lost {last} from its log"
            );
            return Err(Violation::new(Rule::LeaderAppendOnly, text));
        }
        let committed = self.truth.last_committed_before(term);
        if committed.index > Index(0) && held(committed.index) != Some(committed) {
            let text = format!("node {node} leads term {term} of group {id} and lacks {committed}");
            return Err(Violation::new(Rule::LeaderCompleteness, text));
        }
        Ok(())
    }

    /// A leader whose disk is far behind a follower's gives up.
    pub(super) fn check_trailing(&mut self, about: About, core: &Raft, local: Micros) -> Outcome {
        let About { node, id } = about;
        let durable = core.durable_index();
        let peers = core.peers();
        let ahead = peers.iter().filter_map(|peer| peer.match_index).max();
        let seen = &mut self.nodes[place(node)];
        if ahead.is_none_or(|ahead| ahead <= durable) {
            seen.trails = None;
            return Ok(());
        }
        // What is under way moves; a disk that is stuck does not. And whoever was paused has not looked.
        if durable != seen.durable || local.since(seen.looked) > PAUSED_US {
            seen.trails = None;
        }
        seen.looked = local;
        let since = *seen.trails.get_or_insert(local);
        let trailed_us = local.since(since);
        if trailed_us <= self.disk_lag_us_max + TRAILING_SLACK_US {
            return Ok(());
        }
        Err(Violation::new(
            Rule::Liveness,
            format!(
                "node {node} leads group {id}, and for {trailed_us} us its disk has not had what a follower's has"
            ),
        ))
    }

    /// A vote goes to a log that is at least as up to date, and to nobody while a leader is heard.
    pub(super) fn check_choice(
        &self,
        about: About,
        message: &Message,
        pre: bool,
        local: Micros,
    ) -> Outcome {
        let About { node, id } = about;
        let seen = &self.nodes[place(node)];
        let candidate = message.to;
        let asked = self.asked.get(&(candidate, message.term, pre));
        self.check_nothing_lost(about, message, asked.copied())?;
        // Whoever voted in a term may have more of it by the time its vote is durable.
        let newer = seen.last.term == message.term && !pre;
        let behind = asked.is_none_or(|asked| {
            !asked.at_least_as_up_to_date_as(&seen.last)
                && !asked.at_least_as_up_to_date_as(&seen.last_before)
        });
        if behind && !newer {
            return Err(Violation::new(
                Rule::VoteChoice,
                format!(
                    "node {node} votes (pre-vote: {pre}) for {candidate} in term {} of group {id}, whose log \
                     ends at {asked:?}; its own ends at {}",
                    message.term, seen.last
                ),
            ));
        }
        let follows = seen.followed_before && seen.term_before.next() == message.term;
        if pre && follows && local.since(seen.heard_before) < self.sticky_us {
            return Err(Violation::new(
                Rule::NeedlessElection,
                format!(
                    "node {node} would vote for {candidate} in term {} of group {id}, and has heard of its \
                     leader {} us ago",
                    message.term,
                    local.since(seen.heard_before)
                ),
            ));
        }
        Ok(())
    }

    /// A guard has fallen, or is over. What it has lost of that it need not ask for any more, unless it is committed.
    pub(super) fn check_settled(
        &self,
        about: About,
        core: &Raft,
        before: &Seen,
    ) -> Result<LogPosition, Violation> {
        let About { node, id } = about;
        let lost = before.lost;
        let durable = core.position(core.durable_index()).unwrap_or_default();
        let fears = core
            .guard()
            .is_some_and(|guard| fears(guard, lost.term, lost.index));
        if fears || durable.at_least_as_up_to_date_as(&lost) {
            return Ok(lost);
        }
        if self.truth.committed_at(lost.index) == Some(lost) && durable.term <= lost.term {
            return Err(Violation::new(
                Rule::VoteChoice,
                format!(
                    "node {node} has lost {lost} of group {id}, which is committed, and fears for it no more: its log ends \
                     at {durable}, its guard is {:?}",
                    core.guard()
                ),
            ));
        }
        Ok(LogPosition::default())
    }

    /// Whoever has lost what it had acknowledged, or taken for durable, asks for no vote and gives none, nor a pre-vote, to
    /// whom that is not at the end of the log, or something of a later term.
    pub(super) fn check_nothing_lost(
        &self,
        about: About,
        message: &Message,
        last: Option<LogPosition>,
    ) -> Outcome {
        let About { node, id } = about;
        let lost = self.nodes[place(node)].lost;
        if last.is_some_and(|last| last.at_least_as_up_to_date_as(&lost)) {
            return Ok(());
        }
        Err(Violation::new(
            Rule::VoteChoice,
            format!(
                "node {node} has lost {lost} of group {id}, which it had promised, and in term {} helps somebody to lead \
                 whose log ends at {last:?}",
                message.term
            ),
        ))
    }

    pub(super) fn check_vote(
        &mut self,
        about: About,
        message: &Message,
        candidate: NodeId,
        medium: &Medium,
    ) -> Outcome {
        let About { node, id } = about;
        let term = message.term;
        let given = self.votes.entry((message.from, term)).or_insert(candidate);
        if *given != candidate && !medium.untrusted {
            return Err(Violation::new(
                Rule::VoteDurability,
                format!(
                    "node {node} votes for {candidate} in term {term} of group {id}, and before for {given}"
                ),
            ));
        }
        // The record, and its echo in a later flush group: one bad block hides one of them.
        let copies = medium.view.copies_of_vote(id, term, candidate);
        if copies < 2 && medium.answers() {
            return Err(Violation::new(
                Rule::SendAfterFlush,
                format!(
                    "node {node} votes for {candidate} in term {term} of group {id}, and {copies} flush \
                     groups would say so after a power cut"
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn check_ack(
        &mut self,
        about: About,
        term: Term,
        ack: &Ack,
        medium: &Medium,
    ) -> Outcome {
        let About { node, id } = about;
        let root = ack.index == Index(0) || self.truth.is_root(ack.chain);
        if root || !medium.answers() {
            return Ok(());
        }
        let known = self.truth.entry(ack.chain).map(|known| known.at);
        let Some(at) = known.filter(|at| at.index == ack.index) else {
            return Err(Violation::new(
                Rule::ProvedAck,
                format!(
                    "node {node} acknowledges entry {} of group {id} with a chain that no log has there",
                    ack.index
                ),
            ));
        };
        if !covers(&self.truth, medium, id, at) {
            return Err(Violation::new(
                Rule::SendAfterFlush,
                format!(
                    "node {node} acknowledges {at} of group {id}, and a power cut would take it"
                ),
            ));
        }
        if let Some((leader, tip)) = self.truth.leaders.get(&term)
            && !self.truth.is_on_log(at, *tip)
        {
            return Err(Violation::new(
                Rule::ProvedAck,
                format!(
                    "node {node} acknowledges {at} of group {id} to node {}, whose log of term {term} \
                     does not have it",
                    leader.id
                ),
            ));
        }
        let seen = &mut self.nodes[place(node)];
        // In the turn in which a term passes, what was due before it still leaves.
        if term < seen.term_before || seen.term < term {
            return Err(Violation::new(
                Rule::ProvedAck,
                format!(
                    "node {node} is in term {} of group {id} and acknowledges {at} in term {term}",
                    seen.term
                ),
            ));
        }
        // What a new leader made it cut in this turn is not owed, though the old one still hears of it.
        let is_cut = term < seen.term && !self.truth.is_on_log(at, seen.last);
        if seen.acked.index < at.index && !is_cut {
            seen.acked = at;
        }
        Ok(())
    }

    pub(super) fn check_sender(&self, about: About, message: &Message) -> Outcome {
        let leader = self.truth.leaders.get(&message.term);
        if leader.is_some_and(|(leader, _)| leader.id == about.node) {
            return Ok(());
        }
        Err(Violation::new(
            Rule::ElectionSafety,
            format!(
                "node {} speaks as the leader of term {} of group {}, which {:?} leads",
                about.node,
                message.term,
                about.id,
                leader.map(|(leader, _)| leader.id)
            ),
        ))
    }

    pub(super) fn check_commit_point(&self, about: About, commit: CommitPoint) -> Outcome {
        let committed = self.truth.committed_at(commit.index);
        let true_so_far = commit.index == Index(0)
            || committed.is_some_and(|committed| committed.chain == commit.chain);
        if true_so_far {
            return Ok(());
        }
        Err(Violation::new(
            Rule::CommitRule,
            format!(
                "node {} says that entry {} of group {} is committed, and {committed:?} is",
                about.node, commit.index, about.id
            ),
        ))
    }
}

/// Whether a medium holds an entry, or begins beyond it on the same log.
pub(super) fn covers(truth: &Truth, medium: &Medium, id: GroupId, at: LogPosition) -> bool {
    if at.index < medium.view.base(id).index {
        return truth.committed_at(at.index) == Some(at);
    }
    medium.view.covers(id, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About = About {
        node: NodeId(1),
        id: GroupId(1),
    };

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition {
            index: Index(index),
            term: Term(term),
            chain: Chain(u128::from(1_000 * term + index)),
        }
    }

    /// Entries 1 and 2 of term 1, the first committed in term 1, the second in term 3 with the entry after it.
    fn group() -> GroupTruth {
        let mut group = GroupTruth::default();
        let log = [at(1, 1), at(2, 1), at(3, 3)];
        let mut parent = Chain(0);
        for entry in log {
            assert_eq!(group.truth.learn(entry, parent), Ok(()));
            parent = entry.chain;
        }
        assert_eq!(group.truth.commit(at(1, 1)), Ok(()));
        assert_eq!(group.truth.commit(at(3, 3)), Ok(()));
        group
    }

    fn rule_of(term: u64, before: Option<LogPosition>, log: &[LogPosition]) -> Option<Rule> {
        let held = |index| log.iter().find(|at| at.index == index).copied();
        let checked = group().check_log_of_leader(ABOUT, Term(term), before, held);
        checked.err().map(|violation| violation.rule)
    }

    #[test]
    fn a_leader_lacks_nothing_that_was_committed_before_its_term() {
        let lacks = Some(Rule::LeaderCompleteness);
        assert_eq!(rule_of(4, None, &[at(1, 1), at(2, 1), at(3, 3)]), None);
        assert_eq!(rule_of(4, None, &[at(1, 1), at(2, 1)]), lacks);
        assert_eq!(rule_of(4, None, &[at(1, 1), at(2, 1), at(3, 2)]), lacks);
        assert_eq!(rule_of(2, None, &[]), lacks);
        // It was elected late: what term 3 committed it need not have.
        assert_eq!(rule_of(2, None, &[at(1, 1)]), None);
        assert_eq!(rule_of(3, None, &[at(1, 1)]), None);
    }

    #[test]
    fn a_leader_only_appends() {
        let lost = Some(Rule::LeaderAppendOnly);
        assert_eq!(
            rule_of(3, Some(at(2, 1)), &[at(1, 1), at(2, 1), at(3, 3)]),
            None
        );
        assert_eq!(rule_of(3, Some(at(2, 1)), &[at(1, 1)]), lost);
        assert_eq!(rule_of(3, Some(at(2, 1)), &[at(1, 1), at(2, 3)]), lost);
    }
}
