//! A report from the raw runs of `bench/reports/collect.sh`: every figure filled in, and gaps where only a
//! person knows the answer.
//!
//! `bench-report DIR` reads `DIR/CASE-ROUND/run.json` and what else `collect.sh` leaves there, and prints
//! markdown.

mod model;
mod runs;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use runs::Runs;

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

    println!("# {name}\n");
    println!("**Question.** _to be written_\n");
    println!("**Machine, commit, command.**\n\n```text\n{environment}```\n");
    println!("{}", tables::settings(&runs));
    println!("## What it must show\n\n{}", tables::promises(&runs));
    println!("## All runs\n\n{}", tables::all(&runs));
    println!("## Floors of the same runs\n\n{}", tables::floors(&runs));
    println!("## Processor time\n\n{}", model::section(&runs));
    if let Ok(memory) = fs::read_to_string(dir.join("memory.txt")) {
        println!("## Memory\n\n```text\n{memory}```\n");
    }
    if let Ok(etcd) = fs::read_to_string(dir.join("etcd.txt")) {
        println!("## Beside etcd\n\n```text\n{etcd}```\n");
    }
    println!("**Answer.** _to be written_\n");
    println!("**What was not shown.** _to be written_");
    ExitCode::SUCCESS
}
