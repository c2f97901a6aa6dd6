//! Keys and certificates of one process, checked when they are loaded, and the TLS configurations made of
//! them.
//!
//! TLS 1.3 with AES-128-GCM only, certificates on both sides always, one provider (ring) passed by hand.
//! Resumption and 0-RTT are off: a resumed handshake does not look at the certificate again, and what
//! comes early can be replayed.

mod error;
mod verify;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use logdrive_raft::NodeId;
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use self::verify::verify_own;
use crate::error::NetError;
use crate::identity::{ClusterName, Identity, IdentityError, Role, cluster_of_authority};
use crate::transport::{ClientTls, Connection, ServerTls};

pub use self::error::TlsError;

/// A certificate chain, its key, and whom to trust. What [`crate::ca::Authority::issue_into`] wrote.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl Credentials {
    /// Loads `ca.crt` and `ROLE-ID.crt` with its key from `dir`, and checks them.
    pub fn load(dir: &Path, role: Role, id: NodeId) -> Result<Self, TlsError> {
        let stem = file_stem(role, id);
        let path = dir.join(format!("{stem}.crt"));
        let key_path = dir.join(format!("{stem}.key"));
        let authority = read(&dir.join(AUTHORITY_CERTIFICATE))?;
        let chain = read(&path)?;
        let key = read(&key_path)?;
        check_key_is_private(&key_path)?;
        let file = path.display().to_string();
        let credentials = Self::from_pem_named(&file, &authority, &chain, &key, UnixTime::now())?;
        let found = &credentials.identity;
        if found.role != role || found.id != id {
            let wanted = format!("{role} {id}");
            let found = found.to_string();
            return Err(TlsError::WrongIdentity {
                file,
                found,
                wanted,
            });
        }
        Ok(credentials)
    }

    /// Loads what a client has: the first `client-ID.crt` of `dir`, else the first `admin-ID.crt`.
    pub fn load_client(dir: &Path) -> Result<Self, TlsError> {
        let found = Self::listed(dir)?.into_iter().min();
        Self::load_found(dir, found)
    }

    /// Loads what an operator has: the first `admin-ID.crt` of `dir`, else the first `client-ID.crt`, which may ask
    /// and is told what it may not.
    pub fn load_admin(dir: &Path) -> Result<Self, TlsError> {
        let key = |(role, id): &(Role, u64)| (*role != Role::Admin, *id);
        let found = Self::listed(dir)?.into_iter().min_by_key(key);
        Self::load_found(dir, found)
    }

    fn load_found(dir: &Path, found: Option<(Role, u64)>) -> Result<Self, TlsError> {
        let (role, id) = found.ok_or_else(|| TlsError::NoClient {
            dir: dir.to_owned(),
        })?;
        Self::load(dir, role, NodeId(id))
    }

    /// The certificates of clients and admins in a directory, by their files' names.
    fn listed(dir: &Path) -> Result<Vec<(Role, u64)>, TlsError> {
        let entries = fs::read_dir(dir).map_err(|source| TlsError::Io {
            path: dir.to_owned(),
            source,
        })?;
        let mut found: Vec<(Role, u64)> = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| TlsError::Io {
                path: dir.to_owned(),
                source,
            })?;
            let name = entry.file_name();
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".crt")) else {
                continue;
            };
            let Some((role, id)) = stem.split_once('-') else {
                continue;
            };
            if let (Ok(role @ (Role::Client | Role::Admin)), Ok(id)) = (role.parse(), id.parse()) {
                found.push((role, id));
            }
        }
        Ok(found)
    }

    /// The same from PEM in memory, checked as of `now`.
    pub fn from_pem(
        authority: &str,
        chain: &str,
        key: &str,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(since_epoch.unwrap_or_default());
        Self::from_pem_named("certificate", authority, chain, key, now)
    }

    fn from_pem_named(
        file: &str,
        authority: &str,
        chain: &str,
        key: &str,
        now: UnixTime,
    ) -> Result<Self, TlsError> {
        let authorities = certificates(AUTHORITY_CERTIFICATE, authority)?;
        let chain = certificates(file, chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| TlsError::Pem {
            file: format!("key of {file}"),
            what: error.to_string(),
        })?;
        let of_file = |source| TlsError::Identity {
            file: file.to_owned(),
            source,
        };
        let identity = Identity::of_certificate(&chain[0]).map_err(of_file)?;
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            let cluster = cluster_of_authority(&certificate).map_err(|source| {
                let file = AUTHORITY_CERTIFICATE.to_owned();
                TlsError::Identity { file, source }
            })?;
            if cluster != identity.cluster {
                return Err(TlsError::WrongIdentity {
                    file: file.to_owned(),
                    found: identity.to_string(),
                    wanted: format!("cluster {cluster}, as {AUTHORITY_CERTIFICATE} says"),
                });
            }
            roots.add(certificate).map_err(not_taken)?;
        }
        verify_own(file, &chain, &roots, now)?;
        let of_key = |error: rustls::Error| TlsError::Key {
            file: file.to_owned(),
            what: error.to_string(),
        };
        let provider = crypto_provider();
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
            .map_err(of_key)?;
        Ok(Self {
            identity,
            chain,
            key: Arc::new(key),
            roots: Arc::new(roots),
        })
    }

    /// Whom they name.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The cluster they belong to.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.identity.cluster
    }

    /// Fails unless they are of the peer with this id, and of this cluster if one is named.
    pub(crate) fn check_peer(
        &self,
        id: NodeId,
        cluster: Option<&ClusterName>,
    ) -> Result<(), NetError> {
        let found = &self.identity;
        let same_cluster = cluster.is_none_or(|cluster| found.cluster == *cluster);
        if found.role == Role::Peer && found.id == id && same_cluster {
            return Ok(());
        }
        let of_cluster = cluster.map_or_else(String::new, |name| format!(" of cluster {name}"));
        Err(NetError::Identity {
            found: found.to_string(),
            wanted: format!("peer {id}{of_cluster}"),
        })
    }

    /// What to dial with, speaking `alpn`.
    pub(crate) fn client_config(&self, alpn: &[u8]) -> Result<ClientTls, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(not_taken)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(not_taken)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        Ok(ClientTls::new(config))
    }

    /// What to accept with, speaking `alpn`. A certificate of this cluster is asked for, whatever its role.
    pub(crate) fn server_config(&self, alpn: &[u8]) -> Result<ServerTls, TlsError> {
        let roots = Arc::clone(&self.roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto_provider())
            .build()
            .map_err(not_taken)?;
        let mut config = rustls::ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(not_taken)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(not_taken)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(ServerTls::new(config))
    }
}

