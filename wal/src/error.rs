//! What can go wrong with a log, and what to do about it.

use std::path::PathBuf;

use logdrive_raft::wire::DecodeError;
use logdrive_raft::{ClusterId, GroupId, Index, NodeId, Term};

use crate::disk::DiskError;

/// What a finding says about the place it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FindingVerdict {
    /// One of two copies of something is bad and the other one is good. Nothing is lost, and opening the log
    /// writes the copy again.
    ///
    /// The copy was durable, so the medium did go bad there, and that is worth a line and a look at the
    /// device. But a log that opens, and has everything that was acknowledged, is not called rot: whoever
    /// asks `verify` wants to know whether the node would start, so this alone leaves the verdict as it is.
    Healable,
    /// Something that was durable reads back bad, and nobody misses it: it was cut or covered since, or what it said is
    /// said elsewhere too. It is told until its segment is released; the verdict stays as it is.
    Mended,
    /// Something that was durable reads back bad.
    Rot,
    /// The same, and all that is lost with it are entries of which it is known which they are: the log is opened, and its
    /// replicas get them back from the others.
    Holed,
    /// Something at the end of the log is neither what was written nor what was there before. It may have
    /// been acknowledged, and so may a vote that it hides.
    Suspect,
    /// The same, and all that it may hide are entries: the log is opened, and its groups are guarded.
    Guarded,
}

impl FindingVerdict {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healable => "healable",
            Self::Mended => "mended",
            Self::Rot | Self::Holed => "rot",
            Self::Suspect | Self::Guarded => "suspect",
        }
    }

    /// Whether a log with such a finding is not opened.
    #[must_use]
    pub fn refuses(self) -> bool {
        matches!(self, Self::Rot | Self::Suspect)
    }
}

/// Something wrong with the log on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of wrong.
    pub verdict: FindingVerdict,
    /// In which file.
    pub file: PathBuf,
    /// Where in the file.
    pub offset_bytes: u64,
    /// The group that is hit, if that can be told.
    pub group: Option<GroupId>,
    /// The first entry that is hit, if that can be told.
    pub index: Option<Index>,
    /// Its term, if that can be told.
    pub term: Option<Term>,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub advice: &'static str,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.file.display();
        write!(
            f,
            "{} {file} offset {}",
            self.verdict.name(),
            self.offset_bytes
        )?;
        if let Some(group) = self.group {
            write!(f, " group {group}")?;
        }
        if let Some(index) = self.index {
            write!(f, " index {index}")?;
        }
        write!(f, ": {}; {}", self.meaning, self.advice)
    }
}

/// Advice for what was durable and reads back bad.
pub(crate) const ADVICE_ROT: &str = "do not delete anything: keep a copy of the directory, check the \
    device, and replace this replica from the others with a new directory";

/// Advice for an end of the log that cannot be judged.
pub(crate) const ADVICE_SUSPECT: &str = "the last write may have been acknowledged: keep a copy of the \
    directory, check the device, and replace this replica from the others with a new directory";

/// Advice for an end of the log that is guarded.
pub(crate) const ADVICE_GUARDED: &str = "the last write may have been acknowledged: the node starts, and neither \
    leads nor elects anybody who has less until a leader has brought that back; check the device";

/// Advice for entries that are lost and that the others have.
pub(crate) const ADVICE_HOLED: &str = "the node starts, and until it has these entries back from the others it neither \
    leads nor acknowledges or applies what comes after them; check the device";

/// Advice for a copy that went bad.
pub(crate) const ADVICE_HEALABLE: &str = "nothing is lost: the other copy is good, and opening the log writes this one again; check the device";

/// Advice for what went bad while the log is open.
pub(crate) const ADVICE_SCRUBBED: &str = "nothing is lost while another node has it, and the next start finds what was written again; check the device";

