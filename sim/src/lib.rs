//! A whole cluster in one thread from one seed.
//!
//! The real core, the real log and the real turn run under a virtual clock, on simulated disks that lose
//! what was not flushed and over a network that delays, loses, repeats and reorders. All of it is drawn from
//! one seed, so a seed replays a bug.
//!
//! # A machine of your own
//!
//! [`MachineModel`] says how to make a machine, what to ask it, and what it holds as a number. That is all
//! that the [`conformance`] suite and [`run_seeds`] need:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
//!
//! use logdrive_shard::{Batch, Durable, Fatal, SnapshotReader, StateMachine};
//! use logdrive_sim::{FailedSeed, MachineModel, conformance, run_seeds};
//!
//! /// Adds up. The answer is the sum so far, or none to what is not a number.
//! #[derive(Default)]
//! struct Adder(Arc<AtomicU64>);
//!
//! impl StateMachine for Adder {
//!     type Output = Option<u64>;
//!     type Reader = Arc<AtomicU64>;
//!     type Snapshot = Vec<u8>;
//!
//!     fn open(&mut self) -> Result<Durable, Fatal> {
//!         Ok(Durable::default())
//!     }
//!
//!     fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Option<u64>>) -> Result<(), Fatal> {
//!         outputs.extend(batch.proposals().map(|(_, payload)| {
//!             let number = u64::from_le_bytes(payload.try_into().ok()?);
//!             Some(self.0.fetch_add(number, Relaxed).wrapping_add(number))
//!         }));
//!         Ok(())
//!     }
//!
//!     fn reader(&self) -> Arc<AtomicU64> {
//!         Arc::clone(&self.0)
//!     }
//!
//!     fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
//!         Ok(self.0.load(Relaxed).to_le_bytes().to_vec())
//!     }
//!
//!     fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
//!         let bytes = snapshot.read_all(8)?.try_into();
//!         let sum = u64::from_le_bytes(bytes.map_err(|_| Fatal::new("not a sum"))?);
//!         self.0.store(sum, Relaxed);
//!         Ok(())
//!     }
//! }
//!
//! fn model() -> MachineModel<Adder> {
//!     MachineModel::new(
//!         |_node, _group| Adder::default(),
//!         |_request, random| random.u64(..).to_le_bytes().to_vec(),
//!         |sum| sum.load(Relaxed),
//!     )
//! }
//!
//! fn main() -> Result<(), FailedSeed> {
//!     conformance::assert_conforms(model);
//!     run_seeds(1..=3, model)?;
//!     Ok(())
//! }
//! ```
//!
//! A seed that fails says which promise was broken and how to run it again. A machine with storage of its own
//! finds it by node and group; see [`MachineModel::new`].

#![deny(missing_docs)]

pub mod check;
pub mod cluster;
pub mod conformance;
pub mod coverage;
pub mod dice;
pub mod disk;
pub mod draw;
pub mod enabled;
pub mod files;
pub mod history;
pub mod images;
pub mod kv;
mod lanes;
pub mod machine;
pub mod model;
pub mod mortal;
mod network;
pub mod node;
pub mod oracle;
pub mod padded;
pub mod plan;
pub mod script;
pub mod seeds;
pub mod shrink;
pub mod step;
mod trace;

pub use machine::MachineModel;
pub use seeds::{FailedSeed, run_seeds, tell_seed};
