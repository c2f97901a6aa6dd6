//! The tables of a report.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::etcd::Etcd;
use crate::runs::{Run, Runs, median};
use crate::{memory, model};

/// One promise: which case shows it, and what has to be at least or at most how large.
struct Promise {
    case: &'static str,
    what: &'static str,
    of: fn(&Run) -> Option<f64>,
    unit: &'static str,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(&self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= *bound,
            Self::AtMost(bound) => value <= *bound,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

const PROMISES: [Promise; 9] = [
    Promise {
        case: "latency",
        what: "one in flight, p50 over max(0.7 ms, 1.8 (R + F3 + 2 wake-ups))",
        of: |run| {
            let p50 = run.number("/result/latency/send/p50_ns")?;
            let allowed = run.floor_ns().map_or(0.0, |floor| 1.8 * floor);
            Some(p50 / allowed.max(0.7e6))
        },
        unit: "",
        bound: Bound::AtMost(1.0),
    },
    Promise {
        case: "rate128",
        what: "128 B, 4096 in flight, processes",
        of: |run| Some(run.number("/result/completed_per_s")? / 1e3),
        unit: "k/s",
        bound: Bound::AtLeast(400.0),
    },
    Promise {
        case: "rate128",
        what: "128 B, 4096 in flight: errors",
        of: |run| Some(run.errors() as f64),
        unit: "",
        bound: Bound::AtMost(0.0),
    },
    Promise {
        case: "rate128",
        what: "128 B, 4096 in flight: lost, duplicated, reordered",
        of: violations,
        unit: "",
        bound: Bound::AtMost(0.0),
    },
    Promise {
        case: "rate16",
        what: "16 B, 8192 in flight, in one process",
        of: |run| Some(run.number("/result/completed_per_s")? / 1e6),
        unit: "M/s",
        bound: Bound::AtLeast(1.0),
    },
    Promise {
        case: "failover",
        what: "leader killed at 20 k/s, unavailable",
        of: |run| {
            let faults = run.0.pointer("/faults")?.as_array()?;
            let each = faults
                .iter()
                .map(|fault| fault.get("unavailable_ms")?.as_f64());
            // One that never ended is worse than any.
            each.map(|ms| ms.unwrap_or(f64::INFINITY)).reduce(f64::max)
        },
        unit: "ms",
        bound: Bound::AtMost(1500.0),
    },
    Promise {
        case: "failover",
        what: "leader killed at 20 k/s: lost, duplicated, reordered",
        of: violations,
        unit: "",
        bound: Bound::AtMost(0.0),
    },
    Promise {
        case: "failover",
        what: "leader killed at 20 k/s: generator lag p99",
        of: |run| Some(run.number("/result/latency/lag/p99_ns")? / 1e6),
        unit: "ms",
        bound: Bound::AtMost(5.0),
    },
    Promise {
        case: "memory",
        what: "60 s with defaults, largest replica over formula + 64 MiB",
        of: |run| memory::held_and_allowed(run).map(|(held, allowed)| held / allowed),
        unit: "",
        bound: Bound::AtMost(1.0),
    },
];

fn violations(run: &Run) -> Option<f64> {
    let of = |what: &str| run.number(&format!("/verify/{what}"));
    Some(of("lost")? + of("duplicated")? + of("reordered")?)
}

/// What holds for every figure, named once; more than one value is a comparison gone wrong, or meant.
pub(crate) fn settings(runs: &Runs) -> String {
    let all = || runs.0.values().flat_map(|rounds| rounds.values());
    let of = |path: &str| {
        let values: BTreeSet<&str> = all().map(|run| run.text(path).unwrap_or("?")).collect();
        values.into_iter().collect::<Vec<_>>().join(", ")
    };
    let dirty = all().any(|run| run.0.pointer("/env/build/dirty") != Some(&false.into()));
    format!(
        "WAL backend {}, flush mode {}, TLS 1.3 with client certificates, MTU profile {}; three replicas and \
         the generator share one machine and one disk ({} on {}); build {} {}{}.\n",
        of("/env/wal_backend"),
        of("/env/flush_mode"),
        of("/env/mtu_profile"),
        of("/env/fs"),
        of("/env/device"),
        of("/env/build/profile"),
        of("/env/build/commit"),
        if dirty {
            ", **not all of it clean**"
        } else {
            ""
        },
    )
}

/// The promises, and whether the median of the rounds keeps each.
#[derive(Debug)]
pub(crate) struct Promises {
    /// A row each.
    pub(crate) table: String,
    /// How many hold, do not hold, and were not run.
    pub(crate) counts: [usize; 3],
    /// Those that do not hold or were not run.
    pub(crate) missing: Vec<String>,
}

impl Promises {
    /// Looks at all runs.
    pub(crate) fn of(runs: &Runs, etcd: &Etcd) -> Self {
        let mut this = Self {
            table: "| what | setting | bound | median | rounds | |\n|---|---|--:|--:|---|---|\n"
                .to_owned(),
            counts: [0; 3],
            missing: Vec::new(),
        };
        for promise in &PROMISES {
            let each = runs.each(promise.case, promise.of);
            let (what, unit, bound) = (promise.what, promise.unit, &promise.bound);
            this.row(what, &setting(runs, promise.case), unit, bound, &each);
        }
        let beside = "128 B puts, 512 in flight each, over etcd 3.4";
        let plain = "ours as above, etcd with its defaults and without TLS; 3 + 3 nodes on one disk, one at a time";
        this.row(beside, plain, "×", &Bound::AtLeast(20.0), &etcd.at_equal());
        for (what, unit, found, bound) in model::promises(runs) {
            let what = format!("processor time: {what}");
            let each: Vec<f64> = found.into_iter().collect();
            let setting = setting(runs, "model-loopback-128-1024");
            this.row(&what, &setting, unit, &Bound::AtMost(bound), &each);
        }
        this
    }

