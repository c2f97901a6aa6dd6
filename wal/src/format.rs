//! What lies on the disk: stamped blocks, slot headers, flush groups and their records.
//!
//! Each has a file; the drawings and the reasons are in the crate's documentation.

use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};

mod group;
mod record;
mod slot;
mod stamp;

pub use group::{GROUP_HEADER_BYTES, GroupHeader, GroupKind, digest_of};
pub use record::{
    Anchor, AnchorFile, EntryRun, FooterRow, GroupCheckpoint, Guard, Hole, Record, RecordKind,
    Verdict, VerdictKind,
};
pub use slot::{SLOT_HEADER_BLOCKS, SlotHeader};
pub use stamp::{BLOCK_DATA_BYTES, BlockState, Stamp, Stamper};

/// The newest format version that this build writes and reads. Slot headers and flush groups share it.
pub const WAL_VERSION: u16 = 1;

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
            segment: Decode::decode(input)?,
            block: Decode::decode(input)?,
        })
    }
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
