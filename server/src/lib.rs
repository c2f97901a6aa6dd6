//! The `logdrive` binary as a library, so that tests reach its parts.

#![deny(missing_docs)]

pub mod args;
pub mod config;
mod connect;
pub mod exit;
pub mod health;
pub mod http;
mod kv;
mod logging;
pub mod metrics;
pub mod out;
mod serve;
mod snapshot;
mod status;
mod tls;
pub mod version;
mod wal;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Failure};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::stdout().lock();
    let result = match &cli.command {
        Command::Serve(serve) => serve::run(serve, &mut out),
        Command::Status(status) => status::run(status, &mut out),
        Command::Snapshot(snapshot) => snapshot::run(snapshot, &mut out),
        Command::Kv(kv) => kv::run(kv, &mut out),
        Command::Tls(tls) => tls::run(tls, &mut out),
        Command::Wal(wal) => wal::run(wal, &mut out),
    };
    let result = result.and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match result {
        Ok(exit) => exit.into(),
        Err(Failure { exit, text }) => {
            if exit != Exit::Pass {
                out::complain(&text);
            }
            exit.into()
        }
    }
}
