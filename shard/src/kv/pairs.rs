//! The pairs of one part of the table, which a snapshot may share.
//!
//! What a snapshot has taken does not change any more. What is written meanwhile lies above it, one pair after the
//! other as it is written, and goes into the table below some time after the snapshot has let go of it. So a write
//! costs a little more while a snapshot is taken, and no write pays for the pairs beside its own.

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
    Shared(Shared),
}

/// What a snapshot has, and what has happened since.
#[derive(Debug)]
pub(super) struct Shared {
    below: Arc<Frozen>,
    since: Changes,
    len: usize,
}

/// The pairs of a part at one point.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    table: HashTable<Pair>,
    /// What had not been merged by then. Mostly nothing.
    since: Changes,
    len: usize,
}

/// What has happened to the pairs of a table.
#[derive(Clone, Debug, Default)]
struct Changes {
    /// In place of what lies in the table, or new.
    pairs: HashTable<Pair>,
    /// What lies in the table and is gone, unless it is back.
    removed: BTreeSet<Key>,
}

impl Default for Pairs {
    fn default() -> Self {
        Self::Own(HashTable::new())
    }
}

impl Pairs {
    pub(super) fn with_room(pairs: usize) -> Self {
        let mut table = HashTable::new();
        // Without it the table grows as pairs come, or says then that it cannot.
        let _ = table.try_reserve(pairs, hash_of);
        Self::Own(table)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Own(pairs) => pairs.len(),
            Self::Shared(shared) => shared.len,
        }
    }

    pub(super) fn get(&self, place: Place<'_>) -> Option<&Pair> {
        match self {
            Self::Own(pairs) => find(pairs, place),
            Self::Shared(shared) => shared.get(place),
        }
    }

    /// A pair that probably is the one of a key, and where it lies; nowhere if a snapshot has it, and it is changed
    /// elsewhere.
    #[inline]
    pub(super) fn reach(&self, key_hash: u64) -> Option<(&Pair, Option<Near>)> {
        let seen = |pair: &Pair| pair.digest != 0;
        let pairs = match self {
            Self::Own(pairs) => pairs,
            Self::Shared(shared) => {
                let since = &shared.since.pairs;
                if since.find(key_hash, seen).is_none() {
                    let below = shared.below.table.find(key_hash, seen)?;
                    return Some((below, None));
                }
                since
            }
        };
        let bucket = pairs.find_bucket_index(key_hash, seen)?;
        Some((pairs.get_bucket(bucket)?, Some(Near(bucket))))
    }

    /// The pair of a key, for whoever changes its value; a new one is empty and has no share in the digest yet.
    #[inline]
    pub(super) fn reach_mut(&mut self, place: Place<'_>) -> &mut Pair {
        self.take_back();
        match self {
            Self::Own(pairs) => find_or_make(pairs, place),
            Self::Shared(shared) => shared.find_or_copy(place, Pair::clone),
        }
    }

    /// The same for whoever gives it another value: what it had, it may have no longer.
    #[inline]
    pub(super) fn replace_mut(&mut self, place: Place<'_>) -> &mut Pair {
        self.take_back();
        match self {
            Self::Own(pairs) => find_or_make(pairs, place),
            Self::Shared(shared) => shared.find_or_copy(place, Pair::without_value),
        }
    }

    /// Removes the pair of a key and gives its share of the digest.
    pub(super) fn remove(&mut self, place: Place<'_>) -> Option<u64> {
        self.take_back();
        match self {
            Self::Own(pairs) => remove(pairs, place).map(|pair| pair.digest),
            Self::Shared(shared) => shared.remove(place),
        }
    }

    /// The pairs as they are now, for a snapshot.
    pub(super) fn freeze(&mut self) -> Arc<Frozen> {
        let below = match mem::take(self) {
            Self::Own(table) => Arc::new(Frozen::of(table)),
            Self::Shared(shared) => shared.freeze(),
        };
        *self = Self::Shared(Shared {
            len: below.len,
            below: Arc::clone(&below),
            since: Changes::default(),
        });
        below
    }

    /// If the snapshot has let go of the pairs and nothing has happened to them since, they are the machine's alone.
    fn take_back(&mut self) {
        let untouched = |shared: &Shared| {
            shared.is_let_go() && shared.since.is_empty() && shared.below.since.is_empty()
        };
        if matches!(self, Self::Shared(shared) if untouched(shared)) {
            self.merge();
        }
    }

    /// If the snapshot has let go of the pairs, what has happened since goes into the table, and all of it is the
    /// machine's alone. Says whether that is so.
    #[cold]
    pub(super) fn merge(&mut self) -> bool {
        match mem::take(self) {
            Self::Shared(shared) if !shared.is_let_go() => {
                *self = Self::Shared(shared);
                false
            }
            Self::Shared(shared) => {
                *self = Self::Own(shared.into_table());
                true
            }
            Self::Own(pairs) => {
                *self = Self::Own(pairs);
                true
            }
        }
    }
}

