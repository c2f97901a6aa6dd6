//! The log as a value: appends go in, disk operations go out, completions come in, durable marks come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use logdrive_raft::io::{EntryMeta, Write};
use logdrive_raft::snapshot::{SESSIONS_BYTES_MAX, TERM_STARTS_MAX};
use logdrive_raft::wire::Encode;
use logdrive_raft::{
    Anchor, Base, Boot, Chain, Entry, EntryKind, Genesis, GroupId, Incarnation, Index, LogPosition,
    Membership, Micros, mutated,
};

use crate::build::blocks_for;
use crate::disk::{BLOCK_BYTES, Completion, Disk, OpId, SlotId};
use crate::error::{AppendError, PoisonReason, SupplyError};
use crate::format::{
    self, FooterRow, GROUP_HEADER_BYTES, Place, Record, SLOT_HEADER_BLOCKS, SlotHeader, Stamper,
};
use crate::options::Options;
use crate::path::{Carried, GroupLog, Missing, Row, Start, anchor_bytes, configuration_bytes};
use crate::pipeline::Pipeline;
use crate::pool::{FREE_MIN, Pool};
use crate::queue::{Item, Queue};
use crate::read::Reads;
use crate::status::{Admitted, Counters, FlushHistogram, Room, WalStatus};

mod build;
mod complete;
mod open;
mod read;
mod release;
mod scrub;

pub use open::{RecoveredGroup, Recovery};

use release::Release;
use scrub::Scrub;

/// Counts appends. Only moves forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Hash)]
pub struct Position(pub u64);

/// A write-ahead log of many groups.
///
/// Nothing here blocks but [`Wal::open`] and [`Wal::close`]. Whoever hosts it calls, in each turn,
/// [`poll`](Wal::poll), then appends, then [`submit`](Wal::submit).
#[derive(Debug)]
pub struct Wal<D> {
    disk: D,
    options: Options,
    incarnation: Incarnation,
    boot: Boot,
    groups: BTreeMap<GroupId, GroupLog>,
    /// Groups that are gone, as far back as the log goes.
    removed: BTreeSet<GroupId>,
    queue: Queue,
    active: Segment,
    tail: Tail,
    pipeline: Pipeline,
    pool: Pool,
    reads: Reads,
    scrub: Scrub,
    /// Which slot holds which segment, and how its blocks are stamped.
    segments: BTreeMap<u64, Held>,
    release: Release,
    first_group: FirstGroup,
    accepted: Position,
    echo_wanted: Position,
    /// Groups whose guard is over, and nothing says so yet.
    guards_over: BTreeSet<GroupId>,
    idle_at: Option<Micros>,
    ops: u64,
    done: Vec<Completion>,
    poisoned: Option<PoisonReason>,
    counters: Counters,
    flush_histogram: FlushHistogram,
    fallbacks: Vec<String>,
}

/// The segment that is written to.
#[derive(Debug)]
struct Segment {
    header: SlotHeader,
    stamper: Stamper,
    slot: SlotId,
    /// Where the next flush group begins.
    next: u32,
    footer: Vec<FooterRow>,
}

/// A segment that is kept.
#[derive(Clone, Copy, Debug)]
struct Held {
    slot: SlotId,
    stamper: Stamper,
    /// Where it ends, if it is written no more.
    end: u32,
}

/// What the next flush group has to know of the last one that was built.
#[derive(Debug)]
struct Tail {
    number: u64,
    chain: Chain,
    echo: bytes::BytesMut,
    echo_records: u32,
    /// Memory for the next one, so that an append takes none from the allocator.
    spare: Spare,
    /// Everything appended up to here is in a flush group.
    built: Position,
    /// The same without the last one: what is echoed once everything built is durable.
    echoable: Position,
    /// It states that everything before it is durable: there is nothing to add while nothing happens.
    quiet: bool,
}

/// What a flush group is put together in.
#[derive(Debug, Default)]
struct Spare {
    header: bytes::BytesMut,
    table: bytes::BytesMut,
    echo: bytes::BytesMut,
}

/// What the first flush group of a segment has to hold, at most: a checkpoint of all groups, and what is carried forward
/// for them.
#[derive(Clone, Copy, Debug, Default)]
struct FirstGroup {
    bytes: usize,
    /// Beside the checkpoint.
    records: usize,
}

