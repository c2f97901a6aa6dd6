//! The command.

use std::process::ExitCode;

use loadgen::args::{self, Command};
use loadgen::exit::Exit;

fn main() -> ExitCode {
    let argv: Vec<String> = std::env::args().collect();
    let cli = match args::parse(argv.iter().cloned()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no misuse, and clap knows the difference.
            let _ = error.print();
            let code = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Pass
            };
            return code.into();
        }
    };
    match cli.command {
        Command::Run(run) => loadgen::command::run(&run, argv).into(),
        Command::Replica(replica) => loadgen::command::replica(&replica).into(),
    }
}
