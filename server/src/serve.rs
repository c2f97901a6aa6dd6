//! `logdrive serve`: a node of the key-value machine, until a signal asks it to end.

use std::net::SocketAddr;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logdrive::units::show_bytes;
use logdrive::{MetricsSnapshot, Node, NodeBuilder, NodeId, StartError, Status, Tls};
use logdrive_net::{Credentials, Role};
use logdrive_shard::kv::Kv;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::args::Serve;
use crate::config::Config;
use crate::config::keys::KEYS;
use crate::exit::{Exit, Failure};
use crate::http::{Http, Watched};
use crate::logging;
use crate::out::Out;
use crate::wal;

/// Runs the command.
pub(crate) fn run(command: &Serve, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let config = Config::load(&command.config, environment());
    let config = config.map_err(|error| Failure::of(Exit::Usage, &error))?;
    let builder = builder(&config)?;
    builder.check().map_err(|error| start_failure(&error))?;
    if command.check {
        let (node, cluster) = (config.node_id, &config.cluster);
        let (file, dir) = (command.config.display(), config.node_dir.display());
        writeln!(
            out,
            "{file} can be used: node {node} of cluster {cluster}, data in {dir}"
        )?;
        for name in ["wal.backend", "wal.flush_mode"] {
            let key = KEYS.iter().find(|key| key.name == name);
            let key = key.expect("a key of the table");
            writeln!(out, "  {name}: {}", (key.show)(&config))?;
        }
        writeln!(out, "  memory: {}", memory(&config))?;
        return Ok(Exit::Pass);
    }
    logging::start(command.log_format, &command.log)?;
    let mut signals = Asked::listen()?;
    let node = builder.start().map_err(|error| start_failure(&error))?;
    let served = Arc::new(Served {
        node,
        draining: AtomicBool::new(false),
    });
    let pages = match config.listen_http {
        Some(address) => Some(start_http(address, &served)?),
        None => None,
    };
    let addresses = Addresses {
        schema: "logdrive.serve/1",
        node: config.node_id,
        cluster: config.cluster.to_string(),
        peer: served.node.peer_address().map(text),
        client: served.node.client_address().map(text),
        http: pages.as_ref().map(|pages| text(pages.address())),
        pid: process::id(),
    };
    let line = serde_json::to_string(&addresses).expect("strings and numbers serialise");
    writeln!(out, "{line}")?;
    out.flush()?;
    let Addresses {
        peer, client, http, ..
    } = addresses;
    let node = config.node_id;
    tracing::info!(event = "serving", node, peer, client, http, "the node runs");

    let signal = signals.wait();
    tracing::info!(event = "stopping", signal, "a signal asks this node to end");
    served.draining.store(true, Ordering::Relaxed);
    served.node.shutdown(DRAIN);
    drop(pages);
    tracing::info!(
        event = "stopped",
        "everything is answered and the log is closed"
    );
    Ok(Exit::Pass)
}

/// What the environment says, as far as it is text.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}

fn builder(config: &Config) -> Result<NodeBuilder<Kv>, Failure> {
    let id = NodeId(config.node_id);
    let credentials = Credentials::load(&config.tls_dir, Role::Peer, id);
    let credentials = credentials.map_err(|error| Failure::of(Exit::Usage, &error))?;
    if credentials.cluster() != &config.cluster {
        let (named, configured) = (credentials.cluster(), &config.cluster);
        let dir = config.tls_dir.display();
        return Err(Failure::usage(format!(
            "the certificate in {dir} is of cluster {named}, this node is configured for cluster \
             {configured}: correct cluster.id or tls.dir"
        )));
    }
    let mut builder = Node::builder(&config.node_dir, |_| Kv::default())
        .id(config.node_id)
        .cluster(config.cluster.to_string())
        .groups(1..=config.groups)
        .members(config.members.iter().cloned())
        .tls(Tls::from(credentials))
        .mtu(config.mtu)
        .limits(config.limits.clone())
        .raft(config.raft.clone())
        .wal(config.wal.clone())
        .snapshots(config.snapshots.clone());
    if let Some(address) = config.listen_peer {
        builder = builder.listen_peer(address);
    }
    if let Some(address) = config.listen_client {
        builder = builder.listen_client(address);
    }
    Ok(builder)
}

