//! Hands out the entries of a log without changing it: `logdrive wal dump`.

use std::path::{Path, PathBuf};

use logdrive_raft::{Chain, Entry, GroupId, Index, Term};

use crate::build::gather;
use crate::disk::pwrite::PwriteDisk;
use crate::disk::{BLOCK_BYTES, Block, Disk};
use crate::error::OpenError;
use crate::format::BlockState;
use crate::judge::{Judgement, Live, Question, judge};
use crate::path::{GroupLog, Row};
use crate::read::entry_of;
use crate::verify::{Report, begin, logs_in};

/// Which entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of which group; none: of all.
    pub group: Option<GroupId>,
    /// The first one.
    pub from: Index,
    /// The last one.
    pub through: Index,
}

/// An entry on the path of a group.
#[derive(Clone, Debug)]
pub struct Dumped {
    /// The group.
    pub group: GroupId,
    /// Its place there.
    pub index: Index,
    /// The term of the leader that made it.
    pub term: Term,
    /// The chain through it.
    pub chain: Chain,
    /// The file that it lies in.
    pub file: PathBuf,
    /// Where the block begins in which it begins.
    pub offset_bytes: u64,
    /// What lies there, or why that cannot be read.
    pub entry: Result<Entry, String>,
}

/// Reads entries of every log in a node's data directory, group by group and in order. Goes on past those that cannot be
/// read. Says what `verify` says.
///
/// `while_running` leaves the lock alone and reads sealed segments only.
pub fn dump(
    directory: &Path,
    while_running: bool,
    selection: &Selection,
    each: &mut dyn FnMut(&Dumped),
) -> Result<Report, OpenError> {
    let question = Question::of_a_reader(while_running);
    let mut report = Report::empty();
    for log in logs_in(directory)? {
        let mut disk = PwriteDisk::read_only(&log);
        let slots = begin(&mut disk, &log, while_running)?;
        let judgement = judge(&mut disk, &slots, &question)?;
        for (group, log) in &judgement.groups {
            if selection.group.is_none_or(|wanted| wanted == *group) {
                dump_group(&mut disk, &judgement, (*group, log), selection, each);
            }
        }
        report.add(Report::of(judgement));
    }
    Ok(report)
}

fn dump_group(
    disk: &mut PwriteDisk,
    judgement: &Judgement,
    (group, log): (GroupId, &GroupLog),
    selection: &Selection,
    each: &mut dyn FnMut(&Dumped),
) {
    let mut index = selection.from.max(log.base().index.next());
    let last = selection.through.min(log.tip().index);
    let mut blocks = Vec::new();
    while index <= last {
        if let Some(row) = log.row(index) {
            let live = judgement
                .live
                .iter()
                .find(|live| Some(live.header.segment) == row.segment());
            let first = row.blocks().map_or(0, |(first, _, _)| first);
            each(&Dumped {
                group,
                index,
                term: row.term,
                chain: row.chain,
                file: live.map_or_else(PathBuf::new, |live| disk.slot_path(live.slot)),
                offset_bytes: u64::from(first) * BLOCK_BYTES as u64,
                entry: read(disk, live, row, &mut blocks),
            });
        }
        index = index.next();
    }
}

fn read(
    disk: &mut PwriteDisk,
    live: Option<&Live>,
    row: &Row,
    blocks: &mut Vec<Block>,
) -> Result<Entry, String> {
    let live = live.ok_or("the segment is not there that it lies in")?;
    let why = "the flush group that it lay in is bad";
    let (first, offset, last) = row.blocks().ok_or(why)?;
    if last >= live.blocks {
        return Err("the file ends before it does".to_owned());
    }
    blocks.resize((last - first) as usize + 1, Block::ZERO);
    let read = disk.read(live.slot, first, blocks);
    read.map_err(|error| error.to_string())?;
    let stamper = live.header.stamper();
    for (number, block) in (first..).zip(&*blocks) {
        if !matches!(stamper.check(block, number), BlockState::Whole { .. }) {
            return Err(format!("block {number} fails its stamp"));
        }
    }
    let frame = gather(blocks, offset, row.bytes as usize).freeze();
    entry_of(frame, row.chain)
}
