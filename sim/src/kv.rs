//! The key-value machine under the simulator, and whether what its clients were told makes sense.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use logdrive_raft::wire::Encode;
use logdrive_raft::{GroupId, Index, NodeId};
use logdrive_shard::kv::{Command, Kv, KvOutput, KvReader, Op, Origin, VALUE_BYTES_MAX};

use crate::check::{
    self, Committed, Limits, Logs, OperationId, Place, Verdict, check_phantoms, check_witness,
    piece_bytes, search_keys,
};
use crate::history::{History, Operation, Outcome};
use crate::model::{Model, Request, Searched};
use crate::oracle::{Rule, Violation};
use crate::padded::Padded;

/// Clients that put, get, append, swap and delete.
#[derive(Clone, Debug, Default)]
pub struct KvModel {
    /// What was asked, by request.
    commands: Vec<Asked>,
    /// The last value that was put under each key.
    put: BTreeMap<(GroupId, u32), Vec<u8>>,
    padding_bytes: usize,
}

#[derive(Clone, Debug)]
struct Asked {
    key: u32,
    payload: Bytes,
}

/// How many keys a group has. A quarter of all operations are about the first three.
const KEYS: u32 = 32;

/// A request of so many bytes or more becomes a command of exactly as many.
const LARGE_BYTES: usize = 8 << 10;

impl Model for KvModel {
    type Machine = Padded<Kv>;
    type Output = KvOutput;

    fn pad(&mut self, bytes: u64) {
        self.padding_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    fn machine(&mut self, _node: NodeId, _group: GroupId) -> Padded<Kv> {
        Padded::new(Kv::default(), self.padding_bytes)
    }

    fn payload(&mut self, request: Request, random: &mut Rng) -> Bytes {
        let key = if random.u8(0..4) == 0 {
            random.u32(0..3)
        } else {
            random.u32(0..KEYS)
        };
        let origin = Origin {
            client: request.client,
            sequence: request.id,
        };
        // The engine takes any bytes. The machine answers that it cannot read these.
        if request.bytes == 0 && random.u8(0..4) == 0 {
            return self.ask(request, key, Bytes::new());
        }
        let name = format!("key-{key}");
        let is_large = LARGE_BYTES <= request.bytes;
        let mut value_bytes = request.bytes;
        if is_large {
            let rest = Command {
                origin: Some(origin),
                key: name.as_bytes(),
                op: Op::Put(&[]),
            };
            value_bytes -= rest.to_bytes().len();
        }
        let value = piece_bytes(origin, u32::try_from(value_bytes).unwrap_or(u32::MAX));
        // With the expected value and a new one in it, a command must still fit an entry.
        let expected = self.put.get(&(request.group, key)).cloned();
        let expected = expected.filter(|expected| expected.len() + value.len() <= 4_000);
        let op = match random.u8(0..20) {
            // It is about the size of the command, to the byte.
            _ if is_large => Op::Put(&value),
            0..8 => Op::Put(&value),
            8..15 => Op::Get,
            15 => Op::Delete,
            // A value that grows with every large append would soon be too large for the log.
            16 if value.len() <= 100 => Op::Append(&value),
            16 => Op::Get,
            17 => Op::CompareAndSwap {
                expected: None,
                new: &value,
            },
            _ => Op::CompareAndSwap {
                expected: expected.as_deref(),
                new: &value,
            },
        };
        let payload = Command {
            origin: Some(origin),
            key: name.as_bytes(),
            op,
        }
        .to_bytes();
        if matches!(op, Op::Put(_)) {
            self.put.insert((request.group, key), value);
        }
        self.ask(request, key, payload)
    }

    fn request_of(&self, payload: &[u8]) -> Option<u64> {
        let command = Command::parse(payload).ok()?;
        command.origin.map(|origin| origin.sequence)
    }

    fn digest(&self, reader: &KvReader) -> u64 {
        let summary = reader.summary();
        summary.digest ^ summary.applied.0
    }

    fn check(&self, history: &History<KvOutput>) -> Result<Searched, Violation> {
        let told = self.retell(history);
        let logs = self.logs(history);
        self.check_empty(history)?;
        check_phantoms(&told).map_err(broken)?;
        check_witness(&told, &logs).map_err(broken)?;
        let mut searched = Searched::default();
        for verdict in search_keys(&told, &Limits::default()) {
            match verdict {
                Verdict::Linearizable => searched.explained += 1,
                Verdict::GaveUp(_) => searched.given_up += 1,
                Verdict::NotLinearizable(violation) => return Err(broken(violation)),
            }
        }
        Ok(searched)
    }
}

impl KvModel {
    fn ask(&mut self, request: Request, key: u32, payload: Bytes) -> Bytes {
        assert!(self.commands.len() as u64 == request.id);
        let kept = payload.clone();
        self.commands.push(Asked { key, payload: kept });
        payload
    }

