//! Simulated files for a store of snapshots: directories one level deep that lose what was not flushed.
//!
//! There are two images of everything: contents in blocks, names of files, names of directories. What was written is
//! in one, and what was made durable in the other. A power cut keeps any part of the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use logdrive_raft::GroupId;
use logdrive_wal::snapshots::{FileListed, Files, FilesError, check_name};

use crate::disk::Crash;

/// The bytes of which a power cut keeps all or nothing.
const BLOCK_BYTES: usize = 4096;

/// Something that goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FilesFault {
    /// A write finds no space after half of its bytes, or the making of a file or directory finds none.
    NoSpace,
    /// A write fails after half of its bytes.
    WriteError,
    /// A flush of a file, a directory or the root fails. The bytes of a file stay visible, and no later flush owes
    /// them any more.
    FlushError,
    /// A read fails.
    ReadError,
    /// A write says that all is well and reaches the cache alone.
    LostWrite,
}

/// What an operation is, as far as faults are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    Write,
    Flush,
    Read,
    Other,
}

/// What several processes find and leave, one after the other. Clones are the same.
#[derive(Clone, Debug)]
pub struct SimFilesStorage {
    medium: Arc<Mutex<Medium>>,
}

/// The files as one process sees them. After a crash it can do nothing any more.
#[derive(Debug)]
pub struct SimFiles {
    medium: Arc<Mutex<Medium>>,
    process: u64,
}

#[derive(Clone, Debug)]
struct Medium {
    root: Names,
    directories: BTreeMap<u64, Names>,
    files: BTreeMap<u64, Contents>,
    /// How many files and directories have been made: the number of the next one.
    made: u64,
    /// The process that is alive, if one is.
    process: u64,
    operations: u64,
    stop_at: Option<(u64, Crash)>,
    /// How the process was stopped by that, if it was.
    stopped: Option<Crash>,
    /// How many faults of each kind were met.
    met: BTreeMap<FilesFault, u64>,
    /// What waits for an operation, and how many operations that it concerns it lets pass.
    faults: Vec<(FilesFault, u64)>,
    capacity_bytes: Option<u64>,
    /// Something at rest was changed.
    harmed: bool,
    random: Rng,
}

/// What has which name.
#[derive(Clone, Debug, Default)]
struct Names {
    written: BTreeMap<String, u64>,
    flushed: BTreeMap<String, u64>,
    /// What leads from one to the other.
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Put(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
struct Contents {
    written: Vec<u8>,
    flushed: Vec<u8>,
    /// The blocks that a flush owes.
    dirty: BTreeSet<usize>,
}

impl SimFilesStorage {
    /// An empty root. The seed decides what crashes leave.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let medium = Medium {
            root: Names::default(),
            directories: BTreeMap::new(),
            files: BTreeMap::new(),
            made: 0,
            process: 0,
            operations: 0,
            stop_at: None,
            stopped: None,
            met: BTreeMap::new(),
            faults: Vec::new(),
            capacity_bytes: None,
            harmed: false,
            random: Rng::with_seed(seed),
        };
        let medium = Arc::new(Mutex::new(medium));
        Self { medium }
    }

    /// The files for a process that starts. One that is still there is dead from now on.
    #[must_use]
    pub fn files(&self) -> SimFiles {
        let mut medium = self.lock();
        medium.process += 1;
        medium.stopped = None;
        let process = medium.process;
        drop(medium);
        let medium = Arc::clone(&self.medium);
        SimFiles { medium, process }
    }

    /// Stops whatever process uses the files.
    pub fn crash(&self, crash: Crash) {
        let mut medium = self.lock();
        medium.process += 1;
        if crash == Crash::Power {
            medium.cut_power();
        }
    }

    /// Cuts the power at the end of this operation, counted from the first one that there was. Its process hears of
    /// an error.
    pub fn stop_at(&self, operation: Option<u64>) {
        self.lock().stop_at = operation.map(|operation| (operation, Crash::Power));
    }

    /// Stops the process in this way when it has done so many more operations.
    pub fn stop_after(&self, operations: u64, crash: Crash) {
        let mut medium = self.lock();
        medium.stop_at = Some((medium.operations + operations.max(1), crash));
    }

    /// How the process was stopped that uses the files, if an operation of its own stopped it.
    #[must_use]
    pub fn stopped(&self) -> Option<Crash> {
        self.lock().stopped
    }

