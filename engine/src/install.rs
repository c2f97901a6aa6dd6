//! The thread that gives machines the snapshots that they take over.
//!
//! A gibibyte takes a machine in memory seconds of a processor. Meanwhile all other groups of the node are applied, and
//! like whatever else snapshots need this gives way: by its priority, and at a pace. Priority alone decides who is next,
//! and whoever wakes up waits a moment all the same for what runs; this runs for a fraction of that at a time.

use std::sync::Arc;

use logdrive_raft::{GroupId, LogPosition};
use logdrive_shard::store::PaceMaker;
use logdrive_shard::{MachineEvent, NotInstalled, SnapshotReader, StateMachine};

use crate::ahead::read_ahead;
use crate::apply::{Appliers, ApplyQueue};
use crate::snapshots::SnapshotQueue;

/// A snapshot for the machine of a group, to which everything before was applied.
pub(crate) struct Install {
    pub(crate) group: GroupId,
    /// The last entry that it covers.
    pub(crate) at: LogPosition,
    pub(crate) reader: Box<dyn SnapshotReader + Send>,
}

/// What the thread works on.
pub(crate) struct Installer<S: StateMachine> {
    pub(crate) appliers: Arc<Appliers<S>>,
    pub(crate) queue: Arc<ApplyQueue<S::Output>>,
    pub(crate) snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    /// At this pace a snapshot is read for a machine.
    pub(crate) pace: PaceMaker,
}

impl<S: StateMachine> Installer<S> {
    /// Gives machines what they take over, until the end.
    pub(crate) fn run(&self) {
        while let Some(install) = self.snapshots.next_install() {
            self.install(install);
        }
    }

    fn install(&self, install: Install) {
        let Install {
            group,
            at,
            mut reader,
        } = install;
        let mut pace = (self.pace)();
        let installed = read_ahead(&mut *reader, &mut *pace, |reader| {
            self.appliers.of(group).install(group, at, reader)
        });
        match installed {
            Ok(at) => {
                self.queue.show_applied(group, at);
                self.snapshots.tell(MachineEvent::Installed { group, at });
            }
            Err(NotInstalled::Fenced(fenced)) => self.queue.fence(fenced),
            Err(unreadable) => {
                let why = unreadable.to_string();
                self.snapshots
                    .tell(MachineEvent::NotInstalled { group, at, why });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::Waker;
    use std::time::Duration;

    use logdrive_raft::{Chain, EntryBuilder, Index, Term};
    use logdrive_shard::{Applier, ApplyBatch, Batch, Durable, Fatal};

    use super::*;
    use crate::apply::{Machines, Work};
    use crate::metrics::Metrics;

    /// Takes over a snapshot once another one has applied.
    struct Waits {
        applied: Sender<()>,
        other: Receiver<()>,
    }

    impl StateMachine for Waits {
        type Output = ();
        type Reader = ();
        type Snapshot = Vec<u8>;

        fn open(&mut self) -> Result<Durable, Fatal> {
            Ok(Durable::default())
        }

        fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<()>) -> Result<(), Fatal> {
            outputs.extend(batch.proposals().map(|_| ()));
            self.applied.send(()).map_err(|_| Fatal::new("alone"))
        }

        fn reader(&self) {}

        fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
            Ok(Vec::new())
        }

        fn install(&mut self, _: &mut dyn SnapshotReader) -> Result<(), Fatal> {
            let waited = self.other.recv_timeout(Duration::from_secs(30));
            waited.map_err(|_| Fatal::new("nothing was applied meanwhile"))
        }
    }

    struct Nothing(LogPosition);

    impl SnapshotReader for Nothing {
        fn position(&self) -> LogPosition {
            self.0
        }

        fn files(&self) -> Vec<(String, u64)> {
            Vec::new()
        }

        fn file(&mut self, _: &str) -> std::io::Result<Box<dyn std::io::Read + '_>> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    fn entry(group: GroupId) -> ApplyBatch<()> {
        let mut builder = EntryBuilder::with_room(1, 1);
        builder.push(b"x");
        let entry = builder.finish().seal(group, Term(1), Index(1), Chain(0));
        ApplyBatch {
            group,
            bytes: entry.frame().len(),
            entries: vec![(entry, Vec::new())],
            appended: None,
        }
    }

    #[test]
    fn other_groups_are_applied_while_a_machine_takes_over_a_snapshot() {
        let (to_first, from_second) = channel();
        let (to_second, from_first) = channel();
        let ends = [(to_second, from_second), (to_first, from_first)];
        let mut appliers = BTreeMap::new();
        for (group, (applied, other)) in (1..).map(GroupId).zip(ends) {
            let mut applier = Applier::default();
            applier.open(group, Waits { applied, other }).unwrap();
            appliers.insert(group, applier);
        }
        let waker = Waker::noop().clone();
        let snapshots = SnapshotQueue::new(waker.clone());
        let (given, metrics) = (Arc::clone(&snapshots), Arc::new(Metrics::new()));
        let machines = Machines::new(appliers, 1 << 20, waker, given, metrics);
        let installer = machines.installer(u64::MAX);
        let queue = Arc::clone(machines.queue());
        let thread = std::thread::spawn(move || installer.run());
        let at = LogPosition {
            index: Index(7),
            ..LogPosition::default()
        };
        let machines = machines.inline();
        machines.work(Work::Install(GroupId(1), at, Box::new(Nothing(at))));
        machines.work(Work::Batch(entry(GroupId(2))));
        let mut told = Vec::new();
        while told.is_empty() && queue.take_news().is_empty() {
            told = snapshots.take_events().1;
            std::thread::yield_now();
        }
        assert!(
            matches!(told[..], [MachineEvent::Installed { group: GroupId(1), at: to }] if to == at),
            "{told:?}"
        );
        assert_eq!(queue.applied(GroupId(1)), 7);
        assert_eq!(queue.applied(GroupId(2)), 1);
        snapshots.close();
        thread.join().unwrap();
    }
}
