//! What answers mean: measurements, retries, the memory of what was acknowledged, the history.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use logdrive_shard::kv::{Command, KvOutput, Op, Reply};

use super::batch::{Batch, Sent};
use super::{Held, Worker};
use crate::history::{Entry, Place};
use crate::mix::Kind;
use crate::target::{Answer, Answered, Failure, Lane, Outcome};
use crate::verify;

impl Worker {
    pub(super) fn on_answer(&mut self, answer: Answer, lane: &mut dyn Lane) {
        let Answer {
            token,
            first,
            count,
            at_ns,
            what,
        } = answer;
        match what {
            Answered::Applied {
                index,
                slot,
                outputs,
            } => {
                let at = Place { index, slot };
                self.on_applied(token, first, count, at_ns, at, outputs, lane);
            }
            Answered::Failed(failure) => self.on_failed(token, first, count, failure, at_ns),
        }
    }

    fn on_applied(
        &mut self,
        token: u64,
        first: u32,
        count: u32,
        at_ns: u64,
        at: Place,
        outputs: Vec<Bytes>,
        lane: &mut dyn Lane,
    ) {
        let Some((client, group, mut batch)) = self.batches.take(token) else {
            // Its time was over: it has been counted as unknown.
            return;
        };
        let last = first.saturating_add(count).min(batch.len());
        self.measure(&mut batch, first, last, at_ns);
        let number = self.clients[client].number;
        let inside = self.shared.plan.measures(at_ns);
        let mut highest = 0;
        let mut settled = 0;
        for place in first..last {
            let sent = batch.sent(place);
            if std::mem::replace(&mut sent.settled, true) {
                continue;
            }
            settled += 1;
            let at = Place {
                index: at.index,
                slot: at.slot + (place - first),
            };
            let (operation, sent_ns) = (sent.operation, sent.sent_ns);
            self.shared.faults.on_acked(sent_ns, at_ns);
            let output = outputs.get((place - first) as usize);
            let rejected = output.is_some_and(|output| crate::target::is_rejection(output));
            let measured = &mut self.measured.tally;
            if rejected {
                *measured.errors.entry("rejected").or_default() += 1;
            } else if operation.kind.is_write() {
                measured.acked_writes += 1;
                measured.completed_writes += u64::from(inside);
                let bytes = match operation.kind {
                    Kind::Delete => 0,
                    _ => self.shared.workload.size() as u64,
                };
                measured.payload_bytes += if inside { bytes } else { 0 };
            }
            let packed = verify::pack(at);
            if packed <= batch.acked_before {
                measured.reordered += 1;
            }
            highest = highest.max(packed);
            if operation.kind.is_write() {
                self.acked.note(number, group, &operation, at);
            }
            if self.keeps_last_seen {
                self.learn(operation.key, &batch.command(place), output);
            }
            if let Some(history) = &self.shared.history {
                history.write(Entry {
                    client: number,
                    command: &batch.command(place),
                    output,
                    call_ns: sent_ns,
                    return_ns: Some(at_ns),
                    outcome: "ok",
                    place: Some(at),
                });
            }
        }
        if inside {
            self.measured.tally.completed += u64::from(settled);
        }
        self.shared.acked_through[group as usize].fetch_max(highest, Ordering::AcqRel);
        self.in_flight -= u64::from(settled);
        self.clients[client].in_flight -= u64::from(settled);
        batch.open -= settled;
        self.batches.restore(token, client, group, batch);
        self.door_opened(client, group, token, lane);
    }

    pub(super) fn on_failed(
        &mut self,
        token: u64,
        first: u32,
        count: u32,
        failure: Failure,
        at_ns: u64,
    ) {
        let Some((client, group, mut batch)) = self.batches.take(token) else {
            return;
        };
        let last = first.saturating_add(count).min(batch.len());
        let mut turned_away = Vec::new();
        for place in first..last {
            let command = batch.command(place);
            let sent = batch.sent(place);
            if std::mem::replace(&mut sent.settled, true) {
                continue;
            }
            let mut sent = sent.clone();
            batch.open -= 1;
            if failure.outcome == Outcome::Retry && !self.stopped() {
                sent.settled = false;
                turned_away.push((sent, command));
            } else {
                self.settle_failed(client, &sent, &command, failure, at_ns);
            }
        }
        self.batches.restore(token, client, group, batch);
        if !turned_away.is_empty() {
            let held = self.held.entry((client, group)).or_default();
            held.turned_away(turned_away, failure.code, at_ns);
        } else if let Some(held) = self.held.get_mut(&(client, group))
            && held.probing == Some(token)
            && self.batches.get(token).is_none()
        {
            held.probing = None;
        }
    }

