//! What goes into the core and what comes out of it.
//!
//! Outputs gather until they are taken. An order that matters is data: what may leave this machine only
//! once something is durable lies *inside* the write it waits for.

use std::cmp::Ordering;
use std::fmt;

use bytes::Bytes;

use crate::entry::{Entry, UnsealedEntry};
use crate::ids::{
    Boot, Chain, GroupId, Index, LogPosition, Micros, NodeId, Replica, ReplicationSession,
    SnapshotId, Term,
};
use crate::limits::APPEND_BYTES_MAX;
use crate::membership::Membership;
use crate::message::Message;
use crate::mutant::Mutant;
use crate::snapshot::{Anchor, Base};
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// What a replica is and how it behaves. Fixed for the life of the value.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this replica is.
    pub replica: Replica,
    /// The boot it runs in.
    pub boot: Boot,
    /// The group it is a replica of.
    pub group: GroupId,
    /// The shortest election timeout. Each is drawn from here up to `election_timeout_max_us`.
    pub election_timeout_min_us: u64,
    /// The longest election timeout.
    pub election_timeout_max_us: u64,
    /// How often a leader lets an idle follower hear of it.
    pub heartbeat_interval_us: u64,
    /// The most bytes of frames on their way to one follower: sent, not yet acknowledged as durable.
    pub inflight_bytes_max: usize,
    /// The most entries on their way to one follower.
    pub inflight_entries_max: usize,
    /// The most bytes of frames in one append.
    pub append_bytes_max: usize,
    /// The most bytes of frames that a leader accepts before they commit.
    pub uncommitted_bytes_max: usize,
    /// The most entries that a leader accepts before they commit.
    pub uncommitted_entries_max: usize,
    /// The most bytes of frames kept in memory to feed followers and the state machine.
    pub cache_bytes_max: usize,
    /// How long a leader's own disk may trail a follower's before the leader gives up.
    pub disk_lag_us_max: u64,
    /// How many bytes of log a leader's own disk may trail a follower's before the leader gives up, if they are more
    /// than one entry.
    pub disk_lag_bytes_max: usize,
    /// Where randomised timeouts come from.
    pub seed: u64,
    /// The bug that is switched on, in builds that hold some.
    pub mutant: Option<Mutant>,
}

impl Config {
    /// Why no replica can run with this, if none can. [`Raft::new`](crate::Raft::new) insists on it.
    pub fn check(&self) -> Result<(), String> {
        let more_than_nothing = [
            ("heartbeat_interval_us", self.heartbeat_interval_us),
            ("disk_lag_us_max", self.disk_lag_us_max),
            ("inflight_bytes_max", self.inflight_bytes_max as u64),
            ("inflight_entries_max", self.inflight_entries_max as u64),
            ("append_bytes_max", self.append_bytes_max as u64),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max as u64),
            (
                "uncommitted_entries_max",
                self.uncommitted_entries_max as u64,
            ),
            ("disk_lag_bytes_max", self.disk_lag_bytes_max as u64),
        ];
        if let Some((name, _)) = more_than_nothing.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0"));
        }
        if self.append_bytes_max > APPEND_BYTES_MAX {
            return Err(format!(
                "append_bytes_max is {}, and an append carries at most {APPEND_BYTES_MAX}",
                self.append_bytes_max
            ));
        }
        if self.election_timeout_min_us <= self.heartbeat_interval_us {
            return Err(
                "election_timeout_min_us is no longer than heartbeat_interval_us".to_owned(),
            );
        }
        if self.election_timeout_max_us < self.election_timeout_min_us {
            return Err("election_timeout_max_us is below election_timeout_min_us".to_owned());
        }
        Ok(())
    }

    /// The defaults: elections after 150–300 ms, heartbeats every 50 ms, windows of a few megabytes.
    #[must_use]
    pub fn new(replica: Replica, boot: Boot, group: GroupId, seed: u64) -> Self {
        Self {
            replica,
            boot,
            group,
            election_timeout_min_us: 150_000,
            election_timeout_max_us: 300_000,
            heartbeat_interval_us: 50_000,
            inflight_bytes_max: 8 << 20,
            inflight_entries_max: 1024,
            append_bytes_max: 1 << 20,
            uncommitted_bytes_max: 32 << 20,
            uncommitted_entries_max: 4096,
            cache_bytes_max: 64 << 20,
            disk_lag_us_max: 1_000_000,
            disk_lag_bytes_max: 64 << 20,
            seed,
            mutant: None,
        }
    }
}

