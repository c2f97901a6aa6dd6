//! Openings that die, at every moment at which they can.

use logdrive_raft::entry::EntryBuilder;
use logdrive_raft::io::{HardState, Write};
use logdrive_raft::{Chain, ClusterId, GroupId, Incarnation, Micros, NodeId, Term};
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, FlushMode, SlotFile};
use logdrive_wal::{FreshIds, Identity, OpenError, Options, Recovery, Wal};

use crate::directory::{dice, genesis, replica, unless_killed};
use logdrive_sim::mortal::Mortal;

const GROUP: GroupId = GroupId(1);

fn options() -> Options {
    let identity = Identity {
        cluster: ClusterId(1),
        node: NodeId(1),
    };
    let fresh = FreshIds {
        incarnation: Incarnation(7),
        log_uuid: 8,
    };
    let mut options = Options::new(identity, fresh).with_slots(64 << 10, 400);
    // Everything that is queued is on its way before the first of it is durable.
    options.in_flight_max.partial = 16;
    options.in_flight_max.all = 32;
    options
}

fn disk_options(direct: bool, flush_mode: FlushMode) -> SimDiskOptions {
    SimDiskOptions {
        direct,
        flush_mode,
        ..SimDiskOptions::default()
    }
}

/// A log over several slots; everything is acknowledged, and with `marked` the log says so itself.
pub fn begun(disk: &SimDiskOptions, marked: bool) -> (SimStorage, Vec<Chain>) {
    let medium = SimStorage::new(dice(1));
    let disk = SimDisk::new(medium.clone(), disk.clone());
    let (mut wal, _) = Wal::open(disk, options()).expect("a new log");
    let mut now = 1_000_000;
    let mut turn = |wal: &mut Wal<SimDisk>| {
        now += 100;
        wal.disk_mut().advance(now);
        wal.poll(Micros(now));
        wal.submit(Micros(now));
    };
    wal.create_group(&genesis(GROUP)).expect("a new group");
    let vote = HardState {
        term: Term(2),
        vote: Some(replica(1)),
    };
    let at = wal.append(GROUP, &[Write::HardState(vote)]);
    let at = at.expect("there is room");
    wal.want_echo(at);
    // The pool is to have its free slots.
    (0..2000).for_each(|_| turn(&mut wal));
    let mut prev = genesis(GROUP).origin();
    let mut entries = Vec::new();
    for _ in 0..9 {
        let mut builder = EntryBuilder::with_room(1, 10_000);
        builder.push(&[3; 10_000]);
        let unsealed = builder.finish();
        let entry = unsealed.seal(GROUP, Term(2), prev.index.next(), prev.chain);
        prev = entry.position();
        entries.push(entry);
    }
    let chains = entries.iter().map(|entry| entry.header().chain).collect();
    wal.append(GROUP, &[Write::Entries(entries)])
        .expect("there is room");
    while !wal.is_drained() {
        turn(&mut wal);
    }
    if marked {
        (0..2000).for_each(|_| turn(&mut wal));
    }
    drop(wal);
    (medium, chains)
}

/// Opens the log with a process that lives for so long. None: it was killed.
pub fn open(
    medium: &SimStorage,
    disk: &SimDiskOptions,
    left: Option<u64>,
    seed: u64,
) -> Option<Result<Recovery, OpenError>> {
    medium.set_dice(dice(seed));
    let disk = SimDisk::new(medium.clone(), disk.clone());
    let disk = Mortal { disk, left };
    unless_killed(|| Wal::open(disk, options()).map(|(_, recovery)| recovery))
}

fn check(recovery: &Recovery, chains: &[Chain]) {
    let restored = &recovery.groups[&GROUP].restored;
    let found: Vec<Chain> = restored.entries.iter().map(|entry| entry.chain).collect();
    assert_eq!(found, chains);
    assert_eq!(restored.hard_state.vote, Some(replica(1)));
}

/// Every moment at which an opening can be killed, and what is left then.
fn killed_openings(
    medium: &SimStorage,
    disk: &SimDiskOptions,
    crash: Crash,
    seed: u64,
) -> impl Iterator<Item = (u64, SimStorage)> {
    let mut moments = 0..;
    std::iter::from_fn(move || {
        let left = moments.next()?;
        let medium = medium.copy(dice(1));
        if open(&medium, disk, Some(left), seed + left).is_some() {
            return None;
        }
        medium.set_dice(dice(seed + left));
        medium.crash(crash, Tear::Never);
        Some((left, medium))
    })
}

