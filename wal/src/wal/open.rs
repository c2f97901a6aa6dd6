//! Opening a log: judge what is there, open a segment for what is to come, make the verdict durable.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use logdrive_raft::io::{Guard, Restored};
use logdrive_raft::wire::{Encode, Writer};
use logdrive_raft::{
    Anchor, Base, Boot, Chain, Entry, Genesis, GroupId, Incarnation, Index, LogPosition,
    Membership, Micros, SnapshotId, mutated,
};

use super::{
    FirstGroup, Held, Position, Release, Scrub, Segment, Tail, VOTE_BYTES, Wal, base_bytes,
    check_slot, checkpoint_blocks, seal_blocks,
};
use crate::build::gather;
use crate::debris::Debris;
use crate::disk::{Block, Disk, FlushMode, FlushWatchdog, SlotFile, SlotId};
use crate::error::{Finding, OpenError};
use crate::format::{
    self, COUNT_MAX, Place, Record, SEGMENT_MAX, SLOT_HEADER_BLOCKS, SlotHeader, VerdictKind,
};
use crate::judge::{Beyond, Judgement, Question, Verdict, base_of, judge};
use crate::options::{FlushModeChoice, Options};
use crate::path::{Carried, GroupLog, Missing, Start, anchor_bytes, configuration_bytes};
use crate::pipeline::Pipeline;
use crate::pool::Pool;
use crate::queue::{Item, Queue};
use crate::read::Reads;
use crate::scan::FrameScan;
use crate::status::{Counters, FlushHistogram};

/// The last boot that is followed by another one: of a boot stamps have 32 bits.
const BOOT_LAST: u64 = (u32::MAX >> 1) as u64;

/// Bytes of a verdict without guards, at most, and of each of these.
const VERDICT_BYTES: usize = 1 + 1 + 12 + 16 + 8 + 4 + 4;
const GUARD_BYTES: usize = 8 + 8 + 1 + 8;

/// What a log came back with.
#[derive(Debug)]
pub struct Recovery {
    /// Clean or torn, or suspect with groups that are guarded; with anything else the log is not opened.
    pub verdict: Verdict,
    /// The life of the directory.
    pub incarnation: Incarnation,
    /// The boot that begins: one more than the last.
    pub boot: Boot,
    /// Which log.
    pub log_uuid: u128,
    /// Every group in it.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// What was bad and could be put right, or is guarded against.
    pub findings: Vec<Finding>,
}

/// What a group came back with.
#[derive(Debug)]
pub struct RecoveredGroup {
    /// Its first fact.
    pub genesis: Genesis,
    /// What its replica begins with.
    pub restored: Restored,
    /// The newest anchor.
    pub anchor: Option<Anchor>,
    /// The snapshot that was received up to the base, if that is how the log came to begin there.
    pub base_snapshot: Option<SnapshotId>,
    /// What cannot be read. The replica begins with what lies before, guarded through the end of what lies behind.
    pub missing: Vec<Missing>,
    /// The configurations behind the first entry that is missing, as far as they can be read.
    pub configurations_behind: Vec<(Index, Membership)>,
}

/// Something beyond the durable mark that is written again.
enum Again {
    Record(Record),
    Base(GroupId, Base),
    Entry {
        /// What it follows.
        prev: LogPosition,
        entry: Entry,
        /// What it holds, if it is a configuration.
        membership: Option<Membership>,
    },
    /// Entries of the path that were supplied.
    Supplied {
        group: GroupId,
        prev: LogPosition,
        entries: Vec<Entry>,
        memberships: Vec<(LogPosition, Membership)>,
    },
}

