//! The header of a flush group: what one write to the log says about itself.
//!
//! Its bytes are drawn in the crate's documentation, `wal/README.md`.

use bytes::BytesMut;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{Boot, Chain, ClusterId, Incarnation};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::{BLOCK_DATA_BYTES, Place, WAL_VERSION, check_version, counted, decode_boot};

/// Bytes of the header.
pub const GROUP_HEADER_BYTES: usize = 160;

const MAGIC: u32 = u32::from_le_bytes(*b"LDfg");
const CHAIN_AT: usize = 144;

/// What a flush group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupKind {
    /// Carries what was appended.
    Data = 1,
    /// Carries nothing of its own: it states the durable mark, or the echo of the group before.
    Mark = 2,
    /// The last of its segment: carries the footer.
    Seal = 3,
    /// The first of its segment: carries the checkpoint.
    First = 4,
}

impl GroupKind {
    fn from_u8(value: u8) -> Result<Self, DecodeError> {
        match value {
            1 => Ok(Self::Data),
            2 => Ok(Self::Mark),
            3 => Ok(Self::Seal),
            4 => Ok(Self::First),
            other => Err(DecodeError::Version {
                what: "kind of a flush group",
                found: other.into(),
                known: GroupKind::First as u32,
            }),
        }
    }
}

/// What the header of a flush group says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// What it is for.
    pub kind: GroupKind,
    /// Compatible features, kept as they were written.
    pub compatible: u32,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which life of the directory.
    pub incarnation: Incarnation,
    /// The boot that wrote it.
    pub boot: Boot,
    /// Where it begins.
    pub place: Place,
    /// How many blocks it takes.
    pub blocks: u32,
    /// Its number: one more than that of the group before.
    pub number: u64,
    /// Everything before this place was durable when the group was built.
    pub mark: Place,
    /// Bytes of the table.
    pub table_bytes: u32,
    /// Bytes of the echo.
    pub echo_bytes: u32,
    /// Bytes of the frames.
    pub body_bytes: u32,
    /// Records in the table.
    pub records: u32,
    /// Records in the echo.
    pub echo_records: u32,
    /// Hash of table and echo.
    pub digest: u128,
    /// The chain of the flush group before.
    pub previous: Chain,
}

impl GroupHeader {
    /// The bytes of the header and the chain through this group.
    #[must_use]
    pub fn seal(&self) -> ([u8; GROUP_HEADER_BYTES], Chain) {
        let mut bytes = BytesMut::with_capacity(GROUP_HEADER_BYTES);
        let chain = self.seal_into(&mut bytes);
        let bytes = bytes[..].try_into().expect("a header has its length");
        (bytes, chain)
    }

    /// The same into memory that was used before, and whose contents go.
    pub(crate) fn seal_into(&self, bytes: &mut BytesMut) -> Chain {
        bytes.clear();
        self.encode(&mut Writer::new(bytes));
        assert!(bytes.len() == CHAIN_AT);
        let chain = Chain(xxh3_128(bytes));
        bytes.extend_from_slice(&chain.0.to_le_bytes());
        chain
    }

