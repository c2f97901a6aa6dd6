//! What an opening writes again where reads may come from the page cache, and where it finds no room for it.

use crate::common::*;
use logdrive_raft::entry::UnsealedEntry;
use logdrive_raft::io::Write;
use logdrive_raft::wire::Encode;
use logdrive_raft::{Entry, EntryKind, Index, LogPosition, Membership, Term};
use logdrive_sim::disk::{FaultRates, SimDiskOptions, SimStorage};
use logdrive_wal::disk::BLOCK_BYTES;
use logdrive_wal::format::{GroupHeader, GroupKind};
use logdrive_wal::{OpenError, Options};

/// A disk behind a page cache: an opening trusts nothing beyond the mark and writes it again.
fn buffered() -> SimDiskOptions {
    SimDiskOptions {
        direct: false,
        ..SimDiskOptions::default()
    }
}

fn open(medium: &SimStorage, options: Options) -> Result<Rig, OpenError> {
    Rig::open_with(medium, options, buffered(), 1)
}

/// A log with one group, all of it below the mark.
fn begun(medium: &SimStorage, options: Options) -> Rig {
    let mut rig = open(medium, options).unwrap();
    rig.wal.create_group(&genesis(GROUP)).unwrap();
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.idle();
    rig
}

/// The process dies; everything it was told to be durable is readable.
fn membership(voters: usize) -> Membership {
    Membership::of_voters(genesis(GROUP).voters[..voters].to_vec())
}

fn configuration(term: u64, prev: &LogPosition, membership: &Membership) -> Entry {
    UnsealedEntry::bare(EntryKind::Configuration, &membership.to_bytes()).seal(
        GROUP,
        Term(term),
        prev.index.next(),
        prev.chain,
    )
}

fn configurations(rig: &Rig) -> Vec<(Index, Membership)> {
    rig.recovery.groups[&GROUP].restored.configurations.clone()
}

#[test]
fn a_configuration_beyond_the_mark_comes_back() {
    let medium = storage();
    let mut rig = begun(&medium, options(16));
    rig.append_entries(2, 2, 100);
    rig.idle();
    let change = configuration(2, &rig.tip(), &membership(2));
    rig.append(&[Write::Entries(vec![change])]);
    rig.settle();
    die(rig, &medium);
    for _ in 0..3 {
        let rig = open(&medium, options(16)).unwrap();
        assert_eq!(configurations(&rig), [(Index(3), membership(2))]);
        die(rig, &medium);
    }
}

#[test]
fn a_configuration_that_is_cut_beyond_the_mark_is_forgotten() {
    for by_truncation in [false, true] {
        let medium = storage();
        let mut rig = begun(&medium, options(16));
        rig.append_entries(2, 1, 100);
        let kept = configuration(2, &rig.tip(), &membership(2));
        let keep = kept.position();
        rig.append(&[Write::Entries(vec![kept])]);
        let dead = configuration(2, &rig.tip(), &membership(1));
        rig.append(&[Write::Entries(vec![dead])]);
        rig.idle();
        rig.append(&[if by_truncation {
            Write::Truncate(keep)
        } else {
            Write::Entries(entries(GROUP, 2, &keep, 1, 100))
        }]);
        rig.settle();
        die(rig, &medium);
        let rig = open(&medium, options(16)).unwrap();
        assert_eq!(configurations(&rig), [(Index(2), membership(2))]);
    }
}

/// Entries beyond the mark, in more than one slot. Returns how many more slots are free.
fn long_tail(medium: &SimStorage, count: u64, bytes: usize) -> usize {
    let mut at_once = options(8);
    // Every flush group is on its way before the first one is durable.
    at_once.in_flight_max.partial = 8;
    let mut rig = begun(medium, at_once);
    rig.wal.disk_mut().options_mut().rates.no_space_ppm = 1_000_000;
    rig.append_entries(2, count, bytes);
    rig.settle();
    let free = rig.wal.status().slots_free;
    die(rig, medium);
    free
}

#[test]
fn an_opening_that_finds_no_room_says_so_and_loses_nothing() {
    let medium = storage();
    // More than a slot.
    assert_eq!(long_tail(&medium, 4, 14_000), 1);
    let mut full = buffered();
    full.rates = FaultRates {
        no_space_ppm: 1_000_000,
        ..FaultRates::default()
    };
    for _ in 0..3 {
        let refused = Rig::open_with(&medium, options(8), full.clone(), 1);
        let refused = refused.map(|rig| rig.recovery).unwrap_err();
        assert!(matches!(refused, OpenError::NoSpace { .. }), "{refused:?}");
        assert!(refused.to_string().contains("wal.bytes_max"), "{refused}");
    }
    let mut rig = open(&medium, options(8)).unwrap();
    assert_eq!(rig.read_all().len(), 4);
}

/// Kind and number of every flush group there is, the highest number last.
fn flush_groups(medium: &SimStorage) -> Vec<(u64, GroupKind)> {
    let slots = medium.slot_files();
    let blocks = slots.iter().flat_map(|file| {
        let bytes = medium.contents(file.slot);
        let blocks = bytes.chunks(BLOCK_BYTES).map(GroupHeader::parse);
        blocks.flatten().collect::<Vec<_>>()
    });
    let mut groups: Vec<_> = blocks
        .map(|(header, _)| (header.number, header.kind))
        .collect();
    groups.sort_by_key(|(number, _)| *number);
    groups
}

/// What was written again counts once a mark over it is durable. Before that the original must not be free.
#[test]
fn an_opening_without_room_for_the_mark_over_what_it_wrote_again_is_refused() {
    let mut refused = 0;
    for bytes in (8_000..15_500).step_by(250) {
        let medium = storage();
        if long_tail(&medium, 3, bytes) != 1 {
            continue;
        }
        let mut full = buffered();
        full.rates.no_space_ppm = 1_000_000;
        match Rig::open_with(&medium, options(8), full, 1) {
            Ok(rig) => die(rig, &medium),
            Err(OpenError::NoSpace { .. }) => {
                refused += 1;
                // With space it waits for a slot.
                let mut rig = open(&medium, options(8)).unwrap();
                assert_eq!(rig.read_all().len(), 3);
                die(rig, &medium);
            }
            Err(error) => panic!("entries of {bytes} bytes: {error}"),
        }
        let last = flush_groups(&medium).pop().unwrap();
        assert_eq!(last.1, GroupKind::Mark, "entries of {bytes} bytes");
    }
    assert!(refused > 0);
}

#[test]
fn slots_that_became_too_small_for_what_is_written_again_are_refused() {
    let medium = storage();
    let large = Options::new(identity(), fresh()).with_slots(512 << 10, 8);
    let mut rig = begun(&medium, large.clone());
    rig.append_entries(2, 1, 100_000);
    rig.settle();
    die(rig, &medium);
    let refused = open(&medium, options(8)).map(|rig| rig.recovery);
    let refused = refused.unwrap_err();
    assert!(matches!(refused, OpenError::Sizes { .. }), "{refused:?}");
    assert!(refused.to_string().contains("wal.slot_bytes"), "{refused}");
    assert_eq!(open(&medium, large).unwrap().read_all().len(), 1);
}
