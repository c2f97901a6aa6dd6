//! The power fails at the end of each operation in turn.

use logdrive_sim::disk::Crash;
use logdrive_sim::files::{SimFiles, SimFilesStorage};
use logdrive_wal::snapshots::*;

use crate::{GROUP, check_contents, contents, listed, meta, noise, open, receive, with_one, write};

/// Runs `act` with the power cut at the end of each operation in turn, and `check` on what it leaves.
fn cut_at_each_operation(
    before: &SimFilesStorage,
    act: impl Fn(&SnapshotStore<SimFiles>) -> Result<(), SnapshotError>,
    check: impl Fn(&SimFilesStorage, u64),
) {
    let mut cuts = 0;
    for operation in 1.. {
        let mut complete = false;
        for seed in 0..4 {
            let storage = before.copy(1000 * operation + seed);
            let store = open(&storage);
            let last = storage.operations() + operation;
            storage.stop_at(Some(last));
            let done = act(&store);
            match storage.operations() < last {
                true => complete = done.is_ok(),
                false => cuts += 1,
            }
            drop(store);
            storage.stop_at(None);
            storage.crash(Crash::Power);
            check(&storage, operation);
        }
        if complete {
            break;
        }
    }
    assert!(cuts > 20, "{cuts}");
}

#[test]
fn a_power_cut_while_one_is_written_leaves_the_old_or_both() {
    cut_at_each_operation(
        &with_one(1),
        |store| write(store, 200, &contents(2)).map(drop),
        |storage, operation| {
            let store = open(storage);
            let found = listed(&store);
            assert!(
                found == [100] || found == [200, 100],
                "at {operation}: {found:?}"
            );
            assert_eq!(storage.directories().len(), found.len());
            let again = write(&store, 200, &contents(2)).unwrap();
            check_contents(&store, again.id, &contents(2));
            assert_eq!(listed(&store), [200, 100]);
        },
    );
}

#[test]
fn a_power_cut_while_one_is_received_leaves_the_old_or_both() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    cut_at_each_operation(
        &with_one(1),
        |store| receive(&sender, sent.id, store).map(drop),
        |storage, operation| {
            let store = open(storage);
            let found = listed(&store);
            assert!(
                found == [100] || found == [200, 100],
                "at {operation}: {found:?}"
            );
            receive(&sender, sent.id, &store).unwrap();
            check_contents(&store, sent.id, &contents(2));
            assert_eq!(listed(&store), [200, 100]);
            assert_eq!(storage.directories().len(), 2);
        },
    );
}

#[test]
fn a_power_cut_while_some_are_removed_leaves_whole_ones() {
    let before = with_one(1);
    let store = open(&before);
    for index in [200, 300, 400] {
        write(&store, index, &contents(index)).unwrap();
    }
    let kept = store.list(GROUP).unwrap().snapshots[2].id;
    drop(store);
    cut_at_each_operation(
        &before,
        |store| store.retire(GROUP, &[kept]).map(drop),
        |storage, operation| {
            let store = open(storage);
            let found = listed(&store);
            let fine = [&[400, 200][..], &[400, 300, 200], &[400, 300, 200, 100]];
            assert!(fine.contains(&&found[..]), "at {operation}: {found:?}");
            store.retire(GROUP, &[kept]).unwrap();
            assert_eq!(listed(&store), [400, 200]);
            assert_eq!(storage.directories().len(), 2);
        },
    );
}

#[test]
fn a_power_cut_while_what_is_left_is_removed_is_none_at_all() {
    for operation in 1..12 {
        let storage = with_one(operation);
        let store = open(&storage);
        let mut writer = store.begin(meta(200), Box::new(unpaced)).unwrap();
        writer.begin_file("state").unwrap();
        writer.write(&noise(1, 3 * CHUNK_BYTES)).unwrap();
        storage.crash(Crash::Process);
        drop(writer);
        storage.stop_at(Some(storage.operations() + operation));
        let _ = SnapshotStore::open(storage.files());
        storage.stop_at(None);
        assert_eq!(listed(&open(&storage)), [100]);
        assert_eq!(storage.directories().len(), 1);
    }
}

/// Where a device hears of what is free it may do nothing else meanwhile: never of much at once.
#[test]
fn a_large_file_goes_a_little_at_a_time() {
    const BYTES: usize = 4 << 20;
    let before = SimFilesStorage::new(1);
    let store = open(&before);
    let old = write(&store, 100, &vec![("huge", noise(1, BYTES))]).unwrap();
    write(&store, 200, &contents(2)).unwrap();
    drop(store);
    let mut lengths = vec![BYTES];
    for operation in 1.. {
        let storage = before.copy(1);
        let store = open(&storage);
        storage.stop_after(operation, Crash::Process);
        if store.retire(GROUP, &[]).is_ok_and(|gone| gone == [old.id]) {
            break;
        }
        let mut left = storage.directories().into_iter();
        let left = left.find_map(|directory| storage.contents(&directory, "huge"));
        lengths.push(left.map_or(0, |left| left.len()));
    }
    lengths.dedup();
    let most = lengths.windows(2).map(|pair| pair[0] - pair[1]).max();
    assert!(most <= Some(1 << 20), "{lengths:?}");
}
