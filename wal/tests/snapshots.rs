//! Snapshots on disk: whole or not there, whatever fails and whenever the power does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::ControlFlow;

use bytes::Bytes;
use logdrive_raft::wire::{Decode, DecodeError, Encode};
use logdrive_raft::{
    Anchor, Chain, ClusterId, GroupId, Incarnation, Index, LogPosition, NodeId, Replica,
    SnapshotId, Term,
};
use logdrive_sim::disk::Crash;
use logdrive_sim::files::{FilesFault, SimFiles, SimFilesStorage};
use logdrive_wal::snapshots::*;
use proptest::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

const GROUP: GroupId = GroupId(7);

/// The files of a snapshot, in order.
type Contents = Vec<(&'static str, Vec<u8>)>;

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        cluster: ClusterId(1),
        node: Replica {
            id: NodeId(2),
            incarnation: Incarnation(3),
        },
        group: GROUP,
        anchor: Anchor {
            at: LogPosition {
                index: Index(index),
                term: Term(4),
                chain: Chain(u128::from(index)),
            },
            term_starts: vec![(Term(4), Index(1))],
            ..Anchor::default()
        },
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Three files: none, one and three chunks.
fn contents(seed: u64) -> Contents {
    vec![
        ("empty", Vec::new()),
        ("small", noise(seed, 1000)),
        ("large", noise(seed + 1, 2 * CHUNK_BYTES + 77)),
    ]
}

fn write<F: Files>(
    store: &SnapshotStore<F>,
    index: u64,
    contents: &Contents,
) -> Result<SnapshotSummary, SnapshotError> {
    let mut writer = store.begin(meta(index), Box::new(unpaced))?;
    for (name, bytes) in contents {
        writer.begin_file(name)?;
        // In pieces that fit no chunk.
        for piece in bytes.chunks(100_000) {
            writer.write(piece)?;
        }
    }
    writer.finish()
}

fn receive<F: Files>(
    from: &SnapshotStore<SimFiles>,
    id: SnapshotId,
    to: &SnapshotStore<F>,
) -> Result<SnapshotSummary, SnapshotError> {
    let manifest = from.manifest_bytes(id).unwrap();
    let mut receiving = to.receive(GROUP, manifest, Box::new(unpaced))?;
    fetch(from, id, &mut receiving)?;
    receiving.finish()
}

/// Puts what is missing, the last one first, and says how many chunks that were.
fn fetch<F: Files>(
    from: &SnapshotStore<SimFiles>,
    id: SnapshotId,
    receiving: &mut Receiving<F>,
) -> Result<usize, SnapshotError> {
    let missing: Vec<(u32, u32)> = receiving.missing().collect();
    for (file, chunk) in missing.iter().rev() {
        let bytes = from.read_chunk(id, *file, *chunk).unwrap();
        receiving.put(*file, *chunk, &bytes)?;
    }
    Ok(missing.len())
}

#[track_caller]
fn check_contents<F: Files>(store: &SnapshotStore<F>, id: SnapshotId, expected: &Contents) {
    store.verify(id, &mut unpaced).unwrap();
    let reader = store.reader(id).unwrap();
    let names: Vec<&str> = reader.files().iter().map(|file| &file.name[..]).collect();
    let expected_names: Vec<&str> = expected.iter().map(|file| file.0).collect();
    assert_eq!(names, expected_names);
    for (number, (name, bytes)) in (0..).zip(expected) {
        let mut read = Vec::new();
        reader.open(name).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == *bytes, "{name}");
        let mut file = reader.open(name).unwrap();
        for (chunk, expected) in (0..).zip(bytes.chunks(CHUNK_BYTES)) {
            assert_eq!(file.next_chunk().unwrap(), Some(expected));
            assert_eq!(store.read_chunk(id, number, chunk).unwrap(), expected);
        }
        assert_eq!(file.next_chunk().unwrap(), None);
    }
    assert!(reader.open("other").is_none());
}

/// The indexes of what is listed, each of which must verify.
#[track_caller]
fn listed<F: Files>(store: &SnapshotStore<F>) -> Vec<u64> {
    let list = store.list(GROUP).unwrap();
    assert!(list.findings.is_empty(), "{:?}", list.findings);
    for snapshot in &list.snapshots {
        store.verify(snapshot.id, &mut unpaced).unwrap();
    }
    let newest = store.newest(GROUP).unwrap();
    assert_eq!(newest.as_ref(), list.snapshots.first());
    let indexes = list.snapshots.iter();
    indexes.map(|snapshot| snapshot.at.index.0).collect()
}

