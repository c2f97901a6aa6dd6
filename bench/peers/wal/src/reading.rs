//! How ours reads for a follower that lags: from the oldest entry on, while appends go on at half of what they could.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use logdrive_wal::disk::FlushMode;

use crate::contender::Failed;
use crate::contender::device::Ring;
use crate::contender::ours::Ours;
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

/// So many reads under way of so many bytes: what a shard does for a follower, and what disturbs least.
const PACES: [(usize, usize); 2] = [(4, 1 << 20), (1, 256 << 10)];

/// Something that can be read from its beginning on, and then again.
pub trait Readable: Driven {
    /// Starts a read of about so many bytes.
    fn read(&mut self, bytes: usize) -> Result<(), Failed>;

    /// How many reads have ended, and how many bytes they brought.
    fn take_reads(&mut self) -> Result<(usize, u64), Failed>;
}

/// Appends and a reader on one thread, as a shard has them.
struct Both<'a, L> {
    log: &'a mut L,
    reads_max: usize,
    read_bytes: usize,
    under_way: usize,
    bytes: u64,
}

impl<L: Readable> Driven for Both<'_, L> {
    fn append(&mut self, shape: Shape, caller: usize) -> Result<(), Failed> {
        self.log.append(shape, caller)
    }

    fn turn(&mut self, until: Option<Instant>, durable: &mut Vec<usize>) -> Result<(), Failed> {
        while self.under_way < self.reads_max {
            self.log.read(self.read_bytes)?;
            self.under_way += 1;
        }
        self.wait(until, durable)
    }
}

impl<L: Readable> Both<'_, L> {
    fn wait(&mut self, until: Option<Instant>, durable: &mut Vec<usize>) -> Result<(), Failed> {
        self.log.turn(until, durable)?;
        let (ended, bytes) = self.log.take_reads()?;
        self.under_way -= ended;
        self.bytes += bytes;
        Ok(())
    }

    fn end(mut self) -> Result<u64, Failed> {
        let bytes = self.bytes;
        while self.under_way > 0 {
            self.wait(None, &mut Vec::new())?;
        }
        Ok(bytes)
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

/// Measures it so often, ours and the device, and tells it as a table.
pub fn measure(dir: &Path, rounds: usize, time: Duration) -> Result<String, Failed> {
    let mut log = Ours::create(&crate::fresh(dir, "log")?)?;
    let mut device = Ring::new(&crate::fresh(dir, "device")?, FlushMode::Dsync)?;
    let mut seen = PACES.map(|_| [Rounds::default(), Rounds::default()]);
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
        for (pace, [of_log, of_device]) in PACES.into_iter().zip(&mut seen) {
            of_log.stretch(&mut log, &load, pace)?;
            of_device.stretch(&mut device, &load, pace)?;
        }
        eprintln!("round {} of {rounds}: reading", round + 1);
    }
    let tables = PACES.into_iter().zip(&seen);
    Ok(tables.map(|(pace, seen)| to_markdown(pace, seen)).collect())
}

impl Rounds {
    fn stretch(
        &mut self,
        log: &mut impl Readable,
        load: &Load,
        (reads_max, read_bytes): (usize, usize),
    ) -> Result<(), Failed> {
        let alone = driven::run(log, load)?;
        let mut both = Both {
            log,
            reads_max,
            read_bytes,
            under_way: 0,
            bytes: 0,
        };
        let beside = driven::run(&mut both, load)?;
        let bytes = both.end()?;
        self.add(&alone, &beside, bytes);
        Ok(())
    }

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
}

type Figure = (&'static str, fn(&Rounds) -> &Vec<f64>);

fn to_markdown((reads_max, read_bytes): (usize, usize), seen: &[Rounds; 2]) -> String {
    let mut out = format!(
        "### Reading in order, {reads_max} x {} KiB at once, beside appends of 64 KiB at half load\n\n",
        read_bytes >> 10
    );
    let _ = writeln!(
        out,
        "| | log | smallest, largest | device | smallest, largest |"
    );
    let _ = writeln!(out, "|---|--:|--:|--:|--:|");
    let rows: [Figure; 4] = [
        ("read, GB/s", |seen| &seen.read_gb_per_s),
        ("appends/s, beside a reader / alone", |seen| &seen.appends),
        ("p50 of appends, the same", |seen| &seen.p50),
        ("p99 of appends, the same", |seen| &seen.p99),
    ];
    for (what, of) in rows {
        let _ = write!(out, "| {what} |");
        for values in seen.iter().map(of) {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let middle = median(values.iter().copied());
            let _ = write!(out, " {middle:.2} | {least:.2}, {most:.2} |");
        }
        out.push('\n');
    }
    out.push('\n');
    out
}
