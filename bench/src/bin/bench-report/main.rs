//! A report from the raw runs of `bench/reports/collect.sh`: every figure filled in, and of each promise whether
//! it holds.
//!
//! `bench-report DIR` reads `DIR/CASE-ROUND/run.json` and what else `collect.sh` leaves there, and prints
//! markdown.

mod etcd;
mod memory;
mod model;
mod runs;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use etcd::Etcd;
use runs::Runs;
use tables::Promises;

fn main() -> ExitCode {
    let Some(dir) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: bench-report DIR");
        return ExitCode::from(2);
    };
    let runs = match Runs::read(&dir) {
        Ok(runs) => runs,
        Err(error) => {
            eprintln!("bench-report: {error}");
            return ExitCode::FAILURE;
        }
    };
    let name = dir
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    // What collect.sh notes of the machine; without it the report says so itself.
    let environment = fs::read_to_string(dir.join("environment.txt"))
        .unwrap_or_else(|_| "not recorded\n".to_owned());

    let etcd = Etcd::read(&dir);
    let promises = Promises::of(&runs, &etcd);

    println!("# {name}\n");
    if environment.contains("--quick") {
        println!(
            "**Made with --quick: it shows that the way here works. No figure of it means anything.**\n"
        );
    }
    println!("**Question.** Does this build keep what it promises, on this machine?\n");
    let [holds, broken, not_run] = promises.counts;
    println!(
        "**Answer.** {holds} hold, {broken} do not, {not_run} have no valid run; by the median of the rounds."
    );
    for missing in &promises.missing {
        println!("- {missing}");
    }
    println!("\n**Machine, commit, command.**\n\n```text\n{environment}```\n");
    println!("{}", tables::settings(&runs));
    println!("## What it must show\n\n{}", promises.table);
    println!("## Ethernet beside loopback\n\n{}", tables::profiles(&runs));
    println!("## All runs\n\n{}", tables::all(&runs));
    println!("## Floors of the same runs\n\n{}", tables::floors(&runs));
    println!("## Processor time\n\n{}", model::section(&runs));
    println!("## Memory\n");
    let memory = runs
        .0
        .get("memory")
        .and_then(|rounds| rounds.values().next());
    match memory.and_then(memory::held_and_allowed) {
        Some((held, allowed)) => println!(
            "60 s with defaults: the largest replica held {held:.0} MiB (VmHWM); the formula of \
             ARCHITECTURE.md with what this run had, and 64 MiB, is {allowed:.0} MiB, without the \
             state machine.\n"
        ),
        None => println!("Not run.\n"),
    }
    let best: Vec<String> = etcd
        .at_best()
        .iter()
        .map(|ratio| format!("{ratio:.1}"))
        .collect();
    if let Ok(etcd) = fs::read_to_string(dir.join("etcd.txt")) {
        println!("## Beside etcd\n\n```text\n{etcd}```\n");
        println!("Each at its best, by round: {} ×.\n", best.join(", "));
    }
    println!("{NOT_SHOWN}");
    ExitCode::SUCCESS
}

const NOT_SHOWN: &str = "**What was not shown.** Replicas on machines of their own, with a network and a disk \
    each: here three replicas and the generator share processors and disk, so rates are lower and latencies \
    under load higher than apart, and no packet crosses a wire. Many clients far away. Power loss: processes \
    are killed here, the machine stays up. How long the tests take: see .ci/run.";
