//! What replicas of a group say to each other.
//!
//! Nothing here proves anything by arriving. Every message names the replica and boot it comes from, and
//! every message that carries a commit index carries the chain at it.

use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::ids::{
    Boot, Chain, GroupId, Index, LogPosition, NodeId, Replica, ReplicationSession, Round, Term,
};
use crate::io::Guard;
use crate::limits::{
    APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, CONFIGURATIONS_MAX, FRAME_BYTES_MAX, MEMBERS_MAX,
};
use crate::membership::Membership;
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

mod repair;
mod transfer;

pub use repair::{Repair, Wanted};
pub use transfer::{MANIFEST_BYTES_MAX, Offered, PART_BYTES_MAX, Part, Progress, Transfer};

/// One message from a replica of a group to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub from: Replica,
    /// The boot in which it was said.
    pub boot: Boot,
    /// Which node it is for.
    pub to: NodeId,
    /// The group it is about.
    pub group: GroupId,
    /// The sender's term; of a pre-vote, the term that would be campaigned for.
    pub term: Term,
    /// What is said.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A candidate asks for a vote (Raft §5.2), or a pre-candidate whether it would get one (thesis §9.6).
    VoteRequest(VoteRequest),
    /// The answer.
    VoteReply(VoteReply),
    /// A leader extends a follower's log, or with no entries probes where it ends (Raft §5.3).
    Append(Append),
    /// A follower has made entries durable.
    Ack(Ack),
    /// A follower cannot place an append.
    Reject(Reject),
    /// A leader is alive (Raft §5.2).
    Heartbeat(Heartbeat),
    /// The answer.
    HeartbeatReply(HeartbeatReply),
    /// What a follower needs next is no longer in its leader's log.
    Behind(Behind),
    /// Asks a listed voter for its genesis.
    GenesisQuery(GenesisQuery),
    /// The answer: none yet, or this one.
    GenesisReply(GenesisReply),
    /// The lowest listed voter has written this genesis after every voter answered 'empty'.
    GenesisOffer(Genesis),
    /// Hands on a snapshot. Belongs to no term.
    Transfer(Transfer),
    /// Hands on entries that cannot be read. Belongs to no term.
    Repair(Repair),
    /// Asks a voter where its log ends, in a term higher than that of the asker's guard.
    SettleQuery(SettleQuery),
    /// The answer: no log that was acknowledged in a lower term goes on.
    SettleReply(SettleReply),
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Votes, heartbeats, genesis: small, never behind bulk.
    Control = 1,
    /// Appends of one group, in log order.
    Append = 2,
    /// Acks and rejections.
    Ack = 3,
    /// Parts of snapshots, and entries that cannot be read elsewhere, behind everything else.
    Snapshot = 4,
}

/// Asks for a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// Only asks what the answer would be.
    pub pre: bool,
    /// Where the candidate's log ends, appends in flight included.
    pub last: LogPosition,
}

/// Answers a vote request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// Answers a pre-vote.
    pub pre: bool,
    /// The vote is given. A granted pre-vote bears the term asked for, every other answer the voter's own.
    pub granted: bool,
}

/// A commit index and the chain at it, so that a receiver can tell whether it holds the same log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitPoint {
    /// The commit index.
    pub index: Index,
    /// The chain through the entry there.
    pub chain: Chain,
}

/// Extends a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The append stream this belongs to.
    pub session: ReplicationSession,
    /// What must lie right before the entries.
    pub prev: LogPosition,
    /// The entries, without gaps; none in a probe.
    pub entries: Vec<Entry>,
    /// How far the leader knows the log to be committed.
    pub commit: CommitPoint,
    /// Where the leader's log ends.
    pub last_index: Index,
    /// The round in which this was sent.
    pub round: Round,
    /// The boot of the follower that the leader has heard of: what it sends since then was sent in that boot.
    pub heard: Option<Boot>,
}

/// A follower's log is durable and proved equal to the leader's up to here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The append stream it answers.
    pub session: ReplicationSession,
    /// min(durable, last index proved equal to this leader's log in this session).
    pub index: Index,
    /// The chain at that index; the leader counts the ack only if it is its own.
    pub chain: Chain,
    /// The newest round seen from this leader.
    pub round: Round,
}

