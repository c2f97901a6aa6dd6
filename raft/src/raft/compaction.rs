//! Where the log begins: anchors, cuts, and snapshots that were received (Raft §7).
//!
//! An anchor is durable before the log is cut below it, so that what a cut log amounts to is never in doubt. A
//! snapshot from elsewhere covers the log that it agrees with and replaces any other; what is committed here it
//! may not contradict.

use bytes::Bytes;

use super::{Raft, RoleState};
use crate::ids::{Index, LogPosition, SnapshotId, Term};
use crate::io::{HaltReason, Installed, PersistId};
use crate::mutated;
use crate::snapshot::{Anchor, Base, TERM_STARTS_MAX};

/// No log gets here.
const INDEX_MAX: Index = Index(u64::MAX / 2);

/// What is known of the log below its base, and what is on its way there.
#[derive(Debug)]
pub(super) struct Compaction {
    /// The newest durable anchor.
    anchor: LogPosition,
    /// Anchors on their way to the disk.
    anchoring: Vec<(PersistId, LogPosition)>,
    /// When terms began that have entries at or below the base.
    term_starts: Vec<(Term, Index)>,
    /// A base on its way to the disk that a snapshot brought.
    installing: Option<(PersistId, Installed)>,
    /// Nothing that can be read stands for what lies up to the base.
    lacks_snapshot: bool,
    /// A snapshot became where the log begins, and the state machine is not there yet.
    machine_waits: bool,
}

impl Compaction {
    pub(super) fn new(
        anchor: LogPosition,
        term_starts: Vec<(Term, Index)>,
        lacks_snapshot: bool,
    ) -> Self {
        Self {
            anchor,
            anchoring: Vec::new(),
            term_starts,
            installing: None,
            lacks_snapshot,
            machine_waits: false,
        }
    }

    /// Whether the state machine has what lies up to the base.
    pub(super) fn has_state(&self) -> bool {
        !self.lacks_snapshot && !self.machine_waits
    }
}

impl Raft {
    /// What the log up to an index amounts to, the session table apart; `None` where this log cannot say.
    #[must_use]
    pub fn anchor_at(&self, index: Index) -> Option<Anchor> {
        let at = self.log.position(index)?;
        Some(Anchor {
            at,
            membership: self.configurations.at(index).clone(),
            sessions: Bytes::new(),
            term_starts: self.term_starts(index),
        })
    }

    /// How far the log may be cut: the newest durable anchor.
    #[must_use]
    pub fn anchor(&self) -> LogPosition {
        self.compaction.anchor
    }

    /// Whether nothing that can be read stands for what lies up to the base: a snapshot is wanted.
    #[must_use]
    pub fn lacks_snapshot(&self) -> bool {
        self.compaction.lacks_snapshot
    }

    /// Whether a received snapshot is on its way to become where the log begins.
    #[must_use]
    pub fn is_installing(&self) -> bool {
        self.compaction.installing.is_some()
    }

    /// Bytes of frames after `from` up to and including `through`, as far as they are in the log.
    #[must_use]
    pub fn bytes_between(&self, from: Index, through: Index) -> u64 {
        self.log.bytes_between(from, through)
    }

    /// The last place, not before the base, with at least so many bytes of log after it.
    #[must_use]
    pub fn index_before_bytes(&self, bytes: u64) -> Index {
        self.log.index_before_bytes(bytes)
    }

    /// Bytes of all frames that this log has seen in this boot, also of those that it was cut below.
    #[must_use]
    pub fn appended_bytes(&self) -> u64 {
        self.log.appended_bytes()
    }

    /// The newest terms up to `through` and where they begin.
    fn term_starts(&self, through: Index) -> Vec<(Term, Index)> {
        let mut starts = self.compaction.term_starts.clone();
        starts.extend(self.log.term_starts(through));
        let surplus = starts.len().saturating_sub(TERM_STARTS_MAX);
        starts.drain(..surplus);
        starts
    }

    pub(super) fn on_anchor(&mut self, at: Index, sessions: Bytes) {
        let newest = self.compaction.anchoring.last();
        let newest = newest.map_or(self.compaction.anchor, |(_, newest)| *newest);
        // A snapshot from elsewhere may have gone beyond it meanwhile.
        if self.halted.is_some() || at <= newest.index {
            return;
        }
        assert!(
            at <= self.commit.index,
            "only what is committed was applied"
        );
        let anchor = self
            .anchor_at(at)
            .map(|anchor| Anchor { sessions, ..anchor });
        let anchor = anchor.expect("between the newest anchor and the commit index");
        let position = anchor.at;
        let id = self.outbox.write_anchor(anchor);
        self.compaction.anchoring.push((id, position));
    }

