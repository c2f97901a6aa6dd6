//! What a core claims after a turn, and whether it is so.

use logdrive_raft::io::Role;
use logdrive_raft::{GroupId, Index, LogPosition, Micros, NodeId, Raft, Term};

use super::replica::covers;
use super::{About, Oracle, Outcome, Rule, Seen, Violation, is_majority, place};

/// What of a log is gone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cuts {
    pub(crate) end: bool,
    pub(crate) beginning: bool,
}

impl Oracle {
    /// Looks at a replica after a turn, in which its clock said `local`; it may have halted. Says whether its log was
    /// cut, at either end.
    pub(crate) fn look(
        &mut self,
        node: NodeId,
        id: GroupId,
        core: &Raft,
        halted: bool,
        local: Micros,
    ) -> Result<Cuts, Violation> {
        let group = self.groups.get_mut(&id).expect("made for every group");
        group.said.taken_in(node, local);
        let before = group.nodes[place(node)];
        // What it said in the turn in which it halted it said as a leader.
        let leads = core.role() == Role::Leader && !(halted && before.halted);
        let now = Seen {
            alive: true,
            halted,
            leads,
            term: core.term(),
            term_before: before.term,
            followed_before: before.follows,
            heard_before: before.heard_until_turn,
            heard_until_turn: before.heard,
            follows: core.leader().is_some_and(|leader| leader != node),
            last_before: before.last,
            last: core.last(),
            commit: core.commit().index,
            committed: core.commit(),
            durable: core.durable_index(),
            base: core.base(),
            anchor: core.anchor(),
            guard: core.guard(),
            ..before
        };
        let same = before.alive
            && before.halted == halted
            && before.leads == leads
            && before.term == now.term
            && before.last == now.last
            && before.commit == now.commit
            && before.durable == now.durable
            && before.base == now.base
            && before.anchor == now.anchor
            && before.guard == now.guard;
        if same {
            let follows = now.follows;
            let seen = &mut group.nodes[place(node)];
            seen.term_before = before.term;
            seen.followed_before = before.follows;
            seen.heard_before = before.heard_until_turn;
            seen.heard_until_turn = before.heard;
            seen.follows = follows;
            seen.last_before = before.last;
            if leads {
                let about = About { node, id };
                group.check_matches(about, core)?;
                group.check_followed(about, core, local)?;
                group.check_trailing(about, core, local)?;
            }
            return Ok(Cuts::default());
        }
        let medium = &self.media[place(node)];
        if medium.emptied && core.last().index > Index(0) {
            return Err(Violation::new(
                Rule::Stranger,
                format!(
                    "node {node} has lost its disk and has a log of group {id} up to {}",
                    core.last()
                ),
            ));
        }
        if !before.alive && medium.answers() && !medium.view.has_begun(id) {
            return Err(Violation::new(
                Rule::SendAfterFlush,
                format!(
                    "node {node} runs group {id}, and a power cut would take what it began with"
                ),
            ));
        }
        let voters = core.membership().voters.len();
        if voters != self.voters {
            return Err(Violation::new(
                Rule::CommitRule,
                format!(
                    "node {node} counts {voters} voters of group {id}, which has {}",
                    self.voters
                ),
            ));
        }
        if !before.alive && core.base().index == Index(0) {
            group.truth.add_root(core.base().chain);
        }
        let about = About { node, id };
        let mut now = now;
        let beyond = self.beyond;
        let cut = group.learn(about, core, &before, &mut now, beyond)?;
        now.owed = core.position(core.durable_index()).unwrap_or_default();
        // Until its base is durable a log may yet come back as what it was.
        if now.owed == now.base && medium.view.base(id).index < now.base.index {
            let owed = before.owed;
            let is_cut = now.base.index < owed.index && core.position(owed.index) != Some(owed);
            now.owed = match core.is_installing() {
                true => LogPosition::default(),
                // A leader has made it cut that since.
                false if is_cut => now.owed,
                false => owed,
            };
        }
        if cut
            && before.committed.index >= core.base().index.next()
            && core.position(before.committed.index) != Some(before.committed)
        {
            return Err(Violation::new(
                Rule::CommittedImmutable,
                format!(
                    "node {node} has cut {} of group {id} from its log, and knew it to be committed",
                    before.committed
                ),
            ));
        }
        if before.alive && before.guard != now.guard {
            now.lost = group.check_settled(about, core, &before)?;
        }
        group.check_monotone(about, core, &before, &now)?;
        group.check_new_term(about, core, &before, local)?;
        if leads {
            if !before.leads || before.term < now.term {
                now.leads_since = local;
                group.nodes[place(node)].leads_since = local;
            }
            group.check_matches(about, core)?;
            group.check_followed(about, core, local)?;
        }
        let first = leads && group.note_leader(about, core);
        self.elections += u64::from(first);
        if leads && !self.beyond {
            group.check_trailing(about, core, local)?;
            now.trails = group.nodes[place(node)].trails;
            now.looked = group.nodes[place(node)].looked;
            group.check_leader(about, core, &before)?;
            if first && self.media[place(node)].answers() {
                let view = &self.media[place(node)].view;
                if view.copies_of_vote(id, core.term(), node) < 2 {
                    return Err(Violation::new(
                        Rule::SendAfterFlush,
                        format!(
                            "node {node} leads term {} of group {id}, and one bad block would hide its \
                             own vote",
                            core.term()
                        ),
                    ));
                }
            }
        }
        group.nodes[place(node)] = now;
        if !leads {
            group.nodes[place(node)].trails = None;
        }
        // Of a log that was cut and has grown again the same index may be another entry.
        if before.durable < now.durable || cut || !before.alive {
            self.check_durable(about, core)?;
        }
        if before.commit < now.commit && !self.beyond {
            // A leader may commit and step down in one turn.
            let led = if leads {
                Some(now.term)
            } else {
                before.leads.then_some(before.term)
            };
            self.check_commit(about, core, led)?;
        }
        Ok(Cuts {
            end: cut,
            beginning: before.alive && before.base.index < core.base().index,
        })
    }

