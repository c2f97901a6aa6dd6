//! Reads what a disk holds: the headers of all slots, and the flush groups of a segment.
//!
//! Nothing is decided here. A flush group is good, or bad in a way that tells whether its write can have
//! been complete.

use logdrive_raft::mutant::Mutant;
use logdrive_raft::wire::{Decode, DecodeError, Reader};
use logdrive_raft::{Chain, EntryHeader, EntryKind, Index, LogPosition, Membership, Term};
use logdrive_raft::{ClusterId, Entry, Incarnation};

use bytes::BytesMut;

use crate::build::{blocks_for, gather};
use crate::disk::{Block, Disk, DiskError, SlotFile, SlotId};
use crate::format::{
    BLOCK_DATA_BYTES, BlockState, EntryRun, GROUP_HEADER_BYTES, GroupHeader, Place, Record,
    SLOT_HEADER_BLOCKS, SlotHeader, Stamper, counted, digest_of, is_from_the_future,
};

/// How many blocks are read at once.
pub(crate) const READ_BLOCKS: usize = 256;

/// A slot as its header describes it.
#[derive(Clone, Debug)]
pub(crate) struct SlotScan {
    pub(crate) slot: SlotId,
    pub(crate) blocks: u32,
    /// The newer of the two copies, if one is good.
    pub(crate) header: Option<SlotHeader>,
    /// Every copy whose bytes are what somebody wrote, whether it belongs here or not.
    pub(crate) read: Vec<SlotHeader>,
    /// That is the first copy, and the second is not as good.
    pub(crate) first_counts: bool,
    /// The copies that are good.
    good_copies: Vec<u32>,
    /// The copies that are neither good nor unwritten.
    pub(crate) bad_copies: Vec<u32>,
    /// The copies that are unwritten, or good and older than the other one: their write never landed.
    pub(crate) missing_copies: Vec<u32>,
}

/// The bytes cannot be read by this build.
#[derive(Debug)]
pub(crate) struct FromTheFuture {
    pub(crate) slot: SlotId,
    pub(crate) source: DecodeError,
}

/// Why a scan ended early.
#[derive(Debug)]
pub(crate) enum ScanError {
    Future(FromTheFuture),
    Disk(DiskError),
}

impl From<DiskError> for ScanError {
    fn from(error: DiskError) -> Self {
        ScanError::Disk(error)
    }
}

/// A frame in a flush group.
#[derive(Clone, Debug)]
pub(crate) struct FrameScan {
    pub(crate) position: LogPosition,
    pub(crate) bytes: u32,
    /// Bytes of the group's data before it.
    pub(crate) offset: usize,
    /// What it holds, if it is a configuration.
    pub(crate) membership: Option<Membership>,
}

/// A good flush group.
#[derive(Clone, Debug)]
pub(crate) struct GroupScan {
    pub(crate) header: GroupHeader,
    pub(crate) chain: Chain,
    pub(crate) table: Vec<Record>,
    pub(crate) echo: Vec<Record>,
    /// The frames of all runs of the table, in order.
    pub(crate) frames: Vec<FrameScan>,
}

/// Blocks where a flush group should begin and no good one does.
#[derive(Clone, Debug)]
pub(crate) struct Bad {
    pub(crate) at: Place,
    /// The block that shows it.
    pub(crate) block: u32,
    /// A block of the group holds what was there before: its write never completed.
    pub(crate) not_landed: bool,
    pub(crate) meaning: String,
    /// What its header says was durable before, if that can be read.
    pub(crate) mark: Option<Place>,
    /// Blocks of this segment from here to the next good group, or to the end.
    pub(crate) whole_blocks: u32,
    /// The first block after it.
    pub(crate) end: u32,
    /// And blocks after the first one that are garbage.
    pub(crate) garbage_blocks: u32,
    /// What can be read of the flush groups that lie here: what they were to do, if not the entries themselves.
    pub(crate) told: Vec<Told>,
    /// Blocks after the first one in which groups may begin of which nothing is told, before the first block that was
    /// not written. What lies beyond that one is durable no more.
    pub(crate) starts: u32,
    /// There is such a block.
    pub(crate) ends: bool,
}

