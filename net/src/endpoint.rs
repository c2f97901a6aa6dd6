//! How QUIC is set up: every setting that its defaults get wrong for replicas in one data centre.
//!
//! Packet size decides throughput, bytes in flight decide latency. Both are set here and nowhere else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection_id::LifeConnectionIds;
use crate::error::CloseCode;
use crate::secret::NetSecret;
use crate::socket::{self, CappedSocket, Listen, SOCKET_BUFFER_BYTES, SocketBuffers};

/// How large packets are. One value for all nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtuProfile {
    /// Any Ethernet: 1 452 bytes.
    #[default]
    Ethernet,
    /// Jumbo frames, a path of 9 000 bytes: 8 900 bytes.
    Jumbo,
    /// One machine only: 65 000 bytes.
    Loopback,
    /// Another size, for experiments.
    Bytes(u16),
}

impl MtuProfile {
    /// Bytes of a packet.
    #[must_use]
    pub fn bytes(self) -> u16 {
        match self {
            Self::Ethernet => 1_452,
            Self::Jumbo => 8_900,
            Self::Loopback => 65_000,
            Self::Bytes(bytes) => bytes.clamp(MTU_MIN, 65_000),
        }
    }

    /// As configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "ethernet",
            Self::Jumbo => "jumbo",
            Self::Loopback => "loopback",
            Self::Bytes(_) => "bytes",
        }
    }
}

impl std::str::FromStr for MtuProfile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "ethernet" => Ok(Self::Ethernet),
            "jumbo" => Ok(Self::Jumbo),
            "loopback" => Ok(Self::Loopback),
            _ => Err(format!(
                "MTU profile {name:?} is none of ethernet, jumbo, loopback"
            )),
        }
    }
}

/// What of an endpoint may differ between uses and tests. The rest is decided.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TransportSettings {
    /// How large packets are.
    pub mtu: MtuProfile,
    /// After how long without a packet a connection is given up.
    pub idle: Duration,
    /// How often an idle connection is kept alive.
    pub keep_alive: Duration,
    /// What is asked for as socket buffers.
    pub socket_buffer_bytes: usize,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            mtu: MtuProfile::default(),
            idle: Duration::from_secs(1),
            keep_alive: Duration::from_millis(200),
            socket_buffer_bytes: SOCKET_BUFFER_BYTES,
        }
    }
}

/// The windows of one kind of connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// How much one stream may have on its way: what decides latency beside it.
    pub(crate) stream: u32,
    /// How much all streams of a connection may: more than those that can stall.
    pub(crate) connection: u32,
    /// How much the sender keeps until it is acknowledged.
    pub(crate) send: u32,
    /// How many unidirectional streams the other side may open.
    pub(crate) streams_uni: u32,
    /// How many bidirectional ones.
    pub(crate) streams_bidi: u32,
}

impl Windows {
    /// The windows for a connection that carries control beside up to `bulk_streams` streams which may stall
    /// all at once.
    pub(crate) fn with_bulk(mtu: MtuProfile, bulk_streams: u32) -> Self {
        let bulk_streams = bulk_streams.clamp(1, BULK_STREAMS_MAX);
        let wanted = match mtu.bytes() {
            // Small packets: more in flight does not raise throughput and does raise latency.
            0..=2_000 => 512 << 10,
            _ => 1 << 20,
        };
        let stream = wanted
            .min(BULK_WINDOW_BYTES / bulk_streams)
            .max(STREAM_WINDOW_MIN);
        let windows = Self {
            stream,
            connection: stream * bulk_streams + CONTROL_WINDOW_BYTES,
            send: 2 << 20,
            // Those that were reset and those that replace them, control, acks, and some to spare.
            streams_uni: 2 * bulk_streams + 16,
            streams_bidi: 0,
        };
        windows.check(mtu);
        windows
    }

