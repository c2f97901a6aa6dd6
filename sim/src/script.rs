//! A run written down: what it was set up with, what happened when, and every decision that was not usual.
//!
//! A failure that a seed found is kept as a script. It draws nothing, so it stays the same run when what a
//! seed means changes, and it says which events it has to reach to be worth anything.

use logdrive_raft::Micros;
use logdrive_raft::mutant::Mutant;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Ended, Source};
use crate::dice::Choice;
use crate::model::Model;
use crate::plan::Plan;
use crate::step::Timed;

/// A run as a file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What was wrong, in a line.
    pub cause: String,
    /// Which promise was broken.
    pub broke: String,
    /// The planted bug that breaks it again, in builds that hold any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutant: Option<String>,
    /// Parts of the story that have to come, in this order.
    pub reaches: Vec<String>,
    /// What happens when.
    pub steps: Vec<Timed>,
    /// The decisions with another outcome than the usual one.
    pub choices: Vec<Choice>,
    /// The set-up.
    pub plan: Plan,
}

/// What became of a script.
#[derive(Debug)]
pub struct Played {
    /// How the run ended.
    pub ended: Ended,
    /// The first part of the story that did not come.
    pub missed: Option<String>,
}

/// A file does not hold a script.
#[derive(Debug, thiserror::Error)]
#[error("not a script")]
pub struct NotAScript(#[from] toml::de::Error);

impl Script {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, NotAScript> {
        Ok(toml::from_str(text)?)
    }

    /// As a file has it.
    ///
    /// # Panics
    ///
    /// If it holds numbers beyond 2^63, which TOML does not have and no run needs.
    #[must_use]
    pub fn to_text(&self) -> String {
        toml::to_string_pretty(self).expect("a script is plain data")
    }

    /// Runs it; every event is told to `tell`.
    pub fn play<M: Model>(
        &self,
        model: &mut M,
        mutant: Option<Mutant>,
        until: Option<Micros>,
        tell: &mut dyn FnMut(Micros, &str),
    ) -> Played {
        let mut wanted = self.reaches.iter().peekable();
        let mut listen = |at: Micros, what: &str| {
            wanted.next_if(|wanted| what.contains(wanted.as_str()));
            tell(at, what);
        };
        let source = Source::Played(self.choices.clone());
        let cluster = Cluster::new(&self.plan, self.steps.clone(), &source, model);
        let ended = cluster.with_mutant(mutant).traced(&mut listen).run(until);
        Played {
            ended,
            missed: wanted.next().cloned(),
        }
    }
}
