//! Peers that talk to each other over real sockets.

use crate::common::*;
use logdrive_net::{PeerEvent, SendError};
use logdrive_raft::message::Body;
use logdrive_raft::{Boot, NodeId, Term};

#[test]
fn three_nodes_find_each_other_and_say_who_they_are() {
    run(async {
        let nodes = cluster(3, |config| config.boot = Boot(config.replica.id.0 + 10)).await;
        for node in &nodes {
            let status = node.net.status();
            assert_eq!(status.len(), 2);
            for link in status {
                assert!(link.connected, "{link:?}");
                assert_eq!(link.incarnation, Some(replica(link.peer.0).incarnation));
                assert_eq!(link.boot, Some(Boot(link.peer.0 + 10)));
                assert_eq!(link.last_error, None);
            }
        }
        for node in nodes {
            node.net.shutdown().await;
        }
    });
}

#[test]
fn every_lane_keeps_its_order_and_every_byte() {
    run(async {
        let mut nodes = cluster(2, |_| ()).await;
        let (a, b) = nodes.split_at_mut(1);
        let (a, b) = (&mut a[0], &mut b[0]);
        let sizes = [8, 100, 4_000, 31_000, 33_000, 70_000, 300_000, 1 << 20];
        let mut sent = Vec::new();
        for index in 1..=40_u64 {
            let size = sizes[index as usize % sizes.len()];
            let message = a.say(2, 3, append(3, 1, index, size));
            a.send(message.clone()).await;
            a.send(a.say(2, 3, ack(1, index))).await;
            a.send(a.say(2, 3, heartbeat(index))).await;
            sent.push(message);
        }
        let (mut appends, mut acks, mut heartbeats) = (Vec::new(), Vec::new(), Vec::new());
        while appends.len() < sent.len() || heartbeats.len() < 40 || acks.last() != Some(&40) {
            let message = b.message().await;
            match &message.body {
                Body::Append(_) => appends.push(message),
                Body::Ack(_) => acks.push(index_of(&message)),
                Body::Heartbeat(_) => heartbeats.push(index_of(&message)),
                other => panic!("{other:?}"),
            }
        }
        assert!(appends == sent);
        assert_eq!(heartbeats, (1..=40).collect::<Vec<_>>());
        // Acks are cumulative: some may have been overtaken by later ones before they left.
        assert!(acks.is_sorted_by(|a, b| a < b), "{acks:?}");
        assert_eq!(b.net.held_bytes(), 0);
    });
}

#[test]
fn what_cannot_be_sent_is_told_at_once() {
    run(async {
        let authority = authority("blue");
        let mut a = Node::start(config(&authority, 1)).await;
        let message = a.say(2, 1, vote(1));
        assert_eq!(a.net.try_send(message.clone()), Err(SendError::Unknown));
        a.net.set_peers(vec![(NodeId(2), "127.0.0.1:9".to_owned())]);
        assert_eq!(a.net.try_send(message), Err(SendError::Offline));
    });
}

#[test]
fn a_new_session_resets_the_old_stream_and_what_it_still_had_to_say() {
    run(async {
        let mut nodes = cluster(2, |config| {
            config.queue_bytes_max = 16 << 20;
            config.inbox_bytes_max = 64 << 10;
        })
        .await;
        // The follower reads nothing, so the first session gets stuck in windows and queue.
        for index in 1..=12 {
            nodes[0]
                .send(nodes[0].say(2, 1, append(1, 1, index, 1 << 20)))
                .await;
        }
        nodes[0]
            .send(nodes[0].say(2, 1, append(1, 2, 100, 8)))
            .await;
        let stale = nodes[0].say(2, 1, append(1, 1, 13, 8));
        assert_eq!(nodes[0].net.try_send(stale), Err(SendError::Stale));
        let mut seen = Vec::new();
        while seen.last() != Some(&100) {
            seen.push(index_of(&nodes[1].message().await));
        }
        assert!(seen.len() < 12, "{seen:?}");
        assert!(seen.is_sorted(), "{seen:?}");
        // A later term begins a new stream, too.
        let mut message = nodes[0].say(2, 1, append(1, 2, 101, 8));
        message.term = Term(2);
        nodes[0].send(message).await;
        assert_eq!(nodes[1].message().await.term, Term(2));
        assert_eq!(nodes[0].net.status()[0].queued_bytes, 0);
    });
}

#[test]
fn a_restarted_peer_is_noticed_and_found_again() {
    run(async {
        let authority = authority("blue");
        let secret = logdrive_net::NetSecret::random().unwrap();
        let mut first = config(&authority, 2);
        first.secret = secret.clone();
        let listen = held_port();
        first.listen = listen.clone();
        let mut nodes = vec![
            Node::start(config(&authority, 1)).await,
            Node::start(first).await,
        ];
        connect(&mut nodes).await;
        let b = nodes.pop().unwrap();
        let mut a = nodes.pop().unwrap();
        b.net.shutdown().await;
        assert_eq!(a.disconnected().await, NodeId(2));
        let mut second = config(&authority, 2);
        second.secret = secret;
        second.boot = Boot(2);
        second.listen = listen;
        second.client_address = Some("0.0.0.0:7001".to_owned());
        let b = Node::start(second).await;
        let event = a.connected().await;
        let wanted = PeerEvent::Connected {
            peer: NodeId(2),
            incarnation: replica(2).incarnation,
            boot: Boot(2),
            // It listens everywhere, so it is to be found where we have met it.
            client_address: Some("127.0.0.1:7001".to_owned()),
        };
        assert_eq!(event, wanted);
        let said = async {
            assert_eq!(a.disconnected().await, NodeId(2));
            // Asked before the next attempt to dial, which finds a port that refuses, and then none.
            a.net.status()[0].last_error.clone()
        };
        let ((), error) = tokio::join!(b.net.shutdown(), said);
        let wanted = "closed by the other side: shutdown: the node shuts down";
        assert_eq!(error.as_deref(), Some(wanted));
    });
}
