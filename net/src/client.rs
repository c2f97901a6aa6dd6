//! The client library: proposals to a cluster, from any node of it to whoever leads.
//!
//! Many proposals are on their way at once over one connection, each with a deadline. Refusals that say that
//! nothing was appended are tried again, here or where the refusal points, until the deadline; what may
//! have been appended is never sent again.
//!
//! Runs on the tokio runtime of whoever calls [`Client::connect`].

mod batch;
mod dial;
mod dispatch;
mod error;
mod options;
mod ring;
mod routes;
mod session;
mod silence;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use logdrive_raft::{GroupId, Index, NodeId};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use self::batch::{Known, Part, Reply};
use self::dispatch::send_delayed;
use self::routes::Routes;
use crate::clients::CLIENT_ALPN;
use crate::error::{CloseCode, LinkError, NetError};
use crate::identity::{ClusterName, Role};
use crate::memory::Tally;
use crate::protocol::Code;
use crate::secret::NetSecret;
use crate::tls::Credentials;
use crate::transport::{ClientTls, ConnectionConfig, Endpoint, Windows};

pub use self::batch::{Answer, AnswerSink, Answered, Batch, BatchError, OutputRun};
pub use self::error::{ConnectError, ProposeError, SnapshotError, SubmitError};
pub use self::options::ClientOptions;

/// A way into a cluster. Clones share it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    _tasks: Arc<Tasks>,
}

/// Where a proposal was applied, and what the state machine answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The entry.
    pub index: Index,
    /// The slot within it.
    pub slot: u32,
    /// The answer.
    pub output: Bytes,
}

struct Inner {
    endpoint: Endpoint,
    tls: ArcSwap<ClientTls>,
    transport: ConnectionConfig,
    cluster_name: ClusterName,
    client: NodeId,
    mtu: u16,
    options: ClientOptions,
    routes: Mutex<Routes>,
    delayed: Mutex<BTreeMap<(Instant, u64), Part>>,
    delayed_ever: AtomicU64,
    delayed_changed: Notify,
    reading: Tally,
    in_flight: AtomicUsize,
    in_flight_bytes: AtomicUsize,
    room: Notify,
    tasks: Mutex<Vec<AbortHandle>>,
    uses: AtomicU64,
}

/// Ends the client's tasks with its last handle.
struct Tasks(Arc<Inner>);

impl Drop for Tasks {
    fn drop(&mut self) {
        let reason = b"the client is done";
        self.0.endpoint.close(CloseCode::Shutdown, reason);
        for task in lock(&self.0.tasks).drain(..) {
            task.abort();
        }
    }
}

impl Client {
    /// Connects to the first of these addresses that answers. The others are for when it no longer does.
    pub async fn connect(
        addresses: Vec<String>,
        credentials: &Credentials,
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        if addresses.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let inner = Arc::new(Inner::new(credentials, options)?);
        let mut errors = Vec::new();
        let mut established = None;
        for (number, address) in addresses.iter().enumerate() {
            match inner.dial(address, None).await {
                Ok(dialled) => {
                    established = Some((number, dialled));
                    break;
                }
                Err(error) => errors.push((address.clone(), error)),
            }
        }
        let Some((start, dialled)) = established else {
            return Err(ConnectError::Unreachable { errors });
        };
        let mut dialled = Some(dialled);
        for (number, address) in addresses.into_iter().enumerate() {
            let established = if number == start {
                dialled.take()
            } else {
                None
            };
            inner.add_session(&mut lock(&inner.routes), address, None, established);
        }
        lock(&inner.routes).start = start;
        inner.spawn(send_delayed(Arc::clone(&inner)));
        let tasks = Arc::new(Tasks(Arc::clone(&inner)));
        Ok(Self {
            inner,
            _tasks: tasks,
        })
    }

    /// Proposes, and waits for the answer until the timeout of the options.
    pub async fn propose(
        &self,
        group: GroupId,
        payload: impl Into<Bytes>,
    ) -> Result<Applied, ProposeError> {
        self.propose_by(group, payload, Instant::now() + self.inner.options.timeout)
            .await
    }

    /// Proposes, and waits for the answer until `deadline`.
    ///
    /// A future that is dropped leaves its proposal where it is: it may be appended, or not.
    pub async fn propose_by(
        &self,
        group: GroupId,
        payload: impl Into<Bytes>,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let payload = payload.into();
        let never = |code| ProposeError::NeverAppended { code, detail: None };
        let length = u32::try_from(payload.len()).map_err(|_| never(Code::TOO_LARGE))?;
        let batch = Batch::new(0, group, deadline, payload, [length])
            .map_err(|_| never(Code::TOO_LARGE))?;
        let (sender, receiver) = oneshot::channel();
        let part = Part::whole(batch, Reply::Future(Mutex::new(Some(sender))));
        let admitted = async {
            loop {
                let room = self.inner.room.notified();
                if self.inner.admit(&part) {
                    return;
                }
                room.await;
            }
        };
        if timeout_at(deadline, admitted).await.is_err() {
            return Err(never(Code::BUSY));
        }
        self.inner.dispatch(part);
        // The client's tasks know what became of it by then. They may run elsewhere, and not at all.
        let given_up = deadline.checked_add(ANSWER_GRACE).unwrap_or(deadline);
        match timeout_at(given_up, receiver).await {
            Ok(Ok(Ok(applied))) => Ok(applied),
            Ok(Ok(Err((Known::Never, code)))) => Err(ProposeError::NeverAppended {
                code,
                detail: self.inner.last_error(code),
            }),
            Ok(Ok(Err((Known::MayYet, code)))) => Err(ProposeError::MayYetCommit { code }),
            // The client's tasks were ended with the proposal somewhere in them.
            Ok(Err(_)) => Err(ProposeError::MayYetCommit {
                code: Code::CONNECTION_LOST,
            }),
            Err(_) => Err(ProposeError::MayYetCommit {
                code: Code::DEADLINE,
            }),
        }
    }

