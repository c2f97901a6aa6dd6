//! What a seed means: the plan of a run and its steps.
//!
//! Each seed switches on some classes of faults and not others: with everything at once a cluster gets
//! nowhere, and most bugs need that it does.

use fastrand::Rng;
use logdrive_raft::limits::{ENTRY_HEADER_BYTES, ENTRY_PAYLOAD_BYTES_MAX, TABLE_LENGTH_BYTES};
use logdrive_raft::{GroupId, Micros, NodeId};

use crate::cluster::settle_us;
use crate::disk::{Crash, Rot};
use crate::files::FilesFault;
use crate::plan::{
    ClientPlan, DiskPlan, DiskRates, NetworkPlan, NodePlan, Plan, SnapshotPlan, Span,
};
use crate::step::{Call, DiskFault, Moment, Shape, Step, Target, Timed};

/// How long everything is quiet at the end, so that the last commit reaches everybody, in microseconds.
const QUIET_US: u64 = 600_000;

/// How long that is where somebody without whom nothing is committed may just then fetch many parts, slowly.
const QUIET_FETCHING_US: u64 = 3_000_000;

/// How long a healed core is asked things after it has settled.
const ASKED_US: u64 = 400_000;

/// A slot that takes the largest payload there is: a group of blocks may fill a quarter of one.
const SLOT_BYTES_LARGE: u64 = 8 << 20;

/// Of the random numbers for what goes bad on all nodes at once, and for whether logs look for it. They are drawn by
/// themselves, so that the rest of a run is what it was.
const HOLES: u64 = 0x686f_6c65;
const SCRUBS: u64 = 0x7363_7275;

/// How many slots a pool has, at least, if no snapshot is ever taken: each opening takes another one.
const POOL_SLOTS_MIN: u64 = 64;

/// The plan and the steps of a seed.
#[must_use]
pub fn run_of(seed: u64, beyond_limit: bool) -> (Plan, Vec<Timed>) {
    let mut random = Rng::with_seed(seed);
    let plan = draw_plan(&mut random, beyond_limit);
    let steps = Drawing {
        plan: &plan,
        random,
        steps: Vec::new(),
    }
    .draw();
    (plan, steps)
}

/// The same seed with disks that lie to a log that is held to its promises: it has to fail.
#[must_use]
pub fn canary_of(seed: u64) -> (Plan, Vec<Timed>) {
    let (mut plan, mut steps) = run_of(seed, false);
    plan.canary = true;
    for node in (1..=plan.nodes).map(NodeId) {
        for fault in [DiskFault::Lie, DiskFault::LostWrite] {
            steps.push(Timed {
                at: Micros(plan.faulty_us / 2),
                step: Step::Fault {
                    target: Target::Node(node),
                    fault,
                },
            });
        }
    }
    steps.sort_by_key(|timed| timed.at);
    (plan, steps)
}

fn one<T: Copy>(random: &mut Rng, of: &[T]) -> T {
    of[random.usize(0..of.len())]
}

/// Switches something on in so many of a hundred seeds.
fn percent(random: &mut Rng, of: u8) -> bool {
    random.u8(0..100) < of
}

