//! The snapshots of one group, and what of its log is kept for whom.

use std::collections::BTreeMap;

use logdrive_raft::message::Progress;
use logdrive_raft::{GroupId, Index, LogPosition, Micros, NodeId, Replica, SnapshotId};
use logdrive_wal::snapshots::SnapshotSummary;

use crate::fetch::{Fetch, FetchStatus};
use crate::meter::Meter;

/// When snapshots are taken, and how much log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotSettings {
    /// A snapshot is taken after so many bytes of log since the last one. Replicas spread it a little.
    pub log_bytes: u64,
    /// Or after so many entries.
    pub log_entries: u64,
    /// So much of the newest log stays, whatever snapshots cover, for followers that are slow.
    pub keep_log_bytes: u64,
    /// At most so much log is kept for a follower that fetches a snapshot.
    pub retain_log_bytes: u64,
    /// A snapshot is fetched no faster than this, in bytes a second.
    pub fetch_bytes_per_s: u64,
    /// A leader reads entries that followers lack back from the log no faster than this, in bytes a second, or than three
    /// times what is written for each of them if that is more; while nothing is written, as fast as it can.
    pub catch_up_bytes_per_s: u64,
    /// One is written no faster than this, read back so, and taken over so by a machine that runs, in bytes a second. For
    /// whoever runs the store and the machines.
    pub write_bytes_per_s: u64,
}

impl SnapshotSettings {
    /// Snapshots are taken when somebody asks for one, and never by themselves.
    #[must_use]
    pub fn manual() -> Self {
        Self {
            log_bytes: u64::MAX,
            log_entries: u64::MAX,
            ..Self::default()
        }
    }

    pub(crate) fn is_manual(&self) -> bool {
        self.log_bytes == u64::MAX && self.log_entries == u64::MAX
    }
}

impl Default for SnapshotSettings {
    /// A snapshot every 256 MiB of log or million entries, 64 MiB of log kept, 2 GiB for whoever fetches one, at
    /// 64 MiB a second; written at 128, and as much read back for followers.
    fn default() -> Self {
        Self {
            log_bytes: 256 << 20,
            log_entries: 1_000_000,
            keep_log_bytes: 64 << 20,
            retain_log_bytes: 2 << 30,
            fetch_bytes_per_s: 64 << 20,
            catch_up_bytes_per_s: 128 << 20,
            write_bytes_per_s: 128 << 20,
        }
    }
}

/// How long log is kept for a transfer of which nothing is heard, and a snapshot that is no longer asked for.
const FENCE_US: u64 = 10_000_000;

/// How long a snapshot is kept for whoever was offered it: others are waited for before one is asked for.
const OFFERED_US: u64 = 1_000_000;

/// How many snapshots are kept for peers that were offered them, or ask for them.
const SENDING_MAX: usize = 16;

/// How long after a snapshot that a peer asked for another peer gets one, at least: so many times as long as it took.
const FOR_PEERS_TIMES: u64 = 4;

/// And no less than this.
const FOR_PEERS_US_MIN: u64 = 1_000_000;

/// How long after a snapshot that could not be taken the next one is.
const RETRY_US_MIN: u64 = 1_000_000;

/// The longest such wait.
const RETRY_US_MAX: u64 = 60_000_000;

/// How often it is looked whether the log can be cut.
pub(crate) const CUT_US: u64 = 100_000;

/// The most parts that are being read for peers.
pub(crate) const READS_MAX: usize = 8;

/// How long a transfer may look as if it could not catch up before that is said.
const OUTRUN_US: u64 = 8_000_000;

/// What a follower that catches up lacks of the log becomes more: it is outrun if all that may be kept is used up in so
/// long.
const OUTRUN_WITHIN_US: u64 = 120_000_000;

/// A follower that catches up advances at least so often.
const ADVANCE_US: u64 = 2_000_000;

/// A snapshot that is there and was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) snapshot: SnapshotId,
    pub(crate) at: LogPosition,
    pub(crate) bytes: u64,
    pub(crate) manifest_bytes: u32,
    /// When it was finished, and how long it took; none: before this boot, or by somebody else.
    pub(crate) taken: Option<(Micros, u64)>,
}

impl Kept {
    pub(crate) fn of(summary: &SnapshotSummary, taken: Option<(Micros, u64)>) -> Self {
        Self {
            snapshot: summary.id,
            at: summary.at,
            bytes: summary.bytes,
            manifest_bytes: u32::try_from(summary.manifest_bytes).unwrap_or(u32::MAX),
            taken,
        }
    }
}

