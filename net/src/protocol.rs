//! What clients and servers say to each other, on one bidirectional stream a connection.
//!
//! Both directions begin with a greeting and go on with frames, each a length (u32) and its bytes. A frame
//! carries many requests or responses: at a million a second neither side can afford more than a few dozen
//! nanoseconds for one. So nothing is allocated for a request or response; they are slices of the frame.
//!
//! ```text
//! greeting   0 magic u32              client "LDcl", server "LDsv"
//!            4 protocol_min u16, 6 protocol_max u16, 8 incompatible u32, 12 compatible u32
//!           16 cluster u128           0 from a client that does not know it
//!           32 node u64               of a client: its number
//!
//! proposals  0 kind u8 = 1
//!            1 first_id u64           proposals have consecutive ids from here on
//!            9 group u64
//!           17 deadline_ms u32        how long the client waits, counted from now
//!           21 count u32
//!           25 count lengths u32, then the payloads
//! status     0 kind u8 = 2
//!            1 id u64
//!
//! responses  any number of:
//!   applied  0 kind u8 = 1
//!            1 first_id u64           consecutive ids, in consecutive slots of one entry
//!            9 index u64, 17 first_slot u32, 21 count u32
//!           25 count times: length u32, output
//!   never    0 kind u8 = 2            appended neither now nor later
//!            1 first_id u64, 9 count u32, 13 code u16, 15 retry_after_ms u32
//!           19 hint u8                1: leader u64, length u16, address
//!   may yet  0 kind u8 = 3            may commit later, or has
//!            1 first_id u64, 9 count u32, 13 code u16
//!   status   0 kind u8 = 4
//!            1 id u64, 9 length u32, JSON
//! ```

mod code;
mod greeting;
mod requests;
mod response;

use bytes::{BufMut, BytesMut};
use logdrive_raft::limits::{ENTRY_PAYLOAD_BYTES_MAX, ENTRY_PROPOSALS_MAX};

pub use self::code::Code;
pub use self::greeting::{ClientGreeting, ServerGreeting};
use self::requests::PROPOSALS_HEAD_BYTES;
pub use self::requests::{ProposeBatch, Requests};
pub(crate) use self::requests::{put_proposals, put_snapshot_request, put_status_request};
pub use self::response::{LeaderHint, Outputs, Response, next_response};
pub(crate) use self::response::{ResponseEncoder, Responses};

/// The most bytes of a frame of requests.
pub const REQUEST_FRAME_BYTES_MAX: usize =
    PROPOSALS_HEAD_BYTES + 4 * FRAME_PROPOSALS_MAX + ENTRY_PAYLOAD_BYTES_MAX;

/// The most proposals in a frame.
pub const FRAME_PROPOSALS_MAX: usize = ENTRY_PROPOSALS_MAX;

/// The most bytes of what a state machine answers to one proposal.
pub const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// The most bytes of a frame of responses. One output of any size fits.
pub const RESPONSE_FRAME_BYTES_MAX: usize = OUTPUT_BYTES_MAX + (1 << 20);

/// Makes room for the length of a frame; returns where the frame begins.
pub(crate) fn begin_frame(out: &mut BytesMut) -> usize {
    out.put_u32_le(0);
    out.len()
}

