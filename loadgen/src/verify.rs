//! Whether every replica holds what was acknowledged, once, where it was said to be.
//!
//! Replicas are asked one by one, after all of them were killed and started again: their ledgers hold 8
//! bytes for each write, a hash of its value and its place. The value follows from seed, client and
//! sequence, the place was in the acknowledgement, so both sides are computed apart from each other.

use std::collections::BTreeMap;

use logdrive_raft::Index;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_shard::kv::{ClientLedger, KvReader, KvSummary, applied_hash};
use serde::{Deserialize, Serialize};

use crate::history::Place;
use crate::mix::Kind;
use crate::workload::{Operation, Workload};

/// A place as one number that grows along the log.
#[must_use]
pub fn pack(place: Place) -> u64 {
    place.index << 16 | u64::from(place.slot)
}

/// The writes that were acknowledged or are said never to have been appended, 8 bytes each.
#[derive(Debug, Default)]
pub struct Acked {
    remembers: bool,
    /// By client and group: for each sequence, from 1 on, where it lies and whether it was a delete; 0: nobody
    /// knows; [`NEVER`].
    writes: BTreeMap<(u32, u32), Vec<u64>>,
}

impl Acked {
    /// Remembers writes, or does nothing.
    #[must_use]
    pub fn new(remembers: bool) -> Self {
        Self {
            remembers,
            writes: BTreeMap::new(),
        }
    }

    /// A write was acknowledged.
    pub fn note(&mut self, client: u32, group: u32, operation: &Operation, place: Place) {
        let write = pack(place) << 1 | u64::from(operation.kind == Kind::Delete);
        self.remember(client, group, operation, write);
    }

    /// A write ended with the word that it was never appended. One that is tried again has not ended.
    pub fn note_never(&mut self, client: u32, group: u32, operation: &Operation) {
        self.remember(client, group, operation, NEVER);
    }

    fn remember(&mut self, client: u32, group: u32, operation: &Operation, write: u64) {
        if !self.remembers {
            return;
        }
        let writes = self.writes.entry((client, group)).or_default();
        let at = operation.sequence as usize - 1;
        if writes.len() <= at {
            writes.resize(at + 1, 0);
        }
        writes[at] = write;
    }

    /// Adds what another worker remembers. No client has two workers.
    pub fn merge(&mut self, other: Acked) {
        self.remembers |= other.remembers;
        self.writes.extend(other.writes);
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub fn count(&self) -> u64 {
        let ended = self.writes.values().flatten();
        ended.filter(|write| ![0, NEVER].contains(*write)).count() as u64
    }
}

/// What one replica says it has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Which replica.
    pub node: u64,
    /// By group, in the order of the groups.
    pub groups: Vec<GroupState>,
}

/// What one replica says it has applied of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Its state, in numbers.
    pub summary: KvSummary,
    /// Its ledger, by client.
    pub clients: BTreeMap<u64, ClientLedger>,
}

impl GroupState {
    /// Reads a machine.
    #[must_use]
    pub fn of(reader: &KvReader) -> Self {
        let ledger = |client| reader.client(client).map(|ledger| (client, ledger));
        Self {
            summary: reader.summary(),
            clients: reader.clients().into_iter().filter_map(ledger).collect(),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Writes that were acknowledged.
    pub acked: u64,
    /// Acknowledged, but absent or different on a replica; and states that differ.
    pub lost: u64,
    /// Applied more often than was told: more than once, or at all though it was said never to be appended.
    pub duplicated: u64,
    /// Applied before something that was acknowledged before they were sent.
    pub reordered: u64,
    /// Whether the replicas had applied the same before they were asked.
    pub agreed: bool,
    /// The first few, in words.
    pub findings: Vec<String>,
}

impl Verified {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicated, self.reordered) == (0, 0, 0)
    }

    fn found(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding());
        }
    }
}