    /// What a core holds to be durable, is.
    fn check_durable(&mut self, about: About, core: &Raft) -> Outcome {
        let About { node, id } = about;
        let medium = &self.media[place(node)];
        let durable = core.durable_index();
        let Some(at) = core.position(durable) else {
            return Ok(());
        };
        if durable > core.base().index && medium.answers() && !medium.view.covers(id, at) {
            return Err(Violation::new(
                Rule::SendAfterFlush,
                format!(
                    "node {node} takes {at} of group {id} for durable, and a power cut would take it"
                ),
            ));
        }
        Ok(())
    }

    fn check_commit(&mut self, about: About, core: &Raft, led: Option<Term>) -> Outcome {
        let About { node, id } = about;
        let group = self.groups.get_mut(&id).expect("made for every group");
        let commit = core.commit();
        let known = group.truth.last_committed();
        if commit.index <= known.index {
            let committed = group.truth.committed_at(commit.index);
            if committed != Some(commit) && commit.index > Index(0) {
                return Err(Violation::new(
                    Rule::CommittedImmutable,
                    format!(
                        "node {node} commits {commit} of group {id}, where {committed:?} is committed"
                    ),
                ));
            }
            return Ok(());
        }
        let Some(term) = led else {
            return Err(Violation::new(
                Rule::CommitRule,
                format!(
                    "node {node} follows and commits {commit} of group {id}; leaders have {known}"
                ),
            ));
        };
        if commit.term != term {
            return Err(Violation::new(
                Rule::CommitRule,
                format!("node {node} commits {commit} of group {id} by counting, in term {term}"),
            ));
        }
        let truth = &group.truth;
        // What a medium once held may have been cut from the log since: whoever runs still has it.
        let has = |seen: &Seen| !seen.alive || truth.is_on_log(commit, seen.last);
        let holders: Vec<NodeId> = (1..)
            .map(NodeId)
            .zip(&self.media)
            .zip(&group.nodes)
            .filter_map(|((holder, medium), seen)| {
                let covered = has(seen) && covers(truth, medium, id, commit);
                (!medium.answers() || covered).then_some(holder)
            })
            .collect();
        if !is_majority(core.membership(), |id| holders.contains(&id)) {
            return Err(Violation::new(
                Rule::CommitRule,
                format!(
                    "node {node} commits {commit} of group {id}, which is durable only on {holders:?}"
                ),
            ));
        }
        group.truth.commit(commit).map_err(|committed| {
            Violation::new(
                Rule::CommittedImmutable,
                format!("node {node} commits {commit} of group {id}, whose log lacks {committed}"),
            )
        })
    }
}
