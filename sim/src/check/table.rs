//! A set and a map of fingerprints, since the standard ones iterate in an order that no seed decides.
//!
//! A key is 128 bits of a good hash and stands for what was hashed. Two things with one fingerprint would be
//! taken for one: among the millions that a run makes, once in 2^80 runs.

/// 128 bits that stand for something.
pub(super) type Fingerprint = [u64; 2];

/// From fingerprints to numbers. It is asked and filled, never walked.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// As many as a power of two, at most half of them taken. `VACANT` is no key.
    slots: Vec<(Fingerprint, u32)>,
    taken: usize,
}

impl Table {
    pub(super) fn get(&self, key: Fingerprint) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let (found, value) = self.slots[self.slot_of(key)];
        (found != VACANT).then_some(value)
    }

    /// Whether the key was new. One that is known keeps its value.
    pub(super) fn insert(&mut self, key: Fingerprint, value: u32) -> bool {
        if self.taken * 2 >= self.slots.len() {
            self.grow();
        }
        let slot = self.slot_of(key);
        let is_new = self.slots[slot].0 == VACANT;
        if is_new {
            self.slots[slot] = (occupied(key), value);
            self.taken += 1;
        }
        is_new
    }

    /// Where the key is, or would be.
    fn slot_of(&self, key: Fingerprint) -> usize {
        let key = occupied(key);
        let mask = self.slots.len() - 1;
        let mut slot = key[0] as usize & mask;
        while self.slots[slot].0 != VACANT && self.slots[slot].0 != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let slots = (self.slots.len() * 2).max(SLOTS_MIN);
        let old = std::mem::replace(&mut self.slots, vec![(VACANT, 0); slots]);
        for (key, value) in old {
            if key != VACANT {
                let slot = self.slot_of(key);
                self.slots[slot] = (key, value);
            }
        }
    }
}

/// Adds a word to what a fingerprint stands for.
pub(super) fn mix(fingerprint: Fingerprint, word: u64) -> Fingerprint {
    let [left, right] = fingerprint;
    // The lanes start apart and turn by different amounts, so that they never become one hash twice.
    [
        scramble(left.rotate_left(23) ^ word),
        scramble(right.rotate_left(41) ^ word.wrapping_add(GOLDEN)),
    ]
}

/// The finalizer of SplitMix64: a bijection in which each bit of the input reaches each of the output.
fn scramble(mut word: u64) -> u64 {
    word = word.wrapping_add(GOLDEN);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The key with a bit that `VACANT` does not have.
fn occupied([left, right]: Fingerprint) -> Fingerprint {
    [left, right | 1]
}

const VACANT: Fingerprint = [0, 0];
const SLOTS_MIN: usize = 16;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        let key = |word| mix([1, 2], word);
        let mut table = Table::default();
        assert_eq!(table.get(key(0)), None);
        for word in 0..10_000 {
            assert!(table.insert(key(word), word as u32), "{word}");
            assert!(!table.insert(key(word), 7), "{word}");
        }
        for word in 0..10_000 {
            assert_eq!(table.get(key(word)), Some(word as u32));
            assert_eq!(table.get(key(word + 10_000)), None);
        }
    }
}