/// Compares what was acknowledged with what every replica has.
#[must_use]
pub fn compare(
    acked: &Acked,
    reordered: u64,
    workload: &Workload,
    replicas: &[ReplicaState],
) -> Verified {
    let mut verified = Verified {
        acked: acked.count(),
        reordered,
        agreed: true,
        ..Verified::default()
    };
    if reordered > 0 {
        verified.found(|| {
            format!("{reordered} writes lie before writes acknowledged before they were sent")
        });
    }
    let mut never_appended = 0;
    for ((client, group), writes) in &acked.writes {
        let id = workload.client_id(*client);
        let group_number = *group as usize;
        let ledgers: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let group = replica.groups.get(group_number);
                (replica.node, group.and_then(|group| group.clients.get(&id)))
            })
            .collect();
        for (number, write) in writes.iter().enumerate() {
            let sequence = number as u64 + 1;
            if *write == NEVER {
                never_appended += check_never(&mut verified, &ledgers, *client, *group, sequence);
            } else if *write != 0 {
                let expected = expected_hash(workload, *client, *group, sequence, *write);
                check_write(&mut verified, &ledgers, *client, *group, sequence, expected);
            }
        }
    }
    for replica in replicas {
        check_repeats(&mut verified, replica);
    }
    verified.duplicated += never_appended;
    check_states(&mut verified, replicas);
    verified
}

fn expected_hash(
    workload: &Workload,
    client: u32,
    group: u32,
    sequence: u64,
    write: u64,
) -> (u64, Place) {
    let operation = Operation {
        kind: if write & 1 == 1 {
            Kind::Delete
        } else {
            Kind::Put
        },
        key: 0,
        group,
        sequence,
    };
    let place = Place {
        index: write >> 17,
        slot: (write >> 1 & 0xffff) as u32,
    };
    let value = workload.value(client, &operation);
    (applied_hash(&value, Index(place.index), place.slot), place)
}

fn check_write(
    verified: &mut Verified,
    ledgers: &[(u64, Option<&ClientLedger>)],
    client: u32,
    group: u32,
    sequence: u64,
    (expected, place): (u64, Place),
) {
    let mut bad = None;
    for (node, ledger) in ledgers {
        match ledger.and_then(|ledger| ledger.get(sequence)) {
            Some(found) if found == expected => {}
            Some(_) => bad = Some((*node, "has another value or place for")),
            None => bad = Some((*node, "has not applied")),
        }
    }
    if let Some((node, what)) = bad {
        verified.lost += 1;
        let Place { index, slot } = place;
        verified.found(|| {
            format!(
                "node {node} {what} write {sequence} of client {client}, group {group}, \
                 acknowledged at index {index} slot {slot}"
            )
        });
    }
}

/// 1 if a write that was said never to be appended was applied.
fn check_never(
    verified: &mut Verified,
    ledgers: &[(u64, Option<&ClientLedger>)],
    client: u32,
    group: u32,
    sequence: u64,
) -> u64 {
    let applied = |ledger: &Option<&ClientLedger>| ledger.and_then(|l| l.get(sequence)).is_some();
    let Some((node, _)) = ledgers.iter().find(|(_, ledger)| applied(ledger)) else {
        return 0;
    };
    verified.found(|| {
        format!(
            "node {node} has applied write {sequence} of client {client}, group {group}, which was \
             said never to be appended"
        )
    });
    1
}

fn check_repeats(verified: &mut Verified, replica: &ReplicaState) {
    let mut repeats = 0;
    for group in &replica.groups {
        for (client, ledger) in &group.clients {
            repeats += ledger.repeats;
            if ledger.repeats > 0 {
                let (node, first) = (replica.node, ledger.repeated.first());
                verified.found(|| {
                    format!(
                        "node {node} applied {} writes of client id {client} again, the first of \
                         them write {}",
                        ledger.repeats,
                        first.copied().unwrap_or_default()
                    )
                });
            }
        }
    }
    // The same write repeats on every replica: it is one.
    verified.duplicated = verified.duplicated.max(repeats);
}