/// Cuts the first of the free slots, as if it had not been complete when the process died. It is completed
/// while the log is opened, and so taken after a later one.
fn cut_a_free_slot(medium: &SimStorage) {
    let free = |file: &&SlotFile| medium.contents(file.slot)[..BLOCK_BYTES] == [0; BLOCK_BYTES];
    let files = medium.slot_files();
    let file = files.iter().find(free).expect("some are free");
    medium.set_contents(file.slot, &[0; 4 * BLOCK_BYTES]);
}

fn two_openings(disk: &SimDiskOptions, crash: Crash, cut: bool) -> u64 {
    let (medium, chains) = begun(disk, false);
    if cut {
        cut_a_free_slot(&medium);
    }
    let mut openings = 0;
    for (first, medium) in killed_openings(&medium, disk, crash, 1) {
        for (second, medium) in killed_openings(&medium, disk, Crash::Power, 1000 * first) {
            let opened = open(&medium, disk, None, 1).expect("nobody kills it");
            let recovery = opened.unwrap_or_else(|error| {
                panic!("{disk:?} {crash:?}, killed after {first} and {second}: {error}")
            });
            check(&recovery, &chains);
            openings += 1;
        }
    }
    openings
}

/// As above, on disks that change between direct and buffered from one opening to the next.
#[test]
fn two_openings_in_a_row_may_die_on_different_disks() {
    let (mut openings, mut bad) = (0, Vec::new());
    for kinds in 0..16_u8 {
        let mode = FlushMode::Dsync;
        let [begins, first, second, last] =
            [1, 2, 4, 8].map(|bit| disk_options(kinds & bit > 0, mode));
        let (medium, chains) = begun(&begins, false);
        for crash in [Crash::Process, Crash::Power] {
            for (one, medium) in killed_openings(&medium, &first, crash, 1) {
                for (two, medium) in killed_openings(&medium, &second, Crash::Power, 1000 * one) {
                    openings += 1;
                    match open(&medium, &last, None, 1).expect("nobody kills it") {
                        Ok(recovery) => check(&recovery, &chains),
                        Err(error) => bad.push(format!(
                            "kinds {kinds:04b} {crash:?}, killed after {one} and {two}: {error}"
                        )),
                    }
                }
            }
        }
    }
    println!("{openings} pairs of openings, {} bad", bad.len());
    assert!(
        bad.is_empty(),
        "{} of {openings} bad: {}",
        bad.len(),
        bad[0]
    );
}

#[test]
fn two_openings_in_a_row_may_die_at_any_moment() {
    let openings = std::thread::scope(|scope| {
        let modes = [FlushMode::Dsync, FlushMode::DrainedFsync];
        let threads = modes.map(|mode| {
            scope.spawn(move || {
                [Crash::Process, Crash::Power]
                    .map(|crash| {
                        // What is not direct is written again, over several slots.
                        two_openings(&disk_options(true, mode), crash, false)
                            + two_openings(&disk_options(false, mode), crash, false)
                            + two_openings(&disk_options(false, mode), crash, true)
                    })
                    .iter()
                    .sum::<u64>()
            })
        });
        let ended = threads.map(|thread| thread.join().expect("it says why"));
        ended.iter().sum::<u64>()
    });
    println!("{openings} pairs of openings");
    assert!(openings > 2000);
}

/// A power cut while a header was written may have left one copy of it torn. The next opening takes the same
/// slot, and a power cut while it writes must not leave two.
#[test]
fn two_power_cuts_in_a_row_do_not_leave_two_torn_copies_of_a_header() {
    let disk = disk_options(true, FlushMode::Dsync);
    let (medium, chains) = begun(&disk, false);
    let first_block = |medium: &SimStorage, file: &SlotFile| {
        let mut bytes = medium.contents(file.slot);
        bytes.truncate(BLOCK_BYTES);
        bytes
    };
    // An opening that died when its header was durable.
    let before = medium.copy(dice(1));
    assert!(open(&medium, &disk, Some(5), 1).is_none());
    medium.crash(Crash::Process, Tear::Never);
    let files = medium.slot_files();
    let taken = |file: &&SlotFile| first_block(&before, file) != first_block(&medium, file);
    let taken = files.iter().find(taken).expect("it took a slot").slot;
    // Either copy torn; or the second torn, and the first not written at all.
    for torn in 0..3 {
        for seed in 0..200 {
            // Up to the flush of the second copy.
            for left in 1..5 {
                let medium = medium.copy(dice(1));
                medium.change(taken, torn.min(1), |block| block[100] ^= 1);
                if torn == 2 {
                    medium.change(taken, 0, |block| block.fill(0));
                }
                assert!(open(&medium, &disk, Some(left), seed).is_none());
                medium.set_dice(dice(seed * 10 + left));
                medium.crash(Crash::Power, Tear::Sectors);
                let opened = open(&medium, &disk, None, seed).expect("nobody kills it");
                let recovery = opened.unwrap_or_else(|error| {
                    panic!("case {torn}, seed {seed}, killed after {left}: {error}")
                });
                check(&recovery, &chains);
            }
        }
    }
}

