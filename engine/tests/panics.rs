//! Whoever panics, the process lives, and everybody who waits is answered.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use logdrive::{
    Batch, Code, Durable, Fatal, GroupId, Node, SnapshotReader, StartError, StateMachine,
    WalSettings, wait,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

struct Echo;

impl StateMachine for Echo {
    type Output = usize;
    type Reader = ();
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<usize>) -> Result<(), Fatal> {
        outputs.extend(batch.proposals().map(|(_, payload)| payload.len()));
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

fn start(
    dir: &std::path::Path,
    machines: impl FnMut(GroupId) -> Echo + Send + 'static,
) -> Result<Node<Echo>, StartError> {
    let mut wal = WalSettings::default();
    wal.slot_bytes = 1 << 20;
    wal.bytes_max = 16 << 20;
    Node::builder(dir, machines).wal(wal).start()
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_machine_that_cannot_be_made_is_an_error_of_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let error = start(dir.path(), |_| panic!("no such machine")).unwrap_err();
    assert!(matches!(error, StartError::Machine { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("panicked: no such machine"), "{text}");
    // Nothing of the attempt is left: the directory opens.
    start(dir.path(), |_| Echo).unwrap();
}

/// The waker of an executor that has gone wrong.
struct Broken;

impl Wake for Broken {
    fn wake(self: Arc<Self>) {
        panic!("broken waker");
    }
}

#[test]
fn whoever_waits_with_a_broken_waker_gets_the_answer_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| Echo).unwrap();
    assert!(wait(node.leader_known()).is_some());
    let broken = Waker::from(Arc::new(Broken));
    let mut broken = Context::from_waker(&broken);
    let mut later = Context::from_waker(Waker::noop());
    // The future may be polled when the answer is there already.
    let (mut one, mut many) = (0, 0);
    eventually("answers that are waited for", || {
        let mut proposal = pin!(node.propose("abc"));
        let mut proposals = pin!(
            node.group(GroupId(1))
                .unwrap()
                .propose_many(&["x", "yz"])
                .unwrap()
        );
        let waits = proposal.as_mut().poll(&mut broken) == Poll::Pending;
        let wait_too = proposals.as_mut().poll(&mut broken) == Poll::Pending;
        assert_eq!(wait(node.propose("after them")).unwrap().output, 10);
        if waits {
            let Poll::Ready(Ok(applied)) = proposal.poll(&mut later) else {
                panic!("the answer is gone");
            };
            assert_eq!(applied.output, 3);
            one += 1;
        }
        if wait_too {
            let Poll::Ready(answers) = proposals.poll(&mut later) else {
                panic!("the answers are gone");
            };
            let outputs = answers.into_iter().map(|answer| answer.unwrap().output);
            assert_eq!(outputs.collect::<Vec<_>>(), [1, 2]);
            many += 1;
        }
        one > 0 && many > 0
    });
    let status = node.status();
    assert!(status.running && status.alarms.is_empty(), "{status:?}");
}

/// A log of the host that panics on the shard's thread over one line.
struct Armed(AtomicBool);

struct Says<'a>(&'a mut bool);

impl Visit for Says<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        *self.0 |= field.name() == "message" && format!("{value:?}").contains("the log is full");
    }
}

impl Subscriber for Armed {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut says = false;
        event.record(&mut Says(&mut says));
        if says && !self.0.swap(true, Ordering::SeqCst) {
            panic!("broken log");
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_panic_on_the_shards_thread_fences_the_node_and_answers_everybody() {
    tracing::subscriber::set_global_default(Armed(AtomicBool::new(false))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| Echo).unwrap();
    assert!(wait(node.leader_known()).is_some());
    let payload = vec![b'x'; 100_000];
    let mut waiting = Vec::new();
    // The log fills up, the shard says so, and the host's log panics.
    eventually("the panic", || {
        waiting.push(node.propose(payload.clone()));
        !node.status().running
    });
    for proposal in waiting {
        if let Err(error) = wait(proposal) {
            assert!(!error.advice().is_empty(), "{error}");
        }
    }
    let error = wait(node.propose("x")).unwrap_err();
    assert_eq!(error.code(), Code::Halted);
    let alarms = node.status().alarms;
    let panicked = alarms.iter().find(|alarm| alarm.code == "panicked");
    assert!(panicked.unwrap().text.contains("broken log"));
}
