//! The rules of the paper (Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm), a
//! test each. Where we differ the rule says how: pre-votes come before candidacy, "reply" waits for the
//! disk, and a follower's answer names what it proves.
//!
//! ```text
//!  Figure 2, state
//!  01  currentTerm and votedFor are on stable storage before an answer leaves
//!  02  log entries are on stable storage before an answer leaves
//!  03  currentTerm is 0 at first boot and grows monotonically
//!  04  votedFor is null in a new term
//!  05  the first index of the log is 1
//!  06  commitIndex is 0 at first and grows monotonically
//!  07  nextIndex starts as the leader's last index + 1
//!  08  matchIndex starts as nothing and grows monotonically
//!  Figure 2, AppendEntries
//!  09  reply false if term < currentTerm
//!  10  reply false if the log has no entry at prevLogIndex with prevLogTerm
//!  11  a conflicting entry goes, with all that follow it
//!  12  entries that are not in the log yet are appended
//!  13  commitIndex becomes min(leaderCommit, index of the last new entry)
//!  14  leaderId: followers redirect clients
//!  Figure 2, RequestVote
//!  15  reply false if term < currentTerm
//!  16  grant if votedFor is null or the candidate, and its log is up to date
//!  17  deny if the candidate's log is not up to date
//!  18  deny if votedFor is somebody else
//!  Figure 2, all servers
//!  19  what is committed is handed on to be applied, in order
//!  20  a request with a newer term: set currentTerm, become follower
//!  21  a response with a newer term: set currentTerm, become follower
//!  Figure 2, followers
//!  22  a follower answers candidates and leaders, and asks nothing itself
//!  23  a timeout without leader or granted vote: become candidate
//!  24  AppendEntries of the current leader puts the timeout off
//!  25  granting a vote puts the timeout off
//!  Figure 2, candidates
//!  26  on conversion: increment the term, vote for itself, reset the timer, ask all others
//!  27  votes from a majority: become leader
//!  28  AppendEntries from a new leader: become follower
//!  29  a timeout: start a new election
//!  Figure 2, leaders
//!  30  on election and when idle: heartbeats, so that nobody times out
//!  31  a command is appended to the log, and answered once it is committed
//!  32  last index >= nextIndex: send what follows nextIndex
//!  33  success: update nextIndex and matchIndex
//!  34  failure: go back with nextIndex and retry
//!  35  N on a majority, of the current term: commitIndex = N
//!  §5.1 to §5.6
//!  36  §5.2 election timeouts are random within a fixed interval
//!  37  §5.2 a split vote elects nobody, and a new election follows
//!  38  §5.2 one vote a term, first come first served, over restarts
//!  39  §5.3 a leader never overwrites or deletes entries of its own log
//!  40  §5.3 same index and term: same command, and same logs before it
//!  41  §5.3 a leader retries for ever, also when it has answered the client
//!  42  §5.3 a rejection skips a whole term
//!  43  §5.4.1 up to date: the later last term, then the longer log
//!  44  §5.4.2 entries of earlier terms are not committed by counting copies
//!  45  §5.4.2 they commit indirectly, with one of the current term
//!  46  §5.5 requests are idempotent
//!  47  §5.6 heartbeats are more frequent than the shortest election timeout
//! ```

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

use logdrive_raft::io::{
    Config, EntryMeta, HardState, Input, Persist, Proposed, RejectReason, Restored, Role, Write,
};
use logdrive_raft::message::{
    Ack, Append, CommitPoint, Heartbeat, HeartbeatReply, Reject, VoteReply, VoteRequest,
};
use logdrive_raft::{
    Body, Boot, Chain, ClusterId, Entry, EntryBuilder, Genesis, GroupId, Incarnation, Index,
    LogPosition, Member, Message, Micros, NodeId, Raft, Replica, ReplicationSession, Round, Term,
};

/// Replica 1 of three or five, its disk, and what it has said. The others are the test.
struct Server {
    raft: Raft,
    voters: u64,
    now: Micros,
    pending: Vec<Persist>,
    hard_state: HardState,
    disk: Vec<Entry>,
    sent: Vec<Message>,
    commits: Vec<Index>,
    rejected: Vec<RejectReason>,
}

fn replica(id: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(id.into()),
    }
}

