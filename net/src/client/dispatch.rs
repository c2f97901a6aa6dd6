//! What is on its way: where it goes, what becomes of it when it is refused, and to whom its answer is given.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use logdrive_raft::NodeId;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::batch::{Answer, Answered, FutureAnswer, Known, Part, Reply};
use super::routes::Routes;
use super::session::{Established, Session};
use super::{Applied, Inner, lock};
use crate::protocol::{Code, LeaderHint};

/// A refusal that a part of a batch met.
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) retry_after: Duration,
    pub(super) hint: Option<LeaderHint>,
}

impl Inner {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let task = tokio::spawn(task).abort_handle();
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.clone());
        task
    }

    /// The session of an address, made if there is none. In place of the least useful one if there are many;
    /// none is made if each of them is in use.
    pub(super) fn add_session(
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
    pub(super) fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether there is anywhere to go but session `number`.
    pub(super) fn has_alternative(&self, number: usize) -> bool {
        let routes = lock(&self.routes);
        let other = routes.usable_after(number);
        other != number && routes.sessions[other].is_usable()
    }

    /// Counts a batch as on its way, if there is room for it.
    pub(super) fn admit(&self, part: &Part) -> bool {
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
    pub(super) fn dispatch(&self, part: Part) {
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
    pub(super) fn refused(self: &Arc<Self>, mut part: Part, by: usize, why: Refused) {
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
    pub(super) fn answer(&self, part: Part, what: Answered, answers: &mut Vec<Answer>) {
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
    pub(super) fn deliver(&self, answers: &mut Vec<Answer>) {
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
    pub(super) fn last_error(&self, code: Code) -> Option<String> {
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
}

/// Sends parts again once their time has come.
pub(super) async fn send_delayed(inner: Arc<Inner>) {
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

/// The most addresses a client talks to, those that leaders were said to be at included.
const SESSIONS_MAX: usize = 64;

/// How often a part follows a hint without waiting.
const HOPS_MAX: u32 = 3;

const RETRY_MIN_US: u64 = 1_000;
const RETRY_MAX_US: u64 = 50_000;

#[cfg(test)]
mod tests {
    use logdrive_raft::GroupId;

    use super::*;
    use crate::ca::{Authority, IssueRequest};
    use crate::client::{Batch, Client, ClientOptions, ProposeError, Tasks, session};
    use crate::identity::Role;
    use crate::tls::Credentials;

    fn inner() -> Arc<Inner> {
        let authority = Authority::create("blue".parse().unwrap()).unwrap();
        let request = IssueRequest::new(Role::Client, NodeId(1), 1);
        let issued = authority.issue(&request).unwrap();
        let credentials = Credentials::from_pem(
            authority.certificate_pem(),
            &issued.certificate_pem,
            &issued.key_pem,
            std::time::SystemTime::now(),
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