/// Term and vote: one atomic durable record (Raft figure 2, persistent state).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// Who got this replica's vote in that term.
    pub vote: Option<Replica>,
}

/// The tail guard: the last entry that a replica may have acknowledged and lost, at most.
///
/// A leader may have counted that ack. Until the replica has all of it back, its log says less than what it
/// promised, so it neither campaigns nor elects anybody who has less than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The term of that entry.
    pub term: Term,
    /// Its index. `None`: it cannot be read, so any of that term.
    pub index: Option<Index>,
}

impl Guard {
    /// Whether a log that ends here holds whatever was acknowledged (Raft §5.4.1: terms first, never lengths).
    #[must_use]
    pub fn is_met_by(&self, last: &LogPosition) -> bool {
        match last.term.cmp(&self.term) {
            Ordering::Greater => true,
            Ordering::Equal => self.index.is_some_and(|index| index <= last.index),
            Ordering::Less => false,
        }
    }

    /// The one that asks for more.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let asks = |guard: &Self| (guard.term, guard.index.is_none(), guard.index);
        if asks(&self) < asks(&other) {
            other
        } else {
            self
        }
    }
}

/// `term.index`, or `term.any`.
impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}.{index}", self.term),
            None => write!(f, "{}.any", self.term),
        }
    }
}

/// All voters have answered a guarded replica, and whether what it may have acknowledged is committed nobody can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided {
    /// What it may have acknowledged.
    pub guard: Guard,
    /// Where the logs that can be read end at most.
    pub highest: LogPosition,
    /// Whose logs end there.
    pub holders: Vec<NodeId>,
}

impl Encode for Guard {
    fn encode(&self, out: &mut Writer<'_>) {
        self.term.encode(out);
        self.index.encode(out);
    }
}

impl Decode for Guard {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            term: Decode::decode(input)?,
            index: Decode::decode(input)?,
        })
    }
}

/// What the core remembers of an entry whose frame may be on disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Its term.
    pub term: Term,
    /// The chain through it.
    pub chain: Chain,
    /// Bytes of its frame.
    pub frame_bytes: u32,
}

/// What a replica comes back with.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Term and vote.
    pub hard_state: HardState,
    /// The vote of this term and every later one is withheld: what was voted could not be read.
    pub never_votes: bool,
    /// Where the log begins: the origin, or what a snapshot covers.
    pub base: LogPosition,
    /// How far the log is known to be committed: to the base, or as far as an anchor or a state machine shows, for only
    /// what is committed is applied.
    pub commit: LogPosition,
    /// The entries above the base, without gaps, all of them durable.
    pub entries: Vec<EntryMeta>,
    /// The membership at the base.
    pub membership: Membership,
    /// Configuration entries above the base, in order.
    pub configurations: Vec<(Index, Membership)>,
    /// When terms began that have entries at or below the base, as far as that is known.
    pub term_starts: Vec<(Term, Index)>,
    /// The newest anchor: the log may be cut up to here.
    pub anchor: LogPosition,
    /// Nothing that can be read stands for what lies up to the base. The replica votes, and does not campaign before
    /// it has a snapshot.
    pub lacks_snapshot: bool,
    /// What may have been acknowledged and is not in the log any more.
    pub guard: Option<Guard>,
    /// Entries that were behind these cannot be read, and may come back: [`Input::Regained`].
    pub regaining: bool,
}

