//! The thread of a shard: QUIC lanes and the turn on one tokio runtime, and the log's ring under it.
//!
//! Between the wire, consensus and the disk there is no hop. Nothing on this thread blocks once it runs.

use std::collections::BTreeMap;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logdrive_raft::io::Config;
use logdrive_raft::message::{Body, Transfer};
use logdrive_raft::{Anchor, ClusterId, GroupId, LogPosition, Message, NodeId};
use logdrive_shard::{
    Applier, ApplyBatch, Door, Fatal, GroupSetup, Inbox, Notice, Opened, PeerInput, Ports, Shard,
    SnapshotReader, SnapshotSettings, StateMachine, StoreFailure, StoreJob,
};
use logdrive_wal::disk::{Disk, WakeBy};
use logdrive_wal::snapshots::{DirectoryFiles, SnapshotStore, unpaced};

use tokio::task::LocalSet;

use crate::ahead::read_ahead;
use crate::apply::{ApplyNews, ApplyOn, ApplyQueue, Inline, Machines, Work};
use crate::clock::Clock;
use crate::error::StartError;
use crate::links::Links;
use crate::memory::ThreadBytes;
use crate::metrics::Metrics;
use crate::notices;
use crate::settings::Limits;
use crate::shared::{Command, Shared};
use crate::snapshots::{self, SnapshotQueue};

/// Status is published at most this often, and at least this long after something moved.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);

/// Everything the thread needs to start.
pub(crate) struct Setup<S: StateMachine> {
    pub(crate) disk: Box<dyn FnOnce() -> Result<Box<dyn Disk>, StartError> + Send>,
    pub(crate) wal: logdrive_wal::Options,
    pub(crate) wal_path: std::path::PathBuf,
    pub(crate) snapshots_path: std::path::PathBuf,
    pub(crate) snapshots: SnapshotSettings,
    pub(crate) cluster: ClusterId,
    pub(crate) groups: Vec<GroupId>,
    pub(crate) members: Vec<(NodeId, String)>,
    pub(crate) machines: Box<dyn FnMut(GroupId) -> S + Send>,
    pub(crate) core: Config,
    pub(crate) limits: Limits,
    pub(crate) apply_on: ApplyOn,
    pub(crate) net: crate::links::LinksSetup<S>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
}

/// What the thread says once it runs.
pub(crate) struct Running<S: StateMachine> {
    pub(crate) groups: BTreeMap<GroupId, (Inbox<S::Output>, S::Reader)>,
    pub(crate) apply: Arc<ApplyQueue<S::Output>>,
    pub(crate) snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    pub(crate) threads: Vec<JoinHandle<()>>,
    pub(crate) replica: logdrive_raft::Replica,
    pub(crate) boot: logdrive_raft::Boot,
    pub(crate) peer_address: Option<std::net::SocketAddr>,
    pub(crate) client_address: Option<std::net::SocketAddr>,
}

pub(crate) type Started<S> = Result<Running<S>, StartError>;

/// Starts the thread. What it says once it runs, or why it does not, comes through `started`.
pub(crate) fn spawn<S: StateMachine>(
    name: &str,
    setup: Setup<S>,
    started: SyncSender<Started<S>>,
) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let shared = Arc::clone(&setup.shared);
            // The host process never goes down with us. Dropping the shard answers whoever waits.
            let outcome = catch_unwind(AssertUnwindSafe(|| run(setup, &started)));
            if let Err(panic) = outcome {
                notices::panicked(&shared, panic.as_ref());
            }
            shared.end();
        })
        .map_err(StartError::Thread)
}

fn run<S: StateMachine>(setup: Setup<S>, started: &SyncSender<Started<S>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            // Whoever started us may be gone; then nobody wants to know.
            drop(started.send(Err(StartError::Thread(error))));
            return;
        }
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        match Driver::start(setup).await {
            Ok((driver, running)) => {
                let doors = Doors::of(&running, &driver.snapshots);
                drop(started.send(Ok(running)));
                driver.run().await;
                drop(doors);
            }
            Err(error) => drop(started.send(Err(error))),
        }
    });
}

/// Shuts the doors when the thread ends, however it ends, and lets the applier finish.
struct Doors<S: StateMachine> {
    inboxes: Vec<Inbox<S::Output>>,
    apply: Arc<ApplyQueue<S::Output>>,
    snapshots: Arc<SnapshotQueue<S::Snapshot>>,
}

