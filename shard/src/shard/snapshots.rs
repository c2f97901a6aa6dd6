//! Snapshots of a shard's groups: when they are taken, what may be cut for them, who gets them, and how one from
//! elsewhere becomes the machine's state.

use std::collections::BTreeSet;

use logdrive_raft::io::{Input, Role, SnapshotWanted};
use logdrive_raft::message::{Body, Offered, Transfer};
use logdrive_raft::{
    Anchor, GroupId, Index, LogPosition, Message, Micros, NodeId, Raft, SnapshotId, mutated,
};
use logdrive_wal::disk::Disk;
use logdrive_wal::snapshots::SnapshotSummary;

use super::Shard;
use crate::compaction::{CUT_US, Fence, Installing, Kept, READS_MAX, rank_of};
use crate::fetch::{Fetch, Order};
use crate::group::{Group, Phase};
use crate::ports::{Notice, Ports};
use crate::store::{StoreEvent, StoreFailure, StoreJob};
use crate::ticket::Failure;

/// What a machine did that a snapshot was taken of, or that was given one.
#[derive(Debug)]
#[non_exhaustive]
pub enum MachineEvent {
    /// It gave no handle.
    NotTaken {
        /// The group.
        group: GroupId,
        /// Why.
        why: String,
    },
    /// It holds what it held: the snapshot that it was to take over could not be read.
    NotInstalled {
        /// The group.
        group: GroupId,
        /// The last entry that the snapshot covers.
        at: LogPosition,
        /// Why.
        why: String,
    },
    /// It holds the state of a snapshot.
    Installed {
        /// The group.
        group: GroupId,
        /// The last entry that the snapshot covers.
        at: LogPosition,
    },
}

impl<D: Disk, P: Ports> Shard<D, P> {
    /// Takes a snapshot of a group as soon as can be. Says whether there is such a group.
    pub fn want_snapshot(&mut self, group: GroupId) -> bool {
        let Some(group) = self.groups.get_mut(&group) else {
            return false;
        };
        group.snapshots.on_request();
        true
    }

    /// A job of the store has ended.
    pub fn store_event(&mut self, now: Micros, event: StoreEvent) {
        match event {
            StoreEvent::Written { snapshot, durable } => self.on_written(now, &snapshot, durable),
            StoreEvent::NotWritten { group, why } => self.on_not_written(now, group, why),
            StoreEvent::Receiving {
                group,
                snapshot,
                missing,
                bytes_have,
                damaged,
            } => self.with_fetch(group, |fetch| {
                if damaged {
                    fetch.on_damaged(snapshot, missing, bytes_have, now);
                } else {
                    fetch.on_receiving(snapshot, missing, bytes_have, now);
                }
            }),
            StoreEvent::Stored {
                group,
                snapshot,
                part,
                bytes,
            } => self.with_fetch(group, |fetch| fetch.on_stored(snapshot, part, bytes, now)),
            StoreEvent::Received { snapshot, anchor } => {
                let (group, id) = (snapshot.group, snapshot.id);
                if let Some(group) = self.groups.get_mut(&group) {
                    group.received = Some(Kept::of(&snapshot, None));
                }
                self.with_fetch(group, |fetch| fetch.on_received(id, anchor, now));
            }
            StoreEvent::NotReceived { group, why } => {
                let refused = matches!(why, StoreFailure::Other(_) | StoreFailure::Damaged(_));
                self.with_fetch(group, |fetch| fetch.on_failed(refused, now));
                if why != StoreFailure::Ending {
                    let no_space = matches!(why, StoreFailure::NoSpace(_));
                    self.ports.notice(Notice::SnapshotFailed {
                        group,
                        fetched: true,
                        no_space,
                        again: false,
                        why: why.to_string(),
                    });
                }
            }
            StoreEvent::Read {
                to,
                group,
                snapshot,
                part,
                bytes,
            } => {
                self.snapshot_turns.reads -= 1;
                let transfer = match bytes {
                    Ok(bytes) => Transfer::Part {
                        snapshot,
                        part,
                        bytes,
                    },
                    Err(why) => {
                        self.on_unreadable(group, snapshot, &why);
                        Transfer::Gone { snapshot }
                    }
                };
                self.say(group, to, transfer);
            }
            StoreEvent::Opened {
                group,
                snapshot,
                reader,
            } => self.on_opened(now, group, snapshot, reader),
        }
    }

