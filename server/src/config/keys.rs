//! The table of keys.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;

use logdrive::units::{self, spell_bytes, spell_duration};
use logdrive::{Mtu, WalBackend, WalFlushMode};
use logdrive_raft::limits::FRAME_BYTES_MAX;

use super::{Config, file};

/// One key of the configuration.
pub struct Key {
    /// Section and key: `wal.bytes_max`.
    pub name: &'static str,
    /// Whether it has to be set.
    pub required: bool,
    /// What it says in the example file. Of a key with a default, the default is said instead.
    pub example: &'static str,
    /// What it means, for the example file.
    pub doc: &'static str,
    /// Whether TOML writes it without quotes.
    pub kind: Kind,
    /// Reads the value.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
    /// Spells the value.
    pub show: fn(&Config) -> String,
}

/// How TOML writes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In quotes.
    Text,
    /// Without quotes.
    Number,
    /// As a list of texts.
    List,
}

impl Key {
    /// The part before the dot.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name
            .split_once('.')
            .expect("every key has a section")
            .0
    }

    /// The part after the dot.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.name
            .split_once('.')
            .expect("every key has a section")
            .1
    }

    /// The variable that overrides it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("LOGDRIVE_{}", self.name.replace('.', "_").to_uppercase())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

/// A size in bytes that is a field of `limits`, `wal` or `snapshots`, and the least that works.
macro_rules! bytes {
    ($name:literal, $part:ident.$field:ident, $least:expr, $doc:literal) => {
        Key {
            name: $name,
            required: false,
            example: "",
            doc: $doc,
            kind: Kind::Text,
            set: |config, text| {
                let bytes = units::bytes(text).map_err(text_of)?;
                if !($least as u64..).contains(&bytes) {
                    let least = spell_bytes($least as u64);
                    return Err(format!(
                        "`{text}` is less than the least that works, {least}"
                    ));
                }
                config.$part.$field = bytes.try_into().map_err(text_of)?;
                Ok(())
            },
            show: |config| spell_bytes(config.$part.$field as u64),
        }
    };
}

/// Bytes a second.
macro_rules! rate {
    ($name:literal, $part:ident.$field:ident, $doc:literal) => {
        Key {
            name: $name,
            required: false,
            example: "",
            doc: $doc,
            kind: Kind::Text,
            set: |config, text| {
                let rate = units::bytes_per_s(text).map_err(text_of)?;
                if rate == 0 {
                    return Err(format!("`{text}` is less than the least that works, 1B/s"));
                }
                config.$part.$field = rate;
                Ok(())
            },
            show: |config| format!("{}/s", spell_bytes(config.$part.$field)),
        }
    };
}

/// A time.
macro_rules! time {
    ($name:literal, $part:ident.$field:ident, $doc:literal) => {
        Key {
            name: $name,
            required: false,
            example: "",
            doc: $doc,
            kind: Kind::Text,
            set: |config, text| {
                config.$part.$field = units::duration(text).map_err(text_of)?;
                Ok(())
            },
            show: |config| spell_duration(config.$part.$field),
        }
    };
}

/// An address to listen on; the empty text means not to.
macro_rules! address {
    ($name:literal, $field:ident, $required:literal, $example:literal, $doc:literal) => {
        Key {
            name: $name,
            required: $required,
            example: $example,
            doc: $doc,
            kind: Kind::Text,
            set: |config, text| {
                config.$field = address(text)?;
                Ok(())
            },
            show: |config| {
                let address = config.$field;
                address.map_or(String::new(), |address| address.to_string())
            },
        }
    };
}

