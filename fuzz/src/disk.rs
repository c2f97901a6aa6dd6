//! A disk in memory that does at once what it is told, and remembers what it held before.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use logdrive_wal::disk::{
    BLOCK_BYTES, Block, Buffer, Completion, Disk, DiskError, DiskFacts, FlushMode, Op, OpId,
    SlotFile, SlotId, Wake, WakeBy,
};

/// What slot files hold.
pub(crate) type Slots = BTreeMap<SlotId, Vec<Block>>;

#[derive(Debug, Default)]
pub(crate) struct MemoryDisk {
    pub(crate) slots: Slots,
    /// What each block held before it was last written.
    pub(crate) before: BTreeMap<(SlotId, usize), Block>,
    done: Vec<Completion>,
}

impl MemoryDisk {
    pub(crate) fn new(slots: Slots) -> Self {
        Self {
            slots,
            ..Self::default()
        }
    }

    fn slot(&mut self, slot: SlotId) -> io::Result<&mut Vec<Block>> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        self.slots.get_mut(&slot).ok_or_else(missing)
    }

    fn read_at(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> io::Result<u64> {
        let blocks = self.slot(slot)?.iter().skip(block as usize);
        let read = into.iter_mut().zip(blocks).map(|(to, from)| *to = *from);
        Ok((read.count() * BLOCK_BYTES) as u64)
    }

    fn write_at(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> io::Result<u64> {
        let at = block as usize;
        let file = self.slot(slot)?;
        if file.len() < at + blocks.len() {
            file.resize(at + blocks.len(), Block::ZERO);
        }
        let old: Vec<Block> = file[at..][..blocks.len()].to_vec();
        file[at..][..blocks.len()].copy_from_slice(blocks);
        for (place, block) in (at..).zip(old) {
            self.before.insert((slot, place), block);
        }
        Ok((blocks.len() * BLOCK_BYTES) as u64)
    }

    fn make(&mut self, slot: SlotId, blocks: u32) -> io::Result<u64> {
        if self.slots.contains_key(&slot) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.slots.insert(slot, vec![Block::ZERO; blocks as usize]);
        Ok(0)
    }

    fn error(&self, what: &'static str, slot: SlotId, source: io::Error) -> DiskError {
        DiskError::io(what, self.slot_path(slot), source)
    }
}

impl Disk for MemoryDisk {
    fn facts(&self) -> DiskFacts {
        DiskFacts {
            backend: "memory",
            direct: true,
            flush_mode: Some(FlushMode::Dsync),
            sizing: None,
            fallbacks: Vec::new(),
            buffers_bytes: 0,
        }
    }

    fn slot_path(&self, slot: SlotId) -> PathBuf {
        slot.file_name().into()
    }

    fn lock(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn slots(&mut self) -> Result<Vec<SlotFile>, DiskError> {
        let files = self.slots.iter().map(|(slot, blocks)| SlotFile {
            slot: *slot,
            blocks: u32::try_from(blocks.len()).expect("slots are small"),
        });
        Ok(files.collect())
    }

    fn sync_all(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn create(&mut self, slot: SlotId, blocks: u32) -> Result<(), DiskError> {
        let made = self.make(slot, blocks);
        made.map(drop)
            .map_err(|error| self.error("create", slot, error))
    }

    fn read(&mut self, slot: SlotId, block: u32, into: &mut [Block]) -> Result<(), DiskError> {
        match self.read_at(slot, block, into) {
            Ok(bytes) if bytes == (into.len() * BLOCK_BYTES) as u64 => Ok(()),
            Ok(_) => Err(self.error("read", slot, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.error("read", slot, error)),
        }
    }

    fn write(&mut self, slot: SlotId, block: u32, blocks: &[Block]) -> Result<(), DiskError> {
        let written = self.write_at(slot, block, blocks);
        written
            .map(drop)
            .map_err(|error| self.error("write", slot, error))
    }

    fn flush(&mut self, _: SlotId) -> Result<(), DiskError> {
        Ok(())
    }

    fn take_buffer(&mut self, blocks: usize) -> Buffer {
        Buffer::with_blocks(blocks)
    }

    fn give_buffer(&mut self, _: Buffer) {}

    fn submit(&mut self, id: OpId, op: Op) {
        let (result, buffer) = match op {
            Op::Write {
                slot,
                block,
                buffer,
                dsync: _,
            } => (self.write_at(slot, block, buffer.blocks()), Some(buffer)),
            Op::Read {
                slot,
                block,
                mut buffer,
            } => (self.read_at(slot, block, buffer.blocks_mut()), Some(buffer)),
            Op::Flush { slot: _ } => (Ok(0), None),
            Op::Create { slot, blocks: _ } => (self.make(slot, 0), None),
            Op::Zero {
                slot,
                block,
                blocks,
            } => {
                let zeros = vec![Block::ZERO; blocks as usize];
                (self.write_at(slot, block, &zeros), None)
            }
        };
        self.done.push(Completion { id, result, buffer });
    }

    fn kick(&mut self) {}

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wait(&mut self, done: &mut Vec<Completion>) {
        self.poll(done);
    }

    fn wake_by(&mut self, _: Wake) -> WakeBy {
        WakeBy::Owner
    }

    fn now_ns(&self) -> u64 {
        0
    }
}
