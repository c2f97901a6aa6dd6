//! Three cores that reach each other by function call, on disks that are always done.
//!
//! What remains is what consensus itself costs. The leader pipelines: a burst of entries is proposed, then
//! appended by the followers, then acknowledged, and each of these stretches has a clock of its own.

use std::mem;
use std::time::{Duration, Instant};

use logdrive_raft::io::{Config, Input, Proposed, Ready, Restored, Role};
use logdrive_raft::{
    Boot, ClusterId, Genesis, Incarnation, Member, Message, Micros, NodeId, Raft, Replica,
    UnsealedEntry,
};

use crate::GROUP;

/// A group of three. The first one leads.
#[derive(Debug)]
pub struct Trio {
    rafts: [Raft; 3],
    now: Micros,
}

/// Processor time of one burst, by what it was spent on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// The leader takes proposals and hands out writes and appends.
    pub propose: Duration,
    /// One follower takes the appends and hands out writes.
    pub append: Duration,
    /// The same follower learns that they are durable and hands out acks.
    pub durable: Duration,
    /// The leader takes the acks of one follower and commits.
    pub ack: Duration,
    /// Everything that the three of them did.
    pub all: Duration,
}

impl Default for Trio {
    fn default() -> Self {
        Self::new()
    }
}

impl Trio {
    /// A group whose leader has committed its first entry.
    ///
    /// # Panics
    ///
    /// If the cores do not elect one.
    #[must_use]
    pub fn new() -> Self {
        let genesis = genesis();
        let core = |id| {
            let mut config = Config::new(replica(id), Boot(1), GROUP, id);
            // Bursts are bounded here, not by the core.
            config.uncommitted_entries_max = usize::MAX;
            config.uncommitted_bytes_max = usize::MAX;
            config.disk_lag_bytes_max = usize::MAX;
            let restored = Restored::at(genesis.origin(), genesis.membership());
            Raft::new(config, restored, Micros(0))
        };
        let mut trio = Self {
            rafts: [core(1), core(2), core(3)],
            now: Micros(1_000_000),
        };
        trio.rafts[0].step(trio.now, Input::Tick);
        trio.settle();
        // The followers learn from a heartbeat that the no-op is committed.
        trio.now = trio.now.after(60_000);
        trio.rafts[0].step(trio.now, Input::Tick);
        trio.settle();
        assert!(trio.rafts[0].role() == Role::Leader);
        assert!(trio.rafts[2].commit() == trio.rafts[0].last());
        trio
    }

    /// The leader.
    #[must_use]
    pub fn leader(&self) -> &Raft {
        &self.rafts[0]
    }

    /// Proposes entries, one a turn, and carries all of them through until they are committed.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub fn burst(&mut self, entries: Vec<UnsealedEntry>) -> Spent {
        let mut spent = Spent::default();
        let turns = entries.len();
        let began = Instant::now();
        let proposed = self.turns(0, entries.into_iter().map(Input::Propose));
        spent.propose = began.elapsed();
        spent.all += spent.propose;

        let (mut appends, mut persisted) = ([Vec::with_capacity(turns), Vec::new()], Vec::new());
        for ready in proposed {
            let taken = |answer: &Proposed| matches!(answer, Proposed::Accepted { .. });
            assert!(ready.proposals.iter().all(taken));
            persisted.extend(ready.persist.iter().map(|persist| persist.id));
            for message in ready.messages {
                appends[if message.to == NodeId(2) { 0 } else { 1 }].push(message);
            }
        }
        // The leader's own disk: it never is the last to make a quorum here.
        let began = Instant::now();
        let committed = self.turns(0, persisted.into_iter().map(Input::Durable));
        spent.all += began.elapsed();
        drop(committed);

        for (place, appends) in [1, 2].into_iter().zip(appends) {
            let began = Instant::now();
            let appended = self.turns(place, appends.into_iter().map(Input::Message));
            spent.append = began.elapsed();
            spent.all += spent.append;

            let (mut ids, mut acks) = (Vec::with_capacity(turns), Vec::with_capacity(turns));
            for ready in appended {
                for persist in ready.persist {
                    ids.push(persist.id);
                    acks.extend(persist.then);
                }
                acks.extend(ready.messages);
            }
            let began = Instant::now();
            let durable = self.turns(place, ids.into_iter().map(Input::Durable));
            spent.durable = began.elapsed();
            spent.all += spent.durable;

            for ready in durable {
                acks.extend(ready.messages);
            }
            let began = Instant::now();
            let committed = self.turns(0, acks.into_iter().map(Input::Message));
            let took = began.elapsed();
            spent.all += took;
            // The first follower's acks commit; the second's only move its window.
            if place == 1 {
                spent.ack = took;
            }
            drop(committed);
        }
        assert!(self.rafts[0].commit() == self.rafts[0].last());
        spent
    }

    /// One input a turn.
    fn turns(&mut self, place: usize, inputs: impl Iterator<Item = Input>) -> Vec<Ready> {
        let (now, raft) = (self.now, &mut self.rafts[place]);
        inputs
            .map(|input| {
                raft.step(now, input);
                raft.take_ready()
            })
            .collect()
    }

    /// Carries out everything that is owed until nothing is.
    fn settle(&mut self) {
        let mut mail: Vec<Message> = Vec::new();
        loop {
            let mut idle = mail.is_empty();
            for message in mem::take(&mut mail) {
                let place = usize::try_from(message.to.0 - 1).expect("three nodes");
                self.rafts[place].step(self.now, Input::Message(message));
            }
            for raft in &mut self.rafts {
                let ready = raft.take_ready();
                idle &= ready.persist.is_empty() && ready.messages.is_empty();
                mail.extend(ready.messages);
                for persist in ready.persist {
                    raft.step(self.now, Input::Durable(persist.id));
                    mail.extend(persist.then);
                }
            }
            if idle {
                return;
            }
        }
    }
}

/// The genesis of a group of three.
#[must_use]
pub fn genesis() -> Genesis {
    let voters = [1, 2, 3].map(|id| Member {
        replica: replica(id),
        address: format!("127.0.0.1:{}", 7000 + id),
    });
    Genesis {
        cluster: ClusterId::named("bench"),
        group: GROUP,
        voters: voters.into(),
    }
}

fn replica(id: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(u128::from(id) << 96),
    }
}

#[cfg(test)]
mod tests {
    use logdrive_raft::Index;

    use super::*;
    use crate::Shape;

    #[test]
    fn bursts_commit_on_all_three() {
        let mut trio = Trio::new();
        let before = trio.leader().last().index;
        let shape = Shape::new(2, 16);
        for _ in 0..3 {
            let entries = (0..10).map(|_| shape.build(&shape.payloads())).collect();
            let spent = trio.burst(entries);
            assert!(spent.propose + spent.append + spent.ack <= spent.all);
        }
        assert_eq!(trio.leader().commit().index, Index(before.0 + 30));
        assert_eq!(trio.rafts[1].last(), trio.leader().last());
        assert_eq!(trio.rafts[2].last(), trio.leader().last());
    }
}
