//! One node on a real disk, from its first start through restarts.

use std::path::Path;
use std::time::Duration;

use logdrive::{
    Batch, Code, Durable, Fatal, Limits, Node, Outcome, SnapshotReader, StartError, StateMachine,
    WalBackend, WalSettings, wait,
};

/// Remembers every command.
#[derive(Default)]
struct Journal {
    lines: Vec<String>,
}

impl StateMachine for Journal {
    type Output = usize;
    type Reader = ();
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        Ok(Durable::default())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<usize>) -> Result<(), Fatal> {
        for (_, payload) in batch.proposals() {
            if payload == b"fail" {
                return Err(Fatal::new("asked to"));
            }
            self.lines
                .push(String::from_utf8_lossy(payload).into_owned());
            outputs.push(self.lines.len());
        }
        Ok(())
    }

    fn reader(&self) {}

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        Ok(self.lines.join("\n").into_bytes())
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        let text = String::from_utf8(snapshot.read_all(1 << 20)?);
        let text = text.map_err(|_| Fatal::new("no text"))?;
        self.lines = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

fn start(dir: &Path, backend: WalBackend) -> Result<Node<Journal>, StartError> {
    let mut wal = WalSettings::default();
    wal.slot_bytes = 16 << 20;
    wal.bytes_max = 128 << 20;
    wal.backend = backend;
    Node::builder(dir, |_| Journal::default()).wal(wal).start()
}

fn lead(node: &Node<Journal>) {
    assert!(wait(node.leader_known()).is_some());
}

fn survives_restarts(backend: WalBackend) {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3_usize {
        let node = start(dir.path(), backend).unwrap();
        lead(&node);
        let first = wait(node.propose("one")).unwrap();
        assert_eq!(first.output, round * 102 + 1);
        let many: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let group = node.groups().next().unwrap();
        let answers = wait(group.propose_many(&many).unwrap());
        assert_eq!(answers.len(), 100);
        for (place, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.unwrap().output, round * 102 + 2 + place);
        }
        let reserved = wait(group.reserve(10));
        assert_eq!(
            wait(reserved.propose("reserved")).unwrap().output,
            round * 102 + 102
        );
        let status = node.status();
        assert_eq!(status.boot, round as u64 + 1);
        node.shutdown(Duration::from_secs(5));
    }
}

#[test]
fn what_was_acknowledged_is_there_after_restarts_with_plain_writes() {
    survives_restarts(WalBackend::Pwrite);
}

#[test]
fn what_was_acknowledged_is_there_after_restarts_with_what_the_machine_offers() {
    survives_restarts(WalBackend::Auto);
}

#[test]
fn a_machine_that_fails_fences_its_group_and_the_process_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), WalBackend::Pwrite).unwrap();
    lead(&node);
    assert!(wait(node.propose("fine")).is_ok());
    let error = wait(node.propose("fail")).unwrap_err();
    assert_eq!(error.code(), Code::HaltedBeforeApply);
    assert_eq!(error.outcome(), Outcome::MayYetCommit);
    // The shard hears of it a moment later and shuts the door.
    let error = loop {
        match wait(node.propose("more")) {
            Err(error) if error.code() == Code::Halted => break error,
            Err(error) => assert_eq!(error.code(), Code::HaltedBeforeApply),
            Ok(done) => panic!("applied by a failed machine: {done:?}"),
        }
    };
    assert_eq!(error.outcome(), Outcome::NeverAppended);
}

#[test]
fn a_second_process_on_a_directory_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _node = start(dir.path(), WalBackend::Auto).unwrap();
    let error = start(dir.path(), WalBackend::Auto).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    assert!(text.contains("in use by another process"), "{text}");
}

#[test]
fn shutting_down_answers_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), WalBackend::Pwrite).unwrap();
    lead(&node);
    let proposals: Vec<_> = (0..1000)
        .map(|number| node.propose(format!("{number}")))
        .collect();
    drop(node);
    let mut applied = 0;
    for proposal in proposals {
        match wait(proposal) {
            Ok(_) => applied += 1,
            Err(error) => assert!(!error.advice().is_empty(), "{error}"),
        }
    }
    assert!(applied <= 1000);
}

/// Says that it is further than any log here.
struct Kept;

impl StateMachine for Kept {
    type Output = ();
    type Reader = ();
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        let mut durable = Durable::default();
        durable.index = logdrive::Index(5);
        Ok(durable)
    }

    fn apply(&mut self, _: Batch<'_>, _: &mut Vec<()>) -> Result<(), Fatal> {
        Err(Fatal::new("nothing may be applied"))
    }

    fn reader(&self) {}

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        Ok(Vec::new())
    }

    fn install(&mut self, _: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        Ok(())
    }
}

#[test]
fn a_machine_that_was_kept_while_its_log_was_wiped_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = WalSettings::default();
    wal.slot_bytes = 1 << 20;
    wal.bytes_max = 16 << 20;
    let error = Node::builder(dir.path(), |_| Kept)
        .wal(wal)
        .start()
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("has never held that group"), "{text}");
}

#[test]
fn every_flush_of_the_log_is_in_the_histogram() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), WalBackend::Pwrite).unwrap();
    lead(&node);
    loop {
        wait(node.propose("one more")).unwrap();
        let before = node.status().wal.flushes;
        let rows = node.metrics().flush_us;
        // What is published in between would be in one and not in the other.
        if node.status().wal.flushes != before {
            continue;
        }
        assert_eq!(rows.iter().map(|(_, count)| count).sum::<u64>(), before);
        assert!(rows.is_sorted_by(|one, next| one.0 < next.0), "{rows:?}");
        if before >= 20 {
            break;
        }
    }
    node.shutdown(Duration::from_secs(5));
}

#[test]
fn a_full_door_gives_the_payload_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut limits = Limits::default();
    limits.proposals_bytes_max = 64 << 10;
    let node = Node::builder(dir.path(), |_| Journal::default())
        .limits(limits)
        .start()
        .unwrap();
    lead(&node);
    let place = wait(node.groups().next().unwrap().reserve(40 << 10));
    let payload = vec![7; 40 << 10];
    let (error, back) = node.try_propose(payload.clone()).unwrap_err();
    assert_eq!(back, payload);
    assert_eq!(error.code(), Code::Busy);
    assert_eq!(error.outcome(), Outcome::NeverAppended);
    assert!(!error.advice().is_empty());
    drop(place);
    let applied = wait(node.try_propose(back).unwrap()).unwrap();
    assert_eq!(applied.output, 1, "the refused one was never appended");

    let (error, back) = node.try_propose(vec![7; 2 << 20]).unwrap_err();
    assert_eq!((error.code(), back.len()), (Code::TooLarge, 2 << 20));
}
