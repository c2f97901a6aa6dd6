//! Load over the client library: one connection a client, all of a worker's on the worker's own thread.
//!
//! The worker's thread runs the network while it waits. So an answer costs no hop between threads, and what
//! an answer lets go leaves in the same turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use logdrive_net::client::{
    Answer, AnswerSink, Answered as ClientAnswered, Batch, Client, ClientOptions, SubmitError,
};
use logdrive_net::protocol::Code as WireCode;
use logdrive_net::{Credentials, TransportSettings};
use logdrive_raft::GroupId;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::{
    Answered, Failure, Lane, Mailbox, Outcome, Submission, Target, TargetError, is_rejection,
};
use crate::run::source_chain;
use timer::Timer;

/// Replicas that are reached by connections.
#[derive(Debug)]
pub struct RemoteTarget {
    /// Where they listen for clients.
    pub addresses: Vec<String>,
    /// What the clients are.
    pub credentials: Arc<Credentials>,
    /// Packets and buffers.
    pub transport: TransportSettings,
    /// The most operations of one client on their way.
    pub in_flight_max: usize,
}

impl Target for RemoteTarget {
    fn lane(&self, clients: &[u32], mailbox: Arc<Mailbox>) -> Result<Box<dyn Lane>, TargetError> {
        let failed = |error: &dyn std::error::Error| TargetError(source_chain(error));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let sink: Arc<dyn AnswerSink> = Arc::new(Sink {
            mailbox: Arc::clone(&mailbox),
        });
        let connect = |start: usize| {
            let mut options = ClientOptions::default();
            options.transport.mtu = self.transport.mtu;
            options.in_flight_max = self.in_flight_max;
            options.sink = Some(Arc::clone(&sink));
            // Each begins with another node, and follows the hint from there.
            let mut addresses = self.addresses.clone();
            let count = addresses.len().max(1);
            addresses.rotate_left(start % count);
            let credentials = Arc::clone(&self.credentials);
            async move { Client::connect(addresses, &credentials, options).await }
        };
        let mut connected = BTreeMap::new();
        for client in clients {
            let connection = runtime.block_on(connect(*client as usize));
            connected.insert(*client, connection.map_err(|error| failed(&error))?);
        }
        let timer = {
            let _entered = runtime.enter();
            Timer::new().map_err(|error| failed(&error))?
        };
        Ok(Box::new(RemoteLane {
            clients: connected,
            timer,
            runtime,
            mailbox,
        }))
    }
}

struct RemoteLane {
    // Before the runtime: they end with it.
    clients: BTreeMap<u32, Client>,
    timer: Timer,
    runtime: Runtime,
    mailbox: Arc<Mailbox>,
}

impl Lane for RemoteLane {
    fn submit(&mut self, batch: &Submission<'_>) -> Result<(), Failure> {
        let refused = |code, outcome| Failure { code, outcome };
        let never = refused("bad_batch", Outcome::Never);
        let client = self.clients.get(&batch.client).ok_or(never)?;
        let left = self.mailbox.clock().until(batch.deadline_ns);
        let deadline = Instant::now() + left;
        let group = GroupId(u64::from(batch.group) + 1);
        let bytes = batch.bytes.clone();
        let batch = Batch::new(batch.token, group, deadline, bytes, batch.ends.to_vec());
        let batch = batch.map_err(|_| never)?;
        // From within the runtime: who wakes its tasks from outside pays for a system call each time.
        let submitted = self.runtime.block_on(async { client.submit(batch) });
        submitted.map_err(|error| match error {
            SubmitError::Full(_) => refused("busy", Outcome::Retry),
            _ => never,
        })
    }

    fn wait(&mut self, until_ns: u64) {
        let left = self.mailbox.clock().until(until_ns);
        let (timer, mailbox) = (&mut self.timer, &self.mailbox);
        self.runtime.block_on(async {
            // What was handed in goes out first, whatever has arrived.
            tokio::task::yield_now().await;
            if left.is_zero() {
                return;
            }
            tokio::select! {
                biased;
                () = std::future::poll_fn(|context| mailbox.poll(context)) => {}
                () = timer.sleep(left) => {}
            }
        });
    }
}

struct Sink {
    mailbox: Arc<Mailbox>,
}

impl AnswerSink for Sink {
    fn answered(&self, answers: &mut Vec<Answer>) {
        for answer in answers.drain(..) {
            let Answer {
                token,
                first,
                count,
                what,
            } = answer;
            let what = match what {
                ClientAnswered::Applied {
                    index,
                    first_slot,
                    outputs,
                } => {
                    let mut kept = Vec::new();
                    let wanted = self.mailbox.wants_outputs();
                    for (number, output) in outputs.iter().enumerate() {
                        if wanted || is_rejection(output) {
                            kept.resize(number, Bytes::new());
                            kept.push(Bytes::copy_from_slice(output));
                        }
                    }
                    Answered::Applied {
                        index: index.0,
                        slot: first_slot,
                        outputs: kept,
                    }
                }
                // What may go better has been tried again until the deadline.
                ClientAnswered::NeverAppended { code } => failed(code, Outcome::Never),
                ClientAnswered::MayYetCommit { code } => failed(code, Outcome::Unknown),
            };
            self.mailbox.put(token, first, count, what);
        }
    }
}

fn failed(code: WireCode, outcome: Outcome) -> Answered {
    let code = code.name();
    Answered::Failed(Failure { code, outcome })
}

/// Sleeping for less than tokio's timers can tell apart.
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
mod timer {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::unix::AsyncFd;

    /// A timer of the kernel, exact to microseconds where tokio's are exact to milliseconds.
    #[derive(Debug)]
    pub(super) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        #[expect(
            deprecated,
            reason = "it is for types that may swap their descriptor; an OwnedFd keeps the one it has"
        )]
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            AsyncFd::new(timer).map(Self)
        }

        pub(super) async fn sleep(&mut self, time: Duration) {
            let zero = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let once = Itimerspec {
                it_interval: zero,
                it_value: Timespec {
                    tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(time.subsec_nanos()),
                },
            };
            // Setting it anew forgets an expiry that nobody waited for.
            let set = timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once);
            if set.is_err() {
                tokio::time::sleep(time).await;
                return;
            }
            loop {
                let Ok(mut ready) = self.0.readable().await else {
                    return;
                };
                let mut expiries = [0; 8];
                let read = ready.try_io(|timer| {
                    rustix::io::read(timer.get_ref(), &mut expiries).map_err(io::Error::from)
                });
                if read.is_ok() {
                    return;
                }
            }
        }
    }
}

#[cfg(not(all(target_os = "linux", not(logdrive_portable))))]
mod timer {
    use std::io;
    use std::time::Duration;

    /// A timer of tokio, exact to milliseconds.
    #[derive(Debug)]
    pub(super) struct Timer;

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        pub(super) async fn sleep(&mut self, time: Duration) {
            tokio::time::sleep(time).await;
        }
    }
}
