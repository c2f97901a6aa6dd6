//! A model for any state machine: how to make one, what to ask it, and what it holds as a number.
//!
//! It looks closer than a model has to. After every entry it compares what the machine answered and holds
//! with what the first replica that applied the entry answered and held, so that a difference is found where
//! it arises and not when everything is over.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fastrand::Rng;
use logdrive_raft::{GroupId, Index, NodeId};
use logdrive_shard::{Batch, Durable, Fatal, SnapshotReader, StateMachine};

use crate::model::{Model, Request};
use crate::oracle::{Rule, Violation};

/// By so much a payload may be longer than it was asked to be.
const LONGER_BYTES_MAX: usize = 1_024;

/// Of so many bytes a request may be as large as passes the door, so that there has to be room for that.
const LARGE_BYTES: usize = 8 << 10;

/// Any state machine under the simulator, and in the [conformance suite](crate::conformance).
pub struct MachineModel<S: StateMachine> {
    new: New<S>,
    payload: Payload,
    digest: Digest<S>,
    equal_snapshots: bool,
    /// Which request each payload came from; none, if more than one said the same.
    asked: BTreeMap<Bytes, Option<u64>>,
    seen: Arc<Mutex<Seen<S::Output>>>,
}

type New<S> = Box<dyn FnMut(NodeId, GroupId) -> S>;
type Payload = Box<dyn FnMut(Request, &mut Rng) -> Bytes>;
type Digest<S> = Arc<dyn Fn(&<S as StateMachine>::Reader) -> u64 + Send + Sync>;

impl<S: StateMachine> Debug for MachineModel<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineModel({})", std::any::type_name::<S>())
    }
}

impl<S: StateMachine> MachineModel<S> {
    /// A model of the machines that `new` makes.
    ///
    /// `new` is asked whenever a process starts. A machine that keeps nothing is simply made anew. For one
    /// with storage of its own `new` opens the storage of that node and group again: what was not durable in
    /// it when the machine was dropped is what a crash takes. Another model begins with empty storage.
    ///
    /// `payload` puts a request into words. About [`Request::bytes`] long, and at most a kilobyte longer;
    /// whatever it draws it draws from the generator, so that a seed replays. Payloads that differ let the
    /// simulator see whether one was applied twice.
    ///
    /// `digest` reduces the state to a number that is the same on all replicas that have applied the same
    /// entries. It is asked after every entry.
    pub fn new<P: Into<Bytes>>(
        new: impl FnMut(NodeId, GroupId) -> S + 'static,
        mut payload: impl FnMut(Request, &mut Rng) -> P + 'static,
        digest: impl Fn(&S::Reader) -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            new: Box::new(new),
            payload: Box::new(move |request, random| payload(request, random).into()),
            digest: Arc::new(digest),
            equal_snapshots: false,
            asked: BTreeMap::new(),
            seen: Arc::default(),
        }
    }

    /// Says that machines that have applied the same entries write the same snapshots, byte by byte. The
    /// conformance suite then looks.
    #[must_use]
    pub fn with_equal_snapshots(mut self) -> Self {
        self.equal_snapshots = true;
        self
    }

    pub(crate) fn has_equal_snapshots(&self) -> bool {
        self.equal_snapshots
    }

    /// The machine itself, without anybody who watches it.
    pub(crate) fn bare(&mut self, node: NodeId, group: GroupId) -> S {
        (self.new)(node, group)
    }
}

impl<S> Model for MachineModel<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    type Machine = Watched<S>;
    type Output = S::Output;

    fn machine(&mut self, node: NodeId, group: GroupId) -> Watched<S> {
        Watched {
            machine: self.bare(node, group),
            node,
            group,
            digest: Arc::clone(&self.digest),
            seen: Arc::clone(&self.seen),
        }
    }

    fn payload(&mut self, request: Request, random: &mut Rng) -> Bytes {
        let wanted = if LARGE_BYTES <= request.bytes {
            Request {
                bytes: request.bytes - LONGER_BYTES_MAX,
                ..request
            }
        } else {
            request
        };
        let payload = (self.payload)(wanted, random);
        match self.asked.entry(payload.clone()) {
            Place::Vacant(place) => {
                place.insert(Some(request.id));
            }
            // What was applied before now came from the first; from now on nobody can tell.
            Place::Occupied(mut place) => {
                place.insert(None);
            }
        }
        payload
    }

    fn request_of(&self, payload: &[u8]) -> Option<u64> {
        self.asked.get(payload).copied().flatten()
    }

    fn digest(&self, reader: &S::Reader) -> u64 {
        (self.digest)(reader)
    }

    fn found(&self) -> Option<Violation> {
        lock(&self.seen).found.clone()
    }
}

/// A machine that is compared with those of the other replicas.
pub struct Watched<S: StateMachine> {
    machine: S,
    node: NodeId,
    group: GroupId,
    digest: Digest<S>,
    seen: Arc<Mutex<Seen<S::Output>>>,
}

impl<S: StateMachine> Debug for Watched<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched(group {} on node {})", self.group, self.node)
    }
}

/// What the first machine that reached an entry answered and held.
struct Seen<O> {
    first: BTreeMap<(GroupId, Index), First<O>>,
    found: Option<Violation>,
}

