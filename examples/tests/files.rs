//! What lies in the machine's directory, and who may have it open.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use logdrive::{Chain, Durable, Index, LogPosition, MemorySnapshot, StateMachine, Term};
use logdrive_examples::RedbKv;

fn snapshot(pairs: u8) -> MemorySnapshot {
    let at = LogPosition {
        index: Index(7),
        term: Term(2),
        chain: Chain(70),
    };
    let mut bytes = b"redbkv\0\x01".to_vec();
    for key in 0..pairs {
        bytes.extend([1, 1, 0, 0, 0, 2, 0, 0, 0, key, b'v', key]);
    }
    bytes.push(0);
    bytes.extend(u64::from(pairs).to_le_bytes());
    let mut snapshot = MemorySnapshot::new(at);
    snapshot.files.insert("pairs".to_owned(), bytes);
    snapshot
}

#[test]
fn a_snapshot_has_these_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = RedbKv::new(dir.path());
    assert_eq!(kv.open().unwrap(), Durable::default());
    let given = snapshot(3);
    kv.install(&mut given.clone()).unwrap();
    let written = MemorySnapshot::of(kv.snapshot().unwrap(), given.position).unwrap();
    assert_eq!(written, given);
    assert_eq!(kv.reader().get(&[2]).unwrap().unwrap(), [b'v', 2]);
    assert_eq!(kv.reader().count().unwrap(), 3);
    assert_eq!(kv.reader().position().unwrap(), given.position);
}

#[test]
fn what_an_install_left_behind_is_removed_and_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (current, new) = (dir.path().join("kv.redb"), dir.path().join("kv.redb.new"));
    let mut kv = RedbKv::new(dir.path());
    kv.open().unwrap();
    kv.install(&mut snapshot(3)).unwrap();
    assert!(!new.exists());
    // One that is cut in the middle.
    let mut half = snapshot(5);
    half.files.get_mut("pairs").unwrap().truncate(30);
    half.position.index = Index(9);
    kv.install(&mut half).unwrap_err();
    assert!(!new.exists());
    assert_eq!(kv.reader().count().unwrap(), 3);
    drop(kv);
    // A crash: a database that was whole and not renamed, and then one that was not even that.
    std::fs::copy(&current, &new).unwrap();
    for _ in 0..2 {
        let mut kv = RedbKv::new(dir.path());
        assert_eq!(kv.open().unwrap().index, Index(7));
        assert_eq!(kv.reader().count().unwrap(), 3);
        drop(kv);
        assert!(!new.exists());
        std::fs::write(&new, b"half a database").unwrap();
    }
}

#[test]
fn a_reader_that_somebody_keeps_does_not_keep_the_database_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = RedbKv::new(dir.path());
    kv.open().unwrap();
    let reader = kv.reader();
    assert!(reader.get(b"key").unwrap().is_none());
    let (mut second, refused) = (RedbKv::new(dir.path()), "already open");
    let error = second.open().unwrap_err();
    assert!(error.what.contains(refused), "{error}");
    drop(kv);
    second.open().unwrap();
    let error = reader.get(b"key").unwrap_err();
    assert_eq!(error.to_string(), "the database is closed");
    // A handle of a snapshot that was taken before an install still shows what it showed.
    let handle = second.snapshot().unwrap();
    second.install(&mut snapshot(3)).unwrap();
    let at = LogPosition::default();
    let written = MemorySnapshot::of(handle, at).unwrap();
    assert_eq!(written.files, snapshot(0).files);
}
