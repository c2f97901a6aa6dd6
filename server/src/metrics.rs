//! The metrics page, in the text format of OpenMetrics.
//!
//! Made anew for each scrape from copies of status and counters: nothing is registered, nothing counts
//! twice. Base units, `_total` for what only grows, labels with few values.

use std::collections::HashMap;
use std::fmt;

use hdrhistogram::Histogram;
use logdrive::MetricsSnapshot;
use logdrive::status::{GroupLine, PeerLine, SnapshotLine, Status, TransferLine};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::version::COMMIT;

/// What a scrape is answered with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page.
pub fn page(status: &Status, metrics: &MetricsSnapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("logdrive");
    registry.register_collector(Box::new(Scrape {
        status: status.clone(),
        metrics: metrics.clone(),
    }));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

#[derive(Debug)]
struct Scrape {
    status: Status,
    metrics: MetricsSnapshot,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder };
        self.node(&mut page)?;
        self.groups(&mut page)?;
        self.proposals(&mut page)?;
        self.repairs(&mut page)?;
        self.snapshots(&mut page)?;
        self.transfers(&mut page)?;
        self.wal(&mut page)?;
        self.peers(&mut page)?;
        self.queues(&mut page)?;
        self.memory(&mut page)
    }
}

impl Scrape {
    fn node(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.status;
        let build = vec![
            ("version", status.version.to_owned()),
            ("commit", COMMIT.to_owned()),
        ];
        page.gauge("build_info", "What runs", None, [(build, 1.0)])?;
        let uptime = (Vec::new(), status.uptime_s as f64);
        let help = "Time since the node started";
        page.gauge("uptime", help, Some(&Unit::Seconds), [uptime])?;
        let running = (Vec::new(), f64::from(status.running));
        page.gauge("running", "Whether the node's threads run", None, [running])?;
        let alarms = status.alarms.iter().map(|alarm| {
            let mut labels = vec![("code", alarm.code.to_owned())];
            labels.extend(alarm.group.map(|group| ("group", group.to_string())));
            (labels, 1.0)
        });
        page.gauge("alarm", "Something an operator should know", None, alarms)
    }

    fn groups(&self, page: &mut Page<'_>) -> fmt::Result {
        let groups = &self.status.groups;
        let roles = groups.iter().flat_map(|group| {
            ROLES.iter().map(|role| {
                let labels = vec![
                    ("group", group.group.to_string()),
                    ("role", (*role).to_owned()),
                ];
                (labels, f64::from(group.role == *role))
            })
        });
        page.gauge("role", "1 for the role that the replica has", None, roles)?;
        let mut each = |name, help, value: fn(&GroupLine) -> Option<u64>| {
            let rows = groups.iter().filter_map(|group| {
                Some((
                    vec![("group", group.group.to_string())],
                    value(group)? as f64,
                ))
            });
            page.gauge(name, help, None, rows)
        };
        each("term", "The current term", |group| Some(group.term))?;
        each("leader_known", "Whether a leader is known", |group| {
            Some(u64::from(group.leader.is_some()))
        })?;
        each(
            "log_first_index",
            "The first entry that is still in the log, or would be",
            |group| Some(group.first),
        )?;
        each("log_last_index", "The last entry", |group| Some(group.last))?;
        each(
            "log_kept_entries",
            "Entries that are still in the log",
            |group| Some((group.last + 1).saturating_sub(group.first)),
        )?;
        each(
            "log_durable_index",
            "The last entry durable here",
            |group| Some(group.durable),
        )?;
        each(
            "log_committed_index",
            "The last entry known to be committed",
            |group| Some(group.commit),
        )?;
        each(
            "log_applied_index",
            "The last entry applied here",
            |group| Some(group.applied),
        )?;
        each(
            "log_snapshot_index",
            "The last entry that a snapshot covers",
            |group| group.snapshot,
        )
    }

