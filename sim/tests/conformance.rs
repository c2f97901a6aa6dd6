//! The conformance suite lets a good machine pass and calls each bad one's fault by its name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use logdrive_raft::wire::Encode;
use logdrive_raft::{GroupId, LogPosition, NodeId};
use logdrive_shard::kv::{Command, Kv, Op, Origin};
use logdrive_shard::snapshot::STATE_FILE;
use logdrive_shard::{
    Batch, Durable, Fatal, SnapshotReader, SnapshotSource, SnapshotWriter, StateMachine,
};
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
    conformance::assert_conforms(|| kv().with_equal_snapshots());
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
    /// Says that less is durable than it has said before.
    FlushesLess,
    /// Says that one entry more is durable than it was given.
    FlushesAhead,
    /// Says that it keeps nothing.
    DeniesKeeping,
    /// Hands out what it goes on changing.
    SharesState,
    /// Begins anew once it has been photographed.
    SnapshotEmpties,
    /// Leaves the first of its keys out of a snapshot.
    LeavesOut,
    /// Adds its number to each snapshot.
    SignsSnapshots,
    /// Takes a full disk for a written snapshot.
    IgnoresFullDisk,
    /// Adds a snapshot to what it has.
    InstallAdds,
    /// Forgets what it has before it looks at the snapshot.
    InstallsHalf,
    /// Takes an error for the end of the snapshot.
    IgnoresErrors,
    /// Trusts snapshots.
    PanicsOnDamage,
    /// Has a snapshot in memory alone.
    InstallIsNotKept,
    /// Keeps the state of a snapshot with the place before.
    InstallKeepsPlace,
    /// Shows the snapshot to new readers.
    InstallIsNotShown,
}

