//! How QUIC is set up: every setting that its defaults get wrong for replicas in one data centre.
//!
//! Packet size decides throughput, bytes in flight decide latency. Both are set here and nowhere else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::connection::Connection;
use super::connection_id::LifeConnectionIds;
use super::error::{ConnectionError, close_code};
use super::settings::{MTU_MIN, TransportSettings, Windows};
use super::socket::{self, CappedSocket, Listen, SocketBuffers};
use super::tls::{ClientTls, ServerTls};
use crate::error::CloseCode;
use crate::secret::NetSecret;

/// A socket that connections are dialled from and accepted at. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint(pub(super) quinn::Endpoint);

/// An endpoint that is bound.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) endpoint: Endpoint,
    pub(crate) buffers: SocketBuffers,
    /// Resolves once the socket is closed.
    pub(crate) closed: oneshot::Receiver<()>,
}

/// The transport parameters of one side of a connection. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionConfig(Arc<TransportConfig>);

/// What to accept connections with.
pub(crate) struct ServerConfig(quinn::ServerConfig);

impl Endpoint {
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
        let server = server.map(|server| server.0);
        let runtime = Arc::new(TokioRuntime);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
        Ok(Bound {
            endpoint: Self(endpoint),
            buffers,
            closed,
        })
    }

    /// Dials, and waits until the handshake is through.
    pub(crate) async fn connect(
        &self,
        tls: &ClientTls,
        config: &ConnectionConfig,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<Connection, ConnectionError> {
        let mut client = ClientConfig::new(Arc::clone(&tls.0) as _);
        client.transport_config(Arc::clone(&config.0));
        let connecting = self.0.connect_with(client, address, server_name)?;
        Ok(Connection(connecting.await?))
    }

    /// The next connection that somebody dials, once its handshake is through; `None` if the endpoint is
    /// closed.
    pub(crate) async fn accept(&self) -> Option<Result<Connection, ConnectionError>> {
        let incoming = self.0.accept().await?;
        let accepted = incoming.await.map(Connection);
        Some(accepted.map_err(Into::into))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Accepts with another configuration from now on, or with none nobody.
    pub(crate) fn set_server_config(&self, config: Option<ServerConfig>) {
        self.0.set_server_config(config.map(|config| config.0));
    }

    /// Closes all connections, and says why. Nobody is accepted any more.
    pub(crate) fn close(&self, code: CloseCode, reason: &[u8]) {
        self.0.close(close_code(code), reason);
    }

    /// Closes an endpoint, tells those it talks to, and waits until its port is free. The caller has ended
    /// everything that holds a handle to it or to a connection of it.
    pub(crate) async fn shut_down(self, closed: oneshot::Receiver<()>) {
        self.close(CloseCode::Shutdown, b"the node shuts down");
        // What does not get through in time the others notice by themselves.
        let _ = timeout(DRAIN, self.0.wait_idle()).await;
        drop(self);
        let _ = timeout(DRAIN, closed).await;
    }
}

impl ConnectionConfig {
    pub(crate) fn new(settings: &TransportSettings, windows: Windows) -> Self {
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
        let idle = settings.idle.clamp(IDLE_MIN, Duration::from_secs(3600));
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
        Self(Arc::new(transport))
    }
}

impl ServerConfig {
    pub(crate) fn new(tls: ServerTls, config: &ConnectionConfig) -> Self {
        let mut server = quinn::ServerConfig::with_crypto(tls.0);
        server
            .transport_config(Arc::clone(&config.0))
            .migration(false)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(1 << 20);
        Self(server)
    }
}

/// How long closing waits for the others.
const DRAIN: Duration = Duration::from_millis(500);

/// An idle timeout below three probe timeouts is none (RFC 9000 §10.1), and before the first measurement one of
/// those includes what the other side may delay an acknowledgement by: 25 ms unless it says otherwise.
const IDLE_MIN: Duration = Duration::from_millis(100);
const _: () = assert!(IDLE_MIN.as_millis() > 3 * 25);

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
        let set = format!(
            "{:?}",
            ConnectionConfig::new(&TransportSettings::default(), windows)
        );
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