    fn proposals(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        let changes = metrics.leader_changes;
        page.counter(
            "leader_changes",
            "Changes of role, term or leader seen",
            changes,
        )?;
        let applied = (
            vec![("outcome", "applied".to_owned())],
            metrics.applied_proposals,
        );
        page.counters(
            "proposals",
            "Proposals by what became of them",
            None,
            [applied],
        )?;
        let batches = metrics.apply_batches;
        page.counter(
            "apply_batches",
            "Entries handed to the state machines",
            batches,
        )?;
        page.counter("turns", "Turns of the shard", metrics.turns)?;
        let commit = Buckets::of(&metrics.commit_us);
        let help = "From an entry's appending to its commit, on the leader";
        page.histogram("commit_duration", help, &commit)?;
        let apply = Buckets::of(&metrics.apply_us);
        let help = "One call of a state machine with a batch";
        page.histogram("apply_duration", help, &apply)
    }

    fn repairs(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter(
            "entries_repaired",
            "Entries of the log that could not be read and have come back from peers",
            self.metrics.entries_repaired,
        )?;
        let groups = self.status.groups.iter();
        let rows = groups.map(|group| {
            let label = ("group", group.group.to_string());
            (vec![label], group.missing as f64)
        });
        let help = "Entries of the log that cannot be read";
        page.gauge("entries_missing", help, None, rows)
    }

    fn snapshots(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        page.counter(
            "snapshots_taken",
            "Snapshots taken and read back",
            metrics.snapshots,
        )?;
        page.counter(
            "snapshots_failed",
            "Attempts to take or fetch a snapshot that failed",
            metrics.snapshots_failed,
        )?;
        page.counter(
            "snapshots_installed",
            "Snapshots from peers that log and machine went on from",
            metrics.snapshots_installed,
        )?;
        let help = "Parts of snapshots sent to peers";
        let sent = (Vec::new(), metrics.snapshot_bytes_sent);
        page.counters("snapshot_sent", help, Some(&Unit::Bytes), [sent])?;
        let handles = Buckets::of(&metrics.snapshot_handle_us);
        let help = "How long a machine that hands over its state does not apply";
        page.histogram("snapshot_handle_duration", help, &handles)?;
        let mut each = |name, help, unit, value: fn(&SnapshotLine) -> Option<f64>| {
            let rows = self.status.groups.iter().filter_map(|group| {
                let newest = group.snapshot_details.as_ref()?;
                Some((vec![("group", group.group.to_string())], value(newest)?))
            });
            page.gauge(name, help, unit, rows)
        };
        let help = "The newest snapshot";
        each("snapshot", help, Some(&Unit::Bytes), |newest| {
            Some(newest.bytes as f64)
        })?;
        let help = "Since the newest snapshot was taken, if this process took it";
        each("snapshot_age", help, Some(&Unit::Seconds), |newest| {
            newest.age_s.map(|age_s| age_s as f64)
        })?;
        let help = "How long the newest snapshot took, if this process took it";
        each("snapshot_duration", help, Some(&Unit::Seconds), |newest| {
            newest.took_ms.map(|ms| ms as f64 / 1e3)
        })?;
        let taking = self.status.groups.iter().map(|group| {
            let labels = vec![("group", group.group.to_string())];
            (labels, f64::from(group.snapshot_taking.is_some()))
        });
        let help = "Whether a snapshot is being taken";
        page.gauge("snapshot_taking", help, None, taking)
    }

    fn transfers(&self, page: &mut Page<'_>) -> fmt::Result {
        let groups = &self.status.groups;
        let mut each = |name, help, unit, value: fn(&TransferLine) -> u64| {
            let rows = groups.iter().flat_map(|group| {
                group.transfers.iter().map(move |transfer| {
                    let labels = vec![
                        ("group", group.group.to_string()),
                        ("direction", transfer.direction.to_owned()),
                        ("peer", transfer.peer.to_string()),
                    ];
                    (labels, value(transfer) as f64)
                })
            });
            page.gauge(name, help, unit, rows)
        };
        let bytes = Some(&Unit::Bytes);
        let help = "A snapshot that is fetched, by this node or by one that it leads";
        each("snapshot_transfer", help, bytes, |transfer| transfer.bytes)?;
        let help = "What of a snapshot that is fetched is there";
        each("snapshot_transfer_have", help, bytes, |transfer| {
            transfer.bytes_have
        })?;
        let help = "How much of a snapshot that is fetched comes in a second";
        each(
            "snapshot_transfer_bytes_per_second",
            help,
            None,
            |transfer| transfer.bytes_per_s,
        )
    }

