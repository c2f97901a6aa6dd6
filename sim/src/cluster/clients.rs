//! The clients of a simulated cluster: what they ask, whom they ask again, and what they are told.
//!
//! They retry only what was certainly never appended, on another node, until their patience ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Drain;

use bytes::Bytes;
use fastrand::Rng;
use logdrive_raft::{GroupId, LogPosition, Micros, NodeId};
use logdrive_shard::{Failure, ReplySink};

use crate::history::{Operation, Outcome};
use crate::model::{Model, Request};
use crate::step::Call;

/// Proposals that are handed to one node together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Try {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) node: NodeId,
    pub(super) call: usize,
}

/// All clients.
pub(super) struct Clients<O> {
    pub(super) operations: Vec<Operation<O>>,
    payloads: Vec<Bytes>,
    tries: Vec<Try>,
    /// How many proposals of each try wait for their answer.
    unanswered: Vec<u32>,
    /// A try that has been given more answers than it has proposals.
    answered_twice: Option<Try>,
    /// What was told about proposals after their clients had given up: where each lies.
    late: Vec<(u64, LogPosition, u32)>,
    calls: Vec<CallState>,
    /// What closed-loop clients have still to ask, and whether they wait for something.
    waiting: BTreeMap<u64, (bool, VecDeque<Call>)>,
    answers: Arc<Answers<O>>,
    order: u64,
}

#[derive(Debug)]
struct CallState {
    call: Call,
    first: u64,
    open: u32,
    deadline: Micros,
}

/// Where answers wait until the cluster looks.
struct Answers<O> {
    answers: Mutex<Vec<Answer<O>>>,
}

enum Answer<O> {
    Applied {
        attempt: u64,
        first: u32,
        at: LogPosition,
        slot: u32,
        outputs: Vec<O>,
    },
    Failed {
        attempt: u64,
        first: u32,
        count: u32,
        failure: Failure,
    },
}

impl<O: Send + 'static> ReplySink<O> for Answers<O> {
    fn applied(&self, token: u64, first: u32, at: LogPosition, slot: u32, outputs: Drain<'_, O>) {
        let outputs = outputs.collect();
        self.push(Answer::Applied {
            attempt: token,
            first,
            at,
            slot,
            outputs,
        });
    }

    fn failed(&self, token: u64, first: u32, count: u32, failure: Failure) {
        self.push(Answer::Failed {
            attempt: token,
            first,
            count,
            failure,
        });
    }
}

impl<O> Answers<O> {
    fn push(&self, answer: Answer<O>) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(answer);
    }
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) enum Follow {
    /// These proposals were never appended and may be sent again, to this node if it is known to lead.
    Retry {
        first: u64,
        count: u32,
        call: usize,
        asked: NodeId,
        hint: Option<NodeId>,
    },
    /// A closed-loop client asks for its next thing.
    Next(Call),
    /// A client was answered: where its proposals lie.
    Acked {
        group: GroupId,
        at: LogPosition,
        slot: u32,
        first: u64,
        count: u32,
    },
    /// A client does not know what became of its proposals.
    Unknown,
}

