//! The conformance suite lets a good machine pass and calls each bad one's fault by its name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use logdrive_raft::wire::Encode;
use logdrive_raft::{GroupId, LogPosition, NodeId};
use logdrive_shard::kv::{Command, Kv, Op, Origin};
use logdrive_shard::{Batch, Durable, Fatal, StateMachine};
use logdrive_sim::conformance::{self, Check, check};
use logdrive_sim::{MachineModel, run_seeds};

fn kv() -> MachineModel<Kv> {
    MachineModel::new(
        |_, _| Kv::default(),
        |request, random| {
            let key = format!("key-{}", random.u8(0..8));
            let value = vec![random.u8(..); request.bytes];
            let ops = [
                Op::Put(&value),
                Op::Get,
                Op::Append(b"more"),
                Op::Delete,
                Op::CompareAndSwap {
                    expected: None,
                    new: &value,
                },
            ];
            let command = Command {
                origin: Some(Origin {
                    client: request.client,
                    sequence: request.id,
                }),
                key: key.as_bytes(),
                op: ops[random.usize(0..ops.len())],
            };
            command.to_bytes()
        },
        |reader| reader.summary().digest ^ reader.summary().applied.0,
    )
}

#[test]
fn the_key_value_machine_conforms_and_runs() {
    conformance::assert_conforms(kv);
    run_seeds(1..=2, kv).unwrap();
}

/// What is wrong with a [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Counts how often it was opened among what it holds.
    CountsOpenings,
    /// Gives no answer to an empty payload.
    SkipsEmpty,
    /// Answers with the first of its keys in an order that each machine draws for itself, as hash maps do.
    HashOrder,
    /// Answers with how many entries all machines of the process have applied.
    SharedClock,
    /// Says that it has the last entry, and has lost it.
    LosesLast,
    /// Says that it has one entry less than it has.
    AppliesTwice,
    /// Says that it has one entry more than it was given.
    Ahead,
    /// Forgets the chain of what it has applied.
    WrongChain,
    /// Forgets everything at every third opening.
    GoesBack,
    /// Takes every payload for a text.
    PanicsOnBytes,
    /// Takes what is no text for the end.
    FatalOnBytes,
    /// Shows readers what was there when they came.
    StaleReader,
    /// Counts on indices without gaps.
    WantsEveryIndex,
}

/// Counts how often it was told each payload, and keeps that on disk.
struct Tally {
    fault: Fault,
    kept: Disk,
    state: State,
    shown: Arc<Mutex<u64>>,
    clock: Arc<AtomicU64>,
    order: usize,
}

type Disk = Arc<Mutex<Kept>>;

#[derive(Clone, Debug, Default)]
struct State {
    at: LogPosition,
    counts: BTreeMap<Vec<u8>, u64>,
    openings: u64,
}

#[derive(Debug, Default)]
struct Kept {
    now: State,
    before: State,
    openings: u64,
}

