//! What replicas say to each other when one of them cannot read entries of its log any more.
//!
//! Whoever lacks them drives, part by part, and whoever answers remembers nothing. Entries are asked for by the chain
//! of the last one, which stands for all before it: so it matters neither who leads nor what is committed, and whoever
//! has that chain has those entries.

use bytes::Bytes;

use super::transfer::PART_BYTES_MAX;
use crate::ids::{Index, LogPosition};
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// One step of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Asks for a part.
    Want(Wanted),
    /// The part: frames in their order, as many bytes of them as fit.
    Have {
        /// What it answers.
        wanted: Wanted,
        /// The bytes. The chain shows whether they are right.
        bytes: Bytes,
    },
    /// It is not here.
    Lacks {
        /// What was asked for.
        wanted: Wanted,
        /// Where the log begins, if the entries were cut away: a snapshot stands for them.
        base: Option<LogPosition>,
    },
}

/// A part of a run of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The entry it begins in.
    pub from: Index,
    /// How many bytes of that one's frame are there already.
    pub offset: u32,
    /// The last entry of the run.
    pub last: LogPosition,
}

impl Repair {
    /// About how many bytes it takes on the wire and in queues, beside what every message takes.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        match self {
            Self::Have { bytes, .. } => bytes.len(),
            Self::Want(_) | Self::Lacks { .. } => 0,
        }
    }

    /// Reads one out of `shared`, of which `input` is the rest. The bytes of a part are shared, not copied.
    pub(super) fn decode_shared(
        input: &mut Reader<'_>,
        shared: &Bytes,
    ) -> Result<Self, DecodeError> {
        Ok(match u8::decode(input)? {
            1 => Self::Want(Decode::decode(input)?),
            2 => {
                let wanted = Decode::decode(input)?;
                let length = input.bytes("part", PART_BYTES_MAX)?.len();
                let end = shared.len() - input.left();
                let bytes = shared.slice(end - length..end);
                Self::Have { wanted, bytes }
            }
            3 => Self::Lacks {
                wanted: Decode::decode(input)?,
                base: Decode::decode(input)?,
            },
            kind => {
                return Err(DecodeError::Invalid {
                    what: "repair kind",
                    value: u64::from(kind),
                });
            }
        })
    }
}

impl Encode for Repair {
    fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Want(wanted) => {
                1_u8.encode(out);
                wanted.encode(out);
            }
            Self::Have { wanted, bytes } => {
                2_u8.encode(out);
                wanted.encode(out);
                out.bytes(bytes);
            }
            Self::Lacks { wanted, base } => {
                3_u8.encode(out);
                wanted.encode(out);
                base.encode(out);
            }
        }
    }
}

impl Encode for Wanted {
    fn encode(&self, out: &mut Writer<'_>) {
        self.from.encode(out);
        self.offset.encode(out);
        self.last.encode(out);
    }
}

impl Decode for Wanted {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            from: Decode::decode(input)?,
            offset: Decode::decode(input)?,
            last: Decode::decode(input)?,
        })
    }
}