/// Where a received snapshot is on its way into the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Installing {
    pub(crate) snapshot: SnapshotId,
    pub(crate) at: LogPosition,
}

/// A follower that fetches a snapshot, as it tells its leader, and then catches up with the log beyond it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    progress: Progress,
    heard: Micros,
    /// It has the snapshot, and the log up to here.
    reached: Option<Index>,
    /// What of the log it lacked when it was looked at last whether that becomes more, in bytes; and whether it had
    /// become more then.
    lacked: u64,
    fell_back: bool,
    /// Since when it looks as if it could not catch up, and whether that was said.
    outrun_since: Option<Micros>,
    outrun_said: bool,
}

/// The snapshots of a group.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    pub(crate) newest: Option<Kept>,
    /// How far a machine gets that is opened again: what this opening has found, or what was written and read back
    /// since. The log is not cut beyond it, whatever the anchor says.
    pub(crate) found: Index,
    /// How far the machine's own storage reaches, as far as it has said so in this boot.
    pub(crate) own: Index,
    /// One is being taken: up to where, and since when.
    pub(crate) taking: Option<(LogPosition, Micros)>,
    /// One is to be taken although it is not due.
    pub(crate) wanted: bool,
    retry_at: Option<Micros>,
    retry_us: u64,
    /// Until when none is taken because a peer asks for one.
    peers_wait_until: Micros,
    /// That a log which may not be cut keeps all the others from being released was said.
    pub(crate) pins_said: bool,
    /// The last attempt failed, and that was said.
    pub(crate) failing: bool,
    pub(crate) fences: BTreeMap<NodeId, Fence>,
    /// Which snapshots peers were offered or ask for, and until when they are kept for that.
    sending: BTreeMap<SnapshotId, Micros>,
    pub(crate) fetch: Option<Fetch>,
    /// Until when none is fetched: what was received last could not be read for the machine.
    fetch_at: Option<Micros>,
    fetch_us: u64,
    pub(crate) installing: Option<Installing>,
    pub(crate) cut_at: Micros,
    growth: Meter,
    growth_seen: u64,
}

impl Fence {
    /// What lies beyond this it still needs.
    pub(crate) fn at(&self) -> Index {
        self.reached.unwrap_or(self.progress.at.index)
    }

    fn bytes_left(&self) -> u64 {
        self.progress.bytes.saturating_sub(self.progress.bytes_have)
    }

    /// Whether it has looked for a while as if what is kept for it, `kept` bytes that may become `room` more, were to be
    /// used up before it gets there: the log grows by `growth` bytes a second.
    fn is_late(&mut self, growth: u64, kept: u64, room: u64, now: Micros) -> bool {
        match self.reached {
            None => self.fetches_late(growth, room, now),
            Some(_) => self.falls_back(kept, room, now),
        }
    }

    fn fetches_late(&mut self, growth: u64, room: u64, now: Micros) -> bool {
        let left = self.bytes_left();
        let rate = self.progress.bytes_per_s.max(1);
        // left / rate > room / growth, without dividing by what may be 0.
        let late = u128::from(left) * u128::from(growth) > u128::from(room) * u128::from(rate);
        if !late {
            self.outrun_since = None;
            return false;
        }
        OUTRUN_US <= now.since(*self.outrun_since.get_or_insert(now))
    }

    fn falls_back(&mut self, kept: u64, room: u64, now: Micros) -> bool {
        // Whoever does not advance at all has stopped, and is not outrun.
        if now.since(self.heard) > ADVANCE_US {
            self.outrun_since = None;
        }
        let since = *self.outrun_since.get_or_insert_with(|| {
            self.lacked = kept;
            now
        });
        let watched_us = now.since(since);
        if watched_us < OUTRUN_US {
            return false;
        }
        self.outrun_since = None;
        // At this pace the room is used up in so long. A lag that grows more slowly is one of the load, and one that
        // does so once, of a burst.
        let more = kept.saturating_sub(self.lacked);
        let falls = u128::from(more) * u128::from(OUTRUN_WITHIN_US)
            > u128::from(room) * u128::from(watched_us);
        std::mem::replace(&mut self.fell_back, falls) && falls
    }

