//! The records in the table of a flush group. Each begins with its kind; an unknown one halts the reader.
//!
//! Their bytes are drawn in the crate's documentation, `wal/README.md`.

use bytes::Bytes;
use logdrive_raft::io::{Guard, HardState};
use logdrive_raft::limits::GROUPS_MAX;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{
    Boot, Chain, Genesis, GroupId, Index, LogPosition, Membership, SnapshotId, Term,
};

use super::{Place, counted, decode_boot};

/// The most holes or guards that are listed, and the most rows of a footer or of term starts.
const LIST_MAX: usize = 1 << 22;

/// The most bytes of a session table that a record holds; a larger one lies in a file.
const SESSIONS_BYTES_MAX: usize = 1 << 20;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the crate's documentation says it")]
pub enum RecordKind {
    Genesis = 1,
    Entries = 2,
    Rewrite = 3,
    Truncate = 4,
    Base = 5,
    Anchor = 6,
    HardState = 7,
    Checkpoint = 8,
    Verdict = 9,
    Configuration = 10,
    GroupRemoved = 11,
    Footer = 12,
    Mention = 13,
}

/// A run of entries whose frames stand in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRun {
    /// Which group.
    pub group: GroupId,
    /// What the first entry follows.
    pub prev: LogPosition,
    /// The last entry.
    pub last: LogPosition,
    /// Bytes of all frames.
    pub bytes: u32,
}

impl EntryRun {
    /// How many entries.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.last.index.0 - self.prev.index.0
    }
}

/// Entries that are on the path and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Which group.
    pub group: GroupId,
    /// The first of them.
    pub first: Index,
    /// The last of them.
    pub last: Index,
}

/// What the log below it amounts to, so that it may be cut there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Which group.
    pub group: GroupId,
    /// The last entry that it covers.
    pub at: LogPosition,
    /// The membership there.
    pub membership: Membership,
    /// The session table there.
    pub sessions: Bytes,
    /// The first index of each term up to there.
    pub term_starts: Vec<(Term, Index)>,
    /// What did not fit.
    pub file: Option<AnchorFile>,
}

/// A file that belongs to an anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnchorFile {
    /// xxh3-128 of its contents; its name follows from it.
    pub hash: u128,
    /// Its length.
    pub bytes: u64,
}

/// What a checkpoint says of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCheckpoint {
    /// The first fact of the group.
    pub genesis: Genesis,
    /// Term and vote.
    pub hard_state: HardState,
    /// Where its log begins.
    pub base: LogPosition,
    /// The snapshot that was received up to there, if one was.
    pub snapshot: Option<SnapshotId>,
    /// Where its log ends.
    pub tip: LogPosition,
    /// The newest anchor.
    pub anchor: Option<LogPosition>,
    /// The tail guard, if it is guarded.
    pub guard: Option<Guard>,
    /// What cannot be read of it.
    pub holes: Vec<Hole>,
}

/// What a recovery decided about what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VerdictKind {
    /// Nothing had to be dropped.
    Clean = 1,
    /// The last writes had not reached the medium; nobody was told of them.
    Torn = 2,
}

/// A recovery's verdict. A segment that a recovery opened counts only with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was decided.
    pub kind: VerdictKind,
    /// Where the log ended.
    pub end: Place,
    /// The chain of flush groups there.
    pub chain: Chain,
    /// The boot that decided.
    pub boot: Boot,
    /// What could not be read.
    pub holes: Vec<Hole>,
    /// The groups that are guarded.
    pub guards: Vec<(GroupId, Guard)>,
}

/// A run in the footer of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterRow {
    /// The block where its flush group begins.
    pub block: u32,
    /// Which group.
    pub group: GroupId,
    /// A rewrite run, as opposed to an entry run.
    pub rewrite: bool,
    /// The first entry.
    pub first: Index,
    /// The last entry.
    pub last: Index,
    /// The term of the last entry.
    pub last_term: Term,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A group begins.
    Genesis(Genesis),
    /// Entries are appended: the tip is the last of them.
    Entries(EntryRun),
    /// Bytes of entries that are on the path already.
    Rewrite(EntryRun),
    /// The tip is here.
    Truncate {
        /// Which group.
        group: GroupId,
        /// The new tip.
        to: LogPosition,
    },
    /// The base is here.
    Base {
        /// Which group.
        group: GroupId,
        /// The new base.
        base: LogPosition,
        /// The snapshot that covers what lies below.
        snapshot: Option<SnapshotId>,
        /// The tip after it.
        tip: LogPosition,
    },
    /// What the log up to a point amounts to.
    Anchor(Anchor),
    /// Term and vote.
    HardState {
        /// Which group.
        group: GroupId,
        /// Term and vote.
        hard_state: HardState,
    },
    /// Where every group stands.
    Checkpoint(Vec<GroupCheckpoint>),
    /// What a recovery decided.
    Verdict(Verdict),
    /// The membership at a point, readable without payloads.
    Configuration {
        /// Which group.
        group: GroupId,
        /// Since which entry.
        at: LogPosition,
        /// The membership.
        membership: Membership,
    },
    /// A group is no longer here, and never comes back under this id.
    GroupRemoved(GroupId),
    /// Every run of the segment.
    Footer(Vec<FooterRow>),
    /// In an echo: there was a record of this kind.
    Mention {
        /// Its kind.
        kind: u8,
        /// Its group, 0 if it has none.
        group: GroupId,
    },
}

