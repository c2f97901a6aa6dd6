//! What must hold whatever happens, looked at after every event.
//!
//! The oracle sees what no replica sees: every core, every message that is sent, and what every medium would
//! still hold if the power failed now. It asks the cores what they claim, and the media whether it is so.

use std::collections::BTreeMap;

use logdrive_raft::io::Guard;
use logdrive_raft::message::Body;
use logdrive_raft::{
    GroupId, Index, LogPosition, Member, Membership, Message, Micros, NodeId, Raft, Replica, Term,
};

use logdrive_wal::disk::SlotId;

use crate::disk::SimStorage;
use crate::plan::Plan;

mod claims;
mod flushed;
mod path;
mod replica;
mod rule;
mod said;
mod truth;

use flushed::{FlushedView, OnPath};
pub use rule::{Rule, Violation};
use said::Said;
use truth::Truth;

/// What is known of a whole run.
#[derive(Debug)]
pub(crate) struct Oracle {
    groups: BTreeMap<GroupId, GroupTruth>,
    media: Vec<Medium>,
    /// So many voters has each group: nothing changes memberships as yet.
    voters: usize,
    /// Disks may lie: then only what a replica owes by itself must hold.
    beyond: bool,
    /// Terms that had a leader, in all groups.
    pub(crate) elections: u64,
}

/// A node's medium as the oracle sees it.
#[derive(Debug, Default)]
struct Medium {
    view: FlushedView,
    /// Something has become durable since that was looked at.
    fresh: bool,
    /// It lied, or lost what it had: what is read from it proves nothing.
    untrusted: bool,
    /// Something that a recovery would need went bad: whoever runs on it cannot know that it is gone. The next
    /// recovery has to see it.
    rotted: bool,
    /// It was emptied, and another node remembers the groups.
    emptied: bool,
}

impl Medium {
    /// Whether what is claimed of it can be held against it.
    fn answers(&self) -> bool {
        !self.untrusted && !self.rotted
    }
}

#[derive(Debug, Default)]
struct GroupTruth {
    truth: Truth,
    said: Said,
    /// How long a leader's disk may be behind.
    disk_lag_us_max: u64,
    /// How long a voter sticks to a leader that it has heard.
    sticky_us: u64,
    /// To whom each replica gave its vote.
    votes: BTreeMap<(Replica, Term), NodeId>,
    /// Where the log of each candidate ended at best when it asked, for a pre-vote or a vote of a term.
    asked: BTreeMap<(NodeId, Term, bool), LogPosition>,
    nodes: Vec<Seen>,
}

/// A replica as it was when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    alive: bool,
    halted: bool,
    leads: bool,
    term: Term,
    /// The term it was in before its last turn.
    term_before: Term,
    /// Whether it knew a leader before its last turn, and when it had heard of one by then.
    followed_before: bool,
    follows: bool,
    heard_before: Micros,
    heard_until_turn: Micros,
    heard: Micros,
    /// The highest term that a vote request has asked it in, and that any other message has told it of.
    asked_in: Term,
    told_of: Term,
    /// Since when it leads this term.
    leads_since: Micros,
    last: LogPosition,
    last_before: LogPosition,
    /// Since when a follower has durably what this leader has not.
    trails: Option<Micros>,
    looked: Micros,
    commit: Index,
    committed: LogPosition,
    durable: Index,
    applied: Index,
    /// The highest entry that it has acknowledged and still has.
    acked: LogPosition,
    /// The last entry that it took for durable: a leader counts itself with that.
    owed: LogPosition,
    /// What it had acknowledged, or taken for durable, and lost: whoever it helps to lead has to have it.
    lost: LogPosition,
    /// What it fears for itself.
    guard: Option<Guard>,
    /// Where its log begins, and how far it may be cut.
    base: LogPosition,
    anchor: LogPosition,
    /// Where the log on its medium began when that was looked at last.
    based: Index,
    /// The highest term of which it has told others.
    promised: Term,
}

