//! Why there is no client, why a proposal has no answer, and why a batch was not taken.

use logdrive_raft::NodeId;

use super::Batch;
use crate::error::{LinkError, NetError};
use crate::protocol::Code;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is nowhere to connect to.
    #[error("no address given")]
    NoAddress,
    /// The certificate is not for clients.
    #[error("certificate is for {found}: issue one with `logdrive tls issue --role client`")]
    Identity {
        /// Whom it names.
        found: String,
    },
    /// The certificate that is to take the place of another is not for the same client.
    #[error(
        "certificate is for {found}, and this is client {client} of cluster {cluster}: issue one for it"
    )]
    Another {
        /// Whom it names.
        found: String,
        /// The cluster of the client.
        cluster: String,
        /// The client.
        client: NodeId,
    },
    /// Networking could not be set up.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Nobody could be reached.
    #[error("no server reached: {}", join(errors))]
    Unreachable {
        /// Why, address by address.
        errors: Vec<(String, LinkError)>,
    },
}

fn join(errors: &[(String, LinkError)]) -> String {
    let each: Vec<String> = errors
        .iter()
        .map(|(at, error)| format!("{at}: {error}"))
        .collect();
    each.join("; ")
}

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It is in no log and never will be.
    #[error(
        "{code}; the proposal was not appended and will not be{}",
        because(detail)
    )]
    NeverAppended {
        /// Why.
        code: Code,
        /// What went wrong with connections, if that was it.
        detail: Option<String>,
    },
    /// It may be in the log once, or not at all.
    #[error("{code}; the proposal may have been appended, or not: ask the state machine")]
    MayYetCommit {
        /// Why nobody knows.
        code: Code,
    },
}

fn because(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map_or_else(String::new, |detail| format!(" ({detail})"))
}

impl ProposeError {
    /// The reason.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NeverAppended { code, .. } | Self::MayYetCommit { code } => *code,
        }
    }
}

/// Why a node was not asked for a snapshot, or does not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The node was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It was, and refused; or had not answered when the time was up.
    #[error("{code}")]
    Refused {
        /// Why.
        code: Code,
    },
}

/// Why a batch was not taken. None of it will be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As much as may be on its way is on its way.
    #[error("as many proposals as may be on their way are")]
    Full(Batch),
    /// There is nowhere for answers to go.
    #[error("the client was connected without a sink for answers")]
    NoSink(Batch),
}