impl Record {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match self {
            Record::Genesis(_) => RecordKind::Genesis,
            Record::Entries(_) => RecordKind::Entries,
            Record::Rewrite(_) => RecordKind::Rewrite,
            Record::Truncate { .. } => RecordKind::Truncate,
            Record::Base { .. } => RecordKind::Base,
            Record::Anchor(_) => RecordKind::Anchor,
            Record::HardState { .. } => RecordKind::HardState,
            Record::Checkpoint(_) => RecordKind::Checkpoint,
            Record::Verdict(_) => RecordKind::Verdict,
            Record::Configuration { .. } => RecordKind::Configuration,
            Record::GroupRemoved(_) => RecordKind::GroupRemoved,
            Record::Footer(_) => RecordKind::Footer,
            Record::Mention { .. } => RecordKind::Mention,
        }
    }

    /// The group it speaks of, if it speaks of one.
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        match self {
            Record::Genesis(genesis) => Some(genesis.group),
            Record::Entries(run) | Record::Rewrite(run) => Some(run.group),
            Record::Anchor(anchor) => Some(anchor.group),
            Record::Truncate { group, .. }
            | Record::Base { group, .. }
            | Record::HardState { group, .. }
            | Record::Configuration { group, .. }
            | Record::Mention { group, .. }
            | Record::GroupRemoved(group) => Some(*group),
            Record::Checkpoint(_) | Record::Verdict(_) | Record::Footer(_) => None,
        }
    }

    /// What it says that this build would have to act upon and cannot.
    pub(crate) fn unsupported(&self) -> Option<&'static str> {
        if let Record::Anchor(Anchor { file: Some(_), .. }) = self {
            return Some("a file of an anchor");
        }
        let holes = match self {
            Record::Checkpoint(rows) => rows.iter().any(|row| !row.holes.is_empty()),
            Record::Verdict(verdict) => !verdict.holes.is_empty(),
            _ => false,
        };
        holes.then_some("a hole in the log")
    }

    /// What the next flush group repeats of it: all of it where it moves a tip, a base, a vote or a guard, or says what
    /// the log amounts to, and for the rest that it was there. `first`: it stands in the first flush group of a segment,
    /// where anchors are repeated themselves.
    pub fn encode_echo(&self, first: bool, out: &mut Writer<'_>) {
        match self {
            Record::Anchor(_) if !first => self.encode(out),
            Record::Entries(_)
            | Record::Rewrite(_)
            | Record::Truncate { .. }
            | Record::Base { .. }
            | Record::HardState { .. }
            | Record::Verdict(_)
            | Record::GroupRemoved(_) => self.encode(out),
            Record::Genesis(_)
            | Record::Anchor(_)
            | Record::Checkpoint(_)
            | Record::Configuration { .. }
            | Record::Footer(_)
            | Record::Mention { .. } => {
                let kind = self.kind() as u8;
                let group = self.group().unwrap_or_default();
                Record::Mention { kind, group }.encode(out);
            }
        }
    }
}

impl Encode for Record {
    fn encode(&self, out: &mut Writer<'_>) {
        (self.kind() as u8).encode(out);
        match self {
            Record::Genesis(genesis) => genesis.encode(out),
            Record::Entries(run) | Record::Rewrite(run) => run.encode(out),
            Record::Truncate { group, to } => {
                group.encode(out);
                to.encode(out);
            }
            Record::Base {
                group,
                base,
                snapshot,
                tip,
            } => {
                group.encode(out);
                base.encode(out);
                snapshot.encode(out);
                tip.encode(out);
            }
            Record::Anchor(anchor) => anchor.encode(out),
            Record::HardState { group, hard_state } => {
                group.encode(out);
                encode_hard_state(hard_state, out);
            }
            Record::Checkpoint(groups) => out.list(groups),
            Record::Verdict(verdict) => verdict.encode(out),
            Record::Configuration {
                group,
                at,
                membership,
            } => {
                group.encode(out);
                at.encode(out);
                membership.encode(out);
            }
            Record::GroupRemoved(group) => group.encode(out),
            Record::Footer(rows) => out.list(rows),
            Record::Mention { kind, group } => {
                kind.encode(out);
                group.encode(out);
            }
        }
    }
}

