//! A simulated cluster: nodes, the network between them, clients, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use logdrive_raft::mutant::Mutant;
use logdrive_raft::{EntryKind, GroupId, Message, Micros, NodeId};
use logdrive_shard::{GroupState, Notice, PeerInput};

use crate::coverage::{Coverage, Mark};
use crate::dice::{Choice, Dice, Site};
use crate::disk::{Crash, FaultCounts, SimImage, SimStorage};
use crate::history::{Applied, History, Operation};
use crate::model::{Model, Searched};
use crate::network::{Arrival, Network};
use crate::node::{Refusal, SimNode, Started, TurnEnded};
use crate::oracle::{Oracle, Rule, Violation};
use crate::plan::Plan;
use crate::step::{Step, Timed};
use crate::trace::Trace;

mod bounds;
mod calls;
mod clients;
mod ending;
mod steps;

use clients::{Clients, Follow, Try};

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
    /// Nodes that refuse to start, and what they say.
    refused: BTreeMap<NodeId, String>,
    images: BTreeMap<NodeId, SimImage>,
    log: Vec<Applied>,
    /// How many proposals each group's log had applied anywhere, by entry.
    applied: BTreeMap<GroupId, u64>,
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

/// How long an operator takes to start a node again whose log is poisoned or could not be opened.
const OPERATOR_US: u64 = 60_000;

type Checked = Result<(), Violation>;

