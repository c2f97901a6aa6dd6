//! The frame of an entry: the same bytes in the leader's memory, on the wire and on every disk.
//!
//! Its bytes are drawn in `wal/README.md`, with every other format of the disk.
//!
//! The payload digest that the chain covers is the pair of checksums in the header. So the chain can be
//! followed from headers alone, and equality of chains proves equal headers with 128 bits and equal
//! payloads with 32 bits each, on top of what AEAD on the wire and block checksums on disk already give.

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{Chain, GroupId, Index, LogPosition, Term};
use crate::limits::{
    ENTRY_HEADER_BYTES, ENTRY_PAYLOAD_BYTES_MAX, ENTRY_PROPOSALS_MAX, TABLE_LENGTH_BYTES,
    TABLE_ROW_BYTES,
};
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// The first four bytes of every frame.
pub const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"LDen");

/// The newest frame version this build writes and reads.
pub const ENTRY_VERSION: u16 = 1;

const HEADER_CRC_AT: usize = 60;
const CHAIN_AT: usize = 64;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// The first entry of a leader: commits what its predecessors left (Raft §8).
    Noop = 1,
    /// Proposals of clients.
    Proposals = 2,
    /// A membership, effective on append.
    Configuration = 3,
}

impl EntryKind {
    fn from_u8(value: u8) -> Result<Self, DecodeError> {
        match value {
            1 => Ok(Self::Noop),
            2 => Ok(Self::Proposals),
            3 => Ok(Self::Configuration),
            other => Err(DecodeError::Version {
                what: "entry kind",
                found: other.into(),
                known: EntryKind::Configuration as u32,
            }),
        }
    }
}

/// How the proposal table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TableForm {
    /// There is none: a no-op, or one payload that is all of the payload bytes.
    None = 0,
    /// One `u32` length a proposal; everything else in the row is 0.
    Lengths = 1,
    /// Full rows.
    Rows = 2,
}

/// A row of the proposal table: what is known of a proposal without its payload.
///
/// Duplicates are decided from these rows alone, so a session table can be moved on without a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProposalRow {
    /// Bytes of payload.
    pub length: u32,
    /// 0: a command for the state machine. Others are for sessions, and unknown ones halt the group.
    pub kind: u8,
    /// The client session, 0 for none.
    pub session: u64,
    /// The proposal's number within its session.
    pub sequence: u64,
    /// The client has the answers of every sequence up to this one.
    pub acknowledged_through: u64,
}

impl ProposalRow {
    /// The row of a command without a session.
    fn of(length: u32) -> Self {
        Self {
            length,
            ..Self::default()
        }
    }
}

impl Encode for ProposalRow {
    fn encode(&self, out: &mut Writer<'_>) {
        self.length.encode(out);
        u32::from(self.kind).encode(out);
        self.session.encode(out);
        self.sequence.encode(out);
        self.acknowledged_through.encode(out);
    }
}

impl Decode for ProposalRow {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = u32::decode(input)?;
        let kind = u32::decode(input)?;
        let kind = u8::try_from(kind).map_err(|_| DecodeError::Version {
            what: "proposal kind",
            found: kind,
            known: u8::MAX.into(),
        })?;
        Ok(Self {
            length,
            kind,
            session: Decode::decode(input)?,
            sequence: Decode::decode(input)?,
            acknowledged_through: Decode::decode(input)?,
        })
    }
}

/// The header of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// What the entry is for.
    pub kind: EntryKind,
    /// How the proposal table is written.
    pub table: TableForm,
    /// Compatible features, kept as they were written.
    pub compatible: u32,
    /// The group.
    pub group: GroupId,
    /// The term of the leader that made it.
    pub term: Term,
    /// Its place.
    pub index: Index,
    /// How many proposals it carries.
    pub count: u32,
    /// Bytes of the proposal table.
    pub table_bytes: u32,
    /// Bytes of all payloads.
    pub payload_bytes: u32,
    /// Checksum of the table.
    pub table_crc: u32,
    /// Checksum of the payloads.
    pub payload_crc: u32,
    /// The chain through this entry.
    pub chain: Chain,
}

