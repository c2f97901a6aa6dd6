//! What the key-value machine answers, as bytes.
//!
//! ```text
//! 0  status u8   1 done, 2 value, 3 absent, 4 the key has another value, 5 the key is absent (both: nothing
//!                was swapped), 6 too large, 7 malformed
//! 1  value (2, 4) or text (6, 7)
//! ```

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use logdrive_raft::wire::DecodeError;

/// The answer to one command, encoded. One for a write costs no allocation.
#[derive(Clone)]
pub struct KvOutput(Encoded);

/// Replicas that do not lead drop an answer a write: one without a body has nothing to be dropped.
#[derive(Clone)]
enum Encoded {
    Status(&'static [u8; 1]),
    WithBody(Bytes),
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The write was carried out.
    Done,
    /// The value that was asked for.
    Value(&'a [u8]),
    /// The key that was asked for has no value.
    Absent,
    /// Nothing was swapped: the key has this value (`None`: no value).
    Mismatch(Option<&'a [u8]>),
    /// Nothing was written: the value would be larger than the machine holds.
    TooLarge(&'a str),
    /// The command could not be read; nothing was changed.
    Malformed(&'a str),
}

impl KvOutput {
    /// Reads an answer that came back from a replica.
    ///
    /// # Errors
    ///
    /// If the first byte is no status, or a text is not one.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        read(&bytes)?;
        Ok(Self(Encoded::WithBody(bytes)))
    }

    /// What it says.
    #[must_use]
    pub fn reply(&self) -> Reply<'_> {
        read(self.bytes()).expect("checked when it was made")
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Encoded::Status(status) => *status,
            Encoded::WithBody(bytes) => bytes,
        }
    }

    pub(super) fn done() -> Self {
        Self(Encoded::Status(&[DONE]))
    }

    pub(super) fn get(value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => with_body(VALUE, value),
            None => Self(Encoded::Status(&[ABSENT])),
        }
    }

    pub(super) fn mismatch(found: Option<&[u8]>) -> Self {
        match found {
            Some(value) => with_body(OTHER_VALUE, value),
            None => Self(Encoded::Status(&[NO_VALUE])),
        }
    }

    pub(super) fn too_large(bytes: usize, bytes_max: usize) -> Self {
        let text = format!("a value of {bytes} bytes is more than {bytes_max}");
        with_body(TOO_LARGE, text.as_bytes())
    }

    pub(super) fn malformed(error: &DecodeError) -> Self {
        with_body(MALFORMED, error.to_string().as_bytes())
    }
}

impl PartialEq for KvOutput {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for KvOutput {}

impl fmt::Debug for KvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reply().fmt(f)
    }
}

impl From<KvOutput> for Bytes {
    fn from(output: KvOutput) -> Self {
        match output.0 {
            Encoded::Status(status) => Bytes::from_static(status),
            Encoded::WithBody(bytes) => bytes,
        }
    }
}

fn with_body(status: u8, body: &[u8]) -> KvOutput {
    let mut bytes = BytesMut::with_capacity(1 + body.len());
    bytes.put_u8(status);
    bytes.put_slice(body);
    KvOutput(Encoded::WithBody(bytes.freeze()))
}

fn read(bytes: &[u8]) -> Result<Reply<'_>, DecodeError> {
    let Some((&status, body)) = bytes.split_first() else {
        return Err(DecodeError::Short { needed: 1, left: 0 });
    };
    let text = || {
        std::str::from_utf8(body).map_err(|_| DecodeError::Invalid {
            what: "kv output text",
            value: status.into(),
        })
    };
    let reply = match status {
        VALUE => return Ok(Reply::Value(body)),
        OTHER_VALUE => return Ok(Reply::Mismatch(Some(body))),
        TOO_LARGE => return Ok(Reply::TooLarge(text()?)),
        MALFORMED => return Ok(Reply::Malformed(text()?)),
        DONE => Reply::Done,
        ABSENT => Reply::Absent,
        NO_VALUE => Reply::Mismatch(None),
        other => {
            return Err(DecodeError::Invalid {
                what: "kv output",
                value: other.into(),
            });
        }
    };
    if body.is_empty() {
        Ok(reply)
    } else {
        Err(DecodeError::Trailing(body.len()))
    }
}

const DONE: u8 = 1;
const VALUE: u8 = 2;
const ABSENT: u8 = 3;
const OTHER_VALUE: u8 = 4;
const NO_VALUE: u8 = 5;
const TOO_LARGE: u8 = 6;
const MALFORMED: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_have_these_bytes_and_read_back() {
        let cases: [(KvOutput, &[u8], Reply<'_>); 6] = [
            (KvOutput::done(), &[1], Reply::Done),
            (KvOutput::get(Some(b"v")), b"\x02v", Reply::Value(b"v")),
            (KvOutput::get(None), &[3], Reply::Absent),
            (
                KvOutput::mismatch(Some(b"")),
                &[4],
                Reply::Mismatch(Some(b"")),
            ),
            (KvOutput::mismatch(None), &[5], Reply::Mismatch(None)),
            (
                KvOutput::too_large(9, 8),
                b"\x06a value of 9 bytes is more than 8",
                Reply::TooLarge("a value of 9 bytes is more than 8"),
            ),
        ];
        for (output, expected, reply) in cases {
            let bytes = Bytes::from(output);
            assert_eq!(bytes, expected);
            assert_eq!(KvOutput::from_bytes(bytes).unwrap().reply(), reply);
        }
    }

    #[test]
    fn bytes_that_are_no_output_are_refused() {
        for bytes in [&[][..], &[0], &[8], &[1, 0], &[3, 1], &[6, 0xff]] {
            assert!(KvOutput::from_bytes(Bytes::from_static(bytes)).is_err());
        }
    }
}