impl Shared {
    fn is_let_go(&self) -> bool {
        Arc::strong_count(&self.below) == 1
    }

    fn get(&self, place: Place<'_>) -> Option<&Pair> {
        self.since.get(place, || self.below.get(place))
    }

    fn find_or_copy(&mut self, place: Place<'_>, copy: fn(&Pair) -> Pair) -> &mut Pair {
        if find(&self.since.pairs, place).is_none() {
            if let Some(pair) = self.get(place) {
                let copy = copy(pair);
                self.since
                    .pairs
                    .insert_unique(place.key_hash, copy, hash_of);
            } else {
                self.len += 1;
            }
        }
        find_or_make(&mut self.since.pairs, place)
    }

    fn remove(&mut self, place: Place<'_>) -> Option<u64> {
        let digest = self.get(place)?.digest;
        remove(&mut self.since.pairs, place);
        if self.below.get(place).is_some() {
            self.since.removed.insert(SmallVec::from_slice(place.key));
        }
        self.len -= 1;
        Some(digest)
    }

    /// Merges nothing if that can be put off: the machine waits.
    fn freeze(mut self) -> Arc<Frozen> {
        if self.since.is_empty() {
            return self.below;
        }
        match Arc::get_mut(&mut self.below) {
            Some(below) if below.since.is_empty() => {
                below.since = self.since;
                below.len = self.len;
                self.below
            }
            _ => Arc::new(Frozen::of(self.into_table())),
        }
    }

    fn into_table(self) -> HashTable<Pair> {
        // A copy only if a snapshot has it still.
        let mut below = Arc::unwrap_or_clone(self.below);
        below.since.merge_into(&mut below.table);
        self.since.merge_into(&mut below.table);
        assert_eq!(below.table.len(), self.len, "every pair is counted once");
        below.table
    }
}

