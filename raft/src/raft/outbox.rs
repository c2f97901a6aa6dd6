//! The outputs under construction, and how far the writes among them have come.

use crate::entry::Entry;
use crate::io::{HardState, Persist, PersistId, Ready, Write};
use crate::message::{Body, Message};
use crate::snapshot::{Anchor, Base};

/// What [`super::Raft::take_ready`] will give out next.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) ready: Ready,
    newest: PersistId,
    durable: PersistId,
    /// The write of the newest hard state.
    hard_state: PersistId,
    /// The write of the newest base.
    base: PersistId,
}

impl Outbox {
    pub(super) fn take(&mut self) -> Ready {
        std::mem::take(&mut self.ready)
    }

    /// Term and vote must be durable and echoed before `then` leaves.
    pub(super) fn write_hard_state(&mut self, hard_state: HardState, then: Option<Message>) {
        // Nobody has seen the write before this one if it has not been taken. An answer in it that
        // belongs to an older term is dropped by the driver, as it would have been anyway.
        if let Some(persist) = self.ready.persist.last_mut()
            && persist.echoed
        {
            persist.writes = vec![Write::HardState(hard_state)];
            persist.then.extend(then);
            return;
        }
        let persist = Persist {
            id: self.next_id(),
            writes: vec![Write::HardState(hard_state)],
            echoed: true,
            then: then.into_iter().collect(),
        };
        self.hard_state = persist.id;
        self.ready.persist.push(persist);
    }

    /// The entry must be written after everything before it. Entries of one turn share one write.
    pub(super) fn write_entry(&mut self, entry: Entry) -> PersistId {
        let persist = self.unechoed();
        match persist.writes.last_mut() {
            Some(Write::Entries(run))
                if run
                    .last()
                    .is_some_and(|last| last.index().next() == entry.index()) =>
            {
                run.push(entry);
            }
            // The first entry, or one that replaces what this very turn had appended.
            _ => persist.writes.push(Write::Entries(vec![entry])),
        }
        persist.id
    }

    /// The anchor must be written after everything before it.
    pub(super) fn write_anchor(&mut self, anchor: Anchor) -> PersistId {
        let persist = self.unechoed();
        persist.writes.push(Write::Anchor(anchor));
        persist.id
    }

    /// So must the base. Nothing is said of a log that begins there before it is durable.
    pub(super) fn write_base(&mut self, base: Base) -> PersistId {
        let persist = self.unechoed();
        persist.writes.push(Write::Base(base));
        let id = persist.id;
        self.base = id;
        id
    }

    /// The write under construction that waits for no echo.
    fn unechoed(&mut self) -> &mut Persist {
        let echoed = |persist: &Persist| persist.echoed;
        if self.ready.persist.last().is_none_or(echoed) {
            let persist = Persist {
                id: self.next_id(),
                writes: Vec::new(),
                echoed: false,
                then: Vec::new(),
            };
            self.ready.persist.push(persist);
        }
        let last = self.ready.persist.last_mut();
        last.expect("pushed if there was none")
    }

    /// An ack for what the write under construction holds. Acks are cumulative: of one session only the
    /// last is kept.
    pub(super) fn ack_when_written(&mut self, ack: Message) {
        let persist = self
            .ready
            .persist
            .last_mut()
            .expect("entries have just been added to it");
        assert!(!persist.echoed);
        if let Some(newest) = persist.then.last_mut()
            && newest.to == ack.to
            && newest.term == ack.term
            && let (Body::Ack(before), Body::Ack(after)) = (&newest.body, &ack.body)
            && before.session == after.session
            && before.index <= after.index
        {
            *newest = ack;
            return;
        }
        persist.then.push(ack);
    }

    pub(super) fn on_durable(&mut self, id: PersistId) {
        assert!(id <= self.newest);
        self.durable = self.durable.max(id);
    }

    /// Whether every write up to this one is durable.
    pub(super) fn is_durable(&self, id: PersistId) -> bool {
        id <= self.durable
    }

    /// Whether nothing is on its way to the disk.
    pub(super) fn is_idle(&self) -> bool {
        self.newest == self.durable
    }

    /// Whether where the log begins is durable.
    pub(super) fn base_is_durable(&self) -> bool {
        self.is_durable(self.base)
    }

    /// Whether the current term and vote are durable and echoed.
    pub(super) fn hard_state_is_durable(&self) -> bool {
        self.hard_state <= self.durable
    }

    fn next_id(&mut self) -> PersistId {
        self.newest.0 += 1;
        self.newest
    }
}
