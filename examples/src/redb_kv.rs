//! A key-value machine on disk, on [`redb`]: a state that need not fit memory, and a restart that need not
//! apply the log again.
//!
//! Each entry is one transaction of redb, which stores the effects and the entry's place in the log together.
//! Those transactions are not durable one by one: redb drops a suffix of them in a crash, as wholes, and the
//! log still has what was dropped, for it is cut only below what [`StateMachine::flush`] said is durable.
//!
//! A snapshot is a checkpoint of the database: a read transaction, which costs nothing to begin and goes on
//! showing that state, whatever is applied later. One from elsewhere becomes a database of its own beside the
//! old one and then takes its place by a rename.
//!
//! The file `pairs` of a snapshot, with numbers in little endian:
//!
//! ```text
//! "redbkv\0" version u8 (1)
//! for each pair, keys ascending:  1 u8, key_len u32, value_len u32, key, value
//! at the end:                     0 u8, pairs u64
//! ```

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logdrive::{
    Batch, Chain, Durable, Fatal, Index, LogPosition, SnapshotReader, SnapshotSource,
    SnapshotWriter, StateMachine, Term,
};
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    Table, TableDefinition,
};

use crate::command::{Command, KEY_BYTES_MAX, Reply};

/// A replicated map from keys to values, in a directory of its own.
///
/// One group, one directory: two groups of a node each need theirs.
#[derive(Debug)]
pub struct RedbKv {
    dir: PathBuf,
    open: Arc<Open>,
    /// The last entry with proposals, or the end of the snapshot that was installed.
    applied: LogPosition,
    /// As much of that survives a crash for certain.
    durable: LogPosition,
    /// Bytes of the payloads in between.
    not_durable_bytes: usize,
}

/// Reads a [`RedbKv`] while it goes on applying. Each call sees the state between two entries.
#[derive(Clone, Debug)]
pub struct RedbReader {
    open: Arc<Open>,
}

/// The state of a [`RedbKv`] at one point.
pub struct RedbSnapshot {
    transaction: ReadTransaction,
    // The machine may have gone on to another one. Dropped after what reads it.
    _database: Arc<Database>,
}

/// The database in use. None before `open`, and none any more once the machine is gone: redb locks its file, so
/// a reader that somebody has kept must not stand in the way of the next opening.
#[derive(Debug, Default)]
struct Open {
    database: Mutex<Option<Arc<Database>>>,
}

impl RedbKv {
    /// A machine whose database lies in `dir`, which is made if it is not there. Nothing is opened yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            open: Arc::default(),
            applied: LogPosition::default(),
            durable: LogPosition::default(),
            not_durable_bytes: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// Builds a database that holds a snapshot, durably, under a name that counts for nothing.
    fn build(&self, snapshot: &mut dyn SnapshotReader) -> io::Result<Database> {
        let path = self.dir.join(DATABASE_NEW);
        remove_if_there(&path)?;
        let database = create(&path)?;
        let position = snapshot.position();
        let pairs = BufReader::with_capacity(BUFFER_BYTES, snapshot.file(PAIRS_FILE)?);
        let mut transaction = database.begin_write().map_err(io)?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(PAIRS).map_err(io)?;
            read_pairs(pairs, |key, value| {
                table.insert(key, value).map_err(io).map(drop)
            })?;
            let mut place = transaction.open_table(PLACE).map_err(io)?;
            place.insert((), row(position)).map_err(io)?;
        }
        transaction.commit().map_err(io)?;
        Ok(database)
    }
}

impl StateMachine for RedbKv {
    type Output = Reply;
    type Reader = RedbReader;
    type Snapshot = RedbSnapshot;

    fn open(&mut self) -> Result<Durable, Fatal> {
        fs::create_dir_all(&self.dir)?;
        // What an install left behind that did not come to its rename.
        remove_if_there(&self.dir.join(DATABASE_NEW))?;
        let database = create(&self.path())?;
        let transaction = database.begin_write().map_err(io)?;
        let place = {
            transaction.open_table(PAIRS).map_err(io)?;
            let place = transaction.open_table(PLACE).map_err(io)?;
            let found = place.get(()).map_err(io)?;
            found.map(|row| position(row.value())).unwrap_or_default()
        };
        transaction.commit().map_err(io)?;
        sync_directory(&self.dir)?;
        (self.applied, self.durable) = (place, place);
        self.open.set(Some(Arc::new(database)));
        Ok(place.into())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Reply>) -> Result<(), Fatal> {
        let database = self.open.database()?;
        let mut transaction = database.begin_write().map_err(io)?;
        transaction.set_durability(Durability::None).map_err(io)?;
        {
            let mut table = transaction.open_table(PAIRS).map_err(io)?;
            for (_, payload) in batch.proposals() {
                outputs.push(carry_out(&mut table, payload)?);
                self.not_durable_bytes += payload.len();
            }
            let mut place = transaction.open_table(PLACE).map_err(io)?;
            place.insert((), row(batch.position())).map_err(io)?;
        }
        transaction.commit().map_err(io)?;
        self.applied = batch.position();
        // redb reuses no page before a durable commit, and a restart applies what is missing.
        if NOT_DURABLE_BYTES_MAX <= self.not_durable_bytes {
            self.flush()?;
        }
        Ok(())
    }

