//! What goes wrong with a node says what to do. A test a message.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use crate::common::{Ended, Place, Serve};

const SMALL: &str = "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n";

#[test]
fn a_port_in_use() {
    let place = Place::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = place.node(1, SMALL);
    let ended = Serve::new(&place, &config)
        .with("LOGDRIVE_LISTEN_CLIENT", &address)
        .run();
    ended.says(
        2,
        &[
            "listen on",
            &address,
            "the port is in use",
            "choose another port",
        ],
    );
}

#[test]
fn an_http_port_in_use() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = place.node(1, SMALL);
    let ended = Serve::new(&place, &config)
        .with("LOGDRIVE_LISTEN_HTTP", &address)
        .run();
    ended.says(2, &["listen on", &address, "the port is in use"]);
}

#[test]
fn a_locked_directory() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let _first = place.serve(&config);
    Serve::new(&place, &config).run().says(
        30,
        &[
            "n1/data",
            "in use by another process",
            "stop it, or give this one a directory of its own",
        ],
    );
}

#[test]
fn no_certificate() {
    let place = Place::new();
    let config = place.config(1, SMALL);
    Serve::new(&place, &config)
        .run()
        .says(2, &["n1/tls/ca.crt", "logdrive tls issue", "tls.dir"]);
}

#[test]
fn a_certificate_of_another_node() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    place.issue("peer", 2, "n1/tls");
    fs::rename(
        place.path("n1/tls/peer-2.crt"),
        place.path("n1/tls/peer-1.crt"),
    )
    .unwrap();
    fs::rename(
        place.path("n1/tls/peer-2.key"),
        place.path("n1/tls/peer-1.key"),
    )
    .unwrap();
    Serve::new(&place, &config).run().says(
        2,
        &[
            "logdrive://demo/peer/2",
            "wanted was peer 1",
            "logdrive tls issue",
        ],
    );
}

#[test]
fn a_certificate_of_another_cluster() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let ended = Serve::new(&place, &config)
        .with("LOGDRIVE_CLUSTER_ID", "other")
        .run();
    ended.says(2, &["demo", "other", "cluster.id"]);
}

#[test]
fn a_certificate_of_another_authority() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let other = ["tls", "init", "--dir", "other", "--cluster", "demo"];
    place.pass(&other);
    fs::copy(place.path("other/ca.crt"), place.path("n1/tls/ca.crt")).unwrap();
    Serve::new(&place, &config).run().says(
        2,
        &[
            "peer-1.crt",
            "was not issued by the authority",
            "logdrive tls init",
        ],
    );
}

#[test]
fn a_key_that_others_can_read() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let key = place.path("n1/tls/peer-1.key");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    Serve::new(&place, &config)
        .run()
        .says(2, &["peer-1.key", "0644", "chmod 600"]);
}

#[test]
fn a_client_certificate_of_another_authority() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let node = place.serve(&config);
    place.pass(&["tls", "init", "--dir", "other", "--cluster", "demo"]);
    place.pass(&["tls", "issue", "--dir", "other", "--role", "client"]);
    let ended = place.run(&["status", &node.client(), "--tls", "other"]);
    assert_eq!(ended.code, 30, "{} {}", ended.out, ended.err);
    assert!(ended.out.contains("certificate"), "{}", ended.out);
}

#[test]
fn a_directory_of_another_node() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    drop(place.serve(&config));
    let second = place.node(2, SMALL);
    let ended = Serve::new(&place, &second)
        .with("LOGDRIVE_NODE_DIR", "n1/data")
        .run();
    ended.says(30, &["n1/data", "belongs to node 1", "node.id or node.dir"]);
}

#[test]
fn a_directory_of_another_cluster() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    drop(place.serve(&config));
    place.pass(&["tls", "init", "--dir", "other", "--cluster", "other"]);
    place.pass(&["tls", "issue", "--dir", "other", "--role", "peer"]);
    let ended = Serve::new(&place, &config)
        .with("LOGDRIVE_CLUSTER_ID", "other")
        .with("LOGDRIVE_TLS_DIR", "other")
        .run();
    ended.says(30, &["n1/data", "cluster.id or node.dir"]);
}

