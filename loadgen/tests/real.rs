//! Runs against the engine: real logs, real QUIC, real processes that are really killed.
//!
//! In a debug build every run is invalid (exit 12); what is checked is what was found, not how fast it was.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "common/linearizable.rs"]
mod linearizable;

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use linearizable::not_linearizable;
use loadgen::args::{Apply, Mtu, WalBackend};
use loadgen::cluster::node::make_certificates;
use loadgen::cluster::protocol::ReplicaConfig;
use loadgen::cluster::spawn::Processes;
use loadgen::history::Line;
use serde_json::Value;

fn command(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command
        .args(["run", "--out"])
        .arg(dir.join("out"))
        .arg("--dir")
        .arg(dir.join("with space"))
        .args(arguments.split('|').filter(|word| !word.is_empty()));
    command
}

fn run(dir: &Path, arguments: &str) -> (Output, Value) {
    let output = command(dir, arguments).output().unwrap();
    let text = std::fs::read_to_string(dir.join("out/run.json"));
    let text = text.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output, serde_json::from_str(&text).unwrap())
}

fn check(output: &Output, report: &Value, completed_min: f64) {
    let code = output.status.code();
    let expected = if cfg!(debug_assertions) {
        Some(12)
    } else {
        Some(0)
    };
    // A machine that is busy with other tests may let the generator lag: that is invalid, not wrong.
    assert!(code == expected || code == Some(12), "{report:#}");
    let completed = report["result"]["completed_per_s"].as_f64().unwrap();
    assert!(completed >= completed_min, "{completed}: {report:#}");
    let verify = &report["verify"];
    assert!(verify["acked"].as_u64().unwrap() > 0);
    for violation in ["lost", "duplicated", "reordered"] {
        assert_eq!(verify[violation], 0, "{verify:#}");
    }
}

const SHORT: &str = "--duration|1s|--warmup|200ms|--verify|";

#[test]
fn one_replica_in_this_process_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (output, report) = run(dir.path(), &format!("{SHORT}--target|inproc:1|--rate|2k"));
    check(&output, &report, 1000.0);
    assert_eq!(
        report["env"]["build"]["debug_assertions"],
        cfg!(debug_assertions)
    );
    assert!(report["wal"][0]["flushes"].as_u64().unwrap() > 0);
}

#[test]
fn three_replicas_in_this_process_keep_what_they_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let load =
        "--target|inproc:3|--closed|--in-flight|64|--groups|3|--mix|put=50,append=25,delete=25";
    let (output, report) = run(dir.path(), &format!("{SHORT}{load}"));
    check(&output, &report, 50.0);
}

#[test]
fn replicas_as_processes_keep_what_they_acknowledged_though_their_leader_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let history = dir.path().join("history.jsonl");
    let load = "--rate|500|--duration|4s|--warmup|200ms|--verify|--fault|1s kill-leader";
    let mix = "--mix|put=40,get=40,cas=20|--keys|8";
    let arguments = format!("{load}|{mix}|--history|{}", history.display());
    let (output, report) = run(dir.path(), &arguments);
    check(&output, &report, 100.0);
    for memory in report["memory"].as_array().unwrap() {
        assert!(
            memory["rss_peak_bytes"].as_u64().unwrap() > 1 << 20,
            "{memory}"
        );
    }
    let fault = &report["faults"][0];
    assert_eq!(fault["what"], "kill-leader");
    assert!(fault["unavailable_ms"].is_u64(), "{fault}");
    assert!(
        fault["new_term"].as_u64() > fault["old_term"].as_u64(),
        "{fault}"
    );
    let text = std::fs::read_to_string(&history).unwrap();
    let lines: Vec<Line> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.len() > 1500, "{}", lines.len());
    assert_eq!(not_linearizable(&lines), Vec::<String>::new());
}

#[test]
fn a_replica_that_runs_is_ended_before_another_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    make_certificates(&tls, "loadgen", &[1]).unwrap();
    let config = ReplicaConfig {
        node: 1,
        cluster: "loadgen".to_owned(),
        dir: dir.path().join("node-1"),
        tls,
        groups: 1,
        wal_backend: WalBackend::Pwrite,
        apply: Apply::Inline,
        mtu: Mtu::Loopback,
        wal_bytes_max: 1 << 30,
        snapshot_every: None,
    };
    let program = Path::new(env!("CARGO_BIN_EXE_loadgen"));
    let mut processes = Processes::start(program, vec![config]).unwrap();
    let first: Vec<u32> = processes.pids().collect();
    processes.restart(1).unwrap();
    let first = rustix::process::Pid::from_raw(first[0].try_into().unwrap()).unwrap();
    let gone = rustix::process::test_kill_process(first);
    assert_eq!(gone, Err(rustix::io::Errno::SRCH));
    // It is asked for its state after it was told to start, and can say only if it has.
    let states = processes.states();
    assert!(states[0].is_ok(), "{:?}", states[0].as_ref().err());
}

