//! Random work, random crashes, and an oracle: what was durable is there, in order, and what was cut is not.

use std::collections::BTreeMap;

use crate::common::*;
use fastrand::Rng;
use logdrive_raft::io::{HardState, Write};
use logdrive_raft::{
    Anchor, Base, Boot, Chain, GroupId, Index, LogPosition, Membership, SnapshotId, Term,
};
use logdrive_sim::disk::{Crash, FaultRates, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::FlushMode;
use logdrive_wal::{
    AppendError, OpenError, Options, Position, ReadRequest, RecoveredGroup, VOTE_SPENT,
};

/// A group as it should be.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    base: LogPosition,
    membership: Membership,
    snapshot: Option<SnapshotId>,
    anchor: Option<Anchor>,
    /// Above the base.
    path: Vec<LogPosition>,
    hard_state: HardState,
}

impl Model {
    fn new(group: GroupId) -> Self {
        Self {
            base: genesis(group).origin(),
            membership: genesis(group).membership(),
            snapshot: None,
            anchor: None,
            path: Vec::new(),
            hard_state: HardState::default(),
        }
    }

    fn of(recovered: &RecoveredGroup) -> Self {
        let restored = &recovered.restored;
        assert!(!restored.never_votes);
        let entries = restored.entries.iter().zip(restored.base.index.0 + 1..);
        let path = entries.map(|(entry, index)| LogPosition {
            index: Index(index),
            term: entry.term,
            chain: entry.chain,
        });
        Self {
            base: restored.base,
            membership: restored.membership.clone(),
            snapshot: recovered.base_snapshot,
            anchor: recovered.anchor.clone(),
            path: path.collect(),
            hard_state: restored.hard_state,
        }
    }

    /// All but term and vote.
    fn log(&self) -> Self {
        Self {
            hard_state: HardState::default(),
            ..self.clone()
        }
    }

    fn tip(&self) -> LogPosition {
        self.path.last().copied().unwrap_or(self.base)
    }

    /// How many of its entries an anchor covers. They are committed, and are never cut off.
    fn anchored(&self) -> usize {
        let anchor = self.anchor.as_ref().map_or(0, |anchor| anchor.at.index.0);
        let anchored = usize::try_from(anchor.saturating_sub(self.base.index.0)).unwrap();
        // A crash may leave the anchor of a snapshot without its base.
        anchored.min(self.path.len())
    }

    fn append(&mut self, at: LogPosition) {
        let before = at.index.0 - 1 - self.base.index.0;
        self.path.truncate(usize::try_from(before).unwrap());
        self.path.push(at);
    }

    fn begin_at(&mut self, base: &Base) {
        let covered = self
            .path
            .iter()
            .filter(|at| at.index <= base.at.index)
            .count();
        self.path.drain(..covered);
        if base.tip == base.at {
            self.path.clear();
        }
        assert_eq!(self.path.last().copied().unwrap_or(base.at), base.tip);
        self.base = base.at;
        self.membership = base.membership.clone();
        self.snapshot = base.snapshot;
    }
}

/// A membership that nobody else has.
fn membership(rng: &mut Rng) -> Membership {
    Membership {
        removed: vec![replica(rng.u64(9..))],
        ..genesis(GROUP).membership()
    }
}

/// Everything that was ever accepted, one small step after the other.
#[derive(Default)]
struct Oracle {
    /// The state after each step; the first is the state at the last opening.
    states: Vec<BTreeMap<GroupId, Model>>,
    /// How many steps each position of this boot stands for.
    steps: BTreeMap<Position, usize>,
}

impl Oracle {
    fn now(&self) -> &BTreeMap<GroupId, Model> {
        self.states.last().unwrap()
    }

    fn step(&mut self, change: impl FnOnce(&mut BTreeMap<GroupId, Model>)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.states.push(next);
    }

    fn accepted(&mut self, position: Position) {
        self.steps.insert(position, self.states.len() - 1);
    }

