//! Ends guards by an operator's decision: `logdrive wal settle`.
//!
//! A guarded replica waits for what it may have acknowledged. Where nobody has that any more, or there is nobody else, it
//! waits for ever, and only somebody who knows what else is lost can say that it is given up.

use std::io;
use std::path::{Path, PathBuf};

use logdrive_raft::io::{Guard, Write};
use logdrive_raft::{GroupId, LogPosition};

use crate::disk::Disk;
use crate::disk::pwrite::PwriteDisk;
use crate::error::OpenError;
use crate::format::SlotHeader;
use crate::judge::{Judgement, Question, judge};
use crate::options::{FreshIds, Identity, Options, SLOTS_MIN};
use crate::path::Missing;
use crate::verify::{begin, logs_in};
use crate::wal::Wal;

/// A guarded group, and what is given up if its guard ends.
#[derive(Clone, Debug)]
pub struct GivenUp {
    /// The log it is in.
    pub log: PathBuf,
    /// The group.
    pub group: GroupId,
    /// What its replica may have acknowledged.
    pub guard: Guard,
    /// Where its log ends as far as it can be read: what comes after that is given up here.
    pub ends: LogPosition,
    /// Entries that are known and cannot be read.
    pub missing: Vec<Missing>,
}

/// What would be given up in a node's data directory, of one group or of all. Changes nothing. The node must not run.
pub fn look(directory: &Path, only: Option<GroupId>) -> Result<Vec<GivenUp>, OpenError> {
    let mut all = Vec::new();
    for log in logs_in(directory)? {
        all.extend(look_at(&log, only)?.0);
    }
    Ok(all)
}

/// Gives it up, durably, and says what it was. The guards that are left are none, or the second list has them.
pub fn give_up(
    directory: &Path,
    only: Option<GroupId>,
) -> Result<(Vec<GivenUp>, Vec<GivenUp>), OpenError> {
    let (mut all, mut left) = (Vec::new(), Vec::new());
    for log in logs_in(directory)? {
        let (guarded, newest) = look_at(&log, only)?;
        let Some(newest) = newest.filter(|_| !guarded.is_empty()) else {
            continue;
        };
        end_guards(&log, &guarded, &newest)?;
        all.extend(guarded);
        left.extend(look_at(&log, only)?.0);
    }
    Ok((all, left))
}

fn look_at(
    log: &Path,
    only: Option<GroupId>,
) -> Result<(Vec<GivenUp>, Option<SlotHeader>), OpenError> {
    let mut disk = PwriteDisk::read_only(log);
    let slots = begin(&mut disk, log, false)?;
    let judgement = judge(&mut disk, &slots, &Question::of_a_reader(false))?.into_result()?;
    let wanted = |group: &GroupId| only.is_none_or(|only| only == *group);
    let guards = judgement.guards.iter().filter(|(group, _)| wanted(group));
    let guarded = guards.filter_map(|(group, guard)| given_up(log, &judgement, *group, *guard));
    let newest = judgement.live.last().map(|live| live.header);
    Ok((guarded.collect(), newest))
}

fn given_up(log: &Path, judgement: &Judgement, group: GroupId, guard: Guard) -> Option<GivenUp> {
    let path = judgement.groups.get(&group)?;
    let covered = path.anchor_over_missing().map(|anchor| anchor.at);
    let mut missing = path.missing();
    missing.retain(|run| covered.is_none_or(|at| at.index < run.last.index));
    let ends = if missing.is_empty() {
        path.tip()
    } else {
        path.whole()
    };
    Some(GivenUp {
        log: log.to_owned(),
        group,
        guard,
        ends: covered.filter(|at| ends.index < at.index).unwrap_or(ends),
        missing,
    })
}

/// Opens the log as its node would, and has it say that the guards are over.
fn end_guards(log: &Path, guarded: &[GivenUp], newest: &SlotHeader) -> Result<(), OpenError> {
    let mut disk = PwriteDisk::new(log);
    let slots = disk.slots()?.len() as u64;
    let slot_bytes = u64::from(newest.slot_blocks) * crate::disk::BLOCK_BYTES as u64;
    let identity = Identity {
        cluster: newest.cluster,
        node: newest.node,
    };
    // The directory is not new, so that these are not used.
    let fresh = FreshIds {
        incarnation: newest.incarnation,
        log_uuid: newest.log_uuid,
    };
    // An opening takes a slot or two.
    let options = Options::new(identity, fresh).with_slots(slot_bytes, (slots + 2).max(SLOTS_MIN));
    let (mut wal, recovery) = Wal::open(disk, options)?;
    for given_up in guarded {
        let group = given_up.group;
        let is_holed = recovery
            .groups
            .get(&group)
            .is_some_and(|found| !found.missing.is_empty());
        if is_holed && let Some(whole) = wal.whole(group) {
            let cut = wal.append(group, &[Write::Truncate(whole)]);
            cut.map_err(|error| OpenError::NoSpace {
                path: log.to_owned(),
                source: io::Error::new(io::ErrorKind::StorageFull, error),
            })?;
        }
        wal.guard_over(group);
    }
    Ok(wal.close()?)
}
