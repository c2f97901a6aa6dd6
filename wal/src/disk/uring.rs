//! A ring of the kernel and the transfers that are under way in it: all the unsafe code there is.
//!
//! The one fact to know: the memory of a transfer belongs to the ring's table from before the kernel hears
//! of it until its completion has been taken. A ring that is dropped waits for its transfers; if it cannot,
//! because it is dropped on another thread or the kernel refuses, their memory is never freed.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes memory that it is given by address"
)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::{Errno, ReadWriteFlags};
use zerocopy::IntoBytes;

use super::file::{ZEROS, offset_of};
use super::{BLOCK_BYTES, Block, Buffer, OpId};

pub use disk::UringDisk;

mod creator;
mod disk;
mod pool;
#[cfg(test)]
mod tests;

/// Transfers under way at once. The submission queue is as long, so that it cannot be full, and the
/// completion queue twice as long, so that it cannot overflow.
pub(super) const TRANSFERS_MAX: u32 = 128;

/// Entries in the table of registered files.
const FILES_MAX: u32 = 512;

/// Zero-filling is best effort at the lowest level (`ioprio_set(2)`). Not idle: idle requests may starve,
/// and then the log runs out of slots.
const ZERO_PRIORITY: u16 = (2 << 13) | 7;

/// A file as the ring names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An entry of the table of registered files.
    Registered(u32),
    /// A descriptor that stays open as long as the ring.
    Descriptor(RawFd),
}

/// What is to be done to a file, with the memory for it.
#[derive(Debug)]
pub(super) enum Transfer {
    /// Writes the used blocks.
    Write {
        block: u32,
        buffer: Buffer,
        dsync: bool,
    },
    /// Reads the used blocks.
    Read { block: u32, buffer: Buffer },
    /// `fdatasync`.
    Flush,
    /// Writes zeros.
    Zero { block: u32, blocks: u32 },
}

/// A transfer that has ended.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) id: OpId,
    pub(super) result: io::Result<u64>,
    pub(super) buffer: Option<Buffer>,
    pub(super) zero: bool,
}

/// A transfer under way.
#[derive(Debug)]
struct Flying {
    id: OpId,
    buffer: Option<Buffer>,
    zero: bool,
}

/// A ring with registered files and buffers.
pub(super) struct Ring {
    ring: IoUring,
    /// Whether the ring still has to be given to the thread that uses it.
    disabled: bool,
    /// By the number that the kernel gives back. Never grows: what lies in it stays where it is.
    flying: Box<[Option<Flying>]>,
    free: Vec<u32>,
    /// Where each registered buffer begins.
    buffers: Vec<*const Block>,
    /// Which entries of the table of files are taken.
    files: Vec<bool>,
    /// The kernel did not take what was queued and must be asked again.
    stalled: bool,
    /// The kernel refuses the ring. Nothing is submitted any more.
    broken: Option<Errno>,
}

