//! What a write costs all replicas together: a · entries + b · proposals + c · bytes, fitted over sizes and
//! depths.
//!
//! An entry is one batch of proposals. Deviations are taken relative to what was measured, so that small and
//! large writes weigh the same, and no cost may be negative.

use crate::runs::{Run, Runs, median};

/// One run, for each acknowledged write.
#[derive(Clone, Copy, Debug)]
struct Sample {
    entries: f64,
    bytes: f64,
    cpu_us: f64,
}

/// The fitted costs, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    entry: f64,
    proposal: f64,
    byte: f64,
}

impl Costs {
    fn of(&self, sample: &Sample) -> f64 {
        self.entry * sample.entries + self.proposal + self.byte * sample.bytes
    }
}

/// The section of the report.
pub(crate) fn section(runs: &Runs) -> String {
    let cases = runs.0.iter().filter(|(case, _)| case.starts_with("model-"));
    let all = cases
        .flat_map(|(_, rounds)| rounds.values())
        .filter(|run| run.is_valid());
    let samples: Vec<Sample> = all.filter_map(sample).collect();
    let Some(costs) = fit(&samples) else {
        return "Too few runs over sizes and depths (cases `model-*`) for a fit.\n".to_owned();
    };
    let off: Vec<f64> = samples
        .iter()
        .map(|sample| (costs.of(sample) / sample.cpu_us - 1.0).abs())
        .collect();
    let worst = off.iter().copied().fold(0.0, f64::max);
    format!(
        "a · entries + b · proposals + c · payload bytes, user and system time of all replicas, {} runs: \
         typically off by {:.0} %, at most by {:.0} %.\n\n\
         | | fitted | at most |\n|---|--:|--:|\n\
         | a, an entry | {:.0} µs | 600 µs |\n\
         | b, a proposal | {:.3} µs | 0.3 µs |\n\
         | c, a byte | {:.2} ns | 5 ns |\n",
        samples.len(),
        median(&off).unwrap_or(0.0) * 100.0,
        worst * 100.0,
        costs.entry,
        costs.proposal,
        costs.byte * 1000.0,
    )
}

fn sample(run: &Run) -> Option<Sample> {
    let seconds = run.number("/config/duration_ms")? / 1000.0;
    let writes = run.number("/result/completed_per_s")? * seconds;
    // Without a count of entries the flush groups of the node that made most of them stand for it: about one
    // an entry as long as the disk keeps up.
    let entries = run.number("/result/entries").or_else(|| {
        let nodes = run.0.pointer("/wal")?.as_array()?;
        nodes
            .iter()
            .filter_map(|node| node.get("groups")?.as_f64())
            .reduce(f64::max)
    })?;
    let cpu_us = run.number("/cpu/us_core_per_write")?;
    (writes > 0.0 && cpu_us > 0.0).then_some(Sample {
        entries: entries / writes,
        bytes: run.number("/config/size_bytes")?,
        cpu_us,
    })
}

/// The costs with the smallest squares of relative deviations. Of three unknowns each may turn out to be
/// nothing, so all sets of them are tried.
fn fit(samples: &[Sample]) -> Option<Costs> {
    if samples.len() < 4 {
        return None;
    }
    let mut best: Option<(f64, Costs)> = None;
    for set in 1..8_u8 {
        let used: Vec<usize> = (0..3).filter(|unknown| set & (1 << unknown) != 0).collect();
        let Some(costs) = solve(samples, &used) else {
            continue;
        };
        let off = |sample: &Sample| (costs.of(sample) / sample.cpu_us - 1.0).powi(2);
        let off: f64 = samples.iter().map(off).sum();
        if best.is_none_or(|(least, _)| off < least) {
            best = Some((off, costs));
        }
    }
    best.map(|(_, costs)| costs)
}

/// The normal equations of these unknowns, by elimination; `None` if they do not decide or a cost is negative.
fn solve(samples: &[Sample], used: &[usize]) -> Option<Costs> {
    let n = used.len();
    let mut rows = vec![vec![0.0; n + 1]; n];
    for sample in samples {
        let all = [sample.entries, 1.0, sample.bytes].map(|x| x / sample.cpu_us);
        let x: Vec<f64> = used.iter().map(|unknown| all[*unknown]).collect();
        for (row, a) in rows.iter_mut().zip(&x) {
            for (cell, b) in row.iter_mut().zip(&x) {
                *cell += a * b;
            }
            row[n] += a;
        }
    }
    for at in 0..n {
        let pivot = (at..n).max_by(|a, b| rows[*a][at].abs().total_cmp(&rows[*b][at].abs()))?;
        rows.swap(at, pivot);
        let row = rows[at].clone();
        if row[at].abs() < 1e-12 * rows.len() as f64 {
            return None;
        }
        for (other, cells) in rows.iter_mut().enumerate() {
            if other != at {
                let factor = cells[at] / row[at];
                cells
                    .iter_mut()
                    .zip(&row)
                    .for_each(|(cell, x)| *cell -= factor * x);
            }
        }
    }
    let mut costs = [0.0; 3];
    for (at, unknown) in used.iter().enumerate() {
        costs[*unknown] = rows[at][n] / rows[at][at];
    }
    let [entry, proposal, byte] = costs;
    let sound = costs.iter().all(|cost| *cost >= 0.0);
    sound.then_some(Costs {
        entry,
        proposal,
        byte,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(costs: Costs) -> Vec<Sample> {
        let mut samples = Vec::new();
        for bytes in [16.0, 128.0, 1024.0, 16_384.0] {
            for batch in [1.0, 60.0, 2000.0] {
                let mut sample = Sample {
                    entries: 1.0 / batch,
                    bytes,
                    cpu_us: 0.0,
                };
                sample.cpu_us = costs.of(&sample);
                samples.push(sample);
            }
        }
        samples
    }

    #[test]
    fn costs_are_found_again() {
        let costs = Costs {
            entry: 300.0,
            proposal: 0.2,
            byte: 0.003,
        };
        let found = fit(&samples(costs)).unwrap();
        assert!((found.entry / costs.entry - 1.0).abs() < 1e-6, "{found:?}");
        assert!(
            (found.proposal / costs.proposal - 1.0).abs() < 1e-6,
            "{found:?}"
        );
        assert!((found.byte / costs.byte - 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn a_cost_that_is_nothing_is_not_made_negative() {
        let mut all = samples(Costs {
            entry: 300.0,
            proposal: 0.0,
            byte: 0.003,
        });
        all.iter_mut()
            .step_by(2)
            .for_each(|sample| sample.cpu_us *= 0.97);
        let found = fit(&all).unwrap();
        assert!(
            found.proposal >= 0.0 && found.entry > 0.0 && found.byte > 0.0,
            "{found:?}"
        );
        assert_eq!(fit(&all[..3]), None);
    }
}
