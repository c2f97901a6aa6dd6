//! Reading what lies in a directory, and comparing it with the manifest.

use bytes::Bytes;
use logdrive_raft::SnapshotId;
use logdrive_raft::wire::Decode;
use xxhash_rust::xxh3::Xxh3;

use super::error::{Damage, SnapshotError};
use super::files::Files;
use super::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestFile, chunk_offset};
use super::names::{Named, Place};
use super::shared::{Held, Pace, Shared};

impl<F: Files> Shared<F> {
    /// Reads a manifest and makes sure that it is the one that the directory is named after.
    pub(super) fn read_held(&self, place: Place) -> Result<Held, SnapshotError> {
        let directory = Named::Finished(place).name();
        let damaged = |why| SnapshotError::Damaged {
            path: self.path(&directory, Some(MANIFEST_FILE)),
            chunk: None,
            why,
        };
        let bytes = self.read_manifest(&directory)?;
        if Manifest::id_of(&bytes) != place.id {
            return Err(damaged(Damage::Checksum));
        }
        let manifest = Manifest::from_bytes(&bytes);
        let manifest = manifest.map_err(|error| damaged(Damage::Manifest(error)))?;
        if manifest.group != place.group || manifest.anchor.at.index != place.index {
            return Err(damaged(Damage::Misplaced));
        }
        Ok(Held {
            directory,
            manifest,
            bytes,
        })
    }

    fn read_manifest(&self, directory: &str) -> Result<Bytes, SnapshotError> {
        let damaged = |why| SnapshotError::Damaged {
            path: self.path(directory, Some(MANIFEST_FILE)),
            chunk: None,
            why,
        };
        let listed = self.lock().files.files(directory)?;
        let listed = listed.into_iter().find(|file| file.name == MANIFEST_FILE);
        let found = listed.ok_or_else(|| damaged(Damage::Missing))?.bytes;
        let length = usize::try_from(found).ok();
        let Some(length) = length.filter(|length| *length <= MANIFEST_BYTES_MAX) else {
            let expected = MANIFEST_BYTES_MAX as u64;
            return Err(damaged(Damage::Length { expected, found }));
        };
        let mut bytes = vec![0; length];
        let mut state = self.lock();
        let read = state
            .files
            .read_at(directory, MANIFEST_FILE, 0, &mut bytes)?;
        drop(state);
        if read != length {
            return Err(damaged(Damage::Length {
                expected: found,
                found: read as u64,
            }));
        }
        Ok(bytes.into())
    }

    /// Reads a chunk and makes sure that it is the one in the manifest. `buffer` is all of it then.
    pub(super) fn read_chunk(
        &self,
        directory: &str,
        file: &ManifestFile,
        chunk: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<(), SnapshotError> {
        buffer.resize(file.chunk_bytes(chunk).unwrap_or(0), 0);
        let mut state = self.lock();
        let read = state
            .files
            .read_at(directory, &file.name, chunk_offset(chunk), buffer)?;
        drop(state);
        buffer.truncate(read);
        let checked = file.check_chunk(chunk, buffer);
        checked.map_err(|why| self.damaged(directory, file, Some(chunk), why))
    }

    /// Reads all of a snapshot from the medium, as far as that can be had. Whatever is wrong is told to `bad`, with
    /// the numbers of file and chunk if it is in one; the answer is the first of it.
    pub(super) fn read_back(
        &self,
        directory: &str,
        manifest: &Manifest,
        id: SnapshotId,
        pace: &mut Pace<'_>,
        mut bad: impl FnMut(usize, u32),
    ) -> Result<(), SnapshotError> {
        self.check_files(directory, manifest)?;
        self.lock().files.forget_cached(directory, MANIFEST_FILE);
        let bytes = self.read_manifest(directory)?;
        if Manifest::id_of(&bytes) != id {
            let path = self.path(directory, Some(MANIFEST_FILE));
            let (chunk, why) = (None, Damage::Checksum);
            return Err(SnapshotError::Damaged { path, chunk, why });
        }
        let mut first = None;
        let mut buffer = Vec::new();
        for (number, file) in manifest.files.iter().enumerate() {
            self.lock().files.forget_cached(directory, &file.name);
            let mut hash = Xxh3::new();
            let mut whole = true;
            for chunk in file.chunk_numbers() {
                if let Err(error) = self.read_chunk(directory, file, chunk, &mut buffer) {
                    bad(number, chunk);
                    whole = false;
                    first.get_or_insert(error);
                }
                hash.update(&buffer);
                if pace(buffer.len()).is_break() {
                    return Err(SnapshotError::Cancelled);
                }
            }
            if whole && hash.digest128() != file.hash {
                first.get_or_insert(self.damaged(directory, file, None, Damage::Hash));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// All files are there, no others are, and each is as long as it should be or shorter: a shorter one is found
    /// by reading it, and which of its chunks.
    fn check_files(&self, directory: &str, manifest: &Manifest) -> Result<(), SnapshotError> {
        let listed = self.lock().files.files(directory)?;
        let damaged = |name: &str, why| SnapshotError::Damaged {
            path: self.path(directory, Some(name)),
            chunk: None,
            why,
        };
        for found in &listed {
            let is_ours = |file: &&ManifestFile| file.name == found.name;
            match manifest.files.iter().find(is_ours) {
                None if found.name == MANIFEST_FILE => {}
                None => return Err(damaged(&found.name, Damage::Unlisted)),
                Some(file) if found.bytes > file.bytes => {
                    return Err(damaged(
                        &found.name,
                        Damage::Length {
                            expected: file.bytes,
                            found: found.bytes,
                        },
                    ));
                }
                Some(_) => {}
            }
        }
        for file in &manifest.files {
            if !listed.iter().any(|found| found.name == file.name) {
                return Err(damaged(&file.name, Damage::Missing));
            }
        }
        Ok(())
    }

    fn damaged(
        &self,
        directory: &str,
        file: &ManifestFile,
        chunk: Option<u32>,
        why: Damage,
    ) -> SnapshotError {
        let path = self.path(directory, Some(&file.name));
        SnapshotError::Damaged { path, chunk, why }
    }
}
