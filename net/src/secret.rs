//! The two keys that let a node be recognised after a restart.
//!
//! A restarted node gets packets of connections it no longer knows. If the connection ids in them are
//! recognisably its own, and it answers with the reset token that belongs to each, the other side knows at
//! once that the connection is gone, in milliseconds instead of an idle timeout. Both follow from one
//! secret that stays in the node's directory.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use ring::{hkdf, hmac};

/// A node's network secret.
#[derive(Clone)]
pub struct NetSecret([u8; SECRET_BYTES]);

impl NetSecret {
    /// A secret for the life of this process: a restart is seen by the idle timeout only.
    pub fn random() -> io::Result<Self> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        Ok(Self(secret))
    }

    /// The secret in `path`, drawn and written if there is none. A file of another length, which a crash may
    /// have left, is replaced: nothing but the speed of noticing a restart depends on it.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => {
                if let Ok(secret) = bytes.try_into() {
                    return Ok(Self(secret));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let secret = Self::random()?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        file.write_all(&secret.0)?;
        file.sync_all()?;
        Ok(secret)
    }

    /// The key of stateless reset tokens.
    pub(crate) fn reset_key(&self) -> hmac::Key {
        let mut key = [0; SECRET_BYTES];
        self.derive(b"stateless reset", &mut key);
        hmac::Key::new(hmac::HMAC_SHA256, &key)
    }

    /// The key that marks connection ids.
    pub(crate) fn connection_id_key(&self) -> u64 {
        let mut key = [0; 8];
        self.derive(b"connection id", &mut key);
        u64::from_le_bytes(key)
    }

    fn derive(&self, purpose: &[u8], key: &mut [u8]) {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"logdrive net");
        let length = Length(key.len());
        salt.extract(&self.0)
            .expand(&[purpose], length)
            .and_then(|expanded| expanded.fill(key))
            .expect("HKDF gives up to 255 hashes, and a key is shorter than two");
    }
}

impl std::fmt::Debug for NetSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetSecret")
    }
}

const SECRET_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_outlives_the_process_and_the_keys_follow_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.secret");
        let first = NetSecret::load_or_create(&path).unwrap();
        let second = NetSecret::load_or_create(&path).unwrap();
        assert_eq!(first.connection_id_key(), second.connection_id_key());
        let (a, b) = (first.reset_key(), second.reset_key());
        assert_eq!(hmac::sign(&a, b"x").as_ref(), hmac::sign(&b, b"x").as_ref());
        fs::write(&path, b"half").unwrap();
        let third = NetSecret::load_or_create(&path).unwrap();
        assert_ne!(first.connection_id_key(), third.connection_id_key());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }
}
