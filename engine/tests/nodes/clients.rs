//! One node, and clients that reach it over the network.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use logdrive::{
    Batch, Durable, Fatal, GroupId, Node, NodeId, SnapshotReader, StateMachine, Tls, WalSettings,
};
use logdrive_net::ca::{Authority, IssueRequest};
use logdrive_net::{Client, ClientOptions, Code, Credentials, ProposeError, Role};

/// Answers with what takes long to encode.
struct Machine;

struct Slow;

impl StateMachine for Machine {
    type Output = Slow;
    type Reader = ();
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Slow>) -> Result<(), Fatal> {
        outputs.extend(batch.proposals().map(|_| Slow));
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

/// How far the encoding of the one answer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    NotBegun,
    Begun,
    MayEnd,
}

static ENCODING: Mutex<Encoding> = Mutex::new(Encoding::NotBegun);
static CHANGED: Condvar = Condvar::new();

impl From<Slow> for Bytes {
    fn from(_: Slow) -> Self {
        set(Encoding::Begun);
        let released = wait_for(Encoding::MayEnd, Duration::from_secs(10));
        Bytes::from_static(if released { b"released" } else { b"gave up" })
    }
}

fn set(encoding: Encoding) {
    *ENCODING.lock().unwrap() = encoding;
    CHANGED.notify_all();
}

fn wait_for(encoding: Encoding, at_most: Duration) -> bool {
    let state = ENCODING.lock().unwrap();
    let waits = |now: &mut Encoding| *now != encoding;
    let (_state, timeout) = CHANGED.wait_timeout_while(state, at_most, waits).unwrap();
    !timeout.timed_out()
}

/// The encoder is the embedder's code, and runs where machines are applied. What it takes its time over must not
/// be what the shard's thread waits for.
#[test]
fn an_encoder_that_takes_its_time_holds_up_no_other_answer_of_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create("test".parse().unwrap()).unwrap();
    let credentials = |role, id| {
        let tls = dir.path().join(format!("tls-{id}"));
        std::fs::create_dir_all(&tls).unwrap();
        let request = IssueRequest::new(role, NodeId(id), 1);
        authority.issue_into(&tls, &request).unwrap();
        Credentials::load(&tls, role, NodeId(id)).unwrap()
    };
    let mut wal = WalSettings::default();
    wal.slot_bytes = 1 << 20;
    wal.bytes_max = 16 << 20;
    let node = Node::builder(dir.path().join("node"), |_| Machine)
        .cluster("test")
        .listen_client("127.0.0.1:0".parse().unwrap())
        .tls(Tls::from(credentials(Role::Peer, 1)))
        .wal(wal)
        .start()
        .unwrap();
    let address = node.client_address().unwrap().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut options = ClientOptions::default();
        options.timeout = Duration::from_secs(30);
        let credentials = credentials(Role::Client, 9);
        let client = Client::connect(vec![address], &credentials, options);
        let client = client.await.unwrap();
        let slow = tokio::spawn({
            let client = client.clone();
            async move { client.propose(GroupId(1), &b"x"[..]).await }
        });
        let begun = || wait_for(Encoding::Begun, Duration::from_secs(20));
        assert!(tokio::task::spawn_blocking(begun).await.unwrap());
        // It is answered by the shard's thread, on the same connection.
        let other = client.propose(GroupId(99), &b"y"[..]).await;
        set(Encoding::MayEnd);
        let Err(ProposeError::NeverAppended { code, .. }) = other else {
            panic!("{other:?}");
        };
        assert_eq!(code, Code::UNKNOWN_GROUP);
        assert_eq!(slow.await.unwrap().unwrap().output, &b"released"[..]);
    });
}