impl EntryHeader {
    /// Reads the header at the front of `bytes` and checks everything that the header alone can show.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let header = input.raw(ENTRY_HEADER_BYTES)?;
        let mut input = Reader::new(header);
        let magic = u32::decode(&mut input)?;
        if magic != ENTRY_MAGIC {
            return Err(DecodeError::Invalid {
                what: "entry magic",
                value: u64::from(magic),
            });
        }
        let version = u16::decode(&mut input)?;
        if version != ENTRY_VERSION {
            let (found, known) = (u32::from(version), u32::from(ENTRY_VERSION));
            return Err(DecodeError::Version {
                what: "entry",
                found,
                known,
            });
        }
        let kind = u8::decode(&mut input)?;
        let table = u8::decode(&mut input)?;
        let incompatible = u32::decode(&mut input)?;
        let compatible = u32::decode(&mut input)?;
        let group = GroupId::decode(&mut input)?;
        let term = Term::decode(&mut input)?;
        let index = Index::decode(&mut input)?;
        let count = u32::decode(&mut input)?;
        let table_bytes = u32::decode(&mut input)?;
        let payload_bytes = u32::decode(&mut input)?;
        let table_crc = u32::decode(&mut input)?;
        let payload_crc = u32::decode(&mut input)?;
        let header_crc = u32::decode(&mut input)?;
        let chain = Chain::decode(&mut input)?;
        if header_crc != crc_of_header(header) {
            return Err(DecodeError::Checksum("entry header"));
        }
        // The bytes are what their writer meant. What it meant may still be beyond this build.
        if incompatible != 0 {
            return Err(DecodeError::Incompatible {
                what: "entry",
                found: incompatible,
            });
        }
        let kind = EntryKind::from_u8(kind)?;
        let (table, table_expected) = match table {
            0 => (TableForm::None, 0),
            1 => (
                TableForm::Lengths,
                u64::from(count) * TABLE_LENGTH_BYTES as u64,
            ),
            2 => (TableForm::Rows, u64::from(count) * TABLE_ROW_BYTES as u64),
            other => {
                return Err(DecodeError::Version {
                    what: "table form",
                    found: other.into(),
                    known: TableForm::Rows as u32,
                });
            }
        };
        if count as usize > ENTRY_PROPOSALS_MAX {
            let max = ENTRY_PROPOSALS_MAX as u64;
            return Err(DecodeError::TooLarge {
                what: "proposal count",
                value: count.into(),
                max,
            });
        }
        if u64::from(table_bytes) != table_expected {
            return Err(DecodeError::Invalid {
                what: "table length",
                value: table_bytes.into(),
            });
        }
        if payload_bytes as usize > ENTRY_PAYLOAD_BYTES_MAX {
            let (value, max) = (payload_bytes.into(), ENTRY_PAYLOAD_BYTES_MAX as u64);
            return Err(DecodeError::TooLarge {
                what: "entry payload",
                value,
                max,
            });
        }
        Ok(Self {
            kind,
            table,
            compatible,
            group,
            term,
            index,
            count,
            table_bytes,
            payload_bytes,
            table_crc,
            payload_crc,
            chain,
        })
    }

    /// Where this entry lies.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        LogPosition {
            index: self.index,
            term: self.term,
            chain: self.chain,
        }
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.table_bytes as usize + self.payload_bytes as usize
    }

    /// The chain that an entry with this header has after `previous`.
    ///
    /// Recomputed, never believed: the chain in a header that a peer sent proves nothing by itself.
    #[must_use]
    pub fn chain_after(&self, previous: Chain) -> Chain {
        chain_of(previous, &self.to_array())
    }

    fn to_array(self) -> [u8; ENTRY_HEADER_BYTES] {
        let mut header = [0; ENTRY_HEADER_BYTES];
        header[0..4].copy_from_slice(&ENTRY_MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&ENTRY_VERSION.to_le_bytes());
        header[6] = self.kind as u8;
        header[7] = self.table as u8;
        header[12..16].copy_from_slice(&self.compatible.to_le_bytes());
        header[16..24].copy_from_slice(&self.group.0.to_le_bytes());
        header[24..32].copy_from_slice(&self.term.0.to_le_bytes());
        header[32..40].copy_from_slice(&self.index.0.to_le_bytes());
        header[40..44].copy_from_slice(&self.count.to_le_bytes());
        header[44..48].copy_from_slice(&self.table_bytes.to_le_bytes());
        header[48..52].copy_from_slice(&self.payload_bytes.to_le_bytes());
        header[52..56].copy_from_slice(&self.table_crc.to_le_bytes());
        header[56..60].copy_from_slice(&self.payload_crc.to_le_bytes());
        header[CHAIN_AT..].copy_from_slice(&self.chain.0.to_le_bytes());
        let crc = crc_of_header(&header);
        header[HEADER_CRC_AT..CHAIN_AT].copy_from_slice(&crc.to_le_bytes());
        header
    }
}