/// A bad flush group of which header, table and echo are good.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) number: u64,
    /// The first block of the group, and the one after its last.
    pub(crate) block: u32,
    pub(crate) end: u32,
    pub(crate) table: Vec<Record>,
    pub(crate) echo: Vec<Record>,
    /// The chain through it, and that through the one before.
    pub(crate) chain: Chain,
    pub(crate) previous: Chain,
    /// None of its blocks is known not to have been written: it may have been durable.
    pub(crate) has_landed: bool,
    /// It lies behind a block that was not written: above the mark it was not durable.
    pub(crate) beyond: bool,
}

impl Bad {
    /// One more block of what is bad here, after the first one.
    fn add_block(&mut self, number: u32, state: BlockState) {
        self.end = number + 1;
        self.count(state);
        if self.ends || self.tells_of(number) {
            return;
        }
        match state {
            BlockState::NotLanded => self.ends = true,
            BlockState::Garbage | BlockState::Whole { first: true } => self.starts += 1,
            BlockState::Whole { first: false } => {}
        }
    }

    /// One more block, in which a bad group begins.
    fn add_group(&mut self, number: u32, state: BlockState, bad: Bad) {
        self.end = number + 1;
        self.count(state);
        self.mark = self.mark.max(bad.mark);
        if self.ends {
            let beyond = bad.told.into_iter();
            self.told.extend(beyond.map(|told| Told {
                beyond: true,
                ..told
            }));
            return;
        }
        if self.tells_of(number) {
            return;
        }
        self.ends = bad.not_landed;
        self.starts += u32::from(bad.told.is_empty() && !bad.not_landed);
        self.told.extend(bad.told);
    }

    /// What lies behind it.
    pub(crate) fn end_place(&self) -> Place {
        Place {
            segment: self.at.segment,
            block: self.end,
        }
    }

    fn count(&mut self, state: BlockState) {
        self.whole_blocks += u32::from(matches!(state, BlockState::Whole { .. }));
        self.garbage_blocks += u32::from(state == BlockState::Garbage);
    }

    /// Whether the block belongs to a group of which something is told.
    pub(crate) fn tells_of(&self, number: u32) -> bool {
        let holds = |told: &Told| (told.block..told.end).contains(&number);
        self.told.iter().any(holds)
    }
}

/// A part of a segment.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Group(Box<GroupScan>),
    Bad(Bad),
}

impl Piece {
    /// Every table and echo that can be read in it.
    pub(crate) fn records(&self) -> Vec<&[Record]> {
        match self {
            Piece::Group(group) => vec![&group.table, &group.echo],
            Piece::Bad(bad) => {
                let told = bad.told.iter();
                told.flat_map(|told| [&told.table[..], &told.echo[..]])
                    .collect()
            }
        }
    }
}

/// Everything in a segment, in the order of its blocks.
#[derive(Clone, Debug)]
pub(crate) struct SegmentScan {
    pub(crate) slot: SlotId,
    pub(crate) header: SlotHeader,
    pub(crate) pieces: Vec<Piece>,
}