    /// The steps that were durable.
    fn durable(&self, position: Position) -> usize {
        self.steps
            .range(..=position)
            .next_back()
            .map_or(0, |(_, step)| *step)
    }
}

struct Run {
    seed: u64,
    rng: Rng,
    medium: SimStorage,
    disk: SimDiskOptions,
    tear: Tear,
    oracle: Oracle,
    crashes: usize,
    /// Logs are cut, and snapshots installed.
    cuts: bool,
    /// Anchors that were appended in this boot.
    anchors: BTreeMap<GroupId, Vec<(Position, Index)>>,
    /// Segments that were released.
    released: u64,
    /// How often the log was in each mode when its process ended, not having begun in it.
    changed_to: BTreeMap<&'static str, u64>,
}

fn run_options() -> Options {
    Options {
        watchdog: nervous(),
        ..options(256)
    }
}

impl Run {
    fn new(seed: u64, tear: Tear) -> Self {
        let mut rng = Rng::with_seed(seed);
        let disk = SimDiskOptions {
            direct: rng.bool(),
            flush_mode: if rng.bool() {
                FlushMode::Dsync
            } else {
                FlushMode::DrainedFsync
            },
            starved_percent: if rng.bool() { 20 } else { 0 },
            write_us: if rng.bool() { (20, 80) } else { (20, 800) },
            ..SimDiskOptions::default()
        };
        let mut oracle = Oracle::default();
        oracle.states.push(BTreeMap::new());
        Self {
            seed,
            rng,
            medium: storage(),
            disk,
            tear,
            oracle,
            crashes: 0,
            cuts: false,
            anchors: BTreeMap::new(),
            released: 0,
            changed_to: BTreeMap::new(),
        }
    }

    fn with_cuts(seed: u64, tear: Tear) -> Self {
        let cuts = true;
        Self {
            cuts,
            ..Self::new(seed, tear)
        }
    }

    fn go(&mut self, crashes: usize) -> Result<(), OpenError> {
        let mut rig = self.open()?;
        for _ in 0..crashes {
            self.work(&mut rig);
            let durable = self.oracle.durable(rig.wal.durable());
            let status = rig.wal.status();
            self.released += status.counters.segments_released;
            let changed = status.flush_mode_changes % 2 == 1;
            assert_eq!(changed, status.flush_mode != self.disk.flush_mode);
            let name = status.flush_mode.name();
            *self.changed_to.entry(name).or_default() += u64::from(changed);
            if self.rng.u8(0..8) == 0 {
                rig.settle();
                self.check_after_close(rig);
            } else {
                drop(rig);
                self.crash();
                rig = self.open()?;
                self.check(&mut rig, durable);
                continue;
            }
            rig = self.open()?;
            let all = self.oracle.states.len() - 1;
            self.check(&mut rig, all);
        }
        Ok(())
    }

    fn check_after_close(&mut self, rig: Rig) {
        rig.wal.close().unwrap();
        self.crash();
    }

    fn crash(&mut self) {
        let kind = if self.rng.bool() {
            Crash::Process
        } else {
            Crash::Power
        };
        self.medium.crash(kind, self.tear);
        self.crashes += 1;
    }

