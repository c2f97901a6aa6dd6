//! What clients and servers say to each other, on one bidirectional stream a connection.
//!
//! Both directions begin with a greeting and go on with frames, each a length (u32) and its bytes. A frame
//! carries many requests or responses: at a million a second neither side can afford more than a few dozen
//! nanoseconds for one. So nothing is allocated for a request or response; they are slices of the frame.
//!
//! ```text
//! greeting   0 magic u32              client "LDcl", server "LDsv"
//!            4 protocol_min u16, 6 protocol_max u16, 8 incompatible u32, 12 compatible u32
//!           16 cluster u128           0 from a client that does not know it
//!           32 node u64               of a client: its number
//!
//! proposals  0 kind u8 = 1
//!            1 first_id u64           proposals have consecutive ids from here on
//!            9 group u64
//!           17 deadline_ms u32        how long the client waits, counted from now
//!           21 count u32
//!           25 count lengths u32, then the payloads
//! status     0 kind u8 = 2
//!            1 id u64
//!
//! responses  any number of:
//!   applied  0 kind u8 = 1
//!            1 first_id u64           consecutive ids, in consecutive slots of one entry
//!            9 index u64, 17 first_slot u32, 21 count u32
//!           25 count times: length u32, output
//!   never    0 kind u8 = 2            appended neither now nor later
//!            1 first_id u64, 9 count u32, 13 code u16, 15 retry_after_ms u32
//!           19 hint u8                1: leader u64, length u16, address
//!   may yet  0 kind u8 = 3            may commit later, or has
//!            1 first_id u64, 9 count u32, 13 code u16
//!   status   0 kind u8 = 4
//!            1 id u64, 9 length u32, JSON
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use logdrive_raft::limits::{ADDRESS_BYTES_MAX, ENTRY_PAYLOAD_BYTES_MAX, ENTRY_PROPOSALS_MAX};
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{ClusterId, GroupId, Index, NodeId};

use crate::address::{decode_address, encode_address};
use crate::hello::{PROTOCOL_MAX, PROTOCOL_MIN, check_versions};

/// The most bytes of a frame of requests.
pub const REQUEST_FRAME_BYTES_MAX: usize =
    PROPOSALS_HEAD_BYTES + 4 * FRAME_PROPOSALS_MAX + ENTRY_PAYLOAD_BYTES_MAX;

/// The most proposals in a frame.
pub const FRAME_PROPOSALS_MAX: usize = ENTRY_PROPOSALS_MAX;

/// The most bytes of what a state machine answers to one proposal.
pub const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// The most bytes of a frame of responses. One output of any size fits.
pub const RESPONSE_FRAME_BYTES_MAX: usize = OUTPUT_BYTES_MAX + (1 << 20);

/// Bytes of a frame of proposals before their lengths.
pub(crate) const PROPOSALS_HEAD_BYTES: usize = 25;

const CLIENT_MAGIC: u32 = u32::from_le_bytes(*b"LDcl");
const SERVER_MAGIC: u32 = u32::from_le_bytes(*b"LDsv");

/// What went wrong with a request. The number travels; the name is for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $constant:ident = $number:literal, $name:literal;)*) => {
        impl Code {
            $($(#[doc = $doc])* pub const $constant: Code = Code($number);)*

            /// A name that does not change.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($number => $name,)*
                    _ => "unknown",
                }
            }
        }
    };
}

