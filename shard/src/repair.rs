//! Gets back entries that this log had and cannot read any more: run by run, from any peer that has them.
//!
//! A value, like everything here: messages, what the log did, and time go in, and what is to be said and written comes
//! out. It asks one peer at a time, whoever leads, for part after part of one run; what comes is followed entry by entry
//! to the position that the run is known to end at, and only then handed to the log. So it holds one run, and asks for
//! one part. If nobody has it the core hears so, once, and the leader may send what it has; the peers are asked again
//! all the same.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::BytesMut;
use logdrive_raft::entry::EntryHeader;
use logdrive_raft::limits::{ENTRY_HEADER_BYTES, ENTRY_PAYLOAD_BYTES_MAX, FRAME_BYTES_MAX};
use logdrive_raft::message::{PART_BYTES_MAX, Repair as Said, Wanted};
use logdrive_raft::wire::Decode;
use logdrive_raft::{Entry, EntryKind, GroupId, Index, LogPosition, Membership, Micros, NodeId};
use logdrive_wal::{Missing, Position};

/// How long an answer is waited for, and twice as long each time that none came.
const ANSWER_US_MIN: u64 = 200_000;

/// The longest that an answer is waited for.
const ANSWER_US_MAX: u64 = 1_000_000;

/// How long nobody has to answer at all before it counts as if nobody had it.
const PATIENCE_US: u64 = 5_000_000;

/// How long after all have been asked in vain they are asked again, and twice as long each time.
const PAUSE_US_MIN: u64 = 200_000;

/// The longest such pause.
const PAUSE_US_MAX: u64 = 5_000_000;

/// After how long it is looked whether another group has its run.
const TURN_US: u64 = 10_000;

/// How many reads for peers that repair their logs are under way at a time.
pub(crate) const READS_MAX: usize = 2;

/// Bytes of a run that comes back, of which there is one at a time, and of what is read for peers, at most. A run is of one
/// flush group: an entry as large as may be, or smaller ones.
pub const REPAIR_BYTES_MAX: usize = 11 << 20;

const _: () = {
    let run = FRAME_BYTES_MAX + PART_BYTES_MAX;
    assert!((1 + READS_MAX) * run + ENTRY_PAYLOAD_BYTES_MAX <= REPAIR_BYTES_MAX);
};

/// What a repair wants done.
#[derive(Debug)]
pub(crate) enum Order {
    /// To be said to a peer.
    Say(NodeId, Said),
    /// A whole run, checked: to be written.
    Supply(Vec<Entry>),
    /// Nobody who was asked has it.
    NobodyHas,
    /// Those who had it have cut it away: a snapshot that ends here or later stands for it.
    WantsSnapshot { least: Index },
}

/// What is being asked for.
#[derive(Debug)]
struct Run {
    missing: Missing,
    /// What lies before the first entry.
    before: LogPosition,
    /// The last entry that is there, or what lies before the first.
    at: LogPosition,
    entries: Vec<Entry>,
    /// The beginning of the next one's frame.
    partial: BytesMut,
    configurations: Vec<(Index, Membership)>,
}

impl Run {
    fn new(missing: Missing, before: LogPosition) -> Self {
        Self {
            missing,
            before,
            at: before,
            entries: Vec::new(),
            partial: BytesMut::new(),
            configurations: Vec::new(),
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            from: self.at.index.next(),
            offset: u32::try_from(self.partial.len()).expect("frames are bounded"),
            last: self.missing.last,
        }
    }

    /// Takes bytes of frames. False: these are none, or not those of this log.
    fn take(&mut self, group: GroupId, bytes: &[u8]) -> bool {
        self.partial.extend_from_slice(bytes);
        while self.at.index < self.missing.last.index && self.partial.len() >= ENTRY_HEADER_BYTES {
            let Ok(header) = EntryHeader::parse(&self.partial) else {
                return false;
            };
            if self.partial.len() < header.frame_bytes() {
                return true;
            }
            let frame = self.partial.split_to(header.frame_bytes()).freeze();
            let Ok(entry) = Entry::from_frame(frame) else {
                return false;
            };
            if header.group != group || !entry.follows(&self.at) {
                return false;
            }
            if header.kind == EntryKind::Configuration {
                let Ok(membership) = Membership::from_bytes(entry.payload()) else {
                    return false;
                };
                self.configurations.push((entry.index(), membership));
            }
            self.at = entry.position();
            self.entries.push(entry);
        }
        let ends = self.at.index == self.missing.last.index;
        !ends || self.at == self.missing.last
    }

    fn has_begun(&self) -> bool {
        !self.entries.is_empty() || !self.partial.is_empty()
    }

