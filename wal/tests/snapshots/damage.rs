//! What rots, and what somebody changes.

use std::io::Read;

use logdrive_raft::Index;
use logdrive_raft::wire::DecodeError;
use logdrive_sim::files::{SimFiles, SimFilesStorage};
use logdrive_wal::snapshots::*;
use xxhash_rust::xxh3::xxh3_128;

use crate::{GROUP, check_contents, contents, listed, open, with_one, write};

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
fn a_snapshot_without_a_manifest_or_of_a_later_version_is_a_finding() {
    let storage = with_one(1);
    let mut files = storage.files();
    let directory = storage.directories().remove(0);
    let mut later = storage.contents(&directory, "manifest").unwrap();
    later.truncate(later.len() - 16);
    later[8] = 2;
    later.extend(xxh3_128(&later).to_le_bytes());
    let id = Manifest::id_of(&later);
    let future = format!("g7-00000000000000000200-{id}");
    files.create_directory(&future).unwrap();
    files.create_file(&future, "manifest").unwrap();
    files.write_at(&future, "manifest", 0, &later).unwrap();
    files.remove_file(&directory, "manifest").unwrap();
    let store = open(&storage);
    let list = store.list(GROUP).unwrap();
    assert!(list.snapshots.is_empty() && store.newest(GROUP).unwrap().is_none());
    let why = list.findings.into_iter().map(|finding| match finding.why {
        SnapshotError::Damaged { why, .. } => why,
        other => panic!("{other:?}"),
    });
    let why: Vec<Damage> = why.collect();
    let version = |why: &Damage| matches!(why, Damage::Manifest(DecodeError::Version { .. }));
    assert!(version(&why[0]), "{why:?}");
    assert_eq!(why[1..], [Damage::Missing]);
    assert!(store.retire(GROUP, &[]).unwrap().is_empty());
    assert_eq!(storage.directories().len(), 2);
}
