//! `run.hlog`: the histograms of every second, as HdrHistogram's log, for tools that nobody here wrote.

use std::io::{self, Write};

use crate::recorder::Second;

/// Writes the log. `start_epoch_s` is when the load began, by the wall clock.
pub fn write(
    out: &mut dyn Write,
    command: &str,
    start_epoch_s: f64,
    seconds: &[Second],
) -> io::Result<()> {
    writeln!(out, "#{}", command.replace('\n', " "))?;
    writeln!(out, "#[Histogram log format version 1.3]")?;
    writeln!(
        out,
        "#[StartTime: {start_epoch_s:.3} (seconds since epoch)]"
    )?;
    writeln!(
        out,
        "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\""
    )?;
    for second in seconds {
        let start = second.number;
        for (tag, max_ns, histogram) in [
            ("schedule", second.max_ns.0, &second.schedule_base64),
            ("send", second.max_ns.1, &second.send_base64),
        ] {
            // The longest one in milliseconds, as other writers of this format have it.
            let max_ms = max_ns as f64 / 1e6;
            writeln!(out, "Tag={tag},{start}.000,1.000,{max_ms:.3},{histogram}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::recorder::{Collector, Measured};

    #[test]
    fn a_foreign_reader_reads_the_log() {
        let collector = Collector::default();
        let mut measured = Measured::default();
        for (second, count) in [(0, 5), (1, 7)] {
            measured.clear();
            measured.schedule.record(2_000_000, count);
            measured.send.record(1_000_000, count);
            collector.add(second, &measured);
        }
        let (_, seconds) = collector.finish();
        let mut log = Vec::new();
        write(&mut log, "loadgen run\n--size 1", 1.5, &seconds).unwrap();
        let entries: Vec<LogEntry<'_>> =
            IntervalLogIterator::new(&log).map(Result::unwrap).collect();
        let intervals: Vec<_> = entries
            .iter()
            .filter_map(|entry| match entry {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        assert_eq!(intervals.len(), 4);
        let last = intervals[3];
        assert_eq!(last.tag().unwrap().as_str(), "send");
        assert_eq!(last.start_timestamp().as_secs(), 1);
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(last.encoded_histogram())
            .unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!(read.len(), 7);
    }
}
