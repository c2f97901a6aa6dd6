//! What is done with snapshots on disk: written, received, read for others. All of it blocks, and none of it
//! happens on a shard's thread.
//!
//! A [`Storekeeper`] is a value that does one job after the other. The engine runs it on the snapshot thread, the
//! simulator in line.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use logdrive_raft::message::{PART_BYTES_MAX, Part};
use logdrive_raft::{Anchor, ClusterId, GroupId, LogPosition, NodeId, Replica, SnapshotId};
use logdrive_wal::snapshots::{
    self, Damage, Files, Manifest, Pace, Receiving, SnapshotError, SnapshotMeta, SnapshotStore,
    SnapshotSummary,
};

use crate::machine::Fatal;
use crate::snapshot::{SnapshotReader, SnapshotSource, SnapshotWriter};

/// Chunks of one file that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which file of the manifest.
    pub file: u32,
    /// The first of them.
    pub first: u32,
    /// How many, one after the other.
    pub count: u32,
}

impl Missing {
    /// One chunk.
    pub(crate) fn one((file, first): (u32, u32)) -> Self {
        let count = 1;
        Self { file, first, count }
    }
}

/// Something that is to be done with snapshots on disk.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreJob {
    /// A snapshot with this manifest is going to be received: what of it is there already?
    Receive {
        /// Of which group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
        /// Its manifest.
        manifest: Bytes,
    },
    /// A chunk of it has come.
    Put {
        /// Of which group.
        group: GroupId,
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Which file of the manifest.
        file: u32,
        /// Which chunk of the file.
        chunk: u32,
        /// Its bytes.
        bytes: Bytes,
    },
    /// All of it has come: make it durable, read it back and keep it.
    Finish {
        /// Of which group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
    },
    /// A peer asks for a part.
    Read {
        /// Who.
        to: NodeId,
        /// Of which group.
        group: GroupId,
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Which part.
        part: Part,
    },
    /// The machine is going to read this one.
    Open {
        /// Of which group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
    },
    /// Whatever has come of a snapshot of this group is of no use any more.
    Discard {
        /// Of which group.
        group: GroupId,
    },
    /// Snapshots older than the newest are not wanted any more, but for those that are being sent.
    Retire {
        /// Of which group.
        group: GroupId,
        /// The one that counts. What reaches further was received and is not where the log begins.
        newest: SnapshotId,
        /// What is kept all the same.
        keep: Vec<SnapshotId>,
    },
}

impl StoreJob {
    /// Bytes that it holds while it waits.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let payload = match self {
            Self::Put { bytes, .. } => bytes.len(),
            Self::Receive { manifest, .. } => manifest.len(),
            _ => 0,
        };
        256 + payload
    }
}

/// How a job ended.
#[non_exhaustive]
pub enum StoreEvent {
    /// A snapshot was written, made durable and read back.
    Written {
        /// Which.
        snapshot: SnapshotSummary,
        /// How far the machine's own storage reaches, if it has one.
        durable: Option<LogPosition>,
    },
    /// No snapshot was written, and nothing is left of it.
    NotWritten {
        /// Of which group.
        group: GroupId,
        /// Why.
        why: StoreFailure,
    },
    /// What is there of a snapshot that is being received, and what is not.
    Receiving {
        /// Of which group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
        /// What is not there.
        missing: Vec<Missing>,
        /// Bytes that are there.
        bytes_have: u64,
        /// It was read back, and these are damaged.
        damaged: bool,
    },
    /// A chunk was stored, or was none of the manifest's.
    Stored {
        /// Of which group.
        group: GroupId,
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// File and chunk.
        part: (u32, u32),
        /// Its bytes; none: it is not what the manifest says.
        bytes: Option<u64>,
    },
    /// A snapshot was received, made durable and read back.
    Received {
        /// Which.
        snapshot: SnapshotSummary,
        /// What the log below it amounts to.
        anchor: Anchor,
    },
    /// Receiving did not work. What is there is kept.
    NotReceived {
        /// Of which group.
        group: GroupId,
        /// Why.
        why: StoreFailure,
    },
    /// A part for a peer; none: it is not there, or cannot be read.
    Read {
        /// For whom.
        to: NodeId,
        /// Of which group.
        group: GroupId,
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Which part.
        part: Part,
        /// Its bytes.
        bytes: Result<Bytes, StoreFailure>,
    },
    /// The machine may read it.
    Opened {
        /// Of which group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
        /// For reading it.
        reader: Result<Box<dyn SnapshotReader + Send>, StoreFailure>,
    },
}

