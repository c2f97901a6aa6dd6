//! `logdrive wal` over the directory of a node, as an operator meets it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Ended, Place, Serving};
use logdrive_wal::disk::{BLOCK_BYTES, Block};
use logdrive_wal::format::SlotHeader;
use serde_json::Value;

const SMALL: &str = "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n";
const DATA: &str = "n1/data";
const VALUE: &str = "deep where the second bridge stands";

/// A node that was given some values and then stopped.
fn stopped() -> Place {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let node = place.serve(&config);
    for key in ["river", "valley", "hill"] {
        assert_eq!(place.kv(&node, &["put", key, VALUE]).code, 0);
    }
    assert_eq!(node.stop(), 0);
    place
}

fn verify(place: &Place, further: &[&str]) -> Ended {
    let mut args = vec!["wal", "verify", DATA];
    args.extend(further);
    place.run(&args)
}

fn json(ended: &Ended) -> Value {
    let value: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(value["schema"], "logdrive.wal.verify/1");
    for key in ["verdict", "groups", "findings"] {
        assert!(value.get(key).is_some(), "no {key} in {value}");
    }
    value
}

/// Every file below a directory with all its bytes.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            files.push((path, bytes));
        }
    }
    files.sort();
    files
}

/// The slot file that holds these bytes, and where they begin in it.
fn holding(place: &Place, wanted: &[u8]) -> (PathBuf, usize) {
    let files = contents(&place.path(DATA)).into_iter();
    let mut found = files.filter_map(|(path, bytes)| {
        let at = bytes.windows(wanted.len()).position(|here| here == wanted);
        Some((path, at?))
    });
    found.next().expect("the value was written")
}

#[test]
fn a_log_that_was_closed_is_clean_and_not_touched() {
    let place = stopped();
    let before = contents(&place.path(DATA));
    let ended = verify(&place, &[]);
    ended.says(0, &[]);
    let words: Vec<&str> = ended.out.split_whitespace().collect();
    let names: Vec<&str> = words.iter().step_by(2).copied().collect();
    assert_eq!(
        names,
        [
            "verdict", "groups", "segments", "entries", "first", "last", "term", "chain"
        ]
    );
    // The no-op of the leader, and three puts.
    assert_eq!(ended.out.lines().count(), 1, "{}", ended.out);
    let start = "verdict clean groups 1 segments 1 entries 4 first 1 last 4 term 1 chain ";
    assert!(ended.out.starts_with(start), "{}", ended.out);

    let value = json(&verify(&place, &["--json"]));
    assert_eq!(value["verdict"], "clean");
    assert_eq!(value["findings"], Value::Array(Vec::new()));
    let group = &value["groups"][0];
    assert_eq!(
        (&group["group"], &group["first_index"]),
        (&1.into(), &1.into())
    );
    assert_eq!(
        (&group["last_index"], &group["last_term"]),
        (&4.into(), &1.into())
    );
    assert_eq!(group["chain"].as_str().unwrap(), words[words.len() - 1]);
    assert_eq!(group["hard_state"]["term"], 1);
    assert_eq!(group["hard_state"]["vote"]["node"], 1);

    let inspected = place.run(&["wal", "inspect", DATA]);
    inspected.says(0, &[]);
    for part in [
        "log n1/data",
        "slot wal-",
        "Genesis",
        "HardState",
        "Entries",
    ] {
        assert!(
            inspected.out.contains(part),
            "no {part} in {}",
            inspected.out
        );
    }
    assert_eq!(inspected.out.lines().last(), ended.out.lines().last());
    assert_eq!(before, contents(&place.path(DATA)), "it only reads");
}

#[test]
fn a_log_whose_node_was_killed_is_clean_or_torn() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["put", "river", VALUE]).code, 0);
    // Dropped: killed.
    drop(node);
    let ended = verify(&place, &[]);
    ended.says(0, &[]);
    let last = ended.out.lines().last().unwrap();
    let sound = ["verdict clean groups 1 ", "verdict torn groups 1 "];
    assert!(sound.iter().any(|start| last.starts_with(start)), "{last}");
    let value = json(&verify(&place, &["--json"]));
    assert!(
        value["groups"][0]["last_index"].as_u64() >= Some(2),
        "{value}"
    );
}