    fn wal(&self, page: &mut Page<'_>) -> fmt::Result {
        let wal = &self.status.wal;
        let how = vec![
            ("backend", wal.backend.clone()),
            ("flush_mode", wal.flush_mode.clone()),
        ];
        page.gauge(
            "wal_info",
            "How the log reaches the disk",
            None,
            [(how, 1.0)],
        )?;
        let bytes = Some(&Unit::Bytes);
        let help = "Written to the log, headers and padding included";
        page.counters("wal", help, bytes, [(Vec::new(), wal.bytes_written)])?;
        let help = "Frames of entries written to the log";
        page.counters(
            "wal_payload",
            help,
            bytes,
            [(Vec::new(), wal.bytes_payload)],
        )?;
        page.counter(
            "wal_fsyncs",
            "Flushes that the disk was asked for",
            wal.flushes,
        )?;
        page.counter("wal_flush_groups", "Flush groups written", wal.flush_groups)?;
        page.counter(
            "wal_flush_mode_changes",
            "How often a flush mode that starved was left",
            wal.flush_mode_changes,
        )?;
        page.counter(
            "wal_scrub_passes",
            "How often all full segments were read again",
            wal.scrub_passes,
        )?;
        let scrubbed = (Vec::new(), wal.scrubbed_bytes);
        let help = "Full segments that were read again to find what went bad";
        page.counters("wal_scrubbed", help, Some(&Unit::Bytes), [scrubbed])?;
        let flushes = Buckets::of_rows(&self.metrics.flush_us);
        page.histogram("wal_fsync_duration", "One flush of the log", &flushes)?;
        let mut one = |name, help, value: f64| page.gauge(name, help, None, [(Vec::new(), value)]);
        one("wal_slots", "Segment files", wal.slots as f64)?;
        one(
            "wal_slots_free",
            "Segment files ready for use",
            wal.slots_free as f64,
        )?;
        one(
            "wal_full",
            "Whether proposals are refused for lack of room",
            f64::from(wal.full),
        )
    }

    fn peers(&self, page: &mut Page<'_>) -> fmt::Result {
        let leads = self
            .status
            .groups
            .iter()
            .find(|group| group.role == "leader");
        let last = leads.map(|group| group.last);
        let mut each = |name, help, unit, value: &dyn Fn(&PeerLine) -> Option<f64>| {
            let rows = self
                .status
                .peers
                .iter()
                .filter_map(|peer| Some((vec![("peer", peer.node.to_string())], value(peer)?)));
            page.gauge(name, help, unit, rows)
        };
        let help = "Whether there is a connection";
        each("peer_connected", help, None, &|peer| {
            Some(f64::from(peer.state == "connected"))
        })?;
        let help = "Entries of the first group led here that the peer does not have durably";
        each("peer_lag_entries", help, None, &|peer| {
            Some(last?.saturating_sub(peer.match_index?) as f64)
        })?;
        let help = "Entries on their way to the peer";
        each("peer_inflight", help, Some(&Unit::Bytes), &|peer| {
            Some(peer.inflight_bytes as f64)
        })?;
        let help = "Round trip to the peer";
        each("peer_rtt", help, Some(&Unit::Seconds), &|peer| {
            Some(peer.rtt_us? as f64 / 1e6)
        })
    }

    fn queues(&self, page: &mut Page<'_>) -> fmt::Result {
        let queues = &self.status.queues;
        let bytes = Some(&Unit::Bytes);
        let label = |name: &str| vec![("queue", name.to_owned())];
        let held = queues
            .iter()
            .map(|queue| (label(&queue.name), queue.bytes as f64));
        page.gauge("queue", "What waits in a queue", bytes, held)?;
        let bounds = queues
            .iter()
            .map(|queue| (label(&queue.name), queue.bytes_max as f64));
        page.gauge("queue_limit", "What may wait in a queue", bytes, bounds)
    }

