//! Replicas, disks, the network and time, all from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use logdrive_raft::io::{Config, Input, ReadLog, Ready, Role};
use logdrive_raft::{
    Boot, ClusterId, EntryBuilder, Genesis, GroupId, Incarnation, Index, Member, Message, Micros,
    NodeId, Raft, Replica,
};

use super::disk::Disk;
use super::oracle::Oracle;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) replicas: u64,
    pub(crate) groups: u64,
    pub(crate) crashes: bool,
    pub(crate) resets: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) events: u64,
    pub(crate) elections: u64,
    pub(crate) committed: u64,
    pub(crate) crashes: u64,
    pub(crate) reads: u64,
    pub(crate) truncations: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Totals) {
        self.events += other.events;
        self.elections += other.elections;
        self.committed += other.committed;
        self.crashes += other.crashes;
        self.reads += other.reads;
        self.truncations += other.truncations;
    }
}

#[derive(Debug)]
enum Event {
    Deliver(Message),
    Flush(u64, u64),
    Tick(u64),
    Read(u64, u64, GroupId, ReadLog),
    Restart(u64),
    Trouble,
    Propose,
}

struct Machine {
    replica: Replica,
    boot: u64,
    rafts: BTreeMap<GroupId, Raft>,
    disk: Disk,
    flushing: bool,
    ticks_at: Micros,
    /// How long a flush takes, at most.
    flush_us_max: u64,
}

pub(crate) struct World {
    options: Options,
    random: fastrand::Rng,
    now: Micros,
    events: BinaryHeap<Reverse<(Micros, u64)>>,
    queued: BTreeMap<u64, Event>,
    sequence: u64,
    machines: Vec<Machine>,
    geneses: BTreeMap<GroupId, Genesis>,
    blocked: BTreeSet<(u64, u64)>,
    oracle: Oracle,
    calm: bool,
    totals: Totals,
}