fn genesis(voters: u64) -> Genesis {
    let member = |id| Member {
        replica: replica(id),
        address: String::new(),
    };
    Genesis {
        cluster: ClusterId(1),
        group: GroupId(1),
        voters: (1..=voters).map(member).collect(),
    }
}

/// The log of no-ops with these terms.
fn log(terms: &[u64]) -> Vec<Entry> {
    let mut log: Vec<Entry> = Vec::new();
    for term in terms {
        let last = log.last().map_or(genesis(3).origin(), Entry::position);
        log.push(Entry::noop(
            GroupId(1),
            Term(*term),
            last.index.next(),
            last.chain,
        ));
    }
    log
}

/// Where the log with these terms ends.
fn end(terms: &[u64]) -> LogPosition {
    log(terms)
        .last()
        .map_or(genesis(3).origin(), Entry::position)
}

const SESSION: ReplicationSession = ReplicationSession {
    boot: Boot(1),
    counter: 1,
};

fn vote_request(terms: &[u64]) -> Body {
    let last = end(terms);
    Body::VoteRequest(VoteRequest { pre: false, last })
}

fn granted(pre: bool) -> Body {
    let granted = true;
    Body::VoteReply(VoteReply { pre, granted })
}

/// The entries of the log with these terms after the first `prev`, of which `commit` are committed.
fn append(terms: &[u64], prev: usize, commit: usize) -> Body {
    let commit = end(&terms[..commit]);
    Body::Append(Append {
        session: SESSION,
        prev: end(&terms[..prev]),
        entries: log(terms)[prev..].to_vec(),
        commit: CommitPoint {
            index: commit.index,
            chain: commit.chain,
        },
        last_index: Index(terms.len() as u64),
        round: Round(1),
        heard: None,
    })
}

fn heartbeat(commit: &[u64]) -> Body {
    let commit = end(commit);
    Body::Heartbeat(Heartbeat {
        commit: CommitPoint {
            index: commit.index,
            chain: commit.chain,
        },
        last_index: commit.index,
        round: Round(1),
        heard: None,
    })
}

impl Server {
    fn new(terms: &[u64], term: u64) -> Self {
        Self::of(3, terms, term)
    }

    fn of(voters: u64, terms: &[u64], term: u64) -> Self {
        // The origin is that of three voters for every log, so that one log serves all tests.
        let hard_state = HardState {
            term: Term(term),
            vote: None,
        };
        let raft = Self::boot(voters, hard_state, &log(terms), 1, Micros(0));
        Self {
            raft,
            voters,
            now: Micros(0),
            pending: Vec::new(),
            hard_state,
            disk: log(terms),
            sent: Vec::new(),
            commits: Vec::new(),
            rejected: Vec::new(),
        }
    }

    fn boot(voters: u64, hard_state: HardState, disk: &[Entry], boot: u64, now: Micros) -> Raft {
        let meta = |entry: &Entry| EntryMeta {
            term: entry.term(),
            chain: entry.header().chain,
            frame_bytes: u32::try_from(entry.frame().len()).unwrap(),
        };
        let restored = Restored {
            hard_state,
            entries: disk.iter().map(meta).collect(),
            ..Restored::at(genesis(3).origin(), genesis(voters).membership())
        };
        let config = Config::new(replica(1), Boot(boot), GroupId(1), 1);
        Raft::new(config, restored, now)
    }

    fn restart(&mut self) {
        self.pending.clear();
        self.raft = Self::boot(self.voters, self.hard_state, &self.disk, 2, self.now);
    }

    fn input(&mut self, input: Input) {
        self.raft.step(self.now, input);
        self.take();
    }

    fn take(&mut self) {
        let ready = self.raft.take_ready();
        assert_eq!(ready.halted, None);
        self.sent.extend(ready.messages);
        self.commits.extend(ready.commit.map(|commit| commit.index));
        for answer in ready.proposals {
            if let Proposed::Rejected { reason, .. } = answer {
                self.rejected.push(reason);
            }
        }
        self.pending.extend(ready.persist);
    }

    fn hear(&mut self, from: u64, term: u64, body: Body) {
        self.input(Input::Message(Message {
            from: replica(from),
            boot: Boot(1),
            to: NodeId(1),
            group: GroupId(1),
            term: Term(term),
            body,
        }));
    }

