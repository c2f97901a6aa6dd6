//! The `logdrive` binary as a library, so that tests reach its parts.

#![deny(missing_docs)]

pub mod config;
pub mod exit;
pub mod health;
pub mod http;
pub mod metrics;
pub mod version;
