//! The same log on real files.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_raft::{Entry, Index, Micros};
use logdrive_wal::disk::open::{Backend, open};
use logdrive_wal::disk::pwrite::PwriteDisk;
use logdrive_wal::disk::{BLOCK_BYTES, Disk, DiskError, FlushMode, WakeBy};
use logdrive_wal::dump::{Selection, dump};
use logdrive_wal::format::GroupHeader;
use logdrive_wal::verify::{inspect, verify};
use logdrive_wal::{OpenError, Position, ReadRequest, Verdict, Wal};

/// A log on files and the thread that hosts it.
struct Host {
    wal: Wal<Box<dyn Disk>>,
    began: Instant,
    sleep: Box<dyn Fn()>,
    verdict: Verdict,
}

impl Host {
    fn open(disk: Result<Box<dyn Disk>, DiskError>) -> Result<Self, OpenError> {
        let mut disk = disk?;
        let (wake, woken) = channel();
        let sleep: Box<dyn Fn()> = match disk.wake_by(Arc::new(move || {
            let _ = wake.send(());
        })) {
            WakeBy::Callback => Box::new(move || woken.recv().unwrap()),
            #[cfg(all(target_os = "linux", not(logdrive_portable)))]
            WakeBy::EventFd(eventfd) => Box::new(move || {
                use rustix::event::{PollFd, PollFlags, poll};
                poll(&mut [PollFd::new(&eventfd, PollFlags::IN)], None).unwrap();
                rustix::io::read(&eventfd, &mut [0; 8]).unwrap();
            }),
            other => panic!("{other:?}"),
        };
        let (wal, recovery) = Wal::open(disk, options(32))?;
        Ok(Self {
            wal,
            began: Instant::now(),
            sleep,
            verdict: recovery.verdict,
        })
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap())
    }

    fn settle(&mut self, position: Position) {
        self.wal.submit(self.now());
        while self.wal.durable() < position {
            (self.sleep)();
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
            (self.sleep)();
            self.wal.poll(self.now());
        }
    }
}

type MakeDisk = fn(&Path) -> Result<Box<dyn Disk>, DiskError>;

/// Every way in which a log lies on files.
const DISKS: [MakeDisk; 5] = [
    |path| open(path, Backend::Auto, Some(FlushMode::Dsync)),
    |path| open(path, Backend::Auto, Some(FlushMode::DrainedFsync)),
    |path| open(path, Backend::Pwrite, Some(FlushMode::Dsync)),
    |path| open(path, Backend::Pwrite, Some(FlushMode::DrainedFsync)),
    |path| Ok(Box::new(PwriteDisk::buffered(path))),
];

#[test]
fn a_log_on_files_comes_back_after_a_kill_and_after_a_close() {
    let directory = tempfile::tempdir_in(".").unwrap();
    for (place, disk) in DISKS.into_iter().enumerate() {
        let path = directory.path().join(place.to_string());
        let mut host = Host::open(disk(&path)).unwrap();
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
            let mut host = Host::open(disk(&path)).unwrap();
            assert_eq!(host.verdict, Verdict::Clean);
            assert_eq!(host.read_all()[..100], written);
            host.append_entries(2, 1, 10);
            if round % 2 == 0 {
                host.wal.close().unwrap();
            }
        }
        assert_eq!(Host::open(disk(&path)).unwrap().read_all().len(), 104);
    }
}

#[test]
fn a_log_on_one_disk_is_a_log_on_every_other() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let mut host = Host::open(DISKS[0](directory.path())).unwrap();
    let position = host.wal.create_group(&genesis(GROUP)).unwrap();
    host.settle(position);
    drop(host);
    for (place, disk) in (1..).zip(DISKS.iter().cycle().take(10)) {
        let mut host = Host::open(disk(directory.path())).unwrap();
        host.append_entries(place, 3, 3000);
        assert_eq!(host.read_all().len() as u64, 3 * place);
    }
}

#[test]
fn figure_8_survives_restarts_on_files() {
    // Raft figure 8: (2, t3) was written here as leader, and is overwritten by (2, t2) of the leader of t4.
    let directory = tempfile::tempdir_in(".").unwrap();
    for (place, disk) in DISKS.into_iter().enumerate() {
        let path = directory.path().join(place.to_string());
        let mut host = Host::open(disk(&path)).unwrap();
        let position = host.wal.create_group(&genesis(GROUP)).unwrap();
        host.settle(position);
        host.append(&[Write::HardState(vote(3, 1))]);
        host.append_entries(1, 1, 10);
        let first = host.wal.tip(GROUP).unwrap();
        host.append_entries(3, 1, 10);
        let older = entries(GROUP, 2, &first, 1, 10);
        let newer = entries(GROUP, 4, &older[0].position(), 1, 10);
        let mut writes = vec![Write::HardState(vote(4, 2)), Write::Entries(older.clone())];
        writes.push(Write::Entries(newer.clone()));
        host.append(&writes);
        drop(host);
        for _ in 0..3 {
            let mut host = Host::open(disk(&path)).unwrap();
            assert_eq!(host.read_all()[1..], [older[0].clone(), newer[0].clone()]);
        }
    }
}

