//! Replicas as processes of their own, started, watched and killed by this one.
//!
//! Each holds a Unix socket from here and ends when it closes, so nothing survives even a SIGKILL of loadgen.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use logdrive_net::{Credentials, TransportSettings};
use logdrive_raft::wire::Decode;

use super::protocol::{Ask, Observation, Question, ReplicaConfig, Reply, Say};
use super::sockets::Sockets;
use super::{Cluster, ClusterError, node};
use crate::machine;
use crate::run::source_chain;
use crate::target::Target;
use crate::target::remote::RemoteTarget;
use crate::verify::ReplicaState;

/// The processes of a cluster.
#[derive(Debug)]
pub struct Processes {
    program: PathBuf,
    replicas: Vec<Process>,
    members: Vec<(u64, String)>,
    /// Processor time of processes that are gone.
    gone_cpu_ns: u64,
    lives_on: bool,
}

#[derive(Debug)]
struct Process {
    config: ReplicaConfig,
    /// Held here, too, so that one that was killed finds its ports free.
    sockets: Sockets,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    questions: UnixStream,
    replies: Receiver<Reply>,
    asked: u64,
}

impl Processes {
    /// Starts a process each, and waits until all of them run. `program` is loadgen itself.
    pub fn start(program: &Path, configs: Vec<ReplicaConfig>) -> Result<Self, ClusterError> {
        let mut this = Self {
            program: program.to_owned(),
            replicas: Vec::new(),
            members: Vec::new(),
            gone_cpu_ns: 0,
            lives_on: false,
        };
        let failed = |error: std::io::Error| ClusterError(format!("take a free port: {error}"));
        for config in configs {
            let sockets = Sockets::bind(true).map_err(failed)?;
            let address = sockets.peer.local_addr().map_err(failed)?;
            this.members.push((config.node, address.to_string()));
            let mut process = Process {
                config,
                sockets,
                running: None,
            };
            process.spawn(program)?;
            this.replicas.push(process);
        }
        let members = &this.members;
        let mut asked = Vec::new();
        for process in &mut this.replicas {
            asked.push(process.ask(Ask::Start(members.clone()))?);
        }
        for (process, asked) in this.replicas.iter_mut().zip(asked) {
            match process.reply(asked, START_TIME)? {
                Say::Done => {}
                other => return Err(process.failed(&other)),
            }
        }
        Ok(this)
    }