    /// Everything written so far becomes durable.
    fn flush(&mut self) {
        for persist in std::mem::take(&mut self.pending) {
            for write in persist.writes {
                match write {
                    Write::HardState(hard_state) => self.hard_state = hard_state,
                    Write::Entries(entries) => {
                        let first = usize::try_from(entries[0].index().0).unwrap();
                        self.disk.truncate(first - 1);
                        self.disk.extend(entries);
                    }
                    Write::Truncate(_) => unreachable!("the core never only cuts"),
                    Write::Anchor(_) | Write::Base(_) => unreachable!("nobody asked for a cut"),
                }
            }
            let term = self.raft.term();
            self.sent.extend(
                persist
                    .then
                    .into_iter()
                    .filter(|message| message.term == term),
            );
            self.input(Input::Durable(persist.id));
        }
    }

    fn timeout(&mut self) {
        self.now = self.raft.next_deadline();
        self.input(Input::Tick);
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now.after(ms * 1000);
        self.input(Input::Tick);
    }

    /// Wins an election; its no-op is not durable yet.
    fn lead(terms: &[u64], term: u64) -> Self {
        let mut server = Self::new(terms, term);
        server.campaign();
        server.hear(2, term + 1, granted(false));
        assert_eq!(server.raft.role(), Role::Leader);
        server
    }

    /// Becomes a candidate whose own vote is durable.
    fn campaign(&mut self) {
        self.timeout();
        let asked_for = self.raft.term().0 + 1;
        for from in 2..=self.voters {
            self.hear(from, asked_for, granted(true));
        }
        self.flush();
    }

    fn propose(&mut self) {
        let mut builder = EntryBuilder::with_room(1, 1);
        builder.push(b"x");
        self.input(Input::Propose(builder.finish()));
    }

    fn session(&self, of: u64) -> ReplicationSession {
        let peers = self.raft.peers();
        peers
            .iter()
            .find(|peer| peer.replica == replica(of))
            .unwrap()
            .session
    }

    /// `from` has everything up to `index`.
    fn ack(&mut self, from: u64, index: u64) {
        let chain = match self.raft.meta(Index(index)) {
            Some(meta) => meta.chain,
            None => genesis(3).origin().chain,
        };
        let ack = Body::Ack(Ack {
            session: self.session(from),
            index: Index(index),
            chain,
            round: Round(1),
        });
        self.hear(from, self.raft.term().0, ack);
    }

    /// What was said since the last call.
    fn said(&mut self) -> Vec<Body> {
        std::mem::take(&mut self.sent)
            .into_iter()
            .map(|message| message.body)
            .collect()
    }

    fn terms(&self) -> Vec<u64> {
        let last = self.raft.last().index.0;
        (1..=last)
            .map(|index| self.raft.meta(Index(index)).unwrap().term.0)
            .collect()
    }
}

fn acks(said: &[Body]) -> Vec<u64> {
    let index = |body: &Body| match body {
        Body::Ack(ack) => Some(ack.index.0),
        _ => None,
    };
    said.iter().filter_map(index).collect()
}

fn rejects(said: &[Body]) -> Vec<Reject> {
    let reject = |body: &Body| match body {
        Body::Reject(reject) => Some(reject.clone()),
        _ => None,
    };
    said.iter().filter_map(reject).collect()
}

fn votes(said: &[Body]) -> Vec<bool> {
    let vote = |body: &Body| match body {
        Body::VoteReply(reply) if !reply.pre => Some(reply.granted),
        _ => None,
    };
    said.iter().filter_map(vote).collect()
}

/// What appends say: prev index, how many entries.
fn appends(said: &[Body]) -> Vec<(u64, usize)> {
    let append = |body: &Body| match body {
        Body::Append(append) => Some((append.prev.index.0, append.entries.len())),
        _ => None,
    };
    said.iter().filter_map(append).collect()
}

#[test]
fn every_rule_has_a_test() {
    let text = include_str!("paper.rs");
    let rules: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("//!  "))
        .map(|line| &line[..2])
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    assert_eq!(rules.len(), 47);
    for rule in rules {
        let tests = text.matches(&format!("fn rule_{rule}_")).count();
        assert_eq!(tests, 1, "rule {rule}");
    }
}

