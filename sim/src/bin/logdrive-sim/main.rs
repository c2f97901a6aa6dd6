//! `logdrive-sim`: seeds of a simulated cluster, and what becomes of them.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "seeds run side by side and take real time; each stays on one thread"
)]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use logdrive_raft::Micros;
use logdrive_shard::units;

mod alone;
mod images;
mod mutants;
mod replay;
mod rewritten;
mod run;
mod say;
mod story;
mod unsettled;

/// Whole clusters in one thread each, from seeds.
#[derive(Debug, Parser)]
#[command(name = "logdrive-sim", version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs seeds and checks everything in each.
    Run(RunArgs),
    /// Runs one seed or one script again.
    Replay(ReplayArgs),
    /// Makes a failing seed as small as it gets and writes it down as a script.
    Shrink(ShrinkArgs),
    /// Plants known bugs, one at a time, and sees that each is caught.
    Mutants(MutantsArgs),
    /// Recovers the log from images that crashes leave of short histories, and from damaged ones.
    Images(ImagesArgs),
}

/// Which seeds.
#[derive(Debug, Args)]
struct RunArgs {
    /// How many: `200`, `2k`.
    #[arg(long, value_parser = some)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many at once; all cores unless said.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Disks may lie and lose what they said they had: whoever stops has to say why.
    #[arg(long)]
    beyond_limit: bool,
    /// Runs each seed twice, and the two have to be the same.
    #[arg(long)]
    twice: bool,
}

/// What to run again.
#[derive(Debug, Args)]
struct ReplayArgs {
    /// A seed.
    #[arg(long, required_unless_present = "script", conflicts_with = "script")]
    seed: Option<u64>,
    /// A script.
    #[arg(long)]
    script: Option<PathBuf>,
    /// As the seed was run.
    #[arg(long, conflicts_with = "script")]
    beyond_limit: bool,
    /// Disks lie to a log that is held to its promises: the run has to fail.
    #[arg(long, conflicts_with_all = ["script", "beyond_limit"])]
    canary: bool,
    /// Stop at this virtual time: `7262ms`, or microseconds without a unit, as the story has them.
    #[arg(long, value_parser = virtual_time)]
    until: Option<Micros>,
    /// Tell the story.
    #[arg(long)]
    trace: bool,
    /// With a planted bug, in builds that hold any.
    #[arg(long)]
    mutant: Option<String>,
}

/// What to make small.
#[derive(Debug, Args)]
struct ShrinkArgs {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// As it was run.
    #[arg(long)]
    beyond_limit: bool,
    /// Where the script goes.
    #[arg(long)]
    out: PathBuf,
    /// With a planted bug, in builds that hold any.
    #[arg(long)]
    mutant: Option<String>,
    /// The most runs that are tried.
    #[arg(long, default_value = "2k", value_parser = some)]
    runs: u64,
}

/// How bugs are looked for.
#[derive(Debug, Args)]
struct MutantsArgs {
    /// Ignore the seeds that are known to catch a bug.
    #[arg(long)]
    search: bool,
    /// The most seeds for a bug.
    #[arg(long, default_value = "2k", value_parser = some)]
    seeds: u64,
    /// Only the bugs whose names begin so.
    #[arg(long)]
    only: Option<String>,
    /// Keep the seeds that were found.
    #[arg(long)]
    write: bool,
}

/// Which images.
#[derive(Debug, Args)]
struct ImagesArgs {
    /// How many crash images, about, those inside recoveries included.
    #[arg(long, default_value = "600k", value_parser = some)]
    images: u64,
    /// Draws the histories.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only this history.
    #[arg(long)]
    history: Option<u64>,
    /// How many histories at once; all cores unless said.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
}

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("LOGDRIVE_COMMIT"),
    ")"
);

/// Something went wrong that says nothing of the engine.
const EXIT_INTERNAL: u8 = 1;

/// The command line makes no sense.
const EXIT_USAGE: u8 = 2;

/// Something that was to be shown was not.
const EXIT_ASSERTION: u8 = 10;

/// A promise was broken.
const EXIT_VIOLATION: u8 = 20;

/// A count that is not zero.
fn some(text: &str) -> Result<u64, String> {
    match units::count(text) {
        Ok(0) => Err("at least 1 is needed".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(error.to_string()),
    }
}

fn virtual_time(text: &str) -> Result<Micros, String> {
    if let Ok(us) = text.parse() {
        return Ok(Micros(us));
    }
    let time = units::duration(text).map_err(|error| error.to_string())?;
    u64::try_from(time.as_micros())
        .map(Micros)
        .map_err(|error| error.to_string())
}

/// How many runs go side by side.
fn jobs(asked: Option<NonZeroUsize>) -> usize {
    asked.map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        usize::from,
    )
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Run(args) => run::run(&args),
        Command::Replay(args) => replay::replay(&args),
        Command::Shrink(args) => replay::shrink(&args),
        Command::Mutants(args) => mutants::mutants(&args),
        Command::Images(args) => images::images(&args),
    }
}
