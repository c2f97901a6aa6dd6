//! Whole runs against a cluster in memory: the report, and wrong clusters that are found out.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod common;

use common::{Wrong, run};
use loadgen::exit::Exit;
use serde_json::Value;

const SHORT: &str = "--rate|5k|--duration|500ms|--warmup|100ms|";

/// In a debug build every run is invalid, whatever else it is.
fn passes(exit: Exit) -> bool {
    exit == Exit::Pass || (cfg!(debug_assertions) && exit == Exit::Invalid)
}

/// Every key of the contract: a path, and what its value may be.
const KEYS: &[(&str, &str)] = &[
    ("schema", "string"),
    ("argv", "array"),
    ("seed", "integer"),
    ("config.loop", "string"),
    ("config.target", "string"),
    ("config.rate_per_s", "number?"),
    ("config.size_bytes", "integer"),
    ("config.clients", "integer"),
    ("config.in_flight", "integer"),
    ("config.duration_ms", "integer"),
    ("config.warmup_ms", "integer"),
    ("config.groups", "integer"),
    ("config.mix", "string"),
    ("env.wal_backend", "string?"),
    ("env.flush_mode", "string?"),
    ("env.cpus", "integer"),
    ("env.kernel", "string?"),
    ("env.fs", "string?"),
    ("env.device", "string?"),
    ("env.dir", "string?"),
    ("env.mtu_profile", "string"),
    ("env.floor_ns.rtt", "integer?"),
    ("env.floor_ns.flush_p50", "integer?"),
    ("env.floor_ns.flush1_p50", "integer?"),
    ("env.floor_ns.wake", "integer?"),
    ("env.raw3_bytes_per_s", "integer?"),
    ("env.build.profile", "string"),
    ("env.build.commit", "string?"),
    ("env.build.dirty", "boolean?"),
    ("env.build.debug_assertions", "boolean"),
    ("result.offered_per_s", "number?"),
    ("result.sent_per_s", "number?"),
    ("result.completed_per_s", "number?"),
    ("result.payload_bytes_per_s", "number?"),
    ("result.entries", "integer?"),
    ("result.unknown", "integer?"),
    ("result.leader_changes", "integer?"),
    ("result.errors", "object"),
    ("result.latency.schedule.count", "integer"),
    ("result.latency.schedule.p50_ns", "integer?"),
    ("result.latency.schedule.p90_ns", "integer?"),
    ("result.latency.schedule.p99_ns", "integer?"),
    ("result.latency.schedule.p999_ns", "integer?"),
    ("result.latency.schedule.p9999_ns", "integer?"),
    ("result.latency.schedule.max_ns", "integer?"),
    ("result.latency.schedule.mean_ns", "integer?"),
    ("result.latency.schedule.hdr_v2", "string"),
    ("result.latency.send.count", "integer"),
    ("result.latency.send.p50_ns", "integer?"),
    ("result.latency.send.p90_ns", "integer?"),
    ("result.latency.send.p99_ns", "integer?"),
    ("result.latency.send.p999_ns", "integer?"),
    ("result.latency.send.p9999_ns", "integer?"),
    ("result.latency.send.max_ns", "integer?"),
    ("result.latency.send.mean_ns", "integer?"),
    ("result.latency.send.hdr_v2", "string"),
    ("wal", "array"),
    ("memory", "array"),
    ("cpu.us_core_per_write", "number?"),
    ("cpu.generator_us_core_per_write", "number?"),
    ("cpu.busy_cores", "number?"),
    ("verify.acked", "integer?"),
    ("verify.lost", "integer?"),
    ("verify.duplicated", "integer?"),
    ("verify.reordered", "integer?"),
    ("verify.agreed", "boolean?"),
    ("faults", "array"),
    ("verdict.valid", "boolean"),
    ("verdict.reasons", "array"),
    ("verdict.warnings", "array"),
    ("verdict.regressions", "array"),
];

const WAL_KEYS: &[(&str, &str)] = &[
    ("node", "integer"),
    ("flushes", "integer?"),
    ("groups", "integer?"),
    ("bytes_written", "integer?"),
    ("bytes_payload", "integer?"),
    ("fallbacks", "array"),
];

