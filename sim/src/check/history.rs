//! What clients asked, what they were told, and in which order: the history that the checks are about.
//!
//! A run happens in one thread, so calls and answers have a total order that no clock is needed for: it is
//! the order in which they are recorded. The times are for people.

use logdrive_raft::{GroupId, Index};
use logdrive_shard::kv::{Op, Origin, Reply};

use super::table::{Fingerprint, Table, mix};
use super::value::{Value, Values};
use super::words::name;

/// An operation of a history, in the order of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u32);

/// Where a proposal lies in the log of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Of the entry.
    pub index: Index,
    /// Among the proposals of the entry.
    pub slot: u32,
}

/// What is asked of a key. What a write brings along is told apart by whose operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Answer with its value.
    Get,
    /// Give it this operation's value.
    Put,
    /// Forget it.
    Delete,
    /// Add this operation's bytes to the end of its value. An absent value counts as an empty one.
    Append,
    /// Give it this operation's value if it has the expected one; `None` expects that it is absent.
    Cas {
        /// What it must have now.
        expected: Option<Value>,
    },
}

/// What the machine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The write was carried out.
    Done,
    /// The value that was asked for.
    Value(Value),
    /// The key that was asked for has no value.
    Absent,
    /// Nothing was swapped: the key has this value.
    Mismatch(Option<Value>),
    /// Nothing was written: the value would be larger than the machine holds.
    TooLarge,
    /// The command could not be read.
    Malformed,
}

/// What became of an operation, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, and lies there.
    Ok {
        /// What it was told.
        answer: Answer,
        /// Where the engine says that it lies.
        place: Place,
    },
    /// It is certainly not in the log.
    Never,
    /// It may be in the log once, now or later, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Whose it is, and which of theirs. No two operations share it.
    pub origin: Origin,
    /// Of the key.
    pub group: GroupId,
    /// Which key of the group.
    pub key: u32,
    /// What was asked.
    pub call: Call,
    /// Length of what the operation brings along.
    pub bytes: u32,
    /// When it was called.
    pub invoked_us: u64,
    /// When its client learned the outcome, or gave up.
    pub returned_us: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
}

/// A call or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Invoked(OperationId),
    Returned(OperationId),
}

/// All operations of a run.
#[derive(Clone, Debug)]
pub struct History {
    value_bytes_max: u32,
    operations: Vec<Operation>,
    events: Vec<Event>,
    values: Values,
    by_origin: Table,
    now_us: u64,
}

impl History {
    /// A history without operations, of machines whose values have at most this many bytes.
    #[must_use]
    pub fn new(value_bytes_max: u32) -> Self {
        Self {
            value_bytes_max,
            operations: Vec::new(),
            events: Vec::new(),
            values: Values::default(),
            by_origin: Table::default(),
            now_us: 0,
        }
    }

    /// A client sends a command. A retry of what was never appended is the same operation, not another one:
    /// its call is the first attempt and its end the last.
    ///
    /// # Panics
    ///
    /// If time runs backwards, the origin is taken, or the command brings another value along than
    /// [`piece_bytes`](super::piece_bytes) made for its origin.
    pub fn invoke(
        &mut self,
        now_us: u64,
        group: GroupId,
        key: u32,
        origin: Origin,
        op: Op<'_>,
    ) -> OperationId {
        let value = self.values.parse(op.value());
        let bytes = value.bytes;
        assert!(
            value == Value::EMPTY.with(origin, bytes),
            "{} writes a value that is not its own",
            name(origin)
        );
        let call = match op {
            Op::Get => Call::Get,
            Op::Put(_) => Call::Put,
            Op::Delete => Call::Delete,
            Op::Append(_) => Call::Append,
            Op::CompareAndSwap { expected, .. } => Call::Cas {
                expected: expected.map(|bytes| self.values.parse(bytes)),
            },
        };
        self.invoke_call(now_us, group, key, origin, call, bytes)
    }

    /// As [`invoke`](Self::invoke), where nobody has made bytes of the command: it brings `bytes` along.
    ///
    /// # Panics
    ///
    /// If time runs backwards, the origin is taken, or the expected value is of another history.
    pub fn invoke_call(
        &mut self,
        now_us: u64,
        group: GroupId,
        key: u32,
        origin: Origin,
        call: Call,
        bytes: u32,
    ) -> OperationId {
        self.pass(now_us);
        if let Call::Cas {
            expected: Some(value),
        } = call
        {
            self.check_known(value);
        }
        let id = OperationId(self.operations.len() as u32);
        let is_new = self.by_origin.insert(fingerprint(origin), id.0);
        assert!(is_new, "{} is called twice", name(origin));
        self.operations.push(Operation {
            origin,
            group,
            key,
            call,
            bytes,
            invoked_us: now_us,
            returned_us: None,
            outcome: Outcome::Unknown,
        });
        self.events.push(Event::Invoked(id));
        id
    }

