//! Openings that fail or die after they have begun to write, and what comes after them.

use logdrive_raft::entry::EntryBuilder;
use logdrive_raft::io::Write;
use logdrive_raft::{ClusterId, GroupId, Incarnation, Micros, NodeId, Term};
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::{BLOCK_BYTES, FlushMode, SlotId};
use logdrive_wal::{FreshIds, Identity, OpenError, Options, Recovery, Wal};

use crate::directory::{dice, genesis, unless_killed};
use crate::openings;
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
    options.frame_bytes_max = 31_000;
    options
}

type Opened = Option<Result<(Wal<Mortal>, Recovery), OpenError>>;

fn open(medium: &SimStorage, left: Option<u64>, seed: u64) -> Opened {
    medium.set_dice(dice(seed));
    let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    unless_killed(|| Wal::open(Mortal { disk, left }, options()))
}

fn append(wal: &mut Wal<Mortal>, bytes: usize) {
    let prev = wal.tip(GROUP).unwrap();
    let mut builder = EntryBuilder::with_room(1, bytes);
    builder.push(&vec![3; bytes]);
    let entry = builder
        .finish()
        .seal(GROUP, Term(1), prev.index.next(), prev.chain);
    wal.append(GROUP, &[Write::Entries(vec![entry])]).unwrap();
}

fn idle(wal: &mut Wal<Mortal>, now: &mut u64) {
    for _ in 0..3000 {
        *now += 100;
        wal.disk_mut().disk.advance(*now);
        wal.poll(Micros(*now));
        wal.submit(Micros(*now));
    }
}

fn end_of(medium: &SimStorage, slot: u32) -> usize {
    let bytes = medium.contents(SlotId(slot));
    let zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    bytes
        .chunks(BLOCK_BYTES)
        .skip(2)
        .position(zero)
        .unwrap_or(14)
        + 2
}

#[test]
fn a_log_that_is_gone_on_with_is_not_suspect_for_an_opening_that_died() {
    let (mut reached, mut bad) = (0, Vec::new());
    for seed in 0..600 {
        for left in 2..12 {
            let medium = SimStorage::new(dice(seed));
            let crash = || {
                medium.set_dice(dice(seed * 100 + left));
                medium.crash(Crash::Power, Tear::Never);
            };
            let mut now = 1_000_000;
            let (mut wal, _) = open(&medium, None, seed).unwrap().unwrap();
            wal.create_group(&genesis(GROUP)).unwrap();
            idle(&mut wal, &mut now);
            while end_of(&medium, 0) < 8 {
                append(&mut wal, 100);
                idle(&mut wal, &mut now);
            }
            // The roll: the next segment's header may land, the seal of this one may not.
            append(&mut wal, 30_000);
            wal.submit(Micros(now));
            drop(wal);
            crash();
            // An opening that dies before its verdict.
            if open(&medium, Some(left), seed).is_some() {
                break;
            }
            crash();
            // One that goes on in the segment there is.
            let (mut wal, _) = open(&medium, None, seed).unwrap().unwrap();
            reached += 1;
            let tip = wal.tip(GROUP).map(|tip| tip.index);
            append(&mut wal, 30_000);
            wal.submit(Micros(now));
            drop(wal);
            crash();
            match open(&medium, None, seed).unwrap() {
                Ok((wal, _)) => assert!(wal.tip(GROUP).map(|tip| tip.index) >= tip),
                Err(error) => bad.push(format!("seed {seed} left {left}: {error}")),
            }
        }
    }
    println!("{reached} reached, {} bad", bad.len());
    assert!(
        bad.is_empty(),
        "{reached} reached, {} bad: {}",
        bad.len(),
        bad[0]
    );
}

#[test]
fn what_an_opening_could_not_flush_does_not_free_the_original() {
    let disk = SimDiskOptions {
        direct: false,
        flush_mode: FlushMode::DrainedFsync,
        ..SimDiskOptions::default()
    };
    let (original, chains) = openings::begun(&disk, false);
    let (mut failed, mut tried, mut bad) = (0, 0, Vec::new());
    for seed in 0..200 {
        let medium = original.copy(dice(seed));
        let mut faulty = disk.clone();
        faulty.rates.flush_error_ppm = 150_000;
        match openings::open(&medium, &faulty, None, seed) {
            Some(Err(_)) => failed += 1,
            _ => continue,
        }
        medium.crash(Crash::Process, Tear::Never);
        for left in 0..60 {
            let medium = medium.copy(dice(seed));
            if openings::open(&medium, &disk, Some(left), seed).is_some() {
                break;
            }
            medium.set_dice(dice(seed + left));
            medium.crash(Crash::Power, Tear::Never);
            tried += 1;
            let found = match openings::open(&medium, &disk, None, seed).unwrap() {
                Ok(recovery) => recovery,
                Err(error) => {
                    bad.push(format!("seed {seed} left {left}: {error}"));
                    continue;
                }
            };
            let rows = &found.groups[&GROUP].restored.entries;
            if !rows.iter().map(|row| row.chain).eq(chains.iter().copied()) {
                let (found_rows, all) = (rows.len(), chains.len());
                let verdict = found.verdict.name();
                bad.push(format!(
                    "seed {seed} left {left}: {found_rows} of {all}, {verdict}"
                ));
            }
        }
    }
    println!("{failed} failed openings, {tried} tried, {} bad", bad.len());
    assert!(
        bad.is_empty(),
        "{failed} {tried} {} bad: {:?}",
        bad.len(),
        &bad[..bad.len().min(5)]
    );
}