    /// Whether something was done to the files that is nobody's fault who uses them.
    #[must_use]
    pub fn is_harmed(&self) -> bool {
        let medium = self.lock();
        medium.harmed || !medium.met.is_empty()
    }

    /// How many faults of a kind were met.
    #[must_use]
    pub fn met(&self, fault: FilesFault) -> u64 {
        self.lock().met.get(&fault).copied().unwrap_or(0)
    }

    /// How many operations there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Lets an operation that `fault` speaks of meet it, after so many others of them.
    pub fn inject(&self, fault: FilesFault, after: u64) {
        self.lock().faults.push((fault, after));
    }

    /// Nothing waits for its operation any more. Says how many faults did.
    pub fn withdraw_faults(&self) -> usize {
        std::mem::take(&mut self.lock().faults).len()
    }

    /// All files together take no more than this.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.lock().capacity_bytes = capacity_bytes;
    }

    /// Changes a byte at rest. False: there is none.
    pub fn flip(&self, directory: &str, file: &str, offset_bytes: u64, mask: u8) -> bool {
        let mut medium = self.lock();
        medium.harmed = true;
        let Ok(contents) = medium.contents(directory, file) else {
            return false;
        };
        contents.flip(offset_bytes, mask)
    }

    /// Changes one bit at rest, of any file; the seed decides which. Says whose; `None` if all are empty.
    pub fn rot(&self) -> Option<(String, String, u64)> {
        let mut medium = self.lock();
        let mut places = Vec::new();
        for (directory, number) in &medium.root.written {
            for (file, number) in &medium.directories[number].written {
                let bytes = medium.files[number].written.len() as u64;
                if bytes > 0 {
                    places.push((directory.clone(), file.clone(), bytes));
                }
            }
        }
        if places.is_empty() {
            return None;
        }
        let place = medium.random.usize(..places.len());
        let (directory, file, bytes) = places.swap_remove(place);
        let offset_bytes = medium.random.u64(..bytes);
        let mask = 1 << medium.random.u32(..8);
        medium.harmed = true;
        if let Ok(contents) = medium.contents(&directory, &file) {
            contents.flip(offset_bytes, mask);
        }
        Some((directory, file, offset_bytes))
    }

    /// How far the finished snapshots of a group reach that a power cut would leave whole; `None` if something was done
    /// to these files, of which nobody can know.
    #[must_use]
    pub fn durable_reach(&self, group: GroupId) -> Option<u64> {
        let medium = self.lock();
        if medium.harmed {
            return None;
        }
        let prefix = format!("g{group}-");
        let whole = |number: &u64| {
            let names = &medium.directories[number];
            let flushed = |number: &u64| {
                let contents = &medium.files[number];
                contents.dirty.is_empty() && contents.flushed == contents.written
            };
            names.changes.is_empty() && names.flushed.values().all(flushed)
        };
        let finished = medium.root.flushed.iter().filter_map(|(name, number)| {
            let index: u64 = name
                .strip_prefix(&prefix)?
                .split('-')
                .next()?
                .parse()
                .ok()?;
            whole(number).then_some(index)
        });
        Some(finished.max().unwrap_or(0))
    }

    /// Changes a bit of a finished snapshot, or of one that is being received. Says whether there was one.
    pub fn rot_any(&self, finished: bool) -> bool {
        let mut medium = self.lock();
        let mut places = Vec::new();
        for (directory, number) in &medium.root.written {
            let is_finished = directory.starts_with('g');
            if is_finished != finished || !(finished || directory.starts_with("receiving-")) {
                continue;
            }
            for (file, number) in &medium.directories[number].written {
                let bytes = medium.files[number].written.len() as u64;
                if bytes > 0 {
                    places.push((directory.clone(), file.clone(), bytes));
                }
            }
        }
        if places.is_empty() {
            return false;
        }
        let place = medium.random.usize(..places.len());
        let (directory, file, bytes) = places.swap_remove(place);
        let offset_bytes = medium.random.u64(..bytes);
        medium.harmed = true;
        medium
            .contents(&directory, &file)
            .is_ok_and(|contents| contents.flip(offset_bytes, 1))
    }

    /// The names of all directories.
    #[must_use]
    pub fn directories(&self) -> Vec<String> {
        self.lock().root.written.keys().cloned().collect()
    }

    /// What a file holds, if there is one.
    #[must_use]
    pub fn contents(&self, directory: &str, file: &str) -> Option<Vec<u8>> {
        let mut medium = self.lock();
        let contents = medium.contents(directory, file).ok()?;
        Some(contents.written.clone())
    }

    /// Another medium with the same on it, and nobody using it.
    #[must_use]
    pub fn copy(&self, seed: u64) -> Self {
        let mut medium = self.lock().clone();
        medium.random = Rng::with_seed(seed);
        let medium = Arc::new(Mutex::new(medium));
        Self { medium }
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimFiles {
    /// Carries out an operation, unless the process is dead, and lets a fault that waits for it happen.
    fn act<T>(
        &mut self,
        what: &'static str,
        place: (&str, Option<&str>),
        kind: Kind,
        act: impl FnOnce(&mut Medium, Option<FilesFault>) -> io::Result<T>,
    ) -> Result<T, FilesError> {
        let mut medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error| FilesError::new(what, path(place), error);
        medium.may_act(self.process, place).map_err(failed)?;
        medium.operations += 1;
        let fault = medium.take_fault(kind);
        if let Some(fault) = fault {
            *medium.met.entry(fault).or_default() += 1;
        }
        let result = act(&mut medium, fault);
        if let Some((operation, crash)) = medium.stop_at
            && operation == medium.operations
        {
            medium.stop_at = None;
            medium.stopped = Some(crash);
            if crash == Crash::Power {
                medium.cut_power();
            }
            medium.process += 1;
            return Err(failed(stopped()));
        }
        result.map_err(failed)
    }
}

impl Files for SimFiles {
    fn path(&self, directory: &str, file: Option<&str>) -> PathBuf {
        path((directory, file))
    }

    fn directories(&mut self) -> Result<Vec<String>, FilesError> {
        self.act("list", ("", None), Kind::Other, |medium, _| {
            Ok(medium.root.written.keys().cloned().collect())
        })
    }

    fn create_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        self.act(
            "create",
            (directory, None),
            Kind::Create,
            |medium, fault| {
                refuse(fault)?;
                let number = medium.number();
                medium.root.put(directory, number)?;
                medium.directories.insert(number, Names::default());
                Ok(())
            },
        )
    }

    fn rename_directory(&mut self, from: &str, to: &str) -> Result<(), FilesError> {
        self.act("rename", (from, None), Kind::Other, |medium, _| {
            checked(to)?;
            medium.root.rename(from, to)
        })
    }

    fn remove_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        self.act("remove", (directory, None), Kind::Other, |medium, _| {
            let names = medium.names(directory)?;
            for name in names.written.clone().into_keys() {
                names.remove(&name)?;
            }
            medium.root.remove(directory)
        })
    }

    fn sync_root(&mut self) -> Result<(), FilesError> {
        self.act("flush", ("", None), Kind::Flush, |medium, fault| {
            refuse(fault)?;
            medium.root.flush();
            medium.forget_removed();
            Ok(())
        })
    }

    fn files(&mut self, directory: &str) -> Result<Vec<FileListed>, FilesError> {
        self.act("list", (directory, None), Kind::Other, |medium, _| {
            let names = medium.names(directory)?.written.clone();
            let listed = names.into_iter().map(|(name, number)| FileListed {
                name,
                bytes: medium.files[&number].written.len() as u64,
            });
            Ok(listed.collect())
        })
    }

    fn create_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        let place = (directory, Some(file));
        self.act("create", place, Kind::Create, |medium, fault| {
            refuse(fault)?;
            let number = medium.number();
            medium.names(directory)?.put(file, number)?;
            medium.files.insert(number, Contents::default());
            Ok(())
        })
    }

    fn remove_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        let place = (directory, Some(file));
        self.act("remove", place, Kind::Other, |medium, _| {
            medium.names(directory)?.remove(file)
        })
    }

    fn cut_file(&mut self, directory: &str, file: &str, bytes: u64) -> Result<(), FilesError> {
        let place = (directory, Some(file));
        self.act("cut", place, Kind::Other, |medium, _| {
            medium.contents(directory, file)?.cut(length(bytes)?)
        })
    }

    fn write_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), FilesError> {
        let place = (directory, Some(file));
        self.act("write", place, Kind::Write, |medium, fault| {
            let offset = length(offset_bytes)?;
            let half = bytes.len() / 2;
            let taken = medium.taken_bytes();
            let capacity_bytes = medium.capacity_bytes;
            let contents = medium.contents(directory, file)?;
            let longer = (offset + bytes.len()).saturating_sub(contents.written.len());
            if capacity_bytes.is_some_and(|most| taken + longer as u64 > most) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            match fault {
                None => contents.write(offset, bytes),
                Some(FilesFault::LostWrite) => {
                    let owed = contents.dirty.clone();
                    contents.write(offset, bytes);
                    contents.dirty = owed;
                }
                Some(_) => contents.write(offset, &bytes[..half]),
            }
            match fault {
                Some(FilesFault::LostWrite) => Ok(()),
                other => refuse(other),
            }
        })
    }

    fn flush(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        let place = (directory, Some(file));
        self.act("flush", place, Kind::Flush, |medium, fault| {
            let contents = medium.contents(directory, file)?;
            if fault.is_some() {
                contents.dirty.clear();
            }
            refuse(fault)?;
            contents.flush();
            Ok(())
        })
    }

    fn sync_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        self.act("flush", (directory, None), Kind::Flush, |medium, fault| {
            refuse(fault)?;
            medium.names(directory)?.flush();
            Ok(())
        })
    }

    fn read_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        into: &mut [u8],
    ) -> Result<usize, FilesError> {
        let place = (directory, Some(file));
        self.act("read", place, Kind::Read, |medium, fault| {
            refuse(fault)?;
            let written = &medium.contents(directory, file)?.written;
            let rest = written.get(length(offset_bytes)?..).unwrap_or_default();
            let count = rest.len().min(into.len());
            into[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })
    }

    fn forget_cached(&mut self, directory: &str, file: &str) {
        let place = (directory, Some(file));
        // Whoever asks reads the file next, and hears then that it is not there.
        let _ = self.act("open", place, Kind::Other, |medium, _| {
            medium.contents(directory, file)?.forget_cached();
            Ok(())
        });
    }

    fn free_bytes(&self) -> Option<u64> {
        let medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity_bytes = medium.capacity_bytes?;
        Some(capacity_bytes.saturating_sub(medium.taken_bytes()))
    }
}

