//! A block of a log goes bad while its node is down: what an operator sees, and that it ends by itself.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common::{Place, Serving};
use logdrive_wal::disk::BLOCK_BYTES;
use logdrive_wal::format::GroupHeader;
use serde_json::Value;

const SMALL: &str = "mtu = 'loopback'\n[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n";

/// A bit of the last flush group of a log is another one.
fn spoil_last(place: &Place, node: u64) {
    let data = place.path(&format!("n{node}/data"));
    let slots = files_below(data).into_iter();
    let slots = slots.filter(|path| path.extension().is_some_and(|of| of == "slot"));
    let mut last = None;
    for path in slots {
        let bytes = fs::read(&path).unwrap();
        for (block, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if let Ok((header, _)) = GroupHeader::parse(bytes) {
                last = last.max(Some((header.number, path.clone(), block)));
            }
        }
    }
    let (_, path, block) = last.unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[block * BLOCK_BYTES + 100] ^= 1;
    fs::write(path, bytes).unwrap();
}

pub(crate) fn files_below(directory: PathBuf) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory).unwrap();
    let paths = listed.map(|file| file.unwrap().path());
    let below = paths.flat_map(|path| {
        if path.is_dir() {
            files_below(path)
        } else {
            vec![path]
        }
    });
    below.collect()
}

pub(crate) fn status(place: &Place, node: &Serving) -> Value {
    let ended = place.run(&["status", &node.client(), "--tls", "client", "--json"]);
    serde_json::from_str(&ended.out).unwrap()
}

/// Asks until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "not in a minute: {what}");
    }
}

fn leader_of(place: &Place, node: &Serving) -> Option<u64> {
    status(place, node)["groups"][0]["leader"].as_u64()
}

#[test]
fn a_follower_is_guarded_until_its_leader_has_brought_everything() {
    let place = Place::new();
    let files = place.three(SMALL);
    let mut nodes: Vec<Option<Serving>> = files
        .iter()
        .map(|config| Some(place.serve(config)))
        .collect();
    let first = nodes[0].as_ref().unwrap();
    until("a leader", || leader_of(&place, first).is_some());
    let leader = leader_of(&place, first).unwrap();
    let behind = if leader == 3 { 2 } else { 3 };
    let at = usize::try_from(leader - 1).unwrap();
    let leads = nodes[at].as_ref().unwrap();
    assert_eq!(place.kv(leads, &["put", "river", "bridge"]).code, 0);

    let stopped = nodes[usize::try_from(behind - 1).unwrap()].take();
    assert_eq!(stopped.unwrap().stop(), 0);
    spoil_last(&place, behind);
    let verified = place.run(&["wal", "verify", &format!("n{behind}/data")]);
    assert_eq!(verified.code, 20, "{}", verified.out);
    assert!(verified.out.contains("neither leads nor elects"));
    let inspected = place.run(&["wal", "inspect", &format!("n{behind}/data")]);
    assert!(inspected.out.contains(" guard "), "{}", inspected.out);

    let again = place.serve(&files[usize::try_from(behind - 1).unwrap()]);
    until("the guard is over", || {
        let status = status(&place, &again);
        let alarms = status["alarms"].as_array().unwrap();
        let guarded = alarms.iter().any(|alarm| alarm["code"] == "guarded");
        let group = &status["groups"][0];
        assert_eq!(guarded, group["guard"] != Value::Null, "{status}");
        !guarded && group["leader"] == leader
    });
    let leads = nodes[at].as_ref().unwrap();
    assert_eq!(place.kv(leads, &["get", "river"]).out.trim(), "bridge");
}

#[test]
fn alone_a_guarded_node_does_not_lead_and_says_why() {
    let place = Place::new();
    let config = place.node(1, SMALL.split_once('\n').unwrap().1);
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["put", "river", "bridge"]).code, 0);
    assert_eq!(node.stop(), 0);
    spoil_last(&place, 1);
    let node = place.serve(&config);
    let ended = place.run(&["status", &node.client(), "--tls", "client"]);
    assert_eq!(ended.code, 10, "{}", ended.out);
    assert!(ended.out.contains("ALARM guarded"), "{}", ended.out);
    assert!(ended.out.contains("your own backup"), "{}", ended.out);
    let status = status(&place, &node);
    assert_eq!(status["groups"][0]["role"], "follower", "{status}");
    assert_eq!(status["groups"][0]["guard"], "1.any", "{status}");
}

/// A bit of a value is another one, wherever this node has it.
fn spoil_value(place: &Place, node: u64, value: &str) {
    let data = place.path(&format!("n{node}/data"));
    let mut spoiled = 0;
    for path in files_below(data) {
        let mut bytes = fs::read(&path).unwrap();
        let found = bytes
            .windows(value.len())
            .position(|here| here == value.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            spoiled += 1;
        }
    }
    assert_eq!(spoiled, 1);
}

fn last_of(place: &Place, node: &Serving) -> (u64, u64) {
    let status = status(place, node);
    let group = &status["groups"][0];
    let number = |value: &Value| value.as_u64().unwrap();
    (number(&group["last"]), number(&group["applied"]))
}

