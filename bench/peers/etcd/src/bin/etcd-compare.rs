//! Puts runs of etcd and of logdrive beside each other: rounds that were interleaved, ratios within a round,
//! the median of these ratios.
//!
//! `etcd-compare DIR` reads `DIR/{etcd,ours}-IN_FLIGHT-ROUND.json` as `run-etcd.sh` names them, prints a table
//! and writes `DIR/compare.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};

/// Compares runs of etcd with runs of logdrive.
#[derive(Debug, Parser)]
#[command(name = "etcd-compare", version)]
struct Args {
    /// Where the runs are; the comparison is written there, too
    dir: PathBuf,
}

/// Which system, and how many operations it had in flight.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Setup {
    system: String,
    in_flight: u64,
}

/// Runs by setup and round.
type Runs = BTreeMap<Setup, BTreeMap<u64, Value>>;

fn main() -> ExitCode {
    match compare(&Args::parse().dir) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("etcd-compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(dir: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let runs = read(dir)?;
    if runs.is_empty() {
        return Err(format!("no etcd-*-*.json or ours-*-*.json in {}", dir.display()).into());
    }
    print!("{}", table(&runs));
    let (equal, best) = (ratios_at_equal(&runs), ratios_at_best(&runs));
    for (in_flight, ratios) in &equal {
        println!(
            "{}",
            line(&format!("ours / etcd, {in_flight} in flight each"), ratios)
        );
    }
    println!("{}", line("ours / etcd, each at its best", &best));
    let problems = problems(&runs);
    for problem in &problems {
        println!("NOT VALID: {problem}");
    }
    let of = |ratios: &[f64]| json!({ "rounds": ratios, "median": median(ratios) });
    let equal: BTreeMap<String, Value> = equal
        .iter()
        .map(|(in_flight, ratios)| (in_flight.to_string(), of(ratios)))
        .collect();
    let report = json!({
        "schema": "etcd-compare/1",
        "ratio": { "equal_in_flight": equal, "best": of(&best) },
        "setups": runs.iter().map(|(setup, rounds)| summary(setup, rounds)).collect::<Vec<_>>(),
        "problems": problems,
    });
    fs::write(
        dir.join("compare.json"),
        serde_json::to_string_pretty(&report)? + "\n",
    )?;
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INVALID)
    })
}

fn read(dir: &Path) -> Result<Runs, Box<dyn Error>> {
    let mut runs = Runs::new();
    for file in fs::read_dir(dir)? {
        let file = file?.path();
        let Some((setup, round)) = file.file_name().and_then(|name| setup_of(name.to_str()?))
        else {
            continue;
        };
        let run = serde_json::from_slice(&fs::read(&file)?)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        runs.entry(setup).or_default().insert(round, run);
    }
    Ok(runs)
}

fn setup_of(name: &str) -> Option<(Setup, u64)> {
    let mut parts = name.strip_suffix(".json")?.split('-');
    let system = parts
        .next()
        .filter(|system| matches!(*system, "etcd" | "ours"))?;
    let (in_flight, round) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let setup = Setup {
        system: system.to_owned(),
        in_flight,
    };
    parts.next().is_none().then_some((setup, round))
}

fn number(run: &Value, path: &str) -> Option<f64> {
    run.pointer(path)?.as_f64()
}

fn rate(run: &Value) -> f64 {
    number(run, "/result/completed_per_s").unwrap_or(0.0)
}

/// The median; of an even number, the mean of the two in the middle. `None` of nothing.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn median_of(rounds: &BTreeMap<u64, Value>, path: &str) -> Option<f64> {
    let values: Vec<f64> = rounds
        .values()
        .filter_map(|run| number(run, path))
        .collect();
    median(&values)
}

/// Ours over etcd's in each round that has both, for every number in flight that both have.
fn ratios_at_equal(runs: &Runs) -> BTreeMap<u64, Vec<f64>> {
    let mut ratios = BTreeMap::new();
    for (setup, ours) in runs.iter().filter(|(setup, _)| setup.system == "ours") {
        let theirs = Setup {
            system: "etcd".to_owned(),
            ..setup.clone()
        };
        let Some(theirs) = runs.get(&theirs) else {
            continue;
        };
        let both = ours
            .iter()
            .filter_map(|(round, run)| Some((rate(run), rate(theirs.get(round)?))));
        ratios.insert(
            setup.in_flight,
            both.filter(|(_, etcd)| *etcd > 0.0)
                .map(|(a, b)| a / b)
                .collect(),
        );
    }
    ratios
}

/// Our best over etcd's best in each round.
fn ratios_at_best(runs: &Runs) -> Vec<f64> {
    let rounds: BTreeSet<u64> = runs
        .values()
        .flat_map(|rounds| rounds.keys().copied())
        .collect();
    let best = |system: &str, round: u64| {
        let setups = runs.iter().filter(|(setup, _)| setup.system == system);
        setups
            .filter_map(|(_, rounds)| rounds.get(&round))
            .map(rate)
            .fold(0.0, f64::max)
    };
    let both = rounds
        .iter()
        .map(|round| (best("ours", *round), best("etcd", *round)));
    both.filter(|(ours, etcd)| *ours > 0.0 && *etcd > 0.0)
        .map(|(ours, etcd)| ours / etcd)
        .collect()
}

