//! What the network holds, counted by owner, for whoever adds up what a node holds.
//!
//! Every buffer of this crate is one of these counts or, inside QUIC, one of the windows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use logdrive_raft::NodeId;

/// What a peer network holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerMemory {
    /// Bytes of messages that wait to be sent, a peer. Their frames are shared with whoever made them.
    pub send_queues: Vec<(NodeId, usize)>,
    /// The most bytes that wait for one peer. With nothing waiting, one message may be larger.
    pub send_queue_bytes_max: usize,
    /// Bytes of messages that have come and have not been released.
    pub received_bytes: usize,
    /// The most of them; of appends one may be larger, if it is alone.
    pub received_bytes_max: usize,
    /// Bytes of messages that are being put together, on all streams.
    pub reading_bytes: usize,
    /// The most of them, a stream.
    pub reading_bytes_max: usize,
    /// The most bytes that QUIC itself keeps for one peer: sent and not acknowledged, and come and not
    /// read.
    pub window_bytes_max: usize,
}

/// What a client port holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientMemory {
    /// How many clients are connected.
    pub connections: usize,
    /// Bytes of requests that wait to be taken out, of all clients.
    pub requests_bytes: usize,
    /// The most of them; one request may be larger, if it is alone.
    pub requests_bytes_max: usize,
    /// Bytes of answers that wait to be sent or are being sent, of all clients.
    pub responses_bytes: usize,
    /// While so many wait for one client, no more of its requests are read.
    pub responses_bytes_max: usize,
    /// Bytes of requests that are being put together, or wait for room, of all clients.
    pub reading_bytes: usize,
    /// The most of them, a client.
    pub reading_bytes_max: usize,
    /// The most bytes that QUIC itself keeps for one client, both ways.
    pub window_bytes_max: usize,
}

/// Bytes that several holders hold together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<AtomicUsize>);

/// One holder's part of a [`Tally`]. Holds nothing once it is dropped.
#[derive(Debug)]
pub(crate) struct Holding {
    tally: Tally,
    bytes: usize,
}

impl Tally {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A holder that holds nothing yet.
    pub(crate) fn holder(&self) -> Holding {
        let tally = self.clone();
        Holding { tally, bytes: 0 }
    }
}

impl Holding {
    /// So much is held now.
    pub(crate) fn set(&mut self, bytes: usize) {
        if self.bytes < bytes {
            let more = bytes - self.bytes;
            self.tally.0.fetch_add(more, Ordering::Relaxed);
        } else if bytes < self.bytes {
            let less = self.bytes - bytes;
            self.tally.0.fetch_sub(less, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_together_is_the_sum_of_what_each_holds() {
        let tally = Tally::default();
        let (mut one, mut other) = (tally.holder(), tally.holder());
        one.set(7);
        other.set(5);
        assert_eq!(tally.bytes(), 12);
        one.set(2);
        assert_eq!(tally.bytes(), 7);
        drop(other);
        assert_eq!(tally.bytes(), 2);
        drop(one);
        assert_eq!(tally.bytes(), 0);
    }
}
