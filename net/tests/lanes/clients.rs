//! Clients and servers over real sockets; what the servers answer is up to each test.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use bytes::Bytes;
use logdrive_net::ca::Authority;
use logdrive_net::client::{BatchError, SnapshotError, snapshot};
use logdrive_net::{
    Answer, AnswerSink, Answered, Batch, Client, ClientEvent, ClientNet, ClientNetConfig,
    ClientOptions, CloseCode, Code, ConnectError, MtuProfile, NetSecret, ProposeBatch,
    ProposeError, ResponseQueue, Role, SubmitError,
};
use logdrive_raft::{GroupId, Index, NodeId};
use tokio::time::Instant;

const GROUP: GroupId = GroupId(1);

fn server_config(authority: &Authority, node: u64) -> ClientNetConfig {
    let mut config = ClientNetConfig::new(
        NodeId(node),
        CLUSTER,
        localhost(),
        credentials(authority, Role::Peer, node),
        NetSecret::random().unwrap(),
    );
    config.transport.mtu = MtuProfile::Loopback;
    // A busy machine may stop a test for a second, and nobody is lost by that.
    config.transport.idle = PATIENCE;
    config
}

fn options() -> ClientOptions {
    let mut options = ClientOptions::default();
    options.transport.mtu = MtuProfile::Loopback;
    options.transport.idle = PATIENCE;
    options
}

