//! The first fact of a group: who its first voters are.
//!
//! An empty directory must never pass for an old voter that merely lost its log: it would vote against
//! entries that it helped to commit. So a group begins with a genesis that names the *incarnations* of its
//! voters, and a directory that is empty where a genesis exists is a stranger.

use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{Chain, ClusterId, GroupId, Index, LogPosition, Term};
use crate::limits::MEMBERS_MAX;
use crate::membership::{Member, Membership};
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// Which cluster and group this is, and who its first voters are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// The first voters, in the order of their numbers.
    pub voters: Vec<Member>,
}

impl Genesis {
    /// Where the group's log begins: index 0, term 0, and as its chain the hash of the genesis.
    #[must_use]
    pub fn origin(&self) -> LogPosition {
        let chain = Chain(xxh3_128(&self.to_bytes()));
        LogPosition {
            index: Index(0),
            term: Term(0),
            chain,
        }
    }

    /// The membership that the genesis states.
    #[must_use]
    pub fn membership(&self) -> Membership {
        Membership::of_voters(self.voters.clone())
    }
}

impl Encode for Genesis {
    fn encode(&self, out: &mut Writer<'_>) {
        self.cluster.encode(out);
        self.group.encode(out);
        out.list(&self.voters);
    }
}

impl Decode for Genesis {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            cluster: Decode::decode(input)?,
            group: Decode::decode(input)?,
            voters: input.list("voters", MEMBERS_MAX)?,
        })
    }
}
