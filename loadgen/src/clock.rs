//! The one monotonic origin that all times of a run count from.

use std::time::{Duration, Instant};

/// Nanoseconds since the run began. Copies share the origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        ns(self.origin.elapsed())
    }

    /// How long until a moment; zero if it has passed.
    #[must_use]
    pub fn until(&self, moment_ns: u64) -> Duration {
        Duration::from_nanos(moment_ns.saturating_sub(self.now_ns()))
    }
}

/// A duration in nanoseconds; 584 years are the most.
#[must_use]
pub fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
