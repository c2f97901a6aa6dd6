//! The threads that write, receive and read snapshots. Everything here blocks, and nothing waits for it.
//!
//! Two threads a shard are here: one writes what machines hand over, the other receives and reads for peers, so that a
//! follower is served while this node writes a snapshot of its own. Both are paced. A third gives machines what they
//! take over (`install.rs`), and has a fourth read it meanwhile (`ahead.rs`). How much waits is bounded by whoever asks:
//! one snapshot is taken at a time, and of parts that are fetched or sent there are a few.

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
use crate::install::Install;

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
    installs: VecDeque<Install>,
    store_events: Vec<StoreEvent>,
    machine_events: Vec<MachineEvent>,
    died: Option<String>,
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
                installs: VecDeque::new(),
                store_events: Vec::new(),
                machine_events: Vec::new(),
                died: None,
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
        if self.is_closed() {
            self.drop_waiting();
        }
    }

    /// Has a job done.
    pub(crate) fn push(&self, job: StoreJob) {
        self.bytes.fetch_add(job.cost_bytes(), Ordering::Relaxed);
        self.state().jobs.push_back(job);
        self.changed.notify_all();
    }

    /// Has a machine take over a snapshot. One for each group at most.
    pub(crate) fn install(&self, install: Install) {
        self.state().installs.push_back(install);
        self.changed.notify_all();
        if self.is_closed() {
            self.drop_waiting();
        }
    }

    /// The next snapshot that a machine takes over, or the end.
    pub(crate) fn next_install(&self) -> Option<Install> {
        self.wait(|state| state.installs.pop_front())
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

    /// Nothing more will be asked: the threads end, and give up what they are at; but a machine takes over all of a
    /// snapshot. What waits is dropped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.drop_waiting();
        self.changed.notify_all();
    }

    /// A handle keeps alive what it shows, such as a file that somebody wants to open again. Dropped outside the lock: it
    /// is the machine's code.
    fn drop_waiting(&self) {
        let mut state = self.state();
        let handles = std::mem::take(&mut state.handles);
        let installs = std::mem::take(&mut state.installs);
        drop(state);
        drop((handles, installs));
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Writes what machines hand over, until the end.
    fn write_all(&self, keeper: &mut Storekeeper<DirectoryFiles>)
    where
        H: SnapshotSource,
    {
        while let Some(handle) = self.wait(|state| state.handles.pop_front()) {
            let Handle {
                group,
                anchor,
                durable,
                source,
            } = handle;
            let event = keeper.write(group, anchor, durable, source);
            self.done(Some(event));
        }
    }

    /// Receives and reads, until the end.
    fn carry_all(&self, keeper: &mut Storekeeper<DirectoryFiles>) {
        while let Some(job) = self.wait(|state| state.jobs.pop_front()) {
            let bytes = job.cost_bytes();
            let event = keeper.run(job);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.done(event);
        }
    }

    /// One of the threads has panicked, with this text.
    fn die(&self, text: String) {
        self.state().died = Some(text);
        self.shard.wake_by_ref();
    }

    /// What one of the threads said when it panicked; once.
    pub(crate) fn take_death(&self) -> Option<String> {
        self.state().died.take()
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

/// Starts the threads that write and carry.
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
    let (mut writer, mut carrier) = (keeper(bytes_per_s), keeper(u64::MAX));
    let (write_from, carry_from) = (Arc::clone(queue), Arc::clone(queue));
    let write = move || write_from.write_all(&mut writer);
    let carry = move || carry_from.carry_all(&mut carrier);
    let named = |name: &str| format!("logdrive-{}-{name}", replica.id);
    let write = start(named("snapshot"), queue, write)?;
    match start(named("transfer"), queue, carry) {
        Ok(carry) => Ok(vec![write, carry]),
        Err(error) => {
            queue.close();
            drop(write.join());
            Err(error)
        }
    }
}

/// Starts a thread that gives way to all others of the node.
pub(crate) fn start<H: Send + 'static>(
    name: String,
    queue: &Arc<SnapshotQueue<H>>,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let queue = Arc::clone(queue);
    let run = move || {
        give_way();
        // The host process never goes down with us.
        if let Err(panic) = Fatal::catch(run) {
            queue.die(panic.what);
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(run);
    thread.map_err(StartError::Thread)
}

/// Whatever else of this node wants a processor gets three times as much of it as the calling thread: so little that
/// it is not noticed, and enough that a snapshot ends before the log is full however busy the machine is.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn give_way() {
    // Here a priority is a thread's. Where it is refused, nothing but latency is lost.
    let _ = rustix::process::setpriority_process(None, 5);
}

/// Elsewhere a priority is a whole process's.
#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn give_way() {}

/// No faster than so many bytes a second, and not beyond the end.
pub(crate) fn pace_of<H: Send + 'static>(
    queue: &Arc<SnapshotQueue<H>>,
    bytes_per_s: u64,
) -> PaceMaker {
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
