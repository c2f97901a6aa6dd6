//! What was applied for each client: the replica's half of loadgen's `--verify`.
//!
//! For every (client, sequence) the ledger keeps 8 bytes: a hash of the value and of the place in the log
//! where it was applied. A client that was told "done at (index, slot)" can compute the same 8 bytes, so a
//! lost, altered or moved write shows, on every replica by itself. Five million writes take 41 MB.
//!
//! The hashes lie in small shared chunks. A reader takes references; the machine copies a chunk it has to
//! change while somebody still looks at it.

use std::collections::HashMap;
use std::io::{self, Write};

use logdrive_raft::Index;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};

use super::COUNT_MAX;
use super::command::Origin;
use super::hash::{self, FastHash};
use super::snapshot::{Input, write_u64};
use crate::machine::Fatal;
use crate::sync::Arc;

/// What the ledger holds for a write of `value` that was applied at this place.
#[must_use]
pub fn applied_hash(value: &[u8], index: Index, slot: u32) -> u64 {
    place_hash(hash::bytes(value), index, slot)
}

/// As [`applied_hash`], for a value whose hash is known.
pub(super) fn place_hash(value_hash: u64, index: Index, slot: u32) -> u64 {
    let hash = hash::fold(value_hash, hash::fold(index.0, u64::from(slot)));
    // 0 stands for "not applied". One value in 2^64 shares its hash with another for that.
    hash.max(1)
}

/// What was applied for one client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLedger {
    /// How many different sequences were applied.
    pub applied: u64,
    /// How many applications were of a sequence that had been applied before.
    pub repeats: u64,
    /// The first few sequences that were applied more than once.
    pub repeated: Vec<u64>,
    /// A hash of everything applied for this client, in order.
    pub order_hash: u64,
    chunks: HashMap<u64, Arc<Chunk>, FastHash>,
}

/// The ledgers of all clients.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    clients: HashMap<u64, ClientLedger, FastHash>,
    chunks: usize,
    chunks_max: usize,
    untracked: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    /// By sequence within the chunk; 0: not applied.
    hashes: [u64; CHUNK_SEQUENCES],
}

impl ClientLedger {
    /// What was applied under this sequence: see [`applied_hash`]. `None`: nothing was.
    #[must_use]
    pub fn get(&self, sequence: u64) -> Option<u64> {
        let (number, place) = chunk_of(sequence);
        let hash = self.chunks.get(&number)?.hashes[place];
        (hash != 0).then_some(hash)
    }

    fn record(&mut self, sequence: u64, hash: u64) {
        let (number, place) = chunk_of(sequence);
        self.order_hash = hash::fold(self.order_hash, hash::fold(sequence, hash));
        let chunk = self.chunks.entry(number).or_insert_with(Chunk::empty);
        if chunk.hashes[place] == 0 {
            self.applied += 1;
            Arc::make_mut(chunk).hashes[place] = hash;
        } else {
            // The first application stays: it is the one that an acknowledgement speaks of.
            self.repeats += 1;
            if self.repeated.len() < REPEATED_KEPT_MAX {
                self.repeated.push(sequence);
            }
        }
    }
}

impl ClientLedger {
    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        write_u64(out, self.applied)?;
        write_u64(out, self.repeats)?;
        write_u64(out, self.order_hash)?;
        out.write_all(&(self.repeated.len() as u32).to_le_bytes())?;
        for sequence in &self.repeated {
            write_u64(out, *sequence)?;
        }
        out.write_all(&(self.chunks.len() as u32).to_le_bytes())?;
        let mut numbers: Vec<u64> = self.chunks.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            write_u64(out, number)?;
            for hash in &self.chunks[&number].hashes {
                write_u64(out, *hash)?;
            }
        }
        Ok(())
    }

    fn read_from(input: &mut Input<'_>, chunks_max: usize) -> Result<Self, Fatal> {
        let mut client = Self {
            applied: input.u64()?,
            repeats: input.at_most("repeats", COUNT_MAX)?,
            order_hash: input.u64()?,
            ..Self::default()
        };
        let repeated = u64::from(input.u32()?);
        if repeated != client.repeats.min(REPEATED_KEPT_MAX as u64) {
            return Err(Fatal::new(format!(
                "a client has repeated {} sequences, and {repeated} are named",
                client.repeats
            )));
        }
        for _ in 0..repeated {
            client.repeated.push(input.u64()?);
        }
        let chunks = input.u32()? as usize;
        if chunks_max < chunks {
            return Err(Fatal::new(format!(
                "a client has {chunks} chunks, and {chunks_max} are left"
            )));
        }
        let mut applied = 0;
        for _ in 0..chunks {
            let number = input.u64()?;
            let mut hashes = [0; CHUNK_SEQUENCES];
            for hash in &mut hashes {
                *hash = input.u64()?;
                applied += u64::from(*hash != 0);
            }
            if client
                .chunks
                .insert(number, Arc::new(Chunk { hashes }))
                .is_some()
            {
                return Err(Fatal::new(format!(
                    "chunk {number} of a client comes twice"
                )));
            }
        }
        if applied != client.applied {
            return Err(Fatal::new(format!(
                "a client has {applied} sequences, and should have {}",
                client.applied
            )));
        }
        Ok(client)
    }
}