impl Medium {
    fn may_act(&self, process: u64, place: (&str, Option<&str>)) -> io::Result<()> {
        if self.process != process {
            return Err(stopped());
        }
        let (directory, file) = place;
        if !directory.is_empty() {
            checked(directory)?;
        }
        file.map_or(Ok(()), checked)
    }

    /// The fault that an operation of this kind meets.
    fn take_fault(&mut self, kind: Kind) -> Option<FilesFault> {
        let mut met = None;
        for (place, (fault, after)) in self.faults.iter_mut().enumerate() {
            if !fault.concerns(kind) {
                continue;
            }
            match after.checked_sub(1) {
                Some(less) => *after = less,
                None => met = met.or(Some(place)),
            }
        }
        met.map(|place| self.faults.remove(place).0)
    }

    fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    fn names(&mut self, directory: &str) -> io::Result<&mut Names> {
        let number = self.root.find(directory)?;
        let names = self.directories.get_mut(&number);
        Ok(names.expect("what has a name is there"))
    }

    fn contents(&mut self, directory: &str, file: &str) -> io::Result<&mut Contents> {
        let number = self.names(directory)?.find(file)?;
        let contents = self.files.get_mut(&number);
        Ok(contents.expect("what has a name is there"))
    }

    /// The bytes of all files that have a name.
    fn taken_bytes(&self) -> u64 {
        let mut taken = 0;
        for number in self.root.written.values() {
            for number in self.directories[number].written.values() {
                taken += self.files[number].written.len() as u64;
            }
        }
        taken
    }

