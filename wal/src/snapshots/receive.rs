//! A snapshot that comes from somebody else, chunk by chunk.
//!
//! The manifest is at hand before the first chunk, and written after the last. So nothing that lies in the directory
//! is believed: each time it is taken up again its chunks are compared with the manifest that came, whether that is
//! the one from before or another sender's.

use bytes::Bytes;
use logdrive_raft::wire::Decode;
use logdrive_raft::{GroupId, SnapshotId, mutated};

use super::error::SnapshotError;
use super::files::{Files, check_name};
use super::manifest::{Manifest, SnapshotSummary, chunk_offset};
use super::shared::{Claim, FLUSH_CHUNKS, Pace, Shared};

/// Puts a snapshot together. What is there is kept when it is dropped, for [`receive`] to go on with.
///
/// [`receive`]: super::SnapshotStore::receive
pub struct Receiving<F: Files> {
    claim: Claim<F>,
    directory: String,
    manifest: Manifest,
    manifest_bytes: Bytes,
    /// Of each file, of which chunks what the manifest says was written.
    have: Vec<Vec<bool>>,
    bytes_have: u64,
    chunks_missing: u64,
    /// How many chunks were written since it was taken up.
    written: usize,
    pace: Box<Pace<'static>>,
    ended: bool,
}

