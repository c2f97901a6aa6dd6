//! Elections: pre-votes, then votes (Raft §5.2, thesis §9.6).

use super::{Raft, RoleState};
use crate::ids::{Replica, Term};
use crate::io::HardState;
use crate::message::{Body, Message, VoteReply, VoteRequest};
use crate::mutated;
use crate::quorum::Quorum;

/// Who has agreed so far. Counted by (number, incarnation); a second answer counts once.
#[derive(Debug, Default)]
pub(super) struct Votes {
    granted: Vec<Replica>,
}

impl Votes {
    fn add(&mut self, replica: Replica, quorum: &Quorum) {
        if quorum.counts(replica) && !self.granted.contains(&replica) {
            self.granted.push(replica);
        }
    }
}

impl Raft {
    pub(super) fn on_election_timeout(&mut self) {
        self.reset_election_timer();
        if matches!(self.role, RoleState::Candidate(_)) && !self.outbox.hard_state_is_durable() {
            // Nobody has been asked yet. Another term would only have to wait for the same disk.
            return;
        }
        let sits_out = std::mem::take(&mut self.sits_out);
        // Whoever has no state to serve from cannot lead.
        let votes = self.configurations.quorum().counts(self.config.replica);
        if votes && self.may_campaign() && self.compaction.has_state() && !sits_out {
            self.become_pre_candidate();
        } else {
            self.become_follower(self.hard_state.term);
            self.ask_to_settle();
        }
    }

    /// Asks whether an election could be won, without disturbing anybody by a new term.
    fn become_pre_candidate(&mut self) {
        self.leader = None;
        self.role = RoleState::PreCandidate(Votes::default());
        let term = self.hard_state.term.next();
        for to in self.other_voters() {
            let request = self.vote_request(to, term, true);
            self.outbox.ready.messages.push(request);
        }
        self.on_pre_vote_granted(self.config.replica, term);
    }

    pub(super) fn on_pre_vote_granted(&mut self, from: Replica, term: Term) {
        let asked_for = self.hard_state.term.next();
        if term == self.hard_state.term && mutated!(self.config.mutant, PreVoteCountsAsVote) {
            return self.on_vote(from);
        }
        if (term == asked_for || mutated!(self.config.mutant, PreVoteAnyTerm))
            && let RoleState::PreCandidate(votes) = &mut self.role
        {
            votes.add(from, self.configurations.quorum());
            if self.has_quorum_of_votes() {
                self.become_candidate();
            }
        }
    }

    /// The requests wait for the disk as the own vote does. They name where this log ends; a candidate
    /// that crashed, came back shorter and asked in the same term again would be elected on answers that
    /// were given for what it has lost.
    fn become_candidate(&mut self) {
        self.role = RoleState::Candidate(Votes::default());
        self.leader = None;
        self.hard_state = HardState {
            term: self.hard_state.term.next(),
            vote: Some(self.config.replica),
        };
        self.outbox.write_hard_state(self.hard_state, None);
        for to in self.other_voters() {
            let request = self.vote_request(to, self.hard_state.term, false);
            self.outbox.write_hard_state(self.hard_state, Some(request));
        }
    }

    /// The own vote counts once it can no longer be forgotten, also when it is the only one.
    pub(super) fn count_own_vote(&mut self) {
        if self.outbox.hard_state_is_durable() {
            // The requests leave now, and deserve a whole timeout.
            self.reset_election_timer();
            self.on_vote(self.config.replica);
        }
    }

    pub(super) fn on_vote_reply(&mut self, from: Replica, reply: &VoteReply) {
        if reply.granted && !reply.pre {
            self.on_vote(from);
        }
    }

    fn on_vote(&mut self, from: Replica) {
        if let RoleState::Candidate(votes) = &mut self.role {
            votes.add(from, self.configurations.quorum());
            if self.has_quorum_of_votes() {
                self.become_leader();
            }
        }
    }

    fn has_quorum_of_votes(&self) -> bool {
        match &self.role {
            RoleState::PreCandidate(votes) | RoleState::Candidate(votes)
                if mutated!(self.config.mutant, HalfElects) =>
            {
                self.membership().voters.len() <= 2 * votes.granted.len()
            }
            RoleState::PreCandidate(votes) | RoleState::Candidate(votes) => self
                .configurations
                .quorum()
                .agrees(|replica| votes.granted.contains(&replica)),
            RoleState::Follower(_) | RoleState::Leader(_) => false,
        }
    }

    fn other_voters(&self) -> Vec<Replica> {
        let quorum = self.configurations.quorum();
        let mut replicas = self.membership().replicas();
        replicas.retain(|replica| *replica != self.config.replica && quorum.counts(*replica));
        replicas
    }

    fn vote_request(&self, to: Replica, term: Term, pre: bool) -> Message {
        let last = self.log.last();
        self.message(to.id, term, Body::VoteRequest(VoteRequest { pre, last }))
    }
}
