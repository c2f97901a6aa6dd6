//! What a peer port refuses, and what the one who is refused hears. Nothing of it touches anybody else.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::common::*;
use bytes::{BufMut, BytesMut};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::codec::APPEND_MESSAGE_BYTES_MAX;
use logdrive_net::hello::{Hello, PROTOCOL_MAX, PROTOCOL_MIN, StreamKind};
use logdrive_net::{CloseCode, Credentials, Role};
use logdrive_raft::wire::Encode;
use logdrive_raft::{Boot, ClusterId, GroupId, Message, NodeId, ReplicationSession, Term};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// What node `id` says first, on a connection with this number.
fn hello(id: u64, connection: u64, stream: StreamKind) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        compatible: 0,
        cluster: CLUSTER,
        replica: replica(id),
        boot: Boot(1),
        connection,
        stream,
        group: GroupId(0),
        term: Term(0),
        session: ReplicationSession::default(),
        client_address: None,
    }
}

fn append_hello(id: u64, connection: u64) -> Hello {
    Hello {
        group: GroupId(1),
        term: Term(1),
        session: session_of(1),
        ..hello(id, connection, StreamKind::Append)
    }
}

fn message(id: u64, group: u64, body: logdrive_raft::message::Body) -> Message {
    Message {
        from: replica(id),
        boot: Boot(1),
        to: NodeId(1),
        group: GroupId(group),
        term: Term(1),
        body,
    }
}

fn framed(value: &impl Encode) -> Vec<u8> {
    raw(&value.to_bytes())
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u32_le(u32::try_from(bytes.len()).unwrap());
    out.put_slice(bytes);
    out.to_vec()
}

async fn say(connection: &quinn::Connection, parts: &[Vec<u8>]) -> quinn::SendStream {
    let mut stream = connection.open_uni().await.unwrap();
    for part in parts {
        stream.write_all(part).await.unwrap();
    }
    stream
}

/// Node 1, with a healthy node 2 beside whatever else comes.
struct Port {
    authority: Authority,
    nodes: Vec<Node>,
}

impl Port {
    async fn open() -> Self {
        let authority = authority("blue");
        let mut nodes = Vec::new();
        for id in 1..=2 {
            nodes.push(Node::start(config(&authority, id)).await);
        }
        connect(&mut nodes).await;
        Self { authority, nodes }
    }

    /// A connection of node 3 that has been welcomed.
    async fn welcomed(&self, number: u64) -> quinn::Connection {
        let address = self.nodes[0].net.local_addr();
        let connection = dial_peer(&self.authority, Role::Peer, 3, address).await;
        // The stream stays open: the connection keeps it until it is closed.
        let mut control = say(
            &connection,
            &[framed(&hello(3, number, StreamKind::Control))],
        )
        .await;
        control.finish().unwrap();
        connection.accept_uni().await.unwrap();
        connection
    }

    /// Node 3 says this on a stream of its own, and is refused.
    async fn refuses(&mut self, parts: &[Vec<u8>], code: CloseCode, reason: &str) {
        let number = 100 + u64::from(fastrand::u32(..));
        let connection = self.welcomed(number).await;
        let mut patched = parts.to_vec();
        if let Some(first) = patched.first_mut()
            && first.len() == 111
        {
            // The number of the connection, in a whole hello.
            first[68..76].copy_from_slice(&number.to_le_bytes());
        }
        let _stream = say(&connection, &patched).await;
        let (found, text) = closed(&connection).await;
        assert_eq!(found, code as u64, "{text}");
        assert!(text.contains(reason), "{text:?} lacks {reason:?}");
        self.is_untouched().await;
    }

    /// The healthy connection still carries what it should, and nothing else has come.
    async fn is_untouched(&mut self) {
        let round = fastrand::u64(..);
        let message = self.nodes[1].say(1, 1, heartbeat(round));
        self.nodes[1].send(message).await;
        let came = self.nodes[0].message().await;
        assert_eq!(index_of(&came), round);
        let status = &self.nodes[1].net.status()[0];
        assert!(
            status.connected && status.last_error.is_none(),
            "{status:?}"
        );
    }
}