/// Reads the headers of all slots.
pub(crate) fn scan_headers(
    disk: &mut impl Disk,
    slots: &[SlotFile],
) -> Result<Vec<SlotScan>, ScanError> {
    let mut scans = Vec::with_capacity(slots.len());
    for SlotFile { slot, blocks } in slots {
        let (slot, blocks) = (*slot, *blocks);
        let mut scan = SlotScan {
            slot,
            blocks,
            header: None,
            read: Vec::new(),
            first_counts: false,
            good_copies: Vec::new(),
            bad_copies: Vec::new(),
            missing_copies: Vec::new(),
        };
        // What is beyond the end of a file that was cut short is missing.
        let mut copies = [Block::ZERO; SLOT_HEADER_BLOCKS as usize];
        let there = blocks.min(SLOT_HEADER_BLOCKS) as usize;
        if there > 0 {
            disk.read(slot, 0, &mut copies[..there])?;
        }
        let mut read = [None; SLOT_HEADER_BLOCKS as usize];
        for ((number, copy), read) in (0..).zip(&copies).zip(&mut read) {
            *read = scan.take_copy(number, copy).map_err(ScanError::Future)?;
        }
        scan.note_missing(&read);
        scans.push(scan);
    }
    Ok(scans)
}

impl SlotScan {
    /// Whether what was written where a header should be cannot be read. A crash may tear one copy of it, not both,
    /// and none in a file that does not reach beyond them: that was never in use.
    pub(crate) fn is_headless(&self) -> bool {
        let bad = self.bad_copies.len();
        let torn = bad < SLOT_HEADER_BLOCKS as usize && self.blocks > SLOT_HEADER_BLOCKS;
        self.header.is_none() && bad > 0 && !torn
    }

    /// The copies that hold something, those that cannot be read first.
    pub(crate) fn written_copies(&self) -> Vec<u32> {
        let good = (0..SLOT_HEADER_BLOCKS).filter(|number| self.good_copies.contains(number));
        self.bad_copies.iter().copied().chain(good).collect()
    }

    /// What the copy says, if it is good and of this slot.
    fn take_copy(
        &mut self,
        number: u32,
        copy: &Block,
    ) -> Result<Option<SlotHeader>, FromTheFuture> {
        let read = SlotHeader::from_block(copy, number);
        self.read.extend(read.iter().flatten());
        match read {
            Ok(None) => {}
            Ok(Some(header)) if header.slot == self.slot.0 => {
                let older = |known: &SlotHeader| {
                    (known.epoch, known.segment) <= (header.epoch, header.segment)
                };
                if self.header.as_ref().is_none_or(older) {
                    self.header = Some(header);
                    self.first_counts = number == 0;
                }
                self.good_copies.push(number);
                return Ok(Some(header));
            }
            Err(source) if is_from_the_future(&source) => {
                let slot = self.slot;
                return Err(FromTheFuture { slot, source });
            }
            Ok(Some(_)) | Err(_) => self.bad_copies.push(number),
        }
        Ok(None)
    }

    /// Takes note of the copies that do not say what the slot's header says.
    fn note_missing(&mut self, copies: &[Option<SlotHeader>]) {
        if self.header.is_none() {
            return;
        }
        for (number, copy) in (0..).zip(copies) {
            if *copy != self.header && !self.bad_copies.contains(&number) {
                self.missing_copies.push(number);
            }
        }
    }
}

/// What a segment's flush groups must agree with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: Incarnation,
}

/// Reads the blocks of a slot from the first to `end`.
pub(crate) fn read_blocks(
    disk: &mut impl Disk,
    slot: SlotId,
    end: u32,
    blocks: &mut Vec<Block>,
) -> Result<(), DiskError> {
    blocks.resize(end as usize, Block::ZERO);
    let mut at = 0;
    for chunk in blocks.chunks_mut(READ_BLOCKS) {
        disk.read(slot, at, chunk)?;
        at += u32::try_from(chunk.len()).expect("chunks are small");
    }
    Ok(())
}

/// Reads a segment up to a block.
pub(crate) fn scan_segment(
    disk: &mut impl Disk,
    slot: SlotId,
    header: &SlotHeader,
    end: u32,
    blocks: &mut Vec<Block>,
    mutant: Option<Mutant>,
) -> Result<SegmentScan, ScanError> {
    let end = end.min(header.slot_blocks);
    read_blocks(disk, slot, end, blocks)?;
    let expected = Expected {
        cluster: header.cluster,
        incarnation: header.incarnation,
    };
    let stamper = header.stamper().with_mutant(mutant);
    let pieces = scan_blocks(blocks, header.segment, &stamper, &expected);
    let pieces = pieces.map_err(|source| ScanError::Future(FromTheFuture { slot, source }))?;
    Ok(SegmentScan {
        slot,
        header: *header,
        pieces,
    })
}

