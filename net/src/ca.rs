//! A certificate authority for one cluster: what `logdrive tls init` and `tls issue` do.
//!
//! Meant for development and for clusters without an authority of their own. The authority's key belongs
//! to whoever runs the cluster, and never on a node.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use logdrive_raft::NodeId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::identity::{
    ClusterName, Identity, IdentityError, Role, authority_uri, cluster_of_authority,
};
use crate::tls::{AUTHORITY_CERTIFICATE, TlsError, check_key_is_private, file_stem};

/// An authority that can issue certificates of one cluster.
pub struct Authority {
    cluster: ClusterName,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What to issue.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IssueRequest {
    /// What the holder may be.
    pub role: Role,
    /// Which one.
    pub id: NodeId,
    /// Further names or addresses that the certificate shall bear, for tools other than ours.
    pub sans: Vec<String>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// Why an authority or a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// There is an authority already.
    #[error("{} exists: an authority is made once; choose another directory", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// A file could not be written or read.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no authority here.
    #[error(
        "no {} here: make an authority with `logdrive tls init --dir {} --cluster NAME`",
        path.display(),
        dir.display()
    )]
    Missing {
        /// The file that is missing.
        path: PathBuf,
        /// The directory.
        dir: PathBuf,
    },
    /// The authority's files are not what they should be.
    #[error("{}: {source}", path.display())]
    Authority {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// The authority's key is open to others.
    #[error(transparent)]
    Key(#[from] TlsError),
    /// A node or client has a number from 1 on.
    #[error("an id of 0 names nobody: give a number from 1 on")]
    Id,
    /// A name that a certificate cannot bear.
    #[error("{san:?} is neither an IP address nor a DNS name")]
    San {
        /// The name.
        san: String,
    },
    /// The validity is empty.
    #[error("a certificate needs at least one day of validity")]
    Validity,
    /// The certificate could not be made.
    #[error("make certificate")]
    Make(#[from] rcgen::Error),
}

impl IssueRequest {
    /// A certificate that is valid from an hour ago, for clocks that differ, and for so many days.
    #[must_use]
    pub fn new(role: Role, id: NodeId, days: u32) -> Self {
        let now = SystemTime::now();
        Self {
            role,
            id,
            sans: Vec::new(),
            not_before: now - CLOCK_SKEW,
            not_after: now + DAY * days,
        }
    }
}

impl Authority {
    /// A new authority, valid for ten years. Nothing is written.
    pub fn create(cluster: ClusterName) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let params = authority_params(&cluster)?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            cluster,
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A new authority, written to `dir` as `ca.crt` and `ca.key`.
    pub fn init(dir: &Path, cluster: ClusterName) -> Result<Self, CaError> {
        fs::create_dir_all(dir).map_err(|source| CaError::Io {
            what: "create directory",
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join(AUTHORITY_CERTIFICATE);
        if path.exists() || dir.join(AUTHORITY_KEY).exists() {
            return Err(CaError::Exists { path });
        }
        let authority = Self::create(cluster)?;
        let key_pem = authority.issuer.key().serialize_pem();
        write_file(&dir.join(AUTHORITY_KEY), key_pem.as_bytes(), true)?;
        write_file(&path, authority.certificate_pem.as_bytes(), false)?;
        Ok(authority)
    }

    /// The authority in `dir`.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(AUTHORITY_CERTIFICATE);
        let certificate_pem = read_file(dir, &path)?;
        let key_path = dir.join(AUTHORITY_KEY);
        let key_pem = read_file(dir, &key_path)?;
        check_key_is_private(&key_path)?;
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| {
                CaError::Authority {
                    path: path.clone(),
                    source: IdentityError::Certificate {
                        what: error.to_string(),
                    },
                }
            })?;
        let cluster = cluster_of_authority(&certificate)
            .map_err(|source| CaError::Authority { path, source })?;
        let params = authority_params(&cluster)?;
        let issuer = Issuer::new(params, KeyPair::from_pem(&key_pem)?);
        Ok(Self {
            cluster,
            certificate_pem,
            issuer,
        })
    }

    /// The cluster it issues for.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Its own certificate, which everybody in the cluster trusts.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate. Nothing is written.
    pub fn issue(&self, request: &IssueRequest) -> Result<Issued, CaError> {
        if request.id.0 == 0 {
            return Err(CaError::Id);
        }
        if since_epoch(request.not_after) <= since_epoch(request.not_before) {
            return Err(CaError::Validity);
        }
        let identity = Identity {
            cluster: self.cluster.clone(),
            role: request.role,
            id: request.id,
        };
        let mut names = identity.dns_names();
        names.extend(request.sans.iter().cloned());
        let mut params = CertificateParams::new(names).map_err(|_| CaError::San {
            san: request.sans.join(","),
        })?;
        for san in &request.sans {
            let is_address = san.parse::<std::net::IpAddr>().is_ok();
            if !is_address && rustls::pki_types::DnsName::try_from(san.as_str()).is_err() {
                return Err(CaError::San { san: san.clone() });
            }
        }
        params.subject_alt_names.push(uri(&identity.to_string())?);
        let name = format!("{} {}", identity.role, identity.id);
        params.distinguished_name = distinguished_name(&name);
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(request.not_before);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(request.not_after);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match request.role {
            Role::Peer => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Role::Client | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Issues a certificate into `dir`, as `ROLE-ID.crt` and `ROLE-ID.key`, replacing what was there. The
    /// authority's certificate is put beside them, so that the directory is complete for its holder.
    pub fn issue_into(&self, dir: &Path, request: &IssueRequest) -> Result<PathBuf, CaError> {
        fs::create_dir_all(dir).map_err(|source| CaError::Io {
            what: "create directory",
            path: dir.to_owned(),
            source,
        })?;
        let issued = self.issue(request)?;
        let stem = file_stem(request.role, request.id);
        let path = dir.join(format!("{stem}.crt"));
        write_file(
            &dir.join(format!("{stem}.key")),
            issued.key_pem.as_bytes(),
            true,
        )?;
        write_file(&path, issued.certificate_pem.as_bytes(), false)?;
        let authority = dir.join(AUTHORITY_CERTIFICATE);
        if !authority.exists() {
            write_file(&authority, self.certificate_pem.as_bytes(), false)?;
        }
        Ok(path)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cluster = &self.cluster;
        f.debug_struct("Authority")
            .field("cluster", cluster)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pem = &self.certificate_pem;
        f.debug_struct("Issued")
            .field("certificate_pem", pem)
            .finish_non_exhaustive()
    }
}

/// The same parameters for the same cluster at any time: only name and key identifier go into what is
/// issued, so an authority is loaded again without parsing its certificate back into parameters.
fn authority_params(cluster: &ClusterName) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&format!("logdrive {cluster} authority"));
    params.subject_alt_names = vec![uri(&authority_uri(cluster))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now - CLOCK_SKEW);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now + DAY * AUTHORITY_DAYS);
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, CaError> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

fn distinguished_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "logdrive");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Whole seconds from 1970 to `time`.
fn since_epoch(time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    Duration::from_secs(since.unwrap_or_default().as_secs())
}

fn read_file(dir: &Path, path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            let dir = dir.to_owned();
            return CaError::Missing { path, dir };
        }
        CaError::Io {
            what: "read",
            path,
            source,
        }
    })
}

/// Writes beside and renames, so that nobody reads half a file, and a key is never open to others.
fn write_file(path: &Path, bytes: &[u8], private: bool) -> Result<(), CaError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| CaError::Io { what, path, source }
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if private { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = private;
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &beside)(error));
        }
        _ => {}
    }
    let mut file = options.open(&beside).map_err(failed("create", &beside))?;
    file.write_all(bytes).map_err(failed("write", &beside))?;
    file.sync_all().map_err(failed("write", &beside))?;
    drop(file);
    fs::rename(&beside, path).map_err(failed("write", path))
}

const AUTHORITY_KEY: &str = "ca.key";
const AUTHORITY_DAYS: u32 = 3650;
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
