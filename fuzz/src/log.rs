//! A whole log whose bytes have changed: noise, forgeries whose checksums fit, and damage with a verdict.
//!
//! A changed log may be refused. If it opens, it holds a beginning of what was written, and no less than
//! what the marks that are still to be seen say was durable: that is what was acknowledged.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use logdrive_raft::io::{Guard, HardState, Write};
use logdrive_raft::limits::ENTRY_HEADER_BYTES;
use logdrive_raft::wire::{Decode, Reader};
use logdrive_raft::{
    ClusterId, Entry, EntryBuilder, Genesis, GroupId, Incarnation, Index, LogPosition, Micros,
    NodeId, Term,
};
use logdrive_wal::disk::{BLOCK_BYTES, Block, Disk, SlotId};
use logdrive_wal::format::{
    BLOCK_DATA_BYTES, GROUP_HEADER_BYTES, GroupHeader, Place, Record, SLOT_HEADER_BLOCKS,
    SlotHeader, digest_of,
};
use logdrive_wal::verify::{Report, verify_disk};
use logdrive_wal::{FreshIds, Identity, OpenError, Options, ReadRequest, Recovery, Verdict, Wal};

use crate::check::bounded;
use crate::disk::{MemoryDisk, Slots};
use crate::script::Script;
use crate::wal::{seal_group, stamp_as_header};
use crate::wire::member;

const SLOT_BLOCKS: usize = 16;

fn options() -> Options {
    let identity = Identity {
        cluster: ClusterId(0xc1),
        node: NodeId(1),
    };
    let fresh = FreshIds {
        incarnation: Incarnation(0x1ca),
        log_uuid: 0x10c,
    };
    Options::new(identity, fresh).with_slots((SLOT_BLOCKS * BLOCK_BYTES) as u64, 8)
}

/// Where every group's log ends.
type Tips = BTreeMap<GroupId, LogPosition>;

/// A log that was written as logs are, and what it held after each of its flush groups.
struct Image {
    slots: Slots,
    /// What each block held before it was last written.
    before: BTreeMap<(SlotId, usize), Block>,
    groups: Vec<FlushGroup>,
    tips: Vec<Tips>,
}

struct FlushGroup {
    slot: SlotId,
    blocks: std::ops::Range<usize>,
    place: Place,
    mark: Place,
}

/// A log and the clock that drives it.
struct Rig {
    wal: Wal<MemoryDisk>,
    now: u64,
}

impl Rig {
    fn open(disk: MemoryDisk) -> Result<(Self, Recovery), OpenError> {
        let (wal, recovery) = Wal::open(disk, options())?;
        Ok((
            Self {
                wal,
                now: 1_000_000,
            },
            recovery,
        ))
    }

    fn turn(&mut self) {
        self.now += 10;
        self.wal.poll(Micros(self.now));
        self.wal.submit(Micros(self.now));
    }

    /// Turns until everything appended is durable.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            if let Some(reason) = self.wal.poisoned() {
                panic!("the disk does not fail: {reason}");
            }
            if self.wal.is_drained() {
                return;
            }
        }
        panic!("nothing moves: {:?}", self.wal.status());
    }

    /// Turns until nothing happens any more.
    fn idle(&mut self) {
        self.settle();
        while let Some(at) = self.wal.next_deadline() {
            self.now = self.now.max(at.0);
            self.settle();
        }
    }

    fn create(&mut self, group: u64) {
        let genesis = Genesis {
            cluster: ClusterId(0xc1),
            group: GroupId(group),
            voters: (1..=3).map(member).collect(),
        };
        self.wal.create_group(&genesis).expect("there is room");
    }

    fn vote(&mut self, group: u64, term: u64) {
        let hard_state = HardState {
            term: Term(term),
            vote: Some(member(1).replica),
        };
        self.append(group, Write::HardState(hard_state));
    }

    /// Entries after `from`, or after the last one.
    fn entries(&mut self, group: u64, term: u64, from: Option<LogPosition>, sizes: &[usize]) {
        let mut prev = from.unwrap_or_else(|| self.tip(group));
        let mut entries: Vec<Entry> = Vec::new();
        for size in sizes {
            let mut builder = EntryBuilder::with_room(1, *size);
            builder.push(&vec![term as u8; *size]);
            let entry = builder.finish();
            let entry = entry.seal(GroupId(group), Term(term), prev.index.next(), prev.chain);
            prev = entry.position();
            entries.push(entry);
        }
        self.append(group, Write::Entries(entries));
    }

    fn append(&mut self, group: u64, write: Write) {
        let appended = self.wal.append(GroupId(group), &[write]);
        appended.expect("there is room");
    }

    fn tip(&self, group: u64) -> LogPosition {
        self.wal.tip(GroupId(group)).expect("it was created")
    }

    /// The process ends.
    fn end(self) -> MemoryDisk {
        let disk = self.wal.disk();
        let mut medium = MemoryDisk::new(disk.slots.clone());
        medium.before.clone_from(&disk.before);
        medium
    }
}

