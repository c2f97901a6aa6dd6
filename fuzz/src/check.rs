//! What must hold of every decoder, whatever the bytes.

use std::fmt::Debug;

use logdrive_raft::wire::{Decode, Encode};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Runs `decode`, which may take memory in proportion to `input_bytes` and no more: a length that lies costs
/// its reader nothing.
pub(crate) fn bounded<T>(input_bytes: usize, decode: impl FnOnce() -> T) -> T {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let decoded = decode();
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    let most = 8 * input_bytes + (16 << 10);
    assert!(
        taken <= most,
        "{taken} bytes taken to decode {input_bytes}, and {most} are allowed"
    );
    decoded
}

/// A format in which a value is written in one way only: whatever is read is what would be written.
pub(crate) fn canonical<T: Decode + Encode>(data: &[u8]) {
    if let Ok(value) = bounded(data.len(), || T::from_bytes(data)) {
        assert_eq!(value.to_bytes(), data, "it would be written differently");
    }
}

/// A format that skips what a later version adds: what is read is read again from what would be written.
pub(crate) fn faithful<T: Decode + Encode + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let value = bounded(data.len(), || T::from_bytes(data)).ok()?;
    let again = T::from_bytes(&value.to_bytes());
    assert_eq!(
        again.as_ref(),
        Ok(&value),
        "it does not survive being written"
    );
    Some(value)
}
