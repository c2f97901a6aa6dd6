//! Releasing the oldest segments of a log that was cut, and taking their slots again.

use crate::common::cut::*;
use crate::common::*;
use logdrive_raft::GroupId;
use logdrive_raft::io::Write;
use logdrive_sim::disk::{Crash, Fault, FaultRates, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, FlushMode, SlotId};
use logdrive_wal::format::SlotHeader;
use logdrive_wal::{OpenError, Options, ReadError, ReadRequest, Room};

const OTHER: GroupId = GroupId(2);

/// Appends until the log has rolled so often.
fn roll(rig: &mut Rig, times: u64) {
    let newest = newest(rig) + times;
    while self::newest(rig) < newest {
        rig.append_entries(1, 2, 3500);
        rig.settle();
    }
}

/// The headers on the medium.
fn headers(medium: &SimStorage) -> Vec<SlotHeader> {
    let mut headers = Vec::new();
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        if bytes.len() < 2 * BLOCK_BYTES {
            // It is being made.
            continue;
        }
        let mut copies = (0..2).filter_map(|copy| {
            let from = copy as usize * BLOCK_BYTES;
            let mut block = logdrive_wal::disk::Block::ZERO;
            block.0.copy_from_slice(&bytes[from..from + BLOCK_BYTES]);
            SlotHeader::from_block(&block, copy).ok().flatten()
        });
        headers.extend(copies.next());
    }
    headers.sort_by_key(|header| header.segment);
    headers
}

/// The segment that is written to.
fn newest(rig: &Rig) -> u64 {
    let headers = headers(rig.wal.disk().medium());
    headers.last().map_or(0, |header| header.segment)
}

/// Opens it as after a power cut and finds the same.
fn reopen(medium: &SimStorage, rig: &Rig) {
    let copy = medium.flushed_only();
    let again = match Rig::open(&copy, options(16)) {
        Ok(again) => again,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(stand(&again.wal, GROUP), stand(&rig.wal, GROUP));
    let recovered = &again.recovery.groups[&GROUP];
    let anchor = recovered.anchor.as_ref().map(|anchor| anchor.at);
    assert_eq!(anchor, rig.wal.anchor(GROUP));
    let base = rig.wal.base(GROUP).unwrap().index.0;
    let membership = if base == 0 {
        genesis(GROUP).membership()
    } else {
        membership(base)
    };
    assert_eq!(recovered.restored.membership, membership);
}

#[test]
fn a_log_that_is_cut_all_the_time_takes_no_more_room() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(16));
    for round in 0..100 {
        roll(&mut rig, 1);
        reopen(&medium, &rig);
        cut_all(&mut rig);
        reopen(&medium, &rig);
        let status = rig.wal.status();
        assert!(status.segments <= 4, "round {round}: {status:?}");
        assert!(status.slots_total <= 6, "round {round}: {status:?}");
        assert!(rig.wal.has_room(4096));
    }
    assert!(rig.wal.status().counters.segments_released >= 96);
    rig.idle();
    reopen(&medium, &rig);
    assert!(rig.read_all().is_empty());
}

#[test]
fn two_checkpoints_are_kept_beside_the_one_of_the_newest_segment() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(16));
    cut_all(&mut rig);
    for newest in 2..8 {
        roll(&mut rig, 1);
        rig.idle();
        cut_all(&mut rig);
        let kept: Vec<u64> = headers(&medium)
            .iter()
            .map(|header| header.segment)
            .collect();
        let oldest = if newest > 3 { newest - 2 } else { 1 };
        assert_eq!(kept, (oldest..=newest).collect::<Vec<_>>());
    }
}

#[test]
fn a_segment_with_an_entry_above_a_base_stays_and_so_do_all_after_it() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(32));
    roll(&mut rig, 2);
    rig.wal.create_group(&genesis(OTHER)).unwrap();
    let one = entries(OTHER, 1, &genesis(OTHER).origin(), 1, 10);
    let at = one[0].position();
    rig.wal.append(OTHER, &[Write::Entries(one)]).unwrap();
    rig.settle();
    for _ in 0..8 {
        roll(&mut rig, 1);
        cut_all(&mut rig);
        reopen(&medium, &rig);
    }
    roll(&mut rig, 1);
    rig.idle();
    // What was released is cleared when its slot is wanted.
    let oldest = |rig: &Rig| newest(rig) + 1 - rig.wal.status().segments as u64;
    assert_eq!(oldest(&rig), 3);
    rig.wal
        .append(OTHER, &[Write::Anchor(anchor_at(at))])
        .unwrap();
    rig.settle();
    let base = base_at(at, at);
    rig.wal.append(OTHER, &[Write::Base(base)]).unwrap();
    roll(&mut rig, 1);
    rig.idle();
    assert_eq!(oldest(&rig), newest(&rig) - 2);
}

