//! Logs beside each other on one disk: ours, raft-engine, okaywal, the obvious one, and the device itself.
//!
//! An append is one call by one caller who waits until it is durable; merging calls into one flush is everybody's right.
//! Each round measures each contender once, shape by shape, and only ratios within a round are told.
//!
//! Also what only ours is asked: how it reads while it writes, and how long it takes to open.

mod contender;
mod driven;
mod load;
mod measure;
mod opening;
mod reading;
mod shape;
mod table;
mod woken;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::contender::{ALL, CALLERS_MAX, Contender, Failed};
use crate::load::Load;
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
    /// Numbers of callers. More than 16 append small shapes alone
    #[arg(long, value_delimiter = ',', default_value = "16,1,256")]
    callers: Vec<usize>,
    /// What is measured
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "appends,half-load,reading,opening"
    )]
    part: Vec<Part>,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everybody's appends, as many as they can
    Appends,
    /// Ours beside the device, at half of what ours can; needs `appends`
    HalfLoad,
    /// Reading from the oldest entry on while appends go on
    Reading,
    /// Opening a log of 1 GiB
    Opening,
}

/// Who is measured at half load, too: those whose callers are no threads.
const PACED: [&str; 3] = ["logdrive", "device-dsync", "device-drained"];

/// How many callers a log is given unless they are the question.
const CALLERS: usize = 16;

/// What many callers append at most.
const MANY_BYTES_MAX: usize = 8 << 10;

fn main() -> ExitCode {
    let args = Args::parse();
    // Who waits for a moment is woken at that moment, and not 50 µs later. Threads begun from here on inherit it.
    let outcome = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    match outcome.map_err(Failed::from).and_then(|()| run(&args)) {
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
    let mut results = Results::default();
    let asked = |part: Part| args.part.contains(&part);
    if asked(Part::Appends) {
        appends(args, &shapes, &mut results)?;
    }
    let mut tables = results.to_markdown(ALL[0].0);
    if asked(Part::Reading) {
        let dir = fresh(&args.dir, "reading")?;
        tables += &reading::measure(&dir, args.rounds, args.time)?;
    }
    if asked(Part::Opening) {
        tables += &opening::measure(&args.dir, args.rounds)?;
    }
    std::fs::write(args.out.join("results.json"), results.to_json()?)?;
    std::fs::write(args.out.join("results.md"), &tables)?;
    print!("{tables}");
    Ok(())
}

fn appends(args: &Args, shapes: &[Shape], results: &mut Results) -> Result<(), Failed> {
    let mut contenders = BTreeMap::new();
    for (order, (name, open)) in ALL.into_iter().enumerate() {
        if args.contender.is_empty() || args.contender.iter().any(|one| one == name) {
            contenders.insert(order, (name, ready(&args.dir, name, open)?));
        }
    }
    for round in 0..args.rounds {
        for shape in shapes {
            for callers in args.callers.iter().copied() {
                if callers > CALLERS && shape.payload_bytes() > MANY_BYTES_MAX {
                    continue;
                }
                let mut load = Load {
                    shape: *shape,
                    callers,
                    time: args.time,
                    per_s: None,
                };
                let ours = measure(&mut contenders, &load, round, results)?;
                if args.part.contains(&Part::HalfLoad) && callers == CALLERS {
                    load.per_s = ours.map(|per_s| per_s / 2.0);
                    // Nobody who comes has to wait until a caller is free.
                    load.callers = CALLERS_MAX;
                    // Half as many appends a second, and as many of them.
                    load.time *= 2;
                    measure(&mut contenders, &load, round, results)?;
                }
            }
            eprintln!("round {} of {}: {shape}", round + 1, args.rounds);
        }
    }
    Ok(())
}

/// One stretch of each. How many appends a second ours made.
fn measure(
    contenders: &mut Contenders,
    load: &Load,
    round: usize,
    results: &mut Results,
) -> Result<Option<f64>, Failed> {
    let mut ours = None;
    for (name, contender) in in_turn(contenders, round) {
        if load.per_s.is_some() && !PACED.contains(&name) {
            continue;
        }
        let measured = contender
            .run(load)
            .map_err(|error| format!("{name}, {}: {error}", load.shape))?;
        let row = Row::of(name, load, round, &measured);
        if name == ALL[0].0 {
            ours = Some(row.appends_per_s());
        }
        results.add(row);
        contender.recycle()?;
    }
    Ok(ours)
}

/// A directory for somebody, which did not exist.
fn fresh(dir: &Path, name: &str) -> Result<PathBuf, Failed> {
    let directory = dir.join(name);
    std::fs::create_dir_all(dir)?;
    std::fs::create_dir(&directory)
        .map_err(|error| format!("{}: {error}: it must not exist", directory.display()))?;
    Ok(directory)
}

/// A contender whose files have been written before: what a log does in its first seconds is another question.
fn ready(
    dir: &Path,
    name: &str,
    open: fn(&Path) -> Result<Box<dyn Contender>, Failed>,
) -> Result<Box<dyn Contender>, Failed> {
    let directory = fresh(dir, name)?;
    let mut contender = open(&directory).map_err(|error| format!("{name}: {error}"))?;
    let load = Load {
        shape: Shape::ALL[Shape::ALL.len() - 1],
        callers: CALLERS,
        time: Duration::from_secs(1),
        per_s: None,
    };
    for _ in 0..3 {
        contender.run(&load)?;
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
