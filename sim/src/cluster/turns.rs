//! What a cluster does by itself: messages arrive, nodes take their turns and apply, and the oracle looks on.

use logdrive_raft::{EntryKind, GroupId, Index, LogPosition, Message, NodeId};
use logdrive_shard::{Notice, PeerInput};

use crate::coverage::Mark;
use crate::disk::Crash;
use crate::history::Applied;
use crate::model::Model;
use crate::network::Arrival;
use crate::node::{Done, TurnEnded};
use crate::oracle::{Rule, Violation};
use crate::step::Moment;
use crate::trace::Trace;

use super::{Checked, Cluster, Due, OPERATOR_US, place};

impl<M: Model> Cluster<'_, M> {
    pub(super) fn deliver_due(&mut self) {
        let mut told = std::mem::take(&mut self.told_others);
        while let Some(arrival) = self.network.arrive(self.now, &mut self.coverage, &mut told) {
            for (id, input) in told.drain(..) {
                self.node(id).give(input);
            }
            let message = match arrival {
                Arrival::Message(message) => message,
                Arrival::Lost(message, why) => {
                    self.tell_lost(&message, why);
                    continue;
                }
            };
            let (from, to) = (message.from.id, message.to);
            if !self.node(to).is_running() {
                continue;
            }
            let words = [from.0 << 32 | to.0, message.term.0, Trace::digest(&message)];
            self.trace.event(self.now, 4, words, || {
                format!("{from}>{to} {}", Trace::message(&message))
            });
            let local = self.nodes[place(to)].local(self.now);
            self.oracle.hears(to, &message, local);
            self.note_told(&message);
            self.node(to).give(PeerInput::Message(message));
        }
        self.told_others = told;
    }

    pub(super) fn nodes_due(&mut self) -> Checked {
        for at in 0..self.nodes.len() {
            if self.nodes[at].next_due().is_none_or(|due| self.now < due) {
                continue;
            }
            let id = self.nodes[at].id();
            while let Some(done) = self.nodes[at].take_done(self.now) {
                match done {
                    Done::Batch(batch) => self.apply(at, batch)?,
                    Done::Installed(group, position) => self.installed(at, group, position)?,
                }
            }
            if self.nodes[at].turn_is_due(self.now) {
                self.turn(at, id)?;
            }
            self.take_answers()?;
        }
        Ok(())
    }

    pub(super) fn turn(&mut self, at: usize, id: NodeId) -> Checked {
        let mut sent = std::mem::take(&mut self.sent);
        let timer = self.nodes[at].waits_for_timer();
        let done = self.nodes[at].turn(self.now, &mut sent);
        let completions = self.nodes[at].medium().completions();
        let new = completions - self.completions[at];
        self.completions[at] = completions;
        let events = new + u64::from(timer && !sent.is_empty());
        self.trace.count(self.now, id.0, events);
        match done {
            Ok(()) => {}
            // Nothing of that turn has left the machine, but some of it may lie on the disk.
            Err(TurnEnded::Killed) => {
                sent.clear();
                self.sent = sent;
                self.look(at, id)?;
                return self.crash(id, Crash::Process, 10_000, None);
            }
            // Nothing of it has begun.
            Err(TurnEnded::Stopped(moment, _)) => {
                sent.clear();
                self.sent = sent;
                return self.meet(id, moment);
            }
            Err(TurnEnded::Panicked(text)) => {
                let text = format!("node {id}: {text}");
                return Err(Violation::new(Rule::Assertion, text));
            }
        }
        self.look(at, id)?;
        let local = self.nodes[at].local(self.now);
        let mut told = std::mem::take(&mut self.told);
        let moments = self.moments_of(at, &sent);
        for message in sent.drain(..) {
            self.oracle.sent(id, &message, local)?;
            self.note_transfer(&message);
            let lost = self
                .network
                .send(self.now, message, &mut self.coverage, &mut told);
            if let Some((message, why)) = lost {
                self.tell_lost(&message, why);
            }
        }
        for input in told.drain(..) {
            self.nodes[at].give(input);
        }
        self.told = told;
        self.sent = sent;
        self.take_notices(at, id)?;
        self.check_poisoned(at, id)?;
        self.check_bounds(at, id)?;
        for moment in moments {
            self.meet(id, moment)?;
        }
        Ok(())
    }

    pub(super) fn tell_lost(&mut self, message: &Message, why: &str) {
        self.trace.tell(self.now, || {
            let (from, to) = (message.from.id, message.to);
            format!("{from}>{to} lost, {why}: {}", Trace::message(message))
        });
    }

    /// Tells what has gone wrong on the disk of a node since this was asked last.
    pub(super) fn tell_faults(&mut self, at: usize) {
        if !self.trace.is_told() {
            return;
        }
        let counts = self.nodes[at].medium().counts();
        let before = std::mem::replace(&mut self.counts[at], counts);
        let id = self.nodes[at].id();
        for ((what, now), (_, before)) in counts.named().into_iter().zip(before.named()) {
            if before < now {
                let text = || format!("disk of node {id}: {} {what}", now - before);
                self.trace.tell(self.now, text);
            }
        }
    }

    /// Lets the oracle look at a node after a turn.
    pub(super) fn look(&mut self, at: usize, id: NodeId) -> Checked {
        self.read_medium(id);
        self.check_bases(id)?;
        let local = self.nodes[at].local(self.now);
        for group in (1..=self.plan.groups).map(GroupId) {
            let Some(core) = self.nodes[at].core(group) else {
                continue;
            };
            let halted = self.nodes[at].is_halted(group);
            let cuts = self.oracle.look(id, group, core, halted, local)?;
            if cuts.end {
                self.coverage.hit(Mark::LogCut);
                self.trace.note(self.now, 5, [id.0, group.0, 0], || {
                    format!("node {id} cuts its log of group {group}")
                });
            }
            if cuts.beginning {
                self.coverage.hit(Mark::Shortened);
                let base = core.base();
                self.trace
                    .note(self.now, 13, [id.0, group.0, base.index.0], || {
                        format!("node {id} lets its log of group {group} begin at {base}")
                    });
            }
            self.check_fences(at, id, group)?;
        }
        Ok(())
    }

    pub(super) fn take_notices(&mut self, at: usize, id: NodeId) -> Checked {
        for notice in self.nodes[at].take_notices() {
            self.trace.note(self.now, 6, [id.0, 0, 0], || {
                format!("node {id}: {notice:?}")
            });
            match notice {
                Notice::Poisoned { .. } => {
                    self.coverage.hit(Mark::Poisoned);
                    self.schedule(self.now.after(OPERATOR_US), Due::Replace(id));
                }
                Notice::Repaired { group, .. } => {
                    self.coverage.hit(Mark::Repaired);
                    let core = self.nodes[at].core(group);
                    if core.is_some_and(|core| core.leader().is_none()) {
                        self.coverage.hit(Mark::RepairedUnled);
                    }
                }
                Notice::StorageFull { full: true } => self.coverage.hit(Mark::NoSpace),
                Notice::SnapshotLacking { .. } => self.coverage.hit(Mark::Lacking),
                Notice::SnapshotUnreadable { .. } => self.coverage.hit(Mark::Unreadable),
                Notice::SnapshotTaken { .. } => self.coverage.hit(Mark::SnapshotTaken),
                Notice::Stranger { .. } => self.coverage.hit(Mark::Stranger),
                Notice::Halted { group, reason } if !self.plan.beyond_limit => {
                    return Err(Violation::new(
                        Rule::NeedlessHalt,
                        format!("node {id} halts group {group}: {reason:?}"),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The machine of a group holds the state of a snapshot.
    fn installed(&mut self, at: usize, group: GroupId, position: LogPosition) -> Checked {
        let id = self.nodes[at].id();
        self.trace
            .note(self.now, 12, [id.0, group.0, position.index.0], || {
                format!("node {id} installs a snapshot of group {group} up to {position}")
            });
        self.coverage.hit(Mark::Installed);
        self.fetched(id, Some(group));
        self.oracle.installed(id, group, position)?;
        if let Some(fenced) = self.nodes[at].fenced() {
            return Err(Violation::new(Rule::NeedlessHalt, fenced.to_owned()));
        }
        self.check_digest(at, group)?;
        self.meet(id, Moment::Installed)
    }

    /// Machines that have applied the same hold the same: compared with the first one that came here.
    pub(super) fn check_digest(&mut self, at: usize, group: GroupId) -> Checked {
        let node = &self.nodes[at];
        let (Some(applied), Some(reader)) = (node.applied(group), node.reader(group)) else {
            return Ok(());
        };
        // Disks that lie may have let another history be committed below the same entry.
        if applied.index == Index(0) {
            return Ok(());
        }
        let digest = self.model.digest(reader);
        let id = node.id();
        let first = self.digests.entry((group, applied.chain.0));
        let (first, expected) = *first.or_insert((id, digest));
        if digest == expected {
            return Ok(());
        }
        let text = format!(
            "the machine of group {group} on node {id} holds {digest:#x} at {applied}; the one on node {first} held \
             {expected:#x}"
        );
        Err(Violation::new(Rule::Convergence, text))
    }

    pub(super) fn apply(
        &mut self,
        at: usize,
        batch: logdrive_shard::ApplyBatch<M::Output>,
    ) -> Checked {
        let (id, group) = (self.nodes[at].id(), batch.group);
        for (entry, _) in &batch.entries {
            let position = entry.position();
            self.oracle.applies(id, group, position)?;
            let applied = self.applied.entry(group).or_default();
            if position.index.0 <= *applied {
                continue;
            }
            *applied = position.index.0;
            if entry.header().kind != EntryKind::Proposals {
                continue;
            }
            for (slot, (_, payload)) in (0..).zip(entry.proposals()) {
                self.log.push(Applied {
                    group,
                    at: position,
                    slot,
                    request: self.model.request_of(payload),
                });
            }
        }
        let count = batch.entries.len() as u64;
        self.trace.note(self.now, 7, [id.0, group.0, count], || {
            let last = batch.entries.last().map(|(entry, _)| entry.position());
            format!("node {id} applies group {group} up to {:?}", last)
        });
        let applied = self.nodes[at].apply(batch);
        if let Err(panic) = applied {
            return Err(Violation::new(
                Rule::Assertion,
                format!("node {id} while it applies: {panic}"),
            ));
        }
        if let Some(fenced) = self.nodes[at].fenced() {
            return Err(Violation::new(Rule::NeedlessHalt, fenced.to_owned()));
        }
        self.check_digest(at, group)
    }
}
