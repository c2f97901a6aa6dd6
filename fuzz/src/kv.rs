//! Bytes for the key-value machine, and from it.

use bytes::Bytes;
use logdrive_raft::wire::Encode;
use logdrive_raft::{Index, LogPosition};
use logdrive_shard::kv::{ClientLedger, Command, Kv, KvOutput, Op, Origin, Reply};
use logdrive_shard::{MemorySnapshot, StateMachine};

use crate::check::{bounded, canonical, faithful};

/// A command that is read is one that would be written, and a machine survives all of them.
pub(crate) fn command(data: &[u8]) {
    let read = bounded(data.len(), || Command::parse(data));
    if let Ok(command) = &read {
        assert_eq!(command.to_bytes(), data, "it would be written differently");
    }
    let mut kv = Kv::default();
    let mut outputs = Vec::new();
    let fits = data.len() <= 1 << 16;
    if fits {
        kv.apply_entry(Index(1), [(0, data), (1, data)], &mut outputs);
        assert_eq!(outputs.len(), 2);
        for output in outputs {
            let malformed = matches!(output.reply(), Reply::Malformed(_));
            assert_eq!(malformed, read.is_err());
        }
    }
}

pub(crate) fn command_seeds() -> Vec<Vec<u8>> {
    let origin = Some(Origin {
        client: 3,
        sequence: 4,
    });
    let swap = |expected| Op::CompareAndSwap {
        expected,
        new: b"new",
    };
    let ops = [
        Op::Get,
        Op::Put(b"value"),
        Op::Delete,
        Op::Append(b"tail"),
        swap(None),
        swap(Some(&b"old"[..])),
    ];
    let commands = ops.iter().flat_map(|op| {
        [None, origin].map(|origin| {
            let (key, op) = (&b"key"[..], *op);
            Command { origin, key, op }.to_bytes().to_vec()
        })
    });
    commands.collect()
}

pub(crate) fn output(data: &[u8]) {
    let shared = Bytes::copy_from_slice(data);
    if let Ok(output) = bounded(data.len(), || KvOutput::from_bytes(shared)) {
        let _ = format!("{output:?}");
        assert_eq!(Bytes::from(output), data);
    }
}

pub(crate) fn output_seeds() -> Vec<Vec<u8>> {
    (0_u8..8).map(|status| vec![status, b'a', b'b']).collect()
}

/// Its chunks come in any order and are written in one.
pub(crate) fn ledger(data: &[u8]) {
    if let Some(ledger) = faithful::<ClientLedger>(data) {
        canonical::<ClientLedger>(&ledger.to_bytes());
    }
}

pub(crate) fn ledger_seeds() -> Vec<Vec<u8>> {
    let mut kv = Kv::default();
    let reader = kv.reader();
    let command = |sequence| {
        let origin = Some(Origin {
            client: 7,
            sequence,
        });
        let (key, op) = (&b"key"[..], Op::Put(b"value"));
        Command { origin, key, op }.to_bytes()
    };
    let commands = [0, 5, 5, 2000].map(command);
    let commands = commands.iter().map(|command| (0, &command[..]));
    kv.apply_entry(Index(1), commands, &mut Vec::new());
    let ledgers = reader.client(7).into_iter();
    ledgers.map(|ledger| ledger.to_bytes().to_vec()).collect()
}

/// What a machine without anything takes, beyond what a snapshot brings.
const FRESH_BYTES: usize = 64 << 10;

/// A machine has what is in a snapshot, or is as it was. What it has it writes down so that another one has it.
pub(crate) fn snapshot(data: &[u8]) {
    let Some(([low, high, zeros_low, zeros_high], files)) = data.split_first_chunk() else {
        return;
    };
    let table_bytes = usize::from(u16::from_le_bytes([*low, *high]));
    let (table, ledger) = files.split_at(table_bytes.min(files.len()));
    // A chunk of the ledger is longer than what a fuzzer likes to write, and mostly zeros.
    let zeros = u16::from_le_bytes([*zeros_low, *zeros_high]);
    let ledger = [ledger, &vec![0; zeros.into()]].concat();
    let mut given = MemorySnapshot::new(position());
    given.files.insert("table".to_owned(), table.to_vec());
    given.files.insert("ledger".to_owned(), ledger);
    let taken_bytes = 4 * (files.len() + usize::from(zeros)) + FRESH_BYTES;
    let mut kv = machine();
    let before = written(&mut kv);
    let installed = bounded(taken_bytes, || kv.install(&mut given));
    let after = written(&mut kv);
    if installed.is_err() {
        assert!(after == before, "it was refused and has changed something");
        return;
    }
    let mut other = Kv::default();
    other
        .install(&mut after.clone())
        .expect("what it wrote is a snapshot");
    assert!(written(&mut other) == after, "it is not what was written");
    for kv in [&mut kv, &mut other] {
        kv.apply_entry(
            Index(101),
            put().iter().map(|put| (0, &put[..])),
            &mut Vec::new(),
        );
    }
    assert!(
        written(&mut kv) == written(&mut other),
        "they go different ways"
    );
}

pub(crate) fn snapshot_seeds() -> Vec<Vec<u8>> {
    let seeds = [Kv::default(), machine()].map(|mut kv| {
        let files = written(&mut kv).files;
        let (table, ledger) = (&files["table"], &files["ledger"]);
        let end = ledger.iter().rposition(|byte| *byte != 0);
        let (ledger, zeros) = ledger.split_at(end.map_or(0, |last| last + 1));
        let lengths = [table.len(), zeros.len()];
        let lengths = lengths.map(|bytes| u16::try_from(bytes).expect("it is small").to_le_bytes());
        [&lengths.concat()[..], table, ledger].concat()
    });
    seeds.to_vec()
}

/// The end of every snapshot here.
fn position() -> LogPosition {
    LogPosition {
        index: Index(100),
        ..LogPosition::default()
    }
}

/// A put for a client, and what is none.
fn put() -> [Vec<u8>; 2] {
    let origin = Some(Origin {
        client: 7,
        sequence: 1,
    });
    let (key, op) = (&b"key"[..], Op::Put(b"value"));
    let put = Command { origin, key, op }.to_bytes();
    [put.to_vec(), b"?".to_vec()]
}

fn machine() -> Kv {
    let mut kv = Kv::default();
    kv.apply_entry(
        Index(1),
        put().iter().map(|put| (0, &put[..])),
        &mut Vec::new(),
    );
    kv
}

fn written(kv: &mut Kv) -> MemorySnapshot {
    let handle = kv.snapshot().expect("it is in memory");
    MemorySnapshot::of(handle, position()).expect("that is, too")
}
