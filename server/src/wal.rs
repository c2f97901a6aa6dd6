//! `logdrive wal`: looks at the log of a node's data directory, and changes nothing in it; and at the device under it.

use std::io;
use std::path::Path;
use std::time::Duration;

use logdrive_raft::entry::EntryKind;
use logdrive_raft::{GroupId, Index};
use logdrive_wal::disk::open::Backend;
use logdrive_wal::disk::{DiskError, probe};
use logdrive_wal::dump::{Dumped, Selection, dump};
use logdrive_wal::settle::{self, GivenUp};
use logdrive_wal::verify::{self, GroupReport, Report};
use logdrive_wal::{Finding, OpenError, Verdict};
use serde::Serialize;

use crate::args::{Wal, WalDir};
use crate::exit::{Exit, Failure};
use crate::out::Out;

/// Runs the command.
pub(crate) fn run(command: &Wal, out: &mut Out<'_>) -> Result<Exit, Failure> {
    match command {
        Wal::Inspect(log) => inspect(log, out),
        Wal::Verify { log, json: false } => {
            let report = verify::verify(&log.dir, log.while_running);
            let report = report.map_err(|error| refused(&error))?;
            writeln!(out, "{report}")?;
            Ok(verdict_exit(report.verdict))
        }
        Wal::Verify { log, json: true } => {
            let report = verify::verify(&log.dir, log.while_running);
            let json = match &report {
                Ok(report) => Json::of(report),
                Err(error) => Json::refused(refused(error).text),
            };
            let json = serde_json::to_string(&json).expect("strings and numbers serialise");
            writeln!(out, "{json}")?;
            let report = report.map_err(|error| refused(&error))?;
            Ok(verdict_exit(report.verdict))
        }
        Wal::Dump {
            log,
            group,
            from,
            to,
            payloads,
        } => {
            let selection = Selection {
                group: group.map(GroupId),
                from: Index(*from),
                through: Index(*to),
            };
            dump_entries(log, &selection, *payloads, out)
        }
        Wal::Settle {
            dir,
            group,
            give_up,
        } => settle_guards(dir, group.map(GroupId), *give_up, out),
        Wal::Probe { dir, json, seconds } => {
            let survey = probe::survey(dir, Backend::Auto, Duration::from_secs(*seconds));
            let survey = survey.map_err(|error| not_probed(dir, error))?;
            match json {
                true => {
                    let json = serde_json::to_string(&survey);
                    writeln!(out, "{}", json.expect("strings and numbers serialise"))?;
                }
                false => write!(out, "{survey}")?,
            }
            Ok(Exit::Pass)
        }
    }
}

/// Says what is given up, and does it if that is wanted.
fn settle_guards(
    dir: &Path,
    group: Option<GroupId>,
    give_up: bool,
    out: &mut Out<'_>,
) -> Result<Exit, Failure> {
    let guarded = settle::look(dir, group).map_err(|error| not_settled(&error))?;
    if guarded.is_empty() {
        writeln!(out, "no group is guarded: there is nothing to give up")?;
        return Ok(Exit::Pass);
    }
    for given_up in &guarded {
        writeln!(out, "{}", describe(given_up))?;
    }
    if !give_up {
        writeln!(
            out,
            "nothing was changed: while another voter has this, start it and this node gets it back; if nobody has it \
             any more, run this again with --give-up"
        )?;
        return Ok(Exit::AssertionFailed);
    }
    let (ended, left) = settle::give_up(dir, group).map_err(|error| not_settled(&error))?;
    for given_up in &left {
        writeln!(
            out,
            "group {} is guarded still: run this again",
            given_up.group
        )?;
    }
    if !left.is_empty() {
        return Ok(Exit::AssertionFailed);
    }
    for given_up in ended {
        let (group, ends) = (given_up.group, given_up.ends);
        writeln!(
            out,
            "group {group} was settled at {ends}: it campaigns and votes again"
        )?;
    }
    Ok(Exit::Pass)
}

