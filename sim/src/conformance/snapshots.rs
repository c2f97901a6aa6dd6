//! What the suite asks of `flush`, `snapshot` and `install`.

use std::fmt::Debug;
use std::io::{self, Read, Write};

use fastrand::Rng;
use logdrive_raft::{Index, LogPosition, NodeId};
use logdrive_shard::{MemorySnapshot, SnapshotReader, SnapshotSource, SnapshotWriter};
use logdrive_shard::{StateMachine, snapshot::STATE_FILE};

use super::{Check, Checked, Failure, Life, Log, RESTART_ENTRIES, Straight, caught, fail};
use crate::machine::MachineModel;

/// How many damaged copies of a snapshot a machine is given.
const DAMAGED: u64 = 64;

/// What a machine says is durable was given to it, never shrinks, and is there when it is opened again.
pub(super) fn check_flush<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let straight = Straight::new(model, 8)?;
    let node = NodeId(2);
    let (mut flushed, mut said) = (None, Index(0));
    let mut life = Life::open(model, node, Check::Open)?;
    for given in 0..straight.log.entries.len() {
        straight.feed(&mut life, given, given + 1)?;
        if given % 2 == 0 {
            continue;
        }
        let now = life.flush()?;
        let index = |at: Option<LogPosition>| at.map(|at| at.index);
        if index(now) < index(flushed) {
            let text = format!(
                "it says that {} is durable, and has said {}",
                At(now),
                At(flushed)
            );
            return fail(Check::Flush, text);
        }
        flushed = now;
        if let Some(at) = now {
            straight.check_place(given + 1, at)?;
            said = said.max(at.index);
        }
        if given % 6 == 5 {
            drop(life);
            life = straight.reopen(model, node, given + 1, &mut said)?;
            if now.is_none() && life.opened.index > Index(0) {
                let text = format!(
                    "it says that it keeps nothing itself, and opens at entry {}",
                    life.opened.index
                );
                return fail(Check::Flush, text);
            }
        }
    }
    Ok(())
}

/// A machine that is restored from a snapshot is the one that the snapshot was taken of: at any point, and
/// whatever that one did later.
pub(super) fn check_snapshots<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut straight = Straight::new(model, 9)?;
    let end = straight.log.entries.len();
    let last = straight.life.written(straight.log.end())?;
    let mut nodes = (2..).map(NodeId);
    let mut node = || nodes.next().expect("there is no end to them");
    for given in 0..=end {
        let at = straight.log.position(given);
        let mut stopped = Life::open(model, node(), Check::Open)?;
        straight.feed(&mut stopped, 0, given)?;
        let early = stopped.written(at)?;

        let mut goes_on = Life::open(model, node(), Check::Open)?;
        straight.feed(&mut goes_on, 0, given)?;
        let handle = goes_on.snapshot()?;
        straight.goes_on(&mut goes_on, given, Check::Snapshot)?;
        let late = written(handle, at)?;
        straight.holds(model, &goes_on, end, Check::Snapshot, || {
            format!("a machine of which a snapshot was taken at entry {given}")
        })?;
        if model.has_equal_snapshots() && early != late {
            let text = format!(
                "two machines write different snapshots of entry {given}; one of them wrote it later{}",
                difference(&early, &late)
            );
            return fail(Check::Snapshot, text);
        }

        let mut restored = Life::open(model, node(), Check::Open)?;
        restored.install(&early)?;
        straight.holds(model, &restored, given, Check::Install, || {
            format!("restored from a snapshot of entry {given}, it")
        })?;
        let mut from_late = Life::open(model, node(), Check::Open)?;
        from_late.install(&late)?;
        straight.holds(model, &from_late, given, Check::Snapshot, || {
            format!("restored from a snapshot of entry {given} that was written at entry {end}, it")
        })?;

        straight.goes_on(&mut restored, given, Check::Install)?;
        let again = restored.written(straight.log.end())?;
        if model.has_equal_snapshots() && again != last {
            let text = format!(
                "one that was restored at entry {given} writes another snapshot of entry {end} than one \
                 that never was{}",
                difference(&again, &last)
            );
            return fail(Check::Install, text);
        }
        let mut twice = Life::open(model, node(), Check::Open)?;
        twice.install(&again)?;
        straight.holds(model, &twice, end, Check::Install, || {
            format!("restored from the snapshot of one that was restored at entry {given}, it")
        })?;
    }
    Ok(())
}

