//! Following a leader: where its appends fit, what may be said of them, how far they are committed.
//!
//! Arrival proves nothing. `proved` is the last index at which this log was found equal to this leader's,
//! in this replication session; acks never go beyond it, nor beyond what is durable.

use super::{Raft, RoleState, membership_in};
use crate::entry::Entry;
use crate::ids::{Index, LogPosition, Replica, ReplicationSession, Round};
use crate::io::{HaltReason, SnapshotWanted};
use crate::message::{Ack, Append, Behind, Body, CommitPoint, Heartbeat, HeartbeatReply, Reject};
use crate::mutated;

/// What a follower knows of its leader. Forgotten with the term.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The highest session seen. What belongs to an earlier one is late and proves nothing.
    session: Option<ReplicationSession>,
    /// The last index found equal to the leader's log in that session.
    pub(super) proved: Option<Index>,
    /// Where the leader's log ended when it first said that it had heard of the boot that this is.
    pub(super) brings: Option<Index>,
    /// The last index for which an ack in that session has left, or lies in a write.
    promised: Option<Index>,
    /// The last append that could not be placed followed this index.
    rejected: Option<Index>,
    /// An append deserved an answer before this term was durable.
    owes_ack: bool,
    /// The newest round seen.
    round: Round,
}

impl Follower {
    pub(super) fn check_invariants(&self, last: Index) {
        assert!(self.proved.is_none_or(|proved| proved <= last));
        assert!(self.promised <= self.proved);
    }
}

/// Where an append fits into this log.
enum Place {
    /// Its entries follow what is held, once so many of them are skipped.
    After { skip: usize },
    /// It does not, and this is the last place that may agree.
    Nowhere { hint: LogPosition },
    /// It contradicts what is committed here.
    AgainstCommitted { index: Index },
    /// The sender's log begins with another genesis, or its entries do not follow each other.
    Foreign,
}

impl Raft {
    pub(super) fn on_append(&mut self, from: Replica, append: Append) {
        if self.is_rolled_back(from, append.heard) {
            return;
        }
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        if follower
            .session
            .is_some_and(|session| append.session < session)
        {
            return;
        }
        if follower.session != Some(append.session) {
            *follower = Follower {
                session: Some(append.session),
                brings: follower.brings,
                round: follower.round,
                ..Follower::default()
            };
        }
        follower.round = follower.round.max(append.round);
        self.note_what_is_brought(append.heard, append.last_index);
        match self.place(&append) {
            Place::After { skip } => self.accept(from, append, skip),
            Place::Nowhere { hint } => {
                // What lies between may come back without the leader, and then it need not be sent.
                if self.waits_to_regain() && self.log.last().index < append.prev.index {
                    self.note_rejected(append.prev.index);
                } else {
                    self.reject(from, append.prev.index, hint);
                }
                self.learn_commit(from, append.commit);
            }
            Place::AgainstCommitted { index } => self.halt_on_conflict(from, index),
            Place::Foreign => {}
        }
    }

    pub(super) fn on_heartbeat(&mut self, from: Replica, heartbeat: &Heartbeat) {
        if self.is_rolled_back(from, heartbeat.heard) {
            return;
        }
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        follower.round = follower.round.max(heartbeat.round);
        let round = heartbeat.round;
        self.send(from.id, Body::HeartbeatReply(HeartbeatReply { round }));
        self.note_what_is_brought(heartbeat.heard, heartbeat.last_index);
        self.release_guard();
        self.learn_commit(from, heartbeat.commit);
    }

    fn reject(&mut self, leader: Replica, prev_index: Index, hint: LogPosition) {
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        let Some(session) = follower.session else {
            return;
        };
        follower.rejected = Some(prev_index);
        let round = follower.round;
        let reject = Body::Reject(Reject {
            session,
            prev_index,
            hint,
            round,
        });
        self.send(leader.id, reject);
    }

    fn note_rejected(&mut self, prev_index: Index) {
        if let RoleState::Follower(follower) = &mut self.role {
            follower.rejected = Some(prev_index);
        }
    }

    /// The leader's log begins beyond what this one needs next.
    pub(super) fn on_behind(&mut self, from: Replica, behind: &Behind) {
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        follower.round = follower.round.max(behind.round);
        // Late, if something at or beyond that has been proved in this session.
        let late = follower.session != Some(behind.session)
            || follower
                .proved
                .is_some_and(|proved| behind.base.index <= proved);
        if late || self.log.holds(&behind.base) || behind.base.index <= self.log.base().index {
            return;
        }
        self.outbox.ready.wants_snapshot = Some(SnapshotWanted {
            leader: from.id,
            base: behind.base,
        });
    }