impl Decode for Record {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            1 => Ok(Record::Genesis(Decode::decode(input)?)),
            2 => Ok(Record::Entries(Decode::decode(input)?)),
            3 => Ok(Record::Rewrite(Decode::decode(input)?)),
            4 => Ok(Record::Truncate {
                group: Decode::decode(input)?,
                to: decode_position(input)?,
            }),
            5 => Ok(Record::Base {
                group: Decode::decode(input)?,
                base: decode_position(input)?,
                snapshot: Decode::decode(input)?,
                tip: decode_position(input)?,
            }),
            6 => Ok(Record::Anchor(Decode::decode(input)?)),
            7 => Ok(Record::HardState {
                group: Decode::decode(input)?,
                hard_state: decode_hard_state(input)?,
            }),
            8 => Ok(Record::Checkpoint(input.list("groups", GROUPS_MAX)?)),
            9 => Ok(Record::Verdict(Decode::decode(input)?)),
            10 => Ok(Record::Configuration {
                group: Decode::decode(input)?,
                at: decode_position(input)?,
                membership: Decode::decode(input)?,
            }),
            11 => Ok(Record::GroupRemoved(Decode::decode(input)?)),
            12 => Ok(Record::Footer(input.list("footer rows", LIST_MAX)?)),
            13 => Ok(Record::Mention {
                kind: Decode::decode(input)?,
                group: Decode::decode(input)?,
            }),
            other => Err(DecodeError::Version {
                what: "record kind",
                found: other.into(),
                known: RecordKind::Mention as u32,
            }),
        }
    }
}

fn encode_hard_state(hard_state: &HardState, out: &mut Writer<'_>) {
    hard_state.term.encode(out);
    hard_state.vote.encode(out);
}

fn decode_hard_state(input: &mut Reader<'_>) -> Result<HardState, DecodeError> {
    Ok(HardState {
        term: Term(counted("term", u64::decode(input)?)?),
        vote: Decode::decode(input)?,
    })
}

/// A position whose numbers counting gets to.
struct Checked(LogPosition);

impl Decode for Checked {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        decode_position(input).map(Self)
    }
}

fn decode_position(input: &mut Reader<'_>) -> Result<LogPosition, DecodeError> {
    let position = LogPosition::decode(input)?;
    counted("index of an entry", position.index.0)?;
    counted("term", position.term.0)?;
    Ok(position)
}

impl Encode for EntryRun {
    fn encode(&self, out: &mut Writer<'_>) {
        self.group.encode(out);
        self.prev.encode(out);
        self.last.encode(out);
        self.bytes.encode(out);
    }
}

impl Decode for EntryRun {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let run = Self {
            group: Decode::decode(input)?,
            prev: decode_position(input)?,
            last: decode_position(input)?,
            bytes: Decode::decode(input)?,
        };
        if run.last.index <= run.prev.index {
            return Err(DecodeError::Invalid {
                what: "last index of a run",
                value: run.last.index.0,
            });
        }
        Ok(run)
    }
}

/// A guard whose numbers can be counted on from.
fn checked_guard(guard: Guard) -> Result<Guard, DecodeError> {
    counted("term of a guard", guard.term.0)?;
    if let Some(index) = guard.index {
        counted("index of a guard", index.0)?;
    }
    Ok(guard)
}

impl Encode for Hole {
    fn encode(&self, out: &mut Writer<'_>) {
        self.group.encode(out);
        self.first.encode(out);
        self.last.encode(out);
    }
}

impl Decode for Hole {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            group: Decode::decode(input)?,
            first: Decode::decode(input)?,
            last: Decode::decode(input)?,
        })
    }
}

impl Encode for Anchor {
    fn encode(&self, out: &mut Writer<'_>) {
        self.group.encode(out);
        self.at.encode(out);
        self.membership.encode(out);
        out.bytes(&self.sessions);
        let starts: Vec<Pair<Term, Index>> =
            self.term_starts.iter().map(|s| Pair(s.0, s.1)).collect();
        out.list(&starts);
        self.file.encode(out);
    }
}

