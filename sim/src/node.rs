//! One simulated node: a medium that outlives it, and while it runs a shard and its machines.

use std::collections::VecDeque;

use fastrand::Rng;
use logdrive_raft::io::Config;
use logdrive_raft::{Boot, ClusterId, GroupId, Incarnation, Message, Micros, NodeId, Replica};
use logdrive_shard::kv::{Kv, KvOutput, KvReader};
use logdrive_shard::{
    Applier, ApplyBatch, GroupSetup, Inbox, Notice, Opened, PeerInput, Ports, Shard,
};
use logdrive_wal::disk::WatchdogLimits;
use logdrive_wal::{FreshIds, Identity, OpenError, Options};

use crate::dice::{Dice, Site};
use crate::disk::{Crash, Fault, SimDisk, SimDiskOptions, SimStorage, Tear};

/// Bytes of committed entries that wait for a simulated applier.
const APPLY_BYTES_MAX: usize = 1 << 20;

/// How every node of a simulated cluster is set up.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its nodes.
    pub nodes: Vec<NodeId>,
    /// Its groups.
    pub groups: Vec<GroupId>,
    /// Bytes of a segment file.
    pub slot_bytes: u64,
    /// Bytes of all segment files.
    pub bytes_max: u64,
    /// How the disk behaves.
    pub disk: SimDiskOptions,
    /// How long a flush mode may be bad.
    pub watchdog: WatchdogLimits,
    /// How many slots in a million cannot be made or zero-filled for want of space, once a log is open.
    pub no_space_ppm: u32,
    /// Bytes of frames that a core keeps in memory.
    pub cache_bytes_max: usize,
}

/// A node, running or not.
#[derive(Debug)]
pub struct SimNode {
    id: NodeId,
    options: NodeOptions,
    medium: SimStorage,
    running: Option<Running>,
    random: Rng,
    inputs: Vec<PeerInput>,
    /// Something has come that no deadline knows of.
    poked: bool,
}

#[derive(Debug)]
struct Running {
    shard: Shard<SimDisk, SimPorts>,
    applier: Applier<Kv>,
    doors: Vec<(GroupId, Inbox<KvOutput>, KvReader)>,
}

/// The way out of a simulated shard: everything is kept until the cluster takes it.
#[derive(Debug, Default)]
struct SimPorts {
    messages: Vec<Message>,
    batches: VecDeque<ApplyBatch<KvOutput>>,
    bytes: usize,
    notices: Vec<Notice>,
}

impl Ports for SimPorts {
    type Output = KvOutput;

    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    fn apply_room_bytes(&self) -> usize {
        APPLY_BYTES_MAX.saturating_sub(self.bytes)
    }

    fn apply(&mut self, batch: ApplyBatch<KvOutput>) {
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
    }

    fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

impl SimNode {
    /// A node with an empty disk, not running.
    #[must_use]
    pub fn new(id: NodeId, options: NodeOptions, seed: u64) -> Self {
        Self {
            id,
            options,
            medium: SimStorage::new(Dice::drawn(Site::Disk(id), seed)),
            running: None,
            random: Rng::with_seed(seed ^ id.0.rotate_left(32)),
            inputs: Vec::new(),
            poked: false,
        }
    }

    /// The operator's number.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// How it is set up.
    #[must_use]
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What outlives the process.
    #[must_use]
    pub fn medium(&self) -> &SimStorage {
        &self.medium
    }