impl Oracle {
    pub(crate) fn new(plan: &Plan) -> Self {
        let (nodes, groups) = (plan.nodes, plan.groups);
        let seen = || (0..nodes).map(|_| Seen::default()).collect();
        let group = |_| GroupTruth {
            nodes: seen(),
            disk_lag_us_max: plan.node.disk_lag_us_max,
            sticky_us: STICKY_US,
            ..GroupTruth::default()
        };
        Self {
            groups: (1..=groups).map(|id| (GroupId(id), group(id))).collect(),
            media: (0..nodes).map(|_| Medium::default()).collect(),
            voters: usize::try_from(nodes).unwrap_or(usize::MAX),
            beyond: plan.beyond_limit,
            elections: 0,
        }
    }

    /// Reads what has become durable on a node's medium.
    pub(crate) fn read_medium(&mut self, node: NodeId, medium: &SimStorage) {
        let known = &mut self.media[place(node)];
        known.fresh |= known.view.read(medium);
    }

    /// What a power cut would leave of a node's log goes on from what it would leave of its snapshots: a log is cut
    /// at a durable anchor, and where it begins a snapshot reaches that far. `reach` says how far the durable
    /// snapshots of a group do, if that is known.
    pub(crate) fn check_bases(
        &mut self,
        node: NodeId,
        reach: impl Fn(GroupId) -> Option<Index>,
    ) -> Outcome {
        let medium = &mut self.media[place(node)];
        if !std::mem::take(&mut medium.fresh) || !medium.answers() {
            return Ok(());
        }
        if let Some((group, anchor, base)) = medium.view.unanchored() {
            let text = format!(
                "a power cut would leave node {node} a log of group {group} that begins at {base}, beyond its \
                 anchor at {anchor}"
            );
            return Err(Violation::new(Rule::CutOrder, text));
        }
        for (id, group) in &mut self.groups {
            let base = medium.view.base(*id);
            let seen = &mut group.nodes[place(node)];
            if base.index == seen.based {
                continue;
            }
            seen.based = base.index;
            if let Some(reach) = reach(*id)
                && reach < base.index
            {
                let text = format!(
                    "a power cut would leave node {node} a log of group {id} that begins at {base}, and snapshots \
                     that reach entry {reach}"
                );
                return Err(Violation::new(Rule::CutOrder, text));
            }
        }
        Ok(())
    }

    /// Whether segments of a node's log were released and taken again.
    pub(crate) fn is_released(&self, node: NodeId) -> bool {
        self.media[place(node)].view.is_released()
    }

    /// A machine holds the state of a snapshot: it follows the log, whose base is durable by then.
    pub(crate) fn installed(&mut self, node: NodeId, id: GroupId, at: LogPosition) -> Outcome {
        let medium = &self.media[place(node)];
        let group = self.groups.get_mut(&id).expect("made for every group");
        let seen = &mut group.nodes[place(node)];
        if at.index <= seen.applied {
            return Err(Violation::new(
                Rule::Monotone,
                format!(
                    "node {node} installs a snapshot of group {id} up to {at} and has applied entry {}",
                    seen.applied
                ),
            ));
        }
        seen.applied = at.index;
        if self.beyond {
            return Ok(());
        }
        let committed = group.truth.committed_at(at.index);
        if committed != Some(at) {
            return Err(Violation::new(
                Rule::CommittedImmutable,
                format!(
                    "node {node} installs a snapshot of group {id} up to {at}, where {committed:?} is committed"
                ),
            ));
        }
        let base = medium.view.base(id);
        if medium.answers() && base.index < at.index {
            return Err(Violation::new(
                Rule::SendAfterFlush,
                format!(
                    "node {node} installs a snapshot of group {id} up to {at}, and a power cut would leave a log \
                     that begins at {base}"
                ),
            ));
        }
        Ok(())
    }

    /// What a node's medium says proves nothing any more.
    pub(crate) fn distrust(&mut self, node: NodeId) {
        self.media[place(node)].untrusted = true;
    }

