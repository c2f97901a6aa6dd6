//! A running node: what an embedder holds.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use logdrive_raft::{Boot, GroupId, Index, NodeId, Replica};
use logdrive_shard::{Inbox, Permit, Permits, Refused, ReplySink, StateMachine};

use crate::apply::ApplyQueue;
use crate::clock::Clock;
use crate::error::ProposeError;
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::proposal::{Proposal, Proposals};
use crate::shared::{Command, Shared};
use crate::snapshot_now::SnapshotNow;
use crate::snapshots::SnapshotQueue;
use crate::status::Status;
use crate::thread::thread_bytes;

/// A node of a cluster: it holds a replica of each of its groups.
///
/// Dropping it shuts it down without waiting for what is under way; [`Node::shutdown`] waits.
pub struct Node<S: StateMachine> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) groups: BTreeMap<GroupId, Group<S>>,
    pub(crate) apply: Arc<ApplyQueue<S::Output>>,
    pub(crate) snapshots: Arc<SnapshotQueue<S::Snapshot>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) replica: Replica,
    pub(crate) boot: Boot,
    pub(crate) peer_address: Option<SocketAddr>,
    pub(crate) client_address: Option<SocketAddr>,
}

impl<S: StateMachine> std::fmt::Debug for Node<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.replica)
    }
}

/// One group of a node: where proposals go in and reads come out.
pub struct Group<S: StateMachine> {
    pub(crate) id: GroupId,
    pub(crate) inbox: Inbox<S::Output>,
    pub(crate) reader: S::Reader,
    pub(crate) apply: Arc<ApplyQueue<S::Output>>,
    pub(crate) shared: Arc<Shared>,
}

impl<S: StateMachine> Clone for Group<S> {
    fn clone(&self) -> Self {
        Self {
            id: self.id,
            inbox: self.inbox.clone(),
            reader: self.reader.clone(),
            apply: Arc::clone(&self.apply),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: StateMachine> std::fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({})", self.id)
    }
}

impl<S: StateMachine> Node<S> {
    /// The group with this number, if this node holds it.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&Group<S>> {
        self.groups.get(&id)
    }

    /// All groups of this node.
    pub fn groups(&self) -> impl Iterator<Item = &Group<S>> {
        self.groups.values()
    }

    /// Proposes to the node's first group; see [`Group::propose`].
    pub fn propose(&self, payload: impl AsRef<[u8]>) -> Proposal<S::Output> {
        self.first().propose(payload)
    }

    /// Proposes to the node's first group, or gives the payload back; see [`Group::try_propose`].
    pub fn try_propose<P: AsRef<[u8]>>(
        &self,
        payload: P,
    ) -> Result<Proposal<S::Output>, (ProposeError, P)> {
        self.first().try_propose(payload)
    }

    /// Reads of the first group's machine; see [`Group::reader`].
    #[must_use]
    pub fn reader(&self) -> &S::Reader {
        self.first().reader()
    }

    /// Resolves when the first group has a leader that this node knows; see [`Group::leader_known`].
    pub fn leader_known(&self) -> LeaderKnown {
        self.first().leader_known()
    }

    /// Who this replica is: the operator's number and the life of its directory.
    #[must_use]
    pub fn replica(&self) -> Replica {
        self.replica
    }

    /// How often the directory has been opened.
    #[must_use]
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// Where peers reach this node, if it listens for them.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peer_address
    }

    /// Where clients reach this node, if it listens for them.
    #[must_use]
    pub fn client_address(&self) -> Option<SocketAddr> {
        self.client_address
    }

    /// A copy of how the node stands. Needs no quorum, and no leader.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status(
            |group| self.apply.applied(group),
            thread_bytes(&self.apply, &self.snapshots),
            self.clock.now(),
        )
    }

    /// A copy of what the node has counted.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        self.metrics.snapshot(&self.shared.flushes())
    }

    /// Shuts the doors, waits up to `drain` for what is appended to be answered, closes the log in order
    /// and ends the threads. Every future resolves: what was not answered by then *may yet commit*, what
    /// was not appended is told so. Blocks for that long.
    pub fn shutdown(&self, drain: Duration) {
        self.shared.command(Command::Shutdown { drain });
        let threads: Vec<JoinHandle<()>> = self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect();
        for thread in threads {
            // A thread that panicked has said so already, and its waiters have been told.
            drop(thread.join());
        }
    }

    fn first(&self) -> &Group<S> {
        self.groups
            .values()
            .next()
            .expect("a node has at least one group")
    }
}

impl<S: StateMachine> Drop for Node<S> {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

impl<S: StateMachine> Group<S> {
    /// The group's number.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Proposes a command. The future resolves with the machine's output once the command has been applied
    /// here, after a majority made it durable; or with an error that says what happened to the write.
    ///
    /// The command is handed in at once, not when the future is polled, and dropping the future cancels
    /// nothing. A full door is an error at once; [`Group::reserve`] waits instead.
    pub fn propose(&self, payload: impl AsRef<[u8]>) -> Proposal<S::Output> {
        match self.try_propose(payload) {
            Ok(proposal) => proposal,
            Err((error, _)) => Proposal::failed(error),
        }
    }

