//! One key made ready for its search: what cannot matter is left out, what must be seen is counted.
//!
//! Everything here rests on one fact: an operation happens once and brings bytes that no other brings. So the
//! first piece of a value says when it began, and it only grows until something replaces it, for good.
//!
//! * All values seen that begin with one piece are beginnings of the longest of them. If not, no order
//!   explains them.
//! * An operation that nobody answered and whose piece was never seen may be taken not to have happened: as
//!   long as it would have left a trace, nobody looked.

use std::collections::BTreeMap;

use crate::check::history::{Answer, Call, Event, History, Operation, OperationId};
use crate::check::table::{Fingerprint, mix};
use crate::check::value::Value;

/// The operations of a key, by numbers that count from 0 in the order of the calls.
pub(super) struct Key<'a> {
    pub(super) operations: Vec<Candidate<'a>>,
    /// Calls and answers in their order.
    pub(super) entries: Vec<Entry>,
    /// By operation: the values seen that begin with its piece.
    pub(super) growths: Vec<Growth>,
    /// The most operations that will be answered and are open at once.
    pub(super) open_max: usize,
    /// Whether an append could meet the limit of a value. Then the length of a value shows even where
    /// nobody sees the value.
    pub(super) sizes_matter: bool,
}

pub(super) struct Candidate<'a> {
    pub(super) operation: &'a Operation,
    /// `None`: it may have happened at any time since its call, or never.
    pub(super) answer: Option<Answer>,
    /// Which event its call is, and which its answer.
    pub(super) called: u32,
    pub(super) returned: u32,
    /// By which answer it must have happened: its own, or the first that shows its piece. It is a number of
    /// an event; what nobody is known to have seen comes after everything.
    pub(super) deadline: u32,
    /// Stands for it in the fingerprint of a set.
    pub(super) fingerprint: Fingerprint,
    /// Whose growth its answer saw, and at which length.
    pub(super) sees: Option<(u32, u32)>,
    /// Whether a value with its piece was seen, or is expected by an unanswered swap.
    pub(super) is_seen: bool,
    /// Whose growth its piece was seen in.
    pub(super) grows: Option<u32>,
}

#[derive(Clone, Copy)]
pub(super) enum Entry {
    Call(u32),
    Return(u32),
}

/// A value from its first piece to the longest that anybody saw.
#[derive(Default)]
pub(super) struct Growth {
    pub(super) lengths: Vec<Length>,
    /// Answers not yet explained that saw any of it.
    pub(super) unexplained: u32,
    /// Whether a swap that nobody answered expects some of it.
    pub(super) is_expected: bool,
    /// Which event is the last call of those who saw any of it.
    pub(super) last_call: u32,
}

#[derive(Clone, Copy)]
pub(super) struct Length {
    pub(super) fingerprint: Fingerprint,
    /// Answers not yet explained that saw exactly this.
    pub(super) unexplained: u32,
}

/// No order can explain these answers, and no search is needed to see it.
pub(super) struct Impossible;

impl<'a> Key<'a> {
    pub(super) fn new(history: &'a History, events: &[Event]) -> Result<Self, Impossible> {
        let mut operations = Vec::new();
        let mut ids = Vec::new();
        for (event, called) in events.iter().zip(0..) {
            if let Event::Invoked(id) = *event {
                let fingerprint = mix([3, 5], ids.len() as u64);
                ids.push(id);
                operations.push(Candidate {
                    operation: history.operation(id),
                    answer: None,
                    called,
                    returned: u32::MAX,
                    deadline: u32::MAX,
                    fingerprint,
                    sees: None,
                    is_seen: false,
                    grows: None,
                });
            }
        }
        for (event, returned) in events.iter().zip(0..) {
            if let Event::Returned(id) = event
                && let Ok(operation) = ids.binary_search(id)
                && let Some(answer) = history.operation(*id).answer()
            {
                operations[operation].answer = Some(answer);
                operations[operation].returned = returned;
                operations[operation].deadline = returned;
            }
        }
        let mut key = Self {
            growths: operations.iter().map(|_| Growth::default()).collect(),
            sizes_matter: longest_possible(&operations) > u64::from(history.value_bytes_max()),
            operations,
            entries: Vec::new(),
            open_max: 0,
        };
        let mut roots = Roots {
            history,
            ids: &ids,
            by_node: BTreeMap::new(),
        };
        key.find_seen(events, &mut roots)?;
        let keeps = key.find_kept(&mut roots);
        key.set_entries(events, &roots, &keeps);
        Ok(key)
    }

