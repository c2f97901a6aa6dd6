//! Short histories of a log: some lives, each from an opening to a close or a crash.

use fastrand::Rng;
use logdrive_raft::entry::EntryBuilder;
use logdrive_raft::io::{HardState, Write};
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{
    Chain, ClusterId, Genesis, GroupId, Incarnation, Index, LogPosition, Member, Micros, NodeId,
    Replica, Term,
};
use logdrive_wal::disk::{FlushMode, SlotId};
use logdrive_wal::format::SLOT_HEADER_BLOCKS;
use logdrive_wal::{AppendError, FreshIds, Identity, Options, Position, Wal};

use super::book::{Book, Groups, groups_of};
use super::prefix::Prefix;
use super::trace::{Event, Recorder, Trace};
use super::{Acts, ImagesOptions};
use crate::dice::{Dice, Site};
use crate::disk::slot::{Spare, ZEROS};
use crate::disk::{Fault, SimDisk, SimDiskOptions, SimImage};

pub(super) const SITE: Site = Site::Disk(NodeId(1));

/// One history in so many is hasty: more lives, large entries, and each life ends in a crash with writes in flight.
const HASTY_ONE_IN: u64 = 4;

/// After one life in so many something rots that nobody needs.
const ROTS_ONE_IN: u64 = 3;

/// The most blocks of it, one after the other.
const ROTTEN_BLOCKS_MAX: u32 = 8;

/// Nothing is ever given up here, so all segments of all lives of a history have to have room.
const SLOTS_MAX: u64 = 24;

/// One life of a log.
#[derive(Debug)]
pub(super) struct Life {
    /// What it found: all of it durable, for it comes after a power cut.
    pub(super) base: SimImage,
    /// Some blocks of it rotted that nobody needs. The opening clears them.
    pub(super) is_rotten: bool,
    pub(super) disk: SimDiskOptions,
    /// The life before, with what was acknowledged at its end.
    pub(super) before: Book,
    /// This life, from the moment when the log was open.
    pub(super) book: Book,
    pub(super) events: Vec<Event>,
    /// It ended with [`Wal::close`].
    pub(super) closed: bool,
}

pub(super) fn options(mutant: Option<Mutant>) -> Options {
    let identity = Identity {
        cluster: ClusterId(1),
        node: NodeId(1),
    };
    let fresh = FreshIds {
        incarnation: Incarnation(7),
        log_uuid: 8,
    };
    Options {
        mutant,
        ..Options::new(identity, fresh).with_slots(64 << 10, SLOTS_MAX)
    }
}

fn replica(id: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(u128::from(id)),
    }
}

fn genesis(group: GroupId) -> Genesis {
    let member = |id| Member {
        replica: replica(id),
        address: String::new(),
    };
    Genesis {
        cluster: ClusterId(1),
        group,
        voters: vec![member(1), member(2), member(3)],
    }
}

/// What a life finds.
struct Found {
    image: SimImage,
    is_rotten: bool,
}

/// The lives of one history, or why there is none.
pub(super) fn generate(
    options: &ImagesOptions,
    random: &mut Rng,
    acts: &mut Acts,
) -> Result<Vec<Life>, String> {
    let mut lives = Vec::new();
    let mut base = Found {
        image: SimImage::empty(),
        is_rotten: false,
    };
    let mut before = Book::new(Default::default());
    let is_hasty = random.u64(0..HASTY_ONE_IN) == 0;
    acts.hasty += u64::from(is_hasty);
    let count = if is_hasty {
        random.u64(3..=6)
    } else {
        random.u64(1..=4)
    };
    for number in 0..count {
        let (life, next) = live(options, random, acts, base, before, is_hasty)
            .map_err(|why| format!("life {number}: {why}"))?;
        base = next;
        before = life.book.clone();
        lives.push(life);
    }
    Ok(lives)
}

