//! Latencies of answered puts, told as `loadgen` tells its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde_json::{Value, json};

/// Nanoseconds, to three figures, up to ten minutes.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3);
        Self(histogram.expect("the bounds are constant and sound"))
    }
}

impl Latencies {
    /// Notes one that took this long.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// The latency that so many of 10 000 puts do not exceed; `None` if fewer than ten exceed it.
    pub fn percentile(&self, per_ten_thousand: u64) -> Option<u64> {
        let beyond = u128::from(self.0.len()) * u128::from(10_000 - per_ten_thousand) / 10_000;
        let quantile = per_ten_thousand as f64 / 10_000.0;
        (beyond >= 10).then(|| self.0.value_at_quantile(quantile))
    }

    /// The object that `loadgen.run/1` has under `result.latency.send`.
    pub fn to_json(&self) -> Value {
        let some = |ns: u64| (!self.0.is_empty()).then_some(ns);
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.0, &mut bytes)
            .expect("memory takes everything");
        json!({
            "count": self.0.len(),
            "p50_ns": self.percentile(5000),
            "p90_ns": self.percentile(9000),
            "p99_ns": self.percentile(9900),
            "p999_ns": self.percentile(9990),
            "p9999_ns": self.percentile(9999),
            "max_ns": some(self.0.max()),
            "mean_ns": some(self.0.mean() as u64),
            "hdr_v2": STANDARD.encode(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        let mut latencies = Latencies::default();
        for _ in 0..999 {
            latencies.record(1000);
        }
        assert_eq!(latencies.percentile(9900), None);
        latencies.record(5000);
        assert_eq!(latencies.percentile(9900), Some(1000));
        assert_eq!(latencies.to_json()["p999_ns"], Value::Null);
        assert_eq!(Latencies::default().to_json()["max_ns"], Value::Null);
    }
}
