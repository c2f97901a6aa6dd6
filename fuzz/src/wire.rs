//! Bytes from another machine.

use bytes::{BufMut, Bytes, BytesMut};
use logdrive_net::decoders::DECODERS;
use logdrive_net::hello::{Hello, PROTOCOL_MAX};
use logdrive_net::identity::{ClusterName, Identity, Role};
use logdrive_net::protocol::{ClientGreeting, Requests, Response, ServerGreeting, next_response};
use logdrive_raft::limits::ENTRY_HEADER_BYTES;
use logdrive_raft::message::{Body, Message, Offered, Part, Progress, Wanted};
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader};
use logdrive_raft::{
    Anchor, Boot, Chain, ClusterId, Entry, EntryHeader, EntryKind, Genesis, GroupId, Incarnation,
    Index, LogPosition, Member, Membership, NodeId, ProposalRow, Replica, ReplicationSession,
    Round, SnapshotId, Term,
};

use crate::check::{bounded, canonical, faithful};

/// One encoding for each decoder of the table and each kind: also what those tests begin with.
const GOLDEN: &str = include_str!("../../net/src/golden.txt");

/// The golden bytes of this decoder.
pub(crate) fn golden(name: &str) -> Vec<Vec<u8>> {
    let lines = GOLDEN.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(decoder, _)| *decoder == name)
        .map(|(_, text)| unhex(text))
        .collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .collect();
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).expect("two digits");
    digits.chunks_exact(2).map(byte).collect()
}

/// Whatever stands in the table, also what is added to it tomorrow.
pub(crate) fn table(data: &[u8]) {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let decoder = &DECODERS[usize::from(*which) % DECODERS.len()];
    let _ = bounded(data.len(), || (decoder.decode)(data));
}

pub(crate) fn table_seeds() -> Vec<Vec<u8>> {
    let rows = (0_u8..).zip(DECODERS);
    rows.flat_map(|(number, decoder)| {
        golden(decoder.name)
            .into_iter()
            .map(move |bytes| [&[number], &bytes[..]].concat())
    })
    .collect()
}

pub(crate) fn hello(data: &[u8]) {
    let Some(hello) = faithful::<Hello>(data) else {
        return;
    };
    let written = hello.to_bytes();
    assert!(data.starts_with(&written));
    // Only a later build may say more.
    assert!(written.len() == data.len() || hello.protocol_max > PROTOCOL_MAX);
    assert!((1..=PROTOCOL_MAX).contains(&hello.protocol()));
}

pub(crate) fn greeting(data: &[u8]) {
    const VERSIONS: std::ops::Range<usize> = 4..8;
    let written = match (
        faithful::<ClientGreeting>(data),
        faithful::<ServerGreeting>(data),
    ) {
        (Some(client), None) => client.to_bytes(),
        (None, Some(server)) => server.to_bytes(),
        (None, None) => return,
        (Some(_), Some(_)) => panic!("a greeting of both sides"),
    };
    assert_eq!(written[..VERSIONS.start], data[..VERSIONS.start]);
    assert_eq!(written[VERSIONS.end..], data[VERSIONS.end..written.len()]);
    let later = u16::from_le_bytes([data[6], data[7]]) > PROTOCOL_MAX;
    assert!(written.len() == data.len() || later);
}

pub(crate) fn greeting_seeds() -> Vec<Vec<u8>> {
    [golden("client greeting"), golden("server greeting")].concat()
}

/// Frames in it have checksums, which are made to fit first: noise would end there.
pub(crate) fn message(data: &[u8]) {
    canonical::<Message>(data);
    canonical::<Offered>(data);
    canonical::<Part>(data);
    canonical::<Progress>(data);
    canonical::<Wanted>(data);
    let mut sealed = data.to_vec();
    for at in 0..sealed.len() {
        if sealed[at..].starts_with(b"LDen") {
            seal_frame(&mut sealed[at..]);
        }
    }
    canonical::<Message>(&sealed);
    let shared = Bytes::from(sealed);
    if let Ok(message) = bounded(shared.len(), || Message::from_shared(&shared)) {
        let Body::Append(append) = &message.body else {
            return;
        };
        for entry in &append.entries {
            read_entry(entry);
        }
    }
}

