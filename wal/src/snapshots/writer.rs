//! A snapshot that is being written.

use bytes::Bytes;
use logdrive_raft::wire::{Decode, Encode};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::error::SnapshotError;
use super::files::{Files, check_name};
use super::manifest::{
    CHUNK_BYTES, CHUNKS_MAX, FILES_MAX, MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestFile,
    SnapshotSummary,
};
use super::shared::{Claim, FLUSH_CHUNKS, Pace, Shared};
use super::store::SnapshotMeta;

/// Takes a snapshot file by file. It counts once [`finish`](Self::finish) says so, and not before.
///
/// After an error, or if it is dropped, what was written is removed as far as that works, and what is left goes when
/// the store is opened or the group's next snapshot is begun.
pub struct SnapshotWriter<F: Files> {
    claim: Claim<F>,
    directory: String,
    manifest: Manifest,
    /// What its encoding takes so far.
    manifest_bytes: usize,
    /// The end of the last file that does not fill a chunk yet.
    buffer: Vec<u8>,
    hash: Box<Xxh3>,
    pace: Box<Pace<'static>>,
    ended: bool,
}

impl<F: Files> std::fmt::Debug for SnapshotWriter<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("directory", &self.directory)
            .field("files", &self.manifest.files.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl<F: Files> SnapshotWriter<F> {
    pub(super) fn begin(
        claim: Claim<F>,
        meta: SnapshotMeta,
        pace: Box<Pace<'static>>,
    ) -> Result<Self, SnapshotError> {
        let manifest = Manifest {
            compatible: 0,
            cluster: meta.cluster,
            node: meta.node,
            group: meta.group,
            anchor: meta.anchor,
            files: Vec::new(),
        };
        // Nobody could read a snapshot with an anchor that is beyond its limits.
        let bytes = manifest.to_bytes();
        Manifest::from_bytes(&bytes).map_err(SnapshotError::Manifest)?;
        let directory = claim.directory();
        let shared = claim.shared();
        if shared.lock().files.directories()?.contains(&directory) {
            shared.remove_directory(&directory)?;
        }
        shared.lock().files.create_directory(&directory)?;
        Ok(Self {
            claim,
            directory,
            manifest,
            manifest_bytes: bytes.len(),
            buffer: Vec::with_capacity(CHUNK_BYTES),
            hash: Box::new(Xxh3::new()),
            pace,
            ended: false,
        })
    }

    /// Begins the next file. The one before it is complete, and durable when this returns.
    pub fn begin_file(&mut self, name: &str) -> Result<(), SnapshotError> {
        self.attempt(|writer| writer.try_begin_file(name))
    }

    /// Appends to the file that was begun last.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.attempt(|writer| writer.try_write(bytes))
    }

    /// Makes all of it durable, reads it back and lets it count.
    pub fn finish(mut self) -> Result<SnapshotSummary, SnapshotError> {
        let finished = self.attempt(Self::try_finish)?;
        self.ended = true;
        Ok(finished)
    }

    /// Does a part of the work. If it fails, that is all there was.
    fn attempt<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        if self.ended {
            return Err(SnapshotError::Ended);
        }
        part(self).inspect_err(|_| self.give_up())
    }

    fn give_up(&mut self) {
        self.ended = true;
        // What went wrong before is what the caller has to hear of, and what is left is not taken for a snapshot.
        let _ = self.shared().remove_directory(&self.directory);
    }

    fn try_begin_file(&mut self, name: &str) -> Result<(), SnapshotError> {
        self.end_file()?;
        check_name(name)?;
        let is_taken = self.manifest.files.iter().any(|file| file.name == name);
        if is_taken || name == MANIFEST_FILE {
            return Err(SnapshotError::NameTaken(name.to_owned()));
        }
        let file = ManifestFile {
            name: name.to_owned(),
            bytes: 0,
            hash: 0,
            chunks: Vec::new(),
        };
        if self.manifest.files.len() == FILES_MAX {
            return Err(too_large());
        }
        self.enlarge_manifest(file.to_bytes().len())?;
        self.shared()
            .lock()
            .files
            .create_file(&self.directory, name)?;
        self.manifest.files.push(file);
        Ok(())
    }

    fn try_write(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        if self.manifest.files.is_empty() {
            return Err(SnapshotError::NoFile);
        }
        while !bytes.is_empty() {
            let room = CHUNK_BYTES - self.buffer.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if self.buffer.len() == CHUNK_BYTES {
                self.write_chunk()?;
            }
        }
        Ok(())
    }

    /// Writes what the buffer holds as the next chunk.
    fn write_chunk(&mut self) -> Result<(), SnapshotError> {
        self.enlarge_manifest(size_of::<u64>())?;
        let Some(file) = self.manifest.files.last_mut() else {
            return Err(SnapshotError::NoFile);
        };
        let mut state = self.claim.shared().lock();
        let files = &mut state.files;
        files.write_at(&self.directory, &file.name, file.bytes, &self.buffer)?;
        if (file.chunks.len() + 1).is_multiple_of(FLUSH_CHUNKS) {
            files.flush(&self.directory, &file.name)?;
        }
        drop(state);
        self.hash.update(&self.buffer);
        file.chunks.push(xxh3_64(&self.buffer));
        file.bytes += self.buffer.len() as u64;
        let written = self.buffer.len();
        self.buffer.clear();
        if (self.pace)(written).is_break() {
            return Err(SnapshotError::Cancelled);
        }
        Ok(())
    }

    /// Completes and flushes the last file, if there is one.
    fn end_file(&mut self) -> Result<(), SnapshotError> {
        if !self.buffer.is_empty() {
            self.write_chunk()?;
        }
        if let Some(file) = self.manifest.files.last_mut() {
            file.hash = self.hash.digest128();
            self.hash.reset();
            let mut state = self.claim.shared().lock();
            state.files.flush(&self.directory, &file.name)?;
        }
        Ok(())
    }

    fn enlarge_manifest(&mut self, bytes: usize) -> Result<(), SnapshotError> {
        self.manifest_bytes += bytes;
        if self.manifest_bytes > MANIFEST_BYTES_MAX {
            return Err(too_large());
        }
        Ok(())
    }

    fn try_finish(&mut self) -> Result<SnapshotSummary, SnapshotError> {
        self.end_file()?;
        let shared = self.shared().clone();
        let bytes: Bytes = self.manifest.to_bytes();
        let id = Manifest::id_of(&bytes);
        shared.write_manifest(&self.directory, &bytes)?;
        shared.lock().files.sync_directory(&self.directory)?;
        let (directory, manifest) = (&self.directory, &self.manifest);
        shared.read_back(directory, manifest, id, &mut *self.pace, |_, _| {})?;
        shared.publish(directory, manifest, &bytes, &mut *self.pace)
    }

    fn shared(&self) -> &Shared<F> {
        self.claim.shared()
    }
}

impl<F: Files> Drop for SnapshotWriter<F> {
    fn drop(&mut self) {
        if !self.ended {
            self.give_up();
        }
    }
}

fn too_large() -> SnapshotError {
    SnapshotError::TooLarge {
        files_max: FILES_MAX,
        chunks_max: CHUNKS_MAX,
    }
}
