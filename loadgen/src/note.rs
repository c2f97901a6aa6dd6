//! Lines for whoever watches. That nobody reads them any more is no reason to end.

/// Writes a line to standard error, if it is still there.
macro_rules! note {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr().lock(), $($what)*);
    }};
}
