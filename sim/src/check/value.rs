//! What simulated clients write: bytes that say whose they are.
//!
//! ```text
//! 0   client u64
//! 8   sequence u64
//! 16  bytes u32      of this piece, with these 20
//! 20  filler         one byte, over and over, which follows from the client and the sequence
//! ```
//!
//! A put brings one piece or nothing, an append adds one, so a value is a list of pieces and whoever reads it
//! knows which operations made it. Numbers are little endian.

use logdrive_shard::kv::Origin;

use super::history::OperationId;
use super::table::{Fingerprint, Table, mix};

/// The shortest piece that says whose it is.
pub const PIECE_BYTES_MIN: u32 = 20;

/// The bytes that an operation brings along, of about this length: 0 stays 0, and less than a piece needs
/// becomes the shortest piece.
#[must_use]
pub fn piece_bytes(origin: Origin, bytes: u32) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    let bytes = bytes.max(PIECE_BYTES_MIN);
    let mut piece = vec![filler(origin); bytes as usize];
    piece[..8].copy_from_slice(&origin.client.to_le_bytes());
    piece[8..16].copy_from_slice(&origin.sequence.to_le_bytes());
    piece[16..20].copy_from_slice(&bytes.to_le_bytes());
    piece
}

/// The value of a key, as a fingerprint of its pieces. The length is that of the bytes it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    pub(super) fingerprint: Fingerprint,
    /// Of its bytes.
    pub bytes: u32,
    /// How many operations made it.
    pub pieces: u32,
}

impl Value {
    /// A value without a byte. It is not the same as no value.
    pub const EMPTY: Value = Value {
        fingerprint: [0x5851_f42d_4c95_7f2d, 0x1405_7b7e_f767_814f],
        bytes: 0,
        pieces: 0,
    };

    /// This value with a piece of `bytes` at its end. Nothing changes when that is 0.
    #[must_use]
    pub fn with(self, origin: Origin, bytes: u32) -> Value {
        if bytes == 0 {
            return self;
        }
        let words = [origin.client, origin.sequence, u64::from(bytes)];
        self.extended(words, bytes)
    }

    /// This value with bytes at its end that nobody here wrote.
    fn with_unreadable(self, bytes: &[u8]) -> Value {
        let mut hash = [UNREADABLE, UNREADABLE];
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash, u64::from_le_bytes(word));
        }
        self.extended([UNREADABLE, hash[0], hash[1]], bytes.len() as u32)
    }

    fn extended(self, words: [u64; 3], bytes: u32) -> Value {
        Value {
            fingerprint: words.into_iter().fold(self.fingerprint, mix),
            bytes: self.bytes.saturating_add(bytes),
            pieces: self.pieces + 1,
        }
    }
}

/// All values that were named or seen, as a tree: each is a shorter one with a piece more.
///
/// The checks compare fingerprints alone. The tree is there for what a fingerprint cannot tell: who wrote
/// the pieces, and what a value was before the last of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    nodes: Vec<Node>,
    by_fingerprint: Table,
}

/// A value that is not empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// `None`: the empty value.
    pub(super) shorter: Option<u32>,
    /// Who wrote the last piece; `None`: these bytes are not a piece.
    pub(super) writer: Option<Origin>,
    /// Which answer showed it first, alone or as the beginning of a longer one.
    pub(super) observer: Option<OperationId>,
}

impl Values {
    /// The value with these bytes.
    pub(super) fn parse(&mut self, mut bytes: &[u8]) -> Value {
        let mut value = Value::EMPTY;
        while !bytes.is_empty() {
            let (longer, writer, rest) = match split_piece(bytes) {
                Some((origin, len, rest)) => (value.with(origin, len), Some(origin), rest),
                None => (value.with_unreadable(bytes), None, &[][..]),
            };
            self.add(value, longer, writer);
            (value, bytes) = (longer, rest);
        }
        value
    }

    /// The value that is another one and a piece more.
    pub(super) fn extend(&mut self, value: Value, origin: Origin, bytes: u32) -> Value {
        let longer = value.with(origin, bytes);
        if bytes > 0 {
            self.add(value, longer, Some(origin));
        }
        longer
    }

