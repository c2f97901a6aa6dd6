//! How a run ends: everything is healed, and then it must all come together.

use std::collections::{BTreeMap, BTreeSet};

use logdrive_raft::io::Role;
use logdrive_raft::{GroupId, Index, Micros, NodeId};
use logdrive_shard::{GroupState, ShardStatus};
use logdrive_wal::disk::Disk;
use logdrive_wal::{Missing, Wal};

use crate::coverage::Mark;
use crate::files::FilesFault;
use crate::history::{History, Outcome};
use crate::model::Model;
use crate::oracle::{Rule, Violation};

use super::{Checked, Cluster, Due, Try, place, settle_us};

/// How a node stands, in a line a group.
pub(super) fn stands(id: NodeId, status: &ShardStatus) -> String {
    let wal = &status.wal;
    let mut text = format!(
        "node {id} boot {}: {} of {} slots free{}",
        status.boot,
        wal.slots_free,
        wal.slots_total,
        if status.storage_full {
            ", full for proposals"
        } else {
            ""
        }
    );
    for fallback in &wal.fallbacks {
        text += &format!("; {fallback}");
    }
    for group in &status.groups {
        text += &format!(
            "\n    group {} {:?} term {} leader {:?} base {} commit {} last {} durable {} handed {}",
            group.group,
            group.state,
            group.term,
            group.leader,
            group.base,
            group.commit,
            group.last,
            group.durable,
            group.handed
        );
        for peer in &group.peers {
            text += &format!(
                "\n      {}: match {:?} next {} in flight {} bytes",
                peer.replica.id, peer.match_index, peer.next_index, peer.inflight_bytes
            );
        }
    }
    text
}

