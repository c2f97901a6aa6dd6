//! What happens to the cluster while it is loaded: looks at it, faults, progress.

use std::sync::Arc;
use std::time::Duration;

use super::load::WorkerThread;
use crate::args::{FaultSpec, RunArgs};
use crate::clock::ns;
use crate::cluster::protocol::{Observation, SnapshotObservation};
use crate::cluster::{self, Cluster};
use crate::progress;
use crate::recorder::Measured;
use crate::report::{Cpu, Fault, Memory, Report, RunResult, Snapshots, Wal};
use crate::say::tell;
use crate::worker::{Plan, Shared};

/// What was seen of the cluster while it was loaded.
pub(super) struct Watched {
    nodes: Vec<u64>,
    at_start: Vec<Option<Observation>>,
    at_end: Vec<Option<Observation>>,
    cpu_ns: Option<u64>,
    rss_peak_bytes: Vec<Option<u64>>,
    seconds: f64,
    leader_changes: u64,
    faults: Vec<Fault>,
}

/// Looks after cluster, faults and progress until all workers have ended.
pub(super) fn watch(
    cluster: &mut dyn Cluster,
    args: &RunArgs,
    shared: &Arc<Shared>,
    workers: &[WorkerThread],
) -> Watched {
    let Plan {
        measure_from_ns,
        measure_to_ns,
        start_ns,
        ..
    } = shared.plan;
    let clock = shared.clock;
    let nodes = cluster.nodes();
    let mut watched = Watched {
        at_start: Vec::new(),
        at_end: Vec::new(),
        cpu_ns: None,
        rss_peak_bytes: Vec::new(),
        seconds: 0.0,
        leader_changes: 0,
        faults: Vec::new(),
        nodes: nodes.clone(),
    };
    let mut started: Option<(u64, Option<u64>)> = None;
    let mut leader = None;
    let mut restarts: Vec<(u64, u64)> = Vec::new();
    let mut faults: Vec<&FaultSpec> = args.fault.iter().collect();
    faults.sort_by_key(|fault| fault.at);
    while workers.iter().any(|worker| !worker.is_finished()) {
        let now_ns = clock.now_ns();
        let observed = cluster.observe();
        let leads = cluster::leader(&nodes, &observed, 0);
        if leads.is_some() && leads != leader {
            let inside = (measure_from_ns..measure_to_ns).contains(&now_ns);
            if leader.is_some() && inside {
                watched.leader_changes += 1;
            }
            leader = leads;
        }
        if let (Some(fault), Some((_, term))) = (watched.faults.last_mut(), leads)
            && fault.new_term.is_none()
            && fault.old_term.is_some_and(|old| old < term)
        {
            let at_ns = measure_from_ns + (fault.at_s * 1e9) as u64;
            fault.new_term = Some(term);
            fault.new_leader_ms = Some(now_ns.saturating_sub(at_ns) / 1_000_000);
        }
        if now_ns >= measure_from_ns && started.is_none() {
            started = Some((now_ns, cluster.cpu_ns()));
            watched.at_start = observed;
        } else if now_ns >= measure_to_ns && watched.at_end.is_empty() {
            watched.end(cluster, started, now_ns, observed);
        }
        // Until the next election there is nobody to kill but one that is down already: its fault waits.
        if let Some(fault) = faults.first()
            && now_ns >= measure_from_ns + ns(fault.at)
            && (leads.is_some() || now_ns >= measure_to_ns)
        {
            let number = watched.faults.len();
            let killed = kill_leader(cluster, shared, number, leads, fault);
            restarts.extend(
                killed
                    .node
                    .map(|node| (clock.now_ns() + ns(RESTART_AFTER), node)),
            );
            watched.faults.push(killed);
            faults.remove(0);
        }
        restarts.retain(|(at_ns, node)| {
            let due = clock.now_ns() >= *at_ns;
            if due && let Err(error) = cluster.start(*node) {
                tell!(" restart of node {node}: {error}");
            }
            !due
        });
        show_progress(
            shared,
            args,
            leader,
            (now_ns.saturating_sub(start_ns)) / 1_000_000_000,
        );
        let waiting = watched
            .faults
            .last()
            .is_some_and(|fault| fault.new_term.is_none());
        let pause = if waiting {
            Duration::from_millis(5)
        } else {
            cluster.look_every()
        };
        let next_fault = faults.first().map(|fault| measure_from_ns + ns(fault.at));
        let next_ns = [Some(measure_from_ns), Some(measure_to_ns), next_fault]
            .into_iter()
            .flatten()
            .filter(|moment| *moment > clock.now_ns())
            .min()
            .unwrap_or(u64::MAX);
        std::thread::sleep(clock.until(next_ns).min(pause));
    }
    if watched.at_end.is_empty() {
        // Everything was answered the moment the measurement ended.
        let observed = cluster.observe();
        watched.end(cluster, started, clock.now_ns(), observed);
    }
    // A fault that was due and never found a leader is in the report, too.
    for fault in faults {
        if clock.now_ns() >= measure_from_ns + ns(fault.at) {
            let number = watched.faults.len();
            let killed = kill_leader(cluster, shared, number, None, fault);
            watched.faults.push(killed);
        }
    }
    // A node that is still down is wanted for the verification.
    for (_, node) in restarts {
        if let Err(error) = cluster.start(node) {
            tell!(" restart of node {node}: {error}");
        }
    }
    for (number, fault) in watched.faults.iter_mut().enumerate() {
        let unavailable_ns = shared.faults.unavailable_ns(number);
        fault.unavailable_ms = unavailable_ns.map(|ns| ns / 1_000_000);
    }
    watched
}