    /// Opens the log; some attempts fail half way, and some of those are followed by a crash.
    fn open(&mut self) -> Result<Rig, OpenError> {
        loop {
            let mut disk = self.disk.clone();
            let fails = self.rng.u8(0..3) == 0;
            if fails {
                disk.rates = FaultRates {
                    write_error_ppm: 150_000,
                    short_write_ppm: 50_000,
                    flush_error_ppm: 150_000,
                    ..FaultRates::default()
                };
            }
            match Rig::open_with(&self.medium, run_options(), disk, self.rng.u64(..)) {
                Ok(mut rig) => {
                    rig.wal.disk_mut().options_mut().rates = FaultRates::default();
                    return Ok(rig);
                }
                // For want of space: no slot could be made.
                Err(
                    OpenError::Disk { .. } | OpenError::Poisoned { .. } | OpenError::NoSpace { .. },
                ) if fails => {
                    if self.rng.bool() {
                        self.crash();
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn work(&mut self, rig: &mut Rig) {
        for _ in 0..self.rng.usize(1..40) {
            match self.rng.u8(0..10) {
                0 if self.oracle.now().len() < 3 => self.create(rig),
                1 => self.vote(rig),
                2 => self.conflict(rig),
                3..=7 => self.append(rig),
                8 if self.cuts => self.anchor(rig),
                9 if self.cuts && self.rng.u8(0..6) == 0 => self.install(rig),
                9 if self.cuts => self.cut(rig),
                _ => {}
            }
            for _ in 0..self.rng.usize(0..4) {
                if self.rng.bool() {
                    rig.turn();
                } else if rig
                    .wal
                    .disk()
                    .next_due()
                    .or(rig.wal.next_deadline().map(|at| at.0))
                    .is_some()
                {
                    rig.step();
                }
            }
        }
        if self.rng.u8(0..4) == 0 {
            rig.idle();
        }
    }

    fn any_group(&mut self) -> Option<GroupId> {
        let groups: Vec<GroupId> = self.oracle.now().keys().copied().collect();
        self.rng.choice(groups)
    }

    fn create(&mut self, rig: &mut Rig) {
        let group = GroupId(self.oracle.now().len() as u64 + 1);
        let Ok(position) = rig.wal.create_group(&genesis(group)) else {
            rig.turn();
            return;
        };
        self.oracle.step(|groups| {
            groups.insert(group, Model::new(group));
        });
        self.oracle.accepted(position);
    }

    fn vote(&mut self, rig: &mut Rig) {
        let Some(group) = self.any_group() else {
            return;
        };
        let term = self.oracle.now()[&group].hard_state.term.0 + 1;
        let state = vote(term, self.rng.u64(1..4));
        let Ok(position) = rig.wal.append(group, &[Write::HardState(state)]) else {
            rig.turn();
            return;
        };
        self.oracle
            .step(|groups| groups.get_mut(&group).unwrap().hard_state = state);
        self.oracle.accepted(position);
        if self.rng.bool() {
            rig.wal.want_echo(position);
        }
    }

    fn append(&mut self, rig: &mut Rig) {
        let Some(group) = self.any_group() else {
            return;
        };
        let tip = rig.wal.tip(group).unwrap();
        let term = self.oracle.now()[&group].hard_state.term.0.max(tip.term.0);
        self.entries_after(rig, group, tip, term);
    }

    fn entries_after(&mut self, rig: &mut Rig, group: GroupId, prev: LogPosition, term: u64) {
        if term == 0 {
            return;
        }
        let bytes = *self.rng.choice(&[1, 50, 900, 5000, 12_000]).unwrap();
        let mut more = Vec::new();
        let mut at = prev;
        for _ in 0..self.rng.u64(1..5) {
            // Different contents each time: what is written after a cut is another entry.
            let payload = vec![self.rng.u8(..); bytes];
            more.push(entry(
                group,
                term,
                &at,
                &[&self.rng.u64(..).to_le_bytes()[..], &payload].concat(),
            ));
            at = more.last().unwrap().position();
        }
        let appended = rig.wal.append(group, &[Write::Entries(more.clone())]);
        let Ok(position) = appended else {
            // A slot could not be made while the log was opened, and is about to be tried again.
            assert_eq!(appended, Err(AppendError::Full));
            rig.turn();
            return;
        };
        for entry in more {
            self.oracle.step(|groups| {
                groups.get_mut(&group).unwrap().append(entry.position());
            });
        }
        self.oracle.accepted(position);
    }

    fn conflict(&mut self, rig: &mut Rig) {
        let Some(group) = self.any_group() else {
            return;
        };
        let model = self.oracle.now()[&group].clone();
        let path = &model.path;
        let keep = self.rng.usize(model.anchored()..=path.len());
        let to = match keep {
            0 => model.base,
            keep => path[keep - 1],
        };
        if self.rng.bool() {
            let Ok(position) = rig.wal.append(group, &[Write::Truncate(to)]) else {
                rig.turn();
                return;
            };
            self.oracle
                .step(|groups| groups.get_mut(&group).unwrap().path.truncate(keep));
            self.oracle.accepted(position);
        } else if keep < path.len() {
            // Any term will do that is not below that of the entry before: also an older one.
            let term = self
                .rng
                .u64(to.term.0..=self.oracle.now()[&group].hard_state.term.0);
            self.entries_after(rig, group, to, term);
        }
    }

    fn anchor(&mut self, rig: &mut Rig) {
        let groups: Vec<GroupId> = self.oracle.now().keys().copied().collect();
        for group in groups {
            let model = self.oracle.now()[&group].clone();
            let covered = self.rng.usize(model.anchored()..=model.path.len());
            let at = covered
                .checked_sub(1)
                .map_or(model.base, |last| model.path[last]);
            let anchor = self.anchor_at(at);
            if let Ok(position) = rig.wal.append(group, &[Write::Anchor(anchor.clone())]) {
                let anchors = self.anchors.entry(group).or_default();
                anchors.push((position, at.index));
                self.oracle
                    .step(|groups| groups.get_mut(&group).unwrap().anchor = Some(anchor));
                self.oracle.accepted(position);
            }
        }
    }

    fn anchor_at(&mut self, at: LogPosition) -> Anchor {
        Anchor {
            at,
            membership: membership(&mut self.rng),
            sessions: vec![self.rng.u8(..); self.rng.usize(0..200)].into(),
            term_starts: vec![(Term(1), Index(1)), (at.term, at.index)],
        }
    }

    fn cut(&mut self, rig: &mut Rig) {
        let groups: Vec<GroupId> = self.oracle.now().keys().copied().collect();
        for group in groups {
            let mut anchors = self.anchors.entry(group).or_default().iter();
            let durable = rig.wal.durable();
            let newest = anchors.rfind(|(position, _)| *position <= durable);
            let Some((_, anchored)) = newest.copied() else {
                continue;
            };
            let model = self.oracle.now()[&group].clone();
            let newest = model
                .anchor
                .as_ref()
                .map_or(Index(0), |anchor| anchor.at.index);
            let anchored = anchored.min(newest).min(model.tip().index);
            if anchored < model.base.index {
                continue;
            }
            let below = anchored.0 - model.base.index.0;
            let below = below - self.rng.u64(0..=below) / 4;
            let base = Base {
                at: match usize::try_from(below).unwrap() {
                    0 => model.base,
                    below => model.path[below - 1],
                },
                membership: membership(&mut self.rng),
                snapshot: None,
                tip: model.tip(),
            };
            self.append_base(rig, group, &[Write::Base(base.clone())], None, &base);
        }
    }

    /// A snapshot takes the place of the log, or of its beginning.
    fn install(&mut self, rig: &mut Rig) {
        let Some(group) = self.any_group() else {
            return;
        };
        let model = self.oracle.now()[&group].clone();
        let covered = model.anchored();
        if model.hard_state.term == Term(0) {
            return;
        }
        let tip = model.tip();
        let (at, tip) = if self.rng.bool() && covered < model.path.len() {
            (model.path[self.rng.usize(covered..model.path.len())], tip)
        } else {
            let low = model.base.index.0 + covered as u64 + 1;
            let at = LogPosition {
                index: Index(self.rng.u64(low..low + 20)),
                term: model.hard_state.term,
                chain: Chain(self.rng.u128(..)),
            };
            (at, at)
        };
        let anchor = self.anchor_at(at);
        let base = Base {
            at,
            membership: anchor.membership.clone(),
            snapshot: Some(SnapshotId(self.rng.u128(..))),
            tip,
        };
        let writes = [Write::Anchor(anchor.clone()), Write::Base(base.clone())];
        self.append_base(rig, group, &writes, Some(anchor), &base);
    }

    fn append_base(
        &mut self,
        rig: &mut Rig,
        group: GroupId,
        writes: &[Write],
        anchor: Option<Anchor>,
        base: &Base,
    ) {
        let Ok(position) = rig.wal.append(group, writes) else {
            rig.turn();
            return;
        };
        assert_eq!(rig.wal.base(group), Some(base.at));
        assert_eq!(rig.wal.tip(group), Some(base.tip));
        if let Some(anchor) = anchor {
            let anchors = self.anchors.entry(group).or_default();
            anchors.push((position, anchor.at.index));
            self.oracle
                .step(|groups| groups.get_mut(&group).unwrap().anchor = Some(anchor));
        }
        self.oracle
            .step(|groups| groups.get_mut(&group).unwrap().begin_at(base));
        self.oracle.accepted(position);
    }

    /// What came back is the state after some step that is not before the durable one.
    fn check(&mut self, rig: &mut Rig, durable: usize) {
        let recovered: BTreeMap<GroupId, Model> = rig
            .recovery
            .groups
            .iter()
            .map(|(group, recovered)| (*group, Model::of(recovered)))
            .collect();
        let paths = |groups: &BTreeMap<GroupId, Model>| -> BTreeMap<GroupId, Model> {
            groups
                .iter()
                .map(|(group, model)| (*group, model.log()))
                .collect()
        };
        let found = paths(&recovered);
        let states = &self.oracle.states;
        let fits = |step: &usize| {
            let state = &states[*step];
            paths(state) == found
                && recovered
                    .iter()
                    .all(|(group, model)| self.vote_fits(*group, model, &state[group]))
        };
        let step = (durable..states.len()).rev().find(fits);
        if step.is_none() {
            let same: Vec<usize> = (0..states.len())
                .filter(|step| paths(&states[*step]) == found)
                .collect();
            let votes: Vec<_> = recovered.values().map(|model| model.hard_state).collect();
            panic!(
                "seed {}: of {} steps {durable} were durable; the path is that of steps {same:?} \
                 with votes {votes:?}",
                self.seed,
                states.len() - 1,
            );
        }
        for group in recovered.keys() {
            self.check_contents(rig, *group, &found[group]);
        }
        self.anchors.clear();
        for (group, model) in &recovered {
            if let Some(anchor) = &model.anchor {
                let anchors = vec![(Position(0), anchor.at.index)];
                self.anchors.insert(*group, anchors);
            }
        }
        self.oracle.states = vec![recovered];
        self.oracle.steps.clear();
    }

    /// A vote may be newer than the path: what may have been cast was cast. It was never made up.
    fn vote_fits(&self, group: GroupId, found: &Model, at: &Model) -> bool {
        let key = |state: &HardState| (state.term, state.vote.is_some());
        let cast = self
            .oracle
            .states
            .iter()
            .filter_map(|groups| groups.get(&group));
        let highest = found
            .path
            .iter()
            .map(|entry| entry.term)
            .max()
            .unwrap_or(Term(0))
            .max(found.base.term);
        let spent = found.hard_state.vote == Some(VOTE_SPENT) && found.hard_state.term >= highest;
        let known = spent
            || cast
                .into_iter()
                .any(|model| model.hard_state == found.hard_state);
        known && key(&found.hard_state) >= key(&at.hard_state) && found.hard_state.term >= highest
    }

    fn check_contents(&self, rig: &mut Rig, group: GroupId, model: &Model) {
        let (mut read, path) = (0, &model.path);
        let base = model.base.index.0;
        while read < path.len() {
            let request = ReadRequest {
                id: 3,
                group,
                from: Index(base + read as u64 + 1),
                through: model.tip().index,
                bytes_max: 200_000,
            };
            rig.wal.read(request).unwrap();
            let entries = loop {
                if let Some(done) = rig.wal.take_reads().pop() {
                    break done.result.unwrap();
                }
                rig.step();
            };
            for entry in entries {
                assert_eq!(entry.position(), path[read]);
                read += 1;
            }
        }
    }
}

/// As many as are asked for: `SEEDS=20000 cargo test -p logdrive-wal --test log crash`.
fn seeds() -> u64 {
    let asked = std::env::var("SEEDS").ok();
    asked.and_then(|seeds| seeds.parse().ok()).unwrap_or(400)
}

#[test]
fn what_was_durable_survives_and_what_was_cut_does_not_come_back() {
    let next = std::sync::atomic::AtomicU64::new(0);
    let changed_to = std::sync::Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds() {
                        break;
                    }
                    let mut run = Run::new(seed, Tear::Never);
                    if let Err(error) = run.go(12) {
                        panic!("seed {seed} after {} crashes: {error}", run.crashes);
                    }
                    let mut changed_to = changed_to.lock().unwrap();
                    for (mode, count) in run.changed_to {
                        *changed_to.entry(mode).or_insert(0) += count;
                    }
                }
            });
        }
    });
    let changed_to = changed_to.into_inner().unwrap();
    println!("crashes after a change of the flush mode, by the new one: {changed_to:?}");
    assert!(changed_to["dsync"] > 20 && changed_to["drained_fsync"] > 20);
}