impl std::fmt::Debug for StoreEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Written { snapshot, durable } => write!(f, "Written({snapshot:?}, {durable:?})"),
            Self::NotWritten { group, why } => write!(f, "NotWritten({group}, {why})"),
            Self::Receiving {
                snapshot,
                missing,
                bytes_have,
                ..
            } => write!(f, "Receiving({snapshot}, {missing:?}, {bytes_have})"),
            Self::Stored {
                snapshot,
                part,
                bytes,
                ..
            } => write!(f, "Stored({snapshot}, {part:?}, {bytes:?})"),
            Self::Received { snapshot, .. } => write!(f, "Received({snapshot:?})"),
            Self::NotReceived { group, why } => write!(f, "NotReceived({group}, {why})"),
            Self::Read {
                to,
                snapshot,
                part,
                bytes,
                ..
            } => {
                let bytes = bytes.as_ref().map(Bytes::len);
                write!(f, "Read({to}, {snapshot}, {part:?}, {bytes:?})")
            }
            Self::Opened {
                snapshot, reader, ..
            } => write!(f, "Opened({snapshot}, {:?})", reader.as_ref().err()),
        }
    }
}

/// Why a job did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreFailure {
    /// There is no space left.
    NoSpace(String),
    /// What was written reads back as something else.
    Damaged(String),
    /// The file system refused something else.
    Io(String),
    /// It is not there.
    Gone(String),
    /// Whoever runs this is ending.
    Ending,
    /// Anything else.
    Other(String),
}

impl std::fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSpace(text)
            | Self::Damaged(text)
            | Self::Io(text)
            | Self::Gone(text)
            | Self::Other(text) => f.write_str(text),
            Self::Ending => f.write_str("the node is shutting down"),
        }
    }
}

impl From<&SnapshotError> for StoreFailure {
    fn from(error: &SnapshotError) -> Self {
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(error) {
            text = format!("{text}: {source}");
        }
        match error {
            SnapshotError::NoSpace { .. } => Self::NoSpace(text),
            SnapshotError::Damaged { .. } => Self::Damaged(text),
            SnapshotError::Io { .. } => Self::Io(text),
            SnapshotError::Unknown(_) => Self::Gone(text),
            SnapshotError::Cancelled => Self::Ending,
            _ => Self::Other(text),
        }
    }
}

impl From<SnapshotError> for StoreFailure {
    fn from(error: SnapshotError) -> Self {
        Self::from(&error)
    }
}

/// Makes the pace of a job: asked once a chunk, with its bytes; it may wait, and says whether to go on.
pub type PaceMaker = Box<dyn Fn() -> Box<Pace<'static>> + Send>;

/// Does jobs, one after the other.
pub struct Storekeeper<F: Files> {
    store: SnapshotStore<F>,
    cluster: ClusterId,
    node: Replica,
    receiving: BTreeMap<GroupId, Receiving<F>>,
    pace: PaceMaker,
}

impl<F: Files> std::fmt::Debug for Storekeeper<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Storekeeper(of {})", self.node)
    }
}

