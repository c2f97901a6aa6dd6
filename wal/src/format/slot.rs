//! The header of a slot: which log it belongs to and which segment it holds.
//!
//! Its bytes are drawn in the crate's documentation, `wal/README.md`.
//!
//! It stands in blocks 0 and 1, each stamped, so that a bad block does not hide a segment.

use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{Boot, Chain, ClusterId, Incarnation, NodeId};

use super::{
    BLOCK_DATA_BYTES, Place, Stamper, WAL_VERSION, check_version, counted_blocks, decode_boot,
    decode_segment,
};
use crate::disk::{BLOCK_BYTES, Block};

/// Blocks that the two copies of the header take.
pub const SLOT_HEADER_BLOCKS: u32 = 2;

const MAGIC: u64 = u64::from_le_bytes(*b"LDslot\0\0");
const OPENED_BY_RECOVERY: u16 = 1;

/// What a slot's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// Opened by a recovery: the segment counts only if it holds that recovery's verdict.
    pub by_recovery: bool,
    /// Compatible features, kept as they were written.
    pub compatible: u32,
    /// Which log.
    pub log_uuid: u128,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which node.
    pub node: NodeId,
    /// Which life of the directory.
    pub incarnation: Incarnation,
    /// Which slot.
    pub slot: u32,
    /// Its length.
    pub slot_blocks: u32,
    /// The sequence number of the segment.
    pub segment: u64,
    /// The boot that opened it.
    pub epoch: Boot,
    /// The epoch of the segment before.
    pub predecessor_epoch: Boot,
    /// Where the segment before ends. Segment 0: there is none.
    pub predecessor_end: Place,
    /// The chain of flush groups up to there.
    pub predecessor_chain: Chain,
    /// The oldest segment that was kept.
    pub oldest: u64,
}

impl SlotHeader {
    /// Both copies, stamped.
    #[must_use]
    pub fn to_blocks(&self) -> [Block; SLOT_HEADER_BLOCKS as usize] {
        let bytes = self.to_bytes();
        let stamper = self.stamper();
        let mut blocks = [Block::ZERO; SLOT_HEADER_BLOCKS as usize];
        for (number, block) in blocks.iter_mut().enumerate() {
            block.0[..bytes.len()].copy_from_slice(&bytes);
            let number = u32::try_from(number).expect("there are two");
            stamper.stamp(block, number, false);
        }
        blocks
    }

    /// What stamps the blocks of this segment.
    #[must_use]
    pub fn stamper(&self) -> Stamper {
        Stamper::new(self.log_uuid, self.segment, self.epoch.0)
    }

    /// Reads one copy. `None`: none was ever written there, or its write did not get that far.
    pub fn from_block(block: &Block, number: u32) -> Result<Option<Self>, DecodeError> {
        if block.0[BLOCK_DATA_BYTES..] == [0; BLOCK_BYTES - BLOCK_DATA_BYTES] {
            return Ok(None);
        }
        let mut input = Reader::new(&block.0);
        let magic = u64::decode(&mut input)?;
        if magic != MAGIC {
            return Err(DecodeError::Invalid {
                what: "slot header magic",
                value: magic,
            });
        }
        let version = u16::decode(&mut input)?;
        let flags = u16::decode(&mut input)?;
        let incompatible = u32::decode(&mut input)?;
        let compatible = u32::decode(&mut input)?;
        let block_bytes = u32::decode(&mut input)?;
        let log_uuid = u128::decode(&mut input)?;
        let stamped = Stamper::whole_stamp(log_uuid, block);
        let Some(stamp) = stamped else {
            return Err(DecodeError::Checksum("slot header"));
        };
        // The bytes are what their writer meant. What it meant may still be beyond this build.
        check_version("slot header", version, incompatible)?;
        let unknown = flags & !OPENED_BY_RECOVERY;
        if unknown != 0 {
            return Err(DecodeError::Incompatible {
                what: "a slot header's flag field",
                found: unknown.into(),
            });
        }
        if block_bytes as usize != BLOCK_BYTES {
            return Err(DecodeError::Invalid {
                what: "block size",
                value: block_bytes.into(),
            });
        }
        let header = Self::decode_rest(&mut input, flags, compatible, log_uuid)?;
        if !header.stamper().is_own(stamp, number) {
            return Err(DecodeError::Invalid {
                what: "place of a slot header",
                value: stamp.block.into(),
            });
        }
        Ok(Some(header))
    }

