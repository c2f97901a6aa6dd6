//! The pool of slot files: which are in use, which are free, and the one that is being made.
//!
//! It grows ahead of need, so that activating a slot costs no change of the file system's metadata. A slot
//! is made in small steps at low priority: the file, its zeros, one flush. One whose segment was released becomes free
//! in the same manner.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::ErrorKind;

use logdrive_raft::{Boot, Micros};

use crate::debris::Debris;
use crate::disk::{BLOCK_BYTES, Buffer, Op, OpId, SlotFile, SlotId, ZERO_BLOCKS_MAX};
use crate::format::BLOCKS_MAX;

mod recycle;

use recycle::{Next, Recycling};

/// How many free slots are kept at least, as far as the pool may grow.
pub(crate) const FREE_MIN: usize = 2;

/// So many free slots are enough: released ones are cleared when there are fewer. A cut may release a hundred at once, and
/// clearing one takes two flushes, for which every write of the device waits.
const FREE_ENOUGH: usize = FREE_MIN + 2;

/// How long after a failure the pool tries to grow again.
const RETRY_US: u64 = 1_000_000;

/// The slots there are.
#[derive(Debug)]
pub(crate) struct Pool {
    slot_blocks: u32,
    slots_max: usize,
    /// The length of every slot that is complete.
    lengths: BTreeMap<SlotId, u32>,
    free: BTreeSet<SlotId>,
    growth: Option<Growth>,
    /// Names of files that turned out to exist. No slot below the highest is made, as long as there are higher ones.
    exists: BTreeSet<SlotId>,
    /// Slots that were found incomplete and wait to be completed.
    incomplete: Vec<(SlotId, u32)>,
    /// Slots that an opening still needs if it fails, until it has not.
    pub(crate) held_back: Vec<SlotFile>,
    /// What has to be cleared in slots that are in use, once they are released.
    debris: BTreeMap<SlotId, Debris>,
    /// Slots whose segments were released and that are not free yet, the oldest first.
    released: VecDeque<Recycling>,
    /// The step of the first of them that is under way.
    recycling: Option<OpId>,
    /// No slot is free, and with one more than there may be others can be released.
    one_more: bool,
    /// Until the verdict of the opening is durable nothing is cleared that can wait.
    opening: bool,
    retry_at: Option<Micros>,
    pub(crate) failure: Option<String>,
}

#[derive(Debug)]
struct Growth {
    slot: SlotId,
    step: Step,
    op: Option<OpId>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Zero { from: u32 },
    Flush,
}

impl Pool {
    pub(crate) fn new(slot_blocks: u32, slots_max: usize) -> Self {
        Self {
            slot_blocks,
            slots_max,
            lengths: BTreeMap::new(),
            free: BTreeSet::new(),
            growth: None,
            exists: BTreeSet::new(),
            incomplete: Vec::new(),
            held_back: Vec::new(),
            debris: BTreeMap::new(),
            released: VecDeque::new(),
            recycling: None,
            one_more: false,
            opening: true,
            retry_at: None,
            failure: None,
        }
    }

    /// Takes note of a slot that exists, in use or free.
    pub(crate) fn add(&mut self, slot: SlotId, blocks: u32, free: bool) {
        if free && blocks < self.slot_blocks {
            self.incomplete.push((slot, blocks));
            return;
        }
        self.lengths.insert(slot, blocks);
        if free {
            self.free.insert(slot);
        }
    }

    /// Takes note of what has to be cleared in a slot in use before it is taken again.
    pub(crate) fn remember(&mut self, slot: SlotId, debris: Debris) {
        self.debris.insert(slot, debris);
    }

    /// Takes back a slot whose segment is not needed any more. It is free once it has been cleared, which is done when a
    /// free one is wanted.
    pub(crate) fn release(&mut self, slot: SlotId) {
        let debris = self.debris.remove(&slot).unwrap_or_default();
        self.released.push_back(Recycling::new(slot, &debris));
    }