fn open(storage: &SimFilesStorage) -> SnapshotStore<SimFiles> {
    SnapshotStore::open(storage.files()).unwrap()
}

/// A store with one snapshot, at 100.
fn with_one(seed: u64) -> SimFilesStorage {
    let storage = SimFilesStorage::new(seed);
    write(&open(&storage), 100, &contents(1)).unwrap();
    storage
}

fn writes_reads_and_receives<F: Files>(store: &SnapshotStore<F>) {
    let other = SimFilesStorage::new(1);
    let other = open(&other);
    let written = write(store, 100, &contents(1)).unwrap();
    assert_eq!((written.group, written.at.index), (GROUP, Index(100)));
    assert_eq!((written.files, written.chunks), (3, 4));
    assert_eq!(written.bytes, 1000 + 2 * CHUNK_BYTES as u64 + 77);
    check_contents(store, written.id, &contents(1));
    let sent = write(&other, 200, &contents(2)).unwrap();
    let received = receive(&other, sent.id, store).unwrap();
    assert_eq!(received, sent);
    check_contents(store, sent.id, &contents(2));
    // One without files is a snapshot too.
    let none = write(&other, 300, &Vec::new()).unwrap();
    assert_eq!((none.files, none.bytes), (0, 0));
    receive(&other, none.id, store).unwrap();
    check_contents(store, none.id, &Vec::new());
    assert_eq!(listed(store), [300, 200, 100]);
    assert_eq!(store.groups().unwrap(), [GROUP]);
    assert_eq!(store.newest(GroupId(8)).unwrap(), None);
    let removed = store.retire(GROUP, &[written.id]).unwrap();
    assert_eq!(removed, [sent.id]);
    assert_eq!(listed(store), [300, 100]);
    let gone = store.reader(sent.id);
    assert!(matches!(gone, Err(SnapshotError::Unknown(id)) if id == sent.id));
}

#[test]
fn what_was_written_is_read_on_real_files() {
    let root = tempfile::tempdir_in(".").unwrap();
    let path = root.path().join("snapshots");
    let store = SnapshotStore::open(DirectoryFiles::open(&path).unwrap()).unwrap();
    assert!(store.foreign().is_empty());
    writes_reads_and_receives(&store);
    drop(store);
    // What a process left unfinished goes, what is being received stays, and the rest is none of ours.
    for name in [
        "writing-g7",
        "removing-g1-00000000000000000001-0",
        "lost+found",
        "receiving-g9",
    ] {
        std::fs::create_dir(path.join(name)).unwrap();
    }
    std::fs::write(path.join("writing-g7/state"), "half").unwrap();
    let store = SnapshotStore::open(DirectoryFiles::open(&path).unwrap()).unwrap();
    assert_eq!(store.foreign().len(), 2);
    assert!(store.foreign().contains(&path.join("lost+found")));
    assert!(!path.join("writing-g7").exists());
    assert_eq!(store.receiving().unwrap(), [GroupId(9)]);
    assert_eq!(listed(&store), [300, 100]);
    if cfg!(unix) {
        assert!(store.free_bytes().unwrap() > 0);
    }
}

#[test]
fn what_was_written_is_read_on_simulated_files() {
    let storage = SimFilesStorage::new(0);
    writes_reads_and_receives(&open(&storage));
    storage.crash(Crash::Power);
    assert_eq!(listed(&open(&storage)), [300, 100]);
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere_and_nobody_else_reads() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let root = tempfile::tempdir_in(".").unwrap();
    let mut files = DirectoryFiles::open(root.path()).unwrap();
    files.create_directory("a").unwrap();
    files.create_file("a", "state").unwrap();
    files.write_at("a", "state", 0, b"bytes").unwrap();
    let mode = |name: &str| std::fs::metadata(root.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("a"), mode("a/state")), (0o700, 0o600));
    symlink(root.path().join("a"), root.path().join("b")).unwrap();
    symlink(root.path().join("a/state"), root.path().join("a/link")).unwrap();
    assert_eq!(files.directories().unwrap(), ["a"]);
    assert_eq!(files.files("a").unwrap().len(), 1);
    let mut byte = [0];
    assert!(files.read_at("a", "link", 0, &mut byte).is_err());
    assert!(files.read_at("b", "state", 0, &mut byte).is_err());
    assert!(files.remove_directory("b").is_err());
    assert!(files.rename_directory("a", "b").is_err());
    assert_eq!(files.read_at("a", "state", 4, &mut [0; 9]).unwrap(), 1);
    files.remove_directory("a").unwrap();
    assert!(files.read_at("a", "state", 0, &mut byte).is_err());
}

