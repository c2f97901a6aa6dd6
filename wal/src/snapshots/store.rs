//! The finished snapshots of several groups, and how more of them come about.

use std::path::PathBuf;

use bytes::Bytes;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{Anchor, ClusterId, GroupId, Replica, SnapshotId};

use super::error::SnapshotError;
use super::files::Files;
use super::manifest::{MANIFEST_FILE, SnapshotSummary};
use super::names::{Named, Place};
use super::reader::SnapshotReader;
use super::receive::Receiving;
use super::shared::{Pace, Shared, Work};
use super::writer::SnapshotWriter;

/// Snapshots in a directory of their own.
///
/// Every call blocks. Writers, readers and what is being received use the store's files together, one call at a
/// time, so they may be used side by side and by several threads.
pub struct SnapshotStore<F: Files> {
    shared: Shared<F>,
    foreign: Vec<PathBuf>,
}

impl<F: Files> Clone for SnapshotStore<F> {
    /// Another handle of the same store.
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            foreign: self.foreign.clone(),
        }
    }
}

impl<F: Files> std::fmt::Debug for SnapshotStore<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotStore")
            .field("foreign", &self.foreign)
            .finish_non_exhaustive()
    }
}

/// Whom a snapshot is of, and up to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Who takes it.
    pub node: Replica,
    /// Which group.
    pub group: GroupId,
    /// What the log below it amounts to.
    pub anchor: Anchor,
}

/// The snapshots of a group.
#[derive(Debug, Default)]
pub struct SnapshotList {
    /// Those whose manifests can be read, the newest first.
    pub snapshots: Vec<SnapshotSummary>,
    /// The others.
    pub findings: Vec<SnapshotFinding>,
}

/// A snapshot whose manifest cannot be read. It is left as it is.
#[derive(Debug)]
pub struct SnapshotFinding {
    /// Where it lies.
    pub path: PathBuf,
    /// Which it was, by the name of its directory.
    pub id: SnapshotId,
    /// What is wrong with it.
    pub why: SnapshotError,
}

impl<F: Files> SnapshotStore<F> {
    /// Takes over what is there. What was being written when an earlier process ended is removed, and so is what was
    /// being removed; what was being received is kept.
    pub fn open(files: F) -> Result<Self, SnapshotError> {
        let shared = Shared::new(files);
        let (ours, others) = shared.directories()?;
        for named in ours {
            if matches!(named, Named::Writing(_) | Named::Removing(_)) {
                shared.remove_directory(&named.name())?;
            }
        }
        // A process that died renamed a snapshot and perhaps did not get to make that durable.
        shared.lock().files.sync_root()?;
        let foreign = others.iter().map(|name| shared.path(name, None));
        let foreign = foreign.collect();
        Ok(Self { shared, foreign })
    }

    /// Has this bug, in builds that hold any.
    #[must_use]
    pub fn with_mutant(self, mutant: Option<Mutant>) -> Self {
        self.shared.lock().mutant = mutant;
        self
    }

    /// The directories that lay beside the snapshots and are none of ours. They are left alone.
    #[must_use]
    pub fn foreign(&self) -> &[PathBuf] {
        &self.foreign
    }