impl FirstGroup {
    fn with(self, carried: Carried) -> Self {
        Self {
            bytes: self.bytes + carried.bytes(),
            records: self.records + carried.records(),
        }
    }

    fn without(self, carried: Carried) -> Self {
        Self {
            bytes: self.bytes - carried.bytes(),
            records: self.records - carried.records(),
        }
    }

    fn with_removed(self, groups: usize) -> Self {
        Self {
            bytes: self.bytes + groups * REMOVED_BYTES,
            records: self.records + groups,
        }
    }

    /// What the flush group after it repeats.
    fn echo_bytes(self) -> usize {
        (1 + self.records) * MENTION_BYTES
    }

    /// Something of a group was built. Once all of it is, the room for what was there before is not needed any more.
    fn settle(&mut self, log: &mut GroupLog) {
        if log.is_caught_up() {
            let now = log.carried_now();
            *self = self.without(log.carried).with(now);
            log.carried = now;
        }
    }
}

impl<D: Disk> Wal<D> {
    /// Creates a group durably: its genesis is its first record. Positions as for [`Wal::append`].
    pub fn create_group(&mut self, genesis: &Genesis) -> Result<Position, AppendError> {
        self.check_alive()?;
        let group = genesis.group;
        if self.groups.contains_key(&group) {
            return Err(AppendError::GroupExists(group));
        }
        // What a removed group acknowledged may still be believed elsewhere.
        if self.removed.contains(&group) {
            return Err(AppendError::GroupRemoved(group));
        }
        let log = GroupLog::new(genesis.clone());
        let first_group = self.first_group.with(log.carried);
        let bytes = genesis.to_bytes().len() + 1;
        if check_slot(&self.options, first_group, bytes).is_err() {
            return Err(AppendError::TooManyGroups {
                groups: self.groups.len() + 1,
                slot_bytes: self.options.slot_bytes,
            });
        }
        // It may take the reserve: a new log begins with one slot, and may have to wait for the next.
        if !self.may_wait(bytes) {
            return Err(AppendError::Full);
        }
        self.first_group = first_group;
        self.groups.insert(group, log);
        let record = Box::new(Record::Genesis(genesis.clone()));
        self.queue.push(Item::Record(record, bytes));
        Ok(self.accept())
    }

    /// Queues writes of one group for the next flush group, in order. Never blocks.
    ///
    /// # Panics
    ///
    /// If entries do not continue the group's log, or are already in it: writing them again would cut what
    /// lies beyond them at the next recovery. If a log is cut where it has no entry, or beyond its newest durable
    /// anchor.
    pub fn append(&mut self, group: GroupId, writes: &[Write]) -> Result<Position, AppendError> {
        self.check_alive()?;
        if !self.groups.contains_key(&group) {
            return Err(AppendError::UnknownGroup(group));
        }
        self.check_room(writes)?;
        self.check_carried(group, writes)?;
        let nothing = |write: &Write| matches!(write, Write::Entries(none) if none.is_empty());
        if writes.iter().all(nothing) {
            // A position of its own would have nothing in the queue to become durable with.
            return Ok(self.accepted);
        }
        for write in writes {
            match write {
                Write::HardState(hard_state) => {
                    self.log_mut(group).raise_hard_state(*hard_state);
                    self.queue.push(Item::HardState(group, *hard_state));
                }
                Write::Entries(entries) => {
                    for entry in entries {
                        self.append_entry(group, entry);
                    }
                }
                Write::Truncate(to) => {
                    let cut = self.log_mut(group).truncate(to);
                    assert!(cut.is_ok(), "a log is cut at an entry it has");
                    self.queue.push(Item::Truncate(group, *to));
                }
                Write::Anchor(anchor) => self.append_anchor(group, anchor),
                Write::Base(base) => self.append_base(group, base),
            }
        }
        Ok(self.accept())
    }