fn names_are_checked(mut files: impl Files) {
    files.create_directory("a").unwrap();
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for name in [
        "", ".", "..", ".a", "a/b", "../a", "a\\b", "A", "ä", "a b", "a\0", &long,
    ] {
        assert!(check_name(name).is_err(), "{name}");
        if !name.is_empty() {
            assert!(files.create_directory(name).is_err(), "{name}");
            assert!(files.remove_directory(name).is_err(), "{name}");
            assert!(files.rename_directory("a", name).is_err(), "{name}");
        }
        assert!(files.create_file("a", name).is_err(), "{name}");
        assert!(files.write_at("a", name, 0, b"x").is_err(), "{name}");
    }
    for name in ["a", "0", "a.b", "-", "_", &long[1..]] {
        assert!(check_name(name).is_ok(), "{name}");
        files.create_file("a", name).unwrap();
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let root = tempfile::tempdir_in(".").unwrap();
    names_are_checked(DirectoryFiles::open(root.path()).unwrap());
    names_are_checked(SimFilesStorage::new(0).files());
    let storage = SimFilesStorage::new(0);
    let store = open(&storage);
    for name in ["../state", "a/b", "manifest", ""] {
        let mut writer = store.begin(meta(1), Box::new(unpaced)).unwrap();
        writer.begin_file("a").unwrap();
        let refused = writer.begin_file(name);
        let refused_well = match name {
            "manifest" => matches!(refused, Err(SnapshotError::NameTaken(_))),
            _ => matches!(refused, Err(SnapshotError::Name(_))),
        };
        assert!(refused_well, "{name}: {refused:?}");
        assert!(matches!(writer.write(b"x"), Err(SnapshotError::Ended)));
        assert!(matches!(writer.finish(), Err(SnapshotError::Ended)));
        assert!(storage.directories().is_empty());
    }
    let mut writer = store.begin(meta(1), Box::new(unpaced)).unwrap();
    assert!(matches!(writer.write(b"x"), Err(SnapshotError::NoFile)));
}

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
fn rot_of_each_chunk_is_found_and_named() {
    let storage = with_one(1);
    let store = open(&storage);
    let id = store.newest(GROUP).unwrap().unwrap().id;
    let directory = storage.directories().remove(0);
    for (file, (name, bytes)) in (0..).zip(contents(1)) {
        for (chunk, contents) in (0..).zip(bytes.chunks(CHUNK_BYTES)) {
            let at = u64::from(chunk) * CHUNK_BYTES as u64 + contents.len() as u64 / 2;
            assert!(storage.flip(&directory, name, at, 0x10));
            let is_named = |error: &SnapshotError| match error {
                SnapshotError::Damaged {
                    path,
                    chunk: found,
                    why,
                } => path.ends_with(name) && *found == Some(chunk) && *why == Damage::Checksum,
                _ => false,
            };
            assert!(is_named(&store.verify(id, &mut unpaced).unwrap_err()));
            assert!(is_named(&store.read_chunk(id, file, chunk).unwrap_err()));
            let reader = store.reader(id).unwrap();
            let mut reading = reader.open(name).unwrap();
            for _ in 0..chunk {
                reading.next_chunk().unwrap();
            }
            assert!(is_named(&reading.next_chunk().unwrap_err()));
            let mut read = Vec::new();
            let failed = reader
                .open(name)
                .unwrap()
                .read_to_end(&mut read)
                .unwrap_err();
            assert!(is_named(failed.get_ref().unwrap().downcast_ref().unwrap()));
            assert!(
                read == bytes[..chunk as usize * CHUNK_BYTES],
                "nothing of a bad chunk"
            );
            assert!(storage.flip(&directory, name, at, 0x10));
        }
    }
    check_contents(&store, id, &contents(1));
}

#[test]
fn files_that_are_missing_longer_or_more_are_named() {
    let files_of = |storage: &SimFilesStorage| (storage.files(), storage.directories().remove(0));
    let wrong = |damage: &dyn Fn(&mut SimFiles, &str)| {
        let storage = with_one(1);
        let (mut files, directory) = files_of(&storage);
        damage(&mut files, &directory);
        let store = open(&storage);
        let id = store.newest(GROUP).unwrap().unwrap().id;
        match store.verify(id, &mut unpaced).unwrap_err() {
            SnapshotError::Damaged { path, chunk, why } => (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                chunk,
                why,
            ),
            other => panic!("{other:?}"),
        }
    };
    let (name, _, why) = wrong(&|files, directory| files.remove_file(directory, "small").unwrap());
    assert_eq!((&name[..], why), ("small", Damage::Missing));
    let (name, _, why) = wrong(&|files, directory| files.create_file(directory, "more").unwrap());
    assert_eq!((&name[..], why), ("more", Damage::Unlisted));
    let longer = wrong(&|files, directory| files.write_at(directory, "empty", 0, b"x").unwrap());
    let length = |expected, found| Damage::Length { expected, found };
    assert_eq!(longer, ("empty".to_owned(), None, length(0, 1)));
    let shorter = wrong(&|files, directory| {
        let bytes = CHUNK_BYTES as u64 + 9;
        files.cut_file(directory, "large", bytes).unwrap();
    });
    assert_eq!(
        shorter,
        ("large".to_owned(), Some(1), length(CHUNK_BYTES as u64, 9))
    );
}

#[test]
fn a_manifest_that_cannot_be_read_is_a_finding_and_stays() {
    let storage = with_one(1);
    let store = open(&storage);
    write(&store, 200, &contents(2)).unwrap();
    write(&store, 300, &contents(3)).unwrap();
    let newest = storage.directories().pop().unwrap();
    assert!(storage.flip(&newest, "manifest", 30, 1));
    let list = store.list(GROUP).unwrap();
    assert_eq!((list.snapshots.len(), list.findings.len()), (2, 1));
    let finding = &list.findings[0];
    assert!(finding.path.ends_with(format!("{newest}/manifest")));
    let checksum = Damage::Checksum;
    assert!(matches!(&finding.why, SnapshotError::Damaged { why, .. } if *why == checksum));
    assert_eq!(store.newest(GROUP).unwrap().unwrap().at.index, Index(200));
    // It does not count as the newest, so the one that does stays.
    assert_eq!(store.retire(GROUP, &[]).unwrap().len(), 1);
    assert_eq!(storage.directories().len(), 2);
    assert!(store.verify(finding.id, &mut unpaced).is_err());
    // Written or received once more it replaces the bad one.
    write(&store, 300, &contents(3)).unwrap();
    assert_eq!(listed(&store), [300, 200]);
}

#[test]
fn a_directory_that_was_renamed_by_somebody_is_a_finding() {
    let storage = with_one(1);
    let name = storage.directories().remove(0);
    storage
        .files()
        .rename_directory(&name, &name.replacen("00100", "00101", 1))
        .unwrap();
    let list = open(&storage).list(GROUP).unwrap();
    let why = &list.findings[0].why;
    assert!(matches!(
        why,
        SnapshotError::Damaged {
            why: Damage::Misplaced,
            ..
        }
    ));
}

#[test]
fn the_same_snapshot_once_more_keeps_the_first() {
    let storage = with_one(1);
    let store = open(&storage);
    let before = store.newest(GROUP).unwrap().unwrap();
    assert_eq!(write(&store, 100, &contents(1)).unwrap(), before);
    let directory = storage.directories().remove(0);
    assert!(storage.flip(&directory, "large", 5, 1));
    assert!(store.verify(before.id, &mut unpaced).is_err());
    assert_eq!(write(&store, 100, &contents(1)).unwrap(), before);
    assert_eq!(listed(&store), [100]);
    assert_eq!(storage.directories().len(), 1);
}

#[test]
fn whoever_sets_the_pace_can_stop_it() {
    let storage = with_one(1);
    let store = open(&storage);
    let id = store.newest(GROUP).unwrap().unwrap().id;
    let mut bytes = 0;
    let mut pace = |chunk: usize| {
        bytes += chunk;
        ControlFlow::Continue(())
    };
    store.verify(id, &mut pace).unwrap();
    assert_eq!(bytes, 1000 + 2 * CHUNK_BYTES + 77);
    for stop_after in 0..8 {
        let mut asked = 0;
        let pace = move |_: usize| {
            asked += 1;
            match asked > stop_after {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let mut writer = store.begin(meta(200), Box::new(pace)).unwrap();
        let mut all = || -> Result<(), SnapshotError> {
            for (name, bytes) in contents(2) {
                writer.begin_file(name)?;
                writer.write(&bytes)?;
            }
            Ok(())
        };
        let failed = all().and_then(|()| writer.finish().map(drop));
        assert!(
            matches!(failed, Err(SnapshotError::Cancelled)),
            "{stop_after}"
        );
        assert_eq!(storage.directories().len(), 1);
    }
    // Dropping it is enough, too.
    let writer = store.begin(meta(200), Box::new(unpaced)).unwrap();
    let busy = store.begin(meta(201), Box::new(unpaced));
    assert!(matches!(busy, Err(SnapshotError::Busy { .. })));
    assert_eq!(storage.directories().len(), 2);
    drop(writer);
    assert_eq!(storage.directories().len(), 1);
}

#[test]
fn more_files_than_a_manifest_lists_are_refused() {
    let storage = SimFilesStorage::new(1);
    let store = open(&storage);
    let mut writer = store.begin(meta(1), Box::new(unpaced)).unwrap();
    for number in 0..FILES_MAX {
        writer.begin_file(&format!("file-{number}")).unwrap();
    }
    let refused = writer.begin_file("one-more");
    assert!(matches!(refused, Err(SnapshotError::TooLarge { .. })));
    let mut wrong = meta(1);
    wrong.anchor.term_starts = vec![(Term(5), Index(1))];
    drop(writer);
    let refused = store.begin(wrong, Box::new(unpaced));
    assert!(matches!(refused, Err(SnapshotError::Manifest(_))));
    assert!(storage.directories().is_empty());
}

fn manifest() -> Manifest {
    let files = contents(1).into_iter().map(|(name, bytes)| ManifestFile {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        hash: xxh3_128(&bytes),
        chunks: bytes.chunks(CHUNK_BYTES).map(xxh3_64).collect(),
    });
    let meta = meta(100);
    Manifest {
        compatible: 0x80,
        cluster: meta.cluster,
        node: meta.node,
        group: meta.group,
        anchor: meta.anchor,
        files: files.collect(),
    }
}

#[test]
fn a_manifest_is_read_as_it_was_written_or_not_at_all() {
    let bytes = manifest().to_bytes();
    assert_eq!(Manifest::from_bytes(&bytes), Ok(manifest()));
    for cut in 0..bytes.len() {
        assert!(Manifest::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        for mask in [1, 0x80, 0xff] {
            let mut bad = bytes.to_vec();
            bad[at] ^= mask;
            assert!(Manifest::from_bytes(&bad).is_err(), "byte {at}");
        }
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Manifest::from_bytes(&longer).is_err());
}

/// With the checksum that belongs to it.
fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &xxh3_128(body).to_le_bytes()].concat()
}

#[test]
fn what_a_sealed_manifest_says_is_checked() {
    let bytes = manifest().to_bytes();
    let body = &bytes[..bytes.len() - 16];
    assert_eq!(sealed(body), bytes);
    let with = |at: usize, value: u8| {
        let mut body = body.to_vec();
        body[at] = value;
        Manifest::from_bytes(&sealed(&body))
    };
    assert!(matches!(
        with(8, 2),
        Err(DecodeError::Version { found: 2, .. })
    ));
    assert!(matches!(with(10, 1), Err(DecodeError::Incompatible { .. })));
    assert!(matches!(with(15, 1), Err(DecodeError::Incompatible { .. })));
    assert!(matches!(
        with(22, 8),
        Err(DecodeError::Invalid {
            what: "chunk size",
            ..
        })
    ));
    assert!(with(16, 1).is_ok(), "what may be ignored");
    // Whatever a byte says, it is refused or comes back as the same bytes.
    for at in 0..body.len() {
        for value in [0, 1, 2, 0x7f, 0xff] {
            if let Ok(read) = with(at, value) {
                let mut expected = body.to_vec();
                expected[at] = value;
                assert_eq!(read.to_bytes(), sealed(&expected));
            }
        }
    }
    let wrong = |change: &dyn Fn(&mut Manifest)| {
        let mut wrong = manifest();
        change(&mut wrong);
        Manifest::from_bytes(&wrong.to_bytes()).unwrap_err()
    };
    for name in ["", "../a", "a/b", "manifest", ".a", "A"] {
        let error = wrong(&|manifest| manifest.files[1].name = name.to_owned());
        assert!(matches!(error, DecodeError::Invalid { .. }), "{name}");
    }
    let error = wrong(&|manifest| manifest.files[1].name = "x".repeat(NAME_BYTES_MAX + 1));
    assert!(matches!(error, DecodeError::TooLarge { .. }));
    let error = wrong(&|manifest| manifest.files[1].name = "large".to_owned());
    assert!(matches!(error, DecodeError::Invalid { .. }));
    for bytes in [
        0,
        2 * CHUNK_BYTES as u64,
        3 * CHUNK_BYTES as u64 + 1,
        u64::MAX,
    ] {
        let error = wrong(&|manifest| manifest.files[2].bytes = bytes);
        assert!(matches!(error, DecodeError::Invalid { .. }), "{bytes}");
    }
    let error = wrong(&|manifest| {
        let file = manifest.files[0].clone();
        let files = (0..=FILES_MAX).map(|number| ManifestFile {
            name: number.to_string(),
            ..file.clone()
        });
        manifest.files = files.collect();
    });
    assert!(matches!(error, DecodeError::TooLarge { .. }));
}

proptest! {
    #[test]
    fn noise_is_no_manifest_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
        let bytes = sealed(&bytes);
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_manifest_with_something_else_in_it_is_refused_or_canonical(
        at in 0_usize..500,
        bytes in proptest::collection::vec(any::<u8>(), 1..9),
    ) {
        let whole = manifest().to_bytes();
        let mut body = whole[..whole.len() - 16].to_vec();
        let at = at % body.len();
        let end = (at + bytes.len()).min(body.len());
        body[at..end].copy_from_slice(&bytes[..end - at]);
        let body = sealed(&body);
        if let Ok(read) = Manifest::from_bytes(&body) {
            prop_assert_eq!(read.to_bytes(), Bytes::from(body));
        }
    }
}

/// The fields of the drawing are where they are drawn, and hold what they should.
#[test]
fn the_drawing_of_a_manifest_says_what_is_written() {
    let drawing = include_str!("../SNAPSHOTS.md");
    let (_, drawing) = drawing.split_once("**Manifest**").unwrap();
    let (_, drawing) = drawing.split_once("```text\n").unwrap();
    let (drawing, _) = drawing.split_once("```").unwrap();
    let bytes = manifest().to_bytes();
    let mut read = BTreeMap::new();
    let mut end = 0;
    for line in drawing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let offset: usize = words[0].parse().unwrap();
        assert_eq!(offset, end, "{}", words[1]);
        let bits = words[2]
            .strip_prefix('u')
            .map(|bits| bits.parse::<usize>().unwrap());
        let length = bits.map_or(0, |bits| bits / 8);
        let mut word = [0; 16];
        word[..length].copy_from_slice(&bytes[offset..offset + length]);
        read.insert(words[1], u128::from_le_bytes(word));
        end = offset + length;
    }
    let anchor = manifest().anchor.to_bytes();
    assert_eq!(bytes[end..end + anchor.len()], anchor);
    let magic = u128::from(u64::from_le_bytes(*b"LDsnap\0\0"));
    let expected = BTreeMap::from([
        ("magic", magic),
        ("version", u128::from(SNAPSHOT_VERSION)),
        ("flags", 0),
        ("incompatible", 0),
        ("compatible", 0x80),
        ("chunk_bytes", CHUNK_BYTES as u128),
        ("cluster", 1),
        ("node", 2),
        ("incarnation", 3),
        ("group", u128::from(GROUP.0)),
        ("anchor", 0),
    ]);
    assert_eq!(read, expected);
}

/// A manifest of these bytes has this name, in every version to come.
#[test]
fn a_manifest_has_these_bytes() {
    let id = Manifest::id_of(&manifest().to_bytes());
    assert_eq!(id.to_string(), "138832ca5a0181a4ba21f7baef9af917");
}
