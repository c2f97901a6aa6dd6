//! What was measured, as JSON for machines and as lines for people. Keys are those of `loadgen.run/1` where
//! the two say the same.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Cluster, Measured};
use crate::{Args, Whom};

/// The report, schema `etcd-load.run/1`.
pub fn of(args: &Args, cluster: &Cluster, measured: &Measured) -> Value {
    let seconds = args.duration.as_secs_f64();
    let per_s = measured.completed as f64 / seconds;
    let us_per_put = |cpu: Option<Duration>| match measured.completed {
        0 => None,
        completed => cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / completed as f64),
    };
    json!({
        "schema": "etcd-load.run/1",
        "argv": std::env::args().collect::<Vec<_>>(),
        "seed": args.seed,
        "config": {
            "loop": "closed",
            "to": match args.to { Whom::Leader => "leader", Whom::All => "all" },
            "endpoints": args.endpoints,
            "in_flight": args.in_flight,
            "connections": args.connections.min(args.in_flight),
            "size_bytes": args.size,
            "keys": args.keys,
            "duration_ms": millis(args.duration),
            "warmup_ms": millis(args.warmup),
            "timeout_ms": millis(args.timeout),
        },
        "env": {
            "server_version": cluster.version,
            "leader": cluster.leader,
            "tls": false,
            "cpus": std::thread::available_parallelism().map_or(0, |cpus| cpus.get()),
            "debug_assertions": cfg!(debug_assertions),
        },
        "result": {
            "completed": measured.completed,
            "completed_per_s": per_s,
            "payload_bytes_per_s": per_s * args.size as f64,
            "errors": measured.errors,
            "latency": { "send": measured.latencies.to_json() },
        },
        "cpu": {
            "us_core_per_write": us_per_put(measured.members_cpu),
            "generator_us_core_per_write": us_per_put(measured.own_cpu),
            "busy_cores": measured.members_cpu.map(|cpu| cpu.as_secs_f64() / seconds),
        },
    })
}

/// The same in a few lines.
pub fn table(args: &Args, measured: &Measured) -> String {
    let mut text = String::new();
    let per_s = measured.completed as f64 / args.duration.as_secs_f64();
    let ms = |percent: u64| match measured.latencies.percentile(percent) {
        Some(ns) => format!("{:.2} ms", ns as f64 / 1e6),
        None => "-".to_owned(),
    };
    let _ = writeln!(
        text,
        "{} clients, {} B: {per_s:.0} puts/s, p50 {}, p99 {}, p99.9 {}",
        args.in_flight,
        args.size,
        ms(5000),
        ms(9900),
        ms(9990),
    );
    for (code, count) in &measured.errors {
        let _ = writeln!(text, "  {count} puts failed: {code}");
    }
    text
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
