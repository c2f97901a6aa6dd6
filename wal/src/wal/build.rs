//! From the queue to the disk: flush groups are built, sealed into segments, and submitted.

use logdrive_raft::wire::{Encode, Writer};
use logdrive_raft::{Base, Entry, GroupId, LogPosition, Membership, Micros, mutated};

use super::{Held, Position, Segment, Spare, Wal, place, seal_blocks};
use crate::build::{BlockWriter, blocks_for};
use crate::disk::{BLOCK_BYTES, Disk, FlushMode, Op};
use crate::format::{
    Anchor, BLOCK_DATA_BYTES, EntryRun, FooterRow, GROUP_HEADER_BYTES, GroupHeader, GroupKind,
    Record, SLOT_HEADER_BLOCKS, SlotHeader, digest_of,
};
use crate::path::Start;
use crate::pipeline::GroupEnd;
use crate::queue::{Item, Plan, Queued, continues};

impl<D: Disk> Wal<D> {
    /// Builds flush groups from what is queued, as far as the in-flight rules allow, and submits them.
    pub fn submit(&mut self, now: Micros) {
        if self.poisoned.is_some() {
            return;
        }
        while self.may_build() {
            self.build_guards_over();
            let built = if !self.queue.is_empty() {
                self.build_data()
            } else if self.wants_roll() {
                self.roll()
            } else if self.wants_mark(now) {
                self.build_mark()
            } else {
                break;
            };
            if !built {
                // It goes on once the pool has a slot.
                break;
            }
        }
        self.ask_for_one_more();
        self.watch_idleness(now);
        self.grow_pool(now);
        self.scrub(now);
        self.disk.kick();
    }

    /// Builds and submits flush groups as long as what waits fills them: more would not make them better, and the disk
    /// works while the caller thinks of more.
    pub(super) fn build_full(&mut self) {
        let is_open = self.poisoned.is_none();
        while is_open && self.fills_a_group() && self.may_build() {
            if !self.build_data() {
                break;
            }
        }
    }

    fn fills_a_group(&self) -> bool {
        self.queue.bytes() >= self.options.group_bytes_max
    }

    /// Depth pays for bytes, not for counts: few groups that are not full, more that are.
    fn may_build(&self) -> bool {
        let (all, partial) = self.pipeline.groups_in_flight();
        let max = self.options.in_flight_max;
        all < max.all && (self.fills_a_group() || partial < max.partial)
    }

    fn wants_mark(&self, now: Micros) -> bool {
        let echo = self.echo_wanted > self.tail.echoable;
        let idle = self.idle_at.is_some_and(|at| at <= now) && self.pipeline.is_empty();
        echo || idle
    }

    /// Nothing is under way and the log does not say so yet: it will, unless something comes first. A log that
    /// has nowhere to say so asks for no time: it is called when the pool has a slot.
    pub(super) fn watch_idleness(&mut self, now: Micros) {
        let idle = self.queue.is_empty() && self.pipeline.is_empty() && !self.tail.quiet;
        let idle = idle && (self.fits(&Plan::default()) || self.pool.any_free().is_some());
        if !idle || self.poisoned.is_some() {
            self.idle_at = None;
        } else if self.idle_at.is_none() {
            self.idle_at = Some(now.after(self.options.idle_mark_us));
        }
    }

    pub(super) fn grow_pool(&mut self, now: Micros) {
        let op = self.next_op();
        if let Some(step) = self.pool.grow(op, now) {
            let flushes = matches!(step, Op::Flush { .. });
            if flushes && mutated!(self.options.mutant, SlotUsedUnflushed) {
                return self.pool.on_step(Ok(0), now);
            }
            self.disk.submit(op, step);
        }
    }

    fn build_data(&mut self) -> bool {
        let Some(plan) = self.plan() else {
            if !self.roll() {
                return false;
            }
            let plan = self.plan().expect("an empty segment takes any entry");
            self.write_group(GroupKind::Data, plan, Vec::new());
            return true;
        };
        self.write_group(GroupKind::Data, plan, Vec::new());
        true
    }

