//! Shards over simulated disks. One program for all, for linking one takes longer than its tests do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod compaction;
mod feed;
mod figure8;
mod full;
mod poisoned;
mod shard;
mod snapshots;
mod trio;
