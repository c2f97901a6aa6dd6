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

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use logdrive_raft::Index;

use super::State;
use super::command::KEY_BYTES_MAX;
use super::hash;
use super::ledger::Ledger;
use super::table::{Place, Table};
use super::{COUNT_MAX, VALUE_BYTES_MAX};
use crate::machine::Fatal;
use crate::snapshot::{SnapshotReader, SnapshotSource, SnapshotWriter};

/// What a [`Kv`](super::Kv) held at one point.
#[derive(Debug)]
pub struct KvSnapshot {
    pub(super) table: Table,
    pub(super) ledger: Ledger,
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

impl SnapshotSource for KvSnapshot {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, out.begin_file(TABLE_FILE)?);
        write_head(&mut file, TABLE_MAGIC)?;
        write_u64(&mut file, self.applied.0)?;
        write_u64(&mut file, self.malformed)?;
        write_u64(&mut file, self.table.digest())?;
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
    let mut file = Input::open(snapshot, TABLE_FILE)?;
    let (table, applied, malformed) = read_table(&mut file, last).map_err(in_file(TABLE_FILE))?;
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

fn read_table(file: &mut Input<'_>, last: Index) -> Result<(Table, Index, u64), Fatal> {
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
    let mut table = Table::default();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let key_bytes = file.u16()?.into();
        let value_bytes = file.u32()? as usize;
        file.bytes(&mut key, key_bytes, KEY_BYTES_MAX)?;
        file.bytes(&mut value, value_bytes, VALUE_BYTES_MAX)?;
        let place = Place {
            key: &key,
            key_hash: hash::bytes(&key),
            near: None,
        };
        table.put(place, &value, hash::bytes(&value));
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

/// A file of a snapshot, on its way in. What it says about lengths costs nothing before the bytes are there.
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

    /// Reads so many bytes in place of what `into` held.
    fn bytes(&mut self, into: &mut Vec<u8>, bytes: usize, bytes_max: usize) -> Result<(), Fatal> {
        if bytes_max < bytes {
            return Err(Fatal::new(format!(
                "a key or a value of {bytes} bytes is more than {bytes_max}"
            )));
        }
        into.clear();
        self.file.by_ref().take(bytes as u64).read_to_end(into)?;
        if into.len() < bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
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
