//! What was applied for each client: the replica's half of loadgen's `--verify`.
//!
//! For every (client, sequence) the ledger keeps 8 bytes: a hash of the value and of the place in the log
//! where it was applied. A client that was told "done at (index, slot)" can compute the same 8 bytes, so a
//! lost, altered or moved write shows, on every replica by itself. Five million writes take 41 MB.
//!
//! The hashes lie in small shared chunks. A reader or a snapshot takes references; the machine copies a chunk
//! it has to change while somebody still looks at it. The references lie in many small maps, since one client
//! may have all chunks there are, and no snapshot may wait for them to be counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Write};

use logdrive_raft::Index;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};

use super::COUNT_MAX;
use super::command::Origin;
use super::hash::{self, FastHash};
use super::parts::{Parts, SharedParts};
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
#[derive(Debug)]
pub(super) struct Ledger {
    clients: Parts<Clients, PARTS>,
    chunks: Parts<Chunks, PARTS>,
    chunks_kept: usize,
    chunks_max: usize,
    untracked: u64,
}

/// The ledgers of all clients at one point.
#[derive(Debug)]
pub(super) struct LedgerSnapshot {
    clients: SharedParts<Clients, PARTS>,
    chunks: SharedParts<Chunks, PARTS>,
    chunks_kept: usize,
    untracked: u64,
}

type Clients = HashMap<u64, Client, FastHash>;

/// By client and number.
type Chunks = HashMap<(u64, u64), Arc<Chunk>, FastHash>;

/// A full ledger has 128 chunks in each.
const PARTS: usize = 256;

/// A client without its chunks.
#[derive(Clone, Debug, Default)]
struct Client {
    applied: u64,
    repeats: u64,
    repeated: Vec<u64>,
    order_hash: u64,
    /// Of its chunks.
    numbers: Vec<u64>,
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
}

impl Ledger {
    pub(super) fn new(chunks_max: usize) -> Self {
        Self {
            clients: Parts::default(),
            chunks: Parts::default(),
            chunks_kept: 0,
            chunks_max,
            untracked: 0,
        }
    }

    /// Notes that a command of `origin` was applied. Beyond the bound it only counts.
    pub(super) fn record(&mut self, origin: Origin, hash: u64) {
        let Origin { client, sequence } = origin;
        let (number, place) = chunk_of(sequence);
        let chunks = self.chunks.get_mut(hash_of_chunk(client, number));
        let (chunk, is_new) = match chunks.entry((client, number)) {
            Entry::Occupied(entry) => (entry.into_mut(), false),
            Entry::Vacant(_) if self.chunks_kept == self.chunks_max => {
                self.untracked += 1;
                return;
            }
            Entry::Vacant(entry) => (entry.insert(Chunk::empty()), true),
        };
        let clients = self.clients.get_mut(hash_of_client(client));
        let client = clients.entry(client).or_default();
        if is_new {
            self.chunks_kept += 1;
            client.numbers.push(number);
        }
        client.order_hash = hash::fold(client.order_hash, hash::fold(sequence, hash));
        if chunk.hashes[place] == 0 {
            client.applied += 1;
            Arc::make_mut(chunk).hashes[place] = hash;
        } else {
            // The first application stays: it is the one that an acknowledgement speaks of.
            client.repeats += 1;
            if client.repeated.len() < REPEATED_KEPT_MAX {
                client.repeated.push(sequence);
            }
        }
    }

    /// How many commands were not kept because the ledger was full.
    pub(super) fn untracked(&self) -> u64 {
        self.untracked
    }

    pub(super) fn chunks_max(&self) -> usize {
        self.chunks_max
    }

    pub(super) fn clients(&self) -> Vec<u64> {
        let mut clients: Vec<u64> = self
            .clients
            .iter()
            .flat_map(Clients::keys)
            .copied()
            .collect();
        clients.sort_unstable();
        clients
    }

    pub(super) fn client(&self, client: u64) -> Option<ClientLedger> {
        let found = self.clients.get(hash_of_client(client)).get(&client)?;
        let chunk = |number: &u64| {
            let chunks = self.chunks.get(hash_of_chunk(client, *number));
            (*number, Arc::clone(&chunks[&(client, *number)]))
        };
        Some(ClientLedger {
            applied: found.applied,
            repeats: found.repeats,
            repeated: found.repeated.clone(),
            order_hash: found.order_hash,
            chunks: found.numbers.iter().map(chunk).collect(),
        })
    }

