//! A core that is told anything by anybody: messages with every field drawn at random, from extremes and
//! from what nearly fits. It may refuse, ignore or halt. It may not panic, and not lose what is committed.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

use logdrive_raft::bootstrap::Bootstrap;
use logdrive_raft::io::{Config, Input, PersistId, Restored};
use logdrive_raft::message::{
    Ack, Append, CommitPoint, GenesisQuery, GenesisReply, Heartbeat, HeartbeatReply, Reject,
    VoteReply, VoteRequest,
};
use logdrive_raft::{
    Body, Boot, Chain, ClusterId, Entry, EntryBuilder, EntryKind, Genesis, GroupId, Incarnation,
    Index, LogPosition, Member, Message, Micros, NodeId, Raft, Replica, ReplicationSession, Round,
    Term, UnsealedEntry,
};

const GROUP: GroupId = GroupId(1);

struct Liar {
    random: fastrand::Rng,
    /// Logs that share beginnings, as far as the liar has made them up.
    log: Vec<Entry>,
}

impl Liar {
    fn number(&mut self) -> u64 {
        match self.random.u8(..20) {
            0 => u64::MAX,
            1 => u64::MAX / 2,
            2 => self.random.u64(..),
            _ => self.random.u64(0..8),
        }
    }

    fn replica(&mut self) -> Replica {
        Replica {
            id: NodeId(self.random.u64(0..5)),
            incarnation: Incarnation(u128::from(self.random.u8(..10) == 0)),
        }
    }

    fn position(&mut self) -> LogPosition {
        if self.random.u8(..4) > 0 {
            let place = self.random.usize(..=self.log.len());
            return place
                .checked_sub(1)
                .map_or(genesis().origin(), |last| self.log[last].position());
        }
        LogPosition {
            index: Index(self.number()),
            term: Term(self.number()),
            chain: Chain(self.random.u128(..)),
        }
    }

    fn session(&mut self) -> ReplicationSession {
        ReplicationSession {
            boot: Boot(self.random.u64(0..3)),
            counter: self.number(),
        }
    }

    fn commit(&mut self) -> CommitPoint {
        let position = self.position();
        CommitPoint {
            index: position.index,
            chain: position.chain,
        }
    }

    /// Makes the log longer, or another one.
    fn grow(&mut self) {
        let kept = self.random.usize(..=self.log.len());
        if self.random.u8(..4) == 0 {
            self.log.truncate(kept);
        }
        let last = self.log.last().map_or(genesis().origin(), Entry::position);
        let term = Term(last.term.0.max(self.random.u64(1..8)));
        let entry = match self.random.u8(..10) {
            0 => UnsealedEntry::bare(EntryKind::Configuration, &[0, 1, 2]),
            1 => {
                let mut builder = EntryBuilder::with_room(1, 1);
                builder.push(b"?");
                builder.finish()
            }
            _ => UnsealedEntry::bare(EntryKind::Noop, &[]),
        };
        self.log
            .push(entry.seal(GROUP, term, last.index.next(), last.chain));
    }

    fn body(&mut self) -> Body {
        match self.random.u8(..12) {
            0 => Body::VoteRequest(VoteRequest {
                pre: self.random.bool(),
                last: self.position(),
            }),
            1 | 2 => Body::VoteReply(VoteReply {
                pre: self.random.bool(),
                granted: self.random.u8(..4) > 0,
            }),
            3..6 => {
                self.grow();
                let from = self.random.usize(..=self.log.len());
                let to = self.random.usize(from..=self.log.len());
                let before = from.checked_sub(1);
                let fits = before.map_or(genesis().origin(), |last| self.log[last].position());
                let prev = if self.random.u8(..4) == 0 {
                    self.position()
                } else {
                    fits
                };
                Body::Append(Append {
                    session: self.session(),
                    prev,
                    entries: self.log[from..to].to_vec(),
                    commit: self.commit(),
                    last_index: Index(self.number()),
                    round: Round(self.number()),
                    heard: None,
                })
            }
            6 => Body::Ack(Ack {
                session: self.session(),
                index: Index(self.number()),
                chain: self.position().chain,
                round: Round(self.number()),
            }),
            7 => Body::Reject(Reject {
                session: self.session(),
                prev_index: Index(self.number()),
                hint: self.position(),
                round: Round(self.number()),
            }),
            8 => Body::Heartbeat(Heartbeat {
                commit: self.commit(),
                last_index: Index(self.number()),
                round: Round(self.number()),
                heard: None,
            }),
            9 => Body::HeartbeatReply(HeartbeatReply {
                round: Round(self.number()),
            }),
            10 => Body::GenesisQuery(GenesisQuery {
                question: self.number(),
                voters: vec![NodeId(self.number()), NodeId(1)],
            }),
            _ => match self.random.u8(..3) {
                0 => Body::GenesisOffer(genesis()),
                1 => Body::GenesisReply(GenesisReply {
                    question: self.number(),
                    genesis: None,
                }),
                _ => Body::GenesisReply(GenesisReply {
                    question: self.number(),
                    genesis: Some(genesis()),
                }),
            },
        }
    }

