//! What a log does when its disk refuses, fails, or was written by somebody else.

use crate::common::*;
use logdrive_raft::Index;
use logdrive_raft::io::Write;
use logdrive_raft::wire::Encode;
use logdrive_sim::disk::{Crash, Fault, FaultRates, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, Block, FlushMode, SlotId};
use logdrive_wal::format::{GroupHeader, Record, RecordKind, SlotHeader};
use logdrive_wal::{Admitted, AppendError, OpenError, ReadError, ReadRequest, Room, Verdict};

fn drained() -> SimDiskOptions {
    SimDiskOptions {
        flush_mode: FlushMode::DrainedFsync,
        ..SimDiskOptions::default()
    }
}

#[test]
fn a_failed_or_short_write_or_flush_poisons_the_log_for_good() {
    let faults = [
        (Fault::WriteError, SimDiskOptions::default(), "write"),
        (Fault::ShortWrite, SimDiskOptions::default(), "write"),
        (Fault::WriteError, drained(), "write"),
        (Fault::FlushError, drained(), "flush"),
    ];
    for (fault, disk, what) in faults {
        let medium = storage();
        let mut rig = Rig::open_with(&medium, options(8), disk, 3).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.append_entries(1, 2, 100);
        rig.idle();
        // The pool is not growing any more: the next operation is of the log.
        let durable = rig.wal.durable();
        rig.wal.disk_mut().medium().inject(fault);
        rig.append_entries(1, 1, 100);
        rig.settle();
        let reason = rig.wal.poisoned().unwrap_or_else(|| panic!("{fault:?}"));
        assert_eq!(reason.what, what, "{fault:?}");
        assert!(reason.to_string().contains(".slot"), "{reason}");
        // The next flush would succeed. Nobody asks for it.
        for _ in 0..10 {
            rig.now += 10_000;
            rig.turn();
        }
        assert_eq!(rig.wal.durable(), durable);
        let more = entries(GROUP, 1, &rig.tip(), 1, 10);
        assert_eq!(
            rig.wal.append(GROUP, &[Write::Entries(more)]),
            Err(AppendError::Poisoned)
        );
        assert_eq!(rig.wal.next_deadline(), None);
        // What is durable can still be read, and comes back.
        drop(rig);
        let rig = Rig::open(&medium, options(8)).unwrap();
        assert!(rig.tip().index >= Index(2));
    }
}

#[test]
fn a_log_that_fails_while_it_waits_for_space_asks_for_no_time() {
    let medium = storage();
    let mut rig = Rig::open(&medium, options(64)).unwrap();
    rig.wal.create_group(&genesis(GROUP)).unwrap();
    rig.idle();
    rig.wal.disk_mut().options_mut().rates.no_space_ppm = 1_000_000;
    // With each slot that is used up the pool wants another one, and finds no space.
    while rig.wal.status().slots_free > 1 {
        rig.append_entries(1, 1, 2000);
        rig.settle();
    }
    rig.wal.disk_mut().medium().inject(Fault::WriteError);
    rig.append_entries(1, 1, 100);
    rig.settle();
    assert!(rig.wal.poisoned().is_some());
    assert_eq!(rig.wal.next_deadline(), None);
}

#[test]
fn space_that_runs_out_stops_the_pool_and_not_the_log() {
    let medium = storage();
    let mut rig = Rig::open(&medium, options(64)).unwrap();
    rig.wal.create_group(&genesis(GROUP)).unwrap();
    rig.idle();
    rig.wal.disk_mut().options_mut().rates = FaultRates {
        no_space_ppm: 1_000_000,
        ..FaultRates::default()
    };
    let mut written = 0;
    while rig.wal.has_room(2000) {
        rig.append_entries(1, 1, 2000);
        rig.settle();
        written += 1;
        assert!(written < 1000, "a pool that cannot grow is never full");
    }
    let status = rig.wal.status();
    assert!(status.full);
    assert!(
        status
            .fallbacks
            .iter()
            .any(|note| note.contains("no new slot")),
        "{status:?}"
    );
    assert_eq!(rig.wal.poisoned(), None);
    rig.append(&[Write::HardState(vote(5, 1))]);
    rig.settle();
    // Once there is space again the pool grows again.
    rig.wal.disk_mut().options_mut().rates = FaultRates::default();
    rig.now += 2_000_000;
    rig.turn();
    rig.idle();
    assert!(rig.wal.has_room(2000), "{:?}", rig.wal.status());
}

