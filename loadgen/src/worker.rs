//! One thread's share of the load: what is due goes out, what comes back is measured.
//!
//! A worker never waits for an answer. In an open loop its schedule goes on whatever the answers do, and
//! latency counts from the moment an operation was due. All decisions are in [`Worker::turn`], which takes
//! the time as an argument.

mod batch;
mod held;
mod settle;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::batch::{Batch, Batches, Sent};
use self::held::Held;
use crate::args::Arrival;
use crate::clock::Clock;
use crate::faults::FaultWatch;
use crate::history::HistoryWriter;
use crate::machine;
use crate::mix::Kind;
use crate::recorder::{Collector, Measured};
use crate::schedule::Schedule;
use crate::target::{Answer, Failure, Lane, Mailbox, Outcome, Submission, Target, TargetError};
use crate::verify::Acked;
use crate::workload::{ClientStream, LastSeen, Operation, Scratch, Workload};

/// How a load is driven.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Operations a second; `None`: a closed loop.
    pub rate: Option<f64>,
    /// When operations of an open loop are due.
    pub arrival: Arrival,
    /// What falls due within this time in an open loop goes out together: a wake-up and a packet each would take
    /// cores from the replicas. It shows as lag, and as latency.
    pub pace_ns: u64,
    /// How many operations may be outstanding in total.
    pub in_flight: u64,
    /// How many clients there are in total.
    pub clients: u32,
    /// How long an operation may take.
    pub timeout_ns: u64,
    /// When the load starts.
    pub start_ns: u64,
    /// When the measurement starts.
    pub measure_from_ns: u64,
    /// When it ends, and the load with it.
    pub measure_to_ns: u64,
    /// Where randomness of the schedule starts from.
    pub seed: u64,
}

impl Plan {
    fn measures(&self, moment_ns: u64) -> bool {
        (self.measure_from_ns..self.measure_to_ns).contains(&moment_ns)
    }
}

/// What all workers of a run share.
#[derive(Debug)]
pub struct Shared {
    /// The run's clock.
    pub clock: Clock,
    /// How the load is driven.
    pub plan: Plan,
    /// What it consists of.
    pub workload: Workload,
    /// Where measurements go.
    pub collector: Collector,
    /// By group: the highest place in the log that has been acknowledged.
    pub acked_through: Vec<AtomicU64>,
    /// Whether acknowledged writes are remembered one by one.
    pub remember_acked: bool,
    /// Where operations are written down.
    pub history: Option<HistoryWriter>,
    /// Faults that wait for the first acknowledgement after them.
    pub faults: FaultWatch,
    /// The run is to end now.
    pub stop: Arc<AtomicBool>,
}

/// One thread's share of a load.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    /// The clients of this worker.
    clients: Vec<Client>,
    /// Which client gets the next operation of an open loop.
    next_client: usize,
    /// `None`: a closed loop.
    schedule: Option<Schedule>,
    /// Open loop: until then what falls due waits, unless the load ends or was stopped by its cap.
    pace_ends_ns: u64,
    in_flight_max: u64,
    in_flight: u64,
    /// The time of this turn.
    now_ns: u64,
    /// When the last operation that found no room became able to go.
    room_since_ns: u64,
    batches: Batches,
    /// In the order in which they time out.
    deadlines: VecDeque<(u64, u64)>,
    /// Operations that the target would not take yet, by client (of this worker) and group.
    held: BTreeMap<(usize, u32), Held>,
    /// Batches under construction, by client (of this worker) and group.
    building: BTreeMap<(usize, u32), Batch>,
    scratch: Scratch,
    last_seen: LastSeen,
    keeps_last_seen: bool,
    acked: Acked,
    measured: Measured,
    second: u64,
    ended: bool,
    finished: bool,
}

#[derive(Debug)]
struct Client {
    number: u32,
    stream: ClientStream,
    /// Closed loop: how many of its operations are outstanding, and how many may be.
    in_flight: u64,
    in_flight_max: u64,
}

/// What a worker wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To be called when there are answers, at the latest at this moment.
    Wait(u64),
    /// Nothing: everything has come to an end.
    Finished,
}