    /// The numbers of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<u64> {
        self.replicas
            .iter()
            .map(|process| process.config.node)
            .collect()
    }

    /// Where clients reach the replicas.
    #[must_use]
    pub fn client_addresses(&self) -> Vec<String> {
        let sockets = self
            .replicas
            .iter()
            .filter_map(|p| p.sockets.client.as_ref());
        let addresses = sockets.filter_map(|socket| socket.local_addr().ok());
        addresses.map(|address| address.to_string()).collect()
    }

    /// The numbers of those that run.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let running = self.replicas.iter().filter_map(|p| p.running.as_ref());
        running.map(|running| running.child.id())
    }

    /// How each stands.
    pub fn observe(&mut self) -> Vec<Option<Observation>> {
        let asked: Vec<Option<u64>> = self
            .replicas
            .iter_mut()
            .map(|process| process.ask(Ask::Observe).ok())
            .collect();
        let replies = self.replicas.iter_mut().zip(asked);
        replies
            .map(|(process, asked)| match process.reply(asked?, LOOK_TIME) {
                Ok(Say::Observed(observation)) => Some(observation),
                _ => None,
            })
            .collect()
    }

    /// Processor time of all of them.
    pub fn cpu_ns(&mut self) -> Option<u64> {
        let mut sum = self.gone_cpu_ns;
        for process in &self.replicas {
            if let Some(running) = &process.running {
                sum += machine::process_cpu_ns(running.child.id())?;
            }
        }
        Some(sum)
    }

    /// The most memory that each held since it was started.
    #[must_use]
    pub fn rss_peak_bytes(&self) -> Vec<Option<u64>> {
        let running = self.replicas.iter().map(|p| p.running.as_ref());
        running
            .map(|running| machine::process_rss_peak_bytes(running?.child.id()))
            .collect()
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: u64) -> Result<(), ClusterError> {
        let process = find(&mut self.replicas, node)?;
        if let Some(running) = &process.running {
            self.gone_cpu_ns += machine::process_cpu_ns(running.child.id()).unwrap_or(0);
        }
        process.kill();
        Ok(())
    }

    /// Starts one that was killed, where it was. One that runs is killed first: it holds the lock of its
    /// log, and two would share the sockets.
    pub fn restart(&mut self, node: u64) -> Result<(), ClusterError> {
        self.kill(node)?;
        let members = self.members.clone();
        let process = find(&mut self.replicas, node)?;
        process.spawn(&self.program)?;
        process.ask(Ask::Start(members))?;
        Ok(())
    }

    /// What each has applied.
    pub fn states(&mut self) -> Vec<Result<ReplicaState, String>> {
        let state = |process: &mut Process| {
            let file = process.config.dir.join("state.bin");
            let asked = process.ask(Ask::State(file.clone()))?;
            match process.reply(asked, STATE_TIME)? {
                Say::Done => {}
                other => return Err(process.failed(&other)),
            }
            let read = fs::read(&file).map_err(|error| error.to_string());
            let _ = fs::remove_file(&file);
            read.and_then(|bytes| {
                ReplicaState::from_bytes(&bytes).map_err(|error| error.to_string())
            })
            .map_err(ClusterError)
        };
        self.replicas
            .iter_mut()
            .map(|process| state(process).map_err(|error| error.to_string()))
            .collect()
    }

    /// Lets them live on; `dir` stays locked by them.
    pub fn leave_running(&mut self, dir: &Path) -> Result<(), ClusterError> {
        for process in &mut self.replicas {
            let asked = process.ask(Ask::LiveOn(dir.to_owned()))?;
            match process.reply(asked, LOOK_TIME)? {
                Say::Done => {}
                other => return Err(process.failed(&other)),
            }
        }
        self.lives_on = true;
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if self.lives_on {
            return;
        }
        for process in &mut self.replicas {
            process.kill();
        }
    }
}

fn find(replicas: &mut [Process], node: u64) -> Result<&mut Process, ClusterError> {
    let found = replicas.iter_mut().find(|p| p.config.node == node);
    found.ok_or_else(|| ClusterError(format!("there is no node {node}")))
}

impl Process {
    fn spawn(&mut self, program: &Path) -> Result<(), ClusterError> {
        let node = self.config.node;
        let failed = |what: &str, error: std::io::Error| {
            ClusterError(format!("node {node}: {what}: {error}"))
        };
        fs::create_dir_all(&self.config.dir).map_err(|error| failed("make directory", error))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|error| failed("open log", error))?;
        let config = serde_json::to_string(&self.config).expect("a config is plain data");
        let (questions, theirs) =
            UnixStream::pair().map_err(|error| failed("make a socket", error))?;
        let sent = self.sockets.send(&questions);
        sent.map_err(|error| failed("send its sockets", error))?;
        let mut command = Command::new(program);
        command
            .args(["replica", "--config", &config])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C is for loadgen, which still has a report to write.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| failed("start", error))?;
        let output = child.stdout.take().expect("piped above");
        let (send, replies) = channel();
        std::thread::spawn(move || {
            // Ends with the process, or when nobody listens any more.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(reply) = serde_json::from_str(&line) else {
                    continue;
                };
                if send.send(reply).is_err() {
                    return;
                }
            }
        });
        self.running = Some(Running {
            child,
            questions,
            replies,
            asked: 0,
        });
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself; either way it is gone after this.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }

    /// Asks, and returns the number of the question.
    fn ask(&mut self, ask: Ask) -> Result<u64, ClusterError> {
        let Some(running) = self.running.as_mut() else {
            return Err(self.gone());
        };
        running.asked += 1;
        let question = Question {
            id: running.asked,
            ask,
        };
        let mut line = serde_json::to_string(&question).expect("questions are plain data");
        line.push('\n');
        let asked = running.asked;
        if running.questions.write_all(line.as_bytes()).is_err() {
            return Err(self.gone());
        }
        Ok(asked)
    }

    /// The reply to a question; replies to earlier ones are passed over.
    fn reply(&mut self, asked: u64, time: Duration) -> Result<Say, ClusterError> {
        let until = Instant::now() + time;
        let Some(running) = self.running.as_mut() else {
            return Err(self.gone());
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match running.replies.recv_timeout(left) {
                Ok(reply) if reply.id == asked => return Ok(reply.say),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let node = self.config.node;
                    return Err(ClusterError(format!("node {node} does not answer")));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
            }
        }
    }

    fn failed(&self, say: &Say) -> ClusterError {
        let node = self.config.node;
        match say {
            Say::Failed(why) => ClusterError(format!("node {node}: {why}")),
            other => ClusterError(format!("node {node} said {other:?}")),
        }
    }

    /// It has ended, with the end of what it logged.
    fn gone(&self) -> ClusterError {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        let node = self.config.node;
        ClusterError(format!("node {node} has ended: {}", last.join(" | ")))
    }

    fn log(&self) -> PathBuf {
        self.config.dir.join("stderr.log")
    }
}

