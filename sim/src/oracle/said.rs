//! What others have said, without which a replica may not do what it does: grants behind a candidacy and a
//! leadership, acks behind a match, a message behind a new term.

use std::collections::{BTreeMap, BTreeSet};

use logdrive_raft::io::Role;
use logdrive_raft::message::Body;
use logdrive_raft::{Index, Message, Micros, NodeId, Raft, ReplicationSession, Term};

use super::{About, GroupTruth, Outcome, Rule, Seen, Violation, is_majority, place};

/// What has reached replicas so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Who has granted a pre-vote (`true`) or a vote, by candidate and term.
    grants: BTreeMap<(NodeId, Term, bool), BTreeSet<NodeId>>,
    /// How far a follower has acknowledged, by leader, term, follower and session.
    acks: BTreeMap<(NodeId, Term, NodeId, ReplicationSession), Index>,
    /// What a leader took a follower to have when it was last looked at, by leader and follower.
    matches: BTreeMap<(NodeId, NodeId), Match>,
    /// When a replica last took in anything, by replica and sender.
    heard: BTreeMap<(NodeId, NodeId), Micros>,
    /// Who has sent what a replica has not taken in yet, by replica: it may be paused.
    unheard: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

/// What a leader takes a follower to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Match {
    term: Term,
    session: ReplicationSession,
    index: Index,
}

impl Said {
    /// A message reaches a replica.
    pub(super) fn arrives(&mut self, node: NodeId, message: &Message) {
        let (from, term) = (message.from.id, message.term);
        self.unheard.entry(node).or_default().insert(from);
        match &message.body {
            Body::VoteReply(reply) if reply.granted => {
                let granted = self.grants.entry((node, term, reply.pre)).or_default();
                granted.insert(from);
            }
            Body::Ack(ack) => {
                let key = (node, term, from, ack.session);
                let index = self.acks.entry(key).or_default();
                *index = ack.index.max(*index);
            }
            _ => {}
        }
    }

    /// A replica has taken in what had reached it, when its clock said so.
    pub(super) fn taken_in(&mut self, node: NodeId, local: Micros) {
        let Some(unheard) = self.unheard.get_mut(&node) else {
            return;
        };
        while let Some(from) = unheard.pop_first() {
            self.heard.insert((node, from), local);
        }
    }

    /// Whether a quorum, the candidate included, has said yes.
    fn has_quorum(&self, core: &Raft, candidate: NodeId, pre: bool) -> bool {
        let granted = self.grants.get(&(candidate, core.term(), pre));
        let yes = |id: NodeId| id == candidate || granted.is_some_and(|by| by.contains(&id));
        is_majority(core.membership(), yes)
    }
}

impl Seen {
    /// Takes note of the terms that a message may bring along.
    pub(super) fn hears_of_term(&mut self, message: &Message) {
        match &message.body {
            Body::VoteRequest(request) if request.pre => {}
            Body::VoteReply(reply) if reply.pre && reply.granted => {}
            Body::VoteRequest(_) | Body::SettleQuery(_) => {
                self.asked_in = self.asked_in.max(message.term);
            }
            Body::SettleReply(_) => {}
            _ => self.told_of = self.told_of.max(message.term),
        }
    }
}

