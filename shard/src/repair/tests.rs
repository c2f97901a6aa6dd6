//! Runs that come back, from whom, and what is made of those who have something else.

use bytes::Bytes;
use logdrive_raft::message::PART_BYTES_MAX;
use logdrive_raft::wire::Encode;
use logdrive_raft::{EntryBuilder, Member, Term, UnsealedEntry};

use super::*;

const GROUP: GroupId = GroupId(7);
const PEERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

fn entries(count: u64, bytes: usize) -> Vec<Entry> {
    let mut at = LogPosition::default();
    let mut entries = Vec::new();
    for number in 0..count {
        let mut builder = EntryBuilder::with_room(1, bytes);
        builder.push(&vec![u8::try_from(number % 251).unwrap(); bytes]);
        let entry = builder
            .finish()
            .seal(GROUP, Term(1), at.index.next(), at.chain);
        at = entry.position();
        entries.push(entry);
    }
    entries
}

fn configuration(at: LogPosition) -> (Entry, Membership) {
    let membership = Membership::of_voters(vec![Member {
        replica: logdrive_raft::Replica {
            id: NodeId(9),
            incarnation: logdrive_raft::Incarnation(9),
        },
        address: "host".to_owned(),
    }]);
    let entry = UnsealedEntry::bare(EntryKind::Configuration, &membership.to_bytes());
    let entry = entry.seal(GROUP, Term(1), at.index.next(), at.chain);
    (entry, membership)
}

struct Rig {
    repair: Repair,
    now: Micros,
    log: Vec<Entry>,
}

impl Rig {
    /// Lacks all of this but the first entry, and has begun to ask.
    fn new(log: Vec<Entry>) -> Self {
        let mut rig = Self {
            repair: Repair::new(GROUP, Vec::new(), Micros(0)),
            now: Micros(0),
            log,
        };
        rig.begin();
        rig
    }

    fn begin(&mut self) {
        assert!(self.repair.wants_run(self.now));
        let missing = Missing {
            first: Index(2),
            last: self.log.last().unwrap().position(),
            segment: 1,
        };
        let before = self.log[0].position();
        self.repair.begin(missing, before, &PEERS, self.now);
    }

    fn asked(&mut self) -> (NodeId, Wanted) {
        let orders = self.repair.take_orders();
        match orders[..] {
            [Order::Say(to, Said::Want(wanted))] => (to, wanted),
            _ => panic!("{orders:?}"),
        }
    }

    fn wait(&mut self, us: u64) {
        self.now = self.now.after(us);
        self.repair.on_tick(self.now);
    }

    fn hear(&mut self, from: NodeId, said: Said) {
        self.repair.on_answer(from, said, self.now);
    }

    /// Answers as a peer does that has such a log.
    fn answer(&mut self, (to, wanted): (NodeId, Wanted), log: &[Entry]) {
        let first = usize::try_from(wanted.from.0 - 1).unwrap();
        let all: Vec<u8> = log[first..]
            .iter()
            .flat_map(|entry| entry.frame().to_vec())
            .skip(wanted.offset as usize)
            .take(PART_BYTES_MAX)
            .collect();
        let bytes = Bytes::from(all);
        self.hear(to, Said::Have { wanted, bytes });
    }

