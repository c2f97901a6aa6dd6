//! The search itself: one operation after the other, back where it leads nowhere, and nowhere twice.
//!
//! The next operation is one that is called before the first answer still to be explained. A few rules
//! keep the choices few; that they lose no order follows from what `key` rests on.
//!
//! * An answer that changes nothing and fits is explained at once: it can wait for nothing better.
//! * What has answers that are still to be explained must not be replaced, nor grow into something else
//!   than they saw: it does not come back. For the same reason nothing begins that would have to last longer
//!   than what is due allows.
//! * A value that nobody will look at any more may be replaced at once by one that nobody ever looked at, and
//!   it does not matter which one it is.
//! * Of operations that do the same, the one that is due first goes first.

use super::key::{Candidate, Entry, Key};
use super::links::Links;
use crate::check::history::{Answer, Call};
use crate::check::model;
use crate::check::table::{Fingerprint, Table, mix};
use crate::check::value::Value;

pub(super) struct Walk<'a> {
    key: Key<'a>,
    value_bytes_max: u32,
    links: Links,
    at: At,
    /// A fingerprint of the set of operations that have been put in order.
    done: Fingerprint,
    unexplained: usize,
    /// What was put in order, and the state before it.
    trail: Vec<(u32, At)>,
    frames: Vec<Frame>,
    choices: Vec<Choice>,
    /// Sets with the states they led to, which were all tried from.
    tried: Table,
    steps: u64,
}

pub(super) enum End {
    Order,
    NoOrder,
    OutOfSteps,
}

/// What the key holds.
#[derive(Clone, Copy)]
struct At {
    held: Option<Value>,
    /// Which operation the value began with; `None`: it has no piece.
    root: Option<u32>,
    /// The last operation need not have happened, brought nothing along, and nothing has come of it. To
    /// replace what it left would be to do without it.
    is_unused: bool,
}

/// A point with more than one way on.
struct Frame {
    trail_len: usize,
    /// The choices from here to the next frame's are of this one.
    next_choice: usize,
    first_choice: usize,
}

#[derive(Clone, Copy)]
struct Choice {
    operation: u32,
    then: At,
}

