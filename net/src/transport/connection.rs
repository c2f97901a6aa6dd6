//! A connection and its streams: what the lanes need of them, and nothing else.
//!
//! Each is the library's own under another name. Nothing is copied, boxed or looked up on the way.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::VarInt;
use rustls::pki_types::CertificateDer;

use super::error::{ConnectionError, ReadError, WriteError, close_code};
use crate::error::CloseCode;

/// A connection whose handshake is through. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection(pub(super) quinn::Connection);

/// The sending half of a stream.
#[derive(Debug)]
pub(crate) struct SendStream(quinn::SendStream);

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) struct RecvStream(quinn::RecvStream);

/// What has gone over a connection, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionStats {
    /// Round-trip time, smoothed.
    pub(crate) rtt: Duration,
    /// Bytes of a packet.
    pub(crate) mtu: u16,
    pub(crate) lost_packets: u64,
    pub(crate) sent_packets: u64,
    pub(crate) sent_datagrams: u64,
    pub(crate) received_datagrams: u64,
}

impl Connection {
    /// Opens a stream to send by, once the other side allows one more.
    pub(crate) async fn open_uni(&self) -> Result<SendStream, ConnectionError> {
        Ok(SendStream(self.0.open_uni().await?))
    }

    /// Opens a stream for both directions, once the other side allows one more.
    pub(crate) async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let (send, receive) = self.0.open_bi().await?;
        Ok((SendStream(send), RecvStream(receive)))
    }

    /// The next stream that the other side has opened to send by, in the order in which it did.
    pub(crate) async fn accept_uni(&self) -> Result<RecvStream, ConnectionError> {
        Ok(RecvStream(self.0.accept_uni().await?))
    }

    /// The next stream that the other side has opened for both directions.
    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let (send, receive) = self.0.accept_bi().await?;
        Ok((SendStream(send), RecvStream(receive)))
    }

    /// Waits until the connection has ended, and says why.
    pub(crate) async fn closed(&self) -> ConnectionError {
        self.0.closed().await.into()
    }

    /// Why the connection has ended, if it has.
    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        self.0.close_reason().map(Into::into)
    }

    /// Ends the connection, and says why.
    pub(crate) fn close(&self, code: CloseCode, reason: &[u8]) {
        self.0.close(close_code(code), reason);
    }

    /// The certificates that the other side has shown. The handshake has verified them.
    pub(crate) fn peer_certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        let identity = self.0.peer_identity()?;
        identity.downcast().ok().map(|chain| *chain)
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// A number that no other connection of this endpoint has at the same time.
    pub(crate) fn stable_id(&self) -> usize {
        self.0.stable_id()
    }

    pub(crate) fn stats(&self) -> ConnectionStats {
        let stats = self.0.stats();
        ConnectionStats {
            rtt: stats.path.rtt,
            mtu: stats.path.current_mtu,
            lost_packets: stats.path.lost_packets,
            sent_packets: stats.path.sent_packets,
            sent_datagrams: stats.udp_tx.datagrams,
            received_datagrams: stats.udp_rx.datagrams,
        }
    }
}

impl SendStream {
    /// Hands over a chunk, once there is room for all of it.
    pub(crate) async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        Ok(self.0.write_chunk(chunk).await?)
    }

    /// Hands over chunks, once there is room for all of them. They are empty afterwards.
    pub(crate) async fn write_all_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<(), WriteError> {
        Ok(self.0.write_all_chunks(chunks).await?)
    }

    /// Hands over a copy of these bytes.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        Ok(self.0.write_all(bytes).await?)
    }

    /// Says that nothing follows. Of a stream that has ended already that is true, too.
    pub(crate) fn finish(&mut self) {
        let _ = self.0.finish();
    }

    /// Waits until the other side has everything, or wants no more.
    pub(crate) async fn stopped(&self) {
        // If the connection is gone, nobody is left to have it.
        let _ = self.0.stopped().await;
    }

    /// What has a higher priority goes first.
    pub(crate) fn set_priority(&self, priority: i32) -> Result<(), WriteError> {
        self.0.set_priority(priority).map_err(|_| WriteError::Lost)
    }

    /// Abandons the stream, so that what has arrived of it is not taken for whole. It may have ended
    /// already, which is as good.
    pub(crate) fn reset(&mut self, code: u32) {
        let _ = self.0.reset(VarInt::from_u32(code));
    }
}

impl RecvStream {
    /// Waits for chunks, and says how many came; `None` if the stream has ended.
    pub(crate) async fn read_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<Option<usize>, ReadError> {
        Ok(self.0.read_chunks(chunks).await?)
    }

    /// Fills `bytes`.
    pub(crate) async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ReadError> {
        Ok(self.0.read_exact(bytes).await?)
    }

    /// Tells the sender to stop. The stream may have ended already, which is as good.
    pub(crate) fn stop(&mut self, code: u32) {
        let _ = self.0.stop(VarInt::from_u32(code));
    }
}
