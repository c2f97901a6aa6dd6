//! What a store of snapshots needs of a file system: a root, directories one level deep, files in them.
//!
//! Every call blocks. Nothing is durable before it is flushed: contents by [`Files::flush`], names in a directory
//! by [`Files::sync_directory`], names of directories by [`Files::sync_root`].

use std::io;
use std::path::PathBuf;

/// The most bytes of a name. The longest that the store makes itself has 84.
pub const NAME_BYTES_MAX: usize = 96;

/// Directories one level below a root, and files in them.
///
/// Names are checked by [`check_name`], so that none leads out of the root. What is made must not exist, what is
/// used must.
pub trait Files: Send {
    /// Where a file of this name lies, for messages; without a file, the directory.
    fn path(&self, directory: &str, file: Option<&str>) -> PathBuf;

    /// The names of all directories in the root, also of those that [`check_name`] refuses. What is no directory
    /// is left out, and so are symbolic links.
    fn directories(&mut self) -> Result<Vec<String>, FilesError>;

    /// Makes an empty directory.
    fn create_directory(&mut self, directory: &str) -> Result<(), FilesError>;

    /// Gives a directory another name. No other directory may have it.
    fn rename_directory(&mut self, from: &str, to: &str) -> Result<(), FilesError>;

    /// Removes a directory and the files in it.
    fn remove_directory(&mut self, directory: &str) -> Result<(), FilesError>;

    /// Makes durable which directories there are, and their names.
    fn sync_root(&mut self) -> Result<(), FilesError>;

    /// The files of a directory, in the order of their names.
    fn files(&mut self, directory: &str) -> Result<Vec<FileListed>, FilesError>;

    /// Makes an empty file.
    fn create_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError>;

    /// Removes a file.
    fn remove_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError>;

    /// Makes a file shorter.
    fn cut_file(&mut self, directory: &str, file: &str, bytes: u64) -> Result<(), FilesError>;

    /// Writes all of the bytes. Beyond the end of the file it makes the file longer.
    fn write_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), FilesError>;

    /// Makes durable what was written to a file, and its length.
    fn flush(&mut self, directory: &str, file: &str) -> Result<(), FilesError>;

    /// Makes durable which files there are in a directory.
    fn sync_directory(&mut self, directory: &str) -> Result<(), FilesError>;

    /// Reads until `into` is full or the file ends, and says how many bytes that were.
    fn read_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        into: &mut [u8],
    ) -> Result<usize, FilesError>;

    /// Sees to it that later reads of a flushed file come from the medium, as far as that can be had.
    fn forget_cached(&mut self, directory: &str, file: &str);

    /// How much may still be written. `None`: nobody knows.
    fn free_bytes(&self) -> Option<u64>;
}

impl<F: Files + ?Sized> Files for Box<F> {
    fn path(&self, directory: &str, file: Option<&str>) -> PathBuf {
        (**self).path(directory, file)
    }

    fn directories(&mut self) -> Result<Vec<String>, FilesError> {
        (**self).directories()
    }

    fn create_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        (**self).create_directory(directory)
    }

    fn rename_directory(&mut self, from: &str, to: &str) -> Result<(), FilesError> {
        (**self).rename_directory(from, to)
    }

    fn remove_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        (**self).remove_directory(directory)
    }

    fn sync_root(&mut self) -> Result<(), FilesError> {
        (**self).sync_root()
    }

    fn files(&mut self, directory: &str) -> Result<Vec<FileListed>, FilesError> {
        (**self).files(directory)
    }

    fn create_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        (**self).create_file(directory, file)
    }

    fn remove_file(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        (**self).remove_file(directory, file)
    }

    fn cut_file(&mut self, directory: &str, file: &str, bytes: u64) -> Result<(), FilesError> {
        (**self).cut_file(directory, file, bytes)
    }

    fn write_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        bytes: &[u8],
    ) -> Result<(), FilesError> {
        (**self).write_at(directory, file, offset_bytes, bytes)
    }

    fn flush(&mut self, directory: &str, file: &str) -> Result<(), FilesError> {
        (**self).flush(directory, file)
    }

    fn sync_directory(&mut self, directory: &str) -> Result<(), FilesError> {
        (**self).sync_directory(directory)
    }

    fn read_at(
        &mut self,
        directory: &str,
        file: &str,
        offset_bytes: u64,
        into: &mut [u8],
    ) -> Result<usize, FilesError> {
        (**self).read_at(directory, file, offset_bytes, into)
    }

    fn forget_cached(&mut self, directory: &str, file: &str) {
        (**self).forget_cached(directory, file);
    }

    fn free_bytes(&self) -> Option<u64> {
        (**self).free_bytes()
    }
}

/// A file as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileListed {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// What a file system refused, and where.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct FilesError {
    /// What was tried.
    pub what: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FilesError {
    /// Wraps what the system said when `what` was tried on `path`.
    #[must_use]
    pub fn new(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self { what, path, source }
    }

    /// Whether there is no space left.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// A name that no file or directory of a store may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no name for a file: it takes 1 to {NAME_BYTES_MAX} of a-z, 0-9, '.', '_' and '-', and does not \
     begin with a dot"
)]
pub struct NameError {
    /// The name.
    pub name: String,
}

/// Refuses what could lead out of a directory, hide in it, or be taken for another name by some file system.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let length_fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    if length_fits && name.bytes().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(NameError {
        name: name.to_owned(),
    })
}