#[test]
fn rule_01_term_and_vote_are_stable_before_an_answer() {
    let mut server = Server::new(&[], 0);
    server.hear(2, 3, vote_request(&[]));
    assert_eq!(votes(&server.said()), []);
    server.flush();
    assert_eq!(votes(&server.said()), [true]);
    let vote = Some(replica(2));
    assert_eq!(
        server.hard_state,
        HardState {
            term: Term(3),
            vote
        }
    );
}

#[test]
fn rule_02_entries_are_stable_before_an_answer() {
    let mut server = Server::new(&[], 1);
    server.hear(2, 1, append(&[1, 1], 0, 0));
    assert_eq!(acks(&server.said()), []);
    server.flush();
    assert_eq!(acks(&server.said()), [2]);
    assert_eq!(server.disk.len(), 2);
}

#[test]
fn rule_03_the_term_starts_at_0_and_grows() {
    let mut server = Server::new(&[], 0);
    assert_eq!(server.raft.term(), Term(0));
    for (said, then) in [(4, 4), (2, 4), (9, 9)] {
        server.hear(2, said, heartbeat(&[]));
        assert_eq!(server.raft.term(), Term(then));
    }
}

#[test]
fn rule_04_the_vote_is_null_in_a_new_term() {
    let mut server = Server::new(&[], 0);
    server.hear(2, 3, vote_request(&[]));
    assert_eq!(server.raft.hard_state().vote, Some(replica(2)));
    server.hear(3, 4, heartbeat(&[]));
    assert_eq!(server.raft.hard_state().vote, None);
}

#[test]
fn rule_05_the_first_index_is_1() {
    let server = Server::lead(&[], 0);
    assert_eq!(server.raft.last().index, Index(1));
}

#[test]
fn rule_06_the_commit_index_starts_at_0_and_grows() {
    let mut server = Server::new(&[1, 1, 1], 1);
    assert_eq!(server.raft.commit().index, Index(0));
    for (said, then) in [(2, 2), (1, 2), (3, 3)] {
        server.hear(2, 1, heartbeat(&[1, 1, 1][..said]));
        assert_eq!(server.raft.commit().index, Index(then));
    }
}

#[test]
fn rule_07_next_index_starts_after_the_leaders_last() {
    let mut server = Server::lead(&[1, 1], 1);
    // The no-op is the first entry after what was last when it was elected.
    assert_eq!(appends(&server.said()), [(2, 1), (2, 1)]);
}

#[test]
fn rule_08_match_index_starts_as_nothing_and_grows() {
    let mut server = Server::lead(&[1, 1], 1);
    let matched = |server: &Server| server.raft.peers()[0].match_index;
    assert_eq!(matched(&server), None);
    server.ack(2, 3);
    server.ack(2, 1);
    assert_eq!(matched(&server), Some(Index(3)));
}

#[test]
fn rule_09_an_append_of_an_old_term_is_refused() {
    let mut server = Server::new(&[], 5);
    server.hear(2, 4, append(&[4], 0, 0));
    assert_eq!(server.sent[0].term, Term(5));
    assert_eq!(rejects(&server.said()).len(), 1);
    assert_eq!(server.raft.last().index, Index(0));
    assert_eq!(server.raft.leader(), None);
}

#[test]
fn rule_10_an_append_after_what_is_not_there_is_refused() {
    let mut server = Server::new(&[1, 2], 3);
    server.hear(2, 3, append(&[1, 1, 3], 2, 0));
    server.hear(2, 3, append(&[1, 2, 3, 3], 3, 0));
    let refused: Vec<Index> = rejects(&server.said())
        .iter()
        .map(|r| r.prev_index)
        .collect();
    assert_eq!(refused, [Index(2), Index(3)]);
    assert_eq!(server.terms(), [1, 2]);
}

#[test]
fn rule_11_a_conflict_goes_with_all_that_follow_it() {
    let mut server = Server::new(&[1, 2, 2, 2], 2);
    server.hear(2, 3, append(&[1, 3], 1, 0));
    server.flush();
    assert_eq!(server.terms(), [1, 3]);
    assert_eq!(server.disk, log(&[1, 3]));
}

