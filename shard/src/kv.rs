//! The key-value machine: a map in memory, and a ledger of what was applied for whom.
//!
//! It keeps nothing on disk: after a restart it gets the whole log again. It iterates over no map, so that
//! what it does follows from the log alone.

mod command;
mod hash;
mod ledger;
mod output;
mod pairs;
mod parts;
mod snapshot;
mod table;
mod value;

use arrayvec::ArrayVec;
use logdrive_raft::Index;
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use logdrive_raft::wire::DecodeError;

pub use self::command::{COMMAND_VERSION, Command, KEY_BYTES_MAX, Op, Origin};
pub use self::ledger::{ClientLedger, applied_hash};
pub use self::output::{KvOutput, Reply};
pub use self::snapshot::KvSnapshot;

use self::ledger::{Ledger, place_hash};
use self::pairs::{Near, Place};
use self::table::Table;
use crate::machine::{Batch, Durable, Fatal, StateMachine};
use crate::snapshot::SnapshotReader;
use crate::sync::{Arc, Mutex, lock};

/// A replicated map from keys to values.
///
/// ```
/// use logdrive_raft::Index;
/// use logdrive_raft::wire::Encode;
/// use logdrive_shard::kv::{Command, Kv, Op, Reply};
///
/// let mut kv = Kv::default();
/// let put = Command { origin: None, key: b"river", op: Op::Put(b"deep") };
/// let get = Command { origin: None, key: b"river", op: Op::Get };
/// let (put, get) = (put.to_bytes(), get.to_bytes());
/// let mut outputs = Vec::new();
/// kv.apply_entry(Index(1), [(0, &put[..]), (1, &get[..])], &mut outputs);
/// assert_eq!(outputs[0].reply(), Reply::Done);
/// assert_eq!(outputs[1].reply(), Reply::Value(b"deep"));
/// ```
#[derive(Debug)]
pub struct Kv {
    // Held by `apply` for an entry at a time, and by readers for microseconds.
    state: Arc<Mutex<State>>,
}

/// Reads a [`Kv`] while it goes on applying.
#[derive(Clone, Debug)]
pub struct KvReader {
    state: Arc<Mutex<State>>,
}

/// What a [`Kv`] holds, in numbers that are equal on all replicas that applied the same log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvSummary {
    /// The last entry applied.
    pub applied: Index,
    /// How many keys have a value.
    pub keys: u64,
    /// A hash over all keys and values, whatever the order in which they came to be.
    pub digest: u64,
    /// How many commands could not be read.
    pub malformed: u64,
    /// How many commands the verify ledger did not keep because it was full.
    pub untracked: u64,
}

#[derive(Debug)]
struct State {
    table: Table,
    ledger: Ledger,
    applied: Index,
    malformed: u64,
}

impl Default for Kv {
    fn default() -> Self {
        Self::with_ledger_of(LEDGER_CHUNKS_MAX)
    }
}

impl Kv {
    fn with_ledger_of(chunks_max: usize) -> Self {
        let state = State {
            table: Table::default(),
            ledger: Ledger::new(chunks_max),
            applied: Index(0),
            malformed: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Applies one entry: one output a proposal, in the order of the proposals.
    pub fn apply_entry<'a>(
        &mut self,
        index: Index,
        proposals: impl IntoIterator<Item = (u32, &'a [u8])>,
        outputs: &mut Vec<KvOutput>,
    ) {
        let mut state = lock(&self.state);
        let mut proposals = proposals.into_iter();
        let mut window = ArrayVec::<Parsed<'a>, WINDOW>::new();
        loop {
            window.extend(proposals.by_ref().take(WINDOW).map(Parsed::new));
            if window.is_empty() {
                break;
            }
            state.reach(&mut window);
            for parsed in window.drain(..) {
                outputs.push(state.apply_one(index, &parsed));
            }
        }
        state.applied = index;
    }

    /// A handle for reads.
    #[must_use]
    pub fn reader(&self) -> KvReader {
        KvReader {
            state: Arc::clone(&self.state),
        }
    }
}

impl StateMachine for Kv {
    type Output = KvOutput;
    type Reader = KvReader;
    type Snapshot = KvSnapshot;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<KvOutput>) -> Result<(), Fatal> {
        self.apply_entry(batch.index(), batch.proposals(), outputs);
        Ok(())
    }

    fn reader(&self) -> KvReader {
        Kv::reader(self)
    }

    fn snapshot(&mut self) -> Result<KvSnapshot, Fatal> {
        let mut state = lock(&self.state);
        Ok(KvSnapshot {
            table: state.table.snapshot(),
            ledger: state.ledger.snapshot(),
            applied: state.applied,
            malformed: state.malformed,
        })
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        let chunks_max = lock(&self.state).ledger.chunks_max();
        let state = snapshot::read(snapshot, chunks_max)?;
        // The old state goes when nobody waits for it: that takes a while.
        let old = std::mem::replace(&mut *lock(&self.state), state);
        drop(old);
        Ok(())
    }
}

impl KvReader {
    /// What the machine holds, in numbers.
    #[must_use]
    pub fn summary(&self) -> KvSummary {
        let state = lock(&self.state);
        KvSummary {
            applied: state.applied,
            keys: state.table.len() as u64,
            digest: state.table.digest(),
            malformed: state.malformed,
            untracked: state.ledger.untracked(),
        }
    }

