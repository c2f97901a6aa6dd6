//! What is said to whoever reads standard output, if anybody does.

use std::fmt::Arguments;
use std::io::{self, Write as _};

/// As `println!`, which would panic when the reader has gone away, as `head` does.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// A line on standard output. Whoever does not read on does not want it.
pub(crate) fn line(line: Arguments<'_>) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}
