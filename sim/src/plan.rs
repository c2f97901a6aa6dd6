//! What a run is set up with: every number that does not change while it runs.

use serde::{Deserialize, Serialize};

/// Shortest and longest, both included.
pub type Span = (u64, u64);

/// How a run is set up. A seed draws one; a script holds one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// How many nodes, numbered from 1. All of them are voters.
    pub nodes: u64,
    /// How many groups, numbered from 1.
    pub groups: u64,
    /// The nodes that are healed at the end and must then make progress by themselves: a majority.
    /// What a disk cannot recover from happens to the others alone.
    pub core: Vec<u64>,
    /// Beyond the limit: disks may lie and lose what they said they had. Then the cluster need not go on,
    /// but whoever stops has to say why.
    pub beyond_limit: bool,
    /// Disks are taken at their word also where a step tells them to lie. Then promises are broken within the
    /// limit, and the oracle has to see it: for whoever wants to know whether it can see anything.
    #[serde(default)]
    pub canary: bool,
    /// Virtual time with faults, in microseconds.
    pub faulty_us: u64,
    /// Virtual time that the healed core has for coming together.
    pub healthy_us: u64,
    /// How much of that, at its end, nobody asks for anything.
    pub quiet_us: u64,
    /// Election timeouts and the ids of directories follow from it.
    pub raft_seed: u64,
    /// The nodes.
    pub node: NodePlan,
    /// Their disks.
    pub disk: DiskPlan,
    /// The network.
    pub network: NetworkPlan,
    /// The clients.
    pub client: ClientPlan,
    /// Snapshots. None are taken by themselves in a script that says nothing of them.
    #[serde(default)]
    pub snapshot: SnapshotPlan,
}

/// How nodes are set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePlan {
    /// How fast each node's clock runs, in millionths of the true rate.
    pub clock_ppm: Vec<u64>,
    /// How long a turn keeps its thread busy; what comes meanwhile is in the next one.
    pub turn_us: u64,
    /// How long applying a batch takes.
    pub apply_us: u64,
    /// Bytes of committed entries that wait for the applier.
    pub apply_bytes_max: u64,
    /// Bytes of frames that a core keeps in memory.
    pub cache_bytes_max: u64,
    /// Bytes of proposals that wait for answers.
    pub inbox_bytes_max: u64,
    /// Bytes of entries that a leader has appended and not committed.
    pub uncommitted_bytes_max: u64,
    /// Bytes of entries on their way to a follower.
    pub inflight_bytes_max: u64,
    /// Entries on their way to a follower.
    pub inflight_entries_max: u64,
    /// Bytes of entries in an append.
    pub append_bytes_max: u64,
    /// How long a leader's disk may be behind a follower's.
    pub disk_lag_us_max: u64,
    /// By how many bytes of log.
    pub disk_lag_bytes_max: u64,
}

/// How disks are set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskPlan {
    /// Bytes of a slot file.
    pub slot_bytes: u64,
    /// Bytes of all slot files.
    pub bytes_max: u64,
    /// Reads come from the medium; otherwise from a page cache.
    pub direct: bool,
    /// Plain writes and one flush at a time, in place of writes that are durable when they end.
    pub drained_fsync: bool,
    /// What a write takes.
    pub write_us: Span,
    /// What a flush takes.
    pub flush_us: Span,
    /// What a read takes.
    pub read_us: Span,
    /// How many flushes in a hundred take twenty times as long.
    pub starved_percent: u8,
    /// Power cuts tear blocks into sectors of 512 bytes.
    pub tear_sectors: bool,
    /// Logs read their sealed segments again.
    #[serde(default)]
    pub scrubs: bool,
    /// How often what fails by itself, in millionths of the operations, while there are faults.
    pub rates: DiskRates,
}

/// How often operations fail by themselves, in a million.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskRates {
    /// Reads.
    pub read_error_ppm: u32,
    /// Reads that end early and say so.
    pub short_read_ppm: u32,
    /// Writes.
    pub write_error_ppm: u32,
    /// Writes that end early and say so.
    pub short_write_ppm: u32,
    /// Flushes.
    pub flush_error_ppm: u32,
    /// Slots that cannot be made or filled for want of space.
    pub no_space_ppm: u32,
    /// Operations that take very long.
    pub stall_ppm: u32,
}