fn draw_disk(random: &mut Rng, acts: &mut Acts) -> SimDiskOptions {
    let flush_mode = if random.bool() {
        acts.dsync += 1;
        FlushMode::Dsync
    } else {
        acts.drained += 1;
        FlushMode::DrainedFsync
    };
    let direct = random.bool();
    acts.direct += u64::from(direct);
    acts.buffered += u64::from(!direct);
    SimDiskOptions {
        write_us: (20, if random.bool() { 80 } else { 800 }),
        flush_us: (50, 400),
        direct,
        flush_mode,
        ..SimDiskOptions::default()
    }
}

/// One life, and what the next one finds.
fn live(
    options: &ImagesOptions,
    random: &mut Rng,
    acts: &mut Acts,
    base: Found,
    before: Book,
    is_hasty: bool,
) -> Result<(Life, Found), String> {
    let Found {
        image: base,
        is_rotten,
    } = base;
    let disk = draw_disk(random, acts);
    let medium = base.clone().onto_medium(Dice::drawn(SITE, random.u64(..)));
    let trace = Trace::default();
    let recorder = Recorder::new(
        SimDisk::new(medium, disk.clone()),
        trace.clone(),
        options.lie,
    );
    let mut wal_options = self::options(options.mutant);
    wal_options.in_flight_max.partial = random.usize(1..5);
    let opened = Wal::open(recorder, wal_options);
    let (wal, recovery) = opened.map_err(|error| format!("refused: {error}"))?;
    let found = groups_of(&recovery);
    // With a disk that lies a history may lose what it acknowledged; the images will tell.
    if options.lie.is_none() {
        before.check(before.acked(), &found)?;
    }
    trace.note(Event::Opened);
    let mut work = Work {
        wal,
        book: Book::new(found),
        random,
        acts,
        trace: trace.clone(),
        now: 1_000_000,
        is_hasty,
    };
    work.run();
    let Work {
        wal,
        mut book,
        random,
        acts,
        ..
    } = work;
    let closed = !is_hasty && wal.poisoned().is_none() && random.u8(0..4) == 0;
    if closed {
        acts.closed += 1;
        // A fault that was waiting may strike now, and then nothing more is acknowledged.
        match wal.close() {
            Ok(()) => {
                book.acknowledge(Position(u64::MAX), Position(u64::MAX));
                trace.note(Event::Acked(book.acked().clone()));
            }
            Err(_) => acts.poisoned += 1,
        }
    } else {
        acts.crashed += 1;
        drop(wal);
    }
    let events = trace.take();
    let mut end = Prefix::new(base.clone());
    events.iter().for_each(|event| end.apply(event));
    let left = match random.u8(0..3) {
        0 => 0,
        1 => u64::MAX,
        _ => random.u64(..),
    };
    let next = torn_end(&end, left, random)
        .filter(|torn| found_in(torn, &disk, options.mutant).is_some())
        .inspect(|_| acts.torn += 1)
        .unwrap_or_else(|| end.image(left));
    let rotten = rotten(&next, &disk, options.mutant, random);
    acts.rotted += u64::from(rotten.is_some());
    let next = Found {
        is_rotten: rotten.is_some(),
        image: rotten.unwrap_or(next),
    };
    let life = Life {
        base,
        is_rotten,
        disk,
        before,
        book,
        events,
        closed,
    };
    Ok((life, next))
}

/// What a power cut leaves at the end of a life that also tears a block. Half of them do, if there is one.
fn torn_end(end: &Prefix, left: u64, random: &mut Rng) -> Option<SimImage> {
    if end.pieces() == 0 || random.bool() {
        return None;
    }
    let piece = random.usize(0..end.pieces().min(64));
    // A block whose end is new and whose front is old shows itself; any other looks as if it had not landed.
    let sectors = random.u8(1..255) | if random.bool() { 0x80 } else { 0 };
    end.torn_image(left, piece, u64::from(sectors))
}