/// The flush groups in the blocks of a slot.
pub(crate) fn scan_blocks(
    blocks: &[Block],
    segment: u64,
    stamper: &Stamper,
    expected: &Expected,
) -> Result<Vec<Piece>, DecodeError> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = SLOT_HEADER_BLOCKS as usize;
    while at < blocks.len() {
        let number = u32::try_from(at).expect("slots have fewer blocks");
        let place = Place {
            segment,
            block: number,
        };
        let reader = GroupReader {
            blocks: &blocks[at..],
            place,
            stamper,
            expected,
        };
        // Only where a group begins, or where one was expected.
        let expected_here = !matches!(pieces.last(), Some(Piece::Bad(_)));
        let state = stamper.check(&blocks[at], number);
        if !expected_here && state != (BlockState::Whole { first: true }) {
            if let Some(Piece::Bad(bad)) = pieces.last_mut() {
                bad.add_block(number, state);
            }
            at += 1;
            continue;
        }
        match reader.read(state) {
            Ok(group) => {
                at += group.header.blocks as usize;
                pieces.push(Piece::Group(Box::new(group)));
            }
            Err(Trouble::Future(error)) => return Err(error),
            Err(Trouble::Bad(bad)) => {
                at += 1;
                match pieces.last_mut() {
                    Some(Piece::Bad(first)) => {
                        first.add_group(number, state, bad);
                    }
                    _ => pieces.push(Piece::Bad(bad)),
                }
            }
        }
    }
    Ok(pieces)
}

enum Trouble {
    Future(DecodeError),
    Bad(Bad),
}

/// Reads one flush group from the front of `blocks`.
struct GroupReader<'a> {
    blocks: &'a [Block],
    place: Place,
    stamper: &'a Stamper,
    expected: &'a Expected,
}