/// An entry of a group's log: a checked header and the frame it stands in.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    header: EntryHeader,
    frame: Bytes,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let header = &self.header;
        write!(
            f,
            "Entry({}.{} {:?} x{}",
            header.term, header.index, header.kind, header.count
        )?;
        write!(f, " {} bytes)", self.frame.len())
    }
}

impl Entry {
    /// Reads a frame that takes up all of `frame`, and checks header, table and payload checksums.
    ///
    /// Whether it continues a log is for [`Entry::follows`].
    pub fn from_frame(frame: Bytes) -> Result<Self, DecodeError> {
        let header = EntryHeader::parse(&frame)?;
        if frame.len() < header.frame_bytes() {
            let (needed, left) = (header.frame_bytes(), frame.len());
            return Err(DecodeError::Short { needed, left });
        }
        if frame.len() > header.frame_bytes() {
            return Err(DecodeError::Trailing(frame.len() - header.frame_bytes()));
        }
        let (table, payloads) = frame[ENTRY_HEADER_BYTES..].split_at(header.table_bytes as usize);
        if header.table_crc != crc_of_table(table) {
            return Err(DecodeError::Checksum("proposal table"));
        }
        if header.payload_crc != crc32c::crc32c(payloads) {
            return Err(DecodeError::Checksum("entry payload"));
        }
        if header.table == TableForm::Rows {
            for row in table.chunks_exact(TABLE_ROW_BYTES) {
                ProposalRow::from_bytes(row)?;
            }
        }
        let entry = Self { header, frame };
        let described: u64 = entry.rows().map(|row| u64::from(row.length)).sum();
        if described != u64::from(header.payload_bytes) {
            return Err(DecodeError::Invalid {
                what: "sum of proposal lengths",
                value: described,
            });
        }
        Ok(entry)
    }

    /// A leader's first entry.
    #[must_use]
    pub fn noop(group: GroupId, term: Term, index: Index, previous: Chain) -> Self {
        UnsealedEntry::bare(EntryKind::Noop, &[]).seal(group, term, index, previous)
    }

    /// The checked header.
    #[must_use]
    pub fn header(&self) -> &EntryHeader {
        &self.header
    }

    /// Its place in the log.
    #[must_use]
    pub fn index(&self) -> Index {
        self.header.index
    }

    /// The term of the leader that made it.
    #[must_use]
    pub fn term(&self) -> Term {
        self.header.term
    }

    /// Where it lies, with the chain through it.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.header.position()
    }

    /// The whole frame.
    #[must_use]
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// Whether this is the entry right after `previous` in a log.
    #[must_use]
    pub fn follows(&self, previous: &LogPosition) -> bool {
        self.header.index == previous.index.next()
            && self.header.term >= previous.term
            && self.header.chain == self.header.chain_after(previous.chain)
    }

    /// The payload bytes of all proposals together.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.frame[ENTRY_HEADER_BYTES + self.header.table_bytes as usize..]
    }

    /// The rows of the proposal table, in slot order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = ProposalRow> + '_ {
        let header = self.header;
        let table = &self.frame[ENTRY_HEADER_BYTES..][..header.table_bytes as usize];
        (0..header.count as usize).map(move |slot| match header.table {
            TableForm::None => ProposalRow {
                length: header.payload_bytes,
                ..ProposalRow::default()
            },
            TableForm::Lengths => {
                let at = slot * TABLE_LENGTH_BYTES;
                let length = &table[at..at + TABLE_LENGTH_BYTES];
                let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
                ProposalRow {
                    length,
                    ..ProposalRow::default()
                }
            }
            TableForm::Rows => {
                let row = &table[slot * TABLE_ROW_BYTES..][..TABLE_ROW_BYTES];
                ProposalRow::from_bytes(row).expect("checked when the frame was read")
            }
        })
    }

    /// The proposals, in slot order: what is known of each, and its payload.
    pub fn proposals(&self) -> impl ExactSizeIterator<Item = (ProposalRow, &[u8])> + '_ {
        let mut rest = self.payload();
        self.rows().map(move |row| {
            let (payload, after) = rest.split_at(row.length as usize);
            rest = after;
            (row, payload)
        })
    }
}

