//! One group's log as the write-ahead log knows it: the chain path from its base to its tip.
//!
//! It knows of every entry on the path where its frame lies, and nothing of entries off the path, which are
//! dead whatever their term.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use logdrive_raft::io::{EntryMeta, Guard, HardState};
use logdrive_raft::wire::Encode;
use logdrive_raft::{Chain, Entry, Genesis, Index, LogPosition, Membership, SnapshotId, Term};

use crate::Position;
use crate::format::{Anchor, BLOCK_DATA_BYTES, GroupCheckpoint, Place};

/// An entry on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) chain: Chain,
    pub(crate) term: Term,
    pub(crate) bytes: u32,
    /// Where the frame lies: the segment, and how many bytes of block data come before it in the slot.
    /// Segment 0: it has not been given a place yet.
    segment: u32,
    start: u32,
}

impl Row {
    pub(crate) fn of(entry: &Entry) -> Self {
        let bytes = u32::try_from(entry.frame().len()).expect("frames are bounded");
        Self::new(&entry.position(), bytes)
    }

    pub(crate) fn new(position: &LogPosition, bytes: u32) -> Self {
        Self {
            chain: position.chain,
            term: position.term,
            bytes,
            segment: 0,
            start: 0,
        }
    }

    /// An entry whose frame cannot be read, in a segment. Of the last one of a run it is known which it is.
    pub(crate) fn missing(known: Option<&LogPosition>, segment: u64) -> Self {
        let position = known.copied().unwrap_or_default();
        let mut row = Self::new(&position, 0);
        row.segment = u32::try_from(segment).expect("segments are numbered in stamps");
        row.start = u32::from(known.is_some());
        row
    }

    pub(crate) fn is_missing(&self) -> bool {
        self.bytes == 0
    }

    /// Whether it is known which entry this is.
    fn is_known(&self) -> bool {
        !self.is_missing() || self.start != 0
    }

    /// Says where the frame lies: so many bytes of data after the beginning of a block.
    pub(crate) fn put(&mut self, at: Place, offset: usize) {
        let start = at.block as usize * BLOCK_DATA_BYTES + offset;
        self.segment = u32::try_from(at.segment).expect("segments are numbered in stamps");
        self.start = u32::try_from(start).expect("slots are below 2 GiB");
    }

    pub(crate) fn segment(&self) -> Option<u64> {
        (self.segment != 0).then_some(u64::from(self.segment))
    }

    /// The block that the frame begins in, the byte there, and the block that it ends in; none, if it is missing.
    pub(crate) fn blocks(&self) -> Option<(u32, usize, u32)> {
        let start = self.start as usize;
        let last = start + (self.bytes as usize).checked_sub(1)?;
        let number = |byte| u32::try_from(byte / BLOCK_DATA_BYTES).expect("computed from a u32");
        Some((number(start), start % BLOCK_DATA_BYTES, number(last)))
    }

    /// The place of the last block that the frame touches.
    pub(crate) fn last_place(&self) -> Option<Place> {
        let (_, _, block) = self.blocks()?;
        self.segment().map(|segment| Place { segment, block })
    }

    pub(crate) fn meta(&self) -> EntryMeta {
        EntryMeta {
            term: self.term,
            chain: self.chain,
            frame_bytes: self.bytes,
        }
    }
}

/// Why a run or record does not fit onto the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffPath {
    /// It follows an entry that the log does not have.
    Gap,
    /// It follows an entry that is not the one the log has.
    OtherChain,
    /// It would replace what the base covers.
    BelowBase,
    /// The log ends elsewhere than the record says.
    OtherTip,
}

/// Where a log begins, and what is known there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The last entry that is no longer in the log.
    pub(crate) base: LogPosition,
    /// The membership there; none: that of the genesis, for this is the origin.
    pub(crate) membership: Option<Arc<Membership>>,
    /// The snapshot that was received up to there, if one was.
    pub(crate) snapshot: Option<SnapshotId>,
}

impl Start {
    pub(crate) fn of(base: &logdrive_raft::Base) -> Self {
        Self {
            base: base.at,
            membership: Some(Arc::new(base.membership.clone())),
            snapshot: base.snapshot,
        }
    }
}

/// Entries of one flush group, or a part of them, whose frames cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The first one.
    pub first: Index,
    /// The last one, which is known by its term and chain.
    pub last: LogPosition,
    /// The segment in which they lay.
    pub segment: u64,
}

