//! The whole of what a device can do for a log, measured in a few seconds by whoever asks for it, and kept for later
//! starts: `logdrive wal probe`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::measure::{Flushes, SCRATCH, Writes};
use super::{Measured, Scratch};
use crate::disk::file::SlotHandle;
use crate::disk::lock::{DirectoryLock, LOCK_FILE};
use crate::disk::open::{Backend, Recommends, open_scratch};
use crate::disk::{BLOCK_BYTES, DiskError, FlushMode};

/// The name of the result. A start looks for it beside its slots and in the directory above.
const FILE: &str = "probe.json";

const SCHEMA: &str = "logdrive.wal.probe/1";

/// Where it measures.
const DIRECTORY: &str = "wal-probe.tmp";

/// Blocks of each file that is written to: 16 MiB.
const FILE_BLOCKS: u32 = (16 << 20) / BLOCK_BYTES as u32;

/// A log alone on its device, and three replicas on one.
const WRITERS: [usize; 2] = [1, 3];

/// Blocks of a write, from one to the largest flush group.
const SIZES: [u32; 5] = [1, 4, 16, 64, GROUP_BLOCKS_MAX];

const DEPTHS: [usize; 5] = [1, 2, 4, 8, 16];

/// How many flush groups a log may be told to have in flight. For more large ones, with reads beside them, there are no
/// registered buffers, and those are all the memory that a node is said to need for its disk.
const DEPTH_MIN: usize = 4;
const DEPTH_MAX: usize = 8;

/// Smaller flush groups are not worth a write of their own.
const GROUP_BLOCKS_MIN: u32 = 16;
const GROUP_BLOCKS_MAX: u32 = 256;

/// What was measured, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    schema: String,
    /// Seconds since 1970.
    pub at_s: u64,
    /// `io_uring` or `pwrite`.
    pub backend: String,
    /// Why it is not what was wanted, if so.
    pub fallbacks: Vec<String>,
    /// The kernel's release.
    pub kernel: String,
    /// The device's number, as the system writes it.
    pub device: String,
    /// Whether it can make single writes durable by itself; none: the system does not say.
    pub fua: Option<bool>,
    /// `write back` or `write through`; none: the system does not say.
    pub write_cache: Option<String>,
    /// How long one write at a time takes to be durable.
    pub curve: Vec<CurvePoint>,
    /// How many writes of the chosen size become durable in a second.
    pub depth: Vec<DepthPoint>,
    /// How fast new slots can be made.
    pub zero_fill_bytes_per_s: u64,
    /// What a log here should do.
    pub chosen: Chosen,
}

/// One write at a time, by one or several writers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// How it is made durable.
    pub flush_mode: FlushMode,
    /// How many write at once, each to a file of its own. One of them is timed.
    pub writers: usize,
    /// Bytes of a write.
    pub bytes: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// How many were timed.
    pub count: usize,
}

/// Several writes at a time, by one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepthPoint {
    /// Bytes of a write.
    pub bytes: u64,
    /// How many are under way.
    pub in_flight: usize,
    /// How many became durable in a second.
    pub commits_per_s: u64,
}

/// What a log on this device should do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// How writes are made durable.
    pub flush_mode: FlushMode,
    /// The most data of a flush group.
    pub group_bytes_max: u64,
    /// The most flush groups in flight.
    pub depth_max: usize,
    /// Why, in a sentence.
    pub why: String,
}

/// How large flush groups are, and how many are in flight at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// The most data of a flush group.
    pub group_bytes_max: usize,
    /// The most flush groups in flight.
    pub depth_max: usize,
}

/// Measures the device of a directory in about so much time, keeps the result in it as `probe.json`, and removes all
/// else. Fails if a process has a log there: both would measure each other.
pub fn survey(directory: &Path, backend: Backend, time: Duration) -> Result<Survey, DiskError> {
    let at = std::fs::read_dir(directory).map_err(|e| DiskError::io("list", directory, e))?;
    // A log in it, or logs in directories of it.
    let inner = at.filter_map(|entry| Some(entry.ok()?.path()));
    let mut locks = Vec::new();
    for place in std::iter::once(directory.to_owned()).chain(inner) {
        if place.join(LOCK_FILE).is_file() && !place.ends_with(DIRECTORY) {
            locks.push(DirectoryLock::take(&place, false)?);
        }
    }
    let place = directory.join(DIRECTORY);
    let mut disk = open_scratch(&place, backend, Recommends::Nothing)?;
    disk.lock()?;
    let measured = measure(&mut *disk, directory, &place, time);
    drop(disk);
    let removed = std::fs::remove_dir_all(&place);
    let survey = measured.map_err(|e| DiskError::io("measure in", &place, e))?;
    removed.map_err(|e| DiskError::io("remove", &place, e))?;
    let path = directory.join(FILE);
    let text = serde_json::to_string_pretty(&survey).expect("numbers and strings");
    std::fs::write(&path, text + "\n").map_err(|e| DiskError::io("write", &path, e))?;
    Ok(survey)
}

