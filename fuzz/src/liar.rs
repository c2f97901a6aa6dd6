//! A core, and a directory without one yet, that are told anything by anybody. They may refuse, ignore or
//! halt; they do not panic, and what is committed stays.

use logdrive_raft::bootstrap::Bootstrap;
use logdrive_raft::io::{Config, Input, PersistId, Restored};
use logdrive_raft::message::{
    Ack, Append, Body, CommitPoint, GenesisQuery, GenesisReply, Heartbeat, HeartbeatReply, Message,
    Reject, VoteReply, VoteRequest,
};
use logdrive_raft::{
    Boot, Chain, ClusterId, Entry, EntryBuilder, EntryKind, Genesis, GroupId, Incarnation, Index,
    LogPosition, Micros, NodeId, Raft, Replica, ReplicationSession, Round, Term, UnsealedEntry,
};

use crate::script::Script;
use crate::wire::member;

const GROUP: GroupId = GroupId(1);

struct Liar<'a> {
    script: Script<'a>,
    /// Logs that share beginnings, as far as the liar has made them up.
    log: Vec<Entry>,
}

impl Liar<'_> {
    fn number(&mut self) -> u64 {
        self.script.number()
    }

    fn replica(&mut self) -> Replica {
        let known = member(self.script.below(5) as u64).replica;
        Replica {
            incarnation: if self.script.byte() > 240 {
                Incarnation(9)
            } else {
                known.incarnation
            },
            ..known
        }
    }

    fn position(&mut self) -> LogPosition {
        match self.script.byte() {
            250.. => LogPosition {
                index: Index(self.number()),
                term: Term(self.number()),
                chain: Chain(u128::from(self.number())),
            },
            place => self.place(usize::from(place) % (self.log.len() + 1)),
        }
    }

    /// Where the made-up log stands after so many entries.
    fn place(&self, count: usize) -> LogPosition {
        let last = count.checked_sub(1);
        last.map_or(genesis().origin(), |last| self.log[last].position())
    }

    fn session(&mut self) -> ReplicationSession {
        ReplicationSession {
            boot: Boot(self.script.below(3) as u64),
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
        let kept = self.script.below(self.log.len() + 1);
        if self.script.byte().is_multiple_of(4) {
            self.log.truncate(kept);
        }
        let last = self.place(self.log.len());
        let term = Term(last.term.0.max(1 + self.script.below(7) as u64));
        let entry = match self.script.byte() % 10 {
            0 => UnsealedEntry::bare(EntryKind::Configuration, &self.script.bytes(40)),
            1 => proposal(),
            _ => UnsealedEntry::bare(EntryKind::Noop, &[]),
        };
        self.log
            .push(entry.seal(GROUP, term, last.index.next(), last.chain));
    }

    fn body(&mut self) -> Body {
        match self.script.byte() % 13 {
            0 => Body::VoteRequest(VoteRequest {
                pre: self.script.bit(),
                last: self.position(),
            }),
            1 | 2 => Body::VoteReply(VoteReply {
                pre: self.script.bit(),
                granted: !self.script.bit(),
            }),
            3..7 => {
                self.grow();
                let from = self.script.below(self.log.len() + 1);
                let to = from + self.script.below(self.log.len() + 1 - from);
                let prev = match self.script.byte() % 4 {
                    0 => self.position(),
                    _ => self.place(from),
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
            7 => Body::Ack(Ack {
                session: self.session(),
                index: Index(self.number()),
                chain: self.position().chain,
                round: Round(self.number()),
            }),
            8 => Body::Reject(Reject {
                session: self.session(),
                prev_index: Index(self.number()),
                hint: self.position(),
                round: Round(self.number()),
            }),
            9 => Body::Heartbeat(Heartbeat {
                commit: self.commit(),
                last_index: Index(self.number()),
                round: Round(self.number()),
                heard: None,
            }),
            10 => Body::HeartbeatReply(HeartbeatReply {
                round: Round(self.number()),
            }),
            11 => Body::GenesisQuery(GenesisQuery {
                question: self.number(),
                voters: vec![NodeId(self.number()), NodeId(1)],
            }),
            _ => match self.script.byte() % 3 {
                0 => Body::GenesisOffer(self.genesis()),
                1 => Body::GenesisReply(GenesisReply {
                    question: self.number(),
                    genesis: None,
                }),
                _ => Body::GenesisReply(GenesisReply {
                    question: self.number(),
                    genesis: Some(self.genesis()),
                }),
            },
        }
    }

    fn genesis(&mut self) -> Genesis {
        match self.script.byte() {
            240.. => Genesis {
                cluster: ClusterId(u128::from(self.number())),
                group: GroupId(self.number()),
                voters: self
                    .script
                    .bytes(6)
                    .iter()
                    .map(|id| member(u64::from(*id)))
                    .collect(),
            },
            _ => genesis(),
        }
    }

    fn message(&mut self, term: Term) -> Message {
        Message {
            from: self.replica(),
            boot: Boot(self.number()),
            to: NodeId(1),
            group: GROUP,
            term: match self.script.byte() % 4 {
                0 => Term(self.number()),
                1 => Term(term.0.saturating_add(1)),
                _ => term,
            },
            body: self.body(),
        }
    }
}

fn proposal() -> UnsealedEntry {
    let mut builder = EntryBuilder::with_room(1, 1);
    builder.push(b"?");
    builder.finish()
}

fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: (1..=3).map(member).collect(),
    }
}

