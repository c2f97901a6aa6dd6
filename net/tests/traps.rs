//! The traps of QUIC that would cost us dearly, each by its effect (the others are assertions in
//! `endpoint.rs` and `socket.rs`, and tests of `codec.rs`).
#![allow(clippy::unwrap_used, reason = "a test program")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use logdrive_net::{MtuProfile, NetSecret, PeerEvent, SendError};
use logdrive_raft::message::Body;
use logdrive_raft::{Boot, Index, NodeId};

/// Sends so many bytes of appends from one node to another, and waits until all have arrived.
async fn transfer(a: &Node, b: &mut Node, session: u64, bytes: usize) {
    let payload = 256 << 10;
    let count = (bytes / payload) as u64;
    let (mut sent, mut received) = (0, 0);
    let mut next = None;
    while received < count {
        while sent < count {
            let message = next
                .take()
                .unwrap_or_else(|| a.say(b.replica.id.0, 1, append(1, session, sent + 1, payload)));
            match a.net.try_send(message.clone()) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => {
                    next = Some(message);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let message = b.message().await;
        received += 1;
        assert_eq!(index_of(&message), received);
    }
}

// Batches above 64 KiB are lost without a word, an MTU above the congestion window hangs the handshake, one
// above 16 KiB as a minimum panics: each would show here, at one of these sizes.
#[test]
fn every_packet_size_carries_bulk_without_falling_back() {
    for mtu in [1_200, 1_452, 6_500, 8_900, 65_000] {
        run(async {
            let mut nodes =
                cluster(2, |config| config.transport.mtu = MtuProfile::Bytes(mtu)).await;
            let (a, b) = nodes.split_at_mut(1);
            transfer(&a[0], &mut b[0], 1, 64 << 20).await;
            let status = &a[0].net.status()[0];
            assert_eq!(status.mtu, mtu);
            // Loopback loses nothing but what does not fit the socket buffers; but a machine that stops a test
            // for longer than a probe timeout has packets taken for lost that were not.
            if a[0].net.socket_buffers().fallback().is_none() {
                assert!(
                    status.lost_packets * 100 <= status.sent_packets,
                    "{status:?}"
                );
            }
        });
    }
}

#[test]
fn a_path_that_swallows_large_packets_falls_back_to_small_ones() {
    run(async {
        let authority = authority("blue");
        let mut first = config(&authority, 1);
        first.transport.mtu = MtuProfile::Ethernet;
        let mut second = config(&authority, 2);
        second.transport.mtu = MtuProfile::Ethernet;
        let mut a = Node::start(first).await;
        let mut b = Node::start(second).await;
        let relay = Relay::to(b.net.local_addr()).await;
        relay.bytes_max.set(1_300);
        a.net
            .set_peers(vec![(NodeId(2), relay.address.to_string())]);
        a.connected().await;
        transfer(&a, &mut b, 1, 1 << 20).await;
        assert_eq!(a.net.status()[0].mtu, 1_200);
    });
}

// Bytes in flight decide the latency of what is beside them, and a stalled stream must not hold up the rest.
// So bytes are what is counted: how many of the appends that are queued before a vote arrive before it.
#[test]
fn votes_do_not_wait_behind_appends() {
    const QUEUE: usize = 32 << 20;
    for mtu in [MtuProfile::Ethernet, MtuProfile::Loopback] {
        run(async {
            let mut nodes = cluster(2, |config| {
                config.transport.mtu = mtu;
                config.queue_bytes_max = QUEUE;
            })
            .await;
            let (a, b) = nodes.split_at_mut(1);
            let (a, b) = (&mut a[0], &mut b[0]);
            let (mut behind, mut times) = (Vec::new(), Vec::new());
            let (mut received, mut index) = (0, 0);
            let mut asked: Option<(Instant, usize)> = None;
            while times.len() < 200 {
                loop {
                    let message = a.say(2, 1, append(1, 1, index + 1, 128 << 10));
                    match a.net.try_send(message) {
                        Ok(()) => index += 1,
                        Err(SendError::Full) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                if asked.is_none() {
                    a.send(a.say(2, 1, vote(1))).await;
                    asked = Some((Instant::now(), received));
                }
                tokio::select! {
                    () = a.net.ready() => {}
                    () = b.net.ready() => {}
                }
                a.net.poll_events(&mut a.events);
                for event in std::mem::take(&mut a.events) {
                    if let PeerEvent::Message(message) = event {
                        a.net.release(message.cost_bytes());
                        times.push(asked.take().unwrap().0.elapsed());
                    }
                }
                b.net.poll_events(&mut b.events);
                for event in std::mem::take(&mut b.events) {
                    if let PeerEvent::Message(message) = event {
                        b.net.release(message.cost_bytes());
                        match message.body {
                            Body::VoteRequest(_) => {
                                behind.push(received - asked.unwrap().1);
                                b.send(b.say(1, 1, vote_reply())).await;
                            }
                            _ => received += message.cost_bytes(),
                        }
                    }
                }
            }
            times.sort();
            behind.sort();
            let p99 = |count: usize| count * 99 / 100;
            println!(
                "{} beside {received} bytes: p50 {:?}, p99 {:?}, behind {} and {} bytes",
                mtu.name(),
                times[times.len() / 2],
                times[p99(times.len())],
                behind[behind.len() / 2],
                behind[p99(behind.len())],
            );
            assert!(received > QUEUE, "{received}");
            // What QUIC has in its windows goes first, what waits for them does not.
            assert!(behind[p99(behind.len())] <= QUEUE / 4, "{behind:?}");
        });
    }
}

#[test]
fn a_stalled_follower_costs_bounded_memory_and_does_not_stop_control() {
    run(async {
        const QUEUE: usize = 2 << 20;
        const INBOX: usize = 1 << 20;
        const GROUPS: u64 = 8;
        let mut nodes = cluster(2, |config| {
            config.groups_max = GROUPS as u32;
            config.queue_bytes_max = QUEUE;
            config.inbox_bytes_max = INBOX;
        })
        .await;
        let (a, b) = nodes.split_at_mut(1);
        let (a, b) = (&mut a[0], &mut b[0]);
        // The follower takes messages out and keeps them: it releases nothing but votes.
        let (mut kept, mut held, mut full, mut votes) = (0, 0, 0, 0);
        let mut index = [0; GROUPS as usize];
        let (mut asked, mut reading) = (false, 0);
        while votes < 300 {
            for group in 0..GROUPS {
                let next = index[group as usize] + 1;
                match a
                    .net
                    .try_send(a.say(2, group, append(group, 1, next, 100 << 10)))
                {
                    Ok(()) => index[group as usize] = next,
                    Err(SendError::Full) => full += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(a.net.status()[0].queued_bytes <= QUEUE + (64 << 10));
            if !asked {
                a.send(a.say(2, 1, vote(1))).await;
                asked = true;
            }
            tokio::select! {
                () = a.net.ready() => {}
                () = b.net.ready() => {}
            }
            a.net.poll_events(&mut a.events);
            for event in std::mem::take(&mut a.events) {
                if let PeerEvent::Message(message) = event {
                    a.net.release(message.cost_bytes());
                    votes += 1;
                    asked = false;
                }
            }
            b.net.poll_events(&mut b.events);
            for event in std::mem::take(&mut b.events) {
                if let PeerEvent::Message(message) = event {
                    if matches!(message.body, Body::VoteRequest(_)) {
                        b.net.release(message.cost_bytes());
                        b.send(b.say(1, 1, vote_reply())).await;
                    } else {
                        kept += 1;
                        held += message.cost_bytes();
                    }
                }
            }
            assert!(b.net.held_bytes() <= INBOX + (1 << 10));
            let (sent, come) = (a.net.memory(), b.net.memory());
            // What is small has 512 KiB beside it, and parts of snapshots have 2 MiB.
            const OTHERS: usize = (512 << 10) + (2 << 20);
            assert!(sent.send_queues.len() == 1 && sent.send_queue_bytes_max <= QUEUE + OTHERS);
            assert!(sent.send_queues[0].1 <= sent.send_queue_bytes_max);
            assert!(come.received_bytes <= come.received_bytes_max);
            // One stream a group, and one each for control and acks.
            assert!(come.reading_bytes <= (GROUPS as usize + 2) * come.reading_bytes_max);
            reading = reading.max(come.reading_bytes);
            assert!(come.window_bytes_max <= 12 << 20);
        }
        assert!(full > 0 && kept > 0);
        // The message that each stream waits with is counted, too.
        assert!(reading >= GROUPS as usize * (100 << 10), "{reading}");
        assert!(b.net.held_bytes() >= held);
        // Once it takes them again, all of them come, in order.
        b.net.release(held);
        let sent: u64 = index.iter().sum();
        while kept < sent {
            b.message().await;
            kept += 1;
        }
        assert!(a.net.memory().send_queues == [(NodeId(2), 0)]);
        assert_eq!(b.net.memory().received_bytes, 0);
    });
}

// A sender that goes on where its queue was full, each time it hears of room, says everything once and in order.
#[test]
fn a_queue_that_is_full_has_no_gaps_and_says_when_there_is_room() {
    run(async {
        let mut nodes = cluster(2, |config| {
            config.queue_bytes_max = 64 << 10;
            config.inbox_bytes_max = 64 << 10;
        })
        .await;
        let (a, b) = nodes.split_at_mut(1);
        let (a, b) = (&mut a[0], &mut b[0]);
        const COUNT: u64 = 2_000;
        // As many at once as a window would hold, however many of them are taken.
        const WINDOW: u64 = 40;
        let size = |index: u64| 100 + (index as usize * 7_919) % 30_000;
        let (mut next, mut came, mut taken, mut tried, mut full) = (1, 0, 0, 0, false);
        while came < COUNT {
            if !full {
                let mut missed = None;
                let first = next;
                for index in first..(came + WINDOW).min(COUNT + 1) {
                    let mut body = append(1, 1, index, size(index));
                    if let Body::Append(append) = &mut body {
                        append.prev.index = Index(index - 1);
                    }
                    tried += 1;
                    match a.net.try_send(a.say(2, 1, body)) {
                        // Smaller ones would fit after a larger one did not, and must not be taken.
                        Ok(()) => {
                            assert_eq!(missed, None);
                            taken += 1;
                            next = index + 1;
                        }
                        Err(SendError::Full) => missed = missed.or(Some(index)),
                        Err(error) => panic!("{error}"),
                    }
                }
                full = missed.is_some();
            }
            tokio::select! {
                () = a.net.ready() => {}
                () = b.net.ready() => {}
            }
            a.net.poll_events(&mut a.events);
            for event in std::mem::take(&mut a.events) {
                assert_eq!(event, PeerEvent::Room { peer: NodeId(2) });
                full = false;
            }
            b.net.poll_events(&mut b.events);
            for event in std::mem::take(&mut b.events) {
                if let PeerEvent::Message(message) = event {
                    b.net.release(message.cost_bytes());
                    came += 1;
                    assert_eq!(index_of(&message), came);
                }
            }
        }
        // Nothing went twice, and what was tried in vain is bounded by the window for each time of room.
        assert_eq!(taken, COUNT);
        assert!(tried < COUNT * WINDOW, "{tried}");
    });
}

// By default a hundred streams may be open, and the next one waits for ever.
#[test]
fn more_groups_than_a_hundred_have_a_stream_each() {
    run(async {
        let mut nodes = cluster(2, |config| config.groups_max = 150).await;
        for group in 1..=150 {
            nodes[0]
                .send(nodes[0].say(2, group, append(group, 1, 1, 8)))
                .await;
        }
        let mut groups: Vec<u64> = Vec::new();
        while groups.len() < 150 {
            groups.push(nodes[1].message().await.group.0);
        }
        groups.sort_unstable();
        assert!(groups.into_iter().eq(1..=150));
    });
}

// A node that was killed says nothing. If it comes back with the same secret, its first packet does.
#[test]
fn a_killed_and_restarted_peer_is_noticed_long_before_the_idle_timeout() {
    run(async {
        let authority = authority("blue");
        let secret = NetSecret::random().unwrap();
        let mut first = config(&authority, 1);
        first.transport.idle = Duration::from_secs(15);
        first.transport.keep_alive = Duration::from_millis(50);
        let mut a = Node::start(first).await;
        let mut second = config(&authority, 2);
        second.secret = secret.clone();
        let listen = held_port();
        second.listen = listen.clone();
        let (at, started) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            let node = local.block_on(&runtime, async {
                let node = Node::start(second).await;
                at.send(node.net.local_addr()).unwrap();
                ended.await.unwrap();
                node
            });
            // The runtime goes first: nothing is left that could send a packet when the node goes.
            drop(runtime);
            drop(local);
            drop(node);
        });
        let address = started.await.unwrap();
        a.net.set_peers(vec![(NodeId(2), address.to_string())]);
        a.connected().await;
        end.send(()).unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap())
            .await
            .unwrap();
        let mut again = config(&authority, 2);
        again.secret = secret;
        again.listen = listen;
        again.boot = Boot(2);
        let since = Instant::now();
        let _b = Node::start(again).await;
        assert_eq!(a.disconnected().await, NodeId(2));
        let event = a.connected().await;
        assert!(matches!(event, PeerEvent::Connected { boot: Boot(2), .. }));
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "{:?}",
            since.elapsed()
        );
    });
}

#[test]
fn a_peer_that_falls_silent_is_given_up_and_found_again() {
    run(async {
        let authority = authority("blue");
        let mut first = config(&authority, 1);
        first.transport.idle = Duration::from_millis(300);
        first.transport.keep_alive = Duration::from_millis(50);
        let mut a = Node::start(first).await;
        let b = Node::start(config(&authority, 2)).await;
        let relay = Relay::to(b.net.local_addr()).await;
        a.net
            .set_peers(vec![(NodeId(2), relay.address.to_string())]);
        a.connected().await;
        relay.bytes_max.set(0);
        assert_eq!(a.disconnected().await, NodeId(2));
        a.until_error("no packet for a whole idle timeout").await;
        a.until_error("does not answer: is the node running").await;
        relay.bytes_max.set(usize::MAX);
        a.connected().await;
        assert_eq!(a.net.status()[0].last_error, None);
    });
}

// What QUIC hands out are slices of buffers of up to 64 KiB. An entry that is kept must not keep one alive.
#[test]
fn a_small_entry_that_is_kept_pins_no_more_than_itself() {
    run(async {
        let mut nodes = cluster(2, |_| ()).await;
        for index in 1..=100 {
            nodes[0]
                .send(nodes[0].say(2, 1, append(1, 1, index, 100)))
                .await;
        }
        for _ in 1..=100 {
            let message = nodes[1].message().await;
            let Body::Append(mut append) = message.body else {
                panic!("{message:?}");
            };
            let frame = append.entries.remove(0).frame().clone();
            let buffer = frame.try_into_mut().expect("nobody else has it");
            assert!(buffer.capacity() < 1_024, "{}", buffer.capacity());
        }
    });
}