    /// Empty payloads say not whose they are. Each that was answered lies where its client was told, no two in
    /// the same place, and no more of them are in the log than were not refused.
    fn check_empty(&self, history: &History<KvOutput>) -> Result<(), Violation> {
        let mut unnamed: BTreeSet<(GroupId, Index, u32)> = BTreeSet::new();
        let mut may_be: BTreeMap<GroupId, usize> = BTreeMap::new();
        for applied in history
            .log
            .iter()
            .filter(|applied| applied.request.is_none())
        {
            unnamed.insert((applied.group, applied.at.index, applied.slot));
            may_be.entry(applied.group).or_default();
        }
        let mut held = unnamed.clone();
        for (operation, asked) in history.operations.iter().zip(&self.commands) {
            if !asked.payload.is_empty() {
                continue;
            }
            let (id, group) = (operation.request.id, operation.request.group);
            if !matches!(operation.outcome, Outcome::Never) {
                *may_be.entry(group).or_default() += 1;
            }
            if let Outcome::Done { at, slot, .. } = &operation.outcome
                && !held.remove(&(group, at.index, *slot))
            {
                let text = format!(
                    "request {id} of group {group} is said to lie at {at}, slot {slot}, where no empty \
                     payload is, or another's"
                );
                return Err(Violation::new(Rule::AckedDurability, text));
            }
        }
        for (group, most) in may_be {
            let count = unnamed.iter().filter(|(of, ..)| *of == group).count();
            if most < count {
                let text = format!(
                    "the log of group {group} has {count} payloads that name no request, and at most \
                     {most} were sent"
                );
                return Err(Violation::new(Rule::Phantom, text));
            }
        }
        Ok(())
    }

    /// The history as the checks want it: calls and answers in the order in which they happened.
    fn retell(&self, history: &History<KvOutput>) -> check::History {
        let mut told = check::History::new(u32::try_from(VALUE_BYTES_MAX).unwrap_or(u32::MAX));
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (number, operation) in history.operations.iter().enumerate() {
            events.push((operation.invoked_order, true, number));
            let returned = operation.returned_order;
            events.extend(returned.map(|order| (order, false, number)));
        }
        events.sort_unstable();
        let mut ids: Vec<Option<OperationId>> = vec![None; history.operations.len()];
        for (_, called, number) in events {
            let operation = &history.operations[number];
            if called {
                ids[number] = self.call(&mut told, operation);
            } else if let Some(id) = ids[number] {
                end(&mut told, id, operation);
            }
        }
        told
    }

    fn call(
        &self,
        told: &mut check::History,
        operation: &Operation<KvOutput>,
    ) -> Option<OperationId> {
        let Request {
            id, client, group, ..
        } = operation.request;
        let asked = self.commands.get(usize::try_from(id).ok()?)?;
        let command = Command::parse(&asked.payload).ok()?;
        let origin = Origin {
            client,
            sequence: id,
        };
        Some(told.invoke(operation.invoked.0, group, asked.key, origin, command.op))
    }

    fn logs(&self, history: &History<KvOutput>) -> Logs {
        let mut logs = Logs::new();
        for applied in &history.log {
            let asked = applied.request.and_then(|id| usize::try_from(id).ok());
            let asked = asked.and_then(|id| history.operations.get(id));
            let Some(operation) = asked else {
                continue;
            };
            let origin = Origin {
                client: operation.request.client,
                sequence: operation.request.id,
            };
            let place = Place {
                index: applied.at.index,
                slot: applied.slot,
            };
            let log = logs.entry(applied.group).or_default();
            log.push(Committed { place, origin });
        }
        logs
    }
}

fn end(told: &mut check::History, id: OperationId, operation: &Operation<KvOutput>) {
    let now = operation.returned.map_or(0, |at| at.0);
    match &operation.outcome {
        Outcome::Done { at, slot, output } => {
            let place = Place {
                index: at.index,
                slot: *slot,
            };
            told.replied(now, id, output.reply(), place);
        }
        Outcome::Never => told.never(now, id),
        Outcome::Pending | Outcome::Unknown => told.unknown(now, id),
    }
}

fn broken(violation: check::Violation) -> Violation {
    let rule = match violation.rule {
        check::Rule::Phantom | check::Rule::NeverObserved | check::Rule::Stranger => Rule::Phantom,
        check::Rule::RealTime | check::Rule::BeforeItsCall => Rule::ReadFreshness,
        check::Rule::Once | check::Rule::OnePlace => Rule::AppliedTwice,
        check::Rule::Moved | check::Rule::Missing | check::Rule::LogOrder => Rule::AckedDurability,
        check::Rule::NeverInLog => Rule::NeverAppended,
        _ => Rule::Linearizability,
    };
    Violation::new(rule, violation.to_string())
}