impl GroupTruth {
    /// A term begins with a candidate whom a quorum has told that it would win (thesis §9.6), everybody else
    /// learns of it by a message, and nobody leads it without a quorum of votes (Raft §5.2).
    pub(super) fn check_new_term(
        &self,
        about: About,
        core: &Raft,
        before: &Seen,
        local: Micros,
    ) -> Outcome {
        let About { node, id } = about;
        let term = core.term();
        let vote = core.hard_state().vote.map(|vote| vote.id);
        let leads = core.role() == Role::Leader;
        let led = before.leads && before.term == term;
        if leads && !led && !self.said.has_quorum(core, node, false) {
            return Err(Violation::new(
                Rule::ElectionSafety,
                format!(
                    "node {node} leads term {term} of group {id}, and no quorum has voted for it"
                ),
            ));
        }
        if !before.alive || term <= before.term {
            return Ok(());
        }
        if vote == Some(node) {
            if self.said.has_quorum(core, node, true) {
                return Ok(());
            }
            return Err(Violation::new(
                Rule::NeedlessElection,
                format!(
                    "node {node} campaigns in term {term} of group {id}, and no quorum has said that it \
                     would win"
                ),
            ));
        }
        // Whoever is guarded asks in the term after that of its guard.
        let settles = before.guard.is_some_and(|guard| guard.term.next() == term);
        if settles && vote.is_none() {
            return Ok(());
        }
        // A snapshot tells of the term that it ends in, also if a disk that lies made its sender forget it.
        let heard_of = before.told_of.max(before.asked_in).max(core.base().term);
        if heard_of < term {
            return Err(Violation::new(
                Rule::NeedlessElection,
                format!(
                    "node {node} enters term {term} of group {id}, and has heard of {heard_of} at most"
                ),
            ));
        }
        // In this turn it may have lost its leader before it was asked, but only by a message.
        let heard_us = local.since(before.heard_until_turn);
        if vote.is_some() && before.follows && before.told_of < term && heard_us < self.sticky_us {
            return Err(Violation::new(
                Rule::NeedlessElection,
                format!(
                    "node {node} votes for {vote:?} in term {term} of group {id}, and had heard of its leader \
                     {heard_us} us ago"
                ),
            ));
        }
        Ok(())
    }

    /// A leader that no quorum has said anything to for an election timeout gives up (thesis §6.2).
    pub(super) fn check_followed(&self, about: About, core: &Raft, local: Micros) -> Outcome {
        let About { node, id } = about;
        let since = self.nodes[place(node)].leads_since;
        let silent_us = |peer: NodeId| {
            let heard = self.said.heard.get(&(node, peer)).copied();
            local.since(heard.unwrap_or_default().max(since))
        };
        let membership = core.membership();
        if is_majority(membership, |peer| {
            peer == node || silent_us(peer) <= FOLLOWED_US
        }) {
            return Ok(());
        }
        Err(Violation::new(
            Rule::Liveness,
            format!(
                "node {node} leads term {} of group {id}, and no quorum has said anything to it for \
                 {FOLLOWED_US} us",
                core.term()
            ),
        ))
    }

    /// What a leader takes a follower to have, the follower has acknowledged to it in this very session, and
    /// while that lasts it does not become less (DESIGN §5).
    pub(super) fn check_matches(&mut self, about: About, core: &Raft) -> Outcome {
        let About { node, id } = about;
        let term = core.term();
        for peer in core.peers() {
            let (follower, session) = (peer.replica.id, peer.session);
            let Some(index) = peer.match_index else {
                continue;
            };
            let now = Match {
                term,
                session,
                index,
            };
            let before = self.said.matches.insert((node, follower), now);
            if before == Some(now) {
                continue;
            }
            let acknowledged = self.said.acks.get(&(node, term, follower, session));
            if acknowledged.is_none_or(|acknowledged| *acknowledged < index) {
                return Err(Violation::new(
                    Rule::ProvedAck,
                    format!(
                        "node {node} leads term {term} of group {id} and takes node {follower} to have entry \
                         {index}, which has acknowledged {acknowledged:?} in this session"
                    ),
                ));
            }
            let less = before.is_some_and(|before| {
                (before.term, before.session) == (term, session) && index < before.index
            });
            if less {
                return Err(Violation::new(
                    Rule::Monotone,
                    format!(
                        "node {node} leads group {id} and took node {follower} to have {before:?}, and now \
                         entry {index}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The longest election timeout, and what heartbeats, turns and a clock that runs fast add to it.
const FOLLOWED_US: u64 = 450_000;