/// The header of a segment that was acknowledged is gone after an opening that died: whichever openings are
/// left out of account, it is missed.
#[test]
fn a_segment_is_missed_after_an_opening_that_died() {
    for direct in [true, false] {
        let disk = disk_options(direct, FlushMode::Dsync);
        let (medium, _) = begun(&disk, true);
        let used: Vec<SlotFile> = medium.slot_files();
        let used: Vec<SlotFile> = used
            .into_iter()
            .filter(|file| medium.contents(file.slot)[..BLOCK_BYTES] != [0; BLOCK_BYTES])
            .collect();
        assert!(used.len() > 2);
        for (left, medium) in killed_openings(&medium, &disk, Crash::Process, 1) {
            for file in &used {
                let medium = medium.copy(dice(1));
                for copy in 0..2 {
                    medium.change(file.slot, copy, |block| *block = [0; BLOCK_BYTES]);
                }
                let opened = open(&medium, &disk, None, 1).expect("nobody kills it");
                assert!(
                    matches!(
                        opened,
                        Err(OpenError::Rot { .. } | OpenError::Suspect { .. })
                    ),
                    "direct {direct}, killed after {left}, {}: {opened:?}",
                    file.slot.file_name()
                );
            }
        }
    }
}

/// An opening that reads through a page cache goes on at the mark, writes the rest of the log again, and dies. The
/// next one reads the medium and goes on after the whole of it. Then the header of the first lies about still,
/// which says that nothing counted after the mark; and a segment there that is lost later is missed all the same.
#[test]
fn what_an_opening_that_died_left_out_is_missed_if_the_next_one_took_it() {
    let mode = FlushMode::Dsync;
    let (cached, direct) = (disk_options(false, mode), disk_options(true, mode));
    let (medium, chains) = begun(&direct, false);
    cut_a_free_slot(&medium);
    let headed = |medium: &SimStorage| -> Vec<SlotFile> {
        let mut files = medium.slot_files();
        files.retain(|file| {
            let bytes = medium.contents(file.slot);
            bytes.len() >= BLOCK_BYTES && bytes[..BLOCK_BYTES] != [0; BLOCK_BYTES]
        });
        files
    };
    let used = headed(&medium);
    assert!(used.len() > 2);
    let (mut both, mut silent) = (0, Vec::new());
    for (left, medium) in killed_openings(&medium, &cached, Crash::Process, 1) {
        let died = headed(&medium).len() - used.len();
        let opened = open(&medium, &direct, None, 1).expect("nobody kills it");
        check(&opened.expect("it is whole"), &chains);
        medium.crash(Crash::Process, Tear::Never);
        both += u32::from(headed(&medium).len() > used.len() + died);
        for file in &used {
            let medium = medium.copy(dice(1));
            for copy in 0..2 {
                medium.change(file.slot, copy, |block| *block = [0; BLOCK_BYTES]);
            }
            let opened = open(&medium, &direct, None, 1).expect("nobody kills it");
            let Ok(recovery) = opened else {
                continue;
            };
            let entries = recovery.groups.get(&GROUP);
            let entries = entries.map_or(0, |group| group.restored.entries.len());
            // If the first one got as far as its verdict, it is not needed any more.
            if entries < chains.len() {
                silent.push(format!(
                    "killed after {left}, {} lost: {entries} of {} entries",
                    file.slot.file_name(),
                    chains.len()
                ));
            }
        }
    }
    assert!(both > 0, "the header of the first was never left");
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}
