//! Whether a run fits on the disk, and how large each log may become.

use std::path::Path;

use super::RunError;
use crate::args::{RunArgs, TargetSpec, Usage};
use crate::machine;
use crate::units::show_bytes;

/// Refuses a run that would not fit, and says how large each log may become.
pub(super) fn check_room(
    args: &RunArgs,
    target: &TargetSpec,
    dir: Option<&Path>,
) -> Result<u64, RunError> {
    let (TargetSpec::Spawn(replicas) | TargetSpec::Inproc(replicas), Some(dir)) = (target, dir)
    else {
        return Ok(WAL_BYTES_MAX);
    };
    let Some(free) = machine::free_bytes(dir) else {
        return Ok(WAL_BYTES_MAX);
    };
    let replicas = *replicas as u64;
    let each = expected_log_bytes(args) + SPARE_BYTES;
    let needed = each.saturating_mul(replicas);
    if needed > free {
        return Err(Usage(format!(
            "{replicas} logs of up to {} need {}, and {} has {} free: shorten --duration, lower \
             --rate or name another --dir",
            show_bytes(each),
            show_bytes(needed),
            dir.display(),
            show_bytes(free)
        ))
        .into());
    }
    // What a closed loop will write is not known: its logs may share what is free, with some left over.
    let share = (free / 10 * 9) / replicas;
    Ok(WAL_BYTES_MAX.min(share.max(each)))
}

/// What one log holds at the end of an open loop; of a closed loop nothing is known.
fn expected_log_bytes(args: &RunArgs) -> u64 {
    if args.closed {
        return 0;
    }
    let seconds = (args.warmup + args.duration).as_secs_f64();
    (args.rate * seconds * (args.size as f64 + COMMAND_OVERHEAD_BYTES)) as u64
}

/// The most bytes of a log, as long as the disk has room.
const WAL_BYTES_MAX: u64 = 8 << 30;

/// What a log keeps ready beyond what it holds: segments of 64 MiB.
const SPARE_BYTES: u64 = 4 * (64 << 20);

/// What a write takes in the log beside its value: command, key, table, its share of headers and padding.
const COMMAND_OVERHEAD_BYTES: f64 = 64.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};
    use crate::exit::Exit;

    fn args(text: &str) -> RunArgs {
        let argv = format!("loadgen run {text}");
        match parse(argv.split_whitespace().map(str::to_owned))
            .unwrap()
            .command
        {
            Command::Run(args) => *args,
            Command::Replica(_) => panic!("not a run"),
        }
    }

    #[test]
    fn a_run_that_would_not_fit_is_refused_with_the_figure() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            let args = args(text);
            let target = args.target().unwrap();
            check_room(&args, &target, Some(dir.path()))
        };
        let error = check("--rate 100M --size 1MB --duration 1h").unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        let text = error.to_string();
        assert!(text.contains("GiB") && text.contains("free"), "{text}");
    }

    #[test]
    fn the_default_run_needs_no_more_than_four_gibibytes() {
        let each = expected_log_bytes(&args("")) + SPARE_BYTES;
        assert!(3 * each <= 4 << 30, "{}", show_bytes(3 * each));
    }
}
