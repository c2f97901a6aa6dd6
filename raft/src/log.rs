//! The log as the core holds it: what it remembers of every entry above the base, and the newest frames.
//!
//! Everything about bytes (windows, how much is unflushed, how much uncommitted) is a difference of two
//! offsets, never a counter: nothing has to be given back when the log is cut or a leader changes.

use std::collections::VecDeque;

use crate::entry::Entry;
use crate::ids::{Chain, Index, LogPosition, Term};
use crate::io::{EntryMeta, PersistId};

/// A group's log from its base to its tip.
#[derive(Debug)]
pub(crate) struct Log {
    base: LogPosition,
    /// Bytes of all frames up to the base that this value has seen: offsets go on from there when the log is cut.
    base_bytes: u64,
    /// One an entry, for `base.index + 1` and on.
    slots: VecDeque<Slot>,
    /// The frames of the newest entries, without gaps up to the last.
    frames: VecDeque<Entry>,
    frames_bytes: usize,
    frames_bytes_max: usize,
    /// Derived: the highest index on the path whose frame is durable. Falls when the log is cut.
    durable: Index,
    /// Writes on their way, and how far each makes what is *now* the path durable.
    pending: VecDeque<(PersistId, Index)>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    chain: Chain,
    term: Term,
    /// Bytes of all frames up to and including this one, from where this value began.
    end_bytes: u64,
}

impl Log {
    /// A log as it was restored: everything in it is durable, no frame is in memory.
    #[must_use]
    pub(crate) fn new(base: LogPosition, entries: &[EntryMeta], frames_bytes_max: usize) -> Self {
        let mut end_bytes = 0;
        let slots: VecDeque<Slot> = entries
            .iter()
            .map(|meta| {
                end_bytes += u64::from(meta.frame_bytes);
                Slot {
                    chain: meta.chain,
                    term: meta.term,
                    end_bytes,
                }
            })
            .collect();
        assert!(slots.iter().is_sorted_by_key(|slot| slot.term));
        assert!(slots.front().is_none_or(|slot| base.term <= slot.term));
        let durable = Index(base.index.0 + slots.len() as u64);
        Self {
            base,
            base_bytes: 0,
            slots,
            frames: VecDeque::new(),
            frames_bytes: 0,
            frames_bytes_max,
            durable,
            pending: VecDeque::new(),
        }
    }

    /// Adds the entry after the last, as accepted: nothing says yet that it is durable.
    pub(crate) fn append(&mut self, entry: Entry) {
        let last = self.last();
        assert!(entry.index() == last.index.next());
        assert!(last.term <= entry.term());
        let frame_bytes = entry.frame().len();
        self.slots.push_back(Slot {
            chain: entry.header().chain,
            term: entry.term(),
            end_bytes: self.end_bytes(last.index) + frame_bytes as u64,
        });
        self.frames_bytes += frame_bytes;
        self.frames.push_back(entry);
        self.evict();
    }

    /// Goes on with entries that are durable; nothing else is on its way to the disk, and none of their frames is in memory.
    pub(crate) fn restore(&mut self, entries: &[EntryMeta]) {
        assert!(self.durable == self.last().index);
        self.frames.clear();
        self.frames_bytes = 0;
        for meta in entries {
            let last = self.last();
            assert!(last.term <= meta.term);
            self.slots.push_back(Slot {
                chain: meta.chain,
                term: meta.term,
                end_bytes: self.end_bytes(last.index) + u64::from(meta.frame_bytes),
            });
        }
        self.durable = self.last().index;
    }

    /// Cuts everything beyond `last`. What is on its way to the disk makes no more than that durable.
    pub(crate) fn truncate(&mut self, last: Index) {
        assert!(self.base.index <= last);
        assert!(last < self.last().index);
        // The frames in memory are the newest ones, so both ends go together until none is left.
        for _ in last.0..self.last().index.0 {
            self.slots.pop_back();
            if let Some(entry) = self.frames.pop_back() {
                self.frames_bytes -= entry.frame().len();
            }
        }
        self.durable = self.durable.min(last);
        for (_, through) in &mut self.pending {
            *through = (*through).min(last);
        }
    }

    /// What lies up to `base`, which is on this log, is no longer part of it.
    pub(crate) fn cut(&mut self, base: LogPosition) {
        assert!(self.holds(&base));
        self.base_bytes = self.end_bytes(base.index);
        let below = usize::try_from(base.index.0 - self.base.index.0);
        let below = below.expect("bounded by the slots");
        while self.first_cached() <= base.index
            && let Some(entry) = self.frames.pop_front()
        {
            self.frames_bytes -= entry.frame().len();
        }
        self.slots.drain(..below);
        self.base = base;
        // The snapshot stands for what has not reached the disk as entries.
        self.durable = self.durable.max(base.index);
    }

