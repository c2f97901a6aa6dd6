//! A simulated cluster: nodes, the network between them, clients, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use logdrive_raft::mutant::Mutant;
use logdrive_raft::{GroupId, Message, Micros, NodeId};
use logdrive_shard::{GroupState, PeerInput};

use crate::coverage::{Coverage, Mark};
use crate::dice::{Choice, Dice, Site};
use crate::disk::{Crash, FaultCounts, SimImage, SimStorage};
use crate::history::{Applied, History, Operation};
use crate::model::{Model, Searched};
use crate::network::Network;
use crate::node::SimNode;
use crate::oracle::{Oracle, Violation};
use crate::plan::{Plan, SnapshotPlan};
use crate::step::{Step, Timed};
use crate::trace::Trace;

mod bounds;
mod calls;
mod clients;
mod ending;
mod fences;
mod lives;
mod steps;
mod transfers;
mod turns;

use clients::{Clients, Follow, Try};
use fences::Fences;
use transfers::{Fetching, Trap};

/// Where the decisions of a run come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Drawn from a seed.
    Drawn(u64),
    /// Drawn from a seed, and remembered.
    Recorded(u64),
    /// These, and else what is usual: nothing is drawn.
    Played(Vec<Choice>),
}

impl Source {
    fn dice(&self, site: Site) -> Dice {
        match self {
            Source::Drawn(seed) => Dice::drawn(site, *seed),
            Source::Recorded(seed) => Dice::recorded(site, *seed),
            Source::Played(choices) => Dice::played(site, choices),
        }
    }
}

/// What a run has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Deliveries, disk completions, calls and answers of clients, and timers that did something.
    pub events: u64,
    /// Processes that ended without a word, of whatever kind.
    pub crashes: u64,
    /// Terms that had a leader.
    pub elections: u64,
    /// Acknowledged proposals.
    pub acked: u64,
    /// Everything that happened, in order, as a number.
    pub hash: u64,
    /// What the model searched for.
    pub searched: Searched,
    /// So many nodes were lost that nobody had to go on.
    pub justified: bool,
    /// What went wrong, by kind.
    pub coverage: Coverage,
}

/// How a run ended, if a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{violation} (at {} us, event {event})", at.0)]
pub struct Failed {
    /// Which promise, and how.
    pub violation: Violation,
    /// When.
    pub at: Micros,
    /// After how many events.
    pub event: u64,
}

/// What a run leaves.
#[derive(Debug)]
pub struct Ended {
    /// What it saw.
    pub summary: Summary,
    /// The first promise that was broken, if one was.
    pub failed: Option<Failed>,
    /// What was decided otherwise than usual, if it was remembered.
    pub choices: Vec<Choice>,
    /// How each node stood at the end, if a promise was broken.
    pub nodes: Vec<String>,
}

/// A cluster under way.
pub struct Cluster<'a, M: Model> {
    plan: Plan,
    now: Micros,
    core: Vec<NodeId>,
    nodes: Vec<SimNode<M>>,
    network: Network,
    oracle: Oracle,
    model: &'a mut M,
    clients: Clients<M::Output>,
    steps: std::iter::Peekable<std::vec::IntoIter<Timed>>,
    due: BinaryHeap<Reverse<(Micros, u64, Due)>>,
    scheduled: u64,
    down: BTreeMap<NodeId, Down>,
    /// Nodes whose directory may be bad, by what happened to it.
    damaged: BTreeSet<NodeId>,
    /// One that was to last did not: what its disk had in flight landed behind what was made bad, and marked it.
    lost_in_core: bool,
    /// Nodes that refuse to start, and what they say.
    refused: BTreeMap<NodeId, String>,
    images: BTreeMap<NodeId, SimImage>,
    log: Vec<Applied>,
    /// How many proposals each group's log had applied anywhere, by entry.
    applied: BTreeMap<GroupId, u64>,
    /// Who is to stop at which moments.
    traps: Vec<Trap>,
    /// Who fetches what.
    fetches: BTreeMap<(NodeId, GroupId), Fetching>,
    /// Whether anybody ever fetched anything.
    has_fetched: bool,
    /// What log leaders owe to whom.
    fences: BTreeMap<(NodeId, GroupId), Fences>,
    /// What the first machine that came to an entry held, by the chain there.
    digests: BTreeMap<(GroupId, u128), (NodeId, u64)>,
    /// Which groups had a leader when everything was healed and settled, and in which term.
    settled: BTreeMap<GroupId, u64>,
    healed: bool,
    /// So many nodes are lost that no majority is left: nothing has to go on.
    justified: bool,
    coverage: Coverage,
    trace: Trace<'a>,
    /// Disk operations that each node's medium had ended when it was last looked at.
    completions: Vec<u64>,
    /// What had gone wrong on each node's medium when it was told of last.
    counts: Vec<FaultCounts>,
    /// How many turns each node has had.
    turns: Vec<u64>,
    acked: u64,
    searched: Searched,
    // Kept for their memory.
    sent: Vec<Message>,
    told: Vec<PeerInput>,
    told_others: Vec<(NodeId, PeerInput)>,
    follow: Vec<Follow>,
}