/// What an operator reads.
impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, .. } = self;
        let (index, term, chain) = (last.index, last.term, last.chain);
        write!(
            f,
            "entries {first} to {index} of term {term} and chain {chain} are missing"
        )
    }
}

/// The log of a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupLog {
    pub(crate) genesis: Genesis,
    /// Where it begins. There may be fewer rows than that says: see `owed`.
    pub(crate) start: Start,
    /// The entries from the base up to here lie in segments that were released, so that nobody knows of them. Something
    /// in the log covers them, or was meant to. Only while a log is judged and opened.
    owed: Option<LogPosition>,
    rows: VecDeque<Row>,
    /// Bytes of the frames of all rows.
    bytes: u64,
    /// How many rows there are whose frames cannot be read.
    missing: usize,
    /// Entries that were supplied for rows of the path, and lie elsewhere soon.
    supplied: VecDeque<Supplied>,
    /// Where entries lay that lie elsewhere now, up to the last index of each run: a log that begins with a later segment
    /// would not know of them.
    moved: Vec<(Index, u64)>,
    /// Entries that are to be written again, for the next opening would not find them where they lie.
    wanted: BTreeSet<Index>,
    pub(crate) hard_state: HardState,
    /// What an opening found that it may have acknowledged and lost.
    pub(crate) guard: Option<Guard>,
    pub(crate) anchor: Option<Arc<Anchor>>,
    pub(crate) anchors: Anchors,
    /// As far as flush groups have been built: what a checkpoint states.
    pub(crate) written: Written,
    pub(crate) carried: Carried,
}

/// Entries of the path on their way to where they can be read, again.
#[derive(Clone, Debug)]
struct Supplied {
    /// What the first one follows.
    prev: LogPosition,
    rows: Vec<Row>,
}

/// The state of a group at the end of the last flush group that was built.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// Its genesis is in one of them.
    pub(crate) begun: bool,
    pub(crate) hard_state: HardState,
    pub(crate) start: Start,
    pub(crate) tip: LogPosition,
    pub(crate) anchor: Option<Arc<Anchor>>,
    /// No segment below this one holds an entry between base and tip. None: there is no such entry.
    pub(crate) floor: Option<u64>,
}

/// Anchors that were appended, and how far they are durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Anchors {
    durable: Index,
    waiting: VecDeque<(Position, Index)>,
}

impl Anchors {
    pub(crate) fn push(&mut self, position: Position, at: Index, durable: Position) {
        self.newest_durable(durable);
        self.waiting.push_back((position, at));
    }

    /// The log may be cut up to here, given that everything up to a position is durable.
    pub(crate) fn newest_durable(&mut self, durable: Position) -> Index {
        while let Some((_, at)) = self
            .waiting
            .pop_front_if(|(position, _)| *position <= durable)
        {
            self.durable = at;
        }
        self.durable
    }
}

/// Bytes that the first flush group of a segment takes for a group, at most: for what was appended and for what was
/// built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) row: usize,
    pub(crate) anchor: usize,
    pub(crate) configuration: usize,
}

impl Carried {
    pub(crate) fn bytes(self) -> usize {
        self.row + self.anchor + self.configuration
    }

    pub(crate) fn records(self) -> usize {
        usize::from(self.anchor > 0) + usize::from(self.configuration > 0)
    }

    /// Room for both.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            row: self.row.max(other.row),
            anchor: self.anchor.max(other.anchor),
            configuration: self.configuration.max(other.configuration),
        }
    }
}

/// Bytes of a row of a checkpoint beside the genesis, at most.
const ROW_BYTES: usize = 8 + 25 + 32 + 17 + 32 + 33 + 18 + 4;

/// Bytes of a configuration record beside the membership.
const CONFIGURATION_BYTES: usize = 1 + 8 + 32;

pub(crate) fn anchor_bytes(anchor: &Anchor) -> usize {
    1 + anchor.to_bytes().len()
}

pub(crate) fn configuration_bytes(membership: &Membership) -> usize {
    CONFIGURATION_BYTES + membership.to_bytes().len()
}

