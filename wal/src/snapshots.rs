#![doc = include_str!("../SNAPSHOTS.md")]

mod check;
mod directory;
mod error;
mod files;
mod manifest;
mod names;
mod reader;
mod receive;
mod shared;
mod store;
mod writer;

pub use directory::DirectoryFiles;
pub use error::{Damage, SnapshotError};
pub use files::{FileListed, Files, FilesError, NAME_BYTES_MAX, NameError, check_name};
pub use manifest::{
    CHUNK_BYTES, FILES_MAX, MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestFile,
    SNAPSHOT_VERSION, SnapshotSummary,
};
pub use reader::{SnapshotFileReader, SnapshotReader};
pub use receive::Receiving;
pub use shared::{Pace, unpaced};
pub use store::{SnapshotFinding, SnapshotList, SnapshotMeta, SnapshotStore};
pub use writer::SnapshotWriter;
