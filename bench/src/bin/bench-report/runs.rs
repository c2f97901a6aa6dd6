//! The raw runs of a report, by case and round.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// A `run.json`.
#[derive(Clone, Debug)]
pub(crate) struct Run(pub(crate) Value);

impl Run {
    /// The number at a path like `/result/completed_per_s`; `None` if there is none.
    pub(crate) fn number(&self, path: &str) -> Option<f64> {
        self.0.pointer(path)?.as_f64()
    }

    /// The text at a path.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.0.pointer(path)?.as_str()
    }

    /// All errors together.
    pub(crate) fn errors(&self) -> u64 {
        let errors = self.0.pointer("/result/errors").and_then(Value::as_object);
        errors.map_or(0, |errors| errors.values().filter_map(Value::as_u64).sum())
    }

    /// Whether it may be quoted.
    pub(crate) fn is_valid(&self) -> bool {
        self.0.pointer("/verdict/valid") == Some(&Value::Bool(true))
    }

    /// The least that a commit can take on this machine: an echo, a flush of three writers, two wake-ups.
    pub(crate) fn floor_ns(&self) -> Option<f64> {
        let floor = |name: &str| self.number(&format!("/env/floor_ns/{name}"));
        Some(floor("rtt")? + floor("flush_p50")? + 2.0 * floor("wake")?)
    }

    /// p50 over that.
    pub(crate) fn over_floor(&self) -> Option<f64> {
        Some(self.number("/result/latency/send/p50_ns")? / self.floor_ns()?)
    }
}

/// Runs by case, then by round.
#[derive(Debug, Default)]
pub(crate) struct Runs(pub(crate) BTreeMap<String, BTreeMap<u64, Run>>);

impl Runs {
    /// Reads every `CASE-ROUND/run.json` below `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let mut runs = Self::default();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let file = path.join("run.json");
            let name = path.file_name().and_then(|name| name.to_str());
            let Some((case, round)) = name.and_then(|name| name.rsplit_once('-')) else {
                continue;
            };
            let (Ok(round), true) = (round.parse(), file.exists()) else {
                continue;
            };
            let run = serde_json::from_slice(&fs::read(&file)?)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            runs.0
                .entry(case.to_owned())
                .or_default()
                .insert(round, Run(run));
        }
        if runs.0.is_empty() {
            return Err(format!("no CASE-ROUND/run.json in {}", dir.display()).into());
        }
        Ok(runs)
    }

    /// What `of` says of each valid round of a case.
    pub(crate) fn each(&self, case: &str, of: impl Fn(&Run) -> Option<f64>) -> Vec<f64> {
        let rounds = self.0.get(case).into_iter().flat_map(BTreeMap::values);
        rounds.filter(|run| run.is_valid()).filter_map(of).collect()
    }
}

/// The median; of an even number, the mean of the two in the middle. `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_is_not_valid_is_not_quoted() {
        let run = |per_s: f64, valid: bool| {
            let text =
                json!({ "result": { "completed_per_s": per_s }, "verdict": { "valid": valid } });
            Run(text)
        };
        let mut runs = Runs::default();
        let rounds = [
            (1, run(1.0, true)),
            (2, run(99.0, false)),
            (3, run(3.0, true)),
        ];
        runs.0.insert("case".to_owned(), rounds.into());
        let each = runs.each("case", |run| run.number("/result/completed_per_s"));
        assert_eq!(each, [1.0, 3.0]);
        assert_eq!(median(&each), Some(2.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_latency_is_told_over_the_floor_of_its_own_run() {
        let run = Run(json!({
            "env": { "floor_ns": { "rtt": 80_000, "flush_p50": 200_000, "wake": 10_000 } },
            "result": { "latency": { "send": { "p50_ns": 450_000 } } },
        }));
        assert_eq!(run.over_floor(), Some(1.5));
        assert_eq!(Run(json!({})).over_floor(), None);
    }
}