/// Writes the length of the frame that began at `start`; returns it.
pub(crate) fn end_frame(out: &mut BytesMut, start: usize) -> usize {
    let bytes = out.len() - start;
    let length = u32::try_from(bytes).expect("frames are bounded far below 4 GiB");
    out[start - 4..start].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use logdrive_raft::wire::{Decode, Encode, Reader};
    use logdrive_raft::{ClusterId, GroupId, Index, NodeId};
    use proptest::prelude::*;

    use super::response::FRAME_BYTES_WANTED;
    use super::*;
    use crate::decoders::tests::hex;

    fn frame_of(out: &BytesMut) -> Bytes {
        let length = u32::from_le_bytes(out[..4].try_into().unwrap()) as usize;
        assert_eq!(out.len(), 4 + length);
        Bytes::copy_from_slice(&out[4..])
    }

    #[test]
    fn golden_bytes() {
        let greeting = ClientGreeting {
            compatible: 0,
            cluster: ClusterId(1),
            client: NodeId(2),
        };
        let head = "4c44636c01000200000000000000000001000000000000000000000000000000";
        assert_eq!(hex(&greeting.to_bytes()), format!("{head}0200000000000000"));
        let greeting = ServerGreeting {
            compatible: 0,
            cluster: ClusterId(1),
            node: NodeId(3),
        };
        let head = head.replace("4c44636c", "4c447376");
        assert_eq!(hex(&greeting.to_bytes()), format!("{head}0300000000000000"));

        let mut out = BytesMut::new();
        let payloads: [&[u8]; 2] = [b"ab", b"c"];
        put_proposals(&mut out, 5, GroupId(1), 250, payloads.into_iter());
        let proposals = "24000000010500000000000000010000000000000\
            0fa000000020000000200000001000000616263";
        assert_eq!(hex(&out), proposals);
        let mut out = BytesMut::new();
        put_status_request(&mut out, 7);
        assert_eq!(hex(&out), "09000000020700000000000000");
        let mut out = BytesMut::new();
        put_snapshot_request(&mut out, 8, GroupId(2));
        assert_eq!(hex(&out), "110000000308000000000000000200000000000000");

        let mut encoder = ResponseEncoder::default();
        encoder.applied(5, Index(9), 0, b"x");
        encoder.applied(6, Index(9), 1, b"");
        encoder.never_appended(7, 2, Code::NOT_LEADER, 3, Some((NodeId(2), "h:1")));
        encoder.never_appended(9, 1, Code::BUSY, 0, None);
        encoder.may_yet_commit(10, 1, Code::LEADERSHIP_LOST);
        encoder.json(11, b"{}");
        let responses = "75000000\
            01050000000000000009000000000000000000000002000000010000007800000000\
            02070000000000000002000000010003000000010200000000000000030\
            0683a31\
            0209000000000000000100000002000000000000\
            030a00000000000000010000000a00\
            040b00000000000000020000007b7d";
        assert_eq!(hex(&encoder.take()), responses);
    }

    #[test]
    fn a_greeting_from_the_future_is_refused_by_naming_both_versions() {
        let greeting = ServerGreeting {
            compatible: 0,
            cluster: ClusterId(1),
            node: NodeId(3),
        };
        let mut bytes = greeting.to_bytes().to_vec();
        bytes[4..8].copy_from_slice(&[9, 0, 9, 0]);
        let error = ServerGreeting::from_bytes(&bytes).unwrap_err();
        let text = "greeting has format version 9, this build reads up to 2: upgrade logdrive";
        assert_eq!(error.to_string(), text);
        bytes[4..8].copy_from_slice(&[1, 0, 9, 0]);
        bytes.extend_from_slice(b"more");
        assert_eq!(ServerGreeting::from_bytes(&bytes).unwrap(), greeting);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut out = BytesMut::new();
        let payloads: [&[u8]; 2] = [b"ab", b"c"];
        put_proposals(&mut out, 5, GroupId(1), 250, payloads.into_iter());
        let good = frame_of(&out).to_vec();
        Requests::from_bytes(&good).unwrap();
        for (at, bytes) in [
            (21, [0; 4]),
            (21, [255; 4]),
            (25, [3, 0, 0, 0]),
            (25, [255; 4]),
        ] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&bytes);
            Requests::from_bytes(&bad).unwrap_err();
        }
        for end in 0..good.len() {
            Requests::from_bytes(&good[..end]).unwrap_err();
        }
        let mut bad = good.clone();
        bad[1..9].copy_from_slice(&[255; 8]);
        Requests::from_bytes(&bad).unwrap_err();
    }

    #[test]
    fn large_outputs_are_cut_into_frames_that_fit() {
        let mut encoder = ResponseEncoder::default();
        let output = vec![7; 100_000];
        for id in 0..20 {
            encoder.applied(id, Index(1), u32::try_from(id).unwrap(), &output);
        }
        encoder.applied(20, Index(1), 20, &vec![1; OUTPUT_BYTES_MAX + 1]);
        let bytes = encoder.take();
        let mut rest = &bytes[..];
        let (mut ids, mut frames) = (0, 0);
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (frame, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            assert!(frame.len() <= FRAME_BYTES_WANTED + 64);
            Responses::from_bytes(frame).unwrap();
            let mut input = Reader::new(frame);
            while input.left() > 0 {
                match next_response(&mut input).unwrap() {
                    Response::Applied { outputs, .. } => ids += outputs.len(),
                    Response::MayYetCommit {
                        first_id: 20, code, ..
                    } => {
                        assert_eq!(code, Code::OUTPUT_TOO_LARGE);
                        ids += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            rest = after;
            frames += 1;
        }
        assert_eq!((ids, frames), (21, 20));
    }

    proptest! {
        #[test]
        fn proposals_round_trip(
            first_id in 0..u64::MAX / 2, group: u64, deadline_ms: u32,
            payloads in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..40), 1..50),
        ) {
            let mut out = BytesMut::new();
            let slices = payloads.iter().map(Vec::as_slice);
            put_proposals(&mut out, first_id, GroupId(group), deadline_ms, slices);
            let Requests::Propose(batch) = Requests::from_shared(frame_of(&out)).unwrap() else {
                panic!("not proposals");
            };
            prop_assert_eq!(batch.group(), GroupId(group));
            prop_assert_eq!(batch.deadline_ms(), deadline_ms);
            prop_assert_eq!(batch.payload_bytes(), payloads.iter().map(Vec::len).sum::<usize>());
            let read: Vec<_> = batch.payloads().map(|(id, bytes)| (id, bytes.to_vec())).collect();
            let sent: Vec<_> = (first_id..).zip(payloads).collect();
            prop_assert_eq!(read, sent);
        }

        #[test]
        fn responses_round_trip(
            responses in proptest::collection::vec(
                (0_u8..4, 0_u64..6, 0_u64..3, 1_u32..4, "[a-z]{0,9}"), 0..60),
        ) {
            let mut encoder = ResponseEncoder::default();
            let mut sent = Vec::new();
            for (kind, id, index, number, text) in responses {
                let code = Code(u16::try_from(number).unwrap());
                let hint = (index == 1).then_some((NodeId(index), text.as_str()));
                match kind {
                    0 => encoder.applied(id, Index(index), number, text.as_bytes()),
                    1 => encoder.never_appended(id, number, code, 9, hint),
                    2 => encoder.may_yet_commit(id, number, code),
                    _ => encoder.json(id, text.as_bytes()),
                }
                sent.push(match kind {
                    0 => format!("applied {id} {index} {number} {text}"),
                    1 => format!("never {id} {number} {code:?} {hint:?}"),
                    2 => format!("may yet {id} {number} {code:?}"),
                    _ => format!("json {id} {text}"),
                });
            }
            let bytes = encoder.take();
            let mut read = Vec::new();
            let mut input = Reader::new(if bytes.is_empty() { &[] } else { &bytes[4..] });
            while input.left() > 0 {
                match next_response(&mut input).unwrap() {
                    Response::Applied { first_id, index, first_slot, outputs } => {
                        for (at, output) in (0..).zip(outputs) {
                            let text = std::str::from_utf8(output).unwrap();
                            let (id, slot) = (first_id + u64::from(at), first_slot + at);
                            read.push(format!("applied {id} {index} {slot} {text}"));
                        }
                    }
                    Response::NeverAppended { first_id, count, code, hint, .. } => {
                        let hint = hint.as_ref().map(|hint| (hint.leader, hint.address.as_str()));
                        read.push(format!("never {first_id} {count} {code:?} {hint:?}"));
                    }
                    Response::MayYetCommit { first_id, count, code } => {
                        read.push(format!("may yet {first_id} {count} {code:?}"));
                    }
                    Response::Json { id, json } => {
                        read.push(format!("json {id} {}", std::str::from_utf8(json).unwrap()));
                    }
                }
            }
            prop_assert_eq!(read, sent);
        }
    }
}
