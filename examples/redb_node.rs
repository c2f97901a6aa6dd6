//! One node with a database of its own: it writes, takes a snapshot, starts again and reads.
//!
//! ```sh
//! cargo run -p logdrive-examples --example redb_node            # in a directory that is removed afterwards
//! cargo run -p logdrive-examples --example redb_node -- DIR     # in one that stays: run it twice
//! ```
//!
//! The log lies in `DIR/node/wal-0`, snapshots in `DIR/node/snapshots`, the database in `DIR/machine/kv.redb`.
//! Remove any one of the last two and run it again: nothing is missing, for the log is cut only below what the
//! database said is durable, and a snapshot takes the place of a database that is gone.
//!
//! Three nodes differ from one by `id`, `members`, `listen_peer` and `tls`: `examples/tests/cluster/mod.rs`.

use std::error::Error;
use std::path::Path;

use logdrive::{Node, wait};
use logdrive_examples::{Command, RedbKv, Reply};

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        Some(dir) => run(Path::new(&dir)),
        None => run(tempfile::tempdir()?.path()),
    }
}

/// All of it, in `dir`.
pub(crate) fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let node = start(dir)?;
    println!(
        "started: the database is at {}, {} keys",
        node.reader().position()?,
        node.reader().count()?
    );
    for number in 0..100 {
        let (key, value) = (format!("key {number:02}"), format!("value {number}"));
        let put = Command::Put {
            key: key.as_bytes(),
            value: value.as_bytes(),
        };
        let applied = wait(node.propose(put.to_bytes()))?;
        assert_eq!(applied.output, Reply::Done);
    }
    // Through the log, so it sees every write that was answered before it was asked.
    let swap = Command::CompareAndSwap {
        key: b"key 07",
        expected: Some(b"value 7"),
        new: b"swapped",
    };
    let swapped = wait(node.propose(swap.to_bytes()))?;
    println!("wrote 101 times, up to entry {}", swapped.index);

    let group = node.groups().next().ok_or("the node has no group")?;
    let covered = wait(group.snapshot_now())?;
    println!("took a snapshot of everything up to entry {covered}");
    let put = Command::Put {
        key: b"key 08",
        value: b"after the snapshot",
    };
    wait(node.propose(put.to_bytes()))?;
    drop(node);

    let node = start(dir)?;
    println!(
        "started again: the database is at {}",
        node.reader().position()?
    );
    // From the database of this node, which may be behind the leader's.
    for key in ["key 07", "key 08", "key 99"] {
        let value = node.reader().get(key.as_bytes())?;
        let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
        println!("{key}: {}", value.as_deref().unwrap_or("nothing"));
    }
    // And through the log.
    let get = Command::Get { key: b"key 08" };
    let got = wait(node.propose(get.to_bytes()))?;
    assert_eq!(
        got.output,
        Reply::Value(Some(b"after the snapshot".to_vec()))
    );
    Ok(())
}

fn start(dir: &Path) -> Result<Node<RedbKv>, Box<dyn Error>> {
    let machine = dir.join("machine");
    let node = Node::builder(dir.join("node"), move |_group| RedbKv::new(&machine)).start()?;
    wait(node.leader_known());
    Ok(node)
}
