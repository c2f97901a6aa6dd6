//! What the generator needs of the system it loads.
//!
//! Batches go in, runs of answers come out, nothing is paid once an operation. An engine in this process and
//! a client library fit behind the same four calls.

pub mod engine;
pub mod null;
pub mod remote;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

use bytes::Bytes;

use crate::clock::Clock;

/// The system under load.
pub trait Target: Send + Sync {
    /// A way in for one worker and its clients. Called on the worker's own thread, which alone uses it.
    fn lane(&self, clients: &[u32], mailbox: Arc<Mailbox>) -> Result<Box<dyn Lane>, TargetError>;
}

/// The target cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(pub String);

/// One worker's way into the system.
pub trait Lane {
    /// Hands in a batch. All of it or nothing; never waits. Answers go to the mailbox, for each operation
    /// exactly one unless the batch is refused here.
    fn submit(&mut self, batch: &Submission<'_>) -> Result<(), Failure>;

    /// Waits until the mailbox may have something, or until a moment. Also gives the lane the thread for
    /// whatever it has to do; called at least once between submissions.
    fn wait(&mut self, until_ns: u64);
}

/// A batch of one client's operations on one group.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// Whose it is: which connection it takes.
    pub client: u32,
    /// Which group it is for.
    pub group: u32,
    /// What answers are told under.
    pub token: u64,
    /// The commands, one after the other.
    pub bytes: &'a Bytes,
    /// Where each one ends.
    pub ends: &'a [u32],
    /// When the answers have to be there.
    pub deadline_ns: u64,
}

impl<'a> Submission<'a> {
    /// Each command.
    pub fn commands(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let mut from = 0;
        let bytes: &'a [u8] = self.bytes;
        self.ends.iter().map(move |end| {
            let command = &bytes[from..*end as usize];
            from = *end as usize;
            command
        })
    }
}

/// Why operations have no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The stable name of the reason.
    pub code: &'static str,
    /// What that says about the operations.
    pub outcome: Outcome,
}

/// What is known about operations without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They are in no log and never will be, and may be sent again.
    Retry,
    /// They are in no log and never will be, and sending them again would not help.
    Never,
    /// They may be in the log once or not at all.
    Unknown,
}

/// Answers to a range of a batch's operations.
#[derive(Debug)]
pub struct Answer {
    /// The batch.
    pub token: u64,
    /// The first operation of the range.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// When the answer came.
    pub at_ns: u64,
    /// What it says.
    pub what: Answered,
}

/// What an answer says.
#[derive(Debug)]
pub enum Answered {
    /// The operations were applied.
    Applied {
        /// The entry they lie in.
        index: u64,
        /// The slot of the first of them; the others follow.
        slot: u32,
        /// One an operation, if the mailbox wants outputs.
        outputs: Vec<Bytes>,
    },
    /// They have no output.
    Failed(Failure),
}

/// Where answers to one worker's operations arrive.
#[derive(Debug)]
pub struct Mailbox {
    clock: Clock,
    wants_outputs: bool,
    owner: Thread,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    waiting: Vec<Answer>,
    /// The owner sleeps, or is about to.
    asleep: bool,
    /// The owner waits as a future.
    waker: Option<Waker>,
}

impl Mailbox {
    /// A mailbox of the calling thread.
    #[must_use]
    pub fn of_this_thread(clock: Clock, wants_outputs: bool) -> Self {
        Self {
            clock,
            wants_outputs,
            owner: std::thread::current(),
            answers: Mutex::default(),
        }
    }

    /// The clock of the run.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether outputs are read. If not, an applied run needs none.
    #[must_use]
    pub fn wants_outputs(&self) -> bool {
        self.wants_outputs
    }

    /// Puts an answer in and wakes the owner if it sleeps. Called on any thread.
    pub fn put(&self, token: u64, first: u32, count: u32, what: Answered) {
        let at_ns = self.clock.now_ns();
        let answer = Answer {
            token,
            first,
            count,
            at_ns,
            what,
        };
        let mut answers = self.lock();
        answers.waiting.push(answer);
        let (asleep, waker) = (std::mem::take(&mut answers.asleep), answers.waker.take());
        drop(answers);
        if asleep {
            self.owner.unpark();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes everything that has arrived.
    pub fn take(&self, into: &mut Vec<Answer>) {
        let mut answers = self.lock();
        if into.is_empty() {
            std::mem::swap(into, &mut answers.waiting);
        } else {
            into.append(&mut answers.waiting);
        }
    }

    /// Whether nothing has arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Ready when something has arrived.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut answers = self.lock();
        if answers.waiting.is_empty() {
            answers.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Sleeps until something arrives or a moment has come. For lanes that need no thread of their own.
    pub fn park(&self, until_ns: u64) {
        {
            let mut answers = self.lock();
            if !answers.waiting.is_empty() {
                return;
            }
            answers.asleep = true;
        }
        let time = self.clock.until(until_ns);
        if !time.is_zero() {
            std::thread::park_timeout(time);
        }
        self.lock().asleep = false;
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an output says that the machine would not carry out the command.
#[must_use]
pub fn is_rejection(output: &[u8]) -> bool {
    // Statuses 6 and 7 of the key-value machine's outputs: too large, malformed.
    matches!(output.first(), Some(6 | 7))
}