    /// Writes entries of a group's path once more, because they cannot be read where they lie: of those that are missing
    /// up to one whose position is known, at most. Each is checked. They are read there once that is durable and
    /// [`Wal::take_supplied`] was called. Never blocks.
    pub fn supply(&mut self, group: GroupId, entries: &[Entry]) -> Result<Position, SupplyError> {
        self.check_alive()?;
        let log = self.groups.get(&group);
        let log = log.ok_or(AppendError::UnknownGroup(group))?;
        let prev = log
            .check_supplied(entries)
            .map_err(|_| SupplyError::OffPath)?;
        let mut bytes = 0;
        for entry in entries {
            self.check_frame(entry)?;
            bytes += entry.frame().len() + ENTRY_ROOM_BYTES;
        }
        if !self.room_beyond(u64::from(self.usable_blocks()), bytes) {
            return Err(AppendError::Full.into());
        }
        self.write_supplied(group, prev, entries);
        Ok(self.accept())
    }

    fn write_supplied(&mut self, group: GroupId, mut prev: LogPosition, entries: &[Entry]) {
        self.log_mut(group).supply(prev, entries);
        for entry in entries {
            self.queue.push(Item::Rewrite(prev, entry.clone()));
            prev = entry.position();
        }
    }

    /// From now on what was supplied is read from there, as far as it is durable and still on the path.
    ///
    /// Whoever drives a replica tells it at once how far its log can be read now: what is not missing any more must not
    /// be appended as if it were.
    pub fn take_supplied(&mut self, group: GroupId) {
        let durable = self.pipeline.durable_place;
        let is_durable = |row: &Row| row.last_place().is_some_and(|place| place < durable);
        if let Some(log) = self.groups.get_mut(&group) {
            log.take_supplied(is_durable);
        }
    }

    /// The entries of a group's path that cannot be read, in their order.
    #[must_use]
    pub fn missing(&self, group: GroupId) -> Vec<Missing> {
        self.groups
            .get(&group)
            .map(GroupLog::missing)
            .unwrap_or_default()
    }

    /// How many these are.
    #[must_use]
    pub fn missing_count(&self, group: GroupId) -> usize {
        self.groups.get(&group).map_or(0, GroupLog::missing_count)
    }

    /// The next run of a group that is to be supplied, and what its first entry follows: of what is missing, or of what
    /// went bad since the log was opened.
    #[must_use]
    pub fn wanted(&self, group: GroupId) -> Option<(Missing, LogPosition)> {
        let log = self.groups.get(&group)?;
        let run = match log.missing().first() {
            Some(missing) => *missing,
            None => log.wanted(self.options.group_bytes_max)?,
        };
        Some((run, log.position(run.first.prev()?)?))
    }

    /// How many entries are missing, or went bad since.
    #[must_use]
    pub fn wanted_count(&self, group: GroupId) -> usize {
        let log = self.groups.get(&group);
        log.map_or(0, |log| log.missing_count() + log.wanted_count())
    }

    /// What lies at an index of a group's path, as far as that is known.
    #[must_use]
    pub fn position(&self, group: GroupId, index: Index) -> Option<LogPosition> {
        self.groups.get(&group)?.position(index)
    }

    /// What is remembered of the entries after an index that can be read without a gap.
    #[must_use]
    pub fn metas_after(&self, group: GroupId, index: Index) -> Vec<EntryMeta> {
        let Some(log) = self.groups.get(&group) else {
            return Vec::new();
        };
        let rows = (index.0 + 1..).map_while(|index| log.row(Index(index)));
        let readable = rows.take_while(|row| !row.is_missing());
        readable.map(Row::meta).collect()
    }

    /// Whether a proposal of so many bytes has room beyond the reserve.
    #[must_use]
    pub fn has_room(&self, frame_bytes: usize) -> bool {
        self.room_beyond(2 * u64::from(self.usable_blocks()), frame_bytes)
    }

