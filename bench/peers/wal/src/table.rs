//! What was measured, as a table of ratios within rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::load::Load;
use crate::measure::Measured;

/// One stretch of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    contender: &'static str,
    shape: String,
    payload_bytes: usize,
    callers: usize,
    /// Appends due in a second; none: as many as they could.
    due_per_s: Option<f64>,
    round: usize,
    appends_per_s: f64,
    bytes_per_s: f64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    p999_ns: Option<u64>,
    cpu_s_per_gb: f64,
}

impl Row {
    /// What a stretch comes to.
    pub fn of(contender: &'static str, load: &Load, round: usize, measured: &Measured) -> Self {
        let shape = load.shape;
        let appends = measured.latencies.count() as f64;
        let bytes = appends * shape.payload_bytes() as f64;
        let seconds = measured.took.as_secs_f64();
        Self {
            contender,
            shape: shape.to_string(),
            payload_bytes: shape.payload_bytes(),
            callers: load.callers,
            due_per_s: load.per_s,
            round,
            appends_per_s: appends / seconds,
            bytes_per_s: bytes / seconds,
            p50_ns: measured.latencies.quantile_ns(0.5),
            p99_ns: measured.latencies.quantile_ns(0.99),
            p999_ns: measured.latencies.quantile_ns(0.999),
            cpu_s_per_gb: measured.cpu.as_secs_f64() / (bytes / 1e9),
        }
    }

    /// How many appends it made in a second.
    pub fn appends_per_s(&self) -> f64 {
        self.appends_per_s
    }

    fn p99_over_p50(&self) -> Option<f64> {
        Some(self.p99_ns? as f64 / self.p50_ns? as f64)
    }
}

/// All stretches.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    rows: Vec<Row>,
}

impl Results {
    /// One more.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// All of them.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Medians of the rounds; beside them how many times as many appends `ours` made as each, round by round; at half load, how their
    /// p99 compares with their p50.
    pub fn to_markdown(&self, ours: &str) -> String {
        let mut cases: Vec<(&str, usize, bool)> = Vec::new();
        for row in &self.rows {
            let case = (row.shape.as_str(), row.callers, row.due_per_s.is_some());
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        let mut out = String::new();
        for (shape, callers, is_paced) in cases {
            let is_of_case = |row: &&Row| {
                row.shape == shape && row.callers == callers && row.due_per_s.is_some() == is_paced
            };
            let rows: Vec<&Row> = self.rows.iter().filter(is_of_case).collect();
            let load = if is_paced { ", half load" } else { "" };
            let _ = writeln!(out, "### {shape}, {callers} callers{load}\n");
            // At half load all do as much, and the question is by how much their slow appends are slower.
            let told = if is_paced { "p99/p50 of " } else { "" };
            let _ = writeln!(
                out,
                "| | appends/s | MB/s | p50 µs | p99 µs | p99.9 µs | p99/p50 | CPU s/GB | {told}{ours} × | smallest, largest |"
            );
            let _ = writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
            let mut by_name: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
            for row in &rows {
                by_name.entry(row.contender).or_default().push(row);
            }
            let mut names: Vec<&str> = rows.iter().map(|row| row.contender).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                write_row(&mut out, name, &by_name[name], by_name.get(ours));
            }
            out.push('\n');
        }
        out
    }
}

fn write_row(out: &mut String, name: &str, rows: &[&Row], ours: Option<&Vec<&Row>>) {
    let of = |figure: fn(&Row) -> f64| median(rows.iter().map(|row| figure(row)));
    let known = |figure: fn(&Row) -> Option<f64>, digits: usize| {
        let known: Vec<f64> = rows.iter().filter_map(|row| figure(row)).collect();
        match known.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.digits$}", median(known.into_iter())),
        }
    };
    let mut ratios: Vec<f64> = Vec::new();
    for row in rows {
        let same = ours
            .into_iter()
            .flatten()
            .find(|ours| ours.round == row.round);
        let figure = |row: &Row| match row.due_per_s {
            None => Some(row.appends_per_s),
            Some(_) => row.p99_over_p50(),
        };
        ratios.extend(same.and_then(|ours| Some(figure(ours)? / figure(row)?)));
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let (ratio, spread) = match (ratios.first(), ratios.last()) {
        (Some(least), Some(most)) => (
            format!("{:.2}", median(ratios.iter().copied())),
            format!("{least:.2}, {most:.2}"),
        ),
        _ => ("-".to_owned(), "-".to_owned()),
    };
    let _ = writeln!(
        out,
        "| {name} | {:.0} | {:.1} | {} | {} | {} | {} | {:.2} | {ratio} | {spread} |",
        of(|row| row.appends_per_s),
        of(|row| row.bytes_per_s) / 1e6,
        known(|row| micros(row.p50_ns), 0),
        known(|row| micros(row.p99_ns), 0),
        known(|row| micros(row.p999_ns), 0),
        known(Row::p99_over_p50, 2),
        of(|row| row.cpu_s_per_gb),
    );
}

fn micros(ns: Option<u64>) -> Option<f64> {
    ns.map(|ns| ns as f64 / 1e3)
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_taken_and_of_two_the_mean() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }
}
