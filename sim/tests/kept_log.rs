//! A follower that fetches a snapshot under load gets there with that one: the log that it goes on from is kept for it.

use logdrive_raft::mutant::Mutant;
use logdrive_raft::{GroupId, Micros, NodeId};
use logdrive_sim::cluster::{Cluster, Ended, Source, settle_us};
use logdrive_sim::coverage::Mark;
use logdrive_sim::kv::KvModel;
#[cfg(mutants)]
use logdrive_sim::oracle::Rule;
use logdrive_sim::plan::{Plan, SnapshotPlan};
use logdrive_sim::step::{Call, Shape, Step, Target, Timed};

/// How long clients write, and when the follower is cut off meanwhile.
const WRITE_US: (u64, u64) = (500_000, 8_000_000);
const AWAY_US: (u64, u64) = (1_200_000, 2_700_000);

/// Snapshots come some five times a second and little is kept behind them. Fetching one takes two seconds, a part each,
/// in which the log grows by more than 200 KiB; of that a follower gets about 4 KiB each time that something has gone
/// there and back, and so needs longer for it than it is until the log is cut next.
fn plan() -> Plan {
    let mut plan = Plan::calm(3, 1);
    plan.network.delay_us = (5_000, 5_000);
    plan.node.inflight_bytes_max = 4 << 10;
    plan.disk.bytes_max = 64 << 20;
    plan.snapshot = SnapshotPlan {
        log_bytes: 32 << 10,
        log_entries: 100_000,
        keep_log_bytes: 8 << 10,
        retain_log_bytes: 4 << 20,
        fetch_bytes_per_s: 256 << 10,
        store_us: 500,
        padding_bytes: 64 << 10,
    };
    plan.faulty_us = WRITE_US.1;
    plan.quiet_us = 600_000 + plan.fetch_us();
    plan.healthy_us = settle_us(&plan) + plan.quiet_us;
    plan
}

fn steps() -> Vec<Timed> {
    let at = |us: u64, step: Step| Timed {
        at: Micros(us),
        step,
    };
    let call = |draw: u64| {
        Step::Call(Call {
            client: draw % 8,
            group: GroupId(1),
            node: NodeId(1),
            closed: false,
            count: 2,
            draw,
            bytes: 1_000,
        })
    };
    let times = (WRITE_US.0..WRITE_US.1).step_by(10_000);
    let calls = times.zip(0..).map(|(us, draw)| at(us, call(draw)));
    let mut steps: Vec<Timed> = calls.collect();
    let cut = Step::Cut {
        shape: Shape::Isolate,
        first: Target::Node(NodeId(3)),
    };
    steps.extend([at(AWAY_US.0, cut), at(AWAY_US.1, Step::Mend)]);
    steps.sort_by_key(|timed| timed.at);
    steps
}

fn run(mutant: Option<Mutant>) -> Ended {
    let mut model = KvModel::default();
    let source = Source::Played(Vec::new());
    let cluster = Cluster::new(&plan(), steps(), &source, &mut model);
    cluster.with_mutant(mutant).run(None)
}

#[test]
fn whoever_fetched_a_snapshot_under_load_needs_no_other() {
    let ended = run(None);
    assert_eq!(ended.failed, None);
    let seen = &ended.summary.coverage;
    assert_eq!(seen.of(Mark::Installed), 1);
    // It would have needed another one.
    assert!(seen.of(Mark::KeptLog) > 0);
    let taken = seen.of(Mark::SnapshotTaken);
    assert!(taken > 30, "{taken}");
    assert!(ended.summary.acked > 1_000, "{}", ended.summary.acked);
}

#[cfg(mutants)]
#[test]
fn log_that_is_not_kept_is_missed() {
    for mutant in [Mutant::FenceIgnored, Mutant::FenceEndsWithSnapshot] {
        let failed = run(Some(mutant)).failed;
        let failed = failed.unwrap_or_else(|| panic!("nobody missed anything with {mutant}"));
        assert_eq!(failed.violation.rule, Rule::Retention, "{mutant}: {failed}");
    }
}