    /// Hands in a batch. Never waits. Each proposal of it is answered exactly once, to the sink of the options.
    pub fn submit(&self, batch: Batch) -> Result<(), SubmitError> {
        if self.inner.options.sink.is_none() {
            return Err(SubmitError::NoSink(batch));
        }
        let part = Part::whole(batch.clone(), Reply::Sink);
        if !self.inner.admit(&part) {
            return Err(SubmitError::Full(batch));
        }
        self.inner.dispatch(part);
        Ok(())
    }

    /// How many proposals are on their way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::Relaxed)
    }

    /// Asks the node at `address` for its status, as JSON. Works without a leader, on a connection of its own.
    pub async fn status(&self, address: &str) -> Result<Bytes, LinkError> {
        self.inner.status(address).await
    }

    /// Puts another certificate in place of the one in use, for connections made from now on.
    pub fn set_credentials(&self, credentials: &Credentials) -> Result<(), ConnectError> {
        let tls = client_tls(credentials)?;
        let (found, wanted) = (
            credentials.identity(),
            (&self.inner.cluster_name, self.inner.client),
        );
        if (&found.cluster, found.id) != wanted {
            return Err(ConnectError::Another {
                found: found.to_string(),
                cluster: wanted.0.to_string(),
                client: wanted.1,
            });
        }
        self.inner.tls.store(Arc::new(tls));
        Ok(())
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// Asks the node at `address` for its status, as JSON, without a client.
pub async fn status(
    address: &str,
    credentials: &Credentials,
    options: ClientOptions,
) -> Result<Bytes, ConnectError> {
    let inner = Inner::new(credentials, options)?;
    let status = inner
        .status(address)
        .await
        .map_err(|error| ConnectError::Unreachable {
            errors: vec![(address.to_owned(), error)],
        });
    inner.endpoint.close(CloseCode::Shutdown, b"");
    status
}

/// Has the node at `address` take a snapshot of a group now: how that ended, as JSON. Needs the certificate of an
/// admin.
pub async fn snapshot(
    address: &str,
    group: GroupId,
    credentials: &Credentials,
    options: ClientOptions,
    limit: Duration,
) -> Result<Bytes, SnapshotError> {
    let inner = Inner::new(credentials, options)?;
    let asked = inner.snapshot(address, group, limit).await;
    inner.endpoint.close(CloseCode::Shutdown, b"");
    match asked {
        Ok(answer) => answer.map_err(|code| SnapshotError::Refused { code }),
        Err(error) => Err(SnapshotError::Connect(ConnectError::Unreachable {
            errors: vec![(address.to_owned(), error)],
        })),
    }
}

impl Inner {
    fn new(credentials: &Credentials, options: ClientOptions) -> Result<Self, ConnectError> {
        let identity = credentials.identity();
        let tls = client_tls(credentials)?;
        let mtu = options.transport.mtu;
        let windows = Windows {
            streams_bidi: 0,
            ..Windows::for_clients(mtu)
        };
        let transport = ConnectionConfig::new(&options.transport, windows);
        let bind = |address: SocketAddr| {
            let secret = NetSecret::random();
            let bound = secret
                .and_then(|secret| Endpoint::bind(address, &options.transport, &secret, None));
            bound.map_err(|source| NetError::Bind { address, source })
        };
        // A socket for IPv6 also speaks IPv4, where there is IPv6 at all.
        let bound = bind((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        Ok(Self {
            endpoint: bound.endpoint,
            tls: ArcSwap::from_pointee(tls),
            transport,
            cluster_name: credentials.cluster().clone(),
            client: identity.id,
            mtu: mtu.bytes(),
            options,
            routes: Mutex::new(Routes {
                sessions: Vec::new(),
                by_group: BTreeMap::new(),
                start: 0,
            }),
            delayed: Mutex::default(),
            delayed_ever: AtomicU64::new(0),
            delayed_changed: Notify::new(),
            reading: Tally::default(),
            in_flight: AtomicUsize::new(0),
            in_flight_bytes: AtomicUsize::new(0),
            room: Notify::new(),
            tasks: Mutex::default(),
            uses: AtomicU64::new(0),
        })
    }
}

/// How a client with this certificate dials, if it is one for clients.
fn client_tls(credentials: &Credentials) -> Result<ClientTls, ConnectError> {
    let identity = credentials.identity();
    if identity.role == Role::Peer {
        let found = identity.to_string();
        return Err(ConnectError::Identity { found });
    }
    Ok(credentials
        .client_config(CLIENT_ALPN)
        .map_err(NetError::from)?)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between two states that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long after its deadline a proposal is given up by whoever waits for it, if nobody else has.
///
/// Several ticks: the task that answers it at its deadline says more, whether it was ever sent.
const ANSWER_GRACE: Duration = session::TICK.saturating_mul(5);
