//! A log does what it says while nothing goes wrong.

use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_raft::{Boot, Index, Micros};
use logdrive_sim::disk::{Crash, SimDiskOptions, Tear};
use logdrive_wal::disk::FlushMode;
use logdrive_wal::{AppendError, FlushModeChoice, OpenError, Position, Verdict};

#[test]
fn what_was_appended_is_there_after_a_reopening() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(16));
    rig.append(&[Write::HardState(vote(3, 2))]);
    rig.append_entries(3, 40, 3000);
    rig.append_entries(4, 3, 10);
    rig.settle();
    let tip = rig.tip();
    let written = rig.read_all();
    assert_eq!(written.len(), 43);
    rig.wal.close().unwrap();

    let mut rig = Rig::open(&medium, options(16)).unwrap();
    assert_eq!(rig.recovery.verdict, Verdict::Clean);
    assert_eq!(rig.recovery.boot, Boot(2));
    let restored = &rig.recovery.groups[&GROUP].restored;
    assert_eq!(restored.entries.len(), 43);
    assert_eq!(
        restored.hard_state.term.0, 4,
        "no record states the term of the last entries"
    );
    assert_eq!(rig.tip(), tip);
    assert_eq!(rig.read_all(), written);
}

#[test]
fn both_flush_modes_carry_a_log_over_many_segments() {
    for mode in [FlushMode::Dsync, FlushMode::DrainedFsync] {
        let medium = storage();
        let disk = SimDiskOptions {
            flush_mode: mode,
            ..SimDiskOptions::default()
        };
        let mut rig = Rig::open_with(&medium, options(64), disk.clone(), 5).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        for round in 0..200 {
            rig.append_entries(1, 1 + round % 5, 1000);
            rig.turn();
            if round % 3 == 0 {
                rig.step();
            }
        }
        rig.idle();
        let status = rig.wal.status();
        assert_eq!(status.flush_mode, mode);
        assert!(status.segments > 10, "{status:?}");
        assert!(status.slots_free >= 2);
        let (tip, written) = (rig.tip(), rig.read_all());
        drop(rig);
        let mut rig = Rig::open_with(&medium, options(64), disk, 6).unwrap();
        assert_eq!((rig.tip(), rig.read_all()), (tip, written));
        assert_eq!(rig.recovery.verdict, Verdict::Clean);
    }
}

#[test]
fn a_vote_is_echoed_by_the_next_flush_group_and_once() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.idle();
    let position = rig.append(&[Write::HardState(vote(1, 1))]);
    rig.wal.want_echo(position);
    let before = rig.wal.status().counters.groups;
    rig.turn();
    assert_eq!(rig.wal.status().counters.groups, before + 2);
    while rig.wal.echoed() < position {
        assert!(rig.wal.durable() <= position);
        rig.step();
    }
    assert_eq!(rig.wal.durable(), position);
    // Then the log falls idle, says so, and is silent.
    rig.idle();
    assert_eq!(rig.wal.status().counters.groups, before + 3);
    assert_eq!(rig.wal.next_deadline(), None);
}

#[test]
fn an_append_that_carries_nothing_is_durable_with_what_came_before() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.idle();
    for nothing in [vec![], vec![Write::Entries(vec![])]] {
        let position = rig.append(&nothing);
        assert!(position <= rig.wal.durable(), "{position:?}");
        assert!(rig.wal.is_drained());
        let before = rig.append_entries(1, 1, 10);
        let position = rig.append(&nothing);
        assert!(before <= position && rig.wal.durable() < position);
        rig.settle();
        assert!(position <= rig.wal.durable());
    }
}

#[test]
fn at_most_two_partly_filled_flush_groups_are_in_flight() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.idle();
    let before = rig.wal.status().counters.groups;
    for _ in 0..10 {
        rig.append_entries(1, 1, 10);
        rig.turn();
    }
    assert_eq!(rig.wal.status().counters.groups, before + 2);
    rig.settle();
    // The eight that came meanwhile went together.
    assert_eq!(rig.wal.status().counters.groups, before + 3);
}

#[test]
fn a_conflict_is_cut_and_stays_cut() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(16));
    rig.append_entries(2, 5, 100);
    let keep = rig.tip();
    rig.append_entries(2, 5, 100);
    rig.settle();
    rig.append(&[Write::Truncate(keep)]);
    let older = entries(GROUP, 2, &keep, 2, 7);
    rig.append(&[Write::Entries(older)]);
    rig.settle();
    let (tip, written) = (rig.tip(), rig.read_all());
    assert_eq!(tip.index, Index(7));
    drop(rig);
    let mut rig = Rig::open(&medium, options(16)).unwrap();
    assert_eq!((rig.tip(), rig.read_all()), (tip, written));
}

#[test]
fn wal_order_decides_and_never_the_term() {
    // Raft figure 8: entries of an older term replace entries of a newer one.
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(16));
    rig.append_entries(1, 1, 10);
    let first = rig.tip();
    rig.append_entries(3, 1, 10);
    rig.settle();
    let older = entries(GROUP, 2, &first, 1, 20);
    rig.append(&[Write::Entries(older.clone())]);
    rig.append_entries(4, 1, 10);
    rig.settle();
    drop(rig);
    for _ in 0..3 {
        let mut rig = Rig::open(&medium, options(16)).unwrap();
        assert_eq!(rig.tip().index, Index(3));
        assert_eq!(rig.read_all()[1], older[0]);
    }
}

