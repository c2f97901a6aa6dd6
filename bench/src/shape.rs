//! How many proposals of how many bytes make up an entry.

use std::fmt;

use logdrive_raft::{Entry, EntryBuilder, LogPosition, Term, UnsealedEntry};

use crate::GROUP;

/// How many proposals of how many bytes. Displayed as `64x1KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many proposals.
    pub count: usize,
    /// Bytes of each.
    pub size_bytes: usize,
}

impl Shape {
    /// From many small ones to a few that fill half an entry.
    pub const ALL: [Shape; 4] = [
        Shape::new(1024, 16),
        Shape::new(64, 128),
        Shape::new(64, 1024),
        Shape::new(8, 65_536),
    ];

    /// So many proposals of so many bytes.
    #[must_use]
    pub const fn new(count: usize, size_bytes: usize) -> Self {
        Self { count, size_bytes }
    }

    /// Bytes of all payloads.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        (self.count * self.size_bytes) as u64
    }

    /// The payloads.
    #[must_use]
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        (0..self.count)
            .map(|slot| vec![(slot % 251) as u8; self.size_bytes])
            .collect()
    }

    /// An entry with these payloads, as the door of a group makes it.
    ///
    /// # Panics
    ///
    /// If an entry does not hold so much.
    #[must_use]
    pub fn build(&self, payloads: &[Vec<u8>]) -> UnsealedEntry {
        let mut builder = EntryBuilder::with_room(payloads.len(), self.count * self.size_bytes);
        for payload in payloads {
            builder.push(payload);
        }
        builder.finish()
    }

    /// The entry after `previous`, in its term.
    #[must_use]
    pub fn entry_after(&self, payloads: &[Vec<u8>], previous: &LogPosition) -> Entry {
        let term = previous.term.max(Term(1));
        self.build(payloads)
            .seal(GROUP, term, previous.index.next(), previous.chain)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, size_bytes } = self;
        match size_bytes % 1024 {
            0 => write!(f, "{count}x{}KiB", size_bytes / 1024),
            _ => write!(f, "{count}x{size_bytes}B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_names_that_benches_are_known_by() {
        let names = Shape::ALL.map(|shape| shape.to_string());
        assert_eq!(names, ["1024x16B", "64x128B", "64x1KiB", "8x64KiB"]);
    }
}