/// Every key, in the order of the example file.
pub const KEYS: &[Key] = &[
    Key {
        name: "node.id",
        required: true,
        example: "1",
        doc: "The number of this node: from 1, different on each node of the cluster, and the same for the\n\
              life of its directory. The certificate names it too.",
        kind: Kind::Number,
        set: |config, text| {
            config.node_id = number(text, 1)?;
            Ok(())
        },
        show: |config| config.node_id.to_string(),
    },
    Key {
        name: "node.dir",
        required: true,
        example: "/var/lib/logdrive/1",
        doc: "Where the node keeps its log. It is created if it is not there, and belongs to this node alone.\n\
              A local disk: flushes of a network file system or a tmpfs are not durable.",
        kind: Kind::Text,
        set: |config, text| {
            config.node_dir = path(text)?;
            Ok(())
        },
        show: |config| config.node_dir.display().to_string(),
    },
    Key {
        name: "cluster.id",
        required: true,
        example: "demo",
        doc: "The name of the cluster, as `logdrive tls init --cluster` was told: lower-case letters, digits and\n\
              inner hyphens. Nodes and clients of another cluster are refused.",
        kind: Kind::Text,
        set: |config, text| {
            config.cluster = text.parse().map_err(text_of)?;
            Ok(())
        },
        show: |config| config.cluster.to_string(),
    },
    Key {
        name: "cluster.members",
        required: false,
        example: "1=10.0.0.1:7101,2=10.0.0.2:7101,3=10.0.0.3:7101",
        doc: "The first voters, each with the address its peers reach it at (its listen.peer as they see it).\n\
              The same on every node. It counts until the cluster has formed, which takes all of them; without\n\
              it the node is a cluster of its own.",
        kind: Kind::List,
        set: |config, text| {
            config.members = members(text)?;
            Ok(())
        },
        show: |config| {
            let member = |(id, address): &(u64, String)| format!("{id}={address}");
            let members: Vec<_> = config.members.iter().map(member).collect();
            members.join(",")
        },
    },
    Key {
        name: "cluster.groups",
        required: false,
        example: "",
        doc: "How many Raft groups the node takes part in, numbered from 1. The same on every node.",
        kind: Kind::Number,
        set: |config, text| {
            config.groups = number(text, 1)?;
            if config.groups > GROUPS_MAX {
                return Err(format!("{text} groups are more than {GROUPS_MAX}"));
            }
            Ok(())
        },
        show: |config| config.groups.to_string(),
    },
    address!(
        "listen.peer",
        listen_peer,
        false,
        "0.0.0.0:7101",
        "Where the other nodes reach this one, over UDP. Needed with more than one member. Port 0 takes a free one."
    ),
    address!(
        "listen.client",
        listen_client,
        true,
        "0.0.0.0:7102",
        "Where clients reach this node, over UDP."
    ),
    address!(
        "listen.http",
        listen_http,
        false,
        "127.0.0.1:7103",
        "Where /metrics, /livez and /readyz are served, over TCP: plain text to anybody who can connect, so keep\n\
         it on this machine or on a network of your own. Without it they are not served."
    ),
    Key {
        name: "listen.mtu",
        required: false,
        example: "",
        doc: "How large packets may be: `ethernet` (1452 bytes), `jumbo` (8900, where the whole way carries them)\n\
              or `loopback` (65000, one machine only).",
        kind: Kind::Text,
        set: |config, text| {
            config.mtu = one_of(text, MTUS)?;
            Ok(())
        },
        show: |config| name_of(config.mtu, MTUS),
    },
    Key {
        name: "tls.dir",
        required: true,
        example: "/etc/logdrive/tls",
        doc: "Where ca.crt, peer-ID.crt and peer-ID.key lie, as `logdrive tls issue` wrote them. The authority's\n\
              key, ca.key, has no business here.",
        kind: Kind::Text,
        set: |config, text| {
            config.tls_dir = path(text)?;
            Ok(())
        },
        show: |config| config.tls_dir.display().to_string(),
    },
    bytes!(
        "wal.bytes_max",
        wal.bytes_max,
        SLOT_BYTES_MIN,
        "What all segment files together may take. When it is used up, proposals are answered `storage_full`;\n\
         reads, votes and heartbeats go on."
    ),
    bytes!(
        "wal.slot_bytes",
        wal.slot_bytes,
        SLOT_BYTES_MIN,
        "The size of one segment file: at least 64KiB, a multiple of 4KiB. It must hold the largest entry."
    ),
    Key {
        name: "wal.backend",
        required: false,
        example: "",
        doc: "How the log reaches the disk: `io_uring`, `pwrite`, or `auto`, which takes io_uring where it works.\n\
              `logdrive status` says which it is.",
        kind: Kind::Text,
        set: |config, text| {
            config.wal.backend = one_of(text, BACKENDS)?;
            Ok(())
        },
        show: |config| name_of(config.wal.backend, BACKENDS),
    },
    Key {
        name: "wal.flush_mode",
        required: false,
        example: "",
        doc: "How what is written becomes durable: `dsync` (each write by itself), `drained_fsync` (one flush at a\n\
              time over all that have completed), or `auto`, which does what `logdrive wal probe` has found\n\
              best for the device, else tries both for a moment at a start, and changes over when flushes take much\n\
              longer than usual. One that is forced here is never left.",
        kind: Kind::Text,
        set: |config, text| {
            config.wal.flush_mode = one_of(text, FLUSH_MODES)?;
            Ok(())
        },
        show: |config| name_of(config.wal.flush_mode, FLUSH_MODES),
    },
    rate!(
        "wal.scrub_rate",
        wal.scrub_bytes_per_s,
        "How fast segments that are full are read again, to find what goes bad at rest and have it back from the\n\
         other nodes before anybody needs it."
    ),
    time!(
        "wal.scrub_interval",
        wal.scrub_interval,
        "They are not all read more often than this. A start reads them, too, and the first time is so long after it."
    ),
    bytes!(
        "snapshots.log_bytes",
        snapshots.log_bytes,
        1,
        "A snapshot of a group's machine is taken after so much log since the last one, and the log before it is\n\
         cut. At most a quarter of wal.bytes_max counts: with less room than that the log would be full first.\n\
         Replicas spread it a little, so that they do not all write at once."
    ),
    Key {
        name: "snapshots.log_entries",
        required: false,
        example: "",
        doc: "Or after so many entries: 1M, 50k.",
        kind: Kind::Number,
        set: |config, text| {
            let entries = units::count(text).map_err(text_of)?;
            if entries == 0 {
                return Err(format!("`{text}` is less than the least that works, 1"));
            }
            config.snapshots.log_entries = entries;
            Ok(())
        },
        show: |config| config.snapshots.log_entries.to_string(),
    },
    bytes!(
        "snapshots.keep_log_bytes",
        snapshots.keep_log_bytes,
        0,
        "So much of a group's newest log stays, whatever snapshots cover: a follower that was away for no more than\n\
         that catches up from the log. At most a quarter of wal.bytes_max counts."
    ),
    bytes!(
        "snapshots.retain_log_bytes",
        snapshots.retain_log_bytes,
        0,
        "So much log is kept at most for a follower that fetches a snapshot. It must hold what is written meanwhile.\n\
         At most half of wal.bytes_max counts; when the log runs out of room nothing is kept for anybody."
    ),
    rate!(
        "snapshots.fetch_bytes_per_s",
        snapshots.fetch_bytes_per_s,
        "No faster than this does this node fetch a snapshot, in bytes a second. More than the load writes, or it\n\
         does not catch up; less than the network, or clients notice."
    ),
    rate!(
        "snapshots.catch_up_bytes_per_s",
        snapshots.catch_up_bytes_per_s,
        "No faster than this does a leader read back from its log what followers lack, in bytes a second, or than\n\
         three times what the load writes for each of them, whichever is more. Without load, as fast as it can."
    ),
    rate!(
        "snapshots.write_bytes_per_s",
        snapshots.write_bytes_per_s,
        "No faster than this is a snapshot written, read back to check it, and taken over by a machine that runs,\n\
         in bytes a second."
    ),
    time!(
        "raft.heartbeat_interval",
        raft.heartbeat_interval,
        "How often an idle follower hears of its leader: at most half of the shortest election timeout."
    ),
    time!(
        "raft.election_timeout_min",
        raft.election_timeout_min,
        "How long a follower waits for its leader before it may stand for election: drawn anew each time between\n\
         this and raft.election_timeout_max. Well above the round trip between the nodes plus a slow flush."
    ),
    time!(
        "raft.election_timeout_max",
        raft.election_timeout_max,
        "The longest election timeout."
    ),
    time!(
        "raft.disk_lag_max",
        raft.disk_lag_max,
        "How long a leader's own disk may trail a follower's before it gives up leading."
    ),
    bytes!(
        "limits.proposals_bytes_max",
        limits.proposals_bytes_max,
        ENTRY_BYTES,
        "Proposals between the door and the answer, a group. Beyond it the answer is `busy`."
    ),
    bytes!(
        "limits.uncommitted_bytes_max",
        limits.uncommitted_bytes_max,
        ENTRY_BYTES,
        "Entries that wait for a quorum, a group."
    ),
    Key {
        name: "limits.uncommitted_entries_max",
        required: false,
        example: "",
        doc: "How many entries wait for a quorum, a group. Fewer make larger batches.",
        kind: Kind::Number,
        set: |config, text| {
            let entries = number(text, 1)?;
            config.limits.uncommitted_entries_max = entries.try_into().map_err(text_of)?;
            Ok(())
        },
        show: |config| config.limits.uncommitted_entries_max.to_string(),
    },
    bytes!(
        "limits.inflight_bytes_max",
        limits.inflight_bytes_max,
        ENTRY_BYTES,
        "Entries on their way to one follower, a group."
    ),
    bytes!(
        "limits.append_bytes_max",
        limits.append_bytes_max,
        APPEND_BYTES_MIN,
        "Entries in one append message."
    ),
    bytes!(
        "limits.cache_bytes_max",
        limits.cache_bytes_max,
        ENTRY_BYTES,
        "Entries kept in memory for followers and the machine, a group. What is older is read from the log."
    ),
    bytes!(
        "limits.apply_bytes_max",
        limits.apply_bytes_max,
        ENTRY_BYTES,
        "Committed entries that wait for the machines."
    ),
    bytes!(
        "limits.peer_queue_bytes_max",
        limits.peer_queue_bytes_max,
        ENTRY_BYTES,
        "Messages that wait for one peer. Beyond it the peer is fed from the log later."
    ),
    bytes!(
        "limits.inbox_bytes_max",
        limits.inbox_bytes_max,
        ENTRY_BYTES,
        "Messages from peers that wait for this node."
    ),
    bytes!(
        "limits.client_bytes_max",
        limits.client_bytes_max,
        ENTRY_BYTES,
        "Requests of clients that wait for this node. While as many bytes of answers wait for a client, its requests\n\
         are not read."
    ),
    bytes!(
        "limits.client_answers_bytes_max",
        limits.client_answers_bytes_max,
        ENTRY_BYTES,
        "Answers that wait for one client. An operation whose answer would be more is answered `answers_full`."
    ),
];

