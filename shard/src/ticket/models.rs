//! Who waits for an answer, while one thread applies and another ends: exactly one answer each, and what was
//! held comes back with it.

#![allow(clippy::unwrap_used, reason = "a model that cannot go on fails")]

use std::sync::Mutex as StdMutex;
use std::vec::Drain;

use logdrive_raft::{Chain, Index, LogPosition, Term};
use loom::thread;

use super::*;
use crate::permits::Permits;
use crate::sync::models::{Bell, check_most};

/// How often each token was answered, once all has been said.
#[derive(Default)]
struct Heard(StdMutex<Vec<u64>>);

impl ReplySink<u32> for Heard {
    fn applied(&self, token: u64, _: u32, _: LogPosition, _: u32, _: Drain<'_, u32>) {
        self.0.lock().unwrap().push(token);
    }

    fn failed(&self, token: u64, _: u32, _: u32, _: Failure) {
        self.0.lock().unwrap().push(token);
    }
}

fn run_of(permits: &Permits, heard: &Arc<Heard>, token: u64) -> Run<u32> {
    let sink: Arc<dyn ReplySink<u32>> = Arc::clone(heard) as _;
    let permit = permits.try_take(5).unwrap();
    Run::new(sink, token, 0, 0, 1, permit)
}

/// Two runs fill the budget. One is answered and one is left behind, by different threads, and a third
/// thread waits for room for what it has.
fn one_answers_one_leaves_one_waits(answer: fn(Run<u32>)) {
    check_most(move || {
        let permits = Permits::new(10);
        let heard = Arc::new(Heard::default());
        let (answered, left) = (run_of(&permits, &heard, 1), run_of(&permits, &heard, 2));
        let applier = thread::spawn(move || answer(answered));
        let ending = thread::spawn(move || drop(left));
        let (bell, waker) = Bell::with_waker();
        let permit = loop {
            if let Some(permit) = permits.take_or_wait(10, &waker) {
                break permit;
            }
            bell.wait();
        };
        // There is room only because both have been told.
        let mut tokens = heard.0.lock().unwrap().clone();
        tokens.sort_unstable();
        assert_eq!(
            tokens,
            [1, 2],
            "one answer each, and before its bytes are free"
        );
        applier.join().unwrap();
        ending.join().unwrap();
        assert_eq!(heard.0.lock().unwrap().len(), 2);
        drop(permit);
        assert_eq!(permits.held(), 0);
    });
}

fn position() -> LogPosition {
    LogPosition {
        index: Index(1),
        term: Term(1),
        chain: Chain(0),
    }
}

#[test]
fn each_is_answered_once_and_then_its_bytes_come_back() {
    one_answers_one_leaves_one_waits(|run| run.answer(position(), &mut vec![0]).unwrap());
    one_answers_one_leaves_one_waits(|run| run.fail(Failure::Halted));
    one_answers_one_leaves_one_waits(drop);
}

#[test]
#[should_panic(expected = "one answer each")]
fn who_answers_and_does_not_say_so_answers_twice() {
    one_answers_one_leaves_one_waits(|run| {
        let mut outputs = vec![0];
        run.sink.applied(1, 0, position(), 0, outputs.drain(..));
    });
}

#[test]
#[should_panic(expected = "one answer each")]
fn bytes_that_come_back_early_let_somebody_in_before_the_answer() {
    one_answers_one_leaves_one_waits(|mut run| {
        let bytes = run._permit.bytes();
        drop(run._permit.split(bytes));
        thread::yield_now();
        run.fail(Failure::Halted);
    });
}
