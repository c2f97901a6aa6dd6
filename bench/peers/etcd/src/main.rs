//! The load of `loadgen run --closed`, on etcd: so many clients, each with one put outstanding.
//!
//! The same keys, sizes, closed loop and rules for percentiles, so that the two can stand in one table. One
//! thread drives all clients: what is measured is the cluster, and the generator should take as little of the
//! shared processors as it can.

mod latencies;
mod load;
mod process;
mod report;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use load::Cluster;

/// Loads an etcd cluster with puts in a closed loop and prints honest percentiles.
#[derive(Debug, Parser)]
#[command(name = "etcd-load", version)]
struct Args {
    /// Client addresses of all members
    #[arg(long, value_delimiter = ',', required = true, value_name = "URL,..")]
    endpoints: Vec<String>,
    /// Whom clients talk to
    #[arg(long, value_enum, default_value = "leader")]
    to: Whom,
    /// Concurrent clients, each with one put outstanding
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// HTTP/2 connections that the clients share, cut to --in-flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// How many keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to load before measuring
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// How long a put may take
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long the members may take until one of them leads
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// What randomness starts from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Processes of the members: their CPU time goes into the report
    #[arg(long, value_delimiter = ',', value_name = "PID,..")]
    pids: Vec<u32>,
    /// Where the report goes; `-` is standard output
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

/// Whom clients talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Whom {
    /// The leader alone: no hop from a follower.
    Leader,
    /// All members in turn.
    All,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("etcd-load: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::from(UNREACHABLE)
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    let (cluster, measured) = tasks.block_on(&runtime, async {
        let cluster = Cluster::wait_for(&args.endpoints, args.wait).await?;
        let measured = load::run(args, &cluster).await?;
        Ok::<_, Box<dyn Error>>((cluster, measured))
    })?;
    let report = report::of(args, &cluster, &measured);
    let text = serde_json::to_string_pretty(&report)?;
    match &args.json {
        Some(path) if path == Path::new("-") => println!("{text}"),
        Some(path) => std::fs::write(path, text + "\n")?,
        None => {}
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print!("{}", report::table(args, &measured));
    }
    // Puts that failed are a result; a run without a single answer is none.
    Ok(match measured.completed {
        0 => ExitCode::from(INVALID),
        _ => ExitCode::SUCCESS,
    })
}

/// As `loadgen` exits when the target is unreachable.
const UNREACHABLE: u8 = 30;

/// As `loadgen` exits when a run is invalid.
const INVALID: u8 = 12;
