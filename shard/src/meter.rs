//! How fast something goes, over the last seconds.

use logdrive_raft::Micros;

/// So much of the past counts.
const WINDOW_US: u64 = 4_000_000;

/// Counts bytes and says how many came a second of late.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    /// The window under way: since when, and how much.
    since: Option<Micros>,
    bytes: u64,
    /// What the last whole window came to, or the one under way as long as there is none.
    per_s: u64,
}

impl Meter {
    pub(crate) fn add(&mut self, bytes: u64, now: Micros) {
        self.since.get_or_insert(now);
        self.bytes += bytes;
        self.tick(now);
    }

    /// Time has passed, whether or not anything came.
    pub(crate) fn tick(&mut self, now: Micros) {
        let Some(since) = self.since else {
            return;
        };
        let us = now.since(since);
        if us >= WINDOW_US / 4 {
            self.per_s = self.bytes.saturating_mul(1_000_000) / us;
        }
        if us >= WINDOW_US {
            self.since = Some(now);
            self.bytes = 0;
        }
    }

    pub(crate) fn per_s(&self) -> u64 {
        self.per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let mut meter = Meter::default();
        for second in 0..10 {
            for tenth in 0..10 {
                meter.add(100, Micros(second * 1_000_000 + tenth * 100_000));
            }
        }
        let per_s = meter.per_s();
        assert!((900..=1_100).contains(&per_s), "{per_s}");
        for second in 10..30 {
            meter.tick(Micros(second * 1_000_000));
        }
        assert_eq!(meter.per_s(), 0);
    }
}
