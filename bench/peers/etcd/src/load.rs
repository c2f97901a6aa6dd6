//! Clients that put, one after the other, until time is up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, KvClient};
use tokio::task::JoinSet;

use crate::latencies::Latencies;
use crate::{Args, Whom, process};

/// The cluster as it was found before the load.
#[derive(Debug)]
pub struct Cluster {
    pub version: String,
    /// The endpoint of the member that leads.
    pub leader: String,
}

/// No endpoint says that it leads.
#[derive(Debug)]
pub struct NoLeader;

impl fmt::Display for NoLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "none of the endpoints leads the cluster: name all members"
        )
    }
}

impl Error for NoLeader {}

/// A put that could not be done because of what it was sent to.
#[derive(Debug)]
pub struct Unreachable {
    endpoint: String,
    source: etcd_client::Error,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not answer as an etcd member", self.endpoint)
    }
}

impl Error for Unreachable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

impl Cluster {
    /// Asks every endpoint who leads, until one does or time is up.
    pub async fn wait_for(endpoints: &[String], wait: Duration) -> Result<Self, Box<dyn Error>> {
        let end = Instant::now() + wait;
        loop {
            let found = Self::find(endpoints).await;
            if found.is_ok() || Instant::now() >= end {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn find(endpoints: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut found = None;
        for endpoint in endpoints {
            let mut client = connect(endpoint).await?;
            let status = client.status().await.map_err(|source| Unreachable {
                endpoint: endpoint.clone(),
                source,
            })?;
            let member = status.header().map_or(0, |header| header.member_id());
            if member != 0 && member == status.leader() {
                found = Some(Self {
                    version: status.version().to_owned(),
                    leader: endpoint.clone(),
                });
            }
        }
        Ok(found.ok_or(NoLeader)?)
    }
}

/// What was measured. Latencies are those of puts sent inside the window, `completed` those answered in it.
#[derive(Debug, Default)]
pub struct Measured {
    pub latencies: Latencies,
    pub completed: u64,
    /// Puts sent inside the window that were not acknowledged, by gRPC code.
    pub errors: BTreeMap<String, u64>,
    /// Processor time inside the window: of the members, of this process.
    pub members_cpu: Option<Duration>,
    pub own_cpu: Option<Duration>,
}

/// The window in which operations count.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    end: Instant,
}

impl Window {
    fn holds(&self, at: Instant) -> bool {
        self.start <= at && at < self.end
    }
}

/// Puts in a closed loop, warm-up first.
pub async fn run(args: &Args, cluster: &Cluster) -> Result<Measured, Box<dyn Error>> {
    let endpoints = match args.to {
        Whom::Leader => std::slice::from_ref(&cluster.leader),
        Whom::All => &args.endpoints[..],
    };
    let count = args.connections.min(args.in_flight) as usize;
    let mut connections = Vec::with_capacity(count);
    for endpoint in endpoints.iter().cycle().take(count) {
        connections.push(connect(endpoint).await?.kv_client());
    }

    let start = Instant::now() + args.warmup;
    let window = Window {
        start,
        end: start + args.duration,
    };
    let measured = Rc::new(RefCell::new(Measured::default()));
    let mut tasks = JoinSet::new();
    for number in 0..args.in_flight {
        let client = PutClient {
            kv: connections[number as usize % count].clone(),
            random: fastrand::Rng::with_seed(args.seed ^ u64::from(number) << 32),
            keys: args.keys,
            size: args.size,
            timeout: args.timeout,
            measured: Rc::clone(&measured),
        };
        tasks.spawn_local(client.run(window));
    }

    tokio::time::sleep_until(window.start.into()).await;
    let before = (
        members_cpu(&args.pids),
        process::cpu_time(std::process::id()),
    );
    tokio::time::sleep_until(window.end.into()).await;
    let after = (
        members_cpu(&args.pids),
        process::cpu_time(std::process::id()),
    );
    // Puts under way at the end are waited for: their latency counts, however long it is.
    while let Some(done) = tasks.join_next().await {
        done?;
    }
    let mut measured = measured.take();
    let between = |before: Option<Duration>, after: Option<Duration>| Some(after? - before?);
    measured.members_cpu = between(before.0, after.0);
    measured.own_cpu = between(before.1, after.1);
    Ok(measured)
}

/// One client with one put outstanding.
struct PutClient {
    kv: KvClient,
    random: fastrand::Rng,
    keys: u64,
    size: usize,
    timeout: Duration,
    measured: Rc<RefCell<Measured>>,
}

impl PutClient {
    async fn run(mut self, window: Window) {
        while Instant::now() < window.end {
            let key = format!("k{:07}", self.random.u64(..self.keys));
            let mut value = vec![0; self.size];
            self.random.fill(&mut value);
            let sent = Instant::now();
            let put = self.kv.put(key, value, None);
            let result = tokio::time::timeout(self.timeout, put).await;
            let answered = Instant::now();
            self.note(window, sent, answered, result);
        }
    }

    fn note(
        &self,
        window: Window,
        sent: Instant,
        answered: Instant,
        result: Result<
            Result<etcd_client::PutResponse, etcd_client::Error>,
            tokio::time::error::Elapsed,
        >,
    ) {
        let mut measured = self.measured.borrow_mut();
        let code = match result {
            Ok(Ok(_)) => {
                measured.completed += u64::from(window.holds(answered));
                if window.holds(sent) {
                    let ns = answered.duration_since(sent).as_nanos();
                    measured
                        .latencies
                        .record(u64::try_from(ns).unwrap_or(u64::MAX));
                }
                return;
            }
            Ok(Err(etcd_client::Error::GRpcStatus(status))) => format!("{:?}", status.code()),
            Ok(Err(_)) => "Transport".to_owned(),
            Err(_) => "TimedOut".to_owned(),
        };
        if window.holds(sent) {
            *measured.errors.entry(code).or_default() += 1;
        }
    }
}

async fn connect(endpoint: &str) -> Result<Client, Unreachable> {
    let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(5));
    Client::connect([endpoint], Some(options))
        .await
        .map_err(|source| Unreachable {
            endpoint: endpoint.to_owned(),
            source,
        })
}

/// `None` if there are no members to ask about, or one of them is gone.
fn members_cpu(pids: &[u32]) -> Option<Duration> {
    if pids.is_empty() {
        return None;
    }
    pids.iter().map(|pid| process::cpu_time(*pid)).sum()
}
