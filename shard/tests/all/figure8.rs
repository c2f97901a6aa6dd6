//! Raft's figure 8 on real files: five replicas, each dropped without a word and opened again after each step.
//!
//! Entries of an earlier term that lie on a majority are not committed by that (Raft §5.4.2): a replica with an
//! entry of a later term may still be elected and replace them (d), unless an entry of the leader's own term
//! has reached the majority as well (e). The entries of the figure are the no-ops that each leader begins with.

use std::path::PathBuf;
use std::task::Waker;

use logdrive_raft::io::{Config, Role};
use logdrive_raft::message::Body;
use logdrive_raft::{
    Anchor, Boot, Chain, ClusterId, Entry, GroupId, Incarnation, Index, LogPosition, Message,
    Micros, NodeId, Raft, Replica, Term,
};
use logdrive_shard::{
    ApplyBatch, GroupSetup, Inbox, Notice, Opened, PeerInput, Ports, Shard, SnapshotReader,
    SnapshotSettings, StoreJob,
};
use logdrive_wal::disk::pwrite::PwriteDisk;
use logdrive_wal::disk::{
    Block, Buffer, Completion, Disk, DiskError, DiskFacts, Op, OpId, SlotFile, SlotId, Wake, WakeBy,
};
use logdrive_wal::verify::verify;
use logdrive_wal::{FreshIds, Identity, Options, Verdict};

const GROUP: GroupId = GroupId(1);
const CLUSTER: ClusterId = ClusterId(8);
const SLOT_BYTES: u64 = 64 << 10;
const EVERYBODY: [u64; 5] = [1, 2, 3, 4, 5];

/// Up to (c) the figure has one history.
#[test]
fn d_what_an_earlier_term_left_on_a_majority_is_replaced() {
    let mut cluster = Cluster::through_c();
    let (s1, s5) = (cluster.chain(1, 2), cluster.chain(5, 2));
    assert_ne!(s1, s5);

    // (d) S5 is elected by S2, S3 and S4, and what S1 wrote at index 2 goes from every log.
    cluster.elect(5, &[2, 3, 4, 5]);
    cluster.replicate(5, &EVERYBODY, u64::MAX);
    let last = cluster.raft(5).last();
    assert_eq!(cluster.raft(5).commit(), last);
    assert_eq!((last.index, last.term), (Index(3), cluster.raft(5).term()));
    cluster.restart();
    for id in EVERYBODY {
        assert_eq!(cluster.raft(id).last(), last, "S{id}");
        assert_eq!(cluster.chain(id, 2), s5, "S{id}");
        assert_eq!(cluster.term_at(id, 2), Term(3), "S{id}");
    }
    // It goes on from there, whoever leads.
    cluster.elect(1, &EVERYBODY);
    cluster.replicate(1, &EVERYBODY, u64::MAX);
    assert_eq!(cluster.raft(1).commit().index, Index(4));
    let last = cluster.raft(1).last();
    cluster.verify(last);
}

#[test]
fn e_an_entry_of_the_own_term_on_a_majority_commits_what_is_before_it() {
    let mut cluster = Cluster::through_c();
    let chain = cluster.chain(1, 2);

    // (e) S1 leads again, and this time what it adds in its own term reaches S2 and S3 too.
    cluster.elect(1, &[1, 2, 3]);
    cluster.replicate(1, &[1, 2, 3], u64::MAX);
    let committed = cluster.raft(1).commit();
    assert_eq!(committed, cluster.raft(1).last());
    assert_eq!(committed.term, cluster.raft(1).term());
    cluster.restart();

    // S5 cannot win: a majority holds a later entry than its last.
    for _ in 0..30 {
        cluster.pass_time(5, &EVERYBODY, u64::MAX);
        assert_ne!(cluster.raft(5).role(), Role::Leader);
    }
    cluster.restart();
    cluster.elect(3, &[2, 3, 4, 5]);
    cluster.replicate(3, &EVERYBODY, u64::MAX);
    cluster.restart();
    let last = cluster.raft(3).last();
    assert!(committed.index < last.index);
    for id in EVERYBODY {
        assert_eq!(cluster.raft(id).last(), last, "S{id}");
        assert_eq!(cluster.chain(id, 2), chain, "S{id}");
        assert_eq!(cluster.chain(id, committed.index.0), committed.chain);
    }
    cluster.verify(last);
}

