//! Settling a guard where nobody has what it asks for: the voters say what may be committed at most.
//!
//! Whoever answers has made a term durable that is higher than the guard's, so it acknowledges nothing of a term in which
//! something may be lost here. All that was committed in those was acknowledged by a quorum. Once the voters that have
//! not answered hold no quorum, in no half of any configuration that may have decided, somebody of that quorum is among
//! those that have; what is committed is never cut, so its log ends at or beyond that. Hence nothing that is committed
//! lies beyond the highest answer, and the guard may fall to it. An answer says what was, and stays true.
//!
//! Only voters count that know their whole log. The one that asks does not: it has not answered. A configuration follows
//! another by way of a joint one whose halves both had to agree (Raft §6), so that of the quorums of each stated one
//! somebody has answered who knows the next.

use super::{Raft, RoleState};
use crate::ids::{LogPosition, NodeId, Replica, Term};
use crate::io::{Guard, Undecided};
use crate::limits::CONFIGURATIONS_MAX;
use crate::membership::Membership;
use crate::message::{Body, SettleQuery, SettleReply};
use crate::mutated;
use crate::quorum::Quorum;

/// Elections that come to nothing before anybody is asked: one leader may be dead, and the next one on its way.
const LEADERLESS_MIN: u32 = 2;

/// What is known of the guard's chances.
#[derive(Debug, Default)]
pub(super) struct Settle {
    /// Election timeouts since a leader was heard of.
    leaderless: u32,
    answers: Vec<(Replica, SettleReply)>,
}

impl Settle {
    /// A leader brings what is missing, or somebody else leads soon.
    pub(super) fn on_leader(&mut self) {
        self.leaderless = 0;
    }

    fn whole(&self) -> impl Iterator<Item = &(Replica, SettleReply)> {
        self.answers.iter().filter(|(_, reply)| reply.whole)
    }
}

impl Raft {
    /// An election timeout has passed in which this replica did not campaign.
    pub(super) fn ask_to_settle(&mut self) {
        self.settle.leaderless = self.settle.leaderless.saturating_add(1);
        let votes = self.configurations.quorum().counts(self.config.replica) && !self.never_votes;
        let Some(guard) = self.guard.filter(|_| votes) else {
            return;
        };
        if self.settle.leaderless < LEADERLESS_MIN {
            return;
        }
        let is_low = self.hard_state.term <= guard.term;
        if is_low && !mutated!(self.config.mutant, SettleInAnOldTerm) {
            self.become_follower(guard.term.next());
        }
        for to in self.voters_to_ask() {
            let query = Body::SettleQuery(SettleQuery { guard });
            let message = self.message(to, self.hard_state.term, query);
            if self.outbox.hard_state_is_durable() {
                self.outbox.ready.messages.push(message);
            } else {
                self.outbox.write_hard_state(self.hard_state, Some(message));
            }
        }
    }

    /// Says where this log ends, once the term of the question will be remembered.
    pub(super) fn on_settle_query(&mut self, from: Replica, term: Term, _: &SettleQuery) {
        if self.hard_state.term < term {
            // As for a vote: nobody deposes a leader that is heard (thesis §4.2.3).
            if self.hears_a_leader() {
                return;
            }
            self.become_follower(term);
        }
        let durable = self.log.position(self.log.durable());
        let configurations = self.stated_configurations();
        // What has not settled its own guard, or cannot say who decides, tells nobody what may be committed.
        let whole = self.guard.is_none()
            && !self.never_votes
            && self.outbox.base_is_durable()
            && configurations.len() <= CONFIGURATIONS_MAX;
        let reply = Body::SettleReply(SettleReply {
            whole: whole || mutated!(self.config.mutant, SettleCountsGuarded),
            last: durable.expect("what is durable lies in the log"),
            guard: self.guard,
            configurations: configurations
                .into_iter()
                .take(CONFIGURATIONS_MAX)
                .collect(),
        });
        let reply = self.message(from.id, self.hard_state.term, reply);
        let is_durable = self.outbox.hard_state_is_durable();
        if is_durable || mutated!(self.config.mutant, SettleBeforeFlush) {
            self.outbox.ready.messages.push(reply);
        } else {
            self.outbox.write_hard_state(self.hard_state, Some(reply));
        }
    }

