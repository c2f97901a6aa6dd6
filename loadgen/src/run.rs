//! One run from start to end: machine, cluster, load, faults, verification, report.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::args::{FaultSpec, RunArgs, TargetSpec, Usage};
use crate::clock::{Clock, ns};
use crate::cluster::protocol::Observation;
use crate::cluster::{self, Cluster, ClusterError};
use crate::exit::Exit;
use crate::faults::FaultWatch;
use crate::floors::{self, Floors};
use crate::history::HistoryWriter;
use crate::machine::{self, Storage};
use crate::progress;
use crate::recorder::{Collector, Measured, Second};
use crate::report::{Build, Config, Cpu, Env, Fault, Report, RunResult, SCHEMA, Verdict, Wal};
use crate::target::{Target, TargetError};
use crate::units::show_bytes;
use crate::verdict::{self, Circumstances};
use crate::verify::{self, Acked, Verified};
use crate::workdir::WorkDir;
use crate::worker::{self, Ended, Plan, Shared, Worker};
use crate::workload::Workload;
use crate::{hlog, table};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What was asked cannot be done.
    #[error(transparent)]
    Usage(#[from] Usage),
    /// A file or directory of ours failed.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: String,
        /// Why it was not.
        source: io::Error,
    },
    /// A thread of ours panicked.
    #[error("{0}")]
    Internal(String),
}

impl RunError {
    /// How the process ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Io { .. } | Self::Internal(_) => Exit::Internal,
        }
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |source| RunError::Io { what, source }
}

/// Makes the cluster that a run loads.
pub type MakeCluster<'a> = dyn Fn(&Setting<'_>) -> Result<Box<dyn Cluster>, ClusterError> + 'a;

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The command line.
    pub args: &'a RunArgs,
    /// What to load.
    pub target: &'a TargetSpec,
    /// Where data and certificates go; `None` for a cluster that runs elsewhere.
    pub dir: Option<&'a Path>,
    /// The most bytes of each replica's log.
    pub wal_bytes_max: u64,
}

/// Carries out a run and says how it ended. Progress and the table go to standard error if the JSON alone
/// goes to standard output.
pub fn run(
    args: &RunArgs,
    argv: Vec<String>,
    stop: &Arc<AtomicBool>,
    make: &MakeCluster<'_>,
) -> Result<Exit, RunError> {
    args.check()?;
    let target = args.target()?;
    fs::create_dir_all(&args.out).map_err(io_error(format!("make {}", args.out.display())))?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 53));
    let mut work_dir = match &target {
        TargetSpec::Cluster(_) => None,
        _ => Some(
            match &args.dir {
                Some(dir) => WorkDir::named(dir),
                None => WorkDir::temporary(),
            }
            .map_err(|error| Usage(source_chain(&error)))?,
        ),
    };
    let dir = work_dir.as_ref().map(WorkDir::path);
    let wal_bytes_max = check_room(args, &target, dir)?;
    let mut report = blank_report(args, &target, argv, seed, dir);
    if let Some(work_dir) = &work_dir {
        report.verdict.warnings = work_dir.notes().to_vec();
        eprintln!(" data in {}", work_dir.path().display());
    }
    let storage = dir.map(Storage::of).unwrap_or_default();
    (report.env.floor_ns, report.env.raw3_bytes_per_s) = measure_floors(dir);

    let setting = Setting {
        args,
        target: &target,
        dir,
        wal_bytes_max,
    };
    let mut seen = Circumstances {
        in_memory: storage.is_memory(),
        ..Circumstances::default()
    };
    let mut seconds = Vec::new();
    let mut unreachable = false;
    let began = SystemTime::now();
    match make(&setting)
        .map_err(Failed::from)
        .and_then(|mut cluster| {
            wait_for_leaders(cluster.as_mut(), args.groups, stop)?;
            let loaded = load(cluster.as_mut(), args, seed, stop, &mut report, &mut seen)?;
            Ok((cluster, loaded))
        }) {
        Ok((mut cluster, loaded)) => {
            seconds = loaded.seconds.clone();
            if loaded.answered == 0 && seen.sent > 0 && !stop.load(Ordering::Relaxed) {
                // It answered while the run was set up, and never again.
                unreachable = true;
                let why = "not one operation was acknowledged".to_owned();
                report.verdict.reasons.push(why);
            }
            if args.verify && !stop.load(Ordering::Relaxed) {
                let verified = verify_all(cluster.as_mut(), &loaded, stop);
                report.verify = verified.into();
            }
            if args.keep {
                // Shared first: the replicas take part in the lock.
                if let Some(work_dir) = &mut work_dir {
                    work_dir.keep().map_err(io_error("keep the directory"))?;
                }
                let kept = cluster.leave_running();
                let commands = kept.map_err(|error| RunError::Internal(error.to_string()))?;
                eprintln!(" left running; {commands}");
            }
        }
        Err(Failed::Unreachable(why)) => {
            unreachable = true;
            report.verdict.reasons.push(why);
        }
        Err(Failed::Run(error)) => return Err(error),
    }
    verdict::judge(&mut report, &seen, &args.assert);
    let interrupted = stop.load(Ordering::Relaxed);
    let exit = verdict::exit_of(&report, interrupted, unreachable);
    write_out(args, &report, exit, began, &seconds)?;
    Ok(exit)
}