/// An entry whose contents are complete and whose place is not known yet.
#[derive(Clone, Debug)]
pub struct UnsealedEntry {
    kind: EntryKind,
    table: TableForm,
    count: u32,
    table_crc: u32,
    payload_crc: u32,
    table_bytes: u32,
    payload_bytes: u32,
    /// Room for the header, the table, the payloads.
    frame: BytesMut,
}

impl UnsealedEntry {
    /// An entry with at most one payload and no proposal table: a no-op or a configuration.
    ///
    /// # Panics
    ///
    /// If the payload is larger than an entry may carry.
    #[must_use]
    pub fn bare(kind: EntryKind, payload: &[u8]) -> Self {
        assert!(payload.len() <= ENTRY_PAYLOAD_BYTES_MAX);
        let mut frame = BytesMut::zeroed(ENTRY_HEADER_BYTES);
        frame.extend_from_slice(payload);
        Self {
            kind,
            table: TableForm::None,
            count: u32::from(!payload.is_empty()),
            table_crc: 0,
            payload_crc: crc32c::crc32c(payload),
            table_bytes: 0,
            payload_bytes: u32::try_from(payload.len()).expect("checked above"),
            frame,
        }
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        self.kind
    }

    /// How many proposals it carries.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// The payload bytes of all proposals together.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.frame[ENTRY_HEADER_BYTES + self.table_bytes as usize..]
    }

    /// Gives the entry its place. Costs a hash over the header, whatever the payload.
    #[must_use]
    pub fn seal(mut self, group: GroupId, term: Term, index: Index, previous: Chain) -> Entry {
        let mut header = EntryHeader {
            kind: self.kind,
            table: self.table,
            compatible: 0,
            group,
            term,
            index,
            count: self.count,
            table_bytes: self.table_bytes,
            payload_bytes: self.payload_bytes,
            table_crc: self.table_crc,
            payload_crc: self.payload_crc,
            chain: Chain(0),
        };
        header.chain = header.chain_after(previous);
        assert!(self.frame.len() == header.frame_bytes());
        self.frame[..ENTRY_HEADER_BYTES].copy_from_slice(&header.to_array());
        Entry {
            header,
            frame: self.frame.freeze(),
        }
    }
}

/// An entry under construction: payloads are copied once, to where they will stay.
///
/// Header and table lie before the payloads, and the table's length is not known until the last proposal
/// has come. So room is left for both, and the frame begins where the table will.
#[derive(Debug)]
pub struct EntryBuilder {
    /// `room` bytes for header and table, then the payloads so far.
    buffer: BytesMut,
    room: usize,
    lengths: Vec<u32>,
    /// Every row, once one says more than its length; empty before.
    rows: Vec<ProposalRow>,
    /// Checksum of the payloads up to `summed` in the buffer: small ones are summed up several at once.
    payload_crc: u32,
    summed: usize,
}

impl EntryBuilder {
    /// An empty entry with room for so many proposals and payload bytes before anything has to move.
    #[must_use]
    pub fn with_room(proposals: usize, payload_bytes: usize) -> Self {
        let room = ENTRY_HEADER_BYTES + proposals * TABLE_LENGTH_BYTES;
        let mut buffer = BytesMut::with_capacity(room + payload_bytes);
        buffer.resize(room, 0);
        Self {
            buffer,
            room,
            lengths: Vec::with_capacity(proposals),
            rows: Vec::new(),
            payload_crc: 0,
            summed: room,
        }
    }

    /// Whether a proposal of so many bytes still fits into this entry.
    #[must_use]
    pub fn fits(&self, payload_bytes: usize) -> bool {
        self.lengths.len() < ENTRY_PROPOSALS_MAX
            && self.payload_bytes() + payload_bytes <= ENTRY_PAYLOAD_BYTES_MAX
    }