/// Appends, several entries in a turn and without a pause, until the log says that it is full.
fn append_until_full(rig: &mut Rig, frame_bytes: usize) -> u64 {
    let mut appended = 0;
    for _ in 0..10_000 {
        for _ in 0..3 {
            match rig.wal.admits(Admitted::default(), frame_bytes) {
                Room::Now => {
                    rig.append_entries(1, 1, frame_bytes - 200);
                    appended += 1;
                }
                Room::Soon => break,
                Room::Full => return appended,
            }
        }
        rig.turn();
        if rig.wal.disk().next_due().is_some() {
            rig.step();
        }
    }
    panic!("never full: {:?}", rig.wal.status());
}

#[test]
fn what_was_accepted_has_room_when_the_file_system_has_none() {
    for (seed, no_space_ppm) in (0..).zip([1_000_000, 500_000, 200_000].repeat(8)) {
        let medium = storage();
        let disk = SimDiskOptions::default();
        let mut rig = Rig::open_with(&medium, options(1024), disk, seed).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.idle();
        for round in 0..3 {
            rig.wal.disk_mut().options_mut().rates.no_space_ppm = no_space_ppm;
            let appended = append_until_full(&mut rig, 9000);
            assert!(!rig.wal.has_room(9000), "round {round}");
            // All of it becomes durable without another slot: not one retry of the pool is waited for.
            let now = rig.now;
            rig.settle();
            assert!(rig.now < now + 500_000, "{appended} in round {round}");
            for term in 1..4 {
                let vote = vote(100 * (round + 1) + term, 1);
                let position = rig.append(&[Write::HardState(vote)]);
                rig.wal.want_echo(position);
                rig.settle();
            }
            assert_eq!(rig.wal.poisoned(), None);
            // Once there is space there is room.
            rig.wal.disk_mut().options_mut().rates.no_space_ppm = 0;
            rig.now += 2_000_000;
            rig.idle();
            assert_eq!(rig.wal.admits(Admitted::default(), 9000), Room::Now);
            rig.turn();
        }
        let (tip, entries) = (rig.tip(), rig.read_all());
        rig.wal.close().unwrap();
        let mut rig = Rig::open(&medium, options(1024)).unwrap();
        assert_eq!((rig.tip(), rig.read_all()), (tip, entries));
    }
}

#[test]
fn a_full_log_in_which_no_mark_fits_does_not_ask_to_be_woken_for_one() {
    let mut without_a_mark = 0;
    for first_pause in 1..3 {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, options(6));
        while rig.wal.has_room(4096) {
            rig.append_entries(1, 1, 4000);
            rig.settle();
        }
        // Votes take what is left, each a block, and so does a mark when they pause. In the last slot they end
        // with the one or the other.
        let mut in_the_last_slot = 0;
        for term in 2.. {
            rig.append(&[Write::HardState(vote(term, 1))]);
            rig.turn();
            while !rig.wal.is_drained() && rig.wal.disk().next_due().is_some() {
                rig.step();
            }
            if !rig.wal.is_drained() {
                break;
            }
            in_the_last_slot += u64::from(rig.wal.status().slots_free == 0);
            if in_the_last_slot >= first_pause {
                let (turns_max, before) = (20, rig.wal.status().counters.groups);
                let turns = (0..turns_max).take_while(|_| {
                    let waits = rig.wal.next_deadline().is_some();
                    if waits || rig.wal.disk().next_due().is_some() {
                        rig.step();
                        return true;
                    }
                    false
                });
                assert!(turns.count() < turns_max, "term {term}: {:?}", rig.wal);
                without_a_mark += u64::from(rig.wal.status().counters.groups == before);
            }
        }
    }
    assert!(without_a_mark > 0);
}

