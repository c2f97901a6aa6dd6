//! Which flush mode suits a medium: both are tried for a moment before the log is open.
//!
//! Rules do not decide this. On one and the same disk durable writes take less time and less work on a quiet
//! machine, and thirty times as long on one whose processors are busy, for the kernel ends them on a
//! worker that has to wait for its turn. So both are measured, in turns, with completions taken as the log
//! takes them and a second writer beside it, as another replica on the same disk would be.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::FlushMode;
use super::file::SlotHandle;

mod measure;
mod survey;

pub(super) use measure::Scratch;
use measure::{Flushes, SCRATCH, Writes};
pub use survey::{Chosen, CurvePoint, DepthPoint, Sizing, Survey, survey};

/// How long a start probes at most, give or take one flush: with that, and with the files made and removed, it stays below
/// 50 ms where a flush takes less than a few.
pub const PROBE_TIME_MAX: Duration = Duration::from_millis(45);

/// The file in which the outcome is kept, and how long it counts.
const RECORD_FILE: &str = "flush-probe";
const RECORD_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The files that are written to, and the number under which the disk knows the first. No log has it.
const SCRATCH_FILES: [&str; 2] = ["flush-probe-1.tmp", "flush-probe-2.tmp"];
const SCRATCH_BLOCKS: u32 = 64;

/// Turns of each mode.
const TURNS: u32 = 3;
/// Fewer say nothing.
const SAMPLES_MIN: usize = 8;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Measured {
    dsync: Flushes,
    drained: Flushes,
}

/// Measures which mode to recommend for logs in this directory, which is locked, or remembers it. What a survey of the
/// device chose counts for more, and says also how large flush groups should be.
pub(super) fn recommend(
    disk: &mut dyn Scratch,
    directory: &Path,
) -> io::Result<(FlushMode, Option<Sizing>)> {
    let backend = disk.facts().backend;
    if let Some(chosen) = survey::known(backend, directory)? {
        return Ok((chosen.flush_mode, Some(chosen.sizing())));
    }
    recommend_mode(disk, directory, backend).map(|mode| (mode, None))
}

fn recommend_mode(
    disk: &mut dyn Scratch,
    directory: &Path,
    backend: &str,
) -> io::Result<FlushMode> {
    let record = directory.join(RECORD_FILE);
    let key = key(backend, directory)?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(io::Error::other)?;
    let known = std::fs::read_to_string(&record).ok();
    if let Some(measured) = known.and_then(|text| Measured::parse(&text, &key, now)) {
        return Ok(measured.better());
    }
    let measured = in_scratch_files(disk, directory)?;
    // Only saves time at the next start; what is torn there is measured again.
    std::fs::write(&record, measured.to_text(&key, now))?;
    Ok(measured.better())
}

/// What an outcome counts for.
fn key(backend: &str, directory: &Path) -> io::Result<String> {
    let (device, kernel) = (survey::device(directory)?, survey::kernel());
    Ok(format!(
        "logdrive flush probe 1\nbackend {backend}\ndevice {device}\nkernel {kernel}\n"
    ))
}

impl Measured {
    /// Durable writes, unless the other mode is clearly better. What the medium alone says is up to a third
    /// too good for drained flushes: in the whole path they cost wake-ups, and the next group waits.
    fn better(&self) -> FlushMode {
        let Self { dsync, drained } = self;
        if dsync.count.min(drained.count) < SAMPLES_MIN {
            return FlushMode::Dsync;
        }
        let faster = drained.p50_ns.saturating_mul(3) < dsync.p50_ns.saturating_mul(2);
        let starves = dsync.p50_ns.saturating_mul(10) < dsync.p99_ns
            && drained.p99_ns.saturating_mul(2) < dsync.p99_ns
            && drained.p50_ns < dsync.p50_ns.saturating_mul(2);
        if faster || starves {
            FlushMode::DrainedFsync
        } else {
            FlushMode::Dsync
        }
    }

    fn to_text(self, key: &str, now: Duration) -> String {
        format!(
            "{key}at_s {}\ndsync {}\ndrained_fsync {}\n",
            now.as_secs(),
            self.dsync.to_text(),
            self.drained.to_text()
        )
    }

    /// `None` if it is not about this or not from the last day.
    fn parse(text: &str, key: &str, now: Duration) -> Option<Self> {
        let mut lines = text.strip_prefix(key)?.lines();
        let at = lines.next()?.strip_prefix("at_s ")?.parse().ok()?;
        let age = now.checked_sub(Duration::from_secs(at))?;
        if RECORD_AGE_MAX < age {
            return None;
        }
        let dsync = Flushes::parse(lines.next()?.strip_prefix("dsync ")?)?;
        let drained = Flushes::parse(lines.next()?.strip_prefix("drained_fsync ")?)?;
        Some(Self { dsync, drained })
    }
}

