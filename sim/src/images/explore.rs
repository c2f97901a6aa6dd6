//! Goes through the moments of a history, recovers every image of each, and compares.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;
use logdrive_raft::GroupId;
use logdrive_raft::mutant::Mutant;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};
use logdrive_wal::{OpenError, Wal};

use super::book::{Acked, Book, GroupState, Groups, groups_of};
use super::damage::{Came, Damage, Deserves, Known, Opened};
use super::history::{self, Life, SITE};
use super::prefix::{Left, Prefix, Subsets};
use super::trace::{Event, Recorder, Trace};
use super::{ImagesOptions, ImagesReport, Lie, Violation};
use crate::dice::Dice;
use crate::disk::{Crash, FaultRates, SimDisk, SimDiskOptions, SimImage, SimStorage, Tear};

/// The recovery of one image in so many is looked into, at each depth.
const NESTED_ONE_IN: [u64; 2] = [16, 200];

/// So many damaged images that came back guarded are opened again, and their openings interrupted.
const GUARDED_ONE_IN: u64 = 16;

/// One history in so many tries all subsets of more pieces.
const EXHAUSTIVE_ONE_IN: u64 = 8;

const EXHAUSTIVE: Subsets = Subsets {
    all_of: 10,
    else_many: 256,
};

const USUAL: Subsets = Subsets {
    all_of: 7,
    else_many: 48,
};

/// Of the moments of a recovery.
const NESTED: Subsets = Subsets {
    all_of: 4,
    else_many: 16,
};

/// So many pieces of a moment are torn, one at a time.
const PIECES_TORN_MAX: usize = 16;

/// The same of a moment of a recovery.
const NESTED_TORN_MAX: usize = 4;

/// One image in so many is also left by the death of a process.
const PROCESS_ONE_IN: u64 = 8;

/// One image in so many is first opened on a disk that fails.
const FAILING_ONE_IN: u64 = 16;

/// The images of one life in so many are recovered with the other kind of reads.
const MOVED_ONE_IN: u64 = 4;

/// One image in so many is recovered twice.
const TWICE_ONE_IN: u64 = 4;

/// Violations beyond so many of one history say nothing new.
const VIOLATIONS_MAX: usize = 5;

/// Everything about one history.
pub(super) fn history(options: &ImagesOptions, number: u64) -> ImagesReport {
    // Seeds and numbers are small; an odd factor spreads them over all bits.
    let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.rotate_left(40);
    let mut explorer = Explorer {
        history: number,
        random: Rng::with_seed(seed),
        report: ImagesReport::default(),
        how: Opening {
            lie: options.lie,
            mutant: options.mutant,
        },
        forgets: false,
        path: Vec::new(),
    };
    explorer.run(options);
    explorer.report
}

/// What an image has to come back with.
#[derive(Clone, Copy)]
struct Expect<'a> {
    what: Wanted<'a>,
    /// A block is torn: it may be refused as suspect.
    torn: bool,
}

#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// No less than was acknowledged, and nothing else than was written.
    Book(&'a Book, &'a Acked),
    /// The same, or what is lacking of that is feared for.
    Feared(&'a Book, &'a Acked),
    /// What a recovery has made of it that was complete.
    Same(&'a Groups),
}

impl Expect<'_> {
    fn check(&self, found: &Groups) -> Result<(), String> {
        match self.what {
            Wanted::Book(book, acked) => book.check(acked, found).map(|_| ()),
            Wanted::Feared(book, acked) => book.check_feared(acked, found).map(|_| ()),
            Wanted::Same(groups) if groups == found => Ok(()),
            Wanted::Same(groups) => Err(format!(
                "a complete recovery found {}, the next one {}",
                brief(groups),
                brief(found)
            )),
        }
    }
}

/// How everything is opened.
#[derive(Clone, Copy, Debug)]
struct Opening {
    lie: Option<Lie>,
    mutant: Option<Mutant>,
}

