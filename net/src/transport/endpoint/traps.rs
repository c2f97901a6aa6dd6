//! Traps of QUIC that can only be seen from inside: what the settings made of a live connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use logdrive_raft::NodeId;

use super::*;
use crate::ca::{Authority, IssueRequest};
use crate::identity::{Role, peer_name};
use crate::tls::Credentials;
use crate::transport::MtuProfile;

const ALPN: &[u8] = b"traps";

/// Sends so many chunks of 64 KiB from one endpoint to another, doing something before each; gives the
/// connection as both sides have it, and how many bytes arrived. Both sides run on a thread each.
fn transfer(
    settings: TransportSettings,
    chunks: usize,
    mut before: impl FnMut(usize, &quinn::Connection),
) -> (quinn::Connection, quinn::Connection, usize) {
    let authority = Authority::create("blue".parse().unwrap()).unwrap();
    let windows = Windows::with_bulk(settings.mtu, 1);
    let issue = |id| {
        let issued = authority
            .issue(&IssueRequest::new(Role::Peer, NodeId(id), 1))
            .unwrap();
        let (own, key) = (&issued.certificate_pem, &issued.key_pem);
        Credentials::from_pem(
            authority.certificate_pem(),
            own,
            key,
            std::time::SystemTime::now(),
        )
        .unwrap()
    };
    let (dials, accepts) = (issue(1), issue(2));
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let (address, listens) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || {
        runtime().block_on(async {
            let tls = accepts.server_config(ALPN).unwrap();
            let server = ServerConfig::new(tls, &ConnectionConfig::new(&settings, windows));
            let secret = NetSecret::random().unwrap();
            let bound = Endpoint::bind(at, &settings, &secret, Some(server)).unwrap();
            address.send(bound.endpoint.local_addr().unwrap()).unwrap();
            let connection = bound.endpoint.accept().await.unwrap().unwrap().0;
            let mut stream = connection.accept_uni().await.unwrap();
            let mut chunks = [const { Bytes::new() }; 32];
            let mut bytes = 0;
            let read = async {
                while let Some(count) = stream.read_chunks(&mut chunks).await.unwrap() {
                    bytes += chunks[..count].iter().map(Bytes::len).sum::<usize>();
                }
            };
            timeout(PATIENCE, read)
                .await
                .expect("the connection stalls");
            // The sender hears that all has come before this end goes.
            connection.closed().await;
            (connection, bytes)
        })
    });
    let address = listens.recv().unwrap();
    let connection = runtime().block_on(async {
        let secret = NetSecret::random().unwrap();
        let bound = Endpoint::bind(at, &settings, &secret, None).unwrap();
        let tls = dials.client_config(ALPN).unwrap();
        let config = ConnectionConfig::new(&settings, windows);
        let name = peer_name(&"blue".parse().unwrap(), NodeId(2));
        let connecting = bound.endpoint.connect(&tls, &config, address, &name);
        let connection = connecting.await.unwrap().0;
        let mut stream = connection.open_uni().await.unwrap();
        for at in 0..chunks {
            before(at, &connection);
            stream
                .write_chunk(Bytes::from(vec![7; CHUNK]))
                .await
                .unwrap();
        }
        stream.finish().unwrap();
        let all = timeout(PATIENCE, stream.stopped()).await;
        assert_eq!(all.expect("the connection stalls"), Ok(None));
        assert_eq!(connection.close_reason(), None);
        connection.close(VarInt::from_u32(0), b"");
        bound.endpoint.0.wait_idle().await;
        connection
    });
    let (other, bytes) = receiver.join().unwrap();
    (connection, other, bytes)
}

const PATIENCE: Duration = Duration::from_secs(60);

const CHUNK: usize = 64 << 10;

fn settings(mtu: MtuProfile) -> TransportSettings {
    TransportSettings {
        mtu,
        idle: Duration::from_secs(30),
        ..TransportSettings::default()
    }
}

