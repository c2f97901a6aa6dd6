//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use logdrive_net::{MtuProfile, TransportSettings};

use crate::assertion::Assertion;
use crate::mix::Mix;
use crate::units;

/// Loads a logdrive cluster and reports honest percentiles.
///
/// Without arguments: three replicas as processes of their own on this machine, 20 000 writes of 128 bytes a
/// second for 10 seconds.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, subcommand_required = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One measured run (this is what happens without a subcommand)
    Run(Box<RunArgs>),
    /// A replica of a `spawn` target; loadgen starts these itself
    #[command(hide = true)]
    Replica(ReplicaArgs),
}

/// One measured run.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// What to load: spawn:N (N processes here), inproc:N (inside this process), cluster ADDR,.. (elsewhere)
    #[arg(long, num_args = 1..=2, default_value = "spawn:3", value_name = "TARGET")]
    pub target: Vec<String>,
    /// Certificates for `cluster`: ca.crt and client-1.crt with its key, as `logdrive tls issue` writes them
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,

    /// Open loop: operations a second that are due, whatever the answers do
    #[arg(long, default_value = "20k", value_parser = units::rate)]
    pub rate: f64,
    /// When operations are due in an open loop
    #[arg(long, value_enum, default_value = "constant")]
    pub arrival: Arrival,
    /// Closed loop: keep exactly --in-flight operations outstanding
    #[arg(long)]
    pub closed: bool,
    /// Operations that fall due within this time of an open loop leave together, and are late by up to it
    #[arg(long, default_value = "50us", value_parser = units::duration, value_name = "TIME")]
    pub pace: Duration,
    /// Operations outstanding in total [default: 256 closed, 1M open (a cap)]
    #[arg(long, value_parser = units::count, value_name = "N")]
    pub in_flight: Option<u64>,
    /// Connections (`inproc`: submitting tasks)
    #[arg(long, default_value = "8", value_parser = units::count, value_name = "N")]
    pub clients: u64,
    /// Threads that generate the load [default: one, more on many cores]
    #[arg(long, value_parser = units::count, value_name = "N")]
    pub threads: Option<u64>,

    /// Bytes of a value
    #[arg(long, default_value = "128", value_parser = units::bytes)]
    pub size: u64,
    /// How many keys
    #[arg(long, default_value = "100k", value_parser = units::count, value_name = "N")]
    pub keys: u64,
    /// Shares of put, get, cas, append, delete
    #[arg(long, default_value = "put=100")]
    pub mix: Mix,
    /// Raft groups that keys are spread over
    #[arg(long, default_value = "1", value_parser = units::count, value_name = "N")]
    pub groups: u64,
    /// What randomness starts from [default: drawn and printed]
    #[arg(long)]
    pub seed: Option<u64>,

    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    pub duration: Duration,
    /// How long to load before measuring
    #[arg(long, default_value = "2s", value_parser = units::duration)]
    pub warmup: Duration,
    /// How long an operation may take
    #[arg(long, default_value = "5s", value_parser = units::duration)]
    pub timeout: Duration,

    /// Afterwards kill and restart every replica and check each acknowledged write on each
    #[arg(long)]
    pub verify: bool,
    /// A fault at a time of the measurement, like '5s kill-leader' (repeatable)
    #[arg(long, value_name = "'TIME KIND'")]
    pub fault: Vec<FaultSpec>,
    /// Write one JSON line an operation here
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,

    /// How replicas reach their disk
    #[arg(long, value_enum, default_value = "auto")]
    pub wal_backend: WalBackend,
    /// Where replicas apply commands: on the thread of the log, or on one of their own
    #[arg(long, value_enum, default_value = "inline")]
    pub apply: Apply,
    /// The size of packets
    #[arg(long, value_enum, default_value = "loopback")]
    pub mtu: Mtu,

    /// After how many bytes of log replicas take a snapshot, or `never` [default: as the engine does]
    #[arg(long, value_parser = snapshot_every, value_name = "BYTES|never")]
    pub snapshot_every: Option<SnapshotEvery>,

    /// Where replicas keep their data: created, empty or ours, kept [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the cluster running and its data in place
    #[arg(long)]
    pub keep: bool,
    /// Where run.json and run.hlog go
    #[arg(long, default_value = "./loadgen-out", value_name = "DIR")]
    pub out: PathBuf,
    /// Where else the JSON goes; `-` is standard output
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Fail (exit 10) unless this holds, like 'p99<5ms' (repeatable)
    #[arg(long, value_name = "EXPR")]
    pub assert: Vec<Assertion>,
    /// Fail (exit 11) if p99 or throughput is worse than in this run.json of the same load
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// How much worse than the baseline is still the same
    #[arg(long, default_value = "10%", value_parser = share, value_name = "PERCENT")]
    pub tolerance: f64,
}