#[test]
fn a_log_in_use_is_left_alone_unless_asked_for_what_is_sealed() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let node = place.serve(&config);
    let value = "x".repeat(110_000);
    for key in 0..45 {
        assert_eq!(place.kv(&node, &["put", &key.to_string(), &value]).code, 0);
    }
    let refusal = [DATA, "in use by another process", "--while-running"];
    verify(&place, &[]).says(30, &refusal);
    place.run(&["wal", "inspect", DATA]).says(30, &refusal);
    let refused = verify(&place, &["--json"]);
    refused.says(30, &refusal);
    let value = json(&refused);
    assert_eq!(value["verdict"], Value::Null);
    assert!(
        value["error"].as_str().unwrap().contains("in use"),
        "{value}"
    );

    // More than one segment is full, so there is something sealed.
    let value = json(&verify(&place, &["--json", "--while-running"]));
    assert_eq!(value["verdict"], "clean", "{value}");
    assert!(
        value["groups"][0]["last_index"].as_u64() > Some(5),
        "{value}"
    );
    let inspected = place.run(&["wal", "inspect", DATA, "--while-running"]);
    inspected.says(0, &[]);
    assert_eq!(place.kv(&node, &["get", "0"]).code, 0, "the node runs on");
    assert_eq!(node.stop(), 0);
    verify(&place, &[]).says(0, &[]);
}

#[test]
fn a_byte_that_changed_below_the_durable_mark_is_rot() {
    let place = stopped();
    let (file, at) = holding(&place, VALUE.as_bytes());
    let mut bytes = fs::read(&file).unwrap();
    bytes[at + 5] ^= 0x20;
    fs::write(&file, &bytes).unwrap();

    let ended = verify(&place, &[]);
    ended.says(20, &[]);
    let lines: Vec<&str> = ended.out.lines().collect();
    assert!(lines.len() > 1, "findings and the verdict: {}", ended.out);
    let name = file.file_name().unwrap().to_str().unwrap();
    for part in [
        "rot ",
        name,
        " offset ",
        " group 1 index 2: ",
        "back from the others",
        "check the device",
    ] {
        assert!(lines[0].contains(part), "no {part} in {}", lines[0]);
    }
    let (last, findings) = lines.split_last().unwrap();
    assert!(last.starts_with("verdict rot groups 1 "), "{last}");
    // What comes after the hole is reported too, each with its place.
    let named = |line: &&str| line.starts_with("rot ") && line.contains(" offset ");
    assert!(findings.iter().all(named), "{}", ended.out);

    let ended = verify(&place, &["--json"]);
    ended.says(20, &[]);
    let value = json(&ended);
    assert_eq!(value["verdict"], "rot");
    let finding = &value["findings"][0];
    assert_eq!(finding["verdict"], "rot");
    assert!(
        finding["file"].as_str().unwrap().ends_with(name),
        "{finding}"
    );
    let offset = finding["offset_bytes"].as_u64().unwrap();
    let block = at / BLOCK_BYTES * BLOCK_BYTES;
    assert_eq!(offset, block as u64, "{finding}");
    assert_eq!(
        (&finding["group"], &finding["index"]),
        (&1.into(), &2.into())
    );
    assert_eq!(finding["term"], 1);
    let advice = finding["advice"].as_str().unwrap();
    assert!(advice.contains("back from the others"), "{advice}");

    assert_eq!(place.run(&["wal", "inspect", DATA]).code, 20);
    // The node says the same. It starts, and does not lead: there is nobody from whom it could have it back.
    let node = place.serve("n1.toml");
    let status = place.run(&["status", &node.client(), "--tls", "client"]);
    status.says(10, &[]);
    assert!(status.out.contains("ALARM guarded"), "{}", status.out);
    assert!(status.out.contains("your own backup"), "{}", status.out);
}

#[test]
fn what_holds_no_log_is_called_that() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    for (directory, why) in [("empty", "no slot files"), ("absent", "No such file")] {
        for verb in ["verify", "inspect"] {
            let ended = place.run(&["wal", verb, directory]);
            ended.says(30, &[directory, "is not a log", why, "node.dir"]);
            assert_eq!(ended.out, "");
        }
    }
    place.run(&["wal", "verify"]).says(2, &["<DIR>"]);
    let mistyped = ["wal", "verify", "empty", "--while-runing"];
    place.run(&mistyped).says(2, &["'--while-running'"]);
    place.run(&["wal", "verfy", "empty"]).says(2, &["'verify'"]);
}