impl State {
    fn digest(&self) -> u64 {
        let mut digest = self.openings;
        for (payload, count) in &self.counts {
            for byte in payload.iter().copied().chain(count.to_le_bytes()) {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        digest
    }
}

impl Tally {
    fn show(&mut self) {
        if self.fault == Fault::StaleReader {
            self.shown = Arc::default();
        }
        *self.shown.lock().unwrap() = self.state.digest();
    }
}

impl StateMachine for Tally {
    type Output = u64;
    type Reader = Arc<Mutex<u64>>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        let mut kept = self.kept.lock().unwrap();
        kept.openings += 1;
        self.state = kept.now.clone();
        let mut at = self.state.at;
        match self.fault {
            Fault::CountsOpenings => self.state.openings = kept.openings,
            Fault::LosesLast => {
                self.state = kept.before.clone();
                self.state.at = at;
            }
            Fault::AppliesTwice => at = kept.before.at,
            Fault::Ahead if at.index.0 > 0 => at.index = at.index.next(),
            Fault::WrongChain => at.chain.0 ^= 1,
            Fault::GoesBack if kept.openings.is_multiple_of(3) => {
                self.state = State::default();
                at = LogPosition::default();
            }
            _ => {}
        }
        drop(kept);
        self.show();
        Ok(at.into())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<u64>) -> Result<(), Fatal> {
        if self.fault == Fault::WantsEveryIndex {
            assert_eq!(batch.index(), self.state.at.index.next());
        }
        let before = self.state.clone();
        self.state.at = batch.position();
        for (_, payload) in batch.proposals() {
            match self.fault {
                Fault::SkipsEmpty if payload.is_empty() => continue,
                Fault::PanicsOnBytes => drop(std::str::from_utf8(payload).unwrap().len()),
                Fault::FatalOnBytes if std::str::from_utf8(payload).is_err() => {
                    return Err(Fatal::new("not a text"));
                }
                _ => {}
            }
            let count = self.state.counts.entry(payload.to_vec()).or_default();
            *count += 1;
            outputs.push(match self.fault {
                Fault::HashOrder => {
                    let place = self.order % self.state.counts.len();
                    let first = self.state.counts.values().nth(place);
                    first.copied().unwrap_or_default()
                }
                Fault::SharedClock => self.clock.fetch_add(1, Ordering::Relaxed),
                _ => *count,
            });
        }
        let mut kept = self.kept.lock().unwrap();
        (kept.now, kept.before) = (self.state.clone(), before);
        drop(kept);
        self.show();
        Ok(())
    }

    fn reader(&self) -> Arc<Mutex<u64>> {
        Arc::clone(&self.shown)
    }
}

fn tally(fault: Fault) -> MachineModel<Tally> {
    let clock = Arc::new(AtomicU64::new(0));
    let mut machines = 0..;
    let mut disks: BTreeMap<(NodeId, GroupId), Disk> = BTreeMap::new();
    MachineModel::new(
        move |node, group| Tally {
            fault,
            kept: Arc::clone(disks.entry((node, group)).or_default()),
            state: State::default(),
            shown: Arc::default(),
            clock: Arc::clone(&clock),
            order: machines.next().unwrap(),
        },
        |request, random| match request.bytes {
            0 => String::new(),
            _ => format!("payload {}", random.u8(0..16)),
        },
        |shown| *shown.lock().unwrap(),
    )
}

fn names(fault: Fault) -> Vec<Check> {
    let failures = check(|| tally(fault));
    failures.iter().map(|failure| failure.check).collect()
}

#[test]
fn a_machine_with_storage_of_its_own_conforms() {
    assert_eq!(check(|| tally(Fault::None)), []);
}

#[test]
fn each_fault_has_its_name() {
    for (fault, check) in [
        (Fault::CountsOpenings, Check::Restart),
        (Fault::SkipsEmpty, Check::Apply),
        (Fault::HashOrder, Check::Determinism),
        (Fault::SharedClock, Check::Determinism),
        (Fault::LosesLast, Check::Restart),
        (Fault::AppliesTwice, Check::Restart),
        (Fault::Ahead, Check::Open),
        (Fault::WrongChain, Check::Open),
        (Fault::GoesBack, Check::Open),
        (Fault::PanicsOnBytes, Check::Malformed),
        (Fault::FatalOnBytes, Check::Malformed),
        (Fault::StaleReader, Check::Reader),
        (Fault::WantsEveryIndex, Check::Apply),
    ] {
        let names = names(fault);
        assert!(names.contains(&check), "{fault:?}: {names:?}");
    }
}

#[test]
fn of_a_fault_only_what_it_breaks_is_told() {
    assert_eq!(names(Fault::LosesLast), [Check::Restart]);
    assert_eq!(names(Fault::PanicsOnBytes), [Check::Malformed]);
    assert_eq!(names(Fault::StaleReader), [Check::Reader]);
    let lost = check(|| tally(Fault::LosesLast)).remove(0);
    let lost = lost.to_string();
    assert!(lost.starts_with("restart: given entries up to"), "{lost}");
    assert!(lost.contains("one that never stopped holds"), "{lost}");
}

#[test]
#[should_panic = "the state machine does not conform:\n  restart: "]
fn what_does_not_conform_panics_with_a_list() {
    conformance::assert_conforms(|| tally(Fault::AppliesTwice));
}

#[test]
fn storage_that_two_models_share_is_found() {
    let disk: Disk = Arc::default();
    let failures = check(|| {
        let disk = Arc::clone(&disk);
        MachineModel::new(
            move |_, _| Tally {
                fault: Fault::None,
                kept: Arc::clone(&disk),
                state: State::default(),
                shown: Arc::default(),
                clock: Arc::default(),
                order: 0,
            },
            |_, random| format!("payload {}", random.u8(0..16)),
            |shown| *shown.lock().unwrap(),
        )
    });
    assert_eq!(failures[0].check, Check::Open);
    assert!(failures[0].text.contains("share its storage"));
}
