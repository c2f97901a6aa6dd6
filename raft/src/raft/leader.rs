//! Leading: proposals, commitment (Raft §5.3, §5.4.2), heartbeats, and when to give up.

use super::{Raft, RoleState, membership_in};
use crate::configurations::may_follow;
use crate::entry::{Entry, EntryKind, UnsealedEntry};
use crate::ids::{Index, Micros, Replica, Round};
use crate::io::{Proposed, RejectReason};
use crate::log::Log;
use crate::membership::Membership;
use crate::message::{Behind, Body, CommitPoint, Heartbeat};
use crate::mutated;
use crate::progress::Progress;
use crate::wire::Decode;

/// What a leader knows. Forgotten with the leadership.
#[derive(Debug)]
pub(super) struct Leader {
    /// The followers, by replica.
    pub(super) peers: Vec<Progress>,
    /// The round that is being sent.
    pub(super) round: Round,
    pub(super) heartbeat_due: Micros,
    /// Something may have to be sent to somebody.
    pub(super) wants_sending: bool,
    /// The no-op that this leadership began with.
    first_index: Index,
    /// A follower had this durable, and this disk had not, since then.
    disk_behind: Option<(Index, Micros)>,
}

impl Leader {
    pub(super) fn place_of(&self, replica: Replica) -> Option<usize> {
        self.peers.iter().position(|peer| peer.replica == replica)
    }

    fn matched(&self, replica: Replica) -> Index {
        let peer = self.peers.iter().find(|peer| peer.replica == replica);
        peer.and_then(|peer| peer.match_index).unwrap_or_default()
    }

    pub(super) fn check_invariants(&self, log: &Log) {
        assert!(self.first_index <= log.last().index);
        for peer in &self.peers {
            peer.check_invariants(log);
        }
    }
}

impl Raft {
    /// Begins with a no-op: what earlier leaders left commits only under an entry of this term (Raft §8).
    pub(super) fn become_leader(&mut self) {
        let unknown = self.commit.index.next();
        if mutated!(self.config.mutant, LeaderDropsTail) && unknown <= self.log.last().index {
            self.truncate_before(unknown);
        }
        let last = self.log.last();
        let first_index = last.index.next();
        self.role = RoleState::Leader(Leader {
            peers: Vec::new(),
            round: Round(1),
            heartbeat_due: self.now.after(self.config.heartbeat_interval_us),
            wants_sending: true,
            first_index,
            disk_behind: None,
        });
        self.leader = Some(self.config.replica);
        self.meet_members(first_index);
        if mutated!(self.config.mutant, NoNoop) {
            return;
        }
        let term = self.hard_state.term;
        let noop = Entry::noop(self.config.group, term, first_index, last.chain);
        self.append(noop, None);
    }

    pub(super) fn on_propose(&mut self, entry: UnsealedEntry) {
        if let Some(reason) = self.refusal(entry.frame_bytes()) {
            let answer = Proposed::Rejected { entry, reason };
            self.outbox.ready.proposals.push(answer);
            return;
        }
        let is_change = entry.kind() == EntryKind::Configuration;
        if is_change && !self.may_change_to(entry.payload()) {
            let reason = RejectReason::ChangeRefused;
            let answer = Proposed::Rejected { entry, reason };
            self.outbox.ready.proposals.push(answer);
            return;
        }
        let last = self.log.last();
        let (group, term) = (self.config.group, self.hard_state.term);
        let entry = entry.seal(group, term, last.index.next(), last.chain);
        let position = entry.position();
        let membership = membership_in(&entry).expect("`may_change_to` has read it");
        self.append(entry, membership);
        let answer = Proposed::Accepted { at: position };
        self.outbox.ready.proposals.push(answer);
        if is_change {
            self.meet_members(position.index);
        }
        self.want_sending();
    }

