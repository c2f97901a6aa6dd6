//! The lives of one directory: random work, random ends, and what each opening finds.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use logdrive_raft::entry::EntryBuilder;
use logdrive_raft::io::{HardState, Write};
use logdrive_raft::{
    Boot, ClusterId, Genesis, GroupId, Incarnation, Index, LogPosition, Member, Micros, NodeId,
    Replica, Term,
};
use logdrive_sim::dice::{Dice, Site};
use logdrive_sim::disk::{Crash, Fault, FaultRates, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{Disk, FlushMode};
use logdrive_wal::verify::verify_disk;
use logdrive_wal::{
    AppendError, FindingVerdict, FreshIds, Identity, OpenError, Options, Position, Recovery,
    Verdict, Wal,
};

use crate::damage;
use crate::model::{self, Model};
use logdrive_sim::mortal::{Killed, Mortal};

/// What happened, of many directories.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub lives: u64,
    pub opened: u64,
    pub killed_in_opening: u64,
    pub failed_openings: u64,
    pub poisoned: u64,
    pub torn: u64,
    pub blocks_torn: u64,
    /// Bytes that were changed, and what became of them.
    pub damaged: u64,
    pub rot: u64,
    pub suspect: u64,
    /// Opened with entries missing that are feared for.
    pub holed: u64,
    /// Opened as if nothing were, and something bad was told of.
    pub mended: u64,
}

impl Counts {
    pub fn add(&mut self, other: Self) {
        self.lives += other.lives;
        self.opened += other.opened;
        self.killed_in_opening += other.killed_in_opening;
        self.failed_openings += other.failed_openings;
        self.poisoned += other.poisoned;
        self.torn += other.torn;
        self.blocks_torn += other.blocks_torn;
        self.damaged += other.damaged;
        self.rot += other.rot;
        self.suspect += other.suspect;
        self.holed += other.holed;
        self.mended += other.mended;
    }
}

/// What a disk decides by.
pub fn dice(seed: u64) -> Dice {
    Dice::drawn(Site::Disk(NodeId(1)), seed)
}

pub fn replica(id: u64) -> Replica {
    Replica {
        id: NodeId(id),
        incarnation: Incarnation(u128::from(id)),
    }
}

pub fn genesis(group: GroupId) -> Genesis {
    let member = |id| Member {
        replica: replica(id),
        address: format!("a{id}"),
    };
    Genesis {
        cluster: ClusterId(1),
        group,
        voters: vec![member(1), member(2), member(3)],
    }
}

/// A directory, what it was asked to keep, and what decides its fate.
pub struct Directory {
    rng: Rng,
    medium: SimStorage,
    disk: SimDiskOptions,
    /// Whether reads come from the medium or a page cache is drawn again for each opening: the directory was
    /// moved, or somebody else's kernel refuses `O_DIRECT`.
    mixed: bool,
    slot_bytes: u64,
    damage: bool,
    tear: Tear,
    /// Its disk fails now and then, and says so.
    fails: bool,
    models: BTreeMap<GroupId, Model>,
    boot: Boot,
    incarnation: Option<Incarnation>,
    pub counts: Counts,
}

impl Directory {
    pub fn new(seed: u64, damage: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let slow_us = if rng.bool() { 80 } else { 3000 };
        let disk = SimDiskOptions {
            write_us: (20, slow_us),
            flush_us: (50, 400),
            direct: rng.bool(),
            flush_mode: if rng.bool() {
                FlushMode::Dsync
            } else {
                FlushMode::DrainedFsync
            },
            ..SimDiskOptions::default()
        };
        let slot_bytes = match rng.u8(0..32) {
            0 => 1 << 20,
            1..10 => 256 << 10,
            10..20 => 96 << 10,
            _ => 64 << 10,
        };
        let mixed = rng.u8(0..3) == 0;
        Self {
            rng,
            medium: SimStorage::new(dice(seed)),
            disk,
            mixed,
            slot_bytes,
            damage,
            tear: Tear::Never,
            fails: false,
            models: BTreeMap::new(),
            boot: Boot(0),
            incarnation: None,
            counts: Counts::default(),
        }
    }

    /// Power cuts tear blocks.
    pub fn torn(mut self, tear: Tear) -> Self {
        self.tear = tear;
        self
    }

