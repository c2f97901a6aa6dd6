//! The thread that applies: of the user's code only what takes over a received snapshot runs elsewhere.
//!
//! Its queue is bounded in bytes by whoever fills it: the shard asks for room before it hands a batch over.
//! The number of batches is bounded as well, by the queue itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::sync::{Parker, Unparker};
use logdrive_raft::{Anchor, GroupId, LogPosition};
use logdrive_shard::{
    Applier, ApplyBatch, Fatal, Fenced, MachineEvent, SnapshotReader, StateMachine,
};

use crate::error::StartError;
use crate::install::{Install, Installer};
use crate::metrics::Metrics;
use crate::snapshots::{Handle, SnapshotQueue, pace_of};

/// The most batches on their way to the applier, whatever their size.
const BATCHES_MAX: usize = 256;

/// What the shard and the applier share.
pub(crate) struct ApplyQueue<O> {
    work: ArrayQueue<Work<O>>,
    /// Bytes of frames in `batches` and of the batch that is being applied.
    bytes: AtomicUsize,
    bytes_max: usize,
    /// The shard found no room and wants to be woken when there is some.
    shard_waits: AtomicBool,
    shard: Waker,
    /// Groups whose machines have failed; the shard takes them out.
    fenced: Mutex<FencedGroups>,
    /// There is something to take out of `fenced`.
    fenced_waits: AtomicBool,
    applied: BTreeMap<GroupId, AtomicU64>,
    closed: AtomicBool,
    /// The thread has ended and applies nothing more.
    ended: AtomicBool,
    unparker: Unparker,
}

/// Something for the applier, in order.
pub(crate) enum Work<O> {
    /// Entries to apply.
    Batch(ApplyBatch<O>),
    /// Everything before is to be in a snapshot.
    TakeSnapshot(GroupId, Anchor),
    /// The machine takes over a snapshot.
    Install(GroupId, LogPosition, Box<dyn SnapshotReader + Send>),
}

impl<O> Work<O> {
    fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.bytes,
            Self::TakeSnapshot(..) | Self::Install(..) => 0,
        }
    }
}

/// What the shard has to hear of, each said once: a group that fails over and over leaves room for others.
#[derive(Debug, Default)]
struct FencedGroups {
    known: BTreeSet<GroupId>,
    waiting: Vec<Fenced>,
    /// The applier itself has panicked, with this text, and applies nothing more.
    died: Option<String>,
}

/// What the shard hears of the applier.
#[derive(Debug)]
pub(crate) enum ApplyNews {
    /// The machine of a group has failed.
    Fenced(Fenced),
    /// The applier has panicked: no machine is applied any more.
    Died(String),
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
        if self.is_full() {
            self.shard_waits.store(true, Ordering::SeqCst);
            if self.is_full() {
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

    /// Whether there is room for no further batch. What snapshots need always has some: one is taken and one
    /// installed at a time, a group.
    fn is_full(&self) -> bool {
        self.work.len() >= BATCHES_MAX
    }

    /// Hands work over. For a batch the caller has asked for room.
    pub(crate) fn push(&self, work: Work<O>) {
        self.bytes.fetch_add(work.bytes(), Ordering::SeqCst);
        if self.work.push(work).is_err() {
            unreachable!("the only producer has seen room");
        }
        if self.ended.load(Ordering::SeqCst) {
            self.drop_batches();
        }
        self.unparker.unpark();
    }

    /// Nobody will apply these any more. Dropping them answers whoever waits.
    fn drop_batches(&self) {
        while let Some(work) = self.work.pop() {
            self.bytes.fetch_sub(work.bytes(), Ordering::SeqCst);
        }
    }

    pub(crate) fn fence(&self, fenced: Fenced) {
        let mut groups = self.fenced_groups();
        if !groups.known.insert(fenced.group) {
            return;
        }
        groups.waiting.push(fenced);
        drop(groups);
        self.fenced_waits.store(true, Ordering::SeqCst);
        self.shard.wake_by_ref();
    }

    fn die(&self, text: String) {
        self.fenced_groups().died = Some(text);
        self.ended.store(true, Ordering::SeqCst);
        self.drop_batches();
        self.fenced_waits.store(true, Ordering::SeqCst);
        self.shard.wake_by_ref();
    }

    fn fenced_groups(&self) -> MutexGuard<'_, FencedGroups> {
        self.fenced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in the queue and its bound.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.bytes_max)
    }

    /// What has gone wrong since the last call.
    pub(crate) fn take_news(&self) -> Vec<ApplyNews> {
        if !self.fenced_waits.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        let mut groups = self.fenced_groups();
        let fenced = groups.waiting.drain(..).map(ApplyNews::Fenced);
        let mut news: Vec<ApplyNews> = fenced.collect();
        news.extend(groups.died.take().map(ApplyNews::Died));
        news
    }

