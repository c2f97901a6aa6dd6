//! Each operation fails once.

use logdrive_sim::disk::Crash;
use logdrive_sim::files::{FilesFault, SimFiles, SimFilesStorage};
use logdrive_wal::snapshots::*;

use crate::{contents, listed, open, receive, with_one, write};

/// Lets `act` meet the fault at each operation that it concerns, until none is left to.
fn fail_at_each(
    fault: FilesFault,
    before: &SimFilesStorage,
    act: impl Fn(&SnapshotStore<SimFiles>) -> Result<(), SnapshotError>,
    check: impl Fn(&SimFilesStorage, &SnapshotStore<SimFiles>, Option<SnapshotError>),
) -> u64 {
    for after in 0.. {
        let storage = before.copy(after);
        let store = open(&storage);
        storage.inject(fault, after);
        let failed = act(&store).err();
        if storage.withdraw_faults() == 1 {
            assert!(failed.is_none());
            return after;
        }
        check(&storage, &store, failed);
    }
    unreachable!("it ends sooner or later");
}

#[test]
fn a_writer_that_fails_leaves_nothing_behind() {
    let faults = [
        FilesFault::NoSpace,
        FilesFault::WriteError,
        FilesFault::FlushError,
    ];
    for fault in faults {
        let met = fail_at_each(
            fault,
            &with_one(1),
            |store| write(store, 200, &contents(2)).map(drop),
            |storage, store, failed| {
                let no_space = matches!(failed, Some(SnapshotError::NoSpace { .. }));
                let error = matches!(failed, Some(SnapshotError::Io { .. }));
                assert!(if fault == FilesFault::NoSpace {
                    no_space
                } else {
                    error
                });
                assert_eq!(listed(store), [100], "{fault:?}");
                assert_eq!(storage.directories().len(), 1);
                storage.crash(Crash::Power);
                assert_eq!(listed(&open(storage)), [100], "{fault:?}");
            },
        );
        assert!(met > 4, "{fault:?}");
    }
}

#[test]
fn a_write_that_never_reached_the_medium_is_found_before_it_counts() {
    let met = fail_at_each(
        FilesFault::LostWrite,
        &with_one(1),
        |store| write(store, 200, &contents(2)).map(drop),
        |storage, store, failed| {
            assert!(matches!(failed, Some(SnapshotError::Damaged { .. })));
            assert_eq!(listed(store), [100]);
            assert_eq!(storage.directories().len(), 1);
        },
    );
    // Four chunks and the manifest.
    assert_eq!(met, 5);
}

#[test]
fn a_full_disk_keeps_what_is_there() {
    let storage = with_one(1);
    let store = open(&storage);
    storage.set_capacity(Some(1_000_000));
    let failed = write(&store, 200, &contents(2));
    assert!(matches!(failed, Err(SnapshotError::NoSpace { .. })));
    assert_eq!(listed(&store), [100]);
    assert!(store.free_bytes().unwrap() > 400_000);
    storage.set_capacity(None);
    write(&store, 200, &contents(2)).unwrap();
}

#[test]
fn what_is_received_survives_every_error() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    let faults = [
        FilesFault::NoSpace,
        FilesFault::WriteError,
        FilesFault::FlushError,
        FilesFault::ReadError,
        FilesFault::LostWrite,
    ];
    for fault in faults {
        fail_at_each(
            fault,
            &with_one(1),
            |store| receive(&sender, sent.id, store).map(drop),
            |_, store, failed| {
                assert!(failed.is_some());
                assert_eq!(listed(store), [100], "{fault:?}");
                receive(&sender, sent.id, store).unwrap();
                assert_eq!(listed(store), [200, 100], "{fault:?}");
            },
        );
    }
}