    /// Takes note of a slot that is not in use, and of which it is not known what has to be cleared. It is free once it has
    /// been read and cleared, which is done when a free one is wanted.
    pub(crate) fn leave(&mut self, file: &SlotFile, log_uuid: u128, boot: Boot, has_header: bool) {
        self.lengths.insert(file.slot, file.blocks);
        let unread = Recycling::unread(file, log_uuid, boot, has_header);
        self.released.push_back(unread);
    }

    /// Whether another slot may be left: as many are free as an opening needs.
    pub(crate) fn may_leave(&self, file: &SlotFile) -> bool {
        FREE_MIN < self.free.len() && self.slot_blocks <= file.blocks
    }

    /// The verdict of the opening is durable.
    pub(crate) fn on_opened(&mut self) {
        self.opening = false;
    }

    /// How many slots will be free once they have been cleared.
    pub(crate) fn recycled(&self) -> usize {
        if self.failure.is_some() {
            return 0;
        }
        self.released.len()
    }

    /// Whether the pool does not get as many free slots as it wants unless more are released.
    pub(crate) fn is_scarce(&self) -> bool {
        self.free.len() < FREE_MIN && self.is_spent()
    }

    /// Whether no slot becomes free unless more are released.
    pub(crate) fn is_spent(&self) -> bool {
        self.growable() == 0 && self.released.is_empty() && self.growth.is_none()
    }

    /// Makes one slot more than there may be, as no other is free.
    pub(crate) fn one_more(&mut self) {
        self.one_more = true;
    }

    /// A number that no slot has: one more than the highest, or the lowest where that is the last there may be.
    /// Beyond that one the next opening would not see the file.
    pub(crate) fn next_slot(&self) -> SlotId {
        let known = self
            .lengths
            .keys()
            .chain(self.incomplete.iter().map(|(slot, _)| slot));
        let known = known.chain(self.growth.iter().map(|growth| &growth.slot));
        let known = known.chain(self.held_back.iter().map(|file| &file.slot));
        let known: BTreeSet<SlotId> = known.copied().collect();
        let beyond = known.last().map_or(0, |slot| slot.0 + 1);
        let taken = self.exists.last().map_or(0, |slot| slot.0 + 1);
        let next = beyond.max(taken);
        if next <= BLOCKS_MAX {
            return SlotId(next);
        }
        let mut lower = (0..BLOCKS_MAX).map(SlotId);
        let unknown = |slot: &SlotId| !known.contains(slot) && !self.exists.contains(slot);
        lower.find(unknown).unwrap_or(SlotId(BLOCKS_MAX))
    }

    pub(crate) fn length(&self, slot: SlotId) -> u32 {
        self.lengths[&slot]
    }

    pub(crate) fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Whether the slot is free, or will be once it is complete.
    pub(crate) fn is_unused(&self, slot: SlotId) -> bool {
        let growing = self.growth.iter().map(|growth| growth.slot);
        let mut incomplete = self.incomplete.iter().map(|(slot, _)| *slot).chain(growing);
        self.free.contains(&slot) || incomplete.any(|unused| unused == slot)
    }

    pub(crate) fn any_free(&self) -> Option<SlotId> {
        self.free.first().copied()
    }

    pub(crate) fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// How many slots the pool may still grow by, those under way included.
    pub(crate) fn growable(&self) -> usize {
        if self.failure.is_some() {
            return 0;
        }
        self.slots_max.saturating_sub(self.lengths.len())
    }

    /// Why no slot is free and none is being made.
    pub(crate) fn why_none(&self) -> String {
        let failure = self.failure.clone();
        failure.unwrap_or_else(|| format!("all {} slots are in use", self.lengths.len()))
    }

    /// Takes a free slot into use.
    pub(crate) fn take(&mut self) -> Option<SlotId> {
        self.free.pop_first()
    }

    /// Takes this free slot into use.
    pub(crate) fn take_this(&mut self, slot: SlotId) {
        self.free.remove(&slot);
    }