impl<S: StateMachine> Doors<S> {
    fn of(running: &Running<S>, snapshots: &Arc<SnapshotQueue<S::Snapshot>>) -> Self {
        let inboxes = running
            .groups
            .values()
            .map(|(inbox, _)| inbox.clone())
            .collect();
        Self {
            inboxes,
            apply: Arc::clone(&running.apply),
            snapshots: Arc::clone(snapshots),
        }
    }
}

impl<S: StateMachine> Drop for Doors<S> {
    fn drop(&mut self) {
        let door = if std::thread::panicking() {
            Door::Halted
        } else {
            Door::ShuttingDown
        };
        for inbox in &self.inboxes {
            inbox.set_door(door);
        }
        self.apply.close();
        self.snapshots.close();
    }
}

struct Driver<S: StateMachine> {
    shard: Shard<Box<dyn Disk>, EnginePorts<S>>,
    links: Rc<Links<S::Output>>,
    apply: Arc<ApplyQueue<S::Output>>,
    snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Awaits the disk and wakes the turn; ends with the driver.
    disk_task: Option<tokio::task::JoinHandle<()>>,
    published: Instant,
    dirty: bool,
}

impl<S: StateMachine> Driver<S> {
    async fn start(mut setup: Setup<S>) -> Result<(Self, Running<S>), StartError> {
        let disk = (setup.disk)()?;
        let frame_bytes_max = setup.wal.frame_bytes_max;
        let opened = Opened::open(disk, setup.wal).map_err(|source| StartError::Log {
            path: setup.wal_path.clone(),
            source: Box::new(source),
        })?;
        let (replica, boot) = (opened.replica(), opened.boot());
        let store = DirectoryFiles::open(&setup.snapshots_path)
            .map_err(|error| StoreFailure::Other(error.to_string()))
            .and_then(|files| Ok(SnapshotStore::open(files)?))
            .map_err(|why| StartError::Snapshots {
                path: setup.snapshots_path.clone(),
                why: why.to_string(),
            })?;

        let mut ids: Vec<GroupId> = opened.groups().chain(setup.groups).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut appliers = BTreeMap::new();
        let mut setups = Vec::new();
        let mut groups = BTreeMap::new();
        for group in &ids {
            let failed = |fatal: Fatal| StartError::Machine {
                group: *group,
                what: fatal.what,
            };
            let machine = Fatal::catch(|| (setup.machines)(*group)).map_err(failed)?;
            let mut applier = Applier::default();
            applier.open(*group, machine).map_err(failed)?;
            let prepared = opened.prepare(&mut applier, &store, *group, |applier, at, reader| {
                // Nothing else of this node runs yet.
                read_ahead(reader, &mut unpaced, |reader| {
                    applier.restore(*group, at, reader)
                })
            });
            let prepared = prepared.map_err(|why| StartError::Snapshots {
                path: setup.snapshots_path.clone(),
                why,
            })?;
            for (snapshot, why) in &prepared.unreadable {
                notices::snapshot_unreadable(&setup.shared, *group, *snapshot, why);
            }
            let reader = applier.reader(*group).map_err(failed)?;
            appliers.insert(*group, applier);
            let inbox = Inbox::new(
                setup.limits.proposals_bytes_max,
                frame_bytes_max,
                setup.shared.waker(),
            );
            groups.insert(*group, (inbox.clone(), reader));
            let voters = setup.members.clone();
            setups.push(GroupSetup {
                group: *group,
                inbox,
                voters,
                applied: prepared.applied,
                newest: prepared.newest,
            });
        }

        let links = Rc::new(
            setup
                .net
                .start(replica, boot, &groups, &setup.limits)
                .await?,
        );
        let snapshots = SnapshotQueue::new(setup.shared.waker());
        let machines = Machines::new(
            appliers,
            setup.limits.apply_bytes_max,
            setup.shared.waker(),
            Arc::clone(&snapshots),
            Arc::clone(&setup.metrics),
        );
        let apply = Arc::clone(machines.queue());
        let rate = setup.snapshots.write_bytes_per_s;
        let mut ending = Ending::<S> {
            apply: Arc::clone(&apply),
            snapshots: Arc::clone(&snapshots),
            threads: snapshots::spawn(&store, setup.cluster, replica, rate, &snapshots)?,
        };
        let installer = machines.installer(rate);
        let name = format!("logdrive-{}-install", replica.id);
        let install = snapshots::start(name, &snapshots, move || installer.run())?;
        ending.threads.push(install);
        let inline = match setup.apply_on {
            ApplyOn::Thread => {
                let name = format!("logdrive-{}-apply", replica.id);
                ending.threads.push(machines.on_thread(&name)?);
                None
            }
            ApplyOn::ShardThread => Some(machines.inline()),
        };
        let ports = EnginePorts {
            links: Rc::clone(&links),
            apply: Arc::clone(&apply),
            snapshots: Arc::clone(&snapshots),
            inline,
            shared: Arc::clone(&setup.shared),
            metrics: Arc::clone(&setup.metrics),
            clock: setup.clock,
        };
        let now = setup.clock.now();
        let shard = opened.start(setups, setup.core, setup.snapshots, ports, now)?;
        setup
            .shared
            .publish(shard.status(), links.status(), links.memory());
        let mut driver = Self {
            shard,
            links,
            apply: Arc::clone(&apply),
            snapshots,
            shared: setup.shared,
            metrics: setup.metrics,
            clock: setup.clock,
            disk_task: None,
            published: Instant::now(),
            dirty: true,
        };
        driver.listen_to_disk()?;
        let running = Running {
            groups,
            apply,
            snapshots: Arc::clone(&driver.snapshots),
            threads: ending.pass_on(),
            replica,
            boot,
            peer_address: driver.links.peer_address(),
            client_address: driver.links.client_address(),
        };
        Ok((driver, running))
    }

