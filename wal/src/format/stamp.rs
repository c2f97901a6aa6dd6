//! The stamp at the end of every block: which block of which segment this is, and that it is whole.
//!
//! Its bytes are drawn in the crate's documentation, `wal/README.md`.
//!
//! A stamp tells a write that never reached the medium from one that reached it and went bad there. The
//! first leaves zeros or the stamp of an older segment; the second leaves something that is neither.

use logdrive_raft::mutant::Mutant;
use logdrive_raft::mutated;

use crate::disk::{BLOCK_BYTES, Block};

/// Bytes of data in a block.
pub const BLOCK_DATA_BYTES: usize = BLOCK_BYTES - 16;

const CRC_AT: usize = BLOCK_BYTES - 4;
const FIRST: u32 = 1 << 31;

/// What a stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The block's number in its slot.
    pub block: u32,
    /// Whether a flush group begins here.
    pub first: bool,
    /// The segment's sequence number, its low half.
    pub segment: u32,
    /// The boot that opened the segment, its low half.
    pub epoch: u32,
}

impl Stamp {
    fn fields(self) -> [u8; 12] {
        let block = self.block | if self.first { FIRST } else { 0 };
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&block.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.segment.to_le_bytes());
        bytes[8..].copy_from_slice(&self.epoch.to_le_bytes());
        bytes
    }

    fn of(block: &Block) -> Self {
        let word = |at: usize| {
            let bytes = block.0[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes)
        };
        let number = word(BLOCK_DATA_BYTES);
        Self {
            block: number & !FIRST,
            first: number & FIRST != 0,
            segment: word(BLOCK_DATA_BYTES + 4),
            epoch: word(BLOCK_DATA_BYTES + 8),
        }
    }
}

/// What a block of a segment turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Whole, and a block of this segment.
    Whole {
        /// Whether a flush group begins here.
        first: bool,
    },
    /// A write of this segment never reached it: it holds zeros, an older segment, or the end of one.
    NotLanded,
    /// Neither: it held something of this segment that went bad, or something that has no business here.
    Garbage,
}

/// Stamps and checks the blocks of one segment.
#[derive(Clone, Copy, Debug)]
pub struct Stamper {
    seed: u32,
    segment: u64,
    epoch: u64,
    mutant: Option<Mutant>,
}

impl Stamper {
    /// For a segment of the log with this uuid.
    #[must_use]
    pub fn new(log_uuid: u128, segment: u64, epoch: u64) -> Self {
        let seed = crc32c::crc32c(&log_uuid.to_le_bytes());
        Self {
            seed,
            segment,
            epoch,
            mutant: None,
        }
    }

    pub(crate) fn with_mutant(self, mutant: Option<Mutant>) -> Self {
        Self { mutant, ..self }
    }

