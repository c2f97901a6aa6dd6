//! Every decoder of bytes that come from another machine, in one table.
//!
//! What is not in this table is not decoded. Tests and fuzzers go through it: none may panic, allocate
//! beyond its input, or accept what its encoder would not write.

use logdrive_raft::message::Message;
use logdrive_raft::wire::{Decode, DecodeError};

use crate::hello::Hello;
use crate::protocol::{ClientGreeting, Requests, Responses, ServerGreeting};

/// A decoder and its name.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// What it decodes.
    pub name: &'static str,
    /// Decodes all of the bytes, and forgets what they meant.
    pub decode: fn(&[u8]) -> Result<(), DecodeError>,
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder::of::<Hello>("hello"),
    Decoder::of::<Message>("message"),
    Decoder::of::<ClientGreeting>("client greeting"),
    Decoder::of::<ServerGreeting>("server greeting"),
    Decoder::of::<Requests>("requests"),
    Decoder::of::<Responses>("responses"),
];

impl Decoder {
    const fn of<T: Decode>(name: &'static str) -> Self {
        Self {
            name,
            decode: |bytes| T::from_bytes(bytes).map(drop),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use logdrive_raft::Membership;
    use logdrive_raft::wire::Encode;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// One encoding for each decoder and kind: what these bytes mean does not change.
    const GOLDEN: &str = include_str!("golden.txt");

    fn golden() -> impl Iterator<Item = (&'static str, &'static str)> {
        GOLDEN.lines().map(|line| line.split_once(": ").unwrap())
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().as_chunks::<2>().0;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        digits.iter().map(|pair| byte(pair).unwrap()).collect()
    }

    fn decoder(name: &str) -> &'static Decoder {
        DECODERS
            .iter()
            .find(|decoder| decoder.name == name)
            .unwrap()
    }

    #[test]
    fn every_decoder_reads_its_golden_bytes_and_nothing_shorter_or_longer() {
        for decoder in DECODERS {
            assert!(
                golden().any(|(name, _)| name == decoder.name),
                "{}",
                decoder.name
            );
        }
        for (name, text) in golden() {
            let bytes = unhex(text);
            (decoder(name).decode)(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            for end in 0..bytes.len() {
                // No responses at all are a frame of responses, too.
                if name != "responses" || end > 0 {
                    assert!(
                        (decoder(name).decode)(&bytes[..end]).is_err(),
                        "{name} cut at {end}"
                    );
                }
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(
                (decoder(name).decode)(&longer).is_err(),
                "{name} and a byte more"
            );
        }
    }

    #[test]
    fn golden_messages_are_what_is_written() {
        let golden = golden().filter(|(name, _)| *name == "message");
        let written: Vec<String> = messages().iter().map(|m| hex(&m.to_bytes())).collect();
        assert_eq!(
            written,
            golden.map(|(_, text)| text.to_string()).collect::<Vec<_>>()
        );
    }

    fn messages() -> Vec<Message> {
        use logdrive_raft::entry::EntryBuilder;
        use logdrive_raft::io::Guard;
        use logdrive_raft::message::{
            Ack, Append, Behind, Body, CommitPoint, GenesisQuery, GenesisReply, Heartbeat,
            HeartbeatReply, Offered, Part, Progress, Reject, Repair, SettleQuery, SettleReply,
            Transfer, VoteReply, VoteRequest, Wanted,
        };
        use logdrive_raft::{
            Boot, Chain, ClusterId, Genesis, GroupId, Incarnation, Index, LogPosition, Member,
            NodeId, Replica, ReplicationSession, Round, SnapshotId, Term,
        };
        let at = LogPosition {
            index: Index(0x21),
            term: Term(0x22),
            chain: Chain(0x23),
        };
        let session = ReplicationSession {
            boot: Boot(0x24),
            counter: 0x25,
        };
        let commit = CommitPoint {
            index: Index(0x26),
            chain: Chain(0x27),
        };
        let (last_index, round) = (Index(0x28), Round(0x29));
        let mut builder = EntryBuilder::with_room(2, 8);
        builder.push(b"ab");
        builder.push(b"c");
        let entry = builder
            .finish()
            .seal(GroupId(0x14), Term(0x15), Index(0x22), at.chain);
        let genesis = Genesis {
            cluster: ClusterId(0x2d),
            group: GroupId(0x14),
            voters: vec![Member {
                replica: Replica {
                    id: NodeId(0x2e),
                    incarnation: Incarnation(0x2f),
                },
                address: "h:1".to_owned(),
            }],
        };
        let guard = Guard {
            term: Term(0x39),
            index: Some(Index(0x3a)),
        };
        let genesis_membership = genesis.membership();
        let bodies = [
            Body::VoteRequest(VoteRequest {
                pre: true,
                last: at,
            }),
            Body::VoteReply(VoteReply {
                pre: false,
                granted: true,
            }),
            Body::Append(Append {
                session,
                prev: at,
                entries: vec![entry],
                commit,
                last_index,
                round,
                heard: None,
            }),
            Body::Ack(Ack {
                session,
                index: at.index,
                chain: at.chain,
                round,
            }),
            Body::Reject(Reject {
                session,
                prev_index: at.index,
                hint: at,
                round,
            }),
            Body::Heartbeat(Heartbeat {
                commit,
                last_index,
                round,
                heard: None,
            }),
            Body::HeartbeatReply(HeartbeatReply { round }),
            Body::GenesisQuery(GenesisQuery {
                question: 0x2a,
                voters: vec![NodeId(0x11), NodeId(0x16)],
            }),
            Body::GenesisReply(GenesisReply {
                question: 0x2b,
                genesis: None,
            }),
            Body::GenesisReply(GenesisReply {
                question: 0x2c,
                genesis: Some(genesis.clone()),
            }),
            Body::GenesisOffer(genesis),
            Body::Behind(Behind {
                session,
                base: at,
                round,
            }),
            Body::SettleQuery(SettleQuery { guard }),
            Body::SettleReply(SettleReply {
                whole: false,
                last: at,
                guard: Some(guard),
                configurations: vec![genesis_membership],
            }),
        ];
        let snapshot = SnapshotId(0x30);
        let part = Part::Chunk {
            file: 0x31,
            chunk: 0x32,
        };
        let transfers = [
            Transfer::Query { least: at.index },
            Transfer::Offer(None),
            Transfer::Offer(Some(Offered {
                snapshot,
                at,
                bytes: 0x33,
                manifest_bytes: 0x34,
            })),
            Transfer::Fetch {
                snapshot,
                part: Part::Manifest { offset: 0x35 },
            },
            Transfer::Part {
                snapshot,
                part,
                bytes: Bytes::from_static(b"part"),
            },
            Transfer::Gone { snapshot },
            Transfer::Progress(Progress {
                snapshot,
                at,
                bytes: 0x36,
                bytes_have: 0x37,
                bytes_per_s: 0x38,
            }),
        ];
        let wanted = Wanted {
            from: at.index,
            offset: 0x39,
            last: at,
        };
        let repairs = [
            Repair::Want(wanted),
            Repair::Have {
                wanted,
                bytes: Bytes::from_static(b"frames"),
            },
            Repair::Lacks { wanted, base: None },
            Repair::Lacks {
                wanted,
                base: Some(at),
            },
        ];
        let bodies = bodies.into_iter().chain(transfers.map(Body::Transfer));
        let bodies = bodies.chain(repairs.map(Body::Repair));
        let message = |body| Message {
            from: Replica {
                id: NodeId(0x11),
                incarnation: Incarnation(0x12),
            },
            boot: Boot(0x13),
            to: NodeId(0x16),
            group: GroupId(0x14),
            term: Term(0x15),
            body,
        };
        bodies.map(message).collect()
    }

    proptest! {
        #[test]
        fn no_decoder_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            for decoder in DECODERS {
                let _ = (decoder.decode)(&bytes);
            }
        }

        // What a changed byte makes of a message is refused, or is a message that is written like this.
        #[test]
        fn what_is_accepted_is_what_would_be_written(
            which: proptest::sample::Index, at: proptest::sample::Index, byte: u8,
        ) {
            let messages = messages();
            let mut bytes = which.get(&messages).to_bytes().to_vec();
            *at.get_mut(&mut bytes[..]) = byte;
            if let Ok(message) = Message::from_bytes(&bytes) {
                prop_assert_eq!(message.to_bytes(), bytes);
            }
        }

        #[test]
        fn messages_of_every_kind_round_trip(
            which: proptest::sample::Index, ids: [u64; 4], incarnation: u128, flags: [bool; 2],
            voters in proptest::collection::vec((any::<u64>(), any::<u128>(), "[!-~]{0,40}"), 0..31),
        ) {
            use logdrive_raft::message::{Body, Repair, Transfer};
            use logdrive_raft::{
                Boot, GroupId, Incarnation, Index, Member, NodeId, Replica, Round, SnapshotId, Term,
            };
            let mut message = which.get(&messages()).clone();
            let replica = |id, incarnation| Replica {
                id: NodeId(id),
                incarnation: Incarnation(incarnation),
            };
            message.from = replica(ids[0], incarnation);
            message.boot = Boot(ids[1]);
            message.to = NodeId(ids[2]);
            message.term = Term(ids[3]);
            let members = voters.iter().map(|(id, incarnation, address)| Member {
                replica: replica(*id, *incarnation),
                address: address.clone(),
            });
            match &mut message.body {
                Body::VoteRequest(body) => (body.pre, body.last.index) = (flags[0], Index(ids[0])),
                Body::VoteReply(body) => (body.pre, body.granted) = (flags[0], flags[1]),
                Body::Append(body) => (body.round, body.last_index) = (Round(ids[0]), Index(ids[1])),
                Body::Ack(body) => (body.round, body.index) = (Round(ids[0]), Index(ids[1])),
                Body::Reject(body) => (body.round, body.prev_index) = (Round(ids[0]), Index(ids[1])),
                Body::Heartbeat(body) => (body.round, body.last_index) = (Round(ids[0]), Index(ids[1])),
                Body::HeartbeatReply(body) => body.round = Round(ids[0]),
                Body::GenesisQuery(body) => {
                    body.question = ids[0];
                    body.voters = voters.iter().map(|(id, ..)| NodeId(*id)).collect();
                }
                Body::GenesisReply(body) => {
                    body.question = ids[0];
                    if let Some(genesis) = &mut body.genesis {
                        genesis.voters = members.collect();
                    }
                }
                Body::GenesisOffer(genesis) => {
                    genesis.group = GroupId(ids[0]);
                    genesis.voters = members.collect();
                }
                Body::Behind(body) => (body.round, body.base.index) = (Round(ids[0]), Index(ids[1])),
                Body::SettleQuery(body) => {
                    body.guard.index = flags[0].then_some(Index(ids[0]));
                }
                Body::SettleReply(body) => {
                    (body.whole, body.last.index) = (flags[0], Index(ids[0]));
                    body.configurations = vec![Membership::of_voters(members.collect())];
                }
                Body::Transfer(Transfer::Part { bytes, snapshot, .. }) => {
                    *snapshot = SnapshotId(incarnation);
                    *bytes = Bytes::from(ids.map(|id| id as u8).to_vec());
                }
                Body::Transfer(Transfer::Progress(progress)) => {
                    (progress.bytes, progress.bytes_have) = (ids[0], ids[1]);
                }
                Body::Repair(Repair::Have { bytes, wanted }) => {
                    wanted.from = Index(ids[0]);
                    *bytes = Bytes::from(ids.map(|id| id as u8).to_vec());
                }
                Body::Transfer(_) | Body::Repair(_) => {}
            }
            prop_assert_eq!(Message::from_bytes(&message.to_bytes()).unwrap(), message);
        }
    }
}
