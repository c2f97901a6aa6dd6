//! When operations of an open loop are due, whatever the answers do.

use crate::args::Arrival;

/// The due times of one worker's share of the load, in order.
#[derive(Debug)]
pub struct Schedule {
    start_ns: u64,
    /// Nanoseconds between two operations of the whole load.
    interval_ns: f64,
    arrival: Arrival,
    worker: u64,
    workers: u64,
    taken: u64,
    due_ns: u64,
    /// Poisson only: where the last one was due, with its fraction.
    exact_ns: f64,
    random: fastrand::Rng,
}

impl Schedule {
    /// Every `workers`-th operation of a load of `rate_per_s`, from `start_ns` on.
    #[must_use]
    pub fn new(
        start_ns: u64,
        rate_per_s: f64,
        arrival: Arrival,
        worker: u64,
        workers: u64,
        seed: u64,
    ) -> Self {
        assert!(worker < workers);
        let mut schedule = Self {
            start_ns,
            interval_ns: 1e9 / rate_per_s,
            arrival,
            worker,
            workers,
            taken: 0,
            due_ns: start_ns,
            exact_ns: 0.0,
            random: fastrand::Rng::with_seed(seed ^ (worker << 32) ^ 0x5c4e_d01e),
        };
        schedule.due_ns = schedule.next_due();
        schedule
    }

    /// When the next operation is due.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Takes the next operation off the schedule.
    pub fn advance(&mut self) {
        self.taken += 1;
        self.due_ns = self.next_due();
    }

    /// How many more are due before a moment. Takes none.
    #[must_use]
    pub fn due_before(&self, moment_ns: u64) -> u64 {
        if moment_ns <= self.due_ns {
            return 0;
        }
        let step_ns = self.interval_ns * self.workers as f64;
        ((moment_ns - self.due_ns) as f64 / step_ns).ceil() as u64
    }

    fn next_due(&mut self) -> u64 {
        match self.arrival {
            Arrival::Constant => {
                // Each from the start, not from the one before: no rounding adds up.
                let number = self.taken * self.workers + self.worker;
                self.start_ns + (number as f64 * self.interval_ns) as u64
            }
            Arrival::Poisson => {
                let uniform = 1.0 - self.random.f64();
                self.exact_ns -= uniform.ln() * self.interval_ns * self.workers as f64;
                self.start_ns + self.exact_ns as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(schedule: &mut Schedule, count: usize) -> Vec<u64> {
        let mut due = Vec::new();
        for _ in 0..count {
            due.push(schedule.due_ns());
            schedule.advance();
        }
        due
    }

    #[test]
    fn two_workers_share_a_constant_rate() {
        let schedule = |worker| Schedule::new(1000, 1e9 / 50.0, Arrival::Constant, worker, 2, 1);
        assert_eq!(take(&mut schedule(0), 3), [1000, 1100, 1200]);
        assert_eq!(take(&mut schedule(1), 3), [1050, 1150, 1250]);
        assert_eq!(schedule(0).due_before(1101), 2);
        assert_eq!(schedule(0).due_before(1000), 0);
    }

    #[test]
    fn a_long_schedule_keeps_its_rate() {
        let mut schedule = Schedule::new(0, 30e3, Arrival::Constant, 0, 1, 1);
        let due = take(&mut schedule, 300_001);
        assert_eq!(due[300_000], 10_000_000_000);
    }

    #[test]
    fn independent_arrivals_keep_the_rate_on_average_and_repeat_with_their_seed() {
        let due = |seed| {
            let mut schedule = Schedule::new(0, 1e6, Arrival::Poisson, 0, 1, seed);
            take(&mut schedule, 100_000)
        };
        let end_ns = due(7)[99_999] as f64;
        assert!((0.98e8..1.02e8).contains(&end_ns), "{end_ns}");
        assert_eq!(due(7), due(7));
        assert_ne!(due(7)[99_999], due(8)[99_999]);
    }
}
