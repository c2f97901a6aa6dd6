//! How a group begins: the voters find out that all of them are empty, and one writes down who they are.
//!
//! A directory that lost everything must not come back as the old voter it was. So nobody votes,
//! campaigns or accepts entries before a [`Genesis`] names the *incarnation* of its directory. The lowest
//! listed voter writes it, and only after every listed voter, itself included, has answered 'empty'; the
//! others adopt it. Whoever is empty and meets a genesis that does not name it is a stranger, whatever its
//! configuration says, and enters by a membership change.
//!
//! Any message may be lost, late, or from a directory that has been wiped since. So only the answer to the
//! last question counts, and each question is asked once in the life of all directories: whoever answers
//! 'empty' was empty *after* the founder began to ask, and so knows of no genesis that a former life of the
//! founder wrote. An offer is but a reason to ask. Questions are repeated, and the answer to one is the
//! genesis itself as soon as there is one.
//!
//! What is decided here counts once it is durable, and that is for the caller to see to:
//! until then this value says nothing more, and a crash leaves an empty directory that has done nothing.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::genesis::Genesis;
use crate::ids::{Boot, ClusterId, GroupId, Micros, NodeId, Replica, Term};
use crate::io::Input;
use crate::limits::MEMBERS_MAX;
use crate::membership::Member;
use crate::message::{Body, GenesisQuery, GenesisReply, Message};

/// How long to wait before asking again.
pub const QUERY_INTERVAL_US: u64 = 100_000;

/// A replica without a genesis.
#[derive(Debug)]
pub struct Bootstrap {
    own: Replica,
    boot: Boot,
    cluster: ClusterId,
    group: GroupId,
    /// In the order of their numbers.
    listed: Vec<(NodeId, String)>,
    peers: BTreeMap<NodeId, Peer>,
    outcome: Option<Outcome>,
    questions: u64,
    query_due: Micros,
    now: Micros,
    ready: BootstrapReady,
}

/// A listed voter as far as it has answered.
#[derive(Debug, Default)]
struct Peer {
    /// The question that waits for its answer.
    asked: Option<u64>,
    /// The life of its directory that has answered 'empty'; the last answer counts.
    empty: Option<Replica>,
}

/// How it ended. Nothing here is durable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The group begins with this genesis, and this replica is one of its voters. Make it durable, then
    /// build the replica, and if [`founds`] says so send the [`offers`].
    Formed(Genesis),
    /// The group exists, and this directory is not part of it.
    Stranger {
        /// What the group began with.
        genesis: Genesis,
        /// Who showed it.
        evidence: Replica,
    },
}

/// Configurations that do not fit together. The group does not form until somebody corrects one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Who has another configuration.
    pub peer: Replica,
    /// The voters it lists.
    pub voters: Vec<NodeId>,
}

/// What the world owes a replica without a genesis.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BootstrapReady {
    /// What may leave now.
    pub messages: Vec<Message>,
    /// It has ended. Said once.
    pub outcome: Option<Outcome>,
    /// A peer's configuration lists other voters than this one's.
    pub mismatch: Option<Mismatch>,
}

impl Bootstrap {
    /// An empty directory, with the voters that its configuration lists and where they listen.
    ///
    /// # Panics
    ///
    /// If nobody is listed, somebody twice, or more than a group can have.
    #[must_use]
    pub fn new(
        own: Replica,
        boot: Boot,
        cluster: ClusterId,
        group: GroupId,
        mut listed: Vec<(NodeId, String)>,
        now: Micros,
    ) -> Self {
        listed.sort_unstable();
        assert!(!listed.is_empty() && listed.len() <= MEMBERS_MAX);
        assert!(listed.is_sorted_by(|a, b| a.0 < b.0));
        let mut bootstrap = Self {
            own,
            boot,
            cluster,
            group,
            listed,
            peers: BTreeMap::new(),
            outcome: None,
            questions: 0,
            query_due: now,
            now,
            ready: BootstrapReady::default(),
        };
        for (id, _) in &bootstrap.listed {
            bootstrap.peers.insert(*id, Peer::default());
        }
        if let Some(peer) = bootstrap.peers.get_mut(&own.id) {
            peer.empty = Some(own);
        }
        bootstrap.found_if_all_are_empty();
        bootstrap
    }

