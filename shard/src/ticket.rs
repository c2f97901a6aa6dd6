//! Who waits for which proposals, and how they hear of it.
//!
//! A client's batch is one *run*: a range of slots, one sink, one number. Per-proposal futures are wrappers
//! on top, for those who want them. A run that is dropped unanswered still answers: nobody waits for ever.

use std::vec::Drain;

use logdrive_raft::{Index, LogPosition, NodeId};

use crate::machine::Fatal;
use crate::permits::Permit;
use crate::sync::Arc;

/// Where answers go. Called on the apply thread, or on the shard's when nothing will be applied: be brief,
/// never block, never panic: a panic in `applied` fences the group, one in `failed` is lost.
pub trait ReplySink<O>: Send + Sync {
    /// `outputs` are those of the proposals `first..` of the batch submitted under `token`; the first of
    /// them lies at `slot` of the entry at `at`.
    fn applied(&self, token: u64, first: u32, at: LogPosition, slot: u32, outputs: Drain<'_, O>);

    /// The proposals `first..first + count` of the batch submitted under `token` will not be answered.
    fn failed(&self, token: u64, first: u32, count: u32, failure: Failure);
}

/// What is known about a write that was not answered with an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It is in no log and never will be: safe to send again.
    NeverAppended,
    /// It may be in the log once, now or later, or never.
    MayYetCommit,
}

/// Why a proposal has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// This node does not lead the group. Nothing was appended.
    #[error("this node does not lead the group{}", hint(*leader))]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// The entry was replaced in this node's log. A later leader may still commit it elsewhere.
    #[error("leadership was lost after entry {index} was appended and before it was applied")]
    LeadershipLost {
        /// Where it was appended.
        index: Index,
    },
    /// The node is shutting down; nothing of this was appended.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The node shut down after the entry was appended.
    #[error("the node shut down after entry {index} was appended and before it was applied")]
    ShutDownBeforeApply {
        /// Where it was appended.
        index: Index,
    },
    /// The group has halted on this node. Nothing of this was appended.
    #[error("the group has halted on this node")]
    Halted,
    /// The group halted on this node after the entry was appended.
    #[error("the group halted on this node after entry {index} was appended")]
    HaltedBeforeApply {
        /// Where it was appended.
        index: Index,
    },
    /// The log has no room for proposals. Nothing was appended.
    #[error("the log is full")]
    StorageFull,
    /// The proposal was handed in and the thread that would have answered is gone.
    #[error("the engine stopped without an answer")]
    Abandoned,
}

fn hint(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |leader| format!("; node {leader} does"))
}

impl Failure {
    /// What happened to the write.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotLeader { .. } | Self::ShuttingDown | Self::Halted | Self::StorageFull => {
                Outcome::NeverAppended
            }
            Self::LeadershipLost { .. }
            | Self::ShutDownBeforeApply { .. }
            | Self::HaltedBeforeApply { .. }
            | Self::Abandoned => Outcome::MayYetCommit,
        }
    }
}

/// A range of an entry's slots that one client batch filled.
pub struct Run<O> {
    sink: Arc<dyn ReplySink<O>>,
    token: u64,
    first: u32,
    slot: u32,
    count: u32,
    answered: bool,
    /// Given back when the run is answered, never before.
    _permit: Permit,
}

impl<O> std::fmt::Debug for Run<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Run(token {} slots {}+{})",
            self.token, self.slot, self.count
        )
    }
}

impl<O> Run<O> {
    pub(crate) fn new(
        sink: Arc<dyn ReplySink<O>>,
        token: u64,
        first: u32,
        slot: u32,
        count: u32,
        permit: Permit,
    ) -> Self {
        Self {
            sink,
            token,
            first,
            slot,
            count,
            answered: false,
            _permit: permit,
        }
    }

    /// How many proposals it covers.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Answers with the outputs at the front of `outputs`, and takes them out. An error is what the sink
    /// panicked with: encoding an output may be the user's code. Then the sink has been told that there
    /// will be no outputs.
    ///
    /// # Panics
    ///
    /// If there are fewer outputs than proposals; [`crate::apply::Applier`] has checked that.
    pub fn answer(mut self, at: LogPosition, outputs: &mut Vec<O>) -> Result<(), Fatal> {
        let count = self.count as usize;
        assert!(count <= outputs.len());
        let (token, first, slot) = (self.token, self.first, self.slot);
        let outputs = outputs.drain(..count);
        let said = Fatal::catch(|| self.sink.applied(token, first, at, slot, outputs));
        if said.is_err() {
            self.say_failed(Failure::HaltedBeforeApply { index: at.index });
        }
        self.answered = true;
        said
    }

    /// Answers that there will be no outputs.
    pub fn fail(mut self, failure: Failure) {
        self.say_failed(failure);
    }

    /// A sink that panics over this harms itself alone: whoever fails runs is often ending something, and a
    /// panic that leaves a destructor would end the process.
    fn say_failed(&mut self, failure: Failure) {
        self.answered = true;
        let said = Fatal::catch(|| {
            self.sink
                .failed(self.token, self.first, self.count, failure);
        });
        drop(said);
    }
}

impl<O> Drop for Run<O> {
    fn drop(&mut self) {
        if !self.answered {
            self.say_failed(Failure::Abandoned);
        }
    }
}

/// Everybody who waits for the proposals of one entry, in slot order.
pub type Runs<O> = Vec<Run<O>>;

#[cfg(all(test, models))]
mod models;
