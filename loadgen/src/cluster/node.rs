//! One replica as the engine runs it, set up from what loadgen knows.

use std::path::Path;
use std::time::Duration;

use logdrive::{ApplyOn, Mtu as EngineMtu, Node, SnapshotSettings, Status, Tls, WalSettings};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{ClusterName, Role};
use logdrive_raft::NodeId;
use logdrive_shard::kv::Kv;

use super::ClusterError;
use super::protocol::{
    GroupObservation, Observation, ReplicaConfig, SnapshotObservation, WalObservation,
};
use super::sockets::Sockets;
use crate::args::{Apply, Mtu, SnapshotEvery, WalBackend};
use crate::verify::{GroupState, ReplicaState};

/// Starts a replica. One without sockets listens nowhere.
pub fn start(
    config: &ReplicaConfig,
    sockets: Option<Sockets>,
    members: &[(u64, String)],
) -> Result<Node<Kv>, ClusterError> {
    let failed = |error: &dyn std::error::Error| {
        let text = crate::run::source_chain(error);
        ClusterError(format!("node {}: {text}", config.node))
    };
    let mut wal = WalSettings::default();
    wal.bytes_max = config.wal_bytes_max;
    wal.backend = match config.wal_backend {
        WalBackend::Auto => logdrive::WalBackend::Auto,
        WalBackend::IoUring => logdrive::WalBackend::IoUring,
        WalBackend::Pwrite => logdrive::WalBackend::Pwrite,
    };
    let mut snapshots = SnapshotSettings::default();
    match config.snapshot_every {
        None => {}
        Some(SnapshotEvery::Bytes(bytes)) => snapshots.log_bytes = bytes,
        Some(SnapshotEvery::Never) => snapshots = SnapshotSettings::manual(),
    }
    let mut builder = Node::builder(&config.dir, |_| Kv::default())
        .id(config.node)
        .cluster(config.cluster.clone())
        .groups(1..=config.groups)
        .members(members.to_vec())
        .wal(wal)
        .snapshots(snapshots)
        .mtu(match config.mtu {
            Mtu::Loopback => EngineMtu::Loopback,
            Mtu::Ethernet => EngineMtu::Ethernet,
            Mtu::Jumbo => EngineMtu::Jumbo,
        })
        .apply_on(match config.apply {
            Apply::Inline => ApplyOn::ShardThread,
            Apply::Thread => ApplyOn::Thread,
        });
    if let Some(sockets) = sockets {
        sockets.drain().map_err(|error| failed(&error))?;
        let tls = Tls::dir(&config.tls, config.node).map_err(|error| failed(&error))?;
        builder = builder.tls(tls).listen_peer_on(sockets.peer);
        if let Some(client) = sockets.client {
            builder = builder.listen_client_on(client);
        }
    }
    builder.start().map_err(|error| failed(&error))
}

/// How a replica stands.
#[must_use]
pub fn observe(node: &Node<Kv>) -> Observation {
    let status: Status = node.status();
    let metrics = node.metrics();
    let group = |group: &logdrive::status::GroupLine| GroupObservation {
        term: group.term,
        leads: group.role == "leader",
        leader: group.leader,
        applied: group.applied,
    };
    let wal = &status.wal;
    Observation {
        groups: status.groups.iter().map(group).collect(),
        wal: WalObservation {
            backend: wal.backend.clone(),
            flush_mode: wal.flush_mode.clone(),
            flushes: wal.flushes,
            groups: wal.flush_groups,
            bytes_written: wal.bytes_written,
            bytes_payload: wal.bytes_payload,
            fallbacks: wal.fallbacks.clone(),
        },
        snapshots: Some(SnapshotObservation {
            taken: metrics.snapshots,
            failed: metrics.snapshots_failed,
            installed: metrics.snapshots_installed,
        }),
        net_fallbacks: status.net.fallbacks.clone(),
        alarms: status
            .alarms
            .iter()
            .map(|alarm| alarm.text.clone())
            .collect(),
    }
}

/// What a replica has applied.
#[must_use]
pub fn state(node: &Node<Kv>) -> ReplicaState {
    ReplicaState {
        node: node.replica().id.0,
        groups: node
            .groups()
            .map(|group| GroupState::of(group.reader()))
            .collect(),
    }
}

/// Ends a replica at once: what waits is told so.
pub fn end(node: Node<Kv>) {
    node.shutdown(Duration::ZERO);
}

/// Makes an authority for a cluster of this machine, and what each replica and the clients need of it.
pub fn make_certificates(dir: &Path, cluster: &str, nodes: &[u64]) -> Result<(), ClusterError> {
    let failed = |error: &dyn std::error::Error| {
        let text = crate::run::source_chain(error);
        ClusterError(format!("certificates in {}: {text}", dir.display()))
    };
    let name: ClusterName = cluster.parse().map_err(|error| failed(&error))?;
    let authority = Authority::init(dir, name).map_err(|error| failed(&error))?;
    let issue = |role, id| {
        let request = IssueRequest::new(role, NodeId(id), CERTIFICATE_DAYS);
        authority.issue_into(dir, &request).map(drop)
    };
    for node in nodes {
        issue(Role::Peer, *node).map_err(|error| failed(&error))?;
    }
    issue(Role::Client, 1).map_err(|error| failed(&error))
}

const CERTIFICATE_DAYS: u32 = 7;