/// Makes the checksums of the frame at the front fit, as far as it is there.
pub(crate) fn seal_frame(bytes: &mut [u8]) {
    if bytes.len() < ENTRY_HEADER_BYTES {
        return;
    }
    let number = |at: usize, bytes: &[u8]| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let table_end = ENTRY_HEADER_BYTES.saturating_add(number(44, bytes) as usize);
    let end = table_end.saturating_add(number(48, bytes) as usize);
    if end <= bytes.len() {
        let table = &bytes[ENTRY_HEADER_BYTES..table_end];
        let table_crc = if table.is_empty() {
            0
        } else {
            crc32c::crc32c(table)
        };
        let payload_crc = crc32c::crc32c(&bytes[table_end..end]);
        bytes[52..56].copy_from_slice(&table_crc.to_le_bytes());
        bytes[56..60].copy_from_slice(&payload_crc.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[64..ENTRY_HEADER_BYTES]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// Reads all that can be asked of an entry.
fn read_entry(entry: &Entry) {
    let mut bytes = 0;
    for (row, payload) in entry.proposals() {
        assert_eq!(row.length as usize, payload.len());
        bytes += payload.len();
    }
    assert_eq!(bytes, entry.payload().len());
    assert_eq!(entry.rows().len(), entry.header().count as usize);
    if entry.header().kind == EntryKind::Configuration {
        canonical::<Membership>(entry.payload());
    }
    // Whatever it is said to follow, short of the end of all numbers.
    for previous in [entry.position(), LogPosition::default()] {
        if previous.index < Index(u64::MAX) {
            let _ = entry.follows(&previous);
        }
    }
}

/// A frame whose checksums fit; what it says is anybody's guess.
pub(crate) fn entry(data: &[u8]) {
    let _ = bounded(data.len(), || EntryHeader::parse(data));
    let mut frame = data.to_vec();
    seal_frame(&mut frame);
    let parsed = bounded(frame.len(), || EntryHeader::parse(&frame));
    let shared = Bytes::from(frame);
    if let Ok(entry) = bounded(shared.len(), || Entry::from_frame(shared.clone())) {
        assert_eq!(Ok(entry.header()), parsed.as_ref());
        assert_eq!(entry.frame(), &shared);
        read_entry(&entry);
    }
}

pub(crate) fn entry_seeds() -> Vec<Vec<u8>> {
    use logdrive_raft::{EntryBuilder, UnsealedEntry};
    let seal = |entry: UnsealedEntry| entry.seal(GroupId(1), Term(2), Index(3), Chain(4));
    let mut builder = EntryBuilder::with_room(3, 16);
    for payload in [&b"ab"[..], b"", b"cde"] {
        builder.push(payload);
    }
    let membership = Membership::of_voters(vec![member(1), member(2)]).to_bytes();
    let mut frames: Vec<Vec<u8>> = [
        seal(builder.finish()),
        seal(UnsealedEntry::bare(EntryKind::Noop, &[])),
        seal(UnsealedEntry::bare(EntryKind::Configuration, &membership)),
    ]
    .iter()
    .map(|entry| entry.frame().to_vec())
    .collect();
    // No writer of this version makes full rows yet.
    let row = ProposalRow {
        length: 2,
        session: 5,
        sequence: 6,
        ..ProposalRow::default()
    };
    let mut rows = frames[1].clone();
    (rows[6], rows[7], rows[40], rows[44], rows[48]) = (2, 2, 1, 32, 2);
    rows.extend_from_slice(&row.to_bytes());
    rows.extend_from_slice(b"ab");
    frames.push(rows);
    frames
}

pub(crate) fn member(id: u64) -> Member {
    Member {
        replica: Replica {
            id: NodeId(id),
            incarnation: Incarnation(u128::from(id) << 64),
        },
        address: format!("h{id}:1"),
    }
}

/// Which cluster and who its voters are.
pub(crate) fn genesis(data: &[u8]) {
    canonical::<Genesis>(data);
    canonical::<Membership>(data);
    canonical::<Member>(data);
    if let Ok(membership) = Membership::from_bytes(data) {
        let everybody = membership.replicas();
        for replica in &everybody {
            assert!(membership.member(replica.id).is_some());
        }
        let _ = everybody
            .iter()
            .filter(|replica| membership.is_voter(**replica))
            .count();
    }
}

pub(crate) fn genesis_seeds() -> Vec<Vec<u8>> {
    let genesis = Genesis {
        cluster: ClusterId(1),
        group: GroupId(2),
        voters: (1..=3).map(member).collect(),
    };
    let membership = Membership {
        outgoing: vec![member(4)],
        learners: vec![member(5)],
        removed: vec![member(6).replica],
        ..genesis.membership()
    };
    vec![
        genesis.to_bytes().into(),
        membership.to_bytes().into(),
        member(7).to_bytes().into(),
    ]
}

/// What a log amounts to at a point.
pub(crate) fn anchor(data: &[u8]) {
    canonical::<Anchor>(data);
}

pub(crate) fn anchor_seeds() -> Vec<Vec<u8>> {
    let anchor = Anchor {
        at: LogPosition {
            index: Index(9),
            term: Term(4),
            chain: Chain(5),
        },
        membership: Membership::of_voters((1..=3).map(member).collect()),
        sessions: Bytes::from_static(b"sessions"),
        term_starts: vec![(Term(1), Index(1)), (Term(4), Index(7))],
    };
    vec![
        anchor.to_bytes().into(),
        Anchor::default().to_bytes().into(),
    ]
}

/// What everything else is made of. The first byte says which.
pub(crate) fn values(data: &[u8]) {
    const ALL: &[fn(&[u8])] = &[
        canonical::<u8>,
        canonical::<u16>,
        canonical::<u32>,
        canonical::<u64>,
        canonical::<u128>,
        canonical::<bool>,
        canonical::<Option<u64>>,
        canonical::<Option<Option<Replica>>>,
        canonical::<NodeId>,
        canonical::<GroupId>,
        canonical::<Term>,
        canonical::<Index>,
        canonical::<Boot>,
        canonical::<Round>,
        canonical::<Chain>,
        canonical::<SnapshotId>,
        canonical::<ClusterId>,
        canonical::<Incarnation>,
        canonical::<Replica>,
        canonical::<ReplicationSession>,
        canonical::<LogPosition>,
        canonical::<ProposalRow>,
    ];
    if let Some((which, data)) = data.split_first() {
        ALL[usize::from(*which) % ALL.len()](data);
    }
}

pub(crate) fn values_seeds() -> Vec<Vec<u8>> {
    (0..24).map(|which| vec![which; 1 + 48]).collect()
}

/// Requests are slices of their frame, checked when it was read and believed from then on.
pub(crate) fn requests(data: &[u8]) {
    let read = bounded(data.len(), || Requests::from_bytes(data));
    let shared = Requests::from_shared(Bytes::copy_from_slice(data));
    assert_eq!(read, shared);
    let mut written = BytesMut::new();
    match read {
        Err(_) => return,
        Ok(Requests::Status { id }) => {
            written.put_u8(2);
            written.put_u64_le(id);
        }
        Ok(Requests::Snapshot { id, group }) => {
            written.put_u8(3);
            written.put_u64_le(id);
            written.put_u64_le(group.0);
        }
        Ok(Requests::Propose(batch)) => {
            assert!(!batch.is_empty());
            written.put_u8(1);
            written.put_u64_le(batch.first_id());
            written.put_u64_le(batch.group().0);
            written.put_u32_le(batch.deadline_ms());
            written.put_u32_le(u32::try_from(batch.len()).expect("it was read from a u32"));
            for (_, payload) in batch.payloads() {
                written.put_u32_le(u32::try_from(payload.len()).expect("likewise"));
            }
            let ids = batch.first_id()..;
            for ((id, payload), expected) in batch.payloads().zip(ids) {
                assert_eq!(id, expected);
                written.put_slice(payload);
            }
            assert_eq!(batch.payloads().len(), batch.len());
            let bytes: usize = batch.payloads().map(|(_, payload)| payload.len()).sum();
            assert_eq!(bytes, batch.payload_bytes());
        }
    }
    assert_eq!(written, data, "it would be written differently");
}

/// The same of responses, each written again as `net/src/protocol.rs` draws it.
pub(crate) fn responses(data: &[u8]) {
    let row = DECODERS.iter().find(|decoder| decoder.name == "responses");
    let whole = row.map(|row| bounded(data.len(), || (row.decode)(data)));
    let read = bounded(data.len(), || read_responses(data));
    assert_eq!(whole, Some(read));
}

fn read_responses(data: &[u8]) -> Result<(), DecodeError> {
    let mut input = Reader::new(data);
    let mut written = BytesMut::with_capacity(data.len());
    while input.left() > 0 {
        match next_response(&mut input)? {
            Response::Applied {
                first_id,
                index,
                first_slot,
                outputs,
            } => {
                written.put_u8(1);
                written.put_u64_le(first_id);
                written.put_u64_le(index.0);
                written.put_u32_le(first_slot);
                let count = u32::try_from(outputs.len()).expect("it was read from a u32");
                written.put_u32_le(count);
                assert_eq!(outputs.count(), count as usize);
                for output in outputs {
                    written.put_u32_le(u32::try_from(output.len()).expect("likewise"));
                    written.put_slice(output);
                }
            }
            Response::NeverAppended {
                first_id,
                count,
                code,
                retry_after_ms,
                hint,
            } => {
                written.put_u8(2);
                written.put_u64_le(first_id);
                written.put_u32_le(count);
                written.put_u16_le(code.0);
                written.put_u32_le(retry_after_ms);
                written.put_u8(u8::from(hint.is_some()));
                if let Some(hint) = hint {
                    written.put_u64_le(hint.leader.0);
                    written.put_u16_le(u16::try_from(hint.address.len()).expect("likewise"));
                    written.put_slice(hint.address.as_bytes());
                }
            }
            Response::MayYetCommit {
                first_id,
                count,
                code,
            } => {
                written.put_u8(3);
                written.put_u64_le(first_id);
                written.put_u32_le(count);
                written.put_u16_le(code.0);
            }
            Response::Json { id, json } => {
                written.put_u8(4);
                written.put_u64_le(id);
                written.put_u32_le(u32::try_from(json.len()).expect("likewise"));
                written.put_slice(json);
            }
        }
    }
    assert_eq!(written, data, "it would be written differently");
    Ok(())
}

/// What a certificate says of its holder, as text.
pub(crate) fn identity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(identity) = bounded(text.len(), || text.parse::<Identity>()) {
        assert_eq!(identity.to_string(), text, "an identity has one spelling");
        for name in identity.dns_names() {
            let labels = name.split('.');
            assert!(name.len() <= 253 && labels.clone().all(|label| label.len() <= 63));
        }
    }
    if let Ok(name) = bounded(text.len(), || text.parse::<ClusterName>()) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(role) = bounded(text.len(), || text.parse::<Role>()) {
        assert_eq!(role.as_str(), text);
    }
}

pub(crate) fn identity_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "logdrive://blue-1/peer/3",
        "logdrive://b/client/18446744073709551615",
        "a-b",
        "admin",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
