//! A cluster directory, and the program run in it.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A directory with an authority, a client's certificate, and room for nodes.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    /// With the authority of cluster `demo`.
    pub(crate) fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        place.pass(&["tls", "init", "--dir", "authority", "--cluster", "demo"]);
        place.issue("client", 1, "client");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn issue(&self, role: &str, node: u64, out: &str) {
        let node = node.to_string();
        self.pass(&[
            "tls",
            "issue",
            "--dir",
            "authority",
            "--role",
            role,
            "--node",
            &node,
            "--out",
            out,
        ]);
    }

    /// Writes the configuration of a cluster of one, with a certificate of its own.
    pub(crate) fn node(&self, id: u64, further: &str) -> String {
        self.issue("peer", id, &format!("n{id}/tls"));
        self.config(id, further)
    }

    /// Writes the configuration of a cluster of one.
    pub(crate) fn config(&self, id: u64, further: &str) -> String {
        let file = format!("n{id}.toml");
        let text = format!(
            "[node]\nid = {id}\ndir = 'n{id}/data'\n[cluster]\nid = 'demo'\n[tls]\ndir = 'n{id}/tls'\n\
             [listen]\nclient = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\n{further}"
        );
        fs::write(self.path(&file), text).unwrap();
        file
    }

    /// Writes the configurations of a cluster of three, with a certificate each.
    pub(crate) fn three(&self, further: &str) -> Vec<String> {
        let sockets = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let addresses = sockets.map(|socket| socket.local_addr().unwrap().to_string());
        let members = (1..).zip(&addresses);
        let members: Vec<String> = members.map(|(id, at)| format!("'{id}={at}'")).collect();
        let members = members.join(", ");
        let files = (1..).zip(&addresses).map(|(id, peer)| {
            self.issue("peer", id, &format!("n{id}/tls"));
            let file = format!("n{id}.toml");
            let text = format!(
                "[node]\nid = {id}\ndir = 'n{id}/data'\n\
                 [cluster]\nid = 'demo'\nmembers = [{members}]\n[tls]\ndir = 'n{id}/tls'\n\
                 [listen]\npeer = '{peer}'\nclient = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\n{further}"
            );
            fs::write(self.path(&file), text).unwrap();
            file
        });
        files.collect()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logdrive"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    /// Runs what must succeed, and gives its output.
    pub(crate) fn pass(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {} {}", ended.out, ended.err);
        ended.out
    }

    pub(crate) fn serve(&self, config: &str) -> Serving {
        Serving::start(self.command(&["serve", "--config", config]))
    }

    pub(crate) fn kv(&self, node: &Serving, args: &[&str]) -> Ended {
        let address = node.client();
        let mut all = vec!["kv"];
        all.extend(args);
        all.extend(["--addr", &address, "--tls", "client", "--timeout", "30s"]);
        self.run(&all)
    }
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it was not killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts how it ended, and that its message has all these parts.
    pub(crate) fn says(&self, code: i32, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in: {}", self.err);
        }
        assert_eq!(self.code, code, "{}", self.err);
    }
}

/// A node that runs. Killed when dropped.
pub(crate) struct Serving {
    child: Child,
    line: Value,
}

impl Serving {
    fn start(mut command: Command) -> Self {
        let log = tempfile::tempfile().unwrap();
        command
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            panic!(
                "the node did not start: {}, {}",
                child.wait().unwrap(),
                read_from_start(log)
            );
        }
        let line = serde_json::from_str(&line).unwrap();
        Self { child, line }
    }

    /// With a standard error of the caller's.
    pub(crate) fn start_unlogged(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        let line = serde_json::from_str(&line).expect("the line of a node that runs");
        Self { child, line }
    }

    fn address(&self, of: &str) -> String {
        self.line[of].as_str().unwrap().to_owned()
    }

    pub(crate) fn client(&self) -> String {
        self.address("client")
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// A page of `listen.http`: its status code and its body.
    pub(crate) fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address("http")).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(mut self) -> i32 {
        let pid = self.pid();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child
            .wait()
            .unwrap()
            .code()
            .expect("it ended by itself")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `logdrive serve` with variables in its environment, expected to end by itself.
pub(crate) struct Serve {
    command: Command,
}

impl Serve {
    pub(crate) fn new(place: &Place, config: &str) -> Self {
        Self {
            command: place.command(&["serve", "--config", config]),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn run(mut self) -> Ended {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        // A node that runs says so, and then does not end by itself.
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        if !line.is_empty() {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it started: {line}");
        }
        Ended::of(child.wait_with_output().unwrap())
    }
}

fn read_from_start(mut file: fs::File) -> String {
    use std::io::Seek;
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}