impl<D: Disk> Wal<D> {
    /// Opens a log, or makes a new one in an empty directory. Blocks. When it returns, the verdict on what
    /// was found is durable, so that no later opening can judge differently.
    pub fn open(mut disk: D, options: Options) -> Result<(Self, Recovery), OpenError> {
        options
            .check_sizes()
            .map_err(|why| OpenError::Sizes { why })?;
        disk.lock()?;
        let slots = disk.slots()?;
        // What an earlier process left unflushed must not be believed and then lost.
        if !mutated!(options.mutant, RecoveryReadsUnflushed) {
            disk.sync_all()?;
        }
        let trusts_cache = mutated!(options.mutant, PageCacheTrusted);
        let question = Question {
            identity: Some(options.identity),
            split_at_mark: !disk.facts().direct && !trusts_cache,
            sealed_only: false,
            glances: true,
            mutant: options.mutant,
        };
        let mut judgement = judge(&mut disk, &slots, &question)?.into_result()?;
        heal(&mut disk, &judgement)?;
        let mut again = read_tail(&mut disk, &judgement)?;
        let cuts = std::mem::take(&mut judgement.cuts);
        again.extend(
            cuts.into_iter()
                .map(|(group, base)| Again::Base(group, base)),
        );
        let first_group =
            check_contents(&options, &judgement, &again).map_err(|why| OpenError::Sizes { why })?;

        let opening = Opening::plan(&mut disk, &options, &slots, &judgement, first_group)?;
        let mut wal = Self::begin(disk, options, opening, &mut judgement);
        wal.finish_opening(&mut judgement, again)?;
        let recovery = wal.recovery(judgement);
        Ok((wal, recovery))
    }

    fn begin(disk: D, mut options: Options, opening: Opening, judgement: &mut Judgement) -> Self {
        let facts = disk.facts();
        if let Some(sizing) = facts.sizing {
            options.group_bytes_max = options.group_bytes_max.min(sizing.group_bytes_max);
            options.in_flight_max.all = sizing.depth_max;
        }
        let watchdog = FlushWatchdog::new(options.watchdog);
        let (mode, watchdog) = match options.flush_mode {
            FlushModeChoice::Auto => {
                let recommended = facts.flush_mode.unwrap_or(FlushMode::Dsync);
                (recommended, Some(watchdog))
            }
            FlushModeChoice::Dsync => (FlushMode::Dsync, None),
            FlushModeChoice::DrainedFsync => (FlushMode::DrainedFsync, None),
        };
        let Opening {
            header,
            next,
            continued,
            pool,
            live,
            number,
            chain,
            echo,
            durable,
            ends,
            ..
        } = opening;
        let (echo, echo_records) = echo_of(&echo);
        let held = |header: &SlotHeader| Held {
            slot: SlotId(header.slot),
            stamper: header.stamper(),
            end: ends.get(&SlotId(header.slot)).copied().unwrap_or(u32::MAX),
        };
        let mut segments: BTreeMap<u64, Held> = live
            .iter()
            .map(|header| (header.segment, held(header)))
            .collect();
        segments.insert(header.segment, held(&header));
        let footer = if continued {
            std::mem::take(&mut judgement.footer)
        } else {
            Vec::new()
        };
        Self {
            incarnation: header.incarnation,
            boot: opening.boot,
            groups: std::mem::take(&mut judgement.groups),
            removed: std::mem::take(&mut judgement.removed),
            queue: Queue::default(),
            active: Segment {
                stamper: header.stamper(),
                slot: SlotId(header.slot),
                header,
                next,
                footer,
            },
            tail: Tail {
                number,
                chain,
                echo,
                echo_records,
                spare: Default::default(),
                built: Position(0),
                echoable: Position(0),
                quiet: false,
            },
            pipeline: Pipeline::new(mode, watchdog, durable, options.mutant),
            pool,
            reads: Reads::default(),
            scrub: Scrub::default(),
            segments,
            release: Release::new(std::mem::take(&mut judgement.headless)),
            first_group: FirstGroup::default(),
            accepted: Position(0),
            echo_wanted: Position(0),
            guards_over: BTreeSet::new(),
            idle_at: None,
            ops: 0,
            done: Vec::new(),
            poisoned: None,
            counters: Counters::default(),
            flush_histogram: FlushHistogram::default(),
            fallbacks: Vec::new(),
            disk,
            options,
        }
    }

