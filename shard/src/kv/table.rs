//! The keys and values of the machine.
//!
//! What a command costs is the cache lines it waits for. So a pair lies in the table itself, key and value in
//! one line; only a longer key or value has memory of its own. The table is many small ones, by the hash of the
//! key: no growth and no copy is of all pairs at once.

use std::hint::black_box;
use std::io;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::hash;
use super::parts::{Parts, SharedParts};
use super::value::Value;

/// A map from keys to values, with a digest of all of them. The caller hashes the keys: it does so once.
#[derive(Debug, Default)]
pub(super) struct Table {
    parts: Parts<HashTable<Pair>, PARTS>,
    /// The sum of all pairs' digests.
    digest: u64,
}

#[derive(Debug)]
#[repr(align(64))]
struct Pair {
    key: SmallVec<[u8; KEY_BYTES_INLINE]>,
    value: Value,
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

/// A table at one point.
#[derive(Debug)]
pub(super) struct TableSnapshot {
    parts: SharedParts<HashTable<Pair>, PARTS>,
    pub(super) digest: u64,
}

/// A bucket of the part that the key lies in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near(usize);

/// With these a pair is one cache line.
const KEY_BYTES_INLINE: usize = 16;
const _: () = assert!(size_of::<Pair>() == 64);

/// With a million keys a part holds a few hundred. After a snapshot almost every write is the first to its part, so it
/// is not only the longest copy that counts but how soon they all come.
const PARTS: usize = 4096;

const LINE_BYTES: usize = 64;

/// Beyond so many lines, the processor has seen the pattern.
const LINES_REACHED_MAX: usize = 4;

impl Table {
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn get(&self, place: Place<'_>) -> Option<&[u8]> {
        let is = |pair: &Pair| &pair.key[..] == place.key;
        let found = self.parts.get(place.key_hash).find(place.key_hash, is);
        found.map(|pair| pair.value.as_slice())
    }

    /// Reads a pair that probably is the one of a key, so that its memory is near, and says where it lies.
    #[inline]
    pub(super) fn reach(&self, key_hash: u64) -> Option<Near> {
        let pairs = self.parts.get(key_hash);
        let bucket = pairs.find_bucket_index(key_hash, |pair| pair.digest != 0)?;
        let value = pairs.get_bucket(bucket)?.value.as_slice();
        let mut sum = 0;
        for line in 0..LINES_REACHED_MAX {
            let Some(byte) = value.get(line * LINE_BYTES) else {
                break;
            };
            sum += usize::from(*byte);
        }
        black_box(sum);
        Some(Near(bucket))
    }

    pub(super) fn put(&mut self, place: Place<'_>, value: &[u8], value_hash: u64) {
        let digest = hash::fold(place.key_hash, value_hash);
        let pair = self.pair(place);
        let old = std::mem::replace(&mut pair.digest, digest);
        pair.value.set(value);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn append(&mut self, place: Place<'_>, tail: &[u8]) {
        let pair = self.pair(place);
        pair.value.extend(tail);
        let digest = hash::fold(place.key_hash, hash::bytes(pair.value.as_slice()));
        let old = std::mem::replace(&mut pair.digest, digest);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(digest);
    }

    pub(super) fn remove(&mut self, place: Place<'_>) {
        let is = |pair: &Pair| &pair.key[..] == place.key;
        let pairs = self.parts.get_mut(place.key_hash);
        if let Ok(found) = pairs.find_entry(place.key_hash, is) {
            let (pair, _) = found.remove();
            self.digest = self.digest.wrapping_sub(pair.digest);
        }
    }

    /// The table as it is now.
    pub(super) fn snapshot(&mut self) -> TableSnapshot {
        TableSnapshot {
            parts: self.parts.share(),
            digest: self.digest,
        }
    }

    /// The pair of a key; a new one is empty and has no share in the digest yet.
    #[inline]
    fn pair(&mut self, place: Place<'_>) -> &mut Pair {
        let pairs = self.parts.get_mut(place.key_hash);
        // Where it was seen it is, unless another of the same hash was seen, or the table has moved since.
        let is = |pair: &Pair| &pair.key[..] == place.key;
        let bucket = match place.near {
            Some(Near(bucket)) if pairs.get_bucket(bucket).is_some_and(is) => bucket,
            _ => find_or_make(pairs, place),
        };
        pairs.get_bucket_mut(bucket).expect("found or made above")
    }
}

/// The bucket of a key that was not where it was seen, if it was seen.
#[inline(never)]
fn find_or_make(pairs: &mut HashTable<Pair>, place: Place<'_>) -> usize {
    let is = |pair: &Pair| &pair.key[..] == place.key;
    let entry = pairs.entry(place.key_hash, is, |pair| hash::bytes(&pair.key));
    let new = || Pair {
        key: SmallVec::from_slice(place.key),
        value: Value::default(),
        digest: 0,
    };
    entry.or_insert_with(new).bucket_index()
}

impl TableSnapshot {
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    /// Hands out every pair: part by part, and within a part in the order of the keys.
    pub(super) fn write_pairs(
        self,
        mut write: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for part in self.parts.into_parts() {
            let mut pairs: Vec<&Pair> = part.iter().collect();
            pairs.sort_unstable_by(|one, other| one.key.cmp(&other.key));
            for pair in pairs {
                write(&pair.key, pair.value.as_slice())?;
            }
        }
        Ok(())
    }
}

impl Clone for Pair {
    fn clone(&self) -> Self {
        Self {
            // The derived one goes byte by byte.
            key: SmallVec::from_slice(&self.key),
            value: self.value.clone(),
            digest: self.digest,
        }
    }
}