/// A follower's log does not hold what must lie before an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The append stream it answers.
    pub session: ReplicationSession,
    /// The prev index that could not be placed.
    pub prev_index: Index,
    /// Where to probe next: the last place of the follower's log that may agree.
    pub hint: LogPosition,
    /// The newest round seen from this leader.
    pub round: Round,
}

/// A leader is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// How far the leader knows the log to be committed.
    pub commit: CommitPoint,
    /// Where the leader's log ends.
    pub last_index: Index,
    /// The round in which this was sent.
    pub round: Round,
    /// The boot of the follower that the leader has heard of.
    pub heard: Option<Boot>,
}

/// Answers a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// The round of the heartbeat.
    pub round: Round,
}

/// A follower's log ends below where the leader's begins: it has to fetch a snapshot, from whoever has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The append stream that came to this end.
    pub session: ReplicationSession,
    /// Where the leader's log begins.
    pub base: LogPosition,
    /// The round in which this was sent.
    pub round: Round,
}

/// Asks for a genesis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenesisQuery {
    /// Which question. Never asked twice, also not by another life of the asker's directory.
    pub question: u64,
    /// The voters that the asker's configuration lists.
    pub voters: Vec<NodeId>,
}

/// Answers a query for a genesis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenesisReply {
    /// The question it answers. An answer to an earlier one says what was, not what is.
    pub question: u64,
    /// The genesis this replica holds; `None`: its directory is empty.
    pub genesis: Option<Genesis>,
}

/// Asks where a log ends, so that a guard can be settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleQuery {
    /// What the asker may have acknowledged.
    pub guard: Guard,
}

/// Says where a log ends. The term of the message is durable where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleReply {
    /// It knows all that it ever acknowledged.
    pub whole: bool,
    /// Where its log ends, durably.
    pub last: LogPosition,
    /// What it may have acknowledged itself and does not hold.
    pub guard: Option<Guard>,
    /// The memberships in its log, from what it knows to be committed on.
    pub configurations: Vec<Membership>,
}

impl Message {
    /// How it travels.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match &self.body {
            Body::Append(_) => Lane::Append,
            Body::Ack(_) | Body::Reject(_) => Lane::Ack,
            Body::Transfer(Transfer::Part { .. }) | Body::Repair(Repair::Have { .. }) => {
                Lane::Snapshot
            }
            Body::VoteRequest(_)
            | Body::VoteReply(_)
            | Body::Heartbeat(_)
            | Body::HeartbeatReply(_)
            | Body::Behind(_)
            | Body::GenesisQuery(_)
            | Body::GenesisReply(_)
            | Body::GenesisOffer(_)
            | Body::SettleQuery(_)
            | Body::SettleReply(_)
            | Body::Transfer(_)
            | Body::Repair(_) => Lane::Control,
        }
    }

    /// About how many bytes it takes on the wire and in queues.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let bulk = match &self.body {
            Body::Append(append) => append.entries.iter().map(|entry| entry.frame().len()).sum(),
            Body::Transfer(transfer) => transfer.cost_bytes(),
            Body::Repair(repair) => repair.cost_bytes(),
            Body::SettleReply(reply) => {
                let members = reply.configurations.iter().map(Membership::cost_bytes);
                members.sum()
            }
            _ => 0,
        };
        256 + bulk
    }
}

/// Everything of a message but the frames of its entries, which follow as they are.
///
/// A transport writes the encoding of a message without its frames, then each frame's bytes untouched.
impl Encode for Message {
    fn encode(&self, out: &mut Writer<'_>) {
        self.encode_head(out);
        if let Body::Append(append) = &self.body {
            for entry in &append.entries {
                out.raw(entry.frame());
            }
        }
    }
}

