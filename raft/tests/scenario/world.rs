//! The replicas of a scenario, the messages between them, their disks, and the commands that move them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use logdrive_raft::bootstrap::{self, Outcome};
use logdrive_raft::io::{
    Config, EntryMeta, Guard, HardState, Input, Persist, Proposed, Ready, Regained, Restored, Write,
};
use logdrive_raft::message::{
    Ack, Append, CommitPoint, GenesisReply, Heartbeat, HeartbeatReply, Reject, VoteReply,
    VoteRequest,
};
use logdrive_raft::mutant::Mutant;
use logdrive_raft::wire::{Decode, Encode};
use logdrive_raft::{
    Body, Boot, Bootstrap, ClusterId, Entry, EntryBuilder, EntryKind, Genesis, GroupId,
    Incarnation, Index, LogPosition, Member, Membership, Message, Micros, NodeId, Raft, Replica,
    ReplicationSession, Round, Term, UnsealedEntry,
};

use super::words;

const GROUP: GroupId = GroupId(1);

#[derive(Default)]
pub(crate) struct World {
    pub(crate) said: Vec<String>,
    /// The bug that every replica has.
    mutant: Option<Mutant>,
    now: Micros,
    nodes: BTreeMap<u64, Node>,
    mail: Vec<Message>,
}

struct Node {
    core: Core,
    /// The settings it was started with, to start it again.
    start: String,
    boot: u64,
    hard_state: HardState,
    disk: Vec<Entry>,
    pending: Vec<Persist>,
}

enum Core {
    Down,
    Raft(Box<Raft>),
    Empty(Box<Bootstrap>),
    /// Holds a genesis; nothing more is asked of it.
    Formed(Genesis, Replica),
}

/// The words of a command after the first: `key=value` and others.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        let found = self.0.iter().find_map(|word| word.strip_prefix(key));
        found.and_then(|rest| rest.strip_prefix('='))
    }

    fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        let text = self.text(key)?;
        let Ok(number) = text.parse() else {
            panic!("{key}={text} is not a number");
        };
        Some(number)
    }

    fn list(&self, key: &str) -> Option<Vec<u64>> {
        let text = self.text(key)?;
        let words = text.split(',').filter(|word| !word.is_empty());
        Some(words.map(|word| word.parse().expect(text)).collect())
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }

    fn id(&self) -> u64 {
        self.0[0].parse().expect("the number of a replica")
    }
}

fn replica(id: u64, life: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(life.into()),
    }
}

/// `3` or `3/2`: number, and life of the directory.
fn named(text: &str) -> Replica {
    let (id, life) = text.split_once('/').unwrap_or((text, "1"));
    replica(id.parse().expect(text), life.parse().expect(text))
}

/// `4.7` or `4`: the term and the index that may have been acknowledged; without one, any of that term.
fn guarded(text: &str) -> Guard {
    let (term, index) = text.split_once('.').map_or((text, None), |(term, index)| {
        (term, Some(Index(index.parse().expect(text))))
    });
    let term = Term(term.parse().expect(text));
    Guard { term, index }
}

fn members(ids: &[u64]) -> Vec<Member> {
    let member = |id: &u64| Member {
        replica: replica(*id, 1),
        address: format!("host-{id}"),
    };
    ids.iter().map(member).collect()
}

fn genesis(voters: &[u64]) -> Genesis {
    Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: members(voters),
    }
}

/// The one log that has these terms, and no-ops only.
fn log_of(terms: &[u64], origin: LogPosition) -> Vec<Entry> {
    let mut log: Vec<Entry> = Vec::new();
    for term in terms {
        let last = log.last().map_or(origin, Entry::position);
        log.push(Entry::noop(
            GROUP,
            Term(*term),
            last.index.next(),
            last.chain,
        ));
    }
    log
}

