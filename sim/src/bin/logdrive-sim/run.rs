//! Many seeds, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use logdrive_sim::cluster::{Cluster, Ended, Source, Summary};
use logdrive_sim::coverage::{Coverage, Mark};
use logdrive_sim::draw;
use logdrive_sim::enabled::enabled;
use logdrive_sim::kv::KvModel;
use logdrive_sim::node::text_of;
use logdrive_sim::plan::Plan;
use logdrive_sim::step::Timed;

use crate::say::say;
use crate::story::{print_failure, replay_of};
use crate::{EXIT_ASSERTION, EXIT_INTERNAL, EXIT_USAGE, EXIT_VIOLATION, RunArgs, jobs};

/// With fewer seeds chance decides whether every fault was met.
const SEEDS_THAT_COUNT: u64 = 200;

/// With fewer seeds chance decides whether this has happened, which takes several faults to come together.
const SEEDS_THAT_COUNT_FOR_RARE: u64 = 2_000;
const RARE: [Mark; 1] = [Mark::Unreadable];

/// Reads one figure of a sum.
type Of = fn(&Sum) -> u64;

/// What a seed has to see on average, within the limit and beyond it, that a clean run proves anything.
const FLOOR: [(&str, [u64; 2], Of); 4] = [
    // Beyond the limit a node may be lost early.
    ("events", [30_000, 20_000], |sum| sum.events),
    ("crashes", [5, 5], |sum| sum.crashes),
    ("elections", [2, 2], |sum| sum.elections),
    ("acked", [500, 500], |sum| sum.acked),
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
    /// Seeds in which so many nodes were lost that nobody had to go on.
    justified: u64,
    coverage: Coverage,
    /// How many seeds had it switched on, and how many met it.
    seeds: BTreeMap<Mark, Seeds>,
    done: u64,
    violations: Vec<u64>,
    differ: Vec<u64>,
    /// The simulator itself gave up.
    broken: Vec<u64>,
}

#[derive(Clone, Copy, Default)]
struct Seeds {
    on: u64,
    met: u64,
}

/// How one seed ended.
struct Outcome {
    ended: Ended,
    enabled: BTreeSet<Mark>,
    /// It ended the same twice, if it ran twice.
    same: bool,
}

