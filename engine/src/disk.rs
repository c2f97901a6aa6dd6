//! Which disk backend a node uses.

use std::path::Path;

use logdrive_wal::disk::Disk;
use logdrive_wal::disk::open::{self, Backend};

use crate::error::StartError;
use crate::settings::WalBackend;

/// Opens the directory of a log. Called on the shard's thread, which owns the ring.
pub(crate) fn open(path: &Path, backend: WalBackend) -> Result<Box<dyn Disk>, StartError> {
    let backend = match backend {
        WalBackend::Auto => Backend::Auto,
        WalBackend::IoUring => Backend::IoUring,
        WalBackend::Pwrite => Backend::Pwrite,
    };
    open::open(path, backend, None).map_err(|source| StartError::Log {
        path: path.to_owned(),
        source: Box::new(source.into()),
    })
}