fn meta(entry: &Entry) -> EntryMeta {
    EntryMeta {
        term: entry.term(),
        chain: entry.header().chain,
        frame_bytes: u32::try_from(entry.frame().len()).unwrap(),
    }
}

fn duration_us(text: &str) -> u64 {
    let ms = text.strip_suffix("ms").expect("milliseconds");
    ms.parse::<u64>().expect(text) * 1000
}

impl World {
    pub(crate) fn new(mutant: Option<Mutant>) -> Self {
        Self {
            mutant,
            ..Self::default()
        }
    }

    pub(crate) fn command(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let words = Words(words.collect());
        match command {
            "start" => self.start(words.id(), line, &words),
            "empty" => self.empty(&words),
            "founded" => self.founded(words.id()),
            "crash" => {
                let node = self.node(words.id());
                node.core = Core::Down;
                node.pending.clear();
            }
            "restart" => {
                let start = self.node(words.id()).start.clone();
                let settings = Words(start.split_whitespace().skip(1).collect());
                self.start(words.id(), &start, &settings);
            }
            "wait" => self.now = self.now.after(duration_us(words.0[0])),
            "tick" => self.step(words.id(), Input::Tick),
            "timeout" => {
                let due = match &self.node(words.id()).core {
                    Core::Raft(raft) => raft.next_deadline(),
                    Core::Empty(bootstrap) => bootstrap.next_deadline(),
                    Core::Down | Core::Formed(..) => panic!("nothing is due"),
                };
                self.now = self.now.max(due);
                self.step(words.id(), Input::Tick);
            }
            "elect" => self.elect(words.id(), &words),
            "connect" => self.step(words.id(), Input::PeerConnected(peer(&words))),
            "disconnect" => self.step(words.id(), Input::PeerDisconnected(peer(&words))),
            "lane-full" => {
                let full = Input::LaneFull {
                    peer: peer(&words),
                    session: session(&words),
                    from: Index(words.number("from").unwrap()),
                };
                self.step(words.id(), full);
            }
            "lane-room" => self.step(words.id(), Input::LaneRoom(peer(&words))),
            "propose" => self.propose(&words),
            "change" => {
                let payload = membership(&words).to_bytes();
                let entry = UnsealedEntry::bare(EntryKind::Configuration, &payload);
                self.step(words.id(), Input::Propose(entry));
            }
            "durable" => self.durable(words.id(), words.number("writes").unwrap_or(usize::MAX)),
            "read" => self.read(&words),
            "regain" => self.regain(&words),
            "give-up" => self.step(words.id(), Input::NotRegained),
            "send" => {
                let message = self.crafted(&words);
                let to = message.to.0;
                self.step(to, Input::Message(message));
            }
            // Comes in the same turn as the next input to its receiver.
            "send-with-next" => {
                let message = self.crafted(&words);
                let (to, now) = (message.to.0, self.now);
                if let Core::Raft(raft) = &mut self.node(to).core {
                    raft.step(now, Input::Message(message));
                }
            }
            "deliver" => self.deliver(&words),
            "repeat" => {
                let place = self.matching(&words)[0];
                let message = self.mail[place].clone();
                self.step(message.to.0, Input::Message(message));
            }
            "drop" if words.0.is_empty() => self.mail.clear(),
            "drop" => {
                for place in self.matching(&words).into_iter().rev() {
                    self.mail.remove(place);
                }
            }
            "run" => self.run(),
            "show" => self.show(words.id()),
            other => panic!("no such command: {other}"),
        }
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a replica that was started")
    }

    fn say(&mut self, id: impl Display, what: impl Display) {
        self.said.push(format!("{id} {what}"));
    }