    fn add(&mut self, shorter: Value, value: Value, writer: Option<Origin>) {
        if self.find(value).is_some() {
            return;
        }
        let node = self.nodes.len() as u32;
        self.by_fingerprint.insert(value.fingerprint, node);
        self.nodes.push(Node {
            value,
            shorter: self.find(shorter),
            writer,
            observer: None,
        });
    }

    /// An answer showed this value. Its pieces were seen with it.
    pub(super) fn observe(&mut self, value: Value, observer: OperationId) {
        let mut next = self.find(value);
        while let Some(node) = next {
            let node = &mut self.nodes[node as usize];
            if node.observer.is_some() {
                return;
            }
            node.observer = Some(observer);
            next = node.shorter;
        }
    }

    /// `None` for the empty value, and for what nobody ever named or saw.
    pub(super) fn find(&self, value: Value) -> Option<u32> {
        self.by_fingerprint.get(value.fingerprint)
    }

    pub(super) fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A value and the ones it grew from, the longest first.
    pub(super) fn grown_from(&self, value: Value) -> impl Iterator<Item = &Node> {
        let first = self.find(value).map(|node| self.node(node));
        std::iter::successors(first, |node| node.shorter.map(|node| self.node(node)))
    }
}

/// Whose piece the bytes begin with, how long it is, and what follows.
fn split_piece(bytes: &[u8]) -> Option<(Origin, u32, &[u8])> {
    let (client, rest) = bytes.split_first_chunk()?;
    let (sequence, rest) = rest.split_first_chunk()?;
    let (len, _) = rest.split_first_chunk()?;
    let len = u32::from_le_bytes(*len);
    if len < PIECE_BYTES_MIN || bytes.len() < len as usize {
        return None;
    }
    let origin = Origin {
        client: u64::from_le_bytes(*client),
        sequence: u64::from_le_bytes(*sequence),
    };
    let (piece, rest) = bytes.split_at(len as usize);
    let filler = filler(origin);
    piece[PIECE_BYTES_MIN as usize..]
        .iter()
        .all(|byte| *byte == filler)
        .then_some((origin, len, rest))
}

fn filler(origin: Origin) -> u8 {
    // Neighbours differ, so that bytes of one piece cannot pass for those of the next.
    (origin.client.wrapping_mul(31) ^ origin.sequence.wrapping_mul(7)) as u8
}

const UNREADABLE: u64 = 0x756e_7265_6164_6162;

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Origin = Origin {
        client: 3,
        sequence: 1,
    };
    const OTHER: Origin = Origin {
        client: 3,
        sequence: 2,
    };

    #[test]
    fn bytes_say_who_wrote_them() {
        let mut values = Values::default();
        let bytes = [piece_bytes(ONE, 20), piece_bytes(OTHER, 500)].concat();
        let value = values.parse(&bytes);
        assert_eq!(value, Value::EMPTY.with(ONE, 20).with(OTHER, 500));
        assert_eq!((value.bytes, value.pieces), (520, 2));
        let writers: Vec<_> = values.grown_from(value).map(|node| node.writer).collect();
        assert_eq!(writers, [Some(OTHER), Some(ONE)]);
        assert_eq!(values.parse(&[]), Value::EMPTY);
        assert!(piece_bytes(ONE, 0).is_empty());
        assert_eq!(piece_bytes(ONE, 1).len(), 20);
    }

    #[test]
    fn order_and_length_make_another_value() {
        let value = Value::EMPTY.with(ONE, 20).with(OTHER, 20);
        assert_ne!(value, Value::EMPTY.with(OTHER, 20).with(ONE, 20));
        assert_ne!(value, Value::EMPTY.with(ONE, 20).with(OTHER, 21));
        assert_eq!(value, value.with(ONE, 0));
    }

    #[test]
    fn a_piece_that_lost_a_byte_is_nobodys() {
        let good = piece_bytes(ONE, 64);
        for at in 0..good.len() {
            let mut values = Values::default();
            let whole = values.parse(&good);
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let value = values.parse(&bad);
            assert_ne!(value, whole, "byte {at}");
            let node = values.grown_from(value).next().unwrap();
            assert_ne!(node.writer, Some(ONE), "byte {at}");
            let cut = values.parse(&good[..at]);
            let writer = values.grown_from(cut).next().and_then(|node| node.writer);
            assert_eq!(writer, None, "cut at {at}");
        }
    }
}