    /// Drops what no crash brings back.
    fn forget_removed(&mut self) {
        let kept = self.root.numbers();
        self.directories.retain(|number, _| kept.contains(number));
        let names = self.directories.values();
        let kept: BTreeSet<u64> = names.flat_map(Names::numbers).collect();
        self.files.retain(|number, _| kept.contains(number));
    }

    fn cut_power(&mut self) {
        self.root.cut_power(&mut self.random);
        for names in self.directories.values_mut() {
            names.cut_power(&mut self.random);
        }
        for contents in self.files.values_mut() {
            contents.cut_power(&mut self.random);
        }
        self.forget_removed();
    }
}

impl Names {
    fn find(&self, name: &str) -> io::Result<u64> {
        let found = self.written.get(name).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn put(&mut self, name: &str, number: u64) -> io::Result<()> {
        self.check_unused(name)?;
        self.change(Change::Put(name.to_owned(), number));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let number = self.find(from)?;
        self.check_unused(to)?;
        self.change(Change::Rename(from.to_owned(), to.to_owned(), number));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.find(name)?;
        self.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    fn check_unused(&self, name: &str) -> io::Result<()> {
        if self.written.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.written);
        self.changes.push(change);
    }

    fn flush(&mut self) {
        self.flushed.clone_from(&self.written);
        self.changes.clear();
    }

    /// Each change is kept or lost.
    fn cut_power(&mut self, random: &mut Rng) {
        for change in std::mem::take(&mut self.changes) {
            if random.bool() {
                change.apply(&mut self.flushed);
            }
        }
        self.written.clone_from(&self.flushed);
    }

    fn numbers(&self) -> BTreeSet<u64> {
        let both = self.written.values().chain(self.flushed.values());
        let put = self.changes.iter().filter_map(|change| match change {
            Change::Put(_, number) | Change::Rename(_, _, number) => Some(number),
            Change::Remove(_) => None,
        });
        both.chain(put).copied().collect()
    }
}

impl Change {
    /// Does it to names among which earlier changes may be missing.
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Put(name, number) => {
                names.insert(name.clone(), *number);
            }
            Self::Rename(from, to, number) => {
                if names.get(from) == Some(number) {
                    names.remove(from);
                }
                names.insert(to.clone(), *number);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Contents {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if bytes.is_empty() {
            return;
        }
        if end > self.written.len() {
            self.written.resize(end, 0);
        }
        self.written[offset..end].copy_from_slice(bytes);
        let last = (end - 1) / BLOCK_BYTES;
        self.dirty.extend(offset / BLOCK_BYTES..=last);
    }

    fn cut(&mut self, bytes: usize) -> io::Result<()> {
        let before = self.written.len();
        if bytes < before {
            self.written.truncate(bytes);
            // Should the file become longer again, then with zeros.
            let last = (before - 1) / BLOCK_BYTES;
            self.dirty.extend(bytes / BLOCK_BYTES..=last);
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.flushed.resize(self.written.len(), 0);
        for block in std::mem::take(&mut self.dirty) {
            copy_block(&self.written, &mut self.flushed, block);
        }
    }

    fn forget_cached(&mut self) {
        let cached = self.written.len();
        let mut read = self.flushed.clone();
        read.resize(cached, 0);
        for block in &self.dirty {
            copy_block(&self.written, &mut read, *block);
        }
        self.written = read;
    }

    /// Each block that is not flushed is kept or lost, and so is another length.
    fn cut_power(&mut self, random: &mut Rng) {
        if random.bool() {
            self.flushed.resize(self.written.len(), 0);
        }
        for block in std::mem::take(&mut self.dirty) {
            if random.bool() {
                copy_block(&self.written, &mut self.flushed, block);
            }
        }
        self.written.clone_from(&self.flushed);
    }

    fn flip(&mut self, offset_bytes: u64, mask: u8) -> bool {
        let Ok(offset) = usize::try_from(offset_bytes) else {
            return false;
        };
        if let Some(byte) = self.flushed.get_mut(offset) {
            *byte ^= mask;
        }
        match self.written.get_mut(offset) {
            Some(byte) => {
                *byte ^= mask;
                true
            }
            None => false,
        }
    }
}

impl FilesFault {
    fn concerns(self, kind: Kind) -> bool {
        match self {
            Self::NoSpace => matches!(kind, Kind::Create | Kind::Write),
            Self::WriteError | Self::LostWrite => kind == Kind::Write,
            Self::FlushError => kind == Kind::Flush,
            Self::ReadError => kind == Kind::Read,
        }
    }
}

/// Copies what both of them have of a block.
fn copy_block(from: &[u8], to: &mut [u8], block: usize) {
    let begin = block * BLOCK_BYTES;
    let end = (begin + BLOCK_BYTES).min(from.len()).min(to.len());
    if begin < end {
        to[begin..end].copy_from_slice(&from[begin..end]);
    }
}

/// What an operation that meets a fault answers.
fn refuse(fault: Option<FilesFault>) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(FilesFault::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
        Some(_) => Err(io::Error::other("simulated I/O error")),
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

fn checked(name: &str) -> io::Result<()> {
    check_name(name).map_err(|refused| io::Error::new(io::ErrorKind::InvalidInput, refused))
}

fn length(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn path((directory, file): (&str, Option<&str>)) -> PathBuf {
    let directory = PathBuf::from("/snapshots").join(directory);
    match file {
        Some(file) => directory.join(file),
        None => directory,
    }
}