impl<M: Model> std::fmt::Debug for Cluster<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Cluster({} nodes at {} us)",
            self.nodes.len(),
            self.now.0
        )
    }
}

/// Something that is due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Start(NodeId),
    Connect(NodeId, NodeId),
    Retry {
        first: u64,
        count: u32,
        node: NodeId,
        call: usize,
    },
    Deadline(usize),
    /// A node whose log is poisoned is started again.
    Replace(NodeId),
    /// Something of a snapshot that a node has, or receives, goes bad as soon as there is one.
    RotSnapshot {
        node: NodeId,
        finished: bool,
    },
    Settled,
}

/// How a node that is down comes up.
#[derive(Clone, Copy, Debug)]
struct Down {
    crash: Crash,
    /// How far the next opening gets.
    recovery: Option<u64>,
}

/// How long a healed core may take until it answers everything, in microseconds: several elections.
pub const SETTLE_US: u64 = 2_500_000;

/// How long it may take where parts of snapshots that were lost are waited for, beside the time for fetching them.
pub const SETTLE_FETCHING_US: u64 = 5_000_000;

/// How long the healed core of a run may take until it answers everything.
#[must_use]
pub fn settle_us(plan: &Plan) -> u64 {
    if plan.snapshot != SnapshotPlan::default() {
        SETTLE_FETCHING_US + plan.fetch_us()
    } else {
        SETTLE_US
    }
}

/// How long an operator takes to start a node again whose log is poisoned or could not be opened.
const OPERATOR_US: u64 = 60_000;

type Checked = Result<(), Violation>;

impl<'a, M: Model> Cluster<'a, M> {
    /// A cluster whose nodes have empty disks. `steps` are in the order of their times.
    pub fn new(plan: &Plan, steps: Vec<Timed>, source: &Source, model: &'a mut M) -> Self {
        model.pad(plan.snapshot.padding_bytes);
        let ids = (1..=plan.nodes).map(NodeId);
        let nodes = ids.map(|id| {
            let medium = SimStorage::new(source.dice(Site::Disk(id)));
            SimNode::new(id, plan, medium)
        });
        Self {
            now: Micros(0),
            core: plan.core.iter().copied().map(NodeId).collect(),
            nodes: nodes.collect(),
            network: Network::new(&plan.network, plan.nodes, |site| source.dice(site)),
            oracle: Oracle::new(plan),
            model,
            clients: Clients::new(),
            steps: steps.into_iter().peekable(),
            due: BinaryHeap::new(),
            scheduled: 0,
            down: BTreeMap::new(),
            damaged: BTreeSet::new(),
            lost_in_core: false,
            refused: BTreeMap::new(),
            images: BTreeMap::new(),
            log: Vec::new(),
            applied: BTreeMap::new(),
            traps: Vec::new(),
            fetches: BTreeMap::new(),
            has_fetched: false,
            fences: BTreeMap::new(),
            digests: BTreeMap::new(),
            settled: BTreeMap::new(),
            healed: false,
            justified: false,
            coverage: Coverage::default(),
            trace: Trace::default(),
            completions: vec![0; place(NodeId(plan.nodes + 1))],
            counts: vec![FaultCounts::default(); place(NodeId(plan.nodes + 1))],
            turns: vec![0; place(NodeId(plan.nodes + 1))],
            acked: 0,
            searched: Searched::default(),
            sent: Vec::new(),
            told: Vec::new(),
            told_others: Vec::new(),
            follow: Vec::new(),
            plan: plan.clone(),
        }
    }

