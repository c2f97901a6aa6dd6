//! A whole cluster in one thread from one seed.

#![deny(missing_docs)]

pub mod disk;
