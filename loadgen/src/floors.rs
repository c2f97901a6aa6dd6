//! What this machine can do at best, measured just before the run: no system on it answers faster.
//!
//! Nothing else of ours runs meanwhile, not even the replicas: what is measured is the machine at rest.
//! A few hundred samples each, less than two seconds in all. Figures of a shared machine drift: they are to
//! be compared with the run they stand beside, not with others.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use logdrive_net::echo::{self, Echo};
use logdrive_net::{Credentials, Role, TransportSettings};
use logdrive_raft::NodeId;
use serde::Serialize;

use crate::cluster::node;

/// The floors, each `None` if it could not be measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Floors {
    /// A message of 128 bytes over QUIC to another thread of this machine and back: the same TLS, packets
    /// and settings as between a client and a replica.
    pub rtt: Option<u64>,
    /// A durable write of 4 KiB while two others do the same.
    pub flush_p50: Option<u64>,
    /// A durable write of 4 KiB, alone.
    pub flush1_p50: Option<u64>,
    /// Waking a thread on an idle processor.
    pub wake: Option<u64>,
}

/// Measures the floors, and the bytes a second that each of three raw writers makes durable, added up.
#[must_use]
pub fn measure(dir: &Path, transport: &TransportSettings) -> (Floors, Option<u64>) {
    let flush1 = writers(dir, 1, BLOCK, Duration::from_millis(200)).ok();
    let flush3 = writers(dir, 3, BLOCK, Duration::from_millis(350)).ok();
    let raw3 = writers(dir, 3, LARGE, Duration::from_millis(400)).ok();
    let floors = Floors {
        rtt: echo(dir, transport, ECHOES).ok().and_then(median),
        flush_p50: flush3.and_then(|written| median(written.times_ns)),
        flush1_p50: flush1.and_then(|written| median(written.times_ns)),
        wake: wake(WAKES).and_then(median),
    };
    (floors, raw3.map(|written| written.bytes_per_s))
}

fn median(mut times_ns: Vec<u64>) -> Option<u64> {
    times_ns.sort_unstable();
    times_ns.get(times_ns.len() / 2).copied()
}

fn since(start: Instant) -> u64 {
    crate::clock::ns(start.elapsed())
}

/// Round trips of a message over QUIC as replicas set it up, to another thread and back.
fn echo(dir: &Path, transport: &TransportSettings, count: usize) -> io::Result<Vec<u64>> {
    let tls = dir.join("floor-tls");
    node::make_certificates(&tls, "floors", &[1]).map_err(io::Error::other)?;
    let credentials = Credentials::load(&tls, Role::Peer, NodeId(1))
        .and_then(|server| Ok((server, Credentials::load_client(&tls)?)))
        .map_err(io::Error::other);
    let _ = std::fs::remove_dir_all(&tls);
    let (server, client) = credentials?;
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    std::thread::scope(|scope| {
        let (bound, address) = mpsc::channel();
        scope.spawn(move || -> io::Result<()> {
            runtime()?.block_on(async {
                let echo = Echo::bind(&server, transport)?;
                // Whoever waits for it has given up otherwise.
                let _ = bound.send(echo.local_addr());
                echo.serve(MESSAGE_BYTES).await
            })
        });
        let address = address.recv().map_err(io::Error::other)?;
        let times = echo::round_trips(address, &client, transport, MESSAGE_BYTES, count);
        let times = runtime()?.block_on(times)?;
        Ok(times.into_iter().map(crate::clock::ns).collect())
    })
}

/// How long a thread that waits on an idle processor takes to run.
fn wake(count: usize) -> Option<Vec<u64>> {
    let (ask, asked) = mpsc::channel::<Instant>();
    let (answer, answered) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for start in asked {
                if answer.send(since(start)).is_err() {
                    return;
                }
            }
        });
        let mut times_ns = Vec::with_capacity(count);
        for _ in 0..count {
            // Long enough for a processor to go to sleep.
            std::thread::sleep(Duration::from_micros(800));
            ask.send(Instant::now()).ok()?;
            times_ns.push(answered.recv().ok()?);
        }
        drop(ask);
        Some(times_ns)
    })
}

