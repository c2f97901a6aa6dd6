//! Many seeds, side by side.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use logdrive_sim::cluster::{Cluster, Ended, Source, Summary};
use logdrive_sim::coverage::{Coverage, Mark};
use logdrive_sim::draw;
use logdrive_sim::kv::KvModel;

use crate::story::{print_failure, replay_of};
use crate::{EXIT_ASSERTION, EXIT_USAGE, EXIT_VIOLATION, RunArgs, jobs};

/// With fewer seeds chance decides whether every fault was met.
const SEEDS_THAT_COUNT: u64 = 200;

/// Reads one figure of a sum.
type Of = fn(&Sum) -> u64;

/// What a seed has to see on average, that a clean run proves anything.
const FLOOR: [(&str, u64, Of); 4] = [
    ("events", 30_000, |sum| sum.events),
    ("crashes", 5, |sum| sum.crashes),
    ("elections", 2, |sum| sum.elections),
    ("acked", 500, |sum| sum.acked),
];

/// So many failing seeds are told in full.
const STORIES_MAX: usize = 3;

/// What all seeds saw together.
#[derive(Default)]
struct Sum {
    events: u64,
    crashes: u64,
    elections: u64,
    acked: u64,
    hash: u64,
    explained: u64,
    given_up: u64,
    coverage: Coverage,
    violations: Vec<u64>,
    differ: Vec<u64>,
}

impl Sum {
    fn add(&mut self, seed: u64, summary: &Summary) {
        self.events += summary.events;
        self.crashes += summary.crashes;
        self.elections += summary.elections;
        self.acked += summary.acked;
        self.explained += summary.searched.explained;
        self.given_up += summary.searched.given_up;
        self.coverage.merge(&summary.coverage);
        // In whatever order the seeds end: a sum of what depends on the seed too.
        let salted = summary.hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = self.hash.wrapping_add(salted.rotate_left(17));
    }
}

pub(crate) fn run(args: &RunArgs) -> ExitCode {
    let Some(end) = args.seed.checked_add(args.seeds) else {
        eprintln!(
            "error: seeds from {} on, {} of them, do not fit 64 bits",
            args.seed, args.seeds
        );
        return ExitCode::from(EXIT_USAGE);
    };
    // A run that hits an assertion tells of it in its own words.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let sum = run_all(args, end);
    println!("\n{:>12}  what happened", "times");
    let marks: Vec<Mark> = marks(args.beyond_limit).collect();
    for mark in &marks {
        println!("{:>12}  {mark}", sum.coverage.of(*mark));
    }
    println!(
        "{:>12}  keys whose answers the search explained, {} given up",
        sum.explained, sum.given_up
    );
    let shortfall = shortfall(args, &sum, &marks);
    for short in &shortfall {
        println!("short: {short}");
    }
    for seed in &sum.differ {
        println!(
            "seed {seed} did not run to the same end twice: something in it follows from no seed"
        );
    }
    let seconds = began.elapsed().as_secs_f64();
    let violations = sum.violations.len();
    println!(
        "seeds {} first {} ok {} violations {violations} events {} crashes {} elections {} acked {} \
         seconds {seconds:.1} hash {:016x}",
        args.seeds,
        args.seed,
        args.seeds - violations as u64,
        sum.events,
        sum.crashes,
        sum.elections,
        sum.acked,
        sum.hash
    );
    if violations > 0 {
        ExitCode::from(EXIT_VIOLATION)
    } else if !shortfall.is_empty() || !sum.differ.is_empty() {
        ExitCode::from(EXIT_ASSERTION)
    } else {
        ExitCode::SUCCESS
    }
}

fn run_all(args: &RunArgs, end: u64) -> Sum {
    let next = AtomicU64::new(args.seed);
    let mut sum = Sum::default();
    std::thread::scope(|scope| {
        let (done, results) = mpsc::sync_channel::<(u64, Ended, bool)>(64);
        for _ in 0..jobs(args.jobs) {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || seed < args.seed {
                        return;
                    }
                    let ended = run_one(seed, args.beyond_limit);
                    let same =
                        !args.twice || run_one(seed, args.beyond_limit).summary == ended.summary;
                    if done.send((seed, ended, same)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for (seed, ended, same) in results {
            sum.add(seed, &ended.summary);
            if !same {
                sum.differ.push(seed);
            }
            if ended.failed.is_some() {
                if sum.violations.len() < STORIES_MAX {
                    let (plan, _) = draw::run_of(seed, args.beyond_limit);
                    let replay = replay_of(seed, args.beyond_limit);
                    print_failure(&format!("seed {seed}"), &plan, &ended, &replay);
                } else {
                    println!("seed {seed} fails too");
                }
                sum.violations.push(seed);
            }
        }
    });
    sum
}

fn run_one(seed: u64, beyond_limit: bool) -> Ended {
    let (plan, steps) = draw::run_of(seed, beyond_limit);
    let mut model = KvModel::default();
    Cluster::new(&plan, steps, &Source::Drawn(seed), &mut model).run(None)
}

fn marks(beyond_limit: bool) -> Box<dyn Iterator<Item = Mark>> {
    if beyond_limit {
        Box::new(Mark::beyond_limit())
    } else {
        Box::new(Mark::within_limit())
    }
}

/// What these seeds did not meet, and should have.
fn shortfall(args: &RunArgs, sum: &Sum, marks: &[Mark]) -> Vec<String> {
    if args.seeds < SEEDS_THAT_COUNT {
        return Vec::new();
    }
    let mut short = Vec::new();
    if !args.beyond_limit {
        for (what, floor, of) in FLOOR {
            let average = of(sum) / args.seeds;
            if average < floor {
                short.push(format!(
                    "{average} {what} a seed, at least {floor} are wanted"
                ));
            }
        }
        if sum.given_up * 50 > sum.explained {
            short.push(format!("{} searches of a key were given up", sum.given_up));
        }
    }
    for mark in marks {
        if sum.coverage.of(*mark) == 0 {
            short.push(format!("no {mark}"));
        }
    }
    short
}
