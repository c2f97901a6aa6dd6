//! Logs beside each other on one disk: ours, raft-engine, okaywal, the obvious one, and the device itself.
//!
//! An append is one call by one caller who waits until it is durable; merging calls into one flush is everybody's right.
//! Each round measures each contender once, shape by shape, and only ratios within a round are told.

mod contender;
mod measure;
mod shape;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::contender::{ALL, CALLERS_MAX, Contender, Failed};
use crate::shape::Shape;
use crate::table::{Results, Row};

/// Appends of several logs, beside each other
#[derive(Debug, Parser)]
struct Args {
    /// Where their files lie: an empty directory on a real disk, made if there is none
    #[arg(long)]
    dir: PathBuf,
    /// Where results.json and results.md go
    #[arg(long)]
    out: PathBuf,
    /// How often each is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long each time
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Appends of these shapes alone, like `128Bx64` (repeatable)
    #[arg(long)]
    shape: Vec<String>,
    /// These alone (repeatable)
    #[arg(long)]
    contender: Vec<String>,
    /// Numbers of callers
    #[arg(long, value_delimiter = ',', default_value = "16,1")]
    callers: Vec<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wal-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failed> {
    let wanted =
        |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
    let shapes: Vec<Shape> = Shape::ALL
        .into_iter()
        .filter(|shape| wanted(&args.shape, &shape.to_string()))
        .collect();
    if shapes.is_empty() || args.rounds == 0 {
        let known: Vec<String> = Shape::ALL.iter().map(Shape::to_string).collect();
        return Err(format!("nothing to measure: shapes are {}", known.join(", ")).into());
    }
    if args
        .callers
        .iter()
        .any(|callers| !(1..=CALLERS_MAX).contains(callers))
    {
        return Err(format!("--callers are 1 to {CALLERS_MAX}").into());
    }
    std::fs::create_dir_all(&args.out)?;
    let mut contenders = BTreeMap::new();
    for (order, (name, open)) in ALL.into_iter().enumerate() {
        if wanted(&args.contender, name) {
            contenders.insert(order, (name, ready(&args.dir, name, open)?));
        }
    }
    let mut results = Results::default();
    for round in 0..args.rounds {
        for shape in &shapes {
            for callers in &args.callers {
                for (name, contender) in in_turn(&mut contenders, round) {
                    let measured = contender
                        .run(*shape, *callers, args.time)
                        .map_err(|error| format!("{name}, {shape}: {error}"))?;
                    results.add(Row::of(name, *shape, *callers, round, &measured));
                    contender.recycle()?;
                }
            }
            eprintln!("round {} of {}: {shape}", round + 1, args.rounds);
        }
    }
    drop(contenders);
    std::fs::write(args.out.join("results.json"), results.to_json()?)?;
    let table = results.to_markdown(ALL[0].0);
    std::fs::write(args.out.join("results.md"), &table)?;
    print!("{table}");
    Ok(())
}

/// A contender whose files have been written before: what a log does in its first seconds is another question.
fn ready(
    dir: &Path,
    name: &str,
    open: fn(&Path) -> Result<Box<dyn Contender>, Failed>,
) -> Result<Box<dyn Contender>, Failed> {
    let directory = dir.join(name);
    std::fs::create_dir_all(dir)?;
    std::fs::create_dir(&directory)
        .map_err(|error| format!("{}: {error}: it must not exist", directory.display()))?;
    let mut contender = open(&directory).map_err(|error| format!("{name}: {error}"))?;
    for _ in 0..3 {
        contender.run(
            Shape::ALL[Shape::ALL.len() - 1],
            CALLERS_MAX,
            Duration::from_secs(1),
        )?;
        contender.recycle()?;
    }
    Ok(contender)
}

type Contenders = BTreeMap<usize, (&'static str, Box<dyn Contender>)>;

/// Who is first is another one each round.
fn in_turn(
    contenders: &mut Contenders,
    round: usize,
) -> Vec<(&'static str, &mut Box<dyn Contender>)> {
    let mut all: Vec<_> = contenders
        .values_mut()
        .map(|(name, contender)| (*name, contender))
        .collect();
    let first = round % all.len().max(1);
    all.rotate_left(first);
    all
}
