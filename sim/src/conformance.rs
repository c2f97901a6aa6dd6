//! What every state machine must do, checked on one machine at a time: no cluster, no faults but a crash.
//!
//! The suite takes the same [`MachineModel`] that runs under the simulator and feeds its machines as the
//! engine does: whole entries in log order, none for what is not a proposal. A machine that passes can still
//! be wrong about what its commands mean; that only its author can say.
//!
//! It cannot tell answers in the wrong slots from answers in the right ones, unless they differ from one run
//! to the next. Nor can it tell a handle of a snapshot that makes `apply` wait while it is written down.

mod snapshots;

use std::fmt::{self, Debug};

use bytes::Bytes;
use fastrand::Rng;
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use logdrive_raft::{
    Entry, EntryBuilder, EntryKind, GroupId, Index, LogPosition, NodeId, Term, UnsealedEntry,
};
use logdrive_shard::{Batch, Fatal, StateMachine};

use crate::machine::{MachineModel, first_difference};
use crate::model::{Model, Request};

/// What was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Check {
    /// Opening works, and says truly how far the machine reaches: never beyond what it was given, never
    /// behind what it has said before.
    Open,
    /// Every entry is applied, and has one output a proposal.
    Apply,
    /// A payload that makes no sense is answered. It is no error, and no panic.
    Malformed,
    /// A handle for reads works between any two entries, and shows what has been applied or installed since
    /// it was taken.
    Reader,
    /// Machines that are fed the same log answer the same and hold the same.
    Determinism,
    /// A machine that is opened again holds what it says it holds, and goes on as one that never stopped.
    Restart,
    /// What a machine says is durable was given to it, and it never says less than before.
    Flush,
    /// A snapshot shows what was there when it was taken, whatever is applied before it is written. Taking it
    /// changes nothing, and what keeps it from being written is told.
    Snapshot,
    /// A machine takes the state in a snapshot for all of its own, durably if it keeps any, and goes on as
    /// the one that it was taken of. One that it cannot read, or that makes no sense, changes nothing.
    Install,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Apply => "apply",
            Self::Malformed => "malformed",
            Self::Reader => "reader",
            Self::Determinism => "determinism",
            Self::Restart => "restart",
            Self::Flush => "flush",
            Self::Snapshot => "snapshot",
            Self::Install => "install",
        })
    }
}

/// A check that a machine did not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {text}")]
pub struct Failure {
    /// Which.
    pub check: Check,
    /// What it did instead.
    pub text: String,
}

/// Checks the machines of a model. Each model that `model` makes begins with empty storage.
///
/// Of each check the first failure is told. A machine that differs from itself without a restart is not
/// restarted.
pub fn check<S>(mut model: impl FnMut() -> MachineModel<S>) -> Vec<Failure>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut failures = Vec::new();
    let parts: [fn(&mut MachineModel<S>) -> Checked; 4] = [
        check_plain_entries,
        check_long_entries,
        check_malformed_payloads,
        check_reader,
    ];
    for part in parts {
        failures.extend(part(&mut model()).err());
    }
    let determined = check_same_log(&mut model());
    if determined.is_ok() {
        let parts: [fn(&mut MachineModel<S>) -> Checked; 7] = [
            check_one_crash,
            check_crashes_everywhere,
            snapshots::check_flush,
            snapshots::check_snapshots,
            snapshots::check_replaces,
            snapshots::check_failing,
            snapshots::check_full_disk,
        ];
        for part in parts {
            failures.extend(part(&mut model()).err());
        }
    }
    failures.extend(determined.err());
    // Sorting is stable, so of each check the failure that was found first stays.
    failures.sort_by_key(|failure| failure.check);
    failures.dedup_by_key(|failure| failure.check);
    failures
}

/// Checks the machines of a model.
///
/// # Panics
///
/// If a check fails; the message names each.
pub fn assert_conforms<S>(model: impl FnMut() -> MachineModel<S>)
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let failures = check(model);
    let lines: Vec<String> = failures.iter().map(Failure::to_string).collect();
    assert!(
        lines.is_empty(),
        "the state machine does not conform:\n  {}",
        lines.join("\n  ")
    );
}