/// Counts how often it was told each payload, and keeps that on disk.
struct Tally {
    fault: Fault,
    kept: Disk,
    state: State,
    shown: Arc<Mutex<u64>>,
    shared: Arc<Mutex<State>>,
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

/// A state on its way into a snapshot.
struct Picture {
    fault: Fault,
    state: Arc<Mutex<State>>,
    signature: Option<usize>,
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

impl State {
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Fatal> {
        while let Some((len, rest)) = bytes.split_first() {
            let torn = || Fatal::new("torn");
            let (payload, rest) = rest.split_at_checked((*len).into()).ok_or_else(torn)?;
            let (count, rest) = rest.split_first_chunk().ok_or_else(torn)?;
            let count = u64::from_le_bytes(*count);
            *self.counts.entry(payload.to_vec()).or_default() += count % (1 << 32);
            bytes = rest;
        }
        Ok(())
    }
}

impl SnapshotSource for Picture {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        let mut bytes = Vec::new();
        let state = self.state.lock().unwrap();
        let left_out = usize::from(self.fault == Fault::LeavesOut);
        for (payload, count) in state.counts.iter().skip(left_out) {
            bytes.push(payload.len() as u8);
            bytes.extend(payload);
            bytes.extend(count.to_le_bytes());
        }
        if let Some(number) = self.signature {
            bytes.extend([1, number as u8, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        let wrote = out.begin_file(STATE_FILE)?.write_all(&bytes);
        match self.fault {
            Fault::IgnoresFullDisk => Ok(()),
            _ => wrote,
        }
    }
}

impl Tally {
    fn show(&mut self) {
        if self.fault == Fault::StaleReader {
            self.shown = Arc::default();
        }
        *self.shared.lock().unwrap() = self.state.clone();
        *self.shown.lock().unwrap() = self.state.digest();
    }
}

impl StateMachine for Tally {
    type Output = u64;
    type Reader = Arc<Mutex<u64>>;
    type Snapshot = Picture;

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

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        let kept = self.kept.lock().unwrap();
        let mut at = kept.now.at;
        match self.fault {
            Fault::DeniesKeeping => return Ok(None),
            Fault::FlushesAhead => at.index = at.index.next(),
            Fault::FlushesLess if at.index.0 > 9 => at = LogPosition::default(),
            _ => {}
        }
        Ok(Some(at.into()))
    }

    fn snapshot(&mut self) -> Result<Picture, Fatal> {
        let state = match self.fault {
            Fault::SharesState => Arc::clone(&self.shared),
            _ => Arc::new(Mutex::new(self.state.clone())),
        };
        if self.fault == Fault::SnapshotEmpties {
            self.state = State::default();
        }
        let signs = self.fault == Fault::SignsSnapshots;
        Ok(Picture {
            fault: self.fault,
            state,
            signature: signs.then_some(self.order),
        })
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        if self.fault == Fault::InstallsHalf {
            self.state = State::default();
            self.show();
        }
        let bytes = match self.fault {
            Fault::IgnoresErrors => {
                let mut bytes = Vec::new();
                let _ = snapshot.file(STATE_FILE)?.read_to_end(&mut bytes);
                bytes
            }
            _ => snapshot.read_all(1 << 20)?,
        };
        let mut state = match self.fault {
            Fault::InstallAdds => self.state.clone(),
            _ => State::default(),
        };
        match (self.fault, state.read(&bytes)) {
            (Fault::PanicsOnDamage, read) => read.unwrap(),
            (Fault::IgnoresErrors, _) => {}
            (_, read) => read?,
        }
        state.at = snapshot.position();
        let mut kept = self.kept.lock().unwrap();
        match self.fault {
            Fault::InstallIsNotKept => {}
            Fault::InstallKeepsPlace => {
                let at = kept.now.at;
                kept.now = state.clone();
                kept.now.at = at;
            }
            _ => (kept.now, kept.before) = (state.clone(), state.clone()),
        }
        drop(kept);
        self.state = state;
        if self.fault == Fault::InstallIsNotShown {
            self.shown = Arc::default();
        }
        self.show();
        Ok(())
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
            shared: Arc::default(),
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
    let failures = check(|| tally(fault).with_equal_snapshots());
    failures.iter().map(|failure| failure.check).collect()
}

#[test]
fn a_machine_with_storage_of_its_own_conforms() {
    assert_eq!(check(|| tally(Fault::None).with_equal_snapshots()), []);
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
        (Fault::FlushesLess, Check::Flush),
        (Fault::FlushesAhead, Check::Flush),
        (Fault::DeniesKeeping, Check::Flush),
        (Fault::SharesState, Check::Snapshot),
        (Fault::SnapshotEmpties, Check::Snapshot),
        (Fault::LeavesOut, Check::Install),
        (Fault::SignsSnapshots, Check::Snapshot),
        (Fault::IgnoresFullDisk, Check::Snapshot),
        (Fault::InstallAdds, Check::Install),
        (Fault::InstallsHalf, Check::Install),
        (Fault::IgnoresErrors, Check::Install),
        (Fault::PanicsOnDamage, Check::Install),
        (Fault::InstallIsNotKept, Check::Install),
        (Fault::InstallKeepsPlace, Check::Install),
        (Fault::InstallIsNotShown, Check::Reader),
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
    assert_eq!(names(Fault::DeniesKeeping), [Check::Flush]);
    assert_eq!(names(Fault::SharesState), [Check::Snapshot]);
    assert_eq!(names(Fault::InstallsHalf), [Check::Install]);
    assert_eq!(names(Fault::IgnoresErrors), [Check::Install]);
    let lost = check(|| tally(Fault::LosesLast)).remove(0);
    let lost = lost.to_string();
    assert!(lost.starts_with("restart: given entries up to"), "{lost}");
    assert!(lost.contains("one that never stopped holds"), "{lost}");
}

#[test]
#[should_panic = "the state machine does not conform:\n  restart: "]
fn what_does_not_conform_panics_with_a_list() {
    conformance::assert_conforms(|| tally(Fault::LosesLast));
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
                shared: Arc::default(),
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
