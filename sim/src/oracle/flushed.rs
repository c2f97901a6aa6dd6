//! What a node's medium would still hold if the power failed now: read by the oracle, block by block, as
//! blocks become durable. Nothing of this asks the log under test.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::{Bytes, BytesMut};
use hashbrown::{HashMap, HashSet};
use logdrive_raft::io::HardState;
use logdrive_raft::wire::{Decode, Reader};
use logdrive_raft::{Chain, Entry, EntryHeader, GroupId, NodeId, Term};
use logdrive_wal::disk::{Block, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, BlockState, EntryRun, GROUP_HEADER_BYTES, GroupHeader, Record,
    SLOT_HEADER_BLOCKS, SlotHeader, Stamper, digest_of,
};

use crate::disk::SimStorage;

use super::truth::Truth;

/// A hasher for keys that are hashes already: chains.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // An odd factor carries small numbers, such as indices, to the bits that a table looks at.
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
    }
}

pub(super) type Build = BuildHasherDefault<Hashed>;

/// The durable part of a node's medium.
#[derive(Debug, Default)]
pub(super) struct FlushedView {
    stampers: BTreeMap<SlotId, Stamper>,
    /// Flush groups that begin here and were not whole when they were last looked at, and how long they are.
    partial: BTreeMap<(SlotId, u32), u32>,
    /// Blocks that say nothing as yet: a flush group may be durable before the header of its slot.
    odd: BTreeSet<(SlotId, u32)>,
    entries: HashSet<(GroupId, Chain), Build>,
    /// Entries that are durable with everything before them.
    complete: HashSet<(GroupId, Chain), Build>,
    /// The flush groups that state a term and a vote in it.
    votes: HashMap<(GroupId, Term, NodeId), BTreeSet<u64>, Build>,
    /// Groups whose beginning is durable.
    begun: BTreeSet<GroupId>,
    fresh: Vec<(SlotId, u32)>,
    block: Scratch,
}

/// A block that is read into.
#[derive(Debug)]
struct Scratch(Box<Block>);

impl Default for Scratch {
    fn default() -> Self {
        Self(Box::new(Block::ZERO))
    }
}

impl FlushedView {
    /// Reads what has become durable since the last call.
    pub(super) fn read(&mut self, medium: &SimStorage) {
        let mut fresh = std::mem::take(&mut self.fresh);
        medium.take_newly_flushed(&mut fresh);
        if fresh.is_empty() {
            self.fresh = fresh;
            return;
        }
        let mut blocks = BTreeSet::new();
        for (slot, number) in fresh.drain(..) {
            if SLOT_HEADER_BLOCKS <= number {
                blocks.insert((slot, number));
            } else if self.read_header(medium, slot, number) {
                let of_slot = (slot, 0)..=(slot, u32::MAX);
                blocks.extend(self.odd.extract_if(of_slot.clone(), |_| true));
                let begun = self.partial.extract_if(of_slot, |_, _| true);
                // What a group that never became whole would have covered may begin another one by now.
                blocks.extend(begun.flat_map(|((slot, first), long)| {
                    (first..first + long).map(move |number| (slot, number))
                }));
            }
        }
        self.fresh = fresh;
        let mut touched = BTreeSet::new();
        for (slot, number) in blocks {
            // What begins here has replaced whatever lay here before.
            if let Some(header) = self.read_first(medium, slot, number) {
                self.partial.insert((slot, number), header.blocks);
                touched.insert((slot, number));
                continue;
            }
            let before = self.partial.range(..=(slot, number)).next_back();
            match before {
                Some(((of, first), blocks)) if *of == slot && number < first + blocks => {
                    touched.insert((slot, *first));
                }
                _ => {
                    self.odd.insert((slot, number));
                }
            }
        }
        for (slot, first) in touched {
            if self.read_group(medium, slot, first).is_some() {
                self.partial.remove(&(slot, first));
            }
        }
    }

    /// Whether an entry is durable with everything before it.
    pub(super) fn covers(&mut self, group: GroupId, chain: Chain, truth: &Truth) -> bool {
        let mut path = Vec::new();
        let mut at = chain;
        while !truth.is_root(at) && !self.complete.contains(&(group, at)) {
            if !self.entries.contains(&(group, at)) {
                return false;
            }
            let Some(known) = truth.entry(at) else {
                return false;
            };
            path.push((group, at));
            at = known.parent;
        }
        self.complete.extend(path);
        true
    }