/// A replica of a `spawn` target.
#[derive(Clone, Debug, Args)]
pub struct ReplicaArgs {
    /// What to be, as JSON
    #[arg(long)]
    pub config: String,
}

/// When operations of an open loop are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arrival {
    /// At equal distances.
    Constant,
    /// As independent users would: exponential distances.
    Poisson,
}

/// How replicas reach their disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalBackend {
    /// io_uring where it is allowed, pwrite elsewhere.
    Auto,
    /// io_uring or nothing.
    #[value(name = "io_uring")]
    IoUring,
    /// Blocking calls on a thread.
    Pwrite,
}

/// Where replicas apply commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Apply {
    /// On the thread of the log: no hop, for a map in memory.
    Inline,
    /// On a thread of its own.
    Thread,
}

/// The size of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mtu {
    /// 65 000 bytes, on this machine only.
    Loopback,
    /// 1 452 bytes.
    Ethernet,
    /// 8 900 bytes.
    Jumbo,
}

impl Mtu {
    /// How connections with packets of this size are set up.
    #[must_use]
    pub fn transport(self) -> TransportSettings {
        let mut transport = TransportSettings::default();
        transport.mtu = match self {
            Self::Loopback => MtuProfile::Loopback,
            Self::Ethernet => MtuProfile::Ethernet,
            Self::Jumbo => MtuProfile::Jumbo,
        };
        transport
    }

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Ethernet => "ethernet",
            Self::Jumbo => "jumbo",
        }
    }
}

/// What to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// So many processes that this one starts.
    Spawn(usize),
    /// So many replicas inside this process.
    Inproc(usize),
    /// Replicas that run elsewhere, at these addresses.
    Cluster(Vec<String>),
}

impl std::fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spawn(n) => write!(f, "spawn:{n}"),
            Self::Inproc(n) => write!(f, "inproc:{n}"),
            Self::Cluster(addresses) => write!(f, "cluster {}", addresses.join(",")),
        }
    }
}

/// When replicas take snapshots by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotEvery {
    /// After so many bytes of log.
    Bytes(u64),
    /// Not at all.
    Never,
}

impl std::fmt::Display for SnapshotEvery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Never => f.write_str("never"),
        }
    }
}

fn snapshot_every(text: &str) -> Result<SnapshotEvery, String> {
    if text == "never" {
        return Ok(SnapshotEvery::Never);
    }
    match units::bytes(text) {
        Ok(0) => Err("a snapshot after 0 bytes would be one after each entry".to_owned()),
        Ok(bytes) => Ok(SnapshotEvery::Bytes(bytes)),
        Err(error) => Err(format!("{error}, or `never`")),
    }
}

/// A fault and when it happens, counted from the start of the measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultSpec {
    /// When.
    pub at: Duration,
    /// What.
    pub kind: FaultKind,
}

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL for the leader's process, which is started again one second later.
    KillLeader,
}

impl FaultKind {
    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill-leader",
        }
    }
}

/// The command line cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl FromStr for FaultSpec {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let mut words = text.split_whitespace();
        let (Some(at), Some(kind), None) = (words.next(), words.next(), words.next()) else {
            let advice = "write it like `5s kill-leader`";
            return Err(Usage(format!("`{text}` is not a fault; {advice}")));
        };
        let at = units::duration(at).map_err(|error| Usage(error.to_string()))?;
        if kind != FaultKind::KillLeader.name() {
            let nearest = FaultKind::KillLeader.name();
            return Err(Usage(format!(
                "there is no fault `{kind}`; did you mean `{nearest}`?"
            )));
        }
        Ok(Self {
            at,
            kind: FaultKind::KillLeader,
        })
    }
}

impl RunArgs {
    /// What `--target` says.
    pub fn target(&self) -> Result<TargetSpec, Usage> {
        parse_target(&self.target)
    }