    /// Opens the log and starts the groups.
    ///
    /// # Panics
    ///
    /// If the machines do not fit the log, which keep nothing and so always do.
    pub fn start(&mut self, now: Micros) -> Result<(), OpenError> {
        assert!(self.running.is_none());
        let random = &mut self.random;
        let mut disk = SimDisk::new(self.medium.clone(), self.options.disk.clone());
        disk.advance(now.0);
        let identity = Identity {
            cluster: self.options.cluster,
            node: self.id,
        };
        let fresh = FreshIds {
            incarnation: Incarnation(random.u128(..)),
            log_uuid: random.u128(..),
        };
        let mut options = Options::new(identity, fresh);
        let slots = self.options.bytes_max / self.options.slot_bytes;
        options = options.with_slots(self.options.slot_bytes, slots);
        options.watchdog = self.options.watchdog;
        let frame_bytes_max = options.frame_bytes_max;
        let opened = Opened::open(disk, options)?;
        let mut groups: Vec<GroupId> = opened.groups().collect();
        groups.extend(&self.options.groups);
        groups.sort_unstable();
        groups.dedup();
        let mut applier = Applier::default();
        let mut doors = Vec::new();
        let mut setups = Vec::new();
        for group in groups {
            let kv = Kv::default();
            let applied = applier.open(group, kv).expect("a machine in memory opens");
            let reader = applier.reader(group).expect("a reader of a map in memory");
            let inbox = Inbox::new(1 << 20, frame_bytes_max, std::task::Waker::noop().clone());
            doors.push((group, inbox.clone(), reader));
            let voters = self
                .options
                .nodes
                .iter()
                .map(|node| (*node, String::new()))
                .collect();
            setups.push(GroupSetup {
                group,
                inbox,
                voters,
                applied,
            });
        }
        let core = Config {
            cache_bytes_max: self.options.cache_bytes_max,
            uncommitted_bytes_max: 128 << 10,
            inflight_bytes_max: 64 << 10,
            inflight_entries_max: 16,
            append_bytes_max: 32 << 10,
            ..Config::new(Replica::default(), Boot(0), GroupId(0), random.u64(..))
        };
        self.poked = true;
        let mut shard = opened
            .start(setups, core, SimPorts::default(), now)
            .expect("a machine that keeps nothing fits any log");
        shard.disk_mut().options_mut().rates.no_space_ppm = self.options.no_space_ppm;
        self.running = Some(Running {
            shard,
            applier,
            doors,
        });
        Ok(())
    }

    /// There is space on the disk again, and stays.
    pub fn make_space(&mut self) {
        self.options.no_space_ppm = 0;
        if let Some(running) = &mut self.running {
            running.shard.disk_mut().options_mut().rates.no_space_ppm = 0;
        }
    }

    /// Lets the next operation of its disk that `fault` speaks of fail.
    pub fn inject(&mut self, fault: Fault) {
        if let Some(running) = &mut self.running {
            running.shard.disk_mut().inject(fault);
        }
    }

    /// The process ends without a word.
    pub fn crash(&mut self, crash: Crash, tear: Tear) {
        // Whoever waited in this process is gone with it; their sinks hear that nobody will answer.
        self.inputs.clear();
        self.running = None;
        self.medium.crash(crash, tear);
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

    /// When the node wants its next turn.
    #[must_use]
    pub fn next_due(&mut self) -> Option<Micros> {
        let running = self.running.as_mut()?;
        if self.poked {
            return Some(Micros(0));
        }
        let disk = running.shard.disk_mut().next_due().map(Micros);
        disk.into_iter().chain(running.shard.next_deadline()).min()
    }

    /// One turn. Returns what the node sends.
    pub fn turn(&mut self, now: Micros) -> Vec<Message> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        self.poked = false;
        running.shard.disk_mut().advance(now.0);
        running.shard.turn(now, &mut self.inputs);
        let ports = running.shard.ports();
        let messages = std::mem::take(&mut ports.messages);
        while let Some(batch) = running.shard.ports().batches.pop_front() {
            running.shard.ports().bytes -= batch.bytes;
            running
                .applier
                .apply(batch)
                .expect("the key-value machine does not fail");
        }
        messages
    }

    /// What the node said since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        std::mem::take(&mut running.shard.ports().notices)
    }

    /// The shard, while the node runs.
    #[must_use]
    pub fn core(&self, group: GroupId) -> Option<&logdrive_raft::Raft> {
        self.running.as_ref()?.shard.core(group)
    }

    /// Whether the log has failed or a group has halted.
    #[must_use]
    pub fn status(&self) -> Option<logdrive_shard::ShardStatus> {
        Some(self.running.as_ref()?.shard.status())
    }

    /// The door of a group, while the node runs.
    #[must_use]
    pub fn door(&self, group: GroupId) -> Option<&Inbox<KvOutput>> {
        let doors = &self.running.as_ref()?.doors;
        doors
            .iter()
            .find(|(id, _, _)| *id == group)
            .map(|(_, inbox, _)| inbox)
    }

    /// Reads of a group's machine, while the node runs.
    #[must_use]
    pub fn reader(&self, group: GroupId) -> Option<&KvReader> {
        let doors = &self.running.as_ref()?.doors;
        doors
            .iter()
            .find(|(id, _, _)| *id == group)
            .map(|(_, _, reader)| reader)
    }
}