#[test]
fn rule_12_what_is_not_there_is_appended() {
    let mut server = Server::new(&[1, 1], 1);
    server.hear(2, 1, append(&[1, 1, 1, 1], 1, 0));
    let Write::Entries(run) = &server.pending[0].writes[0] else {
        panic!("entries are written");
    };
    assert_eq!(*run, log(&[1, 1, 1, 1])[2..]);
    assert_eq!(server.terms(), [1, 1, 1, 1]);
}

#[test]
fn rule_13_the_commit_index_goes_no_further_than_the_last_new_entry() {
    // Unlike the paper, chains decide: the end of this log is another leader's.
    let mut server = Server::new(&[1, 2, 2], 2);
    let Body::Append(mut short) = append(&[1, 3, 3], 1, 3) else {
        unreachable!();
    };
    short.entries.clear();
    server.hear(2, 3, Body::Append(short));
    assert_eq!(server.raft.commit().index, Index(1));
    server.hear(2, 3, append(&[1, 3, 3], 1, 3));
    assert_eq!(server.raft.commit().index, Index(3));
}

#[test]
fn rule_14_a_follower_knows_whom_to_send_clients_to() {
    let mut server = Server::new(&[], 1);
    server.hear(3, 1, append(&[1], 0, 0));
    server.propose();
    let leader = Some(NodeId(3));
    assert_eq!(server.rejected, [RejectReason::NotLeader { leader }]);
}

#[test]
fn rule_15_a_vote_of_an_old_term_is_refused() {
    let mut server = Server::new(&[], 5);
    server.hear(2, 4, vote_request(&[4, 4]));
    assert_eq!(server.sent[0].term, Term(5));
    assert_eq!(votes(&server.said()), [false]);
}

#[test]
fn rule_16_a_vote_is_given_to_who_is_up_to_date() {
    let mut server = Server::new(&[1, 2], 2);
    server.hear(3, 3, vote_request(&[1, 2]));
    server.flush();
    // And again to the same.
    server.hear(3, 3, vote_request(&[1, 2]));
    assert_eq!(votes(&server.said()), [true, true]);
}

#[test]
fn rule_17_no_vote_for_who_is_not_up_to_date() {
    let mut server = Server::new(&[1, 2], 2);
    server.hear(3, 3, vote_request(&[1]));
    server.flush();
    assert_eq!(votes(&server.said()), [false]);
    assert_eq!(server.raft.hard_state().vote, None);
}

#[test]
fn rule_18_no_second_vote() {
    let mut server = Server::new(&[], 2);
    server.hear(3, 3, vote_request(&[]));
    server.flush();
    server.hear(2, 3, vote_request(&[1, 1, 1]));
    assert_eq!(votes(&server.said()), [true, false]);
}

#[test]
fn rule_19_what_is_committed_is_handed_on() {
    let mut server = Server::new(&[], 1);
    server.hear(2, 1, append(&[1, 1], 0, 1));
    server.hear(2, 1, append(&[1, 1, 1], 2, 3));
    assert_eq!(server.commits, [Index(1), Index(3)]);
}

#[test]
fn rule_20_a_request_of_a_newer_term_makes_a_follower() {
    let mut server = Server::lead(&[], 0);
    server.hear(3, 7, append(&[7], 0, 0));
    assert_eq!(
        (server.raft.role(), server.raft.term()),
        (Role::Follower, Term(7))
    );
    assert_eq!(server.raft.leader(), Some(NodeId(3)));
}

#[test]
fn rule_21_a_response_of_a_newer_term_makes_a_follower() {
    let mut server = Server::lead(&[], 0);
    let round = Round(1);
    server.hear(3, 7, Body::HeartbeatReply(HeartbeatReply { round }));
    assert_eq!(
        (server.raft.role(), server.raft.term()),
        (Role::Follower, Term(7))
    );
    assert_eq!(server.raft.leader(), None);
}

#[test]
fn rule_22_a_follower_only_answers() {
    let mut server = Server::new(&[], 1);
    server.wait(100);
    assert_eq!(server.said(), []);
    server.hear(2, 1, append(&[1], 0, 0));
    server.flush();
    server.hear(2, 1, heartbeat(&[]));
    assert_eq!(
        acks(
            &server
                .sent
                .iter()
                .map(|m| m.body.clone())
                .collect::<Vec<_>>()
        ),
        [1]
    );
    assert!(server.sent.iter().all(|message| message.to == NodeId(2)));
}

