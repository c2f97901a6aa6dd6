//! How fast one connection carries proposals, and one append stream carries entries. For comparing two
//! builds on one machine, interleaved; not a benchmark of the engine.
//!
//! `cargo run --release -p logdrive-net --example rate -- client 128 4096 5`: payload bytes, in flight, seconds.
//! `cargo run --release -p logdrive-net --example rate -- peers 262144 loopback 5`: payload bytes, MTU, seconds.
#![allow(clippy::unwrap_used, reason = "a program for developers")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{
    Answer, AnswerSink, Batch, Client, ClientEvent, ClientNet, ClientNetConfig, ClientOptions,
    Credentials, MtuProfile, NetSecret, PeerEvent, PeerNet, PeerNetConfig, Role, SendError,
};
use logdrive_raft::message::{Append, Body, CommitPoint};
use logdrive_raft::{
    Boot, Chain, ClusterId, EntryBuilder, GroupId, Incarnation, Index, LogPosition, Message,
    NodeId, Replica, ReplicationSession, Round, Term,
};
use tokio::task::LocalSet;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["client", bytes, in_flight, seconds] => client(
            bytes.parse().unwrap(),
            in_flight.parse().unwrap(),
            seconds.parse().unwrap(),
        ),
        ["peers", bytes, mtu, seconds] => {
            peers(
                bytes.parse().unwrap(),
                mtu.parse().unwrap(),
                seconds.parse().unwrap(),
            );
        }
        _ => println!("client BYTES IN_FLIGHT SECONDS | peers BYTES MTU SECONDS"),
    }
}

fn credentials(authority: &Authority, role: Role, id: u64) -> Credentials {
    let issued = authority
        .issue(&IssueRequest::new(role, NodeId(id), 1))
        .unwrap();
    let (certificate, key) = (&issued.certificate_pem, &issued.key_pem);
    Credentials::from_pem(
        authority.certificate_pem(),
        certificate,
        key,
        std::time::SystemTime::now(),
    )
    .unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[derive(Default)]
struct Count {
    answered: AtomicU64,
    more: tokio::sync::Notify,
}

impl AnswerSink for Count {
    fn answered(&self, answers: &mut Vec<Answer>) {
        let count: u64 = answers.iter().map(|answer| u64::from(answer.count)).sum();
        self.answered.fetch_add(count, Ordering::Relaxed);
        self.more.notify_one();
    }
}

fn client(bytes: usize, in_flight: usize, seconds: u64) {
    let authority = Authority::create("rate".parse().unwrap()).unwrap();
    let mut config = ClientNetConfig::new(
        NodeId(1),
        ClusterId(1),
        "127.0.0.1:0".parse().unwrap(),
        credentials(&authority, Role::Peer, 1),
        NetSecret::random().unwrap(),
    );
    config.transport.mtu = MtuProfile::Loopback;
    let who = credentials(&authority, Role::Client, 1);
    let (at, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        run(async move {
            let net = ClientNet::start(config).await.unwrap();
            at.send(net.local_addr()).unwrap();
            let (mut events, mut index) = (Vec::new(), 0);
            loop {
                net.ready().await;
                net.poll_events(&mut events);
                for event in events.drain(..) {
                    if let ClientEvent::Propose {
                        responses, batch, ..
                    } = event
                    {
                        index += 1;
                        let mut answers = responses.batch();
                        for (slot, (id, payload)) in (0..).zip(batch.payloads()) {
                            answers.applied(id, Index(index), slot, &payload[..0]);
                        }
                    }
                }
            }
        });
    });
    let address = address.recv().unwrap().to_string();
    run(async move {
        let count = Arc::new(Count::default());
        let mut options = ClientOptions::default();
        options.transport.mtu = MtuProfile::Loopback;
        options.sink = Some(Arc::clone(&count) as Arc<dyn AnswerSink>);
        let client = Client::connect(vec![address], &who, options).await.unwrap();
        let payload = vec![7; bytes];
        let begin = Instant::now();
        let (mut token, mut sent) = (0, 0_u64);
        while begin.elapsed() < Duration::from_secs(seconds) {
            let room = in_flight - client.in_flight();
            if room == 0 {
                count.more.notified().await;
                continue;
            }
            token += 1;
            let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
            let proposals = std::iter::repeat_n(&payload[..], room);
            client
                .submit(Batch::of(token, GroupId(1), deadline, proposals).unwrap())
                .unwrap();
            sent += room as u64;
        }
        let answered = count.answered.load(Ordering::Relaxed);
        let rate = answered as f64 / begin.elapsed().as_secs_f64();
        println!(
            "{sent} sent in {token} batches, {answered} answered: {:.2} M/s",
            rate / 1e6
        );
    });
}

fn peers(bytes: usize, mtu: MtuProfile, seconds: u64) {
    let authority = Authority::create("rate".parse().unwrap()).unwrap();
    let config = |id: u64| {
        let replica = Replica {
            id: NodeId(id),
            incarnation: Incarnation(u128::from(id)),
        };
        let listen = "127.0.0.1:0".parse().unwrap();
        let who = credentials(&authority, Role::Peer, id);
        let secret = NetSecret::random().unwrap();
        let mut config = PeerNetConfig::new(replica, Boot(1), ClusterId(1), listen, who, secret);
        config.transport.mtu = mtu;
        config
    };
    let (at, address) = std::sync::mpsc::channel();
    let receiver = config(2);
    static RECEIVED: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(move || {
        run(async move {
            let net = PeerNet::start(receiver).await.unwrap();
            at.send(net.local_addr()).unwrap();
            let mut events = Vec::new();
            loop {
                net.ready().await;
                net.poll_events(&mut events);
                for event in events.drain(..) {
                    if let PeerEvent::Message(message) = event {
                        net.release(message.cost_bytes());
                        RECEIVED.fetch_add(message.cost_bytes() as u64, Ordering::Relaxed);
                    }
                }
            }
        });
    });
    let address = address.recv().unwrap().to_string();
    let sender = config(1);
    run(async move {
        let from = sender.replica;
        let mut net = PeerNet::start(sender).await.unwrap();
        net.set_peers(vec![(NodeId(2), address)]);
        net.ready().await;
        let mut builder = EntryBuilder::with_room(1, bytes);
        builder.push(&vec![7; bytes]);
        let entry = builder
            .finish()
            .seal(GroupId(1), Term(1), Index(1), Chain(0));
        let message = Message {
            from,
            boot: Boot(1),
            to: NodeId(2),
            group: GroupId(1),
            term: Term(1),
            body: Body::Append(Append {
                session: ReplicationSession::default(),
                prev: LogPosition::default(),
                entries: vec![entry],
                commit: CommitPoint::default(),
                last_index: Index(1),
                round: Round(1),
                heard: None,
            }),
        };
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds) {
            match net.try_send(message.clone()) {
                Ok(()) => {}
                Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("{error}"),
            }
        }
        let rate = RECEIVED.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
        println!("{:.0} MB/s, {:?}", rate / 1e6, net.status());
    });
}
