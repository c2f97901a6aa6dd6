//! What a run, or many, really met: a fault that never happened proves nothing.

use std::fmt;

/// Something that has to happen in some run for a set of runs to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it; NAMES has them in words")]
pub enum Mark {
    Delay,
    Loss,
    Repeat,
    Reorder,
    Late,
    Clog,
    Bandwidth,
    LaneFull,
    Partition,
    Isolate,
    Halves,
    Bridge,
    Deaf,
    Mute,
    Chained,
    QuorumLoss,
    Constrained,
    Flapping,
    Reset,
    ProcessCrash,
    PowerCut,
    WholeClusterPowerCut,
    CrashInRecovery,
    KillThenPowerCut,
    LeaderCrash,
    Pause,
    ClockRate,
    SlowApply,
    ReadError,
    ShortRead,
    WriteError,
    ShortWrite,
    FlushError,
    FlushReverts,
    NoSpace,
    Stall,
    SlowFlush,
    LandedLate,
    FileCut,
    FileLost,
    TornSector,
    Rot,
    Guarded,
    Repaired,
    RepairedUnled,
    Poisoned,
    RefusedStart,
    NeverAppended,
    Retried,
    MayYetCommit,
    Busy,
    LogCut,
    ManyGroups,
    LargePayload,
    LargestPayload,
    EmptyPayload,
    SnapshotTaken,
    Shortened,
    Released,
    Installed,
    CrashWriting,
    CrashStoring,
    CrashChecking,
    CrashRetiring,
    CrashSending,
    CrashFetching,
    CrashBasing,
    CrashFollowing,
    CrashInstalled,
    FilesNoSpace,
    FilesWriteError,
    FilesFlushError,
    FilesReadError,
    SnapshotRot,
    ReceivingRot,
    Unreadable,
    Lacking,
    Outrun,
    TwoFetch,
    SourceLost,
    KeptLog,
    Wiped,
    Restored,
    FlushLied,
    LostWrite,
    Misdirected,
    FlushErrorLate,
    Stranger,
}

