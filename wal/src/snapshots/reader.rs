//! Reading the files of a finished snapshot. No byte is handed out before its chunk was compared with the manifest.

use std::io::{self, Read};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::error::{Damage, SnapshotError};
use super::files::Files;
use super::manifest::{CHUNK_BYTES, Manifest, ManifestFile};
use super::shared::{Held, Shared};

/// The files of a snapshot.
///
/// It does not keep the snapshot from being removed; reading fails then.
#[derive(Debug)]
pub struct SnapshotReader<F: Files> {
    shared: Shared<F>,
    held: Arc<Held>,
}

/// One file of a snapshot, from front to back, in memory of one chunk.
pub struct SnapshotFileReader<F: Files> {
    shared: Shared<F>,
    held: Arc<Held>,
    file: usize,
    /// The chunk to read next.
    next: u32,
    /// The chunk that was read last, and how much of it [`Read`] has handed out.
    buffer: Vec<u8>,
    taken: usize,
    hash: Box<Xxh3>,
}

impl<F: Files> SnapshotReader<F> {
    pub(super) fn new(shared: Shared<F>, held: Arc<Held>) -> Self {
        Self { shared, held }
    }

    /// What is in the snapshot.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.held.manifest
    }

    /// Its files, in the order they were written.
    #[must_use]
    pub fn files(&self) -> &[ManifestFile] {
        &self.held.manifest.files
    }

    /// Begins to read a file. `None`: there is none of this name.
    #[must_use]
    pub fn open(&self, name: &str) -> Option<SnapshotFileReader<F>> {
        let file = self.files().iter().position(|file| file.name == name)?;
        Some(SnapshotFileReader {
            shared: self.shared.clone(),
            held: Arc::clone(&self.held),
            file,
            next: 0,
            buffer: Vec::new(),
            taken: 0,
            hash: Box::new(Xxh3::new()),
        })
    }
}

impl<F: Files> SnapshotFileReader<F> {
    /// The next chunk, without what [`Read`] has left of the one before; `None` at the end of the file. The last one
    /// comes only if the hash of the whole file fits, too.
    pub fn next_chunk(&mut self) -> Result<Option<&[u8]>, SnapshotError> {
        if !self.read_next()? {
            return Ok(None);
        }
        self.taken = self.buffer.len();
        Ok(Some(&self.buffer))
    }

    /// Reads the next chunk into the buffer. False: there is none.
    fn read_next(&mut self) -> Result<bool, SnapshotError> {
        let file = &self.held.manifest.files[self.file];
        self.taken = 0;
        self.buffer.clear();
        if !file.chunk_numbers().contains(&self.next) {
            return Ok(false);
        }
        let directory = &self.held.directory;
        let mut bytes = std::mem::take(&mut self.buffer);
        self.shared
            .read_chunk(directory, file, self.next, &mut bytes)?;
        self.hash.update(&bytes);
        let is_last = self.next + 1 == file.chunk_numbers().end;
        if is_last && self.hash.digest128() != file.hash {
            return Err(SnapshotError::Damaged {
                path: self.shared.path(directory, Some(&file.name)),
                chunk: None,
                why: Damage::Hash,
            });
        }
        self.buffer = bytes;
        self.next += 1;
        Ok(true)
    }
}

impl<F: Files> Read for SnapshotFileReader<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() && !self.read_next().map_err(io::Error::other)? {
            return Ok(0);
        }
        let rest = &self.buffer[self.taken..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

impl<F: Files> std::fmt::Debug for SnapshotFileReader<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotFileReader")
            .field("file", &self.held.manifest.files[self.file].name)
            .field("next_chunk", &self.next)
            .field("chunk_bytes", &CHUNK_BYTES)
            .finish_non_exhaustive()
    }
}