    /// Why it will not get there.
    fn why_late(&self, peer: NodeId, growth: u64, kept: u64, retain: u64) -> String {
        let (at, growth) = (self.at(), growth >> 10);
        let room = retain.saturating_sub(kept);
        let does = match self.reached {
            None => format!(
                "node {peer} fetches a snapshot up to entry {at} at {} KiB/s and has {} bytes to go",
                self.progress.bytes_per_s >> 10,
                self.bytes_left()
            ),
            Some(_) => format!(
                "node {peer} has fetched a snapshot, and lacks {kept} bytes of log beyond entry {at}, which become \
                 more"
            ),
        };
        format!(
            "{does}, and the log grows by {growth} KiB/s: of the {retain} bytes that are kept for it {room} are left, \
             so it will not get there in time and has to begin again with a newer one"
        )
    }
}

impl Snapshots {
    /// Whether a snapshot up to `handed` is due: so much log lies beyond the last one.
    pub(crate) fn is_due(
        &self,
        settings: &SnapshotSettings,
        (rank, members): (usize, usize),
        bytes: u64,
        entries: u64,
    ) -> bool {
        let (rank, members) = (rank as u64, (members as u64).max(1));
        // Replicas apply the same log. Each waits a little longer than the one before, the first time much longer, so
        // that they do not all write at once.
        let spread = |all: u64| {
            let first = self.newest.is_none();
            let share = if first { members } else { 4 * members };
            all.saturating_add(all / share * rank)
        };
        bytes >= spread(settings.log_bytes) || entries >= spread(settings.log_entries)
    }

    pub(crate) fn may_take(&self, now: Micros) -> bool {
        let pauses = self.retry_at.is_some_and(|at| now < at);
        self.taking.is_none() && self.installing.is_none() && !pauses
    }

    /// Somebody asks for one, who would rather hear now why there is none than wait for the next attempt.
    pub(crate) fn on_request(&mut self) {
        self.wanted = true;
        self.retry_at = None;
    }

    /// A peer asks for one that reaches further than any here. Not each of its questions is worth a snapshot.
    pub(crate) fn on_peer_request(&mut self, now: Micros) {
        if self.wanted || now < self.peers_wait_until {
            return;
        }
        self.wanted = true;
        let took = self.newest.as_ref().and_then(|kept| kept.taken);
        let took_us = took.map_or(0, |(_, us)| us);
        self.peers_wait_until = now.after(FOR_PEERS_US_MIN.max(FOR_PEERS_TIMES * took_us));
    }

    pub(crate) fn on_taken(&mut self, summary: &SnapshotSummary, now: Micros) {
        let took_us = self.taking.take().map(|(_, since)| now.since(since));
        self.retry_at = None;
        self.retry_us = 0;
        self.newest = Some(Kept::of(summary, took_us.map(|us| (now, us))));
    }

    pub(crate) fn on_not_taken(&mut self, now: Micros) {
        self.taking = None;
        self.retry_us = (2 * self.retry_us).clamp(RETRY_US_MIN, RETRY_US_MAX);
        self.retry_at = Some(now.after(self.retry_us));
    }

    /// Whether another one may be fetched.
    pub(crate) fn may_fetch(&self, now: Micros) -> bool {
        let pauses = self.fetch_at.is_some_and(|at| now < at);
        self.fetch.is_none() && self.installing.is_none() && !pauses
    }

    /// What was received could not be read for the machine. On a disk that fails each time there is a pause between
    /// two attempts that grows, so that not all of a peer's disk and network is spent on this.
    pub(crate) fn on_not_installed(&mut self, now: Micros) {
        self.fetch_us = (2 * self.fetch_us).clamp(RETRY_US_MIN, RETRY_US_MAX);
        self.fetch_at = Some(now.after(self.fetch_us));
    }

