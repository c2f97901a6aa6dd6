//! How a node stands: a copy, and the JSON that `logdrive status` shows.

use std::time::Duration;

use logdrive_raft::entry::ENTRY_VERSION;
use logdrive_raft::io::{Role, Undecided};
use logdrive_raft::{GroupId, Index, Micros, NodeId};
use logdrive_shard::{GroupState, ShardStatus, SnapshotStatus};
use serde::Serialize;

pub use crate::memory::MemoryLine;
use crate::memory::{NetMemory, ThreadBytes};
use crate::settings::Limits;

/// How a node stands. Serialises to `logdrive.status/1`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Names and numbers this shape.
    pub schema: &'static str,
    /// The operator's number of the node.
    pub node: u64,
    /// The name of the cluster.
    pub cluster: String,
    /// The life of the data directory, in hexadecimal.
    pub incarnation: String,
    /// How often the directory has been opened.
    pub boot: u64,
    /// The version of this build.
    pub version: &'static str,
    /// The formats it writes.
    pub formats: Formats,
    /// Seconds since the node started.
    pub uptime_s: u64,
    /// Whether the node's thread runs.
    pub running: bool,
    /// Its groups.
    pub groups: Vec<GroupLine>,
    /// Its peers.
    pub peers: Vec<PeerLine>,
    /// Its log.
    pub wal: WalLine,
    /// Its network.
    pub net: NetLine,
    /// What waits where, and how much may.
    pub queues: Vec<QueueLine>,
    /// What is held in memory, by owner.
    pub memory: Vec<MemoryLine>,
    /// The most that is held besides the program and its machines, with the peers, the clients and the entries
    /// that there are now: [`Limits::memory_bytes_max`].
    pub memory_bytes_max: u64,
    /// What an operator should know.
    pub alarms: Vec<Alarm>,
}

/// The formats a build writes.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Formats {
    /// The frame of an entry.
    pub entry: u32,
    /// The log on disk.
    pub wal: u32,
    /// The protocol between nodes and with clients.
    pub protocol: u32,
}

/// A group in a status.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GroupLine {
    /// The group.
    pub group: u64,
    /// `leader`, `follower`, `candidate`, `forming`, `stranger` or `halted`.
    pub role: &'static str,
    /// Why, for the last two.
    pub why: Option<String>,
    /// The current term.
    pub term: u64,
    /// Its leader, if known.
    pub leader: Option<u64>,
    /// The commit index.
    pub commit: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The last entry durable here.
    pub durable: u64,
    /// Up to where entries may have been acknowledged here that the log has lost, as `term.index` or `term.any`; none in
    /// a healthy log.
    pub guard: Option<String>,
    /// All voters have answered, and nobody can tell whether that is committed: `logdrive wal settle` decides it.
    pub undecided: Option<UndecidedLine>,
    /// Entries of the log that cannot be read, and are asked for from peers.
    pub missing: u64,
    /// How many of those have come back from peers since the start.
    pub repaired: u64,
    /// The last entry.
    pub last: u64,
    /// The first entry that is still in the log, or would be.
    pub first: u64,
    /// The last entry that a snapshot covers.
    pub snapshot: Option<u64>,
    /// More about that snapshot.
    pub snapshot_details: Option<SnapshotLine>,
    /// A snapshot that is being taken covers entries up to here.
    pub snapshot_taking: Option<u64>,
    /// Snapshots on their way: fetched by this node, or by followers that it leads.
    pub transfers: Vec<TransferLine>,
    /// Who belongs to it.
    pub members: Vec<MemberLine>,
}

/// What nobody can decide but an operator.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UndecidedLine {
    /// Where the logs that can be read end at most: the index,
    pub index: u64,
    /// the term,
    pub term: u64,
    /// and the chain there.
    pub chain: String,
    /// The nodes whose logs end there.
    pub holders: Vec<u64>,
}

impl UndecidedLine {
    fn of(undecided: &Undecided) -> Self {
        let highest = undecided.highest;
        Self {
            index: highest.index.0,
            term: highest.term.0,
            chain: highest.chain.to_string(),
            holders: undecided.holders.iter().map(|id| id.0).collect(),
        }
    }
}

