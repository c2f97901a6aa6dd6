//! A system that answers at once and does nothing: shows what the generator itself can do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Answered, Failure, Lane, Mailbox, Submission, Target, TargetError};

/// Answers everything on the spot.
#[derive(Debug, Default)]
pub struct NullTarget {
    index: Arc<AtomicU64>,
}

struct NullLane {
    index: Arc<AtomicU64>,
    mailbox: Arc<Mailbox>,
}

impl Target for NullTarget {
    fn lane(&self, _: &[u32], mailbox: Arc<Mailbox>) -> Result<Box<dyn Lane>, TargetError> {
        let index = Arc::clone(&self.index);
        Ok(Box::new(NullLane { index, mailbox }))
    }
}

impl Lane for NullLane {
    fn submit(&mut self, batch: &Submission<'_>) -> Result<(), Failure> {
        let index = self.index.fetch_add(1, Ordering::Relaxed) + 1;
        let count = batch.ends.len() as u32;
        let outputs = Vec::new();
        let what = Answered::Applied {
            index,
            slot: 0,
            outputs,
        };
        self.mailbox.put(batch.token, 0, count, what);
        Ok(())
    }

    fn wait(&mut self, until_ns: u64) {
        self.mailbox.park(until_ns);
    }
}
