//! A large state in many parts, so that a snapshot of it costs little, and the writes after that little each.
//!
//! A snapshot takes references to all parts. The machine copies a part when it first writes to it, and takes
//! it back uncopied once the snapshot is gone. Without a snapshot that costs a branch.

use std::array;
use std::mem;

use crate::sync::Arc;

/// `COUNT` parts, each of which is the owner's alone or shared with a snapshot.
#[derive(Debug)]
pub(super) struct Parts<T, const COUNT: usize>(Box<[Part<T>; COUNT]>);

#[derive(Debug)]
enum Part<T> {
    Own(T),
    Shared(Arc<T>),
}

impl<T: Default, const COUNT: usize> Default for Parts<T, COUNT> {
    fn default() -> Self {
        Self(Box::new(array::from_fn(|_| Part::Own(T::default()))))
    }
}

impl<T: Clone + Default, const COUNT: usize> Parts<T, COUNT> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(Part::get)
    }

    /// The part in which something of this hash lies.
    pub(super) fn get(&self, hash: u64) -> &T {
        self.0[number_of::<COUNT>(hash)].get()
    }

    /// As [`get`](Self::get), and nobody else sees what is done to it.
    pub(super) fn get_mut(&mut self, hash: u64) -> &mut T {
        self.0[number_of::<COUNT>(hash)].own()
    }

    /// References to all parts as they are now.
    pub(super) fn share(&mut self) -> SharedParts<T, COUNT> {
        SharedParts(self.0.iter_mut().map(Part::share).collect())
    }
}

/// All parts at one point.
#[derive(Debug)]
pub(super) struct SharedParts<T, const COUNT: usize>(Vec<Arc<T>>);

impl<T, const COUNT: usize> SharedParts<T, COUNT> {
    pub(super) fn get(&self, hash: u64) -> &T {
        &self.0[number_of::<COUNT>(hash)]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|part| &**part)
    }
}

// Hash tables place by the lowest bits and tell apart by the seven highest. These are neither, up to so many
// places a part that no memory holds them.
pub(super) fn number_of<const COUNT: usize>(hash: u64) -> usize {
    const { assert!(COUNT.is_power_of_two() && COUNT <= 1 << 16) };
    (hash >> 40) as usize % COUNT
}

impl<T: Clone + Default> Part<T> {
    #[inline]
    fn get(&self) -> &T {
        match self {
            Self::Own(part) => part,
            Self::Shared(part) => part,
        }
    }

    #[inline]
    fn own(&mut self) -> &mut T {
        match self {
            Self::Own(part) => part,
            Self::Shared(_) => self.take_back(),
        }
    }

    #[cold]
    fn take_back(&mut self) -> &mut T {
        let part = match mem::replace(self, Self::Own(T::default())) {
            Self::Own(part) => part,
            Self::Shared(part) => Arc::unwrap_or_clone(part),
        };
        *self = Self::Own(part);
        match self {
            Self::Own(part) => part,
            Self::Shared(_) => unreachable!("it was taken back"),
        }
    }

    fn share(&mut self) -> Arc<T> {
        let shared = match mem::replace(self, Self::Own(T::default())) {
            Self::Own(part) => Arc::new(part),
            Self::Shared(part) => part,
        };
        *self = Self::Shared(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash in this part.
    fn hash(part: u64) -> u64 {
        part << 40
    }

    #[test]
    fn what_is_shared_does_not_change_under_whoever_holds_it() {
        let mut parts = Parts::<Vec<u8>, 4>::default();
        parts.get_mut(hash(1)).push(1);
        let first = parts.share();
        parts.get_mut(hash(1)).push(2);
        let second = parts.share();
        parts.get_mut(hash(1)).push(3);
        assert_eq!(first.get(hash(1)), &[1]);
        assert_eq!(second.get(hash(1)), &[1, 2]);
        assert_eq!(parts.get(hash(1)), &[1, 2, 3]);
        assert_eq!(first.iter().map(Vec::len).sum::<usize>(), 1);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 3);
    }

    #[test]
    fn only_what_is_written_while_it_is_shared_is_copied() {
        let mut parts = Parts::<Vec<u8>, 4>::default();
        for part in 0..3 {
            parts.get_mut(hash(part)).push(7);
        }
        let places = [0, 1, 2].map(|part| parts.get(hash(part)).as_ptr());
        let shared = parts.share();
        parts.get_mut(hash(0))[0] = 8;
        drop(shared);
        parts.get_mut(hash(1))[0] = 8;
        let now = [0, 1, 2].map(|part| parts.get(hash(part)).as_ptr());
        assert_ne!(now[0], places[0]);
        assert_eq!(now[1..], places[1..]);
    }
}
