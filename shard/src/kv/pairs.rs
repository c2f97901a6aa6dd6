//! The pairs of one part of the table, which a snapshot may share.
//!
//! What a snapshot has taken does not change any more. What is written meanwhile lies in a second table above it, one
//! pair after the other as it is written, and goes into the first once the snapshot has let go of it. So a write costs
//! a little more while a snapshot is taken, and no write pays for the pairs beside its own.

use std::collections::BTreeSet;
use std::mem;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use smallvec::SmallVec;

use super::hash;
use super::value::Value;
use crate::sync::Arc;

/// A key and its value.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Pair {
    pub(super) key: Key,
    pub(super) value: Value,
    /// A hash of key and value: this pair's share of the machine's digest.
    pub(super) digest: u64,
}

type Key = SmallVec<[u8; KEY_BYTES_INLINE]>;

/// With these a pair is one cache line.
const KEY_BYTES_INLINE: usize = 16;
const _: () = assert!(size_of::<Pair>() == 64);

/// Which pair a command is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) key: &'a [u8],
    pub(super) key_hash: u64,
    /// Where [`Pairs::reach`] saw it, if it did. A guess.
    pub(super) near: Option<Near>,
}

/// A bucket of the part that the key lies in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near(usize);

/// The pairs of a part.
#[derive(Debug)]
pub(super) enum Pairs {
    Own(HashTable<Pair>),
    Shared(Layers),
}

/// What a snapshot has, and what has happened since.
#[derive(Debug)]
pub(super) struct Layers {
    below: Arc<HashTable<Pair>>,
    /// In place of what lies below, or new.
    above: HashTable<Pair>,
    /// What lies below and is gone.
    removed: BTreeSet<Key>,
    len: usize,
}

impl Default for Pairs {
    fn default() -> Self {
        Self::Own(HashTable::new())
    }
}

impl Pairs {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Own(pairs) => pairs.len(),
            Self::Shared(layers) => layers.len,
        }
    }

    pub(super) fn get(&self, place: Place<'_>) -> Option<&Pair> {
        match self {
            Self::Own(pairs) => find(pairs, place),
            Self::Shared(layers) => layers.get(place),
        }
    }

    /// A pair that probably is the one of a key, and where it lies.
    #[inline]
    pub(super) fn reach(&self, key_hash: u64) -> Option<(&Pair, Near)> {
        let seen =
            |pairs: &HashTable<Pair>| pairs.find_bucket_index(key_hash, |pair| pair.digest != 0);
        match self {
            Self::Own(pairs) => {
                let bucket = seen(pairs)?;
                Some((pairs.get_bucket(bucket)?, Near(bucket)))
            }
            Self::Shared(layers) => {
                let above = seen(&layers.above);
                if let Some(bucket) = above {
                    return Some((layers.above.get_bucket(bucket)?, Near(bucket)));
                }
                let bucket = seen(&layers.below)?;
                Some((layers.below.get_bucket(bucket)?, Near(bucket)))
            }
        }
    }

    /// The pair of a key, for whoever changes it; a new one is empty and has no share in the digest yet.
    #[inline]
    pub(super) fn reach_mut(&mut self, place: Place<'_>) -> &mut Pair {
        self.take_back();
        match self {
            Self::Own(pairs) => find_or_make(pairs, place),
            Self::Shared(layers) => layers.find_or_copy(place),
        }
    }

    /// Removes the pair of a key and gives its share of the digest.
    pub(super) fn remove(&mut self, place: Place<'_>) -> Option<u64> {
        self.take_back();
        match self {
            Self::Own(pairs) => remove(pairs, place).map(|pair| pair.digest),
            Self::Shared(layers) => layers.remove(place),
        }
    }

    /// The pairs as they are now, for a snapshot.
    pub(super) fn share(&mut self) -> Arc<HashTable<Pair>> {
        let below = match mem::take(self) {
            Self::Own(pairs) => Arc::new(pairs),
            Self::Shared(layers) => layers.all(),
        };
        *self = Self::Shared(Layers {
            len: below.len(),
            below: Arc::clone(&below),
            above: HashTable::new(),
            removed: BTreeSet::new(),
        });
        below
    }

    /// If the snapshot has let go of the pairs, they are the machine's alone again. Says whether they are.
    #[inline]
    pub(super) fn take_back(&mut self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Shared(layers) if Arc::strong_count(&layers.below) > 1 => false,
            Self::Shared(_) => {
                self.merge();
                true
            }
        }
    }

    #[cold]
    fn merge(&mut self) {
        if let Self::Shared(layers) = mem::take(self) {
            // A copy only if somebody else has it, who was not there a moment ago.
            *self = Self::Own(Arc::unwrap_or_clone(layers.all()));
        }
    }
}

impl Layers {
    fn get(&self, place: Place<'_>) -> Option<&Pair> {
        find(&self.above, place).or_else(|| self.get_below(place))
    }

    fn get_below(&self, place: Place<'_>) -> Option<&Pair> {
        let found = find(&self.below, place);
        found.filter(|_| !self.is_removed(place))
    }

    fn is_removed(&self, place: Place<'_>) -> bool {
        !self.removed.is_empty() && self.removed.contains(place.key)
    }

    fn find_or_copy(&mut self, place: Place<'_>) -> &mut Pair {
        let known = self.above.len();
        if find(&self.above, place).is_none()
            && let Some(pair) = self.get_below(place)
        {
            let copy = pair.clone();
            self.above.insert_unique(place.key_hash, copy, hash_of);
        } else {
            find_or_make(&mut self.above, place);
            self.len += self.above.len() - known;
        }
        find_or_make(&mut self.above, place)
    }

