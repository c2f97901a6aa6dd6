use logdrive_raft::{Chain, LogPosition, Term};

use super::*;

const SECOND: u64 = 1_000_000;

/// A fetch, and what it wants done.
struct Rig {
    fetch: Fetch,
    now: Micros,
    manifest: Bytes,
}

fn at(index: u64) -> LogPosition {
    LogPosition {
        index: Index(index),
        term: Term(2),
        chain: Chain(7),
    }
}

impl Rig {
    fn new() -> Self {
        Self::paced(u64::MAX)
    }

    fn paced(bytes_per_s: u64) -> Self {
        let now = Micros(SECOND);
        let peers = [NodeId(2), NodeId(3)];
        Self {
            fetch: Fetch::begin(Index(50), Some(NodeId(2)), bytes_per_s, &peers, now),
            now,
            manifest: Bytes::from_static(b"a manifest"),
        }
    }

    fn orders(&mut self) -> Vec<Order> {
        self.fetch.take_orders()
    }

    /// What is asked of a node, progress apart.
    fn asked(&mut self) -> Vec<(NodeId, Transfer)> {
        let said = self.orders().into_iter().filter_map(|order| match order {
            Order::Say(_, Transfer::Progress(_)) => None,
            Order::Say(to, transfer) => Some((to, transfer)),
            other => panic!("{other:?}"),
        });
        said.collect()
    }

    fn parts(&mut self) -> Vec<(u32, u32)> {
        let asked = self.asked().into_iter();
        let part = |(_, transfer)| match transfer {
            Transfer::Fetch {
                part: Part::Chunk { file, chunk },
                ..
            } => (file, chunk),
            other => panic!("{other:?}"),
        };
        asked.map(part).collect()
    }

    fn id(&self) -> SnapshotId {
        SnapshotId(xxh3_128(&self.manifest))
    }

    fn offer(&mut self, from: u64, index: u64) {
        let offered = Offered {
            snapshot: self.id(),
            at: at(index),
            bytes: 1000,
            manifest_bytes: u32::try_from(self.manifest.len()).unwrap(),
        };
        self.hear(from, Transfer::Offer(Some(offered)));
    }

    fn hear(&mut self, from: u64, transfer: Transfer) {
        self.fetch.on_transfer(NodeId(from), transfer, self.now);
    }

    fn wait(&mut self, us: u64) {
        self.now = self.now.after(us);
        self.fetch.on_tick(&[NodeId(2), NodeId(3)], self.now);
    }

    fn part(&mut self, from: u64, (file, chunk): (u32, u32)) {
        let snapshot = self.id();
        let bytes = Bytes::from_static(b"bytes");
        let part = Part::Chunk { file, chunk };
        self.hear(
            from,
            Transfer::Part {
                snapshot,
                part,
                bytes,
            },
        );
    }

    fn stored(&mut self, part: (u32, u32), bytes: Option<u64>) {
        self.fetch.on_stored(self.id(), part, bytes, self.now);
    }

    /// As far as the chunks, of which so many are missing.
    fn at_chunks(&mut self, count: u32) {
        self.offer(2, 60);
        self.offer(3, 60);
        self.orders();
        let (snapshot, bytes) = (self.id(), self.manifest.clone());
        let part = Part::Manifest { offset: 0 };
        self.hear(
            3,
            Transfer::Part {
                snapshot,
                part,
                bytes,
            },
        );
        assert!(matches!(self.orders()[..], [Order::Receive { .. }]));
        let run = (count > 0).then_some(Missing {
            file: 0,
            first: 0,
            count,
        });
        let missing = run.into_iter().collect();
        self.fetch.on_receiving(snapshot, missing, 0, self.now);
    }
}

#[test]
fn everybody_is_asked_and_a_follower_is_taken_rather_than_the_leader() {
    let mut rig = Rig::new();
    let least = Index(50);
    let query = |node| (NodeId(node), Transfer::Query { least });
    assert_eq!(rig.asked(), [query(2), query(3)]);
    rig.offer(2, 60);
    assert!(rig.asked().is_empty());
    rig.offer(3, 60);
    let asked = rig.asked();
    assert!(
        matches!(asked[..], [(NodeId(3), Transfer::Fetch { .. })]),
        "{asked:?}"
    );
    assert_eq!(rig.fetch.status().unwrap().from, NodeId(3));
}

#[test]
fn who_does_not_answer_is_not_waited_for_and_what_ends_too_early_is_not_taken() {
    let mut rig = Rig::new();
    rig.orders();
    rig.offer(3, 49);
    rig.wait(ASK_US);
    assert_eq!(rig.fetch.status(), None);
    // It asks again, and the newest is taken.
    rig.wait(PAUSE_US_MIN);
    assert_eq!(rig.asked().len(), 2);
    rig.offer(2, 61);
    rig.offer(3, 60);
    assert_eq!(rig.fetch.status().unwrap().index, Index(61));
}