    /// A block of a node's medium went bad that was read for the last time before that.
    pub(crate) fn rotted(&mut self, node: NodeId, (slot, block): (SlotId, u32), zeros: bool) {
        let medium = &mut self.media[place(node)];
        let needed = medium.view.counts_on(slot, block);
        if needed != OnPath::No {
            medium.rotted = true;
            medium.view.rot((slot, block));
        }
        // Over which no mark lies, zeros are a write that never landed (`wal/README.md`, "What cannot be
        // detected").
        medium.untrusted |= zeros && needed == OnPath::Unmarked;
    }

    /// The blocks of a node's log over which no mark lies.
    pub(crate) fn unmarked(&self, node: NodeId) -> Vec<(SlotId, u32)> {
        self.media[place(node)].view.unmarked()
    }

    /// A process has come up: its recovery has read all that it needs, and seen what was bad of it.
    pub(crate) fn came_up(&mut self, node: NodeId) {
        self.media[place(node)].rotted = false;
    }

    /// Whether a node has begun every group, durably, as far as its medium was read.
    pub(crate) fn has_begun(&self, node: NodeId) -> bool {
        let view = &self.media[place(node)].view;
        self.groups.keys().all(|group| view.has_begun(*group))
    }

    /// A node's medium is empty.
    pub(crate) fn emptied(&mut self, node: NodeId) {
        self.forget_medium(node);
        // Its own medium has been forgotten. Who was emptied before knows as little.
        let remembers = |group: &GroupId| {
            let mut media = self.media.iter().filter(|medium| !medium.emptied);
            media.any(|medium| medium.view.has_begun(*group))
        };
        let remembered = self.groups.keys().filter(|group| remembers(group)).count();
        if remembered == self.groups.len() {
            self.media[place(node)].emptied = true;
        }
        // Once nobody remembers the groups they may form anew: whoever alone had begun one has taken it along.
        if remembered == 0 {
            for medium in &mut self.media {
                medium.emptied = false;
            }
            for group in self.groups.values_mut() {
                group.forget();
            }
        }
    }

    /// A node's medium is another one.
    pub(crate) fn forget_medium(&mut self, node: NodeId) {
        self.media[place(node)].emptied = false;
        self.media[place(node)].rotted = false;
        self.media[place(node)].view.forget();
        for group in self.groups.values_mut() {
            group.nodes[place(node)] = Seen::default();
        }
    }

    /// A process has ended.
    pub(crate) fn stopped(&mut self, node: NodeId) {
        for group in self.groups.values_mut() {
            let seen = &mut group.nodes[place(node)];
            *seen = Seen {
                acked: seen.acked,
                owed: seen.owed,
                lost: seen.lost,
                promised: seen.promised,
                based: seen.based,
                ..Seen::default()
            };
        }
    }

    /// A process has come up: what it recovered must be what it had promised.
    pub(crate) fn recovered(&mut self, node: NodeId, id: GroupId, core: &Raft) -> Outcome {
        let untrusted = self.media[place(node)].untrusted;
        let Some(group) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        let seen = group.nodes[place(node)];
        if core.base().index == Index(0) {
            group.truth.add_root(core.base().chain);
        }
        let base = core.base();
        let committed = group.truth.committed_at(base.index) == Some(base);
        if base.index > Index(0) && !committed && !untrusted && !self.beyond {
            return Err(Violation::new(
                Rule::RecoveryTruth,
                format!(
                    "node {node} recovers a log of group {id} that begins at {base}, which is not committed"
                ),
            ));
        }
        for index in (base.index.0 + 1..=core.last().index.0).map(Index) {
            let at = core.position(index).expect("up to the last");
            if group.truth.entry(at.chain).is_none() && !untrusted {
                return Err(Violation::new(
                    Rule::RecoveryTruth,
                    format!("node {node} recovers {at} of group {id}, which nobody ever had"),
                ));
            }
        }
        if untrusted {
            return Ok(());
        }
        if core.term() < seen.promised {
            return Err(Violation::new(
                Rule::VoteDurability,
                format!(
                    "node {node} recovers term {} of group {id} and has told others of {}",
                    core.term(),
                    seen.promised
                ),
            ));
        }
        let owes = [
            ("has acknowledged", seen.acked),
            ("took for durable", seen.owed),
        ];
        for (what, owed) in owes {
            let held = core.position(owed.index);
            // What is committed stands for whatever was below it.
            if owed.index < base.index.next() || held == Some(owed) {
                continue;
            }
            if core
                .guard()
                .is_some_and(|guard| fears(guard, owed.term, owed.index))
            {
                let seen = &mut group.nodes[place(node)];
                if owed.at_least_as_up_to_date_as(&seen.lost) {
                    seen.lost = owed;
                }
                (seen.acked, seen.owed) = Default::default();
                continue;
            }
            return Err(Violation::new(
                Rule::RecoveryTruth,
                format!(
                    "node {node} {what} {owed} of group {id}, recovers a log up to {} and has {held:?} there",
                    core.last()
                ),
            ));
        }
        Ok(())
    }

