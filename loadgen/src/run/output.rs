//! What a run leaves behind: `run.json`, `run.hlog`, the table.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{RunError, io_error};
use crate::args::{RunArgs, Usage};
use crate::exit::Exit;
use crate::recorder::Second;
use crate::report::Report;
use crate::{hlog, table};

/// Says whether everything that was asked for can be written, before an hour of load is spent on it.
pub(super) fn check(args: &RunArgs) -> Result<(), Usage> {
    let unusable = |flag: &str, path: &Path, error: &io::Error| {
        let path = path.display();
        Usage(format!(
            "{flag} {path}: {error}: name a place that can be written"
        ))
    };
    fs::create_dir_all(&args.out).map_err(|error| unusable("--out", &args.out, &error))?;
    let json = args.json.as_deref().filter(|path| *path != Path::new("-"));
    let files: [(&str, Option<PathBuf>); 4] = [
        ("--out", Some(args.out.join("run.json"))),
        ("--out", Some(args.out.join("run.hlog"))),
        ("--json", json.map(Path::to_owned)),
        ("--history", args.history.clone()),
    ];
    for (flag, path) in files {
        let Some(path) = path else { continue };
        let was_there = path.exists();
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        opened.map_err(|error| unusable(flag, &path, &error))?;
        if !was_there {
            fs::remove_file(&path).map_err(|error| unusable(flag, &path, &error))?;
        }
    }
    Ok(())
}

/// Prints the table and writes the report, to where it was asked for too.
pub(super) fn write_out(
    args: &RunArgs,
    report: &Report,
    exit: Exit,
    began: SystemTime,
    seconds: &[Second],
) -> Result<(), RunError> {
    let mut json = serde_json::to_string_pretty(report)
        .map_err(|error| RunError::Internal(error.to_string()))?;
    json.push('\n');
    let json_alone = args.json.as_deref() == Some(Path::new("-"));
    let table = table::render(report, exit);
    if json_alone {
        note!("{}", table.trim_end());
        print(&json)?;
    } else {
        print(&table)?;
    }
    let path = args.out.join("run.json");
    let write =
        |path: &Path| fs::write(path, &json).map_err(io_error(format!("write {}", path.display())));
    write(&path)?;
    if let Some(path) = args.json.as_deref().filter(|_| !json_alone) {
        write(path)?;
    }
    let mut log = Vec::new();
    let since_epoch = began
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let command = report.argv.join(" ");
    hlog::write(&mut log, &command, since_epoch.as_secs_f64(), seconds)
        .map_err(io_error("write run.hlog"))?;
    let hlog_path = args.out.join("run.hlog");
    fs::write(&hlog_path, log).map_err(io_error(format!("write {}", hlog_path.display())))?;
    note!(" report       {}", path.display());
    Ok(())
}

/// To standard output. That nobody reads on, as `head` does not, is no error.
fn print(text: &str) -> Result<(), RunError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io_error("write to standard output")(error))
        }
        _ => Ok(()),
    }
}