/// The cluster or the run failed.
enum Failed {
    Unreachable(String),
    Run(RunError),
}

impl From<ClusterError> for Failed {
    fn from(error: ClusterError) -> Self {
        Self::Unreachable(error.0)
    }
}

impl From<TargetError> for Failed {
    fn from(error: TargetError) -> Self {
        Self::Unreachable(error.0)
    }
}

impl From<RunError> for Failed {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

/// An error and everything behind it, in one line.
#[must_use]
pub fn source_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn blank_report(
    args: &RunArgs,
    target: &TargetSpec,
    argv: Vec<String>,
    seed: u64,
    dir: Option<&Path>,
) -> Report {
    let storage = dir.map(Storage::of).unwrap_or_default();
    Report {
        schema: SCHEMA,
        argv,
        seed,
        config: Config::of(args, target),
        env: Env {
            wal_backend: None,
            flush_mode: None,
            cpus: machine::cpus(),
            kernel: machine::kernel(),
            fs: storage.fs,
            device: storage.device,
            dir: dir.map(|dir| dir.display().to_string()),
            mtu_profile: args.mtu.name(),
            floor_ns: Floors::default(),
            raw3_bytes_per_s: None,
            build: Build::of_this(),
        },
        result: RunResult::default(),
        wal: Vec::new(),
        cpu: Cpu::default(),
        verify: Default::default(),
        faults: Vec::new(),
        verdict: Verdict::default(),
    }
}

fn measure_floors(dir: Option<&Path>) -> (Floors, Option<u64>) {
    // Without replicas here there is no disk to speak of.
    dir.map(floors::measure).unwrap_or_default()
}

/// Refuses a run that would not fit, and says how large each log may become.
fn check_room(args: &RunArgs, target: &TargetSpec, dir: Option<&Path>) -> Result<u64, RunError> {
    let (TargetSpec::Spawn(replicas) | TargetSpec::Inproc(replicas), Some(dir)) = (target, dir)
    else {
        return Ok(WAL_BYTES_MAX);
    };
    let Some(free) = machine::free_bytes(dir) else {
        return Ok(WAL_BYTES_MAX);
    };
    let replicas = *replicas as u64;
    let each = expected_log_bytes(args) + SPARE_BYTES;
    let needed = each.saturating_mul(replicas);
    if needed > free {
        return Err(Usage(format!(
            "{replicas} logs of up to {} need {}, and {} has {} free: shorten --duration, lower \
             --rate or name another --dir",
            show_bytes(each),
            show_bytes(needed),
            dir.display(),
            show_bytes(free)
        ))
        .into());
    }
    // What a closed loop will write is not known: its logs may share what is free, with some left over.
    let share = (free / 10 * 9) / replicas;
    Ok(WAL_BYTES_MAX.min(share.max(each)))
}

/// What one log holds at the end of an open loop; of a closed loop nothing is known.
fn expected_log_bytes(args: &RunArgs) -> u64 {
    if args.closed {
        return 0;
    }
    let seconds = (args.warmup + args.duration).as_secs_f64();
    (args.rate * seconds * (args.size as f64 + COMMAND_OVERHEAD_BYTES)) as u64
}

fn wait_for_leaders(
    cluster: &mut dyn Cluster,
    groups: u64,
    stop: &AtomicBool,
) -> Result<(), ClusterError> {
    let began = Instant::now();
    let nodes = cluster.nodes();
    while !stop.load(Ordering::Relaxed) {
        let observed = cluster.observe();
        if (0..groups as usize).all(|group| cluster::leader(&nodes, &observed, group).is_some()) {
            return Ok(());
        }
        if nodes.is_empty() {
            return Ok(());
        }
        if began.elapsed() > LEADER_TIME {
            let seconds = LEADER_TIME.as_secs();
            let alarms: Vec<String> = observed
                .into_iter()
                .flatten()
                .flat_map(|o| o.alarms)
                .collect();
            return Err(ClusterError(format!(
                "no leader after {seconds} s{}{}",
                if alarms.is_empty() { "" } else { ": " },
                alarms.join("; ")
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a load leaves for the verification.
struct Loaded {
    /// Operations that were acknowledged within the measurement.
    answered: u64,
    acked: Acked,
    reordered: u64,
    workload: Workload,
    acked_through: Vec<u64>,
    seconds: Vec<Second>,
}

fn load(
    cluster: &mut dyn Cluster,
    args: &RunArgs,
    seed: u64,
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
    let history = args.history.as_deref().map(HistoryWriter::create);
    let history = history
        .transpose()
        .map_err(io_error("create the history"))?;
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

type WorkerThread = JoinHandle<Result<Ended, TargetError>>;

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

/// What was seen of the cluster while it was loaded.
struct Watched {
    nodes: Vec<u64>,
    at_start: Vec<Option<Observation>>,
    at_end: Vec<Option<Observation>>,
    cpu_ns: Option<u64>,
    seconds: f64,
    leader_changes: u64,
    faults: Vec<Fault>,
}

/// Looks after cluster, faults and progress until all workers have ended.
fn watch(
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
        if let Some(fault) = faults.first()
            && now_ns >= measure_from_ns + ns(fault.at)
        {
            let number = watched.faults.len();
            let killed = kill_leader(cluster, shared, number, leader, fault);
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
                eprintln!(" restart of node {node}: {error}");
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
    // A node that is still down is wanted for the verification.
    for (_, node) in restarts {
        if let Err(error) = cluster.start(node) {
            eprintln!(" restart of node {node}: {error}");
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
        eprintln!(" {}: {error}", spec.kind.name());
    }
    // Whatever was sent before the process was gone may have been answered by it.
    shared.faults.happened(number, shared.clock.now_ns());
    let at_s = at_ns.saturating_sub(shared.plan.measure_from_ns) as f64 / 1e9;
    eprintln!(
        " {at_s:.1}s {}: node {}",
        spec.kind.name(),
        node.unwrap_or(0)
    );
    Fault {
        at_s,
        what: spec.kind.name(),
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
        eprintln!("{}", progress::line(&moment, &measured));
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
        self.at_end = observed;
    }

    fn fill(
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
        report.faults = self.faults;
    }

    fn wals(&self) -> Vec<Wal> {
        let ends = self.at_end.iter().chain(std::iter::repeat(&None));
        let starts = self.at_start.iter().chain(std::iter::repeat(&None));
        let nodes = self.nodes.iter().zip(starts).zip(ends);
        nodes
            .map(|((node, start), end)| {
                let delta = |of: fn(&Observation) -> u64| {
                    let (start, end) = (of(start.as_ref()?), of(end.as_ref()?));
                    // One that was restarted counts from then.
                    Some(end.checked_sub(start).unwrap_or(end))
                };
                Wal {
                    node: *node,
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

/// Kills all replicas, starts them again and compares what they hold with what was acknowledged.
fn verify_all(cluster: &mut dyn Cluster, loaded: &Loaded, stop: &AtomicBool) -> Verified {
    eprintln!(" verify: killing and restarting every replica");
    let nodes = cluster.nodes();
    let mut problems = Vec::new();
    for node in &nodes {
        problems.extend(cluster.kill(*node).err());
    }
    for node in &nodes {
        problems.extend(cluster.start(*node).err());
    }
    let began = Instant::now();
    let mut agreed = 0;
    while agreed < 2 && began.elapsed() < AGREE_TIME && !stop.load(Ordering::Relaxed) {
        let observed = cluster.observe();
        agreed = if cluster::agree(&observed, &loaded.acked_through) {
            agreed + 1
        } else {
            0
        };
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut states = Vec::new();
    for (node, state) in nodes.iter().zip(cluster.states()) {
        match state {
            Ok(state) => states.push(state),
            Err(why) => problems.push(ClusterError(format!(
                "node {node} did not come back: {why}"
            ))),
        }
    }
    let mut verified = verify::compare(&loaded.acked, loaded.reordered, &loaded.workload, &states);
    // A replica that cannot be asked does not hold what was acknowledged, as far as anybody can tell.
    for problem in problems {
        verified.lost += 1;
        verified.findings.push(problem.to_string());
    }
    if agreed < 2 {
        let seconds = AGREE_TIME.as_secs();
        let finding = format!("the replicas did not agree within {seconds} s");
        verified.findings.push(finding);
    }
    eprintln!(" verify: took {:.1} s", began.elapsed().as_secs_f64());
    verified
}

fn write_out(
    args: &RunArgs,
    report: &Report,
    exit: Exit,
    began: SystemTime,
    seconds: &[Second],
) -> Result<(), RunError> {
    let mut json = serde_json::to_string_pretty(report)
        .map_err(|error| RunError::Internal(error.to_string()))?;
    json.push('\n');
    let path = args.out.join("run.json");
    let write =
        |path: &Path| fs::write(path, &json).map_err(io_error(format!("write {}", path.display())));
    write(&path)?;
    let mut log = Vec::new();
    let since_epoch = began
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let command = report.argv.join(" ");
    hlog::write(&mut log, &command, since_epoch.as_secs_f64(), seconds)
        .map_err(io_error("write run.hlog"))?;
    let hlog_path = args.out.join("run.hlog");
    fs::write(&hlog_path, log).map_err(io_error(format!("write {}", hlog_path.display())))?;
    let table = table::render(report, exit);
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => {
            eprint!("{table}");
            print!("{json}");
        }
        other => {
            if let Some(path) = other {
                write(path)?;
            }
            print!("{table}");
        }
    }
    eprintln!(" report       {}", path.display());
    Ok(())
}

/// The most bytes of a log, as long as the disk has room.
const WAL_BYTES_MAX: u64 = 8 << 30;

/// What a log keeps ready beyond what it holds: segments of 64 MiB.
const SPARE_BYTES: u64 = 4 * (64 << 20);

/// What a write takes in the log beside its value: command, key, table, its share of headers and padding.
const COMMAND_OVERHEAD_BYTES: f64 = 64.0;

/// So that all threads are ready when the load starts.
const START_DELAY: Duration = Duration::from_millis(100);

const RESTART_AFTER: Duration = Duration::from_secs(1);
const LEADER_TIME: Duration = Duration::from_secs(15);
const AGREE_TIME: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn args(text: &str) -> RunArgs {
        let argv = format!("loadgen run {text}");
        match parse(argv.split_whitespace().map(str::to_owned))
            .unwrap()
            .command
        {
            Command::Run(args) => *args,
            Command::Replica(_) => panic!("not a run"),
        }
    }

    #[test]
    fn a_run_that_would_not_fit_is_refused_with_the_figure() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            let args = args(text);
            let target = args.target().unwrap();
            check_room(&args, &target, Some(dir.path()))
        };
        let error = check("--rate 100M --size 1MB --duration 1h").unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        let text = error.to_string();
        assert!(text.contains("GiB") && text.contains("free"), "{text}");
    }

    #[test]
    fn the_default_run_needs_no_more_than_four_gibibytes() {
        let each = expected_log_bytes(&args("")) + SPARE_BYTES;
        assert!(3 * each <= 4 << 30, "{}", show_bytes(3 * each));
    }
}
