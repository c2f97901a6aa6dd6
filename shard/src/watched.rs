//! Tells a snapshot that could not be read from a machine that could not take it over.

use std::io::{self, Read};

use logdrive_raft::LogPosition;

use crate::snapshot::SnapshotReader;

/// Remembers what reading failed with.
pub(crate) struct Watched<'a> {
    reader: &'a mut dyn SnapshotReader,
    /// The first error that was handed out.
    pub(crate) failed: Option<String>,
}

struct WatchedFile<'a> {
    file: Box<dyn Read + 'a>,
    failed: &'a mut Option<String>,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(reader: &'a mut dyn SnapshotReader) -> Self {
        let failed = None;
        Self { reader, failed }
    }
}

impl SnapshotReader for Watched<'_> {
    fn position(&self) -> LogPosition {
        self.reader.position()
    }

    fn files(&self) -> Vec<(String, u64)> {
        self.reader.files()
    }

    // That there is no such file is no damage: the manifest says which there are.
    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let file = self.reader.file(name)?;
        let failed = &mut self.failed;
        Ok(Box::new(WatchedFile { file, failed }))
    }
}

impl Read for WatchedFile<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(into);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failed.get_or_insert_with(|| error.to_string());
        }
        read
    }
}
