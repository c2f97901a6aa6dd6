//! The door of a group. What waits here *is* the next entry, under construction.
//!
//! A client's batch costs one lock, one copy of its payloads to where they will stay, one run. Batches form
//! themselves: what came in while the last turn ran is the next entry. There is no timer.

use std::collections::VecDeque;

use logdrive_raft::limits::{
    ENTRY_HEADER_BYTES, ENTRY_PAYLOAD_BYTES_MAX, ENTRY_PROPOSALS_MAX, TABLE_LENGTH_BYTES,
};
use logdrive_raft::{EntryBuilder, NodeId, UnsealedEntry};

use crate::permits::{Permit, Permits};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, Waker, lock};
use crate::ticket::{Failure, ReplySink, Run, Runs};

/// The door of one group, shared by everybody who proposes and the shard.
pub struct Inbox<O> {
    shared: Arc<Shared<O>>,
}

impl<O> Clone for Inbox<O> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<O> std::fmt::Debug for Inbox<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inbox({} bytes held)", self.shared.permits.held())
    }
}

struct Shared<O> {
    permits: Permits,
    /// The largest frame that the log takes.
    frame_bytes_max: usize,
    state: Mutex<State<O>>,
    /// Whether an entry is waiting: lets a turn pass by without the lock.
    waiting: AtomicBool,
    waker: Waker,
}

struct State<O> {
    door: Door,
    /// Entries in order; only the last one still takes proposals.
    entries: VecDeque<Building<O>>,
    /// How large entries were lately, so that the next one finds its room at once.
    room_proposals: usize,
    room_bytes: usize,
}

/// Whether proposals are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// This node leads the group.
    Open,
    /// It does not.
    NotLeader(Option<NodeId>),
    /// The log has no room for proposals.
    StorageFull,
    /// The group has halted here.
    Halted,
    /// The node is shutting down.
    ShuttingDown,
}

struct Building<O> {
    builder: EntryBuilder,
    runs: Runs<O>,
}

/// An entry whose contents are complete, and who waits for it.
#[derive(Debug)]
pub struct Sealed<O> {
    /// The contents.
    pub entry: UnsealedEntry,
    /// Who waits.
    pub runs: Runs<O>,
}

/// Why a batch was not taken. None of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// As many bytes wait for answers as may.
    #[error("{held_bytes} bytes of proposals wait for answers, at most {bytes_max} may")]
    Busy {
        /// Bytes that wait now.
        held_bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// A proposal is larger than an entry may be.
    #[error("a proposal of {size_bytes} bytes is larger than {bytes_max}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The largest one that is taken.
        bytes_max: usize,
    },
    /// The door is not open.
    #[error(transparent)]
    Closed(Failure),
}

impl Door {
    /// Who halts or shuts down does so for good: neither a role nor room in the log opens it again.
    fn stays_shut_against(self, next: Self) -> bool {
        match self {
            Self::Halted => true,
            Self::ShuttingDown => next != Self::Halted,
            Self::Open | Self::NotLeader(_) | Self::StorageFull => false,
        }
    }

    fn check(self) -> Result<(), Refused> {
        match self {
            Self::Open => Ok(()),
            Self::NotLeader(leader) => Err(Refused::Closed(Failure::NotLeader { leader })),
            Self::StorageFull => Err(Refused::Closed(Failure::StorageFull)),
            Self::Halted => Err(Refused::Closed(Failure::Halted)),
            Self::ShuttingDown => Err(Refused::Closed(Failure::ShuttingDown)),
        }
    }
}