    /// The value of a key on this replica, which may be behind what others have.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        let place = Place {
            key,
            key_hash: hash::bytes(key),
            near: None,
        };
        state.table.get(place).map(<[u8]>::to_vec)
    }

    /// The clients that the verify ledger knows, in the order of their numbers.
    #[must_use]
    pub fn clients(&self) -> Vec<u64> {
        lock(&self.state).ledger.clients()
    }

    /// What was applied for a client.
    #[must_use]
    pub fn client(&self, client: u64) -> Option<ClientLedger> {
        lock(&self.state).ledger.client(client)
    }
}

/// How many commands are looked up before the first of them is carried out.
const WINDOW: usize = 32;

/// A command that is about to be carried out.
struct Parsed<'a> {
    slot: u32,
    command: Result<Command<'a>, DecodeError>,
    key_hash: u64,
    near: Option<Near>,
}

impl<'a> Parsed<'a> {
    fn new((slot, payload): (u32, &'a [u8])) -> Self {
        let command = Command::parse(payload);
        let key_hash = command
            .as_ref()
            .map_or(0, |command| hash::bytes(command.key));
        Self {
            slot,
            command,
            key_hash,
            near: None,
        }
    }
}

impl State {
    /// Looks up what the commands are about. A processor that waits for one pair's memory goes on to the
    /// next one's, since no lookup depends on another; carried out one by one, each would wait alone.
    fn reach(&self, window: &mut [Parsed<'_>]) {
        for parsed in window {
            let replaces = |command: &Command<'_>| matches!(command.op, Op::Put(_) | Op::Delete);
            let is_replaced = parsed.command.as_ref().is_ok_and(replaces);
            parsed.near = self.table.reach(parsed.key_hash, is_replaced);
        }
    }

    fn apply_one(&mut self, index: Index, parsed: &Parsed<'_>) -> KvOutput {
        let command = match &parsed.command {
            Ok(command) => *command,
            Err(error) => {
                self.malformed += 1;
                return KvOutput::malformed(error);
            }
        };
        let Command { origin, key, op } = command;
        let place = Place {
            key,
            key_hash: parsed.key_hash,
            near: parsed.near,
        };
        let value_hash = hash::bytes(op.value());
        if let Some(origin) = origin {
            let hash = place_hash(value_hash, index, parsed.slot);
            self.ledger.record(origin, hash);
        }
        let table = &mut self.table;
        table.sweep(op.value().len());
        match op {
            Op::Get => KvOutput::get(table.get(place)),
            Op::Put(value) => {
                table.put(place, value, value_hash);
                KvOutput::done()
            }
            Op::Delete => {
                table.remove(place);
                KvOutput::done()
            }
            Op::CompareAndSwap { expected, new } => {
                let found = table.get(place);
                if found == expected {
                    table.put(place, new, value_hash);
                    KvOutput::done()
                } else {
                    KvOutput::mismatch(found)
                }
            }
            Op::Append(tail) => {
                let bytes = table.get(place).map_or(0, <[u8]>::len) + tail.len();
                if bytes > VALUE_BYTES_MAX {
                    return KvOutput::too_large(bytes, VALUE_BYTES_MAX);
                }
                table.append(place, tail);
                KvOutput::done()
            }
        }
    }
}

/// The longest value, in bytes: what one proposal can bring.
pub const VALUE_BYTES_MAX: usize = ENTRY_PAYLOAD_BYTES_MAX;

/// Where counts end that nothing bounds. A snapshot that claims more is not one.
const COUNT_MAX: u64 = 1 << 62;

/// The most chunks of 1 024 sequences that the verify ledger keeps: 33 million sequences, 275 MB.
const LEDGER_CHUNKS_MAX: usize = 1 << 15;

#[cfg(test)]
mod tests {
    use logdrive_raft::wire::Encode;

    use super::*;

    fn command<'a>(key: &'a str, op: Op<'a>) -> Command<'a> {
        Command {
            origin: None,
            key: key.as_bytes(),
            op,
        }
    }

