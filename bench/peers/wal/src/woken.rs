//! How a thread that drives a disk waits for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use logdrive_wal::disk::{Disk, WakeBy};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a disk wakes its thread by.
pub enum Woken {
    /// By a call.
    Callback(Receiver<()>),
    /// By making this readable.
    EventFd(std::os::fd::OwnedFd),
}

impl Woken {
    /// By what this disk does it.
    pub fn by(disk: &mut Box<dyn Disk>) -> Self {
        let (wake, woken) = channel();
        let by = disk.wake_by(Arc::new(move || {
            // Nobody listens any more: the log is being closed.
            let _ = wake.send(());
        }));
        match by {
            WakeBy::EventFd(fd) => Self::EventFd(fd),
            _ => Self::Callback(woken),
        }
    }

    /// Waits for the disk, but not beyond `until`.
    pub fn wait(&self, until: Option<Instant>) {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match self {
            Self::Callback(woken) => wait_for_call(woken, left),
            Self::EventFd(fd) => {
                let left = left.map(|left| Timespec::try_from(left).expect("a bench is short"));
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                let ready = poll(&mut fds, left.as_ref()).expect("an eventfd can be polled");
                if ready > 0 {
                    rustix::io::read(fd, &mut [0; 8]).expect("it was readable");
                }
            }
        }
    }
}

fn wait_for_call(woken: &Receiver<()>, left: Option<Duration>) {
    match left {
        None => woken.recv().expect("the disk holds the other end"),
        Some(left) => match woken.recv_timeout(left) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("the disk holds the other end"),
        },
    }
}