    /// The log begins elsewhere, and what was proved of the one before says nothing of it. Whoever waits for a
    /// question to be answered otherwise hears now where to go on.
    pub(super) fn begin_anew(&mut self) {
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        *follower = Follower {
            session: follower.session,
            brings: follower.brings,
            rejected: follower.rejected,
            round: follower.round,
            ..Follower::default()
        };
    }

    /// Answers again what could not be placed, now that a snapshot is there.
    pub(super) fn hint_again(&mut self) {
        let RoleState::Follower(follower) = &self.role else {
            return;
        };
        if let (Some(leader), Some(prev_index), None) =
            (self.leader, follower.rejected, follower.proved)
        {
            self.reject(leader, prev_index, self.log.last());
        }
    }

    /// Says what is durable and proved by now and has not been said.
    pub(super) fn send_owed_ack(&mut self) {
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        let (Some(leader), Some(proved)) = (self.leader, follower.proved) else {
            return;
        };
        // The first ack of a term says that the term itself will be remembered.
        // So does the log that the ack speaks of, if it begins elsewhere since.
        if !self.outbox.hard_state_is_durable() || !self.outbox.base_is_durable() {
            return;
        }
        let index = if mutated!(self.config.mutant, AckDurableEnd)
            || mutated!(self.config.mutant, AckChainUnchecked)
        {
            self.log.durable()
        } else {
            proved.min(self.log.durable())
        };
        if !follower.owes_ack && Some(index) <= follower.promised {
            return;
        }
        follower.owes_ack = false;
        follower.promised = follower.promised.max(Some(index.min(proved)));
        if let Some(ack) = self.ack(index) {
            self.send(leader.id, ack);
        }
    }

    fn ack(&self, index: Index) -> Option<Body> {
        let RoleState::Follower(follower) = &self.role else {
            return None;
        };
        Some(Body::Ack(Ack {
            session: follower.session?,
            index,
            chain: self.log.position(index)?.chain,
            round: follower.round,
        }))
    }

    /// Decides about an append without changing anything.
    fn place(&self, append: &Append) -> Place {
        if self.log.last().index < append.prev.index {
            return self.nowhere(append.prev, self.log.last().index);
        }
        // The chain in a header that a peer sent proves nothing by itself, so each is computed again.
        let mut previous = append.prev;
        for entry in &append.entries {
            let ours = entry.header().group == self.config.group;
            if !ours || self.hard_state.term < entry.term() || !entry.follows(&previous) {
                return Place::Foreign;
            }
            previous = entry.position();
        }
        let (base, prev) = (self.log.base(), append.prev);
        if prev.index < base.index {
            // What the base covers is skipped, if the append reaches it at all.
            let below = base.index.0 - prev.index.0;
            let below = usize::try_from(below).unwrap_or(usize::MAX);
            return match append.entries.get(below - 1).map(Entry::position) {
                None => Place::Nowhere { hint: base },
                Some(at_base) if at_base == base => self.place_entries(append, below),
                Some(_) => Place::AgainstCommitted { index: base.index },
            };
        }
        match self.log.position(prev.index) {
            Some(held) if held == prev => self.place_entries(append, 0),
            // Both logs are empty here, and already differ: there are two geneses.
            Some(_) if prev.index == Index(0) => Place::Foreign,
            Some(_) if prev.index <= self.settled() => {
                Place::AgainstCommitted { index: prev.index }
            }
            _ => self.nowhere(prev, Index(prev.index.0 - 1)),
        }
    }

    /// Nothing up to `through` whose term is beyond that of `prev` can be in the leader's log, and what is
    /// committed must be.
    fn nowhere(&self, prev: LogPosition, through: Index) -> Place {
        let hint = self.log.last_of_term_at_most(prev.term, through);
        let hint = if hint.index < self.commit.index {
            self.commit
        } else {
            hint
        };
        Place::Nowhere { hint }
    }

    /// What the log already holds is skipped, and so never written again. The first entry that differs
    /// replaces what is there, unless that is committed.
    fn place_entries(&self, append: &Append, below: usize) -> Place {
        let mut skip = below;
        for entry in &append.entries[below..] {
            if mutated!(self.config.mutant, AppendTruncates) && self.commit.index < entry.index() {
                break;
            }
            match self.log.position(entry.index()) {
                Some(held) if held == entry.position() => skip += 1,
                Some(_) if entry.index() <= self.settled() => {
                    let index = entry.index();
                    return Place::AgainstCommitted { index };
                }
                // A leader's log does not change within its term: this one contradicts itself.
                Some(_) if self.has_proved(entry.index()) => return Place::Foreign,
                _ => break,
            }
        }
        Place::After { skip }
    }

