//! The hashes of the key-value machine.
//!
//! They find differences between replicas and lost writes; they are no defence against an adversary. They
//! are part of what loadgen and the machine agree on, so they do not change without the command version.

use std::hash::{BuildHasher, Hasher};

use xxhash_rust::xxh3::xxh3_64;

/// The hash of a key or a value.
#[must_use]
pub(super) fn bytes(data: &[u8]) -> u64 {
    xxh3_64(data)
}

/// Folds two hashes into one that depends on their order.
#[must_use]
pub(super) fn fold(first: u64, second: u64) -> u64 {
    // Two odd constants keep a zero on either side from swallowing the other (wyhash's mixing step).
    let product = u128::from(first ^ 0xa076_1d64_78bd_642f)
        .wrapping_mul(u128::from(second ^ 0xe703_7ed1_a0b4_28db));
    product as u64 ^ (product >> 64) as u64
}

/// Hashes numbers with one multiplication. The same on every run and replica.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FastHash;

impl BuildHasher for FastHash {
    type Hasher = FastHasher;

    fn build_hasher(&self) -> FastHasher {
        FastHasher(0)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn write(&mut self, data: &[u8]) {
        self.0 = fold(self.0, bytes(data));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = fold(self.0, number);
    }

    // A map's key is one field, so its length adds nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