/// A snapshot replaces whatever there was, for those who read already too, and survives a restart.
pub(super) fn check_replaces<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let straight = Straight::new(model, 10)?;
    let other = Log::drawn(model, 11, RESTART_ENTRIES);
    let end = straight.log.entries.len();
    for (number, given) in [end / 2, end].into_iter().enumerate() {
        let (source, node) = (NodeId(2 * number as u64 + 2), NodeId(2 * number as u64 + 3));
        let at = straight.log.position(given);
        let mut stopped = Life::open(model, source, Check::Open)?;
        straight.feed(&mut stopped, 0, given)?;
        let snapshot = stopped.written(at)?;

        let mut life = Life::open(model, node, Check::Open)?;
        for entry in &other.entries[..given] {
            life.feed(entry, Check::Apply)?;
        }
        life.answers.clear();
        let early = caught(Check::Reader, "taking a handle", || life.machine.reader())?;
        let keeps = life.flush()?.is_some();
        life.install(&snapshot)?;
        straight.holds(model, &life, given, Check::Install, || {
            format!("restored over another state from a snapshot of entry {given}, it")
        })?;
        let (old, wanted) = (model.digest_of(&early)?, straight.digests[given]);
        if old != wanted {
            let text = format!(
                "after a snapshot was installed a handle that was taken before reads {old:#x}, and a new \
                 one {wanted:#x}"
            );
            return fail(Check::Reader, text);
        }
        drop(life);

        let mut life = Life::open(model, node, Check::Restart)?;
        let forgot = life.opened == LogPosition::default();
        if forgot && !keeps {
            straight.holds(model, &life, 0, Check::Install, || {
                "opened again without anything, it".to_owned()
            })?;
            continue;
        }
        if life.opened != at {
            let text = format!(
                "opened again after a snapshot up to {at} was installed, it says it is at {}",
                life.opened
            );
            return fail(Check::Install, text);
        }
        straight.holds(model, &life, given, Check::Install, || {
            format!("opened again after a snapshot of entry {given} was installed, it")
        })?;
        straight.goes_on(&mut life, given, Check::Install)?;
    }
    Ok(())
}

/// A snapshot that cannot be read, or makes no sense, changes nothing.
pub(super) fn check_failing<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut straight = Straight::new(model, 12)?;
    let given = straight.log.entries.len() / 2;
    let whole = straight.life.written(straight.log.end())?;
    let bytes = bytes_of(&whole);
    let mut nodes = (2..).map(NodeId);
    for readable in [0, 1, bytes / 4, bytes / 2, bytes.saturating_sub(1)] {
        let node = nodes.next().expect("there is no end to them");
        let mut life = Life::open(model, node, Check::Open)?;
        straight.feed(&mut life, 0, given)?;
        let mut source = whole.clone();
        let mut reader = Failing {
            snapshot: &mut source,
            left: readable,
            failed: false,
        };
        let installed = life.try_install(&mut reader)?;
        if !reader.failed {
            continue;
        }
        if installed {
            let text = format!(
                "it says that it has installed a snapshot of which {readable} of {bytes} bytes could be read"
            );
            return fail(Check::Install, text);
        }
        straight.unchanged(model, life, node, given, "could not be read")?;
    }
    let mut random = Rng::with_seed(12);
    for number in 0..DAMAGED {
        let node = nodes.next().expect("there is no end to them");
        let mut life = Life::open(model, node, Check::Open)?;
        straight.feed(&mut life, 0, given)?;
        let mut damaged = damaged(&whole, number, &mut random);
        // It may well be taken, if it is the snapshot of another state.
        if !life.try_install(&mut damaged)? {
            straight.unchanged(model, life, node, given, "was damaged")?;
        }
    }
    Ok(())
}

