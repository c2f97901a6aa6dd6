//! What waits to be sent to one peer, stream by stream. Bounded in bytes, at the door.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use logdrive_raft::message::{Body, Lane, Message};
use logdrive_raft::{Entry, GroupId, Index, ReplicationSession, Term};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::SendError;
use crate::codec::{framed, put_messages};
use crate::hello::{Hello, StreamKind};
use crate::transport::{Connection, SendStream, WriteError};

/// The messages of one stream that have not been handed to QUIC yet.
#[derive(Debug, Default)]
pub(super) struct LaneQueue {
    messages: RefCell<VecDeque<Message>>,
    /// Bytes of these and of those that are being written.
    bytes: Cell<usize>,
    /// What all append streams of the peer hold together; `None` for control and acks.
    shared: Option<Rc<Budget>>,
    changed: Notify,
}

/// What all append streams of a peer may hold together.
#[derive(Debug)]
struct Budget {
    bytes: Cell<usize>,
    bytes_max: usize,
    /// So much was not taken, the largest of it, and nobody has heard since that there is room.
    refused: Cell<Option<usize>>,
    room: Rc<Notify>,
}

impl Budget {
    fn fits(&self, bytes: usize) -> bool {
        let held = self.bytes.get();
        held == 0 || held + bytes <= self.bytes_max
    }

    fn refuse(&self, bytes: usize) {
        self.refused.set(self.refused.get().max(Some(bytes)));
        self.tell_of_room();
    }

    fn remove(&self, bytes: usize) {
        assert!(bytes <= self.bytes.get());
        self.bytes.set(self.bytes.get() - bytes);
        self.tell_of_room();
    }

    /// Half is to be free before anybody hears of room, so that it is worth reading the log for.
    fn tell_of_room(&self) {
        let held = self.bytes.get();
        if let Some(wanted) = self.refused.get()
            && (held == 0 || held <= self.bytes_max / 2 && self.fits(wanted))
        {
            self.refused.set(None);
            self.room.notify_one();
        }
    }
}

impl LaneQueue {
    /// An empty queue whose bytes count as part of `shared`, too.
    fn sharing(shared: &Rc<Budget>) -> Rc<Self> {
        let mut queue = Self::default();
        queue.shared = Some(Rc::clone(shared));
        Rc::new(queue)
    }

    fn push(&self, message: Message) {
        self.add_bytes(message.cost_bytes());
        self.messages.borrow_mut().push_back(message);
        self.changed.notify_one();
    }

    fn add_bytes(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        if let Some(shared) = &self.shared {
            shared.bytes.set(shared.bytes.get() + bytes);
        }
    }

    fn remove_bytes(&self, bytes: usize) {
        assert!(bytes <= self.bytes.get());
        self.bytes.set(self.bytes.get() - bytes);
        if let Some(shared) = &self.shared {
            shared.remove(bytes);
        }
    }

    /// Replaces an ack that has not left by a later one of the same session: acks are cumulative, so what
    /// waits is bounded by the number of groups.
    fn replace_ack(&self, message: &Message) -> bool {
        let Body::Ack(new) = &message.body else {
            return false;
        };
        let mut messages = self.messages.borrow_mut();
        let last = messages
            .iter_mut()
            .rev()
            .find(|queued| queued.group == message.group);
        let Some(queued) = last else {
            return false;
        };
        match &queued.body {
            Body::Ack(old)
                if old.session == new.session
                    && queued.term == message.term
                    && old.index <= new.index
                    && old.round <= new.round =>
            {
                *queued = message.clone();
                true
            }
            _ => false,
        }
    }

    /// Takes messages to write next; returns their bytes, which count until [`LaneQueue::written`].
    fn take(&self, batch: &mut Vec<Message>) -> usize {
        let mut messages = self.messages.borrow_mut();
        let mut bytes = 0;
        while let Some(message) = messages.front() {
            let cost = message.cost_bytes();
            if bytes != 0 && bytes + cost > WRITE_BYTES_MAX {
                break;
            }
            bytes += cost;
            batch.extend(messages.pop_front());
        }
        bytes
    }

