//! Who gets this replica's vote (Raft §5.2, §5.4.1), and who would (thesis §9.6).
//!
//! Both answers compare the log as it was *accepted*, what is still on its way to the disk included: an
//! ack for that may yet leave, and a leader count it.

use super::{Raft, RoleState};
use crate::ids::{LogPosition, Replica, Term};
use crate::io::HardState;
use crate::message::{Body, VoteReply, VoteRequest};
use crate::mutated;

impl Raft {
    pub(super) fn on_vote_request(&mut self, from: Replica, term: Term, request: &VoteRequest) {
        if request.pre {
            self.on_pre_vote_request(from, term, request);
        } else {
            self.on_real_vote_request(from, term, request);
        }
    }

    /// Promises nothing and changes nothing, so nothing has to be durable before the answer.
    fn on_pre_vote_request(&mut self, from: Replica, term: Term, request: &VoteRequest) {
        let granted = self.hard_state.term < term
            && !self.never_votes
            && !self.hears_a_leader()
            && self.is_outdone_by(&request.last);
        if !granted {
            return self.deny_vote(from, true);
        }
        let body = Body::VoteReply(VoteReply { pre: true, granted });
        let message = self.message(from.id, term, body);
        self.outbox.ready.messages.push(message);
    }

    fn on_real_vote_request(&mut self, from: Replica, term: Term, request: &VoteRequest) {
        if self.hard_state.term < term {
            // Stickiness: while a leader is heard, nobody deposes it by a term alone (thesis §4.2.3).
            if self.hears_a_leader() && !mutated!(self.config.mutant, RealVoteNotSticky) {
                return;
            }
            self.become_follower(term);
        }
        let vote = self.hard_state.vote;
        let granted = term == self.hard_state.term
            && self.leader.is_none()
            && !self.never_votes
            && vote.is_none_or(|vote| vote == from)
            && self.is_outdone_by(&request.last);
        if !granted {
            return self.deny_vote(from, false);
        }
        let reply = Body::VoteReply(VoteReply {
            pre: false,
            granted,
        });
        if vote.is_none() {
            self.become_follower(term);
            self.hard_state.vote = Some(from);
            self.reset_election_timer();
            let reply = self.message(from.id, term, reply);
            let mut written = self.hard_state;
            if mutated!(self.config.mutant, VoteNotWritten) {
                written = HardState { term, vote: None };
            }
            if mutated!(self.config.mutant, VoteBeforeFlush) {
                self.outbox.ready.messages.push(reply);
                return self.outbox.write_hard_state(written, None);
            }
            self.outbox.write_hard_state(written, Some(reply));
        } else if self.outbox.hard_state_is_durable() {
            self.send(from.id, reply);
        }
        // Else the same answer already waits for the disk.
    }

    /// Whether a log that ends at `other` is at least as up to date as this one (Raft §5.4.1), and as this one was
    /// before something of it was lost.
    fn is_outdone_by(&self, other: &LogPosition) -> bool {
        let last = self.log.last();
        if mutated!(self.config.mutant, VoteByDurableLog) {
            let durable = self.log.position(self.log.durable());
            return other.at_least_as_up_to_date_as(&durable.expect("durable lies in the log"));
        }
        if mutated!(self.config.mutant, VoteByLength) {
            return last.index <= other.index;
        }
        other.at_least_as_up_to_date_as(&last) && self.guard_is_met_by(other)
    }

    /// Stickiness lasts the *minimum* election timeout: a longer one would refuse the first candidate
    /// after a leader's death. A leader that has lost its quorum finds out by itself.
    pub(super) fn hears_a_leader(&self) -> bool {
        if mutated!(self.config.mutant, StickinessIgnored) {
            return false;
        }
        matches!(self.role, RoleState::Leader(_))
            || self.leader.is_some()
                && self.now.since(self.leader_heard) < self.config.election_timeout_min_us
    }
}