    /// A message reaches a node, whose clock says so.
    pub(crate) fn hears(&mut self, node: NodeId, message: &Message, local: Micros) {
        let Some(group) = self.groups.get_mut(&message.group) else {
            return;
        };
        group.said.arrives(node, message);
        let seen = &mut group.nodes[place(node)];
        seen.hears_of_term(message);
        // An append may be dropped at the door of a log that is full.
        if matches!(message.body, Body::Heartbeat(_)) && seen.term == message.term {
            seen.heard = local;
        }
    }

    /// Looks at a message that a node sends.
    pub(crate) fn sent(&mut self, node: NodeId, message: &Message, local: Micros) -> Outcome {
        let beyond = self.beyond;
        let about = About {
            node,
            id: message.group,
        };
        let Some(group) = self.groups.get_mut(&message.group) else {
            return Ok(());
        };
        let medium = &mut self.media[place(node)];
        // Whether it says anything that a member alone may say, and whether it promises to stay in its term.
        let (takes_part, promises) = match &message.body {
            Body::VoteRequest(request) => (true, !request.pre),
            Body::VoteReply(reply) => (reply.granted, reply.granted && !reply.pre),
            Body::Append(_) | Body::Ack(_) | Body::Heartbeat(_) => (true, true),
            _ => (false, false),
        };
        if takes_part && medium.emptied {
            return Err(Violation::new(
                Rule::Stranger,
                format!(
                    "node {node} has lost its disk and takes part in group {}: {:?}",
                    message.group, message.body
                ),
            ));
        }
        if promises {
            let seen = &mut group.nodes[place(node)];
            seen.promised = seen.promised.max(message.term);
            let durable = medium.view.term(message.group);
            if medium.answers() && durable < message.term {
                return Err(Violation::new(
                    Rule::SendAfterFlush,
                    format!(
                        "node {node} speaks in term {} of group {}, and after a power cut would be in {durable}",
                        message.term, message.group
                    ),
                ));
            }
        }
        match &message.body {
            Body::VoteRequest(request) => {
                let key = (node, message.term, request.pre);
                let best = group.asked.entry(key).or_insert(request.last);
                if request.last.at_least_as_up_to_date_as(best) {
                    *best = request.last;
                }
                group.check_nothing_lost(about, message, Some(request.last))?;
                if request.pre {
                    return Ok(());
                }
                group.check_vote(about, message, node, medium)
            }
            Body::VoteReply(reply) if reply.granted => {
                if !beyond {
                    group.check_choice(about, message, reply.pre, local)?;
                }
                if reply.pre {
                    return Ok(());
                }
                group.check_vote(about, message, message.to, medium)
            }
            _ if beyond => Ok(()),
            Body::Ack(ack) => group.check_ack(about, message.term, ack, medium),
            Body::Append(append) => {
                group.check_sender(about, message)?;
                group.check_commit_point(about, append.commit)
            }
            Body::Heartbeat(heartbeat) => {
                group.check_sender(about, message)?;
                group.check_commit_point(about, heartbeat.commit)
            }
            _ => Ok(()),
        }
    }

