//! Three shards: a follower that lags behind what its leader has in memory is fed from the leader's log.

use crate::trio::{GROUP, Trio};
use logdrive_sim::disk::Crash;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};

/// A bit of the first block that is full of the first value, where a node has it.
fn spoil(trio: &mut Trio, node: usize) -> u64 {
    let medium = trio.nodes[node].medium().clone();
    let first = medium.contents(SlotId(0));
    let mut blocks = first.chunks(BLOCK_BYTES);
    let full = blocks.position(|block| block[..1000].iter().all(|byte| *byte == b'v'));
    let offset = (full.unwrap() * BLOCK_BYTES + 17) as u64;
    medium.flip(SlotId(0), offset, 4);
    offset
}

fn count(said: &[String], what: &str) -> usize {
    said.iter().filter(|text| text.starts_with(what)).count()
}

#[test]
fn what_a_follower_needs_and_cannot_be_read_is_told_once_with_file_and_advice() {
    let mut trio = Trio::new([(64 << 10, 64); 3]);
    let leader = trio.leader().unwrap();
    let lagging = (leader + 1) % 3;
    trio.nodes[lagging].crash(Crash::Process);
    for _ in 0..20 {
        trio.put(10_000).unwrap();
    }
    let commit = trio.nodes[leader].core(GROUP).unwrap().commit();
    // And nobody else has it.
    let offset = spoil(&mut trio, leader);
    let other = (leader + 2) % 3;
    let its_offset = spoil(&mut trio, other);

    trio.start(lagging);
    trio.run_for(5_000_000);
    assert_eq!(trio.leader(), Some(leader));
    let behind = trio.nodes[lagging].core(GROUP).unwrap().commit();
    assert!(behind.index < commit.index);
    let said = trio.said(leader, "Read");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("ReadFailed"), "{said:?}");
    assert!(said[0].contains("wal-00000.slot"), "{said:?}");
    assert!(said[0].contains("replace this replica"), "{said:?}");
    let block = format!(
        "offset {}",
        offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
    );
    assert!(said[0].contains(&block), "{said:?} without {block}");
    assert_eq!(trio.said(other, "WentBad").len(), 1);

    // Once one of them can read it the other one has it back, and the follower is fed.
    let medium = trio.nodes[other].medium().clone();
    medium.flip(SlotId(0), its_offset, 4);
    trio.run_for(12_000_000);
    let said = trio.said(leader, "Re");
    let counts = ["Repaired", "ReadWorks", "ReadFailed"].map(|what| count(&said, what));
    assert_eq!(counts, [1, 1, 0], "{said:?}");
    trio.assert_running();
    assert_eq!(trio.nodes[lagging].core(GROUP).unwrap().commit(), commit);
}

/// Where another node has it nobody waits for an operator.
#[test]
fn what_a_leader_cannot_read_comes_back_from_a_follower() {
    let mut trio = Trio::new([(64 << 10, 64); 3]);
    let leader = trio.leader().unwrap();
    let lagging = (leader + 1) % 3;
    trio.nodes[lagging].crash(Crash::Process);
    for _ in 0..20 {
        trio.put(10_000).unwrap();
    }
    let commit = trio.nodes[leader].core(GROUP).unwrap().commit();
    spoil(&mut trio, leader);
    trio.start(lagging);
    trio.run_for(5_000_000);
    assert_eq!(trio.nodes[lagging].core(GROUP).unwrap().commit(), commit);
    let said = trio.said(leader, "");
    let counts = ["WentBad", "Repaired", "NothingMissing"].map(|what| count(&said, what));
    assert_eq!(counts, [1, 1, 1], "{said:?}");
    trio.assert_running();
}
