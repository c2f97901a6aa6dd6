//! `run.json`: everything that was asked, found and measured. Schema `loadgen.run/1`.
//!
//! Keys carry units. Every key is always there; what was not asked or cannot be told is null. Keys may be
//! added; one that goes or changes its meaning is a new schema.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::args::{RunArgs, TargetSpec};
use crate::floors::Floors;
use crate::recorder::{Latencies, Measured};
use crate::verify::Verified;

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always `loadgen.run/1`.
    pub schema: &'static str,
    /// The command line.
    pub argv: Vec<String>,
    /// What randomness started from.
    pub seed: u64,
    /// What was asked.
    pub config: Config,
    /// Where it ran.
    pub env: Env,
    /// What was measured.
    pub result: RunResult,
    /// What each node's log did in the measurement.
    pub wal: Vec<Wal>,
    /// What each node's snapshots came to in the measurement.
    pub snapshots: Vec<Snapshots>,
    /// Processor time.
    pub cpu: Cpu,
    /// Memory of each node's process, if it has one of its own.
    pub memory: Vec<Memory>,
    /// What the replicas hold.
    pub verify: Verify,
    /// What was made to fail.
    pub faults: Vec<Fault>,
    /// What to think of it.
    pub verdict: Verdict,
}

/// What was asked.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// `open` or `closed`.
    pub r#loop: &'static str,
    /// What was loaded.
    pub target: String,
    /// Operations due a second; null in a closed loop.
    pub rate_per_s: Option<f64>,
    /// `constant` or `poisson`; null in a closed loop.
    pub arrival: Option<&'static str>,
    /// What fell due within this time was sent together; null in a closed loop.
    pub pace_us: Option<u64>,
    /// Bytes of a value.
    pub size_bytes: u64,
    /// Connections or submitting tasks.
    pub clients: u64,
    /// Operations outstanding at most.
    pub in_flight: u64,
    /// How long was measured.
    pub duration_ms: u64,
    /// How long was loaded before.
    pub warmup_ms: u64,
    /// How long an operation could take.
    pub timeout_ms: u64,
    /// Raft groups.
    pub groups: u64,
    /// Keys.
    pub keys: u64,
    /// Shares of operations.
    pub mix: String,
    /// Whether replicas were restarted and checked.
    pub verify: bool,
    /// After how many bytes of log replicas take a snapshot, or `never`; null: as the engine does.
    pub snapshot_every: Option<String>,
}

/// Where it ran.
#[derive(Clone, Debug, Serialize)]
pub struct Env {
    /// How the replicas reached their disk.
    pub wal_backend: Option<String>,
    /// How they made writes durable.
    pub flush_mode: Option<String>,
    /// Processors.
    pub cpus: u64,
    /// The kernel.
    pub kernel: Option<String>,
    /// The file system under the replicas.
    pub fs: Option<String>,
    /// What it is mounted from.
    pub device: Option<String>,
    /// Where their data was.
    pub dir: Option<String>,
    /// The size of packets.
    pub mtu_profile: &'static str,
    /// What this machine can do at best.
    pub floor_ns: Floors,
    /// Bytes a second that three raw writers make durable together.
    pub raw3_bytes_per_s: Option<u64>,
    /// What was built.
    pub build: Build,
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    /// `release` or `debug`.
    pub profile: &'static str,
    /// The commit.
    pub commit: Option<&'static str>,
    /// Whether files differed from it.
    pub dirty: Option<bool>,
    /// Whether debug assertions are in.
    pub debug_assertions: bool,
}

impl Build {
    /// This build.
    #[must_use]
    pub fn of_this() -> Self {
        Self {
            profile: env!("LOADGEN_PROFILE"),
            commit: option_env!("LOADGEN_COMMIT"),
            dirty: option_env!("LOADGEN_DIRTY").map(|dirty| dirty == "true"),
            debug_assertions: cfg!(debug_assertions),
        }
    }
}

