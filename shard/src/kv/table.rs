//! The keys and values of the machine.
//!
//! What a command costs is the cache lines it waits for. So a pair lies in the table itself, key and value in
//! one line; only a longer key or value has memory of its own. The table is many small ones, by the hash of the
//! key: no growth is of all pairs at once, and a snapshot takes so many references and nothing else.

use std::array;
use std::hint::black_box;
use std::io;

use super::hash;
use super::pairs::{Frozen, Near, Pair, Pairs, Place};
use super::parts::number_of;
use crate::sync::Arc;

/// A map from keys to values, with a digest of all of them. The caller hashes the keys: it does so once.
#[derive(Debug)]
pub(super) struct Table {
    parts: Box<[Pairs; PARTS]>,
    /// The sum of all pairs' digests.
    digest: u64,
    /// There was a snapshot, and since then not every part was seen to be merged.
    sweep: Option<Sweep>,
}

/// A walk over the parts, again and again. What was written while a snapshot had a part goes into it here.
#[derive(Debug, Default)]
struct Sweep {
    commands: usize,
    next: usize,
    all_merged: bool,
}

/// A table at one point.
#[derive(Debug)]
pub(super) struct TableSnapshot {
    parts: Vec<Arc<Frozen>>,
    pub(super) digest: u64,
}

/// So many references a snapshot takes, while the machine waits. With a million keys a part holds five hundred, which is
/// how many pairs are moved at once when it grows, or when what was written meanwhile is merged.
const PARTS: usize = 2048;

/// One part is merged after so many commands, or 64 KiB of values. A snapshot that was given up lets go of all parts at once, and merging a
/// part takes as long as a few hundred writes.
const COMMANDS_A_PART: usize = 32;

/// From one part to the next, about the golden section of all of them and odd. A snapshot lets go of one part after the
/// other, and those of half a second would all be merged within moments if the walk met them in the same order.
const SWEEP_STRIDE: usize = 1265;
const _: () = assert!(SWEEP_STRIDE % 2 == 1 && PARTS.is_power_of_two());

const LINE_BYTES: usize = 64;

/// Beyond so many lines, the processor has seen the pattern.
const LINES_REACHED_MAX: usize = 4;

impl Default for Table {
    fn default() -> Self {
        Self {
            parts: Box::new(array::from_fn(|_| Pairs::default())),
            digest: 0,
            sweep: None,
        }
    }
}