type Checked = Result<(), Failure>;

fn fail<T>(check: Check, text: impl Into<String>) -> Result<T, Failure> {
    let text = text.into();
    Err(Failure { check, text })
}

const GROUP: GroupId = GroupId(1);

/// How many entries a log has that machines are restarted in.
const RESTART_ENTRIES: usize = 24;

/// How many machines are fed the same log: one whose answers follow from the order of a hash map must have
/// the chance to get another order.
const MACHINES: u64 = 5;

fn check_plain_entries<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let log = Log::drawn(model, 1, 200);
    Life::open(model, NodeId(1), Check::Open)?.feed_all(&log, Check::Apply)
}

/// Entries of many proposals, of one large proposal, and of none.
fn check_long_entries<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut log = Log::new(2);
    for (count, bytes) in [
        (1, 40),
        (0, 0),
        (1, 0),
        (4_096, 40),
        (1, LARGEST_BYTES),
        (3, LARGEST_BYTES / 4),
        (0, 0),
        (1, 40),
    ] {
        log.push_requests(model, count, |_| bytes);
    }
    Life::open(model, NodeId(1), Check::Open)?.feed_all(&log, Check::Apply)
}

fn check_malformed_payloads<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut log = Log::new(3);
    for payload in malformed(model, &mut Rng::with_seed(3)) {
        log.push(&[payload]);
        log.push_requests(model, 1, |_| 40);
    }
    let mut first = Life::open(model, NodeId(1), Check::Open)?;
    first.feed_all(&log, Check::Malformed)?;
    let mut second = Life::open(model, NodeId(2), Check::Open)?;
    second.feed_all(&log, Check::Malformed)?;
    // Whether it took one or rejected it, the other must have done the same.
    let (one, other) = (first.digest(model)?, second.digest(model)?);
    second.compare(&first, Check::Determinism)?;
    if one != other {
        let text = format!("two machines hold {one:#x} and {other:#x} after the same payloads");
        return fail(Check::Determinism, text);
    }
    Ok(())
}

fn check_reader<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let log = Log::drawn(model, 4, 60);
    let mut life = Life::open(model, NodeId(1), Check::Open)?;
    let early = caught(Check::Reader, "taking a handle", || life.machine.reader())?;
    for entry in &log.entries {
        // What is wrong with applying is said elsewhere.
        if life.feed(entry, Check::Apply).is_err() {
            return Ok(());
        }
        let (old, new) = (model.digest_of(&early)?, life.digest(model)?);
        if old != new {
            let text = format!(
                "after entry {} a handle that was taken at the start reads {old:#x}, and a new one {new:#x}",
                entry.index()
            );
            return fail(Check::Reader, text);
        }
    }
    Ok(())
}

/// One machine is read after every entry, the others at the end.
fn check_same_log<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let log = Log::drawn(model, 5, 200);
    let mut first = Life::open(model, NodeId(1), Check::Open)?;
    for entry in &log.entries {
        first.feed(entry, Check::Apply)?;
        first.digest(model)?;
    }
    let wanted = first.digest(model)?;
    for node in 2..=MACHINES {
        let mut other = Life::open(model, NodeId(node), Check::Open)?;
        other.feed_all(&log, Check::Apply)?;
        other.compare(&first, Check::Determinism)?;
        let digest = other.digest(model)?;
        if digest != wanted {
            let text = format!(
                "two machines hold {wanted:#x} and {digest:#x} after the same {} entries",
                log.entries.len()
            );
            return fail(Check::Determinism, text);
        }
    }
    Ok(())
}

/// What a machine that never stopped answered, and what it held after each entry.
struct Straight<S: StateMachine> {
    log: Log,
    life: Life<S>,
    /// From before the first entry on.
    digests: Vec<u64>,
}

