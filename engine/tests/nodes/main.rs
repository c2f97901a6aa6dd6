//! Nodes as an embedder meets them. One program for all, for linking one takes longer than its tests do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../cluster/mod.rs"]
mod cluster;

mod clients;
mod network;
mod one_node;
mod snapshots;
mod three_nodes;
