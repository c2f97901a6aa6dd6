//! One simulated node: a medium that outlives it, and while it runs a shard and its machines.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use logdrive_raft::io::Config;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{
    Anchor, Boot, ClusterId, GroupId, Incarnation, LogPosition, Message, Micros, NodeId, Raft,
    Replica,
};
use logdrive_shard::store::unpaced;
use logdrive_shard::{
    Applier, ApplyBatch, GroupSetup, Inbox, MachineEvent, NotInstalled, Notice, Opened, PeerInput,
    Ports, Shard, ShardStatus, SnapshotReader, SnapshotSettings, StateMachine, StoreEvent,
    StoreJob, Storekeeper,
};
use logdrive_wal::disk::{FlushMode, WatchdogLimits};
use logdrive_wal::snapshots::SnapshotStore;
use logdrive_wal::{FreshIds, Identity, OpenError, Options, ScrubPace, Wal};

use crate::disk::{Crash, Fault, SimDisk, SimDiskOptions, SimStorage, Tear};
use crate::files::{SimFiles, SimFilesStorage};
use crate::model::Model;
use crate::mortal::{Killed, Mortal};
use crate::plan::{Plan, SnapshotPlan};
use crate::step::Moment;

/// A node, running or not.
pub struct SimNode<M: Model> {
    id: NodeId,
    plan: Plan,
    /// How its disk behaves now.
    disk: SimDiskOptions,
    medium: SimStorage,
    /// Where its snapshots lie.
    files: SimFilesStorage,
    snapshots: SnapshotSettings,
    /// Where it stops within a job of its store: in which, and after how many operations.
    trap: Option<(Moment, u64, Crash)>,
    /// The bug that is planted in it, in builds that hold any.
    mutant: Option<Mutant>,
    running: Option<Running<M::Machine>>,
    inputs: Vec<PeerInput>,
    starts: u64,
    clock: Clock,
    /// Something has come that no deadline knows of.
    poked: bool,
    busy_until: Micros,
    paused_until: Micros,
    /// What its shard and disk wait for; kept, for it changes in a turn alone.
    due: Option<Micros>,
}

impl<M: Model> std::fmt::Debug for SimNode<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimNode({})", self.id)
    }
}

type OutputOf<S> = <S as StateMachine>::Output;
type ReaderOf<S> = <S as StateMachine>::Reader;
type DoorsOf<S> = Vec<(GroupId, Inbox<OutputOf<S>>, ReaderOf<S>)>;

struct Running<S: StateMachine> {
    shard: Shard<Mortal, SimPorts<OutputOf<S>>>,
    applier: Applier<S>,
    doors: DoorsOf<S>,
    /// When the applier is done with the work in front.
    apply_due: Option<Micros>,
    keeper: Storekeeper<SimFiles>,
    writes: VecDeque<Handle<S>>,
    /// When the store is done with the job in front, a snapshot to be written before any other.
    store_due: Option<Micros>,
    store_us: u64,
    machine_events: Vec<MachineEvent>,
    fenced: Option<String>,
}

/// What a machine handed over to be written out.
struct Handle<S: StateMachine> {
    group: GroupId,
    anchor: Anchor,
    durable: Option<LogPosition>,
    source: S::Snapshot,
}

/// Something that the applier has done.
#[derive(Debug)]
pub enum Done<O> {
    /// This batch is to be applied.
    Batch(ApplyBatch<O>),
    /// The machine of a group holds the state of a snapshot.
    Installed(GroupId, LogPosition),
}

/// Something for the applier.
enum Work<O> {
    Batch(ApplyBatch<O>),
    TakeSnapshot(GroupId, Anchor),
    Install(GroupId, LogPosition, Box<dyn SnapshotReader + Send>),
}

/// The way out of a simulated shard: everything is kept until the cluster takes it.
struct SimPorts<O> {
    messages: Vec<Message>,
    work: VecDeque<Work<O>>,
    jobs: VecDeque<StoreJob>,
    bytes: usize,
    bytes_max: usize,
    notices: Vec<Notice>,
}