impl<S> Straight<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    fn new(model: &mut MachineModel<S>, seed: u64) -> Result<Self, Failure> {
        let log = Log::drawn(model, seed, RESTART_ENTRIES);
        let mut life = Life::open(model, NodeId(1), Check::Open)?;
        let mut digests = vec![life.digest(model)?];
        for entry in &log.entries {
            life.feed(entry, Check::Apply)?;
            digests.push(life.digest(model)?);
        }
        Ok(Self { log, life, digests })
    }

    /// Opens a machine that was given the entries up to `given`, and brings it there again.
    fn reopen(
        &self,
        model: &mut MachineModel<S>,
        node: NodeId,
        given: usize,
        said: &mut Index,
    ) -> Result<Life<S>, Failure> {
        let mut life = Life::open(model, node, Check::Restart)?;
        let durable = life.opened;
        let at = usize::try_from(durable.index.0).unwrap_or(usize::MAX);
        if given < at {
            let text = format!(
                "it says it has applied entry {} and was given entries up to {given}",
                durable.index
            );
            return fail(Check::Open, text);
        }
        if durable.index < *said {
            let text = format!(
                "it says it has applied entry {}, and has said before that entry {said} was durable",
                durable.index
            );
            return fail(Check::Open, text);
        }
        *said = durable.index;
        let there = self.log.position(at);
        if at > 0 && there != durable {
            let text = format!("it says it is at {durable}, and the log has {there} there");
            return fail(Check::Open, text);
        }
        let digest = life.digest(model)?;
        if digest != self.digests[at] {
            let text = format!(
                "given entries up to {given} and opened again, it says it has applied entry {at} and holds \
                 {digest:#x}; one that never stopped holds {:#x} there{}",
                self.digests[at],
                self.where_else(digest)
            );
            return fail(Check::Restart, text);
        }
        self.feed(&mut life, at, given)?;
        Ok(life)
    }

    /// Feeds the entries after `from` up to `to`, and compares the answers.
    fn feed(&self, life: &mut Life<S>, from: usize, to: usize) -> Checked {
        for entry in &self.log.entries[from..to] {
            life.feed(entry, Check::Restart)?;
        }
        life.compare(&self.life, Check::Restart)
    }

    fn where_else(&self, digest: u64) -> String {
        let mut found = (0..).zip(&self.digests).filter(|(_, of)| **of == digest);
        found
            .next()
            .map_or_else(String::new, |(index, _): (u64, _)| {
                format!(", and {digest:#x} after entry {index}")
            })
    }

    fn check_end(&self, model: &MachineModel<S>, life: &Life<S>, crashed: &str) -> Checked {
        let (digest, wanted) = (life.digest(model)?, self.digests[self.log.entries.len()]);
        if digest == wanted {
            return Ok(());
        }
        let text = format!(
            "opened again after {crashed}, it holds {digest:#x} at the end; one that never stopped holds \
             {wanted:#x}"
        );
        fail(Check::Restart, text)
    }
}

/// A machine for each place between two entries, which crashes there.
fn check_one_crash<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let straight = Straight::new(model, 6)?;
    let end = straight.log.entries.len();
    for given in 0..=end {
        let node = NodeId(given as u64 + 2);
        let mut life = Life::open(model, node, Check::Open)?;
        straight.feed(&mut life, 0, given)?;
        drop(life);
        let mut said = Index(0);
        let mut life = straight.reopen(model, node, given, &mut said)?;
        straight.feed(&mut life, given, end)?;
        straight.check_end(model, &life, &format!("entry {given}"))?;
    }
    Ok(())
}

/// A machine that crashes after every entry, and once more as soon as it has been opened.
fn check_crashes_everywhere<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let straight = Straight::new(model, 7)?;
    let (node, mut said) = (NodeId(2), Index(0));
    let mut life = Life::open(model, node, Check::Open)?;
    for given in 0..straight.log.entries.len() {
        straight.feed(&mut life, given, given + 1)?;
        drop(life);
        drop(Life::open(model, node, Check::Restart)?);
        life = straight.reopen(model, node, given + 1, &mut said)?;
    }
    straight.check_end(model, &life, "every entry")
}

/// A machine from one opening to the next, and what it answered.
struct Life<S: StateMachine> {
    machine: S,
    opened: LogPosition,
    answers: Vec<(Index, Vec<S::Output>)>,
}