/// What makes the comparison worthless.
fn problems(runs: &Runs) -> Vec<String> {
    let mut problems = Vec::new();
    for (setup, rounds) in runs {
        for (round, run) in rounds {
            let name = format!(
                "{} with {} in flight, round {round}",
                setup.system, setup.in_flight
            );
            if run.pointer("/verdict/valid") == Some(&Value::Bool(false)) {
                problems.push(format!("{name}: {}", run["verdict"]["reasons"]));
            }
            let errors = run.pointer("/result/errors").and_then(Value::as_object);
            if errors.is_some_and(|errors| errors.values().any(|count| *count != json!(0))) {
                problems.push(format!("{name}: errors {}", run["result"]["errors"]));
            }
            if rate(run) == 0.0 {
                problems.push(format!("{name}: nothing completed"));
            }
        }
    }
    problems
}

fn summary(setup: &Setup, rounds: &BTreeMap<u64, Value>) -> Value {
    json!({
        "system": setup.system,
        "in_flight": setup.in_flight,
        "rounds": rounds.len(),
        "completed_per_s_median": median_of(rounds, "/result/completed_per_s"),
        "completed_per_s_rounds": rounds.values().map(rate).collect::<Vec<_>>(),
        "p50_ns_median": median_of(rounds, "/result/latency/send/p50_ns"),
        "p99_ns_median": median_of(rounds, "/result/latency/send/p99_ns"),
        "us_core_per_write_median": median_of(rounds, "/cpu/us_core_per_write"),
    })
}

fn table(runs: &Runs) -> String {
    let mut text = format!(
        "{:<6}{:>10}{:>14}{:>12}{:>12}{:>16}   {}\n",
        "", "in flight", "puts/s", "p50 ms", "p99 ms", "us core/put", "puts/s by round"
    );
    for (setup, rounds) in runs {
        let cell = |path: &str, scale: f64, digits: usize| match median_of(rounds, path) {
            Some(value) => format!("{:.digits$}", value / scale),
            None => "-".to_owned(),
        };
        let each: Vec<String> = rounds
            .values()
            .map(|run| format!("{:.0}", rate(run)))
            .collect();
        text += &format!(
            "{:<6}{:>10}{:>14}{:>12}{:>12}{:>16}   {}\n",
            setup.system,
            setup.in_flight,
            cell("/result/completed_per_s", 1.0, 0),
            cell("/result/latency/send/p50_ns", 1e6, 2),
            cell("/result/latency/send/p99_ns", 1e6, 2),
            cell("/cpu/us_core_per_write", 1.0, 2),
            each.join(" "),
        );
    }
    text
}

fn line(what: &str, ratios: &[f64]) -> String {
    let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.1}")).collect();
    match median(ratios) {
        Some(median) => format!("{what}: {median:.1} (median of {})", each.join(", ")),
        None => format!("{what}: no round has both"),
    }
}

/// As `loadgen` exits when a run is invalid.
const INVALID: u8 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(per_s: f64) -> Value {
        json!({ "result": { "completed_per_s": per_s, "errors": {} } })
    }

    fn runs(all: &[(&str, f64)]) -> Runs {
        let mut runs = Runs::new();
        for (name, per_s) in all {
            let (setup, round) = setup_of(name).unwrap();
            runs.entry(setup).or_default().insert(round, run(*per_s));
        }
        runs
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_then_their_median() {
        let runs = runs(&[
            ("etcd-512-1.json", 10.0),
            ("ours-512-1.json", 200.0),
            ("etcd-512-2.json", 5.0),
            ("ours-512-2.json", 150.0),
            ("etcd-512-3.json", 20.0),
            ("ours-512-3.json", 440.0),
            ("etcd-1024-1.json", 20.0),
            ("ours-4096-1.json", 800.0),
        ]);
        let equal = ratios_at_equal(&runs);
        assert_eq!(equal[&512], [20.0, 30.0, 22.0]);
        assert_eq!(median(&equal[&512]), Some(22.0));
        assert!(!equal.contains_key(&4096));
        assert_eq!(ratios_at_best(&runs), [40.0, 30.0, 22.0]);
        assert!(problems(&runs).is_empty());
    }

    #[test]
    fn a_run_with_errors_or_without_a_verdict_in_its_favour_is_named() {
        let mut runs = runs(&[("ours-512-1.json", 1.0), ("etcd-512-1.json", 0.0)]);
        let ours = runs.values_mut().last().unwrap().get_mut(&1).unwrap();
        ours["verdict"] = json!({ "valid": false, "reasons": ["tmpfs"] });
        ours["result"]["errors"] = json!({ "busy": 3 });
        let problems = problems(&runs).join("\n");
        for part in ["tmpfs", "busy", "nothing completed"] {
            assert!(problems.contains(part), "{problems}");
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        for name in [
            "compare.json",
            "etcd-512.json",
            "etcd-512-1.log",
            "other-512-1.json",
        ] {
            assert_eq!(setup_of(name), None, "{name}");
        }
    }
}