#[test]
fn a_durable_entry_that_reads_back_bad_is_not_handed_out() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append_entries(1, 6, 3000);
    rig.settle();
    let bytes = medium.contents(SlotId(0));
    let inside = bytes
        .windows(64)
        .rposition(|window| *window == [4; 64])
        .unwrap();
    medium.flip(SlotId(0), inside as u64, 1);
    let request = ReadRequest {
        id: 9,
        group: GROUP,
        from: Index(1),
        through: Index(6),
        bytes_max: usize::MAX,
    };
    rig.wal.read(request).unwrap();
    let done = loop {
        rig.step();
        if let Some(done) = rig.wal.take_reads().pop() {
            break done;
        }
    };
    let Err(ReadError::Rot(finding)) = done.result else {
        panic!("{done:?}");
    };
    // The first entry that touches the block.
    assert_eq!(
        (finding.group, finding.index),
        (Some(GROUP), Some(Index(4)))
    );
    assert_eq!(finding.offset_bytes / 4096, inside as u64 / 4096);
    rig.wal.disk_mut().medium().inject(Fault::ReadError);
    rig.wal.read(request).unwrap();
    let done = loop {
        rig.step();
        if let Some(done) = rig.wal.take_reads().pop() {
            break done;
        }
    };
    assert!(matches!(done.result, Err(ReadError::Io { .. })), "{done:?}");
    assert_eq!(rig.wal.poisoned(), None, "a failed read is no failed write");
}

#[test]
fn one_bad_block_never_hides_a_vote() {
    // The vote is echoed, and then nothing else is written: the worst case.
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(1, 1))]);
    rig.settle();
    let cast = vote(7, 2);
    let position = rig.append(&[Write::HardState(cast)]);
    rig.wal.want_echo(position);
    rig.turn();
    while rig.wal.echoed() < position {
        rig.step();
    }
    drop(rig);
    medium.crash(Crash::Power, Tear::Never);
    let slot = medium.contents(SlotId(0));
    for block in 0..slot.len() / BLOCK_BYTES {
        for lost in [false, true] {
            let medium = medium.copy(dice(1));
            let number = u32::try_from(block).unwrap();
            medium.change(SlotId(0), number, |bytes| {
                if lost {
                    *bytes = [0; BLOCK_BYTES];
                } else {
                    bytes[100] ^= 1;
                }
            });
            match Rig::open(&medium, options(8)) {
                Ok(rig) => {
                    let restored = &rig.recovery.groups[&GROUP].restored;
                    assert_eq!(restored.hard_state, cast, "block {block} lost {lost}");
                }
                Err(OpenError::Rot { findings } | OpenError::Suspect { findings }) => {
                    assert!(!findings.is_empty());
                }
                Err(error) => panic!("block {block}: {error}"),
            }
        }
    }
}

#[test]
fn the_vote_of_a_term_that_no_record_states_is_spent() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.append(&[Write::HardState(vote(2, 1))]);
    rig.append_entries(5, 1, 10);
    rig.settle();
    drop(rig);
    for _ in 0..3 {
        let rig = Rig::open(&medium, options(8)).unwrap();
        let restored = &rig.recovery.groups[&GROUP].restored;
        assert_eq!(restored.hard_state.term.0, 5);
        assert_eq!(restored.hard_state.vote, Some(logdrive_wal::VOTE_SPENT));
    }
}

/// Changes both copies of a header, and makes their stamps right again.
fn edit_header(medium: &SimStorage, edit: impl Fn(&mut [u8])) {
    for copy in 0..2 {
        medium.change(SlotId(0), copy, |bytes| {
            let header = SlotHeader::from_block(&Block(*bytes), copy)
                .unwrap()
                .unwrap();
            edit(&mut bytes[..]);
            let mut block = Block(*bytes);
            header.stamper().stamp(&mut block, copy, false);
            *bytes = block.0;
        });
    }
}

