//! How the core's answers are written.

use logdrive_raft::io::{HardState, Persist, Role, RoleChange, Write};
use logdrive_raft::message::CommitPoint;
use logdrive_raft::{Body, Entry, Genesis, LogPosition, Message, Replica};

pub(crate) fn message(message: &Message) -> String {
    let Message { from, to, term, .. } = message;
    format!("{} > {to} {} term {term}", from.id, body(&message.body))
}

pub(crate) fn kind(message: &Message) -> &'static str {
    match &message.body {
        Body::VoteRequest(body) if body.pre => "pre-vote-request",
        Body::VoteRequest(_) => "vote-request",
        Body::VoteReply(body) if body.pre => "pre-vote-reply",
        Body::VoteReply(_) => "vote-reply",
        Body::Append(_) => "append",
        Body::Ack(_) => "ack",
        Body::Reject(_) => "reject",
        Body::Heartbeat(_) => "heartbeat",
        Body::HeartbeatReply(_) => "heartbeat-reply",
        Body::Behind(_) => "behind",
        Body::GenesisQuery(_) => "genesis-query",
        Body::GenesisReply(_) => "genesis-reply",
        Body::GenesisOffer(_) => "genesis-offer",
        Body::SettleQuery(_) => "settle-query",
        Body::SettleReply(_) => "settle-reply",
        Body::Transfer(_) => "transfer",
        Body::Repair(_) => "repair",
    }
}

fn body(body: &Body) -> String {
    let pre = |pre: bool| if pre { "pre-" } else { "" };
    match body {
        Body::VoteRequest(body) => format!("{}vote-request last {}", pre(body.pre), body.last),
        Body::VoteReply(body) => {
            let granted = if body.granted { "granted" } else { "denied" };
            format!("{}vote-reply {granted}", pre(body.pre))
        }
        Body::Append(body) => format!(
            "append {} after {} commit {} session {}",
            entries(&body.entries),
            body.prev,
            commit(&body.commit),
            body.session
        ),
        Body::Ack(body) => format!("ack {} session {}", body.index, body.session),
        Body::Reject(body) => {
            let (prev, hint, session) = (body.prev_index, body.hint, body.session);
            format!("reject after {prev} hint {hint} session {session}")
        }
        Body::Heartbeat(body) => format!("heartbeat commit {}", commit(&body.commit)),
        Body::HeartbeatReply(_) => "heartbeat-reply".to_owned(),
        Body::GenesisQuery(_) => "genesis-query".to_owned(),
        Body::GenesisReply(body) => match &body.genesis {
            Some(held) => format!("genesis-reply {}", genesis(held)),
            None => "genesis-reply empty".to_owned(),
        },
        Body::GenesisOffer(offered) => format!("genesis-offer {}", genesis(offered)),
        Body::Behind(body) => format!("behind base {} session {}", body.base, body.session),
        Body::SettleQuery(body) => format!("settle-query guard {}", body.guard),
        Body::SettleReply(body) => {
            let whole = if body.whole { "whole" } else { "guarded" };
            format!("settle-reply {whole} last {}", body.last)
        }
        Body::Transfer(transfer) => format!("transfer {transfer:?}"),
        Body::Repair(repair) => format!("repair {repair:?}"),
    }
}

fn commit(commit: &CommitPoint) -> String {
    commit.index.to_string()
}

pub(crate) fn entries(entries: &[Entry]) -> String {
    let words: Vec<String> = entries
        .iter()
        .map(|entry| entry.position().to_string())
        .collect();
    format!("[{}]", words.join(" "))
}

pub(crate) fn genesis(genesis: &Genesis) -> String {
    let words: Vec<String> = genesis
        .voters
        .iter()
        .map(|voter| replica(voter.replica))
        .collect();
    format!("[{}]", words.join(" "))
}

/// Number and life of the directory.
pub(crate) fn replica(replica: Replica) -> String {
    format!("{}/{}", replica.id, replica.incarnation.0)
}

pub(crate) fn persist(persist: &Persist) -> String {
    let writes = persist.writes.iter().map(|write| match write {
        Write::HardState(state) => hard_state(state),
        Write::Entries(run) => format!("entries {}", entries(run)),
        Write::Truncate(last) => format!("truncate to {last}"),
        Write::Anchor(anchor) => format!("anchor {}", anchor.at),
        Write::Base(base) => format!("base {} tip {}", base.at, base.tip),
    });
    let writes: Vec<String> = writes.collect();
    let echoed = if persist.echoed { ", echoed" } else { "" };
    format!("persist {}: {}{echoed}", persist.id.0, writes.join(", "))
}

pub(crate) fn hard_state(state: &HardState) -> String {
    let vote = state
        .vote
        .map_or("nobody".to_owned(), |vote| vote.id.to_string());
    format!("hard state term {} vote {vote}", state.term)
}

pub(crate) fn role(change: &RoleChange) -> String {
    let leader = change
        .leader
        .map_or("unknown".to_owned(), |leader| leader.to_string());
    let role = match change.role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    };
    format!("{role} term {} leader {leader}", change.term)
}

pub(crate) fn position(position: LogPosition) -> String {
    position.to_string()
}
