//! The program and its parts. One program for all, for linking one takes longer than its tests do.
#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/linearizable.rs"]
mod linearizable;

mod cli;
mod flags;
mod history;
#[cfg(unix)]
mod plain;