    fn row(&mut self, what: &str, setting: &str, unit: &str, bound: &Bound, each: &[f64]) {
        let verdict = match median(each) {
            None => 2,
            Some(median) if bound.holds(median) => 0,
            Some(_) => 1,
        };
        self.counts[verdict] += 1;
        let said = ["holds", "**does not hold**", "no valid run"][verdict];
        if verdict > 0 {
            self.missing.push(format!("{what} ({said})"));
        }
        let median = median(each).map_or_else(|| "-".to_owned(), short);
        let each: Vec<String> = each.iter().copied().map(short).collect();
        let (each, bound) = (each.join(" "), bound.text());
        let _ = writeln!(
            self.table,
            "| {what} | {setting} | {bound} {unit} | {median} | {each} | {said} |"
        );
    }
}

/// What a figure of a case was measured with. A dash if it was not run.
fn setting(runs: &Runs, case: &str) -> String {
    let Some(run) = runs.0.get(case).and_then(|rounds| rounds.values().next()) else {
        return "-".to_owned();
    };
    let text = |path: &str| run.text(path).unwrap_or("?").to_owned();
    format!(
        "{}, MTU {}, TLS 1.3, {} {}, 3 replicas and the generator on one machine and disk",
        text("/config/target"),
        text("/env/mtu_profile"),
        text("/env/wal_backend"),
        text("/env/flush_mode"),
    )
}

/// The same loads with packets of one machine and with those of any Ethernet.
pub(crate) fn profiles(runs: &Runs) -> String {
    let mut text = "| | loopback, 65000 B | ethernet, 1452 B |\n|---|--:|--:|\n".to_owned();
    let mut row = |what: &str, case: &str, of: fn(&Run) -> Option<f64>| {
        let cell = |case: &str| cell(median(&runs.each(case, of)));
        let (loopback, ethernet) = (cell(case), cell(&format!("{case}_ethernet")));
        let _ = writeln!(text, "| {what} | {loopback} | {ethernet} |");
    };
    let p50 = |run: &Run| Some(run.number("/result/latency/send/p50_ns")? / 1e6);
    row("one in flight, 128 B: p50, ms", "latency", p50);
    row("… over R + F3 + 2 wake-ups", "latency", Run::over_floor);
    let per_s = |run: &Run| Some(run.number("/result/completed_per_s")? / 1e3);
    row("4096 in flight, 128 B: k/s", "rate128", per_s);
    let us = |run: &Run| run.number("/cpu/us_core_per_write");
    row("… µs of a core a write, all replicas", "rate128", us);
    text
}

/// Every run.
pub(crate) fn all(runs: &Runs) -> String {
    let mut text =
        "| case | round | loop | in flight | size | MTU | flush | done /s | p50 ms | p99 ms | p99.9 ms | \
                    µs core/write | busy | errors | unknown | |\n\
                    |---|--:|---|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
            .to_owned();
    for (case, rounds) in &runs.0 {
        for (round, run) in rounds {
            let open = run.text("/config/loop") == Some("open");
            let latency = if open { "schedule" } else { "send" };
            let ms = |name: &str| {
                let ns = run.number(&format!("/result/latency/{latency}/{name}"));
                cell(ns.map(|ns| ns / 1e6))
            };
            let of = |path: &str| cell(run.number(path));
            let _ = writeln!(
                text,
                "| {case} | {round} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                run.text("/config/loop").unwrap_or("-"),
                of("/config/in_flight"),
                of("/config/size_bytes"),
                run.text("/env/mtu_profile").unwrap_or("-"),
                run.text("/env/flush_mode").unwrap_or("-"),
                of("/result/completed_per_s"),
                ms("p50_ns"),
                ms("p99_ns"),
                ms("p999_ns"),
                of("/cpu/us_core_per_write"),
                of("/cpu/busy_cores"),
                run.errors(),
                of("/result/unknown"),
                if run.is_valid() { "" } else { "**not valid**" },
            );
        }
    }
    text
}

/// What the machine could do at best while each case ran, over its rounds.
pub(crate) fn floors(runs: &Runs) -> String {
    let mut text =
        "| case | R µs | F1 µs | F3 µs | wake µs | raw three MB/s | p50 / (R + F3 + 2 wake) |\n\
                    |---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    for case in runs.0.keys() {
        let of = |path: &str, scale: f64| {
            cell(median(
                &runs.each(case, |run| Some(run.number(path)? / scale)),
            ))
        };
        let _ = writeln!(
            text,
            "| {case} | {} | {} | {} | {} | {} | {} |",
            of("/env/floor_ns/rtt", 1e3),
            of("/env/floor_ns/flush1_p50", 1e3),
            of("/env/floor_ns/flush_p50", 1e3),
            of("/env/floor_ns/wake", 1e3),
            of("/env/raw3_bytes_per_s", 1e6),
            cell(median(&runs.each(case, Run::over_floor))),
        );
    }
    text
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), short)
}

