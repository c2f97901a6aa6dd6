//! Our own certificate, verified as others will.

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{TlsError, crypto_provider};

/// Verifies our own certificate as the other side will, so that a bad one is found at start, with advice,
/// and not by every peer.
pub(super) fn verify_own(
    file: &str,
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), TlsError> {
    let file = file.to_owned();
    let leaf = match webpki::EndEntityCert::try_from(&chain[0]) {
        Ok(leaf) => leaf,
        Err(error) => {
            let what = error.to_string();
            return Err(TlsError::Unverified { file, what });
        }
    };
    let verified = leaf.verify_for_usage(
        crypto_provider().signature_verification_algorithms.all,
        &roots.roots,
        &chain[1..],
        now,
        webpki::KeyUsage::client_auth(),
        None,
        None,
    );
    let hours = |from: UnixTime, to: UnixTime| to.as_secs().saturating_sub(from.as_secs()) / 3600;
    match verified {
        Ok(_) => Ok(()),
        Err(webpki::Error::CertExpired { time, not_after }) => Err(TlsError::Expired {
            file,
            hours: hours(not_after, time),
        }),
        Err(webpki::Error::CertNotValidYet { time, not_before }) => Err(TlsError::NotYetValid {
            file,
            hours: hours(time, not_before),
        }),
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
            Err(TlsError::UnknownIssuer { file })
        }
        Err(error) => {
            let what = error.to_string();
            Err(TlsError::Unverified { file, what })
        }
    }
}
