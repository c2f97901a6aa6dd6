//! What happens to committed entries: the user's machines, one a group, and the answers to whoever waits.
//!
//! An [`Applier`] is a value. The engine runs it on a thread of its own, the simulator in line.

use std::collections::BTreeMap;

use logdrive_raft::{Entry, EntryKind, GroupId, Index, LogPosition, Micros};

use crate::machine::{Batch, Fatal, StateMachine};
use crate::snapshot::SnapshotReader;
use crate::ticket::{Failure, Runs};
use crate::watched::Watched;

/// Committed entries of one group on their way to its machine, and who waits for their outputs.
#[derive(Debug)]
pub struct ApplyBatch<O> {
    /// The group.
    pub group: GroupId,
    /// Entries in log order, without gaps from the last batch of the group.
    pub entries: Vec<(Entry, Runs<O>)>,
    /// Bytes of all frames, for the bound of the queue to the applier.
    pub bytes: usize,
    /// When the first of them was appended, if this node did that.
    pub appended: Option<Micros>,
}

/// The machine of a group has failed. Its effects end before `index`, and nothing more is applied here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state machine of group {group} failed at entry {index}: {what}")]
pub struct Fenced {
    /// The group.
    pub group: GroupId,
    /// The entry it failed at.
    pub index: Index,
    /// What it said.
    pub what: String,
}

/// Why a machine did not take over a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotInstalled {
    /// The machine has failed.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The snapshot could not be read. The machine is as it was.
    #[error("the snapshot could not be read: {0}")]
    Unreadable(String),
}

/// Room for so many outputs is kept from batch to batch.
const OUTPUTS_KEPT: usize = 1024;

/// Machines that are applied one after the other: all of a shard, or one for itself.
#[derive(Debug)]
pub struct Applier<S: StateMachine> {
    machines: BTreeMap<GroupId, Slot<S>>,
    outputs: Vec<S::Output>,
}

struct Slot<S> {
    machine: S,
    applied: LogPosition,
    fenced: Option<Fenced>,
}

impl<S> std::fmt::Debug for Slot<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot(applied {})", self.applied)
    }
}

impl<S: StateMachine> Default for Applier<S> {
    fn default() -> Self {
        Self {
            machines: BTreeMap::new(),
            outputs: Vec::new(),
        }
    }
}

impl<S: StateMachine> Applier<S> {
    /// Opens the machine of a group and says how far it reaches.
    pub fn open(&mut self, group: GroupId, mut machine: S) -> Result<LogPosition, Fatal> {
        let durable = Fatal::catch(|| machine.open())??;
        let applied = LogPosition::from(durable);
        self.machines.insert(
            group,
            Slot {
                machine,
                applied,
                fenced: None,
            },
        );
        Ok(applied)
    }

    /// A handle for reads of a group's machine.
    ///
    /// # Panics
    ///
    /// If the group has none: that would be our error.
    pub fn reader(&self, group: GroupId) -> Result<S::Reader, Fatal> {
        let slot = &self.machines[&group];
        Fatal::catch(|| slot.machine.reader())
    }

    /// How far a group's machine is.
    #[must_use]
    pub fn applied(&self, group: GroupId) -> Option<LogPosition> {
        self.machines.get(&group).map(|slot| slot.applied)
    }

    /// Applies a batch and answers whoever waits for it. Returns how far the machine is then.
    ///
    /// # Panics
    ///
    /// If the batch is for a group without a machine or leaves a gap: that would be our error, and the
    /// machine must not see it.
    pub fn apply(&mut self, batch: ApplyBatch<S::Output>) -> Result<LogPosition, Fenced> {
        self.apply_showing(batch, |_| {})
    }