impl<F: Files> std::fmt::Debug for Receiving<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiving")
            .field("directory", &self.directory)
            .field("bytes_have", &self.bytes_have)
            .field("chunks_missing", &self.chunks_missing)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl<F: Files> Receiving<F> {
    pub(super) fn resume(
        claim: Claim<F>,
        group: GroupId,
        manifest_bytes: Bytes,
        pace: Box<Pace<'static>>,
    ) -> Result<Self, SnapshotError> {
        let manifest = Manifest::from_bytes(&manifest_bytes).map_err(SnapshotError::Manifest)?;
        if manifest.group != group {
            return Err(SnapshotError::OtherGroup {
                wanted: group,
                found: manifest.group,
            });
        }
        let have = manifest.files.iter();
        let have = have.map(|file| vec![false; file.chunks.len()]).collect();
        let mut receiving = Self {
            directory: claim.directory(),
            claim,
            have,
            bytes_have: 0,
            chunks_missing: manifest.chunks_total(),
            written: 0,
            manifest,
            manifest_bytes,
            pace,
            ended: false,
        };
        receiving.make_files()?;
        receiving.look()?;
        Ok(receiving)
    }

    /// Which snapshot it is going to be.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        Manifest::id_of(&self.manifest_bytes)
    }

    /// What is in it.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The numbers of file and chunk that are still to come, in the order of the manifest.
    pub fn missing(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let files = (0..).zip(&self.have);
        files.flat_map(|(file, chunks)| {
            let chunks = (0..).zip(chunks);
            chunks.filter_map(move |(chunk, is_here)| (!is_here).then_some((file, chunk)))
        })
    }

    /// How many chunks are still to come.
    #[must_use]
    pub fn chunks_missing(&self) -> u64 {
        self.chunks_missing
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.manifest.bytes_total()
    }

    /// How many of them are here.
    #[must_use]
    pub fn bytes_have(&self) -> u64 {
        self.bytes_have
    }

    /// Takes a chunk, in any order. One that is here already is not written again.
    pub fn put(&mut self, file: u32, chunk: u32, bytes: &[u8]) -> Result<(), SnapshotError> {
        if self.ended {
            return Err(SnapshotError::Ended);
        }
        let row = self.manifest.files.get(file as usize);
        let row = row.filter(|row| row.chunk_bytes(chunk).is_some());
        let Some(row) = row else {
            return Err(SnapshotError::NoSuchChunk { file, chunk });
        };
        let checked = row.check_chunk(chunk, bytes);
        checked.map_err(|why| SnapshotError::WrongChunk { file, chunk, why })?;
        if self.have[file as usize][chunk as usize] {
            return Ok(());
        }
        let mut state = self.claim.shared().lock();
        let (files, offset) = (&mut state.files, chunk_offset(chunk));
        files.write_at(&self.directory, &row.name, offset, bytes)?;
        self.written += 1;
        if self.written.is_multiple_of(FLUSH_CHUNKS) {
            files.flush(&self.directory, &row.name)?;
        }
        drop(state);
        self.mark(file as usize, chunk, true);
        Ok(())
    }

    /// Makes all of it durable, reads it back and lets it count.
    ///
    /// Chunks that read back as something else, or not at all, are missing again: the error names the first, and
    /// whoever fetches them may finish once more. If a whole file fails its hash, no chunk of it does, and the
    /// manifest is one that nobody can satisfy.
    pub fn finish(&mut self) -> Result<SnapshotSummary, SnapshotError> {
        if self.ended {
            return Err(SnapshotError::Ended);
        }
        if self.chunks_missing > 0 {
            let missing = self.chunks_missing;
            return Err(SnapshotError::Incomplete { missing });
        }
        let shared = self.claim.shared().clone();
        if mutated!(shared.lock().mutant, InstallHalf) {
            return self.publish_half(&shared);
        }
        for file in &self.manifest.files {
            shared.lock().files.flush(&self.directory, &file.name)?;
        }
        shared.write_manifest(&self.directory, &self.manifest_bytes)?;
        shared.lock().files.sync_directory(&self.directory)?;
        let id = self.id();
        let mut bad = Vec::new();
        let found = shared.read_back(
            &self.directory,
            &self.manifest,
            id,
            &mut *self.pace,
            |file, chunk| bad.push((file, chunk)),
        );
        for (file, chunk) in bad {
            self.mark(file, chunk, false);
        }
        found?;
        let finished = shared.publish(
            &self.directory,
            &self.manifest,
            &self.manifest_bytes,
            &mut *self.pace,
        )?;
        self.ended = true;
        Ok(finished)
    }

    /// What a mutant does: the name comes first.
    fn publish_half(&mut self, shared: &Shared<F>) -> Result<SnapshotSummary, SnapshotError> {
        shared.write_manifest(&self.directory, &self.manifest_bytes)?;
        let finished = shared.publish(
            &self.directory,
            &self.manifest,
            &self.manifest_bytes,
            &mut *self.pace,
        )?;
        self.ended = true;
        Ok(finished)
    }

    /// Removes what is there.
    pub fn abandon(mut self) -> Result<(), SnapshotError> {
        if self.ended {
            return Err(SnapshotError::Ended);
        }
        self.ended = true;
        let shared = self.claim.shared();
        shared.remove_directory(&self.directory)?;
        shared.lock().files.sync_root()?;
        Ok(())
    }

    /// Makes the directory hold the files of the manifest, none of them too long, and no others.
    fn make_files(&self) -> Result<(), SnapshotError> {
        let mut state = self.shared().lock();
        let files = &mut state.files;
        if !files.directories()?.contains(&self.directory) {
            files.create_directory(&self.directory)?;
        }
        let mut listed = files.files(&self.directory)?;
        // Somebody else's files cannot be removed by their names.
        if listed.iter().any(|found| check_name(&found.name).is_err()) {
            files.remove_directory(&self.directory)?;
            files.create_directory(&self.directory)?;
            listed.clear();
        }
        for found in &listed {
            let wanted = self.manifest.files.iter();
            let mut wanted = wanted.filter(|file| file.name == found.name);
            match wanted.next() {
                None => files.remove_file(&self.directory, &found.name)?,
                Some(file) if found.bytes > file.bytes => {
                    files.cut_file(&self.directory, &file.name, file.bytes)?;
                }
                Some(_) => {}
            }
        }
        for file in &self.manifest.files {
            if !listed.iter().any(|found| found.name == file.name) {
                files.create_file(&self.directory, &file.name)?;
            }
        }
        Ok(())
    }

    /// Finds out which chunks are here.
    fn look(&mut self) -> Result<(), SnapshotError> {
        let shared = self.shared().clone();
        let listed = shared.lock().files.files(&self.directory)?;
        let mut buffer = Vec::new();
        for number in 0..self.manifest.files.len() {
            let file = &self.manifest.files[number];
            let found = listed.iter().find(|found| found.name == file.name);
            let written = found.map_or(0, |found| found.bytes);
            // What a flush that failed has lost still shows in the cache.
            shared
                .lock()
                .files
                .forget_cached(&self.directory, &file.name);
            let mut here = Vec::new();
            for chunk in file.chunk_numbers() {
                if chunk_offset(chunk) >= written {
                    break;
                }
                // One that is bad or cannot be read is missing like one that never came.
                let read = shared.read_chunk(&self.directory, file, chunk, &mut buffer);
                if read.is_ok() {
                    here.push(chunk);
                }
                if (self.pace)(buffer.len()).is_break() {
                    return Err(SnapshotError::Cancelled);
                }
            }
            for chunk in here {
                self.mark(number, chunk, true);
            }
        }
        Ok(())
    }

    /// Notes whether a chunk is here.
    fn mark(&mut self, file: usize, chunk: u32, is_here: bool) {
        let before = std::mem::replace(&mut self.have[file][chunk as usize], is_here);
        let bytes = self.manifest.files[file].chunk_bytes(chunk).unwrap_or(0) as u64;
        match (before, is_here) {
            (false, true) => {
                self.bytes_have += bytes;
                self.chunks_missing -= 1;
            }
            (true, false) => {
                self.bytes_have -= bytes;
                self.chunks_missing += 1;
            }
            _ => {}
        }
    }

    fn shared(&self) -> &Shared<F> {
        self.claim.shared()
    }
}
