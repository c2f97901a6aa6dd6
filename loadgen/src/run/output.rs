//! What a run leaves behind: `run.json`, `run.hlog`, the table.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{RunError, io_error};
use crate::args::{RunArgs, Usage};
use crate::exit::Exit;
use crate::history::HistoryWriter;
use crate::recorder::Second;
use crate::report::Report;
use crate::say::{self, tell};
use crate::{hlog, table};

/// Every place that a run writes to, open before anything is started: what cannot be written is said then.
#[derive(Debug)]
pub(super) struct Outputs {
    report: Output,
    log: Output,
    /// Where the report was asked for, too, unless that is standard output.
    json: Option<Output>,
    /// Until the load takes it.
    pub(super) history: Option<HistoryWriter>,
}

impl Outputs {
    /// Opens what the command line names. What is there stays until there is something to replace it.
    pub(super) fn open(args: &RunArgs) -> Result<Self, Usage> {
        let out = &args.out;
        fs::create_dir_all(out).map_err(|error| refused("--out", out, &error))?;
        let within = |name: &str| Output::open(out.join(name), "--out");
        let json = args.json.clone().filter(|path| path != Path::new("-"));
        let history = args.history.as_deref().map(|path| {
            HistoryWriter::create(path).map_err(|error| refused("--history", path, &error))
        });
        Ok(Self {
            report: within("run.json")?,
            log: within("run.hlog")?,
            json: json.map(|path| Output::open(path, "--json")).transpose()?,
            history: history.transpose()?,
        })
    }

    /// Prints the table and writes the report, to where it was asked for too. The table comes first, and one
    /// place that fails keeps nothing from the others.
    pub(super) fn write(
        self,
        args: &RunArgs,
        report: &Report,
        exit: Exit,
        began: SystemTime,
        seconds: &[Second],
    ) -> Result<(), RunError> {
        let mut json = serde_json::to_string_pretty(report)
            .map_err(|error| RunError::Internal(error.to_string()))?;
        json.push('\n');
        let mut log = Vec::new();
        let since_epoch = began
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let command = report.argv.join(" ");
        hlog::write(&mut log, &command, since_epoch.as_secs_f64(), seconds)
            .map_err(io_error("write run.hlog"))?;
        let table = table::render(report, exit);
        let printed = if args.json.as_deref() == Some(Path::new("-")) {
            say::tell_text(&table);
            say::print(&json)
        } else {
            say::print(&table)
        };
        let written = [
            printed.map_err(io_error("write to standard output")),
            self.report.write(json.as_bytes()),
            self.log.write(&log),
            self.json
                .map_or(Ok(()), |output| output.write(json.as_bytes())),
        ];
        written.into_iter().collect::<Result<(), RunError>>()?;
        let path = args.out.join("run.json");
        tell!(" report       {}", path.display());
        Ok(())
    }
}

/// A file that is open for writing and still holds what it held.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    fn open(path: PathBuf, flag: &str) -> Result<Self, Usage> {
        let mut options = File::options();
        let opened = options.create(true).write(true).truncate(false).open(&path);
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(refused(flag, &path, &error)),
        }
    }

    fn write(mut self, content: &[u8]) -> Result<(), RunError> {
        let mut write = || {
            // A pipe or a device has no length to set.
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            self.file.write_all(content)
        };
        write().map_err(io_error(format!("write {}", self.path.display())))
    }
}

fn refused(flag: &str, path: &Path, error: &io::Error) -> Usage {
    Usage(format!("{flag}: write {}: {error}", path.display()))
}
