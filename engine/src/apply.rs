//! The thread that applies: the user's code runs here and nowhere else.
//!
//! Its queue is bounded in bytes by whoever fills it: the shard asks for room before it hands a batch over.
//! The number of batches is bounded as well, by the queue itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::sync::{Parker, Unparker};
use logdrive_raft::GroupId;
use logdrive_shard::{Applier, ApplyBatch, Fenced, StateMachine};

use crate::error::StartError;
use crate::metrics::Metrics;

/// The most batches on their way to the applier, whatever their size.
const BATCHES_MAX: usize = 256;

/// What the shard and the applier share.
pub(crate) struct ApplyQueue<O> {
    batches: ArrayQueue<ApplyBatch<O>>,
    /// Bytes of frames in `batches` and of the batch that is being applied.
    bytes: AtomicUsize,
    bytes_max: usize,
    /// The shard found no room and wants to be woken when there is some.
    shard_waits: AtomicBool,
    shard: Waker,
    /// Groups whose machines have failed; the shard takes them out. One place a group.
    fenced: ArrayQueue<Fenced>,
    applied: BTreeMap<GroupId, AtomicU64>,
    closed: AtomicBool,
    unparker: Unparker,
}

impl<O> std::fmt::Debug for ApplyQueue<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ApplyQueue({} bytes)",
            self.bytes.load(Ordering::Relaxed)
        )
    }
}

impl<O> ApplyQueue<O> {
    /// Bytes that the applier takes now.
    pub(crate) fn room_bytes(&self) -> usize {
        if self.batches.is_full() {
            self.shard_waits.store(true, Ordering::SeqCst);
            if self.batches.is_full() {
                return 0;
            }
        }
        let room = self
            .bytes_max
            .saturating_sub(self.bytes.load(Ordering::SeqCst));
        if room > 0 {
            return room;
        }
        // Announced before the second look, so that the applier cannot make room unseen in between.
        self.shard_waits.store(true, Ordering::SeqCst);
        self.bytes_max
            .saturating_sub(self.bytes.load(Ordering::SeqCst))
    }

    /// Hands a batch over. The caller has asked for room.
    pub(crate) fn push(&self, batch: ApplyBatch<O>) {
        self.bytes.fetch_add(batch.bytes, Ordering::SeqCst);
        if self.batches.push(batch).is_err() {
            unreachable!("the only producer has seen room");
        }
        self.unparker.unpark();
    }

    /// Bytes in the queue and its bound.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.bytes_max)
    }

    /// A group whose machine has failed since the last call.
    pub(crate) fn take_fenced(&self) -> Option<Fenced> {
        self.fenced.pop()
    }

    /// How far the machine of a group is.
    pub(crate) fn applied(&self, group: GroupId) -> u64 {
        self.applied
            .get(&group)
            .map_or(0, |applied| applied.load(Ordering::Acquire))
    }

    /// No batch will come any more: the thread ends when it has applied what is queued.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.unparker.unpark();
    }
}

/// Where the machines of a shard are applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApplyOn {
    /// On a thread of their own: whatever a machine does, the shard goes on.
    #[default]
    Thread,
    /// On the shard's thread, without a hop: for machines that are quick and never block, such as a map in
    /// memory. Saves two wake-ups a commit when little is in flight.
    ShardThread,
}

/// The machines of a shard, before it is known where they run.
pub(crate) struct Machines<S: StateMachine> {
    applier: Applier<S>,
    queue: Arc<ApplyQueue<S::Output>>,
    parker: Parker,
    metrics: Arc<Metrics>,
}

/// Applies on the thread of whoever owns it.
pub(crate) struct Inline<S: StateMachine> {
    machines: Machines<S>,
}

impl<S: StateMachine> Machines<S> {
    pub(crate) fn new(
        applier: Applier<S>,
        groups: &[GroupId],
        bytes_max: usize,
        shard: Waker,
        metrics: Arc<Metrics>,
    ) -> Self {
        let parker = Parker::new();
        let at = |group: &GroupId| applier.applied(*group).map_or(0, |applied| applied.index.0);
        let applied = groups
            .iter()
            .map(|group| (*group, AtomicU64::new(at(group))))
            .collect();
        let queue = Arc::new(ApplyQueue {
            batches: ArrayQueue::new(BATCHES_MAX),
            bytes: AtomicUsize::new(0),
            bytes_max,
            shard_waits: AtomicBool::new(false),
            shard,
            fenced: ArrayQueue::new(groups.len().max(1)),
            applied,
            closed: AtomicBool::new(false),
            unparker: parker.unparker().clone(),
        });
        Self {
            applier,
            queue,
            parker,
            metrics,
        }
    }

    pub(crate) fn queue(&self) -> &Arc<ApplyQueue<S::Output>> {
        &self.queue
    }

    /// Applies on a thread of its own.
    pub(crate) fn on_thread(self, name: &str) -> Result<JoinHandle<()>, StartError> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || self.run())
            .map_err(StartError::Thread)
    }

    /// Applies wherever it is called.
    pub(crate) fn inline(self) -> Inline<S> {
        Inline { machines: self }
    }

    fn run(mut self) {
        loop {
            let Some(batch) = self.queue.batches.pop() else {
                if self.queue.closed.load(Ordering::SeqCst) && self.queue.batches.is_empty() {
                    return;
                }
                self.parker.park();
                continue;
            };
            let bytes = batch.bytes;
            self.apply(batch);
            self.queue.bytes.fetch_sub(bytes, Ordering::SeqCst);
            if self.queue.shard_waits.swap(false, Ordering::SeqCst) {
                self.queue.shard.wake_by_ref();
            }
        }
    }

    fn apply(&mut self, batch: ApplyBatch<S::Output>) {
        let group = batch.group;
        let started = Instant::now();
        let proposals: u64 = batch
            .entries
            .iter()
            .map(|(entry, _)| u64::from(entry.header().count))
            .sum();
        match self.applier.apply(batch) {
            Ok(applied) => {
                if let Some(shown) = self.queue.applied.get(&group) {
                    shown.store(applied.index.0, Ordering::Release);
                }
            }
            Err(fenced) => {
                tracing::error!(
                    event = "machine_failed",
                    group = group.0,
                    index = fenced.index.0,
                    code = "halted",
                    "{fenced}; nothing more is applied here, the log is untouched; mend the \
                     machine and restart this node"
                );
                // Said once a group; the queue has a place for each.
                if self.queue.fenced.push(fenced).is_ok() {
                    self.queue.shard.wake_by_ref();
                }
            }
        }
        self.metrics.applied(proposals, started.elapsed());
    }
}

impl<S: StateMachine> Inline<S> {
    pub(crate) fn apply(&mut self, batch: ApplyBatch<S::Output>) {
        self.machines.apply(batch);
    }
}
