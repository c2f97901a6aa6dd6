//! Raft groups, the log they share, and the turn that moves them.

use std::collections::BTreeMap;

use logdrive_raft::bootstrap::{self, BootstrapReady, Outcome};
use logdrive_raft::io::{
    Config, Input, Installed, Persist, Proposed, Ready, RejectReason, Restored, Role,
};
use logdrive_raft::limits::ENTRY_HEADER_BYTES;
use logdrive_raft::message::Body;
use logdrive_raft::{
    Boot, Entry, EntryKind, Genesis, GroupId, Index, Message, Micros, NodeId, Raft, Replica,
    ReplicationSession, mutated,
};
use logdrive_wal::disk::Disk;
use logdrive_wal::{Admitted, AppendError, ENTRY_ROOM_BYTES, Room, Wal};

use crate::compaction::{SnapshotSettings, Turns};
use crate::group::{Group, Halt, Persisting, Phase, Proposal, Ticket};
use crate::inbox::Door;
use crate::ports::{Notice, Ports};
use crate::status::{self, ShardStatus};
use crate::ticket::{Failure, Runs};

mod feed;
mod opening;
mod pacing;
mod repairs;
mod snapshots;

pub use opening::{CoreSettings, GroupSetup, Opened, Prepared, StartError};

pub use snapshots::MachineEvent;

use feed::ReadFor;
use pacing::FeedPace;

/// What a group may write in answer to one input besides the entries in it, at most: term and vote, and the
/// no-op of a new leader.
const STEP_BYTES: usize = 256;

const _: () = assert!(STEP_BYTES >= 64 + ENTRY_HEADER_BYTES + ENTRY_ROOM_BYTES);

/// What a peer or the way to it did.
#[derive(Debug)]
pub enum PeerInput {
    /// It said something.
    Message(Message),
    /// A new connection to it is up.
    Connected(NodeId),
    /// The connection to it is gone.
    Disconnected(NodeId),
    /// An append was not taken, for as much waits for it as may.
    LaneFull {
        /// The peer.
        peer: NodeId,
        /// The group of the append.
        group: GroupId,
        /// Its replication session.
        session: ReplicationSession,
        /// Its first entry.
        from: Index,
    },
    /// What waits for it has become less.
    LaneRoom(NodeId),
}

/// One thread's worth of engine.
#[derive(Debug)]
pub struct Shard<D: Disk, P: Ports> {
    wal: Wal<D>,
    ports: P,
    replica: Replica,
    boot: Boot,
    groups: BTreeMap<GroupId, Group<P::Output>>,
    core: CoreSettings,
    reads: BTreeMap<u64, ReadFor>,
    next_read: u64,
    feed_pace: FeedPace,
    /// The doors say that the log is full: it had no room for so many bytes.
    full_for_bytes: Option<usize>,
    /// What this turn will hand to the log, at most: it is not in the log's queue yet.
    taken: Admitted,
    snapshot_settings: SnapshotSettings,
    snapshot_turns: Turns,
    poisoned: bool,
}

impl<D: Disk, P: Ports> Shard<D, P> {
    /// Moves everything as far as it goes now. Decides nothing.
    ///
    /// `inputs` are taken out. Call it again when a disk operation completes, a message comes, a door has
    /// something waiting, the applier has room again, or [`Shard::next_deadline`] has come.
    pub fn turn(&mut self, now: Micros, inputs: &mut Vec<PeerInput>) {
        self.wal.poll(now);
        // A tick may make each group write by itself.
        self.taken = Admitted {
            bytes: self.groups.len() * STEP_BYTES,
            entries: 0,
        };
        self.take_reads(now);
        self.feed(now);
        self.release(now);
        // Time is an input like any other, and a full inbox must not keep it out.
        self.tick(now);
        for input in inputs.drain(..) {
            self.step(now, input);
        }
        self.take_findings(now);
        self.turn_repairs(now);
        self.propose(now);
        self.carry_out(now);
        self.wal.submit(now);
        self.hand_to_applier(now);
        self.turn_snapshots(now);
        self.check_log();
    }

