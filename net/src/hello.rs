//! The first message of every stream: who speaks, for which cluster, in which life, and what the stream is
//! for.
//!
//! ```text
//!   0  magic u32             "LDhi"
//!   4  protocol_min u16      the oldest protocol the sender speaks
//!   6  protocol_max u16      the newest
//!   8  incompatible u32      features the receiver must know
//!  12  compatible u32        features it may ignore
//!  16  cluster u128
//!  32  id u64                the sender, with its incarnation
//!  40  incarnation u128
//!  56  boot u64
//!  64  connection u64        which connection of that boot to this peer
//!  72  stream u8             1 control, 2 append, 3 ack, 4 welcome
//!  73  group u64             of an append stream, else 0
//!  81  term u64              likewise
//!  89  session boot u64      likewise
//!  97  session counter u64
//! 105  client u16, bytes     since protocol 2: where clients reach the sender; nothing in most hellos
//! ```
//!
//! The first 16 bytes stay what they are in every version, so that a build can tell a later one that it is
//! later. A later build may write more at the end; this one ignores it unless an incompatible feature says
//! that it must not. What a build writes that speaks protocol 1 alone ends at byte 105.

use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{Boot, ClusterId, GroupId, Replica, ReplicationSession, Term};

use crate::address::{decode_address, encode_address};

/// The oldest protocol this build speaks.
pub const PROTOCOL_MIN: u16 = 1;

/// The newest protocol this build speaks.
pub const PROTOCOL_MAX: u16 = 2;

/// Since this protocol a hello has room for the address of the client port.
const PROTOCOL_WITH_ADDRESS: u16 = 2;

/// The most bytes a hello takes, of this or any later version.
pub const HELLO_BYTES_MAX: usize = 1024;

/// Incompatible features that this build knows.
const INCOMPATIBLE_KNOWN: u32 = 0;

const MAGIC: u32 = u32::from_le_bytes(*b"LDhi");

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// Votes, heartbeats, genesis. The first stream of a connection.
    Control = 1,
    /// Appends of one group in one replication session.
    Append = 2,
    /// Acks and rejections.
    Ack = 3,
    /// The acceptor's answer: who it is. Nothing follows it.
    Welcome = 4,
    /// Parts of snapshots. Opened with the first.
    Snapshot = 5,
}

/// Who speaks on a stream, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest protocol the sender speaks.
    pub protocol_min: u16,
    /// The newest.
    pub protocol_max: u16,
    /// Features the receiver may ignore.
    pub compatible: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// The sender.
    pub replica: Replica,
    /// The boot in which it speaks.
    pub boot: Boot,
    /// Which of its connections of that boot. Later ones compare higher.
    pub connection: u64,
    /// What the stream carries.
    pub stream: StreamKind,
    /// The group of an append stream.
    pub group: GroupId,
    /// The term of an append stream.
    pub term: Term,
    /// The replication session of an append stream.
    pub session: ReplicationSession,
    /// Where clients reach the sender, as it sees it. Said in a welcome.
    pub client_address: Option<String>,
}

impl Hello {
    /// The newest protocol that both sides speak. The decoder has made sure that there is one.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.protocol_max.min(PROTOCOL_MAX)
    }

    /// The same sender with another stream.
    #[must_use]
    pub fn with_stream(&self, stream: StreamKind) -> Self {
        Self {
            stream,
            ..self.clone()
        }
    }

    /// Whether `other` comes from the same connection of the same life of the same replica.
    #[must_use]
    pub fn same_sender(&self, other: &Hello) -> bool {
        self.cluster == other.cluster
            && self.replica == other.replica
            && self.boot == other.boot
            && self.connection == other.connection
    }
}

impl Encode for Hello {
    fn encode(&self, out: &mut Writer<'_>) {
        MAGIC.encode(out);
        self.protocol_min.encode(out);
        self.protocol_max.encode(out);
        INCOMPATIBLE_KNOWN.encode(out);
        self.compatible.encode(out);
        self.cluster.encode(out);
        self.replica.encode(out);
        self.boot.encode(out);
        self.connection.encode(out);
        (self.stream as u8).encode(out);
        self.group.encode(out);
        self.term.encode(out);
        self.session.encode(out);
        if self.protocol_max >= PROTOCOL_WITH_ADDRESS {
            encode_address(self.client_address.as_deref().unwrap_or_default(), out);
        }
    }
}

impl Decode for Hello {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let magic = u32::decode(input)?;
        if magic != MAGIC {
            return Err(DecodeError::Invalid {
                what: "hello magic",
                value: u64::from(magic),
            });
        }
        let protocol_min = u16::decode(input)?;
        let protocol_max = u16::decode(input)?;
        let incompatible = u32::decode(input)?;
        let compatible = u32::decode(input)?;
        check_versions("hello", protocol_min, protocol_max, incompatible)?;
        let mut hello = Self {
            protocol_min,
            protocol_max,
            compatible,
            cluster: Decode::decode(input)?,
            replica: Decode::decode(input)?,
            boot: Decode::decode(input)?,
            connection: Decode::decode(input)?,
            stream: match u8::decode(input)? {
                1 => StreamKind::Control,
                2 => StreamKind::Append,
                3 => StreamKind::Ack,
                4 => StreamKind::Welcome,
                5 => StreamKind::Snapshot,
                other => {
                    return Err(DecodeError::Invalid {
                        what: "stream kind",
                        value: u64::from(other),
                    });
                }
            },
            group: Decode::decode(input)?,
            term: Decode::decode(input)?,
            session: Decode::decode(input)?,
            client_address: None,
        };
        if protocol_max >= PROTOCOL_WITH_ADDRESS {
            let address = decode_address(input)?;
            hello.client_address = Some(address).filter(|address| !address.is_empty());
        }
        if protocol_max > PROTOCOL_MAX {
            input.raw(input.left())?;
        }
        Ok(hello)
    }
}

