//! One replica of one group: the Raft state machine as a value.
//!
//! Inputs and time go in through [`Raft::step`], and what the world owes comes out of [`Raft::take_ready`].
//! Nothing here waits, fails or reads a clock. What each role does lies in a file of its own:
//!
//! ```text
//! dispatch     whose message it is, and what its term means (Raft §5.1)
//! voter        who gets this replica's vote (§5.2, §5.4.1)
//! candidate    pre-votes and votes (§5.2, thesis §9.6)
//! follower     log matching, acks, how far the log is committed (§5.3)
//! guard        what was acknowledged and lost: when it is back
//! regain       entries that could not be read and come back
//! settle       or when nobody can have committed it
//! leader       proposals, commitment, heartbeats, when to give up (§5.3, §5.4.2)
//! replication  what is sent to each follower, and what its answers prove
//! compaction   where the log begins: anchors, cuts, received snapshots
//! outbox       the outputs under construction
//! ```

mod candidate;
mod compaction;
mod dispatch;
mod follower;
mod guard;
mod leader;
mod outbox;
mod regain;
mod replication;
mod settle;
mod voter;

use crate::configurations::Configurations;
use crate::entry::{Entry, EntryKind};
use crate::ids::{Index, LogPosition, Micros, NodeId, Replica, ReplicationSession, Term};
use crate::io::{
    Config, EntryMeta, Guard, HaltReason, HardState, Input, PeerStatus, PersistId, Ready, Restored,
    Role, RoleChange,
};
use crate::log::Log;
use crate::membership::Membership;
use crate::message::{Body, Message};
use crate::mutated;
use crate::wire::Decode;

use candidate::Votes;
use compaction::Compaction;
use follower::Follower;
use leader::Leader;
use outbox::Outbox;
use settle::Settle;

/// One replica of one group.
#[derive(Debug)]
pub struct Raft {
    config: Config,
    hard_state: HardState,
    never_votes: bool,
    /// What may have been acknowledged and is not back yet.
    guard: Option<Guard>,
    /// Entries that were behind the last one cannot be read, and may come back.
    regaining: bool,
    /// And nobody had them, so that a leader hears what is missing.
    asks_leader: bool,
    settle: Settle,
    log: Log,
    configurations: Configurations,
    compaction: Compaction,
    commit: LogPosition,
    role: RoleState,
    /// Of this term, if known.
    leader: Option<Replica>,
    /// When the leader was last heard of.
    leader_heard: Micros,
    election_deadline: Micros,
    /// Gave up leading because its disk is slow: lets one election go by.
    sits_out: bool,
    sessions: Sessions,
    outbox: Outbox,
    announced: RoleChange,
    halted: Option<HaltReason>,
    now: Micros,
    random: fastrand::Rng,
}

#[derive(Debug)]
enum RoleState {
    Follower(Follower),
    PreCandidate(Votes),
    Candidate(Votes),
    Leader(Leader),
}

/// Numbers the append streams that this replica opens as a leader.
#[derive(Debug)]
struct Sessions {
    newest: ReplicationSession,
}

impl Sessions {
    fn open(&mut self) -> ReplicationSession {
        self.newest.counter += 1;
        self.newest
    }
}

impl Raft {
    /// A replica with what its log held. Everything in `restored` is durable; how much more of it is committed than
    /// it says is for a leader to say.
    ///
    /// # Panics
    ///
    /// If the configuration contradicts itself, or what was restored cannot have been written by a core.
    #[must_use]
    pub fn new(config: Config, restored: Restored, now: Micros) -> Self {
        if let Err(what) = config.check() {
            panic!("the configuration contradicts itself: {what}");
        }
        let log = Log::new(restored.base, &restored.entries, config.cache_bytes_max);
        let last = log.last();
        let mut hard_state = restored.hard_state;
        let term_was_lost = hard_state.term < last.term;
        if term_was_lost {
            // The record of the term was lost, and with it whom it voted for. Then its vote is spent: as
            // cast for itself it goes to nobody else, and nobody campaigns twice in one term.
            hard_state.term = last.term;
            hard_state.vote = Some(config.replica);
        }
        let configurations = Configurations::new(restored.membership, restored.configurations);
        assert!(
            configurations
                .current_index()
                .is_none_or(|index| restored.base.index < index && index <= last.index)
        );
        let compaction = Compaction::new(
            restored.anchor,
            restored.term_starts,
            restored.lacks_snapshot,
        );
        let mut raft = Self {
            hard_state,
            never_votes: restored.never_votes,
            guard: restored.guard,
            regaining: restored.regaining,
            asks_leader: false,
            settle: Settle::default(),
            configurations,
            compaction,
            commit: restored.base,
            role: RoleState::Follower(Follower::default()),
            leader: None,
            leader_heard: now,
            election_deadline: now,
            sits_out: false,
            sessions: Sessions {
                newest: ReplicationSession {
                    boot: config.boot,
                    counter: 0,
                },
            },
            outbox: Outbox::default(),
            announced: RoleChange {
                role: Role::Follower,
                term: hard_state.term,
                leader: None,
            },
            halted: None,
            now,
            random: fastrand::Rng::with_seed(own_seed(&config)),
            log,
            config,
        };
        raft.release_guard();
        if raft.commit != restored.commit {
            raft.set_commit(restored.commit);
        }
        if term_was_lost {
            raft.outbox.write_hard_state(hard_state, None);
        }
        // Alone there is nobody to wait for.
        if !raft.configurations.quorum().is_only(raft.config.replica) {
            raft.reset_election_timer();
        }
        raft.check_invariants();
        raft
    }