impl<M: Model> Cluster<'_, M> {
    /// From now on nothing goes wrong in the core, and everything stays wrong outside.
    pub(super) fn heal(&mut self) -> Checked {
        let now = self.now;
        self.trace
            .note(now, 10, [0; 3], || "everything is healed".to_owned());
        self.healed = true;
        self.clear_traps();
        self.network.heal(&self.core);
        for node in &mut self.nodes {
            node.heal(now);
        }
        if (self.core.len() as u64) < self.plan.nodes {
            self.excuse_the_unfounded();
        }
        for id in self.core.clone() {
            // Nobody waits for ever for those who are gone for good.
            for other in (1..=self.plan.nodes).map(NodeId) {
                if !self.core.contains(&other) {
                    self.disconnect(id, other);
                }
            }
            if self.down.contains_key(&id) {
                self.schedule(now, Due::Start(id));
            } else if self.node(id).is_poisoned() {
                self.schedule(now, Due::Replace(id));
            }
            // Whoever was cut off for long enough has lost its connections, and they come up again: that
            // brings many things back that had stood still. So in every other run they have outlasted it.
            for other in self.core.clone() {
                if id < other && self.plan.raft_seed.is_multiple_of(2) {
                    self.connect(id, other);
                }
            }
        }
        Ok(())
    }

    /// A guarded replica waits for a leader, as does one that lacks a snapshot. Where those that do not leave a majority
    /// that may have committed what nobody has, there may be none; nor if one is lost for good instead of guarded.
    fn excuse_the_guarded(&mut self) {
        for group in (1..=self.plan.groups).map(GroupId) {
            if !self.leaders(group).is_empty() {
                continue;
            }
            let cores = self.core.iter();
            let cores = cores.filter_map(|id| self.nodes[place(*id)].core(group));
            let (mut guarded, mut waiting) = (self.lost_in_core, 0);
            for core in cores {
                guarded |= core.guard().is_some();
                waiting += usize::from(core.guard().is_some() || core.lacks_snapshot());
            }
            let free = (self.core.len() - waiting) as u64;
            let lost = self.lost_in_core && 2 * free <= self.plan.nodes;
            self.justified |= guarded && (lost || 2 * free < self.plan.nodes);
        }
    }

    fn leaders(&self, group: GroupId) -> Vec<(NodeId, u64)> {
        let leads = |id: &NodeId| {
            let core = self.nodes[place(*id)].core(group)?;
            (core.role() == Role::Leader).then_some((*id, core.term().0))
        };
        self.core.iter().filter_map(leads).collect()
    }

    /// A healed core has had its time: it should have leaders, and each has committed what it found.
    pub(super) fn note_leaders(&mut self) -> Checked {
        self.check_mended()?;
        self.excuse_the_guarded();
        self.check_all_growth()?;
        for group in (1..=self.plan.groups).map(GroupId) {
            let [(leader, term)] = self.leaders(group)[..] else {
                continue;
            };
            self.settled.insert(group, term);
            self.check_told(group, leader)?;
            let core = self.nodes[place(leader)].core(group);
            if let Some(core) = core
                && core.commit() != core.last()
                && self.plan.client.rests
                && !self.justified
                && !self.plan.beyond_limit
            {
                let text = format!(
                    "node {leader} leads term {term} of group {group}, nobody has asked for anything for \
                     {} us, and of its log up to {} only {} is committed",
                    settle_us(&self.plan),
                    core.last(),
                    core.commit()
                );
                return Err(Violation::new(Rule::Liveness, text));
            }
        }
        Ok(())
    }

    fn check_all_growth(&self) -> Checked {
        if self.justified || self.plan.beyond_limit {
            return Ok(());
        }
        for id in &self.core {
            for group in (1..=self.plan.groups).map(GroupId) {
                self.check_growth(*id, group)?;
            }
        }
        Ok(())
    }

    /// What one cannot read and another can has come back, whether anybody leads or not.
    fn check_mended(&self) -> Checked {
        for group in (1..=self.plan.groups).map(GroupId) {
            for id in &self.core {
                let wal = self.nodes[place(*id)].wal();
                let Some(run) = wal.and_then(|wal| wal.missing(group).first().copied()) else {
                    continue;
                };
                let has = |other: &&NodeId| {
                    let wal = self.nodes[place(**other)].wal();
                    wal.is_some_and(|wal| has_run(wal, group, &run))
                };
                if let Some(other) = self.core.iter().find(has) {
                    let text = format!(
                        "node {id} lacks {run} of group {group}, and node {other} has them"
                    );
                    return Err(Violation::new(Rule::Liveness, text));
                }
            }
        }
        Ok(())
    }

    /// Whoever lacks what its leader has cut away has heard of it, also of one that does nothing else.
    fn check_told(&self, group: GroupId, leader: NodeId) -> Checked {
        if self.justified || self.plan.beyond_limit || !self.plan.client.rests {
            return Ok(());
        }
        let Some(base) = self.nodes[place(leader)]
            .core(group)
            .map(|core| core.base())
        else {
            return Ok(());
        };
        for id in &self.core {
            let last = self.nodes[place(*id)].core(group).map(|core| core.last());
            if let Some(last) = last.filter(|last| last.index < base.index) {
                let text = format!(
                    "node {leader} leads group {group}, its log begins at {base}, and after {} us in which nobody \
                     asked for anything that of node {id} ends at {last}",
                    settle_us(&self.plan)
                );
                return Err(Violation::new(Rule::Liveness, text));
            }
        }
        Ok(())
    }

    /// Nothing runs on a log that has failed: no vote, ack or commit of it can be kept (DESIGN §5).
    pub(super) fn check_poisoned(&self, at: usize, id: NodeId) -> Checked {
        if !self.nodes[at].is_poisoned() {
            return Ok(());
        }
        for group in (1..=self.plan.groups).map(GroupId) {
            if self.trouble(id, group).is_none() {
                let text = format!("node {id} runs group {group}, and its log has failed");
                return Err(Violation::new(Rule::SendAfterFlush, text));
            }
        }
        Ok(())
    }

    /// The core has a leader that stayed, answers everything, and holds what was acknowledged.
    pub(super) fn check_end(&mut self) -> Checked {
        if self.plan.beyond_limit {
            return self.check_beyond();
        }
        if self.justified {
            return self.check_what_is_left();
        }
        for group in (1..=self.plan.groups).map(GroupId) {
            for id in self.core.clone() {
                if let Some(why) = self.trouble(id, group) {
                    let text = format!("group {group} does not run on node {id}: {why}");
                    return Err(Violation::new(Rule::Liveness, text));
                }
            }
            let guarded = self.core.iter().find(|id| {
                let core = self.nodes[place(**id)].core(group);
                core.is_some_and(|core| core.guard().is_some())
            });
            let leaders = self.leaders(group);
            if let Some(id) = guarded.filter(|_| !leaders.is_empty()) {
                let text =
                    format!("group {group} has a leader, and its guard on node {id} does not end");
                return Err(Violation::new(Rule::Liveness, text));
            }
            let [(leader, term)] = leaders[..] else {
                let text = format!(
                    "group {group} has {} leaders in a healed core",
                    leaders.len()
                );
                return Err(Violation::new(Rule::Liveness, text));
            };
            match self.settled.get(&group) {
                None => {
                    let text = format!(
                        "group {group} had no leader {} us after everything healed",
                        settle_us(&self.plan)
                    );
                    return Err(Violation::new(Rule::Liveness, text));
                }
                Some(before) if *before != term => {
                    let text = format!(
                        "group {group} was led in term {before} by a healthy core, and now in term \
                         {term} by node {leader}"
                    );
                    return Err(Violation::new(Rule::NeedlessElection, text));
                }
                Some(_) => {}
            }
            self.check_converged(group)?;
        }
        self.check_nobody_waits()?;
        self.check_all_growth()?;
        let history = self.history();
        self.check_answered(&history)?;
        self.check_log(&history)?;
        self.searched = self.model.check(&history)?;
        Ok(())
    }

    /// So many nodes are lost that the others may not go on: nobody is owed an answer or a leader any more. But
    /// whatever was answered until then has to be true, and whoever does not run has to say why.
    fn check_what_is_left(&mut self) -> Checked {
        for id in self.core.clone() {
            self.check_says_why(id)?;
        }
        let history = self.history();
        self.check_log(&history)?;
        self.searched = self.model.check(&history)?;
        Ok(())
    }

    fn check_converged(&self, group: GroupId) -> Checked {
        let committed = self.oracle.committed(group);
        let mut digests = BTreeMap::new();
        for id in &self.core {
            let node = &self.nodes[place(*id)];
            let commit = node.core(group).map(|core| core.commit());
            let applied = node.applied(group);
            if commit != Some(committed) || applied != Some(committed) {
                let text = format!(
                    "node {id} knows group {group} to be committed up to {commit:?} and has applied \
                     up to {applied:?}; it is committed up to {committed}"
                );
                return Err(Violation::new(Rule::Liveness, text));
            }
            if let Some(reader) = node.reader(group) {
                digests.insert(*id, self.model.digest(reader));
            }
        }
        let distinct: BTreeSet<u64> = digests.values().copied().collect();
        if distinct.len() > 1 {
            let text = format!("machines of group {group} differ: {digests:?}");
            return Err(Violation::new(Rule::Convergence, text));
        }
        Ok(())
    }

    /// Whoever handed something to a node of the core has been answered, also if that was long ago and its
    /// client has given up, and nothing is held for it any more.
    fn check_nobody_waits(&self) -> Checked {
        let in_core = |attempt: &&Try| self.core.contains(&attempt.node);
        if let Some(attempt) = self.clients.unanswered().find(in_core) {
            let text = format!("nobody ever answered {attempt:?}");
            return Err(Violation::new(Rule::Liveness, text));
        }
        for id in &self.core {
            for group in (1..=self.plan.groups).map(GroupId) {
                let door = self.nodes[place(*id)].door(group);
                let held = door.map_or(0, |door| door.permits().held());
                if held > 0 {
                    let text = format!(
                        "node {id}: {held} bytes are held for proposals of group {group}, and nobody waits"
                    );
                    return Err(Violation::new(Rule::BoundedMemory, text));
                }
            }
        }
        Ok(())
    }

    /// A healed core answers whatever is asked once it has settled.
    fn check_answered(&self, history: &History<M::Output>) -> Checked {
        let settled = Micros(self.plan.faulty_us).after(settle_us(&self.plan));
        for operation in &history.operations {
            if operation.invoked < settled {
                continue;
            }
            if !matches!(operation.outcome, Outcome::Done { .. }) {
                let text = format!(
                    "request {} of group {}, asked at {} us of a healed core, ended with {:?}",
                    operation.request.id,
                    operation.request.group,
                    operation.invoked.0,
                    operation.outcome
                );
                return Err(Violation::new(Rule::Liveness, text));
            }
        }
        Ok(())
    }

    /// What was acknowledged is in the log where it was said to be; what never was appended is not; nothing
    /// is there twice, or came from nowhere.
    fn check_log(&mut self, history: &History<M::Output>) -> Checked {
        let mut places = BTreeMap::new();
        let mut found = BTreeMap::new();
        for applied in &history.log {
            let here = (applied.group, applied.at.index, applied.slot);
            places.insert(here, applied.request);
            let Some(request) = applied.request else {
                continue;
            };
            let asked = usize::try_from(request).ok();
            let asked = asked.and_then(|request| history.operations.get(request));
            if asked.is_none_or(|asked| asked.request.group != applied.group) {
                let text = format!("request {request} lies at {here:?}, and nobody asked for it");
                return Err(Violation::new(Rule::Phantom, text));
            }
            if let Some(before) = found.insert(request, here) {
                let text = format!("request {request} lies at {before:?} and at {here:?}");
                return Err(Violation::new(Rule::AppliedTwice, text));
            }
        }
        for operation in &history.operations {
            let (id, group) = (operation.request.id, operation.request.group);
            match &operation.outcome {
                Outcome::Done { at, slot, .. } => {
                    let there = places.get(&(group, at.index, *slot));
                    let is_it = matches!(there, Some(request) if request.is_none_or(|of| of == id));
                    let same_chain = self.oracle.committed_at(group, at.index) == Some(*at);
                    if !is_it || !same_chain || at.index == Index(0) {
                        let text = format!(
                            "request {id} was acknowledged at {at}, slot {slot} of group {group}; there \
                             lies {there:?}"
                        );
                        return Err(Violation::new(Rule::AckedDurability, text));
                    }
                }
                Outcome::Never => {
                    if let Some(there) = found.get(&id) {
                        let text = format!(
                            "request {id} is in no log, its client was told, and it lies at {there:?}"
                        );
                        return Err(Violation::new(Rule::NeverAppended, text));
                    }
                }
                Outcome::Pending | Outcome::Unknown => {}
            }
        }
        // What was told too late has to be right all the same.
        for (id, at, slot) in self.clients.take_late() {
            let asked = usize::try_from(id).ok();
            let asked = asked.and_then(|id| history.operations.get(id));
            let there = asked.and_then(|asked| places.get(&(asked.request.group, at.index, slot)));
            if !matches!(there, Some(request) if request.is_none_or(|of| of == id)) {
                let text = format!(
                    "request {id} was said to lie at {at}, slot {slot}, when its client had given up; there \
                     lies {there:?}"
                );
                return Err(Violation::new(Rule::AckedDurability, text));
            }
        }
        Ok(())
    }

    /// Beyond the limit nobody has to go on, but whoever does not has to say why.
    fn check_beyond(&self) -> Checked {
        for id in (1..=self.plan.nodes).map(NodeId) {
            // Nobody starts those outside of the core again.
            if self.core.contains(&id) || self.nodes[place(id)].is_running() {
                self.check_says_why(id)?;
            }
            self.check_stranger(id)?;
        }
        Ok(())
    }

    fn check_says_why(&self, id: NodeId) -> Checked {
        for group in (1..=self.plan.groups).map(GroupId) {
            if let Some(why) = self.trouble(id, group)
                && (why.is_empty() || why == "it is down")
            {
                let text = format!("group {group} does not run on node {id}, and nothing says why");
                return Err(Violation::new(Rule::NeedlessHalt, text));
            }
        }
        Ok(())
    }

    /// Whoever has lost its disk and has met somebody who has not knows that it is a stranger.
    fn check_stranger(&self, id: NodeId) -> Checked {
        if !self.oracle.is_emptied(id) || !self.core.contains(&id) {
            return Ok(());
        }
        let Some(status) = self.nodes[place(id)].status() else {
            return Ok(());
        };
        for stands in &status.groups {
            let knows = |peer: &NodeId| {
                let node = &self.nodes[place(*peer)];
                *peer != id && node.core(stands.group).is_some() && !node.is_poisoned()
            };
            let is_stranger = matches!(
                &stands.state,
                GroupState::Stranger(why) | GroupState::Halted(why) if !why.is_empty()
            );
            if !is_stranger && self.core.iter().any(knows) {
                let text = format!(
                    "node {id} has lost its disk, could ask those who have group {}, and is {:?}",
                    stands.group, stands.state
                );
                return Err(Violation::new(Rule::Stranger, text));
            }
        }
        Ok(())
    }

    /// Adds to the coverage what the media and the plan know.
    pub(super) fn cover(&mut self) {
        if self.plan.groups > 1 {
            self.coverage.hit(Mark::ManyGroups);
        }
        if self.plan.node.clock_ppm.iter().any(|ppm| *ppm != 1_000_000) {
            self.coverage.hit(Mark::ClockRate);
        }
        for node in &self.nodes {
            if self.oracle.is_released(node.id()) {
                self.coverage.hit(Mark::Released);
            }
            let counts = node.medium().counts();
            let files = node.files();
            let marks = [
                (Mark::FilesNoSpace, files.met(FilesFault::NoSpace)),
                (Mark::FilesWriteError, files.met(FilesFault::WriteError)),
                (Mark::FilesFlushError, files.met(FilesFault::FlushError)),
                (Mark::FilesReadError, files.met(FilesFault::ReadError)),
                (Mark::ReadError, counts.read_errors),
                (Mark::WriteError, counts.write_errors),
                (Mark::ShortWrite, counts.short_writes),
                (Mark::ShortRead, counts.short_reads),
                (Mark::FlushError, counts.flush_errors),
                (Mark::FlushReverts, counts.flush_reverts),
                (Mark::FlushErrorLate, counts.flush_errors_late),
                (Mark::NoSpace, counts.no_space),
                (Mark::Stall, counts.stalls),
                (Mark::SlowFlush, counts.slow_flushes),
                (Mark::LandedLate, counts.blocks_landed_late),
                (Mark::FileCut, counts.files_cut),
                (Mark::FileLost, counts.files_lost),
                (Mark::TornSector, counts.blocks_torn),
                (Mark::Rot, counts.rotted),
                (Mark::FlushLied, counts.lying_flushes),
                (Mark::LostWrite, counts.lost_writes),
                (Mark::Misdirected, counts.misdirected_writes),
            ];
            for (mark, times) in marks {
                self.coverage.add(mark, times);
            }
        }
    }
}

/// Whether a log can read a run that another one cannot.
fn has_run(wal: &Wal<impl Disk>, group: GroupId, run: &Missing) -> bool {
    let begins = wal.base(group).is_some_and(|base| base.index < run.first);
    let same = wal.position(group, run.last.index) == Some(run.last);
    let missing = wal.missing(group);
    let apart = |own: &Missing| own.last.index < run.first || run.last.index < own.first;
    begins && same && missing.iter().all(apart)
}