fn opened(disk: MemoryDisk) -> Rig {
    Rig::open(disk).expect("nothing is wrong with it").0
}

/// Of one group, over three slots, ended in order.
fn three_slots() -> MemoryDisk {
    let mut rig = opened(MemoryDisk::default());
    rig.create(1);
    rig.vote(1, 2);
    for _ in 0..16 {
        rig.entries(1, 2, None, &[1500, 3000]);
        rig.settle();
    }
    rig.idle();
    rig.end()
}

/// Of three boots, each of which replaces what the one before wrote last; ended as by a power cut.
fn three_boots() -> MemoryDisk {
    let mut disk = MemoryDisk::default();
    for boot in 1..=3 {
        let mut rig = opened(disk);
        if boot == 1 {
            rig.create(1);
        }
        rig.vote(1, boot * 2);
        rig.settle();
        rig.entries(1, boot * 2, None, &[100, 5000, 10]);
        rig.settle();
        let kept = rig.tip(1);
        rig.entries(1, boot * 2, None, &[700, 700]);
        rig.settle();
        rig.vote(1, boot * 2 + 1);
        rig.entries(1, boot * 2 + 1, Some(kept), &[900]);
        rig.settle();
        if boot == 2 {
            rig.append(1, Write::Truncate(kept));
            rig.settle();
        }
        disk = rig.end();
    }
    disk
}

/// Of three groups that share flush groups, with the last ones covered by no mark.
fn three_groups() -> MemoryDisk {
    let mut rig = opened(MemoryDisk::default());
    for group in 1..=3 {
        rig.create(group);
        rig.vote(group, 1);
    }
    rig.settle();
    for round in 0..12 {
        for group in 1..=3 {
            rig.entries(group, 1, None, &[10 * round, 2000]);
        }
        rig.settle();
    }
    rig.end()
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let disks = [three_slots(), three_boots(), three_groups()];
        disks.map(Image::of).into_iter().collect()
    })
}

impl Image {
    fn of(disk: MemoryDisk) -> Self {
        let (slots, before) = (disk.slots, disk.before);
        let mut segments: Vec<(u64, SlotId)> = Vec::new();
        for (slot, blocks) in &slots {
            if let Ok(Some(header)) = SlotHeader::from_block(&blocks[0], 0) {
                segments.push((header.segment, *slot));
            }
        }
        segments.sort_unstable();
        let (mut groups, mut tips) = (Vec::new(), vec![Tips::new()]);
        for (segment, slot) in segments {
            let blocks = &slots[&slot];
            let mut at = SLOT_HEADER_BLOCKS as usize;
            while let Some(data) = gathered(blocks, at)
                && let Ok((header, _)) = GroupHeader::parse(&data)
                && header.place.segment == segment
            {
                let end = at + header.blocks as usize;
                groups.push(FlushGroup {
                    slot,
                    blocks: at..end,
                    place: header.place,
                    mark: header.mark,
                });
                let mut now = tips.last().cloned().unwrap_or_default();
                let mut table = Reader::new(&data[GROUP_HEADER_BYTES..]);
                for _ in 0..header.records {
                    match Record::decode(&mut table).expect("it was just written") {
                        Record::Genesis(genesis) => {
                            now.insert(genesis.group, genesis.origin());
                        }
                        Record::Entries(run) => {
                            now.insert(run.group, run.last);
                        }
                        Record::Truncate { group, to } => {
                            now.insert(group, to);
                        }
                        _ => {}
                    }
                }
                tips.push(now);
                at = end;
            }
        }
        assert!(groups.len() > 8, "a log with something in it");
        Self {
            slots,
            before,
            groups,
            tips,
        }
    }

    /// How many flush groups the log must hold at least, by the marks that are to be seen in `slots`.
    fn promised(&self, slots: &Slots) -> usize {
        let whole = |slot: SlotId, at: usize| {
            let now = slots.get(&slot).and_then(|blocks| blocks.get(at));
            now.is_some_and(|block| block.0 == self.slots[&slot][at].0)
        };
        let seen = self.groups.iter().filter(|group| {
            let headed = (0..SLOT_HEADER_BLOCKS as usize).any(|copy| whole(group.slot, copy));
            headed && group.blocks.clone().all(|block| whole(group.slot, block))
        });
        let mark = seen.map(|group| group.mark).max().unwrap_or_default();
        self.groups
            .iter()
            .take_while(|group| group.place < mark)
            .count()
    }

