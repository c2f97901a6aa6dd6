//! Numbers with units, as our command lines and configuration files read and write them: `50k/s`, `4KiB`,
//! `30s`. What cannot be read names the nearest spelling that can.

use std::time::Duration;

/// Why a number with a unit could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}; {}", advice(nearest.as_deref(), example))]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
    nearest: Option<String>,
}

/// Reads operations per second: `50k`, `50k/s`, `1.5M`.
///
/// # Errors
///
/// If the text is not a rate.
pub fn rate(text: &str) -> Result<f64, UnitError> {
    RATE.read(text)
}

/// Reads a count: `100k`.
///
/// # Errors
///
/// If the text is not a whole number.
pub fn count(text: &str) -> Result<u64, UnitError> {
    COUNT.whole(text)
}

/// Reads a number of bytes: `128`, `4KiB`.
///
/// # Errors
///
/// If the text is not a size, or not a whole number of bytes.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    BYTES.whole(text)
}

/// Reads bytes a second: `64MiB/s`, `64MiB`.
///
/// # Errors
///
/// If the text is not a rate of bytes, or not a whole number of them.
pub fn bytes_per_s(text: &str) -> Result<u64, UnitError> {
    BYTES_PER_S.whole(text)
}

/// Reads a time: `30s`, `2ms`.
///
/// # Errors
///
/// If the text is not a time, or one of more than three centuries.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let seconds = DURATION.read(text)?;
    if seconds >= VALUE_MAX / 1e6 {
        return Err(DURATION.error(text, None));
    }
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// Bytes in the largest unit that needs no fraction: what [`bytes()`] reads back as the same number.
#[must_use]
pub fn spell_bytes(bytes: u64) -> String {
    for (unit, worth) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(worth) {
            return format!("{}{unit}", bytes / worth);
        }
    }
    format!("{bytes}B")
}

/// A time in the largest unit that needs no fraction: what [`duration`] reads back as the same time.
#[must_use]
pub fn spell_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    for (unit, worth) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)] {
        if ns.is_multiple_of(worth) {
            return format!("{}{unit}", ns / worth);
        }
    }
    format!("{ns}ns")
}

/// Nanoseconds as a person reads them, with three figures.
#[must_use]
pub fn show_ns(ns: u64) -> String {
    let ns = ns as f64;
    if ns < 1e6 {
        format!("{:.1} µs", ns / 1e3)
    } else if ns < 1e9 {
        format!("{:.2} ms", ns / 1e6)
    } else {
        format!("{:.2} s", ns / 1e9)
    }
}

/// A count or rate as a person reads it: `20.0k`.
#[must_use]
pub fn show_count(count: f64) -> String {
    if count >= 1e6 {
        format!("{:.2}M", count / 1e6)
    } else if count >= 1e3 {
        format!("{:.1}k", count / 1e3)
    } else {
        format!("{count:.0}")
    }
}

/// Bytes as a person reads them: `1.5 GiB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let exact = bytes;
    let bytes = bytes as f64;
    for (name, worth) in [
        ("GiB", 1_073_741_824.0),
        ("MiB", 1_048_576.0),
        ("KiB", 1024.0),
    ] {
        if bytes >= worth {
            return format!("{:.1} {name}", bytes / worth);
        }
    }
    format!("{exact} B")
}

/// One kind of number: which units it takes, and what each is worth.
struct Kind {
    what: &'static str,
    example: &'static str,
    units: &'static [(&'static str, f64)],
}

impl Kind {
    fn read(&self, text: &str) -> Result<f64, UnitError> {
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start();
        let value: Option<f64> = number.parse().ok();
        let worth = self.units.iter().find(|(name, _)| *name == unit);
        if let (Some(value), Some((_, worth))) = (value, worth) {
            return Ok(value * worth);
        }
        let nearest = value.map(|_| format!("{number}{}", self.nearest(unit)));
        Err(self.error(text, nearest))
    }

    /// The unit most like what was written: the same letters in other cases first.
    fn nearest(&self, unit: &str) -> &'static str {
        let likeness = |name: &str| {
            let same = name.eq_ignore_ascii_case(unit);
            let lower = strsim::jaro_winkler(&name.to_lowercase(), &unit.to_lowercase());
            if same { 2.0 } else { lower }
        };
        let mut best = (self.units[0].0, -1.0);
        for (name, _) in self.units {
            let likeness = likeness(name);
            if likeness > best.1 {
                best = (name, likeness);
            }
        }
        best.0
    }

    fn whole(&self, text: &str) -> Result<u64, UnitError> {
        let value = self.read(text)?;
        if value.fract() != 0.0 || value > VALUE_MAX {
            return Err(self.error(text, None));
        }
        Ok(value as u64)
    }

    fn error(&self, text: &str, nearest: Option<String>) -> UnitError {
        UnitError {
            text: text.to_owned(),
            what: self.what,
            example: self.example,
            nearest,
        }
    }
}

