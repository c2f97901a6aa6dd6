//! Ours, as a shard uses it: one thread hosts the log, and its callers are groups whose appends it hands over without
//! waiting. Nobody hops between threads, which is what the log is made for; the others' callers are threads.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use logdrive_raft::io::Write;
use logdrive_raft::{
    Anchor, Base, ClusterId, EntryBuilder, Genesis, GroupId, Incarnation, Index, LogPosition,
    Member, Membership, Micros, NodeId, Replica, Term,
};
use logdrive_wal::disk::Disk;
use logdrive_wal::disk::open::{Backend, open as open_disk};
use logdrive_wal::{FreshIds, Identity, Options, Position, ReadRequest, Wal};

use super::{Contender, Failed};
use crate::driven::{self, Driven};
use crate::load::Load;
use crate::measure::Measured;
use crate::reading::Readable;
use crate::shape::Shape;
use crate::woken::Woken;

/// The log and its callers.
pub struct Ours {
    wal: Wal<Box<dyn Disk>>,
    woken: Woken,
    began: Instant,
    /// By group.
    tips: Vec<LogPosition>,
    /// Callers in the order of their appends.
    waiting: VecDeque<(Position, usize)>,
    payload: Vec<u8>,
    append_bytes: usize,
    /// The next entry of the first group that nobody has read.
    next: Index,
}

/// So many; callers share them.
const GROUPS: usize = 16;

/// How many appends a log is given at once that is filled.
const FILL_WAITING_MAX: usize = 64;

/// The ring, in the flush mode that a start chooses.
pub(super) fn open(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    open_with(directory, Backend::IoUring)
}

/// Blocking calls on a thread, for where there is no ring.
pub(super) fn open_portable(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    open_with(directory, Backend::Pwrite)
}

fn open_with(directory: &Path, backend: Backend) -> Result<Box<dyn Contender>, Failed> {
    Ok(Box::new(Ours::create_with(directory, backend)?))
}

impl Driven for Ours {
    fn append(&mut self, shape: Shape, caller: usize) -> Result<(), Failed> {
        let (group, place) = (group_of(caller), caller % GROUPS);
        let tip = self.tips[place];
        let mut builder = EntryBuilder::with_room(shape.count, shape.payload_bytes());
        for _ in 0..shape.count {
            builder.push(&self.payload[..shape.bytes]);
        }
        let entry = builder.finish();
        let entry = entry.seal(group, Term(1), tip.index.next(), tip.chain);
        self.tips[place] = entry.position();
        let position = self.wal.append(group, &[Write::Entries(vec![entry])])?;
        self.waiting.push_back((position, caller));
        Ok(())
    }

    fn turn(&mut self, until: Option<Instant>, durable: &mut Vec<usize>) -> Result<(), Failed> {
        self.wal.submit(self.now());
        self.woken.wait(until);
        self.wal.poll(self.now());
        if let Some(reason) = self.wal.poisoned() {
            return Err(reason.to_string().into());
        }
        let through = self.wal.durable();
        while let Some((_, caller)) = self.waiting.pop_front_if(|(at, _)| *at <= through) {
            durable.push(caller);
        }
        Ok(())
    }
}

impl Readable for Ours {
    fn read(&mut self, bytes: usize) -> Result<(), Failed> {
        let first = self.wal.base(group_of(0)).unwrap_or_default().index.next();
        let last = Index(self.tips[0].index.0 - FILL_WAITING_MAX as u64);
        if self.next < first || self.next > last {
            self.next = first;
        }
        let entries = (bytes / self.append_bytes).max(1) as u64;
        let through = Index(self.next.0 + entries - 1);
        let request = ReadRequest {
            id: 0,
            group: group_of(0),
            from: self.next,
            through,
            bytes_max: 2 * bytes,
        };
        self.wal.read(request)?;
        self.next = through.next();
        Ok(())
    }

    fn take_reads(&mut self) -> Result<(usize, u64), Failed> {
        let (mut ended, mut bytes) = (0, 0);
        for done in self.wal.take_reads() {
            ended += 1;
            let entries = done.result?;
            let payloads = entries.iter().map(|entry| entry.payload().len() as u64);
            bytes += payloads.sum::<u64>();
        }
        Ok((ended, bytes))
    }
}

