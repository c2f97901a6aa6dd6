//! Every decoder of bytes that come from another machine, in one table.
//!
//! What is not in this table is not decoded. Tests and fuzzers go through it: none may panic, allocate
//! beyond its input, or accept what its encoder would not write.

use logdrive_raft::message::Message;
use logdrive_raft::wire::{Decode, DecodeError};

use crate::hello::Hello;
use crate::protocol::{ClientGreeting, Requests, Responses, ServerGreeting};

/// A decoder and its name.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// What it decodes.
    pub name: &'static str,
    /// Decodes all of the bytes, and forgets what they meant.
    pub decode: fn(&[u8]) -> Result<(), DecodeError>,
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder::of::<Hello>("hello"),
    Decoder::of::<Message>("message"),
    Decoder::of::<ClientGreeting>("client greeting"),
    Decoder::of::<ServerGreeting>("server greeting"),
    Decoder::of::<Requests>("requests"),
    Decoder::of::<Responses>("responses"),
];

impl Decoder {
    const fn of<T: Decode>(name: &'static str) -> Self {
        Self {
            name,
            decode: |bytes| T::from_bytes(bytes).map(drop),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn no_decoder_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            for decoder in DECODERS {
                let _ = (decoder.decode)(&bytes);
            }
        }
    }
}
