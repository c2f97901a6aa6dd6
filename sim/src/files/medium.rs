//! What lies in simulated files, in both images.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use fastrand::Rng;

use super::{FilesFault, Kind, checked, stopped};

/// The bytes of which a power cut keeps all or nothing.
const BLOCK_BYTES: usize = 4096;

#[derive(Clone, Debug)]
pub(super) struct Medium {
    pub(super) root: Names,
    pub(super) directories: BTreeMap<u64, Names>,
    pub(super) files: BTreeMap<u64, Contents>,
    /// How many files and directories have been made: the number of the next one.
    pub(super) made: u64,
    /// The process that is alive, if one is.
    pub(super) process: u64,
    pub(super) operations: u64,
    pub(super) stop_at: Option<u64>,
    /// What waits for an operation, and how many operations that it concerns it lets pass.
    pub(super) faults: Vec<(FilesFault, u64)>,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) random: Rng,
}

/// What has which name.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) written: BTreeMap<String, u64>,
    pub(super) flushed: BTreeMap<String, u64>,
    /// What leads from one to the other.
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) written: Vec<u8>,
    pub(super) flushed: Vec<u8>,
    /// The blocks that a flush owes.
    pub(super) dirty: BTreeSet<usize>,
}

impl Medium {
    /// Nothing, and nobody who uses it.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            root: Names::default(),
            directories: BTreeMap::new(),
            files: BTreeMap::new(),
            made: 0,
            process: 0,
            operations: 0,
            stop_at: None,
            faults: Vec::new(),
            capacity_bytes: None,
            random: Rng::with_seed(seed),
        }
    }

    pub(super) fn may_act(&self, process: u64, place: (&str, Option<&str>)) -> io::Result<()> {
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
    pub(super) fn take_fault(&mut self, kind: Kind) -> Option<FilesFault> {
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

    pub(super) fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    pub(super) fn names(&mut self, directory: &str) -> io::Result<&mut Names> {
        let number = self.root.find(directory)?;
        let names = self.directories.get_mut(&number);
        Ok(names.expect("what has a name is there"))
    }

    pub(super) fn contents(&mut self, directory: &str, file: &str) -> io::Result<&mut Contents> {
        let number = self.names(directory)?.find(file)?;
        let contents = self.files.get_mut(&number);
        Ok(contents.expect("what has a name is there"))
    }

    /// The bytes of all files that have a name.
    pub(super) fn taken_bytes(&self) -> u64 {
        let mut taken = 0;
        for number in self.root.written.values() {
            for number in self.directories[number].written.values() {
                taken += self.files[number].written.len() as u64;
            }
        }
        taken
    }

    /// Drops what no crash brings back.
    pub(super) fn forget_removed(&mut self) {
        let kept = self.root.numbers();
        self.directories.retain(|number, _| kept.contains(number));
        let names = self.directories.values();
        let kept: BTreeSet<u64> = names.flat_map(Names::numbers).collect();
        self.files.retain(|number, _| kept.contains(number));
    }

    pub(super) fn cut_power(&mut self) {
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
    pub(super) fn find(&self, name: &str) -> io::Result<u64> {
        let found = self.written.get(name).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn put(&mut self, name: &str, number: u64) -> io::Result<()> {
        self.check_unused(name)?;
        self.change(Change::Put(name.to_owned(), number));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let number = self.find(from)?;
        self.check_unused(to)?;
        self.change(Change::Rename(from.to_owned(), to.to_owned(), number));
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        self.find(name)?;
        self.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    pub(super) fn check_unused(&self, name: &str) -> io::Result<()> {
        if self.written.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.written);
        self.changes.push(change);
    }

    pub(super) fn flush(&mut self) {
        self.flushed.clone_from(&self.written);
        self.changes.clear();
    }

    /// Each change is kept or lost.
    pub(super) fn cut_power(&mut self, random: &mut Rng) {
        for change in std::mem::take(&mut self.changes) {
            if random.bool() {
                change.apply(&mut self.flushed);
            }
        }
        self.written.clone_from(&self.flushed);
    }

    pub(super) fn numbers(&self) -> BTreeSet<u64> {
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
    pub(super) fn apply(&self, names: &mut BTreeMap<String, u64>) {
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
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
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

    pub(super) fn cut(&mut self, bytes: usize) -> io::Result<()> {
        let before = self.written.len();
        if bytes < before {
            self.written.truncate(bytes);
            // Should the file become longer again, then with zeros.
            let last = (before - 1) / BLOCK_BYTES;
            self.dirty.extend(bytes / BLOCK_BYTES..=last);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        self.flushed.resize(self.written.len(), 0);
        for block in std::mem::take(&mut self.dirty) {
            copy_block(&self.written, &mut self.flushed, block);
        }
    }

    pub(super) fn forget_cached(&mut self) {
        let cached = self.written.len();
        let mut read = self.flushed.clone();
        read.resize(cached, 0);
        for block in &self.dirty {
            copy_block(&self.written, &mut read, *block);
        }
        self.written = read;
    }

    /// Each block that is not flushed is kept or lost, and so is another length.
    pub(super) fn cut_power(&mut self, random: &mut Rng) {
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

    pub(super) fn flip(&mut self, offset_bytes: u64, mask: u8) -> bool {
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

/// Copies what both of them have of a block.
fn copy_block(from: &[u8], to: &mut [u8], block: usize) {
    let begin = block * BLOCK_BYTES;
    let end = (begin + BLOCK_BYTES).min(from.len()).min(to.len());
    if begin < end {
        to[begin..end].copy_from_slice(&from[begin..end]);
    }
}