/// A server that hands each batch to a closure, in a task of its own.
struct Server {
    address: String,
    net: Rc<RefCell<Option<ClientNet>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(
        config: ClientNetConfig,
        handle: impl FnMut(ProposeBatch, ResponseQueue) + 'static,
    ) -> Self {
        let net = ClientNet::start(config).await.unwrap();
        let address = net.local_addr().to_string();
        let mut handle = handle;
        let net = Rc::new(RefCell::new(Some(net)));
        let serve = Rc::clone(&net);
        let task = tokio::task::spawn_local(async move {
            let mut events = Vec::new();
            let notify = Arc::new(tokio::sync::Notify::new());
            if let Some(net) = &*serve.borrow() {
                net.set_waker(waker(&notify));
            }
            loop {
                if let Some(net) = &*serve.borrow() {
                    net.poll_events(&mut events);
                }
                for event in events.drain(..) {
                    match event {
                        ClientEvent::Propose {
                            responses, batch, ..
                        } => handle(batch, responses),
                        ClientEvent::Status { responses, id, .. } => {
                            responses.batch().json(id, br#"{"role":"leader"}"#);
                        }
                        ClientEvent::Snapshot {
                            responses,
                            id,
                            group,
                            ..
                        } => {
                            let json = format!("{{\"group\":{group}}}");
                            responses.batch().json(id, json.as_bytes());
                        }
                        ClientEvent::Opened { .. } | ClientEvent::Closed { .. } => {}
                    }
                }
                notify.notified().await;
            }
        });
        Self { address, net, task }
    }

    async fn stop(self) {
        self.task.abort();
        let net = self.net.borrow_mut().take().unwrap();
        net.shutdown().await;
    }
}

/// A waker that notifies.
fn waker(notify: &Arc<tokio::sync::Notify>) -> std::task::Waker {
    struct Wake(Arc<tokio::sync::Notify>);
    impl std::task::Wake for Wake {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }
    Arc::new(Wake(Arc::clone(notify))).into()
}

/// Applies everything: the entry counts batches, the output repeats the payload.
fn echo() -> impl FnMut(ProposeBatch, ResponseQueue) {
    let mut index = 0;
    move |batch, responses| {
        index += 1;
        let mut answers = responses.batch();
        for (slot, (id, payload)) in (0..).zip(batch.payloads()) {
            answers.applied(id, Index(index), slot, payload);
        }
    }
}

/// Answers of a client, as they come.
#[derive(Clone, Default)]
struct Collected(
    Arc<Mutex<Vec<(u64, u32, String)>>>,
    Arc<tokio::sync::Notify>,
);

impl AnswerSink for Collected {
    fn answered(&self, answers: &mut Vec<Answer>) {
        let mut collected = self.0.lock().unwrap();
        for answer in answers.drain(..) {
            match answer.what {
                Answered::Applied { outputs, .. } => {
                    assert_eq!(outputs.iter().len(), answer.count as usize);
                    for (at, output) in (answer.first..).zip(outputs.iter()) {
                        let output = String::from_utf8_lossy(output).into_owned();
                        collected.push((answer.token, at, output));
                    }
                }
                Answered::NeverAppended { code } => {
                    for at in answer.first..answer.first + answer.count {
                        collected.push((answer.token, at, format!("never {code}")));
                    }
                }
                Answered::MayYetCommit { code } => {
                    for at in answer.first..answer.first + answer.count {
                        collected.push((answer.token, at, format!("may yet {code}")));
                    }
                }
            }
        }
        self.1.notify_one();
    }
}

impl Collected {
    async fn until(&self, count: usize) -> Vec<(u64, u32, String)> {
        loop {
            let more = self.1.notified();
            {
                let collected = self.0.lock().unwrap();
                if collected.len() >= count {
                    return collected.clone();
                }
            }
            tokio::time::timeout(PATIENCE, more)
                .await
                .expect("answers are missing");
        }
    }
}

#[test]
fn a_proposal_is_answered() {
    run(async {
        let authority = authority("blue");
        let server = Server::start(server_config(&authority, 1), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let client = Client::connect(vec![server.address.clone()], &who, options())
            .await
            .unwrap();
        let applied = client.propose(GROUP, &b"hello"[..]).await.unwrap();
        assert_eq!((applied.index, applied.slot), (Index(1), 0));
        assert_eq!(applied.output, &b"hello"[..]);
        let large = vec![7; 1 << 20];
        assert_eq!(
            client.propose(GROUP, large.clone()).await.unwrap().output,
            large
        );
        let error = client
            .propose(GROUP, vec![7; (1 << 20) + 1])
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::TOO_LARGE);
        assert_eq!(
            client
                .propose(GROUP, Bytes::new())
                .await
                .unwrap()
                .output
                .len(),
            0
        );
        let status = client.status(&server.address).await.unwrap();
        assert_eq!(status, &br#"{"role":"leader"}"#[..]);
        assert_eq!(client.in_flight(), 0);
        server.stop().await;
    });
}

#[test]
fn every_proposal_of_many_batches_is_answered_once() {
    run(async {
        let authority = authority("blue");
        let mut config = server_config(&authority, 1);
        config.inbox_bytes_max = 64 << 10;
        config.unanswered_max = 5_000;
        let server = Server::start(config, echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let collected = Collected::default();
        let mut options = options();
        options.sink = Some(Arc::new(collected.clone()));
        options.in_flight_max = 20_000;
        let client = Client::connect(vec![server.address.clone()], &who, options)
            .await
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut wanted = Vec::new();
        for token in 0..200_u64 {
            let count = 1 + (token * 37) % 1_000;
            let payloads: Vec<String> = (0..count).map(|at| format!("{token}.{at}")).collect();
            let slices = payloads.iter().map(String::as_bytes);
            let mut batch = Batch::of(token, GROUP, deadline, slices).unwrap();
            loop {
                match client.submit(batch) {
                    Ok(()) => break,
                    Err(SubmitError::Full(back)) => batch = back,
                    Err(error) => panic!("{error}"),
                }
                tokio::task::yield_now().await;
            }
            wanted.extend(
                (0..)
                    .zip(payloads)
                    .map(|(at, payload)| (token, at, payload)),
            );
        }
        let mut got = collected.until(wanted.len()).await;
        got.sort();
        assert!(got == wanted);
        assert_eq!(client.in_flight(), 0);
    });
}

/// Panics at the first answers, and collects the later ones.
struct PanicsOnce(std::sync::atomic::AtomicBool, Collected);

impl AnswerSink for PanicsOnce {
    fn answered(&self, answers: &mut Vec<Answer>) {
        let first = !self.0.swap(true, std::sync::atomic::Ordering::Relaxed);
        assert!(!first, "a sink that panics");
        self.1.answered(answers);
    }
}

#[test]
fn a_sink_that_panics_loses_the_answers_it_was_given_and_no_others() {
    run(async {
        let authority = authority("blue");
        let server = Server::start(server_config(&authority, 1), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let collected = Collected::default();
        let mut options = options();
        options.sink = Some(Arc::new(PanicsOnce(Default::default(), collected.clone())));
        let client = Client::connect(vec![server.address.clone()], &who, options)
            .await
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        let submit = |token, payload: &'static [u8]| {
            let batch = Batch::of(token, GROUP, deadline, [payload]).unwrap();
            client.submit(batch).unwrap();
        };
        submit(1, b"lost");
        while client.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
        submit(2, b"kept");
        assert_eq!(collected.until(1).await, [(2, 0, "kept".to_owned())]);
        // Whoever waits by a future shares the connection and its task.
        client.propose(GROUP, &b"a"[..]).await.unwrap();
        server.stop().await;
    });
}

#[test]
fn a_proposal_ends_by_its_deadline_although_the_clients_tasks_do_not_run() {
    let authority = authority("blue");
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let (server, client) = tokio::task::LocalSet::new().block_on(&first, async {
        let server = Server::start(server_config(&authority, 1), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let at = vec![server.address.clone()];
        (server, Client::connect(at, &who, options()).await.unwrap())
    });
    // Nobody drives the first runtime any more.
    let error = runtime().block_on(async {
        let soon = Instant::now() + Duration::from_millis(20);
        let proposal = client.propose_by(GROUP, &b"a"[..], soon);
        let ended = tokio::time::timeout(PATIENCE, proposal).await;
        ended.expect("it waits for ever").unwrap_err()
    });
    let code = Code::DEADLINE;
    assert_eq!(error, ProposeError::MayYetCommit { code });
    drop(server);
}

#[test]
fn what_a_client_port_holds_is_counted_by_owner() {
    run(async {
        const BYTES: usize = 100_000;
        let authority = authority("blue");
        let net = ClientNet::start(server_config(&authority, 1))
            .await
            .unwrap();
        let who = credentials(&authority, Role::Client, 1);
        let client = Client::connect(vec![net.local_addr().to_string()], &who, options())
            .await
            .unwrap();
        assert_eq!(net.memory().requests_bytes, 0);
        let proposal = client.propose(GROUP, vec![7; BYTES]);
        let (applied, ()) = tokio::join!(proposal, async {
            let mut events = Vec::new();
            while net.memory().requests_bytes == 0 {
                tokio::task::yield_now().await;
            }
            let held = net.memory();
            assert_eq!(held.connections, 1);
            assert!(
                (BYTES..BYTES + 100).contains(&held.requests_bytes),
                "{held:?}"
            );
            assert!(held.reading_bytes <= held.reading_bytes_max);
            assert!(held.window_bytes_max <= 4 << 20);
            net.poll_events(&mut events);
            assert_eq!(net.memory().requests_bytes, 0);
            for event in events {
                if let ClientEvent::Propose {
                    responses, batch, ..
                } = event
                {
                    let output = vec![9; 2 * BYTES];
                    responses
                        .batch()
                        .applied(batch.first_id(), Index(1), 0, &output);
                }
            }
            let held = net.memory().responses_bytes;
            assert!((2 * BYTES..2 * BYTES + 100).contains(&held), "{held}");
        });
        assert_eq!(applied.unwrap().output.len(), 2 * BYTES);
        // Written is not yet acknowledged, which is for QUIC's windows to bound.
        assert_eq!(net.memory().responses_bytes, 0);
        drop(client);
        while net.memory().connections > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(net.memory().reading_bytes, 0);
    });
}

#[test]
fn the_hint_is_followed_and_the_next_proposal_goes_straight_there() {
    run(async {
        let authority = authority("blue");
        let leader = Server::start(server_config(&authority, 2), echo()).await;
        let hint = leader.address.clone();
        let refused = Rc::new(RefCell::new(0));
        let count = Rc::clone(&refused);
        let follower = Server::start(server_config(&authority, 1), move |batch, responses| {
            *count.borrow_mut() += batch.len();
            let hint = Some((NodeId(2), hint.as_str()));
            let many = u32::try_from(batch.len()).unwrap();
            let mut answers = responses.batch();
            answers.never_appended(batch.first_id(), many, Code::NOT_LEADER, 0, hint);
        })
        .await;
        let who = credentials(&authority, Role::Admin, 1);
        let client = Client::connect(vec![follower.address.clone()], &who, options())
            .await
            .unwrap();
        assert_eq!(
            client.propose(GROUP, &b"a"[..]).await.unwrap().output,
            &b"a"[..]
        );
        assert_eq!(
            client.propose(GROUP, &b"b"[..]).await.unwrap().output,
            &b"b"[..]
        );
        assert_eq!(*refused.borrow(), 1);
    });
}

#[test]
fn a_hint_to_somebody_else_than_it_names_is_not_followed() {
    run(async {
        let authority = authority("blue");
        // A server of the cluster, but not the one that the hint says is there.
        let asked = Rc::new(RefCell::new(0));
        let count = Rc::clone(&asked);
        let other = Server::start(server_config(&authority, 3), move |batch, responses| {
            *count.borrow_mut() += 1;
            echo()(batch, responses);
        })
        .await;
        let hint = other.address.clone();
        let follower = Server::start(server_config(&authority, 1), move |batch, responses| {
            let hint = Some((NodeId(2), hint.as_str()));
            let mut answers = responses.batch();
            answers.never_appended(batch.first_id(), 1, Code::NOT_LEADER, 0, hint);
        })
        .await;
        let leader = Server::start(server_config(&authority, 2), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let addresses = vec![follower.address.clone(), leader.address.clone()];
        let client = Client::connect(addresses, &who, options()).await.unwrap();
        let applied = client.propose(GROUP, &b"a"[..]).await.unwrap();
        assert_eq!(applied.output, &b"a"[..]);
        assert_eq!(*asked.borrow(), 0);
    });
}

#[test]
fn a_server_that_falls_silent_is_left_before_its_connection_is_given_up() {
    run(async {
        let authority = authority("blue");
        let mut config = server_config(&authority, 1);
        config.transport.idle = 3 * PATIENCE;
        let first = Server::start(config, echo()).await;
        let relay = Relay::to(first.address.parse().unwrap()).await;
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&seen);
        let mut echo_second = echo();
        let second = Server::start(server_config(&authority, 2), move |batch, responses| {
            log.borrow_mut()
                .extend(batch.payloads().map(|(_, payload)| payload.to_vec()));
            echo_second(batch, responses);
        })
        .await;
        let who = credentials(&authority, Role::Client, 1);
        let mut options = options();
        options.transport.idle = 3 * PATIENCE;
        let addresses = vec![relay.address.to_string(), second.address.clone()];
        let client = Client::connect(addresses, &who, options).await.unwrap();
        client.propose(GROUP, &b"heard"[..]).await.unwrap();
        relay.bytes_max.set(0);
        let deadline = Instant::now() + PATIENCE;
        let sent = client.clone();
        let lost = tokio::task::spawn_local(async move {
            sent.propose_by(GROUP, &b"sent into silence"[..], deadline)
                .await
        });
        while client.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let soon = Instant::now() + Duration::from_millis(200);
            match client.propose_by(GROUP, format!("try {tries}"), soon).await {
                Ok(_) => break,
                Err(error) => assert_eq!(error.code(), Code::DEADLINE, "{error}"),
            }
            assert!(Instant::now() < deadline, "the other server is not asked");
        }
        // What was sent to the first server may be in its log: it is nobody else's.
        let last = format!("try {tries}").into_bytes();
        assert_eq!(*seen.borrow(), [last]);
        // It is answered if the silence ends, and there is no reason to go back before somebody says so.
        relay.bytes_max.set(usize::MAX);
        assert_eq!(
            lost.await.unwrap().unwrap().output,
            &b"sent into silence"[..]
        );
        client.propose(GROUP, &b"again"[..]).await.unwrap();
        assert_eq!(seen.borrow().last().unwrap(), b"again");
    });
}

#[test]
fn an_address_where_nobody_answers_holds_nothing_up() {
    run(async {
        let authority = authority("blue");
        // It swallows everything, as a machine does that is gone.
        let relay = Relay::to("127.0.0.1:9".parse().unwrap()).await;
        relay.bytes_max.set(0);
        let gone = relay.address.to_string();
        let follower = Server::start(server_config(&authority, 1), |batch, responses| {
            let mut answers = responses.batch();
            answers.never_appended(batch.first_id(), 1, Code::NOT_LEADER, 0, None);
        })
        .await;
        let leader = Server::start(server_config(&authority, 2), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let addresses = vec![follower.address.clone(), gone, leader.address.clone()];
        let client = Client::connect(addresses, &who, options()).await.unwrap();
        // A handshake is given a second.
        let soon = Instant::now() + Duration::from_millis(900);
        client.propose_by(GROUP, &b"a"[..], soon).await.unwrap();
    });
}

#[test]
fn without_a_hint_the_other_addresses_are_tried() {
    run(async {
        let authority = authority("blue");
        let leader = Server::start(server_config(&authority, 2), echo()).await;
        let follower = Server::start(server_config(&authority, 1), |batch, responses| {
            let many = u32::try_from(batch.len()).unwrap();
            let mut answers = responses.batch();
            answers.never_appended(batch.first_id(), many, Code::NOT_LEADER, 0, None);
        })
        .await;
        let who = credentials(&authority, Role::Client, 1);
        // Nobody listens at the discard port, which is found out when it is tried.
        let addresses = vec![
            follower.address.clone(),
            "127.0.0.1:9".to_owned(),
            leader.address.clone(),
        ];
        let client = Client::connect(addresses, &who, options()).await.unwrap();
        assert_eq!(
            client.propose(GROUP, &b"a"[..]).await.unwrap().output,
            &b"a"[..]
        );
    });
}

#[test]
fn busy_is_tried_again_and_what_may_have_been_appended_is_not() {
    run(async {
        let authority = authority("blue");
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&seen);
        let mut echo = echo();
        let server = Server::start(server_config(&authority, 1), move |batch, responses| {
            let (id, payload) = batch.payloads().next().unwrap();
            log.borrow_mut().push(payload.to_vec());
            let times = log.borrow().iter().filter(|seen| *seen == payload).count();
            match payload {
                b"busy" | b"full" if times < 4 => {
                    let code = if payload == b"busy" {
                        Code::BUSY
                    } else {
                        Code::STORAGE_FULL
                    };
                    responses.batch().never_appended(id, 1, code, 1, None);
                }
                b"halted" => responses
                    .batch()
                    .never_appended(id, 1, Code::HALTED, 0, None),
                b"lost" => responses
                    .batch()
                    .may_yet_commit(id, 1, Code::LEADERSHIP_LOST),
                b"silence" => {}
                b"always busy" => responses.batch().never_appended(id, 1, Code::BUSY, 0, None),
                _ => echo(batch, responses),
            }
        })
        .await;
        let who = credentials(&authority, Role::Client, 1);
        let client = Client::connect(vec![server.address.clone()], &who, options())
            .await
            .unwrap();
        client.propose(GROUP, &b"busy"[..]).await.unwrap();
        client.propose(GROUP, &b"full"[..]).await.unwrap();
        let never = |code| ProposeError::NeverAppended { code, detail: None };
        let halted = client.propose(GROUP, &b"halted"[..]).await.unwrap_err();
        assert_eq!(halted, never(Code::HALTED));
        let lost = client.propose(GROUP, &b"lost"[..]).await.unwrap_err();
        assert_eq!(
            lost,
            ProposeError::MayYetCommit {
                code: Code::LEADERSHIP_LOST
            }
        );
        let count = |payload: &[u8]| seen.borrow().iter().filter(|seen| *seen == payload).count();
        // However slow the machine is, it gets there in one of these.
        let patience = [100, 1_000, 10_000].map(Duration::from_millis);
        let mut silences = 0;
        for patience in patience {
            silences += 1;
            let soon = Instant::now() + patience;
            let silence = client.propose_by(GROUP, &b"silence"[..], soon).await;
            let code = Code::DEADLINE;
            if count(b"silence") > 0 {
                assert_eq!(silence, Err(ProposeError::MayYetCommit { code }));
                break;
            }
        }
        for patience in patience {
            let soon = Instant::now() + patience;
            let busy = client.propose_by(GROUP, &b"always busy"[..], soon).await;
            let code = busy.unwrap_err().code();
            // The last try may be on its way when the deadline comes.
            assert!([Code::BUSY, Code::DEADLINE].contains(&code), "{code}");
            if count(b"always busy") > 1 {
                break;
            }
        }
        assert_eq!((count(b"busy"), count(b"full")), (4, 4));
        assert_eq!((count(b"halted"), count(b"lost")), (1, 1));
        assert!((1..=silences).contains(&count(b"silence")));
        assert!(count(b"always busy") > 1);
        assert_eq!(client.in_flight(), 0);
    });
}

#[test]
fn a_server_that_goes_leaves_what_it_had_unknown_and_the_rest_goes_elsewhere() {
    run(async {
        let authority = authority("blue");
        let first = Server::start(server_config(&authority, 1), |_, _| {}).await;
        let second = Server::start(server_config(&authority, 2), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let addresses = vec![first.address.clone(), second.address.clone()];
        let client = Client::connect(addresses, &who, options()).await.unwrap();
        let other = client.clone();
        let waiting =
            tokio::task::spawn_local(async move { other.propose(GROUP, &b"a"[..]).await });
        while client.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        first.stop().await;
        let lost = waiting.await.unwrap();
        // Shutting down, the first server may have closed before it read the proposal.
        assert!(
            matches!(
                &lost,
                Err(ProposeError::MayYetCommit {
                    code: Code::CONNECTION_LOST
                })
            ) || matches!(&lost, Ok(applied) if applied.output == b"a"[..]),
            "{lost:?}"
        );
        assert_eq!(
            client.propose(GROUP, &b"b"[..]).await.unwrap().output,
            &b"b"[..]
        );
        second.stop().await;
        let soon = Instant::now() + Duration::from_millis(300);
        let gone = client.propose_by(GROUP, &b"c"[..], soon).await.unwrap_err();
        let known = [Code::UNREACHABLE, Code::DEADLINE, Code::CONNECTION_LOST];
        assert!(known.contains(&gone.code()), "{gone}");
    });
}

#[test]
fn who_has_halted_is_left_for_another() {
    run(async {
        let authority = authority("blue");
        let asked = Rc::new(RefCell::new(0));
        let count = Rc::clone(&asked);
        let halted = Server::start(server_config(&authority, 1), move |batch, responses| {
            *count.borrow_mut() += batch.len();
            let many = u32::try_from(batch.len()).unwrap();
            responses
                .batch()
                .never_appended(batch.first_id(), many, Code::HALTED, 0, None);
        })
        .await;
        let works = Server::start(server_config(&authority, 2), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let addresses = vec![halted.address.clone(), works.address.clone()];
        let client = Client::connect(addresses, &who, options()).await.unwrap();
        for payload in [&b"a"[..], &b"b"[..], &b"c"[..]] {
            assert_eq!(
                client.propose(GROUP, payload).await.unwrap().output,
                payload
            );
        }
        // The route stays where somebody answered.
        assert!(*asked.borrow() <= 1);
        halted.stop().await;
        works.stop().await;
    });
}

#[test]
fn answers_given_before_the_end_arrive() {
    run(async {
        let authority = authority("blue");
        let server = Server::start(server_config(&authority, 1), |batch, responses| {
            let many = u32::try_from(batch.len()).unwrap();
            responses
                .batch()
                .never_appended(batch.first_id(), many, Code::HALTED, 0, None);
        })
        .await;
        let who = credentials(&authority, Role::Client, 1);
        let client = Client::connect(vec![server.address.clone()], &who, options())
            .await
            .unwrap();
        let proposal = client.propose(GROUP, &b"a"[..]);
        let (answer, ()) = tokio::join!(proposal, async {
            // The proposal is answered, and the answer not written, when the server begins to go.
            while client.in_flight() == 0 {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(answer.unwrap_err().code(), Code::HALTED);
        server.stop().await;
    });
}

#[test]
fn who_may_not_speak_is_told_why() {
    run(async {
        let (blue, green) = (authority("blue"), authority("green"));
        let server = Server::start(server_config(&blue, 1), echo()).await;
        let at = || vec![server.address.clone()];
        let peer = credentials(&blue, Role::Peer, 7);
        let error = Client::connect(at(), &peer, options()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Identity { .. }), "{error}");
        let stranger = credentials(&green, Role::Client, 1);
        let error = Client::connect(at(), &stranger, options())
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("from another authority"),
            "{error}"
        );
        // The other way round: a client at the peer port.
        let net = logdrive_net::PeerNet::start(config(&blue, 2))
            .await
            .unwrap();
        let client = credentials(&blue, Role::Client, 1);
        let error = Client::connect(vec![net.local_addr().to_string()], &client, options()).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("peers dial listen.peer, clients dial listen.client"),
            "{error}"
        );
        let error = Client::connect(vec!["nowhere.invalid:1".to_owned()], &client, options()).await;
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("cannot be resolved")
        );
        let error = Client::connect(Vec::new(), &client, options())
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::NoAddress));
    });
}

#[test]
fn certificates_of_clients_are_swapped_without_a_restart() {
    run(async {
        // Another authority of the same cluster's name.
        let (old, new) = (authority("blue"), authority("blue"));
        let first = Server::start(server_config(&old, 1), echo()).await;
        let second = Server::start(server_config(&old, 2), echo()).await;
        let who = credentials(&old, Role::Client, 1);
        let addresses = vec![first.address.clone(), second.address.clone()];
        let client = Client::connect(addresses, &who, options()).await.unwrap();
        client.propose(GROUP, &b"a"[..]).await.unwrap();

        let refused = [
            (
                credentials(&new, Role::Peer, 1),
                "logdrive tls issue --role client",
            ),
            (
                credentials(&new, Role::Client, 2),
                "client 1 of cluster blue",
            ),
            (
                credentials(&authority("green"), Role::Client, 1),
                "client 1 of cluster blue",
            ),
        ];
        for (credentials, says) in refused {
            let error = client.set_credentials(&credentials).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        client
            .set_credentials(&credentials(&new, Role::Client, 1))
            .unwrap();
        let swapped = credentials(&new, Role::Peer, 2);
        let wrong = credentials(&new, Role::Peer, 1);
        if let Some(net) = &mut *second.net.borrow_mut() {
            net.set_credentials(&wrong).unwrap_err();
            net.set_credentials(&swapped).unwrap();
        }
        // What is up keeps what it began with.
        client.propose(GROUP, &b"b"[..]).await.unwrap();
        // What is dialled anew uses the new ones, at both ends.
        first.stop().await;
        let applied = client.propose(GROUP, &b"c"[..]).await.unwrap();
        assert_eq!(applied.output, &b"c"[..]);
        let error = Client::connect(vec![second.address.clone()], &who, options()).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("authority"), "{error}");
    });
}

#[test]
fn one_client_too_many_hears_why_and_has_a_place_later() {
    run(async {
        let authority = authority("blue");
        let mut config = server_config(&authority, 1);
        config.connections_max = 1;
        let server = Server::start(config, echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let first = Client::connect(vec![server.address.clone()], &who, options())
            .await
            .unwrap();
        first.propose(GROUP, &b"x"[..]).await.unwrap();
        let another = || {
            let (address, name) = (
                server.address.parse().unwrap(),
                "n1.c-blue.logdrive.internal",
            );
            dial(
                &authority,
                Role::Client,
                2,
                b"logdrive-client",
                address,
                name,
            )
        };
        let connection = another().await.unwrap();
        let (code, reason) = closed(&connection).await;
        assert_eq!(code, CloseCode::Busy as u64, "{reason}");
        assert!(reason.contains("1 connections are served"), "{reason}");
        first.propose(GROUP, &b"y"[..]).await.unwrap();
        drop(first);
        // The place is free once the server has seen the end of the first.
        loop {
            let connection = another().await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(&[0; 4]).await.unwrap();
            let (code, reason) = closed(&connection).await;
            if code != CloseCode::Busy as u64 {
                assert_eq!(code, CloseCode::Malformed as u64, "{reason}");
                break;
            }
        }
    });
}

#[test]
fn a_batch_without_a_sink_is_given_back() {
    run(async {
        let authority = authority("blue");
        let server = Server::start(server_config(&authority, 1), echo()).await;
        let who = credentials(&authority, Role::Client, 1);
        let client = Client::connect(vec![server.address.clone()], &who, options())
            .await
            .unwrap();
        let batch = Batch::of(1, GROUP, Instant::now(), [&b"a"[..]]).unwrap();
        assert!(matches!(client.submit(batch), Err(SubmitError::NoSink(_))));
        let empty = Batch::of(1, GROUP, Instant::now(), []);
        assert_eq!(empty.unwrap_err(), BatchError::Empty);
    });
}

#[test]
fn only_an_admin_may_ask_for_a_snapshot() {
    run(async {
        let authority = authority("blue");
        let server = Server::start(server_config(&authority, 1), |_, _| {}).await;
        let asks = async |role| {
            let credentials = credentials(&authority, role, 1);
            let address = &server.address;
            snapshot(address, GROUP, &credentials, options(), PATIENCE).await
        };
        assert_eq!(asks(Role::Admin).await.unwrap(), &br#"{"group":1}"#[..]);
        let refused = asks(Role::Client).await.unwrap_err();
        assert!(
            matches!(
                refused,
                SnapshotError::Refused {
                    code: Code::FORBIDDEN
                }
            ),
            "{refused}"
        );
        server.stop().await;
    });
}