fn check_states(verified: &mut Verified, replicas: &[ReplicaState]) {
    let Some((first, others)) = replicas.split_first() else {
        return;
    };
    for other in others {
        for (number, (a, b)) in first.groups.iter().zip(&other.groups).enumerate() {
            let orders = |group: &GroupState| -> Vec<(u64, u64)> {
                let ledgers = group.clients.iter();
                ledgers
                    .map(|(client, ledger)| (*client, ledger.order_hash))
                    .collect()
            };
            if a.summary != b.summary || orders(a) != orders(b) {
                verified.lost += 1;
                verified.found(|| {
                    format!(
                        "nodes {} and {} differ in group {number}: {:?} and {:?}",
                        first.node, other.node, a.summary, b.summary
                    )
                });
            }
        }
    }
}

impl Encode for GroupState {
    fn encode(&self, out: &mut Writer<'_>) {
        let KvSummary {
            applied,
            keys,
            digest,
            malformed,
            untracked,
        } = self.summary;
        applied.encode(out);
        for number in [keys, digest, malformed, untracked] {
            number.encode(out);
        }
        let count = u32::try_from(self.clients.len()).expect("fewer clients than 2^32");
        count.encode(out);
        for (client, ledger) in &self.clients {
            client.encode(out);
            ledger.encode(out);
        }
    }
}

impl Decode for GroupState {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut summary = KvSummary {
            applied: Decode::decode(input)?,
            ..KvSummary::default()
        };
        summary.keys = Decode::decode(input)?;
        summary.digest = Decode::decode(input)?;
        summary.malformed = Decode::decode(input)?;
        summary.untracked = Decode::decode(input)?;
        let mut clients = BTreeMap::new();
        for _ in 0..u32::decode(input)? {
            clients.insert(Decode::decode(input)?, Decode::decode(input)?);
        }
        Ok(Self { summary, clients })
    }
}

impl Encode for ReplicaState {
    fn encode(&self, out: &mut Writer<'_>) {
        self.node.encode(out);
        out.list(&self.groups);
    }
}

impl Decode for ReplicaState {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            node: Decode::decode(input)?,
            groups: input.list("groups", 1 << 16)?,
        })
    }
}

/// What is remembered of a write that was never appended. No place looks like it: its index would not fit.
const NEVER: u64 = u64::MAX;

