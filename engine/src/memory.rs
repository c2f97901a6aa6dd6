//! What a node holds in memory, by owner.
//!
//! Every line is counted where the bytes are held, not derived from a bound. A frame that several hold is one
//! allocation and stands at each of them, so the sum says too much rather than too little. What QUIC keeps in
//! its own windows cannot be counted from outside; it is in the bound of the whole.

use logdrive_net::{ClientMemory, PeerMemory};
use logdrive_raft::limits::FRAME_BYTES_MAX;
use logdrive_shard::{FETCH_BYTES_MAX, REPAIR_BYTES_MAX, ShardStatus};
use serde::Serialize;

use crate::settings::Limits;

/// What one owner holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryLine {
    /// Who.
    pub owner: &'static str,
    /// Bytes now.
    pub bytes: u64,
    /// The most of them; none for what grows with the log or follows from what is in flight to the disk.
    pub bytes_max: Option<u64>,
}

/// What the network holds, copied on its thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetMemory {
    pub(crate) peers: Option<PeerMemory>,
    pub(crate) clients: Option<ClientMemory>,
}

/// What waits for the threads beside the shard's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ThreadBytes {
    /// Committed entries that wait for the machines.
    pub(crate) apply: usize,
    /// The most of them.
    pub(crate) apply_max: usize,
    /// Parts of snapshots that wait to be stored.
    pub(crate) snapshots: usize,
}

/// All owners, always the same ones in the same order.
pub(crate) fn lines(
    shard: &ShardStatus,
    net: &NetMemory,
    threads: ThreadBytes,
    limits: &Limits,
) -> Vec<MemoryLine> {
    let line = |owner, bytes: usize, bytes_max: Option<usize>| MemoryLine {
        owner,
        bytes: bytes as u64,
        bytes_max: bytes_max.map(|bytes| bytes as u64),
    };
    let groups = &shard.groups;
    let sum = |of: fn(&logdrive_shard::GroupStatus) -> usize| groups.iter().map(of).sum::<usize>();
    let cache_bytes_max = limits.cache_bytes_max + limits.uncommitted_bytes_max;
    let in_flight = groups.iter().flat_map(|group| &group.peers);
    let in_flight = in_flight.map(|peer| peer.inflight_bytes).sum();
    let peers = net.peers.clone().unwrap_or_default();
    let clients = net.clients.clone().unwrap_or_default();
    let peer_count = peers.send_queues.len();
    vec![
        line(
            "proposals",
            sum(|group| group.proposals_bytes),
            Some(sum(|group| group.proposals_bytes_max)),
        ),
        line(
            "entries",
            sum(|group| group.cache_bytes),
            Some(groups.len() * cache_bytes_max),
        ),
        line(
            "read_back",
            sum(|group| group.read_back_bytes),
            Some(groups.len() * FRAME_BYTES_MAX),
        ),
        line("apply", threads.apply, Some(threads.apply_max)),
        line(
            "snapshot_parts",
            threads.snapshots,
            Some((groups.len() + 1) * FETCH_BYTES_MAX),
        ),
        line(
            "repair",
            sum(|group| group.repair_bytes),
            Some(REPAIR_BYTES_MAX),
        ),
        line(
            "log_queue",
            shard.wal.queued_bytes,
            Some(limits.inbox_bytes_max + groups.len() * limits.uncommitted_bytes_max),
        ),
        line("log_buffers", shard.wal.buffers_bytes, None),
        line(
            "log_rows",
            shard.wal.rows_bytes + sum(|group| group.rows_bytes),
            None,
        ),
        line(
            "peer_windows",
            in_flight,
            Some(groups.len() * peer_count * limits.inflight_bytes_max),
        ),
        line(
            "peer_queues",
            peers.send_queues.iter().map(|(_, bytes)| bytes).sum(),
            Some(peer_count * peers.send_queue_bytes_max),
        ),
        line(
            "peer_received",
            peers.received_bytes + peers.reading_bytes,
            Some(peers.received_bytes_max + peer_count * peers.reading_bytes_max),
        ),
        line(
            "client_requests",
            clients.requests_bytes + clients.reading_bytes,
            Some(clients.requests_bytes_max + clients.connections * clients.reading_bytes_max),
        ),
        line(
            "client_answers",
            clients.responses_bytes,
            Some(clients.connections * clients.responses_bytes_max),
        ),
    ]
}