/// What was measured. All null if the run never began.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunResult {
    /// Operations due a second.
    pub offered_per_s: Option<f64>,
    /// Of those, handed to the target.
    pub sent_per_s: Option<f64>,
    /// Acknowledged a second.
    pub completed_per_s: Option<f64>,
    /// Bytes of values acknowledged a second.
    pub payload_bytes_per_s: Option<u64>,
    /// Entries that the logs committed; each holds a batch of writes.
    pub entries: Option<u64>,
    /// Operations that may or may not be in the log.
    pub unknown: Option<u64>,
    /// The same, by code.
    pub unknown_by_code: BTreeMap<&'static str, u64>,
    /// Operations that were sent again because they had not been appended.
    pub retries: Option<u64>,
    /// How often leadership moved.
    pub leader_changes: Option<u64>,
    /// Operations that are not in the log, by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// How long operations took.
    pub latency: Latency,
}

/// How long operations took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    /// From when they were due.
    pub schedule: Figures,
    /// From when they were first handed over.
    pub send: Figures,
    /// From due to handed over.
    pub lag: Figures,
}

/// A histogram in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Operations.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_ns: Option<u64>,
    /// 90 % of them took no longer.
    pub p90_ns: Option<u64>,
    /// 99 %.
    pub p99_ns: Option<u64>,
    /// 99.9 %.
    pub p999_ns: Option<u64>,
    /// 99.99 %.
    pub p9999_ns: Option<u64>,
    /// The longest.
    pub max_ns: Option<u64>,
    /// The mean.
    pub mean_ns: Option<u64>,
    /// The histogram, in HdrHistogram's deflated V2 form.
    pub hdr_v2: String,
}

impl Default for Figures {
    fn default() -> Self {
        Self::of(&Latencies::default())
    }
}

impl Figures {
    /// The figures of a histogram.
    #[must_use]
    pub fn of(latencies: &Latencies) -> Self {
        Self {
            count: latencies.count(),
            p50_ns: latencies.percentile(5000),
            p90_ns: latencies.percentile(9000),
            p99_ns: latencies.percentile(9900),
            p999_ns: latencies.percentile(9990),
            p9999_ns: latencies.percentile(9999),
            max_ns: latencies.max(),
            mean_ns: latencies.mean(),
            hdr_v2: latencies.to_base64(),
        }
    }
}

impl RunResult {
    /// What was measured over so many seconds.
    #[must_use]
    pub fn of(measured: &Measured, seconds: f64, leader_changes: Option<u64>) -> Self {
        let tally = &measured.tally;
        let per_s = |count: u64| (count as f64 / seconds * 10.0).round() / 10.0;
        Self {
            offered_per_s: Some(per_s(tally.offered)),
            sent_per_s: Some(per_s(tally.sent)),
            completed_per_s: Some(per_s(tally.completed)),
            payload_bytes_per_s: Some((tally.payload_bytes as f64 / seconds) as u64),
            entries: None,
            unknown: Some(tally.unknown.values().sum()),
            unknown_by_code: tally.unknown.clone(),
            retries: Some(tally.retries),
            leader_changes,
            errors: tally.errors.clone(),
            latency: Latency {
                schedule: Figures::of(&measured.schedule),
                send: Figures::of(&measured.send),
                lag: Figures::of(&measured.lag),
            },
        }
    }
}

/// What a node's log did in the measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wal {
    /// The node.
    pub node: u64,
    /// Flushes of the device.
    pub flushes: Option<u64>,
    /// Flush groups.
    pub groups: Option<u64>,
    /// Bytes written.
    pub bytes_written: Option<u64>,
    /// Bytes of entries among them.
    pub bytes_payload: Option<u64>,
    /// What it could not have and does without.
    pub fallbacks: Vec<String>,
}

/// What a node's snapshots came to. Those of nodes that run elsewhere are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshots {
    /// The node.
    pub node: u64,
    /// Taken.
    pub taken: Option<u64>,
    /// Not taken or fetched.
    pub failed: Option<u64>,
    /// Fetched and installed.
    pub installed: Option<u64>,
}

/// Memory of a node's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The node.
    pub node: u64,
    /// The most that was resident, from its start to the end of the measurement.
    pub rss_peak_bytes: Option<u64>,
}

/// Processor time, user and system, over the measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Of all replicas, for each acknowledged write.
    pub us_core_per_write: Option<f64>,
    /// Of the generator.
    pub generator_us_core_per_write: Option<f64>,
    /// Processors that the replicas kept busy.
    pub busy_cores: Option<f64>,
}