    fn start(&mut self, id: u64, line: &str, words: &Words<'_>) {
        let voters = words.list("voters").unwrap_or(vec![1, 2, 3]);
        let origin = genesis(&voters).origin();
        let boot = self.nodes.get(&id).map_or(1, |node| node.boot + 1);
        let node = self.nodes.entry(id).or_insert_with(|| {
            let disk = log_of(&words.list("log").unwrap_or_default(), origin);
            let last = disk.last().map_or(Term(0), Entry::term);
            Node {
                core: Core::Down,
                start: line.to_owned(),
                boot,
                hard_state: HardState {
                    term: words.number("term").map_or(last, Term),
                    vote: words.text("vote").map(named),
                },
                disk,
                pending: Vec::new(),
            }
        });
        node.boot = boot;
        let base = words.number("base").unwrap_or(0_usize);
        let first_lost = words.number("lost").map(Index);
        let readable = |entry: &&Entry| first_lost.is_none_or(|first| entry.index() < first);
        let configurations = node.disk.iter().filter(readable);
        let configurations =
            configurations.filter(|entry| entry.header().kind == EntryKind::Configuration);
        let base_at = base
            .checked_sub(1)
            .map_or(origin, |last| node.disk[last].position());
        let restored = Restored {
            hard_state: node.hard_state,
            never_votes: words.has("never-votes"),
            guard: words.text("guard").map(guarded),
            regaining: first_lost.is_some(),
            entries: node.disk[base..]
                .iter()
                .filter(readable)
                .map(meta)
                .collect(),
            configurations: configurations
                .map(|entry| {
                    (
                        entry.index(),
                        Membership::from_bytes(entry.payload()).unwrap(),
                    )
                })
                .collect(),
            ..Restored::at(base_at, membership(words))
        };
        let default = Config::new(replica(id, 1), Boot(boot), GROUP, id);
        let config = Config {
            inflight_bytes_max: words
                .number("inflight-bytes")
                .unwrap_or(default.inflight_bytes_max),
            inflight_entries_max: words
                .number("inflight-entries")
                .unwrap_or(default.inflight_entries_max),
            append_bytes_max: words
                .number("append-bytes")
                .unwrap_or(default.append_bytes_max),
            uncommitted_bytes_max: words
                .number("uncommitted-bytes")
                .unwrap_or(default.uncommitted_bytes_max),
            uncommitted_entries_max: words
                .number("uncommitted-entries")
                .unwrap_or(default.uncommitted_entries_max),
            cache_bytes_max: words
                .number("cache-bytes")
                .unwrap_or(default.cache_bytes_max),
            disk_lag_bytes_max: words
                .number("disk-lag-bytes")
                .unwrap_or(default.disk_lag_bytes_max),
            mutant: self.mutant,
            ..default
        };
        let raft = Raft::new(config, restored, self.now);
        self.node(id).core = Core::Raft(Box::new(raft));
        self.take(id);
    }

    /// `regain 2 through=5 more`: what was lost up to there can be read again.
    fn regain(&mut self, words: &Words<'_>) {
        let through = Index(words.number("through").unwrap());
        let node = self.node(words.id());
        let Core::Raft(raft) = &node.core else {
            panic!("is no replica");
        };
        let after = words.number("after").map_or(raft.last().index, Index);
        let entries = node.disk.iter();
        let entries: Vec<&Entry> = entries
            .filter(|entry| after < entry.index() && entry.index() <= through)
            .collect();
        let held = entries
            .iter()
            .filter(|entry| entry.header().kind == EntryKind::Configuration);
        let regained = Regained {
            after: raft.position(after).expect("it ends there, or did"),
            entries: entries.iter().copied().map(meta).collect(),
            configurations: held
                .map(|entry| {
                    (
                        entry.index(),
                        Membership::from_bytes(entry.payload()).unwrap(),
                    )
                })
                .collect(),
            more: words.has("more"),
        };
        self.step(words.id(), Input::Regained(regained));
    }

