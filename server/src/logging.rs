//! Log lines on standard error, for people or for programs.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;
use crate::exit::{Exit, Failure};

/// Installs the subscriber of this process. Libraries install none.
pub(crate) fn start(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("--log {filter}: {error}")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // That a line could not be written would be told where it could not be written, by a panic.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    let installed = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| Failure::new(Exit::Internal, format!("start logging: {error}")))
}