fn describe(given_up: &GivenUp) -> String {
    let GivenUp {
        group,
        guard,
        ends,
        missing,
        ..
    } = given_up;
    let most = match guard.index {
        Some(index) => format!("entries up to {index} of term {}", guard.term),
        None => format!("any entry of term {}", guard.term),
    };
    let mut text = format!(
        "group {group} ends at {ends} and chain {}, and this node may have acknowledged {most}: what lies between is given up",
        ends.chain
    );
    for run in missing {
        text.push_str(&format!("\n  {run}"));
    }
    text
}

fn not_settled(error: &OpenError) -> Failure {
    match error {
        OpenError::Locked { path } => Failure::new(
            open_exit(error),
            format!(
                "{} is in use by another process: stop the node",
                path.display()
            ),
        ),
        error => refused(error),
    }
}

fn not_probed(dir: &Path, error: DiskError) -> Failure {
    if !dir.is_dir() {
        let text = format!("{} is not a directory", dir.display());
        return Failure::new(Exit::Usage, text)
            .advise("name one on the device, like node.dir of a node that does not run");
    }
    match OpenError::from(error) {
        OpenError::Locked { path } => Failure::new(
            Exit::Unreachable,
            format!(
                "{} is in use by another process: stop the node, for both would measure each other",
                path.display()
            ),
        ),
        error => Failure::of(open_exit(&error), &error),
    }
}

fn inspect(log: &WalDir, out: &mut Out<'_>) -> Result<Exit, Failure> {
    // Whoever reads may end before the log does, and the walk over it cannot be left half way.
    let mut written: io::Result<()> = Ok(());
    let report = verify::inspect(&log.dir, log.while_running, &mut |line| {
        if written.is_ok() {
            written = writeln!(out, "{line}");
        }
    });
    let report = report.map_err(|error| refused(&error))?;
    written?;
    writeln!(out, "{report}")?;
    Ok(verdict_exit(report.verdict))
}

fn dump_entries(
    log: &WalDir,
    selection: &Selection,
    payloads: bool,
    out: &mut Out<'_>,
) -> Result<Exit, Failure> {
    let mut written: io::Result<()> = Ok(());
    let report = dump(&log.dir, log.while_running, selection, &mut |dumped| {
        if written.is_ok() {
            written = write_entry(out, dumped, payloads);
        }
    });
    let report = report.map_err(|error| refused(&error))?;
    written?;
    writeln!(out, "{report}")?;
    Ok(verdict_exit(report.verdict))
}

fn write_entry(out: &mut Out<'_>, dumped: &Dumped, payloads: bool) -> io::Result<()> {
    let Dumped {
        group,
        index,
        term,
        chain,
        file,
        offset_bytes,
        entry,
    } = dumped;
    let file = file.display();
    let place = format!("chain {chain} file {file} offset {offset_bytes}");
    let entry = match entry {
        Ok(entry) => entry,
        Err(why) => {
            return writeln!(
                out,
                "entry group {group} index {index} term {term} unreadable {place}: {why}"
            );
        }
    };
    let header = entry.header();
    let kind = match header.kind {
        EntryKind::Noop => "noop",
        EntryKind::Proposals => "proposals",
        EntryKind::Configuration => "configuration",
    };
    writeln!(
        out,
        "entry group {group} index {index} term {term} {kind} {} bytes {} {place}",
        header.count, header.payload_bytes
    )?;
    if payloads {
        for (number, (row, payload)) in entry.proposals().enumerate() {
            let text = payload.escape_ascii();
            writeln!(out, "  {number} bytes {} {text}", row.length)?;
        }
    }
    Ok(())
}

fn verdict_exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Clean | Verdict::Torn => Exit::Pass,
        Verdict::Suspect | Verdict::Rot => Exit::Violation,
    }
}

fn refused(error: &OpenError) -> Failure {
    let exit = open_exit(error);
    match error {
        OpenError::Locked { path } => {
            let path = path.display();
            Failure::new(
                exit,
                format!(
                    "{path} is in use by another process: stop it, or add --while-running, which \
                     reads what is sealed"
                ),
            )
        }
        OpenError::NotALog { .. } => {
            Failure::of(exit, error).advise("name a node's data directory: node.dir")
        }
        _ => Failure::of(exit, error),
    }
}