    /// Has the disk's completions wake the turn.
    fn listen_to_disk(&mut self) -> Result<(), StartError> {
        let waker = self.shared.waker();
        let wake = waker.clone();
        match self
            .shard
            .disk_mut()
            .wake_by(Arc::new(move || wake.wake_by_ref()))
        {
            #[cfg(unix)]
            WakeBy::EventFd(fd) => {
                let interest = tokio::io::Interest::READABLE;
                #[expect(
                    deprecated,
                    reason = "a File keeps its descriptor open for as long as it is registered; the \
                              successor has the caller vouch for that"
                )]
                let file =
                    tokio::io::unix::AsyncFd::with_interest(std::fs::File::from(fd), interest)
                        .map_err(StartError::Thread)?;
                self.disk_task = Some(tokio::task::spawn_local(async move {
                    while let Ok(mut ready) = file.readable().await {
                        let mut count = [0; 8];
                        if ready.try_io(|file| file.get_ref().read(&mut count)).is_ok() {
                            waker.wake_by_ref();
                        }
                    }
                }));
            }
            _ => {}
        }
        Ok(())
    }

    async fn run(mut self) {
        let mut inputs: Vec<PeerInput> = Vec::new();
        let mut ending: Option<Instant> = None;
        let notifier = Arc::clone(&self.shared.notify);
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            if let Some(Command::Shutdown { drain }) = self.shared.take_command() {
                self.shard.shut_doors();
                ending = Some(Instant::now() + drain);
            }
            for news in self.apply.take_news() {
                match news {
                    ApplyNews::Fenced(fenced) => {
                        notices::fenced(&self.shared, &fenced);
                        self.shard.fence(fenced.group, fenced.to_string());
                    }
                    ApplyNews::Died(text) => {
                        notices::apply_died(&self.shared, &text);
                        self.shard.fence_all(&format!("the apply thread {text}"));
                    }
                }
                self.dirty = true;
            }
            self.links.poll(&mut inputs, || {
                // Who asks over the network gets what is, not what was published a moment ago.
                self.shared.publish(
                    self.shard.status(),
                    self.links.status(),
                    self.links.memory(),
                );
                let applied = |group| self.apply.applied(group);
                let now = self.clock.now();
                self.shared
                    .status(applied, thread_bytes(&self.apply, &self.snapshots), now)
            });
            let now = self.clock.now();
            let (store_events, machine_events) = self.snapshots.take_events();
            for event in store_events {
                self.shard.store_event(now, event);
            }
            for event in machine_events {
                self.shard.machine_event(event, now);
            }
            if let Some(text) = self.snapshots.take_death() {
                notices::snapshots_died(&self.shared, &text);
                self.dirty = true;
            }
            for group in self.shared.take_wanted_snapshots() {
                self.shard.want_snapshot(group);
            }
            self.shard.turn(now, &mut inputs);
            // What the shard has stepped is in the log's queue now; only what has left that queue makes
            // room for more.
            self.links.release(self.shard.wal().queued_bytes());
            self.metrics.turn();
            self.publish();
            if ending.is_some_and(|at| !self.shard.has_tickets() || Instant::now() >= at) {
                break;
            }
            let mut wake_at = self.shard.next_deadline().map(|at| self.clock.instant(at));
            if self.dirty {
                wake_at = earlier(wake_at, self.published + PUBLISH_EVERY);
            }
            if let Some(at) = ending {
                wake_at = earlier(wake_at, at);
            }
            match wake_at {
                Some(at) => {
                    sleep.as_mut().reset(at.into());
                    tokio::select! {
                        biased;
                        () = notifier.notify.notified() => {}
                        () = &mut sleep => {}
                    }
                }
                None => notifier.notify.notified().await,
            }
        }
        self.end().await;
    }

    fn publish(&mut self) {
        self.dirty = true;
        if self.published.elapsed() < PUBLISH_EVERY {
            return;
        }
        self.shared.publish(
            self.shard.status(),
            self.links.status(),
            self.links.memory(),
        );
        self.published = Instant::now();
        self.dirty = false;
    }

    async fn end(self) {
        if let Some(task) = self.disk_task {
            task.abort();
        }
        let Self {
            shard,
            links,
            shared,
            ..
        } = self;
        if let Err(reason) = shard.close() {
            tracing::error!(
                event = "log_failed",
                node = shared.node,
                code = "log_failed",
                "the log did not close in order: {reason}"
            );
        }
        // The shard's ports held the other handle.
        if let Some(links) = Rc::into_inner(links) {
            links.shutdown().await;
        }
    }
}

