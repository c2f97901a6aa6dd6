#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod disk;
pub mod dump;
pub mod format;
pub mod snapshots;

mod build;
mod configurations;
mod debris;
mod error;
mod judge;
mod options;
mod path;
mod pipeline;
mod pool;
mod queue;
mod read;
mod scan;
pub mod settle;
mod status;
pub mod verify;
mod wal;

pub use error::{
    AppendError, Finding, FindingVerdict, OpenError, PoisonReason, ReadError, ReadRefused,
    SupplyError,
};
pub use judge::{VOTE_SPENT, Verdict};
pub use options::{
    FlushModeChoice, FreshIds, Identity, InFlightMax, Options, SLOT_BYTES_MAX, SLOT_BYTES_MIN,
    SLOTS_MIN, ScrubPace,
};
pub use path::Missing;
pub use read::{ReadDone, ReadRequest};
pub use status::{Admitted, Counters, FlushHistogram, Room, WalStatus};
pub use wal::{ENTRY_ROOM_BYTES, Position, RecoveredGroup, Recovery, Wal};
