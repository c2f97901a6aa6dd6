//! Connections that peers dial to us, for what they have to say.
//!
//! Any peer with a certificate of this cluster may speak: who is *counted* is for the configuration, and a
//! replica that has not heard of a new one must still be able to hear its votes and appends.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use logdrive_raft::message::{Body, Lane, Message};
use logdrive_raft::wire::Decode;
use logdrive_raft::{GroupId, NodeId, ReplicationSession, Term};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use crate::codec::{
    ACK_BYTES_MAX, APPEND_MESSAGE_BYTES_MAX, CONTROL_BYTES_MAX, Keep, MessageReader,
    PART_MESSAGE_BYTES_MAX, ReadFailure, framed,
};
use crate::error::{CloseCode, Refusal};
use crate::hello::{HELLO_BYTES_MAX, Hello, StreamKind};
use crate::identity::{Identity, Role};
use crate::limit::RateLimit;
use crate::tls::identity_of;
use crate::transport::{Connection, Serve};

/// The connection of a peer that is served at the moment.
#[derive(Debug)]
pub(super) struct Inbound {
    hello: Hello,
    connection: Connection,
}

impl Inbound {
    pub(super) fn close(&self, reason: &Refusal) {
        reason.close(&self.connection);
    }
}

/// What the streams of one connection have in common.
struct Served {
    hello: Hello,
    /// The replication session of each group that has an append stream.
    sessions: RefCell<BTreeMap<GroupId, (Term, ReplicationSession)>>,
}

/// The port that peers dial.
pub(super) struct Port {
    shared: Rc<Shared>,
    log: RateLimit,
}

impl Port {
    pub(super) fn new(shared: &Rc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared: Rc::clone(shared),
            log: RateLimit::once_a(LOG_INTERVAL),
        })
    }
}

impl Serve for Port {
    async fn talk(self: Rc<Self>, connection: Connection) -> Result<(), Refusal> {
        talk(&self.shared, &connection).await
    }

    fn refused(&self, address: SocketAddr, refusal: &Refusal) {
        let quiet = matches!(refusal.code, CloseCode::Superseded | CloseCode::Shutdown);
        if !quiet && self.log.pass() {
            let code = refusal.code.name();
            tracing::warn!(
                event = "peer_refused",
                node = self.shared.replica.id.0,
                code,
                "refused a connection from {address}: {refusal}"
            );
        }
    }
}

async fn talk(shared: &Rc<Shared>, connection: &Connection) -> Result<(), Refusal> {
    let identity = identity_of(connection)
        .map_err(|error| Refusal::new(CloseCode::WrongId, error.to_string()))?;
    check_identity(shared, &identity)?;
    let first = async {
        let stream = connection.accept_uni().await.map_err(|_| gone())?;
        let mut reader = MessageReader::new(stream, shared.mtu, &shared.reading);
        let hello = read_hello(&mut reader).await?;
        Ok((reader, hello))
    };
    // The first stream is the control stream, which its sender opens first. Streams may overtake each other
    // on the wire, but they are accepted in the order in which they were opened.
    let (reader, hello) = timeout(HELLO, first).await.map_err(|_| {
        Refusal::new(
            CloseCode::TooSlow,
            "no hello within a second of the handshake",
        )
    })??;
    check_hello(shared, &identity, &hello)?;
    let _registered = Registered::new(shared, &hello, connection)?;
    if let Some(link) = shared.links.borrow().get(&hello.replica.id) {
        link.peer_is_alive();
    }
    let mut welcome = connection.open_uni().await.map_err(|_| gone())?;
    let answer = Hello {
        stream: StreamKind::Welcome,
        client_address: shared.client_address.clone(),
        ..shared.next_hello()
    };
    welcome
        .write_chunk(framed(&answer))
        .await
        .map_err(|_| gone())?;
    welcome.finish();

    let served = Rc::new(Served {
        hello: hello.clone(),
        sessions: RefCell::default(),
    });
    let mut readers = JoinSet::new();
    readers.spawn_local(read_messages(
        Rc::clone(shared),
        Rc::clone(&served),
        reader,
        hello,
    ));
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let stream = stream.map_err(|_| gone())?;
                let reader = MessageReader::new(stream, shared.mtu, &shared.reading);
                let (shared, served) = (Rc::clone(shared), Rc::clone(&served));
                readers.spawn_local(read_stream(shared, served, reader));
            }
            Some(ended) = readers.join_next() => {
                if let Ok(result) = ended {
                    result?;
                }
            }
        }
    }
}