/// Whoever has no room to write a snapshot says so.
pub(super) fn check_full_disk<S>(model: &mut MachineModel<S>) -> Checked
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    let mut straight = Straight::new(model, 13)?;
    let at = straight.log.end();
    let bytes = bytes_of(&straight.life.written(at)?);
    for room in [0, bytes / 2, bytes.saturating_sub(1)] {
        let handle = straight.life.snapshot()?;
        let mut out = Full {
            left: room,
            failed: false,
        };
        let doing = "writing a snapshot";
        let wrote = caught(Check::Snapshot, doing, || handle.write_to(&mut out))?;
        if wrote.is_ok() && out.failed {
            let text = format!(
                "it says that it has written a snapshot of {bytes} bytes, and there was room for {room}"
            );
            return fail(Check::Snapshot, text);
        }
    }
    straight.life.written(at).map(drop)
}

impl<S> Straight<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    /// A machine must hold what the one that never stopped held after so many entries.
    fn holds(
        &self,
        model: &MachineModel<S>,
        life: &Life<S>,
        given: usize,
        check: Check,
        which: impl FnOnce() -> String,
    ) -> Checked {
        let (digest, wanted) = (life.digest(model)?, self.digests[given]);
        if digest == wanted {
            return Ok(());
        }
        let text = format!(
            "{} holds {digest:#x}; one that never stopped holds {wanted:#x} after entry {given}{}",
            which(),
            self.where_else(digest)
        );
        fail(check, text)
    }

    /// A machine that has the entries up to `given`, from wherever, takes the rest like any other.
    fn goes_on(&self, life: &mut Life<S>, given: usize, check: Check) -> Checked {
        for entry in &self.log.entries[given..] {
            life.feed(entry, check)?;
        }
        life.compare(&self.life, check)
    }

    /// A machine that refused a snapshot is where it was, also after a restart.
    fn unchanged(
        &self,
        model: &mut MachineModel<S>,
        life: Life<S>,
        node: NodeId,
        given: usize,
        what: &str,
    ) -> Checked {
        self.holds(model, &life, given, Check::Install, || {
            format!("after a snapshot that {what} it")
        })?;
        let mut life = life;
        self.goes_on(&mut life, given, Check::Install)?;
        drop(life);
        self.reopen(model, node, self.log.entries.len(), &mut Index(0))
            .map(drop)
    }

    /// What is said to be durable must be a place in what was given.
    fn check_place(&self, given: usize, at: LogPosition) -> Checked {
        let number = usize::try_from(at.index.0).unwrap_or(usize::MAX);
        if given < number {
            let text = format!("it says that {at} is durable, and was given entries up to {given}");
            return fail(Check::Flush, text);
        }
        let there = self.log.position(number);
        if there != at {
            let text = format!("it says that {at} is durable, and the log has {there} there");
            return fail(Check::Flush, text);
        }
        Ok(())
    }
}

impl<S> Life<S>
where
    S: StateMachine<Output: Clone + Debug + PartialEq>,
{
    fn flush(&mut self) -> Result<Option<LogPosition>, Failure> {
        match caught(Check::Flush, "flushing", || self.machine.flush())? {
            Ok(durable) => Ok(durable.map(LogPosition::from)),
            Err(fatal) => fail(Check::Flush, format!("flushing fails: {fatal}")),
        }
    }

    fn snapshot(&mut self) -> Result<S::Snapshot, Failure> {
        let doing = "taking a snapshot";
        match caught(Check::Snapshot, doing, || self.machine.snapshot())? {
            Ok(handle) => Ok(handle),
            Err(fatal) => fail(Check::Snapshot, format!("{doing} fails: {fatal}")),
        }
    }

    /// Takes a snapshot and writes it at once.
    fn written(&mut self, at: LogPosition) -> Result<MemorySnapshot, Failure> {
        written(self.snapshot()?, at)
    }

    fn install(&mut self, snapshot: &MemorySnapshot) -> Checked {
        let doing = "installing a snapshot";
        let mut source = snapshot.clone();
        match caught(Check::Install, doing, || self.machine.install(&mut source))? {
            Ok(()) => Ok(()),
            Err(fatal) => fail(Check::Install, format!("{doing} fails: {fatal}")),
        }
    }

    /// Whether a snapshot of which nobody knows whether it is one was installed.
    fn try_install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<bool, Failure> {
        let doing = "installing a snapshot that is none";
        let installed = caught(Check::Install, doing, || self.machine.install(snapshot))?;
        Ok(installed.is_ok())
    }
}

