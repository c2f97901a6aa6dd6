//! The bytes of every format, as they were first written. A change here is a new format version.

use crate::common::*;
use bytes::Bytes;
use logdrive_raft::io::{Guard, HardState};
use logdrive_raft::wire::{Decode, DecodeError, Encode, Writer};
use logdrive_raft::{
    Boot, Chain, GroupId, Incarnation, Index, LogPosition, Member, Membership, NodeId, SnapshotId,
    Term,
};
use logdrive_wal::disk::{BLOCK_BYTES, Block};
use logdrive_wal::format::*;

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(32).map(|line| {
        let line: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
        line + "\n"
    });
    lines.collect()
}

fn check(name: &str, bytes: &[u8]) {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        hex(bytes),
        expected,
        "{name} changed: that is a new format version"
    );
}

fn at(index: u64) -> LogPosition {
    LogPosition {
        index: Index(index),
        term: Term(7),
        chain: Chain(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f00 + u128::from(index)),
    }
}

fn place(segment: u64, block: u32) -> Place {
    Place { segment, block }
}

fn slot_header() -> SlotHeader {
    SlotHeader {
        by_recovery: true,
        compatible: 0,
        log_uuid: 0x1111_2222_3333_4444_5555_6666_7777_8888,
        cluster: identity().cluster,
        node: NodeId(3),
        incarnation: Incarnation(0xaaaa),
        slot: 5,
        slot_blocks: 16,
        segment: 9,
        epoch: Boot(4),
        predecessor_epoch: Boot(3),
        predecessor_end: place(8, 12),
        predecessor_chain: Chain(0xbbbb),
        oldest: 2,
    }
}

fn group_header() -> GroupHeader {
    GroupHeader {
        kind: GroupKind::Data,
        compatible: 0,
        cluster: identity().cluster,
        incarnation: Incarnation(0xaaaa),
        boot: Boot(4),
        place: place(9, 7),
        blocks: 2,
        number: 77,
        mark: place(9, 6),
        table_bytes: 300,
        echo_bytes: 40,
        body_bytes: 5000,
        records: 3,
        echo_records: 1,
        digest: 0xdddd,
        previous: Chain(0xcccc),
    }
}

fn run() -> EntryRun {
    EntryRun {
        group: GroupId(1),
        prev: at(10),
        last: at(12),
        bytes: 999,
    }
}

/// One of each kind, in the order of their numbers.
fn records() -> Vec<(&'static str, Record)> {
    let group = GroupId(1);
    let genesis = genesis(group);
    let membership = genesis.membership();
    let guard = Guard {
        term: Term(6),
        index: Some(Index(11)),
    };
    let hole = Hole {
        group,
        first: Index(3),
        last: Index(4),
    };
    let checkpoint = GroupCheckpoint {
        genesis: genesis.clone(),
        hard_state: vote(7, 2),
        base: at(2),
        snapshot: Some(SnapshotId(0xabcd)),
        tip: at(12),
        anchor: Some(at(2)),
        guard: Some(guard),
        holes: vec![hole],
    };
    let anchor = Anchor {
        group,
        at: at(2),
        membership: membership.clone(),
        sessions: Bytes::from_static(b"sessions"),
        term_starts: vec![(Term(1), Index(1)), (Term(7), Index(2))],
        file: Some(AnchorFile {
            hash: 0xeeee,
            bytes: 1 << 30,
        }),
    };
    let verdict = Verdict {
        kind: VerdictKind::Torn,
        end: place(8, 12),
        chain: Chain(0xbbbb),
        boot: Boot(4),
        holes: vec![hole],
        guards: vec![(group, guard)],
    };
    let footer = FooterRow {
        block: 7,
        group,
        rewrite: true,
        first: Index(11),
        last: Index(12),
        last_term: Term(7),
    };
    let base = Record::Base {
        group,
        base: at(2),
        snapshot: Some(SnapshotId(0xabcd)),
        tip: at(12),
    };
    let configuration = Record::Configuration {
        group,
        at: at(5),
        membership,
    };
    let hard_state = HardState {
        term: Term(8),
        vote: None,
    };
    let mention = Record::Mention {
        kind: RecordKind::Checkpoint as u8,
        group: GroupId(0),
    };
    vec![
        ("genesis", Record::Genesis(genesis)),
        ("entries", Record::Entries(run())),
        ("rewrite", Record::Rewrite(run())),
        ("truncate", Record::Truncate { group, to: at(11) }),
        ("base", base),
        ("anchor", Record::Anchor(anchor)),
        ("hard-state", Record::HardState { group, hard_state }),
        ("checkpoint", Record::Checkpoint(vec![checkpoint])),
        ("verdict", Record::Verdict(verdict)),
        ("configuration", configuration),
        ("group-removed", Record::GroupRemoved(group)),
        ("footer", Record::Footer(vec![footer])),
        ("mention", mention),
    ]
}

