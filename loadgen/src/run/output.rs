//! What a run leaves behind: `run.json`, `run.hlog`, the table.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::{RunError, io_error};
use crate::args::RunArgs;
use crate::exit::Exit;
use crate::recorder::Second;
use crate::report::Report;
use crate::{hlog, table};

/// Writes the report, to where it was asked for too, and prints the table.
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
    let path = args.out.join("run.json");
    let write =
        |path: &Path| fs::write(path, &json).map_err(io_error(format!("write {}", path.display())));
    write(&path)?;
    let mut log = Vec::new();
    let since_epoch = began
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let command = report.argv.join(" ");
    hlog::write(&mut log, &command, since_epoch.as_secs_f64(), seconds)
        .map_err(io_error("write run.hlog"))?;
    let hlog_path = args.out.join("run.hlog");
    fs::write(&hlog_path, log).map_err(io_error(format!("write {}", hlog_path.display())))?;
    let table = table::render(report, exit);
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => {
            eprint!("{table}");
            print!("{json}");
        }
        other => {
            if let Some(path) = other {
                write(path)?;
            }
            print!("{table}");
        }
    }
    eprintln!(" report       {}", path.display());
    Ok(())
}
