//! The system under load as the run sees it from outside: start, look, kill, restart, compare, leave.

pub mod inproc;
pub mod node;
pub mod protocol;
pub mod remote;
pub mod replica;
pub mod sockets;
#[cfg(unix)]
pub mod spawn;

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::protocol::Observation;
use crate::target::Target;
use crate::verify::ReplicaState;

/// Replicas that a run loads.
pub trait Cluster {
    /// The way in for the load.
    fn target(&self) -> Arc<dyn Target>;

    /// The numbers of the nodes, in order.
    fn nodes(&self) -> Vec<u64>;

    /// How each node stands, in the order of [`Cluster::nodes`]; `None`: it does not say.
    fn observe(&mut self) -> Vec<Option<Observation>>;

    /// How often to look when nothing special is expected.
    fn look_every(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// Processor time of all replicas since they started, those that were killed included.
    fn cpu_ns(&mut self) -> Option<u64>;

    /// The most memory that each node's process held, in the order of [`Cluster::nodes`]; `None`: it has
    /// none of its own, or is elsewhere.
    fn rss_peak_bytes(&mut self) -> Vec<Option<u64>> {
        vec![None; self.nodes().len()]
    }

    /// Kills a node as a crash would.
    fn kill(&mut self, node: u64) -> Result<(), ClusterError>;

    /// Starts a node that was killed. Does not wait until it runs.
    fn start(&mut self, node: u64) -> Result<(), ClusterError>;

    /// What every node has applied, in the order of [`Cluster::nodes`].
    fn states(&mut self) -> Vec<Result<ReplicaState, String>>;

    /// Leaves the replicas running when this value is dropped. Says how to ask for their status and
    /// how to stop them.
    fn leave_running(&mut self) -> Result<String, ClusterError>;
}

/// A replica or the way to it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClusterError(pub String);

/// The leader that the nodes agree on: the one with the highest term that says so itself.
#[must_use]
pub fn leader(nodes: &[u64], observed: &[Option<Observation>], group: usize) -> Option<(u64, u64)> {
    let mut best: Option<(u64, u64)> = None;
    for (node, observation) in nodes.iter().zip(observed) {
        let Some(group) = observation.as_ref().and_then(|o| o.groups.get(group)) else {
            continue;
        };
        if group.leads && best.is_none_or(|(_, term)| group.term > term) {
            best = Some((*node, group.term));
        }
    }
    best
}

/// Whether every node runs and all have applied the same index of every group, at least `through`.
#[must_use]
pub fn agree(observed: &[Option<Observation>], through: &[u64]) -> bool {
    let Some(Some(first)) = observed.first() else {
        return false;
    };
    let applied = |observation: &Observation| -> Vec<u64> {
        observation
            .groups
            .iter()
            .map(|group| group.applied)
            .collect()
    };
    let expected = applied(first);
    let reached = expected.len() == through.len()
        && expected
            .iter()
            .zip(through)
            .all(|(applied, through)| applied >= through);
    let led = (0..through.len()).all(|group| {
        observed.iter().flatten().any(|observation| {
            observation
                .groups
                .get(group)
                .is_some_and(|group| group.leads)
        })
    });
    reached
        && led
        && observed
            .iter()
            .all(|observation| observation.as_ref().is_some_and(|o| applied(o) == expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::protocol::GroupObservation;

    fn observation(term: u64, leads: bool, applied: u64) -> Option<Observation> {
        Some(Observation {
            groups: vec![GroupObservation {
                term,
                leads,
                leader: None,
                applied,
            }],
            ..Observation::default()
        })
    }

    #[test]
    fn of_two_that_say_they_lead_the_later_one_does() {
        let observed = [observation(3, true, 0), None, observation(4, true, 0)];
        assert_eq!(leader(&[1, 2, 3], &observed, 0), Some((3, 4)));
        assert_eq!(leader(&[1, 2, 3], &observed, 1), None);
    }

    #[test]
    fn nodes_agree_when_all_have_applied_the_same_and_enough() {
        let (one, two) = (observation(3, true, 9), observation(3, false, 9));
        assert!(agree(&[one.clone(), two.clone()], &[9]));
        assert!(!agree(&[one.clone(), two.clone()], &[10]));
        assert!(!agree(&[one.clone(), None], &[9]));
        assert!(!agree(&[one, observation(3, false, 8)], &[8]));
        assert!(!agree(&[two.clone(), two], &[9]), "nobody leads");
    }
}