codes! {
    /// Somebody else leads, or nobody.
    NOT_LEADER = 1, "not_leader";
    /// As much as may be under way is under way.
    BUSY = 2, "busy";
    /// The write-ahead log has no room.
    STORAGE_FULL = 3, "storage_full";
    /// A payload is larger than one may be.
    TOO_LARGE = 4, "too_large";
    /// There is no such group here.
    UNKNOWN_GROUP = 5, "unknown_group";
    /// The group has halted.
    HALTED = 6, "halted";
    /// The node shuts down.
    SHUTTING_DOWN = 7, "shutting_down";
    /// The deadline came first.
    DEADLINE = 8, "deadline";
    /// The connection broke.
    CONNECTION_LOST = 9, "connection_lost";
    /// Leadership was lost while the proposal was under way.
    LEADERSHIP_LOST = 10, "leadership_lost";
    /// No server could be reached.
    UNREACHABLE = 11, "unreachable";
    /// The certificate does not allow it.
    FORBIDDEN = 12, "forbidden";
    /// The state machine's answer is larger than one may be.
    OUTPUT_TOO_LARGE = 13, "output_too_large";
    /// The node shut down before the proposal was applied.
    SHUT_DOWN_BEFORE_APPLY = 14, "shut_down_before_apply";
    /// The group halted before the proposal was applied.
    HALTED_BEFORE_APPLY = 15, "halted_before_apply";
    /// The engine ended without an answer.
    ABANDONED = 16, "abandoned";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            "unknown" => write!(f, "code {}", self.0),
            name => f.write_str(name),
        }
    }
}

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientGreeting {
    /// Features the server may ignore.
    pub compatible: u32,
    /// The cluster it means; 0 if it does not know.
    pub cluster: ClusterId,
    /// Its number, as in its certificate.
    pub client: NodeId,
}

/// What a server answers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerGreeting {
    /// Features the client may ignore.
    pub compatible: u32,
    /// The cluster it serves.
    pub cluster: ClusterId,
    /// Its number.
    pub node: NodeId,
}

impl Encode for ClientGreeting {
    fn encode(&self, out: &mut Writer<'_>) {
        encode_greeting(
            out,
            CLIENT_MAGIC,
            self.compatible,
            self.cluster,
            self.client,
        );
    }
}

impl Encode for ServerGreeting {
    fn encode(&self, out: &mut Writer<'_>) {
        encode_greeting(out, SERVER_MAGIC, self.compatible, self.cluster, self.node);
    }
}

impl Decode for ClientGreeting {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (compatible, cluster, client) = decode_greeting(input, CLIENT_MAGIC)?;
        Ok(Self {
            compatible,
            cluster,
            client,
        })
    }
}

impl Decode for ServerGreeting {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (compatible, cluster, node) = decode_greeting(input, SERVER_MAGIC)?;
        Ok(Self {
            compatible,
            cluster,
            node,
        })
    }
}

fn encode_greeting(
    out: &mut Writer<'_>,
    magic: u32,
    compatible: u32,
    cluster: ClusterId,
    node: NodeId,
) {
    magic.encode(out);
    PROTOCOL_MIN.encode(out);
    PROTOCOL_MAX.encode(out);
    0_u32.encode(out);
    compatible.encode(out);
    cluster.encode(out);
    node.encode(out);
}

fn decode_greeting(
    input: &mut Reader<'_>,
    magic: u32,
) -> Result<(u32, ClusterId, NodeId), DecodeError> {
    let found = u32::decode(input)?;
    if found != magic {
        return Err(DecodeError::Invalid {
            what: "greeting magic",
            value: u64::from(found),
        });
    }
    let protocol_min = u16::decode(input)?;
    let protocol_max = u16::decode(input)?;
    let incompatible = u32::decode(input)?;
    let compatible = u32::decode(input)?;
    check_versions("greeting", protocol_min, protocol_max, incompatible)?;
    let greeting = (compatible, Decode::decode(input)?, Decode::decode(input)?);
    if protocol_max > PROTOCOL_MAX {
        input.raw(input.left())?;
    }
    Ok(greeting)
}

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

/// Makes room for the length of a frame; returns where the frame begins.
pub(crate) fn begin_frame(out: &mut BytesMut) -> usize {
    out.put_u32_le(0);
    out.len()
}

/// Writes the length of the frame that began at `start`; returns it.
pub(crate) fn end_frame(out: &mut BytesMut, start: usize) -> usize {
    let bytes = out.len() - start;
    let length = u32::try_from(bytes).expect("frames are bounded far below 4 GiB");
    out[start - 4..start].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Where a leader is thought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    /// The leader.
    pub leader: NodeId,
    /// Where clients reach it.
    pub address: String,
}