impl<'a> Walk<'a> {
    pub(super) fn new(mut key: Key<'a>, value_bytes_max: u32) -> Self {
        let is_answered = |candidate: &&Candidate<'_>| candidate.answer.is_some();
        let entries = std::mem::take(&mut key.entries);
        Self {
            links: Links::new(entries, key.operations.len()),
            unexplained: key.operations.iter().filter(is_answered).count(),
            key,
            value_bytes_max,
            at: At {
                held: None,
                root: None,
                is_unused: false,
            },
            done: [0, 0],
            trail: Vec::new(),
            frames: Vec::new(),
            choices: Vec::new(),
            tried: Table::default(),
            steps: 0,
        }
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn run(&mut self, steps_max: u64) -> End {
        self.settle();
        self.open_frame();
        loop {
            if self.unexplained == 0 {
                return End::Order;
            }
            let Some(frame) = self.frames.last_mut() else {
                return End::NoOrder;
            };
            let Some(choice) = self.choices.get(frame.next_choice).copied() else {
                self.choices.truncate(frame.first_choice);
                self.frames.pop();
                self.back_to_frame();
                continue;
            };
            frame.next_choice += 1;
            if steps_max <= self.steps {
                return End::OutOfSteps;
            }
            self.take(choice.operation, choice.then);
            self.settle();
            if self.unexplained == 0 || self.is_new() {
                self.open_frame();
            } else {
                self.back_to_frame();
            }
        }
    }

    /// Whether it is the first time that these operations lead to this state.
    fn is_new(&mut self) -> bool {
        let held = match (self.at.held, self.at.root) {
            (None, _) => ABSENT,
            // What nobody will look at is the same as any other of its kind.
            (Some(_), Some(root)) if self.is_forgotten(root) => FORGOTTEN,
            (Some(value), _) => value.fingerprint,
        };
        let held = mix(held, u64::from(self.at.is_unused));
        self.tried.insert(xor(self.done, held), 0)
    }

    /// Takes all that can be taken without a choice.
    fn settle(&mut self) {
        let mut entry = self.links.first();
        while let Some(Entry::Call(operation)) = self.links.entry(entry) {
            let before = self.links.before(entry);
            if self.is_explained(operation) {
                let then = At {
                    is_unused: false,
                    ..self.at
                };
                self.take(operation, then);
                entry = self.links.after(before);
            } else if let Some(then) = self.unseen_write(operation) {
                self.take(operation, then);
                entry = self.links.first();
            } else {
                entry = self.links.after(entry);
            }
        }
    }

    /// Whether it changes nothing and its answer is the right one now.
    fn is_explained(&self, operation: u32) -> bool {
        let candidate = self.candidate(operation);
        let Some(answer) = candidate.answer else {
            return false;
        };
        answer != Answer::Done && self.apply(candidate).1 == answer
    }

    /// The state after a write that nobody saw, to a value that nobody will see any more.
    fn unseen_write(&self, operation: u32) -> Option<At> {
        let candidate = self.candidate(operation);
        let is_write = matches!(candidate.operation.call, Call::Put | Call::Append);
        let is_free = self.is_forgotten(self.at.root?)
            && is_write
            && !candidate.is_seen
            && candidate.operation.bytes > 0
            && candidate.answer == Some(Answer::Done);
        if is_free { self.then(operation) } else { None }
    }

    /// Whether nothing depends any more on a value that began with this operation.
    fn is_forgotten(&self, root: u32) -> bool {
        let growth = &self.key.growths[root as usize];
        growth.unexplained == 0 && !growth.is_expected && !self.key.sizes_matter
    }

    /// Gathers the choices there are here. Who must be done first goes first, who need not have happened
    /// at all last.
    fn open_frame(&mut self) {
        let first_choice = self.choices.len();
        let mut entry = self.links.first();
        let mut due = None;
        while let Some(next) = self.links.entry(entry) {
            let operation = match next {
                Entry::Call(operation) => operation,
                Entry::Return(operation) => {
                    due = Some(operation);
                    break;
                }
            };
            entry = self.links.after(entry);
            if let Some(then) = self.then(operation) {
                self.choices.push(Choice { operation, then });
            }
        }
        let wants_no_pieces = due.is_some_and(|due| self.wants_no_pieces(due));
        let operations = &self.key.operations;
        self.choices[first_choice..].sort_unstable_by_key(|choice| {
            let candidate = &operations[choice.operation as usize];
            let is_wanted = wants_no_pieces && is_bare_write(candidate);
            (!is_wanted, candidate.deadline, choice.operation)
        });
        self.leave_out_repeats(first_choice);
        self.frames.push(Frame {
            trail_len: self.trail.len(),
            next_choice: first_choice,
            first_choice,
        });
    }

    /// Whether the next answer to be explained, or what it shows, is of a key without a piece.
    fn wants_no_pieces(&self, due: u32) -> bool {
        let candidate = self.candidate(due);
        let root = candidate.sees.map(|(root, _)| root).or(candidate.grows);
        let first = root.map_or(candidate, |root| self.candidate(root));
        let is_bare = |value: Option<Value>| value.is_none_or(|value| value.pieces == 0);
        match (first.operation.call, first.answer) {
            (Call::Append, _) => true,
            (Call::Cas { expected }, Some(Answer::Done) | None) => is_bare(expected),
            (_, Some(Answer::Absent)) => true,
            (_, Some(Answer::Value(value))) => is_bare(Some(value)),
            (_, Some(Answer::Mismatch(found))) => is_bare(found),
            _ => false,
        }
    }

    /// Of operations that do the same, the one that is due first can stand for the others: where one of the
    /// others comes first in an order, the two can change places.
    fn leave_out_repeats(&mut self, first_choice: usize) {
        let mut repeats = [false; 3];
        let mut kept = first_choice;
        for at in first_choice..self.choices.len() {
            let choice = self.choices[at];
            let kind = interchangeable(self.candidate(choice.operation));
            if kind.is_some_and(|kind| std::mem::replace(&mut repeats[kind], true)) {
                continue;
            }
            self.choices[kept] = choice;
            kept += 1;
        }
        self.choices.truncate(kept);
    }

    /// The state after a write, if it can be the next.
    fn then(&self, operation: u32) -> Option<At> {
        let candidate = self.candidate(operation);
        let (held, answer) = self.apply(candidate);
        let fits = match candidate.answer {
            Some(said) => said == Answer::Done && answer == Answer::Done,
            // What may as well not have happened is only of use where it changes something.
            None => held != self.at.held,
        };
        if !fits {
            return None;
        }
        let root = match (held, candidate.operation.call) {
            (None, _) => None,
            (Some(value), _) if value.pieces == 0 => None,
            (Some(_), Call::Append) => self.at.root.or(Some(operation)),
            (Some(_), _) => Some(operation),
        };
        let is_unused = candidate.answer.is_none() && is_bare_write(candidate);
        if self.at.is_unused && matches!(candidate.operation.call, Call::Put | Call::Delete) {
            return None;
        }
        let then = At {
            held,
            root,
            is_unused,
        };
        let may_begin = root == self.at.root || root.is_none_or(|root| self.may_begin(root));
        (may_begin && self.may_leave(candidate, then)).then_some(then)
    }

    /// Whether all who must happen while the key holds what this operation began can do so. Before the last
    /// of those who saw it is called, nothing may be due that saw another value or replaces it.
    fn may_begin(&self, root: u32) -> bool {
        let growth = &self.key.growths[root as usize];
        let mut entry = self.links.first();
        while let Some(next) = self.links.entry(entry) {
            entry = self.links.after(entry);
            let (Entry::Call(operation) | Entry::Return(operation)) = next;
            let candidate = self.candidate(operation);
            let (at, is_due) = match next {
                Entry::Call(_) => (candidate.called, false),
                Entry::Return(_) => (candidate.returned, operation != root),
            };
            if growth.last_call <= at {
                return true;
            }
            if is_due && !happens_within(candidate, root) {
                return false;
            }
        }
        true
    }

    /// Whether all who saw what the key holds have been explained, or can still be.
    fn may_leave(&self, candidate: &Candidate<'_>, then: At) -> bool {
        let (Some(root), Some(held)) = (self.at.root, self.at.held) else {
            return true;
        };
        if then.held == self.at.held {
            return true;
        }
        let growth = &self.key.growths[root as usize];
        // A swap has seen what it replaces.
        let own = u32::from(candidate.sees.is_some_and(|(seen, _)| seen == root));
        let here = growth.lengths.get(held.pieces as usize - 1);
        if here.is_some_and(|here| here.unexplained > own) {
            return false;
        }
        if growth.unexplained == own {
            return true;
        }
        then.root == Some(root)
            && then.held.is_some_and(|value| {
                let length = growth.lengths.get(value.pieces as usize - 1);
                length.is_some_and(|length| length.fingerprint == value.fingerprint)
            })
    }

    fn apply(&self, candidate: &Candidate<'_>) -> (Option<Value>, Answer) {
        model::apply(self.at.held, candidate.operation, self.value_bytes_max)
    }

    fn candidate(&self, operation: u32) -> &Candidate<'a> {
        &self.key.operations[operation as usize]
    }

