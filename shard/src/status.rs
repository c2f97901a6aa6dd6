//! How a shard stands, as a copy.

use logdrive_raft::bootstrap::Outcome;
use logdrive_raft::io::{Guard, PeerStatus, Role, Undecided};
use logdrive_raft::message::Progress;
use logdrive_raft::{
    Boot, GroupId, Index, LogPosition, Membership, Micros, NodeId, Replica, SnapshotId, Term,
};
use logdrive_wal::WalStatus;

use crate::fetch::FetchStatus;
use crate::group::{Group, Phase};
use crate::repair::Repair;
use crate::shard::stranger_text;

/// How a shard stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardStatus {
    /// Who this replica is.
    pub replica: Replica,
    /// The boot it runs in.
    pub boot: Boot,
    /// Its groups, by number.
    pub groups: Vec<GroupStatus>,
    /// Its log.
    pub wal: WalStatus,
    /// Proposals are refused because the log has no room.
    pub storage_full: bool,
}

/// How a group stands on this node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Where it is in its life.
    pub state: GroupState,
    /// The current term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// How far the log is committed.
    pub commit: LogPosition,
    /// Where the log begins.
    pub base: LogPosition,
    /// Where the log ends.
    pub last: LogPosition,
    /// How far the log is durable here.
    pub durable: u64,
    /// What may have been acknowledged here and is not in the log any more.
    pub guard: Option<Guard>,
    /// All voters have answered, and nobody can tell whether that is committed.
    pub undecided: Option<Undecided>,
    /// Entries of the log that cannot be read, and are asked for from peers.
    pub missing: u64,
    /// How many of those have come back from peers in this boot.
    pub repaired: u64,
    /// Bytes of what is coming back.
    pub repair_bytes: usize,
    /// How far entries have been handed to the machine.
    pub handed: u64,
    /// Who belongs to it.
    pub membership: Membership,
    /// Its followers, if this node leads.
    pub peers: Vec<PeerStatus>,
    /// Bytes of proposals between door and answer.
    pub proposals_bytes: usize,
    /// The bound of those.
    pub proposals_bytes_max: usize,
    /// Bytes of frames in memory.
    pub cache_bytes: usize,
    /// Bytes of frames that were read back and wait for the applier.
    pub read_back_bytes: usize,
    /// Bytes of what the core remembers of each entry.
    pub rows_bytes: usize,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotStatus>,
    /// One is being taken, up to here.
    pub snapshot_taking: Option<Index>,
    /// One is being fetched.
    pub fetch: Option<FetchStatus>,
    /// Followers that fetch one, as they tell it.
    pub transfers: Vec<(NodeId, Progress)>,
    /// Bytes of log a second, of late.
    pub growth_per_s: u64,
}

/// A snapshot that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// Which.
    pub id: SnapshotId,
    /// The last entry that it covers.
    pub at: LogPosition,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was taken; none: before this boot, or by somebody else.
    pub taken: Option<Micros>,
    /// How long that took.
    pub took_us: Option<u64>,
}

/// Where a group is in its life on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupState {
    /// There is no genesis yet.
    Forming,
    /// A peer has a genesis that does not name this directory; says what to do.
    Stranger(String),
    /// A replica in this role.
    Running(Role),
    /// Stopped for good in this process, and why.
    Halted(String),
}

pub(crate) fn of_group<O>(group: &Group<O>, own: Replica, missing: u64) -> GroupStatus {
    let state = match &group.phase {
        Phase::Forming(bootstrap) => match bootstrap.outcome() {
            Some(Outcome::Stranger { genesis, evidence }) => {
                GroupState::Stranger(stranger_text(own, *evidence, genesis))
            }
            _ => GroupState::Forming,
        },
        Phase::Founding { .. } => GroupState::Forming,
        Phase::Running(raft) => GroupState::Running(raft.role()),
        Phase::Halted { why, .. } => GroupState::Halted(why.to_string()),
    };
    let raft = group.raft();
    let permits = group.inbox.permits();
    GroupStatus {
        group: group.id,
        state,
        term: raft.map_or(Term(0), |raft| raft.term()),
        leader: raft.and_then(|raft| raft.leader()),
        commit: raft.map_or_else(LogPosition::default, |raft| raft.commit()),
        base: raft.map_or_else(LogPosition::default, |raft| raft.base()),
        last: raft.map_or_else(LogPosition::default, |raft| raft.last()),
        durable: raft.map_or(0, |raft| raft.durable_index().0),
        guard: raft.and_then(|raft| raft.guard()),
        undecided: raft.and_then(|raft| raft.undecided()),
        missing,
        repaired: group.entries_repaired,
        repair_bytes: group.repair.as_ref().map_or(0, Repair::bytes),
        handed: group.handed.0,
        membership: raft
            .map(|raft| raft.membership().clone())
            .unwrap_or_default(),
        peers: raft.map(|raft| raft.peers()).unwrap_or_default(),
        proposals_bytes: permits.held(),
        proposals_bytes_max: permits.bytes_max(),
        cache_bytes: raft.map_or(0, |raft| raft.cache_bytes()),
        read_back_bytes: group
            .read_back
            .iter()
            .map(|entry| entry.frame().len())
            .sum(),
        rows_bytes: raft.map_or(0, |raft| raft.rows_bytes()),
        snapshot: group.snapshots.newest.as_ref().map(|kept| SnapshotStatus {
            id: kept.snapshot,
            at: kept.at,
            bytes: kept.bytes,
            taken: kept.taken.map(|(at, _)| at),
            took_us: kept.taken.map(|(_, us)| us),
        }),
        snapshot_taking: group.snapshots.taking.map(|(at, _)| at.index),
        fetch: group.snapshots.fetch_status(),
        transfers: group.snapshots.transfers(),
        growth_per_s: group.snapshots.growth_per_s(),
    }
}