    /// Whether entries of so many bytes may be appended, [`ENTRY_ROOM_BYTES`] more for each. Those with
    /// proposals leave a reserve, which everything else may use.
    ///
    /// For proposals only slots that exist count: whether the file system has space for more shows when they
    /// are made. So what is appended when there is room [`Now`](Room::Now) can be written, and a slot's worth
    /// beside it, votes first of all. What was `admitted` since and is not appended yet takes of that too.
    #[must_use]
    pub fn takes(&self, admitted: Admitted, bytes: usize, proposals: bool) -> Room {
        let bytes = admitted.bytes + bytes;
        if !proposals {
            return if self.may_wait(bytes) {
                Room::Now
            } else {
                Room::Full
            };
        }
        let reserve = u64::from(self.usable_blocks());
        if !self.room_beyond(reserve, bytes) {
            return Room::Full;
        }
        let exists = self.blocks_free(self.pool.free_slots())
            >= reserve + u64::from(self.blocks_needed(bytes));
        // Of a pool that is as full as it gets by itself, with nothing waiting, there is no more to wait for.
        let nothing_waits = self.queue.is_empty() && admitted.entries == 0;
        let at_best = self.pool.free_slots() >= FREE_MIN && nothing_waits;
        if exists || at_best {
            Room::Now
        } else {
            Room::Soon
        }
    }

    /// The same for a proposal at the door, which leaves twice the reserve.
    #[must_use]
    pub fn admits(&self, admitted: Admitted, bytes: usize) -> Room {
        if self.has_room(admitted.bytes + bytes) {
            self.takes(admitted, bytes, true)
        } else {
            Room::Full
        }
    }

    /// Where a group's log ends as far as all of it can be read.
    #[must_use]
    pub fn whole(&self, group: GroupId) -> Option<LogPosition> {
        self.groups.get(&group).map(GroupLog::whole)
    }