/// What became of an image.
enum Outcome {
    /// It was opened: what came back, how many findings were told of, and the medium afterwards.
    Opened(Groups, usize, SimStorage),
    Refused(OpenError),
    Panicked,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            How::Power => write!(f, "power cut"),
            How::Torn(piece, sectors) => {
                write!(f, "power cut with piece {piece} torn to {sectors:#04x}")
            }
            How::Process => write!(f, "death of the process"),
            How::Forgotten => write!(f, "death of the process after a failed flush"),
            How::Damaged => write!(f, "damage"),
        }
    }
}

struct Explorer {
    history: u64,
    random: Rng,
    report: ImagesReport,
    how: Opening,
    /// There is a page cache that may forget what a failed flush owed.
    forgets: bool,
    /// Which image is looked at: the moments of power cuts, one inside the recovery from the other.
    path: Vec<Cut>,
}

/// A crash.
#[derive(Clone, Copy, Debug)]
struct Cut {
    event: usize,
    kept: u64,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// The power fails.
    Power,
    /// The same, and of one piece only some sectors are new.
    Torn(usize, u64),
    /// The process dies.
    Process,
    /// The same after a flush that failed.
    Forgotten,
    /// A block goes bad after it was written.
    Damaged,
}

impl Explorer {
    fn run(&mut self, options: &ImagesOptions) {
        self.report.histories = 1;
        let acts = &mut self.report.acts;
        let random = &mut self.random;
        let generated = catch_unwind(AssertUnwindSafe(|| {
            history::generate(options, random, acts)
        }));
        let lives = match generated {
            Ok(Ok(lives)) => lives,
            Ok(Err(why)) => return self.violation("the history itself", &why),
            Err(_) => return self.violation("the history itself", "it panicked"),
        };
        let mut known = Known::default();
        for (number, life) in lives.iter().enumerate() {
            self.report.lives += 1;
            known.live(life);
            self.life(number, life, &known);
        }
    }

    fn life(&mut self, number: usize, life: &Life, known: &Known) {
        // Whoever recovers it may read otherwise than who wrote it.
        let mut disk = life.disk.clone();
        if self.random.u64(0..MOVED_ONE_IN) == 0 {
            self.report.acts.moved += 1;
            disk.direct = !disk.direct;
        }
        let forgets = !life.disk.direct && !disk.direct;
        // Where a page cache has forgotten that it owes the zeros over what is rotten, the next opening reads zeros,
        // and clears nothing. Past that nothing is rotten any more.
        self.forgets = forgets && !life.is_rotten;
        let mut prefix = Prefix::new(life.base.clone());
        let mut book = &life.before;
        let mut acked = book.acked().clone();
        for (at, event) in life.events.iter().enumerate() {
            if prefix.is_settled_by(event) {
                let what = Wanted::Book(book, &acked);
                self.moment(number, &disk, &prefix, at, what);
            }
            match event {
                Event::Opened => {
                    self.forgets = forgets;
                    book = &life.book;
                    acked = book.acked_when_opened();
                }
                Event::Acked(more) => acked = more.clone(),
                _ => {}
            }
            prefix.apply(event);
        }
        let what = Wanted::Book(book, &acked);
        self.moment(number, &disk, &prefix, life.events.len(), what);
        // With a disk that lies the trace does not show what the log was told.
        if self.how.lie.is_none() {
            self.damage(number, life, known, &prefix.image(u64::MAX), &acked);
        }
    }

