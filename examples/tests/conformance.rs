//! The redb machine in the simulator's conformance suite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::hash::{DefaultHasher, Hasher};

use logdrive_examples::{Command, RedbKv};
use logdrive_sim::{MachineModel, conformance, run_seeds};

fn model() -> MachineModel<RedbKv> {
    let dir = tempfile::tempdir().unwrap();
    MachineModel::new(
        move |node, group| RedbKv::new(dir.path().join(format!("{node}-{group}"))),
        |request, random| {
            let key = format!("key {}", random.u8(0..24));
            let key = key.as_bytes();
            let mut value = request.id.to_le_bytes().to_vec();
            value.resize(value.len() + request.bytes, 7);
            match random.u8(0..10) {
                0 => Command::Get { key },
                1 | 2 => Command::Delete { key },
                3 => Command::CompareAndSwap {
                    key,
                    expected: None,
                    new: &value,
                },
                _ => Command::Put { key, value: &value },
            }
            .to_bytes()
        },
        |reader| {
            let mut hash = DefaultHasher::new();
            let seen = reader.for_each(|key, value| {
                for part in [key, value] {
                    hash.write_usize(part.len());
                    hash.write(part);
                }
                Ok(())
            });
            seen.unwrap();
            hash.finish()
        },
    )
}

#[test]
fn it_conforms() {
    conformance::assert_conforms(|| model().with_equal_snapshots());
}

/// Clusters whose nodes crash, fall behind and fetch snapshots. The process does not, so a database is closed in order.
#[test]
fn it_survives_what_clusters_go_through() {
    let sum = run_seeds(1..=8, model).unwrap();
    assert!(sum.acked > 8 * 100, "{}", sum.acked);
    assert!(sum.crashes > 8, "{}", sum.crashes);
}
