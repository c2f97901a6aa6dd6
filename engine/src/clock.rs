//! The clock that the shard is told the time by.

use std::time::Instant;

use logdrive_raft::Micros;

/// Microseconds since the node started, on the system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Micros {
        Micros(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// When `at` is, as the system's clock counts.
    pub(crate) fn instant(&self, at: Micros) -> Instant {
        self.origin + std::time::Duration::from_micros(at.0)
    }
}