fn written(handle: impl SnapshotSource, at: LogPosition) -> Result<MemorySnapshot, Failure> {
    let doing = "writing a snapshot";
    match caught(Check::Snapshot, doing, || MemorySnapshot::of(handle, at))? {
        Ok(snapshot) => Ok(snapshot),
        Err(error) => fail(Check::Snapshot, format!("{doing} fails: {error}")),
    }
}

fn bytes_of(snapshot: &MemorySnapshot) -> u64 {
    snapshot.files().iter().map(|(_, bytes)| bytes).sum()
}

/// Which file is the first that differs.
fn difference(one: &MemorySnapshot, other: &MemorySnapshot) -> String {
    let names = one.files.keys().chain(other.files.keys());
    let mut different = names.filter(|name| one.files.get(*name) != other.files.get(*name));
    let name = different.next();
    name.map_or_else(String::new, |name| format!(": {name:?}"))
}

/// A copy of which a part is missing, is something else, or is too much.
fn damaged(whole: &MemorySnapshot, number: u64, random: &mut Rng) -> MemorySnapshot {
    let mut snapshot = whole.clone();
    let names: Vec<String> = snapshot.files.keys().cloned().collect();
    let Some(name) = names.get(random.usize(0..names.len().max(1))) else {
        let nonsense = b"nonsense".to_vec();
        snapshot.files.insert(STATE_FILE.to_owned(), nonsense);
        return snapshot;
    };
    let content = snapshot.files.get_mut(name).expect("it has the name");
    let place = random.usize(0..content.len().max(1));
    match number % 6 {
        0 => drop(snapshot.files.remove(name)),
        1 => content.truncate(place),
        2 => content.extend([0; 7]),
        3 => content.fill(0xff),
        _ => {
            if let Some(byte) = content.get_mut(place) {
                *byte ^= 1 << random.u8(0..8);
            }
        }
    }
    snapshot
}

/// Reads so many bytes and then no more.
struct Failing<'a> {
    snapshot: &'a mut MemorySnapshot,
    left: u64,
    failed: bool,
}

struct FailingFile<'a> {
    file: Box<dyn Read + 'a>,
    left: &'a mut u64,
    failed: &'a mut bool,
}

impl SnapshotReader for Failing<'_> {
    fn position(&self) -> LogPosition {
        self.snapshot.position
    }

    fn files(&self) -> Vec<(String, u64)> {
        self.snapshot.files()
    }

    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(FailingFile {
            file: self.snapshot.file(name)?,
            left: &mut self.left,
            failed: &mut self.failed,
        }))
    }
}

impl Read for FailingFile<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if *self.left == 0 && !into.is_empty() {
            *self.failed = true;
            return Err(io::Error::other("damaged on purpose"));
        }
        let room = usize::try_from(*self.left).unwrap_or(usize::MAX);
        let end = into.len().min(room);
        let bytes = self.file.read(&mut into[..end])?;
        *self.left -= bytes as u64;
        Ok(bytes)
    }
}

/// Takes so many bytes and then no more.
struct Full {
    left: u64,
    failed: bool,
}

impl SnapshotWriter for Full {
    fn begin_file(&mut self, _: &str) -> io::Result<&mut dyn Write> {
        Ok(self)
    }
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.failed = true;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.left -= bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A place that somebody said was durable.
struct At(Option<LogPosition>);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(at) => write!(f, "{at}"),
            None => f.write_str("nothing"),
        }
    }
}