/// The same with some blocks that hold something else than they should, if the log opens with it as if nothing were:
/// they lie in a free slot, or beyond the end. Headers are left alone.
fn rotten(
    image: &SimImage,
    disk: &SimDiskOptions,
    mutant: Option<Mutant>,
    random: &mut Rng,
) -> Option<SimImage> {
    if random.u64(0..ROTS_ONE_IN) > 0 {
        return None;
    }
    let has_room = |slot: &SlotId| SLOT_HEADER_BLOCKS < image.blocks(*slot);
    let slots: Vec<SlotId> = image.slots().filter(has_room).collect();
    let slot = *random.choice(&slots)?;
    let first = random.u32(SLOT_HEADER_BLOCKS..image.blocks(slot));
    let last = random.u32(first..first + ROTTEN_BLOCKS_MAX);
    let mut rotten = image.clone();
    for block in first..=last.min(image.blocks(slot) - 1) {
        let contents = if random.bool() {
            let mut noise = ZEROS;
            random.fill(&mut noise);
            Spare::default().share(&noise)
        } else {
            // What was meant for another place.
            let other = *random.choice(&slots)?;
            let place = random.u32(SLOT_HEADER_BLOCKS..image.blocks(other));
            image.contents(other, place)
        };
        rotten.put(slot, block, contents);
    }
    let found = found_in(&rotten, disk, mutant)?;
    let is_same = found_in(image, disk, mutant).is_some_and(|healthy| healthy == found);
    is_same.then_some(rotten)
}

/// What a log opens with. None: one with a block that is torn, or rotten, may be refused, and then nothing follows.
fn found_in(image: &SimImage, disk: &SimDiskOptions, mutant: Option<Mutant>) -> Option<Groups> {
    let medium = image.clone().onto_medium(Dice::played(SITE, &[]));
    let disk = SimDisk::new(medium, disk.clone());
    let opened = Wal::open(disk, options(mutant));
    opened.ok().map(|(_, recovery)| groups_of(&recovery))
}

/// A log at work.
struct Work<'a> {
    wal: Wal<Recorder>,
    book: Book,
    random: &'a mut Rng,
    acts: &'a mut Acts,
    trace: Trace,
    now: u64,
    is_hasty: bool,
}

