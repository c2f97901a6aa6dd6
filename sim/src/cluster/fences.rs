//! What leaders keep of their logs for followers that fetch a snapshot.
//!
//! A leader that was told of a transfer keeps the log beyond that snapshot, and once the follower has it the log beyond
//! what the follower has, until that has caught up. Otherwise the next snapshot's cut makes it fetch once more, and
//! under load so for ever. What was delivered and what cores say after each turn tells where each follower is.

use std::collections::BTreeMap;

use logdrive_raft::io::Role;
use logdrive_raft::message::{Body, Transfer};
use logdrive_raft::{GroupId, Index, Message, Micros, NodeId, Raft, Term};

use crate::coverage::Mark;
use crate::model::Model;
use crate::oracle::{Rule, Violation};

use super::{Checked, Cluster, place};

/// For so long, on the leader's clock, log is owed to a follower of which nothing is heard or that does not get on: a
/// little less than it is kept.
const OWED_US: u64 = 9_500_000;

/// What a leader owes its followers.
#[derive(Debug)]
pub(super) struct Fences {
    /// It leads in this one. What it was told in another counts for nothing.
    term: Term,
    /// What was delivered since its last turn: where each follower's snapshot ends, if its log reaches back to there.
    told: BTreeMap<NodeId, Option<Point>>,
    held: BTreeMap<NodeId, Fence>,
}

/// A place in a log.
#[derive(Clone, Copy, Debug)]
struct Point {
    index: Index,
    /// Bytes of all frames that the log has seen up to here: the same whatever it is cut below.
    end_bytes: u64,
}

/// A follower that fetches a snapshot, or has one and catches up.
#[derive(Clone, Copy, Debug)]
struct Fence {
    /// Where its snapshot ends.
    snapshot: Index,
    /// Whether it has that.
    reached: bool,
    /// What lies beyond this it still needs.
    at: Point,
    /// When it told of its transfer last, or got on.
    heard: Micros,
    /// That log was kept for it which the leader could do without was counted.
    counted: bool,
}

impl Point {
    /// `None` where the log does not reach back that far, or not on to there.
    fn of(core: &Raft, index: Index) -> Option<Self> {
        let last = core.last().index;
        let is_held = core.base().index <= index && index <= last;
        is_held.then(|| Self {
            index,
            end_bytes: core.appended_bytes() - core.bytes_between(index, last),
        })
    }

    /// Bytes of log beyond it, also of those that are cut away by now.
    fn bytes_beyond(self, core: &Raft) -> u64 {
        core.appended_bytes().saturating_sub(self.end_bytes)
    }
}

impl Fences {
    fn new(term: Term) -> Self {
        Self {
            term,
            told: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    /// What was delivered has been taken in, in a turn in which the leader's clock said `local`. A transfer takes the
    /// place of the one before, of whatever snapshot that was.
    fn take_in(&mut self, local: Micros) {
        for (peer, snapshot) in std::mem::take(&mut self.told) {
            let Some(at) = snapshot else {
                // It fetches what would not connect to this log, and begins again.
                self.held.remove(&peer);
                continue;
            };
            let fence = Fence {
                snapshot: at.index,
                reached: false,
                at,
                heard: local,
                counted: false,
            };
            self.held.insert(peer, fence);
        }
    }
}

impl<M: Model> Cluster<'_, M> {
    /// What a follower says of its transfer reaches a node, which takes it in with its next turn.
    pub(super) fn note_told(&mut self, message: &Message) {
        let Body::Transfer(Transfer::Progress(progress)) = &message.body else {
            return;
        };
        let (to, group) = (message.to, message.group);
        let core = self.nodes[place(to)].core(group);
        let Some(core) = core.filter(|core| core.role() == Role::Leader) else {
            return;
        };
        if self.plan.beyond_limit {
            return;
        }
        let (term, snapshot) = (core.term(), Point::of(core, progress.at.index));
        let fences = self.fences.entry((to, group));
        let fences = fences.or_insert_with(|| Fences::new(term));
        fences.told.insert(message.from.id, snapshot);
    }

    /// A process has ended, and with it what it was told.
    pub(super) fn forget_fences(&mut self, id: NodeId) {
        self.fences.retain(|(node, _), _| *node != id);
    }

    /// After a turn of a node: it has cut away nothing that a follower needs next which has told it of its transfer.
    ///
    /// Whoever led in this term when it was told and does so still has led all the time, and knows of the follower
    /// what is known here.
    pub(super) fn check_fences(&mut self, at: usize, id: NodeId, group: GroupId) -> Checked {
        let Some(mut fences) = self.fences.remove(&(id, group)) else {
            return Ok(());
        };
        let node = &self.nodes[at];
        let leads = |core: &&Raft| core.role() == Role::Leader && core.term() == fences.term;
        let core = node.core(group).filter(leads);
        let Some(core) = core.filter(|_| !node.is_halted(group)) else {
            return Ok(());
        };
        let (local, base, peers) = (node.local(self.now), core.base(), core.peers());
        // As the turn ends with looking for what can be cut, this is what it went by.
        let short = node.is_short();
        let keep = self.plan.snapshot.keep_log_bytes;
        let retain = self.plan.snapshot.retain_log_bytes;
        // How far the log would be cut if nobody fetched anything.
        let anchored = core.anchor().index.min(core.commit().index);
        let idle = anchored.min(core.index_before_bytes(keep));
        fences.take_in(local);
        for (peer, mut fence) in std::mem::take(&mut fences.held) {
            let status = peers.iter().find(|status| status.replica.id == peer);
            let Some(status) = status else {
                continue;
            };
            // A match that does not reach the snapshot is of what the follower had before.
            let matched = status.match_index;
            let matched = matched.filter(|index| fence.snapshot <= *index);
            // A leader forgets how far a follower was that it cuts off. That was at least what was known before the
            // turn, so no more log was to be kept for it than is counted here.
            let has = matched.unwrap_or_default().max(fence.at.index);
            let bytes = fence.at.bytes_beyond(core);
            let is_owed = !short && bytes <= retain && local.since(fence.heard) < OWED_US;
            if is_owed && has < base.index {
                let text = format!(
                    "node {id} leads group {group} and cuts its log up to {base}: node {peer} has told it of a snapshot \
                     up to entry {} and needs what lies beyond entry {has}, {bytes} bytes of log, and {retain} are to \
                     be kept for it",
                    fence.snapshot
                );
                return Err(Violation::new(Rule::Retention, text));
            }
            if let Some(index) = matched
                && (!fence.reached || fence.at.index < index)
                && let Some(at) = Point::of(core, index)
            {
                fence.reached = true;
                fence.at = at;
                fence.heard = local;
            }
            let bytes = fence.at.bytes_beyond(core);
            let has_caught_up = fence.reached && bytes <= keep;
            let is_cut_off = fence.at.index < base.index;
            if has_caught_up || is_cut_off || OWED_US <= local.since(fence.heard) {
                continue;
            }
            let is_needed = !short && bytes <= retain && fence.at.index < idle;
            if fence.reached && is_needed && !fence.counted {
                fence.counted = true;
                self.coverage.hit(Mark::KeptLog);
            }
            fences.held.insert(peer, fence);
        }
        if !fences.held.is_empty() {
            self.fences.insert((id, group), fences);
        }
        Ok(())
    }
}
