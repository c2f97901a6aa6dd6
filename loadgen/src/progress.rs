//! The line that a running load prints each second.

use crate::recorder::Measured;
use crate::units::{show_count, show_ns};

/// Where the run is.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Which second of the load has ended.
    pub second: u64,
    /// Seconds of warm-up.
    pub warmup_s: f64,
    /// Seconds of measurement.
    pub duration_s: f64,
    /// Whether operations are due on a schedule.
    pub open: bool,
    /// Who leads, and its term.
    pub leader: Option<(u64, u64)>,
}

/// The line for a second. Counts and latencies are those of the measurement; before it there are none.
#[must_use]
pub fn line(moment: &Moment, measured: &Measured) -> String {
    let passed_s = (moment.second + 1) as f64 - moment.warmup_s;
    let leader = moment
        .leader
        .map_or("no leader".to_owned(), |(node, term)| {
            format!("leader {node} (term {term})")
        });
    if passed_s <= 0.0 {
        return format!(" warm-up {:>3}s  {leader}", moment.second + 1);
    }
    let tally = &measured.tally;
    let latency = |per_ten_thousand| {
        let ns = measured.schedule.percentile(per_ten_thousand);
        ns.map_or("-".to_owned(), show_ns)
    };
    let max = measured.schedule.max().map_or("-".to_owned(), show_ns);
    let offered = if moment.open {
        format!("offered {}/s  ", show_count(tally.offered as f64))
    } else {
        String::new()
    };
    let failed: u64 = tally.errors.values().sum();
    let unknown: u64 = tally.unknown.values().sum();
    format!(
        " {:>3.0}s/{:.0}s  {offered}done {}/s  p50 {}  p99 {}  p99.9 {}  max {max}  \
         errors {failed}  unknown {unknown}  {leader}",
        passed_s.min(moment.duration_s),
        moment.duration_s,
        show_count(tally.completed as f64),
        latency(5000),
        latency(9900),
        latency(9990),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_second_brought() {
        let mut measured = Measured::default();
        measured.schedule.record(1_000_000, 20_000);
        measured.tally.offered = 20_000;
        measured.tally.completed = 19_998;
        measured.tally.errors.insert("busy", 2);
        let moment = Moment {
            second: 4,
            warmup_s: 2.0,
            duration_s: 10.0,
            open: true,
            leader: Some((2, 3)),
        };
        let shown = line(&moment, &measured);
        let expected = "   3s/10s  offered 20.0k/s  done 20.0k/s  p50 1.00 ms  p99 1.00 ms  \
            p99.9 1.00 ms  max 1.00 ms  errors 2  unknown 0  leader 2 (term 3)";
        assert_eq!(shown, expected);
        let early = Moment {
            second: 0,
            leader: None,
            ..moment
        };
        assert_eq!(line(&early, &measured), " warm-up   1s  no leader");
    }
}
