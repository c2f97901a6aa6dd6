//! How a client behaves.

use std::sync::Arc;
use std::time::Duration;

use super::AnswerSink;
use crate::transport::TransportSettings;

/// How a client behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How long [`super::Client::propose`] waits.
    pub timeout: Duration,
    /// The most proposals on their way at once.
    pub in_flight_max: usize,
    /// The most bytes of proposals on their way at once.
    pub in_flight_bytes_max: usize,
    /// Packet size, timeouts, socket buffers.
    pub transport: TransportSettings,
    /// Where answers to batches go. Needed for [`super::Client::submit`].
    pub sink: Option<Arc<dyn AnswerSink>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            in_flight_max: 1 << 20,
            in_flight_bytes_max: 256 << 20,
            // A node that was killed says nothing, and until that is noticed what is sent there waits in vain.
            transport: TransportSettings {
                idle: Duration::from_millis(500),
                keep_alive: Duration::from_millis(100),
                ..TransportSettings::default()
            },
            sink: None,
        }
    }
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (timeout, transport) = (&self.timeout, &self.transport);
        let mut debug = f.debug_struct("ClientOptions");
        debug
            .field("timeout", timeout)
            .field("transport", transport)
            .finish_non_exhaustive()
    }
}