    /// States anew where groups stand whose guard is over, if there is room. It is in nobody's way: what is not stated now
    /// the first group of the next segment states.
    fn build_guards_over(&mut self) {
        let over = std::mem::take(&mut self.guards_over);
        let logs = over.iter().filter_map(|group| self.groups.get(group));
        let rows: Vec<_> = logs.map(|log| log.checkpoint()).collect();
        if rows.is_empty() {
            return;
        }
        let record = Record::Checkpoint(rows);
        let plan = Plan {
            table_bytes: record.to_bytes().len(),
            ..Plan::default()
        };
        if self.fits(&plan) {
            self.write_group(GroupKind::Data, Plan::default(), vec![record]);
        }
    }

    pub(super) fn build_mark(&mut self) -> bool {
        let none = Plan::default();
        if !self.fits(&none) && !self.roll() {
            return false;
        }
        // A segment that was just rolled to has not drained: the mark states less, and is true.
        self.write_group(GroupKind::Mark, none, Vec::new());
        true
    }

    /// What the next flush group takes from the queue; none if not one item fits into the segment.
    fn plan(&self) -> Option<Plan> {
        let plan = self.queue.plan(self.options.group_bytes_max);
        if self.fits(&plan) {
            return Some(plan);
        }
        let next = self.active.next + seal_blocks(self.active.footer.len(), 0) + 1;
        let left = self.active.header.slot_blocks.saturating_sub(next) as usize;
        let overhead = GROUP_HEADER_BYTES + self.tail.echo.len();
        // Half: what is planned may come back in the footer and in the seal's echo.
        let room = (left * BLOCK_DATA_BYTES).saturating_sub(overhead) / 2;
        let plan = self.queue.plan(room);
        self.fits(&plan).then_some(plan)
    }

    /// Whether a group with this plan leaves room for the seal.
    fn fits(&self, plan: &Plan) -> bool {
        let data = GROUP_HEADER_BYTES + plan.table_bytes + self.tail.echo.len() + plan.body_bytes;
        let runs = self.active.footer.len() + plan.runs;
        let needed = blocks_for(data) + seal_blocks(runs, plan.table_bytes);
        self.active.next + needed <= self.active.header.slot_blocks
    }

    /// Seals the segment and goes on in a free slot. False if there is none.
    pub(super) fn roll(&mut self) -> bool {
        let Some(slot) = self.pool.take() else {
            return false;
        };
        // The next segment will have about as many.
        let empty = Vec::with_capacity(self.active.footer.len());
        let rows = std::mem::replace(&mut self.active.footer, empty);
        self.write_group(GroupKind::Seal, Plan::default(), vec![Record::Footer(rows)]);
        let last = self.active.header;
        if let Some(held) = self.segments.get_mut(&last.segment) {
            held.end = self.active.next;
        }
        let oldest = self.oldest_after_roll();
        let header = SlotHeader {
            by_recovery: false,
            slot: slot.0,
            slot_blocks: self.pool.length(slot),
            segment: last.segment + 1,
            epoch: self.boot,
            predecessor_epoch: last.epoch,
            predecessor_end: place(last.segment, self.active.next),
            predecessor_chain: self.tail.chain,
            oldest,
            ..last
        };
        let blocks = header.to_blocks();
        let mut buffer = self.disk.take_buffer(blocks.len());
        buffer.blocks_mut().copy_from_slice(&blocks);
        let op = self.next_op();
        let bytes = size_of_val(&blocks) as u64;
        let now_ns = self.disk.now_ns();
        let dsync = if mutated!(self.options.mutant, HeaderNotAwaited) {
            self.pipeline.mode().0 == FlushMode::Dsync
        } else {
            self.pipeline.begin(op, slot, 0, bytes, None, now_ns)
        };
        self.counters.bytes_written += bytes;
        let block = 0;
        let op_write = Op::Write {
            slot,
            block,
            buffer,
            dsync,
        };
        self.disk.submit(op, op_write);
        self.activate(header);
        self.write_first_group();
        self.state_release();
        true
    }

    /// Goes on in the segment with this header.
    pub(super) fn activate(&mut self, header: SlotHeader) {
        let slot = crate::disk::SlotId(header.slot);
        let stamper = header.stamper();
        let footer = std::mem::take(&mut self.active.footer);
        assert!(footer.is_empty());
        self.active = Segment {
            header,
            stamper,
            slot,
            next: SLOT_HEADER_BLOCKS,
            footer,
        };
        let end = u32::MAX;
        let held = Held { slot, stamper, end };
        self.segments.insert(header.segment, held);
    }

