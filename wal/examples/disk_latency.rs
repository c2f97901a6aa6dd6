//! How long a durable write takes on each disk: both backends, both flush modes, some depths and sizes.
//!
//! `cargo run --release -p logdrive-wal --example disk_latency [DIRECTORY [ROUNDS]]`
//!
//! The variants of a cell take turns, so that what else the machine does hits all of them: compare within
//! a line, not between runs.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use logdrive_wal::disk::open::{Backend, open};
use logdrive_wal::disk::{BLOCK_BYTES, Buffer, Disk, FlushMode, Op, OpId, SlotId};

const SLOT: SlotId = SlotId(0);
const SLOT_BLOCKS: u32 = 8192;
const SLICE_NS: u64 = 150_000_000;
const VARIANTS: [(Backend, FlushMode); 4] = [
    (Backend::Pwrite, FlushMode::Dsync),
    (Backend::Pwrite, FlushMode::DrainedFsync),
    (Backend::Auto, FlushMode::Dsync),
    (Backend::Auto, FlushMode::DrainedFsync),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let rounds: u32 = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let directory = tempfile::tempdir_in(directory)?;
    let mut disks = Vec::new();
    for (place, (backend, mode)) in VARIANTS.into_iter().enumerate() {
        let mut disk = open(
            &directory.path().join(place.to_string()),
            backend,
            Some(mode),
        )?;
        disk.lock()?;
        disk.slots()?;
        disk.create(SLOT, SLOT_BLOCKS)?;
        println!(
            "{} {}: {:?}",
            disk.facts().backend,
            mode.name(),
            disk.facts().fallbacks
        );
        disks.push((disk, mode));
    }
    println!("| bytes x depth | variant | writes/s | p50 us | p99 us | p50 / first |");
    println!("|---|---|--:|--:|--:|--:|");
    for blocks in [1, 64] {
        for depth in [1, 2, 8] {
            let mut latencies = vec![Vec::new(); disks.len()];
            for _ in 0..rounds {
                for ((disk, mode), latencies) in disks.iter_mut().zip(&mut latencies) {
                    slice(disk, *mode, blocks, depth, latencies);
                }
            }
            let mut first = None;
            for ((disk, mode), latencies) in disks.iter().zip(&mut latencies) {
                latencies.sort_unstable();
                let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize] as f64;
                let (p50, p99) = (at(0.5) / 1e3, at(0.99) / 1e3);
                let seconds = f64::from(rounds) * SLICE_NS as f64 / 1e9;
                println!(
                    "| {} x {depth} | {} {} | {:.0} | {p50:.0} | {p99:.0} | {:.2} |",
                    blocks * BLOCK_BYTES,
                    disk.facts().backend,
                    mode.name(),
                    latencies.len() as f64 / seconds,
                    p50 / *first.get_or_insert(p50),
                );
            }
        }
    }
    Ok(())
}

/// Keeps `depth` writes under way for a while and notes how long each took to be durable.
fn slice(
    disk: &mut Box<dyn Disk>,
    mode: FlushMode,
    blocks: usize,
    depth: usize,
    latencies: &mut Vec<u64>,
) {
    let began = disk.now_ns();
    let (mut next, mut done) = (0, Vec::new());
    let mut spare: Vec<Buffer> = (0..depth).map(|_| disk.take_buffer(blocks)).collect();
    let mut writing = BTreeMap::new();
    // Complete, and covered by the flush under way.
    let (mut written, mut flushing) = (Vec::new(), Vec::new());
    loop {
        if disk.now_ns() - began < SLICE_NS {
            let durable = written.len() + flushing.len();
            while writing.len() + durable < depth
                && let Some(buffer) = spare.pop()
            {
                writing.insert(OpId(next), disk.now_ns());
                let at = next as u32 % (SLOT_BLOCKS / blocks as u32) * blocks as u32;
                let (slot, block, dsync) = (SLOT, at, mode == FlushMode::Dsync);
                disk.submit(
                    OpId(next),
                    Op::Write {
                        slot,
                        block,
                        buffer,
                        dsync,
                    },
                );
                next += 1;
            }
        }
        // Drained: what it covers was complete when it was queued, and nothing else is under way.
        if writing.is_empty() && flushing.is_empty() && !written.is_empty() {
            flushing = std::mem::take(&mut written);
            disk.submit(OpId(u64::MAX), Op::Flush { slot: SLOT });
        }
        if writing.is_empty() && flushing.is_empty() {
            break;
        }
        disk.wait(&mut done);
        let now = disk.now_ns();
        for completion in done.drain(..) {
            completion.result.expect("the medium works");
            spare.extend(completion.buffer);
            match (writing.remove(&completion.id), mode) {
                (Some(began), FlushMode::Dsync) => latencies.push(now - began),
                (Some(began), FlushMode::DrainedFsync) => written.push(began),
                (None, _) => latencies.extend(flushing.drain(..).map(|began| now - began)),
            }
        }
    }
    for buffer in spare {
        disk.give_buffer(buffer);
    }
}
