//! What can go wrong with a connection and its streams, as far as anybody here acts on it.

use quinn::{ReadExactError, TransportErrorCode, VarInt};

use crate::error::CloseCode;

/// Why a connection has ended, or never came to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// Nothing came for too long.
    #[error("no packet for a whole idle timeout")]
    TimedOut,
    /// The other side knows nothing of it: it has restarted.
    #[error("reset by the other side")]
    Reset,
    /// The other side has closed it, and says why.
    #[error("closed by the other side with code {number}: {reason}")]
    Closed { number: u64, reason: String },
    /// TLS has failed, as one of the sides says.
    #[error("TLS alert {alert}: {detail}")]
    Alert {
        alert: u8,
        by_peer: bool,
        detail: String,
    },
    /// The other side takes nobody at the moment.
    #[error("refused before the handshake")]
    Busy,
    /// What has no name here.
    #[error("{what}")]
    Other { what: String },
}

/// Why a stream takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// The other side wants no more of it, for this reason.
    #[error("stopped with code {0}")]
    Stopped(u64),
    /// The stream or its connection has ended.
    #[error("the stream has ended")]
    Lost,
}

/// Why a stream gives no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// The stream was abandoned, or its connection has ended.
    #[error("the stream was abandoned")]
    Lost,
}

impl From<quinn::ConnectionError> for ConnectionError {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as Quic;
        match error {
            Quic::TimedOut => Self::TimedOut,
            Quic::Reset => Self::Reset,
            Quic::ApplicationClosed(close) => Self::Closed {
                number: close.error_code.into_inner(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            Quic::TransportError(error) => match alert(u64::from(error.code)) {
                Some(alert) => Self::Alert {
                    alert,
                    by_peer: false,
                    detail: error.reason,
                },
                None => Self::other(&error),
            },
            Quic::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
            {
                Self::Busy
            }
            Quic::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
                Some(alert) => Self::Alert {
                    alert,
                    by_peer: true,
                    detail: String::from_utf8_lossy(&close.reason).into_owned(),
                },
                None => Self::other(&close),
            },
            error => Self::other(&error),
        }
    }
}

impl ConnectionError {
    fn other(error: &impl ToString) -> Self {
        let what = error.to_string();
        Self::Other { what }
    }
}

/// The TLS alert in a QUIC error code (RFC 9001 §4.8).
fn alert(code: u64) -> Option<u8> {
    (0x100..0x200)
        .contains(&code)
        .then_some((code & 0xff) as u8)
}

impl From<quinn::ConnectError> for ConnectionError {
    fn from(error: quinn::ConnectError) -> Self {
        Self::other(&error)
    }
}

impl From<quinn::WriteError> for WriteError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped(code.into_inner()),
            _ => Self::Lost,
        }
    }
}

impl From<ConnectionError> for WriteError {
    fn from(_: ConnectionError) -> Self {
        Self::Lost
    }
}

impl From<quinn::ReadError> for ReadError {
    fn from(_: quinn::ReadError) -> Self {
        Self::Lost
    }
}

impl From<ReadExactError> for ReadError {
    fn from(_: ReadExactError) -> Self {
        Self::Lost
    }
}

/// A code as it stands in a frame.
pub(super) fn close_code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}
