//! What an embedder may set. Every bound is in bytes or microseconds and has a default that works.

use std::time::Duration;

use logdrive_raft::io::Config;
use logdrive_raft::{Boot, ClusterId, GroupId, Incarnation, NodeId, Replica};
use logdrive_shard::{FETCH_BYTES_MAX, REPAIR_BYTES_MAX, SnapshotSettings};
use logdrive_wal::{FlushModeChoice, FreshIds, Identity, Options, ScrubPace};

/// Bounds of memory and of what waits.
///
/// Together they bound what a node holds; ARCHITECTURE.md has the formula.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of proposals between the door and the answer, a group.
    pub proposals_bytes_max: usize,
    /// Bytes of entries that wait for a quorum, a group.
    pub uncommitted_bytes_max: usize,
    /// Entries that wait for a quorum, a group.
    pub uncommitted_entries_max: usize,
    /// Bytes of entries on their way to one follower, a group.
    pub inflight_bytes_max: usize,
    /// Bytes of entries in one append message.
    pub append_bytes_max: usize,
    /// Bytes of entries kept in memory to feed followers and the machine, a group.
    pub cache_bytes_max: usize,
    /// Bytes of committed entries that wait for the machines.
    pub apply_bytes_max: usize,
    /// Bytes of messages that wait for one peer.
    pub peer_queue_bytes_max: usize,
    /// Bytes of messages from peers that wait for the shard.
    pub inbox_bytes_max: usize,
    /// Bytes of clients' requests that wait for the shard. While as many bytes of answers wait for a client,
    /// its requests are not read.
    pub client_bytes_max: usize,
    /// Bytes of answers that wait for one client. The operation whose answer would be more is told so.
    pub client_answers_bytes_max: usize,
}

/// How many requests of one client connection may wait for an answer.
pub(crate) const CLIENT_UNANSWERED_MAX: usize = 1 << 17;

impl Default for Limits {
    fn default() -> Self {
        Self {
            proposals_bytes_max: 64 << 20,
            uncommitted_bytes_max: 8 << 20,
            uncommitted_entries_max: 8,
            inflight_bytes_max: 8 << 20,
            append_bytes_max: 1 << 20,
            cache_bytes_max: 32 << 20,
            apply_bytes_max: 16 << 20,
            peer_queue_bytes_max: 16 << 20,
            inbox_bytes_max: 16 << 20,
            client_bytes_max: 8 << 20,
            client_answers_bytes_max: 32 << 20,
        }
    }
}

impl Limits {
    /// The most bytes that a node with these bounds holds besides its program and its machines, while it
    /// takes part in so many groups, has so many peers and client connections, and so many entries lie in
    /// its log. The sum of all bounds: a frame that several queues hold is counted at each of them.
    #[must_use]
    pub fn memory_bytes_max(&self, groups: u64, peers: u64, clients: u64, entries: u64) -> u64 {
        // What QUIC keeps for a connection both ways. Of what it receives from a peer, the append streams of
        // all groups share a window, but each has its least.
        const PEER_WINDOWS_BYTES: u64 = 4 << 20;
        // Parts of snapshots wait for a peer in a lane of their own.
        const PEER_PARTS_BYTES: u64 = 2 << 20;
        const BULK_WINDOW_BYTES: u64 = 8 << 20;
        const STREAM_WINDOW_BYTES_MIN: u64 = 64 << 10;
        const CLIENT_WINDOWS_BYTES: u64 = 4 << 20;
        // Each request may have an answer without an output, which is this long at most.
        const CLIENT_ANSWERS_BYTES: u64 = CLIENT_UNANSWERED_MAX as u64 * 32;
        // The buffers of the log's ring.
        const RING_BYTES: u64 = 19 << 20;
        // Where an entry lies, in the core and in the log, in vectors that grow by doubling.
        const ENTRY_BYTES: u64 = 96;
        // Parts of snapshots that are read for peers or wait for the disk: 2 MiB. What is being written: two chunks. What
        // is read ahead for a machine: as much, and 2 MiB.
        const SNAPSHOT_BYTES: u64 = 6 << 20;
        let bytes = |bytes: usize| bytes as u64;
        let group = bytes(self.proposals_bytes_max)
            + bytes(self.uncommitted_bytes_max)
            + bytes(self.cache_bytes_max)
            + bytes(FETCH_BYTES_MAX);
        let shard = bytes(self.apply_bytes_max) + 2 * bytes(self.inbox_bytes_max);
        let bulk = BULK_WINDOW_BYTES.max(groups * STREAM_WINDOW_BYTES_MIN);
        let peer = bytes(self.peer_queue_bytes_max) + PEER_PARTS_BYTES + PEER_WINDOWS_BYTES + bulk;
        let window = bytes(self.inflight_bytes_max);
        let client = bytes(self.client_bytes_max)
            + bytes(self.client_answers_bytes_max)
            + CLIENT_ANSWERS_BYTES
            + CLIENT_WINDOWS_BYTES;
        groups * (group + peers * window)
            + shard
            + peers * peer
            + clients * client
            + RING_BYTES
            + SNAPSHOT_BYTES
            + bytes(REPAIR_BYTES_MAX)
            + entries * ENTRY_BYTES
    }

