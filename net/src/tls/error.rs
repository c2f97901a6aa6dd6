//! Why keys and certificates cannot be used, in words that say what to do.

use std::io;
use std::path::PathBuf;

use crate::identity::IdentityError;

/// Why keys and certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is not there.
    #[error(
        "no {}: issue it with `logdrive tls issue`, or point tls.dir to where it lies",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A directory has no certificate of a role.
    #[error(
        "no client-ID.crt or admin-ID.crt in {}: issue one with `logdrive tls issue --role client`",
        dir.display()
    )]
    NoClient {
        /// The directory.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key can be read by others than its owner.
    #[error(
        "key {} has mode {mode:04o}: others can read it; run `chmod 600 {}`, or issue a new one if \
         others may have seen it",
        path.display(),
        path.display()
    )]
    KeyOpen {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file holds something else.
    #[error("{file}: {what}")]
    Pem {
        /// Which.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// A certificate names nobody of ours.
    #[error("{file}: {source}")]
    Identity {
        /// Which.
        file: String,
        /// What is wrong.
        source: IdentityError,
    },
    /// The certificate is for somebody else.
    #[error(
        "{file} is for {found}, wanted was {wanted}: issue the right one with `logdrive tls issue`"
    )]
    WrongIdentity {
        /// Which.
        file: String,
        /// Whom it names.
        found: String,
        /// Whom it should name.
        wanted: String,
    },
    /// The certificate is past its end.
    #[error(
        "{file} expired {hours} hours ago: issue a new one with `logdrive tls issue`, or correct this \
         machine's clock"
    )]
    Expired {
        /// Which.
        file: String,
        /// How long ago.
        hours: u64,
    },
    /// The certificate is before its beginning.
    #[error(
        "{file} is valid only in {hours} hours: correct the clock of this machine, or of the one that \
         issued it"
    )]
    NotYetValid {
        /// Which.
        file: String,
        /// In how long.
        hours: u64,
    },
    /// The authority beside it did not issue it.
    #[error(
        "{file} was not issued by the authority in ca.crt beside it: both must come from the same \
         `logdrive tls init`"
    )]
    UnknownIssuer {
        /// Which.
        file: String,
    },
    /// The certificate does not hold for another reason.
    #[error("{file} does not verify: {what}")]
    Unverified {
        /// Which.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// Key and certificate do not belong together, or TLS does not take them.
    #[error("{file}: its key does not belong to it, or is of a kind not supported: {what}")]
    Key {
        /// The certificate.
        file: String,
        /// What TLS says.
        what: String,
    },
    /// TLS does not take the configuration.
    #[error("set up TLS: {what}")]
    Config {
        /// What it says.
        what: String,
    },
}
