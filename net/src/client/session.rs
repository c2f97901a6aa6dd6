//! The client's connection to one address: dialled when there is something to say, and again when it broke.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use logdrive_raft::wire::Reader;
use logdrive_raft::{GroupId, NodeId};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep};

use super::Inner;
use super::batch::{Answer, Answered, OutputCursor, Part};
use super::dispatch::Refused;
use super::ring::Ring;
use super::silence::Silence;
use crate::backoff::Backoff;
use crate::codec::{Keep, MessageReader, ReadFailure};
use crate::error::{CloseCode, LinkError, Refusal};
use crate::protocol::{
    Code, FRAME_PROPOSALS_MAX, RESPONSE_FRAME_BYTES_MAX, Response, next_response, put_proposals,
};
use crate::transport::{Connection, SendStream};

/// One address and what waits to be sent there.
pub(super) struct Session {
    pub(super) address: String,
    /// Who must answer there, if the address is from a hint.
    wanted: Option<NodeId>,
    /// Who answered there last.
    answered: Mutex<Option<NodeId>>,
    health: AtomicU8,
    /// The health has changed.
    healed: Notify,
    queue: Mutex<VecDeque<Part>>,
    /// Something waits, or has come to wait.
    changed: Notify,
    /// What has been sent on the connection and is not answered.
    ring: Mutex<Ring>,
    last_error: Mutex<Option<LinkError>>,
    /// When something came from there last, as the client counts.
    last_use: AtomicU64,
    task: OnceLock<AbortHandle>,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Health {
    /// Worth trying.
    Unknown,
    /// There is a connection.
    Up,
    /// There is a connection, and nothing comes by it.
    Silent,
    /// It could not be reached a moment ago, or takes long to be.
    Down,
}

/// A connection whose server has answered the greeting.
pub(super) struct Established {
    pub(super) node: NodeId,
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) reader: MessageReader,
}

impl Session {
    pub(super) fn new(address: String, wanted: Option<NodeId>, last_use: u64) -> Arc<Self> {
        Arc::new(Self {
            address,
            wanted,
            answered: Mutex::default(),
            health: AtomicU8::new(Health::Unknown as u8),
            healed: Notify::new(),
            queue: Mutex::default(),
            changed: Notify::new(),
            ring: Mutex::default(),
            last_error: Mutex::default(),
            last_use: AtomicU64::new(last_use),
            task: OnceLock::new(),
        })
    }

    /// Says which task serves it.
    pub(super) fn set_task(&self, task: AbortHandle) {
        // It is said once.
        let _ = self.task.set(task);
    }