fn not_taken(error: impl ToString) -> TlsError {
    let what = error.to_string();
    TlsError::Config { what }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let identity = &self.identity;
        f.debug_struct("Credentials")
            .field("identity", identity)
            .finish_non_exhaustive()
    }
}

/// The identity of whoever is at the other end of `connection`. The handshake has verified its chain.
pub(crate) fn identity_of(connection: &Connection) -> Result<Identity, IdentityError> {
    let chain = connection
        .peer_certificates()
        .ok_or(IdentityError::Absent)?;
    Identity::of_certificate(chain.first().ok_or(IdentityError::Absent)?)
}

/// ring with the one suite we speak.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![provider::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..provider::default_provider()
    })
}

/// The name of the files of one certificate.
pub(crate) fn file_stem(role: Role, id: NodeId) -> String {
    format!("{role}-{id}")
}

/// Fails if others than its owner can read or write a key.
pub(crate) fn check_key_is_private(path: &Path) -> Result<(), TlsError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let path = path.to_owned();
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(source) => return Err(TlsError::Io { path, source }),
        };
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TlsError::KeyOpen { path, mode });
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => TlsError::Missing { path },
            _ => TlsError::Io { path, source },
        }
    })
}

fn certificates(file: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |what: String| TlsError::Pem {
        file: file.to_owned(),
        what,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| bad(error.to_string()))?;
    if all.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(all)
}

