//! Who belongs to a group, and what a quorum of them is.

use crate::ids::{NodeId, Replica};
use crate::limits::{ADDRESS_BYTES_MAX, MEMBERS_MAX};
use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// One member: who it is and where it listens for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Number and life of the directory.
    pub replica: Replica,
    /// Where its peers reach it. A hint for transports; consensus never looks at it.
    pub address: String,
}

impl Encode for Member {
    fn encode(&self, out: &mut Writer<'_>) {
        self.replica.encode(out);
        out.bytes(self.address.as_bytes());
    }
}

impl Decode for Member {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let replica = Replica::decode(input)?;
        let address = input.bytes("member address", ADDRESS_BYTES_MAX)?;
        let address = std::str::from_utf8(address).map_err(|_| DecodeError::Invalid {
            what: "member address",
            value: 0,
        })?;
        Ok(Self {
            replica,
            address: address.to_owned(),
        })
    }
}

/// The membership of a group, effective from the moment its entry is appended (thesis §4.1).
///
/// While `outgoing` is not empty the configuration is joint: decisions need a quorum of `voters` and one of
/// `outgoing` (Raft §6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Who votes.
    pub voters: Vec<Member>,
    /// Who also votes while a change is under way.
    pub outgoing: Vec<Member>,
    /// Who receives entries and does not count.
    pub learners: Vec<Member>,
    /// Who must not come back: incarnations that were removed.
    pub removed: Vec<Replica>,
}

impl Membership {
    /// A group of voters, with no change under way.
    #[must_use]
    pub fn of_voters(voters: Vec<Member>) -> Self {
        Self {
            voters,
            ..Self::default()
        }
    }

    /// About how many bytes it takes in queues.
    pub(crate) fn cost_bytes(&self) -> usize {
        let everybody = self
            .voters
            .iter()
            .chain(&self.outgoing)
            .chain(&self.learners);
        let members = everybody.map(|member| size_of::<Member>() + member.address.len());
        size_of::<Self>() + members.sum::<usize>() + self.removed.len() * size_of::<Replica>()
    }

    /// Whether `replica` votes, in either half of a joint configuration.
    #[must_use]
    pub fn is_voter(&self, replica: Replica) -> bool {
        self.voters
            .iter()
            .chain(&self.outgoing)
            .any(|member| member.replica == replica)
    }

    /// Everybody who receives entries, each once, in the order of their numbers.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        let everybody = self
            .voters
            .iter()
            .chain(&self.outgoing)
            .chain(&self.learners);
        let mut replicas: Vec<Replica> = everybody.map(|member| member.replica).collect();
        replicas.sort_unstable();
        replicas.dedup();
        replicas
    }

    /// The member with this number, if there is one.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        let mut everybody = self
            .voters
            .iter()
            .chain(&self.outgoing)
            .chain(&self.learners);
        everybody.find(|member| member.replica.id == id)
    }
}

impl Encode for Membership {
    fn encode(&self, out: &mut Writer<'_>) {
        out.list(&self.voters);
        out.list(&self.outgoing);
        out.list(&self.learners);
        out.list(&self.removed);
    }
}

impl Decode for Membership {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            voters: input.list("voters", MEMBERS_MAX)?,
            outgoing: input.list("outgoing voters", MEMBERS_MAX)?,
            learners: input.list("learners", MEMBERS_MAX)?,
            removed: input.list("removed replicas", 1 << 12)?,
        })
    }
}