// SAFETY: the addresses in `buffers` are only compared, never followed; everything else is `Send`.
unsafe impl Send for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets a ring up, with the best of what this kernel offers; what it does not offer is added to
    /// `fallbacks`. Any thread may do that. The ring belongs to the thread that calls
    /// [`enable`](Self::enable).
    pub(super) fn new(fallbacks: &mut Vec<String>) -> io::Result<Self> {
        let (ring, disabled) = build(fallbacks)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let wanted = [
            opcode::Write::CODE,
            opcode::Read::CODE,
            opcode::WriteFixed::CODE,
            opcode::ReadFixed::CODE,
            opcode::Fsync::CODE,
        ];
        if !wanted.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let params = ring.params();
        assert!(TRANSFERS_MAX <= params.sq_entries());
        assert!(TRANSFERS_MAX < params.cq_entries());
        let mut files = vec![false; FILES_MAX as usize];
        if let Err(error) = ring.submitter().register_files(&[-1; FILES_MAX as usize]) {
            files.clear();
            fallbacks.push(format!("io_uring without registered files: {error}"));
        }
        Ok(Self {
            ring,
            disabled,
            flying: (0..TRANSFERS_MAX).map(|_| None).collect(),
            free: (0..TRANSFERS_MAX).rev().collect(),
            buffers: Vec::new(),
            files,
            stalled: false,
            broken: None,
        })
    }

    /// Makes the ring this thread's.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        if self.disabled {
            self.ring.submitter().register_enable_rings()?;
            self.disabled = false;
        }
        Ok(())
    }

    /// Has every completion signalled on an eventfd.
    pub(super) fn register_eventfd(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.submitter().register_eventfd(eventfd.as_raw_fd())
    }

    /// Registers memory, once. The buffers are numbered in this order.
    pub(super) fn register_buffers(&mut self, buffers: &mut [Buffer]) -> io::Result<()> {
        assert!(self.buffers.is_empty());
        let slices: Vec<IoSliceMut<'_>> = buffers
            .iter_mut()
            .map(|buffer| IoSliceMut::new(buffer.blocks_mut().as_mut_bytes()))
            .collect();
        // SAFETY: an `IoSliceMut` has the layout of an `iovec`, as its documentation promises, and `slices`
        // outlives the reference.
        let vectors = unsafe { std::slice::from_raw_parts(slices.as_ptr().cast(), slices.len()) };
        // SAFETY: the kernel pins the pages until they are unregistered, whoever frees the addresses. It
        // touches them only for a transfer, and `start` names a registered buffer only together with the
        // `Buffer` that owns the memory, which then lies in the table until the completion.
        unsafe { self.ring.submitter().register_buffers(vectors)? };
        let starts = buffers.iter().map(|buffer| buffer.blocks().as_ptr());
        self.buffers = starts.collect();
        Ok(())
    }

    /// Puts a file into the table of registered files, or names it by its descriptor if that is full. The
    /// file must stay open as long as the ring: a later one could get its descriptor.
    pub(super) fn register_file(&mut self, file: BorrowedFd<'_>) -> Target {
        let descriptor = file.as_raw_fd();
        let free = self.files.iter().position(|taken| !taken);
        let entry = free.and_then(|entry| u32::try_from(entry).ok());
        let submitter = self.ring.submitter();
        match entry.map(|entry| (entry, submitter.register_files_update(entry, &[descriptor]))) {
            Some((entry, Ok(1))) => {
                self.files[entry as usize] = true;
                Target::Registered(entry)
            }
            _ => Target::Descriptor(descriptor),
        }
    }

    /// Takes a file out of the table again. No transfer to it may be under way.
    pub(super) fn forget_file(&mut self, target: Target) {
        if let Target::Registered(entry) = target
            && self
                .ring
                .submitter()
                .register_files_update(entry, &[-1])
                .is_ok()
        {
            self.files[entry as usize] = false;
        }
    }

    /// How many transfers are under way.
    pub(super) fn in_flight(&self) -> usize {
        self.flying.len() - self.free.len()
    }

    /// Whether another transfer can be started.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Queues a transfer for the next [`enter`](Self::enter).
    ///
    /// # Panics
    ///
    /// If there is no room.
    pub(super) fn start(&mut self, id: OpId, target: Target, transfer: Transfer) {
        let place = self.free.pop();
        let place = place.expect("the caller asked whether there is room");
        let flying = self.flying[place as usize].insert(Flying {
            id,
            zero: matches!(transfer, Transfer::Zero { .. }),
            buffer: None,
        });
        let (file, flags) = match target {
            Target::Registered(entry) => (entry.cast_signed(), squeue::Flags::FIXED_FILE),
            Target::Descriptor(descriptor) => (descriptor, squeue::Flags::empty()),
        };
        let file = types::Fd(file);
        // From here on the blocks are at their place: moved into the table first, pointed to afterwards.
        let entry = match transfer {
            Transfer::Write {
                block,
                buffer,
                dsync,
            } => {
                let number = registered(&self.buffers, &buffer);
                let blocks = flying.buffer.insert(buffer).blocks();
                let (from, bytes) = (blocks.as_ptr().cast(), bytes_of(blocks.len()));
                let dsync = if dsync { DSYNC } else { 0 };
                let at = offset_of(block);
                match number {
                    Some(number) => opcode::WriteFixed::new(file, from, bytes, number)
                        .offset(at)
                        .rw_flags(dsync)
                        .build(),
                    None => opcode::Write::new(file, from, bytes)
                        .offset(at)
                        .rw_flags(dsync)
                        .build(),
                }
            }
            Transfer::Read { block, buffer } => {
                let number = registered(&self.buffers, &buffer);
                let blocks = flying.buffer.insert(buffer).blocks_mut();
                let (into, bytes) = (blocks.as_mut_ptr().cast(), bytes_of(blocks.len()));
                let at = offset_of(block);
                match number {
                    Some(number) => opcode::ReadFixed::new(file, into, bytes, number)
                        .offset(at)
                        .build(),
                    None => opcode::Read::new(file, into, bytes).offset(at).build(),
                }
            }
            Transfer::Flush => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Transfer::Zero { block, blocks } => {
                let zeros = &ZEROS[..blocks as usize];
                opcode::Write::new(file, zeros.as_ptr().cast(), bytes_of(zeros.len()))
                    .offset(offset_of(block))
                    .ioprio(ZERO_PRIORITY)
                    .build()
            }
        };
        let entry = entry.flags(flags).user_data(u64::from(place));
        // SAFETY: the entry points to the zeros, which are static and only read, or to the blocks of the
        // buffer that the table owns now: they are neither moved, freed, read nor written until `reap` has
        // taken the completion, and `drop` waits for that or frees nothing.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has an entry for every transfer under way");
    }

    /// Hands everything that was queued to the kernel and lets it do what it deferred.
    pub(super) fn enter(&mut self) {
        self.stalled = false;
        while self.broken.is_none() {
            match self.ring.submit() {
                // Kernels that stop at an entry they refuse have to be asked again for the rest.
                Ok(taken) if taken > 0 && !self.ring.submission().is_empty() => {}
                Ok(_) => return,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    // No memory for a request right now. What the kernel did not take stays queued.
                    Some(Errno::AGAIN | Errno::BUSY) => {
                        self.stalled = true;
                        return;
                    }
                    other => self.broken = Some(other.unwrap_or(Errno::IO)),
                },
            }
        }
    }

    /// Takes what has completed. No system call if nothing happened.
    pub(super) fn reap(&mut self, mut land: impl FnMut(Landed)) {
        if self.stalled {
            self.enter();
        }
        // Each round takes completions of transfers that were under way before, so there is a last one.
        while self.in_flight() > 0 {
            for completed in self.ring.completion() {
                let place = u32::try_from(completed.user_data());
                let place = place.expect("the kernel gives back the number that it was given");
                let flying = self.flying[place as usize].take();
                let flying = flying.expect("each transfer completes once");
                self.free.push(place);
                land(flying.land(completed.result()));
            }
            let deferred = self.ring.submission().taskrun();
            if let Some(errno) = self.broken {
                return self.abandon(errno, land);
            }
            if !deferred {
                return;
            }
            self.enter();
        }
    }

    /// The kernel refuses the ring: nobody will ever learn how the transfers under way ended.
    fn abandon(&mut self, errno: Errno, mut land: impl FnMut(Landed)) {
        for (place, flying) in (0..).zip(&mut self.flying) {
            let Some(mut flying) = flying.take() else {
                continue;
            };
            self.free.push(place);
            if let Some(buffer) = flying.buffer.replace(Buffer::with_blocks(0)) {
                // The kernel may still write to it.
                let _ = Box::leak(Box::new(buffer));
            }
            land(flying.land(-errno.raw_os_error()));
        }
    }

    /// Why the kernel refuses the ring. Then nothing may be started any more.
    pub(super) fn broken(&self) -> Option<Errno> {
        self.broken
    }

    /// Whether [`reap`](Self::reap) has something to do of which the kernel will not tell.
    pub(super) fn wants_attention(&self) -> bool {
        self.stalled || (self.broken.is_some() && self.in_flight() > 0)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            // Also submits what was queued and not yet submitted.
            if let Err(error) = self.ring.submit_and_wait(1)
                && Errno::from_io_error(&error) != Some(Errno::INTR)
            {
                self.broken = Some(Errno::from_io_error(&error).unwrap_or(Errno::IO));
            }
            self.reap(|_| {});
        }
        // The kernel takes a ring down when it finds the time. The lock on the directory and the account of
        // locked memory should not have to wait for that. Without registrations these fail, which is fine.
        let _ = self.ring.submitter().unregister_files();
        let _ = self.ring.submitter().unregister_buffers();
    }
}