    /// Every node has this bug.
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        for node in &mut self.nodes {
            node.set_mutant(mutant);
        }
        self
    }

    /// Everything that happens is told to `tell`.
    #[must_use]
    pub fn traced(mut self, tell: &'a mut dyn FnMut(Micros, &str)) -> Self {
        self.trace = Trace::told(tell);
        self
    }

    /// Runs it to its end, or until a promise is broken, or until `until`.
    #[must_use]
    pub fn run(mut self, until: Option<Micros>) -> Ended {
        let outcome = self.live(until);
        let failed = outcome.err().map(|violation| Failed {
            violation,
            at: self.now,
            event: self.trace.events,
        });
        let mut choices = self.network.take_recorded();
        for node in &self.nodes {
            choices.extend(node.medium().take_recorded());
        }
        self.cover();
        let stands = |node: &SimNode<M>| {
            let id = node.id();
            match (node.status(), self.refused.get(&id)) {
                (Some(status), _) => ending::stands(id, &status),
                (None, Some(why)) => format!("node {id} refuses to start: {why}"),
                (None, None) => format!("node {id} is down"),
            }
        };
        let nodes = match &failed {
            Some(_) => self.nodes.iter().map(stands).collect(),
            None => Vec::new(),
        };
        Ended {
            nodes,
            summary: Summary {
                events: self.trace.events,
                crashes: self.coverage.of(Mark::ProcessCrash) + self.coverage.of(Mark::PowerCut),
                elections: self.oracle.elections,
                acked: self.acked,
                hash: self.trace.hash,
                searched: self.searched,
                justified: self.justified,
                coverage: self.coverage,
            },
            failed,
            choices,
        }
    }

    fn live(&mut self, until: Option<Micros>) -> Checked {
        for id in (1..=self.plan.nodes).map(NodeId) {
            self.down.insert(
                id,
                Down {
                    crash: Crash::Process,
                    recovery: None,
                },
            );
            self.start(id)?;
        }
        let heal_at = Micros(self.plan.faulty_us);
        let end = heal_at.after(self.plan.healthy_us);
        let last = until.unwrap_or(end).min(end);
        self.advance(heal_at.min(last))?;
        if last < heal_at {
            return Ok(());
        }
        self.heal()?;
        self.schedule(heal_at.after(settle_us(&self.plan)), Due::Settled);
        self.advance(last)?;
        if last < end {
            return Ok(());
        }
        self.check_end()
    }

    /// Lets time pass until `until`, and everything happen that is due by then.
    fn advance(&mut self, until: Micros) -> Checked {
        loop {
            let mut next = self.network.next_due().unwrap_or(Micros(u64::MAX));
            if let Some(step) = self.steps.peek() {
                next = next.min(step.at);
            }
            if let Some(Reverse((at, _, _))) = self.due.peek() {
                next = next.min(*at);
            }
            for node in &mut self.nodes {
                next = next.min(node.next_due().unwrap_or(Micros(u64::MAX)));
            }
            if until < next {
                self.now = self.now.max(until);
                return Ok(());
            }
            self.now = self.now.max(next);
            self.step_due()?;
            self.scheduled_due()?;
            self.deliver_due();
            self.nodes_due()?;
        }
    }

    fn schedule(&mut self, at: Micros, due: Due) {
        self.scheduled += 1;
        self.due.push(Reverse((at, self.scheduled, due)));
    }

    fn step_due(&mut self) -> Checked {
        while let Some(timed) = self.steps.next_if(|timed| timed.at <= self.now) {
            if let Step::Call(call) = timed.step {
                self.call(call)?;
                continue;
            }
            if self.healed {
                continue;
            }
            let text = timed.step.to_string();
            let words = [timed.at.0, Trace::digest_text(&text), 0];
            self.trace.note(self.now, 1, words, || text);
            self.take_step(timed.step)?;
        }
        Ok(())
    }

    fn scheduled_due(&mut self) -> Checked {
        while let Some(Reverse((at, _, due))) = self.due.peek().copied() {
            if self.now < at {
                break;
            }
            self.due.pop();
            match due {
                Due::Start(id) => self.start(id)?,
                Due::Connect(one, other) => self.connect(one, other),
                Due::Retry {
                    first,
                    count,
                    node,
                    call,
                } => {
                    let attempt = Try {
                        first,
                        count,
                        node,
                        call,
                    };
                    self.coverage.hit(Mark::Retried);
                    self.hand_in(attempt)?;
                }
                Due::Deadline(call) => {
                    let mut follow = std::mem::take(&mut self.follow);
                    self.clients.expire(self.now, call, &mut follow);
                    self.follow(follow)?;
                }
                Due::Replace(id) => {
                    if self.node(id).is_poisoned() {
                        self.crash(id, Crash::Process, OPERATOR_US, None)?;
                    }
                }
                Due::RotSnapshot { node, finished } => self.rot_snapshot(node, finished),
                Due::Settled => self.note_leaders()?,
            }
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId) -> &mut SimNode<M> {
        &mut self.nodes[place(id)]
    }

    fn history(&mut self) -> History<M::Output> {
        let operations: Vec<Operation<M::Output>> = std::mem::take(&mut self.clients.operations);
        History {
            operations,
            log: std::mem::take(&mut self.log),
        }
    }

    /// Why a group of a node does not run, if it does not.
    fn trouble(&self, id: NodeId, group: GroupId) -> Option<String> {
        let Some(status) = self.nodes[place(id)].status() else {
            let why = self.refused.get(&id);
            return Some(why.cloned().unwrap_or_else(|| "it is down".to_owned()));
        };
        let found = status.groups.iter().find(|stands| stands.group == group);
        match found.map(|stands| &stands.state) {
            Some(GroupState::Running(_)) => None,
            Some(other) => Some(format!("{other:?}")),
            None => Some(String::new()),
        }
    }
}

fn place(id: NodeId) -> usize {
    usize::try_from(id.0 - 1).expect("nodes are numbered from 1")
}