impl Ledger {
    pub(super) fn new(chunks_max: usize) -> Self {
        Self {
            clients: HashMap::default(),
            chunks: 0,
            chunks_max,
            untracked: 0,
        }
    }

    /// Notes that a command of `origin` was applied. Beyond the bound it only counts.
    pub(super) fn record(&mut self, origin: Origin, hash: u64) {
        let Origin { client, sequence } = origin;
        let known = self.clients.get_mut(&client);
        if let Some(ledger) = known
            && ledger.chunks.contains_key(&chunk_of(sequence).0)
        {
            ledger.record(sequence, hash);
            return;
        }
        if self.chunks == self.chunks_max {
            self.untracked += 1;
            return;
        }
        self.chunks += 1;
        let ledger = self.clients.entry(client).or_default();
        ledger.record(sequence, hash);
    }

    /// How many commands were not kept because the ledger was full.
    pub(super) fn untracked(&self) -> u64 {
        self.untracked
    }

    pub(super) fn chunks_max(&self) -> usize {
        self.chunks_max
    }

    pub(super) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        write_u64(out, self.untracked)?;
        write_u64(out, self.chunks as u64)?;
        write_u64(out, self.clients.len() as u64)?;
        for client in self.clients() {
            write_u64(out, client)?;
            self.clients[&client].write_to(out)?;
        }
        Ok(())
    }

    pub(super) fn read_from(input: &mut Input<'_>, chunks_max: usize) -> Result<Self, Fatal> {
        let mut ledger = Self::new(chunks_max);
        ledger.untracked = input.at_most("untracked commands", COUNT_MAX)?;
        let chunks = input.at_most("chunks", chunks_max as u64)?;
        let clients = input.at_most("clients", chunks)?;
        for _ in 0..clients {
            let client = input.u64()?;
            let room = chunks as usize - ledger.chunks;
            let read = ClientLedger::read_from(input, room)?;
            ledger.chunks += read.chunks.len();
            if ledger.clients.insert(client, read).is_some() {
                return Err(Fatal::new(format!("client {client} comes twice")));
            }
        }
        if ledger.chunks as u64 != chunks {
            return Err(Fatal::new(format!(
                "its clients have {} chunks, and should have {chunks}",
                ledger.chunks
            )));
        }
        Ok(ledger)
    }

    pub(super) fn clients(&self) -> Vec<u64> {
        let mut clients: Vec<u64> = self.clients.keys().copied().collect();
        clients.sort_unstable();
        clients
    }

    pub(super) fn client(&self, client: u64) -> Option<ClientLedger> {
        self.clients.get(&client).cloned()
    }
}

impl Chunk {
    fn empty() -> Arc<Self> {
        Arc::new(Self {
            hashes: [0; CHUNK_SEQUENCES],
        })
    }
}

fn chunk_of(sequence: u64) -> (u64, usize) {
    let width = CHUNK_SEQUENCES as u64;
    (sequence / width, (sequence % width) as usize)
}