impl<O: Clone + std::fmt::Debug + Send + 'static> Clients<O> {
    pub(super) fn new() -> Self {
        let answers = Answers {
            answers: Mutex::new(Vec::new()),
        };
        Self {
            operations: Vec::new(),
            payloads: Vec::new(),
            tries: Vec::new(),
            unanswered: Vec::new(),
            answered_twice: None,
            late: Vec::new(),
            calls: Vec::new(),
            waiting: BTreeMap::new(),
            answers: Arc::new(answers),
            order: 0,
        }
    }

    /// A call that is due. `None`: its client waits for an earlier one.
    pub(super) fn ask(&mut self, call: Call) -> Option<Call> {
        if !call.closed {
            return Some(call);
        }
        let (busy, queue) = self.waiting.entry(call.client).or_default();
        if *busy {
            queue.push_back(call);
            return None;
        }
        *busy = true;
        Some(call)
    }

    /// Puts a call into words. Returns its first try and when its client gives up.
    pub(super) fn begin<M: Model<Output = O>>(
        &mut self,
        now: Micros,
        call: Call,
        timeout_us: u64,
        model: &mut M,
    ) -> (Try, usize, Micros) {
        let first = self.operations.len() as u64;
        let mut random = Rng::with_seed(call.draw);
        self.order += 1;
        for id in first..first + u64::from(call.count) {
            let request = Request {
                id,
                client: call.client,
                group: call.group,
                bytes: call.bytes as usize,
            };
            self.payloads.push(model.payload(request, &mut random));
            self.operations.push(Operation {
                request,
                invoked: now,
                invoked_order: self.order,
                returned: None,
                returned_order: None,
                outcome: Outcome::Pending,
            });
        }
        let deadline = now.after(timeout_us);
        let number = self.calls.len();
        self.calls.push(CallState {
            call,
            first,
            open: call.count,
            deadline,
        });
        let attempt = Try {
            first,
            count: call.count,
            node: call.node,
            call: number,
        };
        (attempt, number, deadline)
    }

    /// What a try says, where its answers go and under which number.
    pub(super) fn hand_in(&mut self, attempt: Try) -> (&[Bytes], Arc<dyn ReplySink<O>>, u64) {
        let token = self.tries.len() as u64;
        self.tries.push(attempt);
        self.unanswered.push(attempt.count);
        let first = usize_of(attempt.first);
        let payloads = &self.payloads[first..first + attempt.count as usize];
        let sink: Arc<dyn ReplySink<O>> = Arc::clone(&self.answers) as _;
        (payloads, sink, token)
    }

    /// The group of a try, and whether its client still waits.
    pub(super) fn is_open(&self, now: Micros, attempt: Try) -> Option<GroupId> {
        let state = &self.calls[attempt.call];
        (now < state.deadline).then_some(state.call.group)
    }

    /// A door did not take the try that was handed in last.
    pub(super) fn not_taken(&mut self) {
        if let Some(last) = self.unanswered.last_mut() {
            *last = 0;
        }
    }

    /// A try that has been given more answers than it has proposals, if there is one.
    pub(super) fn answered_twice(&self) -> Option<Try> {
        self.answered_twice
    }

    /// The tries that nobody has answered. Their processes have been told to, for even one that ends does.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &Try> {
        let tries = self.tries.iter().zip(&self.unanswered);
        tries
            .filter(|(_, open)| **open > 0)
            .map(|(attempt, _)| attempt)
    }

    /// What was told about proposals after their clients had given up: where each lies.
    pub(super) fn take_late(&mut self) -> Vec<(u64, LogPosition, u32)> {
        std::mem::take(&mut self.late)
    }

    fn answered(&mut self, attempt: u64, count: u32) {
        let open = &mut self.unanswered[usize_of(attempt)];
        match open.checked_sub(count) {
            Some(left) => *open = left,
            None => self.answered_twice = Some(self.tries[usize_of(attempt)]),
        }
    }

    /// A door did not take a try.
    pub(super) fn refused(&mut self, attempt: Try, hint: Option<NodeId>) -> Follow {
        Follow::Retry {
            first: attempt.first,
            count: attempt.count,
            call: attempt.call,
            asked: attempt.node,
            hint,
        }
    }

    /// Takes in what was answered since the last call.
    pub(super) fn take(&mut self, now: Micros, follow: &mut Vec<Follow>) {
        let answers = std::mem::take(
            &mut *self
                .answers
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for answer in answers {
            match answer {
                Answer::Applied {
                    attempt,
                    first,
                    at,
                    slot,
                    outputs,
                } => {
                    let count = u32::try_from(outputs.len()).expect("an entry has fewer slots");
                    self.answered(attempt, count);
                    let attempt = self.tries[usize_of(attempt)];
                    let first = attempt.first + u64::from(first);
                    for (place, output) in (0..).zip(outputs) {
                        let outcome = Outcome::Done {
                            at,
                            slot: slot + place,
                            output,
                        };
                        self.settle(now, first + u64::from(place), outcome, follow);
                    }
                    follow.push(Follow::Acked {
                        group: self.calls[attempt.call].call.group,
                        at,
                        slot,
                        first,
                        count,
                    });
                }
                Answer::Failed {
                    attempt,
                    first,
                    count,
                    failure,
                } => {
                    self.answered(attempt, count);
                    let attempt = self.tries[usize_of(attempt)];
                    let first = attempt.first + u64::from(first);
                    self.failed(now, attempt, first, count, &failure, follow);
                }
            }
        }
    }

    fn failed(
        &mut self,
        now: Micros,
        attempt: Try,
        first: u64,
        count: u32,
        failure: &Failure,
        follow: &mut Vec<Follow>,
    ) {
        match failure.outcome() {
            logdrive_shard::Outcome::NeverAppended => {
                let hint = match failure {
                    Failure::NotLeader { leader } => *leader,
                    _ => None,
                };
                follow.push(Follow::Retry {
                    first,
                    count,
                    call: attempt.call,
                    asked: attempt.node,
                    hint,
                });
            }
            _ => {
                for id in first..first + u64::from(count) {
                    self.settle(now, id, Outcome::Unknown, follow);
                }
                follow.push(Follow::Unknown);
            }
        }
    }

    /// A client has waited long enough: what is not answered may be in the log. With `never` it is not, for
    /// the last that was heard of it is that it was not appended.
    pub(super) fn give_up(
        &mut self,
        now: Micros,
        first: u64,
        count: u32,
        never: bool,
        follow: &mut Vec<Follow>,
    ) {
        for id in first..first + u64::from(count) {
            let outcome = if never {
                Outcome::Never
            } else {
                Outcome::Unknown
            };
            self.settle(now, id, outcome, follow);
        }
    }

    /// The deadline of a call has come.
    pub(super) fn expire(&mut self, now: Micros, call: usize, follow: &mut Vec<Follow>) {
        let (first, count) = (self.calls[call].first, self.calls[call].call.count);
        self.give_up(now, first, count, false, follow);
    }

    fn settle(&mut self, now: Micros, id: u64, outcome: Outcome<O>, follow: &mut Vec<Follow>) {
        let operation = &mut self.operations[usize_of(id)];
        if !matches!(operation.outcome, Outcome::Pending) {
            if let Outcome::Done { at, slot, .. } = outcome {
                self.late.push((id, at, slot));
            }
            return;
        }
        self.order += 1;
        operation.outcome = outcome;
        operation.returned = Some(now);
        operation.returned_order = Some(self.order);
        let client = operation.request.client;
        let call = self.calls.partition_point(|call| call.first <= id) - 1;
        let call = &mut self.calls[call];
        call.open -= 1;
        if call.open == 0
            && call.call.closed
            && let Some((busy, queue)) = self.waiting.get_mut(&client)
        {
            match queue.pop_front() {
                Some(next) => follow.push(Follow::Next(next)),
                None => *busy = false,
            }
        }
    }
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("a run has fewer operations")
}
