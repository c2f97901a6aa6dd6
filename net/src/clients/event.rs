//! What comes from clients.

use logdrive_raft::GroupId;

use crate::identity::Identity;
use crate::protocol::ProposeBatch;
use crate::responses::ResponseQueue;

/// A connection of a client, numbered anew in each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Something from a client.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// A client has come.
    Opened {
        /// Its connection.
        connection: ConnectionId,
        /// Who it is.
        identity: Identity,
    },
    /// A client proposes.
    Propose {
        /// Its connection.
        connection: ConnectionId,
        /// The way back. Every id of the batch has to be answered exactly once.
        responses: ResponseQueue,
        /// What it proposes.
        batch: ProposeBatch,
    },
    /// A client asks for the node's status.
    Status {
        /// Its connection.
        connection: ConnectionId,
        /// The way back.
        responses: ResponseQueue,
        /// Under which number.
        id: u64,
    },
    /// An admin asks for a snapshot of a group, taken now.
    Snapshot {
        /// Its connection.
        connection: ConnectionId,
        /// The way back.
        responses: ResponseQueue,
        /// Under which number.
        id: u64,
        /// Of which group.
        group: GroupId,
    },
    /// A client has gone. Its answers go nowhere.
    Closed {
        /// Its connection.
        connection: ConnectionId,
    },
}

impl ClientEvent {
    /// About how many bytes it takes while it waits.
    pub(super) fn cost_bytes(&self) -> usize {
        match self {
            Self::Propose { batch, .. } => batch.cost_bytes(),
            Self::Opened { .. }
            | Self::Status { .. }
            | Self::Snapshot { .. }
            | Self::Closed { .. } => 0,
        }
    }
}
