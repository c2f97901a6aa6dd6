//! One replica that is given snapshots: what of it no run of a cluster shows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use logdrive_raft::io::{Config, EntryMeta, Guard, HardState, Input, Restored};
use logdrive_raft::message::{Append, CommitPoint, Heartbeat, VoteRequest};
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{
    Anchor, Body, Boot, ClusterId, Entry, Genesis, GroupId, Incarnation, Index, LogPosition,
    Member, Membership, Message, Micros, NodeId, Raft, Replica, ReplicationSession, Round,
    SnapshotId, Term,
};

use crate::{rewritten, unsettled};

const GROUP: GroupId = GroupId(1);
pub(crate) const NOW: Micros = Micros(1_000_000);

/// Which claim a replica with this bug breaks, if it breaks one.
pub(crate) fn broken(mutant: Option<Mutant>) -> Option<String> {
    contradicted(mutant)
        .or_else(|| changed(mutant))
        .or_else(|| forgotten(mutant))
        .or_else(|| rolled_back(mutant))
        .or_else(|| unsettled::broken(mutant))
        .or_else(|| rewritten::broken(mutant))
}

/// Whoever may have lost what it acknowledged has not got it back by hearing of a leader. Between a leader's heartbeat and
/// its appends no cluster loses it.
fn forgotten(mutant: Option<Mutant>) -> Option<String> {
    let log = entries();
    let last = log[2].position();
    let guard = Some(Guard {
        term: Term(7),
        index: None,
    });
    let mut raft = replica_with(mutant, &log[..3], guard);
    let message = |term, body| Input::Message(message_from(2, term, body));
    let heartbeat = Body::Heartbeat(Heartbeat {
        commit: CommitPoint {
            index: last.index,
            chain: last.chain,
        },
        last_index: log[3].index(),
        round: Round(1),
        heard: Some(Boot(1)),
    });
    raft.step(NOW, message(Term(7), heartbeat));
    let request = Body::VoteRequest(VoteRequest { pre: true, last });
    raft.step(NOW.after(1_000_000), message(Term(8), request));
    let granted =
        |message: &Message| matches!(&message.body, Body::VoteReply(reply) if reply.granted);
    let text =
        format!("vote choice: a pre-vote for a log that ends at {last}, with guard {guard:?}");
    let messages = raft.take_ready().messages;
    messages.iter().any(granted).then_some(text)
}

/// Whoever is told of a later life of its own has lost what it did in that.
fn rolled_back(mutant: Option<Mutant>) -> Option<String> {
    let log = entries();
    let mut raft = replica(mutant, &log[..3]);
    let heartbeat = Body::Heartbeat(Heartbeat {
        commit: CommitPoint::default(),
        last_index: log[3].index(),
        round: Round(1),
        heard: Some(Boot(2)),
    });
    raft.step(NOW, Input::Message(message_from(2, Term(7), heartbeat)));
    let text = "recovery truth: a replica in boot 1 goes on, and its leader has heard of boot 2";
    raft.halted().is_none().then(|| text.to_owned())
}

/// A snapshot that contradicts what is committed is not installed: the replica halts.
fn contradicted(mutant: Option<Mutant>) -> Option<String> {
    let log = entries();
    let last = log[3].position();
    let mut raft = replica(mutant, &log);
    let from = member(2).replica;
    raft.step(
        NOW,
        Input::Message(Message {
            from,
            boot: Boot(1),
            to: NodeId(1),
            group: GROUP,
            term: Term(7),
            body: Body::Append(Append {
                session: ReplicationSession {
                    boot: Boot(1),
                    counter: 1,
                },
                prev: last,
                entries: Vec::new(),
                commit: CommitPoint {
                    index: last.index,
                    chain: last.chain,
                },
                last_index: last.index,
                round: Round(1),
                heard: None,
            }),
        }),
    );
    let at = LogPosition {
        term: Term(3),
        ..log[2].position()
    };
    let step = || {
        raft.step(NOW, install(at, &[1, 2, 3]));
        raft.take_ready().halted.is_some()
    };
    // What comes of it may not even pass for a log.
    let halted = catch_unwind(AssertUnwindSafe(step)).unwrap_or(false);
    let text = format!(
        "cut order: a snapshot up to {at} is installed, and {} is committed there",
        log[2].position()
    );
    (!halted).then_some(text)
}

/// The membership of a snapshot is in effect once the log begins there.
fn changed(mutant: Option<Mutant>) -> Option<String> {
    let log = entries();
    let mut raft = replica(mutant, &log[..1]);
    raft.step(NOW, install(log[3].position(), &[1, 4, 5]));
    let wanted = membership(&[1, 4, 5]);
    let text = format!(
        "commit rule: {:?} counts after a snapshot with {:?}",
        raft.membership().replicas(),
        wanted.replicas()
    );
    (*raft.membership() != wanted).then_some(text)
}

pub(crate) fn message_from(id: u64, term: Term, body: Body) -> Message {
    Message {
        from: member(id).replica,
        boot: Boot(1),
        to: NodeId(1),
        group: GROUP,
        term,
        body,
    }
}

fn replica(mutant: Option<Mutant>, log: &[Entry]) -> Raft {
    replica_with(mutant, log, None)
}

pub(crate) fn replica_with(mutant: Option<Mutant>, log: &[Entry], guard: Option<Guard>) -> Raft {
    let meta = |entry: &Entry| EntryMeta {
        term: entry.term(),
        chain: entry.header().chain,
        frame_bytes: u32::try_from(entry.frame().len()).unwrap_or(u32::MAX),
    };
    let restored = Restored {
        hard_state: HardState {
            term: Term(7),
            vote: None,
        },
        entries: log.iter().map(meta).collect(),
        guard,
        ..Restored::at(genesis().origin(), membership(&[1, 2, 3]))
    };
    let config = Config {
        mutant,
        ..Config::new(member(1).replica, Boot(1), GROUP, 1)
    };
    Raft::new(config, restored, NOW)
}

fn install(at: LogPosition, ids: &[u64]) -> Input {
    let anchor = Anchor {
        at,
        membership: membership(ids),
        ..Anchor::default()
    };
    let snapshot = SnapshotId(1);
    Input::Install { anchor, snapshot }
}

fn member(id: u64) -> Member {
    Member {
        replica: Replica {
            id: NodeId(id),
            incarnation: Incarnation(u128::from(id)),
        },
        address: String::new(),
    }
}

pub(crate) fn membership(ids: &[u64]) -> Membership {
    Membership::of_voters(ids.iter().map(|id| member(*id)).collect())
}

fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: membership(&[1, 2, 3]).voters,
    }
}

/// Entries of terms 1, 1, 2, 2.
pub(crate) fn entries() -> Vec<Entry> {
    let mut chain = genesis().origin().chain;
    let mut entries = Vec::new();
    for (index, term) in (1..).zip([1, 1, 2, 2]) {
        let entry = Entry::noop(GROUP, Term(term), Index(index), chain);
        chain = entry.header().chain;
        entries.push(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_bug_no_claim_is_broken() {
        assert_eq!(broken(None), None);
    }
}