/// One response, or a run of them, as slices of their frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// Proposals were applied: consecutive ids, in consecutive slots of one entry.
    Applied {
        /// The id of the first.
        first_id: u64,
        /// The entry.
        index: Index,
        /// The slot of the first.
        first_slot: u32,
        /// What the state machine answered to each.
        outputs: Outputs<'a>,
    },
    /// Were not appended and will not be.
    NeverAppended {
        /// The first of them.
        first_id: u64,
        /// How many.
        count: u32,
        /// Why.
        code: Code,
        /// When to try again; 0 says nothing.
        retry_after_ms: u32,
        /// Where to.
        hint: Option<LeaderHint>,
    },
    /// May have been appended.
    MayYetCommit {
        /// The first of them.
        first_id: u64,
        /// How many.
        count: u32,
        /// Why nobody knows.
        code: Code,
    },
    /// The node's status.
    Status {
        /// The request.
        id: u64,
        /// As JSON.
        json: &'a [u8],
    },
}

/// The outputs of a run, in the order of their slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Outputs<'a> {
    /// `bytes` must have been decoded as so many outputs.
    pub(crate) fn new(count: u32, bytes: &'a [u8]) -> Self {
        Self { count, bytes }
    }

    /// All of them, as they stand in the frame.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl<'a> Iterator for Outputs<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        let (length, rest) = self
            .bytes
            .split_first_chunk::<4>()
            .expect("checked when decoded");
        let (output, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        self.bytes = rest;
        Some(output)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count as usize, Some(self.count as usize))
    }
}

impl ExactSizeIterator for Outputs<'_> {}

/// Reads the next response of a frame.
pub fn next_response<'a>(input: &mut Reader<'a>) -> Result<Response<'a>, DecodeError> {
    match u8::decode(input)? {
        APPLIED => {
            let first_id = u64::decode(input)?;
            let index = Index::decode(input)?;
            let first_slot = u32::decode(input)?;
            let count = decode_count(input, first_id)?;
            if first_slot.checked_add(count).is_none() {
                return Err(DecodeError::Invalid {
                    what: "slot",
                    value: u64::from(first_slot),
                });
            }
            let mut ahead = input.clone();
            for _ in 0..count {
                ahead.bytes("output", OUTPUT_BYTES_MAX)?;
            }
            let bytes = input.raw(input.left() - ahead.left())?;
            let outputs = Outputs { count, bytes };
            Ok(Response::Applied {
                first_id,
                index,
                first_slot,
                outputs,
            })
        }
        NEVER => {
            let first_id = u64::decode(input)?;
            Ok(Response::NeverAppended {
                first_id,
                count: decode_count(input, first_id)?,
                code: Code(Decode::decode(input)?),
                retry_after_ms: Decode::decode(input)?,
                hint: match bool::decode(input)? {
                    false => None,
                    true => Some(LeaderHint {
                        leader: Decode::decode(input)?,
                        address: decode_address(input)?,
                    }),
                },
            })
        }
        MAY_YET => {
            let first_id = u64::decode(input)?;
            Ok(Response::MayYetCommit {
                first_id,
                count: decode_count(input, first_id)?,
                code: Code(Decode::decode(input)?),
            })
        }
        STATUS_JSON => Ok(Response::Status {
            id: Decode::decode(input)?,
            json: input.bytes("status", OUTPUT_BYTES_MAX)?,
        }),
        kind => Err(DecodeError::Invalid {
            what: "kind of response",
            value: u64::from(kind),
        }),
    }
}

/// A frame of responses, all of it checked: what stands in the table of decoders.
#[derive(Debug)]
pub(crate) struct Responses;

impl Decode for Responses {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        while input.left() > 0 {
            next_response(input)?;
        }
        Ok(Self)
    }
}

/// How many consecutive ids from `first_id` on are meant.
fn decode_count(input: &mut Reader<'_>, first_id: u64) -> Result<u32, DecodeError> {
    let count = u32::decode(input)?;
    if count == 0 || first_id.checked_add(u64::from(count)).is_none() {
        return Err(DecodeError::Invalid {
            what: "count of responses",
            value: u64::from(count),
        });
    }
    Ok(count)
}

/// Appends responses to one frame after another. Consecutive applied proposals become one run.
#[derive(Debug, Default)]
pub(crate) struct ResponseEncoder {
    out: BytesMut,
    /// Where the frame under construction begins.
    frame: Option<usize>,
    run: Option<Run>,
}

