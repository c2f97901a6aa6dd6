//! Snapshots of a state machine: its state as a set of named files, and back.
//!
//! What the files hold is the machine's business. Where they lie, that they are whole and to which entry they
//! belong is the business of whoever writes and reads them here, and so is moving them between nodes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use bytes::Bytes;
use logdrive_raft::LogPosition;

/// The state of a machine at one point, which can be written down while the machine goes on.
pub trait SnapshotSource: Send + 'static {
    /// Writes the state as a set of named files.
    ///
    /// Runs once, on a thread of its own, while `apply` and readers go on: what it holds must not change
    /// under it, and it must not make them wait for more than moments. It may be dropped instead of being
    /// written.
    ///
    /// An error of the machine's own travels as [`io::Error::other`]. One of the writer's, such as a full
    /// disk, is handed back as it is. Either way, and if it panics, there is no snapshot and the machine goes
    /// on: another one is taken later.
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()>;
}

/// Where a snapshot is written to.
pub trait SnapshotWriter {
    /// Begins a file, and ends the one before. What is written to it is the file's content; many small
    /// writes belong in a `BufWriter`, which has to be flushed at the end.
    ///
    /// # Errors
    ///
    /// If [`check_file_name`] does not allow the name, if there is a file of that name already, or if there
    /// is no room.
    fn begin_file(&mut self, name: &str) -> io::Result<&mut dyn Write>;
}

/// Where a snapshot is read from.
pub trait SnapshotReader {
    /// The last entry in the snapshot. It need not be one that the machine was given: see
    /// [`StateMachine`](crate::StateMachine) on indices that are missing.
    fn position(&self) -> LogPosition;

    /// Name and bytes of each file, in the order of the names.
    fn files(&self) -> Vec<(String, u64)>;

    /// The content of a file. Its bytes are those that were written: they are verified before they are
    /// handed out. A file may be read again, from its beginning.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or it cannot be read.
    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>>;

    /// The whole content of the file [`STATE_FILE`], for a machine whose snapshot is nothing else.
    ///
    /// # Errors
    ///
    /// If it is longer than `bytes_max`, if there is none, or it cannot be read.
    fn read_all(&mut self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let file = self.file(STATE_FILE)?;
        file.take(bytes_max.saturating_add(1))
            .read_to_end(&mut content)?;
        if bytes_max < content.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the file {STATE_FILE:?} of the snapshot is longer than {bytes_max} bytes"),
            ));
        }
        Ok(content)
    }
}

/// The one file of a snapshot that is bytes.
pub const STATE_FILE: &str = "state";

/// The longest name of a file in a snapshot.
pub const FILE_NAME_BYTES_MAX: usize = 64;

/// Whether a file of a snapshot may have this name: 1 to 64 bytes of `a` to `z`, `0` to `9`, `.`, `_` and
/// `-`, the first of which is no dot.
///
/// # Errors
///
/// If it may not.
pub fn check_file_name(name: &str) -> io::Result<()> {
    let fits = !name.is_empty() && name.len() <= FILE_NAME_BYTES_MAX;
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    if fits && name.bytes().all(known) && !name.starts_with('.') {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{name:?} is no name for a file of a snapshot: 1 to {FILE_NAME_BYTES_MAX} bytes of a-z, 0-9, \
             '.', '_' and '-', and no dot first"
        ),
    ))
}

impl SnapshotSource for Vec<u8> {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        out.begin_file(STATE_FILE)?.write_all(&self)
    }
}

impl SnapshotSource for Bytes {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        out.begin_file(STATE_FILE)?.write_all(&self)
    }
}

/// A snapshot in memory, for tests of machines.
///
/// ```
/// use logdrive_raft::LogPosition;
/// use logdrive_shard::{MemorySnapshot, SnapshotReader};
///
/// let at = LogPosition::default();
/// let mut snapshot = MemorySnapshot::of(b"deep".to_vec(), at)?;
/// assert_eq!(snapshot.files(), [("state".to_owned(), 4)]);
/// assert_eq!(snapshot.read_all(4)?, b"deep");
/// assert!(snapshot.read_all(3).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemorySnapshot {
    /// The last entry in it.
    pub position: LogPosition,
    /// The content of each file, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl MemorySnapshot {
    /// An empty one, to be written to.
    #[must_use]
    pub fn new(position: LogPosition) -> Self {
        Self {
            position,
            files: BTreeMap::new(),
        }
    }

    /// What `source` writes.
    ///
    /// # Errors
    ///
    /// Its own.
    pub fn of(source: impl SnapshotSource, position: LogPosition) -> io::Result<Self> {
        let mut snapshot = Self::new(position);
        source.write_to(&mut snapshot)?;
        Ok(snapshot)
    }
}

impl SnapshotWriter for MemorySnapshot {
    fn begin_file(&mut self, name: &str) -> io::Result<&mut dyn Write> {
        check_file_name(name)?;
        if self.files.contains_key(name) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("the snapshot has a file {name:?} already"),
            ));
        }
        Ok(self.files.entry(name.to_owned()).or_default())
    }
}

impl SnapshotReader for MemorySnapshot {
    fn position(&self) -> LogPosition {
        self.position
    }

    fn files(&self) -> Vec<(String, u64)> {
        let files = self.files.iter();
        files
            .map(|(name, content)| (name.clone(), content.len() as u64))
            .collect()
    }

    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        match self.files.get(name) {
            Some(content) => Ok(Box::new(&content[..])),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the snapshot has no file {name:?}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufWriter;

    use super::*;

    #[test]
    fn files_have_names_that_every_file_system_takes() {
        let longest = "x".repeat(FILE_NAME_BYTES_MAX);
        for name in ["a", "state", "table-0001.part_2", "-", "9..", &longest] {
            assert!(check_file_name(name).is_ok(), "{name}");
        }
        let too_long = "x".repeat(FILE_NAME_BYTES_MAX + 1);
        for name in [
            "", ".", "..", ".a", "A", "a/b", "a\\b", "a b", "a\0", "\u{e4}", &too_long,
        ] {
            let error = check_file_name(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn a_writer_takes_what_is_copied_and_what_is_buffered() {
        let mut snapshot = MemorySnapshot::default();
        let out: &mut dyn SnapshotWriter = &mut snapshot;
        io::copy(&mut &b"copied"[..], out.begin_file("one").unwrap()).unwrap();
        let mut buffered = BufWriter::new(out.begin_file("two").unwrap());
        buffered.write_all(b"buffered").unwrap();
        buffered.flush().unwrap();
        drop(buffered);
        assert!(out.begin_file("one").is_err());
        assert!(out.begin_file("../three").is_err());
        let files = snapshot.files();
        assert_eq!(files, [("one".to_owned(), 6), ("two".to_owned(), 8)]);
        let mut content = Vec::new();
        let mut file = snapshot.file("two").unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"buffered");
    }

    #[test]
    fn a_snapshot_that_is_bytes_is_one_file() {
        let at = LogPosition::default();
        let mut vec = MemorySnapshot::of(vec![1, 2, 3], at).unwrap();
        let bytes = MemorySnapshot::of(Bytes::from_static(&[1, 2, 3]), at).unwrap();
        assert_eq!(vec, bytes);
        assert_eq!(vec.read_all(u64::MAX).unwrap(), [1, 2, 3]);
        let error = vec.read_all(2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut empty = MemorySnapshot::default();
        assert_eq!(
            empty.read_all(9).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
