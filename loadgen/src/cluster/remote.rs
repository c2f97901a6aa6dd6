//! Replicas that run elsewhere: they can be asked, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use logdrive_net::client::{self, ClientOptions};
use logdrive_net::{Credentials, TransportSettings};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::protocol::{GroupObservation, Observation, WalObservation};
use super::{Cluster, ClusterError};
use crate::run::source_chain;
use crate::target::Target;
use crate::target::remote::RemoteTarget;
use crate::verify::ReplicaState;

/// Replicas that run elsewhere.
#[derive(Debug)]
pub struct Remote {
    runtime: Runtime,
    addresses: Vec<String>,
    credentials: Arc<Credentials>,
    transport: TransportSettings,
    in_flight_max: usize,
    nodes: Vec<u64>,
}

impl Remote {
    /// Asks every address who is there. At least one must answer.
    pub fn connect(
        addresses: Vec<String>,
        credentials: Credentials,
        transport: TransportSettings,
        in_flight_max: usize,
    ) -> Result<Self, ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ClusterError(source_chain(&error)))?;
        let mut this = Self {
            runtime,
            nodes: Vec::new(),
            credentials: Arc::new(credentials),
            addresses,
            transport,
            in_flight_max,
        };
        let answers = this.ask();
        if answers.iter().all(Result::is_err) {
            let why: Vec<String> = answers.into_iter().filter_map(Result::err).collect();
            return Err(ClusterError(why.join("; ")));
        }
        // One that does not answer now is known by its place until it does.
        let number = |(place, answer): (usize, &Result<Value, String>)| {
            let number = answer
                .as_ref()
                .ok()
                .and_then(|status| status["node"].as_u64());
            number.unwrap_or(place as u64 + 1)
        };
        this.nodes = answers.iter().enumerate().map(number).collect();
        Ok(this)
    }

    fn ask(&self) -> Vec<Result<Value, String>> {
        let ask = |address: String| {
            let credentials = Arc::clone(&self.credentials);
            let mut options = ClientOptions::default();
            options.transport = self.transport;
            async move {
                let status = client::status(&address, &credentials, options);
                let json = tokio::time::timeout(STATUS_TIME, status).await;
                let json = json
                    .map_err(|_| format!("{address} does not answer"))?
                    .map_err(|error| source_chain(&error))?;
                serde_json::from_slice(&json).map_err(|error| format!("{address}: {error}"))
            }
        };
        self.runtime.block_on(async {
            let asked: Vec<_> = self
                .addresses
                .iter()
                .map(|address| tokio::spawn(ask(address.clone())))
                .collect();
            let mut answers = Vec::new();
            for answer in asked {
                answers.push(answer.await.unwrap_or_else(|error| Err(error.to_string())));
            }
            answers
        })
    }
}

impl Cluster for Remote {
    fn target(&self) -> Arc<dyn Target> {
        Arc::new(RemoteTarget {
            addresses: self.addresses.clone(),
            credentials: Arc::clone(&self.credentials),
            transport: self.transport,
            in_flight_max: self.in_flight_max,
        })
    }

    fn nodes(&self) -> Vec<u64> {
        self.nodes.clone()
    }

    fn observe(&mut self) -> Vec<Option<Observation>> {
        let answers = self.ask();
        answers
            .into_iter()
            .map(|answer| answer.ok().map(|status| observation(&status)))
            .collect()
    }

    fn look_every(&self) -> Duration {
        // Each look is a connection of its own.
        Duration::from_secs(1)
    }

    fn cpu_ns(&mut self) -> Option<u64> {
        None
    }

    fn kill(&mut self, _: u64) -> Result<(), ClusterError> {
        Err(not_ours())
    }

    fn start(&mut self, _: u64) -> Result<(), ClusterError> {
        Err(not_ours())
    }

    fn states(&mut self) -> Vec<Result<ReplicaState, String>> {
        self.nodes.iter().map(|_| Err(not_ours().0)).collect()
    }

    fn leave_running(&mut self) -> Result<String, ClusterError> {
        Err(not_ours())
    }
}

fn not_ours() -> ClusterError {
    ClusterError("the replicas of --target cluster are not loadgen's to touch".to_owned())
}

/// What `logdrive.status/1` says, as far as a run wants to know.
fn observation(status: &Value) -> Observation {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let group = |group: &Value| GroupObservation {
        term: number(&group["term"]),
        leads: group["role"] == "leader",
        leader: group["leader"].as_u64(),
        applied: number(&group["applied"]),
    };
    let wal = &status["wal"];
    Observation {
        groups: list(&status["groups"]).iter().map(group).collect(),
        wal: WalObservation {
            backend: text(&wal["backend"]),
            flush_mode: text(&wal["flush_mode"]),
            flushes: number(&wal["flushes"]),
            groups: number(&wal["flush_groups"]),
            bytes_written: number(&wal["bytes_written"]),
            bytes_payload: number(&wal["bytes_payload"]),
            fallbacks: list(&wal["fallbacks"]).iter().map(text).collect(),
        },
        snapshots: None,
        net_fallbacks: list(&status["net"]["fallbacks"]).iter().map(text).collect(),
        alarms: list(&status["alarms"])
            .iter()
            .map(|alarm| text(&alarm["text"]))
            .collect(),
    }
}

const STATUS_TIME: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_and_what_it_lacks_is_nothing() {
        let status = serde_json::json!({
            "node": 2,
            "groups": [{"group": 1, "role": "leader", "term": 4, "leader": 2, "applied": 9}],
            "wal": {"backend": "io_uring", "flush_mode": "dsync", "fallbacks": ["slow"], "flushes": 7},
            "net": {"fallbacks": ["small"]},
        });
        let seen = observation(&status);
        assert!(seen.groups[0].leads && seen.groups[0].applied == 9);
        assert_eq!(
            (seen.wal.flush_mode.as_str(), seen.wal.flushes),
            ("dsync", 7)
        );
        assert_eq!(seen.wal.fallbacks, ["slow"]);
        assert_eq!(seen.net_fallbacks, ["small"]);
        assert_eq!(observation(&Value::Null), Observation::default());
    }
}
