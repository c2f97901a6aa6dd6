//! What can go wrong with an operation of a simulated disk, how often, and what did.
//!
//! A failed flush has three after-states (Rebello et al., USENIX ATC '20). The page cache may keep the new
//! bytes and call them clean, as ext4 and XFS do: they read well, and no later flush makes them durable. It
//! may take them back, as Btrfs does. Or the flush that loses the bytes says that all is well and the next one
//! is told, as ext4 with `data=journal` does.
//!
//! The last one is beyond the limit: a log has acknowledged, by the word of its disk, what is not there. It
//! is a lie about a flush, only confessed later. So are lying flushes, and writes that are lost or land
//! somewhere else. [`Fault::is_within_limit`] says so, that a plan can keep the two kinds apart.

use logdrive_wal::disk::Op;

/// Something that goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// A write or zero-fill fails; a part of it may have reached the disk.
    WriteError = 1,
    /// A write or zero-fill ends early and says so.
    ShortWrite,
    /// A write, a zero-fill or the making of a file finds no space.
    NoSpace,
    /// A flush fails. With a page cache the bytes stay visible and no later flush owes them any more.
    /// Without one there is nobody to forget them: the disk still has them in its own cache.
    FlushError,
    /// A flush fails, and the bytes that it was to make durable are the old ones again.
    FlushReverts,
    /// A flush says that all is well, makes nothing durable and forgets what it owed. The next one fails.
    FlushErrorLate,
    /// A read fails.
    ReadError,
    /// A read ends early and says so.
    ShortRead,
    /// An operation takes very much longer.
    Stall,
    /// A flush, or a write that is to be durable, says that all is well and flushes nothing.
    LyingFlush,
    /// A write says that all is well and writes nothing.
    LostWrite,
    /// A write says that all is well and lands somewhere else.
    MisdirectedWrite,
}

/// What an operation is, as far as faults are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    WriteDsync,
    Zero,
    Read,
    Flush,
    Create,
}

impl Kind {
    pub(super) fn of(op: &Op) -> Self {
        match op {
            Op::Write { dsync: true, .. } => Self::WriteDsync,
            Op::Write { .. } => Self::Write,
            Op::Zero { .. } => Self::Zero,
            Op::Read { .. } => Self::Read,
            Op::Flush { .. } => Self::Flush,
            Op::Create { .. } => Self::Create,
        }
    }

    fn faults(self) -> &'static [Fault] {
        use Fault::*;
        match self {
            Self::Write => &[WriteError, ShortWrite, Stall, LostWrite, MisdirectedWrite],
            Self::WriteDsync => &[
                WriteError,
                ShortWrite,
                Stall,
                LostWrite,
                MisdirectedWrite,
                LyingFlush,
            ],
            Self::Zero => &[WriteError, ShortWrite, NoSpace, Stall],
            Self::Read => &[ReadError, ShortRead, Stall],
            Self::Flush => &[FlushError, FlushReverts, FlushErrorLate, Stall, LyingFlush],
            Self::Create => &[NoSpace, Stall],
        }
    }
}

impl Fault {
    /// Every fault there is.
    pub const ALL: [Fault; 12] = [
        Fault::WriteError,
        Fault::ShortWrite,
        Fault::NoSpace,
        Fault::FlushError,
        Fault::FlushReverts,
        Fault::FlushErrorLate,
        Fault::ReadError,
        Fault::ShortRead,
        Fault::Stall,
        Fault::LyingFlush,
        Fault::LostWrite,
        Fault::MisdirectedWrite,
    ];

    /// Whether a log loses nothing that it acknowledged to this fault alone, or stops.
    #[must_use]
    pub fn is_within_limit(self) -> bool {
        !matches!(
            self,
            Fault::FlushErrorLate | Fault::LyingFlush | Fault::LostWrite | Fault::MisdirectedWrite
        )
    }

    /// Whether it can happen to this kind of operation.
    pub(super) fn concerns(self, kind: Kind) -> bool {
        kind.faults().contains(&self)
    }

    pub(super) fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| *fault as u64 == number)
    }
}

