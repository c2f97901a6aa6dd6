//! Where replicas keep their data: a temporary directory on a real disk, or the one that was named.
//!
//! Each holds a lock file, locked for as long as its owner lives. So a later run can tell what was left
//! behind, and removes it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::machine::Storage;

/// A directory for one run.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    /// Removed when dropped, unless it was named or is to be kept.
    temporary: bool,
    lock: File,
    /// What a reader of the report should know about the choice.
    notes: Vec<String>,
}

/// There is no directory to use.
#[derive(Debug, thiserror::Error)]
pub enum WorkDirError {
    /// The directory that was named holds something else.
    #[error("{} is neither empty nor a directory of loadgen; name another one", .0.display())]
    Foreign(PathBuf),
    /// Another run uses it.
    #[error("another loadgen uses {}; name another directory", .0.display())]
    InUse(PathBuf),
    /// It cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// None of the places for temporary directories can be used.
    #[error("no place for data: {}; name one with --dir", .0.join("; "))]
    NoPlace(Vec<String>),
}

impl WorkDir {
    /// Uses the directory that was named: creates it, or empties one that an earlier run left.
    pub fn named(path: &Path) -> Result<Self, WorkDirError> {
        let io = |source| WorkDirError::Io {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(io)?;
        let path = fs::canonicalize(path).map_err(io)?;
        let is_empty = fs::read_dir(&path).map_err(io)?.next().is_none();
        if !is_empty && !path.join(LOCK).is_file() {
            return Err(WorkDirError::Foreign(path));
        }
        let lock = lock(&path)
            .map_err(io)?
            .ok_or_else(|| WorkDirError::InUse(path.clone()))?;
        for entry in fs::read_dir(&path).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name() == LOCK {
                continue;
            }
            let is_dir = entry.file_type().map_err(io)?.is_dir();
            let removed = if is_dir {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
            removed.map_err(io)?;
        }
        let mut notes = Vec::new();
        let storage = Storage::of(&path);
        if storage.is_memory() {
            notes.push(format!("{} lies in memory", path.display()));
        }
        Ok(Self {
            path,
            temporary: false,
            lock,
            notes,
        })
    }

    /// Makes a temporary directory where data would survive, and removes what dead runs left.
    pub fn temporary() -> Result<Self, WorkDirError> {
        let places = [
            std::env::temp_dir(),
            PathBuf::from("/var/tmp"),
            PathBuf::from("./loadgen-data"),
        ];
        Self::temporary_in(&places, |place| Storage::of(place).is_memory())
    }

    fn temporary_in(
        places: &[PathBuf],
        is_memory: impl Fn(&Path) -> bool,
    ) -> Result<Self, WorkDirError> {
        let mut notes = Vec::new();
        for place in places {
            let is_last = place == places.last().unwrap_or(place);
            // The last resort is made if need be, the others are there or not.
            if is_last && let Err(error) = fs::create_dir_all(place) {
                notes.push(format!("{}: {error}", place.display()));
                continue;
            }
            if is_memory(place) {
                notes.push(format!("{} lies in memory", place.display()));
                continue;
            }
            remove_abandoned(place);
            match Self::create_in(place) {
                Ok(mut dir) => {
                    dir.notes = notes;
                    return Ok(dir);
                }
                Err(error) => notes.push(format!("{}: {error}", place.display())),
            }
        }
        Err(WorkDirError::NoPlace(notes))
    }

    fn create_in(place: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .disable_cleanup(true)
            .tempdir_in(place)?;
        let path = fs::canonicalize(dir.path())?;
        let lock = lock(&path)?.ok_or_else(|| io::Error::other("it was locked while made"))?;
        Ok(Self {
            path,
            temporary: true,
            lock,
            notes: Vec::new(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a reader of the report should know about the choice.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Leaves the directory where it is, and lets others take part in its lock.
    pub fn keep(&mut self) -> io::Result<()> {
        self.temporary = false;
        self.lock.unlock()?;
        self.lock.lock_shared()
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.temporary {
            // What cannot be removed now is removed by a later run.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Takes the lock of a directory; `None`: somebody else has it. Whoever is handed the file owns the directory
/// until it is closed.
pub fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(dir.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes part in the lock of a directory, beside others that do: it stays in use after its owner is gone.
pub fn share(dir: &Path) -> io::Result<File> {
    let file = File::open(dir.join(LOCK))?;
    match file.try_lock_shared() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("somebody else holds the lock")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn remove_abandoned(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Without a lock file it may be one that is being made.
        if !is_ours || !entry.path().join(LOCK).is_file() {
            continue;
        }
        if let Ok(Some(_lock)) = lock(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

const PREFIX: &str = "logdrive-loadgen-";
const LOCK: &str = "loadgen.lock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_directory_is_created_taken_again_and_kept() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("with space").join("data");
        let dir = WorkDir::named(&path).unwrap();
        fs::create_dir(dir.path().join("node-1")).unwrap();
        assert!(matches!(WorkDir::named(&path), Err(WorkDirError::InUse(_))));
        drop(dir);
        assert!(path.join("node-1").exists());
        let _dir = WorkDir::named(&path).unwrap();
        assert!(!path.join("node-1").exists());
    }

    #[test]
    fn a_directory_of_somebody_else_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("thesis.tex"), "").unwrap();
        let error = WorkDir::named(base.path()).unwrap_err();
        assert!(error.to_string().contains("neither empty nor"), "{error}");
        assert!(base.path().join("thesis.tex").exists());
    }

    #[test]
    fn memory_is_passed_over_and_what_dead_runs_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let (memory, disk) = (base.path().join("memory"), base.path().join("disk"));
        fs::create_dir_all(&memory).unwrap();
        let dead = disk.join("logdrive-loadgen-dead");
        let unmarked = disk.join("logdrive-loadgen-unmarked");
        for dir in [&dead, &unmarked] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(dead.join(LOCK), "").unwrap();
        let places = [memory.clone(), disk.clone()];
        let make = || WorkDir::temporary_in(&places, |place| place.ends_with("memory")).unwrap();
        let (one, two) = (make(), make());
        assert!(one.path().starts_with(fs::canonicalize(&disk).unwrap()));
        assert_eq!(
            one.notes(),
            [format!("{} lies in memory", memory.display())]
        );
        assert!(!dead.exists() && unmarked.exists() && one.path().exists());
        let path = two.path().to_owned();
        drop(two);
        assert!(!path.exists());
        assert!(one.path().exists());
    }

    #[test]
    fn without_any_place_the_advice_is_to_name_one() {
        let error = WorkDir::temporary_in(&[PathBuf::from("/proc/nope")], |_| false).unwrap_err();
        assert!(
            error.to_string().ends_with("name one with --dir"),
            "{error}"
        );
    }
}
