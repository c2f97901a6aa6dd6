//! The program as its users meet it. One program for all, for linking one takes longer than its tests do.
#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "../common/mod.rs"]
mod common;

mod errors_md;
mod flips;
mod guarded;
mod messages;
mod quorum;
mod serve;
mod snapshots;
mod wal;
mod watch;
