//! Everything that threads share goes through here, so that a model checker can take its place.

pub(crate) use std::sync::{Arc, atomic::Ordering};
#[cfg(not(all(test, models)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize},
};
/// Waking is how one thread tells another that there is something to see.
pub(crate) use std::task::Waker;

#[cfg(all(test, models))]
pub(crate) mod models;
#[cfg(all(test, models))]
pub(crate) use models::{AtomicBool, AtomicUsize, Mutex, MutexGuard};

/// Locks a mutex whose holders do not panic while they change what it guards.
///
/// A holder that panics all the same has its thread fenced by the engine. Others may go on with the state
/// it left: every section below writes its fields in one go.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}
