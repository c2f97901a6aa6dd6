//! A whole cluster in one thread from one seed.
//!
//! The real core, the real log and the real turn run under a virtual clock, on simulated disks that lose
//! what was not flushed and over a network that delays, loses, repeats and reorders. All of it is drawn from
//! one seed, so a seed replays a bug.

#![deny(missing_docs)]

pub mod check;
pub mod cluster;
pub mod dice;
pub mod disk;
pub mod images;
mod lanes;
pub mod node;
pub mod oracle;