impl GroupReader<'_> {
    fn bad(&self, block: u32, not_landed: bool, meaning: impl Into<String>) -> Bad {
        Bad {
            at: self.place,
            block,
            not_landed,
            meaning: meaning.into(),
            mark: None,
            whole_blocks: 0,
            end: self.place.block + 1,
            garbage_blocks: 0,
            told: Vec::new(),
            starts: 0,
            ends: false,
        }
    }

    fn read(&self, state: BlockState) -> Result<GroupScan, Trouble> {
        let first = self.place.block;
        match state {
            BlockState::Whole { first: true } => {}
            BlockState::Whole { first: false } => {
                let mut bad =
                    self.bad(first, false, "a flush group does not begin where it should");
                bad.whole_blocks = 1;
                return Err(Trouble::Bad(bad));
            }
            BlockState::NotLanded => {
                return Err(Trouble::Bad(self.bad(
                    first,
                    true,
                    "nothing was written here",
                )));
            }
            BlockState::Garbage => {
                let meaning = "the first block of a flush group fails its stamp";
                return Err(Trouble::Bad(self.bad(first, false, meaning)));
            }
        }
        let (header, chain) = match GroupHeader::parse(&self.blocks[0].0) {
            Ok(parsed) => parsed,
            Err(error) if is_from_the_future(&error) => return Err(Trouble::Future(error)),
            Err(error) => {
                let mut bad = self.bad(first, false, error.to_string());
                bad.whole_blocks = 1;
                return Err(Trouble::Bad(bad));
            }
        };
        let bad = match self.read_rest(header, chain) {
            Err(Trouble::Bad(bad)) => bad,
            read => return read,
        };
        let told = self.told(&header, chain, !bad.not_landed)?;
        Err(Trouble::Bad(Bad {
            mark: Some(header.mark),
            whole_blocks: 1,
            told: told.into_iter().collect(),
            ..bad
        }))
    }

    fn read_rest(&self, header: GroupHeader, chain: Chain) -> Result<GroupScan, Trouble> {
        let first = self.place.block;
        if !self.is_ours(&header) {
            return Err(Trouble::Bad(self.bad(
                first,
                false,
                "a flush group lies where it does not belong",
            )));
        }
        let blocks = &self.blocks[..header.blocks as usize];
        self.check_blocks(blocks)?;
        let data = gather(blocks, 0, header.data_bytes());
        let rest = &data[GROUP_HEADER_BYTES..];
        let (table, rest) = rest.split_at(header.table_bytes as usize);
        let (echo, _) = rest.split_at(header.echo_bytes as usize);
        if digest_of(table, echo) != header.digest {
            return Err(Trouble::Bad(self.bad(
                first,
                false,
                "the table of a flush group fails its digest",
            )));
        }
        let table = self.records(table, header.records)?;
        let echo = self.records(echo, header.echo_records)?;
        let body = header.data_bytes() - header.body_bytes as usize;
        let frames = self.frames(&table, data.freeze(), body)?;
        Ok(GroupScan {
            header,
            chain,
            table,
            echo,
            frames,
        })
    }

    fn is_ours(&self, header: &GroupHeader) -> bool {
        header.place == self.place
            && header.cluster == self.expected.cluster
            && header.incarnation == self.expected.incarnation
            && header.blocks as usize <= self.blocks.len()
    }

    /// What a group was to do whose frames are bad, or some of them.
    fn told(
        &self,
        header: &GroupHeader,
        chain: Chain,
        has_landed: bool,
    ) -> Result<Option<Told>, Trouble> {
        let Some(data) = self.whole_table(header) else {
            return Ok(None);
        };
        let (table, echo) = data.split_at(header.table_bytes as usize);
        if digest_of(table, echo) != header.digest {
            return Ok(None);
        }
        let table = self.records(table, header.records);
        let echo = self.records(echo, header.echo_records);
        let (table, echo) = match (table, echo) {
            (Ok(table), Ok(echo)) => (table, echo),
            (Err(Trouble::Future(error)), _) | (_, Err(Trouble::Future(error))) => {
                return Err(Trouble::Future(error));
            }
            _ => return Ok(None),
        };
        let block = self.place.block;
        Ok(Some(Told {
            number: header.number,
            block,
            end: block + header.blocks,
            table,
            echo,
            chain,
            previous: header.previous,
            has_landed,
            beyond: false,
        }))
    }

    /// Table and echo of a group, if it lies where it belongs and the blocks are good that hold them.
    fn whole_table(&self, header: &GroupHeader) -> Option<BytesMut> {
        let told_bytes = header.data_bytes() - header.body_bytes as usize;
        let blocks = blocks_for(told_bytes) as usize;
        let blocks = self.blocks.get(..blocks).filter(|_| self.is_ours(header))?;
        let whole = |(number, block)| {
            let first = number == self.place.block;
            self.stamper.check(block, number) == BlockState::Whole { first }
        };
        let all_whole = (self.place.block..).zip(blocks).all(whole);
        all_whole.then(|| gather(blocks, GROUP_HEADER_BYTES, told_bytes - GROUP_HEADER_BYTES))
    }

    fn check_blocks(&self, blocks: &[Block]) -> Result<(), Trouble> {
        let mut garbage = None;
        for (number, block) in (self.place.block..).zip(blocks).skip(1) {
            match self.stamper.check(block, number) {
                BlockState::Whole { first: false } => {}
                BlockState::NotLanded => {
                    let bad = self.bad(number, true, "a block of a flush group was not written");
                    return Err(Trouble::Bad(bad));
                }
                BlockState::Whole { first: true } | BlockState::Garbage => {
                    garbage = garbage.or(Some(number));
                }
            }
        }
        match garbage {
            None => Ok(()),
            Some(number) => {
                let meaning = "a block of a flush group fails its stamp";
                Err(Trouble::Bad(self.bad(number, false, meaning)))
            }
        }
    }

    /// Blocks that bear their stamps and a header that fits: what is wrong now was wrong when it was written.
    fn wrong(&self, error: DecodeError) -> Trouble {
        if is_from_the_future(&error) {
            return Trouble::Future(error);
        }
        Trouble::Bad(self.bad(self.place.block, false, error.to_string()))
    }

    fn records(&self, bytes: &[u8], count: u32) -> Result<Vec<Record>, Trouble> {
        let mut input = Reader::new(bytes);
        let mut records = Vec::new();
        for _ in 0..count {
            let record = Record::decode(&mut input).map_err(|error| self.wrong(error))?;
            if let Some(what) = record.unsupported() {
                return Err(self.wrong(DecodeError::Unsupported(what)));
            }
            records.push(record);
        }
        input.finish().map_err(|error| self.wrong(error))?;
        Ok(records)
    }

    fn frames(
        &self,
        table: &[Record],
        data: bytes::Bytes,
        body: usize,
    ) -> Result<Vec<FrameScan>, Trouble> {
        let mut frames = Vec::new();
        let mut at = body;
        for record in table {
            if let Record::Entries(run) | Record::Rewrite(run) = record {
                at = self.frames_of(run, &data, at, &mut frames)?;
            }
        }
        if at != data.len() {
            return Err(self.wrong(DecodeError::Trailing(data.len() - at)));
        }
        Ok(frames)
    }

    fn frames_of(
        &self,
        run: &EntryRun,
        data: &bytes::Bytes,
        mut at: usize,
        frames: &mut Vec<FrameScan>,
    ) -> Result<usize, Trouble> {
        let mut prev = run.prev;
        while prev.index < run.last.index {
            let header = EntryHeader::parse(&data[at..]).map_err(|error| self.wrong(error))?;
            counted("term", header.term.0).map_err(|error| self.wrong(error))?;
            let end = at + header.frame_bytes();
            if end > data.len() {
                let (needed, left) = (header.frame_bytes(), data.len() - at);
                return Err(self.wrong(DecodeError::Short { needed, left }));
            }
            let entry =
                Entry::from_frame(data.slice(at..end)).map_err(|error| self.wrong(error))?;
            if header.group != run.group || !entry.follows(&prev) {
                let bad = self.bad(
                    self.place.block,
                    false,
                    "an entry does not follow the one before",
                );
                return Err(Trouble::Bad(bad));
            }
            let membership = match header.kind {
                EntryKind::Configuration => {
                    let read = Membership::from_bytes(entry.payload());
                    Some(read.map_err(|error| self.wrong(error))?)
                }
                EntryKind::Noop | EntryKind::Proposals => None,
            };
            frames.push(FrameScan {
                position: entry.position(),
                bytes: u32::try_from(end - at).expect("frames are bounded"),
                offset: at,
                membership,
            });
            prev = entry.position();
            at = end;
        }
        if prev != run.last {
            let bad = self.bad(
                self.place.block,
                false,
                "a run does not end as its table says",
            );
            return Err(Trouble::Bad(bad));
        }
        Ok(at)
    }
}

impl GroupScan {
    /// The first entry it brings, to say what is hit when it cannot be read.
    pub(crate) fn first_entry(records: &[Record]) -> Option<(logdrive_raft::GroupId, Index, Term)> {
        records.iter().find_map(|record| match record {
            Record::Entries(run) | Record::Rewrite(run) => {
                Some((run.group, run.prev.index.next(), run.last.term))
            }
            _ => None,
        })
    }

    /// The blocks that frames begin in are counted from the beginning of the slot.
    pub(crate) fn place(&self) -> Place {
        const { assert!(GROUP_HEADER_BYTES < BLOCK_DATA_BYTES) };
        self.header.place
    }
}
