//! `logdrive status --watch`: one status after the other, until it is killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::common::Place;
use serde_json::Value;

/// Killed when dropped.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_goes_on_asking_also_after_the_node_is_gone() {
    let place = Place::new();
    let config = place.node(1, "[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    let node = place.serve(&config);
    let address = node.client();
    let watch = |further: &[&str]| {
        let mut args = vec!["status", &address, "--tls", "client", "--watch"];
        args.extend(["--interval", "20ms"]);
        args.extend(further);
        let mut command = place.command(&args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        (Watching(child), BufReader::new(output).lines())
    };

    let (_watching, mut lines) = watch(&["--json", "--timeout", "30s"]);
    let mut uptimes = Vec::new();
    for _ in 0..3 {
        let status: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(status["schema"], "logdrive.status/1");
        uptimes.push(status["uptime_s"].as_f64().unwrap());
    }
    assert!(uptimes.is_sorted(), "{uptimes:?}");

    let (_watching, mut lines) = watch(&["--timeout", "300ms"]);
    let mut wait_for = |what: &str| {
        let found = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(what));
        assert!(found.is_some(), "it ended before it said {what}");
    };
    wait_for("healthy");
    // No terminal is cleared where there is none.
    wait_for("healthy");
    assert_eq!(node.stop(), 0);
    wait_for("is the node running");
}