    /// Every block of the whole image at the end of a life, damaged in every way.
    fn damage(
        &mut self,
        number: usize,
        life: &Life,
        known: &Known,
        image: &SimImage,
        acked: &Acked,
    ) {
        let opened_with = life.book.acked_when_opened();
        let healthy = match recover(&image.clone().into(), &life.disk, self.how.honest(), None) {
            Outcome::Opened(groups, _, _) => groups,
            Outcome::Refused(error) => {
                return self.violation(
                    &format!("life {number}, whole"),
                    &format!("refused: {error}"),
                );
            }
            Outcome::Panicked => {
                return self.violation(&format!("life {number}, whole"), "it panicked");
            }
        };
        if life.closed {
            self.report.damage.closed += 1;
        } else {
            self.report.damage.unclean += 1;
        }
        let slots: Vec<SlotId> = image.slots().collect();
        for slot in &slots {
            for block in 0..image.blocks(*slot) {
                let other = *self.random.choice(&slots).unwrap_or(slot);
                let place = self.random.u32(0..image.blocks(other).max(1));
                let mut damages = vec![
                    (Damage::Zeros, false),
                    (Damage::Ones, false),
                    (
                        Damage::Bit(self.random.u32(0..8 * BLOCK_BYTES as u32)),
                        false,
                    ),
                    // The end of a block says which it is.
                    (
                        Damage::Bit(8 * BLOCK_BYTES as u32 - 1 - self.random.u32(0..8 * 16)),
                        false,
                    ),
                    (Damage::Swap(other, place), false),
                    (Damage::OtherSlot(other), false),
                ];
                damages.extend(known.versions(*slot, block));
                for (damage, is_earlier_life) in damages {
                    let Some(damaged) = known.damaged(image, *slot, block, damage) else {
                        continue;
                    };
                    let damaged = damaged.into();
                    let outcome = recover(&damaged, &life.disk, self.how.honest(), None);
                    let result = match &outcome {
                        Outcome::Opened(groups, findings, _) => Ok(Opened {
                            findings: *findings,
                            loss: life.book.check_feared(acked, groups).map(|_| ()),
                            is_guarded: groups.values().any(|state| state.guard.is_some()),
                            invention: life.book.check(&opened_with, groups).map(|_| ()),
                            holed_invention: life
                                .book
                                .check_holed(&opened_with, groups)
                                .map(|_| ()),
                            newly_guarded: is_newly_guarded(groups, &healthy),
                            loss_before: life.before.check(life.before.acked(), groups).map(|_| ()),
                            is_same: *groups == healthy,
                            is_same_or_guarded: is_same_or_guarded(groups, &healthy),
                            is_whole_or_fears: is_whole_or_fears(groups, &healthy),
                        }),
                        Outcome::Refused(error) => Err(error),
                        Outcome::Panicked => {
                            let image = format!("life {number}, {slot:?} block {block} {damage:?}");
                            self.violation(&image, "it panicked");
                            continue;
                        }
                    };
                    let deserves = known.deserves(image, *slot, block, damage);
                    let came = Came { result };
                    let counts = &mut self.report.damage;
                    counts.count(damage, is_earlier_life);
                    let earlier = known.is_of_earlier_life(*slot, block);
                    let is_rot = matches!(deserves, Deserves::Rot { .. });
                    counts.earlier_rot_deserved += u64::from(earlier && is_rot);
                    let opened = came.result.as_ref();
                    let guarded = opened.is_ok_and(|opened| opened.is_guarded);
                    let mended = deserves == Deserves::Rot { alone: true } && opened.is_ok();
                    if let Err(why) = deserves.check(&came, &mut self.report.damage) {
                        let image = format!("life {number}, {slot:?} block {block} {damage:?}");
                        self.violation(&image, &why);
                    }
                    // Whatever interrupts its openings, what is feared for stays so, and what is not missed too.
                    let told = !matches!(deserves, Deserves::Undetectable { .. });
                    if (guarded || mended) && told && self.random.u64(0..GUARDED_ONE_IN) == 0 {
                        let what = Wanted::Feared(&life.book, acked);
                        let expect = Expect { what, torn: true };
                        self.cut(usize::MAX, u64::from(block), How::Damaged, |explorer| {
                            explorer.image(number, &life.disk, &damaged, expect);
                        });
                    }
                }
            }
        }
    }

