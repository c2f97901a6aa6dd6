//! Snapshots as an operator meets them: real processes, real disks, logs that are cut.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{Place, Serving};
use logdrive::GroupId;
use logdrive_net::{Client, ClientOptions, Credentials};
use logdrive_raft::wire::Encode;
use logdrive_shard::kv::{Command, Op};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A snapshot every few of these small segments.
const OFTEN: &str = "[wal]\nslot_bytes = '256KiB'\nbytes_max = '4MiB'\n\
                     [snapshots]\nlog_bytes = '128KiB'\nkeep_log_bytes = '16KiB'\n";

/// The transfer that is disturbed is of so many MiB; `LOGDRIVE_TEST_TRANSFER_MIB` says how many instead.
const TRANSFER_MIB: usize = 65;

/// Snapshots only for who asks, and a transfer of so many MiB that takes a few seconds.
fn asked(mib: usize) -> String {
    format!(
        "mtu = 'loopback'\n[wal]\nslot_bytes = '4MiB'\nbytes_max = '{}MiB'\n[snapshots]\nlog_bytes = '64GiB'\n\
         keep_log_bytes = '64KiB'\nfetch_bytes_per_s = '{}MiB/s'\n",
        8 * mib,
        mib / 4,
    )
}

/// Writes so many keys with values of so many bytes, which no two keys share.
fn fill(place: &Place, nodes: &[&Serving], keys: usize, value_bytes: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let addresses = nodes.iter().map(|node| node.client()).collect();
    let credentials = Credentials::load_client(&place.path("client")).unwrap();
    runtime.block_on(async {
        let options = ClientOptions::default();
        let client = Client::connect(addresses, &credentials, options);
        let client = client.await.unwrap();
        for number in 0..keys {
            let key = format!("key {number:04}");
            let mut state = number as u64 + 1;
            let mut value = Vec::with_capacity(value_bytes + 8);
            while value.len() < value_bytes {
                // A linear generator: nothing repeats from one value to the next.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                value.extend_from_slice(&state.to_le_bytes());
            }
            let command = Command {
                origin: None,
                key: key.as_bytes(),
                op: Op::Put(&value),
            };
            let until = tokio::time::Instant::now() + PATIENCE;
            let applied = client.propose_by(GroupId(1), command.to_bytes(), until);
            applied.await.unwrap();
        }
    });
}

fn status(place: &Place, node: &Serving) -> Option<Value> {
    let args = ["status", &node.client(), "--tls", "client", "--json"];
    serde_json::from_str(&place.run(&args).out).ok()
}

/// What a node says of itself, once it is what a test waits for.
fn status_when(place: &Place, node: &Serving, is: impl Fn(&Value) -> bool) -> Value {
    let since = Instant::now();
    loop {
        let status = status(place, node).unwrap_or(Value::Null);
        if is(&status) {
            return status;
        }
        assert!(since.elapsed() < PATIENCE, "{status}");
    }
}

fn group(status: &Value) -> &Value {
    &status["groups"][0]
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn metric(node: &Serving, name: &str) -> u64 {
    let (_, page) = node.page("/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in:\n{page}"));
    line.trim().parse::<f64>().unwrap() as u64
}

