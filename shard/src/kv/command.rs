//! What a client asks of the key-value machine, as bytes.
//!
//! ```text
//! 0  form u8          high half: format version (1); low half: 1 get, 2 put, 3 delete, 4 compare-and-swap,
//!                     5 append
//! 1  flags u8         1: client and sequence follow; 2: compare-and-swap names the value it expects
//! 2  key_len u16
//! 4  client u64       only with flag 1
//!    sequence u64     only with flag 1
//!    expected_len u32 only with flag 2
//!    key
//!    expected value   only with flag 2
//!    new value        put, compare-and-swap, append: the rest
//! ```
//!
//! Numbers are little endian. Nothing may follow a get or a delete.

use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// The newest command format this build writes and reads.
pub const COMMAND_VERSION: u8 = 1;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Whose it is, for the verify ledger.
    pub origin: Option<Origin>,
    /// Which key it is about.
    pub key: &'a [u8],
    /// What to do with it.
    pub op: Op<'a>,
}

/// Which client sent a command, and which of its commands it is. Kept in the verify ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The client.
    pub client: u64,
    /// The number of the command, counted by its client without gaps.
    pub sequence: u64,
}

/// What to do with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Answer with its value.
    Get,
    /// Give it this value.
    Put(&'a [u8]),
    /// Forget it.
    Delete,
    /// Give it the new value if it has the expected one; `None` expects that it is absent.
    CompareAndSwap {
        /// What it must have now.
        expected: Option<&'a [u8]>,
        /// What it gets then.
        new: &'a [u8],
    },
    /// Add this to the end of its value. An absent value counts as an empty one.
    Append(&'a [u8]),
}

impl<'a> Op<'a> {
    /// The bytes that the command brings along: the new value, or what is appended.
    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        match self {
            Op::Get | Op::Delete => &[],
            Op::Put(value) | Op::Append(value) => value,
            Op::CompareAndSwap { new, .. } => new,
        }
    }

    fn form(&self) -> u8 {
        let op = match self {
            Op::Get => GET,
            Op::Put(_) => PUT,
            Op::Delete => DELETE,
            Op::CompareAndSwap { .. } => COMPARE_AND_SWAP,
            Op::Append(_) => APPEND,
        };
        COMMAND_VERSION << 4 | op
    }
}

impl<'a> Command<'a> {
    /// Reads a command that takes up all of `bytes`. Copies nothing.
    ///
    /// # Errors
    ///
    /// Says which field is wrong. Nothing in `bytes` can make it panic or allocate.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let form = u8::decode(&mut input)?;
        let version = form >> 4;
        if version != COMMAND_VERSION {
            return Err(DecodeError::Version {
                what: "kv command",
                found: version.into(),
                known: COMMAND_VERSION.into(),
            });
        }
        let op = form & 0x0f;
        let flags = u8::decode(&mut input)?;
        let known = if op == COMPARE_AND_SWAP {
            HAS_ORIGIN | HAS_EXPECTED
        } else {
            HAS_ORIGIN
        };
        if flags & !known != 0 {
            return Err(DecodeError::Invalid {
                what: "kv command flags",
                value: flags.into(),
            });
        }
        let key_len = u16::decode(&mut input)?;
        let origin = if flags & HAS_ORIGIN == 0 {
            None
        } else {
            Some(Origin {
                client: Decode::decode(&mut input)?,
                sequence: Decode::decode(&mut input)?,
            })
        };
        let expected_len = if flags & HAS_EXPECTED == 0 {
            None
        } else {
            Some(u32::decode(&mut input)? as usize)
        };
        let key = input.raw(usize::from(key_len))?;
        let expected = expected_len.map(|len| input.raw(len)).transpose()?;
        let op = match op {
            GET => Op::Get,
            PUT => Op::Put(input.raw(input.left())?),
            DELETE => Op::Delete,
            COMPARE_AND_SWAP => Op::CompareAndSwap {
                expected,
                new: input.raw(input.left())?,
            },
            APPEND => Op::Append(input.raw(input.left())?),
            other => {
                return Err(DecodeError::Invalid {
                    what: "kv command",
                    value: other.into(),
                });
            }
        };
        input.finish()?;
        Ok(Self { origin, key, op })
    }
}

