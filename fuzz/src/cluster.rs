//! Three honest cores, and an environment that does what the input says: which message arrives next, again or
//! never, what becomes durable when, who crashes. Raft's properties hold throughout, and once nothing is lost
//! any more the three agree.

use logdrive_raft::io::{Config, Input, ReadLog, Ready, Role};
use logdrive_raft::{
    Body, Boot, ClusterId, EntryBuilder, Genesis, GroupId, Index, Message, Micros, NodeId, Raft,
    Replica, ReplicationSession,
};

use crate::script::Script;
use crate::wire::member;

// What a disk is to a core, and what must hold, as the random clusters of the core's own tests have it.
#[expect(dead_code, reason = "those use more of it")]
#[path = "../../raft/tests/cluster/disk.rs"]
mod disk;
#[expect(dead_code, reason = "likewise")]
#[path = "../../raft/tests/cluster/oracle.rs"]
mod oracle;

use disk::Disk;
use oracle::Oracle;

const GROUP: GroupId = GroupId(1);

/// More than these are never under way.
const MESSAGES_MAX: usize = 256;

struct Machine {
    replica: Replica,
    boot: u64,
    raft: Option<Raft>,
    disk: Disk,
    reads: Vec<ReadLog>,
}

struct World {
    now: Micros,
    genesis: Genesis,
    machines: Vec<Machine>,
    messages: Vec<Message>,
    oracle: Oracle,
}

/// Plays the input, then lets everything arrive.
pub(crate) fn run(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new(script.byte());
    for _ in 0..512 {
        if script.is_over() {
            break;
        }
        world.play(&mut script);
    }
    world.heal();
}

impl World {
    fn new(seed: u8) -> Self {
        let genesis = Genesis {
            cluster: ClusterId(7),
            group: GROUP,
            voters: (1..=3).map(member).collect(),
        };
        let machines = genesis.voters.iter().map(|member| Machine {
            replica: member.replica,
            boot: u64::from(seed) << 8,
            raft: None,
            disk: Disk::default(),
            reads: Vec::new(),
        });
        let mut world = Self {
            now: Micros(0),
            machines: machines.collect(),
            genesis,
            messages: Vec::new(),
            oracle: Oracle::default(),
        };
        for at in 0..3 {
            world.start(at);
        }
        world
    }

    fn start(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.raft.is_some() {
            return;
        }
        machine.boot += 1;
        machine.reads.clear();
        let durable = machine.disk.groups.entry(GROUP).or_default();
        let config = Config {
            inflight_bytes_max: 900,
            inflight_entries_max: 6,
            append_bytes_max: 500,
            uncommitted_bytes_max: 4_000,
            uncommitted_entries_max: 20,
            cache_bytes_max: 1_000,
            ..Config::new(
                machine.replica,
                Boot(machine.boot),
                GROUP,
                machine.boot ^ at as u64,
            )
        };
        machine.raft = Some(Raft::new(config, durable.restored(&self.genesis), self.now));
        self.take(at);
    }

    fn play(&mut self, script: &mut Script<'_>) {
        let kind = script.byte() % 20;
        let at = script.below(3);
        match kind {
            0 => {
                self.now = self.now.after(1_000 * u64::from(script.byte()));
                self.step(at, Input::Tick);
            }
            1 | 2 => {
                let due = self.machines[at].raft.as_ref().map(Raft::next_deadline);
                self.now = self.now.max(due.unwrap_or(self.now));
                self.step(at, Input::Tick);
            }
            3..8 if !self.messages.is_empty() => {
                let which = script.below(self.messages.len());
                let message = self.messages.remove(which);
                self.deliver(message);
            }
            8 if !self.messages.is_empty() => {
                let which = script.below(self.messages.len());
                self.deliver(self.messages[which].clone());
            }
            9 if !self.messages.is_empty() => {
                let which = script.below(self.messages.len());
                let _ = self.messages.swap_remove(which);
            }
            10 | 11 => {
                let pending = self.machines[at].disk.pending();
                let count = script.below(pending + 1);
                self.flush(at, count);
            }
            12 | 13 => {
                for _ in 0..1 + script.byte() % 4 {
                    self.propose(at, script.byte());
                }
            }
            14 => self.read(at, script.bit()),
            15 => {
                let machine = &mut self.machines[at];
                machine.raft = None;
                let landed = script.below(machine.disk.pending() + 1);
                machine.disk.crash(landed, script.bit());
            }
            16 => self.start(at),
            17 => {
                let peer = NodeId(1 + script.below(3) as u64);
                let input = match script.byte() % 4 {
                    0 => Input::PeerConnected(peer),
                    1 => Input::PeerDisconnected(peer),
                    2 => Input::LaneRoom(peer),
                    _ => {
                        let session = ReplicationSession {
                            boot: Boot(self.machines[at].boot),
                            counter: u64::from(script.byte()),
                        };
                        let from = Index(script.number());
                        Input::LaneFull {
                            peer,
                            session,
                            from,
                        }
                    }
                };
                self.step(at, input);
            }
            // A while in which all goes well, or well for all but one.
            18 => {
                for _ in 0..1 + script.byte() % 8 {
                    self.calm(None);
                }
            }
            _ => {
                for _ in 0..1 + script.byte() % 8 {
                    self.calm(Some(at));
                }
            }
        }
    }

