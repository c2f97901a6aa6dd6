//! What takes the place of locks, atomics and wakers in models: loom runs a model once for every order in
//! which its threads may take turns, and for every value that an atomic may still hand out.
//!
//! `RUSTFLAGS='--cfg models' cargo test -p logdrive-shard --lib --release models::` runs all models; nothing
//! else of this crate works in that build. A lost wake-up shows as a deadlock.

use std::task::{Wake, Waker};

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool as LoomBool, AtomicUsize as LoomUsize, fence};
pub(crate) use loom::sync::{Mutex, MutexGuard};

use super::{Arc, Ordering};

/// Runs a model in every order there is.
pub(crate) fn check(model: impl Fn() + Sync + Send + 'static) {
    loom::model::Builder::new().check(model);
}

/// The same for a model of so many threads that there are too many orders: in each, threads are interrupted
/// where they need not be at most three times.
pub(crate) fn check_most(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Loom takes an access that is sequentially consistent for one that is not. With fences around it, it is:
/// those loom knows.
fn ordered<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    if order != Ordering::SeqCst {
        return access();
    }
    fence(Ordering::SeqCst);
    let value = access();
    fence(Ordering::SeqCst);
    value
}

#[derive(Debug)]
pub(crate) struct AtomicUsize(LoomUsize);

impl AtomicUsize {
    pub(crate) fn new(value: usize) -> Self {
        Self(LoomUsize::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> usize {
        ordered(order, || self.0.load(order))
    }

    pub(crate) fn store(&self, value: usize, order: Ordering) {
        ordered(order, || self.0.store(value, order));
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        ordered(order, || self.0.fetch_sub(value, order))
    }

    pub(crate) fn compare_exchange_weak(
        &self,
        current: usize,
        new: usize,
        success: Ordering,
        failure: Ordering,
    ) -> Result<usize, usize> {
        ordered(success, || {
            self.0.compare_exchange_weak(current, new, success, failure)
        })
    }
}

#[derive(Debug)]
pub(crate) struct AtomicBool(LoomBool);

impl AtomicBool {
    pub(crate) fn new(value: bool) -> Self {
        Self(LoomBool::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        ordered(order, || self.0.load(order))
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        ordered(order, || self.0.store(value, order));
    }

    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        ordered(order, || self.0.swap(value, order))
    }
}

/// What a thread waits for when it has nothing to do. Rung early, it lets the next wait pass.
#[derive(Debug, Default)]
pub(crate) struct Bell(Notify);

impl Bell {
    /// A bell, and the waker that rings it.
    pub(crate) fn with_waker() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self::default());
        let waker = Waker::from(Arc::clone(&bell));
        (bell, waker)
    }

    pub(crate) fn wait(&self) {
        self.0.wait();
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}
