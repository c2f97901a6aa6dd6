//! Crash images of the log, and damaged ones.

use std::process::ExitCode;
use std::time::Instant;

use logdrive_sim::images::{ImagesOptions, run};

use crate::say::say;
use crate::{EXIT_VIOLATION, ImagesArgs, VERSION, jobs};

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
        "images {} damaged {} recoveries {} violations {} seconds {:.1}",
        report.images,
        report.damage.images,
        report.recoveries,
        violations.len(),
        began.elapsed().as_secs_f64()
    );
    if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_VIOLATION)
    }
}
