//! Every image that a crash may leave of short histories of a log, each of them recovered and checked.
//!
//! A history is some lives of the real log on a simulated disk. What it wrote, flushed and acknowledged is
//! written down, and then each moment of it is a power cut: every subset of what was not flushed is left, or
//! many of them where there are too many; blocks are torn; and the recovery of some images has moments of its
//! own, which are crashes too. What is complete and what is sampled is said in `sim/README.md`. What comes back
//! is compared with what was acknowledged, as the history's own book has it. Nothing that the log says of itself
//! is believed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use logdrive_raft::mutant::Mutant;

mod book;
mod damage;
mod explore;
mod history;
mod prefix;
mod trace;

/// What to enumerate.
#[derive(Clone, Debug)]
pub struct ImagesOptions {
    /// As many images of crashes; some more, for a history is not left half way.
    pub images: u64,
    /// On so many threads. What comes out does not depend on it.
    pub jobs: usize,
    /// Decides the histories.
    pub seed: u64,
    /// This history alone: how a violation is replayed.
    pub history: Option<u64>,
    /// How the disk lies, if it does. Then there have to be violations.
    pub lie: Option<Lie>,
    /// The bug that is switched on, in builds that hold some. Then there have to be violations, too.
    pub mutant: Option<Mutant>,
}

/// A lie of a disk, which no log survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// One flush of so many does nothing, and says that all is well.
    Flushes {
        /// Of so many.
        one_in: u64,
    },
    /// The flush of everything that an opening begins with does nothing: as if a log read before it flushed.
    SyncAll,
}

impl Default for ImagesOptions {
    fn default() -> Self {
        Self {
            images: 600_000,
            jobs: 1,
            seed: 0,
            history: None,
            lie: None,
            mutant: None,
        }
    }
}

/// What was enumerated.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ImagesReport {
    /// Histories, and lives in them.
    pub histories: u64,
    /// How often a log was opened, in the histories themselves.
    pub lives: u64,
    /// Images that a crash may leave, torn and nested ones included.
    pub images: u64,
    /// Of these with a block that is torn.
    pub torn: u64,
    /// Of these left by a process that died: blocks read well and are not durable.
    pub process_crashes: u64,
    /// Of these with blocks of a page cache that has forgotten, after a flush that failed, that it owes them.
    pub forgotten: u64,
    /// Of these after a crash inside a recovery.
    pub nested: u64,
    /// Of these after a crash inside the recovery of such an image.
    pub nested_twice: u64,
    /// Images after a crash inside a recovery that also tore a block.
    pub nested_torn: u64,
    /// Images after a recovery whose process died.
    pub nested_process: u64,
    /// Recoveries that were looked into: every moment of each.
    pub recoveries_entered: u64,
    /// Moments of lives at which every subset of what was not durable was left.
    pub moments_exhausted: u64,
    /// Moments of lives with too much for that: many subsets were.
    pub moments_sampled: u64,
    /// The same of recoveries.
    pub nested_moments_exhausted: u64,
    /// The same of recoveries.
    pub nested_moments_sampled: u64,
    /// Openings that failed because their disk did.
    pub failed_openings: u64,
    /// How often an image was recovered, those that were recovered twice included.
    pub recoveries: u64,
    /// Torn images that were refused as suspect.
    pub suspect: u64,
    /// Torn images whose groups came back guarded.
    pub guarded: u64,
    /// Images with a damaged block.
    pub damage: DamageCounts,
    /// What the histories did.
    pub acts: Acts,
    /// What came back wrong.
    pub violations: Vec<Violation>,
}