    /// Writes what the new boot begins with, the verdict last: only with it the opening counts.
    fn finish_opening(
        &mut self,
        judgement: &mut Judgement,
        again: Vec<Again>,
    ) -> Result<(), OpenError> {
        let now = Micros::default();
        self.set_guards(judgement);
        self.first_group = FirstGroup::default().with_removed(self.removed.len());
        for log in self.groups.values_mut() {
            log.settle();
            self.first_group = self.first_group.with(log.carried);
        }
        if self.active.next == SLOT_HEADER_BLOCKS {
            // The new segment's header is durable, and says of all these that they do not count.
            self.forget_headers(judgement)?;
            self.write_first_group();
        }
        let marked = !again.is_empty() || judgement.is_guarded || !judgement.guards.is_empty();
        let mut supplied = Vec::new();
        for mut again in again {
            if let Again::Supplied {
                group, memberships, ..
            } = &mut again
            {
                supplied.push((*group, std::mem::take(memberships)));
            }
            self.write_again(again, judgement);
            if self.queue.bytes() >= self.options.group_bytes_max {
                self.submit(now);
            }
        }
        for (group, hard_state) in &judgement.hard_states {
            if let Some(log) = self.groups.get_mut(group)
                && crate::path::newest(log.hard_state, *hard_state) != log.hard_state
            {
                log.raise_hard_state(*hard_state);
                self.queue.push(Item::HardState(*group, *hard_state));
            }
        }
        // Of groups that begin in what was written again, too.
        self.set_guards(judgement);
        let verdict = format::Verdict {
            kind: match judgement.verdict {
                Verdict::Clean => VerdictKind::Clean,
                _ => VerdictKind::Torn,
            },
            end: judgement.end,
            chain: judgement.chain,
            boot: self.boot,
            holes: Vec::new(),
            guards: self.guards().collect(),
        };
        let record = Record::Verdict(verdict);
        let bytes = record.to_bytes().len();
        self.queue.push(Item::Record(Box::new(record), bytes));
        self.drain_opening(now)?;
        if marked {
            // Now it is durable as far as any process can know, once a mark says so. And the verdict on what may be lost
            // is not one bad block from being forgotten.
            self.mark_opening(now)?;
        }
        for file in std::mem::take(&mut self.pool.held_back) {
            let log_uuid = self.active.header.log_uuid;
            let oldest = self.segments.keys().next().copied().unwrap_or_default();
            if self.pool.may_leave(&file)
                && judgement.is_done_with(file.slot, oldest)
                && !mutated!(self.options.mutant, DebrisKept)
            {
                let has_header = judgement.has_header(file.slot);
                self.pool.leave(&file, log_uuid, self.boot, has_header);
                continue;
            }
            if !mutated!(self.options.mutant, DebrisKept) {
                clear(&mut self.disk, &file, judgement, log_uuid)?;
            }
            self.pool.add(file.slot, file.blocks, true);
        }
        self.forget_headers(judgement)?;
        for log in self.groups.values_mut() {
            assert!(log.owed().is_none(), "what is missing was looked for");
            log.take_supplied(|_| true);
            let group = log.genesis.group;
            let ours = supplied.iter().filter(|(of, _)| *of == group);
            for (at, membership) in ours.flat_map(|(_, memberships)| memberships) {
                let row = log.row(at.index).filter(|row| !row.is_missing());
                if row.is_some_and(|row| row.chain == at.chain) {
                    judgement
                        .configurations
                        .restore(group, at.index, membership.clone());
                }
            }
            // What was written again lies elsewhere now.
            log.settle();
        }
        self.release.allow();
        self.pool.on_opened();
        self.counters = Counters::default();
        self.flush_histogram = FlushHistogram::default();
        Ok(())
    }

    /// The guards are those of the whole log: beyond the mark one may have come, or ended.
    fn set_guards(&mut self, judgement: &Judgement) {
        for (group, log) in &mut self.groups {
            log.guard = judgement.guards.get(group).copied();
        }
    }

    /// What the groups may have acknowledged and do not hold.
    fn guards(&self) -> impl Iterator<Item = (GroupId, Guard)> {
        let groups = self.groups.iter();
        groups.filter_map(|(group, log)| Some((*group, log.open_guard()?)))
    }

    /// Clears the headers in slots that are free. A roll writes both copies at once, and of blocks that are torn in
    /// order the ends are the old ones: over an older header that makes two bad copies, which is suspect; over
    /// zeros, two that never landed.
    ///
    /// One copy once the other is flushed, and one that cannot be read first, so that no cut leaves two bad ones here
    /// either.
    fn forget_headers(&mut self, judgement: &mut Judgement) -> Result<(), OpenError> {
        for (slot, copies) in &mut judgement.written_copies {
            if !self.pool.is_unused(*slot) {
                continue;
            }
            for copy in copies.drain(..) {
                self.disk.write(*slot, copy, &[Block::ZERO])?;
                self.disk.flush(*slot)?;
            }
        }
        Ok(())
    }

