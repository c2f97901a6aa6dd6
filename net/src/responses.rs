//! Where answers to one client's requests are put, by any thread.
//!
//! They come from the thread that applies, many at a time, while the connection lives on the shard's
//! thread. So they are encoded where they are made, into a buffer that the connection takes as a whole, and
//! one wake-up is paid a batch and not an answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use logdrive_raft::{Index, NodeId};
use tokio::sync::Notify;

use crate::protocol::{Code, ResponseEncoder};

/// The way back to one connection. Cloning it is cheap, and it may outlive the connection.
#[derive(Clone, Debug)]
pub struct ResponseQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The most bytes of answers that wait.
    bytes_max: usize,
    state: Mutex<State>,
    /// For the task that writes.
    changed: Notify,
    /// For the task that reads, which waits while too much is unanswered.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    encoder: ResponseEncoder,
    /// Requests read and not yet answered.
    unanswered: usize,
    /// Bytes that were taken out and are being written.
    writing_bytes: usize,
    /// Nobody will write any more.
    closed: bool,
    /// What is there is to be written, and nothing after it.
    finishing: bool,
}

/// What there is to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextResponses {
    /// Whole frames.
    Frames(Bytes),
    /// Everything has been written, and nothing follows.
    Finished,
}

/// Answers being put in. The connection is woken once, when this is dropped.
#[derive(Debug)]
pub struct ResponseBatch<'a> {
    state: MutexGuard<'a, State>,
    inner: &'a Inner,
    was_empty: bool,
}

impl ResponseQueue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Inner {
            bytes_max,
            state: Mutex::default(),
            changed: Notify::new(),
            room: Notify::new(),
        }))
    }

    /// Begins to put answers in. Others wait until the batch is dropped.
    #[must_use]
    pub fn batch(&self) -> ResponseBatch<'_> {
        let state = self.0.lock();
        let was_empty = state.encoder.len() == 0;
        ResponseBatch {
            state,
            inner: &self.0,
            was_empty,
        }
    }

    /// Whether the connection is gone, and answers with it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// Requests that were read and not yet answered.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.0.lock().unanswered
    }

    /// Bytes of answers that wait to be written or are being written.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.0.lock().waiting_bytes()
    }

    /// Waits until fewer than `unanswered_max` requests wait for an answer and fewer than `bytes_max` bytes
    /// of answers for the client, then counts `requests` more.
    pub(crate) async fn admit(&self, requests: usize, unanswered_max: usize, bytes_max: usize) {
        loop {
            let room = self.0.room.notified();
            {
                let mut state = self.0.lock();
                if state.unanswered < unanswered_max && state.waiting_bytes() < bytes_max {
                    state.unanswered += requests;
                    return;
                }
            }
            room.await;
        }
    }

    /// Waits for answers to write.
    pub(crate) async fn next(&self) -> NextResponses {
        loop {
            let changed = self.0.changed.notified();
            {
                let mut state = self.0.lock();
                if state.encoder.len() != 0 {
                    let bytes = state.encoder.take();
                    state.writing_bytes = bytes.len();
                    return NextResponses::Frames(bytes);
                }
                if state.finishing {
                    return NextResponses::Finished;
                }
            }
            changed.await;
        }
    }

    /// Lets what is there be written, and nothing after it.
    pub(crate) fn finish(&self) {
        self.0.lock().finishing = true;
        self.0.changed.notify_one();
    }

    /// What was taken out has been written.
    pub(crate) fn written(&self) {
        self.0.lock().writing_bytes = 0;
        self.0.room.notify_one();
    }

    /// Nothing will be written any more.
    pub(crate) fn close(&self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.encoder = ResponseEncoder::default();
    }
}

