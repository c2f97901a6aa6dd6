//! Cutting a log: anchors, bases, and what comes back of them.

use crate::common::cut::*;
use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_raft::{Chain, GroupId, Index, LogPosition, SnapshotId, Term};
use logdrive_sim::disk::{Crash, SimDiskOptions, Tear};
use logdrive_wal::{AppendError, ReadError, ReadRefused, ReadRequest};

/// A log of a hundred entries.
fn hundred(medium: &logdrive_sim::disk::SimStorage) -> Rig {
    let mut rig = Rig::with_group(medium, options(64));
    for _ in 0..10 {
        rig.append_entries(1, 10, 700);
        rig.settle();
    }
    rig
}

#[test]
fn a_log_that_was_cut_begins_at_its_base() {
    for direct in [true, false] {
        let medium = storage();
        let mut rig = hundred(&medium);
        anchor(&mut rig, 60);
        cut(&mut rig, 50);
        let before = stand(&rig.wal, GROUP);
        assert_eq!(before.base.index, Index(50));
        assert_eq!(before.tip.index, Index(100));
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        for boot in 0..4 {
            let disk = SimDiskOptions {
                direct,
                ..SimDiskOptions::default()
            };
            let rig = Rig::open_with(&medium, options(64), disk, boot).unwrap();
            assert_eq!(stand(&rig.wal, GROUP), before);
            let recovered = &rig.recovery.groups[&GROUP];
            assert_eq!(recovered.restored.base, before.base);
            assert_eq!(recovered.restored.entries.len(), 50);
            assert_eq!(recovered.restored.membership, membership(50));
            assert_eq!(recovered.base_snapshot, None);
            let anchored = recovered.anchor.clone().unwrap();
            assert_eq!(anchored, anchor_at(anchored.at));
            assert_eq!(anchored.at.index, Index(60));
        }
    }
}

#[test]
fn what_was_cut_away_is_not_read() {
    let medium = storage();
    let mut rig = hundred(&medium);
    anchor(&mut rig, 60);
    let request = |from| ReadRequest {
        id: from,
        group: GROUP,
        from: Index(from),
        through: Index(100),
        bytes_max: 10_000,
    };
    let (at, tip) = (position(&mut rig, 50), rig.tip());
    rig.wal.read(request(30)).unwrap();
    rig.append(&[Write::Base(base_at(at, tip))]);
    assert_eq!(rig.wal.read(request(50)), Err(ReadRefused::BelowBase));
    rig.wal.read(request(51)).unwrap();
    let mut done = Vec::new();
    while done.len() < 2 {
        done.extend(rig.wal.take_reads());
        if done.len() < 2 {
            rig.step();
        }
    }
    let of = |id| done.iter().find(|done| done.id == id).unwrap();
    // It had ended before the cut, or it is refused.
    assert!(matches!(&of(30).result, Ok(_) | Err(ReadError::OffPath)));
    assert_eq!(of(51).result.as_ref().unwrap()[0].index(), Index(51));
}

#[test]
fn a_snapshot_takes_the_place_of_a_log_that_does_not_have_its_end() {
    for beyond in [true, false] {
        let medium = storage();
        let mut rig = hundred(&medium);
        let at = LogPosition {
            index: Index(if beyond { 500 } else { 70 }),
            term: Term(3),
            chain: Chain(0x5a),
        };
        rig.append(&[Write::HardState(vote(3, 2))]);
        install(&mut rig, at, at);
        rig.settle();
        assert_eq!((rig.tip(), rig.wal.base(GROUP)), (at, Some(at)));
        assert_eq!(rig.wal.log_bytes(GROUP), Some(0));
        rig.append_entries(3, 2, 100);
        rig.settle();
        let tip = rig.tip();
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        let rig = Rig::open(&medium, options(64)).unwrap();
        assert_eq!((rig.tip(), rig.wal.base(GROUP)), (tip, Some(at)));
        let recovered = &rig.recovery.groups[&GROUP];
        assert_eq!(recovered.base_snapshot, Some(SnapshotId(0x51ab)));
        assert_eq!(recovered.restored.entries.len(), 2);
    }
}

#[test]
fn a_snapshot_that_lies_on_the_path_leaves_the_rest() {
    let medium = storage();
    let mut rig = hundred(&medium);
    let tip = rig.tip();
    let at = position(&mut rig, 70);
    install(&mut rig, at, tip);
    rig.settle();
    drop(rig);
    let rig = Rig::open(&medium, options(64)).unwrap();
    assert_eq!((rig.tip(), rig.wal.base(GROUP)), (tip, Some(at)));
    let recovered = &rig.recovery.groups[&GROUP];
    assert_eq!(recovered.restored.entries.len(), 30);
    assert_eq!(recovered.base_snapshot, Some(SnapshotId(0x51ab)));
}

#[test]
#[should_panic(expected = "a log is cut below its durable anchor")]
fn a_log_is_not_cut_above_its_durable_anchor() {
    let mut rig = hundred(&storage());
    anchor(&mut rig, 60);
    cut(&mut rig, 61);
}