    /// Finds out who saw what.
    fn find_seen(&mut self, events: &[Event], roots: &mut Roots<'_>) -> Result<(), Impossible> {
        let mut seen: Vec<(u32, u32, Value)> = Vec::new();
        // In the order of the answers, so that who meets a piece first is who was first told of it.
        for event in events {
            let Event::Returned(id) = event else {
                continue;
            };
            let operation = roots.number(*id);
            let candidate = &self.operations[operation];
            let Some(value) = candidate.answer.and(candidate.operation.observed()) else {
                continue;
            };
            if value.pieces == 0 {
                continue;
            }
            let answer = Some(candidate.returned);
            let called = candidate.called;
            let root = roots.root_of(value, answer, &mut self.operations);
            let root = root.ok_or(Impossible)?;
            let growth = &mut self.growths[root as usize];
            growth.last_call = growth.last_call.max(called);
            seen.push((root, operation as u32, value));
        }
        // The longest of a growth comes first and says what the others must be.
        seen.sort_unstable_by_key(|(root, operation, value)| {
            (*root, u32::MAX - value.pieces, *operation)
        });
        for (root, operation, value) in seen {
            let growth = &mut self.growths[root as usize];
            if growth.lengths.is_empty() {
                growth.lengths = lengths_to(roots.history, value);
            }
            let length = value.pieces - 1;
            let at = &mut growth.lengths[length as usize];
            if at.fingerprint != value.fingerprint {
                return Err(Impossible);
            }
            at.unexplained += 1;
            growth.unexplained += 1;
            self.operations[operation as usize].sees = Some((root, length));
        }
        Ok(())
    }

    /// Which operations may matter. What an unanswered swap expects counts as seen if the swap matters, and
    /// may make others matter that were looked at before.
    fn find_kept(&mut self, roots: &mut Roots<'_>) -> Vec<bool> {
        let mut keeps: Vec<bool> = self
            .operations
            .iter()
            .map(|candidate| candidate.answer.is_some())
            .collect();
        loop {
            let mut changed = false;
            for (operation, keep) in keeps.iter_mut().enumerate() {
                if *keep || !self.may_matter(operation) {
                    continue;
                }
                if let Call::Cas {
                    expected: Some(value),
                } = self.operations[operation].operation.call
                    && value.pieces > 0
                {
                    // Where nobody can have made what it expects, it did not happen.
                    let Some(root) = roots.root_of(value, None, &mut self.operations) else {
                        continue;
                    };
                    self.growths[root as usize].is_expected = true;
                }
                *keep = true;
                changed = true;
            }
            if !changed {
                return keeps;
            }
        }
    }

    fn may_matter(&self, operation: usize) -> bool {
        let Candidate {
            operation, is_seen, ..
        } = &self.operations[operation];
        // What brings nothing along leaves no trace of its own, and so cannot be ruled out.
        operation.call != Call::Get && (*is_seen || operation.bytes == 0 || self.sizes_matter)
    }

    fn set_entries(&mut self, events: &[Event], roots: &Roots<'_>, keeps: &[bool]) {
        let mut open = 0;
        for event in events {
            let (Event::Invoked(id) | Event::Returned(id)) = event;
            let operation = roots.number(*id);
            let is_answered = self.operations[operation].answer.is_some();
            match event {
                Event::Invoked(_) if keeps[operation] => {
                    self.entries.push(Entry::Call(operation as u32));
                    open += usize::from(is_answered);
                }
                Event::Returned(_) if is_answered => {
                    self.entries.push(Entry::Return(operation as u32));
                    open -= 1;
                }
                _ => {}
            }
            self.open_max = self.open_max.max(open);
        }
    }
}

/// Which operation a value began with.
struct Roots<'a> {
    history: &'a History,
    ids: &'a [OperationId],
    /// What the values met so far began with.
    by_node: BTreeMap<u32, u32>,
}

impl Roots<'_> {
    fn number(&self, id: OperationId) -> usize {
        let number = self.ids.binary_search(&id);
        number.expect("it is called before it ends")
    }

    /// `None` if some piece is of nobody who was there. Whose pieces are met has been seen; if an answer
    /// shows them, by that.
    fn root_of(
        &mut self,
        value: Value,
        answer: Option<u32>,
        operations: &mut [Candidate<'_>],
    ) -> Option<u32> {
        let values = self.history.values();
        let mut next = values.find(value);
        let mut path = Vec::new();
        let mut root = None;
        while let Some(node) = next {
            if let Some(known) = self.by_node.get(&node) {
                root = Some(*known);
                break;
            }
            let writer = self.history.find(values.node(node).writer?)?;
            let writer = self.ids.binary_search(&writer).ok()?;
            path.push((node, writer));
            root = Some(writer as u32);
            next = values.node(node).shorter;
        }
        let root = root?;
        for (node, writer) in path {
            let writer = &mut operations[writer];
            writer.is_seen = true;
            if let Some(answer) = answer {
                writer.grows = Some(root);
                writer.deadline = writer.deadline.min(answer);
            }
            self.by_node.insert(node, root);
        }
        Some(root)
    }
}

/// The most bytes that any order of the operations can put together.
fn longest_possible(operations: &[Candidate<'_>]) -> u64 {
    let bytes = |is_append: bool| {
        operations
            .iter()
            .map(|candidate| candidate.operation)
            .filter(move |operation| (operation.call == Call::Append) == is_append)
            .map(|operation| u64::from(operation.bytes))
    };
    bytes(false).max().unwrap_or(0) + bytes(true).sum::<u64>()
}

/// All that a value was, from its first piece on.
fn lengths_to(history: &History, value: Value) -> Vec<Length> {
    let values = history.values().grown_from(value);
    let mut lengths: Vec<Length> = values
        .map(|node| Length {
            fingerprint: node.value.fingerprint,
            unexplained: 0,
        })
        .collect();
    lengths.reverse();
    lengths
}