impl Encode for ClientLedger {
    fn encode(&self, out: &mut Writer<'_>) {
        self.applied.encode(out);
        self.repeats.encode(out);
        out.list(&self.repeated);
        self.order_hash.encode(out);
        let mut numbers: Vec<u64> = self.chunks.keys().copied().collect();
        numbers.sort_unstable();
        let chunks: Vec<NumberedChunk> = numbers
            .iter()
            .map(|number| NumberedChunk(*number, self.chunks[number].clone()))
            .collect();
        out.list(&chunks);
    }
}

impl Decode for ClientLedger {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (applied, repeats) = (Decode::decode(input)?, Decode::decode(input)?);
        let repeated = input.list("repeated sequences", REPEATED_KEPT_MAX)?;
        let order_hash = Decode::decode(input)?;
        let mut chunks = HashMap::default();
        // Each is read before room is made for the next: a count alone allocates nothing.
        for _ in 0..u32::decode(input)? {
            let NumberedChunk(number, chunk) = Decode::decode(input)?;
            chunks.insert(number, chunk);
        }
        Ok(Self {
            applied,
            repeats,
            repeated,
            order_hash,
            chunks,
        })
    }
}

struct NumberedChunk(u64, Arc<Chunk>);

impl Encode for NumberedChunk {
    fn encode(&self, out: &mut Writer<'_>) {
        self.0.encode(out);
        for hash in &self.1.hashes {
            hash.encode(out);
        }
    }
}

impl Decode for NumberedChunk {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = Decode::decode(input)?;
        let mut hashes = [0; CHUNK_SEQUENCES];
        for hash in &mut hashes {
            *hash = Decode::decode(input)?;
        }
        Ok(Self(number, Arc::new(Chunk { hashes })))
    }
}

const CHUNK_SEQUENCES: usize = 1024;

const REPEATED_KEPT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(sequence: u64) -> Origin {
        Origin {
            client: 7,
            sequence,
        }
    }

    #[test]
    fn a_ledger_keeps_what_was_applied_and_counts_repeats() {
        let mut ledger = Ledger::new(8);
        ledger.record(origin(0), 11);
        ledger.record(origin(5000), 12);
        ledger.record(origin(0), 13);
        let client = ledger.client(7).unwrap();
        assert_eq!((client.applied, client.repeats), (2, 1));
        assert_eq!(client.repeated, [0]);
        assert_eq!(client.get(0), Some(11));
        assert_eq!(client.get(1), None);
        assert_eq!(client.get(5000), Some(12));
        assert_eq!(client.get(u64::MAX), None);
        assert_eq!(ledger.client(8), None);
    }

    #[test]
    fn order_changes_the_order_hash_alone() {
        let (mut one, mut other) = (Ledger::new(8), Ledger::new(8));
        one.record(origin(1), 21);
        one.record(origin(2), 22);
        other.record(origin(2), 22);
        other.record(origin(1), 21);
        let (one, other) = (one.client(7).unwrap(), other.client(7).unwrap());
        assert_eq!((one.get(1), one.get(2)), (other.get(1), other.get(2)));
        assert_ne!(one.order_hash, other.order_hash);
    }

    #[test]
    fn a_full_ledger_counts_what_it_does_not_keep() {
        let mut ledger = Ledger::new(2);
        for sequence in 0..4 {
            ledger.record(origin(sequence * CHUNK_SEQUENCES as u64), 1);
        }
        assert_eq!(ledger.untracked(), 2);
        assert_eq!(ledger.client(7).unwrap().applied, 2);
    }

    #[test]
    fn what_a_reader_holds_does_not_change_under_it() {
        let mut ledger = Ledger::new(2);
        ledger.record(origin(1), 1);
        let before = ledger.client(7).unwrap();
        ledger.record(origin(2), 2);
        assert_eq!(before.get(2), None);
        assert_eq!(ledger.client(7).unwrap().get(2), Some(2));
    }

    #[test]
    fn a_ledger_travels() {
        let mut ledger = Ledger::new(8);
        for sequence in [3, 3, 900, 2048] {
            ledger.record(origin(sequence), sequence + 1);
        }
        let client = ledger.client(7).unwrap();
        let bytes = client.to_bytes();
        assert_eq!(ClientLedger::from_bytes(&bytes).unwrap(), client);
        for len in 0..bytes.len() {
            assert!(ClientLedger::from_bytes(&bytes[..len]).is_err());
        }
    }
}
