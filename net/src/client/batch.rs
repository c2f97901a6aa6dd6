//! Proposals on their way through a client: batches as they were handed in, and parts of them.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use logdrive_raft::{GroupId, Index};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Applied;
use crate::protocol::{Code, Outputs};

/// Proposals to one group, answered under one token.
#[derive(Clone, Debug)]
pub struct Batch {
    token: u64,
    group: GroupId,
    deadline: Instant,
    bytes: Bytes,
    ends: Arc<[u32]>,
}

/// Why proposals make no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// There is none.
    #[error("a batch holds at least one proposal")]
    Empty,
    /// The ends do not grow, or end elsewhere than the bytes.
    #[error("the ends of the proposals do not fit their bytes")]
    Ends,
    /// A proposal is too large.
    #[error("a proposal of {bytes} bytes is larger than {ENTRY_PAYLOAD_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl Batch {
    /// A batch of the proposals that lie in `bytes` one after the other, each ending where `ends` says.
    pub fn new(
        token: u64,
        group: GroupId,
        deadline: Instant,
        bytes: Bytes,
        ends: impl Into<Arc<[u32]>>,
    ) -> Result<Self, BatchError> {
        let ends = ends.into();
        if ends.is_empty() {
            return Err(BatchError::Empty);
        }
        let mut from = 0;
        for end in ends.iter().map(|end| *end as usize) {
            if end < from {
                return Err(BatchError::Ends);
            }
            if end - from > ENTRY_PAYLOAD_BYTES_MAX {
                return Err(BatchError::TooLarge { bytes: end - from });
            }
            from = end;
        }
        if from != bytes.len() || u32::try_from(ends.len()).is_err() {
            return Err(BatchError::Ends);
        }
        Ok(Self {
            token,
            group,
            deadline,
            bytes,
            ends,
        })
    }

    /// A batch of these proposals.
    pub fn of<'a>(
        token: u64,
        group: GroupId,
        deadline: Instant,
        proposals: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, BatchError> {
        let mut bytes = BytesMut::new();
        let mut ends = Vec::new();
        for proposal in proposals {
            bytes.extend_from_slice(proposal);
            ends.push(u32::try_from(bytes.len()).map_err(|_| BatchError::Ends)?);
        }
        Self::new(token, group, deadline, bytes.freeze(), ends)
    }

    /// Under what its answers are told.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// How many proposals it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never: an empty batch is not made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all its proposals.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// What became of a part of a batch.
#[derive(Debug)]
pub struct Answer {
    /// The batch.
    pub token: u64,
    /// The first proposal of the part, counted within the batch.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// What became of them.
    pub what: Answered,
}

/// What became of proposals.
#[derive(Debug)]
pub enum Answered {
    /// They were applied, in consecutive slots of one entry.
    Applied {
        /// The entry.
        index: Index,
        /// The slot of the first.
        first_slot: u32,
        /// What the state machine answered to each.
        outputs: OutputRun,
    },
    /// They are in no log and never will be. What may help when tried again has been tried again.
    NeverAppended {
        /// Why.
        code: Code,
    },
    /// They may be in the log once, or not at all. They were not sent twice.
    MayYetCommit {
        /// Why nobody knows.
        code: Code,
    },
}

/// The outputs of a run of proposals, as slices of the frame in which they came.
#[derive(Clone)]
pub struct OutputRun {
    frame: Bytes,
    at: Range<usize>,
    count: u32,
}

impl OutputRun {
    /// Each output, in the order of the slots. What is kept of it for long is better copied.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        Outputs::new(self.count, &self.frame[self.at.clone()])
    }
}

/// Goes through the outputs of a run, part by part.
pub(super) struct OutputCursor<'a> {
    frame: &'a Bytes,
    left: Outputs<'a>,
    /// How many outputs have been passed.
    passed: u32,
}

impl<'a> OutputCursor<'a> {
    /// `outputs` must lie in `frame`.
    pub(super) fn new(frame: &'a Bytes, outputs: Outputs<'a>) -> Self {
        Self {
            frame,
            left: outputs,
            passed: 0,
        }
    }

    /// The outputs of `count` proposals that lie `behind` the first of the run. Parts come in their order.
    pub(super) fn part(&mut self, behind: u32, count: u32) -> OutputRun {
        assert!(self.passed <= behind);
        let start = self.pass(behind - self.passed);
        let end = self.pass(count);
        OutputRun {
            frame: self.frame.clone(),
            at: start..end,
            count,
        }
    }

    /// Passes outputs; returns where in the frame the next one begins.
    fn pass(&mut self, count: u32) -> usize {
        self.left.by_ref().take(count as usize).for_each(drop);
        self.passed += count;
        let at = self.left.bytes().as_ptr() as usize - self.frame.as_ptr() as usize;
        assert!(at <= self.frame.len());
        at
    }
}