/// A snapshot in a status.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SnapshotLine {
    /// Which, in hexadecimal.
    pub id: String,
    /// The last entry that it covers.
    pub index: u64,
    /// The term of that.
    pub term: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Seconds since it was taken; none: before this start, or by somebody else.
    pub age_s: Option<u64>,
    /// How long it took, from the request on.
    pub took_ms: Option<u64>,
}

/// A snapshot on its way in a status.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TransferLine {
    /// `fetch`: from that node to this one; `follower`: that node fetches it, from wherever.
    pub direction: &'static str,
    /// The other node.
    pub peer: u64,
    /// The last entry that it covers.
    pub index: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that are there.
    pub bytes_have: u64,
    /// Bytes a second, of late.
    pub bytes_per_s: u64,
    /// Seconds until it is there at that rate; none while nothing moves.
    pub eta_s: Option<u64>,
}

/// A member in a status.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MemberLine {
    /// The operator's number.
    pub node: u64,
    /// The life of its directory, in hexadecimal.
    pub incarnation: String,
    /// `voter` or `learner`.
    pub role: &'static str,
    /// Where peers reach it.
    pub address: String,
}

/// A peer in a status.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PeerLine {
    /// The operator's number.
    pub node: u64,
    /// `connected` or `disconnected`.
    pub state: &'static str,
    /// The highest index known to be durable there, in the first group that this node leads.
    #[serde(rename = "match")]
    pub match_index: Option<u64>,
    /// Bytes of entries on their way.
    pub inflight_bytes: u64,
    /// Round-trip time.
    pub rtt_us: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The log in a status.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct WalLine {
    /// `io_uring` or `pwrite`.
    pub backend: String,
    /// `dsync`, `drained_fsync` or `fdatasync`.
    pub flush_mode: String,
    /// How often the log has changed that, because flushes took much longer than usual.
    pub flush_mode_changes: u64,
    /// Bytes of full segments that were read again to find what went bad.
    pub scrubbed_bytes: u64,
    /// How often all of them were.
    pub scrub_passes: u64,
    /// `auto`, or the mode that `wal.flush_mode` forces and that the log never leaves.
    pub flush_mode_choice: String,
    /// Segment files ready for use.
    pub slots_free: u64,
    /// Segment files in all.
    pub slots: u64,
    /// Segments that are kept.
    pub segments: u64,
    /// Whether proposals are refused for lack of room.
    pub full: bool,
    /// What was wanted and could not be had.
    pub fallbacks: Vec<String>,
    /// Flushes that the disk was asked for.
    pub flushes: u64,
    /// Flush groups written.
    pub flush_groups: u64,
    /// Bytes written, headers and padding included.
    pub bytes_written: u64,
    /// Bytes of frames written.
    pub bytes_payload: u64,
}

/// The network in a status.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct NetLine {
    /// What was wanted and could not be had.
    pub fallbacks: Vec<String>,
}

/// A bounded queue in a status.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QueueLine {
    /// Which.
    pub name: String,
    /// Bytes in it.
    pub bytes: u64,
    /// Its bound.
    pub bytes_max: u64,
}

/// Something an operator should know, until it is over.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Alarm {
    /// Its stable name.
    pub code: &'static str,
    /// The group it is about.
    pub group: Option<u64>,
    /// Seconds after the node's start when it was raised.
    pub since: u64,
    /// What happened, and what is safe.
    pub text: String,
    /// What to do.
    pub advice: String,
}

/// The codes that an [`Alarm`] can have. `docs/errors.md` has a paragraph for each.
pub const ALARM_CODES: &[&str] = &[
    "stranger",
    "mismatch",
    "halted",
    "log_failed",
    "storage_full",
    "log_read_failed",
    "went_bad",
    "guarded",
    "undecided",
    "frame_too_large",
    "snapshot_failed",
    "snapshot_lacking",
    "snapshot_unreadable",
    "snapshot_outrun",
    "log_pinned",
    "panicked",
];

