//! Cuts and received snapshots, one replica at a time (Raft §7).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use logdrive_raft::io::{
    Config, EntryMeta, HaltReason, HardState, Input, Installed, Ready, Restored, Role, Write,
};
use logdrive_raft::message::{Ack, Append, Behind, CommitPoint, Reject, VoteReply};
use logdrive_raft::{
    Anchor, Body, Boot, Chain, ClusterId, Entry, Genesis, GroupId, Incarnation, Index, LogPosition,
    Member, Membership, Message, Micros, NodeId, Raft, Replica, ReplicationSession, Round,
    SnapshotId, Term,
};

const GROUP: GroupId = GroupId(1);

fn replica(id: u64) -> Replica {
    let incarnation = Incarnation(u128::from(id));
    let id = NodeId(id);
    Replica { id, incarnation }
}

fn membership(ids: &[u64]) -> Membership {
    let member = |id: &u64| Member {
        replica: replica(*id),
        address: String::new(),
    };
    Membership::of_voters(ids.iter().map(member).collect())
}

fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: membership(&[1, 2, 3]).voters,
    }
}

fn session(counter: u64) -> ReplicationSession {
    let boot = Boot(1);
    ReplicationSession { boot, counter }
}

/// Entries of these terms, from the first one on.
fn entries(terms: &[u64]) -> Vec<Entry> {
    let mut chain = genesis().origin().chain;
    let mut entries = Vec::new();
    for (index, term) in (1..).zip(terms) {
        let entry = Entry::noop(GROUP, Term(*term), Index(index), chain);
        chain = entry.header().chain;
        entries.push(entry);
    }
    entries
}

fn meta(entry: &Entry) -> EntryMeta {
    EntryMeta {
        term: entry.term(),
        chain: entry.header().chain,
        frame_bytes: u32::try_from(entry.frame().len()).unwrap(),
    }
}

fn anchor(at: LogPosition) -> Anchor {
    Anchor {
        at,
        membership: membership(&[1, 2, 3]),
        ..Anchor::default()
    }
}

/// Replica 1 of three, and what it has yet to make durable.
struct Server {
    raft: Raft,
    now: Micros,
    ready: Ready,
}

impl Server {
    fn with_log(terms: &[u64], term: u64) -> Self {
        let restored = Restored {
            hard_state: HardState {
                term: Term(term),
                vote: None,
            },
            entries: entries(terms).iter().map(meta).collect(),
            ..Restored::at(genesis().origin(), membership(&[1, 2, 3]))
        };
        Self::new(restored)
    }

    fn new(restored: Restored) -> Self {
        let config = Config::new(replica(1), Boot(1), GROUP, 1);
        let now = Micros(1_000_000);
        let mut raft = Raft::new(config, restored, now);
        let ready = raft.take_ready();
        Self { raft, now, ready }
    }

    fn step(&mut self, input: Input) {
        self.raft.step(self.now, input);
        let mut ready = self.raft.take_ready();
        self.ready.persist.append(&mut ready.persist);
        self.ready.messages.append(&mut ready.messages);
        self.ready.truncated_from = ready.truncated_from.or(self.ready.truncated_from);
        self.ready.wants_snapshot = ready.wants_snapshot.or(self.ready.wants_snapshot);
        self.ready.installed = ready.installed.or(self.ready.installed);
        self.ready.halted = ready.halted.or(self.ready.halted.take());
    }

    fn hear(&mut self, from: u64, term: u64, body: Body) {
        self.step(Input::Message(Message {
            from: replica(from),
            boot: Boot(1),
            to: NodeId(1),
            group: GROUP,
            term: Term(term),
            body,
        }));
    }

    /// Everything handed out becomes durable; what was written, and what left for it.
    fn flush(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for persist in std::mem::take(&mut self.ready.persist) {
            writes.extend(persist.writes);
            self.ready.messages.extend(persist.then);
            self.step(Input::Durable(persist.id));
        }
        writes
    }

    fn said(&mut self) -> Vec<Body> {
        let messages = std::mem::take(&mut self.ready.messages);
        messages.into_iter().map(|message| message.body).collect()
    }

    fn leads(terms: &[u64], term: u64) -> Self {
        let mut server = Self::with_log(terms, term);
        server.campaign(term + 1);
        assert_eq!(server.raft.role(), Role::Leader);
        server
    }