    fn reader(&self) -> RedbReader {
        RedbReader {
            open: Arc::clone(&self.open),
        }
    }

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        if self.durable != self.applied {
            let mut transaction = self.open.database()?.begin_write().map_err(io)?;
            // So that an opening after a crash does not have to walk through the whole file.
            transaction.set_quick_repair(true);
            {
                let mut place = transaction.open_table(PLACE).map_err(io)?;
                place.insert((), row(self.applied)).map_err(io)?;
            }
            transaction.commit().map_err(io)?;
            self.durable = self.applied;
            self.not_durable_bytes = 0;
        }
        Ok(Some(self.durable.into()))
    }

    fn snapshot(&mut self) -> Result<RedbSnapshot, Fatal> {
        Ok(RedbSnapshot::of(self.open.database()?)?)
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        let position = snapshot.position();
        let built = match self.build(snapshot) {
            Ok(built) => built,
            Err(error) => {
                // An opening would remove it too.
                drop(remove_if_there(&self.dir.join(DATABASE_NEW)));
                return Err(error.into());
            }
        };
        fs::rename(self.dir.join(DATABASE_NEW), self.path())?;
        if let Err(error) = sync_directory(&self.dir) {
            // Which of the two a crash would leave is not known, so neither may be gone on with.
            self.open.set(None);
            return Err(error.into());
        }
        self.open.set(Some(Arc::new(built)));
        (self.applied, self.durable) = (position, position);
        self.not_durable_bytes = 0;
        Ok(())
    }
}

impl Drop for RedbKv {
    fn drop(&mut self) {
        self.open.set(None);
    }
}

impl RedbReader {
    /// The value of a key.
    ///
    /// # Errors
    ///
    /// If the database cannot be read, or the machine is gone.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let snapshot = self.now()?;
        let table = snapshot.transaction.open_table(PAIRS).map_err(io)?;
        let found = table.get(key).map_err(io)?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    /// How many keys have a value.
    ///
    /// # Errors
    ///
    /// As [`RedbReader::get`].
    pub fn count(&self) -> io::Result<u64> {
        let snapshot = self.now()?;
        let table = snapshot.transaction.open_table(PAIRS).map_err(io)?;
        table.len().map_err(io)
    }

    /// Shows every pair, in the order of the keys.
    ///
    /// # Errors
    ///
    /// As [`RedbReader::get`].
    pub fn for_each(&self, see: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        self.now()?.for_each(see)
    }

    /// The last entry with proposals that has been applied, or the end of the snapshot that was installed.
    ///
    /// # Errors
    ///
    /// As [`RedbReader::get`].
    pub fn position(&self) -> io::Result<LogPosition> {
        let snapshot = self.now()?;
        let place = snapshot.transaction.open_table(PLACE).map_err(io)?;
        let found = place.get(()).map_err(io)?;
        Ok(found.map(|row| position(row.value())).unwrap_or_default())
    }

    fn now(&self) -> io::Result<RedbSnapshot> {
        RedbSnapshot::of(self.open.database()?)
    }
}

impl RedbSnapshot {
    fn of(database: Arc<Database>) -> io::Result<Self> {
        Ok(Self {
            transaction: database.begin_read().map_err(io)?,
            _database: database,
        })
    }

    fn for_each(&self, mut see: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let table = self.transaction.open_table(PAIRS).map_err(io)?;
        for pair in table.iter().map_err(io)? {
            let (key, value) = pair.map_err(io)?;
            see(key.value(), value.value())?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for RedbSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedbSnapshot")
    }
}

impl SnapshotSource for RedbSnapshot {
    fn write_to(self, out: &mut dyn SnapshotWriter) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, out.begin_file(PAIRS_FILE)?);
        out.write_all(&HEADER)?;
        let mut count: u64 = 0;
        self.for_each(|key, value| {
            out.write_all(&[PAIR])?;
            for part in [key, value] {
                let len = u32::try_from(part.len()).expect("entries are below 4 GiB");
                out.write_all(&len.to_le_bytes())?;
            }
            out.write_all(key)?;
            out.write_all(value)?;
            count += 1;
            Ok(())
        })?;
        out.write_all(&[END])?;
        out.write_all(&count.to_le_bytes())?;
        out.flush()
    }
}

