//! A disk as the core relies on it: writes become durable in order, and what was not is lost in a crash,
//! but for a part of it that happened to land.

use std::collections::{BTreeMap, VecDeque};

use logdrive_raft::io::{EntryMeta, HardState, Persist, PersistId, Restored, Write};
use logdrive_raft::wire::Decode;
use logdrive_raft::{Entry, EntryKind, Genesis, GroupId, Index, Membership, Message};

/// What one group has on the medium.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
}

impl Durable {
    fn apply(&mut self, write: Write) {
        match write {
            Write::HardState(hard_state) => {
                assert!(self.hard_state.term <= hard_state.term);
                self.hard_state = hard_state;
            }
            Write::Entries(entries) => {
                let first = entries[0].index().0;
                assert!(first <= self.entries.len() as u64 + 1, "a gap in the log");
                self.entries.truncate(usize::try_from(first - 1).unwrap());
                for entry in entries {
                    // A term is durable before any entry of it.
                    assert!(entry.term() <= self.hard_state.term);
                    self.entries.push(entry);
                }
            }
            Write::Truncate(last) => self
                .entries
                .truncate(usize::try_from(last.index.0).unwrap()),
            Write::Anchor(_) | Write::Base(_) => unreachable!("nobody asked for a cut"),
        }
    }

    pub(crate) fn entry(&self, index: Index) -> Option<&Entry> {
        self.entries
            .get(usize::try_from(index.0.checked_sub(1)?).unwrap())
    }

    pub(crate) fn restored(&self, genesis: &Genesis) -> Restored {
        let meta = |entry: &Entry| EntryMeta {
            term: entry.term(),
            chain: entry.header().chain,
            frame_bytes: u32::try_from(entry.frame().len()).unwrap(),
        };
        let configurations = self.entries.iter();
        let configurations =
            configurations.filter(|entry| entry.header().kind == EntryKind::Configuration);
        Restored {
            hard_state: self.hard_state,
            entries: self.entries.iter().map(meta).collect(),
            configurations: configurations
                .map(|entry| {
                    (
                        entry.index(),
                        Membership::from_bytes(entry.payload()).unwrap(),
                    )
                })
                .collect(),
            ..Restored::at(genesis.origin(), genesis.membership())
        }
    }
}

/// A write that was handed over.
#[derive(Debug)]
struct Pending {
    group: GroupId,
    persist: Persist,
    /// Flushed itself; still waits for those before it and for its echo.
    flushed: bool,
}

/// What became durable: in order, with the messages that waited for it.
#[derive(Debug)]
pub(crate) struct Released {
    pub(crate) group: GroupId,
    pub(crate) id: PersistId,
    pub(crate) then: Vec<Message>,
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) groups: BTreeMap<GroupId, Durable>,
    pending: VecDeque<Pending>,
    /// What the newest flush group replaced in hard states: nothing echoes that yet.
    replaced: Vec<(GroupId, HardState)>,
}

impl Disk {
    pub(crate) fn write(&mut self, group: GroupId, persist: Persist) {
        assert!(!persist.writes.is_empty());
        self.pending.push_back(Pending {
            group,
            persist,
            flushed: false,
        });
    }

    pub(crate) fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// One flush: the first `count` writes reach the medium. Those that ask for an echo are released by
    /// the next flush, of anything or of nothing.
    pub(crate) fn flush(&mut self, count: usize) -> Vec<Released> {
        self.replaced.clear();
        let mut released = Vec::new();
        let mut left = VecDeque::new();
        let mut held = Vec::new();
        for (place, mut pending) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let echoes = pending.flushed;
            if place < count && !pending.flushed {
                let durable = self.groups.entry(pending.group).or_default();
                for write in std::mem::take(&mut pending.persist.writes) {
                    if matches!(write, Write::HardState(_)) {
                        self.replaced.push((pending.group, durable.hard_state));
                    }
                    durable.apply(write);
                }
                pending.flushed = true;
            }
            let waits = pending.persist.echoed && !echoes || held.contains(&pending.group);
            if pending.flushed && !waits {
                released.push(Released {
                    group: pending.group,
                    id: pending.persist.id,
                    then: pending.persist.then,
                });
            } else {
                held.push(pending.group);
                left.push_back(pending);
            }
        }
        self.pending = left;
        released
    }

    /// The machine dies. The first `landed` of the writes that wait reach the medium all the same; if
    /// `rots`, the newest flush group is lost, and with it what no later one echoes.
    pub(crate) fn crash(&mut self, landed: usize, rots: bool) {
        if landed > 0 {
            let _ = self.flush(landed);
        }
        self.pending.clear();
        for (group, before) in self.replaced.drain(..).rev().filter(|_| rots) {
            self.groups.entry(group).or_default().hard_state = before;
        }
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }
}