    fn take(&mut self, operation: u32, then: At) {
        self.steps += 1;
        self.trail.push((operation, self.at));
        self.at = then;
        self.links.lift(operation);
        let candidate = &self.key.operations[operation as usize];
        self.done = xor(self.done, candidate.fingerprint);
        self.unexplained -= usize::from(candidate.answer.is_some());
        if let Some((root, length)) = candidate.sees {
            let growth = &mut self.key.growths[root as usize];
            growth.unexplained -= 1;
            growth.lengths[length as usize].unexplained -= 1;
        }
    }

    /// Takes back all that was taken since the last frame.
    fn back_to_frame(&mut self) {
        let trail_len = self.frames.last().map_or(0, |frame| frame.trail_len);
        while self.trail.len() > trail_len {
            let Some((operation, before)) = self.trail.pop() else {
                return;
            };
            self.at = before;
            self.links.put_back(operation);
            let candidate = &self.key.operations[operation as usize];
            self.done = xor(self.done, candidate.fingerprint);
            self.unexplained += usize::from(candidate.answer.is_some());
            if let Some((root, length)) = candidate.sees {
                let growth = &mut self.key.growths[root as usize];
                growth.unexplained += 1;
                growth.lengths[length as usize].unexplained += 1;
            }
        }
    }
}

/// Whether an answered operation can happen while the key holds what `root` began, and leave it there.
fn happens_within(candidate: &Candidate<'_>, root: u32) -> bool {
    match (candidate.operation.call, candidate.answer) {
        (_, Some(Answer::TooLarge)) => true,
        (Call::Append, Some(Answer::Done)) => {
            candidate.operation.bytes == 0 || candidate.grows == Some(root)
        }
        (_, Some(Answer::Done)) => false,
        _ => candidate.sees.is_some_and(|(seen, _)| seen == root),
    }
}

/// Whether it replaces what the key holds and brings nothing along.
fn is_bare_write(candidate: &Candidate<'_>) -> bool {
    let replaces = matches!(candidate.operation.call, Call::Put | Call::Delete);
    replaces && candidate.operation.bytes == 0
}

/// Which operations do the same, whatever the key holds.
fn interchangeable(candidate: &Candidate<'_>) -> Option<usize> {
    if candidate.operation.bytes > 0 {
        return None;
    }
    match candidate.operation.call {
        Call::Delete => Some(0),
        Call::Put => Some(1),
        Call::Append => Some(2),
        Call::Get | Call::Cas { .. } => None,
    }
}

fn xor(one: Fingerprint, other: Fingerprint) -> Fingerprint {
    [one[0] ^ other[0], one[1] ^ other[1]]
}

/// Stands for a value that nobody will look at.
const FORGOTTEN: Fingerprint = [0x666f_7267_6f74_7465, 0x2545_f491_4f6c_dd1d];

/// Stands for a key without a value.
const ABSENT: Fingerprint = [0x6162_7365_6e74_2121, 0x9d39_247e_3377_6d41];
