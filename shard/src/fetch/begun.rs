//! Which snapshot a fetch goes on with.

use logdrive_raft::{Chain, LogPosition, Term};

use super::*;

const PEERS: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// Bytes a second, and how many bytes there are: what they would take again is one second.
const RATE: u64 = 1 << 20;

fn offered(index: u64) -> (Offered, Bytes) {
    let manifest = Bytes::from(format!("manifest {index}"));
    let at = LogPosition {
        index: Index(index),
        term: Term(1),
        chain: Chain(1),
    };
    let offered = Offered {
        snapshot: SnapshotId(xxh3_128(&manifest)),
        at,
        bytes: 1 << 20,
        manifest_bytes: u32::try_from(manifest.len()).unwrap(),
    };
    (offered, manifest)
}

/// Whom it asks for which snapshot now.
fn asks(fetch: &mut Fetch) -> Option<(NodeId, SnapshotId)> {
    let orders = fetch.take_orders().into_iter();
    let mut asked = orders.filter_map(|order| match order {
        Order::Say(peer, Transfer::Fetch { snapshot, .. }) => Some((peer, snapshot)),
        _ => None,
    });
    asked.next()
}

/// Fetches a snapshot up to 10 from node 1, has a part of it, and has just lost node 1.
fn begun(now: Micros) -> Fetch {
    let mut fetch = Fetch::begin(Index(5), None, RATE, &PEERS, now);
    let (ten, manifest) = offered(10);
    fetch.on_transfer(PEERS[0], Transfer::Offer(Some(ten)), now);
    fetch.on_transfer(PEERS[1], Transfer::Offer(Some(offered(9).0)), now);
    assert_eq!(asks(&mut fetch), Some((PEERS[0], ten.snapshot)));
    let part = Transfer::Part {
        snapshot: ten.snapshot,
        part: Part::Manifest { offset: 0 },
        bytes: manifest,
    };
    fetch.on_transfer(PEERS[0], part, now);
    let missing = vec![Missing {
        file: 0,
        first: 0,
        count: 4,
    }];
    fetch.on_receiving(ten.snapshot, missing, RATE, now);
    fetch.on_disconnected(PEERS[0], now);
    fetch.take_orders();
    fetch
}

/// Asks everybody again at once.
fn asks_again(fetch: &mut Fetch, now: Micros) {
    fetch.ask(&PEERS, now);
    fetch.take_orders();
}

#[test]
fn who_had_what_was_begun_is_waited_for_a_little() {
    let now = Micros(1_000_000);
    let mut fetch = begun(now);
    let other = Transfer::Offer(Some(offered(9).0));
    asks_again(&mut fetch, now);
    fetch.on_transfer(PEERS[1], other.clone(), now);
    fetch.on_tick(&PEERS, now.after(2_000_000 - 1));
    assert_eq!(asks(&mut fetch), None);
    // It comes back, and has it still.
    asks_again(&mut fetch, now);
    fetch.on_transfer(PEERS[1], other.clone(), now);
    fetch.on_transfer(PEERS[0], Transfer::Offer(Some(offered(10).0)), now);
    assert_eq!(asks(&mut fetch), Some((PEERS[0], offered(10).0.snapshot)));

    let mut fetch = begun(now);
    let late = now.after(2_000_000);
    asks_again(&mut fetch, late);
    fetch.on_transfer(PEERS[1], other, late);
    fetch.on_tick(&PEERS, late.after(ASK_US));
    assert_eq!(asks(&mut fetch), Some((PEERS[1], offered(9).0.snapshot)));
}

#[test]
fn what_was_begun_is_asked_for_once_although_something_newer_is_offered() {
    let now = Micros(1_000_000);
    let mut fetch = begun(now);
    let newer = Transfer::Offer(Some(offered(20).0));
    asks_again(&mut fetch, now);
    for peer in PEERS {
        fetch.on_transfer(peer, newer.clone(), now);
    }
    let ten = offered(10).0.snapshot;
    assert_eq!(asks(&mut fetch), Some((PEERS[0], ten)));
    fetch.on_transfer(PEERS[0], Transfer::Gone { snapshot: ten }, now);
    asks_again(&mut fetch, now);
    for peer in PEERS {
        fetch.on_transfer(peer, newer.clone(), now);
    }
    let asked = asks(&mut fetch).map(|(_, snapshot)| snapshot);
    assert_eq!(asked, Some(offered(20).0.snapshot));
}

/// One that this store refuses, for its version or its hash, is not fetched for ever while another one is offered.
#[test]
fn what_the_store_refuses_is_not_asked_for_again_and_again() {
    let mut now = Micros(1_000_000);
    let mut fetch = Fetch::begin(Index(5), None, RATE, &PEERS, now);
    fetch.take_orders();
    let (bad, manifest) = offered(20);
    let (good, _) = offered(10);
    let mut asked = Vec::new();
    for _ in 0..50 {
        fetch.on_transfer(PEERS[0], Transfer::Offer(Some(bad)), now);
        fetch.on_transfer(PEERS[1], Transfer::Offer(Some(good)), now);
        let (peer, snapshot) = asks(&mut fetch).unwrap();
        asked.push(peer);
        if snapshot == good.snapshot {
            return;
        }
        let part = Transfer::Part {
            snapshot,
            part: Part::Manifest { offset: 0 },
            bytes: manifest.clone(),
        };
        fetch.on_transfer(peer, part, now);
        let orders = fetch.take_orders();
        assert!(matches!(orders[..], [Order::Receive { .. }]), "{orders:?}");
        // As `StoreEvent::NotReceived`: its format version is another one, or it is of another cluster.
        fetch.on_failed(true, now);
        now = now.after(5_000_000);
        fetch.on_tick(&PEERS, now);
        fetch.take_orders();
    }
    panic!("node 1 was asked {} times, and node 2 never", asked.len());
}
