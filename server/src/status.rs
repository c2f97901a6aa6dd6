//! `logdrive status`: asks each node for its own view.

mod view;

use std::io::IsTerminal;
use std::thread;

use serde_json::Value;

use crate::args::Status;
use crate::connect::Asker;
use crate::exit::{Exit, Failure};
use crate::out::{Out, complain};

/// Runs the command.
pub(crate) fn run(command: &Status, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let asker = Asker::new(&command.tls, command.timeout)?;
    loop {
        let exit = once(command, &asker, out)?;
        if !command.watch {
            return Ok(exit);
        }
        out.flush()?;
        thread::sleep(command.interval);
        if !command.json && std::io::stdout().is_terminal() {
            out.write_all(CLEAR)?;
        }
    }
}

fn once(command: &Status, asker: &Asker, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let mut exit = Exit::Pass;
    for (address, answer) in asker.ask(&command.addresses)? {
        match answer {
            Ok(json) => {
                let status: Value = serde_json::from_str(&json).map_err(|error| {
                    let text = format!("{address} sent a status that is no JSON: {error}");
                    Failure::unreachable(text)
                })?;
                if command.json {
                    writeln!(out, "{json}")?;
                } else {
                    out.write_all(view::view(&address, &status).as_bytes())?;
                }
                if exit == Exit::Pass && !view::complaints(&status).is_empty() {
                    exit = Exit::AssertionFailed;
                }
            }
            Err(failure) => {
                // Where a person reads, it belongs between the others; a program reads statuses only.
                if command.json {
                    complain(&failure.to_string());
                } else {
                    writeln!(out, "{failure}")?;
                }
                exit = Exit::Unreachable;
            }
        }
    }
    Ok(exit)
}

/// Clears the terminal and goes to its first line.
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";
