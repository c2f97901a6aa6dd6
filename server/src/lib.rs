//! The `logdrive` binary as a library, so that tests reach its parts.

#![deny(missing_docs)]

pub mod config;
pub mod exit;
