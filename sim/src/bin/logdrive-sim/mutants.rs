//! Known bugs, planted one at a time: each must be caught.
//!
//! Most are looked for in runs of a cluster. Some need a medium that no run comes to before something else
//! happens: those are looked for in [`BY_IMAGES`]' manner, among the images that a crash or a damage leaves of
//! short histories of the log alone.
//!
//! Only a build with `--cfg mutants` holds them. The plain program makes that build, in a target directory of
//! its own, and lets it do the work.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use logdrive_raft::mutant::Mutant;
use logdrive_sim::cluster::{Cluster, Source};
use logdrive_sim::draw;
use logdrive_sim::images::{self, ImagesOptions};
use logdrive_sim::kv::KvModel;
use logdrive_sim::oracle::Rule;
use logdrive_sim::script::Script;

use crate::alone;
use crate::say::say;
use crate::{EXIT_ASSERTION, EXIT_INTERNAL, EXIT_USAGE, MutantsArgs, jobs};

/// Every so many seeds of a search one is beyond the limit.
const BEYOND_EVERY: u64 = 4;

/// After so many more seeds an assertion of the engine is taken for want of a verdict.
const VERDICT_SEEDS: u64 = 200;

/// The bugs of the log that the images of its histories show.
const BY_IMAGES: [&str; 2] = ["block-anywhere", "debris-kept"];

/// The bugs of the core that no run shows while memberships never change and no two snapshots contradict each other:
/// one replica alone is given what no peer of this cluster would send.
const ALONE: [&str; 9] = [
    "snapshot-other-term",
    "membership-survives-install",
    "guard-by-length",
    "guard-ends-early",
    "rollback-ignored",
    "settle-before-flush",
    "settle-counts-guarded",
    "settle-by-minority",
    "settle-in-an-old-term",
];

/// So many histories are looked into for each of them. 300 000 images come of about 300.
const HISTORIES: u64 = 300;

/// A run of a known kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Cluster {
        seed: u64,
        beyond_limit: bool,
    },
    /// A history of the log alone, with all its images.
    Images {
        history: u64,
    },
    /// One replica, and a snapshot that it is given.
    Alone,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::Cluster { seed, beyond_limit } => {
                let beyond = if *beyond_limit { " beyond" } else { "" };
                write!(f, "{seed}{beyond}")
            }
            Run::Images { history } => write!(f, "images {history}"),
            Run::Alone => f.write_str("alone"),
        }
    }
}

/// What became of a bug.
struct Found {
    run: Run,
    tried: u64,
    caught: Caught,
}

/// What a run with a bug has come to.
struct Caught {
    /// Only an assertion of the engine stopped it.
    asserted: bool,
    text: String,
}

pub(crate) fn mutants(args: &MutantsArgs) -> ExitCode {
    if !cfg!(mutants) {
        return build_and_run();
    }
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let known = read_known();
    let wanted = |mutant: &&Mutant| {
        let only = args.only.as_deref().unwrap_or_default();
        mutant.name().starts_with(only)
    };
    let wanted: Vec<Mutant> = Mutant::ALL.iter().filter(wanted).copied().collect();
    if wanted.is_empty() {
        eprintln!("error: no planted bug has a name that begins so");
        return ExitCode::from(EXIT_USAGE);
    }
    let found = look_for(&wanted, |mutant| {
        let first = known.iter().filter(|(name, _)| *name == mutant.name());
        let first = first.map(|(_, run)| *run).filter(|_| !args.search);
        search(mutant, first, args.seeds)
    });
    let kept = match args.only {
        Some(_) => Ok(0),
        None => play_scripts(),
    };
    let mut tried: Vec<u64> = found.iter().flatten().map(|found| found.tried).collect();
    tried.sort_unstable();
    let asserted = found.iter().flatten();
    let asserted = asserted.filter(|found| found.caught.asserted);
    let (asserted, caught) = (asserted.count(), tried.len());
    if args.write && args.only.is_none() {
        write_known(&wanted, &found);
    }
    say!(
        "asserted {asserted} of {caught}, at most a third may; {:.0} s",
        began.elapsed().as_secs_f64()
    );
    let survived = wanted.len() - caught;
    say!(
        "mutants {} caught {caught} survived {survived} median_seeds {} max_seeds {}",
        wanted.len(),
        tried.get(tried.len() / 2).copied().unwrap_or(0),
        tried.last().copied().unwrap_or(0)
    );
    match kept {
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_INTERNAL)
        }
        Ok(0) if survived == 0 && asserted * 3 <= caught => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(EXIT_ASSERTION),
    }
}

