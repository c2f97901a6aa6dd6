//! What a log is told when it is opened.

use logdrive_raft::limits::FRAME_BYTES_MAX;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{ClusterId, Incarnation, NodeId};

use crate::disk::{BLOCK_BYTES, FlushMode, WatchdogLimits};

/// The smallest slot: 16 blocks.
pub const SLOT_BYTES_MIN: u64 = 64 << 10;

/// The largest slot: an entry's place in it is a `u32`.
pub const SLOT_BYTES_MAX: u64 = 1 << 31;

/// The fewest slots a log makes do with: the active one and the two before it, which are kept, one to roll to, and two
/// in reserve.
pub const SLOTS_MIN: u64 = 6;

/// Whose log this is. A directory of somebody else is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// What a new directory is given: random, and drawn by the caller, so that a seed decides in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshIds {
    /// The life of the directory.
    pub incarnation: Incarnation,
    /// The log within it.
    pub log_uuid: u128,
}

impl FreshIds {
    /// Ids from the system's source of randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        let half =
            |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().expect("16 bytes"));
        Ok(Self {
            incarnation: Incarnation(half(0)),
            log_uuid: half(16),
        })
    }
}

/// How the flush mode is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushModeChoice {
    /// What the disk recommends, which may have measured it, until a watchdog on the flushes finds that mode
    /// bad: then the other one.
    #[default]
    Auto,
    /// Each write is durable when it completes. Never changed.
    Dsync,
    /// Plain writes and one flush at a time. Never changed.
    DrainedFsync,
}

impl FlushModeChoice {
    /// The name in configurations: `auto`, `dsync` or `drained_fsync`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Dsync => FlushMode::Dsync.name(),
            Self::DrainedFsync => FlushMode::DrainedFsync.name(),
        }
    }
}

/// How many flush groups may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightMax {
    /// Those that are not full. More of them buy no latency and double the work.
    pub partial: usize,
    /// All of them.
    pub all: usize,
}

/// How sealed segments are read again, to find what goes bad at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// No faster than so many bytes a second.
    pub bytes_per_s: u64,
    /// Not all of it more often than this, in microseconds.
    pub every_us: u64,
}

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose log it is.
    pub identity: Identity,
    /// Bytes of a slot file; whole blocks, at least [`SLOT_BYTES_MIN`]. Slots that exist keep their size.
    pub slot_bytes: u64,
    /// How far the pool of slots grows.
    pub bytes_max: u64,
    /// The most data in a flush group; an entry above it travels alone.
    pub group_bytes_max: usize,
    /// The largest frame that will be appended. A slot must hold one.
    pub frame_bytes_max: usize,
    /// How many flush groups may be in flight.
    pub in_flight_max: InFlightMax,
    /// How the flush mode is chosen.
    pub flush_mode: FlushModeChoice,
    /// How long a flush mode that was not forced may be bad before the other one is used.
    pub watchdog: WatchdogLimits,
    /// How long the log has been idle when it states so, in microseconds.
    pub idle_mark_us: u64,
    /// How sealed segments are read again; none: they are not.
    pub scrub: Option<ScrubPace>,
    /// Used if the directory is new.
    pub fresh: FreshIds,
    /// The bug that is switched on, in builds that hold some.
    pub mutant: Option<Mutant>,
}

impl Options {
    /// The defaults: slots of 64 MiB, up to 8 GiB of them.
    #[must_use]
    pub fn new(identity: Identity, fresh: FreshIds) -> Self {
        Self {
            identity,
            slot_bytes: 64 << 20,
            bytes_max: 8 << 30,
            group_bytes_max: 1 << 20,
            frame_bytes_max: FRAME_BYTES_MAX,
            in_flight_max: InFlightMax { partial: 2, all: 8 },
            flush_mode: FlushModeChoice::Auto,
            watchdog: WatchdogLimits::default(),
            idle_mark_us: 1500,
            scrub: None,
            fresh,
            mutant: None,
        }
    }

    /// Slots of another size, at most `slots` of them, and limits that fit into them.
    #[must_use]
    pub fn with_slots(self, slot_bytes: u64, slots: u64) -> Self {
        self.with_pool(slot_bytes, slot_bytes * slots)
    }

    /// Slots of another size, as many as `bytes_max` holds, and limits that fit into them.
    #[must_use]
    pub fn with_pool(mut self, slot_bytes: u64, bytes_max: u64) -> Self {
        self.slot_bytes = slot_bytes;
        self.bytes_max = bytes_max;
        let quarter = usize::try_from(slot_bytes / 4).unwrap_or(usize::MAX);
        self.group_bytes_max = self.group_bytes_max.min(quarter);
        self.frame_bytes_max = self.frame_bytes_max.min(quarter);
        self
    }

    pub(crate) fn slot_blocks(&self) -> u32 {
        u32::try_from(self.slot_bytes / BLOCK_BYTES as u64).expect("bounded by SLOT_BYTES_MAX")
    }

    /// Why these sizes cannot work, if they cannot. An opening asks it first.
    pub fn check_sizes(&self) -> Result<(), String> {
        let Self {
            slot_bytes,
            bytes_max,
            frame_bytes_max,
            ..
        } = *self;
        if !(SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&slot_bytes) {
            return Err(format!(
                "slots of {slot_bytes} bytes: at least {SLOT_BYTES_MIN}, at most {SLOT_BYTES_MAX}"
            ));
        }
        if !slot_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(format!(
                "slots of {slot_bytes} bytes are not whole blocks of {BLOCK_BYTES}"
            ));
        }
        if bytes_max / slot_bytes < SLOTS_MIN {
            return Err(format!(
                "{bytes_max} bytes hold fewer than {SLOTS_MIN} slots of {slot_bytes}"
            ));
        }
        // What else a slot has to hold is checked against the groups there are.
        if frame_bytes_max as u64 > slot_bytes / 2 {
            return Err(format!(
                "slots of {slot_bytes} bytes are too small for entries of {frame_bytes_max}"
            ));
        }
        Ok(())
    }
}
