//! What is sent to each follower, and what its answers prove.
//!
//! An ack counts if it names this session and has this log's chain at its index, and for nothing else.

use super::{Raft, RoleState, Sessions};
use crate::entry::Entry;
use crate::ids::{Boot, Index, LogPosition, Micros, NodeId, Replica, ReplicationSession};
use crate::io::ReadLog;
use crate::limits::APPEND_ENTRIES_MAX;
use crate::message::{Ack, Append, Body, CommitPoint, HeartbeatReply, Reject};
use crate::mutated;
use crate::progress::{Mode, Progress};

/// What to do next for one follower.
enum Next {
    Nothing,
    /// Append so many entries after `prev`.
    Send {
        prev: LogPosition,
        count: usize,
    },
    Read(ReadLog),
}

impl Raft {
    /// Sends each follower as much as its window allows. Cheap when nothing has changed.
    pub(super) fn replicate(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        if !std::mem::take(&mut leader.wants_sending) {
            return;
        }
        for place in 0..leader.peers.len() {
            self.replicate_to(place);
        }
    }

    fn replicate_to(&mut self, place: usize) {
        if let RoleState::Leader(leader) = &mut self.role {
            let peer = &mut leader.peers[place];
            if !peer.lane_full && peer.has_skipped() {
                // A new session has no gap.
                peer.open_session(self.sessions.open());
            }
        }
        loop {
            let RoleState::Leader(leader) = &self.role else {
                return;
            };
            match self.next_for(&leader.peers[place]) {
                Next::Nothing => return,
                Next::Read(read) => {
                    if let RoleState::Leader(leader) = &mut self.role {
                        leader.peers[place].reading = Some(read.from);
                    }
                    self.outbox.ready.reads.push(read);
                    return;
                }
                Next::Send { prev, count } => {
                    let entries = (1..=count as u64)
                        .map(|n| {
                            let entry = self.log.entry(Index(prev.index.0 + n));
                            entry.expect("`next_for` saw it").clone()
                        })
                        .collect();
                    self.send_append(place, prev, entries);
                }
            }
        }
    }

    fn next_for(&self, peer: &Progress) -> Next {
        if peer.lane_full {
            return Next::Nothing;
        }
        let prev = self.log.position(Index(peer.next_index.0 - 1));
        let prev = prev.expect("next_index lies above the base");
        let window = match peer.mode {
            Mode::Probe { waiting: true, .. } => return Next::Nothing,
            Mode::Probe { hopeful, .. } => {
                let count = if hopeful {
                    self.fitting(peer.next_index, u64::MAX, u64::MAX)
                } else {
                    0
                };
                return Next::Send { prev, count };
            }
            Mode::Replicate => peer.window(&self.log, &self.config),
        };
        let last = self.log.last().index;
        let Some((bytes, entries)) = window.filter(|_| peer.next_index <= last) else {
            return Next::Nothing;
        };
        let first_cached = self.log.first_cached();
        if first_cached <= peer.next_index {
            // With something on its way, an entry that does not fit waits until it does.
            let idle = peer.inflight(&self.log).1 == 0;
            let count = self.fitting(peer.next_index, bytes, entries);
            let count = if idle { count.max(1) } else { count };
            return if count == 0 {
                Next::Nothing
            } else {
                Next::Send { prev, count }
            };
        }
        if peer.reading.is_some() || peer.read_failed {
            return Next::Nothing;
        }
        let bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
        // No more than go into one append.
        let through = peer.next_index.0 + entries.clamp(1, APPEND_ENTRIES_MAX as u64) - 1;
        Next::Read(ReadLog {
            peer: peer.replica.id,
            from: peer.next_index,
            through: Index(through.min(first_cached.0 - 1)),
            bytes_max: bytes_max.min(self.config.append_bytes_max),
        })
    }

    /// How many entries from `from` on are in memory and fit into one append and a window. An entry
    /// larger than an append travels alone.
    fn fitting(&self, from: Index, bytes_max: u64, entries_max: u64) -> usize {
        let append_bytes_max = self.config.append_bytes_max as u64;
        let entries_max = entries_max.min(APPEND_ENTRIES_MAX as u64);
        let mut bytes = 0;
        let mut count = 0;
        while count < entries_max
            && let Some(entry) = self.log.entry(Index(from.0 + count))
        {
            bytes += entry.frame().len() as u64;
            if bytes_max < bytes || (append_bytes_max < bytes && count > 0) {
                break;
            }
            count += 1;
        }
        usize::try_from(count).expect("APPEND_ENTRIES_MAX fits")
    }

