//! Frames of responses, read where they lie and written in runs.

use bytes::{BufMut, Bytes, BytesMut};
use logdrive_raft::limits::ADDRESS_BYTES_MAX;
use logdrive_raft::wire::{Decode, DecodeError, Reader, Writer};
use logdrive_raft::{Index, NodeId};

use super::{Code, OUTPUT_BYTES_MAX, RESPONSE_FRAME_BYTES_MAX, begin_frame, end_frame};
use crate::address::{decode_address, encode_address};

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
    /// What was asked for, as JSON: the node's status, or how a snapshot ended.
    Json {
        /// The request.
        id: u64,
        /// The text.
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
        JSON => Ok(Response::Json {
            id: Decode::decode(input)?,
            json: input.bytes("answer", OUTPUT_BYTES_MAX)?,
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

    /// What was asked for, as JSON.
    pub(crate) fn json(&mut self, id: u64, json: &[u8]) {
        let json = if json.len() <= OUTPUT_BYTES_MAX {
            json
        } else {
            b"{}"
        };
        self.begin_record(16 + json.len());
        self.out.put_u8(JSON);
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

const APPLIED: u8 = 1;
const NEVER: u8 = 2;
const MAY_YET: u8 = 3;
const JSON: u8 = 4;

/// A frame of responses is closed about here. One larger output has a frame of its own.
pub(super) const FRAME_BYTES_WANTED: usize = 128 << 10;
