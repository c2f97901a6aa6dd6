//! Snapshots on their way between nodes, and moments of their lives at which somebody stops.

use logdrive_raft::message::{Body, Part, Transfer};
use logdrive_raft::{GroupId, Index, Message, NodeId};

use crate::coverage::Mark;
use crate::disk::Crash;
use crate::model::Model;
use crate::step::Moment;

use super::{Checked, Cluster};

/// Somebody is to stop at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trap {
    pub(super) moment: Moment,
    pub(super) crash: Crash,
    pub(super) after: u64,
    pub(super) down_us: u64,
}

/// What a node fetches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetching {
    source: Option<NodeId>,
    at: Index,
}

impl<M: Model> Cluster<'_, M> {
    pub(super) fn set_trap(&mut self, trap: Trap) {
        self.traps.push(trap);
        self.arm_traps();
    }

    /// Nobody stops by itself any more.
    pub(super) fn clear_traps(&mut self) {
        self.traps.clear();
        self.arm_traps();
    }

    /// Of those within a job of the store the first is what every node waits for.
    fn arm_traps(&mut self) {
        let first = self.traps.iter().find(|trap| trap.moment.is_job());
        let armed = first.map(|trap| (trap.moment, trap.after, trap.crash));
        for node in &mut self.nodes {
            node.set_trap(armed);
        }
    }

    /// A node has come to this moment: it stops if that was wanted.
    pub(super) fn meet(&mut self, id: NodeId, moment: Moment) -> Checked {
        let found = self.traps.iter().position(|trap| trap.moment == moment);
        let Some(found) = found.filter(|_| self.node(id).is_running()) else {
            return Ok(());
        };
        let trap = self.traps.remove(found);
        self.arm_traps();
        self.coverage.hit(moment.mark());
        self.trace.note(self.now, 14, [id.0, moment as u64, 0], || {
            format!("node {id} has come to a moment at which it stops: {moment:?}")
        });
        self.crash(id, trap.crash, trap.down_us, None)
    }

    /// The moments at which a node is after a turn in which it said these things.
    pub(super) fn moments_of(&mut self, at: usize, sent: &[Message]) -> Vec<Moment> {
        if self.traps.is_empty() {
            return Vec::new();
        }
        let says = |wanted: fn(&Transfer) -> bool| {
            let mut sent = sent.iter();
            sent.any(|message| matches!(&message.body, Body::Transfer(said) if wanted(said)))
        };
        let node = &mut self.nodes[at];
        let following = node.is_following();
        let basing = (1..=self.plan.groups).map(GroupId).any(|group| {
            node.core(group)
                .is_some_and(logdrive_raft::Raft::is_installing)
        });
        let chunk = |said: &Transfer| {
            let Transfer::Fetch { part, .. } = said else {
                return false;
            };
            matches!(part, Part::Chunk { .. })
        };
        let moments = [
            (
                Moment::Sending,
                says(|said| matches!(said, Transfer::Part { .. })),
            ),
            (Moment::Fetching, says(chunk)),
            (Moment::Basing, basing),
            (Moment::Following, following),
        ];
        let met = moments
            .into_iter()
            .filter_map(|(moment, is)| is.then_some(moment));
        met.collect()
    }

    /// Takes note of who fetches what from whom.
    pub(super) fn note_transfer(&mut self, message: &Message) {
        let Body::Transfer(transfer) = &message.body else {
            return;
        };
        let key = (message.from.id, message.group);
        match transfer {
            Transfer::Progress(progress) => {
                let at = progress.at.index;
                self.has_fetched = true;
                let others = self.fetches.keys();
                let mut others = others.filter(|(node, group)| *group == key.1 && *node != key.0);
                if !self.fetches.contains_key(&key) && others.next().is_some() {
                    self.coverage.hit(Mark::TwoFetch);
                }
                let fetching = self.fetches.entry(key);
                fetching.or_insert(Fetching { source: None, at }).at = at;
            }
            Transfer::Fetch { .. } => {
                if let Some(fetching) = self.fetches.get_mut(&key) {
                    fetching.source = Some(message.to);
                }
            }
            Transfer::Query { least } => {
                if let Some(before) = self.fetches.remove(&key)
                    && before.at < *least
                {
                    self.coverage.hit(Mark::Outrun);
                }
            }
            _ => {}
        }
    }

    /// A node fetches nothing any more, of one group or of any.
    pub(super) fn fetched(&mut self, id: NodeId, of: Option<GroupId>) {
        self.fetches
            .retain(|(node, group), _| *node != id || of.is_some_and(|of| of != *group));
    }

    /// The way between two nodes is gone.
    pub(super) fn note_lost_sources(&mut self, one: NodeId, other: NodeId) {
        for ((node, _), fetching) in &mut self.fetches {
            let lost = [(one, other), (other, one)]
                .iter()
                .any(|(to, from)| node == to && fetching.source == Some(*from));
            if lost {
                fetching.source = None;
                self.coverage.hit(Mark::SourceLost);
            }
        }
    }
}
