//! What comes from a sender, from another one, and not at all.

use std::ops::ControlFlow;

use logdrive_raft::GroupId;
use logdrive_sim::disk::Crash;
use logdrive_sim::files::SimFilesStorage;
use logdrive_wal::snapshots::*;

use crate::{GROUP, check_contents, contents, fetch, listed, noise, open, write};

#[test]
fn chunks_that_read_back_wrong_are_fetched_again() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    let storage = SimFilesStorage::new(6);
    let store = open(&storage);
    let manifest = sender.manifest_bytes(sent.id).unwrap();
    let mut receiving = store.receive(GROUP, manifest, Box::new(unpaced)).unwrap();
    assert_eq!(receiving.chunks_missing(), 4);
    assert!(matches!(
        receiving.finish(),
        Err(SnapshotError::Incomplete { missing: 4 })
    ));
    fetch(&sender, sent.id, &mut receiving).unwrap();
    assert!(storage.flip("receiving-g7", "small", 3, 1));
    assert!(storage.flip("receiving-g7", "large", CHUNK_BYTES as u64, 1));
    let failed = receiving.finish();
    assert!(
        matches!(&failed, Err(SnapshotError::Damaged { path, chunk: Some(0), .. }) if path.ends_with("small")),
        "{failed:?}"
    );
    assert_eq!(receiving.missing().collect::<Vec<_>>(), [(1, 0), (2, 1)]);
    assert_eq!(receiving.bytes_have(), CHUNK_BYTES as u64 + 77);
    assert_eq!(fetch(&sender, sent.id, &mut receiving).unwrap(), 2);
    assert_eq!(receiving.finish().unwrap(), sent);
    assert!(matches!(receiving.finish(), Err(SnapshotError::Ended)));
    check_contents(&store, sent.id, &contents(2));
}

#[test]
fn what_nobody_goes_on_with_is_removed() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    let storage = SimFilesStorage::new(6);
    let store = open(&storage);
    assert!(!store.discard(GROUP).unwrap());
    let manifest = sender.manifest_bytes(sent.id).unwrap();
    let mut receiving = store.receive(GROUP, manifest, Box::new(unpaced)).unwrap();
    fetch(&sender, sent.id, &mut receiving).unwrap();
    assert!(matches!(
        store.discard(GROUP),
        Err(SnapshotError::Busy { .. })
    ));
    drop(receiving);
    assert_eq!(store.receiving().unwrap(), [GROUP]);
    assert!(store.discard(GROUP).unwrap());
    assert_eq!(store.receiving().unwrap(), []);
    storage.crash(Crash::Power);
    assert_eq!(open(&storage).receiving().unwrap(), []);
}

#[test]
fn wrong_chunks_are_not_written() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    let storage = SimFilesStorage::new(6);
    let store = open(&storage);
    let manifest = sender.manifest_bytes(sent.id).unwrap();
    let other = store.receive(GroupId(8), manifest.clone(), Box::new(unpaced));
    assert!(matches!(other, Err(SnapshotError::OtherGroup { .. })));
    let mut receiving = store
        .receive(GROUP, manifest.clone(), Box::new(unpaced))
        .unwrap();
    let twice = store.receive(GROUP, manifest, Box::new(unpaced));
    assert!(matches!(twice, Err(SnapshotError::Busy { .. })));
    let good = sender.read_chunk(sent.id, 1, 0).unwrap();
    let mut bad = good.to_vec();
    bad[5] ^= 1;
    for (bytes, length_fits) in [(&bad[..], true), (&good[1..], false), (&[], false)] {
        let refused = receiving.put(1, 0, bytes);
        let Err(SnapshotError::WrongChunk {
            file: 1,
            chunk: 0,
            why,
        }) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(why == Damage::Checksum, length_fits);
    }
    for (file, chunk) in [(0, 0), (1, 1), (3, 0), (u32::MAX, u32::MAX)] {
        let refused = receiving.put(file, chunk, &good);
        assert!(matches!(refused, Err(SnapshotError::NoSuchChunk { .. })));
        let refused = sender.read_chunk(sent.id, file, chunk);
        assert!(matches!(refused, Err(SnapshotError::NoSuchChunk { .. })));
    }
    assert_eq!(storage.contents("receiving-g7", "small"), Some(Vec::new()));
    assert_eq!(receiving.bytes_have(), 0);
    assert_eq!(receiving.bytes_total(), sent.bytes);
    receiving.put(1, 0, &good).unwrap();
    receiving.put(1, 0, &good).unwrap();
    assert_eq!(receiving.bytes_have(), 1000);
    receiving.abandon().unwrap();
    assert!(storage.directories().is_empty());
}