pub(crate) const ADVICE_MENDED: &str = "nothing is lost: what was there was cut or covered since, or is said elsewhere too; this line ends once that part of the log is released; check the device";

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process: stop it, or give this one a directory of its own", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// It belongs to another cluster.
    #[error(
        "{} belongs to cluster {found}, this node is configured for {configured}: correct cluster.id or \
         node.dir", path.display()
    )]
    WrongCluster {
        /// The slot that says so.
        path: PathBuf,
        /// What it says.
        found: ClusterId,
        /// What was expected.
        configured: ClusterId,
    },
    /// It belongs to another node.
    #[error(
        "{} belongs to node {found}, this node is configured as {configured}: correct node.id or \
         node.dir", path.display()
    )]
    WrongNode {
        /// The slot that says so.
        path: PathBuf,
        /// What it says.
        found: NodeId,
        /// What was expected.
        configured: NodeId,
    },
    /// A later logdrive wrote it.
    #[error("{}: this log was written by a later logdrive", path.display())]
    FromTheFuture {
        /// The slot.
        path: PathBuf,
        /// Both versions, and what to upgrade.
        source: DecodeError,
    },
    /// What was durable reads back bad.
    #[error("the log is damaged below what was durable:{}", list(findings))]
    Rot {
        /// Where, and what to do.
        findings: Vec<Finding>,
    },
    /// The end of the log cannot be judged.
    #[error(
        "the end of the log is damaged and may have been acknowledged:{}",
        list(findings)
    )]
    Suspect {
        /// Where, and what to do.
        findings: Vec<Finding>,
    },
    /// The configured sizes do not work.
    #[error("{why}: correct wal.slot_bytes or wal.bytes_max")]
    Sizes {
        /// Why.
        why: String,
    },
    /// The directory holds no log, or not one log.
    #[error("{} is not a log: {why}", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is no space to open a new segment.
    #[error("no space for {}: free some, or raise wal.bytes_max", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The disk refused.
    #[error("the disk failed while the log was opened")]
    Disk {
        /// What failed, and on which file.
        source: DiskError,
    },
    /// A write or flush failed while the new segment was opened.
    #[error("the log could not be opened")]
    Poisoned {
        /// What failed.
        source: PoisonReason,
    },
}

fn list(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("\n  {finding}"))
        .collect()
}

impl From<DiskError> for OpenError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Locked { path } => OpenError::Locked { path },
            DiskError::NoSpace { path, source } => OpenError::NoSpace { path, source },
            source => OpenError::Disk { source },
        }
    }
}

impl From<PoisonReason> for OpenError {
    fn from(source: PoisonReason) -> Self {
        OpenError::Poisoned { source }
    }
}

/// Why a log accepts nothing any more in this process. What it holds is judged by the next opening.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {} at byte {offset_bytes} failed: {error}", path.display())]
pub struct PoisonReason {
    /// What was tried.
    pub what: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Where.
    pub offset_bytes: u64,
    /// What the system said.
    pub error: String,
}

/// Why writes were not queued. None of them was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The pool of slots is full but for its reserve.
    #[error("the log has no room left")]
    Full,
    /// A write or flush has failed.
    #[error("the log is poisoned: a write or flush failed")]
    Poisoned,
    /// There is no such group here.
    #[error("group {0} is not in this log")]
    UnknownGroup(GroupId),
    /// A frame is larger than the log was configured for.
    #[error("a frame of {bytes} bytes is more than the {bytes_max} this log takes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most.
        bytes_max: usize,
    },
    /// The group exists already, with this genesis or another one.
    #[error("group {0} exists already")]
    GroupExists(GroupId),
    /// A slot has to hold the checkpoint of all groups beside one largest entry, and would not.
    #[error(
        "slots of {slot_bytes} bytes do not hold the checkpoint of {groups} groups and an entry: raise \
         wal.slot_bytes, or have fewer groups here"
    )]
    TooManyGroups {
        /// How many there would be.
        groups: usize,
        /// The configured size.
        slot_bytes: u64,
    },
    /// Every slot has to hold the anchors of all groups beside one largest entry, and would not.
    #[error(
        "slots of {slot_bytes} bytes do not hold an anchor or base of {bytes} beside all else that they have to: \
         raise wal.slot_bytes, or have fewer groups here"
    )]
    AnchorTooLarge {
        /// Bytes of its record.
        bytes: usize,
        /// The configured size.
        slot_bytes: u64,
    },
    /// There was such a group, and its id is not used again.
    #[error("group {0} was removed, and no group gets its id again: choose another")]
    GroupRemoved(GroupId),
}

/// Why entries that are missing were not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SupplyError {
    /// They are not those of the path, or not as far as that can be told.
    #[error("these entries are not on the path of the log")]
    OffPath,
    /// The log takes none.
    #[error(transparent)]
    Refused(#[from] AppendError),
}

/// Why a read was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadRefused {
    /// As many reads as may be under way are under way: ask again once one has ended.
    #[error("too many reads are under way")]
    Busy,
    /// There is no such group here.
    #[error("the group is not in this log")]
    UnknownGroup,
    /// The first entry wanted lies below the base.
    #[error("the entry has been cut away: the log begins above it")]
    BelowBase,
    /// The first entry wanted is not on the path, or not durable yet.
    #[error("the entry is not durable here")]
    NotDurable,
}

/// Why entries could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The log was cut meanwhile: the entries are no longer part of it.
    #[error("the entries are no longer on the path")]
    OffPath,
    /// They are durable and read back bad.
    #[error("{0}")]
    Rot(Box<Finding>),
    /// The read failed.
    #[error("read {} failed: {error}", path.display())]
    Io {
        /// On which file.
        path: PathBuf,
        /// What the system said.
        error: String,
    },
}