impl Contender for Ours {
    fn run(&mut self, load: &Load) -> Result<Measured, Failed> {
        self.begin(load.shape);
        driven::run(self, load)
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        self.empty()
    }
}

impl Ours {
    /// A new log with all groups.
    pub fn create(directory: &Path) -> Result<Self, Failed> {
        Self::create_with(directory, Backend::IoUring)
    }

    fn create_with(directory: &Path, backend: Backend) -> Result<Self, Failed> {
        let mut ours = Self::open(directory, backend)?;
        for group in groups() {
            ours.wal.create_group(&genesis(group))?;
        }
        ours.settle();
        Ok(ours)
    }

    /// The log that lies in a directory.
    pub fn reopen(directory: &Path) -> Result<Self, Failed> {
        Self::open(directory, Backend::IoUring)
    }

    /// Ends it in order.
    pub fn close(self) -> Result<(), Failed> {
        self.wal.close().map_err(|reason| reason.to_string().into())
    }

    /// Appends so many bytes to the first group, several appends at a time.
    pub fn fill(&mut self, shape: Shape, bytes: usize) -> Result<(), Failed> {
        let mut durable = Vec::new();
        for _ in 0..bytes / shape.payload_bytes() {
            while self.waiting.len() >= FILL_WAITING_MAX {
                self.turn(None, &mut durable)?;
                durable.clear();
            }
            self.append(shape, 0)?;
        }
        self.settle();
        self.waiting.clear();
        Ok(())
    }

    /// Gives up everything that was appended.
    pub fn empty(&mut self) -> Result<(), Failed> {
        let tips = groups().filter_map(|group| Some((group, self.wal.tip(group)?)));
        let tips: Vec<_> = tips.filter(|(_, tip)| tip.index.0 > 0).collect();
        for (group, at) in &tips {
            let anchor = Anchor {
                at: *at,
                membership: membership(*group),
                sessions: Default::default(),
                term_starts: Vec::new(),
            };
            self.wal.append(*group, &[Write::Anchor(anchor)])?;
        }
        self.settle();
        for (group, at) in &tips {
            let base = Base {
                at: *at,
                membership: membership(*group),
                snapshot: None,
                tip: *at,
            };
            self.wal.append(*group, &[Write::Base(base)])?;
        }
        self.settle();
        Ok(())
    }

    /// Opens what lies in a directory, or a new log without groups.
    fn open(directory: &Path, backend: Backend) -> Result<Self, Failed> {
        let mut disk = open_disk(directory, backend, None)?;
        let woken = Woken::by(&mut disk);
        let identity = Identity {
            cluster: ClusterId::named("bench"),
            node: NodeId(1),
        };
        let (wal, _) = Wal::open(disk, Options::new(identity, FreshIds::random()?))?;
        Ok(Self {
            wal,
            woken,
            began: Instant::now(),
            tips: Vec::new(),
            waiting: VecDeque::new(),
            payload: Vec::new(),
            append_bytes: 0,
            next: Index::default(),
        })
    }

    /// Appends of this shape follow.
    pub fn begin(&mut self, shape: Shape) {
        self.payload = shape.payload();
        self.append_bytes = shape.payload_bytes();
        let tips = groups().map(|group| self.wal.tip(group).unwrap_or_default());
        self.tips = tips.collect();
    }

    /// Until nothing is under way.
    pub fn settle(&mut self) {
        self.wal.submit(self.now());
        while !self.wal.is_drained() && self.wal.poisoned().is_none() {
            self.woken.wait(None);
            self.wal.poll(self.now());
            self.wal.submit(self.now());
        }
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

fn group_of(caller: usize) -> GroupId {
    GroupId((caller % GROUPS) as u64 + 1)
}

fn groups() -> impl Iterator<Item = GroupId> {
    (0..GROUPS).map(group_of)
}

fn genesis(group: GroupId) -> Genesis {
    let replica = Replica {
        id: NodeId(1),
        incarnation: Incarnation(1),
    };
    Genesis {
        cluster: ClusterId::named("bench"),
        group,
        voters: vec![Member {
            replica,
            address: "127.0.0.1:7000".to_owned(),
        }],
    }
}

fn membership(group: GroupId) -> Membership {
    genesis(group).membership()
}
