//! The tail guard: what this replica may have acknowledged and lost, and when it is back.
//!
//! A leader counts what was acknowledged once, so a log that came back shorter must not elect anybody who lacks
//! it. Only what is durable ends that: a log at or beyond the guard, or all that a leader has.

use super::{Raft, RoleState};
use crate::ids::{Boot, Index, LogPosition, Replica};
use crate::io::{Guard, HaltReason};
use crate::mutated;

impl Raft {
    /// What may have been acknowledged by this replica and is not in its log, as far as it has to be feared.
    #[must_use]
    pub fn guard(&self) -> Option<Guard> {
        self.guard
    }

    /// Whether this replica may ask for votes: it knows what it has voted and what it has acknowledged.
    pub(super) fn may_campaign(&self) -> bool {
        let guarded = self.guard.is_some() && !mutated!(self.config.mutant, GuardIgnored);
        !self.never_votes && !guarded
    }

    /// Whether a log that ends here has all that was acknowledged by this one.
    pub(super) fn guard_is_met_by(&self, last: &LogPosition) -> bool {
        let Some(guard) = self.guard else {
            return true;
        };
        if mutated!(self.config.mutant, GuardByLength) {
            return guard.index.is_none_or(|index| index <= last.index);
        }
        guard.is_met_by(last) || mutated!(self.config.mutant, GuardIgnored)
    }

    /// Ends the guard once it is met. What became durable is asked about, never what arrived.
    pub(super) fn release_guard(&mut self) {
        let Some(guard) = self.guard else {
            return;
        };
        // Where the log begins elsewhere since, it is not durable before its base is.
        if !self.outbox.base_is_durable() || mutated!(self.config.mutant, GuardNeverEnds) {
            return;
        }
        let durable = self.log.position(self.log.durable());
        let durable = durable.expect("what is durable lies in the log");
        if guard.is_met_by(&durable) || self.has_all_of_its_leader(&durable) {
            self.guard = None;
            self.outbox.ready.guard_over = Some(guard);
        }
    }

    /// Whether the leader has heard of a later boot than this one. Every opening takes a higher one, durably, so what this
    /// replica acknowledged and voted since then is gone without a trace, and nobody may count on it any more.
    pub(super) fn is_rolled_back(&mut self, leader: Replica, heard: Option<Boot>) -> bool {
        let boot = self.config.boot;
        let Some(heard) = heard.filter(|heard| boot < *heard) else {
            return false;
        };
        if mutated!(self.config.mutant, RollbackIgnored) {
            return false;
        }
        self.halt(HaltReason::RolledBack {
            leader,
            term: self.hard_state.term,
            heard,
            boot,
        });
        true
    }

    /// Takes note of where a leader's log ends that has heard of this boot. What was sent before may be late, and says
    /// nothing of what was acknowledged before the boot and after that.
    pub(super) fn note_what_is_brought(&mut self, heard: Option<Boot>, last: Index) {
        let RoleState::Follower(follower) = &mut self.role else {
            return;
        };
        if heard == Some(self.config.boot) {
            follower.brings = follower.brings.or(Some(last));
        }
    }

    /// Whether the log is equal to the leader's through where that one ended when it had heard of this boot. Whatever was
    /// acknowledged before, to this leader or to one before it, and may be committed, lies there: a leader cuts nothing
    /// in its term, and has all that is committed (Raft §5.4.3). What it appends later is counted by acks of this boot.
    fn has_all_of_its_leader(&self, durable: &LogPosition) -> bool {
        let RoleState::Follower(follower) = &self.role else {
            return false;
        };
        if mutated!(self.config.mutant, GuardEndsEarly) {
            return self.leader.is_some();
        }
        let (Some(brings), Some(proved)) = (follower.brings, follower.proved) else {
            return false;
        };
        self.leader.is_some() && brings <= proved.min(durable.index)
    }
}
