//! Media with a log written block by block, and what the view makes of them.

use logdrive_raft::io::HardState;
use logdrive_raft::wire::Encode;
use logdrive_raft::{ClusterId, Genesis, Incarnation, Replica};
use logdrive_wal::disk::BLOCK_BYTES;
use logdrive_wal::format::{GroupCheckpoint, Place, Verdict, VerdictKind};

use super::*;
use crate::dice::{Dice, Site};

const GROUP: GroupId = GroupId(1);
const BLOCKS: u32 = 64;

/// A log that is put on a medium, as what was flushed.
struct Written {
    medium: SimStorage,
    view: FlushedView,
    slot: SlotId,
    header: SlotHeader,
    next: u32,
    number: u64,
    chain: Chain,
}

impl Written {
    fn new() -> Self {
        let medium = SimStorage::new(Dice::played(Site::Disk(NodeId(1)), &[]));
        let written = Self {
            medium,
            view: FlushedView::default(),
            slot: SlotId(0),
            header: header(SlotId(0), 1, 1),
            next: SLOT_HEADER_BLOCKS,
            number: 0,
            chain: Chain::default(),
        };
        written.open();
        written
    }

    fn open(&self) {
        let mut bytes = vec![0; BLOCKS as usize * BLOCK_BYTES];
        for (number, block) in self.header.to_blocks().iter().enumerate() {
            bytes[number * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&block.0);
        }
        self.medium.set_contents(self.slot, &bytes);
    }

    /// The next group, which is not on the medium yet.
    fn build(&mut self, kind: GroupKind, table: &[Record], entries: &[Entry]) -> Built {
        let mut bytes = Vec::new();
        for record in table {
            bytes.extend_from_slice(&record.to_bytes());
        }
        let mut body = Vec::new();
        for entry in entries {
            body.extend_from_slice(entry.frame());
        }
        self.number += 1;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a small group");
        let place = Place {
            segment: self.header.segment,
            block: self.next,
        };
        let header = GroupHeader {
            kind,
            compatible: 0,
            cluster: self.header.cluster,
            incarnation: self.header.incarnation,
            boot: self.header.epoch,
            place,
            blocks: 1,
            number: self.number,
            mark: Place::default(),
            table_bytes: length(&bytes),
            echo_bytes: 0,
            body_bytes: length(&body),
            records: u32::try_from(table.len()).expect("few"),
            echo_records: 0,
            digest: digest_of(&bytes, &[]),
            previous: self.chain,
        };
        assert!(header.data_bytes() <= BLOCK_DATA_BYTES);
        let (sealed, chain) = header.seal();
        let mut block = Block::ZERO;
        let data = [&sealed[..], &bytes, &body].concat();
        block.0[..data.len()].copy_from_slice(&data);
        self.header.stamper().stamp(&mut block, self.next, true);
        self.next += 1;
        self.chain = chain;
        Built {
            at: (self.slot, place.block),
            block,
        }
    }

    fn flush(&mut self, built: &Built) {
        let (slot, block) = built.at;
        self.medium
            .change(slot, block, |bytes| *bytes = built.block.0);
        self.view.read(&self.medium);
    }

    fn begin(&mut self) {
        let first = self.build(GroupKind::First, &[Record::Genesis(genesis())], &[]);
        self.flush(&first);
        let done = self.build(GroupKind::Data, &[verdict(self.header.epoch)], &[]);
        self.flush(&done);
    }

    fn entry(&mut self, prev: LogPosition) -> (Built, LogPosition) {
        let entry = Entry::noop(GROUP, Term(1), prev.index.next(), prev.chain);
        let run = EntryRun {
            group: GROUP,
            prev,
            last: entry.position(),
            bytes: u32::try_from(entry.frame().len()).expect("a small entry"),
        };
        let at = entry.position();
        (
            self.build(GroupKind::Data, &[Record::Entries(run)], &[entry]),
            at,
        )
    }
}

struct Built {
    at: Spot,
    block: Block,
}

fn header(slot: SlotId, segment: u64, epoch: u64) -> SlotHeader {
    SlotHeader {
        by_recovery: true,
        compatible: 0,
        log_uuid: 7,
        cluster: ClusterId(1),
        node: NodeId(1),
        incarnation: Incarnation(3),
        slot: slot.0,
        slot_blocks: BLOCKS,
        segment,
        epoch: Boot(epoch),
        predecessor_epoch: Boot(0),
        predecessor_end: Place::default(),
        predecessor_chain: Chain::default(),
        oldest: 1,
    }
}

fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: Vec::new(),
    }
}

