//! A simulated cluster: nodes, the network between them, clients, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Drain;

use fastrand::Rng;
use logdrive_raft::io::Role;
use logdrive_raft::wire::Encode;
use logdrive_raft::{ClusterId, GroupId, LogPosition, Message, Micros, NodeId};
use logdrive_shard::kv::{Command, KvOutput, Op, Origin};
use logdrive_shard::{Failure, GroupState, Outcome, PeerInput, ReplySink};
use logdrive_wal::disk::{FlushMode, WatchdogLimits};

use crate::disk::{Crash, SimDiskOptions, Tear};
use crate::lanes::{Lanes, Share};
use crate::node::{NodeOptions, SimNode};
use crate::oracle::Oracle;

/// How a run is drawn from its seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many nodes.
    pub nodes: u64,
    /// How many groups.
    pub groups: u64,
    /// Virtual time with faults.
    pub faulty_us: u64,
    /// Virtual time without, in which everything must come together again.
    pub healthy_us: u64,
}

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Deliveries and turns.
    pub events: u64,
    /// Processes that ended without a word.
    pub crashes: u64,
    /// Terms that had a leader.
    pub elections: u64,
    /// Acknowledged proposals.
    pub acks: u64,
    /// Proposals whose clients were told that they are in no log and never will be.
    pub never_appended: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Appends that their lane did not take.
    pub lane_full: u64,
    /// How often a sender heard that a lane has room again.
    pub lane_room: u64,
    /// Processes that ended with another flush mode than they began with.
    pub crashes_in_other_mode: u64,
    /// Processes that ended after they had left that mode again.
    pub crashes_back_in_mode: u64,
}

/// A cluster under way.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    now: Micros,
    nodes: Vec<SimNode>,
    network: Network,
    oracle: Oracle,
    random: Rng,
    /// When a node that is down comes back.
    restarts: BTreeMap<NodeId, Micros>,
    clients: Arc<Clients>,
    next_token: u64,
    /// Proposals whose clients were told that they are in no log and never will be.
    never_appended: BTreeSet<(GroupId, u64)>,
    /// What each group had acknowledged when everything was healed.
    acks_before: BTreeMap<GroupId, usize>,
    summary: Summary,
}

/// Messages under way. Each takes its own time, so they overtake each other.
#[derive(Debug)]
struct Network {
    in_flight: BinaryHeap<std::cmp::Reverse<(Micros, u64)>>,
    messages: BTreeMap<u64, (Message, Option<Share>)>,
    lanes: Lanes,
    sent: u64,
    /// Nodes that are cut off from the others.
    isolated: BTreeSet<NodeId>,
    loss_percent: u8,
    repeat_percent: u8,
}

impl Network {
    fn new(lane_bytes_max: usize) -> Self {
        Self {
            in_flight: BinaryHeap::new(),
            messages: BTreeMap::new(),
            lanes: Lanes::new(lane_bytes_max),
            sent: 0,
            isolated: BTreeSet::new(),
            loss_percent: 0,
            repeat_percent: 0,
        }
    }
}

/// All clients: they remember what they were told.
#[derive(Debug, Default)]
struct Clients {
    answers: Mutex<Vec<Answer>>,
}

#[derive(Debug)]
enum Answer {
    Applied {
        group: GroupId,
        number: u64,
        at: LogPosition,
        slot: u32,
    },
    Failed {
        group: GroupId,
        numbers: std::ops::Range<u64>,
        outcome: Outcome,
    },
}

impl ReplySink<KvOutput> for Clients {
    fn applied(
        &self,
        token: u64,
        first: u32,
        at: LogPosition,
        slot: u32,
        outputs: Drain<'_, KvOutput>,
    ) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, _) in outputs.enumerate() {
            let place = u32::try_from(place).expect("an entry has fewer slots");
            let (group, number) = (
                GroupId(token & 0xff),
                (token >> 8) + u64::from(first + place),
            );
            answers.push(Answer::Applied {
                group,
                number,
                at,
                slot: slot + place,
            });
        }
    }

    fn failed(&self, token: u64, first: u32, count: u32, failure: Failure) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let first = (token >> 8) + u64::from(first);
        answers.push(Answer::Failed {
            group: GroupId(token & 0xff),
            numbers: first..first + u64::from(count),
            outcome: failure.outcome(),
        });
    }
}