fn kill_leader(
    cluster: &mut dyn Cluster,
    shared: &Shared,
    number: usize,
    leader: Option<(u64, u64)>,
    spec: &FaultSpec,
) -> Fault {
    let node = leader.map(|(node, _)| node);
    let at_ns = shared.clock.now_ns();
    if let Some(node) = node
        && let Err(error) = cluster.kill(node)
    {
        tell!(" {}: {error}", spec.kind.name());
    }
    // Whatever was sent before the process was gone may have been answered by it.
    shared.faults.happened(number, shared.clock.now_ns());
    let at_s = at_ns.saturating_sub(shared.plan.measure_from_ns) as f64 / 1e9;
    let what = spec.kind.name();
    match node {
        Some(node) => tell!(" {at_s:.1}s {what}: node {node}"),
        None => tell!(" {at_s:.1}s {what}: there was no leader"),
    }
    Fault {
        at_s,
        what,
        node,
        old_term: leader.map(|(_, term)| term),
        new_term: None,
        new_leader_ms: None,
        unavailable_ms: None,
    }
}

fn show_progress(shared: &Shared, args: &RunArgs, leader: Option<(u64, u64)>, second: u64) {
    // Workers close a second a little after it has ended.
    let Some(through) = second.checked_sub(2) else {
        return;
    };
    while let Some((second, measured)) = shared.collector.close(through) {
        let moment = progress::Moment {
            second,
            warmup_s: args.warmup.as_secs_f64(),
            duration_s: args.duration.as_secs_f64(),
            open: !args.closed,
            leader,
        };
        tell!("{}", progress::line(&moment, &measured));
    }
}

impl Watched {
    /// The measurement is over.
    fn end(
        &mut self,
        cluster: &mut dyn Cluster,
        started: Option<(u64, Option<u64>)>,
        now_ns: u64,
        observed: Vec<Option<Observation>>,
    ) {
        let Some((from_ns, cpu_ns)) = started else {
            return;
        };
        self.seconds = (now_ns - from_ns) as f64 / 1e9;
        self.cpu_ns = cluster
            .cpu_ns()
            .and_then(|now| Some(now.saturating_sub(cpu_ns?)));
        self.rss_peak_bytes = cluster.rss_peak_bytes();
        self.at_end = observed;
    }

