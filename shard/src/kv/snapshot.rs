//! A snapshot of the key-value machine: two files, `table` and `ledger`.
//!
//! ```text
//! table    magic "LDKVTABL", version u32 (1)
//!          applied u64, malformed u64, digest u64, pairs u64
//!          each pair: key_len u16, value_len u32, key, value
//!
//! ledger   magic "LDKVLEDG", version u32 (1)
//!          untracked u64, chunks u64, clients u64
//!          each client: client u64, applied u64, repeats u64, order hash u64,
//!                       count u32 and as many repeated sequences u64,
//!                       count u32 and as many chunks: number u64, 1 024 hashes u64
//! ```
//!
//! Numbers are little endian. Pairs, clients and chunks lie in an order that follows from the state alone, so
//! that equal states are equal bytes; whoever reads takes them in any order. Nothing follows the last of them.

use std::hint::black_box;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use logdrive_raft::Index;

use super::State;
use super::command::KEY_BYTES_MAX;
use super::hash;
use super::ledger::{Ledger, LedgerSnapshot};
use super::pairs::Place;
use super::table::{Table, TableSnapshot};
use super::{COUNT_MAX, VALUE_BYTES_MAX};
use crate::machine::Fatal;
use crate::snapshot::{SnapshotReader, SnapshotSource, SnapshotWriter};

/// What a [`Kv`](super::Kv) held at one point. It shares with the machine what that has not changed since.
#[derive(Debug)]
pub struct KvSnapshot {
    pub(super) table: TableSnapshot,
    pub(super) ledger: LedgerSnapshot,
    pub(super) applied: Index,
    pub(super) malformed: u64,
}

const TABLE_FILE: &str = "table";
const LEDGER_FILE: &str = "ledger";

const TABLE_MAGIC: [u8; 8] = *b"LDKVTABL";
const LEDGER_MAGIC: [u8; 8] = *b"LDKVLEDG";

/// The newest format this build writes and reads.
const VERSION: u32 = 1;

const BUFFER_BYTES: usize = 64 << 10;

/// Less than what allocators map by itself, 128 KiB.
const ROOM_BYTES: usize = 112 << 10;

/// Hardly a pair takes less of a file. Memory is taken for no more pairs than may be in it, whatever it says.
const PAIR_BYTES_MIN: u64 = 16;

impl SnapshotSource for KvSnapshot {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, out.begin_file(TABLE_FILE)?);
        write_head(&mut file, TABLE_MAGIC)?;
        write_u64(&mut file, self.applied.0)?;
        write_u64(&mut file, self.malformed)?;
        write_u64(&mut file, self.table.digest)?;
        write_u64(&mut file, self.table.len() as u64)?;
        self.table
            .write_pairs(|key, value| write_pair(&mut file, key, value))?;
        file.flush()?;
        drop(file);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, out.begin_file(LEDGER_FILE)?);
        write_head(&mut file, LEDGER_MAGIC)?;
        self.ledger.write_to(&mut file)?;
        file.flush()
    }
}

/// The state in a snapshot.
pub(super) fn read(snapshot: &mut dyn SnapshotReader, chunks_max: usize) -> Result<State, Fatal> {
    let files = snapshot.files();
    let known = |name: &str| [TABLE_FILE, LEDGER_FILE].contains(&name);
    if let Some((name, _)) = files.iter().find(|(name, _)| !known(name)) {
        return Err(Fatal::new(format!(
            "the snapshot has a file {name:?}, which this build does not know: upgrade logdrive"
        )));
    }
    let last = snapshot.position().index;
    let table_bytes = files.iter().find(|(name, _)| name == TABLE_FILE);
    let table_bytes = table_bytes.map_or(0, |(_, bytes)| *bytes);
    let mut file = Input::open(snapshot, TABLE_FILE)?;
    let read = read_table(&mut file, last, table_bytes / PAIR_BYTES_MIN);
    let (table, applied, malformed) = read.map_err(in_file(TABLE_FILE))?;
    drop(file);
    let mut file = Input::open(snapshot, LEDGER_FILE)?;
    let ledger = read_ledger(&mut file, chunks_max).map_err(in_file(LEDGER_FILE))?;
    Ok(State {
        table,
        ledger,
        applied,
        malformed,
    })
}