#[test]
fn a_group_without_entries_keeps_nothing() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(32));
    rig.wal.create_group(&genesis(OTHER)).unwrap();
    let cast = vote(7, 3);
    rig.wal.append(OTHER, &[Write::HardState(cast)]).unwrap();
    for _ in 0..6 {
        roll(&mut rig, 1);
        cut_all(&mut rig);
    }
    rig.idle();
    assert!(headers(&medium)[0].segment > 1);
    let again = Rig::open(&medium.flushed_only(), options(32)).unwrap();
    let other = &again.recovery.groups[&OTHER].restored;
    assert_eq!(
        (other.hard_state, other.base),
        (cast, genesis(OTHER).origin())
    );
}

/// A full log is not full for ever: with the next cut there is room again, and nobody has to append anything.
#[test]
fn a_full_pool_has_room_again_once_the_log_is_cut() {
    for slots in [6, 7, 12] {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, options(slots));
        for _ in 0..5 {
            while rig.wal.has_room(4096) {
                rig.append_entries(1, 1, 3500);
                rig.settle();
            }
            rig.idle();
            assert!(!rig.wal.has_room(4096));
            cut_all(&mut rig);
            rig.idle();
            assert!(rig.wal.has_room(4096), "{slots} {:?}", rig.wal.status());
            assert_eq!(rig.wal.takes(Default::default(), 4096, true), Room::Now);
            let rolled = rig.wal.status().counters.groups;
            // It does not roll for ever.
            rig.idle();
            rig.turn();
            assert_eq!(rig.wal.status().counters.groups, rolled);
            reopen(&medium, &rig);
        }
        assert!(rig.wal.status().slots_total as u64 <= slots);
    }
}

/// Votes have used up the reserve too. One slot more than there may be gets the log going.
#[test]
fn a_log_without_any_free_slot_gets_room_once_it_is_cut() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(6));
    while rig.wal.has_room(4096) {
        rig.append_entries(1, 1, 3500);
        rig.settle();
    }
    let at = rig.tip();
    rig.append(&[Write::Anchor(anchor_at(at))]);
    rig.settle();
    let mut term = 1;
    while rig.wal.status().slots_free > 0 {
        term += 1;
        rig.append(&[Write::HardState(vote(term, 1))]);
        rig.settle();
    }
    rig.append(&[Write::Base(base_at(at, at))]);
    rig.idle();
    assert!(rig.wal.has_room(4096), "{:?}", rig.wal.status());
    assert!(rig.wal.status().slots_total <= 7);
    reopen(&medium, &rig);
}

#[test]
fn a_read_of_a_released_segment_is_refused() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(32));
    roll(&mut rig, 1);
    let through = rig.tip().index;
    let anchored = rig.tip();
    rig.append(&[Write::Anchor(anchor_at(anchored))]);
    rig.settle();
    // As many as may wait, of which some have begun.
    let mut ids = 0..;
    let request = |id| ReadRequest {
        id,
        group: GROUP,
        from: logdrive_raft::Index(1),
        through,
        bytes_max: 200,
    };
    rig.wal.disk_mut().options_mut().read_us = (1 << 40, 1 << 40);
    while rig.wal.read(request(ids.next().unwrap())).is_ok() {}
    let tip = rig.tip();
    rig.append(&[Write::Base(base_at(anchored, tip))]);
    roll(&mut rig, 4);
    assert!(rig.wal.status().counters.segments_released > 0);
    let mut done = rig.wal.take_reads();
    while done.len() < 32 {
        rig.wal.disk_mut().options_mut().read_us = (1, 1);
        rig.now += 1 << 41;
        rig.turn();
        done.extend(rig.wal.take_reads());
    }
    for done in done {
        assert!(matches!(done.result, Err(ReadError::OffPath)), "{done:?}");
    }
}

/// Entries that no segment has, and that nothing in the log covers: what said so is gone.
#[test]
fn entries_that_are_owed_and_not_covered_are_rot() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(32));
    roll(&mut rig, 6);
    rig.settle();
    drop(rig);
    // The headers say that the log is needed from its third segment on.
    for header in headers(&medium) {
        let slot = SlotId(header.slot);
        if header.segment < 3 {
            medium.set_contents(slot, &vec![0; medium.contents(slot).len()]);
            continue;
        }
        let header = SlotHeader {
            oldest: 3,
            ..header
        };
        for (number, copy) in (0..).zip(header.to_blocks()) {
            medium.change(slot, number, |block| *block = copy.0);
        }
    }
    match Rig::open(&medium, options(32)).map(|_| ()) {
        Err(OpenError::Rot { findings }) => {
            let text = findings[0].to_string();
            assert!(text.contains("entries 1 to "), "{text}");
            assert!(
                text.contains("no segment that is kept holds them"),
                "{text}"
            );
            assert_eq!(findings[0].group, Some(GROUP));
        }
        other => panic!("{other:?}"),
    }
}