    /// `empty 3 life=2 voters=1,2,3`: a directory without a genesis.
    fn empty(&mut self, words: &Words<'_>) {
        let (id, life) = (words.id(), words.number("life").unwrap_or(1));
        let voters = words.list("voters").unwrap_or(vec![1, 2, 3]);
        let listed = voters
            .iter()
            .map(|id| (NodeId(*id), format!("host-{id}")))
            .collect();
        let bootstrap = Bootstrap::new(
            replica(id, life),
            Boot(1),
            ClusterId(1),
            GROUP,
            listed,
            self.now,
        );
        let node = Node {
            core: Core::Empty(Box::new(bootstrap)),
            start: String::new(),
            boot: 1,
            hard_state: HardState::default(),
            disk: Vec::new(),
            pending: Vec::new(),
        };
        self.nodes.insert(id, node);
        self.take(id);
    }

    /// The genesis of a replica has become durable.
    fn founded(&mut self, id: u64) {
        let Core::Empty(bootstrap) = &self.node(id).core else {
            panic!("{id} was not empty");
        };
        let Some(Outcome::Formed(genesis)) = bootstrap.outcome().cloned() else {
            panic!("{id} has no genesis");
        };
        let mut own = genesis.voters.iter().map(|voter| voter.replica);
        let own = own.find(|replica| replica.id.0 == id).unwrap();
        self.node(id).core = Core::Formed(genesis.clone(), own);
        if bootstrap::founds(&genesis, own) {
            for offer in bootstrap::offers(&genesis, own, Boot(1)) {
                self.post(offer);
            }
        }
    }

    /// `elect 1 by=2,3`: its timer runs out and the others agree. Its no-op is not durable yet.
    fn elect(&mut self, id: u64, words: &Words<'_>) {
        self.command(&format!("timeout {id}"));
        let voters = words.list("by").unwrap_or(vec![2, 3]);
        for kind in ["pre-vote-reply", "vote-reply"] {
            let Core::Raft(raft) = &self.node(id).core else {
                panic!("{id} is no replica");
            };
            let term = raft.term().0 + u64::from(kind == "pre-vote-reply");
            for from in &voters {
                // Only the last step is worth reading.
                self.said.clear();
                self.command(&format!(
                    "send {kind} from={from} to={id} term={term} granted"
                ));
            }
            if kind == "pre-vote-reply" {
                self.durable(id, usize::MAX);
            }
        }
        self.mail.retain(|message| words::kind(message) == "append");
    }

    fn propose(&mut self, words: &Words<'_>) {
        let sizes = words.list("sizes").unwrap_or_else(|| {
            let bytes = words.number("bytes").unwrap_or(1);
            vec![bytes; words.number("count").unwrap_or(1)]
        });
        for bytes in sizes {
            let bytes = usize::try_from(bytes).unwrap();
            let mut builder = EntryBuilder::with_room(1, bytes);
            builder.push(&vec![b'x'; bytes]);
            let now = self.now;
            if let Core::Raft(raft) = &mut self.node(words.id()).core {
                raft.step(now, Input::Propose(builder.finish()));
            }
        }
        self.take(words.id());
    }

    /// So many writes become durable, each with its echo, in order.
    fn durable(&mut self, id: u64, writes: usize) {
        let now = self.now;
        let node = self.node(id);
        let count = writes.min(node.pending.len());
        for persist in node.pending.drain(..count).collect::<Vec<Persist>>() {
            let node = self.node(id);
            for write in persist.writes {
                match write {
                    Write::HardState(hard_state) => node.hard_state = hard_state,
                    Write::Entries(entries) => {
                        node.disk
                            .truncate(usize::try_from(entries[0].index().0 - 1).unwrap());
                        node.disk.extend(entries);
                    }
                    Write::Truncate(last) => {
                        node.disk.truncate(usize::try_from(last.index.0).unwrap())
                    }
                    Write::Anchor(_) | Write::Base(_) => {}
                }
            }
            if let Core::Raft(raft) = &mut node.core {
                let term = raft.term();
                raft.step(now, Input::Durable(persist.id));
                for message in persist.then {
                    if message.term == term {
                        self.post(message);
                    } else {
                        let what = words::message(&message);
                        self.said.push(format!("withheld: {what}"));
                    }
                }
            }
        }
        self.take(id);
    }