#[test]
fn bytes_that_are_no_message_close_their_connection_only() {
    run(async {
        let mut port = Port::open().await;
        let control = framed(&hello(3, 0, StreamKind::Control));
        let append = framed(&append_hello(3, 0));
        let good = framed(&message(3, 1, append_of(1, Vec::new())));
        // Noise instead of a hello, and a hello that is cut.
        port.refuses(&[raw(b"no")], CloseCode::Malformed, "bytes needed")
            .await;
        port.refuses(&[raw(&[7; 105])], CloseCode::Malformed, "hello magic")
            .await;
        port.refuses(
            &[control[..50].to_vec(), vec![0; 61]],
            CloseCode::Malformed,
            "stream kind",
        )
        .await;
        // Lengths are checked before anything is allocated.
        let huge = |length: usize| u32::try_from(length).unwrap().to_le_bytes().to_vec();
        port.refuses(&[huge(1025)], CloseCode::Malformed, "longer than 1024")
            .await;
        let over = huge(APPEND_MESSAGE_BYTES_MAX + 1);
        port.refuses(
            &[append.clone(), over],
            CloseCode::Malformed,
            "is longer than",
        )
        .await;
        port.refuses(
            &[control.clone(), huge(usize::MAX >> 33)],
            CloseCode::Malformed,
            "longer",
        )
        .await;
        // A message that is noise, is cut, or has something behind it.
        port.refuses(
            &[append.clone(), raw(b"")],
            CloseCode::Malformed,
            "message: ",
        )
        .await;
        port.refuses(
            &[append.clone(), raw(&[9; 200])],
            CloseCode::Malformed,
            "message: ",
        )
        .await;
        port.refuses(
            &[append.clone(), raw(&good[4..40])],
            CloseCode::Malformed,
            "message: ",
        )
        .await;
        let longer = [&good[4..], b"x"].concat();
        port.refuses(
            &[append.clone(), raw(&longer)],
            CloseCode::Malformed,
            "too many",
        )
        .await;
        // A frame whose checksum does not hold.
        let mut bent = framed(&message(3, 1, append_body(1)));
        *bent.last_mut().unwrap() ^= 1;
        port.refuses(&[append, bent], CloseCode::Malformed, "checksum")
            .await;
        // A welcome where none belongs.
        let welcome = framed(&hello(3, 0, StreamKind::Welcome));
        port.refuses(
            &[welcome],
            CloseCode::Malformed,
            "a welcome from the side that dialled",
        )
        .await;
    });
}

fn append_body(index: u64) -> logdrive_raft::message::Body {
    append(1, 1, index, 100)
}

#[test]
fn a_message_must_be_from_whom_its_connection_is() {
    run(async {
        let mut port = Port::open().await;
        let control = framed(&hello(3, 0, StreamKind::Control));
        let forged = CloseCode::Forged;
        let says = |message: Message| [control.clone(), framed(&message)];
        // Another node, another life, another boot.
        port.refuses(&says(message(2, 1, vote(1))), forged, "claims to be from 2")
            .await;
        let mut other = message(3, 1, vote(1));
        other.from.incarnation.0 += 1;
        port.refuses(&says(other), forged, "claims to be from 3")
            .await;
        let mut other = message(3, 1, vote(1));
        other.boot = Boot(2);
        port.refuses(&says(other), forged, "boot 2").await;
        // For somebody else.
        let mut other = message(3, 1, vote(1));
        other.to = NodeId(2);
        port.refuses(&says(other), forged, "for node 2").await;
        // On a stream it does not belong to.
        port.refuses(&says(message(3, 1, ack(1, 1))), forged, "lane Ack")
            .await;
        let append = framed(&append_hello(3, 0));
        let elsewhere = framed(&message(3, 2, append_of(1, Vec::new())));
        port.refuses(
            &[append.clone(), elsewhere],
            forged,
            "another group or session",
        )
        .await;
        let session = framed(&message(3, 1, append_of(2, Vec::new())));
        port.refuses(&[append, session], forged, "another group or session")
            .await;
        // A stream that says it is somebody else's.
        port.refuses(
            &[framed(&hello(2, 0, StreamKind::Ack))],
            forged,
            "another sender",
        )
        .await;
    });
}