    /// The machine has taken a received one over.
    pub(crate) fn on_installed(&mut self) {
        self.fetch_us = 0;
        self.fetch_at = None;
    }

    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let fetch = self.fetch.as_ref().and_then(Fetch::next_deadline);
        let retry = self.retry_at.filter(|_| self.taking.is_none());
        fetch.into_iter().chain(retry).chain(self.fetch_at).min()
    }

    /// Time has passed, and so far the logs of followers match; `near`: as far as log is kept for anybody. Says whether a
    /// transfer is over that was said to be outrun.
    pub(crate) fn on_tick(
        &mut self,
        now: Micros,
        matched: impl Fn(NodeId) -> Option<Index>,
        near: impl Fn(Index) -> bool,
    ) -> bool {
        // The time for another attempt has come; it need not wake anybody again.
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if self.fetch_at.is_some_and(|at| at <= now) {
            self.fetch_at = None;
        }
        let outrun =
            |fences: &BTreeMap<NodeId, Fence>| fences.values().any(|fence| fence.outrun_said);
        let before = outrun(&self.fences);
        self.fences.retain(|peer, fence| {
            // Whoever has what the snapshot holds goes on with the log. That has grown meanwhile, and if it were cut
            // now, by the next snapshot, the follower would need that one, and so for ever.
            let reached = matched(*peer).filter(|index| fence.progress.at.index <= *index);
            if fence.reached < reached {
                if fence.reached.is_none() {
                    fence.outrun_since = None;
                    fence.outrun_said = false;
                }
                fence.reached = reached;
                fence.heard = now;
            }
            !fence.reached.is_some_and(&near) && now.since(fence.heard) < FENCE_US
        });
        self.sending.retain(|_, until| now < *until);
        before && !outrun(&self.fences)
    }

    /// Whether log is kept for any follower that fetches a snapshot, or has one and catches up.
    pub(crate) fn is_sending(&self) -> bool {
        !self.fences.is_empty()
    }

    /// Followers that fetch a snapshot, as they tell it.
    pub(crate) fn transfers(&self) -> Vec<(NodeId, Progress)> {
        let fences = self.fences.iter();
        let fetch = fences.filter(|(_, fence)| fence.reached.is_none());
        fetch.map(|(peer, fence)| (*peer, fence.progress)).collect()
    }

    /// A follower tells how far it is with a snapshot.
    pub(crate) fn on_progress(&mut self, peer: NodeId, progress: Progress, now: Micros) {
        let before = self.fences.get(&peer);
        let same = before.filter(|fence| fence.progress.snapshot == progress.snapshot);
        let fence = Fence {
            progress,
            heard: now,
            reached: None,
            lacked: 0,
            fell_back: false,
            outrun_since: same.and_then(|fence| fence.outrun_since),
            outrun_said: before.is_some_and(|fence| fence.outrun_said),
        };
        self.fences.insert(peer, fence);
    }

    /// A peer asks for parts of this one: it stays.
    pub(crate) fn on_asked(&mut self, snapshot: SnapshotId, now: Micros) {
        self.keep_until(snapshot, now.after(FENCE_US));
    }

    /// A peer was offered this one: it stays until it may have been asked for.
    pub(crate) fn on_offered(&mut self, snapshot: SnapshotId, now: Micros) {
        self.keep_until(snapshot, now.after(OFFERED_US));
    }

    fn keep_until(&mut self, snapshot: SnapshotId, until: Micros) {
        let kept = self.sending.entry(snapshot).or_default();
        *kept = until.max(*kept);
        if self.sending.len() > SENDING_MAX {
            let soonest = self.sending.iter().min_by_key(|(_, until)| **until);
            let soonest = soonest.map(|(snapshot, _)| *snapshot);
            soonest.map(|snapshot| self.sending.remove(&snapshot));
        }
    }

    /// What must not be removed although it is not the newest.
    pub(crate) fn keep(&self) -> Vec<SnapshotId> {
        self.sending.keys().copied().collect()
    }

    /// How much log has come to be.
    pub(crate) fn on_growth(&mut self, appended_bytes: u64, now: Micros) {
        let grown = appended_bytes.saturating_sub(self.growth_seen);
        if grown > 0 {
            self.growth.add(grown, now);
        } else {
            self.growth.tick(now);
        }
        self.growth_seen = appended_bytes;
    }

    /// Bytes of log a second, of late.
    pub(crate) fn growth_per_s(&self) -> u64 {
        self.growth.per_s()
    }

    /// A follower that the log outruns while it fetches a snapshot, or while it catches up from there: why.
    pub(crate) fn outrun(
        &mut self,
        retain_bytes: u64,
        kept_bytes: impl Fn(Index) -> u64,
        now: Micros,
    ) -> Option<(NodeId, String)> {
        let growth = self.growth.per_s();
        for (peer, fence) in &mut self.fences {
            let kept = kept_bytes(fence.at());
            let room = retain_bytes.saturating_sub(kept);
            if !fence.is_late(growth, kept, room, now) || fence.outrun_said {
                continue;
            }
            fence.outrun_said = true;
            return Some((*peer, fence.why_late(*peer, growth, kept, retain_bytes)));
        }
        None
    }

    /// The log is cut up to here: of whom that is said who needed more of it, and why.
    pub(crate) fn on_cut(&mut self, to: Index, retain_bytes: u64) -> Vec<(NodeId, String)> {
        let passed = self.fences.iter_mut();
        let passed = passed.filter(|(_, fence)| fence.at() < to && !fence.outrun_said);
        let said = passed.map(|(peer, fence)| {
            fence.outrun_said = true;
            let text = format!(
                "node {peer} needs the log beyond entry {}, and it is cut up to entry {to}: more than the \
                 {retain_bytes} bytes that are kept for it, or than the log has room for; it has to begin again with \
                 a newer snapshot",
                fence.at()
            );
            (*peer, text)
        });
        said.collect()
    }

    pub(crate) fn fetch_status(&self) -> Option<FetchStatus> {
        self.fetch.as_ref().and_then(Fetch::status)
    }
}