    /// Writes a mark, in a slot that is waited for if need be.
    fn mark_opening(&mut self, now: Micros) -> Result<(), OpenError> {
        while !self.build_mark() {
            self.grow_pool(now);
            self.disk.kick();
            if !self.pool.is_busy() {
                return Err(self.no_space(&self.pool.why_none()));
            }
            self.wait_for_disk(now);
        }
        self.drain_opening(now)
    }

    /// Waits until all of it is durable. What has no slot to go to never will be, and then somebody has to
    /// make room.
    fn drain_opening(&mut self, now: Micros) -> Result<(), OpenError> {
        let Err(reason) = self.drain(now) else {
            return Ok(());
        };
        // A write or flush that failed stays under way.
        if self.pipeline.is_empty() && self.pool.any_free().is_none() {
            return Err(self.no_space(&reason.error));
        }
        Err(reason.into())
    }

    fn no_space(&self, why: &str) -> OpenError {
        let path = self.disk.slot_path(self.pool.next_slot());
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
        OpenError::NoSpace { path, source }
    }

    /// Writes it, and keeps in the judgement what the log itself does not know.
    fn write_again(&mut self, again: Again, judgement: &mut Judgement) {
        let configurations = &mut judgement.configurations;
        match again {
            Again::Entry {
                prev,
                entry,
                membership,
            } => {
                self.append_after(&prev, &entry);
                let (group, index) = (entry.header().group, entry.index());
                configurations.cut(group, index.prev().unwrap_or_default());
                if let Some(membership) = membership {
                    configurations.push(group, index, membership);
                }
            }
            // Which of them are on the path shows at the end.
            Again::Supplied {
                group,
                prev,
                entries,
                ..
            } => {
                if self.groups.contains_key(&group) {
                    self.write_supplied(group, prev, &entries);
                }
            }
            Again::Record(Record::HardState { group, hard_state }) => {
                self.log_mut(group).raise_hard_state(hard_state);
                self.queue.push(Item::HardState(group, hard_state));
            }
            Again::Record(Record::Truncate { group, to }) => {
                let cut = self.log_mut(group).truncate(&to);
                assert!(cut.is_ok(), "the tail was checked when it was judged");
                self.queue.push(Item::Truncate(group, to));
                configurations.cut(group, to.index);
            }
            Again::Base(group, base) => {
                let log = self.log_mut(group);
                let moved = log.set_start(Start::of(&base), &base.tip);
                assert!(moved.is_ok(), "the tail was checked when it was judged");
                configurations.cut(group, base.tip.index);
                self.carry(group);
                let bytes = base_bytes(&base.membership);
                self.queue.push(Item::Base(group, Box::new(base), bytes));
            }
            Again::Record(Record::Anchor(anchor)) => {
                let group = anchor.group;
                let log = self.log_mut(group);
                if log.anchor.as_deref() == Some(&anchor) {
                    // The first flush group of a segment repeats it, here too.
                    return;
                }
                log.anchor = Some(Arc::new(anchor.clone()));
                self.carry(group);
                let bytes = anchor_bytes(&anchor);
                let record = Box::new(Record::Anchor(anchor));
                self.queue.push(Item::Record(record, bytes));
            }
            Again::Record(record) => {
                match &record {
                    Record::Genesis(genesis) => {
                        let log = GroupLog::new(genesis.clone());
                        if let btree_map::Entry::Vacant(vacant) = self.groups.entry(genesis.group) {
                            self.first_group = self.first_group.with(log.carried);
                            vacant.insert(log);
                        }
                    }
                    Record::GroupRemoved(group) => {
                        if !self.removed.insert(*group) {
                            return;
                        }
                        if let Some(log) = self.groups.remove(group) {
                            self.first_group = self.first_group.without(log.carried);
                        }
                        self.first_group = self.first_group.with_removed(1);
                        configurations.remove(*group);
                    }
                    _ => return,
                }
                let bytes = record.to_bytes().len();
                self.queue.push(Item::Record(Box::new(record), bytes));
            }
        }
    }

