//! A node's status as a person reads it, and whether there is anything to do.
//!
//! Reads the JSON and not the engine's type: the node that sent it may be of another version, which knows
//! fewer keys, or more.

use std::fmt::Write;
use std::time::Duration;

use comfy_table::{Table, presets};
use logdrive::units::{show_bytes, show_ns};
use serde_json::Value;

/// What an operator has to look at. Empty if nothing.
#[must_use]
pub(super) fn complaints(status: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    if status["running"] == Value::Bool(false) {
        complaints.push("the node's threads have ended: restart it".to_owned());
    }
    for group in list(status, "groups") {
        let id = text(&group["group"]);
        if group["leader"].is_null() {
            let otherwise = match group["role"].as_str() {
                Some("forming") => "it forms once every one of cluster.members has answered",
                _ => "it knows of no leader",
            };
            let why = group["why"].as_str().unwrap_or(otherwise);
            complaints.push(format!("group {id}: {why}"));
        }
        let mut transfers = list(group, "transfers").iter();
        if transfers.any(|transfer| transfer["direction"] == "fetch") {
            complaints.push(format!(
                "group {id}: this node is behind, and fetches a snapshot"
            ));
        }
    }
    for peer in list(status, "peers") {
        if peer["state"] != "connected" {
            let (node, why) = (text(&peer["node"]), text(&peer["last_error"]));
            let why = if why == "-" {
                String::new()
            } else {
                format!(": {why}")
            };
            complaints.push(format!("node {node} is not connected{why}"));
        }
    }
    for alarm in list(status, "alarms") {
        complaints.push(format!("alarm {}", text(&alarm["code"])));
    }
    complaints
}

/// The status as lines, for a terminal.
#[must_use]
pub(super) fn view(address: &str, status: &Value) -> String {
    let mut out = String::new();
    let uptime = show_time(status["uptime_s"].as_u64().unwrap_or(0));
    let incarnation = text(&status["incarnation"]);
    let incarnation = incarnation.get(..8).unwrap_or(&incarnation);
    let _ = writeln!(
        out,
        "node {} of cluster {} at {address}: version {}, up {uptime}, boot {}, incarnation {incarnation}",
        text(&status["node"]),
        text(&status["cluster"]),
        text(&status["version"]),
        text(&status["boot"]),
    );
    groups(&mut out, status);
    snapshots(&mut out, status);
    peers(&mut out, status);
    wal(&mut out, &status["wal"]);
    for fallback in list(&status["net"], "fallbacks") {
        let _ = writeln!(out, "  network fell back: {}", text(fallback));
    }
    queues(&mut out, status);
    memory(&mut out, status);
    let uptime_s = status["uptime_s"].as_u64().unwrap_or(0);
    for alarm in list(status, "alarms") {
        let ago = uptime_s.saturating_sub(alarm["since"].as_u64().unwrap_or(0));
        let (code, what) = (text(&alarm["code"]), text(&alarm["text"]));
        let _ = writeln!(out, "  ALARM {code}, for {}: {what}", show_time(ago));
        let _ = writeln!(out, "        {}", text(&alarm["advice"]));
    }
    let complaints = complaints(status);
    if complaints.is_empty() {
        out.push_str("  healthy\n");
    } else {
        let _ = writeln!(out, "  DEGRADED: {}", complaints.join("; "));
    }
    out
}

fn groups(out: &mut String, status: &Value) {
    let mut table = table(&[
        "group", "role", "term", "leader", "commit", "applied", "durable", "last", "members",
    ]);
    for group in list(status, "groups") {
        let member = |member: &Value| {
            let learner = if member["role"] == "learner" { "*" } else { "" };
            format!("{}{learner}", text(&member["node"]))
        };
        let members: Vec<String> = list(group, "members").iter().map(member).collect();
        let mut row: Vec<String> = ["group", "role", "term", "leader", "commit", "applied"]
            .iter()
            .chain(&["durable", "last"])
            .map(|key| text(&group[*key]))
            .collect();
        row.push(members.join(" "));
        table.add_row(row);
    }
    indent(out, &table);
}

/// What of each group's log is kept, what covers the rest, and what is under way.
fn snapshots(out: &mut String, status: &Value) {
    for group in list(status, "groups") {
        // A version that has no snapshots knows no such key.
        let Some(first) = group["first"].as_u64() else {
            continue;
        };
        let (id, last) = (text(&group["group"]), group["last"].as_u64().unwrap_or(0));
        let kept = if first <= last {
            format!("entries {first} to {last} kept")
        } else {
            "no entries kept".to_owned()
        };
        let _ = writeln!(out, "  group {id}: {kept}, {}", newest(group));
        if let Some(index) = group["snapshot_taking"].as_u64() {
            let _ = writeln!(out, "    a snapshot up to entry {index} is being taken");
        }
        for transfer in list(group, "transfers") {
            let (peer, index) = (text(&transfer["peer"]), text(&transfer["index"]));
            let what = match transfer["direction"].as_str() {
                Some("fetch") => format!("fetching snapshot {index} from node {peer}"),
                _ => format!("node {peer} fetches snapshot {index}"),
            };
            let _ = writeln!(out, "    {what} {}", progress(transfer));
        }
    }
}

