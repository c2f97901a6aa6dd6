//! Three shards over a network that loses nothing: what a log that is full, or too small, means for others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::vec::Drain;

use logdrive_raft::io::Role;
use logdrive_raft::wire::Encode;
use logdrive_raft::{ClusterId, GroupId, LogPosition, Micros, NodeId};
use logdrive_shard::kv::{Command, KvOutput, Op};
use logdrive_shard::{Failure, GroupState, PeerInput, Refused, ReplySink};
use logdrive_sim::disk::{Crash, SimDiskOptions, Tear};
use logdrive_sim::node::{NodeOptions, SimNode};
use logdrive_wal::disk::WatchdogLimits;

const GROUP: GroupId = GroupId(1);

/// Nobody waits.
struct Nobody;

impl ReplySink<KvOutput> for Nobody {
    fn applied(&self, _: u64, _: u32, _: LogPosition, _: u32, _: Drain<'_, KvOutput>) {}

    fn failed(&self, _: u64, _: u32, _: u32, _: Failure) {}
}

struct Trio {
    nodes: Vec<SimNode>,
    now: Micros,
}

impl Trio {
    /// Nodes with slots of so many bytes each, and so many of them.
    fn new(slots: [(u64, u64); 3]) -> Self {
        let nodes = (1..=3).map(NodeId).zip(slots);
        let nodes = nodes.map(|(id, (slot_bytes, count))| {
            let options = NodeOptions {
                cluster: ClusterId(7),
                nodes: (1..=3).map(NodeId).collect(),
                groups: vec![GROUP],
                slot_bytes,
                bytes_max: slot_bytes * count,
                disk: SimDiskOptions::default(),
                watchdog: WatchdogLimits::default(),
                no_space_ppm: 0,
                cache_bytes_max: 64 << 10,
            };
            SimNode::new(id, options, id.0)
        });
        let mut trio = Self {
            nodes: nodes.collect(),
            now: Micros(0),
        };
        for place in 0..3 {
            trio.start(place);
        }
        trio.run_for(1_000_000);
        trio
    }

    fn start(&mut self, place: usize) {
        let now = self.now;
        self.nodes[place].start(now).unwrap();
        let id = self.nodes[place].id();
        for other in 0..3 {
            if other != place {
                let peer = self.nodes[other].id();
                self.nodes[place].give(PeerInput::Connected(peer));
                self.nodes[other].give(PeerInput::Connected(id));
            }
        }
    }

    fn run_for(&mut self, us: u64) {
        let end = self.now.after(us);
        while self.now < end {
            let due = self.nodes.iter_mut().filter_map(SimNode::next_due).min();
            self.now = due.unwrap_or(end).clamp(self.now.after(10), end);
            let now = self.now;
            let turns = self.nodes.iter_mut().flat_map(|node| node.turn(now));
            for message in turns.collect::<Vec<_>>() {
                let to = usize::try_from(message.to.0 - 1).unwrap();
                self.nodes[to].give(PeerInput::Message(message));
            }
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |node: &SimNode| {
            node.core(GROUP)
                .is_some_and(|core| core.role() == Role::Leader)
        };
        self.nodes.iter().position(leads)
    }

    fn put(&mut self, bytes: usize) -> Result<(), Refused> {
        let leader = self.leader().unwrap();
        let value = vec![b'v'; bytes];
        let command = Command {
            origin: None,
            key: b"k",
            op: Op::Put(&value),
        };
        let sink: Arc<dyn ReplySink<KvOutput>> = Arc::new(Nobody);
        let door = self.nodes[leader].door(GROUP).unwrap();
        let refused = door.submit(&[command.to_bytes()], &sink, 0);
        self.nodes[leader].poke();
        self.run_for(20_000);
        refused
    }

    fn assert_running(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let state = &node.status().unwrap().groups[0].state;
            assert!(matches!(state, GroupState::Running(_)), "{state:?}");
        }
    }

    fn said(&mut self, place: usize, what: &str) -> Vec<String> {
        let notices = self.nodes[place].take_notices();
        let notices = notices.iter().map(|notice| format!("{notice:?}"));
        notices.filter(|text| text.contains(what)).collect()
    }
}

#[test]
fn elections_go_on_when_every_log_is_full() {
    let mut trio = Trio::new([(64 << 10, 16); 3]);
    let full = Err(Refused::Closed(Failure::StorageFull));
    for bytes in [10_000, 1] {
        while trio.put(bytes) != full {
            assert!(trio.now < Micros(60_000_000), "the logs do not fill up");
        }
        // The door opens again while there is room for less than what was refused.
        trio.run_for(100_000);
    }
    let old = trio.leader().unwrap();
    let before = trio.nodes[old].core(GROUP).unwrap().commit();
    trio.nodes[old].crash(Crash::Process, Tear::Never);
    trio.run_for(2_000_000);
    trio.assert_running();
    let new = trio.leader().unwrap();
    let commit = trio.nodes[new].core(GROUP).unwrap().commit();
    assert!(before.term < commit.term, "{commit} is not of the new term");
    trio.start(old);
    trio.run_for(1_000_000);
    trio.assert_running();
    assert_eq!(trio.nodes[old].core(GROUP).unwrap().commit(), commit);
}

#[test]
fn an_entry_larger_than_a_followers_log_takes_is_dropped_with_a_word_and_halts_nobody() {
    let mut trio = Trio::new([(256 << 10, 64), (256 << 10, 64), (64 << 10, 64)]);
    while trio.leader() == Some(2) {
        // Its own door would not take the entry.
        trio.nodes[2].crash(Crash::Process, Tear::Never);
        trio.run_for(1_000_000);
        trio.start(2);
        trio.run_for(100_000);
    }
    let commit = |trio: &Trio, place: usize| trio.nodes[place].core(GROUP).unwrap().commit();
    trio.put(40_000).unwrap();
    trio.run_for(2_000_000);
    trio.assert_running();
    let leader = trio.leader().unwrap();
    assert!(leader != 2);
    assert_eq!(commit(&trio, 0), commit(&trio, 1));
    assert!(commit(&trio, 2).index < commit(&trio, 0).index);
    let said = trio.said(2, "FrameTooLarge");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("frame_bytes_max: 16384"), "{said:?}");
}
