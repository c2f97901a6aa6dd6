//! State machines to start from. Each stands on `logdrive` alone, as a program of yours would.

#![deny(missing_docs)]

pub mod command;
pub mod redb_kv;

pub use command::{Command, Reply};
pub use redb_kv::{RedbKv, RedbReader, RedbSnapshot};