struct First<O> {
    node: NodeId,
    digest: u64,
    outputs: Vec<O>,
}

impl<O> Default for Seen<O> {
    fn default() -> Self {
        Self {
            first: BTreeMap::new(),
            found: None,
        }
    }
}

impl<S> StateMachine for Watched<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    type Output = S::Output;
    type Reader = S::Reader;
    type Snapshot = S::Snapshot;

    fn open(&mut self) -> Result<Durable, Fatal> {
        let durable = self.machine.open()?;
        let digest = (self.digest)(&self.machine.reader());
        let mut seen = lock(&self.seen);
        let place = (self.group, durable.index);
        let (node, group, index) = (self.node, self.group, durable.index);
        let differs = match seen.first.get(&place) {
            Some(first) if first.digest == digest => None,
            Some(first) => Some(format!(
                "the machine of group {group} opens on node {node} at entry {index} and holds \
                 {digest:#x}; at that entry the one on node {} held {:#x}",
                first.node, first.digest
            )),
            None if index == Index(0) => {
                let outputs = Vec::new();
                let first = First {
                    node,
                    digest,
                    outputs,
                };
                seen.first.insert(place, first);
                None
            }
            None => Some(format!(
                "the machine of group {group} opens on node {node} at entry {index}, which no machine \
                 has been given"
            )),
        };
        match differs {
            None => Ok(durable),
            Some(text) => Err(seen.differs(text)),
        }
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<S::Output>) -> Result<(), Fatal> {
        let (wanted, before) = (batch.len(), outputs.len());
        let index = batch.index();
        self.machine.apply(batch, outputs)?;
        let answered = outputs.get(before..).unwrap_or_default();
        if answered.len() != wanted {
            // The applier says so in its own words.
            return Ok(());
        }
        let digest = (self.digest)(&self.machine.reader());
        let (node, group) = (self.node, self.group);
        let mut seen = lock(&self.seen);
        let first = match seen.first.entry((group, index)) {
            Place::Vacant(place) => {
                place.insert(First {
                    node,
                    digest,
                    outputs: answered.to_vec(),
                });
                return Ok(());
            }
            Place::Occupied(place) => place.into_mut(),
        };
        let text = if let Some(what) = first_difference(answered, &first.outputs) {
            format!(
                "the machine of group {group} on node {node} answers entry {index} otherwise than the one \
                 on node {}: {what}",
                first.node
            )
        } else if digest != first.digest {
            format!(
                "the machine of group {group} on node {node} holds {digest:#x} after entry {index}; the \
                 one on node {} held {:#x}",
                first.node, first.digest
            )
        } else {
            return Ok(());
        };
        Err(seen.differs(text))
    }

    fn reader(&self) -> S::Reader {
        self.machine.reader()
    }

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        self.machine.flush()
    }

    fn snapshot(&mut self) -> Result<S::Snapshot, Fatal> {
        self.machine.snapshot()
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        self.machine.install(snapshot)?;
        let digest = (self.digest)(&self.machine.reader());
        let (node, group, index) = (self.node, self.group, snapshot.position().index);
        let mut seen = lock(&self.seen);
        // The snapshot may end at an entry that no machine is given. Then the one before it counts, and that
        // place is one from which machines may open.
        let mut before = seen.first.range(..=(group, index)).rev();
        let before = before.next().filter(|((of, _), _)| *of == group);
        let differs = match before {
            Some((_, first)) if first.digest == digest => None,
            Some(((_, at), first)) => Some(format!(
                "the machine of group {group} on node {node} holds {digest:#x} after the snapshot up to \
                 entry {index} was installed; the one on node {} held {:#x} after entry {at}",
                first.node, first.digest
            )),
            None => Some(format!(
                "the machine of group {group} on node {node} is given a snapshot up to entry {index}, \
                 before any machine has opened"
            )),
        };
        if let Some(text) = differs {
            return Err(seen.differs(text));
        }
        seen.first.entry((group, index)).or_insert(First {
            node,
            digest,
            outputs: Vec::new(),
        });
        Ok(())
    }
}

impl<O> Seen<O> {
    fn differs(&mut self, text: String) -> Fatal {
        let fatal = Fatal::new(text.clone());
        let violation = Violation::new(Rule::Convergence, text);
        self.found.get_or_insert(violation);
        fatal
    }
}

/// Where answers differ first, in few words: they may be long.
pub(crate) fn first_difference<O: Debug + PartialEq>(these: &[O], those: &[O]) -> Option<String> {
    if these.len() != those.len() {
        return Some(format!("{} answers and {}", these.len(), those.len()));
    }
    let pairs = these.iter().zip(those).enumerate();
    let mut different = pairs.filter(|(_, (this, that))| this != that);
    let (slot, (this, that)) = different.next()?;
    let (this, that) = (short(this), short(that));
    Some(format!("slot {slot} is {this} and {that}"))
}

fn short(output: &impl Debug) -> String {
    let text = format!("{output:?}");
    match text.char_indices().nth(SHORT_CHARS_MAX) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

/// How much of an answer is told.
const SHORT_CHARS_MAX: usize = 120;

// A machine that panics does so within its own code, and never while this is held.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
