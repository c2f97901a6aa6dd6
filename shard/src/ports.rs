//! What a shard needs of the world besides a disk.

use logdrive_raft::io::{Guard, HaltReason, RoleChange, Undecided};
use logdrive_raft::{Anchor, GroupId, Index, LogPosition, Message, NodeId, SnapshotId};
use logdrive_wal::{AppendError, Finding};

use crate::apply::ApplyBatch;
use crate::snapshot::SnapshotReader;
use crate::store::StoreJob;

/// The way out of a shard: the network and the applier. Nothing here may block.
pub trait Ports {
    /// What proposals are answered with.
    type Output: Send + 'static;

    /// Hands a message to the network, which may lose it.
    fn send(&mut self, message: Message);

    /// Bytes of frames that the applier takes now.
    fn apply_room_bytes(&self) -> usize;

    /// Hands committed entries to the applier. Asked only while there is room; one batch may exceed it.
    fn apply(&mut self, batch: ApplyBatch<Self::Output>);

    /// Has the machine of a group hand over its state once everything that was handed to the applier is applied, and
    /// has that written out. Ends in [`StoreEvent::Written`](crate::store::StoreEvent::Written), `NotWritten` or
    /// [`MachineEvent::NotTaken`](crate::shard::MachineEvent::NotTaken). One of a shard at a time.
    fn take_snapshot(&mut self, group: GroupId, anchor: Anchor);

    /// Has something done with snapshots on disk, elsewhere. Jobs are done in order; how many there are is bounded by
    /// whoever asks.
    fn store(&mut self, job: StoreJob);

    /// Has the machine of a group take over the state of a snapshot, after what was handed to the applier before. Ends
    /// in [`MachineEvent::Installed`](crate::shard::MachineEvent::Installed), in
    /// [`NotInstalled`](crate::shard::MachineEvent::NotInstalled), or with the group fenced.
    fn install(&mut self, group: GroupId, at: LogPosition, reader: Box<dyn SnapshotReader + Send>);

    /// Says what an operator or an embedder wants to know.
    fn notice(&mut self, notice: Notice);
}

