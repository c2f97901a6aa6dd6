//! Batches on their way: what was sent, when, and what has not come back.

use bytes::{Bytes, BytesMut};

use crate::workload::Operation;

/// One operation that was handed over.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) operation: Operation,
    pub(super) due_ns: u64,
    /// When it was first handed over.
    pub(super) sent_ns: u64,
    pub(super) deadline_ns: u64,
    /// It has come to an end.
    pub(super) settled: bool,
}

/// Operations of one client on one group that went out together.
#[derive(Debug)]
pub(super) struct Batch {
    sent: Vec<Sent>,
    ends: Vec<u32>,
    building: BytesMut,
    bytes: Bytes,
    deadline_ns: u64,
    /// All operations were due and sent at one moment: one measurement serves a whole run of them.
    uniform: bool,
    /// How many have not come to an end.
    pub(super) open: u32,
    /// The highest place in the log that was acknowledged when it was sent.
    pub(super) acked_before: u64,
}

impl Batch {
    pub(super) fn new(deadline_ns: u64) -> Self {
        Self {
            sent: Vec::new(),
            ends: Vec::new(),
            building: BytesMut::new(),
            bytes: Bytes::new(),
            deadline_ns,
            uniform: true,
            open: 0,
            acked_before: 0,
        }
    }

    /// Where the command of the next operation is appended, before [`Batch::push`].
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.building
    }

    /// Adds the operation whose command has just been appended.
    pub(super) fn push(&mut self, sent: Sent) {
        let end = u32::try_from(self.building.len()).expect("batches stay far below 4 GiB");
        self.ends.push(end);
        self.deadline_ns = self.deadline_ns.min(sent.deadline_ns);
        let first = self.sent.first().unwrap_or(&sent);
        self.uniform &= sent.due_ns == sent.sent_ns
            && (first.due_ns, first.sent_ns) == (sent.due_ns, sent.sent_ns);
        self.sent.push(sent);
        self.open += 1;
    }

    /// Ends construction. The bytes stay for as long as the batch may have to be sent again.
    pub(super) fn freeze(&mut self) -> Bytes {
        self.bytes = std::mem::take(&mut self.building).freeze();
        self.bytes.clone()
    }

    pub(super) fn len(&self) -> u32 {
        self.sent.len() as u32
    }

    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    pub(super) fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    pub(super) fn is_uniform(&self) -> bool {
        self.uniform
    }

    pub(super) fn sent(&mut self, number: u32) -> &mut Sent {
        &mut self.sent[number as usize]
    }

    pub(super) fn command(&self, number: u32) -> Bytes {
        let from = match number {
            0 => 0,
            later => self.ends[later as usize - 1],
        };
        let to = self.ends[number as usize];
        self.bytes.slice(from as usize..to as usize)
    }

    /// Takes a batch that was not sent apart.
    pub(super) fn into_operations(mut self) -> impl Iterator<Item = (Sent, Bytes)> {
        self.freeze();
        let commands: Vec<Bytes> = (0..self.len()).map(|number| self.command(number)).collect();
        self.sent.into_iter().zip(commands)
    }
}

/// All batches on their way, by token.
#[derive(Debug, Default)]
pub(super) struct Batches {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Place {
    /// Answers to an earlier batch of this place are told apart by it.
    generation: u32,
    batch: Option<(usize, u32, Batch)>,
}

impl Batches {
    pub(super) fn insert(&mut self, client: usize, group: u32, batch: Batch) -> u64 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[number as usize];
        place.generation = place.generation.wrapping_add(1);
        place.batch = Some((client, group, batch));
        u64::from(place.generation) << 32 | u64::from(number)
    }

    pub(super) fn get(&self, token: u64) -> Option<&Batch> {
        let place = self.places.get(token as u32 as usize)?;
        if u64::from(place.generation) != token >> 32 {
            return None;
        }
        place.batch.as_ref().map(|(_, _, batch)| batch)
    }

    /// Takes a batch out, to be put back with [`Batches::restore`] if something of it is still open.
    pub(super) fn take(&mut self, token: u64) -> Option<(usize, u32, Batch)> {
        self.get(token)?;
        self.places[token as u32 as usize].batch.take()
    }

    pub(super) fn restore(&mut self, token: u64, client: usize, group: u32, batch: Batch) {
        let number = token as u32;
        if batch.open == 0 {
            self.free.push(number);
        } else {
            self.places[number as usize].batch = Some((client, group, batch));
        }
    }

    pub(super) fn tokens(&self) -> Vec<u64> {
        let numbered = self.places.iter().enumerate();
        numbered
            .filter(|(_, place)| place.batch.is_some())
            .map(|(number, place)| u64::from(place.generation) << 32 | number as u64)
            .collect()
    }
}
