//! The example, run twice in one directory, and once more after each of its parts was lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "it has a main of its own")]
#[path = "../redb_node.rs"]
mod redb_node;

#[test]
fn it_runs_and_runs_again() {
    let dir = tempfile::tempdir().unwrap();
    redb_node::run(dir.path()).unwrap();
    for lost in ["nothing", "machine", "node/snapshots"] {
        let lost = dir.path().join(lost);
        if lost.exists() {
            std::fs::remove_dir_all(lost).unwrap();
        }
        redb_node::run(dir.path()).unwrap();
    }
}