/// How much a node with this configuration may hold, and what that depends on.
fn memory(config: &Config) -> String {
    let peers = config.members.len().saturating_sub(1) as u64;
    let most = |clients, entries| {
        let limits = &config.limits;
        limits.memory_bytes_max(config.groups, peers, clients, entries)
    };
    let (one, two) = (most(1, 0), most(2, 0));
    format!(
        "at most {} besides the program and what is kept for its keys, with one client's connection; {} \
         for each further one, {} B for each entry of the log",
        show_bytes(one),
        show_bytes(two - one),
        most(1, 1) - one
    )
}

fn start_http(address: SocketAddr, served: &Arc<Served>) -> Result<Http, Failure> {
    let watched: Arc<dyn Watched> = Arc::<Served>::clone(served);
    Http::start(address, watched).map_err(|error| {
        let failure = Failure::new(Exit::Usage, format!("listen on {address}: {error}"));
        match listen_advice(error.kind()) {
            Some(advice) => failure.advise(advice),
            None => failure,
        }
    })
}

/// How to exit when a node does not start, and what to do about it.
fn start_failure(error: &StartError) -> Failure {
    match error {
        // What a port that cannot be listened on needs, the network layer says.
        StartError::Configuration(_) | StartError::Directory { .. } | StartError::Listen { .. } => {
            Failure::of(Exit::Usage, error)
        }
        StartError::Log { source, .. } => Failure::of(wal::open_exit(source), error),
        _ => Failure::of(Exit::Internal, error),
    }
}

fn listen_advice(kind: std::io::ErrorKind) -> Option<&'static str> {
    match kind {
        std::io::ErrorKind::AddrInUse => Some(
            "the port is in use: stop the process that has it, or choose another one with \
             listen.http",
        ),
        std::io::ErrorKind::AddrNotAvailable => Some(
            "this machine does not have that address: listen on one that it has, or on 0.0.0.0 for \
             all of them",
        ),
        std::io::ErrorKind::PermissionDenied => {
            Some("this user may not listen there: choose a port above 1023")
        }
        _ => None,
    }
}

/// A signal that asks the process to end.
struct Asked {
    signals: Signals,
}

impl Asked {
    /// From here on the signals no longer end the process by themselves; the second one does.
    fn listen() -> Result<Self, Failure> {
        let failed = |error| Failure::new(Exit::Internal, format!("listen for signals: {error}"));
        let asked_before = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            let before = Arc::clone(&asked_before);
            flag::register_conditional_shutdown(signal, INTERRUPTED, before).map_err(failed)?;
            flag::register(signal, Arc::clone(&asked_before)).map_err(failed)?;
        }
        let signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
        Ok(Self { signals })
    }

    fn wait(&mut self) -> i32 {
        self.signals
            .forever()
            .next()
            .expect("nobody closes the iterator")
    }
}

/// The node as HTTP sees it.
struct Served {
    node: Node<Kv>,
    draining: AtomicBool,
}

impl Watched for Served {
    fn status(&self) -> Status {
        self.node.status()
    }

    fn metrics(&self) -> MetricsSnapshot {
        self.node.metrics()
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The line on standard output that says the node runs, and where.
#[derive(Serialize)]
struct Addresses {
    schema: &'static str,
    node: u64,
    cluster: String,
    peer: Option<String>,
    client: Option<String>,
    http: Option<String>,
    pid: u32,
}

fn text(address: SocketAddr) -> String {
    address.to_string()
}

/// How long what is appended may take to be answered once a signal came.
const DRAIN: Duration = Duration::from_secs(5);

/// What a second signal exits with.
const INTERRUPTED: i32 = 130;