    /// Fails unless `tips` is what the log held at some time, and no earlier than it had to.
    fn check(&self, tips: &Tips, promised: usize, verdict: Verdict) {
        let ends: Vec<usize> = (0..self.tips.len())
            .filter(|count| self.tips[*count] == *tips)
            .collect();
        assert!(
            ends.last().is_some_and(|count| *count >= promised),
            "{verdict:?}, and it holds what flush groups {ends:?} left, of {}, where {promised} are \
             marked as durable: {tips:?}",
            self.groups.len()
        );
    }
}

/// The data of the flush group at a block, as far as there may be one.
fn gathered(blocks: &[Block], at: usize) -> Option<Vec<u8>> {
    let blocks = blocks.get(at..).filter(|blocks| !blocks.is_empty())?;
    Some(
        blocks
            .iter()
            .flat_map(|block| block.0[..BLOCK_DATA_BYTES].iter().copied())
            .collect(),
    )
}

/// A slot.
fn slot(script: &mut Script<'_>, slots: &Slots) -> SlotId {
    let place = usize::from(script.byte()) % slots.len();
    *slots.keys().nth(place).expect("below the number of slots")
}

/// A slot and a block of it, if it has any.
fn block(script: &mut Script<'_>, slots: &Slots) -> Option<(SlotId, usize)> {
    let slot = slot(script, slots);
    let block = usize::from(script.byte());
    let blocks = slots[&slot].len();
    (blocks > 0).then(|| (slot, block % blocks))
}

/// Does to the bytes what disks do.
fn damage(image: &Image, slots: &mut Slots, script: &mut Script<'_>) {
    let kind = script.byte() % 9;
    let Some((slot, at)) = block(script, slots) else {
        return;
    };
    let Some((other, from)) = block(script, slots) else {
        return;
    };
    let copy = slots[&other][from];
    let blocks = slots.get_mut(&slot).expect("chosen among them");
    match kind {
        0 => {
            let byte = script.below(BLOCK_BYTES);
            blocks[at].0[byte] ^= script.byte().max(1);
        }
        1 => blocks[at] = Block::ZERO,
        // Misdirected, or read from elsewhere.
        2 => blocks[at] = copy,
        3 => {
            let here = std::mem::replace(&mut blocks[at], copy);
            slots.get_mut(&other).expect("chosen among them")[from] = here;
        }
        // Lost writes.
        4 | 5 => {
            let count = 1 + usize::from(script.byte() % 4);
            for block in at..(at + count).min(blocks.len()) {
                let old = image.before.get(&(slot, block));
                blocks[block] = old.copied().unwrap_or(Block::ZERO);
            }
        }
        // Torn at a sector.
        6 => {
            let old = image
                .before
                .get(&(slot, at))
                .copied()
                .unwrap_or(Block::ZERO);
            let cut = 512 * usize::from(script.byte() % 8);
            blocks[at].0[cut..].copy_from_slice(&old.0[cut..]);
        }
        7 => {
            let byte = script.below(BLOCK_BYTES);
            let new = script.bytes(64);
            let end = (byte + new.len()).min(BLOCK_BYTES);
            blocks[at].0[byte..end].copy_from_slice(&new[..end - byte]);
        }
        // A slot that is being made, or something that cut a file short.
        _ => blocks.truncate(at),
    }
}

fn report(slots: &Slots) -> Result<Report, OpenError> {
    let mut disk = MemoryDisk::new(slots.clone());
    let files = disk.slots()?;
    bounded(bytes_of(slots), || verify_disk(&mut disk, &files, false))
}

/// Entries and findings take more memory than a block that says so.
fn bytes_of(slots: &Slots) -> usize {
    let blocks: usize = slots.values().map(Vec::len).sum();
    4 * (blocks + 64) * BLOCK_BYTES
}

fn tips_of(report: &Report) -> Tips {
    let tips = report.groups.iter().map(|group| {
        let tip = LogPosition {
            index: group.last_index,
            term: group.last_term,
            chain: group.chain,
        };
        (group.group, tip)
    });
    tips.collect()
}

fn guards_of(report: &Report) -> BTreeMap<GroupId, Guard> {
    let guards = report.groups.iter();
    guards
        .filter_map(|group| Some((group.group, group.guard?)))
        .collect()
}

