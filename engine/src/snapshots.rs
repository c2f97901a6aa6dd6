//! The threads that write, receive and read snapshots. Everything here blocks, and nothing waits for it.
//!
//! Two threads a shard: one writes what machines hand over, the other receives and reads for peers, so that a
//! follower is served while this node writes a snapshot of its own. Both are paced. How much waits is bounded by
//! whoever asks: one snapshot is taken at a time, and of parts that are fetched or sent there are a few.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logdrive_raft::{Anchor, ClusterId, GroupId, LogPosition, Replica};
use logdrive_shard::store::PaceMaker;
use logdrive_shard::{Fatal, MachineEvent, SnapshotSource, StoreEvent, StoreJob, Storekeeper};
use logdrive_wal::snapshots::{DirectoryFiles, SnapshotStore};

use crate::error::StartError;

/// What a machine handed over to be written out.
pub(crate) struct Handle<H> {
    pub(crate) group: GroupId,
    pub(crate) anchor: Anchor,
    pub(crate) durable: Option<LogPosition>,
    pub(crate) source: H,
}

/// What the shard, the applier and the snapshot threads share.
pub(crate) struct SnapshotQueue<H> {
    state: Mutex<State<H>>,
    changed: Condvar,
    /// Bytes of jobs that wait.
    bytes: AtomicUsize,
    closed: AtomicBool,
    shard: Waker,
}

struct State<H> {
    handles: VecDeque<Handle<H>>,
    jobs: VecDeque<StoreJob>,
    store_events: Vec<StoreEvent>,
    machine_events: Vec<MachineEvent>,
}

impl<H> std::fmt::Debug for SnapshotQueue<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotQueue({} bytes)", self.bytes())
    }
}

impl<H> SnapshotQueue<H> {
    pub(crate) fn new(shard: Waker) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                handles: VecDeque::new(),
                jobs: VecDeque::new(),
                store_events: Vec::new(),
                machine_events: Vec::new(),
            }),
            changed: Condvar::new(),
            bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            shard,
        })
    }

    /// Has a machine's state written out.
    pub(crate) fn write(&self, handle: Handle<H>) {
        self.state().handles.push_back(handle);
        self.changed.notify_all();
    }

    /// Has a job done.
    pub(crate) fn push(&self, job: StoreJob) {
        self.bytes.fetch_add(job.cost_bytes(), Ordering::Relaxed);
        self.state().jobs.push_back(job);
        self.changed.notify_all();
    }

    /// A machine has something to tell the shard.
    pub(crate) fn tell(&self, event: MachineEvent) {
        self.state().machine_events.push(event);
        self.shard.wake_by_ref();
    }

    /// What has happened since the last call.
    pub(crate) fn take_events(&self) -> (Vec<StoreEvent>, Vec<MachineEvent>) {
        let mut state = self.state();
        let store = std::mem::take(&mut state.store_events);
        (store, std::mem::take(&mut state.machine_events))
    }

    /// Bytes of jobs that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Nothing more will be asked: the threads end, and give up what they are at.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        drop(self.state());
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn done(&self, event: Option<StoreEvent>) {
        let Some(event) = event else {
            return;
        };
        self.state().store_events.push(event);
        self.shard.wake_by_ref();
    }

    /// Waits for something, or for the end.
    fn wait<T>(&self, take: impl Fn(&mut State<H>) -> Option<T>) -> Option<T> {
        let mut state = self.state();
        loop {
            if self.is_closed() {
                return None;
            }
            if let Some(taken) = take(&mut state) {
                return Some(taken);
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits so long, or for the end. Says whether to go on.
    fn pause(&self, time: Duration) -> ControlFlow<()> {
        let until = Instant::now() + time;
        let mut state = self.state();
        loop {
            if self.is_closed() {
                return ControlFlow::Break(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State<H>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts both threads.
pub(crate) fn spawn<H: SnapshotSource>(
    store: &SnapshotStore<DirectoryFiles>,
    cluster: ClusterId,
    replica: Replica,
    bytes_per_s: u64,
    queue: &Arc<SnapshotQueue<H>>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let keeper = |bytes_per_s| {
        let pace = pace_of(queue, bytes_per_s);
        Storekeeper::new(store.clone(), cluster, replica, pace)
    };
    let mut writer = keeper(bytes_per_s);
    let mut carrier = keeper(u64::MAX);
    let (write_from, carry_from) = (Arc::clone(queue), Arc::clone(queue));
    let threads: [(&str, Box<dyn FnOnce() + Send>); 2] = [
        (
            "snapshot",
            Box::new(move || {
                let next = |state: &mut State<H>| state.handles.pop_front();
                while let Some(handle) = write_from.wait(next) {
                    let Handle {
                        group,
                        anchor,
                        durable,
                        source,
                    } = handle;
                    let event = writer.write(group, anchor, durable, source);
                    write_from.done(Some(event));
                }
            }),
        ),
        (
            "transfer",
            Box::new(move || {
                let next = |state: &mut State<H>| state.jobs.pop_front();
                while let Some(job) = carry_from.wait(next) {
                    let bytes = job.cost_bytes();
                    let event = carrier.run(job);
                    carry_from.bytes.fetch_sub(bytes, Ordering::Relaxed);
                    carry_from.done(event);
                }
            }),
        ),
    ];
    let mut started = Vec::new();
    for (name, run) in threads {
        let name = format!("logdrive-{}-{name}", replica.id);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            // The host process never goes down with us.
            if let Err(panic) = Fatal::catch(run) {
                tracing::error!(
                    event = "panicked",
                    code = "panicked",
                    "the thread {name} {}: no more snapshots are taken or sent by this process, and nothing \
                     else is touched; restart the node",
                    panic.what
                );
            }
        });
        match thread {
            Ok(thread) => started.push(thread),
            Err(error) => {
                queue.close();
                return Err(StartError::Thread(error));
            }
        }
    }
    Ok(started)
}

/// No faster than so many bytes a second, and not beyond the end.
fn pace_of<H: Send + 'static>(queue: &Arc<SnapshotQueue<H>>, bytes_per_s: u64) -> PaceMaker {
    let queue = Arc::clone(queue);
    Box::new(move || {
        let queue = Arc::clone(&queue);
        let mut due = Instant::now();
        Box::new(move |bytes| {
            let now = Instant::now();
            let nanos = (bytes as u128 * 1_000_000_000) / u128::from(bytes_per_s.max(1));
            let share = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            // What was missed while the disk was slow is not made up for at once.
            due = due.max(now.checked_sub(share).unwrap_or(now)) + share;
            queue.pause(due.saturating_duration_since(now))
        })
    })
}
