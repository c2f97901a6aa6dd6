//! What runs under the simulator: a state machine, what is asked of it, and what its answers must be.

use std::fmt::Debug;

use bytes::Bytes;
use fastrand::Rng;
use logdrive_raft::{GroupId, NodeId};
use logdrive_shard::StateMachine;

use crate::history::History;
use crate::oracle::Violation;

/// A proposal of a simulated client, before it is put into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// No two of a run have the same.
    pub id: u64,
    /// Which client.
    pub client: u64,
    /// Of which group.
    pub group: GroupId,
    /// About how many bytes, and no more when they are many: the largest one is as large as passes the door.
    pub bytes: usize,
}

/// How many searches for an order that explains the answers there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Those that found one.
    pub explained: u64,
    /// Those that were too large, or came to no end. They say nothing.
    pub given_up: u64,
}

/// A state machine under the simulator.
///
/// The simulator sees that every replica applies the same entries in the same order, each once, that what was
/// acknowledged survives, and that everything goes on when the faults are over. What the entries mean is for
/// the model to say.
pub trait Model: Debug {
    /// The machine.
    type Machine: StateMachine<Output = Self::Output>;
    /// What it answers.
    type Output: Clone + Debug + Send + 'static;

    /// A machine that is about to be opened on a node: a new one, or what a restart of the process leaves of
    /// it. A machine with storage of its own finds it again by node and group.
    fn machine(&mut self, node: NodeId, group: GroupId) -> Self::Machine;

    /// From now on each snapshot of its machines is to be larger than it has to be by so many bytes.
    fn pad(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// The payload of a proposal. Whatever is drawn is drawn from `random`, so that it follows from the
    /// request alone.
    fn payload(&mut self, request: Request, random: &mut Rng) -> Bytes;

    /// The request that a payload came from, if payloads tell: then the simulator sees whether one was
    /// applied twice, or came from nowhere.
    fn request_of(&self, payload: &[u8]) -> Option<u64> {
        let _ = payload;
        None
    }

    /// A number that is the same on all replicas that have applied the same entries.
    fn digest(&self, reader: &<Self::Machine as StateMachine>::Reader) -> u64;

    /// What its machines have seen go wrong by themselves, while the run went on.
    fn found(&self) -> Option<Violation> {
        None
    }

    /// Whether what the clients were told makes sense. The simulator has seen by itself that the log is what
    /// the clients were told about it; what the answers must be is for the model to say.
    fn check(&self, history: &History<Self::Output>) -> Result<Searched, Violation> {
        let _ = history;
        Ok(Searched::default())
    }
}
