//! Verifying a log that is being written to.

use crate::common::cut::*;
use crate::common::*;
use logdrive_raft::io::Write;
use logdrive_sim::disk::{SimDisk, SimDiskOptions, SimStorage};
use logdrive_wal::disk::{Disk, FlushMode};
use logdrive_wal::verify::{Report, verify_disk};
use logdrive_wal::{FindingVerdict, Verdict};

fn running(medium: &SimStorage) -> Report {
    let mut disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    let slots = disk.slots().unwrap();
    verify_disk(&mut disk, &slots, true).unwrap()
}

/// A header in the newest slot, a seal or the group before it may be there before what lies before them is.
#[test]
fn a_log_that_rolls_is_clean_at_any_moment() {
    for (seed, mode) in [
        (1, FlushMode::Dsync),
        (2, FlushMode::DrainedFsync),
        (3, FlushMode::Dsync),
    ] {
        let medium = storage();
        let disk = SimDiskOptions {
            flush_mode: mode,
            ..SimDiskOptions::default()
        };
        let mut rig = Rig::open_with(&medium, options(32), disk, seed).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.settle();
        let mut looked = 0;
        while rig.wal.status().segments < 8 {
            for _ in 0..5 {
                rig.append_entries(2, 2, 3000);
                rig.turn();
            }
            while rig.wal.disk().next_due().is_some() && !rig.wal.is_drained() {
                rig.step();
                let report = running(&medium.copy(dice(seed)));
                assert_eq!(report.verdict, Verdict::Clean, "{report}");
                looked += 1;
            }
        }
        assert!(looked > 20);
    }
}

/// The slots were listed, and then the log went on in files that were not there yet.
#[test]
fn a_log_that_rolls_into_new_files_is_looked_at_again() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(32));
    let mut disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    let listed = disk.slots().unwrap();
    while rig.wal.status().segments < 8 {
        rig.append_entries(2, 2, 3000);
        rig.settle();
    }
    for known in 1..=listed.len() {
        let report = verify_disk(&mut disk, &listed[..known], true).unwrap();
        assert_eq!(report.verdict, Verdict::Clean, "{report}");
    }
    let newest_only = disk.slots().unwrap();
    for from in 0..newest_only.len() {
        let report = verify_disk(&mut disk, &newest_only[from..], true).unwrap();
        assert_eq!(report.verdict, Verdict::Clean, "{report}");
    }
}

/// What is bad is so however often it is looked at.
#[test]
fn what_is_bad_in_a_sealed_segment_is_found() {
    let medium = storage();
    let mut rig = Rig::with_group(&medium, options(32));
    while rig.wal.status().segments < 4 {
        rig.append_entries(2, 2, 3000);
        rig.settle();
    }
    rig.append_entries(2, 1, 100);
    rig.settle();
    let mut disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    let slots = disk.slots().unwrap();
    let sealed = running(&medium).entries;
    assert!(sealed > 20);
    let whole = medium.contents(slots[2].slot);
    let last = whole.chunks(4096).rposition(|block| block != [0; 4096]);
    for block in 2..=u32::try_from(last.unwrap()).unwrap() {
        for fill in [0, 7] {
            let medium = medium.copy(dice(1));
            medium.change(slots[2].slot, block, |bytes| bytes[100..].fill(fill));
            let report = running(&medium);
            // Its checkpoint says nothing that was not in the log before.
            let expected = match block {
                2 => &[FindingVerdict::Mended][..],
                _ => &[FindingVerdict::Rot, FindingVerdict::Holed],
            };
            let found = report.findings[0].verdict;
            assert!(expected.contains(&found), "block {block}: {report}");
        }
    }
    let both = medium.copy(dice(1));
    for copy in 0..2 {
        both.change(slots[2].slot, copy, |bytes| bytes[100] ^= 1);
    }
    assert!(running(&both).verdict > Verdict::Torn);
}

/// A log that is cut again and again releases segments, clears their slots and takes them for others.
#[test]
fn a_log_that_releases_segments_is_clean_at_any_moment() {
    for (seed, mode) in [(1, FlushMode::Dsync), (2, FlushMode::DrainedFsync)] {
        let medium = storage();
        let disk = SimDiskOptions {
            flush_mode: mode,
            ..SimDiskOptions::default()
        };
        let mut rig = Rig::open_with(&medium, options(32), disk, seed).unwrap();
        rig.wal.create_group(&genesis(GROUP)).unwrap();
        rig.settle();
        while rig.wal.status().counters.segments_released < 8 {
            let at = rig.tip();
            rig.append(&[Write::Anchor(anchor_at(at))]);
            rig.settle();
            for _ in 0..3 {
                rig.append_entries(2, 2, 3000);
                rig.turn();
            }
            let tip = rig.tip();
            rig.append(&[Write::Base(base_at(at, tip))]);
            while rig.wal.disk().next_due().is_some() && !rig.wal.is_drained() {
                rig.step();
                let report = running(&medium.copy(dice(seed)));
                assert_eq!(report.verdict, Verdict::Clean, "{report}");
            }
        }
        rig.idle();
        let mut disk = SimDisk::new(medium.copy(dice(seed)), SimDiskOptions::default());
        let slots = disk.slots().unwrap();
        let stopped = verify_disk(&mut disk, &slots, false).unwrap();
        assert_eq!(stopped.verdict, Verdict::Clean, "{stopped}");
        let group = &stopped.groups[0];
        assert_eq!(group.base_index, rig.wal.base(GROUP).unwrap().index);
        let anchor = rig.wal.anchor(GROUP).map(|anchor| anchor.index);
        assert_eq!((group.anchor_index, anchor.is_some()), (anchor, true));
        assert_eq!(group.last_index, rig.tip().index);
    }
}