/// Three figures, and no more digits than that after the point.
fn short(value: f64) -> String {
    match value.abs() {
        x if x == 0.0 || x >= 100.0 || x.fract() == 0.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        x if x >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn runs() -> Runs {
        let run = |per_s: f64| {
            Run(json!({
                "config": { "loop": "closed", "in_flight": 4096, "size_bytes": 128 },
                "env": { "mtu_profile": "loopback", "build": { "dirty": false } },
                "result": { "completed_per_s": per_s, "errors": { "busy": 0 } },
                "verify": { "lost": 0, "duplicated": 0, "reordered": 0 },
                "faults": [],
                "verdict": { "valid": true },
            }))
        };
        let mut runs = Runs::default();
        let rounds = [(1, run(390e3)), (2, run(410e3)), (3, run(450e3))];
        runs.0.insert("rate128".to_owned(), rounds.into());
        runs
    }

    #[test]
    fn a_promise_is_judged_by_the_median_and_shown_with_every_round() {
        let promises = Promises::of(&runs(), &Etcd::default());
        let text = promises.table;
        assert_eq!(promises.counts, [3, 0, 10], "{text}");
        assert_eq!(promises.missing.len(), 10);
        let line = text
            .lines()
            .find(|line| line.contains("4096 in flight"))
            .unwrap();
        let expected = "| ≥ 400 k/s | 410 | 390 410 450 | holds |";
        assert!(line.ends_with(expected), "{line}");
        assert!(line.contains("MTU loopback, TLS 1.3"), "{line}");
        let line = text.lines().find(|line| line.contains("8192")).unwrap();
        assert!(line.ends_with("| - |  | no valid run |"), "{line}");
    }

    #[test]
    fn what_a_run_does_not_say_is_a_dash() {
        let text = all(&runs());
        assert!(
            text.contains("| rate128 | 1 | closed | 4096 | 128 | loopback | - | 390000 | - |"),
            "{text}"
        );
        assert!(floors(&runs()).contains("| rate128 | - | - |"));
        let text = profiles(&runs());
        assert!(
            text.contains("| 4096 in flight, 128 B: k/s | 410 | - |"),
            "{text}"
        );
        assert!(!settings(&runs()).contains("not all of it clean"));
    }

    #[test]
    fn numbers_are_told_to_three_figures() {
        let told = [0.0, 0.3519, 1.25, 12.34, 400.4, 1e6].map(short);
        assert_eq!(told, ["0", "0.352", "1.25", "12.3", "400", "1000000"]);
    }
}
