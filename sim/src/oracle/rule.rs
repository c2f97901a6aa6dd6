//! The promises by name, and what it is called when one is broken.

use std::fmt;

/// A promise, by its usual name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// At most one leader a term (Raft §5.2).
    ElectionSafety,
    /// No two votes in a term, and no term that goes back (Raft §5.2).
    VoteDurability,
    /// A vote goes to a log that is at least as up to date as the voter's (Raft §5.4.1).
    VoteChoice,
    /// No vote, ack or commit rests on what a power cut would take.
    SendAfterFlush,
    /// An ack names what is proved equal to the leader's log.
    ProvedAck,
    /// A leader only appends (Raft §5.3).
    LeaderAppendOnly,
    /// One index and term, one entry (Raft §5.3).
    LogMatching,
    /// A leader has every committed entry (Raft §5.4).
    LeaderCompleteness,
    /// Committed is what a majority holds, of the leader's term (Raft §5.4.2).
    CommitRule,
    /// No two replicas commit or apply different entries at an index (Raft §5.4.3).
    CommittedImmutable,
    /// Commit, applied and the term never go back, and stay in order.
    Monotone,
    /// What was acknowledged is there at the end.
    AckedDurability,
    /// One admitted proposal, one position.
    AppliedTwice,
    /// What its client was told is in no log is in none.
    NeverAppended,
    /// What is applied was proposed.
    Phantom,
    /// Real time orders the log.
    ReadFreshness,
    /// The history has a sequential explanation.
    Linearizability,
    /// A log is cut where it may be, and begins where a snapshot ends: never beyond.
    CutOrder,
    /// A recovered log holds what the replica has promised, and nothing that never was.
    RecoveryTruth,
    /// Every queue keeps its bound.
    BoundedMemory,
    /// A log keeps no more than its snapshots leave to be kept.
    BoundedGrowth,
    /// A log keeps what a follower needs next that fetches a snapshot, or has one and catches up.
    Retention,
    /// A healed core elects, answers and commits.
    Liveness,
    /// A healthy cluster keeps its leader.
    NeedlessElection,
    /// Replicas that applied the same are the same.
    Convergence,
    /// A disk that only lost what was not flushed is not refused.
    RefusedStart,
    /// A replica stopped though nothing beyond the limit happened to it.
    NeedlessHalt,
    /// An emptied disk takes no part.
    Stranger,
    /// An assertion of the engine.
    Assertion,
}

const RULES: [(Rule, &str); 29] = [
    (Rule::ElectionSafety, "election safety"),
    (Rule::VoteDurability, "vote durability"),
    (Rule::VoteChoice, "vote choice"),
    (Rule::SendAfterFlush, "send after flush"),
    (Rule::ProvedAck, "proved ack"),
    (Rule::LeaderAppendOnly, "leader append-only"),
    (Rule::LogMatching, "log matching"),
    (Rule::LeaderCompleteness, "leader completeness"),
    (Rule::CommitRule, "commit rule"),
    (Rule::CommittedImmutable, "committed immutable"),
    (Rule::Monotone, "monotone"),
    (Rule::AckedDurability, "acked durability"),
    (Rule::AppliedTwice, "applied twice"),
    (Rule::NeverAppended, "never appended"),
    (Rule::Phantom, "phantom"),
    (Rule::ReadFreshness, "read freshness"),
    (Rule::Linearizability, "linearizability"),
    (Rule::CutOrder, "cut order"),
    (Rule::RecoveryTruth, "recovery truth"),
    (Rule::BoundedMemory, "bounded memory"),
    (Rule::BoundedGrowth, "bounded growth"),
    (Rule::Retention, "retention"),
    (Rule::Liveness, "liveness"),
    (Rule::NeedlessElection, "needless election"),
    (Rule::Convergence, "convergence"),
    (Rule::RefusedStart, "refused start"),
    (Rule::NeedlessHalt, "needless halt"),
    (Rule::Stranger, "stranger"),
    (Rule::Assertion, "assertion"),
];

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = RULES.iter().find(|(rule, _)| rule == self);
        f.write_str(found.map_or("unnamed", |(_, name)| name))
    }
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = RULES.iter().find(|(_, name)| *name == text);
        found
            .map(|(rule, _)| *rule)
            .ok_or_else(|| format!("no rule is called '{text}'"))
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {text}")]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// How.
    pub text: String,
}

impl Violation {
    /// This rule was broken.
    pub fn new(rule: Rule, text: impl Into<String>) -> Self {
        Self {
            rule,
            text: text.into(),
        }
    }
}
