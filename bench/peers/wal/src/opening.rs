//! How long a log of 1 GiB takes from the first look at its directory to the first append that is durable.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use crate::contender::Failed;
use crate::contender::ours::Ours;
use crate::driven::Driven;
use crate::shape::Shape;
use crate::table::median;

const BYTES: usize = 1 << 30;

/// So that the log has many entries, and so that it has few.
const SHAPES: [Shape; 2] = [
    Shape {
        count: 1,
        bytes: 1 << 10,
    },
    Shape {
        count: 64,
        bytes: 1 << 10,
    },
];

/// Measures it so often, and tells it as a table.
pub fn measure(dir: &Path, rounds: usize) -> Result<String, Failed> {
    let mut out = "### Opening a log of 1 GiB\n\n".to_owned();
    let _ = writeln!(out, "| entries of | ended | median s | smallest, largest |");
    let _ = writeln!(out, "|---|---|--:|--:|");
    for shape in SHAPES {
        for in_order in [true, false] {
            let mut took = Vec::new();
            for round in 0..rounds {
                let directory = crate::fresh(dir, &format!("opening-{shape}-{in_order}-{round}"))?;
                took.push(once(&directory, shape, in_order)?);
                std::fs::remove_dir_all(&directory)?;
            }
            let least = took.iter().copied().fold(f64::INFINITY, f64::min);
            let most = took.iter().copied().fold(0.0, f64::max);
            let middle = median(took.into_iter());
            let ended = if in_order { "in order" } else { "killed" };
            let _ = writeln!(
                out,
                "| {} B | {ended} | {middle:.2} | {least:.2}, {most:.2} |",
                shape.payload_bytes()
            );
            eprintln!("opening: {shape}, {ended}");
        }
    }
    out.push('\n');
    Ok(out)
}

fn once(directory: &Path, shape: Shape, in_order: bool) -> Result<f64, Failed> {
    let mut log = Ours::create(directory)?;
    log.begin(shape);
    log.fill(shape, BYTES)?;
    if in_order {
        log.close()?;
    } else {
        drop(log);
    }
    let began = Instant::now();
    let mut log = Ours::reopen(directory)?;
    log.begin(shape);
    log.append(shape, 0)?;
    log.settle();
    let took = began.elapsed();
    log.close()?;
    Ok(took.as_secs_f64())
}