fn draw_plan(random: &mut Rng, beyond_limit: bool) -> Plan {
    let nodes = one(random, &[3, 3, 3, 3, 3, 3, 5, 5, 1, 4]);
    let groups = one(random, &[1, 1, 1, 1, 2, 3, 8]);
    let majority = nodes / 2 + 1;
    let mut ids: Vec<u64> = (1..=nodes).collect();
    random.shuffle(&mut ids);
    let mut core =
        ids.split_off(usize::try_from(nodes - random.u64(majority..=nodes)).unwrap_or(0));
    core.sort_unstable();
    let slot_bytes = if percent(random, 5) {
        SLOT_BYTES_LARGE
    } else {
        one(random, &[64 << 10, 128 << 10, 256 << 10, 1 << 20])
    };
    let snapshot = draw_snapshot(random, slot_bytes);
    let disk = draw_disk(random, slot_bytes, groups, &snapshot);
    if disk.tear_sectors {
        // Any node may be lost, so any that is left may be needed.
        core = (1..=nodes).collect();
    }
    let mut plan = Plan {
        nodes,
        groups,
        core,
        beyond_limit,
        canary: false,
        faulty_us: random.u64(3_300_000..=6_300_000),
        healthy_us: 0,
        quiet_us: QUIET_US,
        raft_seed: random.u64(..) >> 24,
        node: draw_node(random, nodes),
        disk,
        network: draw_network(random, slot_bytes),
        client: ClientPlan {
            timeout_us: one(random, &[300_000, 500_000]),
            retry_us: one(random, &[20_000, 50_000]),
            rests: random.bool(),
        },
        snapshot,
    };
    // A disk that is two entries behind is not slow.
    let few = 4 * u64::from(largest_payload(slot_bytes));
    plan.node.disk_lag_bytes_max = plan.node.disk_lag_bytes_max.max(few);
    if plan.snapshot.log_bytes > 0 {
        plan.quiet_us = QUIET_FETCHING_US + plan.fetch_us();
    }
    plan.healthy_us = settle_us(&plan) + ASKED_US + plan.quiet_us;
    plan.disk.scrubs = percent(&mut Rng::with_seed(plan.raft_seed ^ SCRUBS), 15);
    plan
}

/// Three seeds in four take snapshots by themselves, after little log, so that logs are cut and segments come round.
fn draw_snapshot(random: &mut Rng, slot_bytes: u64) -> SnapshotPlan {
    let by_itself = percent(random, 75);
    // A few have something to transfer that takes more than a part.
    let padded = percent(random, 12);
    let frame = slot_bytes / 4;
    SnapshotPlan {
        log_bytes: if by_itself {
            one(random, &[16 << 10, 48 << 10, 160 << 10])
        } else {
            0
        },
        log_entries: one(random, &[40, 200, 1_000, 100_000]),
        // Where nobody takes one but an operator, logs are kept, and followers get from them whatever they lack.
        keep_log_bytes: match one(random, &[0, 0, 4 << 10, 64 << 10]) {
            keep if by_itself => keep,
            _ => 64 << 20,
        },
        retain_log_bytes: one(random, &[0, 16 << 10, 256 << 10, frame << 4]),
        fetch_bytes_per_s: if padded {
            one(random, &[2 << 20, 4 << 20, 64 << 20])
        } else {
            64 << 20
        },
        store_us: one(random, &[200, 500, 2_000, 10_000]),
        padding_bytes: if padded {
            random.u64(200 << 10..800 << 10)
        } else {
            0
        },
    }
}

fn draw_node(random: &mut Rng, nodes: u64) -> NodePlan {
    let skewed = percent(random, 30);
    let clock = |random: &mut Rng| {
        if skewed {
            random.u64(900_000..=1_100_000)
        } else {
            1_000_000
        }
    };
    NodePlan {
        clock_ppm: (0..nodes).map(|_| clock(random)).collect(),
        turn_us: one(random, &[5, 20, 60, 200]),
        apply_us: one(random, &[5, 20, 200, 2_000]),
        apply_bytes_max: one(random, &[4 << 10, 64 << 10, 1 << 20]),
        cache_bytes_max: one(random, &[2 << 10, 64 << 10]),
        inbox_bytes_max: one(random, &[32 << 10, 1 << 20]),
        uncommitted_bytes_max: one(random, &[16 << 10, 128 << 10]),
        inflight_bytes_max: one(random, &[4 << 10, 64 << 10]),
        inflight_entries_max: one(random, &[8, 16, 64]),
        append_bytes_max: one(random, &[4 << 10, 32 << 10]),
        disk_lag_us_max: one(random, &[200_000, 1_000_000]),
        disk_lag_bytes_max: one(random, &[64 << 10, 1 << 20]),
    }
}

