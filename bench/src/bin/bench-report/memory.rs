//! What the replicas of the case `memory` held, beside what their bounds allow.
//!
//! The formula is that of ARCHITECTURE.md, with the defaults of this build. What the state machine holds is
//! the user's and would be added; it is left out here, which makes the bound harder.

use logdrive::Limits;

use crate::runs::Run;

const MIB: f64 = (1 << 20) as f64;

/// The most that any replica held over what it may, in MiB: (held, allowed).
pub(crate) fn held_and_allowed(run: &Run) -> Option<(f64, f64)> {
    let nodes = run.0.pointer("/memory")?.as_array()?;
    let peaks = nodes
        .iter()
        .map(|node| node.get("rss_peak_bytes")?.as_f64());
    let held = peaks.reduce(|a, b| Some(a?.max(b?))).flatten()?;
    Some((held / MIB, allowed_mib(run)?))
}

fn allowed_mib(run: &Run) -> Option<f64> {
    let limits = Limits::default();
    let whole = |path: &str| run.number(path).map(|number| number as u64);
    let (groups, clients) = (whole("/config/groups")?, whole("/config/clients")?);
    let peers = 2;
    // The warm-up made entries at the same rate.
    let longer = 1.0 + run.number("/config/warmup_ms")? / run.number("/config/duration_ms")?;
    let entries = (run.number("/result/entries")? * longer) as u64;
    let formula = limits.memory_bytes_max(groups, peers, clients, entries) as f64 / MIB;
    Some(formula + SPARE_MIB)
}

/// What the process takes beside what is counted.
const SPARE_MIB: f64 = 64.0;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_largest_replica_is_held_against_the_formula() {
        let run = |peak: serde_json::Value| {
            Run(json!({
                "config": { "groups": 1, "clients": 8, "duration_ms": 60_000, "warmup_ms": 0 },
                "result": { "entries": 1 << 20 },
                "memory": [{ "rss_peak_bytes": 5 << 20 }, { "rss_peak_bytes": peak }],
            }))
        };
        let (held, allowed) = held_and_allowed(&run((80 << 20).into())).unwrap();
        // 105 a group, 48 to machines and from peers, 2 x 38, 8 x 48, 19, 6 of snapshots, 11 of repair, 96 of entries, 64.
        assert_eq!((held, allowed), (80.0, 809.0));
        assert_eq!(held_and_allowed(&run(serde_json::Value::Null)), None);
    }
}
