//! Reading a snapshot ahead of the machine that takes it over: on a thread of its own, by a few blocks.
//!
//! Whoever takes over a gibibyte in memory needs about as long for the pairs as it takes to get the bytes from the
//! device and to verify them. On two processors both are done at once.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use logdrive_raft::LogPosition;
use logdrive_shard::SnapshotReader;

use crate::snapshots::give_way;

/// What is handed over at once.
const BLOCK_BYTES: usize = 64 << 10;

/// How many blocks are read before the first of them is wanted.
const BLOCKS_AHEAD: usize = 32;

/// A file that is wanted, and where its blocks go: the first answer says whether there is such a file, and has no
/// bytes; a block without bytes is its end.
struct Ask {
    name: String,
    blocks: SyncSender<io::Result<Vec<u8>>>,
}

/// Lets `take` have a snapshot that another thread reads. Without such a thread it is read on this one.
pub(crate) fn read_ahead<T>(
    reader: &mut (dyn SnapshotReader + Send),
    mut take: impl FnMut(&mut dyn SnapshotReader) -> T,
) -> T {
    let (mut ahead, asked) = ahead(reader);
    let source = &mut *reader;
    let read = move || {
        give_way();
        asked.serve(source);
    };
    let taken = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("snapshot-reader".to_owned());
        thread.spawn_scoped(scope, read).ok()?;
        let taken = take(&mut ahead);
        // The thread ends when nobody can ask it any more.
        drop(ahead);
        Some(taken)
    });
    taken.unwrap_or_else(|| take(reader))
}

/// The snapshot, as the machine sees it.
struct Ahead {
    position: LogPosition,
    files: Vec<(String, u64)>,
    asks: SyncSender<Ask>,
}

/// The other end, on the thread that reads.
struct Asked(Receiver<Ask>);

/// Both ends for a snapshot.
fn ahead(of: &dyn SnapshotReader) -> (Ahead, Asked) {
    let (asks, asked) = sync_channel(1);
    let ahead = Ahead {
        position: of.position(),
        files: of.files(),
        asks,
    };
    (ahead, Asked(asked))
}

impl Asked {
    /// Reads what is asked for, until the other end is gone.
    fn serve(self, reader: &mut dyn SnapshotReader) {
        while let Ok(Ask { name, blocks }) = self.0.recv() {
            // An error to send means that nobody wants the rest of this file.
            let _ = match reader.file(&name) {
                Ok(file) => send_all(file, &blocks),
                Err(error) => blocks.send(Err(error)).map_err(|_| Unwanted),
            };
        }
    }
}

/// Whoever asked is gone.
struct Unwanted;

fn send_all(
    mut file: Box<dyn Read + '_>,
    blocks: &SyncSender<io::Result<Vec<u8>>>,
) -> Result<(), Unwanted> {
    blocks.send(Ok(Vec::new())).map_err(|_| Unwanted)?;
    loop {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        let read = file
            .by_ref()
            .take(BLOCK_BYTES as u64)
            .read_to_end(&mut block);
        let is_last = read.as_ref().map_or(true, |bytes| *bytes == 0);
        blocks.send(read.map(|_| block)).map_err(|_| Unwanted)?;
        if is_last {
            return Ok(());
        }
    }
}

impl SnapshotReader for Ahead {
    fn position(&self) -> LogPosition {
        self.position
    }

    fn files(&self) -> Vec<(String, u64)> {
        self.files.clone()
    }

    fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let (to, blocks) = sync_channel(BLOCKS_AHEAD);
        let ask = Ask {
            name: name.to_owned(),
            blocks: to,
        };
        self.asks.send(ask).map_err(|_| gone())?;
        blocks.recv().map_err(|_| gone())??;
        Ok(Box::new(Blocks {
            blocks,
            block: Vec::new(),
            taken: 0,
            ended: false,
        }))
    }
}

/// A file, as its blocks come.
struct Blocks {
    blocks: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Read for Blocks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.block.len() && !self.ended {
            self.block = self.blocks.recv().map_err(|_| gone())??;
            self.taken = 0;
            self.ended = self.block.is_empty();
        }
        let rest = &self.block[self.taken..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

fn gone() -> io::Error {
    io::Error::other("the snapshot is not read any more: an error came before")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Files in memory; one of them cannot be read to its end.
    struct Files(BTreeMap<String, Vec<u8>>);

    const BROKEN: &str = "broken";

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("rot"))
        }
    }

    impl SnapshotReader for Files {
        fn position(&self) -> LogPosition {
            LogPosition::default()
        }

        fn files(&self) -> Vec<(String, u64)> {
            let named = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), bytes.len() as u64);
            self.0.iter().map(named).collect()
        }

        fn file(&mut self, name: &str) -> io::Result<Box<dyn Read + '_>> {
            let content = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(match name {
                BROKEN => Box::new(content.chain(Broken)),
                _ => Box::new(&content[..]),
            })
        }
    }

    fn files() -> Files {
        let content = |bytes: usize| (0..bytes).map(|at| (at / 7) as u8).collect();
        let large = BLOCK_BYTES * (BLOCKS_AHEAD + 3) + 5;
        let files = [("empty", 0), ("large", large), ("small", 3), (BROKEN, 9)];
        let named = |(name, bytes): (&str, usize)| (name.to_owned(), content(bytes));
        Files(files.map(named).into())
    }

    fn with<T>(test: impl FnOnce(&mut dyn SnapshotReader) -> T) -> T {
        let mut test = Some(test);
        read_ahead(&mut files(), |snapshot| {
            test.take().expect("once is enough")(snapshot)
        })
    }

    #[test]
    fn files_come_as_they_are_again_and_again_and_in_any_order() {
        let expected = files();
        with(|snapshot| {
            assert_eq!(snapshot.files(), expected.files());
            for name in ["small", "large", "empty", "large"] {
                let mut content = Vec::new();
                let mut file = snapshot.file(name).unwrap();
                file.read_to_end(&mut content).unwrap();
                assert!(content == expected.0[name], "{name}");
                assert_eq!(file.read(&mut [0; 8]).unwrap(), 0);
            }
        });
    }

    #[test]
    fn a_file_that_is_left_half_read_is_in_nobodys_way() {
        with(|snapshot| {
            let mut first = [9];
            snapshot
                .file("large")
                .unwrap()
                .read_exact(&mut first)
                .unwrap();
            assert_eq!(first, [0]);
            let mut content = Vec::new();
            snapshot
                .file("small")
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
            assert_eq!(content, [0, 0, 0]);
        });
    }

    #[test]
    fn what_goes_wrong_is_told_where_it_happens() {
        with(|snapshot| {
            let missing = snapshot.file("missing").err().unwrap();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
            let mut content = Vec::new();
            let mut file = snapshot.file(BROKEN).unwrap();
            let error = file.read_to_end(&mut content).unwrap_err();
            assert_eq!(error.to_string(), "rot");
            // Never an end: whoever tries again does not take what it has for all of it.
            assert!(file.read(&mut [0; 8]).is_err());
        });
    }
}
