//! Fetches a snapshot for a group whose log ends below where its leader's begins, or that cannot read its own.
//!
//! A value, like everything here: messages, answers of the store and time go in, and what is to be said and stored
//! comes out. It asks everybody who has a snapshot that reaches far enough, settles on one, and asks that peer for
//! part after part, a few at a time and no faster than allowed. So the receiver is what drives a transfer, and
//! nobody holds more than those few parts. What has been stored is not asked for again, after a reconnect, a
//! restart of either side, or from another peer whose snapshot has the same chunk.

#[cfg(test)]
mod begun;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use logdrive_raft::message::{
    MANIFEST_BYTES_MAX, Offered, PART_BYTES_MAX, Part, Progress, Transfer,
};
use logdrive_raft::{Anchor, Index, Micros, NodeId, SnapshotId};
use xxhash_rust::xxh3::xxh3_128;

use crate::meter::Meter;
use crate::store::Missing;

/// The most parts that are asked for and not stored yet.
const PARTS_MAX: usize = 4;

/// Bytes of parts that a fetch holds in memory, at most.
pub const FETCH_BYTES_MAX: usize = PARTS_MAX * PART_BYTES_MAX;

/// How long offers are waited for.
const ASK_US: u64 = 300_000;

/// How long a part is waited for before it is asked for again.
const PART_US: u64 = 2_000_000;

/// How long after the last part somebody who restarts is waited for at most, if the others have other snapshots.
const BEGUN_US: u64 = 5_000_000;

/// After so many parts in a row that did not come somebody else is asked.
const SILENCE_MAX: u32 = 3;

/// After so many damaged parts somebody else is asked.
const DAMAGED_MAX: u32 = 8;

/// How long to wait when nobody has a snapshot, or this disk has no room for one.
const PAUSE_US_MIN: u64 = 200_000;

/// The longest such pause.
const PAUSE_US_MAX: u64 = 2_000_000;

/// How many that did not deliver are remembered.
const FAILED_MAX: usize = 16;

/// How often the leader hears how far the transfer is.
const PROGRESS_US: u64 = 500_000;

/// What a fetch wants done.
#[derive(Debug)]
pub(crate) enum Order {
    /// To be said to a peer.
    Say(NodeId, Transfer),
    /// The manifest is there: what of its files is there as well?
    Receive {
        snapshot: SnapshotId,
        manifest: Bytes,
    },
    /// A chunk is to be stored.
    Put {
        snapshot: SnapshotId,
        file: u32,
        chunk: u32,
        bytes: Bytes,
    },
    /// Everything is there: is it as the manifest says, on the medium?
    Finish { snapshot: SnapshotId },
    /// It is: the log may begin there.
    Install {
        snapshot: SnapshotId,
        anchor: Anchor,
    },
}

/// How far a fetch is, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchStatus {
    /// From whom.
    pub from: NodeId,
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// The last entry that it covers.
    pub index: Index,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that are there.
    pub bytes_have: u64,
    /// Bytes a second, of late.
    pub bytes_per_s: u64,
}

/// A snapshot on its way here.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// The least index that is of use.
    least: Index,
    /// Who hears how far it is.
    leader: Option<NodeId>,
    /// A snapshot of which something is stored already, and who had it.
    begun: Option<Source>,
    /// Until when it is waited for if nobody offers it.
    begun_until: Micros,
    /// Who did not deliver which one, last: others are asked first. A few.
    failed: Vec<(NodeId, SnapshotId)>,
    bytes_per_s_max: u64,
    step: Step,
    pause_us: u64,
    /// Not before then is the next part asked for.
    paced_until: Micros,
    meter: Meter,
    progress_due: Micros,
    orders: Vec<Order>,
}

#[derive(Debug)]
enum Step {
    /// Nobody had one, or it could not be stored.
    Pausing { until: Micros },
    Asking {
        until: Micros,
        unanswered: Vec<NodeId>,
        offers: Vec<(NodeId, Offered)>,
    },
    Manifest {
        source: Source,
        bytes: BytesMut,
        asked: Micros,
    },
    /// The store looks at what is there already.
    Opening { source: Source },
    Chunks {
        source: Source,
        missing: VecDeque<Missing>,
        asked: Vec<Asked>,
        storing: usize,
        bytes_have: u64,
        damaged: u32,
    },
    /// The store reads everything back.
    Checking { source: Source },
    /// The core has it.
    Handed,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    from: NodeId,
    offered: Offered,
    /// Parts in a row that did not come.
    silence: u32,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    part: (u32, u32),
    at: Micros,
}

