//! The keys and values of the machine.
//!
//! What a command costs is the cache lines it waits for. So a pair lies in the table itself, key and value in
//! one line; only a longer key or value has memory of its own.

use std::hint::black_box;
use std::io;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::hash;

/// A map from keys to values, with a digest of all of them. The caller hashes the keys: it does so once.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pairs: HashTable<Pair>,
    /// The sum of all pairs' digests.
    digest: u64,
}

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Pair {
    key: SmallVec<[u8; KEY_BYTES_INLINE]>,
    value: SmallVec<[u8; VALUE_BYTES_INLINE]>,
    /// A hash of key and value: this pair's share of the machine's digest.
    digest: u64,
}

/// Which pair a command is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) key: &'a [u8],
    pub(super) key_hash: u64,
    /// Where [`Table::reach`] saw it, if it did. A guess.
    pub(super) near: Option<Near>,
}

/// A bucket of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near(usize);

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

    pub(super) fn get(&self, place: Place<'_>) -> Option<&[u8]> {
        let is = |pair: &Pair| &pair.key[..] == place.key;
        let found = self.pairs.find(place.key_hash, is);
        found.map(|pair| &pair.value[..])
    }

    /// Reads a pair that probably is the one of a key, so that its memory is near, and says where it lies.
    pub(super) fn reach(&self, key_hash: u64) -> Option<Near> {
        let bucket = self
            .pairs
            .find_bucket_index(key_hash, |pair| pair.digest != 0)?;
        let value = &self.pairs.get_bucket(bucket)?.value;
        let lines = value.iter().step_by(LINE_BYTES).take(LINES_REACHED_MAX);
        black_box(lines.map(|byte| usize::from(*byte)).sum::<usize>());
        Some(Near(bucket))
    }

    pub(super) fn put(&mut self, place: Place<'_>, value: &[u8], value_hash: u64) {
        let digest = hash::fold(place.key_hash, value_hash);
        let pair = self.pair(place);
        let old = std::mem::replace(&mut pair.digest, digest);
        if pair.value.len() == value.len() {
            pair.value.copy_from_slice(value);
        } else {
            pair.value.clear();
            pair.value.extend_from_slice(value);
        }
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn append(&mut self, place: Place<'_>, tail: &[u8]) {
        let pair = self.pair(place);
        pair.value.extend_from_slice(tail);
        let digest = hash::fold(place.key_hash, hash::bytes(&pair.value));
        let old = std::mem::replace(&mut pair.digest, digest);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn remove(&mut self, place: Place<'_>) {
        let is = |pair: &Pair| &pair.key[..] == place.key;
        let found = self.pairs.find_entry(place.key_hash, is);
        if let Ok(found) = found {
            let (pair, _) = found.remove();
            self.digest = self.digest.wrapping_sub(pair.digest);
        }
    }

    /// Hands out every pair, in the order of the keys.
    pub(super) fn write_pairs(
        &self,
        mut write: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut pairs: Vec<&Pair> = self.pairs.iter().collect();
        pairs.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        pairs
            .iter()
            .try_for_each(|pair| write(&pair.key, &pair.value))
    }

    /// The pair of a key; a new one is empty and has no share in the digest yet.
    fn pair(&mut self, place: Place<'_>) -> &mut Pair {
        let is = |pair: &Pair| &pair.key[..] == place.key;
        // Where it was seen it is, unless another of the same hash was seen, or the table has moved since.
        let seen = place.near.map(|Near(bucket)| bucket);
        let seen = seen.filter(|bucket| self.pairs.get_bucket(*bucket).is_some_and(is));
        let bucket = seen.unwrap_or_else(|| {
            let entry = self
                .pairs
                .entry(place.key_hash, is, |pair| hash::bytes(&pair.key));
            let new = || Pair {
                key: SmallVec::from_slice(place.key),
                value: SmallVec::new(),
                digest: 0,
            };
            entry.or_insert_with(new).bucket_index()
        });
        self.pairs
            .get_bucket_mut(bucket)
            .expect("found or made above")
    }
}