/// A connection to a peer as the transport sees it.
#[derive(Clone, Debug)]
pub(crate) struct LinkStatus {
    pub(crate) node: NodeId,
    pub(crate) connected: bool,
    pub(crate) rtt_us: Option<u64>,
    pub(crate) queued_bytes: usize,
    pub(crate) queue_bytes_max: usize,
    pub(crate) last_error: Option<String>,
}

impl Status {
    /// Whether an operator has nothing to do.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.running
            && self.alarms.is_empty()
            && self.groups.iter().all(|group| {
                let mut transfers = group.transfers.iter();
                group.leader.is_some() && transfers.all(|of| of.direction != "fetch")
            })
            && self.peers.iter().all(|peer| peer.state == "connected")
    }

    /// The status as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers serialise")
    }

    #[allow(clippy::too_many_lines)]
    pub(crate) fn build(
        cluster: &str,
        shard: &ShardStatus,
        links: &[LinkStatus],
        net: &NetMemory,
        limits: &Limits,
        alarms: &[Alarm],
        uptime: Duration,
        running: bool,
        applied: impl Fn(GroupId) -> u64,
        threads: ThreadBytes,
        now: Micros,
    ) -> Self {
        let groups = shard
            .groups
            .iter()
            .map(|group| group_line(group, &applied, now))
            .collect();
        let mut queues = vec![QueueLine {
            name: "apply".to_owned(),
            bytes: threads.apply as u64,
            bytes_max: threads.apply_max as u64,
        }];
        for group in &shard.groups {
            queues.push(QueueLine {
                name: format!("proposals.{}", group.group),
                bytes: group.proposals_bytes as u64,
                bytes_max: group.proposals_bytes_max as u64,
            });
        }
        for link in links {
            queues.push(QueueLine {
                name: format!("peer.{}", link.node),
                bytes: link.queued_bytes as u64,
                bytes_max: link.queue_bytes_max as u64,
            });
        }
        let peers = links.iter().map(|link| peer_line(link, shard)).collect();
        let clients = net.clients.as_ref().map_or(0, |net| net.connections);
        let kept = |group: &logdrive_shard::GroupStatus| group.last.index.0 - group.base.index.0;
        let entries = shard.groups.iter().map(kept).sum();
        let memory_bytes_max = limits.memory_bytes_max(
            shard.groups.len() as u64,
            links.len() as u64,
            clients as u64,
            entries,
        );
        Self {
            schema: "logdrive.status/1",
            node: shard.replica.id.0,
            cluster: cluster.to_owned(),
            incarnation: shard.replica.incarnation.to_string(),
            boot: shard.boot.0,
            version: env!("CARGO_PKG_VERSION"),
            formats: Formats {
                entry: u32::from(ENTRY_VERSION),
                wal: u32::from(logdrive_wal::format::WAL_VERSION),
                protocol: u32::from(logdrive_net::hello::PROTOCOL_MAX),
            },
            uptime_s: uptime.as_secs(),
            running,
            groups,
            peers,
            wal: wal_line(shard),
            net: NetLine::default(),
            queues,
            memory: crate::memory::lines(shard, net, threads, limits),
            memory_bytes_max,
            alarms: alarms.to_vec(),
        }
    }
}