pub(crate) fn core(data: &[u8]) {
    let (script, log) = (Script(data), Vec::new());
    let mut liar = Liar { script, log };
    let restored = Restored {
        never_votes: liar.script.byte() == 1,
        ..Restored::at(genesis().origin(), genesis().membership())
    };
    let config = Config {
        cache_bytes_max: 300,
        inflight_entries_max: 3,
        ..Config::new(member(1).replica, Boot(1), GROUP, 1)
    };
    let mut raft = Raft::new(config, restored, Micros(0));
    let mut committed: Vec<Chain> = Vec::new();
    let mut newest = PersistId(0);
    let mut now = Micros(0);
    for _ in 0..256 {
        if liar.script.is_over() {
            break;
        }
        now = now.after(500 * u64::from(liar.script.byte()));
        let input = match liar.script.byte() % 16 {
            0 | 1 => {
                now = now.max(raft.next_deadline());
                Input::Tick
            }
            2 => Input::PeerConnected(NodeId(liar.number())),
            3 => Input::PeerDisconnected(NodeId(liar.number())),
            4 | 5 => Input::Durable(newest),
            6 => Input::LaneRoom(NodeId(liar.number())),
            7 => Input::LaneFull {
                peer: NodeId(liar.number()),
                session: liar.session(),
                from: Index(liar.number()),
            },
            8 => Input::Read {
                peer: NodeId(liar.number()),
                from: Index(liar.number()),
                entries: liar.log.clone(),
            },
            9 => Input::Propose(proposal()),
            10 => {
                let payload = liar.script.bytes(40);
                Input::Propose(UnsealedEntry::bare(EntryKind::Configuration, &payload))
            }
            _ => Input::Message(liar.message(raft.term())),
        };
        raft.step(now, input);
        let ready = raft.take_ready();
        if let Some(persist) = ready.persist.last() {
            newest = persist.id;
        }
        let commit = raft.commit().index.0;
        for index in committed.len() as u64 + 1..=commit {
            let meta = raft.meta(Index(index)).expect("what is committed is held");
            committed.push(meta.chain);
        }
        for (place, chain) in (1..).zip(&committed) {
            let held = raft.meta(Index(place)).map(|meta| meta.chain);
            assert_eq!(held, Some(*chain), "committed entry {place} is gone");
        }
    }
}

pub(crate) fn bootstrap(data: &[u8]) {
    let (script, log) = (Script(data), Vec::new());
    let mut liar = Liar { script, log };
    let listed = (1..=3).map(|id| (NodeId(id), member(id).address));
    let (me, cluster) = (member(1).replica, ClusterId(1));
    let mut now = Micros(0);
    let mut bootstrap = Bootstrap::new(me, Boot(1), cluster, GROUP, listed.collect(), now);
    for _ in 0..256 {
        if liar.script.is_over() {
            break;
        }
        now = now.after(1_000 * u64::from(liar.script.byte()));
        let input = match liar.script.byte() % 4 {
            0 => Input::Tick,
            _ => Input::Message(liar.message(Term(0))),
        };
        bootstrap.step(now, input);
        let _ = bootstrap.take_ready();
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // An election that is won, then proposals, then whatever.
    let mut won = vec![0];
    let vote = |pre: u8| [0, 11, 2, 0, 1, 2, 1, pre, 0];
    won.extend([0, 0]);
    won.extend(vote(1));
    won.extend([0, 4]);
    won.extend(vote(0));
    won.extend([0, 9, 0, 4, 0, 9, 0, 4]);
    let counted = |step: u8| (0..200).map(|at: u8| at.wrapping_mul(step)).collect();
    vec![won, counted(3), counted(7), counted(11)]
}