    /// Everything appended at or before this position is durable.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.pipeline.durable
    }

    /// Everything at or before this position is durable, and so is a later flush group that repeats it.
    #[must_use]
    pub fn echoed(&self) -> Position {
        self.pipeline.echoed
    }

    /// Somebody waits for the echo of this position: an otherwise empty flush group is written if nothing
    /// else comes.
    pub fn want_echo(&mut self, position: Position) {
        assert!(position <= self.accepted);
        self.echo_wanted = self.echo_wanted.max(position);
    }

    /// A group has all back that it may have acknowledged and lost. The next opening need not fear for it any more, once
    /// that is written.
    pub fn guard_over(&mut self, group: GroupId) {
        if let Some(log) = self.groups.get_mut(&group)
            && log.guard.take().is_some()
        {
            self.guards_over.insert(group);
        }
    }

    /// When [`Wal::submit`] wants to be called again without a completion. `None`: never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        // A log that has failed does not grow any more.
        let retry = self.pool.next_deadline();
        let retry = retry.filter(|_| self.poisoned.is_none());
        let scrub = self.scrub.next_deadline();
        let scrub = scrub.filter(|_| self.poisoned.is_none());
        self.idle_at.into_iter().chain(retry).chain(scrub).min()
    }

    /// Why nothing is accepted any more, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<&PoisonReason> {
        self.poisoned.as_ref()
    }

    /// The groups in this log.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }

    /// Where a group's log ends, with what is accepted and not yet durable.
    #[must_use]
    pub fn tip(&self, group: GroupId) -> Option<LogPosition> {
        self.groups.get(&group).map(GroupLog::tip)
    }

    /// Where a group's log begins, with what is accepted and not yet durable.
    #[must_use]
    pub fn base(&self, group: GroupId) -> Option<LogPosition> {
        self.groups.get(&group).map(GroupLog::base)
    }

    /// Where a group's newest anchor stands, with what is accepted and not yet durable.
    #[must_use]
    pub fn anchor(&self, group: GroupId) -> Option<LogPosition> {
        let log = self.groups.get(&group)?;
        log.anchor.as_ref().map(|anchor| anchor.at)
    }

    /// Bytes of the frames of a group's log, from its base to its tip.
    #[must_use]
    pub fn log_bytes(&self, group: GroupId) -> Option<u64> {
        self.groups.get(&group).map(GroupLog::bytes)
    }

    /// Bytes of frames that wait for a flush group.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// The largest frame this log takes.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        self.options.frame_bytes_max
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The disk, to move a simulated one on.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// How the log is doing.
    #[must_use]
    pub fn status(&self) -> WalStatus {
        let facts = self.disk.facts();
        let mut fallbacks = facts.fallbacks;
        fallbacks.extend(self.fallbacks.iter().cloned());
        fallbacks.extend(
            self.pool
                .failure
                .iter()
                .map(|why| format!("no new slot: {why}")),
        );
        let (flush_mode, flush_mode_changes) = self.pipeline.mode();
        WalStatus {
            backend: facts.backend,
            direct: facts.direct,
            flush_mode,
            flush_mode_choice: self.options.flush_mode,
            flush_mode_changes,
            slots_free: self.pool.free_slots(),
            slots_total: self.pool.slots(),
            slot_bytes: self.options.slot_bytes,
            full: !self.has_room(0),
            fallbacks,
            queued_bytes: self.queue.bytes(),
            buffers_bytes: facts.buffers_bytes,
            rows_bytes: self.groups.values().map(GroupLog::rows_bytes).sum(),
            segments: self.segments.len(),
            counters: self.counters,
            flush_histogram: self.flush_histogram,
        }
    }

    fn accept(&mut self) -> Position {
        self.accepted.0 += 1;
        self.queue.complete(self.accepted);
        self.idle_at = None;
        self.accepted
    }

    fn append_entry(&mut self, group: GroupId, entry: &Entry) {
        let header = entry.header();
        assert!(header.group == group);
        let log = self.log_mut(group);
        let prev = header.index.prev().and_then(|index| log.position(index));
        let prev = prev.expect("entries continue the log");
        self.append_after(&prev, entry);
    }

    fn append_after(&mut self, prev: &LogPosition, entry: &Entry) {
        let header = entry.header();
        let again = mutated!(self.options.mutant, AppendTruncates);
        let log = self.log_mut(header.group);
        assert!(entry.follows(prev), "entries continue the chain of the log");
        if let Some(row) = log.row(header.index) {
            assert!(
                row.chain != header.chain || row.is_missing() || again,
                "an entry is written once"
            );
        }
        if log.tip().index != prev.index {
            let cut = log.truncate(prev);
            assert!(cut.is_ok());
        }
        log.push(Row::of(entry));
        self.queue.push(Item::Entry(*prev, entry.clone()));
    }

    fn append_anchor(&mut self, group: GroupId, anchor: &Anchor) {
        let position = Position(self.accepted.0 + 1);
        let durable = self.pipeline.durable;
        let record = format::Anchor::of(group, anchor);
        let bytes = anchor_bytes(&record);
        let log = self.log_mut(group);
        assert!(log.base().index <= anchor.at.index);
        // It may stand below the one before: that of a snapshot whose base was not durable when the power failed.
        log.anchors.push(position, anchor.at.index, durable);
        log.anchor = Some(Arc::new(record.clone()));
        self.carry(group);
        let record = Box::new(Record::Anchor(record));
        self.queue.push(Item::Record(record, bytes));
    }

    fn append_base(&mut self, group: GroupId, base: &Base) {
        let durable = self.pipeline.durable;
        let unchecked = mutated!(self.options.mutant, CutBeyondAnchor);
        let log = self.log_mut(group);
        let mut base = base.clone();
        if base.snapshot.is_none() && base.tip == log.whole() {
            // What lies behind something that is missing is none of the core's business yet.
            base.tip = log.tip();
        } else if log.first_missing().is_some() && log.check_on_path(&base.tip).is_ok() {
            // A snapshot reaches into it, and for the core the log ends there.
            let cut = log.truncate(&base.tip);
            assert!(cut.is_ok(), "it is on the path");
            self.queue.push(Item::Truncate(group, base.tip));
        }
        let log = self.log_mut(group);
        if base.snapshot.is_none() && !unchecked {
            let newest = log.anchor.as_ref().map(|anchor| anchor.at.index);
            let anchored = log
                .anchors
                .newest_durable(durable)
                .min(newest.unwrap_or_default());
            assert!(
                base.at.index <= anchored,
                "a log is cut below its durable anchor"
            );
            let on_path = log.check_on_path(&base.at);
            assert!(on_path.is_ok(), "a log is cut at an entry it has");
        }
        let moved = log.set_start(Start::of(&base), &base.tip);
        assert!(moved.is_ok(), "a base says where the log ends after it");
        self.carry(group);
        let bytes = base_bytes(&base.membership);
        self.queue.push(Item::Base(group, Box::new(base), bytes));
    }

    /// Keeps room for what was appended, beside the room for what was built.
    fn carry(&mut self, group: GroupId) {
        let log = self.log_mut(group);
        let before = log.carried;
        let now = log.carried_now().max(before);
        log.carried = now;
        self.first_group = self.first_group.without(before).with(now);
    }

    /// Every slot has to hold what the first flush group in it repeats of these.
    fn check_carried(&self, group: GroupId, writes: &[Write]) -> Result<(), AppendError> {
        let Some(log) = self.groups.get(&group) else {
            return Err(AppendError::UnknownGroup(group));
        };
        let mut carried = log.carried;
        let mut largest = 0;
        for write in writes {
            match write {
                Write::Anchor(anchor) => {
                    let (sessions, starts) = (anchor.sessions.len(), anchor.term_starts.len());
                    assert!(starts <= TERM_STARTS_MAX);
                    let bytes = anchor_bytes(&format::Anchor::of(group, anchor));
                    if sessions > SESSIONS_BYTES_MAX {
                        return Err(self.anchor_too_large(bytes));
                    }
                    carried.anchor = carried.anchor.max(bytes);
                    largest = largest.max(bytes);
                }
                Write::Base(base) => {
                    let bytes = configuration_bytes(&base.membership);
                    carried.configuration = carried.configuration.max(bytes);
                    largest = largest.max(base_bytes(&base.membership));
                }
                Write::HardState(_) | Write::Entries(_) | Write::Truncate(_) => {}
            }
        }
        if largest == 0 {
            return Ok(());
        }
        let first_group = self.first_group.without(log.carried).with(carried);
        match check_slot(&self.options, first_group, largest) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.anchor_too_large(largest)),
        }
    }

    fn anchor_too_large(&self, bytes: usize) -> AppendError {
        let slot_bytes = self.options.slot_bytes;
        AppendError::AnchorTooLarge { bytes, slot_bytes }
    }

    fn log_mut(&mut self, group: GroupId) -> &mut GroupLog {
        self.groups.get_mut(&group).expect("looked up before")
    }

    fn check_alive(&self) -> Result<(), AppendError> {
        match self.poisoned {
            Some(_) => Err(AppendError::Poisoned),
            None => Ok(()),
        }
    }

    /// Entries with proposals leave a slot's worth of room; everything else may take that too.
    fn check_room(&self, writes: &[Write]) -> Result<(), AppendError> {
        let (mut bytes, mut proposals) = (0, false);
        for write in writes {
            let entries = match write {
                Write::Entries(entries) => entries,
                Write::HardState(_) | Write::Truncate(_) => {
                    bytes += VOTE_BYTES;
                    continue;
                }
                Write::Anchor(anchor) => {
                    bytes += anchor_bytes(&format::Anchor::of(GroupId(0), anchor));
                    continue;
                }
                Write::Base(base) => {
                    bytes += base_bytes(&base.membership);
                    continue;
                }
            };
            for entry in entries {
                self.check_frame(entry)?;
                bytes += entry.frame().len();
                proposals |= entry.header().kind == EntryKind::Proposals;
            }
        }
        let room = if proposals {
            self.room_beyond(u64::from(self.usable_blocks()), bytes)
        } else {
            self.may_wait(bytes)
        };
        if room { Ok(()) } else { Err(AppendError::Full) }
    }

    fn check_frame(&self, entry: &Entry) -> Result<(), AppendError> {
        let (bytes, bytes_max) = (entry.frame().len(), self.options.frame_bytes_max);
        if bytes > bytes_max {
            return Err(AppendError::TooLarge { bytes, bytes_max });
        }
        Ok(())
    }

    /// Whether something that is no proposal may be queued. It takes the reserve, and if even that is used
    /// up it waits for the pool to grow: a vote that is late does no harm, a replica that gave up does.
    fn may_wait(&self, bytes: usize) -> bool {
        self.room_beyond(0, bytes) || self.queue.bytes() + bytes <= self.options.group_bytes_max
    }

    /// Whether so many more bytes have room and leave so many blocks.
    fn room_beyond(&self, reserve_blocks: u64, bytes: usize) -> bool {
        let coming = self.pool.growable() + self.pool.recycled() + self.to_be_released();
        let slots = self.pool.free_slots() + coming;
        self.blocks_free(slots) >= reserve_blocks + u64::from(self.blocks_needed(bytes))
    }

    /// Blocks left in the active segment and in so many more slots.
    fn blocks_free(&self, slots: usize) -> u64 {
        let seal = seal_blocks(self.active.footer.len(), self.tail.echo.len());
        let left = self
            .active
            .header
            .slot_blocks
            .saturating_sub(self.active.next + seal);
        u64::from(left) + slots as u64 * u64::from(self.usable_blocks())
    }

    /// Blocks that what waits takes, with so many more bytes.
    fn blocks_needed(&self, bytes: usize) -> u32 {
        blocks_for(self.queue.bytes() + bytes + 2 * BLOCK_BYTES)
    }

    /// How many blocks of a slot are left for flush groups, at a cautious guess: fully used blocks, a
    /// footer of an eighth.
    fn usable_blocks(&self) -> u32 {
        let blocks = self.options.slot_blocks();
        let fixed = SLOT_HEADER_BLOCKS + checkpoint_blocks(self.first_group.bytes);
        (blocks - blocks / 8).saturating_sub(fixed + 1)
    }

    fn is_durable(&self, row: &Row) -> bool {
        row.last_place()
            .is_some_and(|place| place < self.pipeline.durable_place)
    }

    fn next_op(&mut self) -> OpId {
        self.ops += 1;
        OpId(self.ops)
    }
}

