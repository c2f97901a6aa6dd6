//! What a node's medium would still hold if the power failed now: read by the oracle, block by block, as
//! blocks become durable. Nothing of this asks the log under test.
//!
//! A flush group that is whole is not yet worth anything: what counts is the path from the first one, over
//! whole groups without a gap, for a recovery goes no further (`wal/README.md`, "What a crash leaves").

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::{Bytes, BytesMut};
use hashbrown::{HashMap, HashSet};
use logdrive_raft::wire::{Decode, Reader};
use logdrive_raft::{Boot, Chain, Entry, EntryHeader, GroupId, LogPosition, NodeId, Term};
use logdrive_wal::disk::{Block, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, BlockState, EntryRun, GROUP_HEADER_BYTES, GroupHeader, GroupKind, Record,
    SLOT_HEADER_BLOCKS, SlotHeader, Stamper, digest_of,
};

use crate::disk::SimStorage;

use super::path::{Group, Note, Path};

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

/// Where a flush group begins.
type Spot = (SlotId, u32);

/// The durable part of a node's medium.
#[derive(Debug, Default)]
pub(super) struct FlushedView {
    headers: BTreeMap<SlotId, (SlotHeader, Stamper)>,
    /// Flush groups that begin here and are not whole, and how long they are.
    partial: BTreeMap<Spot, u32>,
    /// Blocks that say nothing as yet: a flush group may be durable before the header of its slot.
    odd: BTreeSet<Spot>,
    wholes: BTreeMap<Spot, Whole>,
    /// No whole group of a slot reaches further than this block.
    ends: BTreeMap<SlotId, u32>,
    /// Groups that were whole until a block of them went bad. A recovery knows what they said from what lies around them, or
    /// refuses the log.
    rotten: BTreeSet<Spot>,
    /// The whole flush groups that follow one, by its chain: more than one where a recovery dropped some.
    followers: HashMap<Chain, Vec<Spot>, Build>,
    /// Boots of whose verdict a whole flush group tells.
    judged: BTreeSet<Boot>,
    path: Path,
    fresh: Vec<Spot>,
    block: Scratch,
}

/// A flush group of which every block is durable.
#[derive(Debug)]
struct Whole {
    header: GroupHeader,
    chain: Chain,
    /// The boot that opened its segment.
    epoch: Boot,
    /// It is the first of a segment that a recovery opened.
    begins_recovery: bool,
    verdict: Option<Boot>,
    notes: Vec<Note>,
    on_path: bool,
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
    /// Reads what has become durable since the last call. Says whether anything has.
    pub(super) fn read(&mut self, medium: &SimStorage) -> bool {
        let mut fresh = std::mem::take(&mut self.fresh);
        medium.take_newly_flushed(&mut fresh);
        let any = !fresh.is_empty();
        if any {
            self.read_blocks(medium, &mut fresh);
        }
        self.fresh = fresh;
        any
    }

