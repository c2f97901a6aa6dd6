//! Entries that this log cannot read come back from peers, and peers get theirs.

use logdrive_raft::io::{Input, Regained};
use logdrive_raft::limits::APPEND_BYTES_MAX;
use logdrive_raft::message::{Body, PART_BYTES_MAX, Repair as Said, Wanted};
use logdrive_raft::{Entry, GroupId, Index, Message, Micros, NodeId, Raft};
use logdrive_wal::disk::Disk;
use logdrive_wal::{ENTRY_ROOM_BYTES, ReadError, ReadRefused, ReadRequest, Room, SupplyError};

use super::Shard;
use super::feed::ReadFor;
use super::snapshots::peers_of;
use crate::fetch::Fetch;
use crate::group::{Group, Phase};
use crate::ports::{Notice, Ports};
use crate::repair::{Closed, Order, READS_MAX, Repair};

impl<D: Disk, P: Ports> Shard<D, P> {
    /// What a peer says about entries that it, or this log, cannot read.
    pub(super) fn on_repair(&mut self, now: Micros, id: GroupId, from: NodeId, said: Said) {
        match said {
            Said::Want(wanted) => self.on_wanted(id, from, wanted),
            Said::Have { .. } | Said::Lacks { .. } => {
                let repair = self
                    .groups
                    .get_mut(&id)
                    .and_then(|group| group.repair.as_mut());
                if let Some(repair) = repair {
                    repair.on_answer(from, said, now);
                }
            }
        }
    }

    /// It is answered from what is durable here, whoever leads, also behind what this log cannot read itself: that the
    /// last entry is the same stands for all before it.
    fn on_wanted(&mut self, id: GroupId, peer: NodeId, wanted: Wanted) {
        let Some(base) = self.wal.base(id) else {
            return;
        };
        if wanted.from <= base.index {
            let base = Some(base);
            return self.say_repair(id, peer, Said::Lacks { wanted, base });
        }
        let lacks = Said::Lacks { wanted, base: None };
        if self.wal.position(id, wanted.last.index) != Some(wanted.last) {
            return self.say_repair(id, peer, lacks);
        }
        let repairs = |read: &&ReadFor| matches!(read, ReadFor::Repair { .. });
        if self.reads.values().filter(repairs).count() >= READS_MAX {
            // As if lost on the way: it is asked for again.
            return;
        }
        let request = ReadRequest {
            id: self.next_read,
            group: id,
            from: wanted.from,
            through: wanted.last.index,
            bytes_max: PART_BYTES_MAX,
        };
        match self.wal.read(request) {
            Ok(()) => {
                let group = id;
                let read = ReadFor::Repair {
                    group,
                    peer,
                    wanted,
                };
                self.reads.insert(self.next_read, read);
                self.next_read += 1;
            }
            Err(ReadRefused::Busy) => {}
            Err(_) => self.say_repair(id, peer, lacks),
        }
    }

    /// What a peer wanted was read, or not.
    pub(super) fn on_read_for_repair(
        &mut self,
        group: GroupId,
        peer: NodeId,
        wanted: Wanted,
        result: Result<Vec<Entry>, ReadError>,
    ) {
        let part = result
            .ok()
            .and_then(|entries| part_of(&entries, wanted.offset));
        let said = match part {
            Some(bytes) => Said::Have { wanted, bytes },
            None => Said::Lacks { wanted, base: None },
        };
        self.say_repair(group, peer, said);
    }

    /// Moves every repair as far as it goes now.
    pub(super) fn turn_repairs(&mut self, now: Micros) {
        let repairs = self.groups.values();
        let repairs = repairs.filter(|group| group.repair.is_some());
        let ids: Vec<GroupId> = repairs.map(|group| group.id).collect();
        for id in ids {
            self.take_back(now, id);
            self.ask_for_missing(now, id);
            let group = self.groups.get_mut(&id).expect("groups stay");
            let orders = group.repair.as_mut().map(|repair| repair.take_orders());
            for order in orders.into_iter().flatten() {
                self.carry_out_repair(now, id, order);
            }
        }
    }

    /// What was supplied is durable: from now on it is read there, and the core goes on with what it could not read. Both at
    /// once, for what is not missing any more must not be appended as if it were.
    fn take_back(&mut self, now: Micros, id: GroupId) {
        let durable = self.wal.durable();
        let group = self.groups.get_mut(&id).expect("groups stay");
        let (Some(repair), Phase::Running(raft)) = (&mut group.repair, &group.phase) else {
            return;
        };
        let after = raft.last();
        let written = repair.writing().is_some_and(|position| position <= durable);
        // What went bad since the log was opened the core has all the time.
        let regains = written && self.wal.missing_count(id) > 0;
        let takes = || self.wal.whole(id) == Some(after) && raft.may_regain(&after);
        if !written || regains && !takes() {
            return;
        }
        let before = self.wal.wanted_count(id);
        self.wal.take_supplied(id);
        let closed = repair.on_written(now);
        if regains {
            let entries = self.wal.metas_after(id, after.index);
            let through = Index(after.index.0 + entries.len() as u64);
            let configurations = repair.take_configurations(after.index, through);
            let more = self.wal.missing_count(id) > 0;
            let regained = Regained {
                after,
                entries,
                configurations,
                more,
            };
            group.step(now, Input::Regained(regained));
        }
        let left = self.wal.wanted_count(id) as u64;
        if let Some(Closed { last, from }) = closed {
            let back = (before as u64).saturating_sub(left);
            group.entries_repaired += back;
            self.ports.notice(Notice::Repaired {
                group: id,
                entries: back,
                last: last.index,
                from,
                left,
            });
        }
    }