impl Restored {
    /// A log that begins here and holds nothing.
    #[must_use]
    pub fn at(base: LogPosition, membership: Membership) -> Self {
        Self {
            hard_state: HardState::default(),
            never_votes: false,
            base,
            commit: base,
            entries: Vec::new(),
            membership,
            configurations: Vec::new(),
            term_starts: Vec::new(),
            anchor: base,
            lacks_snapshot: false,
            guard: None,
            regaining: false,
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// Time has passed; nothing else.
    Tick,
    /// A peer said something. Frames have been verified, nothing else has.
    Message(Message),
    /// Clients propose. Answered in [`Ready::proposals`].
    Propose(UnsealedEntry),
    /// Every [`Persist`] up to this one is durable, and those that ask for it are echoed.
    Durable(PersistId),
    /// Entries that were asked for with a [`ReadLog`]; empty: they cannot be had now.
    Read {
        /// The follower they are for.
        peer: NodeId,
        /// Where they were asked from.
        from: Index,
        /// What was found, in log order from there.
        entries: Vec<Entry>,
    },
    /// A new connection to a peer is up: what an earlier one carried may never arrive.
    PeerConnected(NodeId),
    /// The connection to a peer is gone.
    PeerDisconnected(NodeId),
    /// As much as may wait for a peer does wait: an append of this session was not taken, nor is any that
    /// comes after it, until [`Input::LaneRoom`].
    LaneFull {
        /// The peer.
        peer: NodeId,
        /// The append stream.
        session: ReplicationSession,
        /// The first entry that was not taken.
        from: Index,
    },
    /// What waits for a peer has become less.
    LaneRoom(NodeId),
    /// The effects of what lies up to here survive any crash: what the log amounts to there may be written down.
    Anchor {
        /// The last entry that is covered.
        at: Index,
        /// The session table there.
        sessions: Bytes,
    },
    /// What lies up to here, and not beyond the newest durable anchor, is no longer wanted.
    Cut(Index),
    /// A snapshot was received, and its files are durable and were read back.
    Install {
        /// What it covers.
        anchor: Anchor,
        /// Which one.
        snapshot: SnapshotId,
    },
    /// The state machine has what the snapshot of [`Ready::installed`] holds.
    MachineFollows,
    /// The snapshot of [`Ready::installed`] cannot be read after all: another one is wanted.
    SnapshotLost,
    /// Entries that could not be read can be, durably: the log goes on with them.
    Regained(Regained),
    /// Nobody who was asked has those that cannot be read.
    NotRegained,
}

/// What a replica had and could not read for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regained {
    /// Where the log of the replica ended. If it ends elsewhere by now, what was regained is of no use.
    pub after: LogPosition,
    /// The entries behind that, without gaps.
    pub entries: Vec<EntryMeta>,
    /// The configurations among them, in order.
    pub configurations: Vec<(Index, Membership)>,
    /// There are still some behind these that cannot be read.
    pub more: bool,
}

/// Numbers the writes of a group, in the order in which they must become durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistId(pub u64);

/// A write to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Term and vote.
    HardState(HardState),
    /// Entries without gaps; whatever the log held from the first one on is no longer part of it.
    Entries(Vec<Entry>),
    /// The log ends here: a conflict was cut and nothing has replaced it yet. The core always has the
    /// replacement at hand and writes it as entries; this is for repair.
    Truncate(LogPosition),
    /// What the log up to a point amounts to. Durable before any [`Write::Base`] that cuts at or below it.
    Anchor(Anchor),
    /// The log begins here.
    Base(Base),
}

/// A write to the log, and what may leave this machine only once it is durable.
#[derive(Debug)]
pub struct Persist {
    /// Which one. Larger ones must not become durable before smaller ones.
    pub id: PersistId,
    /// What to write, in this order. Never empty.
    pub writes: Vec<Write>,
    /// Durable is not enough: the flush group after it, which echoes the hard state, must be durable too.
    pub echoed: bool,
    /// What may leave then. Messages of a term that has passed by that time are dropped.
    pub then: Vec<Message>,
}

/// Entries wanted from the log on disk, for a follower that lags behind what is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLog {
    /// The follower.
    pub peer: NodeId,
    /// The first entry wanted.
    pub from: Index,
    /// The last entry wanted.
    pub through: Index,
    /// The most bytes of frames wanted; one entry may be larger.
    pub bytes_max: usize,
}

/// What a replica does in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Answers a leader.
    Follower,
    /// Asks whether an election could be won (thesis §9.6).
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Role, term or known leader have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// The role now.
    pub role: Role,
    /// The term now.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
}

/// Why a proposal was not taken. None of it was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// Somebody else leads, or nobody.
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// As much as may be uncommitted is uncommitted.
    WindowFull,
    /// A membership that may not follow the present one, or not now: another change is under way, or
    /// nothing of this leader's term is committed yet.
    ChangeRefused,
    /// The group has halted.
    Halted,
}