impl<S> Life<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    fn open(model: &mut MachineModel<S>, node: NodeId, check: Check) -> Result<Self, Failure> {
        let mut machine = caught(check, "making it", || model.bare(node, GROUP))?;
        let opened = match caught(check, "opening it", || machine.open())? {
            Ok(durable) => LogPosition::from(durable),
            Err(fatal) => return fail(check, format!("opening it fails: {fatal}")),
        };
        if check == Check::Open && opened.index > Index(0) {
            let text = format!(
                "a machine that was given nothing says it has applied entry {}: does another model share \
                 its storage?",
                opened.index
            );
            return fail(Check::Open, text);
        }
        Ok(Self {
            machine,
            opened,
            answers: Vec::new(),
        })
    }

    fn feed_all(&mut self, log: &Log, check: Check) -> Checked {
        log.entries
            .iter()
            .try_for_each(|entry| self.feed(entry, check))
    }

    fn feed(&mut self, entry: &Entry, check: Check) -> Checked {
        if entry.header().kind != EntryKind::Proposals {
            return Ok(());
        }
        let batch = Batch::new(entry);
        let mut outputs = Vec::new();
        let doing = format!("applying entry {}{}", entry.index(), Shown(batch));
        match caught(check, &doing, || self.machine.apply(batch, &mut outputs))? {
            Ok(()) => {}
            Err(fatal) => return fail(check, format!("{doing} fails: {fatal}")),
        }
        let (wanted, got) = (batch.len(), outputs.len());
        if got != wanted {
            let text = format!("{doing} gives {got} outputs for {wanted} proposals");
            return fail(check, text);
        }
        self.answers.push((entry.index(), outputs));
        Ok(())
    }

    /// What it answered must be what the other one answered to the same entries.
    fn compare(&self, other: &Self, check: Check) -> Checked {
        for (index, answers) in &self.answers {
            let found = other.answers.binary_search_by_key(index, |(at, _)| *at);
            let Ok(place) = found else {
                continue;
            };
            if let Some(what) = first_difference(answers, &other.answers[place].1) {
                let text = format!("two machines answer entry {index} differently: {what}");
                return fail(check, text);
            }
        }
        Ok(())
    }

    fn digest(&self, model: &MachineModel<S>) -> Result<u64, Failure> {
        let reader = caught(Check::Reader, "taking a handle", || self.machine.reader())?;
        model.digest_of(&reader)
    }
}

impl<S> MachineModel<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    fn digest_of(&self, reader: &S::Reader) -> Result<u64, Failure> {
        caught(Check::Reader, "reading", || self.digest(reader))
    }
}

/// Runs code of the machine's. A panic in it is a failure like any other.
fn caught<T>(check: Check, doing: &str, run: impl FnOnce() -> T) -> Result<T, Failure> {
    Fatal::catch(run).or_else(|fatal| fail(check, format!("{doing} {fatal}")))
}

/// A batch of one short proposal, so that a failure can be understood.
struct Shown<'a>(Batch<'a>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut proposals = self.0.proposals();
        match (proposals.next(), proposals.len()) {
            (Some((_, payload)), 0) if payload.len() <= SHOWN_BYTES_MAX => {
                write!(f, " with the payload \"{}\"", payload.escape_ascii())
            }
            (Some((_, payload)), 0) => write!(f, " with a payload of {} bytes", payload.len()),
            _ => write!(f, " of {} proposals", self.0.len()),
        }
    }
}

const SHOWN_BYTES_MAX: usize = 64;

/// The largest request: a payload may need a kilobyte more than that.
const LARGEST_BYTES: usize = ENTRY_PAYLOAD_BYTES_MAX - 1_024;

/// Committed entries of a group from its first on.
struct Log {
    entries: Vec<Entry>,
    term: Term,
    random: Rng,
    requests: u64,
}

impl Log {
    fn new(seed: u64) -> Self {
        Self {
            entries: Vec::new(),
            term: Term(1),
            random: Rng::with_seed(seed),
            requests: 0,
        }
    }

