//! How much processor time processes have used.

use std::fs;
use std::time::Duration;

/// User and system time of a process so far; `None` if there is no such process.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

fn parse_stat(stat: &str) -> Option<Duration> {
    // The name in parentheses may hold anything, more of them included.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * TICK_MS))
}

/// What Linux calls a clock tick towards user space: `USER_HZ` is 100 on every architecture in use.
const TICK_MS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_confuse() {
        let stat = "42 (a) b 9) S 1 42 42 0 -1 4194560 5 0 0 0 150 25 0 0 20 0 1 0 9 0 0";
        assert_eq!(parse_stat(stat), Some(Duration::from_millis(1750)));
        assert_eq!(parse_stat("42 (a"), None);
    }
}