    /// The log begins and ends at `base`: nothing of what it held can be a part of what goes on from there.
    pub(crate) fn replace(&mut self, base: LogPosition) {
        self.base_bytes = self.end_bytes(self.last().index);
        self.slots.clear();
        self.frames.clear();
        self.frames_bytes = 0;
        self.base = base;
        self.durable = base.index;
        // What is on its way to the disk was of the log that is gone.
        for (_, through) in &mut self.pending {
            *through = base.index;
        }
    }

    /// When each term began that has entries above the base and up to `through`.
    pub(crate) fn term_starts(&self, through: Index) -> Vec<(Term, Index)> {
        let mut starts = Vec::new();
        let mut at = self.base;
        while at.index < through.min(self.last().index) {
            let first = at.index.next();
            let term = self.position(first).expect("between base and last").term;
            if at.term < term {
                starts.push((term, first));
            }
            at = self.last_of_term_at_most(term, through);
        }
        starts
    }

    /// The write `id` holds every entry that is not in an earlier one.
    pub(crate) fn writing(&mut self, id: PersistId) {
        let last = self.last().index;
        match self.pending.back_mut() {
            Some((newest, through)) if *newest == id => *through = last,
            newest => {
                assert!(newest.is_none_or(|(newest, _)| *newest < id));
                self.pending.push_back((id, last));
            }
        }
    }

    /// Every write up to `id` is durable.
    pub(crate) fn on_durable(&mut self, id: PersistId) {
        while let Some((pending, through)) = self.pending.front().copied()
            && pending <= id
        {
            self.pending.pop_front();
            self.durable = self.durable.max(through);
        }
        self.evict();
    }

    /// Where the log begins.
    #[must_use]
    pub(crate) fn base(&self) -> LogPosition {
        self.base
    }

    /// Where it ends, entries on their way to the disk included.
    #[must_use]
    pub(crate) fn last(&self) -> LogPosition {
        match self.slots.back() {
            Some(slot) => LogPosition {
                index: Index(self.base.index.0 + self.slots.len() as u64),
                term: slot.term,
                chain: slot.chain,
            },
            None => self.base,
        }
    }

    /// How far it is durable.
    #[must_use]
    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// What lies at `index`; `None` below the base and beyond the end, of which nothing is known.
    #[must_use]
    pub(crate) fn position(&self, index: Index) -> Option<LogPosition> {
        if index == self.base.index {
            return Some(self.base);
        }
        let slot = self.slot(index)?;
        Some(LogPosition {
            index,
            term: slot.term,
            chain: slot.chain,
        })
    }

    /// Whether exactly `position` lies in this log.
    #[must_use]
    pub(crate) fn holds(&self, position: &LogPosition) -> bool {
        self.position(position.index) == Some(*position)
    }

    /// Whether this log has `chain` at `index`.
    #[must_use]
    pub(crate) fn has_chain(&self, index: Index, chain: Chain) -> bool {
        self.position(index)
            .is_some_and(|position| position.chain == chain)
    }

    /// What is remembered of the entry at `index`.
    #[must_use]
    pub(crate) fn meta(&self, index: Index) -> Option<EntryMeta> {
        let slot = self.slot(index)?;
        let frame_bytes = self.bytes_between(Index(index.0 - 1), index);
        Some(EntryMeta {
            term: slot.term,
            chain: slot.chain,
            frame_bytes: u32::try_from(frame_bytes).expect("FRAME_BYTES_MAX fits"),
        })
    }

    /// The entry at `index`, if its frame is in memory.
    #[must_use]
    pub(crate) fn entry(&self, index: Index) -> Option<&Entry> {
        let place = index.0.checked_sub(self.first_cached().0)?;
        self.frames.get(usize::try_from(place).ok()?)
    }

    /// The first entry whose frame is in memory; one beyond the last if there is none.
    #[must_use]
    pub(crate) fn first_cached(&self) -> Index {
        Index(self.last().index.0 + 1 - self.frames.len() as u64)
    }

    /// Bytes of the frames in memory.
    #[must_use]
    pub(crate) fn cache_bytes(&self) -> usize {
        self.frames_bytes
    }

