//! Random clusters: a seed is a run. Three or five cores over model disks and a network that loses,
//! delays, doubles and reorders; crashes that lose what was not flushed. First anything may fail and
//! Raft's properties (Raft figure 3) must hold; then everything heals and the cluster must converge.
//!
//! `CLUSTER_SEED=n CLUSTER_SEEDS=1 cargo test -p logdrive-raft --test cluster` replays one.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod disk;
mod oracle;
mod world;

use world::{Options, World};

fn run(first: u64, count: u64, options: impl Fn(u64) -> Options) {
    let number = |name: &str, otherwise: u64| {
        let value = std::env::var(name).ok();
        value.map_or(otherwise, |value| value.parse().expect("a number"))
    };
    let first = number("CLUSTER_SEED", first);
    let count = number("CLUSTER_SEEDS", count);
    let mut totals = world::Totals::default();
    for seed in first..first + count {
        let options = options(seed);
        let _replay = Replay(seed, options.clone());
        let mut world = World::new(seed, options);
        world.run();
        totals.add(&world.totals());
    }
    println!("{count} seeds from {first}: {totals:?}");
    assert!(count < 100 || totals.committed > count);
}

/// Says how to see a failure again.
struct Replay(u64, Options);

impl Drop for Replay {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("seed {} {:?}", self.0, self.1);
        eprintln!(
            "CLUSTER_SEED={} CLUSTER_SEEDS=1 cargo test -p logdrive-raft --test cluster",
            self.0
        );
    }
}

#[test]
fn three_replicas_of_one_group_stay_safe_and_converge() {
    run(1, 1500, |seed| Options {
        replicas: 3,
        groups: 1,
        crashes: seed % 4 != 0,
        resets: seed % 2 == 0,
    });
}

#[test]
fn five_replicas_of_one_group_stay_safe_and_converge() {
    run(100_000, 700, |seed| Options {
        replicas: 5,
        groups: 1,
        crashes: seed % 4 != 0,
        resets: seed % 2 == 0,
    });
}

#[test]
fn eight_groups_share_the_disks_and_stay_safe_and_converge() {
    run(200_000, 100, |seed| Options {
        replicas: 3,
        groups: 8,
        crashes: seed % 2 == 0,
        resets: seed % 3 == 0,
    });
}
