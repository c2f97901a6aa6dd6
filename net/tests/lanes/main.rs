//! Connections over real sockets. One program for all, for linking one takes longer than its tests do.
#![allow(clippy::unwrap_used, reason = "a test program")]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod echo;
mod peers;
mod refused;
