//! Why a connection is not there, in words that say what to do.

use std::io;

use logdrive_raft::NodeId;

use crate::tls::TlsError;
use crate::transport::{Connection, ConnectionError};

/// Why networking could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The address cannot be listened on.
    #[error("listen on {address}: {}", advice_for_bind(source))]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates do not serve.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is for somebody else.
    #[error("certificate is for {found}, but this is {wanted}: issue the right one")]
    Identity {
        /// Whom it names.
        found: String,
        /// Who this is.
        wanted: String,
    },
}

fn advice_for_bind(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use: another node may be running; stop it or choose another port"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address: check listen.*",
        io::ErrorKind::PermissionDenied => "not permitted: choose a port from 1024 on",
        _ => "refused by the system",
    }
}

/// Why one side closed a connection. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CloseCode {
    /// The node shuts down.
    Shutdown = 1,
    /// A newer connection of the same sender took its place.
    Superseded = 2,
    /// The certificate's role may not speak on this port.
    WrongRole = 3,
    /// Another cluster.
    WrongCluster = 4,
    /// The hello names somebody else than the certificate.
    WrongId = 5,
    /// No protocol in common, or a feature that is not known.
    Version = 6,
    /// Bytes that are no message.
    Malformed = 7,
    /// A message that claims another sender or receiver.
    Forged = 8,
    /// The hello or welcome did not come in time.
    TooSlow = 9,
    /// Too many connections.
    Busy = 10,
}

impl CloseCode {
    /// What a number from the other side means; `None` for one that a later version may have.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        [
            Self::Shutdown,
            Self::Superseded,
            Self::WrongRole,
            Self::WrongCluster,
            Self::WrongId,
            Self::Version,
            Self::Malformed,
            Self::Forged,
            Self::TooSlow,
            Self::Busy,
        ]
        .into_iter()
        .find(|code| *code as u64 == number)
    }

    /// A name that does not change.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Superseded => "superseded",
            Self::WrongRole => "wrong_role",
            Self::WrongCluster => "wrong_cluster",
            Self::WrongId => "wrong_id",
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::TooSlow => "too_slow",
            Self::Busy => "busy",
        }
    }
}

/// Why this side ends a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refusal {
    /// For the other side's program.
    pub code: CloseCode,
    /// For whoever reads its log.
    pub what: String,
}

impl Refusal {
    pub(crate) fn new(code: CloseCode, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { code, what }
    }

    /// Closes `connection` for this reason.
    pub(crate) fn close(&self, connection: &Connection) {
        // A reason has to fit into one packet beside everything else.
        let end = self.what.floor_char_boundary(REASON_BYTES_MAX);
        connection.close(self.code, &self.what.as_bytes()[..end]);
    }
}

/// Why there is no connection to a peer or server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The name has no address.
    #[error("{address:?} cannot be resolved: {what}; check the address")]
    Resolve {
        /// The address as configured.
        address: String,
        /// What the resolver said.
        what: String,
    },
    /// Nobody answers.
    #[error(
        "{address} does not answer: is the node running, and UDP open between the two machines?"
    )]
    Unreachable {
        /// The address.
        address: String,
    },
    /// It answered before and no longer does.
    #[error("no packet for a whole idle timeout: the node or the network is down or stalled")]
    Lost,
    /// It takes nobody at the moment.
    #[error(
        "{address} takes no connections at the moment: it shuts down, or very many begin at once; it is \
         tried again"
    )]
    Busy {
        /// The address.
        address: String,
    },
    /// It has restarted.
    #[error("the node restarted")]
    Restarted,
    /// A certificate did not hold.
    #[error("{what}")]
    Tls {
        /// A name that does not change.
        code: &'static str,
        /// What happened and what to do.
        what: String,
    },
    /// The other side closed the connection.
    #[error("closed by the other side: {}", in_words(*.number, reason))]
    Closed {
        /// A [`CloseCode`], or what a later version has.
        number: u64,
        /// In its words.
        reason: String,
    },
    /// This side closed the connection.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Somebody else answers at the address.
    #[error("at {address} answers {found}, wanted was {wanted}: check the address")]
    WrongNode {
        /// The address.
        address: String,
        /// Who answers.
        found: String,
        /// Who should.
        wanted: NodeId,
    },
    /// QUIC failed in a way that has no name here.
    #[error("connection failed: {what}")]
    Transport {
        /// What it says.
        what: String,
    },
}