    /// A machine has done what it was asked.
    pub fn machine_event(&mut self, event: MachineEvent, now: Micros) {
        match event {
            MachineEvent::NotTaken { group, why } => {
                self.on_not_written(now, group, StoreFailure::Other(why));
            }
            MachineEvent::Installed { group, at } => self.on_installed(now, group, at),
            MachineEvent::NotInstalled { group, at, why } => {
                self.on_not_installed(now, group, at, why);
            }
        }
    }

    /// What a peer says about snapshots. It belongs to no term, and needs a log of ours only where it asks for one.
    pub(super) fn on_transfer(
        &mut self,
        now: Micros,
        group: GroupId,
        from: NodeId,
        transfer: Transfer,
    ) {
        let Some(held) = self.groups.get_mut(&group) else {
            return;
        };
        let Phase::Running(raft) = &held.phase else {
            return;
        };
        match transfer {
            Transfer::Query { least } => {
                let newest = held.snapshots.newest.as_ref();
                let fits = newest.filter(|kept| least <= kept.at.index);
                let offered = fits.map(|kept| Offered {
                    snapshot: kept.snapshot,
                    at: kept.at,
                    bytes: kept.bytes,
                    manifest_bytes: kept.manifest_bytes,
                });
                // Asked again by then, it has one.
                let able = !raft.lacks_snapshot() && least <= held.handed;
                match &offered {
                    Some(offered) => held.snapshots.on_offered(offered.snapshot, now),
                    None if able => held.snapshots.on_peer_request(now),
                    None => {}
                }
                self.say(group, from, Transfer::Offer(offered));
            }
            Transfer::Fetch { snapshot, part } => {
                // One that is no longer the newest is there for as long as somebody asks, also after a restart.
                held.snapshots.on_asked(snapshot, now);
                // As if lost on the way: it is asked for again.
                if self.snapshot_turns.reads < READS_MAX {
                    self.snapshot_turns.reads += 1;
                    self.ports.store(StoreJob::Read {
                        to: from,
                        group,
                        snapshot,
                        part,
                    });
                }
            }
            Transfer::Progress(progress) => {
                held.snapshots.on_asked(progress.snapshot, now);
                if raft.role() == Role::Leader {
                    held.snapshots.on_progress(from, progress, now);
                }
            }
            Transfer::Offer(_) | Transfer::Part { .. } | Transfer::Gone { .. } => {
                self.with_fetch(group, |fetch| fetch.on_transfer(from, transfer, now));
            }
        }
    }

    /// The way to a peer is gone.
    pub(super) fn on_source_lost(&mut self, now: Micros, peer: NodeId) {
        for group in self.groups.values_mut() {
            if let Some(fetch) = &mut group.snapshots.fetch {
                fetch.on_disconnected(peer, now);
            }
        }
    }

    /// The leader's log begins beyond what this group's needs next.
    pub(super) fn on_snapshot_wanted(&mut self, now: Micros, id: GroupId, wanted: SnapshotWanted) {
        let rate = self.snapshot_settings.fetch_bytes_per_s;
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        // What was received last is on its way into log and machine.
        if group.snapshots.installing.is_some() {
            return;
        }
        let peers = peers_of(group, self.replica.id);
        let (least, leader) = (wanted.base.index, Some(wanted.leader));
        if group.snapshots.may_fetch(now) {
            group.snapshots.fetch = Some(Fetch::begin(least, leader, rate, &peers, now));
        } else if let Some(fetch) = &mut group.snapshots.fetch {
            fetch.wanted(least, leader, &peers, now);
        }
    }