    /// When it wants to try again to grow.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        self.retry_at
    }

    /// The next step of clearing a slot or of growing, if one is due: to be submitted under this id.
    pub(crate) fn grow(&mut self, op: OpId, now: Micros) -> Option<Op> {
        if self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.retry_at = None;
        if self.is_busy() {
            return None;
        }
        let next = self.released.front();
        let enough = if self.opening { 1 } else { FREE_ENOUGH };
        let next = next.filter(|_| self.free.len() < enough);
        if let Some(recycling) = next
            && let Some(next) = recycling.next()
        {
            self.recycling = Some(op);
            return Some(op_of(recycling.slot, next));
        }
        if self.growth.is_none() {
            self.growth = self.begin();
        }
        if self.growth.is_none() {
            // Nothing is wanted, so nothing will be tried that could take the last failure back: until the
            // next try nobody knows better than that there is space. Otherwise a log that has as many free
            // slots as it wants, after a failure, would call itself full for ever.
            self.failure = None;
        }
        let slot_blocks = self.slot_blocks;
        let growth = self.growth.as_mut().filter(|growth| growth.op.is_none())?;
        growth.op = Some(op);
        let slot = growth.slot;
        Some(match growth.step {
            Step::Create => Op::Create {
                slot,
                blocks: slot_blocks,
            },
            Step::Zero { from } => Op::Zero {
                slot,
                block: from,
                blocks: (slot_blocks - from).min(ZERO_BLOCKS_MAX),
            },
            Step::Flush => Op::Flush { slot },
        })
    }

    fn begin(&mut self) -> Option<Growth> {
        let wanted = self.free.len() < FREE_MIN && self.lengths.len() < self.slots_max;
        let one_more = std::mem::take(&mut self.one_more) && self.free.is_empty();
        if !wanted && !one_more {
            return None;
        }
        let (slot, step) = match self.incomplete.pop() {
            Some((slot, from)) => (slot, Step::Zero { from }),
            None => (self.next_slot(), Step::Create),
        };
        Some(Growth {
            slot,
            step,
            op: None,
        })
    }

    fn growing(&self) -> Option<OpId> {
        self.growth.as_ref().and_then(|growth| growth.op)
    }

    /// Whether a step is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.growing().or(self.recycling).is_some()
    }

    /// Whether this operation is a step of the pool's.
    pub(crate) fn is_step(&self, op: OpId) -> bool {
        self.growing().or(self.recycling) == Some(op)
    }

    /// A slot that is to be cleared was read, or could not be.
    pub(crate) fn on_read(&mut self, result: &Result<u64, std::io::Error>, buffer: &Buffer) {
        self.recycling = None;
        let Some(mut recycling) = self.released.pop_front() else {
            return;
        };
        let bytes = buffer.blocks().len() as u64 * BLOCK_BYTES as u64;
        let is_read = matches!(result, Ok(read) if *read == bytes);
        recycling.on_read(is_read.then(|| buffer.blocks()));
        self.go_on(recycling);
    }

    /// A step has ended. A failure is no danger to what the log holds: nothing in the new slot
    /// was ever promised. It is tried again later, a slot whose flush failed from its beginning.
    pub(crate) fn on_step(&mut self, result: Result<u64, std::io::Error>, now: Micros) {
        if self.recycling.take().is_some() {
            self.on_recycled(result, now);
            return;
        }
        let Some(mut growth) = self.growth.take() else {
            return;
        };
        growth.op = None;
        let slot_blocks = self.slot_blocks;
        let result = match (growth.step, result) {
            // Who asks for the same again and again, and waits, waits for ever.
            (Step::Zero { .. }, Ok(bytes)) if bytes < BLOCK_BYTES as u64 => {
                Err(ErrorKind::WriteZero.into())
            }
            (_, result) => result,
        };
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => {
                self.failure = Some(format!("{}: {error}", growth.slot.file_name()));
                self.retry_at = Some(now.after(RETRY_US));
                match growth.step {
                    // The number is drawn again, and may be another one by then.
                    Step::Create if error.kind() == ErrorKind::AlreadyExists => {
                        self.exists.insert(growth.slot);
                    }
                    Step::Create => {}
                    Step::Zero { from } => self.incomplete.push((growth.slot, from)),
                    Step::Flush => self.incomplete.push((growth.slot, 0)),
                }
                return;
            }
        };
        self.failure = None;
        growth.step = match growth.step {
            Step::Create => Step::Zero { from: 0 },
            Step::Zero { from } => {
                // A short write is not an error here: the rest is written next.
                let blocks = u32::try_from(bytes / BLOCK_BYTES as u64);
                let from = from + blocks.unwrap_or(0).min(slot_blocks - from);
                if from < slot_blocks {
                    Step::Zero { from }
                } else {
                    Step::Flush
                }
            }
            Step::Flush => {
                self.lengths.insert(growth.slot, slot_blocks);
                self.free.insert(growth.slot);
                return;
            }
        };
        self.growth = Some(growth);
    }

    /// A step of clearing a released slot has ended. A failure is no danger either.
    fn on_recycled(&mut self, result: Result<u64, std::io::Error>, now: Micros) {
        let Some(mut recycling) = self.released.pop_front() else {
            return;
        };
        let nothing = |bytes: &u64| *bytes < BLOCK_BYTES as u64;
        let zeroed = matches!(recycling.next(), Some(Next::Zero(_)));
        let result = match result {
            Ok(bytes) if zeroed && nothing(&bytes) => Err(ErrorKind::WriteZero.into()),
            result => result,
        };
        match result {
            Ok(bytes) => {
                self.failure = None;
                recycling.on_step(bytes);
            }
            Err(error) => {
                self.failure = Some(format!("{}: {error}", recycling.slot.file_name()));
                self.retry_at = Some(now.after(RETRY_US));
                recycling.again();
            }
        }
        self.go_on(recycling);
    }

    fn go_on(&mut self, recycling: Recycling) {
        if recycling.next().is_some() {
            self.released.push_front(recycling);
            return;
        }
        let slot = recycling.slot;
        if let Some(blocks) = self.lengths.remove(&slot) {
            self.add(slot, blocks, true);
        }
    }
}