    fn campaign(&mut self, term: u64) {
        self.now = self.raft.next_deadline();
        self.step(Input::Tick);
        for pre in [true, false] {
            let granted = Body::VoteReply(VoteReply { pre, granted: true });
            self.hear(2, term, granted);
            self.flush();
        }
        self.hear(
            2,
            term,
            Body::VoteReply(VoteReply {
                pre: false,
                granted: true,
            }),
        );
        self.flush();
        self.said();
    }

    fn position(&self, index: u64) -> LogPosition {
        self.raft.position(Index(index)).unwrap()
    }

    fn ack(&mut self, from: u64, index: u64) {
        let peers = self.raft.peers();
        let peer = peers.iter().find(|peer| peer.replica == replica(from));
        let session = peer.unwrap().session;
        let chain = self.position(index).chain;
        let term = self.raft.term().0;
        self.hear(
            from,
            term,
            Body::Ack(Ack {
                session,
                index: Index(index),
                chain,
                round: Round(1),
            }),
        );
    }

    /// Anchors and cuts, durably.
    fn cut(&mut self, index: u64) -> Vec<Write> {
        let sessions = Default::default();
        self.step(Input::Anchor {
            at: Index(index),
            sessions,
        });
        let mut writes = self.flush();
        self.step(Input::Cut(Index(index)));
        writes.extend(self.flush());
        writes
    }

    fn append(
        &mut self,
        counter: u64,
        prev: LogPosition,
        entries: Vec<Entry>,
        commit: LogPosition,
    ) {
        let last_index = Index(prev.index.0 + entries.len() as u64);
        self.hear(
            2,
            7,
            Body::Append(Append {
                session: session(counter),
                prev,
                entries,
                commit: CommitPoint {
                    index: commit.index,
                    chain: commit.chain,
                },
                last_index,
                round: Round(1),
                heard: None,
            }),
        );
    }
}

fn install(at: LogPosition) -> Input {
    Input::Install {
        anchor: anchor(at),
        snapshot: SnapshotId(9),
    }
}

#[test]
fn a_log_is_cut_only_below_a_durable_anchor() {
    let mut server = Server::leads(&[1, 1, 1, 2], 2);
    server.ack(2, 5);
    server.step(Input::Cut(Index(4)));
    assert_eq!(server.raft.base().index, Index(0));
    let sessions = Default::default();
    server.step(Input::Anchor {
        at: Index(3),
        sessions,
    });
    server.step(Input::Cut(Index(4)));
    assert_eq!(server.raft.base().index, Index(0));
    let writes = server.flush();
    let [Write::Anchor(written)] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert_eq!(written.at, server.position(3));
    assert_eq!(written.term_starts, [(Term(1), Index(1))]);

    let (base, tip) = (server.position(3), server.raft.last());
    server.step(Input::Cut(Index(4)));
    assert_eq!(server.raft.base(), base);
    let writes = server.flush();
    let [Write::Base(written)] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert_eq!(
        (written.at, written.tip, written.snapshot),
        (base, tip, None)
    );
    assert_eq!(server.raft.last(), tip);
}

#[test]
fn terms_are_remembered_beyond_cuts() {
    let mut server = Server::leads(&[1, 1, 2, 5], 5);
    server.ack(2, 5);
    server.cut(3);
    let anchor = server.raft.anchor_at(Index(5)).unwrap();
    let all = [(1, 1), (2, 3), (5, 4), (6, 5)].map(|(term, index)| (Term(term), Index(index)));
    assert_eq!(anchor.term_starts, all);
    assert_eq!(server.raft.anchor_at(Index(2)), None);
}

/// What a follower needs next is gone: it hears so with every heartbeat, also of a leader that nobody proposes to.
#[test]
fn an_idle_leader_tells_a_follower_that_it_is_behind() {
    let mut server = Server::leads(&[1, 1, 1, 2], 2);
    server.ack(2, 5);
    server.cut(5);
    server.said();
    for _ in 0..3 {
        server.now = server.now.after(50_000);
        server.step(Input::Tick);
        let said = server.said();
        let asked = said.iter().find_map(|body| match body {
            Body::Append(append) if append.prev.index == Index(5) => Some(append.clone()),
            _ => None,
        });
        let Some(append) = asked else {
            panic!("{said:?}");
        };
        assert_eq!(append.entries, []);
        let peers = server.raft.peers();
        let hint = genesis().origin();
        for peer in peers.iter().filter(|peer| peer.replica == replica(3)) {
            let reject = Reject {
                session: peer.session,
                prev_index: Index(5),
                hint,
                round: Round(1),
            };
            server.hear(3, 3, Body::Reject(reject));
        }
        // Who follows goes on following.
        server.ack(2, 5);
    }
    let peers = server.raft.peers();
    assert_eq!(
        peers.iter().map(|peer| peer.behind).collect::<Vec<bool>>(),
        [false, true]
    );
    server.now = server.now.after(50_000);
    server.step(Input::Tick);
    let base = server.raft.base();
    let told = server
        .said()
        .into_iter()
        .filter(|body| matches!(body, Body::Behind(behind) if behind.base == base));
    assert_eq!(told.count(), 1);

    // The snapshot it has found goes beyond the base. Any that connects will do.
    let peers = server.raft.peers();
    let peer = peers
        .iter()
        .find(|peer| peer.replica == replica(3))
        .unwrap();
    let reject = Reject {
        session: peer.session,
        prev_index: Index(5),
        hint: server.raft.last(),
        round: Round(1),
    };
    server.hear(3, 3, Body::Reject(reject));
    server.ack(3, 5);
    assert!(server.raft.peers().iter().all(|peer| !peer.behind));
}