#[test]
#[should_panic(expected = "a log is cut below its durable anchor")]
fn an_anchor_that_is_not_durable_yet_does_not_count() {
    let mut rig = hundred(&storage());
    let at = position(&mut rig, 60);
    rig.append(&[Write::Anchor(anchor_at(at))]);
    cut(&mut rig, 60);
}

#[test]
#[should_panic(expected = "a log is cut at an entry it has")]
fn a_log_is_not_cut_at_an_entry_of_another_path() {
    let mut rig = hundred(&storage());
    anchor(&mut rig, 60);
    let mut at = position(&mut rig, 60);
    at.chain = Chain(9);
    let tip = rig.tip();
    rig.append(&[Write::Base(base_at(at, tip))]);
}

/// Not one of several anchors that follow each other closely is forgotten.
#[test]
fn the_log_may_be_cut_at_each_anchor_once_that_one_is_durable() {
    let medium = storage();
    let mut rig = hundred(&medium);
    let mut waiting = Vec::new();
    for index in [20, 30, 40] {
        let at = position(&mut rig, index);
        let durable_at = rig.append(&[Write::Anchor(anchor_at(at))]);
        waiting.push((durable_at, index));
        rig.turn();
    }
    for (durable_at, index) in waiting {
        while rig.wal.durable() < durable_at {
            rig.step();
        }
        cut(&mut rig, index);
    }
    assert_eq!(rig.wal.base(GROUP).unwrap().index, Index(40));
}

/// Each slot has to hold it at its beginning.
#[test]
fn an_anchor_that_no_slot_could_repeat_is_refused_and_poisons_nothing() {
    let medium = storage();
    let mut rig = hundred(&medium);
    let at = position(&mut rig, 60);
    let mut largest = 0;
    let mut refused = 0;
    for kib in 1..64 {
        let mut anchor = anchor_at(at);
        anchor.sessions = vec![7; kib << 10].into();
        let tip = rig.tip();
        match rig.wal.append(GROUP, &[Write::Anchor(anchor)]) {
            Ok(_) => largest = kib << 10,
            Err(AppendError::AnchorTooLarge { bytes, slot_bytes }) => {
                assert!(bytes > kib << 10 && slot_bytes == 64 << 10);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(rig.tip(), tip);
        rig.settle();
    }
    assert!(largest >= 8 << 10 && refused > 10, "{largest}, {refused}");
    // And the largest one does fit, again and again, and entries beside it.
    for _ in 0..40 {
        rig.append_entries(1, 1, 16_000 - 200);
        rig.settle();
    }
    drop(rig);
    let rig = Rig::open(&medium, options(64)).unwrap();
    let recovered = &rig.recovery.groups[&GROUP];
    assert_eq!(recovered.anchor.clone().unwrap().sessions.len(), largest);
    // As are sessions that no record holds, in slots of any size.
    let medium = storage();
    let large = options(64).with_slots(16 << 20, 8);
    let mut rig = Rig::with_group(&medium, large);
    let mut anchor = anchor_at(rig.tip());
    anchor.sessions = vec![7; (1 << 20) + 1].into();
    let refused = rig.wal.append(GROUP, &[Write::Anchor(anchor)]);
    assert!(matches!(refused, Err(AppendError::AnchorTooLarge { .. })));
}

/// The first flush group of a segment states what was built. A base that is still queued when the log rolls is not in
/// it, for the entries below count until the base does.
#[test]
fn a_base_that_is_queued_is_not_stated_by_a_checkpoint() {
    for entries_before in 1..12 {
        let medium = storage();
        let mut rig = hundred(&medium);
        anchor(&mut rig, 60);
        // One large flush group after another, the base in the last one: the log rolls in between.
        for _ in 0..entries_before {
            rig.append_entries(1, 4, 3500);
        }
        cut_later(&mut rig, 60);
        // A power cut at any moment: the old base or the new one, and a log that opens.
        let mut bases = std::collections::BTreeSet::new();
        loop {
            let cut_off = medium.flushed_only();
            let after = Rig::open(&cut_off, options(64)).unwrap();
            bases.insert(after.wal.base(GROUP).unwrap().index.0);
            if rig.wal.is_drained() {
                break;
            }
            rig.step();
        }
        assert_eq!(bases.into_iter().collect::<Vec<_>>(), [0, 60]);
    }
}

/// What is told of a group that has no entries is in the checkpoints alone.
#[test]
fn several_groups_are_cut_apart_from_each_other() {
    let medium = storage();
    let mut rig = hundred(&medium);
    let other = GroupId(2);
    rig.wal.create_group(&genesis(other)).unwrap();
    rig.settle();
    anchor(&mut rig, 60);
    cut(&mut rig, 60);
    drop(rig);
    let rig = Rig::open(&medium, options(64)).unwrap();
    assert_eq!(rig.wal.base(other), Some(genesis(other).origin()));
    assert_eq!(rig.wal.anchor(other), None);
    let restored = &rig.recovery.groups[&other].restored;
    assert_eq!(restored.membership, genesis(other).membership());
}
