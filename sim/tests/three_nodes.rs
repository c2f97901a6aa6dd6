//! Three nodes in one thread, on disks that lose what was not flushed and over a network that is a list.
//!
//! `SEEDS=20000 cargo test -p logdrive-sim --test three_nodes` asks for more, `SEED=17 GROUPS=8` for that run
//! alone.

#![allow(
    clippy::disallowed_methods,
    reason = "seeds run side by side; each stays on one thread"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use logdrive_sim::cluster::{Cluster, Plan, Summary};

fn plan(seed: u64, groups: u64) -> Plan {
    Plan {
        seed,
        nodes: 3,
        groups,
        faulty_us: 1_500_000,
        healthy_us: 1_500_000,
    }
}

fn run(seed: u64, groups: u64) -> Summary {
    Cluster::new(plan(seed, groups)).run()
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What was drawn, and how to see a failure again.
fn replay(seed: u64, groups: u64) -> String {
    let plan = plan(seed, groups);
    let options = Cluster::new(plan.clone()).options();
    format!(
        "{plan:?}\n{options}\nreplay: SEED={seed} GROUPS={groups} cargo test -p logdrive-sim \
         --test three_nodes a_thousand_seeds"
    )
}

fn seeds(first: u64, count: u64, groups: u64) -> Summary {
    println!("{count} seeds from {first}, {groups} groups");
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let next = std::sync::atomic::AtomicU64::new(first);
    let sum = std::sync::Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let result = std::panic::catch_unwind(|| run(seed, groups));
                    let Ok(one) = result else {
                        panic!("seed {seed}: {}", replay(seed, groups));
                    };
                    let mut sum = sum.lock().unwrap();
                    sum.events += one.events;
                    sum.crashes += one.crashes;
                    sum.elections += one.elections;
                    sum.acks += one.acks;
                    sum.never_appended += one.never_appended;
                    sum.lost += one.lost;
                    sum.lane_full += one.lane_full;
                    sum.lane_room += one.lane_room;
                    sum.crashes_in_other_mode += one.crashes_in_other_mode;
                    sum.crashes_back_in_mode += one.crashes_back_in_mode;
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{count} seeds from {first}, {groups} groups: {sum:?}");
    sum
}

#[test]
fn a_thousand_seeds_lose_nothing_that_was_acknowledged() {
    if let Some(seed) = asked("SEED") {
        seeds(seed, 1, asked("GROUPS").unwrap_or(1));
        return;
    }
    let sum = seeds(1, asked("SEEDS").unwrap_or(920), 1);
    let groups = seeds(10_001, 80, 8);
    // A run in which nothing happens proves nothing.
    assert!(sum.acks + groups.acks > 100 * 1000);
    assert!(sum.never_appended + groups.never_appended > 10 * 1000);
    assert!(sum.crashes + groups.crashes > 2 * 1000);
    assert!(sum.elections + groups.elections > 2 * 1000);
    assert!(sum.lane_full + groups.lane_full > 10 * 1000);
    assert!(sum.lane_room + groups.lane_room > 10 * 1000);
    assert!(sum.crashes_in_other_mode + groups.crashes_in_other_mode > 100);
    assert!(sum.crashes_back_in_mode + groups.crashes_back_in_mode > 100);
}

#[test]
fn a_failing_seed_says_what_was_drawn_and_how_to_run_it_alone() {
    let said = replay(17, 8);
    let expected =
        "SEED=17 GROUPS=8 cargo test -p logdrive-sim --test three_nodes a_thousand_seeds";
    assert!(said.ends_with(expected), "{said}");
    for part in [
        "seed: 17",
        "groups: 8",
        "slot_bytes",
        "direct",
        "flush_mode",
        "no_space_ppm",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_seed_replays_to_the_same_end() {
    for seed in 1..4 {
        assert_eq!(run(seed, 2), run(seed, 2));
    }
}