impl<O> Inbox<O> {
    /// A door that is shut until somebody leads, with a budget of bytes, for entries whose frames are at
    /// most so large. `waker` wakes the shard.
    #[must_use]
    pub fn new(bytes_max: usize, frame_bytes_max: usize, waker: Waker) -> Self {
        let state = State {
            door: Door::NotLeader(None),
            entries: VecDeque::new(),
            room_proposals: 64,
            room_bytes: 4096,
        };
        let shared = Shared {
            permits: Permits::new(bytes_max),
            frame_bytes_max,
            state: Mutex::new(state),
            waiting: AtomicBool::new(false),
            waker,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The budget.
    #[must_use]
    pub fn permits(&self) -> &Permits {
        &self.shared.permits
    }

    /// Hands in a batch: all of it or nothing. Answers go to `sink` under `token`, for all proposals but
    /// not necessarily at once: a batch may end up in several entries.
    pub fn submit<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
        sink: &Arc<dyn ReplySink<O>>,
        token: u64,
    ) -> Result<(), Refused> {
        let mut bytes = 0;
        for payload in payloads {
            self.check_size(payload.as_ref().len())?;
            bytes += payload.as_ref().len();
        }
        let Some(permit) = self
            .shared
            .permits
            .try_take(Permits::cost(payloads.len(), bytes))
        else {
            let (held_bytes, bytes_max) =
                (self.shared.permits.held(), self.shared.permits.bytes_max());
            return Err(Refused::Busy {
                held_bytes,
                bytes_max,
            });
        };
        self.submit_with(permit, payloads, sink, token)
    }

    /// Hands in a batch for which bytes have been taken before.
    pub fn submit_with<P: AsRef<[u8]>>(
        &self,
        mut permit: Permit,
        payloads: &[P],
        sink: &Arc<dyn ReplySink<O>>,
        token: u64,
    ) -> Result<(), Refused> {
        for payload in payloads {
            self.check_size(payload.as_ref().len())?;
        }
        let was_waiting = {
            let mut state = lock(&self.shared.state);
            state.door.check()?;
            let mut first = 0;
            while first < payloads.len() {
                let frame_bytes_max = self.shared.frame_bytes_max;
                first = state.fill(payloads, first, frame_bytes_max, &mut permit, sink, token);
            }
            self.shared
                .waiting
                .swap(!state.entries.is_empty(), Ordering::AcqRel)
        };
        if !was_waiting {
            self.shared.waker.wake_by_ref();
        }
        Ok(())
    }

    /// The largest proposal that passes the door.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        let one = ENTRY_HEADER_BYTES + TABLE_LENGTH_BYTES;
        ENTRY_PAYLOAD_BYTES_MAX.min(self.shared.frame_bytes_max.saturating_sub(one))
    }

    fn check_size(&self, size_bytes: usize) -> Result<(), Refused> {
        let bytes_max = self.payload_bytes_max();
        if size_bytes > bytes_max {
            return Err(Refused::TooLarge {
                size_bytes,
                bytes_max,
            });
        }
        Ok(())
    }

    /// Opens or shuts the door. What waits behind a door that shuts was never appended, and is told so.
    pub fn set_door(&self, door: Door) {
        let refused: Vec<Building<O>> = {
            let mut state = lock(&self.shared.state);
            if state.door.stays_shut_against(door) {
                return;
            }
            state.door = door;
            if door == Door::Open {
                return;
            }
            self.shared.waiting.store(false, Ordering::Release);
            state.entries.drain(..).collect()
        };
        let Err(Refused::Closed(failure)) = door.check() else {
            return;
        };
        for run in refused.into_iter().flat_map(|building| building.runs) {
            run.fail(failure.clone());
        }
    }

    /// Whether an entry waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.shared.waiting.load(Ordering::Acquire)
    }

    /// Takes the entry that waits longest, if `accept` takes a frame of so many bytes. Nothing can be added
    /// to the entry between the question and the taking.
    #[must_use]
    pub fn take_if(&self, accept: impl FnOnce(usize) -> bool) -> Option<Sealed<O>> {
        let building = {
            let mut state = lock(&self.shared.state);
            if !accept(state.entries.front()?.builder.frame_bytes()) {
                return None;
            }
            let building = state.entries.pop_front()?;
            state.room_proposals = (building.builder.count() * 5 / 4).max(64);
            state.room_bytes = (building.builder.payload_bytes() * 5 / 4).max(4096);
            self.shared
                .waiting
                .store(!state.entries.is_empty(), Ordering::Release);
            building
        };
        Some(Sealed {
            entry: building.builder.finish(),
            runs: building.runs,
        })
    }

    /// Takes the entry that waits longest.
    #[must_use]
    pub fn take(&self) -> Option<Sealed<O>> {
        self.take_if(|_| true)
    }
}

