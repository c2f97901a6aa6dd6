//! Bytes between machines.

#![deny(missing_docs)]

pub mod ca;
pub mod identity;
pub mod tls;