    fn send_append(&mut self, place: usize, prev: LogPosition, entries: Vec<Entry>) {
        let (now, term) = (self.now, self.hard_state.term);
        let commit = CommitPoint {
            index: self.commit.index,
            chain: self.commit.chain,
        };
        let last_index = self.log.last().index;
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let round = leader.round;
        let peer = &mut leader.peers[place];
        assert!(prev.index.0 + entries.len() as u64 <= last_index.0);
        peer.sent = now;
        peer.gap = peer.gap.filter(|gap| *gap < prev.index);
        match &mut peer.mode {
            Mode::Probe { waiting, .. } => {
                *waiting = true;
                peer.asked = now;
            }
            Mode::Replicate => {
                if peer.inflight(&self.log).1 == 0 {
                    peer.asked = now;
                }
                let end = Index(prev.index.0 + entries.len() as u64);
                peer.next_index = peer.next_index.max(end.next());
            }
        }
        let (to, session) = (peer.replica.id, peer.session);
        let append = Body::Append(Append {
            session,
            prev,
            entries,
            commit,
            last_index,
            round,
            heard: peer.boot,
        });
        let message = self.message(to, term, append);
        self.outbox.ready.messages.push(message);
    }

    /// Asks again where nothing has moved for an interval: an answer or an append may be lost. The
    /// question carries no entry, so it needs no window.
    pub(super) fn ask_the_silent(&mut self) {
        if mutated!(self.config.mutant, LostNotAskedAgain) {
            return;
        }
        let leaks = mutated!(self.config.mutant, WindowLeak);
        let (now, interval) = (self.now, self.config.heartbeat_interval_us);
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let mut questions = Vec::new();
        for (place, peer) in leader.peers.iter_mut().enumerate() {
            let waits = match peer.mode {
                Mode::Probe { waiting, .. } => waiting,
                Mode::Replicate => peer.inflight(&self.log).1 > 0 && !leaks,
            };
            if waits && !peer.lane_full && interval <= now.since(peer.asked) {
                peer.asked = now;
                questions.push((place, Index(peer.next_index.0 - 1)));
            }
        }
        for (place, prev) in questions {
            let prev = self.log.position(prev).expect("next_index is above base");
            self.send_append(place, prev, Vec::new());
        }
    }

    pub(super) fn on_ack(&mut self, from: Replica, boot: Boot, ack: &Ack) {
        let Some(peer) = answering(&mut self.role, &mut self.sessions, from, boot, self.now) else {
            return;
        };
        let equal = self.log.has_chain(ack.index, ack.chain)
            || mutated!(self.config.mutant, AckChainUnchecked);
        if peer.session != ack.session || !equal {
            return;
        }
        // Beyond the end no chain is equal.
        let index = ack.index.min(self.log.last().index);
        peer.on_ack(index, self.now);
        self.want_sending();
        self.advance_commit();
    }

    pub(super) fn on_reject(&mut self, from: Replica, boot: Boot, reject: &Reject) {
        let next = self.probe_after(&reject.hint);
        let (base, last) = (self.log.base().index, self.log.last().index);
        let Some(peer) = answering(&mut self.role, &mut self.sessions, from, boot, self.now) else {
            return;
        };
        let waiting_for = Index(peer.next_index.0 - 1);
        let stale = match peer.mode {
            Mode::Probe { .. } => reject.prev_index != waiting_for,
            Mode::Replicate => waiting_for < reject.prev_index,
        };
        // A rejection answers one append. It is late if something at or beyond that has been proved, unless the follower
        // has gone further: its log begins beyond what it acknowledged once it has a snapshot from elsewhere.
        let answered = peer
            .match_index
            .is_some_and(|matched| reject.prev_index <= matched && reject.hint.index <= matched);
        if peer.session != reject.session || stale || answered {
            return;
        }
        let next = next
            .max(peer.match_index.unwrap_or(base))
            .max(base)
            .min(last);
        let exact = next == reject.hint.index;
        // What lies below the base cannot be sent from here. It is asked again with the heartbeats, and hears of
        // it with them.
        let out_of_reach = reject.hint.index < base;
        peer.behind = out_of_reach;
        if exact && mutated!(self.config.mutant, RejectAdvancesMatch) {
            peer.match_index = peer.match_index.max(Some(next));
        }
        peer.next_index = next.next();
        if mutated!(self.config.mutant, ProbeBeyondHint) {
            peer.next_index = next.next().next().min(last.next());
        }
        peer.mode = Mode::Probe {
            waiting: out_of_reach,
            hopeful: exact,
        };
        peer.asked = self.now;
        peer.reading = None;
        self.want_sending();
    }