    /// Adds a command without a session and returns its slot.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub fn push(&mut self, payload: &[u8]) -> u32 {
        self.push_row(ProposalRow::default(), payload)
    }

    /// Adds a proposal with what its row says; the row's length is taken from the payload. Returns its slot.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub fn push_row(&mut self, row: ProposalRow, payload: &[u8]) -> u32 {
        assert!(self.fits(payload.len()));
        let slot = u32::try_from(self.lengths.len()).expect("bounded by ENTRY_PROPOSALS_MAX");
        let length = u32::try_from(payload.len()).expect("bounded by ENTRY_PAYLOAD_BYTES_MAX");
        let row = ProposalRow { length, ..row };
        if !self.rows.is_empty() || row != ProposalRow::of(length) {
            if self.rows.is_empty() {
                self.rows
                    .extend(self.lengths.iter().copied().map(ProposalRow::of));
            }
            self.rows.push(row);
        }
        self.lengths.push(length);
        for piece in payload.chunks(SUMMED_AT_ONCE_BYTES) {
            self.buffer.extend_from_slice(piece);
            if self.buffer.len() - self.summed >= SUMMED_AT_ONCE_BYTES {
                self.sum_up();
            }
        }
        slot
    }

    fn sum_up(&mut self) {
        let payloads = &self.buffer[self.summed..];
        self.payload_crc = crc32c::crc32c_append(self.payload_crc, payloads);
        self.summed = self.buffer.len();
    }

    /// How many proposals it holds so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Bytes of payload so far.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.buffer.len() - self.room
    }

    /// Bytes of the whole frame if it were finished now.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        let row = if self.rows.is_empty() {
            TABLE_LENGTH_BYTES
        } else {
            TABLE_ROW_BYTES
        };
        ENTRY_HEADER_BYTES + self.lengths.len() * row + self.payload_bytes()
    }

    /// Whether nothing has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Completes the contents.
    ///
    /// # Panics
    ///
    /// If it is empty: an entry without proposals is a no-op, which nobody builds here.
    #[must_use]
    pub fn finish(mut self) -> UnsealedEntry {
        assert!(!self.is_empty());
        self.sum_up();
        let payload_bytes = self.payload_bytes();
        let (table, row_bytes) = if self.rows.is_empty() {
            (TableForm::Lengths, TABLE_LENGTH_BYTES)
        } else {
            (TableForm::Rows, TABLE_ROW_BYTES)
        };
        let table_bytes = self.count() * row_bytes;
        let before_payload = ENTRY_HEADER_BYTES + table_bytes;
        let mut frame = self.buffer;
        if before_payload <= self.room {
            bytes::Buf::advance(&mut frame, self.room - before_payload);
        } else {
            let mut moved = BytesMut::with_capacity(before_payload + payload_bytes);
            moved.resize(before_payload, 0);
            moved.extend_from_slice(&frame[self.room..]);
            frame = moved;
        }
        let places = &mut frame[ENTRY_HEADER_BYTES..before_payload];
        if self.rows.is_empty() {
            let (places, _) = places.as_chunks_mut::<TABLE_LENGTH_BYTES>();
            for (bytes, length) in places.iter_mut().zip(&self.lengths) {
                *bytes = length.to_le_bytes();
            }
        } else {
            for (bytes, row) in places.chunks_exact_mut(row_bytes).zip(&self.rows) {
                bytes.copy_from_slice(&row.to_bytes());
            }
        }
        let table_crc = crc_of_table(&frame[ENTRY_HEADER_BYTES..before_payload]);
        UnsealedEntry {
            kind: EntryKind::Proposals,
            table,
            count: u32::try_from(self.lengths.len()).expect("bounded by ENTRY_PROPOSALS_MAX"),
            table_crc,
            payload_crc: self.payload_crc,
            table_bytes: u32::try_from(table_bytes).expect("bounded by ENTRY_PROPOSALS_MAX"),
            payload_bytes: u32::try_from(payload_bytes).expect("bounded by `fits`"),
            frame,
        }
    }
}

/// So much is summed up while it is still near the processor.
const SUMMED_AT_ONCE_BYTES: usize = 8 << 10;

/// 0 says that there is no table.
fn crc_of_table(table: &[u8]) -> u32 {
    if table.is_empty() {
        0
    } else {
        crc32c::crc32c(table)
    }
}

fn crc_of_header(header: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..HEADER_CRC_AT]);
    crc32c::crc32c_append(crc, &header[CHAIN_AT..ENTRY_HEADER_BYTES])
}

