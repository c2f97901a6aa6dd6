//! What the subcommands do.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::args::{ReplicaArgs, RunArgs};
use crate::cluster::{Cluster, ClusterError};
use crate::exit::Exit;
use crate::run::{self, Setting};

/// One measured run.
#[must_use]
pub fn run(args: &RunArgs, argv: Vec<String>) -> Exit {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&stop)) {
            eprintln!("loadgen: signal {signal} will end it at once: {error}");
        }
    }
    match run::run(args, argv, &stop, &make) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit()
        }
    }
}

/// A replica of a `spawn` target.
#[must_use]
pub fn replica(_args: &ReplicaArgs) -> Exit {
    Exit::Internal
}

fn make(_setting: &Setting<'_>) -> Result<Box<dyn Cluster>, ClusterError> {
    Err(ClusterError("no engine yet".to_owned()))
}