    /// The windows for a connection that carries requests up and responses down one stream.
    pub(crate) fn for_clients(mtu: MtuProfile) -> Self {
        let windows = Self {
            streams_uni: 0,
            streams_bidi: 1,
            ..Self::with_bulk(mtu, 1)
        };
        windows.check(mtu);
        windows
    }

    /// The most bytes that QUIC keeps for a connection: sent and not acknowledged, come and not read.
    pub(crate) fn bytes_max(&self) -> usize {
        self.send as usize + self.connection as usize
    }

    fn check(&self, mtu: MtuProfile) {
        // A stalled stream must leave room for control on its connection.
        assert!(self.stream < self.connection);
        // More spans than this in one stream, and quinn-proto closes the connection.
        assert!(u64::from(self.stream) <= 1024 * u64::from(mtu.bytes().max(MTU_MIN)));
        assert!(self.send > self.stream);
    }
}

/// The transport parameters of one side of a connection.
pub(crate) fn transport(settings: &TransportSettings, windows: Windows) -> Arc<TransportConfig> {
    windows.check(settings.mtu);
    let mtu = settings.mtu.bytes();
    let initial_window = (1_u64 << 20).max(16 * u64::from(mtu));
    // Otherwise the first packet does not fit the congestion window, and the handshake hangs for ever.
    assert!(initial_window > u64::from(mtu));
    let mut cubic = CubicConfig::default();
    cubic.initial_window(initial_window);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(10))
        .max_ack_delay(Some(Duration::from_millis(2)))
        .reordering_threshold(VarInt::from_u32(2));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(mtu)
        .interval(Duration::from_secs(600))
        .black_hole_cooldown(Duration::from_secs(5));
    let idle = settings
        .idle
        .clamp(Duration::from_millis(100), Duration::from_secs(3600));
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(mtu)
        .min_mtu(MTU_MIN)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(cubic))
        .stream_receive_window(VarInt::from_u32(windows.stream))
        .receive_window(VarInt::from_u32(windows.connection))
        .send_window(u64::from(windows.send))
        .max_concurrent_uni_streams(VarInt::from_u32(windows.streams_uni))
        .max_concurrent_bidi_streams(VarInt::from_u32(windows.streams_bidi))
        .datagram_receive_buffer_size(None)
        .send_fairness(true)
        .ack_frequency_config(Some(acks))
        .initial_rtt(Duration::from_millis(10))
        .max_idle_timeout(Some(
            IdleTimeout::try_from(idle).expect("clamped to an hour"),
        ))
        .keep_alive_interval(Some(settings.keep_alive))
        .enable_segmentation_offload(true)
        .pad_to_mtu(false)
        .allow_spin(false);
    Arc::new(transport)
}

/// What to accept connections with.
pub(crate) fn server_config(
    tls: Arc<QuicServerConfig>,
    transport: Arc<TransportConfig>,
) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(tls);
    config
        .transport_config(transport)
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(1 << 20);
    config
}

/// What to dial with.
pub(crate) fn client_config(
    tls: Arc<QuicClientConfig>,
    transport: Arc<TransportConfig>,
) -> ClientConfig {
    let mut config = ClientConfig::new(tls);
    config.transport_config(transport);
    config
}

/// An endpoint that is bound.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) endpoint: Endpoint,
    pub(crate) buffers: SocketBuffers,
    /// Resolves once the socket is closed.
    pub(crate) closed: oneshot::Receiver<()>,
}

/// Binds an endpoint. Must be called within a tokio runtime.
pub(crate) fn bind(
    listen: impl Into<Listen>,
    settings: &TransportSettings,
    secret: &NetSecret,
    server: Option<ServerConfig>,
) -> io::Result<Bound> {
    let mtu = settings.mtu.bytes();
    let (socket, buffers) = socket::bind(&listen.into(), settings.socket_buffer_bytes)?;
    let mut config = EndpointConfig::new(Arc::new(secret.reset_key()));
    let (key, life) = (secret.connection_id_key(), fastrand::u16(..));
    config
        .max_udp_payload_size(mtu.max(1472))
        .expect("larger than the 1200 that QUIC demands")
        .cid_generator(move || Box::new(LifeConnectionIds::new(key, life)));
    let (socket, closed) = CappedSocket::wrap(socket, mtu)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
    Ok(Bound {
        endpoint,
        buffers,
        closed,
    })
}

