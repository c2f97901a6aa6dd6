//! Images of crashes, recovered and checked; and that the check sees what it is to see.
//!
//! `IMAGES=300000 cargo test --release -p logdrive-sim --test images` asks for more, `SEED=5` for others,
//! `HISTORY=38` for one history alone.
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use logdrive_sim::images::{ImagesOptions, ImagesReport, Lie, run};

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn options(images: u64) -> ImagesOptions {
    ImagesOptions {
        images: asked("IMAGES").unwrap_or(images),
        seed: asked("SEED").unwrap_or(0),
        history: asked("HISTORY"),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        ..ImagesOptions::default()
    }
}

#[test]
fn no_image_of_a_crash_and_none_with_a_damaged_block_comes_back_wrong() {
    let report = run(&options(12_000));
    println!("{report:#?}");
    let violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    if asked("HISTORY").is_none() {
        check_counts(&report);
    }
}

/// A class that did not come up was not checked.
fn check_counts(report: &ImagesReport) {
    let (acts, damage) = (&report.acts, &report.damage);
    let counts = [
        ("torn", report.torn),
        ("process_crashes", report.process_crashes),
        ("forgotten", report.forgotten),
        ("nested", report.nested),
        ("nested_twice", report.nested_twice),
        ("failed_openings", report.failed_openings),
        ("suspect", report.suspect),
        ("appends", acts.appends),
        ("votes", acts.votes),
        ("truncations", acts.truncations),
        ("conflicts", acts.conflicts),
        ("older_term_conflicts", acts.older_term_conflicts),
        ("rolls", acts.rolls),
        ("poisoned", acts.poisoned),
        ("closed", acts.closed),
        ("crashed", acts.crashed),
        ("moved", acts.moved),
        ("dsync", acts.dsync),
        ("drained", acts.drained),
        ("direct", acts.direct),
        ("buffered", acts.buffered),
        ("closed whole", damage.closed),
        ("unclean", damage.unclean),
        ("rot_deserved", damage.rot_deserved),
        ("refused_deserved", damage.refused_deserved),
        ("healed_deserved", damage.healed_deserved),
        ("undetectable", damage.undetectable),
    ];
    for (name, count) in counts {
        assert!(count > 0, "no {name}");
    }
}

#[test]
fn what_comes_out_does_not_depend_on_the_number_of_threads() {
    let one = run(&ImagesOptions {
        jobs: 1,
        ..options(2_000)
    });
    let two = run(&ImagesOptions {
        jobs: 2,
        ..options(2_000)
    });
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}

/// A disk that says that it has flushed, and has not, loses what was acknowledged: that has to be seen.
#[test]
fn a_disk_that_lies_about_flushes_is_seen() {
    for lie in [Lie::Flushes { one_in: 5 }, Lie::SyncAll] {
        let report = run(&ImagesOptions {
            lie: Some(lie),
            ..options(3_000)
        });
        assert!(!report.violations.is_empty(), "{lie:?}");
        let first = report.violations.first().expect("there are some");
        println!("{lie:?}: {} violations, {first}", report.violations.len());
    }
}