#[test]
fn rule_23_a_timeout_makes_a_candidate() {
    let mut server = Server::new(&[], 1);
    server.timeout();
    // Unlike the paper, by way of a pre-vote that raises no term.
    assert_eq!(
        (server.raft.role(), server.raft.term()),
        (Role::PreCandidate, Term(1))
    );
    server.hear(2, 2, granted(true));
    assert_eq!(
        (server.raft.role(), server.raft.term()),
        (Role::Candidate, Term(2))
    );
}

#[test]
fn rule_24_an_append_puts_the_timeout_off() {
    let mut server = Server::new(&[], 1);
    for _ in 0..20 {
        server.wait(100);
        server.hear(2, 1, append(&[], 0, 0));
    }
    assert_eq!(server.raft.role(), Role::Follower);
}

#[test]
fn rule_25_a_granted_vote_puts_the_timeout_off() {
    let mut server = Server::new(&[], 1);
    server.wait(100);
    let before = server.raft.next_deadline();
    server.hear(2, 2, vote_request(&[]));
    assert!(server.raft.next_deadline() >= server.now.after(150_000));
    assert!(server.raft.next_deadline() != before);
    // A refused one does not.
    let mut server = Server::new(&[1], 1);
    server.wait(100);
    let before = server.raft.next_deadline();
    server.hear(2, 2, vote_request(&[]));
    assert_eq!(server.raft.next_deadline(), before);
}

#[test]
fn rule_26_a_candidate_votes_for_itself_and_asks_all_others() {
    let mut server = Server::of(5, &[1], 1);
    server.campaign();
    assert_eq!(server.raft.term(), Term(2));
    assert_eq!(server.hard_state.vote, Some(replica(1)));
    assert!(server.raft.next_deadline() >= server.now.after(150_000));
    let asks = |message: &&Message| match &message.body {
        Body::VoteRequest(request) => !request.pre && request.last == end(&[1]),
        _ => false,
    };
    let asked: Vec<u64> = server.sent.iter().filter(asks).map(|m| m.to.0).collect();
    assert_eq!(asked, [2, 3, 4, 5]);
}

#[test]
fn rule_27_a_majority_of_votes_makes_a_leader() {
    let mut server = Server::of(5, &[], 1);
    server.campaign();
    server.hear(2, 2, granted(false));
    server.hear(2, 2, granted(false));
    assert_eq!(server.raft.role(), Role::Candidate);
    server.hear(5, 2, granted(false));
    assert_eq!(server.raft.role(), Role::Leader);
}

#[test]
fn rule_28_a_candidate_follows_a_new_leader() {
    let mut server = Server::new(&[], 1);
    server.campaign();
    server.hear(3, 2, append(&[2], 0, 0));
    assert_eq!(server.raft.role(), Role::Follower);
    assert_eq!(server.raft.leader(), Some(NodeId(3)));
    // One of an older term is no leader.
    let mut server = Server::new(&[], 1);
    server.campaign();
    server.hear(3, 1, append(&[1], 0, 0));
    assert_eq!(server.raft.role(), Role::Candidate);
}

#[test]
fn rule_29_a_candidate_that_times_out_tries_again() {
    let mut server = Server::new(&[], 1);
    server.campaign();
    server.campaign();
    assert_eq!(
        (server.raft.role(), server.raft.term()),
        (Role::Candidate, Term(3))
    );
}

#[test]
fn rule_30_a_leader_lets_everybody_hear_of_it() {
    let mut server = Server::lead(&[], 0);
    assert_eq!(appends(&server.said()).len(), 2);
    server.ack(2, 1);
    server.ack(3, 1);
    for _ in 0..5 {
        server.said();
        server.wait(50);
        let beats = server.said();
        let beats = beats
            .iter()
            .filter(|body| matches!(body, Body::Heartbeat(_)));
        assert_eq!(beats.count(), 2);
    }
}