/// Closes an endpoint, tells those it talks to, and waits until its port is free. The caller has ended
/// everything that holds a handle to it or to a connection of it.
pub(crate) async fn close(endpoint: Endpoint, closed: oneshot::Receiver<()>) {
    endpoint.close(CloseCode::Shutdown.wire(), b"the node shuts down");
    // What does not get through in time the others notice by themselves.
    let _ = timeout(DRAIN, endpoint.wait_idle()).await;
    drop(endpoint);
    let _ = timeout(DRAIN, closed).await;
}

/// The size to which packets fall when larger ones vanish.
const MTU_MIN: u16 = 1_200;

/// The most bytes that bulk streams of one connection may have on their way to a reader that has stalled.
const BULK_WINDOW_BYTES: u32 = 8 << 20;

/// A bulk stream's window is not cut below this, however many there are.
const STREAM_WINDOW_MIN: u32 = 64 << 10;

/// The most bulk streams of one connection. Their smallest windows together stay below 4 GiB by far.
const BULK_STREAMS_MAX: u32 = 4_096;

/// What is left for control and acks when all bulk streams have stalled.
const CONTROL_WINDOW_BYTES: u32 = 1 << 20;

/// How long closing waits for the others.
const DRAIN: Duration = Duration::from_millis(500);

/// Handshakes under way at once.
const INCOMING_MAX: usize = 64;

const _: () = {
    // Above 16 KiB quinn-proto panics on the first long packet; above the path, nothing arrives.
    assert!(MTU_MIN <= 1_452);
    assert!((BULK_STREAMS_MAX as u64) * (STREAM_WINDOW_MIN as u64) + (9 << 20) < u32::MAX as u64);
};

#[cfg(test)]
mod traps;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_leave_room_for_control_however_many_groups_stall() {
        for mtu in [
            MtuProfile::Ethernet,
            MtuProfile::Jumbo,
            MtuProfile::Loopback,
        ] {
            for groups in [0, 1, 8, 64, 1024, 1 << 30] {
                let windows = Windows::with_bulk(mtu, groups);
                let groups = groups.min(BULK_STREAMS_MAX);
                assert!(windows.connection >= windows.stream * groups + CONTROL_WINDOW_BYTES);
                assert!(windows.streams_uni > groups);
                transport(
                    &TransportSettings {
                        mtu,
                        ..Default::default()
                    },
                    windows,
                );
            }
        }
    }

    #[test]
    fn nothing_that_bounds_memory_is_left_to_its_default() {
        // By default the connection window is unlimited and a hundred streams may be open.
        let windows = Windows::with_bulk(MtuProfile::Ethernet, 4);
        let set = format!("{:?}", transport(&TransportSettings::default(), windows));
        for field in [
            "max_concurrent_bidi_streams: 0,",
            "max_concurrent_uni_streams: 24,",
            "stream_receive_window: 524288,",
            "receive_window: 3145728,",
            "send_window: 2097152,",
            "datagram_receive_buffer_size: None,",
            "initial_mtu: 1452,",
            "min_mtu: 1200,",
        ] {
            assert!(set.contains(field), "{field} is not in {set}");
        }
    }

    #[test]
    fn a_profile_has_one_spelling() {
        for name in ["ethernet", "jumbo", "loopback"] {
            assert_eq!(name.parse::<MtuProfile>().unwrap().name(), name);
        }
        "Jumbo".parse::<MtuProfile>().unwrap_err();
        assert_eq!(MtuProfile::Bytes(3).bytes(), MTU_MIN);
    }
}