impl Table {
    /// A table with room for about so many pairs, if memory can be had for them.
    pub(super) fn with_room(pairs: usize) -> Self {
        Self {
            parts: Box::new(array::from_fn(|_| Pairs::with_room(pairs / PARTS))),
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(Pairs::len).sum()
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn get(&self, place: Place<'_>) -> Option<&[u8]> {
        let found = self.part(place.key_hash).get(place);
        found.map(|pair| pair.value.as_slice())
    }

    /// Reads a pair that probably is the one of a key, so that its memory is near, and says where it lies. A value that
    /// `is_replaced`, and stays as it is because a snapshot has it, is not read.
    #[inline]
    pub(super) fn reach(&self, key_hash: u64, is_replaced: bool) -> Option<Near> {
        let (pair, near) = self.part(key_hash).reach(key_hash)?;
        if near.is_none() && is_replaced {
            return None;
        }
        let value = pair.value.as_slice();
        let mut sum = 0;
        for line in 0..LINES_REACHED_MAX {
            let Some(byte) = value.get(line * LINE_BYTES) else {
                break;
            };
            sum += usize::from(*byte);
        }
        black_box(sum);
        near
    }

    pub(super) fn put(&mut self, place: Place<'_>, value: &[u8], value_hash: u64) {
        let digest = hash::fold(place.key_hash, value_hash);
        let pair = self.part_mut(place.key_hash).replace_mut(place);
        let old = std::mem::replace(&mut pair.digest, digest);
        pair.value.set(value);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn append(&mut self, place: Place<'_>, tail: &[u8]) {
        let pair = self.part_mut(place.key_hash).reach_mut(place);
        pair.value.extend(tail);
        let digest = hash::fold(place.key_hash, hash::bytes(pair.value.as_slice()));
        let old = std::mem::replace(&mut pair.digest, digest);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn remove(&mut self, place: Place<'_>) {
        if let Some(digest) = self.part_mut(place.key_hash).remove(place) {
            self.digest = self.digest.wrapping_sub(digest);
        }
    }

    /// The table as it is now.
    pub(super) fn snapshot(&mut self) -> TableSnapshot {
        // It goes on where it is: a walk may take longer than it is until the next snapshot.
        self.sweep.get_or_insert_default().all_merged = false;
        TableSnapshot {
            parts: self.parts.iter_mut().map(Pairs::freeze).collect(),
            digest: self.digest,
        }
    }

    fn part(&self, hash: u64) -> &Pairs {
        &self.parts[number_of::<PARTS>(hash)]
    }

    fn part_mut(&mut self, hash: u64) -> &mut Pairs {
        &mut self.parts[number_of::<PARTS>(hash)]
    }

    /// A command with a value of so many bytes has come, and with it some time to merge what was written while there was
    /// a snapshot.
    #[inline]
    pub(super) fn sweep(&mut self, value_bytes: usize) {
        if let Some(sweep) = &mut self.sweep {
            // Log grows with bytes, and with it come snapshots.
            sweep.commands += 1 + value_bytes / 2048;
            if sweep.commands >= COMMANDS_A_PART {
                sweep.commands = 0;
                self.sweep_part();
            }
        }
    }

    #[cold]
    fn sweep_part(&mut self) {
        let Some(sweep) = &mut self.sweep else {
            return;
        };
        if sweep.next == 0 {
            sweep.all_merged = true;
        }
        let part = sweep.next * SWEEP_STRIDE % PARTS;
        sweep.all_merged &= self.parts[part].merge();
        sweep.next = (sweep.next + 1) % PARTS;
        if sweep.next == 0 && sweep.all_merged {
            self.sweep = None;
        }
    }
}

impl TableSnapshot {
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Hands out every pair: part by part, and within a part in the order of the keys. Lets go of each part at once.
    pub(super) fn write_pairs(
        self,
        mut write: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for part in self.parts {
            let mut pairs: Vec<&Pair> = part.iter().collect();
            pairs.sort_unstable_by(|one, other| one.key.cmp(&other.key));
            for pair in pairs {
                write(&pair.key, pair.value.as_slice())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(table: &mut Table, number: u32) {
        let key = number.to_le_bytes();
        let place = Place {
            key: &key,
            key_hash: hash::bytes(&key),
            near: None,
        };
        table.put(place, b"value", hash::bytes(b"value"));
    }

    #[test]
    fn after_a_snapshot_all_parts_are_merged_whatever_is_asked() {
        let mut table = Table::default();
        (0..10_000).for_each(|number| put(&mut table, number));
        let snapshot = table.snapshot();
        (5_000..15_000).for_each(|number| put(&mut table, number));
        (0..10 * PARTS * COMMANDS_A_PART).for_each(|_| table.sweep(0));
        assert!(table.sweep.is_some());
        assert_eq!((snapshot.len(), table.len()), (10_000, 15_000));
        (0..100 * COMMANDS_A_PART).for_each(|_| table.sweep(0));
        drop((snapshot, table.snapshot()));
        assert_eq!(table.sweep.as_ref().map(|sweep| sweep.next), Some(100));
        // At most a walk that is under way, and one after it.
        (0..2 * PARTS * COMMANDS_A_PART).for_each(|_| table.sweep(0));
        assert!(table.sweep.is_none());
        let own = |part: &Pairs| matches!(part, Pairs::Own(_));
        assert!(table.parts.iter().all(own));
        assert_eq!(table.len(), 15_000);
    }
}
