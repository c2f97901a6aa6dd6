//! What is said to whoever reads standard output and standard error, if anybody does.
//!
//! A reader that has gone away, as `head` does, is no error of anybody's: the run goes on and its files are
//! written. The macros of the standard library would panic.

use std::fmt::Arguments;
use std::io::{self, Write as _};

/// As `eprintln!`.
macro_rules! tell {
    ($($text:tt)*) => { $crate::say::tell_line(format_args!($($text)*)) };
}
pub(crate) use tell;

/// A line on standard error. There is nowhere to say that it failed.
pub(crate) fn tell_line(line: Arguments<'_>) {
    tell_text(&format!("{line}\n"));
}

/// Text on standard error.
pub(crate) fn tell_text(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Text on standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    print_to(&mut io::stdout().lock(), text)
}

fn print_to(out: &mut dyn io::Write, text: &str) -> io::Result<()> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl io::Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_that_nobody_reads_on_is_no_error() {
        print_to(&mut Fails(io::ErrorKind::BrokenPipe), "text").unwrap();
        print_to(&mut Fails(io::ErrorKind::StorageFull), "text").unwrap_err();
    }
}
