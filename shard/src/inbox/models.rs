//! A door among threads: clients that hand in, a shard that takes, opens and shuts. No wake-up is lost, and
//! every proposal that was taken is answered once.

#![allow(clippy::unwrap_used, reason = "a model that cannot go on fails")]

use std::sync::Mutex as StdMutex;
use std::vec::Drain;

use logdrive_raft::limits::FRAME_BYTES_MAX;
use logdrive_raft::{Chain, GroupId, Index, LogPosition, Term};
use loom::thread;

use super::*;
use crate::sync::models::{Bell, check};

/// How often each token was answered. No part of the model: it is looked at when all has been said.
#[derive(Default)]
pub(crate) struct Heard(StdMutex<Vec<u64>>);

impl Heard {
    pub(crate) fn tokens(&self) -> Vec<u64> {
        let mut tokens = self.0.lock().unwrap().clone();
        tokens.sort_unstable();
        tokens
    }
}

impl ReplySink<u32> for Heard {
    fn applied(&self, token: u64, _: u32, _: LogPosition, _: u32, outputs: Drain<'_, u32>) {
        self.0.lock().unwrap().extend(outputs.map(|_| token));
    }

    fn failed(&self, token: u64, _: u32, count: u32, _: Failure) {
        self.0
            .lock()
            .unwrap()
            .extend(std::iter::repeat_n(token, count as usize));
    }
}

/// What the shard and the applier do with an entry, all at once. Returns how many proposals it held.
fn carry_out(sealed: Sealed<u32>) -> usize {
    let entry = sealed.entry.seal(GroupId(1), Term(1), Index(1), Chain(0));
    let mut outputs = vec![0; entry.header().count as usize];
    let count = outputs.len();
    for run in sealed.runs {
        run.answer(entry.position(), &mut outputs).unwrap();
    }
    assert!(outputs.is_empty());
    count
}

type Submit = fn(&Inbox<u32>, &[&str], &Arc<dyn ReplySink<u32>>, u64) -> Result<(), Refused>;

fn submit(
    inbox: &Inbox<u32>,
    payloads: &[&str],
    sink: &Arc<dyn ReplySink<u32>>,
    token: u64,
) -> Result<(), Refused> {
    inbox.submit(payloads, sink, token)
}

/// A shard that sleeps whenever nothing waits, and two batches, one of which finds it awake.
fn a_shard_sleeps(submit: Submit) {
    check(move || {
        let (bell, waker) = Bell::with_waker();
        let inbox = Inbox::new(1 << 20, FRAME_BYTES_MAX, waker);
        inbox.set_door(Door::Open);
        let heard = Arc::new(Heard::default());
        let sink: Arc<dyn ReplySink<u32>> = Arc::clone(&heard) as _;
        submit(&inbox, &["a", "b"], &sink, 1).unwrap();
        let client = {
            let inbox = inbox.clone();
            thread::spawn(move || submit(&inbox, &["c"], &sink, 2).unwrap())
        };
        let mut left = 3;
        while left > 0 {
            if !inbox.is_waiting() {
                bell.wait();
                continue;
            }
            left -= inbox.take().map_or(0, carry_out);
        }
        client.join().unwrap();
        assert_eq!(heard.tokens(), [1, 1, 2]);
        assert!(!inbox.is_waiting() && inbox.take().is_none());
        assert_eq!(inbox.permits().held(), 0);
    });
}

#[test]
fn a_shard_that_sleeps_is_woken() {
    a_shard_sleeps(submit);
}

#[test]
#[should_panic(expected = "deadlock")]
fn who_looks_whether_to_wake_before_it_adds_lets_the_shard_sleep() {
    a_shard_sleeps(|inbox, payloads, sink, token| {
        let was_waiting = inbox.is_waiting();
        let mut permit = inbox.permits().try_take(100).unwrap();
        {
            let mut state = lock(&inbox.shared.state);
            let first = state.fill(payloads, 0, FRAME_BYTES_MAX, &mut permit, sink, token);
            assert_eq!(first, payloads.len());
            inbox.shared.waiting.store(true, Ordering::Release);
        }
        if !was_waiting {
            inbox.shared.waker.wake_by_ref();
        }
        Ok(())
    });
}

/// Two clients at a door that shuts, opens again and shuts for good, and a shard that takes what it finds.
fn a_door_changes(submit: Submit) {
    check(move || {
        let inbox = Inbox::new(1 << 20, FRAME_BYTES_MAX, Waker::noop().clone());
        inbox.set_door(Door::Open);
        let heard = Arc::new(Heard::default());
        let clients = [1, 2].map(|token| {
            let inbox = inbox.clone();
            let sink: Arc<dyn ReplySink<u32>> = Arc::clone(&heard) as _;
            thread::spawn(move || submit(&inbox, &["a"], &sink, token).is_ok())
        });
        inbox.set_door(Door::NotLeader(None));
        inbox.set_door(Door::Open);
        if inbox.is_waiting() {
            let _ = inbox.take().map(carry_out);
        }
        inbox.set_door(Door::ShuttingDown);
        let taken = clients.map(|client| client.join().unwrap());
        assert!(!inbox.is_waiting(), "somebody waits behind a shut door");
        assert!(inbox.take().is_none());
        let tokens = [1, 2].into_iter().zip(taken);
        let tokens = tokens.filter(|(_, taken)| *taken).map(|(token, _)| token);
        assert_eq!(heard.tokens(), tokens.collect::<Vec<u64>>());
        assert_eq!(inbox.permits().held(), 0);
    });
}

#[test]
fn a_door_that_changes_answers_whom_it_took() {
    a_door_changes(submit);
}

#[test]
#[should_panic(expected = "somebody waits behind a shut door")]
fn who_asks_at_the_door_and_then_comes_again_stands_behind_a_shut_one() {
    a_door_changes(|inbox, payloads, sink, token| {
        lock(&inbox.shared.state).door.check()?;
        let mut permit = inbox.permits().try_take(100).unwrap();
        let mut state = lock(&inbox.shared.state);
        let _ = state.fill(payloads, 0, FRAME_BYTES_MAX, &mut permit, sink, token);
        inbox.shared.waiting.store(true, Ordering::Release);
        Ok(())
    });
}

#[test]
fn what_waits_is_never_more_than_the_bound() {
    check(|| {
        let bytes_max = Permits::cost(1, 1) + 10;
        let inbox = Inbox::new(bytes_max, FRAME_BYTES_MAX, Waker::noop().clone());
        inbox.set_door(Door::Open);
        let heard = Arc::new(Heard::default());
        let clients = [1, 2].map(|token| {
            let inbox = inbox.clone();
            let sink: Arc<dyn ReplySink<u32>> = Arc::clone(&heard) as _;
            thread::spawn(move || {
                let submitted = inbox.submit(&["a"], &sink, token);
                assert!(inbox.permits().held() <= bytes_max);
                assert!(submitted.is_ok() || matches!(submitted, Err(Refused::Busy { .. })));
                submitted.is_ok()
            })
        });
        let mut answered = inbox.take().map_or(0, carry_out);
        let taken = clients.map(|client| client.join().unwrap());
        answered += inbox.take().map_or(0, carry_out);
        let taken = taken.into_iter().filter(|ok| *ok).count();
        assert!(taken > 0 && answered == taken);
        assert_eq!(heard.tokens().len(), taken);
    });
}
