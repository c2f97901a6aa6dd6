//! The first command on a plain machine: paths with spaces, temporary directories in memory, what dead runs
//! left, a second run beside it. It works, and says what it fell back to.
//!
//! In a debug build every run is invalid (exit 12); the reasons tell one from the other.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const SHORT: &str = "--duration|300ms|--warmup|100ms|--rate|200|";

fn command(out: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["run", "--out"]).arg(out);
    let words = arguments.split('|').filter(|word| !word.is_empty());
    command.args(words).stderr(Stdio::piped());
    command
}

fn finish(output: &Output, out: &Path) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 12)), "{code:?}: {told}");
    let text = std::fs::read_to_string(out.join("run.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["result"]["completed_per_s"].as_f64().unwrap() > 10.0);
    report
}

fn mentions(list: &Value, what: &str) -> bool {
    let mut entries = list.as_array().unwrap().iter();
    entries.any(|entry| entry.as_str().unwrap().contains(what))
}

/// A directory in memory, where there is one.
fn memory() -> Option<tempfile::TempDir> {
    let shared = Path::new("/dev/shm");
    let storage = loadgen::machine::Storage::of(shared);
    (shared.is_dir() && storage.is_memory()).then(|| tempfile::tempdir_in(shared).unwrap())
}

#[test]
fn a_temporary_directory_in_memory_is_passed_over_and_named() {
    let Some(memory) = memory() else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let dead = memory.path().join("logdrive-loadgen-dead");
    std::fs::create_dir(&dead).unwrap();
    let mut command = command(out.path(), &format!("{SHORT}--target|inproc:1"));
    let output = command
        .env("TMPDIR", memory.path())
        .current_dir(out.path())
        .output()
        .unwrap();
    let report = finish(&output, out.path());
    let dir = report["env"]["dir"].as_str().unwrap();
    assert!(!dir.starts_with("/dev/shm"), "{dir}");
    assert!(mentions(&report["verdict"]["warnings"], "lies in memory"));
    assert!(!mentions(
        &report["verdict"]["reasons"],
        "nothing was durable"
    ));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("lies in memory"), "{table}");
}

#[test]
fn data_that_is_put_into_memory_makes_a_run_invalid() {
    let Some(memory) = memory() else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let dir = memory.path().join("data");
    let load = format!("{SHORT}--target|inproc:1|--dir|{}", dir.display());
    let output = command(out.path(), &load).output().unwrap();
    let report = finish(&output, out.path());
    assert_eq!(output.status.code(), Some(12));
    assert!(mentions(
        &report["verdict"]["reasons"],
        "nothing was durable"
    ));
}

#[test]
fn two_runs_beside_each_other_work_and_clean_up_after_a_dead_one() {
    let base = tempfile::tempdir().unwrap();
    let places = base.path().join("with space");
    std::fs::create_dir(&places).unwrap();
    // What a run leaves whose process was killed: a directory and a lock that nobody holds.
    let dead = places.join("logdrive-loadgen-dead");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("loadgen.lock"), "").unwrap();
    let load = format!("{SHORT}--target|spawn:3|--verify|--wal-backend|pwrite");
    let start = |name: &str| {
        let out = base.path().join(name);
        let mut command = command(&out, &load);
        let child = command
            .env("TMPDIR", &places)
            .stdout(Stdio::piped())
            .spawn();
        (child.unwrap(), out)
    };
    let runs = [start("one"), start("two")];
    let mut dirs = Vec::new();
    for (child, out) in runs {
        let report = finish(&child.wait_with_output().unwrap(), &out);
        assert_eq!(report["verify"]["lost"], 0, "{:#}", report["verify"]);
        assert_eq!(report["env"]["wal_backend"], "pwrite");
        let dir = report["env"]["dir"].as_str().unwrap().to_owned();
        assert!(dir.contains("/with space/logdrive-loadgen-"), "{dir}");
        dirs.push(dir);
    }
    assert_ne!(dirs[0], dirs[1]);
    let left: Vec<_> = std::fs::read_dir(&places).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn nobody_has_to_read_what_a_run_says() {
    for arguments in ["", "--json|-"] {
        let out = tempfile::tempdir().unwrap();
        let load = format!("{SHORT}--target|inproc:1|{arguments}");
        // Pipes whose readers are gone: the first byte that is written to either fails.
        let closed = || Stdio::from(std::io::pipe().unwrap().1);
        let mut command = command(out.path(), &load);
        let child = command.stdout(closed()).stderr(closed()).spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        finish(&output, out.path());
    }
}
