//! One run from start to end: machine, cluster, load, faults, verification, report.

mod load;
mod output;
mod restart;
mod room;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::args::{RunArgs, TargetSpec, Usage};
use crate::baseline::Baseline;
use crate::cluster::{self, Cluster, ClusterError};
use crate::exit::Exit;
use crate::floors::{self, Floors};
use crate::machine::{self, Storage};
use crate::report::{Build, Config, Cpu, Env, Report, RunResult, SCHEMA, Verdict};
use crate::say::tell;
use crate::target::TargetError;
use crate::verdict::{self, Circumstances};
use crate::workdir::WorkDir;
use load::load;
use output::Outputs;

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
    let baseline = args.baseline.as_deref().map(|path| {
        let config = Config::of(args, &target);
        Baseline::read(path, &config, args.mtu.name())
    });
    let baseline = baseline.transpose()?;
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
    let wal_bytes_max = room::check_room(args, &target, dir)?;
    let mut outputs = Outputs::open(args)?;
    let mut report = blank_report(args, &target, argv, seed, dir);
    if let Some(work_dir) = &work_dir {
        report.verdict.warnings = work_dir.notes().to_vec();
        tell!(" data in {}", work_dir.path().display());
    }
    let storage = dir.map(Storage::of).unwrap_or_default();
    let transport = args.mtu.transport();
    // Without replicas here there is no disk to speak of, and the way to them is another.
    let floors = dir.map(|dir| floors::measure(dir, &transport));
    (report.env.floor_ns, report.env.raw3_bytes_per_s) = floors.unwrap_or_default();

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
            let history = outputs.history.take();
            let cluster_ref = cluster.as_mut();
            let loaded = load(
                cluster_ref,
                args,
                seed,
                history,
                stop,
                &mut report,
                &mut seen,
            )?;
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
                let verified =
                    restart::verify_all(cluster.as_mut(), &loaded, restart::AGREE_TIME, stop);
                report.verify = verified.map(Into::into).unwrap_or_default();
            }
            if args.keep {
                // Shared first: the replicas take part in the lock.
                if let Some(work_dir) = &mut work_dir {
                    work_dir.keep().map_err(io_error("keep the directory"))?;
                }
                let kept = cluster.leave_running();
                let commands = kept.map_err(|error| RunError::Internal(error.to_string()))?;
                tell!(" left running; {commands}");
            }
        }
        Err(Failed::Unreachable(why)) => {
            unreachable = true;
            report.verdict.reasons.push(why);
        }
        Err(Failed::Run(error)) => return Err(error),
    }
    verdict::judge(&mut report, &seen, &args.assert);
    if let Some(baseline) = &baseline {
        report.verdict.regressions = baseline.regressions(&report, args.tolerance);
    }
    let interrupted = stop.load(Ordering::Relaxed);
    let exit = verdict::exit_of(&report, interrupted, unreachable);
    outputs.write(args, &report, exit, began, &seconds)?;
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
        snapshots: Vec::new(),
        cpu: Cpu::default(),
        memory: Vec::new(),
        verify: Default::default(),
        faults: Vec::new(),
        verdict: Verdict::default(),
    }
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

const LEADER_TIME: Duration = Duration::from_secs(15);
