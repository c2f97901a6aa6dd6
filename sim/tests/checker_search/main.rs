//! The search against a second opinion on small histories, and against its own limits on large ones.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod execution;
mod opinion;

use fastrand::Rng;
use logdrive_sim::check::{
    Limits, Rule, Verdict, check_phantoms, check_search, check_witness, search_key,
};

use self::execution::{Execution, GROUP, Moment, Shape};

/// Of one key, with operations that nobody was told about.
fn small(random: &mut Rng) -> Shape {
    Shape {
        operations: random.usize(1..=16),
        clients: random.usize(1..=4),
        keys: 1,
        // In every third history appends meet the limit of a value.
        value_bytes_max: *random.choice(&[50, 1 << 20, 1 << 20]).unwrap(),
        unknown_per_mille: *random.choice(&[0, 100, 300]).unwrap(),
        unknown_max: 3,
        empty_in_8: *random.choice(&[0, 1, 3]).unwrap(),
    }
}

#[test]
fn small_histories_have_the_verdict_of_the_second_opinion() {
    let mut bad = 0;
    let mut prefixes = 0;
    for seed in 0..20_000 {
        let mut random = Rng::with_seed(seed);
        let shape = small(&mut random);
        let mut execution = Execution::draw(&mut random, shape);
        let spoils = random.usize(..8);
        for _ in 0..spoils {
            execution.spoil(&mut random);
        }
        let (history, logs, ids) = execution.history();
        let verdict = search_key(&history, GROUP, 0, &Limits::default());
        let opinion = opinion::is_linearizable(&execution, execution.moments.len());
        let context = || format!("seed {seed}: {verdict:?}\n{execution:#?}");
        match &verdict {
            Verdict::Linearizable => assert!(opinion, "{}", context()),
            Verdict::GaveUp(_) => panic!("{}", context()),
            Verdict::NotLinearizable(violation) => {
                assert!(!opinion, "{}", context());
                bad += 1;
                // The answer that it names is the first that makes the difference.
                let last = *violation.operations.last().unwrap();
                let last = ids.iter().position(|id| *id == last).unwrap();
                let end = Moment::End(last);
                let moments = execution.moments.iter();
                let end = moments.clone().position(|moment| *moment == end).unwrap();
                if opinion::open_writes(&execution, end).len() <= 5 {
                    prefixes += 1;
                    assert!(opinion::is_linearizable(&execution, end), "{}", context());
                    assert!(
                        !opinion::is_linearizable(&execution, end + 1),
                        "{}",
                        context()
                    );
                }
            }
        }
        let witness = check_witness(&history, &logs).and_then(|()| check_phantoms(&history));
        if spoils == 0 {
            assert_eq!(witness, Ok(()), "{}", context());
            assert_eq!(verdict, Verdict::Linearizable, "{}", context());
        }
        // An order that the log gives is one that the search must find.
        if witness.is_ok() {
            assert_eq!(verdict, Verdict::Linearizable, "{}", context());
        }
    }
    assert!(2_500 <= bad, "{bad} of 20000 are bad");
    assert!(2_500 <= prefixes, "{prefixes} beginnings were compared");
}

fn large(random: &mut Rng) -> Shape {
    Shape {
        operations: 2_000,
        clients: *random.choice(&[4, 16, 32]).unwrap(),
        keys: *random.choice(&[1, 4]).unwrap(),
        value_bytes_max: 1 << 20,
        unknown_per_mille: *random.choice(&[0, 20, 100]).unwrap(),
        unknown_max: usize::MAX,
        empty_in_8: *random.choice(&[0, 1]).unwrap(),
    }
}

#[test]
fn large_histories_are_explained_and_never_given_up_on() {
    for seed in 0..100 {
        let mut random = Rng::with_seed(seed);
        let shape = large(&mut random);
        let execution = Execution::draw(&mut random, shape);
        let (history, logs, _) = execution.history();
        assert_eq!(check_phantoms(&history), Ok(()), "seed {seed}: {shape:?}");
        assert_eq!(
            check_witness(&history, &logs),
            Ok(()),
            "seed {seed}: {shape:?}"
        );
        let searched = check_search(&history, &Limits::default());
        assert!(searched.is_ok(), "seed {seed}: {shape:?}: {searched:?}");
    }
}

/// Here no order exists, and to know that the search has to try them all. It may give up on a few: two in a
/// hundred are given up on of what is far worse than a run of the simulator.
#[test]
fn large_histories_that_are_spoilt_get_a_verdict() {
    let (mut bad, mut gave_up) = (0, 0);
    for seed in 0..200 {
        let mut random = Rng::with_seed(seed);
        let shape = large(&mut random);
        let mut execution = Execution::draw(&mut random, shape);
        for _ in 0..2 {
            execution.spoil(&mut random);
        }
        let (history, _, _) = execution.history();
        match check_search(&history, &Limits::default()).map_err(|violation| violation.rule) {
            Ok(_) => {}
            Err(Rule::Searched) => gave_up += 1,
            Err(rule) => {
                assert_eq!(rule, Rule::Linearizable, "seed {seed}: {shape:?}");
                bad += 1;
            }
        }
    }
    assert!(25 <= bad, "{bad} of 200 are bad");
    assert!(gave_up <= 4, "{gave_up} of 200 were given up on");
}

/// Nobody knows what became of most writes, and only some of them are ever seen.
#[test]
fn a_key_whose_writes_are_mostly_unknown_is_explained() {
    for seed in 0..50 {
        let mut random = Rng::with_seed(seed);
        let shape = Shape {
            operations: 400,
            clients: 16,
            keys: 1,
            value_bytes_max: 1 << 20,
            unknown_per_mille: 600,
            unknown_max: usize::MAX,
            empty_in_8: 0,
        };
        let execution = Execution::draw(&mut random, shape);
        let (history, logs, _) = execution.history();
        assert_eq!(check_witness(&history, &logs), Ok(()), "seed {seed}");
        let searched = check_search(&history, &Limits::default());
        assert!(searched.is_ok(), "seed {seed}: {searched:?}");
    }
}

#[test]
fn a_search_beyond_its_limits_says_so() {
    let mut random = Rng::with_seed(1);
    let shape = Shape {
        operations: 100,
        clients: 8,
        keys: 1,
        value_bytes_max: 1 << 20,
        unknown_per_mille: 0,
        unknown_max: 0,
        empty_in_8: 0,
    };
    let (history, _, _) = Execution::draw(&mut random, shape).history();
    let limits = [
        (
            "more than 50 operations",
            Limits {
                operations_max: 50,
                ..Limits::default()
            },
        ),
        (
            "more than 3 open at once",
            Limits {
                open_max: 3,
                ..Limits::default()
            },
        ),
        (
            "no end after 20 steps",
            Limits {
                steps_max: 20,
                ..Limits::default()
            },
        ),
    ];
    for (why, limits) in limits {
        let violation = check_search(&history, &limits).unwrap_err();
        assert_eq!(violation.rule, Rule::Searched);
        let text = format!("search gave up: group 1: key 0: {why}");
        assert_eq!(violation.to_string(), text);
    }
}
