//! The memory of a ring: buffers of a few sizes that the kernel knows, and others when those are lent out.

use crate::disk::{BLOCK_BYTES, Buffer, BufferPool};

/// How many buffers of how many blocks are registered. The sizes have room for the header, table and stamps
/// of a flush group around 16 KiB, 64 KiB, 256 KiB and 1 MiB of frames.
const CLASSES: [(usize, usize); 4] = [(16, 6), (16, 20), (12, 72), (12, 288)];

/// The same for a process that may lock little memory.
const SMALL_CLASSES: [(usize, usize); 3] = [(8, 6), (8, 20), (8, 72)];

/// Registered buffers, by size and then as they come, and a pool for what does not fit.
#[derive(Debug)]
pub(super) struct Pool {
    /// Those that are not lent out.
    registered: Vec<Buffer>,
    registered_bytes: usize,
    others: BufferPool,
}

impl Pool {
    /// Registers as much memory with `register` as may be locked; less is noted in `fallbacks`.
    pub(super) fn new(
        mut register: impl FnMut(&mut [Buffer]) -> std::io::Result<()>,
        fallbacks: &mut Vec<String>,
    ) -> Self {
        let mut registered = Vec::new();
        let mut refused = None;
        for classes in [&CLASSES[..], &SMALL_CLASSES] {
            let mut buffers = buffers_of(classes);
            match register(&mut buffers) {
                Ok(()) => {
                    registered = buffers;
                    break;
                }
                Err(error) => refused = Some(error),
            }
        }
        let registered_bytes = registered
            .iter()
            .map(|buffer| buffer.capacity_blocks() * BLOCK_BYTES)
            .sum();
        if let Some(error) = refused {
            fallbacks.push(format!(
                "{} KiB of memory registered with io_uring, for more is refused (memlock limit): {error}",
                registered_bytes / 1024
            ));
        }
        Self {
            registered,
            registered_bytes,
            others: BufferPool::default(),
        }
    }

    pub(super) fn take(&mut self, blocks: usize) -> Buffer {
        let fitting = self
            .registered
            .iter()
            .enumerate()
            .filter(|(_, buffer)| buffer.capacity_blocks() >= blocks)
            .min_by_key(|(_, buffer)| buffer.capacity_blocks())
            .map(|(place, _)| place);
        match fitting {
            Some(place) => {
                let mut buffer = self.registered.swap_remove(place);
                buffer.set_used(blocks);
                buffer
            }
            None => self.others.take(blocks),
        }
    }

    /// Memory of all buffers, lent out or not.
    pub(super) fn bytes(&self) -> usize {
        self.registered_bytes + self.others.bytes()
    }

    pub(super) fn give(&mut self, buffer: Buffer) {
        if buffer.registered().is_some() {
            self.registered.push(buffer);
        } else if buffer.capacity_blocks() > 0 {
            self.others.give(buffer);
        }
    }
}

fn buffers_of(classes: &[(usize, usize)]) -> Vec<Buffer> {
    let sizes = classes
        .iter()
        .flat_map(|(count, blocks)| std::iter::repeat_n(*blocks, *count));
    (0..)
        .zip(sizes)
        .map(|(number, blocks)| Buffer::with_blocks(blocks).registered_as(number))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_may_not_be_locked_is_done_without() {
        let (mut fallbacks, mut tries) = (Vec::new(), 0);
        let refuse_first = |_: &mut [Buffer]| {
            tries += 1;
            if tries == 1 {
                Err(io::ErrorKind::OutOfMemory.into())
            } else {
                Ok(())
            }
        };
        let mut pool = Pool::new(refuse_first, &mut fallbacks);
        assert_eq!(fallbacks.len(), 1);
        assert!(fallbacks[0].starts_with("3136 KiB"), "{fallbacks:?}");
        assert!(pool.take(72).registered().is_some());
        assert!(pool.take(73).registered().is_none());

        let refuse = |_: &mut [Buffer]| Err(io::ErrorKind::OutOfMemory.into());
        let mut pool = Pool::new(refuse, &mut fallbacks);
        assert_eq!(fallbacks.len(), 2);
        assert!(pool.take(1).registered().is_none());
    }

    #[test]
    fn a_registered_buffer_is_lent_once_at_a_time() {
        let mut pool = Pool::new(|_| Ok(()), &mut Vec::new());
        let all: usize = CLASSES.iter().map(|(count, _)| count).sum();
        let mut lent: Vec<Buffer> = (0..all).map(|_| pool.take(1)).collect();
        let mut numbers: Vec<_> = lent.iter().map(|b| b.registered().unwrap()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
        assert!(pool.take(1).registered().is_none());
        pool.give(lent.pop().unwrap());
        assert!(pool.take(1).registered().is_some());
    }
}