#[test]
fn a_log_from_the_future_is_refused_and_both_versions_are_named() {
    let medium = storage();
    drop(Rig::with_group(&medium, options(8)));
    edit_header(&medium, |bytes| bytes[8] = 3);
    let refused = Rig::open(&medium, options(8)).err().unwrap();
    let OpenError::FromTheFuture { source, .. } = &refused else {
        panic!("{refused}");
    };
    let expected = "slot header has format version 3, this build reads up to 1: upgrade logdrive";
    assert_eq!(source.to_string(), expected);
}

#[test]
fn an_unknown_feature_is_refused_or_ignored_as_its_word_says() {
    let medium = storage();
    drop(Rig::with_group(&medium, options(8)));
    let incompatible = medium.copy(dice(1));
    edit_header(&incompatible, |bytes| bytes[12] = 8);
    let refused = Rig::open(&incompatible, options(8)).err().unwrap();
    assert!(
        matches!(refused, OpenError::FromTheFuture { .. }),
        "{refused}"
    );
    edit_header(&medium, |bytes| bytes[16] = 8);
    assert_eq!(
        Rig::open(&medium, options(8)).unwrap().recovery.verdict,
        Verdict::Clean
    );
}

#[test]
fn an_unknown_record_halts_the_reader() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(8));
    rig.idle();
    drop(rig);
    let slot = medium.contents(SlotId(0));
    let first = SlotHeader::from_block(&Block(slot[..BLOCK_BYTES].try_into().unwrap()), 0);
    let stamper = first.unwrap().unwrap().stamper();
    // A flush group like the first one, with a record of a kind that does not exist yet.
    let group = (2..).find(|block| {
        let (header, _) = GroupHeader::parse(&slot[block * BLOCK_BYTES..]).unwrap();
        let table = &slot[block * BLOCK_BYTES + 160..];
        header.records == 1 && table[0] == RecordKind::Genesis as u8
    });
    let group = u32::try_from(group.unwrap()).unwrap();
    medium.change(SlotId(0), group, |bytes| {
        let (mut header, _) = GroupHeader::parse(&bytes[..]).unwrap();
        let table_at = 160;
        let table_end = table_at + header.table_bytes as usize;
        bytes[table_at] = 77;
        let echo_end = table_end + header.echo_bytes as usize;
        let (table, echo) = (&bytes[table_at..table_end], &bytes[table_end..echo_end]);
        header.digest = logdrive_wal::format::digest_of(table, echo);
        bytes[..160].copy_from_slice(&header.seal().0);
        let mut block = Block(*bytes);
        stamper.stamp(&mut block, group, true);
        *bytes = block.0;
    });
    let refused = Rig::open(&medium, options(8)).err().unwrap();
    let OpenError::FromTheFuture { source, .. } = &refused else {
        panic!("{refused}");
    };
    assert!(
        source
            .to_string()
            .contains("record kind has format version 77"),
        "{source}"
    );
    let known = Record::GroupRemoved(GROUP).to_bytes();
    assert!(known[0] < 77);
}

#[test]
fn a_slot_of_another_log_is_no_part_of_this_one() {
    let (medium, other) = (storage(), storage());
    drop(Rig::with_group(&medium, options(8)));
    let mut foreign = options(8);
    foreign.fresh.log_uuid = 99;
    let mut rig = Rig::open(&other, foreign).unwrap();
    rig.wal.create_group(&genesis(GROUP)).unwrap();
    rig.settle();
    drop(rig);
    medium.set_contents(SlotId(5), &other.contents(SlotId(0)));
    let renumbered = Rig::open(&medium, options(8));
    // Its header names another slot, so it is a slot whose header is bad.
    assert!(matches!(renumbered, Err(OpenError::Suspect { .. })));
}

#[test]
fn a_directory_of_other_data_is_not_a_log() {
    let medium = storage();
    medium.set_contents(SlotId(0), &[7; 64 << 10]);
    let refused = Rig::open(&medium, options(8)).err().unwrap();
    assert!(matches!(refused, OpenError::NotALog { .. }), "{refused}");
}
