//! What was measured: histograms and counts, per worker and second, gathered and merged.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};

/// The longest latency that is told apart from longer ones: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Latencies in nanoseconds, to three figures.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Self(histogram.expect("the bounds are constant and sound"))
    }
}

impl Latencies {
    /// Notes `count` operations that took this long.
    pub fn record(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns, count);
    }

    /// Adds what others recorded.
    pub fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many operations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that so many of 10 000 operations do not exceed; `None` if fewer than ten exceed it: it
    /// would say more about luck than about the system.
    #[must_use]
    pub fn percentile(&self, per_ten_thousand: u64) -> Option<u64> {
        assert!(per_ten_thousand < 10_000);
        let beyond = u128::from(self.count()) * u128::from(10_000 - per_ten_thousand) / 10_000;
        let quantile = per_ten_thousand as f64 / 10_000.0;
        (beyond >= BEYOND_MIN).then(|| self.0.value_at_quantile(quantile))
    }

    /// The longest; `None` if there are no operations.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.count() > 0).then(|| self.0.max())
    }

    /// The mean; `None` if there are no operations.
    #[must_use]
    pub fn mean(&self) -> Option<u64> {
        (self.count() > 0).then(|| self.0.mean() as u64)
    }

    /// HdrHistogram's deflated V2 form, as base64: anybody can merge and recompute.
    #[must_use]
    pub fn to_base64(&self) -> String {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.0, &mut bytes)
            .expect("memory takes everything");
        STANDARD.encode(bytes)
    }
}

/// A percentile is told if at least so many samples lie beyond it.
const BEYOND_MIN: u128 = 10;

/// Counts. All but `offered` and `sent` are of operations that have come to an end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations that were due inside the measurement.
    pub offered: u64,
    /// Those of them that were handed to the target.
    pub sent: u64,
    /// Operations acknowledged inside it.
    pub completed: u64,
    /// Those of them that write.
    pub completed_writes: u64,
    /// Bytes of values that they wrote.
    pub payload_bytes: u64,
    /// Writes acknowledged, inside and outside of it.
    pub acked_writes: u64,
    /// Acknowledged before something that was sent after it was acknowledged.
    pub reordered: u64,
    /// Operations due inside it that may or may not be in the log, by code.
    pub unknown: BTreeMap<&'static str, u64>,
    /// Operations due inside it that are not in the log, by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// Operations sent again.
    pub retries: u64,
}

impl Tally {
    /// Adds another's counts.
    pub fn merge(&mut self, other: &Tally) {
        self.offered += other.offered;
        self.sent += other.sent;
        self.completed += other.completed;
        self.completed_writes += other.completed_writes;
        self.payload_bytes += other.payload_bytes;
        self.acked_writes += other.acked_writes;
        self.reordered += other.reordered;
        self.retries += other.retries;
        for (code, count) in &other.unknown {
            *self.unknown.entry(code).or_default() += count;
        }
        for (code, count) in &other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }
}

/// What one worker measured in one second, or all of them in a whole run.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// From when operations were due to their acknowledgement.
    pub schedule: Latencies,
    /// From when they were first handed over.
    pub send: Latencies,
    /// From when they were due to when they were handed over: what the generator itself added.
    pub lag: Latencies,
    /// Counts.
    pub tally: Tally,
}

impl Measured {
    /// Adds what others measured.
    pub fn merge(&mut self, other: &Measured) {
        self.schedule.merge(&other.schedule);
        self.send.merge(&other.send);
        self.lag.merge(&other.lag);
        self.tally.merge(&other.tally);
    }

    /// Starts anew, with the same memory.
    pub fn clear(&mut self) {
        self.schedule.clear();
        self.send.clear();
        self.lag.clear();
        self.tally = Tally::default();
    }
}

/// One second of the run, closed.
#[derive(Clone, Debug)]
pub struct Second {
    /// Which one, counted from the start of the load.
    pub number: u64,
    /// Its schedule latencies, encoded.
    pub schedule_base64: String,
    /// Its send latencies, encoded.
    pub send_base64: String,
    /// Its longest schedule and send latency.
    pub max_ns: (u64, u64),
}