impl Encode for Command<'_> {
    /// # Panics
    ///
    /// If the key is longer than [`KEY_BYTES_MAX`].
    fn encode(&self, out: &mut Writer<'_>) {
        let key_len = u16::try_from(self.key.len()).expect("keys are at most KEY_BYTES_MAX long");
        let expected = match self.op {
            Op::CompareAndSwap { expected, .. } => expected,
            _ => None,
        };
        let mut flags = 0;
        if self.origin.is_some() {
            flags |= HAS_ORIGIN;
        }
        if expected.is_some() {
            flags |= HAS_EXPECTED;
        }
        self.op.form().encode(out);
        flags.encode(out);
        key_len.encode(out);
        if let Some(Origin { client, sequence }) = self.origin {
            client.encode(out);
            sequence.encode(out);
        }
        if let Some(expected) = expected {
            let len = u32::try_from(expected.len()).expect("limits keep values below 4 GiB");
            len.encode(out);
        }
        out.raw(self.key);
        out.raw(expected.unwrap_or_default());
        out.raw(self.op.value());
    }
}

const GET: u8 = 1;
const PUT: u8 = 2;
const DELETE: u8 = 3;
const COMPARE_AND_SWAP: u8 = 4;
const APPEND: u8 = 5;

const HAS_ORIGIN: u8 = 1;
const HAS_EXPECTED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Option<Origin> = Some(Origin {
        client: 3,
        sequence: 0x0102,
    });

    fn commands() -> Vec<(Command<'static>, &'static str)> {
        let command = |origin, op| Command {
            origin,
            key: b"key",
            op,
        };
        let swap = |expected| Op::CompareAndSwap {
            expected,
            new: b"new",
        };
        vec![
            (command(None, Op::Get), "11000300 6b6579"),
            (
                command(ORIGIN, Op::Put(b"value")),
                "12010300 0300000000000000 0201000000000000 6b6579 76616c7565",
            ),
            (
                command(ORIGIN, Op::Delete),
                "13010300 0300000000000000 0201000000000000 6b6579",
            ),
            (command(None, swap(None)), "14000300 6b6579 6e6577"),
            (
                command(ORIGIN, swap(Some(b"old"))),
                "14030300 0300000000000000 0201000000000000 03000000 6b6579 6f6c64 6e6577",
            ),
            (command(None, Op::Append(b"+")), "15000300 6b6579 2b"),
        ]
    }

    #[test]
    fn commands_have_these_bytes_and_read_back() {
        for (command, expected) in commands() {
            let bytes = command.to_bytes();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected.replace(' ', ""), "{command:?}");
            assert_eq!(Command::parse(&bytes), Ok(command));
        }
    }

    #[test]
    fn a_command_cut_anywhere_is_an_error_or_a_shorter_value() {
        for (command, _) in commands() {
            let bytes = command.to_bytes();
            let fixed = bytes.len() - command.op.value().len();
            for len in 0..bytes.len() {
                assert_eq!(
                    Command::parse(&bytes[..len]).is_ok(),
                    len >= fixed,
                    "{command:?} cut at {len}"
                );
            }
        }
    }

    #[test]
    fn what_this_build_does_not_know_is_refused_by_name() {
        let error = |bytes: &[u8]| Command::parse(bytes).unwrap_err().to_string();
        assert_eq!(
            error(&[0x21, 0, 0, 0]),
            "kv command has format version 2, this build reads up to 1: upgrade logdrive"
        );
        assert_eq!(error(&[0x17, 0, 0, 0]), "kv command cannot be 0x7");
        assert_eq!(error(&[0x11, 4, 0, 0]), "kv command flags cannot be 0x4");
        assert_eq!(
            error(&[0x12, 2, 0, 0, 0, 0, 0, 0]),
            "kv command flags cannot be 0x2"
        );
        assert_eq!(error(&[0x11, 0, 0, 0, 9]), "1 bytes too many");
        assert_eq!(error(&[0x11, 0, 9, 0, 9]), "9 bytes needed, 1 left");
    }
}