fn newest(group: &Value) -> String {
    let Some(index) = group["snapshot"].as_u64() else {
        return "no snapshot".to_owned();
    };
    let mut line = format!("snapshot up to entry {index}");
    let details = &group["snapshot_details"];
    if let Some(bytes) = details["bytes"].as_u64() {
        line.push_str(&format!(", {}", show_bytes(bytes)));
    }
    if let Some(ms) = details["took_ms"].as_u64() {
        line.push_str(&format!(", took {}", show_ns(ms.saturating_mul(1_000_000))));
    }
    match details["age_s"].as_u64() {
        Some(age_s) => line.push_str(&format!(", {} ago", show_time(age_s))),
        None => line.push_str(", from before this start or from another node"),
    }
    line
}

/// `[######----] 61% 640.0 MiB of 1.0 GiB, 64.0 MiB/s, 6 s left`
fn progress(transfer: &Value) -> String {
    let bytes = transfer["bytes"].as_u64().unwrap_or(0);
    let have = transfer["bytes_have"].as_u64().unwrap_or(0).min(bytes);
    // What is not known yet, or nothing at all, is no progress.
    let percent = (u128::from(have) * 100).checked_div(u128::from(bytes));
    let percent = usize::try_from(percent.unwrap_or(0)).unwrap_or(0);
    let done = percent * BAR_CHARS / 100;
    let left = match transfer["eta_s"].as_u64() {
        Some(eta_s) => format!("{} left", show_time(eta_s)),
        None => "stalled".to_owned(),
    };
    format!(
        "[{}{}] {percent}% {} of {}, {}/s, {left}",
        "#".repeat(done),
        "-".repeat(BAR_CHARS - done),
        show_bytes(have),
        show_bytes(bytes),
        show_bytes(transfer["bytes_per_s"].as_u64().unwrap_or(0)),
    )
}

const BAR_CHARS: usize = 10;

fn peers(out: &mut String, status: &Value) {
    if list(status, "peers").is_empty() {
        return;
    }
    let mut table = table(&[
        "peer",
        "state",
        "match",
        "in flight",
        "round trip",
        "last error",
    ]);
    for peer in list(status, "peers") {
        let rtt = peer["rtt_us"].as_u64();
        table.add_row([
            text(&peer["node"]),
            text(&peer["state"]),
            text(&peer["match"]),
            show_bytes(peer["inflight_bytes"].as_u64().unwrap_or(0)),
            rtt.map_or("-".to_owned(), |us| show_ns(us.saturating_mul(1000))),
            text(&peer["last_error"]),
        ]);
    }
    indent(out, &table);
}

fn wal(out: &mut String, wal: &Value) {
    // A version that knows no such key chose the mode itself.
    let forced = match wal["flush_mode_choice"].as_str() {
        None | Some("auto") => "",
        Some(_) => " (forced)",
    };
    let _ = write!(
        out,
        "  log: {}, {}{forced}, {} of {} segment files free",
        text(&wal["backend"]),
        text(&wal["flush_mode"]),
        text(&wal["slots_free"]),
        text(&wal["slots"]),
    );
    out.push_str(if wal["full"] == Value::Bool(true) {
        ", FULL\n"
    } else {
        "\n"
    });
    for fallback in list(wal, "fallbacks") {
        let _ = writeln!(out, "       fell back: {}", text(fallback));
    }
}

/// Only what waits: a dozen empty queues say nothing.
fn queues(out: &mut String, status: &Value) {
    for queue in list(status, "queues") {
        let bytes = queue["bytes"].as_u64().unwrap_or(0);
        if bytes > 0 {
            let bytes_max = show_bytes(queue["bytes_max"].as_u64().unwrap_or(0));
            let name = text(&queue["name"]);
            let _ = writeln!(out, "  queue {name}: {} of {bytes_max}", show_bytes(bytes));
        }
    }
}