    /// `read 1 peer=2 from=1 log=1,1 through=2`: what the disk gave for a follower.
    fn read(&mut self, words: &Words<'_>) {
        let from: u64 = words.number("from").unwrap();
        let through: u64 = words.number("through").unwrap_or(0);
        let log = match words.list("log") {
            Some(terms) => log_of(&terms, genesis(&[1, 2, 3]).origin()),
            None => self.node(words.id()).disk.clone(),
        };
        let chosen = log
            .into_iter()
            .filter(|entry| (from..=through).contains(&entry.index().0));
        let input = Input::Read {
            peer: NodeId(words.number("peer").unwrap()),
            from: Index(from),
            entries: chosen.collect(),
        };
        self.step(words.id(), input);
    }

    /// `A>B` and a kind, both optional, first `count` of them.
    fn matching(&self, words: &Words<'_>) -> Vec<usize> {
        let fits = |message: &Message| {
            words.0.iter().all(|word| match word.split_once('>') {
                Some((from, to)) => {
                    message.from.id.to_string() == from && message.to.to_string() == to
                }
                None => word.contains('=') || *word == words::kind(message),
            })
        };
        let places = (0..self.mail.len()).filter(|place| fits(&self.mail[*place]));
        let places: Vec<usize> = places
            .take(words.number("count").unwrap_or(usize::MAX))
            .collect();
        assert!(!places.is_empty(), "no such message");
        places
    }

    fn deliver(&mut self, words: &Words<'_>) {
        let places = self.matching(words);
        let mut messages = Vec::new();
        for place in places.into_iter().rev() {
            messages.push(self.mail.remove(place));
        }
        for message in messages.into_iter().rev() {
            self.step(message.to.0, Input::Message(message));
        }
    }

    /// Everything arrives and becomes durable until nothing is left.
    fn run(&mut self) {
        for _ in 0..1000 {
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            for id in ids {
                self.durable(id, usize::MAX);
            }
            if self.mail.is_empty() {
                return;
            }
            let message = self.mail.remove(0);
            self.step(message.to.0, Input::Message(message));
        }
        panic!("it never ends");
    }