impl<O: Send + 'static> Ports for SimPorts<O> {
    type Output = O;

    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    fn apply_room_bytes(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    fn apply(&mut self, batch: ApplyBatch<O>) {
        self.bytes += batch.bytes;
        self.work.push_back(Work::Batch(batch));
    }

    fn take_snapshot(&mut self, group: GroupId, anchor: Anchor) {
        self.work.push_back(Work::TakeSnapshot(group, anchor));
    }

    fn store(&mut self, job: StoreJob) {
        self.jobs.push_back(job);
    }

    fn install(&mut self, group: GroupId, at: LogPosition, reader: Box<dyn SnapshotReader + Send>) {
        self.work.push_back(Work::Install(group, at, reader));
    }

    fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

/// A clock that runs at its own rate. What the cores see is monotone and means nothing to anybody else.
#[derive(Clone, Copy, Debug)]
struct Clock {
    ppm: u64,
}

impl Clock {
    fn local(self, now: Micros) -> Micros {
        Micros(now.0 * self.ppm / 1_000_000)
    }

    fn global(self, local: Micros) -> Micros {
        if local.0 >= u64::MAX / 2_000_000 {
            return Micros(u64::MAX);
        }
        Micros((local.0 * 1_000_000).div_ceil(self.ppm))
    }
}

/// How a process came up.
#[derive(Debug)]
pub enum Started {
    /// It runs.
    Running,
    /// It was killed before it did.
    Killed,
    /// It refused, and says why.
    Refused(Refusal),
    /// It hit an assertion.
    Panicked(String),
}

/// Why a turn did not come to its end.
#[derive(Debug)]
pub enum TurnEnded {
    /// The process was killed.
    Killed,
    /// It stopped within a job of its store.
    Stopped(Moment, Crash),
    /// It hit an assertion.
    Panicked(String),
}

/// Why a process did not come up.
#[derive(Debug)]
pub struct Refusal {
    /// Because of what its directory holds, as opposed to what happened while it was opened.
    pub damage: bool,
    /// What it says.
    pub text: String,
}

impl Refusal {
    fn of(damage: bool, error: &dyn std::error::Error) -> Self {
        Self {
            damage,
            text: chain_of(error),
        }
    }

    fn opening(error: &OpenError) -> Self {
        let passing = matches!(
            error,
            OpenError::NoSpace { .. } | OpenError::Disk { .. } | OpenError::Poisoned { .. }
        );
        Self::of(!passing, error)
    }
}

impl<M: Model> SimNode<M> {
    /// A node with this medium, not running.
    pub fn new(id: NodeId, plan: &Plan, medium: SimStorage) -> Self {
        let place = usize::try_from(id.0 - 1).expect("a cluster has few nodes");
        let ppm = plan.node.clock_ppm.get(place).copied();
        Self {
            id,
            plan: plan.clone(),
            disk: disk_options(plan),
            medium,
            files: SimFilesStorage::new(plan.raft_seed ^ id.0.rotate_left(20)),
            snapshots: settings_of(&plan.snapshot),
            trap: None,
            mutant: None,
            running: None,
            inputs: Vec::new(),
            starts: 0,
            clock: Clock {
                ppm: ppm.unwrap_or(1_000_000),
            },
            poked: false,
            busy_until: Micros(0),
            paused_until: Micros(0),
            due: None,
        }
    }

    /// Plants a bug in every process that starts from now on.
    pub fn set_mutant(&mut self, mutant: Option<Mutant>) {
        self.mutant = mutant;
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What its clock says.
    pub fn local(&self, now: Micros) -> Micros {
        self.clock.local(now)
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What outlives the process.
    pub fn medium(&self) -> &SimStorage {
        &self.medium
    }

    /// Its snapshots, which outlive it too.
    pub fn files(&self) -> &SimFilesStorage {
        &self.files
    }

    /// When it takes snapshots and how much log it keeps, from the next start on.
    pub fn snapshot_settings_mut(&mut self) -> &mut SnapshotSettings {
        &mut self.snapshots
    }

    /// Takes a snapshot of a group as soon as can be.
    pub fn want_snapshot(&mut self, group: GroupId) {
        if let Some(running) = &mut self.running {
            running.shard.want_snapshot(group);
            self.poked = true;
        }
    }

    /// Stops it within the next job of this kind, or not any more.
    pub fn set_trap(&mut self, trap: Option<(Moment, u64, Crash)>) {
        self.trap = trap;
        self.files.stop_at(None);
    }

    /// Whether a machine is about to take over a snapshot.
    pub fn is_following(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return false;
        };
        let mut work = running.shard.ports().work.iter();
        work.any(|work| matches!(work, Work::Install(..)))
    }

    /// Opens the log and starts the groups. With `lives_for` the process is killed when it has asked its disk
    /// for so many things.
    pub fn start(&mut self, now: Micros, model: &mut M, lives_for: Option<u64>) -> Started {
        assert!(self.running.is_none());
        self.starts += 1;
        let opened = catch_unwind(AssertUnwindSafe(|| self.open(now, model, lives_for)));
        match opened {
            Ok(Ok(running)) => {
                self.running = Some(running);
                self.poked = true;
                self.busy_until = now;
                self.paused_until = now;
                self.due = None;
                Started::Running
            }
            Ok(Err(refused)) => Started::Refused(refused),
            Err(panic) if panic.is::<Killed>() => Started::Killed,
            Err(panic) => Started::Panicked(text_of(&*panic)),
        }
    }

    fn open(
        &mut self,
        now: Micros,
        model: &mut M,
        lives_for: Option<u64>,
    ) -> Result<Running<M::Machine>, Refusal> {
        let plan = &self.plan;
        let mut disk = SimDisk::new(self.medium.clone(), self.disk.clone());
        disk.advance(now.0);
        let disk = Mortal::new(disk, lives_for);
        let identity = Identity {
            cluster: ClusterId(7),
            node: self.id,
        };
        // A new directory gets new ids: no two of a run are the same.
        let fresh = u128::from(plan.raft_seed) << 32 | u128::from(self.id.0 << 16 | self.starts);
        let fresh = FreshIds {
            incarnation: Incarnation(fresh << 1 | 1),
            log_uuid: fresh << 1 | 1 << 100,
        };
        let options = Options {
            mutant: self.mutant,
            watchdog: WatchdogLimits {
                window: 16,
                bad_windows: 1,
                bad_windows_max: 4,
            },
            scrub: plan.disk.scrubs.then_some(ScrubPace {
                bytes_per_s: 16 << 20,
                every_us: 200_000,
            }),
            ..Options::new(identity, fresh).with_pool(plan.disk.slot_bytes, plan.disk.bytes_max)
        };
        let frame_bytes_max = options.frame_bytes_max;
        let opened = Opened::open(disk, options).map_err(|error| Refusal::opening(&error))?;
        let mut groups: Vec<GroupId> = opened.groups().collect();
        groups.extend((1..=plan.groups).map(GroupId));
        groups.sort_unstable();
        groups.dedup();
        let store = SnapshotStore::open(self.files.files());
        let store = store.map_err(|error| Refusal::of(false, &error))?;
        let store = store.with_mutant(self.mutant);
        let mut applier = Applier::default();
        let mut doors = Vec::new();
        let mut setups = Vec::new();
        for group in groups {
            applier
                .open(group, model.machine(self.id, group))
                .map_err(|error| Refusal::of(true, &error))?;
            let prepared = opened.prepare(&mut applier, &store, group, |applier, at, reader| {
                applier.restore(group, at, reader)
            });
            let prepared = prepared.map_err(|text| Refusal {
                damage: false,
                text,
            })?;
            let reader = applier.reader(group);
            let reader = reader.map_err(|error| Refusal::of(true, &error))?;
            let inbox_bytes = usize_of(plan.node.inbox_bytes_max);
            let waker = std::task::Waker::noop().clone();
            let inbox = Inbox::new(inbox_bytes, frame_bytes_max, waker);
            doors.push((group, inbox.clone(), reader));
            let voters = (1..=plan.nodes).map(|node| (NodeId(node), String::new()));
            setups.push(GroupSetup {
                group,
                inbox,
                voters: voters.collect(),
                applied: prepared.applied,
                newest: prepared.newest,
            });
        }
        let seed = plan.raft_seed ^ self.starts << 40 ^ self.id.0 << 48;
        let core = Config {
            mutant: self.mutant,
            cache_bytes_max: usize_of(plan.node.cache_bytes_max),
            uncommitted_bytes_max: usize_of(plan.node.uncommitted_bytes_max),
            inflight_bytes_max: usize_of(plan.node.inflight_bytes_max),
            inflight_entries_max: usize_of(plan.node.inflight_entries_max),
            append_bytes_max: usize_of(plan.node.append_bytes_max),
            disk_lag_us_max: plan.node.disk_lag_us_max,
            disk_lag_bytes_max: usize_of(plan.node.disk_lag_bytes_max),
            ..Config::new(Replica::default(), Boot(0), GroupId(0), seed)
        };
        let replica = opened.replica();
        let keeper = Storekeeper::new(store, ClusterId(7), replica, unpaced());
        let ports = SimPorts {
            messages: Vec::new(),
            work: VecDeque::new(),
            jobs: VecDeque::new(),
            bytes: 0,
            bytes_max: usize_of(plan.node.apply_bytes_max),
            notices: Vec::new(),
        };
        let shard = opened
            .start(
                setups,
                core,
                self.snapshots.clone(),
                ports,
                self.clock.local(now),
            )
            .map_err(|error| Refusal::of(true, &error))?;
        Ok(Running {
            shard,
            applier,
            doors,
            apply_due: None,
            keeper,
            writes: VecDeque::new(),
            store_due: None,
            store_us: plan.snapshot.store_us,
            machine_events: Vec::new(),
            fenced: None,
        })
    }

    /// The process ends without a word.
    pub fn crash(&mut self, crash: Crash) {
        // Whoever waited in this process is gone with it; their sinks hear that nobody will answer.
        self.inputs.clear();
        self.running = None;
        let tear = if self.plan.disk.tear_sectors {
            Tear::Sectors
        } else {
            Tear::Never
        };
        self.medium.crash(crash, tear);
        self.files.crash(crash);
    }

    /// Nothing fails by itself any more.
    pub fn heal(&mut self, now: Micros) {
        self.disk.rates = crate::disk::FaultRates::default();
        self.disk.starved_percent = 0;
        self.medium.withdraw_faults();
        self.files.withdraw_faults();
        self.paused_until = now;
        self.plan.node.apply_us = self.plan.node.apply_us.min(HEALED_APPLY_US);
        if let Some(running) = &mut self.running {
            let disk = running.shard.disk_mut();
            disk.disk.heal();
            // A process that would have been killed some operations later lives on.
            disk.left = None;
        }
    }

    /// How its disk behaves from the next start on.
    pub fn disk_options_mut(&mut self) -> &mut SimDiskOptions {
        &mut self.disk
    }

    /// Lets the next operation of its disk that `fault` speaks of fail.
    pub fn inject(&mut self, fault: Fault) {
        self.medium.inject(fault);
    }

    /// Its disk ends nothing before then.
    pub fn stall(&mut self, until: Micros) {
        if let Some(running) = &mut self.running {
            running.shard.disk_mut().disk.stall_until(until.0);
            self.due = None;
        }
    }

    /// It does nothing before then.
    pub fn pause(&mut self, until: Micros) {
        self.paused_until = self.paused_until.max(until);
    }

    /// Something for the next turn.
    pub fn give(&mut self, input: PeerInput) {
        if self.running.is_some() {
            self.inputs.push(input);
            self.poked = true;
        }
    }

    /// Something has been put at a door.
    pub fn poke(&mut self) {
        self.poked = true;
    }

    /// When it wants to be looked at next.
    pub fn next_due(&mut self) -> Option<Micros> {
        let running = self.running.as_mut()?;
        let free = self.busy_until.max(self.paused_until);
        let turn = if self.poked {
            Some(free)
        } else {
            if self.due.is_none() {
                let disk = running.shard.disk_mut().disk.next_due().map(Micros);
                let shard = running.shard.next_deadline();
                let shard = shard.map(|local| self.clock.global(local));
                self.due = Some(
                    disk.into_iter()
                        .chain(shard)
                        .chain(running.store_due)
                        .min()
                        .unwrap_or(Micros(u64::MAX)),
                );
            }
            self.due.map(|due| due.max(free))
        };
        let apply = running.apply_due.map(|due| due.max(self.paused_until));
        turn.into_iter().chain(apply).min()
    }

    /// Whether a turn is due, as opposed to the applier.
    pub fn turn_is_due(&mut self, now: Micros) -> bool {
        let apply = self
            .running
            .as_mut()
            .map(|running| running.apply_due.take());
        let due = self.next_due().is_some_and(|due| due <= now);
        if let (Some(running), Some(apply)) = (&mut self.running, apply) {
            running.apply_due = apply;
        }
        due
    }

    /// Whether its next turn is one that nothing but time asks for.
    pub fn waits_for_timer(&self) -> bool {
        !self.poked
    }

    /// One turn. What the node sends is pushed to `sent`.
    pub fn turn(&mut self, now: Micros, sent: &mut Vec<Message>) -> Result<(), TurnEnded> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        self.poked = false;
        self.due = None;
        self.busy_until = now.after(self.plan.node.turn_us);
        running.shard.disk_mut().disk.advance(now.0);
        let local = self.clock.local(now);
        let inputs = &mut self.inputs;
        let mut trap = self.trap;
        let events = running.store_events(now, &self.files, &mut trap);
        if let (Some(crash), Some((moment, ..))) = (self.files.stopped(), self.trap) {
            return Err(TurnEnded::Stopped(moment, crash));
        }
        self.trap = trap;
        let machine_events = std::mem::take(&mut running.machine_events);
        let shard = &mut running.shard;
        let done = catch_unwind(AssertUnwindSafe(|| {
            for event in events {
                shard.store_event(local, event);
            }
            for event in machine_events {
                shard.machine_event(event, local);
            }
            shard.turn(local, inputs);
        }));
        if let Err(panic) = done {
            return Err(if panic.is::<Killed>() {
                TurnEnded::Killed
            } else {
                TurnEnded::Panicked(text_of(&*panic))
            });
        }
        let ports = running.shard.ports();
        sent.append(&mut ports.messages);
        if running.apply_due.is_none() && !ports.work.is_empty() {
            running.apply_due = Some(now.after(self.plan.node.apply_us));
        }
        running.arm_store(now);
        Ok(())
    }

    /// Takes what the applier is done with by now, if it is done with anything.
    pub fn take_done(&mut self, now: Micros) -> Option<Done<M::Output>> {
        let apply_us = self.plan.node.apply_us;
        if now < self.paused_until {
            return None;
        }
        let running = self.running.as_mut()?;
        loop {
            running.apply_due.take_if(|due| *due <= now)?;
            let ports = running.shard.ports();
            let was_full = ports.apply_room_bytes() == 0;
            let work = ports.work.pop_front()?;
            if !ports.work.is_empty() {
                running.apply_due = Some(now.after(apply_us));
            }
            match work {
                Work::Batch(batch) => {
                    ports.bytes -= batch.bytes;
                    self.poked |= was_full;
                    return Some(Done::Batch(batch));
                }
                Work::TakeSnapshot(group, anchor) => {
                    running.take_snapshot(group, anchor);
                    running.arm_store(now);
                    self.poked = true;
                }
                Work::Install(group, at, mut reader) => {
                    let is_read = running.install(group, at, &mut *reader);
                    self.poked = true;
                    if is_read {
                        return Some(Done::Installed(group, at));
                    }
                }
            }
        }
    }

    /// Applies it.
    pub fn apply(&mut self, batch: ApplyBatch<M::Output>) -> Result<LogPosition, String> {
        let Some(running) = &mut self.running else {
            return Ok(LogPosition::default());
        };
        let group = batch.group;
        let applier = &mut running.applier;
        let applied = catch_unwind(AssertUnwindSafe(|| applier.apply(batch)))
            .map_err(|panic| text_of(&*panic))?;
        match applied {
            Ok(applied) => Ok(applied),
            Err(fenced) => {
                running.fenced = Some(fenced.to_string());
                running.shard.fence(group, fenced.what);
                self.poked = true;
                Ok(LogPosition::default())
            }
        }
    }

    /// Why a machine has stopped, if one has.
    pub fn fenced(&self) -> Option<&str> {
        self.running.as_ref()?.fenced.as_deref()
    }

    /// Bytes that wait for the applier, and the bytes of the last batch, which may exceed the bound.
    pub fn apply_queue(&mut self) -> Option<(usize, usize)> {
        let ports = self.running.as_mut()?.shard.ports();
        let last = ports.work.iter().rev().find_map(|work| match work {
            Work::Batch(batch) => Some(batch.bytes),
            _ => None,
        });
        let last = last.unwrap_or(0);
        Some((ports.bytes, last))
    }

    /// What the node said since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        std::mem::take(&mut running.shard.ports().notices)
    }

    /// The log, while the node runs.
    pub(crate) fn wal(&self) -> Option<&Wal<Mortal>> {
        Some(self.running.as_ref()?.shard.wal())
    }

    /// The core of a group, while the node runs.
    pub fn core(&self, group: GroupId) -> Option<&Raft> {
        self.running.as_ref()?.shard.core(group)
    }

    /// Stops a group as a machine that fails does.
    pub fn halt(&mut self, group: GroupId) {
        if let Some(running) = &mut self.running {
            running.shard.fence(group, "stopped by hand".to_owned());
        }
    }

    /// Whether a group of it does nothing any more.
    pub fn is_halted(&self, group: GroupId) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.shard.is_halted(group))
    }

    /// How it stands, while it runs.
    pub fn status(&self) -> Option<ShardStatus> {
        Some(self.running.as_ref()?.shard.status())
    }

    /// Whether its log refuses everything.
    pub fn is_poisoned(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.shard.wal().poisoned().is_some())
    }

    /// Whether its log runs out of room, so that it is cut whoever needs it.
    pub fn is_short(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.shard.wal().is_short())
    }

    /// How far a group's machine is, while the node runs.
    pub fn applied(&self, group: GroupId) -> Option<LogPosition> {
        self.running.as_ref()?.applier.applied(group)
    }

    /// The door of a group, while the node runs.
    pub fn door(&self, group: GroupId) -> Option<&Inbox<M::Output>> {
        let doors = &self.running.as_ref()?.doors;
        doors
            .iter()
            .find(|(id, _, _)| *id == group)
            .map(|(_, inbox, _)| inbox)
    }

    /// Reads of a group's machine, while the node runs.
    pub fn reader(&self, group: GroupId) -> Option<&ReaderOf<M::Machine>> {
        let doors = &self.running.as_ref()?.doors;
        doors
            .iter()
            .find(|(id, _, _)| *id == group)
            .map(|(_, _, reader)| reader)
    }
}

