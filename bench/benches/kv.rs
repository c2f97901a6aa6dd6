//! How long the key-value machine makes others wait: for a snapshot, for the first writes after one, for the
//! growth of its table; and how long it takes to take one over.
//!
//! `longest_write` is the longest of many entries with one command each, since that is what a percentile sees; `writes`
//! is all of them, since they are what the first tenth of a second after a snapshot was begun is spent on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use logdrive_raft::wire::Encode;
use logdrive_raft::{Index, LogPosition};
use logdrive_shard::kv::{Command, Kv, Op, Origin};
use logdrive_shard::{MemorySnapshot, StateMachine};

const KEYS: u64 = 1_000_000;

/// So many writes reach nearly every part of the table and the ledger.
const WRITES: usize = 10_000;

/// And so many about half of the keys.
const MANY_WRITES: usize = 500_000;

fn put(number: u64, value: &[u8], origin: Option<Origin>) -> Bytes {
    let key = format!("k{number:07}");
    let command = Command {
        origin,
        key: key.as_bytes(),
        op: Op::Put(value),
    };
    command.to_bytes()
}

fn apply(kv: &mut Kv, payload: &[u8]) {
    kv.apply_entry(Index(1), [(0, payload)], &mut Vec::with_capacity(1));
}

fn longest(kv: &mut Kv, payloads: &[Bytes]) -> Duration {
    let mut longest = Duration::ZERO;
    for payload in payloads {
        let begun = Instant::now();
        apply(kv, payload);
        longest = longest.max(begun.elapsed());
    }
    longest
}

fn all(kv: &mut Kv, payloads: &[Bytes]) -> Duration {
    let begun = Instant::now();
    for payload in payloads {
        apply(kv, payload);
    }
    begun.elapsed()
}

fn with_keys(value: &[u8]) -> Kv {
    let mut kv = Kv::default();
    for number in 0..KEYS {
        apply(&mut kv, &put(number, value, None));
    }
    kv
}

/// Writes of random keys.
fn writes(value: &[u8], count: usize, origin: impl Fn(u64) -> Option<Origin>) -> Vec<Bytes> {
    let mut random = fastrand::Rng::with_seed(1);
    let write = |number| put(random.u64(0..KEYS), value, origin(number));
    (0..count as u64).map(write).collect()
}

fn snapshot(c: &mut Criterion) {
    let mut group = c.benchmark_group("kv_snapshot");
    group.sample_size(10);
    for value_bytes in [16, 128, 1024] {
        let value = vec![b'v'; value_bytes];
        let mut kv = with_keys(&value);
        let name = format!("1Mx{value_bytes}B");
        measure(
            &mut group,
            &mut kv,
            &writes(&value, WRITES, |_| None),
            &name,
        );
        let many = writes(&value, MANY_WRITES, |_| None);
        measure_after(&mut group, &mut kv, &many, &name);
    }
    group.finish();
}

/// A ledger that has all the chunks it can have, for one client and for as many.
fn ledger(c: &mut Criterion) {
    let mut group = c.benchmark_group("kv_ledger");
    group.sample_size(10);
    let chunks = 1 << 15;
    for clients in [1, 64, chunks] {
        let mut kv = Kv::default();
        let origin = |number: u64| {
            Some(Origin {
                client: number % clients,
                sequence: number % chunks / clients * 1_024 + number / chunks,
            })
        };
        for number in 0..chunks {
            apply(&mut kv, &put(number % 100, b"value", origin(number)));
        }
        let writes = writes(b"value", WRITES, |number| origin(number * 7 + chunks));
        measure(&mut group, &mut kv, &writes, &format!("{clients}_clients"));
    }
    group.finish();
}

type Measured = fn(&mut Kv, &[Bytes]) -> Duration;
type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn measure(group: &mut Group<'_>, kv: &mut Kv, writes: &[Bytes], name: &str) {
    group.bench_function(format!("{name}/take"), |b| {
        b.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for _ in 0..count {
                // What nobody has written to since the last one would cost nothing.
                longest(kv, writes);
                let begun = Instant::now();
                let taken = kv.snapshot();
                spent += begun.elapsed();
                drop(taken);
            }
            spent
        });
    });
    for (what, measured) in [("longest_write", longest as Measured), ("writes", all)] {
        for (when, taken) in [("", false), ("_meanwhile", true)] {
            group.bench_function(format!("{name}/{what}{when}"), |b| {
                b.iter_custom(|count| {
                    let once = |_| {
                        let snapshot = taken.then(|| kv.snapshot());
                        let spent = measured(kv, writes);
                        drop(snapshot);
                        spent
                    };
                    (0..count).map(once).sum()
                });
            });
        }
    }
}

/// What a snapshot leaves behind that lets go of everything at once, after many writes while it was there.
fn measure_after(group: &mut Group<'_>, kv: &mut Kv, writes: &[Bytes], name: &str) {
    let written = |kv: &mut Kv| {
        // Nothing is left from before.
        all(kv, writes);
        let snapshot = kv.snapshot();
        all(kv, writes);
        drop(snapshot);
    };
    let again: Measured = |kv, _| {
        let begun = Instant::now();
        let taken = kv.snapshot();
        let spent = begun.elapsed();
        drop(taken);
        spent
    };
    for (what, measured) in [
        ("take_again", again),
        ("longest_write_after", longest),
        ("writes_after", all),
    ] {
        group.bench_function(format!("{name}/{what}"), |b| {
            b.iter_custom(|count| {
                let once = |_| {
                    written(kv);
                    measured(kv, &writes[..WRITES])
                };
                (0..count).map(once).sum()
            });
        });
    }
}

/// From nothing to a million keys.
fn growth(c: &mut Criterion) {
    let mut group = c.benchmark_group("kv_growth");
    group.sample_size(10);
    let puts: Vec<Bytes> = (0..KEYS)
        .map(|number| put(number, b"value", None))
        .collect();
    group.bench_function("1M/longest_write", |b| {
        b.iter_custom(|count| (0..count).map(|_| longest(&mut Kv::default(), &puts)).sum());
    });
    group.finish();
}

/// A million keys out of a snapshot in memory.
fn install(c: &mut Criterion) {
    let mut group = c.benchmark_group("kv_install");
    group.sample_size(10);
    for value_bytes in [16, 512] {
        let mut kv = with_keys(&vec![b'v'; value_bytes]);
        let handle = kv.snapshot().expect("it gives one always");
        let position = LogPosition {
            index: Index(1),
            ..LogPosition::default()
        };
        let mut snapshot = MemorySnapshot::of(handle, position).expect("memory takes it");
        drop(kv);
        group.bench_function(format!("1Mx{value_bytes}B"), |b| {
            b.iter_custom(|count| {
                let mut once = |_| {
                    let mut kv = Kv::default();
                    let begun = Instant::now();
                    kv.install(&mut snapshot).expect("it was written just now");
                    begun.elapsed()
                };
                (0..count).map(&mut once).sum()
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
    targets = snapshot, ledger, growth, install
}
criterion_main!(benches);