/// What a survey of this device chose, beside a log or in the directory above.
pub(super) fn known(backend: &str, directory: &Path) -> io::Result<Option<Chosen>> {
    let above = directory.parent().map(Path::to_owned);
    for place in [Some(directory.to_owned()), above].into_iter().flatten() {
        // What is torn, or of another version, is no reason not to start.
        let text = std::fs::read_to_string(place.join(FILE)).ok();
        let survey = text.and_then(|text| serde_json::from_str::<Survey>(&text).ok());
        let Some(survey) = survey.filter(|survey| survey.schema == SCHEMA) else {
            continue;
        };
        let here = (backend, kernel(), device(directory)?);
        if (survey.backend.as_str(), survey.kernel, survey.device) == here {
            return Ok(Some(survey.chosen));
        }
    }
    Ok(None)
}

fn measure(
    disk: &mut dyn Scratch,
    directory: &Path,
    place: &Path,
    time: Duration,
) -> io::Result<Survey> {
    let facts = disk.facts();
    // What a survey that was killed left.
    for left in std::fs::read_dir(place)? {
        let path = left?.path();
        if !path.ends_with(LOCK_FILE) {
            std::fs::remove_file(path)?;
        }
    }
    let began = Instant::now();
    let files = files(place, facts.direct)?;
    let filled = began.elapsed();
    let bytes = u64::from(FILE_BLOCKS) * BLOCK_BYTES as u64 * files.len() as u64;
    let mut files = files.into_iter();
    let own = files.next().expect("one for each writer");
    let others: Vec<SlotHandle> = files.collect();
    disk.lend(SCRATCH, own);
    let measured = measure_with(disk, &others, time);
    disk.forget(SCRATCH);
    let (curve, depth, chosen) = measured?;
    let (fua, write_cache) = queue_of(directory);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(Survey {
        schema: SCHEMA.to_owned(),
        at_s: now.map_err(io::Error::other)?.as_secs(),
        backend: facts.backend.to_owned(),
        fallbacks: facts.fallbacks,
        kernel: kernel(),
        device: device(directory)?,
        fua,
        write_cache,
        curve,
        depth,
        zero_fill_bytes_per_s: per_s(bytes, filled),
        chosen,
    })
}

/// One for each writer, full of zeros.
fn files(place: &Path, direct: bool) -> io::Result<Vec<SlotHandle>> {
    let one = |number: usize| {
        let handle = SlotHandle::create(&place.join(number.to_string()), FILE_BLOCKS, direct)?;
        handle.fill(FILE_BLOCKS)?;
        Ok(handle)
    };
    (0..WRITERS[WRITERS.len() - 1]).map(one).collect()
}

type Points = (Vec<CurvePoint>, Vec<DepthPoint>, Chosen);

/// Two thirds of the time are the curve's.
fn measure_with(
    disk: &mut dyn Scratch,
    others: &[SlotHandle],
    time: Duration,
) -> io::Result<Points> {
    let modes = [FlushMode::Dsync, FlushMode::DrainedFsync];
    let points = u32::try_from(modes.len() * WRITERS.len() * SIZES.len()).expect("a few");
    let turn = time * 2 / 3 / points;
    let mut curve = Vec::new();
    for writers in WRITERS {
        for blocks in SIZES {
            // One after the other: whatever the device does besides, it does to both.
            for mode in modes {
                let writes = Writes {
                    mode,
                    blocks,
                    in_flight: 1,
                    file_blocks: FILE_BLOCKS,
                };
                let others: Vec<&SlotHandle> = others.iter().take(writers - 1).collect();
                let mut samples = Vec::new();
                writes.beside(&others, disk, Instant::now() + turn, &mut samples)?;
                let Flushes {
                    p50_ns,
                    p99_ns,
                    count,
                } = Flushes::of(samples);
                curve.push(CurvePoint {
                    flush_mode: mode,
                    writers,
                    bytes: u64::from(blocks) * BLOCK_BYTES as u64,
                    p50_ns,
                    p99_ns,
                    count,
                });
            }
        }
    }
    let mode = choose_mode(&curve);
    let blocks = choose_blocks(&curve, mode);
    let turn = time / 3 / u32::try_from(DEPTHS.len()).expect("a few");
    let mut depth = Vec::new();
    for in_flight in DEPTHS {
        let writes = Writes {
            mode,
            blocks,
            in_flight,
            file_blocks: FILE_BLOCKS,
        };
        let (began, mut samples) = (Instant::now(), Vec::new());
        writes.measure(disk, began + turn, &mut samples)?;
        depth.push(DepthPoint {
            bytes: u64::from(blocks) * BLOCK_BYTES as u64,
            in_flight,
            commits_per_s: per_s(samples.len() as u64, began.elapsed()),
        });
    }
    let chosen = Chosen::of(&curve, mode, blocks, &depth);
    Ok((curve, depth, chosen))
}