const MTUS: &[(&str, Mtu)] = &[
    ("ethernet", Mtu::Ethernet),
    ("jumbo", Mtu::Jumbo),
    ("loopback", Mtu::Loopback),
];

const BACKENDS: &[(&str, WalBackend)] = &[
    ("auto", WalBackend::Auto),
    ("io_uring", WalBackend::IoUring),
    ("pwrite", WalBackend::Pwrite),
];

const FLUSH_MODES: &[(&str, WalFlushMode)] = &[
    ("auto", WalFlushMode::Auto),
    ("dsync", WalFlushMode::Dsync),
    ("drained_fsync", WalFlushMode::DrainedFsync),
];

/// Every bound must let one entry of the largest kind through.
const ENTRY_BYTES: usize = FRAME_BYTES_MAX;

/// What one append message carries may be less than the largest entry, which then travels alone.
const APPEND_BYTES_MIN: usize = 64 << 10;

/// Segment files cannot be smaller.
const SLOT_BYTES_MIN: u64 = 64 << 10;

/// More are possible in one log, but not sensible in one turn.
const GROUPS_MAX: u64 = 1024;

fn text_of(error: impl Display) -> String {
    error.to_string()
}

fn number(text: &str, least: u64) -> Result<u64, String> {
    match text.trim().parse::<u64>() {
        Ok(number) if number >= least => Ok(number),
        _ => Err(format!("`{text}` is not a whole number from {least} on")),
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("the path is empty".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse();
    address
        .map(Some)
        .map_err(|_| format!("`{text}` is not an address; write it like `127.0.0.1:7101`"))
}

fn members(text: &str) -> Result<Vec<(u64, String)>, String> {
    let mut members: Vec<(u64, String)> = Vec::new();
    for member in text
        .split(',')
        .map(str::trim)
        .filter(|member| !member.is_empty())
    {
        let read = || {
            let (id, address) = member.split_once('=')?;
            let id: u64 = id.trim().parse().ok()?;
            let address = address.trim();
            let (host, port) = address.rsplit_once(':')?;
            port.parse::<u16>().ok()?;
            (id > 0 && !host.is_empty()).then(|| (id, address.to_owned()))
        };
        let Some((id, address)) = read() else {
            return Err(format!(
                "`{member}` is not a member; write it like `1=10.0.0.1:7101`"
            ));
        };
        if members.iter().any(|(other, _)| *other == id) {
            return Err(format!("node {id} is listed twice"));
        }
        members.push((id, address));
    }
    Ok(members)
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let nearest = file::nearest(text, names.iter().map(|name| (*name).to_owned()));
    let instead = nearest.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
    Err(format!("`{text}` is none of {}{instead}", names.join(", ")))
}

fn name_of<T: PartialEq>(value: T, choices: &[(&str, T)]) -> String {
    let name = choices.iter().find(|(_, choice)| *choice == value);
    name.map_or("", |(name, _)| *name).to_owned()
}