    /// Notes what was seen in the report.
    pub(super) fn fill(
        self,
        report: &mut Report,
        args: &RunArgs,
        shared: &Shared,
        measured: &Measured,
        generator_cpu_ns: u64,
    ) {
        let observes = !self.nodes.is_empty();
        let seconds = args.duration.as_secs_f64();
        let interrupted_ns = shared.clock.now_ns().min(shared.plan.measure_to_ns);
        let from_ns = shared.plan.measure_from_ns;
        let measured_s = (interrupted_ns.saturating_sub(from_ns) as f64 / 1e9).min(seconds);
        let changes = observes.then_some(self.leader_changes);
        report.result = RunResult::of(measured, measured_s.max(0.001), changes);
        report.result.entries = self.entries();
        let writes = measured.tally.completed_writes;
        let a_write = |ns: u64| (writes > 0).then(|| ns as f64 / 1e3 / writes as f64);
        report.cpu = Cpu {
            us_core_per_write: self.cpu_ns.and_then(a_write),
            generator_us_core_per_write: a_write(generator_cpu_ns),
            busy_cores: self
                .cpu_ns
                .filter(|_| self.seconds > 0.0)
                .map(|ns| ns as f64 / 1e9 / self.seconds),
        };
        let first = self.at_end.iter().chain(&self.at_start).flatten().next();
        if let Some(observation) = first {
            report.env.wal_backend = Some(observation.wal.backend.clone());
            report.env.flush_mode = Some(observation.wal.flush_mode.clone());
        }
        report.wal = self.wals();
        report.snapshots = self.snapshots();
        let memory = self.nodes.iter().zip(&self.rss_peak_bytes);
        report.memory = memory
            .map(|(node, bytes)| Memory {
                node: *node,
                rss_peak_bytes: *bytes,
            })
            .collect();
        for (node, seen) in self.nodes.iter().zip(&self.at_end) {
            let fallbacks = seen.iter().flat_map(|seen| &seen.net_fallbacks);
            let notes = fallbacks.map(|fallback| format!("node {node}: {fallback}"));
            report.verdict.warnings.extend(notes);
        }
        report.faults = self.faults;
    }

    /// Entries that were committed while it was measured: of each group, as far as the node that was
    /// furthest had applied them.
    fn entries(&self) -> Option<u64> {
        let applied = |seen: &[Option<Observation>]| {
            let each = seen.iter().flatten().map(|observation| {
                let groups = observation.groups.iter();
                groups.map(|group| group.applied).collect::<Vec<u64>>()
            });
            let furthest = |a: Vec<u64>, b: Vec<u64>| a.into_iter().zip(b).map(|(a, b)| a.max(b));
            each.reduce(|a, b| furthest(a, b).collect())
        };
        let (start, end) = (applied(&self.at_start)?, applied(&self.at_end)?);
        let groups = start.into_iter().zip(end);
        Some(groups.map(|(start, end)| end.saturating_sub(start)).sum())
    }

    /// Each node as it was seen first and last.
    fn seen(&self) -> impl Iterator<Item = (u64, &Option<Observation>, &Option<Observation>)> {
        let ends = self.at_end.iter().chain(std::iter::repeat(&None));
        let starts = self.at_start.iter().chain(std::iter::repeat(&None));
        let nodes = self.nodes.iter().zip(starts).zip(ends);
        nodes.map(|((node, start), end)| (*node, start, end))
    }

    fn snapshots(&self) -> Vec<Snapshots> {
        self.seen()
            .map(|(node, start, end)| {
                let delta = |of: fn(&SnapshotObservation) -> u64| {
                    let of = |seen: &Option<Observation>| seen.as_ref()?.snapshots.as_ref().map(of);
                    grown(of(start)?, of(end)?)
                };
                Snapshots {
                    node,
                    taken: delta(|snapshots| snapshots.taken),
                    failed: delta(|snapshots| snapshots.failed),
                    installed: delta(|snapshots| snapshots.installed),
                }
            })
            .collect()
    }

    fn wals(&self) -> Vec<Wal> {
        self.seen()
            .map(|(node, start, end)| {
                let delta =
                    |of: fn(&Observation) -> u64| grown(of(start.as_ref()?), of(end.as_ref()?));
                Wal {
                    node,
                    flushes: delta(|o| o.wal.flushes),
                    groups: delta(|o| o.wal.groups),
                    bytes_written: delta(|o| o.wal.bytes_written),
                    bytes_payload: delta(|o| o.wal.bytes_payload),
                    fallbacks: end
                        .as_ref()
                        .or(start.as_ref())
                        .map(|o| o.wal.fallbacks.clone())
                        .unwrap_or_default(),
                }
            })
            .collect()
    }
}

/// By how much a counter has grown. One of a node that was restarted counts from then.
fn grown(start: u64, end: u64) -> Option<u64> {
    Some(end.checked_sub(start).unwrap_or(end))
}

const RESTART_AFTER: Duration = Duration::from_secs(1);