    fn apply(kv: &mut Kv, index: u64, commands: &[Command<'_>]) -> Vec<KvOutput> {
        let payloads: Vec<_> = commands.iter().map(Encode::to_bytes).collect();
        let proposals = payloads.iter().enumerate();
        let mut outputs = Vec::new();
        kv.apply_entry(
            Index(index),
            proposals.map(|(slot, payload)| (slot as u32, &payload[..])),
            &mut outputs,
        );
        assert_eq!(outputs.len(), commands.len());
        outputs
    }

    fn swap<'a>(expected: Option<&'a [u8]>, new: &'a [u8]) -> Op<'a> {
        Op::CompareAndSwap { expected, new }
    }

    #[test]
    fn commands_do_what_they_say() {
        let mut kv = Kv::default();
        let steps: [(Op<'_>, Reply<'_>); 13] = [
            (Op::Get, Reply::Absent),
            (Op::Delete, Reply::Done),
            (swap(Some(b"a"), b"b"), Reply::Mismatch(None)),
            (swap(None, b"a"), Reply::Done),
            (swap(None, b"b"), Reply::Mismatch(Some(b"a"))),
            (swap(Some(b"a"), b"b"), Reply::Done),
            (Op::Get, Reply::Value(b"b")),
            (Op::Put(b"long value"), Reply::Done),
            (Op::Append(b"!"), Reply::Done),
            (Op::Get, Reply::Value(b"long value!")),
            (Op::Delete, Reply::Done),
            (Op::Append(b"new"), Reply::Done),
            (Op::Get, Reply::Value(b"new")),
        ];
        let commands = steps.map(|(op, _)| command("k", op));
        let outputs = apply(&mut kv, 1, &commands);
        for ((op, reply), output) in steps.iter().zip(&outputs) {
            assert_eq!(output.reply(), *reply, "{op:?}");
        }
        assert_eq!(kv.reader().get(b"k").unwrap(), b"new");
        assert_eq!(kv.reader().get(b"other"), None);
    }

    #[test]
    fn a_malformed_command_is_answered_and_changes_nothing() {
        let mut kv = Kv::default();
        apply(&mut kv, 1, &[command("k", Op::Put(b"v"))]);
        let before = kv.reader().summary();
        let mut outputs = Vec::new();
        kv.apply_entry(Index(2), [(0, &b""[..]), (1, &[0xff; 9])], &mut outputs);
        for output in &outputs {
            assert!(matches!(output.reply(), Reply::Malformed(_)), "{output:?}");
        }
        let after = kv.reader().summary();
        assert_eq!((after.malformed, after.applied), (2, Index(2)));
        assert_eq!((after.digest, after.keys), (before.digest, before.keys));
    }

    #[test]
    fn a_value_grows_to_its_bound_and_no_further() {
        let mut kv = Kv::default();
        let half = vec![7; VALUE_BYTES_MAX / 2 + 1];
        let put = command("k", Op::Append(&half));
        let outputs = apply(&mut kv, 1, &[put, put]);
        assert_eq!(outputs[0].reply(), Reply::Done);
        assert!(matches!(outputs[1].reply(), Reply::TooLarge(_)));
        assert_eq!(kv.reader().get(b"k").unwrap(), half);
    }

    #[test]
    fn the_digest_is_of_the_state_and_not_of_the_way_there() {
        let (mut one, mut other, mut third) = (Kv::default(), Kv::default(), Kv::default());
        let (a, b) = (command("a", Op::Put(b"1")), command("b", Op::Put(b"2")));
        apply(&mut one, 1, &[a, b]);
        let detour = [
            command("b", Op::Put(b"9")),
            command("c", Op::Put(b"3")),
            b,
            command("c", Op::Delete),
            command("a", Op::Append(b"1")),
        ];
        apply(&mut other, 1, &detour);
        apply(
            &mut third,
            1,
            &[command("a", Op::Put(b"2")), command("b", Op::Put(b"1"))],
        );
        assert_eq!(one.reader().summary(), other.reader().summary());
        assert_ne!(
            one.reader().summary().digest,
            third.reader().summary().digest
        );
        apply(
            &mut one,
            2,
            &[command("a", Op::Delete), command("b", Op::Delete)],
        );
        assert_eq!(one.reader().summary().digest, 0);
    }

    #[test]
    fn the_ledger_holds_what_an_acknowledgement_can_be_compared_with() {
        let mut kv = Kv::default();
        let put = |sequence, value| Command {
            origin: Some(Origin {
                client: 5,
                sequence,
            }),
            key: b"k",
            op: Op::Put(value),
        };
        apply(&mut kv, 1, &[put(1, b"one"), put(2, b"two")]);
        apply(&mut kv, 2, &[put(2, b"two")]);
        let reader = kv.reader();
        assert_eq!(reader.clients(), [5]);
        let client = reader.client(5).unwrap();
        assert_eq!(client.get(1), Some(applied_hash(b"one", Index(1), 0)));
        assert_eq!(client.get(2), Some(applied_hash(b"two", Index(1), 1)));
        assert_ne!(client.get(2), Some(applied_hash(b"two", Index(2), 0)));
        assert_ne!(client.get(2), Some(applied_hash(b"tw0", Index(1), 1)));
        assert_eq!((client.applied, client.repeats), (2, 1));
        assert_eq!(client.repeated, [2]);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "that they are two threads is the point"
    )]
    fn readers_and_apply_do_not_disturb_each_other() {
        let mut kv = Kv::default();
        let reader = kv.reader();
        let watcher = std::thread::spawn(move || {
            let mut last = Index(0);
            while last < Index(500) {
                let summary = reader.summary();
                assert!(last <= summary.applied);
                assert_eq!(summary.keys, u64::from(summary.applied > Index(0)));
                last = summary.applied;
            }
        });
        for index in 1..=500 {
            apply(&mut kv, index, &[command("k", Op::Append(b"x"))]);
        }
        watcher.join().unwrap();
    }
}