/// An append that a lane did not take leaves a gap in its session, and a log that was cut there never fills it.
#[test]
fn a_follower_whose_gap_was_cut_away_is_asked_in_a_new_session() {
    let mut server = Server::leads(&[1, 1, 1, 2], 2);
    server.ack(2, 5);
    let follower = |server: &Server| {
        let peers = server.raft.peers();
        let peer = peers.iter().find(|peer| peer.replica == replica(3));
        peer.unwrap().session
    };
    let before = follower(&server);
    server.step(Input::LaneFull {
        peer: NodeId(3),
        session: before,
        from: Index(2),
    });
    server.cut(5);
    server.said();
    server.step(Input::LaneRoom(NodeId(3)));
    let said = server.said();
    let asked = said.iter().find_map(|body| match body {
        Body::Append(append) if append.prev.index == Index(5) => Some(append.session),
        _ => None,
    });
    let asked = asked.unwrap_or_else(|| panic!("{said:?}"));
    assert!(before < asked);
    assert_eq!(follower(&server), asked);
}

#[test]
fn a_follower_that_is_behind_wants_a_snapshot_and_installs_it() {
    let log = entries(&[1, 1, 2, 2, 7, 7, 7]);
    let base = log[4].position();
    let mut server = Server::with_log(&[1, 1, 3], 7);
    server.append(1, base, Vec::new(), LogPosition::default());
    let said = server.said();
    assert!(
        matches!(&said[..], [Body::Reject(reject)] if reject.hint.index == Index(3)),
        "{said:?}"
    );
    let behind = Behind {
        session: session(1),
        base,
        round: Round(1),
    };
    server.hear(2, 7, Body::Behind(behind));
    let wanted = server.ready.wants_snapshot.take().unwrap();
    assert_eq!((wanted.leader, wanted.base), (NodeId(2), base));

    let at = log[5].position();
    server.step(install(at));
    // Its log of an election that was lost is gone, and nothing is said before that is durable.
    assert_eq!(server.ready.truncated_from, Some(Index(1)));
    assert_eq!((server.raft.base(), server.raft.last()), (at, at));
    assert_eq!(server.raft.commit(), at);
    assert!(server.raft.is_installing());
    server.append(1, at, Vec::new(), at);
    assert_eq!(server.said(), []);
    assert_eq!(server.ready.installed, None);
    let writes = server.flush();
    let [Write::Anchor(anchored), Write::Base(begins)] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert_eq!((anchored.at, begins.at, begins.tip), (at, at, at));
    assert_eq!(begins.snapshot, Some(SnapshotId(9)));
    let snapshot = SnapshotId(9);
    assert_eq!(server.ready.installed, Some(Installed { at, snapshot }));
    let said = server.said();
    assert!(
        matches!(&said[..], [Body::Ack(ack)] if ack.index == at.index),
        "{said:?}"
    );
    server.append(1, at, vec![log[6].clone()], at);
    assert_eq!(server.raft.last(), log[6].position());
}

/// The leader waits for an answer to a question that was answered before the snapshot came.
#[test]
fn whoever_has_installed_a_snapshot_says_where_to_go_on() {
    let log = entries(&[1, 1, 2, 2, 7, 7, 7]);
    let mut server = Server::with_log(&[1], 7);
    server.append(1, log[4].position(), Vec::new(), LogPosition::default());
    server.said();
    let at = log[5].position();
    server.step(install(at));
    assert_eq!(server.said(), []);
    server.flush();
    let said = server.said();
    let [Body::Reject(reject)] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!((reject.prev_index, reject.hint), (Index(5), at));
}

