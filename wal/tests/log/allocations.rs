//! What an append costs the allocator.

use crate::common::cut::{anchor_at, base_at};
use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_raft::{LogPosition, Micros};
use logdrive_wal::disk::Disk;
use logdrive_wal::disk::open::{Backend, open};
use logdrive_wal::{Position, Wal};

const APPENDS: u64 = 1000;

struct Log {
    wal: Wal<Box<dyn Disk>>,
    tip: LogPosition,
    now: u64,
}

impl Log {
    fn settle(&mut self, position: Position) {
        while self.wal.durable() < position {
            // Nothing waits here: what a thread waits by is its own affair.
            self.now += 1;
            self.wal.submit(Micros(self.now));
            self.wal.poll(Micros(self.now));
        }
    }

    fn append(&mut self, write: &Write) -> Position {
        self.wal.append(GROUP, std::slice::from_ref(write)).unwrap()
    }

    /// What a core hands over, and keeps.
    fn prepared(&mut self) -> (Vec<Write>, Vec<Write>) {
        let entries = entries(GROUP, 1, &self.tip, APPENDS, 128);
        self.tip = entries.last().unwrap().position();
        let writes: Vec<Write> = entries
            .into_iter()
            .map(|entry| Write::Entries(vec![entry]))
            .collect();
        (writes.clone(), writes)
    }

    /// One after the other, and then several at a time.
    fn append_all(&mut self, writes: &[Write]) {
        let mut last = Position::default();
        for (number, write) in writes.iter().enumerate() {
            last = self.append(write);
            if number % 2 == 0 && number % 16 < 8 {
                self.settle(last);
            }
        }
        self.settle(last);
    }

    fn cut(&mut self) {
        let anchored = self.append(&Write::Anchor(anchor_at(self.tip)));
        self.settle(anchored);
        let based = self.append(&Write::Base(base_at(self.tip, self.tip)));
        self.settle(based);
    }
}

#[test]
fn an_append_allocates_nothing_once_the_log_has_done_as_many_before() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let disk = open(directory.path(), Backend::Auto, None).unwrap();
    let is_ring = disk.facts().backend == "io_uring";
    let options = options(8).with_slots(16 << 20, 8);
    let (wal, _) = Wal::open(disk, options).unwrap();
    let mut log = Log {
        wal,
        tip: LogPosition::default(),
        now: 0,
    };
    let created = log.wal.create_group(&genesis(GROUP)).unwrap();
    log.settle(created);
    log.tip = log.wal.tip(GROUP).unwrap();
    // They fill more than a segment, and leave enough of the next one.
    for _ in 0..5 {
        let (_kept, writes) = log.prepared();
        log.append_all(&writes);
        log.cut();
    }
    let (_kept, writes) = log.prepared();
    let before = log.wal.status().counters;
    let counted = allocation_counter::measure(|| log.append_all(&writes));
    let after = log.wal.status().counters;
    assert!(after.groups > before.groups + APPENDS / 4);
    if is_ring {
        assert_eq!(counted.count_total, 0, "{counted:?}");
    } else {
        // Its operations go to a thread and come back, through queues that are not the log's.
        assert!(counted.count_total < 2 * (after.groups - before.groups));
    }
}
