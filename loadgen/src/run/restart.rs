//! Everything killed, started again, and compared with what was acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::load::Loaded;
use crate::cluster::{self, Cluster, ClusterError};
use crate::say::tell;
use crate::verify::{self, Verified};

/// Kills all replicas, starts them again and compares what they hold with what was acknowledged. `None`: it
/// was interrupted before they had caught up, and what they lack then proves nothing.
pub(super) fn verify_all(
    cluster: &mut dyn Cluster,
    loaded: &Loaded,
    stop: &AtomicBool,
) -> Option<Verified> {
    tell!(" verify: killing and restarting every replica");
    let nodes = cluster.nodes();
    let mut problems = Vec::new();
    for node in &nodes {
        problems.extend(cluster.kill(*node).err());
    }
    for node in &nodes {
        problems.extend(cluster.start(*node).err());
    }
    let began = Instant::now();
    let mut agreed = 0;
    while agreed < 2 && began.elapsed() < AGREE_TIME && !stop.load(Ordering::Relaxed) {
        let observed = cluster.observe();
        agreed = if cluster::agree(&observed, &loaded.acked_through) {
            agreed + 1
        } else {
            0
        };
        std::thread::sleep(Duration::from_millis(50));
    }
    if agreed < 2 && stop.load(Ordering::Relaxed) {
        return None;
    }
    let mut states = Vec::new();
    for (node, state) in nodes.iter().zip(cluster.states()) {
        match state {
            Ok(state) => states.push(state),
            Err(why) => problems.push(ClusterError(format!(
                "node {node} did not come back: {why}"
            ))),
        }
    }
    let mut verified = verify::compare(&loaded.acked, loaded.reordered, &loaded.workload, &states);
    // A replica that cannot be asked does not hold what was acknowledged, as far as anybody can tell.
    for problem in problems {
        verified.lost += 1;
        verified.findings.push(problem.to_string());
    }
    if agreed < 2 {
        let seconds = AGREE_TIME.as_secs();
        let finding = format!("the replicas did not agree within {seconds} s");
        verified.findings.push(finding);
    }
    tell!(" verify: took {:.1} s", began.elapsed().as_secs_f64());
    Some(verified)
}

const AGREE_TIME: Duration = Duration::from_secs(20);