#[test]
fn verify_reads_a_directory_and_changes_nothing() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let log = directory.path().join("wal-0");
    let refused = verify(directory.path(), false).unwrap_err();
    assert!(matches!(refused, OpenError::NotALog { .. }), "{refused}");
    let mut host = Host::open(DISKS[2](&log)).unwrap();
    let position = host.wal.create_group(&genesis(GROUP)).unwrap();
    host.settle(position);
    host.append(&[Write::HardState(vote(4, 2))]);
    host.append_entries(4, 60, 3000);
    let tip = host.wal.tip(GROUP).unwrap();
    let refused = verify(directory.path(), false).unwrap_err();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
    let sealed = verify(directory.path(), true).unwrap();
    assert!(
        sealed.verdict <= Verdict::Torn && sealed.entries < 60,
        "{sealed}"
    );
    host.wal.close().unwrap();

    let contents = |file: &str| std::fs::read(log.join(file)).unwrap();
    let before = contents("wal-00000.slot");
    let report = verify(directory.path(), false).unwrap();
    let segments = report.segments;
    let expected = format!(
        "verdict clean groups 1 segments {segments} entries 60 first 1 last 60 term 4 chain {}",
        tip.chain
    );
    assert_eq!(report.to_string(), expected);
    assert_eq!(report.groups[0].hard_state, vote(4, 2));
    let mut lines = Vec::new();
    inspect(directory.path(), false, &mut |line| {
        lines.push(line.to_string())
    })
    .unwrap();
    assert!(
        lines.iter().any(|line| line.contains("Entries(")),
        "{lines:#?}"
    );
    assert_eq!(contents("wal-00000.slot"), before);

    // The first flush group with entries.
    let mut groups = before.chunks(BLOCK_BYTES).map(GroupHeader::parse);
    let has_entries = |header: &GroupHeader| header.body_bytes > 0;
    let block = groups.position(|group| group.is_ok_and(|(header, _)| has_entries(&header)));
    let offset = block.unwrap() * BLOCK_BYTES;
    let mut bad = before.clone();
    bad[offset + 17] ^= 4;
    std::fs::write(log.join("wal-00000.slot"), &bad).unwrap();
    let report = verify(directory.path(), false).unwrap();
    assert_eq!(report.verdict, Verdict::Rot, "{report}");
    let slot = log.join("wal-00000.slot");
    let line = format!("rot {} offset {offset}", slot.display());
    assert!(report.to_string().starts_with(&line), "{report}");
    // The others can be read, as far as what is bad is told of.
    let selection = Selection {
        group: None,
        from: Index(1),
        through: Index(60),
    };
    let mut read = Vec::new();
    dump(directory.path(), false, &selection, &mut |dumped| {
        read.push((
            dumped.index.0,
            dumped.entry.clone().map(|entry| entry.index().0),
        ));
    })
    .unwrap();
    assert_eq!(read.len(), 60);
    let lost: Vec<_> = read.iter().filter(|(_, entry)| entry.is_err()).collect();
    assert!(!lost.is_empty() && lost.len() < 60, "{lost:?}");
    assert_eq!(lost[0].0, 1);
    for (index, entry) in read {
        match entry {
            Ok(read) => assert_eq!(read, index),
            Err(why) => assert!(why.contains("lay in is bad"), "{why}"),
        }
    }
}

#[test]
fn a_second_process_is_told_who_has_the_directory() {
    let directory = tempfile::tempdir_in(".").unwrap();
    // Each against the next: a refusal takes half a second of patience.
    for (first, second) in DISKS.iter().zip(DISKS.iter().cycle().skip(1)) {
        let _host = Host::open(first(directory.path())).unwrap();
        let second = Host::open(second(directory.path())).err().unwrap();
        assert!(matches!(second, OpenError::Locked { .. }));
        let text = second.to_string();
        assert!(text.contains("in use by another process"), "{text}");
    }
}

/// A file takes no memory for what it does not hold; whoever reads it does.
#[test]
fn a_file_that_is_longer_than_any_slot_is_not_read() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let disk = || Box::new(PwriteDisk::new(directory.path())) as Box<dyn Disk>;
    let (mut wal, _) = Wal::open(disk(), options(8)).unwrap();
    wal.create_group(&genesis(GROUP)).unwrap();
    wal.close().unwrap();
    for number in [1, 9] {
        let path = directory
            .path()
            .join(logdrive_wal::disk::SlotId(number).file_name());
        let before = std::fs::metadata(&path).map(|file| file.len()).ok();
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(1 << 42).unwrap();
        let refused = [
            Wal::open(disk(), options(8)).map(drop).unwrap_err(),
            verify(directory.path(), false).map(drop).unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, OpenError::NotALog { .. }), "{error}");
            let said = error.to_string();
            assert!(said.contains("longer than a slot can be"), "{said}");
        }
        match before {
            Some(bytes) => file.set_len(bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    }
    assert!(Wal::open(disk(), options(8)).is_ok());
}
