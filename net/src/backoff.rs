//! How long to wait before trying again.

use std::time::Duration;

/// Waiting times that double up to a bound, each drawn from its upper half, so that nodes which lost each
/// other at once do not meet again at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// From 10 ms up to `max`.
    pub(crate) fn up_to(max: Duration) -> Self {
        Self {
            next: MIN.min(max),
            max,
            random: fastrand::Rng::new(),
        }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let bound = self.next;
        self.next = (bound * 2).min(self.max);
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.u64(micros / 2..=micros))
    }
}

const MIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_differ() {
        let max = Duration::from_secs(1);
        let mut backoff = Backoff::up_to(max);
        assert!(backoff.next() <= MIN);
        let later: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(later.iter().all(|wait| *wait <= max));
        let last = &later[10..];
        assert!(last.iter().all(|wait| *wait >= max / 2));
        assert!(last.iter().any(|wait| *wait != last[0]));
    }
}