    /// How many flush groups state a vote for this node in this term: one bad block hides one of them.
    pub(super) fn copies_of_vote(&self, group: GroupId, term: Term, candidate: NodeId) -> usize {
        let copies = self.votes.get(&(group, term, candidate));
        copies.map_or(0, BTreeSet::len)
    }

    /// Whether what a group began with is durable.
    pub(super) fn has_begun(&self, group: GroupId) -> bool {
        self.begun.contains(&group)
    }

    /// The disk is gone.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    fn read_header(&mut self, medium: &SimStorage, slot: SlotId, number: u32) -> bool {
        if !medium.flushed_block(slot, number, &mut self.block.0) {
            return false;
        }
        let header = SlotHeader::from_block(&self.block.0, number);
        let Ok(Some(header)) = header else {
            return false;
        };
        self.stampers.insert(slot, header.stamper());
        true
    }

    fn is_whole(&self, slot: SlotId, number: u32, first: bool) -> bool {
        let stamper = self.stampers.get(&slot);
        stamper.is_some_and(|stamper| {
            stamper.check(&self.block.0, number) == BlockState::Whole { first }
        })
    }

    fn read_first(&mut self, medium: &SimStorage, slot: SlotId, first: u32) -> Option<GroupHeader> {
        if !medium.flushed_block(slot, first, &mut self.block.0)
            || !self.is_whole(slot, first, true)
        {
            return None;
        }
        let (header, _) = GroupHeader::parse(&self.block.0.0).ok()?;
        (header.place.block == first).then_some(header)
    }

    fn read_group(&mut self, medium: &SimStorage, slot: SlotId, first: u32) -> Option<()> {
        let header = self.read_first(medium, slot, first)?;
        let mut data = BytesMut::with_capacity(header.blocks as usize * BLOCK_DATA_BYTES);
        data.extend_from_slice(&self.block.0.0[..BLOCK_DATA_BYTES]);
        for number in first + 1..first + header.blocks {
            if !medium.flushed_block(slot, number, &mut self.block.0)
                || !self.is_whole(slot, number, false)
            {
                return None;
            }
            data.extend_from_slice(&self.block.0.0[..BLOCK_DATA_BYTES]);
        }
        data.truncate(header.data_bytes());
        let data = data.freeze();
        let table_end = GROUP_HEADER_BYTES + header.table_bytes as usize;
        let echo_end = table_end + header.echo_bytes as usize;
        let (table, echo) = (
            &data[GROUP_HEADER_BYTES..table_end],
            &data[table_end..echo_end],
        );
        if digest_of(table, echo) != header.digest {
            return None;
        }
        let mut body = data.slice(echo_end..);
        let mut input = Reader::new(table);
        for _ in 0..header.records {
            let record = Record::decode(&mut input).ok()?;
            self.note(header.number, &record);
            if let Record::Entries(run) | Record::Rewrite(run) = &record {
                self.note_frames(run, &mut body)?;
            }
        }
        let mut input = Reader::new(echo);
        for _ in 0..header.echo_records {
            let record = Record::decode(&mut input).ok()?;
            self.note(header.number, &record);
        }
        Some(())
    }

    fn note(&mut self, number: u64, record: &Record) {
        match record {
            Record::Genesis(genesis) => {
                self.begun.insert(genesis.group);
            }
            Record::HardState { group, hard_state } => self.note_vote(number, *group, hard_state),
            Record::Checkpoint(groups) => {
                for stated in groups {
                    self.begun.insert(stated.genesis.group);
                    self.note_vote(number, stated.genesis.group, &stated.hard_state);
                }
            }
            _ => {}
        }
    }

    fn note_vote(&mut self, number: u64, group: GroupId, stated: &HardState) {
        if let Some(vote) = stated.vote {
            let key = (group, stated.term, vote.id);
            self.votes.entry(key).or_default().insert(number);
        }
    }

    fn note_frames(&mut self, run: &EntryRun, body: &mut Bytes) -> Option<()> {
        for _ in 0..run.count() {
            let header = EntryHeader::parse(body).ok()?;
            if body.len() < header.frame_bytes() {
                return None;
            }
            let entry = Entry::from_frame(body.split_to(header.frame_bytes())).ok()?;
            self.entries.insert((run.group, entry.header().chain));
        }
        Some(())
    }
}