/// What an entry takes in the log besides its frame, at most.
pub const ENTRY_ROOM_BYTES: usize = crate::queue::RUN_BYTES;

/// Bytes that a vote adds to a group's part of a checkpoint, at most, and that a small record takes.
const VOTE_BYTES: usize = 64;

/// Bytes of a mention in an echo.
const MENTION_BYTES: usize = 10;

/// Bytes of the record that a group was removed.
const REMOVED_BYTES: usize = 9;

/// Bytes of the record of a base, at most.
const BASE_BYTES: usize = 1 + 8 + 32 + 17 + 32;

/// Bytes of a run in a footer.
const FOOTER_ROW_BYTES: usize = 37;

/// How many blocks the seal of a segment takes.
fn seal_blocks(runs: usize, echo_bytes: usize) -> u32 {
    blocks_for(GROUP_HEADER_BYTES + 5 + runs * FOOTER_ROW_BYTES + echo_bytes)
}

/// How many blocks a checkpoint of so many bytes takes; its echo is that of a seal.
fn checkpoint_blocks(checkpoint_bytes: usize) -> u32 {
    blocks_for(GROUP_HEADER_BYTES + 5 + checkpoint_bytes + VOTE_BYTES)
}

/// Bytes of the records of a base.
fn base_bytes(membership: &Membership) -> usize {
    BASE_BYTES + configuration_bytes(membership)
}