    /// The log begins at a received snapshot, durably: the machine follows.
    pub(super) fn on_base_durable(
        &mut self,
        now: Micros,
        id: GroupId,
        at: LogPosition,
        snapshot: SnapshotId,
    ) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.snapshots.fetch = None;
        group.snapshots.found = group.snapshots.found.max(at.index);
        if let Some(received) = group.received.take_if(|kept| kept.snapshot == snapshot) {
            group.snapshots.newest = Some(received);
            group.snapshots.failing = false;
        }
        let installing = Installing { snapshot, at };
        if at.index <= group.handed {
            // A machine with storage of its own that has applied more than that: it goes on from where it is.
            return self.installed(now, id, installing);
        }
        group.snapshots.installing = Some(installing);
        self.ports.store(StoreJob::Open {
            group: id,
            snapshot,
        });
    }

    /// Everything about snapshots that time and the log's growth bring.
    pub(super) fn turn_snapshots(&mut self, now: Micros) {
        let last = self.snapshot_turns.taken;
        let mut ids: Vec<GroupId> = self.groups.keys().copied().collect();
        ids.sort_by_key(|id| *id <= last);
        let short = self.wal.is_short();
        let manual = self.snapshot_settings.is_manual();
        let pinned_by = if short { self.wal.pinned_by() } else { None };
        let fetching = self.groups.values();
        let fetching = fetching.filter(|group| group.snapshots.fetch.is_some());
        let rate = self.snapshot_settings.fetch_bytes_per_s / (fetching.count() as u64).max(1);
        for id in ids {
            let pins = pinned_by == Some(id);
            self.turn_fetch(now, id, rate);
            self.take_if_due(now, id, pins && !manual);
            self.cut_if_possible(now, id, short, pins);
            self.say_if_stuck(id, pins);
        }
    }

    /// The segments of a log are released in order, so a group that has halted, whose log is cut no more, keeps those of
    /// all groups.
    fn say_if_stuck(&mut self, id: GroupId, pins: bool) {
        let group = self.groups.get_mut(&id).expect("listed by the caller");
        let stuck = pins && matches!(group.phase, Phase::Halted { .. });
        if group.snapshots.pins_said != stuck {
            group.snapshots.pins_said = stuck;
            self.ports.notice(Notice::LogPinned { group: id, stuck });
        }
    }

    fn turn_fetch(&mut self, now: Micros, id: GroupId, rate: u64) {
        let group = self.groups.get_mut(&id).expect("listed by the caller");
        let peers = match &group.phase {
            Phase::Running(raft) if group.snapshots.is_sending() => raft.peers(),
            _ => Vec::new(),
        };
        let matched = |id: NodeId| {
            let peer = peers.iter().find(|peer| peer.replica.id == id);
            peer.and_then(|peer| peer.match_index)
        };
        let keep_bytes = self.snapshot_settings.keep_log_bytes;
        let near = |index: Index| match &group.phase {
            // Only those are asked about who have their snapshot.
            _ if mutated!(self.core.mutant, FenceEndsWithSnapshot) => true,
            Phase::Running(raft) => raft.bytes_between(index, raft.last().index) <= keep_bytes,
            _ => true,
        };
        if group.snapshots.on_tick(now, matched, near) {
            self.ports.notice(Notice::TransferOver { group: id });
        }
        let Phase::Running(raft) = &group.phase else {
            group.snapshots.fetch = None;
            return;
        };
        if !raft.lacks_snapshot() && group.snapshots.fetch.is_none() {
            return;
        }
        let peers = peers_of(group, self.replica.id);
        let snapshots = &mut group.snapshots;
        if raft.lacks_snapshot() && snapshots.may_fetch(now) {
            let (least, leader) = (raft.base().index, raft.leader());
            snapshots.fetch = Some(Fetch::begin(least, leader, rate, &peers, now));
        }
        let Some(fetch) = &mut snapshots.fetch else {
            return;
        };
        if !raft.lacks_snapshot() && fetch.is_overtaken(raft.commit().index) {
            // Another leader had the entries.
            snapshots.fetch = None;
            let failing = snapshots.failing;
            self.ports.store(StoreJob::Discard { group: id });
            if !failing {
                self.ports.notice(Notice::SnapshotNotNeeded { group: id });
            }
            return;
        }
        fetch.set_rate(rate);
        fetch.on_tick(&peers, now);
        for order in fetch.take_orders() {
            self.carry_out_order(now, id, order);
        }
    }

    fn carry_out_order(&mut self, now: Micros, group: GroupId, order: Order) {
        match order {
            Order::Say(peer, transfer) => self.say(group, peer, transfer),
            Order::Receive { snapshot, manifest } => self.ports.store(StoreJob::Receive {
                group,
                snapshot,
                manifest,
            }),
            Order::Put {
                snapshot,
                file,
                chunk,
                bytes,
            } => self.ports.store(StoreJob::Put {
                group,
                snapshot,
                file,
                chunk,
                bytes,
            }),
            Order::Finish { snapshot } => self.ports.store(StoreJob::Finish { group, snapshot }),
            Order::Install { snapshot, anchor } => self.install(now, group, snapshot, anchor),
        }
    }

    /// A snapshot was received whole: the core decides what it makes of it.
    fn install(&mut self, now: Micros, id: GroupId, snapshot: SnapshotId, anchor: Anchor) {
        let group = self.groups.get_mut(&id).expect("looked up by the caller");
        let at = anchor.at;
        group.step(now, Input::Install { anchor, snapshot });
        let installs = group.raft().is_some_and(Raft::is_installing);
        if installs && mutated!(self.core.mutant, InstalledWithoutBase) {
            return self.on_base_durable(now, id, at, snapshot);
        }
        if !installs {
            // It has become old, or this replica leads.
            group.snapshots.fetch = None;
            group.received = None;
            if !group.snapshots.failing {
                self.ports.notice(Notice::SnapshotNotNeeded { group: id });
            }
        }
    }

    fn take_if_due(&mut self, now: Micros, id: GroupId, pins: bool) {
        let group = self.groups.get_mut(&id).expect("listed by the caller");
        let Phase::Running(raft) = &group.phase else {
            return;
        };
        let newest = group.snapshots.newest.as_ref().map(|kept| kept.at.index);
        let newest = newest.unwrap_or_default();
        let handed = group.handed;
        // Where the log begins at a snapshot that cannot be read, the machine has what it held.
        let lost = group.snapshots.newest.is_none()
            && handed == raft.base().index
            && group.snapshots.found < handed;
        // A machine with storage of its own is ahead of what a log that has just been opened knows to be committed,
        // and nothing beyond that may become an anchor.
        let ready = newest < handed
            && handed <= raft.commit().index
            && group.machine_ahead.is_none()
            && !raft.lacks_snapshot()
            && !raft.is_installing()
            && self.snapshot_turns.taking.is_none()
            && group.snapshots.may_take(now);
        if !ready {
            // One that is as new as can be is there already.
            if group.snapshots.taking.is_none() && handed <= newest && group.snapshots.wanted {
                group.snapshots.wanted = false;
                let current = Notice::SnapshotCurrent {
                    group: id,
                    at: newest,
                };
                self.ports.notice(current);
            }
            return;
        }
        let settings = &self.snapshot_settings;
        // Without one that can be read, what is due grows from where the log begins.
        let last = newest.max(raft.base().index);
        let bytes = raft.bytes_between(last, handed);
        let entries = handed.0.saturating_sub(last.0);
        let due = (bytes >= settings.log_bytes || entries >= settings.log_entries) && {
            let rank = rank_of(self.replica, &raft.membership().replicas());
            group.snapshots.is_due(settings, rank, bytes, entries)
        };
        // An attempt that failed is repeated, whatever it was made for: until one succeeds its failure stands.
        let again = group.snapshots.failing;
        if !due && !lost && !group.snapshots.wanted && !pins && !again {
            return;
        }
        // Everything handed over is applied before the machine comes to this.
        let Some(anchor) = raft.anchor_at(handed) else {
            return;
        };
        group.snapshots.wanted = false;
        group.snapshots.taking = Some((anchor.at, now));
        if mutated!(self.core.mutant, AnchorBeforeSnapshot) {
            let (at, sessions) = (anchor.at.index, anchor.sessions.clone());
            group.step(now, Input::Anchor { at, sessions });
        }
        self.snapshot_turns.taking = Some(id);
        self.snapshot_turns.taken = id;
        self.ports.take_snapshot(id, anchor);
    }

    /// Cuts what no follower, no transfer and no restart needs any more.
    fn cut_if_possible(&mut self, now: Micros, id: GroupId, short: bool, pins: bool) {
        let settings = self.snapshot_settings.clone();
        let group = self.groups.get_mut(&id).expect("listed by the caller");
        if now < group.snapshots.cut_at && !short {
            return;
        }
        group.snapshots.cut_at = now.after(CUT_US);
        let Phase::Running(raft) = &group.phase else {
            return;
        };
        let last = raft.last().index;
        group.snapshots.on_growth(raft.appended_bytes(), now);
        let kept = |from: Index| raft.bytes_between(from, last);
        // How far a follower is only its leader knows.
        let leads = raft.role() == Role::Leader;
        if leads
            && let Some((peer, text)) = group.snapshots.outrun(settings.retain_log_bytes, kept, now)
        {
            self.ports.notice(Notice::TransferOutrun {
                group: id,
                peer,
                text,
            });
        }
        let reached = raft.commit().index.min(group.handed);
        // A crash may have taken the anchor of a snapshot that is there. And while a group keeps the log of all, what
        // its machine has not made durable itself, which may be no-ops that it never hears of, a restart has from
        // the snapshot. What it has not been given yet the log keeps for it.
        if let Some(newest) = &group.snapshots.newest {
            let newest = newest.at;
            let found = group.snapshots.found;
            let reach = if pins {
                newest.index
            } else {
                newest.index.min(found)
            };
            let (base, known) = (raft.base().index, raft.anchor().index);
            let ours = raft.position(newest.index) == Some(newest);
            if base < reach && known < reach && reach <= reached && ours {
                group.snapshots.found = found.max(reach);
                let sessions = Default::default();
                group.step(
                    now,
                    Input::Anchor {
                        at: reach,
                        sessions,
                    },
                );
            }
        }
        let Phase::Running(raft) = &group.phase else {
            return;
        };
        let kept = |from: Index| raft.bytes_between(from, last);
        let mut anchor = raft.anchor().index.min(reached);
        // An anchor may be from a snapshot that cannot be read any more, or that never became where the log begins.
        if !mutated!(self.core.mutant, AnchorBeforeSnapshot) {
            anchor = anchor.min(group.snapshots.found);
        }
        let base = raft.base().index;
        if anchor <= base || raft.is_installing() {
            return;
        }
        let mut to = anchor;
        if !short {
            to = to.min(raft.index_before_bytes(settings.keep_log_bytes));
            let fences = group.snapshots.fences.values();
            let fences = fences.map(Fence::at);
            // Whoever needs more than there is begins again.
            let within = fences.filter(|at| base <= *at && kept(*at) <= settings.retain_log_bytes);
            if !mutated!(self.core.mutant, FenceIgnored) {
                to = within.fold(to, Index::min);
            }
        }
        // A base record a cut: not for every few entries.
        let least = if short { 1 } else { settings.log_bytes / 8 };
        let worth = to > base && (raft.bytes_between(base, to) >= least || to == anchor);
        if worth {
            let passed = if leads {
                group.snapshots.on_cut(to, settings.retain_log_bytes)
            } else {
                Vec::new()
            };
            for (peer, text) in passed {
                self.ports.notice(Notice::TransferOutrun {
                    group: id,
                    peer,
                    text,
                });
            }
            group.step(now, Input::Cut(to));
            // Nobody will read what was cut away.
            let gone = group.feed_trouble.take_if(|at| *at <= to).is_some();
            if gone && group.read_trouble.is_none() {
                self.ports.notice(Notice::ReadWorks { group: id });
            }
        }
    }

    fn on_written(
        &mut self,
        now: Micros,
        snapshot: &SnapshotSummary,
        durable: Option<LogPosition>,
    ) {
        let id = snapshot.group;
        self.snapshot_turns.taking = None;
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let newest = group.snapshots.newest.as_ref();
        if let Some(newest) = newest.filter(|newest| snapshot.at.index <= newest.at.index) {
            // One that was received meanwhile reaches further.
            let at = newest.at.index;
            group.snapshots.taking = None;
            self.ports.notice(Notice::SnapshotCurrent { group: id, at });
            return;
        }
        group.snapshots.on_taken(snapshot, now);
        let failing = std::mem::take(&mut group.snapshots.failing);
        // What a restart finds: a machine with storage of its own says how far that reaches, and another has this.
        let found = durable.map_or(snapshot.at.index, |durable| durable.index);
        let at = found.min(snapshot.at.index);
        group.snapshots.found = at;
        group.snapshots.own = durable.map_or(Index(0), |durable| durable.index);
        if let Phase::Running(raft) = &group.phase
            && raft.anchor().index < at
            && raft.base().index < at
        {
            let sessions = Default::default();
            group.step(now, Input::Anchor { at, sessions });
        }
        if group.snapshots.fetch.is_none() {
            self.ports.store(StoreJob::Discard { group: id });
        }
        let keep = group.snapshots.keep();
        let took_us = group.snapshots.newest.as_ref().and_then(|kept| kept.taken);
        let newest = snapshot.id;
        self.ports.store(StoreJob::Retire {
            group: id,
            newest,
            keep,
        });
        self.ports.notice(Notice::SnapshotTaken {
            group: id,
            at: snapshot.at,
            bytes: snapshot.bytes,
            took_us: took_us.map_or(0, |(_, us)| us),
            after_failure: failing,
        });
    }

    fn on_not_written(&mut self, now: Micros, id: GroupId, why: StoreFailure) {
        self.snapshot_turns.taking = None;
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.snapshots.on_not_taken(now);
        if why == StoreFailure::Ending {
            return;
        }
        let again = std::mem::replace(&mut group.snapshots.failing, true);
        self.ports.notice(Notice::SnapshotFailed {
            group: id,
            fetched: false,
            no_space: matches!(why, StoreFailure::NoSpace(_)),
            again,
            why: why.to_string(),
        });
    }

    /// A snapshot that cannot be read is none. Another one is taken.
    fn on_unreadable(&mut self, id: GroupId, snapshot: SnapshotId, why: &StoreFailure) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        // A sector that cannot be read is the usual form of rot.
        let damaged = matches!(
            why,
            StoreFailure::Damaged(_) | StoreFailure::Io(_) | StoreFailure::Gone(_)
        );
        let newest = group.snapshots.newest.as_ref();
        let is_newest = newest.is_some_and(|kept| kept.snapshot == snapshot);
        if !damaged || !is_newest {
            return;
        }
        group.snapshots.newest = None;
        group.snapshots.found = group.snapshots.own;
        group.snapshots.wanted = true;
        self.ports.notice(Notice::SnapshotUnreadable {
            group: id,
            snapshot,
            why: why.to_string(),
        });
    }

    fn on_opened(
        &mut self,
        now: Micros,
        id: GroupId,
        snapshot: SnapshotId,
        reader: Result<Box<dyn crate::snapshot::SnapshotReader + Send>, StoreFailure>,
    ) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let Some(installing) = group.snapshots.installing else {
            return;
        };
        if installing.snapshot != snapshot {
            return;
        }
        match reader {
            Ok(reader) => self.ports.install(id, installing.at, reader),
            // The next start finds the base and installs it.
            Err(StoreFailure::Ending) => {}
            Err(why) => self.on_not_installed(now, id, installing.at, why.to_string()),
        }
    }

    /// A received snapshot was read back a moment ago, and cannot be read now. Another one is fetched, as after a
    /// restart that finds this.
    fn on_not_installed(&mut self, now: Micros, id: GroupId, at: LogPosition, why: String) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let snapshots = &mut group.snapshots;
        let Some(installing) = snapshots
            .installing
            .take_if(|installing| installing.at == at)
        else {
            return;
        };
        let snapshot = installing.snapshot;
        snapshots.newest.take_if(|kept| kept.snapshot == snapshot);
        snapshots.found = snapshots.own;
        snapshots.on_not_installed(now);
        group.step(now, Input::SnapshotLost);
        self.ports.notice(Notice::SnapshotUnreadable {
            group: id,
            snapshot,
            why,
        });
        if let Phase::Running(raft) = &group.phase
            && raft.lacks_snapshot()
        {
            let base = raft.base();
            self.ports
                .notice(Notice::SnapshotLacking { group: id, base });
        }
    }

    fn on_installed(&mut self, now: Micros, id: GroupId, at: LogPosition) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let installs = |installing: &mut Installing| installing.at == at;
        let Some(installing) = group.snapshots.installing.take_if(installs) else {
            return;
        };
        group.handed = at.index;
        group.machine_ahead = None;
        group.read_back.clear();
        // The snapshot has their effects; what the machine would have answered is not known.
        while let Some(front) = group.tickets.front()
            && front.index <= at.index
        {
            let ticket = group.tickets.pop_front().expect("looked at above");
            for run in ticket.runs {
                run.fail(Failure::Abandoned);
            }
        }
        group.snapshots.cut_at = now;
        self.installed(now, id, installing);
    }

    /// Log and machine go on from a received snapshot: older ones have done their work.
    fn installed(&mut self, now: Micros, id: GroupId, installing: Installing) {
        let Installing { snapshot, at } = installing;
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.step(now, Input::MachineFollows);
        group.snapshots.on_installed();
        let keep = group.snapshots.keep();
        self.ports.store(StoreJob::Retire {
            group: id,
            newest: snapshot,
            keep,
        });
        self.ports.notice(Notice::SnapshotInstalled {
            group: id,
            snapshot,
            at,
        });
    }

    fn with_fetch(&mut self, group: GroupId, act: impl FnOnce(&mut Fetch)) {
        let group = self.groups.get_mut(&group);
        if let Some(fetch) = group.and_then(|group| group.snapshots.fetch.as_mut()) {
            act(fetch);
        }
    }

    fn say(&mut self, group: GroupId, to: NodeId, transfer: Transfer) {
        let term = self
            .groups
            .get(&group)
            .and_then(Group::raft)
            .map(Raft::term);
        let message = Message {
            from: self.replica,
            boot: self.boot,
            to,
            group,
            term: term.unwrap_or_default(),
            body: Body::Transfer(transfer),
        };
        self.ports.send(message);
    }
}

/// Who may have snapshots: the members, and the leader, for all members that a log knows which is far behind may be
/// gone.
pub(super) fn peers_of<O>(group: &Group<O>, own: NodeId) -> Vec<NodeId> {
    let Some(raft) = group.raft() else {
        return Vec::new();
    };
    let members = raft.membership().replicas().into_iter();
    let members = members.map(|replica| replica.id);
    let peers: BTreeSet<NodeId> = members.chain(raft.leader()).collect();
    peers.into_iter().filter(|id| *id != own).collect()
}
