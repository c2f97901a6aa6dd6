//! One slot file behind positional reads and writes, and what differs between systems.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use zerocopy::IntoBytes;

use super::{BLOCK_BYTES, Block, DiskError, SlotId, ZERO_BLOCKS_MAX};

/// Zeros to write from. Never written to, so every page of it may be the same one.
pub(super) static ZEROS: [Block; ZERO_BLOCKS_MAX as usize] =
    [Block::ZERO; ZERO_BLOCKS_MAX as usize];

/// An open slot file.
#[derive(Debug)]
pub(super) struct SlotHandle {
    file: File,
}

impl SlotHandle {
    /// Opens a file that exists. Says whether it goes past the page cache.
    pub(super) fn open(path: &Path, write: bool, direct: bool) -> io::Result<(Self, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        if direct {
            // Some file systems take the flag and refuse the first transfer.
            let opened = open_direct(&options, path).and_then(|file| {
                let handle = Self { file };
                handle.read(0, [Block::ZERO].as_mut_bytes())?;
                Ok(handle)
            });
            match opened {
                Ok(handle) => return Ok((handle, true)),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        let file = options.open(path)?;
        Ok((Self { file }, false))
    }

    /// Makes a file with space for `blocks`, empty so far, durable in its directory.
    pub(super) fn create(path: &Path, blocks: u32, direct: bool) -> io::Result<Self> {
        make(path, |file| {
            reserve(&file, u64::from(blocks) * BLOCK_BYTES as u64)?;
            drop(file);
            if let Some(directory) = path.parent() {
                sync_directory(directory)?;
            }
            Ok(Self::open(path, true, direct)?.0)
        })
    }

    /// Makes a file of so many blocks of zeros, durable in its directory.
    pub(super) fn create_filled(path: &Path, blocks: u32, direct: bool) -> io::Result<()> {
        let handle = Self::create(path, blocks, direct)?;
        handle.fill(blocks).inspect_err(|_| remove_unfinished(path))
    }

    /// The open file.
    #[cfg(all(target_os = "linux", not(logdrive_portable)))]
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub(super) fn read(&self, block: u32, into: &mut [u8]) -> io::Result<u64> {
        positional::read(&self.file, into, offset_of(block)).map(|bytes| bytes as u64)
    }

    pub(super) fn write(&self, block: u32, from: &[u8], dsync: bool) -> io::Result<u64> {
        positional::write(&self.file, from, offset_of(block), dsync).map(|bytes| bytes as u64)
    }

    /// Reads all of the blocks; fewer are an error.
    pub(super) fn read_blocks(&self, block: u32, into: &mut [Block]) -> io::Result<()> {
        let wanted = size_of_val(into) as u64;
        let read = self.read(block, into.as_mut_bytes())?;
        if read < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Writes all of the blocks; fewer are an error.
    pub(super) fn write_blocks(&self, block: u32, from: &[Block]) -> io::Result<()> {
        let written = self.write(block, from.as_bytes(), false)?;
        if written < size_of_val(from) as u64 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Writes the file all over with zeros and flushes it.
    pub(super) fn fill(&self, blocks: u32) -> io::Result<()> {
        let mut at = 0;
        while at < blocks {
            let count = (blocks - at).min(ZERO_BLOCKS_MAX);
            self.write_blocks(at, &ZEROS[..count as usize])?;
            at += count;
        }
        self.flush()
    }

    pub(super) fn zero(&self, block: u32, blocks: u32, dsync: bool) -> io::Result<u64> {
        assert!(blocks <= ZERO_BLOCKS_MAX);
        self.write(block, ZEROS[..blocks as usize].as_bytes(), dsync)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Makes a file that must not exist, and removes it again if it cannot be completed.
fn make<T>(path: &Path, complete: impl FnOnce(File) -> io::Result<T>) -> io::Result<T> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    // It will hold what users wrote, and nobody else has to read that.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    complete(file).inspect_err(|_| remove_unfinished(path))
}

/// Nothing refers to the file yet, the space that it took is wanted elsewhere, and so is its name.
fn remove_unfinished(path: &Path) {
    // What went wrong before is what the caller has to hear of.
    let _ = std::fs::remove_file(path);
}

/// The file that shows whether direct transfers work. There is one, so that what a killed process left is
/// taken away by the next.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
pub(super) const TRIAL_FILE: &str = "direct.tmp";

/// Whether blocks can be written past the page cache in this directory, which is locked.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
pub(super) fn direct_works(directory: &Path) -> io::Result<bool> {
    // Written to once, for some file systems accept the flag and refuse the first transfer.
    let path = directory.join(TRIAL_FILE);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let file = open_direct(&options, &path);
    let written = file.and_then(|file| {
        let file = SlotHandle { file };
        file.write_blocks(0, &ZEROS[..1])
    });
    // Some systems make the file before they refuse the flag.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

/// The slots whose files lie in a directory, in the order of their numbers.
pub(super) fn list_slots(directory: &Path) -> Result<Vec<SlotId>, DiskError> {
    let listed = std::fs::read_dir(directory).map_err(|e| DiskError::io("list", directory, e))?;
    let mut found = Vec::new();
    for file in listed {
        let file = file.map_err(|e| DiskError::io("list", directory, e))?;
        found.extend(file.file_name().to_str().and_then(SlotId::from_file_name));
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn offset_of(block: u32) -> u64 {
    u64::from(block) * BLOCK_BYTES as u64
}

#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn open_direct(options: &OpenOptions, path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits();
    let mut options = options.clone();
    options.custom_flags(i32::try_from(flags).expect("flags of open are an int"));
    options.open(path)
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn open_direct(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let _ = (options, path);
    Err(io::ErrorKind::InvalidInput.into())
}

/// Keeps the space together and makes sure that there is enough of it. The length stays 0: it says how far
/// the file has been written.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Ok(()) => Ok(()),
        // Writing the zeros reserves the space too, only less neatly.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
fn reserve(_file: &File, _bytes: u64) -> io::Result<()> {
    Ok(())
}

/// Makes what was created in a directory durable.
#[cfg(unix)]
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere the file system orders this itself, or offers no way to ask.
#[cfg(not(unix))]
pub(super) fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(target_os = "linux", not(logdrive_portable)))]
mod positional {
    use std::fs::File;
    use std::io::{self, IoSlice};
    use std::os::unix::fs::FileExt;

    use rustix::io::{ReadWriteFlags, pwritev2};

    pub(super) fn read(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(into, offset)
    }

    pub(super) fn write(file: &File, from: &[u8], offset: u64, dsync: bool) -> io::Result<usize> {
        let flags = if dsync {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        Ok(pwritev2(file, &[IoSlice::new(from)], offset, flags)?)
    }
}

#[cfg(all(unix, not(all(target_os = "linux", not(logdrive_portable)))))]
mod positional {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(into, offset)
    }

    pub(super) fn write(file: &File, from: &[u8], offset: u64, dsync: bool) -> io::Result<usize> {
        let written = file.write_at(from, offset)?;
        if dsync {
            file.sync_data()?;
        }
        Ok(written)
    }
}

#[cfg(windows)]
mod positional {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub(super) fn read(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(into, offset)
    }

    pub(super) fn write(file: &File, from: &[u8], offset: u64, dsync: bool) -> io::Result<usize> {
        let written = file.seek_write(from, offset)?;
        if dsync {
            file.sync_data()?;
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_completed_leaves_its_name_and_its_space() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let path = directory.path().join(SlotId(3).file_name());
        for _ in 0..3 {
            let full = make(&path, |file| {
                use std::io::Write;
                (&file).write_all(&[0; BLOCK_BYTES])?;
                Err::<(), _>(io::ErrorKind::StorageFull.into())
            });
            assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
        assert!(list_slots(directory.path()).unwrap().is_empty());
        SlotHandle::create_filled(&path, 4, false).unwrap();
        // One that is there already is not ours to remove.
        let exists = SlotHandle::create_filled(&path, 4, false).unwrap_err();
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(list_slots(directory.path()).unwrap(), [SlotId(3)]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * 4096);
    }

    #[cfg(unix)]
    #[test]
    fn what_users_wrote_is_for_nobody_else_to_read() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir_in(".").unwrap();
        let path = directory.path().join(SlotId(1).file_name());
        SlotHandle::create_filled(&path, 4, false).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