impl<O> State<O> {
    /// Puts proposals from `first` on into the last entry as far as it takes them. Returns how far.
    fn fill<P: AsRef<[u8]>>(
        &mut self,
        payloads: &[P],
        first: usize,
        frame_bytes_max: usize,
        permit: &mut Permit,
        sink: &Arc<dyn ReplySink<O>>,
        token: u64,
    ) -> usize {
        let next_bytes = payloads[first].as_ref().len();
        let fits = self
            .entries
            .back()
            .is_some_and(|last| last.fits(next_bytes, frame_bytes_max));
        if !fits {
            let proposals = self.room_proposals.min(ENTRY_PROPOSALS_MAX);
            let bytes = self.room_bytes.max(next_bytes).min(ENTRY_PAYLOAD_BYTES_MAX);
            let builder = EntryBuilder::with_room(proposals, bytes);
            self.entries.push_back(Building {
                builder,
                runs: Vec::new(),
            });
        }
        let last = self
            .entries
            .back_mut()
            .expect("pushed above if there was none");
        let mut end = first;
        let mut slot = None;
        let mut bytes = 0;
        while end < payloads.len() && last.fits(payloads[end].as_ref().len(), frame_bytes_max) {
            let payload = payloads[end].as_ref();
            let at = last.builder.push(payload);
            slot.get_or_insert(at);
            bytes += payload.len();
            end += 1;
        }
        let count = end - first;
        // A permit that was reserved for more is kept whole until the last part is answered.
        let cost = Permits::cost(count, bytes).min(permit.bytes());
        let part = permit.split(if end == payloads.len() {
            permit.bytes()
        } else {
            cost
        });
        let number = |value: usize| u32::try_from(value).expect("bounded by the permit");
        last.runs.push(Run::new(
            Arc::clone(sink),
            token,
            number(first),
            slot.expect("at least the first one fits"),
            number(count),
            part,
        ));
        end
    }
}

impl<O> Building<O> {
    fn fits(&self, payload_bytes: usize, frame_bytes_max: usize) -> bool {
        let grown = self.builder.frame_bytes() + TABLE_LENGTH_BYTES + payload_bytes;
        self.builder.fits(payload_bytes) && (grown <= frame_bytes_max || self.builder.is_empty())
    }
}

#[cfg(all(test, models))]
mod models;

#[cfg(test)]
mod tests {
    use std::vec::Drain;

    use logdrive_raft::limits::FRAME_BYTES_MAX;
    use logdrive_raft::{Chain, GroupId, Index, LogPosition, Term};

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl ReplySink<u32> for Heard {
        fn applied(
            &self,
            token: u64,
            first: u32,
            at: LogPosition,
            slot: u32,
            outputs: Drain<'_, u32>,
        ) {
            let outputs: Vec<u32> = outputs.collect();
            let line = format!("{token}: {first}.. at {}/{slot} {outputs:?}", at.index);
            self.0.lock().unwrap().push(line);
        }

        fn failed(&self, token: u64, first: u32, count: u32, failure: Failure) {
            self.0
                .lock()
                .unwrap()
                .push(format!("{token}: {first}+{count} {failure}"));
        }
    }

    fn open_inbox(bytes_max: usize) -> (Inbox<u32>, Arc<Heard>) {
        let inbox = Inbox::new(bytes_max, FRAME_BYTES_MAX, Waker::noop().clone());
        inbox.set_door(Door::Open);
        (inbox, Arc::default())
    }

    fn heard(heard: &Arc<Heard>) -> Vec<String> {
        std::mem::take(&mut heard.0.lock().unwrap())
    }

