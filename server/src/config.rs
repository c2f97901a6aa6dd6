//! The configuration of a node: a TOML file, overridden by the environment.
//!
//! Every key is a row of one table ([`keys::KEYS`]), which knows how the key is read, what it is without
//! being set, and what it means. The file `logdrive.example.toml` is that table as text.

pub mod example;
mod file;
pub mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use logdrive::{Limits, Mtu, RaftSettings, SnapshotSettings, WalSettings};
use logdrive_net::ClusterName;

pub use self::file::ConfigError;

/// What a node is told about itself. Complete and each value readable; whether the values go together is
/// for the engine to say.
#[derive(Clone, Debug)]
pub struct Config {
    /// `node.id`
    pub node_id: u64,
    /// `node.dir`
    pub node_dir: PathBuf,
    /// `cluster.id`
    pub cluster: ClusterName,
    /// `cluster.members`
    pub members: Vec<(u64, String)>,
    /// `cluster.groups`
    pub groups: u64,
    /// `listen.peer`
    pub listen_peer: Option<SocketAddr>,
    /// `listen.client`
    pub listen_client: Option<SocketAddr>,
    /// `listen.http`
    pub listen_http: Option<SocketAddr>,
    /// `listen.mtu`
    pub mtu: Mtu,
    /// `tls.dir`
    pub tls_dir: PathBuf,
    /// `limits.*`
    pub limits: Limits,
    /// `raft.*`
    pub raft: RaftSettings,
    /// `wal.*`
    pub wal: WalSettings,
    /// `snapshots.*`
    pub snapshots: SnapshotSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: 0,
            node_dir: PathBuf::new(),
            cluster: "local".parse().expect("a name of letters"),
            members: Vec::new(),
            groups: 1,
            listen_peer: None,
            listen_client: None,
            listen_http: None,
            mtu: Mtu::default(),
            tls_dir: PathBuf::new(),
            limits: Limits::default(),
            raft: RaftSettings::default(),
            wal: WalSettings::default(),
            snapshots: SnapshotSettings::default(),
        }
    }
}