#[test]
fn a_hello_is_checked_before_anything_is_heard() {
    run(async {
        let mut port = Port::open().await;
        let address = port.nodes[0].net.local_addr();
        let mut later = hello(3, 1, StreamKind::Control);
        (later.protocol_min, later.protocol_max) = (3, 4);
        let mut other_cluster = hello(3, 1, StreamKind::Control);
        other_cluster.cluster = ClusterId(9);
        let mut unknown = hello(3, 1, StreamKind::Control).to_bytes().to_vec();
        unknown[8] = 1;
        let cases = [
            (
                framed(&later),
                CloseCode::Version,
                "version 3, this build reads up to 2: upgrade",
            ),
            (
                raw(&unknown),
                CloseCode::Version,
                "features 0x1 that this build does not know",
            ),
            (
                framed(&other_cluster),
                CloseCode::WrongCluster,
                "one of the two was set up anew",
            ),
            (
                framed(&hello(2, 1, StreamKind::Control)),
                CloseCode::WrongId,
                "you say that you are node 2, your certificate is of node 3",
            ),
            (
                framed(&hello(3, 1, StreamKind::Ack)),
                CloseCode::Malformed,
                "must be control",
            ),
        ];
        for (bytes, code, reason) in cases {
            let connection = dial_peer(&port.authority, Role::Peer, 3, address).await;
            let _stream = say(&connection, &[bytes]).await;
            let (found, text) = closed(&connection).await;
            assert_eq!(found, code as u64, "{text}");
            assert!(text.contains(reason), "{text}");
            port.is_untouched().await;
        }
        // Somebody else with our own id.
        let connection = dial_peer(&port.authority, Role::Peer, 1, address).await;
        let _stream = say(&connection, &[framed(&hello(1, 1, StreamKind::Control))]).await;
        let (_, text) = closed(&connection).await;
        assert!(text.contains("two nodes share an id"), "{text}");
        // Somebody who says nothing.
        let connection = dial_peer(&port.authority, Role::Peer, 3, address).await;
        let (found, text) = closed(&connection).await;
        assert_eq!(found, CloseCode::TooSlow as u64, "{text}");
        port.is_untouched().await;
    });
}

#[test]
fn a_newer_connection_takes_the_place_of_an_older_one_and_not_the_reverse() {
    run(async {
        let mut port = Port::open().await;
        let first = port.welcomed(5).await;
        let second = port.welcomed(6).await;
        let (code, text) = closed(&first).await;
        assert_eq!(
            (code, text.as_str()),
            (CloseCode::Superseded as u64, "a newer connection has come")
        );
        let address = port.nodes[0].net.local_addr();
        let late = dial_peer(&port.authority, Role::Peer, 3, address).await;
        let _stream = say(&late, &[framed(&hello(3, 4, StreamKind::Control))]).await;
        let (code, _) = closed(&late).await;
        assert_eq!(code, CloseCode::Superseded as u64);
        let body = framed(&message(3, 1, append_body(9)));
        let _stream = say(&second, &[framed(&append_hello(3, 6)), body]).await;
        assert_eq!(index_of(&port.nodes[0].message().await), 9);
        // Another life of the directory counts anew.
        let reborn = dial_peer(&port.authority, Role::Peer, 3, address).await;
        let mut other_life = hello(3, 1, StreamKind::Control);
        other_life.replica.incarnation.0 += 1;
        let _stream = say(&reborn, &[framed(&other_life)]).await;
        reborn.accept_uni().await.unwrap();
        let (code, _) = closed(&second).await;
        assert_eq!(code, CloseCode::Superseded as u64);
        port.is_untouched().await;
    });
}

