//! Replicas with small budgets, a follower that stands still at full load, one that fetches a snapshot: memory stays
//! within its bounds.

#![cfg(all(target_os = "linux", not(logdrive_portable)))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Place, Serving};
use logdrive::units::spell_bytes;
use logdrive::{GroupId, Limits};
use logdrive_net::{Client, ClientOptions, Credentials};
use logdrive_raft::wire::Encode;
use logdrive_shard::kv::{Command, Op};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tokio::sync::Notify;

/// How many keys are written where the machine is to be small, and where it is to be larger than all bounds.
const KEYS: u64 = 2_500;
const KEYS_MANY: u64 = 28_672;
const VALUE_BYTES: usize = 4096;
const IN_FLIGHT: u64 = 2048;
const STOPPED_MIN: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(60);

/// The limits of a configuration file.
fn settings(limits: &Limits) -> String {
    let mut text = "[limits]\n".to_owned();
    for (key, bytes) in [
        ("proposals_bytes_max", limits.proposals_bytes_max),
        ("uncommitted_bytes_max", limits.uncommitted_bytes_max),
        ("inflight_bytes_max", limits.inflight_bytes_max),
        ("append_bytes_max", limits.append_bytes_max),
        ("cache_bytes_max", limits.cache_bytes_max),
        ("apply_bytes_max", limits.apply_bytes_max),
        ("peer_queue_bytes_max", limits.peer_queue_bytes_max),
        ("inbox_bytes_max", limits.inbox_bytes_max),
        ("client_bytes_max", limits.client_bytes_max),
    ] {
        text += &format!("{key} = '{}'\n", spell_bytes(bytes as u64));
    }
    text
}

/// The configuration files of three nodes.
fn three(place: &Place, limits: &Limits, more: &str) -> Vec<String> {
    let wal = "mtu = 'loopback'\n[wal]\nslot_bytes = '16MiB'\nbytes_max = '2GiB'\n";
    place.three(&format!("{wal}{}{more}", settings(limits)))
}

/// What a machine with so many keys holds.
fn machine_bytes(keys: u64) -> u64 {
    keys * (VALUE_BYTES as u64 + 256)
}

fn status(place: &Place, node: &Serving) -> Option<Value> {
    let address = node.client();
    let args = [
        "status",
        &address,
        "--tls",
        "client",
        "--json",
        "--timeout",
        "2s",
    ];
    serde_json::from_str(&place.run(&args).out).ok()
}

fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what}");
        std::thread::yield_now();
    }
}

/// The most that a process has had in memory, in bytes.
fn peak_bytes(node: &Serving) -> u64 {
    let text =
        std::fs::read_to_string(format!("/proc/{}/status", node.pid().as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// Which of them leads.
fn leader(place: &Place, nodes: &[Serving]) -> usize {
    let leads = |status: &Value| status["groups"][0]["role"] == "leader";
    let leads = |node: &Serving| status(place, node).is_some_and(|status| leads(&status));
    until("an election", || nodes.iter().position(leads))
}

/// Writes that are kept outstanding on a thread of their own.
struct Load {
    done: Arc<AtomicU64>,
    enough: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(place: &Place, addresses: Vec<String>, keys: u64) -> Self {
        let (done, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
        let credentials = Credentials::load_client(&place.path("client")).unwrap();
        let (count, ends) = (Arc::clone(&done), Arc::clone(&enough));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let connecting = Client::connect(addresses, &credentials, ClientOptions::default());
                let client = Arc::new(connecting.await.unwrap());
                for task in 0..IN_FLIGHT {
                    tokio::spawn(put_on(Arc::clone(&client), task, keys, Arc::clone(&count)));
                }
                ends.notified().await;
            });
        });
        Self {
            done,
            enough,
            thread,
        }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.enough.notify_one();
        self.thread.join().unwrap();
    }
}

