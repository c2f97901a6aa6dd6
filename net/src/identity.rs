//! Who holds a certificate: `logdrive://CLUSTER/ROLE/ID`, and the DNS names that stand for it in TLS.
//!
//! The URI is what we decide by. TLS libraries match DNS names only, so each certificate bears both: a
//! dialler asks for the DNS name of the node it wants, an acceptor reads the URI of whoever came.
//!
//! The names are read with `rustls-webpki`, which has parsed the same bytes to verify the chain: what one
//! parser verified is not read again by another one that might see something else in it.

use std::fmt;
use std::str::FromStr;

use logdrive_raft::NodeId;
use rustls::pki_types::CertificateDer;

/// The name of a cluster, as certificates and configuration files bear it.
///
/// It becomes part of a DNS name, so it is made of lower-case letters, digits and inner hyphens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

/// What a certificate allows its holder to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A replica: may speak on the peer port.
    Peer,
    /// Uses the cluster: may speak on the client port.
    Client,
    /// Operates the cluster: may speak on the client port, and ask for what changes it.
    Admin,
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// What it may be.
    pub role: Role,
    /// Which one. Of a peer this is its node id.
    pub id: NodeId,
}

/// Why a text or a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The cluster's name has letters it cannot have.
    #[error(
        "cluster name {name:?} is not 1 to {CLUSTER_NAME_MAX} lower-case letters, digits and inner hyphens"
    )]
    ClusterName {
        /// The name.
        name: String,
    },
    /// Not a role.
    #[error("role {role:?} is none of peer, client, admin")]
    Role {
        /// What was given.
        role: String,
    },
    /// Not an identity of ours.
    #[error("{uri:?} is not logdrive://CLUSTER/ROLE/ID")]
    Uri {
        /// What was given.
        uri: String,
    },
    /// The certificate cannot be read.
    #[error("certificate cannot be read: {what}")]
    Certificate {
        /// What the parser says.
        what: String,
    },
    /// The certificate has no identity of ours.
    #[error("certificate names no logdrive identity: issue it with `logdrive tls issue`")]
    Absent,
    /// The certificate has more than one identity.
    #[error("certificate names more than one logdrive identity: issue one each")]
    Ambiguous,
}

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = IdentityError;

    fn from_str(name: &str) -> Result<Self, IdentityError> {
        let letters = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let inner = !name.starts_with('-') && !name.ends_with('-');
        if name.is_empty() || name.len() > CLUSTER_NAME_MAX || !inner || !name.bytes().all(letters)
        {
            let name = name.chars().take(2 * CLUSTER_NAME_MAX).collect();
            return Err(IdentityError::ClusterName { name });
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Role {
    /// The role as the URI spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(role: &str) -> Result<Self, IdentityError> {
        match role {
            "peer" => Ok(Self::Peer),
            "client" => Ok(Self::Client),
            "admin" => Ok(Self::Admin),
            _ => Err(IdentityError::Role {
                role: role.chars().take(32).collect(),
            }),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Identity {
    /// The identity that a certificate's URI names bear. The chain must have been verified.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let uris = uris_of(certificate)?;
        let mut ours = uris.iter().filter(|uri| uri.starts_with(SCHEME));
        let uri = ours.next().ok_or(IdentityError::Absent)?;
        if ours.next().is_some() {
            return Err(IdentityError::Ambiguous);
        }
        uri.parse()
    }

    /// The DNS names that a certificate of this identity bears.
    #[must_use]
    pub fn dns_names(&self) -> Vec<String> {
        let (cluster, id) = (&self.cluster, self.id);
        match self.role {
            Role::Peer => vec![peer_name(cluster, id), any_peer_name(cluster)],
            Role::Client | Role::Admin => {
                vec![format!("{}{id}.c-{cluster}.{DOMAIN}", self.role)]
            }
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError::Uri {
            uri: uri.chars().take(128).collect(),
        };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let number: u64 = id.parse().map_err(|_| bad())?;
        // One spelling an identity: no sign, no leading zero.
        if number == 0 || number.to_string() != id {
            return Err(bad());
        }
        Ok(Self {
            cluster: cluster.parse()?,
            role: role.parse()?,
            id: NodeId(number),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, role, id } = self;
        write!(f, "{SCHEME}{cluster}/{role}/{id}")
    }
}

/// The DNS name of one peer.
pub(crate) fn peer_name(cluster: &ClusterName, id: NodeId) -> String {
    format!("n{id}.c-{cluster}.{DOMAIN}")
}

/// The DNS name that every peer of a cluster bears: what a client asks for, which knows addresses only.
pub(crate) fn any_peer_name(cluster: &ClusterName) -> String {
    format!("peer.c-{cluster}.{DOMAIN}")
}

/// The URI that a cluster's authority bears.
pub(crate) fn authority_uri(cluster: &ClusterName) -> String {
    format!("{SCHEME}{cluster}/{AUTHORITY}")
}

/// The cluster that an authority's certificate is for.
pub(crate) fn cluster_of_authority(
    certificate: &CertificateDer<'_>,
) -> Result<ClusterName, IdentityError> {
    for uri in uris_of(certificate)? {
        if let Some((cluster, AUTHORITY)) = uri.strip_prefix(SCHEME).and_then(|r| r.split_once('/'))
        {
            return cluster.parse();
        }
    }
    Err(IdentityError::Absent)
}

fn uris_of(certificate: &CertificateDer<'_>) -> Result<Vec<String>, IdentityError> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| {
        IdentityError::Certificate {
            what: error.to_string(),
        }
    })?;
    Ok(parsed.valid_uri_names().map(str::to_owned).collect())
}

/// The longest name of a cluster. With `c-` before it, it stays within a DNS label.
pub const CLUSTER_NAME_MAX: usize = 40;

const SCHEME: &str = "logdrive://";
const AUTHORITY: &str = "ca";
const DOMAIN: &str = "logdrive.internal";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_spelling() {
        let text = "logdrive://blue-1/peer/3";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.role, Role::Peer);
        let names = [
            "n3.c-blue-1.logdrive.internal",
            "peer.c-blue-1.logdrive.internal",
        ];
        assert_eq!(identity.dns_names(), names);
        for other in [
            "logdrive://blue-1/peer/03",
            "logdrive://blue-1/peer/+3",
            "logdrive://blue-1/peer/0",
            "logdrive://blue-1/peer/3/",
            "logdrive://blue-1/peer",
            "logdrive://Blue/peer/3",
            "logdrive://-b/peer/3",
            "logdrive:///peer/3",
            "logdrive://b/ca/3",
            "spiffe://b/peer/3",
            "logdrive://b/peer/18446744073709551616",
        ] {
            other.parse::<Identity>().unwrap_err();
        }
    }

    #[test]
    fn a_cluster_name_is_a_dns_label() {
        "a".parse::<ClusterName>().unwrap();
        "a".repeat(CLUSTER_NAME_MAX).parse::<ClusterName>().unwrap();
        for bad in [
            "",
            "a_b",
            "a.b",
            "A",
            "-a",
            "a-",
            &"a".repeat(CLUSTER_NAME_MAX + 1),
        ] {
            bad.parse::<ClusterName>().unwrap_err();
        }
    }
}
