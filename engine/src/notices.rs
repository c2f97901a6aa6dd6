//! What a shard says, as log events with stable names and fields, and as alarms in the status.

mod snapshots;

use std::any::Any;

use logdrive_raft::io::{Guard, Role, Undecided};
use logdrive_raft::{GroupId, LogPosition, NodeId};
use logdrive_shard::{Fenced, Notice};

use crate::shared::Shared;
use crate::status::{ALARM_CODES, Alarm};
use crate::units::spell_bytes;

pub(crate) use snapshots::unreadable as snapshot_unreadable;

/// Tells the world.
pub(crate) fn carry(shared: &Shared, notice: Notice) {
    let Some(notice) = snapshots::carry(shared, notice) else {
        return;
    };
    match notice {
        Notice::Role { group, change } => {
            shared.set_leader(group, change.leader);
            let leader = change.leader.map(|leader| leader.0);
            let role = match change.role {
                Role::Leader => "leader",
                Role::Follower => "follower",
                Role::PreCandidate => "pre_candidate",
                Role::Candidate => "candidate",
            };
            tracing::info!(
                event = "role",
                node = shared.node,
                group = group.0,
                term = change.term.0,
                role,
                leader,
                "role, term or leader changed"
            );
        }
        Notice::Formed { group } => {
            tracing::info!(
                event = "formed",
                node = shared.node,
                group = group.0,
                "the group has its genesis"
            );
        }
        Notice::Stranger { group, peer, text } => {
            tracing::error!(
                event = "stranger",
                node = shared.node,
                group = group.0,
                peer = peer.0,
                code = "stranger",
                "{text}"
            );
            raise(
                shared,
                "stranger",
                Some(group.0),
                text,
                "if this node's disk was replaced or wiped, add it to the cluster as a new member; \
                 if it was started with the wrong directory, start it with the right one",
            );
        }
        Notice::Mismatch {
            group,
            peer,
            voters,
        } => {
            let listed: Vec<String> = voters.iter().map(ToString::to_string).collect();
            let text = format!(
                "node {peer} lists other voters ({}) than this node, so group {group} does not form",
                listed.join(", ")
            );
            tracing::error!(
                event = "mismatch",
                node = shared.node,
                group = group.0,
                peer = peer.0,
                code = "mismatch",
                "{text}"
            );
            raise(
                shared,
                "mismatch",
                Some(group.0),
                text,
                "give every node the same cluster.members and restart the one that differs",
            );
        }
        Notice::Halted { group, reason } => {
            tracing::error!(
                event = "halted",
                node = shared.node,
                group = group.0,
                code = "halted",
                "{reason}"
            );
            raise(
                shared,
                "halted",
                Some(group.0),
                format!("{reason}; the log is untouched and nothing more is acknowledged here"),
                "keep the data directories of all replicas as they are and compare their logs with \
                 `logdrive wal verify` before restarting this node",
            );
        }
        Notice::LogRefused { group, reason } => {
            tracing::error!(
                event = "halted",
                node = shared.node,
                group = group.0,
                code = "halted",
                "{reason}"
            );
            raise(
                shared,
                "halted",
                Some(group.0),
                format!(
                    "the log does not take what the group must write: {reason}; what was acknowledged \
                     is on a majority, and nothing more is acknowledged here"
                ),
                "give the log more room (wal.bytes_max) and restart this node",
            );
        }
        Notice::FrameTooLarge {
            group,
            peer,
            index,
            frame_bytes,
            frame_bytes_max,
        } => {
            let text = format!(
                "entry {index} of node {peer} has {frame_bytes} bytes, and the log of this node takes \
                 at most {frame_bytes_max}: this node stays behind, nothing is lost"
            );
            tracing::error!(
                event = "frame_too_large",
                node = shared.node,
                group = group.0,
                peer = peer.0,
                index = index.0,
                code = "frame_too_large",
                "{text}"
            );
            // The largest frame is a quarter of a slot.
            let slot_bytes = (4 * frame_bytes as u64).next_power_of_two();
            raise(
                shared,
                "frame_too_large",
                Some(group.0),
                text,
                format!(
                    "set wal.slot_bytes of this node to at least {}, best to what the other nodes have, \
                     and restart it",
                    spell_bytes(slot_bytes)
                ),
            );
        }
        Notice::FrameFits { group } => {
            shared.clear("frame_too_large", Some(group.0));
        }
        Notice::MachineDiffers {
            group,
            machine,
            log,
        } => {
            let text = format!(
                "the state machine of group {group} was opened at {machine}, and {log} is what is \
                 committed there: it belongs to another log or another life of this \
                 one; nothing was applied to it, the log is untouched"
            );
            tracing::error!(
                event = "machine_differs",
                node = shared.node,
                group = group.0,
                index = log.index.0,
                code = "halted",
                "{text}"
            );
            raise(
                shared,
                "halted",
                Some(group.0),
                text,
                "restore the machine that goes with this directory, or start with an empty one",
            );
        }
        Notice::Poisoned { reason } => {
            tracing::error!(
                event = "log_failed",
                node = shared.node,
                code = "log_failed",
                "{reason}"
            );
            raise(
                shared,
                "log_failed",
                None,
                format!(
                    "the log's disk failed: {reason}; what was acknowledged is on a majority, and \
                     nothing more is acknowledged here"
                ),
                "replace the disk or mend what it reports, then restart this node: it checks its log \
                 before it votes",
            );
        }
        Notice::StorageFull { full: true } => {
            tracing::error!(
                event = "storage_full",
                node = shared.node,
                code = "storage_full",
                "the log is full"
            );
            raise(
                shared,
                "storage_full",
                None,
                "the log has no room: proposals are refused, votes and heartbeats go on".to_owned(),
                "free space on the disk, or raise wal.bytes_max and restart the node",
            );
        }
        Notice::StorageFull { full: false } => {
            tracing::info!(
                event = "storage_full_over",
                node = shared.node,
                "the log has room again"
            );
            shared.clear("storage_full", None);
        }
        Notice::ReadFailed {
            group,
            from,
            reason,
        } => {
            tracing::error!(
                event = "log_read_failed",
                node = shared.node,
                group = group.0,
                index = from.0,
                code = "log_read_failed",
                "{reason}"
            );
            raise(
                shared,
                "log_read_failed",
                Some(group.0),
                format!("entry {from} could not be read back: {reason}; it is on a majority"),
                "run `logdrive wal verify` on this node's directory",
            );
        }
        Notice::ReadWorks { group } => {
            tracing::info!(
                event = "log_read_works",
                node = shared.node,
                group = group.0,
                "entries are read back from the log again"
            );
            shared.clear("log_read_failed", Some(group.0));
        }
        Notice::Guarded {
            group,
            guard,
            last,
            alone,
        } => guarded(shared, group, guard, last, alone),
        Notice::GuardOver { group, guard } => {
            tracing::info!(
                event = "guard_over",
                node = shared.node,
                group = group.0,
                "what may have been acknowledged up to {guard} is back"
            );
            shared.clear("guarded", Some(group.0));
        }
        Notice::Undecided {
            group,
            undecided: Some(undecided),
        } => say_undecided(shared, group, &undecided),
        Notice::Undecided {
            group,
            undecided: None,
        } => {
            tracing::info!(
                event = "decided",
                node = shared.node,
                group = group.0,
                "somebody can be elected again who has what is committed"
            );
            shared.clear("undecided", Some(group.0));
        }
        Notice::Repaired {
            group,
            entries,
            last,
            from,
            left,
        } => {
            tracing::info!(
                event = "repaired",
                node = shared.node,
                group = group.0,
                entries,
                index = last.0,
                peer = from.0,
                left,
                "{entries} entries up to {last} that could not be read are back from node {from}; {left} are missing"
            );
        }
        Notice::WentBad { findings } => {
            for finding in findings {
                tracing::error!(
                    event = "went_bad",
                    node = shared.node,
                    code = "went_bad",
                    "{finding}"
                );
                if let Some(group) = finding.group {
                    let advice = "keep the other nodes running; if none of them has these entries, take a snapshot, so \
                                  that the log is cut behind them; then check the device";
                    raise(
                        shared,
                        "went_bad",
                        Some(group.0),
                        finding.to_string(),
                        advice,
                    );
                }
            }
        }
        Notice::NothingMissing { group } => shared.clear("went_bad", Some(group.0)),
        Notice::Recovered { findings } => {
            for finding in findings {
                tracing::warn!(
                    event = "recovered",
                    node = shared.node,
                    code = "recovered",
                    "{finding}"
                );
            }
        }
        other => tracing::warn!(event = "notice", node = shared.node, "{other:?}"),
    }
}