/// Makes the files, measures, and removes them whatever happened.
fn in_scratch_files(disk: &mut dyn Scratch, directory: &Path) -> io::Result<Measured> {
    let deadline = Instant::now() + PROBE_TIME_MAX;
    let paths = SCRATCH_FILES.map(|name| directory.join(name));
    let remove = || {
        for path in &paths {
            // They are not there, or cannot be removed, which making them again will tell.
            let _ = std::fs::remove_file(path);
        }
    };
    // A process that was killed may have left them.
    remove();
    let direct = disk.facts().direct;
    let make = |path: &Path| {
        let handle = SlotHandle::create(path, SCRATCH_BLOCKS, direct)?;
        handle.fill(SCRATCH_BLOCKS)?;
        Ok(handle)
    };
    let made = make(&paths[0]).and_then(|first| Ok((first, make(&paths[1])?)));
    let measured = made.and_then(|(first, second)| {
        disk.lend(SCRATCH, first);
        let measured = in_turns(disk, &second, deadline);
        disk.forget(SCRATCH);
        measured
    });
    remove();
    measured
}

/// Small writes, as many at once as the log has them, beside another writer, in one mode and in the other.
fn in_turns(
    disk: &mut dyn Scratch,
    second: &SlotHandle,
    deadline: Instant,
) -> io::Result<Measured> {
    let (mut dsync, mut drained) = (Vec::new(), Vec::new());
    for left in (1..=2 * TURNS).rev() {
        let (mode, samples) = if left % 2 == 0 {
            (FlushMode::Dsync, &mut dsync)
        } else {
            (FlushMode::DrainedFsync, &mut drained)
        };
        let writes = Writes {
            mode,
            blocks: 1,
            in_flight: 2,
            file_blocks: SCRATCH_BLOCKS,
        };
        let now = Instant::now();
        let turn = deadline.saturating_duration_since(now) / left;
        writes.beside(&[second], disk, now + turn, samples)?;
    }
    Ok(Measured {
        dsync: Flushes::of(dsync),
        drained: Flushes::of(drained),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::pwrite::PwriteDisk;

    const DAY: Duration = RECORD_AGE_MAX;

    fn flushes(p50_us: u64, p99_us: u64) -> Flushes {
        Flushes {
            p50_ns: p50_us * 1000,
            p99_ns: p99_us * 1000,
            count: 100,
        }
    }

    #[test]
    fn durable_writes_are_the_default_and_yield_to_what_is_clearly_better() {
        let better = |dsync, drained| Measured { dsync, drained }.better();
        let quiet = flushes(146, 300);
        assert_eq!(better(quiet, flushes(127, 300)), FlushMode::Dsync);
        assert_eq!(better(quiet, flushes(97, 300)), FlushMode::DrainedFsync);
        // Behind a busy processor: always, or now and then.
        assert_eq!(better(flushes(3975, 9000), quiet), FlushMode::DrainedFsync);
        assert_eq!(better(flushes(141, 7945), quiet), FlushMode::DrainedFsync);
        // Both suffer.
        assert_eq!(
            better(flushes(141, 7945), flushes(130, 4022)),
            FlushMode::Dsync
        );
        let few = Flushes { count: 3, ..quiet };
        assert_eq!(better(flushes(3975, 9000), few), FlushMode::Dsync);
    }

    #[test]
    fn a_record_counts_for_its_machine_and_for_a_day() {
        let measured = Measured {
            dsync: flushes(1, 2),
            drained: flushes(3, 4),
        };
        let text = measured.to_text("key\n", DAY);
        assert_eq!(Measured::parse(&text, "key\n", DAY), Some(measured));
        assert_eq!(Measured::parse(&text, "key\n", DAY * 2), Some(measured));
        let later = DAY * 2 + Duration::from_secs(1);
        assert_eq!(Measured::parse(&text, "key\n", later), None);
        assert_eq!(Measured::parse(&text, "other\n", DAY), None);
        // The clock was set back.
        assert_eq!(Measured::parse(&text, "key\n", Duration::ZERO), None);
        // The newline at the end is no part of a number.
        for end in 0..text.len() - 1 {
            let cut = Measured::parse(&text[..end], "key\n", DAY);
            assert!(cut.is_none_or(|cut| cut.dsync == measured.dsync), "{end}");
        }
    }

    #[test]
    fn probing_leaves_a_record_and_nothing_else_and_is_not_repeated() {
        let directory = tempfile::tempdir_in(".").unwrap();
        std::fs::write(directory.path().join(SCRATCH_FILES[0]), "left behind").unwrap();
        let mut disk = PwriteDisk::new(directory.path());
        disk.lock().unwrap();
        let first = recommend(&mut disk, directory.path()).unwrap();
        let record = directory.path().join(RECORD_FILE);
        let text = std::fs::read_to_string(&record).unwrap();
        assert!(text.contains("backend pwrite\n"), "{text}");
        let names = std::fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = names.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["LOCK", RECORD_FILE]);

        assert_eq!(recommend(&mut disk, directory.path()).unwrap(), first);
        assert_eq!(std::fs::read_to_string(&record).unwrap(), text);
        std::fs::write(&record, &text[..text.len() / 2]).unwrap();
        recommend(&mut disk, directory.path()).unwrap();
        assert_ne!(
            std::fs::read_to_string(&record).unwrap(),
            text[..text.len() / 2]
        );
        drop(disk);
        let mut disk = PwriteDisk::new(directory.path());
        disk.lock().unwrap();
        assert_eq!(disk.slots().unwrap(), []);
    }
}