impl Cluster {
    /// A cluster whose nodes have empty disks and have just been started.
    ///
    /// # Panics
    ///
    /// If an empty disk cannot be opened.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let mut random = Rng::with_seed(plan.seed);
        let ids: Vec<NodeId> = (1..=plan.nodes).map(NodeId).collect();
        let options = NodeOptions {
            cluster: ClusterId(7),
            nodes: ids.clone(),
            groups: (1..=plan.groups).map(GroupId).collect(),
            slot_bytes: *random
                .choice([64 << 10, 128 << 10])
                .as_ref()
                .expect("not empty"),
            bytes_max: 16 << 20,
            disk: SimDiskOptions {
                direct: random.bool(),
                flush_mode: *random
                    .choice([FlushMode::Dsync, FlushMode::DrainedFsync])
                    .as_ref()
                    .expect("not empty"),
                starved_percent: if random.u8(0..4) == 0 { 20 } else { 0 },
                ..SimDiskOptions::default()
            },
            watchdog: WatchdogLimits {
                window: 16,
                bad_windows: 1,
                bad_windows_max: 4,
            },
            no_space_ppm: *random
                .choice([0, 0, 0, 500_000])
                .as_ref()
                .expect("not empty"),
            cache_bytes_max: *random
                .choice([2 << 10, 64 << 10])
                .as_ref()
                .expect("not empty"),
        };
        let mut nodes: Vec<SimNode> = ids
            .iter()
            .map(|id| SimNode::new(*id, options.clone(), random.u64(..)))
            .collect();
        for node in &mut nodes {
            node.start(Micros(0)).expect("an empty disk opens");
        }
        // From lanes that take one append at a time to lanes that take whatever a window allows.
        let lane_bytes_max = *random
            .choice([2 << 10, 8 << 10, 24 << 10, 1 << 20])
            .as_ref()
            .expect("not empty");
        let mut cluster = Self {
            plan,
            now: Micros(0),
            nodes,
            network: Network::new(lane_bytes_max),
            oracle: Oracle::default(),
            random,
            restarts: BTreeMap::new(),
            clients: Arc::default(),
            next_token: 0,
            never_appended: BTreeSet::new(),
            acks_before: BTreeMap::new(),
            summary: Summary::default(),
        };
        for id in ids {
            cluster.connect(id);
        }
        cluster
    }

    /// How its nodes were set up, in words.
    #[must_use]
    pub fn options(&self) -> String {
        self.nodes
            .first()
            .map_or_else(String::new, |node| format!("{:?}", node.options()))
    }

    /// Runs the plan: faults first, then none, and everything must have come together.
    ///
    /// # Panics
    ///
    /// If a promise is broken; the message says which.
    pub fn run(mut self) -> Summary {
        let faults_end = Micros(self.plan.faulty_us);
        self.network.loss_percent = self.random.u8(0..5);
        self.network.repeat_percent = self.random.u8(0..5);
        let mut next_fault = self.now.after(self.random.u64(50_000..400_000));
        let mut next_proposal = Micros(0);
        while self.now < faults_end {
            let until = next_fault.min(next_proposal).min(faults_end);
            self.advance(until);
            if next_proposal <= self.now {
                self.propose();
                next_proposal = self.now.after(self.random.u64(200..8_000));
            }
            if next_fault <= self.now {
                self.fault();
                next_fault = self.now.after(self.random.u64(20_000..400_000));
            }
        }
        self.heal();
        let end = self.now.after(self.plan.healthy_us);
        while self.now < end {
            self.advance(self.now.after(5_000));
            self.propose();
        }
        // Quiet, so that the last commit reaches everybody.
        let quiet = self.now.after(500_000);
        self.advance(quiet);
        self.check_liveness();
        self.check_convergence();
        self.check_answers();
        self.summary.never_appended = self.never_appended.len() as u64;
        self.summary.elections = self.oracle.elections;
        self.summary.acks = self.oracle.acks;
        self.summary
    }

    /// Lets time pass until `until`, and everything happen that is due by then.
    fn advance(&mut self, until: Micros) {
        loop {
            let mut next = until;
            if let Some(std::cmp::Reverse((at, _))) = self.network.in_flight.peek() {
                next = next.min(*at);
            }
            if let Some(at) = self.restarts.values().min() {
                next = next.min(*at);
            }
            for node in &mut self.nodes {
                if let Some(at) = node.next_due() {
                    next = next.min(at);
                }
            }
            let before = self.summary.events;
            self.now = self.now.max(next);
            self.restart_due();
            self.deliver_due();
            self.turn_due();
            if self.now >= until && before == self.summary.events {
                return;
            }
        }
    }

    fn restart_due(&mut self) {
        let due: Vec<NodeId> = self
            .restarts
            .iter()
            .filter(|(_, at)| **at <= self.now)
            .map(|(node, _)| *node)
            .collect();
        for id in due {
            self.restarts.remove(&id);
            let now = self.now;
            let node = self.node(id);
            if let Err(error) = node.start(now) {
                panic!("node {id} does not start after a crash: {error}");
            }
            self.connect(id);
            self.summary.events += 1;
        }
    }

    /// Connections from and to a node come up, as QUIC would say.
    fn connect(&mut self, id: NodeId) {
        for node in &mut self.nodes {
            let other = node.id();
            if other != id {
                node.give(PeerInput::Connected(id));
            }
        }
        let others: Vec<NodeId> = self
            .nodes
            .iter()
            .map(SimNode::id)
            .filter(|o| *o != id)
            .collect();
        for other in others {
            self.node(id).give(PeerInput::Connected(other));
        }
    }

    fn deliver_due(&mut self) {
        while let Some(std::cmp::Reverse((at, number))) = self.network.in_flight.peek().copied() {
            if at > self.now {
                return;
            }
            self.network.in_flight.pop();
            let sent = self.network.messages.remove(&number);
            let (message, share) = sent.expect("kept until delivered");
            self.summary.events += 1;
            if let Some(share) = share {
                let (from, to) = (message.from.id, message.to);
                self.network.lanes.leave(from, to, share);
                self.tell_of_room(from, to);
            }
            let cut = |id| self.network.isolated.contains(&id);
            if cut(message.from.id) || cut(message.to) {
                self.summary.lost += 1;
                continue;
            }
            self.node(message.to).give(PeerInput::Message(message));
        }
    }

    fn turn_due(&mut self) {
        let now = self.now;
        for at in 0..self.nodes.len() {
            if self.nodes[at].next_due().is_none_or(|due| due > now) {
                continue;
            }
            self.summary.events += 1;
            let sent = self.nodes[at].turn(now);
            for message in sent {
                self.send(message);
            }
            self.look(at);
            self.take_answers();
        }
    }

    fn look(&mut self, at: usize) {
        let node = &self.nodes[at];
        for group in (1..=self.plan.groups).map(GroupId) {
            if let Some(core) = node.core(group) {
                self.oracle.look(node.id(), group, core);
            }
        }
    }

    /// Whoever sent an append that was not taken hears when there is room for it.
    fn tell_of_room(&mut self, from: NodeId, to: NodeId) {
        if let Some(room) = self.network.lanes.room(from, to) {
            self.summary.lane_room += u64::from(self.node(from).is_running());
            self.node(from).give(room);
        }
    }

    fn send(&mut self, message: Message) {
        let (from, to) = (message.from.id, message.to);
        let mut share = match self.network.lanes.take(&message) {
            Ok(share) => share,
            Err((session, first)) => {
                self.summary.lane_full += 1;
                self.node(from).give(PeerInput::LaneFull {
                    peer: to,
                    group: message.group,
                    session,
                    from: first,
                });
                self.tell_of_room(from, to);
                return;
            }
        };
        let network = &mut self.network;
        if self.random.u8(0..100) < network.loss_percent {
            self.summary.lost += 1;
            if let Some(share) = share {
                network.lanes.leave(from, to, share);
                self.tell_of_room(from, to);
            }
            return;
        }
        let copies = if self.random.u8(0..100) < network.repeat_percent {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = if self.random.u8(0..100) < 5 {
                self.random.u64(1_000..60_000)
            } else {
                self.random.u64(20..800)
            };
            network.sent += 1;
            network
                .in_flight
                .push(std::cmp::Reverse((self.now.after(delay), network.sent)));
            // A copy fills the lane once.
            let sent = (message.clone(), share.take());
            network.messages.insert(network.sent, sent);
        }
    }

    fn propose(&mut self) {
        let group = GroupId(self.random.u64(1..=self.plan.groups));
        let at = self.random.usize(0..self.nodes.len());
        let leads = |node: &SimNode| {
            node.core(group)
                .is_some_and(|core| core.role() == Role::Leader)
        };
        let at = self.nodes.iter().position(leads).unwrap_or(at);
        let count = self.random.u64(1..8);
        let first = self.next_token;
        self.next_token += count;
        let payloads: Vec<bytes::Bytes> = (first..first + count)
            .map(|token| {
                let key = format!("key-{}", token % 13);
                let value = vec![b'v'; self.random.usize(0..600)];
                let origin = Some(Origin {
                    client: group.0,
                    sequence: token,
                });
                Command {
                    origin,
                    key: key.as_bytes(),
                    op: Op::Put(&value),
                }
                .to_bytes()
            })
            .collect();
        let sink: Arc<dyn ReplySink<KvOutput>> = Arc::clone(&self.clients) as _;
        if let Some(door) = self.nodes[at].door(group) {
            // A refusal is an answer: nothing was appended.
            if door
                .submit(&payloads, &sink, (first << 8) | group.0)
                .is_err()
            {
                let numbers = first..first + count;
                self.never_appended
                    .extend(numbers.map(|number| (group, number)));
            }
            self.nodes[at].poke();
        }
    }

    fn take_answers(&mut self) {
        let answers: Vec<Answer> = std::mem::take(
            &mut *self
                .clients
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for answer in answers {
            match answer {
                Answer::Applied {
                    group,
                    number,
                    at,
                    slot,
                } => self.oracle.acknowledge(group, at, slot, number),
                Answer::Failed {
                    group,
                    numbers,
                    outcome: Outcome::NeverAppended,
                } => self
                    .never_appended
                    .extend(numbers.map(|number| (group, number))),
                // Nothing can be said of these.
                Answer::Failed { .. } => {}
            }
        }
    }

    fn fault(&mut self) {
        let victim = NodeId(self.random.u64(1..=self.plan.nodes));
        match self.random.u8(0..10) {
            0..5 => self.crash(victim),
            5 => {
                // The whole rack loses power.
                for id in (1..=self.plan.nodes).map(NodeId) {
                    self.crash(id);
                }
            }
            6..8 => {
                self.network.isolated.insert(victim);
            }
            _ => self.network.isolated.clear(),
        }
    }

    fn crash(&mut self, id: NodeId) {
        if !self.node(id).is_running() {
            return;
        }
        let crash = if self.random.bool() {
            Crash::Process
        } else {
            Crash::Power
        };
        let back = self.now.after(self.random.u64(1_000..300_000));
        let changes = self
            .node(id)
            .status()
            .map_or(0, |status| status.wal.flush_mode_changes);
        self.summary.crashes_in_other_mode += changes % 2;
        self.summary.crashes_back_in_mode += u64::from(changes > 0 && changes.is_multiple_of(2));
        self.node(id).crash(crash, Tear::Never);
        self.take_answers();
        self.oracle.forget(id);
        self.restarts.insert(id, back);
        self.summary.crashes += 1;
        self.network.lanes.disconnect(id);
        for node in &mut self.nodes {
            node.give(PeerInput::Disconnected(id));
        }
    }

    fn heal(&mut self) {
        self.network.isolated.clear();
        self.network.loss_percent = 0;
        self.network.repeat_percent = 0;
        for node in &mut self.nodes {
            node.make_space();
        }
        let now = self.now;
        for at in self.restarts.values_mut() {
            *at = now;
        }
        let groups = (1..=self.plan.groups).map(GroupId);
        self.acks_before = groups
            .map(|group| (group, self.oracle.acks_of(group)))
            .collect();
    }

    /// A cluster in which nothing fails any more has a leader, answers, and no group that stands still.
    fn check_liveness(&self) {
        for group in (1..=self.plan.groups).map(GroupId) {
            let leads = |node: &&SimNode| {
                node.core(group)
                    .is_some_and(|core| core.role() == Role::Leader)
            };
            let leaders = self.nodes.iter().filter(leads).count();
            assert!(leaders == 1, "group {group} has {leaders} leaders");
            let (before, after) = (self.acks_before[&group], self.oracle.acks_of(group));
            assert!(
                before < after,
                "group {group} acknowledges nothing any more"
            );
        }
        for node in &self.nodes {
            let status = node.status();
            let status = status.unwrap_or_else(|| panic!("node {} does not run", node.id()));
            for group in &status.groups {
                assert!(
                    matches!(group.state, GroupState::Running(_)),
                    "group {} of node {}: {:?}",
                    group.group,
                    node.id(),
                    group.state
                );
            }
        }
    }

    /// No machine has seen what a client was told is in no log, and it has everything that was acknowledged.
    fn check_answers(&self) {
        for group in (1..=self.plan.groups).map(GroupId) {
            let reader = self.nodes[0].reader(group).expect("it runs");
            let ledger = reader.client(group.0).unwrap_or_default();
            assert!(ledger.repeats == 0, "applied twice: {:?}", ledger.repeated);
            let never = self.never_appended.iter().filter(|(of, _)| *of == group);
            for (_, number) in never {
                assert!(
                    ledger.get(*number).is_none(),
                    "proposal {number} of group {group} was never appended, its client was told, and is \
                     committed"
                );
            }
            for ((of, index), slots) in self.oracle.acknowledged() {
                for (_, number) in slots.iter().filter(|_| *of == group) {
                    let applied = ledger.get(*number).is_some();
                    assert!(
                        applied,
                        "proposal {number} of {index} was acknowledged and is gone"
                    );
                }
            }
        }
    }

    /// Everybody runs, has the same log committed, and holds what was acknowledged.
    fn check_convergence(&mut self) {
        for group in (1..=self.plan.groups).map(GroupId) {
            let committed = self.oracle.committed(group);
            for node in &self.nodes {
                let core = node.core(group).unwrap_or_else(|| {
                    let status = node.status();
                    panic!(
                        "node {} has no replica of group {group}: {status:?}",
                        node.id()
                    )
                });
                let status = node.status().expect("it runs");
                assert!(
                    core.commit().index == committed,
                    "node {} is at {} of group {group}, others at {committed}: {status:#?}",
                    node.id(),
                    core.commit(),
                );
            }
            let digests: BTreeSet<_> = self
                .nodes
                .iter()
                .map(|node| format!("{:?}", node.reader(group).expect("it runs").summary()))
                .collect();
            assert!(
                digests.len() == 1,
                "machines of group {group} differ: {digests:?}"
            );
        }
        for ((group, index), slots) in self.oracle.acknowledged() {
            assert!(*index <= self.oracle.committed(*group));
            for node in &self.nodes {
                let core = node.core(*group).expect("looked at above");
                assert!(
                    core.meta(*index).is_some(),
                    "acknowledged entry {index} is gone"
                );
            }
            let distinct: BTreeSet<u32> = slots.iter().map(|(slot, _)| *slot).collect();
            assert!(distinct.len() == slots.len(), "two proposals at one place");
        }
    }

    fn node(&mut self, id: NodeId) -> &mut SimNode {
        let at = usize::try_from(id.0 - 1).expect("nodes are numbered from 1");
        &mut self.nodes[at]
    }
}