#[test]
fn rule_31_a_command_is_appended_and_answered_when_committed() {
    let mut server = Server::lead(&[], 0);
    server.propose();
    assert_eq!(server.raft.last().index, Index(2));
    server.flush();
    assert_eq!(server.commits, []);
    server.ack(3, 2);
    assert_eq!(server.commits, [Index(2)]);
}

#[test]
fn rule_32_what_follows_next_index_is_sent() {
    let mut server = Server::lead(&[], 0);
    server.ack(2, 1);
    server.said();
    server.propose();
    server.propose();
    assert_eq!(appends(&server.said()), [(1, 1), (2, 1)]);
}

#[test]
fn rule_33_success_moves_next_and_match() {
    let mut server = Server::lead(&[], 0);
    server.propose();
    server.ack(2, 1);
    let peer = server.raft.peers()[0];
    assert_eq!(
        (peer.match_index, peer.next_index),
        (Some(Index(1)), Index(3))
    );
    server.ack(2, 2);
    let peer = server.raft.peers()[0];
    assert_eq!(
        (peer.match_index, peer.next_index),
        (Some(Index(2)), Index(3))
    );
}

#[test]
fn rule_34_failure_goes_back_and_retries() {
    let mut server = Server::lead(&[1, 1, 1], 1);
    server.said();
    let reject = |prev: u64, hint: LogPosition, session| {
        Body::Reject(Reject {
            session,
            prev_index: Index(prev),
            hint,
            round: Round(1),
        })
    };
    let session = server.session(2);
    server.hear(2, 2, reject(3, end(&[1]), session));
    assert_eq!(appends(&server.said()), [(1, 0)]);
    assert_eq!(server.raft.peers()[0].next_index, Index(2));
}

#[test]
fn rule_35_a_majority_of_the_current_term_commits() {
    let mut server = Server::of(5, &[1], 1);
    server.campaign();
    server.hear(2, 2, granted(false));
    server.hear(3, 2, granted(false));
    server.propose();
    server.flush();
    server.ack(2, 3);
    assert_eq!(server.raft.commit().index, Index(0));
    server.ack(4, 2);
    assert_eq!(server.raft.commit().index, Index(2));
    server.ack(4, 3);
    assert_eq!(server.raft.commit().index, Index(3));
}

#[test]
fn rule_36_election_timeouts_are_random_within_an_interval() {
    let mut timeouts = Vec::new();
    let mut server = Server::new(&[], 0);
    for _ in 0..200 {
        timeouts.push(server.raft.next_deadline().since(server.now));
        server.timeout();
    }
    assert!(timeouts.iter().all(|us| (150_000..=300_000).contains(us)));
    assert!(timeouts.iter().any(|us| *us < 180_000));
    assert!(timeouts.iter().any(|us| *us > 270_000));
}

#[test]
fn rule_37_a_split_vote_elects_nobody() {
    let mut server = Server::of(5, &[], 0);
    server.campaign();
    server.hear(2, 1, granted(false));
    let granted = false;
    let denied = Body::VoteReply(VoteReply {
        pre: false,
        granted,
    });
    for from in 3..=5 {
        server.hear(from, 1, denied.clone());
    }
    assert_eq!(server.raft.role(), Role::Candidate);
    server.campaign();
    assert_eq!(server.raft.term(), Term(2));
}

#[test]
fn rule_38_one_vote_a_term_over_restarts() {
    let mut server = Server::new(&[], 0);
    server.hear(2, 1, vote_request(&[]));
    server.flush();
    server.restart();
    server.hear(3, 1, vote_request(&[]));
    assert_eq!(votes(&server.said()), [true, false]);
}

#[test]
fn rule_39_a_leader_only_appends() {
    let mut server = Server::lead(&[1, 1], 1);
    server.propose();
    let before = server.terms();
    // Whatever anybody says in its term.
    server.hear(3, 2, append(&[1, 2], 1, 0));
    server.hear(3, 2, append(&[], 0, 0));
    assert_eq!(server.terms(), before);
    assert_eq!(server.raft.role(), Role::Leader);
}