    /// The machine has answered.
    ///
    /// # Panics
    ///
    /// If time runs backwards or the operation has ended.
    pub fn replied(&mut self, now_us: u64, id: OperationId, reply: Reply<'_>, place: Place) {
        let answer = match reply {
            Reply::Done => Answer::Done,
            Reply::Value(bytes) => Answer::Value(self.values.parse(bytes)),
            Reply::Absent => Answer::Absent,
            Reply::Mismatch(found) => Answer::Mismatch(found.map(|bytes| self.values.parse(bytes))),
            Reply::TooLarge(_) => Answer::TooLarge,
            Reply::Malformed(_) => Answer::Malformed,
        };
        self.answered(now_us, id, answer, place);
    }

    /// As [`replied`](Self::replied), where nobody has made bytes of the answer.
    ///
    /// # Panics
    ///
    /// If time runs backwards, the operation has ended, or the value is of another history.
    pub fn answered(&mut self, now_us: u64, id: OperationId, answer: Answer, place: Place) {
        self.end(now_us, id, Outcome::Ok { answer, place });
        if let Some(value) = self.operation(id).observed() {
            self.check_known(value);
            self.values.observe(value, id);
        }
    }

    /// The client knows that this is not in the log and never will be.
    ///
    /// # Panics
    ///
    /// If time runs backwards or the operation has ended.
    pub fn never(&mut self, now_us: u64, id: OperationId) {
        self.end(now_us, id, Outcome::Never);
    }

    /// The client gave up. The operation may still be carried out. One that is not ended at all when the
    /// history is checked counts as given up too.
    ///
    /// # Panics
    ///
    /// If time runs backwards or the operation has ended.
    pub fn unknown(&mut self, now_us: u64, id: OperationId) {
        self.end(now_us, id, Outcome::Unknown);
    }

    /// The value that these pieces make, one after the other: whose they are, and how long.
    pub fn value(&mut self, pieces: &[(Origin, u32)]) -> Value {
        pieces.iter().fold(Value::EMPTY, |value, &(origin, bytes)| {
            self.values.extend(value, origin, bytes)
        })
    }

    /// The operation of this client with this sequence.
    #[must_use]
    pub fn find(&self, origin: Origin) -> Option<OperationId> {
        self.by_origin.get(fingerprint(origin)).map(OperationId)
    }

    /// One operation.
    ///
    /// # Panics
    ///
    /// If it is one of another history.
    #[must_use]
    pub fn operation(&self, id: OperationId) -> &Operation {
        &self.operations[id.0 as usize]
    }

    /// All of them, in the order of the calls.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The longest value that the machine holds.
    #[must_use]
    pub fn value_bytes_max(&self) -> u32 {
        self.value_bytes_max
    }

    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    fn end(&mut self, now_us: u64, id: OperationId, outcome: Outcome) {
        self.pass(now_us);
        let operation = &mut self.operations[id.0 as usize];
        assert!(
            operation.returned_us.is_none(),
            "{} ends twice",
            name(operation.origin)
        );
        operation.returned_us = Some(now_us);
        operation.outcome = outcome;
        self.events.push(Event::Returned(id));
    }

    fn check_known(&self, value: Value) {
        let is_known = value.pieces == 0 || self.values.find(value).is_some();
        assert!(is_known, "a value comes from the history that it is put in");
    }

    fn pass(&mut self, now_us: u64) {
        assert!(self.now_us <= now_us, "time runs backwards");
        self.now_us = now_us;
    }
}

impl Operation {
    /// The value that its answer shows the key to have had.
    #[must_use]
    pub fn observed(&self) -> Option<Value> {
        let Outcome::Ok { answer, .. } = self.outcome else {
            return None;
        };
        match (self.call, answer) {
            (_, Answer::Value(value)) => Some(value),
            (_, Answer::Mismatch(found)) => found,
            (Call::Cas { expected }, Answer::Done) => expected,
            _ => None,
        }
    }

    /// The answer, where there is one.
    #[must_use]
    pub fn answer(&self) -> Option<Answer> {
        match self.outcome {
            Outcome::Ok { answer, .. } => Some(answer),
            Outcome::Never | Outcome::Unknown => None,
        }
    }
}

fn fingerprint(origin: Origin) -> Fingerprint {
    mix(mix([0, 1], origin.client), origin.sequence)
}