#[test]
fn a_node_takes_snapshots_by_itself_and_when_an_admin_asks() {
    let place = Place::new();
    place.issue("admin", 1, "admin");
    let config = place.node(1, OFTEN);
    let node = place.serve(&config);
    fill(&place, &[&node], 60, 16 << 10);
    let shown = status_when(&place, &node, |status| {
        let group = group(status);
        number(group, "first") > 1 && !group["snapshot"].is_null()
    });
    let details = &group(&shown)["snapshot_details"];
    assert_eq!(number(details, "index"), number(group(&shown), "snapshot"));
    for key in ["id", "term", "bytes", "age_s", "took_ms"] {
        assert!(!details[key].is_null(), "no {key} in {shown}");
    }
    let address = node.client();
    let text = place.pass(&["status", &address, "--tls", "client"]);
    assert!(text.contains(" kept, snapshot up to entry "), "{text}");

    // Something new for each.
    assert_eq!(place.kv(&node, &["put", "river", "deep"]).code, 0);
    let line = place.pass(&["snapshot", &address, "--tls", "admin"]);
    assert!(
        line.starts_with("node 1 group 1 snapshot up to entry "),
        "{line}"
    );
    assert!(line.contains(" KiB, took "), "{line}");
    let json = place.pass(&["snapshot", &address, "--tls", "admin", "--json"]);
    let answer: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(answer["schema"], "logdrive.snapshot/1");
    assert_eq!(answer["taken"], true);
    assert_eq!(answer["why"], Value::Null);
    let index = number(&answer, "index");
    let applied = status_when(&place, &node, |status| {
        number(group(status), "snapshot") == index
    });
    assert_eq!(number(group(&applied), "applied"), index);

    let refused = place.run(&["snapshot", &address, "--tls", "client"]);
    refused.says(2, &["admins only", "demo/client/1", "--role admin"]);
    let unknown = ["snapshot", &address, "--tls", "admin", "--group", "7"];
    place.run(&unknown).says(2, &["does not hold group 7"]);

    // No room for one: the reason is said, and so each time.
    let snapshots = place.path("n1/data/snapshots");
    fs::rename(&snapshots, place.path("elsewhere")).unwrap();
    assert_eq!(place.kv(&node, &["put", "river", "wide"]).code, 0);
    for _ in 0..2 {
        let failed = place.run(&["snapshot", &address, "--tls", "admin"]);
        failed.says(
            10,
            &["node 1 took no snapshot of group 1: ", "No such file"],
        );
    }
    let text = place.run(&["status", &address, "--tls", "client"]);
    assert_eq!(text.code, 10, "{}", text.out);
    assert!(text.out.contains("ALARM snapshot_failed"), "{}", text.out);
    fs::rename(place.path("elsewhere"), &snapshots).unwrap();
    place.pass(&["snapshot", &address, "--tls", "admin"]);
    let text = place.pass(&["status", &address, "--tls", "client"]);
    assert!(text.contains("  healthy\n"), "{text}");
    let failed = metric(&node, "logdrive_snapshots_failed_total ");
    assert!(failed >= 2, "{failed}");
    assert!(metric(&node, "logdrive_snapshots_taken_total ") >= 3);
    assert!(metric(&node, "logdrive_log_first_index{group=\"1\"} ") > 1);
    assert!(metric(&node, "logdrive_snapshot_bytes{group=\"1\"} ") > 900 << 10);
    metric(&node, "logdrive_snapshot_age_seconds{group=\"1\"} ");
    metric(&node, "logdrive_snapshot_duration_seconds{group=\"1\"} ");

    assert_eq!(node.stop(), 0);
    let gone = ["snapshot", &address, "--tls", "admin"];
    assert_eq!(place.run(&gone).code, 30);
    // The log begins where it was cut, and is in order.
    let verdict = place.pass(&["wal", "verify", "n1/data"]);
    let last = verdict.lines().last().unwrap();
    let words: Vec<&str> = last.split(' ').collect();
    let first = words.iter().position(|word| *word == "first").unwrap();
    assert!(words[first + 1].parse::<u64>().unwrap() > 1, "{last}");
    assert!(last.starts_with("verdict clean "), "{last}");
    place.pass(&["wal", "inspect", "n1/data"]);
    // And what it no longer has, the snapshot has.
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["get", "river"]).out, "wide\n");
    let absent = place.kv(&node, &["cas", "key 0000", "x", "--absent"]);
    absent.says(10, &["not swapped: `key 0000` has the value"]);
}

/// Three nodes, what they sent of snapshots in lives that are over, and how to start each again.
struct Cluster<'a> {
    place: &'a Place,
    files: Vec<String>,
    nodes: BTreeMap<u64, Serving>,
    sent_bytes: u64,
}

impl Cluster<'_> {
    fn kill(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        self.sent_bytes += metric(&node, SENT);
        drop(node);
    }

    fn start(&mut self, id: u64) {
        let file = &self.files[usize::try_from(id).unwrap() - 1];
        self.nodes.insert(id, self.place.serve(file));
    }

    fn snapshot(&self, id: u64) -> Value {
        let address = self.nodes[&id].client();
        let json = self
            .place
            .pass(&["snapshot", &address, "--tls", "admin", "--json"]);
        serde_json::from_str(&json).unwrap()
    }
}

const SENT: &str = "logdrive_snapshot_sent_bytes_total ";

/// The files of the newest snapshot below a node's directory.
fn newest(place: &Place, id: u64) -> BTreeMap<String, Vec<u8>> {
    let list = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let snapshots = list(&place.path(&format!("n{id}/data/snapshots")));
    let whole = snapshots
        .iter()
        .filter(|path| name(path).starts_with("g1-"));
    let files = list(whole.max().unwrap()).into_iter();
    let files = files.filter(|path| name(path) != "manifest");
    files
        .map(|path| (name(&path), fs::read(&path).unwrap()))
        .collect()
}

