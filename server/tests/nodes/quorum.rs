//! A member without the others: what it says of itself needs no quorum.

use crate::common::Place;
use serde_json::Value;

#[test]
fn one_of_three_lives_is_not_ready_and_says_how_it_stands() {
    let place = Place::new();
    let files = place.three("mtu = 'loopback'\n[wal]\nslot_bytes = '4MiB'\nbytes_max = '64MiB'\n");
    let node = place.serve(&files[0]);

    let (code, page) = node.page("/livez");
    assert_eq!(code, 200, "{page}");
    let (code, page) = node.page("/readyz");
    assert_eq!(code, 503, "{page}");

    let address = node.client();
    let ended = place.run(&["status", &address, "--tls", "client", "--json"]);
    ended.says(10, &[]);
    let status: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(status["schema"], "logdrive.status/1");
    assert_eq!(status["groups"][0]["leader"], Value::Null, "{status}");
    let peers = status["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 2, "{status}");
    for peer in peers {
        assert_ne!(peer["state"], "connected", "{status}");
    }
}
