//! From a log that has been opened to groups that run.

use std::collections::BTreeMap;

use logdrive_raft::bootstrap::Bootstrap;
use logdrive_raft::io::{Config, Restored};
use logdrive_raft::{
    Boot, ClusterId, GroupId, Incarnation, Index, LogPosition, Micros, NodeId, Raft, Replica,
    SnapshotId,
};
use logdrive_wal::disk::Disk;
use logdrive_wal::snapshots::{Files, SnapshotStore, SnapshotSummary};
use logdrive_wal::{Admitted, OpenError, RecoveredGroup, Wal};

use super::pacing::FeedPace;
use super::{Shard, core_config};
use crate::apply::Applier;
use crate::compaction::{Kept, SnapshotSettings, Turns};
use crate::group::{Group, Phase};
use crate::inbox::Inbox;
use crate::machine::StateMachine;
use crate::ports::{Notice, Ports};
use crate::repair::Repair;
use crate::snapshot::SnapshotReader;
use crate::store::{self, StoreFailure};

/// A log that has been opened, before its groups run.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    wal: Wal<D>,
    replica: Replica,
    boot: Boot,
    cluster: ClusterId,
    recovered: BTreeMap<GroupId, RecoveredGroup>,
    findings: Vec<logdrive_wal::Finding>,
}

/// How a group of this shard is set up.
#[derive(Debug)]
pub struct GroupSetup<O> {
    /// The group.
    pub group: GroupId,
    /// Its door.
    pub inbox: Inbox<O>,
    /// The voters that the configuration lists, with their addresses. Counts only until a genesis exists.
    pub voters: Vec<(NodeId, String)>,
    /// How far the group's machine reaches.
    pub applied: LogPosition,
    /// The newest snapshot that connects to the log.
    pub newest: Option<SnapshotSummary>,
}

/// A group's machine once it is as far as it gets without the log.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Prepared {
    /// How far it reaches.
    pub applied: LogPosition,
    /// The newest snapshot that connects to the log.
    pub newest: Option<SnapshotSummary>,
    /// Snapshots that could not be used, and why.
    pub unreadable: Vec<(SnapshotId, String)>,
}

/// How the cores of a shard behave; see [`Config`] for each.
pub type CoreSettings = Config;

/// A group cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The machine holds another history than the log has at its base.
    #[error(
        "the state machine of group {group} is at {machine} with another chain than the log has \
         there: it belongs to another log or another life of this one; restore the machine that \
         goes with this directory, or start with an empty one"
    )]
    MachineDiffers {
        /// The group.
        group: GroupId,
        /// Where the machine says it is.
        machine: LogPosition,
    },
    /// The machine was kept and its log is gone.
    #[error(
        "the state machine of group {group} is at {machine}, and the log in this directory has never \
         held that group: restore the log's directory that goes with this machine, or start both empty \
         and add this node as a new member"
    )]
    MachineWithoutLog {
        /// The group.
        group: GroupId,
        /// Where the machine says it is.
        machine: LogPosition,
    },
    /// A group is set up twice, or one of the log's groups is not set up.
    #[error("group {group} is in the log and has no machine: configure it")]
    NotSetUp {
        /// The group.
        group: GroupId,
    },
}

impl<D: Disk> Opened<D> {
    /// Opens the log: takes its lock, recovers, begins a new boot. Blocks.
    pub fn open(disk: D, options: logdrive_wal::Options) -> Result<Self, OpenError> {
        let identity = options.identity;
        let (wal, recovery) = Wal::open(disk, options)?;
        Ok(Self {
            wal,
            replica: Replica {
                id: identity.node,
                incarnation: recovery.incarnation,
            },
            boot: recovery.boot,
            cluster: identity.cluster,
            recovered: recovery.groups,
            findings: recovery.findings,
        })
    }