fn in_file(name: &str) -> impl Fn(Fatal) -> Fatal {
    move |fatal| Fatal::new(format!("the file {name:?} of the snapshot: {}", fatal.what))
}

/// Allocators give a thread's heap the pages that the next allocation needs and no more, by a system call: a million of
/// them for a gibibyte of values, a quarter of the time of all this. What was there once stays there for a while, so
/// that asking for more and giving it back makes room for many.
fn make_room(left_bytes: &mut usize, bytes: usize) {
    if *left_bytes < bytes {
        *left_bytes = ROOM_BYTES;
        drop(black_box(Vec::<u8>::with_capacity(ROOM_BYTES)));
    }
    *left_bytes = left_bytes.saturating_sub(bytes);
}

/// `pairs_at_most`: room is made for no more at once.
fn read_table(
    file: &mut Input<'_>,
    last: Index,
    pairs_at_most: u64,
) -> Result<(Table, Index, u64), Fatal> {
    file.head(TABLE_MAGIC)?;
    let applied = file.u64()?;
    if last.0 < applied {
        return Err(Fatal::new(format!(
            "it has applied entry {applied}, and the snapshot ends at entry {last}"
        )));
    }
    let malformed = file.at_most("malformed commands", COUNT_MAX)?;
    let digest = file.u64()?;
    let pairs = file.u64()?;
    let mut table = Table::with_room(usize::try_from(pairs.min(pairs_at_most)).unwrap_or(0));
    let mut pair = Vec::new();
    let mut room = 0;
    for _ in 0..pairs {
        let key_bytes = file.u16()?.into();
        let value_bytes = file.u32()? as usize;
        at_most("key", key_bytes, KEY_BYTES_MAX)?;
        at_most("value", value_bytes, VALUE_BYTES_MAX)?;
        make_room(&mut room, value_bytes);
        file.with(key_bytes + value_bytes, &mut pair, |pair| {
            let (key, value) = pair.split_at(key_bytes);
            let place = Place {
                key,
                key_hash: hash::bytes(key),
                near: None,
            };
            table.put(place, value, hash::bytes(value));
        })?;
    }
    file.end()?;
    let found = table.len() as u64;
    if found != pairs {
        return Err(Fatal::new(format!("{pairs} pairs have {found} keys")));
    }
    if table.digest() != digest {
        return Err(Fatal::new(format!(
            "the digest of the pairs is {:#x}, and should be {digest:#x}",
            table.digest()
        )));
    }
    Ok((table, Index(applied), malformed))
}

fn at_most(what: &str, bytes: usize, bytes_max: usize) -> Result<(), Fatal> {
    if bytes_max < bytes {
        return Err(Fatal::new(format!(
            "a {what} of {bytes} bytes is more than {bytes_max}"
        )));
    }
    Ok(())
}

fn read_ledger(file: &mut Input<'_>, chunks_max: usize) -> Result<Ledger, Fatal> {
    file.head(LEDGER_MAGIC)?;
    let ledger = Ledger::read_from(file, chunks_max)?;
    file.end()?;
    Ok(ledger)
}

fn write_head(out: &mut impl Write, magic: [u8; 8]) -> io::Result<()> {
    out.write_all(&magic)?;
    out.write_all(&VERSION.to_le_bytes())
}

fn write_pair(out: &mut impl Write, key: &[u8], value: &[u8]) -> io::Result<()> {
    // Commands are bounded, so these fit: `VALUE_BYTES_MAX` and `KEY_BYTES_MAX`.
    out.write_all(&(key.len() as u16).to_le_bytes())?;
    out.write_all(&(value.len() as u32).to_le_bytes())?;
    out.write_all(key)?;
    out.write_all(value)
}

pub(super) fn write_u64(out: &mut impl Write, number: u64) -> io::Result<()> {
    out.write_all(&number.to_le_bytes())
}

