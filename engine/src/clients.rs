//! What clients ask for over the network, on its way to the doors and back.
//!
//! A client's frame becomes one batch at one door, and its answers are encoded where they are made, and put into
//! the connection's own buffer together: one wake-up a batch.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::vec::Drain;

use bytes::Bytes;
use logdrive_net::transport::SocketBuffers;
use logdrive_net::{ClientEvent, ClientMemory, ClientNet, ProposeBatch, ResponseQueue};
use logdrive_raft::{GroupId, Index, LogPosition, NodeId};
use logdrive_shard::{Failure, Inbox, Outcome, Refused, ReplySink};
use serde::Serialize;

use crate::error::{Code, ProposeError};
use crate::shared::Shared;
use crate::snapshot_now::SnapshotNow;
use crate::status::Status;

/// Turns an output into the bytes that a client gets.
pub(crate) type Encoder<O> = fn(O) -> Bytes;

/// After how long a client that found the door full or nobody leading had better ask again.
const RETRY_AFTER_MS: u32 = 10;

/// How many snapshots of a node may be waited for.
const SNAPSHOTS_ASKED_MAX: usize = 64;

/// Where clients reach the other nodes, as far as those have said.
///
/// Answers are made on any thread, and peers come and go on the shard's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses(Arc<Mutex<BTreeMap<NodeId, Arc<str>>>>);

impl Addresses {
    /// A peer has been met. What it said in an earlier life no longer holds.
    pub(crate) fn set(&self, peer: NodeId, address: Option<&str>) {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match address {
            Some(address) => addresses.insert(peer, address.into()),
            None => addresses.remove(&peer),
        };
    }

    fn of(&self, peer: NodeId) -> Option<Arc<str>> {
        let addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&peer).cloned()
    }
}

/// The client port of a running node.
pub(crate) struct Clients<O> {
    net: ClientNet,
    encode: Encoder<O>,
    inboxes: BTreeMap<GroupId, Inbox<O>>,
    addresses: Addresses,
    events: Cell<Vec<ClientEvent>>,
    shared: Arc<Shared>,
    /// Admins that wait for a snapshot.
    snapshots: Cell<Vec<SnapshotAsked>>,
}

impl<O: Send + 'static> Clients<O> {
    pub(crate) fn new(
        net: ClientNet,
        encode: Encoder<O>,
        inboxes: BTreeMap<GroupId, Inbox<O>>,
        addresses: Addresses,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            net,
            encode,
            inboxes,
            addresses,
            events: Cell::default(),
            shared,
            snapshots: Cell::default(),
        }
    }

    pub(crate) fn socket_buffers(&self) -> SocketBuffers {
        self.net.socket_buffers()
    }

    pub(crate) fn memory(&self) -> ClientMemory {
        self.net.memory()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.net.local_addr()
    }

    /// Takes what clients ask for to the doors. `status` is for those who ask how the node stands.
    pub(crate) fn poll(&self, status: impl Fn() -> Status) {
        let mut events = self.events.take();
        self.net.poll_events(&mut events);
        // Made once for all who ask now, however many do.
        let mut made: Option<String> = None;
        for event in events.drain(..) {
            match event {
                ClientEvent::Propose {
                    responses, batch, ..
                } => self.propose(responses, &batch),
                ClientEvent::Status { responses, id, .. } => {
                    // Made before the answers are locked: it counts them.
                    let json = made.get_or_insert_with(|| status().to_json());
                    responses.batch().json(id, json.as_bytes());
                }
                ClientEvent::Snapshot {
                    responses,
                    id,
                    group,
                    ..
                } => self.ask_for_snapshot(responses, id, group, &status()),
                ClientEvent::Opened { .. } | ClientEvent::Closed { .. } => {}
            }
        }
        self.events.set(events);
        self.poll_snapshots(&status);
    }

    /// Begins to wait for a snapshot. Nothing is taken here: the shard's turn does that.
    fn ask_for_snapshot(&self, responses: ResponseQueue, id: u64, group: GroupId, status: &Status) {
        let refuse = |code| {
            let mut batch = responses.batch();
            batch.never_appended(id, 1, wire(code), 0, None);
        };
        let Some(line) = status.groups.iter().find(|line| line.group == group.0) else {
            return refuse(Code::UnknownGroup);
        };
        let mut asked = self.snapshots.take();
        if asked.len() == SNAPSHOTS_ASKED_MAX {
            refuse(Code::Busy);
        } else if matches!(line.role, "forming" | "stranger" | "halted") {
            let why = line
                .why
                .as_deref()
                .unwrap_or("the group has not formed yet");
            let answer = SnapshotAnswer::not_taken(self.shared.node, group, why);
            responses.batch().json(id, answer.to_json().as_bytes());
        } else {
            let (shared, least) = (Arc::clone(&self.shared), Index(line.applied));
            asked.push(SnapshotAsked {
                responses,
                id,
                group,
                taken: SnapshotNow::new(shared, group, least),
            });
        }
        self.snapshots.set(asked);
    }

    /// Answers whose snapshots are there, or will not be. What is to be waited for wakes the shard's thread.
    fn poll_snapshots(&self, status: impl Fn() -> Status) {
        let mut asked = self.snapshots.take();
        let waker = self.shared.waker();
        let mut context = Context::from_waker(&waker);
        asked.retain_mut(|asked| {
            let Poll::Ready(taken) = Pin::new(&mut asked.taken).poll(&mut context) else {
                // Whoever has gone is not waited for.
                return !asked.responses.is_closed();
            };
            let answer = match &taken {
                Ok(at) => SnapshotAnswer::taken(&status(), asked.group, *at),
                Err(error) => SnapshotAnswer::not_taken(self.shared.node, asked.group, &error.why),
            };
            let mut batch = asked.responses.batch();
            batch.json(asked.id, answer.to_json().as_bytes());
            false
        });
        self.snapshots.set(asked);
    }

    fn propose(&self, responses: ResponseQueue, batch: &ProposeBatch) {
        let (first_id, group) = (batch.first_id(), batch.group());
        let count = u32::try_from(batch.len()).expect("a frame of requests is far smaller");
        let Some(inbox) = self.inboxes.get(&group) else {
            let error = ProposeError::UnknownGroup(group);
            never_appended(&responses, &self.addresses, first_id, count, &error);
            return;
        };
        let payloads: Vec<&[u8]> = batch.payloads().map(|(_, payload)| payload).collect();
        let answers = Answers {
            responses: responses.clone(),
            encode: self.encode,
            addresses: self.addresses.clone(),
        };
        let sink: Arc<dyn ReplySink<O>> = Arc::new(answers);
        if let Err(refused) = inbox.submit(&payloads, &sink, first_id) {
            let error = refused.into();
            never_appended(&responses, &self.addresses, first_id, count, &error);
        }
    }

    pub(crate) async fn shutdown(self) {
        for asked in self.snapshots.take() {
            let why = "the node shuts down";
            let answer = SnapshotAnswer::not_taken(self.shared.node, asked.group, why);
            let mut batch = asked.responses.batch();
            batch.json(asked.id, answer.to_json().as_bytes());
        }
        self.net.shutdown().await;
    }
}

