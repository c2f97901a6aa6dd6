//! How often something is said.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// Lets something through once an interval.
#[derive(Debug)]
pub(crate) struct RateLimit {
    interval: Duration,
    last: Cell<Option<Instant>>,
}

impl RateLimit {
    pub(crate) fn once_a(interval: Duration) -> Self {
        let last = Cell::new(None);
        Self { interval, last }
    }

    /// Whether it may be said now; then it has been.
    pub(crate) fn pass(&self) -> bool {
        let pass = self
            .last
            .get()
            .is_none_or(|last| last.elapsed() >= self.interval);
        if pass {
            self.last.set(Some(Instant::now()));
        }
        pass
    }
}