    /// How far the machine of a group is.
    pub(crate) fn applied(&self, group: GroupId) -> u64 {
        self.applied
            .get(&group)
            .map_or(0, |applied| applied.load(Ordering::Acquire))
    }

    /// The machine of a group has come so far.
    pub(crate) fn show_applied(&self, group: GroupId, applied: LogPosition) {
        if let Some(shown) = self.applied.get(&group) {
            shown.store(applied.index.0, Ordering::Release);
        }
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

/// The machines of a shard, each behind a lock of its own: one takes over a snapshot, which may take seconds, and the
/// others apply. Nobody waits for such a lock: a group whose machine takes over a snapshot is handed nothing.
pub(crate) struct Appliers<S: StateMachine>(BTreeMap<GroupId, Mutex<Applier<S>>>);

impl<S: StateMachine> Appliers<S> {
    pub(crate) fn of(&self, group: GroupId) -> MutexGuard<'_, Applier<S>> {
        let applier = self.0.get(&group);
        let applier = applier.expect("machines open before their groups");
        applier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machines of a shard, before it is known where they run.
pub(crate) struct Machines<S: StateMachine> {
    appliers: Arc<Appliers<S>>,
    queue: Arc<ApplyQueue<S::Output>>,
    snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    parker: Parker,
    metrics: Arc<Metrics>,
}

/// Applies on the thread of whoever owns it.
pub(crate) struct Inline<S: StateMachine> {
    machines: Machines<S>,
}

impl<S: StateMachine> Machines<S> {
    pub(crate) fn new(
        appliers: BTreeMap<GroupId, Applier<S>>,
        bytes_max: usize,
        shard: Waker,
        snapshots: Arc<SnapshotQueue<S::Snapshot>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let parker = Parker::new();
        let at = |group: GroupId, applier: &Applier<S>| {
            let applied = applier.applied(group);
            AtomicU64::new(applied.map_or(0, |applied| applied.index.0))
        };
        let applied = appliers
            .iter()
            .map(|(group, applier)| (*group, at(*group, applier)))
            .collect();
        let queue = Arc::new(ApplyQueue {
            work: ArrayQueue::new(BATCHES_MAX + 1 + appliers.len()),
            bytes: AtomicUsize::new(0),
            bytes_max,
            shard_waits: AtomicBool::new(false),
            shard,
            fenced: Mutex::default(),
            fenced_waits: AtomicBool::new(false),
            applied,
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            unparker: parker.unparker().clone(),
        });
        let appliers = appliers.into_iter();
        let appliers = appliers.map(|(group, applier)| (group, Mutex::new(applier)));
        Self {
            appliers: Arc::new(Appliers(appliers.collect())),
            queue,
            snapshots,
            parker,
            metrics,
        }
    }

    /// What gives these machines the snapshots that they take over.
    pub(crate) fn installer(&self, bytes_per_s: u64) -> Installer<S> {
        Installer {
            appliers: Arc::clone(&self.appliers),
            queue: Arc::clone(&self.queue),
            snapshots: Arc::clone(&self.snapshots),
            pace: pace_of(&self.snapshots, bytes_per_s),
        }
    }

    pub(crate) fn queue(&self) -> &Arc<ApplyQueue<S::Output>> {
        &self.queue
    }

    /// Applies on a thread of its own.
    pub(crate) fn on_thread(self, name: &str) -> Result<JoinHandle<()>, StartError> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let queue = Arc::clone(&self.queue);
                // The host process never goes down with us. What is queued is answered by being dropped.
                if let Err(panic) = Fatal::catch(|| self.run()) {
                    queue.die(panic.what);
                }
            })
            .map_err(StartError::Thread)
    }

    /// Applies wherever it is called.
    pub(crate) fn inline(self) -> Inline<S> {
        Inline { machines: self }
    }

    fn run(self) {
        loop {
            let Some(work) = self.queue.work.pop() else {
                if self.queue.closed.load(Ordering::SeqCst) && self.queue.work.is_empty() {
                    return;
                }
                self.parker.park();
                continue;
            };
            let bytes = work.bytes();
            self.work(work);
            self.queue.bytes.fetch_sub(bytes, Ordering::SeqCst);
            if self.queue.shard_waits.swap(false, Ordering::SeqCst) {
                self.queue.shard.wake_by_ref();
            }
        }
    }

    fn work(&self, work: Work<S::Output>) {
        match work {
            Work::Batch(batch) => self.apply(batch),
            Work::TakeSnapshot(group, anchor) => self.take_snapshot(group, anchor),
            // Everything before is applied.
            Work::Install(group, at, reader) => {
                self.snapshots.install(Install { group, at, reader });
            }
        }
    }

    fn take_snapshot(&self, group: GroupId, anchor: Anchor) {
        let started = Instant::now();
        let taken = self.appliers.of(group).take_snapshot(group, anchor.at);
        self.metrics.snapshot_handle(started.elapsed());
        match taken {
            Ok((source, durable)) => self.snapshots.write(Handle {
                group,
                anchor,
                durable,
                source,
            }),
            Err(why) => self.snapshots.tell(MachineEvent::NotTaken { group, why }),
        }
    }

