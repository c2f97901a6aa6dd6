//! One block after the other goes bad on nodes that are down, under load: each comes back, gets back what it lacks, and
//! nothing that was answered is gone. `FLIPS` says how many, `SEED` which.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Place, Serving};
use crate::guarded::{files_below, status, until};
use logdrive_wal::disk::{BLOCK_BYTES, Block};
use logdrive_wal::format::SlotHeader;
use serde_json::Value;

const SMALL: &str = "mtu = 'loopback'\n[wal]\nslot_bytes = '1MiB'\nbytes_max = '64MiB'\n\
    [snapshots]\nlog_bytes = '4MiB'\nkeep_log_bytes = '2MiB'\n";

/// Blocks of a slot of 1 MiB.
const SLOT_BLOCKS: usize = 256;

fn asked(name: &str, otherwise: u64) -> u64 {
    let asked = std::env::var(name).ok();
    asked.map_or(otherwise, |text| text.parse().unwrap())
}

/// The slot files of a node by the segments in them, oldest first.
fn segments(place: &Place, node: u64) -> Vec<(u64, PathBuf)> {
    let slots = files_below(place.path(&format!("n{node}/data"))).into_iter();
    let slots = slots.filter(|path| path.extension().is_some_and(|of| of == "slot"));
    let mut segments: Vec<(u64, PathBuf)> = slots
        .filter_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let block = Block(bytes.get(..BLOCK_BYTES)?.try_into().unwrap());
            let header = SlotHeader::from_block(&block, 0).ok()??;
            Some((header.segment, path))
        })
        .collect();
    segments.sort_unstable();
    segments
}

/// A bit of a block of one of the two newest segments, whether something was written there or not.
fn flip(place: &Place, node: u64, which: usize, rng: &mut fastrand::Rng) -> String {
    let mut newest = segments(place, node).into_iter().rev();
    let (segment, path) = newest.nth(which / SLOT_BLOCKS).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), SLOT_BLOCKS * BLOCK_BYTES);
    let block = which % SLOT_BLOCKS;
    let at = block * BLOCK_BYTES + rng.usize(0..BLOCK_BYTES);
    bytes[at] ^= 1 << rng.u8(0..8);
    fs::write(&path, bytes).unwrap();
    format!("node {node} segment {segment} block {block}")
}

/// What a node lacks, by its own account; and how far it has got.
fn stand(place: &Place, node: &Serving) -> (bool, u64) {
    let status = status(place, node);
    let group = &status["groups"][0];
    let lacks = group["guard"] != Value::Null || group["leader"] == Value::Null;
    (lacks, group["applied"].as_u64().unwrap_or(0))
}

struct Load<'a> {
    place: &'a Place,
    addresses: String,
    ends: AtomicBool,
    puts: AtomicU64,
    unknown: AtomicU64,
}

impl Load<'_> {
    fn run(&self, client: u64) {
        let value = "x".repeat(60_000);
        while !self.ends.load(Ordering::Relaxed) {
            let number = self.puts.fetch_add(1, Ordering::Relaxed);
            let key = format!("{client}-{}", number % 64);
            let value = format!("{number} {value}");
            let args = ["kv", "put", &key, &value, "--addr", &self.addresses];
            let put = self
                .place
                .run(&[&args[..], &["--tls", "client", "--timeout", "30s"]].concat());
            // Of what the leader had when it was stopped nobody knows what became of it.
            let unknown = put.err.contains("may have been appended");
            assert!(put.code == 0 || unknown, "put {number}: {}", put.err);
            self.unknown
                .fetch_add(u64::from(put.code != 0), Ordering::Relaxed);
        }
    }
}

/// The load ends with whoever watches it, also if that is by a failure.
struct EndsLoad<'a>(&'a AtomicBool);

impl Drop for EndsLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn blocks_that_go_bad_one_by_one_are_made_good_under_load() {
    let (flips, seed) = (asked("FLIPS", 24), asked("SEED", 1));
    let mut rng = fastrand::Rng::with_seed(seed);
    // Every block of both segments comes once in 512.
    let mut order: Vec<usize> = (0..2 * SLOT_BLOCKS).collect();
    rng.shuffle(&mut order);
    let place = Place::new();
    let files = place.three(SMALL);
    let ports = free_ports();
    for (file, port) in files.iter().zip(&ports) {
        let text = fs::read_to_string(place.path(file)).unwrap();
        let text = text.replace(
            "client = '127.0.0.1:0'",
            &format!("client = '127.0.0.1:{port}'"),
        );
        fs::write(place.path(file), text).unwrap();
    }
    let mut nodes: Vec<Option<Serving>> = files
        .iter()
        .map(|config| Some(place.serve(config)))
        .collect();
    until("a leader", || !stand(&place, nodes[0].as_ref().unwrap()).0);
    let addresses = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    let load = Load {
        place: &place,
        addresses: addresses.collect::<Vec<_>>().join(","),
        ends: AtomicBool::new(false),
        puts: AtomicU64::new(0),
        unknown: AtomicU64::new(0),
    };
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        let load = &load;
        let _ends = EndsLoad(&load.ends);
        for client in 0..2 {
            scope.spawn(move || load.run(client));
        }
        let mut last = [0_u64; 3];
        for number in 0..flips {
            let node = number % 3 + 1;
            let at = usize::try_from(node - 1).unwrap();
            // One bad place at a time: the log has gone on since the last one.
            until("the log goes on", || {
                let newest = segments(&place, node).pop();
                newest.is_some_and(|(segment, _)| last[at] + 3 <= segment)
            });
            assert_eq!(nodes[at].take().unwrap().stop(), 0);
            last[at] = segments(&place, node).pop().unwrap().0;
            let which = order[usize::try_from(number).unwrap() % order.len()];
            let what = flip(&place, node, which, &mut rng);
            let began = Instant::now();
            let other = nodes.iter().flatten().next().unwrap();
            let node = place.serve(&files[at]);
            let (_, goal) = stand(&place, other);
            until(&what, || {
                let (lacks, applied) = stand(&place, &node);
                !lacks && goal <= applied
            });
            took.push(began.elapsed());
            println!("{what}: whole after {} ms", began.elapsed().as_millis());
            nodes[at] = Some(node);
        }
    });
    for (node, serving) in (1..).zip(nodes) {
        assert_eq!(serving.unwrap().stop(), 0);
        let verified = place.run(&["wal", "verify", &format!("n{node}/data")]);
        assert_eq!(verified.code, 0, "{}", verified.out);
    }
    took.sort_unstable();
    let late = took
        .iter()
        .filter(|took| **took > Duration::from_secs(5))
        .count();
    println!(
        "flips {flips} seed {seed} puts {} unknown {} median_ms {} max_ms {} over_5_s {late}",
        load.puts.load(Ordering::Relaxed),
        load.unknown.load(Ordering::Relaxed),
        took[took.len() / 2].as_millis(),
        took.last().unwrap().as_millis()
    );
}

/// Ports that nobody has now, for clients that have to know them before the nodes run.
fn free_ports() -> Vec<u16> {
    let sockets = [(); 3].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap().port())
        .collect()
}