    fn recovery(&self, mut judgement: Judgement) -> Recovery {
        assert!(!judgement.is_refused());
        let mut groups = BTreeMap::new();
        for (group, log) in &self.groups {
            let genesis = log.genesis.clone();
            let base = log.base();
            let mut configurations = judgement.configurations.remove(*group);
            let over = mutated!(self.options.mutant, HoleAcknowledgedOver);
            let whole = log.whole();
            configurations.retain(|(index, _)| base.index < *index);
            let before = configurations.partition_point(|(index, _)| *index <= whole.index);
            let configurations_behind = configurations.split_off(before);
            let membership = log.membership();
            let membership = membership.expect("it was looked for when the log was judged");
            let anchored = log.anchor.as_ref().map(|anchor| anchor.contents());
            let anchor = anchored.clone().unwrap_or_else(|| Anchor {
                at: base,
                ..Anchor::default()
            });
            let restored = Restored {
                hard_state: log.hard_state,
                // Both copies of a vote, its record and the echo in the next flush group, can only be
                // unreadable where something durable is: at or below the mark, or as garbage above it. The
                // one is rot and the other suspect, and neither is opened if two flush groups are told nowhere. What
                // did not land above the mark is no such case: a vote is not cast before its echo is durable.
                never_votes: false,
                entries: log
                    .rows()
                    .take_while(|row| !row.is_missing() || over)
                    .map(|row| row.meta())
                    .collect(),
                configurations,
                term_starts: anchor.term_starts_through(base.index),
                anchor: anchor.at,
                guard: log
                    .open_guard()
                    .filter(|_| !over || log.missing_count() == 0),
                regaining: log.missing_count() > 0 && !over,
                ..Restored::at(base, membership)
            };
            let recovered = RecoveredGroup {
                genesis,
                restored,
                anchor: anchored,
                base_snapshot: log.start.snapshot,
                missing: log.missing(),
                configurations_behind,
            };
            groups.insert(*group, recovered);
        }
        Recovery {
            verdict: judgement.verdict,
            incarnation: self.incarnation,
            boot: self.boot,
            log_uuid: self.active.header.log_uuid,
            groups,
            findings: judgement.findings,
        }
    }
}

/// Where a boot begins to write.
struct Opening {
    boot: Boot,
    header: SlotHeader,
    next: u32,
    /// It goes on in the segment that was last written to.
    continued: bool,
    pool: Pool,
    /// The segments that are kept.
    live: Vec<SlotHeader>,
    number: u64,
    chain: Chain,
    /// The table of the last flush group that counts.
    echo: Vec<Record>,
    durable: Place,
    /// Where the segments that are kept end.
    ends: BTreeMap<SlotId, u32>,
}