    fn message(&mut self) -> Message {
        Message {
            from: self.replica(),
            boot: Boot(self.number()),
            to: NodeId(1),
            group: GROUP,
            term: Term(self.number()),
            body: self.body(),
        }
    }
}

fn genesis() -> Genesis {
    let member = |id| Member {
        replica: Replica {
            id: NodeId(id),
            incarnation: Incarnation(0),
        },
        address: String::new(),
    };
    Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: (1..=3).map(member).collect(),
    }
}

#[test]
fn a_core_survives_whatever_it_is_told() {
    let (mut led, mut halted) = (0, 0);
    for seed in 0..3000 {
        let random = fastrand::Rng::with_seed(seed);
        let mut liar = Liar {
            random,
            log: Vec::new(),
        };
        let restored = Restored::at(genesis().origin(), genesis().membership());
        let me = genesis().voters[0].replica;
        let config = Config {
            cache_bytes_max: 300,
            inflight_entries_max: 3,
            ..Config::new(me, Boot(1), GROUP, seed)
        };
        let mut raft = Raft::new(config, restored, Micros(0));
        let mut committed: Vec<Chain> = Vec::new();
        let mut newest = PersistId(0);
        let mut now = Micros(0);
        for _ in 0..200 {
            now = now.after(liar.random.u64(0..60_000));
            let input = match liar.random.u8(..20) {
                0..4 => Input::Tick,
                4 => Input::PeerConnected(NodeId(liar.number())),
                5 => Input::PeerDisconnected(NodeId(liar.random.u64(0..5))),
                6 if liar.random.bool() => Input::Durable(newest),
                6 if liar.random.bool() => Input::LaneRoom(NodeId(liar.random.u64(0..5))),
                6 => Input::LaneFull {
                    peer: NodeId(liar.random.u64(0..5)),
                    session: ReplicationSession {
                        boot: Boot(1),
                        counter: liar.random.u64(0..4),
                    },
                    from: Index(liar.number()),
                },
                7 => Input::Read {
                    peer: NodeId(liar.random.u64(0..5)),
                    from: Index(liar.number()),
                    entries: liar.log.clone(),
                },
                8 => {
                    let mut builder = EntryBuilder::with_room(1, 1);
                    builder.push(b"!");
                    Input::Propose(builder.finish())
                }
                9 => Input::Propose(UnsealedEntry::bare(EntryKind::Configuration, &[9; 9])),
                10 => Input::Message(Message {
                    term: Term(raft.term().0.saturating_add(1)),
                    body: Body::VoteReply(VoteReply {
                        pre: true,
                        granted: true,
                    }),
                    from: genesis().voters[1].replica,
                    ..liar.message()
                }),
                11 => Input::Message(Message {
                    term: raft.term(),
                    body: Body::VoteReply(VoteReply {
                        pre: false,
                        granted: true,
                    }),
                    from: genesis().voters[1].replica,
                    ..liar.message()
                }),
                12..16 => Input::Message(Message {
                    term: raft.term(),
                    ..liar.message()
                }),
                _ => Input::Message(liar.message()),
            };
            raft.step(now, input);
            let ready = raft.take_ready();
            if let Some(persist) = ready.persist.last() {
                newest = persist.id;
            }
            led += u32::from(raft.role() == logdrive_raft::io::Role::Leader);
            halted += u32::from(ready.halted.is_some());
            let commit = raft.commit().index.0;
            for index in committed.len() as u64 + 1..=commit {
                committed.push(raft.meta(Index(index)).unwrap().chain);
            }
            for (place, chain) in committed.iter().enumerate() {
                let held = raft.meta(Index(place as u64 + 1)).map(|meta| meta.chain);
                assert_eq!(
                    held,
                    Some(*chain),
                    "seed {seed}: committed entry {} is gone",
                    place + 1
                );
            }
        }
    }
    // It was somebody worth lying to.
    assert!(led > 1000 && halted > 100, "led {led}, halted {halted}");
}

#[test]
fn an_empty_directory_survives_whatever_it_is_told() {
    for seed in 0..500 {
        let random = fastrand::Rng::with_seed(seed);
        let mut liar = Liar {
            random,
            log: Vec::new(),
        };
        let listed = (1..=3).map(|id| (NodeId(id), String::new())).collect();
        let me = genesis().voters[0].replica;
        let mut now = Micros(0);
        let mut bootstrap = Bootstrap::new(me, Boot(1), ClusterId(1), GROUP, listed, now);
        for _ in 0..100 {
            now = now.after(liar.random.u64(0..60_000));
            let input = match liar.random.u8(..4) {
                0 => Input::Tick,
                _ => Input::Message(liar.message()),
            };
            bootstrap.step(now, input);
            let _ = bootstrap.take_ready();
        }
    }
}