    fn read_blocks(&mut self, medium: &SimStorage, fresh: &mut Vec<Spot>) {
        let mut blocks = BTreeSet::new();
        let mut lost = false;
        for (slot, number) in fresh.drain(..) {
            if SLOT_HEADER_BLOCKS <= number {
                blocks.insert((slot, number));
            } else if self.read_header(medium, slot) {
                lost |= self.forget_segment(slot);
                let of_slot = (slot, 0)..=(slot, u32::MAX);
                blocks.extend(self.odd.extract_if(of_slot.clone(), |_| true));
                let begun = self.partial.extract_if(of_slot, |_, _| true);
                // What a group that never became whole would have covered may begin another one by now.
                blocks.extend(begun.flat_map(|((slot, first), long)| {
                    (first..first + long).map(move |number| (slot, number))
                }));
            }
        }
        let mut touched = BTreeSet::new();
        for (slot, number) in blocks {
            // A group of which a block is another one has to be whole again.
            if let Some((spot, long)) = self.whole_around((slot, number)) {
                if self.rotten.contains(&spot) {
                    continue;
                }
                lost |= self.remove(spot);
                self.partial.insert(spot, long);
                touched.insert(spot);
            }
            // What begins here has replaced whatever lay here before.
            if let Some((header, _)) = self.read_first(medium, slot, number) {
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
        let mut new = Vec::new();
        for spot in touched {
            if let Some(whole) = self.read_group(medium, spot) {
                self.partial.remove(&spot);
                self.insert(spot, whole);
                new.push(spot);
            }
        }
        if lost {
            self.follow_again();
            return;
        }
        self.follow();
        if new.iter().any(|spot| self.is_elsewhere(*spot)) {
            self.follow_again();
        }
    }

    /// Whether an entry is durable with everything before it.
    pub(super) fn covers(&self, group: GroupId, at: LogPosition) -> bool {
        self.path.covers(group, at)
    }

    /// How many flush groups state a vote for this node in this term: one bad block hides one of them.
    pub(super) fn copies_of_vote(&self, group: GroupId, term: Term, candidate: NodeId) -> usize {
        self.path.copies_of_vote(group, term, candidate)
    }

    /// The highest term that a recovery would find for a group.
    pub(super) fn term(&self, group: GroupId) -> Term {
        self.path.term(group)
    }

    /// Whether segments were released and taken again.
    pub(super) fn is_released(&self) -> bool {
        self.path.is_released()
    }

    /// Where the log of a group begins.
    pub(super) fn base(&self, group: GroupId) -> LogPosition {
        self.path.base(group)
    }

    /// A group whose log was cut beyond its anchor: where that is, and where it begins.
    pub(super) fn unanchored(&self) -> Option<(GroupId, LogPosition, LogPosition)> {
        self.path.unanchored()
    }

    /// Whether what a group began with is durable.
    pub(super) fn has_begun(&self, group: GroupId) -> bool {
        self.path.has_begun(group)
    }

    /// Whether a recovery would need this block.
    pub(super) fn counts_on(&self, slot: SlotId, number: u32) -> OnPath {
        let around = self.whole_around((slot, number));
        match around.and_then(|(spot, _)| self.wholes.get(&spot)) {
            Some(whole) if whole.on_path && whole.header.place < self.path.mark() => OnPath::Marked,
            Some(whole) if whole.on_path => OnPath::Unmarked,
            Some(_) => OnPath::No,
            None if number < SLOT_HEADER_BLOCKS => OnPath::No,
            None => OnPath::Unmarked,
        }
    }

    /// A block has gone bad that a recovery would need. The entries of its flush group are gone.
    pub(super) fn rot(&mut self, spot: Spot) {
        if let Some((spot, _)) = self.whole_around(spot) {
            self.rotten.insert(spot);
            self.follow_again();
        }
    }

    /// The blocks of flush groups on the path over which no mark lies.
    pub(super) fn unmarked(&self) -> Vec<(SlotId, u32)> {
        let mark = self.path.mark();
        let beyond = |whole: &Whole| whole.on_path && mark <= whole.header.place;
        let groups = self.wholes.iter().filter(|(_, whole)| beyond(whole));
        let blocks = groups.flat_map(|((slot, first), whole)| {
            (*first..*first + whole.header.blocks).map(|block| (*slot, block))
        });
        blocks.collect()
    }

    /// The disk is gone.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Reads both copies of a slot's header. Says whether it is another one.
    fn read_header(&mut self, medium: &SimStorage, slot: SlotId) -> bool {
        let mut newest: Option<SlotHeader> = None;
        for number in 0..SLOT_HEADER_BLOCKS {
            if !medium.flushed_block(slot, number, &mut self.block.0) {
                continue;
            }
            let header = SlotHeader::from_block(&self.block.0, number);
            if let Ok(Some(header)) = header
                && newest.is_none_or(|newest| {
                    (newest.epoch, newest.segment) < (header.epoch, header.segment)
                })
            {
                newest = Some(header);
            }
        }
        let before = self.headers.get(&slot).map(|(header, _)| *header);
        match newest {
            Some(header) => self.headers.insert(slot, (header, header.stamper())),
            None => self.headers.remove(&slot),
        };
        before != newest
    }

    /// The slot holds another segment: nothing that lay in it belongs to the log. Says whether some of it did.
    fn forget_segment(&mut self, slot: SlotId) -> bool {
        let of_slot = self.wholes.range((slot, 0)..=(slot, u32::MAX));
        let spots: Vec<(Spot, u32)> = of_slot
            .map(|(spot, whole)| (*spot, whole.header.blocks))
            .collect();
        let mut lost = false;
        for ((slot, first), long) in spots {
            lost |= self.remove((slot, first));
            self.odd
                .extend((first..first + long).map(|number| (slot, number)));
        }
        lost
    }

    /// The whole group that has this block, and how long it is.
    fn whole_around(&self, (slot, number): Spot) -> Option<(Spot, u32)> {
        if self.ends.get(&slot).is_none_or(|end| *end <= number) {
            return None;
        }
        let (spot, whole) = self.wholes.range(..=(slot, number)).next_back()?;
        let long = whole.header.blocks;
        (spot.0 == slot && number < spot.1 + long).then_some((*spot, long))
    }

    fn insert(&mut self, spot: Spot, whole: Whole) {
        self.remove(spot);
        let end = self.ends.entry(spot.0).or_default();
        *end = (*end).max(spot.1 + whole.header.blocks);
        self.followers
            .entry(whole.header.previous)
            .or_default()
            .push(spot);
        self.judged.extend(whole.verdict);
        self.wholes.insert(spot, whole);
    }

    /// A group is whole no more. Says whether it was on the path.
    fn remove(&mut self, spot: Spot) -> bool {
        self.rotten.remove(&spot);
        let Some(whole) = self.wholes.remove(&spot) else {
            return false;
        };
        if let Some(followers) = self.followers.get_mut(&whole.header.previous) {
            followers.retain(|other| *other != spot);
        }
        whole.on_path
    }

    /// Goes on from the end of the path as far as there are groups.
    fn follow(&mut self) {
        if self.path.number() == 0 {
            return self.follow_again();
        }
        let mut path = std::mem::take(&mut self.path);
        let taken = self.walk(&mut path);
        self.path = path;
        self.mark_taken(&taken);
    }

    /// Of all places where a path may begin, that from which it gets furthest. The header of the segment where it ends
    /// says which is the oldest that a recovery asks for.
    fn follow_again(&mut self) {
        for whole in self.wholes.values_mut() {
            whole.on_path = false;
        }
        let before = (self.path.epoch(), self.path.number());
        let mut best = self.furthest(self.beginnings(true));
        let reached = best.as_ref().map(|(path, _)| (path.epoch(), path.number()));
        if reached < Some(before) {
            // A segment that nobody needs any more may end in the middle, and the next one does not begin anew.
            best = self.furthest(self.beginnings(false));
        }
        let (path, taken) = best.unwrap_or_default();
        self.path = path;
        self.mark_taken(&taken);
    }

    /// The path that gets furthest of those that begin here.
    fn furthest(&self, beginnings: Vec<Spot>) -> Option<(Path, Vec<Spot>)> {
        let mut best: Option<(Path, Vec<Spot>)> = None;
        for first in beginnings {
            let mut path = Path::at(&self.wholes[&first].header);
            let taken = self.walk(&mut path);
            let Some((last, _)) = taken.last() else {
                continue;
            };
            let header = |slot: &SlotId| self.headers.get(slot).map(|(header, _)| header);
            let begins = header(&first.0).map_or(u64::MAX, |header| header.segment);
            let oldest = header(last).map_or(0, |header| header.oldest);
            let reach = |path: &Path| (path.epoch(), path.number());
            let further = best
                .as_ref()
                .is_none_or(|(before, _)| reach(before) < reach(&path));
            if begins <= oldest.max(1) && further {
                best = Some((path, taken));
            }
        }
        best
    }

    /// The first groups of segments: those alone before which nothing is there, or all.
    fn beginnings(&self, alone: bool) -> Vec<Spot> {
        let chains: HashSet<Chain, Build> = self.wholes.values().map(|whole| whole.chain).collect();
        let firsts = self.wholes.iter().filter(|(_, whole)| {
            let header = &whole.header;
            header.kind == GroupKind::First
                && (!alone || header.number == 1 || !chains.contains(&header.previous))
        });
        firsts.map(|(spot, _)| *spot).collect()
    }

    /// Takes groups as far as there are any.
    fn walk(&self, path: &mut Path) -> Vec<Spot> {
        let mut taken = Vec::new();
        while let Some(spot) = self.next(path) {
            let whole = &self.wholes[&spot];
            let rotten = self.rotten.contains(&spot);
            let group = Group {
                header: &whole.header,
                chain: whole.chain,
                epoch: whole.epoch,
                rotten,
            };
            if !path.take(&group, &whole.notes) {
                break;
            }
            taken.push(spot);
        }
        taken
    }

    fn mark_taken(&mut self, taken: &[Spot]) {
        for spot in taken {
            if let Some(whole) = self.wholes.get_mut(spot) {
                whole.on_path = true;
            }
        }
    }

    /// The group that a recovery would take next: of several the one of the newest opening that counts.
    fn next(&self, path: &Path) -> Option<Spot> {
        let followers = self.followers.get(&path.chain())?.iter();
        let counts = followers.filter(|spot| {
            let whole = &self.wholes[*spot];
            whole.header.number == path.number() + 1
                && (!whole.begins_recovery || self.is_judged(whole))
        });
        let newest = counts.max_by_key(|spot| {
            let whole = &self.wholes[*spot];
            (whole.epoch, whole.header.boot)
        });
        newest.copied()
    }

    /// Whether the recovery that a group begins got as far as its verdict.
    fn is_judged(&self, first: &Whole) -> bool {
        let mut whole = first;
        loop {
            if whole.verdict == Some(first.epoch) {
                return true;
            }
            let followers = self.followers.get(&whole.chain).into_iter().flatten();
            let mut followers = followers.map(|spot| &self.wholes[spot]);
            let Some(next) = followers.find(|next| next.epoch == first.epoch) else {
                return false;
            };
            whole = next;
        }
    }

    /// A group that lies off the path though its opening is newer than the end of it, and was done.
    fn is_elsewhere(&self, spot: Spot) -> bool {
        let whole = &self.wholes[&spot];
        !whole.on_path && self.path.epoch() < whole.epoch && self.judged.contains(&whole.epoch)
    }

    fn is_whole(&self, slot: SlotId, number: u32, first: bool) -> bool {
        let header = self.headers.get(&slot);
        header.is_some_and(|(_, stamper)| {
            stamper.check(&self.block.0, number) == BlockState::Whole { first }
        })
    }

    fn read_first(
        &mut self,
        medium: &SimStorage,
        slot: SlotId,
        first: u32,
    ) -> Option<(GroupHeader, Chain)> {
        if !medium.flushed_block(slot, first, &mut self.block.0)
            || !self.is_whole(slot, first, true)
        {
            return None;
        }
        let (header, chain) = GroupHeader::parse(&self.block.0.0).ok()?;
        (header.place.block == first).then_some((header, chain))
    }

    fn read_group(&mut self, medium: &SimStorage, (slot, first): Spot) -> Option<Whole> {
        let (header, chain) = self.read_first(medium, slot, first)?;
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
        let (of_slot, _) = self.headers.get(&slot)?;
        let mut whole = Whole {
            header,
            chain,
            epoch: of_slot.epoch,
            begins_recovery: of_slot.by_recovery && header.kind == GroupKind::First,
            verdict: None,
            notes: Vec::new(),
            on_path: false,
        };
        data.truncate(header.data_bytes());
        whole.read_records(&data.freeze())?;
        Some(whole)
    }
}

/// Whether a block belongs to what a recovery would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnPath {
    No,
    /// Or it may in a while.
    Unmarked,
    /// And some group says that it was durable.
    Marked,
}

impl Whole {
    fn read_records(&mut self, data: &Bytes) -> Option<()> {
        let header = &self.header;
        let table_end = GROUP_HEADER_BYTES + header.table_bytes as usize;
        let echo_end = table_end + header.echo_bytes as usize;
        let (table, echo) = (
            &data[GROUP_HEADER_BYTES..table_end],
            &data[table_end..echo_end],
        );
        if digest_of(table, echo) != header.digest {
            return None;
        }
        let (records, echoes) = (header.records, header.echo_records);
        let mut body = data.slice(echo_end..);
        let mut input = Reader::new(table);
        for _ in 0..records {
            let record = Record::decode(&mut input).ok()?;
            match record {
                Record::Verdict(verdict) => self.verdict = Some(verdict.boot),
                Record::Entries(run) => {
                    let chains = read_frames(&run, &mut body)?;
                    let (group, prev, term) = (run.group, run.prev, run.last.term);
                    self.notes.push(Note::Run {
                        group,
                        prev,
                        term,
                        chains,
                    });
                }
                Record::Rewrite(run) => {
                    let chains = read_frames(&run, &mut body)?;
                    let (group, prev) = (run.group, run.prev);
                    self.notes.push(Note::Again {
                        group,
                        prev,
                        chains,
                    });
                }
                other => self.notes.extend(Note::of(other)),
            }
        }
        let mut input = Reader::new(echo);
        for _ in 0..echoes {
            let record = Record::decode(&mut input).ok()?;
            if let Record::HardState { .. } = record {
                self.notes.extend(Note::of(record));
            }
        }
        Some(())
    }
}

fn read_frames(run: &EntryRun, body: &mut Bytes) -> Option<Box<[Chain]>> {
    let mut chains = Vec::new();
    for _ in 0..run.count() {
        let header = EntryHeader::parse(body).ok()?;
        if body.len() < header.frame_bytes() {
            return None;
        }
        let entry = Entry::from_frame(body.split_to(header.frame_bytes())).ok()?;
        chains.push(entry.header().chain);
    }
    Some(chains.into_boxed_slice())
}

#[cfg(test)]
mod tests;
