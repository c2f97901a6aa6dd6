//! What replicas say to each other to hand on a snapshot.
//!
//! The receiver drives: it asks who has one, then for each part of one, a few at a time. So neither side holds more
//! than that, and whoever answers remembers nothing. None of it has anything to do with terms: a snapshot is of
//! committed entries, whoever leads. What arrives is checked against the manifest, and that against its id.

use bytes::Bytes;

use crate::ids::{Index, LogPosition, SnapshotId};
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// The most bytes of a part: a chunk, or a piece of a manifest.
pub const PART_BYTES_MAX: usize = 256 << 10;

/// The most bytes of a manifest.
pub const MANIFEST_BYTES_MAX: u32 = 64 << 20;

/// One step of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Who has a snapshot that ends at this index or later?
    Query {
        /// The least index that is of use.
        least: Index,
    },
    /// The newest one there is; none: none reaches so far.
    Offer(Option<Offered>),
    /// Asks for a part.
    Fetch {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Which part.
        part: Part,
    },
    /// A part.
    Part {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Which part.
        part: Part,
        /// Its bytes, to be checked against the manifest, or with all of the manifest against the id.
        bytes: Bytes,
    },
    /// That snapshot is not here, or cannot be read.
    Gone {
        /// Which one.
        snapshot: SnapshotId,
    },
    /// Tells the leader how far a transfer is, so that it keeps the log beyond the snapshot.
    Progress(Progress),
}

/// A snapshot that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Which one.
    pub snapshot: SnapshotId,
    /// Where it ends.
    pub at: LogPosition,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of its manifest.
    pub manifest_bytes: u32,
}

/// A part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A piece of the manifest, of at most [`PART_BYTES_MAX`].
    Manifest {
        /// Where it begins.
        offset: u32,
    },
    /// A chunk of a file.
    Chunk {
        /// Which file of the manifest.
        file: u32,
        /// Which chunk of the file.
        chunk: u32,
    },
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Where it ends: the log beyond is wanted afterwards.
    pub at: LogPosition,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that are there.
    pub bytes_have: u64,
    /// Bytes that came in the last seconds, a second.
    pub bytes_per_s: u64,
}

impl Transfer {
    /// About how many bytes it takes on the wire and in queues, beside what every message takes.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        match self {
            Self::Part { bytes, .. } => bytes.len(),
            _ => 0,
        }
    }

    /// Reads one out of `shared`, of which `input` is the rest. The bytes of a part are shared, not copied.
    pub(super) fn decode_shared(
        input: &mut Reader<'_>,
        shared: &Bytes,
    ) -> Result<Self, DecodeError> {
        Ok(match u8::decode(input)? {
            1 => Self::Query {
                least: Decode::decode(input)?,
            },
            2 => Self::Offer(Decode::decode(input)?),
            3 => Self::Fetch {
                snapshot: Decode::decode(input)?,
                part: Decode::decode(input)?,
            },
            4 => {
                let (snapshot, part) = (Decode::decode(input)?, Decode::decode(input)?);
                let length = input.bytes("part", PART_BYTES_MAX)?.len();
                let end = shared.len() - input.left();
                Self::Part {
                    snapshot,
                    part,
                    bytes: shared.slice(end - length..end),
                }
            }
            5 => Self::Gone {
                snapshot: Decode::decode(input)?,
            },
            6 => Self::Progress(Decode::decode(input)?),
            kind => {
                return Err(DecodeError::Invalid {
                    what: "transfer kind",
                    value: u64::from(kind),
                });
            }
        })
    }
}

impl Encode for Transfer {
    fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Query { least } => {
                1_u8.encode(out);
                least.encode(out);
            }
            Self::Offer(offered) => {
                2_u8.encode(out);
                offered.encode(out);
            }
            Self::Fetch { snapshot, part } => {
                3_u8.encode(out);
                snapshot.encode(out);
                part.encode(out);
            }
            Self::Part {
                snapshot,
                part,
                bytes,
            } => {
                4_u8.encode(out);
                snapshot.encode(out);
                part.encode(out);
                out.bytes(bytes);
            }
            Self::Gone { snapshot } => {
                5_u8.encode(out);
                snapshot.encode(out);
            }
            Self::Progress(progress) => {
                6_u8.encode(out);
                progress.encode(out);
            }
        }
    }
}

impl Encode for Offered {
    fn encode(&self, out: &mut Writer<'_>) {
        self.snapshot.encode(out);
        self.at.encode(out);
        self.bytes.encode(out);
        self.manifest_bytes.encode(out);
    }
}

impl Decode for Offered {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offered = Self {
            snapshot: Decode::decode(input)?,
            at: Decode::decode(input)?,
            bytes: Decode::decode(input)?,
            manifest_bytes: Decode::decode(input)?,
        };
        if offered.manifest_bytes > MANIFEST_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                what: "manifest",
                value: u64::from(offered.manifest_bytes),
                max: u64::from(MANIFEST_BYTES_MAX),
            });
        }
        Ok(offered)
    }
}

impl Encode for Part {
    fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Manifest { offset } => {
                0_u8.encode(out);
                offset.encode(out);
            }
            Self::Chunk { file, chunk } => {
                1_u8.encode(out);
                file.encode(out);
                chunk.encode(out);
            }
        }
    }
}

impl Decode for Part {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(Self::Manifest {
                offset: Decode::decode(input)?,
            }),
            1 => Ok(Self::Chunk {
                file: Decode::decode(input)?,
                chunk: Decode::decode(input)?,
            }),
            kind => Err(DecodeError::Invalid {
                what: "part",
                value: u64::from(kind),
            }),
        }
    }
}

impl Encode for Progress {
    fn encode(&self, out: &mut Writer<'_>) {
        self.snapshot.encode(out);
        self.at.encode(out);
        self.bytes.encode(out);
        self.bytes_have.encode(out);
        self.bytes_per_s.encode(out);
    }
}

impl Decode for Progress {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshot: Decode::decode(input)?,
            at: Decode::decode(input)?,
            bytes: Decode::decode(input)?,
            bytes_have: Decode::decode(input)?,
            bytes_per_s: Decode::decode(input)?,
        })
    }
}