/// Whether a slot holds its headers, the first flush group, one largest entry or record with a mark before and after
/// it, and the seal.
fn check_slot(
    options: &Options,
    first_group: FirstGroup,
    record_bytes: usize,
) -> Result<(), String> {
    let echo = first_group.echo_bytes();
    let frame = options.frame_bytes_max + GROUP_HEADER_BYTES + crate::queue::RUN_BYTES + VOTE_BYTES;
    let of_entry = blocks_for(frame + echo) + seal_blocks(1, crate::queue::RUN_BYTES);
    let record = GROUP_HEADER_BYTES + record_bytes;
    let of_record = blocks_for(record + echo) + seal_blocks(0, record_bytes);
    // An opening begins with a checkpoint, and repeats the last record, whole.
    let checkpoint = checkpoint_blocks(first_group.bytes + record_bytes);
    let needed = SLOT_HEADER_BLOCKS + checkpoint + of_entry.max(of_record) + 2;
    let blocks = options.slot_blocks();
    if needed > blocks {
        return Err(format!(
            "a slot of {blocks} blocks does not hold {needed}: headers, a checkpoint of all groups, an \
             entry of {} bytes, the footer",
            options.frame_bytes_max
        ));
    }
    Ok(())
}

/// The place at a block of a segment.
fn place(segment: u64, block: u32) -> Place {
    Place { segment, block }
}