fn op_of(slot: SlotId, next: Next) -> Op {
    match next {
        Next::Read(part) => Op::Read {
            slot,
            block: part.start,
            buffer: Buffer::with_blocks(part.len()),
        },
        Next::Zero(part) => Op::Zero {
            slot,
            block: part.start,
            blocks: part.end - part.start,
        },
        Next::Flush => Op::Flush { slot },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_zeroes_nothing_is_not_asked_again_at_once() {
        let mut pool = Pool::new(16, 4);
        let now = Micros(1);
        assert!(matches!(pool.grow(OpId(1), now), Some(Op::Create { .. })));
        pool.on_step(Ok(0), now);
        assert!(matches!(pool.grow(OpId(2), now), Some(Op::Zero { .. })));
        pool.on_step(Ok(0), now);
        assert!(pool.failure.is_some() && !pool.is_busy());
        assert!(pool.grow(OpId(3), now).is_none());
        let later = pool.next_deadline().unwrap();
        assert!(matches!(
            pool.grow(OpId(4), later),
            Some(Op::Zero { block: 0, .. })
        ));
    }

    fn next_step(pool: &mut Pool, now: u64) -> Op {
        pool.grow(OpId(1), Micros(now)).expect("a step is due")
    }

    #[test]
    fn a_name_that_is_taken_is_not_tried_for_ever() {
        let mut pool = Pool::new(16, 8);
        pool.add(SlotId(0), 16, false);
        for (now, number) in [(0, 1), (2_000_000, 2), (4_000_000, 3)] {
            let Op::Create { slot, .. } = next_step(&mut pool, now) else {
                panic!("a slot is made first");
            };
            assert_eq!(slot, SlotId(number));
            pool.on_step(Err(ErrorKind::AlreadyExists.into()), Micros(now));
            assert!(pool.grow(OpId(2), Micros(now + 1)).is_none());
            assert_eq!(pool.growable(), 0);
        }
        // For want of space the same name will do.
        for now in [6_000_000, 8_000_000] {
            let Op::Create { slot, .. } = next_step(&mut pool, now) else {
                panic!("a slot is made first");
            };
            assert_eq!(slot, SlotId(4));
            pool.on_step(Err(ErrorKind::StorageFull.into()), Micros(now));
        }
    }

    #[test]
    fn a_failure_does_not_outlive_the_wish_to_grow() {
        let mut pool = Pool::new(16, 8);
        pool.add(SlotId(0), 16, false);
        pool.add(SlotId(1), 16, true);
        assert!(matches!(next_step(&mut pool, 0), Op::Create { .. }));
        pool.on_step(Err(ErrorKind::StorageFull.into()), Micros(0));
        assert_eq!(pool.growable(), 0);
        // As after an opening that gives back the slot it did not need.
        pool.add(SlotId(2), 16, true);
        let retry = pool.next_deadline().unwrap();
        assert!(pool.grow(OpId(1), retry).is_none());
        assert_eq!((pool.growable(), pool.failure.as_deref()), (5, None));
        assert_eq!(pool.next_deadline(), None);
    }

    #[test]
    fn zeros_that_find_no_space_go_on_where_they_ended() {
        let mut pool = Pool::new(100, 8);
        assert!(matches!(next_step(&mut pool, 0), Op::Create { .. }));
        pool.on_step(Ok(0), Micros(0));
        assert!(matches!(
            next_step(&mut pool, 0),
            Op::Zero {
                block: 0,
                blocks: 64,
                ..
            }
        ));
        pool.on_step(Ok(64 * BLOCK_BYTES as u64), Micros(0));
        assert!(matches!(
            next_step(&mut pool, 0),
            Op::Zero {
                block: 64,
                blocks: 36,
                ..
            }
        ));
        pool.on_step(Err(ErrorKind::StorageFull.into()), Micros(0));
        assert_eq!((pool.growable(), pool.free_slots()), (0, 0));
        let now = 2_000_000;
        assert!(matches!(
            next_step(&mut pool, now),
            Op::Zero {
                block: 64,
                blocks: 36,
                ..
            }
        ));
        pool.on_step(Ok(36 * BLOCK_BYTES as u64), Micros(now));
        assert!(matches!(next_step(&mut pool, now), Op::Flush { .. }));
        pool.on_step(Ok(0), Micros(now));
        assert_eq!((pool.growable(), pool.free_slots()), (7, 1));
    }

    #[test]
    fn a_slot_that_was_left_is_read_and_cleared_before_it_is_free() {
        let mut pool = Pool::new(100, 3);
        let slot = SlotId(2);
        pool.add(SlotId(0), 100, false);
        let file = SlotFile { slot, blocks: 100 };
        pool.leave(&file, 7, Boot(3), true);
        assert_eq!(
            (pool.free_slots(), pool.recycled(), pool.slots()),
            (0, 1, 2)
        );
        assert!(!pool.is_spent() && !pool.is_unused(slot));
        assert_eq!(pool.next_slot(), SlotId(3));
        // Block 70 is nothing of ours and does not end in zeros; what cannot be read goes, too.
        for (from, blocks, read) in [(2, 64, false), (66, 34, true)] {
            let Op::Read {
                block, mut buffer, ..
            } = next_step(&mut pool, 0)
            else {
                panic!("it is read first");
            };
            assert_eq!((block, buffer.blocks().len()), (from, blocks));
            buffer.blocks_mut()[4].0.fill(1);
            let bytes = blocks as u64 * BLOCK_BYTES as u64;
            let result = if read { bytes } else { bytes - 1 };
            pool.on_read(&Ok(result), &buffer);
        }
        let mut done = Vec::new();
        while pool.free_slots() == 0 {
            match next_step(&mut pool, 0) {
                Op::Zero { block, blocks, .. } => {
                    done.push((block, blocks));
                    pool.on_step(Ok(u64::from(blocks) * BLOCK_BYTES as u64), Micros(0));
                }
                Op::Flush { .. } => {
                    done.push((0, 0));
                    pool.on_step(Ok(0), Micros(0));
                }
                other => panic!("{other:?}"),
            }
        }
        let cleared = [(2, 64), (70, 1), (0, 0), (0, 1), (0, 0), (1, 1), (0, 0)];
        assert_eq!(done, cleared);
        assert_eq!((pool.recycled(), pool.slots()), (0, 2));
    }
}