    /// Entries of few short proposals. Some places are taken by what no machine is given: a machine must not
    /// count on indices without gaps.
    fn drawn<S>(model: &mut MachineModel<S>, seed: u64, entries: usize) -> Self
    where
        S: StateMachine<Output: Clone + Debug + PartialEq>,
    {
        let mut log = Self::new(seed);
        while log.entries.len() < entries {
            if log.entries.is_empty() || log.random.u8(0..8) == 0 {
                log.term = Term(log.term.0 + 1);
                let at = log.end();
                log.entries
                    .push(Entry::noop(GROUP, log.term, at.index.next(), at.chain));
            } else {
                let count = if log.random.u8(0..10) == 0 {
                    log.random.usize(10..60)
                } else {
                    log.random.usize(1..=6)
                };
                log.push_requests(model, count, |random| random.usize(0..200));
            }
        }
        log
    }

    /// An entry of what clients ask.
    fn push_requests<S>(
        &mut self,
        model: &mut MachineModel<S>,
        count: usize,
        bytes: impl Fn(&mut Rng) -> usize,
    ) where
        S: StateMachine<Output: Clone + Debug + PartialEq>,
    {
        let mut payloads = Vec::new();
        for _ in 0..count {
            let request = Request {
                id: self.requests,
                client: self.requests % 3,
                group: GROUP,
                bytes: bytes(&mut self.random),
            };
            self.requests += 1;
            payloads.push(model.payload(request, &mut self.random));
        }
        self.push(&payloads);
    }

    /// An entry of these payloads, without those for which it has no room: no client gets them in either.
    fn push(&mut self, payloads: &[Bytes]) {
        let bytes = payloads.iter().map(Bytes::len).sum();
        let mut builder = EntryBuilder::with_room(payloads.len(), bytes);
        for payload in payloads {
            if builder.fits(payload.len()) {
                builder.push(payload);
            }
        }
        let unsealed = if builder.is_empty() {
            UnsealedEntry::bare(EntryKind::Proposals, &[])
        } else {
            builder.finish()
        };
        let at = self.end();
        let entry = unsealed.seal(GROUP, self.term, at.index.next(), at.chain);
        self.entries.push(entry);
    }

    fn end(&self) -> LogPosition {
        self.position(self.entries.len())
    }

    /// Where the entry of this number lies; before the first for 0.
    fn position(&self, number: usize) -> LogPosition {
        match number.checked_sub(1) {
            Some(place) => self.entries[place].position(),
            None => LogPosition::default(),
        }
    }
}

/// Payloads that no client would send: cut off, too long, with bits that are wrong, and made of nothing.
fn malformed<S>(model: &mut MachineModel<S>, random: &mut Rng) -> Vec<Bytes>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut payloads = vec![Bytes::new()];
    payloads.extend((0..=u8::MAX).map(|byte| Bytes::from(vec![byte])));
    for bytes in [2, 3, 4, 7, 8, 9, 16, 33, 100, 1_000] {
        for byte in [0, 0x7f, 0x80, 0xff] {
            payloads.push(Bytes::from(vec![byte; bytes]));
        }
        let noise: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        payloads.push(Bytes::from(noise));
    }
    for (id, bytes) in (1 << 32..).zip([0, 1, 20, 60]) {
        let request = Request {
            id,
            client: 1,
            group: GROUP,
            bytes,
        };
        let good = model.payload(request, random);
        payloads.extend((0..good.len().min(200)).map(|end| good.slice(..end)));
        for place in 0..good.len().min(100) {
            let mut flipped = good.to_vec();
            flipped[place] ^= 1 << random.u8(0..8);
            payloads.push(Bytes::from(flipped));
            let mut full = good.to_vec();
            full[place] = 0xff;
            payloads.push(Bytes::from(full));
        }
        payloads.push([&good[..], &[0]].concat().into());
        payloads.push([&good[..], &good[..]].concat().into());
    }
    payloads.push(Bytes::from(vec![0xff; ENTRY_PAYLOAD_BYTES_MAX]));
    payloads
}
