//! What a log was asked to keep and what it has acknowledged, and whether it came back with that.

use std::collections::{BTreeMap, BTreeSet};

use logdrive_raft::io::{EntryMeta, Guard, HardState};
use logdrive_raft::{Chain, GroupId, Index, Term};
use logdrive_wal::{Position, Recovery, VOTE_SPENT};

use crate::oracle::fears;

/// The entries of a group, from the first.
pub(super) type Rows = Vec<(Term, Chain)>;

/// A group as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupState {
    pub(super) rows: Rows,
    pub(super) hard_state: HardState,
    /// What it may have acknowledged and does not have, as it says itself.
    pub(super) guard: Option<Guard>,
}

impl GroupState {
    /// Whether this is how the group stood, or where that begins, and the rest is feared for.
    pub(super) fn is_whole_or_fears(&self, stood: &GroupState) -> bool {
        stood.rows.starts_with(&self.rows)
            && (self.rows.len() == stood.rows.len() || self.has_or_fears(stood))
    }

    /// Whether all that was acknowledged when the group stood so is there, or feared for.
    fn has_or_fears(&self, stood: &GroupState) -> bool {
        let has_or_fears = |(index, term): (u64, Term)| {
            let feared = self
                .guard
                .is_some_and(|guard| fears(guard, term, Index(index)));
            feared
                || self
                    .rows
                    .get(index as usize - 1)
                    .is_some_and(|row| row.0 == term)
        };
        let last = stood
            .rows
            .last()
            .map(|row| (stood.rows.len() as u64, row.0));
        last.is_none_or(has_or_fears)
    }
}

pub(super) type Groups = BTreeMap<GroupId, GroupState>;

/// What has been acknowledged: everything up to a step, and the votes that were cast.
#[derive(Clone, Debug, Default)]
pub(super) struct Acked {
    pub(super) step: usize,
    pub(super) spoken: BTreeMap<GroupId, HardState>,
}

/// Everything that a log was asked to do since it was opened, one small step after the other.
#[derive(Clone, Debug)]
pub(super) struct Book {
    /// What stood after each step, and by which append; the first is what the log was opened with.
    steps: Vec<(Position, Groups)>,
    votes: Vec<(Position, GroupId, HardState)>,
    acked: Acked,
}

impl Book {
    pub(super) fn new(opened: Groups) -> Self {
        let spoken = opened
            .iter()
            .map(|(group, state)| (*group, state.hard_state));
        let acked = Acked {
            step: 0,
            spoken: spoken.collect(),
        };
        Self {
            steps: vec![(Position(0), opened)],
            votes: Vec::new(),
            acked,
        }
    }

    pub(super) fn now(&self) -> &Groups {
        &self.steps.last().expect("there is always one").1
    }

    pub(super) fn acked(&self) -> &Acked {
        &self.acked
    }

    /// What was acknowledged by the opening itself.
    pub(super) fn acked_when_opened(&self) -> Acked {
        let opened = self.steps[0].1.iter();
        Acked {
            step: 0,
            spoken: opened
                .map(|(group, state)| (*group, state.hard_state))
                .collect(),
        }
    }

    pub(super) fn step(&mut self, at: Position, change: impl FnOnce(&mut Groups)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.steps.push((at, next));
    }

    pub(super) fn vote(&mut self, at: Position, group: GroupId, hard_state: HardState) {
        self.votes.push((at, group, hard_state));
        self.step(at, |groups| {
            groups.entry(group).or_default().hard_state = hard_state;
        });
    }

    /// Everything up to `durable` is acknowledged, votes up to `echoed` are cast. Whether that is news.
    pub(super) fn acknowledge(&mut self, durable: Position, echoed: Position) -> bool {
        let step = self.steps.iter().rposition(|(at, _)| *at <= durable);
        let step = step.unwrap_or(0).max(self.acked.step);
        let mut news = step > self.acked.step;
        self.acked.step = step;
        for (at, group, hard_state) in &self.votes {
            if *at <= echoed {
                let before = self.acked.spoken.insert(*group, *hard_state);
                news |= before != Some(*hard_state);
            }
        }
        news
    }

    /// Checks what came back: the state after some step that is not before the acknowledged one, and no vote
    /// that was cast is forgotten or made up. Tells the step.
    pub(super) fn check(&self, acked: &Acked, found: &Groups) -> Result<usize, String> {
        let same = |found: &GroupState, stood: &GroupState| found.rows == stood.rows;
        self.check_from(acked.step, acked, found, same)
    }

