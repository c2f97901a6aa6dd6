//! How a log is doing, as a copy.

use std::fmt;

use crate::disk::FlushMode;
use crate::options::FlushModeChoice;

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
    /// Segments that were released.
    pub segments_released: u64,
    /// Bytes of sealed segments that were read again.
    pub scrubbed_bytes: u64,
    /// How often all of them have been.
    pub scrub_passes: u64,
}

/// Whether a log has room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It has.
    Now,
    /// Not yet: slots are being made, or what was appended before is being written. Ask again once
    /// something has completed.
    Soon,
    /// It has not.
    Full,
}

/// What whoever hosts a log has admitted, in a turn, and not appended yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Bytes that it will append, at most, with what it keeps for votes.
    pub bytes: usize,
    /// The entries among that.
    pub entries: usize,
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
    /// How that was chosen; but for [`Auto`](FlushModeChoice::Auto) it never changes.
    pub flush_mode_choice: FlushModeChoice,
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
    /// Memory of the buffers for transfers, under way or not.
    pub buffers_bytes: usize,
    /// Bytes of what says where each entry lies.
    pub rows_bytes: usize,
    /// Segments that are kept.
    pub segments: usize,
    /// Sums since the log was opened.
    pub counters: Counters,
    /// How long the flushes took that the counters count.
    pub flush_histogram: FlushHistogram,
}

/// Buckets of a [`FlushHistogram`]: four an octave of microseconds, up to two minutes.
const BUCKETS: usize = 104;

/// How long flushes took: a fixed number of buckets, each a quarter of an octave wide, so that counting
/// costs an addition and a copy costs little.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FlushHistogram {
    counts: [u64; BUCKETS],
}

impl Default for FlushHistogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
        }
    }
}

impl fmt::Debug for FlushHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.rows()).finish()
    }
}

impl FlushHistogram {
    /// Takes note of a flush. What takes longer than the last bucket reaches counts there.
    pub(crate) fn record(&mut self, took_ns: u64) {
        self.counts[bucket_of(took_ns.div_ceil(1000))] += 1;
    }

    /// How many flushes were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted, as (upper bound in microseconds, how often), in rising order.
    pub fn rows(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let rows = self.counts.iter().enumerate();
        let some = rows.filter(|(_, count)| **count > 0);
        some.map(|(bucket, count)| (upper_us(bucket), *count))
    }
}

/// The first four buckets hold one value each; then four take each octave.
fn bucket_of(us: u64) -> usize {
    let Some(octave) = us.checked_ilog2().filter(|octave| *octave >= 2) else {
        return us as usize;
    };
    let quarter = (us >> (octave - 2)) & 3;
    (4 * (octave as usize - 1) + quarter as usize).min(BUCKETS - 1)
}

fn upper_us(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 4 {
        return bucket;
    }
    let (octave, quarter) = (bucket / 4 + 1, bucket % 4);
    ((quarter + 5) << (octave - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_has_a_bucket_that_is_a_quarter_too_high_at_most() {
        for us in
            (0..5000).chain((1..27).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]))
        {
            let upper = upper_us(bucket_of(us));
            assert!(us <= upper && upper <= us + us / 4, "{us} in {upper}");
            assert!(bucket_of(us) == 0 || upper_us(bucket_of(us) - 1) < us);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(upper_us(BUCKETS - 1), (1 << 27) - 1);
    }

    #[test]
    fn what_was_recorded_is_in_the_rows() {
        let mut histogram = FlushHistogram::default();
        for took_ns in [130_000, 131_000, 4_000_000, 130_500] {
            histogram.record(took_ns);
        }
        assert_eq!(histogram.count(), 4);
        let rows: Vec<_> = histogram.rows().collect();
        assert_eq!(rows, [(159, 3), (4095, 1)]);
    }
}