impl Worker {
    /// The share of worker `number` of `workers`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, number: u32, workers: u32) -> Self {
        let plan = &shared.plan;
        assert!(number < workers && workers <= plan.clients);
        let share =
            |total: u64, part: u64, parts: u64| total / parts + u64::from(part < total % parts);
        let client = |client: u32| Client {
            number: client,
            stream: shared.workload.client(client),
            in_flight: 0,
            in_flight_max: share(plan.in_flight, client.into(), plan.clients.into()),
        };
        let clients: Vec<Client> = (number..plan.clients)
            .step_by(workers as usize)
            .map(client)
            .collect();
        let schedule = plan.rate.map(|rate| {
            let (worker, workers) = (number.into(), workers.into());
            Schedule::new(
                plan.start_ns,
                rate,
                plan.arrival,
                worker,
                workers,
                plan.seed,
            )
        });
        let in_flight_max = clients.iter().map(|client| client.in_flight_max).sum();
        Self {
            clients,
            next_client: 0,
            schedule,
            pace_ends_ns: 0,
            in_flight_max,
            in_flight: 0,
            now_ns: 0,
            room_since_ns: 0,
            batches: Batches::default(),
            deadlines: VecDeque::new(),
            held: BTreeMap::new(),
            building: BTreeMap::new(),
            scratch: Scratch::default(),
            last_seen: LastSeen::default(),
            keeps_last_seen: shared.workload.has(Kind::Cas),
            acked: Acked::new(shared.remember_acked),
            measured: Measured::default(),
            second: 0,
            ended: false,
            finished: false,
            shared,
        }
    }

    /// Takes answers in, sends what is due, and says when it wants to be called again.
    pub fn turn(&mut self, now_ns: u64, answers: &mut Vec<Answer>, lane: &mut dyn Lane) -> Next {
        self.now_ns = now_ns;
        let was_full = self.in_flight >= self.in_flight_max;
        for answer in answers.drain(..) {
            self.on_answer(answer, lane);
        }
        self.expire(now_ns);
        if was_full && self.in_flight < self.in_flight_max {
            self.room_since_ns = now_ns;
        }
        self.close_second(now_ns);
        let over = now_ns >= self.shared.plan.measure_to_ns;
        if !self.ended && now_ns >= self.shared.plan.start_ns {
            // What was due before the end and has not gone out yet still does; a closed loop just ends.
            let wanted = match self.schedule {
                Some(_) => over || was_full || now_ns >= self.pace_ends_ns,
                None => !over,
            };
            if wanted {
                self.send_due(now_ns, lane);
            }
        }
        if !self.ended && (over || self.stopped()) {
            self.end(now_ns);
        }
        self.send_held(now_ns, lane);
        if self.ended && (self.in_flight == 0 || self.stopped()) {
            self.finish();
            return Next::Finished;
        }
        Next::Wait(self.next_moment(now_ns))
    }

    /// What it measured since the last second was closed, and what was acknowledged. After the last turn.
    pub fn into_acked(self) -> Acked {
        assert!(self.finished);
        self.acked
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn send_due(&mut self, now_ns: u64, lane: &mut dyn Lane) {
        if self.schedule.is_some() {
            self.build_open(now_ns);
        } else {
            self.build_closed(now_ns);
        }
        while let Some(((client, group), batch)) = self.building.pop_first() {
            if let Some(held) = self.held.get_mut(&(client, group)) {
                // Who comes later waits behind those that were turned away.
                held.push_back(batch);
            } else {
                self.submit(client, group, batch, lane);
            }
        }
    }

    fn build_open(&mut self, now_ns: u64) {
        let plan = &self.shared.plan;
        let (from_ns, to_ns) = (plan.measure_from_ns, plan.measure_to_ns);
        let pace_ends_ns = now_ns + plan.pace_ns;
        while self.in_flight < self.in_flight_max {
            let Some(schedule) = &mut self.schedule else {
                return;
            };
            let due_ns = schedule.due_ns();
            if due_ns > now_ns || due_ns >= to_ns {
                return;
            }
            self.pace_ends_ns = pace_ends_ns;
            schedule.advance();
            let client = self.next_client;
            self.next_client = (client + 1) % self.clients.len();
            if due_ns >= from_ns {
                self.measured.tally.offered += 1;
                // Waiting for room is latency of the system, not lag of the generator.
                let able_ns = due_ns.max(self.room_since_ns);
                self.measured.lag.record(now_ns.saturating_sub(able_ns), 1);
            }
            self.build(client, due_ns, now_ns);
        }
    }

    fn build_closed(&mut self, now_ns: u64) {
        for client in 0..self.clients.len() {
            let room = self.clients[client].in_flight_max - self.clients[client].in_flight;
            for _ in 0..room {
                self.build(client, now_ns, now_ns);
            }
            if self.shared.plan.measures(now_ns) {
                self.measured.tally.offered += room;
                self.measured.lag.record(0, room);
            }
        }
    }

    /// Adds the next operation of a client to the batch under construction.
    fn build(&mut self, client: usize, due_ns: u64, now_ns: u64) {
        let Client { number, stream, .. } = &mut self.clients[client];
        let operation = self.shared.workload.next(stream);
        let Operation { group, .. } = operation;
        let deadline_ns = now_ns.saturating_add(self.shared.plan.timeout_ns);
        let batch = self
            .building
            .entry((client, group))
            .or_insert_with(|| Batch::new(deadline_ns));
        self.shared.workload.encode(
            *number,
            &operation,
            &self.last_seen,
            &mut self.scratch,
            batch.buffer(),
        );
        let sent = Sent {
            operation,
            due_ns,
            sent_ns: now_ns,
            deadline_ns,
            settled: false,
        };
        batch.push(sent);
        self.clients[client].in_flight += 1;
        self.in_flight += 1;
        if self.shared.plan.measures(due_ns) {
            self.measured.tally.sent += 1;
        }
    }

    /// Hands a batch over.
    fn submit(&mut self, client: usize, group: u32, mut batch: Batch, lane: &mut dyn Lane) -> u64 {
        // Read before the batch leaves: what is acknowledged by now must lie before it in the log.
        batch.acked_before = self.shared.acked_through[group as usize].load(Ordering::Acquire);
        let (bytes, deadline_ns) = (batch.freeze(), batch.deadline_ns());
        let token = self.batches.insert(client, group, batch);
        self.deadlines.push_back((deadline_ns, token));
        let batch = self.batches.get(token).expect("inserted above");
        let count = batch.len();
        let submission = Submission {
            client: self.clients[client].number,
            group,
            token,
            bytes: &bytes,
            ends: batch.ends(),
            deadline_ns,
        };
        if let Err(failure) = lane.submit(&submission) {
            self.on_failed(token, 0, count, failure, self.now_ns);
        }
        token
    }

    /// Sends what was turned away, once its time has come.
    fn send_held(&mut self, now_ns: u64, lane: &mut dyn Lane) {
        let places: Vec<(usize, u32)> = self.held.keys().copied().collect();
        for place in places {
            let held = self.held.get_mut(&place).expect("listed above");
            for (operation, code) in held.take_expired(now_ns) {
                let failure = Failure {
                    code,
                    outcome: Outcome::Never,
                };
                self.settle_failed(place.0, &operation.0, &operation.1, failure, now_ns);
            }
            let held = self.held.get_mut(&place).expect("listed above");
            if held.is_idle() {
                self.held.remove(&place);
                continue;
            }
            if let Some(probe) = held.take_probe(now_ns) {
                self.measured.tally.retries += u64::from(probe.len());
                let token = self.submit(place.0, place.1, probe, lane);
                if let Some(held) = self.held.get_mut(&place)
                    && self.batches.get(token).is_some()
                {
                    held.probing = Some(token);
                }
            }
        }
    }

    /// Gives up on operations whose answers did not come in time.
    fn expire(&mut self, now_ns: u64) {
        while let Some((deadline_ns, token)) = self.deadlines.front().copied()
            && (deadline_ns <= now_ns || self.batches.get(token).is_none())
        {
            self.deadlines.pop_front();
            if let Some(batch) = self.batches.get(token) {
                let failure = Failure {
                    code: "timeout",
                    outcome: Outcome::Unknown,
                };
                let count = batch.len();
                self.on_failed(token, 0, count, failure, now_ns);
            }
        }
    }

    /// The load ends: what is still due is not sent any more.
    fn end(&mut self, now_ns: u64) {
        self.ended = true;
        let to_ns = self.shared.plan.measure_to_ns.min(now_ns);
        let from_ns = self.shared.plan.measure_from_ns;
        if let Some(schedule) = &mut self.schedule {
            let mut not_sent = 0;
            while schedule.due_ns() < to_ns {
                not_sent += u64::from(schedule.due_ns() >= from_ns);
                schedule.advance();
            }
            self.measured.tally.offered += not_sent;
            if not_sent > 0 {
                *self.measured.tally.errors.entry("not_sent").or_default() += not_sent;
            }
        }
    }

    fn finish(&mut self) {
        // After a signal there may be operations nobody waits for any more.
        let failure = Failure {
            code: "interrupted",
            outcome: Outcome::Unknown,
        };
        let now_ns = self.now_ns;
        for token in self.batches.tokens() {
            let count = self.batches.get(token).map_or(0, Batch::len);
            self.on_failed(token, 0, count, failure, now_ns);
        }
        self.shared.collector.add(self.second, &self.measured);
        self.measured.clear();
        self.finished = true;
    }

    fn close_second(&mut self, now_ns: u64) {
        let second = now_ns.saturating_sub(self.shared.plan.start_ns) / 1_000_000_000;
        if second != self.second {
            self.shared.collector.add(self.second, &self.measured);
            self.measured.clear();
            self.second = second;
        }
    }

    fn next_moment(&self, now_ns: u64) -> u64 {
        let plan = &self.shared.plan;
        let second_ends_ns = plan.start_ns + (self.second + 1) * 1_000_000_000;
        let mut next_ns = second_ends_ns.min(now_ns + LOOK_AGAIN_NS);
        if let Some((deadline_ns, _)) = self.deadlines.front() {
            next_ns = next_ns.min(*deadline_ns);
        }
        for held in self.held.values() {
            next_ns = next_ns.min(held.next_ns());
        }
        if !self.ended {
            next_ns = next_ns.min(plan.measure_to_ns);
            if now_ns < plan.start_ns {
                next_ns = next_ns.min(plan.start_ns);
            } else if let Some(schedule) = &self.schedule
                && self.in_flight < self.in_flight_max
            {
                next_ns = next_ns.min(schedule.due_ns().max(self.pace_ends_ns));
            }
        }
        next_ns
    }
}

