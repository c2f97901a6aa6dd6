//! Ours, as a shard uses it: one thread hosts the log, and its callers are groups whose appends it hands over without
//! waiting. Nobody hops between threads, which is what the log is made for; the others' callers are threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use logdrive_raft::io::Write;
use logdrive_raft::{
    Anchor, Base, ClusterId, Entry, EntryBuilder, Genesis, GroupId, Incarnation, LogPosition,
    Member, Membership, Micros, NodeId, Replica, Term,
};
use logdrive_wal::disk::open::{Backend, open as open_disk};
use logdrive_wal::disk::{Disk, WakeBy};
use logdrive_wal::{FreshIds, Identity, Options, Position, Wal};

use super::{CALLERS_MAX, Contender, Failed};
use crate::measure::{Latencies, Measured, timed};
use crate::shape::Shape;

struct Ours {
    wal: Wal<Box<dyn Disk>>,
    woken: Woken,
    began: Instant,
}

enum Woken {
    Callback(Receiver<()>),
    EventFd(std::os::fd::OwnedFd),
}

/// A caller, and what it waits for.
struct Caller {
    group: GroupId,
    tip: LogPosition,
    waits: Option<(Position, Instant)>,
}

/// The ring, in the flush mode that a start chooses.
pub(super) fn open(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    open_with(directory, Backend::IoUring)
}

/// Blocking calls on a thread, for where there is no ring.
pub(super) fn open_portable(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    open_with(directory, Backend::Pwrite)
}

fn open_with(directory: &Path, backend: Backend) -> Result<Box<dyn Contender>, Failed> {
    let mut disk = open_disk(directory, backend, None)?;
    let (wake, receiver) = channel();
    let woken = match disk.wake_by(Arc::new(move || {
        // Nobody listens any more: the log is being closed.
        let _ = wake.send(());
    })) {
        WakeBy::EventFd(fd) => Woken::EventFd(fd),
        _ => Woken::Callback(receiver),
    };
    let identity = Identity {
        cluster: ClusterId::named("bench"),
        node: NodeId(1),
    };
    let (wal, _) = Wal::open(disk, Options::new(identity, FreshIds::random()?))?;
    let mut ours = Ours {
        wal,
        woken,
        began: Instant::now(),
    };
    for group in groups() {
        ours.wal.create_group(&genesis(group))?;
    }
    ours.settle();
    Ok(Box::new(ours))
}

impl Contender for Ours {
    fn run(&mut self, shape: Shape, callers: usize, time: Duration) -> Result<Measured, Failed> {
        let payload = shape.payload();
        let caller = |group| Caller {
            group,
            tip: self.wal.tip(group).unwrap_or_default(),
            waits: None,
        };
        let mut callers: Vec<Caller> = groups().take(callers).map(caller).collect();
        timed(|| {
            let until = Instant::now() + time;
            let mut latencies = Latencies::default();
            loop {
                for caller in callers.iter_mut().filter(|caller| caller.waits.is_none()) {
                    let now = Instant::now();
                    if now < until {
                        let entry = entry_after(caller, shape, &payload);
                        caller.tip = entry.position();
                        let writes = [Write::Entries(vec![entry])];
                        let position = self.wal.append(caller.group, &writes)?;
                        caller.waits = Some((position, now));
                    }
                }
                self.wal.submit(self.now());
                if callers.iter().all(|caller| caller.waits.is_none()) {
                    return Ok(latencies);
                }
                self.wait()?;
                let durable = self.wal.durable();
                for caller in &mut callers {
                    if let Some((_, began)) = caller.waits.take_if(|(at, _)| *at <= durable) {
                        latencies.record(began.elapsed());
                    }
                }
            }
        })
    }

    fn recycle(&mut self) -> Result<(), Failed> {
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
}

impl Ours {
    fn wait(&mut self) -> Result<(), Failed> {
        self.woken.wait();
        self.wal.poll(self.now());
        match self.wal.poisoned() {
            Some(reason) => Err(reason.to_string().into()),
            None => Ok(()),
        }
    }

    /// Until nothing is under way.
    fn settle(&mut self) {
        self.wal.submit(self.now());
        while !self.wal.is_drained() && self.wal.poisoned().is_none() {
            self.woken.wait();
            self.wal.poll(self.now());
            self.wal.submit(self.now());
        }
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

impl Woken {
    fn wait(&self) {
        match self {
            Self::Callback(woken) => woken.recv().expect("the disk holds the other end"),
            Self::EventFd(fd) => {
                use rustix::event::{PollFd, PollFlags, poll};
                poll(&mut [PollFd::new(fd, PollFlags::IN)], None)
                    .expect("an eventfd can be polled");
                rustix::io::read(fd, &mut [0; 8]).expect("it was readable");
            }
        }
    }
}

/// A caller's next entry, as the door of a group makes it.
fn entry_after(caller: &Caller, shape: Shape, payload: &[u8]) -> Entry {
    let mut builder = EntryBuilder::with_room(shape.count, shape.payload_bytes());
    for _ in 0..shape.count {
        builder.push(payload);
    }
    let Caller { group, tip, .. } = caller;
    builder
        .finish()
        .seal(*group, Term(1), tip.index.next(), tip.chain)
}

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=CALLERS_MAX as u64).map(GroupId)
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
