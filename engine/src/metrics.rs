//! What a node counts. Copied out whole; nobody holds a guard on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use logdrive_wal::FlushHistogram;

/// Latencies are kept from 1 µs to 1 minute with two digits.
const HISTOGRAM_MAX_US: u64 = 60_000_000;

/// The counters of a node while it runs.
#[derive(Debug)]
pub(crate) struct Metrics {
    applied_entries: AtomicU64,
    applied_proposals: AtomicU64,
    turns: AtomicU64,
    leader_changes: AtomicU64,
    apply: Mutex<Histogram<u64>>,
    snapshot_handle: Mutex<Histogram<u64>>,
    snapshots: AtomicU64,
    snapshots_failed: AtomicU64,
    snapshots_installed: AtomicU64,
    snapshot_bytes_sent: AtomicU64,
    entries_repaired: AtomicU64,
    commit: Mutex<Histogram<u64>>,
}

/// A copy of what a node has counted since it started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MetricsSnapshot {
    /// Batches applied.
    pub apply_batches: u64,
    /// Proposals applied.
    pub applied_proposals: u64,
    /// Turns of the shard.
    pub turns: u64,
    /// Changes of role, term or leader seen.
    pub leader_changes: u64,
    /// Time to apply a batch, in microseconds.
    pub apply_us: Histogram<u64>,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Snapshots that could not be taken or fetched.
    pub snapshots_failed: u64,
    /// Snapshots that came from a peer and were installed.
    pub snapshots_installed: u64,
    /// Bytes of parts of snapshots handed to the network for peers.
    pub snapshot_bytes_sent: u64,
    /// Entries of the log that could not be read and have come back from peers.
    pub entries_repaired: u64,
    /// Time for which a machine that hands over its state does not apply, in microseconds.
    pub snapshot_handle_us: Histogram<u64>,
    /// Time from handing an entry to the core to its commit, on the leader, in microseconds.
    pub commit_us: Histogram<u64>,
    /// Time of a flush of the log, in microseconds, as `(upper bound, count)` in rising order.
    pub flush_us: Vec<(u64, u64)>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            applied_entries: AtomicU64::new(0),
            applied_proposals: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            leader_changes: AtomicU64::new(0),
            apply: Mutex::new(histogram()),
            snapshot_handle: Mutex::new(histogram()),
            snapshots: AtomicU64::new(0),
            snapshots_failed: AtomicU64::new(0),
            snapshots_installed: AtomicU64::new(0),
            snapshot_bytes_sent: AtomicU64::new(0),
            entries_repaired: AtomicU64::new(0),
            commit: Mutex::new(histogram()),
        }
    }

    pub(crate) fn applied(&self, proposals: u64, took: Duration) {
        self.applied_entries.fetch_add(1, Ordering::Relaxed);
        self.applied_proposals
            .fetch_add(proposals, Ordering::Relaxed);
        record(
            &self.apply,
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        );
    }

    pub(crate) fn committed(&self, us: u64) {
        record(&self.commit, us);
    }

    pub(crate) fn snapshot_handle(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        record(&self.snapshot_handle, us);
    }

    pub(crate) fn snapshot_taken(&self) {
        self.snapshots.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot_failed(&self) {
        self.snapshots_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot_installed(&self) {
        self.snapshots_installed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot_part_sent(&self, bytes: usize) {
        self.snapshot_bytes_sent
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn repaired(&self, entries: u64) {
        self.entries_repaired.fetch_add(entries, Ordering::Relaxed);
    }

    pub(crate) fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leader_change(&self) {
        self.leader_changes.fetch_add(1, Ordering::Relaxed);
    }

    /// A copy, with what the log last said of its flushes.
    pub(crate) fn snapshot(&self, flushes: &FlushHistogram) -> MetricsSnapshot {
        MetricsSnapshot {
            apply_batches: self.applied_entries.load(Ordering::Relaxed),
            applied_proposals: self.applied_proposals.load(Ordering::Relaxed),
            turns: self.turns.load(Ordering::Relaxed),
            leader_changes: self.leader_changes.load(Ordering::Relaxed),
            apply_us: copy(&self.apply),
            snapshots: self.snapshots.load(Ordering::Relaxed),
            snapshots_failed: self.snapshots_failed.load(Ordering::Relaxed),
            snapshots_installed: self.snapshots_installed.load(Ordering::Relaxed),
            snapshot_bytes_sent: self.snapshot_bytes_sent.load(Ordering::Relaxed),
            entries_repaired: self.entries_repaired.load(Ordering::Relaxed),
            snapshot_handle_us: copy(&self.snapshot_handle),
            commit_us: copy(&self.commit),
            flush_us: flushes.rows().collect(),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(HISTOGRAM_MAX_US, 2).expect("two digits up to a minute are possible")
}

fn record(histogram: &Mutex<Histogram<u64>>, us: u64) {
    histogram
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .saturating_record(us.clamp(1, HISTOGRAM_MAX_US));
}

fn copy(histogram: &Mutex<Histogram<u64>>) -> Histogram<u64> {
    histogram
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}