    /// When the next turn is due if nothing else asks for one.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        let groups = self.groups.values().filter_map(Group::next_deadline).min();
        let log = self.wal.next_deadline();
        let feed = self.feed_pace.next_deadline();
        groups.into_iter().chain(log).chain(feed).min()
    }

    /// A copy of how everything stands.
    #[must_use]
    pub fn status(&self) -> ShardStatus {
        let own = self.replica;
        let groups = self
            .groups
            .values()
            .map(|group| {
                let missing = self.wal.wanted_count(group.id) as u64;
                status::of_group(group, own, missing)
            })
            .collect();
        ShardStatus {
            replica: self.replica,
            boot: self.boot,
            groups,
            wal: self.wal.status(),
            storage_full: self.full_for_bytes.is_some(),
        }
    }

    /// The way out, for whoever drives the shard.
    pub fn ports(&mut self) -> &mut P {
        &mut self.ports
    }

    /// The log, for whoever drives the shard.
    pub fn wal(&self) -> &Wal<D> {
        &self.wal
    }

    /// The log's disk, for whoever drives the shard: to be woken by it, or to simulate it.
    pub fn disk_mut(&mut self) -> &mut D {
        self.wal.disk_mut()
    }

    /// The core of a group, for tests and oracles.
    #[must_use]
    pub fn core(&self, group: GroupId) -> Option<&Raft> {
        self.groups.get(&group)?.raft()
    }

    /// Whether a group does nothing any more. Its core stays what it was.
    #[must_use]
    pub fn is_halted(&self, group: GroupId) -> bool {
        let phase = self.groups.get(&group).map(|group| &group.phase);
        matches!(phase, Some(Phase::Halted { .. }))
    }

    /// Stops a group whose machine has failed.
    pub fn fence(&mut self, group: GroupId, why: String) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.halt(Halt::Machine(why));
        }
    }

    /// Stops every group: nothing is applied any more.
    pub fn fence_all(&mut self, why: &str) {
        for group in self.groups.values_mut() {
            group.halt(Halt::Machine(why.to_owned()));
        }
    }

    /// Shuts all doors. What is appended goes on; what waits at a door is told that it was not.
    pub fn shut_doors(&mut self) {
        for group in self.groups.values() {
            group.inbox.set_door(Door::ShuttingDown);
        }
    }

    /// Whether anybody still waits for an entry to be handed to the applier.
    #[must_use]
    pub fn has_tickets(&self) -> bool {
        self.groups.values().any(|group| !group.tickets.is_empty())
    }

    /// Ends the shard. Whoever still waits is told so; the log is closed in order. Blocks.
    pub fn close(mut self) -> Result<(), logdrive_wal::PoisonReason> {
        self.shut_doors();
        for group in self.groups.values_mut() {
            group.fail_tickets_from(Index(0), |index| Failure::ShutDownBeforeApply { index });
        }
        self.wal.close()
    }

    fn tick(&mut self, now: Micros) {
        for group in self.groups.values_mut() {
            if group
                .next_deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                group.step(now, Input::Tick);
            }
        }
    }

    fn step(&mut self, now: Micros, input: PeerInput) {
        match input {
            PeerInput::Message(message) => self.on_message(now, message),
            PeerInput::Connected(peer) => {
                self.on_repair_connected(now, peer, true);
                for group in self.groups.values_mut() {
                    group.step(now, Input::PeerConnected(peer));
                }
            }
            PeerInput::Disconnected(peer) => {
                self.on_source_lost(now, peer);
                self.on_repair_connected(now, peer, false);
                for group in self.groups.values_mut() {
                    group.step(now, Input::PeerDisconnected(peer));
                }
            }
            PeerInput::LaneFull {
                peer,
                group,
                session,
                from,
            } => {
                if let Some(group) = self.groups.get_mut(&group) {
                    let full = Input::LaneFull {
                        peer,
                        session,
                        from,
                    };
                    group.step(now, full);
                }
            }
            PeerInput::LaneRoom(peer) => {
                for group in self.groups.values_mut() {
                    group.step(now, Input::LaneRoom(peer));
                }
            }
        }
    }

    fn on_message(&mut self, now: Micros, message: Message) {
        // A peer's message never creates a group.
        if message.to != self.replica.id || !self.groups.contains_key(&message.group) {
            return;
        }
        if let Body::Transfer(transfer) = message.body {
            return self.on_transfer(now, message.group, message.from.id, transfer);
        }
        if let Body::Repair(said) = message.body {
            return self.on_repair(now, message.group, message.from.id, said);
        }
        self.taken.bytes += STEP_BYTES;
        if let Body::Append(append) = &message.body
            && !self.takes(&message, &append.entries)
        {
            // As if lost on the way: the leader sends it again when there may be room.
            return;
        }
        let Some(group) = self.groups.get_mut(&message.group) else {
            return;
        };
        // Also of a group that has halted: what it began with is durable, and an empty directory hears from it.
        if let (Some(_), Some(genesis)) = (group.raft(), &group.genesis)
            && let Some(answer) = bootstrap::answer(genesis, self.replica, self.boot, &message)
        {
            self.ports.send(answer);
            return;
        }
        group.step(now, Input::Message(message));
    }

    /// Tells the cores what has become durable, and sends what waited for it.
    fn release(&mut self, now: Micros) {
        let (durable, echoed) = (self.wal.durable(), self.wal.echoed());
        for group in self.groups.values_mut() {
            for message in group.release(now, durable, echoed) {
                self.ports.send(message);
            }
            let Phase::Founding { position } = group.phase else {
                continue;
            };
            if position <= durable || mutated!(self.core.mutant, GenesisNotAwaited) {
                let genesis = group
                    .genesis
                    .as_ref()
                    .expect("set when it was handed to the log");
                let config = core_config(&self.core, self.replica, self.boot, group.id);
                let raft = Raft::new(config, restored_from(genesis), now);
                group.phase = Phase::Running(Box::new(raft));
                if bootstrap::founds(genesis, self.replica) {
                    for offer in bootstrap::offers(genesis, self.replica, self.boot) {
                        self.ports.send(offer);
                    }
                }
                self.ports.notice(Notice::Formed { group: group.id });
            }
        }
    }

    /// Gives each leading core the entries that wait at its door, as far as it takes them.
    fn propose(&mut self, now: Micros) {
        if let Some(bytes) = self.full_for_bytes
            && self.wal.has_room(self.taken.bytes + bytes)
        {
            self.set_storage_full(None);
        }
        let mut full = None;
        for group in self.groups.values_mut() {
            loop {
                let room = |bytes| self.wal.admits(self.taken, bytes + ENTRY_ROOM_BYTES);
                let Some(proposal) = group.next_proposal(room) else {
                    break;
                };
                match proposal {
                    Proposal::Entry { entry, runs } => {
                        self.taken.bytes += entry.frame_bytes() + ENTRY_ROOM_BYTES;
                        self.taken.entries += 1;
                        if mutated!(self.core.mutant, RetriedByEngine)
                            && group.waits_longer(now, self.core.heartbeat_interval_us)
                        {
                            group.proposing.push_back(Runs::new());
                            group.step(now, Input::Propose(entry.clone()));
                        }
                        group.proposing.push_back(runs);
                        group.step(now, Input::Propose(entry));
                    }
                    Proposal::NoRoom { bytes } => {
                        full = full.max(Some(bytes));
                        break;
                    }
                }
            }
        }
        if full.is_some() {
            self.set_storage_full(full);
        }
    }

    /// Takes what each core owes the world, and sees to it.
    fn carry_out(&mut self, now: Micros) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.carry_out_group(now, id);
        }
        self.feed(now);
    }

    fn carry_out_group(&mut self, now: Micros, id: GroupId) {
        let group = self.groups.get_mut(&id).expect("listed by the caller");
        let ready = match &mut group.phase {
            Phase::Running(raft) => raft.take_ready(),
            Phase::Forming(bootstrap) => {
                let ready = bootstrap.take_ready();
                self.carry_out_formation(id, ready);
                return;
            }
            Phase::Founding { .. } | Phase::Halted { .. } => return,
        };
        // No `..`: a new kind of output must not compile until somebody carries it out.
        let Ready {
            persist,
            messages,
            reads,
            proposals,
            truncated_from,
            commit,
            role,
            halted,
            wants_snapshot,
            installed,
            guard_over,
        } = ready;
        if let Some(from) = truncated_from
            && !mutated!(self.core.mutant, AnswerReplaced)
        {
            group.fail_tickets_from(from, |index| Failure::LeadershipLost { index });
        }
        for answer in proposals {
            let runs = group.proposing.pop_front().expect("one for each proposal");
            match answer {
                Proposed::Accepted { at } => group.tickets.push_back(Ticket {
                    index: at.index,
                    term: at.term,
                    appended: now,
                    runs,
                }),
                Proposed::Rejected { reason, .. } => reject(runs, reason),
            }
        }
        assert!(group.proposing.is_empty(), "every proposal has its answer");
        // To the followers first: their disks and ours work at the same time.
        for message in messages {
            self.ports.send(message);
        }
        for write in persist {
            if !self.persist(id, write) {
                return;
            }
        }
        for read in reads {
            self.feed_pace.want(id, read);
        }
        let group = self.groups.get_mut(&id).expect("groups stay");
        if let Some(change) = role {
            let door = match change.role {
                Role::Leader if self.full_for_bytes.is_some() => Door::StorageFull,
                Role::Leader => Door::Open,
                _ if mutated!(self.core.mutant, DoorStaysOpen) => Door::Open,
                Role::Follower | Role::PreCandidate | Role::Candidate => {
                    Door::NotLeader(change.leader)
                }
            };
            group.inbox.set_door(door);
            self.ports.notice(Notice::Role { group: id, change });
        }
        // What is committed is handed on after the turn's writes are under way.
        let _ = commit;
        if let Some(reason) = halted {
            group.halt(Halt::Core(reason.clone()));
            self.ports.notice(Notice::Halted { group: id, reason });
        }
        if let Some(guard) = guard_over {
            self.wal.guard_over(id);
            self.ports.notice(Notice::GuardOver { group: id, guard });
        }
        self.say_undecided(id);
        if let Some(wanted) = wants_snapshot {
            self.on_snapshot_wanted(now, id, wanted);
        }
        if let Some(Installed { at, snapshot }) = installed {
            self.on_base_durable(now, id, at, snapshot);
        }
    }

    /// Says once that nobody can end a guard but an operator, and once that somebody could.
    fn say_undecided(&mut self, id: GroupId) {
        let group = self.groups.get_mut(&id).expect("groups stay");
        let undecided = group.raft().and_then(Raft::undecided);
        if group.undecided == undecided.is_some() {
            return;
        }
        group.undecided = undecided.is_some();
        self.ports.notice(Notice::Undecided {
            group: id,
            undecided,
        });
    }

    fn carry_out_formation(&mut self, id: GroupId, ready: BootstrapReady) {
        let BootstrapReady {
            messages,
            outcome,
            mismatch,
        } = ready;
        for message in messages {
            self.ports.send(message);
        }
        if let Some(mismatch) = mismatch {
            let bootstrap::Mismatch { peer, voters } = mismatch;
            self.ports.notice(Notice::Mismatch {
                group: id,
                peer: peer.id,
                voters,
            });
        }
        match outcome {
            None => {}
            Some(Outcome::Formed(genesis)) => {
                let created = self.wal.create_group(&genesis);
                let group = self.groups.get_mut(&id).expect("groups stay");
                group.genesis = Some(genesis);
                match created {
                    Ok(position) => group.phase = Phase::Founding { position },
                    Err(reason) => self.refused(id, reason),
                }
            }
            Some(Outcome::Stranger { genesis, evidence }) => {
                let text = stranger_text(self.replica, evidence, &genesis);
                self.ports.notice(Notice::Stranger {
                    group: id,
                    peer: evidence.id,
                    text,
                });
            }
        }
    }

    /// Hands a write to the log. Says whether the log took it.
    fn persist(&mut self, id: GroupId, persist: Persist) -> bool {
        let group = self.groups.get_mut(&id).expect("groups stay");
        let position = match self.wal.append(id, &persist.writes) {
            Ok(position) => position,
            Err(reason) => {
                self.refused(id, reason);
                return false;
            }
        };
        let echoed = persist.echoed && !mutated!(self.core.mutant, VoteBeforeEcho);
        if echoed {
            self.wal.want_echo(position);
        }
        group.persisting.push_back(Persisting {
            id: persist.id,
            position,
            echoed,
            then: persist.then,
        });
        true
    }

    /// The log does not take what a group must write. Proposals and appends have been asked about before the
    /// core was, so this log has failed, or what it keeps for votes and no-ops is used up.
    fn refused(&mut self, id: GroupId, reason: AppendError) {
        let group = self.groups.get_mut(&id).expect("groups stay");
        if reason == AppendError::Poisoned {
            if mutated!(self.core.mutant, PoisonedLeads) {
                return;
            }
            // What every group is told about at the end of the turn.
            group.halt(Halt::Poisoned);
            return;
        }
        group.halt(Halt::Refused(reason.clone()));
        self.ports.notice(Notice::LogRefused { group: id, reason });
    }

    /// Whether the log takes what a leader sent, and keeps account of it if so.
    fn takes(&mut self, message: &Message, entries: &[Entry]) -> bool {
        let Some(last) = entries.last() else {
            return true;
        };
        let id = message.group;
        let group = self.groups.get_mut(&id).expect("looked up by the caller");
        let frame_bytes_max = self.wal.frame_bytes_max();
        let too_large = |entry: &&Entry| entry.frame().len() > frame_bytes_max;
        if let Some(entry) = entries.iter().find(too_large) {
            let index = entry.index();
            if group.too_large != Some(index) {
                group.too_large = Some(index);
                self.ports.notice(Notice::FrameTooLarge {
                    group: id,
                    peer: message.from.id,
                    index,
                    frame_bytes: entry.frame().len(),
                    frame_bytes_max,
                });
            }
            return false;
        }
        let room = |entry: &Entry| entry.frame().len() + ENTRY_ROOM_BYTES;
        let bytes: usize = entries.iter().map(room).sum();
        // No-ops may take from the reserve, so that elections go on in a log that is full.
        let proposals = |entry: &Entry| entry.header().kind == EntryKind::Proposals;
        let proposals = entries.iter().any(proposals);
        match self.wal.takes(self.taken, bytes, proposals) {
            Room::Now => {}
            Room::Soon => return false,
            Room::Full => {
                self.set_storage_full(Some(bytes));
                return false;
            }
        }
        self.taken.bytes += bytes;
        self.taken.entries += entries.len();
        if group.too_large.is_some_and(|index| index <= last.index()) {
            group.too_large = None;
            self.ports.notice(Notice::FrameFits { group: id });
        }
        true
    }

    /// A log that has failed stops every group: nothing of it can be acknowledged any more.
    fn check_log(&mut self) {
        let Some(reason) = self.wal.poisoned() else {
            return;
        };
        if self.poisoned {
            return;
        }
        self.poisoned = true;
        let reason = reason.to_string();
        for group in self.groups.values_mut() {
            if !mutated!(self.core.mutant, PoisonedLeads) {
                group.halt(Halt::Poisoned);
            }
        }
        self.ports.notice(Notice::Poisoned { reason });
    }

    /// Shuts or opens the doors. What waits behind a door that shuts was never appended, and is told so.
    fn set_storage_full(&mut self, full_for_bytes: Option<usize>) {
        let (was_full, full) = (self.full_for_bytes.is_some(), full_for_bytes.is_some());
        self.full_for_bytes = full_for_bytes;
        let door = if full { Door::StorageFull } else { Door::Open };
        for group in self.groups.values() {
            // The core of a group that has halted may still call itself leader; its door stays shut.
            if matches!(&group.phase, Phase::Running(raft) if raft.role() == Role::Leader) {
                group.inbox.set_door(door);
            }
        }
        if was_full != full {
            self.ports.notice(Notice::StorageFull { full });
        }
    }
}