#[test]
fn a_few_parts_are_on_their_way_at_a_time_and_each_is_stored_once() {
    let mut rig = Rig::new();
    rig.at_chunks(6);
    assert_eq!(rig.parts(), [(0, 0), (0, 1), (0, 2), (0, 3)]);
    rig.part(3, (0, 1));
    assert!(matches!(rig.orders()[..], [Order::Put { chunk: 1, .. }]));
    // It came twice, or from somebody who was not asked.
    rig.part(3, (0, 1));
    rig.part(2, (0, 0));
    assert!(rig.orders().is_empty());
    // Only what is stored makes room.
    rig.stored((0, 1), Some(5));
    assert_eq!(rig.parts(), [(0, 4)]);
    let mut more = Vec::new();
    for chunk in [0, 2, 3, 4] {
        rig.part(3, (0, chunk));
        assert!(matches!(rig.orders()[..], [Order::Put { .. }]));
        rig.stored((0, chunk), Some(5));
        more.extend(rig.parts());
    }
    assert_eq!(more, [(0, 5)]);
    rig.part(3, (0, 5));
    rig.orders();
    rig.stored((0, 5), Some(5));
    assert!(matches!(rig.orders()[..], [Order::Finish { .. }]));
    assert_eq!(rig.fetch.status().unwrap().bytes_have, 1000);
    let anchor = Anchor {
        at: at(60),
        ..Anchor::default()
    };
    rig.fetch.on_received(rig.id(), anchor, rig.now);
    assert!(matches!(rig.orders()[..], [Order::Install { .. }]));
}

#[test]
fn a_part_that_does_not_come_is_asked_for_again_and_then_somebody_else_is() {
    let mut rig = Rig::new();
    rig.at_chunks(2);
    assert_eq!(rig.parts(), [(0, 0), (0, 1)]);
    rig.part(3, (0, 0));
    rig.orders();
    rig.stored((0, 0), Some(5));
    for _ in 1..SILENCE_MAX {
        rig.wait(PART_US);
        assert_eq!(rig.parts(), [(0, 1)]);
    }
    rig.wait(PART_US);
    rig.wait(PAUSE_US_MIN);
    let asked = rig.asked();
    assert!(matches!(asked[0].1, Transfer::Query { .. }), "{asked:?}");
}

#[test]
fn a_damaged_part_is_fetched_again_and_too_many_end_the_attempt() {
    let mut rig = Rig::new();
    rig.at_chunks(1);
    for _ in 1..DAMAGED_MAX {
        assert_eq!(rig.parts(), [(0, 0)]);
        rig.part(3, (0, 0));
        rig.orders();
        rig.stored((0, 0), None);
    }
    rig.parts();
    rig.part(3, (0, 0));
    rig.orders();
    rig.stored((0, 0), None);
    assert_eq!(rig.fetch.status(), None);
}

#[test]
fn what_reads_back_as_something_else_is_fetched_again() {
    let mut rig = Rig::new();
    rig.at_chunks(0);
    assert!(matches!(rig.orders()[..], [Order::Finish { .. }]));
    let missing = vec![Missing::one((0, 3))];
    rig.fetch.on_damaged(rig.id(), missing, 900, rig.now);
    assert_eq!(rig.parts(), [(0, 3)]);
}

#[test]
fn what_was_begun_is_gone_on_with_when_its_source_is_lost() {
    let mut rig = Rig::new();
    rig.at_chunks(3);
    rig.orders();
    rig.fetch.on_disconnected(NodeId(2), rig.now);
    assert!(rig.fetch.status().is_some());
    rig.fetch.on_disconnected(NodeId(3), rig.now);
    assert_eq!(rig.fetch.status(), None);
    rig.wait(PAUSE_US_MIN);
    rig.orders();
    // A newer one is offered, and the one that was begun is taken all the same.
    let begun = rig.id();
    rig.manifest = Bytes::from_static(b"another manifest");
    rig.offer(3, 70);
    rig.manifest = Bytes::from_static(b"a manifest");
    rig.offer(2, 60);
    let status = rig.fetch.status().unwrap();
    assert_eq!((status.snapshot, status.from), (begun, NodeId(2)));
}

#[test]
fn parts_are_asked_for_no_faster_than_allowed() {
    // Four parts a second.
    let mut rig = Rig::paced(4 * PART_BYTES_MAX as u64);
    rig.at_chunks(100);
    let mut asked = 0;
    for _ in 0..100 {
        for part in rig.parts() {
            asked += 1;
            rig.part(3, part);
            rig.orders();
            rig.stored(part, Some(5));
        }
        rig.wait(100_000);
    }
    assert!((38..=44).contains(&asked), "{asked}");
}

#[test]
fn a_manifest_that_is_not_what_was_offered_is_not_believed() {
    let mut rig = Rig::new();
    rig.offer(2, 60);
    rig.offer(3, 60);
    rig.orders();
    let (snapshot, part) = (rig.id(), Part::Manifest { offset: 0 });
    let bytes = Bytes::from_static(b"a mbnifest");
    rig.hear(
        3,
        Transfer::Part {
            snapshot,
            part,
            bytes,
        },
    );
    assert!(rig.orders().is_empty());
    assert_eq!(rig.fetch.status(), None);
}