impl Config {
    /// Reads a file, and the variables of the environment that override it.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        file::parse(&path.display().to_string(), &text, environment)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LEAST: &str = "[node]\nid = 1\ndir = '/d'\n[cluster]\nid = 'demo'\n\
                         [listen]\nclient = '127.0.0.1:7102'\n[tls]\ndir = 'certs'\n";

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        file::parse("n1.toml", text, environment).map_err(|error| error.to_string())
    }

    fn error(text: &str) -> String {
        parse(&format!("{LEAST}{text}"), &[]).unwrap_err()
    }

    #[test]
    fn the_least_configuration_takes_defaults_for_the_rest() {
        let config = parse(LEAST, &[]).unwrap();
        assert_eq!(config.node_id, 1);
        assert_eq!(config.cluster.as_str(), "demo");
        assert_eq!(config.groups, 1);
        assert_eq!(config.listen_http, None);
        assert_eq!(config.wal.bytes_max, WalSettings::default().bytes_max);
    }

    #[test]
    fn values_have_units() {
        let text = format!(
            "{LEAST}[wal]\nbytes_max = '1.5GiB'\nslot_bytes = 65536\n[raft]\nheartbeat_interval = '75ms'\n"
        );
        let config = parse(&text, &[]).unwrap();
        assert_eq!(config.wal.bytes_max, 3 << 29);
        assert_eq!(config.wal.slot_bytes, 65536);
        assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(75));
        assert_eq!(
            error("[raft]\nheartbeat_interval = '75'\n"),
            "n1.toml:11: raft.heartbeat_interval: `75` is not a time; did you mean `75s`?"
        );
    }

    #[test]
    fn snapshots_are_set_like_everything_else() {
        let text = format!(
            "{LEAST}[snapshots]\nlog_bytes = '1MiB'\nlog_entries = '2k'\nfetch_bytes_per_s = '32MiB/s'\n"
        );
        let environment = [("LOGDRIVE_SNAPSHOTS_WRITE_BYTES_PER_S", "8MiB")];
        let snapshots = parse(&text, &environment).unwrap().snapshots;
        assert_eq!(
            (snapshots.log_bytes, snapshots.log_entries),
            (1 << 20, 2000)
        );
        assert_eq!(snapshots.fetch_bytes_per_s, 32 << 20);
        assert_eq!(snapshots.write_bytes_per_s, 8 << 20);
        let default = SnapshotSettings::default();
        assert_eq!(snapshots.retain_log_bytes, default.retain_log_bytes);
        assert_eq!(
            error("[snapshots]\nfetch_bytes_per_s = '32mib/s'\n"),
            "n1.toml:11: snapshots.fetch_bytes_per_s: `32mib/s` is not a size a second; did you mean \
             `32MiB/s`?"
        );
        assert_eq!(
            error("[snapshots]\nlog_bytes = 0\n"),
            "n1.toml:11: snapshots.log_bytes: `0` is less than the least that works, 1B"
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        assert_eq!(
            error("[wal]\nbyte_max = '1GiB'\n"),
            "n1.toml:11: there is no key `wal.byte_max`; did you mean `wal.bytes_max`?"
        );
        assert_eq!(
            error("[rafft]\nheartbeat_interval = '1s'\n"),
            "n1.toml:11: there is no key `rafft.heartbeat_interval`; did you mean \
             `raft.heartbeat_interval`?"
        );
        assert_eq!(
            error("[zzz]\nq = 1\n"),
            "n1.toml:11: there is no key `zzz.q`; logdrive.example.toml lists all keys"
        );
        let text = format!("wal = 1\n{LEAST}");
        assert_eq!(
            parse(&text, &[]).unwrap_err(),
            "n1.toml:1: `wal` is a section: write `[wal]` and its keys below"
        );
    }

    #[test]
    fn what_is_missing_is_named_with_an_example() {
        assert_eq!(
            parse("[node]\nid = 1\n", &[]).unwrap_err(),
            "n1.toml: node.dir is not set; add `dir = \"/var/lib/logdrive/1\"` below `[node]`, or set \
             LOGDRIVE_NODE_DIR"
        );
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config = parse(
            LEAST,
            &[
                ("LOGDRIVE_WAL_BYTES_MAX", "2GiB"),
                ("LOGDRIVE_CLUSTER_MEMBERS", "1=a:1, 2=b:2"),
                ("LOGDRIVE_NODE_ID", "2"),
                // Kubernetes sets the like for a service of that name.
                ("LOGDRIVE_SERVICE_HOST", "10.0.0.1"),
                ("LOGDRIVE_PORT", "tcp://10.0.0.1:7101"),
                ("PATH", "/bin"),
            ],
        )
        .unwrap();
        assert_eq!(config.wal.bytes_max, 2 << 30);
        assert_eq!(config.node_id, 2);
        let members = [(1, "a:1".to_owned()), (2, "b:2".to_owned())];
        assert_eq!(config.members, members);
    }

    #[test]
    fn a_mistyped_variable_is_an_error() {
        assert_eq!(
            parse(LEAST, &[("LOGDRIVE_WAL_BYTE_MAX", "1GiB")]).unwrap_err(),
            "LOGDRIVE_WAL_BYTE_MAX in the environment overrides no key; did you mean \
             LOGDRIVE_WAL_BYTES_MAX?"
        );
        assert_eq!(
            parse(LEAST, &[("LOGDRIVE_WAL_BYTES_MAX", "1Gib")]).unwrap_err(),
            "LOGDRIVE_WAL_BYTES_MAX in the environment: wal.bytes_max: `1Gib` is not a size; did you \
             mean `1GiB`?"
        );
    }

    #[test]
    fn what_cannot_be_read_says_where_and_how_to_write_it() {
        let cases = [
            (
                "[limits]\napply_bytes_max = -1\n",
                "n1.toml:11: limits.apply_bytes_max: `-1` is not a size; write it like `4KiB`",
            ),
            (
                "[raft]\nelection_timeout_min = true\n",
                "n1.toml:11: raft.election_timeout_min: `true` is not a time; write it like `30s`",
            ),
            (
                "[wal]\nbackend = 'iouring'\n",
                "n1.toml:11: wal.backend: `iouring` is none of auto, io_uring, pwrite; did you mean \
                 `io_uring`?",
            ),
            (
                "[wal]\nbackend = { x = 1 }\n",
                "n1.toml:11: wal.backend: a table stands where a value belongs",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(error(text), expected);
        }
        let addresses = "[listen]\npeer = 'localhost'\n";
        assert_eq!(
            parse(addresses, &[]).unwrap_err(),
            "n1.toml:2: listen.peer: `localhost` is not an address; write it like `127.0.0.1:7101`"
        );
        let members = "[cluster]\nmembers = ['1=a:1', 'b:2']\n";
        assert_eq!(
            parse(members, &[]).unwrap_err(),
            "n1.toml:2: cluster.members: `b:2` is not a member; write it like `1=10.0.0.1:7101`"
        );
        let twice = "[cluster]\nmembers = ['1=a:1', '1=b:2']\n";
        assert_eq!(
            parse(twice, &[]).unwrap_err(),
            "n1.toml:2: cluster.members: node 1 is listed twice"
        );
        let broken = parse("[node\nid = 1\n", &[]).unwrap_err();
        assert!(broken.starts_with("n1.toml:1: "), "{broken}");
    }
}