fn verdict(boot: Boot) -> Record {
    Record::Verdict(Verdict {
        kind: VerdictKind::Clean,
        end: Place::default(),
        chain: Chain::default(),
        boot,
        holes: Vec::new(),
        guards: Vec::new(),
    })
}

fn vote(term: u64) -> Record {
    let vote = Some(Replica {
        id: NodeId(2),
        incarnation: Incarnation(9),
    });
    let hard_state = HardState {
        term: Term(term),
        vote,
    };
    Record::HardState {
        group: GROUP,
        hard_state,
    }
}

#[test]
fn what_lies_beyond_a_gap_counts_once_the_gap_is_closed() {
    let mut log = Written::new();
    log.begin();
    let (first, one) = log.entry(genesis().origin());
    let (second, two) = log.entry(one);
    let votes = [
        log.build(GroupKind::Data, &[vote(5)], &[]),
        log.build(GroupKind::Data, &[vote(5)], &[]),
    ];
    log.flush(&second);
    log.flush(&votes[0]);
    log.flush(&votes[1]);
    assert!(!log.view.covers(GROUP, two));
    assert_eq!(log.view.copies_of_vote(GROUP, Term(5), NodeId(2)), 0);
    assert_eq!(log.view.term(GROUP), Term(0));
    log.flush(&first);
    assert!(log.view.covers(GROUP, one) && log.view.covers(GROUP, two));
    assert_eq!(log.view.copies_of_vote(GROUP, Term(5), NodeId(2)), 2);
    assert_eq!(log.view.term(GROUP), Term(5));
}

#[test]
fn what_was_cut_counts_again_only_when_it_was_written_again() {
    let mut log = Written::new();
    log.begin();
    let (first, one) = log.entry(genesis().origin());
    let (second, two) = log.entry(one);
    log.flush(&first);
    log.flush(&second);
    assert!(log.view.covers(GROUP, two));
    let cut = Record::Truncate {
        group: GROUP,
        to: one,
    };
    let cut = log.build(GroupKind::Data, &[cut], &[]);
    log.flush(&cut);
    assert!(log.view.covers(GROUP, one) && !log.view.covers(GROUP, two));
    let (again, same) = log.entry(one);
    assert_eq!(same, two);
    assert!(!log.view.covers(GROUP, two));
    log.flush(&again);
    assert!(log.view.covers(GROUP, two));
}

#[test]
fn what_went_bad_takes_everything_after_it_along() {
    let mut log = Written::new();
    log.begin();
    let (first, one) = log.entry(genesis().origin());
    let voted = log.build(GroupKind::Data, &[vote(5)], &[]);
    let (second, two) = log.entry(one);
    for built in [&first, &voted, &second] {
        log.flush(built);
    }
    assert_eq!(log.view.counts_on(voted.at.0, voted.at.1), OnPath::Unmarked);
    log.medium
        .change(voted.at.0, voted.at.1, |bytes| bytes[100] ^= 1);
    log.view.read(&log.medium);
    assert!(log.view.covers(GROUP, one) && !log.view.covers(GROUP, two));
    assert_eq!(log.view.copies_of_vote(GROUP, Term(5), NodeId(2)), 0);
    log.flush(&voted);
    assert!(log.view.covers(GROUP, two));
}

#[test]
fn an_opening_counts_from_its_verdict_on() {
    let mut log = Written::new();
    log.begin();
    let (first, one) = log.entry(genesis().origin());
    log.flush(&first);
    let (chain, number) = (log.chain, log.number);
    let (dropped, two) = log.entry(one);
    log.flush(&dropped);
    assert!(log.view.covers(GROUP, two));
    // The next boot has not found the second entry, and goes on before it.
    log.slot = SlotId(1);
    log.header = header(SlotId(1), 2, 2);
    (log.next, log.chain, log.number) = (SLOT_HEADER_BLOCKS, chain, number);
    log.open();
    let checkpoint = Record::Checkpoint(vec![GroupCheckpoint {
        snapshot: None,
        genesis: genesis(),
        hard_state: HardState::default(),
        base: genesis().origin(),
        tip: one,
        anchor: None,
        guard: None,
        holes: Vec::new(),
    }]);
    let opening = log.build(GroupKind::First, &[checkpoint], &[]);
    log.flush(&opening);
    assert!(log.view.covers(GROUP, two));
    let done = log.build(GroupKind::Data, &[verdict(Boot(2))], &[]);
    log.flush(&done);
    assert!(log.view.covers(GROUP, one) && !log.view.covers(GROUP, two));
    // A slot that is taken again holds nothing of what lay there.
    log.slot = SlotId(0);
    log.header = header(SlotId(0), 3, 2);
    log.open();
    log.view.read(&log.medium);
    assert!(!log.view.covers(GROUP, one));
}