impl Opening {
    /// Decides where to go on and, unless that is the last segment, writes the header of a new one.
    fn plan(
        disk: &mut impl Disk,
        options: &Options,
        slots: &[SlotFile],
        judgement: &Judgement,
        first_group: FirstGroup,
    ) -> Result<Self, OpenError> {
        check_numbers(disk, judgement)?;
        let boot = if mutated!(options.mutant, BootReused) {
            Boot(judgement.boot.0.max(1))
        } else {
            Boot(judgement.boot.0 + 1)
        };
        let mut live: Vec<SlotHeader> = judgement.live.iter().map(|live| live.header).collect();
        let (mut chain, mut number) = (judgement.chain, judgement.number);
        let mut echo = judgement.last_table.clone();
        let mut end = judgement.end;
        let slots_max = usize::try_from(options.bytes_max / options.slot_bytes);
        let mut pool = Pool::new(options.slot_blocks(), slots_max.unwrap_or(usize::MAX));

        let last = live.last().copied();
        let seal = seal_blocks(judgement.footer.len(), echo_of(&echo).0.len());
        let roomy = |header: &SlotHeader| {
            // An eighth is left to write to; with less a new segment is as good. What others wrote may leave less
            // for the seal than whoever goes on here has to.
            let left = (header.slot_blocks / 8 + 4).max(seal);
            u64::from(end.block) + u64::from(left) <= u64::from(header.slot_blocks)
        };
        // A header of an opening that died would stand beyond what is written here, and nothing would say
        // later that it does not count. And a block that was torn inside beyond the end would be garbage in what
        // the next opening finds, if the log then ends just before it: nothing is cleared in a segment that counts.
        let newest = judgement.known.map(|known| known.epoch);
        let continues = judgement.stopped_cleanly && !judgement.garbage_beyond;
        let continued = last.filter(|last| continues && roomy(last) && newest == Some(last.epoch));
        // The segment of a boot in which nothing was acknowledged is taken again, not added to.
        let unused = last.filter(|last| judgement.last_unused && last.by_recovery);
        let mut needed: BTreeSet<SlotId> =
            judgement.tail.iter().map(|beyond| beyond.slot).collect();
        needed.extend(&judgement.originals);
        if continued.is_none() && unused.is_some() && judgement.tail.is_empty() {
            let header = live.pop().expect("it is the last one");
            // If this opening fails, the next one judges by it.
            needed.insert(SlotId(header.slot));
            chain = header.predecessor_chain;
            end = header.predecessor_end;
            (echo, number) = judgement.before_last.clone();
        }

        let known = judgement.known;
        let log_uuid = known.map_or(options.fresh.log_uuid, |known| known.log_uuid);
        // Where what counts of each segment ends.
        let after = live.iter().skip(1).map(|header| header.predecessor_end);
        let ends = live.iter().zip(after.chain([end]));
        let ends: BTreeMap<SlotId, u32> = ends
            .map(|(header, end)| (SlotId(header.slot), end.block))
            .collect();
        let kept: BTreeSet<SlotId> = live.iter().map(|header| SlotId(header.slot)).collect();
        let oldest = live.first().map(|first| first.segment);
        let is_done_with = |file: &SlotFile| {
            oldest.is_some_and(|oldest| judgement.is_done_with(file.slot, oldest))
        };
        for file in slots {
            if kept.contains(&file.slot) {
                pool.add(file.slot, file.blocks, false);
                let end = match judgement.mended.contains(&file.slot) {
                    true => SLOT_HEADER_BLOCKS,
                    false => ends.get(&file.slot).copied().unwrap_or(file.blocks),
                };
                pool.remember(file.slot, Debris::read(disk, file, end, log_uuid)?);
            } else if needed.contains(&file.slot) {
                pool.held_back.push(*file);
            } else if pool.may_leave(file)
                && is_done_with(file)
                && !mutated!(options.mutant, DebrisKept)
            {
                pool.leave(file, log_uuid, boot, judgement.has_header(file.slot));
            } else {
                if !mutated!(options.mutant, DebrisKept) {
                    clear(disk, file, judgement, log_uuid)?;
                }
                pool.add(file.slot, file.blocks, true);
            }
        }
        let durable = end;
        if let Some(header) = continued {
            let next = end.block;
            return Ok(Self {
                boot,
                header,
                next,
                continued: true,
                pool,
                live,
                number,
                chain,
                echo,
                durable,
                ends,
            });
        }
        let free = pool.any_free();
        let slot_blocks = free.map_or(options.slot_blocks(), |slot| pool.length(slot));
        check_first_group(slot_blocks, first_group.bytes, &echo)
            .map_err(|why| OpenError::Sizes { why })?;
        let slot = match free {
            Some(slot) => {
                pool.take_this(slot);
                slot
            }
            // One more than there may be, if it comes to that: a log that cannot be opened helps nobody.
            None => {
                let slot = pool.next_slot();
                disk.create(slot, options.slot_blocks())?;
                pool.add(slot, options.slot_blocks(), false);
                slot
            }
        };
        let mut fresh = options.fresh;
        if mutated!(options.mutant, WipedIsOldVoter) {
            fresh.incarnation = Incarnation(options.identity.node.0.into());
        }
        let header = SlotHeader {
            by_recovery: true,
            compatible: 0,
            log_uuid,
            cluster: options.identity.cluster,
            node: options.identity.node,
            incarnation: known.map_or(fresh.incarnation, |known| known.incarnation),
            slot: slot.0,
            slot_blocks: pool.length(slot),
            segment: end.segment + 1,
            epoch: boot,
            predecessor_epoch: live.last().map_or(Boot(0), |last| last.epoch),
            predecessor_end: end,
            predecessor_chain: chain,
            oldest: live.first().map_or(end.segment + 1, |first| first.segment),
        };
        // One copy after the other: the slot may hold a header that still counts until this one is whole. So
        // the copy that counts is written last, or two power cuts in a row may tear both.
        let copies = header.to_blocks();
        let order = if judgement.first_counts.contains(&slot) {
            [1, 0]
        } else {
            [0, 1]
        };
        for number in order {
            disk.write(slot, number, &copies[number as usize..][..1])?;
            disk.flush(slot)?;
        }
        Ok(Self {
            boot,
            header,
            next: SLOT_HEADER_BLOCKS,
            continued: false,
            pool,
            live,
            number,
            chain,
            echo,
            durable,
            ends,
        })
    }
}

