//! A cluster that lives in memory and answers at once, and can be told to do wrong.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use loadgen::args::{Command, RunArgs, parse};
use loadgen::cluster::protocol::{GroupObservation, Observation, WalObservation};
use loadgen::cluster::{Cluster, ClusterError};
use loadgen::exit::Exit;
use loadgen::run;
use loadgen::target::{Answered, Failure, Lane, Mailbox, Outcome, Submission, Target, TargetError};
use loadgen::verify::{GroupState, ReplicaState};
use logdrive_raft::Index;
use logdrive_shard::kv::{Kv, KvOutput};

/// What the cluster does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Nothing,
    /// One replica does not apply one write.
    Loses,
    /// Every replica applies one write twice.
    Repeats,
    /// One write is put before what was acknowledged before it was sent.
    Reorders,
    /// One batch is said never to be appended, and is.
    Denies,
    /// For a while after a kill nobody leads.
    Elects,
    /// It takes everything and answers nothing.
    Silent,
    /// There is nobody.
    Absent,
}

struct Log {
    wrong: Wrong,
    replicas: Vec<Kv>,
    index: u64,
    writes: u64,
    term: u64,
    leads: u64,
    shut_until: Option<std::time::Instant>,
}

pub(crate) struct Fake {
    log: Arc<Mutex<Log>>,
    down: Vec<u64>,
}

struct FakeTarget(Arc<Mutex<Log>>);

struct FakeLane {
    log: Arc<Mutex<Log>>,
    mailbox: Arc<Mailbox>,
}

impl Fake {
    pub(crate) fn new(wrong: Wrong) -> Self {
        let log = Log {
            wrong,
            replicas: (0..3).map(|_| Kv::default()).collect(),
            index: 0,
            writes: 0,
            term: 1,
            leads: 1,
            shut_until: None,
        };
        Self {
            log: Arc::new(Mutex::new(log)),
            down: Vec::new(),
        }
    }
}

impl Target for FakeTarget {
    fn lane(&self, _: &[u32], mailbox: Arc<Mailbox>) -> Result<Box<dyn Lane>, TargetError> {
        let log = Arc::clone(&self.0);
        Ok(Box::new(FakeLane { log, mailbox }))
    }
}

impl Lane for FakeLane {
    fn submit(&mut self, batch: &Submission<'_>) -> Result<(), Failure> {
        let mut log = self.log.lock().unwrap();
        if log.wrong == Wrong::Silent {
            return Ok(());
        }
        if let Some(until) = log.shut_until {
            if std::time::Instant::now() < until {
                return Err(Failure {
                    code: "not_leader",
                    outcome: Outcome::Retry,
                });
            }
            log.shut_until = None;
            log.term += 1;
            log.leads = log.leads % 3 + 1;
        }
        let (index, slot, outputs) = log.apply(batch);
        if log.wrong == Wrong::Denies && log.index == 10 {
            return Err(Failure {
                code: "invalid",
                outcome: Outcome::Never,
            });
        }
        drop(log);
        let outputs = outputs.into_iter().map(Bytes::from).collect();
        let what = Answered::Applied {
            index,
            slot,
            outputs,
        };
        self.mailbox
            .put(batch.token, 0, batch.ends.len() as u32, what);
        Ok(())
    }

    fn wait(&mut self, until_ns: u64) {
        self.mailbox.park(until_ns);
    }
}

impl Log {
    fn apply(&mut self, batch: &Submission<'_>) -> (u64, u32, Vec<KvOutput>) {
        self.index += 1;
        let index = Index(self.index);
        let before = self.writes;
        self.writes += batch.ends.len() as u64;
        let happens = |at: u64| before < at && at <= before + batch.ends.len() as u64;
        let mut first = Vec::new();
        for (number, kv) in self.replicas.iter_mut().enumerate() {
            let mut outputs = Vec::new();
            let mut proposals: Vec<(u32, &[u8])> = (0..).zip(batch.commands()).collect();
            if self.wrong == Wrong::Loses && number == 2 && happens(100) {
                proposals.pop();
            }
            kv.apply_entry(index, proposals, &mut outputs);
            if self.wrong == Wrong::Repeats && happens(100) {
                let again = batch.commands().next().map(|command| (1 << 15, command));
                kv.apply_entry(index, again, &mut Vec::new());
            }
            if number == 0 {
                first = outputs;
            }
        }
        let told = if self.wrong == Wrong::Reorders && happens(100) {
            1
        } else {
            self.index
        };
        (told, 0, first)
    }
}

