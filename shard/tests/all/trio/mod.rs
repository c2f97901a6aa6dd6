//! Three shards over a network that loses nothing, unless a node is cut off.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::vec::Drain;

use logdrive_raft::io::Role;
use logdrive_raft::wire::Encode;
use logdrive_raft::{GroupId, LogPosition, Message, Micros, NodeId};
use logdrive_shard::kv::{Command, Op};
use logdrive_shard::{Failure, GroupState, PeerInput, Refused, ReplySink, SnapshotSettings};
use logdrive_sim::dice::{Dice, Site};
use logdrive_sim::disk::{SimDiskOptions, SimStorage};
use logdrive_sim::kv::KvModel;
use logdrive_sim::model::Model;
use logdrive_sim::node::{Done, SimNode, Started};
use logdrive_sim::plan::Plan;

pub const GROUP: GroupId = GroupId(1);

/// A snapshot every 64 KiB of log, and little log kept.
pub fn often() -> SnapshotSettings {
    let mut settings = SnapshotSettings::default();
    settings.log_bytes = 64 << 10;
    settings.keep_log_bytes = 16 << 10;
    settings.retain_log_bytes = 1 << 20;
    settings
}

/// What was answered, by token.
#[derive(Default)]
pub struct Answers(pub Mutex<BTreeMap<u64, Result<LogPosition, Failure>>>);

impl<O> ReplySink<O> for Answers {
    fn applied(&self, token: u64, _: u32, at: LogPosition, _: u32, _: Drain<'_, O>) {
        self.0.lock().unwrap().insert(token, Ok(at));
    }

    fn failed(&self, token: u64, _: u32, _: u32, failure: Failure) {
        self.0.lock().unwrap().insert(token, Err(failure));
    }
}

pub struct Trio<M: Model = KvModel> {
    pub nodes: Vec<SimNode<M>>,
    model: M,
    pub now: Micros,
    /// Everything that was sent, with the place of its sender.
    pub sent: Vec<(usize, Message)>,
    /// A node that nobody hears, and that hears nobody.
    pub cut: Option<usize>,
    /// A node whose machine takes nothing for now.
    pub slow: Option<usize>,
    pub answers: Arc<Answers>,
    pub tokens: u64,
}

impl Trio {
    /// Nodes with slots of so many bytes each, and so many of them.
    pub fn new(slots: [(u64, u64); 3]) -> Self {
        Self::with_disk(slots, SimDiskOptions::default())
    }

    pub fn with_disk(slots: [(u64, u64); 3], disk: SimDiskOptions) -> Self {
        Self::with_snapshots(slots, disk, &SnapshotSettings::manual())
    }

    pub fn with_snapshots(
        slots: [(u64, u64); 3],
        disk: SimDiskOptions,
        snapshots: &SnapshotSettings,
    ) -> Self {
        Self::of_groups(1, slots, disk, snapshots)
    }

    pub fn of_groups(
        groups: u64,
        slots: [(u64, u64); 3],
        disk: SimDiskOptions,
        snapshots: &SnapshotSettings,
    ) -> Self {
        Self::planned(groups, slots, disk, snapshots, |_, _| {})
    }

    pub fn planned(
        groups: u64,
        slots: [(u64, u64); 3],
        disk: SimDiskOptions,
        snapshots: &SnapshotSettings,
        edit: impl Fn(NodeId, &mut Plan),
    ) -> Self {
        Self::with_model(KvModel::default(), groups, slots, disk, snapshots, edit)
    }
}

