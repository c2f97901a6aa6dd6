//! What each operation does: its kind, its key, its value.
//!
//! Values follow from the seed, the client and the sequence, so that nobody has to keep them: whoever knows
//! the three can say what must be found under them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use logdrive_raft::wire::{Encode, Writer};
use logdrive_shard::kv::{Command, Op, Origin};

use crate::mix::{Kind, Mix};

/// What a load consists of. Shared by all workers.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    size: usize,
    keys: u64,
    groups: u32,
    mix: Mix,
    /// Writes name their client and sequence.
    with_origin: bool,
    /// Added to client numbers, so that two runs against one cluster differ.
    first_client: u64,
    /// Text that values are cut from.
    text: Arc<[u8]>,
}

/// One operation of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// The number of its key.
    pub key: u64,
    /// The number of its group.
    pub group: u32,
    /// Which write of its client and group it is; 0 for a get.
    pub sequence: u64,
}

/// Chooses the operations of one client.
#[derive(Debug)]
pub struct ClientStream {
    random: fastrand::Rng,
    /// By group: the number of the last write.
    sequences: Vec<u64>,
}

/// The values that keys were last seen with; only kept for compare-and-swap.
#[derive(Debug, Default)]
pub struct LastSeen {
    values: HashMap<u64, Bytes>,
}

impl LastSeen {
    /// A key was seen with this value, or without one.
    pub fn note(&mut self, key: u64, value: Option<Bytes>) {
        match value {
            Some(value) => self.values.insert(key, value),
            None => self.values.remove(&key),
        };
    }

    fn get(&self, key: u64) -> Option<&Bytes> {
        self.values.get(&key)
    }
}

impl Workload {
    /// A load of these operations.
    #[must_use]
    pub fn new(
        seed: u64,
        size: usize,
        keys: u64,
        groups: u32,
        mix: Mix,
        with_origin: bool,
        first_client: u64,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let text: Vec<u8> = (0..TEXT_BYTES + size)
            .map(|_| random.alphanumeric() as u8)
            .collect();
        Self {
            seed,
            size,
            keys,
            groups,
            mix,
            with_origin,
            first_client,
            text: text.into(),
        }
    }

    /// What client number `client` does.
    #[must_use]
    pub fn client(&self, client: u32) -> ClientStream {
        let seed = stamp(self.seed, u64::from(client), u64::MAX);
        ClientStream {
            random: fastrand::Rng::with_seed(seed),
            sequences: vec![0; self.groups as usize],
        }
    }

    /// The next operation of a client.
    #[must_use]
    pub fn next(&self, stream: &mut ClientStream) -> Operation {
        let kind = self.mix.pick(stream.random.u32(..self.mix.total()));
        let key = stream.random.u64(..self.keys);
        let group = (key % u64::from(self.groups)) as u32;
        let sequence = if kind.is_write() {
            let last = &mut stream.sequences[group as usize];
            *last += 1;
            *last
        } else {
            0
        };
        Operation {
            kind,
            key,
            group,
            sequence,
        }
    }

    /// Appends the command for an operation to `out`.
    pub fn encode(
        &self,
        client: u32,
        op: &Operation,
        seen: &LastSeen,
        scratch: &mut Scratch,
        out: &mut BytesMut,
    ) {
        let Scratch { key, value } = scratch;
        write_key(op.key, key);
        let origin = (self.with_origin && op.kind.is_write()).then(|| Origin {
            client: self.client_id(client),
            sequence: op.sequence,
        });
        if matches!(op.kind, Kind::Put | Kind::Cas | Kind::Append) {
            self.write_value(client, op, value);
        }
        let expected = if op.kind == Kind::Cas {
            seen.get(op.key)
        } else {
            None
        };
        let op = match op.kind {
            Kind::Put => Op::Put(value),
            Kind::Get => Op::Get,
            Kind::Cas => Op::CompareAndSwap {
                expected: expected.map(Bytes::as_ref),
                new: value,
            },
            Kind::Append => Op::Append(value),
            Kind::Delete => Op::Delete,
        };
        Command { origin, key, op }.encode(&mut Writer::new(out));
    }

    /// The value that an operation brings along; empty for a get or a delete.
    #[must_use]
    pub fn value(&self, client: u32, op: &Operation) -> Vec<u8> {
        let mut value = Vec::new();
        if matches!(op.kind, Kind::Put | Kind::Cas | Kind::Append) {
            self.write_value(client, op, &mut value);
        }
        value
    }