const START_TIME: Duration = Duration::from_secs(20);
const LOOK_TIME: Duration = Duration::from_millis(500);
const STATE_TIME: Duration = Duration::from_secs(30);

/// Replicas as processes, with their certificates and a way in for clients.
#[derive(Debug)]
pub struct Spawned {
    dir: PathBuf,
    processes: Processes,
    credentials: Arc<Credentials>,
    transport: TransportSettings,
    in_flight_max: usize,
}

impl Spawned {
    /// Makes certificates, starts a process each, and waits until all of them run.
    pub fn start(
        dir: &Path,
        configs: Vec<ReplicaConfig>,
        transport: TransportSettings,
        in_flight_max: usize,
    ) -> Result<Self, ClusterError> {
        let failed = |error: &dyn std::error::Error| ClusterError(source_chain(error));
        let tls = dir.join("tls");
        let nodes: Vec<u64> = configs.iter().map(|config| config.node).collect();
        let cluster = configs.first().map_or("", |config| &config.cluster);
        node::make_certificates(&tls, cluster, &nodes)?;
        let credentials = Credentials::load_client(&tls).map_err(|error| failed(&error))?;
        // The same file, even if another one has taken its name since.
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => return Err(failed(&error)),
        };
        Ok(Self {
            processes: Processes::start(&program, configs)?,
            dir: dir.to_owned(),
            credentials: Arc::new(credentials),
            transport,
            in_flight_max,
        })
    }
}

impl Cluster for Spawned {
    fn target(&self) -> Arc<dyn Target> {
        Arc::new(RemoteTarget {
            addresses: self.processes.client_addresses(),
            credentials: Arc::clone(&self.credentials),
            transport: self.transport,
            in_flight_max: self.in_flight_max,
        })
    }

    fn nodes(&self) -> Vec<u64> {
        self.processes.nodes()
    }

    fn observe(&mut self) -> Vec<Option<Observation>> {
        self.processes.observe()
    }

    fn cpu_ns(&mut self) -> Option<u64> {
        self.processes.cpu_ns()
    }

    fn rss_peak_bytes(&mut self) -> Vec<Option<u64>> {
        self.processes.rss_peak_bytes()
    }

    fn kill(&mut self, node: u64) -> Result<(), ClusterError> {
        self.processes.kill(node)
    }

    fn start(&mut self, node: u64) -> Result<(), ClusterError> {
        self.processes.restart(node)
    }

    fn states(&mut self) -> Vec<Result<ReplicaState, String>> {
        self.processes.states()
    }

    fn leave_running(&mut self) -> Result<String, ClusterError> {
        self.processes.leave_running(&self.dir)?;
        let addresses = self.processes.client_addresses().join(" ");
        let tls = self.dir.join("tls");
        let pids: Vec<String> = self.processes.pids().map(|pid| pid.to_string()).collect();
        Ok(format!(
            "ask with: logdrive status {addresses} --tls '{}'; stop with: kill {}",
            tls.display(),
            pids.join(" ")
        ))
    }
}