    /// Which life of a directory this is.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.replica.incarnation
    }

    /// Who this replica is.
    #[must_use]
    pub fn replica(&self) -> Replica {
        self.replica
    }

    /// The boot that has begun.
    #[must_use]
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// The groups that the log holds. Each needs a machine.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.recovered.keys().copied()
    }

    /// Brings the machine of a group as far as snapshots do: if it reports less than the log's anchor, the newest
    /// readable snapshot that connects to the log is installed. Blocks.
    ///
    /// If there is none, the log may still have what the machine lacks. If not, the group starts all the same, votes,
    /// and fetches a snapshot.
    ///
    /// `restore` is [`Applier::restore`], and whatever has to be around it.
    pub fn prepare<S: StateMachine, F: Files + 'static>(
        &self,
        applier: &mut Applier<S>,
        store: &SnapshotStore<F>,
        group: GroupId,
        mut restore: impl FnMut(
            &mut Applier<S>,
            LogPosition,
            &mut (dyn SnapshotReader + Send),
        ) -> Result<(), String>,
    ) -> Result<Prepared, String> {
        let mut prepared = Prepared {
            applied: applier.applied(group).unwrap_or_default(),
            ..Prepared::default()
        };
        let Some(found) = self.recovered.get(&group) else {
            return Ok(prepared);
        };
        let listed = store
            .list(group)
            .map_err(|error| StoreFailure::from(&error).to_string())?;
        for finding in listed.findings {
            let why = StoreFailure::from(&finding.why).to_string();
            prepared.unreadable.push((finding.id, why));
        }
        let connects = |snapshot: &SnapshotSummary| {
            let ours = snapshot.node == self.replica || found.base_snapshot == Some(snapshot.id);
            ours && connects(&snapshot.at, &found.restored)
        };
        let reported = prepared.applied;
        let needs = reported.index < found.restored.anchor.index;
        for snapshot in listed.snapshots.into_iter().filter(connects) {
            let helps = prepared.applied.index < snapshot.at.index;
            if helps && (needs || reported.index == Index(0)) {
                let installed = store::open(store, snapshot.id)
                    .map_err(|why| why.to_string())
                    .and_then(|mut reader| restore(applier, snapshot.at, &mut *reader));
                match installed {
                    Ok(()) => prepared.applied = snapshot.at,
                    Err(why) => {
                        prepared.unreadable.push((snapshot.id, why));
                        continue;
                    }
                }
            }
            prepared.newest = Some(snapshot);
            break;
        }
        Ok(prepared)
    }

    /// Starts the groups. `core` is the pattern for each; who it is and which group are filled in.
    pub fn start<P: Ports>(
        mut self,
        setups: Vec<GroupSetup<P::Output>>,
        core: CoreSettings,
        snapshots: SnapshotSettings,
        mut ports: P,
        now: Micros,
    ) -> Result<Shard<D, P>, StartError> {
        let mut groups = BTreeMap::new();
        for setup in setups {
            let config = core_config(&core, self.replica, self.boot, setup.group);
            let mut repair = None;
            let (phase, genesis, ahead) = match self.recovered.remove(&setup.group) {
                Some(mut found) => {
                    let ahead = check_machine(setup.group, setup.applied, &found.restored)?;
                    let base = found.restored.base;
                    if setup.applied.index < base.index {
                        found.restored.lacks_snapshot = true;
                        let group = setup.group;
                        ports.notice(Notice::SnapshotLacking { group, base });
                    }
                    let machine = setup.applied.index;
                    let machine = if ahead.is_none() { machine } else { base.index };
                    found.restored.commit = committed(&found.restored, machine);
                    if found.restored.regaining {
                        let behind = found.configurations_behind;
                        repair = Some(Repair::new(setup.group, behind, now));
                    }
                    let raft = Raft::new(config, found.restored, now);
                    (Phase::Running(Box::new(raft)), Some(found.genesis), ahead)
                }
                None => {
                    let (group, machine) = (setup.group, setup.applied);
                    if machine.index > Index(0) {
                        return Err(StartError::MachineWithoutLog { group, machine });
                    }
                    let bootstrap = Bootstrap::new(
                        self.replica,
                        self.boot,
                        self.cluster,
                        setup.group,
                        setup.voters,
                        now,
                    );
                    (Phase::Forming(Box::new(bootstrap)), None, None)
                }
            };
            let mut group = Group::new(
                setup.group,
                setup.inbox,
                phase,
                genesis,
                setup.applied,
                core.mutant,
            );
            group.machine_ahead = ahead;
            group.repair = repair;
            group.snapshots.found = setup.applied.index;
            let newest = setup.newest.as_ref();
            group.snapshots.newest = newest.map(|snapshot| Kept::of(snapshot, None));
            groups.insert(setup.group, group);
        }
        if let Some(group) = self.recovered.into_keys().next() {
            return Err(StartError::NotSetUp { group });
        }
        if !self.findings.is_empty() {
            ports.notice(Notice::Recovered {
                findings: self.findings,
            });
        }
        groups
            .values()
            .filter_map(guarded)
            .for_each(|notice| ports.notice(notice));
        Ok(Shard {
            wal: self.wal,
            ports,
            replica: self.replica,
            boot: self.boot,
            groups,
            core,
            reads: BTreeMap::new(),
            next_read: 0,
            feed_pace: FeedPace::default(),
            full_for_bytes: None,
            taken: Admitted::default(),
            snapshot_settings: snapshots,
            snapshot_turns: Turns::default(),
            poisoned: false,
        })
    }
}

/// Says what a group may have acknowledged and does not hold.
fn guarded<O>(group: &Group<O>) -> Option<Notice> {
    let raft = group.raft()?;
    Some(Notice::Guarded {
        group: group.id,
        guard: raft.guard()?,
        last: raft.last(),
        alone: raft.membership().voters.len() == 1,
    })
}