#[test]
fn every_record_has_these_bytes_and_reads_back() {
    for (number, (name, record)) in (1..).zip(records()) {
        let bytes = record.to_bytes();
        assert_eq!(bytes[0], number, "{name}");
        assert_eq!(bytes[0], record.kind() as u8);
        check(&format!("record-{number:02}-{name}"), &bytes);
        assert_eq!(Record::from_bytes(&bytes).unwrap(), record);
        for cut in 0..bytes.len() {
            assert!(
                Record::from_bytes(&bytes[..cut]).is_err(),
                "{name} cut at {cut}"
            );
        }
    }
}

#[test]
fn an_echo_repeats_what_moves_a_tip_a_base_a_vote_or_a_guard() {
    for (name, record) in records() {
        let mut echo = bytes::BytesMut::new();
        record.encode_echo(false, &mut Writer::new(&mut echo));
        let repeated = Record::from_bytes(&echo).unwrap();
        match repeated {
            Record::Mention { kind, group } => {
                assert!(kind == record.kind() as u8 || name == "mention");
                assert_eq!(group, record.group().unwrap_or_default());
            }
            other => assert_eq!(other, record),
        }
        let moves = [
            "entries",
            "rewrite",
            "truncate",
            "base",
            "hard-state",
            "verdict",
            "anchor",
            "group-removed",
        ];
        let mentioned = echo[0] == RecordKind::Mention as u8;
        assert_eq!(mentioned, !moves.contains(&name), "{name}");
    }
}

