//! Futures of proposals: wrappers over runs, for those who want one answer each.
//!
//! They need no runtime: whoever answers wakes the waker it finds. Dropping one cancels nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::vec::Drain;

use logdrive_raft::{Index, LogPosition, Term};
use logdrive_shard::{Failure, Fatal, ReplySink};

use crate::error::ProposeError;

/// A proposal that has been applied on this node, which led when it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied<O> {
    /// The entry that carries it.
    pub index: Index,
    /// Its slot in that entry. Index and slot together order all proposals of a group.
    pub slot: u32,
    /// The term of the entry.
    pub term: Term,
    /// What the state machine said.
    pub output: O,
}

/// The answer to one proposal, once it is there.
#[must_use = "a proposal may fail, and only its future says so"]
#[derive(Debug)]
pub struct Proposal<O> {
    cell: Arc<Cell<Applied<O>>>,
}

/// The answers to a batch of proposals, once all are there, in the order of the batch.
#[must_use = "proposals may fail, and only their future says so"]
#[derive(Debug)]
pub struct Proposals<O> {
    cell: Arc<BatchCell<O>>,
}

impl<O> Proposal<O> {
    pub(crate) fn failed(error: ProposeError) -> Self {
        Self {
            cell: Arc::new(Cell::ready(Err(error))),
        }
    }

    pub(crate) fn pending() -> (Self, Arc<dyn ReplySink<O>>)
    where
        O: Send + 'static,
    {
        let cell = Arc::new(Cell::default());
        let sink: Arc<dyn ReplySink<O>> = Arc::clone(&cell) as Arc<dyn ReplySink<O>>;
        (Self { cell }, sink)
    }
}

impl<O> Future for Proposal<O> {
    type Output = Result<Applied<O>, ProposeError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.cell.poll(context)
    }
}

impl<O> Proposals<O> {
    pub(crate) fn pending(count: usize) -> (Self, Arc<dyn ReplySink<O>>)
    where
        O: Send + 'static,
    {
        let cell = Arc::new(BatchCell::new(count));
        let sink: Arc<dyn ReplySink<O>> = Arc::clone(&cell) as Arc<dyn ReplySink<O>>;
        (Self { cell }, sink)
    }
}

impl<O> Future for Proposals<O> {
    type Output = Vec<Result<Applied<O>, ProposeError>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self
            .cell
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if state.missing > 0 {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let answers = std::mem::take(&mut state.answers);
        Poll::Ready(answers.into_iter().flatten().collect())
    }
}

/// Wakes whoever waits. That is the caller's code, and the answer is there already: whatever it does harms
/// neither the answer nor the node.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        drop(Fatal::catch(|| waker.wake()));
    }
}

/// Room for one result and whoever waits for it.
#[derive(Debug)]
pub(crate) struct Cell<T> {
    state: Mutex<CellState<T>>,
}

#[derive(Debug)]
struct CellState<T> {
    result: Option<Result<T, ProposeError>>,
    waker: Option<Waker>,
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(CellState {
                result: None,
                waker: None,
            }),
        }
    }
}

impl<T> Cell<T> {
    fn ready(result: Result<T, ProposeError>) -> Self {
        Self {
            state: Mutex::new(CellState {
                result: Some(result),
                waker: None,
            }),
        }
    }

    fn set(&self, result: Result<T, ProposeError>) {
        let waker = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.result = Some(result);
            state.waker.take()
        };
        wake(waker);
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Result<T, ProposeError>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<O: Send + 'static> ReplySink<O> for Cell<Applied<O>> {
    fn applied(&self, _: u64, _: u32, at: LogPosition, slot: u32, mut outputs: Drain<'_, O>) {
        let output = outputs
            .next()
            .expect("a run of one proposal has one output");
        self.set(Ok(Applied {
            index: at.index,
            slot,
            term: at.term,
            output,
        }));
    }

    fn failed(&self, _: u64, _: u32, _: u32, failure: Failure) {
        self.set(Err(failure.into()));
    }
}

#[derive(Debug)]
struct BatchCell<O> {
    state: Mutex<BatchState<O>>,
}

#[derive(Debug)]
struct BatchState<O> {
    answers: Vec<Option<Result<Applied<O>, ProposeError>>>,
    missing: usize,
    waker: Option<Waker>,
}

impl<O> BatchCell<O> {
    fn new(count: usize) -> Self {
        let answers = std::iter::repeat_with(|| None).take(count).collect();
        Self {
            state: Mutex::new(BatchState {
                answers,
                missing: count,
                waker: None,
            }),
        }
    }

    fn fill(
        &self,
        first: u32,
        results: impl ExactSizeIterator<Item = Result<Applied<O>, ProposeError>>,
    ) {
        let waker = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let count = results.len();
            let places = &mut state.answers[first as usize..][..count];
            for (place, result) in places.iter_mut().zip(results) {
                *place = Some(result);
            }
            state.missing -= count;
            if state.missing == 0 {
                state.waker.take()
            } else {
                None
            }
        };
        wake(waker);
    }
}

impl<O: Send + 'static> ReplySink<O> for BatchCell<O> {
    fn applied(&self, _: u64, first: u32, at: LogPosition, slot: u32, outputs: Drain<'_, O>) {
        let mut slot = slot;
        let results = outputs.map(|output| {
            let applied = Applied {
                index: at.index,
                slot,
                term: at.term,
                output,
            };
            slot += 1;
            Ok(applied)
        });
        self.fill(first, results);
    }

    fn failed(&self, _: u64, first: u32, count: u32, failure: Failure) {
        let results = (0..count as usize).map(|_| Err(failure.clone().into()));
        self.fill(first, results);
    }
}