/// Reads a stream from its hello on.
async fn read_stream(
    shared: Rc<Shared>,
    served: Rc<Served>,
    mut reader: MessageReader,
) -> Result<(), Refusal> {
    let hello = match read_hello(&mut reader).await {
        Ok(hello) => hello,
        // Abandoned before it began.
        Err(refusal) if refusal.code == CloseCode::Shutdown => return Ok(()),
        Err(refusal) => return Err(refusal),
    };
    if !hello.same_sender(&served.hello) {
        let what = "a stream of another sender than its connection";
        return Err(Refusal::new(CloseCode::Forged, what));
    }
    read_messages(shared, served, reader, hello).await
}

/// Reads the messages of a stream whose hello has been checked.
async fn read_messages(
    shared: Rc<Shared>,
    served: Rc<Served>,
    mut reader: MessageReader,
    hello: Hello,
) -> Result<(), Refusal> {
    let (lane, max, keep) = match hello.stream {
        StreamKind::Control => (Lane::Control, CONTROL_BYTES_MAX, Keep::Briefly),
        StreamKind::Ack => (Lane::Ack, ACK_BYTES_MAX, Keep::Briefly),
        StreamKind::Append => (Lane::Append, APPEND_MESSAGE_BYTES_MAX, Keep::Long),
        StreamKind::Snapshot => (Lane::Snapshot, PART_MESSAGE_BYTES_MAX, Keep::Long),
        StreamKind::Welcome => {
            let what = "a welcome from the side that dialled";
            return Err(Refusal::new(CloseCode::Malformed, what));
        }
    };
    if hello.stream == StreamKind::Append && !served.begin_session(&hello) {
        reader.stop(STREAM_STALE);
        return Ok(());
    }
    let result = loop {
        let bytes = match reader.next(max, keep).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(ReadFailure::Stream(_)) => break Ok(()),
            Err(error) => break Err(Refusal::new(CloseCode::Malformed, error.to_string())),
        };
        let message = match Message::from_shared(&bytes) {
            Ok(message) => message,
            Err(error) => {
                let what = format!("message: {error}");
                break Err(Refusal::new(CloseCode::Malformed, what));
            }
        };
        drop(bytes);
        if let Err(refusal) = check_message(&shared, &hello, lane, &message) {
            break Err(refusal);
        }
        shared.inbox.room_for(&message).await;
        // A newer session may have begun while this one waited.
        if hello.stream == StreamKind::Append && !served.is_current(&hello) {
            reader.stop(STREAM_STALE);
            break Ok(());
        }
        shared.inbox.push_message(message);
    };
    if hello.stream == StreamKind::Append && served.is_current(&hello) {
        served.sessions.borrow_mut().remove(&hello.group);
    }
    result
}

impl Served {
    /// Makes the session of an append stream that of its group. False if a newer one has begun.
    fn begin_session(&self, hello: &Hello) -> bool {
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.entry(hello.group).or_default();
        if (hello.term, hello.session) < *session {
            return false;
        }
        *session = (hello.term, hello.session);
        true
    }

    fn is_current(&self, hello: &Hello) -> bool {
        self.sessions.borrow().get(&hello.group) == Some(&(hello.term, hello.session))
    }
}

/// Takes the place of an older connection of the same peer for as long as it lives.
struct Registered {
    shared: Rc<Shared>,
    peer: NodeId,
    stable_id: usize,
}

