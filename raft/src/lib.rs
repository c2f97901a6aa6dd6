//! Raft as a value: inputs and time go in, what the world owes comes out.
//!
//! This crate knows no clock, no thread, no file and no socket. It cannot block, and it cannot fail: what
//! goes wrong in the world reaches it as an input, and what it decides leaves it as data. It also holds the
//! words that every other crate shares: ids, the frame of an entry, messages, limits.
//!
//! # Driving a [`Raft`]
//!
//! A turn steps [`io::Input::Tick`] first, then every input that waits, then takes the [`io::Ready`] and
//! carries out all of it, without deciding anything:
//!
//! - Each [`io::Persist`] is written in the order of its id. Once it is durable (and, where it says `echoed`,
//!   the flush group after it too) *and all before it are*, [`io::Input::Durable`] is stepped, and what lies
//!   in `then` leaves, but for messages whose term is not [`Raft::term`] any more. One `Durable` may stand
//!   for several writes.
//! - `messages` leave at once. They may be lost, doubled and late; a follower that answers from another boot,
//!   and every [`io::Input::PeerConnected`], begins a new replication session.
//! - Each [`io::ReadLog`] is answered by one [`io::Input::Read`] with its `peer` and `from`, empty if nothing
//!   could be read.
//! - `proposals` answers each proposal of the turn once, in the order in which they came. What was accepted
//!   is decided when `commit` reaches it, or may never be once `truncated_from` or a change
//!   of role has passed it.
//!
//! [`Raft::next_deadline`] says when to come back if nothing happens. Take a `Ready` right after
//! [`Raft::new`] as well. Before there is a genesis there is no `Raft`: see [`bootstrap`].
//!
//! # What the tests show
//!
//! `tests/paper.rs` has the rules of the paper, `tests/scenarios` claims as text, `tests/cluster` random
//! clusters from seeds. A seed that finds a bug becomes a scenario named after what went wrong. That a bug
//! would be seen is shown by planting some: [`mutant`].

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
pub mod mutant;
mod progress;
pub mod quorum;
mod raft;
pub mod snapshot;
pub mod wire;

pub use bootstrap::{Bootstrap, BootstrapReady};
pub use entry::{Entry, EntryBuilder, EntryHeader, EntryKind, ProposalRow, UnsealedEntry};
pub use genesis::Genesis;
pub use ids::{
    Boot, Chain, ClusterId, GroupId, Incarnation, Index, LogPosition, Micros, NodeId, Replica,
    ReplicationSession, Round, SnapshotId, Term,
};
pub use membership::{Member, Membership};
pub use message::{Body, Lane, Message};
pub use raft::Raft;
pub use snapshot::{Anchor, Base};
