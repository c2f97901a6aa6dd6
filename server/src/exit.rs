//! How the program ends: exit codes that scripts can rely on, and what it says before.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// The exit codes of all of our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Pass,
    /// Something went wrong that nobody expected.
    Internal,
    /// The command, its configuration or what it names cannot be used like this.
    Usage,
    /// A check did not hold: a cluster is degraded, a comparison failed.
    AssertionFailed,
    /// Data is lost, damaged, or may be.
    Violation,
    /// The target cannot be reached, is not ours, is in use, or is of another version.
    Unreachable,
}

impl Exit {
    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Internal => 1,
            Self::Usage => 2,
            Self::AssertionFailed => 10,
            Self::Violation => 20,
            Self::Unreachable => 30,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.number())
    }
}

/// A command that did not do what it was asked: how to exit, and what to say.
#[derive(Debug)]
pub struct Failure {
    /// How to exit.
    pub exit: Exit,
    /// What happened, and what to do.
    pub text: String,
}

impl Failure {
    /// A failure that says this.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { exit, text }
    }

    /// A failure that says what the error and its causes say.
    pub fn of(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self::new(exit, chain(error))
    }

    /// The command or what it names cannot be used like this.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// The target cannot be reached, or is not ours.
    pub fn unreachable(text: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, text)
    }

    /// Adds a line on what to do.
    #[must_use]
    pub fn advise(mut self, advice: &str) -> Self {
        self.text.push('\n');
        self.text.push_str(advice);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An error and its causes on one line. What one of them has already said of the other is not said again.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if said.starts_with(&text) {
            text = said;
        } else if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn causes_are_said_once() {
        let inner = Layer("listen on a:1: in use", None);
        let outer = Layer("listen on a:1", Some(Box::new(inner)));
        assert_eq!(chain(&outer), "listen on a:1: in use");
        let inner = Layer("permission denied", None);
        let middle = Layer("open ca.crt: permission denied", Some(Box::new(inner)));
        let outer = Layer("load certificates", Some(Box::new(middle)));
        let text = chain(&outer);
        assert_eq!(text, "load certificates: open ca.crt: permission denied");
    }
}
