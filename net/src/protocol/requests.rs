//! Frames of requests: proposals, questions for the status, and what an operator asks of a node.

use bytes::{BufMut, Bytes, BytesMut};
use logdrive_raft::GroupId;
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use logdrive_raft::wire::{Decode, DecodeError, Reader};

use super::{FRAME_PROPOSALS_MAX, REQUEST_FRAME_BYTES_MAX, begin_frame, end_frame};

/// A frame of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requests {
    /// Proposals to one group.
    Propose(ProposeBatch),
    /// The node's status.
    Status {
        /// Under which number it is answered.
        id: u64,
    },
    /// A snapshot of a group, taken now.
    Snapshot {
        /// Under which number it is answered.
        id: u64,
        /// Of which group.
        group: GroupId,
    },
}

/// Proposals to one group, with consecutive ids. Their payloads lie in the frame in which they came.
#[derive(Clone, PartialEq, Eq)]
pub struct ProposeBatch {
    first_id: u64,
    group: GroupId,
    deadline_ms: u32,
    count: u32,
    frame: Bytes,
}

impl ProposeBatch {
    /// The id of the first proposal. The others follow.
    #[must_use]
    pub fn first_id(&self) -> u64 {
        self.first_id
    }

    /// The group they are for.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// How long the client waits from when they came.
    #[must_use]
    pub fn deadline_ms(&self) -> u32 {
        self.deadline_ms
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Never: an empty batch is not decoded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all payloads.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.frame.len() - self.payloads_at()
    }

    /// About how many bytes it takes while it waits.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Id and payload of each, in order.
    pub fn payloads(&self) -> impl ExactSizeIterator<Item = (u64, &[u8])> + '_ {
        let (table, mut rest) = self.frame[PROPOSALS_HEAD_BYTES..].split_at(4 * self.len());
        let first = self.first_id;
        table
            .as_chunks::<4>()
            .0
            .iter()
            .enumerate()
            .map(move |(at, length)| {
                let (payload, after) = rest.split_at(u32::from_le_bytes(*length) as usize);
                rest = after;
                (first + at as u64, payload)
            })
    }

    fn payloads_at(&self) -> usize {
        PROPOSALS_HEAD_BYTES + 4 * self.len()
    }
}

impl std::fmt::Debug for ProposeBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, group, count) = (self.first_id, self.group, self.count);
        write!(f, "ProposeBatch({count} from {first} to group {group}, ")?;
        write!(f, "{} bytes)", self.payload_bytes())
    }
}

impl Requests {
    /// Reads a frame. Payloads stay in `frame`. All lengths are checked here.
    pub fn from_shared(frame: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(&frame);
        match u8::decode(&mut input)? {
            PROPOSALS => {
                let first_id = u64::decode(&mut input)?;
                let group = GroupId::decode(&mut input)?;
                let deadline_ms = u32::decode(&mut input)?;
                let count = u32::decode(&mut input)?;
                if count == 0 || count as usize > FRAME_PROPOSALS_MAX {
                    return Err(DecodeError::TooLarge {
                        what: "count of proposals",
                        value: u64::from(count),
                        max: FRAME_PROPOSALS_MAX as u64,
                    });
                }
                if first_id.checked_add(u64::from(count)).is_none() {
                    return Err(DecodeError::Invalid {
                        what: "id of a proposal",
                        value: first_id,
                    });
                }
                let table = input.raw(4 * count as usize)?;
                let mut total = 0_u64;
                for length in table.as_chunks::<4>().0 {
                    let length = u32::from_le_bytes(*length);
                    if length as usize > ENTRY_PAYLOAD_BYTES_MAX {
                        return Err(DecodeError::TooLarge {
                            what: "payload",
                            value: u64::from(length),
                            max: ENTRY_PAYLOAD_BYTES_MAX as u64,
                        });
                    }
                    total += u64::from(length);
                }
                let left = input.left();
                if total > left as u64 {
                    return Err(DecodeError::Short {
                        needed: usize::try_from(total).unwrap_or(usize::MAX),
                        left,
                    });
                }
                if total < left as u64 {
                    let total = usize::try_from(total).expect("less than what is left");
                    return Err(DecodeError::Trailing(left - total));
                }
                Ok(Self::Propose(ProposeBatch {
                    first_id,
                    group,
                    deadline_ms,
                    count,
                    frame,
                }))
            }
            STATUS => {
                let id = u64::decode(&mut input)?;
                input.finish()?;
                Ok(Self::Status { id })
            }
            SNAPSHOT => {
                let id = u64::decode(&mut input)?;
                let group = GroupId::decode(&mut input)?;
                input.finish()?;
                Ok(Self::Snapshot { id, group })
            }
            kind => Err(DecodeError::Invalid {
                what: "kind of request",
                value: u64::from(kind),
            }),
        }
    }
}

impl Decode for Requests {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let rest = input.raw(input.left())?;
        Self::from_shared(Bytes::copy_from_slice(rest))
    }
}

/// Appends a frame of proposals, its length before it.
///
/// # Panics
///
/// If there are none, or more or larger ones than a frame may carry.
pub(crate) fn put_proposals<'a>(
    out: &mut BytesMut,
    first_id: u64,
    group: GroupId,
    deadline_ms: u32,
    payloads: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
) {
    let count = payloads.len();
    assert!(count > 0 && count <= FRAME_PROPOSALS_MAX);
    let start = begin_frame(out);
    out.put_u8(PROPOSALS);
    out.put_u64_le(first_id);
    out.put_u64_le(group.0);
    out.put_u32_le(deadline_ms);
    out.put_u32_le(u32::try_from(count).expect("asserted above"));
    for payload in payloads.clone() {
        out.put_u32_le(u32::try_from(payload.len()).expect("checked at the door"));
    }
    for payload in payloads {
        out.put_slice(payload);
    }
    let bytes = end_frame(out, start);
    assert!(bytes <= REQUEST_FRAME_BYTES_MAX);
}

/// Appends a frame that asks for the status.
pub(crate) fn put_status_request(out: &mut BytesMut, id: u64) {
    let start = begin_frame(out);
    out.put_u8(STATUS);
    out.put_u64_le(id);
    end_frame(out, start);
}

/// Appends a frame that asks for a snapshot of a group.
pub(crate) fn put_snapshot_request(out: &mut BytesMut, id: u64, group: GroupId) {
    let start = begin_frame(out);
    out.put_u8(SNAPSHOT);
    out.put_u64_le(id);
    out.put_u64_le(group.0);
    end_frame(out, start);
}

/// Bytes of a frame of proposals before their lengths.
pub(crate) const PROPOSALS_HEAD_BYTES: usize = 25;

const PROPOSALS: u8 = 1;
const STATUS: u8 = 2;
const SNAPSHOT: u8 = 3;
