//! What a shard says about snapshots.

use logdrive_raft::{GroupId, SnapshotId};
use logdrive_shard::Notice;

use super::raise;
use crate::shared::Shared;

/// Tells the world. Gives back what is about something else.
pub(super) fn carry(shared: &Shared, notice: Notice) -> Option<Notice> {
    match notice {
        Notice::SnapshotTaken {
            group,
            at,
            bytes,
            took_us,
            ..
        } => {
            tracing::info!(
                event = "snapshot_taken",
                node = shared.node,
                group = group.0,
                index = at.index.0,
                term = at.term.0,
                bytes,
                took_ms = took_us / 1000,
                "a snapshot up to entry {} was taken and read back",
                at.index
            );
            shared.clear("snapshot_failed", Some(group.0));
            shared.clear("snapshot_unreadable", Some(group.0));
            shared.snapshots.taken(group, at.index);
        }
        Notice::SnapshotCurrent { group, at } => shared.snapshots.taken(group, at),
        Notice::SnapshotFailed {
            group,
            fetched,
            no_space,
            again,
            why,
        } => {
            if !again {
                failed(shared, group, fetched, no_space, &why);
            }
            if !fetched {
                shared.snapshots.not_taken(group, &why);
            }
        }
        Notice::SnapshotUnreadable {
            group,
            snapshot,
            why,
        } => unreadable(shared, group, snapshot, &why),
        Notice::SnapshotInstalled {
            group,
            snapshot,
            at,
        } => {
            tracing::info!(
                event = "snapshot_installed",
                node = shared.node,
                group = group.0,
                index = at.index.0,
                snapshot = %snapshot,
                "log and machine go on from a received snapshot up to entry {}",
                at.index
            );
            for code in ["snapshot_lacking", "snapshot_failed", "snapshot_unreadable"] {
                shared.clear(code, Some(group.0));
            }
        }
        Notice::SnapshotLacking { group, base } => {
            let text = format!(
                "the log of group {group} begins after entry {}, and no snapshot here that can be read reaches it: \
                 this node votes, does not lead and serves nothing of the group until it has fetched one; what was \
                 acknowledged is on a majority",
                base.index
            );
            tracing::error!(
                event = "snapshot_lacking",
                node = shared.node,
                group = group.0,
                index = base.index.0,
                code = "snapshot_lacking",
                "{text}"
            );
            raise(
                shared,
                "snapshot_lacking",
                Some(group.0),
                text,
                "nothing, if another member is up: it is fetched by itself; then check this node's disk",
            );
        }
        Notice::TransferOutrun { group, peer, text } => {
            tracing::warn!(
                event = "snapshot_outrun",
                node = shared.node,
                group = group.0,
                peer = peer.0,
                code = "snapshot_outrun",
                "{text}"
            );
            raise(
                shared,
                "snapshot_outrun",
                Some(group.0),
                text,
                "raise snapshots.fetch_bytes_per_s on that node, or snapshots.catch_up_bytes_per_s or \
                 snapshots.retain_log_bytes (and wal.bytes_max) here, or offer less load until it has caught up",
            );
        }
        Notice::LogPinned { group, stuck: true } => {
            let text = format!(
                "the log is nearly full, and group {group}, which has halted here, keeps the oldest part of it, also \
                 that of the other groups; when it is full this node refuses proposals of every group, and nothing is \
                 lost by that"
            );
            tracing::error!(
                event = "log_pinned",
                node = shared.node,
                group = group.0,
                code = "log_pinned",
                "{text}"
            );
            raise(
                shared,
                "log_pinned",
                Some(group.0),
                text,
                "see why the group has halted, mend that and start the node again; until then raise wal.bytes_max",
            );
        }
        Notice::LogPinned { group, .. } => shared.clear("log_pinned", Some(group.0)),
        Notice::TransferOver { group } => shared.clear("snapshot_outrun", Some(group.0)),
        Notice::SnapshotNotNeeded { group } => shared.clear("snapshot_failed", Some(group.0)),
        other => return Some(other),
    }
    None
}

fn failed(shared: &Shared, group: GroupId, fetched: bool, no_space: bool, why: &str) {
    let what = if fetched { "fetched" } else { "taken" };
    let kept = if fetched {
        "what has come of it is kept"
    } else {
        "nothing of the attempt is left, and the log is not cut"
    };
    let text = format!(
        "a snapshot of group {group} could not be {what}: {why}; {kept}, nothing is lost, and it is tried again"
    );
    tracing::error!(
        event = "snapshot_failed",
        node = shared.node,
        group = group.0,
        code = "snapshot_failed",
        "{text}"
    );
    let advice = if no_space {
        "free space on the disk: until there is a snapshot the log keeps growing, up to wal.bytes_max"
    } else {
        "see to what the disk or the machine reports; until there is a snapshot the log keeps growing"
    };
    raise(shared, "snapshot_failed", Some(group.0), text, advice);
}

/// A snapshot was found that cannot be read.
pub(crate) fn unreadable(shared: &Shared, group: GroupId, snapshot: SnapshotId, why: &str) {
    let text = format!(
        "snapshot {snapshot} of group {group} cannot be read: {why}; it is not used, and another one is taken or \
         fetched"
    );
    tracing::error!(
        event = "snapshot_unreadable",
        node = shared.node,
        group = group.0,
        code = "snapshot_unreadable",
        "{text}"
    );
    raise(
        shared,
        "snapshot_unreadable",
        Some(group.0),
        text,
        "check this node's disk: something that was read back once is bad now",
    );
}
