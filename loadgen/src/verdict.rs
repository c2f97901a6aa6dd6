//! Whether the numbers of a run mean what they say, and how the run ends.

use crate::assertion::Assertion;
use crate::exit::Exit;
use crate::report::{Report, Verdict};
use crate::units;

/// What the verdict looks at beyond the report itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The data lies in memory.
    pub in_memory: bool,
    /// The 99th percentile of the generator's lag, or its largest if that cannot be told.
    pub lag_ns: Option<u64>,
    /// Operations that were due.
    pub offered: u64,
    /// Of those, handed to the target.
    pub sent: u64,
}

/// Adds to a report why it is not valid, what to know about it, and which assertions fail.
pub fn judge(report: &mut Report, seen: &Circumstances, assertions: &[Assertion]) {
    let Verdict {
        mut reasons,
        mut warnings,
        ..
    } = std::mem::take(&mut report.verdict);
    if report.env.flush_mode.as_deref() == Some("none") {
        reasons.push("flushes are off: nothing was durable".to_owned());
    }
    if seen.in_memory {
        let fs = report.env.fs.as_deref().unwrap_or("memory");
        reasons.push(format!("data lies on {fs}: nothing was durable"));
    }
    if report.env.build.debug_assertions {
        reasons.push("a debug build: use cargo run --release".to_owned());
    }
    if report.config.r#loop == "open" {
        if let Some(lag_ns) = seen.lag_ns.filter(|lag_ns| *lag_ns > LAG_NS_MAX) {
            reasons.push(format!(
                "the generator lagged {} behind its schedule (p99); at most {} is honest: lower --rate",
                units::show_ns(lag_ns),
                units::show_ns(LAG_NS_MAX)
            ));
        }
        if seen.sent * 100 < seen.offered * 99 {
            reasons.push(format!(
                "only {} of {} operations that were due were handed to the target",
                seen.sent, seen.offered
            ));
        }
    }
    warn(report, &mut warnings);
    let failed = |assertion: &Assertion| assertion.failure(report.figure(assertion.figure));
    let failed_asserts = assertions.iter().filter_map(failed).collect();
    report.verdict = Verdict {
        valid: reasons.is_empty(),
        reasons,
        warnings,
        failed_asserts,
        regressions: Vec::new(),
    };
}

fn warn(report: &Report, warnings: &mut Vec<String>) {
    let result = &report.result;
    let errors: u64 = result.errors.values().sum();
    let unknown = result.unknown.unwrap_or(0);
    if errors + unknown > 0 {
        warnings.push(format!(
            "{} operations have no latency: {errors} failed, {unknown} unknown",
            errors + unknown
        ));
    }
    if report.faults.is_empty() && result.leader_changes.unwrap_or(0) > 0 {
        warnings.push("leadership moved although nothing was made to fail".to_owned());
    }
    if let (Some(sent), Some(completed)) = (result.sent_per_s, result.completed_per_s)
        && report.config.r#loop == "open"
        && completed < 0.95 * sent
    {
        warnings.push("the target fell behind: latency grows with --duration".to_owned());
    }
    for wal in &report.wal {
        for fallback in &wal.fallbacks {
            warnings.push(format!("node {}: {fallback}", wal.node));
        }
    }
    for finding in &report.verify.findings {
        warnings.push(finding.clone());
    }
}

/// How a run with this report ends.
#[must_use]
pub fn exit_of(report: &Report, interrupted: bool, unreachable: bool) -> Exit {
    let mut exits = Vec::new();
    let verify = &report.verify;
    let violations = [verify.lost, verify.duplicated, verify.reordered];
    if violations.into_iter().flatten().any(|count| count > 0) {
        exits.push(Exit::Violation);
    }
    if interrupted {
        exits.push(Exit::Interrupted);
    }
    if unreachable {
        exits.push(Exit::Unreachable);
    }
    if !report.verdict.valid {
        exits.push(Exit::Invalid);
    }
    let never_back = report
        .faults
        .iter()
        .any(|fault| fault.unavailable_ms.is_none());
    if !report.verdict.regressions.is_empty() {
        exits.push(Exit::Regression);
    }
    // All of it is there, but service is not: as after a fault that nobody came back from.
    let never_agreed = verify.agreed == Some(false);
    if never_back || never_agreed || !report.verdict.failed_asserts.is_empty() {
        exits.push(Exit::Assertion);
    }
    Exit::worst(&exits)
}

