//! What this build is: version, commit, and the formats it speaks.

use std::sync::OnceLock;

use logdrive_net::hello::PROTOCOL_MAX;
use logdrive_raft::entry::ENTRY_VERSION;

/// The commit this was built from; `unknown` if it was not built in a repository.
pub const COMMIT: &str = env!("LOGDRIVE_COMMIT");

/// Version and commit.
#[must_use]
pub fn short() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("{} (commit {COMMIT})", env!("CARGO_PKG_VERSION")))
}

/// Version, commit, protocol and format versions.
#[must_use]
pub fn long() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let short = short();
        let wal = logdrive_wal::format::WAL_VERSION;
        format!("{short}\nprotocol {PROTOCOL_MAX}\nlog format {wal}\nentry format {ENTRY_VERSION}")
    })
}
