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

/// What may be asked of the model over one set of runs.
struct Asked {
    cases: &'static str,
    title: &'static str,
    entry_us: f64,
    proposal_us: f64,
    byte_ns: f64,
}

const ASKED: [Asked; 3] = [
    Asked {
        cases: "model-loopback",
        title: "MTU 65000 (loopback), 1 000 keys",
        entry_us: 600.0,
        proposal_us: 0.3,
        byte_ns: 5.0,
    },
    Asked {
        cases: "model-ethernet",
        title: "MTU 1452 (ethernet), 1 000 keys",
        entry_us: 600.0,
        proposal_us: 0.3,
        byte_ns: 10.0,
    },
    Asked {
        cases: "growing-loopback",
        title: "MTU 65000 (loopback), 100 000 keys: the map grows while it is measured",
        entry_us: 600.0,
        proposal_us: 0.3,
        byte_ns: 5.0,
    },
];

/// The section of the report.
pub(crate) fn section(runs: &Runs) -> String {
    let mut text = "a · entries + b · proposals + c · payload bytes: user and system time of all three \
                    replicas for each acknowledged write, fitted to runs of several sizes and depths. The \
                    key-value machine is part of it. With 1 000 keys its map is full, and near the \
                    processor, before the measured window begins; with 100 000 the maps of three replicas \
                    lie in slower memory, and large values keep adding to them what the kernel has to zero \
                    first. The last fit shows what both add; neither is a cost of \
                    replication.\n\n"
        .to_owned();
    for asked in &ASKED {
        text += &of_cases(runs, asked);
    }
    text
}

/// The fitted costs and what is asked of them, for the table of promises: name, unit, found, bound.
pub(crate) fn promises(runs: &Runs) -> Vec<(&'static str, &'static str, Option<f64>, f64)> {
    let asked = &ASKED[0];
    let samples: Vec<Sample> = samples(runs, asked).into_iter().map(|(_, s)| s).collect();
    let costs = fit(&samples);
    vec![
        (
            "a, an entry",
            "µs",
            costs.map(|costs| costs.entry),
            asked.entry_us,
        ),
        (
            "b, a proposal",
            "µs",
            costs.map(|costs| costs.proposal),
            asked.proposal_us,
        ),
        (
            "c, a byte",
            "ns",
            costs.map(|costs| costs.byte * 1e3),
            asked.byte_ns,
        ),
    ]
}

fn samples<'a>(runs: &'a Runs, asked: &Asked) -> Vec<(&'a str, Sample)> {
    let prefix = format!("{}-", asked.cases);
    let mut samples = Vec::new();
    for (case, rounds) in &runs.0 {
        let valid = rounds.values().filter(|run| run.is_valid());
        if case.starts_with(&prefix) {
            samples.extend(valid.filter_map(|run| Some((case.as_str(), sample(run)?))));
        }
    }
    samples
}

fn of_cases(runs: &Runs, asked: &Asked) -> String {
    let named = samples(runs, asked);
    let samples: Vec<Sample> = named.iter().map(|(_, sample)| *sample).collect();
    let Some(costs) = fit(&samples) else {
        return format!(
            "{}: too few valid runs (cases `{}-*`) for a fit.\n\n",
            asked.title, asked.cases
        );
    };
    let off = |sample: &Sample| (costs.of(sample) / sample.cpu_us - 1.0) * 100.0;
    let offs: Vec<f64> = samples.iter().map(|sample| off(sample).abs()).collect();
    let worst = offs.iter().copied().fold(0.0, f64::max);
    let mut text = format!(
        "{}, TLS 1.3, {} runs: typically off by {:.0} %, at most by {worst:.0} %.\n\n\
         | | fitted | at most |\n|---|--:|--:|\n\
         | a, an entry | {:.0} µs | {} µs |\n\
         | b, a proposal | {:.3} µs | {} µs |\n\
         | c, a byte | {:.2} ns | {} ns |\n\n\
         | case | writes an entry | measured µs/write | model µs/write | off by |\n|---|--:|--:|--:|--:|\n",
        asked.title,
        samples.len(),
        median(&offs).unwrap_or(0.0),
        costs.entry,
        asked.entry_us,
        costs.proposal,
        asked.proposal_us,
        costs.byte * 1000.0,
        asked.byte_ns,
    );
    for (case, sample) in &named {
        text += &format!(
            "| {case} | {:.1} | {:.2} | {:.2} | {:+.0} % |\n",
            1.0 / sample.entries,
            sample.cpu_us,
            costs.of(sample),
            off(sample),
        );
    }
    text + "\n"
}

fn sample(run: &Run) -> Option<Sample> {
    let seconds = run.number("/config/duration_ms")? / 1000.0;
    let writes = run.number("/result/completed_per_s")? * seconds;
    let entries = run
        .number("/result/entries")
        .filter(|entries| *entries > 0.0)?;
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

    fn made_of(costs: Costs) -> Vec<Sample> {
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
    fn each_packet_size_has_its_fit_and_residuals() {
        let costs = Costs {
            entry: 300.0,
            proposal: 0.2,
            byte: 0.003,
        };
        let mut runs = Runs::default();
        for (number, sample) in made_of(costs).iter().enumerate() {
            let run = serde_json::json!({
                "config": { "duration_ms": 1000, "size_bytes": sample.bytes },
                "result": { "completed_per_s": 1e6, "entries": 1e6 * sample.entries },
                "cpu": { "us_core_per_write": sample.cpu_us },
                "verdict": { "valid": true },
            });
            let case = format!("model-loopback-{number}");
            runs.0.insert(case, [(1, Run(run))].into());
        }
        let text = section(&runs);
        assert!(text.contains("| a, an entry | 300 µs | 600 µs |"), "{text}");
        assert!(
            text.contains("| model-loopback-0 | 1.0 | 300.25 | 300.25 | +0 % |"),
            "{text}"
        );
        assert!(
            text.contains("MTU 1452 (ethernet), 1 000 keys: too few valid runs"),
            "{text}"
        );
        let found: Vec<_> = promises(&runs).into_iter().map(|row| row.2).collect();
        assert!((found[2].unwrap() - 3.0).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn costs_are_found_again() {
        let costs = Costs {
            entry: 300.0,
            proposal: 0.2,
            byte: 0.003,
        };
        let found = fit(&made_of(costs)).unwrap();
        assert!((found.entry / costs.entry - 1.0).abs() < 1e-6, "{found:?}");
        assert!(
            (found.proposal / costs.proposal - 1.0).abs() < 1e-6,
            "{found:?}"
        );
        assert!((found.byte / costs.byte - 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn a_cost_that_is_nothing_is_not_made_negative() {
        let mut all = made_of(Costs {
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
