//! What the subcommands do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logdrive::Node;
use logdrive_net::Credentials;
use logdrive_shard::kv::Kv;

use crate::args::{ReplicaArgs, RunArgs, TargetSpec, Usage};
use crate::cluster::inproc::Inproc;
use crate::cluster::protocol::{Observation, ReplicaConfig};
use crate::cluster::remote::Remote;
use crate::cluster::replica::{self, Ended, Host};
use crate::cluster::sockets::Sockets;
#[cfg(unix)]
use crate::cluster::spawn::Spawned;
use crate::cluster::{Cluster, ClusterError, node};
use crate::exit::Exit;
use crate::run::{self, Setting};
use crate::say::tell;
use crate::verify::ReplicaState;

/// One measured run.
#[must_use]
pub fn run(args: &RunArgs, argv: Vec<String>) -> Exit {
    let credentials = match credentials(args) {
        Ok(credentials) => credentials,
        Err(error) => {
            tell!("error: {error}");
            return Exit::Usage;
        }
    };
    let make = |setting: &Setting<'_>| make(setting, credentials.as_ref());
    let stop = stop_flag();
    match run::run(args, argv, &stop, &make) {
        Ok(exit) => exit,
        Err(error) => {
            tell!("error: {error}");
            error.exit()
        }
    }
}

/// What a cluster that runs elsewhere is to be shown; `None`: another target makes its own. That it cannot be
/// read says nothing about the cluster: the command line is wrong.
fn credentials(args: &RunArgs) -> Result<Option<Credentials>, Usage> {
    args.check()?;
    let (TargetSpec::Cluster(_), Some(tls)) = (args.target()?, &args.tls) else {
        return Ok(None);
    };
    let loaded = Credentials::load_client(tls);
    let loaded = loaded.map_err(|error| Usage(format!("--tls: {}", run::source_chain(&error))));
    loaded.map(Some)
}

/// Set by SIGINT and SIGTERM.
fn stop_flag() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&stop)) {
            tell!("signal {signal} will end it at once: {error}");
        }
    }
    stop
}

fn make(
    setting: &Setting<'_>,
    credentials: Option<&Credentials>,
) -> Result<Box<dyn Cluster>, ClusterError> {
    let dir = setting.dir.unwrap_or(".".as_ref());
    let configs = |count: usize| -> Vec<ReplicaConfig> {
        let config = |node: u64| ReplicaConfig {
            node,
            cluster: CLUSTER.to_owned(),
            dir: dir.join(format!("node-{node}")),
            tls: dir.join("tls"),
            groups: setting.args.groups,
            wal_backend: setting.args.wal_backend,
            apply: setting.args.apply,
            mtu: setting.args.mtu,
            wal_bytes_max: setting.wal_bytes_max,
            snapshot_every: setting.args.snapshot_every,
        };
        (1..=count as u64).map(config).collect()
    };
    let transport = setting.args.mtu.transport();
    let in_flight_max = usize::try_from(setting.args.in_flight()).unwrap_or(usize::MAX);
    match setting.target {
        TargetSpec::Inproc(count) => Ok(Box::new(Inproc::start(dir, configs(*count))?)),
        #[cfg(not(unix))]
        TargetSpec::Spawn(_) => Err(ClusterError(
            "replicas as processes need a Unix system: use --target inproc:3".to_owned(),
        )),
        #[cfg(unix)]
        TargetSpec::Spawn(count) => {
            let configs = configs(*count);
            let spawned = Spawned::start(dir, configs, transport, in_flight_max)?;
            Ok(Box::new(spawned))
        }
        TargetSpec::Cluster(addresses) => {
            let credentials = credentials.expect("read before, or the run was refused");
            let credentials = credentials.clone();
            let addresses = addresses.clone();
            let remote = Remote::connect(addresses, credentials, transport, in_flight_max)?;
            Ok(Box::new(remote))
        }
    }
}

/// A replica of a `spawn` target.
#[must_use]
pub fn replica(args: &ReplicaArgs) -> Exit {
    let config = match serde_json::from_str(&args.config) {
        Ok(config) => config,
        Err(error) => {
            tell!("error: --config: {error}");
            return Exit::Usage;
        }
    };
    let sockets = match receive_sockets() {
        Ok(sockets) => Some(sockets),
        Err(error) => {
            tell!("error: the sockets that loadgen sends: {error}");
            return Exit::Internal;
        }
    };
    let mut host = EngineHost {
        config,
        sockets,
        node: None,
    };
    let input = std::io::stdin().lock();
    match replica::serve(input, std::io::stdout(), &mut host) {
        // Whoever started it is gone and reads nothing any more: no orderly end is owed to anybody.
        Ended::Abandoned => std::process::exit(0),
        Ended::LivesOn(_lock) => {
            let stop = stop_flag();
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(std::time::Duration::from_millis(200));
            }
            if let Some(node) = host.node {
                node::end(node);
            }
            Exit::Pass
        }
    }
}

#[cfg(unix)]
fn receive_sockets() -> std::io::Result<Sockets> {
    Sockets::receive(std::io::stdin())
}

#[cfg(not(unix))]
fn receive_sockets() -> std::io::Result<Sockets> {
    Err(std::io::ErrorKind::Unsupported.into())
}

struct EngineHost {
    config: ReplicaConfig,
    /// Until it is started.
    sockets: Option<Sockets>,
    node: Option<Node<Kv>>,
}

impl Host for EngineHost {
    fn start(&mut self, members: Vec<(u64, String)>) -> Result<(), String> {
        let sockets = self.sockets.take();
        let sockets = sockets.ok_or_else(|| "it was started before".to_owned())?;
        let node = node::start(&self.config, Some(sockets), &members).map_err(|error| error.0)?;
        self.node = Some(node);
        Ok(())
    }

    fn observe(&self) -> Option<Observation> {
        self.node.as_ref().map(node::observe)
    }

    fn state(&self) -> Option<ReplicaState> {
        self.node.as_ref().map(node::state)
    }
}

/// The name of clusters that loadgen makes.
const CLUSTER: &str = "loadgen";