    /// The ledgers as they are now.
    pub(super) fn snapshot(&mut self) -> LedgerSnapshot {
        LedgerSnapshot {
            clients: self.clients.share(),
            chunks: self.chunks.share(),
            chunks_kept: self.chunks_kept,
            untracked: self.untracked,
        }
    }

    pub(super) fn read_from(input: &mut Input<'_>, chunks_max: usize) -> Result<Self, Fatal> {
        let mut ledger = Self::new(chunks_max);
        ledger.untracked = input.at_most("untracked commands", COUNT_MAX)?;
        let chunks = input.at_most("chunks", chunks_max as u64)?;
        let clients = input.at_most("clients", chunks)?;
        for _ in 0..clients {
            let number = input.u64()?;
            let client = ledger.read_client(number, chunks as usize, input)?;
            let clients = ledger.clients.get_mut(hash_of_client(number));
            if clients.insert(number, client).is_some() {
                return Err(Fatal::new(format!("client {number} comes twice")));
            }
        }
        let found = ledger.chunks_kept as u64;
        if found != chunks {
            return Err(Fatal::new(format!(
                "its clients have {found} chunks, and should have {chunks}"
            )));
        }
        Ok(ledger)
    }

    /// Reads a client and puts its chunks where they belong, up to so many of all clients together.
    fn read_client(
        &mut self,
        client: u64,
        chunks_max: usize,
        input: &mut Input<'_>,
    ) -> Result<Client, Fatal> {
        let mut read = Client {
            applied: input.u64()?,
            repeats: input.at_most("repeats", COUNT_MAX)?,
            order_hash: input.u64()?,
            ..Client::default()
        };
        let repeated = u64::from(input.u32()?);
        if repeated != read.repeats.min(REPEATED_KEPT_MAX as u64) {
            return Err(Fatal::new(format!(
                "client {client} has {} repeats, and {repeated} are named",
                read.repeats
            )));
        }
        for _ in 0..repeated {
            read.repeated.push(input.u64()?);
        }
        let mut applied = 0;
        for _ in 0..input.u32()? {
            if self.chunks_kept == chunks_max {
                return Err(Fatal::new(format!(
                    "there are more than {chunks_max} chunks"
                )));
            }
            let number = input.u64()?;
            let mut hashes = [0; CHUNK_SEQUENCES];
            for hash in &mut hashes {
                *hash = input.u64()?;
                applied += u64::from(*hash != 0);
            }
            let chunks = self.chunks.get_mut(hash_of_chunk(client, number));
            let chunk = Arc::new(Chunk { hashes });
            if chunks.insert((client, number), chunk).is_some() {
                return Err(Fatal::new(format!(
                    "chunk {number} of client {client} comes twice"
                )));
            }
            self.chunks_kept += 1;
            read.numbers.push(number);
        }
        if applied != read.applied {
            return Err(Fatal::new(format!(
                "client {client} has {applied} sequences, and should have {}",
                read.applied
            )));
        }
        Ok(read)
    }
}

impl LedgerSnapshot {
    pub(super) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut clients: Vec<(&u64, &Client)> = self.clients.iter().flatten().collect();
        clients.sort_unstable_by_key(|(number, _)| *number);
        write_u64(out, self.untracked)?;
        write_u64(out, self.chunks_kept as u64)?;
        write_u64(out, clients.len() as u64)?;
        for (number, client) in clients {
            self.write_client(*number, client, out)?;
        }
        Ok(())
    }

    fn write_client(&self, client: u64, ledger: &Client, out: &mut impl Write) -> io::Result<()> {
        write_u64(out, client)?;
        write_u64(out, ledger.applied)?;
        write_u64(out, ledger.repeats)?;
        write_u64(out, ledger.order_hash)?;
        out.write_all(&(ledger.repeated.len() as u32).to_le_bytes())?;
        for sequence in &ledger.repeated {
            write_u64(out, *sequence)?;
        }
        let mut numbers = ledger.numbers.clone();
        numbers.sort_unstable();
        out.write_all(&(numbers.len() as u32).to_le_bytes())?;
        for number in numbers {
            write_u64(out, number)?;
            let chunks = self.chunks.get(hash_of_chunk(client, number));
            for hash in &chunks[&(client, number)].hashes {
                write_u64(out, *hash)?;
            }
        }
        Ok(())
    }
}

/// These say in which part something lies.
fn hash_of_client(client: u64) -> u64 {
    hash::fold(client, 0)
}

fn hash_of_chunk(client: u64, number: u64) -> u64 {
    hash::fold(client, number)
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
