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
    agree_time: Duration,
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
    while agreed < 2 && began.elapsed() < agree_time && !stop.load(Ordering::Relaxed) {
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
    verified.agreed = agreed >= 2;
    if !verified.agreed {
        let seconds = agree_time.as_secs();
        let finding = format!("the replicas did not agree within {seconds} s");
        verified.findings.push(finding);
    }
    tell!(" verify: took {:.1} s", began.elapsed().as_secs_f64());
    Some(verified)
}

/// How long replicas may take to start, elect and catch up.
pub(super) const AGREE_TIME: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logdrive_shard::kv::KvSummary;

    use super::*;
    use crate::cluster::protocol::Observation;
    use crate::target::Target;
    use crate::verify::{Acked, GroupState, ReplicaState};
    use crate::workload::Workload;

    /// Replicas that hold the same and never elect anybody.
    struct Leaderless;

    impl Cluster for Leaderless {
        fn target(&self) -> Arc<dyn Target> {
            unreachable!("nothing is loaded")
        }

        fn nodes(&self) -> Vec<u64> {
            vec![1, 2, 3]
        }

        fn observe(&mut self) -> Vec<Option<Observation>> {
            vec![Some(Observation::default()); 3]
        }

        fn cpu_ns(&mut self) -> Option<u64> {
            None
        }

        fn kill(&mut self, _: u64) -> Result<(), ClusterError> {
            Ok(())
        }

        fn start(&mut self, _: u64) -> Result<(), ClusterError> {
            Ok(())
        }

        fn states(&mut self) -> Vec<Result<ReplicaState, String>> {
            let group = GroupState {
                summary: KvSummary::default(),
                clients: Default::default(),
            };
            let state = |node| ReplicaState {
                node,
                groups: vec![group.clone()],
            };
            (1..=3).map(|node| Ok(state(node))).collect()
        }

        fn leave_running(&mut self) -> Result<String, ClusterError> {
            Ok(String::new())
        }
    }

    #[test]
    fn replicas_that_hold_everything_and_never_agree_are_told_from_those_that_do() {
        let loaded = Loaded {
            answered: 0,
            acked: Acked::new(true),
            reordered: 0,
            workload: Workload::new(1, 32, 50, 1, "put=1".parse().unwrap(), true, 1),
            acked_through: vec![0],
            seconds: Vec::new(),
        };
        let stop = AtomicBool::new(false);
        let verified = verify_all(&mut Leaderless, &loaded, Duration::ZERO, &stop).unwrap();
        assert!(verified.is_clean() && !verified.agreed, "{verified:?}");
        assert!(verified.findings[0].starts_with("the replicas did not agree"));
    }
}
