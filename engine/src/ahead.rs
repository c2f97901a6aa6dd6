//! Reading a snapshot ahead of the machine that takes it over: on a thread of its own, by a few blocks.
//!
//! Whoever takes over a gibibyte in memory needs about as long for the pairs as it takes to get the bytes from the
//! device and to verify them. On two processors both are done at once.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use logdrive_raft::LogPosition;
use logdrive_shard::{Fatal, SnapshotReader};
use logdrive_wal::snapshots::Pace;

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
    pace: &mut Pace<'_>,
    mut take: impl FnMut(&mut dyn SnapshotReader) -> T,
) -> T {
    let (mut ahead, asked) = ahead(reader);
    let source = &mut *reader;
    let taken = std::thread::scope(|scope| {
        // Its priority is that of the thread which takes the snapshot over.
        let thread = std::thread::Builder::new().name("logdrive-ahead".to_owned());
        let read = move || asked.serve(source, pace);
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
    fn serve(self, reader: &mut dyn SnapshotReader, pace: &mut Pace<'_>) {
        while let Ok(Ask { name, blocks }) = self.0.recv() {
            let served = Fatal::catch(|| match reader.file(&name) {
                Ok(file) => send_all(file, pace, &blocks),
                Err(error) => blocks.send(Err(error)).map_err(|_| Unwanted),
            });
            // Nobody may want it any more.
            let _ = match served {
                Ok(served) => served,
                Err(panic) => {
                    let told = blocks.send(Err(io::Error::other(panic.what)));
                    told.map_err(|_| Unwanted)
                }
            };
        }
    }
}

/// Whoever asked is gone.
struct Unwanted;

fn send_all(
    mut file: Box<dyn Read + '_>,
    pace: &mut Pace<'_>,
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
        // A machine takes over all of a snapshot, also when its node ends meanwhile; only faster then.
        let _ = pace(block.len());
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
    use std::ops::ControlFlow;

    use super::*;

    /// Files in memory; two of them cannot be read to their ends.
    struct Files(BTreeMap<String, Vec<u8>>);

    const BROKEN: &str = "broken";
    const PANICKING: &str = "panicking";

    /// The end that a file has by its name.
    struct End<'a>(&'a str);

    impl Read for End<'_> {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            match self.0 {
                BROKEN => Err(io::Error::other("rot")),
                PANICKING => panic!("not our code"),
                _ => Ok(0),
            }
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
            let (name, _) = self.0.get_key_value(name).expect("it has content");
            Ok(Box::new(content.chain(End(name))))
        }
    }

    fn files() -> Files {
        let content = |bytes: usize| (0..bytes).map(|at| (at / 7) as u8).collect();
        let large = BLOCK_BYTES * (BLOCKS_AHEAD + 3) + 5;
        let files = [
            ("empty", 0),
            ("large", large),
            ("small", 3),
            (BROKEN, 9),
            (PANICKING, 9),
        ];
        let named = |(name, bytes): (&str, usize)| (name.to_owned(), content(bytes));
        Files(files.map(named).into())
    }

    /// Says how many bytes went at the pace.
    fn with(test: impl FnOnce(&mut dyn SnapshotReader)) -> usize {
        let mut test = Some(test);
        let mut paced = 0;
        let mut pace = |bytes| {
            paced += bytes;
            ControlFlow::Continue(())
        };
        read_ahead(&mut files(), &mut pace, |snapshot| {
            test.take().expect("once is enough")(snapshot);
        });
        paced
    }

    #[test]
    fn files_come_as_they_are_again_and_again_and_in_any_order() {
        let expected = files();
        let paced = with(|snapshot| {
            assert_eq!(snapshot.files(), expected.files());
            for name in ["small", "large", "empty", "large"] {
                let mut content = Vec::new();
                let mut file = snapshot.file(name).unwrap();
                file.read_to_end(&mut content).unwrap();
                assert!(content == expected.0[name], "{name}");
                assert_eq!(file.read(&mut [0; 8]).unwrap(), 0);
            }
        });
        let bytes = |name: &str| expected.0[name].len();
        assert_eq!(paced, bytes("small") + 2 * bytes("large"));
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
            for (name, why) in [(BROKEN, "rot"), (PANICKING, "panicked: not our code")] {
                let mut file = snapshot.file(name).unwrap();
                let error = file.read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(error.to_string(), why);
                // Never an end: whoever tries again does not take what it has for all of it.
                assert!(file.read(&mut [0; 8]).is_err());
            }
            let mut small = Vec::new();
            let mut file = snapshot.file("small").unwrap();
            file.read_to_end(&mut small).unwrap();
            assert_eq!(small.len(), 3);
        });
    }
}
