//! The user's state machine: what a committed entry means.
//!
//! It is synchronous, because storage blocks anyway and determinism is easier to see, and it never runs on
//! the shard's thread. It gets whole entries, in order, each once for each time it is opened.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use logdrive_raft::{Chain, Entry, GroupId, Index, LogPosition, ProposalRow, Term};

use crate::snapshot::{SnapshotReader, SnapshotSource};

/// A deterministic machine that turns committed proposals into outputs.
///
/// Contract: the calls never overlap; `apply` sees every entry with proposals once, in order, from the one
/// after [`Durable::index`] or after the snapshot that was installed last, and indices that are missing
/// belong to entries without any, such as a new leader's no-op; what it does may depend on its state and the
/// batch alone, not on a clock, randomness or the replica it runs on. Rejecting a proposal is an *output*; an
/// error or a panic fences the group on this node, with the index in the error.
pub trait StateMachine: Send + 'static {
    /// What a proposal's client gets back.
    type Output: Send + 'static;
    /// Reads the state while `apply` goes on.
    type Reader: Clone + Send + Sync + 'static;
    /// A cheap handle of the state at one point. A small state may be copied: `Vec<u8>` is one.
    type Snapshot: SnapshotSource;

    /// Comes back with what survived. A machine that keeps nothing itself says `Durable::default()` and
    /// gets everything again.
    ///
    /// Effects and index of an entry become durable together: after a crash a suffix of applied entries may
    /// be missing, never one in the middle and never half of one.
    fn open(&mut self) -> Result<Durable, Fatal>;

    /// Applies one entry and pushes exactly one output a proposal, in slot order.
    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Self::Output>) -> Result<(), Fatal>;

    /// A handle for reads. May be used from any thread at any time.
    fn reader(&self) -> Self::Reader;

    /// Makes what was applied durable, and says how far that reaches: never less far than it has said before,
    /// here or by `open`. `None`, the default: the machine keeps nothing itself, and says so always.
    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        Ok(None)
    }

    /// A handle of the state as it is now, between two batches. Expected to be cheap: nothing is applied
    /// meanwhile, and what is applied later does not show in it.
    ///
    /// It is written down by [`SnapshotSource::write_to`] on another thread while `apply` goes on. The next
    /// one is not asked for before that has ended and the handle is gone.
    fn snapshot(&mut self) -> Result<Self::Snapshot, Fatal>;

    /// Replaces the whole state by a snapshot, or fails and leaves it as it was: all or nothing. Readers that
    /// were handed out before see the new state.
    ///
    /// The snapshot may come from another version of the machine, and what it holds from another node: bytes
    /// that make no sense are an error. A machine with storage of its own makes the state and
    /// [`SnapshotReader::position`] durable together before it returns; after a crash in between it has the
    /// old state and the old position, or both new ones. A handle of a snapshot may be written down meanwhile
    /// and still shows what it showed.
    ///
    /// At a start nothing else of the node runs. Later the engine calls it on a thread that gives way to all others, of
    /// lower priority where the system has that for threads, while other groups are applied. Threads that are started
    /// here inherit it. What is read comes from another thread, a little ahead; let go of a file before the next one.
    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal>;
}

/// How far a machine's own storage reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Durable {
    /// The last entry whose effects survive a crash; 0 for none.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The chain through it.
    pub chain: Chain,
}

impl From<LogPosition> for Durable {
    fn from(at: LogPosition) -> Self {
        Self {
            index: at.index,
            term: at.term,
            chain: at.chain,
        }
    }
}

impl From<Durable> for LogPosition {
    fn from(durable: Durable) -> Self {
        Self {
            index: durable.index,
            term: durable.term,
            chain: durable.chain,
        }
    }
}

/// The machine cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Fatal {
    /// What went wrong, for the operator.
    pub what: String,
}

impl Fatal {
    /// The machine cannot go on because of this.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }

    /// Runs code that is not ours. A panic in it is an error like any other; what it was working on is not
    /// used again after one.
    pub fn catch<T>(run: impl FnOnce() -> T) -> Result<T, Self> {
        catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            Self::new(format!("panicked: {text}"))
        })
    }
}

/// What storage says, in a machine that has some.
impl From<io::Error> for Fatal {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// The proposals of one committed entry.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    entry: &'a Entry,
}

impl<'a> Batch<'a> {
    /// The proposals of `entry`.
    #[must_use]
    pub fn new(entry: &'a Entry) -> Self {
        Self { entry }
    }

    /// The group it belongs to.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.entry.header().group
    }

    /// The entry's place. A machine with storage of its own keeps it with the effects.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.entry.position()
    }

    /// The entry's index.
    #[must_use]
    pub fn index(&self) -> Index {
        self.entry.index()
    }

    /// How many proposals there are, and so how many outputs are wanted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entry.header().count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slot and payload of each proposal, in order.
    pub fn proposals(&self) -> impl ExactSizeIterator<Item = (u32, &'a [u8])> + use<'a> {
        let mut slot = 0;
        self.entry
            .proposals()
            .map(move |(_, payload): (ProposalRow, &'a [u8])| {
                let proposal = (slot, payload);
                slot += 1;
                proposal
            })
    }
}