fn reject<O>(runs: Runs<O>, reason: RejectReason) {
    let failure = match reason {
        RejectReason::NotLeader { leader } => Failure::NotLeader { leader },
        // The window was asked before; it cannot have filled in between.
        RejectReason::WindowFull => Failure::NotLeader { leader: None },
        RejectReason::Halted => Failure::Halted,
        // Clients propose commands, never memberships.
        RejectReason::ChangeRefused => Failure::NotLeader { leader: None },
    };
    for run in runs {
        run.fail(failure.clone());
    }
}

/// What an operator should know about a directory that is not part of its group.
pub(crate) fn stranger_text(own: Replica, evidence: Replica, genesis: &Genesis) -> String {
    let listed = genesis
        .voters
        .iter()
        .find(|voter| voter.replica.id == own.id);
    let known = match listed {
        Some(voter) => format!("names node {} as {}", own.id, voter.replica),
        None => format!("does not name node {}", own.id),
    };
    format!(
        "this directory is {own}, and the genesis of group {} that node {} holds {known}: this \
         directory is empty and not part of the group, so it does not vote; nothing of the group is \
         lost by that",
        genesis.group, evidence.id
    )
}

fn core_config(core: &CoreSettings, replica: Replica, boot: Boot, group: GroupId) -> Config {
    // Every core of every node draws its timeouts from a stream of its own.
    let seed = core.seed ^ replica.id.0.rotate_left(17) ^ group.0.rotate_left(34) ^ boot.0;
    Config {
        replica,
        boot,
        group,
        seed,
        ..core.clone()
    }
}

fn restored_from(genesis: &Genesis) -> Restored {
    Restored::at(genesis.origin(), genesis.membership())
}
