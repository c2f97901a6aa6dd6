//! What a node logs: events with a name and the node's id, and once a minute of a peer that is not there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use logdrive::{
    Batch, Durable, Fatal, GroupId, Node, SnapshotReader, StateMachine, Tls, WalSettings, wait,
};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{Credentials, Role};
use logdrive_raft::NodeId;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Takes every payload but one.
struct Choosy;

impl StateMachine for Choosy {
    type Output = ();
    type Reader = ();
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<()>) -> Result<(), Fatal> {
        for (_, payload) in batch.proposals() {
            if payload == b"poison" {
                return Err(Fatal::new("cannot take it"));
            }
            outputs.push(());
        }
        Ok(())
    }

    fn reader(&self) {}

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        Ok(Vec::new())
    }

    fn install(&mut self, _: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        Ok(())
    }
}

/// The fields of an event, as text.
type Fields = BTreeMap<String, String>;

/// Hands on every event of logdrive above the level of debugging.
struct Listener(Sender<Fields>);

struct Reading(Fields);

impl Visit for Reading {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("logdrive") && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut reading = Reading(Fields::new());
        event.record(&mut reading);
        // The test may be over.
        drop(self.0.send(reading.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The next event of this name; all that come before it are kept, too.
fn until(events: &Receiver<Fields>, heard: &mut Vec<Fields>, name: &str) -> Fields {
    loop {
        let fields = events
            .recv_timeout(Duration::from_secs(30))
            .unwrap_or_else(|_| panic!("no event {name} after {heard:?}"));
        heard.push(fields.clone());
        if fields.get("event").map(String::as_str) == Some(name) {
            return fields;
        }
    }
}

fn wal() -> WalSettings {
    let mut wal = WalSettings::default();
    wal.slot_bytes = 1 << 20;
    wal.bytes_max = 16 << 20;
    wal
}

fn machines() -> impl FnMut(GroupId) -> Choosy + Send + 'static {
    |_| Choosy
}

#[test]
fn events_name_themselves_and_their_node_and_an_absent_peer_makes_one() {
    let (sender, events) = channel();
    tracing::subscriber::set_global_default(Listener(sender)).unwrap();
    let mut heard = Vec::new();
    let dir = tempfile::tempdir().unwrap();

    let alone = Node::builder(dir.path().join("alone"), machines())
        .id(7)
        .wal(wal())
        .start()
        .unwrap();
    wait(alone.leader_known()).unwrap();
    wait(alone.propose("good")).unwrap();
    wait(alone.propose("poison")).unwrap_err();
    let failed = until(&events, &mut heard, "machine_failed");
    for (field, value) in [("node", "7"), ("group", "1"), ("code", "halted")] {
        assert_eq!(failed[field], value, "{failed:?}");
    }
    assert!(failed["index"].parse::<u64>().unwrap() > 1, "{failed:?}");
    assert!(
        heard.iter().any(|fields| fields["event"] == "role"),
        "{heard:?}"
    );

    // Nobody answers there, and what comes tells how often it was tried.
    let absent = UdpSocket::bind("127.0.0.1:0").unwrap();
    absent
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let authority = Authority::create("test".parse().unwrap()).unwrap();
    let tls = dir.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let request = IssueRequest::new(Role::Peer, NodeId(1), 1);
    authority.issue_into(&tls, &request).unwrap();
    let left = Node::builder(dir.path().join("left"), machines())
        .id(1)
        .cluster("test")
        .members([
            (1, "127.0.0.1:9".to_owned()),
            (2, absent.local_addr().unwrap().to_string()),
        ])
        .listen_peer("127.0.0.1:0".parse().unwrap())
        .tls(Tls::from(
            Credentials::load(&tls, Role::Peer, NodeId(1)).unwrap(),
        ))
        .wal(wal())
        .start()
        .unwrap();
    let mut attempts = BTreeSet::new();
    let mut datagram = [0; 65_536];
    while attempts.len() < 4 {
        let length = absent
            .recv(&mut datagram)
            .expect("it dials again and again");
        // The connection id that the dialling side chose (RFC 9000 §17.2).
        let id_length = usize::from(datagram[5]);
        attempts.insert(datagram[..length][6..6 + id_length].to_vec());
    }
    left.shutdown(Duration::ZERO);
    alone.shutdown(Duration::ZERO);
    heard.extend(events.try_iter());
    let offline: Vec<&Fields> = heard
        .iter()
        .filter(|fields| fields["event"] == "peer_offline")
        .collect();
    assert_eq!(offline.len(), 1, "{offline:?}");
    for (field, value) in [("node", "1"), ("peer", "2"), ("code", "unreachable")] {
        assert_eq!(offline[0][field], value, "{offline:?}");
    }
    for fields in &heard {
        assert!(fields.contains_key("event"), "{fields:?}");
        assert!(fields.contains_key("node"), "{fields:?}");
    }
}
