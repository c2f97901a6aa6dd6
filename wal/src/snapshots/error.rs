//! Why something with a snapshot did not work.

use std::io;
use std::path::PathBuf;

use logdrive_raft::wire::DecodeError;
use logdrive_raft::{GroupId, SnapshotId};

use super::files::{FilesError, NameError};

/// Why a snapshot was not written, read, received or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is no space left.
    #[error("no space left for {}", path.display())]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system refused something else.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What was written reads back as something else.
    #[error("{}{}: {why}", path.display(), in_chunk(*chunk))]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which of its chunks, if it is one.
        chunk: Option<u32>,
        /// What is wrong with it.
        why: Damage,
    },
    /// A manifest that came from elsewhere, or would be written, is none.
    #[error("the manifest of a snapshot is not valid: {0}")]
    Manifest(DecodeError),
    /// There is no such snapshot here.
    #[error("there is no snapshot {0} here")]
    Unknown(SnapshotId),
    /// One attempt a group at a time.
    #[error("a snapshot of group {group} is {what} already")]
    Busy {
        /// Which group.
        group: GroupId,
        /// `being written` or `being received`.
        what: &'static str,
    },
    /// The caller's pace said so.
    #[error("cancelled")]
    Cancelled,
    /// The attempt has failed before, or is finished.
    #[error("the attempt has ended before")]
    Ended,
    /// A file cannot be called that.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name is one of the store's own, or another file of the snapshot has it.
    #[error("{0:?} is taken")]
    NameTaken(String),
    /// Bytes came before the first file was begun.
    #[error("no file was begun that the bytes belong to")]
    NoFile,
    /// More files, or more chunks, than a manifest lists.
    #[error("a snapshot has at most {files_max} files, and {chunks_max} chunks of 256 KiB")]
    TooLarge {
        /// The most files.
        files_max: usize,
        /// The most chunks, names and anchor not counted.
        chunks_max: usize,
    },
    /// The snapshot is another group's.
    #[error("the snapshot is of group {found} and not of group {wanted}")]
    OtherGroup {
        /// Which group it was wanted for.
        wanted: GroupId,
        /// Which it is of.
        found: GroupId,
    },
    /// The snapshot has no such file, or the file no such chunk.
    #[error("the snapshot has no chunk {chunk} of file {file}")]
    NoSuchChunk {
        /// The file's number in the manifest.
        file: u32,
        /// The chunk's number in the file.
        chunk: u32,
    },
    /// A chunk came that is not the one in the manifest. Nothing was written.
    #[error("what came for chunk {chunk} of file {file} is not what the manifest says: {why}")]
    WrongChunk {
        /// The file's number in the manifest.
        file: u32,
        /// The chunk's number in the file.
        chunk: u32,
        /// What is wrong with it.
        why: Damage,
    },
    /// Chunks are missing.
    #[error("{missing} chunks are missing")]
    Incomplete {
        /// How many.
        missing: u64,
    },
}

/// What is wrong with a file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// It should not be there.
    #[error("it is not in the manifest")]
    Unlisted,
    /// It is shorter or longer than it was.
    #[error("{found} bytes instead of {expected}")]
    Length {
        /// How long it should be.
        expected: u64,
        /// How long it is.
        found: u64,
    },
    /// Its bytes are others.
    #[error("fails its checksum")]
    Checksum,
    /// The hash of the whole file is another, with every chunk as it should be.
    #[error("fails the hash of the whole file")]
    Hash,
    /// The directory's name says something else than the manifest in it.
    #[error("lies in a directory whose name does not fit")]
    Misplaced,
    /// It is a manifest and says nothing that this build understands.
    #[error(transparent)]
    Manifest(DecodeError),
}

impl From<FilesError> for SnapshotError {
    fn from(error: FilesError) -> Self {
        let no_space = error.is_no_space();
        let FilesError { what, path, source } = error;
        if no_space {
            return Self::NoSpace { path, source };
        }
        Self::Io { what, path, source }
    }
}

fn in_chunk(chunk: Option<u32>) -> String {
    match chunk {
        Some(chunk) => format!(" in chunk {chunk}"),
        None => String::new(),
    }
}
