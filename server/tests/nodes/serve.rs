//! A node from certificates to a clean end, as an operator runs it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Place, Serving};
use serde_json::Value;

#[test]
fn a_node_serves_is_watched_and_ends_cleanly() {
    let place = Place::new();
    let config = place.node(1, "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    place.pass(&["serve", "--config", &config, "--check"]);
    let node = place.serve(&config);

    assert_eq!(place.kv(&node, &["put", "river", "deep"]).code, 0);
    assert_eq!(place.kv(&node, &["get", "river"]).out, "deep\n");
    assert_eq!(
        place
            .kv(&node, &["cas", "river", "wide", "--expect", "deep"])
            .code,
        0
    );
    let ended = place.kv(&node, &["cas", "river", "x", "--expect", "deep"]);
    ended.says(10, &["not swapped: `river` has the value `wide`"]);
    place
        .kv(&node, &["cas", "river", "x", "--absent"])
        .says(10, &["not swapped"]);
    assert_eq!(place.kv(&node, &["delete", "river"]).code, 0);
    place
        .kv(&node, &["get", "river"])
        .says(10, &["`river` has no value"]);

    let address = node.client();
    let json = place.pass(&["status", &address, "--tls", "client", "--json"]);
    let status: Value = serde_json::from_str(&json).unwrap();
    check_status(&status);
    let text = place.pass(&["status", &address, "--tls", "client"]);
    assert!(text.contains("  healthy\n"), "{text}");

    assert_eq!(node.page("/livez").0, 200);
    assert_eq!(node.page("/readyz").0, 200);
    let (code, metrics) = node.page("/metrics");
    assert_eq!(code, 200);
    for line in [
        "logdrive_build_info{",
        "logdrive_role{group=\"1\",role=\"leader\"} 1.0",
        "logdrive_log_first_index{group=\"1\"} 1.0",
        "logdrive_log_kept_entries{group=\"1\"} ",
        "logdrive_snapshots_taken_total 0",
        "logdrive_snapshots_failed_total 0",
        "logdrive_snapshots_installed_total 0",
        "logdrive_snapshot_sent_bytes_total 0",
        "logdrive_snapshot_taking{group=\"1\"} 0.0",
        "logdrive_snapshot_handle_duration_seconds_count 0",
        "logdrive_log_committed_index{group=\"1\"} ",
        "logdrive_proposals_total{outcome=\"applied\"} ",
        "logdrive_wal_bytes_total ",
        "logdrive_wal_fsync_duration_seconds_bucket{le=\"0.000025\"} ",
        "logdrive_queue_bytes{queue=\"apply\"} ",
        "logdrive_queue_limit_bytes{queue=\"apply\"} ",
        "logdrive_memory_bytes{owner=\"log_rows\"} ",
        "logdrive_memory_limit_bytes{owner=\"entries\"} ",
    ] {
        let found = metrics.lines().any(|found| found.starts_with(line));
        assert!(found, "no {line} in:\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
    assert_eq!(node.page("/nothing").0, 404);

    assert_eq!(node.stop(), 0);
    let ended = place.run(&["status", &address, "--tls", "client", "--timeout", "100ms"]);
    assert_eq!(ended.code, 30, "{}", ended.out);
}

#[test]
fn a_forced_flush_mode_and_the_bound_of_memory_are_shown_before_and_after_the_start() {
    for mode in ["dsync", "drained_fsync"] {
        let place = Place::new();
        let wal =
            format!("[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\nflush_mode = '{mode}'\n");
        let config = place.node(1, &wal);
        let check = place.pass(&["serve", "--config", &config, "--check"]);
        assert!(
            check.contains(&format!("  wal.flush_mode: {mode}\n")),
            "{check}"
        );
        assert!(check.contains("  memory: at most "), "{check}");
        let node = place.serve(&config);
        let address = node.client();
        // A node that has not elected itself yet is not healthy, and a write waits until it has.
        let written = place.kv(&node, &["put", "key", "value"]);
        assert_eq!(written.code, 0, "{} {}", written.out, written.err);
        let json = place.pass(&["status", &address, "--tls", "client", "--json"]);
        let status: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(status["wal"]["flush_mode"], mode);
        assert_eq!(status["wal"]["flush_mode_choice"], mode);
        assert!(status["memory_bytes_max"].as_u64() > Some(100 << 20));
        let text = place.pass(&["status", &address, "--tls", "client"]);
        assert!(text.contains(&format!(", {mode} (forced), ")), "{text}");
        assert!(text.contains(" of at most "), "{text}");
        assert_eq!(node.stop(), 0);
    }
}

/// Every key that the contract names is there.
fn check_status(status: &Value) {
    let has = |value: &Value, keys: &[&str]| {
        for key in keys {
            assert!(value.get(key).is_some(), "no {key} in {value}");
        }
    };
    assert_eq!(status["schema"], "logdrive.status/1");
    has(
        status,
        &[
            "node",
            "cluster",
            "incarnation",
            "version",
            "formats",
            "uptime_s",
            "groups",
            "peers",
            "wal",
        ],
    );
    has(status, &["queues", "alarms", "memory"]);
    has(&status["memory"][0], &["owner", "bytes", "bytes_max"]);
    let lines = status["memory"].as_array().expect("a list");
    let held = |owner: &str| {
        let line = lines.iter().find(|line| line["owner"] == owner);
        line.and_then(|line| line["bytes"].as_u64()).unwrap_or(0)
    };
    // What was written is in memory still, and each entry has its rows.
    assert!(held("entries") > 0 && held("log_rows") > 0, "{status}");
    let group = &status["groups"][0];
    has(
        group,
        &[
            "group", "role", "term", "leader", "commit", "applied", "durable", "last",
        ],
    );
    has(group, &["snapshot", "members"]);
    has(group, &["first", "snapshot_details", "snapshot_taking"]);
    has(group, &["transfers"]);
    has(
        &status["wal"],
        &["backend", "flush_mode", "slots_free", "fallbacks"],
    );
    has(&status["queues"][0], &["name", "bytes", "bytes_max"]);
    for peer in status["peers"].as_array().expect("a list") {
        has(peer, &["node", "state", "match", "inflight_bytes"]);
        has(peer, &["rtt_us", "last_error"]);
    }
    for alarm in status["alarms"].as_array().expect("a list") {
        has(alarm, &["code", "since", "text", "advice"]);
    }
}

/// What a node says of itself, once it is what a test waits for.
fn status_when(place: &Place, node: &Serving, is: impl Fn(&Value) -> bool) -> Value {
    let address = node.client();
    let since = Instant::now();
    loop {
        let ended = place.run(&["status", &address, "--tls", "client", "--json"]);
        let status = serde_json::from_str(&ended.out).unwrap_or(Value::Null);
        if is(&status) {
            return status;
        }
        assert!(since.elapsed() < PATIENCE, "{status} {}", ended.err);
    }
}

#[test]
fn three_nodes_name_their_peers_and_an_emptied_one_its_alarm() {
    let place = Place::new();
    let files = place.three("mtu = 'loopback'\n[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    let mut nodes: Vec<Serving> = files.iter().map(|file| place.serve(file)).collect();
    assert_eq!(place.kv(&nodes[0], &["put", "river", "deep"]).code, 0);
    for node in &nodes {
        let status = status_when(&place, node, |status| {
            let peers = status["peers"].as_array();
            let group = &status["groups"][0];
            // More than the entry that a new leader writes.
            group["applied"].as_u64() >= Some(2)
                && peers.is_some_and(|peers| peers.iter().all(|p| p["state"] == "connected"))
        });
        check_status(&status);
        assert_eq!(status["peers"].as_array().unwrap().len(), 2, "{status}");
    }

    assert_eq!(nodes.remove(0).stop(), 0);
    std::fs::remove_dir_all(place.path("n1/data")).unwrap();
    let emptied = place.serve(&files[0]);
    let status = status_when(&place, &emptied, |status| {
        let alarms = status["alarms"].as_array();
        alarms.is_some_and(|alarms| !alarms.is_empty())
    });
    assert_eq!(status["alarms"][0]["code"], "stranger", "{status}");
    for key in ["code", "since", "text", "advice"] {
        assert!(!status["alarms"][0][key].is_null(), "no {key}: {status}");
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let place = Place::new();
    let config = place.node(1, "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["put", "river", "deep"]).code, 0);
    drop(node);
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["get", "river"]).out, "deep\n");
}

#[test]
fn log_lines_are_json_when_asked_for() {
    let place = Place::new();
    let config = place.node(1, "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    let args = ["serve", "--config", &config, "--log-format", "json"];
    let mut child = place
        .command(&args)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.get("level").is_some(), "{line}");
    assert!(line.get("event").is_some(), "{line}");
}

/// The writing end of a pipe that nobody reads from any more.
fn unread() -> Stdio {
    Stdio::from(std::io::pipe().expect("a pipe").1)
}

#[test]
fn a_node_whose_log_nobody_reads_serves_on() {
    let place = Place::new();
    let config = place.node(1, "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    let mut command = place.command(&["serve", "--config", &config, "--log", "debug"]);
    let node = Serving::start_unlogged(command.stderr(unread()));
    assert_eq!(place.kv(&node, &["put", "river", "deep"]).code, 0);
    assert_eq!(node.stop(), 0);
}

#[test]
fn the_exit_code_stays_when_nobody_reads_the_message() {
    let place = Place::new();
    // Taken, so that nobody answers there.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let status = ["status", &address, "--tls", "client", "--timeout", "100ms"];
    let json = [&status[..], &["--json"]].concat();
    let misuse = ["serve", "--config", "nowhere.toml"];
    for (args, code) in [(&json[..], 30), (&misuse[..], 2)] {
        let ended = place.command(args).stderr(unread()).status().unwrap();
        assert_eq!(ended.code(), Some(code), "{args:?}");
    }
}
