//! One group on its shard: its core, its door, and what waits for the disk or the applier.

use std::collections::VecDeque;

use logdrive_raft::bootstrap::Bootstrap;
use logdrive_raft::io::{HaltReason, Input, PersistId, Role};
use logdrive_raft::message::Body;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{
    Entry, Genesis, GroupId, Index, LogPosition, Message, Micros, Raft, Term, mutated,
};
use logdrive_wal::{AppendError, Position, Room};

use crate::compaction::{Kept, Snapshots};
use crate::inbox::{Door, Inbox};
use crate::repair::Repair;
use crate::ticket::{Failure, Run, Runs};

/// How long after a failed read for the applier the next one is made; twice as long each time.
const READ_PAUSE_US_MIN: u64 = 10_000;

/// The longest such pause.
const READ_PAUSE_US_MAX: u64 = 1_000_000;

/// One group as its shard holds it.
#[derive(Debug)]
pub(crate) struct Group<O> {
    pub(crate) id: GroupId,
    pub(crate) inbox: Inbox<O>,
    pub(crate) phase: Phase,
    /// What the group began with, once that is durable here or about to be.
    pub(crate) genesis: Option<Genesis>,
    /// Writes handed to the log, in order, and what leaves when they are durable.
    pub(crate) persisting: VecDeque<Persisting>,
    /// Who waits for entries that this node appended as leader, in log order.
    pub(crate) tickets: VecDeque<Ticket<O>>,
    /// Who waits for proposals that the core has been given and not yet answered for.
    pub(crate) proposing: VecDeque<Runs<O>>,
    /// The last entry handed to the applier.
    pub(crate) handed: Index,
    /// Where the machine said it was, until as much is committed here and says the same. The log may hold
    /// something else at that place: what this disk did not get to see committed.
    pub(crate) machine_ahead: Option<LogPosition>,
    /// Its guard can be ended by an operator alone, and that was said.
    pub(crate) undecided: bool,
    /// A read for the applier is under way.
    pub(crate) reading: bool,
    /// Reads for the applier fail.
    pub(crate) read_trouble: Option<ReadTrouble>,
    /// The first entry that a follower waits for and that cannot be read, and that has been said.
    pub(crate) feed_trouble: Option<Index>,
    /// Entries read back for the applier, in log order from the one after `handed`.
    pub(crate) read_back: VecDeque<Entry>,
    /// Its snapshots, and for whom log is kept.
    pub(crate) snapshots: Snapshots,
    /// Entries that cannot be read are on their way back.
    pub(crate) repair: Option<Repair>,
    /// How many have come back in this boot.
    pub(crate) entries_repaired: u64,
    /// A snapshot that was received whole and is not where the log begins yet.
    pub(crate) received: Option<Kept>,
    /// A leader's entry at this place is larger than this log takes, and that has been said.
    pub(crate) too_large: Option<Index>,
    pub(crate) mutant: Option<Mutant>,
}

/// When a read that failed is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadTrouble {
    pub(crate) retry_at: Micros,
    pub(crate) pause_us: u64,
}

/// What a group is, from an empty directory on.
#[derive(Debug)]
pub(crate) enum Phase {
    /// No genesis yet: neither votes, nor campaigns, nor accepts entries. A stranger stays here.
    Forming(Box<Bootstrap>),
    /// The genesis is on its way to the disk; it counts once it is durable.
    Founding { position: Position },
    /// A replica.
    Running(Box<Raft>),
    /// Stopped for good in this process. The core is kept for status.
    Halted { core: Option<Box<Raft>>, why: Halt },
}

/// Why a group stands still.
#[derive(Clone, Debug)]
pub(crate) enum Halt {
    Core(HaltReason),
    Poisoned,
    Refused(AppendError),
    Machine(String),
    MachineDiffers {
        machine: LogPosition,
        log: LogPosition,
    },
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Core(reason) => reason.fmt(f),
            Self::Poisoned => f.write_str("the log refuses every further write"),
            Self::Refused(reason) => {
                write!(f, "the log does not take what must be written: {reason}")
            }
            Self::Machine(text) => f.write_str(text),
            Self::MachineDiffers { machine, log } => write!(
                f,
                "the state machine was opened at {machine}, and {log} is what is committed there"
            ),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Persisting {
    pub(crate) id: PersistId,
    pub(crate) position: Position,
    pub(crate) echoed: bool,
    pub(crate) then: Vec<Message>,
}

#[derive(Debug)]
pub(crate) struct Ticket<O> {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) appended: Micros,
    pub(crate) runs: Runs<O>,
}