impl Cluster for Fake {
    fn target(&self) -> Arc<dyn Target> {
        Arc::new(FakeTarget(Arc::clone(&self.log)))
    }

    fn nodes(&self) -> Vec<u64> {
        vec![1, 2, 3]
    }

    fn observe(&mut self) -> Vec<Option<Observation>> {
        let log = self.log.lock().unwrap();
        let observe = |node: &u64| {
            let group = GroupObservation {
                term: log.term,
                leads: log.leads == *node,
                leader: Some(log.leads),
                applied: log.index,
            };
            let wal = WalObservation {
                backend: "pwrite".to_owned(),
                flush_mode: "fdatasync".to_owned(),
                flushes: log.index,
                groups: log.index,
                bytes_written: log.index * 4096,
                bytes_payload: log.writes * 100,
                fallbacks: vec!["io_uring is forbidden here".to_owned()],
            };
            let observation = Observation {
                groups: vec![group],
                wal,
                snapshots: None,
                net_fallbacks: Vec::new(),
                alarms: Vec::new(),
            };
            (!self.down.contains(node)).then_some(observation)
        };
        [1, 2, 3].iter().map(observe).collect()
    }

    fn cpu_ns(&mut self) -> Option<u64> {
        Some(self.log.lock().unwrap().writes * 1000)
    }

    fn kill(&mut self, node: u64) -> Result<(), ClusterError> {
        self.down.push(node);
        let mut log = self.log.lock().unwrap();
        if log.wrong == Wrong::Elects {
            let pause = std::time::Duration::from_millis(300);
            log.shut_until = Some(std::time::Instant::now() + pause);
        }
        Ok(())
    }

    fn start(&mut self, node: u64) -> Result<(), ClusterError> {
        self.down.retain(|down| *down != node);
        Ok(())
    }

    fn states(&mut self) -> Vec<Result<ReplicaState, String>> {
        let log = self.log.lock().unwrap();
        let state = |(kv, node): (&Kv, u64)| {
            let groups = vec![GroupState::of(&kv.reader())];
            Ok(ReplicaState { node, groups })
        };
        log.replicas.iter().zip(1..).map(state).collect()
    }

    fn leave_running(&mut self) -> Result<String, ClusterError> {
        Ok("logdrive status".to_owned())
    }
}

pub(crate) fn args(text: &str) -> RunArgs {
    let words = text.split('|').filter(|word| !word.is_empty());
    let argv = ["loadgen", "run"].into_iter().chain(words);
    match parse(argv.map(str::to_owned)).unwrap().command {
        Command::Run(args) => *args,
        Command::Replica(_) => panic!("not a run"),
    }
}

/// A run against a cluster in memory, and the report it wrote.
pub(crate) fn run(wrong: Wrong, arguments: &str) -> (Exit, serde_json::Value) {
    let out = tempfile::tempdir().unwrap();
    let out_flag = format!("--out|{}|", out.path().join("with space").display());
    let args = args(&(out_flag + arguments));
    let stop = Arc::new(AtomicBool::new(false));
    let argv = vec!["loadgen".to_owned(), "run".to_owned()];
    let make = |_: &run::Setting<'_>| -> Result<Box<dyn Cluster>, ClusterError> {
        match wrong {
            Wrong::Absent => Err(ClusterError("nobody answers at a:1".to_owned())),
            _ => Ok(Box::new(Fake::new(wrong))),
        }
    };
    let exit = run::run(&args, argv, &stop, &make).unwrap();
    assert!(!stop.load(Ordering::Relaxed));
    let text = std::fs::read_to_string(args.out.join("run.json")).unwrap();
    assert!(args.out.join("run.hlog").exists());
    (exit, serde_json::from_str(&text).unwrap())
}