/// Whether a machine and a log can go on together. Where the machine is, if the log cannot say so yet.
///
/// Above its base a log that has just been opened does not know what is committed. The machine does: what
/// it applied was, and commit may have run ahead of this disk, whose entries there are of an older term or
/// have not landed. They are compared when the commit index reaches as far, and nothing is applied before.
fn check_machine(
    group: GroupId,
    machine: LogPosition,
    log: &Restored,
) -> Result<Option<LogPosition>, StartError> {
    let base = log.base;
    // Index 0 is before the first entry: an empty machine belongs to any log. What a machine below the base has is of
    // no use: it waits for a snapshot.
    if machine.index == Index(0) || machine.index < base.index {
        return Ok(None);
    }
    if machine.index == base.index {
        if machine.chain != base.chain {
            return Err(StartError::MachineDiffers { group, machine });
        }
        return Ok(None);
    }
    let above = usize::try_from(machine.index.0 - base.index.0 - 1);
    let entry = above.ok().and_then(|at| log.entries.get(at));
    let same = entry.is_some_and(|entry| entry.chain == machine.chain);
    Ok((!same).then_some(machine))
}

/// How far a log is committed at least: only what is was ever covered by an anchor, or applied by a machine.
fn committed(log: &Restored, machine: Index) -> LogPosition {
    let held = |index: Index| {
        let above = index.0.checked_sub(log.base.index.0 + 1)?;
        let entry = log.entries.get(usize::try_from(above).ok()?)?;
        Some(LogPosition {
            index,
            term: entry.term,
            chain: entry.chain,
        })
    };
    // The anchor of a snapshot whose base was lost in a crash: the log may hold something else there.
    let anchored = held(log.anchor.index).filter(|at| *at == log.anchor);
    let known = anchored.into_iter().chain(held(machine));
    known.max_by_key(|at| at.index).unwrap_or(log.base)
}

/// Whether a log goes on from where a snapshot ends: it has the same entry there, or ends before, for commit may have
/// run ahead of this disk; then they are compared when the log gets there.
fn connects(at: &LogPosition, log: &Restored) -> bool {
    let Some(above) = at.index.0.checked_sub(log.base.index.0) else {
        return false;
    };
    if above == 0 {
        return at.chain == log.base.chain;
    }
    let place = usize::try_from(above - 1).unwrap_or(usize::MAX);
    let entry = log.entries.get(place);
    entry.is_none_or(|entry| entry.chain == at.chain)
}

#[cfg(test)]
mod tests {
    use logdrive_raft::{Chain, Membership, Term};

    use super::*;

    fn at(index: u64, chain: u128) -> LogPosition {
        LogPosition {
            index: Index(index),
            term: Term(2),
            chain: Chain(chain),
        }
    }

    /// A log that begins above entry 5.
    fn log() -> Restored {
        Restored::at(at(5, 50), Membership::default())
    }

    #[test]
    fn a_machine_below_the_base_of_its_log_is_compared_with_nothing() {
        for machine in [LogPosition::default(), at(4, 40)] {
            let checked = check_machine(GroupId(1), machine, &log());
            assert!(matches!(checked, Ok(None)), "{checked:?}");
        }
    }

    #[test]
    fn a_log_is_committed_as_far_as_its_machine_and_its_anchor_show() {
        let mut log = log();
        let meta = |chain| logdrive_raft::io::EntryMeta {
            term: Term(2),
            chain: Chain(chain),
            frame_bytes: 80,
        };
        log.entries = vec![meta(60), meta(70)];
        for below in [0, 4, 5] {
            assert_eq!(committed(&log, Index(below)), at(5, 50));
        }
        assert_eq!(committed(&log, Index(7)), at(7, 70));
        log.anchor = at(6, 60);
        assert_eq!(committed(&log, Index(0)), at(6, 60));
        assert_eq!(committed(&log, Index(7)), at(7, 70));
    }

    #[test]
    fn a_snapshot_connects_to_a_log_that_holds_its_end_or_may_yet_come_to_it() {
        let mut log = log();
        let meta = |chain| logdrive_raft::io::EntryMeta {
            term: Term(2),
            chain: Chain(chain),
            frame_bytes: 80,
        };
        log.entries = vec![meta(60), meta(70)];
        for fits in [at(5, 50), at(6, 60), at(7, 70), at(8, 1)] {
            assert!(connects(&fits, &log), "{fits}");
        }
        for other in [at(4, 40), at(5, 51), at(6, 61), at(7, 60)] {
            assert!(!connects(&other, &log), "{other}");
        }
    }

    #[test]
    fn a_machine_at_the_base_has_to_be_of_the_history_of_its_log() {
        assert!(check_machine(GroupId(1), at(5, 50), &log()).is_ok());
        let refused = check_machine(GroupId(1), at(5, 51), &log()).unwrap_err();
        let differs = matches!(refused, StartError::MachineDiffers { .. });
        assert!(differs, "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("belongs to another log"), "{text}");
    }
}
