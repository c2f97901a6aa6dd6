//! The making of slot files, on a thread of its own: reserving space and flushing a directory can take long
//! and have no place on a ring.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::disk::file::SlotHandle;
use crate::disk::lock::DirectoryLock;
use crate::disk::{OpId, SlotId};

/// Files in the making at once. The lanes have as much room, so that neither can fill.
const CREATES_MAX: usize = 4;

/// A file to be made.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: OpId,
    pub(super) slot: SlotId,
    pub(super) path: PathBuf,
    pub(super) blocks: u32,
}

/// A file that was made or could not be made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) id: OpId,
    pub(super) slot: SlotId,
    pub(super) result: io::Result<SlotHandle>,
}

/// The thread and the lanes to it. Dropped, it finishes what it was given.
#[derive(Debug)]
pub(super) struct Creator {
    /// `None` once the thread is told to end.
    jobs: Option<SyncSender<Job>>,
    made: Receiver<Made>,
    under_way: usize,
    thread: Option<JoinHandle<()>>,
}

impl Creator {
    /// Starts the thread. It holds the lock of the directory, and tells of each file by the eventfd.
    pub(super) fn start(lock: Arc<DirectoryLock>, eventfd: Arc<OwnedFd>) -> io::Result<Self> {
        let (jobs, jobs_in) = sync_channel::<Job>(CREATES_MAX);
        let (made_out, made) = sync_channel(CREATES_MAX);
        let thread = std::thread::Builder::new()
            .name("wal-create".to_owned())
            .spawn(move || {
                for job in jobs_in {
                    let made = Made {
                        id: job.id,
                        slot: job.slot,
                        result: SlotHandle::create(&job.path, job.blocks, true),
                    };
                    // If the owner is gone, so is its wish to know.
                    let _ = made_out.send(made);
                    super::disk::signal(&eventfd);
                }
                drop(lock);
            })?;
        Ok(Self {
            jobs: Some(jobs),
            made,
            under_way: 0,
            thread: Some(thread),
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.under_way < CREATES_MAX
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    pub(super) fn make(&mut self, job: Job) {
        assert!(self.has_room());
        self.under_way += 1;
        let jobs = self.jobs.as_ref().expect("the thread runs until the drop");
        jobs.try_send(job)
            .expect("the lane is as long as what may be under way");
    }

    pub(super) fn take(&mut self) -> Option<Made> {
        if self.is_idle() {
            return None;
        }
        let made = self.made.try_recv().ok()?;
        self.under_way -= 1;
        Some(made)
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to say here.
            let _ = thread.join();
        }
    }
}
