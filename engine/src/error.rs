//! What went wrong, what happened to the write, and what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

use logdrive_raft::{GroupId, NodeId};
use logdrive_shard::{Failure, Outcome, Refused};

/// A proposal that has no output.
///
/// [`ProposeError::outcome`] says what happened to the write, [`ProposeError::advice`] what to do, and
/// [`ProposeError::code`] names the error for programs and for `docs/errors.md`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The door is full, or the proposal can never pass it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It was taken in and not answered with an output.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// This node does not hold the group.
    #[error("this node does not hold group {0}")]
    UnknownGroup(GroupId),
}

impl ProposeError {
    /// What is known about the write.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) | Self::UnknownGroup(_) => Outcome::NeverAppended,
            Self::Failed(failure) => failure.outcome(),
        }
    }

    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(Refused::Busy { .. }) => Code::Busy,
            Self::Refused(Refused::TooLarge { .. }) => Code::TooLarge,
            Self::Refused(Refused::Closed(failure)) | Self::Failed(failure) => {
                failure_code(failure)
            }
            Self::Refused(_) => Code::Abandoned,
            Self::UnknownGroup(_) => Code::UnknownGroup,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        self.code().advice()
    }

    /// Who leads the group, if this error knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match self {
            Self::Refused(Refused::Closed(Failure::NotLeader { leader }))
            | Self::Failed(Failure::NotLeader { leader }) => *leader,
            _ => None,
        }
    }
}

