//! What can go wrong with an operation of a simulated disk.

use fastrand::Rng;
use logdrive_wal::disk::Op;

/// Something that goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write or zero-fill fails; a part of it may have reached the medium.
    WriteError,
    /// A write ends early and says so.
    ShortWrite,
    /// A write, a zero-fill or the making of a file finds no space.
    NoSpace,
    /// A flush fails. The next one would succeed without the data.
    FlushError,
    /// A read fails.
    ReadError,
}

impl Fault {
    /// Whether it can happen to this operation.
    pub(super) fn concerns(self, op: &Op) -> bool {
        match self {
            Fault::WriteError | Fault::ShortWrite => matches!(op, Op::Write { .. }),
            Fault::NoSpace => matches!(op, Op::Create { .. } | Op::Zero { .. }),
            Fault::FlushError => matches!(op, Op::Flush { .. }),
            Fault::ReadError => matches!(op, Op::Read { .. }),
        }
    }
}

/// How often operations fail by themselves, in a million.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultRates {
    /// Writes that fail.
    pub write_error_ppm: u32,
    /// Writes that end early.
    pub short_write_ppm: u32,
    /// Flushes that fail.
    pub flush_error_ppm: u32,
    /// Reads that fail.
    pub read_error_ppm: u32,
    /// Zero-fills and new files that find no space.
    pub no_space_ppm: u32,
}

impl FaultRates {
    pub(super) fn draw(&self, op: &Op, rng: &mut Rng) -> Option<Fault> {
        let rates = [
            (Fault::WriteError, self.write_error_ppm),
            (Fault::ShortWrite, self.short_write_ppm),
            (Fault::FlushError, self.flush_error_ppm),
            (Fault::ReadError, self.read_error_ppm),
            (Fault::NoSpace, self.no_space_ppm),
        ];
        rates
            .into_iter()
            .filter(|(fault, rate)| *rate > 0 && fault.concerns(op))
            .find(|(_, rate)| rng.u32(0..1_000_000) < *rate)
            .map(|(fault, _)| fault)
    }
}
