//! Loads a logdrive cluster and reports what it did, honestly.
//!
//! An open loop by default: operations are due on a schedule, whatever the answers do, and latency counts
//! from the moment an operation was due. What the generator itself adds is measured and told.

#![deny(missing_docs)]

pub mod args;
pub mod assertion;
pub mod baseline;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod exit;
pub mod faults;
pub mod floors;
pub mod history;
pub mod hlog;
pub mod machine;
pub mod mix;
pub mod progress;
pub mod recorder;
pub mod report;
pub mod run;
mod say;
pub mod schedule;
pub mod table;
pub mod target;
pub mod verdict;
pub mod verify;
pub mod workdir;
pub mod worker;
pub mod workload;

pub use logdrive::units;