/// A generator that is further behind than this measures itself.
const LAG_NS_MAX: u64 = 5_000_000;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::args::{Command, TargetSpec, parse};
    use crate::floors::Floors;
    use crate::recorder::Measured;
    use crate::report::{Build, Config, Cpu, Env, Fault, RunResult, SCHEMA, Verify};

    /// A report of a run in which everything was well.
    pub(crate) fn good_report(arguments: &str) -> Report {
        let argv = format!("loadgen run {arguments}");
        let cli = parse(argv.split_whitespace().map(str::to_owned)).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("not a run");
        };
        let mut measured = Measured::default();
        measured.schedule.record(1_000_000, 200_000);
        measured.send.record(900_000, 200_000);
        measured.lag.record(20_000, 200_000);
        measured.tally.offered = 200_000;
        measured.tally.sent = 200_000;
        measured.tally.completed = 200_000;
        Report {
            schema: SCHEMA,
            argv: vec!["loadgen".to_owned()],
            seed: 1,
            config: Config::of(&args, &TargetSpec::Spawn(3)),
            env: Env {
                wal_backend: Some("io_uring".to_owned()),
                flush_mode: Some("dsync".to_owned()),
                cpus: 2,
                kernel: None,
                fs: Some("ext4".to_owned()),
                device: None,
                dir: None,
                mtu_profile: "loopback",
                floor_ns: Floors::default(),
                raw3_bytes_per_s: None,
                build: Build {
                    profile: "release",
                    commit: None,
                    dirty: None,
                    debug_assertions: false,
                },
            },
            result: RunResult::of(&measured, 10.0, Some(0)),
            wal: Vec::new(),
            snapshots: Vec::new(),
            cpu: Cpu::default(),
            memory: Vec::new(),
            verify: Verify::default(),
            faults: Vec::new(),
            verdict: Verdict::default(),
        }
    }

    const GOOD: Circumstances = Circumstances {
        in_memory: false,
        lag_ns: Some(20_000),
        offered: 200_000,
        sent: 200_000,
    };

    fn judged(report: &mut Report, seen: &Circumstances) -> Exit {
        judge(report, seen, &[]);
        exit_of(report, false, false)
    }

    #[test]
    fn a_run_in_which_everything_was_well_passes() {
        let mut report = good_report("");
        assert_eq!(judged(&mut report, &GOOD), Exit::Pass);
        assert!(report.verdict.valid && report.verdict.reasons.is_empty());
        assert!(report.verdict.warnings.is_empty(), "{:?}", report.verdict);
    }

    #[test]
    fn what_cannot_be_durable_is_invalid() {
        let mut report = good_report("");
        report.env.flush_mode = Some("none".to_owned());
        assert_eq!(judged(&mut report, &GOOD), Exit::Invalid);
        let memory = Circumstances {
            in_memory: true,
            ..GOOD
        };
        assert_eq!(judged(&mut good_report(""), &memory), Exit::Invalid);
        let mut report = good_report("");
        report.env.build.debug_assertions = true;
        assert_eq!(judged(&mut report, &GOOD), Exit::Invalid);
    }

    #[test]
    fn a_generator_that_lags_or_does_not_send_is_invalid_in_an_open_loop_alone() {
        let late = Circumstances {
            lag_ns: Some(5_000_001),
            ..GOOD
        };
        let few = Circumstances {
            sent: 197_999,
            ..GOOD
        };
        let enough = Circumstances {
            sent: 198_000,
            ..GOOD
        };
        for (seen, open) in [
            (late, Exit::Invalid),
            (few, Exit::Invalid),
            (enough, Exit::Pass),
        ] {
            assert_eq!(judged(&mut good_report(""), &seen), open);
            assert_eq!(judged(&mut good_report("--closed"), &seen), Exit::Pass);
        }
    }

    #[test]
    fn errors_and_unknowns_warn_and_change_nothing() {
        let mut report = good_report("");
        report.result.errors.insert("busy", 4);
        report.result.unknown = Some(2);
        report.result.leader_changes = Some(1);
        assert_eq!(judged(&mut report, &GOOD), Exit::Pass);
        assert_eq!(
            report.verdict.warnings,
            [
                "6 operations have no latency: 4 failed, 2 unknown",
                "leadership moved although nothing was made to fail"
            ]
        );
    }

    #[test]
    fn a_lost_write_is_graver_than_everything_else() {
        let mut report = good_report("");
        report.verify.lost = Some(1);
        let memory = Circumstances {
            in_memory: true,
            ..GOOD
        };
        let fails: Assertion = "p99<1us".parse().unwrap();
        judge(&mut report, &memory, &[fails]);
        assert_eq!(exit_of(&report, false, true), Exit::Violation);
        report.verify.lost = Some(0);
        assert_eq!(exit_of(&report, false, true), Exit::Unreachable);
        assert_eq!(exit_of(&report, false, false), Exit::Invalid);
        report.verdict.valid = true;
        report.verdict.regressions.push("p99".to_owned());
        assert_eq!(exit_of(&report, false, false), Exit::Regression);
        report.verdict.regressions.clear();
        assert_eq!(exit_of(&report, false, false), Exit::Assertion);
        report.verdict.failed_asserts.clear();
        assert_eq!(exit_of(&report, false, false), Exit::Pass);
        assert_eq!(exit_of(&report, true, false), Exit::Interrupted);
    }

    #[test]
    fn a_fault_from_which_nothing_came_back_fails() {
        let mut report = good_report("");
        let fault = |unavailable_ms| Fault {
            at_s: 5.0,
            what: "kill-leader",
            node: Some(1),
            old_term: Some(1),
            new_term: None,
            new_leader_ms: None,
            unavailable_ms,
        };
        report.faults = vec![fault(Some(600))];
        assert_eq!(judged(&mut report, &GOOD), Exit::Pass);
        report.faults.push(fault(None));
        assert_eq!(judged(&mut report, &GOOD), Exit::Assertion);
        assert_eq!(report.figure("unavailable"), None);
    }

    #[test]
    fn replicas_that_do_not_agree_fail_and_what_is_lost_is_graver() {
        let mut report = good_report("--verify");
        for (agreed, lost, exit) in [
            (true, 0, Exit::Pass),
            (false, 0, Exit::Assertion),
            (false, 1, Exit::Violation),
        ] {
            report.verify.agreed = Some(agreed);
            report.verify.lost = Some(lost);
            assert_eq!(judged(&mut report, &GOOD), exit);
        }
    }

    #[test]
    fn assertions_look_at_the_report() {
        let mut report = good_report("");
        let assertions: Vec<Assertion> = ["p99<2ms", "errors==0", "p99<0.5ms", "lost==0"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        judge(&mut report, &GOOD, &assertions);
        assert_eq!(
            report.verdict.failed_asserts,
            [
                "p99<0.5ms: it is 1.00 ms",
                "lost==0: not measured, or too few samples"
            ]
        );
        assert_eq!(exit_of(&report, false, false), Exit::Assertion);
    }
}
