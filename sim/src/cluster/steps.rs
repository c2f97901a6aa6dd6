//! What the steps of a run do to a cluster.

use logdrive_raft::io::Role;
use logdrive_raft::{GroupId, NodeId};

use crate::coverage::Mark;
use crate::disk::{Crash, Fault, Rot};
use crate::model::Model;
use crate::node::SimNode;
use crate::step::{DiskFault, Step, Target};

use super::transfers::Trap;
use super::{Checked, Cluster, Due, place};

impl<M: Model> Cluster<'_, M> {
    pub(super) fn take_step(&mut self, step: Step) -> Checked {
        match step {
            Step::Call(call) => return self.call(call),
            Step::Crash {
                target,
                crash,
                down_us,
                recovery,
            } => {
                if let Some(id) = self.find(target) {
                    if self.leads_any(id) {
                        self.coverage.hit(Mark::LeaderCrash);
                    }
                    return self.crash(id, crash, down_us, recovery);
                }
            }
            Step::CrashAll { down_us } => {
                self.coverage.hit(Mark::WholeClusterPowerCut);
                for id in (1..=self.plan.nodes).map(NodeId) {
                    self.crash(id, Crash::Power, down_us, None)?;
                }
            }
            Step::Cut { shape, first } => {
                if let Some(first) = self.find(first) {
                    self.network.cut(self.now, shape, first);
                }
            }
            Step::Mend => self.network.mend(self.now),
            Step::Clog { from, to, for_us } => {
                self.network.clog(from, to, self.now.after(for_us));
            }
            Step::Reset {
                one,
                other,
                down_us,
            } => {
                if self.node(one).is_running() && self.node(other).is_running() {
                    self.coverage.hit(Mark::Reset);
                }
                self.disconnect(one, other);
                self.schedule(self.now.after(down_us), Due::Connect(one, other));
            }
            Step::Pause { target, for_us } => {
                if let Some(id) = self.find(target)
                    && self.node(id).is_running()
                {
                    self.coverage.hit(Mark::Pause);
                    let until = self.now.after(for_us);
                    self.node(id).pause(until);
                }
            }
            Step::Stall { target, for_us } => {
                if let Some(id) = self.find(target)
                    && self.node(id).is_running()
                {
                    self.coverage.hit(Mark::Stall);
                    let until = self.now.after(for_us);
                    self.node(id).stall(until);
                }
            }
            Step::Fault { target, fault } => {
                if let Some(id) = self.find(target) {
                    self.inject(id, fault);
                }
            }
            Step::Trap {
                moment,
                crash,
                after,
                down_us,
            } => self.set_trap(Trap {
                moment,
                crash,
                after,
                down_us,
            }),
            Step::Files {
                target,
                fault,
                after,
            } => {
                if let Some(id) = self.find(target) {
                    self.node(id).files().inject(fault, after);
                }
            }
            Step::RotSnapshot { node, finished } => self.rot_snapshot(node, finished),
            Step::Snapshot { target, group } => {
                if let Some(id) = self.find(target) {
                    self.node(id).want_snapshot(group);
                }
            }
            Step::Rot { node, rot } => self.rot(node, rot, false),
            Step::RotTail { node, rot } => self.rot(node, rot, true),
            Step::Wipe { node, down_us } => {
                self.crash(node, Crash::Process, down_us, None)?;
                self.coverage.hit(Mark::Wiped);
                self.oracle.emptied(node);
                self.node(node).medium().wipe();
            }
            Step::Image { node } => {
                let image = self.node(node).medium().image();
                self.images.insert(node, image);
            }
            Step::Restore { node, down_us } => {
                if let Some(image) = self.images.remove(&node) {
                    self.crash(node, Crash::Process, down_us, None)?;
                    self.coverage.hit(Mark::Restored);
                    self.oracle.forget_medium(node);
                    self.oracle.distrust(node);
                    self.node(node).medium().restore(&image);
                }
            }
        }
        Ok(())
    }

    /// A snapshot is received within some milliseconds, so that is waited for.
    pub(super) fn rot_snapshot(&mut self, node: NodeId, finished: bool) {
        const AGAIN_US: u64 = 1_000;
        if self.healed {
            return;
        }
        if self.node(node).files().rot_any(finished) {
            self.coverage.hit(match finished {
                true => Mark::SnapshotRot,
                false => Mark::ReceivingRot,
            });
        } else {
            let again = self.now.after(AGAIN_US);
            self.schedule(again, Due::RotSnapshot { node, finished });
        }
    }

    fn inject(&mut self, id: NodeId, fault: DiskFault) {
        let fault = match fault {
            DiskFault::Read => Fault::ReadError,
            DiskFault::Write => Fault::WriteError,
            DiskFault::ShortWrite => Fault::ShortWrite,
            DiskFault::Flush => Fault::FlushError,
            DiskFault::FlushBack => Fault::FlushReverts,
            DiskFault::ShortRead => Fault::ShortRead,
            DiskFault::FlushLate => Fault::FlushErrorLate,
            DiskFault::Lie => Fault::LyingFlush,
            DiskFault::LostWrite => Fault::LostWrite,
            DiskFault::Misdirect => Fault::MisdirectedWrite,
        };
        if !fault.is_within_limit() && !self.plan.canary {
            self.oracle.distrust(id);
            self.damaged.insert(id);
        }
        self.node(id).inject(fault);
    }

    fn find(&self, target: Target) -> Option<NodeId> {
        match target {
            Target::Node(id) => (1..=self.plan.nodes).contains(&id.0).then_some(id),
            Target::Leader(group) => {
                let leads = |node: &&SimNode<M>| {
                    node.core(group)
                        .is_some_and(|core| core.role() == Role::Leader)
                };
                // Of two that think so, the one of the higher term.
                let leaders = self.nodes.iter().filter(leads);
                let newest = leaders.max_by_key(|node| node.core(group).map(|core| core.term()));
                newest.map(SimNode::id)
            }
        }
    }

    /// Whether every group has formed on every node of the core.
    fn rot(&mut self, node: NodeId, rot: Rot, tail: bool) {
        // A founder that is lost before its group has formed takes the group with it.
        if !self.has_formed() {
            return;
        }
        // What is durable by now is judged by what it was.
        self.read_medium(node);
        let among = tail.then(|| self.oracle.unmarked(node));
        if let Some(block) = self.node(node).medium().rot(rot, among) {
            self.damaged.insert(node);
            self.oracle.rotted(node, block, rot == Rot::Zeros);
        }
    }

    fn has_formed(&self) -> bool {
        let formed = |id: &NodeId| {
            let node = &self.nodes[place(*id)];
            (1..=self.plan.groups).all(|group| node.core(GroupId(group)).is_some())
        };
        self.core.iter().all(formed)
    }

    fn leads_any(&self, id: NodeId) -> bool {
        let node = &self.nodes[place(id)];
        (1..=self.plan.groups).map(GroupId).any(|group| {
            node.core(group)
                .is_some_and(|core| core.role() == Role::Leader)
        })
    }
}
