//! The lock on a directory of slot files.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use super::DiskError;

/// The name of the file whose lock says who has the directory.
pub const LOCK_FILE: &str = "LOCK";

/// How long a directory that is locked is tried again: the kernel may hold the files of a killed process
/// for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// A directory that is this process's. It is free again when the last copy of the file is closed.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    file: File,
}

impl DirectoryLock {
    /// Takes the directory. To write, it is made if it does not exist.
    pub(super) fn take(directory: &Path, write: bool) -> Result<Self, DiskError> {
        let path = directory.join(LOCK_FILE);
        let file = if write {
            std::fs::create_dir_all(directory)
                .map_err(|e| DiskError::io("create", directory, e))?;
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true);
            options.open(&path)
        } else {
            File::open(&path)
        };
        let file = file.map_err(|e| DiskError::io("open", &path, e))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) => {
                    if began.elapsed() >= LOCK_PATIENCE {
                        return Err(DiskError::Locked { path });
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::Error(e)) => return Err(DiskError::io("lock", &path, e)),
            }
        }
    }

    /// The locked file. Whoever holds a copy of it holds the lock.
    #[cfg_attr(
        not(all(target_os = "linux", not(logdrive_portable))),
        allow(dead_code, reason = "only a ring keeps a copy")
    )]
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}
