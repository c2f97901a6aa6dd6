//! Logs that one thread drives: its callers hand appends over without waiting, and it waits for all of them at once.

use std::time::Instant;

use crate::contender::Failed;
use crate::load::{Arrivals, Load};
use crate::measure::{Latencies, Measured, timed};
use crate::shape::Shape;

/// A log, or what stands for one, that never makes its thread wait but in `turn`.
pub trait Driven {
    /// A caller appends. It has nothing else under way.
    fn append(&mut self, shape: Shape, caller: usize) -> Result<(), Failed>;

    /// Hands over what was appended, waits until something happens, but not beyond `until`, and adds the callers whose
    /// appends have become durable.
    fn turn(&mut self, until: Option<Instant>, durable: &mut Vec<usize>) -> Result<(), Failed>;
}

/// Runs a load. A latency counts from when the append was due.
pub fn run(log: &mut impl Driven, load: &Load) -> Result<Measured, Failed> {
    timed(|| {
        let until = Instant::now() + load.time;
        let mut arrivals = load.per_s.map(Arrivals::new);
        let mut latencies = Latencies::default();
        let mut began = vec![Instant::now(); load.callers];
        let mut free: Vec<usize> = (0..load.callers).rev().collect();
        let mut durable = Vec::new();
        loop {
            while let Some(caller) = free.last().copied() {
                let now = Instant::now();
                let due = arrivals.as_ref().map_or(now, Arrivals::next);
                if due > now || due >= until {
                    break;
                }
                if let Some(arrivals) = &mut arrivals {
                    arrivals.advance();
                }
                began[caller] = due;
                free.pop();
                log.append(load.shape, caller)?;
            }
            let next = match &arrivals {
                Some(arrivals) => arrivals.next(),
                None => Instant::now(),
            };
            if next >= until && free.len() == load.callers {
                return Ok(latencies);
            }
            let wakes = next < until && !free.is_empty();
            log.turn(wakes.then_some(next), &mut durable)?;
            for caller in durable.drain(..) {
                latencies.record(began[caller].elapsed());
                free.push(caller);
            }
        }
    })
}