/// A log that is cut, rolls, releases segments and takes their slots again, and what crashes leave of it.
struct Cutting {
    medium: SimStorage,
    options: Options,
    disk: SimDiskOptions,
    rig: Rig,
    opened: u64,
}

impl Cutting {
    fn new(mode: FlushMode, direct: bool, options: Options) -> Self {
        let disk = SimDiskOptions {
            flush_mode: mode,
            direct,
            ..SimDiskOptions::default()
        };
        let medium = storage();
        let mut rig = Rig::open_with(&medium, options.clone(), disk.clone(), 1).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.settle();
        Self {
            medium,
            options,
            disk,
            rig,
            opened: 0,
        }
    }

    fn open(&self, medium: &SimStorage) -> Result<Rig, OpenError> {
        Rig::open_with(medium, self.options.clone(), self.disk.clone(), self.opened)
    }

    /// Cuts the log and appends to it, and lets it crash after each operation.
    fn round(&mut self) -> Result<(), String> {
        let before = stand(&self.rig.wal, GROUP);
        let at = self.rig.tip();
        self.rig.append(&[Write::Anchor(anchor_at(at))]);
        self.rig.settle();
        self.rig.append_entries(1, 2, 3500);
        let tip = self.rig.tip();
        self.rig.append(&[Write::Base(base_at(at, tip))]);
        for _ in 0..5 {
            self.rig.append_entries(1, 2, 3500);
        }
        let after = stand(&self.rig.wal, GROUP);
        loop {
            for (crash, tear) in [
                (Crash::Process, Tear::Never),
                (Crash::Power, Tear::Never),
                (Crash::Power, Tear::InOrder),
                (Crash::Power, Tear::Never),
            ] {
                self.crash(crash, tear, &before, &after)?;
            }
            if self.rig.wal.disk().next_due().is_none() {
                return Ok(());
            }
            self.rig.step();
        }
    }

    /// What is left is the old state or the new one, and stays so.
    fn crash(
        &mut self,
        crash: Crash,
        tear: Tear,
        before: &Stand,
        after: &Stand,
    ) -> Result<(), String> {
        self.opened += 1;
        let left = self.medium.copy(dice(self.opened));
        left.crash(crash, tear);
        let again = self.open(&left).map_err(|error| error.to_string())?;
        let found = stand(&again.wal, GROUP);
        drop(again);
        left.crash(Crash::Power, Tear::Never);
        let third = self.open(&left).map_err(|error| error.to_string())?;
        let tips = before.tip.index..=after.tip.index;
        let bases = [before.base, after.base];
        if stand(&third.wal, GROUP) != found
            || !tips.contains(&found.tip.index)
            || !bases.contains(&found.base)
        {
            return Err(format!("{found:?} between {before:?} and {after:?}"));
        }
        Ok(())
    }
}

/// Everything that happens, one operation after the other: cut, roll, release, recycling. At each moment the power
/// fails, or the process dies, or the disk tears what it was writing.
#[test]
fn a_crash_at_any_moment_leaves_a_log_that_opens() {
    let mut opened = 0;
    for mode in [FlushMode::Dsync, FlushMode::DrainedFsync] {
        for direct in [true, false] {
            let mut cutting = Cutting::new(mode, direct, options(12));
            for round in 0..10 {
                if let Err(error) = cutting.round() {
                    panic!("round {round}, image {}: {error}", cutting.opened);
                }
            }
            let counters = cutting.rig.wal.status().counters;
            assert!(counters.segments_released > 3);
            opened += cutting.opened;
        }
    }
    assert!(opened > 1000, "{opened}");
}