/// The first byte chooses a log; the rest says what happens to it.
pub(crate) fn damaged(data: &[u8]) {
    let mut script = Script(data);
    let images = images();
    let image = &images[usize::from(script.byte()) % images.len()];
    let mut slots = image.slots.clone();
    for _ in 0..16 {
        if script.is_over() {
            break;
        }
        damage(image, &mut slots, &mut script);
    }
    let promised = image.promised(&slots);
    let Ok(report) = report(&slots) else {
        return;
    };
    if report.verdict > Verdict::Torn {
        assert!(!report.findings.is_empty());
    }
    if report
        .findings
        .iter()
        .any(|finding| finding.verdict.refuses())
    {
        assert!(report.verdict > Verdict::Torn);
        assert!(Rig::open(MemoryDisk::new(slots)).is_err(), "{report}");
        return;
    }
    // What is told of a bad end and starts all the same is guarded, or already holds all that it may have promised.
    let guards = guards_of(&report);
    let tips = tips_of(&report);
    image.check(&tips, promised, report.verdict);
    let (mut rig, recovery) = match Rig::open(MemoryDisk::new(slots)) {
        Ok(opened) => opened,
        Err(error) => panic!("verified and then refused: {error}: {report}"),
    };
    assert_eq!(recovery.verdict, report.verdict);
    for (group, tip) in &tips {
        assert_eq!(rig.wal.tip(*group), Some(*tip), "opened as it was verified");
        // Nothing is read beyond what is missing.
        let whole = rig.wal.whole(*group).expect("the group is there");
        read_back(&mut rig, *group, whole.index);
    }
    // It goes on, and is the same the next time.
    let group = tips.keys().next().copied();
    if let Some(group) = group {
        rig.vote(group.0, 90);
        rig.entries(group.0, 90, None, &[100, 200]);
        rig.settle();
    }
    let before: Tips = rig
        .wal
        .groups()
        .map(|group| (group, rig.tip(group.0)))
        .collect();
    let disk = rig.end();
    let again = self::report(&disk.slots).expect("it was just written");
    if again.verdict > Verdict::Torn {
        // What was misdirected into a free slot shows once that is written to. It is seen, and told.
        assert!(!again.findings.is_empty());
        return;
    }
    // What has gone on in a later term than any that was lost has nothing more to fear.
    let mut open = guards;
    open.retain(|over, _| Some(*over) != group);
    assert_eq!(
        guards_of(&again),
        open,
        "nothing else ends a guard: {again}"
    );
    assert_eq!(tips_of(&again), before, "after it went on: {again}");
    let (rig, _) = Rig::open(disk).expect("it was just verified");
    for (group, tip) in &before {
        assert_eq!(rig.wal.tip(*group), Some(*tip));
    }
}

fn read_back(rig: &mut Rig, group: GroupId, last: Index) {
    let mut next = 1;
    while next <= last.0 {
        let request = ReadRequest {
            id: 1,
            group,
            from: Index(next),
            through: last,
            bytes_max: 100_000,
        };
        rig.wal.read(request).expect("all of it is durable");
        let mut done = Vec::new();
        while done.is_empty() {
            rig.turn();
            done = rig.wal.take_reads();
        }
        for read in done {
            let entries = read.result.expect("it was verified");
            assert!(!entries.is_empty());
            next += entries.len() as u64;
        }
    }
}

/// Forgeries: what a flush group or header says has changed, and every checksum over it fits again. Nobody
/// promises what such a log is; it is read, or refused.
pub(crate) fn forged(data: &[u8]) {
    let mut script = Script(data);
    let images = images();
    let image = &images[usize::from(script.byte()) % images.len()];
    let mut slots = image.slots.clone();
    for _ in 0..8 {
        if script.is_over() {
            break;
        }
        match script.byte() % 4 {
            0 => damage(image, &mut slots, &mut script),
            1 => forge_header(&mut slots, &mut script),
            _ => forge_group(image, &mut slots, &mut script),
        }
    }
    survive(&slots);
}

/// Verifies and opens, whatever comes of it.
fn survive(slots: &Slots) {
    let verified = report(slots);
    if let Ok(report) = &verified {
        let _ = report.to_string();
    }
    let Ok((mut rig, _)) = Rig::open(MemoryDisk::new(slots.clone())) else {
        return;
    };
    rig.settle();
    let _ = report(&rig.end().slots);
}

/// Changes the header of a slot, in both copies.
fn forge_header(slots: &mut Slots, script: &mut Script<'_>) {
    let slot = slot(script, slots);
    let at = script.below(152);
    let new = script.bytes(16);
    let blocks = slots.get_mut(&slot).expect("chosen among them");
    for (number, block) in (0..SLOT_HEADER_BLOCKS).zip(blocks) {
        for (byte, new) in block.0[at..152].iter_mut().zip(&new) {
            *byte = *new;
        }
        stamp_as_header(block, number);
    }
}