/// How a program ends that cannot open a log.
pub(crate) fn open_exit(error: &OpenError) -> Exit {
    match error {
        OpenError::Rot { .. } | OpenError::Suspect { .. } => Exit::Violation,
        OpenError::Locked { .. }
        | OpenError::WrongCluster { .. }
        | OpenError::WrongNode { .. }
        | OpenError::FromTheFuture { .. }
        | OpenError::NotALog { .. } => Exit::Unreachable,
        // As a program does that is to write more than fits.
        OpenError::Sizes { .. } | OpenError::NoSpace { .. } => Exit::Usage,
        _ => Exit::Internal,
    }
}

/// `logdrive.wal.verify/1`
#[derive(Serialize)]
struct Json {
    schema: &'static str,
    /// Null: the log could not be looked at, and `error` says why.
    verdict: Option<&'static str>,
    error: Option<String>,
    segments: usize,
    entries: u64,
    groups: Vec<JsonGroup>,
    findings: Vec<JsonFinding>,
}

#[derive(Serialize)]
struct JsonGroup {
    group: u64,
    /// The last entry that is no longer in the log; 0: it was never cut.
    base_index: u64,
    /// Null: there is none.
    anchor_index: Option<u64>,
    /// Null: there are no entries.
    first_index: Option<u64>,
    last_index: u64,
    last_term: u64,
    chain: String,
    hard_state: JsonHardState,
}

#[derive(Serialize)]
struct JsonHardState {
    term: u64,
    vote: Option<JsonVote>,
}

#[derive(Serialize)]
struct JsonVote {
    node: u64,
    incarnation: String,
}

#[derive(Serialize)]
struct JsonFinding {
    verdict: &'static str,
    file: String,
    offset_bytes: u64,
    group: Option<u64>,
    index: Option<u64>,
    term: Option<u64>,
    meaning: String,
    advice: &'static str,
}

impl Json {
    fn of(report: &Report) -> Self {
        Self {
            verdict: Some(report.verdict.name()),
            error: None,
            segments: report.segments,
            entries: report.entries,
            groups: report.groups.iter().map(JsonGroup::of).collect(),
            findings: report.findings.iter().map(JsonFinding::of).collect(),
            ..Self::empty()
        }
    }

    fn refused(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::empty()
        }
    }

    fn empty() -> Self {
        Self {
            schema: "logdrive.wal.verify/1",
            verdict: None,
            error: None,
            segments: 0,
            entries: 0,
            groups: Vec::new(),
            findings: Vec::new(),
        }
    }
}

impl JsonGroup {
    fn of(report: &GroupReport) -> Self {
        let vote = report.hard_state.vote.map(|vote| JsonVote {
            node: vote.id.0,
            incarnation: vote.incarnation.to_string(),
        });
        Self {
            group: report.group.0,
            base_index: report.base_index.0,
            anchor_index: report.anchor_index.map(|index| index.0),
            first_index: report.first_index.map(|index| index.0),
            last_index: report.last_index.0,
            last_term: report.last_term.0,
            chain: report.chain.to_string(),
            hard_state: JsonHardState {
                term: report.hard_state.term.0,
                vote,
            },
        }
    }
}

impl JsonFinding {
    fn of(finding: &Finding) -> Self {
        Self {
            verdict: finding.verdict.name(),
            file: finding.file.display().to_string(),
            offset_bytes: finding.offset_bytes,
            group: finding.group.map(|group| group.0),
            index: finding.index.map(|index| index.0),
            term: finding.term.map(|term| term.0),
            meaning: finding.meaning.clone(),
            advice: finding.advice,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_log_that_has_no_space_to_open_is_not_an_internal_error() {
        let path = "/data/wal-00004.slot".into();
        let source = ErrorKind::StorageFull.into();
        let error = OpenError::NoSpace { path, source };
        assert_eq!(open_exit(&error), Exit::Usage);
        let said = refused(&error).text;
        assert!(said.contains("raise wal.bytes_max"), "{said}");
    }
}