#[test]
fn an_append_stream_of_an_older_session_is_stopped() {
    run(async {
        let mut port = Port::open().await;
        let connection = port.welcomed(1).await;
        let newer = Hello {
            session: session_of(2),
            ..append_hello(3, 1)
        };
        let body = framed(&message(3, 1, append_of(2, Vec::new())));
        let _newer = say(&connection, &[framed(&newer), body]).await;
        port.nodes[0].message().await;
        let older = say(&connection, &[framed(&append_hello(3, 1))]).await;
        assert_eq!(
            older.stopped().await.unwrap(),
            Some(quinn::VarInt::from_u32(2))
        );
        assert_eq!(connection.close_reason(), None);
        port.is_untouched().await;
    });
}

#[test]
fn half_a_message_on_a_stream_that_is_reset_is_nothing() {
    run(async {
        let mut port = Port::open().await;
        let connection = port.welcomed(1).await;
        let half = framed(&message(3, 1, append_body(1)));
        let mut stream = say(
            &connection,
            &[framed(&append_hello(3, 1)), half[..40].to_vec()],
        )
        .await;
        stream.reset(quinn::VarInt::from_u32(1)).unwrap();
        port.is_untouched().await;
        assert_eq!(connection.close_reason(), None);
        // Finished within a message is another matter.
        let mut stream = say(
            &connection,
            &[framed(&append_hello(3, 1)), half[..40].to_vec()],
        )
        .await;
        stream.finish().unwrap();
        let (code, text) = closed(&connection).await;
        assert_eq!(code, CloseCode::Malformed as u64);
        assert_eq!(text, "stream ends within a message");
    });
}

#[test]
fn a_role_that_may_not_speak_here_is_refused() {
    run(async {
        let mut port = Port::open().await;
        let address = port.nodes[0].net.local_addr();
        for role in [Role::Client, Role::Admin] {
            let connection = dial_peer(&port.authority, role, 3, address).await;
            let (code, text) = closed(&connection).await;
            assert_eq!(code, CloseCode::WrongRole as u64);
            assert!(text.contains("this port is for peers"), "{text}");
        }
        // A client of the right kind at the wrong port does not get through the handshake.
        let name = "peer.c-blue.logdrive.internal";
        let wrong = dial(
            &port.authority,
            Role::Client,
            3,
            b"logdrive-client",
            address,
            name,
        )
        .await;
        assert!(wrong.is_err());
        port.is_untouched().await;
    });
}

/// A certificate of node 2 that was loaded while it was valid.
fn dated(authority: &Authority, from: Duration, days: u32, ahead: bool) -> Credentials {
    let mut request = IssueRequest::new(Role::Peer, NodeId(2), days);
    let now = SystemTime::now();
    request.not_before = if ahead { now + from } else { now - from };
    request.not_after = request.not_before + Duration::from_secs(3600);
    let issued = authority.issue(&request).unwrap();
    let valid = request
        .not_before
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Credentials::from_pem(
        authority.certificate_pem(),
        &issued.certificate_pem,
        &issued.key_pem,
        SystemTime::UNIX_EPOCH + valid + Duration::from_secs(60),
    )
    .unwrap()
}

#[test]
fn wrong_expired_and_premature_certificates_say_what_to_do() {
    run(async {
        let (blue, green) = (authority("blue"), authority("green"));
        let day = Duration::from_secs(86_400);
        let authority_of_blue_again = authority("blue");
        let cases = [
            (
                dated(&blue, day, 1, false),
                "expired or not yet valid: issue",
            ),
            (
                dated(&blue, day, 1, true),
                "expired or not yet valid: issue",
            ),
            (credentials(&green, Role::Peer, 2), "authority"),
            (
                credentials(&authority_of_blue_again, Role::Peer, 2),
                "authority",
            ),
        ];
        for (bad, text) in cases {
            let mut a = Node::start(config(&blue, 1)).await;
            let mut second = config(&blue, 2);
            second.credentials = bad;
            let mut b = Node::start(second).await;
            let addresses = vec![(NodeId(1), a.address()), (NodeId(2), b.address())];
            a.net.set_peers(addresses.clone());
            b.net.set_peers(addresses);
            // Whoever dials, the one that refuses and the one that is refused both say why.
            a.until_error(text).await;
            b.until_error(text).await;
            assert!(a.events.is_empty() && b.events.is_empty());
        }
    });
}

