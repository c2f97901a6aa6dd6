//! The round trip of the transport alone: a message over one long-lived stream, and back.
//!
//! Endpoints, TLS and settings are those of replicas, and nothing is behind them: no request can be answered
//! sooner than this. It is what a report holds a latency against.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::identity::any_peer_name;
use crate::secret::NetSecret;
use crate::tls::Credentials;
use crate::transport::{
    Bound, ConnectionConfig, Endpoint, ServerConfig, TransportSettings, Windows,
};

/// One that sends back what it gets.
#[derive(Debug)]
pub struct Echo {
    bound: Bound,
    address: SocketAddr,
}

impl Echo {
    /// Listens on a free port of this machine with the certificate of a peer. Must be called within a tokio
    /// runtime.
    pub fn bind(credentials: &Credentials, settings: &TransportSettings) -> io::Result<Self> {
        let windows = Windows::for_clients(settings.mtu);
        let tls = credentials.server_config(ALPN).map_err(io::Error::other)?;
        let server = ServerConfig::new(tls, &ConnectionConfig::new(settings, windows));
        let bound = Endpoint::bind(local(), settings, &NetSecret::random()?, Some(server))?;
        let address = bound.endpoint.local_addr()?;
        Ok(Self { bound, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves the first connection that comes, a message of so many bytes at a time, until it is closed or
    /// nothing has come for too long.
    pub async fn serve(self, message_bytes: usize) -> io::Result<()> {
        let Bound {
            endpoint, closed, ..
        } = self.bound;
        let served = serve(&endpoint, message_bytes).await;
        endpoint.shut_down(closed).await;
        served
    }
}

async fn serve(endpoint: &Endpoint, message_bytes: usize) -> io::Result<()> {
    let accepted = timeout(PATIENCE, endpoint.accept()).await?;
    let accepted = accepted.ok_or_else(|| io::Error::other("the endpoint is closed"))?;
    let connection = accepted.map_err(io::Error::other)?;
    let stream = timeout(PATIENCE, connection.accept_bi()).await?;
    let (mut send, mut receive) = stream.map_err(io::Error::other)?;
    let mut message = vec![0; message_bytes];
    // Ends with the connection.
    while receive.read_exact(&mut message).await.is_ok() {
        send.write_all(&message).await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Sends messages of so many bytes to an [`Echo`], one after the other, and says how long each took to come
/// back. What comes before the path has settled is not counted.
pub async fn round_trips(
    address: SocketAddr,
    credentials: &Credentials,
    settings: &TransportSettings,
    message_bytes: usize,
    count: usize,
) -> io::Result<Vec<Duration>> {
    let windows = Windows {
        streams_bidi: 0,
        ..Windows::for_clients(settings.mtu)
    };
    let config = ConnectionConfig::new(settings, windows);
    let tls = credentials.client_config(ALPN).map_err(io::Error::other)?;
    let bound = Endpoint::bind(local(), settings, &NetSecret::random()?, None)?;
    let endpoint = bound.endpoint;
    let name = any_peer_name(credentials.cluster());
    let measured = async {
        let connecting = endpoint.connect(&tls, &config, address, &name);
        let connection = timeout(PATIENCE, connecting).await?;
        let connection = connection.map_err(io::Error::other)?;
        let stream = connection.open_bi().await;
        let (mut send, mut receive) = stream.map_err(io::Error::other)?;
        let mut times = Vec::with_capacity(count);
        let mut message = vec![0x5a; message_bytes];
        for number in 0..SETTLING + count {
            let start = Instant::now();
            send.write_all(&message).await.map_err(io::Error::other)?;
            let back = timeout(PATIENCE, receive.read_exact(&mut message)).await?;
            back.map_err(io::Error::other)?;
            if number >= SETTLING {
                times.push(start.elapsed());
            }
        }
        Ok(times)
    };
    let measured = measured.await;
    endpoint.shut_down(bound.closed).await;
    measured
}

fn local() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

const ALPN: &[u8] = b"logdrive-echo";

/// Messages before the first that counts.
const SETTLING: usize = 50;

/// Longer than a round trip takes on a machine that is not lost.
const PATIENCE: Duration = Duration::from_secs(5);