impl Message {
    /// Encodes everything but the frames of the entries. The frames follow, in order, as they are.
    pub fn encode_head(&self, out: &mut Writer<'_>) {
        self.from.encode(out);
        self.boot.encode(out);
        self.to.encode(out);
        self.group.encode(out);
        self.term.encode(out);
        match &self.body {
            Body::VoteRequest(body) => {
                1_u8.encode(out);
                body.pre.encode(out);
                body.last.encode(out);
            }
            Body::VoteReply(body) => {
                2_u8.encode(out);
                body.pre.encode(out);
                body.granted.encode(out);
            }
            Body::Append(body) => {
                3_u8.encode(out);
                body.session.encode(out);
                body.prev.encode(out);
                body.commit.index.encode(out);
                body.commit.chain.encode(out);
                body.last_index.encode(out);
                body.round.encode(out);
                body.heard.encode(out);
                let count = u32::try_from(body.entries.len()).expect("APPEND_ENTRIES_MAX is small");
                count.encode(out);
                for entry in &body.entries {
                    let bytes = u32::try_from(entry.frame().len()).expect("FRAME_BYTES_MAX");
                    bytes.encode(out);
                }
            }
            Body::Ack(body) => {
                4_u8.encode(out);
                body.session.encode(out);
                body.index.encode(out);
                body.chain.encode(out);
                body.round.encode(out);
            }
            Body::Reject(body) => {
                5_u8.encode(out);
                body.session.encode(out);
                body.prev_index.encode(out);
                body.hint.encode(out);
                body.round.encode(out);
            }
            Body::Heartbeat(body) => {
                6_u8.encode(out);
                body.commit.index.encode(out);
                body.commit.chain.encode(out);
                body.last_index.encode(out);
                body.round.encode(out);
                body.heard.encode(out);
            }
            Body::HeartbeatReply(body) => {
                7_u8.encode(out);
                body.round.encode(out);
            }
            Body::GenesisQuery(body) => {
                8_u8.encode(out);
                body.question.encode(out);
                out.list(&body.voters);
            }
            Body::GenesisReply(body) => {
                9_u8.encode(out);
                body.question.encode(out);
                body.genesis.encode(out);
            }
            Body::GenesisOffer(genesis) => {
                10_u8.encode(out);
                genesis.encode(out);
            }
            Body::Behind(body) => {
                11_u8.encode(out);
                body.session.encode(out);
                body.base.encode(out);
                body.round.encode(out);
            }
            Body::Transfer(transfer) => {
                12_u8.encode(out);
                transfer.encode(out);
            }
            Body::Repair(repair) => {
                13_u8.encode(out);
                repair.encode(out);
            }
            Body::SettleQuery(body) => {
                14_u8.encode(out);
                body.guard.encode(out);
            }
            Body::SettleReply(body) => {
                15_u8.encode(out);
                body.whole.encode(out);
                body.last.encode(out);
                body.guard.encode(out);
                out.list(&body.configurations);
            }
        }
    }

    /// Reads a message out of `bytes`, all of it. Frames are shared with `bytes`, not copied, and their
    /// checksums are verified; whether they continue a log is for the core.
    pub fn from_shared(bytes: &bytes::Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let mut message = Self::decode_fields(&mut input, bytes)?;
        let Body::Append(append) = &mut message.body else {
            input.finish()?;
            return Ok(message);
        };
        let lengths: Vec<u32> = input.list("entries", APPEND_ENTRIES_MAX)?;
        let total: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        if total > APPEND_BYTES_MAX as u64 {
            let max = APPEND_BYTES_MAX as u64;
            return Err(DecodeError::TooLarge {
                what: "append",
                value: total,
                max,
            });
        }
        for length in lengths {
            let length = length as usize;
            if length > FRAME_BYTES_MAX {
                let max = FRAME_BYTES_MAX as u64;
                return Err(DecodeError::TooLarge {
                    what: "frame",
                    value: length as u64,
                    max,
                });
            }
            let at = bytes.len() - input.left();
            input.raw(length)?;
            append
                .entries
                .push(Entry::from_frame(bytes.slice(at..at + length))?);
        }
        input.finish()?;
        Ok(message)
    }