    /// Writes what is queued to a stream of its own, until the stream or the connection breaks.
    ///
    /// Runs as a task and is only ever aborted as a whole: what it awaits may not be cancelled and resumed.
    pub(super) async fn write(
        self: Rc<Self>,
        connection: Connection,
        hello: Hello,
    ) -> Result<(), WriteError> {
        let mut stream = ResetOnDrop(connection.open_uni().await?);
        stream.0.set_priority(priority(hello.stream))?;
        let mut chunks = vec![framed(&hello)];
        let mut batch = Vec::new();
        loop {
            let bytes = self.take(&mut batch);
            put_messages(&batch, &mut chunks);
            // Their frames live on in the chunks alone.
            batch.clear();
            if !chunks.is_empty() {
                stream.0.write_all_chunks(&mut chunks).await?;
                chunks.clear();
            }
            self.remove_bytes(bytes);
            if self.messages.borrow().is_empty() {
                self.changed.notified().await;
            }
        }
    }
}

impl Drop for LaneQueue {
    fn drop(&mut self) {
        self.remove_bytes(self.bytes.get());
    }
}

/// A stream that is abandoned, not finished, when its writer ends: finishing would present half a message
/// as whole.
struct ResetOnDrop(SendStream);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        self.0.reset(STREAM_ABANDONED);
    }
}

/// The append stream of one group.
#[derive(Debug)]
struct AppendLane {
    term: Term,
    session: ReplicationSession,
    queue: Rc<LaneQueue>,
    /// What comes after this index was not taken: only what continues from here or before is.
    gap: Option<Index>,
    /// The last entry of an append that was taken: a gap is never before it.
    taken: Index,
    writer: Option<AbortHandle>,
}

impl Drop for AppendLane {
    fn drop(&mut self) {
        if let Some(writer) = &self.writer {
            writer.abort();
        }
    }
}

/// Everything on its way to one peer over one connection.
#[derive(Debug)]
pub(super) struct Outbox {
    hello: Hello,
    control: Rc<LaneQueue>,
    acks: Rc<LaneQueue>,
    /// Parts of snapshots, whose stream is opened with the first.
    parts: Rc<LaneQueue>,
    parts_open: bool,
    appends: BTreeMap<GroupId, AppendLane>,
    budget: Rc<Budget>,
    /// Groups whose stream has no writer yet.
    unopened: Vec<GroupId>,
}

impl Outbox {
    /// Nothing on its way. `hello` is that of the control stream.
    pub(super) fn new(hello: Hello, append_bytes_max: usize) -> Self {
        Self {
            hello,
            control: Rc::default(),
            acks: Rc::default(),
            parts: Rc::default(),
            parts_open: false,
            appends: BTreeMap::new(),
            budget: Rc::new(Budget {
                bytes: Cell::new(0),
                bytes_max: append_bytes_max,
                refused: Cell::new(None),
                room: Rc::default(),
            }),
            unopened: Vec::new(),
        }
    }

    pub(super) fn control(&self) -> (Rc<LaneQueue>, Hello) {
        (
            Rc::clone(&self.control),
            self.hello.with_stream(StreamKind::Control),
        )
    }

    pub(super) fn acks(&self) -> (Rc<LaneQueue>, Hello) {
        (
            Rc::clone(&self.acks),
            self.hello.with_stream(StreamKind::Ack),
        )
    }

    /// Notified when there is room again after an append was not taken.
    pub(super) fn room(&self) -> Rc<Notify> {
        Rc::clone(&self.budget.room)
    }

    /// Bytes that wait, on all streams.
    pub(super) fn queued_bytes(&self) -> usize {
        let small = self.control.bytes.get() + self.acks.bytes.get();
        small + self.parts.bytes.get() + self.budget.bytes.get()
    }