/// Looks for all of them, side by side; says what became of each as soon as it is known.
fn look_for(
    wanted: &[Mutant],
    search: impl Fn(Mutant) -> Option<Found> + Sync,
) -> Vec<Option<Found>> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Option<Found>>> = Mutex::new(wanted.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..jobs(None) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(mutant) = wanted.get(place) else {
                        return;
                    };
                    let one = search(*mutant);
                    say!("{}", line(*mutant, one.as_ref()));
                    if let Ok(mut found) = found.lock() {
                        found[place] = one;
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_default()
}

fn line(mutant: Mutant, found: Option<&Found>) -> String {
    let Some(Found { run, tried, caught }) = found else {
        return format!("{:<28} SURVIVED", mutant.name());
    };
    let text: String = caught.text.chars().take(120).collect();
    let text = text.replace('\n', " ");
    let kind = match run {
        Run::Cluster { .. } => "seed ",
        Run::Images { .. } | Run::Alone => "",
    };
    format!("{:<28} {kind}{run} after {tried}: {text}", mutant.name())
}

/// The first run that catches a bug by an oracle, or else by an assertion.
fn search(mutant: Mutant, first: impl Iterator<Item = Run>, seeds: u64) -> Option<Found> {
    let by_images = BY_IMAGES.contains(&mutant.name());
    let alone = ALONE.contains(&mutant.name());
    let runs = match (by_images, alone) {
        (true, _) => HISTORIES,
        (_, true) => 1,
        _ => seeds,
    };
    let all = (1..=runs).map(|number| {
        if alone {
            return Run::Alone;
        }
        if by_images {
            return Run::Images { history: number };
        }
        Run::Cluster {
            seed: number,
            beyond_limit: number.is_multiple_of(BEYOND_EVERY),
        }
    });
    let mut asserted: Option<Found> = None;
    for (tried, run) in (1..).zip(first.chain(all)) {
        let Some(caught) = try_one(Some(mutant), run) else {
            continue;
        };
        // A run that fails without the bug as well says nothing of it.
        if try_one(None, run).is_some() {
            continue;
        }
        let found = Found { run, tried, caught };
        if !found.caught.asserted {
            return Some(found);
        }
        let first = asserted.get_or_insert(found).tried;
        if first + VERDICT_SEEDS < tried {
            break;
        }
    }
    asserted
}

fn try_one(mutant: Option<Mutant>, run: Run) -> Option<Caught> {
    match run {
        Run::Cluster { seed, beyond_limit } => {
            let (plan, steps) = draw::run_of(seed, beyond_limit);
            let mut model = KvModel::default();
            let cluster = Cluster::new(&plan, steps, &Source::Drawn(seed), &mut model);
            let failed = cluster.with_mutant(mutant).run(None).failed?;
            Some(Caught {
                asserted: failed.violation.rule == Rule::Assertion,
                text: failed.violation.to_string(),
            })
        }
        Run::Alone => {
            let text = alone::broken(mutant)?;
            Some(Caught {
                asserted: false,
                text,
            })
        }
        Run::Images { history } => {
            let report = images::run(&ImagesOptions {
                history: Some(history),
                mutant,
                ..ImagesOptions::default()
            });
            let violation = report.violations.first()?;
            Some(Caught {
                asserted: violation.is_panic(),
                text: violation.to_string(),
            })
        }
    }
}

/// Plays the scripts that name a planted bug: with it they break the promise that they name, and without it
/// none. Says how many do not.
fn play_scripts() -> Result<usize, String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let files = std::fs::read_dir(&directory);
    let files = files.map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut wrong = 0;
    for file in files {
        let path = file.map_err(|error| error.to_string())?.path();
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        let script = Script::parse(&text);
        let script = script.map_err(|error| format!("{}: {error}", path.display()))?;
        let Some(name) = &script.mutant else {
            continue;
        };
        let mutant: Mutant = name
            .parse()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let play = |mutant| {
            let mut model = KvModel::default();
            let played = script.play(&mut model, mutant, None, &mut |_, _| {});
            let broke = played.ended.failed.map(|failed| failed.violation.rule);
            broke.map(|rule| rule.to_string())
        };
        let (with, without) = (play(Some(mutant)), play(None));
        let is_right = with.as_ref() == Some(&script.broke) && without.is_none();
        wrong += usize::from(!is_right);
        say!(
            "{:<28} script {}: {}, without it {}",
            name,
            path.file_name().unwrap_or_default().display(),
            with.as_deref().unwrap_or("SURVIVED"),
            without.as_deref().unwrap_or("nothing"),
        );
    }
    Ok(wrong)
}

fn known_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants.txt")
}

/// The runs that are known to catch a bug: a line each, `NAME SEED`, `NAME SEED beyond`,
/// `NAME images HISTORY` or `NAME alone`.
fn read_known() -> Vec<(String, Run)> {
    let text = std::fs::read_to_string(known_path()).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, number) = (words.next()?, words.next()?);
        let run = if number == "alone" {
            Run::Alone
        } else if number == "images" {
            Run::Images {
                history: words.next()?.parse().ok()?,
            }
        } else {
            Run::Cluster {
                seed: number.parse().ok()?,
                beyond_limit: words.next() == Some("beyond"),
            }
        };
        Some((name.to_owned(), run))
    };
    text.lines().filter_map(parse).collect()
}

fn write_known(wanted: &[Mutant], found: &[Option<Found>]) {
    let mut text = String::from(
        "# Which run catches which planted bug. Kept by `logdrive-sim mutants --write`.\n",
    );
    for (mutant, found) in wanted.iter().zip(found) {
        if let Some(Found { run, .. }) = found {
            text += &format!("{} {run}\n", mutant.name());
        }
    }
    if let Err(error) = std::fs::write(known_path(), text) {
        eprintln!("{}: {error}", known_path().display());
    }
}

/// Builds the program that holds the bugs, and lets it go on.
fn build_and_run() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = own.unwrap_or_else(|| root.join("target")).join("mutants");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let built = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "-p",
            "logdrive-sim",
        ])
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", format!("{flags} --cfg mutants"))
        .status();
    match built {
        Ok(status) if status.success() => {}
        Ok(status) => {
            eprintln!("the build with the bugs failed: {status}");
            return ExitCode::from(EXIT_INTERNAL);
        }
        Err(error) => {
            eprintln!("cargo, which builds the program with the bugs, cannot be run: {error}");
            return ExitCode::from(EXIT_INTERNAL);
        }
    }
    let program = target.join("release").join("logdrive-sim");
    let ran = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .status();
    match ran {
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            ExitCode::from(code.unwrap_or(EXIT_INTERNAL))
        }
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}