impl<O> Group<O> {
    pub(crate) fn new(
        id: GroupId,
        inbox: Inbox<O>,
        phase: Phase,
        genesis: Option<Genesis>,
        machine: LogPosition,
        mutant: Option<Mutant>,
    ) -> Self {
        Self {
            id,
            inbox,
            phase,
            genesis,
            persisting: VecDeque::new(),
            tickets: VecDeque::new(),
            proposing: VecDeque::new(),
            handed: machine.index,
            machine_ahead: None,
            undecided: false,
            reading: false,
            read_trouble: None,
            feed_trouble: None,
            read_back: VecDeque::new(),
            snapshots: Snapshots::default(),
            repair: None,
            entries_repaired: 0,
            received: None,
            too_large: None,
            mutant,
        }
    }

    pub(crate) fn raft(&self) -> Option<&Raft> {
        match &self.phase {
            Phase::Running(raft) => Some(raft),
            Phase::Halted { core, .. } => core.as_deref(),
            Phase::Forming(_) | Phase::Founding { .. } => None,
        }
    }

    /// When the group wants its next tick.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        match &self.phase {
            Phase::Forming(bootstrap) => Some(bootstrap.next_deadline()),
            Phase::Running(raft) => {
                // While it reads, what wakes is the disk.
                let retry = self.read_trouble.filter(|_| !self.reading);
                let retry = retry.map(|trouble| trouble.retry_at);
                let snapshots = self.snapshots.next_deadline();
                let repair = self.repair.as_ref().and_then(Repair::next_deadline);
                let others = retry.into_iter().chain(snapshots).chain(repair);
                others.chain([raft.next_deadline()]).min()
            }
            Phase::Founding { .. } | Phase::Halted { .. } => None,
        }
    }

    pub(crate) fn step(&mut self, now: Micros, input: Input) {
        match &mut self.phase {
            Phase::Forming(bootstrap) => bootstrap.step(now, input),
            Phase::Running(raft) => raft.step(now, input),
            Phase::Founding { .. } | Phase::Halted { .. } => {}
        }
    }

    /// Tells the core how far the disk is, and takes out what may leave for that.
    ///
    /// Acks are cumulative, so of several to one leader the last one says it all.
    pub(crate) fn release(
        &mut self,
        now: Micros,
        durable: Position,
        echoed: Position,
    ) -> Vec<Message> {
        let mut through = None;
        let mut leaving: Vec<Message> = Vec::new();
        while let Some(front) = self.persisting.front() {
            let reached = if front.echoed { echoed } else { durable };
            if reached < front.position {
                break;
            }
            let front = self.persisting.pop_front().expect("looked at above");
            through = Some(front.id);
            for message in front.then {
                match leaving.last_mut() {
                    Some(last) if supersedes(&message, last) => *last = message,
                    _ => leaving.push(message),
                }
            }
        }
        let Some(through) = through else {
            return leaving;
        };
        self.step(now, Input::Durable(through));
        // An ack of a term that has passed may speak of entries that are no longer this log.
        if mutated!(self.mutant, LateAck) {
            return leaving;
        }
        let term = self.raft().map(Raft::term);
        leaving.retain(|message| Some(message.term) == term);
        leaving
    }

    /// Takes an entry that waits at the door, if the core takes it now and the log has room.
    pub(crate) fn next_proposal(&self, room: impl FnOnce(usize) -> Room) -> Option<Proposal<O>> {
        let Phase::Running(raft) = &self.phase else {
            return None;
        };
        if !self.inbox.is_waiting() || raft.role() != Role::Leader {
            return None;
        }
        let mut no_room = None;
        let sealed = self.inbox.take_if(|bytes| {
            if !raft.can_accept(bytes) {
                return false;
            }
            let room = room(bytes);
            if room == Room::Full {
                no_room = Some(bytes);
            }
            room == Room::Now
        });
        if let Some(bytes) = no_room {
            return Some(Proposal::NoRoom { bytes });
        }
        sealed.map(|sealed| Proposal::Entry {
            entry: sealed.entry,
            runs: sealed.runs,
        })
    }

    /// Who waits for `entry`, if this node appended it.
    pub(crate) fn ticket_of(&mut self, entry: &Entry) -> Option<Ticket<O>> {
        let front = self.tickets.front()?;
        if front.index != entry.index() {
            if !mutated!(self.mutant, AnswerReplaced) {
                assert!(entry.index() < front.index);
            }
            return None;
        }
        // A ticket whose entry was replaced has been answered when the log was cut.
        if mutated!(self.mutant, AnswerReplaced) {
            let proposals = |ticket: &Ticket<O>| ticket.runs.iter().map(Run::count).sum::<u32>();
            let fits = |ticket: &Ticket<O>| proposals(ticket) <= entry.header().count;
            return self.tickets.pop_front().filter(fits);
        }
        assert!(front.term == entry.term());
        self.tickets.pop_front()
    }

    /// Answers whoever waits for entries from `from` on: they are no longer in this log.
    pub(crate) fn fail_tickets_from(&mut self, from: Index, why: impl Fn(Index) -> Failure) {
        while let Some(last) = self.tickets.back() {
            if last.index < from {
                break;
            }
            let ticket = self.tickets.pop_back().expect("looked at above");
            for run in ticket.runs {
                if mutated!(self.mutant, AnswerForgotten) {
                    let _never_dropped = std::mem::ManuallyDrop::new(run);
                    continue;
                }
                if mutated!(self.mutant, SaysNeverAppended) {
                    run.fail(Failure::NotLeader { leader: None });
                } else {
                    run.fail(why(ticket.index));
                }
            }
        }
    }

    /// Whether somebody has waited longer than that for an entry to be committed.
    pub(crate) fn waits_longer(&self, now: Micros, us: u64) -> bool {
        let first = self.tickets.front();
        first.is_some_and(|ticket| us < now.since(ticket.appended))
    }

    /// Stops the group for good.
    pub(crate) fn halt(&mut self, why: Halt) {
        self.persisting.clear();
        self.inbox.set_door(Door::Halted);
        for run in self.proposing.drain(..).flatten() {
            run.fail(Failure::Halted);
        }
        self.fail_tickets_from(Index(0), |index| Failure::HaltedBeforeApply { index });
        let placeholder = Phase::Halted {
            core: None,
            why: why.clone(),
        };
        let core = match std::mem::replace(&mut self.phase, placeholder) {
            Phase::Running(raft) => Some(raft),
            Phase::Halted { core, .. } => core,
            Phase::Forming(_) | Phase::Founding { .. } => None,
        };
        self.phase = Phase::Halted { core, why };
    }

    /// Compares the machine with the log as soon as as much is committed as the machine said it had applied.
    pub(crate) fn check_machine(&mut self) -> Result<(), Halt> {
        let (Some(machine), Phase::Running(raft)) = (self.machine_ahead, &self.phase) else {
            return Ok(());
        };
        // A snapshot that reaches further takes its place.
        if raft.commit().index < machine.index || machine.index < raft.base().index {
            return Ok(());
        }
        let log = raft.position(machine.index).unwrap_or_else(|| raft.base());
        if log.chain != machine.chain {
            return Err(Halt::MachineDiffers { machine, log });
        }
        self.machine_ahead = None;
        // The machine has their effects from an earlier life; what it answered then is not known.
        while let Some(front) = self.tickets.front()
            && front.index <= machine.index
        {
            let ticket = self.tickets.pop_front().expect("looked at above");
            for run in ticket.runs {
                run.fail(Failure::Abandoned);
            }
        }
        Ok(())
    }

    /// The time for another try has come and none can be made: a time that has passed would wake at once,
    /// again and again.
    pub(crate) fn look_later(&mut self, now: Micros) {
        if let Some(trouble) = &mut self.read_trouble {
            trouble.retry_at = now.after(trouble.pause_us);
        }
    }

    /// A read for the applier has worked, or none is needed. Says whether nothing is wrong any more that was.
    pub(crate) fn reading_works(&mut self) -> bool {
        self.read_trouble.take().is_some() && self.feed_trouble.is_none()
    }

    /// These were read for a follower. Says whether nothing is wrong any more that was.
    pub(crate) fn feeding_works(&mut self, from: Index, entries: &[Entry]) -> bool {
        // What another follower reads beyond it proves nothing: it would fail, and work, with every heartbeat.
        let read =
            |at: &mut Index| from <= *at && entries.last().is_some_and(|last| *at <= last.index());
        self.feed_trouble.take_if(read).is_some() && self.read_trouble.is_none()
    }

    /// A read for the applier has failed. Says whether that is news.
    pub(crate) fn read_failed(&mut self, now: Micros) -> bool {
        let before = self.read_trouble.map(|trouble| trouble.pause_us);
        let pause_us = before.map_or(READ_PAUSE_US_MIN, |pause| {
            (2 * pause).min(READ_PAUSE_US_MAX)
        });
        let retry_at = now.after(pause_us);
        self.read_trouble = Some(ReadTrouble { retry_at, pause_us });
        before.is_none()
    }
}

/// What waits at the door.
pub(crate) enum Proposal<O> {
    Entry {
        entry: logdrive_raft::UnsealedEntry,
        runs: Runs<O>,
    },
    NoRoom {
        bytes: usize,
    },
}

fn supersedes(new: &Message, old: &Message) -> bool {
    let (Body::Ack(new_ack), Body::Ack(old_ack)) = (&new.body, &old.body) else {
        return false;
    };
    new.to == old.to
        && new.term == old.term
        && new_ack.session == old_ack.session
        && old_ack.index <= new_ack.index
}
