//! What clients asked and what they were told.

use logdrive_raft::{GroupId, LogPosition, Micros};

use crate::model::Request;

/// One proposal of a client.
#[derive(Clone, Debug)]
pub struct Operation<O> {
    /// What was asked.
    pub request: Request,
    /// When it was asked first.
    pub invoked: Micros,
    /// Calls and answers in the order in which they happened, counted through the run.
    pub invoked_order: u64,
    /// When its client learned what became of it, or gave up.
    pub returned: Option<Micros>,
    /// The place of that among calls and answers.
    pub returned_order: Option<u64>,
    /// What its client knows.
    pub outcome: Outcome<O>,
}

/// What a client knows of a proposal.
#[derive(Clone, Debug)]
pub enum Outcome<O> {
    /// Nothing yet.
    Pending,
    /// It was applied.
    Done {
        /// In this entry.
        at: LogPosition,
        /// At this place of the entry.
        slot: u32,
        /// And this is the answer.
        output: O,
    },
    /// It is in no log and never will be.
    Never,
    /// It may be in the log once, or not.
    Unknown,
}

/// Everything that clients of a run saw, and the log that came of it.
#[derive(Debug)]
pub struct History<O> {
    /// By request id, without gaps from 0.
    pub operations: Vec<Operation<O>>,
    /// What was applied, in order: one a proposal.
    pub log: Vec<Applied>,
}

/// A proposal in the committed log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Of this group.
    pub group: GroupId,
    /// In this entry.
    pub at: LogPosition,
    /// At this place of the entry.
    pub slot: u32,
    /// The request it came from, if the model can tell.
    pub request: Option<u64>,
}
