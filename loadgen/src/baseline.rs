//! A run held against an earlier one of the same load.
//!
//! Figures of a shared machine drift within minutes. A baseline is from the same machine and the same hour, or
//! the tolerance is wide.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::args::Usage;
use crate::report::{Config, Report, SCHEMA};
use crate::units::{show_count, show_ns};

/// The `run.json` of an earlier run.
#[derive(Clone, Debug)]
pub struct Baseline(Value);

impl Baseline {
    /// Reads a report that may serve as one: valid, and of this load.
    pub fn read(path: &Path, config: &Config, mtu_profile: &str) -> Result<Self, Usage> {
        let refuse = |why: String| Usage(format!("--baseline {}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let report: Value = serde_json::from_str(&text)
            .map_err(|error| refuse(format!("{error}: name a run.json of loadgen")))?;
        if report["schema"] != SCHEMA {
            let found = &report["schema"];
            return Err(refuse(format!("its schema is {found}, not {SCHEMA}")));
        }
        if report["verdict"]["valid"] != true {
            let reasons = &report["verdict"]["reasons"];
            return Err(refuse(format!("that run was not valid: {reasons}")));
        }
        let config = serde_json::to_value(config).map_err(|error| refuse(error.to_string()))?;
        let mtu = (&report["env"]["mtu_profile"], &Value::from(mtu_profile));
        // Reports that do not tell it were made when there was no other.
        let only_pace_us = Value::from(50);
        let is_open = report["config"]["loop"] == "open";
        let then = |key| match &report["config"][key] {
            Value::Null if key == "pace_us" && is_open => &only_pace_us,
            then => then,
        };
        let pairs = LOAD.map(|key| (key, then(key), &config[key]));
        for (key, then, now) in pairs.into_iter().chain([("mtu_profile", mtu.0, mtu.1)]) {
            if then != now {
                return Err(refuse(format!(
                    "another load: its {key} is {then}, here it is {now}"
                )));
            }
        }
        Ok(Self(report))
    }

    /// What is worse than then by more than `tolerance`, in words.
    #[must_use]
    pub fn regressions(&self, report: &Report, tolerance: f64) -> Vec<String> {
        let result = &self.0["result"];
        let percent = tolerance * 100.0;
        let mut worse = Vec::new();
        if let Some(then) = result["latency"]["schedule"]["p99_ns"].as_f64() {
            let now = report.figure("p99");
            if now.is_none_or(|now| now > then * (1.0 + tolerance)) {
                let now = now.map_or("not measured".to_owned(), |ns| show_ns(ns as u64));
                let then = show_ns(then as u64);
                worse.push(format!("p99 is {now}, was {then} (+{percent}% allowed)"));
            }
        }
        if let Some(then) = result["completed_per_s"].as_f64() {
            let now = report.figure("completed_per_s");
            if now.is_none_or(|now| now < then * (1.0 - tolerance)) {
                let now = now.map_or("nothing".to_owned(), show_count);
                let then = show_count(then);
                worse.push(format!(
                    "completed {now}/s, was {then}/s (-{percent}% allowed)"
                ));
            }
        }
        worse
    }
}

/// What makes two loads the same. How long they last does not.
const LOAD: [&str; 10] = [
    "loop",
    "target",
    "rate_per_s",
    "pace_us",
    "size_bytes",
    "clients",
    "in_flight",
    "groups",
    "keys",
    "mix",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::tests::good_report;

    fn write(report: &Report) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), serde_json::to_vec(report).unwrap()).unwrap();
        file
    }

    fn valid(arguments: &str) -> Report {
        let mut report = good_report(arguments);
        report.verdict.valid = true;
        report
    }

    #[test]
    fn worse_than_the_tolerance_is_a_regression_and_better_is_none() {
        let then = valid("");
        let file = write(&then);
        let baseline = Baseline::read(file.path(), &then.config, "loopback").unwrap();
        assert_eq!(baseline.regressions(&then, 0.0), Vec::<String>::new());
        let mut now = valid("");
        let p99_ns = then.result.latency.schedule.p99_ns.unwrap();
        now.result.latency.schedule.p99_ns = Some(p99_ns + p99_ns / 5);
        now.result.completed_per_s = Some(15_000.0);
        assert_eq!(
            baseline.regressions(&now, 0.1),
            [
                "p99 is 1.20 ms, was 1.00 ms (+10% allowed)",
                "completed 15.0k/s, was 20.0k/s (-10% allowed)"
            ]
        );
        assert_eq!(baseline.regressions(&now, 0.3), Vec::<String>::new());
        now.result.latency.schedule.p99_ns = Some(1);
        now.result.completed_per_s = Some(1e9);
        assert_eq!(baseline.regressions(&now, 0.0), Vec::<String>::new());
        now.result.latency.schedule.p99_ns = None;
        assert_eq!(baseline.regressions(&now, 0.1).len(), 1);
    }

    #[test]
    fn another_load_or_an_invalid_run_is_no_baseline() {
        let refused = |report: &Report, arguments: &str| {
            let file = write(report);
            let config = good_report(arguments).config;
            let read = Baseline::read(file.path(), &config, "loopback");
            read.unwrap_err().to_string()
        };
        let why = refused(&valid(""), "--size 256");
        assert!(
            why.contains("its size_bytes is 128, here it is 256"),
            "{why}"
        );
        let mut told_none = valid("");
        told_none.config.pace_us = None;
        let why = refused(&told_none, "--pace 1ms");
        assert!(why.contains("its pace_us is 50, here it is 1000"), "{why}");
        let file = write(&told_none);
        assert!(Baseline::read(file.path(), &valid("").config, "loopback").is_ok());
        let mut invalid = valid("");
        invalid.verdict.valid = false;
        assert!(refused(&invalid, "").contains("not valid"));
        let error = Baseline::read(Path::new("/nowhere"), &invalid.config, "loopback");
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("--baseline /nowhere")
        );
    }
}
