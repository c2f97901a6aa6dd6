//! Raft as a value: inputs and time go in, what the world owes comes out.
//!
//! This crate knows no clock, no thread, no file and no socket. It cannot block, and it cannot fail: what
//! goes wrong in the world reaches it as an input, and what it decides leaves it as data. It also holds the
//! words that every other crate shares: ids, the frame of an entry, messages, limits.

#![deny(missing_docs)]

pub mod bootstrap;
mod configurations;
pub mod entry;
pub mod genesis;
pub mod ids;
pub mod io;
pub mod limits;
mod log;
pub mod membership;
pub mod message;
mod progress;
pub mod quorum;
mod raft;
pub mod wire;

pub use bootstrap::{Bootstrap, BootstrapReady};
pub use entry::{Entry, EntryBuilder, EntryHeader, EntryKind, ProposalRow, UnsealedEntry};
pub use genesis::Genesis;
pub use ids::{
    Boot, Chain, ClusterId, GroupId, Incarnation, Index, LogPosition, Micros, NodeId, Replica,
    ReplicationSession, Round, Term,
};
pub use membership::{Member, Membership};
pub use message::{Body, Lane, Message};
pub use raft::Raft;
