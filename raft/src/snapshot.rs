//! What a log amounts to at a point, so that what lies below it may go.
//!
//! A snapshot holds the effects of the entries up to a point. An *anchor* says what else the log below that
//! point has told: who belongs to the group, which proposals were answered, when each term began. Only once it
//! is durable may the log be cut there, and a cut is a *base*: where the log begins from then on.

use bytes::Bytes;

use crate::ids::{Index, LogPosition, SnapshotId, Term};
use crate::membership::Membership;
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

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

impl Encode for Anchor {
    fn encode(&self, out: &mut Writer<'_>) {
        self.at.encode(out);
        self.membership.encode(out);
        out.bytes(&self.sessions);
        let count = u32::try_from(self.term_starts.len()).expect("there are a few hundred at most");
        count.encode(out);
        for (term, index) in &self.term_starts {
            term.encode(out);
            index.encode(out);
        }
    }
}

impl Decode for Anchor {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = LogPosition::decode(input)?;
        let membership = Decode::decode(input)?;
        let sessions = input.bytes("session table", SESSIONS_BYTES_MAX)?;
        let sessions = Bytes::copy_from_slice(sessions);
        let term_starts = decode_term_starts(input, at)?;
        Ok(Self {
            at,
            membership,
            sessions,
            term_starts,
        })
    }
}

/// Each term begins above the one before it, and none above where the anchor lies.
fn decode_term_starts(
    input: &mut Reader<'_>,
    at: LogPosition,
) -> Result<Vec<(Term, Index)>, DecodeError> {
    let count = u32::decode(input)?;
    if count as usize > TERM_STARTS_MAX {
        return Err(DecodeError::TooLarge {
            what: "terms of an anchor",
            value: count.into(),
            max: TERM_STARTS_MAX as u64,
        });
    }
    let mut starts: Vec<(Term, Index)> = Vec::new();
    for _ in 0..count {
        let term = Term::decode(input)?;
        let index = Index::decode(input)?;
        let follows = starts
            .last()
            .is_none_or(|before| before.0 < term && before.1 < index);
        if !follows || term > at.term || index > at.index {
            return Err(DecodeError::Invalid {
                what: "first index of a term",
                value: index.0,
            });
        }
        starts.push((term, index));
    }
    Ok(starts)
}

impl Anchor {
    /// When terms began, as far as an index.
    #[must_use]
    pub fn term_starts_through(&self, index: Index) -> Vec<(Term, Index)> {
        let through = self.term_starts.iter();
        through
            .filter(|(_, first)| *first <= index)
            .copied()
            .collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Chain, Incarnation, NodeId, Replica};
    use crate::membership::Member;

    fn anchor() -> Anchor {
        let member = |id| Member {
            replica: Replica {
                id: NodeId(id),
                incarnation: Incarnation(u128::from(id) << 64),
            },
            address: format!("node-{id}:1"),
        };
        Anchor {
            at: LogPosition {
                index: Index(90),
                term: Term(7),
                chain: Chain(3),
            },
            membership: Membership::of_voters((1..=3).map(member).collect()),
            sessions: Bytes::from_static(b"sessions"),
            term_starts: vec![
                (Term(1), Index(1)),
                (Term(4), Index(20)),
                (Term(7), Index(90)),
            ],
        }
    }

    #[test]
    fn an_anchor_is_read_as_it_was_written() {
        for anchor in [anchor(), Anchor::default()] {
            let bytes = anchor.to_bytes();
            assert_eq!(Anchor::from_bytes(&bytes), Ok(anchor));
            for cut in 0..bytes.len() {
                assert!(Anchor::from_bytes(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn terms_that_no_log_has_are_refused() {
        let lists = [
            vec![(Term(2), Index(1)), (Term(2), Index(2))],
            vec![(Term(2), Index(5)), (Term(3), Index(5))],
            vec![(Term(3), Index(5)), (Term(2), Index(6))],
            vec![(Term(8), Index(5))],
            vec![(Term(7), Index(91))],
        ];
        for term_starts in lists {
            let wrong = Anchor {
                term_starts,
                ..anchor()
            };
            let refused = Anchor::from_bytes(&wrong.to_bytes());
            assert!(
                matches!(refused, Err(DecodeError::Invalid { .. })),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn more_than_an_anchor_holds_is_refused() {
        let many = (0..=TERM_STARTS_MAX as u64).map(|n| (Term(n), Index(n)));
        let mut long = anchor();
        long.at.term = Term(1000);
        long.at.index = Index(1000);
        long.term_starts = many.collect();
        let refused = Anchor::from_bytes(&long.to_bytes());
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })));
        long.term_starts.pop();
        assert_eq!(Anchor::from_bytes(&long.to_bytes()), Ok(long));
        let mut wide = anchor();
        wide.sessions = vec![0; SESSIONS_BYTES_MAX + 1].into();
        let refused = Anchor::from_bytes(&wide.to_bytes());
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })));
    }
}