/// What waits for the threads beside this one.
pub(crate) fn thread_bytes<O, H>(
    apply: &ApplyQueue<O>,
    snapshots: &SnapshotQueue<H>,
) -> ThreadBytes {
    let (apply, apply_max) = apply.bytes();
    let snapshots = snapshots.bytes();
    ThreadBytes {
        apply,
        apply_max,
        snapshots,
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// The threads beside this one until the node runs: whatever fails before ends them, and waits for them.
struct Ending<S: StateMachine> {
    apply: Arc<ApplyQueue<S::Output>>,
    snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: StateMachine> Ending<S> {
    /// From now on the doors end them, and the node waits for them.
    fn pass_on(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.threads)
    }
}

impl<S: StateMachine> Drop for Ending<S> {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        self.apply.close();
        self.snapshots.close();
        for thread in self.threads.drain(..) {
            // It has told what it panicked with, if it has.
            drop(thread.join());
        }
    }
}

struct EnginePorts<S: StateMachine> {
    links: Rc<Links<S::Output>>,
    apply: Arc<ApplyQueue<S::Output>>,
    snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    /// The machines themselves, if they run on this thread.
    inline: Option<Inline<S>>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl<S: StateMachine> EnginePorts<S> {
    fn hand_over(&mut self, work: Work<S::Output>) {
        match &self.inline {
            Some(machines) => machines.work(work),
            None => self.apply.push(work),
        }
    }
}

impl<S: StateMachine> Ports for EnginePorts<S> {
    type Output = S::Output;

    fn send(&mut self, message: Message) {
        if let Body::Transfer(Transfer::Part { bytes, .. }) = &message.body {
            self.metrics.snapshot_part_sent(bytes.len());
        }
        self.links.send(message);
    }

    fn apply_room_bytes(&self) -> usize {
        self.apply.room_bytes()
    }

    fn apply(&mut self, batch: ApplyBatch<S::Output>) {
        if let Some(appended) = batch.appended {
            self.metrics.committed(self.clock.now().since(appended));
        }
        self.hand_over(Work::Batch(batch));
    }

    fn take_snapshot(&mut self, group: GroupId, anchor: Anchor) {
        self.hand_over(Work::TakeSnapshot(group, anchor));
    }

    fn store(&mut self, job: StoreJob) {
        self.snapshots.push(job);
    }

    fn install(&mut self, group: GroupId, at: LogPosition, reader: Box<dyn SnapshotReader + Send>) {
        self.hand_over(Work::Install(group, at, reader));
    }

    fn notice(&mut self, notice: Notice) {
        match &notice {
            Notice::Role { .. } => self.metrics.leader_change(),
            Notice::SnapshotTaken { .. } => self.metrics.snapshot_taken(),
            Notice::SnapshotFailed { .. } => self.metrics.snapshot_failed(),
            Notice::SnapshotInstalled { .. } => self.metrics.snapshot_installed(),
            Notice::Repaired { entries, .. } => self.metrics.repaired(*entries),
            _ => {}
        }
        notices::carry(&self.shared, notice);
    }
}