impl Flying {
    fn land(self, result: i32) -> Landed {
        let result = match u64::try_from(result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        Landed {
            id: self.id,
            result,
            buffer: self.buffer,
            zero: self.zero,
        }
    }
}

/// `RWF_DSYNC`.
const DSYNC: i32 = ReadWriteFlags::DSYNC.bits().cast_signed();

fn bytes_of(blocks: usize) -> u32 {
    u32::try_from(blocks * BLOCK_BYTES).expect("a transfer is far below 4 GiB")
}

/// The number under which the kernel knows this memory, if it is this ring that registered it.
fn registered(starts: &[*const Block], buffer: &Buffer) -> Option<u16> {
    let number = buffer.registered()?;
    let start = *starts.get(usize::from(number))?;
    (start == buffer.blocks().as_ptr()).then_some(number)
}

/// Sets a ring up with as many of these properties as the kernel has, from the newest to the oldest. Says
/// whether it still has to be enabled.
fn build(fallbacks: &mut Vec<String>) -> io::Result<(IoUring, bool)> {
    // What a kernel is too old for, by what it lacks.
    let steps = [
        (true, true, true, true, ""),
        (false, true, true, true, "DEFER_TASKRUN"),
        (false, false, true, true, "SINGLE_ISSUER"),
        (false, false, false, true, "SUBMIT_ALL"),
        (false, false, false, false, "R_DISABLED"),
    ];
    let mut refused = io::Error::from(io::ErrorKind::Unsupported);
    for (defer, single, all, disabled, lacks) in steps {
        let mut builder = IoUring::builder();
        if defer {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        }
        if single {
            builder.setup_single_issuer();
        }
        if all {
            builder.setup_submit_all();
        }
        if disabled {
            builder.setup_r_disabled();
        }
        match builder.build(TRANSFERS_MAX) {
            Ok(ring) => {
                if !lacks.is_empty() {
                    fallbacks.push(format!("io_uring without {lacks}: the kernel is old"));
                }
                return Ok((ring, disabled));
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}
