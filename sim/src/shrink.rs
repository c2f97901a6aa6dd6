//! Makes a failing run smaller: leaves out steps and decisions as long as the same promise is broken.

use crate::cluster::{Cluster, Failed, Source};
use crate::dice::Choice;
use crate::model::Model;
use crate::oracle::Rule;
use crate::plan::Plan;
use crate::step::Timed;
use logdrive_raft::mutant::Mutant;

/// A run that fails.
#[derive(Clone, Debug)]
pub struct Failing {
    /// What it was set up with.
    pub plan: Plan,
    /// What happens when.
    pub steps: Vec<Timed>,
    /// What was decided otherwise than usual.
    pub choices: Vec<Choice>,
    /// How it fails.
    pub failed: Failed,
}

/// Shrinks one run after the other.
#[derive(Debug)]
pub struct Shrinker<F> {
    new_model: F,
    mutant: Option<Mutant>,
    runs_left: u64,
}

impl<M: Model, F: Fn() -> M> Shrinker<F> {
    /// Every run gets a model of its own. At most so many runs are tried.
    pub fn new(new_model: F, mutant: Option<Mutant>, runs_max: u64) -> Self {
        Self {
            new_model,
            mutant,
            runs_left: runs_max,
        }
    }

    /// The run of a seed with all its decisions, if it fails.
    pub fn record(&self, seed: u64, plan: &Plan, steps: Vec<Timed>) -> Option<Failing> {
        let mut model = (self.new_model)();
        let cluster = Cluster::new(plan, steps.clone(), &Source::Recorded(seed), &mut model);
        let ended = cluster.with_mutant(self.mutant).run(None);
        Some(Failing {
            plan: plan.clone(),
            steps,
            choices: ended.choices,
            failed: ended.failed?,
        })
    }

    /// A smaller run that breaks the same promise.
    pub fn shrink(&mut self, failing: Failing) -> Failing {
        let mut best = failing;
        let end = best.failed.at;
        let mut begun = best.clone();
        begun.steps.retain(|timed| timed.at <= end);
        self.take_if_failing(&mut best, begun);
        for (site, what) in kinds_of(&best.choices) {
            let mut without = best.clone();
            without
                .choices
                .retain(|choice| (choice.site_kind(), choice.what as u8) != (site, what));
            self.take_if_failing(&mut best, without);
        }
        loop {
            let before = (best.steps.len(), best.choices.len());
            self.leave_out(&mut best, |failing| &mut failing.steps);
            self.leave_out(&mut best, |failing| &mut failing.choices);
            let after = (best.steps.len(), best.choices.len());
            if after == before || self.runs_left == 0 {
                return best;
            }
        }
    }

    /// Leaves out halves, then quarters, and at last single ones.
    fn leave_out<T: Clone>(
        &mut self,
        best: &mut Failing,
        part: impl Fn(&mut Failing) -> &mut Vec<T>,
    ) {
        let mut chunk = part(best).len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < part(best).len() && self.runs_left > 0 {
                let mut without = best.clone();
                let list = part(&mut without);
                let end = (at + chunk).min(list.len());
                list.drain(at..end);
                if !self.take_if_failing(best, without) {
                    at = end;
                }
            }
            if chunk == 1 || self.runs_left == 0 {
                return;
            }
            chunk = chunk.div_ceil(2);
        }
    }

    fn take_if_failing(&mut self, best: &mut Failing, other: Failing) -> bool {
        if self.runs_left == 0 {
            return false;
        }
        self.runs_left -= 1;
        let wanted: Rule = best.failed.violation.rule;
        let mut model = (self.new_model)();
        let source = Source::Played(other.choices.clone());
        let cluster = Cluster::new(&other.plan, other.steps.clone(), &source, &mut model);
        let ended = cluster.with_mutant(self.mutant).run(None);
        match ended.failed {
            Some(failed) if failed.violation.rule == wanted => {
                *best = Failing { failed, ..other };
                true
            }
            _ => false,
        }
    }
}

fn kinds_of(choices: &[Choice]) -> Vec<(u8, u8)> {
    let kinds = choices.iter();
    let mut kinds: Vec<(u8, u8)> = kinds
        .map(|choice| (choice.site_kind(), choice.what as u8))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}