fn group_line(
    group: &logdrive_shard::GroupStatus,
    applied: &impl Fn(GroupId) -> u64,
    now: Micros,
) -> GroupLine {
    let (role, why) = match &group.state {
        GroupState::Forming => ("forming", None),
        GroupState::Stranger(why) => ("stranger", Some(why.clone())),
        GroupState::Running(Role::Leader) => ("leader", None),
        GroupState::Running(Role::Follower) => ("follower", None),
        GroupState::Running(Role::PreCandidate | Role::Candidate) => ("candidate", None),
        GroupState::Halted(why) => ("halted", Some(why.clone())),
        other => ("unknown", Some(format!("{other:?}"))),
    };
    let members = |list: &[logdrive_raft::Member], role| {
        let line = move |member: &logdrive_raft::Member| MemberLine {
            node: member.replica.id.0,
            incarnation: member.replica.incarnation.to_string(),
            role,
            address: member.address.clone(),
        };
        list.iter().map(line).collect::<Vec<_>>()
    };
    let mut all = members(&group.membership.voters, "voter");
    all.extend(members(&group.membership.learners, "learner"));
    GroupLine {
        group: group.group.0,
        role,
        why,
        term: group.term.0,
        leader: group.leader.map(|leader| leader.0),
        commit: group.commit.index.0,
        applied: applied(group.group),
        durable: group.durable,
        guard: group.guard.map(|guard| guard.to_string()),
        undecided: group.undecided.as_ref().map(UndecidedLine::of),
        missing: group.missing,
        repaired: group.repaired,
        last: group.last.index.0,
        first: group.base.index.0 + 1,
        snapshot: group.snapshot.map(|snapshot| snapshot.at.index.0),
        snapshot_details: group.snapshot.map(|snapshot| snapshot_line(&snapshot, now)),
        snapshot_taking: group.snapshot_taking.map(|index| index.0),
        transfers: transfer_lines(group),
        members: all,
    }
}

fn snapshot_line(snapshot: &SnapshotStatus, now: Micros) -> SnapshotLine {
    SnapshotLine {
        id: snapshot.id.to_string(),
        index: snapshot.at.index.0,
        term: snapshot.at.term.0,
        bytes: snapshot.bytes,
        age_s: snapshot.taken.map(|taken| now.since(taken) / 1_000_000),
        took_ms: snapshot.took_us.map(|us| us / 1000),
    }
}

fn transfer_lines(group: &logdrive_shard::GroupStatus) -> Vec<TransferLine> {
    let line = |direction,
                peer: NodeId,
                index: Index,
                (bytes, bytes_have, bytes_per_s): (u64, u64, u64)| {
        TransferLine {
            direction,
            peer: peer.0,
            index: index.0,
            bytes,
            bytes_have,
            bytes_per_s,
            eta_s: bytes.saturating_sub(bytes_have).checked_div(bytes_per_s),
        }
    };
    let fetch = group.fetch.iter().map(|fetch| {
        let figures = (fetch.bytes, fetch.bytes_have, fetch.bytes_per_s);
        line("fetch", fetch.from, fetch.index, figures)
    });
    let followers = group.transfers.iter().map(|(peer, progress)| {
        let figures = (progress.bytes, progress.bytes_have, progress.bytes_per_s);
        line("follower", *peer, progress.at.index, figures)
    });
    fetch.chain(followers).collect()
}

fn peer_line(link: &LinkStatus, shard: &ShardStatus) -> PeerLine {
    let progress = shard
        .groups
        .iter()
        .flat_map(|group| &group.peers)
        .find(|peer| peer.replica.id == link.node);
    PeerLine {
        node: link.node.0,
        state: if link.connected {
            "connected"
        } else {
            "disconnected"
        },
        match_index: progress
            .and_then(|peer| peer.match_index)
            .map(|index| index.0),
        inflight_bytes: progress.map_or(0, |peer| peer.inflight_bytes as u64),
        rtt_us: link.rtt_us,
        last_error: link.last_error.clone(),
    }
}

fn wal_line(shard: &ShardStatus) -> WalLine {
    let wal = &shard.wal;
    WalLine {
        backend: wal.backend.to_owned(),
        flush_mode: wal.flush_mode.name().to_owned(),
        flush_mode_changes: wal.flush_mode_changes,
        scrubbed_bytes: wal.counters.scrubbed_bytes,
        scrub_passes: wal.counters.scrub_passes,
        flush_mode_choice: wal.flush_mode_choice.name().to_owned(),
        slots_free: wal.slots_free as u64,
        slots: wal.slots_total as u64,
        segments: wal.segments as u64,
        full: shard.storage_full,
        fallbacks: wal.fallbacks.clone(),
        flushes: wal.counters.flushes,
        flush_groups: wal.counters.groups,
        bytes_written: wal.counters.bytes_written,
        bytes_payload: wal.counters.bytes_payload,
    }
}
