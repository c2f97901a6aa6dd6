//! One follower as the leader sees it: what it holds, what is on its way, and whether to send more.
//!
//! Sends run ahead of acks (thesis §10.2.2). `next_index` is therefore a guess, `match_index` a fact, and
//! only within one replication session: what an earlier session proved, this one has to prove again.

use crate::ids::{Boot, Index, Micros, Replica, ReplicationSession};
use crate::io::{Config, PeerStatus};
use crate::log::Log;
use crate::mutated;

/// One follower, as long as its leader leads.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) replica: Replica,
    /// The boot of the follower that answered last. Another one means that it came back.
    pub(crate) boot: Option<Boot>,
    pub(crate) session: ReplicationSession,
    pub(crate) mode: Mode,
    /// The highest index known to be durable and proved there. Grows while the session lasts.
    pub(crate) match_index: Option<Index>,
    /// The next entry to send.
    pub(crate) next_index: Index,
    /// When it last answered anything.
    pub(crate) heard: Micros,
    /// When anything was last sent that keeps it from campaigning.
    pub(crate) sent: Micros,
    /// When it last moved on, or was last asked where it is.
    pub(crate) asked: Micros,
    /// Entries have been asked for from the disk, from here.
    pub(crate) reading: Option<Index>,
    /// The disk could not give them; not asked again before the next heartbeat.
    pub(crate) read_failed: bool,
    /// What it needs next is no longer in the log: it has to fetch a snapshot.
    pub(crate) behind: bool,
    /// It lags: the way there takes no more appends for now. What is not taken is not remembered, it is
    /// in the log.
    pub(crate) lane_full: bool,
    /// The way there takes no append of this session that goes on from further than this: one before it was not taken.
    pub(crate) gap: Option<Index>,
}

/// How entries are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Where the follower's log agrees is not known: one append at a time until one is acknowledged.
    Probe {
        /// One is on its way. Asked again when a heartbeat is due.
        waiting: bool,
        /// The guess is good enough to send entries along.
        hopeful: bool,
    },
    /// Appends follow each other as far as the window allows.
    Replicate,
}

impl Progress {
    /// A follower of a new leader.
    pub(crate) fn new(
        replica: Replica,
        session: ReplicationSession,
        next_index: Index,
        now: Micros,
    ) -> Self {
        Self {
            replica,
            boot: None,
            session,
            mode: Mode::Probe {
                waiting: false,
                hopeful: true,
            },
            match_index: None,
            next_index,
            heard: now,
            sent: now,
            asked: now,
            reading: None,
            read_failed: false,
            behind: false,
            lane_full: false,
            gap: None,
        }
    }

    /// The log begins at `base` from now on. What is known of a follower that ends below it is of no use any more:
    /// where it is has to be asked.
    pub(crate) fn cut(&mut self, base: Index) {
        if self.match_index.is_some_and(|matched| matched < base) {
            self.match_index = None;
        }
        if base < self.next_index && (self.match_index.is_some() || self.mode != Mode::Replicate) {
            return;
        }
        self.next_index = self.next_index.max(base.next());
        self.mode = Mode::Probe {
            waiting: false,
            hopeful: false,
        };
        self.reading = None;
    }

    /// What was on its way may never arrive. Nothing is known but where it is worth asking.
    pub(crate) fn open_session(&mut self, session: ReplicationSession) {
        assert!(self.session < session);
        self.session = session;
        if let Some(matched) = self.match_index.take() {
            self.next_index = matched.next();
        }
        self.mode = Mode::Probe {
            waiting: false,
            hopeful: true,
        };
        self.reading = None;
        self.read_failed = false;
        self.lane_full = false;
        self.gap = None;
    }

    /// Whether what comes next lies beyond a gap that nothing will fill: the log was cut there, or the follower has
    /// got it from elsewhere.
    pub(crate) fn has_skipped(&self) -> bool {
        self.gap.is_some_and(|gap| gap.next() < self.next_index)
    }

    /// Bytes and entries on their way: everything between what is durable there and what was sent.
    pub(crate) fn inflight(&self, log: &Log) -> (u64, u64) {
        let Some(matched) = self.match_index else {
            return (0, 0);
        };
        let sent = Index(self.next_index.0 - 1);
        (log.bytes_between(matched, sent), sent.0 - matched.0)
    }

    /// How many more bytes and entries may be sent. With nothing on its way one entry of any size may.
    pub(crate) fn window(&self, log: &Log, config: &Config) -> Option<(u64, u64)> {
        let (bytes, entries) = self.inflight(log);
        let bytes_left = (config.inflight_bytes_max as u64).saturating_sub(bytes);
        let entries_max = if mutated!(config.mutant, InflightEntriesUnbounded) {
            u64::MAX
        } else {
            config.inflight_entries_max as u64
        };
        let entries_left = entries_max.saturating_sub(entries);
        if entries == 0 {
            return Some((bytes_left.max(1), entries_left.max(1)));
        }
        (bytes_left > 0 && entries_left > 0).then_some((bytes_left, entries_left))
    }

    /// The follower has everything up to `index`, durable and proved.
    pub(crate) fn on_ack(&mut self, index: Index, now: Micros) {
        if self.match_index.is_none_or(|matched| matched < index) {
            self.match_index = Some(index);
            self.asked = now;
        }
        self.behind = false;
        if self.mode != Mode::Replicate && index.next() < self.next_index {
            // It answers what was sent before, and the log was asked for further on: what lies between is not on its
            // way.
            return;
        }
        self.next_index = self.next_index.max(index.next());
        self.mode = Mode::Replicate;
    }

    pub(crate) fn status(&self, log: &Log) -> PeerStatus {
        // A probe carries an append at most, wherever it asks.
        let (bytes, entries) = match self.mode {
            Mode::Probe { .. } => (0, 0),
            Mode::Replicate => self.inflight(log),
        };
        PeerStatus {
            replica: self.replica,
            match_index: self.match_index,
            next_index: self.next_index,
            inflight_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            inflight_entries: entries,
            session: self.session,
            behind: self.behind,
            heard: self.heard,
        }
    }

    pub(crate) fn check_invariants(&self, log: &Log) {
        let last = log.last().index;
        assert!(log.base().index < self.next_index);
        assert!(self.next_index <= last.next());
        assert!(
            self.match_index
                .is_none_or(|matched| matched < self.next_index)
        );
        assert!(self.mode != Mode::Replicate || self.match_index.is_some());
    }
}