    /// Takes one input. Whatever must happen next is found in [`Raft::take_ready`].
    pub fn step(&mut self, now: Micros, input: Input) {
        self.now = self.now.max(now);
        let (term, commit) = (self.hard_state.term, self.commit.index);
        match input {
            Input::Tick => self.on_tick(),
            Input::Message(message) => self.on_message(message),
            Input::Propose(entry) => self.on_propose(entry),
            Input::Durable(id) => self.on_durable(id),
            Input::Read {
                peer,
                from,
                entries,
            } => self.on_read(peer, from, entries),
            Input::PeerConnected(peer) => self.on_peer_connected(peer),
            Input::PeerDisconnected(peer) => self.on_peer_disconnected(peer),
            Input::LaneFull {
                peer,
                session,
                from,
            } => self.on_lane_full(peer, session, from),
            Input::LaneRoom(peer) => self.on_lane_room(peer),
            Input::Anchor { at, sessions } => self.on_anchor(at, sessions),
            Input::Cut(through) => self.on_cut(through),
            Input::MachineFollows => self.on_machine_follows(),
            Input::SnapshotLost => self.on_snapshot_lost(),
            Input::Install { anchor, snapshot } => self.on_install(anchor, snapshot),
            Input::Regained(regained) => self.on_regained(regained),
            Input::NotRegained => self.on_not_regained(),
        }
        self.announce();
        assert!(term <= self.hard_state.term);
        if !mutated!(self.config.mutant, TruncateCommitted) {
            assert!(commit <= self.commit.index);
        }
        self.check_invariants();
    }

    /// What the world owes since the last call. Appends are made here, so that what came in one turn
    /// leaves as one message a follower.
    #[must_use]
    pub fn take_ready(&mut self) -> Ready {
        self.replicate();
        self.outbox.take()
    }

