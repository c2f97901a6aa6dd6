//! What a turn of the core costs, by what comes in: `raft_step/append/batch64` is a follower that takes an
//! append of one entry with 64 proposals. The payload is never looked at here, so its size does not matter.
//!
//! Each input is a turn of its own, which is the worst case: in a shard one turn takes all that has come.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use logdrive_bench::{Shape, Spent, Trio};

/// Entries under way at once. A burst fits into every window of the core.
const BURST: u64 = 64;

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("raft_step");
    for count in [1, 64] {
        let mut of = |what: &str, part: fn(&Spent) -> Duration| {
            group.bench_function(format!("{what}/batch{count}"), |b| {
                b.iter_custom(|iterations| bursts(Shape::new(count, 128), iterations, part));
            });
        };
        of("propose", |spent| spent.propose);
        of("append", |spent| spent.append);
        of("durable", |spent| spent.durable);
        of("ack", |spent| spent.ack);
        of("all_three_to_commit", |spent| spent.all);
    }
    group.finish();
}

/// Carries so many entries through a new group, and says how long a part of that took.
fn bursts(shape: Shape, iterations: u64, part: fn(&Spent) -> Duration) -> Duration {
    let payloads = shape.payloads();
    let mut trio = Trio::new();
    let (mut left, mut took) = (iterations, Duration::ZERO);
    while left > 0 {
        let burst = left.min(BURST);
        let entries = (0..burst).map(|_| shape.build(&payloads)).collect();
        took += part(&trio.burst(entries));
        left -= burst;
    }
    took
}

criterion_group! {
    name = benches;
    // Only a small part of a burst is measured at a time: these stand for several seconds each.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20);
    targets = step
}
criterion_main!(benches);