impl Open {
    fn database(&self) -> io::Result<Arc<Database>> {
        let database = self.lock().clone();
        database.ok_or_else(|| io::Error::other("the database is closed"))
    }

    fn set(&self, database: Option<Arc<Database>>) {
        let before = std::mem::replace(&mut *self.lock(), database);
        // Closing it may write, which nobody has to wait for who wants the new one.
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn carry_out(table: &mut Pairs<'_>, payload: &[u8]) -> io::Result<Reply> {
    Ok(match Command::parse(payload) {
        None => Reply::Malformed,
        Some(Command::Get { key }) => {
            let found = table.get(key).map_err(io)?;
            Reply::Value(found.map(|value| value.value().to_vec()))
        }
        Some(Command::Put { key, value }) => {
            table.insert(key, value).map_err(io)?;
            Reply::Done
        }
        Some(Command::Delete { key }) => {
            table.remove(key).map_err(io)?;
            Reply::Done
        }
        Some(Command::CompareAndSwap { key, expected, new }) => {
            let found = table.get(key).map_err(io)?;
            let same = found.as_ref().map(|value| value.value()) == expected;
            drop(found);
            if same {
                table.insert(key, new).map_err(io)?;
                Reply::Done
            } else {
                Reply::NotSwapped
            }
        }
    })
}

/// Reads the file of a snapshot. It may come from another version, so nothing in it is taken for granted.
fn read_pairs(
    mut from: impl Read,
    mut see: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut header = [0; HEADER.len()];
    from.read_exact(&mut header)?;
    if header != HEADER {
        return Err(invalid("it is none of this machine, or of a later version"));
    }
    let (mut before, mut key, mut value) = (None::<Vec<u8>>, Vec::new(), Vec::new());
    let mut count: u64 = 0;
    loop {
        let [tag] = read_array(&mut from)?;
        match tag {
            PAIR => {}
            END => break,
            _ => return Err(invalid("there is neither a pair nor the end")),
        }
        let key_len = u32::from_le_bytes(read_array(&mut from)?);
        let value_len = u32::from_le_bytes(read_array(&mut from)?);
        read_part(&mut from, key_len, &mut key)?;
        read_part(&mut from, value_len, &mut value)?;
        if KEY_BYTES_MAX < key.len() || before.as_ref().is_some_and(|before| key <= *before) {
            return Err(invalid("its keys are too long or in no order"));
        }
        see(&key, &value)?;
        count += 1;
        let last = before.get_or_insert_default();
        std::mem::swap(last, &mut key);
    }
    let said = u64::from_le_bytes(read_array(&mut from)?);
    if said != count || from.read(&mut [0])? != 0 {
        return Err(invalid("it is longer or shorter than it says"));
    }
    Ok(())
}

fn read_array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Memory grows with what comes, not with what is promised.
fn read_part(from: &mut impl Read, len: u32, into: &mut Vec<u8>) -> io::Result<()> {
    into.clear();
    let read = from.take(len.into()).read_to_end(into)?;
    if read as u64 != u64::from(len) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.create(path).map_err(io)
}

fn row(at: LogPosition) -> (u64, u64, u128) {
    (at.index.0, at.term.0, at.chain.0)
}

fn position((index, term, chain): (u64, u64, u128)) -> LogPosition {
    LogPosition {
        index: Index(index),
        term: Term(term),
        chain: Chain(chain),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A name is durable once its directory is.
fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the snapshot cannot be taken over: {why}"),
    )
}

fn io(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

type Pairs<'a> = Table<'a, &'static [u8], &'static [u8]>;

const PAIRS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("pairs");

/// Index, term and chain of the last entry in the other table.
const PLACE: TableDefinition<'_, (), (u64, u64, u128)> = TableDefinition::new("place");

const DATABASE: &str = "kv.redb";

/// A database that is being built from a snapshot.
const DATABASE_NEW: &str = "kv.redb.new";

const PAIRS_FILE: &str = "pairs";

const HEADER: [u8; 8] = *b"redbkv\0\x01";
const PAIR: u8 = 1;
const END: u8 = 0;

/// How much of the database redb keeps in memory.
const CACHE_BYTES: usize = 64 << 20;

/// After so many bytes of payloads a durable commit is due, whether anybody asks for one or not.
const NOT_DURABLE_BYTES_MAX: usize = 8 << 20;

const BUFFER_BYTES: usize = 256 << 10;
