use bytes::Bytes;

use super::*;
use crate::target::Answered;

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// A system whose answers the test gives by hand.
#[derive(Default)]
struct Hand {
    batches: Vec<(u64, u32, Vec<Bytes>)>,
    shut: Option<Failure>,
    index: u64,
}

impl Lane for Hand {
    fn submit(&mut self, batch: &Submission<'_>) -> Result<(), Failure> {
        if let Some(failure) = self.shut {
            return Err(failure);
        }
        let commands = batch.commands().map(Bytes::copy_from_slice).collect();
        self.batches.push((batch.token, batch.client, commands));
        Ok(())
    }

    fn wait(&mut self, _: u64) {}
}

impl Hand {
    fn operations(&self) -> usize {
        self.batches.iter().map(|(_, _, batch)| batch.len()).sum()
    }

    /// Answers everything that has been handed in.
    fn answer_all(&mut self, at_ns: u64) -> Vec<Answer> {
        let answer = |(token, _, batch): (u64, u32, Vec<Bytes>)| {
            self.index += 1;
            applied(token, batch.len() as u32, at_ns, self.index)
        };
        std::mem::take(&mut self.batches)
            .into_iter()
            .map(answer)
            .collect()
    }
}

fn applied(token: u64, count: u32, at_ns: u64, index: u64) -> Answer {
    let outputs = Vec::new();
    Answer {
        token,
        first: 0,
        count,
        at_ns,
        what: Answered::Applied {
            index,
            slot: 0,
            outputs,
        },
    }
}

const NOT_LEADER: Failure = Failure {
    code: "not_leader",
    outcome: Outcome::Retry,
};

/// One second of warm-up, ten of measurement.
fn plan(rate: Option<f64>, in_flight: u64, clients: u32) -> Plan {
    Plan {
        rate,
        arrival: Arrival::Constant,
        pace_ns: 50_000,
        in_flight,
        clients,
        timeout_ns: 5 * S,
        start_ns: 0,
        measure_from_ns: S,
        measure_to_ns: 11 * S,
        seed: 1,
    }
}

fn worker(plan: Plan) -> Worker {
    let mix = "put=100".parse().unwrap();
    let shared = Shared {
        clock: Clock::start(),
        plan,
        workload: Workload::new(1, 16, 100, 1, mix, true, 0),
        collector: Collector::default(),
        acked_through: vec![AtomicU64::new(0)],
        remember_acked: true,
        history: None,
        faults: FaultWatch::new(1),
        stop: Arc::default(),
    };
    Worker::new(Arc::new(shared), 0, 1)
}

/// Runs the worker from `from_ns` on in steps, answering everything `delay_ns` later, until it finishes.
fn run_to_end(worker: &mut Worker, hand: &mut Hand, from_ns: u64, step_ns: u64) -> Measured {
    let mut now_ns = from_ns;
    let mut answers = Vec::new();
    while worker.turn(now_ns, &mut answers, hand) != Next::Finished {
        now_ns += step_ns;
        answers = hand.answer_all(now_ns);
        assert!(now_ns < 60 * S, "it never ends");
    }
    worker.shared.collector.finish().0
}

#[test]
fn an_open_loop_sends_what_is_due_and_counts_from_then() {
    let mut worker = worker(plan(Some(1000.0), 1000, 2));
    let mut hand = Hand::default();
    // Turns come 10 ms apart: the generator lags, the schedule does not.
    let total = run_to_end(&mut worker, &mut hand, 0, 10 * MS);
    assert_eq!((total.tally.offered, total.tally.sent), (10_000, 10_000));
    assert_eq!(total.schedule.count(), 10_000);
    let about = |measured: Option<u64>, ms: f64| {
        let measured = measured.unwrap() as f64 / MS as f64;
        assert!((measured - ms).abs() < 0.6, "{measured} is not {ms}");
    };
    about(total.lag.percentile(5000), 4.5);
    about(total.schedule.percentile(5000), 14.5);
    about(total.send.percentile(5000), 10.0);
    assert_eq!(total.tally.completed, total.tally.completed_writes);
    assert!(total.tally.errors.is_empty() && total.tally.unknown.is_empty());
}