    /// The disk fails, in openings and at work.
    pub fn failing(mut self) -> Self {
        self.fails = true;
        // A page cache that has forgotten something does not tell who reads past it.
        self.mixed = false;
        self
    }

    /// Lives until the seed says that it is enough, or until something is wrong.
    pub fn live(&mut self) -> Result<(), String> {
        for life in 0..self.rng.u64(3..25) {
            self.counts.lives += 1;
            let lived = match self.open() {
                Ok(Some((wal, recovery))) => {
                    let checked = self.check(&recovery);
                    if checked.is_ok() {
                        self.work(wal);
                    }
                    checked
                }
                Ok(None) => Ok(()),
                // A block is torn in the middle, and nobody can say what it was.
                Err(OpenError::Suspect { .. }) if self.tear == Tear::Sectors => {
                    self.counts.suspect += 1;
                    break;
                }
                Err(error) => Err(format!("refused: {error}")),
            };
            lived.map_err(|why| {
                let (direct, mode) = (self.disk.direct, self.disk.flush_mode);
                let slots = self.slot_bytes;
                format!("life {life}, direct {direct}, {mode:?}, slots of {slots}: {why}")
            })?;
            let crash = if self.rng.bool() {
                Crash::Power
            } else {
                Crash::Process
            };
            self.medium.crash(crash, self.tear);
            if self.damage {
                self.change_bytes()
                    .map_err(|why| format!("life {life}: {why}"))?;
            }
        }
        self.counts.blocks_torn += self.medium.counts().blocks_torn;
        Ok(())
    }

    fn options(&mut self) -> Options {
        let identity = Identity {
            cluster: ClusterId(1),
            node: NodeId(1),
        };
        let fresh = FreshIds {
            incarnation: Incarnation(self.rng.u128(..)),
            log_uuid: self.rng.u128(..),
        };
        Options::new(identity, fresh).with_slots(self.slot_bytes, 400)
    }

    /// None: it was killed half way.
    fn open(&mut self) -> Result<Option<(Wal<Mortal>, Recovery)>, OpenError> {
        // What waited for an operation of the last process does not wait for one of this.
        self.medium.withdraw_faults();
        let options = self.options();
        if self.mixed {
            self.disk.direct = self.rng.bool();
        }
        let left = (self.rng.u8(0..3) > 0).then(|| self.rng.u64(0..40));
        let mut disk_options = self.disk.clone();
        let fails = self.fails && self.rng.bool();
        if fails {
            let ppm = *self.rng.choice(&[5_000, 50_000]).expect("there are two");
            disk_options.rates = FaultRates {
                write_error_ppm: ppm,
                short_write_ppm: ppm,
                flush_error_ppm: ppm,
                flush_reverts_ppm: ppm,
                read_error_ppm: ppm / 8,
                short_read_ppm: ppm / 8,
                no_space_ppm: ppm,
                ..FaultRates::default()
            };
        }
        let disk = SimDisk::new(self.medium.clone(), disk_options);
        let disk = Mortal { disk, left };
        let opened = match unless_killed(|| Wal::open(disk, options)).transpose() {
            Err(
                OpenError::Disk { .. } | OpenError::Poisoned { .. } | OpenError::NoSpace { .. },
            ) if fails => {
                self.counts.failed_openings += 1;
                return Ok(None);
            }
            opened => opened?,
        };
        match &opened {
            None => self.counts.killed_in_opening += 1,
            Some((_, recovery)) => {
                self.counts.opened += 1;
                self.counts.torn += u64::from(recovery.verdict == Verdict::Torn);
            }
        }
        Ok(opened)
    }

    fn check(&mut self, recovery: &Recovery) -> Result<(), String> {
        if recovery.boot <= self.boot {
            return Err(format!("boot {} came after {}", recovery.boot, self.boot));
        }
        self.boot = recovery.boot;
        let incarnation = *self.incarnation.get_or_insert(recovery.incarnation);
        if incarnation != recovery.incarnation {
            return Err("the incarnation changed".to_owned());
        }
        model::reopen(&mut self.models, &recovery.groups)
    }