    /// An operation ends without an answer.
    pub(super) fn settle_failed(
        &mut self,
        client: usize,
        sent: &Sent,
        command: &Bytes,
        failure: Failure,
        at_ns: u64,
    ) {
        self.in_flight -= 1;
        self.clients[client].in_flight -= 1;
        let unknown = failure.outcome == Outcome::Unknown;
        if self.shared.plan.measures(sent.due_ns) {
            let tally = &mut self.measured.tally;
            let counts = if unknown {
                &mut tally.unknown
            } else {
                &mut tally.errors
            };
            *counts.entry(failure.code).or_default() += 1;
        }
        let number = self.clients[client].number;
        if !unknown && sent.operation.kind.is_write() {
            self.acked
                .note_never(number, sent.operation.group, &sent.operation);
        }
        if let Some(history) = &self.shared.history {
            history.write(Entry {
                client: number,
                command,
                output: None,
                call_ns: sent.sent_ns,
                return_ns: (!unknown).then_some(at_ns),
                outcome: if unknown { "unknown" } else { "never" },
                place: None,
            });
        }
    }

    /// Who waited behind a batch that got through may go as well.
    fn door_opened(&mut self, client: usize, group: u32, token: u64, lane: &mut dyn Lane) {
        let Some(held) = self.held.get_mut(&(client, group)) else {
            return;
        };
        if held.probing != Some(token) {
            return;
        }
        held.opened();
        let now_ns = self.now_ns;
        while let Some(held) = self.held.get_mut(&(client, group))
            && let Some(batch) = held.take_probe(now_ns)
        {
            self.measured.tally.retries += u64::from(batch.len());
            self.submit(client, group, batch, lane);
        }
        if self.held.get(&(client, group)).is_some_and(Held::is_idle) {
            self.held.remove(&(client, group));
        }
    }

    fn measure(&mut self, batch: &mut Batch, first: u32, last: u32, at_ns: u64) {
        let plan = &self.shared.plan;
        let measured = &mut self.measured;
        if batch.is_uniform() && first < last {
            let sent = batch.sent(first);
            if plan.measures(sent.due_ns) {
                let latency_ns = at_ns.saturating_sub(sent.due_ns);
                let open = (first..last).filter(|place| !batch.sent(*place).settled);
                let count = open.count() as u64;
                measured.schedule.record(latency_ns, count);
                measured.send.record(latency_ns, count);
            }
            return;
        }
        for place in first..last {
            let sent = batch.sent(place);
            if plan.measures(sent.due_ns) && !sent.settled {
                let (due_ns, sent_ns) = (sent.due_ns, sent.sent_ns);
                measured.schedule.record(at_ns.saturating_sub(due_ns), 1);
                measured.send.record(at_ns.saturating_sub(sent_ns), 1);
            }
        }
    }

    /// Remembers what a key was seen with.
    fn learn(&mut self, key: u64, command: &Bytes, output: Option<&Bytes>) {
        let Ok(parsed) = Command::parse(command) else {
            return;
        };
        let output = output.and_then(|output| KvOutput::from_bytes(output.clone()).ok());
        let reply = output.as_ref().map(KvOutput::reply);
        let value = match (parsed.op, reply) {
            (Op::Get, Some(Reply::Value(value))) => Some(value),
            (_, Some(Reply::Mismatch(found))) => found,
            (Op::Get | Op::Delete, _) => None,
            // The whole value is not known; an old one makes a swap that fails and then learns.
            (Op::Append(_), _) => return,
            (Op::Put(value) | Op::CompareAndSwap { new: value, .. }, _) => Some(value),
        };
        let value = value.map(Bytes::copy_from_slice);
        self.last_seen.note(key, value);
    }
}