    pub(super) fn on_cut(&mut self, through: Index) {
        // After a restart the anchor may lie beyond what is known to be committed.
        let mut through = through
            .min(self.compaction.anchor.index)
            .min(self.commit.index);
        if mutated!(self.config.mutant, CutBeyondAnchor) {
            through = self.commit.index.min(self.log.durable());
        }
        if self.halted.is_some() || through <= self.log.base().index {
            return;
        }
        let at = self.log.position(through);
        let at = at.expect("an anchor is between the base and the commit index");
        let membership = self.configurations.at(through).clone();
        self.compaction.term_starts = self.term_starts(through);
        self.configurations.cut(through);
        self.log.cut(at);
        if let RoleState::Leader(leader) = &mut self.role {
            for peer in &mut leader.peers {
                peer.cut(through);
            }
            leader.wants_sending = true;
        }
        self.outbox.write_base(Base {
            at,
            membership,
            snapshot: None,
            tip: self.log.last(),
        });
    }

    /// The log goes on from the snapshot if it has the same entry there, and else it goes.
    pub(super) fn on_install(&mut self, anchor: Anchor, snapshot: SnapshotId) {
        let at = anchor.at;
        // No log gets there by appending: whoever wrote that would leave no room for what follows.
        if super::dispatch::TERM_MAX < at.term || INDEX_MAX < at.index {
            return;
        }
        // An older one says nothing that the log does not know better, unless the log has lost what it says.
        let is_old = at.index < self.log.base().index
            || at.index <= self.commit.index && !self.compaction.lacks_snapshot;
        let leads = matches!(self.role, RoleState::Leader(_));
        if self.halted.is_some() || leads {
            return;
        }
        let ours = self.log.position(at.index);
        let accepts_other = mutated!(self.config.mutant, SnapshotOtherTerm);
        let conflict = ours.filter(|ours| *ours != at && at.index <= self.commit.index);
        if let Some(ours) = conflict
            && !accepts_other
        {
            return self.halt(HaltReason::SnapshotConflict {
                snapshot,
                theirs: at,
                ours,
            });
        }
        // A chain stands for its terms too: who says another one lies.
        let lies = ours.is_some_and(|ours| ours.chain == at.chain && ours != at);
        if (is_old || lies) && conflict.is_none() {
            return;
        }
        let term = self.hard_state.term.max(at.term);
        if self.hard_state.term < term || !matches!(self.role, RoleState::Follower(_)) {
            self.become_follower(term);
        }
        let unchecked = mutated!(self.config.mutant, RestKeptUnchecked);
        let held = ours.filter(|ours| *ours == at || unchecked);
        if let Some(held) = held {
            self.log.cut(held);
        } else {
            let first = self.log.base().index.next();
            if first <= self.log.last().index {
                let before = self.outbox.ready.truncated_from;
                let from = before.map_or(first, |earlier| earlier.min(first));
                self.outbox.ready.truncated_from = Some(from);
            }
            self.log.replace(at);
        }
        if !mutated!(self.config.mutant, MembershipSurvivesInstall) {
            let membership = anchor.membership.clone();
            self.configurations
                .install(at.index, membership, held.is_some());
        }
        self.begin_anew();
        self.regaining = false;
        let base = self.log.base();
        if self.commit.index < base.index {
            self.set_commit(base);
        }
        self.compaction.term_starts = anchor.term_starts.clone();
        let membership = anchor.membership.clone();
        let newest = self.compaction.anchoring.last();
        let newest = newest.map_or(self.compaction.anchor, |(_, newest)| *newest);
        // Whoever has lost its snapshot may get one that does not reach as far, and what the log says beyond it holds.
        if newest.index < at.index {
            self.compaction.anchoring.clear();
            let anchoring = self.outbox.write_anchor(anchor);
            self.compaction.anchoring.push((anchoring, at));
        }
        let id = self.outbox.write_base(Base {
            at: base,
            membership,
            snapshot: Some(snapshot),
            tip: self.log.last(),
        });
        self.compaction.installing = Some((id, Installed { at, snapshot }));
        self.compaction.machine_waits = true;
    }

    pub(super) fn on_machine_follows(&mut self) {
        self.compaction.machine_waits = self.compaction.installing.is_some();
    }

    pub(super) fn on_snapshot_lost(&mut self) {
        self.compaction.lacks_snapshot |= self.compaction.machine_waits;
    }

    /// Anchors permit cuts, and a base lets the state machine follow, once they are durable.
    pub(super) fn on_compaction_durable(&mut self) {
        let compaction = &mut self.compaction;
        while let Some((id, at)) = compaction.anchoring.first().copied()
            && self.outbox.is_durable(id)
        {
            compaction.anchoring.remove(0);
            compaction.anchor = at;
        }
        if let Some((id, installed)) = compaction.installing
            && self.outbox.is_durable(id)
        {
            compaction.installing = None;
            compaction.lacks_snapshot = false;
            self.outbox.ready.installed = Some(installed);
            self.hint_again();
        }
    }
}