impl<F: Files + 'static> Storekeeper<F> {
    /// Keeps this store for a replica.
    #[must_use]
    pub fn new(
        store: SnapshotStore<F>,
        cluster: ClusterId,
        node: Replica,
        pace: PaceMaker,
    ) -> Self {
        Self {
            store,
            cluster,
            node,
            receiving: BTreeMap::new(),
            pace,
        }
    }

    /// Writes out what a machine handed over. `durable` is passed on: how far its own storage reaches.
    pub fn write<S: SnapshotSource>(
        &mut self,
        group: GroupId,
        anchor: Anchor,
        durable: Option<LogPosition>,
        source: S,
    ) -> StoreEvent {
        let meta = SnapshotMeta {
            cluster: self.cluster,
            node: self.node,
            group,
            anchor,
        };
        match self.try_write(meta, source) {
            Ok(snapshot) => StoreEvent::Written { snapshot, durable },
            Err(why) => StoreEvent::NotWritten { group, why },
        }
    }

    /// Does a job, and says how it ended. What nobody has to hear of says nothing.
    pub fn run(&mut self, job: StoreJob) -> Option<StoreEvent> {
        match job {
            StoreJob::Receive {
                group,
                snapshot,
                manifest,
            } => Some(self.receive(group, snapshot, manifest)),
            StoreJob::Put {
                group,
                snapshot,
                file,
                chunk,
                bytes,
            } => Some(self.put(group, snapshot, (file, chunk), &bytes)),
            StoreJob::Finish { group, snapshot } => Some(self.finish(group, snapshot)),
            StoreJob::Read {
                to,
                group,
                snapshot,
                part,
            } => Some(StoreEvent::Read {
                to,
                group,
                snapshot,
                part,
                bytes: self.read(snapshot, part),
            }),
            StoreJob::Open { group, snapshot } => {
                let reader = open(&self.store, snapshot);
                Some(StoreEvent::Opened {
                    group,
                    snapshot,
                    reader,
                })
            }
            StoreJob::Discard { group } => {
                self.receiving.remove(&group);
                // What could not be removed is in nobody's way, and goes with the next one.
                let _ = self.store.discard(group);
                None
            }
            StoreJob::Retire {
                group,
                newest,
                keep,
            } => {
                // What could not be removed is tried again after the next snapshot.
                let _ = self.store.retire_before(group, newest, &keep);
                None
            }
        }
    }

    fn try_write<S: SnapshotSource>(
        &mut self,
        meta: SnapshotMeta,
        source: S,
    ) -> Result<SnapshotSummary, StoreFailure> {
        let writer = self.store.begin(meta, (self.pace)())?;
        let mut out = Out {
            writer,
            failure: None,
        };
        let written = Fatal::catch(|| source.write_to(&mut out));
        if let Some(failure) = out.failure {
            return Err(failure);
        }
        match written {
            Ok(Ok(())) => Ok(out.writer.finish()?),
            Ok(Err(error)) => Err(StoreFailure::Other(format!(
                "the machine could not write its snapshot: {error}"
            ))),
            Err(panic) => Err(StoreFailure::Other(format!(
                "the machine {} while it wrote its snapshot",
                panic.what
            ))),
        }
    }

    fn receive(&mut self, group: GroupId, snapshot: SnapshotId, manifest: Bytes) -> StoreEvent {
        self.receiving.remove(&group);
        match self.store.receive(group, manifest, (self.pace)()) {
            Ok(receiving) if receiving.manifest().cluster != self.cluster => {
                let theirs = receiving.manifest().cluster;
                let why = format!(
                    "the snapshot is of cluster {theirs}, this is {}",
                    self.cluster
                );
                StoreEvent::NotReceived {
                    group,
                    why: StoreFailure::Other(why),
                }
            }
            Ok(receiving) => {
                let event = missing_of(group, snapshot, &receiving, false);
                self.receiving.insert(group, receiving);
                event
            }
            Err(error) => StoreEvent::NotReceived {
                group,
                why: error.into(),
            },
        }
    }

    fn put(
        &mut self,
        group: GroupId,
        snapshot: SnapshotId,
        part: (u32, u32),
        bytes: &Bytes,
    ) -> StoreEvent {
        let receiving = self.receiving.get_mut(&group);
        let receiving = receiving.filter(|receiving| receiving.id() == snapshot);
        let put = receiving.map(|receiving| receiving.put(part.0, part.1, bytes));
        let stored = match put {
            Some(Ok(())) => Some(bytes.len() as u64),
            // An attempt that has ended: whoever began another one asks again.
            None => None,
            Some(Err(SnapshotError::WrongChunk { .. } | SnapshotError::NoSuchChunk { .. })) => None,
            Some(Err(error)) => {
                self.receiving.remove(&group);
                let why = error.into();
                return StoreEvent::NotReceived { group, why };
            }
        };
        StoreEvent::Stored {
            group,
            snapshot,
            part,
            bytes: stored,
        }
    }

    fn finish(&mut self, group: GroupId, snapshot: SnapshotId) -> StoreEvent {
        let receiving = self.receiving.remove(&group);
        let Some(mut receiving) = receiving.filter(|receiving| receiving.id() == snapshot) else {
            let why = StoreFailure::Gone("the attempt to receive it has ended".to_owned());
            return StoreEvent::NotReceived { group, why };
        };
        match receiving.finish() {
            Ok(snapshot) => StoreEvent::Received {
                snapshot,
                anchor: receiving.manifest().anchor.clone(),
            },
            // What read back as something else is missing again.
            Err(SnapshotError::Damaged { .. } | SnapshotError::Incomplete { .. })
                if receiving.chunks_missing() > 0 =>
            {
                let event = missing_of(group, snapshot, &receiving, true);
                self.receiving.insert(group, receiving);
                event
            }
            Err(error) => {
                if matches!(
                    error,
                    SnapshotError::Damaged {
                        why: Damage::Hash,
                        ..
                    }
                ) {
                    // Nobody can satisfy this manifest.
                    let _ = receiving.abandon();
                }
                let why = error.into();
                StoreEvent::NotReceived { group, why }
            }
        }
    }

    fn read(&self, snapshot: SnapshotId, part: Part) -> Result<Bytes, StoreFailure> {
        match part {
            Part::Manifest { offset } => {
                let manifest = self.store.manifest_bytes(snapshot)?;
                let from = (offset as usize).min(manifest.len());
                let to = (from + PART_BYTES_MAX).min(manifest.len());
                Ok(manifest.slice(from..to))
            }
            Part::Chunk { file, chunk } => Ok(self.store.read_chunk(snapshot, file, chunk)?),
        }
    }
}

