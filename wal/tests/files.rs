//! The same log on real files.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use common::*;
use logdrive_raft::io::Write;
use logdrive_raft::{Entry, Index, Micros};
use logdrive_wal::disk::Disk;
use logdrive_wal::disk::pwrite::PwriteDisk;
use logdrive_wal::{OpenError, Position, ReadRequest, Verdict, Wal};

/// A log on files and the thread that hosts it.
struct Host {
    wal: Wal<PwriteDisk>,
    began: Instant,
    woken: Receiver<()>,
    verdict: Verdict,
}

impl Host {
    fn open(mut disk: PwriteDisk) -> Result<Self, OpenError> {
        let (wake, woken) = channel();
        disk.wake_by(Arc::new(move || drop(wake.send(()))));
        let (wal, recovery) = Wal::open(disk, options(32))?;
        Ok(Self {
            wal,
            began: Instant::now(),
            woken,
            verdict: recovery.verdict,
        })
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap())
    }

    fn settle(&mut self, position: Position) {
        self.wal.submit(self.now());
        while self.wal.durable() < position {
            self.woken.recv().unwrap();
            self.wal.poll(self.now());
            self.wal.submit(self.now());
        }
    }

    fn append(&mut self, writes: &[Write]) {
        let position = self.wal.append(GROUP, writes).unwrap();
        self.settle(position);
    }

    fn append_entries(&mut self, term: u64, count: u64, bytes: usize) {
        let tip = self.wal.tip(GROUP).unwrap();
        self.append(&[Write::Entries(entries(GROUP, term, &tip, count, bytes))]);
    }

    fn read_all(&mut self) -> Vec<Entry> {
        let through = self.wal.tip(GROUP).unwrap().index;
        let request = ReadRequest {
            id: 7,
            group: GROUP,
            from: Index(1),
            through,
            bytes_max: usize::MAX,
        };
        self.wal.read(request).unwrap();
        loop {
            if let Some(done) = self.wal.take_reads().pop() {
                return done.result.unwrap();
            }
            self.woken.recv().unwrap();
            self.wal.poll(self.now());
        }
    }
}

fn disks(directory: &std::path::Path) -> [PwriteDisk; 2] {
    [
        PwriteDisk::new(directory.join("direct")),
        PwriteDisk::buffered(directory.join("buffered")),
    ]
}

#[test]
fn a_log_on_files_comes_back_after_a_kill_and_after_a_close() {
    let directory = tempfile::tempdir_in(".").unwrap();
    for disk in disks(directory.path()) {
        let direct = disk.facts().direct;
        let path = disk.directory().to_owned();
        let disk = || {
            if direct {
                PwriteDisk::new(&path)
            } else {
                PwriteDisk::buffered(&path)
            }
        };
        let mut host = Host::open(disk()).unwrap();
        let position = host.wal.create_group(&genesis(GROUP)).unwrap();
        host.settle(position);
        host.append(&[Write::HardState(vote(1, 2))]);
        for round in 0..20 {
            host.append_entries(1, 5, 100 + round * 500);
        }
        let written = host.read_all();
        assert_eq!(written.len(), 100);
        drop(host);
        for round in 0..4 {
            let mut host = Host::open(disk()).unwrap();
            assert_eq!(host.verdict, Verdict::Clean);
            assert_eq!(host.read_all()[..100], written);
            host.append_entries(2, 1, 10);
            if round % 2 == 0 {
                host.wal.close().unwrap();
            }
        }
        assert_eq!(Host::open(disk()).unwrap().read_all().len(), 104);
    }
}

#[test]
fn a_second_process_is_told_who_has_the_directory() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let _host = Host::open(PwriteDisk::new(directory.path())).unwrap();
    let second = Host::open(PwriteDisk::new(directory.path())).err().unwrap();
    assert!(matches!(second, OpenError::Locked { .. }));
    assert!(
        second.to_string().contains("in use by another process"),
        "{second}"
    );
}
