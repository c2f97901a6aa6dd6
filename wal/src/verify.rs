//! Looks at a log without changing it: what `logdrive wal verify` and `logdrive wal inspect` say.

use std::fmt;
use std::path::{Path, PathBuf};

use logdrive_raft::io::{Guard, HardState};
use logdrive_raft::{Chain, GroupId, Index, Term};

use crate::disk::lock::LOCK_FILE;
use crate::disk::pwrite::PwriteDisk;
use crate::disk::{Disk, SlotFile, SlotId};
use crate::error::{Finding, OpenError};
use crate::judge::{Judgement, Question, Verdict, check_lengths, judge, open_error};
use crate::scan::{Piece, scan_headers, scan_segment};

/// What was found in a directory.
#[derive(Debug)]
pub struct Report {
    /// What opening it would say. A finding that opening it puts right ([`FindingVerdict::Healable`]) leaves
    /// this as it is.
    ///
    /// [`FindingVerdict::Healable`]: crate::FindingVerdict::Healable
    pub verdict: Verdict,
    /// How many segments belong to the log.
    pub segments: usize,
    /// How many entries are on the paths of all groups.
    pub entries: u64,
    /// Every group, by number.
    pub groups: Vec<GroupReport>,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

/// What was found of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// Which group.
    pub group: GroupId,
    /// The last entry that was cut away, or is covered by a snapshot; 0: none was.
    pub base_index: Index,
    /// Up to where the newest anchor says what the log amounts to, if there is one.
    pub anchor_index: Option<Index>,
    /// The first entry; none: there are no entries.
    pub first_index: Option<Index>,
    /// The last entry, or what the base covers.
    pub last_index: Index,
    /// Its term.
    pub last_term: Term,
    /// The chain through it.
    pub chain: Chain,
    /// Term and vote.
    pub hard_state: HardState,
    /// What it may have acknowledged and does not hold.
    pub guard: Option<Guard>,
}

/// Verifies every log in a node's data directory. Reads only.
///
/// `while_running` leaves the lock alone and reads sealed segments only.
pub fn verify(directory: &Path, while_running: bool) -> Result<Report, OpenError> {
    let mut report = Report::empty();
    for log in logs_in(directory)? {
        let mut disk = PwriteDisk::read_only(&log);
        let slots = begin(&mut disk, &log, while_running)?;
        report.add(verify_disk(&mut disk, &slots, while_running)?);
    }
    report.groups.sort_by_key(|group| group.group);
    Ok(report)
}

/// How often a running log is looked at before it is called bad. While it rolls, a header may be read in the middle of
/// being written, or headers of different moments; what is bad is so every time.
const LOOKS_MAX: usize = 3;

/// How often at most, counting also the looks during which segments were released: their slots may be written to while
/// they are read.
const RELEASES_MAX: usize = 100;

/// Verifies the log on a disk whose slots are open. Reads only.
///
/// `while_running` may list the slots again.
pub fn verify_disk(
    disk: &mut impl Disk,
    slots: &[SlotFile],
    while_running: bool,
) -> Result<Report, OpenError> {
    let question = Question::of_a_reader(while_running);
    if !while_running {
        return Ok(Report::of(judge(disk, slots, &question)?));
    }
    let mut slots = slots.to_vec();
    let (mut looks, mut oldest) = (0, oldest_stated(disk, &slots));
    for _ in 1..RELEASES_MAX {
        let judged = judge(disk, &slots, &question);
        let good = |judgement: &Judgement| judgement.verdict <= Verdict::Torn;
        if judged.as_ref().is_ok_and(good) {
            return Ok(Report::of(judged?));
        }
        slots = disk.slots()?;
        let oldest_now = oldest_stated(disk, &slots);
        if oldest_now == oldest {
            looks += 1;
        }
        oldest = oldest_now;
        if looks >= LOOKS_MAX {
            return Ok(Report::of(judged?));
        }
    }
    Ok(Report::of(judge(disk, &slots, &question)?))
}

/// The oldest segment that is needed, as the newest header says. None: no header can be read just now.
fn oldest_stated(disk: &mut impl Disk, slots: &[SlotFile]) -> Option<u64> {
    let scans = scan_headers(disk, slots).ok()?;
    let headers = scans.iter().filter_map(|scan| scan.header);
    let newest = headers.max_by_key(|header| (header.epoch, header.segment));
    newest.map(|header| header.oldest)
}

impl Report {
    pub(crate) fn empty() -> Self {
        Self {
            verdict: Verdict::Clean,
            segments: 0,
            entries: 0,
            groups: Vec::new(),
            findings: Vec::new(),
        }
    }

    pub(crate) fn of(judgement: Judgement) -> Self {
        let groups = judgement.groups.iter().map(|(group, log)| {
            let tip = log.tip();
            let some = log.rows().len() > 0;
            GroupReport {
                group: *group,
                base_index: log.base().index,
                anchor_index: log.anchor.as_ref().map(|anchor| anchor.at.index),
                first_index: some.then(|| log.base().index.next()),
                last_index: tip.index,
                last_term: tip.term,
                chain: tip.chain,
                hard_state: judgement
                    .hard_states
                    .get(group)
                    .copied()
                    .unwrap_or_default(),
                guard: judgement.guards.get(group).copied(),
            }
        });
        Self {
            verdict: judgement.verdict,
            segments: judgement.live.len(),
            entries: judgement.entries,
            groups: groups.collect(),
            findings: judgement.findings,
        }
    }

