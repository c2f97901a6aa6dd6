//! Queues keep their bounds: measured after turns of a node.

use logdrive_raft::io::Role;
use logdrive_raft::{EntryKind, GroupId, Index, NodeId, Raft};

use crate::coverage::Mark;
use crate::model::Model;
use crate::oracle::{Rule, Violation};
use crate::plan::NodePlan;

use super::{Checked, Cluster, place};

/// How often logs are measured, entry by entry: once in so many turns of a node.
const LOG_TURNS: u64 = 32;

/// And how often windows are: what is on its way does not come and go within a turn.
const WINDOW_TURNS: u64 = 4;

/// What a node may hold at most, in bytes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    applying: u64,
    waiting: u64,
    cached: u64,
    uncommitted: u64,
    window: u64,
    entries: u64,
    /// What one group lets the log queue: its entries, and little of anything else.
    queued: u64,
}

impl Bounds {
    fn new(plan: &NodePlan, slot_bytes: u64) -> Self {
        let frame = slot_bytes / 4;
        // What is not flushed is kept in any case: a leader gives up when it is this much.
        let unflushed = plan.disk_lag_bytes_max
            + plan.uncommitted_bytes_max
            + plan.inflight_bytes_max
            + 2 * frame;
        Self {
            applying: plan.apply_bytes_max,
            // A batch that is larger than all that may wait passes alone.
            waiting: plan.inbox_bytes_max.max(frame + frame / 4),
            cached: plan.cache_bytes_max + unflushed,
            uncommitted: plan.uncommitted_bytes_max + frame,
            window: plan.inflight_bytes_max + frame,
            // What is read back from the disk is asked for before and sent after, so twice the window.
            entries: 2 * plan.inflight_entries_max,
            queued: unflushed + frame,
        }
    }
}

impl<M: Model> Cluster<'_, M> {
    /// Every queue is within its bound.
    pub(super) fn check_bounds(&mut self, at: usize, id: NodeId) -> Checked {
        let bounds = Bounds::new(&self.plan.node, self.plan.disk.slot_bytes);
        if let Some((bytes, last)) = self.nodes[at].apply_queue() {
            if bytes as u64 >= bounds.applying {
                self.coverage.hit(Mark::SlowApply);
            }
            if bytes as u64 > bounds.applying + last as u64 {
                return too_much(id, "wait for the applier", bytes as u64, bounds.applying);
            }
        }
        self.turns[at] += 1;
        let measures = self.turns[at].is_multiple_of(LOG_TURNS);
        let looks = self.turns[at].is_multiple_of(WINDOW_TURNS);
        let node = &self.nodes[at];
        for group in (1..=self.plan.groups).map(GroupId) {
            if let Some(door) = node.door(group) {
                let held = door.permits().held() as u64;
                if held > bounds.waiting {
                    return too_much(id, "of proposals wait", held, bounds.waiting);
                }
            }
            let Some(core) = node.core(group) else {
                continue;
            };
            if looks && core.role() == Role::Leader {
                check_windows(id, core, &bounds)?;
            }
            if measures {
                check_log(id, core, &bounds)?;
            }
        }
        if let Some(status) = measures.then(|| node.status()).flatten() {
            let queued = status.wal.queued_bytes as u64;
            let may = bounds.queued * self.plan.groups;
            if queued > may {
                return too_much(id, "wait for the log", queued, may);
            }
        }
        Ok(())
    }
}

impl<M: Model> Cluster<'_, M> {
    /// A log keeps what snapshots leave to be kept, and no more once nothing happens (I18): what lies beyond the last
    /// one, as far as replicas spread theirs, what is kept for the slow, and for whoever has fetched one lately.
    pub(super) fn check_growth(&self, id: NodeId, group: GroupId) -> Checked {
        let (plan, node) = (&self.plan.snapshot, &self.nodes[place(id)]);
        let Some(core) = node.core(group) else {
            return Ok(());
        };
        // Of files that fail, the next snapshot may be a while away.
        if plan.log_bytes == 0 || node.files().is_harmed() || core.lacks_snapshot() {
            return Ok(());
        }
        let frame = self.plan.disk.slot_bytes / 4;
        let fetched = if self.has_fetched {
            plan.retain_log_bytes
        } else {
            0
        };
        let may = 2 * plan.log_bytes
            + plan.log_bytes / 8
            + plan.keep_log_bytes.max(fetched)
            + self.plan.node.uncommitted_bytes_max
            + 2 * frame;
        let kept = core.bytes_between(core.base().index, core.last().index);
        if kept > may {
            let text = format!(
                "node {id} keeps {kept} bytes of the log of group {group} from {} to {}, at most {may} may be when \
                 nothing happens",
                core.base(),
                core.last()
            );
            return Err(Violation::new(Rule::BoundedGrowth, text));
        }
        Ok(())
    }
}

fn check_windows(id: NodeId, core: &Raft, bounds: &Bounds) -> Checked {
    for peer in core.peers() {
        let inflight = peer.inflight_bytes as u64;
        if inflight > bounds.window {
            return too_much(
                id,
                "are on their way to a follower",
                inflight,
                bounds.window,
            );
        }
        let entries = peer.inflight_entries;
        if entries > bounds.entries {
            let text = format!(
                "node {id}: {entries} entries are on their way to node {}, at most {} may",
                peer.replica.id, bounds.entries
            );
            return Err(Violation::new(Rule::BoundedMemory, text));
        }
    }
    Ok(())
}

fn check_log(id: NodeId, core: &Raft, bounds: &Bounds) -> Checked {
    // Measured, not asked: the newest frames are kept without a gap.
    let newest = (0..=core.last().index.0).rev().map(Index);
    let frames = newest.map_while(|index| core.entry(index));
    let kept: usize = frames.map(|entry| entry.frame().len()).sum();
    if kept as u64 > bounds.cached {
        return too_much(id, "of frames are kept", kept as u64, bounds.cached);
    }
    // What a term begins with may be appended whatever waits; what clients ask for only while all of it is little.
    let newest = core
        .entry(core.last().index)
        .map(|entry| entry.header().kind);
    let takes = core.role() == Role::Leader && newest == Some(EntryKind::Proposals);
    let takes = takes && core.last().term == core.term();
    let uncommitted = core.bytes_between(core.commit().index, core.last().index);
    if takes && uncommitted > bounds.uncommitted {
        return too_much(
            id,
            "are appended and not committed",
            uncommitted,
            bounds.uncommitted,
        );
    }
    Ok(())
}

fn too_much(id: NodeId, what: &str, is: u64, may: u64) -> Checked {
    let text = format!("node {id}: {is} bytes {what}, at most {may} may");
    Err(Violation::new(Rule::BoundedMemory, text))
}