    fn work(&mut self, mut wal: Wal<Mortal>) {
        wal.disk_mut().left = (self.rng.u8(0..5) == 0).then(|| self.rng.u64(0..200));
        let mut now = 1_000_000;
        let steps = self.rng.u64(0..120);
        wal.disk_mut().disk.heal();
        let fails_at = (self.fails && self.rng.bool()).then(|| self.rng.u64(0..=steps));
        let survived = unless_killed(|| {
            for step in 0..steps {
                if fails_at == Some(step) {
                    let faults = [
                        Fault::WriteError,
                        Fault::ShortWrite,
                        Fault::NoSpace,
                        Fault::FlushError,
                        Fault::FlushReverts,
                    ];
                    let fault = *self.rng.choice(&faults).expect("there are some");
                    wal.disk().disk.medium().inject(fault);
                }
                self.step(&mut wal);
                let most = if self.rng.u8(0..10) == 0 { 5000 } else { 150 };
                now += self.rng.u64(0..most);
                wal.disk_mut().disk.advance(now);
                wal.poll(Micros(now));
                for model in self.models.values_mut() {
                    model.acknowledge(wal.durable(), wal.echoed());
                }
                if wal.poisoned().is_some() {
                    assert!(self.fails);
                    return;
                }
                wal.submit(Micros(now));
            }
        });
        if wal.poisoned().is_some() {
            self.counts.poisoned += 1;
            return;
        }
        if survived.is_some() && self.rng.u8(0..4) == 0 {
            wal.disk_mut().left = None;
            let everything = self.models.values_mut();
            if let Err(reason) = wal.close() {
                assert!(self.fails, "{reason}");
                return;
            }
            let end = Position(u64::MAX);
            everything.for_each(|model| model.acknowledge(end, end));
        }
    }

    fn step(&mut self, wal: &mut Wal<Mortal>) {
        match self.rng.u8(0..20) {
            0..2 if self.models.len() < 4 => {
                let group = GroupId(self.models.len() as u64 + 1);
                if let Some(at) = room(wal.create_group(&genesis(group)), self.fails) {
                    self.models.insert(group, Model::created(at));
                }
            }
            2..11 => self.append(wal),
            11 => self.cut(wal),
            12..14 => self.vote(wal),
            _ => {}
        }
    }

    fn any_group(&mut self) -> Option<GroupId> {
        self.rng.choice(self.models.keys().copied())
    }

    fn append(&mut self, wal: &mut Wal<Mortal>) {
        let Some(group) = self.any_group() else {
            return;
        };
        let model = self.models.get_mut(&group).expect("it was chosen of them");
        let mut rows = model.rows().clone();
        if self.rng.u8(0..4) == 0 {
            let cut = self.rng.usize(0..=rows.len().min(6));
            rows.truncate(rows.len() - cut);
        }
        let mut prev = position(group, &rows);
        // Raft figure 8: what is written may be of an older term than what it cuts.
        let newest = model.hard_state().term.0.max(prev.term.0).max(1);
        let term = Term(self.rng.u64(prev.term.0.max(1)..=newest));
        let count = self.rng.usize(1..6);
        let mut entries = Vec::new();
        for _ in 0..count {
            let large = self.rng.u8(0..6) == 0;
            let bytes = self.rng.usize(8..if large { 11_000 } else { 300 });
            let mut payload = vec![7; bytes];
            // What is written after a cut is another entry.
            payload[..8].copy_from_slice(&self.rng.u64(..).to_le_bytes());
            let mut builder = EntryBuilder::with_room(1, bytes);
            builder.push(&payload);
            let entry = builder
                .finish()
                .seal(group, term, prev.index.next(), prev.chain);
            prev = entry.position();
            rows.push((term, prev.chain));
            entries.push(entry);
        }
        let at = wal.append(group, &[Write::Entries(entries)]);
        if let Some(at) = room(at, self.fails) {
            model.append(at, &rows, count);
        }
    }

    fn cut(&mut self, wal: &mut Wal<Mortal>) {
        let Some(group) = self.any_group() else {
            return;
        };
        let model = self.models.get_mut(&group).expect("it was chosen of them");
        let rows = model.rows();
        let keep = rows.len() - self.rng.usize(0..=rows.len().min(6));
        let to = position(group, &rows[..keep]);
        let at = wal.append(group, &[Write::Truncate(to)]);
        if let Some(at) = room(at, self.fails) {
            model.cut(at, keep);
        }
    }