    /// Every image of a moment of a life.
    fn moment(
        &mut self,
        life: usize,
        disk: &SimDiskOptions,
        prefix: &Prefix,
        event: usize,
        what: Wanted<'_>,
    ) {
        let expect = Expect { what, torn: false };
        let subsets = if (self.history + 1).is_multiple_of(EXHAUSTIVE_ONE_IN) {
            EXHAUSTIVE
        } else {
            USUAL
        };
        if prefix.pieces() <= subsets.all_of {
            self.report.moments_exhausted += 1;
        } else {
            self.report.moments_sampled += 1;
        }
        self.crashes(
            life,
            disk,
            prefix,
            event,
            expect,
            (subsets, PIECES_TORN_MAX),
        );
    }

    /// Every image of a moment of a recovery.
    fn moment_of_recovery(
        &mut self,
        life: usize,
        disk: &SimDiskOptions,
        prefix: &Prefix,
        event: usize,
        expect: Expect<'_>,
    ) {
        if prefix.pieces() <= NESTED.all_of {
            self.report.nested_moments_exhausted += 1;
        } else {
            self.report.nested_moments_sampled += 1;
        }
        self.crashes(life, disk, prefix, event, expect, (NESTED, NESTED_TORN_MAX));
    }

    fn crashes(
        &mut self,
        life: usize,
        disk: &SimDiskOptions,
        prefix: &Prefix,
        event: usize,
        expect: Expect<'_>,
        (subsets, torn_max): (Subsets, usize),
    ) {
        let is_nested = !self.path.is_empty();
        for kept in prefix.subsets(subsets, &mut self.random) {
            self.cut(event, kept, How::Power, |explorer| {
                explorer.image(life, disk, &prefix.image(kept).into(), expect);
            });
            // What is left is the same to the eye, and not durable.
            if self.random.u64(0..PROCESS_ONE_IN) == 0 {
                self.report.process_crashes += 1;
                self.report.nested_process += u64::from(is_nested);
                self.cut(event, kept, How::Process, |explorer| {
                    explorer.image(life, disk, &prefix.unflushed(kept, false), expect);
                });
            }
            if self.forgets && self.random.u64(0..PROCESS_ONE_IN) == 0 {
                self.report.forgotten += 1;
                self.cut(event, kept, How::Forgotten, |explorer| {
                    explorer.image(life, disk, &prefix.unflushed(kept, true), expect);
                });
            }
        }
        // One block at a time, the others there or not.
        for piece in 0..prefix.pieces().min(torn_max) {
            for kept in [u64::MAX, self.random.u64(..)] {
                let first = self.random.u32(1..8);
                let sectors = match self.random.u8(0..3) {
                    // From the front or from the back, as most disks would; and any.
                    0 => (1 << first) - 1,
                    1 => 0xff & !((1 << first) - 1),
                    _ => u64::from(self.random.u8(1..255)),
                };
                let Some(image) = prefix.torn_image(kept, piece, sectors) else {
                    continue;
                };
                self.report.torn += 1;
                self.report.nested_torn += u64::from(is_nested);
                let expect = Expect {
                    torn: true,
                    ..expect
                };
                self.cut(event, kept, How::Torn(piece, sectors), |explorer| {
                    explorer.image(life, disk, &image.into(), expect);
                });
            }
        }
    }