const TROUBLE_ENDS_AT: Micros = Micros(4_000_000);
const CALM_ENDS_AT: Micros = Micros(7_000_000);

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let replica = |id| Replica {
            id: NodeId(id),
            incarnation: Incarnation(u128::from(id) << 96 | u128::from(seed)),
        };
        let genesis = |group| Genesis {
            cluster: ClusterId(7),
            group: GroupId(group),
            voters: (1..=options.replicas)
                .map(|id| Member {
                    replica: replica(id),
                    address: String::new(),
                })
                .collect(),
        };
        let geneses = (1..=options.groups).map(|group| (GroupId(group), genesis(group)));
        let machines = (1..=options.replicas).map(|id| Machine {
            replica: replica(id),
            boot: 0,
            rafts: BTreeMap::new(),
            disk: Disk::default(),
            flushing: false,
            ticks_at: Micros(0),
            flush_us_max: [800, 2_000, 20_000][random.usize(..3)],
        });
        let machines = machines.collect();
        let mut world = Self {
            geneses: geneses.collect(),
            machines,
            options,
            random,
            now: Micros(0),
            events: BinaryHeap::new(),
            queued: BTreeMap::new(),
            sequence: 0,
            blocked: BTreeSet::new(),
            oracle: Oracle::default(),
            calm: false,
            totals: Totals::default(),
        };
        for id in 1..=world.options.replicas {
            world.start(id);
        }
        world.after(1_000, Event::Trouble);
        world.after(1_000, Event::Propose);
        world
    }

    pub(crate) fn totals(self) -> Totals {
        self.totals
    }

    pub(crate) fn run(&mut self) {
        self.run_until(TROUBLE_ENDS_AT);
        self.calm = true;
        self.blocked.clear();
        for id in 1..=self.options.replicas {
            self.machine(id).flush_us_max = 2_000;
            if self.machine(id).rafts.is_empty() {
                self.start(id);
            }
        }
        self.run_until(CALM_ENDS_AT);
        self.check_converged();
        self.totals.elections = self.oracle.elections;
        for group in self.geneses.keys() {
            self.totals.committed += self.oracle.committed(*group) as u64;
        }
    }

    fn check_converged(&self) {
        for group in self.geneses.keys() {
            let rafts: Vec<&Raft> = self.machines.iter().map(|m| &m.rafts[group]).collect();
            let leaders = rafts.iter().filter(|raft| raft.role() == Role::Leader);
            assert_eq!(leaders.count(), 1, "group {group} has no leader");
            let last = rafts[0].last();
            for raft in &rafts {
                assert_eq!(raft.last(), last, "group {group}");
                assert_eq!(raft.commit(), last, "group {group}");
                assert_eq!(raft.durable_index(), last.index, "group {group}");
            }
            assert!(last.index > Index(0));
        }
    }

    fn machine(&mut self, id: u64) -> &mut Machine {
        &mut self.machines[usize::try_from(id - 1).unwrap()]
    }

    fn after(&mut self, us: u64, event: Event) {
        self.at(self.now.after(us), event);
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence)));
        self.queued.insert(self.sequence, event);
    }

    fn run_until(&mut self, end: Micros) {
        while let Some(Reverse((at, sequence))) = self.events.peek().copied() {
            if at > end {
                break;
            }
            self.events.pop();
            self.now = at;
            self.totals.events += 1;
            let event = self.queued.remove(&sequence).unwrap();
            self.on_event(event);
        }
        self.now = end;
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Deliver(message) => {
                let id = message.to.0;
                if !self.blocked.contains(&(message.from.id.0, id)) {
                    let group = message.group;
                    self.step(id, group, Input::Message(message));
                }
            }
            Event::Flush(id, boot) => self.on_flush(id, boot),
            Event::Tick(id) => {
                let now = self.now;
                if self.machine(id).ticks_at == now {
                    let groups: Vec<GroupId> = self.machine(id).rafts.keys().copied().collect();
                    for group in groups {
                        self.step(id, group, Input::Tick);
                    }
                }
            }
            Event::Read(id, boot, group, read) => {
                if self.machine(id).boot == boot {
                    self.on_read(id, group, read);
                }
            }
            Event::Restart(id) => {
                if self.machine(id).rafts.is_empty() {
                    self.start(id);
                }
            }
            Event::Trouble => self.on_trouble(),
            Event::Propose => self.on_propose(),
        }
    }

    fn start(&mut self, id: u64) {
        let now = self.now;
        let seed = self.random.u64(..);
        let geneses = self.geneses.clone();
        let machine = self.machine(id);
        machine.boot += 1;
        for (group, genesis) in &geneses {
            let durable = machine.disk.groups.entry(*group).or_default();
            let config = Config {
                inflight_bytes_max: 900,
                inflight_entries_max: 6,
                append_bytes_max: 500,
                uncommitted_bytes_max: 4_000,
                uncommitted_entries_max: 20,
                cache_bytes_max: 1_000,
                ..Config::new(machine.replica, Boot(machine.boot), *group, seed ^ group.0)
            };
            let raft = Raft::new(config, durable.restored(genesis), now);
            machine.rafts.insert(*group, raft);
        }
        machine.ticks_at = Micros(u64::MAX);
        machine.flushing = false;
        self.wake(id);
    }

    fn crash(&mut self, id: u64) {
        self.totals.crashes += 1;
        let pending = self.machine(id).disk.pending();
        let landed = self.random.usize(..=pending);
        let rots = self.random.bool();
        let machine = self.machine(id);
        machine.rafts.clear();
        machine.disk.crash(landed, rots);
    }

    /// One input, and mostly one turn. Sometimes the next input comes before the outputs are taken.
    fn step(&mut self, id: u64, group: GroupId, input: Input) {
        let now = self.now;
        let Some(raft) = self.machine(id).rafts.get_mut(&group) else {
            return;
        };
        raft.step(now, input);
        if self.random.u8(..4) > 0 {
            self.take(id, group);
        } else {
            let soon = now.after(self.random.u64(0..50));
            self.machine(id).ticks_at = soon;
            self.at(soon, Event::Tick(id));
        }
    }

    fn take(&mut self, id: u64, group: GroupId) {
        let Some(raft) = self.machine(id).rafts.get_mut(&group) else {
            return;
        };
        let Ready {
            persist,
            messages,
            reads,
            proposals: _,
            truncated_from,
            commit,
            role,
            halted,
            wants_snapshot: _,
            installed: _,
            guard_over: _,
        } = raft.take_ready();
        assert!(halted.is_none(), "{halted:?}");
        self.totals.truncations += u64::from(truncated_from.is_some());
        let at = usize::try_from(id - 1).unwrap();
        let raft = &self.machines[at].rafts[&group];
        let me = self.machines[at].replica;
        if let Some(change) = role {
            self.oracle.on_role(group, raft, me, change);
        }
        if commit.is_some() {
            let disks: Vec<&Disk> = self.machines.iter().map(|m| &m.disk).collect();
            self.oracle
                .on_commit(group, raft, &disks, self.machines.len());
        }
        for persist in persist {
            self.machine(id).disk.write(group, persist);
        }
        for message in messages {
            self.send(message);
        }
        let boot = self.machine(id).boot;
        for read in reads {
            self.totals.reads += 1;
            let us = self.random.u64(100..5_000);
            self.after(us, Event::Read(id, boot, group, read));
        }
        self.wake(id);
    }

    /// Schedules the next tick and the next flush.
    fn wake(&mut self, id: u64) {
        let machine = self.machine(id);
        let due = machine.rafts.values().map(Raft::next_deadline).min();
        let (boot, flush_us_max) = (machine.boot, machine.flush_us_max);
        let flushes = machine.disk.is_busy() && !machine.flushing;
        machine.flushing |= flushes;
        if let Some(due) = due
            && due != self.machine(id).ticks_at
        {
            let due = due.max(self.now);
            self.machine(id).ticks_at = due;
            self.at(due, Event::Tick(id));
        }
        if flushes {
            let us = self.random.u64(50..=flush_us_max);
            self.after(us, Event::Flush(id, boot));
        }
    }

    fn on_flush(&mut self, id: u64, boot: u64) {
        let pending = self.machine(id).disk.pending();
        let count = self.random.usize(..=pending);
        let now = self.now;
        let machine = self.machine(id);
        if machine.boot != boot || machine.rafts.is_empty() {
            return;
        }
        machine.flushing = false;
        for released in machine.disk.flush(count) {
            let raft = self.machine(id).rafts.get_mut(&released.group).unwrap();
            let term = raft.term();
            raft.step(now, Input::Durable(released.id));
            // Some answers of a passed term slip out all the same: a message can be queued anywhere.
            let slips = self.random.u8(..8) == 0;
            for message in released.then {
                let is_vote = matches!(message.body, logdrive_raft::Body::VoteReply(_));
                if message.term == term || (slips && !is_vote) {
                    self.send(message);
                }
            }
            self.take(id, released.group);
        }
        self.wake(id);
    }

    fn on_read(&mut self, id: u64, group: GroupId, read: ReadLog) {
        let fails = self.random.u8(..10) == 0;
        let durable = &self.machine(id).disk.groups[&group];
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in read.from.0..=read.through.0 {
            if let Some(entry) = durable.entry(Index(index)).filter(|_| !fails) {
                bytes += entry.frame().len();
                if bytes > read.bytes_max && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
        }
        let (peer, from) = (read.peer, read.from);
        let input = Input::Read {
            peer,
            from,
            entries,
        };
        self.step(id, group, input);
    }

    fn send(&mut self, message: Message) {
        self.oracle.on_send(&message);
        let copies = match self.random.u8(..100) {
            _ if self.calm => 1,
            0..6 => 0,
            6..12 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let us = match self.random.u8(..100) {
                _ if self.calm => self.random.u64(100..1_000),
                0..3 => self.random.u64(10_000..300_000),
                3..15 => self.random.u64(1_000..10_000),
                _ => self.random.u64(100..1_000),
            };
            self.after(us, Event::Deliver(message.clone()));
        }
    }

    fn on_propose(&mut self) {
        let id = self.random.u64(1..=self.options.replicas);
        let group = GroupId(self.random.u64(1..=self.options.groups));
        let bytes = if self.random.u8(..20) == 0 {
            700
        } else {
            self.random.usize(1..60)
        };
        let leads = |machine: &mut Machine| {
            let raft = machine.rafts.get(&group);
            raft.is_some_and(|raft| raft.role() == Role::Leader)
        };
        if leads(self.machine(id)) {
            for _ in 0..self.random.u8(1..5) {
                let mut builder = EntryBuilder::with_room(1, bytes);
                builder.push(&vec![self.random.u8(..); bytes]);
                self.step(id, group, Input::Propose(builder.finish()));
            }
        }
        // The last writes are early enough to be everywhere at the end.
        if self.now < Micros(CALM_ENDS_AT.0 - 1_000_000) {
            let us = self
                .random
                .u64(500..if self.calm { 200_000 } else { 8_000 });
            self.after(us, Event::Propose);
        }
    }

    fn on_trouble(&mut self) {
        if self.calm {
            return;
        }
        let count = self.options.replicas;
        let id = self.random.u64(1..=count);
        match self.random.u8(..10) {
            0 | 1 if self.options.crashes && !self.machine(id).rafts.is_empty() => {
                self.crash(id);
                let us = self.random.u64(1_000..500_000);
                self.after(us, Event::Restart(id));
            }
            2 if self.options.crashes && self.random.u8(..4) == 0 => {
                for id in 1..=count {
                    self.crash(id);
                    let us = self.random.u64(1_000..100_000);
                    self.after(us, Event::Restart(id));
                }
            }
            3 => {
                // Cut off in one direction, or in both.
                for other in 1..=count {
                    let how = self.random.u8(..3);
                    if how != 1 {
                        self.blocked.insert((id, other));
                    }
                    if how != 2 {
                        self.blocked.insert((other, id));
                    }
                }
            }
            4 => {
                let side = self.random.u64(..);
                for (a, b) in (1..=count).flat_map(|a| (1..=count).map(move |b| (a, b))) {
                    if (side >> a ^ side >> b) & 1 == 1 {
                        self.blocked.insert((a, b));
                    }
                }
            }
            5 | 6 => self.blocked.clear(),
            7 => self.machine(id).flush_us_max = 150_000,
            8 => self.machine(id).flush_us_max = 1_000,
            _ if self.options.resets => {
                let other = NodeId(self.random.u64(1..=count));
                let groups: Vec<GroupId> = self.geneses.keys().copied().collect();
                let up = self.random.bool();
                for group in groups {
                    let input = if up {
                        Input::PeerConnected(other)
                    } else {
                        Input::PeerDisconnected(other)
                    };
                    self.step(id, group, input);
                }
            }
            _ => {}
        }
        let us = self.random.u64(1_000..100_000);
        self.after(us, Event::Trouble);
    }
}