/// Small writes of three writers at once: what a loaded device does to the commits of a quiet log.
fn small_of_three(curve: &[CurvePoint], mode: FlushMode) -> Option<&CurvePoint> {
    curve.iter().find(|point| {
        point.flush_mode == mode
            && point.writers == WRITERS[WRITERS.len() - 1]
            && point.bytes == BLOCK_BYTES as u64
    })
}

fn choose_mode(curve: &[CurvePoint]) -> FlushMode {
    let of = |mode: FlushMode| {
        let point = small_of_three(curve, mode);
        point.map_or(Flushes::of(Vec::new()), |point| Flushes {
            p50_ns: point.p50_ns,
            p99_ns: point.p99_ns,
            count: point.count,
        })
    };
    let measured = Measured {
        dsync: of(FlushMode::Dsync),
        drained: of(FlushMode::DrainedFsync),
    };
    measured.better()
}

/// The smallest size that brings nine tenths of the most bytes a second: a larger group makes its first entry wait and
/// wins nothing.
fn choose_blocks(curve: &[CurvePoint], mode: FlushMode) -> u32 {
    let alone = curve
        .iter()
        .filter(|point| point.flush_mode == mode && point.writers == 1 && point.p50_ns > 0);
    let rate =
        |point: &CurvePoint| u128::from(point.bytes) * 1_000_000_000 / u128::from(point.p50_ns);
    let best = alone.clone().map(rate).max().unwrap_or(0);
    let enough = alone.filter(|point| rate(point) * 10 >= best * 9);
    let blocks = enough.map(|point| point.bytes / BLOCK_BYTES as u64).min();
    let blocks = blocks.and_then(|blocks| u32::try_from(blocks).ok());
    blocks.unwrap_or(GROUP_BLOCKS_MAX).max(GROUP_BLOCKS_MIN)
}

impl Chosen {
    /// Twice the depth that keeps the device busy: while it writes those, as many are built and acknowledged.
    fn of(curve: &[CurvePoint], mode: FlushMode, blocks: u32, depth: &[DepthPoint]) -> Self {
        let best = depth.iter().map(|point| point.commits_per_s).max();
        let best = best.unwrap_or(0);
        let enough = depth
            .iter()
            .find(|point| point.commits_per_s * 20 >= best * 19);
        let busy = enough.map_or(4, |point| point.in_flight);
        let depth_max = (2 * busy).clamp(DEPTH_MIN, DEPTH_MAX);
        let small = |mode: FlushMode| {
            small_of_three(curve, mode).map_or_else(
                || "not measured".to_owned(),
                |point| format!("{} and {} µs", point.p50_ns / 1000, point.p99_ns / 1000),
            )
        };
        let why = format!(
            "4 KiB of three writers at once are durable after {} (p50, p99) with dsync and {} with drained_fsync, and \
             dsync stays unless the other is clearly better; groups of {} KiB bring nine tenths of the most bytes a \
             second, {busy} of them at once keep the device busy",
            small(FlushMode::Dsync),
            small(FlushMode::DrainedFsync),
            u64::from(blocks) * BLOCK_BYTES as u64 / 1024,
        );
        Self {
            flush_mode: mode,
            group_bytes_max: u64::from(blocks) * BLOCK_BYTES as u64,
            depth_max,
            why,
        }
    }

    /// How writes are made durable.
    #[must_use]
    pub fn flush_mode(&self) -> FlushMode {
        self.flush_mode
    }

