//! The load itself: threads that make it, and what they leave for the verification.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::watch::watch;
use super::{Failed, RunError, io_error};
use crate::args::RunArgs;
use crate::clock::{Clock, ns};
use crate::cluster::Cluster;
use crate::faults::FaultWatch;
use crate::history::HistoryWriter;
use crate::machine;
use crate::recorder::{Collector, Second};
use crate::report::Report;
use crate::target::{Target, TargetError};
use crate::verdict::Circumstances;
use crate::verify::Acked;
use crate::worker::{self, Ended, Plan, Shared, Worker};
use crate::workload::Workload;

/// What a load leaves for the verification.
pub(super) struct Loaded {
    /// Operations that were acknowledged within the measurement.
    pub(super) answered: u64,
    pub(super) acked: Acked,
    pub(super) reordered: u64,
    pub(super) workload: Workload,
    pub(super) acked_through: Vec<u64>,
    pub(super) seconds: Vec<Second>,
}

/// Loads the cluster and notes in the report what was measured.
pub(super) fn load(
    cluster: &mut dyn Cluster,
    args: &RunArgs,
    seed: u64,
    history: Option<HistoryWriter>,
    stop: &Arc<AtomicBool>,
    report: &mut Report,
    seen: &mut Circumstances,
) -> Result<Loaded, Failed> {
    let clock = Clock::start();
    let start_ns = ns(START_DELAY);
    let measure_from_ns = start_ns + ns(args.warmup);
    let clients = args.clients();
    let plan = Plan {
        rate: (!args.closed).then_some(args.rate),
        arrival: args.arrival,
        pace_ns: ns(args.pace),
        in_flight: args.in_flight(),
        clients: clients as u32,
        timeout_ns: ns(args.timeout),
        start_ns,
        measure_from_ns,
        measure_to_ns: measure_from_ns + ns(args.duration),
        seed,
    };
    // Two runs against one cluster must not take each other's clients for their own.
    let first_client = fastrand::u64(1..1 << 40) << 20;
    let workload = Workload::new(
        seed,
        args.size as usize,
        args.keys,
        args.groups as u32,
        args.mix.clone(),
        args.verify,
        first_client,
    );
    let shared = Arc::new(Shared {
        clock,
        plan,
        workload: workload.clone(),
        collector: Collector::default(),
        acked_through: (0..args.groups).map(|_| AtomicU64::new(0)).collect(),
        remember_acked: args.verify,
        history,
        faults: FaultWatch::new(args.fault.len()),
        stop: Arc::clone(stop),
    });
    let workers = start_workers(&shared, args, &cluster.target())?;
    let watched = watch(cluster, args, &shared, &workers);
    let mut acked = Acked::new(args.verify);
    let mut generator_cpu_ns = 0;
    for worker in workers {
        let ended = worker
            .join()
            .map_err(|_| RunError::Internal("a generator thread panicked".to_owned()))??;
        acked.merge(ended.acked);
        generator_cpu_ns += ended.cpu_ns;
    }
    if let Some(history) = &shared.history {
        history.finish().map_err(io_error("write the history"))?;
    }
    let (measured, seconds) = shared.collector.finish();
    watched.fill(report, args, &shared, &measured, generator_cpu_ns);
    let lag = &measured.lag;
    seen.lag_ns = lag.percentile(9900).or(lag.max());
    seen.offered = measured.tally.offered;
    seen.sent = measured.tally.sent;
    let acked_through = shared.acked_through.iter();
    Ok(Loaded {
        answered: measured.schedule.count(),
        acked,
        reordered: measured.tally.reordered,
        workload,
        acked_through: acked_through
            .map(|place| place.load(Ordering::Acquire) >> 16)
            .collect(),
        seconds,
    })
}

pub(super) type WorkerThread = JoinHandle<Result<Ended, TargetError>>;

fn start_workers(
    shared: &Arc<Shared>,
    args: &RunArgs,
    target: &Arc<dyn Target>,
) -> Result<Vec<WorkerThread>, RunError> {
    let by_default = (machine::cpus() / 4).max(1);
    let count = args.threads.unwrap_or(by_default).min(args.clients()) as u32;
    let start = |number: u32| {
        let (shared, target) = (Arc::clone(shared), Arc::clone(target));
        std::thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                let worker = Worker::new(shared, number, count);
                worker::run(worker, target.as_ref())
            })
            .map_err(io_error("start a thread"))
    };
    (0..count).map(start).collect()
}

/// So that all threads are ready when the load starts.
const START_DELAY: Duration = Duration::from_millis(100);