    fn step(&mut self, id: u64, input: Input) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        match &mut node.core {
            Core::Down => {}
            Core::Raft(raft) => raft.step(now, input),
            Core::Empty(bootstrap) => bootstrap.step(now, input),
            Core::Formed(genesis, own) => {
                if let Input::Message(message) = input
                    && let Some(answer) = bootstrap::answer(genesis, *own, Boot(1), &message)
                {
                    self.post(answer);
                }
            }
        }
        self.take(id);
    }

    fn post(&mut self, message: Message) {
        self.said.push(words::message(&message));
        self.mail.push(message);
    }

    fn take(&mut self, id: u64) {
        match &mut self.node(id).core {
            Core::Down | Core::Formed(..) => {}
            Core::Raft(raft) => {
                let ready = raft.take_ready();
                self.carry_out(id, ready);
            }
            Core::Empty(bootstrap) => {
                let ready = bootstrap.take_ready();
                ready
                    .messages
                    .into_iter()
                    .for_each(|message| self.post(message));
                match ready.outcome {
                    Some(Outcome::Formed(genesis)) => {
                        self.say(id, format!("forms {}", words::genesis(&genesis)));
                    }
                    Some(Outcome::Stranger { genesis, evidence }) => {
                        let (genesis, by) = (words::genesis(&genesis), words::replica(evidence));
                        self.say(id, format!("is a stranger to {genesis}, shown by {by}"));
                    }
                    None => {}
                }
                if let Some(mismatch) = ready.mismatch {
                    let peer = words::replica(mismatch.peer);
                    self.say(
                        id,
                        format!("lists other voters than {peer}: {:?}", mismatch.voters),
                    );
                }
            }
        }
    }

    fn carry_out(&mut self, id: u64, ready: Ready) {
        let Ready {
            persist,
            messages,
            reads,
            proposals,
            truncated_from,
            commit,
            role,
            halted,
            wants_snapshot: _,
            installed: _,
            guard_over: _,
        } = ready;
        if let Some(role) = role {
            self.say(id, words::role(&role));
        }
        for answer in proposals {
            let said = match answer {
                Proposed::Accepted { at } => format!("accepts {}", words::position(at)),
                Proposed::Rejected { reason, .. } => format!("rejects: {reason:?}"),
            };
            self.say(id, said);
        }
        if let Some(index) = truncated_from {
            self.say(id, format!("cuts from {index}"));
        }
        for persist in persist {
            self.say(id, words::persist(&persist));
            for waiting in &persist.then {
                self.said
                    .push(format!("  then {}", words::message(waiting)));
            }
            self.node(id).pending.push(persist);
        }
        messages.into_iter().for_each(|message| self.post(message));
        for read in reads {
            let (peer, from, through) = (read.peer, read.from, read.through);
            self.say(
                id,
                format!("reads for {peer} from {from} through {through}"),
            );
        }
        if let Some(commit) = commit {
            self.say(id, format!("commits {commit}"));
        }
        if let Some(reason) = halted {
            self.say(id, format!("halts: {reason}"));
        }
    }

    fn show(&mut self, id: u64) {
        let Core::Raft(raft) = &self.node(id).core else {
            return self.say(id, "is no replica");
        };
        let role = words::role(&logdrive_raft::io::RoleChange {
            role: raft.role(),
            term: raft.term(),
            leader: raft.leader(),
        });
        let (last, durable, commit) = (raft.last(), raft.durable_index(), raft.commit().index);
        let guard = raft.guard().map(|guard| format!(" guard {guard}"));
        let guard = guard.unwrap_or_default();
        let mut lines = vec![format!(
            "{role}, last {last} durable {durable} commit {commit}{guard}"
        )];
        if let Some(undecided) = raft.undecided() {
            let holders: Vec<String> = undecided.holders.iter().map(NodeId::to_string).collect();
            lines.push(format!(
                "undecided guard {} highest {} held by {}",
                undecided.guard,
                undecided.highest,
                holders.join(",")
            ));
        }
        for peer in raft.peers() {
            let matched = peer
                .match_index
                .map_or("unknown".to_owned(), |index| index.to_string());
            lines.push(format!(
                "follower {} match {matched} next {} inflight {} bytes session {}",
                peer.replica.id, peer.next_index, peer.inflight_bytes, peer.session
            ));
        }
        lines.into_iter().for_each(|line| self.say(id, line));
    }

    /// A message that nobody in the scenario has sent.
    fn crafted(&self, words: &Words<'_>) -> Message {
        let origin = genesis(&words.list("voters").unwrap_or(vec![1, 2, 3])).origin();
        let mut log = log_of(&words.list("log").unwrap_or_default(), origin);
        if words.has("garbage") {
            let last = log.last().map_or(origin, Entry::position);
            let entry = UnsealedEntry::bare(EntryKind::Configuration, &[0xff; 3]);
            log.push(entry.seal(GROUP, last.term, last.index.next(), last.chain));
        }
        // Without a log of its own, it speaks of what its receiver holds.
        let held = |index: u64| match &self.nodes[&words.number("to").unwrap()].core {
            Core::Raft(raft) => raft.meta(Index(index)).map(|meta| LogPosition {
                index: Index(index),
                term: meta.term,
                chain: meta.chain,
            }),
            _ => None,
        };
        let position = |index: u64| match index.checked_sub(1) {
            None => origin,
            Some(_) if words.text("log").is_none() => held(index).unwrap(),
            Some(place) => log[usize::try_from(place).unwrap()].position(),
        };
        let last = log.last().map_or(origin, Entry::position);
        let session = session(words);
        let round = Round(words.number("round").unwrap_or(1));
        let commit = position(words.number("commit").unwrap_or(0));
        let commit = CommitPoint {
            index: commit.index,
            chain: commit.chain,
        };
        // Without a word of it, the leader has heard of the boot that its receiver is in.
        let heard = match words.text("heard") {
            Some("none") => None,
            Some(_) => words.number("heard").map(Boot),
            None => Some(Boot(self.nodes[&words.number("to").unwrap()].boot)),
        };
        let kind = words.0[0];
        let body = match kind {
            "pre-vote-request" | "vote-request" => Body::VoteRequest(VoteRequest {
                pre: kind.starts_with("pre"),
                last,
            }),
            "pre-vote-reply" | "vote-reply" => Body::VoteReply(VoteReply {
                pre: kind.starts_with("pre"),
                granted: words.has("granted"),
            }),
            "append" => {
                let prev = words.number("after").unwrap_or(0_u64);
                let through = words.number("through").unwrap_or(last.index.0);
                let run = log
                    .iter()
                    .filter(|e| e.index().0 > prev && e.index().0 <= through);
                // What lies before the entries, if not what they follow.
                let other = words.list("prev-log").map(|terms| log_of(&terms, origin));
                let before = usize::try_from(prev).unwrap().checked_sub(1);
                let other = other.map(|log| before.map_or(origin, |place| log[place].position()));
                Body::Append(Append {
                    session,
                    prev: other.unwrap_or_else(|| position(prev)),
                    entries: run.cloned().collect(),
                    commit,
                    last_index: last.index,
                    round,
                    heard,
                })
            }
            "ack" => {
                let at = position(words.number("index").unwrap_or(last.index.0));
                Body::Ack(Ack {
                    session,
                    index: at.index,
                    chain: at.chain,
                    round,
                })
            }
            "reject" => Body::Reject(Reject {
                session,
                prev_index: Index(words.number("after").unwrap()),
                hint: position(words.number("hint").unwrap_or(last.index.0)),
                round,
            }),
            "heartbeat" => Body::Heartbeat(Heartbeat {
                commit,
                last_index: last.index,
                round,
                heard,
            }),
            "heartbeat-reply" => Body::HeartbeatReply(HeartbeatReply { round }),
            "genesis-reply" => Body::GenesisReply(GenesisReply {
                question: words.number("question").unwrap_or(0),
                genesis: None,
            }),
            "genesis-offer" => Body::GenesisOffer(genesis(&words.list("voters").unwrap())),
            other => panic!("no such message: {other}"),
        };
        Message {
            from: named(words.text("from").unwrap()),
            boot: Boot(words.number("boot").unwrap_or(1)),
            to: NodeId(words.number("to").unwrap()),
            group: GROUP,
            term: Term(words.number("term").unwrap_or(0)),
            body,
        }
    }
}

fn session(words: &Words<'_>) -> ReplicationSession {
    let text = words.text("session").unwrap_or("1.1");
    let (boot, counter) = text.split_once('.').unwrap();
    ReplicationSession {
        boot: Boot(boot.parse().unwrap()),
        counter: counter.parse().unwrap(),
    }
}

fn peer(words: &Words<'_>) -> NodeId {
    NodeId(words.number("peer").unwrap())
}

fn membership(words: &Words<'_>) -> Membership {
    let list = |key| members(&words.list(key).unwrap_or_default());
    Membership {
        outgoing: list("outgoing"),
        learners: list("learners"),
        removed: words.text("removed").map(named).into_iter().collect(),
        ..Membership::of_voters(members(&words.list("voters").unwrap_or(vec![1, 2, 3])))
    }
}