/// Fails unless both sides speak some protocol in common and this one knows every feature it must.
pub(crate) fn check_versions(
    what: &'static str,
    protocol_min: u16,
    protocol_max: u16,
    incompatible: u32,
) -> Result<(), DecodeError> {
    if protocol_min == 0 || protocol_max < protocol_min {
        return Err(DecodeError::Invalid {
            what: "range of protocol versions",
            value: u64::from(protocol_min) << 16 | u64::from(protocol_max),
        });
    }
    const {
        assert!(
            PROTOCOL_MIN == 1,
            "then a peer can be too old, and must be told so"
        )
    };
    if protocol_min > PROTOCOL_MAX {
        return Err(DecodeError::Version {
            what,
            found: u32::from(protocol_min),
            known: u32::from(PROTOCOL_MAX),
        });
    }
    let unknown = incompatible & !INCOMPATIBLE_KNOWN;
    if unknown != 0 {
        return Err(DecodeError::Incompatible {
            what,
            found: unknown,
        });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use logdrive_raft::{Incarnation, NodeId};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn example() -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 2,
            compatible: 0,
            cluster: ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            replica: Replica {
                id: NodeId(3),
                incarnation: Incarnation(0x1112_1314_1516_1718_191a_1b1c_1d1e_1f20),
            },
            boot: Boot(7),
            connection: 9,
            stream: StreamKind::Append,
            group: GroupId(5),
            term: Term(11),
            session: ReplicationSession {
                boot: Boot(7),
                counter: 13,
            },
            client_address: Some("h:1".to_owned()),
        }
    }

    #[test]
    fn golden_bytes() {
        let golden = "4c44686901000200000000000000000010\
            0f0e0d0c0b0a0908070605040302010300000000000000201f1e1d1c1b1a191817161514131211\
            07000000000000000900000000000000020500000000000000\
            0b0000000000000007000000000000000d00000000000000";
        let hex = |hello: &Hello| crate::decoders::tests::hex(&hello.to_bytes());
        assert_eq!(hex(&example()), format!("{golden}0300683a31"));
        // As a build of protocol 1 writes it.
        let mut old = example();
        old.protocol_max = 1;
        old.client_address = None;
        assert_eq!(hex(&old), golden.replace("01000200", "01000100"));
        assert_eq!(old.to_bytes().len(), 105);
        assert_eq!(Hello::from_bytes(&old.to_bytes()).unwrap(), old);
    }

    #[test]
    fn a_hello_from_the_future_is_refused_by_naming_both_versions() {
        let mut bytes = example().to_bytes().to_vec();
        bytes[4..8].copy_from_slice(&[3, 0, 4, 0]);
        let error = Hello::from_bytes(&bytes).unwrap_err();
        let text = "hello has format version 3, this build reads up to 2: upgrade logdrive";
        assert_eq!(error.to_string(), text);
        // Even if nothing after the first 16 bytes is what this build expects.
        let error = Hello::from_bytes(&bytes[..16]).unwrap_err();
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_later_build_that_still_speaks_ours_is_understood() {
        let mut bytes = example().to_bytes().to_vec();
        bytes[6..8].copy_from_slice(&[3, 0]);
        bytes.extend_from_slice(b"what version 3 adds");
        let hello = Hello::from_bytes(&bytes).unwrap();
        assert_eq!(hello.protocol(), 2);
        assert_eq!(hello.client_address.as_deref(), Some("h:1"));
        assert_eq!(hello.session, example().session);
        // A feature that may be ignored is, one that may not is not.
        bytes[12] = 4;
        assert_eq!(Hello::from_bytes(&bytes).unwrap().compatible, 4);
        bytes[8] = 8;
        let error = Hello::from_bytes(&bytes).unwrap_err();
        assert!(
            matches!(error, DecodeError::Incompatible { found: 8, .. }),
            "{error}"
        );
        // Our own version has no more bytes than these.
        let mut bytes = example().to_bytes().to_vec();
        bytes.push(0);
        Hello::from_bytes(&bytes).unwrap_err();
    }

    proptest! {
        #[test]
        fn round_trip(
            ids: [u64; 7], wide: [u128; 2], compatible: u32, kind in 1_u8..=4,
            client_address in proptest::option::of("[!-~]{1,255}"),
        ) {
            let hello = Hello {
                compatible,
                cluster: ClusterId(wide[0]),
                replica: Replica { id: NodeId(ids[0]), incarnation: Incarnation(wide[1]) },
                boot: Boot(ids[1]),
                connection: ids[2],
                stream: [
                    StreamKind::Control, StreamKind::Append, StreamKind::Ack, StreamKind::Welcome,
                    StreamKind::Snapshot,
                ][usize::from(kind) - 1],
                group: GroupId(ids[3]),
                term: Term(ids[4]),
                session: ReplicationSession { boot: Boot(ids[5]), counter: ids[6] },
                client_address,
                ..example()
            };
            prop_assert_eq!(Hello::from_bytes(&hello.to_bytes()).unwrap(), hello);
        }
    }
}
