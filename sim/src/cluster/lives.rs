//! Processes of a cluster: how they start, end and come back, and the connections between them.

use logdrive_raft::{GroupId, Index, NodeId};
use logdrive_shard::PeerInput;

use crate::coverage::Mark;
use crate::disk::Crash;
use crate::model::Model;
use crate::node::{Refusal, Started};
use crate::oracle::{Rule, Violation};

use super::{Checked, Cluster, Down, Due, OPERATOR_US, place};

impl<M: Model> Cluster<'_, M> {
    pub(super) fn start(&mut self, id: NodeId) -> Checked {
        let Some(down) = self.down.remove(&id) else {
            return Ok(());
        };
        if self.healed && !self.core.contains(&id) {
            return Ok(());
        }
        let now = self.now;
        let place = place(id);
        let started = self.nodes[place].start(now, self.model, down.recovery);
        self.read_medium(id);
        self.trace.note(now, 2, [id.0, 0, 0], || {
            format!("node {id} starts: {started:?}")
        });
        match started {
            Started::Running => {
                self.refused.remove(&id);
                for group in (1..=self.plan.groups).map(GroupId) {
                    if let Some(core) = self.nodes[place].core(group) {
                        self.oracle.recovered(id, group, core)?;
                        if core.guard().is_some() {
                            self.coverage.hit(Mark::Guarded);
                        }
                    }
                    self.check_digest(place, group)?;
                }
                self.oracle.came_up(id);
                for other in (1..=self.plan.nodes).map(NodeId) {
                    if other != id {
                        self.connect(id, other);
                    }
                }
                Ok(())
            }
            Started::Killed => {
                self.coverage.hit(Mark::CrashInRecovery);
                self.hit_crash(down.crash);
                self.nodes[place].crash(down.crash);
                self.read_medium(id);
                self.come_back(id, down.crash, 1_000, None);
                Ok(())
            }
            Started::Refused(Refusal { damage, text }) => {
                self.coverage.hit(Mark::RefusedStart);
                let torn = self.nodes[place].medium().counts().blocks_torn > 0;
                let excused = self.damaged.contains(&id) || torn;
                if damage && !excused {
                    let text =
                        format!("node {id} does not start, and nothing it wrote was lost: {text}");
                    return Err(Violation::new(Rule::RefusedStart, text));
                }
                self.refused.insert(id, text.clone());
                if damage {
                    self.lose(id);
                    return Ok(());
                }
                if self.healed {
                    let text = format!("node {id} does not start on a healthy disk: {text}");
                    return Err(Violation::new(Rule::RefusedStart, text));
                }
                self.nodes[place].crash(Crash::Process);
                self.come_back(id, Crash::Process, OPERATOR_US, None);
                Ok(())
            }
            Started::Panicked(text) => Err(Violation::new(
                Rule::Assertion,
                format!("node {id} while it starts: {text}"),
            )),
        }
    }

    /// A node is lost for good: nothing repairs a damaged log. The others have to do without it.
    pub(super) fn lose(&mut self, id: NodeId) {
        let before = self.core.len();
        self.core.retain(|core| *core != id);
        self.lost_in_core |= self.core.len() < before;
        let core = self.core.len() as u64;
        self.justified |= 2 * core <= self.plan.nodes;
        self.excuse_the_unfounded();
    }

    /// All founders have to be there for a group to begin: whoever is lost, or stays away, before the others have begun it
    /// may take it with it.
    pub(super) fn excuse_the_unfounded(&mut self) {
        for id in self.core.clone() {
            self.read_medium(id);
            self.justified |= !self.oracle.has_begun(id);
        }
    }

    pub(super) fn come_back(
        &mut self,
        id: NodeId,
        crash: Crash,
        down_us: u64,
        recovery: Option<u64>,
    ) {
        self.down.insert(id, Down { crash, recovery });
        self.schedule(self.now.after(down_us), Due::Start(id));
    }

    pub(super) fn hit_crash(&mut self, crash: Crash) {
        self.coverage.hit(match crash {
            Crash::Process => Mark::ProcessCrash,
            Crash::Power => Mark::PowerCut,
        });
    }

    pub(super) fn crash(
        &mut self,
        id: NodeId,
        crash: Crash,
        down_us: u64,
        recovery: Option<u64>,
    ) -> Checked {
        if !self.node(id).is_running() {
            // A machine whose process was killed can still lose power.
            if crash == Crash::Power && self.down.contains_key(&id) {
                self.coverage.hit(Mark::KillThenPowerCut);
                self.node(id).crash(crash);
                self.read_medium(id);
            }
            return Ok(());
        }
        self.trace.note(self.now, 3, [id.0, crash as u64, 0], || {
            format!("node {id} stops: {crash:?}")
        });
        self.hit_crash(crash);
        self.node(id).crash(crash);
        self.fetched(id, None);
        self.forget_fences(id);
        self.oracle.stopped(id);
        self.read_medium(id);
        self.come_back(id, crash, down_us, recovery);
        for other in (1..=self.plan.nodes).map(NodeId) {
            if other != id {
                self.disconnect(id, other);
            }
        }
        self.take_answers()
    }

    pub(super) fn read_medium(&mut self, id: NodeId) {
        self.tell_faults(place(id));
        self.oracle.read_medium(id, self.nodes[place(id)].medium());
    }

    /// What a power cut would leave of a node's log goes with what it would leave of its snapshots.
    pub(super) fn check_bases(&mut self, id: NodeId) -> Checked {
        let files = self.nodes[place(id)].files();
        self.oracle
            .check_bases(id, |group| files.durable_reach(group).map(Index))
    }

    pub(super) fn disconnect(&mut self, one: NodeId, other: NodeId) {
        self.note_lost_sources(one, other);
        self.network.disconnect(one, other);
        self.node(one).give(PeerInput::Disconnected(other));
        self.node(other).give(PeerInput::Disconnected(one));
    }

    /// A connection comes up, if both ends are there.
    pub(super) fn connect(&mut self, one: NodeId, other: NodeId) {
        if self.node(one).is_running() && self.node(other).is_running() {
            self.node(one).give(PeerInput::Connected(other));
            self.node(other).give(PeerInput::Connected(one));
        }
    }
}
