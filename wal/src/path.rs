//! One group's log as the write-ahead log knows it: the chain path from its base to its tip.
//!
//! It knows of every entry on the path where its frame lies, and nothing of entries off the path, which are
//! dead whatever their term.

use std::collections::VecDeque;

use logdrive_raft::io::{EntryMeta, HardState};
use logdrive_raft::{Chain, Entry, Genesis, Index, LogPosition, Term};

use crate::format::{BLOCK_DATA_BYTES, GroupCheckpoint, Place};

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

    /// Says where the frame lies: so many bytes of data after the beginning of a block.
    pub(crate) fn put(&mut self, at: Place, offset: usize) {
        let start = at.block as usize * BLOCK_DATA_BYTES + offset;
        self.segment = u32::try_from(at.segment).expect("segments are numbered in stamps");
        self.start = u32::try_from(start).expect("slots are below 2 GiB");
    }

    pub(crate) fn segment(&self) -> Option<u64> {
        (self.segment != 0).then_some(u64::from(self.segment))
    }

    /// The block that the frame begins in, the byte there, and the block that it ends in.
    pub(crate) fn blocks(&self) -> (u32, usize, u32) {
        let (start, end) = (
            self.start as usize,
            self.start as usize + self.bytes as usize,
        );
        let first = start / BLOCK_DATA_BYTES;
        let last = (end - 1) / BLOCK_DATA_BYTES;
        let number = |block| u32::try_from(block).expect("computed from a u32");
        (number(first), start % BLOCK_DATA_BYTES, number(last))
    }

    /// The place of the last block that the frame touches.
    pub(crate) fn last_place(&self) -> Option<Place> {
        let (_, _, block) = self.blocks();
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
}

/// The log of a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupLog {
    pub(crate) genesis: Genesis,
    pub(crate) base: LogPosition,
    rows: VecDeque<Row>,
    pub(crate) hard_state: HardState,
    pub(crate) anchor: Option<LogPosition>,
    /// As far as flush groups have been built: what a checkpoint states.
    pub(crate) written: Written,
}

/// The state of a group at the end of the last flush group that was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Its genesis is in one of them.
    pub(crate) begun: bool,
    pub(crate) hard_state: HardState,
    pub(crate) tip: LogPosition,
}

impl GroupLog {
    pub(crate) fn new(genesis: Genesis) -> Self {
        let base = genesis.origin();
        Self {
            genesis,
            base,
            rows: VecDeque::new(),
            hard_state: HardState::default(),
            anchor: None,
            written: Written {
                begun: false,
                hard_state: HardState::default(),
                tip: base,
            },
        }
    }

    pub(crate) fn tip(&self) -> LogPosition {
        let last = Index(self.base.index.0 + self.rows.len() as u64);
        self.position(last).expect("the tip is on the path")
    }

    pub(crate) fn row(&self, index: Index) -> Option<&Row> {
        let above = index.0.checked_sub(self.base.index.0 + 1)?;
        self.rows.get(usize::try_from(above).ok()?)
    }

    pub(crate) fn row_mut(&mut self, index: Index) -> Option<&mut Row> {
        let above = index.0.checked_sub(self.base.index.0 + 1)?;
        self.rows.get_mut(usize::try_from(above).ok()?)
    }

    pub(crate) fn rows_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
    }

    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.iter()
    }

    /// What lies at an index, from the base to the tip.
    pub(crate) fn position(&self, index: Index) -> Option<LogPosition> {
        if index == self.base.index {
            return Some(self.base);
        }
        self.row(index).map(|row| LogPosition {
            index,
            term: row.term,
            chain: row.chain,
        })
    }

    /// Cuts whatever lies beyond `to`.
    pub(crate) fn truncate(&mut self, to: &LogPosition) -> Result<(), OffPath> {
        self.check_on_path(to)?;
        let keep = usize::try_from(to.index.0 - self.base.index.0).expect("bounded by the rows");
        self.rows.truncate(keep);
        Ok(())
    }

    /// Appends an entry after `prev`, which is the tip.
    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push_back(row);
    }

    /// Moves the base, and the tip too if the base is not on the path.
    pub(crate) fn set_base(&mut self, base: LogPosition) {
        if self.check_on_path(&base).is_ok() {
            let below = usize::try_from(base.index.0 - self.base.index.0);
            self.rows.drain(..below.expect("bounded by the rows"));
        } else {
            self.rows.clear();
        }
        self.base = base;
    }

    /// Whether the path has this very entry.
    pub(crate) fn check_on_path(&self, position: &LogPosition) -> Result<(), OffPath> {
        if position.index < self.base.index {
            return Err(OffPath::BelowBase);
        }
        match self.position(position.index) {
            Some(found) if found.chain == position.chain => Ok(()),
            Some(_) => Err(OffPath::OtherChain),
            None => Err(OffPath::Gap),
        }
    }

    /// Takes a hard state that is not older than the one there is.
    pub(crate) fn raise_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = newest(self.hard_state, hard_state);
    }

    pub(crate) fn checkpoint(&self) -> GroupCheckpoint {
        GroupCheckpoint {
            genesis: self.genesis.clone(),
            hard_state: self.written.hard_state,
            base: self.base,
            tip: self.written.tip,
            anchor: self.anchor,
            guard: None,
            holes: Vec::new(),
        }
    }

    /// Everything accepted counts as written: at the end of a recovery.
    pub(crate) fn settle(&mut self) {
        self.written = Written {
            begun: true,
            hard_state: self.hard_state,
            tip: self.tip(),
        };
    }
}

/// The newer of two hard states of one replica: terms only grow, and within a term a vote is cast once.
pub(crate) fn newest(one: HardState, other: HardState) -> HardState {
    let newer = (other.term, other.vote.is_some()) > (one.term, one.vote.is_some());
    if newer { other } else { one }
}
