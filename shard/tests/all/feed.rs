//! Three shards: a follower that lags behind what its leader has in memory is fed from the leader's log.

use crate::trio::{GROUP, Trio};
use logdrive_sim::disk::Crash;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};

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
    // The first block that is full of the first value.
    let medium = trio.nodes[leader].medium().clone();
    let first = medium.contents(SlotId(0));
    let mut blocks = first.chunks(BLOCK_BYTES);
    let full = blocks.position(|block| block[..1000].iter().all(|byte| *byte == b'v'));
    let offset = (full.unwrap() * BLOCK_BYTES + 17) as u64;
    medium.flip(SlotId(0), offset, 4);

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

    medium.flip(SlotId(0), offset, 4);
    trio.run_for(2_000_000);
    let said = trio.said(leader, "Read");
    assert_eq!(said, ["ReadWorks { group: GroupId(1) }"]);
    trio.assert_running();
    assert_eq!(trio.nodes[lagging].core(GROUP).unwrap().commit(), commit);
}
