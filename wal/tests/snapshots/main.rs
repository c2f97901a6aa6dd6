//! Snapshots on disk: whole or not there, whatever fails and whenever the power does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Read;
use std::ops::ControlFlow;

use logdrive_raft::{
    Anchor, Chain, ClusterId, GroupId, Incarnation, Index, LogPosition, NodeId, Replica,
    SnapshotId, Term,
};
use logdrive_sim::disk::Crash;
use logdrive_sim::files::{SimFiles, SimFilesStorage};
use logdrive_wal::snapshots::*;

mod crash;
mod damage;
mod faults;
mod manifest;
mod receive;

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
    let files: Box<dyn Files> = Box::new(DirectoryFiles::open(&path).unwrap());
    let store = SnapshotStore::open(files).unwrap_or_else(|error| panic!("{error}"));
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