    #[test]
    fn batches_of_two_clients_share_an_entry_and_each_hears_of_its_own() {
        let (inbox, log) = open_inbox(1 << 20);
        let sink: Arc<dyn ReplySink<u32>> = log.clone();
        inbox.submit(&["a", "b"], &sink, 7).unwrap();
        inbox.submit(&["c"], &sink, 8).unwrap();
        let sealed = inbox.take().unwrap();
        assert!(inbox.take().is_none());
        let entry = sealed.entry.seal(GroupId(1), Term(1), Index(5), Chain(0));
        assert_eq!(entry.header().count, 3);
        let mut outputs = vec![10, 11, 12];
        for run in sealed.runs {
            run.answer(entry.position(), &mut outputs).unwrap();
        }
        assert_eq!(
            heard(&log),
            ["7: 0.. at 5/0 [10, 11]", "8: 0.. at 5/2 [12]"]
        );
        assert_eq!(inbox.permits().held(), 0);
    }

    #[test]
    fn a_batch_larger_than_an_entry_continues_in_the_next() {
        let (inbox, log) = open_inbox(8 << 20);
        let sink: Arc<dyn ReplySink<u32>> = log.clone();
        let payload = vec![0_u8; ENTRY_PAYLOAD_BYTES_MAX / 2];
        inbox
            .submit(&[&payload, &payload, &payload], &sink, 1)
            .unwrap();
        let (one, two) = (inbox.take().unwrap(), inbox.take().unwrap());
        assert_eq!((one.entry.count(), two.entry.count()), (2, 1));
        drop(one);
        drop(two);
        let expected = ["1: 0+2 the engine stopped without an answer"; 1];
        assert_eq!(heard(&log)[..1], expected);
        assert_eq!(inbox.permits().held(), 0);
    }

    #[test]
    fn a_full_door_says_busy_and_a_shut_one_says_why() {
        let (inbox, log) = open_inbox(100);
        let sink: Arc<dyn ReplySink<u32>> = log.clone();
        inbox.submit(&["0123456789"], &sink, 1).unwrap();
        let refused = inbox.submit(&["0123456789"], &sink, 2).unwrap_err();
        assert_eq!(
            refused,
            Refused::Busy {
                held_bytes: 58,
                bytes_max: 100
            }
        );
        inbox.set_door(Door::NotLeader(Some(NodeId(3))));
        assert_eq!(
            heard(&log),
            ["1: 0+1 this node does not lead the group; node 3 does"]
        );
        let refused = inbox.submit(&["x"], &sink, 3).unwrap_err();
        assert_eq!(
            refused,
            Refused::Closed(Failure::NotLeader {
                leader: Some(NodeId(3))
            })
        );
        assert!(inbox.take().is_none());
        assert_eq!(inbox.permits().held(), 0);
    }

    #[test]
    fn a_door_that_was_shut_for_good_is_not_opened_by_a_change_of_role() {
        for (shut, failure) in [
            (Door::ShuttingDown, Failure::ShuttingDown),
            (Door::Halted, Failure::Halted),
        ] {
            let (inbox, log) = open_inbox(1 << 20);
            let sink: Arc<dyn ReplySink<u32>> = log.clone();
            inbox.set_door(shut);
            for later in [
                Door::Open,
                Door::NotLeader(None),
                Door::StorageFull,
                Door::Open,
            ] {
                inbox.set_door(later);
                let refused = inbox.submit(&["x"], &sink, 1).unwrap_err();
                assert_eq!(refused, Refused::Closed(failure.clone()));
            }
        }
    }

    #[test]
    fn a_proposal_beyond_the_largest_entry_is_refused_with_both_sizes() {
        let (inbox, log) = open_inbox(8 << 20);
        let sink: Arc<dyn ReplySink<u32>> = log;
        let payload = vec![0_u8; ENTRY_PAYLOAD_BYTES_MAX + 1];
        let refused = inbox.submit(&[payload], &sink, 1).unwrap_err();
        assert!(matches!(
            refused,
            Refused::TooLarge {
                size_bytes: 1_048_577,
                ..
            }
        ));
    }
}