#[test]
fn rule_40_same_index_and_term_means_same_logs() {
    // Another log with the same last index and term is told apart, and not extended.
    let mut server = Server::new(&[1, 2], 2);
    let Body::Append(mut forged) = append(&[1, 2, 2], 2, 0) else {
        unreachable!();
    };
    forged.prev.chain = Chain(7);
    server.hear(2, 2, Body::Append(forged));
    assert_eq!(server.terms(), [1, 2]);
    let mut one = Server::new(&[], 2);
    let mut other = Server::new(&[1, 1, 1], 2);
    for server in [&mut one, &mut other] {
        server.hear(2, 2, append(&[1, 2, 2], 0, 0));
        server.flush();
    }
    assert_eq!(one.raft.last(), other.raft.last());
    assert_eq!(one.disk, other.disk);
}

#[test]
fn rule_41_a_leader_retries_for_ever() {
    let mut server = Server::lead(&[], 0);
    server.flush();
    server.ack(2, 1);
    assert_eq!(server.raft.commit().index, Index(1));
    server.said();
    for _ in 0..20 {
        server.wait(50);
        server.ack(2, 1);
        let unanswered = server.sent.iter().filter(|message| message.to == NodeId(3));
        let asks = |message: &Message| matches!(message.body, Body::Append(_));
        assert_eq!(unanswered.filter(|message| asks(message)).count(), 1);
        server.said();
    }
}

#[test]
fn rule_42_a_rejection_skips_a_term() {
    let mut server = Server::new(&[1, 1, 2, 2, 2, 2, 2], 3);
    server.hear(2, 4, append(&[1, 1, 1, 3, 3, 3, 3, 4], 7, 0));
    assert_eq!(rejects(&server.said())[0].hint.index, Index(6));
    // The leader has nothing of term 2, so it goes to the end of its term 1.
    let mut leader = Server::lead(&[1, 1, 1, 3, 3, 3, 3], 3);
    leader.said();
    let session = leader.session(2);
    let reject = Body::Reject(Reject {
        session,
        prev_index: Index(7),
        hint: end(&[1, 1, 2, 2, 2, 2]),
        round: Round(1),
    });
    leader.hear(2, 4, reject);
    assert_eq!(appends(&leader.said()), [(3, 0)]);
}

#[test]
fn rule_43_the_later_term_then_the_longer_log() {
    let votes_for = |candidate: &[u64]| {
        let mut server = Server::new(&[1, 2, 3], 3);
        server.hear(2, 9, vote_request(candidate));
        server.flush();
        votes(&server.said()) == [true]
    };
    assert!(votes_for(&[4]));
    assert!(votes_for(&[1, 3, 3]));
    assert!(votes_for(&[1, 2, 3, 3]));
    assert!(!votes_for(&[1, 3]));
    assert!(!votes_for(&[2, 2, 2, 2, 2, 2]));
}

#[test]
fn rule_44_earlier_terms_do_not_commit_by_counting() {
    let mut server = Server::lead(&[1, 2], 3);
    server.flush();
    server.ack(2, 2);
    server.ack(3, 2);
    assert_eq!(server.raft.commit().index, Index(0));
}

#[test]
fn rule_45_earlier_terms_commit_indirectly() {
    let mut server = Server::lead(&[1, 2], 3);
    server.flush();
    server.ack(3, 3);
    assert_eq!(server.raft.commit().index, Index(3));
}

#[test]
fn rule_46_requests_are_idempotent() {
    let mut server = Server::new(&[], 1);
    for _ in 0..3 {
        server.hear(2, 1, append(&[1, 1], 0, 1));
        server.flush();
    }
    assert_eq!(acks(&server.said()), [2, 2, 2]);
    assert_eq!(server.disk, log(&[1, 1]));
    server.hear(2, 1, append(&[1, 1], 0, 1));
    assert!(server.pending.is_empty());
    assert_eq!(server.commits, [Index(1)]);
}

#[test]
fn rule_47_heartbeats_outpace_elections() {
    let defaults = Config::new(replica(1), Boot(1), GroupId(1), 1);
    assert!(defaults.heartbeat_interval_us * 2 < defaults.election_timeout_min_us);
    let refused = std::panic::catch_unwind(|| {
        let restored = Restored::at(genesis(3).origin(), genesis(3).membership());
        let config = Config {
            heartbeat_interval_us: 150_000,
            ..Config::new(replica(1), Boot(1), GroupId(1), 1)
        };
        Raft::new(config, restored, Micros(0))
    });
    assert!(refused.is_err());
}
