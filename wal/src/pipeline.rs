//! What is on its way to the medium, in log order, and how far everything is durable.
//!
//! Operations complete in any order; the durable mark is the end of the longest prefix that has.
//!
//! Each write remembers the flush mode that it was begun in, so the mode may change at any moment: what is
//! under way becomes durable in the old one.

use std::collections::VecDeque;

use logdrive_raft::mutant::Mutant;
use logdrive_raft::mutated;

use crate::Position;
use crate::disk::{FlushAdvice, FlushMode, FlushWatchdog, OpId, SlotId};
use crate::format::Place;

/// One write on its way: a slot's header or a flush group.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) op: OpId,
    pub(crate) slot: SlotId,
    pub(crate) block: u32,
    pub(crate) bytes: u64,
    /// What it makes durable; none for a slot's header.
    pub(crate) group: Option<GroupEnd>,
    pub(crate) mode: FlushMode,
    pub(crate) began_ns: u64,
    state: State,
}

/// Where a flush group ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupEnd {
    pub(crate) place: Place,
    /// Everything appended up to here is in it or before it.
    pub(crate) position: Position,
    /// It does not fill a flush group.
    pub(crate) partial: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Writing,
    /// Complete, and not flushed.
    Written,
    /// Covered by the flush under way.
    Flushing,
    Durable,
}

/// A flush under way.
#[derive(Debug)]
pub(crate) struct FlushUnderWay {
    pub(crate) op: OpId,
    pub(crate) slot: SlotId,
    pub(crate) began_ns: u64,
}

/// Everything on its way.
#[derive(Debug)]
pub(crate) struct Pipeline {
    flights: VecDeque<Flight>,
    flush: Option<FlushUnderWay>,
    mode: FlushMode,
    /// `None`: the mode is forced.
    watchdog: Option<FlushWatchdog>,
    /// How often the mode has changed.
    mode_changes: u64,
    pub(crate) durable: Position,
    pub(crate) echoed: Position,
    /// Everything before this place is durable.
    pub(crate) durable_place: Place,
    mutant: Option<Mutant>,
}

impl Pipeline {
    pub(crate) fn new(
        mode: FlushMode,
        watchdog: Option<FlushWatchdog>,
        durable_place: Place,
        mutant: Option<Mutant>,
    ) -> Self {
        Self {
            flights: VecDeque::new(),
            flush: None,
            mode,
            watchdog,
            mode_changes: 0,
            durable: Position(0),
            echoed: Position(0),
            durable_place,
            mutant,
        }
    }