impl<'a, M: Model> Cluster<'a, M> {
    /// A cluster whose nodes have empty disks. `steps` are in the order of their times.
    pub fn new(plan: &Plan, steps: Vec<Timed>, source: &Source, model: &'a mut M) -> Self {
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
            refused: BTreeMap::new(),
            images: BTreeMap::new(),
            log: Vec::new(),
            applied: BTreeMap::new(),
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
        self.schedule(heal_at.after(SETTLE_US), Due::Settled);
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
                Due::Settled => self.note_leaders()?,
            }
        }
        Ok(())
    }

    fn start(&mut self, id: NodeId) -> Checked {
        let Some(down) = self.down.remove(&id) else {
            return Ok(());
        };
        if self.healed && !self.core.contains(&id) {
            return Ok(());
        }
        let now = self.now;
        let place = place(id);
        let started = self.nodes[place].start(now, self.model, down.recovery);
        self.read_medium(id);
        self.trace.note(now, 2, [id.0, 0, 0], || {
            format!("node {id} starts: {started:?}")
        });
        match started {
            Started::Running => {
                self.refused.remove(&id);
                for group in (1..=self.plan.groups).map(GroupId) {
                    if let Some(core) = self.nodes[place].core(group) {
                        self.oracle.recovered(id, group, core)?;
                    }
                }
                for other in (1..=self.plan.nodes).map(NodeId) {
                    if other != id {
                        self.connect(id, other);
                    }
                }
                Ok(())
            }
            Started::Killed => {
                self.coverage.hit(Mark::CrashInRecovery);
                self.hit_crash(down.crash);
                self.nodes[place].crash(down.crash);
                self.read_medium(id);
                self.come_back(id, down.crash, 1_000, None);
                Ok(())
            }
            Started::Refused(Refusal { damage, text }) => {
                self.coverage.hit(Mark::RefusedStart);
                let torn = self.nodes[place].medium().counts().blocks_torn > 0;
                let excused = self.damaged.contains(&id) || torn;
                if damage && !excused {
                    let text =
                        format!("node {id} does not start, and nothing it wrote was lost: {text}");
                    return Err(Violation::new(Rule::RefusedStart, text));
                }
                self.refused.insert(id, text.clone());
                if damage {
                    self.lose(id);
                    return Ok(());
                }
                if self.healed {
                    let text = format!("node {id} does not start on a healthy disk: {text}");
                    return Err(Violation::new(Rule::RefusedStart, text));
                }
                self.nodes[place].crash(Crash::Process);
                self.come_back(id, Crash::Process, OPERATOR_US, None);
                Ok(())
            }
            Started::Panicked(text) => Err(Violation::new(
                Rule::Assertion,
                format!("node {id} while it starts: {text}"),
            )),
        }
    }

    /// A node is lost for good: nothing repairs a damaged log. The others have to do without it.
    fn lose(&mut self, id: NodeId) {
        self.core.retain(|core| *core != id);
        let core = self.core.len() as u64;
        self.justified |= 2 * core <= self.plan.nodes;
    }

    fn come_back(&mut self, id: NodeId, crash: Crash, down_us: u64, recovery: Option<u64>) {
        self.down.insert(id, Down { crash, recovery });
        self.schedule(self.now.after(down_us), Due::Start(id));
    }

    fn hit_crash(&mut self, crash: Crash) {
        self.coverage.hit(match crash {
            Crash::Process => Mark::ProcessCrash,
            Crash::Power => Mark::PowerCut,
        });
    }

    fn crash(&mut self, id: NodeId, crash: Crash, down_us: u64, recovery: Option<u64>) -> Checked {
        if !self.node(id).is_running() {
            // A machine whose process was killed can still lose power.
            if crash == Crash::Power && self.down.contains_key(&id) {
                self.coverage.hit(Mark::KillThenPowerCut);
                self.node(id).crash(crash);
                self.read_medium(id);
            }
            return Ok(());
        }
        self.trace.note(self.now, 3, [id.0, crash as u64, 0], || {
            format!("node {id} stops: {crash:?}")
        });
        self.hit_crash(crash);
        self.node(id).crash(crash);
        self.oracle.stopped(id);
        self.read_medium(id);
        self.come_back(id, crash, down_us, recovery);
        for other in (1..=self.plan.nodes).map(NodeId) {
            if other != id {
                self.disconnect(id, other);
            }
        }
        self.take_answers()
    }

    fn read_medium(&mut self, id: NodeId) {
        self.tell_faults(place(id));
        self.oracle.read_medium(id, self.nodes[place(id)].medium());
    }

    fn disconnect(&mut self, one: NodeId, other: NodeId) {
        self.network.disconnect(one, other);
        self.node(one).give(PeerInput::Disconnected(other));
        self.node(other).give(PeerInput::Disconnected(one));
    }

    /// A connection comes up, if both ends are there.
    fn connect(&mut self, one: NodeId, other: NodeId) {
        if self.node(one).is_running() && self.node(other).is_running() {
            self.node(one).give(PeerInput::Connected(other));
            self.node(other).give(PeerInput::Connected(one));
        }
    }

    fn deliver_due(&mut self) {
        let mut told = std::mem::take(&mut self.told_others);
        while let Some(arrival) = self.network.arrive(self.now, &mut self.coverage, &mut told) {
            for (id, input) in told.drain(..) {
                self.node(id).give(input);
            }
            let message = match arrival {
                Arrival::Message(message) => message,
                Arrival::Lost(message, why) => {
                    self.tell_lost(&message, why);
                    continue;
                }
            };
            let (from, to) = (message.from.id, message.to);
            if !self.node(to).is_running() {
                continue;
            }
            let words = [from.0 << 32 | to.0, message.term.0, Trace::digest(&message)];
            self.trace.event(self.now, 4, words, || {
                format!("{from}>{to} {}", Trace::message(&message))
            });
            let local = self.nodes[place(to)].local(self.now);
            self.oracle.hears(to, &message, local);
            self.node(to).give(PeerInput::Message(message));
        }
        self.told_others = told;
    }

    fn nodes_due(&mut self) -> Checked {
        for at in 0..self.nodes.len() {
            if self.nodes[at].next_due().is_none_or(|due| self.now < due) {
                continue;
            }
            let id = self.nodes[at].id();
            while let Some(batch) = self.nodes[at].take_batch(self.now) {
                self.apply(at, batch)?;
            }
            if self.nodes[at].turn_is_due(self.now) {
                self.turn(at, id)?;
            }
            self.take_answers()?;
        }
        Ok(())
    }

    fn turn(&mut self, at: usize, id: NodeId) -> Checked {
        let mut sent = std::mem::take(&mut self.sent);
        let timer = self.nodes[at].waits_for_timer();
        let done = self.nodes[at].turn(self.now, &mut sent);
        let completions = self.nodes[at].medium().completions();
        let new = completions - self.completions[at];
        self.completions[at] = completions;
        let events = new + u64::from(timer && !sent.is_empty());
        self.trace.count(self.now, id.0, events);
        match done {
            Ok(()) => {}
            // Nothing of that turn has left the machine, but some of it may lie on the disk.
            Err(TurnEnded::Killed) => {
                sent.clear();
                self.sent = sent;
                self.look(at, id)?;
                return self.crash(id, Crash::Process, 10_000, None);
            }
            Err(TurnEnded::Panicked(text)) => {
                let text = format!("node {id}: {text}");
                return Err(Violation::new(Rule::Assertion, text));
            }
        }
        self.look(at, id)?;
        let local = self.nodes[at].local(self.now);
        let mut told = std::mem::take(&mut self.told);
        for message in sent.drain(..) {
            self.oracle.sent(id, &message, local)?;
            let lost = self
                .network
                .send(self.now, message, &mut self.coverage, &mut told);
            if let Some((message, why)) = lost {
                self.tell_lost(&message, why);
            }
        }
        for input in told.drain(..) {
            self.nodes[at].give(input);
        }
        self.told = told;
        self.sent = sent;
        self.take_notices(at, id)?;
        self.check_poisoned(at, id)?;
        self.check_bounds(at, id)
    }

    fn tell_lost(&mut self, message: &Message, why: &str) {
        self.trace.tell(self.now, || {
            let (from, to) = (message.from.id, message.to);
            format!("{from}>{to} lost, {why}: {}", Trace::message(message))
        });
    }

    /// Tells what has gone wrong on the disk of a node since this was asked last.
    fn tell_faults(&mut self, at: usize) {
        if !self.trace.is_told() {
            return;
        }
        let counts = self.nodes[at].medium().counts();
        let before = std::mem::replace(&mut self.counts[at], counts);
        let id = self.nodes[at].id();
        for ((what, now), (_, before)) in counts.named().into_iter().zip(before.named()) {
            if before < now {
                let text = || format!("disk of node {id}: {} {what}", now - before);
                self.trace.tell(self.now, text);
            }
        }
    }

    /// Lets the oracle look at a node after a turn.
    fn look(&mut self, at: usize, id: NodeId) -> Checked {
        self.read_medium(id);
        let local = self.nodes[at].local(self.now);
        for group in (1..=self.plan.groups).map(GroupId) {
            if let Some(core) = self.nodes[at].core(group)
                && self.oracle.look(id, group, core, local)?
            {
                self.coverage.hit(Mark::LogCut);
                self.trace.note(self.now, 5, [id.0, group.0, 0], || {
                    format!("node {id} cuts its log of group {group}")
                });
            }
        }
        Ok(())
    }

    fn take_notices(&mut self, at: usize, id: NodeId) -> Checked {
        for notice in self.nodes[at].take_notices() {
            self.trace.note(self.now, 6, [id.0, 0, 0], || {
                format!("node {id}: {notice:?}")
            });
            match notice {
                Notice::Poisoned { .. } => {
                    self.coverage.hit(Mark::Poisoned);
                    self.schedule(self.now.after(OPERATOR_US), Due::Replace(id));
                }
                Notice::StorageFull { full: true } => self.coverage.hit(Mark::NoSpace),
                Notice::Stranger { .. } => self.coverage.hit(Mark::Stranger),
                Notice::Halted { group, reason } if !self.plan.beyond_limit => {
                    return Err(Violation::new(
                        Rule::NeedlessHalt,
                        format!("node {id} halts group {group}: {reason:?}"),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, at: usize, batch: logdrive_shard::ApplyBatch<M::Output>) -> Checked {
        let (id, group) = (self.nodes[at].id(), batch.group);
        for (entry, _) in &batch.entries {
            let position = entry.position();
            self.oracle.applies(id, group, position)?;
            let applied = self.applied.entry(group).or_default();
            if position.index.0 <= *applied {
                continue;
            }
            *applied = position.index.0;
            if entry.header().kind != EntryKind::Proposals {
                continue;
            }
            for (slot, (_, payload)) in (0..).zip(entry.proposals()) {
                self.log.push(Applied {
                    group,
                    at: position,
                    slot,
                    request: self.model.request_of(payload),
                });
            }
        }
        let count = batch.entries.len() as u64;
        self.trace.note(self.now, 7, [id.0, group.0, count], || {
            let last = batch.entries.last().map(|(entry, _)| entry.position());
            format!("node {id} applies group {group} up to {:?}", last)
        });
        let applied = self.nodes[at].apply(batch);
        if let Err(panic) = applied {
            return Err(Violation::new(
                Rule::Assertion,
                format!("node {id} while it applies: {panic}"),
            ));
        }
        if let Some(fenced) = self.nodes[at].fenced() {
            return Err(Violation::new(Rule::NeedlessHalt, fenced.to_owned()));
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