/// The end of a log could not be judged.
fn guarded(shared: &Shared, group: GroupId, guard: Guard, last: LogPosition, alone: bool) {
    let acknowledged = match guard.index {
        Some(index) => format!("entries up to {index} of term {}", guard.term),
        None => format!("any entry of term {}", guard.term),
    };
    let (safe, advice) = if alone {
        (
            "whether any of that is lost nobody can tell, for there is no other voter",
            "keep a copy of the directory and check the device; `logdrive wal settle` on the stopped node gives that up, \
             so that it leads again, or begin anew with your own backup; have more than one voter",
        )
    } else {
        (
            "what was acknowledged is on a majority",
            "keep the other nodes running: what is missing comes back from them, and this ends by itself; then check this \
             node's disk",
        )
    };
    let text = format!(
        "the log of group {group} can be read up to {last}, and this node may have acknowledged {acknowledged} before \
         what comes after that went bad: it does not lead, and elects nobody who has less; {safe}"
    );
    tracing::error!(
        event = "guarded",
        node = shared.node,
        group = group.0,
        code = "guarded",
        "{text}"
    );
    raise(shared, "guarded", Some(group.0), text, advice);
}

/// All voters have answered, and it is open still.
fn say_undecided(shared: &Shared, group: GroupId, undecided: &Undecided) {
    let Undecided {
        guard,
        highest,
        holders,
    } = undecided;
    let holders: Vec<String> = holders.iter().map(NodeId::to_string).collect();
    let holders = holders.join(", ");
    let text = format!(
        "group {group} has no leader: entries up to {guard} may have been acknowledged here and lost, all voters have \
         answered, and nobody has more than {highest} (chain {}, on {holders}); nothing more is lost while it waits",
        highest.chain
    );
    tracing::error!(
        event = "undecided",
        node = shared.node,
        group = group.0,
        code = "undecided",
        "{text}"
    );
    let advice = "bring back every directory of this cluster that may hold more; if there is none, stop the guarded nodes \
                  and run `logdrive wal settle` on each, which says what is given up";
    raise(shared, "undecided", Some(group.0), text, advice);
}