    /// Checks what single flags cannot know.
    pub fn check(&self) -> Result<(), Usage> {
        let target = self.target()?;
        let spawned = matches!(target, TargetSpec::Spawn(_));
        let cluster = matches!(target, TargetSpec::Cluster(_));
        let refuse = |why: &str| Err(Usage(why.to_owned()));
        if !self.fault.is_empty() && !spawned {
            return refuse("--fault kills processes and needs --target spawn:N");
        }
        if let Some(fault) = self.fault.iter().find(|fault| fault.at >= self.duration) {
            return Err(Usage(format!(
                "--fault '{}s {}' lies outside --duration {}s",
                fault.at.as_secs_f64(),
                fault.kind.name(),
                self.duration.as_secs_f64()
            )));
        }
        if cluster && self.tls.is_none() {
            return refuse(
                "--target cluster needs --tls DIR with ca.crt and a client's certificate: `logdrive tls \
                 issue --role client` makes one",
            );
        }
        if !cluster && self.tls.is_some() {
            return refuse("--tls is for --target cluster; other targets make their own");
        }
        if cluster && self.verify {
            return refuse(
                "--verify reads the ledger inside each replica, after killing and restarting all of \
                 them; the client port does not hand it out, and these replicas are not loadgen's to \
                 kill. Use --target spawn:N, or --history FILE and check what was acknowledged",
            );
        }
        if self.keep && !spawned {
            return refuse("--keep leaves processes running and needs --target spawn:N");
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return refuse("--duration and --timeout must be longer than 0s");
        }
        if !(PACE_MIN..=PACE_MAX).contains(&self.pace) {
            return refuse(
                "--pace must lie between 1us and 2ms: what leaves much later than it was due is another load",
            );
        }
        if !(0.001..=1e8).contains(&self.rate) {
            return refuse("--rate must lie between 0.001/s and 100M/s");
        }
        for (name, value, max) in [
            ("--clients", self.clients, 10_000),
            ("--threads", self.threads.unwrap_or(1), 64),
            ("--keys", self.keys, 1_000_000_000),
            ("--groups", self.groups, 4096),
            ("--in-flight", self.in_flight.unwrap_or(1), 10_000_000),
        ] {
            if value == 0 || value > max {
                return Err(Usage(format!("{name} must lie between 1 and {max}")));
            }
        }
        if self.size > SIZE_BYTES_MAX {
            return Err(Usage(format!(
                "--size can be {SIZE_BYTES_MAX} bytes at most"
            )));
        }
        Ok(())
    }

    /// How many operations may be outstanding.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let default = if self.closed { 256 } else { 1_000_000 };
        self.in_flight.unwrap_or(default)
    }

    /// Connections or submitting tasks: no more than operations in flight.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.clients.min(self.in_flight())
    }
}

/// Reads the command line. `loadgen` and `loadgen --rate 5k` mean `loadgen run ..`.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Cli, clap::Error> {
    let mut args: Vec<String> = args.into_iter().collect();
    let top = ["-h", "--help", "-V", "--version"];
    let is_flag = args
        .get(1)
        .is_none_or(|arg| arg.starts_with('-') && !top.contains(&arg.as_str()));
    if is_flag {
        args.insert(1.min(args.len()), "run".to_owned());
    }
    Cli::try_parse_from(args)
}

/// A share like `10%`.
fn share(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').unwrap_or_default().trim();
    match number.parse::<f64>() {
        Ok(percent) if (0.0..1000.0).contains(&percent) => Ok(percent / 100.0),
        _ => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            let nearest = if digits.is_empty() { "10" } else { &digits };
            Err(format!(
                "`{text}` is not a share; did you mean `{nearest}%`?"
            ))
        }
    }
}

fn parse_target(words: &[String]) -> Result<TargetSpec, Usage> {
    let text = words.join(" ");
    let (kind, rest) = match text.split_once([':', ' ']) {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (text.as_str(), None),
    };
    let number = |example: &str| match rest.map(str::parse) {
        Some(Ok(n)) if (1..=REPLICAS_MAX).contains(&n) => Ok(n),
        _ => Err(Usage(format!(
            "`{text}` does not say how many replicas; write it like `{example}`"
        ))),
    };
    match kind {
        "spawn" => Ok(TargetSpec::Spawn(number("spawn:3")?)),
        "inproc" => Ok(TargetSpec::Inproc(number("inproc:3")?)),
        "cluster" => {
            let addresses: Vec<String> = rest
                .unwrap_or_default()
                .split(',')
                .map(|address| address.trim().to_owned())
                .collect();
            if addresses.iter().any(|address| !address.contains(':')) {
                return Err(Usage(format!(
                    "`{text}` names no addresses; write it like `cluster 10.0.0.1:7002,10.0.0.2:7002`"
                )));
            }
            Ok(TargetSpec::Cluster(addresses))
        }
        other => {
            let nearest = ["spawn:3", "inproc:3", "cluster ADDR,.."]
                .into_iter()
                .max_by(|a, b| likeness(a, other).total_cmp(&likeness(b, other)))
                .unwrap_or("spawn:3");
            Err(Usage(format!(
                "there is no target `{text}`; did you mean `{nearest}`?"
            )))
        }
    }
}

