//! The bounds that formats and peers agree on, tied to each other at compile time.

/// The most bytes of payload one entry carries. An entry with a larger proposal does not exist.
pub const ENTRY_PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The most proposals one entry carries.
pub const ENTRY_PROPOSALS_MAX: usize = 1 << 16;

/// The bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 80;

/// The bytes of a row of the proposal table when it holds lengths alone.
pub const TABLE_LENGTH_BYTES: usize = 4;

/// The bytes of a full row of the proposal table.
pub const TABLE_ROW_BYTES: usize = 32;

/// The most bytes of a whole frame: header, the largest table, the largest payload.
pub const FRAME_BYTES_MAX: usize =
    ENTRY_HEADER_BYTES + ENTRY_PROPOSALS_MAX * TABLE_ROW_BYTES + ENTRY_PAYLOAD_BYTES_MAX;

/// The most bytes of frames in one append message.
pub const APPEND_BYTES_MAX: usize = FRAME_BYTES_MAX;

/// The most entries in one append message.
pub const APPEND_ENTRIES_MAX: usize = 1024;

/// The most replicas a group's membership names, learners included.
pub const MEMBERS_MAX: usize = 31;

/// The most memberships that a replica states when a guard is settled: more are under way only after a loss.
pub const CONFIGURATIONS_MAX: usize = 8;

/// The longest address of a member, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// The most groups one write-ahead log holds.
pub const GROUPS_MAX: usize = 1 << 16;

const _: () = {
    // Lengths in headers are u32.
    assert!(FRAME_BYTES_MAX < u32::MAX as usize);
    // An append holds at least one entry of any size.
    assert!(APPEND_BYTES_MAX >= FRAME_BYTES_MAX);
};
