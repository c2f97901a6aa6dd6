//! What a log may come back with: the oracle.

use std::collections::BTreeMap;

use logdrive_raft::io::HardState;
use logdrive_raft::{Chain, GroupId, Term};
use logdrive_wal::{Position, RecoveredGroup};

/// The entries of a group, from the first.
pub type Rows = Vec<(Term, Chain)>;

/// One group as it was since the log was last opened.
#[derive(Clone)]
pub struct Model {
    /// When it was created; none: before the log was opened.
    created: Option<Position>,
    /// What its log was after each entry of each append, and the append.
    states: Vec<(Position, Rows)>,
    /// The first state that may still come back.
    durable: usize,
    votes: Vec<(Position, HardState)>,
    /// What others may have been told of.
    spoken: HardState,
}

impl Model {
    pub fn created(at: Position) -> Self {
        Self {
            created: Some(at),
            states: vec![(at, Vec::new())],
            durable: 0,
            votes: Vec::new(),
            spoken: HardState::default(),
        }
    }

    pub fn rows(&self) -> &Rows {
        &self.states.last().expect("there is always one").1
    }

    pub fn hard_state(&self) -> HardState {
        self.votes.last().map_or(self.spoken, |vote| vote.1)
    }

    /// The highest term of any entry that was ever written, cut ones too.
    pub fn entry_term(&self) -> Term {
        let terms = self.states.iter().flat_map(|(_, rows)| rows);
        terms.map(|row| row.0).max().unwrap_or_default()
    }

    /// Entries were appended: `rows` ends with as many as are new.
    pub fn append(&mut self, at: Position, rows: &Rows, new: usize) {
        for last in (rows.len() - new + 1)..=rows.len() {
            self.states.push((at, rows[..last].to_vec()));
        }
    }

    /// The log was cut.
    pub fn cut(&mut self, at: Position, keep: usize) {
        let rows = self.rows()[..keep].to_vec();
        self.states.push((at, rows));
    }

    pub fn vote(&mut self, at: Position, hard_state: HardState) {
        self.votes.push((at, hard_state));
    }

    /// Everything up to `durable` was acknowledged, votes up to `echoed` were cast.
    pub fn acknowledge(&mut self, durable: Position, echoed: Position) {
        if self.created.is_some_and(|at| at <= durable) {
            self.created = None;
        }
        let reached = self.states.iter().rposition(|(at, _)| *at <= durable);
        self.durable = self.durable.max(reached.unwrap_or(0));
        let cast = self.votes.iter().rev().find(|(at, _)| *at <= echoed);
        if let Some((_, hard_state)) = cast {
            self.spoken = *hard_state;
        }
    }

    /// Whether it may be gone: nobody was told that it exists.
    pub fn may_be_gone(&self) -> bool {
        self.created.is_some()
    }

    /// Checks what came back, and goes on from there.
    pub fn reopen(&mut self, found: &RecoveredGroup) -> Result<(), String> {
        let restored = &found.restored;
        let rows: Rows = restored
            .entries
            .iter()
            .map(|entry| (entry.term, entry.chain))
            .collect();
        if !self.states[self.durable..]
            .iter()
            .any(|(_, state)| *state == rows)
        {
            let lengths = self.states.iter().map(|(at, rows)| (at.0, rows.len()));
            return Err(format!(
                "{} entries came back; state {} of {:?} was acknowledged",
                rows.len(),
                self.durable,
                lengths.collect::<Vec<_>>()
            ));
        }
        let (spoken, state) = (self.spoken, restored.hard_state);
        let kept = spoken.term < state.term
            || (spoken.term == state.term && (spoken.vote.is_none() || spoken.vote == state.vote));
        if !kept || rows.iter().any(|row| state.term < row.0) {
            return Err(format!("{spoken:?} was told of, and is now {state:?}"));
        }
        *self = Self {
            created: None,
            states: vec![(Position(0), rows)],
            durable: 0,
            votes: Vec::new(),
            spoken: state,
        };
        Ok(())
    }
}

/// Checks every group that came back.
pub fn reopen(
    models: &mut BTreeMap<GroupId, Model>,
    found: &BTreeMap<GroupId, RecoveredGroup>,
) -> Result<(), String> {
    for (group, model) in &mut *models {
        match found.get(group) {
            Some(recovered) => model
                .reopen(recovered)
                .map_err(|why| format!("group {group}: {why}"))?,
            None if model.may_be_gone() => {}
            None => return Err(format!("group {group} is gone")),
        }
    }
    models.retain(|group, _| found.contains_key(group));
    Ok(())
}
