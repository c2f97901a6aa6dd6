//! What callers see who append and wait, one append at a time each.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use crate::load::{Arrivals, Load};

/// How long appends took.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(100, 60_000_000_000, 3);
        Self(histogram.expect("these bounds are in order"))
    }
}

impl Latencies {
    /// One more append.
    pub fn record(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Those of another caller.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Nanoseconds that a share of them did not exceed. `None`: fewer than ten lie beyond.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let beyond = self.0.len() as f64 * (1.0 - share);
        (beyond >= 10.0).then(|| self.0.value_at_quantile(share))
    }
}

/// A stretch of time in which callers appended.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Of all callers.
    pub latencies: Latencies,
    /// From the first append to the end of the last.
    pub took: Duration,
    /// Processor time of this process, the kernel's on its behalf included.
    pub cpu: Duration,
}

/// Times a stretch.
pub fn timed<E>(run: impl FnOnce() -> Result<Latencies, E>) -> Result<Measured, E> {
    let (began, cpu) = (Instant::now(), process_cpu());
    let latencies = run()?;
    Ok(Measured {
        latencies,
        took: began.elapsed(),
        cpu: process_cpu().saturating_sub(cpu),
    })
}

fn process_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Callers as threads: each appends, waits, and appends again until time is up, or when the next append is due. A
/// latency counts from when that was.
pub fn threads<S, E>(
    callers: &mut [S],
    load: &Load,
    append: impl Fn(&mut S) -> Result<(), E> + Sync,
) -> Result<Measured, E>
where
    S: Send,
    E: Send,
{
    let until = Instant::now() + load.time;
    let arrivals = load.per_s.map(|per_s| Mutex::new(Arrivals::new(per_s)));
    let due = || match &arrivals {
        None => Instant::now(),
        Some(arrivals) => {
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let due = arrivals.next();
            arrivals.advance();
            due
        }
    };
    let one = |caller: &mut S| {
        let mut latencies = Latencies::default();
        loop {
            let due = due();
            if due >= until {
                return Ok(latencies);
            }
            let early = due.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            append(caller)?;
            latencies.record(due.elapsed());
        }
    };
    timed(|| {
        std::thread::scope(|scope| {
            let spawn = |caller| scope.spawn(|| one(caller));
            let running: Vec<_> = callers.iter_mut().map(spawn).collect();
            let mut all = Latencies::default();
            for thread in running {
                all.add(&thread.join().expect("callers do not panic")?);
            }
            Ok(all)
        })
    })
}