    fn image(&mut self, life: usize, disk: &SimDiskOptions, image: &Left, expect: Expect<'_>) {
        self.report.images += 1;
        let depth = self.path.len();
        match depth {
            1 => {}
            2 => self.report.nested += 1,
            _ => self.report.nested_twice += 1,
        }
        let deeper = NESTED_ONE_IN
            .get(depth - 1)
            .is_some_and(|one_in| self.random.u64(0..*one_in) == 0);
        let trace = deeper.then(Trace::default);
        self.report.recoveries += 1;
        let outcome = recover(image, disk, self.how, trace.as_ref());
        let (groups, left) = match outcome {
            Outcome::Opened(groups, _, left) => (groups, left),
            Outcome::Refused(OpenError::Suspect { .. }) if expect.torn => {
                self.report.suspect += 1;
                return;
            }
            Outcome::Refused(error) => return self.wrong(life, &format!("refused: {error}")),
            Outcome::Panicked => return self.wrong(life, "it panicked"),
        };
        if let Err(why) = expect.check(&groups) {
            return self.wrong(life, &why);
        }
        let is_guarded = groups.values().any(|state| state.guard.is_some());
        self.report.guarded += u64::from(expect.torn && is_guarded);
        if self.random.u64(0..FAILING_ONE_IN) == 0 {
            self.failing(life, disk, image, expect);
        }
        let same = Expect {
            what: Wanted::Same(&groups),
            torn: false,
        };
        let twice = !image.unflushed.is_empty() || self.random.u64(0..TWICE_ONE_IN) == 0;
        if twice {
            self.report.recoveries += 1;
            // What it found is durable by then, whatever else it began.
            match recover(&left.flushed_only().image().into(), disk, self.how, None) {
                Outcome::Opened(again, _, _) => {
                    if let Err(why) = same.check(&again) {
                        self.wrong(life, &why);
                    }
                }
                Outcome::Refused(error) => {
                    self.wrong(life, &format!("refused after a complete recovery: {error}"));
                }
                Outcome::Panicked => self.wrong(life, "the second recovery panicked"),
            }
        }
        let Some(trace) = trace else {
            return;
        };
        // A crash at every moment of the recovery.
        self.report.recoveries_entered += 1;
        let mut prefix = Prefix::after(image);
        for (at, event) in trace.take().iter().enumerate() {
            if prefix.is_settled_by(event) {
                self.moment_of_recovery(life, disk, &prefix, at, expect);
            }
            prefix.apply(event);
        }
    }

    /// An opening on a disk that fails, a crash, and an opening on one that does not.
    fn failing(&mut self, life: usize, disk: &SimDiskOptions, image: &Left, expect: Expect<'_>) {
        self.report.recoveries += 2;
        let medium = image.onto_medium(Dice::drawn(SITE, self.random.u64(..)));
        let mut faulty = disk.clone();
        faulty.rates = FaultRates {
            write_error_ppm: 60_000,
            short_write_ppm: 60_000,
            flush_error_ppm: 60_000,
            flush_reverts_ppm: 60_000,
            read_error_ppm: 10_000,
            short_read_ppm: 10_000,
            no_space_ppm: 60_000,
            stall_ppm: 60_000,
            ..FaultRates::default()
        };
        let opened = match open(medium.clone(), &faulty, self.how, None) {
            Outcome::Opened(groups, _, _) => Some(groups),
            Outcome::Refused(
                OpenError::Disk { .. } | OpenError::Poisoned { .. } | OpenError::NoSpace { .. },
            ) => {
                self.report.failed_openings += 1;
                None
            }
            Outcome::Refused(error) => {
                return self.wrong(life, &format!("refused by a disk that fails: {error}"));
            }
            Outcome::Panicked => return self.wrong(life, "it panicked on a disk that fails"),
        };
        let crash = if self.random.bool() {
            Crash::Power
        } else {
            Crash::Process
        };
        medium.crash(crash, Tear::Never);
        let expect = match &opened {
            None => expect,
            Some(groups) => Expect {
                what: Wanted::Same(groups),
                torn: false,
            },
        };
        let after = format!("after an opening on a disk that fails and a crash ({crash:?})");
        match open(medium, disk, self.how, None) {
            Outcome::Opened(groups, _, _) => {
                if let Err(why) = expect.check(&groups) {
                    self.wrong(life, &format!("{after}: {why}"));
                }
            }
            Outcome::Refused(OpenError::Suspect { .. }) if expect.torn => {}
            Outcome::Refused(error) => self.wrong(life, &format!("{after}, refused: {error}")),
            Outcome::Panicked => self.wrong(life, &format!("{after}, it panicked")),
        }
    }