    /// Whether a kind of operation occurs.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.mix.has(kind)
    }

    /// Bytes of a value.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number under which the machine knows a client.
    #[must_use]
    pub fn client_id(&self, client: u32) -> u64 {
        self.first_client + u64::from(client)
    }

    /// Text from a place that the stamp chooses, opened by the stamp itself as far as it fits.
    fn write_value(&self, client: u32, op: &Operation, value: &mut Vec<u8>) {
        // Groups count sequences on their own.
        let client = u64::from(client) << 32 | u64::from(op.group);
        let stamp = stamp(self.seed, client, op.sequence);
        let from = (stamp % TEXT_BYTES as u64) as usize;
        value.clear();
        value.extend_from_slice(&self.text[from..from + self.size]);
        for (place, byte) in value.iter_mut().take(16).enumerate() {
            *byte = b"0123456789abcdef"[(stamp >> (4 * place)) as usize & 15];
        }
    }
}

/// Buffers that encoding uses again and again.
#[derive(Debug, Default)]
pub struct Scratch {
    key: Vec<u8>,
    value: Vec<u8>,
}

/// The name of a key: `k` and at least seven digits.
#[must_use]
pub fn key_name(key: u64) -> String {
    let mut name = Vec::new();
    write_key(key, &mut name);
    String::from_utf8(name).expect("digits are text")
}

fn write_key(key: u64, name: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    let mut rest = key;
    while rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let at = at.min(digits.len() - 7);
    name.clear();
    name.push(b'k');
    name.extend_from_slice(&digits[at..]);
}

/// 64 bits that follow from the three and look random (splitmix64's finish).
fn stamp(seed: u64, client: u64, sequence: u64) -> u64 {
    let mut z = seed ^ mix(client ^ mix(sequence));
    z = mix(z.wrapping_add(0x9e37_79b9_7f4a_7c15));
    z
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const TEXT_BYTES: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(mix: &str, with_origin: bool) -> Workload {
        Workload::new(3, 24, 100, 2, mix.parse().unwrap(), with_origin, 1000)
    }

    fn encoded(workload: &Workload, op: &Operation, seen: &LastSeen) -> Bytes {
        let mut out = BytesMut::new();
        workload.encode(5, op, seen, &mut Scratch::default(), &mut out);
        out.freeze()
    }

    #[test]
    fn a_write_names_its_client_and_its_value_can_be_told_again() {
        let workload = workload("put=100", true);
        let mut stream = workload.client(5);
        let op = workload.next(&mut stream);
        let bytes = encoded(&workload, &op, &LastSeen::default());
        let command = Command::parse(&bytes).unwrap();
        let origin = Origin {
            client: 1005,
            sequence: 1,
        };
        assert_eq!(command.origin, Some(origin));
        assert_eq!(command.key, key_name(op.key).as_bytes());
        assert_eq!(command.op.value(), workload.value(5, &op));
        assert_eq!(command.op.value().len(), 24);
    }

    #[test]
    fn values_differ_by_client_group_sequence_and_seed() {
        let workload = workload("put=100", false);
        let op = |group, sequence| Operation {
            kind: Kind::Put,
            key: 1,
            group,
            sequence,
        };
        let mut values = vec![
            workload.value(1, &op(0, 1)),
            workload.value(1, &op(0, 2)),
            workload.value(1, &op(1, 1)),
            workload.value(2, &op(0, 1)),
        ];
        values.sort();
        values.dedup();
        assert_eq!(values.len(), 4);
        assert!(values.iter().flatten().all(u8::is_ascii_alphanumeric));
    }

    #[test]
    fn the_same_seed_makes_the_same_load() {
        let operations = || {
            let workload = workload("put=40,get=40,cas=20", false);
            let mut stream = workload.client(0);
            (0..100)
                .map(|_| workload.next(&mut stream))
                .collect::<Vec<_>>()
        };
        assert_eq!(operations(), operations());
        assert!(operations().iter().any(|op| op.kind == Kind::Cas));
        assert!(operations().iter().any(|op| op.sequence == 0));
    }

    #[test]
    fn a_swap_expects_what_was_last_seen() {
        let workload = workload("cas=100", false);
        let mut seen = LastSeen::default();
        let op = workload.next(&mut workload.client(0));
        let expected = |bytes: &Bytes| match Command::parse(bytes).unwrap().op {
            Op::CompareAndSwap { expected, .. } => expected.map(<[u8]>::to_vec),
            _ => panic!("not a swap"),
        };
        assert_eq!(expected(&encoded(&workload, &op, &seen)), None);
        seen.note(op.key, Some(Bytes::from_static(b"old")));
        assert_eq!(
            expected(&encoded(&workload, &op, &seen)),
            Some(b"old".to_vec())
        );
    }

    #[test]
    fn keys_have_names_of_one_length() {
        assert_eq!(key_name(0), "k0000000");
        assert_eq!(key_name(99_999), "k0099999");
        assert_eq!(key_name(123_456_789), "k123456789");
    }
}
