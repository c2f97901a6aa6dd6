//! What is asked of a log, and when.

use std::time::{Duration, Instant};

use crate::shape::Shape;

/// A stretch of appends.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What is appended at once.
    pub shape: Shape,
    /// At most so many appends wait at once.
    pub callers: usize,
    /// No append begins later.
    pub time: Duration,
    /// How many appends begin in a second, at random moments. `None`: each caller begins again as soon as it can.
    pub per_s: Option<f64>,
}

/// Moments at which appends are due: as many as they are in a second, each at random (a Poisson process). The same ones
/// for everybody.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    next: Instant,
    mean_s: f64,
    state: u64,
}

impl Arrivals {
    /// From now on.
    pub fn new(per_s: f64) -> Self {
        Self {
            next: Instant::now(),
            mean_s: 1.0 / per_s,
            state: 0x2545_f491_4f6c_dd1d,
        }
    }

    /// When the next append is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Goes on to the one after it.
    pub fn advance(&mut self) {
        // xorshift64*: its high bits are as good as is needed here.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        let share = (drawn as f64 + 0.5) / (1_u64 << 53) as f64;
        self.next += Duration::from_secs_f64(-share.ln() * self.mean_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_are_due_as_often_as_they_should_be() {
        let mut arrivals = Arrivals::new(1000.0);
        let began = arrivals.next();
        for _ in 0..10_000 {
            arrivals.advance();
        }
        let took = (arrivals.next() - began).as_secs_f64();
        assert!((9.5..10.5).contains(&took), "{took}");
    }
}
