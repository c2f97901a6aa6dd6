//! Whose message it is, and what its term means (Raft §5.1).

use super::follower::Follower;
use super::{Raft, RoleState};
use crate::ids::{LogPosition, Replica, Round, Term};
use crate::message::{Body, HeartbeatReply, Message, Reject, VoteReply};
use crate::mutated;

/// No cluster gets here by elections. A peer that says so would leave no room for the next one.
pub(super) const TERM_MAX: Term = Term(u64::MAX / 2);

impl Raft {
    pub(super) fn on_message(&mut self, message: Message) {
        let Message {
            from,
            boot,
            to,
            group,
            term,
            body,
        } = message;
        let me = self.config.replica;
        if self.halted.is_some() || to != me.id || from.id == me.id || group != self.config.group {
            return;
        }
        if TERM_MAX < term {
            return;
        }
        // The configuration decides who is counted, never who may talk. Only who is known to have been
        // removed is refused: it cannot know better, and would disturb for ever.
        if self.membership().removed.contains(&from) {
            return;
        }
        // Questions about a term not entered yet: neither asking nor agreeing enters it.
        match &body {
            Body::VoteRequest(request) => return self.on_vote_request(from, term, request),
            Body::VoteReply(reply)
                if !reply.pre
                    && term < self.hard_state.term
                    && mutated!(self.config.mutant, StaleVoteCounts) =>
            {
                return self.on_vote_reply(from, reply);
            }
            Body::VoteReply(reply) if reply.pre && reply.granted => {
                return self.on_pre_vote_granted(from, term);
            }
            Body::VoteReply(reply)
                if reply.pre && mutated!(self.config.mutant, PreVoteRefusalIgnored) =>
            {
                return;
            }
            // The question enters a term as one for a vote does, and the answer holds in any.
            Body::SettleQuery(query) => return self.on_settle_query(from, term, query),
            Body::SettleReply(reply) => return self.on_settle_reply(from, term, reply.clone()),
            // Of no term: for whoever drives this core.
            Body::GenesisQuery(_)
            | Body::GenesisReply(_)
            | Body::GenesisOffer(_)
            | Body::Transfer(_)
            | Body::Repair(_) => return,
            _ => {}
        }
        if term < self.hard_state.term {
            return self.answer_old_term(from, &body);
        }
        if self.hard_state.term < term {
            self.become_follower(term);
        }
        match body {
            Body::Append(append) => {
                if self.follow(from) {
                    self.on_append(from, append);
                }
            }
            Body::Heartbeat(heartbeat) => {
                if self.follow(from) {
                    self.on_heartbeat(from, &heartbeat);
                }
            }
            Body::Behind(behind) => {
                if self.follow(from) {
                    self.on_behind(from, &behind);
                }
            }
            Body::VoteReply(reply) => self.on_vote_reply(from, &reply),
            Body::Ack(ack) => self.on_ack(from, boot, &ack),
            Body::Reject(reject) => self.on_reject(from, boot, &reject),
            Body::HeartbeatReply(reply) => self.on_heartbeat_reply(from, boot, &reply),
            Body::VoteRequest(_)
            | Body::SettleQuery(_)
            | Body::SettleReply(_)
            | Body::GenesisQuery(_)
            | Body::GenesisReply(_)
            | Body::GenesisOffer(_)
            | Body::Transfer(_)
            | Body::Repair(_) => {}
        }
    }

    /// A leader of a passed term is told so. Without that, pre-votes and check-quorum together would lock
    /// this replica out: it refuses the leader, and the others refuse its candidacy.
    fn answer_old_term(&mut self, from: Replica, body: &Body) {
        let body = match body {
            Body::Append(append) => Body::Reject(Reject {
                session: append.session,
                prev_index: append.prev.index,
                hint: LogPosition::default(),
                round: Round(0),
            }),
            Body::Heartbeat(heartbeat) => Body::HeartbeatReply(HeartbeatReply {
                round: heartbeat.round,
            }),
            Body::Behind(behind) => Body::HeartbeatReply(HeartbeatReply {
                round: behind.round,
            }),
            _ => return,
        };
        self.send(from.id, body);
    }

    /// Whoever appends or sends heartbeats in the current term leads it: there is at most one. Says
    /// whether `from` is followed now.
    fn follow(&mut self, from: Replica) -> bool {
        if matches!(self.role, RoleState::Leader(_)) || self.leader.is_some_and(|led| led != from) {
            // Two leaders of one term: whatever that is, it is not Raft, and nobody is believed.
            return false;
        }
        if !matches!(self.role, RoleState::Follower(_)) {
            self.role = RoleState::Follower(Follower::default());
        }
        self.leader = Some(from);
        self.leader_heard = self.now;
        self.sits_out = false;
        self.settle.on_leader();
        self.reset_election_timer();
        true
    }

    pub(super) fn deny_vote(&mut self, to: Replica, pre: bool) {
        let granted = false;
        self.send(to.id, Body::VoteReply(VoteReply { pre, granted }));
    }
}
