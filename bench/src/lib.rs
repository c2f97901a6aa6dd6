//! What benches of several parts need: the contents of entries, and a group of cores without a machine.
//!
//! The benches themselves are named object/size/variant, as in `frame_verify/64x1KiB`: 64 proposals of 1 KiB
//! in one entry. They are for comparing two builds on one machine, one after the other; what a cluster does is
//! measured with `loadgen` and told in `reports/`.

#![deny(missing_docs)]

mod shape;
mod trio;

pub use shape::Shape;
pub use trio::{Spent, Trio, genesis};

use logdrive_raft::GroupId;

/// The group that everything here belongs to.
pub const GROUP: GroupId = GroupId(1);