/// Gathers what workers measured.
#[derive(Debug, Default)]
pub struct Collector {
    gathered: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    /// Seconds that workers may still add to.
    open: BTreeMap<u64, Measured>,
    closed: Vec<Second>,
    total: Measured,
}

impl Collector {
    /// Adds what a worker measured in a second.
    pub fn add(&self, second: u64, measured: &Measured) {
        let mut gathered = self.lock();
        gathered.total.merge(measured);
        gathered.open.entry(second).or_default().merge(measured);
    }

    /// Takes the oldest second up to `through` that has not been taken, for the live line.
    pub fn close(&self, through: u64) -> Option<(u64, Measured)> {
        let mut gathered = self.lock();
        let entry = gathered.open.first_entry()?;
        if *entry.key() > through {
            return None;
        }
        let (number, measured) = entry.remove_entry();
        drop(gathered);
        // Compressed outside of the lock: workers go on.
        let second = Second {
            number,
            schedule_base64: measured.schedule.to_base64(),
            send_base64: measured.send.to_base64(),
            max_ns: (
                measured.schedule.max().unwrap_or(0),
                measured.send.max().unwrap_or(0),
            ),
        };
        self.lock().closed.push(second);
        Some((number, measured))
    }

    /// Everything, at the end.
    #[must_use]
    pub fn finish(&self) -> (Measured, Vec<Second>) {
        while self.close(u64::MAX).is_some() {}
        let mut gathered = self.lock();
        let seconds = std::mem::take(&mut gathered.closed);
        (std::mem::take(&mut gathered.total), seconds)
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        let mut latencies = Latencies::default();
        latencies.record(1000, 999);
        assert_eq!(latencies.percentile(9900), None);
        latencies.record(5000, 1);
        assert!(latencies.percentile(9900).is_some());
        assert_eq!(latencies.percentile(9990), None);
        assert!(latencies.percentile(5000).is_some());
        assert_eq!(Latencies::default().percentile(5000), None);
        assert_eq!(Latencies::default().max(), None);
    }

    #[test]
    fn percentiles_are_right_to_three_figures() {
        let mut latencies = Latencies::default();
        for us in 1..=10_000 {
            latencies.record(us * 1000, 1);
        }
        let close = |measured: Option<u64>, exact: f64| {
            let measured = measured.unwrap() as f64;
            assert!((measured / exact - 1.0).abs() < 0.002, "{measured} {exact}");
        };
        close(latencies.percentile(5000), 5.0e6);
        close(latencies.percentile(9900), 9.9e6);
        close(latencies.percentile(9990), 9.99e6);
        assert_eq!(latencies.percentile(9999), None);
        close(latencies.max(), 10e6);
        close(latencies.mean(), 5.0e6);
    }

    #[test]
    fn an_encoded_histogram_reads_back() {
        let mut latencies = Latencies::default();
        latencies.record(123_456, 7);
        let bytes = STANDARD.decode(latencies.to_base64()).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!(read.len(), 7);
        assert_eq!(read.max(), latencies.0.max());
    }

    #[test]
    fn seconds_of_workers_are_merged_and_closed_in_order() {
        let collector = Collector::default();
        let mut measured = Measured::default();
        measured.schedule.record(10, 1);
        measured.tally.completed = 1;
        *measured.tally.errors.entry("busy").or_default() += 2;
        collector.add(1, &measured);
        collector.add(0, &measured);
        collector.add(1, &measured);
        assert_eq!(collector.close(0).unwrap().0, 0);
        assert!(collector.close(0).is_none());
        let (second, live) = collector.close(1).unwrap();
        assert_eq!((second, live.tally.completed), (1, 2));
        let (total, seconds) = collector.finish();
        assert_eq!((total.tally.completed, total.tally.errors["busy"]), (3, 6));
        assert_eq!(seconds.len(), 2);
    }
}
