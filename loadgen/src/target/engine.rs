//! Load for an engine in this process: batches go in by a call, answers come back by a call.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::vec::Drain;

use bytes::Bytes;
use logdrive::{Code, Failure as EngineFailure, Group, LogPosition, ProposeError, ReplySink};
use logdrive_shard::kv::{Kv, KvOutput};

use super::{
    Answered, Failure, Lane, Mailbox, Outcome, Submission, Target, TargetError, is_rejection,
};

/// The groups of each node that runs, in the order of their numbers.
#[derive(Debug, Default)]
pub struct Doors {
    nodes: BTreeMap<u64, Vec<Group<Kv>>>,
    /// Counts changes, so that lanes need no lock while there are none.
    version: u64,
}

impl Doors {
    /// A node runs.
    pub fn open(doors: &RwLock<Doors>, node: u64, groups: Vec<Group<Kv>>) {
        let mut doors = doors.write().unwrap_or_else(PoisonError::into_inner);
        doors.nodes.insert(node, groups);
        doors.version += 1;
    }

    /// A node does not.
    pub fn close(doors: &RwLock<Doors>, node: u64) {
        let mut doors = doors.write().unwrap_or_else(PoisonError::into_inner);
        doors.nodes.remove(&node);
        doors.version += 1;
    }
}

/// Engines in this process.
#[derive(Debug)]
pub struct EngineTarget {
    doors: Arc<RwLock<Doors>>,
}

impl EngineTarget {
    /// A way in through these doors.
    #[must_use]
    pub fn new(doors: Arc<RwLock<Doors>>) -> Self {
        Self { doors }
    }
}

impl Target for EngineTarget {
    fn lane(&self, _: &[u32], mailbox: Arc<Mailbox>) -> Result<Box<dyn Lane>, TargetError> {
        let sink: Arc<dyn ReplySink<KvOutput>> = Arc::new(Sink {
            mailbox: Arc::clone(&mailbox),
        });
        Ok(Box::new(EngineLane {
            doors: Arc::clone(&self.doors),
            mailbox,
            sink,
            leaders: BTreeMap::new(),
        }))
    }
}

struct EngineLane {
    doors: Arc<RwLock<Doors>>,
    mailbox: Arc<Mailbox>,
    sink: Arc<dyn ReplySink<KvOutput>>,
    /// By group: the node that took the last batch, or is said to lead.
    leaders: BTreeMap<u32, u64>,
}

impl Lane for EngineLane {
    fn submit(&mut self, batch: &Submission<'_>) -> Result<(), Failure> {
        let doors = self.doors.read().unwrap_or_else(PoisonError::into_inner);
        let commands: Vec<&[u8]> = batch.commands().collect();
        let mut last = ELECTING;
        // The one that is said to lead, then the one that it names.
        for _ in 0..2 {
            let known = self.leaders.get(&batch.group).copied();
            let node = known.filter(|node| doors.nodes.contains_key(node));
            let Some(node) = node.or_else(|| doors.nodes.keys().next().copied()) else {
                return Err(ELECTING);
            };
            let Some(group) = doors.nodes[&node].get(batch.group as usize) else {
                return Err(failure(&ProposeError::UnknownGroup(logdrive::GroupId(
                    u64::from(batch.group) + 1,
                ))));
            };
            match group.submit(&commands, &self.sink, batch.token) {
                Ok(()) => {
                    self.leaders.insert(batch.group, node);
                    return Ok(());
                }
                Err(error) => {
                    last = failure(&error);
                    let leader = error.leader().or_else(|| group.leader());
                    let Some(leader) = leader.filter(|_| error.code() == Code::NotLeader) else {
                        return Err(last);
                    };
                    self.leaders.insert(batch.group, leader.0);
                }
            }
        }
        Err(last)
    }

    fn wait(&mut self, until_ns: u64) {
        self.mailbox.park(until_ns);
    }
}

struct Sink {
    mailbox: Arc<Mailbox>,
}

impl ReplySink<KvOutput> for Sink {
    fn applied(
        &self,
        token: u64,
        first: u32,
        at: LogPosition,
        slot: u32,
        outputs: Drain<'_, KvOutput>,
    ) {
        let count = outputs.len() as u32;
        let mut kept: Vec<Bytes> = Vec::new();
        if self.mailbox.wants_outputs() {
            kept.extend(outputs.map(Bytes::from));
        } else {
            // Only a refusal of the machine is worth keeping.
            for (number, output) in outputs.map(Bytes::from).enumerate() {
                if is_rejection(&output) {
                    kept.resize(number, Bytes::new());
                    kept.push(output);
                }
            }
        }
        let what = Answered::Applied {
            index: at.index.0,
            slot,
            outputs: kept,
        };
        self.mailbox.put(token, first, count, what);
    }

    fn failed(&self, token: u64, first: u32, count: u32, reason: EngineFailure) {
        let what = Answered::Failed(failure(&ProposeError::Failed(reason)));
        self.mailbox.put(token, first, count, what);
    }
}

/// What an error of the engine means for the load.
#[must_use]
pub fn failure(error: &ProposeError) -> Failure {
    failure_of(error.code())
}

/// What a code of the engine means for the load.
#[must_use]
pub fn failure_of(code: Code) -> Failure {
    let outcome = match code.outcome() {
        logdrive::Outcome::NeverAppended => match code {
            // Sent again, these would fail again.
            Code::TooLarge | Code::UnknownGroup | Code::Forbidden => Outcome::Never,
            _ => Outcome::Retry,
        },
        // Of what else there may be one day, too, nobody knows.
        _ => Outcome::Unknown,
    };
    Failure {
        code: code.as_str(),
        outcome,
    }
}

/// Nobody runs who could take it.
const ELECTING: Failure = Failure {
    code: "not_leader",
    outcome: Outcome::Retry,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_appended_and_may_go_better_is_sent_again() {
        let outcome = |code| failure_of(code).outcome;
        for code in [
            Code::NotLeader,
            Code::Busy,
            Code::StorageFull,
            Code::ShuttingDown,
        ] {
            assert_eq!(outcome(code), Outcome::Retry, "{code}");
        }
        assert_eq!(outcome(Code::TooLarge), Outcome::Never);
        for code in Code::ALL {
            let unknown = code.outcome() == logdrive::Outcome::MayYetCommit;
            assert_eq!(outcome(*code) == Outcome::Unknown, unknown, "{code}");
        }
    }
}
