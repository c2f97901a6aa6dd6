//! Three shards over a network that loses nothing: what a log that is full, or too small, means for others.

use crate::trio::{GROUP, Trio};
use logdrive_raft::Micros;
use logdrive_shard::{Failure, Refused};
use logdrive_sim::disk::Crash;

#[test]
fn elections_go_on_when_every_log_is_full() {
    let mut trio = Trio::new([(64 << 10, 16); 3]);
    let full = Err(Refused::Closed(Failure::StorageFull));
    for bytes in [10_000, 1] {
        while trio.put(bytes) != full {
            assert!(trio.now < Micros(60_000_000), "the logs do not fill up");
        }
        // The door opens again while there is room for less than what was refused.
        trio.run_for(100_000);
    }
    let old = trio.leader().unwrap();
    let before = trio.nodes[old].core(GROUP).unwrap().commit();
    trio.nodes[old].crash(Crash::Process);
    trio.run_for(2_000_000);
    trio.assert_running();
    let new = trio.leader().unwrap();
    let commit = trio.nodes[new].core(GROUP).unwrap().commit();
    assert!(before.term < commit.term, "{commit} is not of the new term");
    trio.start(old);
    trio.run_for(1_000_000);
    trio.assert_running();
    assert_eq!(trio.nodes[old].core(GROUP).unwrap().commit(), commit);
}

#[test]
fn an_entry_larger_than_a_followers_log_takes_is_dropped_with_a_word_and_halts_nobody() {
    let mut trio = Trio::new([(256 << 10, 64), (256 << 10, 64), (64 << 10, 64)]);
    while trio.leader() == Some(2) {
        // Its own door would not take the entry.
        trio.nodes[2].crash(Crash::Process);
        trio.run_for(1_000_000);
        trio.start(2);
        trio.run_for(100_000);
    }
    let commit = |trio: &Trio, place: usize| trio.nodes[place].core(GROUP).unwrap().commit();
    trio.put(40_000).unwrap();
    trio.run_for(2_000_000);
    trio.assert_running();
    let leader = trio.leader().unwrap();
    assert!(leader != 2);
    assert_eq!(commit(&trio, 0), commit(&trio, 1));
    assert!(commit(&trio, 2).index < commit(&trio, 0).index);
    let said = trio.said(2, "FrameTooLarge");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("frame_bytes_max: 16384"), "{said:?}");
}