    /// Puts a message in its queue. True if a stream has to be opened for it.
    pub(super) fn push(&mut self, message: Message) -> Result<bool, SendError> {
        match message.lane() {
            Lane::Control => {
                push_within(SMALL_QUEUE_BYTES_MAX, &self.control, message)?;
                Ok(false)
            }
            Lane::Ack => {
                if self.acks.replace_ack(&message) {
                    return Ok(false);
                }
                push_within(SMALL_QUEUE_BYTES_MAX, &self.acks, message)?;
                Ok(false)
            }
            Lane::Append => self.push_append(message),
            Lane::Snapshot => {
                push_within(PARTS_QUEUE_BYTES_MAX, &self.parts, message)?;
                Ok(!self.parts_open)
            }
        }
    }

    fn push_append(&mut self, message: Message) -> Result<bool, SendError> {
        let Body::Append(append) = &message.body else {
            unreachable!("the append lane carries appends only");
        };
        let (group, term, session) = (message.group, message.term, append.session);
        let after = append.prev.index;
        let last = append.entries.last().map_or(after, Entry::index);
        let known = self
            .appends
            .get(&group)
            .map(|lane| (lane.term, lane.session));
        if known.is_some_and(|known| (term, session) < known) {
            return Err(SendError::Stale);
        }
        if known != Some((term, session)) {
            // Whatever the old stream still had to say is of a session that has ended.
            self.appends.remove(&group);
        }
        let bytes = message.cost_bytes();
        let fits = self.budget.fits(bytes);
        let lane = self.appends.entry(group).or_insert_with(|| AppendLane {
            term,
            session,
            queue: LaneQueue::sharing(&self.budget),
            gap: None,
            taken: Index(0),
            writer: None,
        });
        let continues = lane.gap.is_none_or(|gap| after <= gap);
        if !fits || !continues {
            if continues {
                // A probe that asks again from where entries have gone out already leaves no gap before them.
                lane.gap = Some(after.max(lane.taken));
            }
            self.budget.refuse(bytes);
            return Err(SendError::Full);
        }
        lane.gap = None;
        lane.taken = lane.taken.max(last);
        lane.queue.push(message);
        let opens = lane.writer.is_none() && !self.unopened.contains(&group);
        if opens {
            self.unopened.push(group);
        }
        Ok(opens)
    }

    /// Starts a writer for each stream that has something to say and none.
    pub(super) fn open_streams(
        &mut self,
        mut start: impl FnMut(Rc<LaneQueue>, Hello) -> AbortHandle,
    ) {
        if !self.parts_open && self.parts.bytes.get() > 0 {
            self.parts_open = true;
            let hello = self.hello.with_stream(StreamKind::Snapshot);
            start(Rc::clone(&self.parts), hello);
        }
        for group in self.unopened.drain(..) {
            let Some(lane) = self.appends.get_mut(&group) else {
                continue;
            };
            if lane.writer.is_some() {
                continue;
            }
            let hello = Hello {
                stream: StreamKind::Append,
                group,
                term: lane.term,
                session: lane.session,
                ..self.hello.clone()
            };
            lane.writer = Some(start(Rc::clone(&lane.queue), hello));
        }
    }
}

fn push_within(bytes_max: usize, queue: &LaneQueue, message: Message) -> Result<(), SendError> {
    if queue.bytes.get() + message.cost_bytes() > bytes_max {
        return Err(SendError::Full);
    }
    queue.push(message);
    Ok(())
}

/// Later is behind: control and acks leave before appends that have not been put into packets, and those before
/// parts of snapshots.
fn priority(stream: StreamKind) -> i32 {
    match stream {
        StreamKind::Control | StreamKind::Ack | StreamKind::Welcome => 10,
        StreamKind::Append => 0,
        StreamKind::Snapshot => -10,
    }
}

/// With which code a stream is reset that a newer one replaces.
const STREAM_ABANDONED: u32 = 1;

/// About how much is put together before it is handed to QUIC. One message may be larger.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// The most bytes of what waits beside appends.
pub(super) const OTHER_QUEUES_BYTES_MAX: usize = 2 * SMALL_QUEUE_BYTES_MAX + PARTS_QUEUE_BYTES_MAX;

/// The most bytes of parts of snapshots that wait for one peer. It asks for a few at a time, and again for what was
/// not taken.
const PARTS_QUEUE_BYTES_MAX: usize = 2 << 20;