#[test]
fn a_follower_gets_back_what_went_bad_in_the_middle_of_its_log() {
    let place = Place::new();
    let files = place.three(SMALL);
    let mut nodes: Vec<Option<Serving>> = files
        .iter()
        .map(|config| Some(place.serve(config)))
        .collect();
    let first = nodes[0].as_ref().unwrap();
    until("a leader", || leader_of(&place, first).is_some());
    let leader = leader_of(&place, first).unwrap();
    let behind = if leader == 3 { 2 } else { 3 };
    let at = usize::try_from(leader - 1).unwrap();
    let leads = nodes[at].as_ref().unwrap();
    for number in 0..12 {
        let put = [
            "put",
            &number.to_string(),
            &format!("value number {number}"),
        ];
        assert_eq!(place.kv(leads, &put).code, 0);
    }
    let follows = usize::try_from(behind - 1).unwrap();
    let written = last_of(&place, leads);
    until("the follower has it all", || {
        last_of(&place, nodes[follows].as_ref().unwrap()) == written
    });
    assert_eq!(nodes[follows].take().unwrap().stop(), 0);
    spoil_value(&place, behind, "value number 3");
    let data = format!("n{behind}/data");
    let verified = place.run(&["wal", "verify", &data]);
    verified.says(20, &[]);
    for part in ["are missing", "back from the others"] {
        assert!(verified.out.contains(part), "{}", verified.out);
    }

    let again = place.serve(&files[follows]);
    until("it has all of it back", || {
        let status = status(&place, &again);
        let alarms = status["alarms"].as_array().unwrap();
        let guarded = alarms.iter().any(|alarm| alarm["code"] == "guarded");
        !guarded && last_of(&place, &again) == written
    });
    // That one, and not what lies behind it.
    let status = status(&place, &again);
    assert_eq!(status["groups"][0]["missing"], 0, "{status}");
    assert_eq!(status["groups"][0]["repaired"], 1, "{status}");
    assert_eq!(again.stop(), 0);
    let verified = place.run(&["wal", "verify", &data]);
    verified.says(0, &[]);
    assert!(verified.out.contains("mended "), "{}", verified.out);
}

/// What goes bad while a node runs is found without being asked for, and is back before anybody needs it.
#[test]
fn what_goes_bad_at_rest_is_found_and_comes_back_while_the_node_runs() {
    let place = Place::new();
    let files = place.three(
        "mtu = 'loopback'\n[wal]\nslot_bytes = '1MiB'\nbytes_max = '64MiB'\nscrub_rate = '64MiB/s'\n\
         scrub_interval = '50ms'\n",
    );
    let nodes: Vec<Serving> = files.iter().map(|config| place.serve(config)).collect();
    let mut leader = None;
    until("a leader", || {
        leader = leader_of(&place, &nodes[0]);
        leader.is_some()
    });
    let leader = leader.unwrap();
    let leads = &nodes[usize::try_from(leader - 1).unwrap()];
    for number in 0..40 {
        let value = format!("value number {number} {}", "x".repeat(60_000));
        let put = place.kv(leads, &["put", &number.to_string(), &value]);
        assert_eq!(put.code, 0, "{}", put.err);
    }
    let written = last_of(&place, leads);
    until("all have it all", || {
        nodes.iter().all(|node| last_of(&place, node) == written)
    });
    // On the leader, which goes on leading.
    spoil_in_place(&place, leader, "value number 3 xx");
    until("it is found and back", || {
        let status = status(&place, leads);
        let group = &status["groups"][0];
        let alarms = status["alarms"].as_array().unwrap();
        let bad = alarms.iter().any(|alarm| alarm["code"] == "went_bad");
        group["repaired"].as_u64() > Some(0) && group["missing"] == 0 && !bad
    });
    assert_eq!(leader_of(&place, leads), Some(leader));
    for node in nodes {
        assert_eq!(node.stop(), 0);
    }
    let verified = place.run(&["wal", "verify", &format!("n{leader}/data")]);
    verified.says(0, &[]);
    assert!(verified.out.contains("mended "), "{}", verified.out);
}

/// The same without touching anything else of files that are in use.
fn spoil_in_place(place: &Place, node: u64, value: &str) {
    let mut spoiled = 0;
    for path in files_below(place.path(&format!("n{node}/data"))) {
        let bytes = fs::read(&path).unwrap();
        let found = bytes
            .windows(value.len())
            .position(|here| here == value.as_bytes());
        if let Some(at) = found {
            let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[bytes[at] ^ 1]).unwrap();
            file.sync_all().unwrap();
            spoiled += 1;
        }
    }
    assert_eq!(spoiled, 1);
}

