//! `logdrive kv`: keys of the key-value machine, from the command line.

use logdrive_raft::wire::Encode;
use logdrive_shard::kv::{Command, KvOutput, Op, Reply};

use crate::args::{Kv, Target};
use crate::connect;
use crate::exit::{Exit, Failure};
use crate::out::Out;

/// Runs the command.
pub(crate) fn run(command: &Kv, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let (key, op, target) = request(command);
    let key_bytes = key.as_bytes();
    let command = Command {
        origin: None,
        key: key_bytes,
        op,
    };
    if key_bytes.len() > logdrive_shard::kv::KEY_BYTES_MAX {
        let max = logdrive_shard::kv::KEY_BYTES_MAX;
        let bytes = key_bytes.len();
        return Err(Failure::usage(format!(
            "a key of {bytes} bytes is more than {max}"
        )));
    }
    let answer = connect::propose(target, &command.to_bytes())?;
    let output = KvOutput::from_bytes(answer).map_err(|error| {
        let text = format!("the answer is none of the key-value machine: {error}");
        Failure::unreachable(text)
    })?;
    answer_of(key, op, &output, out)
}

fn request(command: &Kv) -> (&str, Op<'_>, &Target) {
    match command {
        Kv::Put { key, value, target } => (key, Op::Put(value.as_bytes()), target),
        Kv::Get { key, target } => (key, Op::Get, target),
        Kv::Cas {
            key,
            value,
            expect,
            absent: _,
            target,
        } => {
            let expected = expect.as_ref().map(|value| value.as_bytes());
            let new = value.as_bytes();
            (key, Op::CompareAndSwap { expected, new }, target)
        }
        Kv::Delete { key, target } => (key, Op::Delete, target),
    }
}

/// Values alone on the output, for scripts; everything else is for people.
fn answer_of(key: &str, op: Op<'_>, output: &KvOutput, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let not_so = |text: String| Err(Failure::new(Exit::AssertionFailed, text));
    match output.reply() {
        Reply::Done => {
            if !matches!(op, Op::Get) {
                writeln!(out, "ok")?;
            }
            Ok(Exit::Pass)
        }
        Reply::Value(value) => {
            out.write_all(value)?;
            out.write_all(b"\n")?;
            Ok(Exit::Pass)
        }
        Reply::Absent => not_so(format!("`{key}` has no value")),
        Reply::Mismatch(None) => not_so(format!("not swapped: `{key}` has no value")),
        Reply::Mismatch(Some(value)) => {
            let value = String::from_utf8_lossy(value);
            not_so(format!(
                "not swapped: `{key}` has the value `{}`",
                value.escape_debug()
            ))
        }
        Reply::TooLarge(text) | Reply::Malformed(text) => Err(Failure::usage(text)),
    }
}
