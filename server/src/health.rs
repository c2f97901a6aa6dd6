//! Whether a node lives, and whether it is of use: two questions, and only the second needs a quorum.
//!
//! What restarts processes asks the first. If it asked the second, one lost quorum would restart every
//! node again and again, and never be found again.

use std::fmt;

use logdrive::Status;

/// The answer to one of the two questions: each check, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    checks: Vec<(String, Result<(), String>)>,
}

impl Health {
    /// Whether every check holds.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|(_, check)| check.is_ok())
    }

    fn check(&mut self, name: impl Into<String>, holds: bool, otherwise: impl FnOnce() -> String) {
        let check = if holds { Ok(()) } else { Err(otherwise()) };
        self.checks.push((name.into(), check));
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, check) in &self.checks {
            match check {
                Ok(()) => writeln!(f, "ok   {name}")?,
                Err(why) => writeln!(f, "FAIL {name}: {why}")?,
            }
        }
        writeln!(f, "{}", if self.is_ok() { "ok" } else { "not ok" })
    }
}

/// Whether the process does what it can without anybody else: its threads run, its loop turns, and no group
/// has halted.
#[must_use]
pub fn live(status: &Status, turns: bool) -> Health {
    let mut health = Health { checks: Vec::new() };
    health.check("threads", status.running, || {
        "the node's thread has ended; restart the process, its log is on disk".to_owned()
    });
    health.check("turns", turns, || {
        "the node's loop has not turned for a second; its disk or this machine is stuck".to_owned()
    });
    for group in &status.groups {
        health.check(
            format!("group {}", group.group),
            group.role != "halted",
            || group.why.clone().unwrap_or_else(|| "halted".to_owned()),
        );
    }
    health
}

/// Whether requests sent here find an answer: it lives, and every group has a leader and keeps up.
#[must_use]
pub fn ready(status: &Status, turns: bool, draining: bool) -> Health {
    let mut health = live(status, turns);
    health.check("not draining", !draining, || "shutting down".to_owned());
    for group in &status.groups {
        let id = group.group;
        health.check(format!("group {id} leader"), group.leader.is_some(), || {
            let why = group.why.as_deref().unwrap_or("no leader is known");
            format!("{why}; `logdrive status` of all nodes says which of them talk to each other")
        });
        let mut transfers = group.transfers.iter();
        let fetches = transfers.find(|transfer| transfer.direction == "fetch");
        health.check(format!("group {id} snapshot"), fetches.is_none(), || {
            let at = fetches.map_or(0, |transfer| transfer.index);
            format!("it is behind, and fetches a snapshot up to entry {at}")
        });
        let behind = group.commit.saturating_sub(group.applied);
        health.check(
            format!("group {id} applied"),
            behind <= APPLY_LAG_ENTRIES_MAX,
            || format!("{behind} entries are committed and not applied yet"),
        );
    }
    health
}

/// More than this, and a read here would be of another time.
const APPLY_LAG_ENTRIES_MAX: u64 = 1000;
