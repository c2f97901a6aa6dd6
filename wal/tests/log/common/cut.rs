//! Anchors and bases for tests.

use logdrive_raft::io::Write;
use logdrive_raft::{Anchor, Base, GroupId, Index, LogPosition, Membership, SnapshotId, Term};
use logdrive_sim::disk::SimDisk;
use logdrive_wal::Wal;

use super::*;

/// The membership that holds at an index, in these tests.
pub fn membership(index: u64) -> Membership {
    Membership {
        removed: vec![replica(100 + index)],
        ..genesis(GROUP).membership()
    }
}

pub fn anchor_at(at: LogPosition) -> Anchor {
    Anchor {
        at,
        membership: membership(at.index.0),
        sessions: format!("sessions at {}", at.index).into_bytes().into(),
        term_starts: vec![(Term(1), Index(1))],
    }
}

pub fn base_at(at: LogPosition, tip: LogPosition) -> Base {
    Base {
        at,
        membership: membership(at.index.0),
        snapshot: None,
        tip,
    }
}

/// What lies at an index.
pub fn position(rig: &mut Rig, index: u64) -> LogPosition {
    let tip = rig.tip();
    if index == tip.index.0 {
        return tip;
    }
    rig.read_from(index, index)[0].position()
}

/// An anchor, durable.
pub fn anchor(rig: &mut Rig, index: u64) {
    let at = position(rig, index);
    rig.append(&[Write::Anchor(anchor_at(at))]);
    rig.settle();
}

/// Everything up to the tip is cut away, durably.
pub fn cut_all(rig: &mut Rig) {
    let at = rig.tip();
    rig.append(&[Write::Anchor(anchor_at(at))]);
    rig.settle();
    rig.append(&[Write::Base(base_at(at, at))]);
    rig.settle();
}

/// Cuts the log, and waits until that is durable.
pub fn cut(rig: &mut Rig, index: u64) {
    cut_later(rig, index);
    rig.settle();
}

pub fn cut_later(rig: &mut Rig, index: u64) {
    let at = position(rig, index);
    let tip = rig.tip();
    rig.append(&[Write::Base(base_at(at, tip))]);
}

pub fn install(rig: &mut Rig, at: LogPosition, tip: LogPosition) {
    let base = Base {
        snapshot: Some(SnapshotId(0x51ab)),
        ..base_at(at, tip)
    };
    rig.append(&[Write::Anchor(anchor_at(at)), Write::Base(base)]);
}

/// Where a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    pub base: LogPosition,
    pub tip: LogPosition,
    pub anchor: Option<LogPosition>,
    pub bytes: u64,
}

pub fn stand(wal: &Wal<SimDisk>, group: GroupId) -> Stand {
    Stand {
        base: wal.base(group).unwrap(),
        tip: wal.tip(group).unwrap(),
        anchor: wal.anchor(group),
        bytes: wal.log_bytes(group).unwrap(),
    }
}
