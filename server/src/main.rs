//! The `logdrive` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    logdrive_server::main()
}
