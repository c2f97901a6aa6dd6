//! The choice of a disk: the ring where the kernel and the file system allow it, blocking calls elsewhere.

use std::path::Path;

use super::probe::Scratch;
use super::pwrite::PwriteDisk;
use super::{Disk, DiskError, FlushMode};

/// Which implementation to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// The ring if it is to be had, and otherwise blocking calls; the disk's facts say why.
    #[default]
    Auto,
    /// The ring or nothing.
    IoUring,
    /// Blocking calls on a thread.
    Pwrite,
}

/// A disk over `path`, a directory, which is made if it does not exist. It is not locked yet when this returns,
/// but a directory that another process has is left alone: nothing is tried in it.
///
/// Without a `flush_mode`, which one to recommend is measured once the directory is locked. That takes up to
/// [`PROBE_TIME_MAX`](super::probe::PROBE_TIME_MAX) and is remembered in the directory for a day.
pub fn open(
    path: &Path,
    backend: Backend,
    flush_mode: Option<FlushMode>,
) -> Result<Box<dyn Disk>, DiskError> {
    let recommends = flush_mode.map_or(Recommends::Measured, Recommends::Always);
    Ok(open_scratch(path, backend, recommends)?)
}

/// Which flush mode a disk recommends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recommends {
    Always(FlushMode),
    /// What is measured once the directory is locked.
    Measured,
    /// Whoever opens it measures for itself.
    Nothing,
}

/// The same, for whoever lends it files of its own.
pub(super) fn open_scratch(
    path: &Path,
    backend: Backend,
    recommends: Recommends,
) -> Result<Box<dyn Scratch>, DiskError> {
    let refused = match backend {
        Backend::Pwrite => return Ok(Box::new(pwrite(path, recommends))),
        Backend::Auto | Backend::IoUring => match ring::open(path, recommends)? {
            Ok(disk) => return Ok(disk),
            Err(refused) => refused,
        },
    };
    if backend == Backend::IoUring {
        let source = std::io::Error::other(refused);
        return Err(DiskError::io("use io_uring for", path, source));
    }
    let note = format!("{refused}: blocking calls on a thread are used instead");
    Ok(Box::new(pwrite(path, recommends).with_fallback(note)))
}

fn pwrite(path: &Path, recommends: Recommends) -> PwriteDisk {
    let disk = PwriteDisk::new(path);
    match recommends {
        Recommends::Always(mode) => disk.with_flush_mode(mode),
        // Elsewhere a durable write is a write and a flush, and there is nothing to choose.
        Recommends::Measured if cfg!(target_os = "linux") => disk.with_probing(),
        Recommends::Measured | Recommends::Nothing => disk,
    }
}

#[cfg(all(target_os = "linux", not(logdrive_portable)))]
mod ring {
    use std::path::Path;

    use rustix::io::Errno;

    use crate::disk::DiskError;
    use crate::disk::file::direct_works;
    use crate::disk::lock::DirectoryLock;
    use crate::disk::probe::Scratch;
    use crate::disk::uring::UringDisk;

    use super::Recommends;

    /// A ring, or why there is none.
    pub(super) fn open(
        path: &Path,
        recommends: Recommends,
    ) -> Result<Result<Box<dyn Scratch>, String>, DiskError> {
        // Only a directory that nobody uses is written to. Its owner's free space, too, is its owner's.
        let _lock = DirectoryLock::take(path, true)?;
        if !direct_works(path).map_err(|e| DiskError::io("write to", path, e))? {
            return Ok(Err("O_DIRECT is refused by the file system".to_owned()));
        }
        Ok(match UringDisk::new(path) {
            Ok(disk) => Ok(Box::new(match recommends {
                Recommends::Always(mode) => disk.with_flush_mode(mode),
                Recommends::Measured => disk.with_probing(),
                Recommends::Nothing => disk,
            })),
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::PERM | Errno::ACCESS) => format!(
                    "io_uring is forbidden here (a container, or kernel.io_uring_disabled): {error}"
                ),
                _ => format!("io_uring is not to be had from this kernel: {error}"),
            }),
        })
    }
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
mod ring {
    use std::path::Path;

    use crate::disk::DiskError;
    use crate::disk::probe::Scratch;

    use super::Recommends;

    pub(super) fn open(
        _: &Path,
        _: Recommends,
    ) -> Result<Result<Box<dyn Scratch>, String>, DiskError> {
        Ok(Err("io_uring is not part of this build".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_says_which_one_it_is_and_what_it_would_rather_be() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let inner = directory.path().join("not there yet");
        let mut disk = open(&inner, Backend::Auto, Some(FlushMode::Dsync)).unwrap();
        disk.lock().unwrap();
        assert_eq!(disk.slots().unwrap(), []);
        let facts = disk.facts();
        assert_eq!(facts.flush_mode, Some(FlushMode::Dsync));
        drop(disk);
        match facts.backend {
            "io_uring" => assert!(open(&inner, Backend::IoUring, None).is_ok()),
            "pwrite" => assert_eq!(facts.fallbacks.len(), 1),
            other => panic!("{other}"),
        }
        // Nothing is left of the trial.
        let names = std::fs::read_dir(&inner).unwrap();
        assert!(names.map(|file| file.unwrap().file_name()).eq(["LOCK"]));
    }

    #[cfg(all(target_os = "linux", not(logdrive_portable)))]
    #[test]
    fn nothing_is_tried_in_a_directory_that_somebody_has() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let mut owner = PwriteDisk::new(directory.path());
        owner.lock().unwrap();
        // Where the trial would write lies something that it could not remove.
        let in_the_way = directory.path().join(crate::disk::file::TRIAL_FILE);
        std::fs::create_dir(&in_the_way).unwrap();
        for backend in [Backend::Auto, Backend::IoUring] {
            let error = open(directory.path(), backend, None).err().unwrap();
            assert!(matches!(error, DiskError::Locked { .. }), "{error}");
        }
        drop(owner);
        std::fs::remove_dir(&in_the_way).unwrap();
        // What a process left that was killed in between is taken away.
        std::fs::write(&in_the_way, b"left").unwrap();
        drop(open(directory.path(), Backend::Auto, Some(FlushMode::Dsync)).unwrap());
        assert!(!in_the_way.exists());
    }

    #[test]
    fn a_flush_mode_can_be_forced_on_either() {
        let directory = tempfile::tempdir_in(".").unwrap();
        for mode in [FlushMode::Dsync, FlushMode::DrainedFsync] {
            for backend in [Backend::Auto, Backend::Pwrite] {
                let disk = open(directory.path(), backend, Some(mode)).unwrap();
                assert_eq!(disk.facts().flush_mode, Some(mode));
            }
        }
        let disk = open(directory.path(), Backend::Pwrite, None).unwrap();
        assert_eq!(
            (disk.facts().backend, disk.facts().fallbacks.len()),
            ("pwrite", 0)
        );
    }

    #[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
    #[test]
    fn without_rings_auto_falls_back_and_force_fails() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let disk = open(directory.path(), Backend::Auto, None).unwrap();
        assert_eq!(
            (disk.facts().backend, disk.facts().fallbacks.len()),
            ("pwrite", 1)
        );
        let error = open(directory.path(), Backend::IoUring, None)
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("use io_uring for"), "{error}");
    }
}