/// Clears what may be taken for a part of a later segment in a slot that is going to be free. Every free slot
/// is cleared, also those that only a roll will take.
fn clear(
    disk: &mut impl Disk,
    file: &SlotFile,
    judgement: &Judgement,
    log_uuid: u128,
) -> Result<(), OpenError> {
    match judgement.debris.get(&file.slot) {
        Some(debris) => debris.clear(disk, file.slot)?,
        // It belonged to the log until its segment turned out not to count.
        None => Debris::read(disk, file, 0, log_uuid)?.clear(disk, file.slot)?,
    }
    Ok(())
}

/// What the first flush group of a segment has to hold; or why slots of the configured size do not hold that and
/// what has to be written again. They may have been larger once.
fn check_contents(
    options: &Options,
    judgement: &Judgement,
    again: &[Again],
) -> Result<FirstGroup, String> {
    let groups = judgement.groups.iter();
    let mut carried: BTreeMap<GroupId, Carried> = groups
        .map(|(group, log)| (*group, log.carried_now()))
        .collect();
    let mut removed = judgement.removed.clone();
    let (mut frame_bytes_max, mut record_bytes) = (options.frame_bytes_max, 0);
    for again in again {
        match again {
            Again::Entry { entry, .. } => {
                frame_bytes_max = frame_bytes_max.max(entry.frame().len());
            }
            Again::Supplied { entries, .. } => {
                let largest = entries.iter().map(|entry| entry.frame().len()).max();
                frame_bytes_max = frame_bytes_max.max(largest.unwrap_or(0));
            }
            Again::Base(group, base) => {
                let bytes = configuration_bytes(&base.membership);
                let carried = carried.entry(*group).or_default();
                carried.configuration = carried.configuration.max(bytes);
                record_bytes = record_bytes.max(base_bytes(&base.membership));
            }
            Again::Record(Record::Anchor(anchor)) => {
                let bytes = anchor_bytes(anchor);
                let carried = carried.entry(anchor.group).or_default();
                carried.anchor = carried.anchor.max(bytes);
                record_bytes = record_bytes.max(bytes);
            }
            Again::Record(Record::Genesis(genesis)) => {
                let log = GroupLog::new(genesis.clone());
                carried.entry(genesis.group).or_insert(log.carried);
            }
            Again::Record(Record::GroupRemoved(group)) => {
                removed.insert(*group);
            }
            Again::Record(_) => {}
        }
    }
    let guarded = judgement.guards.len();
    record_bytes = record_bytes.max(VERDICT_BYTES + guarded * GUARD_BYTES);
    let first_group = carried.values().fold(
        FirstGroup::default().with_removed(removed.len()),
        |all, carried| all.with(*carried),
    );
    let needed = Options {
        frame_bytes_max,
        ..options.clone()
    };
    check_slot(&needed, first_group, record_bytes)?;
    Ok(first_group)
}

/// A log whose numbers are at their end is not gone on with: the next one would not be believed, nor would what is
/// acknowledged after it. One opening takes one boot; of segments and flush groups half are left to it.
fn check_numbers(disk: &impl Disk, judgement: &Judgement) -> Result<(), OpenError> {
    let segment = judgement.known.map_or(0, |known| known.segment);
    let numbers = [
        (
            "segment",
            segment.max(judgement.end.segment),
            SEGMENT_MAX / 2,
        ),
        ("flush group", judgement.number, COUNT_MAX / 2),
        // Stamps have the low half of it.
        ("boot", judgement.boot.0, BOOT_LAST),
    ];
    let Some((what, number, _)) = numbers.iter().find(|(_, number, last)| number > last) else {
        return Ok(());
    };
    let slot = judgement.known.map_or(0, |known| known.slot);
    Err(OpenError::NotALog {
        path: disk.slot_path(SlotId(slot)),
        why: format!("after {what} {number} there are not enough numbers left to go on"),
    })
}

