//! How fast a leader reads entries back for followers that lag.
//!
//! As fast as it can, catching up takes every processor that there is, the leader's and the follower's, and clients wait
//! for seconds. So while something is written it is as fast as a setting says, or than a multiple of the load: then it
//! ends, whatever the load. While nothing is written there is nobody to disturb, and perhaps nothing is because what is
//! caught up here is missing for a quorum: then it is as fast as it can be.

use std::collections::VecDeque;

use logdrive_raft::io::ReadLog;
use logdrive_raft::{GroupId, Micros};

/// Each follower gets so many times what is written, at least: it comes nearer by twice the load.
const TIMES_THE_LOAD: u64 = 3;

/// So many reads for followers are under way at most. One keeps a disk busy; a few hide how long it takes.
const ACTIVE_MAX: usize = 4;

/// Reads for followers, and when the next one may begin.
#[derive(Debug, Default)]
pub(super) struct FeedPace {
    /// In the order in which they were wanted: one a follower and group, at most.
    waiting: VecDeque<(GroupId, ReadLog)>,
    active: usize,
    due: Micros,
}

impl FeedPace {
    /// A read is wanted. For the answer to an earlier one of that follower nobody waits any more.
    pub(super) fn want(&mut self, group: GroupId, read: ReadLog) {
        let same = |(of, other): &&mut (GroupId, ReadLog)| *of == group && other.peer == read.peer;
        match self.waiting.iter_mut().find(same) {
            Some((_, earlier)) => *earlier = read,
            None => self.waiting.push_back((group, read)),
        }
    }

    /// A read that begins now; [`FeedPace::on_read`] says that it has ended.
    pub(super) fn next(&mut self, now: Micros) -> Option<(GroupId, ReadLog)> {
        if now < self.due || self.active == ACTIVE_MAX {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.active += 1;
        Some(next)
    }

    /// So many bytes have come of a read that began then, while so many a second are written.
    pub(super) fn on_read(&mut self, bytes: u64, began: Micros, bytes_per_s: u64, load_per_s: u64) {
        self.active -= 1;
        if load_per_s == 0 {
            return;
        }
        let followers = (self.waiting.len() + self.active + 1) as u64;
        let wanted = load_per_s.saturating_mul(TIMES_THE_LOAD * followers);
        let us = bytes.saturating_mul(1_000_000) / bytes_per_s.max(wanted).max(1);
        // What was not read in time is not made up for at once.
        self.due = Micros(self.due.max(began).0.saturating_add(us));
    }

    /// When the next one may begin, if one waits for that.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        (!self.waiting.is_empty() && self.active < ACTIVE_MAX).then_some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use logdrive_raft::{Index, NodeId};

    use super::*;

    const SECOND: u64 = 1_000_000;
    const BYTES: u64 = 50_000;

    fn read(peer: u64) -> ReadLog {
        ReadLog {
            peer: NodeId(peer),
            from: Index(1),
            through: Index(9),
            bytes_max: 1 << 20,
        }
    }

    /// Two followers that want more whenever they have got something, from a disk that takes a while: bytes of each
    /// within two seconds.
    fn fed(bytes_per_s: u64, load_per_s: u64) -> [u64; 2] {
        const DISK_US: u64 = 1_000;
        let mut pace = FeedPace::default();
        for peer in [0, 1] {
            pace.want(GroupId(1), read(peer));
        }
        let mut fed = [0; 2];
        let mut under_way = VecDeque::new();
        let mut now = Micros(7 * SECOND);
        while now < Micros(9 * SECOND) {
            while let Some((group, read)) = pace.next(now) {
                under_way.push_back((now, group, read));
            }
            let ended = under_way.pop_front_if(|(began, ..)| now.since(*began) >= DISK_US);
            if let Some((began, group, read)) = ended {
                fed[read.peer.0 as usize] += BYTES;
                pace.on_read(BYTES, began, bytes_per_s, load_per_s);
                pace.want(group, read);
                continue;
            }
            let disk = under_way.front().map(|(began, ..)| began.after(DISK_US));
            now = disk
                .into_iter()
                .chain(pace.next_deadline())
                .min()
                .unwrap()
                .max(now);
        }
        fed
    }

    #[test]
    fn followers_share_what_the_setting_allows_and_each_gets_more_than_the_load() {
        for (bytes_per_s, load_per_s, rate) in [
            (5_000_000, 1, 5_000_000),
            (5_000_000, 500_000, 5_000_000),
            (5_000_000, 4_000_000, 24_000_000),
        ] {
            let fed = fed(bytes_per_s, load_per_s);
            let sum = fed[0] + fed[1];
            assert!(
                sum.abs_diff(2 * rate) <= 4 * BYTES,
                "{fed:?} of {rate} a second"
            );
            assert!(fed[0].abs_diff(fed[1]) <= 2 * BYTES, "{fed:?}");
        }
        // Nothing is written: as fast as the disk.
        let fed = fed(5_000_000, 0);
        assert!(
            fed.iter().all(|fed| fed.abs_diff(2_000 * BYTES) <= BYTES),
            "{fed:?}"
        );
    }

    #[test]
    fn a_follower_waits_for_one_read_and_a_few_are_under_way() {
        let mut pace = FeedPace::default();
        assert_eq!(pace.next_deadline(), None);
        for peer in 0..9 {
            pace.want(GroupId(1), read(peer));
        }
        let later = ReadLog {
            from: Index(5),
            ..read(0)
        };
        pace.want(GroupId(1), later);
        let now = Micros(SECOND);
        assert_eq!(pace.next(now), Some((GroupId(1), later)));
        let more = std::iter::from_fn(|| pace.next(now)).count();
        assert_eq!(1 + more, ACTIVE_MAX);
        // It waits for a read to end, not for a time.
        assert_eq!(pace.next_deadline(), None);
        pace.on_read(1_000, now, 1_000, 1);
        assert_eq!(pace.next_deadline(), Some(Micros(2 * SECOND)));
        assert_eq!(pace.next(Micros(2 * SECOND - 1)), None);
        assert!(pace.next(Micros(2 * SECOND)).is_some());
    }
}