    /// Why a proposal of so many bytes is not taken now; `None`: it is.
    pub(super) fn refusal(&self, frame_bytes: usize) -> Option<RejectReason> {
        if self.halted.is_some() {
            return Some(RejectReason::Halted);
        }
        let RoleState::Leader(_) = self.role else {
            let leader = self.leader();
            return Some(RejectReason::NotLeader { leader });
        };
        // What earlier leaders left counts too: it lies on the disk of whoever has it until it commits, and leader
        // after leader could add as much again.
        let (committed, last) = (self.commit.index, self.log.last().index);
        let waiting = last.0.saturating_sub(committed.0);
        let bytes = self.log.bytes_between(committed, last) + frame_bytes as u64;
        let window_full = waiting > 0
            && (waiting >= self.config.uncommitted_entries_max as u64
                || bytes > self.config.uncommitted_bytes_max as u64);
        // A fast majority commits without this disk, but what it has yet to write must stay bounded.
        let unflushed = self.log.bytes_between(self.log.durable(), last);
        let disk_full = unflushed >= self.config.disk_lag_bytes_max as u64;
        if mutated!(self.config.mutant, UncommittedUnbounded) {
            return None;
        }
        (window_full || disk_full).then_some(RejectReason::WindowFull)
    }

    /// One change at a time, from a leader that knows what is committed, by overlapping quorums (Raft §6).
    fn may_change_to(&self, payload: &[u8]) -> bool {
        let Ok(next) = Membership::from_bytes(payload) else {
            return false;
        };
        let settled = self
            .configurations
            .current_index()
            .is_none_or(|index| index <= self.commit.index);
        settled
            && self.commit.term == self.hard_state.term
            && may_follow(self.configurations.current(), &next)
    }

    /// Follows the membership in effect: opens a session to whoever is new, forgets who is gone.
    fn meet_members(&mut self, next_index: Index) {
        let mut members = self.configurations.current().replicas();
        members.retain(|replica| *replica != self.config.replica);
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        leader.peers.retain(|peer| members.contains(&peer.replica));
        for replica in members {
            if leader.place_of(replica).is_none() {
                let session = self.sessions.open();
                let peer = Progress::new(replica, session, next_index, self.now);
                leader.peers.push(peer);
            }
        }
        leader.peers.sort_unstable_by_key(|peer| peer.replica);
    }

    pub(super) fn want_sending(&mut self) {
        if let RoleState::Leader(leader) = &mut self.role {
            leader.wants_sending = true;
        }
    }

    /// Commits what a quorum has durable, as far as an entry of this term reaches (Raft §5.4.2). This
    /// replica counts for what its own disk has, like everybody else, and only if it votes.
    pub(super) fn advance_commit(&mut self) {
        let RoleState::Leader(leader) = &self.role else {
            return;
        };
        let me = self.config.replica;
        let own = if mutated!(self.config.mutant, LeaderCountsUnflushed) {
            self.log.last().index
        } else {
            self.log.durable()
        };
        let has = |replica| {
            if replica == me {
                own
            } else {
                leader.matched(replica)
            }
        };
        let reached = if mutated!(self.config.mutant, QuorumUnsorted) {
            let voters = &self.configurations.current().voters;
            has(voters[voters.len() / 2].replica)
        } else {
            self.configurations.quorum().reached(has)
        };
        let own_term = leader.first_index <= reached;
        if reached <= self.commit.index
            || !own_term && !mutated!(self.config.mutant, CommitOlderTerm)
        {
            return;
        }
        let position = self
            .log
            .position(reached)
            .expect("a match lies in this log");
        if !mutated!(self.config.mutant, CommitOlderTerm) {
            assert!(position.term == self.hard_state.term);
        }
        self.set_commit(position);
        // A leader that the committed membership does not count has done its work (Raft §6).
        let settled = self
            .configurations
            .current_index()
            .is_some_and(|index| index <= reached);
        if settled && !self.configurations.quorum().counts(me) {
            self.become_follower(self.hard_state.term);
        }
    }