    fn is_whole(&self) -> bool {
        self.at == self.missing.last
    }
}

#[derive(Debug)]
enum Step {
    /// Nobody had it, or the log had no room.
    Pausing { until: Micros },
    Asking {
        run: Run,
        /// Who, and who else is asked after that.
        peers: VecDeque<NodeId>,
        since: Micros,
        /// Somebody has said that it is not there.
        lacked: bool,
        /// Where the log of somebody begins who has cut it away.
        cut: Option<Index>,
    },
    /// The log has been asked to write it.
    Supplying {
        last: LogPosition,
        from: NodeId,
        configurations: Vec<(Index, Membership)>,
    },
    /// It writes.
    Writing {
        position: Position,
        last: LogPosition,
        from: NodeId,
        configurations: Vec<(Index, Membership)>,
    },
}

/// The entries of a group that this log had and cannot read, on their way back.
#[derive(Debug)]
pub(crate) struct Repair {
    group: GroupId,
    /// Configurations behind the first entry that cannot be read, in order.
    configurations: Vec<(Index, Membership)>,
    step: Step,
    /// Who had the last run is asked first.
    last_source: Option<NodeId>,
    /// When it began, or a run came back.
    progress: Micros,
    answer_us: u64,
    pause_us: u64,
    orders: Vec<Order>,
}

/// A run that can be read again.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) last: LogPosition,
    pub(crate) from: NodeId,
}

impl Repair {
    /// Begins with what is known of the configurations behind the first entry that cannot be read.
    pub(crate) fn new(
        group: GroupId,
        configurations: Vec<(Index, Membership)>,
        now: Micros,
    ) -> Self {
        Self {
            group,
            configurations,
            step: Step::Pausing { until: now },
            last_source: None,
            progress: now,
            answer_us: ANSWER_US_MIN,
            pause_us: PAUSE_US_MIN,
            orders: Vec::new(),
        }
    }