impl<S: StateMachine> Running<S> {
    fn take_snapshot(&mut self, group: GroupId, anchor: Anchor) {
        match self.applier.take_snapshot(group, anchor.at) {
            Ok((source, durable)) => self.writes.push_back(Handle {
                group,
                anchor,
                durable,
                source,
            }),
            Err(why) => self
                .machine_events
                .push(MachineEvent::NotTaken { group, why }),
        }
    }

    /// False: the snapshot could not be read, and the machine is as it was.
    fn install(
        &mut self,
        group: GroupId,
        at: LogPosition,
        reader: &mut dyn SnapshotReader,
    ) -> bool {
        match self.applier.install(group, at, reader) {
            Ok(at) => self
                .machine_events
                .push(MachineEvent::Installed { group, at }),
            Err(NotInstalled::Fenced(fenced)) => {
                self.fenced = Some(fenced.to_string());
                self.shard.fence(group, fenced.what);
            }
            Err(unreadable) => {
                let why = unreadable.to_string();
                self.machine_events
                    .push(MachineEvent::NotInstalled { group, at, why });
                return false;
            }
        }
        true
    }

    /// Does the jobs of the store whose time has come. One of a kind in which it is to stop stops it.
    fn store_events(
        &mut self,
        now: Micros,
        files: &SimFilesStorage,
        trap: &mut Option<(Moment, u64, Crash)>,
    ) -> Vec<StoreEvent> {
        let mut events = Vec::new();
        while self.store_due.take_if(|due| *due <= now).is_some() {
            let job = match self.writes.pop_front() {
                Some(handle) => Ok(handle),
                None => Err(self.shard.ports().jobs.pop_front()),
            };
            let moment = match &job {
                Ok(_) => Some(Moment::Writing),
                Err(Some(job)) => moment_of(job),
                Err(None) => None,
            };
            let stops = trap.filter(|(at, ..)| Some(*at) == moment);
            if let Some((_, after, crash)) = stops {
                files.stop_after(after, crash);
            }
            match job {
                Ok(handle) => {
                    let Handle {
                        group,
                        anchor,
                        durable,
                        source,
                    } = handle;
                    events.push(self.keeper.write(group, anchor, durable, source));
                }
                Err(Some(job)) => events.extend(self.keeper.run(job)),
                Err(None) => {}
            }
            if files.stopped().is_some() {
                break;
            }
            if stops.is_some() {
                // It was done before it came to that.
                files.stop_at(None);
            }
            self.arm_store(now);
        }
        events
    }