    /// Why no node can run with these bounds, if none can; what the core has to say is not among it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = [
            ("proposals_bytes_max", self.proposals_bytes_max),
            ("apply_bytes_max", self.apply_bytes_max),
            ("peer_queue_bytes_max", self.peer_queue_bytes_max),
            ("inbox_bytes_max", self.inbox_bytes_max),
            ("client_bytes_max", self.client_bytes_max),
            ("client_answers_bytes_max", self.client_answers_bytes_max),
        ];
        if let Some((name, _)) = bounds.iter().find(|(_, bytes)| *bytes == 0) {
            return Err(format!("limits.{name} is 0: nothing would ever pass"));
        }
        Ok(())
    }

    /// All byte bounds divided by `by`, as far as one largest entry still fits: for small machines and
    /// for tests of the bounds.
    #[must_use]
    pub fn divided(&self, by: usize) -> Self {
        let entry = logdrive_raft::limits::FRAME_BYTES_MAX;
        let part = |bytes: usize| (bytes / by).max(entry);
        Self {
            proposals_bytes_max: part(self.proposals_bytes_max),
            uncommitted_bytes_max: part(self.uncommitted_bytes_max),
            uncommitted_entries_max: self.uncommitted_entries_max,
            inflight_bytes_max: part(self.inflight_bytes_max),
            append_bytes_max: (self.append_bytes_max / by).max(64 << 10),
            cache_bytes_max: part(self.cache_bytes_max),
            apply_bytes_max: part(self.apply_bytes_max),
            peer_queue_bytes_max: part(self.peer_queue_bytes_max),
            inbox_bytes_max: part(self.inbox_bytes_max),
            client_bytes_max: part(self.client_bytes_max),
            client_answers_bytes_max: part(self.client_answers_bytes_max),
        }
    }
}

/// Timings of elections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RaftSettings {
    /// The shortest election timeout.
    pub election_timeout_min: Duration,
    /// The longest election timeout.
    pub election_timeout_max: Duration,
    /// How often an idle follower hears of its leader.
    pub heartbeat_interval: Duration,
    /// How long a leader's own disk may trail a follower's before it gives up leading.
    pub disk_lag_max: Duration,
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self {
            election_timeout_min: Duration::from_millis(150),
            election_timeout_max: Duration::from_millis(300),
            heartbeat_interval: Duration::from_millis(50),
            disk_lag_max: Duration::from_secs(1),
        }
    }
}