const FAULT_KEYS: &[(&str, &str)] = &[
    ("at_s", "number"),
    ("what", "string"),
    ("node", "integer?"),
    ("old_term", "integer?"),
    ("new_term", "integer?"),
    ("new_leader_ms", "integer?"),
    ("unavailable_ms", "integer?"),
];

fn check_keys(report: &Value, keys: &[(&str, &str)]) {
    for (path, kind) in keys {
        let value = path
            .split('.')
            .try_fold(report, |value, key| value.get(key));
        let value = value.unwrap_or_else(|| panic!("{path} is missing"));
        let (kind, optional) = match kind.strip_suffix('?') {
            Some(kind) => (kind, true),
            None => (*kind, false),
        };
        let fits = match kind {
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            _ => value.is_object(),
        };
        assert!(fits || (optional && value.is_null()), "{path} is {value}");
    }
}

#[test]
fn a_report_has_every_key_of_its_schema() {
    let arguments = "--verify|--fault|0.1s kill-leader|--assert|errors==0";
    let (exit, report) = run(Wrong::Elects, &format!("{SHORT}{arguments}"));
    assert!(passes(exit), "{exit:?} {report:#}");
    check_keys(&report, KEYS);
    for wal in report["wal"].as_array().unwrap() {
        check_keys(wal, WAL_KEYS);
    }
    assert_eq!(report["wal"].as_array().unwrap().len(), 3);
    for fault in report["faults"].as_array().unwrap() {
        check_keys(fault, FAULT_KEYS);
    }
    assert_eq!(report["schema"], "loadgen.run/1");
    assert_eq!(report["config"]["loop"], "open");
    assert_eq!(report["env"]["flush_mode"], "fdatasync");
    let fault = &report["faults"][0];
    assert_eq!((&fault["node"], &fault["old_term"]), (&1.into(), &1.into()));
    assert_eq!(fault["new_term"], 2);
    let unavailable_ms = fault["unavailable_ms"].as_u64().unwrap();
    assert!((250..2000).contains(&unavailable_ms), "{fault}");
    let completed = report["result"]["completed_per_s"].as_f64().unwrap();
    assert!((4000.0..6000.0).contains(&completed), "{completed}");
    // Here every batch that is handed over is an entry of its own.
    let entries = report["result"]["entries"].as_u64().unwrap();
    assert!((1..=3000).contains(&entries), "{entries}");
    assert_eq!(report["verify"]["lost"], 0);
    assert!(report["verify"]["acked"].as_u64().unwrap() >= 2500);
}