impl<M: Model> Trio<M> {
    /// Nodes with machines of a model.
    pub fn with_model(
        model: M,
        groups: u64,
        slots: [(u64, u64); 3],
        disk: SimDiskOptions,
        snapshots: &SnapshotSettings,
        edit: impl Fn(NodeId, &mut Plan),
    ) -> Self {
        let nodes = (1..=3).map(NodeId).zip(slots);
        let nodes = nodes.map(|(id, (slot_bytes, count))| {
            let mut plan = Plan::calm(3, groups);
            edit(id, &mut plan);
            plan.disk.slot_bytes = slot_bytes;
            plan.disk.bytes_max = slot_bytes * count;
            let medium = SimStorage::new(Dice::drawn(Site::Disk(id), id.0));
            let mut node = SimNode::new(id, &plan, medium);
            *node.disk_options_mut() = disk.clone();
            *node.snapshot_settings_mut() = snapshots.clone();
            node
        });
        let mut trio = Self {
            nodes: nodes.collect(),
            model,
            now: Micros(0),
            sent: Vec::new(),
            cut: None,
            slow: None,
            answers: Arc::default(),
            tokens: 0,
        };
        for place in 0..3 {
            trio.start(place);
        }
        trio.run_for(1_000_000);
        trio
    }

    pub fn start(&mut self, place: usize) {
        let now = self.now;
        let started = self.nodes[place].start(now, &mut self.model, None);
        assert!(matches!(started, Started::Running), "{started:?}");
        self.reconnect(place);
    }

    /// New connections, both ways.
    pub fn reconnect(&mut self, place: usize) {
        let id = self.nodes[place].id();
        for other in 0..3 {
            if other != place {
                let peer = self.nodes[other].id();
                self.nodes[place].give(PeerInput::Connected(peer));
                self.nodes[other].give(PeerInput::Connected(id));
            }
        }
    }

    pub fn run_for(&mut self, us: u64) {
        let end = self.now.after(us);
        while self.now < end {
            let due = self.nodes.iter_mut().filter_map(SimNode::next_due).min();
            self.now = due.unwrap_or(end).clamp(self.now.after(10).min(end), end);
            let now = self.now;
            for place in 0..3 {
                let mut sent = Vec::new();
                while self.slow != Some(place)
                    && let Some(done) = self.nodes[place].take_done(now)
                {
                    if let Done::Batch(batch) = done {
                        self.nodes[place].apply(batch).unwrap();
                    }
                }
                self.nodes[place].turn(now, &mut sent).unwrap();
                for message in sent {
                    self.sent.push((place, message.clone()));
                    let to = usize::try_from(message.to.0 - 1).unwrap();
                    if self.cut != Some(place) && self.cut != Some(to) {
                        self.nodes[to].give(PeerInput::Message(message));
                    }
                }
            }
        }
    }

    pub fn leader(&self) -> Option<usize> {
        self.leader_of(GROUP)
    }

    pub fn leader_of(&self, group: GroupId) -> Option<usize> {
        let leads = |node: &SimNode<M>| {
            node.core(group)
                .is_some_and(|core| core.role() == Role::Leader)
        };
        self.nodes.iter().position(leads)
    }

    pub fn put(&mut self, bytes: usize) -> Result<(), Refused> {
        let leader = self.leader().unwrap();
        let refused = self.submit(leader, bytes);
        self.run_for(20_000);
        refused
    }

    /// Puts a proposal at a door. Its token is the number of those before.
    pub fn submit(&mut self, place: usize, bytes: usize) -> Result<(), Refused> {
        self.submit_to(place, GROUP, bytes)
    }

    /// The same of any group.
    pub fn submit_to(&mut self, place: usize, group: GroupId, bytes: usize) -> Result<(), Refused> {
        let value = vec![b'v'; bytes];
        let command = Command {
            origin: None,
            key: b"k",
            op: Op::Put(&value),
        };
        let sink: Arc<dyn ReplySink<M::Output>> = self.answers.clone();
        let door = self.nodes[place].door(group).unwrap();
        let refused = door.submit(&[command.to_bytes()], &sink, self.tokens);
        self.tokens += 1;
        self.nodes[place].poke();
        refused
    }

    pub fn assert_running(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let state = &node.status().unwrap().groups[0].state;
            assert!(matches!(state, GroupState::Running(_)), "{state:?}");
        }
    }

    pub fn said(&mut self, place: usize, what: &str) -> Vec<String> {
        let notices = self.nodes[place].take_notices();
        let notices = notices.iter().map(|notice| format!("{notice:?}"));
        notices.filter(|text| text.contains(what)).collect()
    }
}
