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

use super::connection_id::LifeConnectionIds;
use super::settings::{MTU_MIN, TransportSettings, Windows};
use super::socket::{self, CappedSocket, Listen, SocketBuffers};
use crate::error::CloseCode;
use crate::secret::NetSecret;

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

/// How long closing waits for the others.
const DRAIN: Duration = Duration::from_millis(500);

/// Handshakes under way at once.
const INCOMING_MAX: usize = 64;

#[cfg(test)]
mod traps;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::MtuProfile;

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
}