/// The first flush group of a segment holds a checkpoint and repeats the last table, whole. That one may have been
/// written to a larger slot.
fn check_first_group(
    slot_blocks: u32,
    checkpoint_bytes: usize,
    echo: &[Record],
) -> Result<(), String> {
    let echo_bytes = echo_of(echo).0.len();
    let needed = SLOT_HEADER_BLOCKS
        + checkpoint_blocks(checkpoint_bytes + echo_bytes)
        + seal_blocks(0, VOTE_BYTES);
    if needed > slot_blocks {
        return Err(format!(
            "a slot of {slot_blocks} blocks does not hold {needed}: headers, a checkpoint of all groups, \
             {echo_bytes} bytes of the last flush group's table, the footer"
        ));
    }
    Ok(())
}

/// Puts right what can be put right without a peer, and writes again what may be in the page cache only.
fn heal(disk: &mut impl Disk, judgement: &Judgement) -> Result<(), OpenError> {
    for (slot, copy) in &judgement.bad_copies {
        let live = judgement.live.iter().find(|live| live.slot == *slot);
        if let Some(live) = live {
            let blocks = live.header.to_blocks();
            disk.write(*slot, *copy, &blocks[*copy as usize..][..1])?;
            disk.flush(*slot)?;
        }
    }
    if let Some(last) = judgement.live.last().filter(|_| judgement.rewrite_last) {
        // The mark holds nothing that was acknowledged, and the bytes are the same.
        let count = judgement.end.block - judgement.mark.block;
        let mut blocks = vec![Block::ZERO; count as usize];
        disk.read(last.slot, judgement.mark.block, &mut blocks)?;
        disk.write(last.slot, judgement.mark.block, &blocks)?;
        disk.flush(last.slot)?;
    }
    Ok(())
}

/// The contents of the flush groups beyond the mark.
fn read_tail(disk: &mut impl Disk, judgement: &Judgement) -> Result<Vec<Again>, OpenError> {
    let mut tail = Vec::new();
    for Beyond { slot, group } in &judgement.tail {
        let mut blocks = vec![Block::ZERO; group.header.blocks as usize];
        disk.read(*slot, group.header.place.block, &mut blocks)?;
        let data = gather(&blocks, 0, group.header.data_bytes()).freeze();
        let mut frames = group.frames.iter();
        for (place, record) in group.table.iter().enumerate() {
            match record {
                Record::Entries(run) => {
                    let mut prev = run.prev;
                    for frame in frames
                        .by_ref()
                        .take(usize::try_from(run.count()).unwrap_or(0))
                    {
                        let entry = entry_in(disk, *slot, &data, frame)?;
                        let position = entry.position();
                        tail.push(Again::Entry {
                            prev,
                            entry,
                            membership: frame.membership.clone(),
                        });
                        prev = position;
                    }
                }
                Record::Rewrite(run) => {
                    let mut entries = Vec::new();
                    let mut memberships = Vec::new();
                    for frame in frames
                        .by_ref()
                        .take(usize::try_from(run.count()).unwrap_or(0))
                    {
                        entries.push(entry_in(disk, *slot, &data, frame)?);
                        let membership = frame.membership.clone();
                        memberships.extend(Some(frame.position).zip(membership));
                    }
                    tail.push(Again::Supplied {
                        group: run.group,
                        prev: run.prev,
                        entries,
                        memberships,
                    });
                }
                Record::Base { group: id, .. } => {
                    let base = base_of(&group.table[place..]);
                    tail.extend(base.map(|base| Again::Base(*id, base)));
                }
                other => tail.push(Again::Record(other.clone())),
            }
        }
    }
    Ok(tail)
}

fn entry_in(
    disk: &impl Disk,
    slot: SlotId,
    data: &Bytes,
    frame: &FrameScan,
) -> Result<Entry, OpenError> {
    let bytes = data.slice(frame.offset..frame.offset + frame.bytes as usize);
    Entry::from_frame(bytes).map_err(|error| OpenError::NotALog {
        path: disk.slot_path(slot),
        why: format!("it changed while it was read: {error}"),
    })
}

fn echo_of(table: &[Record]) -> (BytesMut, u32) {
    let mut echo = BytesMut::new();
    let first = matches!(table.first(), Some(Record::Checkpoint(_)));
    for record in table {
        record.encode_echo(first, &mut Writer::new(&mut echo));
    }
    (
        echo,
        u32::try_from(table.len()).expect("tables are bounded"),
    )
}
