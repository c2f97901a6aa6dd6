//! What this machine is: processors, kernel, file systems, room on them.
//!
//! What a platform does not tell is unknown, never an error.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a directory lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// The kind of file system.
    pub fs: Option<String>,
    /// What it is mounted from.
    pub device: Option<String>,
}

impl Storage {
    /// Where a directory lies, as far as /proc tells.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        Self::in_mounts(&mounts, &dir)
    }

    fn in_mounts(mounts: &str, dir: &Path) -> Self {
        let mut found = Self::default();
        let mut longest = 0;
        for line in mounts.lines() {
            // 36 35 98:0 /root /mount/point options - type device superblock-options
            let Some((front, back)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = front.split(' ').nth(4).map(unescape) else {
                continue;
            };
            let mut back = back.split(' ');
            let (fs, device) = (back.next(), back.next());
            // Of two mounts on one point the later one is on top.
            if dir.starts_with(&point) && point.len() >= longest {
                longest = point.len();
                found = Self {
                    fs: fs.map(unescape),
                    device: device.map(unescape),
                };
            }
        }
        found
    }

    /// Whether what lies there is gone when the machine is.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        matches!(self.fs.as_deref(), Some("tmpfs" | "ramfs" | "rootfs"))
    }
}

/// Octal escapes, as in `/a\040path`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..3).unwrap_or_default();
        match u8::from_str_radix(digits, 8) {
            Ok(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            Err(_) => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// Processors that this process may use.
#[must_use]
pub fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}

/// The kernel and its version.
#[must_use]
pub fn kernel() -> Option<String> {
    let read = |name| fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok();
    let (name, release) = (read("ostype")?, read("osrelease")?);
    Some(format!("{} {}", name.trim(), release.trim()))
}

/// Bytes that an unprivileged user can still write there.
#[must_use]
pub fn free_bytes(dir: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let vfs = rustix::fs::statvfs(dir).ok()?;
        Some(vfs.f_bavail.saturating_mul(vfs.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        None
    }
}

/// Nanoseconds of processor time, user and system, that a process has used; `None` once it is gone.
#[must_use]
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    cpu_of(&PathBuf::from(format!("/proc/{pid}/stat")))
}

/// As [`process_cpu_ns`], for the calling thread alone.
#[must_use]
pub fn thread_cpu_ns() -> Option<u64> {
    // The scheduler's own count is exact; `stat` counts in hundredths of a second.
    let exact = fs::read_to_string("/proc/thread-self/schedstat").ok();
    exact
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .or_else(|| cpu_of(Path::new("/proc/thread-self/stat")))
}

/// As [`process_cpu_ns`], for the threads of this process whose names `counts`.
#[must_use]
pub fn threads_cpu_ns(counts: impl Fn(&str) -> bool) -> Option<u64> {
    let mut sum = 0;
    for thread in fs::read_dir("/proc/self/task").ok()?.flatten() {
        // One that ends meanwhile does not count.
        let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        if counts(name.trim_end()) {
            let exact = fs::read_to_string(thread.path().join("schedstat")).ok();
            let exact = exact.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
            sum += exact
                .or_else(|| cpu_of(&thread.path().join("stat")))
                .unwrap_or(0);
        }
    }
    Some(sum)
}

/// The most bytes of a process that were resident at once; `None` once it is gone.
#[must_use]
pub fn process_rss_peak_bytes(pid: u32) -> Option<u64> {
    rss_peak_in(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn rss_peak_in(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn cpu_of(stat: &Path) -> Option<u64> {
    cpu_in(&fs::read_to_string(stat).ok()?)
}

fn cpu_in(stat: &str) -> Option<u64> {
    // The name of the program may hold spaces and parentheses: count from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) * (1_000_000_000 / TICKS_PER_S))
}

/// What Linux counts processor time in, on every platform it shows `stat` on.
const TICKS_PER_S: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_and_last_mount_counts() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/vda rw\n\
            30 22 0:5 / /tmp rw - tmpfs tmpfs rw\n\
            31 22 0:6 / /with\\040space rw shared:1 - xfs /dev/sdb rw\n\
            32 31 0:7 / /with\\040space rw - btrfs /dev/sdc rw\n";
        let of = |dir: &str| {
            let storage = Storage::in_mounts(mounts, Path::new(dir));
            (storage.fs.clone().unwrap_or_default(), storage.is_memory())
        };
        assert_eq!(of("/home/me"), ("ext4".to_owned(), false));
        assert_eq!(of("/tmp/x"), ("tmpfs".to_owned(), true));
        assert_eq!(of("/tmpdir"), ("ext4".to_owned(), false));
        assert_eq!(of("/with space/x"), ("btrfs".to_owned(), false));
        assert_eq!(Storage::in_mounts("", Path::new("/x")), Storage::default());
    }

    #[test]
    fn processor_time_is_found_behind_any_program_name() {
        let stat = "77 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0";
        assert_eq!(cpu_in(stat), Some(2_000_000_000));
        assert_eq!(cpu_in("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_told_in_bytes() {
        let status = "Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(rss_peak_in(status), Some(2 << 20));
        assert_eq!(rss_peak_in("VmHWM: much"), None);
    }
}