impl Work<'_> {
    fn run(&mut self) {
        let segments = self.wal.status().segments;
        // Lives that fill segments and lives that look at the small things.
        let large_percent = if self.is_hasty {
            60
        } else {
            *self.random.choice(&[0, 10, 60]).unwrap_or(&0)
        };
        // What a short life wrote goes unused, and its slot is taken again.
        let acts = match self.random.u8(0..3) {
            0 => self.random.u64(0..4),
            _ => self.random.u64(4..28),
        };
        let fails_at = (self.random.u8(0..4) == 0).then(|| self.random.u64(0..acts.max(1)));
        for number in 0..acts {
            if fails_at == Some(number) {
                let faults = [
                    Fault::WriteError,
                    Fault::ShortWrite,
                    Fault::FlushError,
                    Fault::FlushReverts,
                ];
                let fault = *self.random.choice(&faults).unwrap_or(&Fault::WriteError);
                self.wal.disk_mut().disk.medium().inject(fault);
            }
            self.act(large_percent);
            for _ in 0..self.random.u64(1..4) {
                self.turn();
            }
            if self.wal.poisoned().is_some() {
                self.acts.poisoned += 1;
                return;
            }
            let rolls = self.wal.status().segments - segments;
            // Many crash as soon as there is a new segment, of which nothing counts yet.
            if rolls > 0 && self.random.bool() {
                self.acts.rolls += rolls as u64;
                return;
            }
            if rolls > 1 {
                break;
            }
        }
        if !self.is_hasty && self.random.bool() {
            // Idle until everything is durable and says so.
            for _ in 0..40 {
                self.turn();
            }
        }
        self.acts.rolls += (self.wal.status().segments - segments) as u64;
    }

    fn turn(&mut self) {
        let most = if self.random.u8(0..10) == 0 {
            2500
        } else {
            150
        };
        self.now += self.random.u64(0..most);
        self.wal.disk_mut().disk.advance(self.now);
        self.wal.poll(Micros(self.now));
        if self.book.acknowledge(self.wal.durable(), self.wal.echoed()) {
            self.trace.note(Event::Acked(self.book.acked().clone()));
        }
        self.wal.submit(Micros(self.now));
    }

    fn act(&mut self, large_percent: u8) {
        let group = self.random.choice(self.book.now().keys().copied());
        let Some(group) = group.filter(|_| self.book.now().len() == 3 || self.random.u8(0..8) > 0)
        else {
            self.create();
            return;
        };
        match self.random.u8(0..10) {
            0 => self.cut(group),
            1..=2 => self.vote(group),
            _ => self.append(group, large_percent),
        }
    }

    fn create(&mut self) {
        let group = GroupId(self.book.now().len() as u64 + 1);
        if let Ok(at) = self.wal.create_group(&genesis(group)) {
            self.book.step(at, |groups| {
                groups.insert(group, Default::default());
            });
        }
    }

    fn append(&mut self, group: GroupId, large_percent: u8) {
        let state = &self.book.now()[&group];
        let (mut rows, hard_state) = (state.rows.clone(), state.hard_state);
        let newest_row = rows.last().map_or(Term(0), |row| row.0);
        let mut keep = rows.len();
        if self.random.u8(0..4) == 0 {
            keep -= self.random.usize(0..=rows.len().min(4));
        }
        let cuts = keep < rows.len();
        rows.truncate(keep);
        let mut prev = position(group, &rows);
        // Raft figure 8: what is written may be of an older term than what it cuts.
        let newest = hard_state.term.max(newest_row).0.max(1);
        let term = Term(self.random.u64(prev.term.0.max(1)..=newest));
        let count = self.random.usize(1..4);
        let mut entries = Vec::new();
        for _ in 0..count {
            let large = self.random.u8(0..100) < large_percent;
            let bytes = self.random.usize(8..if large { 11_000 } else { 300 });
            let mut payload = vec![7; bytes];
            // What is written after a cut is another entry.
            payload[..8].copy_from_slice(&self.random.u64(..).to_le_bytes());
            let mut builder = EntryBuilder::with_room(1, bytes);
            builder.push(&payload);
            let entry = builder
                .finish()
                .seal(group, term, prev.index.next(), prev.chain);
            prev = entry.position();
            rows.push((term, prev.chain));
            entries.push(entry);
        }
        let Some(at) = self.write(group, &[Write::Entries(entries)]) else {
            return;
        };
        self.acts.appends += 1;
        self.acts.conflicts += u64::from(cuts);
        self.acts.older_term_conflicts += u64::from(cuts && term < newest_row);
        for last in keep + 1..=keep + count {
            let rows = rows[..last].to_vec();
            self.book.step(at, |groups| {
                groups.entry(group).or_default().rows = rows;
            });
        }
    }

    fn cut(&mut self, group: GroupId) {
        let rows = &self.book.now()[&group].rows;
        let keep = rows.len() - self.random.usize(0..=rows.len().min(4));
        let to = position(group, &rows[..keep]);
        let Some(at) = self.write(group, &[Write::Truncate(to)]) else {
            return;
        };
        self.acts.truncations += 1;
        self.book.step(at, |groups| {
            groups.entry(group).or_default().rows.truncate(keep);
        });
    }

    fn vote(&mut self, group: GroupId) {
        let state = &self.book.now()[&group];
        let terms = state.rows.iter().map(|row| row.0);
        let last = terms.max().unwrap_or_default().max(state.hard_state.term);
        let hard_state = HardState {
            term: Term(last.0 + self.random.u64(1..3)),
            vote: self.random.bool().then(|| replica(self.random.u64(1..4))),
        };
        let Some(at) = self.write(group, &[Write::HardState(hard_state)]) else {
            return;
        };
        self.acts.votes += 1;
        self.wal.want_echo(at);
        self.book.vote(at, group, hard_state);
    }

    /// None: the log has no room, which it may say.
    fn write(&mut self, group: GroupId, writes: &[Write]) -> Option<Position> {
        match self.wal.append(group, writes) {
            Ok(at) => Some(at),
            Err(AppendError::Full | AppendError::Poisoned) => None,
            Err(error) => panic!("nothing fails here: {error}"),
        }
    }
}

/// Where a log with these entries ends.
fn position(group: GroupId, rows: &[(Term, Chain)]) -> LogPosition {
    let last = rows.last().map(|(term, chain)| LogPosition {
        index: Index(rows.len() as u64),
        term: *term,
        chain: *chain,
    });
    last.unwrap_or_else(|| genesis(group).origin())
}