#[test]
fn a_full_pool_refuses_proposals_and_still_takes_votes() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(6));
    let mut written = 0;
    while rig.wal.has_room(4096) {
        rig.append_entries(1, 1, 4000);
        rig.settle();
        written += 1;
    }
    assert!(written > 5, "{written}");
    let mut refused = false;
    for _ in 0..40 {
        let more = entries(GROUP, 1, &rig.tip(), 1, 4000);
        match rig.wal.append(GROUP, &[Write::Entries(more)]) {
            Err(AppendError::Full) => refused = true,
            other => assert!(other.is_ok() && !refused, "{other:?}"),
        }
        rig.settle();
    }
    assert!(refused && rig.wal.status().full);
    for term in 2..10 {
        rig.append(&[Write::HardState(vote(term, 1))]);
        rig.settle();
    }
    drop(rig);
    // And the next opening goes, again and again.
    for _ in 0..10 {
        let rig = Rig::open(&medium, options(6)).unwrap();
        assert_eq!(rig.recovery.groups[&GROUP].restored.hard_state, vote(9, 1));
    }
    // In turns in two slots beyond those there may be: one opening never overwrites the one before.
    let slots = medium.slot_files().len();
    assert!(slots <= 8, "{slots} slots for a pool of 6");
}

#[test]
fn a_pool_of_one_directory_grows_no_further_while_nothing_is_acknowledged() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(64));
    rig.append(&[Write::HardState(vote(1, 1))]);
    rig.append_entries(1, 3, 100);
    rig.settle();
    drop(rig);
    let mut sizes = Vec::new();
    for boot in 2..12 {
        let rig = Rig::open(&medium, options(64)).unwrap();
        assert_eq!(rig.recovery.boot, Boot(boot));
        sizes.push(rig.wal.status().segments);
    }
    assert!(
        sizes.iter().all(|segments| *segments == sizes[0]),
        "{sizes:?}"
    );
}

#[test]
fn another_cluster_node_or_process_is_refused() {
    let medium = storage();
    let rig = Rig::with_group(&medium, options(8));
    let locked = Rig::open(&medium, options(8)).err().unwrap();
    assert!(matches!(locked, OpenError::Locked { .. }), "{locked}");
    drop(rig);
    let mut other = options(8);
    other.identity.node = logdrive_raft::NodeId(2);
    let refused = Rig::open(&medium, other).err().unwrap();
    assert!(matches!(refused, OpenError::WrongNode { .. }), "{refused}");
    let mut other = options(8);
    other.identity.cluster = logdrive_raft::ClusterId(7);
    let refused = Rig::open(&medium, other).err().unwrap();
    assert!(
        matches!(refused, OpenError::WrongCluster { .. }),
        "{refused}"
    );
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    for (slot_bytes, slots) in [(32 << 10, 8), ((64 << 10) + 1, 8), (64 << 10, 3)] {
        let mut sizes = options(8);
        sizes.slot_bytes = slot_bytes;
        sizes.bytes_max = slot_bytes * slots;
        let refused = Rig::open(&storage(), sizes).err().unwrap();
        assert!(matches!(refused, OpenError::Sizes { .. }), "{refused}");
    }
}

#[test]
fn an_idle_log_says_so_after_a_while_and_never_twice() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append_entries(1, 1, 10);
    rig.settle();
    let idle_at = rig.wal.next_deadline().unwrap();
    assert_eq!(idle_at, Micros(rig.now + 1500));
    let before = rig.wal.status().counters.groups;
    rig.idle();
    assert_eq!(rig.wal.status().counters.groups, before + 1);
    assert_eq!(rig.wal.durable(), Position(2));
}

#[test]
fn a_flush_mode_that_starves_is_left_in_both_directions_and_a_forced_one_never() {
    let starving = |mode| SimDiskOptions {
        flush_mode: mode,
        starved_percent: 20,
        ..SimDiskOptions::default()
    };
    for mode in [FlushMode::Dsync, FlushMode::DrainedFsync] {
        let medium = storage();
        let mut sizes = options(64);
        sizes.watchdog = nervous();
        let mut rig = Rig::open_with(&medium, sizes, starving(mode), 7).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        let mut seen = Vec::new();
        for _ in 0..200 {
            rig.append_entries(1, 2, 700);
            rig.turn();
            rig.step();
            let status = rig.wal.status();
            if seen.last() != Some(&status.flush_mode) {
                seen.push(status.flush_mode);
            }
            assert_eq!(status.flush_mode_changes + 1, seen.len() as u64);
        }
        rig.settle();
        assert_eq!(seen[..3], [mode, mode.other(), mode], "{seen:?}");
        let counters = rig.wal.status().counters;
        assert!(counters.flushes_dsync > 0 && counters.flushes_drained > 0);
        assert_eq!(
            counters.flushes,
            counters.flushes_dsync + counters.flushes_drained
        );
        assert_eq!(rig.wal.status().flush_histogram.count(), counters.flushes);
        let (tip, written) = (rig.tip(), rig.read_all());
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        let mut forced = options(64);
        forced.watchdog = nervous();
        forced.flush_mode = match mode {
            FlushMode::Dsync => FlushModeChoice::Dsync,
            FlushMode::DrainedFsync => FlushModeChoice::DrainedFsync,
        };
        let mut rig = Rig::open_with(&medium, forced, starving(mode.other()), 8).unwrap();
        assert_eq!((rig.tip(), rig.read_all()), (tip, written));
        for _ in 0..200 {
            rig.append_entries(1, 1, 10);
            rig.settle();
        }
        let status = rig.wal.status();
        assert_eq!((status.flush_mode, status.flush_mode_changes), (mode, 0));
    }
}
