//! Many lives of many directories that end at any moment, also while the log is opened.
//!
//! A crash alone is never called rot or suspect: no opening is refused. Nothing that was acknowledged is lost,
//! and no vote that was cast. And with a byte changed on top of the crash, nothing is lost in silence.
//!
//! `SEEDS=20000 cargo test -p logdrive-sim --test recovery` asks for more, `SEED=17` for that one alone.

#![allow(
    clippy::disallowed_methods,
    reason = "seeds run side by side; each stays on one thread"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a test that cannot go on has failed"
)]

mod damage;
mod directory;
mod failed_opening;
mod model;
mod openings;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use directory::{Counts, Directory};
use logdrive_sim::disk::Tear;

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs as many seeds as are asked for, on every core.
fn run(test: &str, seeds: u64, new: impl Fn(u64) -> Directory + Sync) -> Counts {
    let only = asked("SEED");
    let first = only.unwrap_or(0);
    let count = only.map_or_else(|| asked("SEEDS").unwrap_or(seeds), |_| 1);
    println!("{test}: {count} seeds from {first}");
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Counts::default());
    let bad = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let mut directory = new(seed);
                    let lived =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| directory.live()));
                    sum.lock().unwrap().add(directory.counts);
                    let why = match lived {
                        Ok(Ok(())) => continue,
                        Ok(Err(why)) => why,
                        Err(_) => "it panicked".to_owned(),
                    };
                    bad.lock().unwrap().push(format!("seed {seed}: {why}"));
                }
            });
        }
    });
    let (sum, bad) = (sum.into_inner().unwrap(), bad.into_inner().unwrap());
    println!("{test}: {sum:?}, {} bad", bad.len());
    assert!(
        bad.is_empty(),
        "{} of {count} seeds\n{}\nreplay: SEED=n cargo test -p logdrive-sim --test recovery {test}",
        bad.len(),
        bad.iter().take(10).cloned().collect::<Vec<_>>().join("\n")
    );
    sum
}

#[test]
fn crashes_alone_refuse_no_opening_and_lose_nothing() {
    let sum = run("crashes_alone", 600, |seed| Directory::new(seed, false));
    if asked("SEED").is_none() {
        // A run in which nothing happens proves nothing.
        assert!(sum.opened > 5 * sum.lives / 10 && sum.killed_in_opening > sum.lives / 10);
        assert!(sum.torn > sum.lives / 10);
    }
}

/// A disk that writes in order tears blocks, too, and lets a log open all the same.
#[test]
fn blocks_that_are_torn_in_order_refuse_no_opening_and_lose_nothing() {
    let sum = run("torn_in_order", 400, |seed| {
        Directory::new(seed, false).torn(Tear::InOrder)
    });
    if asked("SEED").is_none() {
        assert!(sum.blocks_torn > sum.lives / 10 && sum.suspect == 0);
    }
}

/// Torn in any way, a log may be suspect. It loses nothing in silence.
#[test]
fn blocks_that_are_torn_anyhow_lose_nothing_in_silence() {
    let sum = run("torn_anyhow", 400, |seed| {
        Directory::new(seed, false).torn(Tear::Sectors)
    });
    if asked("SEED").is_none() {
        assert!(sum.blocks_torn > sum.lives / 10 && sum.suspect > 0);
    }
}

/// Openings and lives on a disk that fails, one after the other and with crashes between.
#[test]
fn a_disk_that_fails_refuses_no_later_opening_and_loses_nothing() {
    let sum = run("a_disk_that_fails", 400, |seed| {
        Directory::new(seed, false).failing()
    });
    if asked("SEED").is_none() {
        assert!(sum.failed_openings > sum.lives / 20 && sum.poisoned > sum.lives / 20);
    }
}

#[test]
fn a_disk_that_fails_and_tears_in_order_loses_nothing_either() {
    let sum = run("fails_and_tears", 200, |seed| {
        Directory::new(seed, false).failing().torn(Tear::InOrder)
    });
    if asked("SEED").is_none() {
        assert!(sum.failed_openings > sum.lives / 20 && sum.blocks_torn > 0);
    }
}

#[test]
fn damage_on_top_of_crashes_is_never_silent() {
    let sum = run("damage", 20, |seed| Directory::new(seed, true));
    if asked("SEED").is_none() {
        assert!(sum.damaged > 10 * 20);
        assert!(sum.rot + sum.holed + sum.mended > sum.damaged / 4);
        assert!(sum.rot > 0 && sum.holed > 0 && sum.mended > 0, "{sum:?}");
    }
}
