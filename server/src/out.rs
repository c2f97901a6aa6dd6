//! Where a command writes what it was asked for.

use std::io::{self, Write};

use crate::exit::{Exit, Failure};

/// Standard output, or what a test takes in its place.
pub type Out<'a> = dyn Write + 'a;

/// A line on standard error, for a person. That nobody reads it is no error, and there is nowhere to say so:
/// `eprintln!` would panic, and the exit code would not be the one that was meant.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "logdrive: {text}");
}

impl From<io::Error> for Failure {
    /// A write to the output failed. That nobody reads on, as `head` does not, is no error of anybody's, but
    /// there is nothing left to do either.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Pass, "");
        }
        Self::new(Exit::Internal, format!("write the output: {error}"))
    }
}