#[test]
fn a_fault_before_the_next_election_waits_for_a_leader_to_kill() {
    let faults = "--fault|0.1s kill-leader|--fault|0.2s kill-leader";
    let load = "--rate|1k|--duration|2s|--warmup|50ms|";
    let (_, report) = run(Wrong::Elects, &format!("{load}{faults}"));
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{faults:#?}");
    let killed = |fault: &Value| (fault["node"].as_u64(), fault["old_term"].as_u64());
    assert_eq!(killed(&faults[0]), (Some(1), Some(1)));
    assert_eq!(killed(&faults[1]), (Some(2), Some(2)));
    assert_eq!(faults[0]["new_term"], 2);
}

#[test]
fn a_report_of_a_run_that_never_began_has_every_key_too() {
    let (exit, report) = run(Wrong::Absent, SHORT);
    assert_eq!(exit, Exit::Unreachable);
    check_keys(&report, KEYS);
    assert_eq!(report["result"]["completed_per_s"], Value::Null);
    assert_eq!(report["verdict"]["reasons"][0], "nobody answers at a:1");
}

#[test]
fn a_target_that_never_answers_is_unreachable() {
    let (exit, report) = run(Wrong::Silent, &format!("{SHORT}--timeout|200ms"));
    assert_eq!(exit, Exit::Unreachable);
    check_keys(&report, KEYS);
    assert_eq!(report["result"]["unknown"], 2500);
    let reason = &report["verdict"]["reasons"][0];
    assert_eq!(reason, "not one operation was acknowledged");
}

#[test]
fn a_closed_loop_has_no_rate_and_equal_latencies() {
    let arguments = "--closed|--in-flight|64|--duration|300ms|--warmup|50ms";
    let (exit, report) = run(Wrong::Nothing, arguments);
    assert!(passes(exit), "{exit:?}");
    check_keys(&report, KEYS);
    assert_eq!(report["config"]["rate_per_s"], Value::Null);
    assert_eq!(report["config"]["loop"], "closed");
    let latency = &report["result"]["latency"];
    assert_eq!(latency["schedule"]["hdr_v2"], latency["send"]["hdr_v2"]);
    let unasked = &report["verify"];
    assert_eq!(
        (&unasked["acked"], &unasked["lost"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn too_few_samples_are_null() {
    let arguments = "--rate|100|--duration|300ms|--warmup|0s";
    let (_, report) = run(Wrong::Nothing, arguments);
    let schedule = &report["result"]["latency"]["schedule"];
    assert_eq!(schedule["count"], 30);
    assert!(schedule["p50_ns"].is_u64() && schedule["max_ns"].is_u64());
    assert_eq!(schedule["p90_ns"], Value::Null);
    assert_eq!(schedule["p9999_ns"], Value::Null);
}

#[test]
fn an_assertion_that_fails_says_so() {
    let arguments = format!("{SHORT}--assert|completed_per_s>1M/s");
    let (exit, report) = run(Wrong::Nothing, &arguments);
    let expected = if cfg!(debug_assertions) {
        Exit::Invalid
    } else {
        Exit::Assertion
    };
    assert_eq!(exit, expected);
    let failed = report["verdict"]["failed_asserts"][0].as_str().unwrap();
    assert!(
        failed.starts_with("completed_per_s>1M/s: it is "),
        "{failed}"
    );
}

#[test]
fn a_run_that_is_worse_than_its_baseline_exits_with_11() {
    let dir = tempfile::tempdir().unwrap();
    let baseline = dir.path().join("baseline.json");
    let load = "--closed|--in-flight|16|--duration|300ms|--warmup|50ms|";
    let (_, mut report) = run(Wrong::Nothing, load);
    // A debug build is no baseline, but here only the comparison is looked at.
    report["verdict"]["valid"] = true.into();
    report["result"]["completed_per_s"] = 1e12.into();
    std::fs::write(&baseline, report.to_string()).unwrap();
    let against = format!("{load}--tolerance|20%|--baseline|{}", baseline.display());
    let (exit, report) = run(Wrong::Nothing, &against);
    let expected = if cfg!(debug_assertions) {
        Exit::Invalid
    } else {
        Exit::Regression
    };
    assert_eq!(exit, expected);
    let regressions = report["verdict"]["regressions"].as_array().unwrap();
    let told = regressions.last().unwrap().as_str().unwrap();
    assert!(told.ends_with("(-20% allowed)"), "{told}");
}

#[test]
fn a_lost_a_repeated_and_a_reordered_write_are_each_found() {
    let found = |wrong| {
        let (exit, report) = run(wrong, &format!("{SHORT}--verify"));
        let count = |key: &str| report["verify"][key].as_u64().unwrap();
        (exit, count("lost"), count("duplicated"), count("reordered"))
    };
    let (exit, lost, duplicated, reordered) = found(Wrong::Nothing);
    assert!(passes(exit), "{exit:?}");
    assert_eq!((lost, duplicated, reordered), (0, 0, 0));
    let (exit, lost, duplicated, reordered) = found(Wrong::Loses);
    assert_eq!(exit, Exit::Violation);
    // Once as a write, once as a state that differs.
    assert_eq!((lost, duplicated, reordered), (2, 0, 0));
    let (exit, lost, duplicated, reordered) = found(Wrong::Repeats);
    assert_eq!(exit, Exit::Violation);
    assert_eq!((lost, duplicated, reordered), (0, 1, 0));
    let (exit, lost, duplicated, reordered) = found(Wrong::Denies);
    assert_eq!(exit, Exit::Violation);
    assert!(
        lost == 0 && duplicated >= 1 && reordered == 0,
        "{duplicated}"
    );
    let (exit, lost, _, reordered) = found(Wrong::Reorders);
    assert_eq!(exit, Exit::Violation);
    // It was told a place that it does not have, and that place is too low.
    assert!(lost >= 1 && reordered >= 1, "{lost} {reordered}");
}