/// Which replica of how many this one is, in the order of their numbers.
pub(crate) fn rank_of(own: Replica, members: &[Replica]) -> (usize, usize) {
    let rank = members.iter().position(|member| *member == own);
    (rank.unwrap_or(0), members.len())
}

/// The groups of a shard that take or fetch a snapshot now: one after the other, so that memory does not grow with
/// their number.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// A machine's handle is being written out.
    pub(crate) taking: Option<GroupId>,
    /// Which was the last: those after it come first.
    pub(crate) taken: GroupId,
    /// How many parts are being read for peers.
    pub(crate) reads: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(bytes_have: u64, bytes_per_s: u64) -> Progress {
        Progress {
            snapshot: SnapshotId(1),
            at: LogPosition::default(),
            bytes: 1000,
            bytes_have,
            bytes_per_s,
        }
    }

    #[test]
    fn replicas_do_not_take_their_snapshots_together() {
        let settings = SnapshotSettings {
            log_bytes: 1200,
            ..SnapshotSettings::default()
        };
        let mut snapshots = Snapshots::default();
        let due = |snapshots: &Snapshots, rank| {
            (0..4000).find(|bytes| snapshots.is_due(&settings, (rank, 3), *bytes, 0))
        };
        let first: Vec<_> = (0..3).map(|rank| due(&snapshots, rank).unwrap()).collect();
        assert_eq!(first, [1200, 1600, 2000]);
        snapshots.newest = Some(Kept {
            snapshot: SnapshotId(1),
            at: LogPosition::default(),
            bytes: 0,
            manifest_bytes: 0,
            taken: None,
        });
        let later: Vec<_> = (0..3).map(|rank| due(&snapshots, rank).unwrap()).collect();
        assert_eq!(later, [1200, 1300, 1400]);
    }

    #[test]
    fn a_transfer_that_cannot_catch_up_is_told_once_and_within_seconds() {
        let mut snapshots = Snapshots::default();
        let mut said = Vec::new();
        for tenth in 0..300 {
            let now = Micros(tenth * 100_000);
            // 100 bytes a second of log, 10 of the snapshot.
            snapshots.on_growth(10 * tenth, now);
            snapshots.on_progress(NodeId(3), progress(tenth, 10), now);
            let kept = |_| 10 * tenth;
            if let Some((peer, text)) = snapshots.outrun(5000, kept, now) {
                said.push((peer, now, text));
            }
        }
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].1 < Micros(15_000_000), "{said:?}");
        assert!(said[0].2.contains("begin again"), "{said:?}");
    }

    #[test]
    fn a_transfer_that_catches_up_is_no_news() {
        let mut snapshots = Snapshots::default();
        for tenth in 0..100 {
            let now = Micros(tenth * 100_000);
            snapshots.on_growth(10 * tenth, now);
            snapshots.on_progress(NodeId(3), progress(10 * tenth, 100), now);
            assert_eq!(snapshots.outrun(5000, |_| 10 * tenth, now), None);
        }
    }

    /// Of a follower that has its snapshot, and lacks so much of the log, tenth of a second by tenth.
    fn said_while_it_catches_up(lacks: impl Fn(u64) -> u64) -> Vec<(Micros, String)> {
        let mut snapshots = Snapshots::default();
        let mut said = Vec::new();
        snapshots.on_progress(NodeId(3), progress(1000, 10), Micros(0));
        for tenth in 0..300 {
            let now = Micros(tenth * 100_000);
            snapshots.on_growth(10 * tenth, now);
            snapshots.on_tick(now, |_| Some(Index(tenth)), |_| false);
            let text = snapshots.outrun(5000, |_| lacks(tenth), now);
            said.extend(text.map(|(_, text)| (now, text)));
        }
        said
    }

    #[test]
    fn a_follower_that_has_its_snapshot_and_is_outrun_is_told_once_and_within_seconds() {
        let said = said_while_it_catches_up(|tenth| 100 + 8 * tenth);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].0 < Micros(20_000_000), "{said:?}");
        assert!(said[0].1.contains("become more"), "{said:?}");
        // However slowly it comes nearer, it comes nearer.
        let said = said_while_it_catches_up(|tenth| 1000 + tenth % 50 - tenth / 50);
        assert_eq!(said, []);
        // It keeps up, at a distance.
        let said = said_while_it_catches_up(|tenth| 1000 + tenth % 7);
        assert_eq!(said, []);
        // It fell back for a while.
        let said = said_while_it_catches_up(|tenth| match tenth {
            0..50 => 1000,
            50..100 => 1000 + 30 * (tenth - 50),
            _ => 2500 - 7 * (tenth - 100),
        });
        assert_eq!(said, []);
    }

    #[test]
    fn a_follower_that_has_stopped_while_it_caught_up_is_not_outrun() {
        let mut snapshots = Snapshots::default();
        snapshots.on_progress(NodeId(3), progress(1000, 10), Micros(0));
        for tenth in 0..99 {
            let now = Micros(tenth * 100_000);
            snapshots.on_growth(1000 * tenth, now);
            snapshots.on_tick(now, |_| Some(Index(tenth.min(5))), |_| false);
            assert_eq!(snapshots.outrun(5000, |_| 1000 * tenth, now), None);
        }
        assert!(snapshots.is_sending());
    }

    #[test]
    fn a_log_that_is_cut_although_a_follower_needs_it_is_told_once() {
        let mut snapshots = Snapshots::default();
        snapshots.on_progress(NodeId(3), progress(1, 1), Micros(0));
        snapshots.on_tick(Micros(0), |_| Some(Index(5)), |_| false);
        assert_eq!(snapshots.on_cut(Index(5), 1000), []);
        let said = snapshots.on_cut(Index(6), 1000);
        assert!(said[0].1.contains("beyond entry 5"), "{said:?}");
        assert_eq!(snapshots.on_cut(Index(7), 1000), []);
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_not_kept() {
        let mut snapshots = Snapshots::default();
        snapshots.on_asked(SnapshotId(7), Micros(0));
        snapshots.on_progress(NodeId(3), progress(1, 1), Micros(0));
        snapshots.on_tick(Micros(FENCE_US - 1), |_| None, |_| false);
        assert_eq!(snapshots.keep(), [SnapshotId(7)]);
        assert_eq!(snapshots.fences.len(), 1);
        snapshots.on_tick(Micros(FENCE_US), |_| None, |_| false);
        assert!(snapshots.keep().is_empty() && snapshots.fences.is_empty());
    }

    #[test]
    fn peers_that_ask_all_the_time_get_a_snapshot_now_and_then() {
        let mut snapshots = Snapshots::default();
        let mut begun = 0;
        for tenth in 0..100 {
            snapshots.on_peer_request(Micros(tenth * 100_000));
            begun += u64::from(std::mem::take(&mut snapshots.wanted));
        }
        assert_eq!(begun, 10);
        for id in 0..1000 {
            snapshots.on_asked(SnapshotId(id), Micros(u64::try_from(id).unwrap()));
        }
        assert_eq!(snapshots.keep().len(), SENDING_MAX);
        assert!(snapshots.keep().contains(&SnapshotId(999)));
    }

    #[test]
    fn log_is_kept_until_whoever_has_fetched_a_snapshot_has_caught_up() {
        let mut snapshots = Snapshots::default();
        let at = LogPosition {
            index: Index(5),
            ..LogPosition::default()
        };
        let progress = Progress {
            at,
            ..progress(1, 1)
        };
        snapshots.on_progress(NodeId(3), progress, Micros(0));
        let mut reached = |us: u64, index: u64| {
            let near = |at: Index| at >= Index(100);
            snapshots.on_tick(Micros(us), |_| Some(Index(index)), near);
            let at = snapshots.fences.values().map(|fence| fence.at().0).next();
            (snapshots.transfers().len(), at)
        };
        assert_eq!(reached(0, 4), (1, Some(5)));
        assert_eq!(reached(0, 5), (0, Some(5)));
        // As long as it gets on.
        assert_eq!(reached(FENCE_US - 1, 40), (0, Some(40)));
        assert_eq!(reached(2 * FENCE_US - 2, 99), (0, Some(99)));
        assert_eq!(reached(2 * FENCE_US, 100), (0, None));
        let stuck = |us| {
            let mut snapshots = Snapshots::default();
            snapshots.on_progress(NodeId(3), progress, Micros(0));
            snapshots.on_tick(Micros(0), |_| Some(Index(5)), |_| false);
            snapshots.on_tick(Micros(us), |_| Some(Index(5)), |_| false);
            snapshots.is_sending()
        };
        assert!(stuck(FENCE_US - 1) && !stuck(FENCE_US));
    }

    #[test]
    fn what_was_offered_is_there_when_it_is_asked_for() {
        let mut snapshots = Snapshots::default();
        snapshots.on_offered(SnapshotId(7), Micros(0));
        snapshots.on_tick(Micros(OFFERED_US - 1), |_| None, |_| false);
        assert_eq!(snapshots.keep(), [SnapshotId(7)]);
        snapshots.on_asked(SnapshotId(7), Micros(OFFERED_US - 1));
        snapshots.on_offered(SnapshotId(7), Micros(OFFERED_US));
        snapshots.on_tick(Micros(FENCE_US), |_| None, |_| false);
        assert_eq!(snapshots.keep(), [SnapshotId(7)]);
    }

    #[test]
    fn attempts_that_fail_are_made_at_growing_intervals() {
        let mut snapshots = Snapshots::default();
        let mut now = Micros(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            snapshots.taking = Some((LogPosition::default(), now));
            snapshots.on_not_taken(now);
            assert!(!snapshots.may_take(now));
            let next = snapshots.next_deadline().unwrap();
            waits.push(next.since(now) / 1_000_000);
            now = next;
            snapshots.on_tick(now, |_| None, |_| false);
            assert!(snapshots.may_take(now));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn what_cannot_be_installed_is_fetched_again_at_growing_intervals() {
        let mut snapshots = Snapshots::default();
        let mut now = Micros(0);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(snapshots.may_fetch(now));
            snapshots.on_not_installed(now);
            assert!(!snapshots.may_fetch(now));
            let next = snapshots.next_deadline().unwrap();
            assert_eq!(next.since(now), seconds * 1_000_000);
            now = next;
            snapshots.on_tick(now, |_| None, |_| false);
        }
        snapshots.on_not_installed(now);
        snapshots.on_installed();
        assert!(snapshots.may_fetch(now));
        assert_eq!(snapshots.next_deadline(), None);
    }

    /// A follower that was outrun begins again with another snapshot, and gets there.
    #[test]
    fn what_was_said_of_a_transfer_is_over_when_another_one_takes_its_place() {
        let mut snapshots = Snapshots::default();
        let mut said = 0;
        let mut over = 0;
        for tenth in 0..300 {
            let now = Micros(tenth * 100_000);
            snapshots.on_growth(10 * tenth, now);
            snapshots.on_progress(NodeId(3), progress(tenth, 10), now);
            said += u32::from(snapshots.outrun(5000, |_| 10 * tenth, now).is_some());
            over += u32::from(snapshots.on_tick(now, |_| None, |_| false));
        }
        assert_eq!((said, over), (1, 0));
        for tenth in 300..310 {
            let now = Micros(tenth * 100_000);
            let newer = Progress {
                snapshot: SnapshotId(2),
                ..progress(1000, 1000)
            };
            snapshots.on_progress(NodeId(3), newer, now);
            said += u32::from(snapshots.outrun(5000, |_| 0, now).is_some());
            over += u32::from(snapshots.on_tick(now, |_| None, |_| false));
        }
        // It has all of it, and goes on with the log.
        let matched = |_| Some(Index(9));
        over += u32::from(snapshots.on_tick(Micros(31_000_000), matched, |_| true));
        assert!(snapshots.fences.is_empty());
        assert_eq!((said, over), (1, 1));
    }
}