    /// Takes one input. Proposals and reads have no place here: there is no log yet.
    pub fn step(&mut self, now: Micros, input: Input) {
        self.now = self.now.max(now);
        if self.outcome.is_some() {
            return;
        }
        match input {
            Input::Tick if self.query_due <= self.now => {
                self.query_due = self.now.after(QUERY_INTERVAL_US);
                let others: Vec<NodeId> = self.peers.keys().copied().collect();
                for id in others {
                    self.query(id);
                }
            }
            Input::PeerConnected(id) => self.query(id),
            Input::Message(message) => self.on_message(message),
            Input::Tick
            | Input::PeerDisconnected(_)
            | Input::LaneFull { .. }
            | Input::LaneRoom(_)
            | Input::Propose(_)
            | Input::Durable(_)
            | Input::Read { .. }
            | Input::Anchor { .. }
            | Input::Cut(_)
            | Input::Install { .. }
            | Input::MachineFollows
            | Input::SnapshotLost
            | Input::Regained(_)
            | Input::NotRegained => {}
        }
        self.check_invariants();
    }

    /// What the world owes since the last call.
    #[must_use]
    pub fn take_ready(&mut self) -> BootstrapReady {
        std::mem::take(&mut self.ready)
    }

    /// When [`Input::Tick`] is wanted, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Micros {
        match self.outcome {
            None => self.query_due,
            Some(_) => Micros(u64::MAX),
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// The listed voters that have not answered 'empty' yet.
    #[must_use]
    pub fn missing(&self) -> Vec<NodeId> {
        let missing = self.peers.iter().filter(|(_, peer)| peer.empty.is_none());
        missing.map(|(id, _)| *id).collect()
    }

    fn on_message(&mut self, message: Message) {
        let from = message.from;
        if message.to != self.own.id || message.group != self.group || from.id == self.own.id {
            return;
        }
        match message.body {
            Body::GenesisQuery(query) => self.on_query(from, query),
            Body::GenesisReply(reply) => self.on_reply(from, reply),
            Body::GenesisOffer(_) => self.query(from.id),
            // Somebody takes this directory for a voter. It is none before it has a genesis.
            Body::VoteRequest(_)
            | Body::VoteReply(_)
            | Body::Append(_)
            | Body::Ack(_)
            | Body::Reject(_)
            | Body::Heartbeat(_)
            | Body::HeartbeatReply(_)
            | Body::Behind(_)
            | Body::SettleQuery(_)
            | Body::SettleReply(_)
            | Body::Transfer(_)
            | Body::Repair(_) => {}
        }
    }

    /// Answers 'empty' to whoever lists the same voters, for only then would the genesis be ours.
    fn on_query(&mut self, from: Replica, query: GenesisQuery) {
        let mut voters = query.voters;
        voters.sort_unstable();
        if voters != self.listed_ids() {
            let peer = from;
            self.ready.mismatch = Some(Mismatch { peer, voters });
            return;
        }
        if self.peers.contains_key(&self.own.id) && self.peers.contains_key(&from.id) {
            let body = Body::GenesisReply(GenesisReply {
                question: query.question,
                genesis: None,
            });
            self.send(from.id, body);
        }
    }

    fn on_reply(&mut self, from: Replica, reply: GenesisReply) {
        let Some(peer) = self.peers.get_mut(&from.id) else {
            return;
        };
        if peer
            .asked
            .take_if(|asked| *asked == reply.question)
            .is_none()
        {
            return;
        }
        match reply.genesis {
            None => {
                peer.empty = Some(from);
                self.found_if_all_are_empty();
            }
            Some(genesis) => self.on_genesis(from, genesis),
        }
    }

    fn on_genesis(&mut self, from: Replica, genesis: Genesis) {
        if genesis.cluster != self.cluster || genesis.group != self.group {
            return;
        }
        if !names(&genesis, self.own) {
            let evidence = from;
            return self.end(Outcome::Stranger { genesis, evidence });
        }
        let mut voters: Vec<NodeId> = genesis.voters.iter().map(|v| v.replica.id).collect();
        voters.sort_unstable();
        if voters == self.listed_ids() {
            self.end(Outcome::Formed(genesis));
        } else {
            let peer = from;
            self.ready.mismatch = Some(Mismatch { peer, voters });
        }
    }

    fn found_if_all_are_empty(&mut self) {
        let is_founder = self
            .listed
            .first()
            .is_some_and(|(id, _)| *id == self.own.id);
        if !is_founder || !self.peers.values().all(|peer| peer.empty.is_some()) {
            return;
        }
        let voters = self.listed.iter().filter_map(|(id, address)| {
            let replica = self.peers.get(id)?.empty?;
            let address = address.clone();
            Some(Member { replica, address })
        });
        let genesis = Genesis {
            cluster: self.cluster,
            group: self.group,
            voters: voters.collect(),
        };
        assert!(genesis.voters.len() == self.listed.len());
        self.end(Outcome::Formed(genesis));
    }

    fn end(&mut self, outcome: Outcome) {
        assert!(self.outcome.is_none());
        self.ready.outcome = Some(outcome.clone());
        self.outcome = Some(outcome);
    }

    fn query(&mut self, to: NodeId) {
        if to == self.own.id {
            return;
        }
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        // Repeated until it is answered, so that a long way does not make every answer too late.
        let question = *peer.asked.get_or_insert_with(|| {
            self.questions += 1;
            question(self.own, self.boot, self.questions)
        });
        let voters = self.listed_ids();
        self.send(to, Body::GenesisQuery(GenesisQuery { question, voters }));
    }

    fn send(&mut self, to: NodeId, body: Body) {
        let message = message(self.own, self.boot, to, self.group, body);
        self.ready.messages.push(message);
    }

    fn listed_ids(&self) -> Vec<NodeId> {
        self.listed.iter().map(|(id, _)| *id).collect()
    }

    fn check_invariants(&self) {
        if let Some(Outcome::Formed(genesis)) = &self.outcome {
            assert!(names(genesis, self.own));
        }
        for (id, peer) in &self.peers {
            assert!(peer.empty.is_none_or(|replica| replica.id == *id));
        }
    }
}

/// Whether `replica`, number and incarnation, is one of the first voters.
#[must_use]
pub fn names(genesis: &Genesis, replica: Replica) -> bool {
    genesis.voters.iter().any(|voter| voter.replica == replica)
}

/// Whether `replica` is the one that wrote `genesis`: the lowest of its voters.
#[must_use]
pub fn founds(genesis: &Genesis, replica: Replica) -> bool {
    let lowest = genesis.voters.iter().map(|voter| voter.replica).min();
    lowest == Some(replica)
}

/// How a replica that holds a durable genesis answers whoever asks for one.
#[must_use]
pub fn answer(genesis: &Genesis, own: Replica, boot: Boot, query: &Message) -> Option<Message> {
    let Body::GenesisQuery(GenesisQuery { question, .. }) = query.body else {
        return None;
    };
    if query.to != own.id || query.group != genesis.group {
        return None;
    }
    let held = Some(genesis.clone());
    let body = Body::GenesisReply(GenesisReply {
        question,
        genesis: held,
    });
    Some(message(own, boot, query.from.id, genesis.group, body))
}

/// What the founder sends to the other voters once its genesis is durable, and may send again at any time.
/// Who misses it asks.
#[must_use]
pub fn offers(genesis: &Genesis, own: Replica, boot: Boot) -> Vec<Message> {
    let others = genesis.voters.iter().map(|voter| voter.replica.id);
    let others = others.filter(|id| *id != own.id);
    let offer = |to| {
        let body = Body::GenesisOffer(genesis.clone());
        message(own, boot, to, genesis.group, body)
    };
    others.map(offer).collect()
}

/// Unlike any other: hashed from the life of the directory, the boot, and a counter within it.
fn question(own: Replica, boot: Boot, count: u64) -> u64 {
    let mut asked = [0; 32];
    asked[..16].copy_from_slice(&own.incarnation.0.to_le_bytes());
    asked[16..24].copy_from_slice(&boot.0.to_le_bytes());
    asked[24..].copy_from_slice(&count.to_le_bytes());
    xxh3_64(&asked)
}

fn message(from: Replica, boot: Boot, to: NodeId, group: GroupId, body: Body) -> Message {
    Message {
        from,
        boot,
        to,
        group,
        term: Term(0),
        body,
    }
}