    /// What there is to do.
    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// When it wants to be looked at again.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        match &self.step {
            Step::Pausing { until } => Some(*until),
            Step::Asking { since, .. } => Some(since.after(self.answer_us)),
            Step::Supplying { .. } | Step::Writing { .. } => None,
        }
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let Step::Asking { run, .. } = &self.step else {
            return 0;
        };
        let entries = run.entries.iter().map(|entry| entry.frame().len());
        run.partial.len() + entries.sum::<usize>()
    }

    /// Whether a run is on its way here.
    pub(crate) fn is_asking(&self) -> bool {
        matches!(self.step, Step::Asking { .. } | Step::Supplying { .. })
    }

    /// Whether it can begin with a run.
    pub(crate) fn wants_run(&self, now: Micros) -> bool {
        matches!(self.step, Step::Pausing { until } if until <= now)
    }

    /// Another group's run is on its way.
    pub(crate) fn wait_for_another(&mut self, now: Micros) {
        let until = now.after(TURN_US);
        self.step = Step::Pausing { until };
    }

    /// Asks `peers` for a run that begins behind `before`.
    pub(crate) fn begin(
        &mut self,
        missing: Missing,
        before: LogPosition,
        peers: &[NodeId],
        now: Micros,
    ) {
        let mut peers: VecDeque<NodeId> = peers.iter().copied().collect();
        if let Some(place) = peers
            .iter()
            .position(|peer| Some(*peer) == self.last_source)
        {
            peers.swap(0, place);
        }
        self.step = Step::Asking {
            run: Run::new(missing, before),
            lacked: peers.is_empty(),
            peers,
            since: now,
            cut: None,
        };
        self.ask(now);
    }

    /// Asks whoever is next, or says that nobody has it.
    fn ask(&mut self, now: Micros) {
        let Step::Asking {
            run,
            peers,
            since,
            lacked,
            cut,
        } = &mut self.step
        else {
            return;
        };
        if let Some(peer) = peers.front() {
            *since = now;
            self.orders
                .push(Order::Say(*peer, Said::Want(run.wanted())));
            return;
        }
        // Those who only are not there yet may have it.
        if *lacked || self.progress.after(PATIENCE_US) <= now {
            self.orders.push(Order::NobodyHas);
        }
        if let Some(least) = *cut {
            self.orders.push(Order::WantsSnapshot { least });
        }
        self.pause(now);
    }

    fn pause(&mut self, now: Micros) {
        self.step = Step::Pausing {
            until: now.after(self.pause_us),
        };
        self.pause_us = (2 * self.pause_us).min(PAUSE_US_MAX);
    }

    /// Time has passed.
    pub(crate) fn on_tick(&mut self, now: Micros) {
        if let Step::Asking { since, .. } = &self.step
            && since.after(self.answer_us) <= now
        {
            self.answer_us = (2 * self.answer_us).min(ANSWER_US_MAX);
            self.ask_another(now);
        }
    }

    /// What one peer gave is dropped: of entries that do not lead where they should nobody knows which ones are wrong.
    fn ask_another(&mut self, now: Micros) {
        if let Step::Asking { run, peers, .. } = &mut self.step {
            peers.pop_front();
            *run = Run::new(run.missing, run.before);
        }
        self.ask(now);
    }

    /// The way to a peer is there: what was asked on the one before may be lost.
    pub(crate) fn on_connected(&mut self, peer: NodeId, now: Micros) {
        match &mut self.step {
            Step::Pausing { until } => *until = now,
            Step::Asking { run, peers, .. } => {
                if peers.front() == Some(&peer) {
                    self.ask(now);
                } else if !run.has_begun() {
                    peers.retain(|other| *other != peer);
                    peers.push_front(peer);
                    self.ask(now);
                }
            }
            Step::Supplying { .. } | Step::Writing { .. } => {}
        }
    }

    /// The way to a peer is gone.
    pub(crate) fn on_disconnected(&mut self, peer: NodeId, now: Micros) {
        if let Step::Asking { peers, .. } = &self.step
            && peers.front() == Some(&peer)
        {
            self.ask_another(now);
        }
    }

    /// A peer has answered.
    pub(crate) fn on_answer(&mut self, from: NodeId, said: Said, now: Micros) {
        let Step::Asking {
            run,
            peers,
            lacked,
            cut,
            ..
        } = &mut self.step
        else {
            return;
        };
        let is_asked = peers.front() == Some(&from);
        match said {
            Said::Have { wanted, bytes } if is_asked && wanted == run.wanted() => {
                if bytes.is_empty() || !run.take(self.group, &bytes) {
                    *lacked = true;
                    self.ask_another(now);
                } else if run.is_whole() {
                    self.answer_us = ANSWER_US_MIN;
                    let supplied = std::mem::take(&mut run.entries);
                    self.step = Step::Supplying {
                        last: run.missing.last,
                        from,
                        configurations: std::mem::take(&mut run.configurations),
                    };
                    self.orders.push(Order::Supply(supplied));
                } else {
                    self.answer_us = ANSWER_US_MIN;
                    self.ask(now);
                }
            }
            Said::Lacks { wanted, base } if is_asked && wanted == run.wanted() => {
                *lacked = true;
                *cut = (*cut).max(base.map(|base| base.index));
                self.ask_another(now);
            }
            _ => {}
        }
    }

    /// The log writes the run.
    pub(crate) fn on_supplied(&mut self, written: Position) {
        let placeholder = Step::Pausing {
            until: Micros::default(),
        };
        self.step = match std::mem::replace(&mut self.step, placeholder) {
            Step::Supplying {
                last,
                from,
                configurations,
            } => Step::Writing {
                position: written,
                last,
                from,
                configurations,
            },
            other => other,
        };
    }

    /// It does not take it: it has no room, or goes elsewhere by now.
    pub(crate) fn on_refused(&mut self, now: Micros) {
        if matches!(self.step, Step::Supplying { .. }) {
            self.pause(now);
        }
    }

    /// What has to be durable before a run can be read again.
    pub(crate) fn writing(&self) -> Option<Position> {
        match &self.step {
            Step::Writing { position, .. } => Some(*position),
            _ => None,
        }
    }

    /// It can be read again.
    pub(crate) fn on_written(&mut self, now: Micros) -> Option<Closed> {
        let placeholder = Step::Pausing { until: now };
        match std::mem::replace(&mut self.step, placeholder) {
            Step::Writing {
                last,
                from,
                configurations,
                ..
            } => {
                self.configurations.extend(configurations);
                self.configurations.sort_by_key(|(index, _)| *index);
                // One that was known already is the same: the chain says so.
                self.configurations.dedup_by_key(|(index, _)| *index);
                self.last_source = Some(from);
                self.progress = now;
                self.pause_us = PAUSE_US_MIN;
                Some(Closed { last, from })
            }
            other => {
                self.step = other;
                None
            }
        }
    }

    /// The configurations between two entries. They are not asked for again.
    pub(crate) fn take_configurations(
        &mut self,
        after: Index,
        through: Index,
    ) -> Vec<(Index, Membership)> {
        let behind = self
            .configurations
            .partition_point(|(index, _)| *index <= through);
        let behind = self.configurations.split_off(behind);
        let mut taken = std::mem::replace(&mut self.configurations, behind);
        taken.retain(|(index, _)| after < *index);
        taken
    }
}
