//! Logs on a simulated disk. One program for all, for linking one takes longer than its tests do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod allocations;
mod common;
mod crash;
mod cut;
mod damage;
mod ends;
mod faults;
mod files;
mod future;
mod golden;
mod guard;
mod holes;
mod hostile;
mod left;
mod log;
mod mended;
mod opening;
mod readme;
mod recycled;
mod release;

mod scrub;
mod supplied;
mod while_running;