fn draw_disk(random: &mut Rng, slot_bytes: u64, groups: u64, snapshot: &SnapshotPlan) -> DiskPlan {
    let flush_us: Span = one(random, &[(50, 200), (100, 1_000), (500, 5_000)]);
    let errors = percent(random, 30);
    let rate = |random: &mut Rng, often: u32| {
        if errors && random.bool() {
            random.u32(often..10 * often)
        } else {
            0
        }
    };
    DiskPlan {
        slot_bytes,
        bytes_max: draw_pool(random, slot_bytes, groups, snapshot),
        direct: random.bool(),
        drained_fsync: random.bool(),
        write_us: (20, 80),
        flush_us,
        read_us: (20, 80),
        starved_percent: if percent(random, 20) { 20 } else { 0 },
        tear_sectors: percent(random, 10),
        scrubs: false,
        rates: DiskRates {
            read_error_ppm: rate(random, 1000),
            short_read_ppm: rate(random, 1000),
            write_error_ppm: rate(random, 60),
            short_write_ppm: rate(random, 60),
            flush_error_ppm: rate(random, 150),
            no_space_ppm: if percent(random, 15) { 300_000 } else { 0 },
            stall_ppm: if percent(random, 15) { 300 } else { 0 },
        },
    }
}

/// What is kept fits, and it comes round many times.
fn draw_pool(random: &mut Rng, slot_bytes: u64, groups: u64, snapshot: &SnapshotPlan) -> u64 {
    if snapshot.log_bytes == 0 {
        return (64 << 20).max(POOL_SLOTS_MIN * slot_bytes);
    }
    let kept = groups * (2 * snapshot.log_bytes + snapshot.keep_log_bytes);
    // What is not committed stays whatever snapshots cover, and of small entries each may take a block.
    one(random, &[10, 16, 24]) * slot_bytes + (groups << 21) + 2 * kept
}

fn draw_network(random: &mut Rng, slot_bytes: u64) -> NetworkPlan {
    let in_order = random.bool();
    // A stream loses nothing while its connection lasts.
    let lossy = !in_order || percent(random, 30);
    NetworkPlan {
        delay_us: one(random, &[(20, 200), (20, 800), (500, 3_000)]),
        // Some outlive an election.
        slow_us: one(
            random,
            &[(1_000, 60_000), (1_000, 60_000), (1_000, 600_000)],
        ),
        slow_ppm: if percent(random, 40) { 50_000 } else { 0 },
        loss_ppm: if lossy { random.u32(0..50_000) } else { 0 },
        repeat_ppm: if lossy { random.u32(0..50_000) } else { 0 },
        in_order,
        late: percent(random, 30),
        // The largest payload of the log passes in less than half the time that a client waits.
        bytes_per_s: match percent(random, 20) {
            true if slot_bytes == SLOT_BYTES_LARGE => 32 << 20,
            true => 4 << 20,
            false => 0,
        },
        lane_bytes_max: one(random, &[2 << 10, 8 << 10, 24 << 10, 1 << 20]),
    }
}

/// The largest payload that passes the door of a log with such slots.
fn largest_payload(slot_bytes: u64) -> u32 {
    let frame = usize::try_from(slot_bytes / 4).unwrap_or(usize::MAX);
    let payload = frame - ENTRY_HEADER_BYTES - TABLE_LENGTH_BYTES;
    u32::try_from(payload.min(ENTRY_PAYLOAD_BYTES_MAX)).unwrap_or(u32::MAX)
}

struct Drawing<'a> {
    plan: &'a Plan,
    random: Rng,
    steps: Vec<Timed>,
}