/// What all owners hold, and the most that they may.
fn memory(out: &mut String, status: &Value) {
    let Some(bytes_max) = status["memory_bytes_max"].as_u64() else {
        return;
    };
    let owners = list(status, "memory").iter();
    let bytes: u64 = owners.filter_map(|owner| owner["bytes"].as_u64()).sum();
    let (bytes, bytes_max) = (show_bytes(bytes), show_bytes(bytes_max));
    let _ = writeln!(out, "  memory: {bytes} of at most {bytes_max}");
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn indent(out: &mut String, table: &Table) {
    for line in table.lines() {
        let _ = writeln!(out, " {}", line.trim_end());
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// A scalar as it stands; nothing as a dash. Control characters would reach the terminal.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
        other => other.to_string(),
    }
}

fn show_time(seconds: u64) -> String {
    let time = Duration::from_secs(seconds).as_secs();
    match (time / 86400, time / 3600 % 24, time / 60 % 60, time % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn healthy() -> Value {
        json!({
            "schema": "logdrive.status/1", "node": 1, "cluster": "demo", "incarnation": "0123456789abcdef",
            "boot": 2, "version": "0.1.0", "uptime_s": 3700, "running": true,
            "groups": [{"group": 1, "role": "leader", "why": null, "term": 3, "leader": 1, "commit": 12,
                "applied": 12, "durable": 12, "last": 12, "snapshot": null,
                "members": [{"node": 1, "role": "voter"}, {"node": 2, "role": "learner"}]}],
            "peers": [{"node": 2, "state": "connected", "match": 12, "inflight_bytes": 2048,
                "rtt_us": 210, "last_error": null}],
            "wal": {"backend": "io_uring", "flush_mode": "dsync", "slots_free": 2, "slots": 3,
                "full": false, "fallbacks": []},
            "queues": [{"name": "apply", "bytes": 0, "bytes_max": 1}],
            "memory": [{"owner": "entries", "bytes": 1024, "bytes_max": 4096}],
            "memory_bytes_max": 2048,
            "alarms": [],
        })
    }

    #[test]
    fn a_healthy_node_has_nothing_to_complain_about() {
        let view = view("127.0.0.1:7102", &healthy());
        assert!(view.ends_with("  healthy\n"), "{view}");
        assert!(view.contains("up 1 h 1 min"), "{view}");
        assert!(view.contains("210.0 µs"), "{view}");
        assert!(
            view.contains("  memory: 1.0 KiB of at most 2.0 KiB\n"),
            "{view}"
        );
        assert!(view.contains("1 2*"), "{view}");
        assert!(complaints(&healthy()).is_empty());
    }

    #[test]
    fn every_trouble_is_a_complaint() {
        let mut status = healthy();
        status["groups"][0]["leader"] = Value::Null;
        status["peers"][0]["state"] = json!("disconnected");
        status["peers"][0]["last_error"] = json!("timed\x1b[2Jout");
        status["alarms"] = json!([{"code": "storage_full", "group": null, "since": 3640,
            "text": "the log has no room", "advice": "raise wal.bytes_max"}]);
        status["running"] = json!(false);
        status["net"] = json!({"fallbacks": ["small socket buffers"]});
        assert_eq!(
            complaints(&status),
            [
                "the node's threads have ended: restart it",
                "group 1: it knows of no leader",
                "node 2 is not connected: timed [2Jout",
                "alarm storage_full",
            ]
        );
        let view = view("127.0.0.1:7102", &status);
        assert!(
            view.contains("ALARM storage_full, for 1 min 0 s: the log has no room"),
            "{view}"
        );
        assert!(view.contains("raise wal.bytes_max"), "{view}");
        assert!(view.contains("network fell back: small"), "{view}");
        assert!(!view.contains('\x1b'), "{view}");
    }

    #[test]
    fn snapshots_and_transfers_are_shown() {
        let mut status = healthy();
        let group = &mut status["groups"][0];
        group["first"] = json!(1);
        let shown = view("a:1", &status);
        let nothing = "  group 1: entries 1 to 12 kept, no snapshot\n";
        assert!(shown.contains(nothing), "{shown}");
        let group = &mut status["groups"][0];
        group["first"] = json!(10);
        group["snapshot"] = json!(9);
        group["snapshot_details"] = json!({"id": "ab", "index": 9, "term": 2, "bytes": 1258291, "age_s": 75,
            "took_ms": 35});
        group["snapshot_taking"] = json!(11);
        group["transfers"] = json!([
            {"direction": "follower", "peer": 3, "index": 9, "bytes": 1 << 30, "bytes_have": 640 << 20,
                "bytes_per_s": 64 << 20, "eta_s": 6},
            {"direction": "fetch", "peer": 2, "index": 9, "bytes": 0, "bytes_have": 0, "bytes_per_s": 0,
                "eta_s": null},
        ]);
        let shown = view("a:1", &status);
        for line in [
            "  group 1: entries 10 to 12 kept, snapshot up to entry 9, 1.2 MiB, took 35.00 ms, 1 min 15 s ago\n",
            "    a snapshot up to entry 11 is being taken\n",
            "    node 3 fetches snapshot 9 [######----] 62% 640.0 MiB of 1.0 GiB, 64.0 MiB/s, 6 s left\n",
            "    fetching snapshot 9 from node 2 [----------] 0% 0 B of 0 B, 0 B/s, stalled\n",
        ] {
            assert!(shown.contains(line), "no {line} in {shown}");
        }
        assert_eq!(
            complaints(&status),
            ["group 1: this node is behind, and fetches a snapshot"]
        );
    }

    #[test]
    fn a_status_from_another_version_is_shown_as_far_as_it_goes() {
        let view = view("a:1", &json!({"node": 1}));
        assert!(view.contains("node 1 of cluster -"), "{view}");
    }
}