impl Frozen {
    fn of(table: HashTable<Pair>) -> Self {
        Self {
            len: table.len(),
            table,
            since: Changes::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn get(&self, place: Place<'_>) -> Option<&Pair> {
        self.since.get(place, || find(&self.table, place))
    }

    /// Every pair once, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pair> {
        let below = self.table.iter().filter(|pair| !self.since.hides(pair));
        below.chain(&self.since.pairs)
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.removed.is_empty()
    }

    fn get<'a>(
        &'a self,
        place: Place<'_>,
        below: impl FnOnce() -> Option<&'a Pair>,
    ) -> Option<&'a Pair> {
        let found = find(&self.pairs, place);
        found.or_else(|| below().filter(|pair| !self.is_removed(&pair.key)))
    }

    fn is_removed(&self, key: &[u8]) -> bool {
        !self.removed.is_empty() && self.removed.contains(key)
    }

    /// Whether a pair of the table does not count.
    fn hides(&self, pair: &Pair) -> bool {
        if self.is_empty() {
            return false;
        }
        let replaced = self
            .pairs
            .find(hash_of(pair), |other| other.key == pair.key);
        replaced.is_some() || self.is_removed(&pair.key)
    }

    fn merge_into(mut self, table: &mut HashTable<Pair>) {
        for key in self.removed {
            let place = Place {
                key: &key,
                key_hash: hash::bytes(&key),
                near: None,
            };
            remove(table, place);
        }
        for pair in self.pairs.drain() {
            let is = |other: &Pair| other.key == pair.key;
            match table.entry(hash_of(&pair), is, hash_of) {
                Entry::Occupied(mut old) => *old.get_mut() = pair,
                Entry::Vacant(free) => {
                    free.insert(pair);
                }
            }
        }
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

impl Pair {
    fn without_value(&self) -> Self {
        Self {
            key: SmallVec::from_slice(&self.key),
            value: Value::default(),
            digest: self.digest,
        }
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

    fn contents(pairs: &Frozen) -> Model {
        let pair = |pair: &Pair| (pair.key.to_vec(), pair.value.as_slice().to_vec());
        let found: Vec<_> = pairs.iter().map(pair).collect();
        assert_eq!(found.len(), pairs.len());
        let model: Model = found.into_iter().collect();
        assert_eq!(model.len(), pairs.len());
        model
    }

    fn set(pairs: &mut Pairs, key: &[u8], value: &[u8]) {
        let near = pairs.reach(hash::bytes(key)).and_then(|(_, near)| near);
        let place = Place { near, ..place(key) };
        let pair = pairs.replace_mut(place);
        pair.value.set(value);
        pair.digest = digest(value);
    }

    fn append(pairs: &mut Pairs, key: &[u8], tail: &[u8]) {
        let pair = pairs.reach_mut(place(key));
        pair.value.extend(tail);
        pair.digest = digest(pair.value.as_slice());
    }

    fn digest(value: &[u8]) -> u64 {
        hash::bytes(value) | 1
    }

    #[test]
    fn snapshots_keep_what_they_took_and_the_machine_what_it_wrote() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut pairs, mut model) = (Pairs::default(), Model::new());
        let mut taken: Vec<(Arc<Frozen>, Model)> = Vec::new();
        for _ in 0..50_000 {
            let key = vec![random.u8(0..60); random.usize(1..30)];
            match random.u8(0..100) {
                0 => taken.push((pairs.freeze(), model.clone())),
                1 => {
                    pairs.merge();
                }
                2..5 if !taken.is_empty() => {
                    let (snapshot, then) = taken.swap_remove(random.usize(0..taken.len()));
                    assert_eq!(contents(&snapshot), then);
                }
                5..40 => {
                    let had = model.remove(&key);
                    let had = had.map(|value| digest(&value));
                    assert_eq!(pairs.remove(place(&key)), had);
                }
                40..50 => {
                    let tail = vec![random.u8(..); random.usize(0..9)];
                    append(&mut pairs, &key, &tail);
                    model.entry(key.clone()).or_default().extend(tail);
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
        assert!(pairs.merge());
        assert_eq!(contents(&pairs.freeze()), model);
    }

    #[test]
    fn what_nobody_shares_any_more_is_changed_in_place() {
        let mut pairs = Pairs::default();
        for key in 0..10 {
            set(&mut pairs, &[key], &[7; 100]);
        }
        let at = |pairs: &Pairs, key: u8| {
            let pair = pairs.get(place(&[key])).unwrap();
            pair.value.as_slice().as_ptr()
        };
        let before = [at(&pairs, 0), at(&pairs, 1)];
        let snapshot = pairs.freeze();
        set(&mut pairs, &[0], &[8; 100]);
        assert_ne!(at(&pairs, 0), before[0]);
        assert!(!pairs.merge());
        drop(snapshot);
        assert!(pairs.merge());
        set(&mut pairs, &[1], &[8; 100]);
        assert_eq!(at(&pairs, 1), before[1]);
        drop(pairs.freeze());
        set(&mut pairs, &[1], &[9; 100]);
        assert!(matches!(pairs, Pairs::Own(_)));
        assert_eq!(at(&pairs, 1), before[1]);
    }

    #[test]
    fn a_snapshot_does_not_wait_for_what_was_not_merged() {
        let mut pairs = Pairs::default();
        for key in 0..10 {
            set(&mut pairs, &[key], b"one");
        }
        let first = pairs.freeze();
        set(&mut pairs, &[0], b"two");
        assert_eq!(pairs.remove(place(&[1])), Some(digest(b"one")));
        let table: *const HashTable<Pair> = &first.table;
        drop(first);
        let second = pairs.freeze();
        assert!(std::ptr::eq(table, &second.table));
        assert_eq!((second.table.len(), second.len()), (10, 9));
        assert_eq!(contents(&second)[&[0][..]], b"two");
        assert!(!contents(&second).contains_key(&[1][..]));
    }
}