    /// As `apply`; `show` hears how far the machine is before anybody hears that it is.
    ///
    /// # Panics
    ///
    /// As `apply`.
    pub fn apply_showing(
        &mut self,
        batch: ApplyBatch<S::Output>,
        mut show: impl FnMut(LogPosition),
    ) -> Result<LogPosition, Fenced> {
        let slot = self
            .machines
            .get_mut(&batch.group)
            .expect("machines open before their groups");
        for (entry, runs) in batch.entries {
            if slot.fenced.is_some() {
                fail_all(runs, entry.index());
                continue;
            }
            // A machine with storage of its own may be ahead of what the log hands out after a restart.
            if entry.index() <= slot.applied.index {
                assert!(runs.is_empty());
                continue;
            }
            assert!(entry.index() == slot.applied.index.next());
            if let Err(fatal) = slot.apply_entry(&entry, &mut self.outputs) {
                let fenced = Fenced {
                    group: batch.group,
                    index: entry.index(),
                    what: fatal.what,
                };
                slot.fenced = Some(fenced);
                self.outputs.clear();
                fail_all(runs, entry.index());
                continue;
            }
            slot.applied = entry.position();
            show(slot.applied);
            for run in runs {
                if slot.fenced.is_some() {
                    run.fail(Failure::HaltedBeforeApply {
                        index: entry.index(),
                    });
                } else if let Err(fatal) = run.answer(entry.position(), &mut self.outputs) {
                    slot.fenced = Some(Fenced {
                        group: batch.group,
                        index: entry.index(),
                        what: format!("giving its answer {}", fatal.what),
                    });
                }
            }
            self.outputs.clear();
        }
        // A large batch leaves no more behind than many small ones need.
        self.outputs.shrink_to(OUTPUTS_KEPT);
        match &slot.fenced {
            Some(fenced) => Err(fenced.clone()),
            None => Ok(slot.applied),
        }
    }

    /// A handle of a group's state at `at`, which is where everything that was handed over ends; and how far the
    /// machine's own storage reaches, if it has one.
    pub fn take_snapshot(
        &mut self,
        group: GroupId,
        at: LogPosition,
    ) -> Result<(S::Snapshot, Option<LogPosition>), String> {
        let slot = self.machines.get_mut(&group);
        let slot = slot.ok_or_else(|| "the group has no machine".to_owned())?;
        if let Some(fenced) = &slot.fenced {
            return Err(fenced.to_string());
        }
        if slot.applied.index != at.index {
            let applied = slot.applied;
            return Err(format!("the machine is at {applied} and not at {at}"));
        }
        let taken = Fatal::catch(|| {
            let durable = slot.machine.flush()?;
            Ok((slot.machine.snapshot()?, durable.map(LogPosition::from)))
        });
        taken.and_then(|taken| taken).map_err(|fatal| fatal.what)
    }

    /// Replaces the state of a group's machine by a snapshot that ends at `at`. If the machine cannot, it is fenced,
    /// but for a snapshot whose bytes could not be read: then another one may do.
    pub fn install(
        &mut self,
        group: GroupId,
        at: LogPosition,
        reader: &mut dyn SnapshotReader,
    ) -> Result<LogPosition, NotInstalled> {
        let slot = self
            .machines
            .get_mut(&group)
            .expect("machines open before their groups");
        if let Some(fenced) = &slot.fenced {
            return Err(fenced.clone().into());
        }
        let mut reader = Watched::new(reader);
        let installed = Fatal::catch(|| slot.machine.install(&mut reader));
        if let (Ok(Err(_)), Some(why)) = (&installed, reader.failed) {
            return Err(NotInstalled::Unreadable(why));
        }
        if let Err(fatal) = installed.and_then(|installed| installed) {
            let fenced = Fenced {
                group,
                index: at.index,
                what: format!("it could not take over the snapshot: {}", fatal.what),
            };
            slot.fenced = Some(fenced.clone());
            return Err(fenced.into());
        }
        slot.applied = at;
        Ok(at)
    }

    /// The same at start, before anything is applied: a snapshot that cannot be taken over leaves the machine as it
    /// was, and perhaps an older one can.
    pub fn restore(
        &mut self,
        group: GroupId,
        at: LogPosition,
        reader: &mut dyn SnapshotReader,
    ) -> Result<(), String> {
        let slot = self
            .machines
            .get_mut(&group)
            .expect("machines open before their groups");
        let installed = Fatal::catch(|| slot.machine.install(reader));
        installed
            .and_then(|installed| installed)
            .map_err(|fatal| fatal.what)?;
        slot.applied = at;
        Ok(())
    }
}

