//! Simulated files for a store of snapshots: directories one level deep that lose what was not flushed.
//!
//! There are two images of everything: contents in blocks, names of files, names of directories. What was written is
//! in one, and what was made durable in the other. A power cut keeps any part of the difference.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use logdrive_wal::snapshots::{FileListed, Files, FilesError, check_name};

use self::medium::{Contents, Medium, Names};
use crate::disk::Crash;

mod medium;

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

impl SimFilesStorage {
    /// An empty root. The seed decides what crashes leave.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let medium = Arc::new(Mutex::new(Medium::new(seed)));
        Self { medium }
    }

    /// The files for a process that starts. One that is still there is dead from now on.
    #[must_use]
    pub fn files(&self) -> SimFiles {
        let mut medium = self.lock();
        medium.process += 1;
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
        self.lock().stop_at = operation;
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
        if let Ok(contents) = medium.contents(&directory, &file) {
            contents.flip(offset_bytes, mask);
        }
        Some((directory, file, offset_bytes))
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
        let result = act(&mut medium, fault);
        if medium.stop_at == Some(medium.operations) {
            medium.cut_power();
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
