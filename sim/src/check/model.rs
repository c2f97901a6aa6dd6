//! What the key-value machine must do with one key, written again from its description.
//!
//! It shares no code with the machine, so that a mistake there is not repeated here.

use super::history::{Answer, Call, Operation};
use super::value::Value;

/// What one operation makes of a key, and what it is told.
pub(super) fn apply(
    held: Option<Value>,
    operation: &Operation,
    value_bytes_max: u32,
) -> (Option<Value>, Answer) {
    let Operation { origin, bytes, .. } = *operation;
    let brought = Value::EMPTY.with(origin, bytes);
    match operation.call {
        Call::Get => (held, held.map_or(Answer::Absent, Answer::Value)),
        Call::Put => (Some(brought), Answer::Done),
        Call::Delete => (None, Answer::Done),
        Call::Append => {
            let before = held.unwrap_or(Value::EMPTY);
            if u64::from(before.bytes) + u64::from(bytes) > u64::from(value_bytes_max) {
                (held, Answer::TooLarge)
            } else {
                (Some(before.with(origin, bytes)), Answer::Done)
            }
        }
        Call::Cas { expected } if expected == held => (Some(brought), Answer::Done),
        Call::Cas { .. } => (held, Answer::Mismatch(held)),
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use logdrive_raft::wire::Encode;
    use logdrive_raft::{GroupId, Index};
    use logdrive_shard::kv::{Command, Kv, Op, Origin};

    use super::*;
    use crate::check::history::{History, Place};
    use crate::check::value::piece_bytes;

    /// The only place where the two meet: they must agree on every command, whatever came before.
    #[test]
    fn the_machine_and_its_description_agree() {
        let mut random = Rng::with_seed(0x6d6f_6465);
        let mut kv = Kv::default();
        let max = logdrive_shard::kv::VALUE_BYTES_MAX as u32;
        let mut history = History::new(max);
        let mut held: Option<Value> = None;
        let mut bytes_held: Option<Vec<u8>> = None;
        let mut kinds = [0; 6];
        for sequence in 1..=3_000 {
            let origin = Origin {
                client: 1,
                sequence,
            };
            // A quarter of the limit makes appends meet it now and then.
            let length = *random.choice(&[0, 20, 20, 77, max / 4]).unwrap();
            let value = piece_bytes(origin, length);
            let expected = match random.u32(..4) {
                0 => None,
                1 => Some(piece_bytes(origin, 20)),
                _ => bytes_held.clone(),
            };
            let op = match random.u32(..6) {
                0 => Op::Get,
                1 if random.bool() => Op::Delete,
                2 if random.u32(..4) == 0 => Op::Put(&value),
                3 => Op::CompareAndSwap {
                    expected: expected.as_deref(),
                    new: &value,
                },
                _ => Op::Append(&value),
            };
            let command = Command {
                origin: Some(origin),
                key: b"k",
                op,
            };
            let mut outputs = Vec::new();
            let index = Index(sequence);
            kv.apply_entry(index, [(0, &command.to_bytes()[..])], &mut outputs);
            let id = history.invoke(sequence, GroupId(1), 0, origin, op);
            let place = Place { index, slot: 0 };
            history.replied(sequence, id, outputs[0].reply(), place);
            let operation = history.operation(id);
            let (after, answer) = apply(held, operation, max);
            assert_eq!(operation.answer(), Some(answer), "{}", history.describe(id));
            held = after;
            bytes_held = kv.reader().get(b"k");
            assert_eq!(
                held.map(|value| value.bytes as usize),
                bytes_held.as_ref().map(Vec::len)
            );
            kinds[match answer {
                Answer::Done => 0,
                Answer::Value(_) => 1,
                Answer::Absent => 2,
                Answer::Mismatch(Some(_)) => 3,
                Answer::Mismatch(None) => 4,
                Answer::TooLarge | Answer::Malformed => 5,
            }] += 1;
        }
        assert!(kinds.iter().all(|count| *count > 5), "{kinds:?}");
    }
}
