//! Bytes that proposals may hold from the door to the answer.
//!
//! One budget bounds everything that clients can make a leader hold: entries under construction, entries
//! that wait for a quorum, entries that wait to be applied. A full door says so at once.

use std::collections::VecDeque;

use crate::machine::Fatal;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, Waker, lock};

/// What a proposal costs besides its payload: its row, its share of a frame and of a run.
pub const PROPOSAL_OVERHEAD_BYTES: usize = 48;

/// A budget of bytes.
#[derive(Clone, Debug)]
pub struct Permits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes_max: usize,
    held: AtomicUsize,
    /// Not 0 while somebody waits, so that giving back costs no lock otherwise.
    waiting: AtomicUsize,
    waiters: Mutex<VecDeque<Waker>>,
}

/// The right to hold so many bytes. Given back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Permits {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                bytes_max,
                held: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                waiters: Mutex::new(VecDeque::new()),
            }),
        }
    }

    /// What so many proposals with so many bytes of payload cost.
    #[must_use]
    pub fn cost(proposals: usize, payload_bytes: usize) -> usize {
        payload_bytes.saturating_add(proposals.saturating_mul(PROPOSAL_OVERHEAD_BYTES))
    }

    /// Takes so many bytes, or none. A request for more than the whole budget gets its turn when nothing
    /// else is held.
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> Option<Permit> {
        // Ordered after the announcement of a waiter, so that bytes given back meanwhile are seen.
        let mut held = self.shared.held.load(Ordering::SeqCst);
        loop {
            let wanted = held.checked_add(bytes)?;
            if wanted > self.shared.bytes_max && held != 0 {
                return None;
            }
            let exchanged = self.shared.held.compare_exchange_weak(
                held,
                wanted,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) => {
                    return Some(Permit {
                        shared: Arc::clone(&self.shared),
                        bytes,
                    });
                }
                Err(now) => held = now,
            }
        }
    }

    /// Takes so many bytes, or has `waker` woken when some have been given back. Whoever was woken tries
    /// again, and may find that another was faster.
    #[must_use]
    pub fn take_or_wait(&self, bytes: usize, waker: &Waker) -> Option<Permit> {
        if let Some(permit) = self.try_take(bytes) {
            return Some(permit);
        }
        // Announced before the second look: who gives back between the two looks sees the announcement.
        {
            let mut waiters = lock(&self.shared.waiters);
            waiters.push_back(waker.clone());
            self.shared.waiting.store(waiters.len(), Ordering::SeqCst);
        }
        self.try_take(bytes)
    }

    /// Bytes that are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// The whole budget.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.shared.bytes_max
    }
}

impl Permit {
    /// Splits off `bytes` of this permit.
    ///
    /// # Panics
    ///
    /// If it holds fewer.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Permit {
        assert!(bytes <= self.bytes);
        self.bytes -= bytes;
        Permit {
            shared: Arc::clone(&self.shared),
            bytes,
        }
    }

    /// Bytes this permit holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        self.shared.held.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.shared.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken: Vec<Waker> = {
            let mut waiters = lock(&self.shared.waiters);
            self.shared.waiting.store(0, Ordering::SeqCst);
            waiters.drain(..).collect()
        };
        for waker in woken {
            // A waker is the caller's code, and a panic that leaves a destructor may end the process.
            drop(Fatal::catch(|| waker.wake()));
        }
    }
}

#[cfg(all(test, models))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_and_what_is_given_back_can_be_taken_again() {
        let permits = Permits::new(100);
        let first = permits.try_take(60).unwrap();
        assert!(permits.try_take(60).is_none());
        let second = permits.try_take(40).unwrap();
        assert_eq!(permits.held(), 100);
        drop(first);
        assert!(permits.try_take(60).is_some());
        drop(second);
        assert_eq!(permits.held(), 0);
    }

    #[test]
    fn a_request_above_the_budget_gets_its_turn_alone() {
        let permits = Permits::new(100);
        let small = permits.try_take(1).unwrap();
        assert!(permits.try_take(500).is_none());
        drop(small);
        assert!(permits.try_take(500).is_some());
    }

    #[test]
    fn a_split_permit_gives_back_its_parts_one_by_one() {
        let permits = Permits::new(100);
        let mut whole = permits.try_take(10).unwrap();
        let part = whole.split(4);
        drop(whole);
        assert_eq!(permits.held(), 4);
        drop(part);
        assert_eq!(permits.held(), 0);
    }

    #[test]
    fn who_waits_is_woken_when_bytes_come_back() {
        struct Flag(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let flag = Arc::new(Flag(std::sync::atomic::AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let permits = Permits::new(10);
        let held = permits.try_take(10).unwrap();
        assert!(permits.take_or_wait(5, &waker).is_none());
        drop(held);
        assert!(flag.0.load(Ordering::SeqCst));
        assert!(permits.take_or_wait(5, &waker).is_some());
    }
}