    /// Once an interval: who has to hear of this leader, and whether it should still be one.
    pub(super) fn on_heartbeat_due(&mut self) {
        if !self.is_followed() && !mutated!(self.config.mutant, CheckQuorumOff) {
            return self.become_follower(self.hard_state.term);
        }
        if self.trails_a_follower() {
            // Until leadership can be handed over, standing back for one election does it.
            self.become_follower(self.hard_state.term);
            self.sits_out = true;
            return;
        }
        let (now, interval) = (self.now, self.config.heartbeat_interval_us);
        let commit = if mutated!(self.config.mutant, HeartbeatWithoutCommit) {
            CommitPoint::default()
        } else {
            CommitPoint {
                index: self.commit.index,
                chain: self.commit.chain,
            }
        };
        let (last_index, term) = (self.log.last().index, self.hard_state.term);
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        leader.round.0 += 1;
        let round = leader.round;
        let mut due = now.after(interval);
        let mut silent = Vec::new();
        let mut behind = Vec::new();
        for peer in &mut leader.peers {
            let idle = self.commit.index == last_index;
            let says = !idle || !mutated!(self.config.mutant, IdleLeaderNeverSends);
            if peer.behind && says {
                behind.push((peer.replica.id, peer.session));
            }
            if interval <= now.since(peer.sent) {
                peer.sent = now;
                silent.push((peer.replica.id, peer.boot));
            }
            if !mutated!(self.config.mutant, ReadFailedForEver) {
                peer.read_failed = false;
            }
            due = due.min(peer.sent.after(interval));
        }
        leader.heartbeat_due = due;
        leader.wants_sending = true;
        for (to, heard) in silent {
            let heartbeat = Body::Heartbeat(Heartbeat {
                commit,
                last_index,
                round,
                heard,
            });
            let message = self.message(to, term, heartbeat);
            self.outbox.ready.messages.push(message);
        }
        let base = self.log.base();
        for (to, session) in behind {
            let body = Body::Behind(Behind {
                session,
                base,
                round,
            });
            self.send(to, body);
        }
        self.ask_the_silent();
    }

    /// Check-quorum: whether a quorum, this replica included, answered within an election timeout.
    fn is_followed(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else {
            return false;
        };
        let (me, timeout) = (self.config.replica, self.config.election_timeout_max_us);
        let mut peers = leader.peers.iter();
        if mutated!(self.config.mutant, CheckQuorumAnyPeer)
            && peers.any(|peer| self.now.since(peer.heard) < timeout)
        {
            return true;
        }
        self.configurations.quorum().agrees(|replica| {
            replica == me
                || leader
                    .peers
                    .iter()
                    .any(|peer| peer.replica == replica && self.now.since(peer.heard) < timeout)
        })
    }

    /// Whether this disk is further behind a voter's than is good for a leader. If nobody is ahead the
    /// disks are all slow, and another leader would be no better.
    fn trails_a_follower(&mut self) -> bool {
        if mutated!(self.config.mutant, SlowDiskLeads) {
            return false;
        }
        let durable = self.log.durable();
        let quorum = self.configurations.quorum();
        let RoleState::Leader(leader) = &mut self.role else {
            return false;
        };
        let voters = leader
            .peers
            .iter()
            .filter(|peer| quorum.counts(peer.replica));
        let ahead = voters.filter_map(|peer| peer.match_index).max();
        let Some(ahead) = ahead.filter(|ahead| durable < *ahead) else {
            leader.disk_behind = None;
            return false;
        };
        // One entry is no backlog, however large it is: its write is under way.
        let full = durable.next() < ahead
            && self.log.bytes_between(durable, ahead) >= self.config.disk_lag_bytes_max as u64;
        match leader.disk_behind {
            Some((index, since)) if durable < index => {
                self.now.since(since) > self.config.disk_lag_us_max || full
            }
            _ => {
                leader.disk_behind = Some((ahead, self.now));
                full
            }
        }
    }
}