/// A run that can still grow.
#[derive(Debug)]
struct Run {
    next_id: u64,
    index: Index,
    next_slot: u32,
    count: u32,
    count_at: usize,
}

impl ResponseEncoder {
    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Takes out everything as whole frames.
    pub(crate) fn take(&mut self) -> Bytes {
        self.end_frame();
        self.out.split().freeze()
    }

    /// A proposal was applied.
    pub(crate) fn applied(&mut self, id: u64, index: Index, slot: u32, output: &[u8]) {
        if output.len() > OUTPUT_BYTES_MAX {
            return self.may_yet_commit(id, 1, Code::OUTPUT_TOO_LARGE);
        }
        let grows = self.run.as_ref().is_some_and(|run| {
            (run.next_id, run.index, run.next_slot) == (id, index, slot)
                && self
                    .frame
                    .is_some_and(|start| self.fits(start, output.len()))
        });
        if !grows {
            self.begin_record(33 + output.len());
            self.out.put_u8(APPLIED);
            self.out.put_u64_le(id);
            self.out.put_u64_le(index.0);
            self.out.put_u32_le(slot);
            let count_at = self.out.len();
            self.out.put_u32_le(0);
            self.run = Some(Run {
                next_id: id,
                index,
                next_slot: slot,
                count: 0,
                count_at,
            });
        }
        self.out
            .put_u32_le(u32::try_from(output.len()).expect("checked above"));
        self.out.put_slice(output);
        let run = self.run.as_mut().expect("begun above or before");
        run.next_id += 1;
        run.next_slot += 1;
        run.count += 1;
    }

    /// Requests were not appended and will not be.
    pub(crate) fn never_appended(
        &mut self,
        first_id: u64,
        count: u32,
        code: Code,
        retry_after_ms: u32,
        hint: Option<(NodeId, &str)>,
    ) {
        self.begin_record(32 + ADDRESS_BYTES_MAX);
        self.out.put_u8(NEVER);
        self.out.put_u64_le(first_id);
        self.out.put_u32_le(count);
        self.out.put_u16_le(code.0);
        self.out.put_u32_le(retry_after_ms);
        let hint = hint.filter(|(_, address)| address.len() <= ADDRESS_BYTES_MAX);
        self.out.put_u8(u8::from(hint.is_some()));
        if let Some((leader, address)) = hint {
            self.out.put_u64_le(leader.0);
            encode_address(address, &mut Writer::new(&mut self.out));
        }
    }

    /// Requests may have been appended.
    pub(crate) fn may_yet_commit(&mut self, first_id: u64, count: u32, code: Code) {
        self.begin_record(16);
        self.out.put_u8(MAY_YET);
        self.out.put_u64_le(first_id);
        self.out.put_u32_le(count);
        self.out.put_u16_le(code.0);
    }

    /// The node's status.
    pub(crate) fn status(&mut self, id: u64, json: &[u8]) {
        let json = if json.len() <= OUTPUT_BYTES_MAX {
            json
        } else {
            b"{}"
        };
        self.begin_record(16 + json.len());
        self.out.put_u8(STATUS_JSON);
        self.out.put_u64_le(id);
        Writer::new(&mut self.out).bytes(json);
    }

    fn fits(&self, start: usize, bytes: usize) -> bool {
        self.out.len() - start + bytes <= FRAME_BYTES_WANTED
    }

    fn begin_record(&mut self, bytes: usize) {
        self.end_run();
        if self.frame.is_some_and(|start| !self.fits(start, bytes)) {
            self.end_frame();
        }
        if self.frame.is_none() {
            self.frame = Some(begin_frame(&mut self.out));
        }
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            let count = run.count.to_le_bytes();
            self.out[run.count_at..run.count_at + 4].copy_from_slice(&count);
        }
    }

    fn end_frame(&mut self) {
        self.end_run();
        if let Some(start) = self.frame.take() {
            let bytes = end_frame(&mut self.out, start);
            assert!(bytes <= RESPONSE_FRAME_BYTES_MAX);
        }
    }
}

const PROPOSALS: u8 = 1;
const STATUS: u8 = 2;

const APPLIED: u8 = 1;
const NEVER: u8 = 2;
const MAY_YET: u8 = 3;
const STATUS_JSON: u8 = 4;