impl std::fmt::Debug for OutputRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutputRun({})", self.count)
    }
}

/// Where answers to batches go.
///
/// Called on the client's network task, once a received frame: it should do little more than hand them on.
pub trait AnswerSink: Send + Sync + 'static {
    /// Takes answers. What is left in `answers` is dropped. If this panics all of them are lost, and later
    /// ones come nevertheless.
    fn answered(&self, answers: &mut Vec<Answer>);
}

/// To whom the answers of a batch go.
pub(super) enum Reply {
    Sink,
    /// There is one proposal, and somebody waits for it.
    Future(std::sync::Mutex<Option<oneshot::Sender<FutureAnswer>>>),
}

/// What [`super::Client::propose`] gets.
pub(super) type FutureAnswer = Result<Applied, (Known, Code)>;

/// What is known of a proposal without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Never,
    MayYet,
}

/// Part of a batch on its way.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) whole: Arc<Whole>,
    /// The first proposal of this part within the batch.
    pub(super) first: u32,
    pub(super) count: u32,
    /// How often it was refused and tried again.
    pub(super) attempts: u32,
    /// Why, the last time.
    pub(super) refused: Option<Code>,
}

/// A batch and to whom its answers go.
pub(super) struct Whole {
    batch: Batch,
    pub(super) reply: Reply,
}

impl Part {
    pub(super) fn whole(batch: Batch, reply: Reply) -> Self {
        let count = u32::try_from(batch.len()).expect("checked when the batch was made");
        Self {
            whole: Arc::new(Whole { batch, reply }),
            first: 0,
            count,
            attempts: 0,
            refused: None,
        }
    }

    pub(super) fn token(&self) -> u64 {
        self.whole.batch.token
    }

    pub(super) fn group(&self) -> GroupId {
        self.whole.batch.group
    }

    pub(super) fn deadline(&self) -> Instant {
        self.whole.batch.deadline
    }

    /// Takes the first `count` proposals off the front.
    pub(super) fn split_front(&mut self, count: u32) -> Self {
        assert!(count <= self.count);
        let front = Self {
            count,
            ..self.clone()
        };
        self.first += count;
        self.count -= count;
        front
    }

    /// Bytes of its payloads.
    pub(super) fn payload_bytes(&self) -> usize {
        self.end(self.first + self.count) - self.end(self.first)
    }

    /// Each payload.
    pub(super) fn payloads(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        let ends = &self.whole.batch.ends[self.first as usize..][..self.count as usize];
        let mut from = self.end(self.first);
        ends.iter().map(move |end| {
            let payload = &self.whole.batch.bytes[from..*end as usize];
            from = *end as usize;
            payload
        })
    }

    /// Where the proposals before `first` end.
    fn end(&self, first: u32) -> usize {
        first
            .checked_sub(1)
            .map_or(0, |last| self.whole.batch.ends[last as usize] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_checked_when_it_is_made() {
        let now = Instant::now();
        let make = |bytes: &'static [u8], ends: &[u32]| {
            Batch::new(1, GroupId(1), now, Bytes::from_static(bytes), ends)
        };
        assert_eq!(make(b"abc", &[1, 1, 3]).unwrap().len(), 3);
        assert_eq!(make(b"", &[]).unwrap_err(), BatchError::Empty);
        assert_eq!(make(b"abc", &[1, 2]).unwrap_err(), BatchError::Ends);
        assert_eq!(make(b"abc", &[4]).unwrap_err(), BatchError::Ends);
        assert_eq!(make(b"abc", &[2, 1, 3]).unwrap_err(), BatchError::Ends);
        let large = vec![0; ENTRY_PAYLOAD_BYTES_MAX + 1];
        let error = Batch::of(1, GroupId(1), now, [&large[..]]).unwrap_err();
        assert_eq!(error, BatchError::TooLarge { bytes: large.len() });
    }

    #[test]
    fn a_part_knows_its_payloads() {
        let proposals: [&[u8]; 4] = [b"a", b"", b"bcd", b"ef"];
        let batch = Batch::of(1, GroupId(1), Instant::now(), proposals).unwrap();
        let mut part = Part::whole(batch, Reply::Sink);
        assert_eq!(part.payload_bytes(), 6);
        let front = part.split_front(2);
        assert_eq!(front.payloads().collect::<Vec<_>>(), proposals[..2]);
        assert_eq!(part.payloads().collect::<Vec<_>>(), proposals[2..]);
        assert_eq!((front.payload_bytes(), part.payload_bytes()), (1, 5));
    }
}
