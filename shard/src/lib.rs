//! One thread's worth of engine as a value.
//!
//! A shard owns Raft groups and the write-ahead log they share. It knows no thread, no clock, no socket and
//! no async runtime: time, messages and disk completions come in, and what the world owes goes out through
//! [`Ports`]. The engine runs it on a thread, the simulator runs a whole cluster of them on one.

#![deny(missing_docs)]

pub mod apply;
mod compaction;
mod fetch;
mod group;
pub mod inbox;
pub mod kv;
pub mod machine;
mod meter;
pub mod permits;
pub mod ports;
mod repair;
pub mod shard;
pub mod snapshot;
pub mod status;
pub mod store;
mod sync;
pub mod ticket;
pub mod units;
mod watched;

pub use apply::{Applier, ApplyBatch, Fenced, NotInstalled};
pub use compaction::SnapshotSettings;
pub use fetch::{FETCH_BYTES_MAX, FetchStatus};
pub use inbox::{Door, Inbox, Refused};
pub use machine::{Batch, Durable, Fatal, StateMachine};
pub use permits::{Permit, Permits};
pub use ports::{Notice, Ports};
pub use repair::REPAIR_BYTES_MAX;
pub use shard::{
    CoreSettings, GroupSetup, MachineEvent, Opened, PeerInput, Prepared, Shard, StartError,
};
pub use snapshot::{MemorySnapshot, SnapshotReader, SnapshotSource, SnapshotWriter};
pub use status::{GroupState, GroupStatus, ShardStatus, SnapshotStatus};
pub use store::{StoreEvent, StoreFailure, StoreJob, Storekeeper};
pub use ticket::{Failure, Outcome, ReplySink};