/// Starts a run and waits until the load runs.
fn start(dir: &Path) -> (Child, impl BufRead) {
    start_until(dir, "--duration|60s|--warmup|0s|--rate|100", "leader")
}

/// Starts a run and waits until it says `what`.
fn start_until(dir: &Path, load: &str, what: &str) -> (Child, impl BufRead + use<>) {
    let mut child = command(dir, load).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert!(progress.read_line(&mut line).unwrap() > 0, "it ended early");
    }
    (child, progress)
}

#[test]
fn an_interrupt_while_replicas_restart_is_no_violation() {
    let dir = tempfile::tempdir().unwrap();
    let load = "--duration|500ms|--warmup|0s|--rate|500|--verify";
    let (mut child, mut progress) = start_until(dir.path(), load, "killing and restarting");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    progress.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    let text = std::fs::read_to_string(dir.path().join("out/run.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["verify"]["lost"], Value::Null, "{report:#}");
    assert!(report["result"]["completed_per_s"].as_f64().unwrap() > 10.0);
}

/// Waits until nobody holds the lock of a log.
fn wait_until_gone(dir: &Path) {
    for node in 1..=3 {
        let lock = dir.join(format!("with space/node-{node}/wal-0/LOCK"));
        let file = File::options().write(true).open(lock).unwrap();
        file.lock().unwrap();
    }
}

#[test]
fn nothing_survives_a_sigkill_of_loadgen() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, _progress) = start(dir.path());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(dir.path());
}

#[test]
fn an_interrupt_ends_the_run_with_what_there_is() {
    ends_with_what_there_is(rustix::process::Signal::INT);
}

#[test]
fn a_request_to_terminate_ends_the_run_with_what_there_is() {
    ends_with_what_there_is(rustix::process::Signal::TERM);
}

fn ends_with_what_there_is(signal: rustix::process::Signal) {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut progress) = start(dir.path());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, signal).unwrap();
    let mut rest = String::new();
    progress.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    let text = std::fs::read_to_string(dir.path().join("out/run.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["result"]["completed_per_s"].as_f64().unwrap() > 10.0);
    wait_until_gone(dir.path());
}

#[test]
fn replicas_that_are_kept_run_on_until_they_are_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let load = "--duration|300ms|--warmup|0s|--rate|100|--keep";
    let (output, _) = run(dir.path(), load);
    let told = String::from_utf8_lossy(&output.stderr);
    let (_, pids) = told.split_once("stop with: kill ").expect("it says how");
    let pids = pids.lines().next().unwrap().split(' ');
    let lock = dir.path().join("with space/node-1/wal-0/LOCK");
    let lock = File::options().write(true).open(lock).unwrap();
    assert!(lock.try_lock().is_err(), "it runs on");
    // The command it prints names what answers: here another run asks, from elsewhere so to speak.
    let (_, status) = told.split_once("logdrive status ").expect("it says how");
    let (addresses, tls) = status.split_once(" --tls '").unwrap();
    let tls = tls.split('\'').next().unwrap();
    let out = dir.path().join("second");
    let second = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args([
            "--target",
            "cluster",
            &addresses.replace(' ', ","),
            "--tls",
            tls,
        ])
        .args(["--duration", "500ms", "--warmup", "100ms", "--rate", "200"])
        .args(["--json", "-", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&second.stdout).expect("nothing but JSON");
    assert!(matches!(second.status.code(), Some(0 | 12)), "{report:#}");
    assert!(report["result"]["completed_per_s"].as_f64().unwrap() > 10.0);
    assert!(
        report["result"]["entries"].as_u64().unwrap() > 0,
        "{report:#}"
    );
    assert_eq!(report["env"]["floor_ns"]["rtt"], Value::Null);
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
    drop(lock);
    wait_until_gone(dir.path());
}

#[test]
fn a_fault_that_finds_nobody_leading_waits_for_the_next_leader() {
    let dir = tempfile::tempdir().unwrap();
    let faults = "--fault|500ms kill-leader|--fault|510ms kill-leader";
    let load = format!("--rate|500|--duration|6s|--warmup|200ms|--verify|{faults}");
    let (output, report) = run(dir.path(), &load);
    check(&output, &report, 50.0);
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{faults:?}");
    for fault in faults {
        assert!(fault["unavailable_ms"].is_u64(), "{faults:?}");
    }
    let term = |fault: &Value| fault["old_term"].as_u64().unwrap();
    assert!(term(&faults[0]) < term(&faults[1]), "{faults:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("restart of node"), "{error}");
}

#[test]
fn a_target_that_is_not_there_is_unreachable_and_still_reported() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    make_certificates(&tls, "loadgen", &[1]).unwrap();
    let out = dir.path().join("out");
    // Taken, so that nobody else answers there, and never read from.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["--target", "cluster", &address, "--tls"])
        .arg(&tls)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(30), "{error}");
    let text = std::fs::read_to_string(out.join("run.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let reason = report["verdict"]["reasons"][0].as_str().unwrap();
    assert!(reason.contains(&address), "{reason}");
}