fn in_words(number: u64, reason: &str) -> String {
    let name =
        CloseCode::from_number(number).map_or_else(|| number.to_string(), |c| c.name().into());
    if reason.is_empty() {
        name
    } else {
        format!("{name}: {reason}")
    }
}

impl LinkError {
    /// A name that does not change.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Unreachable { .. } => "unreachable",
            Self::Lost => "lost",
            Self::Busy { .. } => "busy",
            Self::Restarted => "restarted",
            Self::Tls { code, .. } => code,
            Self::Closed { number, .. } => {
                CloseCode::from_number(*number).map_or("closed", CloseCode::name)
            }
            Self::Refused(refusal) => refusal.code.name(),
            Self::WrongNode { .. } => "wrong_node",
            Self::Transport { .. } => "transport",
        }
    }

    /// What the end of a connection to `address` means.
    pub(crate) fn from_transport(error: &ConnectionError, address: &str, was_up: bool) -> Self {
        match error {
            ConnectionError::TimedOut if was_up => Self::Lost,
            ConnectionError::TimedOut => Self::Unreachable {
                address: address.to_owned(),
            },
            ConnectionError::Busy => Self::Busy {
                address: address.to_owned(),
            },
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::Closed { number, reason } => Self::Closed {
                number: *number,
                reason: reason.clone(),
            },
            ConnectionError::Alert {
                alert,
                by_peer,
                detail,
            } => tls_error(*alert, *by_peer, address, detail),
            ConnectionError::Other { what } => Self::Transport { what: what.clone() },
        }
    }
}

/// What an alert means, by whom it was raised.
fn tls_error(alert: u8, by_peer: bool, address: &str, detail: &str) -> LinkError {
    let (code, what) = match (alert, by_peer) {
        (45, true) => (
            "tls_expired",
            format!(
                "{address} finds our certificate expired or not yet valid: issue a new one with \
                 `logdrive tls issue`, or correct the clocks"
            ),
        ),
        (45, false) => (
            "tls_expired",
            format!(
                "the certificate of {address} is expired or not yet valid: issue it a new one with \
                 `logdrive tls issue`, or correct the clocks"
            ),
        ),
        (48, true) => (
            "tls_unknown_authority",
            format!(
                "{address} does not trust the authority of our certificate: both sides need \
                 certificates of the same cluster's authority"
            ),
        ),
        (48 | 51, false) => (
            "tls_unknown_authority",
            format!(
                "the certificate of {address} is from another authority: it belongs to another \
                 cluster, or both sides need certificates of the same authority"
            ),
        ),
        (42, false) => (
            "tls_wrong_node",
            format!("another node than the wanted one answers at {address}: check the address"),
        ),
        (43, _) => (
            "tls_wrong_role",
            format!(
                "a certificate between us and {address} may not be used like this: check its role"
            ),
        ),
        (116, _) => (
            "tls_no_certificate",
            format!("{address} demands a certificate: point tls.dir to one"),
        ),
        (120, _) => (
            "tls_wrong_port",
            format!(
                "{address} speaks another protocol: peers dial listen.peer, clients dial listen.client"
            ),
        ),
        _ => (
            "tls_refused",
            format!("TLS with {address} failed (alert {alert}): {detail}"),
        ),
    };
    LinkError::Tls { code, what }
}

const REASON_BYTES_MAX: usize = 256;