    fn arm_store(&mut self, now: Micros) {
        let waits = !self.writes.is_empty() || !self.shard.ports().jobs.is_empty();
        if waits && self.store_due.is_none() {
            self.store_due = Some(now.after(self.store_us));
        }
    }
}

/// In which moment a job is, if it is in one.
fn moment_of(job: &StoreJob) -> Option<Moment> {
    match job {
        StoreJob::Receive { .. } | StoreJob::Put { .. } => Some(Moment::Storing),
        StoreJob::Finish { .. } => Some(Moment::Checking),
        StoreJob::Retire { .. } => Some(Moment::Retiring),
        _ => None,
    }
}

/// A machine that takes long is one more fault, and over when the others are.
const HEALED_APPLY_US: u64 = 20;

fn settings_of(plan: &SnapshotPlan) -> SnapshotSettings {
    let mut settings = SnapshotSettings::manual();
    if plan.log_bytes > 0 {
        settings.log_bytes = plan.log_bytes;
        settings.log_entries = plan.log_entries;
    }
    settings.keep_log_bytes = plan.keep_log_bytes;
    settings.retain_log_bytes = plan.retain_log_bytes;
    settings.fetch_bytes_per_s = plan.fetch_bytes_per_s;
    settings
}

fn disk_options(plan: &Plan) -> SimDiskOptions {
    let disk = &plan.disk;
    SimDiskOptions {
        write_us: disk.write_us,
        flush_us: disk.flush_us,
        read_us: disk.read_us,
        starved_percent: disk.starved_percent,
        create_flushes: 10,
        direct: disk.direct,
        flush_mode: if disk.drained_fsync {
            FlushMode::DrainedFsync
        } else {
            FlushMode::Dsync
        },
        rates: crate::disk::FaultRates {
            read_error_ppm: disk.rates.read_error_ppm,
            short_read_ppm: disk.rates.short_read_ppm,
            write_error_ppm: disk.rates.write_error_ppm,
            short_write_ppm: disk.rates.short_write_ppm,
            flush_error_ppm: disk.rates.flush_error_ppm,
            no_space_ppm: disk.rates.no_space_ppm,
            stall_ppm: disk.rates.stall_ppm,
            ..crate::disk::FaultRates::default()
        },
        ..SimDiskOptions::default()
    }
}

/// An error and what caused it, in a line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What a panic said.
#[must_use]
pub fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
