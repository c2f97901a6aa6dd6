//! A proposal on its way through the door of a group, and through the key-value machine to its answer.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use std::vec::Drain;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logdrive_bench::{GROUP, Shape, genesis};
use logdrive_raft::limits::FRAME_BYTES_MAX;
use logdrive_raft::wire::Encode;
use logdrive_raft::{Index, LogPosition, Term};
use logdrive_shard::kv::{Command, Kv, KvOutput, Op};
use logdrive_shard::{Applier, ApplyBatch, Door, Failure, Inbox, ReplySink};

/// Takes answers as a connection would, without anybody at its other end.
struct Nobody;

impl<O> ReplySink<O> for Nobody {
    fn applied(&self, _: u64, _: u32, _: LogPosition, _: u32, outputs: Drain<'_, O>) {
        assert!(outputs.len() > 0);
    }

    fn failed(&self, _: u64, _: u32, _: u32, failure: Failure) {
        panic!("{failure}");
    }
}

fn open_inbox<O>() -> Inbox<O> {
    let inbox = Inbox::new(64 << 20, FRAME_BYTES_MAX, Waker::noop().clone());
    inbox.set_door(Door::Open);
    inbox
}

/// From `submit` to the answer, with nothing in between: the door, the run, the permit.
fn submit(c: &mut Criterion) {
    let mut group = c.benchmark_group("inbox_submit");
    let origin = genesis().origin();
    // One batch of a client, and as many clients with one proposal each that share an entry.
    let sizes = [
        (1, Shape::new(1024, 16)),
        (1, Shape::new(64, 128)),
        (64, Shape::new(1, 128)),
        (1, Shape::new(8, 65_536)),
    ];
    for (clients, shape) in sizes {
        let inbox = open_inbox::<()>();
        let sink: Arc<dyn ReplySink<()>> = Arc::new(Nobody);
        let payloads = shape.payloads();
        let proposals = clients * shape.count;
        let mut outputs = Vec::with_capacity(proposals);
        group.throughput(Throughput::Elements(proposals as u64));
        group.bench_function(format!("{shape}/{clients}_clients"), |b| {
            b.iter(|| {
                for client in 0..clients {
                    inbox
                        .submit(&payloads, &sink, client as u64)
                        .expect("the budget is larger");
                }
                let sealed = inbox.take().expect("just submitted");
                let at = (origin.index.next(), origin.chain);
                let entry = sealed.entry.seal(GROUP, Term(1), at.0, at.1);
                outputs.resize(proposals, ());
                for run in sealed.runs {
                    let said = run.answer(entry.position(), &mut outputs);
                    said.expect("this sink does not panic");
                }
                entry
            });
        });
    }
    group.finish();
}

/// From `submit` to the outputs of the key-value machine: puts over 100 000 keys, 64 a batch.
fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("inbox_apply");
    for size_bytes in [16, 128, 1024] {
        let shape = Shape::new(64, size_bytes);
        let batches = puts(shape);
        let inbox = open_inbox::<KvOutput>();
        let sink: Arc<dyn ReplySink<KvOutput>> = Arc::new(Nobody);
        // The keys come to be in another order than they are written in later, or memory would lie in the
        // order of the accesses, which it does nowhere else.
        let mut kv = Kv::default();
        let mut sorted: Vec<&Bytes> = batches.iter().flatten().collect();
        sorted.sort();
        kv.apply_entry(
            Index(0),
            (0..).zip(sorted.iter().map(|put| &put[..])),
            &mut Vec::new(),
        );
        let mut applier = Applier::default();
        let mut last = applier.open(GROUP, kv).expect("a machine in memory opens");
        let mut next = batches.iter().cycle();
        group.throughput(Throughput::Elements(shape.count as u64));
        group.bench_function(format!("{shape}/kv_put"), |b| {
            b.iter(|| {
                let payloads = next.next().expect("it goes round");
                inbox
                    .submit(payloads, &sink, 7)
                    .expect("the budget is larger");
                let sealed = inbox.take().expect("just submitted");
                let term = Term(1);
                let entry = sealed
                    .entry
                    .seal(GROUP, term, last.index.next(), last.chain);
                let bytes = entry.frame().len();
                let batch = ApplyBatch {
                    group: GROUP,
                    entries: vec![(entry, sealed.runs)],
                    bytes,
                    appended: None,
                };
                last = applier.apply(batch).expect("the machine is sound");
            });
        });
    }
    group.finish();
}

/// Batches of puts that write each of 100 000 keys once, in no order that a cache would like.
fn puts(shape: Shape) -> Vec<Vec<Bytes>> {
    let value = vec![b'v'; shape.size_bytes];
    let keys = 100_000;
    let mut order: Vec<usize> = (0..keys).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let put = |number: &usize| {
        let key = format!("k{number:07}");
        let command = Command {
            origin: None,
            key: key.as_bytes(),
            op: Op::Put(&value),
        };
        command.to_bytes()
    };
    let batch = |numbers: &[usize]| numbers.iter().map(put).collect();
    order.chunks(shape.count).map(batch).collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = submit, apply
}
criterion_main!(benches);