/// How the network is set up. Every directed link has the same figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlan {
    /// What most messages take.
    pub delay_us: Span,
    /// What slow ones take.
    pub slow_us: Span,
    /// How many in a million are slow.
    pub slow_ppm: u32,
    /// How many in a million are lost.
    pub loss_ppm: u32,
    /// How many in a million arrive twice.
    pub repeat_ppm: u32,
    /// Messages of a lane arrive in the order in which they were sent, as on a stream.
    pub in_order: bool,
    /// What was under way when a connection ended may still arrive over the next one.
    pub late: bool,
    /// Bytes a second over each link; 0 for no limit.
    pub bytes_per_s: u64,
    /// Bytes that an append lane takes.
    pub lane_bytes_max: u64,
}

/// When snapshots are taken, how much log is kept, and how long that takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotPlan {
    /// After so many bytes of log one is taken; 0: none is taken by itself.
    pub log_bytes: u64,
    /// Or after so many entries.
    pub log_entries: u64,
    /// So much of the newest log stays, whatever snapshots cover.
    pub keep_log_bytes: u64,
    /// And at most so much for whoever fetches one.
    pub retain_log_bytes: u64,
    /// How fast one is fetched.
    pub fetch_bytes_per_s: u64,
    /// How long the store takes for a job.
    pub store_us: u64,
    /// So much is in each snapshot besides what the machine writes.
    pub padding_bytes: u64,
}

impl Default for SnapshotPlan {
    fn default() -> Self {
        Self {
            log_bytes: 0,
            log_entries: 0,
            keep_log_bytes: 64 << 20,
            retain_log_bytes: 1 << 30,
            fetch_bytes_per_s: 64 << 20,
            store_us: 500,
            padding_bytes: 0,
        }
    }
}

/// How clients behave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientPlan {
    /// After so long a client gives up on an answer.
    pub timeout_us: u64,
    /// How long it waits before it tries another node.
    pub retry_us: u64,
    /// While a healed core settles nobody asks for anything new.
    pub rests: bool,
}

/// What a snapshot may hold beside its padding.
const VALUES_BYTES: u64 = 2 << 20;

impl Plan {
    /// How long it takes to bring one node up in every group, in microseconds.
    #[must_use]
    pub fn fetch_us(&self) -> u64 {
        let bytes = self.groups * (self.snapshot.padding_bytes + VALUES_BYTES);
        bytes * 1_000_000 / self.snapshot.fetch_bytes_per_s
    }

    /// A plan in which nothing goes wrong by itself: so many nodes, all of them needed, on quick disks and
    /// a quick network.
    #[must_use]
    pub fn calm(nodes: u64, groups: u64) -> Self {
        Self {
            nodes,
            groups,
            core: (1..=nodes).collect(),
            beyond_limit: false,
            canary: false,
            faulty_us: 1_000_000,
            healthy_us: 3_000_000,
            quiet_us: 600_000,
            raft_seed: 1,
            node: NodePlan {
                clock_ppm: Vec::new(),
                turn_us: 5,
                apply_us: 5,
                apply_bytes_max: 1 << 20,
                cache_bytes_max: 64 << 10,
                inbox_bytes_max: 1 << 20,
                uncommitted_bytes_max: 128 << 10,
                inflight_bytes_max: 64 << 10,
                inflight_entries_max: 16,
                append_bytes_max: 32 << 10,
                disk_lag_us_max: 1_000_000,
                disk_lag_bytes_max: 1 << 20,
            },
            disk: DiskPlan {
                slot_bytes: 64 << 10,
                bytes_max: 16 << 20,
                direct: true,
                drained_fsync: false,
                write_us: (20, 80),
                flush_us: (50, 200),
                read_us: (20, 80),
                starved_percent: 0,
                tear_sectors: false,
                scrubs: false,
                rates: DiskRates::default(),
            },
            network: NetworkPlan {
                delay_us: (20, 200),
                slow_us: (1_000, 60_000),
                slow_ppm: 0,
                loss_ppm: 0,
                repeat_ppm: 0,
                in_order: true,
                late: false,
                bytes_per_s: 0,
                lane_bytes_max: 1 << 20,
            },
            client: ClientPlan {
                timeout_us: 500_000,
                retry_us: 20_000,
                rests: false,
            },
            snapshot: SnapshotPlan::default(),
        }
    }
}