    /// Says what went bad at rest, and has it fetched.
    pub(super) fn take_findings(&mut self, now: Micros) {
        let findings = self.wal.take_findings();
        if findings.is_empty() {
            return;
        }
        for group in self.groups.values_mut() {
            if group.repair.is_none() && self.wal.wanted_count(group.id) > 0 {
                group.repair = Some(Repair::new(group.id, Vec::new(), now));
            }
        }
        self.ports.notice(Notice::WentBad { findings });
    }

    fn ask_for_missing(&mut self, now: Micros, id: GroupId) {
        let is_asking = |group: &Group<P::Output>| {
            let repair = group.repair.as_ref();
            repair.is_some_and(Repair::is_asking)
        };
        let another = self.groups.values().any(is_asking);
        let group = self.groups.get_mut(&id).expect("groups stay");
        if self.wal.wanted_count(id) == 0 {
            // Or what a leader has took their place.
            group.repair = None;
            self.ports.notice(Notice::NothingMissing { group: id });
            return;
        }
        if group.raft().is_none() {
            return;
        }
        let peers = peers_of(group, self.replica.id);
        let Some(repair) = &mut group.repair else {
            return;
        };
        repair.on_tick(now);
        if !repair.wants_run(now) {
            return;
        }
        // One at a time, so that what it takes of memory is the same for any number of groups.
        if another {
            return repair.wait_for_another(now);
        }
        match self.wal.wanted(id) {
            Some((missing, before)) => repair.begin(missing, before, &peers, now),
            None => repair.wait_for_another(now),
        }
    }

    fn carry_out_repair(&mut self, now: Micros, id: GroupId, order: Order) {
        match order {
            Order::Say(peer, said) => self.say_repair(id, peer, said),
            Order::Supply(entries) => self.supply(now, id, &entries),
            Order::NobodyHas => {
                let group = self.groups.get_mut(&id).expect("groups stay");
                group.step(now, Input::NotRegained);
            }
            Order::WantsSnapshot { least } => self.fetch_instead(now, id, least),
        }
    }

    fn supply(&mut self, now: Micros, id: GroupId, entries: &[Entry]) {
        let bytes = entries
            .iter()
            .map(|entry| entry.frame().len() + ENTRY_ROOM_BYTES);
        let room = self.wal.takes(self.taken, bytes.sum(), true);
        let result = match room {
            Room::Now => self.wal.supply(id, entries),
            Room::Soon | Room::Full => Err(SupplyError::Refused(logdrive_wal::AppendError::Full)),
        };
        let group = self.groups.get_mut(&id).expect("groups stay");
        if let Some(repair) = &mut group.repair {
            match result {
                Ok(position) => repair.on_supplied(position),
                Err(_) => repair.on_refused(now),
            }
        }
    }

    /// The entries were cut away where they were, and a snapshot stands for them.
    fn fetch_instead(&mut self, now: Micros, id: GroupId, least: Index) {
        let rate = self.snapshot_settings.fetch_bytes_per_s;
        let group = self.groups.get_mut(&id).expect("groups stay");
        let Phase::Running(raft) = &group.phase else {
            return;
        };
        if group.snapshots.installing.is_some() || !group.snapshots.may_fetch(now) {
            return;
        }
        let leader = raft.leader();
        let peers = peers_of(group, self.replica.id);
        group.snapshots.fetch = Some(Fetch::begin(least, leader, rate, &peers, now));
    }

    pub(super) fn on_repair_connected(&mut self, now: Micros, peer: NodeId, up: bool) {
        for group in self.groups.values_mut() {
            if let Some(repair) = &mut group.repair {
                if up {
                    repair.on_connected(peer, now);
                } else {
                    repair.on_disconnected(peer, now);
                }
            }
        }
    }

    fn say_repair(&mut self, group: GroupId, to: NodeId, said: Said) {
        let raft = self.groups.get(&group).and_then(Group::raft);
        let message = Message {
            from: self.replica,
            boot: self.boot,
            to,
            group,
            term: raft.map(Raft::term).unwrap_or_default(),
            body: Body::Repair(said),
        };
        self.ports.send(message);
    }
}

/// A part of frames that stand one after the other, from so many bytes on.
fn part_of(entries: &[Entry], offset: u32) -> Option<bytes::Bytes> {
    let offset = offset as usize;
    let mut all = bytes::BytesMut::new();
    for entry in entries {
        all.extend_from_slice(entry.frame());
        if offset + PART_BYTES_MAX <= all.len() {
            break;
        }
    }
    const { assert!(PART_BYTES_MAX <= APPEND_BYTES_MAX) };
    let end = all.len().min(offset.saturating_add(PART_BYTES_MAX));
    (offset < end).then(|| all.freeze().slice(offset..end))
}
