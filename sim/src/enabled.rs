//! Which classes of faults a run has switched on: what is on has to happen.

use std::collections::BTreeSet;

use logdrive_raft::Micros;

use crate::coverage::Mark;
use crate::disk::Crash;
use crate::network::FLAP_US;
use crate::plan::Plan;
use crate::step::{DiskFault, Moment, Shape, Step, Timed};

/// The marks of everything that a plan and its steps may inject. What only follows from it, such as a poisoned
/// log, is not among them.
#[must_use]
pub fn enabled(plan: &Plan, steps: &[Timed]) -> BTreeSet<Mark> {
    let mut marks: BTreeSet<Mark> = of_plan(plan)
        .into_iter()
        .filter_map(|(mark, is_on)| is_on.then_some(mark))
        .collect();
    // Later than that a step does nothing.
    let early = steps.iter().filter(|timed| timed.at.0 < plan.faulty_us);
    let mut mended: Option<Micros> = None;
    for Timed { at, step } in early {
        marks.extend(of_step(step));
        match step {
            Step::Mend => mended = Some(*at),
            Step::Cut { .. } if mended.is_some_and(|mended| at.0 - mended.0 <= FLAP_US) => {
                marks.insert(Mark::Flapping);
            }
            _ => {}
        }
    }
    marks
}

fn of_plan(plan: &Plan) -> [(Mark, bool); 17] {
    let (network, disk) = (&plan.network, &plan.disk);
    let (rates, clocks) = (&disk.rates, &plan.node.clock_ppm);
    [
        (Mark::Delay, network.slow_ppm > 0),
        (Mark::Loss, network.loss_ppm > 0),
        (Mark::Repeat, network.repeat_ppm > 0),
        (Mark::Reorder, !network.in_order && plan.nodes > 1),
        (Mark::Late, network.late && plan.nodes > 1),
        (Mark::Bandwidth, network.bytes_per_s > 0 && plan.nodes > 1),
        (Mark::ClockRate, clocks.iter().any(|ppm| *ppm != 1_000_000)),
        (Mark::ReadError, rates.read_error_ppm > 0),
        (Mark::ShortRead, rates.short_read_ppm > 0),
        (Mark::WriteError, rates.write_error_ppm > 0),
        (Mark::ShortWrite, rates.short_write_ppm > 0),
        (Mark::FlushError, rates.flush_error_ppm > 0),
        (Mark::NoSpace, rates.no_space_ppm > 0),
        (Mark::Stall, rates.stall_ppm > 0),
        (Mark::SlowFlush, disk.starved_percent > 0),
        (Mark::TornSector, disk.tear_sectors),
        (Mark::ManyGroups, plan.groups > 1),
    ]
}

fn of_step(step: &Step) -> Vec<Mark> {
    match step {
        Step::Call(call) if call.bytes == 0 => vec![Mark::EmptyPayload],
        Step::Call(_) | Step::Mend | Step::Image { .. } => Vec::new(),
        // Whether anybody gets to that moment before everything heals is for the run to say.
        Step::Trap { .. } | Step::Files { .. } | Step::RotSnapshot { .. } => Vec::new(),
        Step::Snapshot { .. } => vec![Mark::SnapshotTaken],
        Step::Crash {
            crash, recovery, ..
        } => {
            let mut marks = vec![match crash {
                Crash::Process => Mark::ProcessCrash,
                Crash::Power => Mark::PowerCut,
            }];
            marks.extend(recovery.map(|_| Mark::CrashInRecovery));
            marks
        }
        Step::CrashAll { .. } => vec![Mark::WholeClusterPowerCut, Mark::PowerCut],
        Step::Cut { shape, .. } => vec![shape.mark(), Mark::Partition],
        Step::Clog { from, to, .. } if from == to => Vec::new(),
        Step::Clog { .. } => vec![Mark::Clog],
        Step::Reset { .. } => vec![Mark::Reset],
        Step::Pause { .. } => vec![Mark::Pause],
        Step::Stall { .. } => vec![Mark::Stall],
        Step::Fault { fault, .. } => vec![match fault {
            DiskFault::Read => Mark::ReadError,
            DiskFault::ShortRead => Mark::ShortRead,
            DiskFault::Write => Mark::WriteError,
            DiskFault::ShortWrite => Mark::ShortWrite,
            DiskFault::Flush => Mark::FlushError,
            DiskFault::FlushBack => Mark::FlushReverts,
            DiskFault::FlushLate => Mark::FlushErrorLate,
            DiskFault::Lie => Mark::FlushLied,
            DiskFault::LostWrite => Mark::LostWrite,
            DiskFault::Misdirect => Mark::Misdirected,
        }],
        Step::Rot { .. } => vec![Mark::Rot],
        // There may be nothing without a mark.
        Step::RotTail { .. } => Vec::new(),
        Step::Wipe { .. } => vec![Mark::Wiped],
        Step::Restore { .. } => vec![Mark::Restored],
    }
}

impl Moment {
    /// The mark of a crash at this moment.
    #[must_use]
    pub fn mark(self) -> Mark {
        match self {
            Moment::Writing => Mark::CrashWriting,
            Moment::Storing => Mark::CrashStoring,
            Moment::Checking => Mark::CrashChecking,
            Moment::Retiring => Mark::CrashRetiring,
            Moment::Sending => Mark::CrashSending,
            Moment::Fetching => Mark::CrashFetching,
            Moment::Basing => Mark::CrashBasing,
            Moment::Following => Mark::CrashFollowing,
            Moment::Installed => Mark::CrashInstalled,
        }
    }
}

impl Shape {
    /// The mark of a partition of this shape.
    #[must_use]
    pub fn mark(self) -> Mark {
        match self {
            Shape::Isolate => Mark::Isolate,
            Shape::Halves => Mark::Halves,
            Shape::Bridge => Mark::Bridge,
            Shape::Deaf => Mark::Deaf,
            Shape::Mute => Mark::Mute,
            Shape::Chained => Mark::Chained,
            Shape::QuorumLoss => Mark::QuorumLoss,
            Shape::Constrained => Mark::Constrained,
        }
    }
}