    /// Reads the header at the front of a block's data, and the chain through the group.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Chain), DecodeError> {
        let mut input = Reader::new(bytes);
        let bytes = input.raw(GROUP_HEADER_BYTES)?;
        let mut input = Reader::new(bytes);
        let magic = u32::decode(&mut input)?;
        if magic != MAGIC {
            return Err(DecodeError::Invalid {
                what: "flush group magic",
                value: magic.into(),
            });
        }
        let version = u16::decode(&mut input)?;
        let kind = u8::decode(&mut input)?;
        let zero = u8::decode(&mut input)?;
        let incompatible = u32::decode(&mut input)?;
        check_version("flush group", version, incompatible)?;
        let chain = Chain::decode(&mut Reader::new(&bytes[CHAIN_AT..]))?;
        if chain != Chain(xxh3_128(&bytes[..CHAIN_AT])) {
            return Err(DecodeError::Checksum("flush group header"));
        }
        // The bytes are what their writer meant. What it meant may still be beyond this build.
        if zero != 0 {
            let what = "a field of a flush group's header that is zero today";
            return Err(DecodeError::Unsupported(what));
        }
        let header = Self {
            kind: GroupKind::from_u8(kind)?,
            compatible: Decode::decode(&mut input)?,
            cluster: Decode::decode(&mut input)?,
            incarnation: Decode::decode(&mut input)?,
            boot: decode_boot(&mut input)?,
            place: Decode::decode(&mut input)?,
            blocks: Decode::decode(&mut input)?,
            number: counted("number of a flush group", u64::decode(&mut input)?)?,
            mark: Decode::decode(&mut input)?,
            table_bytes: Decode::decode(&mut input)?,
            echo_bytes: Decode::decode(&mut input)?,
            body_bytes: Decode::decode(&mut input)?,
            records: Decode::decode(&mut input)?,
            echo_records: Decode::decode(&mut input)?,
            digest: Decode::decode(&mut input)?,
            previous: Decode::decode(&mut input)?,
        };
        if header.blocks == 0
            || header.blocks as usize != header.data_bytes().div_ceil(BLOCK_DATA_BYTES)
        {
            return Err(DecodeError::Invalid {
                what: "length of a flush group",
                value: header.blocks.into(),
            });
        }
        // What is durable before a group is built lies before it.
        if header.mark > header.place {
            return Err(DecodeError::Invalid {
                what: "segment of a durable mark",
                value: header.mark.segment,
            });
        }
        Ok((header, chain))
    }

    /// All bytes of the group, without stamps and padding.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        GROUP_HEADER_BYTES
            + self.table_bytes as usize
            + self.echo_bytes as usize
            + self.body_bytes as usize
    }

    /// The place after it.
    #[must_use]
    pub fn end(&self) -> Place {
        Place {
            segment: self.place.segment,
            block: self.place.block + self.blocks,
        }
    }
}

impl Encode for GroupHeader {
    fn encode(&self, out: &mut Writer<'_>) {
        MAGIC.encode(out);
        WAL_VERSION.encode(out);
        (self.kind as u8).encode(out);
        0_u8.encode(out);
        0_u32.encode(out);
        self.compatible.encode(out);
        self.cluster.encode(out);
        self.incarnation.encode(out);
        self.boot.encode(out);
        self.place.encode(out);
        self.blocks.encode(out);
        self.number.encode(out);
        self.mark.encode(out);
        self.table_bytes.encode(out);
        self.echo_bytes.encode(out);
        self.body_bytes.encode(out);
        self.records.encode(out);
        self.echo_records.encode(out);
        self.digest.encode(out);
        self.previous.encode(out);
    }
}

/// The digest in the header of a group with this table and echo.
#[must_use]
pub fn digest_of(table: &[u8], echo: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(table);
    hash.update(echo);
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BLOCKS_MAX, COUNT_MAX, SEGMENT_MAX};

    fn read(header: &GroupHeader) -> Result<GroupHeader, DecodeError> {
        GroupHeader::parse(&header.seal().0).map(|(header, _)| header)
    }

    #[test]
    fn a_number_that_counting_does_not_get_to_is_refused() {
        let place = |segment, block| Place { segment, block };
        let plain = GroupHeader {
            kind: GroupKind::Data,
            compatible: 0,
            cluster: ClusterId(1),
            incarnation: Incarnation(1),
            boot: Boot(4),
            place: place(9, 7),
            blocks: 1,
            number: 30,
            mark: place(9, 7),
            table_bytes: 20,
            echo_bytes: 0,
            body_bytes: 0,
            records: 1,
            echo_records: 0,
            digest: 0,
            previous: Chain(1),
        };
        let last = GroupHeader {
            boot: Boot(COUNT_MAX),
            place: place(SEGMENT_MAX, BLOCKS_MAX),
            number: COUNT_MAX,
            mark: place(SEGMENT_MAX, BLOCKS_MAX),
            ..plain
        };
        assert_eq!(read(&last), Ok(last));
        assert_eq!(last.end().block, BLOCKS_MAX + 1);
        for beyond in [COUNT_MAX + 1, u64::MAX] {
            let boot = Boot(beyond);
            assert!(read(&GroupHeader { boot, ..plain }).is_err());
            let number = beyond;
            assert!(read(&GroupHeader { number, ..plain }).is_err());
        }
        for beyond in [SEGMENT_MAX + 1, COUNT_MAX, u64::MAX] {
            let place = place(beyond, 7);
            assert!(read(&GroupHeader { place, ..plain }).is_err());
        }
        for beyond in [BLOCKS_MAX + 1, u32::MAX] {
            let place = place(9, beyond);
            assert!(read(&GroupHeader { place, ..plain }).is_err());
        }
        // Nor was anything durable that came after it.
        for mark in [place(9, 8), place(10, 2)] {
            assert!(read(&GroupHeader { mark, ..plain }).is_err());
        }
    }
}