    fn decode_fields(input: &mut Reader<'_>, shared: &bytes::Bytes) -> Result<Self, DecodeError> {
        let from = Decode::decode(input)?;
        let boot = Decode::decode(input)?;
        let to = Decode::decode(input)?;
        let group = Decode::decode(input)?;
        let term = Decode::decode(input)?;
        let body = match u8::decode(input)? {
            1 => Body::VoteRequest(VoteRequest {
                pre: Decode::decode(input)?,
                last: Decode::decode(input)?,
            }),
            2 => Body::VoteReply(VoteReply {
                pre: Decode::decode(input)?,
                granted: Decode::decode(input)?,
            }),
            3 => Body::Append(Append {
                session: Decode::decode(input)?,
                prev: Decode::decode(input)?,
                commit: decode_commit(input)?,
                last_index: Decode::decode(input)?,
                round: Decode::decode(input)?,
                heard: Decode::decode(input)?,
                entries: Vec::new(),
            }),
            4 => Body::Ack(Ack {
                session: Decode::decode(input)?,
                index: Decode::decode(input)?,
                chain: Decode::decode(input)?,
                round: Decode::decode(input)?,
            }),
            5 => Body::Reject(Reject {
                session: Decode::decode(input)?,
                prev_index: Decode::decode(input)?,
                hint: Decode::decode(input)?,
                round: Decode::decode(input)?,
            }),
            6 => Body::Heartbeat(Heartbeat {
                commit: decode_commit(input)?,
                last_index: Decode::decode(input)?,
                round: Decode::decode(input)?,
                heard: Decode::decode(input)?,
            }),
            7 => Body::HeartbeatReply(HeartbeatReply {
                round: Decode::decode(input)?,
            }),
            8 => Body::GenesisQuery(GenesisQuery {
                question: Decode::decode(input)?,
                voters: input.list("voters", MEMBERS_MAX)?,
            }),
            9 => Body::GenesisReply(GenesisReply {
                question: Decode::decode(input)?,
                genesis: Decode::decode(input)?,
            }),
            10 => Body::GenesisOffer(Decode::decode(input)?),
            11 => Body::Behind(Behind {
                session: Decode::decode(input)?,
                base: Decode::decode(input)?,
                round: Decode::decode(input)?,
            }),
            12 => Body::Transfer(Transfer::decode_shared(input, shared)?),
            13 => Body::Repair(Repair::decode_shared(input, shared)?),
            14 => Body::SettleQuery(SettleQuery {
                guard: Decode::decode(input)?,
            }),
            15 => Body::SettleReply(SettleReply {
                whole: Decode::decode(input)?,
                last: Decode::decode(input)?,
                guard: Decode::decode(input)?,
                configurations: input.list("configurations", CONFIGURATIONS_MAX)?,
            }),
            kind => {
                let value = u64::from(kind);
                return Err(DecodeError::Invalid {
                    what: "message kind",
                    value,
                });
            }
        };
        Ok(Self {
            from,
            boot,
            to,
            group,
            term,
            body,
        })
    }
}

fn decode_commit(input: &mut Reader<'_>) -> Result<CommitPoint, DecodeError> {
    Ok(CommitPoint {
        index: Decode::decode(input)?,
        chain: Decode::decode(input)?,
    })
}

impl Decode for Message {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let rest = input.raw(input.left())?;
        Self::from_shared(&bytes::Bytes::copy_from_slice(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryBuilder;
    use crate::ids::Chain;
    use crate::wire::Encode;

    /// An append of one entry, as a peer with other features would send it: `change` is what it says of them.
    fn append_of(change: impl FnOnce(&mut [u8])) -> Result<Message, DecodeError> {
        let mut builder = EntryBuilder::with_room(1, 8);
        builder.push(b"abc");
        let prev = LogPosition::default();
        let entry = builder
            .finish()
            .seal(GroupId(1), Term(1), Index(1), prev.chain);
        let frame_bytes = entry.frame().len();
        let message = Message {
            from: Replica::default(),
            boot: Boot(1),
            to: NodeId(2),
            group: GroupId(1),
            term: Term(1),
            body: Body::Append(Append {
                session: ReplicationSession::default(),
                prev,
                commit: CommitPoint::default(),
                last_index: Index(1),
                round: Round::default(),
                heard: None,
                entries: vec![entry],
            }),
        };
        let mut bytes = message.to_bytes().to_vec();
        let at = bytes.len() - frame_bytes;
        let frame = &mut bytes[at..];
        change(frame);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..60]), &frame[64..80]);
        frame[60..64].copy_from_slice(&crc.to_le_bytes());
        Message::from_shared(&bytes.into())
    }

    #[test]
    fn an_entry_with_a_feature_that_may_not_be_ignored_is_refused() {
        let refused = append_of(|frame| frame[8] = 0x40).unwrap_err();
        let expected = "entry uses features 0x40 that this build does not know: upgrade logdrive";
        assert_eq!(refused.to_string(), expected);
    }

    #[test]
    fn an_entry_with_a_feature_that_may_be_ignored_keeps_it() {
        let message = append_of(|frame| frame[12] = 0x40).unwrap();
        let Body::Append(append) = &message.body else {
            panic!("{message:?}");
        };
        let entry = &append.entries[0];
        assert_eq!(entry.header().compatible, 0x40);
        // The chain covers it, so it cannot get lost on the way.
        assert!(entry.header().chain_after(Chain(0)) != entry.header().chain);
    }
}
