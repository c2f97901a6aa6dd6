//! The files of a real file system.
//!
//! What was flushed or read leaves the page cache at once. It is not wanted a second time soon, would push out what
//! others use, and would be given back by the gigabyte when a snapshot goes: where a hypervisor takes what is free
//! from the machine, that is a stop of everything.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use super::files::{FileListed, Files, FilesError, check_name};

/// The most files that are kept open.
const HANDLES_MAX: usize = 8;

/// How much is read ahead.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
const AHEAD_BYTES: Option<NonZeroU64> = NonZeroU64::new(1 << 20);

/// A directory with directories in it, and files in those.
#[derive(Debug)]
pub struct DirectoryFiles {
    root: PathBuf,
    /// Those used last come last.
    handles: Vec<Handle>,
}

#[derive(Debug)]
struct Handle {
    directory: String,
    name: String,
    file: File,
}

impl DirectoryFiles {
    /// The directory at `root`, which is made if there is none, with what lies above it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let root = root.into();
        let made = fs::create_dir_all(&root);
        made.map_err(|source| FilesError::new("create", &root, source))?;
        // A root that was just made has to be found again after a power cut.
        if let Some(above) = root.parent().filter(|above| !above.as_os_str().is_empty()) {
            sync(above).map_err(|source| FilesError::new("flush", above, source))?;
        }
        let handles = Vec::new();
        Ok(Self { root, handles })
    }

    /// Where a directory lies. A link to another place is none.
    fn directory(&self, directory: &str) -> Result<PathBuf, FilesError> {
        let path = self.checked(directory, None)?;
        let found = fs::symlink_metadata(&path);
        let found = found.map_err(|source| FilesError::new("find", &path, source))?;
        if !found.is_dir() {
            let source = io::ErrorKind::NotADirectory.into();
            return Err(FilesError::new("find", path, source));
        }
        Ok(path)
    }

    fn file(&self, directory: &str, file: &str) -> Result<PathBuf, FilesError> {
        self.directory(directory)?;
        self.checked(directory, Some(file))
    }

    fn checked(&self, directory: &str, file: Option<&str>) -> Result<PathBuf, FilesError> {
        let path = Files::path(self, directory, file);
        for name in [Some(directory), file].into_iter().flatten() {
            if let Err(refused) = check_name(name) {
                let source = io::Error::new(io::ErrorKind::InvalidInput, refused);
                return Err(FilesError::new("use", path, source));
            }
        }
        Ok(path)
    }

    /// Does something with a file, which is opened if it is not.
    fn with<T>(
        &mut self,
        what: &'static str,
        directory: &str,
        file: &str,
        act: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<T, FilesError> {
        let known = |handle: &Handle| handle.directory == directory && handle.name == file;
        let handle = match self.handles.iter().position(known) {
            Some(place) => self.handles.remove(place),
            None => {
                let path = self.file(directory, file)?;
                let opened = open(&path, OpenOptions::new().read(true).write(true));
                Handle {
                    directory: directory.to_owned(),
                    name: file.to_owned(),
                    file: opened.map_err(|source| FilesError::new("open", path, source))?,
                }
            }
        };
        let done = act(&handle.file);
        self.keep(handle);
        done.map_err(|source| FilesError::new(what, self.path(directory, Some(file)), source))
    }

    fn keep(&mut self, handle: Handle) {
        if self.handles.len() == HANDLES_MAX {
            self.handles.remove(0);
        }
        self.handles.push(handle);
    }
}

impl Files for DirectoryFiles {
    fn path(&self, directory: &str, file: Option<&str>) -> PathBuf {
        let directory = self.root.join(directory);
        match file {
            Some(file) => directory.join(file),
            None => directory,
        }
    }

    fn directories(&mut self) -> Result<Vec<String>, FilesError> {
        let failed = |source| FilesError::new("list", &self.root, source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        let path = self.checked(directory, None)?;
        let mut builder = fs::DirBuilder::new();
        // It will hold what users wrote, and nobody else has to read that.
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let made = builder.create(&path);
        made.map_err(|source| FilesError::new("create", path, source))
    }

    fn rename_directory(&mut self, from: &str, to: &str) -> Result<(), FilesError> {
        let path = self.directory(from)?;
        let target = self.checked(to, None)?;
        // Some systems replace an empty directory.
        if fs::symlink_metadata(&target).is_ok() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(FilesError::new("rename to", target, source));
        }
        self.handles.retain(|handle| handle.directory != from);
        let renamed = fs::rename(&path, target);
        renamed.map_err(|source| FilesError::new("rename", path, source))
    }