/// Nobody can lead, for each has lost what another one has; they get it back from each other all the same.
#[test]
fn three_that_have_each_lost_something_else_heal_without_a_leader() {
    let place = Place::new();
    let files = place.three(SMALL);
    let serve = || -> Vec<Serving> { files.iter().map(|config| place.serve(config)).collect() };
    let nodes = serve();
    let mut leader = None;
    until("a leader", || {
        leader = leader_of(&place, &nodes[0]);
        leader.is_some()
    });
    let leads = &nodes[usize::try_from(leader.unwrap() - 1).unwrap()];
    for number in 0..12 {
        let value = format!("value number {number}");
        assert_eq!(
            place.kv(leads, &["put", &number.to_string(), &value]).code,
            0
        );
    }
    let written = last_of(&place, leads);
    until("all have it all", || {
        nodes.iter().all(|node| last_of(&place, node) == written)
    });
    for node in nodes {
        assert_eq!(node.stop(), 0);
    }
    for (node, lost) in [(1, 3), (2, 5), (3, 7)] {
        spoil_value(&place, node, &format!("value number {lost}"));
    }
    let nodes = serve();
    until("all have it all again", || {
        nodes.iter().all(|node| {
            let status = status(&place, node);
            let group = &status["groups"][0];
            group["missing"] == 0 && group["applied"].as_u64() > Some(written.1)
        })
    });
    for node in &nodes {
        let status = status(&place, node);
        assert_eq!(status["groups"][0]["repaired"], 1, "{status}");
        assert_eq!(status["groups"][0]["guard"], Value::Null, "{status}");
    }
    let leader = leader_of(&place, &nodes[0]).unwrap();
    let leads = &nodes[usize::try_from(leader - 1).unwrap()];
    for number in 0..12 {
        let got = place.kv(leads, &["get", &number.to_string()]);
        assert_eq!(got.out.trim(), format!("value number {number}"));
    }
}

/// Nobody can bring it back: an operator gives it up, is told what that is, and the node leads again.
#[test]
fn what_nobody_has_is_given_up_by_hand() {
    let place = Place::new();
    let config = place.node(1, SMALL.split_once('\n').unwrap().1);
    let settle = |more: &[&str]| place.run(&[&["wal", "settle", "n1/data"], more].concat());
    let node = place.serve(&config);
    for number in 0..6 {
        let put = [
            "put",
            &number.to_string(),
            &format!("value number {number}"),
        ];
        assert_eq!(place.kv(&node, &put).code, 0);
    }
    settle(&[]).says(30, &["in use by another process", "stop the node"]);
    assert_eq!(node.stop(), 0);
    settle(&["--give-up"]).says(0, &[]);
    assert!(settle(&[]).out.contains("nothing to give up"));

    spoil_value(&place, 1, "value number 3");
    let looked = settle(&[]);
    looked.says(10, &[]);
    for part in [
        "group 1 ends at ",
        "may have acknowledged entries up to ",
        "is given up",
        "are missing",
        "--give-up",
    ] {
        assert!(looked.out.contains(part), "no {part} in {}", looked.out);
    }
    assert_eq!(settle(&[]).out, looked.out, "looking changes nothing");
    let other = settle(&["--group", "7", "--give-up"]);
    assert!(other.out.contains("nothing to give up"), "{}", other.out);
    let given_up = settle(&["--give-up"]);
    given_up.says(0, &[]);
    assert!(given_up.out.contains("was settled at "), "{}", given_up.out);

    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["get", "2"]).out.trim(), "value number 2");
    assert_eq!(place.kv(&node, &["get", "4"]).code, 10);
    assert_eq!(place.kv(&node, &["put", "river", "bridge"]).code, 0);
    assert_eq!(node.stop(), 0);
    spoil_last(&place, 1);
    assert_eq!(settle(&["--give-up"]).code, 0);
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["put", "river", "boat"]).code, 0);
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// A copy of a directory is not the directory: what was acknowledged after it was made is gone.
#[test]
fn a_directory_that_was_put_back_is_told_and_halts() {
    let place = Place::new();
    let files = place.three(SMALL);
    let mut nodes: Vec<Option<Serving>> = files
        .iter()
        .map(|config| Some(place.serve(config)))
        .collect();
    let first = nodes[0].as_ref().unwrap();
    until("a leader", || leader_of(&place, first).is_some());
    let leader = leader_of(&place, first).unwrap();
    let node = if leader == 3 { 2 } else { 3 };
    let at = usize::try_from(node - 1).unwrap();
    let data = place.path(&format!("n{node}/data"));
    let copy = place.path("copy");
    assert_eq!(nodes[at].take().unwrap().stop(), 0);
    copy_all(&data, &copy);
    for _ in 0..2 {
        let again = place.serve(&files[at]);
        until("it follows", || leader_of(&place, &again) == Some(leader));
        assert_eq!(again.stop(), 0);
    }
    fs::remove_dir_all(&data).unwrap();
    copy_all(&copy, &data);
    let again = place.serve(&files[at]);
    until("it halts", || {
        let status = status(&place, &again);
        let group = &status["groups"][0];
        group["role"] == "halted" && group["why"].as_str().unwrap().contains("an earlier state")
    });
    let leads = nodes[usize::try_from(leader - 1).unwrap()]
        .as_ref()
        .unwrap();
    assert_eq!(place.kv(leads, &["put", "river", "bridge"]).code, 0);
}
