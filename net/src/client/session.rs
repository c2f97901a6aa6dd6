//! The client's connection to one address: dialled when there is something to say, and again when it broke.

mod read;
mod watch;
mod write;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use logdrive_raft::NodeId;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::Inner;
use super::batch::{Answered, Part};
use super::dispatch::Refused;
use super::ring::Ring;
use crate::backoff::Backoff;
use crate::codec::MessageReader;
use crate::error::{CloseCode, LinkError};
use crate::protocol::Code;
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

/// How exact deadlines are.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The longest wait between two attempts to reach an address.
const REDIAL_MAX: Duration = Duration::from_millis(500);