#[test]
fn a_log_from_the_future_is_refused_with_both_versions() {
    let place = stopped();
    let (file, _) = holding(&place, VALUE.as_bytes());
    let mut bytes = fs::read(&file).unwrap();
    for number in 0..2 {
        let here = &mut bytes[number * BLOCK_BYTES..][..BLOCK_BYTES];
        let mut block = Block::ZERO;
        block.0.copy_from_slice(here);
        let number = u32::try_from(number).unwrap();
        let header = SlotHeader::from_block(&block, number).unwrap().unwrap();
        // The version stands at byte 8 of the header, in every version.
        block.0[8..10].copy_from_slice(&7_u16.to_le_bytes());
        header.stamper().stamp(&mut block, number, false);
        here.copy_from_slice(&block.0);
    }
    fs::write(&file, &bytes).unwrap();
    let says = ["written by a later logdrive", "version 7", "1", "upgrade"];
    verify(&place, &[]).says(30, &says);
    place.run(&["wal", "inspect", DATA]).says(30, &says);
    crate::common::Serve::new(&place, "n1.toml")
        .run()
        .says(30, &says);
}

#[test]
fn a_start_does_what_a_probe_of_the_device_chose() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let node = place.serve(&config);
    let probe = ["wal", "probe", DATA, "--json", "--seconds", "1"];
    place
        .run(&probe)
        .says(30, &["in use by another process: stop the node"]);
    let mode = |node: &Serving| {
        let status = place.pass(&["status", &node.client(), "--tls", "client", "--json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        status["wal"]["flush_mode"].as_str().unwrap().to_owned()
    };
    let chosen = mode(&node);
    assert_eq!(node.stop(), 0);

    let mut probed: Value = serde_json::from_str(&place.pass(&probe)).unwrap();
    assert_eq!(probed["schema"], "logdrive.wal.probe/1");
    assert_eq!(probed["curve"].as_array().unwrap().len(), 20);
    assert!(probed["zero_fill_bytes_per_s"].as_u64().unwrap() > 0);
    // Whatever it is: the other one, so that it shows.
    let other = match chosen.as_str() {
        "dsync" => "drained_fsync",
        _ => "dsync",
    };
    probed["chosen"]["flush_mode"] = other.into();
    let kept = place.path(DATA).join("probe.json");
    fs::write(kept, probed.to_string()).unwrap();
    let node = place.serve(&config);
    assert_eq!(mode(&node), other);
    assert_eq!(node.stop(), 0);
    // It is nothing of the log's.
    assert_eq!(verify(&place, &[]).code, 0);
    let nowhere = ["wal", "probe", "nowhere"];
    place
        .run(&nowhere)
        .says(2, &["nowhere is not a directory", "name one on the device"]);
    let text = place.pass(&["wal", "probe", DATA, "--seconds", "1"]);
    assert!(text.contains("\nchosen "), "{text}");
}

#[test]
fn a_dump_lists_every_entry_and_says_which_cannot_be_read() {
    let place = stopped();
    let before = contents(&place.path(DATA));
    let dump = |further: &[&str]| {
        let mut args = vec!["wal", "dump", DATA];
        args.extend(further);
        place.run(&args)
    };
    let whole = dump(&["--payloads"]);
    whole.says(0, &[]);
    let entries: Vec<&str> = whole
        .out
        .lines()
        .filter(|line| line.starts_with("entry group 1 index "))
        .collect();
    assert_eq!(entries.len(), 4, "{}", whole.out);
    assert!(
        entries[0].contains(" index 1 term 1 noop 0 bytes 0 chain "),
        "{}",
        entries[0]
    );
    assert!(
        entries[3].contains(" index 4 term 1 proposals 1 bytes "),
        "{}",
        entries[3]
    );
    assert!(
        entries[3].contains("wal-00000.slot offset "),
        "{}",
        entries[3]
    );
    assert_eq!(whole.out.matches(VALUE).count(), 3, "{}", whole.out);
    assert_eq!(
        whole.out.lines().last(),
        verify(&place, &[]).out.lines().last()
    );

    let some = dump(&["--group", "1", "--from", "2", "--to", "3"]);
    let listed: Vec<&str> = some.out.lines().collect();
    assert_eq!(listed[..2], entries[1..3]);
    assert_eq!(listed.len(), 3);
    assert_eq!(dump(&["--group", "2"]).out.lines().count(), 1);
    assert_eq!(before, contents(&place.path(DATA)), "it only reads");

    let (path, at) = holding(&place, VALUE.as_bytes());
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let ended = dump(&[]);
    assert_eq!(ended.code, 20, "{}", ended.out);
    assert_eq!(
        ended.out.lines().last(),
        verify(&place, &[]).out.lines().last()
    );
}