/// After (d) on all disks but that of S1: there the commit index and what it commits came to memory, and so to
/// the machine, and the process ended before its disk had them.
#[test]
fn a_machine_that_ran_ahead_of_its_disk_goes_on_once_the_log_has_what_it_applied() {
    let mut cluster = Cluster::through_c();
    cluster.elect(5, &[2, 3, 4, 5]);
    cluster.replicate(5, &[2, 3, 4, 5], u64::MAX);
    let commit = cluster.raft(5).commit();
    let (term, chain) = (cluster.term_at(5, 2), cluster.chain(5, 2));
    assert_eq!((commit.index, term), (Index(3), Term(3)));
    // S1 has two other entries in these places.
    assert_eq!(cluster.raft(1).last().index, Index(3));
    cluster.machines[0] = LogPosition {
        index: Index(2),
        term,
        chain,
    };
    cluster.restart();
    cluster.settle(&EVERYBODY, 0);
    assert_eq!(cluster.node(1).shard.ports().applied, []);

    cluster.elect(5, &[2, 3, 4, 5]);
    cluster.replicate(5, &EVERYBODY, u64::MAX);
    assert_eq!(cluster.chain(1, 2), chain);
    let last = cluster.raft(5).last();
    assert_eq!(cluster.raft(1).commit(), last);
    // Nothing twice, nothing left out.
    let after: Vec<Index> = (3..=last.index.0).map(Index).collect();
    assert_eq!(cluster.node(1).shard.ports().applied, after);
    let all: Vec<Index> = (1..=last.index.0).map(Index).collect();
    assert_eq!(cluster.node(2).shard.ports().applied, all);
}

impl Cluster {
    /// Steps (a) to (c), with a restart of every replica after each.
    fn through_c() -> Self {
        let mut cluster = Self::formed();
        cluster.elect(1, &EVERYBODY);
        cluster.replicate(1, &EVERYBODY, u64::MAX);
        cluster.restart();
        for id in EVERYBODY {
            let last = cluster.raft(id).last();
            assert_eq!((last.index, last.term), (Index(1), Term(1)), "S{id}");
        }

        // (a) S1 leads in term 2 and replicates index 2 to S2 only.
        cluster.elect(1, &EVERYBODY);
        cluster.replicate(1, &[1, 2], u64::MAX);
        cluster.restart();
        cluster.check_lasts([(2, 2), (2, 2), (1, 1), (1, 1), (1, 1)]);

        // (b) S5 is elected by S3, S4 and itself in term 3, and writes another index 2.
        cluster.elect(5, &[3, 4, 5]);
        cluster.replicate(5, &[5], u64::MAX);
        cluster.restart();
        cluster.check_lasts([(2, 2), (2, 2), (1, 1), (1, 1), (2, 3)]);

        // (c) S1 leads again, and replicates its old index 2 to S3: it lies on a majority.
        cluster.elect(1, &[1, 2, 3]);
        assert_eq!(cluster.raft(1).term(), Term(4));
        cluster.replicate(1, &[1, 2, 3], 2);
        let leader = cluster.raft(1);
        assert!(leader.durable_index() >= Index(2));
        for peer in leader.peers() {
            let reached = peer.match_index >= Some(Index(2));
            assert_eq!(reached, [2, 3].contains(&peer.replica.id.0), "{peer:?}");
        }
        for id in EVERYBODY {
            let commit = cluster.raft(id).commit().index;
            assert!(commit < Index(2), "S{id} holds {commit} for committed");
        }
        cluster.restart();
        cluster.check_lasts([(3, 4), (2, 2), (2, 2), (1, 1), (2, 3)]);
        assert_eq!(cluster.chain(1, 2), cluster.chain(3, 2));
        cluster
    }
}

/// Replicas in one thread, over files.
struct Cluster {
    directory: tempfile::TempDir,
    nodes: Vec<Node>,
    /// How far the machine of each reaches when it is opened.
    machines: [LogPosition; 5],
    /// Every boot draws its own timeouts and, the first time, its own identity.
    boots: u64,
}

struct Node {
    shard: Shard<Waited, Outbox>,
    inputs: Vec<PeerInput>,
    now: Micros,
}

impl Cluster {
    /// With a genesis everywhere, and no leader yet.
    fn formed() -> Self {
        // Not where temporary files lie: that may be a file system in memory.
        let directory = tempfile::tempdir_in(".").unwrap();
        let mut cluster = Self {
            directory,
            nodes: Vec::new(),
            machines: Default::default(),
            boots: 0,
        };
        cluster.restart();
        for _ in 0..100 {
            cluster.settle(&EVERYBODY, u64::MAX);
            let forming = |node: &&mut Node| node.shard.core(GROUP).is_none();
            let mut nodes = cluster.nodes.iter_mut();
            let Some(node) = nodes.find(forming) else {
                return cluster;
            };
            node.now = node.now.max(node.shard.next_deadline().unwrap());
        }
        panic!("the group does not form");
    }