/// Something worth telling.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Role, term or leader of a group have changed.
    Role {
        /// The group.
        group: GroupId,
        /// What they are now.
        change: RoleChange,
    },
    /// A group got its genesis.
    Formed {
        /// The group.
        group: GroupId,
    },
    /// A peer has a genesis that does not name this directory.
    Stranger {
        /// The group.
        group: GroupId,
        /// Who said so.
        peer: NodeId,
        /// What the operator should know.
        text: String,
    },
    /// A peer's configuration lists other voters, so the group does not form.
    Mismatch {
        /// The group.
        group: GroupId,
        /// Whose configuration.
        peer: NodeId,
        /// The voters it lists.
        voters: Vec<NodeId>,
    },
    /// A group has stopped for good in this process.
    Halted {
        /// The group.
        group: GroupId,
        /// Why.
        reason: HaltReason,
    },
    /// The log refuses every further write.
    Poisoned {
        /// Why.
        reason: String,
    },
    /// The log does not take what a group must write, so the group has halted.
    LogRefused {
        /// The group.
        group: GroupId,
        /// Why.
        reason: AppendError,
    },
    /// A leader's entry is larger than this log takes: its appends are dropped, and the group stays behind.
    /// Said once.
    FrameTooLarge {
        /// The group.
        group: GroupId,
        /// Who leads.
        peer: NodeId,
        /// The entry.
        index: Index,
        /// Bytes of its frame.
        frame_bytes: usize,
        /// The largest that this log takes.
        frame_bytes_max: usize,
    },
    /// The entry at that place is taken now.
    FrameFits {
        /// The group.
        group: GroupId,
    },
    /// The machine was ahead of what this log knew to be committed when it was opened, and now that as much is
    /// committed it says otherwise. The group has halted; nothing was applied.
    MachineDiffers {
        /// The group.
        group: GroupId,
        /// Where the machine says it is.
        machine: LogPosition,
        /// What is committed there.
        log: LogPosition,
    },
    /// The log has no room for proposals, or has some again.
    StorageFull {
        /// Whether it is full now.
        full: bool,
    },
    /// Entries could not be read back from the log, for the machine or for a follower that lags. It is tried
    /// again, with pauses. Said once for each of the two.
    ReadFailed {
        /// The group.
        group: GroupId,
        /// The first entry wanted.
        from: Index,
        /// Why not.
        reason: String,
    },
    /// Entries are read back again, for both.
    ReadWorks {
        /// The group.
        group: GroupId,
    },
    /// A snapshot was taken, and read back.
    SnapshotTaken {
        /// The group.
        group: GroupId,
        /// The last entry that it covers.
        at: LogPosition,
        /// Bytes of its files.
        bytes: u64,
        /// How long it took, from the request on.
        took_us: u64,
        /// The last attempt had failed.
        after_failure: bool,
    },
    /// A snapshot was asked for, and the newest one covers everything already.
    SnapshotCurrent {
        /// The group.
        group: GroupId,
        /// The last entry that it covers.
        at: Index,
    },
    /// A snapshot could not be taken or fetched. Nothing is left of the attempt to take one; what was fetched is kept.
    /// It is tried again, with pauses.
    SnapshotFailed {
        /// The group.
        group: GroupId,
        /// It was fetched from a peer, as opposed to taken here.
        fetched: bool,
        /// There is no space for it.
        no_space: bool,
        /// The attempt before failed, too, and that was said.
        again: bool,
        /// Why not.
        why: String,
    },
    /// A snapshot that was there cannot be read. Another one is taken.
    SnapshotUnreadable {
        /// The group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
        /// What is wrong with it.
        why: String,
    },
    /// Log and machine go on from a snapshot that was received.
    SnapshotInstalled {
        /// The group.
        group: GroupId,
        /// Which one.
        snapshot: SnapshotId,
        /// The last entry that it covers.
        at: LogPosition,
    },
    /// No snapshot that can be read connects to the log. The replica votes, does not campaign, and fetches one.
    SnapshotLacking {
        /// The group.
        group: GroupId,
        /// Where its log begins.
        base: LogPosition,
    },
    /// A follower fetches a snapshot more slowly than the log grows, or catches up more slowly from there.
    TransferOutrun {
        /// The group.
        group: GroupId,
        /// The follower.
        peer: NodeId,
        /// The figures.
        text: String,
    },
    /// The log is nearly full, and what could be released of it is kept by a group that has halted, or no longer.
    LogPinned {
        /// The group.
        group: GroupId,
        /// Whether it is so now.
        stuck: bool,
    },
    /// What was to be fetched came from the log of another leader.
    SnapshotNotNeeded {
        /// The group.
        group: GroupId,
    },
    /// No follower fetches one any more that would come too late.
    TransferOver {
        /// The group.
        group: GroupId,
    },
    /// The group may have acknowledged entries that this log has lost: it neither leads nor elects anybody who has less
    /// until they are back.
    Guarded {
        /// The group.
        group: GroupId,
        /// What it may have acknowledged.
        guard: Guard,
        /// Where its log ends.
        last: LogPosition,
        /// There is no other voter that could have it.
        alone: bool,
    },
    /// They are back.
    GuardOver {
        /// The group.
        group: GroupId,
        /// What it may have acknowledged.
        guard: Guard,
    },
    /// All voters have answered a guarded replica, and nobody can tell whether what it may have acknowledged is
    /// committed; or, with nothing, that has ended.
    Undecided {
        /// The group.
        group: GroupId,
        /// What is not decided.
        undecided: Option<Undecided>,
    },
    /// Entries that could not be read are here again, from a peer.
    Repaired {
        /// The group.
        group: GroupId,
        /// How many.
        entries: u64,
        /// The last of them.
        last: Index,
        /// From whom.
        from: NodeId,
        /// How many are left that cannot be read.
        left: u64,
    },
    /// All entries of a group can be read again, or those that could not are needed no more.
    NothingMissing {
        /// The group.
        group: GroupId,
    },
    /// What was found bad since the log was opened. Entries among it are fetched from peers.
    WentBad {
        /// What, and where.
        findings: Vec<Finding>,
    },
    /// What recovery found.
    Recovered {
        /// Findings that did not keep the log from opening.
        findings: Vec<Finding>,
    },
}
