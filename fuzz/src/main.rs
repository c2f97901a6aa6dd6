//! Bytes and events that nobody meant, found by libFuzzer.
//!
//! One binary holds all targets: what takes long to build is what they share. `.ci/stages/60-fuzz.sh` runs them
//! all, and says how to run one for longer or to replay what it found:
//!
//! ```sh
//! cd fuzz
//! FUZZ_TARGET=list cargo run --release
//! FUZZ_TARGET=message cargo run --release -- -max_total_time=600 a-directory
//! FUZZ_TARGET=message cargo run --release -- a-file
//! ```
//!
//! With `FUZZ_SEEDS` the inputs that a target begins with are written to that directory first. They are made
//! from golden bytes and from what today's encoders write, so none is kept as a file.
//!
//! `bench/tests/fuzz.rs` fails when a decoder of the workspace is not mentioned here.

#![no_main]
// A target that nothing calls is none, and the scan for decoders reads text.
#![deny(dead_code)]

use std::fs;
use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

mod check;
mod cluster;
mod disk;
mod kv;
mod liar;
mod log;
mod script;
mod wal;
mod wire;

/// Something that takes whatever comes.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    /// What it begins with.
    seeds: fn() -> Vec<Vec<u8>>,
    /// How large its share of the time is.
    weight: u32,
}

const TARGETS: &[Target] = &[
    deep("log_damaged", log::damaged, log::damaged_seeds),
    deep("log_forged", log::forged, log::forged_seeds),
    deep("cluster", cluster::run, cluster::seeds),
    deep("liar", liar::core, liar::seeds),
    target("table", wire::table, wire::table_seeds),
    target("hello", wire::hello, || wire::golden("hello")),
    target("greeting", wire::greeting, wire::greeting_seeds),
    target("message", wire::message, || wire::golden("message")),
    target("requests", wire::requests, || wire::golden("requests")),
    target("responses", wire::responses, || wire::golden("responses")),
    target("identity", wire::identity, wire::identity_seeds),
    target("values", wire::values, wire::values_seeds),
    target("genesis", wire::genesis, wire::genesis_seeds),
    target("anchor", wire::anchor, wire::anchor_seeds),
    target("entry", wire::entry, wire::entry_seeds),
    target("kv_command", kv::command, kv::command_seeds),
    target("kv_output", kv::output, kv::output_seeds),
    target("kv_ledger", kv::ledger, kv::ledger_seeds),
    target("kv_snapshot", kv::snapshot, kv::snapshot_seeds),
    target("slot_header", wal::slot_header, wal::slot_header_seeds),
    target("group_header", wal::group_header, wal::group_header_seeds),
    target("record", wal::record, wal::record_seeds),
    target("record_parts", wal::record_parts, wal::record_parts_seeds),
    target("stamp", wal::stamp, wal::stamp_seeds),
    target("manifest", wal::manifest, wal::manifest_seeds),
    target("log_noise", log::noise, log::noise_seeds),
    target("bootstrap", liar::bootstrap, liar::seeds),
];

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target {
        name,
        run,
        seeds,
        weight: 1,
    }
}

/// One in which a lot happens: fewer runs a second than of a decoder, and more to be found.
const fn deep(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target {
        weight: 4,
        ..target(name, run, seeds)
    }
}

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: choose(),
    |data: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            (target.run)(data);
        }
    }
);

/// Called before libFuzzer reads anything.
fn choose() {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    if wanted == "list" {
        for target in TARGETS {
            println!("{} {}", target.name, target.weight);
        }
        exit(0);
    }
    let Some(target) = TARGETS.iter().find(|target| target.name == wanted) else {
        eprintln!("FUZZ_TARGET={wanted:?} is none of them; FUZZ_TARGET=list names them");
        exit(2);
    };
    if let Some(directory) = std::env::var_os("FUZZ_SEEDS") {
        write_seeds(Path::new(&directory), target);
    }
    let _ = CHOSEN.set(target);
}

fn write_seeds(directory: &Path, target: &Target) {
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let file = directory.join(format!("seed-{number}"));
        if let Err(error) = fs::write(&file, seed) {
            eprintln!("write {}: {error}", file.display());
            exit(2);
        }
    }
}