    /// The same where blocks were damaged: what was acknowledged may be gone, if it is feared for.
    pub(super) fn check_feared(&self, acked: &Acked, found: &Groups) -> Result<usize, String> {
        self.check_from(0, acked, found, GroupState::is_whole_or_fears)
    }

    /// The same where something that can be read says what is gone.
    pub(super) fn check_holed(&self, acked: &Acked, found: &Groups) -> Result<usize, String> {
        self.check_from(acked.step, acked, found, GroupState::is_whole_or_fears)
    }

    fn check_from(
        &self,
        first: usize,
        acked: &Acked,
        found: &Groups,
        is_like: impl Fn(&GroupState, &GroupState) -> bool,
    ) -> Result<usize, String> {
        let paths = |step: &usize| {
            let groups = &self.steps[*step].1;
            groups.len() == found.len()
                && groups.iter().all(|(group, state)| {
                    found.get(group).is_some_and(|found| is_like(found, state))
                })
        };
        let fits = |step: &usize| {
            paths(step)
                && self.votes_fit(*step, acked, found).is_ok()
                && self.is_feared_for(*step, acked.step, found)
        };
        if let Some(step) = (first..self.steps.len()).rev().find(fits) {
            return Ok(step);
        }
        let same: Vec<usize> = (0..self.steps.len()).filter(paths).collect();
        let lengths: Vec<_> = found
            .iter()
            .map(|(group, state)| (group.0, state.rows.len()))
            .collect();
        let votes = same
            .last()
            .and_then(|step| self.votes_fit(*step, acked, found).err())
            .unwrap_or_default();
        Err(format!(
            "of {} steps {} were acknowledged; what came back, {lengths:?}, is that of {same:?} {votes}",
            self.steps.len() - 1,
            acked.step
        ))
    }

    /// Whether whatever stood after this step, and was acknowledged, is there or feared for. A group that had neither
    /// entries nor a vote had promised nothing.
    fn is_feared_for(&self, step: usize, acked: usize, found: &Groups) -> bool {
        let after = self.steps.get(step + 1..=acked).unwrap_or_default();
        let mut stood = after.iter().flat_map(|(_, groups)| groups);
        stood.all(|(group, stood)| match found.get(group) {
            Some(found) => found.has_or_fears(stood),
            None => stood.rows.is_empty() && stood.hard_state == HardState::default(),
        })
    }

    fn votes_fit(&self, step: usize, acked: &Acked, found: &Groups) -> Result<(), String> {
        for (group, state) in found {
            let came = state.hard_state;
            let at_step = self.steps[step].1.get(group).map(|state| state.hard_state);
            for before in at_step.iter().chain(acked.spoken.get(group)) {
                let kept = before.term < came.term
                    || (before.term == came.term
                        && (before.vote.is_none() || before.vote == came.vote));
                if !kept {
                    return Err(format!("group {group}: {before:?} has become {came:?}"));
                }
            }
            if state.rows.iter().any(|row| came.term < row.0) {
                return Err(format!("group {group}: {came:?} is below its entries"));
            }
            let written = self
                .votes
                .iter()
                .any(|(_, of, vote)| of == group && *vote == came);
            let known = written
                || self.steps[0]
                    .1
                    .get(group)
                    .is_some_and(|state| state.hard_state == came);
            if !known && came != HardState::default() && !self.is_spent(*group, came) {
                return Err(format!("group {group}: nobody ever cast {came:?}"));
            }
        }
        Ok(())
    }

    /// The vote of a term that only an entry tells of.
    fn is_spent(&self, group: GroupId, came: HardState) -> bool {
        let states = self
            .steps
            .iter()
            .filter_map(|(_, groups)| groups.get(&group));
        let terms: BTreeSet<Term> = states
            .flat_map(|state| state.rows.iter().map(|row| row.0))
            .collect();
        came.vote == Some(VOTE_SPENT) && terms.contains(&came.term)
    }
}

/// What a log came back with.
pub(super) fn groups_of(recovery: &Recovery) -> Groups {
    let state = |entries: &[EntryMeta], hard_state, guard| GroupState {
        rows: entries
            .iter()
            .map(|entry| (entry.term, entry.chain))
            .collect(),
        hard_state,
        guard,
    };
    recovery
        .groups
        .iter()
        .map(|(group, found)| {
            let restored = &found.restored;
            let state = state(&restored.entries, restored.hard_state, restored.guard);
            (*group, state)
        })
        .collect()
}
