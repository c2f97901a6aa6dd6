//! Crash images of the log, and damaged ones.

use std::process::ExitCode;
use std::time::Instant;

use logdrive_sim::images::{FLOOR_IMAGES, ImagesOptions, run};

use crate::say::say;
use crate::{EXIT_ASSERTION, EXIT_VIOLATION, ImagesArgs, VERSION, jobs};

pub(crate) fn images(args: &ImagesArgs) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let mut report = run(&ImagesOptions {
        images: args.images,
        jobs: jobs(args.jobs),
        seed: args.seed,
        history: args.history,
        ..ImagesOptions::default()
    });
    let violations = std::mem::take(&mut report.violations);
    say!("{report:#?}");
    for violation in &violations {
        say!("{violation}");
    }
    if !violations.is_empty() {
        say!("build: logdrive-sim {VERSION}");
        say!(
            "replay: logdrive-sim images --seed {} --history NUMBER",
            args.seed
        );
    }
    say!(
        "every subset at {} moments of lives, many at {}; {} of {} recoveries entered, every subset at {} of \
         their moments, many at {}",
        report.moments_exhausted,
        report.moments_sampled,
        report.recoveries_entered,
        report.recoveries,
        report.nested_moments_exhausted,
        report.nested_moments_sampled
    );
    say!(
        "images {} damaged {} recoveries {} violations {} seconds {:.1}",
        report.images,
        report.damage.images,
        report.recoveries,
        violations.len(),
        began.elapsed().as_secs_f64()
    );
    if !violations.is_empty() {
        return ExitCode::from(EXIT_VIOLATION);
    }
    let is_full_size = args.history.is_none() && args.images >= FLOOR_IMAGES;
    let never = report.never();
    if is_full_size && !never.is_empty() {
        say!("never happened: {}", never.join(", "));
        return ExitCode::from(EXIT_ASSERTION);
    }
    ExitCode::SUCCESS
}