fn chain_of(previous: Chain, header: &[u8; ENTRY_HEADER_BYTES]) -> Chain {
    let mut covered = [0; 16 + HEADER_CRC_AT];
    covered[..16].copy_from_slice(&previous.0.to_le_bytes());
    covered[16..].copy_from_slice(&header[..HEADER_CRC_AT]);
    Chain(xxh3_128(&covered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_proposals() -> EntryBuilder {
        let mut builder = EntryBuilder::with_room(2, 16);
        assert_eq!(builder.push(b"abc"), 0);
        assert_eq!(builder.push(b""), 1);
        builder
    }

    #[test]
    fn a_frame_reads_back_what_was_sealed() {
        let previous = LogPosition {
            index: Index(6),
            term: Term(3),
            chain: Chain(9),
        };
        let unsealed = two_proposals().finish();
        let entry = unsealed.seal(GroupId(4), Term(3), Index(7), previous.chain);
        let read = Entry::from_frame(entry.frame().clone()).unwrap();
        assert_eq!(read, entry);
        assert!(read.follows(&previous));
        assert!(!read.follows(&LogPosition {
            chain: Chain(8),
            ..previous
        }));
        let payloads: Vec<&[u8]> = read.proposals().map(|(_, payload)| payload).collect();
        assert_eq!(payloads, [&b"abc"[..], b""]);
    }

    #[test]
    fn the_frame_of_two_proposals_has_these_bytes() {
        let entry = two_proposals()
            .finish()
            .seal(GroupId(4), Term(3), Index(7), Chain(9));
        let hex: String = entry
            .frame()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let expected = include_str!("../tests/golden/entry-v1.hex");
        assert_eq!(
            hex,
            expected.trim(),
            "entry frames changed: that is a new format version"
        );
    }

    #[test]
    fn a_table_that_outgrows_its_room_moves_and_says_the_same() {
        let mut tight = EntryBuilder::with_room(0, 0);
        let mut wide = EntryBuilder::with_room(64, 1024);
        for number in 0..40_u8 {
            tight.push(&[number; 5]);
            wide.push(&[number; 5]);
        }
        let seal = |builder: EntryBuilder| {
            builder
                .finish()
                .seal(GroupId(1), Term(1), Index(1), Chain(0))
        };
        assert_eq!(seal(tight), seal(wide));
    }

    #[test]
    fn a_session_makes_full_rows_that_read_back() {
        let row = ProposalRow {
            session: 7,
            sequence: 8,
            acknowledged_through: 6,
            length: 2,
            kind: 0,
        };
        let mut builder = EntryBuilder::with_room(1, 8);
        builder.push_row(row, b"xy");
        builder.push(b"z");
        let entry = builder
            .finish()
            .seal(GroupId(1), Term(1), Index(1), Chain(0));
        assert_eq!(entry.header().table, TableForm::Rows);
        let read = Entry::from_frame(entry.frame().clone()).unwrap();
        let rows: Vec<ProposalRow> = read.rows().collect();
        assert_eq!(
            rows,
            [
                row,
                ProposalRow {
                    length: 1,
                    ..ProposalRow::default()
                }
            ]
        );
    }

    #[test]
    fn a_row_of_a_kind_that_no_build_has_yet_is_refused_and_is_no_command() {
        let row = ProposalRow {
            session: 7,
            ..ProposalRow::default()
        };
        let mut builder = EntryBuilder::with_room(1, 8);
        builder.push_row(row, b"xy");
        let unsealed = builder.finish();
        let seal = |mut unsealed: UnsealedEntry, kind: u32| {
            let table = ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + TABLE_ROW_BYTES;
            unsealed.frame[table.start + 4..][..4].copy_from_slice(&kind.to_le_bytes());
            unsealed.table_crc = crc_of_table(&unsealed.frame[table]);
            let entry = unsealed.seal(GroupId(1), Term(1), Index(1), Chain(0));
            Entry::from_frame(entry.frame().clone())
        };
        let refused = seal(unsealed, 256).unwrap_err();
        let expected =
            "proposal kind has format version 256, this build reads up to 255: upgrade logdrive";
        assert_eq!(refused.to_string(), expected);
        let mut builder = EntryBuilder::with_room(1, 8);
        builder.push_row(row, b"xy");
        let read = seal(builder.finish(), 255).unwrap();
        assert_eq!(read.rows().next().unwrap().kind, 255);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let entry = two_proposals()
            .finish()
            .seal(GroupId(4), Term(3), Index(7), Chain(9));
        for at in 0..entry.frame().len() {
            let mut bytes = entry.frame().to_vec();
            bytes[at] ^= 0x40;
            assert!(
                Entry::from_frame(bytes.into()).is_err(),
                "byte {at} is not covered"
            );
        }
    }

    #[test]
    fn a_frame_of_a_later_version_names_both_versions() {
        let entry = Entry::noop(GroupId(1), Term(1), Index(1), Chain(0));
        let mut bytes = entry.frame().to_vec();
        bytes[4] = 2;
        let error = EntryHeader::parse(&bytes).unwrap_err();
        let expected = "entry has format version 2, this build reads up to 1: upgrade logdrive";
        assert_eq!(error.to_string(), expected);
    }
}