struct Written {
    times_ns: Vec<u64>,
    bytes_per_s: u64,
}

/// Durable writes of `len` bytes by several threads at once, each over its own file again and again.
fn writers(dir: &Path, threads: usize, len: usize, time: Duration) -> io::Result<Written> {
    let prepare = |number: usize| RawFile::create(dir.join(format!("floor-{number}")), len);
    let files: Vec<RawFile> = (0..threads).map(prepare).collect::<io::Result<_>>()?;
    let barrier = Barrier::new(threads);
    let start = Instant::now();
    let results: Vec<io::Result<Vec<u64>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = files
            .iter()
            .map(|file| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    file.write_for(time)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|_| Ok(Vec::new())))
            .collect()
    });
    let elapsed = start.elapsed().as_secs_f64();
    let mut times_ns = Vec::new();
    for result in results {
        times_ns.extend(result?);
    }
    let bytes = (times_ns.len() * len) as f64;
    Ok(Written {
        times_ns,
        bytes_per_s: (bytes / elapsed) as u64,
    })
}

/// A file whose blocks have been written before, as those of a log are. Removed when dropped.
struct RawFile {
    path: PathBuf,
    file: File,
    /// As long as one write, and enough more to align it.
    buffer: Vec<u8>,
    len: usize,
    direct: bool,
}

impl RawFile {
    fn create(path: PathBuf, len: usize) -> io::Result<Self> {
        let file = File::create(&path)?;
        let mut this = Self {
            path,
            file,
            buffer: vec![0; len + BLOCK],
            len,
            direct: false,
        };
        let zeros = vec![0; 1 << 20];
        for _ in 0..FILE_BYTES >> 20 {
            io::Write::write_all(&mut this.file, &zeros)?;
        }
        this.file.sync_all()?;
        if let Some(direct) = open_direct(&this.path) {
            this.file = direct;
            this.direct = true;
        }
        Ok(this)
    }

    fn write_for(&self, time: Duration) -> io::Result<Vec<u64>> {
        let mut times_ns = Vec::new();
        let begin = Instant::now();
        let places = FILE_BYTES / self.len;
        let from = self.buffer.as_ptr().align_offset(BLOCK);
        let block = &self.buffer[from..from + self.len];
        while begin.elapsed() < time {
            let at = (times_ns.len() % places * self.len) as u64;
            let start = Instant::now();
            write_durably(&self.file, block, at, self.direct)?;
            times_ns.push(since(start));
        }
        Ok(times_ns)
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn open_direct(path: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok().map(File::from)
}

#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn write_durably(file: &File, block: &[u8], at: u64, direct: bool) -> io::Result<()> {
    use rustix::io::{ReadWriteFlags, pwritev2};
    use std::os::unix::fs::FileExt;
    if direct {
        let slices = [io::IoSlice::new(block)];
        let written = pwritev2(file, &slices, at, ReadWriteFlags::DSYNC)?;
        if written == block.len() {
            return Ok(());
        }
    }
    file.write_all_at(block, at)?;
    file.sync_data()
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn write_durably(file: &File, block: &[u8], at: u64, _: bool) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = file;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(block)?;
    file.sync_data()
}

const BLOCK: usize = 4096;
const LARGE: usize = 1 << 20;
const FILE_BYTES: usize = 8 << 20;
const ECHOES: usize = 1000;
const MESSAGE_BYTES: usize = 128;
const WAKES: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_measured_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let (floors, raw3) = measure(dir.path(), &TransportSettings::default());
        // Two sealed packets cost more than this on any machine; a bare datagram may not.
        assert!(floors.rtt.unwrap() > 10_000, "{floors:?}");
        assert!(floors.wake.unwrap() > 0);
        assert!(floors.flush_p50.unwrap() > 0 && floors.flush1_p50.unwrap() > 0);
        assert!(raw3.unwrap() > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // Two seconds on an idle machine; tests run on busy ones.
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