impl GroupLog {
    pub(crate) fn new(genesis: Genesis) -> Self {
        let start = Start {
            base: genesis.origin(),
            membership: None,
            snapshot: None,
        };
        let carried = Carried {
            row: genesis.to_bytes().len() + ROW_BYTES,
            ..Carried::default()
        };
        Self {
            written: Written {
                begun: false,
                hard_state: HardState::default(),
                start: start.clone(),
                tip: start.base,
                anchor: None,
                floor: None,
            },
            genesis,
            start,
            owed: None,
            rows: VecDeque::new(),
            bytes: 0,
            missing: 0,
            supplied: VecDeque::new(),
            moved: Vec::new(),
            wanted: BTreeSet::new(),
            hard_state: HardState::default(),
            guard: None,
            anchor: None,
            anchors: Anchors::default(),
            carried,
        }
    }

    /// As the first checkpoint that there is states it. Its entries lie in segments before, and are owed.
    pub(crate) fn from_checkpoint(row: &GroupCheckpoint) -> Self {
        let mut log = Self::new(row.genesis.clone());
        log.start.base = row.base;
        log.start.snapshot = row.snapshot;
        log.owed = Some(row.tip).filter(|tip| *tip != row.base);
        log
    }

    pub(crate) fn base(&self) -> LogPosition {
        self.start.base
    }

    /// The membership at the base, if it is known.
    pub(crate) fn membership(&self) -> Option<Membership> {
        match &self.start.membership {
            Some(membership) => Some(Membership::clone(membership)),
            None if self.base() == self.genesis.origin() => Some(self.genesis.membership()),
            None => None,
        }
    }

    /// What lies before the first row.
    fn bottom(&self) -> LogPosition {
        self.owed.unwrap_or(self.start.base)
    }

    /// The first and the last entry that nothing is known of, if there are some.
    pub(crate) fn owed(&self) -> Option<(Index, LogPosition)> {
        self.owed.map(|last| (self.base().index.next(), last))
    }

    pub(crate) fn tip(&self) -> LogPosition {
        let last = Index(self.bottom().index.0 + self.rows.len() as u64);
        self.position(last).expect("the tip is on the path")
    }

    pub(crate) fn row(&self, index: Index) -> Option<&Row> {
        let above = index.0.checked_sub(self.bottom().index.0 + 1)?;
        self.rows.get(usize::try_from(above).ok()?)
    }

    pub(crate) fn row_mut(&mut self, index: Index) -> Option<&mut Row> {
        let above = index.0.checked_sub(self.bottom().index.0 + 1)?;
        self.rows.get_mut(usize::try_from(above).ok()?)
    }

