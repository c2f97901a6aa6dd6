//! Who a node is to its peers and clients.

use std::path::Path;

use logdrive_net::{Credentials, Role, TlsError};
use logdrive_raft::NodeId;

/// Certificate, key and authority of a node.
#[derive(Debug)]
pub struct Tls {
    pub(crate) credentials: Credentials,
}

impl Tls {
    /// Reads the files that `logdrive tls issue --role peer --node ID` wrote into `dir`.
    pub fn dir(dir: impl AsRef<Path>, node: u64) -> Result<Self, TlsError> {
        let credentials = Credentials::load(dir.as_ref(), Role::Peer, NodeId(node))?;
        Ok(Self { credentials })
    }
}

impl From<Credentials> for Tls {
    fn from(credentials: Credentials) -> Self {
        Self { credentials }
    }
}