/// The most bytes of control messages, and of acks, that wait for one peer.
const SMALL_QUEUE_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use logdrive_raft::entry::EntryBuilder;
    use logdrive_raft::message::{Append, CommitPoint, PART_BYTES_MAX, Part, Transfer};
    use logdrive_raft::{Boot, Chain, LogPosition, NodeId, Replica, Round, SnapshotId};

    use super::*;

    fn append(group: u64, prev: u64, payloads: &[usize]) -> Message {
        let entry = |(index, bytes): (u64, &usize)| {
            let mut builder = EntryBuilder::with_room(1, *bytes);
            builder.push(&vec![3; *bytes]);
            let entry = builder.finish();
            entry.seal(GroupId(group), Term(1), Index(index), Chain(0))
        };
        Message {
            from: Replica::default(),
            boot: Boot(1),
            to: NodeId(2),
            group: GroupId(group),
            term: Term(1),
            body: Body::Append(Append {
                session: ReplicationSession::default(),
                prev: LogPosition {
                    index: Index(prev),
                    ..LogPosition::default()
                },
                entries: (prev + 1..).zip(payloads).map(entry).collect(),
                commit: CommitPoint::default(),
                last_index: Index(9),
                round: Round(1),
                heard: None,
            }),
        }
    }

    fn drain(outbox: &Outbox) {
        for lane in outbox.appends.values() {
            let bytes = lane.queue.take(&mut Vec::new());
            lane.queue.remove_bytes(bytes);
        }
    }

    #[test]
    fn a_question_that_is_refused_leaves_no_gap_before_what_was_taken() {
        let mut outbox = Outbox::new(crate::hello::tests::example(), 2_000);
        assert!(outbox.push(append(1, 5, &[100, 100])).is_ok());
        assert!(outbox.push(append(2, 5, &[900])).is_ok());
        // No answer has come yet, so it asks where the log ends from the same place.
        while outbox.push(append(1, 5, &[])).is_ok() {}
        drain(&outbox);
        // The first append was answered meanwhile: it goes on behind it.
        assert!(outbox.push(append(1, 7, &[100])).is_ok());
        assert!(outbox.push(append(1, 8, &[100])).is_ok());
    }

    #[test]
    fn a_few_parts_of_snapshots_wait_and_no_more() {
        let mut outbox = Outbox::new(crate::hello::tests::example(), 2_000);
        let part = || Message {
            body: Body::Transfer(Transfer::Part {
                snapshot: SnapshotId(1),
                part: Part::Chunk { file: 0, chunk: 0 },
                bytes: vec![1; PART_BYTES_MAX].into(),
            }),
            ..append(1, 0, &[])
        };
        assert_eq!(outbox.push(part()), Ok(true));
        let mut opened = Vec::new();
        let task = tokio::runtime::Builder::new_current_thread();
        let runtime = { task }.build().unwrap();
        outbox.open_streams(|_, hello| {
            opened.push(hello.stream);
            runtime.spawn(async {}).abort_handle()
        });
        assert_eq!(opened, [StreamKind::Snapshot]);
        let mut taken = 1;
        while let Ok(opens) = outbox.push(part()) {
            assert!(!opens);
            taken += 1;
        }
        assert_eq!(taken, 7);
        // They take no room from anything else.
        assert!(outbox.push(append(1, 0, &[100])).is_ok());
    }

    #[test]
    fn nothing_is_taken_behind_a_gap() {
        let mut outbox = Outbox::new(crate::hello::tests::example(), 2_000);
        assert!(outbox.push(append(1, 5, &[1_000])).is_ok());
        assert!(matches!(
            outbox.push(append(1, 6, &[1_000])),
            Err(SendError::Full)
        ));
        drain(&outbox);
        assert!(matches!(
            outbox.push(append(1, 7, &[10])),
            Err(SendError::Full)
        ));
        assert!(outbox.push(append(1, 6, &[10, 10])).is_ok());
        assert!(outbox.push(append(1, 8, &[10])).is_ok());
    }
}