    pub(crate) fn rows_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
    }

    /// Bytes of the frames of all entries above the base.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.iter()
    }

    /// What lies at an index, from the base to the tip, as far as it is known.
    pub(crate) fn position(&self, index: Index) -> Option<LogPosition> {
        [self.start.base, self.bottom()]
            .into_iter()
            .find(|known| known.index == index)
            .or_else(|| {
                let row = self.row(index).filter(|row| row.is_known());
                row.map(|row| LogPosition {
                    index,
                    term: row.term,
                    chain: row.chain,
                })
            })
    }

    /// Where the log ends as far as all of it can be read.
    pub(crate) fn whole(&self) -> LogPosition {
        let Some(first) = self.first_missing() else {
            return self.tip();
        };
        let before = first.prev().and_then(|before| self.position(before));
        before.expect("what lies before the first one that is missing is known")
    }

    /// The runs whose frames cannot be read, in their order.
    pub(crate) fn missing(&self) -> Vec<Missing> {
        let mut runs = Vec::new();
        let Some(mut first) = self.first_missing() else {
            return runs;
        };
        let mut is_open = false;
        let bottom = self.bottom().index;
        let from = usize::try_from(first.0 - bottom.0 - 1).expect("bounded by the rows");
        for (index, row) in (first.0..).map(Index).zip(self.rows.range(from..)) {
            if !row.is_missing() {
                continue;
            }
            if !is_open {
                first = index;
            }
            is_open = !row.is_known();
            if let (Some(last), Some(segment)) = (self.position(index), row.segment()) {
                runs.push(Missing {
                    first,
                    last,
                    segment,
                });
            }
        }
        runs
    }

    /// Entries that lie in these blocks are to be written again. Says how many these are, and the first of them.
    pub(crate) fn want_again(
        &mut self,
        segment: u64,
        blocks: &RangeInclusive<u32>,
    ) -> (usize, Option<Index>) {
        let lies_there = |row: &Row| {
            let own = row.blocks().filter(|_| row.segment() == Some(segment));
            own.is_some_and(|(first, _, last)| first <= *blocks.end() && *blocks.start() <= last)
        };
        let bottom = self.bottom().index;
        let rows = (bottom.0 + 1..).map(Index).zip(&self.rows);
        let hit = rows.filter(|(_, row)| lies_there(row));
        let hit: Vec<Index> = hit.map(|(index, _)| index).collect();
        self.wanted.extend(&hit);
        (hit.len(), hit.first().copied())
    }

    /// The first entries that are to be written again: a run of so many bytes, or of one entry.
    pub(crate) fn wanted(&self, bytes_max: usize) -> Option<Missing> {
        let first = *self.wanted.first()?;
        let mut last = first;
        let mut bytes = self.row(first)?.bytes as usize;
        while let Some(row) = self.row(last.next())
            && self.wanted.contains(&last.next())
            && bytes + row.bytes as usize <= bytes_max
        {
            bytes += row.bytes as usize;
            last = last.next();
        }
        Some(Missing {
            first,
            last: self.position(last)?,
            segment: self.row(first)?.segment()?,
        })
    }

    /// How many entries these are.
    pub(crate) fn wanted_count(&self) -> usize {
        self.wanted.len()
    }

    /// The anchor at which the log can be cut so that fewer entries are missing: what it covers is needed by nobody here.
    pub(crate) fn anchor_over_missing(&self) -> Option<&Anchor> {
        let first = self.first_missing()?;
        let anchor = self.anchor.as_deref()?;
        let covers = first <= anchor.at.index && self.check_on_path(&anchor.at).is_ok();
        Some(anchor).filter(|_| covers)
    }

    /// How many entries there are whose frames cannot be read.
    pub(crate) fn missing_count(&self) -> usize {
        self.missing
    }

    /// The first entry whose frame cannot be read, if there is one.
    pub(crate) fn first_missing(&self) -> Option<Index> {
        if self.missing == 0 {
            return None;
        }
        let above = self.rows.iter().position(Row::is_missing)?;
        Some(Index(self.bottom().index.0 + 1 + above as u64))
    }

    /// Whether nobody knows which entry lies at an index, though one does.
    fn is_unknown(&self, index: Index) -> bool {
        self.row(index).is_some_and(|row| !row.is_known())
    }

    /// A later record names this entry, so it was on the path.
    fn learn(&mut self, position: &LogPosition) {
        if let Some(row) = self.row_mut(position.index).filter(|row| !row.is_known()) {
            row.term = position.term;
            row.chain = position.chain;
            row.start = 1;
        }
    }

    /// Cuts whatever lies beyond `to`.
    pub(crate) fn truncate(&mut self, to: &LogPosition) -> Result<(), OffPath> {
        self.check_on_path(to)?;
        self.learn(to);
        let bottom = self.bottom().index;
        if to.index < bottom {
            self.owed = Some(*to).filter(|to| to.index != self.start.base.index);
        }
        let keep = usize::try_from(to.index.0.saturating_sub(bottom.0));
        self.keep_below(keep.expect("bounded by the rows"));
        Ok(())
    }

    fn keep_below(&mut self, rows: usize) {
        let last = Index(self.bottom().index.0 + rows as u64);
        self.wanted.retain(|index| *index <= last);
        let dead = self.rows.range(rows.min(self.rows.len())..);
        self.bytes -= dead.clone().map(|row| u64::from(row.bytes)).sum::<u64>();
        self.missing -= dead.filter(|row| row.is_missing()).count();
        self.rows.truncate(rows);
        if self.rows.is_empty() {
            self.moved.clear();
        }
    }

    /// Whether these are entries of the path; says what the first one follows. That the last one is known, and that each
    /// follows the one before, proves it of all.
    pub(crate) fn check_supplied(&self, entries: &[Entry]) -> Result<LogPosition, OffPath> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Err(OffPath::Gap);
        };
        let group = self.genesis.group;
        let before = first
            .index()
            .prev()
            .filter(|_| self.bottom().index < first.index());
        let prev = before.and_then(|before| self.position(before));
        let prev = prev.ok_or(OffPath::Gap)?;
        let mut at = prev;
        for entry in entries {
            if entry.header().group != group || !entry.follows(&at) {
                return Err(OffPath::OtherChain);
            }
            at = entry.position();
        }
        match self.position(last.index()) {
            Some(held) if held == at => Ok(prev),
            Some(_) => Err(OffPath::OtherChain),
            None => Err(OffPath::Gap),
        }
    }

    /// These are on their way to the disk again.
    pub(crate) fn supply(&mut self, prev: LogPosition, entries: &[Entry]) {
        let rows = entries.iter().map(Row::of).collect();
        self.supplied.push_back(Supplied { prev, rows });
    }

    /// One of them has a place.
    pub(crate) fn supplied_built(&mut self, entry: &LogPosition, at: Place, offset: usize) {
        for Supplied { prev, rows } in &mut self.supplied {
            let above = entry.index.0.checked_sub(prev.index.0 + 1);
            let row = above.and_then(|above| rows.get_mut(usize::try_from(above).ok()?));
            if let Some(row) = row.filter(|row| row.chain == entry.chain && row.segment == 0) {
                return row.put(at, offset);
            }
        }
    }

    /// From now on those entries are read where they were supplied to of which that is durable.
    pub(crate) fn take_supplied(&mut self, is_durable: impl Fn(&Row) -> bool) {
        while let Some(first) = self.supplied.front()
            && first.rows.iter().all(&is_durable)
            && let Some(Supplied { prev, rows }) = self.supplied.pop_front()
        {
            self.replace(&prev, &rows, |_| {});
        }
    }

    /// Has entries be read elsewhere, as far as they are on the path. Says which these are, by their number.
    pub(crate) fn replace(
        &mut self,
        prev: &LogPosition,
        rows: &[Row],
        mut replaced: impl FnMut(usize),
    ) {
        let mut on_path = self.position(prev.index) == Some(*prev);
        for (number, (index, row)) in (prev.index.0 + 1..).map(Index).zip(rows).enumerate() {
            if let Some(held) = self.position(index) {
                on_path = held.chain == row.chain;
            }
            // Nor is one that was appended once more since, which lies further on.
            let lies_before = |held: &&mut Row| 0 < held.segment && held.segment <= row.segment;
            let held = self.row_mut(index).filter(|_| on_path);
            let Some(held) = held.filter(lies_before) else {
                continue;
            };
            let before = std::mem::replace(held, *row);
            self.bytes = self.bytes + u64::from(row.bytes) - u64::from(before.bytes);
            self.missing -= usize::from(before.is_missing());
            self.note_moved(index, before.segment());
            self.wanted.remove(&index);
            replaced(number);
        }
    }

    fn note_moved(&mut self, index: Index, from: Option<u64>) {
        let Some(from) = from else {
            return;
        };
        match self.moved.last_mut() {
            Some((last, segment)) if *segment == from && last.next() == index => *last = index,
            _ => self.moved.push((index, from)),
        }
    }

    /// No segment below this one is needed for the entries that were built from here on, which is where a row lies.
    fn floor_of(&self, row: Option<u64>) -> Option<u64> {
        let moved = self.moved.iter().map(|(_, segment)| *segment);
        moved.chain(row).min()
    }

    /// Appends an entry after `prev`, which is the tip.
    pub(crate) fn push(&mut self, row: Row) {
        self.bytes += u64::from(row.bytes);
        self.missing += usize::from(row.is_missing());
        self.rows.push_back(row);
    }

    /// Moves the base, and the tip too if the base is not on the path. `tip` is where the log ends then.
    pub(crate) fn set_start(&mut self, start: Start, tip: &LogPosition) -> Result<(), OffPath> {
        let base = start.base;
        let goes_on = match self.check_on_path(&base) {
            Err(OffPath::BelowBase) => return Err(OffPath::BelowBase),
            // Nobody knows what was there, but for what the record says.
            Ok(()) if base.index < self.bottom().index || self.is_unknown(base.index) => {
                *tip == self.tip()
            }
            on_path => on_path.is_ok(),
        };
        if !goes_on {
            self.keep_below(0);
            self.owed = None;
        } else if self.bottom().index <= base.index {
            let below = usize::try_from(base.index.0 - self.bottom().index.0);
            for dead in self.rows.drain(..below.expect("bounded by the rows")) {
                self.bytes -= u64::from(dead.bytes);
                self.missing -= usize::from(dead.is_missing());
            }
            self.owed = None;
        }
        self.moved.retain(|(last, _)| base.index < *last);
        self.wanted.retain(|index| base.index < *index);
        self.start = start;
        if self.tip() != *tip {
            return Err(OffPath::OtherTip);
        }
        Ok(())
    }

    /// Whether the path has this very entry. Of those that are owed or cannot be read nobody knows better.
    pub(crate) fn check_on_path(&self, position: &LogPosition) -> Result<(), OffPath> {
        if position.index < self.start.base.index {
            return Err(OffPath::BelowBase);
        }
        if self.start.base.index < position.index && position.index < self.bottom().index {
            return Ok(());
        }
        if self.is_unknown(position.index) {
            return Ok(());
        }
        match self.position(position.index) {
            Some(found) if found.chain == position.chain => Ok(()),
            Some(_) => Err(OffPath::OtherChain),
            None => Err(OffPath::Gap),
        }
    }

    /// What it may have acknowledged and does not hold.
    pub(crate) fn open_guard(&self) -> Option<Guard> {
        self.guard.filter(|guard| !guard.is_met_by(&self.whole()))
    }

    /// Takes note of what it may have acknowledged and lost.
    pub(crate) fn raise_guard(&mut self, guard: Guard) {
        self.guard = Some(self.guard.map_or(guard, |before| before.or(guard)));
    }

    /// Takes a hard state that is not older than the one there is.
    pub(crate) fn raise_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = newest(self.hard_state, hard_state);
    }

    pub(crate) fn checkpoint(&self) -> GroupCheckpoint {
        let Written {
            start,
            hard_state,
            tip,
            anchor,
            ..
        } = &self.written;
        GroupCheckpoint {
            genesis: self.genesis.clone(),
            hard_state: *hard_state,
            base: start.base,
            snapshot: start.snapshot,
            tip: *tip,
            anchor: anchor.as_ref().map(|anchor| anchor.at),
            // The tip alone does not end it: something before may be missing.
            guard: self.guard,
            holes: Vec::new(),
        }
    }

    /// Everything accepted counts as written: at the end of a recovery.
    pub(crate) fn settle(&mut self) {
        self.written = Written {
            begun: true,
            hard_state: self.hard_state,
            start: self.start.clone(),
            tip: self.tip(),
            anchor: self.anchor.clone(),
            floor: self.floor_of(self.rows.iter().filter_map(Row::segment).min()),
        };
        let at = self.anchor.as_ref().map(|anchor| anchor.at.index);
        self.anchors.durable = at.unwrap_or_default();
        self.carried = self.carried_now();
    }

    /// What a checkpoint takes once all that was appended is built.
    pub(crate) fn carried_now(&self) -> Carried {
        let anchor = self.anchor.as_deref().map(anchor_bytes);
        let membership = self.start.membership.as_deref();
        Carried {
            row: self.carried.row,
            anchor: anchor.unwrap_or(0),
            configuration: membership.map_or(0, configuration_bytes),
        }
    }

    /// An entry was put into a flush group of this segment.
    pub(crate) fn entry_built(&mut self, entry: LogPosition, segment: u64) {
        self.written.tip = entry;
        self.written.floor = self.written.floor.or(Some(segment));
    }

    /// So was the record that cuts the log.
    pub(crate) fn truncate_built(&mut self, to: LogPosition) {
        self.written.tip = to;
        if to == self.written.start.base {
            self.written.floor = None;
        }
    }

    /// So was the record of a base.
    pub(crate) fn base_built(&mut self, start: Start, tip: LogPosition) {
        let base = start.base;
        self.written.start = start;
        self.written.tip = tip;
        let above = self.row(base.index.next());
        if tip == base {
            self.written.floor = None;
        } else if let Some(segment) = above.and_then(Row::segment) {
            // A row that has its place is of the path that was built. The entries above it came later.
            // So is what lay before that was moved.
            self.written.floor = self.floor_of(Some(segment));
        }
        // Else a later base or cut has taken that row from memory already, and the floor stays too low until it is built.
    }

    /// So was the record of an anchor.
    pub(crate) fn anchor_built(&mut self, anchor: &Anchor) {
        let newest = self.anchor.as_ref().filter(|newest| ***newest == *anchor);
        let anchor = newest.map_or_else(|| Arc::new(anchor.clone()), Arc::clone);
        self.written.anchor = Some(anchor);
    }

    /// Everything that was appended is built, as far as anchor and base are concerned.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.anchor == self.written.anchor && self.start == self.written.start
    }
}

/// The newer of two hard states of one replica: terms only grow, and within a term a vote is cast once.
pub(crate) fn newest(one: HardState, other: HardState) -> HardState {
    let newer = (other.term, other.vote.is_some()) > (one.term, one.vote.is_some());
    if newer { other } else { one }
}
