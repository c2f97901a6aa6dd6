//! What loadgen and the replicas it starts say to each other, over the pipes between them.
//!
//! One JSON line a question on the replica's standard input, one a reply on its standard output. Before the
//! first question its sockets come the same way. The end of the input means that loadgen is gone, and the replica ends: nothing survives it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::args::{Apply, Mtu, SnapshotEvery, WalBackend};

/// What a replica is told on its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaConfig {
    /// Its number.
    pub node: u64,
    /// The name of the cluster.
    pub cluster: String,
    /// Where its data is.
    pub dir: PathBuf,
    /// Where its certificate is.
    pub tls: PathBuf,
    /// How many groups there are.
    pub groups: u64,
    /// How it reaches its disk.
    pub wal_backend: WalBackend,
    /// Where its machine is applied.
    pub apply: Apply,
    /// The size of its packets.
    pub mtu: Mtu,
    /// The most bytes of its log.
    pub wal_bytes_max: u64,
    /// When it takes snapshots by itself; none: as the engine does.
    pub snapshot_every: Option<SnapshotEvery>,
}

/// A question, numbered so that a late reply is not taken for that to a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its number.
    pub id: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What a replica is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Start with these members and their addresses.
    Start(Vec<(u64, String)>),
    /// How do you stand?
    Observe,
    /// Write what you have applied to this file.
    State(PathBuf),
    /// Live on when the input ends. Hold the lock of this directory.
    LiveOn(PathBuf),
}

/// A reply to the question of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The question.
    pub id: u64,
    /// What it says.
    pub say: Say,
}

/// What a replica says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Say {
    /// It is done.
    Done,
    /// This is how it stands.
    Observed(Observation),
    /// It cannot be done.
    Failed(String),
}

/// How a replica stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Its groups, in the order of their numbers.
    pub groups: Vec<GroupObservation>,
    /// Its log.
    pub wal: WalObservation,
    /// Its snapshots, if it says so much of them.
    pub snapshots: Option<SnapshotObservation>,
    /// What its network could not have.
    pub net_fallbacks: Vec<String>,
    /// What its operator should know.
    pub alarms: Vec<String>,
}

/// How a replica of a group stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupObservation {
    /// Its term.
    pub term: u64,
    /// Whether it leads.
    pub leads: bool,
    /// Who leads, if it knows.
    pub leader: Option<u64>,
    /// The last entry its machine has applied.
    pub applied: u64,
}

/// What a replica's snapshots have come to since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotObservation {
    /// Taken.
    pub taken: u64,
    /// Not taken or fetched.
    pub failed: u64,
    /// Fetched and installed.
    pub installed: u64,
}

/// What a replica's log has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalObservation {
    /// How it reaches its disk.
    pub backend: String,
    /// How it makes writes durable.
    pub flush_mode: String,
    /// Flushes of the device.
    pub flushes: u64,
    /// Flush groups.
    pub groups: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of entries among them.
    pub bytes_payload: u64,
    /// What it could not have.
    pub fallbacks: Vec<String>,
}