    /// Bytes of what is remembered of every entry.
    #[must_use]
    pub(crate) fn rows_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.frames.capacity() * size_of::<Entry>()
    }

    /// Bytes of the frames after `from` up to and including `through`; 0 if there are none between.
    #[must_use]
    pub(crate) fn bytes_between(&self, from: Index, through: Index) -> u64 {
        let from = self.end_bytes(from.max(self.base.index));
        let through = self.end_bytes(through.max(self.base.index));
        through.saturating_sub(from)
    }

    /// The last place, not before the base, with at least so many bytes of frames after it.
    #[must_use]
    pub(crate) fn index_before_bytes(&self, bytes: u64) -> Index {
        let all = self.end_bytes(self.last().index);
        let Some(end) = all.checked_sub(bytes) else {
            return self.base.index;
        };
        let before = self.slots.partition_point(|slot| slot.end_bytes <= end);
        Index(self.base.index.0 + before as u64)
    }

    /// Bytes of all frames that were appended to this value, those that were cut at its beginning included.
    #[must_use]
    pub(crate) fn appended_bytes(&self) -> u64 {
        self.end_bytes(self.last().index)
    }

    /// The last place up to `through` whose term is at most `term`, or the base: terms never fall along a
    /// log, so nothing between that place and `through` can agree with a log that has `term` there.
    #[must_use]
    pub(crate) fn last_of_term_at_most(&self, term: Term, through: Index) -> LogPosition {
        let through = through.clamp(self.base.index, self.last().index);
        let within = self.slots.partition_point(|slot| slot.term <= term);
        let index = Index(self.base.index.0 + within as u64).min(through);
        self.position(index).expect("between base and last")
    }

    /// Asserts what must always hold.
    pub(crate) fn check_invariants(&self) {
        let last = self.last();
        assert!(self.base.index <= self.durable);
        assert!(self.durable <= last.index);
        assert!(self.base.term <= last.term);
        assert!(self.frames.len() <= self.slots.len());
        assert!(
            self.frames
                .back()
                .is_none_or(|entry| entry.position() == last)
        );
        // What is not durable exists in memory alone.
        assert!(self.first_cached() <= self.durable.next());
        assert!(
            self.pending
                .back()
                .is_none_or(|(_, through)| *through <= last.index)
        );
    }

    fn slot(&self, index: Index) -> Option<&Slot> {
        let above = index.0.checked_sub(self.base.index.0)?;
        let place = usize::try_from(above.checked_sub(1)?).ok()?;
        self.slots.get(place)
    }

    fn end_bytes(&self, index: Index) -> u64 {
        if index <= self.base.index {
            return self.base_bytes;
        }
        let slot = self.slot(index).or(self.slots.back());
        slot.map_or(self.base_bytes, |slot| slot.end_bytes)
    }

    /// Oldest first, and nothing that is not durable: that would have no other copy.
    fn evict(&mut self) {
        while self.frames_bytes_max < self.frames_bytes
            && self
                .frames
                .front()
                .is_some_and(|entry| entry.index() <= self.durable)
        {
            if let Some(entry) = self.frames.pop_front() {
                self.frames_bytes -= entry.frame().len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryBuilder, EntryKind, UnsealedEntry};
    use crate::ids::GroupId;

    fn extend(log: &mut Log, terms: &[u64]) {
        for term in terms {
            let last = log.last();
            log.append(UnsealedEntry::bare(EntryKind::Noop, &[]).seal(
                GroupId(1),
                Term(*term),
                last.index.next(),
                last.chain,
            ));
        }
    }

    fn empty(cache: usize) -> Log {
        Log::new(LogPosition::default(), &[], cache)
    }

    #[test]
    fn the_durable_index_falls_when_the_log_is_cut_and_late_writes_do_not_lift_it() {
        let mut log = empty(1 << 20);
        extend(&mut log, &[1, 1, 1, 1]);
        log.writing(PersistId(1));
        log.on_durable(PersistId(1));
        extend(&mut log, &[2, 2]);
        log.writing(PersistId(2));
        assert_eq!(log.durable(), Index(4));

        log.truncate(Index(3));
        assert_eq!(log.durable(), Index(3));
        extend(&mut log, &[3, 3, 3]);
        log.writing(PersistId(3));

        // The write that held the old 5 and 6 is durable now. They are not in this log any more.
        log.on_durable(PersistId(2));
        assert_eq!(log.durable(), Index(3));
        log.on_durable(PersistId(3));
        assert_eq!(log.durable(), Index(6));
        log.check_invariants();
    }

    #[test]
    fn what_is_not_durable_is_never_evicted() {
        let mut log = empty(100);
        extend(&mut log, &[1, 1, 1]);
        log.writing(PersistId(1));
        assert_eq!((log.first_cached(), log.cache_bytes()), (Index(1), 240));
        log.on_durable(PersistId(1));
        assert_eq!((log.first_cached(), log.cache_bytes()), (Index(3), 80));
        assert!(log.entry(Index(2)).is_none());
        assert_eq!(
            log.entry(Index(3)).map(Entry::position),
            log.position(Index(3))
        );
        log.check_invariants();
    }

    #[test]
    fn a_cut_below_the_cache_empties_it() {
        let mut log = empty(100);
        extend(&mut log, &[1, 1, 1]);
        log.writing(PersistId(1));
        log.on_durable(PersistId(1));
        log.truncate(Index(1));
        assert_eq!((log.first_cached(), log.cache_bytes()), (Index(2), 0));
        extend(&mut log, &[2]);
        assert_eq!(log.last().index, Index(2));
        log.check_invariants();
    }

    #[test]
    fn terms_are_found_from_the_end() {
        let mut log = empty(1 << 20);
        extend(&mut log, &[1, 1, 4, 4, 6]);
        let found = |term, through| log.last_of_term_at_most(Term(term), Index(through)).index;
        assert_eq!(found(5, 5), Index(4));
        assert_eq!(found(5, 3), Index(3));
        assert_eq!(found(3, 9), Index(2));
        assert_eq!(found(0, 9), Index(0));
        assert_eq!(found(9, 9), Index(5));
    }

    #[test]
    fn a_log_that_is_cut_goes_on_with_what_is_left() {
        let mut log = empty(1 << 20);
        extend(&mut log, &[1, 1, 2, 4, 4]);
        log.writing(PersistId(1));
        let (at, last) = (log.position(Index(3)).unwrap(), log.last());
        log.cut(at);
        assert_eq!((log.base(), log.last()), (at, last));
        assert_eq!((log.durable(), log.first_cached()), (Index(3), Index(4)));
        assert_eq!(log.cache_bytes(), 160);
        assert_eq!(log.bytes_between(Index(3), Index(5)), 160);
        assert_eq!(log.bytes_between(Index(0), Index(4)), 80);
        assert_eq!(log.position(Index(2)), None);
        assert_eq!(log.term_starts(Index(9)), [(Term(4), Index(4))]);
        log.check_invariants();
        log.cut(last);
        assert_eq!((log.last(), log.durable()), (last, Index(5)));
        extend(&mut log, &[4]);
        log.on_durable(PersistId(1));
        assert_eq!(log.durable(), Index(5));
        assert_eq!(log.bytes_between(Index(5), Index(6)), 80);
        log.check_invariants();
    }

    #[test]
    fn late_writes_do_not_lift_a_log_that_was_replaced() {
        let mut log = empty(1 << 20);
        extend(&mut log, &[1, 1, 1]);
        log.writing(PersistId(1));
        let base = LogPosition {
            index: Index(2),
            term: Term(3),
            chain: Chain(7),
        };
        log.replace(base);
        assert_eq!((log.base(), log.last()), (base, base));
        extend(&mut log, &[3, 3]);
        log.on_durable(PersistId(1));
        assert_eq!(log.durable(), Index(2));
        assert_eq!(log.first_cached(), Index(3));
        log.check_invariants();
    }

    #[test]
    fn the_beginnings_of_terms_are_found() {
        let mut log = empty(1 << 20);
        extend(&mut log, &[1, 1, 4, 6, 6, 6]);
        let all = [
            (Term(1), Index(1)),
            (Term(4), Index(3)),
            (Term(6), Index(4)),
        ];
        assert_eq!(log.term_starts(Index(6)), all);
        assert_eq!(log.term_starts(Index(3)), all[..2]);
        assert_eq!(log.term_starts(Index(0)), []);
    }

    #[test]
    fn bytes_are_differences_of_offsets() {
        let mut log = empty(1 << 20);
        extend(&mut log, &[1]);
        let mut builder = EntryBuilder::with_room(1, 8);
        builder.push(b"12345678");
        let last = log.last();
        log.append(
            builder
                .finish()
                .seal(GroupId(1), Term(1), Index(2), last.chain),
        );
        assert_eq!(log.bytes_between(Index(0), Index(1)), 80);
        assert_eq!(log.bytes_between(Index(1), Index(2)), 92);
        assert_eq!(log.bytes_between(Index(2), Index(1)), 0);
        assert_eq!(log.meta(Index(2)).map(|meta| meta.frame_bytes), Some(92));
        let before = |bytes| log.index_before_bytes(bytes).0;
        assert_eq!([0, 1, 92, 93, 172, 173].map(before), [2, 1, 1, 0, 0, 0]);
        assert_eq!(log.appended_bytes(), 172);
    }
}