    fn decode_rest(
        input: &mut Reader<'_>,
        flags: u16,
        compatible: u32,
        log_uuid: u128,
    ) -> Result<Self, DecodeError> {
        let cluster = Decode::decode(input)?;
        let node = Decode::decode(input)?;
        let incarnation = Decode::decode(input)?;
        let slot = counted_blocks("number of a slot", u32::decode(input)?)?;
        let slot_blocks = counted_blocks("length of a slot", u32::decode(input)?)?;
        if slot_blocks <= SLOT_HEADER_BLOCKS {
            return Err(DecodeError::Invalid {
                what: "length of a slot",
                value: slot_blocks.into(),
            });
        }
        let segment = decode_segment(input)?;
        let epoch = decode_boot(input)?;
        let predecessor = u64::decode(input)?;
        // Whoever follows headers back to the oldest arrives.
        if predecessor >= segment {
            return Err(DecodeError::Invalid {
                what: "predecessor of a segment",
                value: predecessor,
            });
        }
        let predecessor_epoch = decode_boot(input)?;
        let predecessor_block = counted_blocks("number of a block", u32::decode(input)?)?;
        if u32::decode(input)? != 0 {
            let what = "a field of a slot header that is zero today";
            return Err(DecodeError::Unsupported(what));
        }
        Ok(Self {
            by_recovery: flags & OPENED_BY_RECOVERY != 0,
            compatible,
            log_uuid,
            cluster,
            node,
            incarnation,
            slot,
            slot_blocks,
            segment,
            epoch,
            predecessor_epoch,
            predecessor_end: Place {
                segment: predecessor,
                block: predecessor_block,
            },
            predecessor_chain: Decode::decode(input)?,
            oldest: Decode::decode(input)?,
        })
    }
}

impl Encode for SlotHeader {
    fn encode(&self, out: &mut Writer<'_>) {
        MAGIC.encode(out);
        WAL_VERSION.encode(out);
        (if self.by_recovery {
            OPENED_BY_RECOVERY
        } else {
            0
        })
        .encode(out);
        0_u32.encode(out);
        self.compatible.encode(out);
        (BLOCK_BYTES as u32).encode(out);
        self.log_uuid.encode(out);
        self.cluster.encode(out);
        self.node.encode(out);
        self.incarnation.encode(out);
        self.slot.encode(out);
        self.slot_blocks.encode(out);
        self.segment.encode(out);
        self.epoch.encode(out);
        self.predecessor_end.segment.encode(out);
        self.predecessor_epoch.encode(out);
        self.predecessor_end.block.encode(out);
        0_u32.encode(out);
        self.predecessor_chain.encode(out);
        self.oldest.encode(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BLOCKS_MAX, COUNT_MAX, SEGMENT_MAX};

    fn header(segment: u64, predecessor: u64) -> SlotHeader {
        SlotHeader {
            by_recovery: false,
            compatible: 0,
            log_uuid: 9,
            cluster: ClusterId(1),
            node: NodeId(1),
            incarnation: Incarnation(1),
            slot: 0,
            slot_blocks: 16,
            segment,
            epoch: Boot(3),
            predecessor_epoch: Boot(3),
            predecessor_end: Place {
                segment: predecessor,
                block: 9,
            },
            predecessor_chain: Chain(1),
            oldest: 1,
        }
    }

    #[test]
    fn a_segment_follows_an_earlier_one() {
        for (segment, predecessor) in [(1, 0), (5, 4), (5, 2)] {
            let header = header(segment, predecessor);
            for (number, copy) in (0..).zip(&header.to_blocks()) {
                assert_eq!(SlotHeader::from_block(copy, number), Ok(Some(header)));
            }
        }
        // A header that was read as its own predecessor kept the opening busy, and its memory growing, for ever.
        for (segment, predecessor) in [(0, 0), (5, 5), (5, 6)] {
            let copies = header(segment, predecessor).to_blocks();
            let error = SlotHeader::from_block(&copies[0], 0).unwrap_err();
            let text = format!("predecessor of a segment cannot be {predecessor:#x}");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_number_that_counting_does_not_get_to_is_refused() {
        let plain = header(5, 4);
        let last = SlotHeader {
            slot: BLOCKS_MAX,
            slot_blocks: BLOCKS_MAX,
            segment: SEGMENT_MAX,
            epoch: Boot(COUNT_MAX),
            predecessor_epoch: Boot(COUNT_MAX),
            predecessor_end: Place {
                segment: SEGMENT_MAX - 1,
                block: BLOCKS_MAX,
            },
            ..plain
        };
        let read = |header: SlotHeader| SlotHeader::from_block(&header.to_blocks()[1], 1);
        assert_eq!(read(last), Ok(Some(last)));
        for segment in [SEGMENT_MAX + 1, COUNT_MAX, u64::MAX] {
            assert!(read(SlotHeader { segment, ..plain }).is_err());
        }
        for beyond in [COUNT_MAX + 1, u64::MAX] {
            let epoch = Boot(beyond);
            assert!(read(SlotHeader { epoch, ..plain }).is_err());
            let predecessor_epoch = Boot(beyond);
            assert!(
                read(SlotHeader {
                    predecessor_epoch,
                    ..plain
                })
                .is_err()
            );
        }
        for beyond in [BLOCKS_MAX + 1, u32::MAX] {
            let slot = beyond;
            assert!(read(SlotHeader { slot, ..plain }).is_err());
            let mut predecessor_end = plain.predecessor_end;
            predecessor_end.block = beyond;
            assert!(
                read(SlotHeader {
                    predecessor_end,
                    ..plain
                })
                .is_err()
            );
        }
        for slot_blocks in [0, SLOT_HEADER_BLOCKS, BLOCKS_MAX + 1, u32::MAX] {
            let error = read(SlotHeader {
                slot_blocks,
                ..plain
            });
            let text = format!("length of a slot cannot be {slot_blocks:#x}");
            assert_eq!(error.unwrap_err().to_string(), text);
        }
    }
}