impl<S: StateMachine> Slot<S> {
    fn apply_entry(&mut self, entry: &Entry, outputs: &mut Vec<S::Output>) -> Result<(), Fatal> {
        match entry.header().kind {
            EntryKind::Noop | EntryKind::Configuration => return Ok(()),
            EntryKind::Proposals => {}
        }
        // Skipping what this build does not know would make replicas of different builds differ.
        if let Some(row) = entry.rows().find(|row| row.kind != 0) {
            return Err(Fatal::new(format!(
                "proposal kind {} is not known to this build: upgrade logdrive",
                row.kind
            )));
        }
        Fatal::catch(|| self.machine.apply(Batch::new(entry), outputs))??;
        let (expected, got) = (entry.header().count as usize, outputs.len());
        if expected != got {
            return Err(Fatal::new(format!(
                "{got} outputs for {expected} proposals"
            )));
        }
        Ok(())
    }
}

fn fail_all<O>(runs: Runs<O>, index: Index) {
    for run in runs {
        run.fail(Failure::HaltedBeforeApply { index });
    }
}

#[cfg(test)]
mod tests {
    use logdrive_raft::{Chain, EntryBuilder, Term};

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::vec::Drain;

    use super::*;
    use crate::inbox::{Door, Inbox};
    use crate::machine::Durable;
    use crate::snapshot::SnapshotReader;
    use crate::sync::Arc;
    use crate::ticket::ReplySink;

    /// Sums the lengths it sees; panics at a proposal that says so.
    #[derive(Default)]
    struct Lengths {
        sum: usize,
    }

    impl StateMachine for Lengths {
        type Output = usize;
        type Reader = ();
        type Snapshot = Vec<u8>;

        fn open(&mut self) -> Result<Durable, Fatal> {
            Ok(Durable::default())
        }

        fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<usize>) -> Result<(), Fatal> {
            for (_, payload) in batch.proposals() {
                assert!(payload != b"panic", "asked to");
                if payload != b"mute" {
                    self.sum += payload.len();
                    outputs.push(self.sum);
                }
            }
            Ok(())
        }

        fn reader(&self) {}

        fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
            Ok(self.sum.to_le_bytes().to_vec())
        }

        fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
            let bytes = snapshot.read_all(8)?.try_into();
            self.sum = usize::from_le_bytes(bytes.map_err(|_| Fatal::new("no sum"))?);
            Ok(())
        }
    }

    fn batch(index: u64, payloads: &[&str]) -> ApplyBatch<usize> {
        let mut builder = EntryBuilder::with_room(4, 64);
        for payload in payloads {
            builder.push(payload.as_bytes());
        }
        let entry = builder
            .finish()
            .seal(GroupId(1), Term(1), Index(index), Chain(0));
        let bytes = entry.frame().len();
        let entries = vec![(entry, Vec::new())];
        ApplyBatch {
            group: GroupId(1),
            entries,
            bytes,
            appended: None,
        }
    }

    #[test]
    fn a_machine_that_panics_is_fenced_with_the_index_and_never_called_again() {
        let mut applier = Applier::default();
        applier.open(GroupId(1), Lengths::default()).unwrap();
        assert_eq!(applier.apply(batch(1, &["ab"])).unwrap().index, Index(1));
        let fenced = applier.apply(batch(2, &["ab", "panic"])).unwrap_err();
        let expected = "the state machine of group 1 failed at entry 2: panicked: asked to";
        assert_eq!(fenced.to_string(), expected);
        assert_eq!(applier.apply(batch(3, &["ab"])).unwrap_err(), fenced);
        assert_eq!(applier.applied(GroupId(1)).unwrap().index, Index(1));
    }

    /// Panics over every answer, whatever it is.
    #[derive(Default)]
    struct Clumsy(AtomicUsize);

    impl ReplySink<usize> for Clumsy {
        fn applied(&self, _: u64, _: u32, _: LogPosition, _: u32, _: Drain<'_, usize>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("dropped it");
        }

        fn failed(&self, _: u64, _: u32, _: u32, _: Failure) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("dropped that too");
        }
    }

    /// Looks how far the machine is said to be whenever an answer comes.
    #[derive(Default)]
    struct Looks {
        shown: AtomicUsize,
        answered: AtomicUsize,
    }

    impl ReplySink<usize> for Looks {
        fn applied(&self, _: u64, _: u32, at: LogPosition, _: u32, _: Drain<'_, usize>) {
            assert_eq!(self.shown.load(Ordering::Relaxed) as u64, at.index.0);
            self.answered.fetch_add(1, Ordering::Relaxed);
        }

        fn failed(&self, _: u64, _: u32, _: u32, why: Failure) {
            panic!("{why:?}");
        }
    }

    #[test]
    fn how_far_a_machine_is_can_be_seen_by_whoever_has_its_answer() {
        let inbox = Inbox::new(1 << 20, 1 << 20, std::task::Waker::noop().clone());
        inbox.set_door(Door::Open);
        let looks = Arc::new(Looks::default());
        let sink: Arc<dyn ReplySink<usize>> = looks.clone();
        let mut applier = Applier::default();
        applier.open(GroupId(1), Lengths::default()).unwrap();
        let mut both = batch(1, &["ab"]);
        both.entries.extend(batch(2, &["ab"]).entries);
        for (_, runs) in &mut both.entries {
            inbox.submit(&["ab"], &sink, 1).unwrap();
            *runs = inbox.take().unwrap().runs;
        }
        let show = |at: LogPosition| {
            let at = usize::try_from(at.index.0).unwrap();
            looks.shown.store(at, Ordering::Relaxed);
        };
        assert_eq!(applier.apply_showing(both, show).unwrap().index, Index(2));
        assert_eq!(looks.answered.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_sink_that_panics_fences_its_group_and_harms_nobody_else() {
        let inbox = Inbox::new(1 << 20, 1 << 20, std::task::Waker::noop().clone());
        inbox.set_door(Door::Open);
        let clumsy = Arc::new(Clumsy::default());
        let sink: Arc<dyn ReplySink<usize>> = clumsy.clone();
        inbox.submit(&["ab"], &sink, 1).unwrap();
        inbox.submit(&["cd"], &sink, 2).unwrap();
        let sealed = inbox.take().unwrap();
        let mut with_runs = batch(1, &["ab", "cd"]);
        with_runs.entries[0].1 = sealed.runs;
        let mut applier = Applier::default();
        applier.open(GroupId(1), Lengths::default()).unwrap();
        applier.open(GroupId(2), Lengths::default()).unwrap();
        let fenced = applier.apply(with_runs).unwrap_err();
        assert!(fenced.what.contains("dropped it"), "{fenced}");
        // The first heard twice, the second that its group has halted.
        assert_eq!(clumsy.0.load(Ordering::Relaxed), 3);
        assert_eq!(inbox.permits().held(), 0);
        assert_eq!(applier.apply(batch(2, &["ab"])).unwrap_err(), fenced);
        let mut other = batch(1, &["ab"]);
        other.group = GroupId(2);
        assert!(applier.apply(other).is_ok());
        // Those who wait at a door that shuts, or are dropped, are no danger either.
        inbox.submit(&["ef"], &sink, 3).unwrap();
        inbox.submit(&["gh"], &sink, 4).unwrap();
        drop(inbox.take());
        inbox.submit(&["ij"], &sink, 5).unwrap();
        inbox.set_door(Door::Halted);
        assert_eq!(clumsy.0.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_proposal_of_an_unknown_kind_halts_the_group_and_reaches_no_machine() {
        for kind in [1, 255] {
            let mut builder = EntryBuilder::with_room(2, 64);
            builder.push(b"ab");
            let row = logdrive_raft::ProposalRow {
                kind,
                ..Default::default()
            };
            builder.push_row(row, b"cd");
            let entry = builder
                .finish()
                .seal(GroupId(1), Term(1), Index(1), Chain(0));
            let mut unknown = batch(1, &["ab"]);
            unknown.entries = vec![(entry, Vec::new())];
            let mut applier = Applier::default();
            applier.open(GroupId(1), Lengths::default()).unwrap();
            let fenced = applier.apply(unknown).unwrap_err();
            let expected =
                format!("proposal kind {kind} is not known to this build: upgrade logdrive");
            assert_eq!(fenced.what, expected);
            assert_eq!(applier.applied(GroupId(1)).unwrap().index, Index(0));
            assert_eq!(applier.apply(batch(2, &["ab"])).unwrap_err(), fenced);
            assert_eq!(applier.machines[&GroupId(1)].machine.sum, 0);
        }
    }

    #[test]
    fn a_machine_that_leaves_out_an_output_is_fenced() {
        let mut applier = Applier::default();
        applier.open(GroupId(1), Lengths::default()).unwrap();
        let fenced = applier.apply(batch(1, &["ab", "mute"])).unwrap_err();
        assert_eq!(fenced.what, "1 outputs for 2 proposals");
    }
}