#[test]
fn a_disk_that_tears_inside_blocks_loses_nothing_in_silence() {
    let mut suspect = 0;
    for seed in 0..seeds() {
        let mut run = Run::new(seed, Tear::Sectors);
        match run.go(6) {
            Ok(()) => {}
            Err(OpenError::Suspect { findings }) => {
                assert!(!findings.is_empty());
                suspect += 1;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(suspect > 0, "no seed tore a block at the end of the log");
}

/// Logs that are cut at random, and given snapshots, come back as they were, wherever the segments before went.
#[test]
fn a_log_that_is_cut_comes_back_as_it_was() {
    let mut released = 0;
    for seed in 0..seeds() {
        let mut run = Run::with_cuts(seed, Tear::Never);
        if let Err(error) = run.go(12) {
            panic!("seed {seed} after {} crashes: {error}", run.crashes);
        }
        released += run.released;
    }
    assert!(released > 4 * seeds(), "{released} segments were released");
}

/// The same on a disk that tears blocks: it may be refused, and is never another one.
#[test]
fn a_log_that_is_cut_is_not_lost_where_blocks_are_torn() {
    for tear in [Tear::Sectors, Tear::InOrder] {
        for seed in 0..seeds() / 2 {
            let mut run = Run::with_cuts(seed, tear);
            match run.go(12) {
                Ok(()) => {}
                Err(OpenError::Suspect { .. }) if tear == Tear::Sectors => {}
                Err(error) => panic!("seed {seed}, {tear:?}: {error}"),
            }
        }
    }
}

#[test]
fn every_opening_has_a_boot_of_its_own() {
    let medium = storage();
    let mut boots = Vec::new();
    for round in 0..20 {
        let mut rig = Rig::open(&medium, run_options()).unwrap();
        boots.push(rig.recovery.boot);
        if round == 0 {
            rig.wal.create_group(&genesis(GROUP)).unwrap();
            rig.settle();
        }
        if round % 3 == 0 {
            rig.append_entries(1, 2, 100);
            rig.turn();
        }
        drop(rig);
        medium.set_dice(dice(round));
        medium.crash(Crash::Power, Tear::Never);
    }
    let expected: Vec<Boot> = (1..=20).map(Boot).collect();
    assert_eq!(boots, expected);
}
