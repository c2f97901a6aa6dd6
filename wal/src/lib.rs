//! The write-ahead log of logdrive.

#![deny(missing_docs)]

pub mod disk;