#[test]
fn another_node_at_the_address_is_not_taken_for_the_wanted_one() {
    run(async {
        let blue = authority("blue");
        let mut a = Node::start(config(&blue, 1)).await;
        let b = Node::start(config(&blue, 2)).await;
        a.net.set_peers(vec![(NodeId(3), b.address())]);
        let error = a.until_error("another node than the wanted one").await;
        assert!(error.ends_with("check the address"), "{error}");
    });
}

#[test]
fn certificates_are_swapped_without_a_restart() {
    run(async {
        let (old, new) = (authority("blue"), authority("blue"));
        let mut nodes = vec![
            Node::start(config(&old, 1)).await,
            Node::start(config(&old, 2)).await,
        ];
        connect(&mut nodes).await;
        let (a, b) = nodes.split_at_mut(1);
        let (a, b) = (&mut a[0], &mut b[0]);
        a.net
            .set_credentials(&credentials(&new, Role::Peer, 1))
            .unwrap();
        b.net
            .set_credentials(&credentials(&new, Role::Peer, 2))
            .unwrap();
        // What is up keeps what it began with.
        a.send(a.say(2, 1, vote(1))).await;
        b.message().await;
        // What is dialled anew uses the new ones, at both ends.
        let address = b.address();
        a.net.set_peers(Vec::new());
        assert_eq!(a.disconnected().await, NodeId(2));
        a.net.set_peers(vec![(NodeId(2), address)]);
        a.connected().await;
        a.send(a.say(2, 1, vote(2))).await;
        b.message().await;
        let wrong = a.net.set_credentials(&credentials(&new, Role::Peer, 2));
        assert!(wrong.unwrap_err().to_string().contains("this is peer 1"));
        let stranger = Node::start(config(&old, 3)).await;
        let mut stranger = stranger;
        stranger.net.set_peers(vec![(NodeId(1), a.address())]);
        stranger.until_error("authority").await;
    });
}

/// The first packets of so many handshakes that nobody goes on with.
async fn first_packets(authority: &Authority, count: usize) -> Vec<Vec<u8>> {
    let nobody = UdpSocket::bind(localhost()).await.unwrap();
    let address = nobody.local_addr().unwrap();
    let config = quic_client(authority, Role::Peer, 9, b"logdrive-peer");
    let endpoint = quinn::Endpoint::client(localhost()).unwrap();
    let mut packets: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut datagram = [0; 2048];
    while packets.len() < count {
        let name = "n1.c-blue.logdrive.internal";
        let connecting = endpoint.connect_with(config.clone(), address, name);
        let length = nobody.recv(&mut datagram).await.unwrap();
        drop(connecting);
        // By the connection id that the dialling side chose (RFC 9000 §17.2).
        let id = datagram[6..6 + usize::from(datagram[5])].to_vec();
        packets.insert(id, datagram[..length].to_vec());
    }
    packets.into_values().collect()
}

#[test]
fn handshakes_that_strangers_begin_do_not_keep_a_peer_out() {
    run(async {
        let authority = authority("blue");
        let mut a = Node::start(config(&authority, 1)).await;
        let mut b = Node::start(config(&authority, 2)).await;
        let packets = first_packets(&authority, 200).await;
        let stranger = UdpSocket::bind(localhost()).await.unwrap();
        for packet in &packets {
            stranger.send_to(packet, a.address()).await.unwrap();
        }
        // Some get an answer, the others are told to prove first that they are where they say
        // (RFC 9000 §17.2.5: a long header of type 3).
        let mut datagram = [0; 65_536];
        loop {
            let length = timeout(PATIENCE, stranger.recv(&mut datagram)).await;
            let first = datagram[..length.expect("no packet of that kind").unwrap()][0];
            if first & 0xb0 == 0xb0 {
                break;
            }
        }
        let addresses = vec![(a.replica.id, a.address()), (b.replica.id, b.address())];
        a.net.set_peers(addresses.clone());
        b.net.set_peers(addresses);
        a.connected().await;
        b.connected().await;
    });
}
