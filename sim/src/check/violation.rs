//! What a history may be guilty of.

use std::fmt;

use logdrive_raft::GroupId;

use super::history::{History, OperationId};

/// A promise that a run has broken: which one, by which operations, and a line that tells people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: group {group}: {text}")]
pub struct Violation {
    /// Which promise.
    pub rule: Rule,
    /// Of which group.
    pub group: GroupId,
    /// The operations that cannot be explained, the one that gave it away last.
    pub operations: Vec<OperationId>,
    text: String,
}

impl Violation {
    /// The operations are told in words behind the text.
    pub(super) fn new(
        history: &History,
        rule: Rule,
        group: GroupId,
        text: impl Into<String>,
        operations: &[OperationId],
    ) -> Self {
        let mut text = text.into();
        for (at, id) in operations.iter().enumerate() {
            text.push_str(if at == 0 { ": " } else { "; " });
            text.push_str(&history.describe(*id));
        }
        Self {
            rule,
            group,
            operations: operations.to_vec(),
            text,
        }
    }
}

/// What must hold of every history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// An observed value is made of what clients brought to that key.
    Phantom,
    /// What was never appended is not observed.
    NeverObserved,
    /// What was answered to have changed nothing is not observed.
    Ineffective,
    /// Nothing is observed before it is called.
    BeforeItsCall,
    /// What is called after an answer lies behind what was answered.
    RealTime,
    /// Two operations do not lie in one place.
    OnePlace,
    /// The log that is handed in has an order.
    LogOrder,
    /// The log holds what clients called, and of this group.
    Stranger,
    /// An operation lies in the log once.
    Once,
    /// What was answered to lie somewhere lies there.
    Moved,
    /// What was answered is in the log.
    Missing,
    /// What was never appended is not in the log.
    NeverInLog,
    /// Each answer is that of the reference model at that place of the log.
    Answer,
    /// The operations of a key have an order that explains every answer.
    Linearizable,
    /// The search ends. If not, the harness has failed, and not the engine.
    Searched,
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Rule::Phantom => "phantom value",
            Rule::NeverObserved => "observed what was never appended",
            Rule::Ineffective => "observed what had no effect",
            Rule::BeforeItsCall => "observed before its call",
            Rule::RealTime => "not in real-time order",
            Rule::OnePlace => "two in one place",
            Rule::LogOrder => "log out of order",
            Rule::Stranger => "stranger in the log",
            Rule::Once => "applied twice",
            Rule::Moved => "not where it was acknowledged",
            Rule::Missing => "acknowledged and not in the log",
            Rule::NeverInLog => "never appended and in the log",
            Rule::Answer => "wrong answer",
            Rule::Linearizable => "not linearizable",
            Rule::Searched => "search gave up",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