    fn has_proved(&self, index: Index) -> bool {
        match &self.role {
            RoleState::Follower(follower) => Some(index) <= follower.proved,
            _ => false,
        }
    }

    fn accept(&mut self, from: Replica, append: Append, skip: usize) {
        let end = Index(append.prev.index.0 + append.entries.len() as u64);
        let end = end.max(self.log.base().index);
        let is_new = skip < append.entries.len();
        for (place, entry) in append.entries.into_iter().skip(skip).enumerate() {
            let membership = match membership_in(&entry) {
                Ok(membership) => membership,
                Err(reason) => return self.halt(reason),
            };
            if place == 0 && entry.index() <= self.log.last().index {
                self.truncate_before(entry.index());
            }
            self.append(entry, membership);
        }
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        follower.proved = follower.proved.max(Some(end));
        if mutated!(self.config.mutant, AppendTruncates) {
            follower.proved = Some(end);
            follower.promised = None;
        }
        if is_new {
            // One ack for all that is proved, with the last of it: writes become durable in order.
            let proved = self.log.last().index;
            assert!(follower.proved == Some(proved));
            follower.promised = Some(proved);
            let ack = self.ack(proved).expect("the session's last entry is held");
            let ack = self.message(from.id, self.hard_state.term, ack);
            if mutated!(self.config.mutant, AckBeforeFlush) {
                self.outbox.ready.messages.push(ack);
            } else {
                self.outbox.ack_when_written(ack);
            }
        } else {
            follower.owes_ack = true;
            self.send_owed_ack();
        }
        // All that the leader has may have been here, and durable, before it said so.
        self.release_guard();
        self.learn_commit(from, append.commit);
    }

    /// A leader's log replaces what differs (Raft §5.3), whether or not that was acknowledged, but never
    /// what is committed: [`Raft::place`] has seen to that.
    pub(super) fn truncate_before(&mut self, index: Index) {
        assert!(self.settled() < index);
        let last = Index(index.0 - 1);
        if mutated!(self.config.mutant, TruncateCommitted) && last < self.commit.index {
            self.commit = self.log.position(last).expect("`place` has looked");
        }
        self.log.truncate(last);
        self.configurations.truncate(last);
        let before = self.outbox.ready.truncated_from;
        self.outbox.ready.truncated_from = Some(before.map_or(index, |earlier| earlier.min(index)));
    }

    /// What no leader may replace: it is committed.
    fn settled(&self) -> Index {
        if mutated!(self.config.mutant, TruncateCommitted) {
            return self.log.base().index;
        }
        if mutated!(self.config.mutant, DurableIsSettled) {
            return self.commit.index.max(self.log.durable());
        }
        self.commit.index
    }

    /// The commit moves by chain, or to what was proved against this leader's log.
    fn learn_commit(&mut self, from: Replica, commit: CommitPoint) {
        let RoleState::Follower(follower) = &self.role else {
            return;
        };
        let held = self.log.position(commit.index);
        let agrees = held.is_some_and(|held| {
            held.chain == commit.chain || mutated!(self.config.mutant, CommitWithoutChain)
        });
        if commit.index <= self.commit.index {
            // A leader holds all that is committed. One that has something else there has lost it.
            let contradicts = held.is_some() && !agrees && commit.index != Index(0);
            if contradicts && !mutated!(self.config.mutant, TruncateCommitted) {
                self.halt_on_conflict(from, commit.index);
            }
            return;
        }
        let through = if agrees {
            commit.index
        } else {
            // This log is shorter, or goes another way somewhere after what was proved.
            let proved = if mutated!(self.config.mutant, CommitNotClamped) {
                self.log.last().index
            } else {
                follower.proved.unwrap_or_default()
            };
            if held.is_some() && commit.index <= proved {
                return;
            }
            proved.min(commit.index)
        };
        if self.commit.index < through {
            let position = self
                .log
                .position(through)
                .expect("proved lies within the log");
            self.set_commit(position);
        }
    }

    fn halt_on_conflict(&mut self, leader: Replica, index: Index) {
        self.halt(HaltReason::CommittedConflict {
            leader,
            term: self.hard_state.term,
            index,
            commit: self.commit.index,
        });
    }
}
