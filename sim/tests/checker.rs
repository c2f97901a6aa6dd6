//! Histories that no correct cluster can have, each rejected under the right name, and their good neighbours.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::BTreeMap;

use logdrive_raft::{GroupId, Index};
use logdrive_shard::kv::{Op, Origin, Reply};
use logdrive_sim::check::{
    Answer, Call, Committed, History, Limits, Logs, OperationId, Place, Rule, Value,
    check_phantoms, check_search, check_witness, piece_bytes,
};

/// A history that is written down call by call. Each call and each answer is 10 us after the last.
struct Script {
    history: History,
    logs: Logs,
    now_us: u64,
    sequences: BTreeMap<u64, u64>,
}

impl Script {
    fn new() -> Self {
        Self {
            history: History::new(1 << 20),
            logs: Logs::new(),
            now_us: 0,
            sequences: BTreeMap::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now_us += 10;
        self.now_us
    }

    fn call(&mut self, client: u64, call: Call) -> OperationId {
        self.call_of(KEY, client, call)
    }

    fn call_of(&mut self, key: u32, client: u64, call: Call) -> OperationId {
        let sequence = self.sequences.entry(client).or_default();
        *sequence += 1;
        let origin = Origin {
            client,
            sequence: *sequence,
        };
        let bytes = match call {
            Call::Get | Call::Delete => 0,
            Call::Put | Call::Append | Call::Cas { .. } => BYTES,
        };
        let now_us = self.tick();
        self.history
            .invoke_call(now_us, GROUP, key, origin, call, bytes)
    }

    /// The client is told so. The log is not changed.
    fn told(&mut self, id: OperationId, answer: Answer, index: u64) {
        let now_us = self.tick();
        self.history.answered(now_us, id, answer, place(index));
    }

    /// It lies in the log there. Nobody is told.
    fn logged(&mut self, id: OperationId, index: u64) {
        let origin = self.history.operation(id).origin;
        let place = place(index);
        let log = self.logs.entry(GROUP).or_default();
        log.push(Committed { place, origin });
    }

    /// It lies in the log there, and the client is told so.
    fn answered(&mut self, id: OperationId, answer: Answer, index: u64) {
        self.logged(id, index);
        self.told(id, answer, index);
    }

    /// Called and answered with nothing else in between.
    fn step(&mut self, client: u64, call: Call, answer: Answer, index: u64) -> OperationId {
        let id = self.call(client, call);
        self.answered(id, answer, index);
        id
    }

    fn never(&mut self, id: OperationId) {
        let now_us = self.tick();
        self.history.never(now_us, id);
    }

    fn value(&mut self, writers: &[OperationId]) -> Value {
        let pieces: Vec<_> = writers
            .iter()
            .map(|id| (self.history.operation(*id).origin, BYTES))
            .collect();
        self.history.value(&pieces)
    }

    fn phantoms(&self) -> Option<Rule> {
        let violation = check_phantoms(&self.history).err()?;
        println!("{violation}");
        Some(violation.rule)
    }

    fn witness(&self) -> Option<Rule> {
        let violation = check_witness(&self.history, &self.logs).err()?;
        println!("{violation}");
        Some(violation.rule)
    }

    fn search(&self) -> Option<Rule> {
        let violation = check_search(&self.history, &Limits::default()).err()?;
        println!("{violation}");
        Some(violation.rule)
    }
}

const GROUP: GroupId = GroupId(1);
const KEY: u32 = 7;
const BYTES: u32 = 20;

fn place(index: u64) -> Place {
    Place {
        index: Index(index),
        slot: 0,
    }
}

/// What each check finds.
#[track_caller]
fn expect(script: &Script, phantoms: Option<Rule>, witness: Option<Rule>, search: Option<Rule>) {
    assert_eq!(script.phantoms(), phantoms, "where values come from");
    assert_eq!(script.witness(), witness, "the log as witness");
    assert_eq!(script.search(), search, "the search");
}

#[test]
fn what_happens_one_after_the_other_passes() {
    let mut script = Script::new();
    let get_nothing = script.step(1, Call::Get, Answer::Absent, 1);
    assert_eq!(get_nothing, OperationId(0));
    let put = script.step(1, Call::Put, Answer::Done, 2);
    let one = script.value(&[put]);
    script.step(2, Call::Get, Answer::Value(one), 3);
    let append = script.step(2, Call::Append, Answer::Done, 4);
    let both = script.value(&[put, append]);
    script.step(1, Call::Get, Answer::Value(both), 5);
    let stale = Call::Cas {
        expected: Some(one),
    };
    script.step(3, stale, Answer::Mismatch(Some(both)), 6);
    let swap = script.step(
        3,
        Call::Cas {
            expected: Some(both),
        },
        Answer::Done,
        7,
    );
    let swapped = script.value(&[swap]);
    script.step(1, Call::Get, Answer::Value(swapped), 8);
    script.step(1, Call::Delete, Answer::Done, 9);
    script.step(1, Call::Get, Answer::Absent, 10);
    expect(&script, None, None, None);
}

#[test]
fn a_lost_update_is_rejected() {
    let mut script = Script::new();
    let first = script.step(1, Call::Append, Answer::Done, 1);
    let second = script.step(2, Call::Append, Answer::Done, 2);
    let (one, both) = (script.value(&[first]), script.value(&[first, second]));
    assert_ne!(one, both);
    script.step(3, Call::Get, Answer::Value(one), 3);
    expect(&script, None, Some(Rule::Answer), Some(Rule::Linearizable));
}

#[test]
fn a_stale_read_is_rejected() {
    let mut script = Script::new();
    let old = script.step(1, Call::Put, Answer::Done, 1);
    let old = script.value(&[old]);
    // The read lies in the log where its answer was right, and is called when that was long past.
    let place_of_read = 2;
    let new = script.call(1, Call::Put);
    script.told(new, Answer::Done, 3);
    let read = script.call(2, Call::Get);
    script.answered(read, Answer::Value(old), place_of_read);
    script.logged(new, 3);
    expect(
        &script,
        None,
        Some(Rule::RealTime),
        Some(Rule::Linearizable),
    );
}

#[test]
fn a_read_that_goes_backwards_is_rejected() {
    let mut script = Script::new();
    let old = script.step(1, Call::Put, Answer::Done, 1);
    let put = script.call(1, Call::Put);
    script.logged(put, 2);
    let (old, new) = (script.value(&[old]), script.value(&[put]));
    script.step(2, Call::Get, Answer::Value(new), 3);
    script.step(3, Call::Get, Answer::Value(old), 4);
    script.told(put, Answer::Done, 2);
    expect(&script, None, Some(Rule::Answer), Some(Rule::Linearizable));
}

#[test]
fn a_value_of_nobody_is_rejected() {
    let mut script = Script::new();
    let stranger = Origin {
        client: 9,
        sequence: 1,
    };
    let value = script.history.value(&[(stranger, BYTES)]);
    script.step(1, Call::Get, Answer::Value(value), 1);
    expect(
        &script,
        Some(Rule::Phantom),
        Some(Rule::Answer),
        Some(Rule::Linearizable),
    );
}

#[test]
fn bytes_that_no_client_made_are_rejected() {
    let mut history = History::new(1 << 20);
    let origin = |sequence| Origin {
        client: 1,
        sequence,
    };
    let mut bytes = piece_bytes(origin(1), 64);
    let put = history.invoke(1, GROUP, KEY, origin(1), Op::Put(&bytes));
    history.replied(2, put, Reply::Done, place(1));
    let get = history.invoke(3, GROUP, KEY, origin(2), Op::Get);
    bytes[40] ^= 1;
    history.replied(4, get, Reply::Value(&bytes), place(2));
    assert_eq!(check_phantoms(&history).unwrap_err().rule, Rule::Phantom);
}

#[test]
fn a_value_of_another_key_is_rejected() {
    let mut script = Script::new();
    let other = script.call_of(8, 1, Call::Put);
    script.answered(other, Answer::Done, 1);
    let value = script.value(&[other]);
    script.step(1, Call::Get, Answer::Value(value), 2);
    expect(
        &script,
        Some(Rule::Phantom),
        Some(Rule::Answer),
        Some(Rule::Linearizable),
    );
}

#[test]
fn a_value_that_was_never_appended_is_rejected() {
    let mut script = Script::new();
    let put = script.call(1, Call::Put);
    let value = script.value(&[put]);
    script.never(put);
    script.step(2, Call::Get, Answer::Value(value), 1);
    expect(
        &script,
        Some(Rule::NeverObserved),
        Some(Rule::Answer),
        Some(Rule::Linearizable),
    );
}

#[test]
fn what_was_never_appended_does_not_lie_in_the_log() {
    let mut script = Script::new();
    let put = script.call(1, Call::Put);
    script.logged(put, 1);
    script.never(put);
    expect(&script, None, Some(Rule::NeverInLog), None);
}

#[test]
fn the_value_of_a_swap_that_failed_is_rejected() {
    let mut script = Script::new();
    let put = script.step(1, Call::Put, Answer::Done, 1);
    let put = script.value(&[put]);
    let cas = Call::Cas { expected: None };
    let swap = script.step(2, cas, Answer::Mismatch(Some(put)), 2);
    let swapped = script.value(&[swap]);
    script.step(1, Call::Get, Answer::Value(swapped), 3);
    expect(
        &script,
        Some(Rule::Ineffective),
        Some(Rule::Answer),
        Some(Rule::Linearizable),
    );
}

#[test]
fn an_append_that_shows_twice_is_rejected() {
    let mut script = Script::new();
    let append = script.step(1, Call::Append, Answer::Done, 1);
    let twice = script.value(&[append, append]);
    script.step(2, Call::Get, Answer::Value(twice), 2);
    expect(
        &script,
        Some(Rule::Once),
        Some(Rule::Answer),
        Some(Rule::Linearizable),
    );
}

#[test]
fn a_proposal_in_two_places_of_the_log_is_rejected() {
    let mut script = Script::new();
    let put = script.step(1, Call::Put, Answer::Done, 1);
    script.logged(put, 2);
    expect(&script, None, Some(Rule::Once), None);
}

#[test]
fn answers_in_another_order_than_the_log_are_rejected() {
    let mut script = Script::new();
    let (first, second) = (script.call(1, Call::Put), script.call(2, Call::Put));
    script.told(first, Answer::Done, 2);
    script.told(second, Answer::Done, 1);
    script.logged(first, 1);
    script.logged(second, 2);
    expect(&script, None, Some(Rule::Moved), None);
}

#[test]
fn an_answer_that_overtakes_an_earlier_one_is_rejected() {
    let mut script = Script::new();
    let first = script.call(1, Call::Put);
    script.told(first, Answer::Done, 5);
    let second = script.call(2, Call::Put);
    script.told(second, Answer::Done, 4);
    script.logged(second, 4);
    script.logged(first, 5);
    expect(&script, None, Some(Rule::RealTime), None);
}

#[test]
fn what_nobody_was_told_must_not_lie_before_what_had_been_answered() {
    let mut script = Script::new();
    let first = script.call(1, Call::Put);
    script.told(first, Answer::Done, 5);
    let late = script.call(2, Call::Put);
    script.logged(late, 4);
    script.logged(first, 5);
    expect(&script, None, Some(Rule::RealTime), None);
}

#[test]
fn a_swap_that_succeeds_twice_is_rejected() {
    let mut script = Script::new();
    let cas = Call::Cas { expected: None };
    script.step(1, cas, Answer::Done, 1);
    script.step(2, cas, Answer::Done, 2);
    expect(&script, None, Some(Rule::Answer), Some(Rule::Linearizable));
}

#[test]
fn a_read_of_a_deleted_value_is_rejected() {
    let mut script = Script::new();
    let put = script.step(1, Call::Put, Answer::Done, 1);
    let value = script.value(&[put]);
    script.step(1, Call::Delete, Answer::Done, 2);
    script.step(2, Call::Get, Answer::Value(value), 3);
    expect(&script, None, Some(Rule::Answer), Some(Rule::Linearizable));
}

#[test]
fn an_acknowledged_write_that_the_log_lacks_is_rejected() {
    let mut script = Script::new();
    script.step(1, Call::Put, Answer::Done, 1);
    let lost = script.call(1, Call::Put);
    script.told(lost, Answer::Done, 2);
    expect(&script, None, Some(Rule::Missing), None);
    script.logs.clear();
    expect(&script, None, Some(Rule::Missing), None);
}

#[test]
fn two_that_were_told_one_place_are_rejected() {
    let mut script = Script::new();
    let (first, second) = (script.call(1, Call::Put), script.call(2, Call::Put));
    script.answered(first, Answer::Done, 1);
    script.told(second, Answer::Done, 1);
    expect(&script, None, Some(Rule::OnePlace), None);
}

#[test]
fn a_log_is_in_order() {
    let mut script = Script::new();
    let ids = [1, 2, 3].map(|client| script.call(client, Call::Put));
    script.logged(ids[0], 1);
    script.logged(ids[1], 1);
    expect(&script, None, Some(Rule::OnePlace), None);
    script.logs.clear();
    script.logged(ids[1], 2);
    script.logged(ids[2], 1);
    expect(&script, None, Some(Rule::LogOrder), None);
}

#[test]
fn a_log_holds_no_strangers() {
    let mut script = Script::new();
    let put = script.call(1, Call::Put);
    script.logged(put, 1);
    let log = script.logs.remove(&GROUP).unwrap();
    script.logs.insert(GroupId(2), log);
    expect(&script, None, Some(Rule::Stranger), None);
    let mut empty = Script::new();
    std::mem::swap(&mut empty.logs, &mut script.logs);
    expect(&empty, None, Some(Rule::Stranger), None);
}

#[test]
fn a_read_before_the_call_of_what_it_shows_is_rejected() {
    let mut script = Script::new();
    let read = script.call(2, Call::Get);
    let future = Origin {
        client: 1,
        sequence: 1,
    };
    let value = script.history.value(&[(future, BYTES)]);
    script.told(read, Answer::Value(value), 2);
    let put = script.call(1, Call::Put);
    script.logged(put, 1);
    script.logged(read, 2);
    script.told(put, Answer::Done, 1);
    expect(
        &script,
        Some(Rule::BeforeItsCall),
        Some(Rule::RealTime),
        Some(Rule::Linearizable),
    );
}

#[test]
fn what_is_unknown_may_be_in_the_log_and_may_not() {
    for in_log in 0_u32..8 {
        let mut script = Script::new();
        let writes = [1, 2, 3].map(|client| script.call(client, Call::Append));
        let mut pieces = Vec::new();
        for (at, write) in writes.into_iter().enumerate() {
            if in_log & 1 << at != 0 {
                script.logged(write, 10 + at as u64);
                pieces.push(write);
            }
        }
        let value = script.value(&pieces);
        let answer = if pieces.is_empty() {
            Answer::Absent
        } else {
            Answer::Value(value)
        };
        script.step(4, Call::Get, answer, 20);
        expect(&script, None, None, None);
        // What took effect cannot have had none.
        let last = *pieces.last().unwrap_or(&writes[0]);
        let wrong = script.value(&[last, last]);
        script.step(5, Call::Get, Answer::Value(wrong), 21);
        assert_eq!(script.witness(), Some(Rule::Answer));
        assert_eq!(script.search(), Some(Rule::Linearizable));
    }
}

#[test]
fn a_violation_is_one_line_that_names_key_operations_and_times() {
    let mut script = Script::new();
    let put = script.step(1, Call::Put, Answer::Done, 1);
    let value = script.value(&[put]);
    script.step(1, Call::Delete, Answer::Done, 2);
    script.step(2, Call::Get, Answer::Value(value), 3);
    let violation = check_witness(&script.history, &script.logs).unwrap_err();
    assert_eq!(
        violation.to_string(),
        "wrong answer: group 1: the log says absent: client 2 #1 get key 7 = the value of client 1 #1 at \
         3.0 [50..60 us]"
    );
    assert_eq!(violation.operations, [OperationId(2)]);
}