/// Whole images with one block damaged, and what became of them.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DamageCounts {
    /// Whole images of logs that were closed.
    pub closed: u64,
    /// Whole images of logs that were not.
    pub unclean: u64,
    /// Images with damage.
    pub images: u64,
    /// Of these refused as rot.
    pub rot: u64,
    /// Of these refused as suspect.
    pub suspect: u64,
    /// Of these opened.
    pub opened: u64,
    /// Of these opened and told of.
    pub healed: u64,
    /// Of these opened with groups that are guarded.
    pub guarded: u64,
    /// That were called rot, for something durable is bad and missed.
    pub rot_deserved: u64,
    /// Of those with something bad that was durable: opened, for nobody misses it.
    pub mended_deserved: u64,
    /// Deserved to be called rot, and the log was opened and fears for what is gone.
    pub holed_deserved: u64,
    /// That had to be refused, and were.
    pub refused_deserved: u64,
    /// One copy of a header: had to be opened as if nothing were, and were.
    pub healed_deserved: u64,
    /// That look as if they had never been written, and nothing says otherwise.
    pub undetectable: u64,
    /// Of those with a block of an earlier life, which still counts: that had to be called rot.
    pub earlier_rot_deserved: u64,
    /// Blocks that became zeros.
    pub zeroed: u64,
    /// Blocks that became ones.
    pub ones: u64,
    /// Blocks with a bit that was flipped.
    pub flipped: u64,
    /// Blocks that changed places.
    pub swapped: u64,
    /// Blocks that became what is at their place in another slot.
    pub other_slot: u64,
    /// Blocks that became what this life had written there before. A log writes no block twice in one life.
    pub older_same_life: u64,
    /// Blocks that became what an earlier life had left there.
    pub older_earlier_life: u64,
}

impl DamageCounts {
    fn add(&mut self, other: Self) {
        self.closed += other.closed;
        self.unclean += other.unclean;
        self.images += other.images;
        self.rot += other.rot;
        self.suspect += other.suspect;
        self.opened += other.opened;
        self.healed += other.healed;
        self.guarded += other.guarded;
        self.rot_deserved += other.rot_deserved;
        self.mended_deserved += other.mended_deserved;
        self.holed_deserved += other.holed_deserved;
        self.refused_deserved += other.refused_deserved;
        self.healed_deserved += other.healed_deserved;
        self.undetectable += other.undetectable;
        self.earlier_rot_deserved += other.earlier_rot_deserved;
        self.zeroed += other.zeroed;
        self.ones += other.ones;
        self.flipped += other.flipped;
        self.swapped += other.swapped;
        self.other_slot += other.other_slot;
        self.older_same_life += other.older_same_life;
        self.older_earlier_life += other.older_earlier_life;
    }
}

/// What histories did: a class that never came up proves nothing.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Acts {
    /// Appends of entries.
    pub appends: u64,
    /// Votes and terms.
    pub votes: u64,
    /// Cuts by a record.
    pub truncations: u64,
    /// Cuts by entries.
    pub conflicts: u64,
    /// Of these by entries of an older term than what they cut (Raft figure 8).
    pub older_term_conflicts: u64,
    /// Segments beyond the first of a life.
    pub rolls: u64,
    /// Logs that were poisoned by a write or flush that failed.
    pub poisoned: u64,
    /// Histories of many short lives with large entries, each of which crashed with writes in flight.
    pub hasty: u64,
    /// Lives that were closed.
    pub closed: u64,
    /// Lives that ended with a crash.
    pub crashed: u64,
    /// Of these with a power cut that tore a block, which the next life finds.
    pub torn: u64,
    /// Lives after which blocks rotted that nobody needs, which the next life finds.
    pub rotted: u64,
    /// Lives with each write durable by itself.
    pub dsync: u64,
    /// Lives with flushes.
    pub drained: u64,
    /// Lives whose reads come from the medium.
    pub direct: u64,
    /// Lives whose reads may come from a page cache.
    pub buffered: u64,
    /// Lives after which it is the other way round: the directory was moved.
    pub moved: u64,
}

/// Something that came back wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    /// In which history: [`ImagesOptions::history`] runs it alone.
    pub history: u64,
    /// Which image of it.
    pub image: String,
    /// What is wrong.
    pub why: String,
}

impl Violation {
    /// The log itself stopped at an assertion.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.why.contains("panicked")
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            history,
            image,
            why,
        } = self;
        write!(f, "history {history}, {image}: {why}")
    }
}

/// So many images are a run of some size, in which everything has to happen.
pub const FLOOR_IMAGES: u64 = 60_000;

/// Enumerates histories until there are enough images.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "histories run side by side; each stays on one thread"
)]
pub fn run(options: &ImagesOptions) -> ImagesReport {
    if let Some(history) = options.history {
        return explore::history(options, history);
    }
    let next = AtomicU64::new(0);
    let found = Mutex::new(Found::default());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let report = explore::history(options, number);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if !found.add(number, report, options.images) {
                        return;
                    }
                }
            });
        }
    });
    found
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .sum
}

