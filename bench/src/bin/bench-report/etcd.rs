//! The comparison that `bench/peers/run-etcd.sh` left.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// What `compare.json` says.
#[derive(Debug, Default)]
pub(crate) struct Etcd(Value);

impl Etcd {
    /// Reads `DIR/etcd/compare.json`; nothing if there is none.
    pub(crate) fn read(dir: &Path) -> Self {
        let text = fs::read(dir.join("etcd/compare.json")).unwrap_or_default();
        Self(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Ours over etcd's with 512 in flight each: the ratio within each round.
    pub(crate) fn at_equal(&self) -> Vec<f64> {
        self.rounds("/ratio/equal_in_flight/512/rounds")
    }

    /// Ours over etcd's, each at its best.
    pub(crate) fn at_best(&self) -> Vec<f64> {
        self.rounds("/ratio/best/rounds")
    }

    fn rounds(&self, path: &str) -> Vec<f64> {
        let rounds = self.0.pointer(path).and_then(Value::as_array);
        rounds
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_found_and_missing_ones_are_none() {
        let etcd = Etcd(serde_json::json!({
            "ratio": { "equal_in_flight": { "512": { "rounds": [20.5, 31.0] } } },
        }));
        assert_eq!(etcd.at_equal(), [20.5, 31.0]);
        assert!(etcd.at_best().is_empty());
        assert!(Etcd::read(Path::new("/nowhere")).at_equal().is_empty());
    }
}