#[test]
fn the_log_beyond_a_snapshot_is_kept_if_it_goes_on_from_it() {
    let log = entries(&[1, 1, 2, 2]);
    let mut server = Server::with_log(&[1, 1, 2, 2], 7);
    server.step(install(log[2].position()));
    let last = log[3].position();
    assert_eq!(
        (server.raft.base(), server.raft.last()),
        (log[2].position(), last)
    );
    assert_eq!(server.ready.truncated_from, None);
    let writes = server.flush();
    assert!(
        matches!(&writes[1], Write::Base(base) if base.tip == last),
        "{writes:?}"
    );

    // The same length, another history: nothing of it can be kept.
    let mut server = Server::with_log(&[1, 1, 3, 3], 7);
    let at = log[2].position();
    server.step(install(at));
    assert_eq!((server.raft.base(), server.raft.last()), (at, at));
    assert_eq!(server.ready.truncated_from, Some(Index(1)));
}

#[test]
fn an_older_snapshot_is_ignored() {
    let log = entries(&[1, 1, 2, 2]);
    let mut server = Server::with_log(&[1, 1, 2, 2], 7);
    server.append(1, log[3].position(), Vec::new(), log[3].position());
    server.said();
    assert_eq!(server.raft.commit().index, Index(4));
    server.step(install(log[2].position()));
    assert!(!server.raft.is_installing());
    assert_eq!(server.raft.base().index, Index(0));
    assert!(server.ready.persist.is_empty());
}

#[test]
fn a_snapshot_that_contradicts_what_is_committed_halts_with_the_evidence() {
    let log = entries(&[1, 1, 2, 2]);
    let mut server = Server::with_log(&[1, 1, 2, 2], 7);
    server.append(1, log[3].position(), Vec::new(), log[3].position());
    server.said();
    let ours = log[2].position();
    for other in [
        LogPosition {
            term: Term(3),
            ..ours
        },
        LogPosition {
            chain: Chain(1),
            ..ours
        },
    ] {
        let mut server = Server::with_log(&[1, 1, 2, 2], 7);
        server.append(1, log[3].position(), Vec::new(), log[3].position());
        server.step(install(other));
        let conflict = HaltReason::SnapshotConflict {
            snapshot: SnapshotId(9),
            theirs: other,
            ours,
        };
        assert_eq!(server.ready.halted, Some(conflict));
    }
}

/// What a machine has applied may have been answered, whatever the log has heard of it in this life.
#[test]
fn a_leader_that_lacks_what_a_machine_has_applied_is_refused() {
    let log = entries(&[1, 1, 2, 2]);
    let mut server = Server::new(Restored {
        hard_state: HardState {
            term: Term(4),
            vote: None,
        },
        entries: log.iter().map(meta).collect(),
        commit: log[2].position(),
        ..Restored::at(genesis().origin(), membership(&[1, 2, 3]))
    });
    assert_eq!(server.raft.commit(), log[2].position());
    assert_eq!(server.ready.commit, Some(log[2].position()));
    let other = entries(&[1, 1, 5]);
    server.append(1, log[1].position(), other[2..].to_vec(), log[1].position());
    let halted = server.ready.halted.take();
    assert!(
        matches!(halted, Some(HaltReason::CommittedConflict { .. })),
        "{halted:?}"
    );
    assert_eq!(server.position(3), log[2].position());
}

#[test]
fn a_snapshot_of_a_later_term_makes_that_term_known_first() {
    let at = LogPosition {
        index: Index(20),
        term: Term(9),
        chain: Chain(5),
    };
    let mut server = Server::with_log(&[1, 1], 3);
    server.step(install(at));
    assert_eq!(server.raft.term(), Term(9));
    let writes = server.flush();
    assert!(
        matches!(&writes[0], Write::HardState(state) if state.term == Term(9)),
        "{writes:?}"
    );
    assert!(matches!(&writes[2], Write::Base(_)), "{writes:?}");
}

#[test]
fn a_leader_installs_nothing() {
    let mut server = Server::leads(&[1, 1], 2);
    let last = server.raft.last();
    let at = LogPosition {
        index: Index(20),
        term: Term(2),
        chain: Chain(5),
    };
    server.step(install(at));
    assert_eq!(
        (server.raft.last(), server.raft.role()),
        (last, Role::Leader)
    );
}