/// One write after another.
async fn put_on(client: Arc<Client>, task: u64, keys: u64, done: Arc<AtomicU64>) {
    let value = vec![b'v'; VALUE_BYTES];
    for round in 0_u64.. {
        let key = ((task + round * IN_FLIGHT) % keys).to_le_bytes();
        let command = Command {
            origin: None,
            key: &key,
            op: Op::Put(&value),
        };
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let put = client.propose_by(GroupId(1), command.to_bytes(), deadline);
        if put.await.is_ok() {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_follower_that_stands_still_at_full_load_costs_nobody_more_than_the_bounds() {
    let limits = Limits::default().divided(64);
    let place = Place::new();
    let files = three(&place, &limits, "");
    let nodes: Vec<Serving> = files.iter().map(|file| place.serve(file)).collect();
    let leader = leader(&place, &nodes);
    // The program and what it has from the start; its peak is what is looked at later, too.
    let idle = nodes.iter().map(peak_bytes).max().unwrap();
    let machine = machine_bytes(KEYS);
    let bound = |entries| idle + limits.memory_bytes_max(1, 2, 1, entries) + machine;
    let addresses = nodes.iter().map(Serving::client).collect();
    let load = Load::start(&place, addresses, KEYS);
    until("some writes", || (load.done() > 2 * KEYS).then_some(()));

    let stopped = (leader + 1) % 3;
    let pid = nodes[stopped].pid();
    let before = load.done();
    kill_process(pid, Signal::STOP).unwrap();
    let since = Instant::now();
    // So much that a queue without a bound, if it holds what the follower does not take, is beyond that of all.
    let enough = bound(0) + bound(0) / 4;
    until("enough writes", || {
        let written = (load.done() - before) * VALUE_BYTES as u64;
        (since.elapsed() >= STOPPED_MIN && written > enough).then_some(())
    });
    kill_process(pid, Signal::CONT).unwrap();
    let written = load.done() - before;
    load.end();
    println!("{written} writes of {VALUE_BYTES} B while a follower stood still");

    let last = until("that the follower catches up", || {
        let at = |node: &Serving| {
            let status = status(&place, node)?;
            let group = &status["groups"][0];
            (group["applied"] == group["last"]).then(|| group["last"].as_u64())?
        };
        let at: Vec<Option<u64>> = nodes.iter().map(at).collect();
        (at[0] == at[1] && at[1] == at[2]).then_some(at[0])?
    });
    let bound = bound(last);
    for node in &nodes {
        let peak = peak_bytes(node);
        println!("{} MiB at most, {} MiB allowed", peak >> 20, bound >> 20);
        assert!(peak <= bound, "{peak} bytes, {bound} allowed");
        // What is measured is there: a replica that holds its machine holds no less.
        assert!(peak > machine);
    }
}

/// The snapshot is larger than all that a node may hold besides its machine, so neither end can have had it whole.
#[test]
fn a_transfer_costs_neither_side_more_than_the_bounds() {
    let limits = Limits::default().divided(64);
    let machine = machine_bytes(KEYS_MANY);
    let place = Place::new();
    place.issue("admin", 1, "admin");
    let snapshots =
        "[snapshots]\nlog_bytes = '1GiB'\nkeep_log_bytes = '64KiB'\nretain_log_bytes = '64KiB'\n";
    let files = three(&place, &limits, snapshots);
    let mut nodes: Vec<Serving> = files.iter().map(|file| place.serve(file)).collect();
    let receiver = (leader(&place, &nodes) + 1) % 3;
    let idle = nodes.iter().map(peak_bytes).max().unwrap();
    drop(nodes.remove(receiver));

    let addresses = nodes.iter().map(Serving::client).collect();
    let load = Load::start(&place, addresses, KEYS_MANY);
    until("all keys", || (load.done() > 2 * KEYS_MANY).then_some(()));
    load.end();
    let of_group = |node: &Serving, key: &str| status(&place, node)?["groups"][0][key].as_u64();
    let is_applied = |node: &Serving| {
        let last = of_group(node, "last")?;
        (of_group(node, "applied")? == last).then_some(last)
    };
    let last = until("that both have applied it", || {
        let at: Vec<Option<u64>> = nodes.iter().map(is_applied).collect();
        (at[0] == at[1]).then_some(at[0])?
    });
    for node in &nodes {
        place.pass(&["snapshot", &node.client(), "--tls", "admin"]);
        until("the cut", || {
            (of_group(node, "first")? > last / 2).then_some(())
        });
    }
    nodes.insert(receiver, place.serve(&files[receiver]));
    until("that the third is brought up", || {
        let fetched = of_group(&nodes[receiver], "snapshot")? > 0;
        (fetched && is_applied(&nodes[receiver])? >= last).then_some(())
    });

    let bound = idle + limits.memory_bytes_max(1, 2, 1, last) + machine;
    assert!(bound < idle + 2 * machine, "the machine is too small");
    for node in &nodes {
        let peak = peak_bytes(node);
        println!("{} MiB at most, {} MiB allowed", peak >> 20, bound >> 20);
        assert!(peak <= bound, "{peak} bytes, {bound} allowed");
        assert!(peak > machine);
    }
}
