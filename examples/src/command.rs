//! What a client asks of a key-value machine, as bytes, and what it hears.
//!
//! ```text
//! 0  op u8             1 get, 2 put, 3 delete, 4 compare-and-swap
//! 1  key_len u16
//! 3  key
//!    expects u8        only compare-and-swap: 0 that the key is absent, 1 the value that follows
//!    expected_len u32  only if it expects a value
//!    expected value    only if it expects a value
//!    new value         put, compare-and-swap: the rest
//! ```
//!
//! Numbers are little endian. Nothing may follow a get or a delete.

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Answer with the value of a key.
    Get {
        /// Which.
        key: &'a [u8],
    },
    /// Give a key this value.
    Put {
        /// Which.
        key: &'a [u8],
        /// Its value from now on.
        value: &'a [u8],
    },
    /// Forget a key.
    Delete {
        /// Which.
        key: &'a [u8],
    },
    /// Give a key a new value if it has the expected one; `None` expects that it is absent.
    CompareAndSwap {
        /// Which.
        key: &'a [u8],
        /// What it must have now.
        expected: Option<&'a [u8]>,
        /// What it gets then.
        new: &'a [u8],
    },
}

/// What a command was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The value of a key, if it has one.
    Value(Option<Vec<u8>>),
    /// It was done.
    Done,
    /// The key had another value, or none, and keeps it.
    NotSwapped,
    /// These bytes are no command. Every replica says so, and nothing has changed.
    Malformed,
}

impl<'a> Command<'a> {
    /// Reads a command that takes up all of `bytes`.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (op, rest) = bytes.split_first()?;
        let (key_len, rest) = rest.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(u16::from_le_bytes(*key_len).into())?;
        match *op {
            GET if rest.is_empty() => Some(Self::Get { key }),
            PUT => Some(Self::Put { key, value: rest }),
            DELETE if rest.is_empty() => Some(Self::Delete { key }),
            COMPARE_AND_SWAP => {
                let (expects, rest) = rest.split_first()?;
                let (expected, new) = match *expects {
                    0 => (None, rest),
                    1 => {
                        let (len, rest) = rest.split_first_chunk()?;
                        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
                        let (expected, new) = rest.split_at_checked(len)?;
                        (Some(expected), new)
                    }
                    _ => return None,
                };
                Some(Self::CompareAndSwap { key, expected, new })
            }
            _ => None,
        }
    }

    /// The payload to propose.
    ///
    /// # Panics
    ///
    /// If the key is longer than [`KEY_BYTES_MAX`], or the expected value than 4 GiB.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (op, key) = match self {
            Self::Get { key } => (GET, key),
            Self::Put { key, .. } => (PUT, key),
            Self::Delete { key } => (DELETE, key),
            Self::CompareAndSwap { key, .. } => (COMPARE_AND_SWAP, key),
        };
        let key_len = u16::try_from(key.len()).expect("keys are at most KEY_BYTES_MAX long");
        let mut bytes = vec![op];
        bytes.extend(key_len.to_le_bytes());
        bytes.extend(*key);
        match self {
            Self::Get { .. } | Self::Delete { .. } => {}
            Self::Put { value, .. } => bytes.extend(*value),
            Self::CompareAndSwap { expected, new, .. } => {
                bytes.push(expected.is_some().into());
                if let Some(expected) = expected {
                    let len = u32::try_from(expected.len()).expect("values are below 4 GiB");
                    bytes.extend(len.to_le_bytes());
                    bytes.extend(*expected);
                }
                bytes.extend(*new);
            }
        }
        bytes
    }
}

const GET: u8 = 1;
const PUT: u8 = 2;
const DELETE: u8 = 3;
const COMPARE_AND_SWAP: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_back_and_a_part_of_one_is_none_or_has_a_shorter_value() {
        let key = &b"key"[..];
        let swap = |expected| Command::CompareAndSwap {
            key,
            expected,
            new: b"new",
        };
        let put = Command::Put {
            key,
            value: b"value",
        };
        for (command, value_len) in [
            (Command::Get { key }, 0),
            (put, 5),
            (Command::Delete { key }, 0),
            (swap(None), 3),
            (swap(Some(b"old")), 3),
        ] {
            let bytes = command.to_bytes();
            assert_eq!(Command::parse(&bytes), Some(command));
            for len in 0..bytes.len() {
                let parsed = Command::parse(&bytes[..len]);
                let whole = bytes.len() - value_len <= len;
                assert_eq!(parsed.is_some(), whole, "{command:?} cut at {len}");
            }
        }
        assert_eq!(Command::parse(&[1, 0, 0, 9]), None);
        assert_eq!(Command::parse(&[9, 0, 0]), None);
    }
}
