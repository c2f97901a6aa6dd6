//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use logdrive::units;

/// Runs, inspects and operates nodes of a replicated log.
#[derive(Debug, Parser)]
#[command(
    name = "logdrive",
    version = crate::version::short(),
    long_version = crate::version::long(),
    about,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until SIGTERM or SIGINT
    Serve(Serve),
    /// Show how nodes stand; needs no quorum
    Status(Status),
    /// Have a node take a snapshot now; needs an admin's certificate
    Snapshot(Snapshot),
    /// Read and write keys of the key-value machine
    #[command(subcommand)]
    Kv(Kv),
    /// Make an authority, and issue certificates
    #[command(subcommand)]
    Tls(Tls),
    /// Look at the log on disk; changes nothing
    #[command(subcommand)]
    Wal(Wal),
}

/// `logdrive serve`
#[derive(Debug, Args)]
pub struct Serve {
    /// The node's configuration; logdrive.example.toml shows every key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Say whether the configuration can be used, and start nothing
    #[arg(long)]
    pub check: bool,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Which log lines are written: a level, or directives like `logdrive=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `logdrive status`
#[derive(Debug, Args)]
pub struct Status {
    /// Client addresses of the nodes to ask
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',')]
    pub addresses: Vec<String>,
    /// Where ca.crt and a client's or an admin's certificate lie
    #[arg(long, value_name = "DIR")]
    pub tls: PathBuf,
    /// One line of JSON a node
    #[arg(long)]
    pub json: bool,
    /// Show it again and again until interrupted
    #[arg(long)]
    pub watch: bool,
    /// How often with --watch
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::duration)]
    pub interval: Duration,
    /// How long to wait for a node
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = units::duration)]
    pub timeout: Duration,
}

/// `logdrive snapshot`
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Client address of the node
    #[arg(value_name = "ADDR")]
    pub address: String,
    /// Where ca.crt and an admin's certificate lie
    #[arg(long, value_name = "DIR")]
    pub tls: PathBuf,
    /// Which group
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub group: u64,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
    /// How long to wait for the snapshot; it is taken all the same
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = units::duration)]
    pub timeout: Duration,
}

/// `logdrive kv`
#[derive(Debug, Subcommand)]
pub enum Kv {
    /// Give a key a value
    Put {
        /// The key
        key: String,
        /// Its new value
        value: String,
        /// Where, and how long
        #[command(flatten)]
        target: Target,
    },
    /// Show the value of a key, as it is once everything before is applied
    Get {
        /// The key
        key: String,
        /// Where, and how long
        #[command(flatten)]
        target: Target,
    },
    /// Give a key a new value if it has the expected one
    Cas {
        /// The key
        key: String,
        /// Its new value
        value: String,
        /// The value it must have now
        #[arg(long, value_name = "VALUE", required_unless_present = "absent")]
        expect: Option<String>,
        /// It must have no value now
        #[arg(long, conflicts_with = "expect")]
        absent: bool,
        /// Where, and how long
        #[command(flatten)]
        target: Target,
    },
    /// Take a key's value away
    Delete {
        /// The key
        key: String,
        /// Where, and how long
        #[command(flatten)]
        target: Target,
    },
}

/// Which cluster a request goes to.
#[derive(Debug, Args)]
pub struct Target {
    /// Client addresses of nodes; one that answers is enough
    #[arg(
        long = "addr",
        value_name = "ADDR",
        required = true,
        value_delimiter = ','
    )]
    pub addresses: Vec<String>,
    /// Where ca.crt and a client's or an admin's certificate lie
    #[arg(long, value_name = "DIR")]
    pub tls: PathBuf,
    /// Which group
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub group: u64,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::duration)]
    pub timeout: Duration,
}

/// `logdrive tls`
#[derive(Debug, Subcommand)]
pub enum Tls {
    /// Make the authority of a cluster
    Init {
        /// Where to write ca.crt and ca.key
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The name of the cluster
        #[arg(long, value_name = "NAME")]
        cluster: String,
    },
    /// Issue a certificate
    Issue(Issue),
}

/// `logdrive tls issue`
#[derive(Debug, Args)]
pub struct Issue {
    /// Where the authority lies, as `tls init` made it
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Where to write the certificate and its key [default: the authority's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What the holder may be: a node is a peer
    #[arg(long)]
    pub role: RoleArg,
    /// The number of the node, or of the client or admin
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub node: u64,
    /// Further addresses or names for the certificate to bear; may be given several times
    #[arg(long = "san", value_name = "ADDR", value_delimiter = ',')]
    pub sans: Vec<String>,
    /// How long it is valid
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub days: u32,
}

/// What the holder of a certificate may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// A node
    Peer,
    /// Reads and writes
    Client,
    /// Operates the cluster
    Admin,
}

/// `logdrive wal`
#[derive(Debug, Subcommand)]
pub enum Wal {
    /// List what the log holds: slot files, flush groups, records
    Inspect(WalDir),
    /// Check every byte that a restart would rely on
    Verify {
        /// Which log
        #[command(flatten)]
        log: WalDir,
        /// One line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List the entries that the log holds, group by group: index, term, kind, size, chain, file and offset
    Dump {
        /// Which log
        #[command(flatten)]
        log: WalDir,
        /// Of this group alone
        #[arg(long)]
        group: Option<u64>,
        /// From this index on
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// To this index
        #[arg(long, default_value_t = u64::MAX)]
        to: u64,
        /// Also every proposal, with what is not printable escaped
        #[arg(long)]
        payloads: bool,
    },
    /// Say what a replica that waits for it could give up, for nobody has it any more; and with --give-up do so
    Settle {
        /// A node's data directory, its node.dir. The node must not run
        dir: PathBuf,
        /// Of this group alone
        #[arg(long)]
        group: Option<u64>,
        /// Give it up, for good: what was acknowledged and is not in another replica's log either is lost
        #[arg(long)]
        give_up: bool,
    },
    /// Measure the device under a directory, choose by it how a log flushes, and keep that for later starts
    Probe {
        /// A directory on the device: node.dir of a node that does not run
        dir: PathBuf,
        /// One line of JSON
        #[arg(long)]
        json: bool,
        /// How long to measure, in seconds
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
}

/// Where a log lies, and how it is read.
#[derive(Debug, Args)]
pub struct WalDir {
    /// A node's data directory, its node.dir
    pub dir: PathBuf,
    /// Leave the lock alone and read sealed segments only: the node may run
    #[arg(long)]
    pub while_running: bool,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 internal error, 2 usage or configuration, 10 degraded, not done or comparison failed,
20 data damaged, 30 unreachable, not ours, in use or of another version, 130 interrupted";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mistyped_flag_or_command_names_the_nearest() {
        let error = |line: &str| {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let text = error("logdrive serve --confg n1.toml");
        assert!(text.contains("'--config'"), "{text}");
        let text = error("logdrive statsu 127.0.0.1:7102");
        assert!(text.contains("'status'"), "{text}");
        let text = error("logdrive tls issue --dir d --role peeer");
        assert!(text.contains("'peer'"), "{text}");
        let text = error("logdrive kv get k --addr a:1 --tls d --timeout 5sec");
        assert!(text.contains("did you mean `5s`?"), "{text}");
    }

    #[test]
    fn the_command_line_of_the_contract_is_read() {
        for line in [
            "logdrive serve --config n1.toml",
            "logdrive serve --config n1.toml --check --log-format json",
            "logdrive tls init --dir d --cluster demo",
            "logdrive tls issue --dir d --role peer --node 1 --san 127.0.0.1 --days 365",
            "logdrive status 127.0.0.1:1 127.0.0.1:2 --tls d --json --watch",
            "logdrive snapshot 127.0.0.1:1 --tls d --group 2 --json",
            "logdrive kv put k v --addr a:1,b:2 --tls d",
            "logdrive kv get k --addr a:1 --tls d",
            "logdrive kv cas k v --expect w --addr a:1 --tls d",
            "logdrive wal inspect d",
            "logdrive wal verify d --json --while-running",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap();
        }
    }
}