    fn cut(&mut self, event: usize, kept: u64, how: How, look: impl FnOnce(&mut Self)) {
        self.path.push(Cut { event, kept, how });
        look(self);
        self.path.pop();
    }

    fn wrong(&mut self, life: usize, why: &str) {
        let mut image = format!("life {life}");
        for (depth, cut) in self.path.iter().enumerate() {
            let within = if depth == 0 { "" } else { " of its recovery" };
            let Cut { event, kept, how } = cut;
            image += &format!(", {how} before event {event}{within}, kept {kept:#x}");
        }
        self.violation(&image, why);
    }

    fn violation(&mut self, image: &str, why: &str) {
        if self.report.violations.len() < VIOLATIONS_MAX {
            self.report.violations.push(Violation {
                history: self.history,
                image: image.to_owned(),
                why: why.to_owned(),
            });
        }
    }
}

impl Opening {
    /// The same on a disk that does not lie.
    fn honest(self) -> Self {
        Self { lie: None, ..self }
    }
}

/// Opens an image.
fn recover(left: &Left, disk: &SimDiskOptions, how: Opening, trace: Option<&Trace>) -> Outcome {
    // Nothing is drawn: operations take the least time and end in their order.
    open(left.onto_medium(Dice::played(SITE, &[])), disk, how, trace)
}

/// Opens what is on a medium.
fn open(medium: SimStorage, disk: &SimDiskOptions, how: Opening, trace: Option<&Trace>) -> Outcome {
    let sim = SimDisk::new(medium.clone(), disk.clone());
    // A recovery that is told lies about its own flushes would only hide what it was to find.
    let lie = how.lie.filter(|lie| *lie == Lie::SyncAll);
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let options = history::options(how.mutant);
        if trace.is_none() && lie.is_none() {
            return Wal::open(sim, options).map(|(_, recovery)| recovery);
        }
        let trace = trace.cloned().unwrap_or_default();
        let recorder = Recorder::new(sim, trace, lie);
        Wal::open(recorder, options).map(|(_, recovery)| recovery)
    }));
    match opened {
        Ok(Ok(recovery)) => Outcome::Opened(groups_of(&recovery), recovery.findings.len(), medium),
        Ok(Err(error)) => Outcome::Refused(error),
        Err(_) => Outcome::Panicked,
    }
}

fn brief(groups: &Groups) -> String {
    let brief = groups.iter().map(|(group, state)| {
        format!(
            "{group}: {} entries, guard {:?}, {:?}",
            state.rows.len(),
            state.guard,
            state.hard_state
        )
    });
    brief.collect::<Vec<_>>().join("; ")
}

/// Every group is there, as far as it is whole, and fears for the rest.
fn is_whole_or_fears(groups: &Groups, healthy: &Groups) -> bool {
    let is_like = |(group, healthy): (&GroupId, &GroupState)| {
        groups.get(group).is_some_and(|state| {
            state.hard_state == healthy.hard_state && state.is_whole_or_fears(healthy)
        })
    };
    groups.len() == healthy.len() && healthy.iter().all(is_like)
}

fn is_newly_guarded(groups: &Groups, healthy: &Groups) -> bool {
    let guard_of = |group| {
        healthy
            .get(group)
            .and_then(|state: &GroupState| state.guard)
    };
    let mut groups = groups.iter();
    groups.any(|(group, state)| state.guard.is_some() && state.guard != guard_of(group))
}

fn is_same_or_guarded(groups: &Groups, healthy: &Groups) -> bool {
    let is_like = |(group, state): (&GroupId, &GroupState)| {
        let guard = healthy.get(group).and_then(|healthy| healthy.guard);
        let unguarded = GroupState {
            guard: state.guard.filter(|_| guard.is_some()),
            ..state.clone()
        };
        healthy.get(group) == Some(&unguarded)
    };
    groups.len() == healthy.len() && groups.iter().all(is_like)
}