    /// Drops every replica as it is, and opens it again from its files.
    fn restart(&mut self) {
        self.nodes.clear();
        for (id, machine) in EVERYBODY.into_iter().zip(self.machines) {
            self.boots += 1;
            let disk = Waited::new(PwriteDisk::new(self.log(id)));
            let node = Node::open(id, disk, machine, self.boots);
            self.nodes.push(node);
        }
        for (at, id) in EVERYBODY.iter().enumerate() {
            let others = EVERYBODY.iter().filter(|other| *other != id);
            let inputs = others.map(|other| PeerInput::Connected(NodeId(*other)));
            self.nodes[at].inputs.extend(inputs);
        }
    }

    fn log(&self, id: u64) -> PathBuf {
        self.directory.path().join(id.to_string()).join("wal-0")
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    fn raft(&self, id: u64) -> &Raft {
        let node = &self.nodes[usize::try_from(id).unwrap() - 1];
        node.shard.core(GROUP).unwrap()
    }

    fn chain(&self, id: u64, index: u64) -> Chain {
        self.raft(id).meta(Index(index)).unwrap().chain
    }

    fn term_at(&self, id: u64, index: u64) -> Term {
        self.raft(id).meta(Index(index)).unwrap().term
    }

    fn check_lasts(&self, expected: [(u64, u64); 5]) {
        for (id, (index, term)) in EVERYBODY.into_iter().zip(expected) {
            let last = self.raft(id).last();
            assert_eq!((last.index, last.term), (Index(index), Term(term)), "S{id}");
        }
    }

    /// Lets time pass for one replica until it leads, by the votes of those that it can talk to. What it
    /// would replicate as a leader reaches nobody yet.
    fn elect(&mut self, id: u64, reachable: &[u64]) {
        for _ in 0..100 {
            self.pass_time(id, reachable, 0);
            if self.raft(id).role() == Role::Leader {
                return;
            }
        }
        panic!("S{id} is not elected by {reachable:?}");
    }

    /// Lets a leader replicate for the time of two heartbeats, in which it notices what did not arrive.
    fn replicate(&mut self, id: u64, reachable: &[u64], through: u64) {
        let end = self.node(id).now.after(100_000);
        while self.node(id).now < end {
            self.pass_time(id, reachable, through);
        }
        assert_eq!(self.raft(id).role(), Role::Leader);
    }

    fn pass_time(&mut self, id: u64, reachable: &[u64], through: u64) {
        let node = self.node(id);
        let due = node.shard.next_deadline().unwrap();
        node.now = node.now.after(1_000).max(due);
        self.settle(reachable, through);
    }

    /// Turns every replica until nothing is under way: neither on a disk nor between those that are reachable,
    /// which get entries up to index `through`, as if a leader sent them one by one and the rest got lost.
    fn settle(&mut self, reachable: &[u64], through: u64) {
        for round in 0.. {
            assert!(round < 1000, "it does not come to rest");
            let mut sent = Vec::new();
            let mut moved = false;
            for node in &mut self.nodes {
                moved |= !node.inputs.is_empty();
                let now = node.now;
                node.shard.turn(now, &mut node.inputs);
                moved |= node.shard.disk_mut().wait_for_all();
                sent.append(&mut node.shard.ports().messages);
            }
            for mut message in sent {
                let reaches = |id: NodeId| reachable.contains(&id.0);
                if !reaches(message.from.id) || !reaches(message.to) {
                    continue;
                }
                if let Body::Append(append) = &mut message.body
                    && let Some(first) = append.entries.first()
                {
                    if first.index() > Index(through) {
                        continue;
                    }
                    let lets_pass = |entry: &Entry| entry.index() <= Index(through);
                    append.entries.retain(lets_pass);
                }
                let to = message.to.0;
                self.node(to).inputs.push(PeerInput::Message(message));
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    /// What the files say once nobody has them.
    fn verify(mut self, last: LogPosition) {
        self.nodes.clear();
        for id in EVERYBODY {
            let report = verify(self.log(id).parent().unwrap(), false).unwrap();
            assert!(report.verdict <= Verdict::Torn, "S{id}: {report}");
            let group = &report.groups[0];
            assert_eq!(group.chain, last.chain, "S{id}: {report}");
            assert_eq!((group.last_index, group.last_term), (last.index, last.term));
        }
    }
}

impl Node {
    fn open(id: u64, disk: Waited, applied: LogPosition, boot: u64) -> Self {
        let identity = Identity {
            cluster: CLUSTER,
            node: NodeId(id),
        };
        let fresh = FreshIds {
            incarnation: Incarnation(u128::from(boot) << 64 | 8),
            log_uuid: u128::from(boot),
        };
        let options = Options::new(identity, fresh).with_slots(SLOT_BYTES, 64);
        let frame_bytes_max = options.frame_bytes_max;
        let opened = Opened::open(disk, options).unwrap();
        let setup = GroupSetup {
            group: GROUP,
            inbox: Inbox::new(1 << 20, frame_bytes_max, Waker::noop().clone()),
            voters: EVERYBODY.map(|id| (NodeId(id), String::new())).to_vec(),
            applied,
            newest: None,
        };
        let core = Config::new(Replica::default(), Boot(0), GroupId(0), boot);
        let shard = opened.start(
            vec![setup],
            core,
            SnapshotSettings::manual(),
            Outbox::default(),
            Micros(0),
        );
        Self {
            shard: shard.unwrap(),
            inputs: Vec::new(),
            now: Micros(0),
        }
    }
}

/// Keeps messages, and which entries its machine was given.
#[derive(Default)]
struct Outbox {
    messages: Vec<Message>,
    applied: Vec<Index>,
}

impl Ports for Outbox {
    type Output = ();

    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    fn apply_room_bytes(&self) -> usize {
        usize::MAX
    }

    fn apply(&mut self, batch: ApplyBatch<()>) {
        let entries = batch.entries.iter();
        self.applied.extend(entries.map(|(entry, _)| entry.index()));
    }

    fn take_snapshot(&mut self, _: GroupId, anchor: Anchor) {
        panic!("nobody asked for {anchor:?}");
    }

    fn store(&mut self, job: StoreJob) {
        panic!("there are no snapshots: {job:?}");
    }

    fn install(&mut self, _: GroupId, at: LogPosition, _: Box<dyn SnapshotReader + Send>) {
        panic!("there are no snapshots: {at}");
    }

    fn notice(&mut self, notice: Notice) {
        let bad = matches!(
            notice,
            Notice::Halted { .. } | Notice::Poisoned { .. } | Notice::MachineDiffers { .. }
        );
        assert!(!bad, "{notice:?}");
    }
}

/// A disk that can be waited for until nothing is under way, so that no test has to watch a clock.
struct Waited {
    disk: PwriteDisk,
    under_way: usize,
    done: Vec<Completion>,
}

impl Waited {
    fn new(disk: PwriteDisk) -> Self {
        Self {
            disk,
            under_way: 0,
            done: Vec::new(),
        }
    }

    /// Says whether there was anything.
    fn wait_for_all(&mut self) -> bool {
        while self.under_way > 0 {
            let before = self.done.len();
            self.disk.wait(&mut self.done);
            self.under_way -= self.done.len() - before;
        }
        !self.done.is_empty()
    }
}

impl Disk for Waited {
    fn facts(&self) -> DiskFacts {
        self.disk.facts()
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        self.disk.slot_path(slot)
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        self.disk.lock()
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        self.disk.slots()
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        self.disk.sync_all()
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        self.disk.create(slot, blocks)
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        self.disk.read(slot, block, into)
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        self.disk.write(slot, block, blocks)
    }

    fn flush(&mut self, slot: SlotId) -> Result<(), DiskError> {
        self.disk.flush(slot)
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        self.disk.take_buffer(blocks)
    }

    fn give_buffer(&mut self, buffer: Buffer) {
        self.disk.give_buffer(buffer);
    }

    fn submit(&mut self, id: OpId, op: Op) {
        self.under_way += 1;
        self.disk.submit(id, op);
    }

    fn kick(&mut self) {
        self.disk.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let before = self.done.len();
        self.disk.poll(&mut self.done);
        self.under_way -= self.done.len() - before;
        done.append(&mut self.done);
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        if self.done.is_empty() {
            self.disk.wait(&mut self.done);
            self.under_way -= self.done.len();
        }
        done.append(&mut self.done);
    }

    fn wake_by(&mut self, wake: Wake) -> WakeBy {
        self.disk.wake_by(wake)
    }

    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }
}
