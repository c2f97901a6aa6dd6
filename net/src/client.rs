//! The client library: proposals to a cluster, from any node of it to whoever leads.
//!
//! Many proposals are on their way at once over one connection, each with a deadline. Refusals that say that
//! nothing was appended are tried again, here or where the refusal points, until the deadline; what may
//! have been appended is never sent again.
//!
//! Runs on the tokio runtime of whoever calls [`Client::connect`].

mod batch;
mod ring;
mod session;
mod silence;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use logdrive_raft::wire::{Decode, Reader};
use logdrive_raft::{ClusterId, GroupId, Index, NodeId};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::batch::{FutureAnswer, Known, Part, Reply};
use self::session::{Established, Session};
use crate::clients::CLIENT_ALPN;
use crate::codec::{Keep, MessageReader, framed};
use crate::error::{CloseCode, LinkError, NetError, Refusal};
use crate::hello::HELLO_BYTES_MAX;
use crate::identity::{ClusterName, Role, any_peer_name};
use crate::memory::Tally;
use crate::protocol::{
    ClientGreeting, Code, LeaderHint, RESPONSE_FRAME_BYTES_MAX, Response, ServerGreeting,
    next_response, put_status_request,
};
use crate::secret::NetSecret;
use crate::tls::{Credentials, identity_of};
use crate::transport::{
    ClientTls, ConnectionConfig, ConnectionError, Endpoint, TransportSettings, Windows,
};

pub use self::batch::{Answer, AnswerSink, Answered, Batch, BatchError, OutputRun};

/// How a client behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How long [`Client::propose`] waits.
    pub timeout: Duration,
    /// The most proposals on their way at once.
    pub in_flight_max: usize,
    /// The most bytes of proposals on their way at once.
    pub in_flight_bytes_max: usize,
    /// Packet size, timeouts, socket buffers.
    pub transport: TransportSettings,
    /// Where answers to batches go. Needed for [`Client::submit`].
    pub sink: Option<Arc<dyn AnswerSink>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            in_flight_max: 1 << 20,
            in_flight_bytes_max: 256 << 20,
            // A node that was killed says nothing, and until that is noticed what is sent there waits in vain.
            transport: TransportSettings {
                idle: Duration::from_millis(500),
                keep_alive: Duration::from_millis(100),
                ..TransportSettings::default()
            },
            sink: None,
        }
    }
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (timeout, transport) = (&self.timeout, &self.transport);
        let mut debug = f.debug_struct("ClientOptions");
        debug
            .field("timeout", timeout)
            .field("transport", transport)
            .finish_non_exhaustive()
    }
}

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

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is nowhere to connect to.
    #[error("no address given")]
    NoAddress,
    /// The certificate is not for clients.
    #[error("certificate is for {found}: issue one with `logdrive tls issue --role client`")]
    Identity {
        /// Whom it names.
        found: String,
    },
    /// Networking could not be set up.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Nobody could be reached.
    #[error("no server reached: {}", join(errors))]
    Unreachable {
        /// Why, address by address.
        errors: Vec<(String, LinkError)>,
    },
}

fn join(errors: &[(String, LinkError)]) -> String {
    let each: Vec<String> = errors
        .iter()
        .map(|(at, error)| format!("{at}: {error}"))
        .collect();
    each.join("; ")
}

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It is in no log and never will be.
    #[error(
        "{code}; the proposal was not appended and will not be{}",
        because(detail)
    )]
    NeverAppended {
        /// Why.
        code: Code,
        /// What went wrong with connections, if that was it.
        detail: Option<String>,
    },
    /// It may be in the log once, or not at all.
    #[error("{code}; the proposal may have been appended, or not: ask the state machine")]
    MayYetCommit {
        /// Why nobody knows.
        code: Code,
    },
}

fn because(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map_or_else(String::new, |detail| format!(" ({detail})"))
}

