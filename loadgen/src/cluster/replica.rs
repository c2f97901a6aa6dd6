//! A replica that loadgen started: answers questions until its input ends.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;

use logdrive_raft::wire::Encode;

use super::protocol::{Ask, Observation, Question, Reply, Say};
use crate::verify::ReplicaState;
use crate::workdir;

/// What runs inside a replica's process.
pub trait Host {
    /// Starts it.
    fn start(&mut self, members: Vec<(u64, String)>) -> Result<(), String>;

    /// How it stands; `None`: it has not been started.
    fn observe(&self) -> Option<Observation>;

    /// What it has applied; `None`: it has not been started.
    fn state(&self) -> Option<ReplicaState>;
}

/// Why a replica stopped answering.
#[derive(Debug)]
pub enum Ended {
    /// Its input ended: whoever started it is gone.
    Abandoned,
    /// Its input ended, and it is to live on. The directory is locked as long as this file is open.
    LivesOn(File),
}

/// Answers questions until the input ends.
pub fn serve(input: impl BufRead, mut output: impl Write, host: &mut dyn Host) -> Ended {
    let mut lock = None;
    for line in input.lines() {
        let Ok(line) = line else {
            break;
        };
        let reply = match serde_json::from_str::<Question>(&line) {
            Ok(Question { id, ask }) => Reply {
                id,
                say: answer(ask, host, &mut lock),
            },
            Err(error) => Reply {
                id: 0,
                say: Say::Failed(error.to_string()),
            },
        };
        let mut text = serde_json::to_string(&reply).expect("replies are plain data");
        text.push('\n');
        if output.write_all(text.as_bytes()).is_err() || output.flush().is_err() {
            break;
        }
    }
    match lock {
        Some(lock) => Ended::LivesOn(lock),
        None => Ended::Abandoned,
    }
}

fn answer(ask: Ask, host: &mut dyn Host, lock: &mut Option<File>) -> Say {
    let done = match ask {
        Ask::Start(members) => host.start(members),
        Ask::Observe => match host.observe() {
            Some(observation) => return Say::Observed(observation),
            None => Err("not started".to_owned()),
        },
        Ask::State(file) => match host.state() {
            Some(state) => std::fs::write(&file, state.to_bytes())
                .map_err(|error| format!("write {}: {error}", file.display())),
            None => Err("not started".to_owned()),
        },
        Ask::LiveOn(dir) => share_lock(&dir).map(|file| *lock = Some(file)),
    };
    done.map_or_else(Say::Failed, |()| Say::Done)
}

/// Takes part in the lock of a directory, so that later runs see that it is in use.
fn share_lock(dir: &Path) -> Result<File, String> {
    workdir::share(dir).map_err(|error| format!("lock {}: {error}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake {
        members: Option<Vec<(u64, String)>>,
    }

    impl Host for Fake {
        fn start(&mut self, members: Vec<(u64, String)>) -> Result<(), String> {
            if members.is_empty() {
                return Err("nobody".to_owned());
            }
            self.members = Some(members);
            Ok(())
        }

        fn observe(&self) -> Option<Observation> {
            self.members.as_ref().map(|_| Observation::default())
        }

        fn state(&self) -> Option<ReplicaState> {
            let groups = Vec::new();
            Some(ReplicaState { node: 1, groups })
        }
    }

    #[test]
    fn questions_are_answered_in_order_and_the_end_of_input_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        let asks = [
            Ask::Observe,
            Ask::Start(Vec::new()),
            Ask::Start(vec![(1, "a:1".to_owned())]),
            Ask::Observe,
            Ask::State(file.clone()),
        ];
        let mut input = String::new();
        for (id, ask) in (1..).zip(asks) {
            input += &serde_json::to_string(&Question { id, ask }).unwrap();
            input.push('\n');
        }
        input += "nonsense\n";
        let mut output = Vec::new();
        let ended = serve(input.as_bytes(), &mut output, &mut Fake::default());
        assert!(matches!(ended, Ended::Abandoned));
        let says: Vec<Say> = String::from_utf8(output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Reply>(line).unwrap().say)
            .collect();
        assert_eq!(says[0], Say::Failed("not started".to_owned()));
        assert_eq!(says[1], Say::Failed("nobody".to_owned()));
        assert_eq!(says[2], Say::Done);
        assert_eq!(says[3], Say::Observed(Observation::default()));
        assert_eq!(says[4], Say::Done);
        assert!(matches!(&says[5], Say::Failed(_)));
        assert!(file.exists());
    }

    #[test]
    fn one_that_lives_on_keeps_its_directory_from_being_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ask = Ask::LiveOn(dir.path().to_owned());
        let owner = workdir::lock(dir.path()).unwrap();
        let input = serde_json::to_string(&Question { id: 1, ask }).unwrap();
        drop(owner);
        let ended = serve(input.as_bytes(), Vec::new(), &mut Fake::default());
        assert!(workdir::lock(dir.path()).unwrap().is_none());
        drop(ended);
        assert!(workdir::lock(dir.path()).unwrap().is_some());
    }
}
