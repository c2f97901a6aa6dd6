//! Replicas inside this process: real logs, and real QUIC between them if there are several.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, RwLock};

use logdrive::Node;
use logdrive_shard::kv::Kv;

use super::protocol::{Observation, ReplicaConfig};
use super::sockets::Sockets;
use super::{Cluster, ClusterError, node};
use crate::machine;
use crate::target::Target;
use crate::target::engine::{Doors, EngineTarget};
use crate::verify::ReplicaState;

/// Replicas inside this process.
#[derive(Debug)]
pub struct Inproc {
    configs: Vec<ReplicaConfig>,
    /// Held also while a node is down. None if it is alone.
    sockets: BTreeMap<u64, Sockets>,
    members: Vec<(u64, String)>,
    nodes: BTreeMap<u64, Node<Kv>>,
    doors: Arc<RwLock<Doors>>,
}

impl Inproc {
    /// Starts replicas and waits until all of them run.
    pub fn start(dir: &Path, configs: Vec<ReplicaConfig>) -> Result<Self, ClusterError> {
        let failed = |error: std::io::Error| ClusterError(format!("take a free port: {error}"));
        let (mut members, mut sockets) = (Vec::new(), BTreeMap::new());
        if configs.len() > 1 {
            let numbers: Vec<u64> = configs.iter().map(|config| config.node).collect();
            node::make_certificates(&dir.join("tls"), &configs[0].cluster, &numbers)?;
            for node in numbers {
                // The load comes in by calls, not by connections.
                let bound = Sockets::bind(false).map_err(failed)?;
                let address = bound.peer.local_addr().map_err(failed)?;
                members.push((node, address.to_string()));
                sockets.insert(node, bound);
            }
        }
        let mut this = Self {
            nodes: BTreeMap::new(),
            doors: Arc::default(),
            configs,
            sockets,
            members,
        };
        let numbers = this.nodes();
        for number in numbers {
            Cluster::start(&mut this, number)?;
        }
        Ok(this)
    }

    fn config(&self, number: u64) -> Result<&ReplicaConfig, ClusterError> {
        let found = self.configs.iter().find(|config| config.node == number);
        found.ok_or_else(|| ClusterError(format!("there is no node {number}")))
    }
}

impl Cluster for Inproc {
    fn target(&self) -> Arc<dyn Target> {
        Arc::new(EngineTarget::new(Arc::clone(&self.doors)))
    }

    fn nodes(&self) -> Vec<u64> {
        self.configs.iter().map(|config| config.node).collect()
    }

    fn observe(&mut self) -> Vec<Option<Observation>> {
        self.nodes()
            .iter()
            .map(|number| self.nodes.get(number).map(node::observe))
            .collect()
    }

    fn cpu_ns(&mut self) -> Option<u64> {
        // All threads but those that make the load and the one that watches it.
        machine::threads_cpu_ns(|name| name.starts_with("logdrive"))
    }

    fn kill(&mut self, number: u64) -> Result<(), ClusterError> {
        self.config(number)?;
        Doors::close(&self.doors, number);
        if let Some(node) = self.nodes.remove(&number) {
            node::end(node);
        }
        Ok(())
    }

    fn start(&mut self, number: u64) -> Result<(), ClusterError> {
        let sockets = self.sockets.get(&number).map(Sockets::try_clone);
        let sockets = sockets
            .transpose()
            .map_err(|error| ClusterError(format!("node {number}: {error}")))?;
        let node = node::start(self.config(number)?, sockets, &self.members)?;
        let groups = node.groups().cloned().collect();
        Doors::open(&self.doors, number, groups);
        self.nodes.insert(number, node);
        Ok(())
    }

    fn states(&mut self) -> Vec<Result<ReplicaState, String>> {
        let state = |number: &u64| {
            let node = self.nodes.get(number);
            node.map(node::state)
                .ok_or_else(|| "not running".to_owned())
        };
        self.nodes().iter().map(state).collect()
    }

    fn leave_running(&mut self) -> Result<String, ClusterError> {
        Err(ClusterError(
            "replicas inside this process end with it".to_owned(),
        ))
    }
}