    /// How large flush groups are. Whatever a file says, it is something that a log can work with.
    pub(super) fn sizing(&self) -> Sizing {
        let least = u64::from(GROUP_BLOCKS_MIN) * BLOCK_BYTES as u64;
        let most = u64::from(GROUP_BLOCKS_MAX) * BLOCK_BYTES as u64;
        let bytes = self.group_bytes_max.clamp(least, most);
        Sizing {
            group_bytes_max: usize::try_from(bytes).expect("at most 1 MiB"),
            depth_max: self.depth_max.clamp(DEPTH_MIN, DEPTH_MAX),
        }
    }
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = self.write_cache.as_deref().unwrap_or("unknown");
        let fua = match self.fua {
            Some(true) => "with FUA",
            Some(false) => "without FUA",
            None => "FUA unknown",
        };
        writeln!(
            f,
            "device {}, write cache {cache}, {fua}, kernel {}, {}",
            self.device, self.kernel, self.backend
        )?;
        for fallback in &self.fallbacks {
            writeln!(f, "note: {fallback}")?;
        }
        writeln!(f, "\none write at a time, durable after (p50, p99)")?;
        for writers in WRITERS {
            for blocks in SIZES {
                let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
                write!(f, "  {writers} writers {:>5} KiB", bytes / 1024)?;
                let here = |point: &&CurvePoint| point.writers == writers && point.bytes == bytes;
                for point in self.curve.iter().filter(here) {
                    write!(
                        f,
                        "   {:<13} {:>7} µs {:>7} µs",
                        point.flush_mode.name(),
                        point.p50_ns / 1000,
                        point.p99_ns / 1000
                    )?;
                }
                writeln!(f)?;
            }
        }
        writeln!(f, "\nwrites at once, durable in a second")?;
        for point in &self.depth {
            writeln!(
                f,
                "  {:>2} of {} KiB {:>8}   {:>6} MB/s",
                point.in_flight,
                point.bytes / 1024,
                point.commits_per_s,
                point.commits_per_s * point.bytes / 1_000_000
            )?;
        }
        writeln!(
            f,
            "zeros for new slots {} MB/s\n",
            self.zero_fill_bytes_per_s / 1_000_000
        )?;
        writeln!(
            f,
            "chosen {}, groups of at most {} KiB, at most {} in flight",
            self.chosen.flush_mode.name(),
            self.chosen.group_bytes_max / 1024,
            self.chosen.depth_max
        )?;
        writeln!(f, "  {}", self.chosen.why)
    }
}

fn per_s(count: u64, took: Duration) -> u64 {
    let per_s = u128::from(count) * 1_000_000_000 / took.as_nanos().max(1);
    u64::try_from(per_s).unwrap_or(u64::MAX)
}

/// The kernel's release.
#[cfg(unix)]
pub(super) fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

#[cfg(not(unix))]
pub(super) fn kernel() -> String {
    std::env::consts::OS.to_owned()
}

/// `major:minor`.
#[cfg(unix)]
pub(super) fn device(directory: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(directory)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Ok(format!("{major}:{minor}"))
}

#[cfg(not(unix))]
pub(super) fn device(directory: &Path) -> io::Result<String> {
    Ok(directory.canonicalize()?.display().to_string())
}

