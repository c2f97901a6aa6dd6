//! Operations of one client and group that the target turned away without appending them.
//!
//! After a pause a few of them try the door. If it is open the others follow at once. While a leader is
//! being elected this costs a handful of messages, not the whole backlog again and again.

use std::collections::VecDeque;

use bytes::Bytes;

use super::batch::{Batch, Sent};

/// What waits in front of a shut door, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    waiting: VecDeque<(Sent, Bytes)>,
    attempts: u32,
    not_before_ns: u64,
    code: &'static str,
    /// The batch that tries the door now.
    pub(super) probing: Option<u64>,
}

impl Held {
    /// Some that were turned away come back; they were sent before all that wait.
    pub(super) fn turned_away(
        &mut self,
        turned_away: Vec<(Sent, Bytes)>,
        code: &'static str,
        now_ns: u64,
    ) {
        for operation in turned_away.into_iter().rev() {
            self.waiting.push_front(operation);
        }
        self.code = code;
        if self.not_before_ns <= now_ns {
            let pause_ns = PAUSE_NS_MIN << self.attempts.min(8);
            self.not_before_ns = now_ns + pause_ns.min(PAUSE_NS_MAX);
            self.attempts += 1;
        }
        self.probing = None;
    }

    /// Later operations of the same client and group line up.
    pub(super) fn push_back(&mut self, batch: Batch) {
        self.waiting.extend(batch.into_operations());
    }

    /// The door is open: everybody may go.
    pub(super) fn opened(&mut self) {
        self.probing = None;
        self.attempts = 0;
        self.not_before_ns = 0;
    }

    /// Operations whose time is over, with the reason they were turned away for.
    pub(super) fn take_expired(&mut self, now_ns: u64) -> Vec<((Sent, Bytes), &'static str)> {
        let mut expired = Vec::new();
        while let Some((sent, _)) = self.waiting.front()
            && sent.deadline_ns <= now_ns
        {
            expired.extend(self.waiting.pop_front().map(|first| (first, self.code)));
        }
        expired
    }

    /// The next ones to go: a few while the door is tried, many once it is open.
    pub(super) fn take_probe(&mut self, now_ns: u64) -> Option<Batch> {
        if self.probing.is_some() || now_ns < self.not_before_ns || self.waiting.is_empty() {
            return None;
        }
        let count = if self.attempts == 0 {
            OPEN_BATCH
        } else {
            PROBE_BATCH
        };
        let count = count.min(self.waiting.len());
        let mut batch = Batch::new(u64::MAX);
        for (sent, command) in self.waiting.drain(..count) {
            batch.buffer().extend_from_slice(&command);
            batch.push(sent);
        }
        Some(batch)
    }

    /// Nobody waits and nobody tries the door.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.probing.is_none()
    }

    pub(super) fn next_ns(&self) -> u64 {
        let expiry_ns = self
            .waiting
            .front()
            .map_or(u64::MAX, |(sent, _)| sent.deadline_ns);
        if self.probing.is_some() {
            expiry_ns
        } else {
            expiry_ns.min(self.not_before_ns)
        }
    }
}

const PROBE_BATCH: usize = 16;
const OPEN_BATCH: usize = 1024;

const PAUSE_NS_MIN: u64 = 1_000_000;
const PAUSE_NS_MAX: u64 = 20_000_000;