    /// The first flush group of a segment says where every group stands, and all that is still needed of what the
    /// segments before say.
    pub(super) fn write_first_group(&mut self) {
        let begun = self.groups.values().filter(|log| log.written.begun);
        let rows = begun.clone().map(|log| log.checkpoint()).collect();
        let mut records = vec![Record::Checkpoint(rows)];
        for log in begun {
            let group = log.genesis.group;
            if let Some(anchor) = &log.written.anchor {
                records.push(Record::Anchor(Anchor::clone(anchor)));
            }
            if let Some(membership) = &log.written.start.membership {
                records.push(Record::Configuration {
                    group,
                    at: log.written.start.base,
                    membership: Membership::clone(membership),
                });
            }
        }
        records.extend(self.removed.iter().copied().map(Record::GroupRemoved));
        self.write_group(GroupKind::First, Plan::default(), records);
    }

    /// Builds one flush group of the first items of the queue and of records, and submits its write.
    fn write_group(&mut self, kind: GroupKind, plan: Plan, own: Vec<Record>) {
        let mut spare = std::mem::take(&mut self.tail.spare);
        let Spare { table, echo, .. } = &mut spare;
        table.clear();
        echo.clear();
        let mut records = 0;
        let mut add = |record: &Record| {
            record.encode(&mut Writer::new(table));
            record.encode_echo(kind == GroupKind::First, &mut Writer::new(echo));
            records += 1;
        };
        let at = place(self.active.header.segment, self.active.next);
        for_each_record(self.queue.front(plan.items), |record| {
            if let Record::Entries(run) | Record::Rewrite(run) = record {
                let rewrite = matches!(record, Record::Rewrite(_));
                self.active.footer.push(footer_row(at.block, run, rewrite));
            }
            add(record);
        });
        own.iter().for_each(add);

        let number = |bytes: usize| u32::try_from(bytes).expect("groups are smaller than slots");
        let mut header = GroupHeader {
            kind,
            compatible: 0,
            cluster: self.options.identity.cluster,
            incarnation: self.incarnation,
            boot: self.boot,
            place: at,
            blocks: 0,
            number: self.tail.number + 1,
            mark: self.pipeline.durable_place,
            table_bytes: number(table.len()),
            echo_bytes: number(self.tail.echo.len()),
            body_bytes: number(plan.body_bytes),
            records,
            echo_records: self.tail.echo_records,
            digest: digest_of(table, &self.tail.echo),
            previous: self.tail.chain,
        };
        if mutated!(self.options.mutant, MarkAhead) {
            header.mark = at;
        }
        header.blocks = blocks_for(header.data_bytes());
        let chain = header.seal_into(&mut spare.header);
        assert!(header.end().block <= self.active.header.slot_blocks);

        let mut buffer = self.disk.take_buffer(header.blocks as usize);
        let mut writer = BlockWriter::new(buffer.blocks_mut(), &self.active.stamper, at.block);
        writer.write(&spare.header);
        writer.write(&spare.table);
        writer.write(&self.tail.echo);
        let mut built = self.tail.built;
        for Queued { item, completes } in self.queue.front(plan.items) {
            match item {
                Item::Entry(_, entry) => {
                    let offset = writer.offset();
                    writer.write(entry.frame());
                    let position = entry.position();
                    let log = self.groups.get_mut(&entry.header().group);
                    let log = log.expect("entries of known groups are queued");
                    log.entry_built(position, at.segment);
                    // It may have been cut again since.
                    let row = log.row_mut(position.index);
                    if let Some(row) = row.filter(|row| row.chain == position.chain) {
                        row.put(at, offset);
                    }
                }
                Item::Rewrite(_, entry) => {
                    let offset = writer.offset();
                    writer.write(entry.frame());
                    if let Some(log) = self.groups.get_mut(&entry.header().group) {
                        log.supplied_built(&entry.position(), at, offset);
                    }
                }
                Item::HardState(group, hard_state) => {
                    if let Some(log) = self.groups.get_mut(group) {
                        log.written.hard_state =
                            crate::path::newest(log.written.hard_state, *hard_state);
                    }
                }
                Item::Truncate(group, to) => {
                    if let Some(log) = self.groups.get_mut(group) {
                        log.truncate_built(*to);
                        self.release.floors_moved();
                    }
                }
                Item::Base(group, base, _) => {
                    if let Some(log) = self.groups.get_mut(group) {
                        log.base_built(Start::of(base), base.tip);
                        self.first_group.settle(log);
                        self.release.floors_moved();
                    }
                }
                Item::Record(record, _) => match &**record {
                    Record::Genesis(genesis) => {
                        if let Some(log) = self.groups.get_mut(&genesis.group) {
                            log.written.begun = true;
                        }
                    }
                    Record::Anchor(anchor) => {
                        if let Some(log) = self.groups.get_mut(&anchor.group) {
                            log.anchor_built(anchor);
                            self.first_group.settle(log);
                        }
                    }
                    _ => {}
                },
            }
            built = completes.unwrap_or(built);
        }
        writer.finish();
        self.queue.advance(plan.items);

        self.active.next += header.blocks;
        self.tail.quiet = kind == GroupKind::Mark && header.mark == at;
        self.tail.number = header.number;
        self.tail.chain = chain;
        std::mem::swap(&mut self.tail.echo, &mut spare.echo);
        self.tail.spare = spare;
        self.tail.echo_records = records;
        self.tail.echoable = self.tail.built;
        self.tail.built = built;
        self.idle_at = None;
        self.counters.groups += 1;
        self.counters.bytes_payload += plan.body_bytes as u64;
        let full = plan.table_bytes + plan.body_bytes >= self.options.group_bytes_max / 2;
        self.send(buffer, &header, built, !full);
    }