/// The authority's certificate, in every directory.
pub(crate) const AUTHORITY_CERTIFICATE: &str = "ca.crt";

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::ca::{Authority, CaError, IssueRequest};

    fn authority(cluster: &str) -> Authority {
        Authority::create(cluster.parse().unwrap()).unwrap()
    }

    #[test]
    fn what_is_issued_can_be_loaded_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let made = Authority::init(dir.path(), "blue".parse().unwrap()).unwrap();
        assert_eq!(made.cluster().as_str(), "blue");
        // Loaded anew, it issues what the first one's certificate vouches for.
        let loaded = Authority::load(dir.path()).unwrap();
        let mut request = IssueRequest::new(Role::Peer, NodeId(3), 30);
        request.sans = vec!["10.0.0.3".to_owned(), "db3.example.org".to_owned()];
        let nodes = dir.path().join("node 3");
        loaded.issue_into(&nodes, &request).unwrap();
        let credentials = Credentials::load(&nodes, Role::Peer, NodeId(3)).unwrap();
        assert_eq!(credentials.identity().to_string(), "logdrive://blue/peer/3");
        credentials.client_config(b"test").unwrap();
        credentials.server_config(b"test").unwrap();
        let again = Authority::init(dir.path(), "blue".parse().unwrap());
        assert!(matches!(again, Err(CaError::Exists { .. })));
        // Replacing a certificate is no error.
        loaded.issue_into(&nodes, &request).unwrap();
        assert!(matches!(
            Credentials::load_client(&nodes),
            Err(TlsError::NoClient { .. })
        ));
        for (role, id) in [(Role::Admin, 1), (Role::Client, 9), (Role::Client, 10)] {
            let request = IssueRequest::new(role, NodeId(id), 30);
            loaded.issue_into(&nodes, &request).unwrap();
        }
        let client = Credentials::load_client(&nodes).unwrap();
        assert_eq!(client.identity().to_string(), "logdrive://blue/client/9");
        let admin = Credentials::load_admin(&nodes).unwrap();
        assert_eq!(admin.identity().to_string(), "logdrive://blue/admin/1");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let made = Authority::init(dir.path(), "blue".parse().unwrap()).unwrap();
        made.issue_into(dir.path(), &IssueRequest::new(Role::Peer, NodeId(1), 1))
            .unwrap();
        let key = dir.path().join("peer-1.key");
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Credentials::load(dir.path(), Role::Peer, NodeId(1)).unwrap_err();
        assert!(
            matches!(error, TlsError::KeyOpen { mode: 0o640, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("chmod 600"), "{error}");
        let key = dir.path().join("ca.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
        Authority::load(dir.path()).unwrap_err();
    }

    #[test]
    fn each_wrong_certificate_has_its_own_error() {
        let (blue, green) = (authority("blue"), authority("green"));
        let other_blue = authority("blue");
        let request = IssueRequest::new(Role::Peer, NodeId(1), 1);
        let issued = blue.issue(&request).unwrap();
        let second = blue.issue(&request).unwrap();
        let now = SystemTime::now();
        let load = |authority: &Authority, key: &str, now| {
            let authority = authority.certificate_pem();
            Credentials::from_pem(authority, &issued.certificate_pem, key, now)
        };
        load(&blue, &issued.key_pem, now).unwrap();
        let later = now + Duration::from_secs(3 * 86400);
        let earlier = now - Duration::from_secs(86400);
        let errors = [
            load(&blue, &issued.key_pem, later),
            load(&blue, &issued.key_pem, earlier),
            load(&other_blue, &issued.key_pem, now),
            load(&green, &issued.key_pem, now),
            load(&blue, &second.key_pem, now),
            load(&blue, "nothing", now),
        ];
        let texts = errors.map(|error| error.unwrap_err().to_string());
        let begins = [
            "certificate expired 48 hours ago: issue a new one",
            "certificate is valid only in 23 hours: correct the clock",
            "certificate was not issued by the authority in ca.crt",
            "certificate is for logdrive://blue/peer/1, wanted was cluster green",
            "certificate: its key does not belong to it",
            "key of certificate: ",
        ];
        for (text, begin) in texts.iter().zip(begins) {
            assert!(text.starts_with(begin), "{text}");
        }
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let blue = authority("blue");
        let mut request = IssueRequest::new(Role::Peer, NodeId(0), 1);
        assert!(matches!(blue.issue(&request), Err(CaError::Id)));
        request.id = NodeId(1);
        request.sans = vec!["not a name".to_owned()];
        assert!(matches!(blue.issue(&request), Err(CaError::San { .. })));
        request.sans.clear();
        request.not_after = SystemTime::UNIX_EPOCH;
        assert!(matches!(blue.issue(&request), Err(CaError::Validity)));
    }
}