/// A frame of responses is closed about here. One larger output has a frame of its own.
const FRAME_BYTES_WANTED: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decoders::tests::hex;

    fn frame_of(out: &BytesMut) -> Bytes {
        let length = u32::from_le_bytes(out[..4].try_into().unwrap()) as usize;
        assert_eq!(out.len(), 4 + length);
        Bytes::copy_from_slice(&out[4..])
    }

    #[test]
    fn golden_bytes() {
        let greeting = ClientGreeting {
            compatible: 0,
            cluster: ClusterId(1),
            client: NodeId(2),
        };
        let head = "4c44636c01000200000000000000000001000000000000000000000000000000";
        assert_eq!(hex(&greeting.to_bytes()), format!("{head}0200000000000000"));
        let greeting = ServerGreeting {
            compatible: 0,
            cluster: ClusterId(1),
            node: NodeId(3),
        };
        let head = head.replace("4c44636c", "4c447376");
        assert_eq!(hex(&greeting.to_bytes()), format!("{head}0300000000000000"));

        let mut out = BytesMut::new();
        let payloads: [&[u8]; 2] = [b"ab", b"c"];
        put_proposals(&mut out, 5, GroupId(1), 250, payloads.into_iter());
        let proposals = "24000000010500000000000000010000000000000\
            0fa000000020000000200000001000000616263";
        assert_eq!(hex(&out), proposals);
        let mut out = BytesMut::new();
        put_status_request(&mut out, 7);
        assert_eq!(hex(&out), "09000000020700000000000000");

        let mut encoder = ResponseEncoder::default();
        encoder.applied(5, Index(9), 0, b"x");
        encoder.applied(6, Index(9), 1, b"");
        encoder.never_appended(7, 2, Code::NOT_LEADER, 3, Some((NodeId(2), "h:1")));
        encoder.never_appended(9, 1, Code::BUSY, 0, None);
        encoder.may_yet_commit(10, 1, Code::LEADERSHIP_LOST);
        encoder.status(11, b"{}");
        let responses = "75000000\
            01050000000000000009000000000000000000000002000000010000007800000000\
            02070000000000000002000000010003000000010200000000000000030\
            0683a31\
            0209000000000000000100000002000000000000\
            030a00000000000000010000000a00\
            040b00000000000000020000007b7d";
        assert_eq!(hex(&encoder.take()), responses);
    }

    #[test]
    fn a_greeting_from_the_future_is_refused_by_naming_both_versions() {
        let greeting = ServerGreeting {
            compatible: 0,
            cluster: ClusterId(1),
            node: NodeId(3),
        };
        let mut bytes = greeting.to_bytes().to_vec();
        bytes[4..8].copy_from_slice(&[9, 0, 9, 0]);
        let error = ServerGreeting::from_bytes(&bytes).unwrap_err();
        let text = "greeting has format version 9, this build reads up to 2: upgrade logdrive";
        assert_eq!(error.to_string(), text);
        bytes[4..8].copy_from_slice(&[1, 0, 9, 0]);
        bytes.extend_from_slice(b"more");
        assert_eq!(ServerGreeting::from_bytes(&bytes).unwrap(), greeting);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut out = BytesMut::new();
        let payloads: [&[u8]; 2] = [b"ab", b"c"];
        put_proposals(&mut out, 5, GroupId(1), 250, payloads.into_iter());
        let good = frame_of(&out).to_vec();
        Requests::from_bytes(&good).unwrap();
        for (at, bytes) in [
            (21, [0; 4]),
            (21, [255; 4]),
            (25, [3, 0, 0, 0]),
            (25, [255; 4]),
        ] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&bytes);
            Requests::from_bytes(&bad).unwrap_err();
        }
        for end in 0..good.len() {
            Requests::from_bytes(&good[..end]).unwrap_err();
        }
        let mut bad = good.clone();
        bad[1..9].copy_from_slice(&[255; 8]);
        Requests::from_bytes(&bad).unwrap_err();
    }

    #[test]
    fn large_outputs_are_cut_into_frames_that_fit() {
        let mut encoder = ResponseEncoder::default();
        let output = vec![7; 100_000];
        for id in 0..20 {
            encoder.applied(id, Index(1), u32::try_from(id).unwrap(), &output);
        }
        encoder.applied(20, Index(1), 20, &vec![1; OUTPUT_BYTES_MAX + 1]);
        let bytes = encoder.take();
        let mut rest = &bytes[..];
        let (mut ids, mut frames) = (0, 0);
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (frame, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            assert!(frame.len() <= FRAME_BYTES_WANTED + 64);
            Responses::from_bytes(frame).unwrap();
            let mut input = Reader::new(frame);
            while input.left() > 0 {
                match next_response(&mut input).unwrap() {
                    Response::Applied { outputs, .. } => ids += outputs.len(),
                    Response::MayYetCommit {
                        first_id: 20, code, ..
                    } => {
                        assert_eq!(code, Code::OUTPUT_TOO_LARGE);
                        ids += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            rest = after;
            frames += 1;
        }
        assert_eq!((ids, frames), (21, 20));
    }

    proptest! {
        #[test]
        fn proposals_round_trip(
            first_id in 0..u64::MAX / 2, group: u64, deadline_ms: u32,
            payloads in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..40), 1..50),
        ) {
            let mut out = BytesMut::new();
            let slices = payloads.iter().map(Vec::as_slice);
            put_proposals(&mut out, first_id, GroupId(group), deadline_ms, slices);
            let Requests::Propose(batch) = Requests::from_shared(frame_of(&out)).unwrap() else {
                panic!("not proposals");
            };
            prop_assert_eq!(batch.group(), GroupId(group));
            prop_assert_eq!(batch.deadline_ms(), deadline_ms);
            prop_assert_eq!(batch.payload_bytes(), payloads.iter().map(Vec::len).sum::<usize>());
            let read: Vec<_> = batch.payloads().map(|(id, bytes)| (id, bytes.to_vec())).collect();
            let sent: Vec<_> = (first_id..).zip(payloads).collect();
            prop_assert_eq!(read, sent);
        }

        #[test]
        fn responses_round_trip(
            responses in proptest::collection::vec(
                (0_u8..4, 0_u64..6, 0_u64..3, 1_u32..4, "[a-z]{0,9}"), 0..60),
        ) {
            let mut encoder = ResponseEncoder::default();
            let mut sent = Vec::new();
            for (kind, id, index, number, text) in responses {
                let code = Code(u16::try_from(number).unwrap());
                let hint = (index == 1).then_some((NodeId(index), text.as_str()));
                match kind {
                    0 => encoder.applied(id, Index(index), number, text.as_bytes()),
                    1 => encoder.never_appended(id, number, code, 9, hint),
                    2 => encoder.may_yet_commit(id, number, code),
                    _ => encoder.status(id, text.as_bytes()),
                }
                sent.push(match kind {
                    0 => format!("applied {id} {index} {number} {text}"),
                    1 => format!("never {id} {number} {code:?} {hint:?}"),
                    2 => format!("may yet {id} {number} {code:?}"),
                    _ => format!("status {id} {text}"),
                });
            }
            let bytes = encoder.take();
            let mut read = Vec::new();
            let mut input = Reader::new(if bytes.is_empty() { &[] } else { &bytes[4..] });
            while input.left() > 0 {
                match next_response(&mut input).unwrap() {
                    Response::Applied { first_id, index, first_slot, outputs } => {
                        for (at, output) in (0..).zip(outputs) {
                            let text = std::str::from_utf8(output).unwrap();
                            let (id, slot) = (first_id + u64::from(at), first_slot + at);
                            read.push(format!("applied {id} {index} {slot} {text}"));
                        }
                    }
                    Response::NeverAppended { first_id, count, code, hint, .. } => {
                        let hint = hint.as_ref().map(|hint| (hint.leader, hint.address.as_str()));
                        read.push(format!("never {first_id} {count} {code:?} {hint:?}"));
                    }
                    Response::MayYetCommit { first_id, count, code } => {
                        read.push(format!("may yet {first_id} {count} {code:?}"));
                    }
                    Response::Status { id, json } => {
                        read.push(format!("status {id} {}", std::str::from_utf8(json).unwrap()));
                    }
                }
            }
            prop_assert_eq!(read, sent);
        }
    }
}
