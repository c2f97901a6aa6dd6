//! How a run ends, as a number that scripts can rely on.

/// What an exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// The run was valid and every assertion held.
    Pass = 0,
    /// loadgen itself failed.
    Internal = 1,
    /// The command line cannot be carried out.
    Usage = 2,
    /// An assertion does not hold.
    Assertion = 10,
    /// Worse than a baseline.
    Regression = 11,
    /// The numbers mean nothing.
    Invalid = 12,
    /// Acknowledged writes were lost, applied twice or out of order.
    Violation = 20,
    /// The target cannot be reached, is not ours, or speaks another version.
    Unreachable = 30,
    /// Stopped by a signal; what there is has been written.
    Interrupted = 130,
}

/// From the one that says most to the one that says least.
const PRECEDENCE: [Exit; 9] = [
    Exit::Usage,
    Exit::Internal,
    Exit::Violation,
    Exit::Interrupted,
    Exit::Unreachable,
    Exit::Invalid,
    Exit::Regression,
    Exit::Assertion,
    Exit::Pass,
];

impl Exit {
    /// The one to exit with when several apply; [`Exit::Pass`] when none does.
    #[must_use]
    pub fn worst(of: &[Exit]) -> Exit {
        PRECEDENCE
            .into_iter()
            .find(|exit| of.contains(exit))
            .unwrap_or(Exit::Pass)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_the_gravest_is_said() {
        use Exit::{Assertion, Interrupted, Invalid, Pass, Regression, Unreachable, Violation};
        let order = [Violation, Unreachable, Invalid, Regression, Assertion, Pass];
        for (place, exit) in order.iter().enumerate() {
            assert_eq!(Exit::worst(&order[place..]), *exit);
            let mut backwards = order[place..].to_vec();
            backwards.reverse();
            assert_eq!(Exit::worst(&backwards), *exit);
        }
        assert_eq!(Exit::worst(&[]), Pass);
        assert_eq!(Exit::worst(&[Invalid, Interrupted]), Interrupted);
        assert_eq!(Exit::worst(&[Violation, Interrupted]), Violation);
    }

    #[test]
    fn the_numbers_are_those_of_the_contract() {
        let numbers = PRECEDENCE.map(|exit| exit as u8);
        assert_eq!(numbers, [2, 1, 20, 130, 30, 12, 11, 10, 0]);
    }
}