/// The bugs of this kind do not survive that.
#[cfg(mutants)]
#[test]
fn planted_bugs_are_found() {
    use logdrive_raft::mutant::Mutant;
    for mutant in [Mutant::ReleaseTooSoon, Mutant::ReleaseOutOfOrder] {
        let with_bug = Options {
            mutant: Some(mutant),
            ..options(24)
        };
        let mut cutting = Cutting::new(FlushMode::Dsync, true, with_bug);
        // It keeps the oldest segment.
        roll(&mut cutting.rig, 1);
        cutting.rig.wal.create_group(&genesis(OTHER)).unwrap();
        let one = entries(OTHER, 1, &genesis(OTHER).origin(), 1, 10);
        if mutant == Mutant::ReleaseOutOfOrder {
            let kept = cutting.rig.wal.append(OTHER, &[Write::Entries(one)]);
            kept.unwrap();
        }
        cutting.rig.settle();
        // Some writes take much longer than the clearing of a slot.
        let disk = cutting.rig.wal.disk_mut().options_mut();
        disk.starved_percent = 30;
        disk.write_us = (20, 3000);
        let found = (0..40).find_map(|_| cutting.round().err());
        println!("{mutant}: {found:?}");
        assert!(found.is_some(), "{mutant} is not found");
    }
}

/// A slot that cannot be cleared is no danger to the log. It is tried again, and the status says why.
#[test]
fn a_slot_that_cannot_be_cleared_is_tried_again() {
    for fault in [Fault::WriteError, Fault::FlushError, Fault::ShortWrite] {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, options(8));
        roll(&mut rig, 4);
        rig.idle();
        cut_all(&mut rig);
        // The next thing after the roll is the clearing of slots.
        let mut failed = false;
        for _ in 0..40 {
            rig.append_entries(1, 2, 3500);
            rig.settle();
            if rig.wal.status().counters.segments_released > 0 && !failed {
                medium.inject(fault);
                rig.turn();
                while rig.wal.disk().next_due().is_some() {
                    rig.step();
                }
                medium.withdraw_faults();
                let status = rig.wal.status();
                failed = true;
                if fault != Fault::ShortWrite {
                    assert!(!status.fallbacks.is_empty(), "{fault:?} {status:?}");
                }
                break;
            }
        }
        assert!(failed && rig.wal.poisoned().is_none());
        rig.idle();
        let status = rig.wal.status();
        assert!(status.fallbacks.is_empty(), "{status:?}");
        reopen(&medium, &rig);
    }
}

/// A block that was torn beyond the end of a segment stays there as long as the segment counts. It goes before the slot
/// is taken again.
#[test]
fn what_was_torn_in_a_segment_is_cleared_once_it_is_released() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(16));
    rig.append_entries(1, 3, 100);
    rig.settle();
    drop(rig);
    medium.crash(Crash::Power, Tear::Never);
    let torn = 12;
    medium.change(SlotId(0), torn, |block| {
        block[BLOCK_BYTES - 512..].fill(0x5a)
    });
    let is_torn = |medium: &SimStorage| {
        let end = (torn as usize + 1) * BLOCK_BYTES;
        medium.contents(SlotId(0))[end - 1] == 0x5a
    };
    let mut rig = Rig::open(&medium, options(16)).unwrap();
    cut_all(&mut rig);
    assert!(is_torn(&medium), "it counts and is left alone");
    while headers(&medium).iter().any(|header| header.slot == 0) {
        roll(&mut rig, 1);
        cut_all(&mut rig);
        rig.idle();
    }
    assert!(!is_torn(&medium));
    for _ in 0..10 {
        roll(&mut rig, 1);
        cut_all(&mut rig);
        reopen(&medium, &rig);
    }
}

/// A disk on which everything may fail while slots are cleared.
#[test]
fn failures_while_slots_are_cleared_lose_nothing() {
    for seed in 0..20 {
        let medium = storage();
        let mut rig = Rig::with_group(&medium, options(12));
        for _ in 0..12 {
            roll(&mut rig, 1);
            cut_all(&mut rig);
            if rig.wal.poisoned().is_some() {
                break;
            }
        }
        let rates = FaultRates {
            write_error_ppm: 100_000,
            flush_error_ppm: 100_000,
            ..FaultRates::default()
        };
        medium.set_dice(dice(seed));
        rig.wal.disk_mut().options_mut().rates = rates;
        let mut acknowledged = stand(&rig.wal, GROUP);
        while rig.wal.poisoned().is_none() {
            let more = entries(GROUP, 1, &rig.tip(), 1, 3500);
            if rig.wal.append(GROUP, &[Write::Entries(more)]).is_err() {
                break;
            }
            rig.settle();
            if rig.wal.is_drained() {
                acknowledged = stand(&rig.wal, GROUP);
            }
        }
        drop(rig);
        medium.crash(Crash::Power, Tear::Never);
        let rig = Rig::open(&medium, options(12)).unwrap();
        let found = stand(&rig.wal, GROUP);
        assert_eq!(found.base, acknowledged.base);
        assert!(acknowledged.tip.index <= found.tip.index);
    }
}