fn advice(nearest: Option<&str>, example: &str) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("write it like `{example}`"),
    }
}

/// Whole numbers up to here have an `f64` of their own.
const VALUE_MAX: f64 = 9e15;

const RATE: Kind = Kind {
    what: "a rate",
    example: "50k/s",
    units: &[
        ("", 1.0),
        ("/s", 1.0),
        ("k", 1e3),
        ("k/s", 1e3),
        ("M", 1e6),
        ("M/s", 1e6),
    ],
};

const COUNT: Kind = Kind {
    what: "a count",
    example: "100k",
    units: &[("", 1.0), ("k", 1e3), ("M", 1e6)],
};

const BYTES: Kind = Kind {
    what: "a size",
    example: "4KiB",
    units: &[
        ("", 1.0),
        ("B", 1.0),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
    ],
};

const BYTES_PER_S: Kind = Kind {
    what: "a size a second",
    example: "64MiB/s",
    units: &[
        ("", 1.0),
        ("/s", 1.0),
        ("B", 1.0),
        ("B/s", 1.0),
        ("KiB", 1024.0),
        ("KiB/s", 1024.0),
        ("MiB", 1_048_576.0),
        ("MiB/s", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("GiB/s", 1_073_741_824.0),
        ("kB", 1e3),
        ("kB/s", 1e3),
        ("MB", 1e6),
        ("MB/s", 1e6),
        ("GB", 1e9),
        ("GB/s", 1e9),
    ],
};

const DURATION: Kind = Kind {
    what: "a time",
    example: "30s",
    units: &[
        ("s", 1.0),
        ("ms", 1e-3),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ns", 1e-9),
        ("m", 60.0),
        ("h", 3600.0),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        assert_eq!(rate("50k"), Ok(50e3));
        assert_eq!(rate("50k/s"), Ok(50e3));
        assert_eq!(rate("1.5M/s"), Ok(1.5e6));
        assert_eq!(rate("7"), Ok(7.0));
        assert_eq!(count("100k"), Ok(100_000));
        assert_eq!(bytes("4KiB"), Ok(4096));
        assert_eq!(bytes("128"), Ok(128));
        assert_eq!(bytes("1.5KiB"), Ok(1536));
        assert_eq!(bytes_per_s("64MiB/s"), Ok(64 << 20));
        assert_eq!(bytes_per_s("64MiB"), Ok(64 << 20));
        assert_eq!(bytes_per_s("100"), Ok(100));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2ms"), Ok(Duration::from_millis(2)));
        assert_eq!(duration("1.5 m"), Ok(Duration::from_secs(90)));
    }

    #[test]
    fn misspelt_units_name_the_nearest() {
        let message = |error: UnitError| error.to_string();
        let rate = |text| message(rate(text).unwrap_err());
        assert_eq!(
            rate("50kk/s"),
            "`50kk/s` is not a rate; did you mean `50k/s`?"
        );
        assert_eq!(rate("50K"), "`50K` is not a rate; did you mean `50k`?");
        assert_eq!(rate("fast"), "`fast` is not a rate; write it like `50k/s`");
        assert_eq!(rate("-5"), "`-5` is not a rate; write it like `50k/s`");
        let bytes = |text| message(bytes(text).unwrap_err());
        assert_eq!(bytes("4kib"), "`4kib` is not a size; did you mean `4KiB`?");
        assert_eq!(bytes("0.5"), "`0.5` is not a size; write it like `4KiB`");
        let duration = |text| message(duration(text).unwrap_err());
        assert_eq!(
            duration("30sec"),
            "`30sec` is not a time; did you mean `30s`?"
        );
        assert_eq!(duration("30"), "`30` is not a time; did you mean `30s`?");
    }

    #[test]
    fn numbers_beyond_all_bounds_are_refused() {
        let many = "9".repeat(400);
        duration(&format!("{many}h")).unwrap_err();
        duration("99999999999999s").unwrap_err();
        bytes(&many).unwrap_err();
        bytes("9000000TiB").unwrap_err();
        count("").unwrap_err();
    }

    #[test]
    fn what_is_spelt_reads_back() {
        for (text, value) in [
            ("0B", 0),
            ("1B", 1),
            ("1000B", 1000),
            ("4KiB", 4096),
            ("64MiB", 64 << 20),
            ("8GiB", 8 << 30),
            ("1025KiB", 1025 << 10),
        ] {
            assert_eq!(spell_bytes(value), text);
            assert_eq!(bytes(text), Ok(value));
        }
        for (text, us) in [
            ("0s", 0),
            ("1s", 1_000_000),
            ("150ms", 150_000),
            ("1500us", 1500),
        ] {
            let value = Duration::from_micros(us);
            assert_eq!(spell_duration(value), text);
            assert_eq!(duration(text), Ok(value));
        }
        assert_eq!(spell_duration(Duration::from_nanos(7)), "7ns");
    }
}