    fn memory(&self, page: &mut Page<'_>) -> fmt::Result {
        let memory = &self.status.memory;
        let bytes = Some(&Unit::Bytes);
        let label = |owner: &str| vec![("owner", owner.to_owned())];
        let held = memory
            .iter()
            .map(|line| (label(line.owner), line.bytes as f64));
        page.gauge("memory", "What is held in memory", bytes, held)?;
        let bounds = memory
            .iter()
            .filter_map(|line| Some((label(line.owner), line.bytes_max? as f64)));
        page.gauge("memory_limit", "What may be held in memory", bytes, bounds)
    }
}

type Labels = Vec<(&'static str, String)>;

/// Writes metrics one after another.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, None, [(Vec::new(), value)])
    }

    /// The encoder adds `_total`.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let none: Option<&Exemplar<NoLabelSet, u64>> = None;
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                metric.encode_counter(&value, none)?;
            } else {
                metric
                    .encode_family(&labels)?
                    .encode_counter(&value, none)?;
            }
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &Buckets) -> fmt::Result {
        let seconds = Some(&Unit::Seconds);
        let none: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
        let mut metric =
            self.encoder
                .encode_descriptor(name, help, seconds, MetricType::Histogram)?;
        metric.encode_histogram(buckets.sum_s, buckets.count, &buckets.rows, none)
    }
}

/// A histogram as the page shows it: seconds, in buckets that double.
#[derive(Debug)]
struct Buckets {
    rows: Vec<(f64, u64)>,
    count: u64,
    sum_s: f64,
}

impl Buckets {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self::gather(
            histogram
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_since_last_iteration())),
        )
    }

    fn of_rows(rows: &[(u64, u64)]) -> Self {
        Self::gather(rows.iter().copied())
    }

    /// From microseconds and how often, in rising order.
    fn gather(values: impl Iterator<Item = (u64, u64)>) -> Self {
        let bounds = (0..BUCKETS).map(|n| BUCKET_LEAST_US << n);
        let mut rows: Vec<(u64, u64)> = bounds.map(|bound| (bound, 0)).collect();
        let (mut beyond, mut count, mut sum_us) = (0, 0, 0.0);
        for (us, times) in values {
            count += times;
            sum_us += us as f64 * times as f64;
            match rows.iter_mut().find(|(bound, _)| us <= *bound) {
                Some((_, held)) => *held += times,
                None => beyond += times,
            }
        }
        let mut rows: Vec<(f64, u64)> = rows
            .into_iter()
            .map(|(bound, held)| (bound as f64 / 1e6, held))
            .collect();
        rows.push((f64::INFINITY, beyond));
        Self {
            rows,
            count,
            sum_s: sum_us / 1e6,
        }
    }
}

const ROLES: &[&str] = &[
    "leader",
    "follower",
    "candidate",
    "forming",
    "stranger",
    "halted",
];

/// From 25 µs, which a fast disk's flush takes, doubling to 3.3 s.
const BUCKET_LEAST_US: u64 = 25;
const BUCKETS: u32 = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_gathered_into_buckets() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        histogram.record_n(20, 2).unwrap();
        histogram.record(30).unwrap();
        histogram.record(60_000_000).unwrap();
        let buckets = Buckets::of(&histogram);
        assert_eq!(buckets.rows.len(), 19);
        assert_eq!(buckets.rows[0], (25e-6, 2));
        assert_eq!(buckets.rows[1], (50e-6, 1));
        assert_eq!(buckets.rows[17].0, 3.2768);
        assert_eq!(buckets.rows[18], (f64::INFINITY, 1));
        assert_eq!(buckets.count, 4);
        assert!((buckets.sum_s - 60.0).abs() < 0.1, "{}", buckets.sum_s);
    }
}
