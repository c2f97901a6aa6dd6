//! A machine whose snapshots are larger than what it holds: so that they take more than one part to send.

use std::io::{self, Read};

use logdrive_raft::LogPosition;
use logdrive_shard::{
    Batch, Durable, Fatal, SnapshotReader, SnapshotSource, SnapshotWriter, StateMachine,
};

/// The file that holds nothing of the machine's.
const PADDING_FILE: &str = "padding";

/// A machine, and bytes besides.
#[derive(Debug)]
pub struct Padded<S> {
    machine: S,
    bytes: usize,
}

impl<S> Padded<S> {
    /// So many bytes are in each snapshot of this machine besides its own.
    pub fn new(machine: S, bytes: usize) -> Self {
        Self { machine, bytes }
    }
}

/// What the machine handed over, and bytes besides.
#[derive(Debug)]
pub struct PaddedSource<S> {
    source: S,
    bytes: usize,
}

impl<S: SnapshotSource> SnapshotSource for PaddedSource<S> {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        self.source.write_to(out)?;
        if self.bytes > 0 {
            let padding: Vec<u8> = (0_u8..=250).cycle().take(self.bytes).collect();
            out.begin_file(PADDING_FILE)?.write_all(&padding)?;
        }
        Ok(())
    }
}

/// The machine sees its own files alone.
struct Own<'a>(&'a mut dyn SnapshotReader);

impl SnapshotReader for Own<'_> {
    fn position(&self) -> LogPosition {
        self.0.position()
    }

    fn files(&self) -> Vec<(String, u64)> {
        let mut files = self.0.files();
        files.retain(|(name, _)| name != PADDING_FILE);
        files
    }

    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        self.0.file(name)
    }
}

impl<S: StateMachine> StateMachine for Padded<S> {
    type Output = S::Output;
    type Reader = S::Reader;
    type Snapshot = PaddedSource<S::Snapshot>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        self.machine.open()
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<S::Output>) -> Result<(), Fatal> {
        self.machine.apply(batch, outputs)
    }

    fn reader(&self) -> S::Reader {
        self.machine.reader()
    }

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        self.machine.flush()
    }

    fn snapshot(&mut self) -> Result<Self::Snapshot, Fatal> {
        let source = self.machine.snapshot()?;
        let bytes = self.bytes;
        Ok(PaddedSource { source, bytes })
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        self.machine.install(&mut Own(snapshot))
    }
}