/// What became of a proposal.
#[derive(Debug)]
pub enum Proposed {
    /// It was appended.
    Accepted {
        /// Where it lies.
        at: LogPosition,
    },
    /// None of it was appended.
    Rejected {
        /// What was proposed.
        entry: UnsealedEntry,
        /// Why not.
        reason: RejectReason,
    },
}

/// Why a group stopped for good in this process. What is durable is untouched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HaltReason {
    /// A leader would replace an entry that this replica knows to be committed.
    #[error(
        "leader {leader} of term {term} conflicts at {index} with what is committed here \
         through {commit}"
    )]
    CommittedConflict {
        /// Who leads.
        leader: Replica,
        /// Its term.
        term: Term,
        /// Where it conflicts.
        index: Index,
        /// How far this replica knows the log to be committed.
        commit: Index,
    },
    /// An entry that sets the membership cannot be read, so nobody can tell any more who decides.
    #[error("the membership in entry {index} of term {term} cannot be read: {source}")]
    UnreadableMembership {
        /// Where it lies.
        index: Index,
        /// The term of the leader that made it.
        term: Term,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A leader has heard of a later life of this replica: its log is an earlier state of what it was.
    #[error(
        "leader {leader} of term {term} has heard of boot {heard} of this replica, which is in boot {boot}: its directory \
         was put back to an earlier state, or its disk has lost what was flushed; replace it by a new one with an empty \
         directory"
    )]
    RolledBack {
        /// Who leads.
        leader: Replica,
        /// Its term.
        term: Term,
        /// The boot that it has heard of.
        heard: Boot,
        /// The boot that this is.
        boot: Boot,
    },
    /// A snapshot says otherwise than what this replica knows to be committed.
    #[error(
        "snapshot {snapshot} says that {theirs} is committed, and here that is {ours} (chains {their_chain} and \
         {our_chain})",
        their_chain = theirs.chain,
        our_chain = ours.chain
    )]
    SnapshotConflict {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Where it ends.
        theirs: LogPosition,
        /// What is committed here at that index.
        ours: LogPosition,
    },
}

/// What the world owes the core. Every field must be carried out.
#[derive(Debug, Default)]
pub struct Ready {
    /// Writes, in order.
    pub persist: Vec<Persist>,
    /// What may leave now.
    pub messages: Vec<Message>,
    /// Reads for lagging followers.
    pub reads: Vec<ReadLog>,
    /// One answer for each proposal since the last call, in the order in which they came. Who proposed
    /// is matched to its answer by that order alone.
    pub proposals: Vec<Proposed>,
    /// The log was cut: entries of ours from this index on may yet commit elsewhere, or never.
    pub truncated_from: Option<Index>,
    /// The commit index has moved to here.
    pub commit: Option<LogPosition>,
    /// Role, term or leader have changed.
    pub role: Option<RoleChange>,
    /// The group has halted.
    pub halted: Option<HaltReason>,
    /// The leader's log begins beyond what this replica needs next.
    pub wants_snapshot: Option<SnapshotWanted>,
    /// The log begins at this snapshot, durably: the state machine may follow.
    pub installed: Option<Installed>,
    /// What may have been acknowledged and lost is back: the replica votes and campaigns as any other.
    pub guard_over: Option<Guard>,
}

/// A snapshot is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotWanted {
    /// Who leads and knows.
    pub leader: NodeId,
    /// Where its log begins. Any snapshot that ends there or later will do.
    pub base: LogPosition,
}

/// A snapshot that was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Where the log begins.
    pub at: LogPosition,
    /// Which snapshot.
    pub snapshot: SnapshotId,
}

/// One follower as its leader sees it, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub replica: Replica,
    /// The highest index known to be durable there, in the current replication session.
    pub match_index: Option<Index>,
    /// The next entry to send.
    pub next_index: Index,
    /// Bytes on their way, but for what a probe carries.
    pub inflight_bytes: usize,
    /// Entries on their way, likewise.
    pub inflight_entries: u64,
    /// The append stream in use.
    pub session: ReplicationSession,
    /// What it needs next is no longer in the leader's log: it has to fetch a snapshot.
    pub behind: bool,
    /// When it last answered.
    pub heard: Micros,
}