impl Decode for Anchor {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let group = Decode::decode(input)?;
        let at = decode_position(input)?;
        let membership = Decode::decode(input)?;
        let sessions = Bytes::copy_from_slice(input.bytes("session table", SESSIONS_BYTES_MAX)?);
        let starts: Vec<Pair<Term, Index>> = input.list("term starts", LIST_MAX)?;
        Ok(Self {
            group,
            at,
            membership,
            sessions,
            term_starts: starts.into_iter().map(|pair| (pair.0, pair.1)).collect(),
            file: Decode::decode(input)?,
        })
    }
}

impl Anchor {
    /// The record of an anchor.
    #[must_use]
    pub fn of(group: GroupId, anchor: &logdrive_raft::Anchor) -> Self {
        Self {
            group,
            at: anchor.at,
            membership: anchor.membership.clone(),
            sessions: anchor.sessions.clone(),
            term_starts: anchor.term_starts.clone(),
            file: None,
        }
    }

    /// What it says.
    #[must_use]
    pub fn contents(&self) -> logdrive_raft::Anchor {
        logdrive_raft::Anchor {
            at: self.at,
            membership: self.membership.clone(),
            sessions: self.sessions.clone(),
            term_starts: self.term_starts.clone(),
        }
    }
}

impl Encode for AnchorFile {
    fn encode(&self, out: &mut Writer<'_>) {
        self.hash.encode(out);
        self.bytes.encode(out);
    }
}

impl Decode for AnchorFile {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            hash: Decode::decode(input)?,
            bytes: Decode::decode(input)?,
        })
    }
}

impl Encode for GroupCheckpoint {
    fn encode(&self, out: &mut Writer<'_>) {
        self.genesis.encode(out);
        encode_hard_state(&self.hard_state, out);
        self.base.encode(out);
        self.snapshot.encode(out);
        self.tip.encode(out);
        self.anchor.encode(out);
        self.guard.encode(out);
        out.list(&self.holes);
    }
}

impl Decode for GroupCheckpoint {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            genesis: Decode::decode(input)?,
            hard_state: decode_hard_state(input)?,
            base: decode_position(input)?,
            snapshot: Decode::decode(input)?,
            tip: decode_position(input)?,
            anchor: Option::<Checked>::decode(input)?.map(|at| at.0),
            guard: Option::<Guard>::decode(input)?
                .map(checked_guard)
                .transpose()?,
            holes: input.list("holes", LIST_MAX)?,
        })
    }
}

impl Encode for Verdict {
    fn encode(&self, out: &mut Writer<'_>) {
        (self.kind as u8).encode(out);
        self.end.encode(out);
        self.chain.encode(out);
        self.boot.encode(out);
        out.list(&self.holes);
        let guards: Vec<Pair<GroupId, Guard>> =
            self.guards.iter().map(|g| Pair(g.0, g.1)).collect();
        out.list(&guards);
    }
}

impl Decode for Verdict {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = match u8::decode(input)? {
            1 => VerdictKind::Clean,
            2 => VerdictKind::Torn,
            other => {
                return Err(DecodeError::Version {
                    what: "verdict kind",
                    found: other.into(),
                    known: VerdictKind::Torn as u32,
                });
            }
        };
        let end = Decode::decode(input)?;
        let chain = Decode::decode(input)?;
        let boot = decode_boot(input)?;
        let holes = input.list("holes", LIST_MAX)?;
        let guards: Vec<Pair<GroupId, Guard>> = input.list("guards", GROUPS_MAX)?;
        let guards = guards
            .into_iter()
            .map(|pair| Ok((pair.0, checked_guard(pair.1)?)));
        Ok(Self {
            kind,
            end,
            chain,
            boot,
            holes,
            guards: guards.collect::<Result<_, DecodeError>>()?,
        })
    }
}

impl Encode for FooterRow {
    fn encode(&self, out: &mut Writer<'_>) {
        self.block.encode(out);
        self.group.encode(out);
        self.rewrite.encode(out);
        self.first.encode(out);
        self.last.encode(out);
        self.last_term.encode(out);
    }
}

impl Decode for FooterRow {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            block: Decode::decode(input)?,
            group: Decode::decode(input)?,
            rewrite: Decode::decode(input)?,
            first: Decode::decode(input)?,
            last: Decode::decode(input)?,
            last_term: Decode::decode(input)?,
        })
    }
}

/// Two values, one after the other.
struct Pair<A, B>(A, B);

impl<A: Encode, B: Encode> Encode for Pair<A, B> {
    fn encode(&self, out: &mut Writer<'_>) {
        self.0.encode(out);
        self.1.encode(out);
    }
}

impl<A: Decode, B: Decode> Decode for Pair<A, B> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(Decode::decode(input)?, Decode::decode(input)?))
    }
}
