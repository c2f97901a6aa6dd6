//! One replica that settles a guard, or is asked to: what of it runs of whole clusters show too seldom.

use logdrive_raft::io::{Guard, Input, Ready};
use logdrive_raft::message::{SettleQuery, SettleReply};
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{Body, LogPosition, Message, Raft, Term};

use crate::alone::{NOW, entries, membership, message_from, replica_with};

/// Which claim a replica with this bug breaks, if it breaks one.
pub(crate) fn broken(mutant: Option<Mutant>) -> Option<String> {
    asks(mutant)
        .or_else(|| counts(mutant))
        .or_else(|| answers(mutant))
}

fn guard() -> Guard {
    Guard {
        term: Term(7),
        index: None,
    }
}

/// A guarded replica whose elections came to nothing, and what it said then.
fn asking(mutant: Option<Mutant>) -> (Raft, Vec<Message>) {
    let mut raft = replica_with(mutant, &entries()[..3], Some(guard()));
    let mut said = Vec::new();
    for _ in 0..3 {
        let due = raft.next_deadline();
        raft.step(due, Input::Tick);
        said.extend(everything(raft.take_ready()));
    }
    (raft, said)
}

/// What leaves sooner or later.
fn everything(ready: Ready) -> Vec<Message> {
    let later = ready.persist.into_iter().flat_map(|persist| persist.then);
    ready.messages.into_iter().chain(later).collect()
}

/// The question is asked in a term in which nothing was acknowledged that may be lost.
fn asks(mutant: Option<Mutant>) -> Option<String> {
    let (_, said) = asking(mutant);
    let asked = |message: &&Message| matches!(message.body, Body::SettleQuery(_));
    let asked: Vec<&Message> = said.iter().filter(asked).collect();
    assert!(!asked.is_empty(), "it asks");
    let old = asked.iter().find(|message| message.term <= guard().term);
    old.map(|old| format!("settle: asks in term {} with guard {}", old.term, guard()))
}

/// One answer of three leaves two that may have committed more.
fn counts(mutant: Option<Mutant>) -> Option<String> {
    let (mut raft, _) = asking(mutant);
    let last = LogPosition {
        term: Term(6),
        ..entries()[2].position()
    };
    let reply = SettleReply {
        whole: true,
        last,
        guard: None,
        configurations: vec![membership(&[1, 2, 3])],
    };
    let now = raft.next_deadline();
    let reply = message_from(2, Term(8), Body::SettleReply(reply));
    raft.step(now, Input::Message(reply));
    let fell = raft.guard() != Some(guard());
    fell.then(|| {
        format!(
            "settle: one answer of three makes the guard {:?}",
            raft.guard()
        )
    })
}

/// Whoever is guarded says so, and nobody answers in a term that it may yet forget.
fn answers(mutant: Option<Mutant>) -> Option<String> {
    let mut raft = replica_with(mutant, &entries()[..3], Some(guard()));
    let query = Body::SettleQuery(SettleQuery { guard: guard() });
    let now = NOW.after(1_000_000);
    raft.step(now, Input::Message(message_from(2, Term(9), query)));
    let mut ready = raft.take_ready();
    let is_reply = |message: &Message| matches!(message.body, Body::SettleReply(_));
    if ready.messages.iter().any(is_reply) {
        return Some("settle: an answer leaves before its term is durable".to_owned());
    }
    let whole = |message: &Message| {
        let Body::SettleReply(reply) = &message.body else {
            return false;
        };
        reply.whole
    };
    let mut later = ready.persist.drain(..).flat_map(|persist| persist.then);
    later
        .any(|message| whole(&message))
        .then(|| format!("settle: counts as whole with guard {}", guard()))
}
