//! One append until it is durable: `wal_append/64x128B/dsync/io_uring` is an entry of 64 proposals of 128
//! bytes, nothing else under way, each backend and flush mode on a log of its own.
//!
//! The logs lie in `target/tmp` and only grow: what the pool zero-fills ahead is part of the figures, as it is
//! of a cluster's first minutes.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logdrive_bench::{GROUP, Shape, genesis};
use logdrive_raft::io::Write;
use logdrive_raft::{Entry, Micros, NodeId};
use logdrive_wal::disk::open::{Backend, open};
use logdrive_wal::disk::{Disk, FlushMode, WakeBy};
use logdrive_wal::{FreshIds, Identity, Options, Position, Wal};

/// A log and the thread that hosts it.
struct Host {
    wal: Wal<Box<dyn Disk>>,
    woken: Woken,
    began: Instant,
}

enum Woken {
    Callback(Receiver<()>),
    #[cfg(unix)]
    EventFd(std::os::fd::OwnedFd),
}

impl Woken {
    fn wait(&self) {
        match self {
            Self::Callback(woken) => woken.recv().expect("the disk holds the other end"),
            #[cfg(unix)]
            Self::EventFd(fd) => {
                use rustix::event::{PollFd, PollFlags, poll};
                poll(&mut [PollFd::new(fd, PollFlags::IN)], None)
                    .expect("an eventfd can be polled");
                rustix::io::read(fd, &mut [0; 8]).expect("it was readable");
            }
        }
    }
}

impl Host {
    /// A new log; `None` if this backend is not to be had here.
    fn open(directory: &Path, backend: Backend, mode: FlushMode) -> Option<Self> {
        let mut disk = match open(directory, backend, Some(mode)) {
            Ok(disk) => disk,
            Err(error) => {
                eprintln!("{backend:?} is left out: {error}");
                return None;
            }
        };
        let (wake, receiver) = channel();
        let woken = match disk.wake_by(Arc::new(move || {
            // Nobody listens any more: the log is being closed.
            let _ = wake.send(());
        })) {
            #[cfg(unix)]
            WakeBy::EventFd(fd) => Woken::EventFd(fd),
            _ => Woken::Callback(receiver),
        };
        let identity = Identity {
            cluster: genesis().cluster,
            node: NodeId(1),
        };
        let fresh = FreshIds::random().expect("the system has randomness");
        let (mut wal, _) = Wal::open(disk, Options::new(identity, fresh)).expect("a new directory");
        let position = wal.create_group(&genesis()).expect("a new log has room");
        let mut host = Self {
            wal,
            woken,
            began: Instant::now(),
        };
        host.settle(position);
        Some(host)
    }

    fn settle(&mut self, position: Position) {
        self.wal.submit(self.now());
        while self.wal.durable() < position {
            self.woken.wait();
            self.wal.poll(self.now());
            self.wal.submit(self.now());
        }
    }

    fn append(&mut self, entry: Entry) {
        let write = Write::Entries(vec![entry]);
        let position = self
            .wal
            .append(GROUP, &[write])
            .expect("8 GiB are not used up");
        self.settle(position);
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal_append");
    let shapes = [
        Shape::new(1, 128),
        Shape::new(64, 128),
        Shape::new(64, 1024),
        Shape::new(8, 65_536),
    ];
    for (name, backend) in [("pwrite", Backend::Pwrite), ("io_uring", Backend::IoUring)] {
        for mode in [FlushMode::Dsync, FlushMode::DrainedFsync] {
            for shape in shapes {
                // A log for each, so that none finds the slots of the one before it.
                let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
                    .expect("cargo has made the directory");
                let Some(mut host) = Host::open(directory.path(), backend, mode) else {
                    continue;
                };
                let payloads = shape.payloads();
                group.throughput(Throughput::Bytes(shape.payload_bytes()));
                group.bench_function(format!("{shape}/{}/{name}", mode.name()), |b| {
                    b.iter_custom(|iterations| {
                        let mut took = Duration::ZERO;
                        for _ in 0..iterations {
                            let tip = host.wal.tip(GROUP).expect("created above");
                            let entry = shape.entry_after(&payloads, &tip);
                            let began = Instant::now();
                            host.append(entry);
                            took += began.elapsed();
                        }
                        took
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = append
}
criterion_main!(benches);