impl Drawing<'_> {
    fn draw(mut self) -> Vec<Timed> {
        self.draw_calls();
        self.draw_faults();
        self.draw_snapshots();
        if self.plan.beyond_limit {
            self.draw_beyond();
        } else {
            self.draw_damage();
            self.draw_lost_acks();
            self.draw_holes();
        }
        self.steps.sort_by_key(|timed| timed.at);
        self.steps
    }

    fn push(&mut self, at: u64, step: Step) {
        self.steps.push(Timed {
            at: Micros(at),
            step,
        });
    }

    fn node(&mut self) -> NodeId {
        NodeId(self.random.u64(1..=self.plan.nodes))
    }

    fn group(&mut self) -> GroupId {
        GroupId(self.random.u64(1..=self.plan.groups))
    }

    fn target(&mut self) -> Target {
        if self.random.u8(0..3) == 0 {
            Target::Leader(self.group())
        } else {
            Target::Node(self.node())
        }
    }

    /// Clients that wait for answers, clients that do not, bursts and silence.
    fn draw_calls(&mut self) {
        let clients = self.random.u64(2..=16);
        let closed = self.random.u64(0..=clients);
        let pause_us = one(&mut self.random, &[800, 2_000, 4_000]);
        let large = percent(&mut self.random, 15) || self.plan.disk.slot_bytes == SLOT_BYTES_LARGE;
        let quiet = percent(&mut self.random, 30);
        let mut silent_until = 0;
        let mut at = 0;
        while at < self.plan.faulty_us {
            if quiet && self.random.u16(0..500) == 0 {
                silent_until = at + self.random.u64(100_000..700_000);
            }
            if silent_until <= at {
                let burst = self.random.u16(0..200) == 0;
                for _ in 0..if burst { 20 } else { 1 } {
                    self.draw_call(at, clients, closed, large);
                }
            }
            at += self.random.u64(1..=2 * pause_us);
        }
        let settled = self.plan.faulty_us + settle_us(self.plan);
        // Every group is asked when everything has healed.
        for group in (1..=self.plan.groups).map(GroupId) {
            for place in 0..8 {
                let client = self.random.u64(0..clients);
                let node = NodeId(one(&mut self.random, &self.plan.core));
                let call = Call {
                    client,
                    group,
                    node,
                    closed: false,
                    count: 1,
                    draw: self.random.u64(..) >> 16,
                    bytes: 40,
                };
                self.push(settled + place * ASKED_US / 8, Step::Call(call));
            }
        }
    }

    fn draw_call(&mut self, at: u64, clients: u64, closed: u64, large: bool) {
        let client = self.random.u64(0..clients);
        let bytes = match self.random.u16(0..400) {
            0 if large => largest_payload(self.plan.disk.slot_bytes),
            1..10 => 0,
            10..20 => self.random.u32(0..4_000),
            _ => self.random.u32(0..200),
        };
        let call = Call {
            client,
            group: self.group(),
            node: self.node(),
            closed: client < closed,
            count: if bytes > 4_000 {
                1
            } else {
                self.random.u32(1..=6)
            },
            draw: self.random.u64(..) >> 16,
            bytes,
        };
        self.push(at, Step::Call(call));
    }

    fn draw_faults(&mut self) {
        let crashes = percent(&mut self.random, 90);
        let partitions = percent(&mut self.random, 60);
        let pauses = percent(&mut self.random, 40);
        let resets = percent(&mut self.random, 40);
        let clogs = percent(&mut self.random, 30);
        let stalls = percent(&mut self.random, 30);
        let disk_errors = percent(&mut self.random, 25);
        let recovery = percent(&mut self.random, 40);
        let end = self.plan.faulty_us;
        let gap = one(&mut self.random, &[200_000, 400_000, 700_000]);
        let mut at = self.random.u64(50_000..400_000);
        while at < end {
            match self.random.u8(0..12) {
                0..5 if crashes => self.draw_crash(at, recovery),
                5 if crashes => {
                    let down_us = self.random.u64(1_000..200_000);
                    self.push(at, Step::CrashAll { down_us });
                }
                6 | 7 if partitions => self.draw_partition(at),
                8 if pauses && self.random.bool() => self.draw_long_pause(at),
                8 if pauses => {
                    let target = self.target();
                    let for_us = self.random.u64(10_000..800_000);
                    self.push(at, Step::Pause { target, for_us });
                }
                9 if resets => self.draw_reset(at),
                10 if clogs => {
                    let (from, to) = (self.node(), self.node());
                    let for_us = self.random.u64(10_000..400_000);
                    self.push(at, Step::Clog { from, to, for_us });
                }
                11 if stalls => {
                    let target = self.target();
                    let for_us = self.random.u64(10_000..1_500_000);
                    self.push(at, Step::Stall { target, for_us });
                }
                _ if disk_errors => {
                    let target = self.target();
                    let faults = [
                        DiskFault::Read,
                        DiskFault::Write,
                        DiskFault::ShortWrite,
                        DiskFault::Flush,
                        DiskFault::FlushBack,
                        DiskFault::ShortRead,
                    ];
                    let fault = one(&mut self.random, &faults);
                    self.push(at, Step::Fault { target, fault });
                }
                _ => {}
            }
            at += self.random.u64(gap / 4..gap);
        }
    }

    /// Operators ask for snapshots, and a follower is away for so long that it needs one.
    fn draw_snapshots(&mut self) {
        if percent(&mut self.random, 60) {
            for _ in 0..self.random.u8(1..6) {
                let at = self.random.u64(200_000..self.plan.faulty_us);
                let (target, group) = (self.target(), self.group());
                self.push(at, Step::Snapshot { target, group });
            }
        }
        if percent(&mut self.random, 60) {
            for _ in 0..self.random.u8(1..5) {
                let at = self.random.u64(200_000..self.plan.faulty_us * 3 / 4);
                let step = Step::Trap {
                    moment: one(&mut self.random, &Moment::ALL),
                    crash: one(&mut self.random, &[Crash::Process, Crash::Power]),
                    after: self.random.u64(1..16),
                    down_us: self.random.u64(1_000..200_000),
                };
                self.push(at, step);
            }
        }
        if !self.plan.beyond_limit {
            self.draw_harm();
        }
        if self.plan.nodes < 3 || !percent(&mut self.random, 75) {
            return;
        }
        for _ in 0..self.random.u8(1..=2) {
            let at = self.random.u64(400_000..self.plan.faulty_us - 1_200_000);
            self.draw_absence(at);
        }
    }

    /// Snapshots that cannot be written or read, and such that go bad: of one node, without which a majority can still
    /// lead, for whoever lacks the snapshot that its log begins at does not.
    fn draw_harm(&mut self) {
        // Where sectors tear, the one more than a majority may be lost already.
        let spare =
            self.plan.core.len() as u64 > self.plan.nodes / 2 + 1 && !self.plan.disk.tear_sectors;
        let outside: Vec<u64> = (1..=self.plan.nodes)
            .filter(|node| spare || !self.plan.core.contains(node))
            .collect();
        if percent(&mut self.random, 30) {
            for _ in 0..self.random.u8(1..4) {
                let at = self.random.u64(200_000..self.plan.faulty_us);
                let faults = [
                    FilesFault::NoSpace,
                    FilesFault::WriteError,
                    FilesFault::FlushError,
                    FilesFault::ReadError,
                ];
                let mut target = self.target();
                let fault = one(&mut self.random, &faults);
                let after = self.random.u64(0..20);
                // Whoever cannot read its snapshot when it starts lacks it until it is started again.
                if fault == FilesFault::ReadError {
                    let Some(node) = outside.first() else {
                        continue;
                    };
                    target = Target::Node(NodeId(*node));
                }
                self.push(
                    at,
                    Step::Files {
                        target,
                        fault,
                        after,
                    },
                );
            }
        }
        if outside.is_empty() || !percent(&mut self.random, 30) {
            return;
        }
        // The one that cannot be read may be, too: of two that lack theirs no majority could lead.
        let node = NodeId(outside[0]);
        for _ in 0..self.random.u8(1..6) {
            let at = self.random.u64(400_000..self.plan.faulty_us);
            let finished = self.random.bool();
            self.push(at, Step::RotSnapshot { node, finished });
        }
    }

    /// A follower is away, and comes back to logs that begin beyond the end of its own.
    fn draw_absence(&mut self, at: u64) {
        let away_us = self.random.u64(400_000..1_200_000);
        let first = self.node();
        if self.random.bool() {
            self.push(
                at,
                Step::Cut {
                    shape: Shape::Isolate,
                    first: Target::Node(first),
                },
            );
            self.push(at + away_us, Step::Mend);
        } else {
            // Of five two may be away.
            let second = NodeId(first.0 % self.plan.nodes + 1);
            for node in [first, second] {
                if node == first || self.plan.nodes == 5 {
                    let crash = one(&mut self.random, &[Crash::Process, Crash::Power]);
                    self.push(
                        at,
                        Step::Crash {
                            target: Target::Node(node),
                            crash,
                            down_us: away_us,
                            recovery: None,
                        },
                    );
                }
            }
        }
        for group in (1..=self.plan.groups).map(GroupId) {
            for node in (1..=self.plan.nodes).map(NodeId) {
                let asked = at + self.random.u64(away_us / 2..away_us);
                let target = Target::Node(node);
                self.push(asked, Step::Snapshot { target, group });
            }
        }
    }

    fn draw_crash(&mut self, at: u64, recovery: bool) {
        let target = self.target();
        let crash = one(&mut self.random, &[Crash::Process, Crash::Power]);
        let down_us = self.random.u64(1_000..300_000);
        let recovery = (recovery && self.random.bool()).then(|| self.random.u64(0..12));
        self.push(
            at,
            Step::Crash {
                target,
                crash,
                down_us,
                recovery,
            },
        );
        // A kill, and a power cut while it is down or has just come back.
        if self.random.u8(0..4) == 0 {
            let later = at + self.random.u64(0..2 * down_us);
            let down_us = self.random.u64(1_000..100_000);
            self.push(
                later,
                Step::Crash {
                    target,
                    crash: Crash::Power,
                    down_us,
                    recovery: None,
                },
            );
        }
    }

    /// A leader sleeps while its successor leads and fails too, and then hears of both at once.
    fn draw_long_pause(&mut self, at: u64) {
        let target = Target::Leader(self.group());
        let second = at + self.random.u64(400_000..700_000);
        let awake = second + self.random.u64(350_000..900_000);
        let for_us = awake - at;
        self.push(at, Step::Pause { target, for_us });
        let for_us = self.random.u64(200_000..1_200_000);
        let step = match self.random.bool() {
            true => Step::Pause { target, for_us },
            false => Step::Crash {
                target,
                crash: Crash::Process,
                down_us: for_us,
                recovery: None,
            },
        };
        self.push(second, step);
    }

    fn draw_partition(&mut self, at: u64) {
        if self.plan.nodes < 3 {
            return;
        }
        let shape = one(&mut self.random, &Shape::ALL);
        let first = match shape {
            Shape::Constrained => Target::Leader(self.group()),
            _ => self.target(),
        };
        let flaps = if self.random.u8(0..4) == 0 { 6 } else { 1 };
        let mut at = at;
        for _ in 0..flaps {
            let for_us = self.random.u64(30_000..1_200_000) / flaps;
            self.push(at, Step::Cut { shape, first });
            self.push(at + for_us, Step::Mend);
            at += for_us + self.random.u64(5_000..60_000);
        }
    }

    fn draw_reset(&mut self, at: u64) {
        let (one, other) = (self.node(), self.node());
        if one != other {
            let down_us = self.random.u64(0..50_000);
            self.push(
                at,
                Step::Reset {
                    one,
                    other,
                    down_us,
                },
            );
        }
    }

    /// What a disk cannot recover from, on nodes that a majority does without.
    fn draw_damage(&mut self) {
        if !percent(&mut self.random, 20) {
            return;
        }
        for node in (1..=self.plan.nodes).map(NodeId) {
            if self.plan.core.contains(&node.0) {
                continue;
            }
            let at = self.random.u64(1_000_000..self.plan.faulty_us);
            if self.random.bool() {
                // Zeros would be a write that never landed: that nobody can tell.
                let rot = one(&mut self.random, &[Rot::Bit, Rot::Garbage]);
                self.push(at, Step::RotTail { node, rot });
            } else {
                for _ in 0..self.random.u8(1..=3) {
                    let rot = one(&mut self.random, &[Rot::Bit, Rot::Zeros, Rot::Garbage]);
                    self.push(at, Step::Rot { node, rot });
                }
            }
            let crash = Step::Crash {
                target: Target::Node(node),
                crash: Crash::Process,
                down_us: 10_000,
                recovery: None,
            };
            self.push(at + 1, crash);
        }
    }

    /// Something goes bad on every node, another place on each, and all of them begin anew: nobody can lead, and they heal
    /// from each other.
    fn draw_holes(&mut self) {
        let mut random = Rng::with_seed(self.plan.raft_seed ^ HOLES);
        if self.plan.nodes < 3 || self.plan.disk.tear_sectors || !percent(&mut random, 12) {
            return;
        }
        let at = random.u64(1_500_000..self.plan.faulty_us);
        for node in (1..=self.plan.nodes).map(NodeId) {
            let rot = one(&mut random, &[Rot::Bit, Rot::Zeros, Rot::Garbage]);
            self.push(at, Step::Rot { node, rot });
        }
        // Or it is found by who looks for it.
        if self.plan.disk.scrubs && random.bool() {
            return;
        }
        let down_us = random.u64(1_000..50_000);
        if random.bool() {
            return self.push(at + 1, Step::CrashAll { down_us });
        }
        for node in (1..=self.plan.nodes).map(NodeId) {
            let crash = Step::Crash {
                target: Target::Node(node),
                crash: Crash::Process,
                down_us: down_us + random.u64(0..20_000),
                recovery: None,
            };
            self.push(at + random.u64(1..10_000), crash);
        }
    }

    /// A leader is cut off and goes on writing what nobody else gets; another one is elected, and of those who help it to
    /// commit one loses what its disk got last. Then those two come together without the new leader: soon, or once that
    /// has begun to bring back what was lost.
    fn draw_lost_acks(&mut self) {
        if self.plan.nodes < 3 || !percent(&mut self.random, 25) {
            return;
        }
        let last = self.plan.faulty_us.saturating_sub(2_000_000).max(1_000_001);
        let at = self.random.u64(1_000_000..last);
        let (node, group) = (self.node(), self.group());
        let first = Target::Leader(group);
        let shape = Shape::Isolate;
        self.push(at, Step::Cut { shape, first });
        let at = at + self.random.u64(350_000..900_000);
        let rot = one(&mut self.random, &[Rot::Bit, Rot::Garbage]);
        self.push(at, Step::RotTail { node, rot });
        let crash = Step::Crash {
            target: Target::Node(node),
            crash: Crash::Process,
            down_us: 5_000,
            recovery: None,
        };
        self.push(at + 1, crash);
        let at = at + self.random.u64(2..40_000);
        self.push(at, Step::Mend);
        self.push(at + 1, Step::Cut { shape, first });
        let mended = at + self.random.u64(300_000..900_000);
        self.push(mended, Step::Mend);
    }

    /// Disks that lie, and disks that are not what they were.
    fn draw_beyond(&mut self) {
        for _ in 0..self.random.u8(1..6) {
            let at = self.random.u64(200_000..self.plan.faulty_us * 3 / 4);
            let node = self.node();
            let down_us = self.random.u64(1_000..100_000);
            match self.random.u8(0..6) {
                0 => self.push(at, Step::Wipe { node, down_us }),
                1 => {
                    self.push(at / 2, Step::Image { node });
                    self.push(at, Step::Restore { node, down_us });
                }
                fault => {
                    let target = Target::Node(node);
                    let faults = [
                        DiskFault::Lie,
                        DiskFault::LostWrite,
                        DiskFault::Misdirect,
                        DiskFault::FlushLate,
                    ];
                    let fault = faults[usize::from(fault - 2)];
                    self.push(at, Step::Fault { target, fault });
                    let crash = Step::Crash {
                        target,
                        crash: Crash::Power,
                        down_us,
                        recovery: None,
                    };
                    let later = at + self.random.u64(1..20_000);
                    self.push(later, crash);
                }
            }
        }
    }
}