impl Registered {
    fn new(shared: &Rc<Shared>, hello: &Hello, connection: &Connection) -> Result<Self, Refusal> {
        let mut inbound = shared.inbound.borrow_mut();
        let peer = hello.replica.id;
        let superseded = |what: &str| Refusal::new(CloseCode::Superseded, what);
        if let Some(old) = inbound.get(&peer) {
            let same_life = old.hello.replica == hello.replica;
            let (was, is) = (&old.hello, hello);
            // Another life of the directory counts its boots anew, so only within one life is there an order.
            if same_life && (is.boot, is.connection) <= (was.boot, was.connection) {
                return Err(superseded("a newer connection is served"));
            }
            superseded("a newer connection has come").close(&old.connection);
        }
        let stable_id = connection.stable_id();
        let inbound_now = Inbound {
            hello: hello.clone(),
            connection: connection.clone(),
        };
        inbound.insert(peer, inbound_now);
        Ok(Self {
            shared: Rc::clone(shared),
            peer,
            stable_id,
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut inbound = self.shared.inbound.borrow_mut();
        let current = inbound
            .get(&self.peer)
            .map(|current| current.connection.stable_id());
        if current == Some(self.stable_id) {
            inbound.remove(&self.peer);
        }
    }
}

fn check_identity(shared: &Shared, identity: &Identity) -> Result<(), Refusal> {
    if identity.cluster != shared.cluster_name {
        let (theirs, ours) = (&identity.cluster, &shared.cluster_name);
        let what = format!("your certificate is of cluster {theirs}, this is cluster {ours}");
        return Err(Refusal::new(CloseCode::WrongCluster, what));
    }
    if identity.role != Role::Peer {
        let what = format!(
            "this port is for peers, your certificate is of a {}: dial listen.client",
            identity.role
        );
        return Err(Refusal::new(CloseCode::WrongRole, what));
    }
    Ok(())
}

fn check_hello(shared: &Shared, identity: &Identity, hello: &Hello) -> Result<(), Refusal> {
    if hello.stream != StreamKind::Control {
        let what = "the first stream of a connection must be control";
        return Err(Refusal::new(CloseCode::Malformed, what));
    }
    if hello.cluster != shared.cluster {
        let (theirs, ours) = (hello.cluster, shared.cluster);
        let what = format!(
            "you belong to cluster {theirs}, this node to {ours}, both by the name {}: one of the two \
             was set up anew",
            shared.cluster_name
        );
        return Err(Refusal::new(CloseCode::WrongCluster, what));
    }
    if hello.replica.id != identity.id {
        let (said, is) = (hello.replica.id, identity.id);
        let what = format!("you say that you are node {said}, your certificate is of node {is}");
        return Err(Refusal::new(CloseCode::WrongId, what));
    }
    if hello.replica.id == shared.replica.id {
        let what = format!(
            "this is node {} itself: two nodes share an id",
            shared.replica.id
        );
        return Err(Refusal::new(CloseCode::WrongId, what));
    }
    Ok(())
}

/// Whether a message is from whom its connection is, for us, and on the stream it belongs to.
fn check_message(
    shared: &Shared,
    hello: &Hello,
    lane: Lane,
    message: &Message,
) -> Result<(), Refusal> {
    let forged = |what: String| Err(Refusal::new(CloseCode::Forged, what));
    if message.from != hello.replica || message.boot != hello.boot {
        let (said, is) = (message.from, hello.replica);
        return forged(format!(
            "message claims to be from {said} boot {}, its connection is of {is} boot {}",
            message.boot, hello.boot
        ));
    }
    if message.to != shared.replica.id {
        return forged(format!(
            "message is for node {}, not for this one",
            message.to
        ));
    }
    if message.lane() != lane {
        return forged(format!(
            "message of lane {:?} on lane {lane:?}",
            message.lane()
        ));
    }
    if let Body::Append(append) = &message.body {
        let said = (message.group, message.term, append.session);
        if said != (hello.group, hello.term, hello.session) {
            return forged("append is of another group or session than its stream".to_owned());
        }
    }
    Ok(())
}

async fn read_hello(reader: &mut MessageReader) -> Result<Hello, Refusal> {
    let bytes = match reader.next(HELLO_BYTES_MAX, Keep::Briefly).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(Refusal::new(CloseCode::Malformed, "stream without a hello")),
        Err(ReadFailure::Stream(_)) => return Err(gone()),
        Err(error) => {
            return Err(Refusal::new(
                CloseCode::Malformed,
                format!("hello: {error}"),
            ));
        }
    };
    Hello::from_bytes(&bytes).map_err(|error| {
        use logdrive_raft::wire::DecodeError;
        let code = match &error {
            DecodeError::Version { .. } | DecodeError::Incompatible { .. } => CloseCode::Version,
            _ => CloseCode::Malformed,
        };
        Refusal::new(code, error.to_string())
    })
}

/// The stream or connection has ended: nobody is left to be told.
fn gone() -> Refusal {
    Refusal::new(CloseCode::Shutdown, "")
}

/// With which code an append stream of an older session is stopped.
pub(super) const STREAM_STALE: u32 = 2;

/// Connections served at once: every member twice, while new ones take the place of old ones.
pub(super) const CONNECTIONS_MAX: usize = 2 * logdrive_raft::limits::MEMBERS_MAX + 2;

const HELLO: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(1);