/// The newest snapshot cannot be read, and the log behind it is cut: the replica votes by where its log begins, and
/// does not campaign before it has a snapshot.
#[test]
fn without_a_snapshot_a_replica_votes_and_does_not_campaign() {
    let base = entries(&[1, 1, 2, 2])[3].position();
    let restored = Restored {
        hard_state: HardState {
            term: Term(4),
            vote: None,
        },
        lacks_snapshot: true,
        ..Restored::at(base, membership(&[1, 2, 3]))
    };
    let mut server = Server::new(restored);
    for _ in 0..5 {
        server.now = server.raft.next_deadline();
        server.step(Input::Tick);
        assert_eq!(server.raft.role(), Role::Follower);
    }
    assert_eq!(server.said(), []);
    // What its log already covers is what it lacks.
    server.step(install(base));
    assert!(server.raft.is_installing());
    assert!(server.raft.lacks_snapshot());
    server.flush();
    assert!(!server.raft.lacks_snapshot());
    // Its machine is not there yet, and then the snapshot turns out to be lost as well.
    server.now = server.raft.next_deadline();
    server.step(Input::Tick);
    assert_eq!(server.raft.role(), Role::Follower);
    server.step(Input::SnapshotLost);
    assert!(server.raft.lacks_snapshot());
    server.step(install(base));
    server.flush();
    server.step(Input::MachineFollows);
    assert!(!server.raft.lacks_snapshot());
    server.now = server.raft.next_deadline();
    server.step(Input::Tick);
    assert_eq!(server.raft.role(), Role::PreCandidate);
}

/// A chain stands for its terms: a position with our chain and another term is a lie, and changes nothing.
#[test]
fn a_snapshot_that_lies_about_a_term_is_not_installed() {
    let log = entries(&[1, 1, 2, 2]);
    let mut server = Server::with_log(&[1, 1, 2, 2], 7);
    server.step(install(LogPosition {
        term: Term(3),
        ..log[2].position()
    }));
    assert!(!server.raft.is_installing());
    assert_eq!(server.raft.last(), log[3].position());
}

#[test]
fn a_snapshot_in_place_of_a_lost_one_that_reached_further_moves_no_anchor_back() {
    let log = entries(&[1, 1, 1, 2, 2]);
    let at = |index: usize| log[index - 1].position();
    let mut server = Server::new(Restored {
        hard_state: HardState {
            term: Term(2),
            vote: None,
        },
        entries: log[2..].iter().map(meta).collect(),
        anchor: at(4),
        lacks_snapshot: true,
        ..Restored::at(at(2), membership(&[1, 2, 3]))
    });
    server.step(install(at(3)));
    let writes = server.flush();
    let [Write::Base(base)] = &writes[..] else {
        panic!("{writes:?}");
    };
    assert_eq!((base.at, base.tip), (at(3), at(5)));
    assert_eq!(server.raft.anchor(), at(4));
    assert!(!server.raft.lacks_snapshot());
}

#[test]
fn the_membership_of_a_snapshot_is_in_effect() {
    let log = entries(&[1, 1, 2, 2]);
    let mut server = Server::with_log(&[1], 7);
    let mut anchor = anchor(log[3].position());
    anchor.membership = membership(&[1, 4, 5]);
    let snapshot = SnapshotId(1);
    server.step(Input::Install { anchor, snapshot });
    assert_eq!(*server.raft.membership(), membership(&[1, 4, 5]));
    let writes = server.flush();
    assert!(
        matches!(&writes[1], Write::Base(base) if base.membership == membership(&[1, 4, 5])),
        "{writes:?}"
    );
}

/// Such a place would leave no room for what comes after it, or a term that nobody else ever reaches.
#[test]
fn a_snapshot_with_an_absurd_place_is_refused() {
    let absurd = [
        (u64::MAX, 3),
        (u64::MAX / 2, 3),
        (20, u64::MAX),
        (20, u64::MAX / 2 + 1),
    ];
    for (index, term) in absurd {
        let caught = std::panic::catch_unwind(|| {
            let mut server = Server::with_log(&[1, 1, 2], 3);
            let at = LogPosition {
                index: Index(index),
                term: Term(term),
                chain: Chain(7),
            };
            server.step(Input::Install {
                anchor: anchor(at),
                snapshot: SnapshotId(1),
            });
            for _ in 0..10 {
                server.now = server.now.after(1_000_000);
                server.step(Input::Tick);
            }
            server.raft.term()
        });
        let term_after = caught.unwrap_or_else(|_| panic!("index {index} term {term}: it panics"));
        assert!(
            term_after <= Term(u64::MAX / 2),
            "index {index} term {term}: it hears nobody any more, for ever: {term_after}"
        );
    }
}
