//! Random work, random crashes, and an oracle: what was durable is there, in order, and what was cut is not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::*;
use fastrand::Rng;
use logdrive_raft::io::{HardState, Write};
use logdrive_raft::{Boot, Chain, GroupId, Index, LogPosition, Term};
use logdrive_sim::disk::{Crash, FaultRates, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::FlushMode;
use logdrive_wal::{AppendError, OpenError, Options, Position, ReadRequest, VOTE_SPENT};

/// A group as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    path: Vec<LogPosition>,
    hard_state: HardState,
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
            changed_to: BTreeMap::new(),
        }
    }

    fn go(&mut self, crashes: usize) -> Result<(), OpenError> {
        let mut rig = self.open()?;
        for _ in 0..crashes {
            self.work(&mut rig);
            let durable = self.oracle.durable(rig.wal.durable());
            let status = rig.wal.status();
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
                Err(OpenError::Disk { .. } | OpenError::Poisoned { .. }) if fails => {
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
            groups.insert(group, Model::default());
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
                let path = &mut groups.get_mut(&group).unwrap().path;
                path.truncate(usize::try_from(entry.index().0 - 1).unwrap());
                path.push(entry.position());
            });
        }
        self.oracle.accepted(position);
    }

    fn conflict(&mut self, rig: &mut Rig) {
        let Some(group) = self.any_group() else {
            return;
        };
        let path = self.oracle.now()[&group].path.clone();
        let keep = self.rng.usize(0..=path.len());
        let to = match keep {
            0 => genesis(group).origin(),
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

    /// What came back is the state after some step that is not before the durable one.
    fn check(&mut self, rig: &mut Rig, durable: usize) {
        let recovered: BTreeMap<GroupId, Model> = rig
            .recovery
            .groups
            .iter()
            .map(|(group, recovered)| {
                let restored = &recovered.restored;
                assert!(!restored.never_votes);
                let entries = restored.entries.iter().zip(1..);
                let path = entries.map(|(entry, index)| LogPosition {
                    index: Index(index),
                    term: entry.term,
                    chain: entry.chain,
                });
                let model = Model {
                    path: path.collect(),
                    hard_state: restored.hard_state,
                };
                (*group, model)
            })
            .collect();
        let paths = |groups: &BTreeMap<GroupId, Model>| -> BTreeMap<GroupId, Vec<Chain>> {
            let chains = |model: &Model| model.path.iter().map(|at| at.chain).collect();
            groups
                .iter()
                .map(|(group, model)| (*group, chains(model)))
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
            .unwrap_or(Term(0));
        let spent = found.hard_state.vote == Some(VOTE_SPENT) && found.hard_state.term >= highest;
        let known = spent
            || cast
                .into_iter()
                .any(|model| model.hard_state == found.hard_state);
        known && key(&found.hard_state) >= key(&at.hard_state) && found.hard_state.term >= highest
    }

    fn check_contents(&self, rig: &mut Rig, group: GroupId, chains: &[Chain]) {
        let mut read = 0;
        while read < chains.len() {
            let request = ReadRequest {
                id: 3,
                group,
                from: Index(read as u64 + 1),
                through: Index(chains.len() as u64),
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
                assert_eq!(entry.header().chain, chains[read]);
                read += 1;
            }
        }
    }
}

/// As many as are asked for: `SEEDS=20000 cargo test -p logdrive-wal --test crash`.
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