#[test]
fn after_a_crash_only_what_is_missing_is_fetched() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    let manifest = sender.manifest_bytes(sent.id).unwrap();
    for crash in [Crash::Process, Crash::Power] {
        let storage = SimFilesStorage::new(6);
        let store = open(&storage);
        let mut receiving = store
            .receive(GROUP, manifest.clone(), Box::new(unpaced))
            .unwrap();
        for (file, chunk) in [(2, 2), (1, 0)] {
            let bytes = sender.read_chunk(sent.id, file, chunk).unwrap();
            receiving.put(file, chunk, &bytes).unwrap();
        }
        storage.crash(crash);
        drop(receiving);
        let store = open(&storage);
        let mut receiving = store
            .receive(GROUP, manifest.clone(), Box::new(unpaced))
            .unwrap();
        let missing: Vec<(u32, u32)> = receiving.missing().collect();
        if crash == Crash::Process {
            assert_eq!(missing, [(2, 0), (2, 1)]);
            assert_eq!(receiving.bytes_have(), 1077);
        }
        assert!(missing.contains(&(2, 0)) && missing.contains(&(2, 1)));
        fetch(&sender, sent.id, &mut receiving).unwrap();
        receiving.finish().unwrap();
        check_contents(&store, sent.id, &contents(2));
    }
}

#[test]
fn another_sender_leaves_the_chunks_that_both_have() {
    let senders = SimFilesStorage::new(5);
    let senders = open(&senders);
    let first = contents(2);
    let mut second = first.clone();
    second[0] = ("fresh", noise(9, 10));
    // Shorter, and with another chunk at the beginning.
    second[2].1.truncate(2 * CHUNK_BYTES);
    second[2].1[0] ^= 1;
    let first_id = write(&senders, 200, &first).unwrap().id;
    let second_id = write(&senders, 300, &second).unwrap().id;
    let storage = SimFilesStorage::new(6);
    let store = open(&storage);
    let manifest = senders.manifest_bytes(first_id).unwrap();
    let mut receiving = store.receive(GROUP, manifest, Box::new(unpaced)).unwrap();
    fetch(&senders, first_id, &mut receiving).unwrap();
    drop(receiving);
    let manifest = senders.manifest_bytes(second_id).unwrap();
    let mut receiving = store.receive(GROUP, manifest, Box::new(unpaced)).unwrap();
    assert_eq!(receiving.id(), second_id);
    assert_eq!(receiving.missing().collect::<Vec<_>>(), [(0, 0), (2, 0)]);
    fetch(&senders, second_id, &mut receiving).unwrap();
    receiving.finish().unwrap();
    drop(receiving);
    check_contents(&store, second_id, &second);
    assert_eq!(listed(&store), [300]);
}

#[test]
fn whoever_stops_receiving_goes_on_later() {
    let sender = SimFilesStorage::new(5);
    let sender = open(&sender);
    let sent = write(&sender, 200, &contents(2)).unwrap();
    let manifest = sender.manifest_bytes(sent.id).unwrap();
    let storage = SimFilesStorage::new(6);
    let store = open(&storage);
    let stop = |_: usize| ControlFlow::Break(());
    let mut receiving = store
        .receive(GROUP, manifest.clone(), Box::new(stop))
        .unwrap();
    fetch(&sender, sent.id, &mut receiving).unwrap();
    let stopped = receiving.finish();
    assert!(matches!(stopped, Err(SnapshotError::Cancelled)));
    drop(receiving);
    let stopped = store.receive(GROUP, manifest.clone(), Box::new(stop));
    assert!(matches!(stopped, Err(SnapshotError::Cancelled)));
    let mut receiving = store.receive(GROUP, manifest, Box::new(unpaced)).unwrap();
    assert_eq!(receiving.chunks_missing(), 0);
    receiving.finish().unwrap();
    assert_eq!(listed(&store), [200]);
}