impl ProposeError {
    /// The reason.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NeverAppended { code, .. } | Self::MayYetCommit { code } => *code,
        }
    }
}

/// Why a batch was not taken. None of it will be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As much as may be on its way is on its way.
    #[error("as many proposals as may be on their way are")]
    Full(Batch),
    /// There is nowhere for answers to go.
    #[error("the client was connected without a sink for answers")]
    NoSink(Batch),
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

/// Where proposals of which group go.
struct Routes {
    sessions: Vec<Arc<Session>>,
    by_group: BTreeMap<GroupId, usize>,
    /// Where those of a group go of which nothing is known.
    start: usize,
}

impl Routes {
    fn of(&self, group: GroupId) -> usize {
        self.by_group.get(&group).copied().unwrap_or(self.start)
    }

    /// The next after `number`, in turn, that is worth trying; the very next if none is.
    fn usable_after(&self, number: usize) -> usize {
        let count = self.sessions.len();
        (1..=count)
            .map(|step| (number + step) % count)
            .find(|next| self.sessions[*next].is_usable())
            .unwrap_or((number + 1) % count)
    }

    /// Of the sessions whose address was learnt and on which nothing is on its way, the one that has been of
    /// no use for the longest time.
    fn least_useful(&self) -> Option<usize> {
        let sessions = self.sessions.iter().enumerate();
        sessions
            .filter(|(_, session)| session.is_learnt() && session.is_idle())
            .min_by_key(|(_, session)| session.last_use())
            .map(|(number, _)| number)
    }
}

/// A refusal that a part of a batch met.
struct Refused {
    code: Code,
    retry_after: Duration,
    hint: Option<LeaderHint>,
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
        let tls = credentials
            .client_config(CLIENT_ALPN)
            .map_err(NetError::from)?;
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

impl Inner {
    fn new(credentials: &Credentials, options: ClientOptions) -> Result<Self, ConnectError> {
        let identity = credentials.identity();
        if identity.role == Role::Peer {
            let found = identity.to_string();
            return Err(ConnectError::Identity { found });
        }
        let tls = credentials
            .client_config(CLIENT_ALPN)
            .map_err(NetError::from)?;
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

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let task = tokio::spawn(task).abort_handle();
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.clone());
        task
    }

    /// The session of an address, made if there is none. In place of the least useful one if there are many;
    /// none is made if each of them is in use.
    fn add_session(
        self: &Arc<Self>,
        routes: &mut Routes,
        address: String,
        wanted: Option<NodeId>,
        established: Option<Established>,
    ) -> Option<usize> {
        let known = routes.sessions.iter().position(|session| {
            session.address == address && wanted.is_none_or(|wanted| session.may_be(wanted))
        });
        if known.is_some() {
            return known;
        }
        let session = Session::new(address, wanted, self.next_use());
        let number = if routes.sessions.len() < SESSIONS_MAX {
            routes.sessions.push(Arc::clone(&session));
            routes.sessions.len() - 1
        } else {
            let number = routes.least_useful()?;
            let least = std::mem::replace(&mut routes.sessions[number], Arc::clone(&session));
            least.end();
            // What of a group went there has to begin anew.
            routes.by_group.retain(|_, session| *session != number);
            number
        };
        let task = Arc::clone(&session).run(Arc::clone(self), number, established);
        session.set_task(self.spawn(task));
        Some(number)
    }

    /// A number that grows whenever an address proves useful.
    fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether there is anywhere to go but session `number`.
    fn has_alternative(&self, number: usize) -> bool {
        let routes = lock(&self.routes);
        let other = routes.usable_after(number);
        other != number && routes.sessions[other].is_usable()
    }