    fn supplied(&mut self) -> Vec<Entry> {
        match self.repair.take_orders().pop() {
            Some(Order::Supply(entries)) => entries,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_run_comes_back_part_by_part() {
    let log = entries(12, 100_000);
    let mut rig = Rig::new(log.clone());
    let mut parts = 0;
    let supplied = loop {
        let asked = match rig.repair.take_orders().pop() {
            Some(Order::Say(to, Said::Want(wanted))) => (to, wanted),
            Some(Order::Supply(entries)) => break entries,
            other => panic!("{other:?}"),
        };
        assert_eq!(asked.0, PEERS[0]);
        parts += 1;
        rig.answer(asked, &log);
    };
    assert_eq!(supplied, log[1..]);
    let bytes: usize = log[1..].iter().map(|entry| entry.frame().len()).sum();
    assert!(bytes / PART_BYTES_MAX < parts, "{parts} of {bytes} bytes");
    rig.repair.on_supplied(Position(5));
    assert_eq!(rig.repair.writing(), Some(Position(5)));
    assert!(!rig.repair.wants_run(rig.now));
    let closed = rig.repair.on_written(rig.now).unwrap();
    assert_eq!((closed.last, closed.from), (log[11].position(), PEERS[0]));
    assert!(rig.repair.wants_run(rig.now));
}

/// A frame may be larger than a part.
#[test]
fn a_large_entry_comes_in_pieces() {
    let log = entries(2, 1 << 20);
    let mut rig = Rig::new(log.clone());
    for part in 0..4_u32 {
        let asked = rig.asked();
        assert_eq!(asked.1.from, Index(2));
        assert_eq!(asked.1.offset as usize, part as usize * PART_BYTES_MAX);
        rig.answer(asked, &log);
    }
    let asked = rig.asked();
    rig.answer(asked, &log);
    assert_eq!(rig.supplied(), log[1..]);
}

#[test]
fn whoever_lacks_it_or_is_silent_or_gone_is_followed_by_the_next() {
    let log = entries(4, 50);
    for how in 0..4 {
        let mut rig = Rig::new(log.clone());
        let (first, wanted) = rig.asked();
        assert_eq!(first, PEERS[0]);
        match how {
            0 => rig.hear(first, Said::Lacks { wanted, base: None }),
            1 => rig.wait(ANSWER_US_MIN),
            2 => rig.repair.on_disconnected(first, rig.now),
            _ => {
                let bytes = Bytes::from(vec![7; ENTRY_HEADER_BYTES]);
                rig.hear(first, Said::Have { wanted, bytes });
            }
        }
        let asked = rig.asked();
        assert_eq!(asked, (PEERS[1], wanted), "{how}");
        rig.answer(asked, &log);
        assert_eq!(rig.supplied(), log[1..]);
    }
}

/// Entries that follow each other and lead elsewhere are those of another log.
#[test]
fn another_log_is_not_taken() {
    let log = entries(4, 50);
    let mut other = log[..2].to_vec();
    let at = other[1].position();
    other.push(Entry::noop(GROUP, Term(1), at.index.next(), at.chain));
    let at = other[2].position();
    other.push(Entry::noop(GROUP, Term(1), at.index.next(), at.chain));
    let mut rig = Rig::new(log.clone());
    let asked = rig.asked();
    rig.answer(asked, &other);
    // Nothing of it is kept.
    let asked = rig.asked();
    assert_eq!((asked.0, asked.1.from), (PEERS[1], Index(2)));
    rig.answer(asked, &log);
    assert_eq!(rig.supplied(), log[1..]);
}

#[test]
fn late_and_foreign_answers_change_nothing() {
    let log = entries(4, 50);
    let mut rig = Rig::new(log.clone());
    let (first, wanted) = rig.asked();
    let bytes = log[1].frame().clone();
    for said in [
        Said::Want(wanted),
        Said::Lacks {
            wanted: Wanted {
                offset: 1,
                ..wanted
            },
            base: None,
        },
        Said::Have {
            wanted: Wanted {
                from: Index(3),
                ..wanted
            },
            bytes: bytes.clone(),
        },
    ] {
        rig.hear(first, said);
    }
    rig.hear(PEERS[1], Said::Have { wanted, bytes });
    assert!(rig.repair.take_orders().is_empty());
    rig.answer((first, wanted), &log);
    assert_eq!(rig.supplied(), log[1..]);
}

#[test]
fn when_nobody_has_it_that_is_said_and_they_are_asked_again_later() {
    let log = entries(4, 50);
    let mut rig = Rig::new(log);
    let mut pause = PAUSE_US_MIN;
    for round in 0..8 {
        let base = (round == 3).then(|| LogPosition {
            index: Index(9),
            ..LogPosition::default()
        });
        for peer in PEERS {
            let (to, wanted) = match rig.repair.take_orders().pop() {
                Some(Order::Say(to, Said::Want(wanted))) => (to, wanted),
                other => panic!("{other:?}"),
            };
            assert_eq!(to, peer);
            let base = base.filter(|_| peer == PEERS[0]);
            rig.hear(to, Said::Lacks { wanted, base });
        }
        let orders = rig.repair.take_orders();
        match base {
            None => assert!(matches!(orders[..], [Order::NobodyHas]), "{orders:?}"),
            Some(base) => assert!(
                matches!(orders[..], [Order::NobodyHas, Order::WantsSnapshot { least }] if least == base.index),
                "{orders:?}"
            ),
        }
        assert_eq!(rig.repair.next_deadline(), Some(rig.now.after(pause)));
        rig.wait(pause - 1);
        assert!(!rig.repair.wants_run(rig.now));
        rig.wait(1);
        pause = (2 * pause).min(PAUSE_US_MAX);
        rig.begin();
    }
}

/// What was asked before there was a way to a peer never arrived.
#[test]
fn a_peer_that_comes_is_asked_at_once() {
    let log = entries(4, 50);
    let mut rig = Rig::new(log.clone());
    assert_eq!(rig.asked().0, PEERS[0]);
    rig.repair.on_connected(PEERS[1], rig.now);
    let asked = rig.asked();
    assert_eq!(asked.0, PEERS[1]);
    rig.repair.on_connected(PEERS[1], rig.now);
    assert_eq!(rig.asked(), asked);
    for _ in PEERS {
        rig.repair.take_orders();
        rig.wait(ANSWER_US_MAX);
    }
    // That nobody has answered does not mean that nobody has it, for a while.
    assert!(rig.repair.take_orders().is_empty());
    assert!(!rig.repair.wants_run(rig.now));
    rig.repair.on_connected(PEERS[0], rig.now);
    assert!(rig.repair.wants_run(rig.now));
}

#[test]
fn a_log_without_room_is_asked_again_later() {
    let log = entries(3, 50);
    let mut rig = Rig::new(log.clone());
    let asked = rig.asked();
    rig.answer(asked, &log);
    assert_eq!(rig.supplied(), log[1..]);
    rig.repair.on_refused(rig.now);
    assert_eq!(rig.repair.writing(), None);
    assert!(rig.repair.on_written(rig.now).is_none());
    assert!(!rig.repair.wants_run(rig.now));
    rig.wait(PAUSE_US_MIN);
    rig.begin();
}

#[test]
fn configurations_come_back_in_order_and_once() {
    let mut log = entries(2, 50);
    let (entry, membership) = configuration(log[1].position());
    log.push(entry);
    let behind = vec![(Index(8), Membership::default())];
    let mut rig = Rig {
        repair: Repair::new(GROUP, behind, Micros(0)),
        now: Micros(0),
        log: log.clone(),
    };
    rig.begin();
    let asked = rig.asked();
    rig.answer(asked, &log);
    assert_eq!(rig.supplied(), log[1..]);
    rig.repair.on_supplied(Position(1));
    rig.repair.on_written(rig.now).unwrap();
    let taken = rig.repair.take_configurations(Index(1), Index(7));
    assert_eq!(taken, [(Index(3), membership)]);
    assert_eq!(rig.repair.take_configurations(Index(1), Index(7)), []);
    let rest = rig.repair.take_configurations(Index(8), Index(9));
    assert_eq!(rest, []);
}

#[test]
fn silence_of_all_is_an_answer_after_a_while() {
    let log = entries(4, 50);
    let mut rig = Rig::new(log);
    loop {
        let orders = rig.repair.take_orders();
        if orders.iter().any(|order| matches!(order, Order::NobodyHas)) {
            break;
        }
        assert!(rig.now < Micros(0).after(PATIENCE_US + 3 * ANSWER_US_MAX + PAUSE_US_MAX));
        rig.wait(50_000);
        if rig.repair.wants_run(rig.now) {
            rig.begin();
        }
    }
    assert!(Micros(0).after(PATIENCE_US) <= rig.now);
}

#[test]
fn alone_there_is_nobody_to_ask() {
    let log = entries(2, 50);
    let mut repair = Repair::new(GROUP, Vec::new(), Micros(0));
    let missing = Missing {
        first: Index(2),
        last: log[1].position(),
        segment: 1,
    };
    repair.begin(missing, log[0].position(), &[], Micros(0));
    assert!(matches!(repair.take_orders()[..], [Order::NobodyHas]));
}