    /// Lets it get late enough for somebody to have something to do, and all of it happen; but nobody hears
    /// of `without`, which hears of nobody.
    fn calm(&mut self, without: Option<usize>) {
        let due = self
            .machines
            .iter()
            .filter_map(|machine| machine.raft.as_ref());
        let due = due.map(Raft::next_deadline).min();
        self.now = self.now.max(due.unwrap_or(self.now));
        for at in 0..3 {
            self.step(at, Input::Tick);
        }
        for _ in 0..8 {
            let cut_off = |id: NodeId| without.is_some_and(|at| id.0 == at as u64 + 1);
            for message in std::mem::take(&mut self.messages) {
                if !cut_off(message.to) && !cut_off(message.from.id) {
                    self.deliver(message);
                }
            }
            for at in 0..3 {
                self.flush(at, usize::MAX);
                self.flush(at, 0);
                self.read(at, true);
            }
        }
    }

    fn heal(&mut self) {
        for at in 0..3 {
            self.start(at);
        }
        for at in 0..3 {
            for peer in 1..=3 {
                self.step(at, Input::LaneRoom(NodeId(peer)));
            }
        }
        for _ in 0..400 {
            self.calm(None);
            if self.agreed() {
                return;
            }
        }
        let rafts: Vec<_> = self.machines.iter().map(|machine| &machine.raft).collect();
        panic!("nothing is lost and they do not agree: {rafts:?}");
    }

    fn agreed(&self) -> bool {
        let rafts = || {
            self.machines
                .iter()
                .filter_map(|machine| machine.raft.as_ref())
        };
        let leaders = rafts().filter(|raft| raft.role() == Role::Leader).count();
        let last = self.machines[0].raft.as_ref().map(Raft::last);
        leaders == 1
            && last.is_some_and(|last| {
                last.index > Index(0)
                    && rafts().all(|raft| {
                        (raft.last(), raft.commit(), raft.durable_index())
                            == (last, last, last.index)
                    })
            })
    }

    fn deliver(&mut self, message: Message) {
        let at = usize::try_from(message.to.0 - 1).expect("a few machines");
        self.step(at, Input::Message(message));
    }

    fn propose(&mut self, at: usize, bytes: u8) {
        let mut builder = EntryBuilder::with_room(1, usize::from(bytes));
        builder.push(&vec![bytes; usize::from(bytes) * 3]);
        self.step(at, Input::Propose(builder.finish()));
    }

    fn flush(&mut self, at: usize, count: usize) {
        if self.machines[at].raft.is_none() {
            return;
        }
        for released in self.machines[at].disk.flush(count) {
            let raft = self.machines[at].raft.as_mut().expect("checked above");
            let term = raft.term();
            raft.step(self.now, Input::Durable(released.id));
            assert_eq!(released.group, GROUP);
            for message in released.then {
                if message.term == term {
                    self.send(message);
                }
            }
            self.take(at);
        }
    }

    fn read(&mut self, at: usize, succeeds: bool) {
        let machine = &mut self.machines[at];
        if machine.reads.is_empty() {
            return;
        }
        let read = machine.reads.remove(0);
        let durable = &machine.disk.groups[&GROUP];
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for index in read.from.0..=read.through.0 {
            let entry = durable.entry(Index(index)).filter(|_| succeeds);
            let Some(entry) = entry else {
                break;
            };
            bytes += entry.frame().len();
            if bytes > read.bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        let (peer, from) = (read.peer, read.from);
        self.step(
            at,
            Input::Read {
                peer,
                from,
                entries,
            },
        );
    }

    fn step(&mut self, at: usize, input: Input) {
        if let Some(raft) = &mut self.machines[at].raft {
            raft.step(self.now, input);
            self.take(at);
        }
    }

    fn take(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(raft) = &mut machine.raft else {
            return;
        };
        let Ready {
            persist,
            messages,
            reads,
            proposals: _,
            truncated_from: _,
            commit,
            role,
            halted,
            wants_snapshot: _,
            installed: _,
            guard_over: _,
        } = raft.take_ready();
        assert!(halted.is_none(), "{halted:?}");
        machine.reads.extend(reads);
        for persist in persist {
            machine.disk.write(GROUP, persist);
        }
        let machine = &self.machines[at];
        if let Some(raft) = &machine.raft {
            if let Some(change) = role {
                self.oracle.on_role(GROUP, raft, machine.replica, change);
            }
            if commit.is_some() {
                let disks: Vec<&Disk> = self.machines.iter().map(|m| &m.disk).collect();
                self.oracle
                    .on_commit(GROUP, raft, &disks, self.machines.len());
            }
        }
        for message in messages {
            self.send(message);
        }
    }

    fn send(&mut self, message: Message) {
        self.oracle.on_send(&message);
        let asks = matches!(message.body, Body::GenesisQuery(_));
        if self.messages.len() < MESSAGES_MAX && !asks {
            self.messages.push(message);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let calm = [18, 0, 7];
    let propose = [
        12, 0, 3, 9, 9, 9, 9, 12, 1, 3, 9, 9, 9, 9, 12, 2, 3, 9, 9, 9, 9,
    ];
    let without = |at| [19, at, 7];
    let crash = |at| [15, at, 0, 1];
    let mut long = vec![3];
    for at in 0..3 {
        long.extend(calm);
        long.extend(propose);
        long.extend(without(at));
        long.extend(propose);
        long.extend(crash(at));
        long.extend(calm);
        long.extend([16, at]);
    }
    let step_by_step = (0..120).map(|number: u8| number.wrapping_mul(7)).collect();
    vec![
        vec![0],
        [&[1], &calm[..], &propose].concat(),
        long,
        step_by_step,
    ]
}