const FINDINGS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use logdrive_shard::kv::Kv;

    use super::*;
    use crate::workload::{LastSeen, Scratch};

    /// Entries of one write each: (client, operation).
    type Log = Vec<(u32, Operation)>;

    fn workload() -> Workload {
        let mix = "put=80,delete=20".parse().unwrap();
        Workload::new(9, 32, 50, 1, mix, true, 500)
    }

    /// A log of a few clients' writes, and what they were told.
    fn acknowledged() -> (Log, Acked) {
        let workload = workload();
        let (mut log, mut acked) = (Log::new(), Acked::new(true));
        let mut streams: Vec<_> = (0..3).map(|client| workload.client(client)).collect();
        for round in 0..40 {
            let client = round % 3;
            let operation = workload.next(&mut streams[client as usize]);
            log.push((client, operation));
            let index = log.len() as u64;
            acked.note(client, 0, &operation, Place { index, slot: 0 });
        }
        (log, acked)
    }

    fn replica(node: u64, log: &Log) -> ReplicaState {
        let workload = workload();
        let mut kv = Kv::default();
        for (number, (client, operation)) in log.iter().enumerate() {
            let mut out = bytes::BytesMut::new();
            let seen = LastSeen::default();
            workload.encode(*client, operation, &seen, &mut Scratch::default(), &mut out);
            let index = Index(number as u64 + 1);
            kv.apply_entry(index, [(0, &out[..])], &mut Vec::new());
        }
        let groups = vec![GroupState::of(&kv.reader())];
        ReplicaState { node, groups }
    }

    fn three(logs: [&Log; 3]) -> Vec<ReplicaState> {
        let numbered = logs.iter().zip(1..);
        numbered.map(|(log, node)| replica(node, log)).collect()
    }

    #[test]
    fn replicas_that_hold_everything_are_clean() {
        let (log, acked) = acknowledged();
        let verified = compare(&acked, 0, &workload(), &three([&log, &log, &log]));
        assert!(verified.is_clean(), "{verified:?}");
        assert_eq!(verified.acked, 40);
    }

    #[test]
    fn writes_that_were_not_acknowledged_may_be_there() {
        let (mut log, acked) = acknowledged();
        let mut stream = workload().client(7);
        log.push((7, workload().next(&mut stream)));
        let verified = compare(&acked, 0, &workload(), &three([&log, &log, &log]));
        assert!(verified.is_clean(), "{verified:?}");
    }

    #[test]
    fn a_write_that_was_said_never_to_be_appended_must_not_be_there() {
        let (mut log, mut acked) = acknowledged();
        let operation = workload().next(&mut workload().client(7));
        acked.note_never(7, 0, &operation);
        let verified = compare(&acked, 0, &workload(), &three([&log, &log, &log]));
        assert!(verified.is_clean(), "{verified:?}");
        assert_eq!(verified.acked, 40);
        log.push((7, operation));
        let verified = compare(&acked, 0, &workload(), &three([&log, &log, &log]));
        assert_eq!((verified.lost, verified.duplicated), (0, 1));
        assert!(verified.findings[0].ends_with("which was said never to be appended"));
    }

    #[test]
    fn a_write_lost_on_one_replica_is_found() {
        let (log, acked) = acknowledged();
        let mut short = log.clone();
        short.pop();
        let verified = compare(&acked, 0, &workload(), &three([&log, &log, &short]));
        // Once as a write, once as a state that differs.
        assert_eq!((verified.lost, verified.duplicated), (2, 0));
        assert!(verified.findings[0].starts_with("node 3 has not applied write"));
    }

    #[test]
    fn a_write_lost_on_every_replica_is_found() {
        let (log, acked) = acknowledged();
        let mut short = log.clone();
        short.pop();
        let verified = compare(&acked, 0, &workload(), &three([&short, &short, &short]));
        assert_eq!(verified.lost, 1);
    }

    #[test]
    fn a_write_with_another_value_is_found() {
        let (log, acked) = acknowledged();
        let other = Workload::new(10, 32, 50, 1, "put=1".parse().unwrap(), true, 500);
        let verified = compare(&acked, 0, &other, &three([&log, &log, &log]));
        let deletes = log.iter().filter(|(_, op)| op.kind == Kind::Delete).count();
        assert_eq!(verified.lost, 40 - deletes as u64);
    }

    #[test]
    fn a_write_applied_twice_is_found_once() {
        let (mut log, acked) = acknowledged();
        log.push(log[5]);
        let verified = compare(&acked, 0, &workload(), &three([&log, &log, &log]));
        assert_eq!((verified.lost, verified.duplicated), (0, 1));
        assert!(verified.findings[0].contains("applied 1 writes of client id 502 again"));
    }

    #[test]
    fn writes_applied_in_another_order_than_acknowledged_are_found() {
        let (log, acked) = acknowledged();
        let mut swapped = log.clone();
        swapped.swap(10, 11);
        let verified = compare(&acked, 0, &workload(), &three([&log, &swapped, &log]));
        assert_eq!(verified.lost, 3, "two writes and one state");
        let verified = compare(&acked, 4, &workload(), &three([&log, &log, &log]));
        assert_eq!((verified.lost, verified.reordered), (0, 4));
        assert!(!verified.is_clean());
    }

    #[test]
    fn what_a_replica_says_travels() {
        let (log, _) = acknowledged();
        let state = replica(2, &log);
        let bytes = state.to_bytes();
        assert_eq!(ReplicaState::from_bytes(&bytes).unwrap(), state);
        assert!(ReplicaState::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    }
}