/// A file of a snapshot, on its way in. What it says about lengths costs nothing before the bytes are there,
/// but for room in the table for as many pairs as may be in so long a file.
pub(super) struct Input<'a> {
    file: BufReader<Box<dyn Read + 'a>>,
}

impl<'a> Input<'a> {
    fn open(snapshot: &'a mut dyn SnapshotReader, name: &str) -> Result<Self, Fatal> {
        let file = snapshot.file(name)?;
        Ok(Self {
            file: BufReader::with_capacity(BUFFER_BYTES, file),
        })
    }

    fn head(&mut self, expected: [u8; 8]) -> Result<(), Fatal> {
        if self.array::<8>()? != expected {
            return Err(Fatal::new("it is no such file: its first bytes are others"));
        }
        match self.u32()? {
            VERSION => Ok(()),
            version => Err(Fatal::new(format!(
                "it has format version {version}, and this build reads version {VERSION}: upgrade logdrive"
            ))),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fatal> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16, Fatal> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fatal> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fatal> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things that are counted on from there.
    pub(super) fn at_most(&mut self, what: &str, max: u64) -> Result<u64, Fatal> {
        match self.u64()? {
            number if number <= max => Ok(number),
            number => Err(Fatal::new(format!("{number} {what} are more than {max}"))),
        }
    }

    /// Hands out the next bytes where they lie, or, if they do not lie in one piece, from `room`.
    fn with(
        &mut self,
        bytes: usize,
        room: &mut Vec<u8>,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Fatal> {
        if let Some(lying) = self.file.buffer().get(..bytes) {
            take(lying);
            self.file.consume(bytes);
            return Ok(());
        }
        room.clear();
        self.file.by_ref().take(bytes as u64).read_to_end(room)?;
        if room.len() < bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        take(room);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fatal> {
        if self.file.fill_buf()?.is_empty() {
            Ok(())
        } else {
            Err(Fatal::new("bytes follow where it should end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use logdrive_raft::wire::Encode;
    use logdrive_raft::{LogPosition, Term};

    use super::super::{Command, Kv, KvReader, Op, Origin};
    use super::*;
    use crate::machine::StateMachine;
    use crate::snapshot::MemorySnapshot;

    type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

    /// A machine, and what it must hold.
    #[derive(Default)]
    struct Known {
        kv: Kv,
        pairs: Pairs,
        index: u64,
        random: fastrand::Rng,
    }

    impl Known {
        fn new(seed: u64) -> Self {
            Self {
                random: fastrand::Rng::with_seed(seed),
                ..Self::default()
            }
        }

        /// Applies so many random commands, one an entry.
        fn apply(&mut self, commands: u64) {
            for _ in 0..commands {
                self.index += 1;
                let key = format!("key {}", self.random.u16(0..2_000)).into_bytes();
                let value = vec![self.random.u8(..); self.random.usize(0..60)];
                let deletes = self.random.u8(0..4) == 0;
                let command = Command {
                    origin: Some(Origin {
                        client: self.random.u64(0..5),
                        sequence: self.random.u64(0..5_000),
                    }),
                    key: &key,
                    op: if deletes { Op::Delete } else { Op::Put(&value) },
                };
                let payload = command.to_bytes();
                let entry = [(0, &payload[..])];
                self.kv
                    .apply_entry(Index(self.index), entry, &mut Vec::new());
                if deletes {
                    self.pairs.remove(&key);
                } else {
                    self.pairs.insert(key, value);
                }
            }
        }

        fn position(&self) -> LogPosition {
            LogPosition {
                index: Index(self.index),
                term: Term(1),
                ..LogPosition::default()
            }
        }

        fn written(&mut self) -> MemorySnapshot {
            let handle = self.kv.snapshot().unwrap();
            MemorySnapshot::of(handle, self.position()).unwrap()
        }
    }

    fn restored(snapshot: &MemorySnapshot) -> Kv {
        let mut kv = Kv::default();
        kv.install(&mut snapshot.clone()).unwrap();
        kv
    }

    fn check_pairs(reader: &KvReader, pairs: &Pairs) {
        assert_eq!(reader.summary().keys, pairs.len() as u64);
        for (key, value) in pairs {
            assert_eq!(reader.get(key).as_ref(), Some(value));
        }
    }

    #[test]
    fn what_is_restored_is_what_there_was() {
        let mut known = Known::new(1);
        known.apply(5_000);
        known
            .kv
            .apply_entry(Index(5_000), [(0, &b"?"[..])], &mut Vec::new());
        let snapshot = known.written();
        let kv = restored(&snapshot);
        let (reader, original) = (kv.reader(), known.kv.reader());
        assert_eq!(reader.summary(), original.summary());
        assert_eq!(reader.summary().malformed, 1);
        check_pairs(&reader, &known.pairs);
        assert_eq!(reader.clients(), [0, 1, 2, 3, 4]);
        for client in reader.clients() {
            let ledger = reader.client(client).unwrap();
            assert!(ledger.repeats > 0);
            assert_eq!(Some(ledger), original.client(client));
        }
        let mut again = Known {
            kv,
            pairs: known.pairs.clone(),
            index: known.index,
            random: known.random.clone(),
        };
        known.apply(1_000);
        again.apply(1_000);
        assert_eq!(again.kv.reader().summary(), known.kv.reader().summary());
        assert_eq!(again.written(), known.written());
    }

    #[test]
    fn a_handle_shows_what_was_there_when_it_was_taken() {
        let mut known = Known::new(2);
        for _ in 0..5 {
            known.apply(1_000);
            let (pairs, at) = (known.pairs.clone(), known.position());
            let (summary, clients) = (known.kv.reader().summary(), known.kv.reader().client(3));
            let handle = known.kv.snapshot().unwrap();
            known.apply(1_000);
            let snapshot = MemorySnapshot::of(handle, at).unwrap();
            let reader = restored(&snapshot).reader();
            assert_eq!(reader.summary(), summary);
            assert_eq!(reader.client(3), clients);
            check_pairs(&reader, &pairs);
            check_pairs(&known.kv.reader(), &known.pairs);
        }
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "that they are two threads is the point"
    )]
    fn a_snapshot_is_written_while_the_machine_goes_on() {
        let mut known = Known::new(3);
        known.apply(3_000);
        let (at, summary) = (known.position(), known.kv.reader().summary());
        let handle = known.kv.snapshot().unwrap();
        let writer = std::thread::spawn(move || MemorySnapshot::of(handle, at).unwrap());
        known.apply(3_000);
        let snapshot = writer.join().unwrap();
        assert_eq!(restored(&snapshot).reader().summary(), summary);
    }

    #[test]
    fn an_install_replaces_all_there_was_for_old_readers_too() {
        let mut source = Known::new(4);
        source.apply(2_000);
        let snapshot = source.written();
        let mut other = Known::new(5);
        other.apply(2_000);
        let reader = other.kv.reader();
        let handle = other.kv.snapshot().unwrap();
        other.kv.install(&mut snapshot.clone()).unwrap();
        assert_eq!(reader.summary(), source.kv.reader().summary());
        check_pairs(&reader, &source.pairs);
        let before = MemorySnapshot::of(handle, other.position()).unwrap();
        check_pairs(&restored(&before).reader(), &other.pairs);
    }

    /// A snapshot of a pair, a malformed command and a repeat.
    fn small() -> MemorySnapshot {
        let mut kv = Kv::default();
        let command = Command {
            origin: Some(Origin {
                client: 7,
                sequence: 2,
            }),
            key: b"key",
            op: Op::Put(b"value"),
        };
        let payload = command.to_bytes();
        let entry = [(0, &payload[..]), (1, &payload[..]), (2, &b"?"[..])];
        kv.apply_entry(Index(9), entry, &mut Vec::new());
        let at = LogPosition {
            index: Index(10),
            ..LogPosition::default()
        };
        MemorySnapshot::of(kv.snapshot().unwrap(), at).unwrap()
    }

    #[test]
    fn a_snapshot_has_these_bytes() {
        let snapshot = small();
        let table = b"LDKVTABL\x01\0\0\0\
            \x09\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\xcc\xa5\x08\xdf\xf1\xb4J\xf7\x01\0\0\0\0\0\0\0\
            \x03\0\x05\0\0\0keyvalue";
        assert_eq!(
            snapshot.files["table"].escape_ascii().to_string(),
            table.escape_ascii().to_string()
        );
        let ledger = &snapshot.files["ledger"];
        let head = b"LDKVLEDG\x01\0\0\0\
            \0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\
            \x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0q0x\xa9\x81\xdc\xea\x15\
            \x01\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0";
        let (found, hashes) = ledger.split_at(head.len());
        assert_eq!(
            found.escape_ascii().to_string(),
            head.escape_ascii().to_string()
        );
        assert_eq!(hashes.len(), 1_024 * 8);
        let hash = super::super::applied_hash(b"value", Index(9), 0);
        assert_eq!(hashes[16..24], hash.to_le_bytes());
    }

    /// What a machine says to a snapshot, which it must either have then or not have touched.
    fn installs(snapshot: &MemorySnapshot) -> Result<(), Fatal> {
        let mut known = Known::new(6);
        known.apply(20);
        let (before, ledger) = (known.kv.reader().summary(), known.kv.reader().client(1));
        let installed = known.kv.install(&mut snapshot.clone());
        if installed.is_err() {
            let reader = known.kv.reader();
            assert_eq!(reader.summary(), before);
            assert_eq!(reader.client(1), ledger);
            check_pairs(&reader, &known.pairs);
        }
        installed
    }

    #[test]
    fn a_snapshot_that_ends_anywhere_is_refused() {
        let whole = small();
        for (name, content) in &whole.files {
            for end in 0..content.len() {
                let mut torn = whole.clone();
                torn.files.insert(name.clone(), content[..end].to_vec());
                let fatal = installs(&torn).unwrap_err();
                assert!(fatal.what.contains(&format!("{name:?}")), "{fatal}");
            }
            let mut longer = whole.clone();
            longer
                .files
                .insert(name.clone(), [&content[..], b"x"].concat());
            assert!(installs(&longer).unwrap_err().what.contains("bytes follow"));
            let mut missing = whole.clone();
            missing.files.remove(name);
            assert!(installs(&missing).is_err());
        }
        assert!(installs(&whole).is_ok());
    }

    #[test]
    fn a_snapshot_with_wrong_bytes_is_refused_or_goes_on() {
        let whole = small();
        for (name, content) in &whole.files {
            for place in (0..content.len()).filter(|place| place % 64 < 40 || *place < 200) {
                for flip in [0x01, 0x80, 0xff] {
                    let mut wrong = whole.clone();
                    wrong.files.get_mut(name).unwrap()[place] ^= flip;
                    // Who wrote the snapshot can lie about what was applied, and harms nobody by that.
                    if installs(&wrong).is_ok() {
                        let mut known = Known::new(7);
                        known.kv.install(&mut wrong).unwrap();
                        known.apply(20);
                        known
                            .kv
                            .apply_entry(Index(30), [(0, &b"?"[..])], &mut Vec::new());
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_told_from_damage() {
        let mut later = small();
        later.files.get_mut("ledger").unwrap()[8] = 2;
        let expected = "the file \"ledger\" of the snapshot: it has format version 2, and this build reads \
                        version 1: upgrade logdrive";
        assert_eq!(installs(&later).unwrap_err().what, expected);
        let mut more = small();
        more.files.insert("leases".to_owned(), Vec::new());
        assert!(installs(&more).unwrap_err().what.contains("\"leases\""));
    }

    #[test]
    fn a_ledger_beyond_the_bound_is_refused() {
        let mut kv = Kv::with_ledger_of(0);
        let fatal = kv.install(&mut small()).unwrap_err();
        assert!(fatal.what.contains("1 chunks are more than 0"), "{fatal}");
    }
}