    /// How much may still be written. `None`: nobody knows.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.shared.lock().files.free_bytes()
    }

    /// Begins to write a snapshot, for one of a group at a time. `pace` is asked once a chunk, when it is written and
    /// again when it is read back.
    pub fn begin(
        &self,
        meta: SnapshotMeta,
        pace: Box<Pace<'static>>,
    ) -> Result<SnapshotWriter<F>, SnapshotError> {
        let claim = self.shared.claim(meta.group, Work::Writing)?;
        SnapshotWriter::begin(claim, meta, pace)
    }

    /// Begins to receive the snapshot with this manifest, or goes on with it: what is there from earlier is read and
    /// kept as far as it fits. For one of a group at a time. `pace` is asked once a chunk that is read.
    pub fn receive(
        &self,
        group: GroupId,
        manifest: Bytes,
        pace: Box<Pace<'static>>,
    ) -> Result<Receiving<F>, SnapshotError> {
        let claim = self.shared.claim(group, Work::Receiving)?;
        Receiving::resume(claim, group, manifest, pace)
    }

    /// The groups of which something lies here that was not received whole.
    pub fn receiving(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let (ours, _) = self.shared.directories()?;
        let groups = ours.into_iter().filter_map(|named| match named {
            Named::Receiving(group) => Some(group),
            _ => None,
        });
        Ok(groups.collect())
    }

    /// Removes what was received of a snapshot of a group that nobody goes on with, and says whether there was any.
    /// While it is being received it cannot be.
    pub fn discard(&self, group: GroupId) -> Result<bool, SnapshotError> {
        let _claim = self.shared.claim(group, Work::Receiving)?;
        let directory = Named::Receiving(group).name();
        if !self.shared.lock().files.directories()?.contains(&directory) {
            return Ok(false);
        }
        self.shared.remove_directory(&directory)?;
        self.shared.lock().files.sync_root()?;
        Ok(true)
    }

    /// The groups of which there are finished snapshots, in the order of their numbers.
    pub fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let finished = self.shared.finished()?;
        let mut groups: Vec<GroupId> = finished.iter().map(|place| place.group).collect();
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }

    /// All snapshots of a group.
    pub fn list(&self, group: GroupId) -> Result<SnapshotList, SnapshotError> {
        let mut list = SnapshotList::default();
        for place in self.finished_of(group)? {
            match self.shared.read_held(place) {
                Ok(held) => list.snapshots.push(held.manifest.summary(&held.bytes)),
                // Somebody may have removed it meanwhile.
                Err(_) if !self.shared.finished()?.contains(&place) => {}
                Err(why) => list.findings.push(SnapshotFinding {
                    path: self
                        .shared
                        .path(&Named::Finished(place).name(), Some(MANIFEST_FILE)),
                    id: place.id,
                    why,
                }),
            }
        }
        Ok(list)
    }

    /// The snapshot of a group that reaches furthest, of those whose manifests can be read.
    pub fn newest(&self, group: GroupId) -> Result<Option<SnapshotSummary>, SnapshotError> {
        for place in self.finished_of(group)? {
            if let Ok(held) = self.shared.read_held(place) {
                return Ok(Some(held.manifest.summary(&held.bytes)));
            }
        }
        Ok(None)
    }

    /// Reads all of a snapshot from the medium and says what is wrong with it first.
    pub fn verify(&self, id: SnapshotId, pace: &mut Pace<'_>) -> Result<(), SnapshotError> {
        // What is on the medium counts, and not what was read of it before.
        self.shared.forget_held();
        let held = self.shared.held(id)?;
        self.shared
            .read_back(&held.directory, &held.manifest, id, pace, |_, _| {})
    }

    /// Removes the snapshots of a group but for the newest and those in `keep`, and says which. What cannot be read
    /// is not removed, and does not count as the newest.
    pub fn retire(
        &self,
        group: GroupId,
        keep: &[SnapshotId],
    ) -> Result<Vec<SnapshotId>, SnapshotError> {
        let readable = self.finished_of(group)?.into_iter();
        let readable = readable.filter(|place| self.shared.read_held(*place).is_ok());
        let older: Vec<Place> = readable.skip(1).collect();
        let mut removed = Vec::new();
        // The oldest first, so that what a crash leaves is what a smaller `keep` would have left.
        for place in older.into_iter().rev() {
            if !keep.contains(&place.id) {
                self.shared.remove(place)?;
                removed.push(place.id);
            }
        }
        Ok(removed)
    }

    /// Removes the snapshots of a group that reach no further than `newest`, but for itself and those in `keep`, and
    /// says which. Where that one cannot be read, none is removed; nor is what cannot be read.
    pub fn retire_before(
        &self,
        group: GroupId,
        newest: SnapshotId,
        keep: &[SnapshotId],
    ) -> Result<Vec<SnapshotId>, SnapshotError> {
        let at = self.shared.held(newest)?.manifest.anchor.at.index;
        let mut removed = Vec::new();
        // The oldest first, so that what a crash leaves is what a smaller `keep` would have left.
        for place in self.finished_of(group)?.into_iter().rev() {
            let goes = place.index <= at && place.id != newest && !keep.contains(&place.id);
            if goes && self.shared.read_held(place).is_ok() {
                self.shared.remove(place)?;
                removed.push(place.id);
            }
        }
        Ok(removed)
    }

    /// For reading the files of a snapshot from front to back.
    pub fn reader(&self, id: SnapshotId) -> Result<SnapshotReader<F>, SnapshotError> {
        let held = self.shared.held(id)?;
        Ok(SnapshotReader::new(self.shared.clone(), held))
    }

    /// The manifest of a snapshot, for sending.
    pub fn manifest_bytes(&self, id: SnapshotId) -> Result<Bytes, SnapshotError> {
        Ok(self.shared.held(id)?.bytes.clone())
    }

    /// One chunk of a file, by their numbers in the manifest, for sending. It is what the manifest says.
    pub fn read_chunk(
        &self,
        id: SnapshotId,
        file: u32,
        chunk: u32,
    ) -> Result<Bytes, SnapshotError> {
        let held = self.shared.held(id)?;
        let found = held.manifest.files.get(file as usize);
        let found = found.filter(|file| file.chunk_bytes(chunk).is_some());
        let Some(found) = found else {
            return Err(SnapshotError::NoSuchChunk { file, chunk });
        };
        let mut buffer = Vec::new();
        self.shared
            .read_chunk(&held.directory, found, chunk, &mut buffer)?;
        Ok(buffer.into())
    }

    fn finished_of(&self, group: GroupId) -> Result<Vec<Place>, SnapshotError> {
        let mut finished = self.shared.finished()?;
        finished.retain(|place| place.group == group);
        Ok(finished)
    }
}
