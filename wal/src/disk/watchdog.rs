//! Notices when a flush mode that was good has turned bad.
//!
//! Durable writes can starve: where the device has no FUA the kernel flushes on a worker that shares a
//! processor with whoever is busy there, and a write that took a tenth of a millisecond takes four. Probing
//! at start sees that only if the processor is busy then.

/// After each change so many times as many bad windows are needed, so that two bad modes do not take turns.
const PATIENCE_GROWTH: u32 = 4;
/// How many times the usual latency is bad.
const TIMES: u64 = 10;
/// Nothing below is bad, whatever it is compared with.
const BAD_NS_MIN: u64 = 1_000_000;

/// How long a flush mode may be bad before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogLimits {
    /// Latencies in a window.
    pub window: usize,
    /// Bad windows in a row after which the mode is given up for the first time.
    pub bad_windows: u32,
    /// After each change four times as many are needed, up to this number.
    pub bad_windows_max: u32,
}

impl Default for WatchdogLimits {
    fn default() -> Self {
        Self {
            window: 256,
            bad_windows: 4,
            bad_windows_max: 1024,
        }
    }
}

/// What to do about the flush mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushAdvice {
    /// Go on.
    Keep,
    /// Use the other mode. What is under way ends in the old one.
    Switch,
}

/// Watches how long small flush groups take to be durable.
///
/// The usual latency is the lowest median of a window in this mode. A window is bad if one in a hundred of
/// its latencies is ten times that: a few slow flushes are, and a median that has gone up as far is, too. If
/// windows stay bad the mode is given up.
///
/// Feed it with *partly filled* groups: full ones take long because they are large.
#[derive(Clone, Debug)]
pub struct FlushWatchdog {
    limits: WatchdogLimits,
    window: Vec<u64>,
    usual_ns: Option<u64>,
    bad: u32,
    /// Bad windows in a row at which the mode is given up.
    patience: u32,
}

impl FlushWatchdog {
    /// A watchdog that has seen nothing yet.
    ///
    /// # Panics
    ///
    /// If a window holds nothing.
    #[must_use]
    pub fn new(limits: WatchdogLimits) -> Self {
        assert!(limits.window > 0);
        Self {
            limits,
            window: Vec::with_capacity(limits.window),
            usual_ns: None,
            bad: 0,
            patience: limits.bad_windows,
        }
    }

    /// Takes how long a flush group took from its submission until it was durable.
    pub fn on_flush(&mut self, latency_ns: u64) -> FlushAdvice {
        self.window.push(latency_ns);
        if self.window.len() < self.limits.window {
            return FlushAdvice::Keep;
        }
        self.window.sort_unstable();
        let at = |percent: usize| self.window[self.window.len() * percent / 100];
        let (p50, p99) = (at(50), at(99));
        self.window.clear();
        let usual = self.usual_ns.map_or(p50, |usual| usual.min(p50));
        self.usual_ns = Some(usual);
        if usual.saturating_mul(TIMES).max(BAD_NS_MIN) < p99 {
            self.bad += 1;
        } else {
            self.bad = 0;
        }
        if self.bad < self.patience {
            return FlushAdvice::Keep;
        }
        // The other mode has its own usual latency, and no latency of this one counts there.
        self.bad = 0;
        self.usual_ns = None;
        self.patience = (self.patience * PATIENCE_GROWTH).min(self.limits.bad_windows_max);
        FlushAdvice::Switch
    }

    /// The usual latency of the mode in use, if it is known.
    #[must_use]
    pub fn usual_ns(&self) -> Option<u64> {
        self.usual_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = 256;
    const BAD_WINDOWS: u32 = 4;

    fn new_dog() -> FlushWatchdog {
        FlushWatchdog::new(WatchdogLimits::default())
    }

    /// Feeds windows in which one flush in `every` is slow; says after how many it wants to switch.
    fn windows(
        dog: &mut FlushWatchdog,
        count: u32,
        usual: u64,
        slow: u64,
        every: u64,
    ) -> Option<u32> {
        for window in 1..=count {
            for flush in 0..WINDOW as u64 {
                let latency = if flush % every == 0 { slow } else { usual };
                if dog.on_flush(latency) == FlushAdvice::Switch {
                    return Some(window);
                }
            }
        }
        None
    }

    #[test]
    fn an_even_mode_is_kept() {
        let mut dog = new_dog();
        assert_eq!(windows(&mut dog, 5000, 130_000, 1_200_000, 20), None);
        assert_eq!(dog.usual_ns(), Some(130_000));
        // Rare slow ones are the medium's business, and microseconds nobody's.
        assert_eq!(windows(&mut dog, 5000, 130_000, 90_000_000, 200), None);
        let mut fast = new_dog();
        assert_eq!(windows(&mut fast, 5000, 10_000, 900_000, 10), None);
    }

    #[test]
    fn a_mode_with_many_slow_flushes_is_given_up() {
        let mut dog = new_dog();
        assert_eq!(
            windows(&mut dog, 100, 130_000, 4_000_000, 20),
            Some(BAD_WINDOWS)
        );
    }

    #[test]
    fn a_mode_that_starves_altogether_is_given_up() {
        let mut dog = new_dog();
        assert_eq!(windows(&mut dog, 10, 130_000, 130_000, 1), None);
        assert_eq!(
            windows(&mut dog, 100, 4_000_000, 4_000_000, 1),
            Some(BAD_WINDOWS)
        );
    }

    #[test]
    fn a_bad_moment_is_forgiven() {
        let mut dog = new_dog();
        for _ in 0..100 {
            assert_eq!(
                windows(&mut dog, BAD_WINDOWS - 1, 130_000, 4_000_000, 20),
                None
            );
            assert_eq!(windows(&mut dog, 1, 130_000, 130_000, 1), None);
        }
    }

    #[test]
    fn two_bad_modes_take_turns_ever_more_rarely() {
        let mut dog = new_dog();
        let mut patience = Vec::new();
        for _ in 0..7 {
            patience.extend(windows(&mut dog, 5000, 130_000, 4_000_000, 20));
        }
        assert_eq!(patience, [4, 16, 64, 256, 1024, 1024, 1024]);
    }
}