#[test]
fn what_falls_due_within_the_pace_leaves_together_and_is_late_by_no_more() {
    let mut plan = plan(Some(10_000.0), 1000, 1);
    plan.pace_ns = MS;
    let mut worker = worker(plan);
    let mut hand = Hand::default();
    let mut sizes = Vec::new();
    // Answers call the worker ten times as often.
    for now_ns in (0..S).step_by(MS as usize / 10) {
        let mut answers = hand.answer_all(now_ns);
        worker.turn(now_ns, &mut answers, &mut hand);
        sizes.extend(hand.batches.iter().map(|batch| batch.2.len()));
    }
    assert_eq!(sizes[0], 1);
    assert!(sizes[1..].iter().all(|size| *size == 10), "{sizes:?}");
    let total = run_to_end(&mut worker, &mut hand, S, MS / 10);
    assert_eq!(total.tally.sent, 100_000);
    assert!(total.lag.max().unwrap() <= MS + MS / 100, "{total:?}");
}

#[test]
fn a_closed_loop_keeps_exactly_so_many_outstanding() {
    let mut worker = worker(plan(None, 10, 3));
    let mut hand = Hand::default();
    worker.turn(0, &mut Vec::new(), &mut hand);
    assert_eq!(hand.operations(), 10);
    let by_client: Vec<usize> = hand.batches.iter().map(|batch| batch.2.len()).collect();
    assert_eq!(by_client, [4, 3, 3]);
    let (token, _, batch) = hand.batches.remove(1);
    let mut answers = vec![applied(token, batch.len() as u32, MS, 1)];
    worker.turn(MS, &mut answers, &mut hand);
    assert_eq!(hand.operations(), 10);
    let total = run_to_end(&mut worker, &mut hand, 2 * MS, MS);
    assert_eq!(total.tally.offered, total.tally.sent);
    assert_eq!(total.schedule.percentile(9900), total.send.percentile(9900));
    assert_eq!(total.lag.max(), Some(0));
}

#[test]
fn an_operation_that_meets_the_cap_waits_and_its_latency_runs() {
    let mut worker = worker(plan(Some(1000.0), 5, 1));
    let mut hand = Hand::default();
    let mut now_ns = 0;
    while now_ns < 3 * S {
        worker.turn(now_ns, &mut Vec::new(), &mut hand);
        now_ns += MS;
    }
    assert_eq!(hand.operations(), 5);
    let total = run_to_end(&mut worker, &mut hand, now_ns, MS);
    // Waiting for room is no lag of the generator.
    assert!(total.lag.percentile(9900).unwrap() < 2 * MS, "{total:?}");
    assert!(total.schedule.max().unwrap() > S);
}

#[test]
fn what_is_still_due_at_the_end_was_not_sent() {
    let mut worker = worker(plan(Some(1000.0), 5, 1));
    let mut hand = Hand::default();
    for now_ns in (0..=11 * S).step_by(MS as usize) {
        let mut answers = Vec::new();
        // Answered for the first two seconds only.
        if now_ns < 2 * S {
            answers = hand.answer_all(now_ns);
        }
        worker.turn(now_ns, &mut answers, &mut hand);
    }
    let total = run_to_end(&mut worker, &mut hand, 11 * S, MS);
    assert_eq!(total.tally.offered, 10_000);
    let sent = total.tally.sent;
    assert!((1000..1010).contains(&sent), "{sent}");
    assert_eq!(total.tally.errors["not_sent"], 10_000 - sent);
    assert_eq!(total.tally.unknown["timeout"], 5);
}