    fn remove(&mut self, place: Place<'_>) -> Option<u64> {
        let digest = self.get(place)?.digest;
        remove(&mut self.above, place);
        if find(&self.below, place).is_some() {
            self.removed.insert(SmallVec::from_slice(place.key));
        }
        self.len -= 1;
        Some(digest)
    }

    /// All of it in one table.
    fn all(self) -> Arc<HashTable<Pair>> {
        let Self {
            mut below,
            mut above,
            removed,
            len,
        } = self;
        if above.is_empty() && removed.is_empty() {
            return below;
        }
        let pairs = Arc::make_mut(&mut below);
        for key in removed {
            let place = Place {
                key: &key,
                key_hash: hash::bytes(&key),
                near: None,
            };
            remove(pairs, place);
        }
        for pair in above.drain() {
            let is = |other: &Pair| other.key == pair.key;
            match pairs.entry(hash_of(&pair), is, hash_of) {
                Entry::Occupied(mut old) => *old.get_mut() = pair,
                Entry::Vacant(free) => {
                    free.insert(pair);
                }
            }
        }
        assert_eq!(pairs.len(), len, "every pair is counted once");
        below
    }
}

fn find<'a>(pairs: &'a HashTable<Pair>, place: Place<'_>) -> Option<&'a Pair> {
    pairs.find(place.key_hash, |pair| &pair.key[..] == place.key)
}

fn remove(pairs: &mut HashTable<Pair>, place: Place<'_>) -> Option<Pair> {
    let is = |pair: &Pair| &pair.key[..] == place.key;
    let found = pairs.find_entry(place.key_hash, is).ok()?;
    Some(found.remove().0)
}

/// The pair of a key. Where it was seen it is, unless another of the same hash was seen, or the table has moved since.
#[inline]
fn find_or_make<'a>(pairs: &'a mut HashTable<Pair>, place: Place<'_>) -> &'a mut Pair {
    let is = |pair: &Pair| &pair.key[..] == place.key;
    let bucket = match place.near {
        Some(Near(bucket)) if pairs.get_bucket(bucket).is_some_and(is) => bucket,
        _ => look_or_make(pairs, place),
    };
    pairs.get_bucket_mut(bucket).expect("found or made above")
}

/// The bucket of a key that was not where it was seen, if it was seen.
#[inline(never)]
fn look_or_make(pairs: &mut HashTable<Pair>, place: Place<'_>) -> usize {
    let is = |pair: &Pair| &pair.key[..] == place.key;
    let entry = pairs.entry(place.key_hash, is, hash_of);
    let new = || Pair {
        key: SmallVec::from_slice(place.key),
        value: Value::default(),
        digest: 0,
    };
    entry.or_insert_with(new).bucket_index()
}

fn hash_of(pair: &Pair) -> u64 {
    hash::bytes(&pair.key)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn place(key: &[u8]) -> Place<'_> {
        Place {
            key,
            key_hash: hash::bytes(key),
            near: None,
        }
    }

    fn contents(pairs: &HashTable<Pair>) -> Model {
        let pair = |pair: &Pair| (pair.key.to_vec(), pair.value.as_slice().to_vec());
        pairs.iter().map(pair).collect()
    }

    fn set(pairs: &mut Pairs, key: &[u8], value: &[u8]) {
        let near = pairs.reach(hash::bytes(key)).map(|(_, near)| near);
        let pair = pairs.reach_mut(Place { near, ..place(key) });
        pair.value.set(value);
        pair.digest = hash::bytes(value) | 1;
    }

    #[test]
    fn snapshots_keep_what_they_took_and_the_machine_what_it_wrote() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut pairs, mut model) = (Pairs::default(), Model::new());
        let mut taken: Vec<(Arc<HashTable<Pair>>, Model)> = Vec::new();
        for _ in 0..50_000 {
            let key = vec![random.u8(0..60); random.usize(1..30)];
            match random.u8(0..100) {
                0 => taken.push((pairs.share(), model.clone())),
                1 if !taken.is_empty() => {
                    let (snapshot, then) = taken.swap_remove(random.usize(0..taken.len()));
                    assert_eq!(contents(&snapshot), then);
                }
                2..40 => {
                    let had = model.remove(&key);
                    let had = had.map(|value| hash::bytes(&value) | 1);
                    assert_eq!(pairs.remove(place(&key)), had);
                }
                _ => {
                    let value = vec![random.u8(..); random.usize(0..60)];
                    set(&mut pairs, &key, &value);
                    model.insert(key.clone(), value);
                }
            }
            assert_eq!(pairs.len(), model.len());
            let found = pairs.get(place(&key));
            let found = found.map(|pair| pair.value.as_slice());
            assert_eq!(found, model.get(&key).map(Vec::as_slice));
        }
        drop(taken);
        assert!(pairs.take_back());
        assert_eq!(contents(&pairs.share()), model);
    }

    #[test]
    fn what_nobody_shares_any_more_is_changed_in_place() {
        let mut pairs = Pairs::default();
        let long = [7; 100];
        for key in 0..10 {
            set(&mut pairs, &[key], &long);
        }
        let at =
            |pairs: &Pairs, key: u8| pairs.get(place(&[key])).unwrap().value.as_slice().as_ptr();
        let before = at(&pairs, 1);
        let snapshot = pairs.share();
        set(&mut pairs, &[0], &[8; 100]);
        assert_ne!(
            at(&pairs, 0),
            find(&snapshot, place(&[0]))
                .unwrap()
                .value
                .as_slice()
                .as_ptr()
        );
        assert!(!pairs.take_back());
        drop(snapshot);
        set(&mut pairs, &[1], &[8; 100]);
        assert!(matches!(pairs, Pairs::Own(_)));
        assert_eq!(at(&pairs, 1), before);
    }
}
