//! On real files, and on real rings where the machine has them.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tempfile::TempDir;

use super::UringDisk;
use crate::disk::{
    BLOCK_BYTES, Block, Buffer, Completion, Disk, DiskError, LOCK_FILE, Op, OpId, SlotFile, SlotId,
    WakeBy, ZERO_BLOCKS_MAX,
};

const SLOT: SlotId = SlotId(3);

fn directory() -> TempDir {
    tempfile::tempdir_in(".").unwrap()
}

/// `None` where rings are forbidden or too old. What happens then is a test of the choice.
fn opened(directory: &Path) -> Option<UringDisk> {
    let mut disk = match UringDisk::new(directory) {
        Ok(disk) => disk,
        Err(error) => {
            let errno = Errno::from_io_error(&error);
            assert!(
                matches!(
                    errno,
                    Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL)
                ),
                "{error}"
            );
            return None;
        }
    };
    disk.lock().unwrap();
    disk.slots().unwrap();
    Some(disk)
}

/// A disk with one slot of so many blocks.
fn with_slot(directory: &Path, blocks: u32) -> Option<UringDisk> {
    let mut disk = opened(directory)?;
    disk.create(SLOT, blocks).unwrap();
    Some(disk)
}

fn write(disk: &mut UringDisk, id: u64, block: u32, blocks: usize, byte: u8, dsync: bool) {
    let mut buffer = disk.take_buffer(blocks);
    buffer.blocks_mut().fill(Block([byte; BLOCK_BYTES]));
    disk.submit(
        OpId(id),
        Op::Write {
            slot: SLOT,
            block,
            buffer,
            dsync,
        },
    );
}

fn read(disk: &mut UringDisk, id: u64, block: u32, blocks: usize) {
    let buffer = disk.take_buffer(blocks);
    let slot = SLOT;
    disk.submit(
        OpId(id),
        Op::Read {
            slot,
            block,
            buffer,
        },
    );
}

/// Takes so many completions, in the order of their ids.
fn finish(disk: &mut UringDisk, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    while done.len() < count {
        let before = done.len();
        disk.wait(&mut done);
        assert!(before < done.len(), "idle after {before} of {count}");
    }
    assert_eq!(done.len(), count);
    done.sort_by_key(|completion| completion.id);
    done
}

fn bytes(completion: &Completion) -> u64 {
    *completion.result.as_ref().unwrap()
}

fn all(buffer: &Buffer, byte: u8) -> bool {
    buffer
        .blocks()
        .iter()
        .all(|block| block.0.iter().all(|b| *b == byte))
}

#[test]
fn what_was_written_is_read_back_in_either_mode_and_any_size() {
    let directory = directory();
    let Some(mut disk) = with_slot(directory.path(), 512) else {
        return;
    };
    // The last one is larger than any registered buffer.
    for (blocks, byte) in [(1, 1), (6, 2), (7, 3), (72, 4), (288, 5), (400, 6)] {
        for dsync in [true, false] {
            let byte = byte * 2 + u8::from(dsync);
            write(&mut disk, 1, 9, blocks, byte, dsync);
            let mut done = finish(&mut disk, 1);
            assert_eq!(bytes(&done[0]), (blocks * BLOCK_BYTES) as u64);
            disk.give_buffer(done.remove(0).buffer.unwrap());
            if !dsync {
                disk.submit(OpId(2), Op::Flush { slot: SLOT });
                assert_eq!(bytes(&finish(&mut disk, 1)[0]), 0);
            }
            read(&mut disk, 3, 9, blocks);
            let mut done = finish(&mut disk, 1);
            let buffer = done.remove(0).buffer.unwrap();
            assert_eq!(buffer.blocks().len(), blocks);
            assert!(all(&buffer, byte));
            disk.give_buffer(buffer);
        }
    }
    let facts = disk.facts();
    assert_eq!(facts.backend, "io_uring");
    assert!(facts.direct || !facts.fallbacks.is_empty());
    drop(disk);

    let mut disk = opened(directory.path()).unwrap();
    let mut blocks = [Block::ZERO; 402];
    disk.read(SLOT, 8, &mut blocks).unwrap();
    let edges = [blocks[0], blocks[1], blocks[400], blocks[401]].map(|block| block.0[7]);
    assert_eq!(edges, [0, 12, 12, 0]);
}

