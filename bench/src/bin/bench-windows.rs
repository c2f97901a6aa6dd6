//! Percentiles of parts of a run: what its operations took while something went on, beside a while without it.
//!
//! `bench-windows RUN.HLOG WINDOWS` reads the histograms of every second that loadgen leaves, and lines
//! `PAIR without|with START END` with times in seconds since the epoch, and prints a table in markdown: of each pair
//! the percentiles of both, their ratios, and the medians of the ratios.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::{env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

/// The operations of a part of a run.
struct Window {
    seconds: f64,
    operations: Histogram<u64>,
}

impl Window {
    fn ms(&self, quantile: f64) -> f64 {
        self.operations.value_at_quantile(quantile) as f64 / 1e6
    }

    fn per_s(&self) -> f64 {
        self.operations.len() as f64 / self.seconds
    }
}

/// The histograms of every second, from when the operation was due, and when the first begins.
struct Seconds {
    start_s: f64,
    by_number: BTreeMap<u64, Histogram<u64>>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [log, windows] = &arguments[..] else {
        eprintln!("usage: bench-windows RUN.HLOG WINDOWS");
        return ExitCode::from(2);
    };
    match table(log, windows) {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-windows: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table(log: &str, windows: &str) -> Result<String, String> {
    let read = |path: &str| fs::read(path).map_err(|error| format!("read {path}: {error}"));
    let seconds = Seconds::of(&read(log)?).map_err(|error| format!("{log}: {error}"))?;
    let text = String::from_utf8(read(windows)?).map_err(|error| format!("{windows}: {error}"))?;
    let mut pairs: BTreeMap<u32, [Option<Window>; 2]> = BTreeMap::new();
    for line in text.lines() {
        let wrong = || format!("{windows}: not `PAIR without|with START END`: {line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [pair, kind, start, end] = words[..] else {
            return Err(wrong());
        };
        let place = match kind {
            "without" => 0,
            "with" => 1,
            _ => return Err(wrong()),
        };
        let pair = pair.parse().map_err(|_| wrong())?;
        let times: [Option<f64>; 2] = [start.parse().ok(), end.parse().ok()];
        let [Some(start), Some(end)] = times else {
            return Err(wrong());
        };
        pairs.entry(pair).or_default()[place] = Some(seconds.window(start, end)?);
    }
    Ok(render(&pairs))
}

fn render(pairs: &BTreeMap<u32, [Option<Window>; 2]>) -> String {
    let mut text =
        "| pair | without: ops/s | p50 ms | p99 ms | p99.9 ms | with: ops/s | p50 ms | p99 ms \
                    | p99.9 ms | p50 × | p99 × | p99.9 × | ops/s × |\n\
                    |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for (number, pair) in pairs {
        let [Some(without), Some(with)] = pair else {
            continue;
        };
        text += &format!("| {number} |");
        for window in [without, with] {
            let [p50, p99, p999] = QUANTILES.map(|quantile| window.ms(quantile));
            let per_s = window.per_s();
            text += &format!(" {per_s:.0} | {p50:.2} | {p99:.2} | {p999:.2} |");
        }
        let times = QUANTILES.map(|quantile| with.ms(quantile) / without.ms(quantile));
        let [p50, p99, p999] = times;
        let all = [p50, p99, p999, with.per_s() / without.per_s()];
        for (ratio, ratios) in all.into_iter().zip(&mut ratios) {
            text += &format!(" {ratio:.2} |");
            ratios.push(ratio);
        }
        text += "\n";
    }
    text += "| median | | | | | | | | |";
    for ratios in &mut ratios {
        match median(ratios) {
            Some(median) => text += &format!(" **{median:.2}** |"),
            None => text += " |",
        }
    }
    text + "\n"
}

const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    let upper = values.len() / 2;
    Some((values[middle] + values[upper]) / 2.0)
}

impl Seconds {
    fn of(log: &[u8]) -> Result<Self, String> {
        let mut this = Self {
            start_s: 0.0,
            by_number: BTreeMap::new(),
        };
        for entry in IntervalLogIterator::new(log) {
            match entry.map_err(|error| format!("{error:?}"))? {
                LogEntry::StartTime(time) => this.start_s = time.as_secs_f64(),
                LogEntry::Interval(interval) => {
                    if interval.tag().is_none_or(|tag| tag.as_str() != "schedule") {
                        continue;
                    }
                    let bytes = STANDARD.decode(interval.encoded_histogram());
                    let bytes = bytes.map_err(|error| error.to_string())?;
                    let histogram = Deserializer::new().deserialize(&mut &bytes[..]);
                    let histogram = histogram.map_err(|error| error.to_string())?;
                    let number = interval.start_timestamp().as_secs();
                    this.by_number.insert(number, histogram);
                }
                LogEntry::BaseTime(_) => {}
            }
        }
        Ok(this)
    }

    /// What began in the whole seconds between two times.
    fn window(&self, start_s: f64, end_s: f64) -> Result<Window, String> {
        let first = (start_s - self.start_s).ceil();
        let last = (end_s - self.start_s).floor();
        if first < 0.0 || last <= first {
            return Err(format!(
                "{start_s}..{end_s} is no time of the run, which begins at {}",
                self.start_s
            ));
        }
        let range = first as u64..last as u64;
        let mut operations = Histogram::new(3).map_err(|error| error.to_string())?;
        let mut seen = 0;
        for (_, second) in self.by_number.range(range.clone()) {
            operations.add(second).map_err(|error| error.to_string())?;
            seen += 1;
        }
        if seen < range.end - range.start {
            return Err(format!(
                "of {} seconds from {start_s} on the run has {seen}",
                range.end - range.start
            ));
        }
        Ok(Window {
            seconds: last - first,
            operations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of which each has a thousand operations of so many milliseconds.
    fn seconds(ms: &[u64]) -> Seconds {
        let histogram = |ms: &u64| {
            let mut histogram = Histogram::new(3).unwrap();
            histogram.record_n(ms * 1_000_000, 1_000).unwrap();
            histogram
        };
        Seconds {
            start_s: 100.5,
            by_number: (0..).zip(ms.iter().map(histogram)).collect(),
        }
    }

    #[test]
    fn a_window_has_the_seconds_that_lie_in_it_whole() {
        let seconds = seconds(&[1, 2, 4, 8, 16]);
        let window = seconds.window(101.0, 103.9).unwrap();
        assert_eq!(window.operations.len(), 2_000);
        assert_eq!(window.per_s().round(), 1_000.0);
        assert!((window.ms(0.999) - 4.0).abs() < 0.01);
        assert!((window.ms(0.25) - 2.0).abs() < 0.01);
        for (start, end) in [(99.0, 103.0), (101.0, 101.9), (104.0, 110.0)] {
            assert!(seconds.window(start, end).is_err(), "{start}..{end}");
        }
    }

    #[test]
    fn ratios_are_taken_in_pairs_and_their_median_is_told() {
        let seconds = seconds(&[1, 2, 2, 6, 1, 5]);
        let mut pairs: BTreeMap<u32, [Option<Window>; 2]> = BTreeMap::new();
        for pair in 0..3 {
            let at = 100.5 + f64::from(2 * pair);
            let window = |from: f64| Some(seconds.window(from, from + 1.0).unwrap());
            pairs.insert(pair, [window(at), window(at + 1.0)]);
        }
        let text = render(&pairs);
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            "| median | | | | | | | | | **3.00** | **3.00** | **3.00** | **1.00** |"
        );
    }
}
