//! The keys and values of the machine.
//!
//! What a command costs is the cache lines it waits for. So a pair lies in the table itself, key and value in
//! one line; only a longer key or value has memory of its own.

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::hash;

/// A map from keys to values, with a digest of all of them. The caller hashes the keys: it does so once.
#[derive(Debug, Default)]
pub(super) struct Table {
    pairs: HashTable<Pair>,
    /// The sum of all pairs' digests.
    digest: u64,
}

#[derive(Debug)]
#[repr(align(64))]
struct Pair {
    key: SmallVec<[u8; KEY_BYTES_INLINE]>,
    value: SmallVec<[u8; VALUE_BYTES_INLINE]>,
    /// A hash of key and value: this pair's share of the machine's digest.
    digest: u64,
}

/// With these a pair is one cache line.
const KEY_BYTES_INLINE: usize = 16;
const VALUE_BYTES_INLINE: usize = 24;
const _: () = assert!(size_of::<Pair>() == 64);

const LINE_BYTES: usize = 64;

/// Beyond so many lines, the processor has seen the pattern.
const LINES_REACHED_MAX: usize = 4;

impl Table {
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn get(&self, key: &[u8], key_hash: u64) -> Option<&[u8]> {
        let found = self.pairs.find(key_hash, |pair| &pair.key[..] == key);
        found.map(|pair| &pair.value[..])
    }

    /// Reads a pair that probably is the one of a key, so that its memory is near.
    pub(super) fn reach(&self, key_hash: u64) -> usize {
        let found = self.pairs.find(key_hash, |pair| pair.digest != 0);
        let lines = found.map(|pair| {
            pair.value
                .iter()
                .step_by(LINE_BYTES)
                .take(LINES_REACHED_MAX)
        });
        lines.map_or(0, |lines| lines.map(|byte| usize::from(*byte)).sum())
    }

    pub(super) fn put(&mut self, key: &[u8], key_hash: u64, value: &[u8], value_hash: u64) {
        let digest = hash::fold(key_hash, value_hash);
        let pair = self.pair(key, key_hash);
        let old = std::mem::replace(&mut pair.digest, digest);
        pair.value.clear();
        pair.value.extend_from_slice(value);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn append(&mut self, key: &[u8], key_hash: u64, tail: &[u8]) {
        let pair = self.pair(key, key_hash);
        pair.value.extend_from_slice(tail);
        let digest = hash::fold(key_hash, hash::bytes(&pair.value));
        let old = std::mem::replace(&mut pair.digest, digest);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn remove(&mut self, key: &[u8], key_hash: u64) {
        let found = self.pairs.find_entry(key_hash, |pair| &pair.key[..] == key);
        if let Ok(found) = found {
            let (pair, _) = found.remove();
            self.digest = self.digest.wrapping_sub(pair.digest);
        }
    }

    /// The pair of a key; a new one is empty and has no share in the digest yet.
    fn pair(&mut self, key: &[u8], key_hash: u64) -> &mut Pair {
        let entry = self.pairs.entry(
            key_hash,
            |pair| &pair.key[..] == key,
            |pair| hash::bytes(&pair.key),
        );
        let new = || Pair {
            key: SmallVec::from_slice(key),
            value: SmallVec::new(),
            digest: 0,
        };
        entry.or_insert_with(new).into_mut()
    }
}
