//! What everything that is made from one store uses together, and the steps that several of them take.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::SnapshotError;
use super::files::{FileListed, Files, FilesError, check_name};
use super::manifest::{MANIFEST_FILE, Manifest, SnapshotSummary};
use super::names::{Named, Place};
use bytes::Bytes;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{GroupId, SnapshotId};

/// After so many chunks of a file it is flushed. A little at a time: nobody else's flush should have to wait behind all
/// of a large file, nor should whoever wants the files meanwhile.
pub(super) const FLUSH_CHUNKS: usize = 16;

/// Files are made so much shorter at a time before they are removed. Where the file system tells the device what is
/// free, it does nothing else meanwhile: a gibibyte at once stops every write for a fifth of a second.
const CUT_BYTES: u64 = 1 << 20;

/// Asked once a chunk, with its bytes. It may wait, so that others get at the disk too, and says whether to go on.
pub type Pace<'a> = dyn FnMut(usize) -> ControlFlow<()> + Send + 'a;

/// The pace of who has the disk to itself.
pub fn unpaced(_bytes: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The files, and who does what with them. Clones are the same.
#[derive(Debug)]
pub(super) struct Shared<F> {
    state: Arc<Mutex<State<F>>>,
}

#[derive(Debug)]
pub(super) struct State<F> {
    pub(super) files: F,
    claimed: BTreeSet<(GroupId, Work)>,
    /// The manifest that was read last. Chunks are sent one at a time, and it may be large.
    held: Option<Arc<Held>>,
    pub(super) mutant: Option<Mutant>,
}

/// A finished snapshot whose manifest was read.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) directory: String,
    pub(super) manifest: Manifest,
    pub(super) bytes: Bytes,
}

/// What is done for a group by one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Writing,
    Receiving,
}

/// Nobody else does this work for this group meanwhile.
#[derive(Debug)]
pub(super) struct Claim<F: Files> {
    shared: Shared<F>,
    group: GroupId,
    work: Work,
}

impl<F> Clone for Shared<F> {
    fn clone(&self) -> Self {
        let state = Arc::clone(&self.state);
        Self { state }
    }
}

impl<F: Files> Shared<F> {
    pub(super) fn new(files: F) -> Self {
        let state = State {
            files,
            claimed: BTreeSet::new(),
            held: None,
            mutant: None,
        };
        let state = Arc::new(Mutex::new(state));
        Self { state }
    }