#[test]
fn a_full_disk() {
    let place = Place::new();
    // A snapshot takes so long that the log is full before it could be cut.
    let slow = "[snapshots]\nwrite_bytes_per_s = '1KiB'\n";
    let config = format!("[wal]\nslot_bytes = '4MiB'\nbytes_max = '24MiB'\n{slow}");
    let config = place.node(1, &config);
    let node = place.serve(&config);
    assert_eq!(place.kv(&node, &["put", "first", "of all"]).code, 0);
    let (address, value) = (node.client(), "x".repeat(120_000));
    let mut args = vec!["kv", "put", "k", &value, "--addr", &address];
    args.extend(["--tls", "client", "--timeout", "1s"]);
    // A busy machine may let the deadline pass while an attempt is under way: then nobody knows.
    let under_way = |put: &Ended| put.err.contains("may have been appended");
    let mut puts = (0..1000).map(|_| place.run(&args));
    let refused = puts.find(|put| put.code != 0 && !under_way(put));
    let refused = refused.expect("the log has a bound");
    refused.says(10, &["storage_full", "not appended", "wal.bytes_max"]);
    // Whenever the deadline comes between two attempts, the answer is why each of them was refused.
    args.pop();
    let ends = (400..1300).step_by(75);
    let between: usize = std::thread::scope(|scope| {
        let puts: Vec<_> = ends
            .map(|timeout| {
                let (place, args) = (&place, &args);
                scope.spawn(move || {
                    let timeout = format!("{timeout}ms");
                    let mut args = args.clone();
                    args.push(&timeout);
                    place.run(&args)
                })
            })
            .collect();
        let ended = puts.into_iter().map(|put| put.join().unwrap());
        let between = ended.filter(|put| !under_way(put));
        between
            .map(|put| put.says(10, &["storage_full", "not appended"]))
            .count()
    });
    assert!(
        between > 0,
        "every deadline came while an attempt was under way"
    );
    let ended = place.run(&["status", &node.client(), "--tls", "client"]);
    assert_eq!(ended.code, 10);
    assert!(ended.out.contains("ALARM storage_full"), "{}", ended.out);
    assert!(
        ended
            .out
            .contains("free space on the disk, or raise wal.bytes_max"),
        "{}",
        ended.out
    );
    assert_eq!(node.page("/livez").0, 200);
}

#[test]
fn a_mistyped_key() {
    let place = Place::new();
    let config = place.node(1, "[wal]\nbyte_max = '1GiB'\n");
    Serve::new(&place, &config).run().says(
        2,
        &[
            "n1.toml:12",
            "no key `wal.byte_max`",
            "did you mean `wal.bytes_max`?",
        ],
    );
}

#[test]
fn a_mistyped_variable() {
    let place = Place::new();
    let config = place.node(1, SMALL);
    let ended = Serve::new(&place, &config)
        .with("LOGDRIVE_WAL_BYTE_MAX", "1GiB")
        .run();
    ended.says(2, &["did you mean LOGDRIVE_WAL_BYTES_MAX?"]);
}

#[test]
fn a_mistyped_flag() {
    let place = Place::new();
    place
        .run(&["serve", "--confg", "x"])
        .says(2, &["'--config'"]);
    place.run(&["statsu"]).says(2, &["'status'"]);
    place.run(&["kv", "gett", "k"]).says(2, &["'get'"]);
}

#[test]
fn no_configuration() {
    let place = Place::new();
    place
        .run(&["serve", "--config", "absent.toml"])
        .says(2, &["absent.toml", "No such file"]);
}

#[test]
fn settings_that_cannot_be_used() {
    let place = Place::new();
    let config = place.node(1, "[raft]\nheartbeat_interval = '1s'\n");
    let ended = place.run(&["serve", "--config", &config, "--check"]);
    ended.says(2, &["raft.heartbeat_interval", "election_timeout_min"]);
    // What a thread of the node would fail on is told before there is one.
    for (settings, says) in [
        ("[raft]\nheartbeat_interval = '0s'\n", "heartbeat_interval"),
        ("[raft]\ndisk_lag_max = '0s'\n", "disk_lag_max"),
        ("[limits]\nappend_bytes_max = '1GiB'\n", "append_bytes_max"),
        ("[wal]\nslot_bytes = 65537\n", "whole blocks"),
        ("[wal]\nbytes_max = '64KiB'\n", "fewer than 6 slots"),
    ] {
        let config = place.node(1, settings);
        let ended = place.run(&["serve", "--config", &config, "--check"]);
        ended.says(2, &[says]);
    }
    let config = place.config(1, "[cluster2]\n");
    place
        .run(&["serve", "--config", &config, "--check"])
        .says(2, &["n1.toml:11", "no key `cluster2`"]);
}

#[test]
fn nobody_there() {
    let place = Place::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = [
        "kv",
        "get",
        "k",
        "--addr",
        &address,
        "--tls",
        "client",
        "--timeout",
        "300ms",
    ];
    place.run(&args).says(30, &[&address]);
    let args = ["status", &address, "--tls", "client", "--timeout", "300ms"];
    let ended = place.run(&args);
    assert_eq!(ended.code, 30);
    assert!(ended.out.contains(&address), "{}", ended.out);
}

#[test]
fn a_second_authority_in_the_same_place() {
    let place = Place::new();
    place
        .run(&["tls", "init", "--dir", "authority", "--cluster", "demo"])
        .says(2, &["exists", "choose another directory"]);
    place
        .run(&["tls", "init", "--dir", "new", "--cluster", "Demo"])
        .says(2, &["lower-case letters"]);
    place
        .run(&["tls", "issue", "--dir", "absent", "--role", "peer"])
        .says(2, &["logdrive tls init"]);
}
