//! Puts a flush group into a disk buffer: one copy from each frame, a stamp at the end of every block.

use bytes::BytesMut;

use crate::disk::Block;
use crate::format::{BLOCK_DATA_BYTES, Stamper};

/// How many blocks so many bytes of data take.
pub(crate) fn blocks_for(data_bytes: usize) -> u32 {
    u32::try_from(data_bytes.div_ceil(BLOCK_DATA_BYTES)).expect("groups are smaller than slots")
}

/// Writes data into the data parts of consecutive blocks, and stamps each as it becomes full.
#[derive(Debug)]
pub(crate) struct BlockWriter<'a> {
    blocks: &'a mut [Block],
    stamper: &'a Stamper,
    /// The number of the first block.
    number: u32,
    block: usize,
    byte: usize,
}

impl<'a> BlockWriter<'a> {
    pub(crate) fn new(blocks: &'a mut [Block], stamper: &'a Stamper, number: u32) -> Self {
        Self {
            blocks,
            stamper,
            number,
            block: 0,
            byte: 0,
        }
    }

    /// How many bytes of data have been written.
    pub(crate) fn offset(&self) -> usize {
        self.block * BLOCK_DATA_BYTES + self.byte
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK_DATA_BYTES - self.byte;
            let (piece, rest) = bytes.split_at(bytes.len().min(room));
            let target = &mut self.blocks[self.block].0[self.byte..];
            target[..piece.len()].copy_from_slice(piece);
            self.byte += piece.len();
            bytes = rest;
            if self.byte == BLOCK_DATA_BYTES {
                self.stamp();
            }
        }
    }

    /// Fills the last block with zeros. All blocks have been written then.
    pub(crate) fn finish(mut self) {
        if self.byte > 0 {
            self.blocks[self.block].0[self.byte..BLOCK_DATA_BYTES].fill(0);
            self.stamp();
        }
        assert!(self.block == self.blocks.len());
    }

    fn stamp(&mut self) {
        let number = self.number + u32::try_from(self.block).expect("bounded by the slot");
        let block = &mut self.blocks[self.block];
        self.stamper.stamp(block, number, self.block == 0);
        self.block += 1;
        self.byte = 0;
    }
}

/// Copies `bytes` of data out of consecutive blocks, from a byte of the first one on.
pub(crate) fn gather(blocks: &[Block], from: usize, bytes: usize) -> BytesMut {
    let mut gathered = BytesMut::with_capacity(bytes);
    let mut at = from;
    for block in blocks {
        let piece = (bytes - gathered.len()).min(BLOCK_DATA_BYTES - at);
        gathered.extend_from_slice(&block.0[at..at + piece]);
        at = 0;
        if gathered.len() == bytes {
            break;
        }
    }
    assert!(gathered.len() == bytes);
    gathered
}
