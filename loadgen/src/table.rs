//! The report as a stranger reads it.

use std::fmt::Write as _;

use crate::exit::Exit;
use crate::report::{Figures, Report};
use crate::units::{show_bytes, show_count, show_ns};

/// The table that ends a run.
#[must_use]
pub fn render(report: &Report, exit: Exit) -> String {
    let mut out = String::new();
    let text = &mut out;
    head(text, report, exit);
    if report.result.completed_per_s.is_some() {
        latencies(text, report);
        throughput(text, report);
    }
    environment(text, report);
    for fault in &report.faults {
        let node = shown(fault.node, |node| format!("node {node}"));
        let leader = shown(fault.new_leader_ms, |ms| format!("after {ms} ms"));
        let back = shown(fault.unavailable_ms, |ms| format!("after {ms} ms"));
        line(
            text,
            "fault",
            &format!(
                "{:.1}s {} ({node}): new leader {leader}, writes resumed {back}",
                fault.at_s, fault.what
            ),
        );
    }
    if let (Some(acked), Some(lost), Some(duplicated), Some(reordered)) = (
        report.verify.acked,
        report.verify.lost,
        report.verify.duplicated,
        report.verify.reordered,
    ) {
        let found = format!("{lost} lost, {duplicated} duplicated, {reordered} reordered");
        line(
            text,
            "verify",
            &format!("{acked} acknowledged writes: {found}"),
        );
    }
    for reason in &report.verdict.reasons {
        line(text, "invalid", reason);
    }
    for failed in &report.verdict.failed_asserts {
        line(text, "failed", failed);
    }
    for worse in &report.verdict.regressions {
        line(text, "regression", worse);
    }
    for warning in &report.verdict.warnings {
        line(text, "note", warning);
    }
    out
}

fn line(text: &mut String, name: &str, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, " {name:<12} {what}");
}

fn shown<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or("-".to_owned(), show)
}

fn head(text: &mut String, report: &Report, exit: Exit) {
    let verdict = match exit {
        Exit::Pass => "VALID, PASS",
        Exit::Assertion => "VALID, AN ASSERTION FAILED",
        Exit::Regression => "VALID, WORSE THAN THE BASELINE",
        Exit::Violation => "ACKNOWLEDGED WRITES WERE LOST, REPEATED OR REORDERED",
        Exit::Unreachable => "TARGET UNREACHABLE",
        Exit::Interrupted => "INTERRUPTED",
        Exit::Invalid | Exit::Internal | Exit::Usage => "INVALID",
    };
    let config = &report.config;
    let rate = match config.rate_per_s {
        Some(rate) => format!("open loop at {}/s", show_count(rate)),
        None => format!("closed loop, {} in flight", config.in_flight),
    };
    let _ = writeln!(text);
    line(text, "verdict", verdict);
    line(
        text,
        "load",
        &format!(
            "{}, {rate}, {} B, {}, {} clients, {} s, seed {}",
            config.target,
            config.size_bytes,
            config.mix,
            config.clients,
            config.duration_ms as f64 / 1e3,
            report.seed
        ),
    );
}

fn latencies(text: &mut String, report: &Report) {
    let columns = ["p50", "p90", "p99", "p99.9", "p99.99", "max", "mean"];
    let cells = columns.map(|column| format!("{column:>10}")).join("");
    line(text, "latency", &cells);
    let latency = &report.result.latency;
    let row = |text: &mut String, name, figures: &Figures, note: &str| {
        let cells = [
            figures.p50_ns,
            figures.p90_ns,
            figures.p99_ns,
            figures.p999_ns,
            figures.p9999_ns,
            figures.max_ns,
            figures.mean_ns,
        ]
        .map(|ns| format!("{:>10}", shown(ns, show_ns)))
        .join("");
        line(text, name, &format!("{cells}  {note}"));
    };
    let quote = if report.config.r#loop == "open" {
        "from when an operation was due: the number to quote"
    } else {
        "a closed loop slows down with its target: not to be quoted as latency under load"
    };
    row(text, "  schedule", &latency.schedule, quote);
    row(text, "  send", &latency.send, "from when it was first sent");
    row(text, "  lag", &latency.lag, "what the generator added");
}

