//! Snapshots that somebody asks for.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use logdrive_raft::{GroupId, Index};
use logdrive_shard::Fatal;

use crate::shared::Shared;

/// A snapshot that was asked for was not taken. Nothing is lost by that, and it is tried again by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no snapshot was taken: {why}")]
pub struct SnapshotNotTaken {
    /// Why not.
    pub why: String,
}

/// How a snapshot that was asked for ended.
type Taken = Result<Index, SnapshotNotTaken>;

/// Who waits for a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    next: u64,
    by_number: BTreeMap<u64, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    group: GroupId,
    /// The snapshot has to reach this far.
    least: Index,
    done: Option<Taken>,
    waker: Waker,
}

impl Waiting {
    /// A snapshot of a group covers everything up to here now.
    pub(crate) fn taken(&self, group: GroupId, at: Index) {
        self.end(
            |waiter| waiter.group == group && waiter.least <= at,
            &Ok(at),
        );
    }

    /// None could be taken.
    pub(crate) fn not_taken(&self, group: GroupId, why: &str) {
        let why = why.to_owned();
        let ended = Err(SnapshotNotTaken { why });
        self.end(|waiter| waiter.group == group, &ended);
    }

    /// The node has ended.
    pub(crate) fn end_all(&self) {
        let why = "the node has ended".to_owned();
        self.end(|_| true, &Err(SnapshotNotTaken { why }));
    }

    fn end(&self, which: impl Fn(&Waiter) -> bool, how: &Taken) {
        let mut woken = Vec::new();
        for waiter in self.waiters().by_number.values_mut() {
            if waiter.done.is_none() && which(waiter) {
                waiter.done = Some(how.clone());
                woken.push(std::mem::replace(&mut waiter.waker, Waker::noop().clone()));
            }
        }
        // It is their code that runs, which must not run into ours.
        for waker in woken {
            drop(Fatal::catch(|| waker.wake()));
        }
    }

    fn begin(&self, group: GroupId, least: Index, waker: Waker) -> u64 {
        let mut waiters = self.waiters();
        waiters.next += 1;
        let number = waiters.next;
        let waiter = Waiter {
            group,
            least,
            done: None,
            waker,
        };
        waiters.by_number.insert(number, waiter);
        number
    }

    fn poll(&self, number: u64, waker: Waker) -> Poll<Taken> {
        let mut waiters = self.waiters();
        let Some(waiter) = waiters.by_number.get_mut(&number) else {
            unreachable!("a waiter is there until its future is dropped");
        };
        if let Some(done) = waiter.done.clone() {
            return Poll::Ready(done);
        }
        let before = std::mem::replace(&mut waiter.waker, waker);
        drop(waiters);
        drop(before);
        Poll::Pending
    }

    fn forget(&self, number: u64) {
        let waiter = self.waiters().by_number.remove(&number);
        // Dropped outside the lock: the waker is the caller's code.
        drop(waiter);
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves with the last entry that the snapshot covers, once it is durable and was read back. Dropping it cancels
/// nothing.
#[must_use = "a future does nothing unless it is polled"]
#[derive(Debug)]
pub struct SnapshotNow {
    shared: Arc<Shared>,
    group: GroupId,
    least: Index,
    number: Option<u64>,
}

impl SnapshotNow {
    pub(crate) fn new(shared: Arc<Shared>, group: GroupId, least: Index) -> Self {
        Self {
            shared,
            group,
            least,
            number: None,
        }
    }
}

impl Drop for SnapshotNow {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.snapshots.forget(number);
        }
    }
}

impl Future for SnapshotNow {
    type Output = Taken;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Taken> {
        let this = &mut *self;
        // Cloned outside the lock: it is the caller's code.
        let waker = context.waker().clone();
        if let Some(number) = this.number {
            return this.shared.snapshots.poll(number, waker);
        }
        if this.shared.has_ended() {
            let why = "the node has ended".to_owned();
            return Poll::Ready(Err(SnapshotNotTaken { why }));
        }
        let begun = this.shared.snapshots.begin(this.group, this.least, waker);
        this.number = Some(begun);
        this.shared.want_snapshot(this.group);
        if this.shared.has_ended() {
            // In between, perhaps after everybody who waited was told.
            this.shared.snapshots.end_all();
        }
        this.shared.snapshots.poll(begun, context.waker().clone())
    }
}