const NAMES: [(Mark, &str); 88] = [
    (Mark::Delay, "slow messages"),
    (Mark::Loss, "lost messages"),
    (Mark::Repeat, "repeated messages"),
    (Mark::Reorder, "messages overtaken in their lane"),
    (Mark::Late, "messages of an earlier connection"),
    (Mark::Clog, "clogged links"),
    (Mark::Bandwidth, "messages that waited for bandwidth"),
    (Mark::LaneFull, "full lanes"),
    (Mark::Partition, "messages lost to a cut link"),
    (Mark::Isolate, "a node alone"),
    (Mark::Halves, "two halves"),
    (Mark::Bridge, "two halves with a bridge"),
    (Mark::Deaf, "a node that hears nobody"),
    (Mark::Mute, "a node that nobody hears"),
    (Mark::Chained, "a chain"),
    (Mark::QuorumLoss, "one node with a quorum"),
    (
        Mark::Constrained,
        "one node with a quorum that did not lead",
    ),
    (
        Mark::Flapping,
        "links that were cut right after they had been mended",
    ),
    (Mark::Reset, "connection resets"),
    (Mark::ProcessCrash, "killed processes"),
    (Mark::PowerCut, "power cuts"),
    (
        Mark::WholeClusterPowerCut,
        "power cuts of the whole cluster",
    ),
    (Mark::CrashInRecovery, "crashes inside a recovery"),
    (Mark::KillThenPowerCut, "a power cut after a kill"),
    (Mark::LeaderCrash, "leaders that crashed"),
    (Mark::Pause, "pauses"),
    (Mark::ClockRate, "clocks that run wrong"),
    (Mark::SlowApply, "a full queue to the applier"),
    (Mark::ReadError, "failed reads"),
    (Mark::ShortRead, "short reads"),
    (Mark::WriteError, "failed writes"),
    (Mark::ShortWrite, "short writes"),
    (Mark::FlushError, "failed flushes"),
    (
        Mark::FlushReverts,
        "failed flushes that took back what was written",
    ),
    (Mark::NoSpace, "disks without space"),
    (Mark::Stall, "stalled disks"),
    (Mark::SlowFlush, "slow flushes"),
    (
        Mark::LandedLate,
        "blocks of a killed process that landed later",
    ),
    (Mark::FileCut, "files that a power cut made shorter"),
    (Mark::FileLost, "new files that a power cut took"),
    (Mark::TornSector, "blocks torn at 512 bytes"),
    (Mark::Rot, "rot at rest"),
    (Mark::Guarded, "starts with a tail guard"),
    (
        Mark::Repaired,
        "runs that could not be read and came back from a peer",
    ),
    (
        Mark::RepairedUnled,
        "of these such where no leader was known",
    ),
    (Mark::Poisoned, "poisoned logs"),
    (Mark::RefusedStart, "refused starts"),
    (Mark::NeverAppended, "proposals never appended"),
    (Mark::Retried, "proposals sent again"),
    (Mark::MayYetCommit, "proposals with an unknown outcome"),
    (Mark::Busy, "full doors"),
    (Mark::LogCut, "logs cut by a leader"),
    (Mark::ManyGroups, "many groups"),
    (Mark::LargePayload, "payloads as large as the log admits"),
    (Mark::LargestPayload, "payloads of 1 MiB"),
    (Mark::EmptyPayload, "empty payloads"),
    (Mark::SnapshotTaken, "snapshots"),
    (Mark::Shortened, "logs cut behind a snapshot"),
    (Mark::Released, "logs whose first segments were taken again"),
    (Mark::Installed, "snapshots fetched and installed"),
    (Mark::CrashWriting, "crashes while a snapshot was written"),
    (Mark::CrashStoring, "crashes while parts of one were stored"),
    (
        Mark::CrashChecking,
        "crashes while a received one was read back and renamed",
    ),
    (Mark::CrashRetiring, "crashes while older ones were removed"),
    (Mark::CrashSending, "crashes of who had just sent a part"),
    (
        Mark::CrashFetching,
        "crashes of who had just asked for a part",
    ),
    (
        Mark::CrashBasing,
        "crashes before the base of an install was durable",
    ),
    (
        Mark::CrashFollowing,
        "crashes between the base and the machine",
    ),
    (Mark::CrashInstalled, "crashes right after an install"),
    (Mark::FilesNoSpace, "snapshots without space"),
    (Mark::FilesWriteError, "failed writes of snapshots"),
    (Mark::FilesFlushError, "failed flushes of snapshots"),
    (Mark::FilesReadError, "failed reads of snapshots"),
    (Mark::SnapshotRot, "rot of finished snapshots"),
    (Mark::ReceivingRot, "rot of what was received of one"),
    (Mark::Unreadable, "snapshots that peers could not be given"),
    (
        Mark::Lacking,
        "starts without the snapshot that the log begins at",
    ),
    (Mark::Outrun, "fetches that were outrun and began again"),
    (
        Mark::TwoFetch,
        "two followers of a group that fetched at once",
    ),
    (Mark::SourceLost, "fetches that lost their source"),
    (
        Mark::KeptLog,
        "logs kept for a follower that had fetched a snapshot",
    ),
    (Mark::Wiped, "emptied disks"),
    (Mark::Restored, "restored images"),
    (Mark::FlushLied, "flushes that lied"),
    (Mark::LostWrite, "lost writes"),
    (Mark::Misdirected, "misdirected writes"),
    (
        Mark::FlushErrorLate,
        "failed flushes that were told too late",
    ),
    (Mark::Stranger, "strangers"),
];

impl Mark {
    /// Every mark there is.
    pub fn all() -> impl Iterator<Item = Mark> {
        NAMES.iter().map(|(mark, _)| *mark)
    }

    /// Every mark that runs within the limit have to hit.
    pub fn within_limit() -> impl Iterator<Item = Mark> {
        NAMES
            .iter()
            .map(|(mark, _)| *mark)
            .filter(|mark| *mark < Mark::Wiped)
    }

    /// Every mark that runs beyond the limit have to hit.
    pub fn beyond_limit() -> impl Iterator<Item = Mark> {
        NAMES
            .iter()
            .map(|(mark, _)| *mark)
            .filter(|mark| *mark >= Mark::Wiped)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES[*self as usize].1)
    }
}

/// How often each mark was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    hits: [u64; NAMES.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            hits: [0; NAMES.len()],
        }
    }
}

impl Coverage {
    /// It happened.
    pub fn hit(&mut self, mark: Mark) {
        self.add(mark, 1);
    }

    /// It happened so many times.
    pub fn add(&mut self, mark: Mark, times: u64) {
        self.hits[mark as usize] += times;
    }

    /// How often it happened.
    #[must_use]
    pub fn of(&self, mark: Mark) -> u64 {
        self.hits[mark as usize]
    }

    /// Adds what another run met.
    pub fn merge(&mut self, other: &Coverage) {
        for (own, other) in self.hits.iter_mut().zip(other.hits) {
            *own += other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_has_its_name_at_its_place() {
        for (place, (mark, _)) in NAMES.iter().enumerate() {
            assert_eq!(*mark as usize, place);
        }
        assert!(Mark::within_limit().count() >= 20);
    }
}