    fn apply(&self, batch: ApplyBatch<S::Output>) {
        let group = batch.group;
        let started = Instant::now();
        let proposals: u64 = batch
            .entries
            .iter()
            .map(|(entry, _)| u64::from(entry.header().count))
            .sum();
        // A snapshot that is asked for by whoever has an answer covers what was answered.
        let show = |at: LogPosition| self.queue.show_applied(group, at);
        let applied = self.appliers.of(group).apply_showing(batch, show);
        if let Err(fenced) = applied {
            self.queue.fence(fenced);
        }
        self.metrics.applied(proposals, started.elapsed());
    }
}

impl<S: StateMachine> Inline<S> {
    pub(crate) fn work(&self, work: Work<S::Output>) {
        self.machines.work(work);
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Drain;

    use logdrive_raft::{Chain, EntryBuilder, Index, Term};
    use logdrive_shard::{Batch, Door, Durable, Failure, Inbox, ReplySink, SnapshotReader};

    use super::*;

    struct Failing;

    impl StateMachine for Failing {
        type Output = ();
        type Reader = ();
        type Snapshot = Vec<u8>;

        fn open(&mut self) -> Result<Durable, Fatal> {
            Ok(Durable::default())
        }

        fn apply(&mut self, _: Batch<'_>, _: &mut Vec<()>) -> Result<(), Fatal> {
            Err(Fatal::new("as always"))
        }

        fn reader(&self) {}

        fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
            Ok(Vec::new())
        }

        fn install(&mut self, _: &mut dyn SnapshotReader) -> Result<(), Fatal> {
            Ok(())
        }
    }

    /// Counts those who were told that there will be no answer.
    #[derive(Default)]
    struct Told(AtomicU64);

    impl ReplySink<()> for Told {
        fn applied(&self, _: u64, _: u32, _: LogPosition, _: u32, _: Drain<'_, ()>) {}

        fn failed(&self, _: u64, _: u32, _: u32, _: Failure) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn batch(group: u64, index: u64, told: &Arc<Told>) -> ApplyBatch<()> {
        let mut builder = EntryBuilder::with_room(1, 1);
        builder.push(b"x");
        let group = GroupId(group);
        let entry = builder
            .finish()
            .seal(group, Term(1), Index(index), Chain(0));
        let inbox = Inbox::new(1 << 10, 1 << 10, Waker::noop().clone());
        inbox.set_door(Door::Open);
        let sink: Arc<dyn ReplySink<()>> = told.clone();
        inbox.submit(&["x"], &sink, 0).unwrap();
        ApplyBatch {
            group,
            bytes: entry.frame().len(),
            entries: vec![(entry, inbox.take().unwrap().runs)],
            appended: None,
        }
    }

    fn machines() -> Machines<Failing> {
        let open = |group: u64| {
            let mut applier = Applier::default();
            applier.open(GroupId(group), Failing).unwrap();
            (GroupId(group), applier)
        };
        let appliers = [1, 2].map(open).into_iter().collect();
        let metrics = Arc::new(Metrics::new());
        let waker = Waker::noop().clone();
        let snapshots = SnapshotQueue::new(waker.clone());
        Machines::new(appliers, 1 << 20, waker, snapshots, metrics)
    }

    #[test]
    fn a_group_that_fails_over_and_over_leaves_room_for_the_fence_of_another() {
        let (machines, told) = (machines().inline(), Arc::default());
        for index in 1..10 {
            machines.work(Work::Batch(batch(1, index, &told)));
        }
        machines.work(Work::Batch(batch(2, 1, &told)));
        let news = machines.machines.queue.take_news();
        let fenced = |news: &ApplyNews| match news {
            ApplyNews::Fenced(fenced) => fenced.group.0,
            ApplyNews::Died(text) => panic!("{text}"),
        };
        assert_eq!(news.iter().map(fenced).collect::<Vec<u64>>(), [1, 2]);
        assert_eq!(told.0.load(Ordering::SeqCst), 10);
    }

    #[test]
    fn a_panic_of_the_applier_itself_answers_everybody_and_is_told() {
        let machines = machines();
        let (queue, told) = (Arc::clone(machines.queue()), Arc::default());
        // A group that has no machine: our own invariant.
        queue.push(Work::Batch(batch(7, 1, &told)));
        queue.push(Work::Batch(batch(1, 1, &told)));
        machines.on_thread("apply-test").unwrap().join().unwrap();
        queue.push(Work::Batch(batch(2, 1, &told)));
        assert_eq!(told.0.load(Ordering::SeqCst), 3);
        let news = queue.take_news();
        let [ApplyNews::Died(text)] = &news[..] else {
            panic!("{news:?}");
        };
        assert!(text.contains("machines open before"), "{text}");
        assert!(queue.take_news().is_empty());
    }
}