impl State {
    fn waiting_bytes(&self) -> usize {
        self.encoder.len() + self.writing_bytes
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while putting an answer in left at worst one answer unfinished, which the client's
        // decoder refuses.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResponseBatch<'_> {
    /// A proposal was applied.
    pub fn applied(&mut self, id: u64, index: Index, slot: u32, output: &[u8]) {
        if !self.answers(1) {
            return;
        }
        if self.state.waiting_bytes() + output.len() > self.inner.bytes_max {
            // Nobody may wait here for this client to read: who applies answers others, too.
            self.state.encoder.may_yet_commit(id, 1, Code::ANSWERS_FULL);
        } else {
            self.state.encoder.applied(id, index, slot, output);
        }
    }

    /// Requests, `count` of them from `first_id` on, were not appended and will not be.
    pub fn never_appended(
        &mut self,
        first_id: u64,
        count: u32,
        code: Code,
        retry_after_ms: u32,
        hint: Option<(NodeId, &str)>,
    ) {
        if self.answers(count) {
            self.state
                .encoder
                .never_appended(first_id, count, code, retry_after_ms, hint);
        }
    }

    /// Requests, `count` of them from `first_id` on, may have been appended.
    pub fn may_yet_commit(&mut self, first_id: u64, count: u32, code: Code) {
        if self.answers(count) {
            self.state.encoder.may_yet_commit(first_id, count, code);
        }
    }

    /// What was asked for, as JSON: the node's status, or how a snapshot ended.
    pub fn json(&mut self, id: u64, json: &[u8]) {
        if !self.answers(1) {
            return;
        }
        if self.state.waiting_bytes() + json.len() > self.inner.bytes_max {
            self.state.encoder.may_yet_commit(id, 1, Code::ANSWERS_FULL);
        } else {
            self.state.encoder.json(id, json);
        }
    }

    /// Counts answers; false if nobody will read them.
    fn answers(&mut self, count: u32) -> bool {
        self.state.unanswered = self.state.unanswered.saturating_sub(count as usize);
        count > 0 && !self.state.closed
    }
}

impl Drop for ResponseBatch<'_> {
    fn drop(&mut self) {
        // Whoever writes takes everything that is there, so only the first batch has to wake it.
        if self.was_empty {
            self.inner.changed.notify_one();
        }
        self.inner.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use logdrive_raft::wire::Reader;

    use super::*;
    use crate::protocol::{Response, next_response};

    #[test]
    fn a_client_that_does_not_read_costs_bounded_memory_and_hears_of_every_request() {
        const BYTES_MAX: usize = 8 << 20;
        let queue = ResponseQueue::new(BYTES_MAX);
        let output = vec![0; 1 << 20];
        for id in 0..300 {
            queue.batch().applied(id, Index(1), 0, &output);
            assert!(queue.waiting_bytes() <= BYTES_MAX + 300 * 64);
        }
        let taken = queue.0.lock().encoder.take();
        let (mut applied, mut left_out) = (0, 0);
        let mut rest = &taken[..];
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let (frame, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
            let mut input = Reader::new(frame);
            while input.left() > 0 {
                match next_response(&mut input).unwrap() {
                    Response::Applied { outputs, .. } => applied += outputs.len(),
                    Response::MayYetCommit { count, code, .. } => {
                        assert_eq!(code, Code::ANSWERS_FULL);
                        left_out += count as usize;
                    }
                    other => panic!("{other:?}"),
                }
            }
            rest = behind;
        }
        assert_eq!((applied, left_out), (7, 293));
        // What is no proposal counts as well.
        for id in 300..600 {
            queue.batch().json(id, &output);
            assert!(queue.waiting_bytes() <= BYTES_MAX + 300 * 64);
        }
        drop(queue.0.lock().encoder.take());
        // Once it reads again it gets outputs again.
        queue.written();
        queue.batch().applied(600, Index(1), 0, &output);
        assert!(queue.waiting_bytes() > 1 << 20);
        queue.close();
        queue.batch().applied(1, Index(1), 0, b"");
        assert_eq!(queue.0.lock().encoder.len(), 0);
        assert!(queue.is_closed());
    }
}
