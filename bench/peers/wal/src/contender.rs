//! Who is measured.

pub mod device;
mod okaywal;
pub mod ours;
mod pwrite;
mod raft_engine;

use std::error::Error;
use std::path::Path;

use crate::load::Load;
use crate::measure::Measured;

/// What went wrong with a contender.
pub type Failed = Box<dyn Error + Send + Sync>;

/// A log, or what stands for one.
pub trait Contender {
    /// Callers append until time is up, each waiting until what it appended is durable.
    fn run(&mut self, load: &Load) -> Result<Measured, Failed>;

    /// Gives up what was appended, so that the next stretch finds files that were written before.
    fn recycle(&mut self) -> Result<(), Failed>;
}

/// The most callers at once.
pub const CALLERS_MAX: usize = 256;

/// Opens a contender in an empty directory.
type Open = fn(&Path) -> Result<Box<dyn Contender>, Failed>;

/// All of them, by their names. The first is ours, what the others are compared with.
pub const ALL: [(&str, Open); 8] = [
    ("logdrive", ours::open),
    ("logdrive-pwrite", ours::open_portable),
    ("raft-engine", raft_engine::open),
    ("okaywal", okaywal::open),
    ("pwrite", pwrite::open),
    ("device-dsync", device::open_dsync),
    ("device-drained", device::open_drained),
    ("device-threads", device::open_threads),
];