// T1, T2, T3: batches above 64 KiB vanish, an MTU above the first window hangs, one above 16 KiB as the
// smallest panics.
#[test]
fn every_packet_size_is_kept_and_sent_in_batches_that_fit() {
    for mtu in [1_200, 1_452, 6_500, 8_900, 65_000] {
        const CHUNKS: usize = 256;
        let (connection, _, bytes) = transfer(settings(MtuProfile::Bytes(mtu)), CHUNKS, |_, _| ());
        assert_eq!(bytes, CHUNKS * CHUNK);
        let stats = connection.stats();
        assert_eq!(stats.path.current_mtu, mtu);
        let (sent, sends) = (stats.udp_tx.datagrams, stats.udp_tx.ios);
        println!(
            "{mtu}: {sent} datagrams in {sends} sends, {} lost",
            stats.path.lost_packets
        );
        assert!(stats.udp_tx.bytes <= sends * 65_507);
        assert!(sent <= sends * (65_507 / u64::from(mtu)));
        // Linux sends several at once, where several fit.
        let batches = cfg!(target_os = "linux") && mtu < 30_000;
        assert!(
            !batches || sends * 3 < sent * 2,
            "{sent} datagrams, {sends} sends"
        );
    }
}

// T14: BBR in quinn is not maintained, and slow.
#[test]
fn congestion_is_controlled_by_cubic_on_both_sides_with_a_large_first_window() {
    let (one, other, _) = transfer(settings(MtuProfile::Ethernet), 1, |_, _| ());
    for connection in [one, other] {
        let state = connection.congestion_state();
        assert!(state.initial_window() >= 1 << 20);
        let cubic = state.into_any().downcast::<quinn::congestion::Cubic>();
        assert!(cubic.is_ok());
    }
}

// Keys are replaced after millions of packets, and while bytes are on their way both ends have two.
#[test]
fn keys_are_replaced_under_load_and_nothing_is_lost() {
    const CHUNKS: usize = 1_024;
    let mut updates = 0;
    let (_, _, bytes) = transfer(settings(MtuProfile::Ethernet), CHUNKS, |at, connection| {
        if at % 16 == 15 {
            connection.force_key_update();
            updates += 1;
        }
    });
    assert_eq!((bytes, updates), (CHUNKS * CHUNK, CHUNKS / 16));
}

// T4: with packets lost by the thousand a stream's buffer has many gaps; too many end the connection.
#[test]
fn a_small_socket_buffer_on_a_busy_machine_costs_packets_and_not_the_connection() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 * std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut settings = settings(MtuProfile::Ethernet);
        settings.socket_buffer_bytes = 64 << 10;
        let ended = std::panic::catch_unwind(|| transfer(settings, 256, |_, _| ()));
        stop.store(true, Ordering::Relaxed);
        let (connection, _, bytes) = ended.unwrap();
        assert_eq!(bytes, 256 * CHUNK);
        let lost = connection.stats().path.lost_packets;
        println!("{lost} packets lost");
    });
}

// T10: an endpoint receives into a buffer of 32 times 64 of the largest packets.
#[test]
#[cfg(all(target_os = "linux", not(logdrive_portable)))]
fn the_receive_buffer_of_an_endpoint_is_address_space_until_it_is_used() {
    const BUFFER: usize = 65_000 * 64 * 32;
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    let before = resident();
    let (_, _, bytes) = transfer(settings(MtuProfile::Loopback), 64, |_, _| ());
    assert_eq!(bytes, 64 * CHUNK);
    // Two endpoints; other tests of this process run beside.
    let grown = resident().saturating_sub(before);
    assert!(grown < BUFFER, "{grown}");
}

// T11: the first random bytes of other providers take tens of milliseconds.
#[test]
fn randomness_and_keys_come_from_ring() {
    let provider = crate::tls::crypto_provider();
    assert_eq!(format!("{:?}", provider.secure_random), "Ring");
}