impl Sum {
    fn add(&mut self, seed: u64, summary: &Summary, enabled: &BTreeSet<Mark>) {
        self.done += 1;
        self.events += summary.events;
        self.crashes += summary.crashes;
        self.elections += summary.elections;
        self.acked += summary.acked;
        self.explained += summary.searched.explained;
        self.given_up += summary.searched.given_up;
        self.justified += u64::from(summary.justified);
        self.coverage.merge(&summary.coverage);
        for mark in Mark::all() {
            let seeds = self.seeds.entry(mark).or_default();
            seeds.on += u64::from(enabled.contains(&mark));
            seeds.met += u64::from(summary.coverage.of(mark) > 0);
        }
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
    let marks: Vec<Mark> = marks(args.beyond_limit).collect();
    print_marks(&sum, &marks);
    let shortfall = shortfall(args, &sum, &marks);
    for short in &shortfall {
        say!("short: {short}");
    }
    for seed in &sum.differ {
        say!("seed {seed} did not run to the same end twice: something in it follows from no seed");
    }
    let seconds = began.elapsed().as_secs_f64();
    let violations = sum.violations.len();
    say!(
        "seeds {} first {} ok {} violations {violations} events {} crashes {} elections {} acked {} \
         seconds {seconds:.1} hash {:016x}",
        sum.done,
        args.seed,
        sum.done - violations as u64,
        sum.events,
        sum.crashes,
        sum.elections,
        sum.acked,
        sum.hash
    );
    if violations > 0 {
        ExitCode::from(EXIT_VIOLATION)
    } else if !sum.broken.is_empty() {
        ExitCode::from(EXIT_INTERNAL)
    } else if !shortfall.is_empty() || !sum.differ.is_empty() {
        ExitCode::from(EXIT_ASSERTION)
    } else {
        ExitCode::SUCCESS
    }
}

/// What happened how often, in how many seeds, and how many of them had it switched on.
fn print_marks(sum: &Sum, marks: &[Mark]) {
    say!(
        "\n{:>12} {:>8} {:>8}  what happened",
        "times",
        "met in",
        "on in"
    );
    for mark in marks {
        let seeds = sum.seeds.get(mark).copied().unwrap_or_default();
        let on = match seeds.on {
            0 => "-".to_owned(),
            on => on.to_string(),
        };
        let times = sum.coverage.of(*mark);
        say!("{times:>12} {:>8} {on:>8}  {mark}", seeds.met);
    }
    say!(
        "{:>12} {:>8} {:>8}  keys whose answers the search explained, {} given up",
        sum.explained,
        "",
        "",
        sum.given_up
    );
    say!(
        "{:>12} {:>8} {:>8}  seeds that lost so many nodes that nobody had to go on",
        sum.justified,
        "",
        ""
    );
}

fn run_all(args: &RunArgs, end: u64) -> Sum {
    let next = AtomicU64::new(args.seed);
    let mut sum = Sum::default();
    std::thread::scope(|scope| {
        let (done, results) = mpsc::sync_channel::<(u64, Result<Outcome, String>)>(64);
        for _ in 0..jobs(args.jobs) {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || seed < args.seed {
                        return;
                    }
                    let outcome = catch_unwind(|| outcome_of(seed, args));
                    let outcome = outcome.map_err(|panic| text_of(panic.as_ref()));
                    if done.send((seed, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for (seed, outcome) in results {
            match outcome {
                Ok(outcome) => take_outcome(args, &mut sum, seed, &outcome),
                Err(text) => {
                    let replay = replay_of(seed, args.beyond_limit);
                    say!("\nseed {seed}: the simulator itself failed: {text}\nreplay: {replay}");
                    sum.broken.push(seed);
                }
            }
        }
    });
    sum
}

fn outcome_of(seed: u64, args: &RunArgs) -> Outcome {
    let (plan, steps) = draw::run_of(seed, args.beyond_limit);
    let enabled = enabled(&plan, &steps);
    let ended = run_one(seed, &plan, steps.clone());
    let again = args.twice.then(|| run_one(seed, &plan, steps));
    let same = again.is_none_or(|again| again.summary == ended.summary);
    Outcome {
        ended,
        enabled,
        same,
    }
}

fn take_outcome(args: &RunArgs, sum: &mut Sum, seed: u64, outcome: &Outcome) {
    let Outcome {
        ended,
        enabled,
        same,
    } = outcome;
    sum.add(seed, &ended.summary, enabled);
    if !same {
        sum.differ.push(seed);
    }
    let Some(failed) = &ended.failed else {
        return;
    };
    let replay = replay_of(seed, args.beyond_limit);
    if sum.violations.len() < STORIES_MAX {
        let (plan, _) = draw::run_of(seed, args.beyond_limit);
        print_failure(&format!("seed {seed}"), &plan, ended, &replay);
    } else {
        say!("\nseed {seed}: {failed}\nreplay: {replay}");
    }
    sum.violations.push(seed);
}

fn run_one(seed: u64, plan: &Plan, steps: Vec<Timed>) -> Ended {
    let mut model = KvModel::default();
    Cluster::new(plan, steps, &Source::Drawn(seed), &mut model).run(None)
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
    for (what, [within, beyond], of) in FLOOR {
        let floor = if args.beyond_limit { beyond } else { within };
        let average = of(sum) / args.seeds;
        if average < floor {
            short.push(format!(
                "{average} {what} a seed, at least {floor} are wanted"
            ));
        }
    }
    if sum.given_up * 200 > sum.explained {
        short.push(format!("{} searches of a key were given up", sum.given_up));
    }
    for mark in marks {
        let times = sum.coverage.of(*mark);
        let on = sum.seeds.get(mark).map_or(0, |seeds| seeds.on);
        if times == 0 && RARE.contains(mark) && args.seeds < SEEDS_THAT_COUNT_FOR_RARE {
            continue;
        }
        if times == 0 {
            short.push(format!("no {mark}"));
        } else if times < on {
            short.push(format!(
                "{mark}: {times} times in {on} seeds that had it on"
            ));
        }
    }
    short
}