    /// The mode of the writes that are begun now, and how often it has changed.
    pub(crate) fn mode(&self) -> (FlushMode, u64) {
        (self.mode, self.mode_changes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.flush.is_none()
    }

    /// Flush groups in flight, and how many of them are not full.
    pub(crate) fn groups_in_flight(&self) -> (usize, usize) {
        let groups = self.flights.iter().filter_map(|flight| flight.group);
        groups.fold((0, 0), |(all, partial), group| {
            (all + 1, partial + usize::from(group.partial))
        })
    }

    /// Takes note of a write that is being submitted, in log order. Says whether it has to be durable when it
    /// completes.
    pub(crate) fn begin(
        &mut self,
        op: OpId,
        slot: SlotId,
        block: u32,
        bytes: u64,
        group: Option<GroupEnd>,
        began_ns: u64,
    ) -> bool {
        self.flights.push_back(Flight {
            op,
            slot,
            block,
            bytes,
            group,
            mode: self.mode,
            began_ns,
            state: State::Writing,
        });
        self.mode == FlushMode::Dsync
    }

    /// The write under way with this id.
    pub(crate) fn flight(&self, op: OpId) -> Option<&Flight> {
        self.flights.iter().find(|flight| flight.op == op)
    }

    /// The flush under way, if it is this one.
    pub(crate) fn flush(&self, op: OpId) -> Option<&FlushUnderWay> {
        self.flush.as_ref().filter(|flush| flush.op == op)
    }

    /// A write has completed in full.
    pub(crate) fn on_written(&mut self, op: OpId, now_ns: u64) {
        let flight = self.flights.iter_mut().find(|flight| flight.op == op);
        let flight = flight.expect("completions are of writes under way");
        assert!(flight.state == State::Writing);
        let mode = if mutated!(self.mutant, ModeAtCompletion) {
            self.mode
        } else {
            flight.mode
        };
        flight.state = match mode {
            FlushMode::Dsync => State::Durable,
            FlushMode::DrainedFsync => State::Written,
        };
        self.advance(now_ns);
    }

    /// The flush has completed.
    pub(crate) fn on_flushed(&mut self, now_ns: u64) {
        self.flush = None;
        for flight in &mut self.flights {
            let covered = flight.state == State::Flushing
                || flight.state == State::Written && mutated!(self.mutant, FlushCoversLater);
            if covered {
                flight.state = State::Durable;
            }
        }
        self.advance(now_ns);
    }

    /// The slot to flush now: that of the first write which waits for a flush, once none of that slot's
    /// writes that will need one is under way. A flush that is issued earlier covers half as much and costs
    /// the same.
    pub(crate) fn slot_to_flush(&self) -> Option<SlotId> {
        if self.flush.is_some() {
            return None;
        }
        let first = self.flights.front()?;
        let writing = |flight: &Flight| {
            flight.slot == first.slot
                && flight.mode == FlushMode::DrainedFsync
                && flight.state == State::Writing
        };
        let drained = first.state == State::Written && !self.flights.iter().any(writing);
        drained.then_some(first.slot)
    }

    /// A flush of this slot is being submitted. It covers what is complete now, and only in this slot.
    pub(crate) fn begin_flush(&mut self, op: OpId, slot: SlotId, began_ns: u64) {
        assert!(self.flush.is_none());
        for flight in &mut self.flights {
            let here = flight.slot == slot || mutated!(self.mutant, FlushCoversOtherSlot);
            if here && flight.state == State::Written {
                flight.state = State::Flushing;
            }
        }
        self.flush = Some(FlushUnderWay { op, slot, began_ns });
    }

    fn advance(&mut self, now_ns: u64) {
        let durable = |flight: &Flight| flight.state == State::Durable;
        if mutated!(self.mutant, CompletionOrder)
            && let Some(last) = self.flights.iter().rposition(durable)
        {
            let before = self.flights.range_mut(..last);
            before.for_each(|flight| flight.state = State::Durable);
        }
        while let Some(first) = self.flights.pop_front_if(|flight| durable(flight)) {
            if let Some(group) = first.group {
                assert!(self.durable_place < group.place);
                assert!(self.durable <= group.position);
                // This group repeats what the one before it said, and everything before is durable.
                self.echoed = self.durable;
                self.durable = group.position;
                self.durable_place = group.place;
                self.watch(&first, group, now_ns);
            }
        }
    }

    /// A flush group is durable. Full ones take long because they are large, and those of the mode before say
    /// nothing about this one.
    fn watch(&mut self, flight: &Flight, group: GroupEnd, now_ns: u64) {
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        if !group.partial || flight.mode != self.mode {
            return;
        }
        match watchdog.on_flush(now_ns.saturating_sub(flight.began_ns)) {
            FlushAdvice::Keep => {}
            FlushAdvice::Switch => {
                self.mode = self.mode.other();
                self.mode_changes += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(pipeline: &mut Pipeline, op: u64, slot: u32, position: u64) {
        let place = Place {
            segment: 1 + u64::from(slot),
            block: 10 + u32::try_from(op).unwrap(),
        };
        let group = GroupEnd {
            place,
            position: Position(position),
            partial: true,
        };
        pipeline.begin(OpId(op), SlotId(slot), 0, 4096, Some(group), 0);
    }

    #[test]
    fn the_durable_mark_is_the_end_of_the_longest_prefix() {
        let mut pipeline = Pipeline::new(FlushMode::Dsync, None, Place::default(), None);
        for op in 1..=3 {
            begin(&mut pipeline, op, 0, op * 10);
        }
        pipeline.on_written(OpId(2), 0);
        assert_eq!(pipeline.durable, Position(0));
        pipeline.on_written(OpId(1), 0);
        assert_eq!(
            (pipeline.durable, pipeline.echoed),
            (Position(20), Position(10))
        );
        pipeline.on_written(OpId(3), 0);
        assert_eq!(
            (pipeline.durable, pipeline.echoed),
            (Position(30), Position(20))
        );
        assert!(pipeline.is_empty());
    }

    #[test]
    fn a_flush_waits_until_writes_have_drained_and_covers_no_later_one() {
        let mut pipeline = Pipeline::new(FlushMode::DrainedFsync, None, Place::default(), None);
        begin(&mut pipeline, 1, 0, 10);
        begin(&mut pipeline, 2, 0, 20);
        pipeline.on_written(OpId(1), 0);
        assert_eq!(pipeline.slot_to_flush(), None);
        pipeline.on_written(OpId(2), 0);
        assert_eq!(pipeline.slot_to_flush(), Some(SlotId(0)));
        pipeline.begin_flush(OpId(9), SlotId(0), 0);
        begin(&mut pipeline, 3, 0, 30);
        pipeline.on_written(OpId(3), 0);
        assert_eq!(pipeline.slot_to_flush(), None);
        pipeline.on_flushed(0);
        assert_eq!(pipeline.durable, Position(20));
        assert_eq!(pipeline.slot_to_flush(), Some(SlotId(0)));
    }

    #[test]
    fn a_flush_counts_for_no_other_slot() {
        let mut pipeline = Pipeline::new(FlushMode::DrainedFsync, None, Place::default(), None);
        begin(&mut pipeline, 1, 0, 10);
        begin(&mut pipeline, 2, 1, 20);
        pipeline.on_written(OpId(1), 0);
        pipeline.on_written(OpId(2), 0);
        pipeline.begin_flush(OpId(9), SlotId(0), 0);
        pipeline.on_flushed(0);
        assert_eq!(pipeline.durable, Position(10));
        assert_eq!(pipeline.slot_to_flush(), Some(SlotId(1)));
    }

    #[test]
    fn writes_become_durable_in_the_mode_that_they_were_begun_in() {
        let mut pipeline = Pipeline::new(FlushMode::Dsync, None, Place::default(), None);
        begin(&mut pipeline, 1, 0, 10);
        pipeline.mode = FlushMode::DrainedFsync;
        begin(&mut pipeline, 2, 0, 20);
        begin(&mut pipeline, 3, 0, 30);
        pipeline.mode = FlushMode::Dsync;
        begin(&mut pipeline, 4, 0, 40);
        begin(&mut pipeline, 5, 0, 50);
        pipeline.on_written(OpId(2), 0);
        pipeline.on_written(OpId(4), 0);
        assert_eq!(
            (pipeline.durable, pipeline.slot_to_flush()),
            (Position(0), None)
        );
        pipeline.on_written(OpId(1), 0);
        assert_eq!(
            (pipeline.durable, pipeline.slot_to_flush()),
            (Position(10), None)
        );
        // A durable write under way is no reason to wait, and durable ones beyond count for nothing yet.
        pipeline.on_written(OpId(3), 0);
        assert_eq!(pipeline.slot_to_flush(), Some(SlotId(0)));
        pipeline.begin_flush(OpId(9), SlotId(0), 0);
        assert_eq!(pipeline.durable, Position(10));
        pipeline.on_flushed(0);
        assert_eq!(pipeline.durable, Position(40));
        pipeline.on_written(OpId(5), 0);
        assert_eq!(pipeline.durable, Position(50));
        assert!(pipeline.is_empty());
    }
}
