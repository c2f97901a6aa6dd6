//! The command line from outside: exit codes and what misuse is told.

use std::process::{Command, Output};

fn loadgen(arguments: &str) -> Output {
    let words = arguments.split('|').filter(|word| !word.is_empty());
    Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(words)
        .output()
        .unwrap()
}

#[test]
fn misuse_exits_with_2_and_names_what_would_be_right() {
    let cases = [
        ("--rate|50kk", "did you mean `50k`?"),
        ("run|--raet|5k", "a similar argument exists: '--rate'"),
        ("runn", "run"),
        ("--target|spwan:3", "did you mean `spawn:3`?"),
        (
            "--target|inproc:3|--fault|1s kill-leader",
            "needs --target spawn:N",
        ),
        ("--fault|1s kil-leader", "did you mean `kill-leader`?"),
        ("--mix|pt=100", "did you mean `put`?"),
        ("--assert|p98<5ms", "did you mean `p99`?"),
        ("--wal-backend|iouring", "io_uring"),
        ("--size|4kib", "did you mean `4KiB`?"),
        ("--duration|10", "did you mean `10s`?"),
        ("--tolerance|5", "did you mean `5%`?"),
        (
            "--baseline|/nowhere/run.json",
            "--baseline /nowhere/run.json",
        ),
        ("--target|cluster a:1|--tls|/nowhere", "--tls: "),
        (
            "--target|cluster a:1|--tls|x|--verify",
            "Use --target spawn:N, or --history FILE",
        ),
    ];
    for (arguments, expected) in cases {
        let output = loadgen(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(expected), "{arguments}: {error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_and_version_are_no_misuse() {
    for arguments in ["--help", "run|--help", "--version"] {
        let output = loadgen(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let out = dir.path().join("out");
    let arguments = format!("--dir|{}|--out|{}", dir.path().display(), out.display());
    let output = loadgen(&arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("neither empty nor a directory of loadgen"),
        "{error}"
    );
}

#[test]
fn a_run_that_would_not_fit_is_refused_with_the_figure() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("out"));
    let load = "--rate|50M|--size|1MB|--duration|10000s";
    let arguments = format!("{load}|--dir|{}|--out|{}", data.display(), out.display());
    let output = loadgen(&arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("GiB") && error.contains("free"), "{error}");
    assert!(!out.join("run.json").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (nowhere, out) = (file.join("x"), dir.path().join("out"));
    let (nowhere, out) = (nowhere.display(), out.display());
    let cases = [
        ("--history", format!("--history|{nowhere}|--out|{out}")),
        ("--json", format!("--json|{nowhere}|--out|{out}")),
        ("--out", format!("--out|{nowhere}")),
    ];
    for (flag, arguments) in cases {
        // A data directory that a run leaves behind shows whether there was one.
        let data = dir.path().join(format!("data{flag}"));
        let load = "--target|inproc:1|--duration|100ms|--warmup|0s|--rate|100";
        let output = loadgen(&format!("{load}|--dir|{}|{arguments}", data.display()));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {error}");
        assert!(
            error.contains(&format!("{flag}: write {nowhere}: ")),
            "{error}"
        );
        assert!(!data.join("node-1").exists(), "{flag}: it was started");
        assert!(output.stdout.is_empty());
    }
}
