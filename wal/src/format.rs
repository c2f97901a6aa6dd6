//! What lies on the disk: stamped blocks, slot headers, flush groups and their records.
//!
//! Each has a file; the drawings and the reasons are in the crate's documentation.

use logdrive_raft::Boot;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};

mod group;
mod record;
mod slot;
mod stamp;

pub use group::{GROUP_HEADER_BYTES, GroupHeader, GroupKind, digest_of};
pub use record::{
    Anchor, AnchorFile, EntryRun, FooterRow, GroupCheckpoint, Hole, Record, RecordKind, Verdict,
    VerdictKind,
};
pub use slot::{SLOT_HEADER_BLOCKS, SlotHeader};
pub use stamp::{BLOCK_DATA_BYTES, BlockState, Stamp, Stamper};

/// The newest format version that this build writes and reads. Slot headers and flush groups share it.
pub const WAL_VERSION: u16 = 1;

/// The highest number of a boot, a flush group, a term or an entry that is believed. All of them are counted by ones, so that none ever gets here: a higher one was made up, and whoever counted on from it would
/// come to the end of the integer. From here nobody does.
pub(crate) const COUNT_MAX: u64 = u64::MAX >> 1;

/// The same for blocks of a slot, and for slots: in a stamp the top bit of a block's number means something else.
pub(crate) const BLOCKS_MAX: u32 = u32::MAX >> 1;

/// The same for segments. Stamps, and whoever knows where an entry lies, have 32 bits for one.
pub(crate) const SEGMENT_MAX: u64 = (u32::MAX >> 1) as u64;

/// A place in the log: what was written earlier compares lower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment's sequence number.
    pub segment: u64,
    /// The block within it.
    pub block: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.segment, self.block)
    }
}

impl Encode for Place {
    fn encode(&self, out: &mut Writer<'_>) {
        self.segment.encode(out);
        self.block.encode(out);
    }
}

impl Decode for Place {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            segment: decode_segment(input)?,
            block: counted_blocks("number of a block", u32::decode(input)?)?,
        })
    }
}

/// Refuses a number that counting does not get to.
pub(crate) fn counted(what: &'static str, value: u64) -> Result<u64, DecodeError> {
    if value > COUNT_MAX {
        return Err(DecodeError::Invalid { what, value });
    }
    Ok(value)
}

/// The same for blocks and slots.
fn counted_blocks(what: &'static str, value: u32) -> Result<u32, DecodeError> {
    if value > BLOCKS_MAX {
        let value = value.into();
        return Err(DecodeError::Invalid { what, value });
    }
    Ok(value)
}

/// The number of a segment, in the same manner.
fn decode_segment(input: &mut Reader<'_>) -> Result<u64, DecodeError> {
    let value = u64::decode(input)?;
    if value > SEGMENT_MAX {
        let what = "number of a segment";
        return Err(DecodeError::Invalid { what, value });
    }
    Ok(value)
}

/// A boot, in the same manner.
fn decode_boot(input: &mut Reader<'_>) -> Result<Boot, DecodeError> {
    Ok(Boot(counted("number of a boot", u64::decode(input)?)?))
}

/// Refuses what this build cannot read: a later version, or a feature that may not be ignored.
fn check_version(what: &'static str, version: u16, incompatible: u32) -> Result<(), DecodeError> {
    if version != WAL_VERSION {
        let (found, known) = (u32::from(version), u32::from(WAL_VERSION));
        return Err(DecodeError::Version { what, found, known });
    }
    if incompatible != 0 {
        let found = incompatible;
        return Err(DecodeError::Incompatible { what, found });
    }
    Ok(())
}

/// Whether bytes were written by a later logdrive, as opposed to damaged.
#[must_use]
pub fn is_from_the_future(error: &DecodeError) -> bool {
    matches!(
        error,
        DecodeError::Version { .. }
            | DecodeError::Incompatible { .. }
            | DecodeError::Unsupported(_)
    )
}