fn likeness(known: &str, written: &str) -> f64 {
    let known = known.split([':', ' ']).next().unwrap_or(known);
    strsim::jaro_winkler(known, written)
}

const REPLICAS_MAX: usize = 31;

/// The finest that `run.json` tells.
const PACE_MIN: Duration = Duration::from_micros(1);

/// Well within the lag that a valid run may have.
const PACE_MAX: Duration = Duration::from_millis(2);

/// What fits into one proposal beside a key.
const SIZE_BYTES_MAX: u64 = (1 << 20) - 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &str) -> Result<RunArgs, String> {
        let words = args.split('|').filter(|word| !word.is_empty());
        let argv = std::iter::once("loadgen").chain(words).map(str::to_owned);
        match parse(argv).map_err(|error| error.to_string())?.command {
            Command::Run(run) => {
                run.check().map_err(|usage| usage.to_string())?;
                Ok(*run)
            }
            Command::Replica(_) => Err("replica".to_owned()),
        }
    }

    #[test]
    fn no_arguments_are_the_defaults_of_the_contract() {
        for args in ["", "run"] {
            let run = run(args).unwrap();
            assert_eq!(run.target(), Ok(TargetSpec::Spawn(3)));
            assert_eq!((run.rate, run.size, run.clients()), (20e3, 128, 8));
            assert_eq!(run.duration, Duration::from_secs(10));
            assert_eq!(run.warmup, Duration::from_secs(2));
            assert_eq!(run.timeout, Duration::from_secs(5));
            assert_eq!(
                (run.keys, run.groups, run.in_flight()),
                (100_000, 1, 1_000_000)
            );
            assert_eq!(run.mix.to_string(), "put=100");
            assert_eq!(run.out, PathBuf::from("./loadgen-out"));
            assert!(!run.closed && !run.verify && !run.keep);
        }
    }

    #[test]
    fn a_closed_loop_has_256_in_flight_and_no_more_clients_than_that() {
        let figures = |args| {
            let run = run(args).unwrap();
            (run.in_flight(), run.clients())
        };
        assert_eq!(figures("--closed"), (256, 8));
        assert_eq!(figures("--closed|--in-flight|1"), (1, 1));
    }

    #[test]
    fn targets_are_read() {
        let target = |args| run(args).unwrap().target().unwrap();
        assert_eq!(target("--target|inproc:1"), TargetSpec::Inproc(1));
        let cluster = TargetSpec::Cluster(vec!["a:1".to_owned(), "[::1]:2".to_owned()]);
        assert_eq!(target("--target|cluster|a:1,[::1]:2|--tls|d"), cluster);
    }

    #[test]
    fn misuse_names_what_would_be_right() {
        let error = |args| run(args).unwrap_err();
        let cases = [
            ("--target|spwan:3", "did you mean `spawn:3`?"),
            ("--target|spawn", "write it like `spawn:3`"),
            ("--target|spawn:0", "write it like `spawn:3`"),
            (
                "--target|cluster|--tls|d",
                "write it like `cluster 10.0.0.1:7002",
            ),
            ("--target|cluster|a:1", "--tls DIR"),
            (
                "--target|inproc:3|--fault|1s kill-leader",
                "--target spawn:N",
            ),
            ("--fault|5s kill-leeder", "did you mean `kill-leader`?"),
            ("--fault|11s kill-leader", "outside --duration 10s"),
            ("--fault|kill-leader", "write it like `5s kill-leader`"),
            ("--rate|50kk", "did you mean `50k`?"),
            ("--raet|50k", "--rate"),
            ("--mix|pt=1", "did you mean `put`?"),
            ("--mtu|ethernt", "ethernet"),
            ("--assert|p98<5ms", "did you mean `p99`?"),
            ("--size|2MiB", "--size can be"),
            ("--clients|0", "--clients must lie between"),
            ("--pace|3ms", "--pace must lie between 1us and 2ms"),
            ("--pace|0s", "--pace must lie between 1us and 2ms"),
            ("runn", "run"),
        ];
        for (args, expected) in cases {
            let message = error(args);
            assert!(message.contains(expected), "{args}: {message}");
        }
    }
}
