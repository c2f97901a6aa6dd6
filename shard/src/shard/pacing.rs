//! How fast a leader reads entries back for followers that lag.
//!
//! As fast as it can, catching up takes every processor that there is, the leader's and the follower's, and clients wait
//! for seconds. So it is as fast as a setting says, or than a multiple of the load: then it ends, whatever the load.

use std::collections::VecDeque;

use logdrive_raft::io::ReadLog;
use logdrive_raft::{GroupId, Micros};

/// A follower gets so many times what is written, at least: it comes nearer by twice the load.
const TIMES_THE_LOAD: u64 = 3;

/// Reads for followers, and when the next one may begin.
#[derive(Debug, Default)]
pub(super) struct FeedPace {
    /// In the order in which they were wanted: one a follower and group, at most.
    waiting: VecDeque<(GroupId, ReadLog)>,
    due: Micros,
}

impl FeedPace {
    /// A read is wanted.
    pub(super) fn want(&mut self, group: GroupId, read: ReadLog) {
        self.waiting.push_back((group, read));
    }

    /// A read that may begin.
    pub(super) fn next(&mut self, now: Micros) -> Option<(GroupId, ReadLog)> {
        if now < self.due {
            return None;
        }
        self.waiting.pop_front()
    }

    /// So many bytes have been read, while the log grows by so many a second.
    pub(super) fn on_read(&mut self, bytes: u64, bytes_per_s: u64, growth_per_s: u64, now: Micros) {
        let rate = bytes_per_s.max(growth_per_s.saturating_mul(TIMES_THE_LOAD));
        let us = bytes.saturating_mul(1_000_000) / rate.max(1);
        // What was not read in time is not made up for at once.
        self.due = Micros(self.due.max(now).0.saturating_add(us));
    }

    /// When the next one may begin, if any waits.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        (!self.waiting.is_empty()).then_some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use logdrive_raft::{Index, NodeId};

    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Two followers that want more whenever they have got something: bytes of each within two seconds.
    fn fed(bytes_per_s: u64, growth_per_s: u64) -> [u64; 2] {
        let mut pace = FeedPace::default();
        let read = |peer| ReadLog {
            peer: NodeId(peer),
            from: Index(1),
            through: Index(9),
            bytes_max: 1 << 20,
        };
        for peer in [0, 1] {
            pace.want(GroupId(1), read(peer));
        }
        let mut fed = [0; 2];
        let mut now = Micros(7 * SECOND);
        let end = Micros(9 * SECOND);
        while now < end {
            while let Some((group, read)) = pace.next(now) {
                fed[read.peer.0 as usize] += 50_000;
                pace.on_read(50_000, bytes_per_s, growth_per_s, now);
                pace.want(group, read);
            }
            now = pace.next_deadline().unwrap();
        }
        fed
    }

    #[test]
    fn followers_share_what_the_setting_or_the_load_allows() {
        for (bytes_per_s, growth_per_s, rate) in [
            (5_000_000, 0, 5_000_000),
            (5_000_000, 1_000_000, 5_000_000),
            (5_000_000, 4_000_000, 12_000_000),
        ] {
            let fed = fed(bytes_per_s, growth_per_s);
            let sum = fed[0] + fed[1];
            assert!((2 * rate..=2 * rate + 50_000).contains(&sum), "{fed:?}");
            assert!(fed[0].abs_diff(fed[1]) <= 50_000, "{fed:?}");
        }
    }

    #[test]
    fn nobody_who_waits_means_no_deadline_and_no_time_is_saved_up() {
        let mut pace = FeedPace::default();
        assert_eq!(pace.next_deadline(), None);
        pace.on_read(1_000, 1_000, 0, Micros(SECOND));
        assert_eq!(pace.next_deadline(), None);
        pace.on_read(1_000, 1_000, 0, Micros(60 * SECOND));
        let read = ReadLog {
            peer: NodeId(2),
            from: Index(1),
            through: Index(1),
            bytes_max: 1,
        };
        pace.want(GroupId(1), read);
        assert_eq!(pace.next_deadline(), Some(Micros(61 * SECOND)));
        assert_eq!(pace.next(Micros(61 * SECOND - 1)), None);
        assert_eq!(pace.next(Micros(61 * SECOND)), Some((GroupId(1), read)));
    }
}
