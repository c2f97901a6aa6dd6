//! What was appended and waits for a flush group.

use std::collections::VecDeque;

use logdrive_raft::io::HardState;
use logdrive_raft::{Base, Entry, GroupId, LogPosition};

use crate::Position;
use crate::format::Record;

/// Bytes of an entry run in a table.
pub(crate) const RUN_BYTES: usize = 77;

/// The most bytes a hard state or a truncation takes in a table.
const SMALL_RECORD_BYTES: usize = 64;

/// Something to write.
#[derive(Debug)]
pub(crate) enum Item {
    /// An entry and what it follows.
    Entry(LogPosition, Entry),
    /// One of the path, once more: it cannot be read where it lies.
    Rewrite(LogPosition, Entry),
    HardState(GroupId, HardState),
    Truncate(GroupId, LogPosition),
    /// Two records that no crash may part: the base, and the membership there. And how many bytes they take.
    Base(GroupId, Box<Base>, usize),
    /// A record that comes seldom.
    Record(Box<Record>, usize),
}

/// Something to write, and the position it completes, if it is the last of its append.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) item: Item,
    pub(crate) completes: Option<Position>,
}

/// What waits, in order.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    items: VecDeque<Queued>,
    bytes: usize,
}

/// What a flush group would hold of the queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) items: usize,
    /// At most.
    pub(crate) table_bytes: usize,
    pub(crate) body_bytes: usize,
    pub(crate) runs: usize,
}

impl Item {
    fn table_bytes(&self) -> usize {
        match self {
            Item::Entry(..) | Item::Rewrite(..) => RUN_BYTES,
            Item::HardState(..) | Item::Truncate(..) => SMALL_RECORD_BYTES,
            Item::Base(_, _, bytes) | Item::Record(_, bytes) => *bytes,
        }
    }

    fn body_bytes(&self) -> usize {
        match self {
            Item::Entry(_, entry) | Item::Rewrite(_, entry) => entry.frame().len(),
            _ => 0,
        }
    }
}

/// Whether an item is an entry that continues the run that ends with the item before it.
pub(crate) fn continues(before: Option<&Item>, item: &Item) -> bool {
    let (last, prev, entry) = match (before, item) {
        (Some(Item::Entry(_, last)), Item::Entry(prev, entry)) => (last, prev, entry),
        (Some(Item::Rewrite(_, last)), Item::Rewrite(prev, entry)) => (last, prev, entry),
        _ => return false,
    };
    last.header().group == entry.header().group && last.position() == *prev
}

impl Queue {
    /// Whether something waits after which segments may be released.
    pub(crate) fn lets_go(&self) -> bool {
        self.items.iter().any(|queued| match &queued.item {
            Item::Base(..) => true,
            Item::Record(record, _) => matches!(**record, Record::Anchor(_)),
            _ => false,
        })
    }

    pub(crate) fn push(&mut self, item: Item) {
        self.bytes += item.table_bytes() + item.body_bytes();
        let completes = None;
        self.items.push_back(Queued { item, completes });
    }

    /// The item pushed last completes this position.
    pub(crate) fn complete(&mut self, position: Position) {
        if let Some(last) = self.items.back_mut() {
            last.completes = Some(position);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// At most so many bytes of table and frames wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// As much from the front as fits into so many bytes, but at least one item.
    pub(crate) fn plan(&self, bytes_max: usize) -> Plan {
        let mut plan = Plan::default();
        let mut before = None;
        for Queued { item, .. } in &self.items {
            let (table, runs) = match item {
                item if continues(before, item) => (0, 0),
                Item::Entry(..) | Item::Rewrite(..) => (RUN_BYTES, 1),
                other => (other.table_bytes(), 0),
            };
            let bytes = plan.table_bytes + plan.body_bytes + table + item.body_bytes();
            if plan.items > 0 && bytes > bytes_max {
                break;
            }
            plan.items += 1;
            plan.table_bytes += table;
            plan.body_bytes += item.body_bytes();
            plan.runs += runs;
            before = Some(item);
        }
        plan
    }

    /// The first so many items.
    pub(crate) fn front(&self, items: usize) -> impl Iterator<Item = &Queued> {
        self.items.iter().take(items)
    }

    /// Removes the first so many items.
    pub(crate) fn advance(&mut self, items: usize) {
        for Queued { item, .. } in self.items.drain(..items) {
            self.bytes -= item.table_bytes() + item.body_bytes();
        }
    }
}