/// Five times each the receiver and the sender of a snapshot are killed on the way.
#[test]
fn a_transfer_goes_on_where_a_killed_receiver_or_sender_left_it() {
    let place = Place::new();
    place.issue("admin", 1, "admin");
    let mib = std::env::var("LOGDRIVE_TEST_TRANSFER_MIB");
    let mib = mib.map_or(TRANSFER_MIB, |mib| mib.parse().unwrap());
    let keys = 4 * mib;
    let files = place.three(&asked(mib));
    let mut cluster = Cluster {
        place: &place,
        files,
        nodes: BTreeMap::new(),
        sent_bytes: 0,
    };
    for id in 1..=3 {
        cluster.start(id);
    }
    let formed = status_when(&place, &cluster.nodes[&1], |status| {
        group(status)["leader"].is_u64()
    });
    let leader = number(group(&formed), "leader");
    let receiver = leader % 3 + 1;
    cluster.kill(receiver);
    let others: Vec<u64> = cluster.nodes.keys().copied().collect();
    let up: Vec<&Serving> = cluster.nodes.values().collect();
    fill(&place, &up, keys, 256 << 10);
    // Both take theirs at the same entry, so that either can go on with what the other began.
    let caught_up = |id: &u64, applied: u64| {
        let status = status_when(&place, &cluster.nodes[id], |status| {
            let group = group(status);
            number(group, "applied") >= applied && group["applied"] == group["last"]
        });
        number(group(&status), "applied")
    };
    let written = others.iter().map(|id| caught_up(id, keys as u64)).max();
    let mut bytes = 0;
    for id in &others {
        caught_up(id, written.unwrap());
        bytes = number(&cluster.snapshot(*id), "bytes");
        status_when(&place, &cluster.nodes[id], |status| {
            number(group(status), "first") > 20
        });
    }
    assert!(bytes > (mib as u64 - 1) << 20, "{bytes}");

    cluster.start(receiver);
    let fetch = |status: &Value| {
        let transfers = group(status)["transfers"].as_array()?;
        let mut fetches = transfers.iter().filter(|of| of["direction"] == "fetch");
        fetches.next().cloned()
    };
    let mut shown = false;
    for kill in 1..=10 {
        // A little further each time.
        let least = bytes / 12 * kill;
        let status = status_when(&place, &cluster.nodes[&receiver], |status| {
            let have = fetch(status).map(|fetch| number(&fetch, "bytes_have"));
            have.is_some_and(|have| have >= least)
        });
        let fetch = fetch(&status).unwrap();
        assert!(number(&fetch, "bytes_have") < bytes, "{fetch}");
        if !shown {
            let address = cluster.nodes[&receiver].client();
            let text = place.run(&["status", &address, "--tls", "client"]);
            assert!(text.out.contains("% "), "{}", text.out);
            assert!(text.out.contains("fetching snapshot "), "{}", text.out);
            assert!(text.out.contains("fetches a snapshot"), "{}", text.out);
            assert_eq!(text.code, 10, "{}", text.out);
            shown = true;
        }
        let killed = match kill % 2 {
            0 => number(&fetch, "peer"),
            _ => receiver,
        };
        cluster.kill(killed);
        cluster.start(killed);
    }
    status_when(&place, &cluster.nodes[&receiver], |status| {
        fetch(status).is_none() && number(group(status), "snapshot") > 0
    });
    for id in 1..=3 {
        cluster.sent_bytes += metric(&cluster.nodes[&id], SENT);
    }
    // What a sender sent between being asked and being killed is not counted: a part or two each time.
    let slack = 4 << 20;
    let sent = cluster.sent_bytes;
    println!("{sent} bytes sent of {bytes}");
    assert!(sent <= bytes + bytes / 5, "{sent} bytes sent of {bytes}");
    assert!(bytes <= sent + slack, "{sent} bytes sent of {bytes}");

    // All three have the same state now, byte for byte.
    assert_eq!(
        place
            .kv(&cluster.nodes[&receiver], &["put", "river", "deep"])
            .code,
        0
    );
    let leader = status_when(&place, &cluster.nodes[&receiver], |status| {
        number(group(status), "leader") > 0
    });
    let leader = number(group(&leader), "leader");
    let last = status_when(&place, &cluster.nodes[&leader], |status| {
        number(group(status), "applied") == number(group(status), "last")
    });
    let last = number(group(&last), "last");
    let mut states = Vec::new();
    for id in 1..=3 {
        status_when(&place, &cluster.nodes[&id], |status| {
            number(group(status), "applied") == last
        });
        assert_eq!(number(&cluster.snapshot(id), "index"), last);
        states.push(newest(&place, id));
    }
    assert!(states[0].contains_key("table"), "{:?}", states[0].keys());
    assert!(states[0] == states[1] && states[0] == states[2]);
}