    /// For one call to the files, or a few short ones.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn claim(&self, group: GroupId, work: Work) -> Result<Claim<F>, SnapshotError> {
        if !self.lock().claimed.insert((group, work)) {
            let what = work.name();
            return Err(SnapshotError::Busy { group, what });
        }
        let shared = self.clone();
        Ok(Claim {
            shared,
            group,
            work,
        })
    }

    pub(super) fn path(&self, directory: &str, file: Option<&str>) -> PathBuf {
        self.lock().files.path(directory, file)
    }

    /// The directories that are ours, and the names of the others.
    pub(super) fn directories(&self) -> Result<(Vec<Named>, Vec<String>), SnapshotError> {
        let names = self.lock().files.directories()?;
        let mut ours = Vec::new();
        let mut others = Vec::new();
        for name in names {
            match Named::parse(&name) {
                Some(named) => ours.push(named),
                None => others.push(name),
            }
        }
        Ok((ours, others))
    }

    /// Where the finished snapshots are, the newest first; all groups'.
    pub(super) fn finished(&self) -> Result<Vec<Place>, SnapshotError> {
        let (ours, _) = self.directories()?;
        let finished = ours.into_iter().filter_map(|named| match named {
            Named::Finished(place) => Some(place),
            _ => None,
        });
        let mut finished: Vec<Place> = finished.collect();
        finished.sort_unstable_by(|one, other| other.cmp(one));
        Ok(finished)
    }

    /// A finished snapshot with its manifest.
    pub(super) fn held(&self, id: SnapshotId) -> Result<Arc<Held>, SnapshotError> {
        let finished = self.finished()?;
        let place = finished.into_iter().find(|place| place.id == id);
        let Some(place) = place else {
            self.forget_held();
            return Err(SnapshotError::Unknown(id));
        };
        let directory = Named::Finished(place).name();
        let known = self.lock().held.clone();
        if let Some(known) = known.filter(|known| known.directory == directory) {
            return Ok(known);
        }
        let held = Arc::new(self.read_held(place)?);
        self.lock().held = Some(Arc::clone(&held));
        Ok(held)
    }

    pub(super) fn forget_held(&self) {
        self.lock().held = None;
    }

    /// Writes and flushes the manifest. One that is there already is from an attempt that did not get further.
    pub(super) fn write_manifest(
        &self,
        directory: &str,
        bytes: &[u8],
    ) -> Result<(), SnapshotError> {
        let mut state = self.lock();
        let listed = state.files.files(directory)?;
        if listed.iter().any(|file| file.name == MANIFEST_FILE) {
            state.files.remove_file(directory, MANIFEST_FILE)?;
        }
        state.files.create_file(directory, MANIFEST_FILE)?;
        state.files.write_at(directory, MANIFEST_FILE, 0, bytes)?;
        state.files.flush(directory, MANIFEST_FILE)?;
        Ok(())
    }

    /// Makes a snapshot that was read back one that counts.
    pub(super) fn publish(
        &self,
        from: &str,
        manifest: &Manifest,
        bytes: &Bytes,
        pace: &mut Pace<'_>,
    ) -> Result<SnapshotSummary, SnapshotError> {
        let summary = manifest.summary(bytes);
        let place = Place {
            group: summary.group,
            index: summary.at.index,
            id: summary.id,
        };
        let to = Named::Finished(place).name();
        if self.finished()?.contains(&place) {
            match self.read_back(&to, manifest, place.id, pace, |_, _| {}) {
                Ok(()) => {
                    // The same one was here before, and the log may have been cut for it. What is left of the
                    // other is not taken for a snapshot.
                    let _ = self.remove_directory(from);
                    // Whoever gave it its name may not have got to make that durable.
                    self.lock().files.sync_root()?;
                    return Ok(summary);
                }
                Err(SnapshotError::Cancelled) => return Err(SnapshotError::Cancelled),
                // It is the same one gone bad.
                Err(_) => self.remove(place)?,
            }
        }
        let mut state = self.lock();
        state.files.rename_directory(from, &to)?;
        if let Err(error) = state.files.sync_root() {
            // Under its old name it is found by whoever cleans up. If that fails too, it is still a whole snapshot.
            let _ = state.files.rename_directory(&to, from);
            return Err(error.into());
        }
        Ok(summary)
    }

    /// Removes a finished snapshot. From the first step on, none of what is left of it counts.
    pub(super) fn remove(&self, place: Place) -> Result<(), SnapshotError> {
        let removing = Named::Removing(place).name();
        if self.lock().files.directories()?.contains(&removing) {
            self.remove_directory(&removing)?;
        }
        let finished = Named::Finished(place).name();
        let mut state = self.lock();
        state.held = None;
        state.files.rename_directory(&finished, &removing)?;
        state.files.sync_root()?;
        drop(state);
        self.remove_directory(&removing)?;
        self.lock().files.sync_root()?;
        Ok(())
    }

    /// Removes a directory that nothing counts on, with what is in it, a little at a time: whoever else wants the disk
    /// or the files gets at them in between.
    pub(super) fn remove_directory(&self, directory: &str) -> Result<(), FilesError> {
        let listed = self.lock().files.files(directory)?;
        for FileListed { name, mut bytes } in listed {
            // Somebody else's files cannot be had by their names.
            if check_name(&name).is_err() {
                continue;
            }
            while bytes > CUT_BYTES {
                bytes -= CUT_BYTES;
                self.lock().files.cut_file(directory, &name, bytes)?;
            }
        }
        self.lock().files.remove_directory(directory)
    }
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Writing => "being written",
            Self::Receiving => "being received",
        }
    }
}

impl<F: Files> Claim<F> {
    pub(super) fn shared(&self) -> &Shared<F> {
        &self.shared
    }

    /// The directory in which the work is done.
    pub(super) fn directory(&self) -> String {
        match self.work {
            Work::Writing => Named::Writing(self.group).name(),
            Work::Receiving => Named::Receiving(self.group).name(),
        }
    }
}

impl<F: Files> Drop for Claim<F> {
    fn drop(&mut self) {
        self.shared.lock().claimed.remove(&(self.group, self.work));
    }
}