/// A state machine has failed.
pub(crate) fn fenced(shared: &Shared, fenced: &Fenced) {
    tracing::error!(
        event = "machine_failed",
        node = shared.node,
        group = fenced.group.0,
        index = fenced.index.0,
        code = "halted",
        "{fenced}; nothing more is applied here, the log is untouched; mend the machine and restart \
         this node"
    );
    raise(
        shared,
        "halted",
        Some(fenced.group.0),
        format!("{fenced}; the log is untouched, other nodes go on"),
        "mend the machine and restart this node: it applies the log from where its machine ends",
    );
}

/// The applier itself has panicked.
pub(crate) fn apply_died(shared: &Shared, text: &str) {
    tracing::error!(
        event = "panicked",
        node = shared.node,
        code = "panicked",
        "the apply thread {text}"
    );
    raise(
        shared,
        "panicked",
        None,
        format!("the apply thread {text}; nothing more is applied or acknowledged here"),
        "restart this node: it applies the log from where its machines end; report this with the log \
         lines before",
    );
}

/// A snapshot thread has panicked.
pub(crate) fn snapshots_died(shared: &Shared, text: &str) {
    tracing::error!(
        event = "panicked",
        node = shared.node,
        code = "panicked",
        "a snapshot thread {text}"
    );
    raise(
        shared,
        "panicked",
        None,
        format!(
            "a snapshot thread {text}; snapshots are not taken, not sent or not taken over any more, and nothing else \
             is touched"
        ),
        "restart this node; report this with the log lines before",
    );
}

/// The shard's thread has panicked.
pub(crate) fn panicked(shared: &Shared, panic: &(dyn Any + Send)) {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    tracing::error!(
        event = "panicked",
        node = shared.node,
        code = "panicked",
        "the shard's thread panicked: {text}"
    );
    raise(
        shared,
        "panicked",
        None,
        format!("the engine's thread panicked: {text}; nothing more is acknowledged here"),
        "restart this node: it checks its log before it votes; report this with the log lines before",
    );
}

fn raise(
    shared: &Shared,
    code: &'static str,
    group: Option<u64>,
    text: String,
    advice: impl Into<String>,
) {
    assert!(ALARM_CODES.contains(&code), "{code} is not in the list");
    if let Some(group) = group.filter(|_| code == "halted") {
        shared.snapshots.not_taken(GroupId(group), &text);
    }
    let since = shared.uptime_s();
    shared.raise(Alarm {
        code,
        group,
        since,
        text,
        advice: advice.into(),
    });
}