/// Reports of histories, added in their order: so the sum does not depend on who was faster.
#[derive(Debug, Default)]
struct Found {
    sum: ImagesReport,
    early: std::collections::BTreeMap<u64, ImagesReport>,
    added: u64,
}

impl Found {
    /// Whether more are wanted.
    fn add(&mut self, number: u64, report: ImagesReport, images: u64) -> bool {
        self.early.insert(number, report);
        while self.sum.images < images
            && let Some(report) = self.early.remove(&self.added)
        {
            self.sum.add(report);
            self.added += 1;
        }
        self.sum.images < images
    }
}

impl ImagesReport {
    /// What never happened and has to happen in every run of some size: a class that did not come up was not
    /// checked.
    #[must_use]
    pub fn never(&self) -> Vec<&'static str> {
        let (acts, damage) = (&self.acts, &self.damage);
        let counts = [
            ("torn", self.torn),
            ("process_crashes", self.process_crashes),
            ("forgotten", self.forgotten),
            ("nested", self.nested),
            ("nested_twice", self.nested_twice),
            ("nested_torn", self.nested_torn),
            ("nested_process", self.nested_process),
            ("failed_openings", self.failed_openings),
            ("guarded", self.guarded),
            ("appends", acts.appends),
            ("votes", acts.votes),
            ("truncations", acts.truncations),
            ("conflicts", acts.conflicts),
            ("older_term_conflicts", acts.older_term_conflicts),
            ("rolls", acts.rolls),
            ("poisoned", acts.poisoned),
            ("hasty", acts.hasty),
            ("closed", acts.closed),
            ("crashed", acts.crashed),
            ("torn ends", acts.torn),
            ("rotted", acts.rotted),
            ("moved", acts.moved),
            ("dsync", acts.dsync),
            ("drained", acts.drained),
            ("direct", acts.direct),
            ("buffered", acts.buffered),
            ("closed whole", damage.closed),
            ("unclean", damage.unclean),
            ("rot_deserved", damage.rot_deserved),
            ("mended_deserved", damage.mended_deserved),
            ("holed_deserved", damage.holed_deserved),
            ("healed_deserved", damage.healed_deserved),
            ("undetectable", damage.undetectable),
            ("damaged and guarded", damage.guarded),
            ("earlier_rot_deserved", damage.earlier_rot_deserved),
            ("zeroed", damage.zeroed),
            ("ones", damage.ones),
            ("flipped", damage.flipped),
            ("swapped", damage.swapped),
            ("other_slot", damage.other_slot),
            ("older_earlier_life", damage.older_earlier_life),
        ];
        let never = counts.iter().filter(|(_, count)| *count == 0);
        never.map(|(name, _)| *name).collect()
    }

    fn add(&mut self, other: Self) {
        self.histories += other.histories;
        self.lives += other.lives;
        self.images += other.images;
        self.torn += other.torn;
        self.process_crashes += other.process_crashes;
        self.forgotten += other.forgotten;
        self.nested += other.nested;
        self.nested_twice += other.nested_twice;
        self.nested_torn += other.nested_torn;
        self.nested_process += other.nested_process;
        self.recoveries_entered += other.recoveries_entered;
        self.moments_exhausted += other.moments_exhausted;
        self.moments_sampled += other.moments_sampled;
        self.nested_moments_exhausted += other.nested_moments_exhausted;
        self.nested_moments_sampled += other.nested_moments_sampled;
        self.failed_openings += other.failed_openings;
        self.recoveries += other.recoveries;
        self.suspect += other.suspect;
        self.guarded += other.guarded;
        self.damage.add(other.damage);
        self.acts.add(other.acts);
        self.violations.extend(other.violations);
    }
}

impl Acts {
    fn add(&mut self, other: Self) {
        self.appends += other.appends;
        self.votes += other.votes;
        self.truncations += other.truncations;
        self.conflicts += other.conflicts;
        self.older_term_conflicts += other.older_term_conflicts;
        self.rolls += other.rolls;
        self.poisoned += other.poisoned;
        self.hasty += other.hasty;
        self.closed += other.closed;
        self.crashed += other.crashed;
        self.torn += other.torn;
        self.rotted += other.rotted;
        self.dsync += other.dsync;
        self.drained += other.drained;
        self.direct += other.direct;
        self.buffered += other.buffered;
        self.moved += other.moved;
    }
}