impl RaftSettings {
    /// Why no node can run with these timings, if none can.
    pub(crate) fn check(&self) -> Result<(), String> {
        let times = [
            ("election_timeout_min", self.election_timeout_min),
            ("election_timeout_max", self.election_timeout_max),
            ("heartbeat_interval", self.heartbeat_interval),
            ("disk_lag_max", self.disk_lag_max),
        ];
        for (name, time) in times {
            if time < TIME_MIN || time > TIME_MAX {
                return Err(format!(
                    "raft.{name} is {time:?}: at least {TIME_MIN:?}, at most {TIME_MAX:?}"
                ));
            }
        }
        if self.election_timeout_min > self.election_timeout_max {
            return Err(
                "raft.election_timeout_min is longer than raft.election_timeout_max".to_owned(),
            );
        }
        if self.heartbeat_interval * 2 > self.election_timeout_min {
            return Err(
                "raft.heartbeat_interval must be at most half of raft.election_timeout_min, or one \
                 lost heartbeat deposes a healthy leader"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Below the first a timer is noise; beyond the second nothing would ever happen.
const TIME_MIN: Duration = Duration::from_millis(1);
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The log on disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WalSettings {
    /// Bytes of one segment file.
    pub slot_bytes: u64,
    /// Bytes that all segment files together may take.
    pub bytes_max: u64,
    /// How the log reaches the disk.
    pub backend: WalBackend,
    /// How writes become durable.
    pub flush_mode: WalFlushMode,
    /// How fast sealed segments are read again, to find what goes bad at rest.
    pub scrub_bytes_per_s: u64,
    /// They are not all read more often than this; a start reads them, too.
    pub scrub_interval: Duration,
}

impl Default for WalSettings {
    fn default() -> Self {
        Self {
            slot_bytes: 64 << 20,
            bytes_max: 8 << 30,
            backend: WalBackend::Auto,
            flush_mode: WalFlushMode::Auto,
            scrub_bytes_per_s: 4 << 20,
            scrub_interval: Duration::from_secs(3600),
        }
    }
}

impl WalSettings {
    pub(crate) fn options(&self, identity: Identity, fresh: FreshIds) -> Options {
        let mut options = Options::new(identity, fresh).with_pool(self.slot_bytes, self.bytes_max);
        options.flush_mode = self.flush_mode.into();
        options.scrub = Some(ScrubPace {
            bytes_per_s: self.scrub_bytes_per_s,
            every_us: u64::try_from(self.scrub_interval.as_micros()).unwrap_or(u64::MAX),
        });
        options
    }

    /// Why no log can be opened with these sizes, if none can.
    pub(crate) fn check(&self) -> Result<(), String> {
        let nobody = Identity {
            cluster: ClusterId(0),
            node: NodeId(0),
        };
        let fresh = FreshIds {
            incarnation: Incarnation(0),
            log_uuid: 0,
        };
        let sizes = self.options(nobody, fresh).check_sizes();
        sizes.map_err(|text| format!("wal.slot_bytes, wal.bytes_max: {text}"))
    }
}

/// How the log reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalBackend {
    /// io_uring where it works, else plain writes; status says which.
    #[default]
    Auto,
    /// io_uring, or the node does not start.
    IoUring,
    /// Plain writes on a thread.
    Pwrite,
}

/// How what is written to the log becomes durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalFlushMode {
    /// Whichever was faster when both were tried on this disk, until flushes take much longer than usual: then
    /// the other one. Status says which it is.
    #[default]
    Auto,
    /// Each write is durable when it completes, whatever it takes.
    Dsync,
    /// Plain writes and one flush at a time over all that have completed, whatever it takes.
    DrainedFsync,
}

impl From<WalFlushMode> for FlushModeChoice {
    fn from(mode: WalFlushMode) -> Self {
        match mode {
            WalFlushMode::Auto => Self::Auto,
            WalFlushMode::Dsync => Self::Dsync,
            WalFlushMode::DrainedFsync => Self::DrainedFsync,
        }
    }
}

pub(crate) fn core_settings(limits: &Limits, raft: &RaftSettings, seed: u64) -> Config {
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    Config {
        // Who and where are filled in by the shard.
        replica: Replica::default(),
        boot: Boot(0),
        group: GroupId(0),
        election_timeout_min_us: us(raft.election_timeout_min),
        election_timeout_max_us: us(raft.election_timeout_max),
        heartbeat_interval_us: us(raft.heartbeat_interval),
        inflight_bytes_max: limits.inflight_bytes_max,
        inflight_entries_max: 1024,
        append_bytes_max: limits.append_bytes_max,
        uncommitted_bytes_max: limits.uncommitted_bytes_max,
        uncommitted_entries_max: limits.uncommitted_entries_max,
        cache_bytes_max: limits.cache_bytes_max,
        disk_lag_us_max: us(raft.disk_lag_max),
        disk_lag_bytes_max: limits.uncommitted_bytes_max,
        seed,
        mutant: None,
    }
}

/// What counts of these with a log of that size: a snapshot after a quarter of the pool at most, and no more of it kept.
pub(crate) fn snapshots_for(snapshots: &SnapshotSettings, wal: &WalSettings) -> SnapshotSettings {
    let quarter = wal.bytes_max / 4;
    let mut fitting = snapshots.clone();
    if snapshots.log_bytes != u64::MAX {
        fitting.log_bytes = snapshots.log_bytes.min(quarter);
    }
    fitting.keep_log_bytes = snapshots.keep_log_bytes.min(quarter);
    fitting.retain_log_bytes = snapshots.retain_log_bytes.min(2 * quarter);
    fitting
}

/// Why snapshots cannot be taken or fetched like this, if they cannot.
pub(crate) fn check_snapshots(snapshots: &SnapshotSettings) -> Result<(), String> {
    let more_than_nothing = [
        ("log_bytes", snapshots.log_bytes),
        ("log_entries", snapshots.log_entries),
        ("fetch_bytes_per_s", snapshots.fetch_bytes_per_s),
        ("catch_up_bytes_per_s", snapshots.catch_up_bytes_per_s),
        ("write_bytes_per_s", snapshots.write_bytes_per_s),
    ];
    if let Some((name, _)) = more_than_nothing.iter().find(|(_, value)| *value == 0) {
        return Err(format!(
            "snapshots.{name} is 0: nothing would ever be written"
        ));
    }
    Ok(())
}

/// Why no node can run with these settings, if none can.
pub(crate) fn check(limits: &Limits, raft: &RaftSettings, wal: &WalSettings) -> Result<(), String> {
    raft.check()?;
    limits.check()?;
    wal.check()?;
    core_settings(limits, raft, 0).check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_node_can_run_with_is_refused_with_its_name() {
        type Spoil = fn(&mut Limits, &mut RaftSettings, &mut WalSettings);
        let cases: [(Spoil, &str); 13] = [
            (|l, _, _| l.append_bytes_max = 1 << 30, "append_bytes_max"),
            (|l, _, _| l.append_bytes_max = 0, "append_bytes_max"),
            (|l, _, _| l.uncommitted_bytes_max = 0, "uncommitted_bytes"),
            (|l, _, _| l.uncommitted_entries_max = 0, "uncommitted_ent"),
            (|l, _, _| l.inflight_bytes_max = 0, "inflight_bytes_max"),
            (|l, _, _| l.peer_queue_bytes_max = 0, "peer_queue_bytes"),
            (|_, r, _| r.heartbeat_interval = Duration::ZERO, "heartbeat"),
            (|_, r, _| r.disk_lag_max = Duration::ZERO, "disk_lag_max"),
            (|_, r, _| r.disk_lag_max = Duration::MAX, "disk_lag_max"),
            (
                |_, r, _| r.heartbeat_interval *= 2,
                "half of raft.election_timeout_min",
            ),
            (|_, _, w| w.slot_bytes = 65_537, "not whole blocks"),
            (
                |_, _, w| w.bytes_max = 64 << 10,
                "65536 bytes hold fewer than 6 slots of 67108864",
            ),
            (|_, _, w| w.slot_bytes = 0, "slots of 0 bytes"),
        ];
        for (spoil, says) in cases {
            let (mut limits, mut raft, mut wal) = Default::default();
            spoil(&mut limits, &mut raft, &mut wal);
            let wrong = check(&limits, &raft, &wal).unwrap_err();
            assert!(wrong.contains(says), "{wrong:?} lacks {says}");
        }
        for by in [1, 16, 1 << 20] {
            let limits = Limits::default().divided(by);
            check(&limits, &RaftSettings::default(), &WalSettings::default()).unwrap();
        }
    }

    #[test]
    fn the_bound_of_memory_grows_with_everything_it_depends_on() {
        let limits = Limits::default();
        let one = limits.memory_bytes_max(1, 2, 1, 0);
        assert_eq!(
            limits.memory_bytes_max(1, 2, 1, 1_000_000) - one,
            96_000_000
        );
        assert_eq!(limits.memory_bytes_max(1, 2, 2, 0) - one, 48 << 20);
        assert_eq!(
            limits.memory_bytes_max(1, 3, 1, 0) - one,
            (16 + 8 + 2 + 12) << 20
        );
        assert_eq!(
            limits.memory_bytes_max(2, 2, 1, 0) - one,
            (64 + 8 + 32 + 1 + 16) << 20
        );
        // Beyond 128 groups the least windows of their streams are more than what streams share.
        let windows = |groups| {
            let with_peers = limits.memory_bytes_max(groups, 2, 1, 0);
            let queues =
                limits.peer_queue_bytes_max as u64 + groups * limits.inflight_bytes_max as u64;
            with_peers - limits.memory_bytes_max(groups, 0, 1, 0) - 2 * queues
        };
        assert_eq!(windows(1), 2 * (14 << 20));
        assert_eq!(windows(128), windows(1));
        assert_eq!(windows(1024), 2 * ((6 << 20) + (64 << 20)));
        assert!(limits.divided(16).memory_bytes_max(1, 2, 1, 0) < one / 2);
    }
}