    /// Ends its task, and with it the connection. Only for a session that is idle and gets nothing more.
    pub(super) fn end(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    pub(super) fn push(&self, part: Part) {
        let mut queue = self.queue();
        let was_empty = queue.is_empty();
        queue.push_back(part);
        drop(queue);
        if was_empty {
            self.changed.notify_one();
        }
    }

    /// Whether something sent there may arrive, as far as anybody knows.
    pub(super) fn is_usable(&self) -> bool {
        let health = self.health.load(Ordering::Relaxed);
        health == Health::Unknown as u8 || health == Health::Up as u8
    }

    /// Whether it may be `node` that is there.
    pub(super) fn may_be(&self, node: NodeId) -> bool {
        let known = self.wanted.or(*lock(&self.answered));
        known.is_none_or(|known| known == node)
    }

    /// Whether the address is from a hint.
    pub(super) fn is_learnt(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether nothing waits, and nothing that was sent has no answer.
    pub(super) fn is_idle(&self) -> bool {
        self.queue().is_empty() && lock(&self.ring).is_empty()
    }

    pub(super) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    pub(super) fn was_useful(&self, at: u64) {
        self.last_use.store(at, Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        self.health.load(Ordering::Relaxed) == Health::Silent as u8
    }

    fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
        self.healed.notify_waiters();
    }

    pub(super) fn last_error(&self) -> Option<String> {
        let error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        error.as_ref().map(ToString::to_string)
    }

    /// Serves the address for as long as the client lives. `number` is that of the session.
    pub(super) async fn run(
        self: Arc<Self>,
        inner: Arc<Inner>,
        number: usize,
        mut established: Option<Established>,
    ) {
        let mut backoff = Backoff::up_to(REDIAL_MAX);
        loop {
            let connected = match established.take() {
                Some(established) => Ok(established),
                None => {
                    self.something_waits().await;
                    tokio::select! {
                        dialled = inner.dial(&self.address, self.wanted) => dialled,
                        // Never ends, so dialling is never cancelled.
                        () = self.hand_back_queued(&inner, number) => continue,
                    }
                }
            };
            let error = match connected {
                Ok(established) => {
                    backoff = Backoff::up_to(REDIAL_MAX);
                    *lock(&self.answered) = Some(established.node);
                    self.set_health(Health::Up);
                    self.serve(&inner, number, established).await
                }
                Err(error) => error,
            };
            tracing::debug!(
                event = "client_disconnected",
                code = error.code(),
                "connection to {}: {error}",
                self.address
            );
            *self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(error);
            self.set_health(Health::Down);
            self.hand_back(&inner, number);
            tokio::select! {
                () = sleep(backoff.next()) => {}
                // Never ends: what comes while nobody dials has a deadline, too.
                () = self.expire_queued(&inner) => {}
            }
            self.set_health(Health::Unknown);
        }
    }

    /// Has what waits tried elsewhere: none of it was sent.
    fn hand_back(&self, inner: &Arc<Inner>, number: usize) {
        let waiting = std::mem::take(&mut *self.queue());
        for part in waiting {
            inner.refused(part, number, Refused::because(Code::UNREACHABLE));
        }
    }

    /// Talks until the connection breaks.
    async fn serve(
        &self,
        inner: &Arc<Inner>,
        number: usize,
        established: Established,
    ) -> LinkError {
        let Established {
            connection,
            send,
            reader,
            ..
        } = established;
        // Ids begin anew with each connection.
        *lock(&self.ring) = Ring::default();
        // Each ends only with the connection, so none is cancelled to be called again.
        let refusal = tokio::select! {
            refusal = self.write(send) => refusal,
            refusal = self.read(inner, number, reader) => refusal,
            () = self.expire(inner) => None,
            () = self.listen(inner, number, &connection) => None,
        };
        if let Some(refusal) = &refusal {
            refusal.close(&connection);
        }
        let mut answers = Vec::new();
        for part in lock(&self.ring).drain() {
            let code = Code::CONNECTION_LOST;
            inner.answer(part, Answered::MayYetCommit { code }, &mut answers);
        }
        inner.deliver(&mut answers);
        match (refusal, connection.close_reason()) {
            (Some(refusal), _) => refusal.into(),
            (None, Some(error)) => LinkError::from_transport(&error, &self.address, true),
            (None, None) => {
                connection.close(CloseCode::Shutdown, b"");
                LinkError::Lost
            }
        }
    }

    /// Sends what waits, while the other side is heard: what is sent into a silence can never be taken back.
    async fn write(&self, mut send: SendStream) -> Option<Refusal> {
        loop {
            self.something_waits().await;
            self.heard().await;
            while !self.is_silent()
                && let Some(bytes) = self.take_frames()
            {
                if send.write_chunk(bytes).await.is_err() {
                    return None;
                }
            }
        }
    }

    /// Puts what waits into frames, up to a size, and remembers it as sent.
    fn take_frames(&self) -> Option<Bytes> {
        let mut queue = self.queue();
        let mut ring = lock(&self.ring);
        let now = Instant::now();
        let mut out = BytesMut::new();
        while out.len() < WRITE_BYTES_MAX && !queue.is_empty() {
            let parts = take_frame(&mut queue);
            let Some(first) = parts.first() else {
                break;
            };
            let latest = parts.iter().map(Part::deadline).max().unwrap_or(now);
            let left = latest.saturating_duration_since(now).as_millis();
            let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
            let payloads: Vec<&[u8]> = parts.iter().flat_map(Part::payloads).collect();
            out.reserve(
                64 + 4 * payloads.len() + parts.iter().map(Part::payload_bytes).sum::<usize>(),
            );
            let first_id = ring.next_id();
            put_proposals(
                &mut out,
                first_id,
                first.group(),
                deadline_ms,
                payloads.into_iter(),
            );
            for part in parts {
                ring.push(part);
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    /// Reads answers until the stream ends.
    async fn read(
        &self,
        inner: &Arc<Inner>,
        number: usize,
        mut reader: MessageReader,
    ) -> Option<Refusal> {
        let mut answers = Vec::new();
        let mut refused = Vec::new();
        loop {
            // Who gets the outputs may keep them for a while.
            let frame = match reader.next(RESPONSE_FRAME_BYTES_MAX, Keep::Long).await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(ReadFailure::Stream(_)) => return None,
                Err(error) => return Some(Refusal::new(CloseCode::Malformed, error.to_string())),
            };
            self.was_useful(inner.next_use());
            let mut input = Reader::new(&frame);
            while input.left() > 0 {
                let response = match next_response(&mut input) {
                    Ok(response) => response,
                    Err(error) => {
                        return Some(Refusal::new(
                            CloseCode::Malformed,
                            format!("response: {error}"),
                        ));
                    }
                };
                match response {
                    Response::Applied {
                        first_id,
                        index,
                        first_slot,
                        outputs,
                    } => {
                        let count =
                            u32::try_from(outputs.len()).expect("a count on the wire is u32");
                        let mut outputs = OutputCursor::new(&frame, outputs);
                        lock(&self.ring).take(first_id, count, |part, behind| {
                            let what = Answered::Applied {
                                index,
                                first_slot: first_slot + behind,
                                outputs: outputs.part(behind, part.count),
                            };
                            inner.answer(part, what, &mut answers);
                        });
                    }
                    Response::NeverAppended {
                        first_id,
                        count,
                        code,
                        retry_after_ms,
                        hint,
                    } => lock(&self.ring).take(first_id, count, |part, _| {
                        if is_worth_another_try(code) {
                            refused.push((
                                part,
                                Refused {
                                    code,
                                    retry_after: Duration::from_millis(u64::from(retry_after_ms)),
                                    hint: hint.clone(),
                                },
                            ));
                        } else {
                            inner.answer(part, Answered::NeverAppended { code }, &mut answers);
                        }
                    }),
                    Response::MayYetCommit {
                        first_id,
                        count,
                        code,
                    } => lock(&self.ring).take(first_id, count, |part, _| {
                        inner.answer(part, Answered::MayYetCommit { code }, &mut answers);
                    }),
                    // Nobody asks for it on this connection.
                    Response::Status { .. } => {}
                }
            }
            for (part, why) in refused.drain(..) {
                inner.refused(part, number, why);
            }
            inner.deliver(&mut answers);
        }
    }

    /// Answers what was not answered in time.
    async fn expire(&self, inner: &Arc<Inner>) {
        let mut ticks = interval(TICK);
        let mut answers = Vec::new();
        loop {
            ticks.tick().await;
            let now = Instant::now();
            lock(&self.ring).expire(now, |part| {
                let code = Code::DEADLINE;
                inner.answer(part, Answered::MayYetCommit { code }, &mut answers);
            });
            self.take_expired(inner, now, &mut answers);
            inner.deliver(&mut answers);
        }
    }

    /// Watches for silence. What waits is then tried elsewhere; what was sent waits for its answer, or for
    /// the end of the connection.
    async fn listen(&self, inner: &Arc<Inner>, number: usize, connection: &Connection) {
        let mut silence = Silence::default();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let stats = connection.stats();
            let rtt_ticks = stats.rtt.as_millis() / TICK.as_millis();
            let rtt_ticks = u32::try_from(rtt_ticks).unwrap_or(u32::MAX);
            let silent = silence.tick(stats.sent_datagrams, stats.received_datagrams, rtt_ticks);
            if silent != self.is_silent() {
                self.set_health(if silent { Health::Silent } else { Health::Up });
            }
            if silent && inner.has_alternative(number) {
                self.hand_back(inner, number);
            }
        }
    }

    /// Waits until the other side is not silent.
    async fn heard(&self) {
        loop {
            let healed = self.healed.notified();
            if !self.is_silent() {
                return;
            }
            healed.await;
        }
    }

    /// While an address is dialled: answers what could not be sent in time, and has the rest tried
    /// elsewhere if it takes long. A server that lives answers in milliseconds, one that was killed never.
    async fn hand_back_queued(&self, inner: &Arc<Inner>, number: usize) {
        let impatient = async {
            let mut ticks = interval_at(Instant::now() + DIAL_PATIENCE, TICK);
            loop {
                ticks.tick().await;
                self.set_health(Health::Down);
                if inner.has_alternative(number) {
                    self.hand_back(inner, number);
                }
            }
        };
        tokio::select! {
            () = self.expire_queued(inner) => {}
            () = impatient => {}
        }
    }

    /// Answers what could not be sent in time, and never ends.
    async fn expire_queued(&self, inner: &Arc<Inner>) {
        let mut ticks = interval(TICK);
        let mut answers = Vec::new();
        loop {
            ticks.tick().await;
            self.take_expired(inner, Instant::now(), &mut answers);
            inner.deliver(&mut answers);
        }
    }

    fn take_expired(&self, inner: &Arc<Inner>, now: Instant, answers: &mut Vec<Answer>) {
        self.queue().retain(|part| {
            let waits = part.deadline() > now;
            if !waits {
                // Whoever was refused all the time wants to hear of that, and not that it took long.
                let code = part.refused.unwrap_or(Code::DEADLINE);
                inner.answer(part.clone(), Answered::NeverAppended { code }, answers);
            }
            waits
        });
    }

    async fn something_waits(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.queue().is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Part>> {
        lock(&self.queue)
    }
}

/// Takes the parts for one frame: of one group, and as many as fit into it.
fn take_frame(queue: &mut VecDeque<Part>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut group: Option<GroupId> = None;
    let (mut count, mut bytes) = (0, 0);
    while let Some(part) = queue.front_mut() {
        if group.is_some_and(|group| group != part.group()) {
            break;
        }
        group = Some(part.group());
        let mut fitting = 0;
        let (mut count_after, mut bytes_after) = (count, bytes);
        for payload in part.payloads() {
            // A large payload travels alone.
            let first = count_after == 0;
            let fits =
                count_after < FRAME_PROPOSALS_MAX && bytes_after + payload.len() <= WRITE_BYTES_MAX;
            if !first && !fits {
                break;
            }
            count_after += 1;
            bytes_after += payload.len();
            fitting += 1;
        }
        (count, bytes) = (count_after, bytes_after);
        if fitting == 0 {
            break;
        }
        if fitting == part.count {
            parts.extend(queue.pop_front());
        } else {
            parts.push(part.split_front(fitting));
            break;
        }
    }
    parts
}

/// Whether the same proposal may be taken a little later, here or elsewhere.
fn is_worth_another_try(code: Code) -> bool {
    // The last two are final where they come from, and nowhere else.
    matches!(
        code,
        Code::NOT_LEADER | Code::BUSY | Code::STORAGE_FULL | Code::HALTED | Code::SHUTTING_DOWN
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between two states that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Session {
    fn drop(&mut self) {
        // What waits is dropped, and with it the ends that somebody may wait at.
        self.queue().clear();
    }
}

impl Refused {
    pub(super) fn because(code: Code) -> Self {
        Self {
            code,
            retry_after: Duration::ZERO,
            hint: None,
        }
    }
}

/// About how much is handed to QUIC at once. One proposal may be larger.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// How exact deadlines are.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// How long what waits for a connection waits before it is tried elsewhere. Dialling goes on.
const DIAL_PATIENCE: Duration = Duration::from_millis(100);

/// The longest wait between two attempts to reach an address.
const REDIAL_MAX: Duration = Duration::from_millis(500);

const _: () = {
    // What is put into one frame fits into it, also a payload of the largest size, alone.
    assert!(WRITE_BYTES_MAX <= ENTRY_PAYLOAD_BYTES_MAX);
};
