//! What `--assert` says, and whether it holds: `p99<5ms`, `errors==0`.

use std::fmt;
use std::str::FromStr;

use crate::units;

/// A figure of the run compared with a bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    text: String,
    /// Which figure.
    pub figure: &'static str,
    operator: Operator,
    bound: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// Longer ones first, so that `<=` is not read as `<`.
const OPERATORS: [(&str, Operator); 6] = [
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Nanoseconds,
    Milliseconds,
    Rate,
    Bytes,
    Count,
}

/// Every figure that can be asserted on, and what its bound is written in. Latencies count from the schedule.
const FIGURES: [(&str, Unit); 24] = [
    ("p50", Unit::Nanoseconds),
    ("p90", Unit::Nanoseconds),
    ("p99", Unit::Nanoseconds),
    ("p999", Unit::Nanoseconds),
    ("p9999", Unit::Nanoseconds),
    ("max", Unit::Nanoseconds),
    ("mean", Unit::Nanoseconds),
    ("send.p50", Unit::Nanoseconds),
    ("send.p90", Unit::Nanoseconds),
    ("send.p99", Unit::Nanoseconds),
    ("send.p999", Unit::Nanoseconds),
    ("lag.p99", Unit::Nanoseconds),
    ("unavailable", Unit::Milliseconds),
    ("offered_per_s", Unit::Rate),
    ("sent_per_s", Unit::Rate),
    ("completed_per_s", Unit::Rate),
    ("payload_bytes_per_s", Unit::Bytes),
    ("errors", Unit::Count),
    ("unknown", Unit::Count),
    ("leader_changes", Unit::Count),
    ("lost", Unit::Count),
    ("duplicated", Unit::Count),
    ("reordered", Unit::Count),
    ("busy_cores", Unit::Count),
];

/// Why an assertion could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an assertion: {why}")]
pub struct AssertionError {
    text: String,
    why: String,
}

impl Assertion {
    /// Says why it does not hold for what was measured; `None`: it holds. What was not measured fails.
    #[must_use]
    pub fn failure(&self, measured: Option<f64>) -> Option<String> {
        let Some(measured) = measured else {
            return Some(format!("{self}: not measured, or too few samples"));
        };
        let holds = match self.operator {
            Operator::Less => measured < self.bound,
            Operator::LessOrEqual => measured <= self.bound,
            Operator::Greater => measured > self.bound,
            Operator::GreaterOrEqual => measured >= self.bound,
            Operator::Equal => measured == self.bound,
            Operator::NotEqual => measured != self.bound,
        };
        let unit = unit_of(self.figure).unwrap_or(Unit::Count);
        let shown = match unit {
            Unit::Nanoseconds => units::show_ns(measured as u64),
            Unit::Milliseconds => format!("{measured:.0} ms"),
            Unit::Rate => format!("{}/s", units::show_count(measured)),
            Unit::Bytes => format!("{}/s", units::show_bytes(measured as u64)),
            Unit::Count => format!("{measured}"),
        };
        (!holds).then(|| format!("{self}: it is {shown}"))
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Assertion {
    type Err = AssertionError;

    fn from_str(text: &str) -> Result<Self, AssertionError> {
        let error = |why: String| AssertionError {
            text: text.to_owned(),
            why,
        };
        let found = OPERATORS
            .iter()
            .find_map(|(sign, operator)| text.split_once(sign).map(|parts| (parts, *operator)));
        let Some(((name, bound), operator)) = found else {
            return Err(error("write it like `p99<5ms` or `errors==0`".to_owned()));
        };
        // p99.9 is how people say it, p999 how the report spells it.
        let name = name.trim().replace("99.99", "9999").replace("99.9", "999");
        let known = FIGURES.iter().find(|(known, _)| *known == name);
        let Some((figure, unit)) = known else {
            let nearest = nearest(&name);
            return Err(error(format!(
                "there is no figure `{name}`; did you mean `{nearest}`?"
            )));
        };
        let bound = bound.trim();
        let bound = match unit {
            Unit::Nanoseconds => units::duration(bound).map(|d| d.as_nanos() as f64),
            Unit::Milliseconds => units::duration(bound).map(|d| d.as_secs_f64() * 1e3),
            Unit::Rate => units::rate(bound),
            Unit::Bytes => units::bytes(bound.trim_end_matches("/s")).map(|bytes| bytes as f64),
            Unit::Count => units::rate(bound),
        };
        Ok(Self {
            text: text.to_owned(),
            figure,
            operator,
            bound: bound.map_err(|unit| error(unit.to_string()))?,
        })
    }
}

fn unit_of(figure: &str) -> Option<Unit> {
    let known = FIGURES.iter().find(|(known, _)| *known == figure);
    known.map(|(_, unit)| *unit)
}

fn nearest(name: &str) -> &'static str {
    // Among equals the one whose number is closest comes last, and `max_by` takes the last.
    let likeness = |known: &str| -(strsim::damerau_levenshtein(known, name) as f64);
    let names = FIGURES.iter().map(|(known, _)| *known);
    names
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .unwrap_or("p99")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, measured: f64) -> bool {
        let assertion: Assertion = text.parse().unwrap();
        assertion.failure(Some(measured)).is_none()
    }

    #[test]
    fn assertions_compare_in_the_figures_own_unit() {
        assert!(holds("p99<5ms", 4.9e6) && !holds("p99<5ms", 5e6));
        assert!(holds("p99.9 <= 5ms", 5e6) && !holds("p99.9 <= 5ms", 5.1e6));
        assert!(holds("errors==0", 0.0) && !holds("errors==0", 1.0));
        assert!(holds("errors!=0", 1.0));
        assert!(holds("completed_per_s>400k/s", 400_001.0));
        assert!(holds("completed_per_s>=400k", 400e3));
        assert!(holds("payload_bytes_per_s>1MiB/s", 2e6));
        assert!(holds("unavailable<=1.5s", 1500.0));
    }

    #[test]
    fn a_failure_says_what_was_measured() {
        let assertion: Assertion = "p99<5ms".parse().unwrap();
        assert_eq!(
            assertion.failure(Some(6.5e6)).unwrap(),
            "p99<5ms: it is 6.50 ms"
        );
        assert_eq!(
            assertion.failure(None).unwrap(),
            "p99<5ms: not measured, or too few samples"
        );
    }

    #[test]
    fn a_mistyped_assertion_says_what_was_meant() {
        let error = |text: &str| text.parse::<Assertion>().unwrap_err().to_string();
        assert!(error("p99").ends_with("write it like `p99<5ms` or `errors==0`"));
        assert!(error("erors==0").ends_with("did you mean `errors`?"));
        assert!(error("p99<5").ends_with("`5` is not a time; did you mean `5s`?"));
    }
}