    /// Counts a batch as on its way, if there is room for it.
    fn admit(&self, part: &Part) -> bool {
        let (count, bytes) = (part.count as usize, part.payload_bytes());
        let counted = self.in_flight.fetch_add(count, Ordering::AcqRel);
        let counted_bytes = self.in_flight_bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = counted == 0
            || (counted + count <= self.options.in_flight_max
                && counted_bytes + bytes <= self.options.in_flight_bytes_max);
        if !fits {
            self.in_flight.fetch_sub(count, Ordering::AcqRel);
            self.in_flight_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
        fits
    }

    /// Queues a part where its group is thought to be led.
    fn dispatch(&self, part: Part) {
        let mut routes = lock(&self.routes);
        let mut number = routes.of(part.group());
        if !routes.sessions[number].is_usable() {
            number = routes.usable_after(number);
            routes.by_group.insert(part.group(), number);
        }
        // While the routes are locked, so that the session is not replaced before the part is in it.
        routes.sessions[number].push(part);
    }

    /// Tries a part again, elsewhere or later, or gives it up. It is known that it was not appended.
    fn refused(self: &Arc<Self>, mut part: Part, by: usize, why: Refused) {
        part.attempts += 1;
        part.refused = Some(why.code);
        let mut delay = why.retry_after.max(backoff(part.attempts));
        let is_final = matches!(why.code, Code::HALTED | Code::SHUTTING_DOWN);
        if is_final && lock(&self.routes).sessions.len() == 1 {
            let mut answers = Vec::new();
            let code = why.code;
            self.answer(part, Answered::NeverAppended { code }, &mut answers);
            self.deliver(&mut answers);
            return;
        }
        if is_final || matches!(why.code, Code::NOT_LEADER | Code::UNREACHABLE) {
            let mut routes = lock(&self.routes);
            let current = routes.of(part.group());
            // Many parts may be refused for one reason. The first one moves the route.
            if current == by {
                // A hint may be older than what this client knows: that nobody answers there any more.
                let hinted = why.hint.and_then(|hint| {
                    self.add_session(&mut routes, hint.address, Some(hint.leader), None)
                        .filter(|hinted| *hinted != by && routes.sessions[*hinted].is_usable())
                });
                let next = hinted.unwrap_or_else(|| routes.usable_after(current));
                routes.by_group.insert(part.group(), next);
                if hinted.is_some() && part.attempts <= HOPS_MAX {
                    delay = Duration::ZERO;
                }
            } else if part.attempts <= HOPS_MAX {
                delay = Duration::ZERO;
            }
        }
        let now = Instant::now();
        if now + delay >= part.deadline() {
            let mut answers = Vec::new();
            let code = why.code;
            self.answer(part, Answered::NeverAppended { code }, &mut answers);
            self.deliver(&mut answers);
        } else if delay.is_zero() {
            self.dispatch(part);
        } else {
            let number = self.delayed_ever.fetch_add(1, Ordering::Relaxed);
            lock(&self.delayed).insert((now + delay, number), part);
            self.delayed_changed.notify_one();
        }
    }

    /// Answers a part: whoever waits for it at once, the sink with [`Inner::deliver`].
    fn answer(&self, part: Part, what: Answered, answers: &mut Vec<Answer>) {
        self.in_flight
            .fetch_sub(part.count as usize, Ordering::AcqRel);
        self.in_flight_bytes
            .fetch_sub(part.payload_bytes(), Ordering::AcqRel);
        match &part.whole.reply {
            Reply::Sink => answers.push(Answer {
                token: part.token(),
                first: part.first,
                count: part.count,
                what,
            }),
            Reply::Future(sender) => {
                if let Some(sender) = lock(sender).take() {
                    // Nobody may wait any more.
                    let _ = sender.send(for_future(what));
                }
                self.room.notify_waiters();
            }
        }
    }

    /// Gives gathered answers to the sink.
    fn deliver(&self, answers: &mut Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        if let Some(sink) = &self.options.sink {
            // A sink is not ours. If it ended the task that calls it, whatever else waits there would wait
            // for ever.
            let taken = catch_unwind(AssertUnwindSafe(|| sink.answered(answers)));
            if taken.is_err() {
                tracing::error!(
                    event = "client_sink_panicked",
                    code = "sink_panicked",
                    "the sink for answers panicked: the answers it was given are lost"
                );
            }
        }
        answers.clear();
        self.room.notify_waiters();
    }

    /// What went wrong with connections, if that is what `code` says.
    fn last_error(&self, code: Code) -> Option<String> {
        if code != Code::UNREACHABLE {
            return None;
        }
        let routes = lock(&self.routes);
        let errors = routes.sessions.iter().filter_map(|session| {
            session
                .last_error()
                .map(|error| format!("{}: {error}", session.address))
        });
        Some(errors.collect::<Vec<_>>().join("; "))
    }

    /// Connects to an address and exchanges greetings. It must be node `wanted` that answers, if anybody in
    /// particular.
    async fn dial(&self, address: &str, wanted: Option<NodeId>) -> Result<Established, LinkError> {
        let unreachable = || LinkError::Unreachable {
            address: address.to_owned(),
        };
        let remote = self.resolve(address).await?;
        let (tls, name) = (self.tls.load_full(), any_peer_name(&self.cluster_name));
        let connecting = self.endpoint.connect(&tls, &self.transport, remote, &name);
        let quic = |error: ConnectionError| LinkError::from_transport(&error, address, false);
        let connection = timeout(HANDSHAKE, connecting)
            .await
            .map_err(|_| unreachable())?
            .map_err(quic)?;
        // TLS has checked that it is a peer of this cluster; its certificate says which.
        let node = match identity_of(&connection) {
            Ok(found) if found.role == Role::Peer && found.cluster == self.cluster_name => {
                if let Some(wanted) = wanted.filter(|wanted| *wanted != found.id) {
                    connection.close(CloseCode::WrongId, b"another node was wanted");
                    return Err(LinkError::WrongNode {
                        address: address.to_owned(),
                        found: found.to_string(),
                        wanted,
                    });
                }
                found.id
            }
            found => {
                let what = match found {
                    Ok(found) => {
                        format!("at {address} answers {found}, which is no server of ours")
                    }
                    Err(error) => error.to_string(),
                };
                let refusal = Refusal::new(CloseCode::WrongId, what);
                refusal.close(&connection);
                return Err(refusal.into());
            }
        };
        let greeting = ClientGreeting {
            compatible: 0,
            cluster: ClusterId(0),
            client: self.client,
        };
        let exchange = async {
            let lost = |_| match connection.close_reason() {
                Some(error) => LinkError::from_transport(&error, address, false),
                None => LinkError::Lost,
            };
            let (mut send, receive) = connection.open_bi().await.map_err(quic)?;
            send.write_chunk(framed(&greeting))
                .await
                .map_err(|error| lost(error.to_string()))?;
            let mut reader = MessageReader::new(receive, self.mtu, &self.reading);
            let answer = reader.next(HELLO_BYTES_MAX, Keep::Briefly).await;
            let answer = answer.map_err(|error| lost(error.to_string()))?;
            let answer = answer.ok_or_else(|| lost(String::new()))?;
            ServerGreeting::from_bytes(&answer).map_err(|error| {
                let refusal = Refusal::new(CloseCode::Version, error.to_string());
                refusal.close(&connection);
                LinkError::from(refusal)
            })?;
            Ok::<_, LinkError>((send, reader))
        };
        let (send, reader) = timeout(HANDSHAKE, exchange)
            .await
            .map_err(|_| unreachable())??;
        Ok(Established {
            node,
            connection,
            send,
            reader,
        })
    }

    async fn resolve(&self, address: &str) -> Result<SocketAddr, LinkError> {
        if let Ok(address) = address.parse() {
            return Ok(address);
        }
        let failed = |what: String| LinkError::Resolve {
            address: address.to_owned(),
            what,
        };
        let found = timeout(RESOLVE, tokio::net::lookup_host(address))
            .await
            .map_err(|_| failed("no answer within a second".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        let ipv4_only = self
            .endpoint
            .local_addr()
            .is_ok_and(|local| local.is_ipv4());
        let mut usable = found.filter(|address| address.is_ipv4() || !ipv4_only);
        usable
            .next()
            .ok_or_else(|| failed("no address of a kind that this machine has".to_owned()))
    }

    async fn status(&self, address: &str) -> Result<Bytes, LinkError> {
        let Established {
            connection,
            mut send,
            mut reader,
            ..
        } = self.dial(address, None).await?;
        let lost = || match connection.close_reason() {
            Some(error) => LinkError::from_transport(&error, address, true),
            None => LinkError::Lost,
        };
        let mut request = BytesMut::new();
        put_status_request(&mut request, 0);
        let exchange = async {
            send.write_chunk(request.freeze())
                .await
                .map_err(|_| lost())?;
            let frame = reader.next(RESPONSE_FRAME_BYTES_MAX, Keep::Briefly).await;
            let frame = frame.map_err(|_| lost())?.ok_or_else(lost)?;
            match next_response(&mut Reader::new(&frame)) {
                Ok(Response::Status { json, .. }) => Ok(Bytes::copy_from_slice(json)),
                other => {
                    let what = format!("asked for a status, got {other:?}");
                    Err(LinkError::Refused(Refusal::new(CloseCode::Malformed, what)))
                }
            }
        };
        let status = timeout(STATUS, exchange)
            .await
            .map_err(|_| LinkError::Unreachable {
                address: address.to_owned(),
            })?;
        connection.close(CloseCode::Shutdown, b"");
        status
    }
}

/// Sends parts again once their time has come.
async fn send_delayed(inner: Arc<Inner>) {
    loop {
        let now = Instant::now();
        let mut next = None;
        loop {
            let mut delayed = lock(&inner.delayed);
            let Some(first) = delayed.first_entry() else {
                break;
            };
            if first.key().0 > now {
                next = Some(first.key().0);
                break;
            }
            let part = first.remove();
            drop(delayed);
            inner.dispatch(part);
        }
        match next {
            None => inner.delayed_changed.notified().await,
            Some(at) => tokio::select! {
                () = sleep_until(at) => {}
                () = inner.delayed_changed.notified() => {}
            },
        }
    }
}

fn for_future(what: Answered) -> FutureAnswer {
    match what {
        Answered::Applied {
            index,
            first_slot,
            outputs,
        } => Ok(Applied {
            index,
            slot: first_slot,
            output: outputs
                .iter()
                .next()
                .map(Bytes::copy_from_slice)
                .unwrap_or_default(),
        }),
        Answered::NeverAppended { code } => Err((Known::Never, code)),
        Answered::MayYetCommit { code } => Err((Known::MayYet, code)),
    }
}

/// How long to wait before another try: doubling, and drawn from the upper half so that not all come at once.
fn backoff(attempts: u32) -> Duration {
    let bound_us = (RETRY_MIN_US << attempts.min(16)).min(RETRY_MAX_US);
    Duration::from_micros(fastrand::u64(bound_us / 2..=bound_us))
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between two states that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most addresses a client talks to, those that leaders were said to be at included.
const SESSIONS_MAX: usize = 64;

/// How often a part follows a hint without waiting.
const HOPS_MAX: u32 = 3;

/// How long after its deadline a proposal is given up by whoever waits for it, if nobody else has.
///
/// Several ticks: the task that answers it at its deadline says more, whether it was ever sent.
const ANSWER_GRACE: Duration = session::TICK.saturating_mul(5);

const RETRY_MIN_US: u64 = 1_000;
const RETRY_MAX_US: u64 = 50_000;
const HANDSHAKE: Duration = Duration::from_secs(1);
const RESOLVE: Duration = Duration::from_secs(1);
const STATUS: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;
    use crate::ca::{Authority, IssueRequest};

    fn inner() -> Arc<Inner> {
        let authority = Authority::create("blue".parse().unwrap()).unwrap();
        let request = IssueRequest::new(Role::Client, NodeId(1), 1);
        let issued = authority.issue(&request).unwrap();
        let credentials = Credentials::from_pem(
            authority.certificate_pem(),
            &issued.certificate_pem,
            &issued.key_pem,
            UnixTime::now(),
        );
        Arc::new(Inner::new(&credentials.unwrap(), ClientOptions::default()).unwrap())
    }

    fn client(inner: &Arc<Inner>) -> Client {
        inner.spawn(send_delayed(Arc::clone(inner)));
        Client {
            inner: Arc::clone(inner),
            _tasks: Arc::new(Tasks(Arc::clone(inner))),
        }
    }

    #[tokio::test]
    async fn the_least_useful_of_many_learnt_addresses_is_forgotten() {
        let inner = inner();
        let _client = client(&inner);
        learn_and_forget(&inner);
        // The tasks of those that were forgotten end.
        let running = || {
            let tasks = lock(&inner.tasks);
            tasks.iter().filter(|task| !task.is_finished()).count()
        };
        while running() > SESSIONS_MAX + 1 {
            tokio::task::yield_now().await;
        }
    }

    fn learn_and_forget(inner: &Arc<Inner>) {
        let mut routes = lock(&inner.routes);
        let given = inner.add_session(&mut routes, "given:1".to_owned(), None, None);
        assert_eq!(given, Some(0));
        let learn = |routes: &mut Routes, number: usize| {
            let leader = Some(NodeId(1 + number as u64));
            inner.add_session(routes, format!("learnt:{number}"), leader, None)
        };
        for number in 1..SESSIONS_MAX {
            assert_eq!(learn(&mut routes, number), Some(number));
        }
        // Of three that came first, one has answered since, and on another something waits.
        routes.sessions[1].was_useful(inner.next_use());
        let deadline = Instant::now() + Duration::from_secs(5);
        let batch = Batch::of(1, GroupId(1), deadline, [&b"a"[..]]).unwrap();
        routes.sessions[2].push(Part::whole(batch, Reply::Sink));
        routes.by_group.insert(GroupId(7), 3);
        assert_eq!(learn(&mut routes, SESSIONS_MAX), Some(3));
        assert_eq!(routes.of(GroupId(7)), routes.start);
        for number in 1..=1_000 {
            let at = learn(&mut routes, SESSIONS_MAX + number);
            assert!(at.is_some_and(|at| at > 2 && at < SESSIONS_MAX), "{at:?}");
            // What is useful now and then stays.
            routes.sessions[1].was_useful(inner.next_use());
        }
        assert_eq!(routes.sessions.len(), SESSIONS_MAX);
        let kept: Vec<_> = routes.sessions[..3].iter().map(|s| &s.address).collect();
        assert_eq!(kept, ["given:1", "learnt:1", "learnt:2"]);
    }

    // Time is virtual: it passes as fast as everything waits for it.
    #[tokio::test(start_paused = true)]
    async fn deadlines_hold_while_nobody_dials() {
        let inner = inner();
        // Nobody listens at the discard port.
        let address = "127.0.0.1:9".to_owned();
        inner.add_session(&mut lock(&inner.routes), address, None, None);
        let client = client(&inner);
        // Each attempt takes a second, and then there is none for up to half of one.
        for _ in 0..200 {
            let deadline = Instant::now() + Duration::from_millis(30);
            let ended = client.propose_by(GroupId(1), &b"a"[..], deadline).await;
            let late = deadline.elapsed();
            assert!(late <= 2 * session::TICK, "{late:?}");
            let known = matches!(ended, Err(ProposeError::NeverAppended { .. }));
            assert!(known, "{ended:?}");
        }
    }
}