/// A reader of a finished snapshot.
pub fn open<F: Files + 'static>(
    store: &SnapshotStore<F>,
    snapshot: SnapshotId,
) -> Result<Box<dyn SnapshotReader + Send>, StoreFailure> {
    let reader = store.reader(snapshot)?;
    Ok(Box::new(Stored { reader }))
}

fn missing_of<F: Files>(
    group: GroupId,
    snapshot: SnapshotId,
    receiving: &Receiving<F>,
    damaged: bool,
) -> StoreEvent {
    let mut missing: Vec<Missing> = Vec::new();
    for (file, chunk) in receiving.missing() {
        match missing.last_mut() {
            Some(run) if run.file == file && run.first + run.count == chunk => run.count += 1,
            _ => missing.push(Missing::one((file, chunk))),
        }
    }
    StoreEvent::Receiving {
        group,
        snapshot,
        missing,
        bytes_have: receiving.bytes_have(),
        damaged,
    }
}

/// Where a machine writes to.
struct Out<F: Files> {
    writer: snapshots::SnapshotWriter<F>,
    failure: Option<StoreFailure>,
}

impl<F: Files> Out<F> {
    fn keep(&mut self, done: Result<(), SnapshotError>) -> io::Result<()> {
        done.map_err(|error| {
            let kind = match &error {
                SnapshotError::NoSpace { .. } => io::ErrorKind::StorageFull,
                _ => io::ErrorKind::Other,
            };
            // Names are the machine's own affair.
            let names = matches!(
                error,
                SnapshotError::Name(_) | SnapshotError::NameTaken(_) | SnapshotError::NoFile
            );
            if !names && self.failure.is_none() {
                self.failure = Some(StoreFailure::from(&error));
            }
            io::Error::new(kind, error)
        })
    }
}

impl<F: Files> SnapshotWriter for Out<F> {
    fn begin_file(&mut self, name: &str) -> io::Result<&mut dyn Write> {
        let begun = self.writer.begin_file(name);
        self.keep(begun)?;
        Ok(self)
    }
}

impl<F: Files> Write for Out<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes);
        self.keep(written)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a machine reads from.
struct Stored<F: Files> {
    reader: snapshots::SnapshotReader<F>,
}

impl<F: Files> SnapshotReader for Stored<F> {
    fn position(&self) -> LogPosition {
        self.manifest().anchor.at
    }

    fn files(&self) -> Vec<(String, u64)> {
        let files = self.reader.files().iter();
        let mut files: Vec<(String, u64)> =
            files.map(|file| (file.name.clone(), file.bytes)).collect();
        files.sort_unstable();
        files
    }

    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        match self.reader.open(name) {
            Some(file) => Ok(Box::new(file)),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the snapshot has no file {name:?}"),
            )),
        }
    }
}

impl<F: Files> Stored<F> {
    fn manifest(&self) -> &Manifest {
        self.reader.manifest()
    }
}

/// Goes on without waiting, to the end.
#[must_use]
pub fn unpaced() -> PaceMaker {
    Box::new(|| Box::new(|_| ControlFlow::Continue(())))
}