    pub(crate) fn add(&mut self, other: Report) {
        self.verdict = self.verdict.max(other.verdict);
        self.segments += other.segments;
        self.entries += other.entries;
        self.groups.extend(other.groups);
        self.findings.extend(other.findings);
    }
}

/// One line a finding, and the verdict last.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        let (verdict, groups) = (self.verdict.name(), self.groups.len());
        let (segments, entries) = (self.segments, self.entries);
        write!(
            f,
            "verdict {verdict} groups {groups} segments {segments} entries {entries}"
        )?;
        // Of several groups, the first one.
        let Some(group) = self.groups.first() else {
            return write!(f, " first 0 last 0 term 0 chain {}", Chain(0));
        };
        let first = group.first_index.unwrap_or_default();
        let GroupReport {
            last_index,
            last_term,
            chain,
            ..
        } = group;
        write!(
            f,
            " first {first} last {last_index} term {last_term} chain {chain}"
        )
    }
}

/// Describes every log in a node's data directory: slots, flush groups, records; one line each. Reads only,
/// and goes on past what is bad.
pub fn inspect(
    directory: &Path,
    while_running: bool,
    line: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<Report, OpenError> {
    for log in logs_in(directory)? {
        let mut disk = PwriteDisk::read_only(&log);
        let slots = begin(&mut disk, &log, while_running)?;
        line(format_args!("log {}", log.display()));
        inspect_disk(&mut disk, &slots, line)?;
    }
    let report = verify(directory, while_running)?;
    for group in &report.groups {
        let (id, base, last) = (group.group, group.base_index, group.last_index);
        let anchor = group.anchor_index.map(|index| index.to_string());
        let anchor = anchor.unwrap_or_else(|| "none".to_owned());
        let guard = group.guard.map(|guard| format!(" guard {guard}"));
        line(format_args!(
            "group {id} base {base} anchor {anchor} last {last}{}",
            guard.unwrap_or_default()
        ));
    }
    Ok(report)
}

fn inspect_disk(
    disk: &mut impl Disk,
    slots: &[SlotFile],
    line: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<(), OpenError> {
    check_lengths(disk, slots)?;
    let mut scans = scan_headers(disk, slots).map_err(|error| open_error(disk, error))?;
    scans.sort_by_key(|scan| scan.header.map(|header| (header.segment, header.epoch)));
    let mut blocks = Vec::new();
    for scan in scans {
        let (file, length) = (SlotId::file_name(scan.slot), scan.blocks);
        let Some(header) = scan.header else {
            line(format_args!("slot {file} blocks {length} free"));
            continue;
        };
        let (segment, epoch) = (header.segment, header.epoch);
        let (end, before) = (header.predecessor_end, header.predecessor_epoch);
        let oldest = header.oldest;
        let opened = if header.by_recovery {
            "recovery"
        } else {
            "roll"
        };
        line(format_args!(
            "slot {file} blocks {length} segment {segment} epoch {epoch} opened by {opened} after {end} \
             of epoch {before} oldest {oldest} node {} cluster {} incarnation {} log {:032x}",
            header.node, header.cluster, header.incarnation, header.log_uuid
        ));
        let scanned = scan_segment(disk, scan.slot, &header, length, &mut blocks, None);
        for piece in scanned.map_err(|error| open_error(disk, error))?.pieces {
            match piece {
                Piece::Group(group) => {
                    let header = group.header;
                    line(format_args!(
                        "  group {} at {} blocks {} kind {:?} boot {} mark {} frames {} bytes {} chain {}",
                        header.number,
                        header.place,
                        header.blocks,
                        header.kind,
                        header.boot,
                        header.mark,
                        group.frames.len(),
                        header.body_bytes,
                        group.chain
                    ));
                    for record in &group.table {
                        line(format_args!("    {record:?}"));
                    }
                }
                Piece::Bad(bad) if bad.not_landed && bad.whole_blocks == 0 => {
                    line(format_args!("  end {}", bad.at));
                }
                Piece::Bad(bad) => {
                    line(format_args!(
                        "  bad {} block {}: {}",
                        bad.at, bad.block, bad.meaning
                    ));
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn begin(
    disk: &mut PwriteDisk,
    log: &Path,
    while_running: bool,
) -> Result<Vec<SlotFile>, OpenError> {
    // A copy of a log may come without the file; nobody runs it then.
    if !while_running && log.join(LOCK_FILE).exists() {
        disk.lock()?;
    }
    Ok(disk.slots()?)
}

/// A data directory holds a log a shard; the directory of a log itself will do as well.
pub(crate) fn logs_in(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let not_a_log = |why: String| OpenError::NotALog {
        path: directory.to_owned(),
        why,
    };
    if holds_slots(directory).map_err(|error| not_a_log(error.to_string()))? {
        return Ok(vec![directory.to_owned()]);
    }
    let listed = std::fs::read_dir(directory).map_err(|error| not_a_log(error.to_string()))?;
    let mut logs: Vec<PathBuf> = listed
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.is_dir() && holds_slots(path).unwrap_or(false))
        .collect();
    logs.sort();
    if logs.is_empty() {
        return Err(not_a_log("there are no slot files in it".to_owned()));
    }
    Ok(logs)
}

fn holds_slots(directory: &Path) -> std::io::Result<bool> {
    let is_slot = |name: &std::ffi::OsStr| name.to_str().and_then(SlotId::from_file_name).is_some();
    Ok(std::fs::read_dir(directory)?.any(|file| file.is_ok_and(|file| is_slot(&file.file_name()))))
}