    /// Stamps a block whose data is complete.
    pub fn stamp(&self, block: &mut Block, number: u32, first: bool) {
        assert!(number & FIRST == 0);
        let fields = self.expected(number, first).fields();
        block.0[BLOCK_DATA_BYTES..CRC_AT].copy_from_slice(&fields);
        let crc = crc32c::crc32c_append(self.seed, &block.0[..CRC_AT]);
        block.0[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// What the block with this number holds.
    #[must_use]
    pub fn check(&self, block: &Block, number: u32) -> BlockState {
        // Most blocks of most slots. No segment has the number 0, so the stamp is none of ours.
        if ends_in_zeros(block) {
            return BlockState::NotLanded;
        }
        let stored = crc_stored(block);
        let stamp = Stamp::of(block);
        let whole = stored == crc32c::crc32c_append(self.seed, &block.0[..CRC_AT]);
        let placed = stamp.block == number || mutated!(self.mutant, BlockAnywhere);
        let ours = placed && self.is_own(stamp, stamp.block)
            || stamp.block == number && mutated!(self.mutant, StaleFrame);
        if whole && ours {
            return BlockState::Whole { first: stamp.first };
        }
        if whole {
            let older = placed && self.is_older(stamp);
            return if older {
                BlockState::NotLanded
            } else {
                BlockState::Garbage
            };
        }
        // A write that tore inside the block leaves the old end, and so the old stamp.
        if placed && self.is_older(stamp) && !self.was_ours(block, number, stored) {
            return BlockState::NotLanded;
        }
        BlockState::Garbage
    }

    /// The stamp of a block of the log with this uuid, if the block is whole. One that ends in zeros has none.
    #[must_use]
    pub fn whole_stamp(log_uuid: u128, block: &Block) -> Option<Stamp> {
        if ends_in_zeros(block) {
            return None;
        }
        let seed = crc32c::crc32c(&log_uuid.to_le_bytes());
        let whole = crc_stored(block) == crc32c::crc32c_append(seed, &block.0[..CRC_AT]);
        whole.then(|| Stamp::of(block))
    }

    /// The same if the block also lies where its stamp says.
    #[must_use]
    pub fn whole_stamp_at(log_uuid: u128, block: &Block, number: u32) -> Option<Stamp> {
        Self::whole_stamp(log_uuid, block).filter(|stamp| stamp.block == number)
    }

    /// Whether a segment that is opened later in this slot might take the block for one of its own that went
    /// bad. Where it ends in zeros, or is whole and of an earlier boot, every later segment sees that none of
    /// its writes reached it. What is left was torn inside, or has no business here.
    pub(crate) fn is_debris(log_uuid: u128, block: &Block, number: u32) -> bool {
        !ends_in_zeros(block) && Self::whole_stamp_at(log_uuid, block, number).is_none()
    }

    /// Whether the checksum fits once the stamp says what it should: then the block was ours, and what went
    /// bad is the stamp.
    fn was_ours(&self, block: &Block, number: u32, stored: u32) -> bool {
        let data = crc32c::crc32c_append(self.seed, &block.0[..BLOCK_DATA_BYTES]);
        [false, true].into_iter().any(|first| {
            let fields = self.expected(number, first).fields();
            stored == crc32c::crc32c_append(data, &fields)
        })
    }

    /// Whether a whole block with this stamp is ours, and the one with this number.
    pub(super) fn is_own(&self, stamp: Stamp, number: u32) -> bool {
        stamp == self.expected(number, stamp.first)
    }

    fn is_older(&self, stamp: Stamp) -> bool {
        let expected = self.expected(0, false);
        // In the life of a slot epochs never fall, and segments do only where a later boot dropped some.
        (stamp.epoch, stamp.segment) < (expected.epoch, expected.segment)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low halves are meant")]
    fn expected(&self, block: u32, first: bool) -> Stamp {
        Stamp {
            block,
            first,
            segment: self.segment as u32,
            epoch: self.epoch as u32,
        }
    }
}

fn ends_in_zeros(block: &Block) -> bool {
    block.0[BLOCK_DATA_BYTES..] == [0; BLOCK_BYTES - BLOCK_DATA_BYTES]
}

fn crc_stored(block: &Block) -> u32 {
    u32::from_le_bytes(block.0[CRC_AT..].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: u8 = 0x5a;

    fn stamped(stamper: &Stamper, number: u32, fill: u8) -> Block {
        let mut block = Block([fill; BLOCK_BYTES]);
        stamper.stamp(&mut block, number, true);
        block
    }

    #[test]
    fn every_flipped_byte_of_a_block_is_garbage() {
        let stamper = Stamper::new(9, 5, 4);
        let block = stamped(&stamper, 7, NEW);
        assert_eq!(stamper.check(&block, 7), BlockState::Whole { first: true });
        for at in 0..BLOCK_BYTES {
            for mask in [1, 4, 0x80, 0xff] {
                let mut bad = block;
                bad.0[at] ^= mask;
                assert_eq!(stamper.check(&bad, 7), BlockState::Garbage, "byte {at}");
            }
        }
    }

    #[test]
    fn a_block_that_was_cut_short_has_not_landed() {
        let (older, stamper) = (Stamper::new(9, 4, 4), Stamper::new(9, 5, 4));
        let new = stamped(&stamper, 7, NEW);
        for old in [Block::ZERO, stamped(&older, 7, 0xa5)] {
            // Within the last four bytes the stamp is ours and only the checksum is not.
            for cut in 0..BLOCK_DATA_BYTES {
                let mut torn = old;
                torn.0[..cut].copy_from_slice(&new.0[..cut]);
                assert_eq!(
                    stamper.check(&torn, 7),
                    BlockState::NotLanded,
                    "cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn another_place_another_log_and_a_later_segment_are_garbage() {
        let stamper = Stamper::new(9, 5, 4);
        let misdirected = stamped(&stamper, 8, NEW);
        assert_eq!(stamper.check(&misdirected, 7), BlockState::Garbage);
        let foreign = stamped(&Stamper::new(10, 5, 4), 7, NEW);
        assert_eq!(stamper.check(&foreign, 7), BlockState::Garbage);
        let later = stamped(&Stamper::new(9, 6, 4), 7, NEW);
        assert_eq!(stamper.check(&later, 7), BlockState::Garbage);
    }

    #[test]
    fn what_is_no_debris_has_not_landed_for_any_later_boot() {
        let older = Stamper::new(9, 7, 4);
        let new = stamped(&older, 7, NEW);
        let mut torn = new;
        torn.0[BLOCK_DATA_BYTES..].fill(0);
        for block in [Block::ZERO, new, torn] {
            assert!(!Stamper::is_debris(9, &block, 7));
            for segment in [1, 6, 7, 8] {
                let later = Stamper::new(9, segment, 5);
                assert_eq!(later.check(&block, 7), BlockState::NotLanded);
            }
        }
        let mut mixed = new;
        mixed.0[..512].fill(0);
        let misdirected = stamped(&older, 8, NEW);
        let foreign = stamped(&Stamper::new(10, 7, 4), 7, NEW);
        for block in [mixed, misdirected, foreign] {
            assert!(Stamper::is_debris(9, &block, 7));
        }
    }

    #[test]
    fn a_stamp_has_these_bytes() {
        let stamper = Stamper::new(0x1122_3344, 5, 4);
        let block = stamped(&stamper, 7, 0);
        let hex: String = block.0[BLOCK_DATA_BYTES..]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(&hex[..24], "070000800500000004000000");
        assert_eq!(
            crc_stored(&block),
            u32::from_str_radix(&hex[24..], 16).unwrap().swap_bytes()
        );
    }
}