fn throughput(text: &mut String, report: &Report) {
    let result = &report.result;
    let per_s = |rate: Option<f64>| shown(rate, |rate| format!("{}/s", show_count(rate)));
    line(
        text,
        "throughput",
        &format!(
            "offered {}  sent {}  completed {}  values {}/s",
            per_s(result.offered_per_s),
            per_s(result.sent_per_s),
            per_s(result.completed_per_s),
            shown(result.payload_bytes_per_s, show_bytes)
        ),
    );
    let codes: Vec<String> = result
        .errors
        .iter()
        .map(|(code, count)| format!("{code} {count}"))
        .collect();
    let errors = if codes.is_empty() {
        "none".to_owned()
    } else {
        codes.join(", ")
    };
    let unknown = result.unknown.unwrap_or(0);
    let changes = shown(result.leader_changes, |changes| changes.to_string());
    line(
        text,
        "errors",
        &format!("{errors}  unknown {unknown}  leader changes {changes}"),
    );
    let cpu = &report.cpu;
    let us = |us: Option<f64>| shown(us, |us| format!("{us:.2} µs"));
    line(
        text,
        "processor",
        &format!(
            "replicas {} a write, {} cores busy; generator {} a write",
            us(cpu.us_core_per_write),
            shown(cpu.busy_cores, |cores| format!("{cores:.2}")),
            us(cpu.generator_us_core_per_write)
        ),
    );
    let peaks = report
        .memory
        .iter()
        .filter_map(|memory| memory.rss_peak_bytes);
    let peaks: Vec<String> = peaks.map(show_bytes).collect();
    if !peaks.is_empty() {
        line(
            text,
            "memory",
            &format!("replicas at most {}", peaks.join(", ")),
        );
    }
    for wal in &report.wal {
        let (Some(flushes), Some(written)) = (wal.flushes, wal.bytes_written) else {
            continue;
        };
        let payload = shown(wal.bytes_payload, show_bytes);
        line(
            text,
            &format!("log {}", wal.node),
            &format!(
                "{flushes} flushes, {} written for {payload} of entries",
                show_bytes(written)
            ),
        );
    }
}

fn environment(text: &mut String, report: &Report) {
    let env = &report.env;
    let name = |name: &Option<String>| name.clone().unwrap_or("-".to_owned());
    line(
        text,
        "machine",
        &format!(
            "{} cores, {}, {} on {}, packets {}",
            env.cpus,
            name(&env.kernel),
            name(&env.fs),
            name(&env.device),
            env.mtu_profile
        ),
    );
    if env.flush_mode.is_some() {
        let text_of = format!("{} with {}", name(&env.wal_backend), name(&env.flush_mode));
        line(text, "durability", &text_of);
    }
    if report.config.target.starts_with("cluster") {
        // Floors are of this machine, and the replicas are on others.
        return;
    }
    let floor = &env.floor_ns;
    line(
        text,
        "floors",
        &format!(
            "round trip {}  flush {} (three writers {})  wake-up {}  three raw writers {}/s",
            shown(floor.rtt, show_ns),
            shown(floor.flush1_p50, show_ns),
            shown(floor.flush_p50, show_ns),
            shown(floor.wake, show_ns),
            shown(env.raw3_bytes_per_s, show_bytes)
        ),
    );
    line(
        text,
        "",
        "replicas, their disk and the generator share this one machine",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::tests::good_report;

    #[test]
    fn the_table_says_what_was_run_and_what_came_out() {
        let table = render(&good_report(""), Exit::Pass);
        for expected in [
            "verdict      VALID, PASS",
            "spawn:3, open loop at 20.0k/s, 128 B, put=100, 8 clients, 10 s, seed 1",
            "completed 20.0k/s",
            "errors       none  unknown 0  leader changes 0",
            "io_uring with dsync",
            "the number to quote",
        ] {
            assert!(table.contains(expected), "{expected} is not in\n{table}");
        }
        assert!(table.lines().all(|line| line.len() < 160), "{table}");
    }
}
