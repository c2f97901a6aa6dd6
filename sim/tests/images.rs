//! Images of crashes, recovered and checked; and that the check sees what it is to see.
//!
//! `IMAGES=300000 cargo test --release -p logdrive-sim --test images` asks for more, `SEED=5` for others,
//! `HISTORY=38` for one history alone.
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use logdrive_sim::images::{FLOOR_IMAGES, ImagesOptions, Lie, run};

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
    let report = run(&options(FLOOR_IMAGES));
    println!("{report:#?}");
    let violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    if asked("HISTORY").is_none() {
        let never = report.never();
        assert!(never.is_empty(), "never: {never:?}");
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
            ..options(20_000)
        });
        assert!(!report.violations.is_empty(), "{lie:?}");
        let first = report.violations.first().expect("there are some");
        println!("{lie:?}: {} violations, {first}", report.violations.len());
    }
}