impl Fetch {
    /// Begins to ask `peers`, of which one may lead.
    pub(crate) fn begin(
        least: Index,
        leader: Option<NodeId>,
        bytes_per_s_max: u64,
        peers: &[NodeId],
        now: Micros,
    ) -> Self {
        let mut fetch = Self {
            least,
            leader,
            begun: None,
            begun_until: now,
            failed: Vec::new(),
            bytes_per_s_max: bytes_per_s_max.max(1),
            step: Step::Handed,
            pause_us: PAUSE_US_MIN,
            paced_until: now,
            meter: Meter::default(),
            progress_due: now,
            orders: Vec::new(),
        };
        fetch.ask(peers, now);
        fetch
    }

    /// Where the leader's log begins now: further on than what this looks for, or not as far, for it is another leader.
    /// Nobody may have what an earlier one had.
    pub(crate) fn wanted(
        &mut self,
        least: Index,
        leader: Option<NodeId>,
        peers: &[NodeId],
        now: Micros,
    ) {
        self.leader = leader.or(self.leader);
        let outrun = self
            .source()
            .is_some_and(|source| source.offered.at.index < least);
        let looks = matches!(self.step, Step::Pausing { .. } | Step::Asking { .. });
        let less = least < self.least && looks;
        self.least = least;
        let taken = matches!(self.step, Step::Checking { .. } | Step::Handed);
        if less {
            self.pause_us = PAUSE_US_MIN;
        }
        if less || (outrun && !taken) {
            // It would not connect any more, or more would.
            self.ask(peers, now);
        }
    }

    /// Whether the log has come as far without it.
    pub(crate) fn is_overtaken(&self, commit: Index) -> bool {
        let reaches = self.source().map(|source| source.offered.at.index);
        let taken = matches!(self.step, Step::Handed);
        !taken && reaches.unwrap_or(self.least) <= commit
    }

    /// How fast it may be from now on, in bytes a second: those that fetch at the same time share what is allowed.
    pub(crate) fn set_rate(&mut self, bytes_per_s_max: u64) {
        self.bytes_per_s_max = bytes_per_s_max.max(1);
    }

