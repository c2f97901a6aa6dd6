//! An entry is built at the door of its group and verified wherever it is read.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logdrive_bench::{Shape, genesis};
use logdrive_raft::Entry;

/// Payloads to a sealed frame: one copy, their checksum, the table, the chain.
fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame_encode");
    let origin = genesis().origin();
    for shape in Shape::ALL {
        let payloads = shape.payloads();
        group.throughput(Throughput::Bytes(shape.payload_bytes()));
        group.bench_function(shape.to_string(), |b| {
            b.iter(|| shape.entry_after(black_box(&payloads), &origin));
        });
    }
    group.finish();
}

/// A frame to an entry that may be believed: checksums of header, table and payloads, and the chain.
fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame_verify");
    let origin = genesis().origin();
    for shape in Shape::ALL {
        let frame = shape
            .entry_after(&shape.payloads(), &origin)
            .frame()
            .clone();
        group.throughput(Throughput::Bytes(shape.payload_bytes()));
        group.bench_function(shape.to_string(), |b| {
            b.iter(|| {
                let entry = Entry::from_frame(black_box(&frame).clone()).expect("a sound frame");
                assert!(entry.follows(&origin));
                entry
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = encode, verify
}
criterion_main!(benches);
