//! Every operation as a line of JSON, for checkers that nobody here wrote.
//!
//! ```text
//! client      which client
//! op          put, get, cas, append, delete
//! key, value  what was asked; `value` is null for a get or a delete, the new value for a cas
//! expected    cas: the value it expects, null for none (and for other operations)
//! output      get: the value found; cas: the value the key has afterwards; else null
//! swapped     cas: whether it took effect; else null
//! call_ns     when it was first handed over
//! return_ns   when its answer came, null when unknown; both from one monotonic origin
//! outcome     ok, never (it is in no log), unknown (it may be)
//! index, slot where it lies in the log, null when unknown
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use logdrive_shard::kv::{Command, KvOutput, Op, Reply};
use serde::{Deserialize, Serialize};

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The entry.
    pub index: u64,
    /// The proposal within it.
    pub slot: u32,
}

/// One operation that has come to an end.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Whose it was.
    pub client: u32,
    /// The command as it was sent.
    pub command: &'a Bytes,
    /// What the machine answered, if it did.
    pub output: Option<&'a Bytes>,
    /// When it was first handed over.
    pub call_ns: u64,
    /// When its end was known.
    pub return_ns: Option<u64>,
    /// `ok`, `never` or `unknown`.
    pub outcome: &'static str,
    /// Where it lies in the log.
    pub place: Option<Place>,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Whose it was.
    pub client: u32,
    /// What it did.
    pub op: String,
    /// To which key.
    pub key: String,
    /// The value it brought along.
    pub value: Option<String>,
    /// The value a cas expected.
    pub expected: Option<String>,
    /// The value that was found.
    pub output: Option<String>,
    /// Whether a cas took effect.
    pub swapped: Option<bool>,
    /// When it was handed over.
    pub call_ns: u64,
    /// When it returned.
    pub return_ns: Option<u64>,
    /// What is known about it.
    pub outcome: String,
    /// Its entry.
    pub index: Option<u64>,
    /// Its place in the entry.
    pub slot: Option<u32>,
}

impl Line {
    /// The line for an operation; `None` if its command cannot be read.
    #[must_use]
    pub fn of(entry: &Entry<'_>) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let command = Command::parse(entry.command).ok()?;
        let output = entry
            .output
            .and_then(|output| KvOutput::from_bytes(output.clone()).ok());
        let reply = output.as_ref().map(KvOutput::reply);
        let (op, value, expected) = match command.op {
            Op::Get => ("get", None, None),
            Op::Put(value) => ("put", Some(value), None),
            Op::Delete => ("delete", None, None),
            Op::CompareAndSwap { expected, new } => ("cas", Some(new), expected),
            Op::Append(value) => ("append", Some(value), None),
        };
        let is_cas = op == "cas";
        let (output, swapped) = match reply {
            Some(Reply::Value(value)) => (Some(value), None),
            Some(Reply::Mismatch(found)) => (found, Some(false)),
            Some(Reply::Done) if is_cas => (value, Some(true)),
            _ => (None, None),
        };
        Some(Self {
            client: entry.client,
            op: op.to_owned(),
            key: text(command.key),
            value: value.map(text),
            expected: expected.map(text),
            output: output.map(text),
            swapped,
            call_ns: entry.call_ns,
            return_ns: entry.return_ns,
            outcome: entry.outcome.to_owned(),
            index: entry.place.map(|place| place.index),
            slot: entry.place.map(|place| place.slot),
        })
    }
}

/// Writes a history. Shared by all workers.
#[derive(Debug)]
pub struct HistoryWriter {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl HistoryWriter {
    /// Starts a history in a new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let failed = None;
        Ok(Self {
            state: Mutex::new(State { file, failed }),
        })
    }

    /// Adds an operation. A failure is kept for [`HistoryWriter::finish`].
    pub fn write(&self, entry: Entry<'_>) {
        let Some(line) = Line::of(&entry) else {
            return;
        };
        let mut text = serde_json::to_vec(&line).expect("a line has only text and numbers");
        text.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = state.file.write_all(&text) {
            state.failed.get_or_insert(error);
        }
    }

    /// Makes sure that everything has reached the file.
    pub fn finish(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.failed.take() {
            Some(error) => Err(error),
            None => state.file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use logdrive_raft::Index;
    use logdrive_raft::wire::Encode;
    use logdrive_shard::kv::Kv;

    use super::*;

    fn line(kv: &mut Kv, index: u64, op: Op<'_>) -> Line {
        let command = Command {
            origin: None,
            key: b"k1",
            op,
        };
        let command = command.to_bytes();
        let mut outputs = Vec::new();
        kv.apply_entry(Index(index), [(0, &command[..])], &mut outputs);
        let output: Bytes = outputs.remove(0).into();
        let entry = Entry {
            client: 4,
            command: &command,
            output: Some(&output),
            call_ns: 10,
            return_ns: Some(20),
            outcome: "ok",
            place: Some(Place { index, slot: 0 }),
        };
        Line::of(&entry).unwrap()
    }

    #[test]
    fn a_line_holds_what_was_asked_and_what_was_found() {
        let mut kv = Kv::default();
        let put = line(&mut kv, 1, Op::Put(b"one"));
        let expected = concat!(
            r#"{"client":4,"op":"put","key":"k1","value":"one","expected":null,"output":null,"#,
            r#""swapped":null,"call_ns":10,"return_ns":20,"outcome":"ok","index":1,"slot":0}"#
        );
        assert_eq!(serde_json::to_string(&put).unwrap(), expected);
        let get = line(&mut kv, 2, Op::Get);
        assert_eq!((get.value, get.output.as_deref()), (None, Some("one")));
        let swap = |expected| Op::CompareAndSwap {
            expected,
            new: b"two",
        };
        let missed = line(&mut kv, 3, swap(None));
        assert_eq!(
            (missed.swapped, missed.output.as_deref()),
            (Some(false), Some("one"))
        );
        let swapped = line(&mut kv, 4, swap(Some(b"one")));
        assert_eq!(
            (swapped.swapped, swapped.output.as_deref()),
            (Some(true), Some("two"))
        );
        assert_eq!(swapped.expected.as_deref(), Some("one"));
    }

    #[test]
    fn what_is_unknown_is_null() {
        let command = Command {
            origin: None,
            key: b"k",
            op: Op::Delete,
        };
        let entry = Entry {
            client: 0,
            command: &command.to_bytes(),
            output: None,
            call_ns: 1,
            return_ns: None,
            outcome: "unknown",
            place: None,
        };
        let line = Line::of(&entry).unwrap();
        assert_eq!((line.return_ns, line.index, line.slot), (None, None, None));
    }
}