/// An admin that waits for a snapshot.
struct SnapshotAsked {
    responses: ResponseQueue,
    id: u64,
    group: GroupId,
    taken: SnapshotNow,
}

/// How a snapshot that an admin asked for ended. Serialises to `logdrive.snapshot/1`.
#[derive(Debug, Serialize)]
struct SnapshotAnswer<'a> {
    schema: &'static str,
    node: u64,
    group: u64,
    taken: bool,
    /// Why not, if not.
    why: Option<&'a str>,
    /// The last entry that it covers.
    index: Option<u64>,
    term: Option<u64>,
    bytes: Option<u64>,
    /// Nothing if it is from before this start, or from another node.
    took_ms: Option<u64>,
}

impl<'a> SnapshotAnswer<'a> {
    fn taken(status: &Status, group: GroupId, at: Index) -> Self {
        let line = status.groups.iter().find(|line| line.group == group.0);
        let newest = line.and_then(|line| line.snapshot_details.as_ref());
        Self {
            taken: true,
            index: Some(newest.map_or(at.0, |newest| newest.index)),
            term: newest.map(|newest| newest.term),
            bytes: newest.map(|newest| newest.bytes),
            took_ms: newest.and_then(|newest| newest.took_ms),
            why: None,
            ..Self::not_taken(status.node, group, "")
        }
    }

    fn not_taken(node: u64, group: GroupId, why: &'a str) -> Self {
        Self {
            schema: "logdrive.snapshot/1",
            node,
            group: group.0,
            taken: false,
            why: Some(why),
            index: None,
            term: None,
            bytes: None,
            took_ms: None,
        }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers serialise")
    }
}

/// Says so, and whom to ask instead if somebody is known who leads and where.
fn never_appended(
    responses: &ResponseQueue,
    addresses: &Addresses,
    first_id: u64,
    count: u32,
    error: &ProposeError,
) {
    let code = error.code();
    let retry_after_ms = match error {
        ProposeError::Refused(Refused::Busy { .. } | Refused::Closed(_)) => RETRY_AFTER_MS,
        _ => 0,
    };
    let leader = error.leader();
    let address = leader.and_then(|leader| addresses.of(leader));
    let hint = leader.zip(address.as_deref());
    responses
        .batch()
        .never_appended(first_id, count, wire(code), retry_after_ms, hint);
}

fn wire(code: Code) -> logdrive_net::Code {
    logdrive_net::Code(code as u16)
}

/// The way back of one frame of proposals.
struct Answers<O> {
    responses: ResponseQueue,
    encode: Encoder<O>,
    addresses: Addresses,
}

impl<O: Send + 'static> ReplySink<O> for Answers<O> {
    fn applied(&self, token: u64, first: u32, at: LogPosition, slot: u32, outputs: Drain<'_, O>) {
        // The embedder's code. The shard's thread takes the lock of the answers, and must not wait for it.
        let encoded: Vec<Bytes> = outputs.map(self.encode).collect();
        let mut batch = self.responses.batch();
        let (mut id, mut slot) = (token + u64::from(first), slot);
        for output in &encoded {
            batch.applied(id, at.index, slot, output);
            id += 1;
            slot += 1;
        }
    }

    fn failed(&self, token: u64, first: u32, count: u32, failure: Failure) {
        let id = token + u64::from(first);
        let error = ProposeError::Failed(failure);
        match error.outcome() {
            Outcome::NeverAppended => {
                never_appended(&self.responses, &self.addresses, id, count, &error);
            }
            // Whatever else there may be one day: not to be sent again blindly.
            _ => {
                self.responses
                    .batch()
                    .may_yet_commit(id, count, wire(error.code()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_number_and_one_name_on_both_sides_of_the_wire() {
        for code in Code::ALL {
            assert_eq!(wire(*code).name(), code.as_str());
            assert_eq!(Code::from_number(*code as u16), Some(*code));
        }
    }
}
