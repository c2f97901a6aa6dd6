//! Seeds of whole clusters. `logdrive-sim run` runs many; these few show that a run is what it should be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use logdrive_sim::cluster::{Cluster, Ended, Source};
use logdrive_sim::draw;
use logdrive_sim::kv::KvModel;
use logdrive_sim::script::Script;

fn run(seed: u64, beyond_limit: bool, source: &Source) -> Ended {
    let (plan, steps) = draw::run_of(seed, beyond_limit);
    let mut model = KvModel::default();
    Cluster::new(&plan, steps, source, &mut model).run(None)
}

#[test]
fn seeds_break_no_promise() {
    for seed in 1..=40 {
        let ended = run(seed, false, &Source::Drawn(seed));
        assert_eq!(
            ended.failed, None,
            "replay: logdrive-sim replay --seed {seed}"
        );
        assert!(ended.summary.acked > 0);
    }
}

#[test]
fn a_seed_runs_twice_to_the_same_end() {
    for seed in 100..108 {
        let once = run(seed, false, &Source::Drawn(seed));
        let again = run(seed, false, &Source::Drawn(seed));
        assert_eq!(once.summary, again.summary);
    }
}

#[test]
fn what_was_recorded_plays_again_without_being_drawn() {
    for seed in 100..108 {
        let recorded = run(seed, false, &Source::Recorded(seed));
        assert!(!recorded.choices.is_empty());
        let played = run(seed, false, &Source::Played(recorded.choices));
        assert_eq!(recorded.summary, played.summary);
    }
}

#[test]
fn beyond_the_limit_nobody_breaks_what_it_owes_by_itself() {
    for seed in 1..=20 {
        let ended = run(seed, true, &Source::Drawn(seed));
        assert_eq!(
            ended.failed, None,
            "replay: logdrive-sim replay --seed {seed} --beyond-limit"
        );
    }
}

/// The oracle looks at the medium and not at what the log says about it.
#[test]
fn disks_that_lie_within_the_limit_are_found_out() {
    let found = (1..=20).filter(|seed| {
        let (plan, steps) = draw::canary_of(*seed);
        let mut model = KvModel::default();
        let cluster = Cluster::new(&plan, steps, &Source::Drawn(*seed), &mut model);
        cluster.run(None).failed.is_some()
    });
    let found = found.count();
    assert!(found >= 15, "{found} of 20");
}

/// Every script in `regressions/` reaches what it names, and breaks nothing any more.
#[test]
fn what_failed_once_does_not_fail_again() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions");
    let mut played = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let script = Script::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert!(!script.reaches.is_empty(), "{}", path.display());
        let again = script.play(&mut KvModel::default(), None, None, &mut |_, _| {});
        let name = path.display();
        assert_eq!(again.ended.failed, None, "{name}: {}", script.cause);
        assert_eq!(again.missed, None, "{name}: {}", script.cause);
        played += 1;
    }
    assert!(played > 0);
}