/// What a worker leaves.
#[derive(Debug)]
pub struct Ended {
    /// The writes that were acknowledged.
    pub acked: Acked,
    /// Processor time of its thread over the measurement.
    pub cpu_ns: u64,
}

/// Runs a worker to its end on the calling thread.
pub fn run(mut worker: Worker, target: &dyn Target) -> Result<Ended, TargetError> {
    let Shared { clock, plan, .. } = worker.shared.as_ref();
    let (clock, from_ns, to_ns) = (*clock, plan.measure_from_ns, plan.measure_to_ns);
    let wants_outputs = worker.keeps_last_seen || worker.shared.history.is_some();
    let mailbox = Arc::new(Mailbox::of_this_thread(clock, wants_outputs));
    let clients: Vec<u32> = worker.clients.iter().map(|client| client.number).collect();
    let mut lane = target.lane(&clients, Arc::clone(&mailbox))?;
    let mut answers = Vec::new();
    let (mut cpu_from, mut cpu_to) = (None, None);
    loop {
        mailbox.take(&mut answers);
        let now_ns = clock.now_ns();
        if cpu_from.is_none() && now_ns >= from_ns {
            cpu_from = machine::thread_cpu_ns();
        }
        if cpu_to.is_none() && now_ns >= to_ns {
            cpu_to = machine::thread_cpu_ns();
        }
        match worker.turn(now_ns, &mut answers, lane.as_mut()) {
            Next::Wait(until_ns) => lane.wait(until_ns),
            Next::Finished => {
                let to = cpu_to.or_else(machine::thread_cpu_ns).unwrap_or(0);
                let from = cpu_from.unwrap_or(to);
                return Ok(Ended {
                    acked: worker.into_acked(),
                    cpu_ns: to.saturating_sub(from),
                });
            }
        }
    }
}

/// How long a worker sleeps at most: signals are looked for this often.
const LOOK_AGAIN_NS: u64 = 100_000_000;

#[cfg(test)]
mod tests;