#[test]
fn what_a_shut_door_turns_away_is_sent_again_and_keeps_its_due_time() {
    let mut worker = worker(plan(Some(1000.0), 100_000, 1));
    let mut hand = Hand::default();
    let mut now_ns = 0;
    while now_ns < 2 * S {
        let mut answers = hand.answer_all(now_ns);
        worker.turn(now_ns, &mut answers, &mut hand);
        now_ns += MS;
    }
    hand.shut = Some(NOT_LEADER);
    while now_ns < 3 * S {
        let mut answers = hand.answer_all(now_ns);
        worker.turn(now_ns, &mut answers, &mut hand);
        now_ns += MS;
    }
    hand.shut = None;
    let total = run_to_end(&mut worker, &mut hand, now_ns, MS);
    assert_eq!(total.schedule.count(), 10_000);
    assert!(total.tally.errors.is_empty() && total.tally.unknown.is_empty());
    assert!(total.schedule.max().unwrap() > 990 * MS);
    // Few tries while it was shut: the backlog went out once.
    assert!(total.tally.retries < 2500, "{}", total.tally.retries);
    assert_eq!(worker.into_acked().count(), 11_000);
}

#[test]
fn a_door_that_stays_shut_makes_errors_after_the_timeout() {
    let mut worker = worker(plan(Some(100.0), 100_000, 1));
    let mut hand = Hand {
        shut: Some(NOT_LEADER),
        ..Hand::default()
    };
    let total = run_to_end(&mut worker, &mut hand, 0, 5 * MS);
    assert_eq!(total.tally.errors["not_leader"], 1000);
    assert_eq!(total.schedule.count(), 0);
}

#[test]
fn a_late_answer_stays_unknown_and_is_not_counted_twice() {
    let mut worker = worker(plan(None, 1, 1));
    let mut hand = Hand::default();
    worker.turn(2 * S, &mut Vec::new(), &mut hand);
    let (token, _, _) = hand.batches.remove(0);
    worker.turn(8 * S, &mut Vec::new(), &mut hand);
    let mut late = vec![applied(token, 1, 8 * S, 1)];
    worker.turn(8 * S + MS, &mut late, &mut hand);
    assert_eq!(hand.operations(), 1, "the next one went out");
    let total = run_to_end(&mut worker, &mut hand, 10 * S, 300 * MS);
    assert_eq!(total.tally.unknown["timeout"], 1);
    assert_eq!(total.schedule.count() + 1, total.tally.sent);
}

#[test]
fn a_batch_may_be_answered_in_parts_and_some_of_it_turned_away() {
    let mut worker = worker(plan(None, 4, 1));
    let mut hand = Hand::default();
    worker.turn(2 * S, &mut Vec::new(), &mut hand);
    let (token, _, batch) = hand.batches.remove(0);
    let failed = Answer {
        token,
        first: 2,
        count: 2,
        at_ns: 2 * S,
        what: Answered::Failed(NOT_LEADER),
    };
    let mut answers = vec![applied(token, 2, 2 * S, 1), failed];
    worker.turn(2 * S + 5 * MS, &mut answers, &mut hand);
    assert_eq!(hand.operations(), 4);
    let again = hand
        .batches
        .iter()
        .any(|(_, _, sent)| sent.starts_with(&batch[2..]));
    assert!(again, "the same commands go out again");
}

#[test]
fn an_operation_that_lies_before_what_was_acknowledged_before_it_is_counted() {
    let mut worker = worker(plan(None, 1, 1));
    let mut hand = Hand::default();
    worker.turn(2 * S, &mut Vec::new(), &mut hand);
    let (first, _, _) = hand.batches.remove(0);
    worker.turn(2 * S, &mut vec![applied(first, 1, 2 * S, 9)], &mut hand);
    let (second, _, _) = hand.batches.remove(0);
    worker.turn(2 * S, &mut vec![applied(second, 1, 2 * S, 8)], &mut hand);
    assert_eq!(worker.measured.tally.reordered, 1);
}

#[test]
fn a_signal_ends_the_run_with_what_there_is() {
    let mut worker = worker(plan(Some(1000.0), 100, 1));
    let mut hand = Hand::default();
    for now_ns in (0..2 * S).step_by(MS as usize) {
        worker.turn(now_ns, &mut Vec::new(), &mut hand);
    }
    worker.shared.stop.store(true, Ordering::Relaxed);
    let next = worker.turn(2 * S, &mut Vec::new(), &mut hand);
    assert_eq!(next, Next::Finished);
    let (total, _) = worker.shared.collector.finish();
    assert_eq!(
        total.tally.unknown.values().sum::<u64>(),
        0,
        "all were warm-up"
    );
}
