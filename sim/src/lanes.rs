//! What is on its way between two nodes, bounded in bytes as the lanes of a real connection are.
//!
//! An append that does not fit is not taken, nor is anything of its stream that comes after it: the sender hears
//! that the lane is full, and once half of it is free that there is room. Control and acks have lanes of their
//! own, which are never full here.

use std::collections::BTreeMap;

use logdrive_raft::message::{Append, Body};
use logdrive_raft::{Entry, GroupId, Index, Message, NodeId, ReplicationSession};
use logdrive_shard::PeerInput;

/// The append lanes between all nodes.
#[derive(Debug)]
pub(crate) struct Lanes {
    bytes_max: usize,
    lanes: BTreeMap<(NodeId, NodeId), Lane>,
    /// How many connections there were. What is on its way over an earlier one fills no later one.
    connections: u64,
}

/// The part of a lane that a message on its way fills.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    connection: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Lane {
    connection: u64,
    bytes: usize,
    /// So much was not taken, the largest of it, and the sender has not heard since that there is room.
    refused: Option<usize>,
    streams: BTreeMap<GroupId, Stream>,
}

/// The appends of a group.
#[derive(Debug)]
struct Stream {
    session: ReplicationSession,
    /// What comes after this index was not taken: only what continues from here or before is.
    gap: Option<Index>,
    /// The last entry of an append that was taken: a gap is never before it.
    taken: Index,
}

impl Lanes {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            lanes: BTreeMap::new(),
            connections: 0,
        }
    }

    /// Puts a message on its way. If it is not taken: of which session, and its first entry.
    pub(crate) fn take(
        &mut self,
        message: &Message,
    ) -> Result<Option<Share>, (ReplicationSession, Index)> {
        let Body::Append(append) = &message.body else {
            return Ok(None);
        };
        let bytes = message.cost_bytes();
        let fits = self.fits(message.from.id, message.to, bytes);
        let lane = self.lane(message.from.id, message.to);
        if lane.stream(message.group, append).takes(append, fits) {
            lane.bytes += bytes;
            let connection = lane.connection;
            return Ok(Some(Share { connection, bytes }));
        }
        lane.refused = lane.refused.max(Some(bytes));
        Err((append.session, append.prev.index.next()))
    }

    /// A message has left its lane, wherever to.
    pub(crate) fn leave(&mut self, from: NodeId, to: NodeId, share: Share) {
        let lane = self.lane(from, to);
        if lane.connection == share.connection {
            lane.bytes -= share.bytes;
        }
    }

    /// What the sender has to hear if there is room again for what was not taken.
    pub(crate) fn room(&mut self, from: NodeId, to: NodeId) -> Option<PeerInput> {
        let half = self.bytes_max / 2;
        let wanted = self.lane(from, to).refused?;
        let fits = self.fits(from, to, wanted);
        let lane = self.lane(from, to);
        if lane.bytes > 0 && (lane.bytes > half || !fits) {
            return None;
        }
        lane.refused = None;
        Some(PeerInput::LaneRoom(to))
    }

    /// The connection is gone, with what was on its way over it.
    pub(crate) fn disconnect(&mut self, from: NodeId, to: NodeId) {
        self.lanes.remove(&(from, to));
    }

    fn fits(&mut self, from: NodeId, to: NodeId, bytes: usize) -> bool {
        let held = self.lane(from, to).bytes;
        held == 0 || held + bytes <= self.bytes_max
    }

    fn lane(&mut self, from: NodeId, to: NodeId) -> &mut Lane {
        self.lanes.entry((from, to)).or_insert_with(|| {
            self.connections += 1;
            Lane {
                connection: self.connections,
                bytes: 0,
                refused: None,
                streams: BTreeMap::new(),
            }
        })
    }
}

impl Lane {
    /// The stream that this append belongs to. A session that is new to it begins without a gap.
    fn stream(&mut self, group: GroupId, append: &Append) -> &mut Stream {
        let begun = || Stream {
            session: append.session,
            gap: None,
            taken: Index(0),
        };
        let stream = self.streams.entry(group).or_insert_with(begun);
        if stream.session != append.session {
            *stream = begun();
        }
        stream
    }
}

impl Stream {
    fn takes(&mut self, append: &Append, fits: bool) -> bool {
        let after = append.prev.index;
        let continues = self.gap.is_none_or(|gap| after <= gap);
        if fits && continues {
            let last = append.entries.last().map_or(after, Entry::index);
            self.gap = None;
            self.taken = self.taken.max(last);
            return true;
        }
        if continues {
            self.gap = Some(after.max(self.taken));
        }
        false
    }
}