    fn vote(&mut self, wal: &mut Wal<Mortal>) {
        let Some(group) = self.any_group() else {
            return;
        };
        let model = self.models.get_mut(&group).expect("it was chosen of them");
        let last = model.hard_state().term.max(model.entry_term());
        let hard_state = HardState {
            term: Term(last.0 + self.rng.u64(1..3)),
            vote: self.rng.bool().then(|| replica(self.rng.u64(1..4))),
        };
        let at = wal.append(group, &[Write::HardState(hard_state)]);
        if let Some(at) = room(at, self.fails) {
            wal.want_echo(at);
            model.vote(at, hard_state);
        }
    }

    /// Changes one byte after another, and each back again: nothing that was acknowledged may be gone in
    /// silence, and what was below the mark is rot.
    fn change_bytes(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            let places = [
                damage::durable_byte(&self.medium, self.boot, &mut self.rng),
                damage::any_byte(&self.medium, &mut self.rng),
            ];
            for (place, durable) in places.into_iter().zip([true, false]) {
                let Some((slot, offset)) = place else {
                    continue;
                };
                self.counts.damaged += 1;
                let mask = 1 << self.rng.u8(0..8);
                self.medium.flip(slot, offset, mask);
                let judged = self.judge_damage(durable);
                self.medium.flip(slot, offset, mask);
                judged.map_err(|why| format!("{} byte {offset}: {why}", slot.file_name()))?;
            }
        }
        Ok(())
    }

    fn judge_damage(&mut self, durable: bool) -> Result<(), String> {
        // Looking changes nothing, opening does.
        let medium = self.medium.copy(dice(1));
        let mut disk = SimDisk::new(medium.clone(), self.disk.clone());
        let slots = disk.slots().map_err(|error| error.to_string())?;
        let report = verify_disk(&mut disk, &slots, false);
        let verdict = report.as_ref().map(|report| report.verdict);
        let told = report.as_ref().is_ok_and(|report| {
            let mut findings = report.findings.iter();
            findings.any(|finding| finding.verdict == FindingVerdict::Mended)
        });
        if durable && !matches!(verdict, Ok(Verdict::Rot)) && !told {
            return Err(format!("it was durable, and is called {verdict:?}"));
        }
        let disk = SimDisk::new(medium, self.disk.clone());
        match Wal::open(disk, self.options()) {
            Ok((_, recovery)) if recovery.verdict > Verdict::Torn => {
                let opened_as = recovery.verdict;
                match opened_as {
                    Verdict::Rot => self.counts.holed += 1,
                    _ => self.counts.suspect += 1,
                }
                if !matches!(verdict, Ok(said) if said == opened_as) {
                    return Err(format!(
                        "it was opened as {opened_as:?}, and verify said {verdict:?}"
                    ));
                }
                let mut groups = recovery.groups.values();
                if groups.any(|group| group.restored.guard.is_some()) {
                    return Ok(());
                }
                // What nobody has to fear for is there.
                model::reopen(&mut self.models.clone(), &recovery.groups)
            }
            Ok((_, recovery)) => {
                if !matches!(verdict, Ok(Verdict::Clean | Verdict::Torn)) {
                    return Err(format!("it was opened, and verify said {verdict:?}"));
                }
                self.counts.mended += u64::from(told);
                model::reopen(&mut self.models.clone(), &recovery.groups)
            }
            Err(OpenError::Rot { .. }) => {
                self.counts.rot += 1;
                Ok(())
            }
            Err(OpenError::Suspect { .. } | OpenError::NotALog { .. }) => {
                self.counts.suspect += 1;
                Ok(())
            }
            Err(error) => Err(format!("refused for another reason: {error}")),
        }
    }
}

/// Where it was accepted. None: the pool could not grow on a disk that fails.
fn room(at: Result<Position, AppendError>, fails: bool) -> Option<Position> {
    match at {
        Err(AppendError::Full) if fails => None,
        at => Some(at.expect("there is room")),
    }
}

/// Where a log with these entries ends.
fn position(group: GroupId, rows: &[(Term, logdrive_raft::Chain)]) -> LogPosition {
    let last = rows.last().map(|(term, chain)| LogPosition {
        index: Index(rows.len() as u64),
        term: *term,
        chain: *chain,
    });
    last.unwrap_or_else(|| genesis(group).origin())
}

/// None: the process was killed meanwhile.
pub fn unless_killed<T>(what: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(what)) {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