    /// What there is to do.
    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// When it wants to be looked at again.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let step = match &self.step {
            Step::Pausing { until } | Step::Asking { until, .. } => Some(*until),
            Step::Manifest { asked, .. } => Some(asked.after(PART_US)),
            Step::Chunks {
                missing,
                asked,
                storing,
                ..
            } => {
                let late = asked.iter().map(|asked| asked.at.after(PART_US)).min();
                let more = !missing.is_empty() && asked.len() + storing < PARTS_MAX;
                let paced = more.then_some(self.paced_until);
                late.into_iter().chain(paced).min()
            }
            Step::Opening { .. } | Step::Checking { .. } | Step::Handed => None,
        };
        let tells = self.source().is_some() && self.leader.is_some();
        step.into_iter()
            .chain(tells.then_some(self.progress_due))
            .min()
    }

    pub(crate) fn status(&self) -> Option<FetchStatus> {
        let source = self.source()?;
        Some(FetchStatus {
            from: source.from,
            snapshot: source.offered.snapshot,
            index: source.offered.at.index,
            bytes: source.offered.bytes,
            bytes_have: self.bytes_have(),
            bytes_per_s: self.meter.per_s(),
        })
    }

    /// Time has passed.
    pub(crate) fn on_tick(&mut self, peers: &[NodeId], now: Micros) {
        match &mut self.step {
            Step::Pausing { until } if *until <= now => self.ask(peers, now),
            Step::Asking { until, .. } if *until <= now => self.settle(now),
            Step::Manifest { source, asked, .. } if asked.after(PART_US) <= now => {
                source.silence += 1;
                if source.silence >= SILENCE_MAX {
                    return self.give_up(now);
                }
                self.ask_for_manifest(now);
            }
            Step::Chunks {
                source,
                missing,
                asked,
                ..
            } => {
                let late = |asked: &Asked| asked.at.after(PART_US) <= now;
                let before = asked.len();
                for late in asked.iter().filter(|asked| late(asked)) {
                    missing.push_front(Missing::one(late.part));
                }
                asked.retain(|asked| !late(asked));
                if asked.len() < before {
                    source.silence += 1;
                }
                if source.silence >= SILENCE_MAX {
                    return self.give_up(now);
                }
                self.ask_for_chunks(now);
            }
            _ => {}
        }
        self.tell_leader(now);
    }

    /// The way to a peer is gone.
    pub(crate) fn on_disconnected(&mut self, peer: NodeId, now: Micros) {
        if let Step::Asking {
            unanswered, offers, ..
        } = &mut self.step
        {
            unanswered.retain(|asked| *asked != peer);
            offers.retain(|(from, _)| *from != peer);
            if unanswered.is_empty() {
                self.settle(now);
            }
            return;
        }
        let lost = match &self.step {
            Step::Manifest { source, .. }
            | Step::Opening { source }
            | Step::Chunks { source, .. } => source.from == peer,
            _ => false,
        };
        if lost {
            self.pause(now);
        }
    }

    /// A peer said something about snapshots.
    pub(crate) fn on_transfer(&mut self, from: NodeId, transfer: Transfer, now: Micros) {
        match transfer {
            Transfer::Offer(offered) => self.on_offer(from, offered, now),
            Transfer::Part {
                snapshot,
                part,
                bytes,
            } => self.on_part(from, snapshot, part, bytes, now),
            Transfer::Gone { snapshot } => {
                let ours = self.source().is_some_and(|source| {
                    source.from == from && source.offered.snapshot == snapshot
                });
                if ours && matches!(self.step, Step::Manifest { .. } | Step::Chunks { .. }) {
                    self.begun = None;
                    self.give_up(now);
                }
            }
            Transfer::Query { .. } | Transfer::Fetch { .. } | Transfer::Progress(_) => {}
        }
    }

    /// The store has looked at what is there already.
    pub(crate) fn on_receiving(
        &mut self,
        snapshot: SnapshotId,
        missing: Vec<Missing>,
        bytes_have: u64,
        now: Micros,
    ) {
        let Step::Opening { source } = self.step else {
            return;
        };
        if source.offered.snapshot != snapshot {
            return;
        }
        self.begun = Some(source);
        self.begun_until = now.after(self.worth_waiting_us(bytes_have));
        self.go_on(source, missing.into(), bytes_have, now);
    }

    /// A chunk was stored, or was not what the manifest says.
    pub(crate) fn on_stored(
        &mut self,
        snapshot: SnapshotId,
        part: (u32, u32),
        stored: Option<u64>,
        now: Micros,
    ) {
        let Step::Chunks {
            source,
            missing,
            storing,
            bytes_have,
            damaged,
            ..
        } = &mut self.step
        else {
            return;
        };
        if source.offered.snapshot != snapshot {
            return;
        }
        *storing = storing.saturating_sub(1);
        match stored {
            Some(bytes) => *bytes_have += bytes,
            None => {
                *damaged += 1;
                missing.push_front(Missing::one(part));
                if *damaged >= DAMAGED_MAX {
                    return self.give_up(now);
                }
            }
        }
        if stored.is_some() {
            let have = *bytes_have;
            self.pause_us = PAUSE_US_MIN;
            self.begun_until = now.after(self.worth_waiting_us(have));
        }
        self.ask_for_chunks(now);
    }

    /// Everything was read back, and these chunks were not as they were stored.
    pub(crate) fn on_damaged(
        &mut self,
        snapshot: SnapshotId,
        missing: Vec<Missing>,
        bytes_have: u64,
        now: Micros,
    ) {
        let Step::Checking { source } = self.step else {
            return;
        };
        if source.offered.snapshot == snapshot {
            self.go_on(source, missing.into(), bytes_have, now);
        }
    }

    /// Everything was read back and is as it should be.
    pub(crate) fn on_received(&mut self, snapshot: SnapshotId, anchor: Anchor, now: Micros) {
        let Step::Checking { source } = self.step else {
            return;
        };
        if source.offered.snapshot != snapshot {
            return;
        }
        if source.offered.at != anchor.at {
            // It is not what was offered, whatever else it is.
            return self.give_up(now);
        }
        self.step = Step::Handed;
        self.orders.push(Order::Install { snapshot, anchor });
    }

    /// The store could not do what it was asked.
    pub(crate) fn on_failed(&mut self, refused: bool, now: Micros) {
        if matches!(self.step, Step::Handed) {
            return;
        }
        if refused {
            // It is what came that will not do: others are asked before it.
            self.begun = None;
            return self.give_up(now);
        }
        self.pause(now);
    }

    /// How long it pays to wait for who had what was begun: twice what fetching so much again would take.
    fn worth_waiting_us(&self, bytes_have: u64) -> u64 {
        let again_us = u128::from(bytes_have) * 1_000_000 / u128::from(self.bytes_per_s_max);
        u64::try_from(2 * again_us).map_or(BEGUN_US, |us| us.min(BEGUN_US))
    }

    fn source(&self) -> Option<Source> {
        match &self.step {
            Step::Manifest { source, .. }
            | Step::Opening { source }
            | Step::Chunks { source, .. }
            | Step::Checking { source } => Some(*source),
            Step::Pausing { .. } | Step::Asking { .. } | Step::Handed => None,
        }
    }

    fn bytes_have(&self) -> u64 {
        match &self.step {
            Step::Chunks { bytes_have, .. } => *bytes_have,
            Step::Checking { source } => source.offered.bytes,
            _ => 0,
        }
    }

    fn ask(&mut self, peers: &[NodeId], now: Micros) {
        let least = self.least;
        let query = |peer: &NodeId| Order::Say(*peer, Transfer::Query { least });
        self.orders.extend(peers.iter().map(query));
        self.step = Step::Asking {
            until: now.after(ASK_US),
            unanswered: peers.to_vec(),
            offers: Vec::new(),
        };
    }

    /// The source does not deliver: others are asked before it.
    fn give_up(&mut self, now: Micros) {
        if let Some(source) = self.source() {
            let failed = (source.from, source.offered.snapshot);
            self.failed.retain(|earlier| *earlier != failed);
            self.failed.push(failed);
            let surplus = self.failed.len().saturating_sub(FAILED_MAX);
            self.failed.drain(..surplus);
        }
        self.pause(now);
    }

    fn pause(&mut self, now: Micros) {
        let until = now.after(self.pause_us);
        self.pause_us = (2 * self.pause_us).min(PAUSE_US_MAX);
        self.step = Step::Pausing { until };
    }

    fn on_offer(&mut self, from: NodeId, offered: Option<Offered>, now: Micros) {
        let least = self.least;
        let Step::Asking {
            unanswered, offers, ..
        } = &mut self.step
        else {
            return;
        };
        let before = unanswered.len();
        unanswered.retain(|peer| *peer != from);
        if unanswered.len() == before {
            return;
        }
        let fits = |offered: &Offered| {
            least <= offered.at.index && offered.manifest_bytes <= MANIFEST_BYTES_MAX
        };
        if let Some(offered) = offered.filter(fits) {
            offers.push((from, offered));
        }
        if unanswered.is_empty() {
            self.settle(now);
        }
    }

    /// What was begun is gone on with, else the newest is taken, and of two of those the one of a follower: the leader
    /// has enough to do. Two snapshots rarely have much in common, so it pays to wait a little for who had the one
    /// that was begun, and to ask for it although something newer is offered.
    fn settle(&mut self, now: Micros) {
        let Step::Asking { offers, .. } = &self.step else {
            return;
        };
        let worth = |(from, offered): &&(NodeId, Offered)| {
            let begun = self.begun.map(|begun| begun.offered.snapshot);
            let begun = begun == Some(offered.snapshot);
            let failed = (*from, offered.snapshot);
            // Of those that have failed the one that did so longest ago.
            let failed = self.failed.iter().position(|earlier| *earlier == failed);
            let failed = std::cmp::Reverse(failed);
            (failed, begun, offered.at.index, self.leader != Some(*from))
        };
        let Some(mut best) = offers.iter().max_by_key(worth).copied() else {
            return self.pause(now);
        };
        let begun = self
            .begun
            .filter(|begun| self.least <= begun.offered.at.index)
            .filter(|begun| !self.failed.contains(&(begun.from, begun.offered.snapshot)));
        if let Some(begun) = begun.filter(|begun| begun.offered.snapshot != best.1.snapshot) {
            if offers.iter().any(|(from, _)| *from == begun.from) {
                // It may keep that one for a while. If it does not, it says so, and this is not tried again.
                best = (begun.from, begun.offered);
                self.begun = None;
            } else if now < self.begun_until {
                let until = now.after(PAUSE_US_MIN);
                self.step = Step::Pausing { until };
                return;
            }
        }
        let (from, offered) = best;
        let source = Source {
            from,
            offered,
            silence: 0,
        };
        self.meter = Meter::default();
        self.step = Step::Manifest {
            source,
            bytes: BytesMut::new(),
            asked: now,
        };
        self.progress_due = now;
        self.ask_for_manifest(now);
        self.tell_leader(now);
    }

    fn ask_for_manifest(&mut self, now: Micros) {
        let Step::Manifest {
            source,
            bytes,
            asked,
        } = &mut self.step
        else {
            return;
        };
        *asked = now;
        let offset = u32::try_from(bytes.len()).expect("manifests are bounded");
        let fetch = Transfer::Fetch {
            snapshot: source.offered.snapshot,
            part: Part::Manifest { offset },
        };
        self.orders.push(Order::Say(source.from, fetch));
    }

    fn on_part(
        &mut self,
        from: NodeId,
        snapshot: SnapshotId,
        part: Part,
        bytes: Bytes,
        now: Micros,
    ) {
        let expected = self
            .source()
            .is_some_and(|source| source.from == from && source.offered.snapshot == snapshot);
        if !expected {
            return;
        }
        match part {
            Part::Manifest { offset } => self.on_manifest(offset, &bytes, now),
            Part::Chunk { file, chunk } => self.on_chunk((file, chunk), bytes, now),
        }
    }

    fn on_manifest(&mut self, offset: u32, piece: &Bytes, now: Micros) {
        let Step::Manifest { source, bytes, .. } = &mut self.step else {
            return;
        };
        let wanted = source.offered.manifest_bytes as usize;
        let continues = offset as usize == bytes.len() && !piece.is_empty();
        if !continues || bytes.len() + piece.len() > wanted {
            return;
        }
        source.silence = 0;
        bytes.extend_from_slice(piece);
        if bytes.len() < wanted {
            return self.ask_for_manifest(now);
        }
        let (source, manifest) = (*source, std::mem::take(bytes).freeze());
        let snapshot = source.offered.snapshot;
        if SnapshotId(xxh3_128(&manifest)) != snapshot {
            return self.give_up(now);
        }
        self.step = Step::Opening { source };
        self.orders.push(Order::Receive { snapshot, manifest });
    }

    fn on_chunk(&mut self, part: (u32, u32), bytes: Bytes, now: Micros) {
        let Step::Chunks {
            source,
            asked,
            storing,
            ..
        } = &mut self.step
        else {
            return;
        };
        let before = asked.len();
        asked.retain(|asked| asked.part != part);
        if asked.len() == before {
            // It came twice, or after it had been asked for again.
            return;
        }
        source.silence = 0;
        *storing += 1;
        self.meter.add(bytes.len() as u64, now);
        let (file, chunk) = part;
        self.orders.push(Order::Put {
            snapshot: source.offered.snapshot,
            file,
            chunk,
            bytes,
        });
    }

    fn go_on(&mut self, source: Source, missing: VecDeque<Missing>, bytes_have: u64, now: Micros) {
        self.step = Step::Chunks {
            source,
            missing,
            asked: Vec::new(),
            storing: 0,
            bytes_have,
            damaged: 0,
        };
        self.ask_for_chunks(now);
    }

    /// Asks for as many parts as may be on their way, one after the other at the allowed rate.
    fn ask_for_chunks(&mut self, now: Micros) {
        let part_us = PART_BYTES_MAX as u64 * 1_000_000 / self.bytes_per_s_max;
        let Step::Chunks {
            source,
            missing,
            asked,
            storing,
            ..
        } = &mut self.step
        else {
            return;
        };
        while asked.len() + *storing < PARTS_MAX
            && self.paced_until <= now
            && let Some(part) = next_of(missing)
        {
            asked.push(Asked { part, at: now });
            // Not more than one part's worth is made up for after a wait.
            let since = self.paced_until.max(Micros(now.0.saturating_sub(part_us)));
            self.paced_until = since.after(part_us);
            let (file, chunk) = part;
            let fetch = Transfer::Fetch {
                snapshot: source.offered.snapshot,
                part: Part::Chunk { file, chunk },
            };
            self.orders.push(Order::Say(source.from, fetch));
        }
        if missing.is_empty() && asked.is_empty() && *storing == 0 {
            let source = *source;
            self.step = Step::Checking { source };
            let snapshot = source.offered.snapshot;
            self.orders.push(Order::Finish { snapshot });
        }
    }

    fn tell_leader(&mut self, now: Micros) {
        let (Some(leader), Some(source)) = (self.leader, self.source()) else {
            return;
        };
        if now < self.progress_due {
            return;
        }
        self.progress_due = now.after(PROGRESS_US);
        self.meter.tick(now);
        let progress = Progress {
            snapshot: source.offered.snapshot,
            at: source.offered.at,
            bytes: source.offered.bytes,
            bytes_have: self.bytes_have(),
            bytes_per_s: self.meter.per_s(),
        };
        self.orders
            .push(Order::Say(leader, Transfer::Progress(progress)));
        if source.from != leader {
            // It keeps it for as long as it hears of it, also while the store looks at what is there.
            self.orders
                .push(Order::Say(source.from, Transfer::Progress(progress)));
        }
    }
}

/// Takes the next chunk out of what is missing.
fn next_of(missing: &mut VecDeque<Missing>) -> Option<(u32, u32)> {
    let run = missing.front_mut()?;
    let part = (run.file, run.first);
    run.first += 1;
    run.count -= 1;
    if run.count == 0 {
        missing.pop_front();
    }
    Some(part)
}