    /// When [`Input::Tick`] is wanted, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Micros {
        match &self.role {
            _ if self.halted.is_some() => Micros(u64::MAX),
            RoleState::Leader(leader) => leader.heartbeat_due,
            _ => self.election_deadline,
        }
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// Term and vote, as they will be once every write taken so far is durable.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// What this replica does in its term.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.role {
            RoleState::Follower(_) => Role::Follower,
            RoleState::PreCandidate(_) => Role::PreCandidate,
            RoleState::Candidate(_) => Role::Candidate,
            RoleState::Leader(_) => Role::Leader,
        }
    }

    /// Who leads this term, if known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.map(|leader| leader.id)
    }

    /// How far the log is known to be committed.
    #[must_use]
    pub fn commit(&self) -> LogPosition {
        self.commit
    }

    /// Where the log ends, what is on its way to the disk included.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        self.log.last()
    }

    /// Where the log begins.
    #[must_use]
    pub fn base(&self) -> LogPosition {
        self.log.base()
    }

    /// How far the log is durable here. Falls when the log is cut.
    #[must_use]
    pub fn durable_index(&self) -> Index {
        self.log.durable()
    }

    /// The entry at `index`, unless its frame is on disk only.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.log.entry(index)
    }

    /// What is remembered of the entry at `index`.
    #[must_use]
    pub fn meta(&self, index: Index) -> Option<EntryMeta> {
        self.log.meta(index)
    }

    /// What lies at `index`; `None` below the base and beyond the end.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<LogPosition> {
        self.log.position(index)
    }

    /// The membership in effect: the newest in the log, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.configurations.current()
    }

    /// The membership in effect at `index`.
    #[must_use]
    pub fn membership_at(&self, index: Index) -> &Membership {
        self.configurations.at(index)
    }

    /// The followers as their leader sees them; nothing if this replica does not lead.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        match &self.role {
            RoleState::Leader(leader) => {
                let peers = leader.peers.iter();
                peers.map(|peer| peer.status(&self.log)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether an entry whose frame has so many bytes would be appended now.
    #[must_use]
    pub fn can_accept(&self, frame_bytes: usize) -> bool {
        self.refusal(frame_bytes).is_none()
    }

    /// Bytes of the frames held in memory.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.log.cache_bytes()
    }

    /// Bytes of what is remembered of each entry of the log, frames apart.
    #[must_use]
    pub fn rows_bytes(&self) -> usize {
        self.log.rows_bytes()
    }

    /// Why the group has halted, if it has.
    #[must_use]
    pub fn halted(&self) -> Option<&HaltReason> {
        self.halted.as_ref()
    }

    fn on_tick(&mut self) {
        if self.halted.is_some() || self.now < self.next_deadline() {
            return;
        }
        match &self.role {
            RoleState::Leader(_) => self.on_heartbeat_due(),
            _ => self.on_election_timeout(),
        }
    }

    fn on_durable(&mut self, id: PersistId) {
        self.outbox.on_durable(id);
        self.log.on_durable(id);
        if self.halted.is_some() {
            return;
        }
        self.on_compaction_durable();
        self.release_guard();
        match &self.role {
            RoleState::Follower(_) => self.send_owed_ack(),
            RoleState::PreCandidate(_) => {}
            RoleState::Candidate(_) => self.count_own_vote(),
            RoleState::Leader(_) => self.advance_commit(),
        }
    }

    /// Enters `term` if it is newer, and follows whoever leads it.
    fn become_follower(&mut self, term: Term) {
        assert!(self.hard_state.term <= term);
        if self.hard_state.term < term {
            self.hard_state = HardState { term, vote: None };
            if !mutated!(self.config.mutant, TermNotWritten) {
                self.outbox.write_hard_state(self.hard_state, None);
            }
        }
        if matches!(self.role, RoleState::Leader(_)) {
            self.reset_election_timer();
        }
        self.role = RoleState::Follower(Follower::default());
        self.leader = None;
    }

    /// Adds an entry to the log and to what must be written. A membership takes effect at once.
    fn append(&mut self, entry: Entry, membership: Option<Membership>) {
        assert!(entry.term() <= self.hard_state.term);
        // It takes the place of what cannot be read.
        self.regaining = false;
        if let Some(membership) = membership {
            self.configurations.push(entry.index(), membership);
        }
        self.log.append(entry.clone());
        let id = self.outbox.write_entry(entry);
        self.log.writing(id);
    }

    fn set_commit(&mut self, commit: LogPosition) {
        assert!(self.commit.index < commit.index);
        assert!(self.log.holds(&commit));
        self.commit = commit;
        self.outbox.ready.commit = Some(commit);
    }

    fn halt(&mut self, reason: HaltReason) {
        self.role = RoleState::Follower(Follower::default());
        self.leader = None;
        self.outbox.ready.halted = Some(reason.clone());
        self.halted = Some(reason);
    }

    fn reset_election_timer(&mut self) {
        let (min, max) = (
            self.config.election_timeout_min_us,
            self.config.election_timeout_max_us,
        );
        self.election_deadline = self.now.after(self.random.u64(min..=max));
        if mutated!(self.config.mutant, TimeoutsNotRandom) {
            self.election_deadline = Micros((self.now.0 / min + 2) * min);
        }
    }

    fn message(&self, to: NodeId, term: Term, body: Body) -> Message {
        Message {
            from: self.config.replica,
            boot: self.config.boot,
            to,
            group: self.config.group,
            term,
            body,
        }
    }

    /// Says something in the current term that depends on nothing that is still on its way to the disk.
    fn send(&mut self, to: NodeId, body: Body) {
        let message = self.message(to, self.hard_state.term, body);
        self.outbox.ready.messages.push(message);
    }

    fn announce(&mut self) {
        let now = RoleChange {
            role: self.role(),
            term: self.hard_state.term,
            leader: self.leader(),
        };
        if self.announced != now {
            self.announced = now;
            self.outbox.ready.role = Some(now);
        }
    }

    /// Asserts what must always hold. Costs a few comparisons a follower, whatever the log's length.
    fn check_invariants(&self) {
        self.log.check_invariants();
        let last = self.log.last();
        assert!(last.term <= self.hard_state.term);
        assert!(self.log.base().index <= self.commit.index);
        assert!(self.commit.index <= last.index);
        assert!(
            self.configurations
                .current_index()
                .is_none_or(|index| index <= last.index)
        );
        match &self.role {
            RoleState::Follower(follower) => follower.check_invariants(last.index),
            RoleState::PreCandidate(_) => assert!(self.may_campaign()),
            RoleState::Candidate(_) => {
                assert!(self.may_campaign());
                assert!(self.hard_state.vote == Some(self.config.replica));
            }
            RoleState::Leader(_) if mutated!(self.config.mutant, NoNoop) => {}
            RoleState::Leader(leader) => {
                assert!(self.leader == Some(self.config.replica));
                assert!(last.term == self.hard_state.term);
                leader.check_invariants(&self.log);
            }
        }
        assert!(self.halted.is_none() || self.role() == Role::Follower);
    }
}

/// The membership that an entry sets; `None` if it is of another kind.
fn membership_in(entry: &Entry) -> Result<Option<Membership>, HaltReason> {
    if entry.header().kind != EntryKind::Configuration {
        return Ok(None);
    }
    match Membership::from_bytes(entry.payload()) {
        Ok(membership) => Ok(Some(membership)),
        Err(source) => Err(HaltReason::UnreadableMembership {
            index: entry.index(),
            term: entry.term(),
            source,
        }),
    }
}

/// Replicas that are given one seed must still time out at different times.
fn own_seed(config: &Config) -> u64 {
    let mut seed = fastrand::Rng::with_seed(config.seed);
    for part in [config.replica.id.0, config.group.0, config.boot.0] {
        seed = fastrand::Rng::with_seed(seed.u64(..) ^ part);
    }
    seed.u64(..)
}