fn failure_code(failure: &Failure) -> Code {
    match failure {
        Failure::NotLeader { .. } => Code::NotLeader,
        Failure::LeadershipLost { .. } => Code::LeadershipLost,
        Failure::ShuttingDown => Code::ShuttingDown,
        Failure::ShutDownBeforeApply { .. } => Code::ShutDownBeforeApply,
        Failure::Halted => Code::Halted,
        Failure::HaltedBeforeApply { .. } => Code::HaltedBeforeApply,
        Failure::StorageFull => Code::StorageFull,
        _ => Code::Abandoned,
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $outcome:ident, $advice:literal;)*) => {
        /// The stable names and numbers of errors. `docs/errors.md` has a paragraph for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// The name, as metrics, logs and `docs/errors.md` spell it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// What is known about a write that ended with it.
            #[must_use]
            pub fn outcome(self) -> Outcome {
                match self { $(Code::$name => Outcome::$outcome,)* }
            }

            /// What to do about it.
            #[must_use]
            pub fn advice(self) -> &'static str {
                match self { $(Code::$name => $advice,)* }
            }

            /// The code with this number.
            #[must_use]
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// Another node leads the group, or none.
    NotLeader = 1, "not_leader", NeverAppended,
        "send it to the leader that the error names; if it names none, try again after a moment, and \
         look at `logdrive status` if this lasts";
    /// As many bytes of proposals wait for answers as may.
    Busy = 2, "busy", NeverAppended,
        "wait for answers before sending more, or raise limits.proposals_bytes_max if memory allows";
    /// The log has no room for proposals.
    StorageFull = 3, "storage_full", NeverAppended,
        "give the log more room (space on its disk, or wal.bytes_max); reads, votes and heartbeats go on";
    /// The proposal is larger than an entry may be.
    TooLarge = 4, "too_large", NeverAppended,
        "split it; an entry carries at most 1 MiB, or a quarter of wal.slot_bytes if that is less";
    /// This node does not hold the group.
    UnknownGroup = 5, "unknown_group", NeverAppended,
        "check the group number against the cluster's configuration";
    /// The group has halted on this node.
    Halted = 6, "halted", NeverAppended,
        "send it to another node; `logdrive status` of this one says why it halted";
    /// The node is shutting down.
    ShuttingDown = 7, "shutting_down", NeverAppended,
        "send it to another node";
    /// The deadline passed before an answer came.
    DeadlinePassed = 8, "deadline", MayYetCommit,
        "read back whether the write took effect before sending it again";
    /// The connection was lost before an answer came.
    ConnectionLost = 9, "connection_lost", MayYetCommit,
        "read back whether the write took effect before sending it again";
    /// The entry was replaced before it was applied.
    LeadershipLost = 10, "leadership_lost", MayYetCommit,
        "read back whether the write took effect before sending it again";
    /// No node could be reached.
    Unreachable = 11, "unreachable", NeverAppended,
        "check the addresses, the certificates and whether the nodes run";
    /// The certificate does not allow it.
    Forbidden = 12, "forbidden", NeverAppended,
        "use a certificate whose role allows it: `logdrive tls issue --role client`";
    /// The machine's answer is larger than an answer may be. The write took effect.
    OutputTooLarge = 13, "output_too_large", MayYetCommit,
        "the write took effect; have the machine answer with less";
    /// The node shut down before the entry was applied.
    ShutDownBeforeApply = 14, "shut_down_before_apply", MayYetCommit,
        "read back from another node whether the write took effect before sending it again";
    /// The group halted before the entry was applied.
    HaltedBeforeApply = 15, "halted_before_apply", MayYetCommit,
        "read back from another node whether the write took effect before sending it again";
    /// As many bytes of answers wait for this client as may. The write took effect.
    AnswersFull = 17, "answers_full", MayYetCommit,
        "the write took effect; ask for fewer large answers at once, or raise \
         limits.client_answers_bytes_max";
    /// The engine ended without an answer.
    Abandoned = 16, "abandoned", MayYetCommit,
        "read back whether the write took effect before sending it again";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node that did not start. Nothing runs, and nothing was changed that the next start would not redo.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is missing or impossible.
    #[error("{0}")]
    Configuration(String),
    /// The data directory could not be made.
    #[error("create {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The log did not open.
    #[error("open the log in {}", path.display())]
    Log {
        /// The directory of the log.
        path: PathBuf,
        /// Why not, and what to do.
        source: Box<logdrive_wal::OpenError>,
    },
    /// A group did not start.
    #[error(transparent)]
    Group(#[from] logdrive_shard::StartError),
    /// A state machine did not open.
    #[error("the state machine of group {group} did not open: {what}")]
    Machine {
        /// The group.
        group: GroupId,
        /// What it said.
        what: String,
    },
    /// What lies where snapshots are kept cannot be used.
    #[error("open the snapshots in {}: {why}", path.display())]
    Snapshots {
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A port could not be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread could not be started.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
    /// The thread ended before it had started.
    #[error("the engine's thread ended before it had started: {0}")]
    Died(String),
}

macro_rules! start_codes {
    ($($pattern:pat => $code:literal, $advice:literal;)*) => {
        impl StartError {
            /// Every code there is. `docs/errors.md` has a line for each.
            pub const CODES: &[&str] = &[$($code),*];

            /// The stable name of the error.
            #[must_use]
            pub fn code(&self) -> &'static str {
                match self { $($pattern => $code,)* }
            }

            /// What to do about it. Messages of the log, of a group and of a port say more.
            #[must_use]
            pub fn advice(&self) -> &'static str {
                match self { $($pattern => $advice,)* }
            }
        }
    };
}

start_codes! {
    Self::Configuration(_) => "configuration",
        "change the setting that the message names";
    Self::Directory { .. } => "directory",
        "create the directory, or let this user write to the one above it";
    Self::Log { .. } => "log",
        "see what `logdrive wal verify` says of the directory";
    Self::Group(_) => "group",
        "start with the machine that goes with this directory, or with an empty one";
    Self::Machine { .. } => "machine",
        "mend what the machine complains of; the log is untouched";
    Self::Snapshots { .. } => "snapshots",
        "see to what the file system reports of the directory that the message names; the log is untouched";
    Self::Listen { .. } => "listen",
        "choose another address, or stop the process that has it";
    Self::Thread(_) => "thread",
        "raise the number of threads that the system allows this user";
    Self::Died(_) => "died",
        "report it with the log lines before; the data directory is as the last start left it";
}