#[test]
fn the_blocking_calls_see_what_the_ring_wrote_and_the_reverse() {
    let directory = directory();
    let Some(mut disk) = with_slot(directory.path(), 8) else {
        return;
    };
    disk.write(SLOT, 2, &[Block([9; BLOCK_BYTES])]).unwrap();
    disk.flush(SLOT).unwrap();
    disk.sync_all().unwrap();
    read(&mut disk, 1, 2, 1);
    assert!(all(finish(&mut disk, 1)[0].buffer.as_ref().unwrap(), 9));
    // Beyond the end there is nothing to read: less comes back, and it is the caller's to judge.
    read(&mut disk, 2, 7, 2);
    assert_eq!(bytes(&finish(&mut disk, 1)[0]), BLOCK_BYTES as u64);
    let error = disk.read(SLOT, 7, &mut [Block::ZERO; 2]).unwrap_err();
    assert!(
        matches!(error, DiskError::Io { what: "read", .. }),
        "{error}"
    );
}

#[test]
fn more_operations_than_the_ring_has_room_for_all_complete_once() {
    let directory = directory();
    let Some(mut disk) = with_slot(directory.path(), 512) else {
        return;
    };
    for block in 0..512 {
        let byte = u8::try_from(block % 251).unwrap();
        write(&mut disk, u64::from(block), block, 1, byte, false);
    }
    let done = finish(&mut disk, 512);
    assert!(
        done.iter()
            .all(|completion| bytes(completion) == BLOCK_BYTES as u64)
    );
    let ids: BTreeSet<u64> = done.iter().map(|completion| completion.id.0).collect();
    assert_eq!(ids.len(), 512);
    for completion in done {
        disk.give_buffer(completion.buffer.unwrap());
    }
    // Reads, flushes and writes elsewhere mixed: each comes back with its own memory.
    for block in 0..255 {
        read(&mut disk, u64::from(block) * 2, block, 1);
        disk.submit(OpId(u64::from(block) * 2 + 1), Op::Flush { slot: SLOT });
    }
    for completion in finish(&mut disk, 510) {
        if let Some(buffer) = completion.buffer {
            assert!(all(
                &buffer,
                u8::try_from(completion.id.0 / 2 % 251).unwrap()
            ));
        } else {
            assert_eq!(bytes(&completion), 0);
        }
    }
}

#[test]
fn a_file_made_in_the_background_is_written_all_over() {
    let directory = directory();
    let Some(mut disk) = opened(directory.path()) else {
        return;
    };
    let (slot, blocks) = (SLOT, 4 * ZERO_BLOCKS_MAX);
    disk.submit(OpId(1), Op::Create { slot, blocks });
    assert_eq!(bytes(&finish(&mut disk, 1)[0]), 0);
    for part in 0..4 {
        let zero = Op::Zero {
            slot,
            block: part * ZERO_BLOCKS_MAX,
            blocks: ZERO_BLOCKS_MAX,
        };
        disk.submit(OpId(u64::from(part)), zero);
    }
    let zeroed = u64::from(ZERO_BLOCKS_MAX) * BLOCK_BYTES as u64;
    assert!(
        finish(&mut disk, 4)
            .iter()
            .all(|completion| bytes(completion) == zeroed)
    );
    disk.submit(OpId(9), Op::Flush { slot });
    finish(&mut disk, 1);
    drop(disk);

    let mut disk = UringDisk::new(directory.path()).unwrap();
    disk.lock().unwrap();
    assert_eq!(disk.slots().unwrap(), [SlotFile { slot, blocks }]);
    let mut all_of_it = vec![Block([1; BLOCK_BYTES]); blocks as usize];
    disk.read(slot, 0, &mut all_of_it).unwrap();
    assert!(all_of_it.iter().all(|block| block.0 == [0; BLOCK_BYTES]));
}

#[test]
fn a_file_that_cannot_be_made_is_reported_and_not_left_behind() {
    let directory = directory();
    let Some(mut disk) = opened(directory.path()) else {
        return;
    };
    let blocks = u32::MAX;
    let free = rustix::fs::statvfs(directory.path()).unwrap();
    let free_bytes = free.f_bavail * free.f_frsize;
    // In memory nothing is reserved, and there may be no end of space.
    if free_bytes == 0 || u64::from(blocks) * BLOCK_BYTES as u64 <= free_bytes {
        return;
    }
    disk.submit(OpId(1), Op::Create { slot: SLOT, blocks });
    disk.submit(
        OpId(2),
        Op::Create {
            slot: SlotId(4),
            blocks: 1,
        },
    );
    let done = finish(&mut disk, 2);
    assert!(done[0].result.is_err() && done[1].result.is_ok());
    assert!(!disk.slot_path(SLOT).exists() && disk.slot_path(SlotId(4)).exists());
}

