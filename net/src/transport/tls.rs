//! TLS configurations, as QUIC takes them.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

/// What to dial with. Clones share it.
#[derive(Clone)]
pub(crate) struct ClientTls(pub(super) Arc<QuicClientConfig>);

/// What to accept with. Clones share it.
#[derive(Clone)]
pub(crate) struct ServerTls(pub(super) Arc<QuicServerConfig>);

impl ClientTls {
    /// `config` speaks TLS 1.3 with the suite of [`crate::tls::crypto_provider`].
    pub(crate) fn new(config: rustls::ClientConfig) -> Self {
        Self(Arc::new(
            QuicClientConfig::try_from(config).expect(HAS_SUITE),
        ))
    }
}

impl ServerTls {
    /// `config` speaks TLS 1.3 with the suite of [`crate::tls::crypto_provider`].
    pub(crate) fn new(config: rustls::ServerConfig) -> Self {
        Self(Arc::new(
            QuicServerConfig::try_from(config).expect(HAS_SUITE),
        ))
    }
}

const HAS_SUITE: &str = "the provider has the suite that QUIC begins with";