/// Changes the data of a flush group, and makes its digests and stamps fit.
fn forge_group(image: &Image, slots: &mut Slots, script: &mut Script<'_>) {
    let group = &image.groups[script.below(image.groups.len())];
    let blocks = slots.get_mut(&group.slot).expect("none is taken away");
    let (Ok(Some(header)), Some(mut data)) = (
        SlotHeader::from_block(&image.slots[&group.slot][0], 0),
        gathered(blocks, group.blocks.start),
    ) else {
        return;
    };
    // Most of what matters stands at the front.
    let reach = match script.byte() % 3 {
        0 => GROUP_HEADER_BYTES,
        1 => 1024,
        _ => data.len(),
    };
    let at = script.below(reach.min(data.len()));
    let new = script.bytes(64);
    for (byte, new) in data[at..].iter_mut().zip(&new) {
        *byte = *new;
    }
    seal_frames(&mut data);
    let length = |at: usize| {
        let bytes = data[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    // Where the lengths stand: after kind, features, ids, place, blocks, number and mark.
    let (table, echo) = (length(TABLE_BYTES_AT), length(TABLE_BYTES_AT + 4));
    let tail = &data[GROUP_HEADER_BYTES.min(data.len())..];
    if let Some((table, rest)) = tail.split_at_checked(table)
        && let Some((echo, _)) = rest.split_at_checked(echo)
    {
        let digest = digest_of(table, echo);
        data[DIGEST_AT..DIGEST_AT + 16].copy_from_slice(&digest.to_le_bytes());
    }
    seal_group(&mut data);
    let stamper = header.stamper();
    for number in group.blocks.clone() {
        let Some(block) = blocks.get_mut(number) else {
            return;
        };
        let from = (number - group.blocks.start) * BLOCK_DATA_BYTES;
        block.0[..BLOCK_DATA_BYTES].copy_from_slice(&data[from..][..BLOCK_DATA_BYTES]);
        let first = number == group.blocks.start;
        stamper.stamp(
            block,
            u32::try_from(number).expect("slots are small"),
            first,
        );
    }
}

const TABLE_BYTES_AT: usize = 92;
const DIGEST_AT: usize = 112;

/// Makes the checksums of every frame fit.
fn seal_frames(data: &mut [u8]) {
    let mut at = 0;
    while at + ENTRY_HEADER_BYTES <= data.len() {
        if data[at..].starts_with(b"LDen") {
            crate::wire::seal_frame(&mut data[at..]);
        }
        at += 1;
    }
}

/// The bytes of slot files, as they come: a length for each, in blocks, and what of its blocks is not zero.
pub(crate) fn noise(data: &[u8]) {
    let mut script = Script(data);
    let mut slots = Slots::new();
    let count = script.byte() % 4;
    for slot in 0..count {
        let mut blocks = vec![Block::ZERO; usize::from(script.byte() % 24)];
        for (number, block) in (0..).zip(&mut blocks) {
            let stamped = script.byte() % 4 > 0;
            for byte in script.bytes(200).iter().enumerate() {
                block.0[byte.0] = *byte.1;
            }
            if stamped && number < SLOT_HEADER_BLOCKS {
                stamp_as_header(block, number);
            }
        }
        slots.insert(SlotId(u32::from(slot)), blocks);
    }
    survive(&slots);
}

/// Nothing, and then one of each kind of damage to a block in the middle.
pub(crate) fn damaged_seeds() -> Vec<Vec<u8>> {
    let kinds =
        (0..3).flat_map(|image| (0..9).map(move |kind| vec![image, kind, 1, 5, 0, 6, 3, 3]));
    (0..3).map(|image| vec![image]).chain(kinds).collect()
}

pub(crate) fn forged_seeds() -> Vec<Vec<u8>> {
    let groups = (0..3).map(|image| vec![image, 2, 0, 4, 0, 0, 20, 4, 9, 9, 9, 9]);
    let headers = (0..3).map(|image| vec![image, 1, 0, 0, 88, 8, 7, 0, 0, 0, 0, 0, 0, 0]);
    groups.chain(headers).collect()
}

pub(crate) fn noise_seeds() -> Vec<Vec<u8>> {
    let header = crate::wire::unhex(include_str!("../../wal/tests/golden/slot-header.hex"));
    let mut seed = vec![1, 16];
    for _ in 0..SLOT_HEADER_BLOCKS {
        seed.extend([1, 152]);
        seed.extend(&header[..152]);
    }
    vec![seed, vec![0], vec![2, 3, 0]]
}