#[test]
fn an_owner_that_sleeps_on_the_descriptor_is_woken() {
    let directory = directory();
    let Some(mut disk) = with_slot(directory.path(), 8) else {
        return;
    };
    let WakeBy::EventFd(eventfd) = disk.wake_by(Arc::new(|| unreachable!())) else {
        panic!("a ring wakes by descriptor");
    };
    let sleeps = || {
        let mut readable = [PollFd::new(&eventfd, PollFlags::IN)];
        let patience = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut readable, Some(&patience)).unwrap(),
            1,
            "never woken"
        );
        rustix::io::read(&eventfd, &mut [0; 8]).unwrap();
    };
    let mut done = Vec::new();
    for round in 0..50 {
        write(&mut disk, round, 1, 1, 1, true);
        disk.submit(OpId(1000 + round), Op::Flush { slot: SLOT });
        disk.kick();
        while done.len() < 2 {
            sleeps();
            disk.poll(&mut done);
        }
        done.clear();
    }
    // A thread of its own wakes by the same descriptor.
    let (slot, blocks) = (SlotId(9), 8);
    disk.submit(OpId(1), Op::Create { slot, blocks });
    disk.kick();
    while done.is_empty() {
        sleeps();
        disk.poll(&mut done);
    }
    assert!(done[0].result.is_ok());
}

#[test]
fn the_directory_has_one_user_and_is_free_as_soon_as_that_is_gone() {
    let directory = directory();
    let Some(mut first) = with_slot(directory.path(), 64) else {
        return;
    };
    let mut second = UringDisk::new(directory.path()).unwrap();
    let error = second.lock().unwrap_err();
    assert!(matches!(error, DiskError::Locked { .. }), "{error}");
    for id in 0..16 {
        write(&mut first, id, 0, 4, 1, true);
    }
    first.kick();
    drop(first);
    // Without patience.
    let file = File::open(directory.path().join(LOCK_FILE)).unwrap();
    file.try_lock().unwrap();
    file.unlock().unwrap();
    second.lock().unwrap();
}

#[test]
fn a_disk_that_is_dropped_finishes_what_was_started() {
    let directory = directory();
    let Some(mut disk) = with_slot(directory.path(), 64 * 16) else {
        return;
    };
    for part in 0..64 {
        write(&mut disk, u64::from(part), part * 16, 16, 7, false);
    }
    disk.submit(
        OpId(100),
        Op::Create {
            slot: SlotId(8),
            blocks: 4,
        },
    );
    disk.kick();
    drop(disk);
    let mut disk = opened(directory.path()).unwrap();
    let mut blocks = vec![Block::ZERO; 64 * 16];
    disk.read(SLOT, 0, &mut blocks).unwrap();
    assert!(blocks.iter().all(|block| block.0 == [7; BLOCK_BYTES]));
    assert!(disk.slot_path(SlotId(8)).exists());
}

#[test]
fn a_ring_on_the_wrong_thread_fails_every_operation_and_loses_none() {
    let directory = directory();
    let Some(mut disk) = with_slot(directory.path(), 64) else {
        return;
    };
    for id in 0..8 {
        write(&mut disk, id, 0, 1, 1, true);
    }
    disk.kick();
    let elsewhere = std::thread::spawn(move || {
        for id in 8..200 {
            write(&mut disk, id, 1, 1, 1, true);
        }
        disk.kick();
        let done = finish(&mut disk, 200);
        // Old kernels do not care which thread it is.
        let failed = done
            .iter()
            .filter(|completion| completion.result.is_err())
            .count();
        assert!(failed == 0 || 192 <= failed, "{failed}");
        assert!(done.iter().all(|completion| completion.buffer.is_some()));
        for id in 200..210 {
            write(&mut disk, id, 1, 1, 1, true);
        }
        assert_eq!(finish(&mut disk, 10).len(), 10);
    });
    elsewhere.join().unwrap();
    // The kernel lets go of the directory when the requests that nobody waited for have ended, and takes a ring
    // down that it lets nobody else empty when it finds the time. On a busy machine that is longer than the
    // patience of one call.
    let mut next = UringDisk::new(directory.path()).unwrap();
    let free = (0..60).any(|_| match next.lock() {
        Ok(()) => true,
        Err(DiskError::Locked { .. }) => false,
        Err(error) => panic!("{error}"),
    });
    assert!(free);
}

#[test]
fn a_flush_mode_is_measured_once_and_nothing_is_left_in_the_way() {
    let directory = directory();
    let Some(disk) = opened(directory.path()) else {
        return;
    };
    assert_eq!(disk.facts().flush_mode, None);
    drop(disk);
    let mut modes = Vec::new();
    for _ in 0..2 {
        let mut disk = UringDisk::new(directory.path()).unwrap().with_probing();
        disk.lock().unwrap();
        assert_eq!(disk.slots().unwrap(), []);
        let facts = disk.facts();
        modes.push(facts.flush_mode.expect("measured or remembered"));
        assert!(
            facts
                .fallbacks
                .iter()
                .all(|note| !note.contains("measured")),
            "{facts:?}"
        );
    }
    assert_eq!(modes[0], modes[1]);
    let names = std::fs::read_dir(directory.path()).unwrap();
    assert_eq!(names.count(), 2, "the lock and the record");
}