    /// The answer holds whatever term this replica is in by now.
    pub(super) fn on_settle_reply(&mut self, from: Replica, term: Term, reply: SettleReply) {
        let Some(guard) = self.guard else {
            return;
        };
        let is_old = term <= guard.term && !mutated!(self.config.mutant, SettleInAnOldTerm);
        if is_old || !matches!(self.role, RoleState::Follower(_)) {
            return;
        }
        let before = self
            .settle
            .answers
            .iter_mut()
            .find(|(replica, _)| *replica == from);
        match before {
            // Either holds, and nothing lies beyond the lower one.
            Some((_, before)) if before.whole => {}
            Some((_, before)) => *before = reply,
            None => {
                // A voter of some configuration, or nobody whose word is of use.
                if !self.may_have_decided(from) {
                    return;
                }
                self.settle.answers.push((from, reply));
            }
        }
        self.settle_guard(guard);
    }

    /// Lets the guard fall to what may be committed, if that is known.
    fn settle_guard(&mut self, guard: Guard) {
        if !self.may_settle() {
            return;
        }
        let Some(highest) = self.highest_answer() else {
            return;
        };
        if guard.is_met_by(&highest) {
            // Whoever said that may be elected.
            return;
        }
        self.guard = Some(Guard {
            term: highest.term,
            index: Some(highest.index),
        });
        self.release_guard();
    }

    /// Whether the voters that have not answered hold no quorum anywhere.
    fn may_settle(&self) -> bool {
        let has_answered = |replica: Replica| {
            let mut whole = self.settle.whole();
            whole.any(|(from, _)| *from == replica)
        };
        if mutated!(self.config.mutant, SettleByMinority) {
            return self.settle.whole().next().is_some();
        }
        let open = |membership: &Membership| {
            let quorum = Quorum::of(membership);
            quorum.half_agrees(|replica| !has_answered(replica))
        };
        !self.configurations_that_decide().iter().any(open)
    }

    fn highest_answer(&self) -> Option<LogPosition> {
        let last = self.settle.whole().map(|(_, reply)| reply.last);
        last.max_by_key(|last| (last.term, last.index))
    }

    /// What an operator has to decide: everybody has answered, and what was acknowledged here may be committed, or not.
    #[must_use]
    pub fn undecided(&self) -> Option<Undecided> {
        let guard = self.guard?;
        let everybody = self.voters_to_ask();
        let silent = |id: &NodeId| {
            let mut answers = self.settle.answers.iter();
            !answers.any(|(from, _)| from.id == *id)
        };
        let met = self
            .highest_answer()
            .is_some_and(|highest| guard.is_met_by(&highest));
        if self.leader.is_some() || met || everybody.iter().any(silent) {
            return None;
        }
        if self.settle.leaderless < LEADERLESS_MIN {
            return None;
        }
        let own = self.log.position(self.log.durable())?;
        let answers = self.settle.answers.iter();
        let mut ends: Vec<(NodeId, LogPosition)> =
            answers.map(|(from, reply)| (from.id, reply.last)).collect();
        ends.push((self.config.replica.id, own));
        let last = ends.iter().map(|(_, last)| *last);
        let highest = last.max_by_key(|last| (last.term, last.index))?;
        ends.retain(|(_, last)| *last == highest);
        ends.sort_unstable_by_key(|(id, _)| *id);
        Some(Undecided {
            guard,
            highest,
            holders: ends.into_iter().map(|(id, _)| id).collect(),
        })
    }

    /// The memberships from what is known to be committed on.
    fn stated_configurations(&self) -> Vec<Membership> {
        self.configurations.since(self.commit.index)
    }

    fn configurations_that_decide(&self) -> Vec<Membership> {
        let mut all = self.stated_configurations();
        for (_, reply) in self.settle.whole() {
            for membership in &reply.configurations {
                if !all.contains(membership) {
                    all.push(membership.clone());
                }
            }
        }
        all
    }

    fn may_have_decided(&self, replica: Replica) -> bool {
        let all = self.configurations_that_decide();
        all.iter().any(|membership| membership.is_voter(replica))
    }

    fn voters_to_ask(&self) -> Vec<NodeId> {
        let all = self.configurations_that_decide();
        let voters = all
            .iter()
            .flat_map(|membership| membership.voters.iter().chain(&membership.outgoing));
        let mut ids: Vec<NodeId> = voters
            .map(|member| member.replica)
            .filter(|replica| *replica != self.config.replica)
            .map(|replica| replica.id)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