/// How often operations fail by themselves, in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Writes and zero-fills that fail.
    pub write_error_ppm: u32,
    /// Writes and zero-fills that end early.
    pub short_write_ppm: u32,
    /// Flushes that fail.
    pub flush_error_ppm: u32,
    /// Flushes that fail and bring the old bytes back.
    pub flush_reverts_ppm: u32,
    /// Flushes that fail and tell the next one. Beyond the limit.
    pub flush_error_late_ppm: u32,
    /// Reads that fail.
    pub read_error_ppm: u32,
    /// Reads that end early.
    pub short_read_ppm: u32,
    /// Zero-fills and new files that find no space.
    pub no_space_ppm: u32,
    /// Operations that stall.
    pub stall_ppm: u32,
    /// Flushes that lie. Beyond the limit.
    pub lying_flush_ppm: u32,
    /// Writes that are lost. Beyond the limit.
    pub lost_write_ppm: u32,
    /// Writes that land somewhere else. Beyond the limit.
    pub misdirected_write_ppm: u32,
}

impl FaultRates {
    fn of(&self, fault: Fault) -> u32 {
        match fault {
            Fault::WriteError => self.write_error_ppm,
            Fault::ShortWrite => self.short_write_ppm,
            Fault::NoSpace => self.no_space_ppm,
            Fault::FlushError => self.flush_error_ppm,
            Fault::FlushReverts => self.flush_reverts_ppm,
            Fault::FlushErrorLate => self.flush_error_late_ppm,
            Fault::ReadError => self.read_error_ppm,
            Fault::ShortRead => self.short_read_ppm,
            Fault::Stall => self.stall_ppm,
            Fault::LyingFlush => self.lying_flush_ppm,
            Fault::LostWrite => self.lost_write_ppm,
            Fault::MisdirectedWrite => self.misdirected_write_ppm,
        }
    }

    /// The faults of this kind of operation by their numbers, each with its rate.
    pub(super) fn rates(&self, kind: Kind) -> impl Iterator<Item = (u64, u32)> + Clone {
        let faults = kind.faults().iter();
        faults.map(|fault| (*fault as u64, self.of(*fault)))
    }
}

/// What has really gone wrong with a medium so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Writes and zero-fills that failed.
    pub write_errors: u64,
    /// Writes and zero-fills that ended early.
    pub short_writes: u64,
    /// Writes, zero-fills and new files that found no space.
    pub no_space: u64,
    /// Flushes that failed.
    pub flush_errors: u64,
    /// Flushes that failed and brought old bytes back.
    pub flush_reverts: u64,
    /// Flushes that failed and told the next one.
    pub flush_errors_late: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Reads that ended early.
    pub short_reads: u64,
    /// Operations that stalled.
    pub stalls: u64,
    /// Flushes that lied, and had something to flush.
    pub lying_flushes: u64,
    /// Writes that were lost.
    pub lost_writes: u64,
    /// Writes that landed somewhere else.
    pub misdirected_writes: u64,
    /// Crashes of a process.
    pub process_crashes: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Unflushed blocks that a power cut lost.
    pub blocks_lost: u64,
    /// Unflushed blocks that a power cut left.
    pub blocks_kept: u64,
    /// Blocks that a power cut left half written.
    pub blocks_torn: u64,
    /// Flushes that took much longer, as beside others that write.
    pub slow_flushes: u64,
    /// Blocks of a dead process that landed later.
    pub blocks_landed_late: u64,
    /// Files that a power cut left shorter than they were written.
    pub files_cut: u64,
    /// New files that a power cut took away.
    pub files_lost: u64,
    /// Blocks that rotted.
    pub rotted: u64,
    /// How often everything was lost.
    pub wipes: u64,
    /// How often an old image was put back.
    pub restores: u64,
}

impl FaultCounts {
    /// Each count with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 24] {
        [
            ("write_errors", self.write_errors),
            ("short_writes", self.short_writes),
            ("no_space", self.no_space),
            ("flush_errors", self.flush_errors),
            ("flush_reverts", self.flush_reverts),
            ("flush_errors_late", self.flush_errors_late),
            ("read_errors", self.read_errors),
            ("short_reads", self.short_reads),
            ("stalls", self.stalls),
            ("lying_flushes", self.lying_flushes),
            ("lost_writes", self.lost_writes),
            ("misdirected_writes", self.misdirected_writes),
            ("process_crashes", self.process_crashes),
            ("power_cuts", self.power_cuts),
            ("blocks_lost", self.blocks_lost),
            ("blocks_kept", self.blocks_kept),
            ("blocks_torn", self.blocks_torn),
            ("slow_flushes", self.slow_flushes),
            ("blocks_landed_late", self.blocks_landed_late),
            ("files_cut", self.files_cut),
            ("files_lost", self.files_lost),
            ("rotted", self.rotted),
            ("wipes", self.wipes),
            ("restores", self.restores),
        ]
    }
}