    /// A machine is about to apply an entry. Says whether no machine has applied it before.
    pub(crate) fn applies(
        &mut self,
        node: NodeId,
        id: GroupId,
        at: LogPosition,
    ) -> Result<(), Violation> {
        let beyond = self.beyond;
        let group = self.groups.get_mut(&id).expect("made for every group");
        let committed = group.truth.committed_at(at.index);
        if committed != Some(at) && !beyond {
            return Err(Violation::new(
                Rule::CommittedImmutable,
                format!("node {node} applies {at} of group {id}, where {committed:?} is committed"),
            ));
        }
        let seen = &mut group.nodes[place(node)];
        if at.index <= seen.applied {
            return Err(Violation::new(
                Rule::Monotone,
                format!(
                    "node {node} applies entry {} of group {id} after entry {}",
                    at.index, seen.applied
                ),
            ));
        }
        // A machine with storage of its own may begin anywhere.
        if seen.applied > Index(0) && seen.applied.next() < at.index {
            return Err(Violation::new(
                Rule::Monotone,
                format!(
                    "node {node} applies entry {} of group {id} right after entry {}",
                    at.index, seen.applied
                ),
            ));
        }
        seen.applied = at.index;
        if seen.commit < at.index {
            return Err(Violation::new(
                Rule::Monotone,
                format!(
                    "node {node} applies entry {} of group {id} and knows {} to be committed",
                    at.index, seen.commit
                ),
            ));
        }
        Ok(())
    }

    /// Whether a node's medium was emptied, and another one remembers the groups.
    pub(crate) fn is_emptied(&self, node: NodeId) -> bool {
        self.media[place(node)].emptied
    }

    /// How far a group is known to be committed anywhere.
    pub(crate) fn committed(&self, group: GroupId) -> LogPosition {
        self.groups[&group].truth.last_committed()
    }

    /// The committed entry at an index.
    pub(crate) fn committed_at(&self, group: GroupId, index: Index) -> Option<LogPosition> {
        self.groups[&group].truth.committed_at(index)
    }
}

/// Whether a replica with this guard fears for that entry. Said here again, for what the engine compares with is what is
/// looked at.
pub(crate) fn fears(guard: Guard, term: Term, index: Index) -> bool {
    let at_most = guard.index.is_none_or(|most| index <= most);
    term < guard.term || term == guard.term && at_most
}

type Outcome = Result<(), Violation>;

/// What a leader is allowed on top of the time that its disk may be behind: it looks at every heartbeat.
const TRAILING_SLACK_US: u64 = 250_000;

/// A leader that does nothing for so long, though its heartbeats are due, has been paused.
const PAUSED_US: u64 = 100_000;

/// Less than the shortest election timeout, by what clocks and turns may differ.
const STICKY_US: u64 = 140_000;

/// Which replica.
#[derive(Clone, Copy)]
struct About {
    node: NodeId,
    id: GroupId,
}

/// Whether those for whom `yes` holds are more than half of the voters, in both halves of a membership that
/// has two (Raft §6). Counted here, for what the engine counts with is what is looked at.
fn is_majority(membership: &Membership, yes: impl Fn(NodeId) -> bool) -> bool {
    let more_than_half = |members: &[Member]| {
        let ids = members.iter().map(|member| member.replica.id);
        2 * ids.filter(|id| yes(*id)).count() > members.len()
    };
    more_than_half(&membership.voters)
        && (membership.outgoing.is_empty() || more_than_half(&membership.outgoing))
}

fn place(node: NodeId) -> usize {
    usize::try_from(node.0 - 1).expect("nodes are numbered from 1")
}

/// The replica that a core is, if its membership says.
fn own_replica(core: &Raft, node: NodeId) -> Option<Replica> {
    let replicas = core.membership().replicas();
    replicas.into_iter().find(|replica| replica.id == node)
}