    fn remove_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        let path = self.directory(directory)?;
        self.handles.retain(|handle| handle.directory != directory);
        let removed = remove(&path);
        removed.map_err(|source| FilesError::new("remove", path, source))
    }

    fn sync_root(&mut self) -> Result<(), FilesError> {
        sync(&self.root).map_err(|source| FilesError::new("flush", &self.root, source))
    }

    fn files(&mut self, directory: &str) -> Result<Vec<FileListed>, FilesError> {
        let path = self.directory(directory)?;
        let failed = |source| FilesError::new("list", &path, source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_file() {
                found.push(FileListed {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    bytes: metadata.len(),
                });
            }
        }
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn create_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        let path = self.file(directory, file)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let made = options.open(&path);
        let made = made.map_err(|source| FilesError::new("create", path, source))?;
        self.keep(Handle {
            directory: directory.to_owned(),
            name: file.to_owned(),
            file: made,
        });
        Ok(())
    }

    fn remove_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        let path = self.file(directory, file)?;
        self.handles
            .retain(|handle| handle.directory != directory || handle.name != file);
        fs::remove_file(&path).map_err(|source| FilesError::new("remove", path, source))
    }

    fn cut_file(&mut self, directory: &str, file: &str, bytes: u64) -> Result<(), FilesError> {
        self.with("cut", directory, file, |file| file.set_len(bytes))
    }

    fn write_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), FilesError> {
        self.with("write", directory, file, |file| {
            positional::write_all(file, bytes, offset_bytes)
        })
    }

    fn flush(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        self.with("flush", directory, file, |file| {
            file.sync_data()?;
            forget(file, 0, None);
            Ok(())
        })
    }

    fn sync_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        let path = self.directory(directory)?;
        sync(&path).map_err(|source| FilesError::new("flush", path, source))
    }

    fn read_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        into: &mut [u8],
    ) -> Result<usize, FilesError> {
        self.with("read", directory, file, |file| {
            let mut filled = 0;
            while filled < into.len() {
                let offset = offset_bytes.saturating_add(filled as u64);
                match positional::read(file, &mut into[filled..], offset) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            // From the beginning: the cache may hold what it read ahead in pieces that are larger than a read, and lets go
            // of none that is not all within. Nothing would be all of the file.
            if let Some(read) = NonZeroU64::new(offset_bytes.saturating_add(filled as u64)) {
                forget(file, 0, Some(read));
                fetch_ahead(file, read.get());
            }
            Ok(filled)
        })
    }

    fn forget_cached(&mut self, directory: &str, file: &str) {
        // Whoever asks reads the file next, and hears then what is wrong with it.
        let _ = self.with("open", directory, file, |file| {
            forget(file, 0, None);
            Ok(())
        });
    }

    fn free_bytes(&self) -> Option<u64> {
        free(&self.root)
    }
}

/// Opens a file that exists, and not one that a link leads to.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits();
        let flags = i32::try_from(flags).expect("flags of open are an int");
        std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags);
    }
    #[cfg(not(unix))]
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    options.open(path)
}

/// Directories within are not ours, and so keep what they are in.
fn remove(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(directory)
}

/// Makes the names in a directory durable.
#[cfg(unix)]
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere the file system orders this itself, or offers no way to ask.
#[cfg(not(unix))]
fn sync(_directory: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn forget(file: &File, from: u64, bytes: Option<NonZeroU64>) {
    // Advice: where it is not taken, the read says less and costs less.
    let _ = rustix::fs::fadvise(file, from, bytes, rustix::fs::Advice::DontNeed);
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn forget(_file: &File, _from: u64, _bytes: Option<NonZeroU64>) {}

/// Files are read from front to back: the device reads on while what was read is made use of.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn fetch_ahead(file: &File, from: u64) {
    let _ = rustix::fs::fadvise(file, from, AHEAD_BYTES, rustix::fs::Advice::WillNeed);
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn fetch_ahead(_file: &File, _from: u64) {}

#[cfg(unix)]
fn free(root: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(root).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free(_root: &Path) -> Option<u64> {
    None
}

#[cfg(unix)]
mod positional {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(into, offset)
    }

    pub(super) fn write_all(file: &File, from: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(from, offset)
    }
}

#[cfg(windows)]
mod positional {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub(super) fn read(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(into, offset)
    }

    pub(super) fn write_all(file: &File, mut from: &[u8], mut offset: u64) -> io::Result<()> {
        while !from.is_empty() {
            let written = file.seek_write(from, offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            from = &from[written..];
            offset += written as u64;
        }
        Ok(())
    }
}
