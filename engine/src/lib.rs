//! Embed a replicated log.
//!
//! A [`Node`] holds a replica of each of its groups: it takes proposals, makes them durable on a majority
//! through Raft, and applies them to your [`StateMachine`] in the same order on every node. Log, network and
//! TLS are inside.

#![deny(missing_docs)]

mod ahead;
mod apply;
mod builder;
mod clients;
mod clock;
mod disk;
pub mod error;
mod install;
mod links;
mod memory;
pub mod metrics;
pub mod node;
mod notices;
pub mod proposal;
pub mod settings;
mod shared;
mod snapshot_now;
mod snapshots;
pub mod status;
mod thread;
mod tls;
mod wait;

pub use apply::ApplyOn;
pub use builder::{Mtu, NodeBuilder};
pub use error::{Code, ProposeError, StartError};
pub use metrics::MetricsSnapshot;
pub use node::{Group, LeaderKnown, Node, Reservation, Reserve};
pub use proposal::{Applied, Proposal, Proposals};
pub use settings::{Limits, RaftSettings, WalBackend, WalFlushMode, WalSettings};
pub use snapshot_now::{SnapshotNotTaken, SnapshotNow};
pub use status::Status;
pub use tls::Tls;
pub use wait::wait;

pub use logdrive_raft::{Chain, GroupId, Index, LogPosition, NodeId, Term};
pub use logdrive_shard::{
    Batch, Durable, Failure, Fatal, MemorySnapshot, Outcome, Refused, ReplySink, SnapshotReader,
    SnapshotSettings, SnapshotSource, SnapshotWriter, StateMachine, units,
};

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
