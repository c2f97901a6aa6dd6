//! A budget among threads: never over-issued, and nobody who waits is forgotten.

#![allow(clippy::unwrap_used, reason = "a model that cannot go on fails")]

use loom::thread;

use super::*;
use crate::sync::models::{Bell, check};

type Take = fn(&Permits, usize, &Waker) -> Option<Permit>;

/// Takes as many bytes as there are, waits for them if it must, and sees that nobody else has any.
fn take_all(permits: &Permits, take: Take) {
    let (bell, waker) = Bell::with_waker();
    let permit = loop {
        if let Some(permit) = take(permits, permits.bytes_max(), &waker) {
            break permit;
        }
        bell.wait();
    };
    assert_eq!(permits.held(), permit.bytes());
}

/// One gives back while another comes to wait.
fn one_waits(take: Take) {
    check(move || {
        let permits = Permits::new(10);
        let held = permits.try_take(1).unwrap();
        let waiter = {
            let permits = permits.clone();
            thread::spawn(move || take_all(&permits, take))
        };
        drop(held);
        waiter.join().unwrap();
        assert_eq!(permits.held(), 0);
    });
}

#[test]
fn who_waits_is_woken_whenever_bytes_come_back() {
    one_waits(Permits::take_or_wait);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_a_second_look_a_waiter_is_forgotten() {
    one_waits(|permits, bytes, waker| {
        let permit = permits.try_take(bytes);
        if permit.is_none() {
            let mut waiters = lock(&permits.shared.waiters);
            waiters.push_back(waker.clone());
            permits
                .shared
                .waiting
                .store(waiters.len(), Ordering::SeqCst);
        }
        permit
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_announcement_that_is_not_ordered_before_the_second_look_is_missed() {
    one_waits(|permits, bytes, waker| {
        if let Some(permit) = permits.try_take(bytes) {
            return Some(permit);
        }
        {
            let mut waiters = lock(&permits.shared.waiters);
            waiters.push_back(waker.clone());
            permits
                .shared
                .waiting
                .store(waiters.len(), Ordering::Release);
        }
        let held = permits.shared.held.load(Ordering::Acquire);
        (held == 0).then(|| permits.try_take(bytes)).flatten()
    });
}

#[test]
fn two_who_want_all_of_it_get_it_one_after_the_other() {
    check(|| {
        let permits = Permits::new(10);
        let threads = [(), ()].map(|()| {
            let permits = permits.clone();
            thread::spawn(move || take_all(&permits, Permits::take_or_wait))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(permits.held(), 0);
    });
}

/// Two take a part, if there is one to be had; together they would be too many.
fn two_take_parts(take: fn(&Permits, usize) -> Option<Permit>) {
    check(move || {
        let permits = Permits::new(10);
        let threads = [6, 7].map(|bytes| {
            let permits = permits.clone();
            thread::spawn(move || {
                let mut whole = take(&permits, bytes)?;
                assert!(permits.held() <= permits.bytes_max());
                let part = whole.split(2);
                drop(whole);
                Some(part)
            })
        });
        let taken = threads.map(|thread| thread.join().unwrap());
        let bytes: usize = taken.iter().flatten().map(Permit::bytes).sum();
        assert_eq!(permits.held(), bytes);
        assert!(bytes > 0, "nobody got anything");
        drop(taken);
        assert_eq!(permits.held(), 0);
    });
}

#[test]
fn parts_are_never_more_than_the_whole() {
    two_take_parts(Permits::try_take);
}

#[test]
#[should_panic(expected = "held() <= permits.bytes_max()")]
fn a_look_and_a_step_later_the_budget_is_another() {
    two_take_parts(|permits, bytes| {
        let held = permits.held();
        if held != 0 && held + bytes > permits.bytes_max() {
            return None;
        }
        let mut now = held;
        while let Err(other) = permits.shared.held.compare_exchange_weak(
            now,
            now + bytes,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            now = other;
        }
        Some(Permit {
            shared: Arc::clone(&permits.shared),
            bytes,
        })
    });
}
