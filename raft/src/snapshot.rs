//! What a log amounts to at a point, so that what lies below it may go.
//!
//! A snapshot holds the effects of the entries up to a point. An *anchor* says what else the log below that
//! point has told: who belongs to the group, which proposals were answered, when each term began. Only once it
//! is durable may the log be cut there, and a cut is a *base*: where the log begins from then on.

use bytes::Bytes;

use crate::ids::{Index, LogPosition, SnapshotId, Term};
use crate::membership::Membership;

/// The most terms whose beginnings an anchor lists. Of more than that the oldest are forgotten.
pub const TERM_STARTS_MAX: usize = 256;

/// The most bytes of a session table in an anchor.
pub const SESSIONS_BYTES_MAX: usize = 1 << 20;

/// What the log up to a point amounts to, the effects on the state machine apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// The last entry that it covers.
    pub at: LogPosition,
    /// The membership in effect there.
    pub membership: Membership,
    /// The session table there. Empty until there are sessions.
    pub sessions: Bytes,
    /// The first index of each term up to there, oldest first; at most [`TERM_STARTS_MAX`], the newest ones.
    pub term_starts: Vec<(Term, Index)>,
}

/// Where a log begins: it was cut there, or a snapshot was received that reaches so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The last entry that is no longer in the log.
    pub at: LogPosition,
    /// The membership in effect there.
    pub membership: Membership,
    /// The snapshot that was received; none: the log was cut below its anchor.
    pub snapshot: Option<SnapshotId>,
    /// Where the log ends after it: where it ended before if it goes on from the base, else the base.
    pub tip: LogPosition,
}