    fn send(
        &mut self,
        buffer: crate::disk::Buffer,
        header: &GroupHeader,
        built: Position,
        partial: bool,
    ) {
        let op = self.next_op();
        let bytes = header.blocks as u64 * BLOCK_BYTES as u64;
        let group = GroupEnd {
            place: header.end(),
            position: built,
            partial,
        };
        let (slot, block) = (self.active.slot, header.place.block);
        let now_ns = self.disk.now_ns();
        let dsync = self
            .pipeline
            .begin(op, slot, block, bytes, Some(group), now_ns);
        self.counters.bytes_written += bytes;
        let write = Op::Write {
            slot,
            block,
            buffer,
            dsync,
        };
        self.disk.submit(op, write);
        if !partial {
            // The disk works while the next one is built.
            self.disk.kick();
        }
    }
}

/// The records of a table for these items: consecutive entries of a group are one run.
fn for_each_record<'a>(items: impl Iterator<Item = &'a Queued>, mut each: impl FnMut(&Record)) {
    let mut run: Option<Record> = None;
    let mut before = None;
    for Queued { item, .. } in items {
        if !continues(before, item)
            && let Some(ended) = run.take()
        {
            each(&ended);
        }
        match item {
            Item::Entry(prev, entry) => extend(&mut run, Record::Entries, prev, entry),
            Item::Rewrite(prev, entry) => extend(&mut run, Record::Rewrite, prev, entry),
            Item::HardState(group, hard_state) => each(&Record::HardState {
                group: *group,
                hard_state: *hard_state,
            }),
            Item::Truncate(group, to) => each(&Record::Truncate {
                group: *group,
                to: *to,
            }),
            Item::Base(group, base, _) => base_records(*group, base).iter().for_each(&mut each),
            Item::Record(record, _) => each(record),
        }
        before = Some(item);
    }
    if let Some(ended) = run {
        each(&ended);
    }
}

/// Adds an entry to the run that it continues, or begins one.
fn extend(
    run: &mut Option<Record>,
    kind: fn(EntryRun) -> Record,
    prev: &LogPosition,
    entry: &Entry,
) {
    let bytes = u32::try_from(entry.frame().len()).expect("frames are bounded");
    match run {
        Some(Record::Entries(run) | Record::Rewrite(run)) => {
            run.last = entry.position();
            run.bytes += bytes;
        }
        _ => {
            *run = Some(kind(EntryRun {
                group: entry.header().group,
                prev: *prev,
                last: entry.position(),
                bytes,
            }));
        }
    }
}

/// Where the log of a group begins, and the membership there.
fn base_records(group: GroupId, base: &Base) -> [Record; 2] {
    let begins = Record::Base {
        group,
        base: base.at,
        snapshot: base.snapshot,
        tip: base.tip,
    };
    let configuration = Record::Configuration {
        group,
        at: base.at,
        membership: base.membership.clone(),
    };
    [begins, configuration]
}

fn footer_row(block: u32, run: &EntryRun, rewrite: bool) -> FooterRow {
    FooterRow {
        block,
        group: run.group,
        rewrite,
        first: run.prev.index.next(),
        last: run.last.index,
        last_term: run.last.term,
    }
}