#[test]
fn a_leader_whose_log_has_gone_further_makes_it_begin_again() {
    let mut rig = Rig::new();
    rig.at_chunks(3);
    rig.orders();
    let peers = [NodeId(2), NodeId(3)];
    rig.fetch
        .wanted(Index(60), Some(NodeId(2)), &peers, rig.now);
    assert!(rig.fetch.status().is_some());
    rig.fetch
        .wanted(Index(61), Some(NodeId(2)), &peers, rig.now);
    assert_eq!(rig.fetch.status(), None);
    let least = Index(61);
    assert_eq!(rig.asked()[0].1, Transfer::Query { least });
}

#[test]
fn the_leader_hears_how_far_it_is() {
    let mut rig = Rig::new();
    rig.offer(2, 60);
    rig.offer(3, 60);
    let told = |orders: Vec<Order>| {
        let progress = |order: Order| match order {
            Order::Say(NodeId(2), Transfer::Progress(progress)) => Some(progress.at.index),
            _ => None,
        };
        orders
            .into_iter()
            .filter_map(progress)
            .collect::<Vec<Index>>()
    };
    assert_eq!(told(rig.orders()), [Index(60)]);
    rig.wait(PROGRESS_US - 1);
    assert_eq!(told(rig.orders()), []);
    rig.wait(1);
    assert_eq!(told(rig.orders()), [Index(60)]);
}

#[test]
fn it_always_wakes_up_again() {
    let mut rig = Rig::new();
    // Nobody ever answers.
    for _ in 0..50 {
        let next = rig.fetch.next_deadline().unwrap();
        assert!(next > rig.now, "it would spin");
        let us = next.since(rig.now);
        assert!(us <= PAUSE_US_MAX, "{us}");
        rig.wait(us);
    }
}

#[test]
fn whoever_is_gone_before_it_is_settled_on_is_not_waited_for() {
    let mut rig = Rig::new();
    rig.orders();
    rig.offer(3, 70);
    rig.fetch.on_disconnected(NodeId(3), rig.now);
    rig.offer(2, 65);
    let asked = rig.asked();
    assert!(
        matches!(asked[..], [(NodeId(2), Transfer::Fetch { .. })]),
        "{asked:?}"
    );
}

#[test]
fn what_an_earlier_leader_had_is_not_insisted_on() {
    let mut rig = Rig::new();
    for peer in [2, 3] {
        rig.hear(peer, Transfer::Offer(None));
    }
    assert_eq!(rig.fetch.status(), None);
    rig.orders();
    // Its successor's log begins further back, and it has a snapshot that reaches so far.
    let peers = [NodeId(2), NodeId(3)];
    rig.fetch
        .wanted(Index(48), Some(NodeId(3)), &peers, rig.now);
    rig.orders();
    rig.hear(2, Transfer::Offer(None));
    rig.offer(3, 48);
    let asked = rig.asked();
    assert!(
        matches!(asked[..], [(NodeId(3), Transfer::Fetch { .. })]),
        "{asked:?}"
    );
}

/// Although it offers the newest one.
#[test]
fn a_source_that_does_not_deliver_is_left_for_another() {
    let mut rig = Rig::new();
    let (newer, older) = (
        Bytes::from_static(b"newer, and its disk says EIO"),
        Bytes::from_static(b"a manifest"),
    );
    for _ in 0..100 {
        for (to, transfer) in rig.asked() {
            match transfer {
                Transfer::Query { .. } => {
                    rig.manifest = if to == NodeId(3) {
                        newer.clone()
                    } else {
                        older.clone()
                    };
                    rig.offer(to.0, if to == NodeId(3) { 60 } else { 59 });
                }
                Transfer::Fetch { snapshot, .. } if to == NodeId(3) => {
                    rig.hear(3, Transfer::Gone { snapshot });
                }
                Transfer::Fetch { .. } => return,
                other => panic!("{other:?}"),
            }
        }
        rig.wait(PAUSE_US_MAX);
    }
    panic!("node 2 has one that would do, and was never asked for it");
}

#[test]
fn whoever_is_gone_while_the_store_looks_what_is_there_is_not_asked() {
    let mut rig = Rig::new();
    rig.offer(2, 60);
    rig.offer(3, 60);
    rig.orders();
    let (snapshot, bytes) = (rig.id(), rig.manifest.clone());
    let part = Part::Manifest { offset: 0 };
    rig.hear(
        3,
        Transfer::Part {
            snapshot,
            part,
            bytes,
        },
    );
    assert!(matches!(rig.orders()[..], [Order::Receive { .. }]));
    rig.fetch.on_disconnected(NodeId(3), rig.now);
    let missing = vec![Missing::one((0, 0))];
    rig.fetch.on_receiving(snapshot, missing, 0, rig.now);
    assert!(rig.asked().is_empty());
}
