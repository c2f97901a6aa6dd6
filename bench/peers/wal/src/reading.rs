//! How ours reads for a follower that lags: from the oldest entry on, while appends go on at half of what they could.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::contender::Failed;
use crate::contender::ours::{Ours, Reader};
use crate::driven::{self, Driven};
use crate::load::Load;
use crate::measure::Measured;
use crate::shape::Shape;
use crate::table::median;

/// 64 KiB each.
const SHAPE: Shape = Shape {
    count: 64,
    bytes: 1 << 10,
};

/// What is there to be read, of one group.
const KEPT_BYTES: usize = 1 << 30;

/// Appends and a reader on one thread, as a shard has them.
struct Both<'a> {
    log: &'a mut Ours,
    reader: Reader,
}

impl Driven for Both<'_> {
    fn append(&mut self, shape: Shape, caller: usize) -> Result<(), Failed> {
        self.log.append(shape, caller)
    }

    fn turn(&mut self, until: Option<Instant>, durable: &mut Vec<usize>) -> Result<(), Failed> {
        self.reader.ask(self.log)?;
        self.log.turn(until, durable)?;
        self.reader.take(self.log)
    }
}

#[derive(Default)]
struct Rounds {
    read_gb_per_s: Vec<f64>,
    /// Appends a second with a reader, over those without.
    appends: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// Measures it so often, and tells it as a table.
pub fn measure(dir: &Path, rounds: usize, time: Duration) -> Result<String, Failed> {
    let mut log = Ours::create(dir)?;
    let mut seen = Rounds::default();
    for round in 0..rounds {
        log.empty()?;
        log.begin(SHAPE);
        log.fill(SHAPE, KEPT_BYTES)?;
        let mut load = Load {
            shape: SHAPE,
            callers: 16,
            time,
            per_s: None,
        };
        let most = driven::run(&mut log, &load)?;
        load.per_s = Some(most.latencies.count() as f64 / most.took.as_secs_f64() / 2.0);
        load.time *= 2;
        let alone = driven::run(&mut log, &load)?;
        log.settle();
        let reader = Reader::new(&log, SHAPE);
        let mut both = Both {
            log: &mut log,
            reader,
        };
        let beside = driven::run(&mut both, &load)?;
        let bytes = both.reader.bytes();
        both.reader.end(both.log)?;
        seen.add(&alone, &beside, bytes);
        eprintln!("round {} of {rounds}: reading", round + 1);
    }
    Ok(seen.to_markdown())
}

impl Rounds {
    fn add(&mut self, alone: &Measured, beside: &Measured, read_bytes: u64) {
        let per_s =
            |measured: &Measured| measured.latencies.count() as f64 / measured.took.as_secs_f64();
        self.read_gb_per_s
            .push(read_bytes as f64 / 1e9 / beside.took.as_secs_f64());
        self.appends.push(per_s(beside) / per_s(alone));
        let slower = |share: f64| {
            let beside = beside.latencies.quantile_ns(share)? as f64;
            Some(beside / alone.latencies.quantile_ns(share)? as f64)
        };
        self.p50.extend(slower(0.5));
        self.p99.extend(slower(0.99));
    }

    fn to_markdown(&self) -> String {
        let mut out = "### Reading 1 GiB in order, appends of 64 KiB at half load\n\n".to_owned();
        let _ = writeln!(out, "| | median | smallest, largest |");
        let _ = writeln!(out, "|---|--:|--:|");
        let rows = [
            ("read, GB/s", &self.read_gb_per_s),
            ("appends/s, beside a reader / alone", &self.appends),
            ("p50 of appends, the same", &self.p50),
            ("p99 of appends, the same", &self.p99),
        ];
        for (what, values) in rows {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let middle = median(values.iter().copied());
            let _ = writeln!(out, "| {what} | {middle:.2} | {least:.2}, {most:.2} |");
        }
        out.push('\n');
        out
    }
}
