//! The names of things: replicas, groups, terms, positions in a log.
//!
//! Each is a type of its own, so that a term cannot be passed where an index is meant.

use std::fmt;

use crate::wire::{Decode, DecodeError, Encode, Reader, Writer};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Writer<'_>) {
                self.0.encode(out);
            }
        }

        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(Decode::decode(input)?))
            }
        }
    };
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Writer<'_>) {
                self.0.encode(out);
            }
        }

        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(Decode::decode(input)?))
            }
        }
    };
}

number! {
    /// The number an operator gives a replica. Never 0.
    NodeId(u64)
}
number! {
    /// A Raft group. A group id is never used twice.
    GroupId(u64)
}
number! {
    /// A Raft term (Raft §5.1). 0 is before the first election.
    Term(u64)
}
number! {
    /// The place of an entry in a group's log. The first entry has index 1.
    Index(u64)
}
number! {
    /// How often a directory has been opened: +1, durable, at each opening.
    Boot(u64)
}
number! {
    /// A round of heartbeats or appends, numbered by the leader within its term. Answers echo it, so
    /// that a leader can tell which of its sends an answer follows (thesis §6.4).
    Round(u64)
}
random_id! {
    /// Which cluster: a hash of its name, in every header and hello.
    ClusterId
}
random_id! {
    /// Which life of a replica's directory: random, one a directory, for life. A wiped disk comes back
    /// with another one, and so as a stranger.
    Incarnation
}
random_id! {
    /// A hash over every entry up to here: xxh3-128 of the previous chain and this entry's header.
    Chain
}

random_id! {
    /// Which snapshot: a hash of its manifest, and so of its contents, its place in the log and who took it.
    SnapshotId
}

impl ClusterId {
    /// The cluster with this name: what configurations and certificates spell out is short on the wire.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
    }
}

impl Index {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; `None` for 0.
    #[must_use]
    pub fn prev(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A replica as consensus counts it: the operator's number and the life of its directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// The operator's number.
    pub id: NodeId,
    /// The life of its directory.
    pub incarnation: Incarnation,
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08x}", self.id, self.incarnation.0 >> 96)
    }
}

impl Encode for Replica {
    fn encode(&self, out: &mut Writer<'_>) {
        self.id.encode(out);
        self.incarnation.encode(out);
    }
}

impl Decode for Replica {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: Decode::decode(input)?,
            incarnation: Decode::decode(input)?,
        })
    }
}

/// One append stream of a peer and group. A later one compares higher: the sender's boot first, then a
/// counter within that boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicationSession {
    /// The boot of the leader that opened it.
    pub boot: Boot,
    /// Which one within that boot.
    pub counter: u64,
}

impl fmt::Display for ReplicationSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.boot, self.counter)
    }
}

impl Encode for ReplicationSession {
    fn encode(&self, out: &mut Writer<'_>) {
        self.boot.encode(out);
        self.counter.encode(out);
    }
}

impl Decode for ReplicationSession {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            boot: Decode::decode(input)?,
            counter: Decode::decode(input)?,
        })
    }
}

/// A place in a log together with the proof of what lies there.
///
/// Two logs that agree on the chain at an index agree on everything up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogPosition {
    /// The index of the entry.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The chain through it.
    pub chain: Chain,
}

impl LogPosition {
    /// Whether a log that ends here is at least as up to date as one that ends at `other`: the last
    /// term decides, then the last index (Raft §5.4.1).
    #[must_use]
    pub fn at_least_as_up_to_date_as(&self, other: &LogPosition) -> bool {
        (self.term, self.index) >= (other.term, other.index)
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

impl Encode for LogPosition {
    fn encode(&self, out: &mut Writer<'_>) {
        self.index.encode(out);
        self.term.encode(out);
        self.chain.encode(out);
    }
}

impl Decode for LogPosition {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            index: Decode::decode(input)?,
            term: Decode::decode(input)?,
            chain: Decode::decode(input)?,
        })
    }
}

/// A moment on the clock of whoever drives the core, in microseconds since some fixed origin of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// This moment and `us` microseconds more.
    #[must_use]
    pub fn after(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// The microseconds from `earlier` to this moment; 0 if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Micros) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