    /// The last place of this log that can agree with a log that has `hint`.
    fn probe_after(&self, hint: &LogPosition) -> Index {
        if self.log.holds(hint) {
            return hint.index;
        }
        let last = self.log.last().index;
        let through = if hint.index <= last {
            Index(hint.index.0.saturating_sub(1))
        } else {
            last
        };
        self.log.last_of_term_at_most(hint.term, through).index
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: Replica, boot: Boot, _: &HeartbeatReply) {
        answering(&mut self.role, &mut self.sessions, from, boot, self.now);
    }

    /// Entries from the log on disk. Sent only if they lie on this log's path.
    pub(super) fn on_read(&mut self, id: NodeId, from: Index, mut entries: Vec<Entry>) {
        let on_path = entries
            .iter()
            .enumerate()
            .take_while(|(place, entry)| {
                entry.index().0 == from.0 + *place as u64 && self.log.holds(&entry.position())
            })
            .count();
        let most = APPEND_ENTRIES_MAX.min(self.config.inflight_entries_max);
        entries.truncate(on_path.min(most));
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let asked = |peer: &Progress| peer.replica.id == id && peer.reading == Some(from);
        let Some(place) = leader.peers.iter().position(asked) else {
            return;
        };
        leader.wants_sending = true;
        let peer = &mut leader.peers[place];
        if !entries.is_empty() || !mutated!(self.config.mutant, ReadingForEver) {
            peer.reading = None;
        }
        peer.read_failed = entries.is_empty();
        if entries.is_empty() || peer.mode != Mode::Replicate || peer.next_index != from {
            return;
        }
        let prev = self.log.position(Index(from.0 - 1));
        let prev = prev.expect("next_index lies above the base");
        self.send_append(place, prev, entries);
    }

    /// What an earlier connection carried may never arrive.
    pub(super) fn on_peer_connected(&mut self, id: NodeId) {
        self.open_sessions(id, false);
    }

    /// All of the window is free again. Asked with the heartbeats until it is back.
    pub(super) fn on_peer_disconnected(&mut self, id: NodeId) {
        self.open_sessions(id, true);
    }

    /// What was not taken was not sent, and nothing after it: once there is room, sending goes on from there,
    /// from memory or from the log, and the follower never sees a gap.
    pub(super) fn on_lane_full(&mut self, id: NodeId, session: ReplicationSession, from: Index) {
        let base = self.log.base().index;
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let named = |peer: &&mut Progress| peer.replica.id == id && peer.session == session;
        let Some(peer) = leader.peers.iter_mut().find(named) else {
            return;
        };
        let known = peer.match_index.unwrap_or(base).max(base);
        peer.next_index = peer.next_index.min(from).max(known.next());
        peer.reading = None;
        peer.lane_full = true;
        let gap = Index(from.0.saturating_sub(1));
        peer.gap = Some(peer.gap.map_or(gap, |before| before.min(gap)));
    }

    pub(super) fn on_lane_room(&mut self, id: NodeId) {
        if mutated!(self.config.mutant, LaneStaysFull) {
            return;
        }
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        for peer in &mut leader.peers {
            if peer.replica.id != id || !std::mem::take(&mut peer.lane_full) {
                continue;
            }
            if let Mode::Probe { waiting, .. } = &mut peer.mode {
                *waiting = false;
            }
            peer.asked = self.now;
            leader.wants_sending = true;
        }
    }

    fn open_sessions(&mut self, id: NodeId, waiting: bool) {
        if mutated!(self.config.mutant, WindowLeak) {
            return;
        }
        let RoleState::Leader(leader) = &mut self.role else {
            return;
        };
        let named = leader.peers.iter_mut().filter(|peer| peer.replica.id == id);
        for peer in named {
            let matched = peer.match_index;
            peer.open_session(self.sessions.open());
            if mutated!(self.config.mutant, MatchSurvivesSession) {
                peer.match_index = matched;
            }
            if let Mode::Probe { waiting: is, .. } = &mut peer.mode {
                *is = waiting;
            }
            peer.asked = self.now;
        }
        leader.wants_sending = true;
    }
}

/// The follower that answered, unless it has restarted since: then what an earlier boot has proved is
/// unknown again, and a new session begins.
fn answering<'a>(
    role: &'a mut RoleState,
    sessions: &mut Sessions,
    from: Replica,
    boot: Boot,
    now: Micros,
) -> Option<&'a mut Progress> {
    let RoleState::Leader(leader) = role else {
        return None;
    };
    let place = leader.place_of(from)?;
    let peer = &mut leader.peers[place];
    let known = peer.boot.unwrap_or(boot);
    if boot < known {
        return None;
    }
    peer.boot = Some(boot);
    peer.heard = now;
    if known < boot {
        peer.open_session(sessions.open());
        leader.wants_sending = true;
        return None;
    }
    Some(peer)
}