/// What the kernel knows of the device's flushes. A partition has its disk's queue.
fn queue_of(directory: &Path) -> (Option<bool>, Option<String>) {
    let Ok(device) = device(directory) else {
        return (None, None);
    };
    let block = PathBuf::from("/sys/dev/block").join(device);
    let read = |name: &str| {
        let own = std::fs::read_to_string(block.join("queue").join(name));
        let text = own.or_else(|_| std::fs::read_to_string(block.join("../queue").join(name)));
        text.ok().map(|text| text.trim().to_owned())
    };
    (read("fua").map(|fua| fua != "0"), read("write_cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(mode: FlushMode, writers: usize, blocks: u32, p50_us: u64) -> CurvePoint {
        CurvePoint {
            flush_mode: mode,
            writers,
            bytes: u64::from(blocks) * BLOCK_BYTES as u64,
            p50_ns: p50_us * 1000,
            p99_ns: p50_us * 2000,
            count: 100,
        }
    }

    fn depth(in_flight: usize, commits_per_s: u64) -> DepthPoint {
        DepthPoint {
            bytes: 1 << 20,
            in_flight,
            commits_per_s,
        }
    }

    #[test]
    fn groups_are_as_small_as_the_device_makes_nothing_of_larger_ones() {
        let mode = FlushMode::Dsync;
        // A flush costs 100 µs, and bytes 1 GiB/s: only the largest is worth it.
        let fast: Vec<_> = SIZES
            .map(|blocks| point(mode, 1, blocks, 100 + 4 * u64::from(blocks)))
            .into();
        assert_eq!(choose_blocks(&fast, mode), GROUP_BLOCKS_MAX);
        // Bytes at 100 MiB/s and a flush of 200 µs: 256 KiB do.
        let slow: Vec<_> = SIZES
            .map(|blocks| point(mode, 1, blocks, 200 + 40 * u64::from(blocks)))
            .into();
        assert_eq!(choose_blocks(&slow, mode), 64);
        // Nothing was measured, or nonsense.
        assert_eq!(choose_blocks(&[], mode), GROUP_BLOCKS_MAX);
        assert_eq!(
            choose_blocks(&[point(mode, 1, 1, 1)], mode),
            GROUP_BLOCKS_MIN
        );
    }

    #[test]
    fn depth_is_twice_what_keeps_the_device_busy() {
        let of = |points: &[DepthPoint]| Chosen::of(&[], FlushMode::Dsync, 256, points).depth_max;
        let flat = [depth(1, 1000), depth(2, 1010), depth(4, 1000)];
        assert_eq!(of(&flat), 4);
        let rising = [depth(1, 100), depth(2, 200), depth(4, 390), depth(8, 400)];
        assert_eq!(of(&rising), 8);
        let steep = [depth(1, 100), depth(8, 800), depth(16, 1600)];
        assert_eq!(of(&steep), DEPTH_MAX);
    }

    #[test]
    fn the_mode_is_what_three_writers_are_better_off_with() {
        let curve = |dsync, drained| {
            choose_mode(&[
                point(FlushMode::Dsync, 1, 1, 1),
                point(FlushMode::DrainedFsync, 1, 1, 1000),
                point(FlushMode::Dsync, 3, 1, dsync),
                point(FlushMode::DrainedFsync, 3, 1, drained),
            ])
        };
        assert_eq!(curve(146, 127), FlushMode::Dsync);
        assert_eq!(curve(3975, 146), FlushMode::DrainedFsync);
        assert_eq!(choose_mode(&[]), FlushMode::Dsync);
    }

    #[test]
    fn a_survey_is_kept_and_counts_for_its_device_and_nothing_else_is_left() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let log = directory.path().join("log");
        std::fs::create_dir(&log).unwrap();
        // A survey that was killed.
        let left = directory.path().join(DIRECTORY);
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("0"), "left behind").unwrap();
        let time = Duration::from_millis(100);
        let made = survey(directory.path(), Backend::Pwrite, time).unwrap();
        assert_eq!(made.curve.len(), 20);
        assert_eq!(made.depth.len(), 5);
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["log", FILE]);

        for place in [directory.path(), &log] {
            assert_eq!(known("pwrite", place).unwrap(), Some(made.chosen.clone()));
            assert_eq!(known("io_uring", place).unwrap(), None);
        }
        let path = directory.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        let moved = Survey {
            kernel: "another".to_owned(),
            ..made
        };
        std::fs::write(&path, serde_json::to_string(&moved).unwrap()).unwrap();
        assert_eq!(known("pwrite", &log).unwrap(), None);
        for end in 0..text.len() - 2 {
            std::fs::write(&path, &text.as_bytes()[..end]).unwrap();
            assert_eq!(known("pwrite", &log).unwrap(), None);
        }
    }

    #[test]
    fn whoever_has_a_log_is_not_disturbed() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let log = directory.path().join("log");
        let _lock = DirectoryLock::take(&log, true).unwrap();
        let error = survey(directory.path(), Backend::Pwrite, Duration::ZERO).unwrap_err();
        assert!(matches!(error, DiskError::Locked { .. }), "{error}");
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn what_a_file_says_is_kept_within_what_a_log_can_do() {
        let chosen = |group_bytes_max, depth_max| {
            let chosen = Chosen {
                flush_mode: FlushMode::Dsync,
                group_bytes_max,
                depth_max,
                why: String::new(),
            };
            let Sizing {
                group_bytes_max,
                depth_max,
            } = chosen.sizing();
            (group_bytes_max, depth_max)
        };
        assert_eq!(chosen(0, 0), (64 << 10, 4));
        assert_eq!(chosen(u64::MAX, usize::MAX), (1 << 20, 8));
        assert_eq!(chosen(256 << 10, 6), (256 << 10, 6));
    }
}