/// What the replicas hold; null without `--verify`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verify {
    /// Writes acknowledged.
    pub acked: Option<u64>,
    /// Of those, absent or different somewhere.
    pub lost: Option<u64>,
    /// Applied more than once.
    pub duplicated: Option<u64>,
    /// Out of order.
    pub reordered: Option<u64>,
    /// Whether the replicas had applied the same, and somebody led, before they were asked.
    pub agreed: Option<bool>,
    /// The first few, in words.
    pub findings: Vec<String>,
}

impl From<Verified> for Verify {
    fn from(verified: Verified) -> Self {
        Self {
            acked: Some(verified.acked),
            lost: Some(verified.lost),
            duplicated: Some(verified.duplicated),
            reordered: Some(verified.reordered),
            agreed: Some(verified.agreed),
            findings: verified.findings,
        }
    }
}

/// Something that was made to fail.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// When, from the start of the measurement.
    pub at_s: f64,
    /// What.
    pub what: &'static str,
    /// Which node.
    pub node: Option<u64>,
    /// The term before it.
    pub old_term: Option<u64>,
    /// The term of the next leader.
    pub new_term: Option<u64>,
    /// From the fault to the next leader.
    pub new_leader_ms: Option<u64>,
    /// From the fault to the first acknowledgement of an operation first sent after it.
    pub unavailable_ms: Option<u64>,
}

/// What to think of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether the numbers mean what they say.
    pub valid: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What else a reader should know.
    pub warnings: Vec<String>,
    /// Assertions that do not hold.
    pub failed_asserts: Vec<String>,
    /// What is worse than in the baseline.
    pub regressions: Vec<String>,
}

/// The schema of [`Report`].
pub const SCHEMA: &str = "loadgen.run/1";

impl Config {
    /// What the command line asks.
    #[must_use]
    pub fn of(args: &RunArgs, target: &TargetSpec) -> Self {
        let ms = |duration: std::time::Duration| duration.as_millis() as u64;
        let open = !args.closed;
        let arrival = match args.arrival {
            crate::args::Arrival::Constant => "constant",
            crate::args::Arrival::Poisson => "poisson",
        };
        Self {
            r#loop: if open { "open" } else { "closed" },
            target: target.to_string(),
            rate_per_s: open.then_some(args.rate),
            arrival: open.then_some(arrival),
            pace_us: open.then_some(args.pace.as_micros() as u64),
            size_bytes: args.size,
            clients: args.clients(),
            in_flight: args.in_flight(),
            duration_ms: ms(args.duration),
            warmup_ms: ms(args.warmup),
            timeout_ms: ms(args.timeout),
            groups: args.groups,
            keys: args.keys,
            mix: args.mix.to_string(),
            verify: args.verify,
            snapshot_every: args.snapshot_every.map(|every| every.to_string()),
        }
    }
}

impl Report {
    /// The figure that an assertion names; `None`: it was not measured.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<f64> {
        let (schedule, send) = (&self.result.latency.schedule, &self.result.latency.send);
        let whole = match name {
            "p50" => schedule.p50_ns,
            "p90" => schedule.p90_ns,
            "p99" => schedule.p99_ns,
            "p999" => schedule.p999_ns,
            "p9999" => schedule.p9999_ns,
            "max" => schedule.max_ns,
            "mean" => schedule.mean_ns,
            "send.p50" => send.p50_ns,
            "send.p90" => send.p90_ns,
            "send.p99" => send.p99_ns,
            "send.p999" => send.p999_ns,
            "lag.p99" => self.result.latency.lag.p99_ns,
            "unavailable" => {
                let worst = self.faults.iter().map(|fault| fault.unavailable_ms);
                worst.reduce(|a, b| Some(a?.max(b?))).flatten()
            }
            "payload_bytes_per_s" => self.result.payload_bytes_per_s,
            "errors" => self
                .result
                .unknown
                .map(|_| self.result.errors.values().sum()),
            "unknown" => self.result.unknown,
            "leader_changes" => self.result.leader_changes,
            "lost" => self.verify.lost,
            "duplicated" => self.verify.duplicated,
            "reordered" => self.verify.reordered,
            "offered_per_s" => return self.result.offered_per_s,
            "sent_per_s" => return self.result.sent_per_s,
            "completed_per_s" => return self.result.completed_per_s,
            "busy_cores" => return self.cpu.busy_cores,
            _ => None,
        };
        whole.map(|figure| figure as f64)
    }
}