#[test]
fn a_record_of_an_unknown_kind_halts_the_reader_and_names_both_numbers() {
    let error = Record::from_bytes(&[14]).unwrap_err();
    let expected = "record kind has format version 14, this build reads up to 13: upgrade logdrive";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_slot_header_has_these_bytes_and_reads_back() {
    let header = slot_header();
    let blocks = header.to_blocks();
    check("slot-header", &blocks[1].0);
    for (number, block) in (0..).zip(&blocks) {
        assert_eq!(SlotHeader::from_block(block, number).unwrap(), Some(header));
        assert!(
            SlotHeader::from_block(block, number + 1).is_err(),
            "it is another copy"
        );
    }
    assert_eq!(SlotHeader::from_block(&Block::ZERO, 0).unwrap(), None);
}

/// The block with some bytes changed, and its stamp right again.
fn restamped(mut block: Block, at: usize, bytes: &[u8]) -> Block {
    block.0[at..at + bytes.len()].copy_from_slice(bytes);
    slot_header().stamper().stamp(&mut block, 0, false);
    block
}

#[test]
fn a_slot_header_from_the_future_names_both_versions() {
    let block = slot_header().to_blocks()[0];
    let version = restamped(block, 8, &2_u16.to_le_bytes());
    let error = SlotHeader::from_block(&version, 0).unwrap_err();
    let expected = "slot header has format version 2, this build reads up to 1: upgrade logdrive";
    assert_eq!(error.to_string(), expected);
    let incompatible = restamped(block, 12, &0x40_u32.to_le_bytes());
    let error = SlotHeader::from_block(&incompatible, 0).unwrap_err();
    assert!(
        matches!(error, DecodeError::Incompatible { found: 0x40, .. }),
        "{error}"
    );
    // What may be ignored is ignored, and kept.
    let compatible = restamped(block, 16, &0x40_u32.to_le_bytes());
    let header = SlotHeader::from_block(&compatible, 0).unwrap().unwrap();
    assert_eq!(header.compatible, 0x40);
}

#[test]
fn a_flush_group_header_has_these_bytes_and_reads_back() {
    let header = group_header();
    let (bytes, chain) = header.seal();
    check("group-header", &bytes);
    assert_eq!(GroupHeader::parse(&bytes).unwrap(), (header, chain));
    for byte in 0..bytes.len() {
        let mut bad = bytes;
        bad[byte] ^= 0x10;
        assert!(
            GroupHeader::parse(&bad).is_err(),
            "byte {byte} is not covered"
        );
    }
}

#[test]
fn a_flush_group_from_the_future_names_both_versions() {
    let (mut bytes, _) = group_header().seal();
    bytes[4] = 9;
    let error = GroupHeader::parse(&bytes).unwrap_err();
    let expected = "flush group has format version 9, this build reads up to 1: upgrade logdrive";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_stamp_has_these_bytes() {
    let mut block = Block([0x5a; BLOCK_BYTES]);
    slot_header().stamper().stamp(&mut block, 7, true);
    check("stamp", &block.0[BLOCK_DATA_BYTES..]);
}

#[test]
fn a_whole_log_has_these_bytes() {
    // Three flush groups of an opening, a genesis, a vote with two entries, and the mark of an idle log.
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[logdrive_raft::io::Write::HardState(vote(2, 1))]);
    rig.append_entries(2, 2, 20);
    rig.idle();
    let bytes = medium.contents(logdrive_wal::disk::SlotId(0));
    let written = bytes
        .chunks(BLOCK_BYTES)
        .rposition(|block| block.iter().any(|byte| *byte != 0));
    let mut short = Vec::new();
    for block in bytes.chunks(BLOCK_BYTES).take(written.unwrap() + 1) {
        // Blocks are mostly padding.
        let data = block[..BLOCK_DATA_BYTES]
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        short.extend_from_slice(&block[..data.next_multiple_of(16)]);
        short.extend_from_slice(&block[BLOCK_DATA_BYTES..]);
    }
    check("log", &short);
}

#[test]
fn a_membership_with_all_its_lists_has_these_bytes_and_reads_back() {
    let voters = genesis(GroupId(1)).voters;
    let member = |place: usize| voters[place].clone();
    let membership = Membership {
        voters: vec![member(0), member(1)],
        outgoing: vec![member(1), member(2)],
        learners: vec![Member {
            replica: replica(4),
            address: String::new(),
        }],
        removed: vec![replica(5), replica(6)],
    };
    let bytes = membership.to_bytes();
    check("membership", &bytes);
    assert_eq!(Membership::from_bytes(&bytes).unwrap(), membership);
    for cut in 0..bytes.len() {
        assert!(
            Membership::from_bytes(&bytes[..cut]).is_err(),
            "cut at {cut}"
        );
    }
    // Each list has a place of its own.
    for place in 0..4 {
        let mut one = Membership::default();
        match place {
            0 => one.voters = membership.voters.clone(),
            1 => one.outgoing = membership.outgoing.clone(),
            2 => one.learners = membership.learners.clone(),
            _ => one.removed = membership.removed.clone(),
        }
        let bytes = one.to_bytes();
        let empty = |list: usize| bytes[4 * list..][..4] == [0; 4];
        assert!((0..place).all(empty), "list {place}");
        assert_eq!(Membership::from_bytes(&bytes).unwrap(), one);
    }
}