    /// Proposes a command, or gives it back with the reason: nothing was appended then.
    pub fn try_propose<P: AsRef<[u8]>>(
        &self,
        payload: P,
    ) -> Result<Proposal<S::Output>, (ProposeError, P)> {
        let (proposal, sink) = Proposal::pending();
        match self.inbox.submit(std::slice::from_ref(&payload), &sink, 0) {
            Ok(()) => Ok(proposal),
            Err(refused) => Err((refused.into(), payload)),
        }
    }

    /// Proposes a batch: one lock, one wake-up. All are handed in or none; they keep their order.
    pub fn propose_many<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
    ) -> Result<Proposals<S::Output>, ProposeError> {
        let (proposals, sink) = Proposals::pending(payloads.len());
        self.inbox.submit(payloads, &sink, 0)?;
        Ok(proposals)
    }

    /// Proposes a batch whose answers go to a sink of the caller's, under a number of the caller's: the
    /// cheapest way, with nothing allocated a proposal.
    pub fn submit<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
        sink: &Arc<dyn ReplySink<S::Output>>,
        token: u64,
    ) -> Result<(), ProposeError> {
        Ok(self.inbox.submit(payloads, sink, token)?)
    }

    /// Waits until a proposal of so many bytes passes the door, and holds its place.
    pub fn reserve(&self, payload_bytes: usize) -> Reserve<S> {
        Reserve {
            group: self.clone(),
            cost: Permits::cost(1, payload_bytes),
        }
    }

    /// A handle for reads of the group's machine as it is on this node, which may be behind the leader's.
    #[must_use]
    pub fn reader(&self) -> &S::Reader {
        &self.reader
    }

    /// Takes a snapshot of the group's machine on this node now, and cuts the log behind it as far as settings allow.
    /// It covers at least what this node has applied so far.
    pub fn snapshot_now(&self) -> SnapshotNow {
        let applied = self.apply.applied(self.id);
        SnapshotNow::new(Arc::clone(&self.shared), self.id, Index(applied))
    }

    /// Who leads the group as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.shared.leader(self.id)
    }

    /// Resolves with the leader of the group once this node knows of one.
    pub fn leader_known(&self) -> LeaderKnown {
        LeaderKnown::new(Arc::clone(&self.shared), self.id)
    }
}

/// Resolves when a group has a leader that this node knows; with `None` if the node has ended before.
#[must_use = "a future does nothing unless it is polled"]
#[derive(Debug)]
pub struct LeaderKnown {
    shared: Arc<Shared>,
    group: GroupId,
    waiter: Option<u64>,
}

impl LeaderKnown {
    pub(crate) fn new(shared: Arc<Shared>, group: GroupId) -> Self {
        Self {
            shared,
            group,
            waiter: None,
        }
    }
}

impl Drop for LeaderKnown {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.shared.forget_waiter(waiter);
        }
    }
}

impl Future for LeaderKnown {
    type Output = Option<NodeId>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.shared
            .poll_leader(this.group, &mut this.waiter, context.waker())
    }
}

/// Waits for a place at the door.
#[must_use = "a future does nothing unless it is polled"]
#[derive(Debug)]
pub struct Reserve<S: StateMachine> {
    group: Group<S>,
    cost: usize,
}

impl<S: StateMachine> Future for Reserve<S> {
    type Output = Reservation<S>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let permits = self.group.inbox.permits();
        match permits.take_or_wait(self.cost, context.waker()) {
            Some(permit) => Poll::Ready(Reservation {
                group: self.group.clone(),
                permit,
            }),
            None => Poll::Pending,
        }
    }
}

/// A place at the door. Given back when dropped.
#[derive(Debug)]
pub struct Reservation<S: StateMachine> {
    group: Group<S>,
    permit: Permit,
}

impl<S: StateMachine> Reservation<S> {
    /// Proposes with this place. A payload larger than what was reserved is refused.
    pub fn propose(self, payload: impl AsRef<[u8]>) -> Proposal<S::Output> {
        let payload = payload.as_ref();
        let size_bytes = payload.len();
        if Permits::cost(1, size_bytes) > self.permit.bytes() {
            let bytes_max = self.permit.bytes() - Permits::cost(1, 0);
            return Proposal::failed(
                Refused::TooLarge {
                    size_bytes,
                    bytes_max,
                }
                .into(),
            );
        }
        let (proposal, sink) = Proposal::pending();
        match self
            .group
            .inbox
            .submit_with(self.permit, &[payload], &sink, 0)
        {
            Ok(()) => proposal,
            Err(refused) => Proposal::failed(refused.into()),
        }
    }
}
