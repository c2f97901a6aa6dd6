//! How a log is doing, as a copy.

use crate::disk::FlushMode;

/// Sums since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flushes that completed; with DSYNC, writes.
    pub flushes: u64,
    /// Those among them that were durable writes.
    pub flushes_dsync: u64,
    /// Those among them that came after plain writes.
    pub flushes_drained: u64,
    /// Flush groups that were built.
    pub groups: u64,
    /// Bytes of blocks submitted for writing.
    pub bytes_written: u64,
    /// Bytes of frames among them.
    pub bytes_payload: u64,
    /// What the flushes took together, from submission to completion.
    pub flush_ns_sum: u64,
    /// The longest one.
    pub flush_ns_max: u64,
    /// Reads that completed.
    pub reads: u64,
    /// Bytes of blocks read for them.
    pub bytes_read: u64,
}

/// How a log is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalStatus {
    /// Which disk: `io_uring`, `pwrite` or `sim`.
    pub backend: &'static str,
    /// Reads and writes go past the page cache.
    pub direct: bool,
    /// How writes become durable.
    pub flush_mode: FlushMode,
    /// How often the watchdog has changed that.
    pub flush_mode_changes: u64,
    /// Slots that are ready for use.
    pub slots_free: usize,
    /// Slots that are complete, in use or free.
    pub slots_total: usize,
    /// Bytes of a new slot.
    pub slot_bytes: u64,
    /// Proposals are refused for want of room.
    pub full: bool,
    /// What was wanted and could not be had.
    pub fallbacks: Vec<String>,
    /// Bytes that wait for a flush group.
    pub queued_bytes: usize,
    /// Segments that are kept.
    pub segments: usize,
    /// Sums since the log was opened.
    pub counters: Counters,
}
