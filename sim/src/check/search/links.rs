//! Calls and answers not yet put in order, as a list from which any can be lifted.
//!
//! What was lifted last is put back first, and then finds its place without a search (Knuth's dancing links).

use super::key::Entry;

/// The list. Entry `n` of the key has number `n + 1`, and 0 is both ends.
pub(super) struct Links {
    entries: Vec<Entry>,
    next: Vec<u32>,
    previous: Vec<u32>,
    /// By operation: its call, and its answer or 0.
    places: Vec<(u32, u32)>,
}

impl Links {
    pub(super) fn new(entries: Vec<Entry>, operations: usize) -> Self {
        let count = entries.len() as u32 + 1;
        let mut places = vec![(0, 0); operations];
        for (entry, number) in entries.iter().zip(1..) {
            match entry {
                Entry::Call(operation) => places[*operation as usize].0 = number,
                Entry::Return(operation) => places[*operation as usize].1 = number,
            }
        }
        Self {
            next: (0..count).map(|number| (number + 1) % count).collect(),
            previous: (0..count)
                .map(|number| (number + count - 1) % count)
                .collect(),
            places,
            entries,
        }
    }

    pub(super) fn first(&self) -> u32 {
        self.next[0]
    }

    pub(super) fn after(&self, number: u32) -> u32 {
        self.next[number as usize]
    }

    pub(super) fn before(&self, number: u32) -> u32 {
        self.previous[number as usize]
    }

    /// `None` at the end.
    pub(super) fn entry(&self, number: u32) -> Option<Entry> {
        let number = (number as usize).checked_sub(1)?;
        self.entries.get(number).copied()
    }

    pub(super) fn lift(&mut self, operation: u32) {
        let (call, answer) = self.places[operation as usize];
        for number in [call, answer] {
            if number != 0 {
                let (before, after) = (self.before(number), self.after(number));
                self.next[before as usize] = after;
                self.previous[after as usize] = before;
            }
        }
    }

    pub(super) fn put_back(&mut self, operation: u32) {
        let (call, answer) = self.places[operation as usize];
        for number in [answer, call] {
            if number != 0 {
                let (before, after) = (self.before(number), self.after(number));
                self.next[before as usize] = number;
                self.previous[after as usize] = number;
            }
        }
    }
}
